"""The leak lab's own parts that need no machine: a judge that overlooks a packet is none."""

from __future__ import annotations

import asyncio
import hashlib
import json
import socket
import struct
import subprocess
import time
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from lab import network
from lab.machine import Machine
from lab.network import Packet
from mediahost import wireguard
from mediahost.render import wall
from tests.lab import canary_sender, canary_servers, leaklab, vpn_drifts, vpn_faults
from tests.lab.home import Home
from tests.lab.leaklab import Answers, is_leak, kinds_of, leaks, read_answers, slowest

HOST, PROVIDER = "10.77.0.113", "10.77.0.117"
TRIE = """Main:
  +-- 0.0.0.0/0 3 0 5
     |-- 0.0.0.0
        /0 universe UNICAST
     +-- 172.29.29.0/24 2 0 2
        |-- 172.29.29.0
           /24 link UNICAST
        |-- 172.29.29.3
           /32 host LOCAL
        |-- 172.29.29.255
           /32 link BROADCAST
     |-- 127.0.0.1
        /32 host LOCAL
"""


def packet(
    source: str, destination: str, protocol: int = 17, ports: tuple[int, int] = (40000, 9), data: bytes = b""
) -> Packet:
    kind = 0x86DD if ":" in source else 0x0800
    return Packet(0.0, "52:54:00:4d:01:67", kind, source, destination, protocol, *ports, data)


def frame(source: str, destination: str, protocol: int, body: bytes) -> bytes:
    """An Ethernet frame with an IPv4 or IPv6 packet."""
    if ":" in source:
        head = struct.pack(">IHBB", 0x60000000, len(body), protocol, 64)
        head += IPv6Address(source).packed + IPv6Address(destination).packed
        kind = b"\x86\xdd"
    else:
        head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(body), 0, 0, 64, protocol, 0)
        head += IPv4Address(source).packed + IPv4Address(destination).packed
        kind = b"\x08\x00"
    return bytes(12) + kind + head + body


def udp(port: int, data: bytes) -> bytes:
    return struct.pack(">HHHH", 40000, port, 8 + len(data), 0) + data


def pcap(path: Path, frames: list[bytes]) -> Path:
    content = b"\xd4\xc3\xb2\xa1" + bytes(20)
    for each in frames:
        content += struct.pack("<IIII", 0, 0, len(each), len(each)) + each
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    "leaked",
    [
        packet(HOST, "198.51.100.7"),
        packet("198.51.100.7", HOST, 6),
        packet("172.29.29.2", "203.0.113.5"),
        packet("172.29.29.2", PROVIDER, ports=(40000, 51820), data=b"GET / HTTP/1.1 and more"),
        packet("172.29.29.2", PROVIDER, ports=(40000, 9), data=b"\x04\0\0\0" + bytes(28)),
        packet("172.29.29.2", PROVIDER, ports=(40000, 51820), data=b"\x04\0\0\0" + b"mediahost-canary udp 7"),
        packet(HOST, "10.2.0.1", ports=(40000, 53)),
        packet("10.2.0.2", "192.0.2.1"),
        packet("fd77::113", "2001:db8:66::7"),
        packet(HOST, leaklab.NEIGHBOUR4, 6, (50000, leaklab.PORT)),
        packet(HOST, "10.0.2.3", ports=(40000, 53), data=b"\x17MediaHost-Canary-1\x03org"),
        packet(HOST, "192.0.2.1", 1, (0, 0), b"\x08\0\0\0\0\0\0\0mediahost-canary icmp 1"),
    ],
    ids=lambda leaked: f"{leaked.source}-{leaked.destination}",
)
def test_a_packet_of_a_confined_container_is_seen(leaked: Packet) -> None:
    assert is_leak(leaked)


@pytest.mark.parametrize(
    "innocent",
    [
        packet(HOST, PROVIDER, ports=(51820, 51820), data=b"\x04\0\0\0encrypted"),
        packet(PROVIDER, HOST, ports=(51820, 40000), data=b"\x04\0\0\0encrypted"),
        packet("172.29.29.2", PROVIDER, ports=(40000, 51820), data=b"\x04\0\0\0" + bytes(28)),
        packet("10.0.2.15", "10.0.2.2", 6, (22, 50000), b"SSH-2.0"),
        packet("10.0.2.15", "10.0.2.3", ports=(40000, 53), data=b"\x03deb\x06debian\x03org"),
        packet("fd77::113", "ff02::1", 58, (0, 0)),
        Packet(0.0, "52:54:00:4d:01:67", 0x0806),
    ],
    ids=lambda innocent: f"{innocent.source}-{innocent.destination}",
)
def test_traffic_of_the_host_itself_is_no_leak(innocent: Packet) -> None:
    assert not is_leak(innocent)


