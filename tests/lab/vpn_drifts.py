"""What may be changed by hand about the wall and the tunnel while the watcher sleeps, and what the plan must name.

A change that the watcher would mend within seconds is seen by the plan as well: a host whose watcher hangs is mended
by the next run.
"""

from __future__ import annotations

from dataclasses import dataclass

from mediahost.render import wall
from mediahost.vpn import LINK, TABLE


@dataclass(frozen=True)
class Drift:
    """`breaks` runs as root on the host; each of `says` stands in a change of its own that the plan tells.

    Every change belongs to an operation of the VPN. `alone`: there are no further ones. `watched`: the watcher is
    left alone by the trial, because it is what drifts.
    """

    name: str
    breaks: str
    says: tuple[str, ...]
    alone: bool = True
    watched: bool = True
    sample: bool = False


_TABLE = f"inet {wall.NFT_TABLE}"
_PEER = f"$(wg show {LINK} peers)"

DRIFTS = (
    Drift(
        "the rule that sends the bridge into the tunnel",
        f"ip -4 rule del iif br-vpn lookup {TABLE}",
        (f"from all iif br-vpn lookup {TABLE}",),
        sample=True,
    ),
    Drift("the same rule for IPv6", f"ip -6 rule del iif br-vpn lookup {TABLE}", (f"lookup {TABLE}",)),
    Drift(
        "the rule for answers to the home network",
        "ip -4 rule del iif br-vpn lookup main",
        ("iif br-vpn lookup main",),
    ),
    Drift(
        "a rule added",
        "ip rule add priority 50 iif br-vpn lookup main",
        ("50 from all iif br-vpn lookup main",),
    ),
    Drift("the route into the tunnel", f"ip route del default dev {LINK} table {TABLE}", (f"default dev {LINK}",)),
    Drift(
        "the route to nowhere behind it",
        f"ip -4 route del unreachable default metric {wall.LAST} table {TABLE}",
        ("unreachable default",),
    ),
    Drift(
        "the same route of IPv6",
        f"ip -6 route del unreachable default metric {wall.LAST} table {TABLE}",
        ("unreachable default",),
    ),
    Drift("a route added", f"ip route add 198.51.100.0/24 dev lo table {TABLE}", ("198.51.100.0/24",)),
    Drift("the table of rules", f"nft delete table {_TABLE}", (wall.NFT_TABLE,)),
    Drift("a chain emptied", f"nft flush chain {_TABLE} leaving", (wall.NFT_TABLE,), sample=True),
    Drift("a rule of nftables added", f"nft insert rule {_TABLE} leaving accept", (wall.NFT_TABLE,)),
    Drift("the interface", f"ip link delete {LINK}", (LINK,), alone=False),
    Drift("the interface down", f"ip link set {LINK} down", (LINK,), alone=False),
    Drift("the tunnel's address", f"ip address flush dev {LINK}", (LINK,), alone=False),
    Drift("the tunnel's packet size", f"ip link set {LINK} mtu 1300", ("1300",)),
    Drift("the peer", f'wg set {LINK} peer "{_PEER}" remove', (LINK,)),
    Drift("the peer's address", f'wg set {LINK} peer "{_PEER}" endpoint 10.77.0.9:51820', (LINK,)),
    Drift("what the peer may send", f'wg set {LINK} peer "{_PEER}" allowed-ips 198.51.100.0/25', (LINK,)),
    Drift(
        "the watcher stopped", f"systemctl stop {wall.TUNNEL_UNIT}", (f"{wall.TUNNEL_UNIT}: inactive",), watched=False
    ),
    Drift(
        "the watcher disabled",
        f"systemctl -q disable {wall.TUNNEL_UNIT}",
        (f"{wall.TUNNEL_UNIT}: not enabled",),
    ),
    Drift("the wall disabled", f"systemctl -q disable {wall.WALL_UNIT}", (f"{wall.WALL_UNIT}: not enabled",)),
    *(Drift(f"{path} deleted", f"rm {path}", (f"{path}: missing",), alone=False) for path in wall.PATHS),
    *(
        Drift(f"{path} edited", f"echo '#' >>{path}", (f"{path}: content differs",), alone=False)
        for path in wall.PATHS
    ),
)
