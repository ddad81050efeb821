"""Nothing locks the owner out: after each mistake and accident a fresh login succeeds in the announced time."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from lab import faults, image
from lab.machine import Machine
from lab.network import UPLINK
from tests.lab.home import Home, told
from tests.lab.keys import key_pair
from tests.lab.waiting import becomes

pytestmark = [pytest.mark.lab, pytest.mark.proof("Lock-outs: a fresh login succeeds in the announced time", "edge")]

SECONDS = 60
"""What the trials announce (`rollback_after`), the least the product takes."""
# Beside the announced time: a boot, or the restore and its reloads, on a slow machine.
SLACK = 240
# Nobody of the lab has it: the control side's connections come from the guest's uplink.
ELSEWHERE = ["192.0.2.0/24"]
FOREIGN = "/etc/ssh/sshd_config.d/99-foreign.conf"


@pytest.fixture
def host(home: Home) -> Iterator[Home]:
    """The provisioned host, with the shortest time to prove a change."""
    home.data["rollback_after"] = SECONDS
    home.write_inventory()
    yield home
    home.data.clear()


def logs_in(machine: Machine, user: str = image.USER, seconds: int = 15) -> bool:
    """Whether a fresh connection, login and sudo succeed, asked by OpenSSH's client: not by the code under test."""
    options = ("ControlPath=none", f"ConnectTimeout={seconds}", f"User={user}")
    words = [word for option in options for word in ("-o", option)]
    command = [*machine.ssh_command()[:3], *words, machine.name, "sudo -n true"]
    return subprocess.run(command, capture_output=True, check=False, stdin=subprocess.DEVNULL).returncode == 0


def comes_back(machine: Machine, within: float, user: str = image.USER) -> bool:
    """Whether a fresh login succeeds before `within` seconds have passed."""
    return becomes(lambda: logs_in(machine, user=user), limit=within)


def proving(event: dict[str, Any]) -> bool:
    """The change is made, the proof is about to begin."""
    return bool(event["event"] == "proving")


@dataclass(frozen=True)
class Mistake:
    """Something an owner does. `breaks` runs on the host before the run; `data` is what he writes."""

    name: str
    data: dict[str, Any] = field(default_factory=dict)
    breaks: str = ""
    says: str = "no fresh login after the change"
    sample: bool = False


MISTAKES = (
    Mistake("a firewall that lets SSH in from elsewhere only", {"firewall_ssh_from": ELSEWHERE}, sample=True),
    # Port 1 of the lab's host: nobody forwards it.
    Mistake("a port that is closed on the way", {"sshd_port": 2222, "sshd_port_outside": 1}),
    Mistake("a port of which nobody said how to reach it", {"sshd_port": 2222}, says="sshd_port_outside"),
    Mistake(
        "a foreign drop-in that sshd cannot read",
        breaks=f"echo 'NoSuchKeyword yes' >{FOREIGN}; rm /etc/ssh/sshd_config.d/00-mediahost.conf",
        says="NoSuchKeyword",
    ),
    Mistake(
        "a foreign drop-in that denies the account of the runs, not yet in effect",
        breaks=f"echo 'DenyUsers {image.USER}' >{FOREIGN}; rm /etc/ssh/sshd_config.d/00-mediahost.conf",
        says="DenyUsers",
    ),
    Mistake(
        "a foreign drop-in that allows a group of others only, not yet in effect",
        breaks=f"echo 'AllowGroups nogroup' >{FOREIGN}; rm /etc/ssh/sshd_config.d/00-mediahost.conf",
        says="AllowGroups nogroup",
    ),
    Mistake(
        "a foreign Match block that takes the key away from the account of the runs, not yet in effect",
        breaks=f"printf 'Match User {image.USER}\\nPubkeyAuthentication no\\n' >{FOREIGN}",
        says="PubkeyAuthentication no",
    ),
)


@pytest.mark.parametrize(
    "mistake",
    [pytest.param(each, id=each.name, marks=[] if each.sample else [pytest.mark.exhaustive]) for each in MISTAKES],
)
def test_a_mistake_is_told_and_undone(host: Home, mistake: Mistake) -> None:
    machine = host.machine
    if mistake.breaks:
        machine.run(["sudo", "sh", "-c", mistake.breaks])
    host.write_inventory(**mistake.data)
    result = host.mediahost("apply")
    assert result.returncode == 1, told(result)
    assert mistake.says in told(result)
    assert comes_back(machine, within=SECONDS + SLACK)
    assert machine.run("sudo test -e /var/lib/mediahost/rollback/armed", check=False).returncode == 1


@pytest.mark.exhaustive
def test_a_key_that_is_not_the_owners_is_told_and_undone(host: Home, tmp_path: Path) -> None:
    """The account of the runs gets another key: the present connection goes on, the next one would not."""
    machine = host.machine
    _alice_runs(host)
    host.write_inventory(admins={"alice": [str(key_pair(tmp_path / "other"))]})
    result = host.mediahost("apply")
    assert result.returncode == 1, told(result)
    assert "no fresh login after the change" in told(result)
    assert logs_in(machine, user="alice")


@pytest.mark.exhaustive
def test_sudo_that_asks_for_a_password_nobody_has_is_told_and_undone(host: Home) -> None:
    machine = host.machine
    _alice_runs(host)
    host.write_inventory(admin_sudo_nopasswd=False)
    result = host.mediahost("apply")
    assert result.returncode == 1, told(result)
    assert "no fresh login after the change" in told(result)
    assert "a password is required" in told(result)
    # The run cannot become root any more to put it back: the host does, at the announced time.
    assert comes_back(machine, within=SECONDS + SLACK, user="alice")


