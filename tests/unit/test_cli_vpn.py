"""`mediahost vpn`: what goes into the vault and what its user reads, and what is asked of NordVPN.

NordVPN is played by a stand-in: a real HTTP server on loopback that keeps to the API's documented contract
(/v1/users/services/credentials with HTTP basic authentication, /v1/servers/countries, /v1/servers/recommendations).
"""

from __future__ import annotations

import base64
import json
import socket
import subprocess
import threading
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from click.testing import CliRunner, Result

from mediahost import nordvpn, wireguard
from mediahost.cli import asking, inventory, main
from mediahost.cli import vpn as cli
from mediahost.nordvpn import NordVPNError
from mediahost.secrets import Cost, Passphrase, Vault, keys
from tests.unit.test_wireguard import FILES, PLAIN, PRIVATE, SERVER, key

PHRASE = "correct horse battery staple"
TOKEN = "e9f2ab0123456789abcdef0123456789abcdef0123456789abcdef0123456789"
ACCOUNT_KEY = key(7)


class _Remembering:
    """pyinfra, asked once for each inventory: it takes a second to start."""

    known: ClassVar[dict[str, subprocess.CompletedProcess[str]]] = {}

    @classmethod
    def run(cls, command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        content = Path(command[3]).read_text()
        if content not in cls.known:
            cls.known[content] = subprocess.run(command, **options)
        return cls.known[content]


@pytest.fixture(autouse=True)
def repository(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """inventories/home.py with two hosts, `nas` with Proton, `attic` with nothing; and an empty vault."""
    root = tmp_path / "repository"
    (root / "inventories").mkdir(parents=True)
    (root / "inventories/home.py").write_text('hosts = [("nas", {"vpn_provider": "proton"}), "attic"]\n')
    monkeypatch.chdir(root)
    monkeypatch.setattr(inventory, "subprocess", _Remembering)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv(keys.KEY_FILE_VARIABLE, raising=False)
    monkeypatch.setenv(keys.PASSPHRASE_VARIABLE, PHRASE)
    vault = Vault.create(root / "secrets/home.vault", Passphrase(PHRASE), cost=Cost(memory_kib=8, passes=1, lanes=1))
    (root / "secrets").mkdir()
    vault.save()
    return root


def run(*arguments: str, stdin: str | bytes | None = None) -> Result:
    result = CliRunner().invoke(main, ["vpn", *arguments], input=stdin)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert not any(secret in result.output for secret in (PRIVATE, ACCOUNT_KEY, TOKEN))
    return result


def vault() -> dict[str, str]:
    opened = Vault.open(Path("secrets/home.vault"), Passphrase(PHRASE))
    return {name: opened.get(name) for name in opened.names()}


HOME = "inventories/home.py"
NAS = (HOME, "--limit", "nas")

# --- import


def test_an_imported_file_is_in_the_vault_and_its_user_is_told_what_and_what_next(repository: Path) -> None:
    file = repository / "wg.conf"
    file.write_text(FILES["proton"].replace("\n", "\r\n"))
    done = run("import", HOME, str(file), "--limit", "nas")
    assert done.exit_code == 0, done.output
    assert wireguard.read(vault()["nas/vpn/wireguard"]) == wireguard.read(FILES["proton"])
    assert "nas/vpn/wireguard is in the vault" in done.stdout
    assert "203.0.113.9, port 51820/udp" in done.stdout
    assert "10.2.0.2/32" in done.stdout
    assert f"next: mediahost apply {HOME}" in done.stdout
    again = run("import", HOME, str(file), "--limit", "nas")
    assert "unchanged" in again.stdout


def test_standard_input_is_read_too_and_a_host_without_provider_is_told_to_set_one() -> None:
    done = run("import", HOME, "-", "--limit", "attic", stdin=PLAIN)
    assert done.exit_code == 0, done.output
    assert "attic/vpn/wireguard" in vault()
    assert "next: set vpn_provider" in done.stdout


def test_windows_unicode_is_read(repository: Path) -> None:
    (repository / "wg.conf").write_bytes(PLAIN.encode("utf-16"))
    assert run("import", HOME, "wg.conf", "--limit", "nas").exit_code == 0
    assert wireguard.read(vault()["nas/vpn/wireguard"]).private_key == PRIVATE


def test_a_name_as_endpoint_is_looked_up_here_and_the_address_is_kept_and_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []

    def pretend(name: str, *_: Any, **__: Any) -> list[Any]:
        asked.append(name)
        found = [(socket.AF_INET6, "2001:db8::9"), (socket.AF_INET, "198.51.100.4")]
        return [(family, socket.SOCK_DGRAM, 17, "", (address, 0)) for family, address in found]

    monkeypatch.setattr(socket, "getaddrinfo", pretend)
    done = run("import", *NAS[:1], "-", *NAS[1:], stdin=PLAIN.replace("203.0.113.9", "nl1.example.net"))
    assert done.exit_code == 0, done.output
    assert asked == ["nl1.example.net"]
    assert wireguard.read(vault()["nas/vpn/wireguard"]).endpoint == "198.51.100.4"
    assert "nl1.example.net is 198.51.100.4" in done.stdout


def test_two_hosts_never_get_one_key() -> None:
    done = run("import", HOME, "-", stdin=PLAIN)
    assert done.exit_code == 2
    assert "attic, nas" in done.stderr
    assert "--limit" in done.stderr
    assert vault() == {}


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (PLAIN.replace("0.0.0.0/0", "10.0.0.0/8").encode(), "does not contain 0.0.0.0/0"),
        (b"PK\x03\x04" + b"\0" * 30, "unpack it"),
        (b"\xc3\x28\xff\xfa" * 9, "not a text"),
        (b"", "no [Interface]"),
    ],
)
def test_what_is_no_usable_file_is_refused_with_code_2_and_the_vault_is_as_it_was(content: bytes, what: str) -> None:
    done = run("import", HOME, "-", "--limit", "nas", stdin=content)
    assert done.exit_code == 2
    assert what in done.stderr
    assert vault() == {}


