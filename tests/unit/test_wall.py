"""The wall as values: it concerns the bridge, its subnet and the tunnel only, and hides no rule and no key."""

from __future__ import annotations

import base64
import re
import subprocess
from configparser import RawConfigParser
from dataclasses import replace
from typing import Any

import pytest

from mediahost import wireguard
from mediahost.config import Settings, read
from mediahost.render import wall
from mediahost.resources import MARK, File
from mediahost.vpn import BRIDGE, LINK, Tunnel, Vpn

KEY, SHARED, PEER = (base64.b64encode(bytes([number] * 32)).decode() for number in (1, 2, 3))
TUNNEL = Tunnel(
    private_key=KEY,
    addresses=("10.2.0.2/32", "fd00::2/128"),
    peer=PEER,
    endpoint="198.51.100.7",
    endpoint_port=51821,
    preshared_key=SHARED,
    dns=("10.2.0.1",),
    mtu=1380,
)
SUBNET = "172.29.29.0/24"
VPN = Vpn("proton", "host", True, TUNNEL, SUBNET, ("10.2.0.1",), "off", ("qbittorrent",))
EVERY = [
    replace(VPN, mode=mode, forwarding=forwarding)
    for mode in ("host", "container")
    for forwarding in ("off", "nat-pmp", 5000)
]
SETTINGS = read("nas", {"firewall_lan": ["192.168.7.0/24", "fd00::/8"]})

every_vpn = pytest.mark.parametrize("vpn", EVERY, ids=lambda vpn: f"{vpn.mode}-{vpn.forwarding}")


def file(path: str, vpn: Vpn = VPN, settings: Settings = SETTINGS) -> File:
    (found,) = [each for each in wall.files(vpn, settings) if each.path == path]
    return found


def chains(text: str) -> dict[str, tuple[bool, list[str]]]:
    """By name: whether packets come to the chain by themselves, and its rules."""
    found = {}
    for name, body in re.findall(r"\tchain (\w+) \{\n(.*?)\t\}\n", text, re.DOTALL):
        rules = [line.strip() for line in body.splitlines()]
        found[name] = (rules[0].startswith("type "), [rule for rule in rules if not rule.startswith("type ")])
    return found


@every_vpn
def test_each_rule_names_the_bridge_its_subnet_or_the_tunnel_so_it_cannot_lock_anybody_out(vpn: Vpn) -> None:
    found = chains(wall.ruleset(vpn, SETTINGS))
    interfaces = (f'iifname "{BRIDGE}"', f'oifname "{BRIDGE}"', f'iifname "{LINK}"')
    concerns = (*interfaces, f"ip saddr {SUBNET}", f"ip daddr {SUBNET}")
    bases = [rule for base, rules in found.values() if base for rule in rules]
    assert len(bases) > 8
    assert [rule for rule in bases if not rule.startswith(concerns)] == []
    # The other chains are reached from those rules and from nowhere else.
    called = {
        match for _, rules in found.values() for rule in rules for match in re.findall(r"(?:jump|goto) (\w+)", rule)
    }
    assert called == {name for name, (base, _) in found.items() if not base}


@every_vpn
def test_no_chain_refuses_by_policy(vpn: Vpn) -> None:
    text = wall.ruleset(vpn, SETTINGS)
    assert set(re.findall(r"policy (\w+);", text)) == {"accept"}
    assert "flush" not in text


@every_vpn
def test_only_its_own_table_is_named_and_it_is_replaced_in_one_transaction(vpn: Vpn) -> None:
    text = wall.ruleset(vpn, SETTINGS)
    head = text.partition("{")[0].splitlines()
    assert head == [
        f"# {MARK}",
        *(f"{verb}table inet mediahost_vpn" for verb in ("", "delete ")),
        "table inet mediahost_vpn ",
    ]
    assert len(re.findall(r"^(?:delete )?table ", text, re.MULTILINE)) == 3


@every_vpn
def test_every_drop_is_counted_by_name_and_every_name_is_explained(vpn: Vpn) -> None:
    text = wall.ruleset(vpn, SETTINGS)
    drops = re.findall(r"^.* drop$", text, re.MULTILINE)
    assert len(drops) >= 6
    named = [re.search(r'counter name "(\w+)" drop$', drop) for drop in drops]
    assert all(named)
    assert {found[1] for found in named if found} <= set(wall.COUNTERS)
    assert all(f"counter {name} {{" in text for name in wall.COUNTERS)


@every_vpn
def test_no_rule_is_hidden_from_a_listing_without_elements(vpn: Vpn) -> None:
    """`nft -t` leaves out what is in sets, anonymous ones too in some versions."""
    for _, rules in chains(wall.ruleset(vpn, SETTINGS)).values():
        assert [rule for rule in rules if "{" in rule] == []


