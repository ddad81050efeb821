"""A stand-in for Gluetun v3.41, for the lab only: a real WireGuard tunnel behind a closed firewall in its network.

Gluetun itself comes neither with Debian nor with PyPI. What a product relies on is kept: variables and secret files,
everything shut before the tunnel is built, routes that send what is not local into `tun0`, name service on loopback
through the tunnel, a health check that knows handshakes, a control server that wants a key, a forwarded port by
NAT-PMP. Only provider "custom" with WireGuard is known; of DNS only "plain" over UDP.

It must never print a key, and never open anything when it stops: the network namespace ends with the container.

Started by gluetun_entrypoint.py.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import tomllib

sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))  # noqa: PTH120 - python3 -I leaves it out

import stand_in  # noqa: E402
from linuxserver import log  # noqa: E402
from stand_in import Answer, Request, StandIn, fail  # noqa: E402

TYPE_CHECKING = False  # the name type checkers know; importing typing would cost 10 ms natively
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

# By path: the lab's base image has busybox's `ip` before iproute2's in PATH.
IP, NFT, WG = "/usr/bin/ip", "/usr/sbin/nft", "/usr/bin/wg"
LINK = "tun0"
TABLE = MARK = "51820"
ANSWERS = "200"  # routing table of what answers to the outside, as upstream
HEALTH = ("127.0.0.1", 9999)
DOCKER_DNS = ("127.0.0.11", 53)
FRESH = 180  # seconds a handshake is good for (WireGuard's REJECT_AFTER_TIME)
PORT_FILE = "/tmp/gluetun/forwarded_port"  # noqa: S108 - upstream's VPN_PORT_FORWARDING_STATUS_FILE
NAT_PMP = 5351


class Settings:
    """What the variables say, checked; ends the program with what is wrong."""

    def __init__(self, environment: Mapping[str, str], root: str = "") -> None:
        def value(name: str, default: str = "") -> str:
            return environment.get(name, "").strip() or default

        if value("VPN_SERVICE_PROVIDER") != "custom" or value("VPN_TYPE") != "wireguard":
            fail("this stand-in knows VPN_SERVICE_PROVIDER=custom with VPN_TYPE=wireguard only")
        for name in ("WIREGUARD_PRIVATE_KEY", "WIREGUARD_PRESHARED_KEY"):
            if value(name):
                # Upstream takes it; the product must not, because `docker inspect` shows variables.
                fail(f"{name} is a variable, which everybody sees; use {name}_SECRETFILE")
        self.private_key = _secret(environment, "WIREGUARD_PRIVATE_KEY", root)
        self.preshared_key = _secret(environment, "WIREGUARD_PRESHARED_KEY", root)
        if not self.private_key:
            fail("Wireguard settings: private key is not set")
        self.peer = value("WIREGUARD_PUBLIC_KEY")
        _key("WIREGUARD_PUBLIC_KEY", self.peer)
        self.addresses = [
            _parsed("WIREGUARD_ADDRESSES", ipaddress.ip_interface, text.strip())
            for text in value("WIREGUARD_ADDRESSES").split(",")
        ]
        self.endpoint = _parsed("WIREGUARD_ENDPOINT_IP", ipaddress.ip_address, value("WIREGUARD_ENDPOINT_IP"))
        self.endpoint_port = stand_in.port_number(value("WIREGUARD_ENDPOINT_PORT"))
        self.mtu = value("WIREGUARD_MTU", "1320")
        self.keepalive = value("WIREGUARD_PERSISTENT_KEEPALIVE_INTERVAL", "0").removesuffix("s")
        if value("DNS_UPSTREAM_RESOLVER_TYPE", "dot") != "plain":
            fail("this stand-in asks plain name servers only: DNS_UPSTREAM_RESOLVER_TYPE=plain")
        self.dns = [
            _server(text.strip()) for text in value("DNS_UPSTREAM_PLAIN_ADDRESSES").split(",") if text.strip()
        ]
        if not self.dns:
            fail("DNS_UPSTREAM_PLAIN_ADDRESSES names no server")
        self.input_ports = [
            stand_in.port_number(text.strip())
            for text in value("FIREWALL_VPN_INPUT_PORTS").split(",")
            if text.strip()
        ]
        self.forwarding = value("VPN_PORT_FORWARDING", "off") == "on"
        if self.forwarding and value("VPN_PORT_FORWARDING_PROVIDER") != "protonvpn":
            fail("this stand-in asks for a port as protonvpn does only: VPN_PORT_FORWARDING_PROVIDER=protonvpn")

    def wireguard(self) -> str:
        """The interface for `wg setconf`; holds the keys."""
        host = f"[{self.endpoint}]" if self.endpoint.version == 6 else str(self.endpoint)
        lines = ["[Interface]", f"PrivateKey = {self.private_key}", f"FwMark = {MARK}", "[Peer]"]
        lines += [
            f"PublicKey = {self.peer}",
            f"Endpoint = {host}:{self.endpoint_port}",
            "AllowedIPs = 0.0.0.0/0, ::/0",
        ]
        if self.preshared_key:
            lines.append(f"PresharedKey = {self.preshared_key}")
        if self.keepalive != "0":
            lines.append(f"PersistentKeepalive = {self.keepalive}")
        return "\n".join(lines) + "\n"


class Local:
    """One interface of the container: `address` with its prefix, and the gateway when the default route is there."""

    def __init__(self, name: str, address: str, gateway: str = "") -> None:
        self.name = name
        self.address = ipaddress.ip_interface(address)
        self.gateway = gateway


def locals_of(addresses: Sequence[Mapping[str, Any]], routes: Sequence[Mapping[str, Any]]) -> list[Local]:
    """The container's interfaces, from `ip -j -4 address` and `ip -j -4 route show default`."""
    gateways = {route["dev"]: route["gateway"] for route in routes if route.get("dst") == "default"}
    return [
        Local(link["ifname"], f"{each['local']}/{each['prefixlen']}", gateways.get(link["ifname"], ""))
        for link in addresses
        for each in link.get("addr_info", [])
        if link["ifname"] not in ("lo", LINK) and each.get("family") == "inet"
    ]


