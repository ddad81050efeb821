"""Stage mounts: empty disks formatted on request, disks, pools and shares mounted, and the guard over them.

It stands before everything that writes to a mounted directory. A disk is formatted only when it is named with
`format` and nothing at all is found on it, looked at once more in the command that formats. What is taken out of the
configuration is not unmounted: its unit and its guard go, its data stay where they are.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence

from pyinfra.api import deploy, operation

from facts.snapshot import Request, Snapshot
from mediahost.render import mounts as render
from mediahost.render.mounts import Mount
from mediahost.storage import Disk
from mediahost.wanted import Wanted
from operations import apt, files, owed, units
from operations.convergence import Commands, Step, converge

_MAKE = {
    # No blocks reserved for root: this is not the disk that the system lives on.
    "ext4": "mkfs.ext4 -q -m 0 -U {uuid} {device}",
    "xfs": "mkfs.xfs -q -m uuid={uuid} {device}",
    "btrfs": "mkfs.btrfs -q -U {uuid} {device}",
}
_FSTAB = "/etc/fstab"
_ENABLED = ("enabled", "static", "alias", "indirect", "generated")
_INTERRUPTS = "what uses it stops meanwhile and is started again"


def request(wanted: Wanted) -> Request:
    """What the snapshot must look at for this stage; without mounts that is where its files would be."""
    watched = Request(paths=frozenset(render.PATHS), contents=frozenset((render.TABLE_PATH,)))
    if not wanted.mounts:
        return watched
    names = {unit for mount in wanted.mounts for unit in (mount.unit, *_automount(mount))}
    return watched | Request(
        contents=frozenset((_FSTAB,)),
        paths=frozenset(
            (
                *(file.path for file in wanted.mount_files),
                *(path for mount in wanted.mounts for path in (mount.at, mount.sentinel)),
            )
        ),
        packages=frozenset(render.packages(wanted.settings)),
        units=frozenset((*names, render.WATCH_UNIT)),
        mounts=frozenset(mount.at for mount in wanted.mounts),
        disks=frozenset(f"{mount.at}={mount.device}" for mount in wanted.mounts if mount.device),
        shares=frozenset(mount.at for mount in wanted.mounts if mount.network),
    )


def _automount(mount: Mount) -> tuple[str, ...]:
    return (f"{render.escaped(mount.at)}.automount",) if mount.network else ()


# --- what must not be done


def refusals(wanted: Wanted, seen: Snapshot) -> list[Step]:
    """Everything for which this stage stops before it changes anything: what was found, where, and how to mend it."""
    return [Step(told, refusal=f"{told}. {mend}") for told, mend in _refused(wanted, seen)]


def _refused(wanted: Wanted, seen: Snapshot) -> Iterator[tuple[str, str]]:
    rows = [line.split() for line in seen.contents.get(_FSTAB, "").splitlines() if not line.lstrip().startswith("#")]
    listed = {row[1].rstrip("/"): row[0] for row in rows if len(row) > 1}
    for mount in wanted.mounts:
        at = mount.at
        if at in listed:
            # systemd would go on requiring it at boot, whatever our unit says.
            yield f"{at}: {_FSTAB} mounts {listed[at]} there, too", f"Take that line out of {_FSTAB}, then run again"
            continue
        present = seen.paths.get(at)
        if present is not None and present.kind != "directory":
            yield f"{at}: is a {present.kind}, not a directory", "Move it away, then run again"
            continue
        if at in seen.mounts.away:
            yield f"{at}: {mount.what} does not answer", "Look after that machine or the network, then run again"
            continue
        bare = seen.mounts.bare.get(at)
        if bare is not None and bare.content:
            yield (
                f"{at}: has files of its own, such as {bare.content}, which a mount would hide",
                f"Move them elsewhere, for instance `mv {at} {at}.before`, run again, then move them back onto it",
            )
            continue
        if mount.disk is not None:
            yield from _disk_refused(mount.disk, seen)
            continue
        mounted = seen.mounts.mounted.get(at)
        expected = f"mergerfs:{at}" if mount.type == "mergerfs" else mount.what
        # Whether a slash at the end is kept is the file system's affair.
        if mounted is not None and mounted.source.rstrip("/") != expected.rstrip("/"):
            yield f"{at}: {mounted.source} is mounted there, wanted {mount.what}", f"`umount {at}`, then run again"


def _disk_refused(disk: Disk, seen: Snapshot) -> Iterator[tuple[str, str]]:
    state, mounted = seen.mounts.disks.get(disk.path), seen.mounts.mounted.get(disk.at)
    if state is None:
        gone = "is not there any more" if mounted is not None else "is not there"
        yield (
            f"{disk.at}: disk {disk.device} {gone}",
            "Plug it in, or correct it in storage_disks (lsblk -o NAME,SIZE,UUID and ls -l /dev/disk/by-id tell what "
            "is there), then run again; until then nothing is written there, and who needs it does not run",
        )
        return
    if mounted is not None:
        if mounted.device != state.device:
            told = f"{disk.at}: {mounted.source} is mounted there, wanted {disk.device}"
            yield told, f"`umount {disk.at}`, then run again"
        return
    found = "; ".join(state.found)
    busy = [line for line in state.found if line.startswith(("in use by", "mounted at", "swap"))]
    if busy:
        yield f"{disk.device}: is {', '.join(busy)}", f"Free it there, or take it out of {disk.at}, then run again"
    elif disk.format:
        if state.found and not _is_ours(disk, state.found):
            yield (
                f"{disk.device}: is not formatted, because it is not empty: {found}",
                "To keep what is there take format out; if it may be lost, empty the disk yourself "
                f"(wipefs -a {disk.path}; dd if=/dev/zero of={disk.path} bs=1M count=16), then run again",
            )
    elif not _signatures(state.found):
        yield (
            f"{disk.device}: has no filesystem ({found or 'it is empty'})",
            "To make one on an empty disk, name it as /dev/disk/by-id/... and set format to True",
        )
    elif [signature.split()[0] for signature in _signatures(state.found)] != [disk.filesystem]:
        yield (
            f"{disk.device}: has no {disk.filesystem} on it but: {found}",
            "Correct filesystem or device, then run again",
        )


def _signatures(found: tuple[str, ...]) -> list[str]:
    return [line.removeprefix("signature ") for line in found if line.startswith("signature ")]


def _is_ours(disk: Disk, found: tuple[str, ...]) -> bool:
    """Whether the one filesystem on a disk is the one that mediahost made there."""
    signatures = [signature.split()[:2] for signature in _signatures(found)]
    return signatures == [[disk.filesystem, disk.uuid]] and not any(line.startswith("partition") for line in found)


# --- what is done


def format_steps(wanted: Wanted, seen: Snapshot) -> list[Step]:
    """A filesystem on each empty disk that is to have one. Looked at again at the very moment."""
    steps = []
    for mount in wanted.mounts:
        disk = mount.disk
        if disk is None or not disk.format or mount.at in seen.mounts.mounted:
            continue
        state = seen.mounts.disks.get(disk.path)
        if state is None or state.found:
            continue
        device = shlex.quote(disk.path)
        make = _MAKE[disk.filesystem].format(uuid=disk.uuid, device=device)
        command = f"""{render.FOUND_ON}
