"""`mediahost plex`: what is done by hand to a Plex server, once: a container's data become the native server's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from mediahost import on_host, plex
from mediahost.cli.asking import ask_host
from mediahost.cli.inventory import BadInput, checked, host_data, inventory_argument
from mediahost.config import Settings


@click.group("plex", context_settings={"help_option_names": ["-h", "--help"]})
def command() -> None:
    """Move a Plex server from a container to the host.

    All else about Plex is told in the inventory (plex, plex_...) and done by mediahost apply; see docs/plex.md.
    """


@command.command()
@inventory_argument
@click.option("--from", "source", metavar="DIRECTORY", help="On the host: what the container has as /config.")
@click.option("--limit", "--host", metavar="HOST", help="The host, where the inventory has several.")
@click.option("--json", "as_json", is_flag=True, help="Print the answer as one JSON object.")
def move(inventory: Path, source: str | None, limit: str | None, as_json: bool) -> None:
    """Copy a container's library, watch states, posters and owner to the native server of the host.

    Both servers must be stopped, or nothing is done: each writes its database until its last moment. The container's
    data stay as they are, and what the native server had is set aside beside the new data, so there is a way back.
    Caches are left out; Plex makes them anew. Without --from the data of plex = docker are taken.

    \b
    Example:
      mediahost apply inventories/home.py                 (with plex = native: installs the native server)
      ssh nas sudo systemctl stop plexmediaserver         (and docker stop plex, where the container still runs)
      mediahost plex move inventories/home.py --from /opt/plex/config
      mediahost apply inventories/home.py                 (starts the native server with the library)

    Exit codes: 0 moved, 1 refused or failed and nothing is changed, 2 bad input.
    """
    host, settings = _one_host(inventory, limit)
    if settings.plex != "native":
        raise BadInput(f"{host}: plex is {settings.plex}; set plex = native and run mediahost apply first")
    told = ask_host(inventory, host, on_host.program("mediahost.plex_on_host", request(settings, source)))
    if "error" in told:
        raise click.ClickException(f"{host}: {told['error']}")
    if as_json:
        click.echo(json.dumps({"host": host, **told}, indent=2))
        return
    click.echo(f"{host}: {told['copied'] >> 20} MiB copied from {told['from']} to {told['to']}")
    if told["aside"]:
        click.echo(f"{host}: what was there is now {told['aside']}")
    for path in told["absent"]:
        click.echo(
            f"{host}: a library has the directory {path}, which this host has not: the container knew it by that "
            "name. In Plex, edit the library and add the directory's name here BEFORE you take the old one out: the "
            "other way round Plex forgets what was watched"
        )
    click.echo(f"next: mediahost apply {inventory}")


def _one_host(inventory: Path, limit: str | None) -> tuple[str, Settings]:
    hosts = host_data(inventory, limit)
    if len(hosts) != 1:
        many = f"{len(hosts)} hosts ({', '.join(sorted(hosts))})" if hosts else "no host"
        raise BadInput(f"{inventory}: {limit or 'it'} has {many}; name one with --limit HOST")
    return next(iter(checked(hosts).items()))


def request(settings: Settings, source: str | None) -> dict[str, Any]:
    """What the host's program has to know."""
    if source is not None and not source.startswith("/"):
        raise BadInput(f"--from {source}: write an absolute path of the host, such as /opt/plex/config")
    return {
        "do": "move",
        "source": source or f"{settings.stack_root}/config/{plex.NAME}/library",
        "target": plex.DATA,
        "home": plex.HOME,
        "url": plex.URL,
        "preferences": plex.PREFERENCES,
        "unit": plex.UNIT,
        "told": True,
    }
