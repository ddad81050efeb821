"""What looks after a host's disks, as the configuration names it: parity, swap, caches of limited size.

Values and pure questions only, as in `mediahost.storage`; what they are on a host is in `mediahost.render`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mediahost.paths import below

if TYPE_CHECKING:
    from mediahost.config import Settings


def size_in_bytes(size: str) -> int:
    """Bytes of a size such as 512m or 2g."""
    return int(size[:-1]) << 10 * ("kmg".index(size[-1].lower()) + 1)


def snapraid_disks(settings: Settings) -> tuple[str, ...]:
    """Mount points of the disks that SnapRAID protects, in the order of `storage_disks`."""
    if settings.snapraid_data is not None:
        return tuple(settings.snapraid_data)
    disks = [disk.at for disk in settings.storage_disks if disk.at not in settings.snapraid_parity]
    branches = [branch for pool in settings.storage_pools for branch in pool.branches]
    pooled = tuple(at for at in disks if any(below(branch, at) for branch in branches))
    return pooled if settings.storage_pools else tuple(disks)


@dataclass(frozen=True)
class Cache:
    """A directory at `at` that holds at most `size` bytes: a file system in the file `image`, or in memory (None)."""

    name: str
    at: str
    size: int
    in_memory: bool = False

    @property
    def image(self) -> str | None:
        """The file that the file system lies in, beside its mount point."""
        return None if self.in_memory else f"{self.at}.img"


def caches(settings: Settings) -> tuple[Cache, ...]:
    """The caches that this host shall have."""
    found = []
    if settings.transcode_size:
        size = size_in_bytes(settings.transcode_size)
        found.append(Cache("transcode", settings.transcode_root, size, settings.transcode_in == "memory"))
    if settings.thumbnails_size:
        found.append(Cache("thumbnails", settings.thumbnails_root, size_in_bytes(settings.thumbnails_size)))
    return tuple(found)


def conflicts(settings: Settings) -> Iterator[tuple[str, str]]:
    """Keys whose values are sound by themselves and do not go together, each with the mend."""
    if settings.swap != "none" and size_in_bytes(settings.swap_size) < 64 * 1024**2:
        yield "swap_size", "is too small to be of use; write 64m or more"
    yield from _snapraid_conflicts(settings)
    yield from _cache_conflicts(settings)


def _snapraid_conflicts(settings: Settings) -> Iterator[tuple[str, str]]:
    """Parity without data, or on a disk that it would protect."""
    parity, data = settings.snapraid_parity, snapraid_disks(settings)
    if not parity:
        if settings.snapraid_data:
            yield "snapraid_data", "does nothing without snapraid_parity; name the parity disk's mount point there"
        return
    if not data:
        yield (
            "snapraid_parity",
            "there is no disk to protect: name disks in storage_disks, or their mount points in snapraid_data",
        )
    if len(parity) > 6:
        yield "snapraid_parity", "SnapRAID knows six parities at most"
    if len(set(parity)) < len(parity) or len(set(data)) < len(data):
        yield "snapraid_parity", "a disk is named twice, here or in snapraid_data"
    known = [disk.at for disk in settings.storage_disks]
    for at in parity:
        for other in data:
            if below(at, other) or below(other, at):
                yield (
                    "snapraid_parity",
                    f"{at} lies on the disk {other} that it would protect; give it a disk of its own",
                )
        if known and at not in known:
            yield "snapraid_parity", f"{at} is no mount point in storage_disks; parity needs a disk of its own there"
        for pool in settings.storage_pools:
            if any(below(branch, at) or below(at, branch) for branch in pool.branches):
                yield "snapraid_parity", f"{at} is a branch of the pool {pool.at}; take it out of one of the two"
    if known and settings.snapraid_data is not None:
        for at in settings.snapraid_data:
            if at not in known:
                yield "snapraid_data", f"{at} is no mount point in storage_disks; write one of {', '.join(known)}"


def _cache_conflicts(settings: Settings) -> Iterator[tuple[str, str]]:
    """Caches that would hide something, or be too small."""
    wanted = caches(settings)
    if settings.transcode_in == "memory" and not settings.transcode_size:
        yield "transcode_in", "does nothing without transcode_size; set it, such as 4g"
    for cache in wanted:
        key = f"{cache.name}_root"
        # A journal and the tables of an ext4 take some megabytes.
        if cache.size < 64 * 1024**2:
            yield f"{cache.name}_size", "is too small for a file system; write 64m or more"
        for other in (settings.data_root, settings.downloads_root, settings.stack_root):
            if below(other, cache.at):
                yield key, f"{other} lies inside it, and would be hidden; choose a directory of its own"
        if below(cache.at, settings.media_root):
            yield key, f"lies among the media ({settings.media_root}); choose one such as /srv/cache/{cache.name}"
        for at in (
            *(disk.at for disk in settings.storage_disks),
            *(pool.at for pool in settings.storage_pools),
            *(share.at for share in settings.storage_shares),
        ):
            if at == cache.at:
                yield key, f"{at} is a mount point already; choose a directory below it"
        for share in settings.storage_shares:
            if not cache.in_memory and below(cache.at, share.at):
                yield key, f"lies on the share {share.at}; choose a directory on a disk of this host"
    if len(wanted) == 2 and (below(wanted[0].at, wanted[1].at) or below(wanted[1].at, wanted[0].at)):
        yield "thumbnails_root", f"{wanted[1].at} and {wanted[0].at} lie inside each other; choose another"
