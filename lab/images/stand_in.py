#!/usr/bin/python3 -IS
"""A stand-in for a media service that neither Debian nor PyPI ships, for the lab only.

It keeps what the product relies on (port, anonymous health path, API key and its place, the start-up
conventions of its image) and nothing else, and says that it is a stand-in in its log, its pages and its
Server header. It must never log an API key, and must stay cheap to start: guests run in software emulation.

    python3 -IS stand_in.py SERVICE [healthcheck]

MEDIAHOST_STAND_IN_ROOT (default "/") is put before every path, so that tests can run it without a container.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import socket
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))  # noqa: PTH120 - python3 -I leaves it out

import linuxserver  # noqa: E402
from linuxserver import log  # noqa: E402

TYPE_CHECKING = False  # the name type checkers know; importing typing would cost 10 ms natively
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any, NoReturn

    Handler = Callable[["Request"], "Answer"]

REQUEST_LIMIT = 65536  # bytes of one request's head
PATIENCE = 10.0  # seconds a client may take to send its request

_REASONS = {
    200: "OK",
    202: "Accepted",
    307: "Temporary Redirect",
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    500: "Internal Server Error",
}


class Request:
    """What a client asked: method, path without the query, query values, headers with lower-case names."""

    def __init__(self, head: bytes) -> None:
        lines = head.decode("latin-1").split("\r\n")
        self.method, target, _version = lines[0].split(" ", 2)
        self.path, _, query = target.partition("?")
        self.query = dict(part.partition("=")[::2] for part in query.split("&") if part)
        self.headers = {}
        for line in lines[1:]:
            name, _, value = line.partition(":")
            self.headers[name.strip().lower()] = value.strip()


class Answer:
    """What it gets: a status and either a JSON value or a page of text."""

    def __init__(self, status: int, body: object, headers: dict[str, str] | None = None) -> None:
        self.status = status
        self.headers = headers or {}
        if isinstance(body, str):
            self.kind, self.body = "text/html; charset=utf-8", body.encode()
        else:
            self.kind, self.body = "application/json; charset=utf-8", json.dumps(body).encode()

    def encode(self, server: str, with_body: bool) -> bytes:
        lines = [f"HTTP/1.1 {self.status} {_REASONS[self.status]}", f"Server: {server}"]
        lines += [f"Content-Type: {self.kind}", f"Content-Length: {len(self.body)}", "Connection: close"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + (self.body if with_body else b"")


class StandIn:
    """What all stand-ins share; a subclass holds the contract of one upstream program."""

    port = 0
    starts_as_root = False
    needs_init = False

    def __init__(self, name: str, environment: Mapping[str, str]) -> None:
        self.name = name
        self.environment = environment
        self.root = environment.get("MEDIAHOST_STAND_IN_ROOT", "").rstrip("/")
        self.version = environment.get("MEDIAHOST_STAND_IN_VERSION", "0")
        self.label = f"stand-in for {name}"
        self.address = ""

    def path(self, path: str) -> str:
        """`path` of the container, below MEDIAHOST_STAND_IN_ROOT."""
        return self.root + path

    def prepare(self) -> None:
        """Read or write the configuration. Runs as the unprivileged user."""
        raise NotImplementedError

    def answer(self, request: Request) -> Answer:
        """Answer a request for the web port."""
        raise NotImplementedError

    def listeners(self) -> list[tuple[str, int, Handler]]:
        """(address, port, handler) of each socket; the address "" means all, IPv4 and IPv6."""
        return [(self.address, self.port, self.answer)]

    def page(self) -> Answer:
        """The page at /: it names the program and says that this is not it."""
        title = self.name.capitalize()
        note = f"{self.label}, mediahost lab"
        return Answer(200, f"<!doctype html><title>{title}</title><h1>{title}</h1><p>{note}\n")

    def write(self, path: str, text: str) -> None:
        """Write a configuration file as a whole, or say why it cannot be."""
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)  # noqa: PTH103, PTH120
            with open(path + ".new", "w", encoding="utf-8") as file:  # noqa: PTH123
                file.write(text)
            os.replace(path + ".new", path)  # noqa: PTH105
        except OSError as error:
            fail(f"cannot write {path} as {os.geteuid()}:{os.getegid()}: {error.strerror}")

    def read(self, path: str) -> str | None:
        """The text of a configuration file, None when there is none yet."""
        try:
            with open(path, encoding="utf-8") as file:  # noqa: PTH123
                return file.read()
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            fail(f"cannot read {path} as {os.geteuid()}:{os.getegid()}: {error}")


class Servarr(StandIn):
    """Sonarr, Radarr and Prowlarr: config.xml, NAME__SECTION__KEY variables that win over it, /ping."""

    starts_as_root = True
    api = "v3"

    def prepare(self) -> None:
        self.config = self.path("/config/config.xml")
        text = self.read(self.config)
        if text is not None and not ("<Config>" in text and "</Config>" in text):
            fail(f"{self.config} is corrupt: no <Config> element")
        if text is None:
            text = (
                f"<Config>\n  <BindAddress>*</BindAddress>\n  <Port>{self.port}</Port>\n"
                f"  <ApiKey>{new_key()}</ApiKey>\n  <AuthenticationMethod>None</AuthenticationMethod>\n"
                f"  <UrlBase></UrlBase>\n  <InstanceName>{self.name.capitalize()}</InstanceName>\n</Config>\n"
            )
            self.write(self.config, text)
        elif not _element(text, "ApiKey"):
            text = text.replace("</Config>", f"  <ApiKey>{new_key()}</ApiKey>\n</Config>")
            self.write(self.config, text)
        self.key = self._setting("AUTH__APIKEY", text, "ApiKey")
        self.base = self._setting("SERVER__URLBASE", text, "UrlBase").strip("/")
        self.base = f"/{self.base}" if self.base else ""
        self.instance = self._setting("APP__INSTANCENAME", text, "InstanceName") or self.name.capitalize()
        self.port = port_number(self._setting("SERVER__PORT", text, "Port") or str(self.port))
        address = self._setting("SERVER__BINDADDRESS", text, "BindAddress")
        self.address = "" if address == "*" else address

    def _setting(self, variable: str, text: str, element: str) -> str:
        value = self.environment.get(f"{self.name.upper()}__{variable}", "")
        return value or _element(text, element)

    def answer(self, request: Request) -> Answer:
        path = request.path
        if self.base:
            if path != self.base and not path.startswith(self.base + "/"):
                return Answer(307, "", {"Location": self.base + path})
            path = path[len(self.base) :] or "/"
        if path == "/ping":
            # The real one reads its database here; losing /config must turn it unhealthy.
            healthy = os.access(self.config, os.R_OK)
            return Answer(200, {"status": "OK"}) if healthy else Answer(500, {"status": "Error"})
        if path == "/api" or path.startswith("/api/"):
            given = request.headers.get("x-api-key") or request.query.get("apikey")
            if given != self.key:
                return Answer(401, {"error": "Unauthorized"})
            if path == "/api":
                return Answer(200, {"current": self.api, "deprecated": []})
            if path == f"/api/{self.api}/system/status":
                status: dict[str, object] = {"appName": self.name.capitalize(), "instanceName": self.instance}
                status |= {"version": self.version, "urlBase": self.base, "isDocker": True, "standIn": True}
                return Answer(200, status)
            return Answer(404, {"message": "NotFound"})
        return self.page() if path in {"/", "/login"} else Answer(404, "not found\n")


class Sonarr(Servarr):
    port = 8989


class Radarr(Servarr):
    port = 7878


class Prowlarr(Servarr):
    port = 9696
    api = "v1"


class Bazarr(StandIn):
    """Bazarr: the key lives in config.yaml only, no variable sets it."""

    port = 6767
    starts_as_root = True

    def prepare(self) -> None:
        self.config = self.path("/config/config/config.yaml")
        text = self.read(self.config)
        if text is None:
            text = (
                f"---\nauth:\n  apikey: {new_key()}\n  password: ''\n  type: null\n  username: ''\n"
                f"general:\n  base_url: ''\n  ip: '*'\n  port: {self.port}\n"
            )
            self.write(self.config, text)
        settings = _two_level_yaml(text)
        self.key = settings.get(("auth", "apikey"), "")
        if not self.key:
            fail(f"{self.config} has no auth.apikey")
        self.base = settings.get(("general", "base_url"), "").rstrip("/")
        self.port = port_number(settings.get(("general", "port"), "") or str(self.port))
        address = settings.get(("general", "ip"), "")
        self.address = "" if address in {"*", "0.0.0.0"} else address  # noqa: S104 - it is the real default

    def answer(self, request: Request) -> Answer:
        path = request.path.removeprefix(self.base) or "/"
        if path == "/api/system/ping":
            return Answer(200, {"status": "OK"}) if os.access(self.config, os.R_OK) else Answer(500, "")
        if path.startswith("/api/"):
            if (request.headers.get("x-api-key") or request.query.get("apikey")) != self.key:
                return Answer(401, "Unauthorized\n")
            if path == "/api/system/status":
                return Answer(200, {"data": {"bazarr_version": self.version.lstrip("v"), "stand_in": True}})
            return Answer(404, {"message": "NotFound"})
        return self.page() if path == "/" else Answer(404, "not found\n")


class Seerr(StandIn):
    """Seerr: never root, settings.json made at the first start, 403 without the key."""

    port = 5055
    needs_init = True

    def prepare(self) -> None:
        if os.geteuid() == 0 and not self.root:
            fail("this image runs as 1000:1000 (USER node), not as root")
        folder = self.environment.get("CONFIG_DIRECTORY") or self.path("/app/config")
        self.config = f"{folder}/settings.json"
        text = self.read(self.config)
        try:
            settings = json.loads(text) if text else {}
            main = settings.setdefault("main", {})
            stored = main.get("apiKey", "")
        except (ValueError, AttributeError):
            fail(f"{self.config} is not a JSON object with an object main")
        # API_KEY is read at every start and stored, as upstream does.
        self.key = self.environment.get("API_KEY") or stored or new_key()
        if self.key != stored or text is None:
            main["apiKey"] = self.key
            settings.setdefault("public", {"initialized": False})
            self.write(self.config, json.dumps(settings, indent=1) + "\n")
        self.port = port_number(self.environment.get("PORT") or str(self.port))
        self.address = self.environment.get("HOST", "")

    def answer(self, request: Request) -> Answer:
        path = request.path
        if path == "/api/v1/status":
            return Answer(200, {"version": self.version.lstrip("v"), "commitTag": "stand-in"})
        if path == "/api/v1/settings/public":
            return Answer(200, {"initialized": False, "applicationTitle": "Seerr"})
        if path.startswith("/api/"):
            if request.headers.get("x-api-key") != self.key:
                error = "You do not have permission to access this endpoint"
                return Answer(403, {"status": 403, "error": error})
            if path == "/api/v1/settings/main":
                return Answer(200, {"applicationTitle": "Seerr", "apiKey": self.key})
            if path == "/api/v1/settings/about":
                return Answer(200, {"version": self.version.lstrip("v"), "totalRequests": 0})
            return Answer(404, {"message": "not found"})
        return self.page() if path in {"/", "/setup", "/login"} else Answer(404, "not found\n")


class DdnsUpdater(StandIn):
    """ddns-updater: settings from CONFIG or config.json, a health server on loopback, no API."""

    port = 8000
    health_address = "127.0.0.1:9999"

    def prepare(self) -> None:
        self.config = self.path("/updater/data/config.json")
        source, text = "the variable CONFIG", self.environment.get("CONFIG")
        if not text:
            source, text = self.config, self.read(self.config)
        if text is None:
            text = "{}"
            self.write(self.config, text + "\n")
        try:
            settings = json.loads(text).get("settings") or []
            records = [(entry["provider"], entry["domain"]) for entry in settings]
        except (ValueError, AttributeError, KeyError, TypeError) as error:
            # The message of a JSON error quotes no value, so no provider token reaches the log.
            kind = type(error).__name__
            fail(f"{source} is not valid ({kind}): every setting needs a provider and a domain")
        log(f"{len(records)} record(s) to update" if records else "found no setting to update record")
        self.records = records
        # A record can only be updated when the last results can be stored.
        if not os.access(os.path.dirname(self.config), os.W_OK):  # noqa: PTH120
            fail(f"{os.path.dirname(self.config)} is not writable by {os.geteuid()}:{os.getegid()}")  # noqa: PTH120
        self.address, self.port = _split(self.environment.get("LISTENING_ADDRESS") or f":{self.port}")
        self.health = _split(self.environment.get("HEALTH_SERVER_ADDRESS") or self.health_address)
        self.base = self.environment.get("ROOT_URL", "").rstrip("/")

    def listeners(self) -> list[tuple[str, int, Handler]]:
        return [(self.address, self.port, self.answer), (*self.health, lambda _request: Answer(200, ""))]

    def answer(self, request: Request) -> Answer:
        path = request.path.removeprefix(self.base) or "/"
        if path == "/update":
            return Answer(202, "updates are not made by a stand-in\n")
        return self.page() if path == "/" else Answer(404, "not found\n")

    def check(self) -> int:
        """The `healthcheck` command: 0 when the running instance answers on its health port."""
        address = _split(self.environment.get("HEALTH_SERVER_ADDRESS") or self.health_address)
        try:
            with socket.create_connection(address, timeout=5) as connection:
                connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
                return 0 if connection.recv(64).split(b" ")[1:2] == [b"200"] else 1
        except OSError as error:
            log(f"error: {error}")
            return 1


SERVICES = {
    "sonarr": Sonarr,
    "radarr": Radarr,
    "prowlarr": Prowlarr,
    "bazarr": Bazarr,
    "seerr": Seerr,
    "ddns-updater": DdnsUpdater,
}


def fail(text: str) -> NoReturn:
    """Say why the container cannot start, then end it with status 1."""
    linuxserver.fail(text)
    raise SystemExit(1)


def new_key() -> str:
    """A new API key: 32 hexadecimal digits."""
    return os.urandom(16).hex()


def port_number(text: str) -> int:
    """`text` as a TCP port, or an error that ends the program."""
    if not text.isdigit() or not 0 < int(text) < 65536:
        fail(f"{text!r} is not a port number")
    return int(text)


def _element(text: str, name: str) -> str:
    _, found, rest = text.partition(f"<{name}>")
    return rest.partition(f"</{name}>")[0].strip() if found else ""


def _two_level_yaml(text: str) -> dict[tuple[str, str], str]:
    # Bazarr's own file has sections of scalars; a YAML library would double the time to start. JSON is YAML, too.
    if text.lstrip().startswith("{"):
        return {
            (section, name): str(value)
            for section, values in json.loads(text).items()
            for name, value in values.items()
        }
    settings = {}
    section = ""
    for line in text.splitlines():
        name, colon, value = line.strip().partition(":")
        if not colon or name.startswith("#"):
            continue
        if not line[0].isspace():
            section = name
        else:
            settings[section, name] = value.strip().strip("'\"")
    return settings


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), port_number(port)


def _listen(address: str, port: int) -> socket.socket:
    try:
        if not address and socket.has_dualstack_ipv6():
            try:
                return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
            except OSError:
                # A kernel may offer IPv6 sockets and yet have IPv6 switched off.
                pass
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        return socket.create_server((address, port), family=family)
    except OSError as error:
        fail(f"cannot listen on {address or '*'}:{port}: {error.strerror}")


def serve(stand_in: StandIn) -> None:
    """Answer requests until SIGTERM or SIGINT. One request a connection, no threads."""
    selector = selectors.DefaultSelector()
    for address, port, handler in stand_in.listeners():
        listener = _listen(address, port)
        listener.setblocking(False)
        selector.register(listener, selectors.EVENT_READ, (None, handler, 0.0))
    umask = os.umask(0)
    os.umask(umask)
    log(
        f"mediahost lab: {stand_in.label} {stand_in.version}, not the real program; port {stand_in.port}, "
        f"uid {os.geteuid()}, gid {os.getegid()}, umask {umask:03o}"
    )
    server = f"{stand_in.label} (mediahost lab)"
    while True:
        for key, _events in selector.select(timeout=1.0):
            head, handler, _deadline = key.data
            if head is None:
                try:
                    connection, _peer = socket_of(key).accept()
                except OSError:
                    continue
                connection.setblocking(False)
                deadline = time.monotonic() + PATIENCE
                selector.register(connection, selectors.EVENT_READ, (bytearray(), handler, deadline))
            else:
                _receive(selector, socket_of(key), head, handler, server)
        now = time.monotonic()
        clients = [key for key in selector.get_map().values() if key.data[0] is not None]
        for key in clients:
            if key.data[2] < now:
                _close(selector, socket_of(key))


def socket_of(key: selectors.SelectorKey) -> socket.socket:
    """The socket that was registered under `key`."""
    registered: Any = key.fileobj
    return registered  # type: ignore[no-any-return]


def _receive(
    selector: selectors.BaseSelector,
    connection: socket.socket,
    head: bytearray,
    handler: Handler,
    server: str,
) -> None:
    try:
        received = connection.recv(16384)
    except BlockingIOError:
        return
    except OSError:
        received = b""
    head += received
    if not received or len(head) > REQUEST_LIMIT:
        _close(selector, connection)
    elif b"\r\n\r\n" in head:
        try:
            request = Request(bytes(head).partition(b"\r\n\r\n")[0])
            answer, with_body = handler(request), request.method != "HEAD"
        except ValueError:
            answer, with_body = Answer(400, "bad request\n"), True
        connection.settimeout(PATIENCE)
        try:
            connection.sendall(answer.encode(server, with_body))
            connection.shutdown(socket.SHUT_WR)
        except OSError:
            pass
        _close(selector, connection)


def _close(selector: selectors.BaseSelector, connection: socket.socket) -> None:
    selector.unregister(connection)
    connection.close()


def _stop(_signal: int, _frame: object) -> None:
    raise SystemExit(0)


def main(arguments: list[str]) -> int:
    """Run the stand-in named by the program's own name (ddns-updater) or by the first argument."""
    name = os.path.basename(arguments[0])  # noqa: PTH119
    rest = arguments[1:]
    if name not in SERVICES and rest:
        name, rest = rest[0], rest[1:]
    if name not in SERVICES:
        fail(f"no stand-in is called {name!r}; there are {', '.join(sorted(SERVICES))}")
    stand_in = SERVICES[name](name, os.environ)
    if rest == ["healthcheck"] and isinstance(stand_in, DdnsUpdater):
        return stand_in.check()
    if stand_in.needs_init and os.getpid() == 1:
        # The kernel gives process 1 no default action for SIGTERM, so upstream's node hangs until it is killed.
        log("running as process 1 without init: true, SIGTERM will be ignored")
    else:
        signal.signal(signal.SIGTERM, _stop)
        signal.signal(signal.SIGINT, _stop)
    if stand_in.starts_as_root:
        linuxserver.load_file_secrets(os.environ)
        linuxserver.take_identity(os.environ, stand_in.path("/config"))
    stand_in.prepare()
    serve(stand_in)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
