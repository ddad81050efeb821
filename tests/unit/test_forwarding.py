"""The forwarded port: asked for as RFC 6886 says, let through the wall, told to qBittorrent, followed.

The gateway and qBittorrent are stand-ins on loopback. The gateway refuses what the RFC does not allow; qBittorrent
keeps to its Web API, in the form of 5.2 (key) and of 5.1 (name, password and cookie). nft is the real one where it
is installed.
"""

from __future__ import annotations

import json
import shutil
import socket
import struct
import subprocess
import sys
import threading
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mediahost import config
from mediahost import vpn_port_on_host as program
from mediahost.catalog import load_catalog
from mediahost.config import ConfigError
from mediahost.render import forwarding
from mediahost.stack import Stack, build_stack
from mediahost.vpn_port_on_host import Container, Gateway, Lease, Mapping, PortError, Service, Torrent
from tests.unit.test_wireguard import FILES

ROOT = Path(__file__).resolve().parent.parent.parent


class RfcGateway:
    """A NAT-PMP gateway that does what RFC 6886 asks, and counts what breaks it.

    `deaf` questions are not answered; `answers` are sent before the right one; `result` refuses all.
    """

    def __init__(self, address: str = "127.0.0.1", port: int = 0) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind((address, port))
        self.port = self.socket.getsockname()[1]
        self.mappings: dict[tuple[int, int], int] = {}
        self.free = 40000
        self.deaf = 0
        self.noise: list[bytes] = []
        self.result = 0
        self.violations: list[str] = []
        self.questions: list[tuple[int, int, int, int]] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                question, who = self.socket.recvfrom(2048)
            except OSError:
                return
            if self.deaf:
                self.deaf -= 1
                continue
            for each in self.noise:
                self.socket.sendto(each, who)
            self.socket.sendto(self._answer(question), who)

    def _answer(self, question: bytes) -> bytes:
        # 3.3: version 0, opcode 1 or 2, 16 reserved bits that are zero, two ports, the lifetime: 12 bytes.
        if len(question) != 12:
            self.violations.append(f"{len(question)} bytes")
        version, operation, reserved, internal, suggested, lifetime = struct.unpack(">BBHHHI", question)
        if version != 0:
            self.violations.append("version")
            return struct.pack(">BBHI", 0, operation + 128, 1, 7)
        if operation not in (1, 2):
            self.violations.append("opcode")
            return struct.pack(">BBHI", 0, operation + 128, 5, 7)
        if reserved:
            self.violations.append("reserved bits")
        if not internal:
            self.violations.append("internal port 0 is for deleting (3.4)")
        self.questions.append((operation, internal, suggested, lifetime))
        if self.result:
            return struct.pack(">BBHIHHI", 0, operation + 128, self.result, 7, internal, 0, 0)
        taken = set(self.mappings.values())
        mine = self.mappings.get((operation, internal))
        if mine is None:
            other = self.mappings.get((3 - operation, internal))
            # 3.3: both protocols of one client get one number; what is suggested, if it is free.
            mine = suggested if suggested and suggested in (other, *({suggested} - taken)) else other or self.free
            self.mappings[operation, internal] = mine
        return struct.pack(">BBHIHHI", 0, operation + 128, 0, 7, internal, mine, min(lifetime, 60))

    def forget(self, next_port: int) -> None:
        """The server was restarted: other ports."""
        self.mappings.clear()
        self.free = next_port


@pytest.fixture
def gateway() -> Iterator[RfcGateway]:
    made = RfcGateway()
    yield made
    made.socket.close()
    assert made.violations == []


@pytest.fixture
def asker(gateway: RfcGateway, monkeypatch: pytest.MonkeyPatch) -> Gateway:
    monkeypatch.setattr(program, "_WAITS", (0.05, 0.1, 0.2))
    return Gateway("127.0.0.1", None, gateway.port)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


# --- NAT-PMP


def test_tcp_and_udp_get_one_port_and_keep_it_when_it_is_renewed(gateway: RfcGateway, asker: Gateway) -> None:
    clock = Clock()
    lease = Lease(asker.map, clock)
    assert lease.current() == 40000
    assert gateway.questions == [(2, 6881, 0, 60), (1, 6881, 40000, 60)]
    clock.now += 44
    assert lease.current() == 40000
    assert len(gateway.questions) == 2
    clock.now += 2
    assert lease.current() == 40000
    # What it had is suggested, so that a gateway that forgot gives the same again.
    assert gateway.questions[2:] == [(2, 6881, 40000, 60), (1, 6881, 40000, 60)]


