"""Stage fail2ban: nothing missing is no step, each drift is told and mended, switched off is stopped once."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from facts.snapshot import STATE_DIRECTORY, PathState, Snapshot, UnitState
from mediahost.catalog import load_catalog
from mediahost.config import read
from mediahost.render import fail2ban as artefacts
from mediahost.resources import File
from mediahost.wanted import Wanted, build
from operations import fail2ban, manifest
from tests.operations.test_steps import INSTALLED, RUNNING, as_present, commands, sound, told

CATALOG = load_catalog()
STRANGE = "203.0.113.7"
TIMER = UnitState("loaded", "active", "waiting", "enabled", needs_daemon_reload=False)


def plan(**data: Any) -> Wanted:
    return build("nas", read("nas", data), CATALOG, lambda entry, kind: "secret")


def chains(wanted: Wanted, *without: str) -> dict[str, tuple[str, ...]]:
    return {
        f"mediahost-bans {jail.name}": (f"ip6 saddr @{jail.name}-inet6 counter drop",)
        for jail in wanted.jails
        if jail.name not in without
    }


def as_wanted(wanted: Wanted, client: str = STRANGE, recorded: tuple[str, ...] = (STRANGE,)) -> Snapshot:
    """A host on which a run has been, for a run that comes from `client`."""
    record = artefacts.control_record(recorded)
    present = (record, *artefacts.files(wanted.settings, wanted.jails, recorded), *artefacts.reload_units())
    return Snapshot(
        paths=as_present(*present),
        contents={record.path: record.content.decode()},
        packages=dict.fromkeys(artefacts.PACKAGES, INSTALLED),
        units={artefacts.UNIT: RUNNING, artefacts.RELOAD_TIMER: TIMER},
        nft_chains=chains(wanted),
        ssh_client=client,
    )


def test_a_host_as_wanted_is_no_step() -> None:
    wanted = plan()
    assert fail2ban.steps(wanted, as_wanted(wanted)) == []
    assert {jail.name for jail in wanted.jails} == {"sshd", "caddy", "prowlarr", "radarr", "sonarr", "recidive"}


def test_the_snapshot_is_asked_for_everything_that_is_compared() -> None:
    wanted = plan()
    request = fail2ban.request(wanted.settings)
    seen = as_wanted(wanted)
    assert set(seen.paths) <= request.paths | request.contents
    assert set(seen.units) == set(request.units)
    assert set(seen.packages) == set(request.packages)
    assert request.nft_tables == {artefacts.TABLE}


def test_on_a_bare_host_who_is_never_banned_is_written_before_the_package_starts_to_ban() -> None:
    steps = fail2ban.steps(plan(), Snapshot(ssh_client=STRANGE))
    changes = told(steps)
    assert changes[0] == f"{artefacts.CONTROL_PATH}: missing"
    assert changes.index(f"{artefacts.JAIL_PATH}: missing") < changes.index("package fail2ban: not installed")
    jail_file = artefacts.files(plan().settings, plan().jails, [STRANGE])[0]
    assert STRANGE in jail_file.content.decode()
    sound(steps)


@pytest.mark.parametrize("client", ["192.168.7.7", "fd00::7", ""])
def test_a_run_from_the_home_network_changes_nothing(client: str) -> None:
    wanted = plan()
    assert fail2ban.steps(wanted, as_wanted(wanted, client=client)) == []


def test_a_run_from_a_new_address_adds_it_once_and_keeps_those_before() -> None:
    wanted = plan()
    steps = fail2ban.steps(wanted, as_wanted(wanted, client="198.51.100.9"))
    assert told(steps) == [
        f"{artefacts.CONTROL_PATH}: content differs",
        f"{artefacts.JAIL_PATH}: content differs",
    ]
    assert f"touch {STATE_DIRECTORY}/pending/{artefacts.UNIT}" in steps[-1].command
    recorded = (STRANGE, "198.51.100.9")
    for client in recorded:
        assert fail2ban.steps(wanted, as_wanted(wanted, client=client, recorded=recorded)) == []


def test_a_restart_that_is_owed_is_made_after_the_configuration_was_tried() -> None:
    wanted = plan()
    (step,) = fail2ban.steps(wanted, replace(as_wanted(wanted), pending=frozenset({artefacts.UNIT})))
    assert step.change == "fail2ban.service: runs with an older configuration, is restarted (bans come back)"
    lines = step.command.splitlines()
    assert lines[0] == "fail2ban-client -t >/dev/null"
    assert lines[-1] == f"rm -f {STATE_DIRECTORY}/pending/{artefacts.UNIT}"
    sound([step])


@pytest.mark.parametrize("gone", [("sonarr",), ("sshd", "caddy", "prowlarr", "radarr", "sonarr", "recidive")])
def test_a_flushed_ruleset_is_seen_and_restored(gone: tuple[str, ...]) -> None:
    wanted = plan()
    steps = fail2ban.steps(wanted, replace(as_wanted(wanted), nft_chains=chains(wanted, *gone)))
    (change,) = told(steps)
    assert change.startswith("bans in the kernel: those of ")
    assert all(name in change for name in gone)
    sound(steps)


def test_a_chain_that_was_emptied_is_no_ban() -> None:
    wanted = plan()
    emptied = {
        **chains(wanted),
        "mediahost-bans sshd": ("type filter hook prerouting priority -150; policy accept;",),
    }
    (change,) = told(fail2ban.steps(wanted, replace(as_wanted(wanted), nft_chains=emptied)))
    assert change == "bans in the kernel: those of sshd are missing, are restored"


def test_a_chain_of_a_jail_of_the_user_s_own_is_left_alone() -> None:
    wanted = plan()
    more = {**chains(wanted), "mediahost-bans mine": ("ip6 saddr @mine-inet6 counter drop",)}
    assert fail2ban.steps(wanted, replace(as_wanted(wanted), nft_chains=more)) == []


@pytest.mark.parametrize("unit", [artefacts.UNIT, artefacts.RELOAD_TIMER])
@pytest.mark.parametrize("state", [{"active": "failed"}, {"enabled": "disabled"}])
def test_a_unit_that_does_not_run_or_is_not_enabled_is_told(unit: str, state: dict[str, Any]) -> None:
    wanted = plan()
    seen = as_wanted(wanted)
    drifted = replace(seen, units={**seen.units, unit: replace(seen.units[unit], **state)})
    (change,) = told(fail2ban.steps(wanted, drifted))
    assert change.startswith(f"{unit}: ")


def test_a_timer_that_systemd_has_not_read_yet_is_made_known_first() -> None:
    wanted = plan()
    seen = as_wanted(wanted)
    unread = {**seen.units, artefacts.RELOAD_TIMER: UnitState("not-found", "inactive", "dead", "", False)}
    steps = fail2ban.steps(wanted, replace(seen, units=unread))
    assert steps[0].command == "systemctl daemon-reload"


# --- switched off


def test_switched_off_it_is_stopped_once_and_only_where_it_was_ours() -> None:
    on, off = plan(), plan(fail2ban=False)
    seen = as_wanted(on)
    (step,) = fail2ban.steps(off, seen)
    assert "the package stays" in step.change
    assert step.command.splitlines()[-1] == f"rm -f {artefacts.CONTROL_PATH}"
    assert "apt" not in step.command
    sound([step])
    assert fail2ban.steps(off, replace(seen, paths={})) == []


def test_switched_off_its_files_are_not_owned_any_more_and_no_request_is_logged() -> None:
    on, off = plan(), plan(fail2ban=False)
    ours = {file.path for file in (*artefacts.files(on.settings, on.jails), *artefacts.reload_units())}
    assert ours <= set(on.owned)
    assert not ours & set(off.owned)
    assert artefacts.CONTROL_PATH not in on.owned, "the stage itself removes it, last"
    assert artefacts.CONTROL_PATH in fail2ban.request(off.settings).paths
    assert artefacts.CONTROL_PATH.startswith(f"{STATE_DIRECTORY}/")
    pruned = manifest.prune_steps(off.owned, Snapshot(manifest=dict(on.owned)))
    assert f"{artefacts.JAIL_PATH}: not wanted any more" in told(pruned)
    assert f"pending/{artefacts.UNIT}" not in commands(pruned), "nobody would clear that mark"
    for wanted, expected in ((on, True), (off, False)):
        assert wanted.proxy_file is not None
        assert (b"/data/logs/access.log" in wanted.proxy_file.content) == expected


def test_a_file_in_fail2ban_s_directories_that_is_not_ours_is_never_taken_over() -> None:
    wanted = plan()
    theirs = File("/etc/fail2ban/jail.local", b"")
    assert theirs.path not in wanted.owned
    present = dict.fromkeys(wanted.owned, PathState("file", "644", "0", "0", "root", "root", "x"))
    ours = {path: "" for path in wanted.owned if path.startswith("/etc/fail2ban")}
    assert manifest.enter_steps(ours, Snapshot(paths=present))[-1].refusal is None


# --- the restart, with programs that only pretend


@pytest.fixture
def pretended(tmp_path: Path) -> Path:
    """A directory of programs: nft lists what is in `table`, all write down what they are told."""
    directory = tmp_path / "bin"
    directory.mkdir()
    for name in ("fail2ban-client", "systemctl", "install", "nft", "sleep"):
        body = f'cat "{tmp_path}/table" 2>/dev/null' if name == "nft" else ""
        if name == "systemctl":
            body = f'[ "$1" != start ] || cp "{tmp_path}/next" "{tmp_path}/table"'
        path = directory / name
        path.write_text(f'#!/bin/sh\necho "{name} $*" >>"{tmp_path}/told"\n{body}\n')
        path.chmod(0o755)
    for name in ("cat", "cp", "sh", "rm"):
        (directory / name).symlink_to(str(shutil.which(name)))
    return tmp_path


def restarted(pretended: Path, table: str) -> subprocess.CompletedProcess[str]:
    (pretended / "next").write_text(table)
    command = fail2ban.restart(plan().jails)
    search = {**os.environ, "PATH": str(pretended / "bin")}
    return subprocess.run(["sh", "-euc", command], env=search, capture_output=True, text=True, check=False)


def rules(*names: str) -> str:
    return "".join(f"\t\tip6 saddr @{name}-inet6 counter drop\n" for name in names)


def test_a_restart_ends_when_every_jail_has_its_chain(pretended: Path) -> None:
    done = restarted(pretended, rules(*(jail.name for jail in plan().jails)))
    assert (done.returncode, done.stderr) == (0, "")
    said = [line for line in (pretended / "told").read_text().splitlines() if "install" not in line]
    assert said == [
        "fail2ban-client -t",
        "systemctl stop fail2ban.service",
        "nft delete table inet mediahost-bans",
        "systemctl start fail2ban.service",
        "nft -st list table inet mediahost-bans",
    ]


@pytest.mark.parametrize("names", [(), ("sshd", "recidive", "caddy", "prowlarr", "radarr", "sonarr-4k")])
def test_a_restart_without_a_jail_fails_with_the_way_to_look(pretended: Path, names: tuple[str, ...]) -> None:
    done = restarted(pretended, rules(*names))
    assert done.returncode == 1
    assert "does not start all its jails" in done.stderr
    assert artefacts.SERVER_LOG in done.stderr
