"""What systemd is told of disks, pools and shares, and how containers are tied to them."""

from __future__ import annotations

import shutil
import subprocess
from typing import Any

import pytest
import yaml

from mediahost.config import ConfigError, Settings, read
from mediahost.render import firewall, mounts
from mediahost.resources import File
from mediahost.stack import GIVEN
from mediahost.wanted import Wanted, build
from tests.unit.test_storage import DISK, NFS
from tests.unit.test_wanted import CATALOG, secret, wanted

SMB = {"kind": "smb", "source": "//nas/films", "at": "/mnt/films", "account": "nas"}
BY_ID = {"device": "/dev/disk/by-id/ata-WDC_WD-1", "at": "/mnt/my-disk", "filesystem": "xfs"}
POOL = {"at": "/data", "branches": ["/mnt/disk1", "/mnt/my-disk"]}
PATHS = ["/data", "/mnt/my-disk", "/mnt/a@b+c_d/.x", "/.hidden", "/dev/disk/by-id/ata-WDC_WD-1:0"]


def settings(**data: Any) -> Settings:
    return read("nas", data)


def everything(**more: Any) -> Settings:
    return settings(storage_disks=[DISK, BY_ID], storage_pools=[POOL], storage_shares=[NFS, SMB], **more)


def text(path: str, found: Settings) -> str:
    (file,) = [file for file in mounts.files(found) if file.path == path]
    return file.content.decode()


def unit(name: str, found: Settings) -> dict[str, list[str]]:
    """The words of a unit file by key, all its lines together."""
    keys: dict[str, list[str]] = {}
    for line in text(f"/etc/systemd/system/{name}", found).splitlines():
        key, equals, value = line.partition("=")
        if equals:
            keys.setdefault(key, []).extend(value.split())
    return keys


# --- names


@pytest.mark.skipif(shutil.which("systemd-escape") is None, reason="systemd is not installed here")
@pytest.mark.parametrize("path", PATHS)
def test_a_path_is_escaped_as_systemd_does_it(path: str) -> None:
    escaped = subprocess.run(["systemd-escape", "--path", path], capture_output=True, text=True, check=True).stdout
    assert mounts.escaped(path) == escaped.strip()


@pytest.mark.parametrize("path", PATHS)
def test_an_escaped_path_leads_back_to_it(path: str) -> None:
    assert mounts.unescaped(f"{mounts.escaped(path)}.mount") == path


# --- units


def test_where_nothing_is_mounted_there_is_no_file_and_no_package() -> None:
    assert mounts.files(settings()) == ()
    assert mounts.packages(settings()) == ()


def test_programs_are_asked_for_by_what_is_mounted_and_fuse_is_left_to_mergerfs() -> None:
    """Debian 12's mergerfs depends on fuse, Debian 13's on fuse3, and the two exclude each other."""
    assert mounts.packages(everything()) == ("cifs-utils", "e2fsprogs", "mergerfs", "nfs-common", "xfsprogs")


def test_a_boot_goes_on_without_a_disk_and_waits_for_it_no_longer_than_said() -> None:
    found = everything(storage_device_timeout=20)
    disk = unit("mnt-disk1.mount", found)
    assert disk["Options"] == ["noatime,nofail,nodev,nosuid"]
    assert "RequiredBy" not in disk
    assert disk["WantedBy"][0] == "multi-user.target"
    device = r"dev-disk-by\x2duuid-2b0d1c3e\x2d1111\x2d4222\x2d8333\x2d444455556666.device"
    assert "JobRunningTimeoutSec=20s" in text(f"/etc/systemd/system/{device}.d/60-mediahost.conf", found)


def test_a_disk_goes_with_its_device_and_comes_with_it() -> None:
    disk = unit(r"mnt-my\x2ddisk.mount", everything())
    device = r"dev-disk-by\x2did-ata\x2dWDC_WD\x2d1.device"
    assert device in disk["BindsTo"]
    assert device in disk["WantedBy"]


def test_only_a_filesystem_that_does_not_check_itself_is_checked_before() -> None:
    assert any(name.startswith("systemd-fsck@") for name in unit("mnt-disk1.mount", everything())["Requires"])
    assert "Requires" not in unit(r"mnt-my\x2ddisk.mount", everything())


def test_a_pool_is_whole_or_absent() -> None:
    pool = unit("data.mount", everything())
    assert pool["BindsTo"] == ["mnt-disk1.mount", r"mnt-my\x2ddisk.mount"]
    assert set(pool["BindsTo"]) <= set(pool["After"])
    assert pool["What"] == ["/mnt/disk1:/mnt/my-disk"]


def test_mergerfs_gets_no_option_that_it_refuses_and_those_that_older_ones_need() -> None:
    options = unit("data.mount", everything())["Options"][0].split(",")
    assert "nofail" not in options
    assert {"allow_other", "use_ino", "posix_acl=true", "category.create=pfrd", "minfreespace=20G"} <= set(options)


