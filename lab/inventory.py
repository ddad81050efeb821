"""The running machines as pyinfra hosts, for inventories/lab.py. It starts nothing and writes nothing."""

from __future__ import annotations

from typing import Any

from lab import aptrepo, image, registry
from lab.machine import Machine, all_machines
from lab.network import LOOPBACK
from lab.vendor import nvidia, plex


def connection(machine: Machine) -> dict[str, Any]:
    """What pyinfra's SSH connector needs to reach a machine."""
    return {
        "ssh_hostname": LOOPBACK,
        "ssh_port": machine.ssh_port,
        "ssh_user": image.USER,
        "ssh_key": str(image.ssh_key()),
        "ssh_known_hosts_file": str(machine.known_hosts),
        "ssh_strict_host_key_checking": "accept-new",
        "ssh_allow_agent": False,
        "ssh_look_for_keys": False,
    }


def supply() -> dict[str, Any]:
    """Settings that point the product at the lab's registry and package repository in place of the real ones."""
    return {
        "registry_prefix": registry.prefix(),
        "docker_insecure_registries": [registry.prefix()],
        "docker_apt_url": f"{aptrepo.guest_url()}/linux",
        "docker_apt_fingerprint": aptrepo.fingerprint(),
        "gpu_toolkit_apt_url": f"{aptrepo.guest_url()}/{nvidia.TOOLKIT}",
        "gpu_toolkit_apt_fingerprint": aptrepo.fingerprint(),
        "gpu_nvidia_apt_url": f"{aptrepo.guest_url()}/{nvidia.DRIVER}",
        "gpu_nvidia_apt_fingerprint": aptrepo.fingerprint(),
        "plex_apt_url": f"{aptrepo.guest_url()}/plex/deb",
        "plex_apt_key_url": f"{aptrepo.guest_url()}/plex/deb/{plex.KEY}",
        "plex_apt_fingerprint": aptrepo.fingerprint(),
    }


def hosts() -> list[tuple[str, dict[str, Any]]]:
    """(name, data) of every running machine, by index."""
    found = [machine for machine in all_machines() if machine.is_running()]
    if not found:
        return []
    keys = {"admins": {"operator": [f"{image.ssh_key()}.pub"]}}
    return [(machine.name, {**connection(machine), **supply(), **keys}) for machine in found]
