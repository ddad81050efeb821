"""What `mediahost vpn leak-test` runs on a host: tries to get packets out of confined containers around the tunnel.

Each probe carries a mark of its own and is sent from inside a container's network namespace with root's rights,
which the container has not. Every packet that leaves the host by another interface than the tunnel is looked at; a
mark in one is a leak, whether anybody answers or not. A probe counts as stopped only when the same one, sent from
the host itself, was seen to leave (or has no way out there either): else nothing was proven.

Like `vpn_on_host`, which is sent along: root, the standard library of Python 3.10, JSON in and out.
"""

from __future__ import annotations

import ctypes
import errno
import ipaddress
import json
import os
import random
import select
import signal
import socket
import string
import struct
import sys
import time
import urllib.parse
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mediahost.vpn_on_host import (
    Namespace,
    RefusedError,
    confined,
    docker,
    flags,
    inside,
    is_address,
    nameservers,
    query,
    run,
    tunnel_holder,
)

# linux/if_ether.h, linux/if_packet.h, asm-generic/socket.h, linux/if_arp.h: not all in Python's socket module.
_ETH_P_ALL = 3
_OUTGOING = 4
_SOL_PACKET, _PACKET_STATISTICS = 263, 6
_SO_ATTACH_FILTER, _SO_RCVBUFFORCE = 26, 33
_ARPHRD_NONE = 65534
# Every probe is smaller; a busy tunnel's packets are not, and need not be read.
_LONGEST = 300

# Half of it for the kernel to find a neighbour and send, half for others to ask on.
_SECONDS = 1.2
_TUNNEL_BACK_SECONDS = 60
# Beyond any honest run: then the guardian brings the tunnel back whatever this process does.
_GUARDIAN_SECONDS = 120

LEAK, SAFE, UNJUDGED, NOTHING = "leak", "safe", "not judged", "no way out"


@dataclass(frozen=True)
class Probe:
    """One attempt. `kind` is tcp, udp, icmp, dns or frame (a packet put on the wire past the container's own
    routing, with a sender that is not its own); `link` binds it to an interface.

    `mark` stands in its data; a TCP connection has none before it is answered, there the port is the mark.
    """

    kind: str
    to: str
    port: int
    mark: str
    link: str = ""

    @property
    def version(self) -> int:
        return ipaddress.ip_address(self.to).version

    @property
    def control(self) -> tuple[str, str]:
        """What has to be shown to work from the host itself."""
        return ("udp" if self.kind == "frame" else self.kind, self.to)

    def told(self) -> str:
        """In words."""
        names = {"tcp": "TCP", "udp": "UDP", "icmp": "ping", "dns": "DNS question", "frame": "forged frame"}
        return f"{names[self.kind]} to {self.to}{f' by {self.link}' if self.link else ''}"


def probe(kind: str, to: str, link: str = "") -> Probe:
    """A probe with a mark that nothing else on this host uses."""
    mark = "mh" + "".join(random.choices(string.ascii_lowercase + string.digits, k=18))  # noqa: S311
    port = 53 if kind == "dns" else random.randint(20000, 59999)  # noqa: S311
    return Probe(kind, to, port, mark, link)


# --- what to try ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Surroundings:
    """What there is to leak to: this host's own addresses, its name servers and routers, and the internet."""

    own: tuple[str, ...]
    near: tuple[str, ...]
    far: tuple[str, ...]


def surroundings(request: dict[str, Any]) -> Surroundings:
    """Read from the host's own namespace."""
    bridges = {request["bridge"], request["link"]}
    own, near = [], list(request["near"])
    for link in json.loads(run("ip", "-j", "addr", "show") or "[]"):
        name = link["ifname"]
        if name == "lo" or name.startswith("veth") or name == request["link"]:
            continue
        for entry in link.get("addr_info", ()):
            if entry.get("scope") == "global" and (entry["family"] == "inet" or name not in bridges):
                own.append(entry["local"])
    for family in ("-4", "-6"):
        for route in json.loads(run("ip", "-j", family, "route", "show", "default") or "[]"):
            gateway = route.get("gateway")
            # A link-local one would need its interface, which is the host's.
            if gateway and not ipaddress.ip_address(gateway).is_link_local:
                near.append(gateway)
    for path in ("/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"):
        near += [server for server in nameservers(path) if not ipaddress.ip_address(server).is_loopback]
    return Surroundings(
        tuple(dict.fromkeys(own)),
        tuple(address for address in dict.fromkeys(near) if address not in own),
        tuple(each for each in request["far"] if is_address(each)),
    )


