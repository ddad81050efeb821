"""systemd units: enabled, running, and running with the configuration that is on disk now.

A restart is a state, not a handler: whoever changes a unit's files marks it pending before the change
(`files.mark_pending`), and the mark goes only after the restart. A run that dies in between owes the restart to
the next one.
"""

from __future__ import annotations

from pyinfra.api import operation

from facts.snapshot import Snapshot
from operations.convergence import Step, converge
from operations.files import clear_pending

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
    command = restart or f"systemctl restart {unit}"
    cost = f" ({interrupts})" if interrupts else ""
    if state is None or state.load == "not-found":
        return [Step(f"{unit}: unit not installed", f"systemctl cat {unit} >/dev/null")]
    found = []
    if state.load == "masked":
        found.append(Step(f"{unit}: masked", f"systemctl unmask {unit}"))
    if state.enabled not in _ENABLED:
        found.append(Step(f"{unit}: not enabled", f"systemctl -q enable {unit}"))
    if state.needs_daemon_reload:
        found.append(Step(f"{unit}: unit files changed since systemd read them", "systemctl daemon-reload"))
    if state.active not in ("active", "reloading", "activating"):
        found.append(
            Step(
                f"{unit}: {state.active}", f"systemctl reset-failed {unit} || true\n{command}\n{clear_pending(unit)}"
            )
        )
    elif pending:
        found.append(
            Step(f"{unit}: runs with an older configuration, is restarted{cost}", f"{command}\n{clear_pending(unit)}")
        )
    return found


@operation()
def running(unit: str, restart: str | None = None, interrupts: str = ""):  # type: ignore[no-untyped-def]
    """
    A unit that is enabled, running and current.

    + unit: its full name, such as ssh.service
    + restart: command that takes new configuration into use, by default a restart
    + interrupts: what that stops, in words
    """
    yield from converge(lambda seen: steps(unit, seen, restart, interrupts))
