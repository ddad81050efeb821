"""The VPN in the model: who is confined, what is refused, and the compose file of both modes."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mediahost import config, wanted
from mediahost.catalog import load_catalog
from mediahost.check import check_all
from mediahost.cli import render
from mediahost.config import ConfigError
from mediahost.render import firewall, wall
from mediahost.render.compose import ComposeArtefacts, render_compose
from mediahost.render.proxy import caddyfile
from mediahost.resources import Container
from mediahost.stack import GIVEN, Stack, build_stack, choose

CATALOG = load_catalog()
MODES = ("host", "container")
ARRS = ("prowlarr", "radarr", "sonarr")
ENTRY = "nas/vpn/wireguard"
PRIVATE, PEER, SHARED = (base64.b64encode(bytes([number] * 32)).decode() for number in (1, 2, 3))


def wireguard_file(
    address: str = "10.2.0.2/32", dns: str = "10.2.0.1", endpoint: str = "198.51.100.7:51820", preshared: bool = True
) -> str:
    return "\n".join(
        (
            "[Interface]",
            f"PrivateKey = {PRIVATE}",
            f"Address = {address}",
            *([f"DNS = {dns}"] if dns else []),
            "[Peer]",
            f"PublicKey = {PEER}",
            *([f"PresharedKey = {SHARED}"] if preshared else []),
            "AllowedIPs = 0.0.0.0/0, ::/0",
            f"Endpoint = {endpoint}",
            "",
        )
    )


def vault(file: str | None = None) -> Any:
    """A vault that makes what can be made and holds `file` as the provider's; without it there is none."""

    def secret(entry: str, kind: str) -> str:
        if kind == GIVEN:
            if entry == ENTRY and file is not None:
                return file
            raise LookupError(entry)
        return f"value-of-{entry}".replace("/", "-")

    return secret


def given_data(mode: str = "host", **data: Any) -> dict[str, Any]:
    # No provider is refused both ways of getting a port.
    provider = "proton" if data.get("vpn_port_forwarding") == "nat-pmp" else "custom"
    return {"vpn_provider": provider, "vpn_mode": mode, **data}


def stack(mode: str = "host", file: str | None = None, **data: Any) -> Stack:
    read = config.read("nas", given_data(mode, **data))
    return build_stack(read, CATALOG, "nas", vault(file or wireguard_file()))


def artefacts(mode: str = "host", file: str | None = None, **data: Any) -> ComposeArtefacts:
    return render_compose(stack(mode, file, **data), config.read("nas", given_data(mode, **data)))


def document(mode: str = "host", file: str | None = None, **data: Any) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(artefacts(mode, file, **data).files[0].content)
    return content


def body(name: str, mode: str = "host", **data: Any) -> dict[str, Any]:
    found: dict[str, Any] = document(mode, **data)["services"][name]
    return found


def containers(mode: str = "host", file: str | None = None, **data: Any) -> dict[str, Container]:
    return {container.service: container for container in artefacts(mode, file, **data).containers}


def told_by_choice(**data: Any) -> list[str]:
    """What is told before the vault is opened."""
    with pytest.raises(ConfigError) as error:
        choose(config.read("nas", data), CATALOG, "nas")
    return [str(problem) for problem in error.value.problems]


def told_by_vault(file: str | None, mode: str = "host", **data: Any) -> list[str]:
    with pytest.raises(ConfigError) as error:
        build_stack(config.read("nas", given_data(mode, **data)), CATALOG, "nas", vault(file))
    return [str(problem) for problem in error.value.problems]


# --- without a VPN


def without(**data: Any) -> ComposeArtefacts:
    read = config.read("nas", data)
    return render_compose(build_stack(read, CATALOG, "nas", vault()), read)


def test_without_a_vpn_the_vault_is_not_asked_for_a_tunnel() -> None:
    assert build_stack(config.read("nas", {}), CATALOG, "nas", vault()).vpn is None
    with pytest.raises(ConfigError, match="no WireGuard file"):
        build_stack(config.read("nas", given_data()), CATALOG, "nas", vault())


def test_without_a_vpn_the_compose_file_is_the_bytes_it_was_before_there_was_one() -> None:
    # Written by the version before the VPN came. A change here recreates containers on every host: is it wanted?
    before = json.loads((Path(__file__).parent / "compose_before_vpn.json").read_text())
    for case in before:
        rendered = without(**case["data"])
        assert rendered.files[0].sha256 == case["compose"], case["data"]
        assert {container.service: container.digest for container in rendered.containers} == case["digests"]


