"""The Vagrantfile and its inventory, without any machine: Vagrant itself checks the one, and a stand-in for the
`vagrant` program with recorded answers drives the other.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
VAGRANTFILE = ROOT / "Vagrantfile"
INVENTORY = ROOT / "inventories" / "vagrant.py"

# Recorded with Vagrant 2.3.4 and vagrant-libvirt 0.11.2, `home` running; the key's path is shortened.
STATUS = """\
1795254419,home,metadata,provider,libvirt
1795254420,swarm1,metadata,provider,libvirt
1795254420,home,provider-name,libvirt
1795254420,home,state,running
1795254420,home,state-human-short,running
1795254420,home,state-human-long,The Libvirt domain is running. To stop this machine%!(VAGRANT_COMMA) you can run
1795254420,swarm1,provider-name,libvirt
1795254420,swarm1,state,not_created
1795254420,swarm1,state-human-short,not created
1795254420,swarm1,state-human-long,The Libvirt domain is not created. Run `vagrant up` to create it.
1795254420,,ui,info,Current machine states:\\n\\nhome                      running (libvirt)
"""
SSH_CONFIG = """\
Host home
  HostName 192.168.121.233
  User debian
  Port 22
  UserKnownHostsFile /dev/null
  StrictHostKeyChecking no
  PasswordAuthentication no
  IdentityFile /home/me/lab_ed25519
  IdentitiesOnly yes
  LogLevel FATAL

"""
# Not recorded: VirtualBox's forwarded port, and a path that Vagrant quotes because it has a space.
SECOND_SSH_CONFIG = """\
Host swarm1
  HostName 127.0.0.1
  User vagrant
  Port 2200
  UserKnownHostsFile /dev/null
  StrictHostKeyChecking no
  PasswordAuthentication no
  IdentityFile "/home/me/my project/.vagrant/machines/swarm1/virtualbox/private_key"
  IdentityFile /home/me/.vagrant.d/insecure_private_key
  IdentitiesOnly yes
  LogLevel FATAL