def ruleset(settings: Settings, networks: Sequence[Local], ports: Sequence[int]) -> str:
    """Everything shut, but for the neighbours, the VPN's server and the tunnel. For `nft -f`, in one transaction.

    `ports` are open to what comes out of the tunnel.
    """
    family = "ip6" if settings.endpoint.version == 6 else "ip"
    entering = ['iifname "lo" accept', "ct state established,related accept"]
    leaving = ['oifname "lo" accept', "ct state established,related accept"]
    for local in networks:
        subnet = local.address.network
        entering.append(f'iifname "{local.name}" ip daddr {subnet} accept')
        leaving.append(f'oifname "{local.name}" ip saddr {local.address.ip} ip daddr {subnet} accept')
        if local.gateway:
            server = f"{family} daddr {settings.endpoint} udp dport {settings.endpoint_port}"
            leaving.append(f'oifname "{local.name}" {server} accept')
    leaving.append(f'oifname "{LINK}" accept')
    if ports:
        entering.append(f'iifname "{LINK}" meta l4proto {{ tcp, udp }} th dport {{ {_listed(ports)} }} accept')
    lines = ["table inet gluetun", "delete table inet gluetun", "table inet gluetun {"]
    for hook, rules in (("input", entering), ("output", leaving), ("forward", [])):
        lines += [f"\tchain {hook} {{", f"\t\ttype filter hook {hook} priority filter; policy drop;"]
        lines += [f"\t\t{rule}" for rule in rules] + ["\t}"]
    return "\n".join([*lines, "}", ""])


def _listed(ports: Sequence[int]) -> str:
    return ", ".join(map(str, sorted(set(ports))))


def routes(settings: Settings, networks: Sequence[Local]) -> list[list[str]]:
    """Arguments of `ip` that send into the tunnel what is neither local nor the tunnel's own nor an answer."""
    commands = []
    for local in networks:
        commands.append(["rule", "add", "to", str(local.address.network), "lookup", "main", "priority", "98"])
        if local.gateway:
            # Who reached a published port from elsewhere is answered the way it came.
            commands.append(["rule", "add", "from", str(local.address.ip), "lookup", ANSWERS, "priority", "100"])
            commands.append(
                ["route", "replace", "default", "via", local.gateway, "dev", local.name, "table", ANSWERS]
            )
    commands.append(["rule", "add", "not", "fwmark", MARK, "lookup", TABLE, "priority", "101"])
    return commands


def tunnel(settings: Settings) -> list[list[str]]:
    """Arguments of `ip` that bring the configured interface up, its route last."""
    commands = [["address", "replace", str(address), "dev", LINK] for address in settings.addresses]
    commands.append(["link", "set", LINK, "mtu", settings.mtu, "up"])
    commands.append(["route", "replace", "default", "dev", LINK, "table", TABLE])
    return commands


