"""Stage ssh: what it does on which host, what it refuses, and that nothing it does shuts out the one who runs it."""

from __future__ import annotations

import contextlib
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import paramiko
import pytest

from facts.snapshot import PathState, Snapshot, UnitState
from mediahost.config import Settings
from mediahost.render import ssh as wanted
from mediahost.render.ssh import Server
from mediahost.resources import File
from operations import ssh
from operations.ssh import ControlSide
from tests.operations.test_steps import RUNNING, as_present, commands, refusal, sound, told
from tests.unit.test_render_ssh import rsa_key, sample, settings, shown

LONG, SHORT = rsa_key(4096), rsa_key(3072)
RELOAD = "ssh.service: runs with an older configuration, is reloaded (sessions go on)"
ALGORITHMS = {kind: frozenset(sample("10.0")[kind]) for kind in ("kex", "cipher", "mac", "HostKeyAlgorithms")}
STOCK = shown(sample("10.0")["stock"])
SFTP = {"subsystem": ("sftp /usr/lib/openssh/sftp-server",)}
# paramiko 4.0's own, in part
PARAMIKO = ControlSide({"KexAlgorithms": frozenset({"curve25519-sha256@libssh.org", "ecdh-sha2-nistp256"})}, port=22)
IDLE = replace(RUNNING, active="inactive", sub="dead")
Probes = dict[str, dict[str, tuple[str, ...]]]


def plain(path: str) -> dict[str, PathState]:
    return as_present(File(path, b""))


def bare(**differs: Any) -> Snapshot:
    """Debian 13 as installed, with an RSA host key that is long enough, seen by a run that logged in as debian."""
    found = Snapshot(
        paths=plain(wanted.ED25519_HOST_KEY) | plain(wanted.RSA_HOST_KEY),
        contents={f"{wanted.RSA_HOST_KEY}.pub": LONG},
        units={ssh.UNIT: RUNNING},
        sshd=STOCK,
        ssh_algorithms=ALGORITHMS,
        ssh_client="192.168.1.5",
        ssh_user="debian",
    )
    return replace(found, **differs)


def hardened(given: Settings, seen: Snapshot | None = None) -> Snapshot:
    """The same host after `given` was brought about."""
    seen = seen or bare()
    here = ssh.server(given, seen)
    banner = wanted.banner_file(given)
    files = [wanted.drop_in(given, here), *([banner] if banner else [])]
    effect = {**STOCK, **wanted.effective(given, here), **SFTP}
    return replace(seen, paths={**seen.paths, **as_present(*files)}, sshd=effect, pending=frozenset())


# --- the server


@pytest.mark.parametrize("given", [Settings(), settings(), settings(sshd_crypto_policy="strict")])
def test_a_hardened_server_is_no_step(given: Settings) -> None:
    assert ssh.steps(given, hardened(given)) == []


def test_a_server_as_installed_gets_the_drop_in_and_is_reloaded_after_a_test() -> None:
    steps = ssh.steps(Settings(), bare())
    assert told(steps) == [f"{wanted.DROP_IN_PATH}: missing", RELOAD]
    lines = steps[-1].command.splitlines()
    assert lines.index(wanted.CHECK) < lines.index(f"systemctl try-reload-or-restart {ssh.UNIT}")
    sound(steps)


def test_a_server_behind_its_socket_needs_no_running_service() -> None:
    seen = hardened(Settings())
    by_socket = replace(
        seen, units={ssh.UNIT: IDLE, ssh.SOCKET: RUNNING}, paths=seen.paths | plain(ssh.SOCKET_GENERATOR)
    )
    assert ssh.steps(Settings(), by_socket) == []
    assert ssh.steps(Settings(), replace(seen, units={ssh.UNIT: IDLE})) != []


def test_a_reload_that_is_owed_is_made() -> None:
    seen = replace(hardened(Settings()), pending=frozenset({ssh.UNIT}))
    assert told(ssh.steps(Settings(), seen)) == [RELOAD]


def test_a_setting_that_another_file_overrules_is_refused_with_the_way_to_find_it() -> None:
    seen = hardened(Settings())
    overruled = replace(seen, sshd={**seen.sshd, "passwordauthentication": ("yes",)})
    steps = ssh.steps(Settings(), overruled)
    assert told(steps) == ["sshd: passwordauthentication is yes, wanted no"]
    assert "grep -rni passwordauthentication /etc/ssh" in refusal(steps)