@pytest.mark.parametrize("key", ["vpn_mode", "vpn_subnet", "vpn_dns", "vpn_port_forwarding"])
def test_without_a_vpn_its_other_keys_change_nothing(key: str) -> None:
    data = {
        "vpn_mode": "container",
        "vpn_subnet": "10.99.0.0/24",
        "vpn_dns": ["10.9.9.9"],
        "vpn_port_forwarding": 4000,
    }
    assert without(**{key: data[key]}) == without()


def test_what_nobody_confines_is_made_from_the_same_with_and_without_a_vpn() -> None:
    before = {container.service: container.digest for container in without().containers}
    for mode in MODES:
        after = {name: container.digest for name, container in containers(mode).items()}
        assert {name for name in before if before[name] != after[name]} == {"caddy", "qbittorrent", *ARRS}


# --- who is confined


def test_every_download_client_is_confined_unless_somebody_says_otherwise() -> None:
    for mode in MODES:
        vpn = stack(mode).vpn
        assert vpn is not None
        assert vpn.services == ("qbittorrent",)


def test_named_services_are_confined_and_no_others() -> None:
    vpn = stack(vpn_services=["prowlarr"]).vpn
    assert vpn is not None
    assert vpn.services == ("prowlarr",)
    services = document(vpn_services=["prowlarr"])["services"]
    assert set(services["prowlarr"]["networks"]) == {"vpn", "confined"}
    assert set(services["qbittorrent"]["networks"]) == {"proxy", "apps", "confined"}


def test_the_vpn_of_the_stack_is_what_the_settings_and_the_file_say() -> None:
    vpn = stack(vpn_subnet="10.77.0.0/24", vpn_port_forwarding="nat-pmp").vpn
    assert vpn is not None
    assert (vpn.provider, vpn.mode, vpn.killswitch, vpn.subnet) == ("proton", "host", True, "10.77.0.0/24")
    assert (vpn.dns, vpn.forwarding) == (("10.2.0.1",), "nat-pmp")
    assert (vpn.tunnel.endpoint, vpn.tunnel.endpoint_port) == ("198.51.100.7", 51820)


def test_name_servers_of_the_settings_win_and_only_those_the_bridge_can_reach_are_asked() -> None:
    vpn = stack(file=wireguard_file(address="10.2.0.2/32, fd00::2/128", dns="10.2.0.1, fd00::1")).vpn
    assert vpn is not None
    assert vpn.dns == ("10.2.0.1",)
    vpn = stack(vpn_dns=["10.9.9.9"]).vpn
    assert vpn is not None
    assert vpn.dns == ("10.9.9.9",)


# --- what is refused before the vault is opened


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"vpn_services": ["qbitorrent"]}, "vpn_services = qbitorrent: no such service; did you mean qbittorrent?"),
        ({"vpn_services": ["caddy"]}, "vpn_services = caddy: the proxy is reached from outside"),
        ({"vpn_services": ["ddns-updater"]}, "vpn_services = ddns-updater: would put the tunnel's address into"),
        ({"vpn_services": ["gluetun"]}, "vpn_services = gluetun: holds the tunnel"),
        (
            {"vpn_services": ["bazarr"], "services_disabled": ["bazarr"]},
            "vpn_services = bazarr: does not run on this host; remove it here, or add it to services",
        ),
        ({"vpn_services": []}, "vpn_services = []: no service would use the tunnel"),
        ({"selection": "none"}, "vpn_services = None: no service would use the tunnel"),
        (
            {"service_overrides": {"qbittorrent": {"exposure": "wan"}}},
            "service_overrides.qbittorrent.exposure = wan: its traffic leaves through the tunnel only",
        ),
        ({"services": ["gluetun"]}, "services = gluetun: comes and goes with vpn_provider"),
        ({"services_disabled": ["gluetun"]}, "services_disabled = gluetun: comes and goes with vpn_provider"),
        (
            {"vpn_services": ["bazarr"], "vpn_port_forwarding": "nat-pmp"},
            "vpn_port_forwarding = nat-pmp: no confined service can use it",
        ),
    ],
)
def test_what_cannot_be_is_told_with_its_key_and_the_mend(mode: str, data: dict[str, Any], expected: str) -> None:
    (told,) = told_by_choice(**given_data(mode, **data))
    assert expected in told


def test_gluetun_is_no_service_that_a_user_names_with_or_without_a_vpn() -> None:
    (told,) = told_by_choice(services=["gluetun"])
    assert "vpn_mode = 'container'" in told
    assert "gluetun" not in [choice.service.name for choice in choose(config.read("nas", {}), CATALOG, "nas")]


