"""Stage plex: a host as wanted is no step, nobody who plays is interrupted, and what is off leaves its data."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from facts.snapshot import (
    ContainerState,
    GpuState,
    PackageState,
    PathState,
    PlexState,
    Request,
    Snapshot,
    parse,
    script,
)
from mediahost import config, on_host, plex
from mediahost.catalog import load_catalog
from mediahost.gpu import Card
from mediahost.plex import PACKAGE, UNIT
from mediahost.plex_on_host import answer
from mediahost.render import plex as artefacts
from mediahost.secrets import Passphrase, Vault
from mediahost.stack import vault_folder
from mediahost.wanted import Wanted, build
from operations import manifest, vendor_key, verify
from operations import plex as stage
from tests.operations.test_deploy import PHRASE, Project
from tests.operations.test_steps import INSTALLED, RUNNING, as_present, commands, refusal, sound, told
from tests.unit.plex_run import Plex
from tests.unit.plex_run import plex as running
from tests.unit.test_stack import vault

CATALOG = load_catalog()
CLAIM = "claim-Abcdefgh_ijk-lmnop"
GROUPS = {"render": 993, "video": 44, "media": 13000}
KEY = PathState("file", "644", "0", "0", "root", "root", "abc")
INSTALLED_PLEX = PackageState("1.43.3.10896-cb3ebc72d", installed=True, held=True)


def plan(claim: str | None = None, **data: Any) -> Wanted:
    entries = {"nas/plex/claim": claim} if claim else {}
    secrets = vault(**entries)

    def secret(entry: str, kind: str) -> str:
        try:
            return secrets(entry, kind)
        except KeyError:
            raise LookupError(entry) from None

    return build("nas", config.read("nas", {"plex": "native", **data}), CATALOG, secret)


def as_wanted(wanted: Wanted, **state: Any) -> Snapshot:
    """A host on which a run has been and Plex answers; `state` changes what it says."""
    settings = wanted.settings
    pin = artefacts.pin_file(settings)
    files = [
        artefacts.source_file(settings, "amd64"),
        artefacts.drop_in(settings, GROUPS),
        artefacts.needrestart_file(),
        *((pin,) if pin else ()),
    ]
    paths = {**as_present(*files), artefacts.KEYRING_PATH: KEY}
    own = artefacts.own_directory(settings)
    if own:
        paths[own.path] = PathState("directory", "750", "997", "997", "plex", "plex")
    said = PlexState(
        answers=True,
        version="1.43.3.10896",
        claimed=True,
        sessions=0,
        preferences=artefacts.preferences(settings, card=False),
        libraries=tuple(
            (title, library["type"], tuple(library["paths"])) for title, library in plex.libraries(settings).items()
        ),
    )
    return Snapshot(
        paths=paths,
        contents={vendor_key.record_path("plex"): f"{settings.plex_apt_fingerprint} abc\n"},
        packages={PACKAGE: INSTALLED_PLEX, "python3": INSTALLED},
        units={UNIT: RUNNING},
        groups=GROUPS,
        plex=replace(said, **state),
    )


def test_a_host_as_wanted_is_no_step_and_no_notice() -> None:
    for data in ({}, {"plex_name": "nas", "plex_transcode_directory": "/srv/t", "plex_version": "1.43.3.*"}):
        wanted = plan(**data)
        assert stage.steps(wanted, as_wanted(wanted)) == []
        assert stage.notices(wanted, as_wanted(wanted)) == []


def test_the_snapshot_is_asked_for_everything_that_is_compared() -> None:
    wanted = plan(plex_name="nas", plex_transcode_directory="/srv/t", plex_version="1.43.3.*")
    asked, seen = stage.request(wanted.settings), as_wanted(wanted)
    assert set(seen.paths) <= asked.paths
    assert set(seen.packages) == asked.packages
    assert set(seen.units) == asked.units
    assert set(seen.plex.preferences) <= asked.plex
    assert verify.request(wanted).plex == asked.plex


@pytest.mark.parametrize("choice", ["none", "docker"])
def test_without_a_native_plex_only_its_files_are_looked_at(choice: str) -> None:
    wanted = plan(plex=choice)
    assert stage.request(wanted.settings) == Request(paths=frozenset(artefacts.PATHS))
    assert stage.steps(wanted, Snapshot()) == []
    # Somebody's own native Plex is none of ours.
    assert stage.steps(wanted, Snapshot(packages={PACKAGE: INSTALLED}, units={UNIT: RUNNING})) == []


def test_on_a_bare_host_everything_is_planned_in_order() -> None:
    wanted = plan(claim=CLAIM, plex_name="nas")
    changes = told(stage.steps(wanted, Snapshot(groups=GROUPS)))
    expected = [
        f"{artefacts.KEYRING_PATH}: missing",
        f"{artefacts.SOURCE_PATH}: missing",
        f"{artefacts.DROP_IN_PATH}: missing",
        f"package {PACKAGE}: not installed",
        f"package {PACKAGE}: not held",
        f"{UNIT}: unit not installed",
        "Plex preference FriendlyName: unset, wanted nas",
        "Plex: nobody owns it, is bound to the account of the claim token",
        "Plex library Movies (/data/media/movies): missing",
    ]
    assert [change for change in changes if change in expected] == expected
    sound(stage.steps(wanted, Snapshot(groups=GROUPS)))


def test_the_drop_in_is_there_before_the_package_starts_the_server_and_owes_no_restart_then() -> None:
    steps = stage.installed_steps(plan().settings, Snapshot(groups=GROUPS))
    assert told(steps).index(f"{artefacts.DROP_IN_PATH}: missing") < told(steps).index(
        f"package {PACKAGE}: not installed"
    )
    assert "pending/" not in commands(steps)


# --- the repository


def test_the_key_is_fetched_from_plex_and_its_fingerprint_is_checked_before_it_is_used() -> None:
    wanted = plan()
    seen = replace(as_wanted(wanted), contents={})
    (step,) = stage.steps(wanted, seen)
    assert step.change == f"{artefacts.KEYRING_PATH}: is not the one that was verified"
    for part in ("https://downloads.plex.tv/plex-keys/PlexSign.v2.key", "6EFFEB478A6559D75C7C4FE706C521790B9CFFDE"):
        assert part in step.command
    assert "plex_apt_fingerprint" in step.command
    sound([step])


def test_older_sources_and_keys_are_removed_before_apt_reads_them() -> None:
    wanted = plan()
    old = "/etc/apt/sources.list.d/plexmediaserver.list"
    seen = as_wanted(wanted, sources={old: True})
    seen = replace(seen, paths={**seen.paths, "/usr/share/keyrings/plex.gpg": KEY})
    steps = stage.steps(wanted, seen)
    assert told(steps) == [
        f"{old}: an older source of Plex, is removed",
        "/usr/share/keyrings/plex.gpg: an older key of Plex, is removed",
    ]
    assert commands(steps) == f"rm -f {old}\nrm -f /usr/share/keyrings/plex.gpg"


def test_a_source_file_with_other_repositories_in_it_is_not_deleted() -> None:
    wanted = plan()
    steps = stage.steps(wanted, as_wanted(wanted, sources={"/etc/apt/sources.list.d/all.list": False}))
    assert "take Plex's lines out of that file" in refusal(steps)


# --- nobody who plays is interrupted


def outdated(**state: Any) -> tuple[Wanted, Snapshot]:
    wanted = plan(plex_version="1.43.4.*")
    return wanted, as_wanted(wanted, **state)


def test_another_version_is_installed_while_nobody_plays() -> None:
    wanted, seen = outdated()
    (step,) = stage.steps(wanted, seen)
    assert step.change.startswith(f"package {PACKAGE}: version 1.43.3.10896-cb3ebc72d, wanted 1.43.4.*")
    assert "nobody plays" in step.change
    assert "--allow-change-held-packages" in step.command
    assert step.command.endswith(f"apt-mark hold {PACKAGE} >/dev/null")
    sound([step])


@pytest.mark.parametrize(("sessions", "why"), [(2, "2 play"), (None, "does not say whether somebody plays")])
def test_while_somebody_plays_an_update_is_no_step_but_told(sessions: int | None, why: str) -> None:
    wanted, seen = outdated(sessions=sessions)
    assert stage.steps(wanted, seen) == []
    (notice,) = stage.notices(wanted, seen)
    assert "1.43.3.10896-cb3ebc72d to 1.43.4.* waits" in notice
    assert why in notice


def test_a_server_that_is_down_is_updated(tmp_path: Path) -> None:
    wanted, seen = outdated(answers=False, sessions=None)
    assert any(step.change.startswith(f"package {PACKAGE}: version") for step in stage.steps(wanted, seen))


@pytest.mark.parametrize("playing", [False, True])
def test_who_began_to_play_meanwhile_is_asked_for_right_before_the_update(playing: bool, tmp_path: Path) -> None:
    """The step's own command, with the server that runs here and without apt."""
    wanted, seen = outdated()
    with running(tmp_path / "plex") as server:
        if playing:
            (server.data / "stand-in-sessions").write_text("1")
        (step,) = stage.steps(wanted, seen)
        program = step.command.partition("export DEBIAN_FRONTEND")[0] + "echo installs"
        request = server.request("idle")
        done = subprocess.run(
            ["sh", "-euc", program],
            input=on_host.program("mediahost.plex_on_host", request),
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ("" if playing else "installs\n")
    assert ("somebody plays now" in done.stderr) == playing


def test_a_restart_waits_too_and_happens_afterwards() -> None:
    wanted = plan()
    owed = replace(as_wanted(wanted, sessions=1), pending=frozenset({UNIT}))
    assert stage.steps(wanted, owed) == []
    assert "the restart that takes new settings" in stage.notices(wanted, owed)[0]
    (step,) = stage.steps(wanted, replace(as_wanted(wanted), pending=frozenset({UNIT})))
    assert f"systemctl restart {UNIT}" in step.command
    sound([step])


def test_a_changed_drop_in_owes_a_restart_from_before_it_is_written() -> None:
    wanted = plan()
    seen = as_wanted(wanted, sessions=1)
    old = replace(seen.paths[artefacts.DROP_IN_PATH], sha256="old")
    steps = stage.steps(wanted, replace(seen, paths={**seen.paths, artefacts.DROP_IN_PATH: old}))
    assert told(steps) == [f"{artefacts.DROP_IN_PATH}: content differs", f"{UNIT}: systemd reads its drop-in"]
    assert f"pending/{UNIT}" in steps[0].command
    assert "restart" not in commands(steps)


# --- health


@pytest.mark.parametrize(
    ("state", "change"),
    [
        ({"active": "failed"}, f"{UNIT}: failed"),
        ({"active": "inactive"}, f"{UNIT}: inactive"),
        ({"enabled": "disabled"}, f"{UNIT}: not enabled"),
    ],
)
def test_a_server_that_is_down_is_started_and_awaited(state: dict[str, Any], change: str) -> None:
    wanted = plan()
    seen = as_wanted(wanted)
    seen = replace(seen, units={UNIT: replace(RUNNING, **state)}, plex=PlexState(claimed=True))
    steps = stage.steps(wanted, seen)
    assert told(steps) == [change], "what it has is not known until it answers"
    assert f"{plex.URL}/identity" in commands(steps) or "enabled" in change
    sound(steps)


def test_a_server_that_runs_and_does_not_answer_is_not_healthy() -> None:
    wanted = plan()
    (step,) = stage.running_steps(wanted.settings, as_wanted(wanted, answers=False, sessions=None))
    assert "does not answer at http://127.0.0.1:32400/identity" in step.change
    sound([step])


# --- preferences, owner, libraries


def test_one_preference_that_differs_is_told_with_both_values_and_nothing_secret() -> None:
    wanted = plan(plex_name="nas", plex_preferences={"RelayEnabled": False})
    seen = as_wanted(wanted, preferences={"FriendlyName": "old", "RelayEnabled": "false"})
    (step,) = stage.steps(wanted, seen)
    assert step.change == "Plex preference FriendlyName: old, wanted nas"
    assert step.command == "python3 -I - >/dev/null"


INTEL = Card("0000:00:02.0", 0x8086, 0x3E92, "i915", "renderD128", named=True)
NVIDIA = Card("0000:01:00.0", 0x10DE, 0x1C03, "nvidia")


@pytest.mark.parametrize(
    ("data", "state", "on"),
    [
        ({"gpu": "auto"}, GpuState(cards=(INTEL,), nodes={"renderD128": INTEL.address}), True),
        ({"gpu": "auto"}, GpuState(cards=(replace(INTEL, render=""),)), False),
        ({"gpu": "auto"}, GpuState(cards=(NVIDIA,), nvidia="580.95"), True),
        ({"gpu": "auto"}, GpuState(cards=(NVIDIA,)), False),
        ({"gpu": "auto"}, GpuState(), False),
        ({"gpu": "auto", "gpu_devices": {"plex": "none"}}, GpuState(cards=(INTEL,)), False),
        ({"gpu": "auto", "gpu_devices": {"plex": "/dev/dri/renderD130"}}, GpuState(nodes={"renderD130": ""}), True),
        ({"gpu": "none"}, GpuState(cards=(INTEL,)), False),
    ],
)
def test_hardware_transcoding_is_on_when_a_card_is_ready_and_asked_for(
    data: dict[str, Any], state: GpuState, on: bool
) -> None:
    wanted = plan(**data)
    seen = replace(as_wanted(wanted), gpu=state)
    expected = [
        "Plex preference HardwareAcceleratedCodecs: unset, wanted 1",
        "Plex preference HardwareAcceleratedEncoders: unset, wanted 1",
    ]
    assert told(stage.steps(wanted, seen)) == (expected if on else [])


def test_a_claim_token_travels_on_standard_input_only_and_is_not_told() -> None:
    wanted = plan(claim=CLAIM)
    (step,) = stage.steps(wanted, as_wanted(wanted, claimed=False))
    assert CLAIM not in f"{step.change} {step.command} {wanted!r}"
    assert step.stdin is not None
    assert CLAIM not in step.stdin, "it is readable at a glance"


def test_an_owned_server_is_not_claimed_again() -> None:
    wanted = plan(claim=CLAIM)
    assert stage.steps(wanted, as_wanted(wanted)) == []


def test_without_a_token_or_with_a_refused_one_the_user_is_told_how_to_claim() -> None:
    wanted = plan()
    seen = as_wanted(wanted, claimed=False)
    assert stage.steps(wanted, seen) == []
    assert "nobody owns it yet; get a token at https://plex.tv/claim" in stage.notices(wanted, seen)[0]
    wanted = plan(claim=CLAIM)
    refused = as_wanted(wanted, claimed=False, refused_claim=hashlib.sha256(CLAIM.encode()).hexdigest())
    assert stage.steps(wanted, refused) == []
    assert "the token in the vault was refused" in stage.notices(wanted, refused)[0]


def test_what_is_no_claim_token_is_refused_before_anything_is_touched_and_not_shown() -> None:
    with pytest.raises(config.ConfigError) as error:
        plan(claim="my-plex-password")
    assert "nas: vault entry nas/plex/claim: is not a claim token" in str(error.value)
    assert "my-plex-password" not in str(error.value)


def test_libraries_are_known_by_their_directories_and_titles_are_the_users() -> None:
    wanted = plan()
    renamed = (("Filme", "movie", ("/data/media/movies/",)), ("Serien", "show", ("/data/media/tv", "/other")))
    changes = told(stage.steps(wanted, as_wanted(wanted, libraries=renamed)))
    assert changes == [
        "Plex library Music (/data/media/music): missing",
        "Plex library Audiobooks (/data/media/audiobooks): missing",
    ]


def test_a_library_of_that_title_elsewhere_stays_and_is_told() -> None:
    wanted = plan(media_libraries=["movies"])
    seen = as_wanted(wanted, libraries=(("Movies", "movie", ("/mnt/old",)),))
    assert stage.steps(wanted, seen) == []
    assert "has other directories than /data/media/movies; it stays" in stage.notices(wanted, seen)[0]


# --- on and off


def test_a_container_of_ours_stops_before_the_native_server_starts() -> None:
    wanted = plan()
    container = ContainerState("c1", "plex", "d", "i", "running", "healthy", frozenset())
    steps = stage.steps(wanted, replace(as_wanted(wanted), containers=(container,)))
    assert "takes its ports" in steps[0].change
    assert steps[0].command == "docker stop c1 >/dev/null"


def test_what_is_off_is_stopped_and_loses_our_files_and_no_data() -> None:
    seen = as_wanted(plan(plex_version="1.43.3.*"))
    (step,) = stage.steps(plan(plex="none"), seen)
    assert "package, library and preferences stay" in step.change
    for path in artefacts.PATHS:
        assert path in step.command
    assert f"disable --now {UNIT}" in step.command
    assert f"apt-mark unhold {PACKAGE}" in step.command
    for harm in (plex.HOME, "purge", "apt-get", "userdel"):
        assert harm not in step.command
    assert step.command.index(artefacts.SOURCE_PATH) < step.command.index(f"rm -f {artefacts.DROP_IN_PATH}")
    sound([step])


def test_the_manifest_leaves_plexs_files_to_its_stage_which_must_stop_it_first() -> None:
    on, off = plan(), plan(plex="none")
    seen = replace(as_wanted(on), manifest=dict(on.owned))
    for step in manifest.prune_steps(off.owned, seen):
        assert "plex" not in step.change
    gone = replace(seen, paths={})
    assert any(step.change.startswith(artefacts.DROP_IN_PATH) for step in manifest.prune_steps(off.owned, gone))


def test_a_pin_that_is_taken_back_goes_while_plex_stays() -> None:
    wanted = plan()
    seen = as_wanted(plan(plex_version="1.43.3.*"))
    (step,) = stage.steps(wanted, seen)
    assert step.change == f"{artefacts.PIN_PATH}: not wanted"


@pytest.mark.parametrize("choice", ["native", "docker"])
def test_a_plan_sets_plex_up_after_the_media_and_before_the_stack_and_shows_no_token(
    tmp_path: Path, choice: str
) -> None:
    project = Project(tmp_path, {"one": {"plex": choice, "plex_name": "nas"}})
    kept = Vault.open(project.vault, Passphrase(PHRASE))
    kept.set(f"{vault_folder('@fake/one')}/plex/claim", CLAIM)
    kept.save()
    done = project.run("--dry", "-vvv", "--diff", "--debug")
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    operations = [event["operation"] for event in project.told("planned")]
    changes = [event["what"] for event in project.told("planned")]
    if choice == "native":
        assert "Plex preference FriendlyName: unset, wanted nas" in changes
        stages = [operations.index(name) for name in ("storage | directory tree", "plex | package", "plex | server")]
        assert stages == sorted(stages)
        assert stages[-1] < operations.index("stack | services")
    else:
        assert "service plex: not there" in changes
        assert not [name for name in operations if name.startswith("plex |")]
    assert CLAIM not in output + "".join(changes)


# --- the collector, run for real


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Plex]:
    with running(tmp_path / "plexmediaserver") as found:
        yield found


