"""Stage vpn: the wall around the VPN's containers and the host's tunnel, in two halves.

The first half stands before the stage stack: no container is confined before the wall is there. The second one
comes after it and takes away what is switched off, once no container is left that would then be in the open.
Nothing of it can lock anybody out, so no guard is needed: every rule names the bridge, its subnet or the tunnel.
"""

from __future__ import annotations

import hashlib
import ipaddress
import posixpath
from collections.abc import Sequence

from pyinfra.api import deploy, operation

from facts.snapshot import Request, Snapshot
from mediahost.render import forwarding, wall
from mediahost.stack import PROJECT
from mediahost.vpn import BRIDGE, LINK, NETWORK, TABLE, Vpn
from mediahost.wanted import Wanted
from operations import apt, files, manifest, owed, units
from operations.convergence import Commands, Step, converge

_NETWORK = f"{PROJECT}_{NETWORK}"
_DISABLE_IPV6 = f"net.ipv6.conf.{BRIDGE}.disable_ipv6"
_NOTHING = hashlib.sha256(b"").hexdigest()

_LOAD = f"systemctl start {wall.WALL_UNIT}\nsystemctl reload {wall.WALL_UNIT}"
# Puts the present settings on the living interface: neither it nor the wall goes away.
_SETTLE = f"{wall.WATCH_PATH} settle"


def request(wanted: Wanted) -> Request:
    """What the snapshot must look at for this stage. Without a VPN that is where its files would be."""
    vpn = _walled(wanted)
    watched = Request(
        paths=frozenset((*wall.PATHS, *forwarding.PATHS)),
        packages=frozenset(forwarding.packages(wanted.vpn, wanted.stack)),
        units=frozenset((forwarding.UNIT,) if forwarding.runs(wanted.vpn, wanted.stack) else ()),
    )
    if vpn is None:
        return watched
    return watched | Request(
        packages=frozenset(wall.packages(vpn)),
        units=frozenset((wall.WALL_UNIT, wall.TUNNEL_UNIT)),
        sysctls=frozenset((_DISABLE_IPV6,)),
        # The tunnel in mode container as well: one of the other mode may be left.
        vpn=frozenset(("wall", "tunnel", "inside")),
    )


def _walled(wanted: Wanted) -> Vpn | None:
    return wanted.vpn if wanted.vpn is not None and wanted.vpn.killswitch else None


# --- before the stack


def file_steps(wanted: Wanted, seen: Snapshot) -> list[Step]:
    """Programs, then files. A unit is owed a restart from before the first byte that concerns it is written."""
    vpn = _walled(wanted)
    if vpn is None:
        return []
    written = [
        *files.steps(wall.wall_files(vpn, wanted.settings), seen, pending=wall.WALL_UNIT),
        *files.steps(wall.system_files(vpn), seen),
        *files.steps(wall.tunnel_files(vpn), seen, pending=wall.TUNNEL_UNIT),
    ]
    reading = units.reading_steps(written, "the VPN's units")
    return [*apt.install_steps(wall.packages(vpn), seen), *written, *reading]


def wall_steps(wanted: Wanted, seen: Snapshot) -> list[Step]:
    """The wall loaded, as it is on disk, and nothing of it changed by hand since."""
    vpn = _walled(wanted)
    if vpn is None:
        return []
    found = units.own_steps(wall.WALL_UNIT, wall.WALL_UNIT_PATH, seen, _LOAD, "at once, nothing passes meanwhile")
    if any(_LOAD in step.command for step in found):
        return found
    different = [Step(change) for change in wall_differences(wanted, vpn, seen)]
    return [*found, *different[:-1], *(Step(step.change, _LOAD) for step in different[-1:])]


