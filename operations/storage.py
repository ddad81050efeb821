"""Stage storage: the directory tree, every level with its own owner and mode.

Only the directories that are named are touched, never what is in them: a recursive chown of a media library
takes hours and destroys what the user set. Each level is made by itself, because on some releases `mkdir -p`
loses inherited permissions for the parents it creates.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from pyinfra.api import deploy, operation

from facts.snapshot import Snapshot
from mediahost.resources import Directory
from operations import acl
from operations.convergence import Commands, Step, converge

# File systems that keep neither owner nor mode: the options of the mount say what they show. In stat(1)'s words.
WITHOUT_OWNERS = frozenset(("cifs", "exfat", "fat", "msdos", "smb", "smb2", "vfat"))


def steps(directories: Sequence[Directory], seen: Snapshot) -> list[Step]:
    """One command for all directories that are missing or have another owner or mode, parents first."""
    changes, lines = [], []
    ours = {directory.path for directory in directories}
    for directory in directories:
        if seen.mounts.hides(directory.path):
            continue  # the stage mounts tells
        present = seen.paths.get(directory.path)
        path = shlex.quote(directory.path)
        if present is not None and present.kind not in ("directory", "link"):
            return [
                Step(
                    f"{directory.path}: is a {present.kind}",
                    refusal=f"{directory.path} is a {present.kind}, not a directory: move it away, then run again",
                )
            ]
        if present is not None and present.kind == "link":
            continue
        wrong = []
        fixed = seen.filesystems.get(directory.path, "").lower() in WITHOUT_OWNERS
        if present is None:
            wrong.append("missing")
            parent = directory.path.rpartition("/")[0]
            # What lies above the first directory of ours is the host's own: plain root 0755 where it is missing.
            above = "" if parent in ours else f"mkdir -p {shlex.quote(parent or '/')} && "
            lines.append(f"[ -d {path} ] || {{ {above}mkdir {path}; }}")
        owned = present is not None and (
            directory.owner in (present.owner, present.uid) and directory.group in (present.group, present.gid)
        )
        if present is not None and not owned and not fixed:
            wrong.append(f"owner is {present.owner}:{present.group}, wanted {directory.owner}:{directory.group}")
        if present is not None and int(present.mode, 8) != int(directory.mode, 8) and not fixed:
            wrong.append(f"mode is {present.mode.zfill(4)}, wanted {directory.mode}")
        if wrong:
            # chown clears the setgid bit on some kernels, so chmod comes second.
            mend = f"chown -h {directory.owner}:{directory.group} {path}; chmod {directory.mode} {path}"
            lines.append(f"case $(stat -f -c %T {path}) in {'|'.join(sorted(WITHOUT_OWNERS))}) ;; *) {mend} ;; esac")
            changes.append(f"{directory.path}: {', '.join(wrong)}")
    if not changes:
        return []
    return [*(Step(change) for change in changes[:-1]), Step(changes[-1], "umask 022\n" + "\n".join(lines))]


@operation()
def tree(directories: Sequence[Directory]) -> Commands:
    """
    Directories with their owner, group and mode.

    + directories: parents first
    """
    yield from converge(lambda seen: steps(directories, seen))


@deploy("storage")
def provision(directories: Sequence[Directory]) -> None:
    """The whole stage."""
    tree(name="directory tree", directories=directories)
    acl.inherited(name="default ACLs", directories=directories)
