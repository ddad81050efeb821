"""Disks, pools and shares on a real machine: formatted, mounted, missing at boot, pulled while in use, full, refused.

The host has four empty disks of 1 GiB. What is proven of the guard is always two things: that nothing was written
below an absent mount, and that it could have been (a write is tried as root, and succeeds where the mount is there).
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from lab import faults
from lab.machine import Machine
from mediahost.render import mounts
from mediahost.stack import vault_folder
from tests.lab.conftest import PROVISIONED, MakeMachine, brought_to
from tests.lab.home import Home, Report, told
from tests.lab.waiting import becomes, reboot

pytestmark = [
    pytest.mark.lab,
    pytest.mark.proof(
        "Storage: what is mounted, what is missing, and what is never written or formatted", "media-host"
    ),
]

BY_ID = "/dev/disk/by-id/virtio-disk"
EXT4 = {"device": f"{BY_ID}1", "at": "/mnt/disk1", "filesystem": "ext4", "format": True}
XFS = {"device": f"{BY_ID}2", "at": "/mnt/my-disk", "filesystem": "xfs", "format": True}
BTRFS = {"device": f"{BY_ID}3", "at": "/mnt/disk3", "filesystem": "btrfs", "format": True}
POOL = {"at": "/data", "branches": ["/mnt/disk1", "/mnt/my-disk", "/mnt/disk3"], "minimum_free": "50m"}
POOLED: dict[str, Any] = {
    "storage_disks": [EXT4, XFS, BTRFS],
    "storage_pools": [POOL],
}
STORED = "stored"
USES_DATA, USES_NOTHING = "sonarr", "caddy"
USER, PASSWORD = "films", "s3cret-of-the-share"  # noqa: S105 - a stand-in's


@dataclass
class Store:
    """The host with its disks, as the owner and as root see it."""

    home: Home
    made: dict[str, str] = field(default_factory=dict)

    @property
    def host(self) -> Machine:
        return self.home.machine

    def root(self, command: str, check: bool = True) -> str:
        """What a shell of root prints."""
        return self.host.run(["sudo", "sh", "-c", command], check=check).stdout.strip()

    def fails(self, command: str) -> bool:
        """Whether root cannot do it."""
        return self.host.run(["sudo", "sh", "-c", command], check=False).returncode != 0

    def mounted(self, at: str) -> str:
        """Source and type of what is mounted there, autofs aside; nothing when nothing is."""
        return self.root(f"findmnt -n -o SOURCE,FSTYPE --mountpoint {at} -t noautofs || true")

    def container(self, service: str) -> str:
        """State of a service's container."""
        return self.root(f"docker ps -a --filter label=mediahost.service={service} --format '{{{{.State}}}}'")

    def runs(self, service: str, limit: float = 240) -> bool:
        return becomes(lambda: self.container(service) == "running", limit=limit)

    def rests(self, service: str, limit: float = 240) -> bool:
        return becomes(lambda: self.container(service) in ("exited", "created"), limit=limit)

    def changes(self) -> list[str]:
        """What a plan tells, refusals as well: with one of them it does not end as one of differences does."""
        result = self.home.mediahost("plan", "--json")
        assert result.stdout.startswith("{"), told(result)
        plan = json.loads(result.stdout)
        return [each["what"] for each in (*plan["changes"], *plan["refused"])]

    def refused(self) -> str:
        """What a run said that could not do its work; it must not have."""
        result = self.home.mediahost("apply", "--json")
        assert result.returncode not in (0, 2), told(result)
        return told(result)

    def cannot_be_written(self, at: str) -> None:
        """Nobody can write in the bare directory, and nobody has."""
        assert self.mounted(at) == ""
        assert self.fails(f"touch {at}/written"), f"root could write below {at}"
        assert self.root(f"find {at} -mindepth 1") == ""

    def can_be_written(self, at: str) -> None:
        """The control: the same write, where the mount is there."""
        assert self.mounted(at) != ""
        self.root(f"touch {at}/written && rm {at}/written")

    def start(self) -> None:
        """Power on after `shutdown`, and tell the inventory where it is now."""
        self.host.start()
        self.host.wait_until_ready()
        self.home.write_inventory()

    def heals(self, limit: float = 300) -> None:
        """By itself, without a run: everything mounted, everybody back, and the plan empty."""
        assert self.runs(USES_DATA, limit)
        assert becomes(lambda: self.changes() == [], limit), self.changes()
        self.can_be_written("/data")


