"""`mediahost fix-permissions`: owner, group and modes of what is in the media tree.

A run sets them for the directories that it makes and never for what is in them. This walks everything, in slices of
some seconds, each one pyinfra fact: so inventory, groups, sudo and connections are those of a run, and between two
slices there is something to tell.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from mediahost import on_host
from mediahost.cli.asking import ask_host
from mediahost.cli.inventory import host_settings, inventory_argument
from mediahost.config import Settings
from mediahost.storage import mount_points
from mediahost.upkeep import caches, snapraid_disks

# Long enough that connecting hardly counts, short enough that somebody waits for a sign of life.
_SLICE = 20.0
_SHOWN = 20


@dataclass
class Total:
    """What was found on a host. `changes` and `failures` hold path and words, at most the first of many."""

    seen: int = 0
    differ: int = 0
    links: int = 0
    strange: int = 0
    changes: list[list[str]] = field(default_factory=list)
    failures: list[list[str]] = field(default_factory=list)
    error: str = ""

    def add(self, told: dict[str, Any]) -> None:
        """One slice more."""
        self.seen += told["seen"]
        self.differ += told["differ"]
        self.links += told["links"]
        self.strange += told["strange"]
        self.changes += told["changes"]
        self.failures += told["failures"]


@click.command("fix-permissions", context_settings={"help_option_names": ["-h", "--help"]})
@inventory_argument
@click.option("--dry-run", is_flag=True, help="Only tell what differs.")
@click.option("--limit", "--host", metavar="HOST", help="Only this host or group.")
@click.option("--json", "as_json", is_flag=True, help="Print the answer as one JSON object.")
@click.option("--slice", "seconds", default=_SLICE, hidden=True, type=click.FloatRange(0, 600))
def command(inventory: Path, dry_run: bool, limit: str | None, as_json: bool, seconds: float) -> None:
    """Give everything in the media tree to the media group, so that every service can change it.

    Directories get the mode 2775 and, with storage_acl, the default ACL; files get 664, and keep their x bits; all
    of it belongs to media_user and media_group. Only what differs is changed. Links are not followed and not
    changed, whatever they lead to; lost+found and the files of SnapRAID and of the caches are left out.

    It may be broken off and called again at any time.

    \b
    Example:
      mediahost fix-permissions --dry-run inventories/home.py
      mediahost fix-permissions inventories/home.py

    Exit codes: 0 all is well or was mended (or told, with --dry-run), 1 something could not be, 2 bad input.
    """
    totals = {}
    for host, settings in host_settings(inventory, limit).items():
        totals[host] = _walked(inventory, host, request(settings, dry_run, seconds), quiet=as_json)
        if not as_json:
            _tell(host, totals[host], dry_run)
    if as_json:
        click.echo(json.dumps({"dry_run": dry_run, "hosts": {host: vars(each) for host, each in totals.items()}}))
    raise SystemExit(1 if any(each.error or each.failures for each in totals.values()) else 0)


def request(settings: Settings, dry_run: bool, seconds: float = _SLICE) -> dict[str, Any]:
    """What the host's program has to know of the tree."""
    roots = [settings.data_root] if settings.layout == "trash" else [settings.media_root, settings.downloads_root]
    skip = [f"{at}/snapraid.{kind}" for at in snapraid_disks(settings) for kind in ("content", "content.lock")]
    skip += settings.snapraid_parity
    for cache in caches(settings):
        skip += [cache.at, *([cache.image] if cache.image else [])]
    return {
        "roots": roots,
        "mounts": list(mount_points(settings)),
        "uid": settings.media_uid,
        "gid": settings.media_gid,
        "acl": settings.storage_acl,
        "dry_run": dry_run,
        "skip": skip,
        "seconds": seconds,
        "cursor": None,
    }


def _walked(inventory: Path, host: str, asked: dict[str, Any], quiet: bool) -> Total:
    """The whole tree of a host, slice by slice."""
    total = Total()
    while True:
        told = _slice(inventory, host, asked)
        if "error" in told:
            total.error = str(told["error"])
            return total
        total.add(told)
        asked["cursor"] = told["cursor"]
        if told["cursor"] is None:
            return total
        if not quiet:
            index, inside = told["cursor"]
            at = "/".join([asked["roots"][index], *inside])
            click.echo(f"{host}: {total.seen} looked at, {total.differ} differ, now at {printable(at)}", err=True)


def _slice(inventory: Path, host: str, asked: dict[str, Any]) -> dict[str, Any]:
    try:
        return ask_host(inventory, host, on_host.program("mediahost.permissions_on_host", asked))
    except click.ClickException as error:
        return {"error": error.message}


def printable(path: str) -> str:
    """A path for a terminal: a file's name can have anything in it."""
    return "".join(letter if letter.isprintable() else "?" for letter in path)


def _tell(host: str, total: Total, dry_run: bool) -> None:
    for path, what in total.changes[:_SHOWN]:
        click.echo(f"{host}: {printable(path)}: {what}")
    if total.differ > min(len(total.changes), _SHOWN):
        click.echo(f"{host}: … and {total.differ - min(len(total.changes), _SHOWN)} more")
    for path, what in total.failures[:_SHOWN]:
        click.echo(f"{host}: {printable(path)}: {what}", err=True)
    if total.error:
        click.echo(f"{host}: {total.error}", err=True)
        return
    done = "differ" if dry_run else "differed and were mended"
    if total.failures and not dry_run:
        done = "differed, and not all could be mended"
    more = f"; {total.links} links left alone" if total.links else ""
    more += f"; {total.strange} sockets, pipes or devices left alone" if total.strange else ""
    click.echo(f"{host}: {total.seen} files and directories, {total.differ} {done}{more}")
