"""The leak lab: a WireGuard server with an internet behind it, canaries from every confined container, and a judge.

The internet of the lab is two networks that exist nowhere else. The host under test has a plain route to them past
its tunnel, and they answer whoever asks: what leaks arrives, and both the capture outside the guest and the servers'
own record show it. Judged by the packets alone: any with an address of that internet, of the tunnel or of the
confined network, with the canaries' port or with their mark, that is on a wire at all, is a leak.
"""

from __future__ import annotations

import base64
import hashlib
import json
import shlex
import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from lab import network
from lab.machine import Machine
from lab.network import Packet
from mediahost.stack import vault_folder
from mediahost.vpn import SECRET
from tests.lab.home import Home
from tests.lab.waiting import reboot

MARKER = "mediahost-canary"
PORT = 47077
"""UDP and TCP echo. Nobody else uses it, so a packet of that port is a canary's, also one without a payload."""

INTERNET4, INTERNET6 = "198.51.100.0/24", "2001:db8:66::/64"
"""The lab's internet (addresses for documentation, RFC 5737 and 3849)."""
UDP4, TCP4, FLOW4, PING4 = "198.51.100.7", "198.51.100.8", "198.51.100.9", "198.51.100.10"
PEER4, WEB4, FOREIGN_DNS4 = "198.51.100.20", "198.51.100.21", "198.51.100.99"
UDP6 = "2001:db8:66::7"

# As Proton's: the name server is inside the tunnel and in a block that homes use, too.
TUNNEL = "10.2.0.0/24"
TUNNEL_HOST, TUNNEL_DNS = "10.2.0.2", "10.2.0.1"
WIREGUARD_PORT = 51820
OUTSIDE4 = "198.51.100.200"
"""What NAT-PMP says the outside address is."""

NEIGHBOUR4 = "10.77.0.240"
"""A neighbour at home, on the host's segment; no other test's machine has this address."""
SUBNET = "172.29.29.0/24"
CONFINED = ("prowlarr", "qbittorrent")

ECHOED = ("udp", "tcp", "flow", "icmp", "dns", "docker-dns")
"""Canaries that come back when the tunnel works. The others must never: IPv6, and the neighbour."""
RESUMES_WITHIN = 60
"""Seconds of the guest's own clock from the end of a fault, or from the container's new network, to every answer."""

PIECE = 256 * 1024
PIECES = 4096
"""A GiB of zeros at 64 KiB a second: the client is never done."""

_HERE = Path(__file__).parent
FORWARDED = "/run/leaklab/forwarded"
"""On the provider's machine: the port that it forwards, 40000 without the file."""
_DIRECTORY = "/opt/leaklab"
_STATE = "/run/leaklab"
_LIMIT = 900
"""Wall-clock seconds that a busy lab may take for what the guest does in seconds."""


# --- pure -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Keys:
    """Private and public keys of both ends, and the one they share, as wg(8) writes them."""

    host: str
    host_public: str
    provider: str
    provider_public: str
    shared: str


def new_keys() -> Keys:
    """Fresh ones."""
    host, provider = X25519PrivateKey.generate(), X25519PrivateKey.generate()
    shared = X25519PrivateKey.generate()
    return Keys(*_pair(host), *_pair(provider), _pair(shared)[0])


def _pair(key: X25519PrivateKey) -> tuple[str, str]:
    private = key.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())
    public = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    return base64.b64encode(private).decode(), base64.b64encode(public).decode()


def wireguard_file(keys: Keys, endpoint: str, port: int = WIREGUARD_PORT) -> str:
    """What the provider's site lets its customer download (wg-quick(8))."""
    return (
        f"[Interface]\nPrivateKey = {keys.host}\nAddress = {TUNNEL_HOST}/32\nDNS = {TUNNEL_DNS}\n\n"
        f"[Peer]\nPublicKey = {keys.provider_public}\nPresharedKey = {keys.shared}\n"
        f"AllowedIPs = 0.0.0.0/0, ::/0\nEndpoint = {endpoint}:{port}\nPersistentKeepalive = 25\n"
    )


