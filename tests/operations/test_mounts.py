"""Stage mounts: what is formatted, mounted, refused and taken back, by what the snapshot saw of a host."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from facts.snapshot import (
    BareState,
    DiskState,
    MountsState,
    MountState,
    PackageState,
    PathState,
    Request,
    Snapshot,
    UnitState,
    parse,
    script,
)
from mediahost.render import mounts as render
from mediahost.resources import Directory
from mediahost.wanted import Wanted
from operations import mounts, storage
from tests.operations.test_snapshot import RECORDED
from tests.operations.test_steps import as_present, commands, refusal, sound, told
from tests.unit.test_wanted import wanted

DEVICE = "/dev/disk/by-id/virtio-disk1"
DISK = {"device": DEVICE, "at": "/mnt/disk1", "filesystem": "ext4", "format": True}
KEPT = {"device": "UUID=2B0D1C3E-1111-4222-8333-444455556666", "at": "/mnt/disk2", "filesystem": "xfs"}
POOL = {"at": "/data", "branches": ["/mnt/disk1", "/mnt/disk2"]}
NFS = {"kind": "nfs", "source": "nas.lan:/export", "at": "/mnt/nas"}
EVERYTHING: dict[str, Any] = {"storage_disks": [DISK, KEPT], "storage_pools": [POOL], "storage_shares": [NFS]}
MOUNTED = UnitState("loaded", "active", "mounted", "enabled", needs_daemon_reload=False)
DIRECTORY = PathState("directory", "755", "0", "0", "root", "root")
SENTINEL = PathState("file", "644", "0", "0", "root", "root")


def converged(found: Wanted) -> Snapshot:
    """A host on which everything of this stage is as wanted."""
    installed = PackageState("1", installed=True, held=False)
    units = {unit: MOUNTED for mount in found.mounts for unit in (mount.unit, *mounts._automount(mount))}
    paths = as_present(*found.mount_files)
    paths |= {mount.at: DIRECTORY for mount in found.mounts} | {mount.sentinel: SENTINEL for mount in found.mounts}
    (table,) = [file.content.decode() for file in found.mount_files if file.path == render.TABLE_PATH]
    return Snapshot(
        paths=paths,
        contents={render.TABLE_PATH: table},
        packages=dict.fromkeys(render.packages(found.settings), installed),
        units={**units, render.WATCH_UNIT: MOUNTED},
        mounts=MountsState(
            mounted={
                mount.at: MountState(
                    f"/dev/vd{number}" if mount.device else f"mergerfs:{mount.at}" if mount.needs else mount.what,
                    mount.type,
                    f"fe:{number}" if mount.device else "",
                )
                for number, mount in enumerate(found.mounts)
            },
            disks={
                mount.device: DiskState(f"fe:{number}") for number, mount in enumerate(found.mounts) if mount.device
            },
        ),
    )


def without(seen: Snapshot, at: str, found: tuple[str, ...] | None = (), immutable: bool = True) -> Snapshot:
    """That host with nothing mounted at `at`; `found` is on the disk, None when the disk is not there."""
    state = seen.mounts
    mounted = {point: mount for point, mount in state.mounted.items() if point != at}
    disks = dict(state.disks)
    device = next((disk for row, _, disk in render.standing(seen.contents[render.TABLE_PATH]) if row == at), "-")
    if device not in ("-", "share"):
        disks.pop(device)
        if found is not None:
            disks[device] = DiskState("fe:90", found)
    unit = f"{render.escaped(at)}.mount"
    return replace(
        seen,
        paths={path: present for path, present in seen.paths.items() if path != render.sentinel(at)},
        units={**seen.units, unit: replace(MOUNTED, active="inactive", sub="dead")},
        mounts=replace(state, mounted=mounted, disks=disks, bare={**state.bare, at: BareState(immutable)}),
    )


# --- off and on


def test_where_nothing_is_asked_for_and_nothing_of_ours_is_there_is_nothing_to_do() -> None:
    assert mounts.steps(wanted(), Snapshot()) == []


def test_where_nothing_is_asked_for_the_snapshot_looks_at_no_disk() -> None:
    request = mounts.request(wanted())
    assert not request.mounts
    assert not request.disks
    assert not request.units


def test_a_host_as_wanted_has_nothing_to_do() -> None:
    found = wanted(**EVERYTHING)
    assert mounts.steps(found, converged(found)) == []


def test_a_bare_host_gets_programs_filesystem_units_and_mounts() -> None:
    found = wanted(storage_disks=[DISK])
    steps = mounts.steps(found, Snapshot(mounts=MountsState(disks={DEVICE: DiskState("fe:0")})))
    assert any("empty, gets ext4" in change for change in told(steps))
    assert any("/mnt/disk1: not mounted" in change for change in told(steps))
    assert "mediahost-mounts.service: unit not installed" in told(steps)
    sound(steps)


# --- formatting


def test_an_empty_disk_that_is_named_with_format_is_formatted_and_looked_at_in_the_same_command() -> None:
    found = wanted(storage_disks=[DISK])
    (step,) = mounts.format_steps(found, without(converged(found), "/mnt/disk1"))
    look, make = step.command.index("found_on /dev"), step.command.index("mkfs.ext4")
    assert look < make
    assert found.mounts[0].disk is not None
    assert found.mounts[0].disk.uuid in step.command
    sound([step])


@pytest.mark.parametrize(
    "content",
    [
        ("partition vdb1",),
        ("signature ext4 2d0dcca1-f458-464c-a5f8-a1417e99a725 photos",),
        ("signature linux_raid_member 1f nas:0",),
        ("data in the first 16 MiB",),
        ("unreadable by wipefs",),
        ("mounted at /srv/old",),
        ("in use by md0",),
    ],
)
def test_a_disk_with_anything_on_it_is_not_formatted_and_the_refusal_says_what(content: tuple[str, ...]) -> None:
    found = wanted(storage_disks=[DISK])
    steps = mounts.steps(found, without(converged(found), "/mnt/disk1", content))
    assert mounts.format_steps(found, without(converged(found), "/mnt/disk1", content)) == []
    assert content[0].removeprefix("mounted ") in refusal(steps)
    assert "mkfs" not in commands(steps)


def test_a_disk_without_format_is_never_formatted_though_it_is_empty() -> None:
    found = wanted(storage_disks=[{**DISK, "format": False}])
    steps = mounts.steps(found, without(converged(found), "/mnt/disk1"))
    assert "set format to True" in refusal(steps)
    assert "mkfs" not in commands(steps)


def test_a_disk_that_mediahost_formatted_before_is_mounted_and_not_refused() -> None:
    found = wanted(storage_disks=[DISK])
    disk = found.mounts[0].disk
    assert disk is not None
    seen = without(converged(found), "/mnt/disk1", (f"signature ext4 {disk.uuid} ", "data in the first 16 MiB"))
    steps = mounts.steps(found, seen)
    assert told(steps) == ["/mnt/disk1: not mounted"]
    assert steps[0].refusal is None


def test_another_filesystem_than_the_wanted_one_is_refused() -> None:
    found = wanted(storage_disks=[KEPT])
    steps = mounts.steps(found, without(converged(found), "/mnt/disk2", ("signature ext4 2b0d1c3e photos",)))
    assert "has no xfs on it but: signature ext4" in refusal(steps)


# --- absent, wrong, in the way


def test_an_absent_disk_is_told_by_its_name_and_mount_point_and_nothing_is_changed() -> None:
    found = wanted(**EVERYTHING)
    steps = mounts.steps(found, without(converged(found), "/mnt/disk2", None))
    assert "/mnt/disk2: disk UUID=2B0D1C3E-1111-4222-8333-444455556666 is not there" in refusal(steps)
    assert "/mnt/disk2: not mounted" in told(steps)


def test_a_plan_makes_no_guess_at_what_lies_on_an_absent_disk() -> None:
    tree = (Directory("/mnt/disk1/media", "13000", "13000", "2775"),)
    assert storage.steps(tree, Snapshot())
    assert storage.steps(tree, Snapshot(mounts=MountsState(unreachable=frozenset(("/mnt/disk1",))))) == []


def test_a_disk_that_went_while_it_was_mounted_is_told() -> None:
    found = wanted(storage_disks=[DISK])
    seen = converged(found)
    seen = replace(seen, mounts=replace(seen.mounts, disks={}))
    assert "is not there any more" in refusal(mounts.steps(found, seen))


def test_another_disk_at_the_mount_point_is_refused() -> None:
    found = wanted(storage_disks=[DISK])
    seen = converged(found)
    other = {"/mnt/disk1": MountState("/dev/vdz", "ext4", "fe:77")}
    steps = mounts.steps(found, replace(seen, mounts=replace(seen.mounts, mounted=other)))
    assert "/dev/vdz is mounted there" in refusal(steps)


def test_files_in_the_bare_mount_point_are_not_hidden_by_a_mount() -> None:
    found = wanted(storage_disks=[DISK])
    seen = without(converged(found), "/mnt/disk1")
    bare = {"/mnt/disk1": BareState(content="/mnt/disk1/photos/1.jpg")}
    assert "/mnt/disk1/photos/1.jpg" in refusal(
        mounts.steps(found, replace(seen, mounts=replace(seen.mounts, bare=bare)))
    )


def test_a_mount_point_of_fstab_is_refused_with_what_it_mounts_there() -> None:
    found = wanted(storage_disks=[DISK])
    seen = converged(found)
    fstab = "# /mnt/disk1 old\nUUID=77 /mnt/disk1/ ext4 defaults 0 2\n"
    steps = mounts.steps(found, replace(seen, contents={**seen.contents, "/etc/fstab": fstab}))
    assert "/etc/fstab mounts UUID=77 there, too" in refusal(steps)
    other = {**seen.contents, "/etc/fstab": "# UUID=77 /mnt/disk1 ext4 defaults 0 2\n/dev/vda1 / ext4 rw 0 1\n"}
    assert mounts.steps(found, replace(seen, contents=other)) == []


def test_a_share_whose_server_is_away_is_told_and_not_waited_for() -> None:
    found = wanted(storage_shares=[NFS])
    seen = converged(found)
    steps = mounts.steps(found, replace(seen, mounts=replace(seen.mounts, away=frozenset(("/mnt/nas",)))))
    assert "nas.lan:/export does not answer" in refusal(steps)


def test_a_share_that_was_written_with_a_slash_at_its_end_is_the_same_one() -> None:
    found = wanted(storage_shares=[{**NFS, "source": "nas.lan:/export/"}])
    seen = converged(found)
    listed = {"/mnt/nas": MountState("nas.lan:/export", "nfs4")}
    assert mounts.steps(found, replace(seen, mounts=replace(seen.mounts, mounted=listed))) == []
    other = {"/mnt/nas": MountState("nas.lan:/other", "nfs4")}
    steps = mounts.steps(found, replace(seen, mounts=replace(seen.mounts, mounted=other)))
    assert "nas.lan:/other is mounted there" in refusal(steps)


# --- drift


def test_a_mount_point_that_can_be_written_in_is_mended() -> None:
    found = wanted(storage_shares=[NFS])
    seen = without(converged(found), "/mnt/nas", immutable=False)
    (step,) = mounts.mount_steps(found, seen)
    assert "can be written in while nothing is mounted there" in step.change
    assert f"{render.SCRIPT_PATH} bare" in step.command


def test_what_an_earlier_tree_left_is_cleared_from_every_mount_point_before_the_first_becomes_immutable() -> None:
    found = wanted(**EVERYTHING)
    seen = converged(found)
    for mount in found.mounts:
        seen = without(seen, mount.at, immutable=False)
    first = mounts.mount_steps(found, seen)[0].command
    cleared = first[: first.index(f"systemctl -q start {render.BARE_UNIT}")]
    assert "-empty -delete" in cleared
    assert all(mount.at in cleared for mount in found.mounts)
    sound(mounts.mount_steps(found, seen))


def test_a_mount_without_its_guard_is_mended() -> None:
    found = wanted(storage_disks=[DISK])
    seen = converged(found)
    paths = {path: state for path, state in seen.paths.items() if path != render.sentinel("/mnt/disk1")}
    assert told(mounts.steps(found, replace(seen, paths=paths))) == ["/mnt/disk1: its guard does not stand"]


def test_a_mount_whose_options_changed_is_mounted_anew_and_the_plan_says_what_that_stops() -> None:
    found = wanted(storage_disks=[DISK])
    steps = mounts.mount_steps(found, replace(converged(found), pending=frozenset(("mnt-disk1.mount",))))
    assert "what uses it stops meanwhile" in steps[0].change
    assert steps[0].command.index("systemctl stop mnt-disk1.mount") < steps[0].command.index("systemctl start mnt-")


def test_a_share_is_watched_over_before_it_is_mounted_because_systemd_refuses_it_afterwards() -> None:
    found = wanted(storage_shares=[NFS])
    (step,) = mounts.mount_steps(found, without(converged(found), "/mnt/nas"))
    assert step.command.index("systemctl start mnt-nas.automount") < step.command.index(
        "systemctl start mnt-nas.mount"
    )


# --- switched off


def test_a_mount_that_is_not_wanted_any_more_loses_its_unit_and_guard_but_is_not_unmounted() -> None:
    both = wanted(storage_disks=[DISK, KEPT])
    one = wanted(storage_disks=[DISK])
    steps = mounts.retire_steps(one, converged(both))
    assert len(steps) == 1
    assert "/mnt/disk2: not wanted any more" in steps[0].change
    assert "rm -f /etc/systemd/system/mnt-disk2.mount" in steps[0].command
    assert "umount" not in steps[0].command
    assert "systemctl stop" not in steps[0].command
    sound(steps)


def test_switched_off_the_watch_goes_too_and_nothing_is_left_of_ours() -> None:
    before = wanted(storage_disks=[DISK])
    steps = mounts.steps(wanted(), converged(before))
    assert all(path in commands(steps) for path in render.PATHS)
    assert "mediahost-mounts.service: switched off, is removed" in told(steps)
    sound(steps)
    gone = Snapshot(paths={})
    assert mounts.steps(wanted(), gone) == []


# --- what the snapshot sees


def test_the_snapshot_s_words_become_mounts_disks_and_bare_directories() -> None:
    body = """#away /mnt/nas
