"""The files and rules of a host itself: what each must say, and what it must never lose or let in."""

from __future__ import annotations

import json
import string
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mediahost.config import Settings, read
from mediahost.render import base, docker, firewall, ssh, users
from mediahost.resources import MARK, Group
from mediahost.stack import ExposedPort
from tests.unit.test_config import KEY

LAN4, LAN6 = "192.168.1.0/24", "fd00::/8"


def given_settings(**data: Any) -> Settings:
    return read("nas", data)


def lines(content: bytes) -> list[str]:
    return content.decode().splitlines()


def port(number: int, exposure: Any = "wan", protocol: Any = "tcp", service: str = "caddy") -> ExposedPort:
    return ExposedPort(number, protocol, exposure, service, number)


# --- every file


@pytest.mark.parametrize("data", [{}, {"unattended_upgrades": False, "ntp_servers": ["ntp.example.org"]}])
def test_every_file_carries_our_mark_in_its_first_line_and_ends_with_a_line_feed(data: dict[str, Any]) -> None:
    wanted = given_settings(admins={"me": [KEY]}, docker_version="5:29.*", **data)
    files = [
        *base.apt_files(wanted),
        base.sysctl_file(wanted),
        base.journald_file(wanted),
        base.timesyncd_file(wanted),
        ssh.drop_in(wanted),
        users.sudoers(wanted),
        docker.pin_file(wanted),
        docker.source_file(wanted, "debian", "trixie", "amd64"),
    ]
    for file in filter(None, files):
        first, *rest = lines(file.content)
        assert MARK in first, file.path
        assert any(rest), file.path
        assert file.content.endswith(b"\n"), file.path


# --- base


def test_the_time_client_and_the_firewall_are_packages_only_where_they_are_wanted() -> None:
    assert {"ufw", "iptables", "unattended-upgrades"} <= set(base.packages(Settings()))
    without = base.packages(given_settings(firewall=False, unattended_upgrades=False))
    assert not {"ufw", "iptables", "unattended-upgrades"} & set(without)


def test_packages_are_named_once_and_in_order() -> None:
    found = base.packages(given_settings(packages_extra=["htop", "curl", "acl"]))
    assert list(found) == sorted(set(found))
    assert "htop" in found


def test_the_users_kernel_settings_win_over_ours() -> None:
    file = base.sysctl_file(given_settings(sysctl_extra={"vm.swappiness": "60", "kernel.panic": "10"}))
    found = dict(line.split(" = ") for line in lines(file.content)[1:])
    assert found == {**base.SYSCTL, "vm.swappiness": "60", "kernel.panic": "10"}


def test_the_journal_has_the_limits_that_were_asked_for() -> None:
    file = base.journald_file(given_settings(journald_max_use="500m", journald_max_retention="2week"))
    assert lines(file.content)[1:] == [
        "[Journal]",
        "Storage=persistent",
        "SystemMaxUse=500M",
        "MaxRetentionSec=2week",
    ]


def test_time_servers_are_written_only_when_there_are_some() -> None:
    assert base.timesyncd_file(Settings()) is None
    file = base.timesyncd_file(given_settings(ntp_servers=["a.example", "b.example"]))
    assert file is not None
    assert lines(file.content)[1:] == ["[Time]", "NTP=a.example b.example"]


@pytest.mark.parametrize(("wanted", "digit"), [(True, "1"), (False, "0")])
def test_unattended_upgrades_are_switched_on_and_off(wanted: bool, digit: str) -> None:
    files = {file.path: file for file in base.apt_files(given_settings(unattended_upgrades=wanted))}
    text = files[base.AUTO_UPGRADES_PATH].content.decode()
    assert f'APT::Periodic::Unattended-Upgrade "{digit}";' in text
    assert f'APT::Periodic::Update-Package-Lists "{digit}";' in text


def test_unattended_upgrades_reboot_only_when_told_and_leave_the_engine_alone() -> None:
    def text(**data: Any) -> str:
        files = {file.path: file for file in base.apt_files(given_settings(**data))}
        return files[base.UNATTENDED_PATH].content.decode()

    assert 'Automatic-Reboot "false";' in text()
    assert '    "docker-ce";' in text()
    told = text(unattended_reboot=True, unattended_reboot_time="05:00", unattended_blacklist=["nvidia"])
    assert 'Automatic-Reboot "true";' in told
    assert 'Automatic-Reboot-Time "05:00";' in told
    assert "docker-ce" not in told


# --- users


