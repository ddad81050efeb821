"""Stage verify: the whole host compared once more after everything was done.

A later stage can undo an earlier one (a package that rewrites a file, a restart that flushes rules). Here every
stage's own comparison is asked again; what still differs fails the host, in words.
"""

from __future__ import annotations

from pyinfra import state
from pyinfra.api import deploy, operation
from pyinfra.api.state import StateStage

from facts.snapshot import Snapshot
from mediahost.render import base as base_artefacts
from mediahost.render import users as users_artefacts
from mediahost.wanted import Wanted
from operations import apt, base, compose, docker, files, ssh, storage, ufw, users
from operations.convergence import Step, converge


def differences(wanted: Wanted, seen: Snapshot) -> list[Step]:
    """Every step that any stage would still take."""
    settings = wanted.settings
    sudoers = users_artefacts.sudoers(settings)
    accounts = users_artefacts.users(settings)
    host_files = [
        *base_artefacts.apt_files(settings),
        base_artefacts.sysctl_file(settings),
        base_artefacts.journald_file(settings),
        *((sudoers,) if sudoers else ()),
        *wanted.stack_files,
    ]
    steps = [
        *files.steps(host_files, seen),
        *apt.install_steps(base_artefacts.packages(settings), seen),
        *base.sysctl_steps(base_artefacts.sysctls(settings), seen),
        *users.user_steps(accounts, seen),
        *users.keys_steps(accounts, seen),
        *ssh.steps(settings, seen),
        *docker.engine_steps(settings, seen),
        *docker.daemon_steps(settings, seen),
        *storage.steps(wanted.directories, seen),
        *compose.reload_steps(wanted.proxy_file, seen),
        *compose.container_steps(wanted.containers, settings.stack_root, settings.compose_wait_timeout, seen),
    ]
    if settings.firewall:
        steps += ufw.steps(settings, wanted.stack.exposed_ports, seen)
    return steps


@operation()
def nothing_left(wanted: Wanted):  # type: ignore[no-untyped-def]
    """
    No difference anywhere.

    + wanted: the host as it should be
    """

    def left(seen: Snapshot) -> list[Step]:
        steps = differences(wanted, seen)
        if not steps:
            return []
        told = "; ".join(step.change for step in steps)
        return [Step(f"after all stages: {told}", refusal=f"undone by a later stage or by somebody else: {told}")]

    # A plan names each difference under its own stage; this one only looks back at a run.
    if state.current_stage == StateStage.Execute:
        yield from converge(left)


@deploy("verify")
def provision(wanted: Wanted) -> None:
    """The whole stage."""
    nothing_left(name="nothing left to do", wanted=wanted)
