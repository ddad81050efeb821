"""What mediahost-vpn-port.service runs on a host: keeps the forwarded port, and tells the wall and qBittorrent.

Every 15 seconds it compares: the lease (NAT-PMP, RFC 6886, renewed every 45 s of its 60), the wall's map, the port
that qBittorrent listens on; what differs is mended. So it does not matter what was restarted, recreated or reloaded.
Run by the host's own Python: the standard library of 3.10 only, nothing of this project. Its one argument is the
path of its configuration; keys and passwords are in there and never in argv or in the journal.
"""

from __future__ import annotations

import http.client
import ipaddress
import json
import os
import re
import secrets
import signal
import socket
import struct
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

DOCKER = "/var/run/docker.sock"
SERVER_PORT = 5351  # RFC 6886, 3.1
LIFETIME = 60  # Proton grants no more
RENEWAL = 45
PERIOD = 15
# RFC 6886, 3.1: 250 ms, doubled each time. Nine tries are two minutes, longer than the lease: we stop at 4 s.
_WAITS = (0.25, 0.5, 1, 2, 4)
UDP, TCP = 1, 2
# The port inside that we ask for. 0 would mean "delete all" (3.4). A gateway that keeps to the RFC delivers to it;
# Proton's ignores it and delivers to the number outside. The map has both.
INTERNAL = 6881
_RESULTS = {
    1: "it speaks another version",
    2: "not allowed: choose a server with port forwarding, and switch NAT-PMP on when you make the WireGuard file",
    3: "it has no network itself",
    4: "it has no port left; it is asked again",
    5: "it does not know the question",
}
# qBittorrent shuts out for an hour who fails five times.
_PATIENCE = 900


class PortError(Exception):
    """Why there is no port or it could not be told, in words, without secrets."""


@dataclass(frozen=True)
class Mapping:
    """What the gateway granted. `epoch` is its seconds since it lost all mappings, `lifetime` ours in seconds."""

    internal: int
    external: int
    lifetime: int
    epoch: int


# --- NAT-PMP -------------------------------------------------------------------------------------------------


class Gateway:
    """The tunnel's gateway, asked through the tunnel and by no other way."""

    def __init__(self, address: str, link: str | None, port: int = SERVER_PORT) -> None:
        self.address = address
        self.link = link
        self.port = port

    def map(self, protocol: int, internal: int, suggested: int, lifetime: int = LIFETIME) -> Mapping:
        """Ask for a mapping (RFC 6886, 3.3). Raises `PortError` when there is no answer, or a refusal."""
        question = struct.pack(">BBHHHI", 0, protocol, 0, internal, suggested, lifetime)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
            try:
                if self.link:
                    # No route leads to the gateway: the tunnel is not the host's own way out.
                    asker.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, self.link.encode())
                # Connected, the kernel lets through what comes from the gateway only (3.1 asks for that).
                asker.connect((self.address, self.port))
            except OSError as error:
                raise PortError(f"{self.address} cannot be asked by {self.link}: {error.strerror}") from None
            for wait in _WAITS:
                answer = self._ask(asker, question, wait)
                if answer is not None:
                    return answer
        raise PortError(f"the gateway {self.address} does not answer: does this server forward ports (NAT-PMP)?")

    def _ask(self, asker: socket.socket, question: bytes, wait: float) -> Mapping | None:
        until = time.monotonic() + wait
        try:
            asker.send(question)
        except OSError:
            time.sleep(wait)
            return None
        while (left := until - time.monotonic()) > 0:
            asker.settimeout(left)
            try:
                answer = asker.recv(1100)
            except TimeoutError:
                return None
            except OSError:
                # Refused (ICMP) at once: the gateway may be about to start.
                time.sleep(max(0.0, until - time.monotonic()))
                return None
            found = understood(answer, question)
            if found is not None:
                return found
        return None