def test_a_server_that_does_not_tell_its_settings_is_refused_in_its_own_words() -> None:
    seen = replace(hardened(Settings()), sshd=shown(["/etc/ssh/sshd_config: line 3: Bad configuration option: Prot"]))
    seen = replace(seen, paths=seen.paths | as_present(wanted.drop_in(Settings(), ssh.server(Settings(), seen))))
    assert "line 3: Bad configuration option: Prot" in refusal(ssh.steps(Settings(), seen))


def test_a_server_without_file_transfer_is_refused() -> None:
    seen = hardened(Settings())
    assert "Subsystem sftp" in refusal(ssh.steps(Settings(), replace(seen, sshd={**seen.sshd, "subsystem": ()})))


# --- Match blocks


def test_a_match_block_that_weakens_is_refused_by_name() -> None:
    file = {"/etc/ssh/sshd_config.d/99-vendor.conf": "Match User backup\nPasswordAuthentication yes\n"}
    steps = ssh.steps(Settings(), replace(hardened(Settings()), sshd_match_files=file))
    for part in ("/etc/ssh/sshd_config.d/99-vendor.conf", "Match User backup", "PasswordAuthentication yes"):
        assert part in refusal(steps)


def test_what_sshd_itself_says_of_a_login_counts_where_the_text_tells_nothing() -> None:
    """An Include inside a Match block is not read by us."""
    file = {"/etc/ssh/sshd_config": "Match Address 192.0.2.0/24\nInclude /root/weak\n"}
    harmless = replace(
        hardened(Settings()),
        sshd_match_files=file,
        sshd_probes={"user=root,host=probe,addr=192.0.2.1": {"passwordauthentication": ("no",)}},
    )
    assert ssh.steps(Settings(), harmless) == []
    weak: Probes = {"user=root,host=probe,addr=192.0.2.1": {"passwordauthentication": ("yes",)}}
    assert "addr=192.0.2.1 passwordauthentication is yes" in refusal(
        ssh.steps(Settings(), replace(harmless, sshd_probes=weak))
    )


def test_sshd_is_asked_about_root_and_administrators_from_home_and_from_outside() -> None:
    probes = ssh.request(settings(firewall_lan=["192.168.7.0/24"])).ssh_probes
    assert probes == {
        f"user={user},host=probe,addr={address}"
        for user in ("root", "me")
        for address in ("192.168.7.1", ssh.OUTSIDE)
    }


# --- who runs this


def test_root_is_not_shut_out_by_a_run_that_logs_in_as_root() -> None:
    given = settings(sshd_permit_root_login="no")
    assert "logs in as root" in refusal(ssh.steps(given, bare(ssh_user="root")))
    assert not any(step.refusal for step in ssh.steps(given, bare(ssh_user="debian")))
    assert not any(step.refusal for step in ssh.steps(settings(), bare(ssh_user="root")))


def test_strict_refuses_itself_where_this_machine_could_not_connect_and_only_there() -> None:
    given = settings(sshd_crypto_policy="strict")
    found = refusal(ssh.steps(given, bare(), PARAMIKO))
    assert "sshd_crypto_policy = 'strict'" in found
    assert "Set sshd_crypto_policy = 'default'" in found
    modern = ControlSide({"KexAlgorithms": frozenset({"mlkem768x25519-sha256"})}, port=22)
    assert not any(step.refusal for step in ssh.steps(given, bare(), modern))
    assert not any(step.refusal for step in ssh.steps(settings(), bare(), PARAMIKO))
    # OpenSSH 9.2, where the policy of the release has curve25519 in it
    older = {kind: frozenset(sample("9.2")[kind]) for kind in ALGORITHMS}
    assert not any(step.refusal for step in ssh.steps(given, bare(ssh_algorithms=older), PARAMIKO))


@pytest.fixture
def this_machine() -> Iterator[ControlSide]:
    """The paramiko that is installed here."""
    ours, theirs = socket.socketpair()
    with ours, theirs, contextlib.closing(paramiko.Transport(ours)) as transport:
        yield ControlSide(ssh.algorithms_of(transport), port=22)


@pytest.mark.parametrize("version", ["9.2", "10.0"])
def test_the_paramiko_of_this_project_connects_with_the_default_policy(
    version: str, this_machine: ControlSide
) -> None:
    known = {kind: frozenset(sample(version)[kind]) for kind in ALGORITHMS}
    offered = wanted.algorithms(settings(), Server(known))
    for keyword, names in this_machine.algorithms.items():
        assert names & set(offered[keyword]), keyword
    assert ssh.lockout_steps(settings(), bare(ssh_algorithms=known), this_machine) == []


# --- host keys


