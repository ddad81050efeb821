"""Fail2Ban's files: which jails a host has, what they read, and the ban that closes host and container ports.

Jails are derived from the enabled services whose log lies on the host. The home network, the containers'
networks and the control host must never be banned, so that neither a wrong password nor the proxy locks anybody
out.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from mediahost.config import Settings
from mediahost.render.proxy import ACCESS_LOG
from mediahost.resources import MARK, File
from mediahost.stack import Stack, StackService

PACKAGES = ("fail2ban", "nftables", "python3-systemd")
"""python3-systemd reads the journal; Debian 12 only recommends it."""

UNIT = "fail2ban.service"
TABLE = "mediahost-bans"
"""nftables table (family inet) that holds all bans: a chain and the sets NAME-inet4, NAME-inet6 for each jail."""

RECIDIVE = "recidive"
"""The jail of those who were banned repeatedly, and of those whom a person bans."""

ETC = "/etc/fail2ban"
JAIL_PATH = f"{ETC}/jail.d/mediahost.local"
SERVER_PATH = f"{ETC}/fail2ban.d/mediahost.local"
ACTION = "mediahost-prerouting"
CHECK = "fail2ban-client -t"
"""Checks all of `ETC`; it cannot check one file before that is in its place."""

SERVER_LOG = "/var/log/fail2ban.log"
ANCHOR_PATH = f"{ETC}/mediahost-anchor.log"
"""A log that never grows. Fail2Ban refuses to start, sshd's jail included, when a jail finds none of its logs."""

CONTROL_PATH = "/var/lib/mediahost/fail2ban-control"
"""The addresses that runs came from, one a line. It is there as long as Fail2Ban is ours to run."""

RELOAD_SERVICE_PATH = "/etc/systemd/system/mediahost-fail2ban-reload.service"
RELOAD_TIMER_PATH = "/etc/systemd/system/mediahost-fail2ban-reload.timer"
RELOAD_TIMER = PurePosixPath(RELOAD_TIMER_PATH).name

TEMPLATES = Path(__file__).resolve().parent.parent.parent / "templates" / "fail2ban"

_DAY = 86400
# What Docker picks networks from when it is told nothing; docker0 lies there in any case.
_DOCKER_DEFAULT_POOL = "172.16.0.0/12"
_CONTROL_ADDRESSES = 5
# Requests, not logins: a page that is opened before logging in may be refused several calls of its own.
_REQUESTS_A_LOGIN = 4


@dataclass(frozen=True)
class Jail:
    """One jail. `log` is a path on the host, `*` allowed, or "" for the journal entries of `journal_match`.

    A first ban lasts `ban_time`. Times are seconds.
    """

    name: str
    filter: str
    max_retry: int
    find_time: int
    ban_time: int
    log: str = ""
    journal_match: str = ""

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
    "caddy": _ServiceLog("mediahost-caddy", ACCESS_LOG, requests=True),
    "jellyfin": _ServiceLog("mediahost-jellyfin", "/config/log/log_*.log"),
    "nginx-proxy-manager": _ServiceLog("mediahost-nginx-proxy-manager", "/data/logs/*_access.log", requests=True),
    "traefik": _ServiceLog("mediahost-traefik", "/logs/access.log", requests=True),
    "vaultwarden": _ServiceLog("mediahost-vaultwarden", "/data/vaultwarden.log"),
    **{name: _ServiceLog("mediahost-arr", f"/config/logs/{name}.txt") for name in _ARRS},
}
"""By catalogue name. docs/decisions/fail2ban-at-prerouting.md says what each service must be told for that."""


def jails(stack: Stack, settings: Settings) -> tuple[Jail, ...]:
    """Every jail of this host: sshd, one for each service whose log lies on the host, recidive.

    A log need not be there yet: its jail reads the anchor until then.
    """
    sshd = Jail(
        "sshd",
        "mediahost-sshd[mode=aggressive]",
        # Root's processes only: any user can run a program that is called sshd and write to the journal.
        journal_match="_SYSTEMD_UNIT=ssh.service + _COMM=sshd _UID=0 + _COMM=sshd-session _UID=0",
        max_retry=settings.fail2ban_max_retry,
        find_time=settings.fail2ban_find_time,
        ban_time=settings.fail2ban_ban_time,
    )
    services = [_service_jail(service, settings) for service in stack.services]
    recidive = Jail(
        RECIDIVE,
        "recidive",
        log=SERVER_LOG,
        # Banned three times in a day: a week.
        max_retry=3,
        find_time=_DAY,
        ban_time=min(7 * _DAY, settings.fail2ban_longest_ban),
    )
    return (sshd, *filter(None, services), recidive)


