"""The directory tree of a host: media, downloads, and where the stack keeps its files.

Both layouts share rules: media belong to the media user and group, and are setgid so that what one service
writes the others may move. Directories of single services come with the compose artefacts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from mediahost.config import Settings
from mediahost.paths import below
from mediahost.render.seeds import CATEGORIES
from mediahost.resources import Directory
from mediahost.stack import Stack

# rwxrwsr-x: the group writes, new files inherit the group (TRaSH Guides, File-and-Folder-Structure).
SHARED_MODE = "2775"


def shared_acl(gid: int) -> str:
    """Default ACL of these directories, as getfacl(1) has it: the kernel then leaves umask(2) out of account.

    The media group is named beside the owning group: where the setgid bit is lost (mergerfs does not copy it to the
    second branch of a pool) it may write all the same (docs/decisions/default-acls.md).
    """
    return f"user::rwx,group::rwx,group:{gid}:rwx,mask::rwx,other::r-x"


OUR_ACL = re.compile(r"user::rwx,group::rwx,group:[0-9]+:rwx,mask::rwx,other::r-x")
"""What `shared_acl` gives, of any group."""


def render_tree(settings: Settings, stack: Stack) -> tuple[Directory, ...]:
    """Every directory of the host, parents first.

    `data_root` itself (and `downloads_root` in the `split` layout) is included, what lies above it is not.
    """
    owner, group = str(settings.media_uid), str(settings.media_gid)
    # Empty: what an earlier run has set is taken away.
    acl = shared_acl(settings.media_gid) if settings.storage_acl else ""
    places = [path for each in _shared(settings) for path in (each, *_on_branches(each, settings))]
    shared = tuple(Directory(path, owner, group, SHARED_MODE, acl) for path in places)
    if not stack.services:
        return shared
    return (
        *shared,
        # Root alone may enter: bind mounts need no permission on the way, and other accounts have none.
        Directory(settings.stack_root, "0", "0", "0750"),
        Directory(f"{settings.stack_root}/config", "0", "0", "0750"),
        Directory(f"{settings.stack_root}/secrets", "0", "0", "0700"),
    )


def _on_branches(path: str, settings: Settings) -> Iterable[str]:
    """A pool's directory on each of its branches.

    mergerfs makes it there by itself when a file comes to that branch, and loses the setgid bit in doing so (seen
    with 2.33): with other modes on the branches, the pool shows now one, now the other.
    """
    for pool in settings.storage_pools:
        if below(path, pool.at):
            yield from (f"{branch}{path.removeprefix(pool.at)}" for branch in pool.branches)


def _shared(settings: Settings) -> Iterable[str]:
    yield settings.data_root
    if settings.layout == "trash":
        torrents, usenet = f"{settings.data_root}/torrents", f"{settings.data_root}/usenet"
        yield torrents
        yield f"{torrents}/incomplete"
        yield from (f"{torrents}/{name}" for name in CATEGORIES)
        yield usenet
        yield f"{usenet}/incomplete"
        complete = f"{usenet}/complete"
    else:
        yield settings.downloads_root
        yield f"{settings.downloads_root}/incomplete"
        complete = f"{settings.downloads_root}/complete"
    yield complete
    yield from (f"{complete}/{name}" for name in CATEGORIES)
    yield settings.media_root
    yield from (f"{settings.media_root}/{name}" for name in settings.media_libraries)
