"""Stage vpn, mode container: the unit that keeps confined services in Gluetun's network, or nothing of it."""

from __future__ import annotations

from pyinfra.api import deploy, operation

from facts.snapshot import Request, Snapshot
from mediahost.render import follow
from mediahost.wanted import Wanted
from operations import files, units
from operations.convergence import Commands, Step, converge


def request(wanted: Wanted) -> Request:
    """What the snapshot must look at for this stage."""
    return Request(paths=frozenset(follow.PATHS), units=frozenset((follow.UNIT,) if follow.runs(wanted.vpn) else ()))


def file_steps(wanted: Wanted, seen: Snapshot) -> list[Step]:
    """Script and unit on disk, or gone."""
    if not follow.runs(wanted.vpn):
        return units.removal_steps(follow.UNIT, follow.PATHS, seen)
    return files.steps(follow.files(wanted.vpn, wanted.settings), seen, pending=follow.UNIT)


def unit_steps(wanted: Wanted, seen: Snapshot) -> list[Step]:
    """The unit running with what is on disk."""
    if not follow.runs(wanted.vpn):
        return []
    return units.own_steps(follow.UNIT, follow.UNIT_PATH, seen, interrupts="no service")


def steps(wanted: Wanted, seen: Snapshot) -> list[Step]:
    """Everything this stage would still do."""
    return [*file_steps(wanted, seen), *unit_steps(wanted, seen)]


@operation()
def prepared(wanted: Wanted) -> Commands:
    """
    What keeps confined services in Gluetun's network, on disk.

    + wanted: the host as it should be
    """
    yield from converge(lambda seen: file_steps(wanted, seen))


@operation()
def running(wanted: Wanted) -> Commands:
    """
    That unit, running.

    + wanted: the host as it should be
    """
    yield from converge(lambda seen: unit_steps(wanted, seen))


@deploy("vpn")
def provision(wanted: Wanted) -> None:
    """The whole stage, after the stack."""
    prepared(name="who shares Gluetun's network", wanted=wanted)
    running(name="who shares Gluetun's network, followed", wanted=wanted)
