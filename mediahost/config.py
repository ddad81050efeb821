"""The configuration: flat keys, one model, every error told at once before anything is touched.

`Settings` is the only list of keys, types and defaults; the reference documentation, the JSON Schema and
`group_data/all.py` are checked against it. Nothing here reads a host or a file other than public keys.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, TypeVar
from zoneinfo import available_timezones

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
    with_config,
)
from typing_extensions import TypedDict

from mediahost import controls, public_key, storage, upkeep
from mediahost.paths import AbsolutePath, below
from mediahost.storage import Disk, Pool, Share

_Extra = TypeVar("_Extra", "FirewallExtra", "OutboundExtra")

# Keys that belong to pyinfra's connectors and global arguments, not to us.
_FOREIGN_PREFIXES = ("ssh_", "_", "docker_container_", "local_", "vagrant_", "fake_")
# Preferences of Plex that keys of ours set, and those that are the server's identity.
_PLEX_SETTINGS = {
    "FriendlyName": "plex_name",
    "TranscoderTempDirectory": "plex_transcode_directory",
    "HardwareAcceleratedCodecs": "gpu",
    "HardwareAcceleratedEncoders": "gpu",
}
_PLEX_IDENTITY = ("PlexOnline", "MachineIdentifier", "ProcessedMachine", "AnonymousMachine", "Certificate")
# Used with fullmatch: `$` would let a line feed at the end through.
_USER_NAME = re.compile(r"[a-z_][a-z0-9_-]{0,31}")  # useradd(8), NAME_REGEX of Debian's adduser
_SSH_KEY = re.compile(r"(ssh-(ed25519|rsa)|ecdsa-sha2-nistp\d+|sk-(ssh-ed25519|ecdsa-sha2-nistp256)@openssh\.com) ")
_SERVICE_NAME = re.compile(r"[a-z0-9][a-z0-9-]*")
_DOMAIN = re.compile(r"(?=.{1,253}\Z)([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z]([a-z0-9-]{0,61}[a-z0-9])")
_GPU = re.compile(
    r"none|intel|nvidia|amd|[0-9]{1,2}|[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]|/dev/dri/renderD[0-9]{1,3}"
    r"|GPU-[0-9a-f-]{8,36}"
)
_SIZE = re.compile(r"[0-9]+[kmgKMG]")
_URL = re.compile(r"https?://[A-Za-z0-9.:\[\]_-]+(/[A-Za-z0-9._~%+/-]*)?")
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]*[a-z0-9+.]")  # Debian Policy 5.6.1; apt reads `name-` as "remove it"
_SYSCTL = re.compile(r"[A-Za-z0-9_-]+([./][A-Za-z0-9_-]+)+")


def _network(value: str) -> str:
    try:
        if "%" in value:
            raise ValueError("an interface (%...) has no place in an address block")
        return str(ipaddress.ip_network(value, strict=True))
    except ValueError as error:
        raise ValueError(f"{error}; write an address block such as 192.168.1.0/24 or fd00::/8") from None


def _address(value: str) -> str:
    try:
        if "%" in value:
            raise ValueError("an interface (%...) has no place here")
        return str(ipaddress.ip_address(value))
    except ValueError as error:
        raise ValueError(f"{error}; write an address such as 10.64.0.1") from None


def _forwarding(value: object, read: ValidatorFunctionWrapHandler) -> object:
    """One message for the union, whose members would tell one each."""
    try:
        if isinstance(value, bool):
            raise ValueError("neither")
        return read(value)
    except ValueError:
        raise ValueError("write off, nat-pmp, or the port your provider gave you, such as 51413") from None


def _not_everybody(value: str) -> str:
    if ipaddress.ip_network(value).prefixlen == 0:
        raise ValueError("this is everybody, so that nobody would be banned; to have no bans write fail2ban = False")
    return value


def _home_network(value: list[str]) -> list[str]:
    if not value:
        raise ValueError(
            "an empty list would close every lan route and port; name your home network, such as 192.168.1.0/24, "
            "or delete this line to let in every private network"
        )
    return value


def _source(value: str) -> str:
    return value if value == "any" else _network(value)


def _port_or_range(value: object) -> str:
    first, colon, last = str(value).partition(":")
    numbers = [first, last] if colon else [first]
    if isinstance(value, bool) or not all(re.fullmatch("[1-9][0-9]{0,4}", number) for number in numbers):
        raise ValueError("write a port such as 51820 or a range such as 6881:6889")
    if any(int(number) > 65535 for number in numbers) or (colon and int(first) >= int(last)):
        raise ValueError("ports go from 1 to 65535, and a range from its smaller to its larger port")
    return str(value)


def _comment(value: str) -> str:
    # ufw refuses an apostrophe in a comment.
    if "'" in _line(value):
        raise ValueError("leave the apostrophe out: UFW does not take it")
    return value


def _line(value: str) -> str:
    if not value.isprintable() or '"' in value or not value.strip():
        raise ValueError("write one line of text without double quotes")
    return value


def _one_protocol(value: _Extra) -> _Extra:
    if ":" in str(value["port"]) and value.get("protocol") == "any":
        raise ValueError("a range of ports needs a protocol: UFW takes tcp or udp there, so write one rule for each")
    return value


def _pool(value: AddressPool) -> AddressPool:
    block = ipaddress.ip_network(value["base"])
    # Two addresses of a network are its own, one is the bridge's, one at least is a container's.
    if not block.prefixlen <= value["size"] <= block.max_prefixlen - 2:
        raise ValueError(
            "size is the prefix length of each network cut from base: "
            f"{block.prefixlen} to {block.max_prefixlen - 2} for {block}"
        )
    return value


def _package(value: str) -> str:
    if not _PACKAGE.fullmatch(value):
        raise ValueError("a package name is lower-case letters, digits and + - . and does not end with -")
    return value


def _control(value: str) -> str:
    return _one_of(value, (*controls.NAMES, *controls.OPTIONAL_NAMES))


def _optional_control(value: str) -> str:
    if value in controls.NAMES:
        raise ValueError("this control is on by default; take it out of the list")
    return _one_of(value, (controls.EVERY, *controls.OPTIONAL_NAMES))


def _one_of(value: str, names: tuple[str, ...]) -> str:
    if value not in names:
        near = difflib.get_close_matches(value, names, n=1)
        hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(names)}"
        raise ValueError(f"no such control; {hint}")
    return value


def _sysctl_name(value: str) -> str:
    if not _SYSCTL.fullmatch(value):
        raise ValueError("write a kernel setting's name such as vm.swappiness")
    return value


def _timezone(value: str) -> str:
    if value not in available_timezones():
        near = difflib.get_close_matches(value, available_timezones(), n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"no such time zone{hint}")
    return value


def _user_name(value: str) -> str:
    if not _USER_NAME.fullmatch(value):
        raise ValueError("a user name is lower-case letters, digits, - and _, and starts with a letter")
    return value


def _domain(value: str) -> str:
    if not _DOMAIN.fullmatch(value):
        raise ValueError("write a domain in lower case such as example.org")
    return value


def _size(value: str) -> str:
    if not _SIZE.fullmatch(value):
        raise ValueError("write a size such as 10m or 1g")
    return value


def _fingerprint(value: str) -> str:
    plain = value.replace(" ", "").upper()
    if not re.fullmatch(r"[0-9A-F]{40}", plain):
        raise ValueError("write the 40 hexadecimal digits of the key's fingerprint")
    return plain


def _url(value: str) -> str:
    if not _URL.fullmatch(value):
        raise ValueError("write a URL that starts with https:// (http:// for a mirror of your own)")
    return value.rstrip("/")


def _clock_time(value: str) -> str:
    if not re.fullmatch("([01][0-9]|2[0-3]):[0-5][0-9]", value):
        raise ValueError("write a time of day such as 04:30")
    return value


def _week_time(value: str) -> str:
    day, _, at = value.partition(" ")
    if day not in ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"):
        raise ValueError("write a day of the week and a time such as Sun 05:30")
    return f"{day} {_clock_time(at)}"


def _device(value: str) -> str:
    if not re.fullmatch(r"/dev/[A-Za-z0-9_./:+@-]+", value) or ".." in value:
        raise ValueError("write a device such as /dev/disk/by-id/ata-WDC_WD80EFAX-68KNBN0_VAGX1234")
    return value


def _gpu_selector(value: str) -> str:
    if not _GPU.fullmatch(value):
        raise ValueError(
            "write intel, nvidia, amd, a number such as 0, an address such as 0000:01:00.0, a node such as "
            "/dev/dri/renderD128, an UUID such as GPU-1a2b..., or none"
        )
    return value


def _public_keys(value: list[str]) -> list[str]:
    """Each entry is a public key line or the path of a .pub file on the control machine."""
    lines: list[str] = []
    for entry in value:
        if _SSH_KEY.match(entry):
            lines += [_whole_key(line) for line in entry.splitlines() if line.strip()]
            continue
        if "PRIVATE KEY" in entry:
            raise ValueError("this is a private key; give the public one (the .pub file beside it)")
        # A lone surrogate cannot be carried in pydantic's message.
        shown = _shortened(entry.encode(errors="replace").decode())
        try:
            path = Path(entry).expanduser()
            if path.exists() and not path.is_file():
                raise OSError(None, "not a regular file")
            content = path.read_text()
        except (OSError, RuntimeError, ValueError) as error:
            # RuntimeError: `~somebody` who does not exist here.
            reason = getattr(error, "strerror", None) or "not a text file"
            raise ValueError(
                f"{shown}: {reason}; give a public key or the path of one (ssh-keygen -t ed25519 makes one)"
            ) from None
        found = [_whole_key(line) for line in content.splitlines() if _SSH_KEY.match(line)]
        if not found:
            raise ValueError(f"{shown}: no public key in this file; is it the private one? Use the .pub file")
        lines.extend(found)
    return lines


def _whole_key(line: str) -> str:
    """The line without blanks around it. Raises `ValueError` for a damaged key: it would lock its owner out."""
    try:
        public_key.parts(line)
        whole = line.strip().isprintable()
    except ValueError:
        whole = False
    if not whole:
        raise ValueError(f"{_shortened(line.strip())}: the key is damaged; copy the whole line of the .pub file")
    return line.strip()


def _max_startups(value: str) -> str:
    numbers = [int(part) for part in value.split(":")] if re.fullmatch("[0-9]{1,4}(:[0-9]{1,4}){2}", value) else []
    if not numbers or not 1 <= numbers[0] <= numbers[2] or not 1 <= numbers[1] <= 100:
        raise ValueError("write start:rate:full such as 10:30:60: from 10 on, 30 % are refused, from 60 on all")
    return value


def _banner(value: str) -> str:
    if not value.strip() or not all(char.isprintable() or char in "\n\t" for char in value):
        raise ValueError("write text, of one or more lines, or None for no banner")
    return value


def _group_names(value: list[str]) -> list[str]:
    for name in value:
        if name in ("root", "shadow", "disk"):
            raise ValueError(f"whoever is in {name} is root in all but name; use sudo for that")
    return value


def _plex_preference(value: str) -> str:
    if not re.fullmatch("[A-Za-z][A-Za-z0-9]{0,63}", value):
        raise ValueError("write a preference as Plex names it, such as LanNetworksBandwidth")
    if value in _PLEX_SETTINGS:
        raise ValueError(f"set {_PLEX_SETTINGS[value]} instead")
    if value.startswith(_PLEX_IDENTITY):
        raise ValueError("this is who the server is, or a secret of it; Plex sets it itself")
    return value


def _day(value: object) -> date | None:
    if value is None or type(value) is date:
        return value
    try:
        return date.fromisoformat(str(value))
    except ValueError:
        raise ValueError("write a day such as 2027-01-31") from None


def _form_of_admin(value: object) -> str:
    return "<keys>" if isinstance(value, list) else "<account>"


Network = Annotated[str, AfterValidator(_network)]
UserName = Annotated[str, AfterValidator(_user_name)]
PublicKeys = Annotated[list[str], AfterValidator(_public_keys)]
Port = Annotated[int, Field(ge=1, le=65535)]
Uid = Annotated[int, Field(ge=1000, le=60000)]
Size = Annotated[str, AfterValidator(_size)]
Url = Annotated[str, AfterValidator(_url)]
Line = Annotated[str, AfterValidator(_line)]


@with_config(ConfigDict(extra="forbid"))
class FirewallExtra(TypedDict):
    """A rule of the user's own: tcp from anywhere unless it says else."""

    port: Annotated[int | str, BeforeValidator(_port_or_range)]
    protocol: NotRequired[Literal["tcp", "udp", "any"]]
    source: NotRequired[Annotated[str, AfterValidator(_source)]]
    comment: NotRequired[Annotated[str, AfterValidator(_comment)]]


