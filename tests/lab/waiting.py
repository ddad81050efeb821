"""Waiting for what a trial expects: a machine may be slow, so moments are never counted on."""

from __future__ import annotations

import time
from collections.abc import Callable

from lab.machine import Machine


def becomes(wanted: Callable[[], bool], limit: float = 120) -> bool:
    """Whether `wanted` holds before `limit` seconds have passed; asked again each second."""
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline:
        if wanted():
            return True
        time.sleep(1)
    return False


def reboot(machine: Machine, limit: float = 900) -> None:
    """Restart a machine in order and wait until it is up."""
    identity = "cat /proc/sys/kernel/random/boot_id"
    before = machine.run(identity).stdout
    machine.run("sudo systemctl --no-block reboot", check=False)

    def booted_anew() -> bool:
        now = machine.run(identity, check=False, connect_seconds=10)
        return now.returncode == 0 and now.stdout != before

    assert becomes(booted_anew, limit=limit), "it does not reboot"
    machine.wait_until_ready()