def test_without_administrators_there_is_no_sudo_policy_and_only_the_media_account() -> None:
    assert users.sudoers(Settings()) is None
    (media,) = users.users(Settings())
    assert (media.name, media.uid, media.home, media.shell) == ("media", 13000, None, "/usr/sbin/nologin")
    assert users.groups(Settings()) == (Group("media", 13000),)


def test_administrators_get_sudo_the_media_group_and_their_keys() -> None:
    wanted = given_settings(admins={"zoe": [KEY], "ann": []}, media_group="films")
    _, ann, zoe = users.users(wanted)
    assert (ann.name, ann.groups, ann.home, ann.authorized_keys) == ("ann", ("sudo", "films"), "/home/ann", ())
    assert zoe.authorized_keys == (KEY,)


@pytest.mark.parametrize(
    ("nopasswd", "rule"), [(True, "me ALL=(ALL:ALL) NOPASSWD: ALL"), (False, "me ALL=(ALL:ALL) ALL")]
)
def test_the_sudo_policy_asks_for_a_password_or_not_as_told(nopasswd: bool, rule: str) -> None:
    file = users.sudoers(given_settings(admins={"me": [KEY]}, admin_sudo_nopasswd=nopasswd))
    assert file is not None
    assert lines(file.content)[1:] == [rule]
    assert file.mode == "0440"
    assert file.check == "/usr/sbin/visudo -cqf {}"


# --- docker


def test_the_source_names_distribution_release_architecture_and_key() -> None:
    file = docker.source_file(given_settings(docker_apt_url="https://mirror.example/d"), "ubuntu", "noble", "arm64")
    assert lines(file.content)[1:] == [
        "Types: deb",
        "URIs: https://mirror.example/d/ubuntu",
        "Suites: noble",
        "Components: stable",
        "Architectures: arm64",
        "Signed-By: /etc/apt/keyrings/docker.asc",
    ]


def test_the_key_comes_from_the_same_place_as_the_packages() -> None:
    wanted = given_settings(docker_apt_url="https://mirror.example/d")
    assert docker.key_url(wanted, "debian") == "https://mirror.example/d/debian/gpg"


@pytest.mark.parametrize(
    ("source", "names"), [("docker", "docker-ce docker-ce-cli"), ("distro", "docker.io docker-cli")]
)
def test_a_pinned_version_outranks_what_is_newer_and_what_is_installed(source: str, names: str) -> None:
    assert docker.pin_file(given_settings(docker_source=source)) is None
    file = docker.pin_file(given_settings(docker_source=source, docker_version="5:29.7.*"))
    assert file is not None
    assert lines(file.content)[1:] == [f"Package: {names}", "Pin: version 5:29.7.*", "Pin-Priority: 1001"]


def test_the_distributions_packages_fit_the_distribution() -> None:
    assert docker.distro_packages("ubuntu", "noble") == ("docker-compose-v2", "docker.io")
    assert docker.distro_packages("debian", "trixie") == ("docker-cli", "docker-compose", "docker.io")
    assert not docker.distro_has_compose("bookworm")
    assert docker.distro_has_compose("trixie")


def test_the_vendors_packages_are_not_among_their_own_conflicts() -> None:
    assert not set(docker.VENDOR_PACKAGES) & set(docker.VENDOR_CONFLICTS)


def daemon(present: str | None = None, **data: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(docker.daemon_file(given_settings(**data), present).content)
    return found


def test_the_engine_rotates_logs_keeps_containers_and_takes_our_addresses() -> None:
    assert daemon() == {
        "log-driver": "json-file",
        "log-opts": {"max-size": "10m", "max-file": "3"},
        "live-restore": True,
        "default-address-pools": [{"base": "172.30.0.0/16", "size": 24}],
        "default-ulimits": {"nofile": {"Name": "nofile", "Soft": 65536, "Hard": 1048576}},
    }


@pytest.mark.parametrize("present", [None, "", " \n", "{}"])
def test_an_absent_or_empty_daemon_file_counts_as_no_settings(present: str | None) -> None:
    assert daemon(present) == daemon()


def test_what_others_set_in_the_daemon_file_is_kept_and_ours_is_set() -> None:
    found = daemon('{"data-root": "/fast/docker", "live-restore": false}')
    assert found == {**daemon(), "data-root": "/fast/docker"}


def test_the_users_further_daemon_keys_win() -> None:
    found = daemon('{"log-driver": "syslog"}', docker_daemon_extra={"log-driver": "journald", "debug": True})
    assert found["log-driver"] == "journald"
    assert found["debug"] is True


def test_insecure_registries_are_there_only_when_asked_for() -> None:
    assert "insecure-registries" not in daemon()
    assert daemon(docker_insecure_registries=["10.0.0.1:5000"])["insecure-registries"] == ["10.0.0.1:5000"]


@pytest.mark.parametrize("present", ["[]", "1", "null", '"x"', "{", "{,}", "{'a': 1}"])
def test_a_daemon_file_that_cannot_be_merged_is_an_error_not_overwritten(present: str) -> None:
    with pytest.raises(ValueError, match="JSON object|Expecting"):
        docker.daemon_file(Settings(), present)


@given(
    st.dictionaries(
        st.sampled_from([*docker.daemon_settings(Settings()), "data-root", "features", "x"]),
        st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=4),
    )
)
def test_merging_keeps_every_foreign_key_and_a_second_merge_changes_nothing(present: dict[str, Any]) -> None:
    once = docker.daemon_file(Settings(), json.dumps(present)).content
    merged = json.loads(once)
    ours = docker.daemon_settings(Settings())
    assert merged == {**present, **ours}
    assert docker.daemon_file(Settings(), once.decode()).content == once


