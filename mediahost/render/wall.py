"""The wall around the VPN's containers, and the host's tunnel: routes, rules, scripts and units.

What leaves the bridge `br-vpn` has one way: into the tunnel (mode host), or to the VPN's server (mode container,
where Gluetun holds the tunnel). Two layers say so, each by itself: a routing table that ends in "unreachable", and
an nftables table of our own, which UFW, Docker and Fail2Ban do not know. Both are loaded before there is a network
and are never opened by a stop (docs/decisions/vpn-wall.md).

A second network that somebody gives a confined container by hand is another way out, with other addresses, which
neither layer knows. So there is a third wall inside each confined container's own network namespace.

Nothing here may concern traffic that is neither the bridge's, nor its subnet's, nor the tunnel's: SSH and the rest
of the host must work as if it were not there.
"""

from __future__ import annotations

import ipaddress
import shlex
from collections.abc import Iterable
from pathlib import Path

from mediahost import wireguard
from mediahost.config import Settings
from mediahost.render import forwarding
from mediahost.resources import MARK, File, text_file
from mediahost.vpn import BRIDGE, INSIDE_BRIDGE, LINK, TABLE, Vpn

NFT_TABLE = forwarding.TABLE
"""Of family inet, as the one inside."""
INSIDE_TABLE = "mediahost_inside"

WALL_UNIT = "mediahost-vpn-wall.service"
TUNNEL_UNIT = "mediahost-vpn.service"
PACKAGES = ("iproute2", "nftables")
TUNNEL_PACKAGES = ("wireguard-tools",)

_UNITS = "/etc/systemd/system"
WALL_UNIT_PATH = f"{_UNITS}/{WALL_UNIT}"
TUNNEL_UNIT_PATH = f"{_UNITS}/{TUNNEL_UNIT}"
DOCKER_PATH = f"{_UNITS}/docker.service.d/mediahost-vpn.conf"
NETWORKD_PATH = "/etc/systemd/networkd.conf.d/90-mediahost-vpn.conf"
SYSCTL_PATH = "/etc/sysctl.d/90-mediahost-vpn.conf"
RULESET_PATH = "/etc/mediahost/vpn/wall.nft"
INSIDE_PATH = "/etc/mediahost/vpn/inside.nft"
"""The ruleset for the confined containers' own namespaces; `nft -D internal=BLOCK` loads it."""
CONFIGURATION_PATH = "/etc/mediahost/vpn/wireguard.conf"
"""0600: holds the private key, as wg(8) reads it."""
WALL_PATH = "/usr/local/lib/mediahost/vpn-wall"
WATCH_PATH = "/usr/local/lib/mediahost/vpn-watch"
PATHS = (
    CONFIGURATION_PATH,
    DOCKER_PATH,
    NETWORKD_PATH,
    SYSCTL_PATH,
    TUNNEL_UNIT_PATH,
    WALL_UNIT_PATH,
    WATCH_PATH,
    WALL_PATH,
    INSIDE_PATH,
    RULESET_PATH,
)
"""Every path of this module, in the order in which they go: the last one stands for all that is left to do."""

RUN_DIRECTORY = "/run/mediahost-vpn"
RECORD_PATH = f"{RUN_DIRECTORY}/wall"
"""SHA-256 of the ruleset that was loaded, and of what `nft -st list table` said of it then."""
INSIDE_RECORD_PATH = f"{RUN_DIRECTORY}/inside"
"""The same of the wall inside, which is alike in all namespaces; then the internal network that it allows."""
NAMESPACES = "/run/docker/netns"
"""Where Docker has a file for each network namespace that it made."""

MARKED = 0x6D656469
"""Packet mark of answers to the home network. Without the table there is no mark, and they go into the tunnel.

Questions from there have it too, with SYSCTLS, for one purpose: the kernel looks whether it could route an answer
before it takes a question (rp_filter), by the same rules as it will route the answer.
"""
SYSCTLS = {"net.ipv4.conf.all.src_valid_mark": "1"}
"""That look goes by the mark (ip-sysctl). wg-quick(8) sets the same."""