def test_a_host_that_is_not_there_and_an_inventory_that_is_not_there_end_with_code_2() -> None:
    assert "no host matches nosuch" in run("import", HOME, "-", "--limit", "nosuch", stdin=PLAIN).stderr
    assert run("import", "absent.py", "-", stdin=PLAIN).exit_code == 2


def test_without_a_vault_its_user_is_told_to_make_one(repository: Path) -> None:
    (repository / "secrets/home.vault").unlink()
    done = run("import", HOME, "-", "--limit", "nas", stdin=PLAIN)
    assert done.exit_code == 2
    assert "mediahost secrets init" in done.stderr


# --- NordVPN


class StandIn:
    """NordVPN's API as it is documented; `answers` replaces what a path answers: (code, headers, body)."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str | None]] = []
        self.answers: dict[str, tuple[int, dict[str, str], bytes]] = {}
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:  # noqa: N802 - http.server's name
                outer.asked.append((self.path, self.headers.get("Authorization")))
                code, headers, body = outer.answer(self.path, self.headers.get("Authorization"))
                self.send_response(code)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def answer(self, path: str, authorization: str | None) -> tuple[int, dict[str, str], bytes]:
        parts = urllib.parse.urlsplit(path)
        if parts.path in self.answers:
            return self.answers[parts.path]
        if parts.path == "/v1/users/services/credentials":
            if authorization != "Basic " + base64.b64encode(f"token:{TOKEN}".encode()).decode():
                return 401, {}, b'{"errors": {"code": 100103, "message": "Invalid authorization header"}}'
            return 200, {}, json.dumps({"id": 1, "nordlynx_private_key": ACCOUNT_KEY}).encode()
        if parts.path == "/v1/servers/countries":
            found = [
                {"id": 153, "name": "Netherlands", "code": "NL"},
                {"id": 227, "name": "United Kingdom", "code": "GB"},
            ]
            return 200, {}, json.dumps(found).encode()
        if parts.path == "/v1/servers/recommendations":
            query = urllib.parse.parse_qs(parts.query)
            if query.get("filters[servers_technologies][identifier]") != ["wireguard_udp"]:
                return 400, {}, b"{}"
            number = query.get("filters[country_id]", ["0"])[0]
            return 200, {}, json.dumps([self.server_entry(number)]).encode()
        return 404, {}, b"{}"

    @staticmethod
    def server_entry(country: str) -> dict[str, Any]:
        names = {"153": "Netherlands", "227": "United Kingdom"}
        return {
            "id": 9,
            "hostname": f"x{country}.nordvpn.com",
            "station": f"198.51.100.{int(country) % 250 + 1}",
            "locations": [{"country": {"name": names.get(country, "Norway"), "city": {"name": "Town"}}}],
            "technologies": [
                {"identifier": "openvpn_udp", "metadata": []},
                {"identifier": "wireguard_udp", "metadata": [{"name": "public_key", "value": SERVER}]},
            ],
        }


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    stand_in = StandIn()
    monkeypatch.setenv(nordvpn.BASE_VARIABLE, stand_in.url)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yield stand_in
    stand_in.server.shutdown()
    stand_in.server.server_close()


def test_a_token_becomes_a_tunnel_in_the_vault_and_goes_to_one_place_only(api: StandIn) -> None:
    done = run("nordvpn", *NAS, stdin=f"{TOKEN}\n")
    assert done.exit_code == 0, done.output
    tunnel = wireguard.read(vault()["nas/vpn/wireguard"])
    assert (tunnel.private_key, tunnel.peer) == (ACCOUNT_KEY, SERVER)
    assert (tunnel.addresses, tunnel.endpoint, tunnel.endpoint_port) == (("10.5.0.2/32",), "198.51.100.1", 51820)
    assert (tunnel.dns, tunnel.keepalive) == (("103.86.96.100", "103.86.99.100"), 25)
    assert "Town, Norway" in done.stdout
    assert "next: nas has vpn_provider = proton: set it to nordvpn" in done.stdout
    assert {path for path, authorization in api.asked if authorization} == {"/v1/users/services/credentials"}
    assert not any(TOKEN in path for path, _ in api.asked)
    assert list(vault()) == ["nas/vpn/wireguard"]


@pytest.mark.parametrize(("country", "number"), [("nl", 153), ("united_kingdom", 227), ("UK", 227)])
def test_a_country_is_taken_by_name_or_code(api: StandIn, country: str, number: int) -> None:
    done = run("nordvpn", *NAS, "--country", country, stdin=TOKEN)
    assert done.exit_code == 0, done.output
    assert wireguard.read(vault()["nas/vpn/wireguard"]).endpoint == f"198.51.100.{number % 250 + 1}"


def test_an_unknown_country_is_told_with_the_likely_one_and_the_token_stays_here(api: StandIn) -> None:
    done = run("nordvpn", *NAS, "--country", "Nederlands", stdin=TOKEN)
    assert done.exit_code == 2
    assert "did you mean Netherlands (NL)" in done.stderr
    assert not any(authorization for _, authorization in api.asked)


def test_the_vaults_token_comes_first(api: StandIn) -> None:
    opened = Vault.open(Path("secrets/home.vault"), Passphrase(PHRASE))
    opened.set("nordvpn_token", TOKEN)
    opened.save()
    assert run("nordvpn", *NAS, stdin="wrong-token-wrong-token").exit_code == 0


def test_a_token_that_is_not_taken_is_told_with_where_to_get_another(api: StandIn) -> None:
    done = run("nordvpn", *NAS, stdin="not-the-right-token")
    assert done.exit_code == 2
    assert "does not take this access token" in done.stderr
    assert "https://my.nordaccount.com" in done.stderr
    assert "not-the-right-token" not in done.output
    assert vault() == {}


@pytest.mark.parametrize("stdin", ["", "two words", "x\ny", "é" * 20])
def test_what_is_no_token_is_not_sent(api: StandIn, stdin: str) -> None:
    done = run("nordvpn", *NAS, stdin=stdin)
    assert done.exit_code == 2
    assert "mediahost secrets set nordvpn_token" in done.stderr
    assert api.asked == []


@pytest.mark.parametrize(
    ("path", "answer", "what"),
    [
        ("credentials", (200, {}, b'{"nordlynx_private_key": null}'), "without a subscription"),
        ("credentials", (200, {}, b'{"nordlynx_private_key": "c2hvcnQ="}'), "without a subscription"),
        ("credentials", (200, {}, b"[]"), "without a subscription"),
        ("credentials", (429, {}, b""), "too often"),
        ("credentials", (503, {}, b"<html>"), "answers 503"),
        ("recommendations", (200, {}, b"[]"), "no WireGuard server"),
        ("recommendations", (200, {}, b'{"a": 1}'), "in the form that is known"),
        ("recommendations", (200, {}, b'[{"station": "x", "technologies": 3}, 5]'), "in the form that is known"),
        ("recommendations", (200, {}, b"<html>"), "in the form that is known"),
        ("recommendations", (200, {}, b"\xff\xfe"), "in the form that is known"),
    ],
)
def test_odd_answers_are_told_and_change_nothing(
    api: StandIn, path: str, answer: tuple[int, dict[str, str], bytes], what: str
) -> None:
    folder = "users/services" if path == "credentials" else "servers"
    api.answers[f"/v1/{folder}/{path}"] = answer
    done = run("nordvpn", *NAS, stdin=TOKEN)
    assert done.exit_code == 2
    assert what in done.stderr
    assert vault() == {}


def test_a_redirect_does_not_take_the_token_along(api: StandIn) -> None:
    api.answers["/v1/users/services/credentials"] = (302, {"Location": f"{api.url}/elsewhere"}, b"")
    done = run("nordvpn", *NAS, stdin=TOKEN)
    assert done.exit_code == 2
    assert "redirect" in done.stderr
    assert not any(path == "/elsewhere" for path, _ in api.asked)


def test_no_network_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv(nordvpn.BASE_VARIABLE, f"http://127.0.0.1:{unused.getsockname()[1]}")
        done = run("nordvpn", *NAS, stdin=TOKEN)
    assert done.exit_code == 2
    assert "cannot be reached" in done.stderr


def test_the_token_never_crosses_a_network_in_the_clear(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(nordvpn.BASE_VARIABLE, "http://api.example.net")
    with pytest.raises(NordVPNError, match="must begin with https"):
        nordvpn.fetch(TOKEN)


# --- status and leak-test, with what a host said


STATUS = {
    "tunnel": {
        "link": "wg-vpn",
        "up": True,
        "handshake": 42,
        "endpoint": "203.0.113.9:51820",
        "sent": 2048,
        "received": 5 << 20,
    },
    "wall": {"table": True, "unit": "active"},
    "drops": [{"name": "dropped_ipv6", "packets": 3, "bytes": 240}],
    "port": 40123,
    "containers": [
        {
            "names": ["qbittorrent"],
            "networks": ["mediahost_vpn"],
            "seen": "203.0.113.9",
            "other_ways": [],
            "drops": [{"name": "dropped_inside", "packets": 7, "bytes": 560}],
        }
    ],
    "own_address": "198.51.100.20",
    "problems": [],
}
ROW = {"container": "qbittorrent", "phase": "tunnel up", "probe": "UDP to 1.1.1.1", "why": "stopped"}


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What `nas` answers; an "error" is one."""
    told: dict[str, Any] = {}

    def pretend(_: Path, name: str, program: str) -> dict[str, Any]:
        assert name == "nas"
        return told

    monkeypatch.setattr(cli, "_ask_host", pretend)
    return told


