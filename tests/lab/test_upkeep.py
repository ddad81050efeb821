"""What looks after the disks, on a real machine: hardlinks proven, permissions mended, parity refused and repaired,
swap that comes back, caches that cannot grow.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from lab.machine import Machine
from mediahost import hardlinks
from mediahost.render import caches, smart, snapraid, swap
from mediahost.stack import vault_folder
from tests.lab.home import Home, told
from tests.lab.test_storage import EXT4, PASSWORD, POOLED, USER, XFS, Store, nas, store, store_made, unstored
from tests.lab.waiting import becomes, reboot

__all__ = ["nas", "store", "store_made", "unstored"]  # pytest finds fixtures by their names here

pytestmark = [
    pytest.mark.lab,
    pytest.mark.exhaustive,
    pytest.mark.proof("Upkeep: hardlinks, permissions, parity, swap, caches", "media-host"),
]

IMPORTS = "sonarr"


@pytest.fixture
def kept(home: Home) -> Iterator[Store]:
    """The provisioned home, its media on the root disk."""
    yield Store(home)
    home.settle()


def notices(report: dict[str, Any]) -> str:
    return "\n".join(notice["what"] for notice in report["notices"])


def left(kept: Store) -> str:
    return kept.root(f"find / -xdev -name '{hardlinks.PROBE}*' 2>/dev/null || true")


# --- hardlinks


def test_the_default_layout_is_proven_by_the_first_run_and_leaves_no_file(kept: Store) -> None:
    said = kept.root(f"cat {hardlinks.RECORD_PATH}").splitlines()
    assert len(said) == 1, said
    assert left(kept) == ""
    report = kept.home.apply()
    assert report["changes"] == []
    assert "hardlinks" not in notices(report)
    # The control: what was proven can be seen from inside a container.
    inside = "cd /data && echo x >torrents/a && ln torrents/a media/tv/a && stat -c %i torrents/a media/tv/a"
    name = kept.root(f"docker ps -q --filter label=mediahost.service={IMPORTS}")
    assert len(set(kept.root(f"docker exec -u 13000:13000 {name} sh -c '{inside}'").split())) == 1


def test_on_the_layout_of_ssd_and_hdd_it_fails_with_the_right_words_and_the_run_does_not(kept: Store) -> None:
    kept.home.settle(layout="split", downloads_root="/srv/downloads")
    report = kept.home.apply()
    words = "hardlinks: the layout split cannot have them: /srv/downloads and /data/media are two mounts"
    assert words in notices(report)
    assert "imports are copies" in notices(report)
    assert left(kept) == ""
    again = kept.home.apply()
    assert again["changes"] == []
    assert words in notices(again), "it is told each time"


def test_a_library_on_a_disk_of_its_own_inside_the_tree_is_told_and_no_other(kept: Store) -> None:
    kept.root("rmdir /data/media/tv")
    kept.home.settle(storage_disks=[{**EXT4, "at": "/data/media/tv"}])
    report = kept.home.apply()
    assert "/data/torrents and /data/media/tv are on two file systems or mounts" in notices(report)
    assert "/data/media/movies" not in notices(report)
    assert left(kept) == ""
    assert kept.home.apply()["changes"] == []


def test_on_a_pool_it_passes(store: Store) -> None:  # noqa: F811
    assert "hardlinks" not in notices(store.home.apply())
    assert len(store.root(f"cat {hardlinks.RECORD_PATH}").splitlines()) == 1


def test_on_smb_it_says_exactly_when_a_link_cannot_be_made(unstored: Store, nas: Machine) -> None:  # noqa: F811
    nas.restore("clean")
    share = {"kind": "smb", "source": f"//{nas.address4}/films", "at": "/data", "account": "nas"}
    unstored.home.settle(storage_shares=[share])
    folder = vault_folder(unstored.host.name)
    for name, value in (("user", USER), ("password", PASSWORD)):
        unstored.home.mediahost("secrets", "set", f"{folder}/nas/{name}", check=True, typed=value)
    report = unstored.home.apply()
    # What the very container can do, by hand: some servers make hardlinks, most do not.
    inside = "cd /data && echo x >torrents/a && ln torrents/a media/tv/a && [ torrents/a -ef media/tv/a ]"
    name = unstored.root(f"docker ps -q --filter label=mediahost.service={IMPORTS}")
    possible = not unstored.fails(f"docker exec -u 13000:13000 {name} sh -c '{inside}'")
    assert ("hardlinks: the file system of /data/media" in notices(report)) == (not possible), notices(report)
    assert nas.run(f"sudo find /export -name '{hardlinks.PROBE}*'").stdout == ""
    assert unstored.home.changes() == []


# --- permissions


def test_what_a_user_with_a_narrow_umask_makes_can_be_changed_by_every_service(kept: Store) -> None:
    kept.root("umask 077; mkdir /data/media/tv/Show; echo x >/data/media/tv/Show/e.mkv")
    assert kept.root("stat -c %a:%G /data/media/tv/Show /data/media/tv/Show/e.mkv").split() == [
        "2775:media",
        "664:media",
    ]
    kept.root("setpriv --reuid=13000 --regid=13000 --clear-groups sh -c 'echo y >>/data/media/tv/Show/e.mkv'")
    # The control: without the default ACL the umask counts.
    kept.root("setfacl -k /data/media/tv; umask 077; echo x >/data/media/tv/closed")
    assert kept.root("stat -c %a /data/media/tv/closed") == "600"
    assert kept.home.changes() == [
        "storage | default ACLs: /data/media/tv: default ACL is missing, wanted "
        "user::rwx,group::rwx,group:13000:rwx,mask::rwx,other::r-x"
    ]
    kept.home.apply()
    assert kept.home.changes() == []


def test_a_pool_keeps_group_and_mode_on_whichever_branch_a_file_lands(store: Store) -> None:  # noqa: F811
    store.root(
        "umask 077; cd /data/media/tv; for n in $(seq 1 30); do mkdir s$n; for m in 1 2 3; do : >s$n/$m; done; done"
    )
    wrong = "find /data/media/tv -mindepth 1 \\( -type d ! -perm 2775 -o -type f ! -perm 664 \\) | head"
    assert store.root(wrong) == ""
    branches = store.root("ls -d /mnt/*/media/tv/s* | cut -d/ -f3 | sort -u").split()
    assert len(branches) > 1, "all landed on one branch: nothing is proven"
    writes = "for f in /data/media/tv/s*/1; do : >>$f || exit 1; done"
    store.root(f"setpriv --reuid=13000 --regid=13000 --clear-groups sh -c '{writes}'")
    assert store.home.changes() == []


def test_fix_permissions_mends_a_tree_follows_no_link_and_tells_first(kept: Store) -> None:
    kept.root(
        "mkdir -p /data/media/tv/Old/Season /outside && echo x >/data/media/tv/Old/Season/e.mkv && echo s >/outside/f"
        " && chmod -R go= /data/media/tv/Old /outside && chown -R root:root /data/media/tv/Old"
        " && ln -s /outside /data/media/tv/Old/link && ln -s /outside/f /data/media/tv/Old/f"
    )
    look = "stat -c '%a %U:%G' /data/media/tv/Old /data/media/tv/Old/Season/e.mkv"
    before = kept.root(look)
    dry = kept.home.command("fix-permissions", "--dry-run", "--json", str(kept.home.inventory), check=True)
    (told_dry,) = json.loads(dry.stdout)["hosts"].values()
    assert told_dry["differ"] >= 3
    assert kept.root(look) == before, "a dry run changes nothing"
    done = kept.home.mediahost("fix-permissions", check=True)
    assert "differed and were mended" in done.stdout, told(done)
    assert kept.root(look).splitlines() == ["2775 media:media", "664 media:media"]
    assert kept.root("stat -c '%a %U:%G' /outside /outside/f").splitlines() == ["700 root:root", "600 root:root"]
    again = kept.home.mediahost("fix-permissions", check=True)
    assert " 0 differed" in again.stdout, told(again)
    assert kept.home.changes() == []


def test_fix_permissions_does_nothing_below_an_absent_disk(store: Store) -> None:  # noqa: F811
    store.root("docker stop $(docker ps -q) >/dev/null; umount /data || umount -l /data")
    done = store.home.mediahost("fix-permissions")
    assert done.returncode == 1
    assert "/data: nothing is mounted there" in told(done)


# --- SnapRAID

ARRAY: dict[str, Any] = {
    **POOLED,
    "storage_disks": [EXT4, XFS, {"device": "/dev/disk/by-id/virtio-disk4", "at": "/mnt/parity", "format": True}],
    "storage_pools": [{"at": "/data", "branches": ["/mnt/disk1", "/mnt/my-disk"], "minimum_free": "50m"}],
    "snapraid_parity": ["/mnt/parity"],
}
SYNC = f"systemctl start {snapraid.SYNC_UNIT}"


# One parity gives back what one disk has lost, so the fuller one loses fifty: of 120 files it has sixty at least.
DELETE = (
    "fuller=$(for disk in /mnt/disk1 /mnt/my-disk; do echo $(ls $disk/media/movies | wc -l) $disk; done"
    " | sort -rn | head -n 1 | cut -d ' ' -f 2);"
    " cd /data/media/movies && ls $fuller/media/movies | head -n 50 | xargs rm"
)


@pytest.fixture
def array(kept: Store) -> Store:
    """Two disks as a pool, parity on a third, 120 files, synced once."""
    kept.root("find /data -xdev ! -type d -delete")
    kept.home.settle(**ARRAY)
    kept.home.apply()
    kept.root("for n in $(seq 1 120); do head -c 20000 /dev/urandom >/data/media/movies/$n; done")
    kept.root("cd /data/media/movies && sha256sum * >/root/sums")
    kept.root(SYNC)
    return kept


def test_snapraid_syncs_scrubs_and_gives_back_a_file(array: Store) -> None:
    assert array.home.changes() == []
    assert "No differences" in array.root("snapraid diff 2>&1")
    array.root("rm /data/media/movies/7 && snapraid fix -m -f /media/movies/7 >/dev/null 2>&1")
    array.root("cd /data/media/movies && sha256sum --quiet -c /root/sums")
    array.root(f"systemctl start {snapraid.SCRUB_UNIT}")
    timers = array.root("systemctl list-timers --all --no-legend 'mediahost-snapraid*'")
    assert snapraid.SYNC_TIMER in timers
    assert snapraid.SCRUB_TIMER in timers


def test_a_sync_after_many_deletions_is_refused_told_by_the_next_run_and_can_be_accepted(array: Store) -> None:
    array.root(DELETE)
    assert array.fails(SYNC)
    assert "refused: 50 files were deleted" in array.root(f"journalctl -u {snapraid.SYNC_UNIT} -o cat -n 30")
    report = array.home.apply()
    assert report["changes"] == []
    assert "mediahost-snapraid-sync failed or was refused" in notices(report)
    # Nothing is lost: the parity is that of before.
    array.root("snapraid fix -m >/dev/null 2>&1; cd /data/media/movies && sha256sum --quiet -c /root/sums")
    array.root(DELETE)
    array.root(f"{snapraid.PROGRAM_PATH} sync --accept-deletions >/dev/null 2>&1")
    assert "No differences" in array.root("snapraid diff 2>&1")


def test_without_one_of_its_disks_a_sync_is_refused_and_deletes_no_parity(array: Store) -> None:
    before = array.root("stat -c %Y:%s /mnt/parity/snapraid.parity")
    array.root("docker stop $(docker ps -q) >/dev/null; umount /data; umount /mnt/my-disk")
    assert array.fails(SYNC)
    assert "/mnt/my-disk: no disk is mounted there" in array.root(f"journalctl -u {snapraid.SYNC_UNIT} -o cat -n 30")
    assert array.root("stat -c %Y:%s /mnt/parity/snapraid.parity") == before


def test_damage_is_found_by_the_scrub_told_and_repaired(array: Store) -> None:
    array.root(
        "f=$(ls /mnt/disk1/media/movies/* | head -n 1); sha256sum $f >/root/sum; touch -r $f /root/when;"
        " printf XXXX | dd of=$f bs=1 seek=500 conv=notrunc status=none; touch -r /root/when $f"
    )
    array.root("sed -i 's/^PERCENT=.*/PERCENT=100/; s/^AGE=.*/AGE=0/' " + snapraid.PROGRAM_PATH)
    assert array.fails(f"systemctl start {snapraid.SCRUB_UNIT}")
    assert "snapraid -e fix" in array.root(f"journalctl -u {snapraid.SCRUB_UNIT} -o cat -n 30")
    # On the disk itself: the pool may have what it once read in memory.
    assert array.fails("sha256sum -c /root/sum"), "nothing was damaged"
    array.root("snapraid -e fix >/dev/null 2>&1; sha256sum --quiet -c /root/sum")
    array.root("cd /data/media/movies && sha256sum --quiet -c /root/sums")


def test_switched_off_its_timers_go_and_its_parity_stays(array: Store) -> None:
    array.home.settle(**{**ARRAY, "snapraid_parity": []})
    array.home.apply()
    assert array.home.changes() == []
    assert array.root("systemctl list-timers --all --no-legend 'mediahost-snapraid*'") == ""
    assert array.fails(f"test -e {snapraid.CONFIGURATION_PATH}")
    array.root("test -s /mnt/parity/snapraid.parity && test -s /mnt/disk1/snapraid.content")


# --- swap, SMART, trim


@pytest.mark.parametrize(("kind", "name"), [("file", swap.FILE_PATH), ("zram", "/dev/zram")])
def test_swap_is_there_after_a_boot_put_back_after_swapoff_and_gone_when_switched_off(
    kept: Store, kind: str, name: str
) -> None:
    before = kept.root("tail -n +2 /proc/swaps | awk '{print $1}'")
    kept.home.settle(swap=kind, swap_size="128m")
    kept.home.apply()
    assert kept.home.changes() == []
    assert f"{name}" in kept.root("cat /proc/swaps")
    reboot(kept.host)
    assert becomes(lambda: name in kept.root("cat /proc/swaps"))
    assert becomes(lambda: kept.home.changes() == []), kept.home.changes()
    kept.root(f"swapoff $(awk '$1 ~ \"^{name}\" {{print $1}}' /proc/swaps)")
    assert kept.home.changes() == ["upkeep | swap in use, trim, reports: swap: not in use"]
    kept.home.settle(swap=kind, swap_size="192m")
    kept.home.apply()
    assert kept.home.changes() == []
    assert int(kept.root(f"awk '$1 ~ \"^{name}\" {{print $3}}' /proc/swaps")) in range(
        192 * 1024 - 64, 192 * 1024 + 1
    )
    kept.home.settle()
    kept.home.apply()
    assert kept.root("tail -n +2 /proc/swaps | awk '{print $1}'") == before
    assert kept.fails(f"test -e {swap.FILE_PATH}")
    assert kept.home.changes() == []


def test_smartd_and_the_trim_timer_run_and_a_report_is_repeated_until_it_is_read(kept: Store) -> None:
    kept.home.settle(smart=True, trim=True)
    kept.home.apply()
    assert kept.home.changes() == []
    assert kept.root(f"systemctl is-active {smart.UNIT} fstrim.timer").split() == ["active", "active"]
    assert f"--configfile={smart.CONFIGURATION_PATH}" in kept.root("tr '\\0' ' ' </proc/$(pidof smartd)/cmdline")
    kept.root(f"SMARTD_DEVICESTRING=/dev/sdz SMARTD_MESSAGE='8 pending sectors' {smart.PROGRAM_PATH}")
    report = kept.home.apply()
    assert report["changes"] == []
    assert "/dev/sdz: 8 pending sectors" in notices(report)
    kept.root(f"rm {smart.REPORTS_PATH}")
    assert "pending sectors" not in notices(kept.home.apply())
    kept.home.settle()
    kept.home.apply()
    assert smart.CONFIGURATION_PATH not in kept.root("tr '\\0' ' ' </proc/$(pidof smartd || echo 1)/cmdline")
    assert kept.home.changes() == []


# --- caches

CACHED: dict[str, Any] = {"transcode_size": "100m", "thumbnails_size": "80m", "thumbnails_root": "/srv/my-cache/t"}


def test_a_cache_holds_its_limit_comes_back_at_boot_grows_and_leaves_its_file_when_it_goes(kept: Store) -> None:
    kept.home.settle(**CACHED)
    kept.home.apply()
    assert kept.home.changes() == []
    at = "/srv/cache/transcode"
    assert kept.root(f"stat -c %a:%G {at} /srv/my-cache/t").split() == ["2775:media", "2775:media"]
    assert kept.fails(f"head -c 200000000 /dev/zero >{at}/big"), "it grew beyond its limit"
    assert int(kept.root(f"stat -c %s {at}/big")) > 50_000_000, "it holds hardly anything"
    kept.root(f"rm {at}/big; echo x >{at}/kept")
    reboot(kept.host)
    assert kept.root(f"cat {at}/kept") == "x"
    assert becomes(lambda: kept.home.changes() == []), kept.home.changes()
    kept.home.settle(**{**CACHED, "transcode_size": "160m"})
    kept.home.apply()
    assert kept.home.changes() == []
    assert kept.root(f"cat {at}/kept") == "x"
    assert int(kept.root(f"stat -f -c '%b * %S' {at} | xargs expr")) > 130_000_000
    kept.home.settle()
    kept.home.apply()
    assert kept.root("findmnt -n -t ext4 -o TARGET | grep cache || true") == ""
    kept.root(f"test -s {at}.img")
    assert kept.fails(f"test -e {caches.TABLE_PATH}")
    assert kept.home.changes() == []


def test_a_full_cache_is_brought_to_eighty_per_cent_and_what_is_new_stays(kept: Store) -> None:
    kept.home.settle(**CACHED)
    kept.home.apply()
    at = "/srv/cache/transcode"
    kept.root(
        f'for n in $(seq 10 25); do head -c 5500000 /dev/zero >{at}/$n; touch -d "$((400 - n)) minutes ago" {at}/$n;'
        f" done; : >{at}/new; systemctl start {caches.PRUNE_UNIT}"
    )
    names = kept.root(f"ls {at}").split()
    assert {"25", "new"} <= set(names)
    assert "10" not in names
    assert "% full" in kept.root(f"journalctl -u {caches.PRUNE_UNIT} -o cat")


def test_in_memory_it_is_gone_at_boot_and_never_larger(kept: Store) -> None:
    kept.home.settle(transcode_size="64m", transcode_in="memory")
    kept.home.apply()
    assert kept.home.changes() == []
    assert kept.root("findmnt -n -o FSTYPE --mountpoint /srv/cache/transcode") == "tmpfs"
    assert kept.fails("head -c 100000000 /dev/zero >/srv/cache/transcode/big")
    reboot(kept.host)
    assert kept.root("ls /srv/cache/transcode") == ""
    assert becomes(lambda: kept.home.changes() == []), kept.home.changes()