def understood(answer: bytes, question: bytes) -> Mapping | None:
    """The mapping of an answer to this question; None for what is none. Raises `PortError` for a refusal."""
    operation, internal = question[1], struct.unpack(">H", question[4:6])[0]
    if len(answer) < 4 or answer[1] not in (operation + 128, 128):
        return None
    result = struct.unpack(">H", answer[2:4])[0]
    if answer[0] != 0 or result:
        raise PortError(f"the gateway refuses the port: {_RESULTS.get(result, f'result {result}')}")
    if len(answer) < 16 or answer[1] != operation + 128:
        return None
    epoch, inside, external, lifetime = struct.unpack(">IHHI", answer[4:16])
    # 0 is what Proton answers for "whatever you asked".
    if inside not in (internal, 0, external) or not external or not lifetime:
        return None
    return Mapping(inside or internal, external, lifetime, epoch)


@dataclass
class Lease:
    """The port of both protocols, renewed in time. `ask` is `Gateway.map`."""

    ask: Callable[[int, int, int], Mapping]
    clock: Callable[[], float] = time.monotonic
    port: int = 0
    inside: int = INTERNAL
    _renew_at: float = 0.0
    _ends_at: float = 0.0

    def current(self) -> int:
        """The port; asked for or renewed when that is due. Raises `PortError`; `port` is 0 once it has ended."""
        now = self.clock()
        if self.port and now < self._renew_at:
            return self.port
        try:
            # TCP is what trackers are told; UDP shall be the same number, so it suggests it.
            first = self.ask(TCP, INTERNAL, self.port)
            second = self.ask(UDP, INTERNAL, first.external)
        except PortError:
            if now >= self._ends_at:
                self.port = 0
            raise
        if second.external != first.external:
            told(f"TCP has port {first.external}, UDP {second.external}: peers will reach it by TCP only")
        lifetime = min(first.lifetime, second.lifetime)
        self.port, self.inside = first.external, first.internal
        # At three quarters: 45 of 60 s; RFC 6886, 3.3 asks for half at the latest of what was granted when longer.
        self._renew_at = now + min(RENEWAL, lifetime * 3 / 4)
        self._ends_at = now + lifetime
        return self.port


# --- the container -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Container:
    """A running container: `started` changes with each start. `address` is in the VPN's network."""

    identity: str
    started: str
    address: str


class _Local(http.client.HTTPConnection):
    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(10)
        self.sock.connect(DOCKER)


