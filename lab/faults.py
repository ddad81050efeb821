"""Does to lab machines on purpose what goes wrong on real ones: lost power, a freeze, a pulled cable, a lost disk.

Each fault that lasts is a context manager and is undone at its end, also when the test inside fails.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from lab import network
from lab.machine import Machine

_FILLER = ".lab-filler"
# As root, so that ext4's reserved blocks are taken too: most of what a product writes, it writes as root. Most of
# the space by fallocate, which costs no writing; the rest by writing until the file system refuses. Btrfs counts
# among the free blocks (%f) what it keeps for metadata, and gives none of them: then it is asked for those that data
# may have (%a). Ext4 gives what it can.
_FILL = """set -eu
cd "$1"
for free in $(stat -f -c '%f %a' .); do
  free=$(( free * $(stat -f -c %S .) / 1024 ))
  [ "$free" -gt 2048 ] || continue
  fallocate -l "$((free - 2048))KiB" FILLER.1 || true
  [ ! -s FILLER.1 ] || break
done
dd if=/dev/zero of=FILLER.2 bs=4k 2>/dev/null || true
sync
""".replace("FILLER", _FILLER)
# Btrfs gives space back when it has written that down: half a minute later, unless it is asked to.
_EMPTY = 'rm -f "$1/FILLER.1" "$1/FILLER.2" && sync -f "$1"'.replace("FILLER", _FILLER)


def power_cut(machine: Machine) -> None:
    """Cut the power of a durable machine, start it again and wait until it is up."""
    machine.power_cut()
    machine.start()
    machine.wait_until_ready()


@contextlib.contextmanager
def paused(machine: Machine) -> Iterator[None]:
    """The machine is frozen: connections to it neither answer nor break."""
    machine.pause()
    try:
        yield
    finally:
        machine.resume()


@contextlib.contextmanager
def unplugged(machine: Machine, card: str = network.SEGMENT) -> Iterator[None]:
    """The cable of the card on the segment (or the uplink, and with it SSH) is pulled."""
    machine.set_link(card, up=False)
    try:
        yield
    finally:
        machine.set_link(card, up=True)


@contextlib.contextmanager
def disk_removed(machine: Machine, number: int = 1) -> Iterator[None]:
    """The extra disk of that number is pulled while the guest uses it, or, on one that is off, before it starts."""
    machine.remove_disk(number)
    try:
        yield
    finally:
        machine.insert_disk(number)


@contextlib.contextmanager
def disk_full(machine: Machine, directory: str = "/var/lib") -> Iterator[None]:
    """The file system that holds `directory` of the guest has no free block, for root neither."""
    machine.run(["sudo", "-n", "sh", "-c", _FILL, "sh", directory])
    try:
        yield
    finally:
        machine.run(["sudo", "-n", "sh", "-c", _EMPTY, "sh", directory])