def test_nordlynx_is_refused_with_the_way_to_nordvpn() -> None:
    (told,) = told_by_choice(services=["nordlynx"])
    assert 'vpn_provider "nordvpn"' in told


def test_a_whole_inventory_is_checked_for_it_without_a_vault() -> None:
    hosts = {"one": given_data(vpn_services=["sonar"]), "two": given_data("container", services=["gluetun"])}
    with pytest.raises(ConfigError) as error:
        check_all(hosts, CATALOG)
    told = [str(problem) for problem in error.value.problems]
    assert [line.partition(":")[0] for line in told] == ["one", "two"]


def test_in_one_network_namespace_two_programs_on_one_port_are_refused_with_the_mend() -> None:
    shared: dict[str, Any] = {
        "vpn_services": ["qbittorrent", "sonarr"],
        "service_overrides": {"qbittorrent": {"host_port": 8989}},
    }
    shared["service_overrides"]["sonarr"] = {"host_port": 18989}
    (told,) = told_by_choice(**given_data("container", **shared))
    assert "vpn_mode = 8989/tcp: sonarr and qbittorrent would share one network" in told
    assert stack("host", **shared).vpn is not None, "positive control: each has its own in mode host"
    (told,) = told_by_choice(**given_data("container", service_overrides={"qbittorrent": {"host_port": 8000}}))
    assert "gluetun (its control server)" in told
    assert "set service_overrides.qbittorrent.host_port to another" in told


@pytest.mark.parametrize(
    "variable",
    [
        "FIREWALL_ENABLED_DISABLING_IT_SHOOTS_YOU_IN_YOUR_FOOT",
        "FIREWALL_OUTBOUND_SUBNETS",
        "VPN_TYPE",
        "WIREGUARD_PRIVATE_KEY",
        "DNS_UPSTREAM_PLAIN_ADDRESSES",
        "HTTPPROXY",
        "HTTP_CONTROL_SERVER_AUTH_DEFAULT_ROLE",
    ],
)
def test_no_override_opens_gluetuns_wall(variable: str) -> None:
    override = {"gluetun": {"environment": {variable: "x"}}}
    (told,) = told_by_choice(**given_data("container", service_overrides=override))
    assert f"service_overrides.gluetun.environment.{variable}: could open the tunnel's wall" in told


def test_what_is_harmless_of_gluetun_can_be_overridden() -> None:
    override = {"gluetun": {"environment": {"LOG_LEVEL": "debug"}, "memory": "128m", "image": "a.example.org/g:1"}}
    made = body("gluetun", "container", service_overrides=override)
    assert (made["environment"]["LOG_LEVEL"], made["mem_limit"], made["image"]) == (
        "debug",
        "128m",
        "a.example.org/g:1",
    )


# --- what the vault's file must be


@pytest.mark.parametrize(
    ("provider", "command"), [("nordvpn", "mediahost vpn nordvpn"), ("mullvad", "mediahost vpn import")]
)
def test_a_vault_without_a_wireguard_file_is_told_with_the_command(provider: str, command: str) -> None:
    (told,) = told_by_vault(None, vpn_provider=provider)
    assert told.startswith(f"nas: vpn_provider = {provider}: the vault has no WireGuard file for this host")
    assert ENTRY in told
    assert command in told


def test_a_wrong_file_is_told_in_one_line_and_shows_no_key() -> None:
    wrong = wireguard_file().replace(f"PrivateKey = {PRIVATE}", "PrivateKey = hunter2hunter2")
    (told,) = told_by_vault(wrong)
    assert told.startswith("nas: vpn_provider = custom: vault entry nas/vpn/wireguard:")
    assert "PrivateKey" in told
    assert "\n" not in told
    assert "hunter2" not in told


@pytest.mark.parametrize(
    ("mode", "file", "data", "expected"),
    [
        ("host", wireguard_file(address="fd00::2/128"), {}, "no IPv4 Address"),
        ("container", wireguard_file(endpoint="[2001:db8::7]:51820"), {}, "the endpoint is an IPv6 address"),
        ("host", wireguard_file(dns="fd00::1"), {}, "vpn_dns: names no IPv4 name server"),
        ("host", wireguard_file(), {"vpn_subnet": "10.2.0.0/24"}, "vpn_subnet: holds 10.2.0.2"),
    ],
)
def test_a_file_that_the_confined_network_cannot_use_is_refused(
    mode: str, file: str, data: dict[str, Any], expected: str
) -> None:
    assert any(expected in line for line in told_by_vault(file, mode, **data))


