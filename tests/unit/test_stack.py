"""From settings to a stack: what is chosen, what is refused and how, where everything is."""

from collections.abc import Callable
from typing import Any

import pytest

from mediahost import config
from mediahost.catalog import load_catalog
from mediahost.config import ConfigError
from mediahost.stack import GIVEN, ExposedPort, Stack, build_stack, choose, host_label

CATALOG = load_catalog()
HOME = ["bazarr", "caddy", "ddns-updater", "prowlarr", "qbittorrent", "radarr", "seerr", "sonarr"]


def vault(**entries: str) -> Callable[[str, str], str]:
    """A vault that makes what can be made and holds `entries` beside it."""

    def secret(name: str, kind: str) -> str:
        if name in entries:
            return entries[name]
        if kind == GIVEN:
            raise KeyError(name)
        return f"value-of-{name}"

    return secret


def stack(host: str = "nas", entries: dict[str, str] | None = None, **data: Any) -> Stack:
    return build_stack(config.read(host, data), CATALOG, host, vault(**(entries or {})))


def chosen(**data: Any) -> list[str]:
    return [choice.service.name for choice in choose(config.read("nas", data), CATALOG, "nas")]


def problems(entries: dict[str, str] | None = None, **data: Any) -> list[str]:
    with pytest.raises(ConfigError) as error:
        stack(entries=entries, **data)
    return [str(problem) for problem in error.value.problems]


def service(name: str, **data: Any) -> Any:
    found = stack(**data).service(name)
    assert found is not None
    return found


# --- choosing


def test_the_default_is_the_home_selection() -> None:
    assert chosen() == HOME


@pytest.mark.parametrize("name", ["bazarr", "caddy", "ddns-updater", "seerr"])
def test_an_optional_service_can_be_switched_off_and_the_rest_stays(name: str) -> None:
    assert chosen(services_disabled=[name]) == [other for other in HOME if other != name]


def test_the_empty_selection_with_one_service_brings_what_that_service_needs() -> None:
    assert chosen(selection="none", services=["bazarr"]) == ["bazarr", "prowlarr", "qbittorrent", "sonarr"]


def test_one_alternative_of_a_dependency_is_enough() -> None:
    data = {"services_disabled": ["sonarr"]}
    assert "bazarr" in chosen(**data)
    assert "sonarr" not in chosen(**data)


def test_no_services_is_a_stack_without_services_routes_and_ports() -> None:
    empty = stack(selection="none")
    assert (empty.services, empty.routes, empty.networks, empty.exposed_ports) == ((), (), (), ())


def test_an_unknown_service_gets_did_you_mean() -> None:
    assert problems(services=["sonar"]) == ["nas: services = sonar: no such service; did you mean sonarr?"]
    assert "there are bazarr, caddy" in problems(services=["zzzz"])[0]


@pytest.mark.parametrize("name", [name for name, entry in CATALOG.items() if entry.status == "retired"])
def test_a_retired_service_is_refused_naming_its_successor(name: str) -> None:
    (told,) = problems(services=[name])
    assert str(CATALOG[name].successor) in told
    assert str(CATALOG[name].reason) in told


def test_a_retired_service_that_still_has_an_image_runs_when_it_is_allowed() -> None:
    assert "readarr" in chosen(services=["readarr"], allow_retired=True)
    assert "nothing left to run" in problems(services=["jellyseerr"], allow_retired=True)[0]


def test_switching_off_what_another_service_needs_is_refused_with_the_mend() -> None:
    told = problems(services_disabled=["qbittorrent"])
    assert told == [
        "nas: services_disabled = qbittorrent: radarr needs qbittorrent; "
        "remove it from services_disabled, or disable radarr too",
        "nas: services_disabled = qbittorrent: sonarr needs qbittorrent; "
        "remove it from services_disabled, or disable sonarr too",
    ]


def test_both_alternatives_switched_off_is_refused() -> None:
    told = problems(services_disabled=["sonarr", "radarr"])
    assert any("bazarr needs sonarr or radarr" in line for line in told)


def test_wanted_and_switched_off_at_once_is_refused() -> None:
    assert "it is in services too" in problems(services=["bazarr"], services_disabled=["bazarr"])[0]


def test_conflicting_services_are_refused_once() -> None:
    catalog = {
        **CATALOG,
        "overseerr": CATALOG["seerr"].model_copy(update={"name": "overseerr", "conflicts": ["seerr"]}),
    }
    with pytest.raises(ConfigError) as error:
        choose(config.read("nas", {"services": ["overseerr"]}), catalog, "nas")
    assert len([line for line in error.value.problems if "cannot run beside" in str(line)]) == 1


