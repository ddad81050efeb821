"""What mediahost owns on a host, so that what is switched off is removed and nothing else.

The manifest lists the paths of owned files, and beside each the unit that must restart when it goes. A path is
entered before its file is written and leaves after its file is gone, so a run that dies leaves nothing unowned.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping

from pyinfra.api import operation

from facts.snapshot import STATE_DIRECTORY, Snapshot
from mediahost.render import caches, follow, forwarding, gpu, plex, smart, snapraid, swap, totp, wall
from mediahost.resources import File
from operations import files, owed
from operations.convergence import Commands, Step, converge
from operations.guard import SSHD_RELOAD, Guard

PATH = f"{STATE_DIRECTORY}/manifest"

# Where a file that goes can take a login or sudo with it.
_GUARD = Guard(("/etc/ssh", "/etc/sudoers.d", "/etc/pam.d"), SSHD_RELOAD)

# sshd asks for a code until its own stage has told it otherwise: without these nobody would get in from outside.
_ASKED_FOR = f"{totp.DIRECTORY}/"

# The VPN's wall stands until nobody is left behind it; its own stage removes these.
_REMOVED_BY_VPN = frozenset((*wall.PATHS, *follow.PATHS, *forwarding.PATHS))

# What graphics cards need is known on the host only; their stage removes what they do not.
_REMOVED_BY_GPU = frozenset(gpu.PATHS)

# They say that Plex is ours; its stage stops it before they go.
_REMOVED_BY_PLEX = frozenset(plex.PATHS)

# Units that must be stopped while systemd knows their files; the stages upkeep and caches remove these.
_REMOVED_BY_UPKEEP = frozenset((*swap.PATHS, *smart.PATHS, *snapraid.PATHS, *caches.PATHS))


def _file(owned: Mapping[str, str]) -> File:
    content = "".join(f"{path}\t{unit}\n" for path, unit in sorted(owned.items()))
    return File(PATH, content.encode())


def _takes_over(path: str) -> bool:
    """Names that can only be ours, and Docker's own repository files, which say the same whoever wrote them."""
    return "mediahost" in path.rpartition("/")[2] or path.startswith("/etc/apt/")


def enter_steps(owned: Mapping[str, str], seen: Snapshot) -> list[Step]:
    """Enter paths that are about to be written.

    A file that stands there already, and that we did not make, is never taken over: it may be somebody's stack.
    """
    new = {path: unit for path, unit in owned.items() if seen.manifest.get(path) != unit}
    if not new:
        return []
    unknown = (path for path in new if path not in seen.manifest and path in seen.paths)
    foreign = sorted(path for path in unknown if not _takes_over(path))
    if foreign:
        return [
            Step(
                f"{path}: is there and was not made by mediahost",
                refusal=f"{', '.join(foreign)}: was not made by mediahost and would be overwritten. Move it away, or "
                "choose another stack_root, then run again",
            )
            for path in foreign
        ]
    command, stdin = files.write((_file({**seen.manifest, **owned}),))
    return [Step(f"manifest: {len(new)} new owned file(s)", command, stdin=stdin)]


def prune_steps(owned: Mapping[str, str], seen: Snapshot, before_ssh: bool = False) -> list[Step]:
    """Remove files that are ours and not wanted any more, then forget them.

    `before_ssh` tells that sshd is not yet what it will be: what its present configuration asks for stays.
    """
    if before_ssh:
        owned = {path: unit for path, unit in seen.manifest.items() if path.startswith(_ASKED_FOR)} | dict(owned)
    standing = (_REMOVED_BY_VPN | _REMOVED_BY_GPU | _REMOVED_BY_UPKEEP | _REMOVED_BY_PLEX) & seen.paths.keys()
    standing |= {caches.mount_unit_path(each.unit) for each in caches.standing_in(seen.contents)}
    owned = {path: unit for path, unit in seen.manifest.items() if path in standing} | dict(owned)
    obsolete = {path: unit for path, unit in seen.manifest.items() if path not in owned}
    if not obsolete:
        return []
    command, stdin = files.write((_file(owned),))
    marks = [owed.mark(unit) for unit in sorted(set(obsolete.values())) if unit]
    removal = "rm -f " + " ".join(shlex.quote(path) for path in sorted(obsolete))
    changes = [Step(f"{path}: not wanted any more") for path in sorted(obsolete)]
    return [*changes[:-1], Step(changes[-1].change, "\n".join((*marks, removal, command)), stdin=stdin)]


@operation()
def entered(owned: Mapping[str, str]) -> Commands:
    """
    Owned files that the manifest knows.

    + owned: path to the unit that depends on it, or ""
    """
    yield from converge(lambda seen: enter_steps(owned, seen))


@operation()
def pruned(owned: Mapping[str, str], before_ssh: bool = False) -> Commands:
    """
    No owned file that is not wanted any more.

    + owned: path to the unit that depends on it, or ""
    + before_ssh: leave what sshd's present configuration asks for
    """

    def at_stake(seen: Snapshot) -> Guard | None:
        obsolete = [path for path in seen.manifest if path not in owned]
        lets_in = any(path.startswith(f"{place}/") for path in obsolete for place in _GUARD.paths)
        return _GUARD if lets_in else None

    yield from converge(lambda seen: prune_steps(owned, seen, before_ssh), at_stake)
