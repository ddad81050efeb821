"""The lab's stand-in for Gluetun: the contract it enforces, and the wall it puts up before it connects."""

from __future__ import annotations

import base64
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from lab import registry
from lab.images.definitions import DEFINITIONS
from mediahost import config
from mediahost.catalog import load_catalog
from mediahost.render.compose import render_compose
from mediahost.stack import build_stack
from tests.unit.image_program import IMAGES, image_program

PRIVATE, PEER, SHARED = (base64.b64encode(bytes([number] * 32)).decode() for number in (1, 2, 3))
SECRETS = {"wireguard_private_key": PRIVATE, "wireguard_preshared_key": SHARED}
FILE = f"""[Interface]
PrivateKey = {PRIVATE}
Address = 10.2.0.2/32
DNS = 10.2.0.1
[Peer]
PublicKey = {PEER}
PresharedKey = {SHARED}
AllowedIPs = 0.0.0.0/0
Endpoint = 198.51.100.7:51820
"""


@pytest.fixture(scope="module")
def program() -> Iterator[ModuleType]:
    with image_program("gluetun") as module:
        yield module


def environment(**data: Any) -> dict[str, str]:
    """What the product gives the container."""
    read = config.read("nas", {"vpn_provider": "custom", "vpn_mode": "container", **data})
    stack = build_stack(read, load_catalog(), "nas", lambda entry, kind: FILE if "/vpn/" in entry else "k" * 32)
    content = yaml.safe_load(render_compose(stack, read).files[0].content)
    found: dict[str, str] = content["services"]["gluetun"]["environment"]
    return found


def container(folder: Path, secrets: dict[str, str] | None = None) -> str:
    """A root file system with the secrets in it."""
    (folder / "run/secrets").mkdir(parents=True, exist_ok=True)
    for name, value in (SECRETS if secrets is None else secrets).items():
        (folder / "run/secrets" / name).write_text(value)
    return str(folder)


ADDRESSES = [
    {"ifname": "lo", "addr_info": [{"family": "inet", "local": "127.0.0.1", "prefixlen": 8}]},
    {"ifname": "eth0", "addr_info": [{"family": "inet", "local": "172.30.1.2", "prefixlen": 24}]},
    {"ifname": "eth1", "addr_info": [{"family": "inet", "local": "172.29.29.2", "prefixlen": 24}]},
]
ROUTES = [{"dst": "default", "gateway": "172.29.29.1", "dev": "eth1"}]


def wall(program: ModuleType, folder: Path, ports: tuple[int, ...] = (), **data: Any) -> dict[str, list[str]]:
    """The rules of each chain."""
    settings = program.Settings(environment(**data), container(folder))
    text = program.ruleset(settings, program.locals_of(ADDRESSES, ROUTES), (*settings.input_ports, *ports))
    chains: dict[str, list[str]] = {}
    name = ""
    for line in text.splitlines():
        if line.strip().startswith("chain"):
            name = line.split()[1]
            chains[name] = []
        elif line.startswith("\t\t"):
            chains[name].append(line.strip())
    return chains


# --- the contract


def test_what_the_product_gives_is_taken(program: ModuleType, tmp_path: Path) -> None:
    settings = program.Settings(environment(), container(tmp_path))
    assert (settings.private_key, settings.preshared_key, settings.peer) == (PRIVATE, SHARED, PEER)
    assert (str(settings.endpoint), settings.endpoint_port) == ("198.51.100.7", 51820)
    assert settings.dns == [("10.2.0.1", 53)]
    assert "PersistentKeepalive = 25\n" in settings.wireguard()
    assert "FwMark = 51820\n" in settings.wireguard()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"VPN_SERVICE_PROVIDER": "nordvpn"}, "VPN_SERVICE_PROVIDER=custom"),
        ({"VPN_TYPE": "openvpn"}, "VPN_TYPE=wireguard"),
        ({"WIREGUARD_PRIVATE_KEY": PRIVATE}, "WIREGUARD_PRIVATE_KEY is a variable, which everybody sees"),
        ({"WIREGUARD_PRESHARED_KEY": SHARED}, "WIREGUARD_PRESHARED_KEY is a variable"),
        ({"WIREGUARD_PRIVATE_KEY_SECRETFILE": "/nowhere"}, "private key is not set"),
        ({"WIREGUARD_ENDPOINT_IP": "vpn.example.org"}, "WIREGUARD_ENDPOINT_IP: 'vpn.example.org' is not an address"),
        ({"WIREGUARD_ENDPOINT_PORT": ""}, "is not a port number"),
        ({"WIREGUARD_ADDRESSES": ""}, "WIREGUARD_ADDRESSES"),
        ({"WIREGUARD_PUBLIC_KEY": "short"}, "WIREGUARD_PUBLIC_KEY holds no WireGuard key"),
        ({"DNS_UPSTREAM_RESOLVER_TYPE": "dot"}, "DNS_UPSTREAM_RESOLVER_TYPE=plain"),
        ({"DNS_UPSTREAM_PLAIN_ADDRESSES": ""}, "names no server"),
        ({"VPN_PORT_FORWARDING": "on"}, "VPN_PORT_FORWARDING_PROVIDER=protonvpn"),
    ],
)
def test_what_breaks_the_contract_ends_it_and_shows_no_key(
    program: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, str], told: str
) -> None:
    with pytest.raises(SystemExit):
        program.Settings({**environment(), **changes}, container(tmp_path))
    shown = capsys.readouterr().out
    assert told in shown
    assert PRIVATE not in shown
    assert SHARED not in shown