def server_file(keys: Keys, port: int = WIREGUARD_PORT) -> str:
    """The provider's own side, for `wg setconf`."""
    return (
        f"[Interface]\nPrivateKey = {keys.provider}\nListenPort = {port}\n"
        f"[Peer]\nPublicKey = {keys.host_public}\nPresharedKey = {keys.shared}\nAllowedIPs = {TUNNEL_HOST}/32\n"
    )


def sender_configuration() -> dict[str, Any]:
    """What `canary_sender` sends from each confined container."""
    targets = [
        ("udp", "udp", UDP4, PORT),
        ("tcp", "tcp", TCP4, PORT),
        ("flow", "flow", FLOW4, PORT),
        ("icmp", "icmp", PING4, 0),
        ("dns", "dns", TUNNEL_DNS, 53),
        # Docker's own resolver, which may ask from the host instead of the container.
        ("docker-dns", "dns", "127.0.0.11", 53),
        ("foreign-dns", "dns", FOREIGN_DNS4, 53),
        ("udp6", "udp", UDP6, PORT),
        ("tcp6", "tcp", UDP6, PORT),
        ("neighbour-udp", "udp", NEIGHBOUR4, PORT),
        ("neighbour-tcp", "tcp", NEIGHBOUR4, PORT),
    ]
    return {
        "marker": MARKER,
        "subnet": SUBNET,
        "namespaces": "/run/docker/netns",
        "log": _STATE,
        "interval": 0.5,
        "targets": [
            {"kind": kind, "how": how, "address": address, "port": port} for kind, how, address, port in targets
        ],
    }


def internet_configuration() -> dict[str, Any]:
    """What `canary_servers` offers on the lab's internet."""
    return {
        "marker": MARKER,
        "port": PORT,
        "echo": [UDP4, TCP4, FLOW4, UDP6],
        "dns": [TUNNEL_DNS, FOREIGN_DNS4],
        "name4": UDP4,
        "name6": UDP6,
        "nat_pmp": [TUNNEL_DNS],
        "outside": OUTSIDE4,
        "forwarded": FORWARDED,
        "http": [WEB4],
        "peer": [PEER4, 6881],
        "pieces": PIECES,
        "seen": f"{_STATE}/internet.json",
    }


def neighbour_configuration() -> dict[str, Any]:
    """The neighbour at home answers whoever asks, too."""
    return {
        "marker": MARKER,
        "port": PORT,
        "echo": [NEIGHBOUR4],
        "http": [NEIGHBOUR4],
        "seen": f"{_STATE}/neighbour.json",
    }


def bencoded(value: Any) -> bytes:
    """A value in BitTorrent's encoding (BEP 3)."""
    if isinstance(value, int):
        return b"i%de" % value
    if isinstance(value, bytes | str):
        raw = value.encode() if isinstance(value, str) else value
        return b"%d:%s" % (len(raw), raw)
    if isinstance(value, dict):
        return b"d" + b"".join(bencoded(key) + bencoded(value[key]) for key in sorted(value)) + b"e"
    return b"l" + b"".join(map(bencoded, value)) + b"e"


def torrent() -> bytes:
    """A torrent of zeros, known to the lab's tracker."""
    digest = hashlib.sha1(bytes(PIECE), usedforsecurity=False).digest()
    info = {"length": PIECE * PIECES, "name": "zeros", "piece length": PIECE, "pieces": digest * PIECES}
    return bencoded({"announce": f"http://{WEB4}/announce", "info": info})


_WATCHED = tuple(ip_network(block) for block in (INTERNET4, INTERNET6, TUNNEL, SUBNET))


def is_leak(packet: Packet) -> bool:
    """Whether this frame, on a wire of the host, is one of a confined container in the open."""
    if PORT in (packet.source_port, packet.destination_port) or MARKER.encode() in packet.payload.lower():
        return True
    if _is_encrypted(packet):
        return False
    places = [ip_address(place) for place in (packet.source, packet.destination) if place]
    return any(place in block for place in places for block in _WATCHED if place.version == block.version)


