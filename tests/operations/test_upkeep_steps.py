"""Stages upkeep, caches and ACLs: a host as wanted is no step, each drift is told, what is off leaves nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from facts import snapshot
from facts.snapshot import PathState, Snapshot, UnitState
from mediahost import upkeep as domain
from mediahost.config import Settings, read
from mediahost.render import caches as cache_files
from mediahost.render import smart, snapraid, swap
from mediahost.render.tree import shared_acl
from mediahost.resources import Directory
from operations import acl, caches, manifest, storage, upkeep
from tests.operations.test_snapshot import look
from tests.operations.test_steps import INSTALLED, RUNNING, as_present, commands, sound, told
from tests.unit.test_upkeep import ARRAY, TABLE

EVERYTHING: dict[str, Any] = {
    **ARRAY,
    "swap": "file",
    "smart": True,
    "trim": True,
    "transcode_size": "100g",
    "thumbnails_size": "50g",
    "thumbnails_root": "/srv/my-cache/thumbnails",
}
MOUNTED = UnitState("loaded", "active", "mounted", "enabled", needs_daemon_reload=False)
ON = read("nas", EVERYTHING)


def as_wanted(settings: Settings) -> Snapshot:
    """A host on which a run has been."""
    concerns = upkeep.concerns(settings)
    found = domain.caches(settings)
    files = [file for concern in concerns for file in concern.every_file]
    if found:
        files += [*cache_files.files(settings), *cache_files.mount_files(settings), cache_files.table(settings)]
    root = PathState("directory", "2775", "13000", "13000", "media", "media")
    units = {unit: RUNNING for concern in concerns for unit in (*concern.units, *concern.watched)}
    units |= {cache_files.unit(cache): MOUNTED for cache in found}
    units |= {upkeep.TRIM_UNIT: RUNNING, cache_files.PRUNE_TIMER: RUNNING}
    size = domain.size_in_bytes(settings.swap_size) // 1024 - 4
    return Snapshot(
        paths={**as_present(*files), **{cache.at: root for cache in found}},
        packages={name: INSTALLED for concern in concerns for name in concern.packages},
        units=units,
        contents={
            upkeep.SWAPS: f"{TABLE}{swap.FILE_PATH} file {size} 0 -2\n",
            cache_files.TABLE_PATH: cache_files.table(settings).content.decode() if found else "",
        },
    )


def every_step(settings: Settings, seen: Snapshot) -> list[Any]:
    return [*upkeep.steps(settings, seen), *caches.steps(settings, seen)]


def test_a_host_as_wanted_is_no_step() -> None:
    assert every_step(ON, as_wanted(ON)) == []


def test_the_snapshot_is_asked_for_everything_that_is_compared_and_never_for_a_caches_file() -> None:
    asked = upkeep.request(ON) | caches.request(ON)
    seen = as_wanted(ON)
    assert set(seen.paths) <= asked.paths
    assert set(seen.packages) <= asked.packages
    assert set(seen.units) == asked.units
    assert set(seen.contents) <= asked.contents
    assert not [path for path in asked.paths | asked.contents if path.endswith((".img", "swapfile"))]


def test_with_nothing_asked_for_and_nothing_there_only_paths_are_looked_at() -> None:
    asked = upkeep.request(Settings()) | caches.request(Settings())
    assert (asked.units, asked.packages) == (frozenset(), frozenset())
    assert asked.contents == {cache_files.TABLE_PATH}
    assert every_step(Settings(), Snapshot()) == []


def test_on_a_bare_host_packages_come_first_and_units_are_read_before_they_start() -> None:
    steps = every_step(ON, Snapshot())
    words = told(steps)
    assert "package snapraid: not installed" in words
    assert "package smartmontools: not installed" in words
    for concern in upkeep.concerns(ON):
        mine = told(upkeep.concern_steps(concern, Snapshot()))
        reload = mine.index(f"systemd: reads the units of {concern.name}")
        assert all(mine.index(f"{path}: missing") < reload for path in concern.paths)
    sound(steps)


@pytest.mark.parametrize("concern", upkeep.concerns(ON), ids=lambda concern: str(concern.name))
def test_what_is_switched_off_is_stopped_first_and_its_files_go(concern: Any) -> None:
    seen = as_wanted(ON)
    (step,) = [step for step in upkeep.steps(Settings(), seen) if step.change.startswith(f"{concern.name}: ")]
    assert step.change == f"{concern.name}: switched off, is removed; packages and data stay"
    for path in concern.paths:
        assert path in step.command
    for unit in concern.own_units:
        assert step.command.index(f"disable --now {unit}") < step.command.index("rm -f /")
    for data in (snapraid.CONTENT_PATH, ".parity", smart.REPORTS_PATH):
        assert data not in step.command
    sound([step])


def test_the_manifest_leaves_the_files_of_units_to_the_stage_that_stops_them() -> None:
    seen = as_wanted(ON)
    ours = {path: "" for path in seen.paths if path.startswith(("/etc", "/usr"))}
    assert cache_files.mount_unit_path("srv-my\\x2dcache-thumbnails.mount") in ours
    assert manifest.prune_steps({}, replace(seen, manifest=ours)) == []
    # The positive control: when the stages have removed them, the manifest forgets them.
    gone = replace(seen, manifest=ours, paths={}, contents={})
    assert told(manifest.prune_steps({}, gone)) == [f"{path}: not wanted any more" for path in sorted(ours)]


@pytest.mark.parametrize(
    ("path", "unit"),
    [
        (swap.UNIT_PATH, swap.UNIT),
        (smart.CONFIGURATION_PATH, smart.UNIT),
        (f"/etc/systemd/system/{snapraid.SYNC_TIMER}", snapraid.SYNC_TIMER),
    ],
)
def test_a_unit_is_owed_a_restart_from_before_its_file_is_written(path: str, unit: str) -> None:
    seen = as_wanted(ON)
    drifted = replace(seen, paths={**seen.paths, path: replace(seen.paths[path], sha256="other")})
    steps = upkeep.steps(ON, drifted)
    assert told(steps)[0] == f"{path}: content differs"
    assert f"pending/{unit}" in steps[0].command
    (restart,) = upkeep.steps(ON, replace(seen, pending=frozenset({unit})))
    assert f"{unit}: runs with an older configuration" in restart.change
    sound([restart])


def test_a_new_limit_of_deletions_restarts_nothing() -> None:
    seen = as_wanted(ON)
    other = read("nas", {**EVERYTHING, "snapraid_delete_limit": 7})
    (step,) = upkeep.steps(other, seen)
    assert step.change == f"{snapraid.PROGRAM_PATH}: content differs"
    assert "pending" not in step.command.replace("receive", "")


def test_swap_that_somebody_took_out_is_put_back_and_a_unit_that_does_not_run_is_started_instead() -> None:
    seen = as_wanted(ON)
    out = replace(seen, contents={**seen.contents, upkeep.SWAPS: TABLE})
    (step,) = upkeep.steps(ON, out)
    assert step.change == "swap: not in use"
    assert step.command.startswith(f"systemctl restart {swap.UNIT} || ")
    stopped = replace(out, units={**seen.units, swap.UNIT: replace(RUNNING, active="inactive")})
    assert told(upkeep.steps(ON, stopped)) == [f"{swap.UNIT}: inactive"]


def test_a_sync_that_was_refused_is_told_and_so_is_what_the_disks_report() -> None:
    seen = as_wanted(ON)
    assert upkeep.notices(ON, seen) == []
    failed = replace(
        seen,
        units={**seen.units, snapraid.SYNC_UNIT: replace(RUNNING, active="failed")},
        contents={**seen.contents, smart.REPORTS_PATH: "2026-11-21T02:00 /dev/sdb: 8 pending sectors\n"},
    )
    words = upkeep.notices(ON, failed)
    assert words[0].startswith("mediahost-snapraid-sync failed or was refused; journalctl -u")
    assert words[1] == "SMART: 2026-11-21T02:00 /dev/sdb: 8 pending sectors"
    assert upkeep.steps(ON, failed) == [], "a run cannot mend a disk"


def test_the_trim_timer_is_enabled_and_left_alone_when_nobody_asks() -> None:
    off = {upkeep.TRIM_UNIT: replace(RUNNING, enabled="disabled", active="inactive")}
    seen = replace(as_wanted(ON), units={**as_wanted(ON).units, **off})
    assert told(upkeep.trim_steps(ON, seen)) == ["fstrim.timer: not enabled", "fstrim.timer: inactive"]
    assert upkeep.trim_steps(Settings(), seen) == []


# --- caches


def test_a_cache_that_is_switched_off_is_unmounted_and_its_file_stays() -> None:
    steps = caches.steps(Settings(), as_wanted(ON))
    assert told(steps)[0] == (
        "cache /srv/cache/transcode: not wanted any more, is unmounted; its file /srv/cache/transcode.img stays: "
        "delete it to have the space back"
    )
    text = commands(steps)
    assert "disable --now 'srv-my\\x2dcache-thumbnails.mount'" in text
    assert "rm -f '/etc/systemd/system/srv-my\\x2dcache-thumbnails.mount'" in text
    assert ".img" not in text
    for path in cache_files.PATHS:
        assert path in text
    sound(steps)


def test_a_cache_that_moves_is_unmounted_at_its_old_place_before_the_table_forgets_it() -> None:
    moved = read("nas", {**EVERYTHING, "transcode_root": "/mnt/ssd/transcode"})
    steps = caches.steps(moved, as_wanted(ON))
    words = told(steps)
    assert words[0].startswith("cache /srv/cache/transcode: not wanted any more")
    table = words.index(f"{cache_files.TABLE_PATH}: content differs")
    assert 0 < table < words.index("/etc/systemd/system/mnt-ssd-transcode.mount: missing")
    assert "my\\x2dcache" not in steps[0].command, "the other one is not touched"
    sound(steps)


def test_another_size_mounts_the_cache_anew_and_says_what_that_interrupts() -> None:
    grown = read("nas", {**EVERYTHING, "transcode_size": "200g"})
    seen = as_wanted(ON)
    (step,) = caches.steps(grown, seen)
    assert step.change == f"{cache_files.TABLE_PATH}: content differs"
    assert step.command.index("pending/srv-cache-transcode.mount") < step.command.index("receive()")
    assert "x2dcache" not in step.command
    paths = {**seen.paths, **as_present(cache_files.table(grown))}
    contents = {**seen.contents, cache_files.TABLE_PATH: cache_files.table(grown).content.decode()}
    owed = replace(seen, paths=paths, contents=contents, pending=frozenset({"srv-cache-transcode.mount"}))
    (restart,) = caches.steps(grown, owed)
    assert "transcodes at work end" in restart.change
    assert "systemctl restart srv-cache-transcode.mount" in restart.command
    assert "_SYSTEMD_UNIT=mediahost-cache-transcode.service" in restart.command, "why it failed is told"


def test_a_cache_that_is_not_mounted_is_mounted_and_its_bare_place_is_left_alone() -> None:
    seen = as_wanted(ON)
    bare = replace(seen.paths["/srv/cache/transcode"], mode="755", uid="0", owner="root")
    away = replace(
        seen,
        paths={**seen.paths, "/srv/cache/transcode": bare},
        units={**seen.units, "srv-cache-transcode.mount": replace(MOUNTED, active="inactive")},
    )
    assert told(caches.steps(ON, away)) == ["srv-cache-transcode.mount: inactive"]
    there = replace(away, units=seen.units)
    (step,) = caches.steps(ON, there)
    assert step.change.startswith("/srv/cache/transcode: owner is root:")


LOOPS = pytest.mark.skipif(
    os.getuid() != 0 or not Path("/dev/loop-control").exists(), reason="needs root and loop devices"
)


def run(script: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """In a mount namespace of its own: what is mounted goes with it."""
    return subprocess.run(
        ["unshare", "-m", "sh", "-euc", script], cwd=cwd, capture_output=True, text=True, check=False
    )


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """The caches' program, for a cache of 80 MB at ./t that becomes one of 128 MB."""
    for name, size in (("small", "80m"), ("large", "128m")):
        settings = read("nas", {"transcode_size": size, "transcode_root": f"{tmp_path}/t"})
        (tmp_path / name).write_bytes(cache_files.table(settings).content)
        (text,) = [f.content for f in cache_files.files(settings) if f.path == cache_files.PROGRAM_PATH]
    (tmp_path / "cache").write_bytes(text.replace(cache_files.TABLE_PATH.encode(), f"{tmp_path}/table".encode()))
    (tmp_path / "t").mkdir()
    return tmp_path