def test_another_port_is_followed(gateway: RfcGateway, asker: Gateway) -> None:
    clock = Clock()
    lease = Lease(asker.map, clock)
    assert lease.current() == 40000
    gateway.mappings[2, 6881] = gateway.mappings[1, 6881] = 51000
    clock.now += 46
    assert lease.current() == 51000


def test_a_question_that_is_lost_is_asked_again(gateway: RfcGateway, asker: Gateway) -> None:
    gateway.deaf = 2
    assert asker.map(2, 6881, 0).external == 40000


def test_answers_to_other_questions_and_noise_are_passed_over(gateway: RfcGateway, asker: Gateway) -> None:
    gateway.noise = [
        b"",
        b"\0",
        b"noise" * 9,
        struct.pack(">BBHI4s", 0, 128, 0, 7, b"\1\2\3\4"),  # 3.2.1: the announcement of an address
        struct.pack(">BBHIHHI", 0, 129, 0, 7, 6881, 666, 60),  # of UDP
        struct.pack(">BBHIHHI", 0, 130, 0, 7, 1234, 667, 60),  # for another port
    ]
    assert asker.map(2, 6881, 0).external == 40000


@pytest.mark.parametrize(
    ("result", "what"), [(2, "switch NAT-PMP on"), (4, "no port left"), (3, "no network"), (99, "99")]
)
def test_a_refusal_is_told_in_words(gateway: RfcGateway, asker: Gateway, result: int, what: str) -> None:
    gateway.result = result
    with pytest.raises(PortError, match=what):
        asker.map(2, 6881, 0)


def test_a_gateway_that_does_not_answer_is_told_and_the_port_ends_with_its_lease(
    gateway: RfcGateway, asker: Gateway
) -> None:
    clock = Clock()
    lease = Lease(asker.map, clock)
    assert lease.current() == 40000
    gateway.deaf = 99
    clock.now += 50
    with pytest.raises(PortError, match="does not answer"):
        lease.current()
    assert lease.port == 40000  # ten seconds are left
    clock.now += 11
    with pytest.raises(PortError):
        lease.current()
    assert lease.port == 0


def test_nobody_listening_is_told_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "_WAITS", (0.01, 0.02))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    with pytest.raises(PortError, match="does not answer"):
        Gateway("127.0.0.1", None, port).map(2, 6881, 0)


@given(st.binary(max_size=40))
def test_no_answer_breaks_it(answer: bytes) -> None:
    question = struct.pack(">BBHHHI", 0, 2, 0, 6881, 0, 60)
    try:
        found = program.understood(answer, question)
    except PortError:
        return
    assert found is None or (0 < found.external < 65536 and found.lifetime > 0)


# --- qBittorrent


class WebApi:
    """qBittorrent's Web API as far as it is used. `new` knows keys (5.2), else a login's cookie counts (5.1)."""

    def __init__(self, new: bool, password: str = "the password") -> None:  # noqa: S107
        self.new, self.password = new, password
        self.listen_port, self.random_port = 6881, True
        self.logins = 0
        self.session = "s1"
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:  # noqa: N802
                outer.serve(self, {})

            def do_POST(self) -> None:  # noqa: N802
                body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
                outer.serve(self, dict(urllib.parse.parse_qsl(body)))

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def serve(self, request: BaseHTTPRequestHandler, form: dict[str, str]) -> None:
        # It refuses a Host header with another port than its own.
        assert request.headers["Host"] == f"127.0.0.1:{self.server.server_port}"
        key = self.new and request.headers.get("Authorization") == "Bearer qbt_key"
        cookie = request.headers.get("Cookie") == f"SID={self.session}"
        code, text, headers = 403, "Forbidden", {}
        if request.path == "/api/v2/auth/login":
            self.logins += 1
            right = form == {"username": "admin", "password": self.password}
            code, text = 200, "Ok." if right else "Fails."
            headers = {"Set-Cookie": f"SID={self.session}; HttpOnly; path=/"} if right else {}
        elif key or cookie:
            code, text = 200, ""
            if request.path == "/api/v2/app/preferences":
                text = json.dumps({"listen_port": self.listen_port, "random_port": self.random_port})
            elif request.path == "/api/v2/app/setPreferences" and request.command == "POST":
                wanted = json.loads(form["json"])
                self.listen_port, self.random_port = wanted["listen_port"], wanted["random_port"]
            else:
                code = 404
        request.send_response(code)
        for name, value in headers.items():
            request.send_header(name, value)
        request.send_header("Content-Length", str(len(text)))
        request.end_headers()
        request.wfile.write(text.encode())


