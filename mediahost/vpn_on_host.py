"""What `mediahost vpn status` runs on a host: looks at the tunnel, the wall and the confined containers.

Sent as text and run by the host's own Python as root: the standard library of Python 3.10 only, and of this project
only what is sent along. It only reads. The request and the answer are JSON objects.
"""

from __future__ import annotations

import ctypes
import http.client
import ipaddress
import json
import os
import re
import secrets
import select
import socket
import ssl
import struct
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

DOCKER = "/var/run/docker.sock"
_CLONE_NEWNET = 0x40000000
# WireGuard makes new keys every 120 s while anything is sent, and a keepalive is (protocol, 6.1): REJECT_AFTER_TIME.
STALE_SECONDS = 180


class RefusedError(Exception):
    """Why there is no answer, in words for the user."""


@dataclass(frozen=True)
class Namespace:
    """A network namespace of confined containers: whoever shares one is tested once.

    `pid` is a process in it; `networks` maps the container's addresses to the engine's network names; `endpoint` is
    the VPN's server that a container in it was told of.
    """

    containers: tuple[str, ...]
    pid: int
    networks: dict[str, str] = field(default_factory=dict)
    resolvers: tuple[str, ...] = ()
    endpoint: str | None = None

    @property
    def name(self) -> str:
        return ", ".join(self.containers)


# --- asking --------------------------------------------------------------------------------------------------


def run(*command: str) -> str | None:
    """What a program prints; None when it fails or is not there."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


class _Local(http.client.HTTPConnection):
    """HTTP to the engine's socket."""

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(20)
        self.sock.connect(DOCKER)


def docker(path: str) -> Any:
    """The engine's answer to a GET. Raises `RefusedError` when it does not run."""
    connection = _Local("docker")
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        content = json.loads(answer.read())
    except (OSError, ValueError, http.client.HTTPException):
        raise RefusedError("Docker does not answer; see: journalctl -u docker") from None
    finally:
        connection.close()
    if answer.status != 200:
        raise RefusedError(f"Docker answers {answer.status} to {path.partition('?')[0]}")
    return content


def confined(request: dict[str, Any]) -> list[Namespace]:
    """The namespaces of the containers in the VPN's network, or in the VPN client's namespace."""
    containers = docker("/containers/json")
    inside = [each for each in containers if request["network"] in _networks(each)]
    clients = {each["Id"] for each in inside}
    shared = {f"container:{identity}" for identity in clients}
    members = inside + [each for each in containers if each["HostConfig"]["NetworkMode"] in shared]
    found: dict[str, Namespace] = {}
    for each in members:
        details = docker(f"/containers/{each['Id']}/json")
        pid = details["State"]["Pid"]
        try:
            namespace = str(Path(f"/proc/{pid}/ns/net").readlink())
        except OSError:
            continue  # it has just stopped
        before = found.get(namespace)
        networks = {
            str(network["IPAddress"]): name for name, network in _networks(each).items() if network.get("IPAddress")
        }
        found[namespace] = Namespace(
            (*(before.containers if before else ()), _name(each)),
            before.pid if before else pid,
            {**(before.networks if before else {}), **networks},
            before.resolvers if before else _resolvers(pid),
            (before.endpoint if before else None) or _endpoint(details),
        )
    return sorted(found.values(), key=lambda each: each.containers)


def _networks(container: dict[str, Any]) -> dict[str, Any]:
    networks: dict[str, Any] = container["NetworkSettings"]["Networks"] or {}
    return networks


def _name(container: dict[str, Any]) -> str:
    labels = container.get("Labels") or {}
    name: str = labels.get("com.docker.compose.service") or container["Names"][0].lstrip("/")
    return name


def _endpoint(details: dict[str, Any]) -> str | None:
    """Of the client's container: what it was told, which `wg` on the host may not be there to say."""
    variables = dict(each.partition("=")[::2] for each in (details.get("Config") or {}).get("Env") or ())
    address = variables.get("WIREGUARD_ENDPOINT_IP")
    return f"{address}:{variables.get('WIREGUARD_ENDPOINT_PORT', '51820')}" if address else None


def _resolvers(pid: int) -> tuple[str, ...]:
    return tuple(nameservers(f"/proc/{pid}/root/etc/resolv.conf"))


