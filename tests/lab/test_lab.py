"""The lab keeps its own promises: what it restores, cuts, joins and records is what really happened."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from lab import faults, inventory, network
from lab.errors import LabError
from lab.machine import CommandFailedError, Machine, all_machines
from lab.network import Packet
from tests.lab.waiting import becomes

pytestmark = pytest.mark.lab

PROJECT = Path(__file__).parents[2]


def test_a_bare_machine_boots_debian_13_with_nothing_of_ours_on_it(machine: Machine) -> None:
    assert "VERSION_CODENAME=trixie" in machine.run("cat /etc/os-release").stdout
    assert machine.run("hostname").stdout.strip() == machine.name
    assert machine.run("systemctl --failed --plain --no-legend").stdout == ""
    assert machine.run("command -v sudo curl; true").stdout.split() == ["/usr/bin/sudo", "/usr/bin/curl"]
    assert machine.run("command -v python3 docker ufw; true").stdout == ""
    assert machine.run("ls /usr/sbin/sshd").returncode == 0
    assert machine.run("ls /usr/local/sbin").stdout == ""
    assert machine.run("sudo passwd --status root").stdout.split()[1] == "L"


def test_a_bare_machine_installs_a_package_from_the_mirror(machine: Machine) -> None:
    assert machine.run("command -v tree", check=False).returncode != 0
    machine.run("sudo apt-get -qq update && sudo DEBIAN_FRONTEND=noninteractive apt-get -qq install -y tree")
    assert machine.run("command -v tree").returncode == 0


def test_a_restore_brings_a_deleted_file_back_and_takes_a_new_one_away(machine: Machine) -> None:
    machine.run("echo kept > kept && sync")
    machine.snapshot("kept")
    machine.run("rm kept && touch added")
    assert machine.run("cat kept", check=False).returncode != 0
    machine.restore("kept")
    assert machine.run("cat kept").stdout == "kept\n"
    assert machine.run("test -e added", check=False).returncode == 1


def test_a_restore_works_on_a_machine_that_was_powered_off(machine: Machine) -> None:
    boot = machine.run("cat /proc/sys/kernel/random/boot_id").stdout
    machine.snapshot("before-off")
    machine.shutdown()
    assert not machine.is_running()
    machine.restore("before-off")
    assert machine.run("cat /proc/sys/kernel/random/boot_id").stdout == boot


def test_the_clock_of_a_restored_machine_is_right(machine: Machine) -> None:
    machine.snapshot("earlier")
    machine.run("sudo date -s @1000000000")
    assert _clock_error(machine) > 1000
    machine.restore("earlier")
    assert _clock_error(machine) < 5


def test_what_was_flushed_survives_a_power_cut(machine: Machine) -> None:
    boot = machine.run("cat /proc/sys/kernel/random/boot_id").stdout
    machine.run("echo flushed > flushed && sync && echo lost > lost")
    faults.power_cut(machine)
    assert machine.run("cat /proc/sys/kernel/random/boot_id").stdout != boot
    assert machine.run("cat flushed").stdout == "flushed\n"
    # Written a moment before the cut and never flushed: were it there, the cut would have been an orderly stop.
    assert machine.run("cat lost", check=False).stdout == ""


def test_two_machines_reach_each_other_and_the_capture_sees_it(machine: Machine, neighbour: Machine) -> None:
    def from_neighbour(packet: Packet) -> bool:
        return packet.source_mac == network.mac(neighbour.index, network.SEGMENT) and packet.protocol == 6

    path = machine.start_capture()
    assert machine.run("cat /proc/uptime").stdout  # traffic on the uplink, not on the segment
    machine.stop_capture()
    assert network.count(path, from_neighbour) == 0

    machine.start_capture()
    for address in (machine.address4, machine.address6):
        assert _greeting(neighbour, address) == "SSH-2.0", address
    machine.stop_capture()
    seen = [packet for packet in network.packets(path) if from_neighbour(packet)]
    assert {packet.source for packet in seen} == {neighbour.address4, neighbour.address6}
    assert {packet.destination_port for packet in seen} == {22}
    assert network.count(path, lambda packet: packet.source == network.LAB_HOST) == 0


def test_a_pulled_cable_ends_the_traffic_until_it_is_plugged_again(machine: Machine, neighbour: Machine) -> None:
    assert _greeting(neighbour, machine.address4) == "SSH-2.0"
    with faults.unplugged(machine):
        assert _greeting(neighbour, machine.address4, limit=5) == ""
    assert becomes(lambda: _greeting(neighbour, machine.address4) == "SSH-2.0")


def test_a_paused_machine_does_not_answer_and_goes_on_afterwards(machine: Machine) -> None:
    machine.run("touch before")
    with faults.paused(machine), pytest.raises(subprocess.TimeoutExpired):
        machine.run("true", limit=3)
    assert machine.run("ls before").returncode == 0
    assert _clock_error(machine) < 5


def test_a_full_disk_refuses_a_write_even_to_root_and_is_free_again(machine: Machine) -> None:
    write = "sudo dd if=/dev/zero of=/var/lib/block bs=64k count=1 conv=fsync"
    assert machine.run(write, check=False).returncode == 0
    machine.run("sudo rm /var/lib/block")
    with faults.disk_full(machine):
        refused = machine.run(write, check=False)
        assert refused.returncode != 0
        assert "No space left on device" in refused.stderr
    machine.run("sudo rm -f /var/lib/block")
    assert machine.run(write, check=False).returncode == 0


def test_a_forwarded_port_reaches_the_guest_and_lasts_over_a_restore(machine: Machine) -> None:
    port = machine.forward(2222)
    socket_unit = "[Socket]\nListenStream=2222\nAccept=yes\n"
    machine.run("sudo tee /run/systemd/system/greet.socket", input=socket_unit)
    machine.run(
        "sudo tee /run/systemd/system/greet@.service",
        input="[Service]\nExecStart=echo hello\nStandardOutput=socket\n",
    )
    machine.run("sudo systemctl daemon-reload && sudo systemctl start greet.socket")
    assert _said(port) == "hello\n"
    machine.snapshot("greeting")
    machine.restore("greeting")
    assert machine.forward(2222) == port
    assert _said(port) == "hello\n"


def test_a_failed_command_tells_what_it_said(machine: Machine) -> None:
    with pytest.raises(CommandFailedError, match="No such file"):
        machine.run("cat /nowhere")


def test_only_running_machines_are_in_the_inventory(machine: Machine) -> None:
    assert machine.name in dict(inventory.hosts())
    assert dict(inventory.hosts())[machine.name]["ssh_port"] == machine.ssh_port
    machine.shutdown()
    assert machine.name not in dict(inventory.hosts())
    assert machine.name in [known.name for known in all_machines()]


def test_a_machine_that_ignores_flushes_refuses_a_power_cut(neighbour: Machine) -> None:
    with pytest.raises(LabError, match="durable=True"):
        neighbour.power_cut()
    assert neighbour.is_running()


def test_a_taken_port_is_passed_over(machine: Machine) -> None:
    assert network.free_port(machine.ssh_port) != machine.ssh_port
    free = network.free_port()
    assert network.free_port(free) == free


def test_the_command_tells_an_unknown_machine_in_one_message() -> None:
    result = subprocess.run(
        [PROJECT / ".venv" / "bin" / "mediahost", "lab", "ssh", "nobody"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "NO_COLOR": "1"},
    )
    assert result.returncode == 1
    assert "There is no machine nobody" in result.stderr
    assert "Traceback" not in result.stderr


def _clock_error(machine: Machine) -> float:
    """Seconds between the guest's clock and this host's."""
    return abs(float(machine.run("date +%s.%N").stdout) - time.time())


def _greeting(machine: Machine, address: str, limit: int = 30) -> str:
    """The first bytes sshd at `address` says to `machine` (a bare machine has no other server); "" when none."""
    command = f"timeout {limit} bash -c 'head -c 7 </dev/tcp/{address}/22'"
    return machine.run(command, check=False).stdout


def _said(port: int) -> str:
    """What a server on the host's loopback says when connected to; "" when nothing within ten seconds."""
    result = subprocess.run(
        ["curl", "-s", "--max-time", "10", f"telnet://{network.LOOPBACK}:{port}"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    return result.stdout
