"""deploy.py as a user runs it: `pyinfra INVENTORY deploy.py` in a process of its own, on hosts that are not there.

The hosts use pyinfra's @fake connector: every command "succeeds", and the collector's answer is a recorded one.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from facts import snapshot
from facts.snapshot import Snapshot
from mediahost import secrets, wanted
from mediahost.catalog import load_catalog
from mediahost.config import ConfigError, read
from mediahost.secrets import Cost, Passphrase, Vault
from mediahost.stack import GIVEN as GIVEN_KIND
from operations import verify
from tests.operations.test_snapshot import RECORDED
from tests.unit.test_config import KEY

ROOT = Path(__file__).resolve().parents[2]
PHRASE = "correct horse battery staple"
GIVEN = "g1ven-s3cret-that-must-not-show"
MARK = "s3cr3t-that-must-not-show"
# A host on which nothing of ours is: every stage has something to do.
SECTIONS = [name for name in snapshot._SECTIONS if name not in ("os", "timezone")]
BARE = [
    *("#begin os", "debian trixie 13 amd64", "#end os"),
    *("#begin timezone", "/usr/share/zoneinfo/Etc/UTC", "#end timezone"),
    *(line for name in SECTIONS for line in (f"#begin {name}", f"#end {name}")),
]
DATA: dict[str, Any] = {
    "admins": {"me": [KEY]},
    "ddns_settings": [{"provider": "example", "domain": "example.org", "token": "secret:dns/token"}],
}
CATALOG = load_catalog()


class Project:
    """A user's repository with one inventory, and a vault for it."""

    def __init__(self, root: Path, hosts: dict[str, dict[str, Any]], answer: Sequence[str] = BARE) -> None:
        self.root = root
        self.events = root / "events"
        self.inventory = root / "inventories" / "test.py"
        self.inventory.parent.mkdir()
        fake = {"fake_delay": 0, "fake_delay_jitter": 0, "fake_responses": {"sh -s": list(answer)}, "_sudo": True}
        listed = [(f"@fake/{name}", {**fake, **data}) for name, data in hosts.items()]
        self.inventory.write_text(f"hosts = {listed!r}\n")
        self.vault = secrets.vault_path(self.inventory)
        secrets.prepare_directory(self.vault)
        vault = Vault.create(self.vault, Passphrase(PHRASE), cost=Cost(memory_kib=8, passes=1, lanes=1))
        vault.set("dns/token", GIVEN)
        self.values = {GIVEN}
        for name, data in hosts.items():
            # Some tests give bad data on purpose; the run itself must tell it.
            with contextlib.suppress(ConfigError):
                wanted.build(f"@fake/{name}", read(name, data), CATALOG, self._remember(vault))
        vault.save()

    def _remember(self, vault: Vault) -> Any:
        def secret(entry: str, kind: str) -> str:
            if entry not in vault and kind == GIVEN_KIND:
                raise LookupError(entry)
            if entry not in vault:
                vault.set(entry, f"{MARK}-{len(self.values)}")
                self.values.add(vault.get(entry))
            return vault.get(entry)

        return secret

    def run(self, *options: str, phrase: str = PHRASE) -> subprocess.CompletedProcess[str]:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("MEDIAHOST_")}
        environment |= {"MEDIAHOST_EVENTS": str(self.events), "MEDIAHOST_VAULT_PASSPHRASE": phrase}
        command = [sys.executable, "-m", "pyinfra", str(self.inventory), str(ROOT / "deploy.py"), *options]
        return subprocess.run(
            command, cwd=self.root, env=environment, capture_output=True, text=True, check=False, timeout=120
        )

    def told(self, kind: str) -> list[dict[str, Any]]:
        lines = self.events.read_text().splitlines() if self.events.exists() else []
        return [event for event in map(json.loads, lines) if event["event"] == kind]


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, subprocess.CompletedProcess[str]]:
    """One plan of two bare hosts, with everything that pyinfra can be made to print."""
    project = Project(tmp_path_factory.mktemp("planned"), {"one": DATA, "two": {**DATA, "sshd_port": 2222}})
    return project, project.run("--dry", "-vvv", "--diff", "--debug")


Planned = tuple[Project, subprocess.CompletedProcess[str]]


def test_a_plan_succeeds_and_names_a_difference_of_every_stage_on_every_host(planned: Planned) -> None:
    project, done = planned
    assert done.returncode == 0, done.stdout + done.stderr
    assert {event["host"] for event in project.told("host")} == {"@fake/one", "@fake/two"}
    for host in ("@fake/one", "@fake/two"):
        stages = {event["operation"].split(" | ")[0] for event in project.told("planned") if event["host"] == host}
        assert stages >= {"manifest", "base", "users", "ssh", "firewall", "docker", "storage", "stack", "fail2ban"}


def test_the_words_of_a_plan_reach_who_runs_pyinfra_by_hand(planned: Planned) -> None:
    _, done = planned
    assert "would mend: package ufw: not installed" in done.stdout + done.stderr
    assert "would mend: service sonarr: not there" in done.stdout + done.stderr


def test_each_host_gets_its_own_settings(planned: Planned) -> None:
    project, _ = planned
    firewall = {event["host"]: "" for event in project.told("host")}
    for event in project.told("planned"):
        if "mediahost ssh" in event["what"]:
            firewall[event["host"]] += event["what"]
    assert "2222" in firewall["@fake/two"]
    assert "2222" not in firewall["@fake/one"]


def test_a_plan_changes_nothing_and_says_so(planned: Planned) -> None:
    project, _ = planned
    assert project.told("planned")
    assert project.told("change") == []
    assert project.told("done") == []