_INSIDE = "7 packets by another network than the tunnel's, of qbittorrent"


def test_a_well_tunnel_is_told_in_words_and_ends_with_code_0(host: dict[str, Any]) -> None:
    host.update(STATUS)
    done = run("status", *NAS)
    assert done.exit_code == 0, done.output
    for words in (
        "nas: well",
        "answered 42 s ago",
        "5.0 MiB in",
        "seen as 203.0.113.9",
        "40123",
        "3 packets IPv6",
        _INSIDE,
    ):
        assert words in done.stdout
    told = json.loads(run("status", *NAS, "--json").stdout)
    assert told["hosts"]["nas"]["port"] == 40123


def test_what_is_not_well_is_told_and_ends_with_code_1(host: dict[str, Any]) -> None:
    host.update({**STATUS, "problems": ["the wall is down"]})
    done = run("status", *NAS)
    assert done.exit_code == 1
    assert "nas: not well" in done.stdout
    assert "! the wall is down" in done.stdout


def test_a_host_without_vpn_is_well_and_one_that_cannot_be_asked_is_not(host: dict[str, Any]) -> None:
    host.update({"error": "Docker does not answer"})
    done = run("status", HOME)
    assert done.exit_code == 1
    assert "attic: no VPN" in done.stdout
    assert done.stderr == "nas: Docker does not answer\n"
    assert run("status", HOME, "--limit", "attic").exit_code == 0