def test_nfs_is_hard_of_version_4_2_and_mounted_on_first_use() -> None:
    share = unit("mnt-nas.mount", everything())
    assert {"vers=4.2", "hard", "noatime", "nofail", "_netdev"} <= set(share["Options"][0].split(","))
    assert unit("mnt-nas.automount", everything())["Where"] == ["/mnt/nas"]


def test_the_password_of_a_share_stands_in_a_file_for_root_alone_and_nowhere_else() -> None:
    file = mounts.credentials_file("nas", "ann", "pa$$ word")
    assert (file.mode, file.owner, file.secret) == ("0600", "root", True)
    assert b"username=ann\npassword=pa$$ word\n" in file.content
    share = unit("mnt-films.mount", everything())
    assert f"credentials={file.path}" in share["Options"][0].split(",")
    assert "pa$$" not in str(share)


def test_every_mount_comes_after_those_it_needs() -> None:
    nested = settings(
        storage_disks=[{**DISK, "at": "/data/media"}, BY_ID],
        storage_pools=[{"at": "/data", "branches": ["/mnt/my-disk"]}],
    )
    order = [mount.at for mount in mounts.wanted(nested)]
    assert order == ["/mnt/my-disk", "/data", "/data/media"]
    assert [mount.at for mount in mounts.wanted(everything())][-1] == "/data"


def test_only_the_engine_s_own_disk_is_required_by_the_engine() -> None:
    path = "/etc/systemd/system/docker.service.d/60-mediahost-mounts.conf"
    assert "RequiresMountsFor" not in text(path, everything())
    assert "data.mount" in text(path, everything())
    own = settings(
        storage_disks=[{**DISK, "at": "/srv/docker"}], docker_daemon_extra={"data-root": "/srv/docker/engine"}
    )
    assert "RequiresMountsFor=/srv/docker/engine" in text(path, own)
    assert "nosuid" not in unit("srv-docker.mount", own)["Options"][0]


def test_the_table_tells_a_later_run_what_was_mounted() -> None:
    rows = mounts.standing(text(mounts.TABLE_PATH, everything()))
    assert ("/data", "data.mount", "-") in rows
    assert ("/mnt/my-disk", r"mnt-my\x2ddisk.mount", "/dev/disk/by-id/ata-WDC_WD-1") in rows
    assert ("/mnt/nas", "mnt-nas.mount", "share") in rows
    assert len(rows) == 5


def test_where_nothing_may_leave_the_host_its_shares_still_work() -> None:
    def out(**data: Any) -> set[str]:
        rules = firewall.host_rules(settings(firewall_outbound="deny", **data), (), (22,))
        return {rule.port for rule in rules if rule.direction == "out" and rule.comment.endswith("shares")}

    assert out() == set()
    assert out(storage_shares=[NFS, SMB]) == {"2049", "445"}


# --- containers


def volumes(found: Wanted, service: str) -> list[dict[str, Any]]:
    (compose,) = [file for file in found.stack_files if file.path.endswith("/compose.yaml")]
    volumes: list[dict[str, Any]] = yaml.safe_load(compose.content)["services"][service].get("volumes", [])
    return volumes


def test_a_container_mounts_the_sentinel_of_what_it_needs_and_the_engine_must_not_make_it() -> None:
    found = wanted(storage_disks=[{**DISK, "at": "/data"}])
    (guard,) = [each for each in volumes(found, "sonarr") if each["source"].startswith(mounts.SENTINELS)]
    assert guard["source"] == guard["target"] == "/run/mediahost/mounted/data/here"
    assert guard["read_only"] is True
    assert guard["bind"] == {"create_host_path": False}


def test_a_container_that_needs_no_mount_is_the_same_as_without_one() -> None:
    before, after = wanted(), wanted(storage_disks=[{**DISK, "at": "/data"}])
    digests = {container.service: container.digest for container in before.containers}
    same = {container.service for container in after.containers if container.digest == digests[container.service]}
    assert "caddy" in same
    assert "sonarr" not in same


def test_a_mount_inside_what_a_container_has_holds_it_back_too() -> None:
    found = wanted(storage_disks=[{**DISK, "at": "/data/media"}])
    assert any("/mounted/data/media/here" in each["source"] for each in volumes(found, "sonarr"))


# --- the vault


def given(entry: str, kind: str) -> str:
    return {"nas/nas/user": "ann", "nas/nas/password": "word"}[entry] if kind == GIVEN else secret(entry, kind)


def test_user_and_password_of_a_share_come_from_the_vault() -> None:
    found = build("nas", settings(storage_shares=[SMB]), CATALOG, given)
    files: list[File] = [file for file in found.mount_files if file.path == "/etc/mediahost/credentials/nas"]
    assert files == [mounts.credentials_file("nas", "ann", "word")]
    assert "word" not in repr(found.mount_files)


def test_a_share_without_its_vault_entries_is_told_with_the_command_that_makes_them() -> None:
    with pytest.raises(ConfigError, match="mediahost secrets set nas/nas/user"):
        wanted(storage_shares=[SMB])


def test_every_file_of_a_mount_is_owned() -> None:
    found = build("nas", everything(), CATALOG, given)
    assert {file.path for file in found.mount_files} <= set(found.owned)
    assert len(found.mount_files) > len(mounts.PATHS)
