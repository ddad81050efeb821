"""Stage upkeep: what looks after a host's disks by itself: swap, smartd, SnapRAID, the trim timer.

Each is a `Concern`; all are compared in the same way. What is switched off is stopped and its files are removed; what
it made on the disks (parity, reports) stays, but for the swap file, which holds nothing of anybody's.
"""

from __future__ import annotations

import shlex

from pyinfra.api import deploy, operation

from facts.snapshot import Request, Snapshot
from mediahost.config import Settings
from mediahost.render import smart, snapraid, swap
from mediahost.render.upkeep import UNITS, Concern
from operations import apt, files, owed, report, units
from operations.convergence import Commands, Step, converge

TRIM_UNIT = "fstrim.timer"
SWAPS = "/proc/swaps"


def concerns(settings: Settings) -> tuple[Concern, ...]:
    """All of them, wanted or not."""
    return (swap.concern(settings), smart.concern(settings), snapraid.concern(settings))


def request(settings: Settings) -> Request:
    """What the snapshot must look at for this stage; of what is off only where its files would be."""
    watched = Request(units=frozenset((TRIM_UNIT,) if settings.trim else ()))
    for concern in concerns(settings):
        watched |= Request(
            paths=frozenset(concern.paths),
            packages=frozenset(concern.packages),
            units=frozenset((*concern.units, *concern.watched)),
        )
    if settings.swap != "none":
        watched |= Request(contents=frozenset((SWAPS, swap.DEVICE_RECORD)))
    if settings.smart:
        watched |= Request(contents=frozenset((smart.REPORTS_PATH,)))
    return watched


def concern_steps(concern: Concern, seen: Snapshot) -> list[Step]:
    """The steps that bring one concern about, or take away what is left of it."""
    if not concern.wanted:
        return _removal_steps(concern, seen)
    found = apt.install_steps(concern.packages, seen)
    written: list[Step] = []
    for unit, wanted in concern.files.items():
        written += files.steps(wanted, seen, pending=unit or None)
    found += [*written, *units.reading_steps(written, f"the units of {concern.name}")]
    for unit in concern.units:
        found += units.own_steps(unit, f"{UNITS}/{unit}", seen, units.restarted(unit), concern.interrupts)
    return found


def _removal_steps(concern: Concern, seen: Snapshot) -> list[Step]:
    left = [path for path in concern.paths if path in seen.paths]
    if not left:
        return []
    lines = [units.stopped(unit) for unit in concern.own_units]
    lines += [f"rm -f {' '.join(map(shlex.quote, left))}", owed.RELOAD]
    lines += [concern.afterwards] if concern.afterwards else []
    lines += [owed.clear(unit) for unit in sorted({*concern.own_units, *concern.files})]
    return [Step(f"{concern.name}: switched off, is removed; packages and data stay", "\n".join(lines))]


def swap_steps(settings: Settings, seen: Snapshot) -> list[Step]:
    """Swap whose unit has run, and that is not in use all the same: somebody has taken it out."""
    state = seen.units.get(swap.UNIT)
    if settings.swap == "none" or state is None or state.active != "active" or swap.UNIT in seen.pending:
        return []
    wrong = swap.missing(settings, seen.contents.get(SWAPS, ""), seen.contents.get(swap.DEVICE_RECORD, ""))
    return [Step(f"swap: {wrong}", units.restarted(swap.UNIT))] if wrong else []


def trim_steps(settings: Settings, seen: Snapshot) -> list[Step]:
    """The distribution's own timer, enabled."""
    return units.steps(TRIM_UNIT, seen) if settings.trim else []


def notices(settings: Settings, seen: Snapshot) -> list[str]:
    """What the user should know of his disks and only he can mend."""
    told = [
        f"{unit.removesuffix('.service')} failed or was refused; journalctl -u {unit} -n 30 says why"
        for concern in concerns(settings)
        for unit in concern.watched
        if unit in seen.units and seen.units[unit].active == "failed"
    ]
    reports = smart.reports(seen.contents.get(smart.REPORTS_PATH, "")) if settings.smart else ()
    told += [f"SMART: {line}" for line in reports[-5:]]
    if reports:
        told.append(f"SMART: {len(reports)} report(s) in {smart.REPORTS_PATH}; delete it when you have read them")
    return told


def steps(settings: Settings, seen: Snapshot) -> list[Step]:
    """Everything this stage would still do."""
    found = [step for concern in concerns(settings) for step in concern_steps(concern, seen)]
    return [*found, *swap_steps(settings, seen), *trim_steps(settings, seen)]


@operation()
def kept(concern: Concern) -> Commands:
    """
    One concern, as wanted or gone.

    + concern: what is wanted of it
    """
    yield from converge(lambda seen: concern_steps(concern, seen))


@operation()
def used(settings: Settings) -> Commands:
    """
    Swap in use and the trim timer running; and what the disks report is told.

    + settings: the host's settings
    """

    def missing(seen: Snapshot) -> list[Step]:
        for told in notices(settings, seen):
            report.notice(told)
        return [*swap_steps(settings, seen), *trim_steps(settings, seen)]

    yield from converge(missing)


@deploy("upkeep")
def provision(settings: Settings) -> None:
    """The whole stage. Disks are mounted by now, and nothing here needs Docker."""
    for concern in concerns(settings):
        kept(name=concern.name, concern=concern)
    used(name="swap in use, trim, reports", settings=settings)