[ -b {device} ] || {{ echo "{disk.path}: is not there any more, nothing was formatted" >&2; exit 1; }}
found=$(found_on {device})
[ -z "$found" ] || {{ echo "{disk.path}: is not empty, nothing was formatted: $found" >&2; exit 1; }}
{make} </dev/null
udevadm settle"""
        told = f"{disk.device}: empty, gets {disk.filesystem} (for {disk.at})"
        steps.append(Step(told, command, timeout=3600))
    return steps


def file_steps(wanted: Wanted, seen: Snapshot) -> list[Step]:
    """Programs, filesystems, units and the guard's script on disk."""
    if not wanted.mounts:
        return []
    of_mounts = {render.unit_path(mount.unit): mount.unit for mount in wanted.mounts}
    others = [file for file in wanted.mount_files if file.path not in of_mounts]
    steps = files.steps(others, seen, pending=render.WATCH_UNIT)
    for file in wanted.mount_files:
        if file.path in of_mounts:
            steps += files.steps((file,), seen, pending=of_mounts[file.path])
    return [
        *apt.install_steps(render.packages(wanted.settings), seen),
        *format_steps(wanted, seen),
        *steps,
        *units.reading_steps(steps, "the units of mounts"),
    ]


def prepare_steps(wanted: Wanted, seen: Snapshot) -> list[Step]:
    """Refusals, or what has to be there before anything is mounted."""
    return refusals(wanted, seen) or file_steps(wanted, seen)