_MADE = "cp small table; sh cache image transcode; mount -o loop t.img t; "


@LOOPS
def test_a_cache_takes_its_space_at_once_and_cannot_grow_beyond_it(program: Path) -> None:
    done = run(f"{_MADE} head -c 200000000 /dev/zero >t/big || echo full; stat -c %s t/big", program)
    assert done.stdout.split()[0] == "full", done.stderr
    assert 40_000_000 < int(done.stdout.split()[1]) < 80 * 1024**2
    image = (program / "t.img").stat()
    assert image.st_size == 80 * 1024**2
    assert image.st_blocks * 512 >= image.st_size, "taken now, not some day"
    assert image.st_mode & 0o777 == 0o600


@LOOPS
def test_a_larger_cache_keeps_what_is_in_it_and_one_in_use_is_not_touched(program: Path) -> None:
    done = run(f"{_MADE} echo x >t/kept; cp large table; sh cache image transcode || echo refused", program)
    assert done.stdout == "refused\n"
    assert "is still in use" in done.stderr
    grown = "cp large table; sh cache image transcode; mount -o loop t.img t; cat t/kept; stat -f -c '%b %S' t"
    done = run(grown, program)
    kept, blocks, size = done.stdout.split()
    assert kept == "x"
    assert int(blocks) * int(size) > 100 * 1024**2


