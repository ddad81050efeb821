"""The running machines as pyinfra hosts, for inventories/lab.py. It starts nothing and writes nothing."""

from __future__ import annotations

from typing import Any

from lab import image
from lab.machine import all_machines
from lab.network import LOOPBACK


def hosts() -> list[tuple[str, dict[str, Any]]]:
    """(name, data) of every running machine, by index; the data is what pyinfra's SSH connector needs."""
    return [
        (
            machine.name,
            {
                "ssh_hostname": LOOPBACK,
                "ssh_port": machine.ssh_port,
                "ssh_user": image.USER,
                "ssh_key": str(image.ssh_key()),
                "ssh_known_hosts_file": str(machine.known_hosts),
                "ssh_strict_host_key_checking": "accept-new",
                "ssh_allow_agent": False,
                "ssh_look_for_keys": False,
            },
        )
        for machine in all_machines()
        if machine.is_running()
    ]
