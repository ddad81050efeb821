"""The `mediahost` command as its user meets it: help that teaches, one message for bad input, exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from mediahost.cli import main, runner
from mediahost.cli.inventory import last_words
from mediahost.cli.runner import Outcome

VERBS = ["validate", "render", "plan", "apply"]


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments), catch_exceptions=False)


@pytest.fixture
def inventory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A sound inventory of one host that nobody contacts."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "inventories" / "home.py"
    path.parent.mkdir()
    path.write_text('hosts = [("nas", {"sshd_port": 2222, "services_disabled": ["seerr"]})]\n')
    return path


def outcome(**values: Any) -> Outcome:
    return Outcome(**{"hosts": ["nas"], "seconds": 1.0, **values})


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let plan and apply get this outcome instead of running pyinfra (tests/operations/test_deploy.py runs it)."""

    def give(**values: Any) -> list[list[str]]:
        asked: list[list[str]] = []

        def pretend(_inventory: Path, options: list[str], follow: Any = None) -> Outcome:
            asked.append(options)
            found = outcome(**values)
            if follow is not None:
                for host, operation, what in found.changes:
                    follow({"event": "change", "host": host, "operation": operation, "what": what})
            return found

        monkeypatch.setattr(runner, "run", pretend)
        return asked

    return give


# --- reboot


