"""Writes docs/proof/bench.md: figures, ratios, marks, and what they were taken on. It must name no host."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from bench.host import PROJECT
from lab.machine import Machine

PATH = PROJECT / "docs" / "proof" / "bench.md"
MOST_OF_SHELL = 3.0
LEAST_OF_ANSIBLE = 50.0
MOST_EXECS = 3


@dataclass(frozen=True)
class Findings:
    """Everything that was measured. `marks` names the product's, the shell's and Ansible's rows in `times`."""

    machine: Machine
    versions: Sequence[str]
    resources: Mapping[str, int]
    times: Mapping[str, Sequence[float]]
    medians: Mapping[str, float]
    load: tuple[float, float]
    counts: Sequence[tuple[str, str, int, int]]
    phases: Mapping[str, float]
    sections: Mapping[str, float]
    marks: tuple[str, str, str]


def versions() -> list[str]:
    """What ran on this side."""
    return [f"pyinfra {version('pyinfra')}", f"Python {platform.python_version()}"]


def write(found: Findings) -> Path:
    """The report's path."""
    PATH.parent.mkdir(parents=True, exist_ok=True)
    PATH.write_text("\n".join(_lines(found)) + "\n", encoding="utf-8")
    return PATH


def _lines(found: Findings) -> list[str]:
    product, shell, ansible = (found.medians[name] for name in found.marks)
    execs = max(count for _, _, count, _ in found.counts)
    resources = ", ".join(f"{count} {name}" for name, count in found.resources.items())
    return [
        "# What a run that changes nothing costs",
        "",
        "Written by `make bench`; bench/README.md says how it measures. All times are wall-clock seconds of one",
        "session, taken in turn.",
        "",
        f"- Date: {datetime.now(UTC):%Y-%m-%d %H:%M} UTC, commit {_commit()}",
        f"- Computer: {os.cpu_count()} cores, {_memory_gib()} GiB, {_processor()}; load average"
        f" {found.load[0]:.1f} at the start, {found.load[1]:.1f} at the end",
        f"- Guest: {found.machine.cpus} CPUs, {found.machine.memory_mib} MiB, {_emulation(found.machine)},"
        f" {_release(found.machine)}",
        f"- Versions: {', '.join(found.versions)}",
        f"- Resources compared: {resources} (together {sum(found.resources.values())})",
        "",
        "| run | median | least | most | runs |",
        "|---|---:|---:|---:|---:|",
        *(
            f"| {name} | {found.medians[name]:.2f} | {min(taken):.2f} | {max(taken):.2f} | {len(taken)} |"
            for name, taken in found.times.items()
        ),
        "",
        "| comparison | ratio | mark | |",
        "|---|---:|---:|---|",
        *(
            _mark(f"{name} / {found.marks[1]}", median / shell, MOST_OF_SHELL, median <= MOST_OF_SHELL * shell)
            for name, median in found.medians.items()
            if name not in found.marks[1:]
        ),
        _mark(
            f"{found.marks[2]} / {found.marks[0]}",
            ansible / product,
            LEAST_OF_ANSIBLE,
            ansible >= LEAST_OF_ANSIBLE * product,
            at_most=False,
        ),
        "",
        f"## Remote execs (at most {MOST_EXECS}: {'met' if execs <= MOST_EXECS else 'MISSED'})",
        "",
        "| stack | run | execs | connections |",
        "|---|---|---:|---:|",
        *(f"| {stack} | {run} | {count} | {connections} |" for stack, run, count, connections in found.counts),
        "",
        "## Where the product's time goes",
        "",
        "`pyinfra INVENTORY deploy.py -y`, medians of profiled runs:",
        "",
        *_shares(found.phases),
        "",
        "The snapshot's exec, inside the guest, by section of the script (without SSH and sudo):",
        "",
        *_shares(found.sections),
    ]


def _mark(name: str, ratio: float, mark: float, met: bool, at_most: bool = True) -> str:
    return f"| {name} | {ratio:.2f} | {'≤' if at_most else '≥'} {mark:.0f} | {'met' if met else 'MISSED'} |"


def _shares(seconds: Mapping[str, float]) -> list[str]:
    whole = sum(seconds.values())
    return [
        "| part | ms | share |",
        "|---|---:|---:|",
        *(
            f"| {name} | {each * 1000:.0f} | {each / whole:.0%} |"
            for name, each in sorted(seconds.items(), key=lambda item: -item[1])
        ),
        f"| all | {whole * 1000:.0f} | |",
    ]


def _commit() -> str:
    command = ["git", "-C", str(PROJECT), "describe", "--always", "--dirty", "--abbrev=10"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "unknown"


def _memory_gib() -> int:
    found = re.search(r"MemTotal:\s+(\d+) kB", Path("/proc/meminfo").read_text(encoding="ascii"))
    return round(int(found[1]) / 1024**2) if found else 0


def _processor() -> str:
    found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    return found[1].strip() if found else platform.machine()


def _emulation(machine: Machine) -> str:
    kind = machine.run("systemd-detect-virt", check=False).stdout.strip()
    return {"kvm": "KVM", "qemu": "software emulation (TCG)"}.get(kind, kind)


def _release(machine: Machine) -> str:
    return machine.run(". /etc/os-release; echo $PRETTY_NAME, kernel $(uname -r)").stdout.strip()
