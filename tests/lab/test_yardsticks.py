"""Yardsticks that nobody here wrote: ssh-audit from outside, Lynis inside."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from facts.snapshot import parse, script
from lab import image
from lab.machine import Machine
from mediahost.config import read
from mediahost.render import ssh as wanted
from operations import ssh
from tests.lab.home import Home, told

pytestmark = [pytest.mark.lab, pytest.mark.proof("Yardsticks: ssh-audit and Lynis", "edge")]

# The control side's paramiko has no post-quantum key exchange yet, so one without stays offered after those.
ACCEPTED = re.compile("post-quantum")
LEAST_INDEX = 90

# All that a home media server can have without harm; docs/hardening.md tells the price.
HARDEST: dict[str, Any] = {
    "file_integrity": True,
    "hardening_optional": ["all"],
    "sshd_max_auth_tries": 3,
    "sshd_allow_tcp_forwarding": "no",
}
# What Lynis still suggests then: docs/yardsticks.md says why each stays.
EXPLAINED = {
    "ACCT-9626",
    "AUTH-9284",
    "AUTH-9286",
    "BOOT-5180",
    "BOOT-5264",
    "DEB-0280",
    "DEB-0810",
    "DEB-0880",
    "FILE-6310",
    "FIRE-4513",
    "HRDN-7230",
    "KRNL-6000",
    "LOGG-2154",
    "LYNIS",
    "NAME-4028",
    "PKGS-7394",
    "SSH-7408 MaxSessions",
    "SSH-7408 Port",
    "TOOL-5002",
}


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
def test_the_strict_policy_is_refused_while_the_control_side_could_not_log_in(home: Home) -> None:
    home.write_inventory(sshd_crypto_policy="strict")
    result = home.mediahost("apply")
    assert result.returncode == 1, told(result)
    assert "could never log in again" in told(result)
    home.write_inventory()
    assert home.changes() == []


@pytest.mark.exhaustive
def test_the_strict_policy_passes_ssh_audits_own(home: Home) -> None:
    """Taken into use by hand, since a run refuses it here; OpenSSH's client, which is newer, still logs in."""
    machine = home.machine
    settings = read("host", {"sshd_crypto_policy": "strict", "admins": {"alice": [f"{image.ssh_key()}.pub"]}})
    request = ssh.request(settings)
    seen = parse(machine.run("sudo sh -s", input=script(request)).stdout.splitlines(), request)
    drop_in = wanted.drop_in(settings, ssh.server(settings, seen))
    policy = ("-P", "Hardened Debian 13 (version 1)")
    assert audit(machine, *policy).returncode != 0, "the policy passes without it"
    machine.run(["sudo", "sh", "-c", f"cat >{drop_in.path} && systemctl reload ssh"], input=drop_in.content.decode())
    judged = audit(machine, *policy)
    assert judged.returncode == 0, judged.stdout
    assert notes(json.loads(audit(machine, "-j").stdout), "warn") == []
    assert machine.run("true").returncode == 0


@pytest.mark.exhaustive
def test_lynis_gives_the_host_its_mark_and_suggests_nothing_that_is_not_explained(home: Home) -> None:
    home.write_inventory(**HARDEST)
    home.apply()
    index, suggestions = lynis(home.machine)
    assert index >= LEAST_INDEX, "\n".join(suggestions)
    names = {suggested(line) for line in suggestions}
    assert names - EXPLAINED == set(), "\n".join(suggestions)
    assert names & EXPLAINED, "it suggests nothing at all: nothing would be shown"
    assert home.changes() == []


@pytest.mark.exhaustive
def test_optional_controls_harm_no_unit_and_are_given_back(home: Home) -> None:
    home.write_inventory(hardening_optional=["all"])
    home.apply()
    assert traces(home.machine) == {"lastcomm", "needrestart", "apt-listchanges", "usbguard", "/dev"}
    # The machine has no USB bus: its guard must wait for one, not fail.
    failed = home.machine.run("systemctl list-units --failed --plain --no-legend").stdout
    assert not re.search("usbguard|acct|listchanges|remount-fs", failed), failed
    home.write_inventory()
    home.apply()
    assert traces(home.machine) == set()
    assert home.changes() == []


def traces(machine: Machine) -> set[str]:
    """What there is of the optional controls: programs, and /dev where nothing in it can be executed."""
    programs = "for name in lastcomm needrestart apt-listchanges usbguard; do command -v $name; done"
    found = {Path(line).name for line in machine.run(f"PATH=/usr/bin:/usr/sbin; {programs}; true").stdout.split()}
    options = machine.run("findmnt -no OPTIONS /dev").stdout.strip().split(",")
    return found | ({"/dev"} if "noexec" in options else set())


def lynis(machine: Machine) -> tuple[int, list[str]]:
    """Lynis' hardening index of a machine, 0 to 100, and what it suggests."""
    machine.run("sudo apt-get -qq update && sudo DEBIAN_FRONTEND=noninteractive apt-get -qq install -y lynis")
    machine.run("sudo lynis audit system --quick --no-colors --quiet", check=False, limit=3600)
    report = machine.run("sudo cat /var/log/lynis-report.dat").stdout
    found = re.search(r"^hardening_index=(\d+)$", report, re.MULTILINE)
    assert found is not None
    return int(found[1]), [line for line in report.splitlines() if line.startswith("suggestion[]")]


def suggested(line: str) -> str:
    """The test of a suggestion; of SSH's options, which share one test, the option too."""
    test, _, details, *_ = line.removeprefix("suggestion[]=").split("|")
    return f"{test} {details.split()[0]}" if test == "SSH-7408" else test
