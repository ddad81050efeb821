"""How every operation of this project works: compare, say what differs, change it, look again.

A concern gives a pure function from a `Snapshot` to the `Step`s that are missing. `converge` asks it, runs the
steps, reads the host again and asks once more, until nothing is missing. So plan, drift report and apply are one
code path, an operation that says "changed" has been seen to work, and one with nothing to do yields nothing.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pyinfra import host, state
from pyinfra.api import FunctionCommand, StringCommand
from pyinfra.api.exceptions import OperationError
from pyinfra.api.state import StateStage

from facts.snapshot import HostSnapshot, Request, Snapshot, UnreadableSnapshotError, parse, script
from operations import guard as guards
from operations import lock, owed, report

Commands = Generator[StringCommand | FunctionCommand, None, None]
"""What the body of an operation yields. pyinfra's decorator asks for a generator: an iterator will not do."""

# A step can make another one possible (install, then configure); nothing here needs more than three rounds.
_ROUNDS = 4

_REQUEST = "mediahost_request"
_CACHED = "mediahost_snapshot"


@dataclass(frozen=True)
class Step:
    """One difference and the shell command that removes it.

    `change` is what the user reads: subject, colon, what differs. `command` runs as root under `sh -eu`; it is
    empty where the step after it removes this difference too. `stdin` is text fed to it and never shown.
    `timeout` is in seconds. `refusal` instead of a command stops this host with a message.
    """

    change: str
    command: str = ""
    stdin: str | None = None
    timeout: int | None = None
    refusal: str | None = None


def watch(request: Request) -> None:
    """Tell what this host's snapshot has to look at. Called once, before the first `snapshot`."""
    host.connector_data[_REQUEST] = request


def snapshot() -> Snapshot:
    """The host as it is. Read in one exec, kept until something changes or the run's stage does."""
    # Between the plan and the confirmation by the user minutes can pass: look again then. With -y there is no
    # such gap, and one look serves both.
    stage = state.current_stage if state.check_for_changes else StateStage.Execute
    kept = host.connector_data.get(_CACHED)
    if kept is not None and kept[0] == stage:
        found: Snapshot = kept[1]
        return found
    request: Request = host.connector_data[_REQUEST]
    lines = host.get_fact(HostSnapshot, _stdin=script(request))
    found = parse(lines, request)
    host.connector_data[_CACHED] = (stage, found)
    return found


def forget() -> None:
    """What was read is out of date."""
    host.connector_data.pop(_CACHED, None)


def foreseen(seen: Snapshot, steps: Sequence[Step]) -> Snapshot:
    """The host after these steps, in what they leave to later ones: owed restarts, and unit files that were read."""
    commands = [step.command for step in steps]
    units = seen.units
    if any(owed.RELOAD in command for command in commands):
        units = {name: replace(unit, needs_daemon_reload=False) for name, unit in units.items()}
    return replace(seen, pending=owed.after(commands, seen.pending), units=units)


def _planned(missing: Callable[[Snapshot], Sequence[Step]], seen: Snapshot, steps: Sequence[Step]) -> list[Step]:
    """What a run would do here in all its rounds. A plan runs nothing: later operations look at what is foreseen."""
    told = {step.change for step in steps}
    whole = [*steps, *(step for step in missing(foreseen(seen, steps)) if step.change not in told)]
    stage, _ = host.connector_data[_CACHED]
    host.connector_data[_CACHED] = (stage, foreseen(seen, whole))
    return whole


def converge(
    missing: Callable[[Snapshot], Sequence[Step]],
    guard: guards.Guard | Callable[[Snapshot], guards.Guard | None] | None = None,
) -> Iterator[StringCommand | FunctionCommand]:
    """Run the steps that `missing` names until it names none.

    The body of every operation: `yield from converge(...)`. Fails this host, and only this host, when a step is
    refused, when a command fails, or when the same steps are missing after they ran. With a `guard`
    (or a function that gives one for the host as it is), what was changed is put back unless a fresh login succeeds
    after each round.
    """
    before: tuple[str, ...] = ()
    armed: guards.Guard | None = None
    for _ in range(_ROUNDS):
        try:
            seen = snapshot()
        except UnreadableSnapshotError as error:
            # An exception here would end the run for every host.
            yield refusal(str(error))
            return
        steps = list(missing(seen))
        if steps and state.current_stage != StateStage.Execute:
            steps = _planned(missing, seen, steps)
        changes = tuple(step.change for step in steps)
        if not steps:
            break
        if changes == before:
            yield refusal(f"still different after it was mended: {'; '.join(changes)}")
            return
        before = changes
        for step in steps:
            report.change(step.change)
        for step in steps:
            if step.refusal is not None:
                yield refusal(step.refusal)
                return
        if not lock.is_ours():
            yield from lock.take()
        if armed is None and guard is not None:
            armed = guard(seen) if callable(guard) else guard
            if armed is not None:
                yield from guards.arm(armed)
        for step in _joined(steps):
            yield _command(step)
        forget()
        if armed is not None:
            yield from guards.prove(armed)
    else:
        yield refusal(f"something differs anew each time it is mended, last: {'; '.join(before)}")
        return
    if armed is not None:
        yield from guards.disarm()
    if not before:
        host.noop("as wanted")


def _joined(steps: Sequence[Step]) -> Iterator[Step]:
    """The steps in as few execs as possible: each costs a round trip. What reads stdin stays by itself."""
    waiting: list[Step] = []
    for step in (step for step in steps if step.command):
        if step.stdin is None:
            waiting.append(step)
            continue
        yield from _merged(waiting)
        waiting = []
        yield step
    yield from _merged(waiting)


def _merged(steps: Sequence[Step]) -> Iterator[Step]:
    if steps:
        commands = [step.command for step in steps]
        timeouts = [step.timeout for step in steps if step.timeout is not None]
        # Blocks of their own, so that a variable of one is not seen by the next; `set -e` ends at the first failure.
        joined = commands[0] if len(commands) == 1 else "\n".join(f"(\n{command}\n)" for command in commands)
        yield Step(steps[-1].change, joined, timeout=sum(timeouts) or None)


def _command(step: Step) -> StringCommand:
    arguments: dict[str, Any] = {}
    if step.stdin is not None:
        arguments["_stdin"] = step.stdin
    if step.timeout is not None:
        arguments["_timeout"] = step.timeout
    # A hardened host gives logins the umask 027, and some versions of sudo pass it on to root.
    return StringCommand("sh", "-c", shlex.quote(lock.alone(f"umask 022\n{step.command}")), **arguments)


def refusal(message: str) -> FunctionCommand:
    """A command that fails this host, and only this host, with `message`, which is told at once."""
    # Told here, not when it is executed: a plan executes nothing.
    report.refusal(message)

    def refuse() -> None:
        raise OperationError(message)

    return FunctionCommand(refuse, (), {})
