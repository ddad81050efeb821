"""Default ACLs of the media tree: what somebody makes there, the media group may change, whatever his umask.

Directory by directory, never recursively and never by `mkdir -p`: Ubuntu 26.04's loses what a new directory should
inherit (uutils/coreutils#11036). What is in the directories already is `mediahost fix-permissions`' business.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from pyinfra.api import operation

from facts.snapshot import Request, Snapshot
from mediahost.render.tree import OUR_ACL
from mediahost.resources import Directory
from operations import report
from operations.convergence import Commands, Step, converge

# In the words of stat(1), of GNU and of uutils. On what is not named here it is tried.
WITHOUT_ACL = frozenset(
    ("cifs", "exfat", "fat", "msdos", "nfs", "nfs4", "ntfs", "ntfs3", "smb", "smb2", "v9fs", "vboxsf", "vfat")
)


def request(directories: Sequence[Directory]) -> Request:
    """What a snapshot must look at for these."""
    return Request(acls=frozenset(each.path for each in directories if each.default_acl is not None))


def steps(directories: Sequence[Directory], seen: Snapshot) -> list[Step]:
    """One command for all directories whose default ACL is another; those that are still to be made come later."""
    if seen.acls_unread:
        return []  # base installs the package; then they are looked at
    changes, lines = [], []
    for directory in directories:
        if seen.mounts.hides(directory.path):
            continue
        kind = seen.filesystems.get(directory.path)
        # One that is not there yet, or that cannot have an ACL.
        if directory.default_acl is None or kind is None or kind.lower() in WITHOUT_ACL:
            continue
        state = seen.paths.get(directory.path)
        if state is None or state.kind != "directory":
            continue  # a link leads to a directory that is somebody's own
        present = seen.default_acls.get(directory.path, "")
        path = shlex.quote(directory.path)
        if directory.default_acl:
            if present == directory.default_acl:
                continue
            what = f"is {present}" if present else "is missing"
            changes.append(f"{directory.path}: default ACL {what}, wanted {directory.default_acl}")
            # -k first: an entry of somebody's that stayed would bring its mask.
            lines.append(f"acl -k -m d:{directory.default_acl.replace(',', ',d:')} {path}")
        elif OUR_ACL.fullmatch(present):
            changes.append(f"{directory.path}: default ACL is not wanted any more")
            lines.append(f"acl -k {path}")
    if not changes:
        return []
    mend = "this file system has no ACLs; set storage_acl = False for this host"
    head = f'acl() {{ setfacl "$@" || {{ echo "{mend}" >&2; exit 1; }}; }}'
    return [*(Step(change) for change in changes[:-1]), Step(changes[-1], "\n".join((head, *lines)))]


def notices(directories: Sequence[Directory], seen: Snapshot) -> list[str]:
    """Where ACLs are wanted and cannot be had."""
    kinds: dict[str, str] = {}
    for directory in directories:
        kind = seen.filesystems.get(directory.path, "")
        if (
            directory.default_acl
            and kind.lower() in WITHOUT_ACL
            and not any(directory.path.startswith(f"{parent}/") and kinds[parent] == kind for parent in kinds)
        ):
            kinds[directory.path] = kind
    return [
        f"{path}: {kind} has no default ACLs; who writes there needs the umask 002 (services have it)"
        for path, kind in kinds.items()
    ]


@operation()
def inherited(directories: Sequence[Directory]) -> Commands:
    """
    Default ACLs of directories.

    + directories: parents first
    """

    def missing(seen: Snapshot) -> list[Step]:
        for told in notices(directories, seen):
            report.notice(told)
        return steps(directories, seen)

    yield from converge(missing)
