"""`mediahost bans`: whom Fail2Ban shuts out, by hand.

The question travels as one pyinfra fact, so that inventory, groups, sudo and connections are those of a run.
"""

from __future__ import annotations

import ipaddress
import json
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from mediahost import bans_on_host
from mediahost.cli.asking import error_in, last_of, plain
from mediahost.cli.inventory import ROOT, BadInput, check_exists, host_data, inventory_argument, last_words
from mediahost.render.fail2ban import RECIDIVE

_UNASKED = "could not be asked"
_ABSENT = '{"error": "Fail2Ban is not installed here; mediahost apply installs it unless fail2ban = False"}'


def _one_address(_ctx: click.Context, _param: click.Parameter, value: str) -> str:
    try:
        address = ipaddress.ip_address(value)
    except ValueError:
        mend = "write one address such as 203.0.113.9 or 2001:db8::9 (not a name, not a block)"
        raise click.BadParameter(f"{value!r}: {mend}") from None
    if isinstance(address, ipaddress.IPv6Address):
        address = address.ipv4_mapped or address
    if "%" in value:
        raise click.BadParameter(f"{value}: leave %... out, it is no part of the address")
    if address.is_loopback or address.is_unspecified or address.is_multicast:
        raise click.BadParameter(f"{value}: nobody comes from there")
    return str(address)


@dataclass
class Answers:
    """What the hosts said. `bans` holds host, jail, address, since, until, times; `failed` host to reason."""

    bans: list[dict[str, Any]] = field(default_factory=list)
    hosts: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


_address = click.argument("address", callback=_one_address)
_limit = click.option("--limit", "--host", metavar="HOST", help="Only this host or group.")
_json = click.option("--json", "as_json", is_flag=True, help="Print the answer as one JSON object.")


@click.group("bans", context_settings={"help_option_names": ["-h", "--help"]})
def command() -> None:
    """See and change whom Fail2Ban shuts out.

    A ban closes every port of a host to an address, those of containers too. Each command takes the inventory
    last; without one it uses inventories/home.py.

    \b
    Example:
      mediahost bans list
      mediahost bans add 203.0.113.9
      mediahost bans remove 203.0.113.9

    Exit codes: 0 done, 1 a host failed or refused, 2 bad input, nothing was touched.
    """


@command.command("list")
@inventory_argument
@click.option("--jail", metavar="JAIL", help="Only the bans of this jail, such as sshd or recidive.")
@_limit
@_json
def list_(inventory: Path, jail: str | None, limit: str | None, as_json: bool) -> None:
    """Show who is banned: host, jail, address, since when, until when, and how often so far.

    Times are the host's. An address can be banned in several jails; each closes everything.

    \b
    Example: mediahost bans list inventories/home.py --jail sshd
    """
    answers = ask(inventory, {"verb": "list", "address": None, "jail": jail}, limit)
    if not as_json and answers.bans:
        _table(answers.bans)
    elif not as_json and answers.hosts:
        click.echo("nobody is banned")
    _leave(answers, as_json)


@command.command()
@_address
@inventory_argument
@click.option(
    "--jail",
    metavar="JAIL",
    default=RECIDIVE,
    show_default=True,
    help="The jail to ban in; its ban time applies, doubled for each ban before.",
)
@_limit
@_json
def add(address: str, inventory: Path, jail: str, limit: str | None, as_json: bool) -> None:
    """Ban ADDRESS now: for a week, twice as long at each further time.

    The home network, containers, the addresses that runs come from and fail2ban_ignore are refused.

    \b
    Example: mediahost bans add 203.0.113.9
    """
    answers = ask(inventory, {"verb": "add", "address": address, "jail": jail}, limit)
    for ban in () if as_json else answers.bans:
        click.echo(f"{ban['host']}: {address} is banned in {ban['jail']} until {_time(ban['until'])}")
    _leave(answers, as_json)


