"""Runs on the provider's machine: everything that confined containers talk to, and a record of who asked.

Echo over UDP and TCP, pings as they pass by, DNS, NAT-PMP, HTTP (the caller's address, bulk data, a BitTorrent
tracker) and a BitTorrent peer that has a file of zeros. Each counts what it was asked by source address; the counts
are written to a file twice a second. Standard library only; run as root in the namespace that plays the internet (or
a neighbour at home) with the path of a JSON file: see `tests.lab.leaklab.Lab`.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import ipaddress
import json
import socket
import struct
import sys
from collections import Counter
from pathlib import Path
from typing import Any

BLOCK = 16384
"""Bytes of a block as BitTorrent clients ask for it (BEP 3)."""
_WRITE_SECONDS = 0.5
_BLOCK_SECONDS = 0.25
"""Between two blocks: the file lasts for hours, so that the client is at work in every trial."""
_A, _AAAA = 1, 28
_MAPPED_SECONDS = 60


class Seen:
    """How often each kind was asked, by source address."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.counts: dict[str, Counter[str]] = {}
        self.changed = True

    def add(self, kind: str, source: str) -> None:
        """One more."""
        self.counts.setdefault(kind, Counter())[source] += 1
        self.changed = True

    async def keep_written(self) -> None:
        """For ever."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            if self.changed:
                self.changed = False
                new = self.path.with_suffix(".new")
                new.write_text(json.dumps(self.counts), encoding="ascii")
                new.replace(self.path)
            await asyncio.sleep(_WRITE_SECONDS)


def answer(question: bytes, address4: str, address6: str) -> bytes:
    """The DNS answer (RFC 1035): every name has the same addresses. b"" for what is no question."""
    if len(question) < 17:
        return b""
    end = question.find(b"\0", 12) + 5
    if end < 17 or len(question) < end:
        return b""
    asked = question[12:end]
    (kind,) = struct.unpack(">H", asked[-4:-2])
    address = b""
    if kind == _A:
        address = ipaddress.IPv4Address(address4).packed
    elif kind == _AAAA:
        address = ipaddress.IPv6Address(address6).packed
    header = question[:2] + struct.pack(">HHHHH", 0x8180, 1, 1 if address else 0, 0, 0)
    # 0xC00C: the name is the one at offset 12. Not to be remembered: each question must be asked anew.
    record = struct.pack(">HHHIH", 0xC00C, kind, 1, 0, len(address)) + address if address else b""
    return header + asked + record


def mapping(request: bytes, outside: str, port: int) -> bytes:
    """The NAT-PMP answer (RFC 6886): the outside address, or the one outside port there is. b"" for what is none."""
    if len(request) < 2 or request[0] != 0:
        return b""
    if request[1] == 0:
        return struct.pack(">BBHI", 0, 128, 0, 1) + ipaddress.IPv4Address(outside).packed
    if request[1] in (1, 2) and len(request) >= 12:
        (inside,) = struct.unpack_from(">H", request, 4)
        (lifetime,) = struct.unpack_from(">I", request, 8)
        granted = min(lifetime, _MAPPED_SECONDS)
        return struct.pack(">BBHIHHI", 0, 128 + request[1], 0, 1, inside, port if granted else 0, granted)
    return b""


def peers(address: str, port: int) -> bytes:
    """A tracker's answer with one peer, in the compact form (BEP 23)."""
    one = ipaddress.IPv4Address(address).packed + struct.pack(">H", port)
    return b"d8:intervali60e12:min intervali30e5:peers6:" + one + b"e"


def bitfield(pieces: int) -> bytes:
    """BitTorrent's message that says: I have all pieces (BEP 3). Spare bits are zero."""
    whole, rest = divmod(pieces, 8)
    bits = b"\xff" * whole + (bytes([(0xFF << (8 - rest)) & 0xFF]) if rest else b"")
    return struct.pack(">IB", 1 + len(bits), 5) + bits