def mount_steps(wanted: Wanted, seen: Snapshot) -> list[Step]:
    """Everything mounted where it belongs, also after the next boot, with its sentinel."""
    points = tuple(mount.at for mount in wanted.mounts)
    return [step for mount in wanted.mounts for step in _mount_step(mount, points, seen)]


def _mount_step(mount: Mount, points: Sequence[str], seen: Snapshot) -> list[Step]:
    state = seen.units.get(mount.unit)
    mounted = mount.at in seen.mounts.mounted
    told = []
    if not mounted or state is None or state.active not in ("active", "reloading"):
        told.append("not mounted")
    elif mount.unit in seen.pending:
        told.append(f"is mounted as it was, is mounted anew ({_INTERRUPTS})")
    if state is None or state.enabled not in _ENABLED:
        told.append("not mounted at boot")
    if state is not None and state.load != "not-found" and state.needs_daemon_reload:
        told.append("its unit changed since systemd read it")
    for unit in _automount(mount):
        present = seen.units.get(unit)
        if present is None or present.active != "active" or present.enabled not in _ENABLED:
            told.append("not mounted on first use")
    bare = seen.mounts.bare.get(mount.at)
    if bare is not None and not bare.immutable:
        told.append("can be written in while nothing is mounted there")
    if mounted and mount.sentinel not in seen.paths:
        told.append("its guard does not stand")
    if not told:
        return []
    anew = mounted and (mount.unit in seen.pending or "not mounted on first use" in told)
    return [Step(f"{mount.at}: {', '.join(told)}", _mount_command(mount, points, anew), timeout=1800)]


def _mount_command(mount: Mount, points: Sequence[str], anew: bool) -> str:
    at, unit = shlex.quote(mount.at), shlex.quote(mount.unit)
    automount = "".join(f" {shlex.quote(name)}" for name in _automount(mount))
    lines = [
        owed.RELOAD,
        # Directories of an earlier tree: nothing but directories, or this stage had refused. Of all mount points,
        # because the line after next makes them all immutable.
        f"""for at in {" ".join(map(shlex.quote, points))}; do
  if [ ! -d "$at" ] || mountpoint -q "$at"; then continue; fi
  case $(lsattr -d "$at" 2>/dev/null) in
    ????i*) ;;
    *) find "$at" -xdev -mindepth 1 -depth -type d -empty -delete ;;
  esac
done""",
        f"systemctl -q start {render.BARE_UNIT}",
        f"{render.SCRIPT_PATH} bare",
        f"systemctl -q reenable {unit}{automount}",
    ]
    if mount.type == "mergerfs":
        lines += [f"[ -d {branch} ] || mkdir -p {branch}" for branch in map(shlex.quote, mount.what.split(":"))]
    if anew:
        mend = f"it is in use; `fuser -vm {mount.at}` tells by whom"
        lines.append(_or_tell(f"systemctl stop {unit}", f"{mount.at} cannot be unmounted: {mend}"))
    if automount:
        # systemd refuses to watch over a directory on which something is mounted already.
        lines.append(f"mountpoint -q {at} || systemctl start{automount}")
    look = f"look with: systemctl status {mount.unit}; journalctl -b -u {mount.unit}"
    lines.append(_or_tell(f"systemctl start {unit}", f"{mount.at}: {mount.what} could not be mounted; {look}"))
    lines.append(f"systemctl start {shlex.quote(mount.sentinel_unit)}")
    # Where somebody removed the file alone, a restart of that unit would stop all who need it.
    lines.append(f"[ -e {shlex.quote(mount.sentinel)} ] || {render.SCRIPT_PATH} present {at}")
    lines.append(owed.clear(mount.unit))
    return "\n".join(lines)


