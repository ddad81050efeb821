"""Native Plex from its repository to a library that survives, on a real machine; the server is the lab's stand-in.

The stand-in says that it is one, keeps Plex's paths, user, unit and API, and refuses what Plex refuses. What it plays
is a number in a file; what it would show to a television nobody here knows.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from xml.etree import ElementTree

import pytest

from lab import aptrepo
from lab.machine import Machine
from lab.vendor.plex import VERSIONS
from mediahost import config, plex
from mediahost.render import plex as artefacts
from mediahost.stack import vault_folder
from tests.lab.conftest import PROVISIONED, brought_to
from tests.lab.home import Home, Report, told
from tests.lab.segment import LAN, LAN4
from tests.lab.test_edge import scan
from tests.lab.waiting import becomes

pytestmark = [
    pytest.mark.lab,
    pytest.mark.exhaustive,
    pytest.mark.proof("Plex on the host: set up, left in peace while somebody plays, and kept", "media-host"),
]

OLDER, NEWER = VERSIONS
CLAIM = "claim-Abcdefgh_ijk-lmnop"
OLD_SOURCE = "/etc/apt/sources.list.d/plexmediaserver.list"
OLD_KEY = "/etc/apt/trusted.gpg.d/plexmediaserver.gpg"
SET_UP = "plex"


@dataclass
class Server:
    """The host with its Plex, as the owner and as root see it."""

    home: Home

    @property
    def host(self) -> Machine:
        return self.home.machine

    def root(self, command: str, check: bool = True) -> str:
        """What a shell of root prints."""
        return self.host.run(["sudo", "sh", "-c", command], check=check).stdout

    def hand_over(self, token: str) -> None:
        """Put a claim token into the vault."""
        name = f"{vault_folder(self.host.name)}/plex/claim"
        self.home.mediahost("secrets", "set", name, check=True, typed=token)

    def attributes(self) -> dict[str, str]:
        """Preferences.xml."""
        text = self.root(f"cat {shlex.quote(plex.PREFERENCES)}")
        return dict(ElementTree.fromstring(text).attrib)  # noqa: S314 - the stand-in wrote it

    def said(self, path: str) -> ElementTree.Element:
        """What the server answers its owner. The token is not in argv here either."""
        token = self.attributes().get("PlexOnlineToken", "")
        asked = f'header = "X-Plex-Token: {token}"\nurl = "{plex.URL}{path}"\n'
        text = self.host.run("curl -fsS -m 60 --config -", input=asked).stdout
        return ElementTree.fromstring(text)  # noqa: S314 - the stand-in wrote it

    def setting(self, name: str) -> str:
        """A preference as the server has it in mind."""
        (value,) = [each.get("value", "") for each in self.said("/:/prefs") if each.get("id") == name]
        return value

    def libraries(self) -> dict[str, list[str]]:
        """Title to directories."""
        found = self.said("/library/sections")
        return {each.get("title", ""): [place.get("path", "") for place in each] for each in found}

    def play(self, count: int) -> None:
        """So many people play from now on."""
        self.root(f"echo {count} >{shlex.quote(plex.DATA)}/stand-in-sessions")

    def version(self) -> str:
        """Of the package."""
        return self.root(f"dpkg-query -W -f '${{Version}}' {plex.PACKAGE}")

    def started(self) -> str:
        """When the server's process began; another one after each restart."""
        return self.root(f"systemctl show -p ExecMainStartTimestampMonotonic {plex.UNIT}")

    def names(self, *wanted: str) -> list[str]:
        """The plan's differences, which are these and no others; its ports come and go with it."""
        changes = [change for change in self.home.changes() if not change.startswith("firewall | ")]
        assert len(changes) == len(wanted), changes
        for change, start in zip(changes, wanted, strict=True):
            assert change.startswith(start), changes
        return changes


WANTED: dict[str, object] = {
    "plex": "native",
    "plex_version": "1.43.3.*",
    "plex_name": "Lab & home",
    "plex_transcode_directory": "/srv/transcode",
    "plex_preferences": {"RelayEnabled": False},
}