def _empty_tree(store: Store) -> None:
    """What the first run on the root disk left in /data: a mount would hide it, and is refused for it."""
    store.root("find /data -xdev ! -type d -delete")


@pytest.fixture(scope="session")
def store_made(provisioned: Home) -> Store:
    """The provisioned home, its media on a pool of three disks of three filesystems."""
    store = Store(provisioned)

    def first_run() -> Report:
        provisioned.machine.restore(PROVISIONED)
        provisioned.settle(**POOLED)
        _empty_tree(store)
        return provisioned.apply()

    report = brought_to(provisioned, STORED, first_run)
    store.made = {change["what"]: change["operation"] for change in report["changes"]}
    return store


@pytest.fixture
def store(store_made: Store) -> Iterator[Store]:
    """That host, freshly restored."""
    store_made.host.restore(STORED)
    store_made.home.settle(**POOLED)
    yield store_made
    store_made.home.settle()


@pytest.fixture
def unstored(provisioned: Home) -> Iterator[Store]:
    """The provisioned home without any mount, its disks empty."""
    provisioned.machine.restore(PROVISIONED)
    store = Store(provisioned)
    _empty_tree(store)
    yield store
    provisioned.settle()


# --- what is there


@pytest.mark.exhaustive
def test_three_filesystems_and_a_pool_are_made_and_a_second_run_changes_nothing(store: Store) -> None:
    for filesystem in ("ext4", "xfs", "btrfs"):
        assert any(f"empty, gets {filesystem}" in change for change in store.made), store.made
    assert store.mounted("/mnt/disk1").split() == ["/dev/vdb", "ext4"]
    assert store.mounted("/mnt/my-disk").split()[1] == "xfs"
    assert store.mounted("/mnt/disk3").split()[1] == "btrfs"
    assert store.mounted("/data").split() == ["mergerfs:/data", "fuse.mergerfs"]
    assert "noatime" in store.root("findmnt -n -o OPTIONS --mountpoint /mnt/disk1")
    assert store.changes() == []
    assert store.home.apply()["changes"] == []


@pytest.mark.exhaustive
def test_everything_is_mounted_again_after_a_boot_and_a_plan_finds_nothing(store: Store) -> None:
    store.root("echo kept >/data/media/kept")
    reboot(store.host)
    assert store.root("cat /data/media/kept") == "kept"
    assert store.runs(USES_DATA)
    assert becomes(lambda: store.changes() == []), store.changes()


@pytest.mark.exhaustive
def test_a_hardlink_inside_the_pool_is_one_file_in_a_container_too(store: Store) -> None:
    # Of the first name the kernel remembers for a second that it was the only one.
    inside = "cd /data && echo x >torrents/a && ln torrents/a media/a && sleep 2 && stat -c %i:%h torrents/a media/a"
    name = store.root(f"docker ps -q --filter label=mediahost.service={USES_DATA}")
    first, second = store.root(f"docker exec -u 13000:13000 {name} sh -c '{inside}'").split()
    assert first == second
    assert first.endswith(":2")


# --- formatting

# A partition table with one entry: type 83, 2048 blocks in, 20480 long. No partitioning tool is in a bare Debian.
_PARTITION = (
    "printf '\\0\\0\\2\\0\\203\\0\\0\\0\\0\\10\\0\\0\\0\\120\\0\\0' | dd of={0} bs=1 seek=446 status=none && "
    "printf '\\125\\252' | dd of={0} bs=1 seek=510 status=none && "
    # udev looks at a disk that was written to, and at each of its partitions; the kernel reads no table meanwhile.
    "for n in 1 2 3 4 5; do udevadm settle; ! blockdev --rereadpt {0} || break; done; "
    "grep -qw vde1 /proc/partitions"
)


@pytest.mark.parametrize(
    ("prepare", "says"),
    [
        pytest.param("mkfs.ext4 -q -L photos {}", "signature ext4", id="filesystem"),
        pytest.param(_PARTITION, "partition vde1", id="partition"),
        pytest.param("mkswap {}", "signature swap", id="swap"),
        pytest.param(
            "printf x | dd of={} bs=1 seek=5000000 conv=notrunc status=none", "data in the first", id="bytes"
        ),
        pytest.param("mkfs.ext4 -q {0} && mkdir -p /old && mount -o ro {0} /old", "mounted at /old", id="in use"),
    ],
)
@pytest.mark.exhaustive
def test_a_disk_with_data_is_refused_with_what_is_on_it_and_not_a_byte_is_changed(
    unstored: Store, prepare: str, says: str
) -> None:
    device = f"{BY_ID}4"
    unstored.root(prepare.format(device) + " && udevadm settle && sync")
    before = unstored.root(f"sha256sum <{device}")
    unstored.home.settle(storage_disks=[{"device": device, "at": "/mnt/disk4", "format": True}])
    assert any(says in change for change in unstored.changes())
    refusal = unstored.refused()
    assert says in refusal
    assert "take format out" in refusal or "Free it there" in refusal
    assert unstored.root(f"sync; sha256sum <{device}") == before
    assert unstored.container(USES_DATA) == "running"


