"""The configuration's promises: every value is checked, every problem is told at once, nothing else escapes."""

from __future__ import annotations

import base64
import string
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from mediahost.catalog import load_catalog
from mediahost.check import check_all
from mediahost.config import ConfigError, ConfigProblem, Settings, own_keys, read

CATALOG = load_catalog()


def public_key(kind: str = "ssh-ed25519", payload: bytes = bytes(32), comment: str = "me@laptop") -> str:
    """A well-formed public key line (RFC 4253 section 6.6); nobody has its private half."""
    blob = b"".join(len(part).to_bytes(4) + part for part in (kind.encode(), payload))
    return f"{kind} {base64.b64encode(blob).decode()} {comment}"


KEY = public_key()


def problems(**data: Any) -> list[str]:
    with pytest.raises(ConfigError) as error:
        read("nas", data)
    return [str(problem) for problem in error.value.problems]


def the_problem(**data: Any) -> str:
    (told,) = problems(**data)
    return told


# --- the frame


def test_nothing_said_is_a_sound_configuration() -> None:
    assert read("nas", {}) == Settings()


def test_an_unknown_key_is_refused_with_the_key_that_was_meant() -> None:
    assert the_problem(timezon="UTC") == "nas: timezon: no such key; did you mean timezone?"


def test_an_unknown_key_like_nothing_points_to_the_reference() -> None:
    assert the_problem(zzzzzz=1) == "nas: zzzzzz: no such key; see docs/reference.md for every key"


@pytest.mark.parametrize("key", ["ssh_user", "ssh_password", "_sudo", "docker_container_x", "fake_delay"])
def test_keys_of_pyinfra_are_none_of_ours(key: str) -> None:
    assert own_keys({key: 1, "timezone": "UTC"}) == {"timezone": "UTC"}
    assert read("nas", {key: object()}) == Settings()


def test_a_key_that_is_no_text_is_told_as_an_unknown_one() -> None:
    with pytest.raises(ConfigError, match="nas: 7: no such key"):
        read("nas", {7: "x"})  # type: ignore[dict-item]


def test_a_problem_names_host_key_value_and_mend() -> None:
    assert the_problem(timezone="Europe/Berlni") == (
        "nas: timezone = 'Europe/Berlni': no such time zone; did you mean Europe/Berlin?"
    )


def test_a_long_value_is_shortened_in_the_message() -> None:
    told = the_problem(timezone="x" * 500)
    assert len(told) < 200
    assert "..." in told


def test_all_problems_of_all_hosts_are_told_at_once() -> None:
    hosts: dict[str, dict[str, Any]] = {
        "one": {"timezone": "Nowhere", "sshd_port": 0, "mediauser": "x"},
        "two": {"layout": "flat"},
        "three": {"services": ["sonnar"]},
        "sound": {"services": []},
    }
    with pytest.raises(ConfigError) as error:
        check_all(hosts, CATALOG)
    told = str(error.value)
    assert told.splitlines()[0] == "5 problems in the configuration; nothing has been touched:"
    for part in ("one: timezone", "one: sshd_port", "one: mediauser", "two: layout", "three: "):
        assert f"  - {part}" in told
    assert "sound:" not in told


def test_sound_hosts_are_all_given_back() -> None:
    found = check_all({"one": {}, "two": {"sshd_port": 2222}}, CATALOG)
    assert {host: each.sshd_port for host, each in found.items()} == {"one": 22, "two": 2222}


def test_one_problem_is_not_called_problems() -> None:
    with pytest.raises(ConfigError, match=r"^1 problem in the configuration"):
        read("nas", {"sshd_port": 0})


def test_conflicts_between_keys_are_all_told_each_under_its_key() -> None:
    told = problems(docker_nofile_soft=4096, docker_nofile_hard=1024, stack_root="/data/media/x", services=["A B"])
    assert [line.split(": ")[1] for line in told] == ["services", "docker_nofile_hard", "stack_root"]


def test_settings_cannot_be_changed_after_they_were_checked() -> None:
    with pytest.raises(ValueError, match="frozen"):
        read("nas", {}).sshd_port = 1  # type: ignore[misc]


# --- values, key by key: what is taken, and what is refused with which mend