# --- overrides


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        (
            {"sonarr": {"exposur": "wan"}},
            "nas: service_overrides.sonarr.exposur: no such key; did you mean exposure?",
        ),
        (
            {"sonarr": {"exposure": "world"}},
            "nas: service_overrides.sonarr.exposure = 'world': "
            "Input should be 'wan', 'lan', 'localhost', 'proxy' or 'none'",
        ),
        ({"sonar": {}}, "nas: service_overrides.sonar: no such service; did you mean sonarr?"),
        ({"sonarr": {"memory": "much"}}, "service_overrides.sonarr.memory = 'much': write a size such as 512m"),
        ({"sonarr": {"host_port": 0}}, "service_overrides.sonarr.host_port = 0: "),
        ({"sonarr": {"image": "sonarr:4"}}, "service_overrides.sonarr.image = 'sonarr:4': write the image as"),
        ({"sonarr": {"image": "a.example.org/sonarr:latest"}}, "pin a version"),
        ({"sonarr": {"environment": {"1X": "a"}}}, "service_overrides.sonarr.environment.1X: write NAME"),
        ({"sonarr": {"environment": {"X": None}}}, "service_overrides.sonarr.environment.X: write NAME"),
        ({"caddy": {"host_port": 81}}, "service_overrides.caddy.host_port = 81: Caddy has no web interface"),
        ({"caddy": {"route": "wan"}}, "service_overrides.caddy.route = wan: Caddy has no web interface"),
        ({"ddns-updater": {"exposure": "wan"}}, "ddns-updater has no web interface"),
    ],
)
def test_a_wrong_override_is_told_with_its_key_and_the_mend(override: dict[str, Any], expected: str) -> None:
    (told,) = problems(service_overrides=override)
    assert expected in told


def test_a_password_put_into_an_environment_override_by_mistake_is_not_shown() -> None:
    (told,) = problems(service_overrides={"sonarr": {"environment": {"X": ["hunter2"]}}})
    assert "hunter2" not in told


def test_every_problem_is_told_at_once() -> None:
    told = problems(
        services=["sonar", "readarr"],
        services_disabled=["prowlarr"],
        service_overrides={"radarr": {"exposur": "wan"}, "seerr": {"host_port": 6767}},
    )
    for part in ("sonar:", "readarr", "prowlarr", "exposur", "6767/tcp"):
        assert any(part in line for line in told), part


def test_overrides_change_the_service() -> None:
    override = {
        "image": "registry.example.org/sonarr:5.0",
        "exposure": "localhost",
        "route": "wan",
        "memory": "2g",
        "environment": {"DEBUG": True, "LEVEL": 3, "TZ": "Europe/Berlin"},
        "host_port": 9999,
    }
    changed = stack(service_overrides={"sonarr": override})
    sonarr = changed.service("sonarr")
    assert sonarr is not None
    assert sonarr.image == "registry.example.org/sonarr:5.0"
    assert sonarr.ports == (ExposedPort(9999, "tcp", "localhost", "sonarr", 8989),)
    assert sonarr.memory == "2g"
    assert sonarr.environment["DEBUG"] == "true"
    assert sonarr.environment["LEVEL"] == "3"
    assert sonarr.environment["TZ"] == "Europe/Berlin"
    assert next(route.access for route in changed.routes if route.service == "sonarr") == "wan"


def test_an_override_of_a_service_that_does_not_run_is_checked_and_has_no_effect() -> None:
    assert stack(services_disabled=["seerr"], service_overrides={"seerr": {"memory": "2g"}}).service("seerr") is None
    assert problems(services_disabled=["seerr"], service_overrides={"seerr": {"memory": "x"}})


def test_exposure_of_a_service_without_web_interface_moves_all_its_ports() -> None:
    caddy = service("caddy", service_overrides={"caddy": {"exposure": "lan"}})
    assert {port.exposure for port in caddy.ports} == {"lan"}


def test_exposure_of_the_web_interface_leaves_the_bittorrent_port_alone() -> None:
    client = service("qbittorrent", service_overrides={"qbittorrent": {"exposure": "none"}})
    assert {(port.port, port.protocol, port.exposure) for port in client.ports} == {
        (6881, "tcp", "wan"),
        (6881, "udp", "wan"),
    }


def test_a_service_that_checks_its_own_port_is_moved_inside_too() -> None:
    client = service("qbittorrent", service_overrides={"qbittorrent": {"host_port": 9090}})
    assert client.web_port == 9090
    assert client.environment["WEBUI_PORT"] == "9090"
    assert client.ports[0] == ExposedPort(9090, "tcp", "localhost", "qbittorrent", 9090)
    assert client.health.test[-1] == "http://localhost:9090/"


