"""`mediahost lab`: bring machines of the VM lab up, reach them, keep and restore their state, take them down.

The verbs only call what lab/ offers and turn its errors into one message and an exit code; repeated, each ends
in the same state.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import os
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.table import Table

from lab import prerequisites
from lab.errors import LabError
from lab.machine import NAME_PATTERN, SNAPSHOT_PATTERN, Machine, all_machines, free_index

DEFAULT_MACHINE = "home1"
_SERVICES = ("lab.registry", "lab.aptrepo")
"""Modules of the lab host's services: `ensure_running()`, `running()`, and `ensure_images()` where it has images."""

_console = Console(highlight=False, soft_wrap=True)
_Command = TypeVar("_Command", bound=Callable[..., Any])


def _told(function: _Command) -> _Command:
    """Show a LabError as one message and exit code 1."""

    @functools.wraps(function)
    def wrapper(*arguments: Any, **options: Any) -> Any:
        try:
            return function(*arguments, **options)
        except LabError as error:
            raise click.ClickException(str(error)) from None

    return wrapper  # type: ignore[return-value]


def _machine_name(_context: click.Context, _parameter: click.Parameter, value: Any) -> Any:
    for name in value if isinstance(value, tuple) else (value,):
        if not NAME_PATTERN.fullmatch(name):
            raise click.BadParameter(f"{name!r}: use lower-case letters, digits and - inside, at most 32")
    return value


def _tag(_context: click.Context, _parameter: click.Parameter, value: str) -> str:
    if not SNAPSHOT_PATTERN.fullmatch(value):
        raise click.BadParameter(f"{value!r}: use a letter, then letters, digits, . _ -, at most 61")
    return value


@click.group("lab")
def command() -> None:
    """Real machines with their own kernel, on this computer, to try the deploy on.

    \b
    Exit codes: 0 done or nothing to do, 1 failed (the message says what to install or free), 2 bad input.
    """


@command.command()
@click.argument("names", nargs=-1, metavar="[NAME]...", callback=_machine_name)
@click.option("--memory", default=1536, show_default=True, help="Memory of a new machine, in MiB.")
@click.option("--cpus", default=2, show_default=True, help="Processors of a new machine.")
@click.option("--durable", is_flag=True, help="Make a new machine's flushes reach the disk (slower).")
@_told
def up(names: tuple[str, ...], memory: int, cpus: int, durable: bool) -> None:
    """Start the lab's services and machines (one, home1, when none is named) and wait until they are ready."""
    prerequisites.require()
    with _progress() as report:
        _start_services(report)
        machines = _opened(names or (DEFAULT_MACHINE,), memory, cpus, durable)
        for machine in machines:
            machine.start(report)
        for machine in machines:
            report(f"Waiting until {machine.name} has booted")
            machine.wait_until_ready()
    for machine in machines:
        _console.print(f"{machine.name} is up: mediahost lab ssh {machine.name}")


@command.command(context_settings={"ignore_unknown_options": True})
@click.argument("name", callback=_machine_name)
@click.argument("words", nargs=-1, metavar="[COMMAND]...", type=click.UNPROCESSED)
@_told
def ssh(name: str, words: tuple[str, ...]) -> None:
    """Open a shell on a machine, or run a command there and return its exit code."""
    machine = Machine.load(name)
    if not machine.is_running():
        raise LabError(f"{name} cannot be reached", "it does not run", f"mediahost lab up {name}")
    line = [*machine.ssh_command(), *(["--", *words] if words else [])]
    os.execvp("ssh", line)  # noqa: S606 - the terminal goes to ssh


@command.command()
@_told
def status() -> None:
    """Show the machines, where they are reached, and the services of the lab's host."""
    table = Table("machine", "state", "ssh port", "segment", "memory", "snapshots", box=None)
    for machine in all_machines():
        running = machine.is_running()
        table.add_row(
            machine.name,
            "running" if running else "off",
            str(machine.ssh_port),
            f"{machine.address4} {machine.address6}",
            f"{machine.resident_mib()} of {machine.memory_mib} MiB",
            " ".join(machine.snapshots()) or "-",
        )
    if table.row_count:
        _console.print(table)
    else:
        _console.print("The lab has no machines: mediahost lab up")
    for module in _services():
        service = module.running()
        _console.print(f"{module.__name__.rpartition('.')[2]}: {service.url if service else 'not running'}")


@command.command("open")
@click.argument("name", callback=_machine_name)
@click.argument("port", type=click.IntRange(1, 65535))
@_told
def open_port(name: str, port: int) -> None:
    """Make a TCP port of a machine reachable on this host's loopback, and say where."""
    _console.print(f"Port {port} of {name} is at 127.0.0.1:{Machine.load(name).forward(port)}")


@command.command()
@click.argument("name", callback=_machine_name)
@click.argument("tag", callback=_tag)
@_told
def snapshot(name: str, tag: str) -> None:
    """Keep a machine's memory and disks as TAG, replacing an older TAG."""
    with _progress() as report:
        report(f"Taking the snapshot {tag} of {name}")
        Machine.load(name).snapshot(tag)


@command.command()
@click.argument("name", callback=_machine_name)
@click.argument("tag", callback=_tag)
@_told
def restore(name: str, tag: str) -> None:
    """Put a machine's memory and disks back to TAG, whether it runs or not."""
    with _progress() as report:
        report(f"Restoring {name} to {tag}")
        Machine.load(name).restore(tag)


@command.command()
@click.argument("names", nargs=-1, metavar="[NAME]...", callback=_machine_name)
@click.option("--destroy", is_flag=True, help="Delete the machines, their disks and snapshots too.")
@_told
def down(names: tuple[str, ...], destroy: bool) -> None:
    """Power the machines off: all of them, and the lab host's services, when none is named."""
    machines = [Machine.load(name) for name in names] if names else all_machines()
    with _progress() as report:
        for machine in machines:
            if destroy:
                report(f"Destroying {machine.name}")
                machine.destroy()
            else:
                report(f"Shutting {machine.name} down")
                machine.shutdown()
        if not names:
            for module in _services():
                service = module.running()
                if service:
                    report(f"Stopping {module.__name__.rpartition('.')[2]}")
                    service.stop()


def _opened(names: tuple[str, ...], memory: int, cpus: int, durable: bool) -> list[Machine]:
    """The named machines: those that exist in their own shape, new ones with the lowest free indexes."""
    known = {machine.name: machine for machine in all_machines()}
    taken = {machine.index for machine in known.values()}
    for name in names:
        if name not in known:
            index = free_index(taken)
            taken.add(index)
            known[name] = Machine(name, index, memory_mib=memory, cpus=cpus, durable=durable)
    return [known[name] for name in names]


def _services() -> list[Any]:
    return [importlib.import_module(name) for name in _SERVICES if importlib.util.find_spec(name)]


def _start_services(report: Callable[[str], None]) -> None:
    for module in _services():
        report(f"Starting {module.__name__.rpartition('.')[2]} on this host")
        module.ensure_running()
        if hasattr(module, "ensure_images"):
            module.ensure_images(report)


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """A line that changes on a terminal; plain lines elsewhere, so that a log shows each step."""
    if not _console.is_terminal:
        yield lambda text: _console.print(text)
        return
    with _console.status("") as spinner:
        yield lambda text: spinner.update(text)
