"""Which mounts somebody depends on, and what of the storage keys does not go together."""

from __future__ import annotations

from typing import Any

import pytest

from mediahost.config import ConfigError, Settings, read
from mediahost.storage import mount_points, required_for, touched_by

DISK = {"device": "UUID=2B0D1C3E-1111-4222-8333-444455556666", "at": "/mnt/disk1"}
NFS = {"kind": "nfs", "source": "nas.lan:/export/media", "at": "/mnt/nas"}


def settings(**data: Any) -> Settings:
    return read("nas", data)


def everything() -> Settings:
    return settings(
        storage_disks=[DISK, {"device": "/dev/disk/by-id/ata-WDC_1", "at": "/mnt/disk2", "filesystem": "xfs"}],
        storage_pools=[{"at": "/data", "branches": ["/mnt/disk1", "/mnt/disk2"]}],
        storage_shares=[NFS],
    )


def test_mount_points_are_those_of_disks_pools_and_shares() -> None:
    assert mount_points(everything()) == ("/data", "/mnt/disk1", "/mnt/disk2", "/mnt/nas")
    assert mount_points(settings()) == ()


def test_who_uses_a_path_requires_the_mount_at_or_above_it_and_no_other() -> None:
    found = everything()
    assert required_for(["/data/media/movies"], found) == ("/data",)
    assert required_for(["/data", "/mnt/nas/films"], found) == ("/data", "/mnt/nas")
    assert required_for(["/database", "/mnt"], found) == ()


def test_who_mounts_a_directory_with_a_mount_inside_is_touched_by_it() -> None:
    inside = settings(storage_disks=[{**DISK, "at": "/data/media"}])
    assert required_for(["/data"], inside) == ()
    assert touched_by(["/data"], inside) == ("/data/media",)
    assert touched_by(["/data/torrents"], inside) == ()


def test_a_uuid_becomes_the_name_that_udev_gives_it() -> None:
    assert everything().storage_disks[0].path == "/dev/disk/by-uuid/2b0d1c3e-1111-4222-8333-444455556666"
    assert everything().storage_disks[1].path == "/dev/disk/by-id/ata-WDC_1"


def test_two_disks_never_get_the_same_uuid_and_one_gets_the_same_each_time() -> None:
    one, other = everything().storage_disks
    assert one.uuid != other.uuid
    assert one.uuid == everything().storage_disks[0].uuid


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ({"storage_disks": [DISK, {**DISK, "device": "/dev/disk/by-id/x"}]}, "mount point of more than one"),
        ({"storage_disks": [DISK, {**DISK, "at": "/mnt/disk2"}]}, "named twice"),
        ({"storage_disks": [DISK], "storage_shares": [{**NFS, "at": "/mnt/disk1"}]}, "more than one"),
        ({"storage_pools": [{"at": "/data", "branches": ["/mnt/a", "/mnt/a"]}]}, "a branch is named twice"),
        ({"storage_shares": [{**NFS, "at": "/opt/media-server"}]}, "databases break there"),
    ],
)
def test_storage_that_does_not_go_together_is_told_with_the_mend(data: Any, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        settings(**data)
