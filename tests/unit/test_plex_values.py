"""Plex as values: ports by exposure, libraries, preferences, what a backup holds, and the container's place."""

from __future__ import annotations

from typing import Any

import pytest

from mediahost import config, plex
from mediahost.config import Settings
from mediahost.render import firewall
from mediahost.render import plex as artefacts
from mediahost.stack import choose
from tests.unit.test_stack import CATALOG, chosen, problems, service, stack

LAN = ["192.168.1.0/24", "fd00::/8"]


def settings(**data: Any) -> Settings:
    return config.read("nas", {"plex": "native", **data})


# --- ports


def rules(**data: Any) -> set[tuple[str, str, str]]:
    """(ports, protocol, source) of the rules that name Plex."""
    found = firewall.host_rules(settings(firewall_lan=LAN, **data), (), (22,))
    return {(rule.port, rule.protocol, rule.source) for rule in found if "plex" in rule.comment}


def test_everybody_reaches_the_server_and_only_the_home_network_what_it_is_found_with() -> None:
    tcp, udp = "8324,32469", "1900,5353,32410,32412,32413,32414"
    discovery = {(ports, protocol, source) for ports, protocol in ((tcp, "tcp"), (udp, "udp")) for source in LAN}
    assert rules() == {("32400", "tcp", "any"), *discovery}


def test_with_exposure_lan_nothing_of_it_is_open_to_everybody() -> None:
    found = rules(plex_exposure="lan")
    assert found
    assert {source for _, _, source in found} == set(LAN)
    assert {("8324,32400,32469", "tcp", source) for source in LAN} <= found


@pytest.mark.parametrize("choice", ["none", "docker"])
def test_without_a_native_server_no_port_of_the_host_is_opened_for_it(choice: str) -> None:
    assert rules(plex=choice) == set()
    assert rules() != set()


def test_where_nothing_may_leave_the_hosts_own_mirror_of_plex_may_be_reached() -> None:
    data = {"firewall_outbound": "deny", "plex_apt_url": "http://mirror.lan:8099/plex"}
    found = firewall.host_rules(settings(**data), (), (22,))
    assert any(rule.port == "8099" and rule.direction == "out" for rule in found)
    found = firewall.host_rules(settings(**data, plex="none"), (), (22,))
    assert not any(rule.port == "8099" for rule in found)


def test_a_service_on_a_port_of_plex_is_refused_with_a_way_out() -> None:
    data: dict[str, Any] = {"service_overrides": {"sonarr": {"host_port": 32400}}}
    (told,) = problems(plex="native", **data)
    assert "native Plex" in told
    assert "host_port" in told
    assert "sonarr" in chosen(**data)


# --- libraries


def test_libraries_are_those_of_the_media_that_plex_knows() -> None:
    found = plex.libraries(settings(data_root="/srv/media", media_libraries=["movies", "tv", "books"]))
    assert found == {
        "Movies": {"type": "movie", "paths": ["/srv/media/media/movies"]},
        "TV Shows": {"type": "show", "paths": ["/srv/media/media/tv"]},
    }
    assert {library["type"] for library in found.values()} <= set(plex.AGENTS)


def test_the_users_own_list_takes_their_place() -> None:
    own = {"Filme": {"type": "movie", "paths": ["/mnt/films"], "language": "de-DE"}}
    assert plex.libraries(settings(plex_libraries=own)) == own
    assert plex.libraries(settings(plex_libraries={})) == {}


# --- files


def drop_in(groups: tuple[str, ...] = ("render", "video"), **data: Any) -> list[str]:
    return artefacts.drop_in(settings(**data), groups).content.decode().splitlines()


def test_the_server_has_the_groups_of_cards_that_the_host_has_and_that_of_the_media() -> None:
    assert "SupplementaryGroups=render video media" in drop_in()
    # A unit that names a group which is not there does not start.
    assert "SupplementaryGroups=films" in drop_in((), media_group="films")
    assert "UMask=0002" in drop_in()


def test_the_server_needs_every_mount_that_it_reads_or_writes_and_no_other() -> None:
    disks = [
        {"device": f"UUID=0a3407de-014b-458b-b5c1-848e92a327a{number}", "at": at, "filesystem": "ext4"}
        for number, at in enumerate(("/data", "/data/media/movies/4k", "/mnt/ssd", "/mnt/backup"))
    ]
    lines = drop_in(storage_disks=disks, plex_transcode_directory="/mnt/ssd/transcode")
    assert "RequiresMountsFor=/data /data/media/movies/4k /mnt/ssd" in lines
    assert not [line for line in drop_in() if "RequiresMountsFor" in line]


