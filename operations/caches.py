"""Stage caches: file systems of limited size for transcodes and thumbnails, mounted and pruned.

A cache that is switched off, or moved, is unmounted and its units are removed; the file it lies in stays, because a
run deletes no file system. It is told where that file is.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from pyinfra.api import deploy, operation

from facts.snapshot import Request, Snapshot
from mediahost.config import Settings
from mediahost.render import caches as wanted
from mediahost.render.upkeep import UNITS
from mediahost.upkeep import caches
from operations import files, owed, storage, units
from operations.convergence import Commands, Step, converge

_INTERRUPTS = "transcodes at work end, and services that use it start anew"


def request(settings: Settings) -> Request:
    """What the snapshot must look at for this stage. Never the file of a cache: its checksum would take minutes."""
    found = caches(settings)
    watched = Request(paths=frozenset(wanted.PATHS), contents=frozenset((wanted.TABLE_PATH,)))
    if not found:
        return watched
    return watched | Request(
        paths=frozenset(
            (*(wanted.mount_unit_path(wanted.unit(cache)) for cache in found), *(cache.at for cache in found))
        ),
        units=frozenset((*(wanted.unit(cache) for cache in found), wanted.PRUNE_TIMER)),
    )


def removal_steps(settings: Settings, seen: Snapshot) -> list[Step]:
    """Caches of an earlier run that are not wanted any more, by their units."""
    kept = {wanted.unit(cache) for cache in caches(settings)}
    with_files = {cache.name for cache in caches(settings) if cache.image}
    found = []
    for cache in wanted.standing_in(seen.contents):
        if cache.unit in kept:
            continue
        stays = "" if cache.image == "-" else f"; its file {cache.image} stays: delete it to have the space back"
        gone = [wanted.mount_unit_path(cache.unit)]
        if cache.name not in with_files:
            gone.append(wanted.mount_unit_path(wanted.image_unit(cache.name)))
        lines = [
            units.stopped(cache.unit),
            f"rm -f {' '.join(map(shlex.quote, gone))}",
            owed.clear(cache.unit),
            owed.RELOAD,
        ]
        found.append(Step(f"cache {cache.at}: not wanted any more, is unmounted{stays}", "\n".join(lines)))
    return found


def file_steps(settings: Settings, seen: Snapshot) -> list[Step]:
    """The table, the programs and the units, or none of them. A cache is mounted anew for what concerns it."""
    found = caches(settings)
    if not found:
        return units.removal_steps(wanted.PRUNE_TIMER, wanted.PATHS, seen)
    written = files.steps(wanted.files(settings), seen)
    before = {cache.name: cache for cache in wanted.standing_in(seen.contents)}
    resized = [
        cache
        for cache in found
        if cache.name in before
        and before[cache.name].unit == wanted.unit(cache)
        and before[cache.name].size != cache.size
    ]
    table = files.steps((wanted.table(settings),), seen)
    if table:
        # In one command, so that a run that dies here owes the new size to the next one.
        marks = "\n".join(owed.mark(wanted.unit(cache)) for cache in resized)
        written += [*table[:-1], Step(table[-1].change, f"{marks}\n{table[-1].command}", stdin=table[-1].stdin)]
    for file, cache in zip(wanted.mount_files(settings), found, strict=True):
        written += files.steps((file,), seen, pending=wanted.unit(cache))
    return [*written, *units.reading_steps(written, "the units of the caches")]


def mount_steps(settings: Settings, seen: Snapshot) -> list[Step]:
    """The caches mounted, and what is theirs belonging to the media group."""
    found: list[Step] = []
    for cache, directory in zip(caches(settings), wanted.directories(settings), strict=True):
        found += units.unread_steps(wanted.unit(cache), wanted.mount_unit_path(wanted.unit(cache)), seen)
        restart = units.restarted(wanted.unit(cache), wanted.image_unit(cache.name))
        mounting = units.steps(wanted.unit(cache), seen, restart, _INTERRUPTS)
        found += mounting
        if not mounting:
            found += storage.steps((directory,), seen)
    if caches(settings):
        found += units.own_steps(wanted.PRUNE_TIMER, f"{UNITS}/{wanted.PRUNE_TIMER}", seen)
    return found


def steps(settings: Settings, seen: Snapshot) -> list[Step]:
    """Everything this stage would still do."""
    return [*removal_steps(settings, seen), *file_steps(settings, seen), *mount_steps(settings, seen)]


@operation()
def limited(settings: Settings) -> Commands:
    """
    Caches that cannot grow beyond their size.

    + settings: the host's settings
    """

    def missing(seen: Snapshot) -> Sequence[Step]:
        # What is moved is unmounted before the table forgets where it was.
        return removal_steps(settings, seen) + file_steps(settings, seen) or mount_steps(settings, seen)

    yield from converge(missing)


@deploy("caches")
def provision(settings: Settings) -> None:
    """The whole stage, after the disks are mounted and before anything uses a cache."""
    limited(name="transcodes and thumbnails", settings=settings)