def wall_differences(wanted: Wanted, vpn: Vpn, seen: Snapshot) -> list[str]:
    """What of the wall is not in the kernel, or in it by another hand, in words."""
    state = seen.vpn
    told = []
    for family in (4, 6):
        if family not in state.rules:
            continue  # a kernel without IPv6
        expected, present = wall.rules(vpn, family), state.rules[family]
        told += [f"IPv{family} rule {rule}: missing" for rule in expected if rule not in present]
        told += [f"IPv{family} rule {rule}: is not ours, is removed" for rule in present if rule not in expected]
        told += [
            f"IPv{family} rule {rule}: is there twice"
            for rule in sorted(set(present) & set(expected))
            if present.count(rule) > 1
        ]
        if not any(_is_end(route) for route in state.routes[family]):
            told.append(f"IPv{family} routing table {TABLE}: unreachable default at its end is missing")
        told += [
            f"IPv{family} routing table {TABLE}, route {route}: is not ours, is removed"
            for route in state.routes[family]
            if not (_is_end(route) or (wall.holds_tunnel(vpn) and family == 4 and _is_way(route)))
        ]
    loaded = next(file.sha256 for file in wall.wall_files(vpn, wanted.settings) if file.path == wall.RULESET_PATH)
    if len(state.recorded) != 2 or state.recorded[1] != state.listed:
        told.append(f"nftables table {wall.NFT_TABLE}: is not as it was loaded")
    elif state.recorded[0] != loaded:
        told.append(f"nftables table {wall.NFT_TABLE}: an older one is loaded")
    if seen.sysctls.get(_DISABLE_IPV6, "1") != "1":
        told.append(f"{BRIDGE}: has IPv6")
    return told


def _is_end(route: str) -> bool:
    return route.startswith("unreachable default ") and f" metric {wall.LAST}" in route


def _is_way(route: str) -> bool:
    return route.startswith(f"default dev {LINK} ") and route.split()[-1] == str(wall.FIRST)


def tunnel_steps(wanted: Wanted, seen: Snapshot) -> list[Step]:
    """The tunnel up with its settings, and the watch over it running."""
    vpn = _walled(wanted)
    if vpn is None:
        return []
    # What the service would do in a moment, so that this run sees how it ends.
    restart = f"systemctl restart {wall.TUNNEL_UNIT}\n{_SETTLE}"
    found = units.own_steps(wall.TUNNEL_UNIT, wall.TUNNEL_UNIT_PATH, seen, restart, "the tunnel stays up")
    if not wall.holds_tunnel(vpn) or any(restart in step.command for step in found):
        return found
    different = [Step(change) for change in tunnel_differences(vpn, seen)]
    return [*found, *different[:-1], *(Step(step.change, _SETTLE) for step in different[-1:])]


def tunnel_differences(vpn: Vpn, seen: Snapshot) -> list[str]:
    """How the living interface differs from the configuration, in words without a key."""
    state = seen.vpn
    if not state.link:
        return [f"{LINK}: is not there (confined services have no way out until it is)"]
    told = []
    flags = state.link[2].strip("<>").split(",") if len(state.link) > 2 else []
    if "UP" not in flags:
        told.append(f"{LINK}: is down")
    words = dict(zip(state.link[3::2], state.link[4::2], strict=False))
    if words.get("mtu") != str(vpn.tunnel.mtu):
        told.append(f"{LINK}: MTU is {words.get('mtu')}, wanted {vpn.tunnel.mtu}")
    if state.addresses != wall.addresses(vpn):
        told.append(
            f"{LINK}: addresses are {', '.join(state.addresses) or 'none'}, wanted {', '.join(wall.addresses(vpn))}"
        )
    if not any(_is_way(route) for route in state.routes.get(4, ())):
        told.append(f"IPv4 routing table {TABLE}: default dev {LINK} is missing")
    if " ".join(state.peer) != wall.peer(vpn):
        told.append(f"{LINK}: {_peer_difference(vpn, state.peer)}")
    return told


def _peer_difference(vpn: Vpn, present: Sequence[str]) -> str:
    if len(present) != 2 or len(present[1].split()) != 4:
        return f"has {max(len(present) - 1, 0)} peers, wanted one"
    ours, theirs, endpoint, allowed, keepalive = wall.peer(vpn).split()
    peer, at, may_send, every = present[1].split()
    if present[0] != ours:
        return "has another private key"
    if peer != theirs:
        return f"its peer is {peer}, wanted {theirs}"
    if at != endpoint:
        return f"its server is at {at}, wanted {endpoint}"
    return f"allowed addresses {may_send} and keepalive {every}, wanted {allowed} and {keepalive}"


# --- after the stack


def port_steps(wanted: Wanted, seen: Snapshot) -> list[Step]:
    """The unit that follows the forwarded port, or nothing of it."""
    if not forwarding.runs(wanted.vpn, wanted.stack):
        return units.removal_steps(forwarding.UNIT, forwarding.PATHS, seen)
    wanted_files = forwarding.files(wanted.vpn, wanted.settings, wanted.stack)
    return [
        *apt.install_steps(forwarding.packages(wanted.vpn, wanted.stack), seen),
        *files.steps(wanted_files, seen, pending=forwarding.UNIT),
    ]