@pytest.mark.parametrize("wanted", [False, True])
def test_a_reboot_is_allowed_only_when_it_is_asked_for(
    wanted: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    inventory = tmp_path / "home.py"
    inventory.write_text("hosts = []\n")
    allowed: list[bool] = []

    def pretend(*_arguments: Any, reboot: bool = False) -> Outcome:
        allowed.append(reboot)
        return outcome()

    monkeypatch.setattr(runner, "run", pretend)
    run("apply", *(["--reboot"] if wanted else []), str(inventory))
    assert allowed == [wanted]


# --- help


def test_the_help_names_every_verb_with_a_line_of_its_own() -> None:
    done = run("--help")
    assert done.exit_code == 0
    assert isinstance(main, click.Group)
    for verb in main.list_commands(click.Context(main)):
        line = next(line for line in done.output.splitlines() if line.strip().startswith(f"{verb} "))
        assert len(line.split()) > 3, line


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("option", ["-h", "--help"])
def test_the_help_of_a_verb_teaches_with_an_example(verb: str, option: str) -> None:
    done = run(verb, option)
    assert done.exit_code == 0
    assert f"Example: mediahost {verb} inventories/home.py" in done.output


@pytest.mark.parametrize("verb", ["validate", "plan", "apply"])
def test_the_help_of_a_verb_tells_its_exit_codes(verb: str) -> None:
    assert "Exit code 0:" in run(verb, "--help").output


def test_an_unknown_verb_is_refused_with_code_2() -> None:
    done = run("aply")
    assert done.exit_code == 2
    assert "No such command 'aply'" in done.output


# --- bad input


@pytest.mark.parametrize(("verb", "code"), [("validate", 2), ("render", 2), ("apply", 2), ("plan", 1)])
def test_a_missing_inventory_is_told_with_the_mend(
    verb: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`plan` keeps code 2 for drift."""
    monkeypatch.chdir(tmp_path)
    done = run(verb)
    assert done.exit_code == code
    assert "inventories/home.py: no such inventory. Copy inventories/home.py, or name one" in done.output
    assert "Traceback" not in done.output


@pytest.mark.parametrize("text", ["hosts = [", "raise RuntimeError('broken')", "import nothing_of_that_name"])
def test_an_inventory_that_python_cannot_read_is_told_with_its_reason(inventory: Path, text: str) -> None:
    inventory.write_text(text)
    done = run("validate", str(inventory))
    assert done.exit_code == 2
    assert f"{inventory}: pyinfra cannot read it" in done.output


@pytest.mark.parametrize("verb", ["validate", "render"])
def test_bad_configuration_is_told_completely_with_code_2(inventory: Path, verb: str) -> None:
    inventory.write_text('hosts = [("nas", {"sshd_prot": 22, "timezone": "Nowhere"}), ("two", {"layout": "flat"})]\n')
    done = run(verb, str(inventory))
    assert done.exit_code == 2
    assert "3 problems in the configuration; nothing has been touched" in done.output
    for part in ("nas: sshd_prot: no such key; did you mean", "nas: timezone = 'Nowhere'", "two: layout = 'flat'"):
        assert part in done.output


# --- validate and render


def test_validate_shows_services_and_what_differs_from_the_defaults(inventory: Path) -> None:
    done = run("validate", str(inventory))
    assert done.exit_code == 0, done.output
    assert "nas" in done.output
    assert "sonarr" in done.output
    assert "sshd_port: 2222" in done.output
    assert "timezone" not in done.output


def test_render_writes_every_artefact_for_its_owner_only_and_no_secret(inventory: Path, tmp_path: Path) -> None:
    done = run("render", str(inventory), "--output", str(tmp_path / "out"))
    assert done.exit_code == 0, done.output
    found = {str(path.relative_to(tmp_path / "out" / "nas")): path for path in (tmp_path / "out").rglob("*.*")}
    assert "Port 2222" in found["etc/ssh/sshd_config.d/00-mediahost.conf"].read_text()
    assert "opt/media-server/compose.yaml" in found
    assert "[sonarr]" in found["etc/fail2ban/jail.d/mediahost.local"].read_text()
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert f"{len(files)} files" in done.output
    assert not [path for path in files if "/secrets/" in str(path)]
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}


def test_two_renders_are_the_same(inventory: Path, tmp_path: Path) -> None:
    trees = []
    for name in ("one", "two"):
        assert run("render", str(inventory), "--output", str(tmp_path / name)).exit_code == 0
        files = (path for path in (tmp_path / name).rglob("*") if path.is_file())
        trees.append({path.relative_to(tmp_path / name): path.read_bytes() for path in files})
    assert trees[0] == trees[1]
    assert trees[0]


# --- plan and apply

CHANGE = ("nas", "ssh | server", "/etc/ssh/x: missing [not markup]")


@pytest.mark.parametrize(
    ("values", "code"),
    [
        ({}, 0),
        ({"changes": [CHANGE]}, 2),
        ({"unreachable": ["two"]}, 1),
        ({"changes": [CHANGE], "unreachable": ["two"]}, 1),
        ({"refused": [("nas", "cannot be read")]}, 1),
        ({"exit_code": 1, "hosts": []}, 1),
    ],
)
def test_the_exit_code_of_a_plan_tells_drift_from_failure(
    inventory: Path, ran: Any, values: dict[str, Any], code: int
) -> None:
    asked = ran(**values)
    assert run("plan", str(inventory)).exit_code == code
    assert "--dry" in asked[0]
    assert "-y" not in asked[0]


def test_a_plan_names_each_difference_and_the_command_that_mends_it(inventory: Path, ran: Any) -> None:
    ran(changes=[CHANGE])
    done = run("plan", str(inventory))
    assert CHANGE[2] in done.output
    assert "1 difference; mediahost apply mends" in done.output
    ran()
    assert "nothing to do" in run("plan", str(inventory)).output


def test_a_plan_says_why_a_host_is_refused(inventory: Path, ran: Any) -> None:
    ran(refused=[("nas", "its state could not be read")])
    assert "nas: its state could not be read" in run("plan", str(inventory)).output


@pytest.mark.parametrize("verb", ["plan", "apply"])
def test_the_report_of_a_run_is_one_json_object_when_asked_for(inventory: Path, ran: Any, verb: str) -> None:
    ran(changes=[CHANGE], unreachable=["two"])
    done = run(verb, str(inventory), "--json")
    told = json.loads(done.stdout)
    assert told["changes"] == [{"host": "nas", "operation": "ssh | server", "what": CHANGE[2]}]
    assert told["unreachable"] == ["two"]


@pytest.mark.parametrize(("values", "code"), [({}, 0), ({"changes": [CHANGE]}, 0), ({"exit_code": 1}, 1)])
def test_apply_fails_only_when_a_host_is_not_as_wanted(
    inventory: Path, ran: Any, values: dict[str, Any], code: int
) -> None:
    asked = ran(**values)
    assert run("apply", str(inventory), "--limit", "nas").exit_code == code
    assert asked == [["-y", "--limit", "nas"]]


def test_apply_counts_what_it_did_on_each_host(inventory: Path, ran: Any) -> None:
    done_ = [("nas", "ssh | server"), ("nas", "base | packages")]
    ran(changes=[CHANGE], done=done_, unreachable=["two"], exit_code=1, log="first\n\nlast words\n")
    done = run("apply", str(inventory))
    assert "nas: 1 changed, 1 unchanged, 0 failed" in done.output
    assert "two: could not be reached, nothing was done" in done.output
    assert "last words" in done.output


def test_the_last_words_of_a_program_are_its_last_lines_without_empty_ones() -> None:
    assert last_words("a\n\nb\n \nc\n", lines=2) == "b\nc"