@pytest.fixture(scope="session")
def set_up(provisioned: Home) -> Server:
    """A host with an old source and key of Plex on which a first run and, with a token at hand, a second one were."""
    server = Server(provisioned)

    def first_run() -> Report:
        server.host.restore(PROVISIONED)
        server.root(f"echo 'deb https://downloads.plex.tv/repo/deb public main' >{OLD_SOURCE}; : >{OLD_KEY}")
        server.home.settle(**WANTED)
        server.hand_over(CLAIM)
        return server.home.apply()

    brought_to(provisioned, SET_UP, first_run)
    return server


@pytest.fixture
def server(set_up: Server) -> Iterator[Server]:
    """That host, restored."""
    set_up.host.restore(SET_UP)
    set_up.home.settle(**WANTED)
    yield set_up
    set_up.home.settle()


@pytest.fixture
def fresh(provisioned: Home) -> Iterator[Server]:
    """The host without any Plex; whatever a trial writes into its inventory is gone for the next one."""
    provisioned.machine.restore(PROVISIONED)
    provisioned.settle()
    yield Server(provisioned)
    provisioned.settle()


def test_one_run_installs_claims_sets_and_fills_it_and_a_second_one_changes_nothing(server: Server) -> None:
    assert server.version() == OLDER
    assert plex.PACKAGE in server.root("apt-mark showhold").split()
    assert server.said("/identity").get("claimed") == "1"
    assert server.setting("FriendlyName") == "Lab & home"
    assert server.setting("TranscoderTempDirectory") == "/srv/transcode"
    assert server.setting("RelayEnabled") == "false"
    assert set(server.libraries()) == {"Movies", "TV Shows", "Music", "Audiobooks"}
    before = server.started()
    assert server.home.changes() == []
    assert server.home.apply()["changes"] == []
    assert server.started() == before


def test_the_server_is_in_the_groups_that_open_cards_and_media_and_shares_what_it_writes(server: Server) -> None:
    pid = server.root(f"systemctl show -p MainPID --value {plex.UNIT}").strip()
    status = server.root(f"cat /proc/{pid}/status")
    (line,) = [line for line in status.splitlines() if line.startswith("Groups:")]
    wanted = {server.root(f"getent group {name} | cut -d: -f3").strip() for name in ("render", "video", "media")}
    assert wanted <= set(line.split()[1:])
    assert "Umask:\t0002" in status
    assert server.root("stat -c '%U:%G %a' /srv/transcode").strip() == "plex:plex 750"
    assert server.root(f"stat -c '%U:%G %a' {shlex.quote(plex.PREFERENCES)}").strip() == "plex:plex 600"


def test_the_old_repository_and_its_key_are_gone_and_apt_has_one_source(server: Server) -> None:
    for path in (OLD_SOURCE, OLD_KEY):
        assert server.host.run(["test", "-e", path], check=False).returncode != 0
    assert server.host.run(["test", "-e", artefacts.SOURCE_PATH], check=False).returncode == 0
    policy = server.root(f"apt-cache policy {plex.PACKAGE}")
    assert policy.count(f"{aptrepo.guest_url()}/plex/deb") == len(VERSIONS)
    assert "downloads.plex.tv" not in policy
    # A source that comes back is named by the plan and goes again.
    server.root(f"echo 'deb https://downloads.plex.tv/repo/deb public main' >{OLD_SOURCE}")
    server.names(f"plex | package: {OLD_SOURCE}: an older source of Plex, is removed")
    server.home.apply()
    assert server.home.changes() == []


def test_neither_token_is_in_a_report_a_log_or_a_process(server: Server) -> None:
    token = server.attributes()["PlexOnlineToken"]
    assert len(token) > 10
    everything = json.dumps(server.home.plan()) + server.root("journalctl -b --no-pager", check=False)
    everything += server.root("cat /var/lib/mediahost/manifest; cat /var/lib/mediahost/plex/* 2>/dev/null; true")
    assert "stand-in for Plex" in everything, "the journal was not read"
    for secret in (token, CLAIM):
        assert secret not in everything


