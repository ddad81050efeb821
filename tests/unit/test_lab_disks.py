"""Extra disks of a lab machine: pulled and plugged in again through QEMU's socket, or missing from a start."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lab import accelerator, faults, machine, qmp
from lab.errors import LabError
from lab.image import Image
from lab.machine import Machine


class Qemu:
    """QEMU as far as disks go: the ids of its devices, and everything it was told."""

    def __init__(self, devices: set[str]) -> None:
        self.devices = devices
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.lines: list[str] = []
        self.deaf = False

    def execute(self, _path: Path, command: str, arguments: dict[str, Any] | None = None) -> Any:
        self.asked.append((command, arguments or {}))
        if command == "device_del" and not self.deaf:
            self.devices.discard(str((arguments or {})["id"]))
        if command == "device_add":
            self.devices.add(str((arguments or {})["id"]))
        return [{"name": name} for name in sorted(self.devices)] if command == "qom-list" else {}

    def monitor(self, _path: Path, line: str) -> str:
        self.lines.append(line)
        return "OK"


@pytest.fixture
def qemu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Qemu:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    told = Qemu({"plugged-disk1", "plugged-disk2"})
    monkeypatch.setattr(qmp, "execute", told.execute)
    monkeypatch.setattr(qmp, "monitor", told.monitor)
    monkeypatch.setattr(Machine, "is_running", lambda _self: True)
    return told


@pytest.fixture
def host(qemu: Qemu) -> Machine:
    made = Machine("store", 9, disks=(1, 2))
    made.directory.mkdir(parents=True)
    record = {
        "name": "store",
        "index": 9,
        "memory_mib": 1536,
        "cpus": 2,
        "disks": [1, 2],
        "image_key": "x",
        "durable": False,
    }
    (made.directory / "machine.json").write_text(json.dumps(record))
    return made


def devices(found: Machine, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The extra disks that QEMU is started with."""
    monkeypatch.setattr(accelerator, "flags", lambda _image: ())
    command = found._command(found._record(), Image("x", Path("d"), Path("k"), Path("i")))
    return [word for word in command if "serial=disk" in word]


def test_a_disk_is_pulled_from_a_running_machine_and_plugged_in_again_where_it_was(host: Machine, qemu: Qemu) -> None:
    host.remove_disk(2)
    assert qemu.devices == {"plugged-disk1"}
    host.insert_disk(2)
    assert qemu.devices == {"plugged-disk1", "plugged-disk2"}
    (plugged,) = [arguments for command, arguments in qemu.asked if command == "device_add"]
    assert plugged == {
        "driver": "virtio-blk-pci",
        "id": "plugged-disk2",
        "drive": "disk2",
        "serial": "disk2",
        "addr": "0x11",
    }
    assert qemu.lines == [f"drive_add 0 {host._drive(2)}"]


def test_it_comes_back_at_the_place_at_which_the_machine_was_started_with_it(
    host: Machine, qemu: Qemu, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = devices(host, monkeypatch)
    host.remove_disk(1)
    host.insert_disk(1)
    (plugged,) = [arguments for command, arguments in qemu.asked if command == "device_add"]
    assert before[0] == ",".join((plugged.pop("driver"), *(f"{key}={value}" for key, value in plugged.items())))


def test_a_machine_that_is_off_starts_without_a_removed_disk(
    host: Machine, qemu: Qemu, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Machine, "is_running", lambda _self: False)
    assert len(devices(host, monkeypatch)) == 2
    with faults.disk_removed(host, 1):
        (left,) = devices(host, monkeypatch)
        assert "serial=disk2" in left
    assert len(devices(host, monkeypatch)) == 2
    assert qemu.asked == []


def test_a_guest_that_does_not_let_go_is_told_and_the_disk_counts_as_in(
    host: Machine, qemu: Qemu, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "_UNPLUG_SECONDS", 0)
    monkeypatch.setattr(machine, "_POLL_SECONDS", 0)
    qemu.deaf = True
    with pytest.raises(LabError, match="could not be pulled"):
        host.remove_disk(1)
    assert host._record().removed == []


def test_a_disk_that_the_test_pulled_is_in_again_after_it_though_the_test_failed(host: Machine, qemu: Qemu) -> None:
    fault = faults.disk_removed(host)
    fault.__enter__()
    assert qemu.devices == {"plugged-disk2"}
    assert not fault.__exit__(RuntimeError, RuntimeError(), None)
    assert qemu.devices == {"plugged-disk1", "plugged-disk2"}


def test_pulling_twice_is_pulling_once(host: Machine, qemu: Qemu) -> None:
    host.remove_disk(1)
    host.remove_disk(1)
    assert [command for command, _ in qemu.asked].count("device_del") == 1


@pytest.mark.parametrize("number", [0, 3])
def test_a_disk_that_the_machine_never_had_is_a_mistake_of_the_test(host: Machine, number: int) -> None:
    with pytest.raises(ValueError, match="2 extra disks"):
        host.remove_disk(number)


def test_more_disks_than_there_are_places_for_are_refused() -> None:
    with pytest.raises(ValueError, match="at most 14"):
        Machine("store", 9, disks=[1] * 15)
