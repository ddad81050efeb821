"""A run that changes nothing costs at most three remote execs a host, counted by the host's own sshd.

No time is asserted here: `make bench` measures those. The counter itself is tried first, so that a low number
cannot come from a counter that sees nothing.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

from bench.execs import counted
from tests.lab.home import DEPLOY, ROOT, Home, told

pytestmark = [pytest.mark.lab, pytest.mark.proof("A bare machine, and the second run")]

MOST_EXECS = 3


def test_the_counter_sees_every_kind_of_exec(home: Home) -> None:
    ssh = [*home.machine.ssh_command()[:-1], "-o", "ControlMaster=no", "-o", "ControlPath=none"]
    name = home.machine.name
    with counted(home.machine) as tally:
        for _ in range(4):
            subprocess.run([*ssh, name, "true"], stdin=subprocess.DEVNULL, check=True)
        subprocess.run([*ssh, name], input=b"exit\n", stdout=subprocess.DEVNULL, check=True)
        sftp = ["sftp", "-q", "-b", "-", *ssh[1:], name]
        subprocess.run(sftp, input=b"pwd\n", stdout=subprocess.DEVNULL, check=True)
    assert sorted(tally.sessions) == ["command"] * 4 + ["shell", "subsystem 'sftp'"]
    assert tally.connections == 6


@pytest.mark.parametrize("verb", ["apply", "plan"])
def test_a_run_that_changes_nothing_needs_at_most_three_execs(home: Home, verb: str) -> None:
    with counted(home.machine) as tally:
        result = home.mediahost(verb, "--json")
    assert result.returncode == 0, told(result)
    assert '"changes": []' in result.stdout
    assert 1 <= tally.execs <= MOST_EXECS, tally.sessions
    assert tally.connections == 1


def test_pyinfra_by_itself_needs_no_more(home: Home) -> None:
    with counted(home.machine) as tally:
        result = subprocess.run(
            [sys.executable, "-m", "pyinfra", str(home.inventory), str(DEPLOY), "-y"],
            cwd=ROOT,
            env=home.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
    assert result.returncode == 0, told(result)
    assert "mending" not in result.stdout + result.stderr
    assert 1 <= tally.execs <= MOST_EXECS, tally.sessions


def test_a_file_that_differs_costs_execs_that_are_counted(home: Home) -> None:
    """The positive control of the count: a run with work to do is not within the limit by accident."""
    home.machine.run("sudo chmod 0600 /etc/sysctl.d/60-mediahost.conf")
    with counted(home.machine) as tally:
        changes = home.apply()["changes"]
    assert len(changes) == 1
    assert tally.execs > 1
