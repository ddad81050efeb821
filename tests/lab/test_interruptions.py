"""Runs that die: the control process is killed, the host loses power. The next run converges."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from lab.machine import Machine
from tests.lab.conftest import CLEAN, MakeMachine
from tests.lab.home import Home

pytestmark = [pytest.mark.lab, pytest.mark.proof("Interruptions: kills of the control process, and power cuts")]

_DATA = "/opt/media-server/config/qbittorrent/qBittorrent/categories.json"

Moment = Callable[[dict[str, Any]], bool]

# Operations in whose middle the control process is killed: the first event that names a change of theirs comes
# before its command runs.
MOMENTS = (
    "manifest | owned files",
    "base | apt settings",
    "base | packages",
    "hardening | controls",
    "users | accounts",
    "ssh | server",
    "firewall | ufw",
    "docker | engine packages",
    "docker | engine",
    "storage | directory tree",
    "stack | services",
    "fail2ban | fail2ban",
)


def during(operation: str) -> Moment:
    """The moment at which `operation` has announced its last change and works."""
    return lambda event: event["event"] == "change" and event["operation"] == operation


@pytest.fixture
def bare(make_machine: MakeMachine, supplied: None, tmp_path_factory: pytest.TempPathFactory) -> Home:
    """A home server before its first run."""
    machine = make_machine("interrupted", memory_mib=2048, durable=True)
    machine.restore(CLEAN)
    machine.wait_until_ready()
    home = Home(tmp_path_factory.mktemp("interrupted"), [machine])
    home.init()
    return home


def test_a_kill_among_packages_and_a_power_cut_among_services_heal(home: Home) -> None:
    """On a host that has drifted: minutes less than a first run, and data that could be lost."""
    home.machine.run("sudo sh -c 'apt-get -qq -y purge acl >/dev/null; rm /opt/media-server/compose.yaml'")
    home.machine.run("sudo docker rm -f mediahost-radarr-1 mediahost-sonarr-1 && sync")
    kept = home.machine.run(f"sudo sha256sum {_DATA}").stdout
    assert home.apply_until(during("base | packages"))
    assert cut_power_during(home, "stack | services")
    _heals(home)
    assert home.machine.run(f"sudo sha256sum {_DATA}").stdout == kept


@pytest.mark.exhaustive
def test_a_first_run_killed_among_packages_and_cut_among_services_heals(bare: Home) -> None:
    assert bare.apply_until(during("base | packages"))
    assert cut_power_during(bare, "stack | services")
    _heals(bare)


@pytest.mark.exhaustive
def test_a_first_run_that_is_killed_at_every_moment_goes_on_each_time(bare: Home) -> None:
    """Each next run comes past the moment at which the one before died, to the next one; the last one to the end."""
    for operation in MOMENTS:
        assert bare.apply_until(during(operation)), f"no run came to {operation}"
    _heals(bare)


@pytest.fixture(scope="module")
def killed(make_machine: MakeMachine, supplied: None, tmp_path_factory: pytest.TempPathFactory) -> Home:
    """A home server whose first run is killed again and again, a snapshot after each kill."""
    home = Home(tmp_path_factory.mktemp("killed"), [make_machine("interrupted", memory_mib=2048, durable=True)])
    home.init()
    return home


@pytest.mark.exhaustive
@pytest.mark.parametrize("operation", MOMENTS)
def test_the_run_after_a_kill_converges(killed: Home, operation: str) -> None:
    """The way to the moment is not gone anew each time: it starts where the kill before it left the host."""
    machine = killed.machine
    earlier = MOMENTS[: MOMENTS.index(operation)]
    known = [_tag(each) for each in earlier if _tag(each) in machine.snapshots()]
    machine.restore(known[-1] if known else CLEAN)
    killed.write_inventory()
    assert killed.apply_until(during(operation))
    machine.snapshot(_tag(operation))
    _heals(killed)


def _tag(operation: str) -> str:
    return "killed-" + operation.replace(" | ", "-").replace(" ", "-")


@pytest.mark.exhaustive
@pytest.mark.parametrize("operation", ["docker | engine packages", "stack | compose file, secrets and seeds"])
def test_the_run_after_a_power_cut_converges(bare: Home, operation: str) -> None:
    assert cut_power_during(bare, operation)
    _heals(bare)


def cut_power_during(home: Home, operation: str) -> bool:
    """Cut the host's power while `operation` works; the run is left to find out by itself, then ended."""
    machine: Machine = home.machine

    def cut(event: dict[str, Any]) -> bool:
        if during(operation)(event):
            # In the middle of the command, not before it: apt and docker have begun to write by then.
            threading.Event().wait(3)
            machine.power_cut()
            return True
        return False

    hit = home.apply_until(cut)
    machine.start()
    machine.wait_until_ready()
    home.write_inventory()  # a machine that starts anew may have another port
    return hit


def _heals(home: Home) -> None:
    home.apply()
    assert home.apply()["changes"] == []
    assert home.changes() == []
    assert home.machine.run("sudo dpkg --audit").stdout == ""


def test_a_second_run_at_the_same_time_is_told_who_is_at_work(home: Home) -> None:
    """And it changes nothing; when the first one's control process dies, its lock is void."""
    home.machine.run("sudo rm -rf /etc/apt/apt.conf.d/90mediahost; sudo docker rm -f mediahost-sonarr-1")
    results = []

    def second(event: dict[str, Any]) -> bool:
        if during("stack | services")(event):
            results.append(home.mediahost("apply"))
            return True
        return False

    home.machine.run("sudo touch /var/lib/mediahost/pending/caddy")
    assert home.apply_until(second)
    _heals(home)