@every_vpn
def test_interfaces_are_named_and_not_numbered_so_it_loads_before_they_exist(vpn: Vpn) -> None:
    assert re.findall(r"\b[io]if\b", wall.ruleset(vpn, SETTINGS)) == []


@every_vpn
def test_inside_a_container_a_packet_leaves_with_an_address_of_the_tunnels_network_or_stays_inside(vpn: Vpn) -> None:
    text = file(wall.INSIDE_PATH, vpn).content.decode()
    ((base, rules),) = chains(text).values()
    assert base
    assert rules[-1] == f'counter name "{wall.INSIDE_COUNTER}" drop'
    accepted = {rule.removesuffix(" accept") for rule in rules if rule.endswith(" accept")}
    assert len(accepted) == len(rules) - 1
    tunnel = {'oifname "tun0" meta nfproto ipv4'} if vpn.mode == "container" else set()
    assert accepted == tunnel | {
        'oifname "lo"',
        f"ip saddr {SUBNET}",
        "ip saddr $internal ip daddr $internal",
        *(f"ip6 saddr fe80::/10 icmpv6 type nd-neighbor-{kind}" for kind in ("solicit", "advert")),
    }


@every_vpn
def test_the_table_inside_has_a_name_of_its_own_and_is_replaced_in_one_transaction(vpn: Vpn) -> None:
    text = wall.inside_ruleset(vpn)
    assert re.findall(r"^(?:delete )?table .*", text, re.MULTILINE) == [
        "table inet mediahost_inside",
        "delete table inet mediahost_inside",
        "table inet mediahost_inside {",
    ]
    assert "flush" not in text
    assert set(re.findall(r"policy (\w+);", text)) == {"accept"}
    assert " hook postrouting priority filter + 10;" in text, "before srcnat, where addresses are the sender's own"


def test_the_home_network_gets_answers_only() -> None:
    text = wall.ruleset(VPN, SETTINGS)
    home = [line for line in text.splitlines() if "192.168.7.0/24" in line]
    assert len(home) == 5
    asked = [line.strip() for line in home if "ct direction reply ct state established,related ip daddr" not in line]
    question = f'ip daddr {SUBNET} iifname != "{BRIDGE}" ct status dnat ip saddr 192.168.7.0/24'
    assert asked == [
        f"{question} meta mark set {wall.MARKED:#x}",
        "ip saddr 192.168.7.0/24 ct status dnat accept",
    ]
    assert "fd00::" not in text


@pytest.mark.parametrize(("vpn", "port"), [(EVERY[0], False), (EVERY[1], True), (EVERY[2], True), (EVERY[4], False)])
def test_new_connections_out_of_the_tunnel_reach_the_forwarded_port_or_nothing(vpn: Vpn, port: bool) -> None:
    found = chains(wall.ruleset(vpn, SETTINGS))
    accepted = [rule for rule in found["entering"][1] if rule == f'iifname "{LINK}" ct status dnat accept']
    assert bool(accepted) == port == ("forwarded_port" in found)
    if port:
        assert found["forwarded_port"][1][-1] == f'iifname "{LINK}" counter name "dropped_inbound" drop'
        numbers = [rule for rule in found["forwarded_port"][1] if "dport 5000" in rule]
        assert len(numbers) == (2 if vpn.forwarding == 5000 else 0)


def test_mode_container_lets_the_bridge_reach_the_server_and_knows_no_tunnel() -> None:
    vpn = replace(VPN, mode="container")
    text = wall.ruleset(vpn, SETTINGS)
    assert LINK not in text
    assert chains(text)["leaving"][1][1] == "ip daddr 198.51.100.7 udp dport 51821 accept"
    assert "99 from all to 198.51.100.7 iif br-vpn lookup main" in wall.rules(vpn, 4)
    assert not any("198.51.100.7" in rule for rule in wall.rules(VPN, 4))


@every_vpn
@pytest.mark.parametrize("family", [4, 6])
def test_the_rules_are_of_the_bridge_and_end_in_its_own_table(vpn: Vpn, family: int) -> None:
    rules = wall.rules(vpn, family)
    assert all(f" iif {BRIDGE} " in rule for rule in rules)
    assert rules[-1] == "100 from all iif br-vpn lookup 51820"
    assert sorted(rules, key=lambda rule: int(rule.split()[0])) == list(rules)


def test_only_marked_answers_and_the_server_are_routed_by_main() -> None:
    by_main = [rule for vpn in EVERY for rule in wall.rules(vpn, 4) if rule.endswith("lookup main")]
    assert {rule.partition(" iif")[0] for rule in by_main} == {
        "98 from all fwmark 0x6d656469",
        "99 from all to 198.51.100.7",
    }