def plan(links: Sequence[str], around: Surroundings) -> list[Probe]:
    """Every probe for one namespace. `links` are its interfaces, loopback left out."""
    found = []
    for to in around.far:
        for link in ("", *links):
            found += [probe(kind, to, link) for kind in ("tcp", "udp", "icmp")]
        found += [probe("dns", to), *(probe("frame", to, link) for link in links)]
    for to in around.near:
        found += [probe(kind, to) for kind in ("tcp", "udp", "icmp", "dns")]
        found += [probe("udp", to, link) for link in links]
    return found


# --- sending -------------------------------------------------------------------------------------------------


def send(probes: Sequence[Probe], bridges: dict[str, str]) -> dict[str, str]:
    """Send all, in the namespace this process is in; mark to what the kernel said: "sent", or why not.

    `bridges` maps an interface to the hardware address at its other end, for frames.
    """
    told = {}
    opened: list[socket.socket] = []
    for each in probes:
        try:
            if each.kind == "frame":
                _send_frame(each, bridges[each.link])
            else:
                opened.append(_send(each))
            told[each.mark] = "sent"
        except KeyError:
            told[each.mark] = "skipped"
        except OSError as error:
            told[each.mark] = errno.errorcode.get(error.errno or 0, "error")
    if any(each.kind == "tcp" for each in probes):
        # Closing a socket would withdraw a connection that has not been sent yet.
        time.sleep(_SECONDS / 2)
    for open_one in opened:
        open_one.close()
    return told


def _send(each: Probe) -> socket.socket:
    family = socket.AF_INET if each.version == 4 else socket.AF_INET6
    if each.kind == "icmp":
        protocol = socket.IPPROTO_ICMP if each.version == 4 else socket.IPPROTO_ICMPV6
        made = socket.socket(family, socket.SOCK_RAW, protocol)
    else:
        made = socket.socket(family, socket.SOCK_STREAM if each.kind == "tcp" else socket.SOCK_DGRAM)
    try:
        made.setblocking(False)
        if each.link:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, each.link.encode())
        if each.kind == "tcp":
            code = made.connect_ex((each.to, each.port))
            if code not in (0, errno.EINPROGRESS):
                raise OSError(code, os.strerror(code))
        else:
            made.sendto(payload(each), (each.to, 0 if each.kind == "icmp" else each.port))
    except OSError:
        made.close()
        raise
    return made


def payload(each: Probe) -> bytes:
    """What a datagram carries."""
    if each.kind == "dns":
        return query(f"{each.mark}.example.com", random.randint(0, 65535))  # noqa: S311
    if each.kind == "icmp":
        # Echo request: the kernel fills the checksum in for IPv6 only.
        head = struct.pack(">BBHHH", 8 if each.version == 4 else 128, 0, 0, os.getpid() & 0xFFFF, 1)
        body = each.mark.encode()
        total = _checksum(head + body) if each.version == 4 else 0
        return head[:2] + struct.pack(">H", total) + head[4:] + body
    return each.mark.encode()


def _send_frame(each: Probe, hardware: str) -> None:
    """A packet from an address that is not the container's, so that rules that go by the sender are tried too."""
    data = each.mark.encode()
    udp = struct.pack(">HHHH", 40000, each.port, 8 + len(data), 0) + data
    to = ipaddress.ip_address(each.to)
    if each.version == 4:
        sender = ipaddress.ip_address("192.0.2.77")
        head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0) + sender.packed + to.packed
        packet = head[:10] + struct.pack(">H", _checksum(head)) + head[12:] + udp
    else:
        sender = ipaddress.ip_address("2001:db8::77")
        pseudo = sender.packed + to.packed + struct.pack(">II", len(udp), 17)
        udp = udp[:6] + struct.pack(">H", _checksum(pseudo + udp) or 0xFFFF) + udp[8:]
        packet = struct.pack(">IHBB", 6 << 28, len(udp), 17, 64) + sender.packed + to.packed + udp
    kind = 0x0800 if each.version == 4 else 0x86DD
    with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(kind)) as made:
        made.sendto(packet, (each.link, kind, 0, 0, bytes.fromhex(hardware.replace(":", ""))))


def _checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data[: len(data) & ~1]))
    total += data[-1] << 8 if len(data) & 1 else 0
    total = (total & 0xFFFF) + (total >> 16)
    return 0xFFFF & ~((total & 0xFFFF) + (total >> 16))