# Priorities of the rules, and metrics of the two default routes.
_ANSWERS, _SERVER, _ALL = 98, 99, 100
FIRST, LAST = 10, 4294967295
_POLL = 10  # seconds; what the kernel does not tell of (nftables) is seen within it
COUNTERS = {
    "dropped_direct": "past the tunnel",
    "dropped_dns": "name servers that are not the VPN's",
    "dropped_ipv6": "IPv6",
    "dropped_host": "to this host itself",
    "dropped_inbound": "from outside to the confined containers",
    "dropped_astray": "with forged addresses, or with theirs by another way",
}
"""Named counters of dropped packets, and what each counts. A reload of the table sets them to zero."""

INSIDE_COUNTER = "dropped_inside"
"""Named counter of the table inside a container."""
_CLIENT_LINK = "tun0"
"""Gluetun's tunnel (its default; a user cannot change it)."""

_TEMPLATES = Path(__file__).resolve().parent.parent.parent / "templates" / "vpn"


def holds_tunnel(vpn: Vpn) -> bool:
    """Whether the host's kernel has the tunnel."""
    return vpn.mode == "host"


def packages(vpn: Vpn) -> tuple[str, ...]:
    """What the scripts call."""
    return (*PACKAGES, *TUNNEL_PACKAGES) if holds_tunnel(vpn) else PACKAGES


def rules(vpn: Vpn, family: int) -> tuple[str, ...]:
    """Policy routing rules of IP `family` 4 or 6: priority, then the rule as `ip rule show` prints it."""
    everything = f"{_ALL} from all iif {BRIDGE} lookup {TABLE}"
    if family == 6:
        return (everything,)
    answers = f"{_ANSWERS} from all fwmark {MARKED:#x} iif {BRIDGE} lookup main"
    # The bridge has no IPv6: Gluetun cannot reach such a server, and nothing leaves.
    if holds_tunnel(vpn) or not _is_ipv4(vpn.tunnel.endpoint):
        return answers, everything
    return answers, f"{_SERVER} from all to {vpn.tunnel.endpoint} iif {BRIDGE} lookup main", everything


def addresses(vpn: Vpn) -> tuple[str, ...]:
    """The tunnel's IPv4 addresses: nothing else goes into it.

    Each for itself: the provider's prefix would become a route of the host, and might be the home network's.
    """
    found = (address.partition("/")[0] for address in vpn.tunnel.addresses)
    return tuple(f"{address}/32" for address in found if _is_ipv4(address))


def peer(vpn: Vpn) -> str:
    """The tunnel as the snapshot reads it: our public key; the server's, its address, what it may send, keepalive."""
    tunnel = vpn.tunnel
    keepalive = str(tunnel.keepalive) if tunnel.keepalive else "off"
    return f"{wireguard.public_key(tunnel.private_key)} {tunnel.peer} {_endpoint(vpn)} 0.0.0.0/0 {keepalive}"


def ruleset(vpn: Vpn, settings: Settings) -> str:
    """The nftables file. Loading it replaces the table in one transaction.

    Interfaces are named, not numbered, so it loads before they exist. A drop is final whatever UFW and Docker
    accept after it (nft(8): an accept ends only its own base chain). No anonymous sets: `nft -t` hides what is in
    sets, and no rule may be hidden from the comparison.
    """
    lan = [block for block in settings.firewall_lan if ipaddress.ip_network(block).version == 4]
    chains = [
        _chain("arriving", "filter", "prerouting", "mangle", _arriving(vpn, lan)),
        # After dstnat, where it shows whom a question is for.
        _chain("asking", "filter", "prerouting", "dstnat + 10", _asking(vpn, lan)),
        _chain("forward", "filter", "forward", "filter - 10", _forward(vpn)),
        _chain("leaving", "", "", "", _leaving(vpn, lan)),
        _chain("entering", "", "", "", _entering(vpn, lan)),
        _chain("input", "filter", "input", "filter - 10", _input(vpn)),
        # Before srcnat, where addresses are still the containers' own.
        _chain("final", "filter", "postrouting", "filter + 10", _final(vpn, lan)),
        _chain("translated", "nat", "postrouting", "srcnat - 10", _masquerade(vpn)),
    ]
    if holds_tunnel(vpn):
        chains.append(_chain("names", "", "", "", _names(vpn)))
    declared = "".join(f'\tcounter {name} {{\n\t\tcomment "{what}"\n\t}}\n\n' for name, what in COUNTERS.items())
    if _forwards(vpn):
        declared += (
            f"\tmap {forwarding.MAP} {{\n\t\ttype inet_proto . inet_service : ipv4_addr . inet_service\n\t}}\n\n"
        )
        chains.append(_chain("forwarded_port", "nat", "prerouting", "dstnat - 10", _forwarded_port(vpn)))
    return _table(NFT_TABLE, declared + "\n".join(chains))