@with_config(ConfigDict(extra="forbid"))
class AddressPool(TypedDict):
    """Docker cuts a network of prefix length `size` from `base` for each compose network."""

    base: Network
    size: int


@with_config(ConfigDict(extra="forbid"))
class OutboundExtra(TypedDict):
    """What this host may reach beside the usual: tcp to anywhere unless it says else."""

    port: Annotated[int | str, BeforeValidator(_port_or_range)]
    protocol: NotRequired[Literal["tcp", "udp", "any"]]
    destination: NotRequired[Annotated[str, AfterValidator(_source)]]
    comment: NotRequired[Annotated[str, AfterValidator(_comment)]]


@with_config(ConfigDict(extra="forbid"))
class PlexLibrary(TypedDict):
    """A library of Plex: what is in it, and the directories on the host. `language` as Plex writes it: en-US."""

    type: Literal["movie", "show", "artist", "photo"]
    paths: Annotated[list[AbsolutePath], Field(min_length=1)]
    language: NotRequired[Annotated[str, Field(pattern=r"^[a-z]{2}(-[A-Z]{2})?$")]]


class Administrator(BaseModel):
    """Somebody who administers the host. `expires` is the first day on which the account is closed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    keys: PublicKeys = []
    groups: Annotated[list[UserName], AfterValidator(_group_names)] = []
    expires: Annotated[date | None, BeforeValidator(_day)] = None
    sudo: bool = True


class Settings(BaseModel):
    """Everything a host can be told. One key a line in `group_data/` or the inventory."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    # base
    timezone: Annotated[str, AfterValidator(_timezone)] = Field(
        "Etc/UTC", description="Time zone of the host and of every container."
    )
    packages_extra: list[Annotated[str, AfterValidator(_package)]] = Field(
        [], description="Further packages to install, by name."
    )
    ntp_servers: list[Line] = Field([], description="Time servers; empty keeps the distribution's.")
    sysctl_extra: dict[Annotated[str, AfterValidator(_sysctl_name)], Line] = Field(
        {}, description="Further kernel settings: name to value."
    )
    journald_max_use: Size = Field("1g", description="Most disk space the journal may take.")
    journald_max_retention: Line = Field("1month", description="Oldest journal entry kept (systemd time span).")
    unattended_upgrades: bool = Field(True, description="Install security updates by themselves.")
    unattended_reboot: bool = Field(False, description="Reboot when an update asks for it.")
    unattended_reboot_time: Annotated[str, AfterValidator(_clock_time)] = Field(
        "04:30", description="When such a reboot may happen, host time."
    )
    unattended_blacklist: list[Line] = Field(
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

    # hardening
    hardening: bool = Field(True, description="The hardening controls, see docs/hardening.md. False gives all back.")
    hardening_disabled: list[Annotated[str, AfterValidator(_control)]] = Field(
        [], description="Controls you do not want, by their names in docs/hardening.md."
    )
    hardening_optional: list[Annotated[str, AfterValidator(_optional_control)]] = Field(
        [],
        description="Controls that cost something and are off unless named here; docs/hardening.md tells the price "
        'of each. "all" stands for every one of them, less those in hardening_disabled.',
    )
    audit: bool = Field(True, description="Record changes of security-relevant files with auditd.")
    file_integrity: bool = Field(
        False, description="Compare system files daily with AIDE; making its database takes minutes."
    )

    # users
    admins: dict[
        UserName,
        Annotated[
            Annotated[PublicKeys, Tag("<keys>")] | Annotated[Administrator, Tag("<account>")],
            Discriminator(_form_of_admin),
        ],
    ] = Field(
        {},
        description="Administrators: name to public keys (key lines or paths of .pub files on this machine), or to "
        "{keys, groups, expires, sudo}: further groups, the day such as 2027-01-31 on which the account closes, and "
        "sudo False for somebody who only logs in. Who is taken out loses keys, sudo and login; files stay.",
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
    sshd_port_outside: Port | None = Field(
        None,
        description="Port at which this machine reaches sshd_port where a router maps it; None means the same one.",
    )
    sshd_permit_root_login: Literal["auto", "no", "prohibit-password"] = Field(
        "auto",
        description="Whether root may log in with a key. `auto`: no, unless this run itself logs in as root.",
    )
    sshd_allow_users: list[UserName] = Field(
        [],
        description="Who may log in beside the administrators and the user this run logs in as. "
        "Without `admins` everybody with a key may.",
    )
    sshd_crypto_policy: Literal["default", "strict"] = Field(
        "default",
        description="Algorithms. `default`: post-quantum first, curve25519 for older clients (pyinfra is one). "
        "`strict`: the list of ssh-audit's policy for the release; refused where this machine could not connect.",
    )
    sshd_max_auth_tries: Annotated[int, Field(ge=2, le=10)] = Field(4, description="Tries in one connection.")
    sshd_login_grace_time: Annotated[int, Field(ge=10, le=600)] = Field(30, description="Seconds to log in.")
    sshd_max_sessions: Annotated[int, Field(ge=10, le=100)] = Field(
        10, description="Sessions in one connection; pyinfra needs 10."
    )
    sshd_max_startups: Annotated[str, AfterValidator(_max_startups)] = Field(
        "10:30:60", description="Connections that have not logged in yet: start:rate:full (sshd_config(5))."
    )
    sshd_client_alive_interval: Annotated[int, Field(ge=0, le=3600)] = Field(
        300, description="Seconds of silence after which a client is asked whether it is there; 0 never asks."
    )
    sshd_client_alive_count_max: Annotated[int, Field(ge=1, le=10)] = Field(
        2, description="Unanswered questions after which a client is gone."
    )
    sshd_totp: bool = Field(
        False,
        description="Logins from outside firewall_lan need a code of six digits (TOTP) beside the key. Only "
        "administrators have one; mediahost itself must then run from inside.",
    )
    sshd_allow_tcp_forwarding: Literal["no", "local"] = Field(
        "local",
        description="Tunnels: `local` lets administrators reach pages bound to the host's own address (ssh -L).",
    )
    sshd_banner: Annotated[str, AfterValidator(_banner)] | None = Field(
        None, description="Text shown before the login; None shows none."
    )

    rollback_after: Annotated[int, Field(ge=60, le=3600)] = Field(
        300,
        description="Seconds after which the host undoes a change of SSH, sudo or firewall that no fresh login "
        "proved.",
    )

    # firewall
    firewall: bool = Field(True, description="Manage UFW. False leaves the host's firewall as it is.")
    firewall_lan: Annotated[list[Network], AfterValidator(_home_network)] = Field(
        ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7", "fe80::/10"],
        description="Your home network: what `lan` exposure means. Narrow it to your own block.",
    )
    firewall_ssh_from: list[Network] = Field([], description="Who may reach SSH; empty means anybody.")
    firewall_extra: list[Annotated[FirewallExtra, AfterValidator(_one_protocol)]] = Field(
        [],
        description="Further rules: {port, protocol, source, comment}. Port is a number or a range 6881:6889, "
        "protocol tcp (default), udp or any, source an address block or any (default).",
    )
    firewall_prune_foreign: bool = Field(False, description="Also delete rules that are not ours.")
    firewall_outbound: Literal["allow", "deny"] = Field(
        "allow",
        description="What the host itself may reach. `deny` leaves DNS, time, DHCP, HTTP and HTTPS, and what "
        "firewall_outbound_allow names; containers in networks of their own are not subject to it.",
    )
    firewall_outbound_allow: list[Annotated[OutboundExtra, AfterValidator(_one_protocol)]] = Field(
        [],
        description="What the host may reach beside that: {port, protocol, destination, comment}. Port is a number "
        "or a range, protocol tcp (default), udp or any, destination an address block or any (default).",
    )

    # fail2ban
    fail2ban: bool = Field(
        True, description="Ban addresses whose logins fail too often. False stops it; its package stays."
    )
    fail2ban_ban_time: Annotated[int, Field(ge=60)] = Field(
        3600, description="Seconds a first ban lasts; each further one lasts twice as long as the one before."
    )
    fail2ban_longest_ban: Annotated[int, Field(ge=60, le=31536000)] = Field(
        35 * 86400, description="Seconds no ban exceeds; so long an address is remembered, too."
    )
    fail2ban_find_time: Annotated[int, Field(ge=10, le=86400)] = Field(
        600, description="Seconds within which failures are counted together."
    )
    fail2ban_max_retry: Annotated[int, Field(ge=2, le=100)] = Field(
        5,
        description="Failures within that time that lead to a ban; of a proxy's refused requests four times as many.",
    )
    fail2ban_ignore: list[Annotated[Network, AfterValidator(_not_everybody)]] = Field(
        [],
        description="Addresses and blocks that are never banned, beside firewall_lan, the containers and the "
        "addresses that runs come from.",
    )

    # docker
    docker_source: Literal["docker", "distro"] = Field(
        "docker", description="Docker's own packages, or the distribution's."
    )
    docker_version: Line | None = Field(
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
    docker_address_pools: list[Annotated[AddressPool, AfterValidator(_pool)]] = Field(
        [{"base": "172.30.0.0/16", "size": 24}],
        description="Address blocks for container networks: {base, size}, size being the prefix length of each "
        "network. Docker's own choice collides with home networks.",
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

    # gpu
    gpu: Literal["none", "auto", "intel", "nvidia", "amd"] = Field(
        "none",
        description="Graphics cards for the services that can use one: every card that is found (auto), those of "
        "one maker, or none. Installs firmware and drivers; docs/gpu.md tells which.",
    )
    gpu_devices: dict[str, Annotated[str, AfterValidator(_gpu_selector)]] = Field(
        {},
        description="Which service gets which card: intel, nvidia or amd, a number in the order of the bus (0), an "
        "address (0000:01:00.0), a node (/dev/dri/renderD128), an UUID (GPU-...), or none. Others get the best one.",
    )
    gpu_hold: bool = Field(
        True, description="Hold NVIDIA's packages: an update would break what is being transcoded."
    )
    gpu_intel_low_power: bool = Field(
        False,
        description="Load HuC on Intel Gen 9 to Tiger Lake (i915.enable_guc=2) for low-power encoding; needs a "
        "reboot, and a few old machines hang with it.",
    )
    gpu_nvidia_source: Literal["distro", "nvidia"] = Field(
        "distro", description="NVIDIA's driver from the distribution, or from NVIDIA's own repository."
    )
    gpu_nvidia_branch: Annotated[int, Field(ge=470, le=999)] | None = Field(
        None, description="Driver branch such as 580; None takes the one that fits card and release."
    )
    gpu_nvidia_secure_boot: Literal["refuse", "enrolled"] = Field(
        "refuse",
        description="With Secure Boot a driver that is built on the host is refused, unless you enrolled its key.",
    )
    gpu_nvidia_apt_url: Url = Field(
        "https://developer.download.nvidia.com/compute/cuda/repos",
        description="NVIDIA's driver repository, or your mirror of it.",
    )
    gpu_nvidia_apt_fingerprint: Annotated[str, AfterValidator(_fingerprint)] = Field(
        "EB693B3035CD5710E231E123A4B469963BF863CC", description="Fingerprint its signing key must have."
    )
    gpu_toolkit_apt_url: Url = Field(
        "https://nvidia.github.io/libnvidia-container",
        description="Repository of NVIDIA's container toolkit, or your mirror of it.",
    )
    gpu_toolkit_apt_fingerprint: Annotated[str, AfterValidator(_fingerprint)] = Field(
        "C95B321B61E88C1809C4F759DDCAE044F796ECB0", description="Fingerprint its signing key must have."
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
    storage_disks: list[Disk] = Field(
        [],
        description="Disks to mount: {device, at, filesystem, format, options}. device is UUID=... or "
        "/dev/disk/by-id/..., filesystem ext4, xfs or btrfs; format True makes one, on an empty disk only.",
    )
    storage_pools: list[Pool] = Field(
        [],
        description="mergerfs pools: {at, branches, policy, minimum_free, options}. policy says where new files go "
        "(pfrd), minimum_free is left on each branch (20G).",
    )
    storage_shares: list[Share] = Field(
        [],
        description="NFS and SMB shares to mount: {kind, source, at, options, account}. account names an SMB share's "
        "vault entries HOST/account/user and HOST/account/password.",
    )
    storage_device_timeout: Annotated[int, Field(ge=5, le=600)] = Field(
        30, description="Seconds that a boot waits for a disk or share before it goes on without it."
    )

    storage_acl: bool = Field(
        True,
        description="Default ACLs on the media tree: what anybody makes there can be changed by the media group, "
        "whatever his umask. File systems without ACLs are left out.",
    )

    # care of disks
    snapraid_parity: list[AbsolutePath] = Field(
        [],
        description="Mount points of the disks that hold SnapRAID's parity, one file each; as many disks may fail. "
        "Empty: no SnapRAID.",
    )
    snapraid_data: list[AbsolutePath] | None = Field(
        None,
        description="Mount points of the disks that it protects; None: every disk of storage_disks that is a branch "
        "of a pool, or without pools every one that holds no parity.",
    )
    snapraid_exclude: list[Line] = Field(
        ["*.unrecoverable", "lost+found/", ".Trash-*/", "incomplete/", "*.part", "*.!qB"],
        description="What it leaves out, as snapraid.conf's exclude takes it.",
    )
    snapraid_delete_limit: Annotated[int, Field(ge=0)] = Field(
        40, description="A sync is refused when more files than this were deleted since the last one."
    )
    snapraid_sync_at: Annotated[str, AfterValidator(_clock_time)] = Field(
        "03:30", description="When the parity is brought up to date, each day, host time."
    )
    snapraid_scrub_on: Annotated[str, AfterValidator(_week_time)] = Field(
        "Sun 05:30", description="When a part of the disks is read and compared with the parity, each week."
    )
    snapraid_scrub_percent: Annotated[int, Field(ge=1, le=100)] = Field(
        12, description="How much of the array each scrub reads, per cent; 12 reads all of it in two months."
    )
    swap: Literal["none", "file", "zram"] = Field(
        "none",
        description="Swap of ours, beside what the host has: a file, or compressed memory (zram); none makes none.",
    )
    swap_size: Size = Field("2g", description="Size of that swap; of zram before compression.")
    smart: bool = Field(False, description="Watch the disks' own health reports (SMART) with smartd.")
    smart_devices: list[Annotated[str, AfterValidator(_device)]] = Field(
        [], description="Disks to watch; empty: every one that smartd finds."
    )
    smart_self_tests: bool = Field(
        True, description="Let each disk test itself: shortly each day at 02, thoroughly on Saturdays at 03."
    )
    smart_temperature: Annotated[int, Field(ge=30, le=90)] = Field(
        55, description="Degrees Celsius at which a disk is reported as too hot."
    )
    trim: bool = Field(
        False,
        description="Tell SSDs each week which blocks are free (fstrim.timer). False leaves the host's timer alone.",
    )
    transcode_size: Size | None = Field(
        None, description="A directory for transcodes that can never grow beyond this, such as 100g; None: none."
    )
    transcode_root: AbsolutePath = Field(
        "/srv/cache/transcode", description="Where that directory is; on an SSD, when you have one."
    )
    transcode_in: Literal["disk", "memory"] = Field(
        "disk", description="Whether transcodes are kept on that disk, or in memory (tmpfs) until the next boot."
    )
    thumbnails_size: Size | None = Field(
        None, description="A directory for thumbnails that can never grow beyond this, such as 50g; None: none."
    )
    thumbnails_root: AbsolutePath = Field("/srv/cache/thumbnails", description="Where that directory is.")

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

    # vpn
    vpn_provider: Literal["none", "nordvpn", "mullvad", "proton", "airvpn", "custom"] = Field(
        "none",
        description="Whose WireGuard tunnel the download clients use; `mediahost vpn import` or `mediahost vpn "
        "nordvpn` puts its configuration into the vault. none: no VPN.",
    )
    vpn_mode: Literal["host", "container"] = Field(
        "host",
        description="Who holds the tunnel: the host's kernel, or a Gluetun container whose network clients share.",
    )
    vpn_killswitch: bool = Field(
        True,
        description="The host's own wall: whatever happens to the tunnel, their packets leave nowhere else.",
    )
    vpn_services: list[str] | None = Field(
        None,
        description="Services whose traffic leaves through the tunnel; None: every download client that runs here.",
    )
    vpn_subnet: Network = Field(
        "172.29.29.0/24", description="Addresses of the bridge whose only way out is the tunnel (IPv4)."
    )
    vpn_dns: list[Annotated[str, AfterValidator(_address)]] = Field(
        [], description="Name servers asked through the tunnel; empty takes those of the WireGuard configuration."
    )
    vpn_port_forwarding: Annotated[Literal["off", "nat-pmp"] | Port, WrapValidator(_forwarding)] = Field(
        "off",
        description="The port at which peers reach the torrent client through the tunnel: nat-pmp asks the provider "
        "(Proton), a number is one you were given (AirVPN).",
    )

    # plex
    plex: Literal["none", "native", "docker"] = Field(
        "none",
        description="Plex Media Server: a package of Plex's own repository (native), a container (docker), or none.",
    )
    plex_version: Line | None = Field(
        None,
        description="Version of the package to pin, such as 1.43.3.*; None takes the newest once. Another one is "
        "installed only when nobody is playing.",
    )
    plex_hold: bool = Field(True, description="Hold the package so that only a run of mediahost updates it.")
    plex_apt_url: Url = Field("https://repo.plex.tv/deb", description="Plex's package repository, or your mirror.")
    plex_apt_key_url: Url = Field(
        "https://downloads.plex.tv/plex-keys/PlexSign.v2.key", description="Where its signing key is published."
    )
    plex_apt_fingerprint: Annotated[str, AfterValidator(_fingerprint)] = Field(
        "6EFFEB478A6559D75C7C4FE706C521790B9CFFDE", description="Fingerprint that key must have."
    )
    plex_exposure: Literal["wan", "lan"] = Field(
        "wan",
        description="Who may reach Plex at port 32400: everybody, as remote access without Plex's relay needs, or "
        "the home network. What it uses to be discovered is open to the home network only.",
    )
    plex_name: Line | None = Field(None, description="The server's name in Plex's apps; None leaves it as it is.")
    plex_transcode_directory: AbsolutePath | None = Field(
        None,
        description="Where the native Plex keeps running transcodes; None: transcode_root when transcode_size makes "
        "it, else among Plex's data.",
    )
    plex_libraries: dict[Line, PlexLibrary] | None = Field(
        None,
        description="Libraries to create where Plex has none of these paths (native): title to {type, paths, "
        "language}, type being movie, show, artist or photo. None: those of media_libraries that Plex knows.",
    )
    plex_preferences: dict[Annotated[str, AfterValidator(_plex_preference)], str | bool | int] = Field(
        {}, description="Further preferences of Plex by their own names (native), such as LanNetworksBandwidth."
    )

    # proxy
    domain: Annotated[str, AfterValidator(_domain)] | None = Field(
        None, description="Your domain: services get https://NAME.domain. None: http://NAME.HOST.home.arpa."
    )
    proxy_tls: Literal["acme", "internal", "off"] = Field(
        "acme",
        description="Certificates: from Let's Encrypt, from Caddy's own authority, or none (no domain: off).",
    )
    acme_email: Line | None = Field(None, description="Where Let's Encrypt sends warnings.")

    # ddns
    ddns_settings: list[dict[str, Any]] = Field(
        [], description="ddns-updater's settings; write a secret as `secret:NAME` and keep it in the vault."
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Settings:
        conflicts = list(_conflicts(self))
        if conflicts:
            raise ValueError("\n".join(f"{key}: {mend}" for key, mend in conflicts))
        return self

    @property
    def administrators(self) -> dict[str, Administrator]:
        """`admins` in its long form, by name."""
        return {
            name: Administrator.model_construct(keys=value) if isinstance(value, list) else value
            for name, value in sorted(self.admins.items())
        }

    @property
    def media_root(self) -> str:
        """Directory of the libraries on the host."""
        return f"{self.data_root}/media"


def _conflicts(settings: Settings) -> Iterator[tuple[str, str]]:
    """Keys whose values are sound by themselves and do not go together, each with the mend."""
    named = {
        "services": settings.services,
        "services_disabled": settings.services_disabled,
        "service_overrides": settings.service_overrides,
        "gpu_devices": settings.gpu_devices,
    }
    for key, names in named.items():
        for name in names:
            if not _SERVICE_NAME.fullmatch(name):
                yield key, f"service name {name!r}: use lower-case letters, digits and -"
    for name in ("root", settings.media_user):
        if name in settings.admins:
            yield "admins", f"{name} cannot be an administrator's account; choose another name"
    if settings.docker_daemon_extra.get("firewall-backend", "iptables") != "iptables":
        yield (
            "docker_daemon_extra",
            "firewall-backend must stay iptables: Docker's nftables backend has no DOCKER-USER chain, so published "
            "ports could not be filtered, and UFW's forward policy would drop them. Delete that key",
        )
    if settings.gpu == "none" and settings.gpu_devices:
        yield "gpu_devices", "gives out cards while gpu = 'none' asks for none; set gpu = 'auto', or delete this line"
    if settings.fail2ban_longest_ban < settings.fail2ban_ban_time:
        yield "fail2ban_longest_ban", "is shorter than fail2ban_ban_time; raise it"
    yield from _unusable_keys(settings)
    if settings.sshd_allow_users and not settings.admins:
        yield "sshd_allow_users", "does nothing without `admins`: fill that, or delete this line"
    if settings.sshd_totp and not settings.admins:
        yield "sshd_totp", "nobody could log in from outside: only administrators have a code; fill `admins`"
    yield from _vpn_conflicts(settings)
    yield from upkeep.conflicts(settings)
    if settings.docker_nofile_hard < settings.docker_nofile_soft:
        yield "docker_nofile_hard", "is smaller than docker_nofile_soft; raise it"
    if settings.layout == "split" and below(settings.downloads_root, settings.media_root):
        yield "downloads_root", "lies inside data_root/media; choose a directory beside it"
    # What services mount: in `trash` all of data_root, in `split` its media and the downloads.
    mounted = (settings.data_root,) if settings.layout == "trash" else (settings.media_root, settings.downloads_root)
    for parent in mounted:
        if below(settings.stack_root, parent):
            yield (
                "stack_root",
                f"{settings.stack_root} lies inside {parent}, which services mount: they would see every config and "
                "secret. Choose a directory outside, such as /opt/media-server",
            )
    yield from _plex_conflicts(settings)
    yield from storage.conflicts(settings)
    prefix = settings.registry_prefix
    if prefix and not re.fullmatch(r"[a-z0-9.-]+(:[0-9]+)?(/[a-z0-9._/-]+)?", prefix):
        yield "registry_prefix", "write host[:port][/path] without https://"


def _vpn_conflicts(settings: Settings) -> Iterator[tuple[str, str]]:
    """VPN keys that contradict each other, or addresses that something else has."""
    if settings.vpn_provider == "none":
        if settings.vpn_services:
            yield (
                "vpn_services",
                "names services but vpn_provider is none: they would leave in the open; set vpn_provider",
            )
        return
    if settings.vpn_mode == "host" and not settings.vpn_killswitch:
        yield (
            "vpn_killswitch",
            "with vpn_mode host the kill switch is what sends traffic into the tunnel; leave it on, or choose "
            "vpn_mode container",
        )
    subnet = ipaddress.ip_network(settings.vpn_subnet)
    if subnet.version != 4 or not 16 <= subnet.prefixlen <= 28:
        yield "vpn_subnet", "write an IPv4 block of /16 to /28, such as 172.29.29.0/24"
    for pool in settings.docker_address_pools:
        if ipaddress.ip_network(pool["base"]).overlaps(subnet):
            yield "vpn_subnet", f"overlaps docker_address_pools ({pool['base']}); choose another block"
    if settings.vpn_provider in ("nordvpn", "mullvad") and settings.vpn_port_forwarding != "off":
        yield "vpn_port_forwarding", f"{settings.vpn_provider} forwards no ports; delete this line"
    yield from _forwarding_conflicts(settings)


def _plex_conflicts(settings: Settings) -> Iterator[tuple[str, str]]:
    """Keys of Plex that contradict each other."""
    directory = settings.plex_transcode_directory
    if directory is not None and below(directory, "/tmp"):  # noqa: S108 - refused
        yield (
            "plex_transcode_directory",
            "is memory without a limit on newer releases; choose a directory on a disk, or transcode_size and "
            "transcode_in memory",
        )
    if directory is not None and below(directory, settings.data_root):
        yield (
            "plex_transcode_directory",
            f"lies inside {settings.data_root}, which services mount; choose a directory beside it",
        )
    paths = [path for library in (settings.plex_libraries or {}).values() for path in library["paths"]]
    for path in sorted({path for path in paths if paths.count(path) > 1}):
        yield "plex_libraries", f"{path} is named twice; a directory belongs into one library"


def _forwarding_conflicts(settings: Settings) -> Iterator[tuple[str, str]]:
    """Ways of getting a port that the provider does not know."""
    wanted = settings.vpn_port_forwarding
    if settings.vpn_provider == "airvpn" and wanted == "nat-pmp":
        yield "vpn_port_forwarding", "AirVPN gives a port for good: write its number from your client area"
    if settings.vpn_provider == "proton" and isinstance(wanted, int):
        yield "vpn_port_forwarding", "Proton gives a port for a moment only, by NAT-PMP: write nat-pmp"


def _unusable_keys(settings: Settings) -> Iterator[tuple[str, str]]:
    """Keys that the SSH server will not take: their owner would be locked out."""
    for name, admin in settings.administrators.items():
        for key in admin.keys:
            bits = public_key.rsa_bits(key)
            if bits is not None and bits < 3072:  # RequiredRSASize
                yield "admins", f"{name}'s RSA key has {bits} bits, SSH takes 3072 and more; ssh-keygen -t ed25519"
            if "ecdsa" in key.split()[0] and settings.sshd_crypto_policy == "strict":
                yield "admins", f"{name}'s ECDSA key is not taken with sshd_crypto_policy strict; use an ed25519 one"


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
    return {str(key): value for key, value in data.items() if not str(key).startswith(_FOREIGN_PREFIXES)}


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
        problems += [problem for item in error.errors() for problem in _told(host, item)]
        raise ConfigError(problems) from None
    if problems:
        raise ConfigError(problems)
    return settings


def _told(host: str, error: Any) -> list[ConfigProblem]:
    message = str(error["msg"]).removeprefix("Value error, ")
    if not error["loc"]:
        parts = (line.partition(": ") for line in message.splitlines())
        return [ConfigProblem(host, key, "", mend) for key, _, mend in parts]
    # A part in angle brackets is the form in which a value was read, not something the user wrote.
    key = ".".join(str(part) for part in error["loc"] if not str(part).startswith("<"))
    value = "" if error["type"] == "missing" else _value(error["input"])
    message = {"missing": "is missing", "extra_forbidden": "no such key"}.get(error["type"], message)
    if error["type"] in ("missing", "extra_forbidden"):
        shape = {
            "admins": "keys, groups, expires, sudo",
            "firewall_extra": "port, protocol, source, comment",
            "firewall_outbound_allow": "port, protocol, destination, comment",
            "docker_address_pools": "base, size",
            "storage_disks": "device, at, filesystem, format, options",
            "storage_pools": "at, branches, policy, minimum_free, options",
            "storage_shares": "kind, source, at, options, account",
            "plex_libraries": "type, paths, language",
        }
        message += f"; write {{{shape.get(str(error['loc'][0]), '...')}}}"
    return [ConfigProblem(host, key, value, message)]


def _value(given: object) -> str:
    try:
        return _shortened(repr(given))
    except ValueError:  # Python refuses to print a number of more than 4300 digits
        return "a very long number"


def _shortened(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."