@pytest.mark.parametrize(
    ("verdicts", "problems", "code", "words"),
    [
        (["safe", "no way out"], [], 0, "verdict: SAFE"),
        (["safe", "leak", "not judged"], ["x"], 1, "verdict: LEAK"),
        (["safe", "not judged"], [], 3, "verdict: NOT PROVEN"),
        (["safe"], ["the tunnel was not taken down"], 3, "verdict: NOT PROVEN"),
        (["no way out"], [], 3, "verdict: NOT PROVEN"),
        ([], [], 3, "verdict: NOT PROVEN"),
    ],
)
def test_the_verdict_is_safe_only_when_everything_was_judged(
    host: dict[str, Any], verdicts: list[str], problems: list[str], code: int, words: str
) -> None:
    host.update({"rows": [{**ROW, "verdict": verdict} for verdict in verdicts], "problems": problems})
    done = run("leak-test", *NAS, "--yes")
    assert done.exit_code == code
    assert words in done.stdout
    told = json.loads(run("leak-test", *NAS, "--yes", "--json").stdout)
    assert told["verdict"] == {0: "safe", 1: "leak", 3: "not judged"}[code]


def test_a_host_that_cannot_be_asked_is_not_safe(host: dict[str, Any]) -> None:
    host.update({"error": "this needs root"})
    done = run("leak-test", *NAS)
    assert done.exit_code == 3
    assert "nas: this needs root" in done.stderr


def test_the_tunnel_is_left_up_when_nobody_can_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def note(_: Path, limit: str | None, module: str, more: dict[str, Any]) -> cli.Answers:
        asked.append(more["take_down"])
        return cli.Answers(without=["nas"])

    monkeypatch.setattr(cli, "_ask_hosts", note)
    assert "nothing to test" in run("leak-test", *NAS).stdout
    run("leak-test", *NAS, "--yes")
    run("leak-test", *NAS, "--yes", "--without-taking-down")
    assert asked == [False, True, False]


def test_a_target_that_is_a_name_is_refused() -> None:
    assert run("leak-test", *NAS, "--target", "example.com").exit_code == 2


def test_the_way_to_a_host_and_back_is_pyinfras_and_the_program_is_not_in_the_hosts_argv(repository: Path) -> None:
    (repository / "inventories/home.py").write_text(
        'hosts = [("@local", {"_sudo": False, "vpn_provider": "proton"})]\n'
    )
    done = run("status", HOME, "--no-echo")
    assert done.exit_code == 1
    assert done.stderr.startswith("@local: ")
    assert "import base64" not in done.output
    assert "python3 -I -" in asking.ON_HOST
