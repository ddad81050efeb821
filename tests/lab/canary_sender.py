"""Runs on the host under test: sends canaries from inside every container that is meant to be confined.

A container's network exists before its program does, and this program enters the network, not the container: it
finds each one below Docker's directory of namespaces within a fraction of a second, on its own, after every fault
and at boot. Which ones are confined is told by their address alone. Standard library only; run as root with the
path of a JSON file: `marker`, `subnet`, `namespaces` and `log` (directories), `interval` (seconds), `targets`.

The log of a namespace has a line for each thing that happened: seconds of CLOCK_BOOTTIME, and `sent`, `reconnect`
or the kind of canary that was answered. It is renamed to *.gone when the namespace is no more.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import re
import signal
import socket
import struct
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

_YOUNG_SECONDS = 10.0
"""A namespace that has just appeared gets its addresses in a moment: it is looked at in every round."""
_OLD_ROUNDS = 15
"""Later one may still be attached to the subnet, by hand: it is looked at in every fifteenth round."""
_ROUND_SECONDS = 0.2
_PATIENCE = {"tcp": 5.0, "flow": 20.0}
"""Seconds without an answer after which a connection is given up for a new one."""
_RESOLVER_PATIENCE = 2.0
"""Seconds without an answer after which questions come from another port.

A resolver never keeps its port (RFC 5452). One that did would ask, after a restart of Docker, where Docker's name
server was before: connection tracking remembers that for as long as there are questions.
"""


def local_addresses(fib_trie: str) -> set[str]:
    """The IPv4 addresses of a namespace, out of its /proc/net/fib_trie."""
    return set(re.findall(r"\|-- ([0-9.]+)\n\s+/32 host LOCAL", fib_trie))


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    padded = data + b"\0" * (len(data) % 2)
    words: tuple[int, ...] = struct.unpack(f">{len(padded) // 2}H", padded)
    total = sum(words)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def echo_request(payload: bytes, number: int) -> bytes:
    """An ICMP echo request (RFC 792)."""
    body = struct.pack(">HH", 0x4D48, number & 0xFFFF) + payload
    return struct.pack(">BBH", 8, 0, checksum(b"\x08\x00\0\0" + body)) + body


def query(name: str, number: int) -> bytes:
    """A DNS question for the A record of `name` (RFC 1035)."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return struct.pack(">HHHHHH", number & 0xFFFF, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack(">HH", 1, 1)


def answered(reply: bytes) -> bool:
    """Whether a DNS message holds an answer: Docker's resolver answers for a server that is silent, with an error."""
    if len(reply) < 12:
        return False
    _number, flags, _questions, answers = struct.unpack_from(">HHHH", reply)
    return bool(flags & 0x8000) and not flags & 0x000F and bool(answers)


class Probe:
    """One kind of canary to one address. A refusal is no trouble: to have tried is what counts."""

    def __init__(self, kind: str, how: str, address: str, port: int, marker: str) -> None:
        self.kind, self.how = kind, how
        self.place = (address, port)
        self.marker = marker
        self.family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self.socket: socket.socket | None = None
        self.fresh = 0.0

    def text(self, number: int) -> bytes:
        """What the canary carries."""
        return f"{self.marker} {self.kind} {number}\n".encode()

    def send(self, number: int) -> bool:
        """Send one more; True when a connection was given up for a new one."""
        with contextlib.suppress(OSError):
            if self.how == "dns" and time.monotonic() - self.fresh > _RESOLVER_PATIENCE:
                self.close()
            if self.socket is None:
                self.socket, self.fresh = self._opened(), time.monotonic()
            self.socket.sendto(self._packet(number), self.place)
            return False
        self.close()
        return False

    def hear(self) -> int:
        """How many answers have come."""
        count = 0
        while self.socket is not None:
            try:
                reply = self.socket.recv(4096)
            except BlockingIOError:
                break
            except OSError:
                self.close()
                break
            count += self._is_answer(reply)
        if count:
            self.fresh = time.monotonic()
        return count

    def close(self) -> None:
        """Give the socket up."""
        if self.socket is not None:
            self.socket.close()
            self.socket = None

    def _opened(self) -> socket.socket:
        if self.how == "icmp":
            opened = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        else:
            opened = socket.socket(self.family, socket.SOCK_DGRAM)
        opened.setblocking(False)
        return opened

    def _packet(self, number: int) -> bytes:
        if self.how == "icmp":
            return echo_request(self.text(number), number)
        if self.how == "dns":
            return query(f"{self.marker}-{number}-{os.getpid()}.{self.kind}.example.org", number)
        return self.text(number)

    def _is_answer(self, reply: bytes) -> bool:
        if self.how == "icmp":
            # Whole IPv4 packets, our own requests' echoes among other things: type 0 is an answer.
            header = (reply[0] & 0x0F) * 4
            return len(reply) > header and reply[header] == 0 and self.marker.encode() in reply
        if self.how == "dns":
            return answered(reply)
        return self.marker.encode() in reply