ACCEPTED: list[tuple[str, Any]] = [
    ("timezone", "Europe/Berlin"),
    ("packages_extra", ["g++", "libstdc++6", "htop"]),
    ("sysctl_extra", {"net.ipv4.tcp_congestion_control": "bbr", "net/ipv4/conf/eth0": "1"}),
    ("journald_max_use", "500M"),
    ("unattended_reboot_time", "23:59"),
    ("hardening_disabled", ["umask", "su"]),
    ("hardening_optional", ["all"]),
    ("media_user", "_media-1"),
    ("media_uid", 1000),
    ("media_gid", 60000),
    ("sshd_port", 65535),
    ("sshd_max_auth_tries", 2),
    ("sshd_max_startups", "1:100:1"),
    ("sshd_banner", "Authorised use only.\nAll is logged."),
    ("sshd_login_grace_time", 600),
    ("firewall_lan", ["192.168.1.0/24", "fd00::/8"]),
    ("firewall_ssh_from", ["203.0.113.0/24"]),
    ("docker_version", "5:29.7.*"),
    ("docker_apt_url", "http://127.0.0.1:8080/mirror"),
    ("docker_address_pools", [{"base": "10.200.0.0/16", "size": 24}, {"base": "fd01::/56", "size": 64}]),
    ("docker_address_pools", []),
    ("docker_log_max_file", 100),
    ("gpu", "auto"),
    ("gpu_nvidia_branch", 580),
    ("plex_version", "1.43.3.*"),
    ("plex_libraries", {"Films": {"type": "movie", "paths": ["/data/media/films"], "language": "de-DE"}}),
    ("plex_libraries", {}),
    ("plex_preferences", {"LanNetworksBandwidth": "192.168.1.0/24", "RelayEnabled": False, "TranscoderQuality": 3}),
    ("data_root", "/srv/data"),
    ("data_root", "/mnt/disk1"),
    ("data_root", "/home/me/media"),
    ("stack_root", "/srv/stack"),
    ("snapraid_exclude", ["*.nfo", "/torrents/incomplete/"]),
    ("snapraid_delete_limit", 0),
    ("snapraid_scrub_on", "Wed 23:59"),
    ("swap", "zram"),
    ("swap_size", "512m"),
    ("smart_devices", ["/dev/sda", "/dev/disk/by-id/ata-WDC_WD80EFAX-68KNBN0_VAGX:1"]),
    ("smart_temperature", 90),
    ("transcode_size", "100g"),
    ("thumbnails_size", "50G"),
    ("transcode_root", "/mnt/ssd/transcode"),
    ("media_libraries", ["4k-movies", "kids_tv"]),
    ("registry_prefix", "registry.example.org:5000/mirror"),
    ("domain", "home.example.org"),
    ("proxy_tls", "internal"),
]