class Internet:
    """The servers of one namespace."""

    def __init__(self, config: dict[str, Any], seen: Seen) -> None:
        self.config = config
        self.marker = config["marker"].encode()
        self.seen = seen
        self.servers: list[asyncio.Server] = []

    async def serve(self) -> None:
        """Start everything the configuration names."""
        loop = asyncio.get_running_loop()
        port = self.config["port"]
        for address in self.config["echo"]:
            await loop.create_datagram_endpoint(lambda: Datagrams(self, "udp"), local_addr=(address, port))
            self.servers.append(await asyncio.start_server(self._echo, address, port))
        for address in self.config.get("dns", ()):
            service = functools.partial(Datagrams, self, "dns", address)
            await loop.create_datagram_endpoint(service, local_addr=(address, 53))
        for address in self.config.get("nat_pmp", ()):
            await loop.create_datagram_endpoint(lambda: Datagrams(self, "nat-pmp"), local_addr=(address, 5351))
        for address in self.config.get("http", ()):
            self.servers.append(await asyncio.start_server(self._http, address, 80))
        if self.config.get("peer"):
            self.servers.append(await asyncio.start_server(self._peer, *self.config["peer"]))
        self._watch_pings(loop)

    def reply(self, service: str, data: bytes, address: str) -> bytes:
        """What a datagram to `service` at `address` is answered with."""
        if service == "dns":
            return answer(data, self.config["name4"], self.config["name6"])
        if service == "nat-pmp":
            return mapping(data, self.config["outside"], self._forwarded_port())
        return data

    def kind(self, service: str, data: bytes, address: str) -> str:
        """What a datagram is counted as: what it says of itself, else the service that got it."""
        if service == "dns":
            return "dns" if self.marker in data.lower() else f"names at {address}"
        return told(data, self.marker) or service

    def _forwarded_port(self) -> int:
        """The port that is forwarded now; a file, so that it can change."""
        path = Path(self.config["forwarded"])
        return int(path.read_text(encoding="ascii")) if path.exists() else 40000

    def _watch_pings(self, loop: asyncio.AbstractEventLoop) -> None:
        """The kernel answers; here they are only counted."""
        pings = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        pings.setblocking(False)

        def arrived() -> None:
            with contextlib.suppress(BlockingIOError):
                packet, source = pings.recvfrom(4096)
                if packet[(packet[0] & 0x0F) * 4] == 8 and self.marker in packet:
                    self.seen.add("icmp", source[0])

        loop.add_reader(pings, arrived)

    async def _echo(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        source = writer.get_extra_info("peername")[0]
        with contextlib.suppress(OSError):
            while line := await reader.readline():
                self.seen.add(told(line, self.marker) or "tcp", source)
                writer.write(line)
                await writer.drain()
        writer.close()

    async def _http(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        source = writer.get_extra_info("peername")[0]
        with contextlib.suppress(OSError, IndexError, ValueError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            path = head.split(b" ")[1].decode()
            if path.startswith("/announce"):
                self.seen.add("tracker", source)
                await _respond(writer, peers(*self.config["peer"]))
            elif path.startswith("/bulk/"):
                await _respond(writer, b"", zeros=int(path.removeprefix("/bulk/")))
            else:
                self.seen.add("http", source)
                await _respond(writer, f"{source}\n".encode())
        writer.close()

    async def _peer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        source = writer.get_extra_info("peername")[0]
        # Who speaks encrypted hears nothing, and comes again in the clear.
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            greeting = await reader.readexactly(68)
            if greeting[:20] == b"\x13BitTorrent protocol":
                identity = b"-ML0001-" + b"0" * 12
                writer.write(greeting[:20] + bytes(8) + greeting[28:48] + identity)
                writer.write(bitfield(self.config["pieces"]))
                writer.write(struct.pack(">IB", 1, 1))  # unchoke
                await writer.drain()
                while True:
                    await self._serve_block(reader, writer, source)
        writer.close()

    async def _serve_block(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, source: str) -> None:
        (length,) = struct.unpack(">I", await reader.readexactly(4))
        message = await reader.readexactly(length)
        if length == 13 and message[0] == 6:  # request: index, begin, length
            index, begin, size = struct.unpack_from(">III", message, 1)
            await asyncio.sleep(_BLOCK_SECONDS)
            writer.write(struct.pack(">IBII", 9 + min(size, BLOCK), 7, index, begin) + bytes(min(size, BLOCK)))
            await writer.drain()
            self.seen.add("peer", source)


async def _respond(writer: asyncio.StreamWriter, body: bytes, zeros: int = 0) -> None:
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body) + zeros}\r\nConnection: close\r\n\r\n"
    writer.write(head.encode() + body)
    while zeros > 0:
        part = min(zeros, 65536)
        writer.write(bytes(part))
        zeros -= part
        await writer.drain()
    await writer.drain()


def told(data: bytes, marker: bytes) -> str:
    """The kind that a canary says it is, "" for what is none."""
    words = data.split()
    return words[1].decode("ascii", "replace") if len(words) == 3 and words[0] == marker else ""


class Datagrams(asyncio.DatagramProtocol):
    """One UDP socket."""

    def __init__(self, internet: Internet, service: str, address: str = "") -> None:
        self.internet, self.service, self.address = internet, service, address
        self.transport: Any = None

    def connection_made(self, transport: Any) -> None:
        """The socket is there."""
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        """Count it, and answer."""
        self.internet.seen.add(self.internet.kind(self.service, data, self.address), addr[0])
        if reply := self.internet.reply(self.service, data, self.address):
            self.transport.sendto(reply, addr)


async def main(arguments: list[str]) -> None:
    """Serve until the machine goes down."""
    config = json.loads(Path(arguments[1]).read_text(encoding="utf-8"))
    seen = Seen(Path(config["seen"]))
    await Internet(config, seen).serve()
    await seen.keep_written()


if __name__ == "__main__":
    asyncio.run(main(sys.argv))
