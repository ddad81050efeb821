"""The inventory argument that every command takes, and its hosts' data as pyinfra merges them."""

from __future__ import annotations

import fnmatch
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from mediahost.catalog import CatalogError, load_catalog
from mediahost.check import check_all
from mediahost.config import ConfigError, Settings

ROOT = Path(__file__).resolve().parent.parent.parent
"""Where pyinfra runs, from wherever the command is called: it looks for group_data/ in its working directory."""

Function = TypeVar("Function", bound=Callable[..., Any])


def inventory_argument(function: Function) -> Function:
    """Adds `INVENTORY`, by default inventories/home.py."""
    return click.argument(
        "inventory",
        type=click.Path(path_type=Path),
        default=Path("inventories/home.py"),
        required=False,
    )(function)


class BadInput(click.ClickException):
    """What the user gave cannot be used; nothing was touched."""

    exit_code = 2


def check_exists(inventory: Path) -> None:
    """Raises `BadInput` when there is no such file, with the mend."""
    if not inventory.is_file():
        raise BadInput(
            f"{inventory}: no such inventory. Copy inventories/home.py, or name one: mediahost COMMAND INVENTORY"
        )


def host_data(inventory: Path, limit: str | None = None) -> dict[str, dict[str, Any]]:
    """Host name to merged data, read by pyinfra itself so that groups and overrides count as in a run.

    `limit` names a host or a group. No host is contacted. Raises `BadInput` when the inventory cannot be read.
    """
    check_exists(inventory)
    command = [sys.executable, "-m", "pyinfra", str(inventory.resolve()), "debug-inventory", "--json"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    try:
        listed = json.loads(result.stdout)
    except ValueError:
        raise BadInput(f"{inventory}: pyinfra cannot read it:\n{last_words(result.stderr)}") from None
    # This command of pyinfra lists all hosts, whatever its own --limit says.
    chosen = [item for item in listed if not limit or _matches(item, limit)]
    return {item["name"]: item["data"] for item in chosen}


def checked(hosts: Mapping[str, dict[str, Any]]) -> dict[str, Settings]:
    """Settings by host, from their data. Raises `BadInput` with every problem and its mend."""
    try:
        return check_all(hosts, load_catalog())
    except (ConfigError, CatalogError) as error:
        raise BadInput(str(error)) from None


def some_host_data(inventory: Path, limit: str | None) -> dict[str, dict[str, Any]]:
    """As `host_data`; raises `BadInput` when there is no host, too."""
    hosts = host_data(inventory, limit)
    if not hosts:
        asked = f"no host matches {limit}" if limit else "no host in it"
        raise BadInput(f"{inventory}: {asked}; mediahost validate lists its hosts")
    return hosts


def host_settings(inventory: Path, limit: str | None) -> dict[str, Settings]:
    """Settings by host, of one host or group with `limit`. Raises `BadInput` when there is no host."""
    return checked(some_host_data(inventory, limit))


def _matches(item: dict[str, Any], limit: str) -> bool:
    return limit in item["groups"] or fnmatch.fnmatchcase(item["name"], limit)


def last_words(text: str, lines: int = 12) -> str:
    """The end of a program's output, without empty lines."""
    return "\n".join([line for line in text.splitlines() if line.strip()][-lines:])