REFUSED: list[tuple[str, Any, str]] = [
    ("snapraid_parity", ["parity"], "absolute path"),
    ("snapraid_data", ["/mnt"], "belongs to the system"),
    ("snapraid_exclude", ["a\nparity /etc/x"], "one line"),
    ("snapraid_delete_limit", -1, "greater than or equal to 0"),
    ("snapraid_sync_at", "24:00", "time of day"),
    ("snapraid_scrub_on", "Sonntag 05:30", "day of the week"),
    ("snapraid_scrub_on", "Sun", "time of day"),
    ("snapraid_scrub_percent", 0, "greater than or equal to 1"),
    ("swap", "partition", "file"),
    ("swap_size", "2", "size such as"),
    ("smart_devices", ["sda"], "write a device"),
    ("smart_devices", ["/dev/sda -a\n"], "write a device"),
    ("smart_devices", ["/dev/../etc/x"], "write a device"),
    ("smart_temperature", 20, "greater than or equal to 30"),
    ("transcode_size", "100", "size such as"),
    ("transcode_root", "/run/transcode", "gone after a reboot"),
    ("transcode_in", "swap", "disk"),
    ("thumbnails_size", "much", "size such as"),
    ("thumbnails_root", "cache", "absolute path"),
    ("timezone", "Berlin/Europe", "no such time zone"),
    ("packages_extra", ["-o=x"], "package name"),
    ("packages_extra", ["ssh-"], "does not end with -"),
    ("packages_extra", ["a b"], "package name"),
    ("packages_extra", "htop", "valid list"),
    ("ntp_servers", ["a\nRootDistanceMaxSec=9"], "one line"),
    ("sysctl_extra", {"vm.swappiness;reboot": "1"}, "kernel setting's name"),
    ("sysctl_extra", {"../etc.passwd": "1"}, "kernel setting's name"),
    ("sysctl_extra", {"vm.swappiness": "1\nkernel.x = 2"}, "one line"),
    ("journald_max_use", "1 gigabyte", "10m or 1g"),
    ("journald_max_use", "1g\n", "10m or 1g"),
    ("journald_max_use", "١g", "10m or 1g"),
    ("journald_max_retention", "1month\nStorage=none", "one line"),
    ("unattended_reboot_time", "24:00", "time of day"),
    ("unattended_reboot_time", "4:30", "time of day"),
    ("hardening_disabled", ["umaks"], "did you mean umask?"),
    ("hardening_disabled", ["nothing-like-it"], "choose from"),
    ("hardening_optional", ["package-new"], "did you mean package-news?"),
    ("unattended_blacklist", ['"; };'], "without double quotes"),
    ("media_user", "Media", "lower-case"),
    ("media_user", "media\n", "lower-case"),
    ("media_user", "a" * 33, "lower-case"),
    ("media_group", "1media", "starts with a letter"),
    ("media_uid", 999, "greater than or equal to 1000"),
    ("media_gid", 60001, "less than or equal to 60000"),
    ("sshd_port", 0, "greater than or equal to 1"),
    ("sshd_port", 65536, "less than or equal to 65535"),
    ("sshd_permit_root_login", "yes", "'auto', 'no' or 'prohibit-password'"),
    ("sshd_max_auth_tries", 1, "greater than or equal to 2"),
    ("sshd_port_outside", 0, "greater than or equal to 1"),
    ("sshd_allow_users", ["Me Too"], "lower-case"),
    ("sshd_crypto_policy", "weak", "'default' or 'strict'"),
    ("sshd_max_sessions", 2, "greater than or equal to 10"),
    ("sshd_max_startups", "10:30", "start:rate:full"),
    ("sshd_max_startups", "60:30:10", "start:rate:full"),
    ("sshd_client_alive_interval", 3601, "less than or equal to 3600"),
    ("sshd_client_alive_count_max", 0, "greater than or equal to 1"),
    ("sshd_allow_tcp_forwarding", "yes", "'no' or 'local'"),
    ("sshd_banner", " ", "None for no banner"),
    ("sshd_banner", "\x1b[2J", "None for no banner"),
    ("sshd_login_grace_time", 0, "greater than or equal to 10"),
    ("rollback_after", 30, "greater than or equal to 60"),
    ("firewall", "perhaps", "boolean"),
    ("firewall_lan", ["192.168.1.5/24"], "host bits set"),
    ("firewall_lan", ["home"], "192.168.1.0/24"),
    ("firewall_lan", ["fe80::%$(id)/64"], "interface"),
    ("firewall_lan", [], "would close every lan route"),
    ("firewall_ssh_from", ["any"], "address block"),
    ("firewall_outbound", "reject", "deny"),
    ("firewall_outbound_allow", [{"port": 587, "destination": "example.org"}], "address block"),
    ("firewall_outbound_allow", [{"port": "1:2", "protocol": "any"}], "one rule for each"),
    ("fail2ban_ban_time", 59, "greater than or equal to 60"),
    ("fail2ban_longest_ban", 1800, "shorter than fail2ban_ban_time"),
    ("fail2ban_longest_ban", 31536001, "less than or equal to"),
    ("fail2ban_find_time", 5, "greater than or equal to 10"),
    ("fail2ban_max_retry", 1, "greater than or equal to 2"),
    ("fail2ban_ignore", ["nas.local"], "address block such as"),
    ("fail2ban_ignore", ["203.0.113.7 203.0.113.8"], "address block such as"),
    ("fail2ban_ignore", ["::/0"], "fail2ban = False"),
    ("docker_source", "snap", "'docker' or 'distro'"),
    ("docker_version", "1\nPin: x", "one line"),
    ("docker_apt_url", "ftp://example.org", "https://"),
    ("docker_apt_url", "https://example.org/$(id)", "https://"),
    ("docker_apt_url", "https://example.org/a b", "https://"),
    ("docker_apt_url", "https://example.org\n", "https://"),
    ("docker_apt_fingerprint", "9DC8", "40 hexadecimal digits"),
    ("docker_log_max_size", "10", "10m or 1g"),
    ("docker_log_max_file", 0, "greater than or equal to 1"),
    ("docker_nofile_soft", 1023, "greater than or equal to 1024"),
    ("gpu", "matrox", "'intel', 'nvidia' or 'amd'"),
    ("gpu_devices", {"plex": "/dev/nvidia0"}, "write intel, nvidia, amd"),
    ("gpu_devices", {"plex": "0\n"}, "write intel, nvidia, amd"),
    ("gpu_devices", {"plex": "0"}, "set gpu = 'auto'"),
    ("gpu_nvidia_source", "run", "'distro' or 'nvidia'"),
    ("gpu_nvidia_branch", 390, "greater than or equal to 470"),
    ("gpu_nvidia_secure_boot", "ignore", "'refuse' or 'enrolled'"),
    ("gpu_nvidia_apt_url", "ftp://example.org", "https://"),
    ("gpu_nvidia_apt_fingerprint", "3BF863CC", "40 hexadecimal digits"),
    ("gpu_toolkit_apt_url", "https://example.org/a b", "https://"),
    ("gpu_toolkit_apt_fingerprint", "C95B", "40 hexadecimal digits"),
    ("layout", "flat", "'trash' or 'split'"),
    ("data_root", "data", "absolute path"),
    ("data_root", "/data/../etc", "without '..'"),
    ("data_root", "/", "root directory"),
    ("data_root", "//", "root directory"),
    ("data_root", "/my data", "letters, digits"),
    ("data_root", "/data\n", "letters, digits"),
    ("data_root", "/data$(id)", "letters, digits"),
    ("media_libraries", ["../x"], "pattern"),
    ("media_libraries", ["movies\n"], "pattern"),
    ("selection", "all", "'home' or 'none'"),
    ("services", ["Sonarr"], "lower-case letters"),
    ("services_disabled", ["sonarr\n"], "lower-case letters"),
    ("service_overrides", {"Sonarr": {}}, "lower-case letters"),
    ("registry_prefix", "https://registry.example.org", "without https://"),
    ("compose_wait_timeout", 5, "greater than or equal to 10"),
    ("vpn_provider", "pia", "'none', 'nordvpn', 'mullvad'"),
    ("vpn_mode", "netns", "'host' or 'container'"),
    ("vpn_services", ["qbittorrent"], "set vpn_provider"),
    ("vpn_subnet", "172.29.29.1/24", "host bits set"),
    ("vpn_dns", ["dns.example.org"], "address"),
    ("vpn_port_forwarding", 70000, "write off, nat-pmp, or the port"),
    ("vpn_port_forwarding", "auto", "write off, nat-pmp, or the port"),
    ("vpn_port_forwarding", True, "write off, nat-pmp, or the port"),
    ("domain", "localhost", "example.org"),
    ("domain", "Example.org", "lower case"),
    ("domain", "example.org\n", "lower case"),
    ("proxy_tls", "none", "'acme', 'internal' or 'off'"),
    ("acme_email", "me@example.org\n}", "one line"),
    ("storage_disks", [{"device": "/dev/sdb", "at": "/mnt/disk1"}], "/dev/disk/by-id/"),
    ("storage_disks", [{"device": "UUID=8a1b-2c", "at": "/etc/disk1"}], "would hide what the system needs"),
    ("storage_disks", [{"device": "UUID=8a1b-2c", "at": "/mnt/disk1", "filesystem": "ntfs"}], "'ext4', 'xfs'"),
    ("storage_disks", [{"device": "UUID=8a1b-2c", "at": "/mnt/disk1", "format": True}], "name the disk itself"),
    ("storage_disks", [{"device": "UUID=8a1b-2c", "at": "/mnt/disk1", "options": ["nofail"]}], "decides that itself"),
    ("storage_pools", [{"at": "/data", "branches": ["/data/disk1"]}], "lie inside each other"),
    ("storage_pools", [{"at": "/data", "branches": []}], "at least 1 item"),
    ("storage_pools", [{"at": "/data", "branches": ["/mnt/disk1"], "policy": "most"}], "'all', 'epall'"),
    ("storage_shares", [{"kind": "nfs", "source": "//nas/media", "at": "/mnt/nas"}], "server:/directory"),
    ("storage_shares", [{"kind": "smb", "source": "nas:/media", "at": "/mnt/nas"}], "//server/share"),
    ("storage_shares", [{"kind": "nfs", "source": "nas:/m", "at": "/mnt/nas", "options": ["soft"]}], "half-written"),
    ("storage_shares", [{"kind": "smb", "source": "//nas/m", "at": "/mnt/n", "options": ["pass=x"]}], "the vault"),
    ("storage_device_timeout", 1, "greater than or equal to 5"),
    ("plex", "snap", "'none', 'native' or 'docker'"),
    ("plex_version", 'a"b', "without double quotes"),
    ("plex_apt_url", "ftp://repo.plex.tv", "starts with https://"),
    ("plex_apt_key_url", "PlexSign.v2.key", "starts with https://"),
    ("plex_apt_fingerprint", "0B9CFFDE", "40 hexadecimal digits"),
    ("plex_exposure", "localhost", "'wan' or 'lan'"),
    ("plex_name", "", "one line of text"),
    ("plex_transcode_directory", "/tmp/plex", "memory without a limit"),
    ("plex_transcode_directory", "/data/transcode", "lies inside /data"),
    ("plex_libraries", {"Books": {"type": "book", "paths": ["/data/media/books"]}}, "'movie', 'show', 'artist'"),
    ("plex_libraries", {"Films": {"type": "movie", "paths": []}}, "at least 1 item"),
    ("plex_libraries", {"Films": {"type": "movie", "paths": ["/x/y"], "at": "/x"}}, "{type, paths, language}"),
    (
        "plex_libraries",
        {"A": {"type": "movie", "paths": ["/data/media/a"]}, "B": {"type": "movie", "paths": ["/data/media/a"]}},
        "named twice",
    ),
    ("plex_preferences", {"FriendlyName": "nas"}, "set plex_name instead"),
    ("plex_preferences", {"PlexOnlineToken": "x"}, "Plex sets it itself"),
    ("plex_preferences", {"Lan Networks": "x"}, "as Plex names it"),
]


