"""Runs pyinfra with deploy.py, as a user would by hand, and follows what it tells.

There is no second implementation of anything here: `plan` is `pyinfra INVENTORY deploy.py --dry`, `apply` is
`pyinfra INVENTORY deploy.py -y`; the words come from the run's own events (operations/report.py).
"""

from __future__ import annotations

import getpass
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mediahost import secrets
from mediahost.cli.inventory import ROOT, BadInput, check_exists, checked, host_data, last_words
from mediahost.secrets.keys import PASSPHRASE_VARIABLE

DEPLOY = ROOT / "deploy.py"
Event = dict[str, Any]


@dataclass
class Outcome:
    """What a run told. `changes` holds (host, operation, what); `seconds` is wall-clock time."""

    exit_code: int = 0
    hosts: list[str] = field(default_factory=list)
    unreachable: list[str] = field(default_factory=list)
    changes: list[tuple[str, str, str]] = field(default_factory=list)
    done: list[tuple[str, str]] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)
    notices: list[tuple[str, str]] = field(default_factory=list)
    seconds: float = 0.0
    log: str = ""

    @property
    def failed_hosts(self) -> list[str]:
        """Hosts that are not as wanted after the run."""
        return sorted({host for host, _ in self.failed} | set(self.unreachable))


def run(
    inventory: Path, options: list[str], follow: Callable[[Event], None] | None = None, reboot: bool = False
) -> Outcome:
    """One run of deploy.py.

    `follow` gets every event as it comes; `reboot` allows the reboot that a host asks for. Raises `BadInput` when
    the configuration is refused.
    """
    check_exists(inventory)
    outcome = Outcome()
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mediahost-") as directory:
        events, log = Path(directory) / "events", Path(directory) / "log"
        events.touch()
        command = [sys.executable, "-m", "pyinfra", str(inventory.resolve()), str(DEPLOY), *options]
        environment = {**os.environ, **_passphrase(inventory), "MEDIAHOST_EVENTS": str(events)}
        if reboot:
            environment["MEDIAHOST_REBOOT"] = "1"
        with log.open("w") as output:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=environment,
            )
            try:
                for event in _events(events, process):
                    _note(outcome, event)
                    if follow is not None:
                        follow(event)
            except BaseException:
                process.terminate()
                process.wait()
                raise
        outcome.exit_code = process.returncode
        outcome.log = log.read_text()
    outcome.seconds = time.monotonic() - started
    if not outcome.hosts:
        outcome.unreachable = _unreached(inventory)
    return outcome


def _unreached(inventory: Path) -> list[str]:
    """The hosts of a run that never came to deploy.py: nobody could be reached.

    Raises `BadInput` when the inventory or its settings are wrong as well; the run had no chance to tell.
    """
    data = host_data(inventory)
    if not data:
        raise BadInput(f"{inventory}: no host in it. inventories/home.py shows how to write one")
    checked(data)
    return list(data)


def _passphrase(inventory: Path) -> dict[str, str]:
    """The vault's passphrase for the run's environment, asked for at a terminal when nothing else opens it."""
    vault = secrets.vault_path(inventory)
    if not (vault.exists() and sys.stdin.isatty()) or secrets.Automatic().find_without_asking(vault) is not None:
        return {}
    return {PASSPHRASE_VARIABLE: getpass.getpass(f"Passphrase of {vault}: ")}


def _events(path: Path, process: subprocess.Popen[bytes]) -> Iterator[Event]:
    with path.open() as file:
        while True:
            ended = process.poll() is not None
            for line in file:
                yield json.loads(line)
            if ended:
                return
            time.sleep(0.05)  # a display's refresh, nothing waits on it


def _note(outcome: Outcome, event: Event) -> None:
    kind = event["event"]
    host = event.get("host", "")
    if kind == "host":
        outcome.hosts.append(host)
    elif kind == "unreachable":
        outcome.unreachable.append(host)
    elif kind in ("planned", "change"):
        outcome.changes.append((host, event["operation"], event["what"]))
    elif kind == "done":
        outcome.done.append((host, event["operation"]))
    elif kind == "failed":
        outcome.failed.append((host, event["operation"]))
    elif kind == "refused":
        outcome.refused.append((host, event["what"]))
    elif kind == "notice":
        outcome.notices.append((host, event["what"]))
    elif kind == "bad input":
        raise BadInput(event["message"])


# What pyinfra wraps around the words that matter.
_NOISE = re.compile(
    r"^(-->|\s*Failed to load host keys"
    r"|\s*\[\S+\] (mending:|Success|No changes|Connected|Unexpected error in Python callback))"
)


def reason(outcome: Outcome) -> str:
    """Why a run failed: what was said since the last operation began, without tracebacks."""
    said = outcome.log.rpartition("--> Starting operation")[2]
    lines = []
    inside = False
    for line in said.splitlines():
        if line.startswith("Traceback (most recent call last)"):
            inside = True
        elif inside:
            # A traceback ends with the exception's own line, which is not indented; its words are told elsewhere.
            inside = line.startswith(" ") and not line.lstrip().startswith("[")
        elif not _NOISE.match(line):
            lines.append(line)
    return last_words("\n".join(lines))