def _is_encrypted(packet: Packet) -> bool:
    """Whether it is one of WireGuard's four messages, to or from its server.

    While Docker's tables are gone nobody translates addresses: the client's messages then have its own on them, and
    are as closed as before.
    """
    message = len(packet.payload) >= 16 and packet.payload[0] in (1, 2, 3, 4) and not any(packet.payload[1:4])
    return packet.protocol == 17 and message and WIREGUARD_PORT in (packet.source_port, packet.destination_port)


def leaks(captures: Iterable[Path]) -> list[str]:
    """Every leaked frame of the captures, in words."""
    found = []
    for capture in captures:
        told = [_words(capture.stem, packet) for packet in network.packets(capture) if is_leak(packet)]
        if not told and MARKER.encode() in capture.read_bytes().lower():
            told = [f"{capture.stem}: the canaries' mark in a frame of a kind that is not understood"]
        found += told
    return found


def _words(card: str, packet: Packet) -> str:
    protocol = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmp6"}.get(packet.protocol, str(packet.protocol))
    kind = ""
    place = packet.payload.lower().find(MARKER.encode())
    if place >= 0:
        kind = f" {packet.payload[place : place + 48]!r}"
    elif 53 in (packet.source_port, packet.destination_port):
        kind = f" {packet.payload[12:60]!r}"  # the name that is asked for, after the header
    source, destination = f"{packet.source}:{packet.source_port}", f"{packet.destination}:{packet.destination_port}"
    return f"{card}: {protocol} {source} > {destination}{kind}"


def kinds_of(leaked: Iterable[str]) -> set[str]:
    """Protocols among leaked frames: what a negative control must have shown."""
    found = set()
    for line in leaked:
        protocol, source, _, destination = line.split(" ")[1:5]
        dns = destination.endswith(":53") or source.endswith(":53")
        place = destination.rpartition(":")[0]
        found.add("dns" if dns else "neighbour" if place == NEIGHBOUR4 else protocol)
    return found


@dataclass(frozen=True)
class Answers:
    """One confined network: when its first canary was sent, and the first answer of each kind since a moment."""

    name: str
    began: float
    first: dict[str, float]


def read_answers(text: str) -> list[Answers]:
    """`text` has the lines of `Lab.answers`: file, seconds, kind; the first of a file is its first of all."""
    found: dict[str, Answers] = {}
    for line in text.splitlines():
        name, seconds, kind = line.split()
        if name not in found:
            found[name] = Answers(name, float(seconds), {})
        if kind == "since":
            continue
        found[name].first.setdefault(kind, float(seconds))
    return list(found.values())


def slowest(answers: Iterable[Answers], kinds: Iterable[str], since: float, networks: int) -> float | None:
    """Seconds until the last kind was answered in the last network; None while fewer than `networks` have them all.

    Counted from `since`, or from when the network came about, if that was later. What a container left behind when
    it was killed may still be looked at, and answers nothing.
    """
    wanted = set(kinds)
    whole = [each for each in answers if wanted <= each.first.keys()]
    if len(whole) < networks:
        return None
    return max(each.first[kind] - max(since, each.began) for each in whole for kind in wanted)


# --- on the machines ------------------------------------------------------------------------------------------

