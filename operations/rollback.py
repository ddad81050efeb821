"""Stage guard: what a run that died left unproven is put back before this run does anything else.

The guard itself is used by `operations.convergence`; this uses both.
"""

from __future__ import annotations

from pyinfra.api import operation

from facts.snapshot import ROLLBACK_DIRECTORY, Snapshot
from operations import report
from operations.convergence import Commands, Step, converge


def pending_steps(seen: Snapshot) -> list[Step]:
    """The step that puts back an unproven change: only what was there before is known to let people in."""
    if not seen.rollback_armed:
        return []
    change = "rollback: a run that died left a change of SSH, sudo or the firewall unproven, it is put back first"
    # What the host did by itself is told; what this run makes it do is not news.
    command = f"MEDIAHOST_ALONE=1 sh {ROLLBACK_DIRECTORY}/restore\nrm -f {ROLLBACK_DIRECTORY}/done"
    return [Step(change, command)]


@operation()
def settled() -> Commands:
    """No change of an earlier run that nobody has proven."""

    def missing(seen: Snapshot) -> list[Step]:
        if seen.rolled_back:
            report.notice(
                f"this host put itself back to earlier settings of SSH, sudo or firewall: {seen.rolled_back}"
            )
        return pending_steps(seen)

    yield from converge(missing)