def docker(method: str, path: str, body: Any = None) -> bytes:
    """The engine's answer. Raises `PortError` when there is none."""
    connection = _Local("docker")
    try:
        content = None if body is None else json.dumps(body)
        connection.request(method, path, content, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        text = answer.read()
    except (OSError, http.client.HTTPException):
        raise PortError("Docker does not answer") from None
    finally:
        connection.close()
    if answer.status >= 300:
        raise PortError(f"Docker answers {answer.status}")
    return text


def container(configuration: dict[str, Any], service: str) -> Container | None:
    """The service's container, None when it does not run."""
    labels = [f"com.docker.compose.project={configuration['project']}", f"com.docker.compose.service={service}"]
    chosen = urllib.parse.quote(json.dumps({"label": labels, "status": ["running"]}))
    for each in json.loads(docker("GET", f"/containers/json?filters={chosen}")):
        details = json.loads(docker("GET", f"/containers/{each['Id']}/json"))
        networks = details["NetworkSettings"]["Networks"] or {}
        address = (networks.get(configuration["network"]) or {}).get("IPAddress") or ""
        return Container(each["Id"], details["State"]["StartedAt"], address)
    return None


def port_of_client(configuration: dict[str, Any]) -> int:
    """The port that Gluetun was given, from the file it keeps. Raises `PortError`."""
    client = container(configuration, configuration["client"])
    if client is None:
        raise PortError(f"{configuration['client']} does not run")
    command = {"AttachStdout": True, "Cmd": ["cat", "/tmp/gluetun/forwarded_port"], "Tty": True}  # noqa: S108
    made = json.loads(docker("POST", f"/containers/{client.identity}/exec", command))
    text = docker("POST", f"/exec/{made['Id']}/start", {"Detach": False, "Tty": True}).decode("latin-1")
    found = re.search(r"^\s*(\d{1,5})\s*$", text, re.MULTILINE)
    if not found or not 0 < int(found[1]) < 65536:
        raise PortError(f"{configuration['client']} has no port yet; see: docker logs {configuration['client']}")
    return int(found[1])


# --- the wall ------------------------------------------------------------------------------------------------


def elements(lease_port: int, inside: int, address: str) -> str:
    """What the wall's map shall hold, in nft's notation and its order of ports."""
    ports = sorted({lease_port, inside})
    pairs = [f"{protocol} . {port} : {address} . {lease_port}" for protocol in ("tcp", "udp") for port in ports]
    return ", ".join(pairs)


def fill_map(table: str, name: str, wanted: str) -> bool:
    """Let the map hold exactly that; whether anything changed. Raises `PortError` when there is no such map."""
    listed = _nft("list", "map", "inet", table, name)
    if listed is None:
        raise PortError(f"the wall has no map {name}: mediahost apply")
    if _elements(listed) == _elements(f"elements = {{ {wanted} }}" if wanted else ""):
        return False
    # One transaction: at no moment does the old port lead anywhere else.
    batch = f"flush map inet {table} {name}\n"
    batch += f"add element inet {table} {name} {{ {wanted} }}\n" if wanted else ""
    if _nft("-f", "-", text=batch) is None:
        raise PortError("nft does not take the port")
    return True


def _elements(listed: str) -> set[str]:
    found = re.search(r"elements = \{(.*?)\}", listed, re.DOTALL)
    return {" ".join(each.split()) for each in found[1].split(",")} if found else set()


def _nft(*arguments: str, text: str | None = None) -> str | None:
    try:
        # Numbers, not names of ports and protocols; but a protocol is written as a name everywhere.
        command = ["nft", *(() if text else ("-n",)), *arguments]
        done = subprocess.run(command, input=text, capture_output=True, text=True, check=False, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode:
        return None
    return re.sub(r"\b17 \. ", "udp . ", re.sub(r"\b6 \. ", "tcp . ", done.stdout))


# --- qBittorrent ---------------------------------------------------------------------------------------------


@dataclass
class Torrent:
    """qBittorrent's Web API (https://github.com/qbittorrent/qBittorrent/wiki/WebUI-API), asked from the host.

    It is given its key, which 5.2 and later know; an older one its name and password.
    """

    configuration: dict[str, Any] = field(repr=False)
    clock: Callable[[], float] = time.monotonic
    _cookie: str = field(default="", repr=False)
    _container: Container | None = None
    _refused_until: float = 0.0

    def listen(self, port: int, where: Container) -> bool:
        """Let it listen there; whether it did not before. Raises `PortError`."""
        if where != self._container:
            # Another container, or started anew: nothing that was known holds.
            self._container, self._cookie, self._refused_until = where, "", 0.0
        if self.clock() < self._refused_until:
            return False
        told_port, random_port = self._preferences(where)
        if told_port == port and not random_port:
            return False
        wanted = json.dumps({"listen_port": port, "random_port": False, "upnp": False})
        self._call(where, "POST", "/api/v2/app/setPreferences", {"json": wanted})
        if self._preferences(where)[0] != port:
            raise PortError("qBittorrent does not keep the port")
        return True

    def _preferences(self, where: Container) -> tuple[int, bool]:
        try:
            found = json.loads(self._call(where, "GET", "/api/v2/app/preferences"))
            return int(found["listen_port"]), bool(found.get("random_port", False))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise PortError("qBittorrent does not tell its preferences") from None

    def _call(self, where: Container, method: str, path: str, form: dict[str, str] | None = None) -> str:
        status, text = self._send(where, method, path, form)
        if status in (401, 403) and not self._cookie:
            self._log_in(where)
            status, text = self._send(where, method, path, form)
        elif status in (401, 403):
            self._cookie = ""  # the session has ended
            self._log_in(where)
            status, text = self._send(where, method, path, form)
        if status != 200:
            raise PortError(f"qBittorrent answers {status} to {path}")
        return text

    def _log_in(self, where: Container) -> None:
        login = {"username": self.configuration["user"], "password": self.configuration["password"]}
        status, text = self._send(where, "POST", "/api/v2/auth/login", login)
        if status not in (200, 204) or text.strip() == "Fails." or not self._cookie:
            self._refused_until = self.clock() + _PATIENCE
            raise PortError(
                f"qBittorrent takes neither the vault's key nor its password (it answers {status}): set its password "
                f"to the vault's (mediahost secrets get); it is asked again in {_PATIENCE // 60} minutes"
            )

    def _send(self, where: Container, method: str, path: str, form: dict[str, str] | None) -> tuple[int, str]:
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        headers |= {"Cookie": self._cookie} if self._cookie else {}
        if not self._cookie and not path.endswith("/login"):
            headers["Authorization"] = f"Bearer {self.configuration['api_key']}"
        body = urllib.parse.urlencode(form) if form is not None else None
        try:
            connection = http.client.HTTPConnection(where.address, int(self.configuration["web_port"]), timeout=10)
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            text = answer.read(4 << 20).decode("utf-8", "replace")
        except (OSError, http.client.HTTPException):
            raise PortError("qBittorrent does not answer yet") from None
        cookie = answer.getheader("Set-Cookie") or ""
        # SID, or QBT_SID_<port> since 5.2.
        if path.endswith("/login") and re.match(r"[A-Za-z0-9_]*SID[A-Za-z0-9_]*=", cookie):
            self._cookie = cookie.partition(";")[0]
        return answer.status, text


# --- the service ---------------------------------------------------------------------------------------------


def told(words: str) -> None:
    """A line in the journal."""
    sys.stdout.write(f"{words}\n")
    sys.stdout.flush()


class Service:
    """One look after the other; what is wrong is told once, until it changes."""

    def __init__(self, configuration: dict[str, Any]) -> None:
        self.configuration = configuration
        gateway = Gateway(configuration["gateway"], configuration["link"])
        self.lease = Lease(gateway.map)
        self.torrent = Torrent(configuration)
        self.port = 0
        self.wrong = ""

    def look(self) -> None:
        """Compare everything, and mend what differs."""
        try:
            port = self._port()
            self._keep(port)
            holder = self._holder()
            if self.configuration["source"] == "nat-pmp":
                wanted = elements(port, self.lease.inside, holder.address)
                if fill_map(self.configuration["table"], self.configuration["map"], wanted):
                    told(f"the wall lets port {port} through to {self.configuration['service']}")
            if self.torrent.listen(port, holder):
                told(f"qBittorrent listens on port {port}")
            if self.wrong:
                told("all is well again")
            self.wrong = ""
        except PortError as error:
            if str(error) != self.wrong:
                told(str(error))
            self.wrong = str(error)

    def _port(self) -> int:
        try:
            if self.configuration["source"] == "gluetun":
                return port_of_client(self.configuration)
            return self.lease.current()
        except PortError:
            if self.configuration["source"] == "gluetun" or not self.lease.port:
                self._close()
            raise

    def _keep(self, port: int) -> None:
        state = Path(self.configuration["state"])
        if self.port == port and state.exists():
            return
        told(f"the provider forwards port {port}")
        new = state.with_suffix(".new")
        new.write_text(f"{port}\n")
        new.replace(state)
        self.port = port

    def _close(self) -> None:
        """The lease has ended: the number may be somebody else's by now."""
        self.port = 0
        Path(self.configuration["state"]).unlink(missing_ok=True)
        if self.configuration["source"] == "nat-pmp":
            fill_map(self.configuration["table"], self.configuration["map"], "")

    def _holder(self) -> Container:
        """The container in whose network qBittorrent listens."""
        own = container(self.configuration, self.configuration["service"])
        if own is None:
            raise PortError(f"{self.configuration['service']} does not run")
        if self.configuration["source"] == "nat-pmp":
            address = own.address
        else:
            client = container(self.configuration, self.configuration["client"])
            address = client.address if client else ""
        try:
            ipaddress.ip_address(address)
        except ValueError:
            raise PortError(f"{self.configuration['service']} is not in the VPN's network: mediahost apply") from None
        return Container(own.identity, own.started, address)


def main() -> None:
    """Run until told to stop."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    # Not all hosts of a power cut at the same moment.
    time.sleep(secrets.randbelow(1000) / 1000)
    service = Service(json.loads(Path(sys.argv[1]).read_text()))
    while True:
        service.look()
        time.sleep(PERIOD)


if __name__ == "__main__":
    os.umask(0o022)
    main()
