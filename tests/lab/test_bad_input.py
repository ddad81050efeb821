"""Bad input of every kind: one clear message with the mend, the right exit code, nothing half-done."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from lab import faults
from tests.lab.home import Home, told

pytestmark = [pytest.mark.lab, pytest.mark.proof("Bad input: message, exit code, nothing half-done")]


@dataclass(frozen=True)
class Bad:
    """Settings that cannot be used, what the message must say, and the exit code of `apply`."""

    name: str
    data: dict[str, Any]
    says: tuple[str, ...]
    code: int = 2
    sample: bool = field(default=False)


REFUSED = (
    Bad("unknown key", {"sshd_prot": 22}, ("sshd_prot", "did you mean sshd_port?"), sample=True),
    Bad("unknown service", {"services": ["sonar"]}, ("sonar", "did you mean"), sample=True),
    Bad("retired service", {"services": ["watchtower"]}, ("watchtower", "pinned tags")),
    Bad("port clash", {"service_overrides": {"radarr": {"host_port": 8989}}}, ("8989", "sonarr"), sample=True),
    Bad("bad CIDR", {"firewall_lan": ["192.168.1.5/24"]}, ("192.168.1.5/24", "192.168.1.0/24")),
    Bad("missing key file", {"admins": {"alice": ["/no/such/key.pub"]}}, ("/no/such/key.pub", "ssh-keygen")),
    Bad("unknown time zone", {"timezone": "Europe/Berln"}, ("did you mean Europe/Berlin?",)),
    Bad("bad type", {"sshd_port": "many"}, ("sshd_port", "many")),
    Bad("unknown override", {"service_overrides": {"sonarr": {"exposur": "wan"}}}, ("exposur", "exposure")),
    Bad("relative path", {"data_root": "data"}, ("data_root", "absolute path")),
    Bad("missing secret", {"ddns_settings": [{"token": "secret:nope"}]}, ("nope", "mediahost secrets set nope")),
)

# What only the host can tell: the run starts, and this host fails with a clear word.
FAILING = (
    Bad(
        "bad image tag",
        {"service_overrides": {"sonarr": {"image": "lscr.io/linuxserver/sonarr:0.0.0-no-such"}}},
        ("could not be pulled",),
        code=1,
        sample=True,
    ),
    Bad("registry down", {"registry_prefix": "10.0.2.2:1"}, ("could not be pulled",), code=1),
    Bad("wrong fingerprint", {"docker_apt_fingerprint": "A" * 40}, ("fingerprint", "docker_apt_fingerprint"), code=1),
    Bad("no such version", {"docker_version": "5:99.*"}, ("5:99.*",), code=1),
)


def _cases(cases: tuple[Bad, ...]) -> list[Any]:
    return [pytest.param(case, id=case.name, marks=[] if case.sample else [pytest.mark.exhaustive]) for case in cases]


@pytest.mark.parametrize("bad", _cases(REFUSED))
def test_bad_settings_are_refused_before_anything_is_touched(home: Home, bad: Bad) -> None:
    home.write_inventory(**bad.data)
    result = home.mediahost("apply")
    assert result.returncode == bad.code, told(result)
    for word in bad.says:
        assert word in told(result)
    assert "Traceback" not in told(result)
    assert home.mediahost("plan").returncode == 1
    home.write_inventory()
    assert home.changes() == []


@pytest.mark.parametrize("bad", _cases(FAILING))
def test_what_the_host_refuses_is_told_and_leaves_the_services_running(home: Home, bad: Bad) -> None:
    before = _running(home)
    home.write_inventory(**bad.data)
    result = home.mediahost("apply")
    assert result.returncode == bad.code, told(result)
    for word in bad.says:
        assert word in told(result)
    assert "Traceback" not in told(result)
    assert _running(home) == before
    home.write_inventory()
    home.apply()
    assert home.changes() == []


def test_a_full_disk_is_told_before_anything_is_changed(home: Home) -> None:
    home.machine.run("sudo rm /etc/apt/apt.conf.d/90mediahost")
    with faults.disk_full(home.machine):
        result = home.mediahost("apply")
        assert result.returncode == 1
        assert "MiB are free" in told(result)
        assert "Traceback" not in told(result)
    home.apply()
    assert home.changes() == []


@pytest.mark.exhaustive
def test_a_wrong_sudo_password_is_told(home: Home) -> None:
    home.machine.run("sudo sh -c 'echo debian:right | chpasswd; rm -f /etc/sudoers.d/*debian* /etc/sudoers.d/90*'")
    home.machine.run("sudo -n true", check=False)
    home.write_inventory(_sudo_password="wrong")
    result = home.mediahost("apply")
    assert result.returncode == 1
    assert "password" in told(result).lower()
    assert "Traceback" not in told(result)


@pytest.mark.exhaustive
def test_an_unreachable_host_is_told(home: Home) -> None:
    home.write_inventory(ssh_port=1)
    result = home.mediahost("apply")
    assert result.returncode == 1
    assert "Traceback" not in told(result)
    assert "connect" in told(result).lower()


@pytest.mark.exhaustive
def test_a_missing_vault_and_a_wrong_key_are_told(home: Home) -> None:
    vault = home.repository / "secrets" / "lab.vault"
    key = home.repository / "vault.key"
    kept_vault, kept_key = vault.read_bytes(), key.read_bytes()
    try:
        vault.unlink()
        missing = home.mediahost("apply")
        assert missing.returncode == 2
        assert "mediahost secrets init" in told(missing)
        vault.write_bytes(kept_vault)
        key.write_bytes(kept_key[::-1])
        wrong = home.mediahost("apply")
        assert wrong.returncode == 2, told(wrong)
        assert "Traceback" not in told(wrong)
    finally:
        vault.write_bytes(kept_vault)
        key.write_bytes(kept_key)
    assert home.changes() == []


def _running(home: Home) -> set[str]:
    return set(home.machine.run("sudo docker ps -q").stdout.split())
