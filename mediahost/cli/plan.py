"""`mediahost plan`: what a run would change, without changing it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from mediahost.cli import runner
from mediahost.cli.inventory import BadInput, inventory_argument


class _Plan(click.Command):
    """Leaves with 1, not click's 2, when it is called wrongly: 2 means drift here."""

    def make_context(self, *arguments: Any, **options: Any) -> click.Context:
        try:
            return super().make_context(*arguments, **options)
        except click.UsageError as error:
            error.show()
            raise SystemExit(1) from None


@click.command("plan", cls=_Plan)
@inventory_argument
@click.option("--json", "as_json", is_flag=True, help="Print the plan as one JSON object.")
@click.option("--limit", metavar="HOST", help="Only this host or group.")
def command(inventory: Path, as_json: bool, limit: str | None) -> None:
    """Say what `mediahost apply` would change on each host. Nothing is changed.

    \b
    Exit code 0: nothing to do. 2: something differs. 1: a host could not be read, or the input is bad.

    \b
    Example: mediahost plan inventories/home.py
    """
    options = ["--dry", "--fail-percent", "100", *(["--limit", limit] if limit else [])]
    try:
        outcome = runner.run(inventory, options)
    except BadInput as error:
        # Code 2 of this command says "drift"; a script must be able to tell the two apart.
        raise click.ClickException(error.message) from None
    if as_json:
        click.echo(json.dumps(_as_json(outcome), indent=2))
    else:
        _show(outcome)
    if outcome.exit_code or outcome.unreachable or outcome.refused:
        raise SystemExit(1)
    raise SystemExit(2 if outcome.changes else 0)


def _as_json(outcome: runner.Outcome) -> dict[str, object]:
    return {
        "hosts": sorted(outcome.hosts),
        "unreachable": sorted(outcome.unreachable),
        "changes": [
            {"host": host, "operation": operation, "what": what} for host, operation, what in outcome.changes
        ],
        "refused": [{"host": host, "what": what} for host, what in outcome.refused],
        "notices": [{"host": host, "what": what} for host, what in outcome.notices],
        "seconds": round(outcome.seconds, 2),
    }


def _show(outcome: runner.Outcome) -> None:
    console = Console(highlight=False, soft_wrap=True)
    for host, what in outcome.notices:
        console.print(f"[yellow]{host}[/]: ", end="")
        console.print(what, markup=False)
    if outcome.exit_code and not outcome.hosts:
        console.print(runner.reason(outcome), markup=False)
    shown = None
    for host, operation, what in sorted(outcome.changes, key=lambda change: change[0]):
        if (host, operation) != shown:
            console.print(f"[bold]{host}[/] {operation}")
            shown = (host, operation)
        console.print(f"    {what}", markup=False)
    for host, what in outcome.refused:
        console.print(f"[red]{host}[/]: ", end="")
        console.print(what, markup=False)
    for host in outcome.unreachable:
        console.print(f"[red]{host}[/]: could not be reached")
    count = len(outcome.changes)
    summary = "nothing to do" if not count else f"{count} difference{'s' if count > 1 else ''}; mediahost apply mends"
    console.print(f"{len(outcome.hosts)} host(s) read in {outcome.seconds:.1f} s: {summary}")