@pytest.mark.parametrize(("key", "value"), ACCEPTED)
def test_a_sound_value_is_taken_as_it_is(key: str, value: Any) -> None:
    assert getattr(read("nas", {key: value}), key) == value


@pytest.mark.parametrize(("key", "value", "mend"), REFUSED)
def test_a_bad_value_is_refused_with_its_key_and_the_mend(key: str, value: Any, mend: str) -> None:
    told = the_problem(**{key: value})
    assert told.startswith(f"nas: {key}")
    assert mend in told


def test_every_constrained_key_has_a_refused_example() -> None:
    """Free texts, switches and the keys with tests of their own below are the only ones without."""
    elsewhere = {
        "admins",
        "firewall_extra",
        "docker_address_pools",
        "downloads_root",
        "stack_root",
        "docker_nofile_hard",
    }
    free = {"docker_insecure_registries", "docker_daemon_extra", "ddns_settings"}
    switches = {key for key, field in Settings.model_fields.items() if field.annotation is bool}
    tested = {key for key, _, _ in REFUSED}
    assert set(Settings.model_fields) - tested - elsewhere - free - switches == set()


def test_an_address_block_is_told_in_its_short_form() -> None:
    assert read("nas", {"firewall_lan": ["FD00:0::/8"]}).firewall_lan == ["fd00::/8"]


