"""The SSH server's drop-in, against what the OpenSSH of Debian 12 and of Debian 13 have said."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest

from mediahost import public_key
from mediahost.config import ConfigError, Settings, read
from mediahost.render import ssh
from mediahost.render.ssh import Server
from tests.unit.test_config import KEY

SAMPLES = Path(__file__).parent / "openssh"
VERSIONS = ("9.2", "10.0")
POLICIES = ("default", "strict")
# With these the drop-ins were made that the samples' `default` and `strict` are sshd's answer to.
RECORDED: dict[str, Any] = {"admins": {"me": [KEY]}, "sshd_banner": "hi", "sshd_allow_users": ["backup"]}


def rsa_key(bits: int) -> str:
    """A public key line of that length; nobody has the private half."""
    strings = (b"ssh-rsa", b"\x01\x00\x01", b"\x00" + b"\xff" * (bits // 8))
    return "ssh-rsa " + base64.b64encode(b"".join(len(each).to_bytes(4) + each for each in strings)).decode()


SHORT_RSA, LONG_RSA = rsa_key(2048), rsa_key(3072)


def sample(version: str) -> dict[str, list[str]]:
    """What was recorded: lines by heading."""
    blocks: dict[str, list[str]] = {}
    body: list[str] = []
    for line in (SAMPLES / f"{version}.txt").read_text().splitlines():
        if line.startswith("#kind "):
            body = blocks[line.removeprefix("#kind ")] = []
        else:
            body.append(line)
    return blocks


def shown(lines: list[str]) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for line in lines:
        key, _, value = line.partition(" ")
        found[key] = (*found.get(key, ()), value)
    return found


def server(version: str, login_user: str | None = "debian", ports: tuple[int, ...] = (22, 2222)) -> Server:
    found = sample(version)
    kinds = ("kex", "cipher", "mac", "HostKeyAlgorithms")
    return Server(
        {kind: frozenset(found[kind]) for kind in kinds}, frozenset(shown(found["stock"])), login_user, ports
    )


def settings(**data: Any) -> Settings:
    return read("nas", {**RECORDED, **data})


def values(given: Settings, here: Server, keyword: str) -> list[str]:
    return [value for each, value in ssh.options(given, here) if each == keyword]


# --- what is in effect


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("version", VERSIONS)
def test_sshd_says_of_the_drop_in_what_we_expect_it_to_say(version: str, policy: str) -> None:
    given = settings(sshd_crypto_policy=policy)
    assert ssh.overruled(given, server(version), shown(sample(version)[policy])) == []


@pytest.mark.parametrize("version", VERSIONS)
def test_a_server_as_it_is_installed_is_told_apart_from_a_hardened_one(version: str) -> None:
    wrong = {key for key, _, _ in ssh.overruled(settings(), server(version), shown(sample(version)["stock"]))}
    assert {"passwordauthentication", "kexalgorithms", "ciphers", "macs", "hostkeyalgorithms", "allowusers"} <= wrong


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("passwordauthentication yes", ("passwordauthentication", "yes", "no")),
        ("ciphers 3des-cbc", ("ciphers", "3des-cbc", "")),
        ("allowusers mallory", ("allowusers", "backup debian me mallory", "backup debian me")),
    ],
)
def test_one_line_of_another_file_that_wins_is_told(line: str, told: tuple[str, str, str]) -> None:
    present = shown(sample("10.0")["default"])
    key, value = line.split(" ", 1)
    present[key] = (*present[key], value) if key == "allowusers" else (value,)
    ((found_key, is_, wanted),) = ssh.overruled(settings(), server("10.0"), present)
    assert (found_key, is_) == told[:2]
    assert told[2] in wanted


def test_a_further_port_and_host_key_of_another_file_are_not_told() -> None:
    present = shown(sample("10.0")["default"])
    present["port"] += ("2200",)
    present["hostkey"] += ("/etc/ssh/ssh_host_ecdsa_key",)
    assert ssh.overruled(settings(), server("10.0"), present) == []


# --- algorithms


def kex(version: str, policy: str) -> tuple[str, ...]:
    return ssh.algorithms(settings(sshd_crypto_policy=policy), server(version))["KexAlgorithms"]


@pytest.mark.parametrize("version", VERSIONS)
def test_post_quantum_comes_first_and_paramiko_finds_an_exchange(version: str) -> None:
    found = kex(version, "default")
    assert found[0].startswith(("mlkem", "sntrup"))
    assert found[-2:] == ("curve25519-sha256", "curve25519-sha256@libssh.org")


def test_ml_kem_is_offered_only_where_it_is_known() -> None:
    assert "mlkem768x25519-sha256" in kex("10.0", "default")
    assert "mlkem768x25519-sha256" not in kex("9.2", "default")


def test_strict_is_ssh_audit_s_policy_of_the_release() -> None:
    """Lists as in ssh-audit's `Hardened Debian 13 (version 1)` and `Hardened Debian 12 (version 3)`."""
    assert kex("10.0", "strict") == (
        "mlkem768x25519-sha256",
        "sntrup761x25519-sha512",
        "sntrup761x25519-sha512@openssh.com",
    )
    assert kex("9.2", "strict") == (
        "sntrup761x25519-sha512",
        "sntrup761x25519-sha512@openssh.com",
        "curve25519-sha256",
        "curve25519-sha256@libssh.org",
        "diffie-hellman-group16-sha512",
        "diffie-hellman-group18-sha512",
        "diffie-hellman-group-exchange-sha256",
    )


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("version", VERSIONS)
def test_nothing_is_offered_that_the_server_does_not_know_and_no_ecdsa_host_key(version: str, policy: str) -> None:
    here = server(version)
    found = ssh.algorithms(settings(sshd_crypto_policy=policy), here)
    known = frozenset().union(*here.algorithms.values())
    assert all(names and set(names) <= known for names in found.values())
    assert not any("ecdsa" in name for name in found["HostKeyAlgorithms"])
    # Positive control: users may have such keys, except in `strict`.
    assert any("ecdsa" in name for name in found["PubkeyAcceptedAlgorithms"]) is (policy == "default")