def test_the_daemon_file_is_checked_by_the_engine_before_it_counts() -> None:
    assert docker.daemon_file(Settings(), None).check == "dockerd --validate --config-file {}"


# --- firewall


def host(exposed: list[ExposedPort], ssh_ports: tuple[int, ...] = (), **data: Any) -> list[str]:
    data.setdefault("firewall_lan", [LAN4, LAN6])
    rules = firewall.host_rules(given_settings(**data), exposed, ssh_ports)
    return [f"{rule.source} {rule.protocol} {rule.port} {rule.comment}" for rule in rules]


def test_ssh_stands_first_on_the_wanted_port_and_on_the_one_in_use() -> None:
    assert host([port(443)], ssh_ports=(22,), sshd_port=2222)[:2] == [
        "any tcp 22 mediahost ssh",
        "any tcp 2222 mediahost ssh",
    ]
    assert host([], ssh_ports=(22,)) == ["any tcp 22 mediahost ssh"]


def test_ssh_is_open_only_to_those_who_were_named() -> None:
    assert host([], firewall_ssh_from=[LAN4, "203.0.113.0/24"]) == [
        f"{LAN4} tcp 22 mediahost ssh",
        "203.0.113.0/24 tcp 22 mediahost ssh",
    ]


def test_a_wan_port_is_open_to_all_a_lan_port_to_the_home_network_a_localhost_port_to_nobody() -> None:
    exposed = [port(443), port(8080, "lan", service="sonarr"), port(9090, "localhost", service="prometheus")]
    assert host(exposed)[1:] == [
        "any tcp 443 mediahost wan: caddy",
        f"{LAN4} tcp 8080 mediahost lan: sonarr",
        f"{LAN6} tcp 8080 mediahost lan: sonarr",
    ]


def test_ports_of_one_exposure_and_protocol_share_a_rule_and_name_their_services() -> None:
    exposed = [port(443), port(80), port(443, protocol="udp"), port(6881, service="qbittorrent")]
    assert host(exposed)[1:] == [
        "any tcp 80,443,6881 mediahost wan: caddy qbittorrent",
        "any udp 443 mediahost wan: caddy",
    ]


def test_no_rule_holds_more_ports_than_multiport_takes_and_none_is_lost() -> None:
    numbers = list(range(5000, 5040))
    rules = [rule.split()[2].split(",") for rule in host([port(number) for number in numbers])[1:]]
    assert [len(ports) for ports in rules] == [15, 15, 10]
    assert [int(each) for ports in rules for each in ports] == numbers


def test_further_rules_come_last_with_their_defaults() -> None:
    extra = [{"port": 51820, "protocol": "udp", "comment": "wireguard"}, {"port": "6000:6010", "source": LAN4}]
    assert host([port(80)], firewall_extra=extra)[-2:] == [
        "any udp 51820 mediahost wireguard",
        f"{LAN4} tcp 6000:6010 mediahost extra",
    ]


def container(exposed: list[ExposedPort], version: int, **data: Any) -> list[str]:
    data.setdefault("firewall_lan", [LAN4, LAN6])
    return list(firewall.container_rules(given_settings(**data), exposed, version))


def test_a_lan_port_is_let_through_only_from_the_home_network_and_from_containers() -> None:
    exposed = [port(8080, "lan")]
    assert container(exposed, 4) == [
        "-m conntrack --ctstate RELATED,ESTABLISHED -j RETURN",
        "-m conntrack ! --ctstate DNAT -j RETURN",
        f"-s {LAN4} -p tcp -m conntrack --ctorigdstport 8080 -j RETURN",
        "-s 172.30.0.0/16 -p tcp -m conntrack --ctorigdstport 8080 -j RETURN",
        "-j DROP",
    ]
    assert container(exposed, 6)[2:-1] == [f"-s {LAN6} -p tcp -m conntrack --ctorigdstport 8080 -j RETURN"]


