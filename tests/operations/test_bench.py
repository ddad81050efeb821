"""What `make bench` compares the product with: the same resources, written as a script and as a playbook.

Whether a real machine agrees is seen by the benchmark itself, which takes no figure before.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import yaml

from bench import growth, profile, shell
from bench.ansible import playbook
from bench.host import LEFT_OUT, Subject
from bench.resources import Resources, resources
from facts import snapshot
from facts.snapshot import Request, Snapshot
from mediahost.catalog import load_catalog
from mediahost.config import read
from mediahost.render import hardening, ssh
from mediahost.wanted import Wanted, build
from operations import ssh as ssh_stage
from tests.unit.test_config import KEY
from tests.unit.test_render_ssh import rsa_key, sample, shown
from tests.unit.test_wanted import secret, wanted

KINDS = ("kex", "cipher", "mac", "HostKeyAlgorithms")
KEYRING = b"-----BEGIN PGP PUBLIC KEY BLOCK-----\n"


def plan(**data: Any) -> Wanted:
    return wanted(admins={"alice": [KEY]}, **{**LEFT_OUT, **data})


def seen(given: Wanted, release: str = "10.0") -> Snapshot:
    """A host with the OpenSSH of that release after `given` was brought about, by a run that logged in as debian."""
    stock = shown(sample(release)["stock"])
    before = Snapshot(
        contents={f"{ssh.RSA_HOST_KEY}.pub": rsa_key(4096), "/etc/ufw/after.rules": "*filter\nCOMMIT\n"},
        sshd=stock,
        ssh_algorithms={kind: frozenset(sample(release)[kind]) for kind in KINDS},
        ssh_client="10.0.2.2",
        ssh_user="debian",
    )
    effect = ssh.effective(given.settings, ssh_stage.server(given.settings, before))
    return replace(before, sshd={**stock, **effect})


def of(given: Wanted, release: str = "10.0") -> Resources:
    return resources(given, seen(given, release), KEYRING)


def unseen(given: Wanted) -> set[str]:
    """Owned files that are not looked at; the socket's ports are a file on other releases only."""
    return set(given.owned) - {file.path for file in of(given).files} - {ssh.SOCKET_PATH}


def test_every_file_that_the_product_owns_is_looked_at() -> None:
    assert unseen(plan(sshd_banner="hi", docker_version="5:29.*", ntp_servers=["ntp.example.org"])) <= set(
        hardening.owned(plan().settings)
    )
    assert unseen(plan(fail2ban=True)) - set(hardening.owned(plan().settings))


def test_stages_without_a_counterpart_are_switched_off() -> None:
    assert not hardening.files(plan().settings)
    assert not plan().jails
    assert hardening.files(wanted().settings)
    assert wanted().jails


def test_the_ssh_server_is_that_of_the_host() -> None:
    new, old = of(plan()), of(plan(), "9.2")
    assert "mlkem768x25519-sha256" in new.sshd["kexalgorithms"][0]
    assert "mlkem768x25519-sha256" not in old.sshd["kexalgorithms"][0]
    assert new.sshd["allowusers"] == ("alice", "debian")
    assert len(new.sshd["hostkey"]) == 2


@pytest.mark.parametrize("name", [name for name in ("dash", "bash") if shutil.which(name)])
def test_the_shell_script_is_sound(name: str) -> None:
    done = subprocess.run([name, "-n"], input=shell.script(of(plan())), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("release", ["9.2", "10.0"])
def test_the_shell_script_sees_an_ssh_server_that_differs_and_only_that(tmp_path: Path, release: str) -> None:
    (check,) = (each for each in shell._checks(of(plan(), release)) if each.startswith("same sshd "))
    effect = {**seen(plan(), release).sshd}

    def run() -> tuple[int, str]:
        lines = "".join(f"{key} {value}\n" for key, values in effect.items() for value in values)
        fake = tmp_path / "sshd"
        fake.write_text(f"#!/bin/sh\ncat <<'END'\n{lines}END\n")
        fake.chmod(0o755)
        env = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
        text = f"{shell._HEAD}{check}{shell._TAIL}"
        done = subprocess.run(["sh", "-s"], input=text, capture_output=True, text=True, check=False, env=env)
        return done.returncode, done.stdout

    assert run() == (0, "")
    effect["allowusers"] = ("alice", "debian", "mallory")
    assert run() == (1, "sshd: > allowusers mallory\n")


def test_each_control_of_the_shell_script_has_an_undo() -> None:
    found = list(shell.controls(of(plan())))
    assert len(found) == 11
    for _, make, undo in found:
        for line in (make, undo):
            done = subprocess.run(["sh", "-n"], input=line, capture_output=True, text=True, check=False)
            assert (done.returncode, done.stderr) == (0, "")


def test_the_playbook_asks_the_same_of_sshd_and_names_every_file() -> None:
    wanted_here = of(plan())
    (play,) = yaml.safe_load(playbook.playbook(wanted_here))
    tasks = {task["name"]: task for task in play["tasks"]}
    assert "allowusers debian" in tasks["sshd in effect"]["vars"]["expected"]
    assert "maxsessions 10" in tasks["sshd in effect"]["vars"]["expected"]
    assert {item["path"] for item in tasks["files"]["loop"]} == {file.path for file in wanted_here.files}


def test_the_wide_deploy_is_python_and_its_stack_is_valid(tmp_path: Path) -> None:
    deploy = growth._wide_deploy(cast(Subject, SimpleNamespace(scratch=tmp_path)))
    text = deploy.read_text()
    compile(text, str(deploy), "exec")
    assert "compose.provision" not in text
    assert "verify.provision" not in text
    assert text.index("wanted.stack_files") < text.index("\nrun.end()")
    catalog = load_catalog(deploy.parent / "catalog")
    few, many = (build("nas", read("nas", {**LEFT_OUT}), each, secret) for each in (load_catalog(), catalog))
    assert len(many.containers) - len(few.containers) == growth.EXTRA_SERVICES


@pytest.mark.skipif(shutil.which("dpkg-query") is None, reason="the collector is for Debian and Ubuntu")
def test_every_section_of_the_snapshot_is_timed() -> None:
    text = profile.timed(Request(paths=frozenset({"/etc/passwd"})), runs=2)
    done = subprocess.run(["sh", "-s"], input=text, capture_output=True, text=True, check=True, env=dict(os.environ))
    assert done.stdout == ""
    assert list(profile.mean_sections(done.stderr, 2)) == snapshot._SECTIONS
    assert profile.mean_sections("sshd 250 150\nawk: not 7\nsshd 350 250\n", 2) == {"sshd": 1.0}