@LOOPS
def test_pruning_removes_what_was_used_longest_ago_and_never_what_is_in_use(program: Path) -> None:
    fill = (
        "for n in 01 02 03 04 05 06 07 08 09 10 11 12; do head -c 5500000 /dev/zero >t/$n; "
        'touch -d "$((400 - ${n#0})) minutes ago" t/$n; done; '
    )
    few = run(f"{_MADE} echo x >t/old; touch -d '9 days ago' t/old; sh cache prune; ls t", program)
    assert "old" in few.stdout, "there is room: nothing is removed"
    (program / "t.img").unlink()
    done = run(f"{_MADE}{fill} touch -a t/01; : >t/new; touch -d '9 days ago' 't/a b'; sh cache prune; ls t", program)
    names = done.stdout.splitlines()
    assert names[0].endswith("% full")
    assert {"01", "12", "new"} <= set(names)
    assert not {"02", "03", "a b"} & set(names)


# --- ACLs

SHARED_ACL = shared_acl(13000)
MEDIA = Directory("/data/media", "13000", "13000", "2775", SHARED_ACL)
PRESENT = PathState("directory", "2775", "13000", "13000", "media", "media")
RIGHT = Snapshot(
    paths={"/data/media": PRESENT},
    default_acls={"/data/media": SHARED_ACL},
    filesystems={"/data/media": "ext2/ext3"},
)


