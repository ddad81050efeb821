"""Stage vpn, mode container: the unit that keeps confined services in Gluetun's network, or nothing of it."""

from __future__ import annotations

from pyinfra.api import deploy, operation

from facts.snapshot import Request, Snapshot
from mediahost.render import follow
from mediahost.wanted import Wanted
from operations import files, units
from operations.convergence import Step, converge

_READ_UNITS = "systemctl daemon-reload"


def request(wanted: Wanted) -> Request:
    """What the snapshot must look at for this stage."""
    return Request(paths=frozenset(follow.PATHS), units=frozenset((follow.UNIT,) if follow.runs(wanted.vpn) else ()))


def file_steps(wanted: Wanted, seen: Snapshot) -> list[Step]:
    """Script and unit on disk, or gone."""
    if not follow.runs(wanted.vpn):
        return _off_steps(seen)
    return files.steps(follow.files(wanted.vpn, wanted.settings), seen, pending=follow.UNIT)


def unit_steps(wanted: Wanted, seen: Snapshot) -> list[Step]:
    """The unit running with what is on disk."""
    if not follow.runs(wanted.vpn):
        return []
    state = seen.units.get(follow.UNIT)
    unread = follow.UNIT_PATH in seen.paths and (state is None or state.load == "not-found")
    found = [Step(f"{follow.UNIT}: systemd has not read it", _READ_UNITS)] if unread else []
    return [*found, *units.steps(follow.UNIT, seen, interrupts="no service")]


def _off_steps(seen: Snapshot) -> list[Step]:
    left = [path for path in follow.PATHS if path in seen.paths]
    if not left:
        return []
    command = f"""if systemctl -q cat {follow.UNIT} >/dev/null 2>&1; then systemctl -q disable --now {follow.UNIT}; fi
rm -f {" ".join(left)}
{_READ_UNITS}
{files.clear_pending(follow.UNIT)}"""
    return [Step(f"{follow.UNIT}: switched off, is removed", command)]


def steps(wanted: Wanted, seen: Snapshot) -> list[Step]:
    """Everything this stage would still do."""
    return [*file_steps(wanted, seen), *unit_steps(wanted, seen)]


@operation()
def prepared(wanted: Wanted):  # type: ignore[no-untyped-def]
    """
    What keeps confined services in Gluetun's network, on disk.

    + wanted: the host as it should be
    """
    yield from converge(lambda seen: file_steps(wanted, seen))


@operation()
def running(wanted: Wanted):  # type: ignore[no-untyped-def]
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
