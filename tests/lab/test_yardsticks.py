"""Yardsticks that nobody here wrote: ssh-audit from outside, Lynis inside."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lab.machine import Machine
from tests.lab.home import Home

pytestmark = [pytest.mark.lab, pytest.mark.proof("Yardsticks: ssh-audit and Lynis", "edge")]

# The control side's paramiko has no post-quantum key exchange yet, so one without stays offered after those.
ACCEPTED = re.compile("post-quantum")
LEAST_INDEX = 90


def audit(machine: Machine, *options: str) -> subprocess.CompletedProcess[str]:
    """ssh-audit against the machine's sshd, from the lab's host."""
    program = Path(sys.executable).with_name("ssh-audit")
    words = [str(program), "--skip-rate-test", *options, "-p", str(machine.ssh_port), "127.0.0.1"]
    return subprocess.run(words, capture_output=True, text=True, check=False)


def notes(audited: dict[str, Any], kind: str) -> list[str]:
    """Every note of a kind, with the algorithm it is about."""
    return [
        f"{algorithm['algorithm']}: {note}"
        for family in ("kex", "key", "enc", "mac")
        for algorithm in audited[family]
        for note in algorithm["notes"].get(kind, [])
    ]


def test_ssh_audit_fails_nothing_and_warns_of_the_documented_only(home: Home) -> None:
    audited = json.loads(audit(home.machine, "-j").stdout)
    assert notes(audited, "fail") == []
    warned = notes(audited, "warn")
    assert [each for each in warned if not ACCEPTED.search(each)] == []
    assert warned, "the accepted warning is gone: take it out of the documentation"


@pytest.mark.exhaustive
def test_ssh_audit_finds_fault_with_a_host_we_have_not_touched(machine: Machine) -> None:
    """The positive control of the claim above."""
    assert notes(json.loads(audit(machine, "-j").stdout), "fail")


@pytest.mark.exhaustive
def test_lynis_gives_the_host_its_mark(home: Home) -> None:
    index = lynis(home.machine)
    assert index >= LEAST_INDEX


def lynis(machine: Machine) -> int:
    """Lynis' hardening index of a machine, 0 to 100."""
    machine.run("sudo apt-get -qq update && sudo DEBIAN_FRONTEND=noninteractive apt-get -qq install -y lynis")
    machine.run("sudo lynis audit system --quick --no-colors --quiet", check=False, limit=3600)
    report = machine.run("sudo cat /var/log/lynis-report.dat").stdout
    found = re.search(r"^hardening_index=(\d+)$", report, re.MULTILINE)
    assert found is not None
    return int(found[1])