# --- looking -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sight:
    """A packet that was seen: on which interface, whether it was leaving, whether a tunnel's (no hardware)."""

    link: str
    leaving: bool
    tunnel: bool
    content: bytes


class Watch:
    """Everything short that passes the interfaces of one namespace, from now on."""

    def __init__(self) -> None:
        """Raises `OSError` without the right to look."""
        # Of every interface from the start: Python binds such a socket to one interface only.
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ETH_P_ALL))
        _attach(self._socket)
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 32 << 20)
        self._socket.setblocking(False)
        self.fileno = self._socket.fileno
        self.missed = 0

    def seen(self) -> list[Sight]:
        """What has passed since the last call."""
        found = []
        while True:
            try:
                content, (link, _, direction, hardware, _) = self._socket.recvfrom(2048)
            except BlockingIOError:
                break
            found.append(Sight(link, direction == _OUTGOING, hardware == _ARPHRD_NONE, content))
        statistics = self._socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8)
        self.missed += struct.unpack("II", statistics)[1]
        return found


def _attach(watching: socket.socket) -> None:
    """A filter in the kernel (classic BPF): what is longer than any probe never reaches us."""
    # ld len; jgt #_LONGEST, drop; ret all; drop: ret 0
    code = [(0x80, 0, 0, 0), (0x25, 1, 0, _LONGEST), (0x06, 0, 0, 0xFFFF), (0x06, 0, 0, 0)]
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in code))
    watching.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HL", len(code), ctypes.addressof(program)))


def carries(content: bytes, each: Probe) -> bool:
    """Whether a packet (from its IP header on) is this probe."""
    if each.kind != "tcp":
        # A resolver on the way may change the case of a name.
        return each.mark.encode() in content.lower()
    if len(content) < 40 or content[0] >> 4 != each.version:
        return False
    to = ipaddress.ip_address(each.to).packed
    if each.version == 6:
        return content[6] == 6 and content[24:40] == to and content[42:44] == each.port.to_bytes(2, "big")
    start = (content[0] & 15) * 4
    return content[9] == 6 and content[16:20] == to and content[start + 2 : start + 4] == each.port.to_bytes(2, "big")


def _is_error(content: bytes) -> bool:
    """Whether a packet is an ICMP error, which quotes what it is about."""
    if len(content) < 48:
        return False
    if content[0] >> 4 == 4:
        return content[9] == 1 and content[(content[0] & 15) * 4] in (3, 5, 11)
    return content[6] == 58 and content[40] < 128


def outside(sight: Sight, harmless: frozenset[str]) -> bool:
    """Whether a packet is on its way out of the host other than by the tunnel.

    The host's own loopback counts: there a container's question is handed to the host's resolver.
    """
    return sight.leaving and sight.link not in harmless and not sight.link.startswith("veth")


# --- the tunnel taken down -----------------------------------------------------------------------------------


class Guardian:
    """A process that brings the tunnel back: when it is told, when we die, and at the latest after two minutes.

    Who watches over the tunnel (control group `group`) is frozen meanwhile, or it would mend what is tried.
    """

    def __init__(self, prefix: Sequence[str], link: str, group: str) -> None:
        self._prefix = tuple(prefix)
        self._link = link
        self._routes = [*self._kept_routes("-4"), *self._kept_routes("-6")]
        self._addresses = self._kept_addresses()
        # Never our own: nobody would be left to thaw it.
        others = group not in ("", "/") and not f"{_group('self')}/".startswith(f"{group}/")
        freezer = Path(f"/sys/fs/cgroup{group}/cgroup.freeze") if others else None
        self._freezer = freezer if freezer is not None and freezer.exists() else None
        self._reading, self._telling = os.pipe()
        self._child = os.fork()
        if self._child == 0:
            self._guard()
        os.close(self._reading)

    def take_down(self) -> bool:
        """Whether it is down now."""
        if self._freezer is not None:
            self._freezer.write_text("1")
        return run(*self._prefix, "ip", "link", "set", "dev", self._link, "down") is not None

    def bring_back(self) -> None:
        """Returns when it has been done."""
        os.close(self._telling)
        os.waitpid(self._child, 0)

    def _guard(self) -> None:
        try:
            os.close(self._telling)
            # Neither the end of the login nor of our parent ends it.
            os.setsid()
            for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGPIPE):
                signal.signal(number, signal.SIG_IGN)
            select.select([self._reading], [], [], _GUARDIAN_SECONDS)
            self._restore()
        finally:
            os._exit(0)

    def _restore(self) -> None:
        run(*self._prefix, "ip", "link", "set", "dev", self._link, "up")
        for address in self._addresses:
            run(*self._prefix, "ip", "-6", "addr", "replace", address, "dev", self._link)
        for family, words in self._routes:
            # The kernel drops routes with the link, and does not bring them back.
            run(*self._prefix, "ip", family, "route", "replace", *words)
        if self._freezer is not None:
            self._freezer.write_text("0")

    def _kept_routes(self, family: str) -> list[tuple[str, list[str]]]:
        text = run(*self._prefix, "ip", family, "route", "show", "table", "all", "dev", self._link) or ""
        kept = []
        for line in text.splitlines():
            words = line.split()
            if not words or words[0] in ("local", "broadcast", "multicast", "anycast") or "kernel" in words:
                continue
            words = [word for word in words if word not in ("linkdown", "dead")]
            if "pref" in words:
                at = words.index("pref")
                del words[at : at + 2]
            at = words.index("table") if "table" in words else len(words)
            kept.append((family, [*words[:at], "dev", self._link, *words[at:]]))
        return kept

    def _kept_addresses(self) -> list[str]:
        found = json.loads(
            run(*self._prefix, "ip", "-j", "-6", "addr", "show", "dev", self._link, "scope", "global") or "[]"
        )
        entries = [entry for each in found for entry in each.get("addr_info", ())]
        return [f"{entry['local']}/{entry['prefixlen']}" for entry in entries if "local" in entry]