def test_a_fingerprint_may_be_written_with_blanks_and_in_lower_case() -> None:
    written = "9dc8 5822 9fc7 dd38 854a  e2d8 8d81 803c 0ebf cd88"
    assert read("nas", {"docker_apt_fingerprint": written}) == Settings()


def test_a_url_loses_the_slash_at_its_end() -> None:
    assert read("nas", {"docker_apt_url": "https://example.org/x/"}).docker_apt_url == "https://example.org/x"


@pytest.mark.parametrize("written", ["/data/", "//data", "/./data", "///data//"])
def test_a_path_is_brought_to_one_form(written: str) -> None:
    assert read("nas", {"data_root": written}).data_root == "/data"


# --- directories

SYSTEM = (
    "/bin /boot /dev /etc /home /lib /opt /proc /root /run /sbin /srv /sys /tmp /usr /var /mnt /media".split()  # noqa: SIM905
)


@pytest.mark.parametrize("key", ["data_root", "downloads_root", "stack_root"])
@pytest.mark.parametrize("path", [*SYSTEM, "/srv/", "//etc", "/proc/1", "/run/media"])
def test_a_directory_of_the_system_is_refused(key: str, path: str) -> None:
    told = the_problem(**{key: path})
    assert told.startswith(f"nas: {key} = ")
    assert "belongs to the system" in told or "gone after a reboot" in told


