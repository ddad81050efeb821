"""`mediahost plex move` as its user has it: on this machine, by way of pyinfra, with servers that run."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mediahost import config, plex
from mediahost.cli import main
from mediahost.cli import plex as cli
from mediahost.plex_on_host import answer
from tests.unit.plex_run import Plex
from tests.unit.plex_run import plex as running

HOME = "inventories/home.py"


@pytest.fixture(autouse=True)
def inventory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    file = tmp_path / HOME
    file.parent.mkdir()
    file.write_text('hosts = [("@local", {"_sudo": False, "plex": "native"})]\n')
    monkeypatch.chdir(tmp_path)
    # The native server's places, in this test's directory.
    native = Plex(tmp_path / "native")
    monkeypatch.setattr(plex, "HOME", str(native.home))
    monkeypatch.setattr(plex, "DATA", str(native.data))
    monkeypatch.setattr(plex, "PREFERENCES", str(native.preferences))
    monkeypatch.setattr(plex, "URL", "http://127.0.0.1:9")
    monkeypatch.setattr(plex, "UNIT", "no-such-plex.service")
    return file


def run(*words: str) -> Result:
    return CliRunner().invoke(main, ["plex", "move", HOME, *words])


def test_a_container_is_moved_and_what_comes_next_is_told(tmp_path: Path) -> None:
    (tmp_path / "native").mkdir()
    with running(tmp_path / "config") as container:
        refused = run("--from", str(container.home))
        assert refused.exit_code == 1
        assert "both servers stopped" in refused.output
        answer(container.request("set", values={"FriendlyName": "from docker"}))
    done = run("--from", str(container.home))
    assert done.exit_code == 0, done.output
    assert f"copied from {container.data.resolve()} to {tmp_path}/native/" in done.output
    assert f"next: mediahost apply {HOME}" in done.output
    assert 'FriendlyName="from docker"' in Plex(tmp_path / "native").preferences.read_text()


def test_without_a_place_the_data_of_our_own_container_are_taken() -> None:
    settings = config.read("nas", {"plex": "native", "stack_root": "/opt/other"})
    assert cli.request(settings, None)["source"] == "/opt/other/config/plex/library"


@pytest.mark.parametrize(
    ("hosts", "words", "told"),
    [
        ('[("@local", {"plex": "docker"})]', (), "plex is docker; set plex = native"),
        ('[("@local", {"plex": "native"}), "other"]', (), "2 hosts (@local, other); name one"),
        ('[("@local", {"plex": "native"})]', ("--from", "plex/config"), "write an absolute path"),
    ],
)
def test_bad_input_is_told_and_nothing_is_done(
    inventory: Path, hosts: str, words: tuple[str, ...], told: str
) -> None:
    inventory.write_text(f"hosts = {hosts}\n")
    done = run(*words)
    assert done.exit_code == 2
    assert told in done.output