def inside_ruleset(vpn: Vpn) -> str:
    """The nftables file for the namespace of a confined container. Loading it replaces the table in one transaction.

    It goes by the sender: with the addresses of the tunnel's network a packet meets the host's wall whatever way it
    takes, on the internal network it stays, and every other address is one of a network that somebody added. The
    internal network's block is Docker's choice: `$internal` is given when it is loaded.
    """
    neighbours = "ip6 saddr fe80::/10 icmpv6 type nd-neighbor"
    found = [
        'oifname "lo" accept',
        f"ip saddr {vpn.subnet} accept",
        "ip saddr $internal ip daddr $internal accept",
        # What it asks and answers about neighbours is never forwarded by anybody (RFC 4861).
        *(f"{neighbours}-{kind} accept" for kind in ("solicit", "advert")),
    ]
    if not holds_tunnel(vpn):
        # What Gluetun puts into its own tunnel; the encrypted packets have the network's address.
        found.append(f'oifname "{_CLIENT_LINK}" meta nfproto ipv4 accept')
    found.append(f'counter name "{INSIDE_COUNTER}" drop')
    # Also what is only forwarded there. Before srcnat, as on the host.
    chain = _chain("leaving", "filter", "postrouting", "filter + 10", found)
    counter = f'\tcounter {INSIDE_COUNTER} {{\n\t\tcomment "by another network than the tunnel\'s"\n\t}}\n\n'
    return _table(INSIDE_TABLE, counter + chain)


def _table(name: str, body: str) -> str:
    """A file that makes the table, or replaces it."""
    return f"# {MARK}\ntable inet {name}\ndelete table inet {name}\ntable inet {name} {{\n{body}}}\n"


def _chain(name: str, kind: str, hook: str, priority: str, found: Iterable[str]) -> str:
    base = [f"type {kind} hook {hook} priority {priority}; policy accept;"] if kind else []
    lines = "".join(f"\t\t{line}\n" for line in (*base, *found))
    return f"\tchain {name} {{\n{lines}\t}}\n"


def _arriving(vpn: Vpn, lan: Iterable[str]) -> list[str]:
    """Before a packet of the bridge is routed.

    What it cannot have sent is dropped here: while there is no tunnel, the host would tell its forged sender, who is
    outside, that there is no way, and quote the packet. Answers to the home network are marked, so that they go the
    way the question came; nothing else may.
    """
    found = [
        f'iifname "{BRIDGE}" meta nfproto ipv6 counter name "dropped_ipv6" drop',
        f'iifname "{BRIDGE}" ip saddr != {vpn.subnet} counter name "dropped_astray" drop',
    ]
    answer = f'iifname "{BRIDGE}" ct direction reply ct state established,related'
    return [*found, *(f"{answer} ip daddr {block} meta mark set {MARKED:#x}" for block in lan)]


def _asking(vpn: Vpn, lan: Iterable[str]) -> list[str]:
    """Without the mark, the way back would be looked for in the tunnel, and in that of a client there is none."""
    question = f'ip daddr {vpn.subnet} iifname != "{BRIDGE}" ct status dnat'
    return [f"{question} ip saddr {block} meta mark set {MARKED:#x}" for block in lan]


