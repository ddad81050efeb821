"""What `mediahost fix-permissions` runs on a host: walks the media tree and mends what differs.

Run by the host's own Python from standard input: the standard library of Python 3.10 only, nothing of this project.
It takes the tree in slices of some seconds, so that whoever asks can tell how far it is, and goes on where it was.

Everything is opened relative to its directory and without following links (openat(2), O_NOFOLLOW), and what is
changed is what was opened: a name that somebody exchanges for a link meanwhile leads nowhere else.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
import time
from collections.abc import Iterator
from typing import Any

_ACL = "system.posix_acl_default"
_ANY = 0xFFFFFFFF

_DIRECTORY = 0o2775
# Of a file, beside its x bits: read and write for owner and group, read for others.
_FILE = 0o664
# Beyond any library; each level holds a file descriptor.
_DEEPEST = 200
_SHOWN = 50  # paths that are told of each kind in one slice


def default_acl(gid: int) -> bytes:
    """user::rwx,group::rwx,group:GID:rwx,mask::rwx,other::r-x as the kernel keeps it (linux/posix_acl_xattr.h)."""
    entries = ((0x01, 7, _ANY), (0x04, 7, _ANY), (0x08, 7, gid), (0x10, 7, _ANY), (0x20, 5, _ANY))
    # version 2, then tag, permissions and id of each
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


class Slice:
    """One stretch of the walk: what was seen and done until the time was up."""

    def __init__(self, request: dict[str, Any]) -> None:
        self.uid, self.gid = int(request["uid"]), int(request["gid"])
        self.acl = default_acl(self.gid) if request["acl"] else None
        self.dry = bool(request["dry_run"])
        self.skipped = frozenset(request["skip"])
        self.until = time.monotonic() + float(request["seconds"])
        self.seen = self.differ = self.links = self.strange = 0
        self.changes: list[list[str]] = []
        self.failures: list[list[str]] = []
        self.inside: list[str] = []
        """Names of the directories that are open at present, the tree's root left out."""
        self.stopped_at: list[str] = []
        """`inside` when the time was up, then the last entry there that was done, "" for none."""
        # At least one entry a slice, or a slow disk would never come to its end.
        self.moved = False

    def over(self) -> bool:
        """Whether the time of this slice is up."""
        return self.moved and time.monotonic() > self.until

    def failed(self, path: str, error: OSError) -> None:
        """Note what could not be looked at or changed."""
        words = error.strerror or "failed"
        if error.errno == errno.EPERM:
            words = "not permitted; is it immutable (lsattr), or a file system without owners?"
        if len(self.failures) < _SHOWN:
            self.failures.append([path, words])

    def walk(self, directory: int, path: str, resume: list[str], depth: int = 0) -> bool:
        """Everything in an open directory, in the order of names; False when the time was up."""
        try:
            names = sorted(os.listdir(directory))
        except OSError as error:
            self.failed(path, error)
            return True
        done = resume[0] if resume else ""
        for name in names:
            # What comes before the place where the last slice stopped was done by it; that entry itself, too, unless
            # the slice stopped inside of it.
            deeper = resume[1:] if name == done else []
            if name < done or (name == done and not deeper):
                continue
            if self.over():
                self.stopped_at = [*self.inside, done]
                return False
            if not self.entry(directory, name, f"{path}/{name}", deeper, depth):
                return False
            done = name
        return True

    def entry(self, directory: int, name: str, path: str, resume: list[str], depth: int) -> bool:
        """One entry of a directory and, when it is one, what is in it."""
        try:
            found = os.lstat(name, dir_fd=directory)
            if path in self.skipped or name == "lost+found":
                pass
            elif stat.S_ISDIR(found.st_mode):
                if depth >= _DEEPEST:
                    raise OSError(errno.ELOOP, f"lies deeper than {_DEEPEST} directories; left out")
                inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=directory)
                self.inside.append(name)
                try:
                    if not resume:
                        self.moved = True
                        self.mend(inner, path)
                    return self.walk(inner, path, resume, depth + 1)
                finally:
                    self.inside.pop()
                    os.close(inner)
            elif stat.S_ISREG(found.st_mode):
                self.moved = True
                self.file(directory, name, path, found)
            elif stat.S_ISLNK(found.st_mode):
                self.links += 1
            else:
                self.strange += 1
        except FileNotFoundError:
            pass  # gone since the directory was read
        except OSError as error:
            self.failed(path, error)
        return True

    def file(self, directory: int, name: str, path: str, found: os.stat_result) -> None:
        """A regular file: opened only when it differs."""
        self.seen += 1
        if not self.wrong(found):
            return
        # Another kind may stand there by now: neither a link is followed, nor a pipe waited for.
        opened = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=directory)
        try:
            if stat.S_ISREG(os.fstat(opened).st_mode):
                self.change(opened, path, self.wrong(os.fstat(opened)))
        finally:
            os.close(opened)

    def mend(self, opened: int, path: str) -> None:
        """A directory, which is open. When it cannot be mended, what is in it may be all the same."""
        self.seen += 1
        try:
            self.change(opened, path, self.wrong_directory(opened))
        except OSError as error:
            self.failed(path, error)

    def wrong_directory(self, opened: int) -> list[str]:
        """What differs of a directory, in words."""
        wrong = self.wrong(os.fstat(opened))
        if self.acl is not None:
            try:
                present = os.getxattr(opened, _ACL)
            except OSError as error:
                if error.errno not in (errno.ENODATA, errno.EOPNOTSUPP, errno.ENOTSUP):
                    raise
                present = b"" if error.errno == errno.ENODATA else self.acl  # a file system without ACLs
            if present != self.acl:
                wrong.append("default ACL")
        return wrong

    def wanted(self, found: os.stat_result) -> int:
        """The mode that it should have."""
        return _DIRECTORY if stat.S_ISDIR(found.st_mode) else _FILE | (found.st_mode & 0o111)

    def wrong(self, found: os.stat_result) -> list[str]:
        """What differs, in words."""
        words = []
        if (found.st_uid, found.st_gid) != (self.uid, self.gid):
            words.append(f"owner {found.st_uid}:{found.st_gid}")
        mode = stat.S_IMODE(found.st_mode)
        if mode != self.wanted(found):
            words.append(f"mode {mode:04o}, wanted {self.wanted(found):04o}")
        return words

    def change(self, opened: int, path: str, wrong: list[str]) -> None:
        """Mend what is `wrong` with what is open, or only tell it."""
        if not wrong:
            return
        self.differ += 1
        if len(self.changes) < _SHOWN:
            self.changes.append([path, "; ".join(wrong)])
        if self.dry:
            return
        found = os.fstat(opened)
        if (found.st_uid, found.st_gid) != (self.uid, self.gid):
            os.fchown(opened, self.uid, self.gid)
        # After the owner: a new one clears bits of the mode.
        if stat.S_IMODE(os.fstat(opened).st_mode) != self.wanted(found):
            os.fchmod(opened, self.wanted(found))
        if self.acl is not None and "default ACL" in wrong:
            os.setxattr(opened, _ACL, self.acl)
        # SMB and some others say yes and do nothing: there the options of the mount decide.
        if self.wrong(os.fstat(opened)):
            raise OSError(errno.EOPNOTSUPP, "cannot be changed: this file system keeps neither owner nor mode")