@pytest.mark.exhaustive
def test_a_disk_that_holds_data_is_used_as_it_is_without_format(unstored: Store) -> None:
    device = f"{BY_ID}4"
    unstored.root(
        f"mkfs.ext4 -q {device} && mount {device} /mnt && echo mine >/mnt/photo && umount /mnt && udevadm settle"
    )
    uuid = unstored.root(f"blkid -s UUID -o value {device}")
    unstored.home.settle(storage_disks=[{"device": f"UUID={uuid.upper()}", "at": "/mnt/disk4"}])
    unstored.home.apply()
    assert unstored.root("cat /mnt/disk4/photo") == "mine"
    assert unstored.changes() == []


def test_a_wrong_uuid_is_refused_before_anything_is_changed(unstored: Store) -> None:
    wrong = "UUID=00000000-1111-4222-8333-444455556666"
    unstored.home.settle(storage_disks=[{"device": wrong, "at": "/data"}])
    assert any(f"disk {wrong} is not there" in change for change in unstored.changes())
    refusal = unstored.refused()
    assert f"/data: disk {wrong} is not there" in refusal
    assert "lsblk" in refusal
    assert unstored.root("ls /etc/systemd/system/data.mount 2>/dev/null || true") == ""
    assert unstored.container(USES_DATA) == "running"


def test_files_that_a_mount_would_hide_are_told_and_stay(unstored: Store) -> None:
    unstored.root("echo mine >/data/media/photo")
    unstored.home.settle(storage_disks=[{**EXT4, "at": "/data"}])
    assert "/data/media/photo, which a mount would hide" in unstored.refused()
    assert unstored.root("cat /data/media/photo") == "mine"


# --- missing, pulled, back


@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.exhaustive
def test_without_a_disk_the_host_boots_nobody_who_needs_it_runs_and_plugged_in_it_heals(
    store: Store, number: int
) -> None:
    at = POOLED["storage_disks"][number - 1]["at"]
    store.can_be_written("/data")
    store.host.shutdown()
    with faults.disk_removed(store.host, number):
        store.start()
        assert store.runs(USES_NOTHING)
        assert store.container(USES_DATA) in ("exited", "created")
        store.cannot_be_written("/data")
        store.cannot_be_written(at)
        changes = store.changes()
        assert any(f"{at}: disk {BY_ID}{number} is not there" in change for change in changes), changes
        assert "Plug it in" in store.refused()
        # Also by hand, and however often: the engine itself refuses.
        name = store.root(f"docker ps -aq --filter label=mediahost.service={USES_DATA}")
        assert store.fails(f"docker start {name}")
    store.heals()


@pytest.mark.exhaustive
def test_a_disk_that_is_pulled_while_it_is_written_to_takes_its_users_down_and_brings_them_back(store: Store) -> None:
    store.root("echo kept >/mnt/my-disk/kept && sync")
    store.root("nohup sh -c 'while sleep 0.2; do date >>/data/media/growing; done' </dev/null >/dev/null 2>&1 &")
    with faults.disk_removed(store.host, 2):
        assert store.rests(USES_DATA)
        # All who use it have to stop before it is unmounted, and some take their time.
        assert becomes(lambda: store.mounted("/data") == "" and store.mounted("/mnt/my-disk") == "", limit=300)
        store.cannot_be_written("/data")
        store.cannot_be_written("/mnt/my-disk")
        assert store.container(USES_NOTHING) == "running"
        assert any(f"{BY_ID}2 is not there" in change for change in store.changes())
    # Brackets: else it would find itself, in the shell that calls it.
    store.root("pkill -f media/growin[g]")
    store.heals()
    assert store.root("cat /mnt/my-disk/kept") == "kept"


@pytest.mark.exhaustive
def test_a_boot_after_the_users_were_stopped_starts_them_all_the_same(store: Store) -> None:
    """The engine does not start at boot what somebody stopped, and for it the guard is somebody."""
    with faults.disk_removed(store.host, 1):
        assert store.rests(USES_DATA)
        store.host.shutdown()
    store.start()
    store.heals()