"""


def stand_in(directory: Path, status: str, ssh_config: str, before: str = "") -> Path:
    """A `vagrant` in a directory of its own that prints these answers and keeps what it was asked in `asked`."""
    directory.mkdir()
    (directory / "status").write_text(status)
    (directory / "ssh-config").write_text(ssh_config)
    program = directory / "vagrant"
    program.write_text(f'#!/bin/sh\ncd "${{0%/*}}"\necho "$@" >>asked\n{before}\n/bin/cat "$1"\n')
    program.chmod(0o755)
    return directory


def read_inventory(path: str) -> subprocess.CompletedProcess[str]:
    """The inventory as `mediahost validate` has pyinfra read it, with `path` as PATH."""
    return subprocess.run(
        [sys.executable, "-m", "pyinfra", str(INVENTORY), "debug-inventory", "--json"],
        cwd=ROOT,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=120,
        check=False,
    )


def hosts(result: subprocess.CompletedProcess[str]) -> dict[str, dict[str, Any]]:
    """Host name to what pyinfra makes of it."""
    assert result.returncode == 0, result.stderr
    return {item["name"]: item for item in json.loads(result.stdout)}


def test_a_running_machine_is_a_host_and_one_that_is_off_is_not(tmp_path: Path) -> None:
    found = hosts(read_inventory(str(stand_in(tmp_path / "bin", STATUS, SSH_CONFIG))))
    assert list(found) == ["home"]
    data = found["home"]["data"]
    assert (data["ssh_hostname"], data["ssh_port"], data["ssh_user"], data["ssh_key"]) == (
        "192.168.121.233",
        22,
        "debian",
        "/home/me/lab_ed25519",
    )


def test_home_and_swarm_are_groups_and_each_machine_has_its_own_connection(tmp_path: Path) -> None:
    status = STATUS.replace("swarm1,state,not_created", "swarm1,state,running")
    program = stand_in(tmp_path / "bin", status, SSH_CONFIG + SECOND_SSH_CONFIG)
    found = hosts(read_inventory(str(program)))
    assert {name: set(item["groups"]) & {"home", "swarm"} for name, item in found.items()} == {
        "home": {"home"},
        "swarm1": {"swarm"},
    }
    data = found["swarm1"]["data"]
    assert (data["ssh_hostname"], data["ssh_port"], data["ssh_user"]) == ("127.0.0.1", 2200, "vagrant")
    assert data["ssh_key"] == "/home/me/my project/.vagrant/machines/swarm1/virtualbox/private_key"
    assert found["home"]["data"]["ssh_port"] == 22


def test_vagrant_is_asked_twice_however_many_machines_run(tmp_path: Path) -> None:
    status = STATUS.replace("swarm1,state,not_created", "swarm1,state,running")
    program = stand_in(tmp_path / "bin", status, SSH_CONFIG + SECOND_SSH_CONFIG)
    hosts(read_inventory(str(program)))
    assert (program / "asked").read_text().splitlines() == ["status --machine-readable", "ssh-config home swarm1"]


@pytest.mark.parametrize(
    ("status", "ssh_config", "before", "told"),
    [
        (STATUS.replace("home,state,running", "home,state,shutoff"), "", "", ["no machine runs", "vagrant up home"]),
        (STATUS, "Host home\n  HostName 192.168.121.5\n", "", ["does not tell how to reach home", "vagrant reload"]),
        (STATUS, SSH_CONFIG, "echo 'no provider' >&2; exit 1", ["vagrant status", "ended with 1: no provider"]),
    ],
    ids=["nothing runs", "no way in", "vagrant fails"],
)
def test_trouble_is_one_clear_message_and_exit_code_2(
    tmp_path: Path, status: str, ssh_config: str, before: str, told: list[str]
) -> None:
    result = read_inventory(str(stand_in(tmp_path / "bin", status, ssh_config, before)))
    assert result.returncode == 2
    assert all(words in result.stderr for words in told), result.stderr
    assert "Traceback" not in result.stderr


def test_without_vagrant_the_inventory_says_so(tmp_path: Path) -> None:
    result = read_inventory(str(tmp_path))
    assert result.returncode == 2
    assert "Vagrant is not installed" in result.stderr
    assert "docs/vagrant.md" in result.stderr
    assert "Traceback" not in result.stderr
    assert (ROOT / "docs" / "vagrant.md").is_file()


def test_a_vagrant_that_never_answers_is_given_up(tmp_path: Path) -> None:
    program = stand_in(tmp_path / "bin", STATUS, SSH_CONFIG, before="exec /bin/sleep 600")
    impatient = tmp_path / "inventories" / "vagrant.py"
    impatient.parent.mkdir()
    text = INVENTORY.read_text()
    assert "_LIMIT_SECONDS = 120\n" in text
    impatient.write_text(text.replace("_LIMIT_SECONDS = 120\n", "_LIMIT_SECONDS = 1\n"))
    started = time.monotonic()
    result = subprocess.run(
        [sys.executable, str(impatient)],
        env={**os.environ, "PATH": str(program)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 2
    assert "did not end within 1 s" in result.stderr
    assert time.monotonic() - started < 300


# -- the Vagrantfile, by Vagrant itself -------------------------------------------------------------------------


@pytest.fixture
def vagrant(tmp_path: Path) -> dict[str, str]:
    """The environment for Vagrant to run in, with its state in `tmp_path`.

    Debian has Vagrant and lab/install installs it, so that its lack is an error there. Ubuntu has had none
    since 24.04.
    """
    if shutil.which("vagrant") is None:
        if platform.freedesktop_os_release().get("ID") == "debian":
            pytest.fail("Vagrant is not installed, so the Vagrantfile was not checked: run lab/install")
        pytest.skip("the Vagrantfile was NOT checked: this distribution has no package of Vagrant")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("VAGRANT_", "MEDIAHOST_"))}
    return {
        **kept,
        "VAGRANT_HOME": str(tmp_path / "vagrant.d"),
        "VAGRANT_DOTFILE_PATH": str(tmp_path / "vagrant"),
        "VAGRANT_CHECKPOINT_DISABLE": "1",
        "VAGRANT_NO_COLOR": "1",
    }


def validate(environment: dict[str, str], directory: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """`vagrant validate` in `directory`."""
    return subprocess.run(
        ["vagrant", "validate"],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=300,
        check=False,
    )


@pytest.mark.parametrize("driver", [None, "qemu"])
def test_vagrant_validates_the_vagrantfile(vagrant: dict[str, str], driver: str | None) -> None:
    if driver is not None:
        vagrant["MEDIAHOST_LIBVIRT_DRIVER"] = driver
    result = validate(vagrant)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("right", "wrong"),
    [("machine.vm.hostname = name", 'machine.vm.hostname = "no_host_name"'), ("libvirt.cpus =", "libvirt.cpuz =")],
    ids=["Vagrant's own setting", "libvirt's setting"],
)
def test_vagrant_refuses_a_broken_vagrantfile(
    vagrant: dict[str, str], tmp_path: Path, right: str, wrong: str
) -> None:
    text = VAGRANTFILE.read_text()
    assert right in text
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "Vagrantfile").write_text(text.replace(right, wrong))
    assert validate(vagrant, broken).returncode != 0