@pytest.mark.parametrize("parent", ["/srv", "/opt", "/mnt", "/home", "/media"])
def test_a_directory_below_those_for_data_is_taken(parent: str) -> None:
    data = {"data_root": f"{parent}/tank", "downloads_root": f"{parent}/fast", "stack_root": f"{parent}/stack"}
    assert read("nas", data).data_root == f"{parent}/tank"


@pytest.mark.parametrize("stack_root", ["/tank", "/tank/stack", "/tank/media/x"])
def test_a_stack_root_inside_what_services_mount_is_refused(stack_root: str) -> None:
    told = the_problem(data_root="/tank", stack_root=stack_root)
    assert told.startswith("nas: stack_root: ")
    assert "inside /tank, which services mount" in told


@pytest.mark.parametrize("stack_root", ["/tank2", "/opt/tank", "/tan"])
def test_a_stack_root_beside_it_is_taken(stack_root: str) -> None:
    assert read("nas", {"data_root": "/tank", "stack_root": stack_root}).stack_root == stack_root


def test_in_the_split_layout_the_stack_may_not_lie_in_the_media_or_the_downloads() -> None:
    split = {"layout": "split", "data_root": "/hdd", "downloads_root": "/ssd/dl"}
    assert read("nas", {**split, "stack_root": "/hdd/stack"}).stack_root == "/hdd/stack"
    assert "inside /hdd/media" in the_problem(**split, stack_root="/hdd/media/stack")
    assert "inside /ssd/dl" in the_problem(**split, stack_root="/ssd/dl/stack")


def test_downloads_may_not_lie_in_the_media_of_the_split_layout_only() -> None:
    inside = {"downloads_root": "/data/media/downloads"}
    assert "downloads_root: lies inside" in the_problem(layout="split", **inside)
    assert read("nas", {"layout": "trash", **inside}).layout == "trash"


def test_a_hard_limit_below_the_soft_one_is_refused() -> None:
    assert "docker_nofile_hard: is smaller" in the_problem(docker_nofile_soft=4096, docker_nofile_hard=2048)
    assert read("nas", {"docker_nofile_soft": 2048, "docker_nofile_hard": 2048}).docker_nofile_hard == 2048


# --- rules and pools


@pytest.mark.parametrize(
    "rule",
    [
        {"port": 51820, "protocol": "udp"},
        {"port": "6881:6889", "protocol": "tcp", "source": "any", "comment": "torrents"},
        {"port": "53", "protocol": "any", "source": "192.168.1.0/24"},
    ],
)
def test_a_further_rule_is_taken_and_its_port_becomes_text(rule: dict[str, Any]) -> None:
    (found,) = read("nas", {"firewall_extra": [rule]}).firewall_extra
    assert found == {**rule, "port": str(rule["port"])}


@pytest.mark.parametrize(
    ("rule", "where", "mend"),
    [
        ({}, "0.port", "is missing; write {port, protocol, source, comment}"),
        ({"protocol": "tcp"}, "0.port", "is missing"),
        ({"prot": "tcp", "port": 1}, "0.prot", "no such key; write {port, protocol, source, comment}"),
        ({"port": 0}, "0.port", "such as 51820"),
        ({"port": True}, "0.port", "such as 51820"),
        ({"port": None}, "0.port", "such as 51820"),
        ({"port": "22\n"}, "0.port", "such as 51820"),
        ({"port": "22;id"}, "0.port", "such as 51820"),
        ({"port": 65536}, "0.port", "from 1 to 65535"),
        ({"port": "9:8"}, "0.port", "smaller to its larger"),
        ({"port": "6881:6889", "protocol": "any"}, "0", "one rule for each"),
        ({"port": 1, "protocol": "icmp"}, "0.protocol", "'tcp', 'udp' or 'any'"),
        ({"port": 1, "source": "home"}, "0.source", "address block"),
        ({"port": 1, "comment": "it's"}, "0.comment", "apostrophe"),
        ({"port": 1, "comment": "a\nb"}, "0.comment", "one line"),
        ("22/tcp", "0", "dictionary"),
    ],
)
def test_a_bad_further_rule_is_refused_with_its_place_and_the_mend(rule: Any, where: str, mend: str) -> None:
    told = the_problem(firewall_extra=[rule])
    assert told.startswith(f"nas: firewall_extra.{where}")
    assert mend in told


