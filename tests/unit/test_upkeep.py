"""The care of disks as the configuration names it: what goes together, and what is written for it."""

from __future__ import annotations

import configparser
import os
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from mediahost.config import ConfigError, Settings, read
from mediahost.render import caches, smart, snapraid, swap
from mediahost.render.upkeep import Concern
from mediahost.resources import File
from mediahost.upkeep import size_in_bytes, snapraid_disks

DISKS = [{"device": f"/dev/disk/by-id/ata-{name}", "at": f"/mnt/{name}"} for name in ("d1", "d2", "parity")]
ARRAY: dict[str, Any] = {"storage_disks": DISKS, "snapraid_parity": ["/mnt/parity"]}
POOL = {"at": "/data", "branches": ["/mnt/d1", "/mnt/d2"]}


def given(**data: Any) -> Settings:
    return read("nas", data)


def files(concern: Concern) -> dict[str, str]:
    return {file.path: file.content.decode() for file in concern.every_file}


def unit(text: str) -> Mapping[str, Mapping[str, str]]:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(text)
    return parser


# --- what goes together


@pytest.mark.parametrize(
    ("data", "key", "mend"),
    [
        ({"snapraid_parity": ["/mnt/p"]}, "snapraid_parity", "no disk to protect"),
        ({"snapraid_data": ["/mnt/d1"]}, "snapraid_data", "does nothing without snapraid_parity"),
        ({**ARRAY, "snapraid_data": ["/mnt/parity"]}, "snapraid_parity", "give it a disk of its own"),
        ({**ARRAY, "snapraid_parity": ["/mnt/d1/p"], "snapraid_data": ["/mnt/d1"]}, "snapraid_parity", "of its own"),
        ({**ARRAY, "snapraid_parity": ["/mnt/other"]}, "snapraid_parity", "no mount point in storage_disks"),
        ({**ARRAY, "snapraid_parity": ["/mnt/parity"] * 2}, "snapraid_parity", "named twice"),
        ({**ARRAY, "snapraid_data": ["/mnt/x"]}, "snapraid_data", "write one of /mnt/d1, /mnt/d2, /mnt/parity"),
        (
            {**ARRAY, "storage_pools": [{"at": "/data", "branches": ["/mnt/d1", "/mnt/parity"]}]},
            "snapraid_parity",
            "is a branch of the pool /data",
        ),
        ({"swap": "file", "swap_size": "1m"}, "swap_size", "64m or more"),
        ({"transcode_in": "memory"}, "transcode_in", "does nothing without transcode_size"),
        ({"transcode_size": "1m"}, "transcode_size", "too small"),
        ({"transcode_size": "1g", "transcode_root": "/data"}, "transcode_root", "would be hidden"),
        ({"transcode_size": "1g", "transcode_root": "/data/media/x"}, "transcode_root", "lies among the media"),
        (
            {"transcode_size": "1g", "transcode_root": "/mnt/d1", "storage_disks": DISKS},
            "transcode_root",
            "is a mount point already",
        ),
        (
            {"thumbnails_size": "1g", "transcode_size": "1g", "thumbnails_root": "/srv/cache/transcode/x"},
            "thumbnails_root",
            "inside each other",
        ),
    ],
)
def test_what_does_not_go_together_is_refused_with_the_mend(data: dict[str, Any], key: str, mend: str) -> None:
    with pytest.raises(ConfigError) as refused:
        given(**data)
    assert any(problem.key == key and mend in problem.mend for problem in refused.value.problems), refused.value


def test_a_sound_array_with_caches_is_taken() -> None:
    settings = given(**ARRAY, storage_pools=[POOL], swap="zram", transcode_size="100g", thumbnails_size="50g")
    assert snapraid_disks(settings) == ("/mnt/d1", "/mnt/d2")


def test_protected_is_what_the_pools_are_made_of_or_every_disk_without_parity() -> None:
    assert snapraid_disks(given(**ARRAY)) == ("/mnt/d1", "/mnt/d2")
    pool = {"at": "/data", "branches": ["/mnt/d2/media"]}
    assert snapraid_disks(given(**ARRAY, storage_pools=[pool])) == ("/mnt/d2",)
    assert snapraid_disks(given(**ARRAY, snapraid_data=["/mnt/d1"])) == ("/mnt/d1",)


@pytest.mark.parametrize(("size", "count"), [("64m", 67108864), ("2g", 2147483648), ("100G", 107374182400)])
def test_a_size_is_in_bytes_of_1024(size: str, count: int) -> None:
    assert size_in_bytes(size) == count


# --- SnapRAID


