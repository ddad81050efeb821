"""Fail2Ban's files: which jails a host has, what they read, and the ban that closes host and container ports.

Jails are derived from the enabled services and the logs that are really there. The home network, the containers'
networks and the control host must never be banned, so that neither a wrong password nor the proxy locks anybody
out.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from mediahost.config import Settings
from mediahost.resources import MARK, File
from mediahost.stack import Stack, StackService

PACKAGES = ("fail2ban", "nftables", "python3-systemd")
"""python3-systemd reads the journal; Debian 12 only recommends it."""

UNIT = "fail2ban.service"
TABLE = "mediahost-bans"
"""nftables table (family inet) that holds all bans: a chain and the sets NAME-inet4, NAME-inet6 for each jail."""

ETC = "/etc/fail2ban"
JAIL_PATH = f"{ETC}/jail.d/mediahost.local"
SERVER_PATH = f"{ETC}/fail2ban.d/mediahost.local"
ACTION = "mediahost-prerouting"
CHECK = "fail2ban-client -t"
"""Checks all of `ETC`; it cannot check one file before that is in its place."""

SERVER_LOG = "/var/log/fail2ban.log"
ANCHOR_PATH = f"{ETC}/mediahost-anchor.log"
"""A log that never grows. Fail2Ban refuses to start, sshd's jail included, when a jail finds none of its logs."""

RELOAD_SERVICE_PATH = "/etc/systemd/system/mediahost-fail2ban-reload.service"
RELOAD_TIMER_PATH = "/etc/systemd/system/mediahost-fail2ban-reload.timer"
RELOAD_TIMER = PurePosixPath(RELOAD_TIMER_PATH).name

TEMPLATES = Path(__file__).resolve().parent.parent.parent / "templates" / "fail2ban"

_DAY = 86400
# What Docker picks networks from when it is told nothing; docker0 lies there in any case.
_DOCKER_DEFAULT_POOL = "172.16.0.0/12"
# Requests, not logins: a page that is opened before logging in may be refused several calls of its own.
_REQUESTS_A_LOGIN = 4


@dataclass(frozen=True)
class BanPolicy:
    """How long and how soon. Times are seconds.

    A first ban lasts `ban_time`, each further one twice as long as the one before, at most `longest_ban`.
    `ignore` holds addresses and blocks that are never banned, `control_addresses` those that the control host's
    connections come from.
    """

    ban_time: int = 3600
    longest_ban: int = 35 * _DAY
    find_time: int = 600
    max_retry: int = 5
    ignore: tuple[str, ...] = ()
    control_addresses: tuple[str, ...] = ()


@dataclass(frozen=True)
class Jail:
    """One jail. `log` is a path on the host, `*` allowed, or "" for the journal entries of `journal_match`.

    `own_log` says that the log is Fail2Ban's own, which is always there.
    """

    name: str
    filter: str
    log: str = ""
    journal_match: str = ""
    own_log: bool = False
    max_retry: int = 5
    find_time: int = 600
    ban_time: int = 3600

    @property
    def filter_name(self) -> str:
        """Name of the filter without its options."""
        return self.filter.partition("[")[0]


@dataclass(frozen=True)
class _ServiceLog:
    """Where a service logs failures inside its container; `requests` when it logs requests, not logins."""

    filter: str
    path: str
    requests: bool = False


_ARRS = ("lidarr", "prowlarr", "radarr", "readarr", "sonarr", "whisparr")
SERVICE_LOGS = {
    "authelia": _ServiceLog("mediahost-authelia", "/config/authelia.log"),
    "caddy": _ServiceLog("mediahost-caddy", "/data/logs/access.log", requests=True),
    "jellyfin": _ServiceLog("mediahost-jellyfin", "/config/log/log_*.log"),
    "nginx-proxy-manager": _ServiceLog("mediahost-nginx-proxy-manager", "/data/logs/*_access.log", requests=True),
    "traefik": _ServiceLog("mediahost-traefik", "/logs/access.log", requests=True),
    "vaultwarden": _ServiceLog("mediahost-vaultwarden", "/data/vaultwarden.log"),
    **{name: _ServiceLog("mediahost-arr", f"/config/logs/{name}.txt") for name in _ARRS},
}
"""By catalogue name. docs/decisions/fail2ban-at-prerouting.md says what each service must be told for that."""


def jails(stack: Stack, policy: BanPolicy) -> tuple[Jail, ...]:
    """Every jail this host may have: sshd, one for each service whose log is on the host, recidive.

    `with_logs` leaves those that can start.
    """
    sshd = Jail(
        "sshd",
        "mediahost-sshd[mode=aggressive]",
        # Root's processes only: any user can run a program that is called sshd and write to the journal.
        journal_match="_SYSTEMD_UNIT=ssh.service + _COMM=sshd _UID=0 + _COMM=sshd-session _UID=0",
        max_retry=policy.max_retry,
        find_time=policy.find_time,
        ban_time=policy.ban_time,
    )
    services = [_service_jail(service, policy) for service in stack.services]
    recidive = Jail(
        "recidive",
        "recidive",
        log=SERVER_LOG,
        own_log=True,
        # Banned three times in a day: a week.
        max_retry=3,
        find_time=_DAY,
        ban_time=min(7 * _DAY, policy.longest_ban),
    )
    return (sshd, *filter(None, services), recidive)


def with_logs(candidates: Iterable[Jail], present: Iterable[str]) -> tuple[Jail, ...]:
    """The jails whose log is among `present`, the paths of the host's files; the journal is always there."""
    paths = list(present)
    return tuple(
        jail
        for jail in candidates
        if not jail.log or jail.own_log or any(fnmatchcase(path, jail.log) for path in paths)
    )


