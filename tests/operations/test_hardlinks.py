"""The hardlink proof: tried through a container's own mounts, told in words, and nothing is left behind."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from facts.snapshot import Snapshot
from mediahost import hardlinks as domain
from mediahost.catalog import load_catalog
from mediahost.config import read
from mediahost.stack import GIVEN
from mediahost.wanted import Wanted, build
from operations import hardlinks, verify
from tests.operations.test_steps import sound, told

CATALOG = load_catalog()
MOUNTS = "/dev/vda1 / ext4 rw,relatime 0 0\n/dev/sdb1 /data ext4 rw,noatime 0 0\ntmpfs /run tmpfs rw 0 0\n"


def plan(**data: Any) -> Wanted:
    def secret(entry: str, kind: str) -> str:
        if kind == GIVEN:
            raise LookupError(entry)
        return "x"

    return build("nas", read("nas", data), CATALOG, secret)


def record(wanted: Wanted, mounts: str = MOUNTS, *failures: tuple[str, str, str, str]) -> Snapshot:
    """A host on which the trial was made."""
    trial = domain.trial(wanted.settings, wanted.stack)
    digest = domain.digest(trial, wanted.settings, wanted.stack, mounts)
    lines = [digest, *("\t".join(failure) for failure in failures)]
    return Snapshot(contents={hardlinks.MOUNTS: mounts, domain.RECORD_PATH: "\n".join(lines) + "\n"})


# --- when it is tried


def test_who_imports_is_who_has_both_downloads_and_media() -> None:
    trial = domain.trial(plan().settings, plan().stack)
    assert trial.services == ("radarr", "sonarr")
    assert trial.sources == ("/data/torrents", "/data/usenet/complete")
    assert "/data/media/movies" in trial.targets
    split = plan(layout="split")
    assert domain.trial(split.settings, split.stack).sources == ("/data/downloads/complete",)


def test_it_is_tried_once_and_then_a_run_costs_no_exec_more() -> None:
    wanted = plan()
    (step,) = hardlinks.steps(wanted, Snapshot())
    assert step.change == "hardlinks from downloads to media: not tried yet with these mounts"
    sound([step])
    assert hardlinks.steps(wanted, record(wanted)) == []
    assert hardlinks.notices(wanted, record(wanted)) == []
    asked = verify.request(wanted)
    assert {domain.RECORD_PATH, hardlinks.MOUNTS} <= asked.contents


@pytest.mark.parametrize(
    ("mounts", "again"),
    [
        (MOUNTS.replace("rw,noatime", "rw,relatime"), False),
        (f"{MOUNTS}overlay /var/lib/docker/overlay2/x overlay rw 0 0\n", False),
        (f"{MOUNTS}nas:/x /data/media/remote nfs4 rw 0 0\n", False),
        (MOUNTS.replace("/dev/sdb1", "/dev/sdc1"), True),
        (MOUNTS.replace("/dev/sdb1 /data ext4", "/dev/sdb1 /elsewhere ext4"), True),
        (f"{MOUNTS}/dev/sdd1 /data/media/movies xfs rw 0 0\n", True),
        (f"{MOUNTS}branches /data fuse.mergerfs rw 0 0\n", True),
    ],
)
def test_it_is_tried_again_when_the_medias_mounts_change_and_for_no_other_mount(mounts: str, again: bool) -> None:
    wanted = plan()
    seen = record(wanted)
    changed = replace(seen, contents={**seen.contents, hardlinks.MOUNTS: mounts})
    assert bool(hardlinks.steps(wanted, changed)) == again


@pytest.mark.parametrize(
    ("data", "again"),
    [
        ({"layout": "split"}, True),
        ({"media_gid": 14000}, True),
        ({"media_libraries": ["films"]}, True),
        ({"services_disabled": ["radarr"]}, True),
        ({"stack_root": "/srv/stack"}, True),
        ({"timezone": "Europe/Berlin"}, False),
    ],
)
def test_it_is_tried_again_when_what_the_containers_mount_changes(data: dict[str, Any], again: bool) -> None:
    assert bool(hardlinks.steps(plan(**data), record(plan()))) == again


def test_without_a_service_that_imports_there_is_nothing_to_prove() -> None:
    wanted = plan(selection="none")
    assert hardlinks.steps(wanted, Snapshot()) == []
    assert hardlinks.request(wanted).contents == frozenset()


def test_what_may_be_better_by_now_is_tried_again_and_what_lies_in_the_layout_is_not() -> None:
    wanted = plan()
    denied = record(wanted, MOUNTS, ("sonarr", "/data/torrents", "/data/media/tv", "Permission denied"))
    assert told(hardlinks.steps(wanted, denied, again=True)) == [
        "hardlinks from downloads to media: could not be proven, are tried again"
    ]
    assert hardlinks.steps(wanted, denied) == []
    crossing = record(wanted, MOUNTS, ("sonarr", "/data/torrents", "/data/media/tv", "Invalid cross-device link"))
    assert hardlinks.steps(wanted, crossing, again=True) == []


# --- what is told

CROSS = "Invalid cross-device link"


@pytest.mark.parametrize(
    ("data", "reason", "words"),
    [
        (
            {"layout": "split", "downloads_root": "/ssd/dl", "data_root": "/hdd"},
            CROSS,
            ("the layout split cannot have them", "/ssd/dl and /hdd/media", "imports are copies", "layout = trash"),
        ),
        (
            {
                "storage_pools": [{"at": "/data", "branches": ["/mnt/d1", "/mnt/d2"], "policy": "epmfs"}],
                "storage_disks": [
                    {"device": f"/dev/disk/by-id/{name}", "at": f"/mnt/{name}"} for name in ("d1", "d2")
                ],
            },
            CROSS,
            ("the pool /data refuses links", "its policy epmfs", "imports are copies", "Choose the policy pfrd"),
        ),
        ({"data_root": "/tank"}, CROSS, ("/tank/torrents and /tank/media/tv", "two file systems", "storage_pools")),
        ({}, f"{CROSS} (os error 18)", ("two file systems",)),
        ({}, "Operation not supported", ("the file system of /data/media/tv has none", "SMB", "imports are copies")),
        ({}, "Operation not permitted", ("has none",)),
        ({}, "Permission denied", ("not proven", "mediahost fix-permissions")),
        (
            {},
            "No space left on device",
            ("not proven", "from /data/torrents to /data/media/tv", "No space left on device"),
        ),
    ],
)
def test_each_outcome_is_told_in_words_with_what_mends_it(
    data: dict[str, Any], reason: str, words: tuple[str, ...]
) -> None:
    wanted = plan(**data)
    source = "/data/downloads/complete" if data.get("layout") == "split" else "/data/torrents"
    failures = [(service, source, "/data/media/tv", reason) for service in ("radarr", "sonarr")]
    seen = record(wanted, MOUNTS, failures[1], *failures[:1])
    (notice,) = hardlinks.notices(wanted, seen)
    for word in words:
        assert word in notice


# --- the trial for real

_POSSIBLE = (
    shutil.which("unshare") is not None
    and subprocess.run(["unshare", "-Urm", "true"], capture_output=True, check=False).returncode == 0
)
NAMESPACES = pytest.mark.skipif(not _POSSIBLE, reason="needs namespaces")


class Host:
    """The tree of a host, and one "container": a process with mounts of its own."""

    def __init__(self, root: Path, layout: str) -> None:
        self.root, self.layout = root, layout
        self.wanted = plan(layout=layout, data_root=f"{root}/tank", downloads_root=f"{root}/ssd")
        self.trial = domain.trial(self.wanted.settings, self.wanted.stack)
        for path in (*self.trial.sources, *self.trial.targets):
            Path(domain.on_host(self.wanted.settings, path)).mkdir(parents=True, exist_ok=True)
        self.inside = root / "inside"
        self.inside.mkdir()
        self.container: subprocess.Popen[str] | None = None

    def start(self, more: str = "true") -> None:
        """`more` mounts what the container has beside the layout's own."""
        lines = [f"mkdir -p {self.inside}/data"]
        if self.layout == "trash":
            lines.append(f"mount --bind {self.root}/tank {self.inside}/data")
        else:
            for source, target in ((f"{self.root}/tank/media", "media"), (f"{self.root}/ssd", "downloads")):
                lines += [
                    f"mkdir -p {self.inside}/data/{target}",
                    f"mount --bind {source} {self.inside}/data/{target}",
                ]
        script = "; ".join([*lines, f"cd {self.inside}", more, "echo ready", "exec cat"])
        self.container = subprocess.Popen(
            ["unshare", "-Urm", "sh", "-euc", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.container.stdout is not None
        assert self.container.stdout.readline() == "ready\n"

    def stop(self) -> None:
        if self.container is not None:
            self.container.kill()
            self.container.wait()

    def run(self, before: str = "true", without: str = "") -> subprocess.CompletedProcess[str]:
        """The step's own command, in which `docker` names our process."""
        (step,) = hardlinks.steps(self.wanted, Snapshot())
        pid = self.container.pid if self.container else 0
        command = step.command.replace(domain.RECORD_PATH, f"{self.root}/state/record")
        command = command.replace(without, "true") if without else command
        command = command.replace("ROOT=/data/", f"ROOT={self.inside}/data/")
        # Who runs the tests is nobody's root: the trial is made as he is.
        fakes = f'docker() {{ echo {pid}; }}\nsetpriv() {{ shift 3; "$@"; }}\n{before}\n'
        return subprocess.run(
            ["sh", "-euc", fakes + command], capture_output=True, text=True, check=False, start_new_session=True
        )

    def failures(self) -> set[str]:
        _, found = domain.read((self.root / "state/record").read_text())
        return {failure.reason for failure in found}

    def left(self) -> list[Path]:
        return [path for path in self.root.rglob(f"*{domain.PROBE}*") if "inside" not in path.parts]


@pytest.fixture
def host(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Host]:
    made = Host(tmp_path, getattr(request, "param", "trash"))
    yield made
    made.stop()


@NAMESPACES
def test_in_the_default_layout_the_links_are_made_and_nothing_is_left(host: Host) -> None:
    host.start()
    done = host.run()
    assert done.returncode == 0, done.stderr
    assert host.failures() == set()
    assert host.left() == []


@NAMESPACES
@pytest.mark.parametrize("host", ["split"], indirect=True)
def test_in_the_split_layout_it_says_that_two_mounts_are_in_the_way_though_the_disk_is_one(host: Host) -> None:
    host.start()
    assert host.run().returncode == 0
    assert host.failures() == {CROSS}
    assert host.left() == []
    # The positive control: on the host itself the very link can be made; a trial there would have lied.
    source = Path(domain.on_host(host.wanted.settings, host.trial.sources[0])) / "x"
    source.touch()
    os.link(source, Path(domain.on_host(host.wanted.settings, host.trial.targets[0])) / "x")


@NAMESPACES
def test_a_library_on_another_disk_inside_the_tree_is_found_and_the_others_are_well(host: Host) -> None:
    host.start("mount -t tmpfs tmpfs data/media/tv")
    assert host.run().returncode == 0
    _, failures = domain.read((host.root / "state/record").read_text())
    assert {failure.target.rpartition("/")[2] for failure in failures} == {"tv"}
    assert {failure.reason for failure in failures} == {CROSS}
    assert host.left() == []


@NAMESPACES
def test_what_an_earlier_trial_left_when_it_was_killed_is_removed(host: Host) -> None:
    host.start()
    for path in (host.trial.sources[0], host.trial.targets[0]):
        (Path(domain.on_host(host.wanted.settings, path)) / domain.PROBE).write_text("x")
    assert len(host.left()) == 2
    assert host.run().returncode == 0
    assert host.failures() == set()
    assert host.left() == []


@NAMESPACES
def test_a_trial_that_is_cut_off_removes_what_it_made(host: Host) -> None:
    host.start()
    cut = 'setpriv() { shift 3; case $1 in ln) kill -KILL 0 ;; esac; "$@"; }'
    assert host.run(cut.replace("KILL", "TERM")).returncode != 0
    assert host.left() == []
    # The positive control: there is something to remove at that moment.
    assert host.run(cut).returncode != 0
    assert len(host.left()) == 1


@NAMESPACES
@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_place_where_the_media_user_may_not_write_is_told_as_that(host: Host) -> None:
    place = Path(domain.on_host(host.wanted.settings, host.trial.targets[0]))
    place.chmod(0o555)
    host.start()
    assert host.run().returncode == 0
    assert host.failures() == {"Permission denied"}


def test_a_service_that_does_not_run_is_an_error_and_no_outcome(host: Host) -> None:
    done = host.run()
    assert done.returncode == 1
    assert "service radarr does not run: hardlinks cannot be proven" in done.stderr
    assert not (host.root / "state/record").exists()