def port_unit_steps(wanted: Wanted, seen: Snapshot) -> list[Step]:
    """That unit running with what is on disk."""
    if not forwarding.runs(wanted.vpn, wanted.stack):
        return []
    restart = f"systemctl restart {forwarding.UNIT}"
    return units.own_steps(forwarding.UNIT, forwarding.UNIT_PATH, seen, restart, "the forwarded port stays")


def off_steps(wanted: Wanted, seen: Snapshot) -> list[Step]:
    """Everything removed that is switched off.

    Refused by Docker itself while any container, ours or not, is in the network: it would be in the open.
    """
    vpn = _walled(wanted)
    if vpn is not None:
        return [] if wall.holds_tunnel(vpn) else _tunnel_off_steps(seen)
    left = [path for path in wall.PATHS if path in seen.paths]
    if not left:
        return []
    # Without the drop-in first, Docker would stop together with the wall's unit. The ruleset goes last: while it is
    # there, a run that died here goes on.
    command = f"""{_network_removed(wanted)}
rm -f {wall.DOCKER_PATH} {wall.NETWORKD_PATH}
{owed.RELOAD}
{units.stopped(wall.TUNNEL_UNIT)}
{units.stopped(wall.WALL_UNIT)}
ip link delete {LINK} 2>/dev/null || true
for family in -4 -6; do
  while ip $family rule show 2>/dev/null | grep -q 'iif {BRIDGE} '; do
    ip $family rule show | sed -n 's/^\\([0-9]*\\):.* iif {BRIDGE} .*/\\1/p' |
      while read -r priority; do ip $family rule del priority "$priority" iif {BRIDGE}; done
  done
  ip $family route flush table {TABLE} 2>/dev/null || true
done
nft delete table inet {wall.NFT_TABLE} 2>/dev/null || true
rm -rf {wall.RUN_DIRECTORY}
rm -f {" ".join(path for path in left if path != wall.RULESET_PATH)}
{owed.RELOAD}
{owed.clear(wall.WALL_UNIT)}
{owed.clear(wall.TUNNEL_UNIT)}
rm -f {wall.RULESET_PATH}
rmdir {posixpath.dirname(wall.RULESET_PATH)} 2>/dev/null || true"""
    return [Step("VPN: switched off, its tunnel and its wall are removed; the packages stay", command)]


def _network_removed(wanted: Wanted) -> str:
    """Shell that removes the tunnel's network, or fails: not where Gluetun goes on without the host's wall."""
    if wanted.vpn is not None:
        return ":"
    told = f"{_NETWORK} has containers of somebody else; take them out (docker network inspect {_NETWORK})"
    return f"""if command -v docker >/dev/null && docker network inspect {_NETWORK} >/dev/null 2>&1; then
  docker network rm {_NETWORK} >/dev/null || {{ echo "{told}; the VPN's wall stays until then" >&2; exit 1; }}
fi"""


def _tunnel_off_steps(seen: Snapshot) -> list[Step]:
    """Gluetun holds the tunnel now."""
    if not seen.vpn.link and wall.CONFIGURATION_PATH not in seen.paths:
        return []
    command = f"ip link delete {LINK} 2>/dev/null || true\nrm -f {wall.CONFIGURATION_PATH}"
    return [Step(f"{LINK}: the tunnel is Gluetun's now, the host's is removed", command)]


def inside_wall_steps(wanted: Wanted, seen: Snapshot) -> list[Step]:
    """The wall inside each confined container, as it was loaded. The watch loads it when a container starts."""
    vpn = _walled(wanted)
    if vpn is None:
        return []
    state = seen.vpn
    (ruleset,) = [file for file in wall.tunnel_files(vpn) if file.path == wall.INSIDE_PATH]
    on_disk = seen.paths.get(wall.INSIDE_PATH)
    told = []
    for container in seen.containers:
        # Who shares another's namespace is behind that one's wall.
        if container.state != "running" or _NETWORK not in container.networks or container.id not in state.inside:
            continue
        listed = state.inside_listed.get(container.id, _NOTHING)
        what = f"service {container.service}: the wall inside its network"
        if listed == _NOTHING:
            told.append(f"{what} is missing")
        elif len(state.inside_recorded) != 3 or state.inside_recorded[1] != listed:
            told.append(f"{what} is not as it was loaded")
        elif state.inside_recorded[0] != ruleset.sha256 and on_disk and on_disk.sha256 == ruleset.sha256:
            # Where the file is still to be written, the watch that it restarts loads it.
            told.append(f"{what} is an older one")
    return [*map(Step, told[:-1]), *(Step(change, _SETTLE) for change in told[-1:])]