@command.command()
@_address
@inventory_argument
@click.option("--jail", metavar="JAIL", help="Only in this jail; without it in all of them.")
@_limit
@_json
def remove(address: str, inventory: Path, jail: str | None, limit: str | None, as_json: bool) -> None:
    """Let ADDRESS in again, and forget its bans: the next one is a first one.

    \b
    Example: mediahost bans remove 203.0.113.9
    """
    answers = ask(inventory, {"verb": "remove", "address": address, "jail": jail}, limit)
    for host in () if as_json else answers.hosts:
        lifted = [ban["jail"] for ban in answers.bans if ban["host"] == host]
        click.echo(f"{host}: {address} " + (f"is let in again ({', '.join(lifted)})" if lifted else "was not banned"))
    _leave(answers, as_json)


def ask(inventory: Path, request: dict[str, Any], limit: str | None) -> Answers:
    """Put `request` (verb, address, jail) to the inventory's hosts.

    Raises `BadInput` when the inventory cannot be used, a `ClickException` when pyinfra cannot ask.
    """
    check_exists(inventory)
    program = Path(bans_on_host.__file__).read_text()
    fact = ["fact", "server.Command", f"command={_on_host(request)}", f"_stdin={program}"]
    options = ["--json", *(["--limit", limit] if limit else [])]
    command = [sys.executable, "-m", "pyinfra", str(inventory.resolve()), *fact, *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    log = plain(done.stderr)
    try:
        (said,) = json.loads(done.stdout).values()
    except (ValueError, AttributeError):
        host_data(inventory)  # says what is wrong when it is the inventory
        raise click.ClickException(error_in(log) or last_words(log)) from None
    answers = _understood(said, log)
    if not answers.hosts and not answers.failed:
        asked = f"no host matches {limit}" if limit else "no host in it"
        raise BadInput(f"{inventory}: {asked}; mediahost validate lists its hosts")
    return answers


def _on_host(request: dict[str, Any]) -> str:
    """The shell command that answers `request` on a host, with the program on its stdin: sudo logs each command."""
    ask_there = f"python3 - {shlex.quote(json.dumps(request))}"
    present = "command -v fail2ban-client >/dev/null && command -v python3 >/dev/null"
    return f"if {present}; then {ask_there}; else cat >/dev/null; printf '%s\\n' {shlex.quote(_ABSENT)}; fi"


def _understood(said: dict[str, str | None], log: str) -> Answers:
    answers = Answers()
    for host, text in sorted(said.items()):
        try:
            answer = json.loads(text or "")
        except ValueError:
            answer = {"error": last_of(log, host) or _UNASKED}
        if "error" in answer:
            answers.failed[host] = answer["error"]
        else:
            answers.hosts.append(host)
            answers.bans += [{"host": host, **ban} for ban in answer["bans"]]
    # A host that could not be reached is in pyinfra's log only.
    named = {match[1] for match in re.finditer(r"^ +\[([^]]+)\] ", log, re.MULTILINE)}
    answers.failed |= {host: last_of(log, host) or _UNASKED for host in sorted(named - set(said))}
    return answers


def _table(bans: list[dict[str, Any]]) -> None:
    table = Table(box=None, pad_edge=False)
    for column in ("host", "jail", "address", "since", "until", "times"):
        table.add_column(column, no_wrap=True)
    for ban in bans:
        times = "" if ban["times"] is None else str(ban["times"])
        table.add_row(ban["host"], ban["jail"], ban["address"], _time(ban["since"]), _time(ban["until"]), times)
    # As wide as it takes: a table that is cut off hides addresses.
    Console(highlight=False, width=200).print(table)


def _time(text: str | None) -> str:
    return datetime.fromisoformat(text).strftime("%Y-%m-%d %H:%M:%S %z") if text else "for ever"


def _leave(answers: Answers, as_json: bool) -> None:
    """Tell what failed, and leave with the exit code."""
    if as_json:
        failed = [{"host": host, "what": what} for host, what in answers.failed.items()]
        click.echo(json.dumps({"hosts": answers.hosts, "bans": answers.bans, "failed": failed}, indent=2))
    for host, what in answers.failed.items():
        click.echo(f"{host}: {what}", err=True)
    raise SystemExit(1 if answers.failed else 0)