HERE = Container("c1", "2026-11-21T10:00:00Z", "127.0.0.1")


@pytest.fixture(params=["5.2", "5.1"])
def api(request: pytest.FixtureRequest) -> Iterator[WebApi]:
    made = WebApi(new=request.param == "5.2")
    yield made
    made.server.shutdown()
    made.server.server_close()


def torrent(api: WebApi, clock: Any = None) -> Torrent:
    told = {"user": "admin", "password": "the password", "api_key": "qbt_key", "web_port": api.server.server_port}
    return Torrent(told, clock or Clock())


def test_qbittorrent_listens_where_it_is_told_and_is_told_once(api: WebApi) -> None:
    client = torrent(api)
    assert client.listen(40000, HERE)
    assert (api.listen_port, api.random_port) == (40000, False)
    assert not client.listen(40000, HERE)
    assert client.listen(51000, HERE)
    assert api.listen_port == 51000
    assert api.logins == (0 if api.new else 1)


def test_it_is_told_again_when_it_was_started_anew_or_somebody_changed_it(api: WebApi) -> None:
    client = torrent(api)
    client.listen(40000, HERE)
    api.listen_port, api.session = 6881, "s2"
    assert client.listen(40000, Container("c2", "2026-11-21T11:00:00Z", "127.0.0.1"))
    api.listen_port, api.session = 1234, "s3"  # an expired session in the same container
    assert client.listen(40000, HERE)
    assert api.listen_port == 40000


def test_with_a_wrong_password_it_does_not_get_us_banned_and_the_password_is_not_told() -> None:
    api = WebApi(new=False, password="another one")
    clock = Clock()
    client = torrent(api, clock)
    with pytest.raises(PortError, match="neither the vault's key nor its password") as refused:
        client.listen(40000, HERE)
    assert "the password" not in str(refused.value).replace("password to the", "")
    assert "qbt_key" not in str(refused.value) + repr(client)
    for _ in range(20):
        clock.now += 15
        assert not client.listen(40000, HERE)
    assert api.logins == 1
    clock.now += 900
    with pytest.raises(PortError):
        client.listen(40000, HERE)
    # A container that was started anew may know the password.
    api.password = "the password"
    assert client.listen(40000, Container("c1", "later", "127.0.0.1"))
    # Its thread would go round and round on a closed socket.
    api.server.shutdown()
    api.server.server_close()


def test_a_qbittorrent_that_is_still_starting_is_told_and_asked_again() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    client = Torrent({"user": "a", "password": "b", "api_key": "c", "web_port": port})
    with pytest.raises(PortError, match="does not answer yet"):
        client.listen(40000, HERE)


# --- the wall's map

_NFT = """
import subprocess, sys
from mediahost import vpn_port_on_host as program
def table():
    text = "table inet t {}\\ndelete table inet t\\ntable inet t { map forwarded "
    text += "{ type inet_proto . inet_service : ipv4_addr . inet_service\\n }\\n }"
    subprocess.run(["nft", "-f", "-"], input=text, text=True, check=True)
def listed():
    return subprocess.run(["nft", "list", "map", "inet", "t", "forwarded"], capture_output=True, text=True).stdout
table()
wanted = program.elements(40000, 6881, "172.29.29.3")
assert program.fill_map("t", "forwarded", wanted), "filled"
assert not program.fill_map("t", "forwarded", wanted), "the same again changes nothing"
assert "tcp . 40000 : 172.29.29.3 . 40000" in listed() and "udp . 6881 : 172.29.29.3 . 40000" in listed()
assert program.fill_map("t", "forwarded", program.elements(51000, 6881, "172.29.29.4")), "another port"
assert "40000" not in listed() and "51000" in listed()
table()
assert program.fill_map("t", "forwarded", wanted), "the table was loaded anew"
assert program.fill_map("t", "forwarded", ""), "emptied"
assert "172.29" not in listed() and not program.fill_map("t", "forwarded", "")
subprocess.run(["nft", "delete", "table", "inet", "t"], check=True)
try:
    program.fill_map("t", "forwarded", wanted)
except program.PortError as error:
    assert "mediahost apply" in str(error)
else:
    raise AssertionError("no table, and nothing told")
"""