@pytest.mark.parametrize(
    ("pool", "where", "mend"),
    [
        ({"base": "172.30.0.0/16"}, "0.size", "is missing; write {base, size}"),
        ({"size": 24}, "0.base", "is missing; write {base, size}"),
        ({"base": "172.30.0.1/16", "size": 24}, "0.base", "host bits"),
        ({"base": "172.30.0.0/16", "size": 8}, "0", "16 to 30 for 172.30.0.0/16"),
        ({"base": "172.30.0.0/16", "size": 31}, "0", "16 to 30"),
        ({"base": "fd00::/48", "size": 24}, "0", "48 to 126"),
        ({"base": "172.30.0.0/16", "size": "big"}, "0.size", "integer"),
        ({"base": "172.30.0.0/16", "size": 24, "x": 1}, "0.x", "no such key; write {base, size}"),
    ],
)
def test_a_bad_address_pool_is_refused_with_its_place_and_the_mend(pool: Any, where: str, mend: str) -> None:
    told = the_problem(docker_address_pools=[pool])
    assert told.startswith(f"nas: docker_address_pools.{where}")
    assert mend in told


# --- administrators


def test_a_key_line_is_taken() -> None:
    assert read("nas", {"admins": {"me": [f"  {KEY}  ".strip()]}}).admins == {"me": [KEY]}


def test_a_key_file_is_read_and_its_comments_left_out(tmp_path: Path) -> None:
    other = public_key(payload=b"\1" * 32)
    path = tmp_path / "keys.pub"
    path.write_text(f"# mine\n{KEY}\n\n{other}\n")
    assert read("nas", {"admins": {"me": [str(path)]}}).admins == {"me": [KEY, other]}


def test_a_home_sign_is_followed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "key.pub").write_text(KEY)
    assert read("nas", {"admins": {"me": ["~/key.pub"]}}).admins == {"me": [KEY]}


@pytest.mark.parametrize(
    ("entry", "mend"),
    [
        ("~/nothing.pub", "No such file or directory"),
        ("~nobody-of-that-name/key.pub", "give a public key or the path of one"),
        ("/", "not a regular file"),
        ("/dev/zero", "not a regular file"),
        ("a\0b", "give a public key"),
        ("-----BEGIN OPENSSH PRIVATE KEY-----", "this is a private key"),
        ("ssh-dss AAAAB3NzaC1kc3M= old", "give a public key"),
        ("ssh-ed25519 AAAA me", "damaged"),
        (KEY[:40], "damaged"),
        (KEY.replace("ssh-ed25519", "ssh-rsa"), "damaged"),
        (f"{KEY}\nssh-rsa garbage", "damaged"),
    ],
)
def test_what_is_no_whole_public_key_is_refused(entry: str, mend: str) -> None:
    told = the_problem(admins={"me": [entry]})
    assert told.startswith("nas: admins.me")
    assert mend in told


def test_a_private_key_file_is_refused_and_not_shown(tmp_path: Path) -> None:
    path = tmp_path / "id_ed25519"
    path.write_text("-----BEGIN OPENSSH PRIVATE KEY-----\nc2VjcmV0\n-----END OPENSSH PRIVATE KEY-----\n")
    told = the_problem(admins={"me": [str(path)]})
    assert "Use the .pub file" in told
    assert "c2VjcmV0" not in told


@pytest.mark.parametrize("cut", range(12, len(KEY.split()[1]), 7))
def test_a_key_cut_short_anywhere_is_refused_since_it_would_lock_its_owner_out(cut: int) -> None:
    kind, blob, _ = KEY.split()
    assert "damaged" in the_problem(admins={"me": [f"{kind} {blob[:cut]}"]})


@pytest.mark.parametrize("name", ["root", "media", "Me", "a b", ""])
def test_an_account_that_cannot_be_an_administrator_is_refused(name: str) -> None:
    assert "admins" in the_problem(admins={name: [KEY]})


def test_a_password_login_without_any_administrators_key_is_refused_as_a_lockout() -> None:
    access = {"ssh_password": "x"}
    for data in (access, {**access, "admins": {"me": []}}):
        with pytest.raises(ConfigError, match="nobody could log in again"):
            check_all({"nas": data}, CATALOG)
    for data in ({**access, "admins": {"me": [KEY]}}, {**access, "ssh_key": "~/.ssh/id"}):
        assert set(check_all({"nas": data}, CATALOG)) == {"nas"}


# --- fuzz