def test_a_directory_with_its_default_acl_is_no_step_and_is_asked_for() -> None:
    assert acl.steps([MEDIA], RIGHT) == []
    assert acl.request([MEDIA, replace(MEDIA, path="/opt", default_acl=None)]).acls == {"/data/media"}


def test_an_acl_that_cannot_be_read_is_not_called_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bare = replace(RIGHT, default_acls={})
    assert acl.steps([MEDIA], bare)
    assert acl.steps([MEDIA], replace(bare, acls_unread=True)) == []
    here = {"acls": [str(tmp_path)]}
    assert look(**here).acls_unread == (shutil.which("getfacl") is None)
    monkeypatch.setattr(
        snapshot, "_SCRIPT", snapshot._SCRIPT.replace("have getfacl", "have getfacl-that-is-not-here")
    )
    assert look(**here).acls_unread


@pytest.mark.parametrize(
    ("present", "change"),
    [
        ("", "/data/media: default ACL is missing, wanted user::rwx,group::rwx,group:13000:rwx,mask::rwx,other::r-x"),
        ("user::rwx,group::r-x,other::---", "/data/media: default ACL is user::rwx,group::r-x,other::---, wanted "),
    ],
)
def test_another_default_acl_is_told_and_replaced(present: str, change: str) -> None:
    seen = replace(RIGHT, default_acls={"/data/media": present} if present else {})
    (step,) = acl.steps([MEDIA], seen)
    assert step.change.startswith(change)
    assert "acl -k -m d:user::rwx,d:group::rwx,d:group:13000:rwx,d:mask::rwx,d:other::r-x /data/media" in step.command
    assert " -R" not in step.command
    sound([step])


