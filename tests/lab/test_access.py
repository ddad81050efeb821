"""Who gets in: administrators who come and go, and a code beside the key for those who come from outside."""

from __future__ import annotations

import base64
import hmac
import time
from pathlib import Path

import pytest

from lab import image
from lab.machine import Machine
from tests.lab.home import Home, told
from tests.lab.keys import key_pair
from tests.lab.segment import LAN, LAN4
from tests.lab.test_lockout import logs_in

pytestmark = [
    pytest.mark.lab,
    pytest.mark.exhaustive,
    pytest.mark.proof("Who gets in: administrators who come and go, and a second factor", "edge"),
]


def test_a_removed_administrator_loses_login_and_sudo_and_keeps_his_files(home: Home, tmp_path: Path) -> None:
    machine = home.machine
    bob = {"keys": [str(key_pair(tmp_path / "bob"))], "expires": "2099-01-31"}
    admins = {"alice": [f"{image.ssh_key()}.pub"], "bob": bob}
    home.write_inventory(admins=admins)
    home.apply()
    assert logs_in(machine, user="alice")
    assert "2099" in machine.run("sudo chage -l bob").stdout
    machine.run("sudo -u alice touch /home/alice/kept")
    home.write_inventory(admins={"bob": bob})
    home.apply()
    assert home.changes() == []
    assert not logs_in(machine, user="alice")
    assert machine.run("sudo -l -U alice").stdout.count("NOPASSWD") == 0
    machine.run("sudo test -e /home/alice/kept")
    home.write_inventory(admins=admins)
    home.apply()
    assert logs_in(machine, user="alice"), "she does not get in again when she returns"
    assert home.changes() == []


def test_the_account_of_the_runs_is_never_removed(home: Home, tmp_path: Path) -> None:
    home.write_inventory(ssh_user="alice", admins={"bob": [str(key_pair(tmp_path / "bob"))]})
    result = home.mediahost("apply")
    assert result.returncode == 1, told(result)
    assert "this run logged in as alice" in told(result)
    assert logs_in(home.machine, user="alice")


def test_from_outside_a_code_is_asked_beside_the_key_and_from_home_it_is_not(edge: Home, stranger: Machine) -> None:
    host = edge.machine
    edge.write_inventory(firewall_lan=LAN, sshd_totp=True)
    edge.apply()
    assert edge.changes() == []
    stranger.copy_in(image.ssh_key(), "key")
    secret = edge.mediahost("secrets", "get", f"{host.name}/totp/alice", check=True).stdout.strip()
    stranger.run("chmod 600 key; printf '#!/bin/sh\\ncat code\\n' >ask; chmod +x ask")
    assert enters(stranger, host, LAN4, "000000"), "at home the key is enough"
    assert not enters(stranger, host, stranger.address4, "000000")
    assert enters(stranger, host, stranger.address4, totp(secret))
    assert edge.changes() == []
    edge.write_inventory(firewall_lan=LAN)
    edge.apply()
    assert enters(stranger, host, stranger.address4, "000000"), "it is asked for although switched off"
    assert edge.changes() == []


def enters(stranger: Machine, host: Machine, source: str, code: str) -> bool:
    """Whether alice gets in with her key from `source`, answering `code` if she is asked."""
    stranger.run("cat >code", input=f"{code}\n")
    command = (
        f"SSH_ASKPASS=$PWD/ask SSH_ASKPASS_REQUIRE=force timeout 60 ssh -b {source} -i key -o IdentitiesOnly=yes"
        " -o NumberOfPasswordPrompts=1 -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null"
        f" alice@{host.address4} sudo -n true"
    )
    return stranger.run(command, check=False).returncode == 0


def totp(secret: str) -> str:
    """The code of this half minute (RFC 6238, SHA-1, six digits)."""
    counter = int(time.time()) // 30
    digest = hmac.digest(base64.b32decode(secret), counter.to_bytes(8), "sha1")
    start = digest[-1] & 15
    return f"{(int.from_bytes(digest[start : start + 4]) & 0x7FFFFFFF) % 1_000_000:06}"
