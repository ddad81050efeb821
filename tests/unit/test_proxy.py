"""The Caddyfile, judged by the real Caddy: well formed, valid, and refusing whom it must refuse."""

import http.client
import json
import re
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from lab import network
from mediahost import config
from mediahost.catalog import load_catalog
from mediahost.render.fail2ban import TEMPLATES
from mediahost.render.proxy import ACCESS_LOG, caddyfile, render_proxy
from mediahost.stack import build_stack

CATALOG = load_catalog()
CADDY = Path(sys.executable).parent / "caddy"
LOOPBACK = "127.0.0.0/8"
ELSEWHERE = "192.168.77.0/24"

VARIANTS: list[dict[str, Any]] = [
    {},
    {"domain": "example.org"},
    {"domain": "example.org", "acme_email": "me@example.org"},
    {"domain": "example.org", "proxy_tls": "internal"},
    {"domain": "example.org", "proxy_tls": "off"},
    {"firewall_lan": ["192.168.1.0/24", "fd00::/8"]},
    {"docker_address_pools": []},
    {"fail2ban": False},
    {"services_disabled": ["bazarr", "seerr"], "service_overrides": {"sonarr": {"route": "none"}}},
]


def text(**data: Any) -> str:
    read = config.read("nas", data)
    return caddyfile(build_stack(read, CATALOG, "nas", lambda name, kind: "x"), read)


@pytest.mark.parametrize("data", VARIANTS)
def test_caddy_finds_the_file_valid_and_well_formatted(tmp_path: Path, data: dict[str, Any]) -> None:
    path = tmp_path / "Caddyfile"
    path.write_text(text(**data).replace(ACCESS_LOG, str(tmp_path / "access.log")))
    formatted = subprocess.run([CADDY, "fmt", path], capture_output=True, text=True, check=True).stdout
    assert formatted == path.read_text()
    done = validate(path, tmp_path)
    assert done.returncode == 0, done.stderr


def test_caddy_refuses_a_broken_file(tmp_path: Path) -> None:
    path = tmp_path / "Caddyfile"
    sound = text().replace(ACCESS_LOG, str(tmp_path / "access.log"))
    path.write_text(sound.replace("reverse_proxy sonarr", "reverse_prxy sonarr"))
    assert validate(path, tmp_path).returncode != 0


def validate(path: Path, home: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [CADDY, "validate", "--config", path, "--adapter", "caddyfile"],
        capture_output=True,
        text=True,
        env={"HOME": str(home)},
    )


def test_certificates_follow_the_setting_and_need_a_domain() -> None:
    assert "auto_https off" in text()
    assert "http://sonarr.nas.home.arpa {" in text()
    acme = text(domain="example.org", acme_email="me@example.org")
    assert "https://sonarr.example.org {" in acme
    assert "email me@example.org" in acme
    assert "Strict-Transport-Security" in acme
    internal = text(domain="example.org", proxy_tls="internal")
    assert "local_certs" in internal
    assert "Strict-Transport-Security" not in internal
    assert "http://sonarr.example.org {" in text(domain="example.org", proxy_tls="off")


def test_a_stack_without_proxy_has_no_file() -> None:
    read = config.read("nas", {"services_disabled": ["caddy"]})
    assert render_proxy(build_stack(read, CATALOG, "nas", lambda name, kind: "x"), read) is None


def test_every_lan_route_is_guarded_and_no_wan_route_is() -> None:
    read = config.read("nas", {})
    stack = build_stack(read, CATALOG, "nas", lambda name, kind: "x")
    assert {route.access for route in stack.routes} == {"lan", "wan"}
    for route in stack.routes:
        site = re.search(rf"^http://{re.escape(route.hostname)} {{$(.*?)^}}$", text(), re.MULTILINE | re.DOTALL)
        assert site, route
        assert ("import lan_only" in site[1]) == (route.access == "lan")


# --- the running Caddy


