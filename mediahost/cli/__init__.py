"""The `mediahost` command: one module a verb, loaded when it is asked for."""

from __future__ import annotations

import importlib

import click

# verb → module that holds a click command of the same name; imported on use, so that
# `mediahost secrets` does not pay for pyinfra and `mediahost lab` not for cryptography.
_VERBS = {
    "validate": "mediahost.cli.validate",
    "render": "mediahost.cli.render",
    "plan": "mediahost.cli.plan",
    "apply": "mediahost.cli.apply",
    "bans": "mediahost.cli.bans",
    "vpn": "mediahost.cli.vpn",
    "plex": "mediahost.cli.plex",
    "fix-permissions": "mediahost.cli.fix_permissions",
    "secrets": "mediahost.cli.secrets",
    "lab": "lab.cli",
}


class _Verbs(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _VERBS:
            return None
        command: click.Command = importlib.import_module(_VERBS[cmd_name]).command
        return command


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="mediahost")
def main() -> None:
    """Take a machine from bare metal to a running, hardened home-media stack, and keep it there.

    Every command takes an inventory file; without one it uses inventories/home.py.
    Exit codes: 0 done or nothing to do, 1 failed, 2 bad input (and, for plan, drift found).
    """