def handshake_age(text: str, now: float) -> float | None:
    """Seconds since the newest handshake of `wg show tun0 latest-handshakes`; None when there was none."""
    times = [int(line.split("\t")[1]) for line in text.splitlines() if "\t" in line]
    newest = max(times, default=0)
    return now - newest if newest else None


class Control(StandIn):
    """The control server: nothing without the key of a role, and of a role only its routes."""

    port = 8000

    def __init__(self, environment: Mapping[str, str]) -> None:
        super().__init__("gluetun", environment)
        self.status = "starting"
        self.forwarded = 0
        self.roles: list[Mapping[str, Any]] = []

    def prepare(self) -> None:
        path = self.environment.get("HTTP_CONTROL_SERVER_AUTH_CONFIG_FILEPATH") or "/gluetun/auth/config.toml"
        text = self.read(self.path(path))
        try:
            self.roles = tomllib.loads(text or "").get("roles", [])
        except tomllib.TOMLDecodeError as error:
            fail(f"{path}: {error}")
        for role in self.roles:
            if role.get("auth") != "apikey" or not role.get("apikey") or not role.get("routes"):
                fail(f"{path}: this stand-in knows roles with routes, auth = 'apikey' and an apikey only")

    def answer(self, request: Request) -> Answer:
        given = request.headers.get("x-api-key")
        wanted = f"{request.method} {request.path}"
        if not any(role["apikey"] == given and wanted in role["routes"] for role in self.roles):
            return Answer(401, "Unauthorized\n")
        known: dict[str, dict[str, Any]] = {
            "GET /v1/vpn/status": {"status": self.status},
            "GET /v1/dns/status": {"status": "running"},
            "GET /v1/publicip/ip": {"public_ip": ""},
            "GET /v1/portforward": {"port": self.forwarded},
        }
        return Answer(200, known[wanted]) if wanted in known else Answer(404, "not found\n")

    def health(self, _request: Request) -> Answer:
        """What the health server on loopback says."""
        return Answer(200, "") if self.status == "running" else Answer(500, f"the tunnel is {self.status}\n")

    def listeners(self) -> list[tuple[str, int, Callable[[Request], Answer]]]:
        return [(self.address, self.port, self.answer), (*HEALTH, self.health)]


class Client:
    """The tunnel, kept: made again when it is gone, its state told to the control server."""

    def __init__(self, settings: Settings, control: Control) -> None:
        self.settings = settings
        self.control = control
        self.networks: list[Local] = []

    def shut(self) -> None:
        """Close everything, before anything else happens."""
        listed = json.loads(_output([IP, "-j", "-4", "address"]))
        self.networks = locals_of(listed, json.loads(_output([IP, "-j", "-4", "route", "show", "default"])))
        if not any(local.gateway for local in self.networks):
            fail("no default route found")
        self._load_rules()
        for command in routes(self.settings, self.networks):
            _run([IP, *command])

    def connect(self) -> None:
        """Build the interface. Its keys go in by standard input."""
        _run([IP, "link", "add", LINK, "type", "wireguard"])
        _run([WG, "setconf", LINK, "/dev/stdin"], self.settings.wireguard())
        for command in tunnel(self.settings):
            _run([IP, *command])

    def look(self) -> None:
        """Tell how the tunnel is, and build it again when it is gone."""
        if not os.path.exists(f"/sys/class/net/{LINK}"):  # noqa: PTH110
            log("the tunnel is gone, building it again")
            self.control.status = "stopped"
            self.connect()
        age = handshake_age(_output([WG, "show", LINK, "latest-handshakes"]), time.time())
        status = "running" if age is not None and age < FRESH else "stopped"
        if status != self.control.status:
            log(f"the tunnel is {status}")
        self.control.status = status

    def keep(self) -> None:
        """Look every few seconds, for ever."""
        while True:
            try:
                self.look()
            except (OSError, subprocess.SubprocessError) as error:
                self.control.status = "stopped"
                log(f"error: {error}")
            time.sleep(3)

    def forward(self) -> None:
        """Ask for a port as Proton's clients do (RFC 6886), open it, and write it down; again every 45 s."""
        gateway = next(server[0] for server in self.settings.dns)
        while True:
            port = _mapped(gateway)
            if port and port != self.control.forwarded:
                self.control.forwarded = port
                self._load_rules()
                os.makedirs(os.path.dirname(PORT_FILE), exist_ok=True)  # noqa: PTH103, PTH120
                with open(PORT_FILE, "w", encoding="ascii") as file:  # noqa: PTH123
                    file.write(f"{port}\n")
                log(f"port forwarded is {port}")
            time.sleep(45 if port else 5)

    def _load_rules(self) -> None:
        ports = [*self.settings.input_ports, *([self.control.forwarded] if self.control.forwarded else [])]
        _run([NFT, "-f", "-"], ruleset(self.settings, self.networks, ports))