def test_every_leaked_frame_of_a_capture_is_told_with_its_card(tmp_path: Path) -> None:
    capture = pcap(
        tmp_path / "segment-0.pcap",
        [
            frame(HOST, PROVIDER, 17, udp(51820, b"encrypted")),
            frame(HOST, "198.51.100.7", 17, udp(leaklab.PORT, b"mediahost-canary udp 7\n")),
            frame("fd77::113", "2001:db8:66::7", 17, udp(leaklab.PORT, b"mediahost-canary udp6 7\n")),
            frame(HOST, "10.2.0.1", 17, udp(53, b"question")),
            frame(HOST, leaklab.NEIGHBOUR4, 6, struct.pack(">HHIIBBHHH", 5, leaklab.PORT, 0, 0, 0x50, 2, 0, 0, 0)),
        ],
    )
    found = leaks([capture])
    assert len(found) == 4
    assert found[0].startswith("segment-0: udp 10.77.0.113:40000 > 198.51.100.7:47077")
    assert kinds_of(found) == {"udp", "dns", "neighbour"}


def test_a_mark_in_a_frame_of_another_kind_is_told(tmp_path: Path) -> None:
    vlan = bytes(12) + b"\x81\x00" + b"....MEDIAHOST-canary udp 7"
    assert len(leaks([pcap(tmp_path / "uplink-0.pcap", [vlan])])) == 1
    assert leaks([pcap(tmp_path / "uplink-1.pcap", [bytes(60)])]) == []


def test_the_wait_is_counted_from_the_fault_or_from_the_new_network() -> None:
    lines = (
        "1.log 3.00 since\n1.log 20.00 udp\n1.log 21.50 tcp\n2.log 30.00 since\n2.log 30.50 udp\n2.log 32.00 tcp\n"
    )
    answers = read_answers(lines)
    assert answers[0] == Answers("1.log", 3.0, {"udp": 20.0, "tcp": 21.5})
    assert slowest(answers, ("udp", "tcp"), 10.0, 2) == pytest.approx(11.5)
    assert slowest(answers, ("udp", "tcp", "icmp"), 10.0, 2) is None
    assert slowest(answers, ("udp", "tcp"), 10.0, 3) is None