def ignored(settings: Settings, control: Iterable[str] = ()) -> tuple[str, ...]:
    """Address blocks that are never banned: loopback, home network, containers, control host, the user's own.

    `control` holds addresses that runs came from. Raises `ValueError` for what is no address or block.
    """
    pools = [str(pool["base"]) for pool in settings.docker_address_pools]
    given = [
        "127.0.0.0/8",
        "::1",
        *settings.firewall_lan,
        *pools,
        _DOCKER_DEFAULT_POOL,
        *control,
        *settings.fail2ban_ignore,
    ]
    return tuple(dict.fromkeys(_block(each) for each in given))


def control_addresses(settings: Settings, recorded: str, client: str) -> tuple[str, ...]:
    """The addresses that runs came from, oldest first: those of the record, and `client` unless ignored anyway.

    An address that is known changes nothing, so that a plan stays the same wherever it is made from. The oldest
    goes when there are more than five: somebody else may have it by now.
    """
    known = [line for line in recorded.splitlines() if _is_address(line)]
    if _is_address(client):
        address = ipaddress.ip_address(_block(client))
        if not any(address in ipaddress.ip_network(block) for block in ignored(settings, known)):
            known.append(str(address))
    return tuple(known[-_CONTROL_ADDRESSES:])


def control_record(control: Iterable[str]) -> File:
    """What the host remembers of the control host, and of its having been given Fail2Ban by us."""
    return File(CONTROL_PATH, "".join(f"{address}\n" for address in control).encode())


def files(settings: Settings, chosen: Iterable[Jail], control: Iterable[str] = ()) -> tuple[File, ...]:
    """Everything Fail2Ban needs for the `chosen` jails; it must restart when one of these changes.

    All filters, whichever jails there are: a jail whose filter is gone keeps Fail2Ban from starting.
    """
    return (
        _jail_file(settings, tuple(chosen), tuple(control)),
        _server_file(settings),
        File(ANCHOR_PATH, f"# {MARK}\n".encode()),
        *(
            File(f"{ETC}/{path.relative_to(TEMPLATES)}", path.read_bytes())
            for path in sorted(TEMPLATES.glob("*.d/*.conf"))
        ),
    )


def reload_units() -> tuple[File, File]:
    """Fail2Ban looks for log files when it loads: one that appears later, or each day anew, is found by a reload."""
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


def _service_jail(service: StackService, settings: Settings) -> Jail | None:
    known = SERVICE_LOGS.get(service.name)
    log = _on_host(service, known.path) if known else None
    if known is None or log is None:
        return None
    return Jail(
        service.name,
        known.filter,
        log=log,
        max_retry=settings.fail2ban_max_retry * (_REQUESTS_A_LOGIN if known.requests else 1),
        find_time=settings.fail2ban_find_time,
        ban_time=settings.fail2ban_ban_time,
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


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _jail_file(settings: Settings, chosen: tuple[Jail, ...], control: tuple[str, ...]) -> File:
    sections = [
        _section(
            "DEFAULT",
            {
                "banaction": ACTION,
                "banaction_allports": ACTION,
                "ignoreip": " ".join(ignored(settings, control)),
                # A name in a log is the client's choice.
                "usedns": "no",
                "bantime": str(settings.fail2ban_ban_time),
                "bantime.increment": "true",
                "bantime.maxtime": str(settings.fail2ban_longest_ban),
                "findtime": str(settings.fail2ban_find_time),
                "maxretry": str(settings.fail2ban_max_retry),
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


def _server_file(settings: Settings) -> File:
    """The server's own settings: a ban that is forgotten cannot grow, and recidive reads the log."""
    remembered = settings.fail2ban_longest_ban + 2 * _DAY
    # allowipv6 is the default, spelt out: without it every command of Fail2Ban 1.0 warns.
    options = {"logtarget": SERVER_LOG, "dbpurgeage": str(remembered), "allowipv6": "auto"}
    section = _section("Definition", options)
    return File(SERVER_PATH, f"# {MARK}\n\n{section}".encode())


def _section(name: str, options: dict[str, str]) -> str:
    return f"[{name}]\n" + "".join(f"{key} = {value}\n" for key, value in options.items())
