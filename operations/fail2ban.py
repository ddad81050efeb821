"""Stage fail2ban: bans that close host and container ports, for everybody but the home network and ourselves.

After the stack, so that its logs are there when Fail2Ban looks for them. Who is never banned is written before the
package is installed, because installing it starts it.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from pyinfra.api import deploy, operation

from facts.snapshot import Request, Snapshot
from mediahost.config import Settings
from mediahost.render import fail2ban as wanted
from mediahost.render.fail2ban import Jail
from mediahost.wanted import Wanted
from operations import apt, files, owed, units
from operations.convergence import Commands, Step, converge

# systemctl makes it when it enables the timer; it stays, dangling, when the manifest removes the timer's file.
_TIMER_LINK = f"/etc/systemd/system/timers.target.wants/{wanted.RELOAD_TIMER}"
# systemd calls the unit started before it has read its configuration.
_START_SECONDS = 60


def request(settings: Settings) -> Request:
    """What the snapshot must look at for this stage."""
    if not settings.fail2ban:
        return Request(paths=frozenset((wanted.CONTROL_PATH,)))
    return Request(
        packages=frozenset(wanted.PACKAGES),
        units=frozenset((wanted.UNIT, wanted.RELOAD_TIMER)),
        contents=frozenset((wanted.CONTROL_PATH,)),
        nft_tables=frozenset((wanted.TABLE,)),
    ) | files.request((*wanted.files(settings, ()), *wanted.reload_units()))


def file_steps(settings: Settings, jails: Sequence[Jail], seen: Snapshot) -> list[Step]:
    """Configuration, who is never banned first."""
    recorded = seen.contents.get(wanted.CONTROL_PATH, "")
    control = wanted.control_addresses(settings, recorded, seen.ssh_client)
    return [
        *files.steps((wanted.control_record(control),), seen),
        *files.steps(wanted.files(settings, jails, control), seen, pending=wanted.UNIT),
        *files.steps(wanted.reload_units(), seen, pending=wanted.RELOAD_TIMER),
    ]


def restart(jails: Sequence[Jail]) -> str:
    """Shell that starts Fail2Ban anew and waits until each jail's chain is in the kernel.

    A restart, not a reload, which would keep the old commands of an action. Bans come back from its database. The
    table goes in between: a server that was killed leaves chains of jails that are no more.
    """
    names = " ".join(shlex.quote(jail.name) for jail in jails)
    told = f"Fail2Ban does not start all its jails ({names}); look with: tail {wanted.SERVER_LOG}"
    return f"""{wanted.CHECK} >/dev/null
[ -e {wanted.SERVER_LOG} ] || install -m 0640 -g adm /dev/null {wanted.SERVER_LOG}
systemctl stop {wanted.UNIT}
nft delete table inet {wanted.TABLE} 2>/dev/null || true
systemctl start {wanted.UNIT}
ready() {{
  table=$(nft -st list table inet {wanted.TABLE} 2>/dev/null) || return 1
  for name in {names}; do
    case $table in *"@$name-inet6 "*) ;; *) return 1 ;; esac
  done
}}
waited=0
until ready; do
  waited=$((waited + 1))
  [ $waited -le {_START_SECONDS} ] || {{ echo {shlex.quote(told)} >&2; exit 1; }}
  sleep 1
done"""


def live_steps(jails: Sequence[Jail], seen: Snapshot) -> list[Step]:
    """Jails whose bans have no effect: somebody flushed the ruleset."""
    state = seen.units.get(wanted.UNIT)
    if state is None or state.active != "active":
        return []
    gone = [
        jail.name
        for jail in jails
        if not any(f"@{jail.name}-inet6 " in rule for rule in seen.nft_chains.get(f"{wanted.TABLE} {jail.name}", ()))
    ]
    if not gone:
        return []
    return [Step(f"bans in the kernel: those of {', '.join(gone)} are missing, are restored", restart(jails))]


def off_steps(seen: Snapshot) -> list[Step]:
    """Switched off: stopped and its bans lifted, once. A Fail2Ban that was never ours is left alone.

    The manifest has removed our files by then. The package stays.
    """
    if wanted.CONTROL_PATH not in seen.paths:
        return []
    command = f"""systemctl stop {wanted.RELOAD_TIMER} 2>/dev/null || true
rm -f {_TIMER_LINK}
systemctl daemon-reload
{units.stopped(wanted.UNIT)}
nft delete table inet {wanted.TABLE} 2>/dev/null || true
{owed.clear(wanted.UNIT)}
{owed.clear(wanted.RELOAD_TIMER)}
rm -f {wanted.CONTROL_PATH}"""
    return [Step(f"{wanted.UNIT}: switched off, is stopped and its bans are lifted; the package stays", command)]


def unit_steps(jails: Sequence[Jail], seen: Snapshot) -> list[Step]:
    """Fail2Ban and its timer, running with what is on disk, and its bans in the kernel."""
    found = units.steps(wanted.UNIT, seen, restart(jails), "bans come back")
    found += units.unread_steps(wanted.RELOAD_TIMER, wanted.RELOAD_TIMER_PATH, seen)
    # The timer's service has no state of its own that would tell that systemd knows an older one.
    reload_timer = f"systemctl daemon-reload\nsystemctl restart {wanted.RELOAD_TIMER}"
    return [*(found or live_steps(jails, seen)), *units.steps(wanted.RELOAD_TIMER, seen, reload_timer)]


def steps(plan: Wanted, seen: Snapshot) -> list[Step]:
    """Everything this stage would still do."""
    if not plan.settings.fail2ban:
        return off_steps(seen)
    return [
        *file_steps(plan.settings, plan.jails, seen),
        *apt.install_steps(wanted.PACKAGES, seen),
        *unit_steps(plan.jails, seen),
    ]


@operation()
def configuration(settings: Settings, jails: Sequence[Jail]) -> Commands:
    """
    Jails, filters and who is never banned.

    + settings: the host's settings
    + jails: every jail of this host
    """
    yield from converge(lambda seen: file_steps(settings, jails, seen))


@operation()
def running(jails: Sequence[Jail]) -> Commands:
    """
    Fail2Ban running with its configuration, its bans in effect.

    + jails: every jail of this host
    """
    yield from converge(lambda seen: unit_steps(jails, seen))


@operation()
def absent() -> Commands:
    """No Fail2Ban of ours that runs."""
    yield from converge(off_steps)


@deploy("fail2ban")
def provision(plan: Wanted) -> None:
    """The whole stage."""
    if not plan.settings.fail2ban:
        absent(name="switched off")
        return
    configuration(name="jails and filters", settings=plan.settings, jails=plan.jails)
    apt.packages(name="package", names=wanted.PACKAGES)
    running(name="fail2ban", jails=plan.jails)