# Idempotent: run at boot, and between two trials to take back what a fault has done.
NETWORKS = r"""#!/bin/sh
set -eu
until card=$(ip -4 -o address show to {provider4} | cut -d' ' -f2) && [ -n "$card" ]; do sleep 0.2; done
sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv4.conf.all.rp_filter=0
ip link set "$card" promisc on
mkdir -p {state}

if ! ip netns exec internet true 2>/dev/null; then
    ip netns add internet
    ip link add to-internet type veth peer name eth0 netns internet
    ip address add 192.0.2.1/30 dev to-internet
    ip address add 2001:db8:65::1/64 dev to-internet nodad
    ip link set to-internet up
    for address in {internet4} {dns4}; do ip -n internet address add "$address/32" dev lo; done
    ip -n internet address add {internet6}/128 dev lo nodad
    ip -n internet address add 192.0.2.2/30 dev eth0
    ip -n internet address add 2001:db8:65::2/64 dev eth0 nodad
    ip -n internet link set lo up
    ip -n internet link set eth0 up
    ip -n internet route add default via 192.0.2.1
    ip -n internet -6 route add default via 2001:db8:65::1
fi
ip route replace {net4} via 192.0.2.2
ip route replace {dns4}/32 via 192.0.2.2
ip -6 route replace {net6} via 2001:db8:65::2
# What is meant for the tunnel goes nowhere else while that is down.
ip route replace blackhole {tunnel} metric 4000

if ! ip netns exec neighbour true 2>/dev/null; then
    ip netns add neighbour
    ip link add link "$card" name neighbour0 type macvlan mode bridge
    ip link set neighbour0 netns neighbour
    ip -n neighbour address add {neighbour4}/24 dev neighbour0
    ip -n neighbour link set lo up
    ip -n neighbour link set neighbour0 up
fi

# Out of the tunnel there is the internet and nothing else: the customer's own neighbours are not behind it.
ip route replace table 100 {net4} via 192.0.2.2
ip route replace table 100 {dns4}/32 via 192.0.2.2
ip route replace table 100 blackhole default
ip rule show | grep -q 'iif wg0' || ip rule add priority 100 iif wg0 lookup 100

nft delete table inet fault 2>/dev/null || true
ip link show wg0 >/dev/null 2>&1 || ip link add wg0 type wireguard
wg setconf wg0 {directory}/wg.conf
ip link set wg0 up
ip route replace {host}/32 dev wg0
"""

_NETWORKS_UNIT = """[Unit]
Description=Networks of the leak lab
After=systemd-networkd.service
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart={directory}/networks
[Install]
WantedBy=multi-user.target
"""

_SERVERS_UNIT = """[Unit]
Description=Leak lab: {name}
Requires=leaklab-networks.service
After=leaklab-networks.service
[Service]
ExecStart=/usr/sbin/ip netns exec {name} /usr/bin/python3 {directory}/canary_servers.py {directory}/{name}.json
Restart=always
RestartSec=1
[Install]
WantedBy=multi-user.target
"""

# Before the network and Docker at boot, and not stopped in order at the end: it tries in the windows of both.
_SENDER_UNIT = """[Unit]
Description=Leak lab: canaries from every confined container
DefaultDependencies=no
After=local-fs.target
Before=network-pre.target docker.service
[Service]
ExecStart=/usr/bin/python3 {directory}/canary_sender.py {directory}/sender.json
Restart=always
RestartSec=1
[Install]
WantedBy=sysinit.target
"""

# The way past the tunnel: to the lab's internet by the segment.
_ROUTES = """[Route]
Destination={net4}
Gateway={provider4}
[Route]
Destination={net6}
Gateway={provider6}
"""

FIRST_ANSWERS = (
    'FNR == 1 {{ print FILENAME, $1, "since" }} {{ key = FILENAME " " $2 }} '
    '$1 >= {since} && $2 != "sent" && !(key in seen) {{ seen[key] = 1; print FILENAME, $1, $2 }}'
)
"""An awk program for logs of the sender: when each began, and the first line of each kind since a moment."""


def equip_provider(machine: Machine) -> None:
    """Debian's packages that the provider's machine needs."""
    packages = "python3-minimal libpython3-stdlib wireguard-tools nftables iproute2 procps"
    machine.run(
        "sudo apt-get -qq update && "
        f"sudo DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends {packages}",
    )


