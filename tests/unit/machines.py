"""Machines of `tests/unit/sysfs` as directory trees, and what the collector sees on them."""

from __future__ import annotations

import subprocess
from pathlib import Path

from facts.snapshot import Request, Snapshot, parse, script

FILES = Path(__file__).parent / "sysfs"
MACHINES = tuple(sorted(path.stem for path in FILES.glob("*.txt")))


def build(machine: str, root: Path) -> Path:
    """A sysfs below `root` with the devices of `machine`; its path."""
    sys = root / "sys"
    devices = sys / "bus/pci/devices"
    devices.mkdir(parents=True)
    for line in (FILES / f"{machine}.txt").read_text().splitlines():
        if line.startswith("#"):
            continue
        address, kind, vendor, device, driver, render = line.split()
        # As in the kernel: a link into the tree of buses.
        real = sys / f"devices/pci0000:00/{address}"
        real.mkdir(parents=True)
        (devices / address).symlink_to(real)
        for name, value in (("class", kind), ("vendor", vendor), ("device", device)):
            (real / name).write_text(f"{value}\n")
        if driver != "-":
            module = sys / f"bus/pci/drivers/{driver}"
            module.mkdir(parents=True, exist_ok=True)
            (real / "driver").symlink_to(module)
        if render != "-":
            add_node(sys, render, real)
    return sys


def add_node(sys: Path, render: str, device: Path) -> None:
    """A render node of `device`."""
    node = device / f"drm/{render}"
    node.mkdir(parents=True)
    (node / "device").symlink_to(device)
    drm = sys / "class/drm"
    drm.mkdir(parents=True, exist_ok=True)
    (drm / render).symlink_to(node)


def collected(sys: Path, dev: Path | None = None) -> Snapshot:
    """What the collector, run for real, tells of that tree."""
    request = Request(gpu=frozenset({"cards"}))
    text = script(request).replace(" SYS=/sys DEV=/dev\n", f" SYS={sys} DEV={dev or sys / 'nothing'}\n")
    done = subprocess.run(["sh", "-s"], input=text, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return parse(done.stdout.splitlines(), request)