@every_vpn
def test_the_keys_are_in_one_file_that_only_root_reads(vpn: Vpn) -> None:
    with_key = [each for each in wall.files(vpn, SETTINGS) if KEY.encode() in each.content]
    assert [(each.path, each.mode, each.secret) for each in with_key] == (
        [(wall.CONFIGURATION_PATH, "0600", True)] if vpn.mode == "host" else []
    )
    assert [each for each in wall.files(vpn, SETTINGS) if SHARED.encode() in each.content] == with_key
    assert KEY not in repr(wall.files(vpn, SETTINGS))
    assert KEY not in wall.peer(vpn)


def test_the_tunnels_configuration_is_what_wg_reads() -> None:
    text = file(wall.CONFIGURATION_PATH).content.decode()
    parser = RawConfigParser()
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read_string(text)
    assert {name: dict(parser[name]) for name in parser.sections()} == {
        "Interface": {"PrivateKey": KEY},
        "Peer": {
            "PublicKey": PEER,
            "PresharedKey": SHARED,
            "AllowedIPs": "0.0.0.0/0",
            "Endpoint": "198.51.100.7:51821",
            "PersistentKeepalive": "25",
        },
    }
    assert wall.peer(VPN) == f"{wireguard.public_key(KEY)} {PEER} 198.51.100.7:51821 0.0.0.0/0 25"


def test_the_providers_prefix_becomes_no_route_of_the_host() -> None:
    vpn = replace(VPN, tunnel=replace(TUNNEL, addresses=("192.168.1.2/16", "fd00::2/64")))
    assert wall.addresses(vpn) == ("192.168.1.2/32",)
    assert b"192.168.1.2/16" not in file(wall.WATCH_PATH, vpn).content


def test_a_servers_ipv6_address_stands_in_brackets_and_is_no_way_out_of_the_bridge() -> None:
    vpn = replace(VPN, tunnel=replace(TUNNEL, endpoint="2001:db8::7"))
    assert "Endpoint = [2001:db8::7]:51821\n" in wall.configuration(vpn)
    inside = replace(vpn, mode="container")
    assert "2001:db8" not in wall.ruleset(inside, SETTINGS)
    assert "2001:db8" not in " ".join(wall.rules(inside, 4))


@every_vpn
def test_every_file_is_ours_and_every_path_is_known_to_who_removes_them(vpn: Vpn) -> None:
    found = wall.files(vpn, SETTINGS)
    assert all(MARK.encode() in each.content for each in found)
    assert {each.path for each in found} <= set(wall.PATHS)
    assert len({each.path for each in found}) == len(found)
    left_out = set(wall.PATHS) - {each.path for each in found}
    assert left_out == (set() if vpn.mode == "host" else {wall.CONFIGURATION_PATH})


@pytest.mark.parametrize("vpn", [None, replace(VPN, mode="container", killswitch=False)])
def test_without_a_vpn_or_without_the_hosts_wall_there_are_no_files(vpn: Vpn | None) -> None:
    assert wall.files(vpn, SETTINGS) == ()
    assert wall.files(VPN, SETTINGS) != ()


@every_vpn
def test_the_programs_are_valid_shell(vpn: Vpn) -> None:
    for path, shell in ((wall.WALL_PATH, "sh"), (wall.WATCH_PATH, "bash")):
        text = file(path, vpn).content
        done = subprocess.run([shell, "-n"], input=text, capture_output=True, check=False)
        assert done.stderr == b""
        assert text.startswith(f"#!/bin/{shell}\n".encode())


def options(path: str, **changes: Any) -> list[str]:
    return file(path, replace(VPN, **changes)).content.decode().splitlines()


def test_the_wall_stands_before_the_network_and_docker_and_no_stop_opens_it() -> None:
    unit = options(wall.WALL_UNIT_PATH)
    assert {"DefaultDependencies=no", "Before=network-pre.target docker.service", "RemainAfterExit=yes"} <= set(unit)
    # nftables.service of the distribution flushes everything when it starts.
    assert any(line.startswith("After=") and "nftables.service" in line for line in unit)
    for path in (wall.WALL_UNIT_PATH, wall.TUNNEL_UNIT_PATH):
        assert [line for line in options(path) if line.startswith("ExecStop")] == []
    assert options(wall.DOCKER_PATH)[-2:] == [f"Requires={wall.WALL_UNIT}", f"After={wall.WALL_UNIT}"]


def test_a_strict_reverse_path_check_does_not_drop_what_comes_through_the_tunnel() -> None:
    assert f"-net/ipv4/conf/{LINK}/rp_filter = 2" in options(wall.SYSCTL_PATH)
    assert LINK not in "\n".join(options(wall.SYSCTL_PATH, mode="container"))
