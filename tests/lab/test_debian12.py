"""Debian 12: its older OpenSSH (9.2) is hardened by the same run; ssh-audit and OpenSCAP judge it before and after.

The stages up to SSH only: this release's own Docker is refused, and Docker's packages for it cannot be had here.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from lab.image import BARE
from lab.machine import Machine
from tests.lab.conftest import MakeMachine
from tests.lab.home import LIMIT, ROOT, Home
from tests.lab.test_yardsticks import ACCEPTED, audit, notes

pytestmark = [
    pytest.mark.lab,
    pytest.mark.exhaustive,
    pytest.mark.proof("Debian 12: SSH of an older release", "edge"),
]
DEPLOY = Path(__file__).with_name("host_only.py")

# What the standard profile still finds: docs/yardsticks.md says why each stays.
EXPLAINED = {
    "file_permissions_systemmap",
    "package_ntp_installed",
    "package_rsyslog_installed",
    "partition_for_home",
    "partition_for_tmp",
    "partition_for_var",
    "partition_for_var_log",
    "partition_for_var_log_audit",
    "service_rsyslog_enabled",
    "sshd_allow_only_protocol2",
    "sshd_disable_empty_passwords",
    "sshd_disable_root_login",
    "sshd_set_idle_timeout",
    "sshd_set_keepalive",
}
CONTENT = "/tmp/ssg/usr/share/xml/scap/ssg/content/ssg-debian12-ds.xml"
PROFILE = "xccdf_org.ssgproject.content_profile_standard"


@pytest.fixture(scope="session")
def older(make_machine: MakeMachine) -> Machine:
    """A bare Debian 12."""
    return make_machine("older", memory_mib=1024, image=replace(BARE, release="bookworm"))


def changes(home: Home) -> list[str]:
    """What a run of the first stages changed; it must succeed."""
    events = home.repository / "events"
    events.write_text("")
    result = subprocess.run(
        [sys.executable, "-m", "pyinfra", str(home.inventory), str(DEPLOY), "-y"],
        cwd=ROOT,
        env={**home.environment, "MEDIAHOST_EVENTS": str(events)},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=LIMIT,
        check=False,
    )
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"
    told = [json.loads(line) for line in events.read_text().splitlines()]
    return [event["what"] for event in told if event["event"] == "change"]


def test_ssh_of_debian_12_is_hardened_and_a_second_run_changes_nothing(older: Machine, tmp_path: Path) -> None:
    assert "OpenSSH_9.2" in older.run("ssh -V 2>&1").stdout
    assert notes(json.loads(audit(older, "-j").stdout), "fail"), "it has no fault before: nothing would be shown"
    equip(older)
    before = failed_rules(older)
    home = Home(tmp_path, [older])
    home.init()
    assert changes(home)
    audited = json.loads(audit(older, "-j").stdout)
    assert notes(audited, "fail") == []
    assert [each for each in notes(audited, "warn") if not ACCEPTED.search(each)] == []
    assert changes(home) == []
    assert failed_rules(older) <= EXPLAINED
    assert before - EXPLAINED, "it finds nothing before: nothing would be shown"


def equip(machine: Machine) -> None:
    """OpenSCAP of this release, and the content for it, which only the next release's package has."""
    lists = "-o Dir::Etc::SourceList=/dev/null -o Dir::Etc::SourceParts=/tmp/next -o Dir::State::Lists=/tmp/lists"
    machine.run(
        "sudo apt-get -qq update && sudo DEBIAN_FRONTEND=noninteractive apt-get -qq install -y openscap-scanner && "
        "mkdir -p /tmp/next /tmp/lists/partial && "
        "sed s/bookworm/trixie/ /etc/apt/sources.list.d/debian.sources >/tmp/next/debian.sources && "
        f"cd /tmp && sudo apt-get -qq {lists} update && apt-get -qq {lists} download ssg-debian && "
        "dpkg-deb -x ssg-debian_*.deb /tmp/ssg && sudo rm -rf /tmp/next /tmp/lists"
    )


def failed_rules(machine: Machine) -> set[str]:
    """The rules of the profile that the machine does not keep."""
    told = machine.run(f"sudo oscap xccdf eval --profile {PROFILE} {CONTENT}", check=False, limit=1800).stdout
    # A word on a line of its own, its value indented on the next.
    label, rule, results = "", "", {}
    for line in told.splitlines():
        value = line.strip()
        if line == value:
            label = value
        elif label == "Rule":
            rule = value.removeprefix("xccdf_org.ssgproject.content_rule_")
        elif label == "Result":
            results[rule] = value
    assert "pass" in results.values(), told
    return {rule for rule, result in results.items() if result == "fail"}