def inside_steps(wanted: Wanted, seen: Snapshot) -> list[Step]:
    """Confined containers whose default route is not the tunnel's network. The wall inside drops that traffic."""
    vpn = _walled(wanted)
    if vpn is None:
        return []
    subnet = ipaddress.ip_network(vpn.subnet)
    found = []
    for container in seen.containers:
        if container.state != "running" or _NETWORK not in container.networks:
            continue
        for gateway, link in seen.vpn.inside.get(container.id, ()):
            # Without a gateway it is Gluetun's tunnel.
            tunnel = gateway == "0.0.0.0" and link.startswith(("tun", "wg"))  # noqa: S104 - a route
            if not tunnel and ipaddress.ip_address(gateway) not in subnet:
                told = f"service {container.service}: inside it the default route is {gateway} by {link}"
                mend = f"docker stop {container.id[:12]}, take it out of every other network, then run again"
                found.append(Step(told, refusal=f"{told}: it bypasses the tunnel. {mend}"))
    return found


def steps(wanted: Wanted, seen: Snapshot) -> list[Step]:
    """Everything this stage would still do."""
    return [
        *file_steps(wanted, seen),
        *wall_steps(wanted, seen),
        *tunnel_steps(wanted, seen),
        *inside_wall_steps(wanted, seen),
        *port_steps(wanted, seen),
        *port_unit_steps(wanted, seen),
        *off_steps(wanted, seen),
    ]


@operation()
def prepared(wanted: Wanted) -> Commands:
    """
    Programs and files of the wall and the tunnel.

    + wanted: the host as it should be
    """
    yield from converge(lambda seen: file_steps(wanted, seen))


@operation()
def walled(wanted: Wanted) -> Commands:
    """
    The wall in the kernel.

    + wanted: the host as it should be
    """
    yield from converge(lambda seen: wall_steps(wanted, seen))


@operation()
def tunnelled(wanted: Wanted) -> Commands:
    """
    The tunnel up, and watched over.

    + wanted: the host as it should be
    """
    yield from converge(lambda seen: tunnel_steps(wanted, seen))


@operation()
def inside(wanted: Wanted) -> Commands:
    """
    The wall inside each confined container.

    + wanted: the host as it should be
    """
    yield from converge(lambda seen: inside_wall_steps(wanted, seen))


@operation()
def port_prepared(wanted: Wanted) -> Commands:
    """
    What follows the forwarded port, on disk.

    + wanted: the host as it should be
    """
    yield from converge(lambda seen: port_steps(wanted, seen))


@operation()
def port_followed(wanted: Wanted) -> Commands:
    """
    The forwarded port, followed.

    + wanted: the host as it should be
    """
    yield from converge(lambda seen: port_unit_steps(wanted, seen))


@operation()
def removed(wanted: Wanted) -> Commands:
    """
    Nothing left of what is switched off.

    + wanted: the host as it should be
    """
    yield from converge(lambda seen: off_steps(wanted, seen))


@deploy("vpn")
def provision(wanted: Wanted) -> None:
    """The first half: the wall, then the tunnel. Before Docker starts a confined container."""
    if _walled(wanted) is None:
        return
    prepared(name="files", wanted=wanted)
    walled(name="wall", wanted=wanted)
    tunnelled(name="tunnel", wanted=wanted)


@deploy("vpn")
def finish(wanted: Wanted) -> None:
    """The second half: the wall inside the containers, the forwarded port, what is switched off taken away."""
    if _walled(wanted) is not None:
        inside(name="wall inside", wanted=wanted)
    port_prepared(name="forwarded port", wanted=wanted)
    port_followed(name="forwarded port followed", wanted=wanted)
    removed(name="what is switched off", wanted=wanted)
    manifest.pruned(name="manifest", owned=wanted.owned)