def test_a_short_rsa_host_key_gets_a_longer_one_beside_it_and_stays() -> None:
    seen = bare(contents={f"{wanted.RSA_HOST_KEY}.pub": SHORT})
    steps = ssh.steps(Settings(), seen)
    assert told(steps)[0] == (
        f"{wanted.LONG_RSA_HOST_KEY}: the RSA host key has 3072 bits, one of 4096 is made and offered "
        "(ed25519 stays the same)"
    )
    assert f"ssh-keygen -q -t rsa -b 4096 -N '' -C '' -f {wanted.LONG_RSA_HOST_KEY}" in commands(steps)
    assert f"rm -f {wanted.RSA_HOST_KEY}" not in commands(steps)
    sound(steps)
    made = replace(seen, paths=seen.paths | plain(wanted.LONG_RSA_HOST_KEY))
    assert ssh.steps(Settings(), hardened(Settings(), made)) == []
    assert ssh.server(Settings(), made).rsa_host_key == wanted.LONG_RSA_HOST_KEY


def test_a_missing_ed25519_host_key_is_made_and_the_server_takes_it_into_use() -> None:
    seen = hardened(Settings())
    paths = {path: state for path, state in seen.paths.items() if path != wanted.ED25519_HOST_KEY}
    steps = ssh.steps(Settings(), replace(seen, paths=paths))
    assert told(steps) == [f"{wanted.ED25519_HOST_KEY}: missing, is made", RELOAD]


# --- moduli


SMALL, LARGE = "20220101000000 2 6 100 2047 2 AB", "20220101000000 2 6 100 3071 5 CD"


def moduli(tmp_path: Path, content: str) -> tuple[subprocess.CompletedProcess[str], str]:
    given = settings(sshd_crypto_policy="strict")
    older = {kind: frozenset(sample("9.2")[kind]) for kind in ALGORITHMS}
    (step,) = ssh.moduli_steps(given, bare(ssh_algorithms=older, short_groups=1))
    file = tmp_path / "moduli"
    file.write_text(content)
    script = step.command.replace(ssh.MODULI, str(file))
    done = subprocess.run(["sh", "-euc", script], capture_output=True, text=True, check=False)
    return done, file.read_text()


def test_short_groups_are_removed_and_the_others_stay(tmp_path: Path) -> None:
    done, left = moduli(tmp_path, f"# comment\n{SMALL}\n{LARGE}\n")
    assert (done.returncode, left) == (0, f"# comment\n{LARGE}\n")


def test_the_file_is_never_emptied(tmp_path: Path) -> None:
    done, left = moduli(tmp_path, f"# comment\n{SMALL}\n")
    assert done.returncode != 0
    assert "no group of 3072 bits" in done.stderr
    assert left == f"# comment\n{SMALL}\n"


def test_groups_matter_only_where_a_group_exchange_is_offered() -> None:
    assert ssh.moduli_steps(settings(), bare(short_groups=9)) == []
    assert ssh.request(settings()).moduli == frozenset()
    assert ssh.request(settings(sshd_crypto_policy="strict")).moduli == {ssh.MODULI}


# --- the port


def test_a_port_changes_in_two_steps_and_the_old_one_goes_after_the_new_one_was_in_use() -> None:
    given = settings(sshd_port=2222)
    first = ssh.steps(given, bare())
    assert told(first)[0] == "sshd: moves to port 2222, listens at 22 as well until a login at 2222 has worked"
    assert ssh.ports(given, bare()) == (22, 2222)
    assert ssh.guard(given, bare()).port == 2222

    both = hardened(given)
    assert both.sshd["port"] == ("22", "2222")
    assert ssh.ports(given, both) == (2222,)
    second = ssh.steps(given, both)
    assert told(second) == [
        "sshd: port 22 is given up, port 2222 is in use",
        f"{wanted.DROP_IN_PATH}: content differs",
        RELOAD,
    ]
    # The connection that stands still is the old one.
    moved = hardened(given, both)
    assert moved.sshd["port"] == ("2222",)
    assert ssh.steps(given, moved) == []


def test_a_new_port_that_is_written_and_not_in_use_yet_does_not_end_the_old_one() -> None:
    given = settings(sshd_port=2222)
    assert ssh.ports(given, replace(hardened(given), pending=frozenset({ssh.UNIT}))) == (22, 2222)


def test_a_run_that_comes_in_by_the_wanted_port_or_not_through_ssh_writes_that_port_alone() -> None:
    given = settings(sshd_port=2222)
    assert ssh.ports(given, bare(ssh_port=2222)) == (2222,)
    assert ssh.ports(given, bare(ssh_client="")) == (2222,)
    assert ssh.guard(given, bare(ssh_port=2222)).port is None