def _or_tell(command: str, message: str) -> str:
    return f"{command} || {{ echo {shlex.quote(message)} >&2; exit 1; }}"


def watch_steps(wanted: Wanted, seen: Snapshot) -> list[Step]:
    """The watch running with what is on disk."""
    if not wanted.mounts:
        return []
    return units.own_steps(render.WATCH_UNIT, render.WATCH_PATH, seen, interrupts="no service")


def retire_steps(wanted: Wanted, seen: Snapshot) -> list[Step]:
    """Mounts of an earlier run that are not wanted any more: units and guard go, what is mounted stays mounted.

    Before the manifest's files are removed: it knows the paths, this stage what hangs on them.
    """
    kept = {mount.unit for mount in wanted.mounts}
    steps = []
    for at, unit, _ in render.standing(seen.contents.get(render.TABLE_PATH, "")):
        if unit in kept:
            continue
        gone = [render.unit_path(unit), render.unit_path(f"{unit.removesuffix('.mount')}.automount")]
        command = f"""{render.FREE}
systemctl -q disable {shlex.quote(unit)} 2>/dev/null || true
rm -f {" ".join(map(shlex.quote, gone))}
free_point {shlex.quote(at)} || true
awk -v at={shlex.quote(at)} '$1 != at' {render.TABLE_PATH} >{render.TABLE_PATH}.new
mv -f {render.TABLE_PATH}.new {render.TABLE_PATH}
{owed.clear(unit)}
{owed.RELOAD}"""
        told = f"{at}: not wanted any more, its unit and guard are removed; it stays mounted until the next boot"
        steps.append(Step(told, command))
    if not wanted.mounts:
        steps += units.removal_steps(render.WATCH_UNIT, render.PATHS, seen)
    return steps


def steps(wanted: Wanted, seen: Snapshot) -> list[Step]:
    """Everything this stage would still do."""
    return [
        *retire_steps(wanted, seen),
        *prepare_steps(wanted, seen),
        *mount_steps(wanted, seen),
        *watch_steps(wanted, seen),
    ]


@operation()
def retired(wanted: Wanted) -> Commands:
    """
    No unit and no guard of a mount that is not wanted any more.

    + wanted: the host as it should be
    """
    yield from converge(lambda seen: retire_steps(wanted, seen))


@operation()
def prepared(wanted: Wanted) -> Commands:
    """
    Programs, filesystems on empty disks, units and the guard.

    + wanted: the host as it should be
    """
    yield from converge(lambda seen: prepare_steps(wanted, seen))


@operation()
def mounted(wanted: Wanted) -> Commands:
    """
    Disks, pools and shares where they belong.

    + wanted: the host as it should be
    """
    yield from converge(lambda seen: mount_steps(wanted, seen))


@operation()
def watched(wanted: Wanted) -> Commands:
    """
    The watch over them.

    + wanted: the host as it should be
    """
    yield from converge(lambda seen: watch_steps(wanted, seen))


@deploy("mounts")
def provision(wanted: Wanted) -> None:
    """The whole stage, before anything that writes to what is mounted."""
    if wanted.mounts:
        prepared(name="disks, units and guard", wanted=wanted)
        mounted(name="disks, pools and shares", wanted=wanted)
        watched(name="watch", wanted=wanted)
