"""Paths on a host as the configuration may name them: absolute, on a disk, and not one of the system's own."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Annotated

from pydantic import AfterValidator

# The file system hierarchy's own directories: changing their owner or mode breaks the host.
_SYSTEM_DIRECTORIES = frozenset(
    """/bin /boot /dev /etc /home /lib /lib32 /lib64 /libx32 /lost+found /media /mnt /opt /proc /root /run /sbin /srv
    /sys /tmp /usr /var""".split()  # noqa: SIM905 - one list of 22 lines tells less
)
# What lies below these is the kernel's or gone after a reboot.
_VOLATILE_DIRECTORIES = ("/dev", "/proc", "/run", "/sys")


def below(path: str, parent: str) -> bool:
    """Whether `path` is `parent` or lies in it."""
    return PurePosixPath(path).is_relative_to(parent)


def _absolute_path(value: str) -> str:
    # POSIX keeps two leading slashes apart; here they are one.
    path = PurePosixPath(re.sub("^/+", "/", value))
    if not path.is_absolute() or ".." in path.parts:
        raise ValueError("write an absolute path without '..', such as /data")
    if len(path.parts) < 2:
        raise ValueError("the root directory itself cannot be used; choose a directory below it, such as /data")
    if re.search(r"[^A-Za-z0-9_./@+-]", value):
        raise ValueError("use letters, digits and . _ - @ + only: the path ends up in unit and compose files")
    if str(path) in _SYSTEM_DIRECTORIES:
        raise ValueError(
            f"{path} belongs to the system; choose a directory below /srv, /opt or /mnt, or one like /data"
        )
    if any(below(str(path), parent) for parent in _VOLATILE_DIRECTORIES):
        raise ValueError("what lies there is gone after a reboot; choose a directory on a disk, such as /data")
    return str(path)


AbsolutePath = Annotated[str, AfterValidator(_absolute_path)]