def test_an_ipv6_endpoint_is_fine_for_the_hosts_own_tunnel() -> None:
    assert stack("host", wireguard_file(endpoint="[2001:db8::7]:51820")).vpn is not None


# --- networks: no way out but the tunnel


def internal(content: dict[str, Any]) -> set[str]:
    return {name for name, network in content["networks"].items() if network.get("internal")}


# Whatever can be said of a host with a VPN.
DATA = st.fixed_dictionaries(
    {"mode": st.sampled_from(MODES)},
    optional={
        "vpn_services": st.lists(
            st.sampled_from(["qbittorrent", "prowlarr", "seerr", "bazarr", "sonarr"]), min_size=1, unique=True
        ),
        "services_disabled": st.sampled_from([[], ["caddy"]]),
        "service_overrides": st.dictionaries(
            st.sampled_from(["qbittorrent", "prowlarr", "sonarr", "bazarr"]),
            st.fixed_dictionaries(
                {},
                optional={
                    "exposure": st.sampled_from(["lan", "localhost", "none"]),
                    "route": st.sampled_from(["none", "lan", "wan"]),
                    "environment": st.just({"network_mode": "host"}),
                },
            ),
        ),
        "docker_source": st.sampled_from(["docker", "distro"]),
    },
)


@given(data=DATA)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_confined_service_is_in_the_tunnels_network_and_internal_ones_only(data: dict[str, Any]) -> None:
    found = stack(**data)
    content = document(**data)
    assert found.vpn is not None
    sound = {"vpn"} | internal(content)
    holders = found.vpn.services if data["mode"] == "host" else ("gluetun",)
    for name in holders:
        assert set(content["services"][name]["networks"]) <= sound
        assert "vpn" in content["services"][name]["networks"]
        assert content["services"][name]["dns"] == ["10.2.0.1"]
    if data["mode"] == "container":
        for name in found.vpn.services:
            assert content["services"][name]["network_mode"] == "service:gluetun"
            assert not {"networks", "ports", "dns"} & set(content["services"][name])


@given(data=DATA)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_nobody_else_is_in_the_tunnels_network_and_everybody_else_reaches_the_outside(data: dict[str, Any]) -> None:
    found = stack(**data)
    content = document(**data)
    assert found.vpn is not None
    for name, made in content["services"].items():
        if name in (*found.vpn.services, "gluetun"):
            continue
        assert "vpn" not in made["networks"], name
        assert set(made["networks"]) - internal(content), f"{name} is shut in"


def test_a_service_whose_only_partners_are_confined_still_reaches_the_outside() -> None:
    data: dict[str, Any] = {"selection": "none", "services": ["radarr"], "vpn_services": ["qbittorrent", "prowlarr"]}
    assert body("radarr", **data)["networks"] == ["outbound", "confined"]


@pytest.mark.parametrize("mode", MODES)
def test_the_proxy_and_the_arrs_reach_a_confined_service_by_its_name(mode: str) -> None:
    services = document(mode)["services"]
    assert "confined" in services["caddy"]["networks"]
    for name in ARRS:
        assert "confined" in services[name]["networks"]
        assert {"proxy", "apps"} <= set(services[name]["networks"])
    for name in ("bazarr", "seerr", "ddns-updater"):
        assert "confined" not in services[name]["networks"]
    if mode == "container":
        assert services["gluetun"]["networks"]["confined"]["aliases"] == ["qbittorrent"]
    else:
        assert "confined" in services["qbittorrent"]["networks"]
    assert "reverse_proxy qbittorrent:8080" in caddyfile(stack(mode), config.read("nas", given_data(mode)))


def test_the_bridge_has_the_name_subnet_and_mtu_that_the_wall_relies_on() -> None:
    network = document(file=wireguard_file().replace("[Peer]", "MTU = 1380\n[Peer]"))["networks"]["vpn"]
    assert network["driver_opts"] == {
        "com.docker.network.bridge.name": "br-vpn",
        "com.docker.network.driver.mtu": "1380",
    }
    assert network["ipam"] == {"config": [{"subnet": "172.29.29.0/24"}]}
    assert network["enable_ipv6"] is False
    assert network["name"] == "mediahost_vpn"
    assert document()["networks"]["confined"] == {
        "name": "mediahost_confined",
        "driver": "bridge",
        "driver_opts": {"com.docker.network.bridge.name": "br-confined"},
        "internal": True,
        "enable_ipv6": False,
    }


