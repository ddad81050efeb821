"""The lab's disk images: those that nothing needs any more go when a new one has been built, and no other."""

from __future__ import annotations

import fcntl
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from lab import image, paths
from lab.image import BARE, Image, ImageSpec
from lab.mirror import Mirror

OLD, STANDING, BUSY, RECENT = (f"bare-trixie-{digit * 12}" for digit in "0123")
OTHERS = ("bare-bookworm-000000000000", "bare-trixie-extra-000000000000", "other-trixie-000000000000")


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """A cache of the test's own, in which a build takes no time. Gives the keys that were built."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(image, "debian_mirror", lambda: Mirror("http://debian.invalid", None, tmp_path))
    monkeypatch.setattr(image, "ssh_key", lambda: tmp_path / "key")
    (tmp_path / "key.pub").write_text("ssh-ed25519 AAAA\n")
    keys: list[str] = []

    def build(_spec: ImageSpec, _mirror: Any, _key: str, new: Image, _report: Any) -> None:
        keys.append(new.key)
        make(new.key, used=time.time())

    monkeypatch.setattr(image, "_build", build)
    return keys


def make(key: str, used: float) -> None:
    directory = paths.images() / key
    directory.mkdir()
    for name in ("root.qcow2", "vmlinuz", "initrd.img"):
        (directory / name).touch()
    lock = paths.images() / f"{key}.lock"
    lock.touch()
    os.utime(lock, (used, used))


def keys() -> set[str]:
    return {entry.name for entry in paths.images().iterdir() if entry.is_dir()}


def test_an_older_image_goes_unless_a_machine_or_somebody_else_needs_it(built: list[str]) -> None:
    for key in (OLD, STANDING, BUSY, *OTHERS):
        make(key, used=0)
    make(RECENT, used=time.time() - 60)
    machine = paths.machines() / "home1"
    machine.mkdir()
    (machine / "machine.json").write_text(json.dumps({"name": "home1", "image_key": STANDING}))
    busy = paths.images() / f"{BUSY}.lock"
    with busy.open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        new = image.ensure_image(BARE)
    assert built == [new.key]
    assert keys() == {new.key, STANDING, BUSY, RECENT, *OTHERS}
    assert busy.stat().st_mtime == 0


def test_as_long_as_nothing_is_built_nothing_is_removed(built: list[str]) -> None:
    image.ensure_image(BARE)
    make(OLD, used=0)
    image.ensure_image(BARE)
    assert len(built) == 1
    assert OLD in keys()


def test_an_image_in_use_counts_as_used_now(built: list[str]) -> None:
    key = image.ensure_image(BARE).key
    lock = paths.images() / f"{key}.lock"
    os.utime(lock, (0, 0))
    image.ensure_image(BARE)
    assert time.time() - lock.stat().st_mtime < 60