def test_a_key_with_another_fingerprint_is_refused_and_nothing_is_installed(fresh: Server) -> None:
    fresh.home.settle(plex="native", plex_apt_fingerprint=aptrepo.wrong_fingerprint())
    done = fresh.home.mediahost("apply")
    assert done.returncode == 1
    assert f"fingerprint '{aptrepo.fingerprint()}', not {aptrepo.wrong_fingerprint()}" in told(done)
    assert fresh.host.run(["test", "-e", plex.HOME], check=False).returncode != 0
    # Positive control: with the right one the same host gets it.
    fresh.home.settle(plex="native")
    fresh.home.apply()
    assert fresh.version() == NEWER


def test_an_update_waits_while_somebody_plays_and_happens_afterwards(server: Server) -> None:
    server.play(1)
    before = server.started()
    server.home.settle(**{**WANTED, "plex_version": "1.43.4.*"})
    server.names(f"plex | package: {artefacts.PIN_PATH}: content differs")
    report = server.home.apply()
    assert any(
        "the update from" in notice["what"] and "waits: 1 play" in notice["what"] for notice in report["notices"]
    )
    assert server.version() == OLDER
    assert server.started() == before
    server.play(0)
    server.names(f"plex | package: package {plex.PACKAGE}: version {OLDER}, wanted 1.43.4.*")
    server.home.apply()
    assert server.version() == NEWER
    assert server.setting("FriendlyName") == "Lab & home"
    assert server.home.changes() == []


def test_a_restart_waits_as_well(server: Server) -> None:
    server.play(2)
    before = server.started()
    server.root(f"sed -i s/0002/0022/ {artefacts.DROP_IN_PATH} && systemctl daemon-reload")
    report = server.home.apply()
    assert any("the restart that takes new settings" in notice["what"] for notice in report["notices"])
    assert server.started() == before
    server.play(0)
    server.names(f"plex | server: {plex.UNIT}: runs with an older configuration, is restarted (nobody plays)")
    server.home.apply()
    assert server.started() != before
    assert server.home.changes() == []


@pytest.mark.parametrize(
    ("breaks", "says"),
    [
        (f"systemctl stop {plex.UNIT}", f"plex | server: {plex.UNIT}: inactive"),
        (f"systemctl -q disable {plex.UNIT}", f"plex | server: {plex.UNIT}: not enabled"),
        (f"apt-mark unhold {plex.PACKAGE}", f"plex | package: package {plex.PACKAGE}: not held"),
        (f"rm {artefacts.KEYRING_PATH}", f"plex | package: {artefacts.KEYRING_PATH}: missing"),
        (f"kill -STOP $(systemctl show -p MainPID --value {plex.UNIT})", "plex | server: Plex: runs but does not"),
    ],
)
def test_drift_is_named_and_mended(server: Server, breaks: str, says: str) -> None:
    server.root(breaks)
    server.names(says)
    if "STOP" in breaks:
        server.root(f"kill -CONT $(systemctl show -p MainPID --value {plex.UNIT})")
    else:
        server.home.apply()
    assert server.home.changes() == []


def test_a_preference_changed_by_somebody_is_named_set_back_and_the_others_stay(server: Server) -> None:
    token = server.attributes()["PlexOnlineToken"]
    for change in ("FriendlyName=Other", "TranscoderQuality=3"):
        asked = f'header = "X-Plex-Token: {token}"\nurl = "{plex.URL}/:/prefs?{change}"\nrequest = "PUT"\n'
        server.host.run("curl -fsS -m 60 --config -", input=asked)
    before = server.started()
    server.names("plex | preferences, owner, libraries: Plex preference FriendlyName: Other, wanted Lab & home")
    server.home.apply()
    assert server.setting("TranscoderQuality") == "3"
    assert server.started() == before
    assert server.home.changes() == []
    # It is in the file too, once the server has written it anew at its end.
    server.root(f"systemctl restart {plex.UNIT}")
    assert server.attributes()["FriendlyName"] == "Lab & home"
    assert server.attributes()["TranscoderQuality"] == "3"


