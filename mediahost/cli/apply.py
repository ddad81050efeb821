"""`mediahost apply`: bring hosts to what the inventory says."""

from __future__ import annotations

import json
from pathlib import Path

import click
from rich.console import Console
from rich.status import Status

from mediahost.cli import runner
from mediahost.cli.inventory import inventory_argument


@click.command("apply")
@inventory_argument
@click.option("--json", "as_json", is_flag=True, help="Print the report as one JSON object.")
@click.option("--limit", metavar="HOST", help="Only this host or group.")
@click.option("--reboot", is_flag=True, help="Reboot a host that asks for it, and go on after that.")
@click.option("--verbose", is_flag=True, help="Print pyinfra's own log at the end, too.")
def command(inventory: Path, as_json: bool, limit: str | None, reboot: bool, verbose: bool) -> None:
    """Make each host what the inventory says, and tell what was changed.

    A host that fails does not stop the others. Run it again at any time: what is right is not touched.

    \b
    Exit code 0: all hosts are as wanted. 1: a host failed. 2: bad input, nothing was touched.

    \b
    Example: mediahost apply inventories/home.py
    """
    console = Console(highlight=False, soft_wrap=True, stderr=as_json)
    with Status("connecting", console=console) as status:

        def follow(event: runner.Event) -> None:
            if event["event"] == "operation":
                status.update(event["operation"])
            elif event["event"] == "change":
                console.print(f"[bold]{event['host']}[/] {event['operation']}: ", end="")
                console.print(event["what"], markup=False)
            elif event["event"] == "notice":
                console.print(f"[yellow]{event['host']}[/] ", end="")
                console.print(event["what"], markup=False)

        options = ["-y", *(["--limit", limit] if limit else [])]
        outcome = runner.run(inventory, options, follow, **({"reboot": True} if reboot else {}))
    if verbose:
        click.echo(outcome.log, err=as_json)
    _report(console, outcome)
    if as_json:
        click.echo(json.dumps(_as_json(outcome), indent=2))
    raise SystemExit(1 if outcome.exit_code else 0)


def _as_json(outcome: runner.Outcome) -> dict[str, object]:
    return {
        "hosts": sorted(outcome.hosts),
        "unreachable": sorted(outcome.unreachable),
        "failed": outcome.failed_hosts,
        "changes": [
            {"host": host, "operation": operation, "what": what} for host, operation, what in outcome.changes
        ],
        "refused": [{"host": host, "what": what} for host, what in outcome.refused],
        "notices": [{"host": host, "what": what} for host, what in outcome.notices],
        "seconds": round(outcome.seconds, 2),
    }


def _report(console: Console, outcome: runner.Outcome) -> None:
    for host in sorted({*outcome.hosts, *outcome.unreachable}):
        changed = {operation for name, operation, _ in outcome.changes if name == host}
        done = {operation for name, operation in outcome.done if name == host}
        failed = [operation for name, operation in outcome.failed if name == host]
        if host in outcome.unreachable:
            console.print(f"[red]{host}: could not be reached, nothing was done[/]")
            continue
        told = f"{len(changed - set(failed))} changed, {len(done - changed)} unchanged, {len(failed)} failed"
        console.print(f"{host}: {told}", style="red" if failed else None)
    for host, what in outcome.refused:
        console.print(f"{host}: {what}", markup=False, style="red")
    # What pyinfra printed is for failures that nobody foresaw; it ends with a table, not with the reason.
    refused = {host for host, _ in outcome.refused}
    if outcome.exit_code and not (outcome.failed and {host for host, _ in outcome.failed} <= refused):
        console.print(runner.reason(outcome), markup=False)
    console.print(f"{outcome.seconds:.1f} s")
