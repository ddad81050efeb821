"""Addresses of the lab's networks, and what a packet capture holds.

Every machine has an uplink (QEMU's user-mode network: out to the lab host at 10.0.2.2 and on to the package
mirror) and a place on a segment shared by all machines of this lab, plain Ethernet that leaves the host's
loopback by nothing. Captures are read with struct alone: no test depends on another program's output.
"""

from __future__ import annotations

import hashlib
import ipaddress
import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lab import paths

LAB_HOST = "10.0.2.2"
"""The lab host as a guest sees it, its loopback services included (QEMU user-mode networking's default)."""
LOOPBACK = "127.0.0.1"
UPLINK = "uplink"
SEGMENT = "segment"
_FIRST_HOST = 10
_ETHERNET_HEADER = 14
_IPV4, _IPV6, _ARP = 0x0800, 0x86DD, 0x0806
_TCP, _UDP = 6, 17


def address4(index: int) -> str:
    """The machine's IPv4 address on the segment, without prefix length (/24)."""
    return f"10.77.0.{_FIRST_HOST + index}"


def address6(index: int) -> str:
    """The machine's IPv6 address on the segment, without prefix length (/64)."""
    return f"fd77::{_FIRST_HOST + index}"


def mac(index: int, network: str) -> str:
    """The MAC address of a machine's card on `network` (UPLINK or SEGMENT), with QEMU's prefix."""
    return f"52:54:00:4d:{0 if network == UPLINK else 1:02x}:{index:02x}"


def multicast_group() -> str:
    """GROUP:PORT of this lab's segment; derived from the cache path, so that two labs do not hear each other."""
    digest = hashlib.sha256(str(paths.cache()).encode()).digest()
    return f"230.0.0.1:{20000 + int.from_bytes(digest[:2], 'big') % 10000}"


def free_port(wanted: int | None = None) -> int:
    """A TCP port free on loopback: `wanted` when nobody listens there, else one the kernel picks."""
    for port in (wanted, 0):
        if port is None:
            continue
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((LOOPBACK, port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise OSError("no free TCP port on loopback")


@dataclass(frozen=True)
class Packet:
    """One captured frame, decoded as far as its ports; `payload` is what follows. Absent fields are "" or 0."""

    seconds: float
    source_mac: str
    ethertype: int
    source: str = ""
    destination: str = ""
    protocol: int = 0
    source_port: int = 0
    destination_port: int = 0
    payload: bytes = b""

    @property
    def is_arp(self) -> bool:
        """An ARP frame: how IPv4 neighbours find each other."""
        return self.ethertype == _ARP


def packets(capture: Path) -> Iterator[Packet]:
    """The frames of a pcap as QEMU's filter-dump writes it (little-endian, Ethernet); a cut tail is dropped.

    Raises ValueError when the file is not such a pcap.
    """
    content = capture.read_bytes()
    if content[:4] != b"\xd4\xc3\xb2\xa1":
        raise ValueError(f"{capture} is not a little-endian pcap file")
    position = 24
    while position + 16 <= len(content):
        seconds, micros, length, _original = struct.unpack_from("<IIII", content, position)
        position += 16
        frame = content[position : position + length]
        if len(frame) < length:
            return
        position += length
        yield _decode(seconds + micros / 1e6, frame)


def count(capture: Path, wanted: Callable[[Packet], bool]) -> int:
    """How many frames of the capture satisfy `wanted`."""
    return sum(1 for packet in packets(capture) if wanted(packet))


def _decode(seconds: float, frame: bytes) -> Packet:
    if len(frame) < _ETHERNET_HEADER:
        return Packet(seconds, "", 0)
    source_mac = frame[6:12].hex(":")
    ethertype = int.from_bytes(frame[12:14], "big")
    body = frame[_ETHERNET_HEADER:]
    if ethertype == _IPV4 and len(body) >= 20:
        header = (body[0] & 0x0F) * 4
        # The total length excludes Ethernet's padding of short frames.
        body = body[: int.from_bytes(body[2:4], "big")]
        protocol, source, destination = body[9], body[12:16], body[16:20]
    elif ethertype == _IPV6 and len(body) >= 40:
        header = 40
        protocol, source, destination = body[6], body[8:24], body[24:40]
    else:
        return Packet(seconds, source_mac, ethertype)
    segment = body[header:]
    ports = struct.unpack_from(">HH", segment) if protocol in (_TCP, _UDP) and len(segment) >= 8 else (0, 0)
    skipped = 0
    if protocol == _TCP and len(segment) >= 20:
        skipped = (segment[12] >> 4) * 4
    elif protocol == _UDP:
        skipped = 8
    return Packet(
        seconds,
        source_mac,
        ethertype,
        str(ipaddress.ip_address(source)),
        str(ipaddress.ip_address(destination)),
        protocol,
        ports[0],
        ports[1],
        segment[skipped:],
    )