def test_proxy_exposure_without_a_proxy_or_without_a_route_is_refused() -> None:
    override = {"sonarr": {"exposure": "proxy"}}
    assert service("sonarr", service_overrides=override).ports == ()
    assert "enable caddy" in problems(service_overrides=override, services_disabled=["caddy"])[0]
    assert (
        "nobody could reach it" in problems(service_overrides={"sonarr": {"exposure": "proxy", "route": "none"}})[0]
    )


# --- ports


def test_the_ports_are_those_of_the_architecture_with_their_exposure() -> None:
    assert [(port.port, port.protocol, port.exposure, port.address) for port in stack().exposed_ports] == [
        (80, "tcp", "wan", None),
        (443, "tcp", "wan", None),
        (443, "udp", "wan", None),
        (5055, "tcp", "lan", None),
        (6767, "tcp", "lan", None),
        (6881, "tcp", "wan", None),
        (6881, "udp", "wan", None),
        (7878, "tcp", "lan", None),
        (8080, "tcp", "localhost", "127.0.0.1"),
        (8989, "tcp", "lan", None),
        (9696, "tcp", "lan", None),
    ]


def test_two_services_on_one_port_are_refused_also_when_one_is_on_loopback_only() -> None:
    (told,) = problems(service_overrides={"sonarr": {"host_port": 8080}})
    assert "8080/tcp: sonarr and qbittorrent both want this port; choose another host_port" in told


def test_the_same_number_for_tcp_and_udp_is_no_clash() -> None:
    data: dict[str, Any] = {"service_overrides": {"qbittorrent": {"host_port": 443}}, "services_disabled": ["caddy"]}
    assert stack(**data).exposed_ports
    udp_only = [port for port in stack().exposed_ports if port.port == 443]
    assert {port.protocol for port in udp_only} == {"tcp", "udp"}


def test_a_service_on_the_port_of_the_ssh_server_is_refused() -> None:
    assert (
        "service_overrides.sonarr.host_port = 22/tcp" in problems(service_overrides={"sonarr": {"host_port": 22}})[0]
    )
    (told,) = problems(sshd_port=443)
    assert told.startswith("nas: sshd_port = 443/tcp: caddy and the SSH server (sshd_port) both want this port")


# --- where things are


def mounts(name: str, **data: Any) -> dict[str, str]:
    return {mount.target: mount.source for mount in service(name, **data).mounts}


def test_in_the_trash_layout_the_arrs_have_one_mount_so_that_hardlinks_work() -> None:
    data = {"data_root": "/tank"}
    assert mounts("sonarr", **data) == {"/config": "/opt/media-server/config/sonarr", "/data": "/tank"}
    assert mounts("qbittorrent", **data)["/data/torrents"] == "/tank/torrents"
    assert mounts("bazarr", **data)["/data/media"] == "/tank/media"


def test_in_the_split_layout_downloads_come_from_their_own_disk() -> None:
    data = {"layout": "split", "downloads_root": "/ssd/downloads", "data_root": "/hdd"}
    assert mounts("radarr", **data) == {
        "/config": "/opt/media-server/config/radarr",
        "/data/media": "/hdd/media",
        "/data/downloads": "/ssd/downloads",
    }
    assert mounts("qbittorrent", **data)["/data/downloads"] == "/ssd/downloads"
    assert "/data/downloads" not in mounts("bazarr", **data)


@pytest.mark.parametrize("layout", ["trash", "split"])
def test_a_file_has_the_same_path_in_every_container(layout: str) -> None:
    places: dict[str, set[str]] = {}
    for each in stack(layout=layout).services:
        for mount in each.mounts:
            if mount.target.startswith("/data/"):
                places.setdefault(mount.target, set()).add(mount.source)
    assert places
    assert all(len(sources) == 1 for sources in places.values())


def test_no_service_but_its_owner_mounts_a_configuration_or_the_secrets() -> None:
    for each in stack().services:
        for mount in each.mounts:
            if mount.source.startswith("/opt/media-server"):
                assert mount.source.split("/")[3:5] == ["config", each.name]


# --- networks and routes


def test_a_service_is_on_no_network_it_does_not_need() -> None:
    networks = {each.name: set(each.networks) for each in stack().services}
    assert networks["caddy"] == {"proxy"}
    assert networks["ddns-updater"] == {"outbound"}
    assert networks["sonarr"] == {"proxy", "apps"}
    without_proxy = stack(services_disabled=["caddy"])
    assert {name for each in without_proxy.services for name in each.networks} == {"apps", "outbound"}


def test_containers_that_need_nobody_cannot_reach_each_other() -> None:
    isolated = {network.full_name: network.isolated for network in stack().networks}
    assert isolated == {"mediahost_proxy": False, "mediahost_apps": False, "mediahost_outbound": True}


