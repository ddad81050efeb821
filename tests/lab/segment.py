"""Addresses of the segment on which the host, the stranger and the neighbour at home are."""

from __future__ import annotations

from lab.machine import Machine

LAN4, LAN6 = "10.77.0.250", "fd77::250"
# The control side comes from the uplink; on the segment only one address is at home.
LAN = ["10.0.2.0/24", f"{LAN4}/32", f"{LAN6}/128"]


def card(machine: Machine) -> str:
    """Name of the card on the segment."""
    return machine.run(f"ip -4 -o address show to {machine.address4} | cut -d' ' -f2").stdout.strip()