def test_no_secret_is_in_the_loudest_output_or_the_events(planned: Planned) -> None:
    project, done = planned
    assert len(project.values) > 3
    output = done.stdout + done.stderr + project.events.read_text()
    assert "[fake] simulating command" in output, "not the loudest output"
    for shape in (GIVEN, MARK, PHRASE):
        assert shape not in output


def test_a_secret_that_is_printed_would_be_found(tmp_path: Path) -> None:
    """The positive control: the vault of the test does hold the values, and the run does use them."""
    project = Project(tmp_path, {"one": DATA})
    vault = Vault.open(project.vault, Passphrase(PHRASE))
    assert {vault.get(name) for name in vault.names()} == project.values
    assert any(value.startswith(MARK) for value in project.values)
    plan = wanted.build("@fake/one", read("one", DATA), CATALOG, lambda entry, kind: vault.get(entry))
    assert any(MARK.encode() in file.content for file in plan.stack_files)


def test_secrets_reach_a_host_on_standard_input_only() -> None:
    def secret(entry: str, kind: str) -> str:
        return f"{MARK}-{entry}"

    plan = wanted.build("one", read("one", DATA), CATALOG, secret)
    steps = verify.differences(plan, Snapshot())
    assert any(step.stdin for step in steps)
    for step in steps:
        for text in (step.change, step.command, step.refusal or ""):
            assert MARK not in text
            assert "czNjcjN0" not in text, "base64 of the secret"


def test_a_run_that_cannot_change_anything_fails_and_tells_what_stayed(tmp_path: Path) -> None:
    """On a fake host commands succeed and nothing happens: seen, instead of believed."""
    project = Project(tmp_path, {"one": DATA})
    done = project.run("-y", "-vvv")
    assert done.returncode == 1
    assert "still different after it was mended" in done.stdout + done.stderr
    assert project.told("change")
    assert project.told("refused")
    for shape in (GIVEN, MARK, PHRASE):
        assert shape not in done.stdout + done.stderr


@pytest.mark.parametrize("cut", [10, len(BARE) - 1])
def test_a_host_that_cannot_be_read_completely_is_not_planned_as_if_it_were_bare(tmp_path: Path, cut: int) -> None:
    project = Project(tmp_path, {"one": {**DATA, "firewall": False}}, BARE[:cut])
    done = project.run("--dry")
    output = done.stdout + done.stderr
    assert "not installed" not in output
    assert "Traceback" not in output
    (refused,) = project.told("refused")
    assert "could not be read completely" in refused["what"]
    assert refused["what"] in output


def test_a_host_that_has_something_of_everything_can_be_planned_too(tmp_path: Path) -> None:
    done = Project(tmp_path, {"one": DATA}, RECORDED).run("--dry")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "would mend: service radarr:" in done.stdout + done.stderr


BAD = {"timezone": "Nowhere", "sshd_prot": 22, "services": ["sonnar"]}


def test_bad_configuration_ends_with_code_2_every_problem_and_no_command(tmp_path: Path) -> None:
    project = Project(tmp_path, {"one": BAD, "two": {"layout": "flat"}, "three": DATA})
    done = project.run("-y", "--debug")
    output = done.stdout + done.stderr
    assert done.returncode == 2
    assert "Traceback" not in output
    assert "nothing has been touched" in output
    for part in ("@fake/one: timezone", "@fake/one: sshd_prot: no such key; did you mean", "@fake/two: layout"):
        assert part in output
    assert "[fake] simulating command" not in output
    assert len(project.told("bad input")) >= 1
    assert project.told("host") == []


def test_a_wrong_passphrase_ends_with_code_2_and_no_command(tmp_path: Path) -> None:
    done = Project(tmp_path, {"one": DATA}).run("-y", "--debug", phrase="another passphrase altogether")
    output = done.stdout + done.stderr
    assert done.returncode == 2
    assert "Traceback" not in output
    assert "mend:" in output
    assert "[fake] simulating command" not in output


def test_a_secret_nobody_gave_ends_with_code_2_and_the_command_that_gives_it(tmp_path: Path) -> None:
    asked = {**DATA, "ddns_settings": [{"token": "secret:dns/other"}]}
    done = Project(tmp_path, {"one": asked}).run("--dry")
    output = done.stdout + done.stderr
    assert done.returncode == 2
    assert "mediahost secrets set dns/other" in output
    assert "Traceback" not in output


def test_an_absent_disk_is_refused_by_the_plan_with_its_name_and_everything_else_is_planned_on(
    tmp_path: Path,
) -> None:
    disk = {"device": "/dev/disk/by-id/ata-WDC_1", "at": "/mnt/disk9", "format": True}
    project = Project(tmp_path, {"one": {**DATA, "storage_disks": [disk]}})
    done = project.run("--dry")
    assert "Traceback" not in done.stdout + done.stderr
    (refused,) = project.told("refused")
    assert refused["what"].startswith("/mnt/disk9: disk /dev/disk/by-id/ata-WDC_1 is not there. Plug it in")
    assert "/mnt/disk9: not mounted" in done.stdout + done.stderr
    assert "service sonarr: not there" in done.stdout + done.stderr


def test_an_empty_disk_is_planned_to_be_formatted_and_mounted(tmp_path: Path) -> None:
    disk = {"device": "/dev/disk/by-id/ata-WDC_1", "at": "/mnt/disk9", "format": True}
    place = BARE.index("#begin mounts") + 1
    answer = [*BARE[:place], f"#device 8:10 {disk['device']}", f"#found {disk['device']}", *BARE[place:]]
    project = Project(tmp_path, {"one": {**DATA, "storage_disks": [disk]}}, answer)
    done = project.run("--dry")
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    assert f"{disk['device']}: empty, gets ext4 (for /mnt/disk9)" in output
    assert "/mnt/disk9: not mounted" in output
    assert project.told("refused") == []
