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
    """`breaks` runs as root on the host; each of `says` begins a change that the plan tells, in this order.

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
_NOT_AS_LOADED = f"vpn | wall: nftables table {wall.NFT_TABLE}: is not as it was loaded"
_NO_WAY = f"vpn | tunnel: IPv4 routing table {TABLE}: default dev {LINK} is missing"
_PEER = f"$(wg show {LINK} peers)"

# What it authenticates may move a peer's address back: with another preshared key nothing is authentic.
_PEER_ELSEWHERE = (
    f"peer={_PEER}; wg set {LINK} peer $peer remove; "
    f"wg set {LINK} peer $peer endpoint 10.77.0.9:51820 allowed-ips 0.0.0.0/0 persistent-keepalive 25"
)

_INSIDE_GONE = (
    f"for name in {wall.NAMESPACES}/*; do nsenter --net=$name nft delete table inet {wall.INSIDE_TABLE} || true; done"
)

DRIFTS = (
    Drift(
        "the rule that sends the bridge into the tunnel",
        "ip -4 rule del priority 100",
        (f"vpn | wall: IPv4 rule 100 from all iif br-vpn lookup {TABLE}: missing",),
        sample=True,
    ),
    Drift(
        "the same rule for IPv6",
        "ip -6 rule del priority 100",
        (f"vpn | wall: IPv6 rule 100 from all iif br-vpn lookup {TABLE}: missing",),
    ),
    Drift(
        "the rule for answers to the home network",
        "ip -4 rule del priority 98",
        ("vpn | wall: IPv4 rule 98 from all fwmark",),
    ),
    Drift(
        "a rule added",
        "ip rule add priority 50 iif br-vpn lookup main",
        ("vpn | wall: IPv4 rule 50 from all iif br-vpn lookup main: is not ours, is removed",),
    ),
    Drift(
        "the route into the tunnel",
        f"ip route del default dev {LINK} table {TABLE}",
        (_NO_WAY,),
    ),
    Drift(
        "the route to nowhere behind it",
        f"ip -4 route del unreachable default metric {wall.LAST} table {TABLE}",
        (f"vpn | wall: IPv4 routing table {TABLE}: unreachable default at its end is missing",),
    ),
    Drift(
        "the same route of IPv6",
        f"ip -6 route del unreachable default metric {wall.LAST} table {TABLE}",
        (f"vpn | wall: IPv6 routing table {TABLE}: unreachable default at its end is missing",),
    ),
    Drift(
        "a route added",
        f"ip route add 198.51.100.0/24 dev lo table {TABLE}",
        (f"vpn | wall: IPv4 routing table {TABLE}, route 198.51.100.0/24 dev lo",),
    ),
    Drift("the table of rules", f"nft delete table {_TABLE}", (_NOT_AS_LOADED,)),
    Drift("a chain emptied", f"nft flush chain {_TABLE} leaving", (_NOT_AS_LOADED,)),
    Drift("a rule of nftables added", f"nft insert rule {_TABLE} leaving accept", (_NOT_AS_LOADED,)),
    Drift(
        "the wall inside the containers",
        _INSIDE_GONE,
        ("vpn | wall inside: service ",),
        alone=False,
    ),
    Drift("the interface", f"ip link delete {LINK}", (f"vpn | tunnel: {LINK}: is not there",)),
    Drift(
        "the interface down",
        f"ip link set {LINK} down",
        (f"vpn | tunnel: {LINK}: is down", _NO_WAY),
    ),
    Drift(
        "the tunnel's address",
        f"ip address flush dev {LINK}",
        (f"vpn | tunnel: {LINK}: addresses are none, wanted",),
        alone=False,
    ),
    Drift(
        "the tunnel's packet size", f"ip link set {LINK} mtu 1300", (f"vpn | tunnel: {LINK}: MTU is 1300, wanted",)
    ),
    Drift("the peer", f'wg set {LINK} peer "{_PEER}" remove', (f"vpn | tunnel: {LINK}: has 0 peers, wanted one",)),
    Drift(
        "the peer's address", _PEER_ELSEWHERE, (f"vpn | tunnel: {LINK}: its server is at 10.77.0.9:51820, wanted",)
    ),
    Drift(
        "what the peer may send",
        f'wg set {LINK} peer "{_PEER}" allowed-ips 198.51.100.0/25',
        (f"vpn | tunnel: {LINK}: allowed addresses 198.51.100.0/25",),
    ),
    Drift(
        "the watcher stopped",
        f"systemctl stop {wall.TUNNEL_UNIT}",
        (f"vpn | tunnel: {wall.TUNNEL_UNIT}: inactive",),
        watched=False,
    ),
    Drift(
        "the watcher disabled",
        f"systemctl -q disable {wall.TUNNEL_UNIT}",
        (f"vpn | tunnel: {wall.TUNNEL_UNIT}: not enabled",),
    ),
    Drift(
        "the wall disabled",
        f"systemctl -q disable {wall.WALL_UNIT}",
        (f"vpn | wall: {wall.WALL_UNIT}: not enabled",),
    ),
    *(Drift(f"{path} deleted", f"rm {path}", (f"vpn | files: {path}: missing",), alone=False) for path in wall.PATHS),
    *(
        Drift(f"{path} edited", f"echo >>{path}", (f"vpn | files: {path}: content differs",), alone=False)
        for path in wall.PATHS
    ),
)
