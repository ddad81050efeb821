"""The directory tree of a host: media, downloads, and where the stack keeps its files.

Both layouts share rules: media belong to the media user and group, and are setgid so that what one service
writes the others may move. Directories of single services come with the compose artefacts.
"""

from __future__ import annotations

from collections.abc import Iterable

from mediahost.config import Settings
from mediahost.render.seeds import CATEGORIES
from mediahost.resources import Directory
from mediahost.stack import Stack

# rwxrwsr-x: the group writes, new files inherit the group (TRaSH Guides, File-and-Folder-Structure).
SHARED_MODE = "2775"
SHARED_ACL = "user::rwx,group::rwx,other::r-x"
"""Default ACL of these directories: with one, the kernel leaves umask(2) out of account, so that the group may write
whoever makes a file. No entry for a named group: files would get a mask, and the first chmod takes rights away
with it; the setgid bit hands the group on (docs/decisions/default-acl-without-names.md)."""


def render_tree(settings: Settings, stack: Stack) -> tuple[Directory, ...]:
    """Every directory of the host, parents first.

    `data_root` itself (and `downloads_root` in the `split` layout) is included, what lies above it is not.
    """
    owner, group = str(settings.media_uid), str(settings.media_gid)
    # Empty: what an earlier run has set is taken away.
    acl = SHARED_ACL if settings.storage_acl else ""
    shared = tuple(Directory(path, owner, group, SHARED_MODE, acl) for path in _shared(settings))
    if not stack.services:
        return shared
    return (
        *shared,
        # Root alone may enter: bind mounts need no permission on the way, and other accounts have none.
        Directory(settings.stack_root, "0", "0", "0750"),
        Directory(f"{settings.stack_root}/config", "0", "0", "0750"),
        Directory(f"{settings.stack_root}/secrets", "0", "0", "0700"),
    )


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