def ignored(settings: Settings, policy: BanPolicy) -> tuple[str, ...]:
    """Address blocks that are never banned: loopback, home network, containers, control host, the user's own.

    Raises `ValueError` for what is no address or block.
    """
    pools = [str(pool["base"]) for pool in settings.docker_address_pools]
    given = [
        "127.0.0.0/8",
        "::1",
        *settings.firewall_lan,
        *pools,
        _DOCKER_DEFAULT_POOL,
        *policy.control_addresses,
        *policy.ignore,
    ]
    return tuple(dict.fromkeys(_block(each) for each in given))


def files(settings: Settings, policy: BanPolicy, chosen: Iterable[Jail]) -> tuple[File, ...]:
    """Everything Fail2Ban needs for the `chosen` jails, which is to be reloaded when one of these changes."""
    some = tuple(chosen)
    return (
        _jail_file(settings, policy, some),
        _server_file(policy),
        _template("action.d", ACTION),
        *(
            _template("filter.d", name)
            for name in sorted({jail.filter_name for jail in some})
            if name.startswith("mediahost-")
        ),
        File(ANCHOR_PATH, f"# {MARK}\n".encode()),
        *_reload_units(),
    )


def _service_jail(service: StackService, policy: BanPolicy) -> Jail | None:
    known = SERVICE_LOGS.get(service.name)
    log = _on_host(service, known.path) if known else None
    if known is None or log is None:
        return None
    return Jail(
        service.name,
        known.filter,
        log=log,
        max_retry=policy.max_retry * (_REQUESTS_A_LOGIN if known.requests else 1),
        find_time=policy.find_time,
        ban_time=policy.ban_time,
    )


def _on_host(service: StackService, path: str) -> str | None:
    """Where the container's `path` lies on the host; None when it stays inside the container."""
    wanted = PurePosixPath(path)
    holders = [mount for mount in service.mounts if wanted.is_relative_to(mount.target)]
    if not holders:
        return None
    nearest = max(holders, key=lambda mount: len(PurePosixPath(mount.target).parts))
    return str(PurePosixPath(nearest.source) / wanted.relative_to(nearest.target))


def _block(text: str) -> str:
    # An interface (%eth0) says how to reach an address, not which it is.
    network = ipaddress.ip_network(text.partition("%")[0], strict=False)
    mapped = network.network_address.ipv4_mapped if isinstance(network, ipaddress.IPv6Network) else None
    if mapped is not None and network.prefixlen == network.max_prefixlen:
        return str(mapped)
    return str(network.network_address) if network.prefixlen == network.max_prefixlen else str(network)


def _jail_file(settings: Settings, policy: BanPolicy, chosen: tuple[Jail, ...]) -> File:
    sections = [
        _section(
            "DEFAULT",
            {
                "banaction": ACTION,
                "banaction_allports": ACTION,
                "ignoreip": " ".join(ignored(settings, policy)),
                # A name in a log is the client's choice.
                "usedns": "no",
                "bantime": str(policy.ban_time),
                "bantime.increment": "true",
                "bantime.maxtime": str(policy.longest_ban),
                "findtime": str(policy.find_time),
                "maxretry": str(policy.max_retry),
            },
        ),
        *(_section(jail.name, _options(jail)) for jail in chosen),
    ]
    # .local files are read after all .conf files, the distribution's defaults-debian.conf among them.
    return File(JAIL_PATH, f"# {MARK}\n\n{chr(10).join(sections)}".encode())


def _options(jail: Jail) -> dict[str, str]:
    options = {"enabled": "true", "filter": jail.filter}
    if jail.log:
        options |= {"backend": "auto", "logpath": f"{jail.log}\n          {ANCHOR_PATH}"}
    else:
        options |= {"backend": "systemd", "journalmatch": jail.journal_match}
    return options | {
        "maxretry": str(jail.max_retry),
        "findtime": str(jail.find_time),
        "bantime": str(jail.ban_time),
    }


def _server_file(policy: BanPolicy) -> File:
    """The server's own settings: a ban that is forgotten cannot grow, and recidive reads the log."""
    section = _section("Definition", {"logtarget": SERVER_LOG, "dbpurgeage": str(policy.longest_ban + 2 * _DAY)})
    return File(SERVER_PATH, f"# {MARK}\n\n{section}".encode())


def _section(name: str, options: dict[str, str]) -> str:
    return f"[{name}]\n" + "".join(f"{key} = {value}\n" for key, value in options.items())


def _template(directory: str, name: str) -> File:
    return File(f"{ETC}/{directory}/{name}.conf", (TEMPLATES / directory / f"{name}.conf").read_bytes())


def _reload_units() -> tuple[File, File]:
    """Fail2Ban looks for the files that `*` stands for when it loads; Jellyfin begins a new one each day."""
    service = (
        "[Unit]\nDescription=Let Fail2Ban find log files that have appeared\n"
        f"Requisite={UNIT}\nAfter={UNIT}\n\n"
        "[Service]\nType=oneshot\nExecStart=/usr/bin/fail2ban-client reload\n"
    )
    timer = (
        "[Unit]\nDescription=Let Fail2Ban find log files that have appeared, every hour\n\n"
        "[Timer]\nOnCalendar=*-*-* *:01:00\n\n"
        "[Install]\nWantedBy=timers.target\n"
    )
    return (
        File(RELOAD_SERVICE_PATH, f"# {MARK}\n{service}".encode()),
        File(RELOAD_TIMER_PATH, f"# {MARK}\n{timer}".encode()),
    )