def test_gluetuns_own_packets_are_not_squeezed_into_the_tunnels_mtu() -> None:
    assert document("container")["networks"]["vpn"]["driver_opts"] == {"com.docker.network.bridge.name": "br-vpn"}
    assert body("gluetun", "container")["environment"]["WIREGUARD_MTU"] == "1420"


@pytest.mark.parametrize(
    ("data", "known"),
    [
        ({}, True),
        ({"docker_version": "5:28.1.*"}, True),
        ({"docker_version": "5:27.5.*"}, False),
        ({"docker_source": "distro"}, False),
    ],
)
@pytest.mark.parametrize(("mode", "name"), [("host", "qbittorrent"), ("container", "gluetun")])
def test_the_default_route_is_asked_for_where_the_engine_knows_how(
    mode: str, name: str, data: dict[str, Any], known: bool
) -> None:
    vpn, confined = (body(name, mode, **data)["networks"][network] for network in ("vpn", "confined"))
    assert vpn == ({"gw_priority": 1} if known else {})
    assert "gw_priority" not in confined


# --- ports


def published(mode: str, **data: Any) -> set[tuple[str, int, str, str]]:
    return {(port.service, port.port, port.protocol, port.exposure) for port in stack(mode, **data).exposed_ports}


@pytest.mark.parametrize("mode", MODES)
def test_peers_of_a_confined_torrent_client_cannot_reach_it_past_the_tunnel(mode: str) -> None:
    assert not [port for port in published(mode) if port[1] == 6881]
    read = config.read("nas", given_data(mode))
    rules = firewall.container_rules(read, stack(mode).exposed_ports, 4)
    assert not [rule for rule in rules if "6881" in rule]
    assert not [rule for rule in firewall.host_rules(read, stack(mode).exposed_ports, (22,)) if "6881" in rule.port]
    open_ones = stack(mode, vpn_services=["prowlarr"]).exposed_ports
    assert [port for port in open_ones if port.port == 6881], "positive control: it is open where it is not confined"


@pytest.mark.parametrize("mode", MODES)
def test_the_web_interface_stays_where_its_exposure_says(mode: str) -> None:
    assert ("qbittorrent", 8080, "tcp", "localhost") in published(mode)
    override = {"qbittorrent": {"exposure": "lan", "host_port": 9090}}
    assert ("qbittorrent", 9090, "tcp", "lan") in published(mode, service_overrides=override)
    rules = firewall.container_rules(
        config.read("nas", given_data(mode)), stack(mode, service_overrides=override).exposed_ports, 4
    )
    assert [rule for rule in rules if "--ctorigdstport 9090" in rule]


def test_the_ports_of_who_shares_gluetuns_network_are_published_there() -> None:
    assert body("gluetun", "container")["ports"] == [
        {"target": 8080, "published": "8080", "protocol": "tcp", "host_ip": "127.0.0.1"}
    ]
    assert body("qbittorrent")["ports"] == body("gluetun", "container")["ports"]


@pytest.mark.parametrize("mode", MODES)
def test_the_torrent_client_listens_on_the_port_it_was_given(mode: str) -> None:
    data: dict[str, Any] = {"vpn_port_forwarding": 51413}
    assert body("qbittorrent", mode, **data)["environment"]["TORRENTING_PORT"] == "51413"
    assert not [port for port in published(mode, **data) if port[1] == 51413]
    assert body("qbittorrent", mode)["environment"]["TORRENTING_PORT"] == "6881"
    (file,) = [f for f in artefacts(mode, **data).files if f.path.endswith("qBittorrent.conf")]
    assert b"Session\\Port=51413" in file.content


def test_a_port_that_never_changes_leads_to_an_address_that_never_changes() -> None:
    network = body("qbittorrent", vpn_port_forwarding=51413)["networks"]["vpn"]
    vpn = stack(vpn_port_forwarding=51413).vpn
    assert vpn is not None
    assert network["ipv4_address"] == vpn.listener == "172.29.29.254"
    assert "ipv4_address" not in body("qbittorrent")["networks"]["vpn"]
    assert "ipv4_address" not in body("qbittorrent", vpn_port_forwarding="nat-pmp")["networks"]["vpn"]
    both: dict[str, Any] = {"vpn_port_forwarding": 51413, "vpn_services": ["qbittorrent", "prowlarr"]}
    assert "ipv4_address" not in body("prowlarr", **both)["networks"]["vpn"]
    assert "ipv4_address" not in str(document("container", vpn_port_forwarding=51413))