def test_a_list_of_which_nothing_is_known_is_left_to_the_distribution() -> None:
    assert ssh.algorithms(settings(), Server(algorithms={})) == {}
    assert values(settings(), Server(algorithms={}), "PasswordAuthentication") == ["no"]


def test_keywords_are_written_only_for_servers_that_know_them() -> None:
    assert values(settings(), server("10.0"), "PerSourcePenaltyExemptList") == [",".join(settings().firewall_lan)]
    assert values(settings(), server("9.2"), "PerSourcePenaltyExemptList") == []
    assert values(settings(), server("9.2"), "RequiredRSASize") == ["3072"]
    assert values(settings(), Server(keywords=frozenset()), "RequiredRSASize") == []


# --- who may log in


def test_whoever_runs_mediahost_is_on_the_list_of_users_and_so_is_every_administrator() -> None:
    assert values(settings(), server("10.0"), "AllowUsers") == ["backup", "debian", "me"]
    assert values(settings(), server("10.0", login_user="root"), "AllowUsers") == ["backup", "me", "root"]


def test_there_is_no_list_of_users_without_administrators_or_when_the_login_cannot_be_told() -> None:
    nobody = settings(admins={}, sshd_allow_users=[])
    assert values(nobody, server("10.0"), "AllowUsers") == []
    assert values(settings(), server("10.0", login_user=""), "AllowUsers") == []
    # A run on the machine itself needs no place on it.
    assert values(settings(), server("10.0", login_user=None), "AllowUsers") == ["backup", "me"]