class Connection(Probe):
    """TCP: `tcp` is one short connection after the other, `flow` one that is kept for as long as it answers."""

    def __init__(self, kind: str, how: str, address: str, port: int, marker: str) -> None:
        super().__init__(kind, how, address, port, marker)
        self.since = 0.0
        self.waiting: bytes = b""

    def send(self, number: int) -> bool:
        """Send one more; True when a connection was given up for a new one."""
        now = time.monotonic()
        if self.socket is not None and now - self.since > _PATIENCE[self.how]:
            self.close()
        if self.socket is not None:
            if self.how == "flow":
                self.waiting = self.text(number)
                self._write()
            return False
        self.since = now
        self.waiting = self.text(number)
        with contextlib.suppress(OSError):
            self.socket = socket.socket(self.family, socket.SOCK_STREAM)
            self.socket.setblocking(False)
            self.socket.connect_ex(self.place)
        return True

    def hear(self) -> int:
        """1 when an answer has come."""
        if self.waiting:
            self._write()
        heard = super().hear()
        if heard:
            self.since = time.monotonic()
            if self.how == "tcp":
                self.close()
        return heard

    def _write(self) -> None:
        if self.socket is None:
            return
        try:
            self.socket.send(self.waiting)
            self.waiting = b""
        except BlockingIOError:
            pass  # not connected yet
        except OSError:
            self.close()

    def _is_answer(self, reply: bytes) -> bool:
        if not reply:
            self.close()
        return super()._is_answer(reply)


def probes(config: dict[str, Any]) -> list[Probe]:
    """The probes of one namespace."""
    found: list[Probe] = []
    for target in config["targets"]:
        made = Connection if target["how"] in _PATIENCE else Probe
        found.append(made(target["kind"], target["how"], target["address"], target["port"], config["marker"]))
    return found


def work(config: dict[str, Any], log: Path, alive: Callable[[], bool]) -> None:
    """Send and listen in the present namespace for as long as it is one of Docker's."""
    working = probes(config)
    interval = float(config["interval"])
    number = os.getpid() * 1000
    with log.open("a", encoding="ascii") as lines:
        while alive():
            number += 1
            said = ["sent"]
            for probe in working:
                if probe.send(number) and probe.how == "flow":
                    said.append("reconnect")
            _note(lines, said)
            for _ in range(2):
                time.sleep(interval / 2)
                _note(lines, [probe.kind for probe in working if probe.hear()])


def _note(lines: Any, said: list[str]) -> None:
    now = time.clock_gettime(time.CLOCK_BOOTTIME)
    lines.writelines(f"{now:.2f} {word}\n" for word in said)
    lines.flush()


class Supervisor:
    """Finds namespaces, and keeps a process in each one that is confined."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self.directory = Path(config["namespaces"])
        self.logs = Path(config["log"])
        self.subnet = ipaddress.ip_network(config["subnet"])
        self.home = os.open("/proc/self/ns/net", os.O_RDONLY)
        self.own = os.fstat(self.home).st_ino
        self.first_seen: dict[tuple[str, int], float] = {}
        self.workers: dict[int, tuple[str, int]] = {}

    def run(self) -> None:
        """For ever."""
        self.logs.mkdir(mode=0o755, exist_ok=True)
        for left in self.logs.glob("*.log"):
            left.rename(left.with_suffix(".gone"))
        rounds = 0
        while True:
            self.look(rounds)
            rounds += 1
            time.sleep(_ROUND_SECONDS)

    def look(self, rounds: int) -> None:
        """One round: who has ended, who is new."""
        while self.workers:
            pid, _status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            name, inode = self.workers.pop(pid)
            log = self._log(inode)
            if log.exists():
                log.rename(log.with_suffix(f".{name}.gone"))
        now = time.monotonic()
        present = dict(self._present())
        self.first_seen = {key: since for key, since in self.first_seen.items() if present.get(key[0]) == key[1]}
        for name, inode in present.items():
            since = self.first_seen.setdefault((name, inode), now)
            due = now - since < _YOUNG_SECONDS or rounds % _OLD_ROUNDS == 0
            if inode != self.own and (name, inode) not in self.workers.values() and due and self._confined(name):
                self._start(name, inode)

    def _present(self) -> list[tuple[str, int]]:
        found = []
        with contextlib.suppress(FileNotFoundError):
            for entry in self.directory.iterdir():
                with contextlib.suppress(FileNotFoundError):
                    found.append((entry.name, entry.stat().st_ino))
        return found

    def _confined(self, name: str) -> bool:
        if not self._enter(name):
            return False
        try:
            trie = Path("/proc/thread-self/net/fib_trie").read_text(encoding="ascii")
        finally:
            os.setns(self.home, os.CLONE_NEWNET)  # type: ignore[attr-defined, unused-ignore]
        return any(ipaddress.ip_address(address) in self.subnet for address in local_addresses(trie))

    def _enter(self, name: str) -> bool:
        try:
            namespace = os.open(self.directory / name, os.O_RDONLY)
        except OSError:
            return False
        try:
            os.setns(namespace, os.CLONE_NEWNET)  # type: ignore[attr-defined, unused-ignore]
        except OSError:  # a file on which nothing is mounted yet
            return False
        finally:
            os.close(namespace)
        return True

    def _start(self, name: str, inode: int) -> None:
        pid = os.fork()
        if pid:
            self.workers[pid] = (name, inode)
            return
        # The child must never come back into the supervisor's loop.
        try:
            if self._enter(name):
                place = self.directory / name

                def alive() -> bool:
                    try:
                        return place.stat().st_ino == inode
                    except OSError:
                        return False

                work(self.config, self._log(inode), alive)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)

    def _log(self, inode: int) -> Path:
        return self.logs / f"{inode}.log"


def main(arguments: list[str]) -> None:
    """Send until the machine goes down."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    Supervisor(json.loads(Path(arguments[1]).read_text(encoding="utf-8"))).run()


if __name__ == "__main__":
    main(sys.argv)
