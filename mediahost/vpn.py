"""The VPN of one host, as every renderer sees it: the tunnel's data, who is confined to it, and the names in use.

Values only. `mediahost.wireguard` reads a provider's file into a `Tunnel`; `mediahost.stack` decides who is confined;
`mediahost.render.wall` turns both into routes and rules.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from typing import Literal

BRIDGE = "br-vpn"
"""The bridge of the confined containers. Its packets have one way out: the tunnel."""
LINK = "wg-vpn"
"""The host's WireGuard interface (mode host). Both names fit IFNAMSIZ (15 characters)."""
NETWORK = "vpn"
"""The compose network on that bridge."""
INSIDE = "confined"
"""The internal compose network (no way out at all) on which the proxy and the arrs reach confined services."""
INSIDE_BRIDGE = "br-confined"
"""Its bridge."""
TABLE = 51820
"""Routing table of what comes from the bridge."""
CLIENT = "gluetun"
"""The catalogue entry that holds the tunnel in mode container."""
SECRET = "wireguard"  # noqa: S105 - a name, not a secret
"""Vault entry `<host>/vpn/wireguard`: the provider's WireGuard file, endpoint as an address."""


@dataclass(frozen=True)
class Tunnel:
    """A WireGuard interface with its one peer, as wg-quick(8)'s file says it.

    Keys are base64 of 32 bytes. `addresses` carry a prefix length ("10.2.0.2/32"); `endpoint` is an IP address, never
    a name: looking one up would need the very network that is not there yet. `keepalive` in seconds.
    """

    private_key: str = field(repr=False)
    addresses: tuple[str, ...]
    peer: str
    endpoint: str
    endpoint_port: int
    preshared_key: str | None = field(default=None, repr=False)
    dns: tuple[str, ...] = ()
    mtu: int = 1420
    keepalive: int = 25


@dataclass(frozen=True)
class Vpn:
    """What this host does with its tunnel. `services` are the confined ones; `dns` are asked through the tunnel."""

    provider: str
    mode: Literal["host", "container"]
    killswitch: bool
    tunnel: Tunnel
    subnet: str
    dns: tuple[str, ...]
    forwarding: Literal["off", "nat-pmp"] | int
    services: tuple[str, ...]

    @property
    def listener(self) -> str:
        """Address of the container that peers reach at a forwarded port whose number never changes (mode host).

        The subnet's last: Docker gives addresses away from the first one on.
        """
        return str(ipaddress.ip_network(self.subnet)[-2])