#mounted /data mergerfs:/data fuse.mergerfs
#mounted /mnt/disk1 /dev/vdb ext4
#device fe:10 /dev/vdb
#device fe:10 /dev/disk/by-id/virtio-disk1
#device fe:20 /dev/disk/by-id/virtio-disk2
#bare /mnt/disk2 ----i---------e------- 
#bare /mnt/disk3 --------------e------- /mnt/disk3/a file
#found /dev/disk/by-id/virtio-disk2
signature ext4 2b0d my disk
data in the first 16 MiB"""
    request = replace(Request(), disks=frozenset(f"/mnt/disk{n}=/dev/disk/by-id/virtio-disk{n}" for n in (1, 2, 3)))
    start = RECORDED.index("#begin mounts") + 1
    lines = [*RECORDED[:start], *body.splitlines(), *RECORDED[start:]]
    seen = parse(lines, request).mounts
    assert seen.away == {"/mnt/nas"}
    assert seen.unreachable == {"/mnt/nas", "/mnt/disk3"}
    assert seen.hides("/mnt/disk3/photos")
    assert not seen.hides("/mnt/disk1")
    assert seen.mounted["/mnt/disk1"] == MountState("/dev/vdb", "ext4", "fe:10")
    assert seen.mounted["/data"] == MountState("mergerfs:/data", "fuse.mergerfs")
    assert seen.disks["/dev/disk/by-id/virtio-disk1"] == DiskState("fe:10")
    assert seen.disks["/dev/disk/by-id/virtio-disk2"].found == (
        "signature ext4 2b0d my disk",
        "data in the first 16 MiB",
    )
    assert "/dev/disk/by-id/virtio-disk3" not in seen.disks
    assert seen.bare == {"/mnt/disk2": BareState(True), "/mnt/disk3": BareState(False, "/mnt/disk3/a file")}


def test_the_snapshot_tells_a_mount_from_a_bare_directory_and_never_waits_for_what_answers(tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    (bare / "tree").mkdir(parents=True)
    (bare / "tree" / "photo").touch()
    request = replace(Request(), mounts=frozenset(("/proc", str(bare))), shares=frozenset(("/proc", str(bare))))
    done = subprocess.run(["sh", "-s"], input=script(request), capture_output=True, text=True, check=False)
    seen = parse(done.stdout.splitlines(), request).mounts
    assert seen.mounted["/proc"].type == "proc"
    assert seen.bare[str(bare)].content == f"{bare}/tree/photo"
    assert seen.away == frozenset()


# --- real disks


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[str]:
    """A disk of 64 MiB of its own. Needs root and a free loop device."""
    image = tmp_path / "disk"
    with image.open("wb") as file:
        file.truncate(64 * 1024**2)
    done = subprocess.run(["losetup", "-f", "--show", str(image)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip("needs root and a free loop device")
    yield done.stdout.strip()
    subprocess.run(["losetup", "-d", done.stdout.strip()], check=True)


pytest_loop = pytest.mark.skipif(
    not all(shutil.which(name) for name in ("losetup", "mkfs.ext4", "wipefs")),
    reason="needs losetup, mkfs and wipefs",
)


def formatted(loop: str) -> subprocess.CompletedProcess[str]:
    """Run the very command that formats, on that disk, as if the snapshot had seen it empty."""
    found = wanted(storage_disks=[DISK])
    (step,) = mounts.format_steps(found, without(converged(found), "/mnt/disk1"))
    command = step.command.replace(DEVICE, loop).replace("udevadm settle", "true")
    return subprocess.run(["sh", "-euc", command], capture_output=True, text=True, check=False)


@pytest.mark.kernel
@pytest_loop
def test_an_empty_disk_gets_the_filesystem_by_which_it_is_known_again(loop: str) -> None:
    done = formatted(loop)
    assert done.returncode == 0, done.stderr
    uuid = subprocess.run(
        ["blkid", "-p", "-s", "UUID", "-o", "value", loop], capture_output=True, text=True, check=True
    )
    disk = wanted(storage_disks=[DISK]).mounts[0].disk
    assert disk is not None
    assert uuid.stdout.strip() == disk.uuid


@pytest.mark.kernel
@pytest_loop
@pytest.mark.parametrize("content", ["filesystem", "a byte", "swap"])
def test_the_command_itself_refuses_a_disk_that_is_not_empty_any_more(loop: str, content: str) -> None:
    if content == "filesystem":
        subprocess.run(["mkfs.ext4", "-q", "-F", loop], check=True)
    elif content == "swap":
        subprocess.run(["mkswap", loop], check=True, capture_output=True)
    else:
        with Path(loop).open("r+b") as disk:
            disk.seek(5_000_000)
            disk.write(b"x")
    with Path(loop).open("rb") as disk:
        before = disk.read()
    done = formatted(loop)
    assert done.returncode != 0
    assert "is not empty, nothing was formatted" in done.stderr
    with Path(loop).open("rb") as disk:
        assert disk.read() == before