@pytest.mark.parametrize("kind", ["nfs", "smb2", "cifs", "exfat"])
def test_where_there_are_no_acls_it_is_told_once_and_nothing_is_tried(kind: str) -> None:
    inner = replace(MEDIA, path="/data/media/tv")
    seen = replace(
        RIGHT,
        paths={"/data/media": PRESENT, "/data/media/tv": PRESENT},
        default_acls={},
        filesystems={"/data/media": kind, "/data/media/tv": kind},
    )
    assert acl.steps([MEDIA, inner], seen) == []
    (notice,) = acl.notices([MEDIA, inner], seen)
    assert notice.startswith(f"/data/media: {kind} has no default ACLs")


@pytest.mark.parametrize("present", [None, replace(PRESENT, kind="link", mode="777")])
def test_what_is_not_made_yet_or_leads_elsewhere_is_left_alone(present: PathState | None) -> None:
    seen = replace(RIGHT, paths={"/data/media": present} if present else {}, default_acls={})
    assert acl.steps([MEDIA], seen) == []


def test_switched_off_ours_is_taken_away_and_somebody_elses_stays() -> None:
    off = replace(MEDIA, default_acl="")
    (step,) = acl.steps([off], RIGHT)
    assert step.change == "/data/media: default ACL is not wanted any more"
    assert "acl -k /data/media" in step.command
    other = replace(RIGHT, default_acls={"/data/media": "user::rwx,user:1000:rwx,group::rwx,mask::rwx,other::---"})
    assert acl.steps([off], other) == []


@pytest.mark.skipif(shutil.which("setfacl") is None, reason="setfacl is not installed here")
def test_the_command_sets_it_for_real_and_others_umask_does_not_count_any_more(tmp_path: Path) -> None:
    path = tmp_path / "media"
    path.mkdir()
    path.chmod(0o2775)
    mine = replace(MEDIA, path=str(path))
    seen = replace(RIGHT, paths={str(path): PRESENT}, default_acls={}, filesystems={str(path): "ext2/ext3"})
    (step,) = acl.steps([mine], seen)
    subprocess.run(["setfacl", "-m", "d:u:1000:rwx", str(path)], check=True)
    subprocess.run(["sh", "-euc", step.command], check=True)
    done = subprocess.run(["getfacl", "-dpcn", str(path)], check=True, capture_output=True, text=True)
    assert done.stdout.split() == SHARED_ACL.split(",")
    subprocess.run(["sh", "-c", f"umask 077; mkdir {path}/d; : >{path}/d/f"], check=True)
    assert f"{(path / 'd/f').stat().st_mode & 0o777:o}" == "664"
    assert f"{(path / 'd').stat().st_mode & 0o7777:o}" == "2775"


@pytest.mark.skipif(
    not Path("/usr/bin/getfacl").exists() or shutil.which("dpkg") is None, reason="getfacl is not installed here"
)
def test_the_snapshot_reads_what_the_command_has_set_and_then_nothing_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "media"
    path.mkdir()
    path.chmod(0o2775)
    mine = replace(MEDIA, path=str(path), owner=str(os.getuid()), group=str(os.getgid()))
    off = replace(mine, default_acl="")
    for wanted, rounds in ((mine, 1), (mine, 0), (off, 1), (off, 0)):
        seen = look(acls=[str(path)], paths=[str(path)])
        steps = acl.steps([wanted], seen)
        assert len(steps) == rounds
        for step in steps:
            subprocess.run(["sh", "-euc", step.command], check=True)


@pytest.mark.parametrize(("kind", "changes"), [("smb2", 0), ("exfat", 0), ("ext2/ext3", 1), ("nfs", 1)])
def test_owner_and_mode_are_compared_only_where_the_file_system_keeps_them(kind: str, changes: int) -> None:
    other = replace(PRESENT, mode="775", uid="0", owner="root")
    seen = replace(RIGHT, paths={"/data/media": other}, filesystems={"/data/media": kind})
    assert len(storage.steps([MEDIA], seen)) == changes
    missing = replace(seen, paths={}, filesystems={})
    assert told(storage.steps([MEDIA], missing)) == ["/data/media: missing"]