def _roots(request: dict[str, Any]) -> Iterator[str]:
    for root in request["roots"]:
        # An absent disk's mount point is an empty directory: nothing to mend, and nothing to say it is well.
        missing = [at for at in request["mounts"] if (root == at or root.startswith(f"{at}/")) and not _mounted(at)]
        if missing:
            raise OSError(errno.ENODEV, f"{missing[0]}: nothing is mounted there; plug the disk in, then run again")
        yield root


def _mounted(path: str) -> bool:
    try:
        return os.path.ismount(path)
    except OSError:
        return False


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """One slice: roots, mounts, uid, gid, acl, dry_run, skip, seconds, and the cursor that the last slice gave.

    Gives seen, differ, links, strange (neither file, directory nor link), changes, failures, and the cursor for the
    next slice, None at the end; or {error: ...} before anything was touched.
    """
    try:
        roots = list(_roots(request))
    except OSError as error:
        return {"error": str(error.strerror)}
    part = Slice(request)
    for at in request["mounts"]:
        # Inside the tree, and absent: what is left of it is the bare mount point.
        if any(at.startswith(f"{root}/") for root in roots) and not _mounted(at):
            part.skipped |= {at}
            if request["cursor"] is None:
                part.failures.append([at, "nothing is mounted there; left out"])
    root_index, resume = request["cursor"] or [0, []]
    cursor: list[Any] | None = None
    for index, root in enumerate(roots):
        if index < root_index:
            continue
        inside = resume if index == root_index else []
        try:
            opened = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError as error:
            words = "is a link: give its target as data_root" if error.errno in (errno.ELOOP, errno.ENOTDIR) else None
            part.failures.append([root, words or error.strerror or "failed"])
            continue
        try:
            if not inside:
                part.moved = True
                part.mend(opened, root)
            if not part.walk(opened, root, inside):
                cursor = [index, part.stopped_at]
                break
        except OSError as error:
            part.failed(root, error)
        finally:
            os.close(opened)
    return {
        "seen": part.seen,
        "differ": part.differ,
        "links": part.links,
        "strange": part.strange,
        "changes": part.changes,
        "failures": part.failures,
        "cursor": cursor,
    }
