"""The guard's scripts, run for real in a mount namespace: what they copy, put back, and forget."""

from __future__ import annotations

import ast
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pyinfra.api import StringCommand
from pyinfra.connectors.local import LocalConnector
from pyinfra.connectors.ssh import SSHConnector
from pyinfra.connectors.util import SUDO_PASSWORD_REQUIRED_LINES

from facts.snapshot import Snapshot
from operations import guard, rollback
from operations.guard import SSHD_RELOAD, Guard, arm_script, disarm_script
from operations.lock import alone

GUARD = Guard(("/etc/ssh", "/etc/sudoers", "/etc/ssh.socket.d"), reload="echo reloaded >>/run/told")
RESTORE = "sh /var/lib/mediahost/rollback/restore"
# Everything below /etc with kind, mode, owner and content; the unit for the next boot is not part of the copy.
STATE = (
    "find /etc -path /etc/systemd -prune -o -printf '%p %y %m %U %l\\n' | sort;"
    " find /etc -path /etc/systemd -prune -o -type f -print | sort | xargs sha256sum"
)
SETTING = """mount -t tmpfs none /var/lib; mount -t tmpfs none /run; mount -t tmpfs none /etc
echo root:x:0:0::/root:/bin/sh >/etc/passwd
mkdir -p /etc/ssh/sshd_config.d; chmod 0700 /etc/ssh/sshd_config.d
echo before >/etc/ssh/sshd_config; echo kept >/etc/ssh/kept; echo gone >/etc/ssh/gone
mkdir /run/mediahost
chmod 0600 /etc/ssh/gone; ln -s kept /etc/ssh/link; echo sudo >/etc/sudoers; chmod 0440 /etc/sudoers
"""
CHANGE = """echo after >/etc/ssh/sshd_config; rm /etc/ssh/gone; chmod 0755 /etc/ssh/sshd_config.d
echo new >/etc/ssh/sshd_config.d/00-new.conf; mkdir /etc/ssh.socket.d; echo new >/etc/ssh.socket.d/a.conf
ln -sf gone /etc/ssh/link; chmod 0644 /etc/sudoers; mkdir /etc/ssh/new; echo new >/etc/ssh/new/file
"""


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """Stand-ins for systemd's programs, which write down what they are told."""
    if shutil.which("unshare") is None:
        pytest.fail("unshare (util-linux) is needed")
    for name in ("systemctl", "systemd-run"):
        program = tmp_path / name
        program.write_text(f'#!/bin/sh\necho "{name} $*" >>/run/told\n')
        program.chmod(0o755)
    return tmp_path


def run(programs: Path, *scripts: str) -> subprocess.CompletedProcess[str]:
    """The scripts, one after the other, as root of a namespace whose /etc, /run and /var/lib are its own."""
    steps = "\n".join((SETTING, f"export PATH={programs}:$PATH", *scripts))
    return subprocess.run(
        ["unshare", "-Urm", "sh", "-euc", steps], capture_output=True, text=True, check=False, timeout=60
    )


def arm(seconds: int = 300) -> str:
    return alone(arm_script(GUARD, seconds))


