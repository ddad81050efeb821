"""Who shares Gluetun's network follows it: the script against a Docker that writes down what it is told."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from facts.snapshot import Snapshot, UnitState
from mediahost import config
from mediahost.render import follow as artefacts
from mediahost.wanted import Wanted, build
from operations import follow
from tests.operations.test_steps import RUNNING, as_present, commands, sound, told
from tests.unit.test_vpn_stack import CATALOG, given_data, vault, wireguard_file

OLD, NEW = "2026-11-21T16:00:00.5Z", "2026-11-21T16:00:00.512345678Z"


def plan(mode: str = "container", **data: Any) -> Wanted:
    return build("nas", config.read("nas", given_data(mode, **data)), CATALOG, vault(wireguard_file()))


def written(wanted: Wanted) -> Snapshot:
    files = artefacts.files(wanted.vpn, wanted.settings)
    return Snapshot(paths=as_present(*files), units={artefacts.UNIT: RUNNING})


# A Docker of one line a container: service id network-mode running health started error
FAKE = r"""#!/bin/sh
echo "$*" >>"$FAKE/calls"
case "$1" in
  ps) service=${5##*=}; awk -v s="$service" '$1 == s { print $2 }' "$FAKE/state" ;;
  inspect)
    set -- $(awk -v i="$4" '$2 == i' "$FAKE/state") "$3"
    shift 2
    case "$6" in
      *Health*) echo "$2 $3" ;; *NetworkMode*) echo "$1" ;; *Running*) echo "$2" ;;
      *StartedAt*) echo "$4" ;; *Error*) [ "$5" = - ] || echo "$5" ;;
    esac ;;
  events) cat "$FAKE/events" ;;
esac
"""


def after(folder: Path, owner: str, sharer: str, events: int = 0) -> list[str]:
    """What the script does to containers when they are as told: each `mode running health started error`."""
    (folder / "docker").write_text(FAKE)
    (folder / "docker").chmod(0o755)
    (folder / "state").write_text(f"gluetun own {owner}\nqbittorrent abc {sharer}\n")
    (folder / "events").write_text("x\n" * events)
    (folder / "calls").unlink(missing_ok=True)
    script = folder / "follow"
    found = plan()
    (content,) = [
        file.content for file in artefacts.files(found.vpn, found.settings) if file.path == artefacts.SCRIPT_PATH
    ]
    script.write_bytes(content)
    environment = {"PATH": f"{folder}:{os.environ['PATH']}", "FAKE": str(folder)}
    done = subprocess.run(["sh", script], env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (1, ""), "it ends with the engine's events, and systemd starts it again"
    calls = (folder / "calls").read_text().splitlines()
    return [call for call in calls if call.split()[0] in ("start", "restart", "compose")]


OWNER = f"mediahost_vpn true healthy {NEW} -"


@pytest.mark.parametrize(
    ("owner", "sharer", "does"),
    [
        (OWNER, "container:own true healthy 2026-11-21T16:00:09Z -", ""),
        (OWNER, f"container:own true healthy {NEW} -", ""),
        (OWNER, f"container:own true healthy {OLD} -", "restart abc"),
        (OWNER, "container:own true healthy 2026-11-21T16:00:00Z -", "restart abc"),
        (OWNER, "container:gone true healthy 2026-11-21T16:00:09Z -", "--force-recreate qbittorrent"),
        (OWNER, f"container:own false none {OLD} cannot-join-network", "start abc"),
        (OWNER, f"container:own false none {OLD} -", ""),
        (f"mediahost_vpn true starting {NEW} -", f"container:own true healthy {OLD} -", ""),
        (f"mediahost_vpn true unhealthy {NEW} -", "container:gone true healthy 2026-11-21T16:00:09Z -", ""),
        (f"mediahost_vpn false none {NEW} -", f"container:own true healthy {OLD} -", ""),
    ],
)
def test_only_who_lost_the_network_follows_and_only_when_the_tunnel_works(
    tmp_path: Path, owner: str, sharer: str, does: str
) -> None:
    calls = after(tmp_path, owner, sharer)
    assert len(calls) == bool(does)
    assert all(call.endswith(does) for call in calls)


def test_it_looks_again_at_each_event(tmp_path: Path) -> None:
    assert len(after(tmp_path, OWNER, f"container:own true healthy {OLD} -", events=2)) == 3


def test_a_container_made_anew_is_made_from_the_hosts_compose_file_and_alone(tmp_path: Path) -> None:
    (call,) = after(tmp_path, OWNER, f"container:gone true healthy {OLD} -")
    assert "-f /opt/media-server/compose.yaml up -d --no-deps" in call


def test_the_script_is_sound_and_the_stage_writes_starts_and_removes_it() -> None:
    wanted = plan()
    (script,) = [file for file in artefacts.files(wanted.vpn, wanted.settings) if file.path == artefacts.SCRIPT_PATH]
    checked = subprocess.run(["sh", "-n"], input=script.content, capture_output=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, b"")
    assert follow.steps(wanted, written(wanted)) == []
    bare = follow.steps(wanted, Snapshot())
    assert told(bare)[:2] == [f"{artefacts.SCRIPT_PATH}: missing", f"{artefacts.UNIT_PATH}: missing"]
    sound(follow.file_steps(wanted, Snapshot()))
    stopped = UnitState("loaded", "failed", "failed", "enabled", needs_daemon_reload=False)
    seen = Snapshot(paths=written(wanted).paths, units={artefacts.UNIT: stopped})
    assert told(follow.steps(wanted, seen)) == [f"{artefacts.UNIT}: failed"]


@pytest.mark.parametrize("other", [plan("host"), build("nas", config.read("nas", {}), CATALOG, vault())])
def test_without_gluetun_nothing_of_it_is_there(other: Wanted) -> None:
    assert follow.steps(other, Snapshot()) == []
    assert artefacts.files(other.vpn, other.settings) == ()
    steps = follow.steps(other, written(plan()))
    assert told(steps) == [f"{artefacts.UNIT}: switched off, is removed"]
    assert f"rm -f {artefacts.SCRIPT_PATH} {artefacts.UNIT_PATH}" in commands(steps)
    sound(steps)


def test_the_plan_owns_its_files() -> None:
    assert set(artefacts.PATHS) <= set(plan().owned)
    assert not set(artefacts.PATHS) & set(plan("host").owned)