def _forward(vpn: Vpn) -> list[str]:
    found = [f'iifname "{BRIDGE}" jump leaving', f'oifname "{BRIDGE}" jump entering']
    # Whoever is at the tunnel's other end sees the containers' forwarded port and nothing else of this host.
    return [*found, f'iifname "{LINK}" counter name "dropped_inbound" drop'] if holds_tunnel(vpn) else found


def _leaving(vpn: Vpn, lan: Iterable[str]) -> list[str]:
    found = [f'oifname "{BRIDGE}" accept']
    if holds_tunnel(vpn):
        found += [f'oifname "{LINK}" {protocol} dport {port} goto names' for protocol, port in _NAME_PORTS]
        found.append(f'oifname "{LINK}" accept')
    else:
        found += [f"{server} accept" for server in _to_server(vpn)]
    found += [f"ct direction reply ct state established,related ip daddr {block} accept" for block in lan]
    return [*found, 'counter name "dropped_direct" drop']


_NAME_PORTS = (("udp", 53), ("tcp", 53), ("udp", 853), ("tcp", 853))


def _names(vpn: Vpn) -> list[str]:
    servers = [f"ip daddr {server} accept" for server in vpn.dns if _is_ipv4(server)]
    return [*servers, 'counter name "dropped_dns" drop']


def _entering(vpn: Vpn, lan: Iterable[str]) -> list[str]:
    found = [f'iifname "{BRIDGE}" accept']
    if holds_tunnel(vpn):
        found.append(f'iifname "{LINK}" ct direction reply ct state established,related accept')
        if _forwards(vpn):
            # Only what chain forwarded_port let through has another destination by now.
            found.append(f'iifname "{LINK}" ct status dnat accept')
        # Addresses of the home network mean nothing when they come out of the tunnel.
        found.append(f'iifname "{LINK}" counter name "dropped_inbound" drop')
    else:
        found += [
            f"ip saddr {vpn.tunnel.endpoint} udp sport {vpn.tunnel.endpoint_port} ct direction reply accept"
            for _ in _to_server(vpn)
        ]
        found.append("ct direction reply ct state related accept")
    # Published ports; which of them the home network may reach is the firewall's business.
    found += [f"ip saddr {block} ct status dnat accept" for block in lan]
    return [*found, 'counter name "dropped_inbound" drop']


def _input(vpn: Vpn) -> list[str]:
    """The host asks the containers (docker-proxy, health checks) and the tunnel's gateway; neither asks the host."""
    found = [
        f'iifname "{BRIDGE}" ct state established,related accept',
        f'iifname "{BRIDGE}" counter name "dropped_host" drop',
    ]
    if holds_tunnel(vpn):
        found += [
            f'iifname "{LINK}" ct state established,related accept',
            f'iifname "{LINK}" counter name "dropped_inbound" drop',
        ]
    return found


def _final(vpn: Vpn, lan: Iterable[str]) -> list[str]:
    """Whatever bridge a packet came by, and whoever sent it: with these addresses it takes one of these ways."""
    mine = f"ip saddr {vpn.subnet}"
    found = [f'{mine} oifname "{BRIDGE}" accept', f'{mine} oifname "lo" accept']
    if holds_tunnel(vpn):
        found.append(f'{mine} oifname "{LINK}" accept')
    else:
        found += [f"{mine} {server} accept" for server in _to_server(vpn)]
    found += [f"{mine} ct direction reply ct state established,related ip daddr {block} accept" for block in lan]
    return [*found, f'{mine} counter name "dropped_astray" drop']


def _masquerade(vpn: Vpn) -> list[str]:
    """Docker does the same, until somebody flushes its rules."""
    if holds_tunnel(vpn):
        return [f'ip saddr {vpn.subnet} oifname "{LINK}" masquerade']
    return [f"ip saddr {vpn.subnet} {server} masquerade" for server in _to_server(vpn)]


