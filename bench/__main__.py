"""`make bench`: times a run that changes nothing against both yardsticks and writes docs/proof/bench.md.

All figures of a table come from one run, taken in turn, so that what else the computer does meets them all. No
figure is a test: tests/lab/test_exec_count.py holds what can be held, the number of remote execs.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from bench import growth, host, profile, report, resources, shell
from bench.ansible import playbook, runner
from bench.host import BenchError, Subject
from lab.errors import LabError
from operations.verify import request

PRODUCT = "mediahost apply"
SHELL = "shell script"
ANSIBLE = "Ansible playbook"


@dataclass
class Times:
    """Wall-clock seconds of every run, by what was run."""

    seconds: dict[str, list[float]] = field(default_factory=dict)

    def take(self, name: str, action: Callable[[], None]) -> None:
        """Time `action`, which raises when it did not do what it was to do."""
        started = time.monotonic()
        action()
        self.seconds.setdefault(name, []).append(time.monotonic() - started)

    def medians(self) -> dict[str, float]:
        """The median of each."""
        return {name: statistics.median(taken) for name, taken in self.seconds.items()}


def main() -> None:
    """Measure and write the report; exit code 1 with one message when a figure would not be valid."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--runs", type=int, default=5, help="timed runs of each but Ansible (default 5, at least 3)")
    parser.add_argument("--ansible-runs", type=int, default=1, help="timed runs of the playbook (default 1; minutes)")
    parser.add_argument("--destroy", action="store_true", help="delete the machine afterwards (else it is kept, off)")
    options = parser.parse_args()
    if options.runs < 3 or options.ansible_runs < 1:
        parser.error("at least 3 runs, and 1 of Ansible")
    try:
        _bench(options.runs, options.ansible_runs, options.destroy)
    except (BenchError, LabError) as error:
        sys.exit(f"bench: {error}")


def _bench(runs: int, ansible_runs: int, destroy: bool) -> None:
    started = time.monotonic()

    def tell(text: str) -> None:
        print(f"{time.monotonic() - started:6.0f} s  {text}", flush=True)

    programs = runner.environment(tell)
    subject = host.ready(tell)
    load = os.getloadavg()[0]
    try:
        wanted, plan = resources.of(subject)
        script = shell.script(wanted)
        (subject.scratch / "check.sh").write_text(script, encoding="utf-8")
        tell("Does the shell script see a difference when there is one?")
        _control(subject, script, wanted)
        book = subject.scratch / "playbook.yaml"
        book.touch(mode=0o600)
        book.write_text(playbook.playbook(wanted), encoding="utf-8")
        times = _alternating(subject, script, runs, lambda: _play(programs, book, subject, tell), ansible_runs, tell)
        tell("Counting remote execs")
        counts = growth.measure(subject, tell)
        tell("Where the time goes")
        phases = profile.median_phases(subject, runs)
        sections = profile.sections(subject.machine, request(plan))
        path = report.write(
            report.Findings(
                machine=subject.machine,
                versions=[runner.version(programs), *report.versions()],
                resources=wanted.counts(),
                times=times.seconds,
                medians=times.medians(),
                load=(load, os.getloadavg()[0]),
                counts=counts,
                phases=phases,
                sections=sections,
                marks=(PRODUCT, SHELL, ANSIBLE),
            )
        )
        print(path.read_text(encoding="utf-8"))
    finally:
        (subject.scratch / "playbook.yaml").unlink(missing_ok=True)
        if destroy:
            subject.machine.destroy()
        else:
            subject.machine.shutdown()


def _alternating(
    subject: Subject,
    script: str,
    runs: int,
    ansible: Callable[[], int],
    ansible_runs: int,
    tell: Callable[[str], None],
) -> Times:
    contenders: dict[str, Callable[[], None]] = {
        SHELL: lambda: _same(subject, script),
        "pyinfra -y": lambda: _nothing_to_do(subject.pyinfra("-y")),
        "pyinfra --dry": lambda: _nothing_to_do(subject.pyinfra("--dry")),
        "mediahost plan": lambda: _nothing_to_do(subject.mediahost("plan")),
        PRODUCT: lambda: _nothing_to_do(subject.mediahost("apply")),
    }
    times = Times()

    def play() -> None:
        # A first run may set something its own way, such as an owner by name; then it is not one without changes.
        for last in (False, True):
            started = time.monotonic()
            if ansible() == 0:
                times.seconds.setdefault(ANSIBLE, []).append(time.monotonic() - started)
                tell(f"{ANSIBLE} {times.seconds[ANSIBLE][-1]:.1f}")
                return
            if last:
                raise BenchError("the playbook changes something each time: it does not describe the same state")

    for number in range(runs):
        taken = _round(subject, contenders, tell)
        for name, seconds in taken.items():
            times.seconds.setdefault(name, []).append(seconds)
        tell(f"round {number + 1}: " + ", ".join(f"{name} {seconds:.2f}" for name, seconds in taken.items()))
        # The slow one in the middle of the others, not at an end of its own.
        if number >= runs // 2 and len(times.seconds.get(ANSIBLE, [])) < ansible_runs:
            play()
    while len(times.seconds[ANSIBLE]) < ansible_runs:
        play()
    return times


def _round(
    subject: Subject, contenders: dict[str, Callable[[], None]], tell: Callable[[str], None]
) -> dict[str, float]:
    """Seconds of each contender, one after the other.

    On an overloaded computer a container can fail its health check, and mending it is then right: such a round is
    thrown away whole and taken again.
    """
    for _ in range(3):
        times = Times()
        try:
            for name, action in contenders.items():
                times.take(name, action)
        except BenchError as error:
            tell(f"this round does not count, the machine changed by itself:\n{error}")
            host.converge(subject, tell)
            continue
        return {name: seconds for name, (seconds,) in times.seconds.items()}
    raise BenchError("the machine does not stay as it is: the computer is overloaded")


def _same(subject: Subject, script: str) -> None:
    result = shell.run(subject.machine, script)
    if result.returncode != 0 or result.stdout:
        raise BenchError(f"the shell script finds differences:\n{result.stdout}{result.stderr}")


def _nothing_to_do(result: host.Finished) -> None:
    if result.returncode != 0 or host.changes(result):
        raise BenchError(f"a run was to change nothing:\n{result.stdout}{result.stderr}")


def _play(programs: Path, book: Path, subject: Subject, tell: Callable[[str], None]) -> int:
    """How many tasks changed something in one run of the playbook."""
    recap = runner.run(programs, book, subject.machine)
    tell(f"playbook: ok={recap.ok} changed={recap.changed}")
    return recap.changed


def _control(subject: Subject, script: str, wanted: resources.Resources) -> None:
    """Each kind of difference, made and seen by name, then undone; a script that sees nothing costs nothing."""
    _same(subject, script)
    for subject_line, make, undo in shell.controls(wanted):
        subject.machine.run(["sudo", "-n", "sh", "-c", make])
        result = shell.run(subject.machine, script)
        subject.machine.run(["sudo", "-n", "sh", "-c", undo])
        if result.returncode != 1 or subject_line not in result.stdout:
            raise BenchError(f"the shell script does not see: {make}\n{result.stdout}{result.stderr}")
    _same(subject, script)


if __name__ == "__main__":
    main()
