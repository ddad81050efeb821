"""How a command lets a host run a program of ours.

The program travels on standard input of one pyinfra fact, so that inventory, groups, sudo and connections are those
of a run, and nothing of it is left on the host.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import click

from mediahost.cli.inventory import ROOT, last_words

_NO_PYTHON = '{"error": "this needs python3 on the host: apt-get install python3 (Fail2Ban brings it too)"}'
ON_HOST = f"if command -v python3 >/dev/null; then python3 -I -; else printf '%s\\n' '{_NO_PYTHON}'; fi"


def ask_host(inventory: Path, host: str, program: str) -> dict[str, Any]:
    """What the program prints on the host. Raises `ClickException` with the reason when there is no answer."""
    fact = ["fact", "server.Command", f"command={ON_HOST}", f"_stdin={program}"]
    command = [sys.executable, "-m", "pyinfra", str(inventory.resolve()), *fact, "--json", "--limit", host]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    try:
        (said,) = json.loads(done.stdout).values()
        told: dict[str, Any] = json.loads(said[host].splitlines()[-1])
    except (ValueError, AttributeError, KeyError, IndexError, TypeError):
        raise click.ClickException(_reason(done.stderr, host, program)) from None
    return told


def _reason(log: str, host: str, program: str) -> str:
    """The last that pyinfra said of the host, else the end of its log."""
    text = plain(log).replace(program, "…")
    return error_in(text) or last_of(text, host) or last_words(text, 3) or "could not be asked"


def plain(log: str) -> str:
    """What pyinfra logged, without colours."""
    return re.sub(r"\x1b\[[0-9;]*m", "", log)


def error_in(log: str) -> str:
    """The error that ended pyinfra, of a plain log, without the traceback before it; empty where it went on."""
    told = re.search(r"^--> pyinfra error in .* line \d+: (.*)$", log, re.MULTILINE)
    return told[1] if told else ""


def last_of(log: str, host: str) -> str:
    """The last that a plain log says of `host`; empty where it is not named."""
    named = [line.strip() for line in log.splitlines() if line.strip().startswith(f"[{host}]")]
    return named[-1].removeprefix(f"[{host}]").strip() if named else ""
