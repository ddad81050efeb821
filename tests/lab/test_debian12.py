"""Debian 12: its older OpenSSH (9.2) is hardened by the same run, and ssh-audit finds no fault with it.

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
    home = Home(tmp_path, [older])
    home.init()
    assert changes(home)
    audited = json.loads(audit(older, "-j").stdout)
    assert notes(audited, "fail") == []
    assert [each for each in notes(audited, "warn") if not ACCEPTED.search(each)] == []
    assert changes(home) == []