def _forwarded_port(vpn: Vpn) -> list[str]:
    """New connections out of the tunnel reach the forwarded port or nothing.

    The map is filled by `mediahost-vpn-port.service`. A number that never changes leads to an address that never
    changes, and nobody needs to run for it.
    """
    found = [f'iifname "{LINK}" dnat ip to meta l4proto . th dport map @{forwarding.MAP}']
    if isinstance(vpn.forwarding, int):
        port = vpn.forwarding
        target = f"dnat ip to {vpn.listener}:{port}"
        found += [f'iifname "{LINK}" {protocol} dport {port} {target}' for protocol in ("tcp", "udp")]
    return [*found, f'iifname "{LINK}" counter name "dropped_inbound" drop']


def _forwards(vpn: Vpn) -> bool:
    return holds_tunnel(vpn) and vpn.forwarding != "off"


def _to_server(vpn: Vpn) -> tuple[str, ...]:
    """What matches packets to the VPN's server; empty where the bridge cannot reach it."""
    tunnel = vpn.tunnel
    if not _is_ipv4(tunnel.endpoint):
        return ()
    return (f"ip daddr {tunnel.endpoint} udp dport {tunnel.endpoint_port}",)


def _endpoint(vpn: Vpn) -> str:
    host = vpn.tunnel.endpoint
    return f"{host if _is_ipv4(host) else f'[{host}]'}:{vpn.tunnel.endpoint_port}"


def _is_ipv4(address: str) -> bool:
    return ipaddress.ip_address(address).version == 4


def files(vpn: Vpn | None, settings: Settings) -> tuple[File, ...]:
    """Every file of the wall and of the tunnel; empty without a VPN, or where the host's wall is switched off."""
    if vpn is None or not vpn.killswitch:
        return ()
    return (*wall_files(vpn, settings), *system_files(vpn), *tunnel_files(vpn))


def wall_files(vpn: Vpn, settings: Settings) -> tuple[File, ...]:
    """What `WALL_UNIT` loads."""
    return (
        File(RULESET_PATH, ruleset(vpn, settings).encode(), check="nft -c -f {}"),
        File(WALL_PATH, _script("/bin/sh", _wall_values(vpn), "wall.sh"), mode="0755", check="sh -n {}"),
        text_file(WALL_UNIT_PATH, *_WALL_UNIT),
    )


def system_files(vpn: Vpn) -> tuple[File, ...]:
    """What makes others leave the wall alone, and Docker wait for it."""
    sysctls = [f"-net/ipv6/conf/{BRIDGE}/disable_ipv6 = 1"]
    if holds_tunnel(vpn):
        sysctls.append(f"-net/ipv4/conf/{LINK}/rp_filter = 2")
    return (
        text_file(DOCKER_PATH, "[Unit]", f"Requires={WALL_UNIT}", f"After={WALL_UNIT}"),
        # Since 249 it removes rules and routes that it did not make, at each start (networkd.conf(5)).
        text_file(NETWORKD_PATH, "[Network]", "ManageForeignRoutingPolicyRules=no", "ManageForeignRoutes=no"),
        # udev sets these when the interface appears; the dash: it need not be there.
        text_file(SYSCTL_PATH, *sysctls),
    )


def tunnel_files(vpn: Vpn) -> tuple[File, ...]:
    """What `TUNNEL_UNIT` runs on. In mode container it only watches over the wall."""
    found = (
        File(INSIDE_PATH, inside_ruleset(vpn).encode(), check=f"nft -c -D internal={vpn.subnet} -f {{}}"),
        File(WATCH_PATH, _script("/bin/bash", _watch_values(vpn), "watch.sh"), mode="0755", check="bash -n {}"),
        text_file(TUNNEL_UNIT_PATH, *_TUNNEL_UNIT),
    )
    if not holds_tunnel(vpn):
        return found
    return (File(CONFIGURATION_PATH, configuration(vpn).encode(), mode="0600", secret=True), *found)


