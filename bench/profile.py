"""Where the time of a run goes: `python -m bench.profile OUTPUT ARGUMENT...` runs pyinfra with stop-watches.

The watched calls are wrapped, not changed; the figures (seconds, JSON) go to the file OUTPUT. A profiled run is
never one of the timed ones. `sections` times the parts of the snapshot script inside the guest.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.host import Subject
from facts.snapshot import Request, script
from lab.machine import Machine

_Watch = dict[str, float]


def phases(subject: Subject) -> _Watch:
    """Seconds by phase of one run with -y, in order."""
    output = subject.scratch / "profile.json"
    started = time.monotonic()
    result = subject.python("-m", "bench.profile", str(output), str(subject.inventory), "deploy.py", "-y")
    whole = time.monotonic() - started
    if result.returncode != 0:
        raise RuntimeError(f"the profiled run failed:\n{result.stdout}{result.stderr}")
    found: _Watch = json.loads(output.read_text(encoding="ascii"))
    return {**found, "interpreter start and exit, the rest": whole - sum(found.values())}


def median_phases(subject: Subject, runs: int) -> _Watch:
    """The median of each phase over `runs` runs."""
    taken = [phases(subject) for _ in range(runs)]
    return {name: statistics.median(each.get(name, 0.0) for each in taken) for name in taken[0]}


def sections(machine: Machine, request: Request, runs: int = 5) -> _Watch:
    """Seconds by section of the snapshot script, the mean of `runs` in one shell (the clock has 10 ms steps)."""
    return mean_sections(machine.run("sudo -n sh -s", input=timed(request, runs)).stderr, runs)


def timed(request: Request, runs: int) -> str:
    """Shell that runs the snapshot script `runs` times and writes `SECTION END BEGIN` to stderr, in 10 ms."""
    # Without a fork: what is timed must not be the timing.
    clock = (
        "now() { read -r up rest </proc/uptime; at=${up%.*}${up#*.}; }\n"
        "section() { now; began=$at; printf '#begin %s\\n' \"$1\"; }\n"
        'end() { now; printf \'#end %s\\n\' "$1"; echo "$1 $at $began" >&2; }\n'
    )
    body = script(request)
    for name in ("section()", "end()"):
        start = body.index(f"\n{name}")
        body = body[:start] + body[body.index("\n", start + 1) :]
    return f"for round in $(seq {runs}); do (\n{clock}{body}\n) >/dev/null; done"


def mean_sections(told: str, runs: int) -> _Watch:
    """Seconds by section from what `timed` wrote; what a program said in between is passed over."""
    total: _Watch = {}
    for line in told.splitlines():
        name, *numbers = line.split() or [""]
        if len(numbers) == 2 and all(number.isdecimal() for number in numbers):
            total[name] = total.get(name, 0.0) + (int(numbers[0]) - int(numbers[1])) / 100 / runs
    return total


class _Stopwatch:
    """Exclusive times: a phase inside a phase is taken off the outer one."""

    def __init__(self) -> None:
        self.seconds: _Watch = {}
        self._inner = [0.0]

    def wrap(self, owner: Any, name: str, phase: str) -> None:
        """Time every call of `owner.name` as `phase`."""
        original: Callable[..., Any] = getattr(owner, name)

        def timed(*arguments: Any, **options: Any) -> Any:
            return self.call(phase, lambda: original(*arguments, **options))

        setattr(owner, name, timed)

    def call(self, phase: str, function: Callable[[], Any]) -> Any:
        """Time one call."""
        started = time.monotonic()
        self._inner.append(0.0)
        try:
            return function()
        finally:
            spent = time.monotonic() - started
            inner = self._inner.pop()
            self._inner[-1] += spent
            self.seconds[phase] = self.seconds.get(phase, 0.0) + spent - inner


def _main(output: Path, arguments: list[str]) -> None:
    watch = _Stopwatch()

    def load_pyinfra() -> Any:
        import pyinfra_cli.main

        return pyinfra_cli.main

    main = watch.call("import pyinfra", load_pyinfra)

    def load_ours() -> None:
        import operations.run
        import operations.verify  # noqa: F401

    watch.call("import mediahost and operations", load_ours)

    import paramiko
    from pyinfra.api.host import Host

    import operations.run
    from mediahost.secrets import crypto
    from operations import convergence

    watch.wrap(paramiko.SSHClient, "connect", "connect: TCP and the rest")
    watch.wrap(paramiko.Transport, "start_client", "connect: key exchange")
    watch.wrap(paramiko.Transport, "auth_publickey", "connect: log in")
    watch.wrap(crypto, "derive", "vault: key derivation")
    watch.wrap(operations.run, "load_catalog", "read the catalogue")
    watch.wrap(operations.run, "_plans", "validate, render")
    watch.wrap(Host, "get_fact", "the snapshot's exec")
    watch.wrap(convergence, "parse", "parse the snapshot")
    sys.argv = ["pyinfra", *arguments]
    try:
        watch.call("pyinfra's own run and the comparisons", main.main)
    finally:
        output.write_text(json.dumps(watch.seconds), encoding="ascii")


if __name__ == "__main__":
    _main(Path(sys.argv[1]), sys.argv[2:])
