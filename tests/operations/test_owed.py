"""Restarts that are owed, as a plan foresees them."""

from __future__ import annotations

from pathlib import Path

import pytest

from mediahost import wanted
from mediahost.config import read
from mediahost.render import fail2ban
from operations import owed, verify
from tests.operations.test_deploy import BARE, CATALOG, DATA, Project

MOUNT = r"mnt-my\x2ddisk.mount"


@pytest.mark.parametrize(
    ("commands", "before", "after"),
    [
        pytest.param((), {"a.service"}, {"a.service"}, id="nothing"),
        pytest.param((owed.mark("a.service"),), set(), {"a.service"}, id="marked"),
        pytest.param((owed.clear("a.service"),), {"a.service", "b.service"}, {"b.service"}, id="cleared"),
        pytest.param((f"{owed.mark(MOUNT)}\nrm x",), set(), {MOUNT}, id="in quotes"),
        pytest.param((f"systemctl restart x\n{owed.clear(MOUNT)}",), {MOUNT}, set(), id="cleared after a restart"),
        pytest.param((owed.mark("a.service"), owed.clear("a.service")), set(), set(), id="one after the other"),
        pytest.param((f"{owed.clear('a.service')}\n{owed.mark('a.service')}",), set(), {"a.service"}, id="in order"),
        pytest.param(("rm -f /etc/pending/a.service",), {"a.service"}, {"a.service"}, id="another file"),
    ],
)
def test_marks_are_followed_through_commands(commands: tuple[str, ...], before: set[str], after: set[str]) -> None:
    assert owed.after(commands, frozenset(before)) == after


def test_a_plan_tells_the_restart_that_a_file_of_another_operation_will_ask_for(tmp_path: Path) -> None:
    seen = verify.request(wanted.build("one", read("one", DATA), CATALOG, lambda entry, kind: "a secret"))
    blocks: list[str] = []
    for unit in sorted(seen.units):
        there = unit == fail2ban.UNIT
        states = (
            ("loaded", "active", "running", "enabled", "no") if there else ("not-found", "inactive", "dead", "", "no")
        )
        names = ("LoadState", "ActiveState", "SubState", "UnitFileState", "NeedDaemonReload")
        blocks += [*(f"{name}={state}" for name, state in zip(names, states, strict=True)), ""]
    place = BARE.index("#begin units") + 1
    project = Project(tmp_path, {"one": DATA}, [*BARE[:place], *blocks, *BARE[place:]])
    done = project.run("--dry")
    assert done.returncode == 0, done.stdout + done.stderr
    told = [event for event in project.told("planned") if event["operation"].startswith("fail2ban | ")]
    files = [event["what"] for event in told if event["operation"] == "fail2ban | jails and filters"]
    assert any(what.endswith(": missing") for what in files)
    assert not any(fail2ban.UNIT in what for what in files)
    (first, *_) = [event["what"] for event in told if event["operation"] == "fail2ban | fail2ban"]
    assert first == f"{fail2ban.UNIT}: runs with an older configuration, is restarted (bans come back)"
