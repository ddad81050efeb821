"""Where the lab keeps what it builds and runs: one directory in the user's cache, nothing in the repository.

Images are named by the hash of their inputs and may be deleted when no machine stands on them; machines hold
state that is lost with their directory. Functions here only compute and create paths.
"""

from __future__ import annotations

import os
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent


def cache() -> Path:
    """The lab's directory, `$XDG_CACHE_HOME/mediahost/lab` or `~/.cache/mediahost/lab`, created 0700."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    root = Path(base) if Path(base).is_absolute() else Path.home() / ".cache"
    path = root / "mediahost" / "lab"
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def images() -> Path:
    """Base images, shared read-only by the machines."""
    return _made("images")


def machines() -> Path:
    """One directory a machine: its disks, sockets, logs and records."""
    return _made("machines")


def keys() -> Path:
    """The lab's SSH key pair; made once, never leaves this directory but for the public half."""
    return _made("keys")


def _made(name: str) -> Path:
    path = cache() / name
    path.mkdir(mode=0o700, exist_ok=True)
    return path
