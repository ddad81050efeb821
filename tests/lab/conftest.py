"""Machines for the tests: booted once a session, put back to a snapshot for each test that asks for one.

A booted machine costs a minute, a restore two seconds. Test machines have their own names and high indexes, and
are destroyed at the end; a developer's machines are never touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from lab.machine import Machine

FIRST_TEST_INDEX = 101
CLEAN = "clean"

MakeMachine = Callable[..., Machine]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Quick tests first: a mistake they can find should not cost the boot of a machine."""
    items.sort(key=lambda item: item.get_closest_marker("lab") is not None)


@pytest.fixture(scope="session")
def make_machine() -> Iterator[MakeMachine]:
    """`make_machine(name, **options)`: a fresh, booted machine with the snapshot CLEAN; the same name, the same one.

    `prepare=`, a function of the machine, provisions it once before the snapshot is taken.
    """
    made: dict[str, Machine] = {}

    def make(name: str, prepare: Callable[[Machine], None] | None = None, **options: Any) -> Machine:
        if name not in made:
            machine = Machine(f"test-{name}", FIRST_TEST_INDEX + len(made), **options)
            machine.destroy()  # left by a run that was killed
            made[name] = machine
            machine.start()
            machine.wait_until_ready()
            if prepare is not None:
                prepare(machine)
            machine.snapshot(CLEAN)
        return made[name]

    yield make
    for machine in made.values():
        machine.destroy()


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
