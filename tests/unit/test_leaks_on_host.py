"""The leak test finds leaks that are there and no others, in network namespaces that play a host.

The host: an uplink, the VPN's bridge with a container behind it, and a TUN device that stands in for WireGuard.
Packets, routes, captures and namespaces are the kernel's own; only Docker's answers are made up.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mediahost import on_host, vpn_on_host, wireguard
from mediahost.config import read
from mediahost.render import wall
from mediahost.vpn import Vpn
from tests.unit.test_wireguard import FILES

ROOT = Path(__file__).resolve().parent.parent.parent
SETTINGS = read("nas", {"firewall_lan": ["10.0.0.0/24"]})
TUNNEL = wireguard.read(FILES["proton"])
VPN = Vpn("proton", "host", True, TUNNEL, "172.29.29.0/24", ("10.2.0.1",), "off", ("qbittorrent",))
FAR, FAR6, ROUTER = "198.51.100.7", "2001:db8:ffff::7", "10.0.0.1"

_HOST = """
import fcntl, json, os, struct, subprocess, sys, time
from mediahost import leaks_on_host, vpn_on_host
from mediahost.vpn_on_host import Namespace

def ip(*words):
    subprocess.run(["ip", *words], check=True)

def namespace():
    ready, told = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.unshare(0x40000000) if hasattr(os, "unshare") else __import__("ctypes").CDLL(None).unshare(0x40000000)
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        os.write(told, b"x")
        time.sleep(300)
        os._exit(0)
    os.read(ready, 1)
    return pid

def within(pid, *words):
    subprocess.run(["nsenter", "-t", str(pid), "-n", *words], check=True)

def write(path, text):
    with open(path, "w") as file:
        file.write(text)

case = json.loads(sys.argv[1])
internet, container = namespace(), namespace()
try:
    subprocess.run(["mount", "-t", "proc", "proc", "/proc"], check=False)
    ip("link", "set", "lo", "up")
    write("/proc/sys/net/ipv4/ip_forward", "1")
    write("/proc/sys/net/ipv4/conf/all/rp_filter", "0")
    ip("link", "add", "name", "up0", "type", "veth", "peer", "name", "up1")
    ip("link", "set", "up1", "netns", str(internet))
    ip("addr", "add", "10.0.0.2/24", "dev", "up0")
    ip("link", "set", "up0", "up")
    within(internet, "ip", "addr", "add", "10.0.0.1/24", "dev", "up1")
    within(internet, "ip", "link", "set", "up1", "up")
    ip("route", "add", "default", "via", "10.0.0.1")
    ip("link", "add", "name", "br-vpn", "type", "bridge")
    ip("addr", "add", "172.29.29.1/24", "dev", "br-vpn")
    ip("link", "set", "br-vpn", "up")
    ip("link", "add", "name", "vethc", "type", "veth", "peer", "name", "cont0")
    ip("link", "set", "cont0", "netns", str(container))
    ip("link", "set", "vethc", "master", "br-vpn")
    ip("link", "set", "vethc", "up")
    within(container, "ip", "link", "set", "cont0", "name", "eth0")
    within(container, "ip", "addr", "add", "172.29.29.2/24", "dev", "eth0")
    within(container, "ip", "link", "set", "eth0", "up")
    if case["request"]["mode"] == "host":
        within(container, "ip", "route", "add", "default", "via", "172.29.29.1")
    tunnel = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(tunnel, 0x400454CA, struct.pack("16sH", b"wg-vpn", 0x0001 | 0x1000))
    if case["request"]["mode"] == "container":
        # Gluetun's namespace has the tunnel, and a filter of its own, which is left out: the host's wall is tried.
        ip("link", "set", "wg-vpn", "netns", str(container), "name", "tun0")
        within(container, "ip", "addr", "add", "10.2.0.2/32", "dev", "tun0")
        within(container, "ip", "link", "set", "tun0", "up")
        within(container, "ip", "route", "replace", "default", "dev", "tun0", "metric", "10")
        within(container, "ip", "route", "add", "default", "via", "172.29.29.1", "metric", "100")
    else:
        ip("addr", "add", "10.2.0.2/32", "dev", "wg-vpn")
        ip("link", "set", "wg-vpn", "up")
    if case["rule"]:
        ip("route", "add", "default", "dev", "wg-vpn", "metric", "10", "table", "51820")
        ip("rule", "add", "priority", "100", "iif", "br-vpn", "lookup", "51820")
        if case["fallback"]:
            ip("route", "add", "unreachable", "default", "metric", "4294967295", "table", "51820")
    if case["second"]:
        # A second network that is not internal, as `docker network connect` makes it.
        ip("link", "add", "name", "br-other", "type", "bridge")
        ip("addr", "add", "172.30.1.1/24", "dev", "br-other")
        ip("link", "set", "br-other", "up")
        ip("link", "add", "name", "vetho", "type", "veth", "peer", "name", "cont1")
        ip("link", "set", "cont1", "netns", str(container))
        ip("link", "set", "vetho", "master", "br-other")
        ip("link", "set", "vetho", "up")
        within(container, "ip", "link", "set", "cont1", "name", "eth1")
        within(container, "ip", "addr", "add", "172.30.1.2/24", "dev", "eth1")
        within(container, "ip", "link", "set", "eth1", "up")
        within(container, "ip", "route", "add", "default", "via", "172.30.1.1", "metric", "100")
    if case["wall"]:
        subprocess.run(["nft", "-f", "-"], input=case["wall"], text=True, check=True)
    if case["inside"]:
        enter = ["nsenter", "-t", str(container), "-n", "nft"]
        load = [*enter, "-D", "internal=172.31.0.0/24", "-f", "-"]
        subprocess.run(load, input=case["inside"], text=True, check=True)
    time.sleep(0.3)
    networks = {"172.29.29.2": "mediahost_vpn"} | ({"172.30.1.2": "other"} if case["second"] else {})
    leaks_on_host.confined = lambda request: [Namespace(("qbittorrent",), container, networks)]
    leaks_on_host.docker = lambda path: {
        "Id": "0" * 64,
        "Internal": False,
        "Options": {"com.docker.network.bridge.name": "br-vpn" if path.endswith("vpn") else "br-other"},
    }
    vpn_on_host.confined, vpn_on_host.docker = leaks_on_host.confined, leaks_on_host.docker
    if case["work"] == "status":
        print(json.dumps(vpn_on_host.answer(case["request"])))
    elif case["work"] == "leak test":
        print(json.dumps(leaks_on_host.answer(case["request"])))
    else:
        child = os.fork()
        if child == 0:
            leaks_on_host.answer(case["request"])
            os._exit(0)
        while "UP" in vpn_on_host.flags((), "wg-vpn"):
            time.sleep(0.05)
        os.kill(child, 9)
        down = "UP" not in vpn_on_host.flags((), "wg-vpn")
        until = time.monotonic() + 10
        while "UP" not in vpn_on_host.flags((), "wg-vpn") and time.monotonic() < until:
            time.sleep(0.1)
        time.sleep(0.5)
        print(json.dumps({"was_down": down, "is_up": "UP" in vpn_on_host.flags((), "wg-vpn")}))
    sys.stdout.flush()
    subprocess.run(["ip", "route", "show", "table", "all"], stdout=sys.stderr)
