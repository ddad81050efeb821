"""A home server of the lab as its owner sees it: an inventory, a vault, and the commands he types."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from pprint import pformat
from typing import Any

from lab import image
from lab.inventory import connection, supply
from lab.machine import Machine

ROOT = Path(__file__).resolve().parent.parent.parent
DEPLOY = ROOT / "deploy.py"
# A whole first run under emulation on a busy machine.
LIMIT = 3000

Report = dict[str, Any]
"""What a run prints with --json."""


@dataclass
class Home:
    """Machines under one inventory, in a repository of their own.

    `data` is added to every host's data, `host_data` to one host's, by name.
    """

    repository: Path
    machines: list[Machine]
    data: dict[str, Any] = field(default_factory=dict)
    host_data: dict[str, dict[str, Any]] = field(default_factory=dict)
    first_report: Report = field(default_factory=dict)

    @property
    def machine(self) -> Machine:
        """The only, or first, machine."""
        return self.machines[0]

    @property
    def inventory(self) -> Path:
        """The inventory file."""
        return self.repository / "inventories" / "lab.py"

    @property
    def environment(self) -> dict[str, str]:
        """With a key for the vault that is this repository's own."""
        return {**os.environ, "MEDIAHOST_VAULT_KEY_FILE": str(self.repository / "vault.key")}

    def settle(self, **data: Any) -> None:
        """Write the inventory with these data, and none that were given before."""
        self.data.clear()
        self.data.update(data)
        self.write_inventory()

    def write_inventory(self, **changes: Any) -> None:
        """(Re)write the inventory; `changes` replace data of every host, None takes a key away."""
        hosts = []
        for machine in self.machines:
            wanted = {
                **connection(machine),
                **supply(),
                "admins": {"alice": [f"{image.ssh_key()}.pub"]},
                **self.data,
                **self.host_data.get(machine.name, {}),
                **changes,
            }
            hosts.append((machine.name, {key: value for key, value in wanted.items() if value is not None}))
        self.inventory.parent.mkdir(parents=True, exist_ok=True)
        self.inventory.write_text(f"hosts = {pformat(hosts)}\n")

    def init(self) -> None:
        """What the owner does once."""
        self.write_inventory()
        if not (self.repository / "secrets" / "lab.vault").exists():
            self.mediahost("secrets", "init", check=True)

    def mediahost(self, *words: str, check: bool = False, typed: str = "") -> subprocess.CompletedProcess[str]:
        """Run `mediahost WORDS INVENTORY` and return what it printed; `typed` is its standard input."""
        return self.command(*words, str(self.inventory), check=check, typed=typed)

    def command(self, *words: str, check: bool = False, typed: str = "") -> subprocess.CompletedProcess[str]:
        """Run `mediahost WORDS`: for commands that take the inventory elsewhere."""
        result = subprocess.run(
            [sys.executable, "-m", "mediahost.cli", *words],
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
            input=typed,
            timeout=LIMIT,
            check=False,
        )
        assert not check or result.returncode == 0, f"{words} ended with {result.returncode}\n{told(result)}"
        return result

    def plan(self) -> dict[str, Any]:
        """The plan as `mediahost plan --json` prints it."""
        result = self.mediahost("plan", "--json")
        assert result.returncode in (0, 2), told(result)
        plan: dict[str, Any] = json.loads(result.stdout)
        assert result.returncode == (2 if plan["changes"] else 0), told(result)
        return plan

    def changes(self) -> list[str]:
        """The plan's differences: `operation: what`."""
        return [f"{change['operation']}: {change['what']}" for change in self.plan()["changes"]]

    def apply(self) -> Report:
        """A run that must succeed; its report."""
        result = self.mediahost("apply", "--json")
        assert result.returncode == 0, told(result)
        report: Report = json.loads(result.stdout)
        return report

    def apply_until(self, moment: Callable[[dict[str, Any]], bool]) -> bool:
        """Start a run and kill the control process, without warning, at the first event `moment` accepts.

        False when the run ended before.
        """
        events = self.repository / "events"
        events.write_text("")
        command = [sys.executable, "-m", "pyinfra", str(self.inventory), str(DEPLOY), "-y"]
        environment = {**self.environment, "MEDIAHOST_EVENTS": str(events)}
        log = (self.repository / "killed.log").open("w")
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
        deadline = time.monotonic() + LIMIT
        seen = 0
        try:
            while time.monotonic() < deadline:
                ended = process.poll() is not None
                lines = events.read_text().splitlines(keepends=True)
                for line in lines[seen:]:
                    if line.endswith("\n"):
                        seen += 1
                        if moment(json.loads(line)):
                            return True
                if ended:
                    return False
                time.sleep(0.05)  # how finely the moment is hit
            raise AssertionError("the run did not end")
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
            process.wait()
            log.close()

    def secrets(self) -> dict[str, str]:
        """Every value of the vault, by name."""
        names = self.mediahost("secrets", "list", check=True).stdout.split()
        return {name: self._secret(name) for name in names}

    def _secret(self, name: str) -> str:
        return self.mediahost("secrets", "get", name, check=True).stdout.removesuffix("\n")


def told(result: subprocess.CompletedProcess[str]) -> str:
    """All a command said."""
    return f"{result.stdout}\n{result.stderr}"
