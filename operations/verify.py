"""Stage verify: the whole host compared once more after everything was done.

A later stage can undo an earlier one (a package that rewrites a file, a restart that flushes rules). Here every
stage's own comparison is asked again; what still differs fails the host, in words.
"""

from __future__ import annotations

from pyinfra import state
from pyinfra.api import deploy, operation
from pyinfra.api.state import StateStage

from facts.snapshot import Request, Snapshot
from mediahost.render import totp
from mediahost.wanted import Wanted
from operations import (
    acl,
    apt,
    base,
    caches,
    compose,
    docker,
    fail2ban,
    files,
    follow,
    gpu,
    hardening,
    hardlinks,
    manifest,
    mounts,
    plex,
    ssh,
    storage,
    ufw,
    upkeep,
    users,
    vpn,
)
from operations.convergence import Commands, Step, converge


def request(wanted: Wanted) -> Request:
    """Everything that any stage has to see of this host, for its one snapshot."""
    settings = wanted.settings
    watched = base.request(settings) | users.request(settings) | ssh.request(settings) | docker.request(settings)
    watched |= fail2ban.request(settings)
    watched |= files.request(wanted.stack_files, wanted.directories)
    watched |= hardening.request(settings)
    watched |= gpu.request(settings)
    watched |= acl.request(wanted.directories) | caches.request(settings) | upkeep.request(settings)
    watched |= hardlinks.request(wanted)
    watched |= mounts.request(wanted) | plex.request(settings) | vpn.request(wanted) | follow.request(wanted)
    watched |= files.request((wanted.proxy_file,) if wanted.proxy_file else ())
    return watched | ufw.request() if settings.firewall else watched


def differences(wanted: Wanted, seen: Snapshot) -> list[Step]:
    """Every step that any stage would still take."""
    settings = wanted.settings
    return [
        *manifest.enter_steps(wanted.owned, seen),
        *base.steps(settings, seen),
        *hardening.steps(settings, seen),
        *users.steps(settings, seen),
        *apt.install_steps(totp.packages(settings), seen),
        *ssh.steps(settings, seen, factors=wanted.factors),
        *(ufw.steps(settings, wanted.stack.exposed_ports, seen, wanted.vpn) if settings.firewall else ()),
        *vpn.steps(wanted, seen),
        *gpu.steps(wanted, seen),
        *mounts.steps(wanted, seen),
        *docker.steps(settings, seen),
        *storage.steps(wanted.directories, seen),
        *acl.steps(wanted.directories, seen),
        *caches.steps(settings, seen),
        *upkeep.steps(settings, seen),
        *plex.steps(wanted, seen),
        *compose.steps(wanted, seen),
        *gpu.inside_steps(wanted, seen),
        *follow.steps(wanted, seen),
        *vpn.inside_steps(wanted, seen),
        *hardening.watch_steps(settings, seen),
        *fail2ban.steps(wanted, seen),
        *hardlinks.steps(wanted, seen),
    ]


@operation()
def nothing_left(wanted: Wanted) -> Commands:
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
    hardlinks.proven(name="hardlinks", wanted=wanted)
    nothing_left(name="nothing left to do", wanted=wanted)
