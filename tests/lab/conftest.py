"""Machines for the tests: booted once a session, put back to a snapshot for each test that asks for one.

A booted machine costs a minute, a restore two seconds. Test machines have their own names and high indexes, and
are destroyed at the end; a developer's machines are never touched.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypedDict, Unpack

import pytest

from lab import aptrepo, registry
from lab.image import ImageSpec
from lab.machine import Machine
from tests.lab.home import Home, Report
from tests.lab.segment import LAN, LAN4, LAN6, card

FIRST_TEST_INDEX = 101
CLEAN = "clean"
PROVISIONED = "provisioned"
KEEP = bool(os.environ.get("MEDIAHOST_LAB_KEEP"))
"""Keep the machines for the next session: minutes saved while a test is being written. Never in CI."""


class Shape(TypedDict, total=False):
    """What a trial may ask of its machine, in the words of `Machine`."""

    memory_mib: int
    disks: Sequence[int]
    image: ImageSpec
    durable: bool


class MakeMachine(Protocol):
    """What the fixture `make_machine` gives."""

    def __call__(
        self, name: str, prepare: Callable[[Machine], None] | None = None, **shape: Unpack[Shape]
    ) -> Machine: ...


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Quick tests first: a mistake they can find should not cost the boot of a machine."""
    items.sort(key=lambda item: item.get_closest_marker("lab") is not None)


@pytest.fixture(scope="session")
def make_machine() -> Iterator[MakeMachine]:
    """`make_machine(name, **shape)`: a fresh, booted machine with the snapshot CLEAN; the same name, the same one.

    `prepare=`, a function of the machine, provisions it once before the snapshot is taken.
    """
    made: dict[str, Machine] = {}

    def make(name: str, prepare: Callable[[Machine], None] | None = None, **shape: Unpack[Shape]) -> Machine:
        if name not in made:
            machine = Machine(f"test-{name}", _index(name), **shape)
            made[name] = machine
            if KEEP and machine.exists() and CLEAN in machine.snapshots():
                machine.restore(CLEAN)
                return machine
            machine.destroy()  # left by a run that was killed
            machine.start()
            machine.wait_until_ready()
            if prepare is not None:
                prepare(machine)
            machine.snapshot(CLEAN)
        return made[name]

    yield make
    for machine in made.values():
        if KEEP:
            machine.shutdown()
        else:
            machine.destroy()


def _index(name: str) -> int:
    """Every test machine's own, the same in each session."""
    names = ("one", "two", "home", "interrupted", "second", "stranger", "older", "provider", "graphics", "nas")
    return FIRST_TEST_INDEX + names.index(name)


@pytest.fixture
def machine(make_machine: MakeMachine) -> Machine:
    """A bare machine in its freshly booted state, the clock right, running."""
    bare = make_machine("one", durable=True)
    bare.restore(CLEAN)
    return bare


@pytest.fixture
def neighbour(make_machine: MakeMachine) -> Machine:
    """A second bare machine on the same segment, in its freshly booted state."""
    bare = make_machine("two", memory_mib=768)
    bare.restore(CLEAN)
    return bare


@pytest.fixture(scope="session")
def supplied() -> None:
    """The lab's registry and package repository, running, with every image."""
    registry.ensure_running()
    registry.ensure_images()
    aptrepo.ensure_running()


@pytest.fixture(scope="session")
def provisioned(make_machine: MakeMachine, supplied: None, tmp_path_factory: pytest.TempPathFactory) -> Home:
    """A home server on which a first run has succeeded: provisioned once a session, snapshot PROVISIONED."""
    # The disks are for the trials of storage; to all others they are four empty ones.
    machine = make_machine("home", memory_mib=2048, durable=True, disks=(1, 1, 1, 1))
    return first_home(machine, tmp_path_factory)


def first_home(machine: Machine, tmp_path_factory: pytest.TempPathFactory, **data: Any) -> Home:
    """A home server with these data on which a first run has succeeded, snapshot PROVISIONED."""
    home = Home(machine.directory / "owner" if KEEP else tmp_path_factory.mktemp("owner"), [machine], data)

    def first_run() -> Report:
        home.init()
        return home.apply()

    home.first_report = brought_to(home, PROVISIONED, first_run)
    return home


def brought_to(home: Home, snapshot: str, run: Callable[[], Report]) -> Report:
    """The report of a run after which the snapshot is taken; with KEEP, that of an earlier session, and no run."""
    record = home.repository / f"{snapshot}.json"
    if KEEP and record.exists() and snapshot in home.machine.snapshots():
        home.machine.restore(snapshot)
        home.write_inventory()
        report: Report = json.loads(record.read_text())
        return report
    report = run()
    record.write_text(json.dumps(report))
    home.machine.snapshot(snapshot)
    return report


@pytest.fixture
def home(provisioned: Home) -> Home:
    """The provisioned home server, as the first run left it."""
    provisioned.machine.restore(PROVISIONED)
    provisioned.write_inventory()  # a machine that was started anew may have another port
    return provisioned


@pytest.fixture(scope="session")
def stranger(make_machine: MakeMachine) -> Machine:
    """A machine on the same segment, with nmap and a second address that the host's owner calls home."""
    return make_machine("stranger", memory_mib=768, prepare=_equip)


def _equip(machine: Machine) -> None:
    machine.run("sudo apt-get -qq update && sudo DEBIAN_FRONTEND=noninteractive apt-get -qq install -y nmap curl")
    name = card(machine)
    machine.run(f"sudo ip address add {LAN4}/24 dev {name} && sudo ip address add {LAN6}/64 dev {name} nodad")


@pytest.fixture(scope="session")
def edge_provisioned(provisioned: Home) -> Home:
    """The home server with one address of the segment declared as LAN."""

    def declare() -> Report:
        provisioned.machine.restore(PROVISIONED)
        provisioned.write_inventory(firewall_lan=LAN)
        return provisioned.apply()

    brought_to(provisioned, "edge", declare)
    return provisioned


@pytest.fixture
def edge(edge_provisioned: Home) -> Iterator[Home]:
    """That server, freshly restored."""
    edge_provisioned.machine.restore("edge")
    edge_provisioned.write_inventory(firewall_lan=LAN)
    yield edge_provisioned
    edge_provisioned.write_inventory()