def nameservers(path: str) -> list[str]:
    """The addresses of a resolv.conf(5); empty when there is none."""
    try:
        text = Path(path).read_text(errors="replace")
    except OSError:
        return []
    found = []
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == "nameserver" and is_address(words[1]):
            found.append(words[1])
    return found


def is_address(text: str) -> bool:
    """Whether this is an IP address."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def enter(pid: int) -> None:
    """Move this process into the network namespace of another."""
    library = ctypes.CDLL(None, use_errno=True)
    with Path(f"/proc/{pid}/ns/net").open("rb") as file:
        if library.setns(file.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")


def inside(pid: int | None, work: Callable[[], Any], seconds: float = 60) -> Any:
    """What `work` gives in the network namespace of `pid` (None: the host's), in a process of its own.

    Values go through JSON. None when it fails or takes longer.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(reading)
            if pid is not None:
                enter(pid)
            content = json.dumps(work()).encode()
            with os.fdopen(writing, "wb") as file:
                file.write(content)
            code = 0
        except Exception as error:  # noqa: BLE001 - the answer is that there is none
            sys.stderr.write(f"{type(error).__name__}: {error}\n")
        finally:
            os._exit(code)
    os.close(writing)
    content = b""
    until = time.monotonic() + seconds
    while select.select([reading], [], [], max(0.0, until - time.monotonic()))[0]:
        part = os.read(reading, 65536)
        if not part:
            break
        content += part
    else:
        os.kill(child, 9)
    os.close(reading)
    os.waitpid(child, 0)
    try:
        return json.loads(content)
    except ValueError:
        return None


# --- the world, as seen from a namespace ---------------------------------------------------------------------


def query(name: str, identity: int, kind: int = 1) -> bytes:
    """A DNS question (RFC 1035, 4.1); `kind` 1 asks for an IPv4 address."""
    labels = b"".join(bytes([len(label)]) + label.encode("idna") for label in name.rstrip(".").split("."))
    return struct.pack(">HHHHHH", identity, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack(">HH", kind, 1)


def lookup(name: str, servers: Sequence[str]) -> str | None:
    """The IPv4 address that one of the servers gives for a name. Asked here, not by the C library: that reads the
    host's resolv.conf, whose servers mean something else in another namespace."""
    for server in servers:
        family = socket.AF_INET6 if ":" in server else socket.AF_INET
        identity = secrets.randbelow(65536)
        with socket.socket(family, socket.SOCK_DGRAM) as asker:
            asker.settimeout(3)
            try:
                asker.connect((server, 53))
                asker.send(query(name, identity))
                answer = asker.recv(4096)
            except OSError:
                continue
        if answer[:2] == identity.to_bytes(2, "big"):
            found = _first_address(answer)
            if found:
                return found
    return None


def _first_address(answer: bytes) -> str | None:
    try:
        questions, answers = struct.unpack(">HH", answer[4:8])
        at = 12
        for _ in range(questions):
            at = _after_name(answer, at) + 4
        for _ in range(answers):
            at = _after_name(answer, at)
            kind, _, _, length = struct.unpack(">HHIH", answer[at : at + 10])
            at += 10
            if kind == 1 and length == 4:
                return str(ipaddress.ip_address(answer[at : at + 4]))
            at += length
    except (struct.error, IndexError, ValueError):
        pass
    return None


def _after_name(answer: bytes, at: int) -> int:
    while answer[at]:
        if answer[at] >= 0xC0:
            return at + 2
        at += answer[at] + 1
    return at + 1


def seen_address(services: Sequence[str], resolvers: Sequence[str]) -> str | None:
    """Our address as the first service that answers sees it; they are asked for one in plain text."""
    for service in services:
        parts = urllib.parse.urlsplit(service)
        host = parts.hostname or ""
        address = host if is_address(host) else lookup(host, resolvers)
        if not address:
            continue
        secure = parts.scheme == "https"
        try:
            with socket.create_connection((address, parts.port or (443 if secure else 80)), timeout=6) as plain:
                plain.settimeout(6)
                connection = plain
                if secure:
                    connection = ssl.create_default_context().wrap_socket(plain, server_hostname=host)
                path = f"{parts.path or '/'}{'?' + parts.query if parts.query else ''}"
                # Some of these services answer a page to browsers, and an address to curl.
                headers = f"Host: {parts.netloc}\r\nUser-Agent: curl/8\r\nAccept: text/plain"
                connection.sendall(f"GET {path} HTTP/1.0\r\n{headers}\r\n\r\n".encode())
                answer = b""
                while len(answer) < 16384 and (part := connection.recv(4096)):
                    answer += part
        except (OSError, ValueError):
            continue
        body = answer.partition(b"\r\n\r\n")[2].decode("latin-1")
        for word in re.findall(r"[0-9a-fA-F.:]{3,45}", body):
            if is_address(word):
                return str(ipaddress.ip_address(word))
    return None


# --- status --------------------------------------------------------------------------------------------------


def status(request: dict[str, Any]) -> dict[str, Any]:
    """Everything there is to see; `problems` holds in words what is not well."""
    namespaces = confined(request)
    problems: list[str] = []
    wall = _wall(request, problems)
    tunnel = _tunnel(request, namespaces, problems)
    containers = [_container(request, namespace, problems) for namespace in namespaces]
    running = {name for namespace in namespaces for name in namespace.containers}
    for name in request["services"]:
        if name not in running:
            problems.append(f"{name} should be confined and is not, or does not run: mediahost plan tells why")
    if not namespaces:
        problems.append(f"no container is in the network {request['network']}: mediahost apply")
    own = inside(None, lambda: seen_address(request["echo"], _own_resolvers()), 40) if request["echo"] else None
    seen = {each["seen"] for each in containers if each["seen"]}
    if own and own in seen:
        problems.append(f"confined services are seen as {own}, the host's own address: THEY LEAK")
    if request["echo"] and namespaces and not seen:
        problems.append("nothing outside answers through the tunnel")
    return {
        "tunnel": tunnel,
        "wall": wall,
        "drops": drops(request),
        "port": _port(request, problems),
        "containers": containers,
        "own_address": own,
        "problems": problems,
    }


def _own_resolvers() -> list[str]:
    return nameservers("/etc/resolv.conf")


def _wall(request: dict[str, Any], problems: list[str]) -> dict[str, Any]:
    table = run("nft", "list", "table", "inet", request["table"]) is not None
    unit = (run("systemctl", "show", "-p", "ActiveState", "--value", request["wall_unit"]) or "").strip()
    told = {"table": table, "unit": unit or "absent"}
    if not request["killswitch"]:
        return told
    if not table:
        problems.append(f"the wall is down: nft table inet {request['table']} is not loaded; mediahost apply")
    if unit != "active":
        problems.append(f"{request['wall_unit']} is {unit or 'absent'}; see: journalctl -u {request['wall_unit']}")
    if request["mode"] == "host":
        rules = run("ip", "-4", "rule", "show") or ""
        routes = run("ip", "-4", "route", "show", "table", str(request["route_table"])) or ""
        told["rule"] = bool(
            re.search(rf"iif {re.escape(request['bridge'])}\b.*lookup {request['route_table']}\b", rules)
        )
        told["fallback"] = "unreachable default" in routes
        if not told["rule"]:
            problems.append(f"no ip rule sends {request['bridge']} into table {request['route_table']}")
        if not told["fallback"]:
            problems.append(f"table {request['route_table']} has no unreachable default to fall back on")
    return told


def _tunnel(request: dict[str, Any], namespaces: list[Namespace], problems: list[str]) -> dict[str, Any]:
    told: dict[str, Any] = {"link": None, "up": False, "handshake": None, "endpoint": None, "sent": 0, "received": 0}
    holder = tunnel_holder(request, namespaces)
    if holder is None:
        problems.append("there is no tunnel interface; see: journalctl -u mediahost-vpn")
        return told
    prefix, link = holder
    told["link"] = link
    told["up"] = "UP" in flags(prefix, link)
    if not told["up"]:
        problems.append(f"{link} is down")
    # Never `wg show LINK` or dump: those hold keys.
    for key, what in (("latest-handshakes", "handshake"), ("endpoints", "endpoint"), ("transfer", "transfer")):
        words = (run(*prefix, "wg", "show", link, key) or "").split()
        if what == "handshake" and len(words) >= 2:
            told["handshake"] = max(0, int(time.time()) - int(words[1])) if int(words[1]) else None
        elif what == "endpoint" and len(words) >= 2:
            told["endpoint"] = words[1]
        elif what == "transfer" and len(words) >= 3:
            told["received"], told["sent"] = int(words[1]), int(words[2])
    told["endpoint"] = told["endpoint"] or next((each.endpoint for each in namespaces if each.endpoint), None)
    if request["mode"] == "host":
        age = told["handshake"]
        if age is None:
            problems.append("the server has never answered: wrong key, wrong endpoint, or a firewall in between")
        elif age > STALE_SECONDS:
            problems.append(f"the server has not answered for {age} s: it or the way to it is down")
    return told


def tunnel_holder(request: dict[str, Any], namespaces: Sequence[Namespace]) -> tuple[tuple[str, ...], str] | None:
    """(what to put before a command so that it runs where the tunnel is, the interface); None when there is none."""
    if request["mode"] == "host":
        return ((), request["link"]) if run("ip", "link", "show", "dev", request["link"]) else None
    for namespace in namespaces:
        prefix = ("nsenter", "-t", str(namespace.pid), "-n")
        for link in json.loads(run(*prefix, "ip", "-j", "link", "show") or "[]"):
            if link.get("link_type") == "none":
                return prefix, link["ifname"]
    return None


def flags(prefix: Sequence[str], link: str) -> list[str]:
    """An interface's flags, UP among them."""
    found = json.loads(run(*prefix, "ip", "-j", "link", "show", "dev", link) or "[]")
    return list(found[0].get("flags", [])) if found else []


def drops(request: dict[str, Any]) -> list[dict[str, Any]]:
    """The named counters of the host's wall, by name."""
    return _counters(request["table"])


def _counters(table: str, *inside: str) -> list[dict[str, Any]]:
    """A table's named counters, by name; `inside` are words before the command, which enter a namespace."""
    text = run(*inside, "nft", "-j", "list", "counters", "table", "inet", table)
    found = [each["counter"] for each in json.loads(text or "{}").get("nftables", []) if "counter" in each]
    named = [{key: counter[key] for key in ("name", "packets", "bytes")} for counter in found]
    return sorted(named, key=lambda each: str(each["name"]))


def _container(request: dict[str, Any], namespace: Namespace, problems: list[str]) -> dict[str, Any]:
    seen = None
    if request["echo"]:
        seen = inside(namespace.pid, lambda: seen_address(request["echo"], namespace.resolvers), 60)
    told = {
        "names": list(namespace.containers),
        "networks": sorted(set(namespace.networks.values())),
        "seen": seen,
        "drops": _counters(request["inside_table"], "nsenter", "-t", str(namespace.pid), "-n"),
    }
    strange = _ways_out(request, namespace)
    if strange:
        problems.append(f"{namespace.name} has another way out: {', '.join(strange)}; mediahost apply")
    told["other_ways"] = strange
    return told


def _ways_out(request: dict[str, Any], namespace: Namespace) -> list[str]:
    """Networks beside the VPN's that lead outside, and default routes that leave by them."""
    found = []
    for name in sorted(set(namespace.networks.values()) - {request["network"]}):
        if not docker(f"/networks/{urllib.parse.quote(name)}").get("Internal"):
            found.append(f"network {name}")
    if request["mode"] == "host":
        mine = [address for address, name in namespace.networks.items() if name == request["network"]]
        routes = inside(namespace.pid, default_links) or []
        found += [f"default route by {link}" for link, addresses in routes if not set(addresses) & set(mine)]
    return found


def default_links() -> list[tuple[str, list[str]]]:
    """Interfaces with an IPv4 default route in this namespace, with their addresses."""
    routes = json.loads(run("ip", "-j", "-4", "route", "show", "default") or "[]")
    return [(route["dev"], addresses(route["dev"])) for route in routes if route.get("dev")]


def addresses(link: str) -> list[str]:
    """An interface's IPv4 addresses in this namespace."""
    found = json.loads(run("ip", "-j", "-4", "addr", "show", "dev", link) or "[]")
    return [entry["local"] for each in found for entry in each.get("addr_info", ()) if "local" in entry]


def _port(request: dict[str, Any], problems: list[str]) -> int | None:
    wanted = request["forwarding"]
    if wanted != "nat-pmp":
        return wanted if isinstance(wanted, int) else None
    try:
        return int(Path(request["port_file"]).read_text())
    except (OSError, ValueError):
        problems.append(f"no port is forwarded; see: journalctl -u {request['port_unit']}")
        return None


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """What the request comes to: the status, or {error: ...}."""
    try:
        if os.geteuid() != 0:
            raise RefusedError("this needs root on the host: log in as root, or let pyinfra use sudo")
        return status(request)
    except RefusedError as error:
        return {"error": str(error)}