def _alice_runs(host: Home) -> None:
    """Runs log in as an administrator that they manage."""
    host.data["ssh_user"] = "alice"
    host.write_inventory()
    assert logs_in(host.machine, user="alice")
    assert not logs_in(host.machine, user="bob"), "the check would let anybody pass"


def test_a_host_whose_control_side_died_undoes_the_change_by_itself(host: Home) -> None:
    machine = host.machine
    host.write_inventory(firewall_ssh_from=ELSEWHERE)
    assert host.apply_until(proving)
    assert not logs_in(machine), "the change does not lock anybody out: nothing is proven"
    assert comes_back(machine, within=SECONDS + SLACK)
    _converges(host)


@pytest.mark.exhaustive
def test_a_host_that_lost_power_before_the_proof_undoes_the_change_at_boot(host: Home) -> None:
    machine = host.machine
    host.write_inventory(firewall_ssh_from=ELSEWHERE)
    assert _killed_at_the_proof_then(host, machine.power_cut)
    machine.start()
    machine.wait_until_ready()
    assert logs_in(machine)
    assert machine.run("sudo test -e /var/lib/mediahost/rollback/armed", check=False).returncode == 1
    _converges(host)


@pytest.mark.exhaustive
def test_a_host_that_is_rebooted_before_the_proof_undoes_the_change_at_boot(host: Home) -> None:
    machine = host.machine
    boot = machine.run("cat /proc/sys/kernel/random/boot_id").stdout
    host.write_inventory(firewall_ssh_from=ELSEWHERE)
    assert _killed_at_the_proof_then(host, lambda: machine.run("sudo systemctl --no-block reboot", check=False))
    assert comes_back(machine, within=900)
    machine.wait_until_ready()
    assert machine.run("cat /proc/sys/kernel/random/boot_id").stdout != boot
    _converges(host)


@pytest.mark.exhaustive
def test_a_control_side_that_loses_the_network_leaves_a_host_that_comes_back(host: Home) -> None:
    machine = host.machine
    host.write_inventory(sshd_max_auth_tries=5)
    with faults.unplugged(machine, UPLINK):
        pass  # the cable can be pulled and plugged: what follows is not decided by a dead link
    assert logs_in(machine)
    told = _undone_on_the_console(machine)
    assert _killed_at_the_proof_then(host, lambda: machine.set_link(UPLINK, up=False))
    assert becomes(lambda: _undone_on_the_console(machine) > told, limit=SECONDS + SLACK)
    machine.set_link(UPLINK, up=True)
    assert comes_back(machine, within=SLACK)
    assert machine.run("sudo sshd -T | grep -i maxauthtries").stdout.split() == ["maxauthtries", "4"]
    _converges(host)


@pytest.mark.exhaustive
def test_a_run_during_a_pending_undo_puts_back_first_and_converges(host: Home) -> None:
    """The run before it died; its change is not known to let anybody in, however this one got here."""
    machine = host.machine
    host.write_inventory(sshd_max_auth_tries=5)
    assert host.apply_until(proving)
    machine.run("sudo test -e /var/lib/mediahost/rollback/armed")
    report = host.apply()
    assert report["changes"][0]["operation"] == "guard | unproven changes"
    assert machine.run("sudo sshd -T | grep -i maxauthtries").stdout.split() == ["maxauthtries", "5"]
    assert host.apply()["changes"] == []
    # The announced moment passes: nothing may be undone that has been proven since.
    _waits(machine, SECONDS + 5)
    assert machine.run("sudo sshd -T | grep -i maxauthtries").stdout.split() == ["maxauthtries", "5"]
    assert host.changes() == []


def test_a_change_that_is_proven_stays(host: Home) -> None:
    """The positive control of all others: the same way, without a mistake."""
    machine = host.machine
    host.write_inventory(sshd_max_auth_tries=5)
    report = host.apply()
    assert {change["operation"] for change in report["changes"]} == {"ssh | server"}
    _waits(machine, SECONDS + 5)
    assert machine.run("sudo sshd -T | grep -i maxauthtries").stdout.split() == ["maxauthtries", "5"]
    assert machine.run("systemctl list-timers --all --no-legend 'mediahost-rollback*'").stdout == ""
    assert host.changes() == []


@pytest.mark.exhaustive
def test_ssh_moves_to_another_port_and_the_next_run_follows(host: Home) -> None:
    machine = host.machine
    outside = machine.forward(2222)
    host.write_inventory(sshd_port=2222, sshd_port_outside=outside)
    report = host.apply()
    assert f"set ssh_port = {outside}" in str(report["notices"])
    assert not logs_in(machine), "the old port is still there"
    host.write_inventory(sshd_port=2222, sshd_port_outside=outside, ssh_port=outside)
    host.apply()
    assert host.apply()["changes"] == []


def _waits(machine: Machine, seconds: int) -> None:
    """Until the guest's own clock has gone on: a moment that passes is what is waited for, not a state."""
    machine.run(f"sleep {seconds}")


def _killed_at_the_proof_then(host: Home, then: Callable[[], object]) -> bool:
    def accident(event: dict[str, Any]) -> bool:
        if proving(event):
            then()
            return True
        return False

    return host.apply_until(accident)


def _undone_on_the_console(machine: Machine) -> int:
    """How often the machine has told there that it put a change back."""
    return machine.serial_log.read_text(errors="replace").count("was put back")


def _converges(host: Home) -> None:
    host.write_inventory()
    host.apply()
    assert host.changes() == []