def test_the_firewall_opens_the_new_port_first_to_whom_ssh_is_open() -> None:
    given = settings(sshd_port=2222, firewall_ssh_from=["192.168.1.0/24"])
    steps = ssh.steps(given, bare(ufw_enabled=True))
    opened = "ufw allow in from 192.168.1.0/24 to any port 2222 proto tcp comment 'mediahost ssh'"
    assert opened in steps[0].command
    assert "ufw" not in commands(ssh.steps(given, bare(ufw_enabled=False)))
    sound(steps)


def test_a_move_behind_a_router_asks_where_the_new_port_is_reached() -> None:
    mapped = ControlSide(port=40022)
    assert "set sshd_port_outside" in refusal(ssh.steps(settings(sshd_port=2222), bare(), mapped))
    given = settings(sshd_port=2222, sshd_port_outside=42222)
    assert not any(step.refusal for step in ssh.steps(given, bare(), mapped))
    assert ssh.guard(given, bare()).port == 42222
    # Positive control: nothing is mapped, nothing is asked.
    assert not any(step.refusal for step in ssh.steps(settings(sshd_port=2222), bare(), ControlSide(port=22)))


def test_a_port_of_another_file_is_told_and_our_own_are_not() -> None:
    given = settings(sshd_port=2222)
    seen = hardened(given, bare(ssh_port=2222))
    assert ssh.foreign_ports(given, seen) == []
    (notice,) = ssh.foreign_ports(given, replace(seen, sshd={**seen.sshd, "port": ("2222", "22")}))
    assert "port 22 as well" in notice
    # While a move is under way both are ours.
    assert ssh.foreign_ports(given, replace(hardened(given), pending=frozenset({ssh.UNIT}))) == []


# --- ssh.socket


def behind_socket(*paths: str) -> Snapshot:
    seen = bare(units={ssh.UNIT: RUNNING, ssh.SOCKET: UnitState("loaded", "active", "running", "enabled", False)})
    return replace(seen, paths=seen.paths | {path: plain(path)[path] for path in paths})


def test_a_socket_with_a_generator_needs_no_file_and_loses_the_leftovers_of_older_releases() -> None:
    seen = behind_socket(ssh.SOCKET_GENERATOR, ssh.MIGRATED_SOCKET_PATH)
    steps = ssh.socket_steps(Settings(), seen)
    assert told(steps) == [f"{ssh.MIGRATED_SOCKET_PATH}: ports come from sshd_config on this release, is removed"]
    assert f"rm {ssh.MIGRATED_SOCKET_PATH}" in commands(steps)
    assert ssh.socket_steps(Settings(), behind_socket(ssh.SOCKET_GENERATOR)) == []


def test_a_socket_without_a_generator_is_told_our_ports() -> None:
    seen = behind_socket(ssh.MIGRATED_SOCKET_PATH)
    steps = ssh.socket_steps(settings(sshd_port=2222), seen)
    assert told(steps) == [f"{wanted.SOCKET_PATH}: missing"]
    # Read after the migrated file, which is not ours, and so without effect on it.
    assert wanted.SOCKET_PATH > ssh.MIGRATED_SOCKET_PATH


def test_a_classic_service_has_no_file_for_its_socket() -> None:
    assert ssh.socket_steps(Settings(), bare()) == []
    left = bare(paths=bare().paths | plain(wanted.SOCKET_PATH))
    assert f"rm {wanted.SOCKET_PATH}" in commands(ssh.socket_steps(Settings(), left))


# --- the banner


def test_a_banner_is_written_before_the_drop_in_that_names_it() -> None:
    changes = told(ssh.steps(settings(), bare()))
    assert changes.index(f"{wanted.BANNER_PATH}: missing") < changes.index(f"{wanted.DROP_IN_PATH}: missing")
    assert ssh.steps(settings(), hardened(settings())) == []


def test_everything_that_is_put_at_risk_is_guarded() -> None:
    kept = ssh.guard(settings(), bare()).paths
    for path in (*wanted.owned_paths(settings()), ssh.MODULI, wanted.LONG_RSA_HOST_KEY):
        assert any(path.startswith(f"{directory}/") for directory in kept), path


def test_a_server_that_knows_everything_is_what_a_rendering_without_a_host_shows() -> None:
    shown_ = wanted.drop_in(Settings(sshd_port=2222), Server()).content.decode()
    assert "Port 2222\n" in shown_
    assert "KexAlgorithms mlkem768x25519-sha256," in shown_