def configuration(vpn: Vpn) -> str:
    """The tunnel for `wg syncconf`. Only IPv4 goes through it: the bridge has nothing else."""
    tunnel = vpn.tunnel
    lines = [f"# {MARK}", "[Interface]", f"PrivateKey = {tunnel.private_key}", "", "[Peer]"]
    lines.append(f"PublicKey = {tunnel.peer}")
    if tunnel.preshared_key is not None:
        lines.append(f"PresharedKey = {tunnel.preshared_key}")
    lines += ["AllowedIPs = 0.0.0.0/0", f"Endpoint = {_endpoint(vpn)}", f"PersistentKeepalive = {tunnel.keepalive}"]
    return "\n".join(lines) + "\n"


def _wall_values(vpn: Vpn) -> dict[str, str | int]:
    return {
        "BRIDGE": BRIDGE,
        "LINK": LINK if holds_tunnel(vpn) else "",
        "TABLE": TABLE,
        "FIRST": FIRST,
        "LAST": LAST,
        "NFT_TABLE": NFT_TABLE,
        "MAP": forwarding.MAP if _forwards(vpn) else "",
        "RULESET": RULESET_PATH,
        "RECORD": RECORD_PATH,
        "RULES_4": "\n".join(rules(vpn, 4)),
        "RULES_6": "\n".join(rules(vpn, 6)),
    }


def _watch_values(vpn: Vpn) -> dict[str, str | int]:
    values: dict[str, str | int] = {
        "WALL": WALL_PATH,
        "LOCK": f"{RUN_DIRECTORY}/tunnel.lock",
        "POLL": _POLL,
        "BRIDGE": BRIDGE,
        "SUBNET": vpn.subnet,
        "INSIDE": INSIDE_PATH,
        "INSIDE_TABLE": INSIDE_TABLE,
        "INSIDE_RECORD": INSIDE_RECORD_PATH,
        "INSIDE_BRIDGE": INSIDE_BRIDGE,
        "NAMESPACES": NAMESPACES,
        "LINK": "",
    }
    if not holds_tunnel(vpn):
        return values
    return values | {
        "LINK": LINK,
        "TABLE": TABLE,
        "FIRST": FIRST,
        "CONFIGURATION": CONFIGURATION_PATH,
        "ADDRESSES": " ".join(addresses(vpn)),
        "MTU": vpn.tunnel.mtu,
        "PEER": vpn.tunnel.peer,
        "ENDPOINT": _endpoint(vpn),
    }


def _script(shell: str, values: dict[str, str | int], template: str) -> bytes:
    head = [f"#!{shell}", f"# {MARK}", *(f"{name}={shlex.quote(str(value))}" for name, value in values.items())]
    return ("\n".join(head) + "\n" + (_TEMPLATES / template).read_text()).encode()


# nftables.service flushes everything when it starts, so it comes before. No ExecStop: a stop must open nothing.
_WALL_UNIT = (
    "[Unit]",
    "Description=The wall around the VPN's containers",
    "DefaultDependencies=no",
    "Wants=network-pre.target",
    "Before=network-pre.target docker.service",
    "After=local-fs.target nftables.service",
    "",
    "[Service]",
    "Type=oneshot",
    "RemainAfterExit=yes",
    f"ExecStart={WALL_PATH} load",
    f"ExecReload={WALL_PATH} load",
    "",
    "[Install]",
    "WantedBy=multi-user.target",
)

# No ExecStop either: the interface stays, and the traffic in it.
_TUNNEL_UNIT = (
    "[Unit]",
    "Description=The VPN's tunnel, and the watch over its wall",
    f"Wants={WALL_UNIT}",
    f"After={WALL_UNIT} network.target",
    "StartLimitIntervalSec=0",
    "",
    "[Service]",
    "Type=simple",
    f"ExecStart={WATCH_PATH}",
    f"ExecReload={WATCH_PATH} settle",
    "Restart=always",
    "RestartSec=2",
    "",
    "[Install]",
    "WantedBy=multi-user.target",
)