@pytest.mark.parametrize("forwarding", ["nat-pmp", 51413])
def test_a_forwarded_port_passes_dockers_filter_from_the_tunnel_alone(forwarding: Any) -> None:
    read = config.read("nas", given_data(vpn_port_forwarding=forwarding))
    rules = firewall.container_rules(read, stack(vpn_port_forwarding=forwarding).exposed_ports, 4)
    accepted = "-i wg-vpn -o br-vpn -j ACCEPT"
    assert rules.index(accepted) < rules.index("-j DROP")
    assert [rule for rule in rules if "wg-vpn" in rule or "br-vpn" in rule] == [accepted]
    for other in (
        config.read("nas", {}),
        config.read("nas", given_data()),
        config.read("nas", given_data("container", vpn_port_forwarding=forwarding)),
    ):
        assert accepted not in firewall.container_rules(other, (), 4)
    assert accepted not in firewall.container_rules(read, (), 6)


@pytest.mark.parametrize("mode", MODES)
def test_a_port_that_changes_while_it_runs_is_not_overruled_at_each_start(mode: str) -> None:
    assert "TORRENTING_PORT" not in body("qbittorrent", mode, vpn_port_forwarding="nat-pmp")["environment"]


def leaving(mode: str, **data: Any) -> set[tuple[str, str, str]]:
    read = config.read("nas", given_data(mode, firewall_outbound="deny", **data))
    rules = firewall.host_rules(read, (), (22,), stack(mode, **data).vpn)
    return {(rule.port, rule.protocol, rule.source) for rule in rules if rule.direction == "out"}


def test_a_host_from_which_nothing_may_leave_still_lets_its_tunnel_and_its_containers_answers_through() -> None:
    endpoint = ("51820", "udp", "198.51.100.7")
    assert {endpoint, ("any", "any", "172.29.29.0/24")} <= leaving("host")
    assert endpoint not in leaving("container"), "Gluetun's packets are forwarded, they do not leave the host's own"
    assert ("any", "any", "172.29.29.0/24") in leaving("container")
    assert leaving("host", vpn_port_forwarding="nat-pmp") - leaving("host") == {("5351", "udp", "10.2.0.1")}


# --- Usenet


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("client", "port"), [("sabnzbd", 8081), ("nzbget", 6789)])
def test_two_download_clients_share_a_tunnel_and_both_are_reached_by_name(mode: str, client: str, port: int) -> None:
    services = document(mode, services=[client])["services"]
    found = stack(mode, services=[client])
    assert found.vpn is not None
    assert found.vpn.services == tuple(sorted(("qbittorrent", client)))
    assert {"confined", "proxy"} <= set(services["sonarr"]["networks"])
    if mode == "container":
        assert services["gluetun"]["networks"]["confined"]["aliases"] == sorted(["qbittorrent", client])
        assert {each["target"] for each in services["gluetun"]["ports"]} == {8080, port}
    assert f"reverse_proxy {client}:{port}" in caddyfile(found, config.read("nas", given_data(mode)))


@pytest.mark.parametrize("mode", MODES)
def test_every_service_that_may_be_confined_is_so_at_once_and_no_port_clashes(mode: str) -> None:
    named = ["nzbget", "prowlarr", "qbittorrent", "sabnzbd"]
    services = document(mode, services=["nzbget", "sabnzbd"], vpn_services=named)["services"]
    for name in named:
        if mode == "host":
            assert set(services[name]["networks"]) == {"vpn", "confined"}
            assert "network_mode" not in services[name]
        else:
            assert services[name]["network_mode"] == "service:gluetun"
            assert "networks" not in services[name]
            assert "ports" not in services[name]
    if mode == "container":
        assert sorted(each["target"] for each in services["gluetun"]["ports"]) == [6789, 8080, 8081, 9696]


@pytest.mark.parametrize(
    ("layout", "complete", "incomplete"),
    [
        ("trash", "/data/usenet/complete", "/data/usenet/incomplete"),
        ("split", "/data/downloads/complete", "/data/downloads/incomplete"),
    ],
)
def test_sabnzbd_starts_configured_for_the_layout_and_behind_a_login(
    layout: str, complete: str, incomplete: str
) -> None:
    data: dict[str, Any] = {"services": ["sabnzbd"], "layout": layout}
    (file,) = [file for file in artefacts(**data).files if file.path.endswith("sabnzbd.ini")]
    assert (file.once, file.secret, file.mode, file.owner) == (True, True, "0600", "13000")
    lines = file.content.decode().splitlines()
    assert {f"complete_dir = {complete}", f"download_dir = {incomplete}", "port = 8081"} <= set(lines)
    assert {"username = admin", 'password = "value-of-nas-sabnzbd-password"'} <= set(lines)
    assert "api_key = value-of-nas-sabnzbd-api_key" in lines
    folders = {
        mount.target: mount.source for mount in next(s for s in stack(**data).services if s.name == "sabnzbd").mounts
    }
    assert any(complete.startswith(target) for target in folders)
    assert any(incomplete.startswith(target) for target in folders)