# --- the test ------------------------------------------------------------------------------------------------


class LeakTest:
    """All probes of all namespaces, once with the tunnel up and, with consent, once while it is down."""

    def __init__(self, request: dict[str, Any]) -> None:
        self.request = request
        self.namespaces = confined(request)
        if not self.namespaces:
            raise RefusedError(f"no container is in the network {request['network']}: there is nothing to try")
        self.around = surroundings(request)
        self.rows: list[dict[str, str]] = []
        self.problems: list[str] = []
        self.watches = [Watch()]
        self.harmless = self._harmless()
        self.bridges = self._bridges()

    def answer(self) -> dict[str, Any]:
        """Rows (container, phase, probe, verdict, why), what went wrong, and how many probes there were."""
        running = {name for namespace in self.namespaces for name in namespace.containers}
        for name in self.request["services"]:
            if name not in running:
                self.problems.append(f"{name} should be confined and is not, or does not run: it was not tried")
        self._try("tunnel up")
        if self.request["take_down"]:
            self._try_without_tunnel()
        else:
            self.problems.append("the tunnel was not taken down: what leaks then was not tried (--yes)")
        return {"rows": self.rows, "problems": self.problems}

    def _harmless(self) -> frozenset[str]:
        """Interfaces on which a confined container's packet is still inside: its bridges, and the tunnel."""
        names = {self.request["bridge"]}
        if self.request["mode"] == "host":
            names.add(self.request["link"])
        for namespace in self.namespaces:
            for name in namespace.networks.values():
                network = docker(f"/networks/{urllib.parse.quote(name)}")
                if name == self.request["network"] or network.get("Internal"):
                    names.add(_bridge(network))
        return frozenset(names)

    def _bridges(self) -> dict[str, str]:
        """A container's address to the hardware address of the bridge it is on."""
        found = {}
        for namespace in self.namespaces:
            for address, name in namespace.networks.items():
                bridge = _bridge(docker(f"/networks/{urllib.parse.quote(name)}"))
                for link in json.loads(run("ip", "-j", "link", "show", "dev", bridge) or "[]"):
                    found[address] = link["address"]
        return found

    def _try_without_tunnel(self) -> None:
        holder = tunnel_holder(self.request, self.namespaces)
        if holder is None:
            self.problems.append("there is no tunnel interface to take down: what leaks then was not tried")
            return
        prefix, link = holder
        guardian = Guardian(prefix, link, self._watcher(prefix))
        try:
            if guardian.take_down():
                # Questions that were asked through the tunnel are not to be answered from memory.
                self._try("tunnel down")
                if "UP" in flags(prefix, link):
                    self.problems.append(f"somebody brought {link} up during the test: it is to be repeated")
                    self._withdraw("tunnel down")
            else:
                self.problems.append(f"{link} could not be taken down: what leaks then was not tried")
        finally:
            guardian.bring_back()
        started = time.monotonic()
        while time.monotonic() - started < _TUNNEL_BACK_SECONDS:
            if "UP" in flags(prefix, link) and self._passes():
                return
        self.problems.append("the tunnel has not come back within a minute: mediahost vpn status tells why")

    def _watcher(self, prefix: Sequence[str]) -> str:
        """Control group of who would bring the tunnel back: our unit on the host, or the VPN client's container."""
        if self.request["mode"] == "host":
            unit = self.request["tunnel_unit"]
            return (run("systemctl", "show", "-p", "ControlGroup", "--value", unit) or "").strip()
        return _group(prefix[prefix.index("-t") + 1])

    def _passes(self) -> bool:
        """Whether anything goes out by the tunnel again."""
        namespace = self.namespaces[0]
        chosen = [probe("udp", to) for to in self.around.far if ":" not in to][:1]
        if not chosen:
            return True
        watch = self._watch_inside(namespace)
        inside(namespace.pid, partial(send, chosen, {}))
        sights = [*self._look(0.2), *(watch.seen() if watch else ())]
        return any(sight.tunnel and carries(sight.content, chosen[0]) for sight in sights)

    def _withdraw(self, phase: str) -> None:
        for row in self.rows:
            if row["phase"] == phase and row["verdict"] == SAFE:
                row["verdict"], row["why"] = UNJUDGED, "the tunnel did not stay down"

    def _try(self, phase: str) -> None:
        controls = self._controls()
        for namespace in self.namespaces:
            links: dict[str, list[str]] = inside(namespace.pid, _links) or {}
            if not links:
                self.problems.append(f"{namespace.name}: its network could not be entered")
                continue
            hardware = {
                link: self.bridges[address]
                for link, addresses in links.items()
                for address in addresses
                if address in self.bridges
            }
            probes = plan(list(links), self.around)
            # The engine's own resolver asks on in the host's namespace when the host's resolver is on loopback.
            probes += [probe("dns", server) for server in namespace.resolvers]
            self._judge(namespace, phase, probes, hardware, controls)
            self._try_host(namespace, phase)

    def _controls(self) -> dict[tuple[str, str], str]:
        """(kind, to) to what became of the same probe from the host's own namespace: seen, no way, or not seen."""
        wanted = [
            probe(kind, to) for to in (*self.around.far, *self.around.near) for kind in ("tcp", "udp", "icmp", "dns")
        ]
        told = inside(None, partial(send, wanted, {})) or {}
        sights = self._look(_SECONDS / 2)
        found = {}
        for each in wanted:
            left = any(outside(sight, self.harmless) and carries(sight.content, each) for sight in sights)
            refused = told.get(each.mark) in ("ENETUNREACH", "EADDRNOTAVAIL", "EAFNOSUPPORT")
            found[each.control] = "seen" if left else "no way" if refused else told.get(each.mark, "not sent")
        return found

    def _judge(
        self,
        namespace: Namespace,
        phase: str,
        probes: list[Probe],
        hardware: dict[str, str],
        controls: dict[tuple[str, str], str],
    ) -> None:
        watch = self._watch_inside(namespace)
        told: dict[str, str] = inside(namespace.pid, partial(send, probes, hardware)) or {}
        sights = self._look(_SECONDS / 2)
        within = watch.seen() if watch else []
        missed = sum(each.missed for each in self.watches)
        for each in probes:
            if told.get(each.mark) == "skipped":
                continue
            mine = [sight for sight in sights if carries(sight.content, each)]
            left = sorted({sight.link for sight in mine if outside(sight, self.harmless)})
            through = any(sight.tunnel for sight in [*mine, *(s for s in within if carries(s.content, each))])
            verdict, why = _verdict(each, told.get(each.mark), left, bool(mine), through, controls)
            if left and all(_is_error(sight.content) for sight in mine if outside(sight, self.harmless)):
                why += ", quoted in an ICMP error of the host to the forged sender"
            if missed and verdict == SAFE:
                verdict, why = UNJUDGED, f"{missed} packets were not looked at: the host is too busy"
            self._row(namespace, phase, each.told(), verdict, why)

    def _watch_inside(self, namespace: Namespace) -> Watch | None:
        """Where a container holds the tunnel, only its own namespace shows what goes into it."""
        if self.request["mode"] == "host":
            return None
        return _watch_in(namespace.pid)

    def _try_host(self, namespace: Namespace, phase: str) -> None:
        """This host's own addresses: there a packet does not leave, it arrives; so somebody listens."""
        for to in self.around.own:
            family = socket.AF_INET6 if ":" in to else socket.AF_INET
            with socket.socket(family, socket.SOCK_DGRAM) as ear:
                try:
                    ear.bind((to, 0))
                except OSError:
                    continue
                ear.setblocking(False)
                sent = [Probe("udp", to, ear.getsockname()[1], probe("udp", to).mark) for _ in range(2)]
                inside(namespace.pid, partial(send, sent[:1], {}))
                heard = _heard(ear)
                inside(None, partial(send, sent[1:], {}))
                control = _heard(ear)
            if sent[0].mark in heard:
                verdict, why = LEAK, "it arrived at this host"
            elif sent[1].mark in control:
                verdict, why = SAFE, "stopped"
            else:
                verdict, why = UNJUDGED, "the host cannot be reached by itself there"
            self._row(namespace, phase, f"UDP to this host, {to}", verdict, why)

    def _look(self, seconds: float) -> list[Sight]:
        until = time.monotonic() + seconds
        found: list[Sight] = []
        while True:
            left = until - time.monotonic()
            for watch in self.watches:
                found += watch.seen()
            if left <= 0:
                return found
            select.select(self.watches, [], [], left)

    def _row(self, namespace: Namespace, phase: str, told: str, verdict: str, why: str) -> None:
        self.rows.append({"container": namespace.name, "phase": phase, "probe": told, "verdict": verdict, "why": why})


