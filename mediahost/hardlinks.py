"""Whether imports can be hardlinks: what to try, on which mounts that depends, and what an outcome means.

link(2) fails across two mounts, even of one file system, so only a trial through a container's own mounts tells.
The trial writes, so it is made when what it depends on has changed, and its outcome is kept on the host.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

from mediahost.config import Settings
from mediahost.paths import below
from mediahost.stack import Stack, StackService, media_views

RECORD_PATH = "/var/lib/mediahost/hardlinks"
"""What the outcome was for: a digest. Then one line a failure: SERVICE, FROM, TO, what ln(1) said, with tabs."""
PROBE = ".mediahost-hardlink-proof"
"""Name of the file that is made and linked, and removed again."""

# Told by the mount table only while they are in use.
_AUTOMOUNTED = ("autofs", "nfs", "nfs4", "cifs", "smb3")


@dataclass(frozen=True)
class Failure:
    """A link that could not be made by `service`, between directories as the container sees them."""

    service: str
    source: str
    target: str
    reason: str

    @property
    def passing(self) -> bool:
        """Whether it can be another time: permissions and space change without any of the mounts."""
        return not (self.crosses or self.unsupported)

    @property
    def crosses(self) -> bool:
        """EXDEV: two mounts."""
        return "cross-device" in self.reason.lower()

    @property
    def unsupported(self) -> bool:
        """EPERM, EOPNOTSUPP: a file system that has no hardlinks (link(2))."""
        return any(words in self.reason.lower() for words in ("not supported", "not permitted", "not implemented"))


@dataclass(frozen=True)
class Trial:
    """What is to be tried: by each of `services` a link from each of `sources` to each of `targets`.

    Directories are as the containers see them, below /data. `uid` and `gid` are those that services import with.
    """

    services: tuple[str, ...]
    sources: tuple[str, ...]
    targets: tuple[str, ...]
    uid: int
    gid: int


def trial(settings: Settings, stack: Stack) -> Trial:
    """The trial for this host; without services where none has both downloads and media."""
    views = media_views(settings)
    if settings.layout == "trash":
        sources = tuple(target for name in ("torrents", "usenet") for _, target in views[name])
    else:
        sources = tuple(target for _, target in views["torrents"])
    # Usenet clients and the split layout keep what is done apart from what is not.
    sources = tuple(each if each.endswith("/torrents") else f"{each}/complete" for each in sources)
    ((_, media),) = views["media"]
    targets = tuple(f"{media}/{library}" for library in settings.media_libraries)
    services = tuple(
        service.name
        for service in stack.services
        if targets and all(_writes(service, path, on_host(settings, path)) for path in (*sources, *targets))
    )
    return Trial(services, sources, targets, settings.media_uid, settings.media_gid)


def _writes(service: StackService, path: str, on_host: str) -> bool:
    """Whether the service has the host's directory at `path`, and may write there."""
    return any(
        below(path, mount.target)
        and f"{mount.source}{path.removeprefix(mount.target)}" == on_host
        and not mount.read_only
        for mount in service.mounts
    )


def digest(wanted: Trial, settings: Settings, stack: Stack, mounts: str) -> str:
    """What the outcome of a trial depends on: what the containers mount and, of the host's `mounts`, the media's.

    `mounts` is the text of /proc/mounts.
    """
    inside = {
        service.name: [(mount.source, mount.target, mount.read_only) for mount in service.mounts]
        for service in stack.services
        if service.name in wanted.services
    }
    roots = {source for views in media_views(settings).values() for source, _ in views}
    content = {
        "trial": [wanted.services, wanted.sources, wanted.targets, wanted.uid, wanted.gid],
        "inside": inside,
        "shares": [share.model_dump() for share in settings.storage_shares],
        "mounts": _mounts(roots, mounts),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _mounts(roots: Iterable[str], mounts: str) -> list[tuple[str, str, str]]:
    """(mount point, device, kind) of what is mounted below the roots, and of what each of them lies on."""
    lines = (line.split() for line in mounts.splitlines())
    table = [(words[1], words[0], words[2]) for words in lines if len(words) >= 3 and words[2] not in _AUTOMOUNTED]
    found = set()
    for root in roots:
        found |= {row for row in table if below(row[0], root)}
        above = [row for row in table if below(root, row[0])]
        found |= set(sorted(above, key=lambda row: len(PurePosixPath(row[0]).parts))[-1:])
    return sorted(found)


def read(record: str) -> tuple[str, tuple[Failure, ...]]:
    """What a record is for, and the failures in it."""
    first, *rest = record.splitlines() or [""]
    rows = (line.split("\t") for line in rest)
    return first, tuple(Failure(*row) for row in rows if len(row) == 4)


def explained(settings: Settings, failures: Iterable[Failure]) -> list[str]:
    """What the failures mean and what would mend them, one text a cause."""
    told: dict[str, None] = {}
    for failure in failures:
        told[_explained(settings, failure)] = None
    return list(told)


def _explained(settings: Settings, failure: Failure) -> str:
    source, target = on_host(settings, failure.source), on_host(settings, failure.target)
    copies = "so imports are copies: they take their time, and their space twice while a torrent is seeded"
    if failure.crosses and settings.layout == "split":
        return (
            f"hardlinks: the layout split cannot have them: {settings.downloads_root} and {settings.media_root} are "
            f"two mounts, {copies}. layout = trash, with downloads and media on one disk or pool, makes links"
        )
    for pool in settings.storage_pools:
        if failure.crosses and pool.policy.startswith("ep") and below(source, pool.at) and below(target, pool.at):
            return (
                f"hardlinks: the pool {pool.at} refuses links from {source} to {target}: its policy {pool.policy} "
                f"keeps to branches that have the directory, {copies}. Choose the policy pfrd"
            )
    if failure.crosses:
        return (
            f"hardlinks: {source} and {target} are on two file systems or mounts, {copies}. Put both on one disk or "
            "pool (storage_pools) below one mount"
        )
    if failure.unsupported:
        return (
            f"hardlinks: the file system of {target} has none (SMB and exFAT have not), {copies}. A disk of this "
            "host or NFS has them"
        )
    if "denied" in failure.reason.lower():
        return (
            f"hardlinks: not proven: the media user may not write in {source} or {target}; mediahost fix-permissions "
            "mends the tree"
        )
    return f"hardlinks: not proven: a link from {source} to {target} could not be made: {failure.reason}"


def on_host(settings: Settings, path: str) -> str:
    """Where on the host a container's path below /data is."""
    pairs = {target: source for views in media_views(settings).values() for source, target in views}
    for target in sorted(pairs, key=len, reverse=True):
        if below(path, target):
            return f"{pairs[target]}{path.removeprefix(target)}"
    return path
