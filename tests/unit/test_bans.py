"""`mediahost bans`: what it does to a real Fail2Ban, what it refuses, and what its user reads.

The server is that of test_fail2ban: unpacked, its `nft` writes down what it is told, nothing here is really banned.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from mediahost import bans_on_host
from mediahost.cli import bans, main
from mediahost.render import fail2ban
from tests.unit.test_fail2ban import ATTACKER4, ATTACKER6, HOME4, HOME6, UNPACKED, Server, element, scratch, server

__all__ = ["scratch", "server"]  # pytest finds fixtures by their names here

Ask = Callable[..., dict[str, Any]]


@pytest.fixture
def ask(server: Server) -> Ask:  # noqa: F811
    """Runs the very command that goes to a host; its fail2ban-client talks to the server of the test."""
    client = server.scratch.root / "bin/fail2ban-client"
    sockets = " ".join(server.scratch.sockets)
    client.write_text(
        f"#!/bin/sh\nexport TZ=UTC PYTHONPATH={UNPACKED}/usr/lib/python3/dist-packages\n"
        f'exec /usr/bin/python3 {UNPACKED}/usr/bin/fail2ban-client -c {server.scratch.configuration} {sockets} "$@"\n'
    )
    client.chmod(0o755)

    def asked(verb: str, address: str | None = None, jail: str | None = None, **more: str) -> dict[str, Any]:
        command = bans._on_host({"verb": verb, "address": address, "jail": jail})
        environment = {**os.environ, "PATH": f"{client.parent}:{os.environ['PATH']}", "TZ": "UTC", **more}
        program = Path(bans_on_host.__file__).read_text()
        done = subprocess.run(
            ["sh", "-c", command], env=environment, input=program, capture_output=True, text=True, check=False
        )
        assert done.stderr == ""
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    return asked


def test_a_ban_by_hand_closes_lasts_a_week_is_listed_and_is_forgotten_when_it_is_lifted(
    server: Server,  # noqa: F811
    ask: Ask,
) -> None:
    assert ask("list") == {"bans": []}
    for address in (ATTACKER4, ATTACKER6):
        (made,) = ask("add", address, fail2ban.RECIDIVE)["bans"]
        assert (made["jail"], made["address"], made["times"]) == ("recidive", address, 1)
        server.wait_for_ban("recidive", address)
    found = {ban["address"]: ban for ban in ask("list")["bans"]}
    assert found.keys() == {ATTACKER4, ATTACKER6}
    since, until = found[ATTACKER4]["since"], found[ATTACKER4]["until"]
    assert since.endswith("+00:00")
    assert datetime.fromisoformat(until) - datetime.fromisoformat(since) == timedelta(days=7)
    assert [ban["address"] for ban in ask("remove", ATTACKER4)["bans"]] == [ATTACKER4]
    assert any(f"delete element inet mediahost-bans {element('recidive', ATTACKER4)}" in c for c in server.nft())
    assert [ban["address"] for ban in ask("list")["bans"]] == [ATTACKER6]
    assert ask("remove", ATTACKER4) == {"bans": []}
    (again,) = ask("add", ATTACKER4, fail2ban.RECIDIVE)["bans"]
    assert again["times"] == 1


def test_the_next_ban_by_hand_lasts_twice_as_long_and_is_counted(server: Server, ask: Ask) -> None:  # noqa: F811
    # Long enough to be listed on a slow machine, short enough to wait for.
    server.scratch.client("set", "sonarr", "bantime", "6")
    assert ask("add", ATTACKER4, "sonarr")["bans"][0]["times"] == 1
    server.wait(lambda: ask("list")["bans"] == [], "end of the first ban")
    (second,) = ask("add", ATTACKER4, "sonarr")["bans"]
    assert second["times"] == 2
    assert datetime.fromisoformat(second["until"]) - datetime.fromisoformat(second["since"]) == timedelta(seconds=12)


def test_home_containers_and_where_one_comes_from_are_refused_and_never_banned(
    server: Server,  # noqa: F811
    ask: Ask,
) -> None:
    for address in (HOME4, HOME6, "172.30.0.4", "127.0.0.1"):
        error = ask("add", address, fail2ban.RECIDIVE)["error"]
        assert f"{address} is never banned here" in error
        assert not server.touched(address)
    error = ask("add", ATTACKER4, fail2ban.RECIDIVE, SSH_CONNECTION=f"{ATTACKER4} 5555 10.0.0.2 22")["error"]
    assert "shut yourself out" in error
    assert not server.touched(ATTACKER4)
    # The control: from elsewhere the same is done.
    assert ask("add", ATTACKER4, fail2ban.RECIDIVE, SSH_CONNECTION="10.0.0.1 5555 10.0.0.2 22")["bans"]


def test_only_one_jail_can_be_meant_and_one_that_is_not_there_is_told_with_those_that_are(
    server: Server,  # noqa: F811
    ask: Ask,
) -> None:
    for jail in ("sonarr", "jellyfin"):
        ask("add", ATTACKER4, jail)
    assert [ban["jail"] for ban in ask("list", jail="sonarr")["bans"]] == ["sonarr"]
    assert [ban["jail"] for ban in ask("remove", ATTACKER4, "sonarr")["bans"]] == ["sonarr"]
    assert [ban["jail"] for ban in ask("list")["bans"]] == ["jellyfin"]
    error = ask("add", ATTACKER4, "jellyfish")["error"]
    assert "no jail jellyfish" in error
    assert all(name in error for name in ("sonarr", "jellyfin", "recidive"))


def test_a_fail2ban_that_does_not_run_is_told(server: Server, ask: Ask) -> None:  # noqa: F811
    assert server.scratch.client("stop").returncode == 0
    assert "does not run here" in ask("list")["error"]


# --- the command


def run(*arguments: str, **environment: str) -> Result:
    return CliRunner().invoke(main, ["bans", *arguments], env=environment)


@pytest.fixture
def inventory(tmp_path: Path) -> Path:
    path = tmp_path / "inventory.py"
    path.write_text('hosts = [("@local", {"_sudo": False})]\n')
    return path


def test_the_whole_way_through_pyinfra_to_a_server_and_back(
    inventory: Path,
    server: Server,  # noqa: F811
    ask: Ask,
) -> None:
    path = f"{server.scratch.root / 'bin'}:{os.environ['PATH']}"
    done = run("add", ATTACKER6, str(inventory), PATH=path)
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.startswith(f"@local: {ATTACKER6} is banned in recidive until 20")
    listed = run("list", str(inventory), PATH=path)
    assert listed.stdout.splitlines()[0].split() == ["host", "jail", "address", "since", "until", "times"]
    assert listed.stdout.splitlines()[1].split()[:3] == ["@local", "recidive", ATTACKER6]
    found = json.loads(run("list", str(inventory), "--json", PATH=path).stdout)
    assert [(ban["host"], ban["address"]) for ban in found["bans"]] == [("@local", ATTACKER6)]
    refused = run("add", HOME4, str(inventory), PATH=path)
    assert refused.exit_code == 1
    assert f"@local: {HOME4} is never banned here" in refused.stderr
    assert "is let in again (recidive)" in run("remove", ATTACKER6, str(inventory), PATH=path).stdout
    assert "was not banned" in run("remove", ATTACKER6, str(inventory), PATH=path).stdout
    assert run("list", str(inventory), PATH=path).stdout == "nobody is banned\n"


def test_a_host_without_fail2ban_is_told_once_with_the_mend(inventory: Path, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/sh").symlink_to("/bin/sh")
    done = run("list", str(inventory), PATH=str(tmp_path / "bin"))
    assert done.exit_code == 1
    assert done.stdout == ""
    assert (
        done.stderr == "@local: Fail2Ban is not installed here; mediahost apply installs it unless fail2ban = False\n"
    )


def test_what_sudo_writes_into_the_log_is_one_short_line(tmp_path: Path) -> None:
    """The same question, asked through sudo: the program travels on stdin."""
    inventory, log = tmp_path / "inventory.py", tmp_path / "sudo.log"
    inventory.write_text('hosts = [("@local", {"_sudo": True})]\n')
    programs = {
        "sudo": f'printf "%s\\n" "$*" >>{log}; while [ "$1" != sh ]; do shift; done; exec "$@"',
        "fail2ban-client": "echo '`- Jail list: sshd'",
    }
    for name, script in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    done = run("list", str(inventory), PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert (done.exit_code, done.stdout) == (0, "nobody is banned\n")
    assert "verb" in log.read_text()
    assert len(log.read_text()) < 500


def test_a_host_that_cannot_be_reached_is_told_and_the_others_are_shown(
    monkeypatch: pytest.MonkeyPatch, inventory: Path
) -> None:
    ban = {"jail": "sshd", "address": ATTACKER4, "since": "2026-11-21T10:00:00+00:00", "until": None, "times": 3}
    said = {"fact": {"nas": json.dumps({"bans": [ban]}), "odd": None}}
    log = (
        "--> Connecting to hosts...\n    [\x1b[1mnas\x1b[0m] Connected\n    [odd] Connected\n"
        "    [away] Could not connect (timed out)\n    [odd] Error: could not load fact\n"
    )

    def pretend(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        assert command[:3] == [sys.executable, "-m", "pyinfra"]
        return subprocess.CompletedProcess(command, 1, json.dumps(said), log)

    monkeypatch.setattr(subprocess, "run", pretend)
    done = run("list", str(inventory))
    assert done.exit_code == 1
    assert ATTACKER4 in done.stdout
    assert "for ever" in done.stdout
    assert done.stderr.splitlines() == [
        "odd: Error: could not load fact",
        "away: Could not connect (timed out)",
    ]


def test_a_private_key_that_is_not_there_is_told_in_one_line(inventory: Path, tmp_path: Path) -> None:
    inventory.write_text(f'hosts = [("192.0.2.1", {{"ssh_key": "{tmp_path}/absent"}})]\n')
    done = run("list", str(inventory))
    assert done.exit_code == 1
    assert done.stderr == f"Error: No such private key file: {tmp_path}/absent\n"


@pytest.mark.parametrize(
    ("value", "what"),
    [
        ("nas.example.org", "write one address such as"),
        ("203.0.113.0/24", "not a block"),
        ("127.0.0.1", "nobody comes from there"),
        ("::", "nobody comes from there"),
        ("fe80::1%eth0", "no part of the address"),
        ("203.0.113.9; reboot", "write one address such as"),
    ],
)
@pytest.mark.parametrize("verb", ["add", "remove"])
def test_what_is_no_address_ends_with_code_2_and_no_question(
    monkeypatch: pytest.MonkeyPatch, inventory: Path, verb: str, value: str, what: str
) -> None:
    monkeypatch.setattr(bans, "ask", lambda *_: pytest.fail("a host was asked"))
    done = run(verb, value, str(inventory))
    assert done.exit_code == 2
    assert what in done.stderr


def test_an_address_that_was_mapped_to_ipv6_is_the_ipv4_address_it_is(
    monkeypatch: pytest.MonkeyPatch, inventory: Path
) -> None:
    asked: list[dict[str, Any]] = []

    def note(_inventory: Path, request: dict[str, Any], _limit: str | None) -> bans.Answers:
        asked.append(request)
        return bans.Answers(hosts=["nas"])

    monkeypatch.setattr(bans, "ask", note)
    assert run("remove", f"::ffff:{ATTACKER4}", str(inventory)).exit_code == 0
    assert asked[0]["address"] == ATTACKER4


@pytest.mark.parametrize("arguments", [("absent.py",), ("INVENTORY", "--limit", "nosuch")])
def test_an_inventory_that_is_not_there_or_has_no_such_host_ends_with_code_2(
    inventory: Path, arguments: tuple[str, ...]
) -> None:
    done = run("list", *(str(inventory) if each == "INVENTORY" else each for each in arguments))
    assert done.exit_code == 2
    assert done.stdout == ""