def _verdict(
    each: Probe,
    told: str | None,
    left: list[str],
    seen: bool,
    through: bool,
    controls: dict[tuple[str, str], str],
) -> tuple[str, str]:
    """(verdict, why) of one probe."""
    if left:
        return LEAK, f"left by {', '.join(left)}"
    if told is None:
        return UNJUDGED, "it could not be sent"
    if through:
        # Seen where it belongs: this also shows that it was sent, and that marks are found.
        return SAFE, "through the tunnel"
    if each.kind == "frame" and not seen:
        return UNJUDGED, "the frame was not seen on the bridge"
    if ipaddress.ip_address(each.to).is_loopback:
        # The engine's resolver, whose onward questions look like any other's from the host.
        working = any(kind == "dns" and became == "seen" for (kind, _), became in controls.items())
        return (SAFE, "stopped") if working else (UNJUDGED, "no question of the host's own was seen either")
    control = controls.get(each.control, "not sent")
    if control == "seen":
        return SAFE, "stopped" if told == "sent" else f"stopped in the container ({told})"
    if control == "no way":
        return NOTHING, "the host itself has no way there"
    return UNJUDGED, f"the same from the host itself was not seen to leave ({control})"


def _bridge(network: dict[str, Any]) -> str:
    named = (network.get("Options") or {}).get("com.docker.network.bridge.name")
    return str(named or f"br-{network['Id'][:12]}")


