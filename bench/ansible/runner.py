"""ansible-core in a virtual environment of its own, and runs of a playbook with what makes Ansible fast.

Pipelining is on, no facts are gathered, the interpreter is named instead of searched for, and connections persist.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.host import PROJECT, BenchError
from lab import image, paths
from lab.machine import Machine

REQUIREMENTS = PROJECT / "requirements" / "bench.txt"
_RECAP = re.compile(r"ok=(\d+)\s+changed=(\d+)\s+unreachable=(\d+)\s+failed=(\d+)")


@dataclass(frozen=True)
class Recap:
    """What `PLAY RECAP` counted."""

    ok: int
    changed: int
    broken: int


def environment(report: Callable[[str], None]) -> Path:
    """The directory of programs with ansible-core as locked; installed with checked hashes when it is not there."""
    digest = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()[:16]
    directory = paths.cache() / f"ansible-{digest}"
    programs = directory / "bin"
    done = directory / "complete"
    if not done.exists():
        report("Installing ansible-core into its own environment")
        _checked([sys.executable, "-m", "venv", "--clear", str(directory)])
        install = ["-m", "pip", "install", "-q", "--require-hashes", "-r", str(REQUIREMENTS)]
        _checked([str(programs / "python"), *install])
        done.touch()
    return programs


def version(programs: Path) -> str:
    """Such as `ansible-core 2.19.1`."""
    told = _checked([str(programs / "ansible-playbook"), "--version"])
    return f"ansible-core {told.partition('[core ')[2].partition(']')[0]}"


def run(programs: Path, playbook: Path, machine: Machine) -> Recap:
    """One run. Raises BenchError when a task failed or the machine was not reached."""
    options = [
        f"ansible_host=127.0.0.1 ansible_port={machine.ssh_port} ansible_user={image.USER}",
        f"ansible_ssh_private_key_file={image.ssh_key()} ansible_python_interpreter=/usr/bin/python3",
    ]
    inventory = playbook.with_name("hosts.ini")
    inventory.write_text(f"{machine.name} {' '.join(options)}\n", encoding="utf-8")
    trust = f"-o UserKnownHostsFile={machine.known_hosts} -o StrictHostKeyChecking=accept-new -o IdentitiesOnly=yes"
    settings = {
        "ANSIBLE_PIPELINING": "True",
        "ANSIBLE_SSH_COMMON_ARGS": trust,
        "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_LOCAL_TEMP": str(playbook.parent / "tmp"),
        "ANSIBLE_HOME": str(playbook.parent / "home"),
        "LC_ALL": "C.UTF-8",
    }
    result = subprocess.run(
        [str(programs / "ansible-playbook"), "-i", str(inventory), str(playbook)],
        env={**os.environ, **settings},
        cwd=playbook.parent,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    found = _RECAP.search(result.stdout)
    if found is None or result.returncode != 0:
        raise BenchError(f"the playbook failed:\n{(result.stdout + result.stderr)[-3000:]}")
    ok, changed, unreachable, failed = map(int, found.groups())
    return Recap(ok, changed, unreachable + failed)


def _checked(command: list[str]) -> str:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise BenchError(f"{' '.join(command[:4])} failed:\n{(result.stdout + result.stderr)[-2000:]}")
    return result.stdout
