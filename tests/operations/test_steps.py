"""Each stage's comparison: nothing missing is no step, each drift is told in its words, dangers are refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from facts.snapshot import ContainerState, Os, PackageState, PathState, Snapshot, UnitState
from mediahost.config import Settings, read
from mediahost.render import base as base_artefacts
from mediahost.render import docker as docker_artefacts
from mediahost.render import ssh as ssh_artefacts
from mediahost.render import users as users_artefacts
from mediahost.resources import Container, Directory, File
from operations import apt, base, compose, docker, lock, manifest, ssh, storage, units, users
from operations.convergence import Step
from tests.unit.test_config import KEY

INSTALLED = PackageState("1.0", installed=True, held=False)
RUNNING = UnitState("loaded", "active", "running", "enabled", needs_daemon_reload=False)


def told(steps: Sequence[Step]) -> list[str]:
    return [step.change for step in steps]


def commands(steps: Sequence[Step]) -> str:
    return "\n".join(step.command for step in steps)


def refusal(steps: Sequence[Step]) -> str:
    (found,) = [step.refusal for step in steps if step.refusal]
    return found


def sound(steps: Sequence[Step]) -> None:
    """Every command is valid shell."""
    for step in steps:
        done = subprocess.run(["sh", "-n"], input=step.command, text=True, capture_output=True, check=False)
        assert done.stderr == "", step.command


def as_present(*files: File) -> dict[str, PathState]:
    return {
        file.path: PathState("file", file.mode.lstrip("0"), "0", "0", file.owner, file.group, file.sha256)
        for file in files
    }


# --- apt


def test_installed_packages_are_no_step() -> None:
    assert apt.install_steps(["curl", "acl"], Snapshot(packages={"curl": INSTALLED, "acl": INSTALLED})) == []


def test_missing_packages_and_those_in_the_way_share_one_run() -> None:
    seen = Snapshot(packages={"runc": INSTALLED, "half": PackageState("1", installed=False, held=False)})
    steps = apt.install_steps(["curl", "half"], seen, without=["runc", "podman-docker"])
    assert told(steps) == [
        "package curl: not installed",
        "package half: not installed",
        "package runc: in the way of curl, half, is removed",
    ]
    assert [bool(step.command) for step in steps] == [False, False, True]
    assert steps[-1].command.endswith("curl half runc- >/dev/null")
    assert steps[-1].timeout == 3600
    sound(steps)


@pytest.mark.parametrize(("held", "wanted", "verb"), [(False, True, "hold"), (True, False, "unhold")])
def test_a_hold_is_set_and_taken_back(held: bool, wanted: bool, verb: str) -> None:
    seen = Snapshot(packages={"docker-ce": PackageState("1", installed=True, held=held)})
    (step,) = apt.hold_steps(["docker-ce", "not-there"], wanted, seen)
    assert step.change == f"package docker-ce: {'held' if held else 'not held'}"
    assert step.command == f"apt-mark {verb} docker-ce >/dev/null"
    assert apt.hold_steps(["docker-ce"], held, seen) == []


# --- base


def test_the_wanted_time_zone_is_no_step_under_either_name_of_utc() -> None:
    assert base.timezone_steps("Europe/Berlin", Snapshot(timezone="Europe/Berlin")) == []
    assert base.timezone_steps("Etc/UTC", Snapshot(timezone="UTC")) == []
    assert base.timezone_steps("UTC", Snapshot(timezone="Etc/UTC")) == []


@pytest.mark.parametrize(("present", "shown"), [("", "unset"), ("Etc/UTC", "Etc/UTC")])
def test_another_time_zone_is_told_and_set(present: str, shown: str) -> None:
    (step,) = base.timezone_steps("Europe/Berlin", Snapshot(timezone=present))
    assert step.change == f"time zone: {shown}, wanted Europe/Berlin"
    sound([step])


def test_only_kernel_settings_with_another_value_are_told() -> None:
    seen = Snapshot(sysctls={"vm.swappiness": "60", "net.ipv4.ip_local_port_range": "1024\t65535"})
    wanted = {"vm.swappiness": "10", "net.ipv4.ip_local_port_range": "1024 65535", "not.there": "1"}
    (step,) = base.sysctl_steps(wanted, seen)
    assert step.change == "sysctl vm.swappiness: 60, wanted 10"
    assert step.command == "printf '%s\\n' 10 >/proc/sys/vm/swappiness"


def test_the_time_client_is_the_one_the_distribution_chose() -> None:
    assert base.time_package(Snapshot()) == "systemd-timesyncd"
    assert base.time_package(Snapshot(packages={"chrony": INSTALLED})) == "chrony"


# --- units


def test_a_unit_that_is_enabled_running_and_current_is_no_step() -> None:
    assert units.steps("x.service", Snapshot(units={"x.service": RUNNING})) == []


@pytest.mark.parametrize(
    ("state", "change"),
    [
        ({"load": "masked"}, "x.service: masked"),
        ({"load": "not-found"}, "x.service: unit not installed"),
        ({"enabled": "disabled"}, "x.service: not enabled"),
        ({"active": "failed"}, "x.service: failed"),
        ({"active": "inactive"}, "x.service: inactive"),
        ({"needs_daemon_reload": True}, "x.service: unit files changed since systemd read them"),
    ],
)
def test_each_drift_of_a_unit_is_told(state: dict[str, Any], change: str) -> None:
    steps = units.steps("x.service", Snapshot(units={"x.service": replace(RUNNING, **state)}))
    assert told(steps) == [change]
    assert all(step.command for step in steps)
    sound(steps)


@pytest.mark.parametrize("enabled", ["static", "alias", "indirect", "generated"])
def test_a_unit_that_cannot_be_enabled_is_not_enabled_again(enabled: str) -> None:
    assert units.steps("x.service", Snapshot(units={"x.service": replace(RUNNING, enabled=enabled)})) == []


def test_a_pending_unit_is_restarted_and_its_mark_goes_after_the_restart() -> None:
    seen = Snapshot(units={"x.service": RUNNING}, pending=frozenset({"x.service"}))
    (step,) = units.steps("x.service", seen, interrupts="sessions go on")
    assert step.change == "x.service: runs with an older configuration, is restarted (sessions go on)"
    assert step.command.splitlines() == [
        "systemctl restart x.service",
        "rm -f /var/lib/mediahost/pending/x.service",
    ]


def test_a_change_just_before_counts_as_pending() -> None:
    seen = Snapshot(units={"x.service": RUNNING})
    assert len(units.steps("x.service", seen, changed=True)) == 1


# --- storage

MEDIA_DIRECTORY = Directory("/data/media", "13000", "13000", "2775")


def directory(mode: str = "2775", kind: str = "directory", uid: str = "13000") -> PathState:
    return PathState(kind, mode, uid, "13000", "media" if uid == "13000" else "root", "media")


@pytest.mark.parametrize("present", [directory(), directory(kind="link", mode="777", uid="0")])
def test_a_right_directory_or_a_link_to_one_is_no_step(present: PathState) -> None:
    assert storage.steps([MEDIA_DIRECTORY], Snapshot(paths={"/data/media": present})) == []


@pytest.mark.parametrize(
    ("present", "change"),
    [
        (None, "/data/media: missing"),
        (directory(mode="775"), "/data/media: mode is 0775, wanted 2775"),
        (directory(uid="0"), "/data/media: owner is root:media, wanted 13000:13000"),
    ],
)
def test_each_drift_of_a_directory_is_told_and_nothing_in_it_is_touched(
    present: PathState | None, change: str
) -> None:
    steps = storage.steps([MEDIA_DIRECTORY], Snapshot(paths={"/data/media": present} if present else {}))
    assert told(steps) == [change]
    assert " -R" not in commands(steps)
    sound(steps)


def test_a_file_in_a_directorys_place_is_refused() -> None:
    steps = storage.steps([MEDIA_DIRECTORY], Snapshot(paths={"/data/media": directory(kind="file")}))
    assert refusal(steps) == "/data/media is a file, not a directory: move it away, then run again"


def test_the_command_makes_the_tree_for_real_with_modes_and_without_touching_what_is_there(tmp_path: Path) -> None:
    uid, gid = str(os.getuid()), str(os.getgid())
    root = tmp_path / "not" / "there" / "data"
    wanted = [Directory(f"{root}{tail}", uid, gid, "2775") for tail in ("", "/media", "/media/tv")]
    steps = storage.steps(wanted, Snapshot())
    assert len(steps) == 3
    for _ in range(2):
        subprocess.run(["sh", "-euc", commands(steps)], check=True, umask=0o077)
        (root / "media" / "film").touch(mode=0o600)
    assert [f"{Path(each.path).stat().st_mode & 0o7777:04o}" for each in wanted] == ["2775"] * 3
    assert f"{root.parent.stat().st_mode & 0o7777:04o}" == "0755"
    assert f"{(root / 'media' / 'film').stat().st_mode & 0o777:04o}" == "0600"


# --- manifest


def test_a_manifest_that_knows_every_owned_file_is_no_step() -> None:
    owned = {"/etc/a": "", "/etc/b": "x.service"}
    seen = Snapshot(manifest=dict(owned))
    assert manifest.enter_steps(owned, seen) == []
    assert manifest.prune_steps(owned, seen) == []


def test_new_files_are_entered_beside_those_that_are_known() -> None:
    (step,) = manifest.enter_steps({"/etc/b": ""}, Snapshot(manifest={"/etc/a": ""}))
    assert step.change == "manifest: 1 new owned file(s)"


def test_only_files_in_the_manifest_are_removed_and_their_unit_is_marked_first() -> None:
    steps = manifest.prune_steps({"/etc/a": ""}, Snapshot(manifest={"/etc/a": "", "/etc/b": "x.service"}))
    assert told(steps) == ["/etc/b: not wanted any more"]
    text = steps[-1].command
    assert text.index("pending/x.service") < text.index("rm -f /etc/b") < text.index("receive /var/lib/mediahost/")
    assert "/etc/a" not in text
    sound(steps)


# --- docker


def docker_snapshot(settings: Settings, **changes: Any) -> Snapshot:
    source = docker_artefacts.source_file(settings, "debian", "trixie", "amd64")
    daemon = docker_artefacts.daemon_file(settings, None)
    keyring = PathState("file", "644", "0", "0", "root", "root", "abc")
    found = Snapshot(
        paths={**as_present(source, daemon), docker_artefacts.KEYRING_PATH: keyring},
        contents={
            docker.KEY_RECORD: f"{settings.docker_apt_fingerprint} abc\n",
            docker_artefacts.DAEMON_PATH: daemon.content.decode(),
        },
        packages={
            name: PackageState("5:29.7.0-1", installed=True, held=True) for name in docker_artefacts.VENDOR_PACKAGES
        },
        units={docker.UNIT: RUNNING},
    )
    return replace(found, **changes)


def test_an_engine_as_wanted_is_no_step() -> None:
    seen = docker_snapshot(Settings())
    assert docker.engine_steps(Settings(), seen) == []
    assert docker.daemon_steps(Settings(), seen) == []


@pytest.mark.parametrize(
    "content", ["", "9DC858229FC7DD38854AE2D88D81803C0EBFCD88 other\n", f"{'A' * 40} abc\n", "garbage"]
)
def test_a_key_that_was_not_verified_as_it_is_now_is_fetched_and_verified_again(content: str) -> None:
    seen = docker_snapshot(Settings())
    steps = docker.key_steps(Settings(), replace(seen, contents={docker.KEY_RECORD: content}))
    assert told(steps) == ["/etc/apt/keyrings/docker.asc: is not the one that was verified"]
    assert "9DC858229FC7DD38854AE2D88D81803C0EBFCD88" in commands(steps)
    sound(steps)


def test_what_other_guides_left_behind_is_removed() -> None:
    seen = docker_snapshot(Settings())
    legacy = {path: directory(kind="file") for path in docker.LEGACY_PATHS}
    steps = docker.source_steps(Settings(), replace(seen, paths={**seen.paths, **legacy}))
    assert told(steps) == [f"{path}: not wanted" for path in docker.LEGACY_PATHS]


def test_the_distributions_engine_in_the_vendors_way_is_removed() -> None:
    seen = docker_snapshot(Settings())
    steps = docker.engine_steps(Settings(), replace(seen, packages={"runc": INSTALLED}))
    assert "package docker-ce: not installed" in told(steps)
    assert told(steps)[-1].startswith("package runc: in the way of ")


@pytest.mark.parametrize(
    ("pinned", "change"),
    [
        ("5:29.7.*", None),
        ("5:29.7.0-1", None),
        ("5:28.*", "package docker-ce: version 5:29.7.0-1, wanted 5:28.* (the engine restarts)"),
        ("5:29.7.0", "package docker-ce: version 5:29.7.0-1, wanted 5:29.7.0 (the engine restarts)"),
    ],
)
def test_another_version_than_the_pinned_one_is_told(pinned: str, change: str | None) -> None:
    wanted = read("nas", {"docker_version": pinned})
    steps = docker.version_steps(wanted, docker_snapshot(wanted))
    assert told(steps) == ([change] if change else [])
    assert all(step.command.endswith("\napt-mark hold docker-ce docker-ce-cli >/dev/null") for step in steps)
    sound(steps)


def test_packages_that_are_not_held_are_held_and_only_when_wanted() -> None:
    seen = docker_snapshot(Settings())
    loose = replace(seen, packages={name: replace(each, held=False) for name, each in seen.packages.items()})
    assert told(docker.engine_steps(Settings(), loose)) == [
        f"package {name}: not held" for name in sorted(docker_artefacts.VENDOR_PACKAGES)
    ]
    assert docker.engine_steps(read("nas", {"docker_hold": False}), loose) == []


def test_a_release_without_compose_is_refused_with_the_way_out() -> None:
    seen = Snapshot(os=Os("debian", "bookworm", "12", "amd64"))
    steps = docker.engine_steps(read("nas", {"docker_source": "distro"}), seen)
    assert 'set docker_source = "docker"' in refusal(steps)


@pytest.mark.parametrize("content", ["{", "[]", "no json"])
def test_a_daemon_file_that_cannot_be_read_is_refused_not_replaced(content: str) -> None:
    seen = docker_snapshot(Settings(), contents={docker_artefacts.DAEMON_PATH: content})
    steps = docker.daemon_steps(Settings(), seen)
    assert told(steps) == ["/etc/docker/daemon.json: cannot be read"]
    assert "mend it or move it away" in refusal(steps)
    # Before packages are installed: their engine would not start with it.
    assert docker.engine_steps(Settings(), replace(seen, packages={})) == steps
    assert docker.steps(Settings(), seen) == steps


def test_a_changed_daemon_setting_is_told_and_marks_the_engine_before_the_write() -> None:
    wanted = read("nas", {"docker_log_max_file": 5})
    (step,) = docker.daemon_steps(wanted, docker_snapshot(Settings()))
    assert step.change == "/etc/docker/daemon.json: content differs"
    assert "pending/docker.service" in step.command


def test_a_key_of_the_users_own_in_the_daemon_file_is_no_drift() -> None:
    daemon = docker_artefacts.daemon_file(Settings(), '{"debug": true}')
    seen = docker_snapshot(Settings(), paths=as_present(daemon), contents={daemon.path: daemon.content.decode()})
    assert json.loads(daemon.content)["debug"] is True
    assert docker.daemon_steps(Settings(), seen) == []


# --- compose

SONARR = Container("sonarr", "sonarr:4", "digest", ("mediahost_default",))


def container(**changes: Any) -> ContainerState:
    right = ContainerState(
        "abc", "sonarr", "digest", "sonarr:4", "running", "healthy", frozenset({"mediahost_default"}), "mediahost"
    )
    return replace(right, **changes)


@pytest.mark.parametrize("health", ["healthy", "none", "starting"])
def test_a_container_as_wanted_is_no_step(health: str) -> None:
    seen = Snapshot(containers=(container(health=health),))
    assert compose.container_steps([SONARR], "/opt/x", 300, seen) == []


@pytest.mark.parametrize(
    ("present", "what", "recreated"),
    [
        ((), "not there", False),
        ((container(), container(id="def")), "there are 2 containers", True),
        ((container(project="other"),), "is a container of somebody else's making", True),
        ((container(image="sonarr:3"),), "runs image sonarr:3, wanted sonarr:4", True),
        ((container(digest="older"),), "runs with an older definition", True),
        ((container(networks=frozenset()),), "is in networks none, wanted mediahost_default", True),
        ((container(state="exited"),), "exited", False),
        ((container(state="paused"),), "paused", False),
        ((container(state="restarting"),), "restarting", True),
        ((container(health="unhealthy"),), "unhealthy", True),
    ],
)
def test_each_drift_of_a_container_is_told_and_mended(
    present: tuple[ContainerState, ...], what: str, recreated: bool
) -> None:
    steps = compose.container_steps([SONARR], "/opt/x", 300, Snapshot(containers=present))
    assert told(steps) == [f"service sonarr: {what}"]
    text = commands(steps)
    assert ("--force-recreate" in text) == recreated
    assert text.index(" pull ") < text.index(" up -d "), "pulled before anything is stopped"
    sound(steps)


OWNER = Container("gluetun", "gluetun:3", "digest", ("mediahost_vpn",))
SHARER = replace(SONARR, networks=(), network_of="gluetun")


def owner(**changes: Any) -> ContainerState:
    right = {"id": "own", "service": "gluetun", "image": "gluetun:3", "networks": frozenset({"mediahost_vpn"})}
    return container(**{**right, **changes})


def sharer(**changes: Any) -> ContainerState:
    return container(**{"networks": frozenset(), "network_mode": "container:own", **changes})


def shared(*present: ContainerState) -> list[Step]:
    return compose.container_steps([OWNER, SHARER], "/opt/x", 300, Snapshot(containers=present))


def test_a_container_that_shares_anothers_network_is_not_judged_by_its_own() -> None:
    assert shared(owner(), sharer()) == []


def test_a_container_in_the_network_of_one_that_is_gone_is_made_anew() -> None:
    steps = shared(owner(id="new"), sharer())
    assert told(steps) == ["service sonarr: does not share the network of gluetun"]
    assert "--force-recreate sonarr" in commands(steps)
    assert "gluetun" not in commands(steps).replace("'", "")
    sound(steps)


@pytest.mark.parametrize(
    "present",
    [
        (owner(digest="older"), sharer()),
        (owner(state="exited"), sharer()),
        (owner(health="unhealthy"), sharer(state="exited")),
        (owner(digest="older"), sharer(project="other")),
    ],
)
def test_who_shares_a_network_is_gone_before_its_owner_changes_and_comes_after_it(
    present: tuple[ContainerState, ...],
) -> None:
    steps = shared(*present)
    text = commands(steps)
    lines = [line for line in text.splitlines() if line]
    (removed,) = [number for number, line in enumerate(lines) if "docker rm abc" in line]
    ups = [number for number, line in enumerate(lines) if " up -d " in line]
    assert " pull " in lines[0], "pulled before anything is stopped"
    assert 0 < removed < ups[0]
    assert "gluetun" in lines[ups[0]]
    assert "sonarr" in lines[ups[-1]]
    assert len(ups) == 2
    sound(steps)


def test_a_port_that_moves_to_the_owner_is_free_before_the_owner_starts() -> None:
    # From the host's tunnel to Gluetun: the client itself still holds what Gluetun is to publish.
    steps = shared(sharer(network_mode="mediahost_vpn", digest="older"))
    assert told(steps) == ["service gluetun: not there", "service sonarr: runs with an older definition"]
    text = commands(steps)
    assert text.index("docker rm abc") < text.index(" gluetun >/dev/null ||")


def test_a_service_that_is_switched_off_loses_its_container_and_nothing_else() -> None:
    steps = compose.container_steps([], "/opt/x", 300, Snapshot(containers=(container(),)))
    assert told(steps) == ["service sonarr: not wanted any more, its data stay"]
    assert commands(steps) == "docker stop abc >/dev/null && docker rm abc >/dev/null"


def test_only_services_that_differ_are_touched() -> None:
    radarr = Container("radarr", "radarr:5", "digest")
    steps = compose.container_steps([SONARR, radarr], "/opt/x", 300, Snapshot(containers=(container(),)))
    assert told(steps) == ["service radarr: not there"]
    assert "sonarr" not in commands(steps)


# --- lock


def take(path: Path, session: str | None = None) -> subprocess.CompletedProcess[str]:
    script = f"set -eu\nLOCK={path}\nLEAST_FREE=0\nHOLDER='me@laptop process 7'\n{lock._TAKE}"
    return subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=False)


def started(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]


def test_a_free_lock_is_taken_and_names_its_holder(tmp_path: Path) -> None:
    path = tmp_path / "run" / "lock"
    assert take(path).returncode == 0
    pid, when, who = path.read_text().strip().split(" ", 2)
    assert started(int(pid)) == when
    assert who == "me@laptop process 7"
    assert [each.name for each in path.parent.iterdir()] == ["lock"]


def test_the_same_session_may_take_its_lock_again(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert take(path).returncode == 0
    before = path.read_text()
    assert take(path).returncode == 0
    assert path.read_text() == before


def test_a_lock_of_a_living_session_is_respected_and_its_holder_named(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        text = f"{other.pid} {started(other.pid)} you@desktop process 8\n"
        path.write_text(text)
        done = take(path)
        assert done.returncode == 1
        assert "another run is at work on this host: you@desktop process 8. " in done.stderr
        assert f"(pid {other.pid})" in done.stderr
        assert path.read_text() == text
        assert other.stdin is not None
        other.stdin.write(b"\n")
    # The positive control: the very same lock is void as soon as its session has ended.
    assert take(path).returncode == 0
    assert path.read_text() != text
    assert [each.name for each in tmp_path.iterdir()] == ["lock"]


@pytest.mark.parametrize("content", ["", "garbage\n", "1 0 old process\n", "999999999 5 gone\n"])
def test_a_lock_whose_session_is_gone_is_taken_over(tmp_path: Path, content: str) -> None:
    path = tmp_path / "lock"
    path.write_text(content)
    done = take(path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "me@laptop process 7" in path.read_text()


def test_a_full_disk_is_refused_before_the_lock_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    script = f"set -eu\nLOCK={path}\nLEAST_FREE=99999999999\nHOLDER=me\n{lock._TAKE}"
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "MiB are free on /" in done.stderr
    assert not path.exists()


# --- all stages


def test_what_a_stage_watches_covers_every_file_it_writes() -> None:
    wanted = read("nas", {"admins": {"me": [KEY]}, "ntp_servers": ["ntp.example.org"]})
    watched = base.request(wanted) | users.request(wanted) | ssh.request(wanted) | docker.request(wanted)
    files = [*base_artefacts.apt_files(wanted), base_artefacts.sysctl_file(wanted), ssh_artefacts.drop_in(wanted)]
    paths = {file.path for file in files} | {base_artefacts.TIMESYNCD_PATH, users_artefacts.SUDOERS_PATH}
    paths |= {docker_artefacts.DAEMON_PATH, docker_artefacts.PIN_PATH}
    assert paths <= watched.paths
    assert "me" in watched.key_users