def test_switched_off_it_stops_and_keeps_all_and_on_again_everything_is_there(server: Server) -> None:
    before, libraries = server.attributes(), server.libraries()
    server.home.settle()
    server.names("plex | what is switched off: Plex: switched off")
    server.home.apply()
    assert server.home.changes() == []
    assert server.root(f"systemctl is-enabled {plex.UNIT}", check=False).strip() == "disabled"
    assert server.root(f"systemctl is-active {plex.UNIT}", check=False).strip() == "inactive"
    assert plex.PACKAGE not in server.root("apt-mark showhold").split()
    for path in artefacts.PATHS:
        assert server.host.run(["test", "-e", path], check=False).returncode != 0
    assert server.attributes() == before
    server.home.settle(**WANTED)
    server.home.apply()
    assert server.home.changes() == []
    assert server.attributes()["PlexOnlineToken"] == before["PlexOnlineToken"]
    assert server.libraries() == libraries


def test_a_stranger_reaches_the_server_and_not_what_it_is_found_with(server: Server, stranger: Machine) -> None:
    server.home.settle(**WANTED, firewall_lan=LAN)
    server.home.apply()
    ports = "8324,32399-32400,32469"
    # Something that listens there, so that a port that is closed to him is closed by the firewall.
    listener = "python3 -m http.server"
    for port in (8324, 32469):
        server.root(f"systemd-run -q --unit lab-listener-{port} {listener} {port}")
    pages = "curl -fsS -o /dev/null http://127.0.0.1:8324/ && curl -fsS -o /dev/null http://127.0.0.1:32469/"
    assert becomes(lambda: server.host.run(pages, check=False).returncode == 0), "nothing listens there"
    outside = scan(stranger, stranger.address4, server.host.address4, "tcp", ports)
    inside = scan(stranger, LAN4, server.host.address4, "tcp", ports)
    assert outside.answered == {32400}
    assert inside.answered == {8324, 32400, 32469}
    server.home.settle(**WANTED, firewall_lan=LAN, plex_exposure="lan")
    server.home.apply()
    assert scan(stranger, stranger.address4, server.host.address4, "tcp", ports).answered == frozenset()
    assert scan(stranger, LAN4, server.host.address4, "tcp", ports).answered == {8324, 32400, 32469}


def test_its_own_sqlite_backs_up_the_library_while_it_runs(server: Server) -> None:
    wanted = plex.backup_set(config.read("home", {"plex": "native"}))
    assert wanted is not None
    command = f"{shlex.quote(wanted.sqlite)} {shlex.quote(wanted.databases[0])} \".backup '/root/copy.db'\""
    server.root(command)
    rows = "import sqlite3; print(sqlite3.connect('/root/copy.db').execute('select count(*) from section_locations')"
    count = int(server.root(f'python3 -c "{rows}.fetchone()[0])"'))
    assert count == len(server.libraries())


def test_a_containers_library_moves_to_the_host(fresh: Server) -> None:
    """plex = docker, then native, then the move: refused while either runs, and afterwards all of it is there."""
    fresh.home.settle(plex="docker")
    fresh.home.apply()
    inside = "docker exec mediahost-plex-1 curl -fsS -m 60"
    fresh.root(f"{inside} -X POST '{plex.URL}/myplex/claim?token={CLAIM}'")
    path = f"/opt/media-server/config/plex/library/{plex.SUPPORT}/Preferences.xml"
    text = fresh.root(f"cat {shlex.quote(path)}")
    claimed = dict(ElementTree.fromstring(text).attrib)  # noqa: S314 - the stand-in wrote it
    fresh.home.settle(plex="native")
    changes = fresh.home.changes()
    assert any("service plex: stops, the native Plex takes its ports" in change for change in changes), changes
    fresh.home.apply()
    refused = fresh.home.mediahost("plex", "move")
    assert refused.returncode == 1
    assert "both servers stopped" in told(refused)
    fresh.root(f"systemctl stop {plex.UNIT}")
    fresh.home.mediahost("plex", "move", check=True)
    fresh.home.apply()
    assert fresh.home.changes() == []
    assert fresh.attributes()["PlexOnlineToken"] == claimed["PlexOnlineToken"]
    assert fresh.attributes()["MachineIdentifier"] == claimed["MachineIdentifier"]
    assert set(fresh.libraries()) == {"Movies", "TV Shows", "Music", "Audiobooks"}