def test_what_was_at_stake_comes_back_exactly_and_is_taken_into_use(programs: Path) -> None:
    same = f"({STATE}) >/run/before\n{arm()}\n{CHANGE}\n({STATE}) >/run/changed\n{RESTORE}\n({STATE}) >/run/after"
    done = run(
        programs,
        same,
        "! cmp -s /run/before /run/changed || echo 'nothing was changed'",
        "rmdir /etc/ssh/new /etc/ssh.socket.d",  # directories that were not there are left, empty
        f"({STATE}) >/run/after; diff /run/before /run/after; cat /run/told",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nothing was changed" not in done.stdout
    assert done.stdout.count("reloaded") == 1
    assert "systemd-run --quiet --unit=mediahost-rollback --on-active=300" in done.stdout


def test_a_proven_change_stays_and_leaves_nothing_behind(programs: Path) -> None:
    gone = (
        "ls /var/lib/mediahost/rollback /etc/systemd/system/*rollback* /etc/systemd/system/*/*rollback* 2>/dev/null"
    )
    done = run(programs, arm(), CHANGE, disarm_script(), "cat /etc/ssh/sshd_config", f"{gone} || true; cat /run/told")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "after"
    assert done.stdout.splitlines()[1].startswith("systemctl")
    assert "systemctl stop mediahost-rollback.timer" in done.stdout
    assert "reloaded" not in done.stdout


def test_what_was_put_back_can_no_longer_be_proven(programs: Path) -> None:
    done = run(programs, arm(), CHANGE, RESTORE, f"{disarm_script()}")
    assert done.returncode == 1
    assert "put its settings back already" in done.stderr


def test_it_is_put_back_once(programs: Path) -> None:
    """The timer, the run and the next run may all come to it."""
    done = run(
        programs, arm(), CHANGE, RESTORE, "echo later >/etc/ssh/sshd_config", RESTORE, "cat /etc/ssh/sshd_config"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "later\n"


def test_at_boot_files_come_back_before_anything_reads_them(programs: Path) -> None:
    units = "cd /etc/systemd/system; ls -l *.wants; cat mediahost-rollback-at-boot.service"
    done = run(programs, arm(), units, CHANGE, f"{RESTORE} boot", "cat /etc/ssh/sshd_config /run/told")
    assert done.returncode == 0, done.stderr
    assert "mediahost-rollback-at-boot.service ->" in done.stdout
    assert "Before=network-pre.target ufw.service ssh.service ssh.socket" in done.stdout
    assert "\nbefore\n" in done.stdout
    assert "reloaded" not in done.stdout


@pytest.mark.parametrize(("tests", "reloads"), [("[ -d /run/sshd ]", True), ("false", False)])
def test_sshd_reads_what_was_put_back_when_it_takes_it_also_where_nobody_has_logged_in_since_boot(
    programs: Path, tests: str, reloads: bool
) -> None:
    program = f"printf '#!/bin/sh\\n{tests}\\n' >/usr/sbin/sshd; chmod 0755 /usr/sbin/sshd"
    done = run(programs, "mount -t tmpfs none /usr/sbin", program, SSHD_RELOAD, "echo >>/run/told; cat /run/told")
    assert done.returncode == 0, done.stderr
    assert ("systemctl try-reload-or-restart ssh.service" in done.stdout) is reloads


def test_the_copy_is_for_root_only(programs: Path) -> None:
    done = run(programs, arm(), "stat -c '%a' /var/lib/mediahost/rollback /var/lib/mediahost/rollback/restore")
    assert done.stdout.split() == ["700", "600"]


def test_only_what_a_run_left_unproven_is_put_back_by_the_next_one() -> None:
    assert rollback.pending_steps(Snapshot()) == []
    assert rollback.pending_steps(Snapshot(rolled_back="2026-11-21 10:00:00 UTC")) == []
    (step,) = rollback.pending_steps(Snapshot(rollback_armed="2026-11-21 10:05:00 UTC"))
    assert RESTORE in step.command


def test_no_operation_imports_another_late() -> None:
    """A cycle between them would have to be hidden that way."""
    modules = [ast.parse(path.read_text()) for path in Path(rollback.__file__).parent.glob("*.py")]
    assert len(modules) > 10
    functions = [node for tree in modules for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    late = [node for each in functions for node in ast.walk(each) if isinstance(node, ast.Import | ast.ImportFrom)]
    assert [ast.unparse(node) for node in late] == []


class AskedInVain(SSHConnector):
    """A new connection on which sudo wants a password and nobody is there: pyinfra's question ends in EOFError."""

    def __init__(self, *_: object) -> None:
        self.client = None

    def connect(self) -> None:
        """It can be reached."""

    def run_shell_command(self, *_: object, **__: object) -> Any:
        """What getpass does without a terminal."""
        raise EOFError


def test_a_question_that_nobody_answers_is_no_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "_PROOF_SECONDS", -1)
    monkeypatch.setattr(guard, "_as_this_run", lambda target: {"_sudo": True, "_sudo_password": "x"})
    target: Any = SimpleNamespace(connector=AskedInVain(), connector_data={})
    assert guard.fresh_login(target, None) == "EOFError"


def test_sudo_is_told_not_to_ask_for_a_password_that_the_run_was_not_given() -> None:
    command = StringCommand("true")
    target: Any = SimpleNamespace(connector_data={})
    asked, arguments = guard.unasked(target, command, {"_sudo": True, "_sudo_user": None, "_timeout": 5})
    assert asked.get_raw_value().endswith(" sh sudo -H -n true")
    assert arguments == {"_sudo": False, "_sudo_user": None, "_timeout": 5}
    given = {"_sudo": True, "_sudo_password": "x"}
    assert guard.unasked(target, command, given) == (command, given)
    target.connector_data["prompted_sudo_password"] = "x"
    assert guard.unasked(target, command, {"_sudo": True}) == (command, {"_sudo": True})


@pytest.mark.parametrize("line", SUDO_PASSWORD_REQUIRED_LINES)
def test_a_sudo_that_wants_a_password_is_told_and_pyinfra_does_not_ask_for_one(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sudo").write_text(f'#!/bin/sh\nshift 2\n"$@" && exit\necho "{line}" >&2\nexit 1\n')
    (tmp_path / "sudo").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr("pyinfra.connectors.util.getpass", lambda _: pytest.fail("it asks"))
    target: Any = SimpleNamespace(connector_data={}, print_prefix="", data={})

    def tried(command: str) -> tuple[bool, str]:
        asked, arguments = guard.unasked(target, StringCommand(command), {"_sudo": True})
        connector = LocalConnector(SimpleNamespace(print_output=False, print_input=False), target)  # type: ignore[arg-type]
        worked, output = connector.run_shell_command(asked, **arguments)
        return worked, output.output

    assert tried("true") == (True, "")
    assert tried("false") == (False, f"({line})")