finally:
    for pid in (internet, container):
        os.kill(pid, 9)
"""


def _possible() -> bool:
    command = ["unshare", "-n", "ip", "link", "add", "name", "x0", "type", "veth", "peer", "name", "x1"]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0 and os.geteuid() == 0
    except FileNotFoundError:
        return False


namespaces = pytest.mark.skipif(not _possible(), reason="needs root, unshare and veth pairs")

Try = Callable[..., tuple[dict[str, Any], str]]


@pytest.fixture
def leak_test() -> Try:
    """Runs the whole leak test on a host with or without each part of the routing wall."""

    def tried(
        rule: bool = True,
        fallback: bool = True,
        second: bool = False,
        down: bool = True,
        table: str = "",
        inside: str = "",
        mode: str = "host",
        work: str = "leak test",
    ) -> Any:
        request = {
            "mode": mode,
            "services": ["qbittorrent"],
            "network": "mediahost_vpn",
            "bridge": "br-vpn",
            "link": "wg-vpn",
            "tunnel_unit": "mediahost-vpn.service",
            "take_down": down,
            "killswitch": True,
            "table": wall.NFT_TABLE,
            "inside_table": wall.INSIDE_TABLE,
            "route_table": 51820,
            "wall_unit": wall.WALL_UNIT,
            "echo": [],
            "forwarding": "off",
            "far": [FAR, FAR6],
            "near": [],
        }
        case = json.dumps(
            {"rule": rule, "fallback": fallback, "second": second, "wall": table, "inside": inside, "work": work}
            | {"request": request}
        )
        command = ["unshare", "-nm", sys.executable, "-c", textwrap.dedent(_HOST), case]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout), done.stderr

    return tried


def _verdicts(told: dict[str, Any], phase: str) -> dict[str, str]:
    # The host itself is walled off by nftables, which is no part of this little world.
    return {
        row["probe"]: row["verdict"]
        for row in told["rows"]
        if row["phase"] == phase and not row["probe"].startswith("UDP to this host")
    }


@pytest.mark.kernel
@namespaces
def test_behind_the_routing_wall_nothing_leaks_tunnel_up_or_down(leak_test: Try) -> None:
    told, routes = leak_test()
    for phase in ("tunnel up", "tunnel down"):
        verdicts = _verdicts(told, phase)
        forged = verdicts.pop(f"forged frame to {FAR} by eth0")
        assert set(verdicts.values()) <= {"safe", "no way out"}, verdicts
        for kind in ("TCP", "UDP", "ping", "DNS question"):
            assert verdicts[f"{kind} to {FAR}"] == "safe"
            assert verdicts[f"{kind} to {ROUTER}"] == "safe"
        # The fallback answers "unreachable" to whoever the frame says it is from, and quotes it: only a filter before
        # routing, which is not in this little world, can stop that.
        assert forged == ("safe" if phase == "tunnel up" else "leak")
        # No IPv6 on this host: that is told as it is.
        assert verdicts[f"UDP to {FAR6}"] == "no way out"
    through = {row["probe"] for row in told["rows"] if row["why"] == "through the tunnel"}
    assert f"UDP to {FAR}" in through
    assert not any(row["why"] == "through the tunnel" for row in told["rows"] if row["phase"] == "tunnel down")
    assert any("quoted in an ICMP error" in row["why"] for row in told["rows"])
    # The tunnel is as it was, its route too.
    assert told["problems"] == []
    assert "default dev wg-vpn table 51820" in routes


@pytest.mark.kernel
@namespaces
@pytest.mark.skipif(not shutil.which("nft"), reason="needs nft")
def test_behind_the_whole_wall_nothing_leaks_this_host_included(leak_test: Try) -> None:
    told, _ = leak_test(table=wall.ruleset(VPN, SETTINGS))
    assert {row["verdict"] for row in told["rows"]} == {"safe", "no way out"}
    assert {row["phase"] for row in told["rows"]} == {"tunnel up", "tunnel down"}
    verdicts = {row["probe"]: row["verdict"] for row in told["rows"]}
    assert verdicts["UDP to this host, 172.29.29.1"] == "safe"
    assert verdicts[f"forged frame to {FAR} by eth0"] == "safe"
    assert verdicts[f"DNS question to {ROUTER}"] == "safe"
    assert told["problems"] == []


@pytest.mark.kernel
@namespaces
def test_without_the_rule_each_way_out_is_found(leak_test: Try) -> None:
    verdicts = _verdicts(leak_test(rule=False, down=False)[0], "tunnel up")
    for kind in ("TCP", "UDP", "ping", "DNS question"):
        assert verdicts[f"{kind} to {FAR}"] == "leak"
        assert verdicts[f"{kind} to {ROUTER}"] == "leak"
    assert verdicts[f"UDP to {FAR} by eth0"] == "leak"
    assert verdicts[f"forged frame to {FAR} by eth0"] == "leak"


@pytest.mark.kernel
@namespaces
def test_without_the_fallback_it_leaks_only_while_the_tunnel_is_down(leak_test: Try) -> None:
    told, _ = leak_test(fallback=False)
    assert "leak" not in _verdicts(told, "tunnel up").values()
    assert _verdicts(told, "tunnel down")[f"UDP to {FAR}"] == "leak"


@pytest.mark.kernel
@namespaces
def test_a_second_network_is_a_leak_by_that_interface_only(leak_test: Try) -> None:
    told, _ = leak_test(second=True, down=False)
    verdicts = _verdicts(told, "tunnel up")
    assert verdicts[f"UDP to {FAR} by eth1"] == "leak"
    assert verdicts[f"UDP to {FAR} by eth0"] == "safe"
    assert any("left by up0" in row["why"] for row in told["rows"])


@pytest.mark.kernel
@namespaces
@pytest.mark.skipif(not shutil.which("nft"), reason="needs nft")
def test_where_a_container_holds_the_tunnel_the_hosts_wall_stops_what_leaves_beside_it(leak_test: Try) -> None:
    vpn = replace(VPN, mode="container")
    told, _ = leak_test(rule=False, mode="container", table=wall.ruleset(vpn, SETTINGS))
    assert {row["verdict"] for row in told["rows"]} == {"safe", "no way out"}, told
    assert told["problems"] == []
    up = {row["probe"]: row["why"] for row in told["rows"] if row["phase"] == "tunnel up"}
    down = {row["probe"]: row["why"] for row in told["rows"] if row["phase"] == "tunnel down"}
    assert up[f"UDP to {FAR}"] == "through the tunnel"
    assert up[f"UDP to {FAR} by eth0"] == "stopped"
    assert down[f"UDP to {FAR}"] == "stopped"


@pytest.mark.kernel
@namespaces
def test_where_a_container_holds_the_tunnel_a_missing_wall_is_found(leak_test: Try) -> None:
    told, _ = leak_test(rule=False, mode="container")
    assert _verdicts(told, "tunnel up")[f"UDP to {FAR}"] == "safe"
    assert _verdicts(told, "tunnel up")[f"UDP to {FAR} by eth0"] == "leak"
    assert _verdicts(told, "tunnel down")[f"UDP to {FAR}"] == "leak"


@pytest.mark.kernel
@namespaces
def test_a_host_that_answers_its_containers_is_told(leak_test: Try) -> None:
    rows = leak_test(down=False)[0]["rows"]
    assert {row["verdict"] for row in rows if row["probe"] == "UDP to this host, 172.29.29.1"} == {"leak"}


@pytest.mark.kernel
@namespaces
def test_a_test_that_is_killed_leaves_the_tunnel_as_it_was(leak_test: Try) -> None:
    told, routes = leak_test(work="killed")
    assert told == {"was_down": True, "is_up": True}
    assert "default dev wg-vpn table 51820" in routes


@pytest.mark.kernel
@namespaces
@pytest.mark.skipif(not shutil.which("nft"), reason="needs nft")
def test_status_sees_the_wall_its_counters_and_a_second_way_out(leak_test: Try) -> None:
    told, _ = leak_test(work="status", table=wall.ruleset(VPN, SETTINGS), inside=wall.inside_ruleset(VPN))
    assert told["wall"]["table"]
    assert told["wall"]["rule"]
    assert told["wall"]["fallback"]
    assert {counter["name"] for counter in told["drops"]} == set(wall.COUNTERS)
    assert [counter["name"] for counter in told["containers"][0]["drops"]] == [wall.INSIDE_COUNTER]
    assert told["containers"][0]["other_ways"] == []
    assert told["tunnel"]["up"]
    assert not any("wall is down" in problem or "ip rule" in problem for problem in told["problems"])
    worse, _ = leak_test(work="status", rule=False, second=True)
    assert worse["containers"][0]["drops"] == []
    for words in ("wall is down", "no ip rule", "no unreachable default", "network other", "default route by eth1"):
        assert any(words in problem for problem in worse["problems"]), worse["problems"]


def test_who_is_confined_is_read_from_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    def each(name: str, mode: str, *networks: str) -> dict[str, Any]:
        addressed = {network: {"IPAddress": f"172.29.{number}.2"} for number, network in enumerate(networks)}
        settings = {"NetworkSettings": {"Networks": addressed}, "HostConfig": {"NetworkMode": mode}}
        return {"Id": name, "Names": [f"/{name}"], "Labels": {}, **settings}

    inside = [each("client", "vpn", "vpn", "confined"), each("torrent", "container:client")]
    state = {"State": {"Pid": os.getpid()}, "Config": {"Env": ["WIREGUARD_ENDPOINT_IP=198.51.100.7", "PATH=/bin"]}}
    answers = {"/containers/json": [*inside, each("open", "outbound", "outbound")]}
    monkeypatch.setattr(vpn_on_host, "docker", lambda path: answers.get(path, state))
    (found,) = vpn_on_host.confined({"network": "vpn"})
    assert found.containers == ("client", "torrent")
    assert found.networks == {"172.29.0.2": "vpn", "172.29.1.2": "confined"}
    assert found.endpoint == "198.51.100.7:51820"
    assert vpn_on_host.confined({"network": "none"}) == []


@given(st.binary(max_size=80))
def test_no_answer_of_a_name_server_breaks_it(answer: bytes) -> None:
    vpn_on_host._first_address(answer)


def test_an_answer_of_a_name_server_is_read() -> None:
    question = vpn_on_host.query("echo.example", 7)
    alias = b"\xc0\x0c\0\5\0\1\0\0\0\0\0\2\xc0\x0c"
    record = b"\xc0\x0c\0\1\0\1\0\0\0\0\0\4" + bytes([198, 51, 100, 4])
    answer = question[:2] + b"\x81\x80\0\1\0\2\0\0\0\0" + question[12:] + alias + record
    assert vpn_on_host._first_address(answer) == "198.51.100.4"


def test_the_address_that_somebody_sees_is_read_from_his_answer() -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # noqa: N802
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"Your address is 203.0.113.9\n")

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        services = [f"http://127.0.0.1:{port}/" for port in (unused.getsockname()[1], server.server_port)]
        assert vpn_on_host.seen_address(services, []) == "203.0.113.9"
        assert vpn_on_host.seen_address(services[:1], []) is None
    server.shutdown()
    server.server_close()


def test_the_program_for_a_host_is_one_line_of_standard_python_that_answers_in_json() -> None:
    for module in ("mediahost.vpn_on_host", "mediahost.leaks_on_host"):
        text = on_host.program(module, {"network": "none"})
        assert "\n" not in text
        done = subprocess.run(
            ["python3", "-I", "-"], input=text, cwd="/", capture_output=True, text=True, check=False, timeout=30
        )
        assert "error" in json.loads(done.stdout), done.stderr
