"""The machine of the benchmark: a lab machine of its own, made a media host once by the product itself.

Inventory, vault and key lie in the machine's directory and go with it. Nothing here measures anything.
"""

from __future__ import annotations

import os
import re
import secrets
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab import aptrepo, image, inventory, registry
from lab.machine import Machine

NAME = "bench1"
INDEX = 60
MEMORY_MIB = 2048
CONVERGED = "converged"
"""Snapshot of the machine after an apply that was followed by one that found nothing to do."""

LEFT_OUT = {"hardening": False, "fail2ban": False}
"""Settings of stages that the script and the playbook have no counterpart of: all sides look at the same things."""

PROJECT = Path(__file__).resolve().parent.parent
Report = Callable[[str], None]
Finished = subprocess.CompletedProcess[str]


class BenchError(Exception):
    """The benchmark cannot give a valid figure; the message says why."""


@dataclass(frozen=True)
class Subject:
    """A provisioned machine and how the product reaches it."""

    machine: Machine
    inventory: Path
    environment: Mapping[str, str]

    @property
    def key(self) -> Path:
        """The key file of the vault."""
        return Path(self.environment["MEDIAHOST_VAULT_KEY_FILE"])

    @property
    def scratch(self) -> Path:
        """A directory that goes with the machine; only its owner reads it."""
        return self.machine.directory / "bench"

    def mediahost(self, *arguments: str) -> Finished:
        """`mediahost ARGUMENT... INVENTORY`; the code is the caller's to judge."""
        entry = "from mediahost.cli import main; main(prog_name='mediahost')"
        return self.python("-c", entry, *arguments, str(self.inventory))

    def pyinfra(self, *options: str, deploy: Path = PROJECT / "deploy.py") -> Finished:
        """`pyinfra INVENTORY DEPLOY OPTION...`; the code is the caller's to judge."""
        return self.python("-m", "pyinfra", str(self.inventory), str(deploy), *options)

    def python(self, *arguments: str) -> Finished:
        """This project's interpreter, with the machine's vault key in its environment."""
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=PROJECT,
            env=dict(self.environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )


def changes(result: Finished) -> list[str]:
    """What a run of pyinfra or of the command says that it changed or would change."""
    logged = re.findall(r"(?:mending|would mend): (.*)", result.stdout + result.stderr)
    counted = re.findall(r"\b([1-9]\d*) changed,", result.stdout)
    return [*logged, *(f"{number} changed" for number in counted)]


def ready(report: Report) -> Subject:
    """The machine, running and converged. The first time it takes the minutes of a boot and a first run."""
    registry.ensure_running()
    registry.ensure_images(report)
    aptrepo.ensure_running(report)
    machine = Machine(NAME, INDEX, memory_mib=MEMORY_MIB)
    if not machine.is_running() and CONVERGED in machine.snapshots():
        report(f"Restoring {NAME} as it was converged")
        machine.restore(CONVERGED)
    else:
        machine.start(report)
    machine.wait_until_ready()
    subject = _subject(machine)
    converge(subject, report)
    return subject


def converge(subject: Subject, report: Report) -> None:
    """Apply until a run finds nothing to do; the state is kept as CONVERGED when anything was changed."""
    kept = CONVERGED in subject.machine.snapshots()
    for _ in range(3):
        report(f"mediahost apply on {NAME}")
        result = subject.mediahost("apply")
        if result.returncode != 0:
            raise BenchError(f"mediahost apply failed:\n{result.stdout}{result.stderr}")
        if not changes(result):
            if not kept:
                subject.machine.snapshot(CONVERGED)
            return
        kept = False
    raise BenchError(f"{NAME} does not settle; the last run said:\n{result.stdout}")


def write_inventory(subject: Subject, name: str, **data: Any) -> Subject:
    """The same host under other settings: a second inventory file that shares the vault."""
    path = subject.inventory.with_name(f"{name}.py")
    _write(path, {**_data(subject.machine), **data})
    vault = subject.inventory.parent.parent / "secrets"
    (vault / f"{name}.vault").write_bytes((vault / f"{subject.inventory.stem}.vault").read_bytes())
    return Subject(subject.machine, path, subject.environment)


def _subject(machine: Machine) -> Subject:
    scratch = machine.directory / "bench"
    (scratch / "inventories").mkdir(mode=0o700, parents=True, exist_ok=True)
    key = scratch / "vault.key"
    if not key.exists():
        descriptor = os.open(key, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32))
    # Its own key and no keyring: the user's vaults are not looked at.
    environment = {**os.environ, "MEDIAHOST_VAULT_KEY_FILE": str(key), "NO_COLOR": "1"}
    environment.pop("MEDIAHOST_VAULT_PASSPHRASE", None)
    subject = Subject(machine, scratch / "inventories" / f"{NAME}.py", environment)
    _write(subject.inventory, _data(machine))
    if not (scratch / "secrets" / f"{NAME}.vault").exists():
        result = subject.mediahost("secrets", "init")
        if result.returncode != 0:
            raise BenchError(f"no vault could be made:\n{result.stderr}")
    return subject


def _data(machine: Machine) -> dict[str, Any]:
    (reach,) = [data for name, data in inventory.hosts() if name == machine.name]
    return {
        **reach,
        "admins": {"alice": [f"{image.ssh_key()}.pub"]},
        "registry_prefix": registry.prefix(),
        "docker_insecure_registries": [registry.prefix()],
        "docker_apt_url": f"{aptrepo.guest_url()}/linux",
        "docker_apt_fingerprint": aptrepo.fingerprint(),
        **LEFT_OUT,
    }


def _write(path: Path, data: Mapping[str, Any]) -> None:
    path.write_text(f"hosts = [({NAME!r}, {dict(data)!r})]\n", encoding="utf-8")
