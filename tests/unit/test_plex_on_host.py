"""What is said to Plex on its host, to a server that runs: the lab's stand-in, which enforces Plex's rules."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from mediahost import on_host, plex
from mediahost.plex_on_host import answer, edit
from tests.unit.plex_run import PROGRAM, Plex
from tests.unit.plex_run import plex as running

CLAIM = "claim-Abcdefgh_ijk-lmnop"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Plex]:
    with running(tmp_path / "plexmediaserver") as found:
        yield found


def elements(text: str) -> ElementTree.Element:
    return ElementTree.fromstring(text)  # noqa: S314 - the stand-in's own


def get(server: Plex, path: str, token: str = "") -> tuple[int, str]:
    call = urllib.request.Request(server.url + path, headers={"X-Plex-Token": token} if token else {})  # noqa: S310
    try:
        with urllib.request.urlopen(call, timeout=10) as given:  # noqa: S310 - loopback
            return given.status, given.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, ""


def attributes(server: Plex) -> dict[str, str]:
    return elements(server.preferences.read_text()).attrib


def setting(server: Plex, name: str) -> str:
    _, body = get(server, "/:/prefs", attributes(server).get("PlexOnlineToken", ""))
    (found,) = [each for each in elements(body) if each.get("id") == name]
    return found.attrib["value"]


# --- the stand-in itself


def test_the_stand_in_says_in_its_log_and_header_that_it_is_one(server: Plex) -> None:
    with urllib.request.urlopen(f"{server.url}/identity", timeout=10) as given:  # noqa: S310 - loopback
        assert "stand-in for Plex" in given.headers["Server"]
    assert "stand-in for Plex" in server.log
    assert "stand-in" in PROGRAM.read_text().splitlines()[1]


def test_what_is_edited_while_it_runs_is_lost_when_it_ends(server: Plex) -> None:
    """Why the product never does that. The control: the same edit of a stopped one stays."""
    assert edit(server.preferences, {"FriendlyName": "nas"})
    server.stop()
    assert "FriendlyName" not in attributes(server)
    assert edit(server.preferences, {"FriendlyName": "nas"})
    server.start()
    server.stop()
    assert attributes(server)["FriendlyName"] == "nas"


def test_an_owned_server_answers_identity_to_everybody_and_the_rest_to_its_token(server: Plex) -> None:
    assert get(server, "/status/sessions")[0] == 200
    answer(server.request("claim", token=CLAIM))
    assert get(server, "/identity")[0] == 200
    assert get(server, "/status/sessions")[0] == 401
    assert get(server, "/status/sessions", attributes(server)["PlexOnlineToken"])[0] == 200


def test_its_sqlite_copies_a_database_that_is_in_use(server: Plex, tmp_path: Path) -> None:
    answer(server.request("libraries", libraries=[library(tmp_path / "films")]))
    database = server.data / "Plug-in Support/Databases/com.plexapp.plugins.library.db"
    command = [sys.executable, str(PROGRAM), "--sqlite", str(database), f".backup '{tmp_path}/copy.db'"]
    subprocess.run(command, check=True)
    with sqlite3.connect(tmp_path / "copy.db") as copy:
        assert copy.execute("SELECT root_path FROM section_locations").fetchall() == [(str(tmp_path / "films"),)]


# --- preferences


def test_a_running_servers_preference_changes_at_once_and_survives_its_end(server: Plex) -> None:
    values = {"FriendlyName": 'Films & "series"', "HardwareAcceleratedCodecs": "1"}
    assert answer(server.request("set", values=values)) == {"changed": True}
    assert setting(server, "FriendlyName") == 'Films & "series"'
    server.stop()
    assert {name: attributes(server)[name] for name in values} == values


def test_a_stopped_servers_file_is_changed_one_attribute_and_keeps_owner_mode_and_all_else(server: Plex) -> None:
    answer(server.request("set", values={"FriendlyName": "old", "LanNetworksBandwidth": "10.0.0.0/8"}))
    server.stop()
    server.preferences.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(server.preferences, 65534, 65534)
    before, status = attributes(server), server.preferences.stat()
    assert answer(server.request("set", values={"FriendlyName": 'a<b>"c" & d', "DlnaEnabled": "0"}))["changed"]
    after, now = attributes(server), server.preferences.stat()
    assert after == {**before, "FriendlyName": 'a<b>"c" & d', "DlnaEnabled": "0"}
    assert list(after)[: len(before)] == list(before)
    assert (now.st_mode, now.st_uid, now.st_gid) == (status.st_mode, status.st_uid, status.st_gid)
    assert [path.name for path in server.data.iterdir() if "Preferences" in path.name] == ["Preferences.xml"]


def test_a_file_that_is_as_wanted_is_not_written(server: Plex) -> None:
    server.stop()
    machine = attributes(server)["MachineIdentifier"]
    before = server.preferences.stat().st_ino
    assert not edit(server.preferences, {"MachineIdentifier": machine})
    assert server.preferences.stat().st_ino == before
    assert edit(server.preferences, {"MachineIdentifier": "other"})


@pytest.mark.parametrize(
    "text", ["", "<Preferences", "<Other/>", '<a><Preferences b="1"/></a>', "<Preferences FriendlyName='it'/>"]
)
def test_a_file_that_is_not_plexs_is_not_touched(text: str, tmp_path: Path) -> None:
    path = tmp_path / "Preferences.xml"
    path.write_text(text)
    with pytest.raises(SystemExit, match=r"damaged|not a Preferences\.xml|not written as Plex"):
        edit(path, {"FriendlyName": "nas"})
    assert path.read_text() == text


def test_an_unknown_preference_is_told_by_its_name(server: Plex) -> None:
    with pytest.raises(SystemExit, match="no preference FrendlyName"):
        answer(server.request("set", values={"FrendlyName": "nas"}))


# --- the owner


def test_a_claim_binds_the_server_once_and_its_token_is_nowhere_but_in_its_file(
    server: Plex, capsys: pytest.CaptureFixture[str]
) -> None:
    assert answer(server.request("claim", token=CLAIM)) == {"claimed": True}
    first = attributes(server)["PlexOnlineToken"]
    assert 'claimed="1"' in get(server, "/identity")[1]
    # A second one would fail: the stand-in refuses to be claimed twice.
    assert answer(server.request("claim", token=CLAIM)) == {"claimed": True}
    assert attributes(server)["PlexOnlineToken"] == first
    server.stop()
    said = server.log + "".join(capsys.readouterr())
    assert CLAIM not in said
    assert first not in said


def test_a_refused_claim_says_how_to_mend_it_and_is_noted_without_the_token(server: Plex) -> None:
    with pytest.raises(SystemExit) as error:
        answer(server.request("claim", token="claim-expired-yesterday"))
    assert "secrets set nas/plex/claim" in str(error.value)
    assert "claim-expired" not in str(error.value)
    assert len((server.home / "refused").read_text()) == 65
    assert "PlexOnlineToken" not in attributes(server)


def test_an_owned_server_is_still_spoken_to_with_its_own_token(server: Plex, tmp_path: Path) -> None:
    answer(server.request("claim", token=CLAIM))
    assert answer(server.request("set", values={"FriendlyName": "nas"})) == {"changed": True}
    assert answer(server.request("libraries", libraries=[library(tmp_path / "films")])) == {"created": True}
    assert answer(server.request("idle")) == {"sessions": 0}


# --- sessions and libraries


def test_a_session_keeps_an_update_away_until_it_ends(server: Plex) -> None:
    sessions = server.data / "stand-in-sessions"
    assert answer(server.request("idle")) == {"sessions": 0}
    sessions.write_text("1\n")
    with pytest.raises(SystemExit) as playing:
        answer(server.request("idle"))
    assert playing.value.code == 3
    sessions.unlink()
    assert answer(server.request("idle")) == {"sessions": 0}


def library(path: Path, title: str = "Films") -> dict[str, Any]:
    path.mkdir(exist_ok=True)
    scanner, agent = plex.AGENTS["movie"]
    return {
        "title": title,
        "type": "movie",
        "paths": [str(path)],
        "language": "en-US",
        "scanner": scanner,
        "agent": agent,
    }


def test_a_library_is_created_once_for_each_directory(server: Plex, tmp_path: Path) -> None:
    wanted = [library(tmp_path / "films"), library(tmp_path / "more", "More")]
    for _ in range(2):
        answer(server.request("libraries", libraries=wanted))
    _, body = get(server, "/library/sections")
    found = [(each.get("title"), [place.get("path") for place in each]) for each in elements(body)]
    assert found == [("Films", [str(tmp_path / "films")]), ("More", [str(tmp_path / "more")])]
    server.stop()
    server.start()
    assert get(server, "/library/sections")[1] == body


def test_every_type_of_library_is_one_that_plex_takes(server: Plex, tmp_path: Path) -> None:
    for kind, (scanner, agent) in plex.AGENTS.items():
        wanted = {**library(tmp_path / kind, kind), "type": kind, "scanner": scanner, "agent": agent}
        answer(server.request("libraries", libraries=[wanted]))
    assert get(server, "/library/sections")[1].count("<Directory") == len(plex.AGENTS)


def test_a_directory_that_is_not_there_is_told(server: Plex, tmp_path: Path) -> None:
    wanted = library(tmp_path / "films")
    (tmp_path / "films").rmdir()
    with pytest.raises(SystemExit, match="films is not a directory of this host"):
        answer(server.request("libraries", libraries=[wanted]))


def test_an_owners_answer_without_his_token_is_told_as_such(server: Plex) -> None:
    answer(server.request("claim", token=CLAIM))
    wanted = {"values": {"FriendlyName": "nas"}}
    with pytest.raises(SystemExit, match="for its owner only"):
        answer({**server.request("set", **wanted), "preferences": str(server.home / "no such file")})
    wrong = server.home / "Preferences.xml"
    wrong.write_text('<Preferences PlexOnlineToken="wrong"/>')
    with pytest.raises(SystemExit, match=r"does not take the token of its own Preferences\.xml"):
        answer({**server.request("set", **wanted), "preferences": str(wrong)})


def test_nobody_who_answers_is_told_with_where_to_look(tmp_path: Path) -> None:
    silent = Plex(tmp_path, port=9)
    with pytest.raises(SystemExit, match=r"does not answer at http://127\.0\.0\.1:9/identity; journalctl"):
        answer(silent.request("claim", token=CLAIM, seconds=0))


# --- the move


@pytest.fixture
def container(tmp_path: Path) -> Iterator[Plex]:
    """A container's data: a server that has an owner, a library that is here and one that was there only."""
    with running(tmp_path / "config") as found:
        answer(found.request("claim", token=CLAIM))
        values = {"FriendlyName": "from docker", "TranscoderTempDirectory": "/transcode"}
        answer(found.request("set", values=values))
        answer(
            found.request("libraries", libraries=[library(tmp_path / "films"), library(tmp_path / "gone", "Gone")])
        )
        (found.data / "Cache").mkdir()
        (found.data / "Cache/thumbnail").write_text("made anew")
        (found.data / "Metadata").mkdir()
        (found.data / "Metadata/poster").write_text("chosen by hand")
        yield found