def mapping_request(protocol: int, lifetime: int = 60) -> bytes:
    """A NAT-PMP request for any outer port (RFC 6886, 3.3); `protocol` 1 is UDP, 2 TCP."""
    return bytes((0, protocol, 0, 0)) + (1).to_bytes(2) + (0).to_bytes(2) + lifetime.to_bytes(4)


def mapping_answer(data: bytes, protocol: int) -> int:
    """The outer port of the answer; 0 when it was refused or is no answer."""
    if len(data) < 16 or data[:2] != bytes((0, 128 + protocol)) or data[2:4] != b"\0\0":
        return 0
    return int.from_bytes(data[10:12])


def _mapped(gateway: str) -> int:
    port = 0
    for protocol in (1, 2):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
            asker.settimeout(2)
            try:
                asker.sendto(mapping_request(protocol), (gateway, NAT_PMP))
                port = mapping_answer(asker.recv(64), protocol)
            except OSError:
                return 0
    return port


def upstream_of(query: bytes, servers: Sequence[tuple[str, int]]) -> tuple[str, int]:
    """Who is asked: Docker for a name without a dot (a neighbour's), else a server behind the tunnel."""
    first = query[12] if len(query) > 12 else 0
    single = first and len(query) > 13 + first and query[13 + first] == 0
    return DOCKER_DNS if single else servers[0]


def serve_names(servers: Sequence[tuple[str, int]]) -> None:
    """A name server on loopback that hands on what it is asked. UDP, one question at a time a thread."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    listener.bind(("127.0.0.1", 53))

    def ask(query: bytes, client: tuple[str, int]) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
            asker.settimeout(4)
            try:
                asker.sendto(query, upstream_of(query, servers))
                listener.sendto(asker.recv(4096), client)
            except OSError:
                pass  # the client asks again

    while True:
        query, client = listener.recvfrom(4096)
        threading.Thread(target=ask, args=(query, client), daemon=True).start()


def _secret(environment: Mapping[str, str], name: str, root: str) -> str:
    path = environment.get(f"{name}_SECRETFILE") or f"/run/secrets/{name.lower()}"
    try:
        with open(root + path, encoding="ascii") as file:  # noqa: PTH123
            value = file.read().strip()
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        fail(f"cannot read the secret in {path}: {type(error).__name__}")
    _key(path, value)
    return value


def _key(where: str, value: str) -> None:
    try:
        sound = len(base64.b64decode(value, validate=True)) == 32
    except binascii.Error:
        sound = False
    if not sound:
        fail(f"{where} holds no WireGuard key")  # never the value


def _parsed(name: str, parse: Callable[[str], Any], text: str) -> Any:
    try:
        return parse(text)
    except ValueError:
        fail(f"{name}: {text!r} is not an address")


def _server(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return str(_parsed("DNS_UPSTREAM_PLAIN_ADDRESSES", ipaddress.ip_address, host.strip("[]"))), stand_in.port_number(
        port
    )


def _run(command: Sequence[str], text: str = "") -> None:
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        # What was given by standard input may be a key; these programs do not repeat it.
        raise OSError(f"{' '.join(command)}: {done.stderr.strip()}; is NET_ADMIN missing?")


def _output(command: Sequence[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def main() -> int:
    """Run until SIGTERM."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _signal, _frame: sys.exit(0))
    settings = Settings(os.environ)
    control = Control(os.environ)
    control.prepare()
    if not os.path.exists("/dev/net/tun"):  # noqa: PTH110
        # Upstream ends here too when it may not make the device (MKNOD).
        fail("TUN device is not available: open /dev/net/tun: no such file or directory")
    client = Client(settings, control)
    try:
        client.shut()
        client.connect()
    except (OSError, subprocess.SubprocessError) as error:
        fail(str(error))
    with open("/etc/resolv.conf", "w", encoding="ascii") as file:  # noqa: PTH123
        file.write("nameserver 127.0.0.1\n")
    tasks: list[Callable[[], None]] = [client.keep, lambda: serve_names(settings.dns)]
    if settings.forwarding:
        tasks.append(client.forward)
    for task in tasks:
        threading.Thread(target=task, daemon=True).start()
    stand_in.serve(control)
    return 0