# --- mode container


def test_gluetun_runs_in_mode_container_only() -> None:
    assert "gluetun" not in document("host")["services"]
    assert "gluetun" in document("container")["services"]


def test_who_shares_gluetuns_network_follows_it_when_it_is_made_anew() -> None:
    assert body("qbittorrent", "container")["depends_on"] == {
        "gluetun": {"condition": "service_healthy", "restart": True}
    }
    assert containers("container")["qbittorrent"].networks == ()
    assert containers("container")["gluetun"].networks == ("mediahost_vpn", "mediahost_confined")
    assert containers("host")["qbittorrent"].networks == ("mediahost_vpn", "mediahost_confined")


def test_gluetun_is_told_everything_that_it_would_look_up_elsewhere() -> None:
    environment = body("gluetun", "container", vpn_port_forwarding=51413)["environment"]
    assert {
        name: value for name, value in environment.items() if name.startswith(("VPN_", "WIREGUARD_", "DNS_"))
    } == {
        "DNS_UPSTREAM_PLAIN_ADDRESSES": "10.2.0.1:53",
        "DNS_UPSTREAM_RESOLVER_TYPE": "plain",
        "VPN_SERVICE_PROVIDER": "custom",
        "VPN_TYPE": "wireguard",
        "WIREGUARD_ADDRESSES": "10.2.0.2/32",
        "WIREGUARD_ENDPOINT_IP": "198.51.100.7",
        "WIREGUARD_ENDPOINT_PORT": "51820",
        "WIREGUARD_IMPLEMENTATION": "kernelspace",
        "WIREGUARD_MTU": "1420",
        "WIREGUARD_PERSISTENT_KEEPALIVE_INTERVAL": "25s",
        "WIREGUARD_PRESHARED_KEY_SECRETFILE": "/run/secrets/wireguard_preshared_key",
        "WIREGUARD_PRIVATE_KEY_SECRETFILE": "/run/secrets/wireguard_private_key",
        "WIREGUARD_PUBLIC_KEY": PEER,
    }
    assert environment["FIREWALL_VPN_INPUT_PORTS"] == "51413"
    assert "FIREWALL_VPN_INPUT_PORTS" not in body("gluetun", "container")["environment"]
    assert body("gluetun", "container", vpn_port_forwarding="nat-pmp")["environment"]["VPN_PORT_FORWARDING"] == "on"


def test_ipv6_addresses_of_the_tunnel_are_kept_from_gluetun_whose_network_has_none() -> None:
    file = wireguard_file(address="10.2.0.2/32, fd00::2/128")
    assert document("container", file)["services"]["gluetun"]["environment"]["WIREGUARD_ADDRESSES"] == "10.2.0.2/32"