def look(server: Plex, monkeypatch: pytest.MonkeyPatch, *preferences: str) -> tuple[PlexState, str]:
    monkeypatch.setattr(plex, "URL", server.url)
    monkeypatch.setattr(plex, "PREFERENCES", str(server.preferences))
    request = Request(plex=frozenset(preferences))
    done = subprocess.run(["sh", "-s"], input=script(request), capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return parse(done.stdout.splitlines(), request).plex, done.stdout


def test_what_is_read_of_a_running_server_is_true_and_holds_no_token(
    server: Plex, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    scanner, agent = plex.AGENTS["show"]
    (tmp_path / "a & b").mkdir()
    library = {"title": "Serien > 1", "type": "show", "paths": [str(tmp_path / "a & b")], "language": "de-DE"}
    answer(server.request("libraries", libraries=[{**library, "scanner": scanner, "agent": agent}]))
    answer(server.request("set", values={"FriendlyName": 'a "b" & c', "HardwareAcceleratedCodecs": "1"}))
    unowned, _ = look(server, monkeypatch, "FriendlyName", "HardwareAcceleratedCodecs", "RelayEnabled")
    assert not unowned.claimed
    answer(server.request("claim", token=CLAIM))
    (server.data / "stand-in-sessions").write_text("3")
    seen, output = look(server, monkeypatch, "FriendlyName", "HardwareAcceleratedCodecs", "RelayEnabled")
    assert seen.answers
    assert seen.claimed
    assert seen.version == "1.43.3.10896"
    assert seen.sessions == 3
    assert seen.preferences == {
        "FriendlyName": 'a "b" & c',
        "HardwareAcceleratedCodecs": "true",
        "RelayEnabled": "true",
    }
    assert seen.libraries == (("Serien > 1", "show", (str(tmp_path / "a & b"),)),)
    token = server.preferences.read_text().partition('PlexOnlineToken="')[2].partition('"')[0]
    assert len(token) > 10
    assert token not in output
    assert "A film" not in output, "what somebody watches is nobody's business"


def test_of_a_stopped_server_its_file_tells_whether_somebody_owns_it(
    server: Plex, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer(server.request("set", values={"FriendlyName": 'a "b" & c'}))
    answer(server.request("claim", token=CLAIM))
    server.stop()
    seen, _ = look(server, monkeypatch, "FriendlyName", "RelayEnabled")
    assert seen == PlexState(claimed=True)


def test_where_there_is_no_plex_nothing_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, _ = look(Plex(tmp_path, port=9), monkeypatch, "FriendlyName")
    assert seen == PlexState()


def test_what_is_read_of_the_running_server_leads_to_no_step_after_it_was_set(
    server: Plex, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Set, read and compared: the three agree on how a preference is written."""
    settings = plan(plex_name="nas", plex_preferences={"RelayEnabled": False, "secureConnections": 2}).settings
    asked = stage.request(settings).plex
    before, _ = look(server, monkeypatch, *asked)
    assert len(stage.preference_steps(settings, Snapshot(plex=before))) == 3
    answer(server.request("set", values=artefacts.preferences(settings, card=False)))
    after, _ = look(server, monkeypatch, *asked)
    assert stage.preference_steps(settings, Snapshot(plex=after)) == []
