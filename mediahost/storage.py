"""Disks, pools and shares of a host as the configuration names them, and who depends on which of their mounts.

Values and pure questions only. `mediahost.render.mounts` turns them into systemd's units, `operations.mounts`
compares those with a host. Which paths a service needs is asked with `required_for` and `touched_by`.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from mediahost.paths import AbsolutePath, below

if TYPE_CHECKING:
    from mediahost.config import Settings

_BY_ID = "/dev/disk/by-id/"
_DEVICE = re.compile(rf"UUID=([0-9A-Fa-f-]{{4,36}})|{_BY_ID}([A-Za-z0-9_.:+-]+)")
_OPTION = re.compile(r"[A-Za-z0-9_.-]+(=[A-Za-z0-9_.:/@+-]+)?")
_NFS = re.compile(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:]+\]):/[A-Za-z0-9_./@+-]*")
_SMB = re.compile(r"//[A-Za-z0-9._-]+/[A-Za-z0-9_.$-]+(/[A-Za-z0-9_.$-]+)*")
_SIZE = re.compile(r"[0-9]+[KMGTkmgt]")
# A mount there would hide what the system or mediahost itself needs.
_NOT_BELOW = ("/boot", "/etc", "/usr", "/var/lib/dpkg", "/var/lib/mediahost", "/var/lib/systemd")

# Names the UUID of a filesystem that mediahost makes on a disk, by the disk's own name, which has its serial number.
_NAMESPACE = uuid.UUID("6f0d5f0c-3c1e-5a55-9a0e-6d6564696168")

# Policies of mergerfs(1) that choose where a new file goes. The `ep` ones keep to the branches that have the
# directory already: a rename or hardlink across them is a copy.
Policy = Literal[
    "all", "epall", "epff", "eplfs", "eplus", "epmfs", "eppfrd", "eprand", "ff", "lfs", "lus", "mfs", "msplfs",
    "msplus", "mspmfs", "msppfrd", "pfrd", "rand",
]  # fmt: skip


def _device(value: str) -> str:
    if not _DEVICE.fullmatch(value):
        raise ValueError(
            "write UUID=... or /dev/disk/by-id/... (lsblk -o NAME,SIZE,UUID and ls -l /dev/disk/by-id tell both): "
            "a name such as /dev/sdb is another disk after the next boot"
        )
    return value


def _option(value: str) -> str:
    if not _OPTION.fullmatch(value):
        raise ValueError("write one mount option such as ro or commit=60")
    name = value.partition("=")[0]
    if name in ("noauto", "nofail", "defaults", "_netdev") or name.startswith("x-systemd"):
        raise ValueError("mediahost decides that itself; delete this option")
    if name in ("user", "username", "password", "pass", "credentials", "cred"):
        raise ValueError("user and password belong in the vault: see docs/storage.md")
    return value


def _mount_point(value: str) -> str:
    for parent in _NOT_BELOW:
        if below(value, parent):
            raise ValueError(
                f"a mount below {parent} would hide what the system needs; choose one such as /mnt/disk1"
            )
    return value


def _free(value: str) -> str:
    if not _SIZE.fullmatch(value):
        raise ValueError("write a size such as 50g")
    return value.upper()


MountPoint = Annotated[AbsolutePath, AfterValidator(_mount_point)]
Options = list[Annotated[str, AfterValidator(_option)]]


class Disk(BaseModel):
    """A disk's filesystem and where it is mounted. `format` makes one, on an empty disk only."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    device: Annotated[str, AfterValidator(_device)]
    at: MountPoint
    filesystem: Literal["ext4", "xfs", "btrfs"] = "ext4"
    format: bool = False
    options: Options = []

    @property
    def path(self) -> str:
        """The device's name below /dev/disk."""
        found = _DEVICE.fullmatch(self.device)
        return f"/dev/disk/by-uuid/{found[1].lower()}" if found and found[1] else self.device

    @property
    def uuid(self) -> str:
        """UUID that a filesystem gets which mediahost makes on this disk: so it knows its own ones again."""
        return str(uuid.uuid5(_NAMESPACE, self.device))


class Pool(BaseModel):
    """Several directories as one, by mergerfs. `minimum_free` is the space below which a branch gets no new file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    at: MountPoint
    branches: Annotated[list[AbsolutePath], Field(min_length=1)]
    policy: Policy = "pfrd"
    minimum_free: Annotated[str, AfterValidator(_free)] = "20G"
    options: Options = []


class Share(BaseModel):
    """A directory of another machine. `account` names the vault entries of an SMB share's user and password."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["nfs", "smb"]
    source: str
    at: MountPoint
    options: Options = []
    account: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")] = "smb"


def mount_points(settings: Settings) -> tuple[str, ...]:
    """Every mount point that mediahost has, parents before what is mounted inside them."""
    every: tuple[Disk | Pool | Share, ...] = (
        *settings.storage_disks,
        *settings.storage_pools,
        *settings.storage_shares,
    )
    return tuple(sorted(each.at for each in every))


def required_for(paths: Iterable[str], settings: Settings) -> tuple[str, ...]:
    """Mount points at or above any of `paths`: what systemd's RequiresMountsFor= of these paths means here."""
    wanted = tuple(paths)
    return tuple(at for at in mount_points(settings) if any(below(path, at) for path in wanted))


def touched_by(paths: Iterable[str], settings: Settings) -> tuple[str, ...]:
    """Mount points at, above or below any of `paths`: what somebody needs who has these paths with all inside."""
    wanted = tuple(paths)
    return tuple(at for at in mount_points(settings) if any(below(path, at) or below(at, path) for path in wanted))


def conflicts(settings: Settings) -> Iterator[tuple[str, str]]:
    """Storage keys whose values are sound by themselves and do not go together, each with the mend."""
    points = mount_points(settings)
    for at in sorted({at for at in points if points.count(at) > 1}):
        yield (
            "storage_disks",
            f"{at} is the mount point of more than one of storage_disks, storage_pools, storage_shares",
        )
    devices = [disk.device for disk in settings.storage_disks]
    for device in sorted({device for device in devices if devices.count(device) > 1}):
        yield "storage_disks", f"{device} is named twice; a disk is mounted at one place"
    for disk in settings.storage_disks:
        if disk.format and not disk.device.startswith(_BY_ID):
            yield (
                "storage_disks",
                f"{disk.device}: a UUID is a filesystem's, and format makes a new one; name the disk itself, "
                "/dev/disk/by-id/..., or take format out",
            )
    for pool in settings.storage_pools:
        if len(set(pool.branches)) < len(pool.branches):
            yield "storage_pools", f"{pool.at}: a branch is named twice"
        for branch in pool.branches:
            if below(branch, pool.at) or below(pool.at, branch):
                yield (
                    "storage_pools",
                    f"{pool.at}: branch {branch} and the pool lie inside each other; choose another",
                )
    for share in settings.storage_shares:
        if share.kind == "nfs" and not _NFS.fullmatch(share.source):
            yield "storage_shares", f"{share.source}: write an NFS source as server:/directory"
        if share.kind == "smb" and not _SMB.fullmatch(share.source):
            yield "storage_shares", f"{share.source}: write an SMB source as //server/share"
        if share.kind == "nfs" and "soft" in share.options:
            yield (
                "storage_shares",
                f"{share.at}: soft makes half-written files when the server is slow (nfs(5)); take it out",
            )
    for at in points:
        if below(settings.stack_root, at) and at in [share.at for share in settings.storage_shares]:
            yield (
                "stack_root",
                f"{settings.stack_root} lies on the share {at}: databases break there; choose a directory on a disk",
            )