@pytest.mark.parametrize(
    ("key", "login", "permitted"),
    [
        ("auto", "debian", "no"),
        ("auto", "root", "prohibit-password"),
        ("auto", None, "no"),
        ("no", "debian", "no"),
        ("prohibit-password", "debian", "prohibit-password"),
    ],
)
def test_root_logs_in_only_where_the_run_does_and_never_with_a_password(
    key: str, login: str | None, permitted: str
) -> None:
    given = settings(sshd_permit_root_login=key)
    assert values(given, server("10.0", login), "PermitRootLogin") == [permitted]
    assert values(given, server("10.0", login), "PasswordAuthentication") == ["no"]


def test_a_key_that_ssh_would_not_take_is_refused_before_anything_is_changed() -> None:
    with pytest.raises(ConfigError, match="me's RSA key has 2048 bits"):
        settings(admins={"me": [SHORT_RSA]})
    assert settings(admins={"me": [LONG_RSA]})


def test_users_without_administrators_are_refused() -> None:
    with pytest.raises(ConfigError, match="sshd_allow_users: does nothing without"):
        settings(admins={})


# --- files


def test_the_drop_in_is_read_before_that_of_cloud_init_and_checked_before_it_counts() -> None:
    file = ssh.drop_in(Settings())
    assert file.path.rpartition("/")[2] < "50-cloud-init.conf"
    assert file.check is not None
    assert file.check.endswith("/usr/sbin/sshd -t -f {}")
    assert file.mode == "0600"


def test_the_banner_is_shown_only_when_there_is_one() -> None:
    banner = ssh.banner_file(settings())
    assert banner is not None
    assert banner.content == b"hi\n"
    assert values(settings(), server("10.0"), "Banner") == [banner.path]
    assert ssh.banner_file(settings(sshd_banner=None)) is None
    assert values(settings(sshd_banner=None), server("10.0"), "Banner") == ["none"]


def test_the_socket_listens_at_our_ports_alone() -> None:
    lines = ssh.socket_file((22, 2222)).content.decode().splitlines()
    assert lines[1:] == ["[Socket]", "ListenStream=", "ListenStream=22", "ListenStream=2222"]


# --- Match blocks


@pytest.mark.parametrize(
    "line", ["PasswordAuthentication yes", "  passwordauthentication=yes", '\tKbdInteractiveAuthentication "yes"']
)
def test_a_match_block_that_lets_passwords_in_is_told(line: str) -> None:
    ((path, condition, told),) = ssh.weakening_matches({"/x": f"Port 22\nMatch User backup\n{line}\n"})
    assert (path, condition) == ("/x", "User backup")
    assert "yes" in told


@pytest.mark.parametrize(
    "content",
    [
        "PasswordAuthentication yes\nMatch User backup\n  ForceCommand internal-sftp\n",
        "Match User backup\n  PasswordAuthentication no\n  # PermitRootLogin yes\n",
    ],
)
def test_a_match_block_that_weakens_nothing_is_not_told(content: str) -> None:
    """What stands before the first Match is the business of `sshd -T`."""
    assert ssh.weakening_matches({"/x": content}) == []


def test_a_dead_client_is_told_by_one_probe_at_least() -> None:
    assert values(settings(), Server(), "TCPKeepAlive") == ["no"]
    assert values(settings(sshd_client_alive_interval=0), Server(), "TCPKeepAlive") == ["yes"]


# --- public keys


def test_the_bits_of_an_rsa_key_are_those_of_its_modulus() -> None:
    assert public_key.rsa_bits(SHORT_RSA) == 2048
    assert public_key.rsa_bits(f"{LONG_RSA} a comment") == 3072


@pytest.mark.parametrize("line", ["", "ssh-rsa", "ssh-rsa !!!!", SHORT_RSA[:200], KEY])
def test_no_bits_are_told_of_a_damaged_key_or_one_of_another_kind(line: str) -> None:
    assert public_key.rsa_bits(line) is None
