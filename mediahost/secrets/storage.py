"""Puts bytes on disk so that a reader sees the old or the new file and nobody else ever sees either.

Every file is born 0600 under a temporary name in the target's directory, flushed, then renamed. A file
that changed since it was read is never overwritten; the version before is kept beside it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

from mediahost.secrets.error import VaultError, at, shown

# A writer holds the lock for milliseconds; ten seconds cover a laptop that swaps.
LOCK_LIMIT_SECONDS = 10.0


def previous_path(path: Path) -> Path:
    """Return where the version before the last change of `path` is kept."""
    return path.with_name(path.name + ".previous")


def read(path: Path) -> bytes | None:
    """Return the file's bytes, None when there is no file; raises VaultError when it cannot be read."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise VaultError(
            "the file cannot be read",
            where=at(path),
            why=error.strerror or "the operating system refused",
            mend=f"see `ls -ld {shown(path)}`: it must be a file that you may read",
        ) from None


def replace(path: Path, content: bytes, *, expected: bytes | None) -> None:
    """Make `content` the file's content, and what was there the previous version.

    `expected` is what the caller read (None: no file). Raises VaultError when the file on disk is
    another one by now, when another writer keeps the lock, or when the disk refuses.
    """
    path = path.resolve()  # a symlink stays one: its target is replaced
    try:
        make_private_directory(path.parent)
        with _writer_lock(path):
            current = read(path)
            if current == content:  # a former attempt that failed after its rename
                _flush_directory(path.parent)
                return
            if current != expected:
                raise _changed_on_disk(path, current)
            # Only debris of killed writers can be there: the lock is ours.
            for debris in list(path.parent.iterdir()):
                if debris.name.startswith(f".{path.name}.") and debris.suffix == ".tmp":
                    debris.unlink()
            with _temporary(path, content) as fresh:
                if current is not None:
                    with _temporary(path, current) as kept:
                        kept.replace(previous_path(path))
                fresh.replace(path)
            _flush_directory(path.parent)
    except OSError as error:
        raise _not_written(path, error) from None


def create_private(path: Path, content: bytes) -> None:
    """Create a new 0600 file (and 0700 directories above it); raises VaultError when it exists."""
    try:
        make_private_directory(path.parent)
        with _temporary(path, content) as fresh:
            os.link(fresh, path)  # unlike a rename, fails when the name is taken
        _flush_directory(path.parent)
    except FileExistsError:
        raise VaultError(
            "a file of this name exists already",
            where=at(path),
            why="it may be the only key of a vault, so it is not overwritten",
            mend="move it away or name another file",
        ) from None
    except OSError as error:
        raise _not_written(path, error) from None


def supplant(source: Path, target: Path) -> None:
    """Put `source` in the place of `target`, which stays as the previous version; raises VaultError.

    Whatever moment is the last, there is a whole file under the target's name.
    """
    try:
        with _temporary(target, target.read_bytes()) as kept:
            kept.replace(previous_path(target))
        source.replace(target)
        _flush_directory(target.parent)
    except OSError as error:
        raise _not_written(target, error) from None


def rename(source: Path, target: Path) -> None:
    """Rename for good: flushed to disk when it returns; raises VaultError."""
    try:
        source.replace(target)
        _flush_directory(target.parent)
    except OSError as error:
        raise _not_written(target, error) from None


def make_private_directory(path: Path) -> None:
    """Create `path` and its parents, 0700 where they are new."""
    for directory in reversed([path, *path.parents]):
        if not directory.is_dir():
            directory.mkdir(mode=0o700, exist_ok=True)


@contextlib.contextmanager
def _temporary(target: Path, content: bytes) -> Iterator[Path]:
    path = target.with_name(f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        yield path
    finally:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def _writer_lock(path: Path) -> Iterator[None]:
    lock = path.with_name(f".{path.name}.lock")
    descriptor = os.open(lock, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        deadline = time.monotonic() + LOCK_LIMIT_SECONDS
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise VaultError(
                        "another process is writing this file",
                        where=at(path),
                        why=f"it has held {shown(lock)} for {LOCK_LIMIT_SECONDS:.0f} seconds",
                        mend="wait for the other mediahost command to end, then run this one again",
                    ) from None
                time.sleep(0.02)
        yield
    finally:
        os.close(descriptor)  # frees the lock; the file stays, for deleting it would race


def _flush_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _changed_on_disk(path: Path, current: bytes | None) -> VaultError:
    return VaultError(
        "the file is not the one that was read; nothing was written",
        where=at(path),
        why="it has been deleted" if current is None else "another process changed or created it meanwhile",
        mend="run the command again: it then starts from the present file",
    )


def _not_written(path: Path, error: OSError) -> VaultError:
    return VaultError(
        "the file could not be written; what is there is whole, the version before or the new one",
        where=at(path),
        why=error.strerror or "the operating system refused",
        mend=f"make room or give yourself write permission in {shown(path.parent)}, then run it again",
    )
