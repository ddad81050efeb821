"""systemd units: enabled, running, and running with the configuration that is on disk now.

A restart is a state, not a handler: whoever changes a unit's files marks it pending before the change
(`owed.mark`), and the mark goes only after the restart. A run that dies in between owes the restart to
the next one.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable

from pyinfra.api import operation

from facts.snapshot import Snapshot
from operations import owed
from operations.convergence import Commands, Step, converge

_DIRECTORY = "/etc/systemd/system/"

# Unit file states of which `systemctl enable` would change nothing.
_ENABLED = ("enabled", "static", "alias", "indirect", "generated")


def steps(
    unit: str, seen: Snapshot, restart: str | None = None, interrupts: str = "", changed: bool = False
) -> list[Step]:
    """The steps that bring `unit` up, enabled and current.

    `restart` is the command that takes new configuration into use; `interrupts` says in words what that stops;
    `changed` says that a step before these writes new configuration.
    """
    state = seen.units.get(unit)
    pending = changed or unit in seen.pending
    name = shlex.quote(unit)  # a mount unit's name can have backslashes
    command = restart or f"systemctl restart {name}"
    cost = f" ({interrupts})" if interrupts else ""
    if state is None or state.load == "not-found":
        return [Step(f"{unit}: unit not installed", f"systemctl cat {name} >/dev/null")]
    found = []
    if state.load == "masked":
        found.append(Step(f"{unit}: masked", f"systemctl unmask {name}"))
    if state.enabled not in _ENABLED:
        found.append(Step(f"{unit}: not enabled", f"systemctl -q enable {name}"))
    if state.needs_daemon_reload:
        found.append(Step(f"{unit}: unit files changed since systemd read them", owed.RELOAD))
    if state.active not in ("active", "reloading", "activating"):
        found.append(
            Step(f"{unit}: {state.active}", f"systemctl reset-failed {name} || true\n{command}\n{owed.clear(unit)}")
        )
    elif pending:
        found.append(
            Step(f"{unit}: runs with an older configuration, is restarted{cost}", f"{command}\n{owed.clear(unit)}")
        )
    return found


def unread_steps(unit: str, path: str, seen: Snapshot) -> list[Step]:
    """The step that lets systemd read the unit file at `path`, which a run that died left unread."""
    state = seen.units.get(unit)
    if path not in seen.paths or not (state is None or state.load == "not-found"):
        return []
    return [Step(f"{unit}: systemd has not read it", owed.RELOAD)]


def restarted(unit: str, words_of: str = "") -> str:
    """Shell that restarts a unit and, when that fails, says why: what its own program said last.

    `words_of` is the unit whose program does the work, where it is another one.
    """
    said = shlex.quote(f"_SYSTEMD_UNIT={words_of or unit}")
    return (
        f"systemctl restart {shlex.quote(unit)} || "
        f"{{ journalctl -q --no-pager -o cat -n 3 {said} >&2 || true; exit 1; }}"
    )


def own_steps(unit: str, path: str, seen: Snapshot, restart: str | None = None, interrupts: str = "") -> list[Step]:
    """As `steps`, for a unit whose file at `path` is ours: one that systemd has not read is read."""
    return [*unread_steps(unit, path, seen), *steps(unit, seen, restart, interrupts)]


def reading_steps(written: Iterable[Step], whose: str) -> list[Step]:
    """The step that lets systemd read unit files, where any of the steps in `written` changes one."""
    if not any(step.change.startswith(_DIRECTORY) for step in written):
        return []
    return [Step(f"systemd: reads {whose}", owed.RELOAD)]


def stopped(unit: str) -> str:
    """Shell that stops and disables a unit, where there is one."""
    name = shlex.quote(unit)
    return f"if systemctl -q cat {name} >/dev/null 2>&1; then systemctl -q disable --now {name}; fi"


def removal_steps(unit: str, paths: Iterable[str], seen: Snapshot) -> list[Step]:
    """The step that stops a unit of ours and removes its files; none where none of `paths` is left."""
    left = [path for path in paths if path in seen.paths]
    if not left:
        return []
    command = f"{stopped(unit)}\nrm -f {' '.join(map(shlex.quote, left))}\n{owed.RELOAD}\n{owed.clear(unit)}"
    return [Step(f"{unit}: switched off, is removed", command)]


@operation()
def running(unit: str, restart: str | None = None, interrupts: str = "") -> Commands:
    """
    A unit that is enabled, running and current.

    + unit: its full name, such as ssh.service
    + restart: command that takes new configuration into use, by default a restart
    + interrupts: what that stops, in words
    """
    yield from converge(lambda seen: steps(unit, seen, restart, interrupts))