@pytest.mark.exhaustive
def test_who_was_stopped_by_a_person_stays_stopped_when_the_disk_comes_back(store: Store) -> None:
    name = store.root("docker ps -q --filter label=mediahost.service=radarr")
    store.root(f"docker stop {name}")
    with faults.disk_removed(store.host, 1):
        assert store.rests(USES_DATA)
    assert store.runs(USES_DATA)
    assert store.container("radarr") == "exited"


@pytest.mark.exhaustive
def test_a_disk_that_is_unmounted_in_order_takes_its_users_down_and_stays_away_until_a_run(store: Store) -> None:
    store.root("systemctl stop mnt-disk1.mount")
    assert store.rests(USES_DATA, limit=5)
    time.sleep(40)  # the watch has looked meanwhile
    store.cannot_be_written("/data")
    store.cannot_be_written("/mnt/disk1")
    assert any("/mnt/disk1: not mounted" in change for change in store.changes())
    store.home.apply()
    store.heals()
    assert store.root("journalctl -b -u 'mediahost-mounted@data' --no-pager | grep -c 'is stopped until'") != "0"


# --- full, drift, changed, off


@pytest.mark.exhaustive
def test_a_full_disk_changes_nothing_for_a_run(store: Store) -> None:
    with faults.disk_full(store.host, "/mnt/disk1"), faults.disk_full(store.host, "/mnt/my-disk"):
        with faults.disk_full(store.host, "/mnt/disk3"):
            assert store.fails("dd if=/dev/zero of=/data/media/more bs=1M count=8")
            assert store.changes() == []
            assert store.home.apply()["changes"] == []
        assert not store.fails("dd if=/dev/zero of=/data/media/more bs=1M count=8")


@pytest.mark.parametrize(
    ("breaks", "says"),
    [
        pytest.param("rm /run/mediahost/mounted/data/here", "/data: its guard does not stand", id="sentinel"),
        pytest.param("systemctl disable -q data.mount", "/data: not mounted at boot", id="disabled"),
        pytest.param("systemctl stop mediahost-mounts.service", "mediahost-mounts.service: inactive", id="watch"),
        pytest.param("rm /usr/local/lib/mediahost/mounts", "/usr/local/lib/mediahost/mounts: missing", id="script"),
    ],
)
@pytest.mark.exhaustive
def test_drift_of_the_guard_is_named_and_mended(store: Store, breaks: str, says: str) -> None:
    store.root("systemctl stop mediahost-mounts.service")  # it would mend some of it first
    store.root(breaks)
    assert any(says in change for change in store.changes()), store.changes()
    store.home.apply()
    assert store.changes() == []


@pytest.mark.exhaustive
def test_other_options_are_taken_into_use_and_the_plan_says_what_stops_meanwhile(store: Store) -> None:
    store.home.settle(**{**POOLED, "storage_disks": [{**EXT4, "options": ["commit=60"]}, XFS, BTRFS]})
    assert any("mnt-disk1.mount: content differs" in change for change in store.changes())
    store.home.apply()
    assert "commit=60" in store.root("findmnt -n -o OPTIONS --mountpoint /mnt/disk1")
    store.heals()


@pytest.mark.exhaustive
def test_what_is_taken_out_is_not_unmounted_and_its_data_and_the_bare_directory_are_free_after_a_boot(
    store: Store,
) -> None:
    store.root("echo kept >/data/media/kept")
    store.home.settle()
    changes = store.changes()
    assert any("/data: not wanted any more" in change for change in changes), changes
    store.home.apply()
    assert store.mounted("/data") != ""
    assert store.root("cat /data/media/kept") == "kept"
    assert store.root(f"ls {' '.join(mounts.PATHS)} /etc/systemd/system/*.mount 2>/dev/null || true") == ""
    assert store.changes() == []
    reboot(store.host)
    assert store.mounted("/data") == ""
    store.home.apply()  # the tree, on the root disk again
    store.root("touch /data/media/written")
    store.home.settle(**POOLED)
    _empty_tree(store)
    store.home.apply()
    assert store.root("cat /data/media/kept") == "kept"


# --- shares


@pytest.fixture(scope="session")
def nas(make_machine: MakeMachine) -> Machine:
    """A machine that serves one directory by NFS and another by SMB."""
    return make_machine("nas", memory_mib=768, prepare=_equip_nas)