@dataclass
class Lab:
    """The home server under test and its VPN provider. `mode` is the host's `vpn_mode`."""

    home: Home
    provider: Machine
    keep: Path
    """Directory for captures."""
    mode: str = "host"
    keys: Keys = field(default_factory=new_keys)
    captures: list[Path] = field(default_factory=list)
    first_run_leaks: dict[str, list[str]] = field(default_factory=dict)
    """By mode: what leaked while the host was confined for the first time."""
    broken: dict[str, str] = field(default_factory=dict)
    """By mode: the host could not be made; it would take minutes to fail anew."""
    torrent_told: dict[str, str] = field(default_factory=dict)
    """By mode: "" when qBittorrent took the torrent, else what it said."""

    @property
    def host(self) -> Machine:
        """The machine under test."""
        return self.home.machine

    @property
    def settings(self) -> dict[str, Any]:
        """What the owner writes into his inventory."""
        return {
            "vpn_provider": "custom",
            "vpn_mode": self.mode,
            "vpn_services": list(CONFINED),
            "vpn_subnet": SUBNET,
            # What the lab serves under the names of Docker's packages: Debian's engine, without gw_priority.
            "docker_version": "5:26.1.*",
        }

    @property
    def kinds(self) -> tuple[str, ...]:
        """The canaries that must be answered. Gluetun has a resolver of its own before Docker's."""
        return ECHOED if self.mode == "host" else tuple(kind for kind in ECHOED if kind != "docker-dns")

    @property
    def networks(self) -> int:
        """How many confined networks there are: one a service, or one they share."""
        return len(CONFINED) if self.mode == "host" else 1

    def root(self, script: str, check: bool = True) -> str:
        """Run shell commands on the host under test as root; what they print."""
        return self.host.run(["sudo", "sh", "-c", script], check=check).stdout

    def at_provider(self, script: str, check: bool = True) -> str:
        """The same on the provider's machine."""
        return self.provider.run(["sudo", "sh", "-c", script], check=check).stdout

    def lasts(self, seconds: float) -> None:
        """Until the guest's own clock has gone on: time in which something might leak."""
        self.host.run(f"sleep {seconds}")

    # -- setting up ---------------------------------------------------------------------------------------------

    def build_provider(self) -> None:
        """The provider's networks and servers, started now and at each boot."""
        places = {
            "provider4": self.provider.address4,
            "state": _STATE,
            "directory": _DIRECTORY,
            "internet4": " ".join((UDP4, TCP4, FLOW4, PING4, PEER4, WEB4, FOREIGN_DNS4)),
            "internet6": UDP6,
            "net4": INTERNET4,
            "net6": INTERNET6,
            "dns4": TUNNEL_DNS,
            "tunnel": TUNNEL,
            "neighbour4": NEIGHBOUR4,
            "host": TUNNEL_HOST,
        }
        write(self.provider, f"{_DIRECTORY}/networks", NETWORKS.format_map(places), "0755")
        write(self.provider, f"{_DIRECTORY}/wg.conf", server_file(self.keys), "0600")
        write(self.provider, f"{_DIRECTORY}/canary_servers.py", (_HERE / "canary_servers.py").read_text())
        write(self.provider, f"{_DIRECTORY}/internet.json", json.dumps(internet_configuration()))
        write(self.provider, f"{_DIRECTORY}/neighbour.json", json.dumps(neighbour_configuration()))
        units = {
            "leaklab-networks": _NETWORKS_UNIT.format(directory=_DIRECTORY),
            "leaklab-internet": _SERVERS_UNIT.format(directory=_DIRECTORY, name="internet"),
            "leaklab-neighbour": _SERVERS_UNIT.format(directory=_DIRECTORY, name="neighbour"),
        }
        for name, unit in units.items():
            write(self.provider, f"/etc/systemd/system/{name}.service", unit)
        self.at_provider(
            f"systemctl daemon-reload && systemctl -q enable {' '.join(units)} && systemctl restart {' '.join(units)}"
        )

    def settle_provider(self) -> None:
        """Take back what a fault did to the provider, and let it forget sessions of a host that was put back."""
        write(self.provider, f"{_DIRECTORY}/wg.conf", server_file(self.keys), "0600")
        # A control has leaked connections; their servers would go on sending to a host that knows of none.
        forget = "for net in internet neighbour; do ip netns exec $net ss -K -t state connected >/dev/null; done"
        self.at_provider(f"{forget}; ip link delete wg0 2>/dev/null; rm -f {FORWARDED}; exec {_DIRECTORY}/networks")

    def equip_host(self) -> None:
        """The sender of canaries and the way past the tunnel, on the host under test."""
        write(self.host, f"{_DIRECTORY}/canary_sender.py", (_HERE / "canary_sender.py").read_text())
        write(self.host, f"{_DIRECTORY}/sender.json", json.dumps(sender_configuration()))
        write(self.host, "/etc/systemd/system/leaklab-sender.service", _SENDER_UNIT.format(directory=_DIRECTORY))
        routes = _ROUTES.format(
            net4=INTERNET4, net6=INTERNET6, provider4=self.provider.address4, provider6=self.provider.address6
        )
        write(self.host, "/etc/systemd/network/20-segment.network.d/leaklab.conf", routes)
        self.root("command -v python3 >/dev/null || apt-get -qq install -y python3-minimal libpython3-stdlib")
        self.root("systemctl daemon-reload && systemctl -q enable leaklab-sender && systemctl restart leaklab-sender")
        self.root("networkctl reload")
        # The positive control of every leak: the host itself, which nothing confines, gets there and back.
        deadline = time.monotonic() + _LIMIT
        while self.seen_from_host() != self.host.address4:
            assert time.monotonic() < deadline, "the host has no way to the lab's internet past the tunnel"
            time.sleep(0.5)

    def seen_from_host(self) -> str:
        """The address that the lab's internet sees when the host itself asks; "" for none."""
        return self.host.run(f"curl -s -m 10 http://{WEB4}/", check=False).stdout.strip()

    def hand_over(self, port: int = WIREGUARD_PORT, endpoint: str = "") -> None:
        """Put the provider's file into the vault."""
        text = wireguard_file(self.keys, endpoint or self.provider.address4, port)
        name = f"{vault_folder(self.host.name)}/vpn/{SECRET}"
        self.home.mediahost("secrets", "set", name, check=True, typed=text)

    def torrent_client(self, call: str, *words: str) -> str:
        """What qBittorrent answers to `call` of its API, with further words for curl; after a login of its own."""
        name = f"{vault_folder(self.host.name)}/qbittorrent/password"
        password = self.home.mediahost("secrets", "get", name, check=True).stdout.removesuffix("\n")
        login = f'data-urlencode = "username=admin"\ndata-urlencode = "password={password}"\n'
        api, jar = "http://localhost:8080/api/v2", "/tmp/leaklab-cookies"
        curl = f"curl -sS -m 60 -b {jar} -c {jar}"
        answer = self.host.run(f"{curl} --config - {api}/auth/login", input=login, check=False)
        if answer.stdout.strip() != "Ok.":
            return f"login: {answer.stdout}{answer.stderr}"
        answer = self.host.run(f"{curl} {' '.join(words)} {api}/{call}; rm -f {jar}", check=False)
        return f"{answer.stdout}{answer.stderr}"

    def add_torrent(self) -> str:
        """Give qBittorrent something to do for hours; what went wrong, in words."""
        file = self.keep / "zeros.torrent"
        file.write_bytes(torrent())
        self.host.copy_in(file, "/tmp/zeros.torrent")
        # Plain TCP to the peer: the lab's speaks nothing else. Discovery stays on, it has more ways to leak.
        wishes = shlex.quote('json={"encryption": 2, "bittorrent_protocol": 1}')
        told = self.torrent_client("app/setPreferences", "--data-urlencode", wishes)
        answer = self.torrent_client("torrents/add", "-F", "torrents=@/tmp/zeros.torrent")
        self.host.run("rm -f /tmp/zeros.torrent")
        return "" if answer.strip() == "Ok." else f"{told} {answer}"

    # -- what happens ---------------------------------------------------------------------------------------------

    def uptime(self) -> float:
        """The clock of the sender's log: seconds since the guest's boot."""
        return float(self.host.run("cat /proc/uptime").stdout.split()[0])

    def answers(self, since: float = 0.0) -> list[Answers]:
        """What came back in each confined network since then; [] when there is none, or no login."""
        script = f"cd {_STATE} && awk {shlex.quote(FIRST_ANSWERS.format(since=since))} *.log 2>/dev/null"
        return read_answers(self.host.run(["sudo", "sh", "-c", script], check=False, connect_seconds=10).stdout)

    def resumes(self, since: float) -> float:
        """Wait until every confined network has its answers since then; how long the slowest took, in seconds."""
        deadline = time.monotonic() + _LIMIT
        while True:
            answers = self.answers(since)
            took = slowest(answers, self.kinds, since, self.networks)
            if took is not None:
                return took
            assert time.monotonic() < deadline, f"no traffic again: {answers}\n{self.described()}"
            time.sleep(1)

    def flows(self) -> None:
        """Wait until everything is answered now: nothing can be judged before."""
        self.resumes(self.uptime())

    def tried(self) -> int:
        """How many rounds of canaries were sent since the machine's start, containers that are gone included."""
        return int(self.root(f"cat {_STATE}/*.log {_STATE}/*.gone 2>/dev/null | grep -c ' sent'", check=False) or 0)

    def seen(self, who: str = "internet") -> dict[str, dict[str, int]]:
        """What the lab's internet, or the neighbour, was asked, by kind and source address."""
        told = self.at_provider(f"cat {_STATE}/{who}.json", check=False)
        found: dict[str, dict[str, int]] = json.loads(told or "{}")
        return found

    def described(self) -> str:
        """The state of the tunnel, for a message."""
        script = (
            "wg show all latest-handshakes | cut -f1,3; ip rule; ip route show table 51820; "
            "docker ps -a --format '{{.Names}} {{.Status}}'; "
            "journalctl -q --no-pager -n 25 -u 'mediahost-vpn*'"
        )
        return self.root(script, check=False)

    # -- judging --------------------------------------------------------------------------------------------------

    def watch(self) -> None:
        """Record both cards of the host from now on."""
        self.captures.clear()
        for card in (network.UPLINK, network.SEGMENT):
            self.host.start_capture(card)

    def power_cut(self) -> None:
        """Pull the plug and put it back; the recording goes on from the moment of power-on."""
        self.host.power_cut()
        self._collect()
        self.host.capture = True
        try:
            self.host.start()
        finally:
            self.host.capture = False
        self.host.wait_until_ready()
        self.home.write_inventory()  # a machine that starts anew may have another port

    def reboot(self) -> None:
        """Restart in order and wait until the machine is up."""
        reboot(self.host)

    def leaked(self) -> list[str]:
        """End the recording; every frame that leaked since `watch`, in words."""
        for card in (network.UPLINK, network.SEGMENT):
            self.host.stop_capture(card)
        self._collect()
        return leaks(self.captures)

    def _collect(self) -> None:
        for card in (network.UPLINK, network.SEGMENT):
            file = self.host.capture_file(card)
            if file.exists():
                kept = self.keep / f"{card}-{len(self.captures)}.pcap"
                shutil.move(file, kept)
                self.captures.append(kept)

    def arrived_outside(self, before: dict[str, dict[str, int]]) -> dict[str, dict[str, int]]:
        """What the internet was asked since `before` from anywhere but the tunnel: {} when nothing leaked."""
        found: dict[str, dict[str, int]] = {}
        for kind, sources in self.seen().items():
            for source, count in sources.items():
                if ip_address(source) not in ip_network(TUNNEL) and count > before.get(kind, {}).get(source, 0):
                    found.setdefault(kind, {})[source] = count
        return found


def write(machine: Machine, path: str, content: str, mode: str = "0644") -> None:
    """Write a file of root's, with its directory."""
    quoted = shlex.quote(path)
    script = f"umask 022; mkdir -p $(dirname {quoted}); cat >{quoted}.new; chmod {mode} {quoted}.new"
    machine.run(["sudo", "sh", "-c", f"{script}; mv {quoted}.new {quoted}"], input=content)