def _can_nft() -> bool:
    if not shutil.which("nft") or not shutil.which("unshare"):
        return False
    return (
        subprocess.run(["unshare", "-Urn", "nft", "list", "tables"], capture_output=True, check=False).returncode == 0
    )


@pytest.mark.skipif(not _can_nft(), reason="needs nft and a network namespace of one's own")
def test_the_real_nft_takes_the_port_and_loses_the_old_one() -> None:
    command = ["unshare", "-Urn", sys.executable, "-c", _NFT]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# --- the way to the gateway

_ROUTE = """
import os, signal, subprocess, sys, time
from mediahost import vpn_port_on_host as program
from tests.unit.test_forwarding import RfcGateway
def ip(*words):
    subprocess.run(["ip", *words], check=True)
ready, tell = os.pipe()
far = os.fork()
if far == 0:
    __import__("ctypes").CDLL(None).unshare(0x40000000)
    os.write(tell, b"x")
    time.sleep(1)  # until the interface is here
    while subprocess.run(["ip", "addr", "add", "10.2.0.1/32", "dev", "far0"], stderr=-3).returncode:
        time.sleep(0.1)
    ip("link", "set", "lo", "up")
    ip("link", "set", "far0", "up")
    ip("route", "add", "10.2.0.2", "dev", "far0")
    gateway = RfcGateway("10.2.0.1", 5351)
    time.sleep(60)
    os._exit(0)
os.read(ready, 1)
try:
    for name, address in (("up0", "10.0.0.2/24"), ("wg-vpn", "10.2.0.2/32")):
        ip("link", "add", "name", name, "type", "veth", "peer", "name", "far0" if name == "wg-vpn" else "up1")
        ip("addr", "add", address, "dev", name)
    ip("link", "set", "far0", "netns", str(far))
    for name in ("lo", "up0", "up1", "wg-vpn"):
        ip("link", "set", name, "up")
    # The host's own way out is another one, and nothing in `main` leads to the gateway.
    ip("route", "add", "default", "via", "10.0.0.1")
    assert program.Gateway("10.2.0.1", "wg-vpn").map(2, 6881, 0).external == 40000
    # The control: unbound, the question goes the host's own way, where nobody answers.
    try:
        program._WAITS = (0.2,)
        program.Gateway("10.2.0.1", None).map(2, 6881, 0)
    except program.PortError:
        print("only through the tunnel")
finally:
    os.kill(far, 9)
"""


def _can_route() -> bool:
    command = ["unshare", "-n", "ip", "link", "add", "name", "x0", "type", "veth", "peer", "name", "x1"]
    return bool(shutil.which("unshare")) and subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not _can_route(), reason="needs root, unshare and veth pairs")
def test_the_gateway_is_asked_through_the_tunnel_though_no_route_leads_there() -> None:
    command = ["unshare", "-n", sys.executable, "-c", _ROUTE]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout == "only through the tunnel\n", done.stderr


# --- the service as a whole