def move(source: Plex, target: Plex) -> dict[str, Any]:
    return answer(target.request("move", source=str(source.home), target=str(target.data), home=str(target.home)))


def test_a_move_keeps_the_library_and_its_owner_and_the_source_stays(container: Plex, tmp_path: Path) -> None:
    container.stop()
    (tmp_path / "gone").rmdir()
    before = container.preferences.read_bytes()
    native = Plex(tmp_path / "native", port=9)
    native.home.mkdir()
    token = attributes(container)["PlexOnlineToken"]
    done = move(container, native)
    assert done["absent"] == [str(tmp_path / "gone")]
    assert done["aside"] is None
    assert container.preferences.read_bytes() == before
    assert (container.data / "Cache/thumbnail").exists()
    assert not (native.data / "Cache").exists()
    assert (native.data / "Metadata/poster").read_text() == "chosen by hand"
    moved = attributes(native)
    assert moved == {
        name: value for name, value in attributes(container).items() if name != "TranscoderTempDirectory"
    }
    assert native.preferences.stat().st_mode & 0o777 == 0o600
    native.port = 0
    native.start()
    try:
        _, body = get(native, "/library/sections", token)
        assert [each.get("title") for each in elements(body)] == ["Films", "Gone"]
        assert 'claimed="1"' in get(native, "/identity")[1]
    finally:
        native.stop()