# --- files of others that shut out this run


def shut_out(given: Settings, **differs: Any) -> str:
    """What is refused of a server as installed with these differences, empty when nothing is."""
    steps = ssh.steps(given, bare(**differs))
    return refusal(steps) if any(step.refusal for step in steps) else ""


@pytest.mark.parametrize(
    ("keyword", "values", "refused"),
    [
        ("denyusers", ("debian",), "DenyUsers debian would"),
        ("denyusers", ("x", "de*@10.0.0.1"), "DenyUsers de*@10.0.0.1 would"),
        ("denyusers", ("you", "[d]ebian"), ""),
        ("denygroups", ("x", "su?o"), "DenyGroups su?o would"),
        ("denygroups", ("others",), ""),
        ("allowgroups", ("others", "more"), "AllowGroups others more would"),
        ("allowgroups", ("others", "adm"), ""),
        ("authenticationmethods", ("publickey,password keyboard-interactive",), "AuthenticationMethods publickey,"),
        ("authenticationmethods", ("publickey,password publickey",), ""),
        ("authenticationmethods", ("any",), ""),
        ("forcecommand", ("/bin/false -x",), "ForceCommand /bin/false -x would"),
        ("forcecommand", ("none",), ""),
        # For everybody our drop-in says otherwise.
        ("pubkeyauthentication", ("no",), ""),
        ("permitrootlogin", ("no",), ""),
    ],
)
def test_a_file_that_shuts_out_the_account_of_the_run_is_refused_before_anything_is_changed(
    keyword: str, values: tuple[str, ...], refused: str
) -> None:
    found = shut_out(Settings(), sshd={**STOCK, keyword: values}, login_groups=frozenset({"debian", "adm", "sudo"}))
    assert refused in found
    assert bool(found) == bool(refused)
    # A run that does not come through SSH shuts nobody out.
    assert not shut_out(Settings(), sshd={**STOCK, keyword: values}, ssh_client="")


@pytest.mark.parametrize(
    ("keyword", "value", "user"),
    [
        ("PubkeyAuthentication", "no", "debian"),
        ("PermitRootLogin", "no", "root"),
        ("AllowUsers", "alice bob", "debian"),
        ("ForceCommand", "internal-sftp", "debian"),
    ],
)
def test_a_match_block_that_shuts_out_the_account_of_the_run_is_refused_though_our_drop_in_says_otherwise(
    keyword: str, value: str, user: str
) -> None:
    here = {**STOCK, keyword.lower(): (value,)}
    assert f"{keyword} {value} would shut out {user}" in shut_out(settings(), sshd_login=here, ssh_user=user)
    assert not shut_out(settings(), sshd_login=STOCK, ssh_user=user)


def test_a_list_of_users_for_everybody_is_refused_only_where_ours_does_not_add_the_account() -> None:
    foreign = {**STOCK, "allowusers": ("alice", "bob")}
    assert "AllowUsers alice bob would shut out debian" in shut_out(Settings(), sshd=foreign)
    assert not shut_out(Settings(), sshd=foreign, ssh_user="bob")
    assert "debian" in wanted.allowed_users(settings(), ssh.server(settings(), bare()))
    assert not shut_out(settings(), sshd=foreign)


def test_an_account_whose_keys_sshd_would_look_for_elsewhere_is_refused() -> None:
    elsewhere = {**STOCK, "authorizedkeysfile": ("/etc/ssh/keys/%u",)}
    found = shut_out(Settings(), sshd=elsewhere, login_keys=False)
    for part in ("/etc/ssh/keys/%u", "debian", "AuthorizedKeysFile"):
        assert part in found
    assert not shut_out(Settings(), sshd=elsewhere, login_keys=True)
    for other in ("authorizedkeyscommand", "trustedusercakeys"):
        assert not shut_out(Settings(), sshd={**elsewhere, other: ("/etc/x",)}, login_keys=False)


def test_our_own_question_for_a_code_that_is_not_in_effect_any_more_is_no_refusal() -> None:
    asked = {**STOCK, "authenticationmethods": ("publickey,keyboard-interactive:pam",)}
    ours = {wanted.DROP_IN_PATH: "Match Address *\n"}
    assert not shut_out(settings(), sshd_login=asked, sshd_match_files=ours)
    theirs = {"/etc/ssh/sshd_config.d/50-x.conf": "Match Address *\n"}
    assert "AuthenticationMethods" in shut_out(settings(), sshd_login=asked, sshd_match_files=theirs)