def test_snapraid_has_parity_by_level_a_list_on_every_disk_and_names_that_do_not_change() -> None:
    two = given(**{**ARRAY, "snapraid_parity": ["/mnt/parity", "/mnt/d2"], "snapraid_data": ["/mnt/d1"]})
    lines = files(snapraid.concern(two))[snapraid.CONFIGURATION_PATH].splitlines()
    assert lines[1:3] == ["parity /mnt/parity/snapraid.parity", "2-parity /mnt/d2/snapraid.parity"]
    assert f"content {snapraid.CONTENT_PATH}" in lines
    assert "content /mnt/d1/snapraid.content" in lines
    assert "data mnt-d1 /mnt/d1/" in lines
    assert "exclude incomplete/" in lines


def test_the_timers_run_when_they_are_told_to_and_catch_up() -> None:
    concern = snapraid.concern(given(**ARRAY, snapraid_sync_at="04:15", snapraid_scrub_on="Wed 06:00"))
    text = files(concern)
    sync = unit(text[f"/etc/systemd/system/{snapraid.SYNC_TIMER}"])
    scrub = unit(text[f"/etc/systemd/system/{snapraid.SCRUB_TIMER}"])
    assert (sync["Timer"]["OnCalendar"], sync["Timer"]["Persistent"]) == ("*-*-* 04:15:00", "true")
    assert scrub["Timer"]["OnCalendar"] == "Wed *-*-* 06:00:00"
    assert set(concern.units) == {snapraid.SYNC_TIMER, snapraid.SCRUB_TIMER}
    assert set(text) == set(snapraid.PATHS)


