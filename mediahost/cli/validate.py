"""`mediahost validate`: is the configuration sound? No host is contacted."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console
from rich.tree import Tree

from mediahost.catalog import CatalogError, load_catalog
from mediahost.check import check_all
from mediahost.cli.inventory import BadInput, host_data, inventory_argument
from mediahost.config import ConfigError, Settings
from mediahost.stack import choose


@click.command("validate")
@inventory_argument
def command(inventory: Path) -> None:
    """Check the inventory of all hosts and print what it comes to. No host is contacted.

    \b
    Exit code 0: sound. 2: every problem is listed, with its mend.

    \b
    Example: mediahost validate inventories/home.py
    """
    data = host_data(inventory)
    try:
        catalog = load_catalog()
        settings = check_all(data, catalog)
    except (ConfigError, CatalogError) as error:
        raise BadInput(str(error)) from None
    console = Console(highlight=False, soft_wrap=True)
    for host, each in settings.items():
        tree = Tree(f"[bold]{host}[/]")
        services = tree.add("services")
        for choice in choose(each, catalog, host):
            services.add(choice.service.name)
        _changed(tree, each)
        console.print(tree)


def _changed(tree: Tree, settings: Settings) -> None:
    """Only what differs from the defaults: those are in docs/reference.md."""
    branch = tree.add("set here (everything else has its default)")
    defaults = {key: field.get_default() for key, field in Settings.model_fields.items()}
    for key, value in settings:
        if value != defaults[key]:
            shown = sorted(value) if key == "admins" else value
            branch.add(f"{key}: {shown}")