def _group(process: str) -> str:
    """A process's control group (version 2), empty when there is none."""
    lines = Path(f"/proc/{process}/cgroup").read_text().splitlines()
    return next((line.removeprefix("0::") for line in lines if line.startswith("0::")), "")


def _links() -> dict[str, list[str]]:
    """Interfaces of this namespace with their IPv4 addresses; neither loopback nor tunnels."""
    return {
        link["ifname"]: [entry["local"] for entry in link.get("addr_info", ()) if entry.get("family") == "inet"]
        for link in json.loads(run("ip", "-j", "addr", "show") or "[]")
        if link.get("link_type") == "ether"
    }


def _watch_in(pid: int) -> Watch | None:
    """A watch in another namespace: a socket belongs to where it was made, so we go there and come back."""
    library = ctypes.CDLL(None, use_errno=True)
    with Path("/proc/self/ns/net").open("rb") as home, Path(f"/proc/{pid}/ns/net").open("rb") as there:
        if library.setns(there.fileno(), 0):
            return None
        try:
            return Watch()
        finally:
            if library.setns(home.fileno(), 0):
                os._exit(70)


def _heard(ear: socket.socket) -> str:
    time.sleep(0.1)
    heard = b""
    while True:
        try:
            heard += ear.recv(2048)
        except OSError:
            return heard.decode("latin-1")


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """What the request comes to, or {error: ...}."""
    # A login that ends must not stop us before the tunnel is back; the guardian would do it two minutes later.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        if os.geteuid() != 0:
            raise RefusedError("this needs root on the host: log in as root, or let pyinfra use sudo")
        return LeakTest(request).answer()
    except RefusedError as error:
        return {"error": str(error)}
    except OSError as error:
        sys.stderr.write(f"{error}\n")
        return {"error": f"the host does not let us look at its packets: {error.strerror}"}