@pytest.fixture
def world(
    gateway: RfcGateway, api: WebApi, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> tuple[Service, dict[str, Any], Clock]:
    """The service between both stand-ins; Docker's answers and nft are made up."""
    clock = Clock()
    state: dict[str, Any] = {"container": HERE, "map": "", "journal": []}
    monkeypatch.setattr(program, "_WAITS", (0.05, 0.1))
    monkeypatch.setattr(program, "SERVER_PORT", gateway.port)
    monkeypatch.setattr(program, "container", lambda *_: state["container"])
    monkeypatch.setattr(program, "told", state["journal"].append)

    def fill(_table: str, _name: str, wanted: str) -> bool:
        changed: bool = state["map"] != wanted
        state["map"] = wanted
        return changed

    monkeypatch.setattr(program, "fill_map", fill)
    told = {
        "source": "nat-pmp",
        "gateway": "127.0.0.1",
        "link": None,
        "table": "t",
        "map": "m",
        "service": "qbittorrent",
    }
    told |= {"state": str(tmp_path / "port"), "user": "admin", "password": "the password", "api_key": "qbt_key"}
    service = Service({**told, "web_port": api.server.server_port})
    service.lease = Lease(Gateway("127.0.0.1", None, gateway.port).map, clock)
    service.torrent.clock = clock
    return service, state, clock


def test_the_port_reaches_file_wall_and_client_and_all_follow_it(
    world: tuple[Service, dict[str, Any], Clock], gateway: RfcGateway, api: WebApi, tmp_path: Path
) -> None:
    service, state, clock = world
    service.look()
    assert (tmp_path / "port").read_text() == "40000\n"
    assert "tcp . 40000 : 127.0.0.1 . 40000" in state["map"]
    assert api.listen_port == 40000
    quiet = len(state["journal"])
    service.look()
    assert len(state["journal"]) == quiet
    gateway.mappings[2, 6881] = gateway.mappings[1, 6881] = 51000
    clock.now += 46
    service.look()
    assert (tmp_path / "port").read_text() == "51000\n"
    assert "40000" not in state["map"]
    assert api.listen_port == 51000
    # The table was replaced, qBittorrent recreated with what it knew: both within one look.
    state["map"], state["container"], api.listen_port = "", Container("c2", "later", "127.0.0.1"), 6881
    service.look()
    assert "51000" in state["map"]
    assert api.listen_port == 51000


def test_a_lease_that_has_ended_closes_the_port_and_is_told_once(
    world: tuple[Service, dict[str, Any], Clock], gateway: RfcGateway, tmp_path: Path
) -> None:
    service, state, clock = world
    service.look()
    gateway.deaf = 999
    clock.now += 61
    service.look()
    service.look()
    assert state["map"] == ""
    assert not (tmp_path / "port").exists()
    assert sum("does not answer" in words for words in state["journal"]) == 1
    gateway.deaf = 0
    service.look()
    assert "all is well again" in state["journal"]


def test_nothing_that_it_tells_holds_a_secret(world: tuple[Service, dict[str, Any], Clock]) -> None:
    service, state, _ = world
    service.look()
    state["container"] = None
    service.look()
    assert not any("the password" in words or "qbt_key" in words for words in state["journal"])


# --- Docker's answers


class Engine(ThreadingHTTPServer):
    """Docker's API on a socket, as far as it is asked; `port_file` is what Gluetun's file holds."""

    address_family = socket.AF_UNIX
    port_file = "40555\n"

    def __init__(self, path: Path) -> None:
        engine = self

        class Handler(BaseHTTPRequestHandler):
            def address_string(self) -> str:
                return "local"

            def do_GET(self) -> None:  # noqa: N802
                query = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)
                labels = json.loads(query.get("filters", ["{}"])[0]).get("label", [])
                name = next((each.rpartition("=")[2] for each in labels if "service" in each), "")
                if self.path.startswith("/containers/json"):
                    known = name in ("qbittorrent", "gluetun")
                    self.reply(200, json.dumps([{"Id": name}] if known else []).encode())
                else:
                    networks = {
                        "mediahost_vpn": {"IPAddress": "172.29.29.3"},
                        "mediahost_confined": {"IPAddress": "x"},
                    }
                    shared = "qbittorrent" in self.path
                    details = {
                        "State": {"StartedAt": "now"},
                        "NetworkSettings": {"Networks": {} if shared else networks},
                    }
                    self.reply(200, json.dumps(details).encode())

            def do_POST(self) -> None:  # noqa: N802
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                if self.path == "/containers/gluetun/exec":
                    self.reply(201, b'{"Id": "e1"}')
                elif self.path == "/exec/e1/start":
                    # A raw stream, which ends with the connection.
                    self.reply(200, engine.port_file.replace("\n", "\r\n").encode(), length=False)
                else:
                    self.reply(404, b"{}")

            def reply(self, code: int, content: bytes, length: bool = True) -> None:
                self.send_response(code)
                if length:
                    self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: Any) -> None:
                pass

        super().__init__(str(path), Handler)  # type: ignore[arg-type]

    def server_bind(self) -> None:
        self.socket.bind(self.server_address)
        self.server_name, self.server_port = "docker", 0


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    made = Engine(tmp_path / "docker.sock")
    threading.Thread(target=made.serve_forever, args=(0.02,), daemon=True).start()
    monkeypatch.setattr(program, "DOCKER", str(tmp_path / "docker.sock"))
    yield made
    made.shutdown()
    made.server_close()


NAMES = {"project": "mediahost", "network": "mediahost_vpn", "client": "gluetun", "service": "qbittorrent"}


def test_gluetuns_port_is_read_from_the_file_it_keeps(engine: Engine) -> None:
    assert program.port_of_client(NAMES) == 40555
    for odd in ("", "cat: can't open '/tmp/gluetun/forwarded_port'\n", "0\n", "99999\n"):
        engine.port_file = odd
        with pytest.raises(PortError, match="has no port yet"):
            program.port_of_client(NAMES)
    with pytest.raises(PortError, match="does not run"):
        program.port_of_client({**NAMES, "client": "other"})