class Array:
    """The program of ours with a `snapraid` that says what the test wants, on disks that are directories."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.bin = root / "bin"
        self.bin.mkdir()
        self.devices = {"/mnt/d1": "1", "/mnt/d2": "2", "/mnt/parity": "3"}
        self.mounted = set(self.devices)
        self.said = "       5 equal\n       2 added\n       0 removed"
        self.status = 2
        self.content = root / "content"

    def run(self, *words: str, limit: int = 40) -> subprocess.CompletedProcess[str]:
        (self.bin / "snapraid").write_text(
            f'#!/bin/sh\necho "$*" >>{self.root}/calls\n'
            f"case $1 in diff) printf '%s\\n' {shlex.quote(self.said)}; exit {self.status} ;; esac\n"
        )
        (self.bin / "mountpoint").write_text(
            "#!/bin/sh\ncase $2 in " + " | ".join(sorted(self.mounted) or ["-"]) + ") exit 0 ;; esac; exit 1\n"
        )
        cases = " ".join(f"{path}) echo {device} ;;" for path, device in self.devices.items())
        (self.bin / "stat").write_text(f"#!/bin/sh\ncase $3 in {cases} esac\n")
        (self.bin / "id").write_text("#!/bin/sh\necho 0\n")
        for program in self.bin.iterdir():
            program.chmod(0o755)
        text = files(snapraid.concern(given(**ARRAY, snapraid_delete_limit=limit)))[snapraid.PROGRAM_PATH]
        text = text.replace(snapraid.LOCK_PATH, f"{self.root}/lock")
        text = text.replace(snapraid.CONTENT_PATH, str(self.content))
        path = self.root / "program"
        path.write_text(text)
        environment = {"PATH": f"{self.bin}:{os.environ['PATH']}"}
        return subprocess.run(["sh", str(path), *words], env=environment, capture_output=True, text=True, check=False)

    @property
    def calls(self) -> list[str]:
        log = self.root / "calls"
        return log.read_text().splitlines() if log.exists() else []


@pytest.fixture
def array(tmp_path: Path) -> Array:
    return Array(tmp_path)


def test_a_sync_brings_the_parity_up_to_date(array: Array) -> None:
    done = array.run("sync")
    assert done.returncode == 0, done.stderr
    assert array.calls == ["diff", "--quiet sync"]
    assert "2 added" in done.stdout


def test_a_sync_without_a_difference_does_nothing(array: Array) -> None:
    array.status = 0
    assert array.run("sync").returncode == 0
    assert array.calls == ["diff"]


@pytest.mark.parametrize(("removed", "syncs"), [(0, True), (40, True), (41, False), (100000, False)])
def test_a_sync_after_too_many_deletions_is_refused_and_at_the_limit_it_is_not(
    array: Array, removed: int, syncs: bool
) -> None:
    array.said = f"add 99999 removed\nremove a.mkv\n\n       5 equal\n  {removed} removed\n       0 updated"
    done = array.run("sync")
    assert (done.returncode == 0) == syncs
    assert ("--quiet sync" in array.calls) == syncs
    if not syncs:
        assert f"refused: {removed} files were deleted" in done.stderr
        assert "remove a.mkv" in done.stderr
        assert "snapraid fix -m" in done.stderr
        assert array.run("sync", "--accept-deletions").returncode == 0
        assert array.calls[-1] == "--quiet sync"


@pytest.mark.parametrize("absent", ["/mnt/d2", "/mnt/parity"])
@pytest.mark.parametrize("verb", ["sync", "scrub"])
def test_without_one_of_its_disks_nothing_is_run(array: Array, absent: str, verb: str) -> None:
    array.mounted -= {absent}
    done = array.run(verb)
    assert done.returncode == 1
    assert f"{absent}: no disk is mounted there" in done.stderr
    assert array.calls == []


def test_parity_on_a_disk_that_it_protects_is_refused(array: Array) -> None:
    array.devices["/mnt/parity"] = "2"
    done = array.run("sync")
    assert "parity needs a disk of its own" in done.stderr
    assert (done.returncode, array.calls) == (1, [])


def test_a_diff_that_fails_leaves_the_parity_alone(array: Array) -> None:
    array.status, array.said = 1, "Disks are on the same device."
    done = array.run("sync")
    assert (done.returncode, array.calls) == (1, ["diff"])
    assert "Disks are on the same device." in done.stderr


def test_before_the_first_sync_there_is_nothing_to_scrub_and_after_it_there_is(array: Array) -> None:
    assert array.run("scrub").returncode == 0
    assert array.calls == []
    array.content.touch()
    assert array.run("scrub").returncode == 0
    assert array.calls == ["--quiet -p 12 -o 10 scrub"]


SNAPRAID = shutil.which("snapraid")


@pytest.mark.skipif(SNAPRAID is None, reason="snapraid is not installed here")
def test_snapraid_itself_takes_the_configuration(tmp_path: Path) -> None:
    disks = [{"device": f"/dev/disk/by-id/ata-{name}", "at": f"{tmp_path}/{name}"} for name in ("d1", "d2", "p")]
    settings = given(storage_disks=disks, snapraid_parity=[f"{tmp_path}/p"])
    for disk in disks:
        Path(disk["at"]).mkdir()
    (tmp_path / "d1/film").write_bytes(os.urandom(9999))
    text = "\n".join(snapraid.configuration(settings)).replace(snapraid.CONTENT_PATH, f"{tmp_path}/content")
    (tmp_path / "conf").write_text(text + "\n")
    command = ["snapraid", "--test-skip-device", "-c", str(tmp_path / "conf")]
    subprocess.run([*command, "sync"], check=True, capture_output=True)
    done = subprocess.run([*command, "diff"], check=True, capture_output=True, text=True)
    assert "No differences" in done.stdout


# --- SMART


def test_every_disk_or_those_that_are_named_are_watched_and_the_test_times_can_be_left_out() -> None:
    text = files(smart.concern(given(smart=True)))[smart.CONFIGURATION_PATH]
    assert text.splitlines()[1].startswith("DEVICESCAN -a ")
    assert "-s (S/../.././02|L/../../6/03)" in text
    assert "-W 0,45,55" in text
    named = given(smart=True, smart_devices=["/dev/sda", "/dev/sdb"], smart_self_tests=False, smart_temperature=60)
    text = files(smart.concern(named))[smart.CONFIGURATION_PATH]
    assert [line.split()[0] for line in text.splitlines()[1:]] == ["/dev/sda", "/dev/sdb"]
    assert " -s " not in text
    assert "-W 0,50,60" in text


def test_the_daemon_gets_our_file_by_a_drop_in_and_runs_where_disks_are_passed_through() -> None:
    text = files(smart.concern(given(smart=True)))[smart.DROP_IN_PATH]
    assert text.index("ExecStart=\n") < text.index(f"--configfile={smart.CONFIGURATION_PATH}")
    assert "ConditionVirtualization=\n" in text
    assert "--quit=never" in text


def test_what_smartd_reports_is_kept_the_newest_hundred_and_on_one_line(tmp_path: Path) -> None:
    program = files(smart.concern(given(smart=True)))[smart.PROGRAM_PATH]
    path = tmp_path / "report"
    path.write_text(program.replace(smart.REPORTS_PATH, f"{tmp_path}/state/reports"))
    (tmp_path / "logger").write_text(f'#!/bin/sh\necho "$*" >>{tmp_path}/journal\n')
    (tmp_path / "logger").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SMARTD_DEVICESTRING": "/dev/sdb"}
    for count in range(102):
        message = f"fault {count}\nsecond line"
        subprocess.run(["sh", str(path)], env={**environment, "SMARTD_MESSAGE": message}, check=True)
    text = (tmp_path / "state/reports").read_text()
    found = smart.reports(text)
    assert len(found) == 100
    assert found[-1].endswith("/dev/sdb: fault 101 second line")
    assert "daemon.crit" in (tmp_path / "journal").read_text()
    assert smart.reports("x\x1b[2J\n\n") == ("x?[2J",)


# --- swap

TABLE = "Filename\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ("", "not in use"),
        ("/swap.img file 2097148 0 -2\n", "not in use"),
        (f"{swap.FILE_PATH} file 2097148 0 -2\n", ""),
        (f"{swap.FILE_PATH} file 2097088 0 -2\n", ""),
        (f"{swap.FILE_PATH} file 1048572 0 -2\n", "swap is 1048572 KiB, wanted 2097152 KiB"),
    ],
)
def test_swap_of_ours_that_is_not_in_use_or_of_another_size_is_told(rows: str, told: str) -> None:
    assert swap.missing(given(swap="file"), TABLE + rows, "") == told
    assert swap.missing(Settings(), TABLE + rows, "") == ""


def test_the_zram_device_is_the_one_that_was_noted() -> None:
    table = f"{TABLE}/dev/zram0 partition 999 0 100\n/dev/zram1 partition 2097148 0 100\n"
    settings = given(swap="zram")
    assert swap.missing(settings, table, "/dev/zram1\n") == ""
    assert "wanted" in swap.missing(settings, table, "/dev/zram0\n")
    assert swap.missing(settings, table, "") == "not in use"


def test_the_swap_is_made_before_docker_so_that_it_is_taken_out_after_it() -> None:
    text = unit(files(swap.concern(given(swap="zram", swap_size="512m")))[swap.UNIT_PATH])
    assert "docker.service" in text["Unit"]["Before"]
    assert text["Service"]["ExecStart"] == f"{swap.PROGRAM_PATH} start zram 536870912"
    assert text["Service"]["ExecStop"] == f"{swap.PROGRAM_PATH} stop"


# --- caches


def test_a_cache_is_a_file_system_of_exactly_its_size() -> None:
    settings = given(transcode_size="100g", thumbnails_size="50g", thumbnails_root="/srv/my-cache/th")
    rows = caches.standing(caches.table(settings).content.decode())
    assert [(row.name, row.at, row.size) for row in rows] == [
        ("transcode", "/srv/cache/transcode", 107374182400),
        ("thumbnails", "/srv/my-cache/th", 53687091200),
    ]
    names = [file.path for file in caches.mount_files(settings)]
    assert names == ["/etc/systemd/system/srv-cache-transcode.mount", "/etc/systemd/system/srv-my\\x2dcache-th.mount"]
    text = unit(caches.mount_files(settings)[0].content.decode())
    assert text["Mount"]["What"] == "/srv/cache/transcode.img"
    assert text["Mount"]["Options"] == "loop,nosuid,nodev"
    assert text["Unit"]["Requires"] == text["Unit"]["After"] == "mediahost-cache-transcode.service"


def test_in_memory_it_is_a_tmpfs_that_belongs_to_the_media_group() -> None:
    settings = given(transcode_size="4g", transcode_in="memory")
    (file,) = caches.mount_files(settings)
    text = unit(file.content.decode())
    assert text["Mount"]["Options"] == "size=4294967296,mode=2775,uid=13000,gid=13000,nosuid,nodev"
    assert not [each for each in caches.files(settings) if "cache-transcode.service" in each.path]


def test_no_cache_no_file_no_timer() -> None:
    assert caches.owned(Settings()) == ()
    assert set(caches.owned(given(transcode_size="1g"))) >= {caches.TABLE_PATH, caches.PROGRAM_PATH}


def programs() -> list[File]:
    settings = given(**ARRAY, swap="file", smart=True, transcode_size="1g")
    every = [swap.concern(settings), smart.concern(settings), snapraid.concern(settings)]
    found = [*caches.files(settings), *(file for concern in every for file in concern.every_file)]
    return [file for file in found if file.content.startswith(b"#!/bin/sh")]


@pytest.mark.parametrize("file", programs(), ids=lambda file: str(file.path))
def test_every_program_is_valid_shell_and_can_be_run(file: File) -> None:
    done = subprocess.run(["sh", "-n"], input=file.content.decode(), text=True, capture_output=True, check=False)
    assert done.stderr == ""
    assert file.mode == "0755"
    assert "@" not in "".join(line for line in file.content.decode().splitlines() if line.startswith(("A", "T", "F")))