def test_a_wan_port_is_let_through_from_everywhere_in_both_versions() -> None:
    for version in (4, 6):
        assert container([port(443, protocol="udp")], version)[2:-1] == [
            "-p udp -m conntrack --ctorigdstport 443 -j RETURN"
        ]


@given(
    st.lists(
        st.builds(
            port,
            st.integers(1, 65535),
            st.sampled_from(["wan", "lan", "localhost"]),
            st.sampled_from(["tcp", "udp"]),
        ),
        max_size=20,
    ),
    st.sampled_from([4, 6]),
)
def test_whatever_is_published_the_last_rule_drops_and_no_localhost_port_is_let_through(
    exposed: list[ExposedPort], version: int
) -> None:
    rules = container(exposed, version)
    assert rules[-1] == "-j DROP"
    assert rules.count("-j DROP") == 1
    opened = {(each.protocol, each.port) for each in exposed if each.exposure != "localhost"}
    for rule in rules[2:-1]:
        words = rule.split()
        assert (words[words.index("-p") + 1], int(words[words.index("--ctorigdstport") + 1])) in opened
        assert not (version == 4 and "::" in rule)
        assert not (version == 6 and "." in rule)
    told = "\n".join(rules)
    for each in exposed:
        if each.exposure == "wan":
            assert f"-p {each.protocol} -m conntrack --ctorigdstport {each.port} -j RETURN" in told


def test_each_rule_of_the_block_carries_the_digest_of_the_set_and_its_number() -> None:
    wanted, exposed = given_settings(firewall_lan=[LAN4]), [port(80), port(8080, "lan")]
    marks = firewall.container_marks(wanted, exposed, 4)
    block = firewall.container_block(wanted, exposed, 4)
    added = [line for line in block.splitlines() if line.startswith("-A ")]
    assert len(added) == len(marks) == len(firewall.container_rules(wanted, exposed, 4))
    for line, mark, rule in zip(added, marks, firewall.container_rules(wanted, exposed, 4), strict=True):
        matches, _, target = rule.rpartition("-j ")
        assert line == f"-A MEDIAHOST-DOCKER {matches}-m comment --comment {mark} -j {target}"
    assert [mark.rpartition(":")[2] for mark in marks] == [str(number) for number in range(len(marks))]


def test_another_set_of_rules_has_another_digest() -> None:
    wanted = given_settings()
    one = firewall.container_marks(wanted, [port(80)], 4)
    assert one == firewall.container_marks(wanted, [port(80, service="other")], 4)
    assert not set(one) & set(firewall.container_marks(wanted, [port(81)], 4))
    assert not set(one) & set(firewall.container_marks(given_settings(), [port(80, "lan")], 4))


FOREIGN = st.text(string.ascii_letters + "#*:- \n", max_size=60)
PORTS = st.lists(st.builds(port, st.integers(1, 65535)), max_size=3)


@given(FOREIGN, PORTS)
def test_putting_the_block_in_twice_is_putting_it_in_once(present: str, exposed: list[ExposedPort]) -> None:
    block = firewall.container_block(Settings(), exposed, 4)
    once = firewall.with_block(present, block)
    assert once.count(firewall.BLOCK_BEGIN) == 1
    assert once.endswith(block)
    assert firewall.with_block(once, block) == once


@given(FOREIGN, FOREIGN, PORTS, PORTS)
def test_a_new_block_takes_the_old_ones_place_and_every_foreign_line_stays(
    before: str, after: str, old: list[ExposedPort], new: list[ExposedPort]
) -> None:
    first, second = (firewall.container_block(Settings(), exposed, 4) for exposed in (old, new))
    present = firewall.with_block(before, first) + after
    assert firewall.with_block(present, second) == firewall.with_block(before, second) + after
    assert firewall.without_block(present) == firewall.without_block(firewall.with_block(before, first)) + after


@settings(max_examples=50)
@given(FOREIGN)
def test_taking_the_block_out_gives_back_what_was_there(present: str) -> None:
    block = firewall.container_block(Settings(), [port(80)], 6)
    assert firewall.without_block(firewall.with_block(present, block)).rstrip("\n") == present.rstrip("\n")
    assert firewall.without_block(present) == present


def test_a_block_that_lost_its_end_is_replaced_as_a_whole() -> None:
    block = firewall.container_block(Settings(), [port(80)], 4)
    torn = "# kept\n" + block[: len(block) // 2]
    assert firewall.with_block(torn, block) == "# kept\n" + block