def test_in_mode_container_qbittorrent_is_reached_at_gluetuns_address(engine: Engine) -> None:
    service = Service({**NAMES, "source": "gluetun", "gateway": "10.2.0.1", "link": "wg-vpn", "state": "/nowhere"})
    assert service._holder() == Container("qbittorrent", "now", "172.29.29.3")
    direct = Service({**NAMES, "source": "nat-pmp", "gateway": "10.2.0.1", "link": "wg-vpn", "state": "/nowhere"})
    with pytest.raises(PortError, match="not in the VPN's network"):
        direct._holder()


def test_an_engine_that_does_not_run_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "DOCKER", "/nonexistent/docker.sock")
    with pytest.raises(PortError, match="Docker does not answer"):
        program.container(NAMES, "qbittorrent")


# --- the files


def _stack(**settings: Any) -> tuple[config.Settings, Stack]:
    read = config.read("nas", {"vpn_provider": "proton", **settings})

    def secret(entry: str, kind: str) -> str:
        return FILES["proton"] if kind == "given" else f"secret of {entry}"

    return read, build_stack(read, load_catalog(), "nas", secret)


@pytest.mark.parametrize("mode", ["host", "container"])
def test_the_files_hold_secrets_in_one_place_that_root_alone_reads(mode: str) -> None:
    settings, stack = _stack(vpn_mode=mode, vpn_port_forwarding="nat-pmp")
    files = {file.path: file for file in forwarding.files(stack.vpn, settings, stack)}
    assert files.keys() == {forwarding.UNIT_PATH, forwarding.PROGRAM_PATH, forwarding.CONFIGURATION_PATH}
    held = files[forwarding.CONFIGURATION_PATH]
    assert (held.mode, held.owner, held.secret) == ("0600", "root", True)
    told = json.loads(held.content)
    assert told["source"] == ("nat-pmp" if mode == "host" else "gluetun")
    assert told["gateway"] == "10.2.0.1"
    for path in (forwarding.UNIT_PATH, forwarding.PROGRAM_PATH):
        assert told["password"].encode() not in files[path].content
        assert told["api_key"].encode() not in files[path].content
    # It runs by itself, without anything of this project.
    compiled = compile(files[forwarding.PROGRAM_PATH].content, "program", "exec")
    assert compiled
    assert b"import mediahost" not in files[forwarding.PROGRAM_PATH].content
    assert b"from mediahost" not in files[forwarding.PROGRAM_PATH].content


@pytest.mark.parametrize("wanted", ["off"])
def test_without_nat_pmp_nothing_runs(wanted: Any) -> None:
    settings, stack = _stack(vpn_port_forwarding=wanted)
    assert forwarding.files(stack.vpn, settings, stack) == ()
    assert forwarding.packages(stack.vpn, stack) == ()
    assert forwarding.files(None, settings, stack) == ()


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"vpn_provider": "airvpn", "vpn_port_forwarding": "nat-pmp"}, "write its number"),
        ({"vpn_provider": "proton", "vpn_port_forwarding": 40000}, "write nat-pmp"),
        ({"vpn_provider": "nordvpn", "vpn_port_forwarding": "nat-pmp"}, "forwards no ports"),
    ],
)
def test_a_port_that_the_provider_cannot_give_is_refused_before_anything_runs(
    settings: dict[str, Any], what: str
) -> None:
    with pytest.raises(ConfigError, match=what):
        config.read("nas", settings)
    # The control: what it can give is taken.
    config.read("nas", {"vpn_provider": "airvpn", "vpn_port_forwarding": 40000})
    config.read("nas", {"vpn_provider": "custom", "vpn_port_forwarding": "nat-pmp"})


def test_a_gateway_that_ignores_the_inner_port_and_one_that_does_not_are_both_led_to_the_client() -> None:
    assert program.elements(40000, 6881, "172.29.29.3").count("172.29.29.3 . 40000") == 4
    assert program.elements(6881, 6881, "172.29.29.3").count("172.29.29.3 . 6881") == 2
    question = struct.pack(">BBHHHI", 0, 2, 0, 6881, 0, 60)
    for inside in (6881, 0, 40000):
        answer = struct.pack(">BBHIHHI", 0, 130, 0, 7, inside, 40000, 60)
        found = program.understood(answer, question)
        assert isinstance(found, Mapping)
        assert found.external == 40000