def test_what_the_native_server_had_is_set_aside_not_deleted(container: Plex, tmp_path: Path) -> None:
    container.stop()
    with running(tmp_path / "native") as native:
        answer(native.request("set", values={"FriendlyName": "empty"}))
    done = move(container, native)
    assert attributes(native)["FriendlyName"] == "from docker"
    assert 'FriendlyName="empty"' in (Path(done["aside"]) / "Preferences.xml").read_text()


def test_a_move_is_refused_while_the_native_server_runs(container: Plex, tmp_path: Path) -> None:
    container.stop()
    with running(tmp_path / "native") as native:
        before = native.preferences.read_text()
        with pytest.raises(SystemExit, match="Plex runs here"):
            move(container, native)
        assert native.preferences.read_text() == before
    move(container, native)


def test_a_move_is_refused_while_the_container_runs(container: Plex, tmp_path: Path) -> None:
    native = Plex(tmp_path / "native", port=9)
    native.home.mkdir()
    with pytest.raises(SystemExit, match=r"has files below .*config.* open: .*both servers stopped"):
        move(container, native)
    assert not native.data.exists()
    container.stop()
    move(container, native)


def test_a_move_that_is_cut_off_leaves_nothing_behind_and_the_source_whole(
    container: Plex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    container.stop()
    native = Plex(tmp_path / "native", port=9)
    native.home.mkdir()

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(os, "chown", full)
        with pytest.raises(SystemExit, match="No space left on device"):
            move(container, native)
    assert list(native.data.parent.iterdir()) == []
    move(container, native)
    assert native.preferences.exists()


def test_a_move_is_refused_where_there_is_no_server_or_no_package(container: Plex, tmp_path: Path) -> None:
    container.stop()
    native = Plex(tmp_path / "native", port=9)
    with pytest.raises(SystemExit, match="install the native Plex first"):
        move(container, native)
    native.home.mkdir()
    empty = Plex(tmp_path / "empty")
    empty.home.mkdir()
    with pytest.raises(SystemExit, match=r"has no Preferences\.xml"):
        move(empty, native)
    assert not native.data.exists()


# --- as it travels


def test_the_program_runs_from_standard_input_and_its_end_tells_a_step(server: Plex) -> None:
    def run(request: dict[str, Any]) -> subprocess.CompletedProcess[str]:
        program = on_host.program("mediahost.plex_on_host", request)
        command = [sys.executable, "-I", "-"]
        return subprocess.run(command, input=program, capture_output=True, text=True, check=False)

    done = run(server.request("set", values={"FriendlyName": "nas"}))
    assert (done.returncode, done.stdout) == (0, '{"changed": true}\n')
    (server.data / "stand-in-sessions").write_text("2")
    assert run(server.request("idle")).returncode == 3
    failed = run(server.request("claim", token="claim-expired-yesterday"))
    assert failed.returncode == 1
    assert "four minutes" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert "claim-expired" not in failed.stderr
