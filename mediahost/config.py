"""The configuration: flat keys, one model, every error told at once before anything is touched.

`Settings` is the only list of keys, types and defaults; the reference documentation, the JSON Schema and
`group_data/all.py` are checked against it. Nothing here reads a host or a file other than public keys.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal
from zoneinfo import available_timezones

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

# Keys that belong to pyinfra's connectors and global arguments, not to us.
_FOREIGN_PREFIXES = ("ssh_", "_", "docker_container_", "local_", "vagrant_", "fake_")
_USER_NAME = re.compile(r"^[a-z_][a-z0-9_-]{0,31}$")  # useradd(8), NAME_REGEX of Debian's adduser
_SSH_KEY = re.compile(r"^(ssh-(ed25519|rsa)|ecdsa-sha2-nistp\d+|sk-(ssh-ed25519|ecdsa-sha2-nistp256)@openssh\.com) ")
_SERVICE_NAME = re.compile(r"^[a-z0-9][a-z0-9-]*$")
_DOMAIN = re.compile(r"^(?=.{1,253}$)([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z]([a-z0-9-]{0,61}[a-z0-9])$")
_SIZE = re.compile(r"^\d+[kmgKMG]$")


def _network(value: str) -> str:
    try:
        return str(ipaddress.ip_network(value, strict=True))
    except ValueError as error:
        raise ValueError(f"{error}; write an address block such as 192.168.1.0/24 or fd00::/8") from None


def _absolute_path(value: str) -> str:
    path = PurePosixPath(value)
    if not path.is_absolute() or ".." in path.parts:
        raise ValueError("write an absolute path without '..', such as /data")
    if len(path.parts) < 2:
        raise ValueError("the root directory itself cannot be used; choose a directory below it, such as /data")
    if re.search(r"[^A-Za-z0-9_./@+-]", value):
        raise ValueError("use letters, digits and . _ - @ + only: the path ends up in unit and compose files")
    return str(path)


def _timezone(value: str) -> str:
    if value not in available_timezones():
        near = difflib.get_close_matches(value, available_timezones(), n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"no such time zone{hint}")
    return value


def _user_name(value: str) -> str:
    if not _USER_NAME.match(value):
        raise ValueError("a user name is lower-case letters, digits, - and _, and starts with a letter")
    return value


def _domain(value: str) -> str:
    if not _DOMAIN.match(value):
        raise ValueError("write a domain in lower case such as example.org")
    return value


def _size(value: str) -> str:
    if not _SIZE.match(value):
        raise ValueError("write a size such as 10m or 1g")
    return value


def _fingerprint(value: str) -> str:
    plain = value.replace(" ", "").upper()
    if not re.fullmatch(r"[0-9A-F]{40}", plain):
        raise ValueError("write the 40 hexadecimal digits of the key's fingerprint")
    return plain


def _url(value: str) -> str:
    if not re.fullmatch(r"https?://[^\s/\"'<>|]+(/[^\s\"'<>|]*)?", value):
        raise ValueError("write a URL that starts with https:// (http:// for a mirror of your own)")
    return value.rstrip("/")


def _clock_time(value: str) -> str:
    if not re.fullmatch(r"([01]\d|2[0-3]):[0-5]\d", value):
        raise ValueError("write a time of day such as 04:30")
    return value


def _public_keys(value: list[str]) -> list[str]:
    """Each entry is a public key line or the path of a .pub file on the control machine."""
    lines: list[str] = []
    for entry in value:
        if _SSH_KEY.match(entry):
            lines.append(entry.strip())
            continue
        if "PRIVATE KEY" in entry:
            raise ValueError("this is a private key; give the public one (the .pub file beside it)")
        path = Path(entry).expanduser()
        try:
            content = path.read_text()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not a text file"
            raise ValueError(
                f"{entry}: {reason}; give a public key or the path of one (ssh-keygen -t ed25519 makes one)"
            ) from None
        found = [line.strip() for line in content.splitlines() if _SSH_KEY.match(line)]
        if not found:
            raise ValueError(f"{entry}: no public key in this file; is it the private one? Use the .pub file")
        lines.extend(found)
    return lines


Network = Annotated[str, AfterValidator(_network)]
AbsolutePath = Annotated[str, AfterValidator(_absolute_path)]
UserName = Annotated[str, AfterValidator(_user_name)]
Port = Annotated[int, Field(ge=1, le=65535)]
Uid = Annotated[int, Field(ge=1000, le=60000)]
Size = Annotated[str, AfterValidator(_size)]
Url = Annotated[str, AfterValidator(_url)]


class Settings(BaseModel):
    """Everything a host can be told. One key a line in `group_data/` or the inventory."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    # base
    timezone: Annotated[str, AfterValidator(_timezone)] = Field(
        "Etc/UTC", description="Time zone of the host and of every container."
    )
    packages_extra: list[str] = Field([], description="Further packages to install, by name.")
    ntp_servers: list[str] = Field([], description="Time servers; empty keeps the distribution's.")
    sysctl_extra: dict[str, str] = Field({}, description="Further kernel settings: name to value.")
    journald_max_use: Size = Field("1g", description="Most disk space the journal may take.")
    journald_max_retention: str = Field("1month", description="Oldest journal entry kept (systemd time span).")
    unattended_upgrades: bool = Field(True, description="Install security updates by themselves.")
    unattended_reboot: bool = Field(False, description="Reboot when an update asks for it.")
    unattended_reboot_time: Annotated[str, AfterValidator(_clock_time)] = Field(
        "04:30", description="When such a reboot may happen, host time."
    )
    unattended_blacklist: list[str] = Field(
        [
            "docker-ce",
            "docker-ce-cli",
            "containerd\\.io",
            "docker\\.io",
            "containerd",
            "nvidia",
            "libnvidia",
            "linux-modules-nvidia",
            "plexmediaserver",
        ],
        description="Packages (regular expressions) that unattended upgrades leave alone: "
        "an update of these would stop containers or break a running transcode.",
    )

    # users
    admins: dict[UserName, Annotated[list[str], AfterValidator(_public_keys)]] = Field(
        {},
        description="Administrators: name to public keys (key lines or paths of .pub files on this machine).",
    )
    admin_sudo_nopasswd: bool = Field(
        True, description="Administrators use sudo without a password (their accounts have none to type)."
    )
    media_user: UserName = Field("media", description="The account that owns the media and runs the services.")
    media_group: UserName = Field("media", description="The group that shares the media.")
    media_uid: Uid = Field(13000, description="User id of media_user, the PUID of the containers.")
    media_gid: Uid = Field(13000, description="Group id of media_group, the PGID of the containers.")

    # ssh
    sshd_port: Port = Field(22, description="Port of the SSH server.")
    sshd_permit_root_login: Literal["no", "prohibit-password"] = Field(
        "prohibit-password", description="Whether root may log in with a key."
    )
    sshd_max_auth_tries: Annotated[int, Field(ge=2, le=10)] = Field(4, description="Tries in one connection.")
    sshd_login_grace_time: Annotated[int, Field(ge=10, le=600)] = Field(30, description="Seconds to log in.")

    # firewall
    firewall: bool = Field(True, description="Manage UFW. False leaves the host's firewall as it is.")
    firewall_lan: list[Network] = Field(
        ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7", "fe80::/10"],
        description="Your home network: what `lan` exposure means. Narrow it to your own block.",
    )
    firewall_ssh_from: list[Network] = Field([], description="Who may reach SSH; empty means anybody.")
    firewall_extra: list[dict[str, Any]] = Field([], description="Further rules: {port, protocol, source, comment}.")
    firewall_prune_foreign: bool = Field(False, description="Also delete rules that are not ours.")

    # docker
    docker_source: Literal["docker", "distro"] = Field(
        "docker", description="Docker's own packages, or the distribution's."
    )
    docker_version: str | None = Field(
        None,
        description="Version to pin: 5:29.7.* (Docker's) or 26.1.* (Debian's); None takes the newest.",
    )
    docker_hold: bool = Field(True, description="Hold the packages so that only a run of mediahost updates them.")
    docker_apt_url: Url = Field(
        "https://download.docker.com/linux", description="Docker's package repository, or your mirror of it."
    )
    docker_apt_fingerprint: Annotated[str, AfterValidator(_fingerprint)] = Field(
        "9DC858229FC7DD38854AE2D88D81803C0EBFCD88", description="Fingerprint its signing key must have."
    )
    docker_address_pools: list[dict[str, Any]] = Field(
        [{"base": "172.30.0.0/16", "size": 24}],
        description="Address blocks for container networks. Docker's own choice collides with home networks.",
    )
    docker_log_max_size: Size = Field("10m", description="Size at which a container's log is rotated.")
    docker_log_max_file: Annotated[int, Field(ge=1, le=100)] = Field(3, description="Rotated logs kept.")
    docker_live_restore: bool = Field(True, description="Containers go on while the engine restarts (not in Swarm).")
    docker_nofile_soft: Annotated[int, Field(ge=1024)] = Field(
        65536, description="Open files a container starts with."
    )
    docker_nofile_hard: Annotated[int, Field(ge=1024)] = Field(
        1048576, description="Open files a container may ask for."
    )
    docker_insecure_registries: list[str] = Field([], description="Registries without TLS, host:port.")
    docker_daemon_extra: dict[str, Any] = Field(
        {}, description="Further keys of daemon.json; ours win nothing over them."
    )

    # storage
    layout: Literal["trash", "split"] = Field(
        "trash",
        description="`trash`: downloads and media below one data_root, imports are hardlinks. "
        "`split`: downloads on a disk of their own (downloads_root), imports are copies.",
    )
    data_root: AbsolutePath = Field("/data", description="Where the media live (data_root/media).")
    downloads_root: AbsolutePath = Field("/srv/downloads", description="Where downloads go in the `split` layout.")
    media_libraries: list[Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]] = Field(
        ["movies", "tv", "music", "books", "audiobooks", "podcasts"], description="Directories below media."
    )
    stack_root: AbsolutePath = Field("/opt/media-server", description="Compose file, secrets and service configs.")

    # stack
    selection: Literal["home", "none"] = Field("home", description="A named set of services.")
    services: list[str] = Field([], description="Services beside those of the selection.")
    services_disabled: list[str] = Field([], description="Services of the selection you do not want.")
    service_overrides: dict[str, dict[str, Any]] = Field(
        {}, description="Per service: image, exposure, route, memory, environment, host_port."
    )
    allow_retired: bool = Field(False, description="Accept services whose upstream is dead.")
    registry_prefix: str = Field(
        "", description="Put before every image name: a registry mirror such as registry.example.org:5000."
    )
    compose_wait_timeout: Annotated[int, Field(ge=10, le=3600)] = Field(
        300, description="Seconds a service has to become healthy."
    )

    # proxy
    domain: Annotated[str, AfterValidator(_domain)] | None = Field(
        None, description="Your domain: services get https://NAME.domain. None: http://NAME.HOST.home.arpa."
    )
    proxy_tls: Literal["acme", "internal", "off"] = Field(
        "acme",
        description="Certificates: from Let's Encrypt, from Caddy's own authority, or none (no domain: off).",
    )
    acme_email: str | None = Field(None, description="Where Let's Encrypt sends warnings.")

    # ddns
    ddns_settings: list[dict[str, Any]] = Field(
        [], description="ddns-updater's settings; write a secret as `secret:NAME` and keep it in the vault."
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Settings:
        for name in (*self.services, *self.services_disabled, *self.service_overrides):
            if not _SERVICE_NAME.match(name):
                raise ValueError(f"service name {name!r}: use lower-case letters, digits and -")
        if self.docker_nofile_hard < self.docker_nofile_soft:
            raise ValueError("docker_nofile_hard is smaller than docker_nofile_soft; raise it")
        if self.layout == "split" and _below(self.downloads_root, f"{self.data_root}/media"):
            raise ValueError("downloads_root lies inside data_root/media; choose a directory beside it")
        if _below(self.stack_root, f"{self.data_root}/media"):
            raise ValueError("stack_root lies inside the media; services would serve their own secrets")
        if self.registry_prefix and not re.fullmatch(r"[a-z0-9.-]+(:\d+)?(/[a-z0-9._/-]+)?", self.registry_prefix):
            raise ValueError("registry_prefix: write host[:port][/path] without https://")
        return self

    @property
    def media_root(self) -> str:
        """Directory of the libraries on the host."""
        return f"{self.data_root}/media"


def _below(path: str, parent: str) -> bool:
    return PurePosixPath(path).is_relative_to(parent)


@dataclass(frozen=True)
class ConfigProblem:
    """One thing that is wrong: whose, which key, what value, and how to mend it."""

    host: str
    key: str
    value: str
    mend: str

    def __str__(self) -> str:
        shown = f" = {self.value}" if self.value else ""
        return f"{self.host}: {self.key}{shown}: {self.mend}"


class ConfigError(Exception):
    """All problems of all hosts. Its text is what the user reads."""

    def __init__(self, problems: Iterable[ConfigProblem]) -> None:
        self.problems = tuple(problems)
        count = len(self.problems)
        head = f"{count} problem{'s' if count > 1 else ''} in the configuration; nothing has been touched:"
        super().__init__("\n".join([head, *(f"  - {problem}" for problem in self.problems)]))


def own_keys(data: Mapping[str, Any]) -> dict[str, Any]:
    """The host's data without what belongs to pyinfra."""
    return {key: value for key, value in data.items() if not key.startswith(_FOREIGN_PREFIXES)}


def read(host: str, data: Mapping[str, Any]) -> Settings:
    """The settings of one host.

    Raises `ConfigError` with every problem found.
    """
    known = list(Settings.model_fields)
    problems: list[ConfigProblem] = []
    wanted = own_keys(data)
    for key in sorted(set(wanted) - set(known)):
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
        hint = f"did you mean {near[0]}?" if near else "see docs/reference.md for every key"
        problems.append(ConfigProblem(host, key, "", f"no such key; {hint}"))
    try:
        settings = Settings(**{key: value for key, value in wanted.items() if key in known})
    except ValidationError as error:
        problems.extend(_told(host, item) for item in error.errors())
        raise ConfigError(problems) from None
    if problems:
        raise ConfigError(problems)
    return settings


def _told(host: str, error: Any) -> ConfigProblem:
    key = ".".join(str(part) for part in error["loc"]) or "configuration"
    message = str(error["msg"]).removeprefix("Value error, ")
    value = "" if isinstance(error["input"], (dict, Settings)) else _shortened(repr(error["input"]))
    return ConfigProblem(host, key, value, message)


def _shortened(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."
