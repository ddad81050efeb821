"""Stage base: package settings, packages, time, kernel settings, journal, unattended upgrades."""

from __future__ import annotations

import shlex

from pyinfra.api import deploy, operation

from facts.snapshot import Request, Snapshot
from mediahost.config import Settings
from mediahost.render import base as wanted
from operations import apt, files, units
from operations.convergence import Commands, Step, converge

JOURNALD = "systemd-journald.service"
UPGRADE_TIMERS = ("apt-daily.timer", "apt-daily-upgrade.timer")
TIMESYNCD = "systemd-timesyncd.service"


def request(settings: Settings) -> Request:
    """What the snapshot must look at for this stage."""
    return Request(
        packages=frozenset((*wanted.packages(settings), "chrony", "systemd-timesyncd")),
        units=frozenset((JOURNALD, TIMESYNCD, "chrony.service", *UPGRADE_TIMERS)),
        sysctls=frozenset(wanted.sysctls(settings)),
        paths=frozenset((wanted.TIMESYNCD_PATH,)),
    ) | files.request((*wanted.apt_files(settings), wanted.sysctl_file(settings), wanted.journald_file(settings)))


def timezone_steps(zone: str, seen: Snapshot) -> list[Step]:
    """Set the time zone when it is another."""
    # Debian's image says Etc/UTC or UTC, both mean the same clock.
    same = {"UTC": "Etc/UTC"}
    if same.get(seen.timezone, seen.timezone) == same.get(zone, zone):
        return []
    return [
        Step(
            f"time zone: {seen.timezone or 'unset'}, wanted {zone}",
            f"test -e /usr/share/zoneinfo/{zone}\nln -sfn /usr/share/zoneinfo/{zone} /etc/localtime\n"
            f"printf '%s\\n' {zone} >/etc/timezone",
        )
    ]


def time_package(seen: Snapshot) -> str:
    """The time client to have: chrony where the distribution chose it, else systemd-timesyncd. Never both."""
    return "chrony" if "chrony" in seen.packages else "systemd-timesyncd"


def sysctl_steps(settings: dict[str, str], seen: Snapshot) -> list[Step]:
    """Kernel settings whose running value is another."""
    # A key the kernel does not have (a module not loaded yet) is set at boot by the drop-in, not here.
    different = {
        key: value for key, value in settings.items() if seen.sysctls.get(key, value).split() != value.split()
    }
    return [
        Step(
            f"sysctl {key}: {seen.sysctls[key]}, wanted {value}",
            f"printf '%s\\n' {shlex.quote(value)} >/proc/sys/{key.replace('.', '/')}",
        )
        for key, value in sorted(different.items())
    ]


def time_sync_steps(settings: Settings, seen: Snapshot) -> list[Step]:
    """A time client that runs, with the user's servers where it is ours to set them."""
    if time_package(seen) == "chrony":
        return units.steps("chrony.service", seen)
    drop_in = wanted.timesyncd_file(settings)
    found = files.steps((drop_in,), seen, pending=TIMESYNCD) if drop_in else []
    return found + units.steps(TIMESYNCD, seen, changed=bool(found))


def journal_steps(settings: Settings, seen: Snapshot) -> list[Step]:
    """The journal's limits, in effect."""
    found = files.steps((wanted.journald_file(settings),), seen, pending=JOURNALD)
    return found + units.steps(JOURNALD, seen, changed=bool(found))


def upgrade_steps(settings: Settings, seen: Snapshot) -> list[Step]:
    """The timers that unattended upgrades hang on."""
    if not settings.unattended_upgrades:
        return []
    return [step for unit in UPGRADE_TIMERS for step in units.steps(unit, seen)]


def steps(settings: Settings, seen: Snapshot) -> list[Step]:
    """Everything this stage would still do."""
    return [
        *files.steps(wanted.apt_files(settings), seen),
        *apt.install_steps((*wanted.packages(settings), time_package(seen)), seen),
        *upgrade_steps(settings, seen),
        *timezone_steps(settings.timezone, seen),
        *time_sync_steps(settings, seen),
        *files.steps((wanted.sysctl_file(settings),), seen),
        *sysctl_steps(wanted.sysctls(settings), seen),
        *journal_steps(settings, seen),
    ]


@operation()
def timezone(zone: str) -> Commands:
    """
    The host's time zone.

    + zone: its name in the time zone database
    """
    yield from converge(lambda seen: timezone_steps(zone, seen))


@operation()
def sysctls(settings: dict[str, str]) -> Commands:
    """
    Kernel settings, as they are in the running kernel.

    + settings: name to value
    """
    yield from converge(lambda seen: sysctl_steps(settings, seen))


@operation()
def time_sync(settings: Settings) -> Commands:
    """
    A clock that is right: TLS, one-time passwords and logs depend on it.

    + settings: the host's settings
    """
    yield from converge(lambda seen: time_sync_steps(settings, seen))


@operation()
def journal(settings: Settings) -> Commands:
    """
    A journal that does not eat the disk.

    + settings: the host's settings
    """
    yield from converge(lambda seen: journal_steps(settings, seen))


@operation()
def unattended_upgrades(settings: Settings) -> Commands:
    """
    Security updates that install themselves.

    + settings: the host's settings
    """
    yield from converge(lambda seen: upgrade_steps(settings, seen))


@operation()
def base_packages(names: tuple[str, ...]) -> Commands:
    """
    The packages every host gets, with the time client that fits the distribution.

    + names: package names
    """
    yield from converge(lambda seen: apt.install_steps((*names, time_package(seen)), seen))


@deploy("base")
def provision(settings: Settings) -> None:
    """The whole stage, in order."""
    files.managed(name="apt settings", files=wanted.apt_files(settings))
    base_packages(name="packages", names=wanted.packages(settings))
    unattended_upgrades(name="unattended upgrades", settings=settings)
    timezone(name="time zone", zone=settings.timezone)
    time_sync(name="time synchronisation", settings=settings)
    files.managed(name="kernel settings file", files=[wanted.sysctl_file(settings)])
    sysctls(name="kernel settings", settings=wanted.sysctls(settings))
    journal(name="journal limits", settings=settings)