def test_gluetun_has_no_more_rights_than_it_needs() -> None:
    made = body("gluetun", "container")
    assert made["cap_drop"] == ["ALL"]
    assert made["cap_add"] == ["CHOWN", "DAC_OVERRIDE", "NET_ADMIN"]
    assert made["devices"] == ["/dev/net/tun"]
    assert made["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in made
    assert not [name for name in document("host")["services"] if body(name).get("devices")]


def test_gluetuns_control_server_wants_a_key_and_only_tells() -> None:
    (file,) = [file for file in artefacts("container").files if file.path.endswith("/gluetun/auth/config.toml")]
    assert (file.owner, file.mode, file.secret, file.once) == ("0", "0600", True, False)
    content = file.content.decode()
    assert 'auth = "apikey"' in content
    assert 'apikey = "value-of-nas-gluetun-api_key"' in content
    assert "PUT" not in content


# --- secrets


@pytest.mark.parametrize("mode", MODES)
def test_the_keys_are_in_0400_files_and_nowhere_else(mode: str) -> None:
    holding = []
    for file in artefacts(mode).files:
        if PRIVATE.encode() in file.content or SHARED.encode() in file.content:
            assert (file.secret, file.mode, file.owner) == (True, "0400", "0")
            holding.append(Path(file.path).name)
    expected = ["gluetun_wireguard_private_key", "gluetun_wireguard_preshared_key"] if mode == "container" else []
    assert holding == expected
    assert PRIVATE not in repr(stack(mode))
    assert SHARED not in repr(stack(mode))


def test_without_a_preshared_key_there_is_no_file_for_one() -> None:
    file = wireguard_file(preshared=False)
    assert not [each.path for each in artefacts("container", file).files if "preshared" in each.path]
    assert "PRESHARED" not in str(document("container", file)["services"]["gluetun"])


# --- the digest


def changed(mode: str, file: str | None = None, **data: Any) -> set[str]:
    before, after = containers(mode), containers(mode, file, **data)
    return {name for name in before if before[name].digest != after[name].digest}


def test_another_endpoint_recreates_no_container_of_the_hosts_tunnel() -> None:
    moved = wireguard_file(endpoint="203.0.113.9:443")
    assert changed("host", moved) == set()
    assert changed("container", moved) == {"gluetun", "qbittorrent"}, "positive control: Gluetun is told by variables"


@pytest.mark.parametrize("mode", MODES)
def test_another_subnet_recreates_those_on_the_bridge_and_no_others(mode: str) -> None:
    expected = {"qbittorrent"} if mode == "host" else {"gluetun", "qbittorrent"}
    assert changed(mode, vpn_subnet="172.29.30.0/24") == expected


def test_who_shares_gluetuns_network_is_made_anew_with_it() -> None:
    assert changed("container", service_overrides={"gluetun": {"memory": "128m"}}) == {"gluetun", "qbittorrent"}
    assert changed("container", service_overrides={"qbittorrent": {"memory": "1g"}}) == {"qbittorrent"}


# --- what other programs say


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("source", ["docker", "distro"])
def test_the_real_compose_accepts_the_file_without_a_warning(tmp_path: Path, mode: str, source: str) -> None:
    path = tmp_path / "compose.yaml"
    data: dict[str, Any] = {
        "docker_source": source,
        "vpn_services": ["qbittorrent", "prowlarr"],
        "vpn_port_forwarding": "nat-pmp",
    }
    path.write_bytes(artefacts(mode, **data).files[0].content)
    compose = Path(sys.executable).parent / "docker-compose"
    done = subprocess.run([compose, "-f", path, "config", "-q"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("mode", MODES)
def test_compose_lint_finds_nothing_grave_in_what_the_vpn_adds(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "compose.yaml"
    path.write_bytes(artefacts(mode).files[0].content)
    lint = Path(sys.executable).parent / "compose-lint"
    done = subprocess.run([lint, "check", "--format", "json", path], capture_output=True, text=True, check=False)
    findings = json.loads(done.stdout)["findings"]
    grave = [each for each in findings if each["severity"] in ("high", "critical") and each["service"] not in ARRS]
    accepted = {
        ("gluetun", "CL-0011"): "NET_ADMIN: it makes routes and rules in the network namespace of the confined alone",
        ("gluetun", "CL-0020"): "its keys are in files, whose paths these variables name",
    }
    assert [each for each in grave if (each["service"], each["rule_id"]) not in accepted] == []
    if mode == "container":
        paths = [
            value for name, value in body("gluetun", mode)["environment"].items() if name.endswith("_SECRETFILE")
        ]
        assert paths
        assert all(path.startswith("/run/secrets/") for path in paths)


# --- the whole host


@pytest.mark.parametrize("mode", MODES)
def test_the_plan_of_a_host_carries_its_vpn(mode: str) -> None:
    plan = wanted.build("nas", config.read("nas", given_data(mode)), CATALOG, vault(wireguard_file()))
    assert plan.vpn == plan.stack.vpn
    assert plan.vpn is not None
    assert {file.path for file in wall.files(plan.vpn, plan.settings)} <= set(plan.owned)
    without_one = wanted.build("nas", config.read("nas", {}), CATALOG, vault())
    assert without_one.vpn is None
    assert not [path for path in without_one.owned if "vpn" in path]


@pytest.mark.parametrize("mode", MODES)
def test_what_would_be_made_can_be_read_without_a_vault_and_without_a_key(tmp_path: Path, mode: str) -> None:
    inventory = tmp_path / "inventory.py"
    inventory.write_text(f"hosts = [('nas', {given_data(mode)!r})]\n")
    done = CliRunner().invoke(render.command, [str(inventory), "--output", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    written = {path.name: path.read_text() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert {"compose.yaml", "mediahost-vpn-wall.service"} <= set(written)
    assert not [name for name in written if "private_key" in name or name == "wireguard.conf"]