def test_a_secret_file_that_holds_no_key_is_refused_without_showing_it(
    program: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        program.Settings(environment(), container(tmp_path, {"wireguard_private_key": "hunter2"}))
    shown = capsys.readouterr().out
    assert "/run/secrets/wireguard_private_key holds no WireGuard key" in shown
    assert "hunter2" not in shown


# --- the wall


def test_everything_is_shut_but_the_neighbours_the_server_and_the_tunnel(program: ModuleType, tmp_path: Path) -> None:
    chains = wall(program, tmp_path)
    assert {rules[0] for rules in chains.values()} == {
        f"type filter hook {hook} priority filter; policy drop;" for hook in ("input", "output", "forward")
    }
    assert chains["output"][3:] == [
        'oifname "eth0" ip saddr 172.30.1.2 ip daddr 172.30.1.0/24 accept',
        'oifname "eth1" ip saddr 172.29.29.2 ip daddr 172.29.29.0/24 accept',
        'oifname "eth1" ip daddr 198.51.100.7 udp dport 51820 accept',
        'oifname "tun0" accept',
    ]
    assert chains["forward"][1:] == []
    assert not [rule for rule in chains["input"] if "tun0" in rule]


def test_a_forwarded_port_is_open_to_the_tunnel_alone(program: ModuleType, tmp_path: Path) -> None:
    rules = wall(program, tmp_path, (40000,), vpn_port_forwarding=51413)["input"]
    (opened,) = [rule for rule in rules if "dport" in rule]
    assert opened == 'iifname "tun0" meta l4proto { tcp, udp } th dport { 40000, 51413 } accept'


def test_what_is_not_local_goes_into_the_tunnel_and_answers_go_back(program: ModuleType, tmp_path: Path) -> None:
    settings = program.Settings(environment(), container(tmp_path))
    commands = [" ".join(command) for command in program.routes(settings, program.locals_of(ADDRESSES, ROUTES))]
    assert commands == [
        "rule add to 172.30.1.0/24 lookup main priority 98",
        "rule add to 172.29.29.0/24 lookup main priority 98",
        "rule add from 172.29.29.2 lookup 200 priority 100",
        "route replace default via 172.29.29.1 dev eth1 table 200",
        "rule add not fwmark 51820 lookup 51820 priority 101",
    ]
    built = [" ".join(command) for command in program.tunnel(settings)]
    assert built[-1] == "route replace default dev tun0 table 51820"
    assert "link set tun0 mtu 1420 up" in built


# --- state


def test_healthy_is_who_had_a_handshake_lately(program: ModuleType) -> None:
    assert program.handshake_age(f"{PEER}\t1000\n", 1060.0) == 60
    assert program.handshake_age(f"{PEER}\t0\n", 1060.0) is None
    assert program.handshake_age("", 1060.0) is None


def asked(program: ModuleType, root: Path, path: str, key: str | None, method: str = "GET") -> int:
    (root / "gluetun/auth").mkdir(parents=True, exist_ok=True)
    text = '[[roles]]\nname = "m"\nroutes = ["GET /v1/vpn/status"]\nauth = "apikey"\napikey = "sesame"\n'
    (root / "gluetun/auth/config.toml").write_text(text)
    control = program.Control({"MEDIAHOST_STAND_IN_ROOT": str(root)})
    control.prepare()
    header = "" if key is None else f"X-API-Key: {key}\r\n"
    status: int = control.answer(program.Request(f"{method} {path} HTTP/1.1\r\n{header}".encode())).status
    return status


def test_the_control_server_tells_nobody_without_the_key_and_only_the_roles_routes(
    program: ModuleType, tmp_path: Path
) -> None:
    assert asked(program, tmp_path, "/v1/vpn/status", "sesame") == 200
    for path, key, method in (
        ("/v1/vpn/status", None, "GET"),
        ("/v1/vpn/status", "other", "GET"),
        ("/v1/vpn/status", "sesame", "PUT"),
        ("/v1/portforward", "sesame", "GET"),
    ):
        assert asked(program, tmp_path, path, key, method) == 401


def test_the_products_own_control_configuration_is_understood(program: ModuleType, tmp_path: Path) -> None:
    read = config.read("nas", {"vpn_provider": "custom", "vpn_mode": "container"})
    stack = build_stack(read, load_catalog(), "nas", lambda entry, kind: FILE if "/vpn/" in entry else "k" * 32)
    (file,) = [file for file in render_compose(stack, read).files if file.path.endswith("config.toml")]
    (tmp_path / "gluetun/auth").mkdir(parents=True)
    (tmp_path / "gluetun/auth/config.toml").write_bytes(file.content)
    control = program.Control({"MEDIAHOST_STAND_IN_ROOT": str(tmp_path)})
    control.prepare()
    request = program.Request(b"GET /v1/portforward HTTP/1.1\r\nX-API-Key: " + b"k" * 32 + b"\r\n")
    assert control.answer(request).status == 200


def query(name: str) -> bytes:
    labels = b"".join(bytes((len(label),)) + label.encode() for label in name.split("."))
    return bytes(12) + labels + b"\0\0\1\0\1"


def test_neighbours_are_looked_up_by_docker_and_all_others_behind_the_tunnel(program: ModuleType) -> None:
    servers = [("10.2.0.1", 53)]
    assert program.upstream_of(query("sonarr"), servers) == ("127.0.0.11", 53)
    assert program.upstream_of(query("tracker.example.org"), servers) == ("10.2.0.1", 53)
    assert program.upstream_of(b"", servers) == ("10.2.0.1", 53)


def test_a_port_is_read_from_natpmps_answer_and_a_refusal_is_none(program: ModuleType) -> None:
    assert program.mapping_request(1).hex() == "000100000001000000" + "00003c"
    answer = bytes((0, 129, 0, 0)) + bytes(4) + (1).to_bytes(2) + (40123).to_bytes(2) + (60).to_bytes(4)
    assert program.mapping_answer(answer, 1) == 40123
    assert program.mapping_answer(answer, 2) == 0
    assert program.mapping_answer(bytes((0, 129, 0, 2)) + answer[4:], 1) == 0
    assert program.mapping_answer(b"", 1) == 0


@pytest.mark.parametrize(("answer", "expected"), [(b"HTTP/1.1 200 OK\r\n\r\n", 0), (b"HTTP/1.1 500 X\r\n\r\n", 1)])
def test_the_health_check_says_what_the_running_one_says(answer: bytes, expected: int) -> None:
    text = (IMAGES / "gluetun_entrypoint.py").read_text()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1024)
                connection.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        program = text.replace("9999", str(port))
        assert program != text
        done = subprocess.run([sys.executable, "-IS", "-c", program, "healthcheck"], check=False, timeout=60)
    assert done.returncode == expected


def test_the_health_check_of_one_that_does_not_run_fails() -> None:
    program = (IMAGES / "gluetun_entrypoint.py").read_text().replace("9999", "1")
    done = subprocess.run([sys.executable, "-IS", "-c", program, "healthcheck"], capture_output=True, check=False)
    assert done.returncode == 1


# --- the image


def test_every_image_of_the_catalogue_has_a_definition_and_gluetuns_says_that_it_is_a_stand_in() -> None:
    assert registry.missing_definitions() == []
    (definition,) = [definition for definition in DEFINITIONS if definition.repository == "docker.io/qmcgaw/gluetun"]
    assert definition.stand_in
    assert definition.title == "stand-in for gluetun"
    entry = load_catalog()["gluetun"]
    assert entry.image == f"{definition.repository}:{definition.tags[0]}"
    assert entry.health is not None
    assert entry.health.test[1].lstrip("/") in definition.files()