def _equip_nas(machine: Machine) -> None:
    install = "apt-get -qq install -y --no-install-recommends nfs-kernel-server samba"
    machine.run(f"sudo apt-get -qq update && sudo DEBIAN_FRONTEND=noninteractive {install}")
    script = f"""set -eu
mkdir -p /export/media /export/films
chmod 0777 /export/films
echo '/export/media 10.77.0.0/24(rw,no_root_squash,no_subtree_check)' >/etc/exports
exportfs -ra
useradd -M -s /usr/sbin/nologin {USER}
printf '%s\\n%s\\n' '{PASSWORD}' '{PASSWORD}' | smbpasswd -s -a {USER}
printf '[films]\\n path = /export/films\\n read only = no\\n valid users = {USER}\\n' >>/etc/samba/smb.conf
systemctl restart nfs-server smbd
"""
    machine.run(["sudo", "sh", "-c", script])


@pytest.fixture
def shared(unstored: Store, nas: Machine) -> Store:
    """The host with its media on the NFS share."""
    nas.restore("clean")
    unstored.home.settle(
        storage_shares=[{"kind": "nfs", "source": f"{nas.address4}:/export/media", "at": "/data"}],
    )
    unstored.home.apply()
    return unstored


@pytest.mark.exhaustive
def test_nfs_is_mounted_hard_in_version_4_2_on_first_use_and_a_second_run_changes_nothing(shared: Store) -> None:
    options = shared.root("findmnt -n -o OPTIONS --mountpoint /data -t nfs4,nfs")
    assert {"vers=4.2", "hard", "noatime"} <= set(options.split(","))
    assert shared.root("systemctl is-active data.automount") == "active"
    assert shared.runs(USES_DATA)
    assert shared.changes() == []


@pytest.mark.exhaustive
def test_a_server_that_goes_is_waited_for_by_who_writes_and_told_by_the_plan(shared: Store, nas: Machine) -> None:
    with faults.paused(nas):
        assert any("does not answer" in change for change in shared.changes())
        assert "does not answer" in shared.refused()
        assert shared.root("timeout -s KILL 10 touch /data/media/late; echo $?") == "137"
    assert becomes(lambda: shared.changes() == [], 300), shared.changes()
    shared.root("echo kept >/data/media/kept")
    assert nas.run("sudo cat /export/media/media/kept").stdout == "kept\n"
    assert shared.container(USES_DATA) == "running"


@pytest.mark.exhaustive
def test_a_server_that_was_away_at_boot_is_tried_until_it_is_back(shared: Store, nas: Machine) -> None:
    shared.host.shutdown()
    with faults.paused(nas):
        shared.start()
        assert shared.runs(USES_NOTHING)
        assert shared.container(USES_DATA) in ("exited", "created")
        # Nothing under the automount, and root cannot change that; a write would wait for the server.
        assert shared.root("timeout -s KILL 20 touch /data/written; echo $?") != "0"
    shared.heals(400)
    assert nas.run("sudo ls /export/media").stdout.split().count("written") == 0


@pytest.mark.exhaustive
def test_smb_is_mounted_with_credentials_that_root_alone_reads_and_no_password_is_shown(
    unstored: Store, nas: Machine
) -> None:
    nas.restore("clean")
    share = {"kind": "smb", "source": f"//{nas.address4}/films", "at": "/mnt/films", "account": "nas"}
    unstored.home.settle(storage_shares=[share])
    folder = vault_folder(unstored.host.name)
    for name in ("user", "password"):  # the vault may be that of an earlier session
        unstored.home.mediahost("secrets", "delete", f"{folder}/nas/{name}")
    missing = unstored.home.mediahost("plan")
    assert "mediahost secrets set" in told(missing)
    for name, value in (("user", USER), ("password", PASSWORD)):
        unstored.home.mediahost("secrets", "set", f"{folder}/nas/{name}", check=True, typed=value)
    result = unstored.home.mediahost("apply")
    assert result.returncode == 0, told(result)
    assert PASSWORD not in told(result)
    assert unstored.root("stat -c %a:%U /etc/mediahost/credentials/nas") == "600:root"
    assert PASSWORD not in unstored.root(
        "findmnt -n -o OPTIONS --mountpoint /mnt/films; systemctl cat mnt-films.mount"
    )
    unstored.root("setpriv --reuid 13000 --regid 13000 --clear-groups touch /mnt/films/mine")
    assert re.search(r"\bmine\b", nas.run("sudo ls /export/films").stdout)
    assert unstored.changes() == []