class _Upstream(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Server", "leaky/1.0")
        self.end_headers()
        self.wfile.write(b"upstream")

    def log_message(self, format: str, *args: Any) -> None:
        """Tests stay quiet."""


@contextmanager
def running(directory: Path, **data: Any) -> Iterator[tuple[int, int]]:
    """The file in a running Caddy, with ports and upstreams of the test; gives (HTTP port, HTTPS port)."""
    upstream = ThreadingHTTPServer(("127.0.0.1", 0), _Upstream)
    threading.Thread(target=upstream.serve_forever, daemon=True).start()
    http_port, https_port = network.free_port(), network.free_port()
    content = text(**data).replace(ACCESS_LOG, str(directory / "access.log"))
    content = content.replace(
        "admin localhost:2019", f"admin off\n\thttp_port {http_port}\n\thttps_port {https_port}"
    )
    content = re.sub(r"reverse_proxy \S+", f"reverse_proxy 127.0.0.1:{upstream.server_port}", content)
    path = directory / "Caddyfile"
    path.write_text(content)
    log = directory / "caddy.log"
    with log.open("wb") as sink:
        caddy = subprocess.Popen(
            [CADDY, "run", "--config", path, "--adapter", "caddyfile"],
            stdout=sink,
            stderr=sink,
            env={"HOME": str(directory), "XDG_DATA_HOME": str(directory), "XDG_CONFIG_HOME": str(directory)},
        )
    try:
        deadline = time.monotonic() + 60
        while True:
            assert caddy.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            try:
                socket.create_connection(("127.0.0.1", http_port), timeout=1).close()
                break
            except OSError:
                time.sleep(0.05)
        yield http_port, https_port
    finally:
        caddy.terminate()
        caddy.wait(30)
        upstream.shutdown()
        upstream.server_close()


def get(port: int, name: str, path: str = "/", **headers: str) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", path, headers={"Host": name, **headers})
    response = connection.getresponse()
    response.read()
    connection.close()
    return response


@pytest.mark.parametrize(
    ("lan", "pools", "lan_route"),
    [
        pytest.param(LOOPBACK, "10.99.0.0/16", 200, id="a client at home is let in"),
        pytest.param(ELSEWHERE, "10.99.0.0/16", 403, id="a client from elsewhere is refused"),
        pytest.param(LOOPBACK, LOOPBACK, 403, id="a container's address is refused though it is in the lan"),
    ],
)
def test_a_lan_route_serves_only_the_home_network_and_a_wan_route_everybody(
    tmp_path: Path, lan: str, pools: str, lan_route: int
) -> None:
    data = {"firewall_lan": [lan], "docker_address_pools": [{"base": pools, "size": 24}]}
    with running(tmp_path, **data) as (port, _):
        assert get(port, "sonarr.nas.home.arpa").status == lan_route
        assert get(port, "seerr.nas.home.arpa").status == 200
        assert get(port, "unknown.nas.home.arpa").status == 404
        assert get(port, "127.0.0.1").status == 404


def test_the_access_log_tells_who_was_refused_and_no_key_and_is_what_the_jail_s_filter_reads(tmp_path: Path) -> None:
    with running(tmp_path, firewall_lan=[ELSEWHERE]) as (port, _):
        for name, path in (("sonarr", "/api?apikey=s3cret"), ("seerr", "/"), ("unknown", "/")):
            get(port, f"{name}.nas.home.arpa", path, **{"X-Api-Key": "s3cret", "Cookie": "a=s3cret"})
    log = (tmp_path / "access.log").read_text()
    assert [json.loads(line)["status"] for line in log.splitlines()] == [403, 200]
    assert json.loads(log.splitlines()[0])["request"]["uri"] == "/api"
    assert "s3cret" not in log
    rule = re.search(r"^failregex = (.*)$", (TEMPLATES / "filter.d/mediahost-caddy.conf").read_text(), re.MULTILINE)
    assert rule
    # As Fail2Ban sees a line: without its time.
    seen = [re.sub(r'^\{"level":"(?:info|error)","ts":[\d.]*', "", line) for line in log.splitlines()]
    failure = re.compile(rule[1].replace("<ADDR>", r"(?P<address>[\d.]+)"))
    found = [failure.search(line) for line in seen]
    assert [match and match["address"] for match in found] == ["127.0.0.1", None]


def test_without_fail2ban_nothing_is_logged(tmp_path: Path) -> None:
    with running(tmp_path, fail2ban=False) as (port, _):
        get(port, "seerr.nas.home.arpa")
    assert not (tmp_path / "access.log").exists()


def test_answers_carry_security_headers_and_do_not_name_the_server(tmp_path: Path) -> None:
    with running(tmp_path) as (port, _):
        answer = get(port, "seerr.nas.home.arpa")
    assert answer.status == 200
    assert answer.getheader("Server") is None
    assert answer.getheader("X-Content-Type-Options") == "nosniff"
    assert answer.getheader("X-Frame-Options") == "SAMEORIGIN"


def test_with_a_domain_http_leads_to_https_and_an_unknown_name_to_nothing(tmp_path: Path) -> None:
    data = {"domain": "example.org", "proxy_tls": "internal", "firewall_lan": [LOOPBACK]}
    with running(tmp_path, **data) as (http_port, https_port):
        answer = get(http_port, "sonarr.example.org")
        assert answer.status == 308
        assert str(answer.getheader("Location")).startswith("https://sonarr.example.org")
        assert get(http_port, "unknown.example.org").status == 404
        assert b"200" in over_tls(https_port, "sonarr.example.org")
        with pytest.raises(ssl.SSLError):
            over_tls(https_port, "unknown.example.org")


def over_tls(port: int, name: str) -> bytes:
    """Status line of `GET /` over TLS. Trusts any certificate: which one it is, is not the question here."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    deadline = time.monotonic() + 60
    while True:
        try:
            with (
                socket.create_connection(("127.0.0.1", port), timeout=30) as raw,
                context.wrap_socket(raw, server_hostname=name) as secured,
            ):
                secured.sendall(f"GET / HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n".encode())
                return secured.recv(100).split(b"\r\n")[0]
        except ssl.SSLError:
            # The internal authority signs in the background after the start; an unknown name never gets one.
            if name.startswith("unknown") or time.monotonic() > deadline:
                raise
            time.sleep(0.1)
