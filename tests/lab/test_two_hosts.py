"""Two hosts in one inventory: side by side, each with its own data, and neither stopped by the other's trouble."""

from __future__ import annotations

import pytest

from tests.lab.conftest import PROVISIONED, MakeMachine
from tests.lab.home import Home, told

pytestmark = [pytest.mark.lab, pytest.mark.proof("Two hosts in one inventory")]


@pytest.fixture
def two(provisioned: Home, make_machine: MakeMachine, tmp_path_factory: pytest.TempPathFactory) -> Home:
    """The provisioned server and a bare one; the bare one gets no services, to keep the test short."""
    provisioned.machine.restore(PROVISIONED)
    bare = make_machine("second", memory_mib=1024)
    bare.restore("clean")
    home = Home(
        provisioned.repository,
        [provisioned.machine, bare],
        host_data={
            bare.name: {
                "selection": "none",
                "docker_source": "distro",
                "timezone": "Europe/Berlin",
                "data_root": "/srv/media",
            }
        },
    )
    home.write_inventory()
    return home


@pytest.mark.exhaustive
def test_each_host_gets_its_own_data(two: Home) -> None:
    first, second = two.machines
    report = two.apply()
    assert [change for change in report["changes"] if change["host"] != second.name] == []
    assert report["changes"]
    assert second.run("readlink /etc/localtime").stdout.strip().endswith("Europe/Berlin")
    assert first.run("readlink /etc/localtime").stdout.strip().endswith("Etc/UTC")
    second.run("test -d /srv/media/media/movies")
    assert first.run("test -d /srv/media/media/movies", check=False).returncode == 1
    assert two.changes() == []


def test_an_unreachable_host_does_not_stop_the_other(two: Home) -> None:
    first, second = two.machines
    first.run("sudo rm /etc/apt/apt.conf.d/90mediahost")
    second.pause()
    try:
        result = two.mediahost("apply")
        assert result.returncode == 1
        assert f"{second.name}: could not be reached" in result.stdout
        assert "1 changed" in result.stdout, told(result)
    finally:
        second.resume()
    first.run("test -f /etc/apt/apt.conf.d/90mediahost")
