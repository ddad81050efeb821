"""The running machines of the Vagrantfile: `vagrant up home`, then `mediahost apply inventories/vagrant.py`.

Vagrant is asked which machines run and how to reach them, so that any provider and any box will do. Nothing is
started or changed here. Without Vagrant or a running machine it says so and ends with exit code 2.
"""

import os
import subprocess
import sys
from pathlib import Path

_PROJECT = Path(__file__).resolve().parent.parent
_LIMIT_SECONDS = 120
"""For each question to Vagrant: 2 s measured, more when the machine is busy or a provider does not answer."""

# What every machine gets beside the defaults. Groups can have more: group_data/home.py, group_data/swarm.py.
_DATA = {
    "timezone": "Etc/UTC",
    # A machine that nobody on the internet can reach needs no dynamic DNS.
    "services_disabled": ["ddns-updater"],
}


def _stop(problem: str, mend: str) -> SystemExit:
    sys.stderr.write(f"inventories/vagrant.py: {problem}\nTo mend it: {mend}\n")
    return SystemExit(2)


def _vagrant(*words: str) -> str:
    """What `vagrant WORDS` prints."""
    command = ["vagrant", *words]
    told = " ".join(command)
    # No colours to strip, and no question to the internet whether there is a newer Vagrant.
    environment = {**os.environ, "VAGRANT_NO_COLOR": "1", "VAGRANT_CHECKPOINT_DISABLE": "1"}
    try:
        result = subprocess.run(
            command,
            cwd=_PROJECT,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_LIMIT_SECONDS,
            check=False,
        )
    except FileNotFoundError:
        raise _stop(
            "Vagrant is not installed (there is no program `vagrant`)", "see docs/vagrant.md for how to install it"
        ) from None
    except subprocess.TimeoutExpired:
        raise _stop(
            f"`{told}` did not end within {_LIMIT_SECONDS} s",
            "run it by hand; does the provider (libvirtd, VirtualBox) answer?",
        ) from None
    if result.returncode != 0:
        answer = " ".join((result.stderr.strip() or result.stdout.strip()).split())
        raise _stop(f"`{told}` ended with {result.returncode}: {answer[:500]}", "run it by hand until it works")
    return result.stdout


def _running(status: str) -> list[str]:
    """Names of the machines that run, from `vagrant status --machine-readable`: time,machine,kind,value lines."""
    rows = [line.split(",") for line in status.splitlines()]
    return [row[1] for row in rows if len(row) == 4 and row[2:] == ["state", "running"]]


def _connections(ssh_config: str) -> dict[str, dict[str, object]]:
    """Machine to the data of pyinfra's SSH connector, from `vagrant ssh-config`: an ssh_config(5) file."""
    blocks: dict[str, dict[str, str]] = {}
    options: dict[str, str] = {}
    for line in ssh_config.splitlines():
        keyword, _, value = line.strip().partition(" ")
        if keyword == "Host":
            options = blocks.setdefault(value, {})
        elif keyword:
            # As ssh does: the first value counts.
            options.setdefault(keyword, value.strip('"'))
    return {
        name: {
            "ssh_hostname": options["HostName"],
            "ssh_port": int(options["Port"]),
            "ssh_user": options["User"],
            "ssh_key": options["IdentityFile"],
            "ssh_allow_agent": False,
            "ssh_look_for_keys": False,
            # Vagrant does the same: a machine made anew has another key at the same address.
            "ssh_known_hosts_file": "/dev/null",
            "ssh_strict_host_key_checking": "no",
        }
        for name, options in blocks.items()
        if {"HostName", "Port", "User", "IdentityFile"} <= options.keys()
    }


def _machines() -> list[tuple[str, dict[str, object]]]:
    """(name, data) of every running machine."""
    names = _running(_vagrant("status", "--machine-readable"))
    if not names:
        raise _stop("no machine runs", "vagrant up home")
    connections = _connections(_vagrant("ssh-config", *names))
    unknown = [name for name in names if name not in connections]
    if unknown:
        raise _stop(
            f"`vagrant ssh-config` does not tell how to reach {', '.join(unknown)}",
            f"vagrant reload {' '.join(unknown)}",
        )
    return [(name, {**connections[name], **_DATA}) for name in names]


_found = _machines()

home = [machine for machine in _found if machine[0] == "home"]
swarm = [machine for machine in _found if machine[0] != "home"]