def test_transcodes_go_where_the_cache_for_them_is_unless_told_otherwise() -> None:
    assert artefacts.transcode_directory(settings()) is None
    assert artefacts.transcode_directory(settings(transcode_size="10g")) == "/srv/cache/transcode"
    assert "RequiresMountsFor=/srv/cache/transcode" in drop_in(transcode_size="10g")
    both = settings(transcode_size="10g", plex_transcode_directory="/srv/t")
    assert artefacts.transcode_directory(both) == "/srv/t"
    own = artefacts.own_directory(both)
    assert own is not None
    assert (own.path, own.owner, own.mode) == ("/srv/t", "plex", "0750")
    assert artefacts.own_directory(settings(transcode_size="10g")) is None


def test_every_file_is_owned_and_the_drop_ins_end_owes_the_unit_a_restart() -> None:
    owned = artefacts.owned(settings(plex_version="1.43.3.*"))
    assert set(owned) == set(artefacts.PATHS)
    assert owned[artefacts.DROP_IN_PATH] == plex.UNIT
    assert artefacts.owned(settings(plex="none")) == {}
    assert artefacts.owned(settings(plex="docker")) == {}


def test_the_source_is_plexs_new_repository_and_trusts_one_key() -> None:
    text = artefacts.source_file(settings(), "arm64").content.decode()
    assert "URIs: https://repo.plex.tv/deb\nSuites: public\nComponents: main\nArchitectures: arm64\n" in text
    assert f"Signed-By: {artefacts.KEYRING_PATH}\n" in text


# --- preferences


def test_only_preferences_that_somebody_asked_for_are_compared() -> None:
    assert artefacts.preferences(settings(), card=False) == {}
    assert artefacts.preferences(
        settings(plex_name="nas", plex_preferences={"RelayEnabled": False, "TranscoderQuality": 3}), card=True
    ) == {
        "FriendlyName": "nas",
        "HardwareAcceleratedCodecs": "1",
        "HardwareAcceleratedEncoders": "1",
        "RelayEnabled": "0",
        "TranscoderQuality": "3",
    }


@pytest.mark.parametrize(
    ("first", "second", "alike"),
    [("1", "true", True), ("false", "0", True), ("nas", "nas", True), ("nas", "NAS", False), ("", "0", False)],
)
def test_values_that_plex_writes_in_two_ways_are_the_same(first: str, second: str, alike: bool) -> None:
    assert artefacts.same(first, second) == alike


# --- backup


def test_a_backup_holds_the_data_without_what_plex_makes_anew_and_databases_by_plexs_own_sqlite() -> None:
    found = plex.backup_set(settings())
    assert found is not None
    assert found.directory == plex.DATA
    assert all(path.startswith(f"{plex.DATA}/") for path in (*found.excluded, *found.databases, *found.secrets))
    # As files they are left out: a copy of a database that is in use is damaged.
    for database in found.databases:
        assert any(pattern.endswith("*") and database.startswith(pattern[:-1]) for pattern in found.excluded)
    assert plex.PREFERENCES not in found.excluded
    assert plex.backup_set(settings(plex="docker")) is None


# --- in a container


def test_the_container_comes_and_goes_with_the_key() -> None:
    assert "plex" in chosen(plex="docker")
    assert "plex" not in chosen(plex="native")
    assert "plex" not in chosen()
    for key in ("services", "services_disabled"):
        data: dict[str, Any] = {key: ["plex"]}
        (told,) = problems(**data)
        assert "comes and goes with the key plex" in told


def test_the_containers_port_obeys_the_same_key_and_its_override() -> None:
    def exposure(**data: Any) -> str:
        (port,) = [port for port in service("plex", plex="docker", **data).ports if port.port == plex.PORT]
        return str(port.exposure)

    assert exposure() == "wan"
    assert exposure(plex_exposure="lan") == "lan"
    assert exposure(service_overrides={"plex": {"exposure": "localhost"}}) == "localhost"
    udp = {port.port for port in service("plex", plex="docker").ports if port.protocol == "udp"}
    assert udp == {32410, 32412, 32413, 32414}


def test_the_container_reads_the_media_and_writes_nothing_but_its_own() -> None:
    found = service("plex", plex="docker")
    mounts = {mount.target: (mount.source, mount.read_only) for mount in found.mounts}
    assert mounts == {
        "/config": ("/opt/media-server/config/plex/library", False),
        "/transcode": ("/opt/media-server/config/plex/transcode", False),
        "/data/media": ("/data/media", True),
    }
    assert stack(plex="docker").service("plex") is not None
    assert [choice for choice in choose(settings(), CATALOG, "nas") if choice.service.name == "plex"] == []