PLAIN = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=True),
    st.text(st.characters(), max_size=12),
    st.text(string.printable, max_size=12),
    st.sampled_from(["/", "~", "~x", "any", "10.0.0.0/8", "::/0", "%", "\0", "\n", "22", "tcp", KEY, "/dev/zero"]),
)
WORDS = st.sampled_from(["port", "protocol", "source", "comment", "base", "size", "me", "sonarr", "vm.swappiness"])
JSON_LIKE = st.recursive(
    PLAIN,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS | st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from(sorted(Settings.model_fields)) | st.text(max_size=8)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(KEYS, JSON_LIKE, max_size=4))
@example({"admins": {"me": ["~nobody-here/x"]}})
@example({"admins": {"me": ["\ud800"]}})
@example({"firewall_lan": ["\ud800"]})
@example({"firewall_extra": [{"port": [1]}]})
@example({"firewall_extra": [{"port": "1" * 5000}]})
@example({"firewall_extra": [{"port": 10**5000}]})
@example({"docker_address_pools": [{"base": "::/0", "size": 10**30}]})
@example({"timezone": "\0"})
@example({"sshd_port": float("inf")})
def test_any_data_becomes_settings_or_a_configuration_error(data: dict[str, Any]) -> None:
    found: tuple[ConfigProblem, ...] = ()
    try:
        read("nas", data)
    except ConfigError as error:
        found = error.problems
    else:
        assert set(own_keys(data)) <= set(Settings.model_fields)
    for problem in found:
        assert problem.host == "nas"
        assert problem.mend
        assert len(str(problem)) < 1000


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.dictionaries(
        st.sampled_from(["service_overrides", "services", "services_disabled", "ddns_settings", "domain"]),
        st.dictionaries(st.sampled_from(["sonarr", "caddy", "nothing"]), JSON_LIKE, max_size=3)
        | st.lists(st.sampled_from(["sonarr", "plex", "nothing"]) | JSON_LIKE, max_size=3),
        max_size=3,
    )
)
def test_any_choice_of_services_becomes_settings_or_a_configuration_error(data: dict[str, Any]) -> None:
    try:
        check_all({"nas": data}, CATALOG)
    except ConfigError as error:
        told = str(error)
        assert "nas: " in told  # noqa: PT017 - not raising is as good


# --- administrators in their long form


@pytest.mark.parametrize(
    ("account", "key", "mend"),
    [
        ({"keyz": [KEY]}, "admins.me.keyz", "{keys, groups, expires, sudo}"),
        ({"keys": ["/no/such.pub"]}, "admins.me.keys", "ssh-keygen"),
        ({"expires": "soon"}, "admins.me.expires", "2027-01-31"),
        ({"groups": ["Docker"]}, "admins.me.groups.0", "lower-case"),
        ({"groups": ["root"]}, "admins.me.groups", "use sudo"),
        ({"sudo": "perhaps"}, "admins.me.sudo", "boolean"),
        (5, "admins.me", "dictionary"),
    ],
)
def test_a_wrong_account_is_told_under_the_key_the_user_wrote(account: Any, key: str, mend: str) -> None:
    told = the_problem(admins={"me": account})
    assert told.startswith(f"nas: {key} =")
    assert mend in told


def test_both_forms_of_an_administrator_mean_the_same() -> None:
    short, long = (read("nas", {"admins": {"me": form}}).administrators["me"] for form in ([KEY], {"keys": [KEY]}))
    assert (short.keys, short.groups, short.expires, short.sudo) == (long.keys, long.groups, long.expires, long.sudo)
    assert read("nas", {"admins": {"me": {"expires": "2027-01-31"}}}).administrators["me"].expires == date(
        2027, 1, 31
    )


def test_an_account_that_the_run_comes_in_as_keeps_login_and_sudo() -> None:
    for account, key in (({"sudo": False}, "admins.me.sudo"), ({"expires": "2020-01-01"}, "admins.me.expires")):
        data = {"admins": {"me": {"keys": [KEY], **account}}}
        with pytest.raises(ConfigError, match=key):
            check_all({"nas": {**data, "ssh_user": "me"}}, {})
        assert check_all({"nas": {**data, "ssh_user": "other"}}, {})


def test_dockers_nftables_backend_is_bad_input() -> None:
    assert "DOCKER-USER" in the_problem(docker_daemon_extra={"firewall-backend": "nftables"})
    assert read("nas", {"docker_daemon_extra": {"firewall-backend": "iptables"}})