def test_every_service_that_talks_to_another_shares_a_network_with_it() -> None:
    home = stack()
    for each in home.services:
        for peer in {*CATALOG[each.name].talks_to, *each.depends_on}:
            other = home.service(peer)
            if other is None:
                assert "home" not in CATALOG[peer].selections
                continue
            assert set(each.networks) & set(other.networks), f"{each.name} cannot reach {peer}"


def test_routes_follow_the_domain_or_the_host_name() -> None:
    assert {route.hostname for route in stack(domain="example.org").routes} >= {"sonarr.example.org"}
    assert {route.hostname for route in stack("@vagrant/Box_1").routes} >= {"sonarr.box-1.home.arpa"}


@pytest.mark.parametrize(
    ("host", "label"),
    [
        ("nas", "nas"),
        ("nas.lan", "nas"),
        ("@docker/a", "a"),
        ("192.168.1.5", "192-168-1-5"),
        ("::1", "1"),
        ("_", "host"),
    ],
)
def test_an_inventory_name_becomes_a_dns_label(host: str, label: str) -> None:
    assert host_label(host) == label


def test_a_service_without_route_has_none() -> None:
    routed = {route.service for route in stack(service_overrides={"sonarr": {"route": "none"}}).routes}
    assert "sonarr" not in routed
    assert "radarr" in routed


# --- secrets and environment


def test_secrets_come_from_the_vault_by_host_service_and_name() -> None:
    asked: list[tuple[str, str]] = []

    def secret(name: str, kind: str) -> str:
        asked.append((name, kind))
        return "x"

    build_stack(config.read("nas", {}), CATALOG, "nas", secret)
    assert set(asked) >= {("nas/sonarr/api_key", "api_key"), ("nas/qbittorrent/password", "password")}
    assert all(name.startswith("nas/") for name, _ in asked)


def test_two_hosts_get_secrets_of_their_own() -> None:
    first, second = stack("one").service("sonarr"), stack("two").service("sonarr")
    assert first is not None
    assert second is not None
    assert first.secret_files[0].value != second.secret_files[0].value


def test_no_secret_is_in_what_python_prints_of_a_stack() -> None:
    home = stack(entries={"dns": "swordfish"}, ddns_settings=[{"provider": "porkbun", "token": "secret:dns"}])
    assert home.ddns_settings[0]["token"] == "swordfish"  # positive control
    assert home.services[-1].secret_files[0].value.startswith("value-of-")
    assert "value-of-" not in repr(home)
    assert "swordfish" not in repr(home)


def test_a_secret_reference_in_ddns_settings_is_resolved_at_any_depth() -> None:
    home = stack(entries={"dns": "t0ken"}, ddns_settings=[{"a": {"b": ["secret:dns", 5]}}])
    assert home.ddns_settings == ({"a": {"b": ["t0ken", 5]}},)


def test_a_missing_vault_entry_is_told_with_the_command_that_makes_it() -> None:
    (told,) = problems(ddns_settings=[{"provider": "porkbun"}, {"token": "secret:dns"}])
    assert told == (
        "nas: ddns_settings.1.token = secret:dns: the vault has no such entry; run `mediahost secrets set dns`"
    )
    assert "after the colon" in problems(ddns_settings=[{"token": "secret:"}])[0]


def test_a_secret_environment_variable_is_delivered_as_a_file() -> None:
    override = {"sonarr": {"environment": {"PROXY_PASSWORD": "secret:proxy"}}}
    sonarr = service("sonarr", entries={"proxy": "swordfish"}, service_overrides=override)
    assert sonarr.environment["FILE__PROXY_PASSWORD"] == "/run/secrets/env_proxy_password"
    assert "swordfish" not in str(sonarr.environment)
    assert [file.value for file in sonarr.secret_files if file.name == "env_proxy_password"] == ["swordfish"]


def test_a_secret_environment_variable_is_refused_where_the_image_cannot_read_files() -> None:
    told = problems(entries={"x": "y"}, service_overrides={"seerr": {"environment": {"TOKEN": "secret:x"}}})
    assert "cannot read a variable from a file" in told[0]


def test_linuxserver_images_run_as_the_media_user_with_a_umask_that_lets_the_group_write() -> None:
    sonarr = service("sonarr", media_uid=1234, media_gid=1235, timezone="Europe/Paris")
    wanted = {"PUID": "1234", "PGID": "1235", "UMASK": "002", "TZ": "Europe/Paris"}
    assert {key: sonarr.environment[key] for key in wanted} == wanted


def test_the_registry_prefix_stands_before_every_image() -> None:
    prefix = "127.0.0.1:5000"
    images = {each.image for each in stack(registry_prefix=prefix).services}
    assert images == {f"{prefix}/{each.image}" for each in stack().services}
    assert f"{prefix}/docker.io/library/caddy:2.11.4" in images