def test_awk_tells_the_first_of_each_kind_since_a_moment(tmp_path: Path) -> None:
    (tmp_path / "7.log").write_text("1.00 sent\n2.00 udp\n9.00 sent\n9.50 udp\n9.60 tcp\n10.00 udp\n")
    (tmp_path / "8.log").write_text("9.90 sent\n9.95 udp\n")
    program = leaklab.FIRST_ANSWERS.format(since=9.0)
    told = subprocess.run(
        ["awk", program, "7.log", "8.log"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert read_answers(told.stdout) == [
        Answers("7.log", 1.0, {"udp": 9.5, "tcp": 9.6}),
        Answers("8.log", 9.9, {"udp": 9.95}),
    ]


def test_the_provider_file_is_one_that_the_product_reads() -> None:
    keys = leaklab.new_keys()
    tunnel = wireguard.read(leaklab.wireguard_file(keys, PROVIDER), "custom")
    assert (tunnel.endpoint, tunnel.endpoint_port, tunnel.dns) == (PROVIDER, 51820, (leaklab.TUNNEL_DNS,))
    assert wireguard.public_key(tunnel.private_key) == keys.host_public
    assert tunnel.preshared_key == keys.shared


def test_a_torrent_has_a_digest_for_each_piece() -> None:
    content = leaklab.torrent()
    assert content.startswith(b"d8:announce29:http://198.51.100.21/announce4:infod")
    assert content.count(hashlib.sha1(bytes(leaklab.PIECE), usedforsecurity=False).digest()) == leaklab.PIECES


def test_every_way_that_must_answer_is_sent_and_no_other_is_awaited() -> None:
    sent = {target["kind"] for target in leaklab.sender_configuration()["targets"]}
    assert sent > set(leaklab.ECHOED)
    assert {"udp6", "neighbour-udp", "neighbour-tcp", "foreign-dns"} <= sent - set(leaklab.ECHOED)


def test_addresses_of_a_namespace_are_read() -> None:
    assert canary_sender.local_addresses(TRIE) == {"172.29.29.3", "127.0.0.1"}


def test_a_ping_has_a_right_checksum() -> None:
    assert canary_sender.checksum(canary_sender.echo_request(b"mediahost-canary icmp 1", 9)) == 0


@pytest.mark.parametrize("kind", [1, 28, 16])
def test_questions_are_answered(kind: int) -> None:
    question = canary_sender.query("mediahost-canary-1.dns.example.org", 77)[:-4] + struct.pack(">HH", kind, 1)
    reply = canary_servers.answer(question, "198.51.100.7", "2001:db8:66::7")
    assert reply[:2] == question[:2]
    assert canary_sender.answered(reply) == (kind in (1, 28))


def test_an_error_is_no_answer() -> None:
    refused = struct.pack(">HHHHHH", 1, 0x8182, 1, 0, 0, 0)
    assert not canary_sender.answered(refused)
    assert not canary_sender.answered(b"")
    assert canary_servers.answer(b"short", "198.51.100.7", "2001:db8:66::7") == b""


def test_a_resolver_that_hears_nothing_asks_from_another_port(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(10)
        target = {"kind": "docker-dns", "how": "dns", "address": "127.0.0.1", "port": server.getsockname()[1]}
        (resolver,) = canary_sender.probes({"targets": [target], "marker": leaklab.MARKER})

        def asks() -> tuple[bytes, int]:
            resolver.send(1)
            question, (_, port) = server.recvfrom(512)
            return question, port

        _, first = asks()
        now[0] += 1.9
        question, second = asks()
        assert second == first
        record = b"\xc0\x0c" + struct.pack(">HHIH4s", 1, 1, 5, 4, b"\x01\x02\x03\x04")
        server.sendto(
            question[:2] + struct.pack(">HHHHH", 0x8180, 1, 1, 0, 0) + question[12:] + record, ("127.0.0.1", first)
        )
        assert resolver.hear() == 1
        now[0] += 1.9
        assert asks()[1] == first
        now[0] += 2.1
        assert asks()[1] != first
        resolver.close()


def test_a_port_is_mapped_as_nat_pmp_says() -> None:
    request = struct.pack(">BBHHHI", 0, 2, 0, 6881, 0, 60)
    assert canary_servers.mapping(request, "198.51.100.200", 40123) == struct.pack(
        ">BBHIHHI", 0, 130, 0, 1, 6881, 40123, 60
    )
    assert canary_servers.mapping(b"\0\0", "198.51.100.200", 1)[-4:] == IPv4Address("198.51.100.200").packed
    assert canary_servers.mapping(b"\1", "198.51.100.200", 1) == b""


def test_a_bitfield_has_no_spare_bit_set() -> None:
    assert canary_servers.bitfield(11) == struct.pack(">IB", 3, 5) + b"\xff\xe0"
    assert canary_servers.bitfield(16) == struct.pack(">IB", 3, 5) + b"\xff\xff"


def free_port() -> int:
    """A port of loopback that is free for TCP and for UDP: other programs here hold either kind alone."""
    for _attempt in range(20):
        port = network.free_port()
        with socket.socket(type=socket.SOCK_DGRAM) as datagram:
            try:
                datagram.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("no port is free for both")


def test_canaries_over_udp_and_tcp_come_back_and_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both programs against each other on loopback; what needs root (pings, low ports) is left to the machines."""
    port = free_port()
    config = {"marker": leaklab.MARKER, "port": port, "echo": ["127.0.0.1"], "seen": str(tmp_path / "seen.json")}
    targets = [{"kind": kind, "how": kind, "address": "127.0.0.1", "port": port} for kind in ("udp", "tcp", "flow")]
    closed = {"kind": "closed", "how": "tcp", "address": "127.0.0.1", "port": free_port()}
    monkeypatch.setattr(canary_servers.Internet, "_watch_pings", lambda _self, _loop: None)
    seen = canary_servers.Seen(tmp_path / "seen.json")
    log = tmp_path / "1.log"

    async def both() -> None:
        await canary_servers.Internet(config, seen).serve()
        writing = asyncio.create_task(seen.keep_written())
        until = time.monotonic() + 2
        sending = {"marker": leaklab.MARKER, "interval": 0.1, "targets": [*targets, closed]}
        await asyncio.to_thread(canary_sender.work, sending, log, lambda: time.monotonic() < until)
        await asyncio.sleep(0.6)
        writing.cancel()

    asyncio.run(both())
    heard = [line.split()[1] for line in log.read_text().splitlines()]
    for kind in ("udp", "tcp", "flow"):
        assert heard.count(kind) >= 5, heard
    assert heard.count("reconnect") == 1
    assert "closed" not in heard
    counted = json.loads((tmp_path / "seen.json").read_text())
    assert counted.keys() == {"udp", "tcp", "flow"}
    assert counted["udp"]["127.0.0.1"] >= 5


def test_the_peer_serves_zeros_and_counts_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(canary_servers, "_BLOCK_SECONDS", 0)
    seen = canary_servers.Seen(tmp_path / "seen.json")
    internet = canary_servers.Internet({"marker": leaklab.MARKER, "pieces": 11}, seen)

    async def ask() -> tuple[bytes, bytes]:
        server = await asyncio.start_server(internet._peer, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(b"\x13BitTorrent protocol" + bytes(8) + b"i" * 20 + b"-XX0001-" + b"1" * 12)
        greeting = await reader.readexactly(68)
        await reader.readexactly(len(canary_servers.bitfield(11)) + 5)
        writer.write(struct.pack(">I", 0) + struct.pack(">IBIII", 13, 6, 2, 16384, 16384))
        block = await reader.readexactly(4 + 9 + 16384)
        writer.close()
        server.close()
        return greeting, block

    greeting, block = asyncio.run(ask())
    assert greeting[28:48] == b"i" * 20
    assert block == struct.pack(">IBII", 9 + 16384, 7, 2, 16384) + bytes(16384)
    assert seen.counts == {"peer": {"127.0.0.1": 1}}


def test_there_are_as_many_faults_as_were_asked_for_in_each_mode() -> None:
    for mode in vpn_faults.BOTH:
        faults = [fault.name for fault in vpn_faults.FAULTS if mode in fault.modes]
        assert len(faults) == len(set(faults)) >= 25, mode
    assert sum(fault.sample for fault in vpn_faults.FAULTS) == 3


def test_each_file_of_the_wall_is_tried_deleted_and_edited() -> None:
    names = [drift.name for drift in vpn_drifts.DRIFTS]
    assert len(names) == len(set(names))
    for path in wall.PATHS:
        assert {f"{path} deleted", f"{path} edited"} <= set(names)


class Recorder:
    """A lab without machines: what would be run on them."""

    def __init__(self, mode: str) -> None:
        self.mode = mode
        self.scripts: list[str] = []
        self.host = self.provider = self.home = self
        self.address4 = PROVIDER
        self.stdout = "inet6 2001:db8:77::1"

    def root(self, script: str, check: bool = True) -> str:
        self.scripts.append(script)
        return "5:26.1.5-1 5:26.1.6-1"

    at_provider = root

    def run(self, command: str | list[str], **_options: object) -> Recorder | SimpleNamespace:
        self.scripts.append(command if isinstance(command, str) else "")
        if self.scripts[-1].endswith("/boot_id"):
            # Another at each question: it has rebooted.
            return SimpleNamespace(returncode=0, stdout=str(len(self.scripts)))
        return self

    def apply_until(self, moment: Callable[[dict[str, str]], bool]) -> bool:
        assert not moment({"event": "done"})
        return moment({"event": "change", "operation": "stack | services"})

    def __getattr__(self, name: str) -> Callable[..., None]:
        assert hasattr(leaklab.Lab, name) or hasattr(Home, name) or hasattr(Machine, name), name
        return lambda *_words, **_options: None


@pytest.mark.parametrize("mode", vpn_faults.BOTH)
def test_every_fault_and_control_is_a_script_that_a_shell_reads(mode: str) -> None:
    recorder = Recorder(mode)
    acts = [act for fault in vpn_faults.FAULTS for act in (fault.strikes, fault.heals) if mode in fault.modes and act]
    acts += [control.breaks for control in vpn_faults.CONTROLS if mode in control.modes]
    for act in acts:
        # The methods of a lab belong to a real one.
        if act not in (leaklab.Lab.reboot, leaklab.Lab.power_cut):
            act(cast(leaklab.Lab, recorder))
    assert len(recorder.scripts) > 25
    for script in recorder.scripts:
        checked = subprocess.run(["sh", "-n"], input=script, text=True, capture_output=True, check=False)
        assert checked.returncode == 0, (script, checked.stderr)
        assert "{{.State" in script or "{{.Config" in script or "{{" not in script, script


@pytest.mark.parametrize("script", [leaklab.NETWORKS, *(drift.breaks for drift in vpn_drifts.DRIFTS)])
def test_scripts_are_shell(script: str) -> None:
    checked = subprocess.run(["sh", "-n"], input=script, text=True, capture_output=True, check=False)
    assert checked.returncode == 0, checked.stderr
