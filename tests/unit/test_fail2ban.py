"""Fail2Ban's jails and filters, tried with the real programs: who is banned, who never, and what a ban closes.

The programs come from the lab's cache, where lab/install unpacks them; nothing of this machine is read or banned.
"""

from __future__ import annotations

import configparser
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from lab import paths
from mediahost.catalog import load_catalog
from mediahost.config import Settings, read
from mediahost.render import fail2ban
from mediahost.render.fail2ban import Jail
from mediahost.resources import MARK, File
from mediahost.stack import Mount, Stack, StackService, build_stack

CATALOG = load_catalog()
SAMPLES = Path(__file__).parent / "fail2ban"
UNPACKED = paths.cache() / "fail2ban"
SAMPLE_TIME = 1795255200  # 2026-11-21 10:00:00 UTC, in every sample
ATTACKER4, ATTACKER6, HOME4, HOME6 = "203.0.113.9", "2001:db8::9", "192.168.1.5", "fd00::5"
# Services that are not in the catalogue yet, with the directory their image keeps its data in.
COMING = {
    "authelia": "/config",
    "jellyfin": "/config",
    "nginx-proxy-manager": "/data",
    "traefik": "/logs",
    "vaultwarden": "/data",
}
# Generous: the machine may be shared and slow.
PATIENCE = 60.0


def given_settings(**data: Any) -> Settings:
    return read("nas", data)


def given_stack(settings: Settings) -> Stack:
    """The home selection and a service of each further kind that has a jail."""
    stack = build_stack(settings, CATALOG, "nas", lambda name, kind: "secret")
    model = stack.services[0]
    coming = tuple(
        replace(model, name=name, mounts=(Mount(f"{settings.stack_root}/config/{name}", target),))
        for name, target in COMING.items()
    )
    return replace(stack, services=(*stack.services, *coming))


def named(settings: Settings) -> dict[str, Jail]:
    return {jail.name: jail for jail in fail2ban.jails(given_stack(settings), settings)}


def environment() -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "PYTHONPATH": str(UNPACKED / "usr/lib/python3/dist-packages"), "TZ": "UTC"}


def program(name: str) -> list[str]:
    path = UNPACKED / "usr/bin" / name
    if not path.exists():
        pytest.fail(f"{path} is absent, so no filter was tried: run lab/install")
    # The distribution's Python: it is the one that its packages are made for.
    return ["/usr/bin/python3", str(path)]


@dataclass
class Scratch:
    """A copy of the distribution's /etc/fail2ban with our files in it, below `root`."""

    root: Path
    settings: Settings = field(init=False)

    def __post_init__(self) -> None:
        (self.root / "var/log").mkdir(parents=True)
        # The package makes it on installation; recidive must find it at the first start.
        (self.root / "var/log/fail2ban.log").touch()
        (self.root / "etc").mkdir()
        subprocess.run(["cp", "-r", UNPACKED / "etc/fail2ban", self.configuration], check=True)
        self.settings = given_settings(stack_root=str(self.root / "stack"))

    @property
    def configuration(self) -> Path:
        return self.root / "etc/fail2ban"

    def write(self, files: tuple[File, ...]) -> None:
        for file in files:
            content = file.content.decode()
            for place in (fail2ban.ETC, fail2ban.SERVER_LOG):
                content = content.replace(f" {place}", f" {self.root}{place}")
            path = self.root / file.path.removeprefix("/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)

    def client(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [*program("fail2ban-client"), "-c", str(self.configuration), *self.sockets, *arguments]
        return subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)

    @property
    def sockets(self) -> list[str]:
        return ["-s", str(self.root / "sock"), "-p", str(self.root / "pid")]


@pytest.fixture
def scratch(tmp_path: Path) -> Scratch:
    program("fail2ban-client")
    return Scratch(tmp_path)


# --- the filters

FILTERS = {jail.filter_name: jail.filter for jail in named(given_settings()).values()}


def sample(name: str) -> list[tuple[str, str]]:
    """(address, or "-" for none; log line) pairs."""
    lines = (SAMPLES / f"{name}.log").read_text().splitlines()
    pairs = [line.partition(" ") for line in lines if not line.startswith("#")]
    return [(address, line) for address, _, line in pairs]


def found(scratch: Scratch, filter_: str, lines: list[str]) -> list[tuple[str, float, str]]:
    """(address, time, line) of each failure that the real fail2ban-regex sees in `lines`."""
    log = scratch.root / "sample.log"
    log.write_text("\n".join(lines) + "\n")
    command = [*program("fail2ban-regex"), "-c", str(scratch.configuration), "-o", "<ip>\t<time>\t<msg>"]
    done = subprocess.run(
        [*command, str(log), filter_], capture_output=True, text=True, env=environment(), check=True
    )
    rows = [line.split("\t", 2) for line in done.stdout.splitlines()]
    return [(address, float(moment), line) for address, moment, line in rows]


@pytest.fixture
def filters(scratch: Scratch) -> Scratch:
    scratch.write(fail2ban.files(scratch.settings, named(scratch.settings).values()))
    return scratch


def test_every_filter_has_a_sample_with_both_families_and_decoys_and_every_sample_a_filter() -> None:
    names = {name.removeprefix("mediahost-") for name in FILTERS}
    shipped = {path.stem.removeprefix("mediahost-") for path in (fail2ban.TEMPLATES / "filter.d").iterdir()}
    assert names == {path.stem for path in SAMPLES.glob("*.log")} == shipped | {"recidive"}
    for name in names:
        assert {ATTACKER4, ATTACKER6, "-"} == {address for address, _ in sample(name)}, name


@pytest.mark.parametrize("name", sorted(FILTERS))
def test_a_filter_finds_exactly_the_attacks_and_the_addresses_they_came_from(filters: Scratch, name: str) -> None:
    pairs = sample(name.removeprefix("mediahost-"))
    seen = found(filters, FILTERS[name], [line for _, line in pairs])
    assert [(address, line) for address, _, line in seen] == [pair for pair in pairs if pair[0] != "-"]


@pytest.mark.parametrize("name", sorted(set(FILTERS) - {"mediahost-sshd"}))
def test_a_filter_reads_the_time_that_the_line_says(filters: Scratch, name: str) -> None:
    # sshd's time comes from the journal.
    pairs = sample(name.removeprefix("mediahost-"))
    seen = found(filters, FILTERS[name], [line for _, line in pairs])
    assert {int(moment) for _, moment, _ in seen} == {SAMPLE_TIME}


# --- which jails


def test_a_jail_reads_the_place_on_the_host_that_the_container_logs_to() -> None:
    jails = named(given_settings(stack_root="/opt/media"))
    assert jails["sonarr"].log == "/opt/media/config/sonarr/logs/sonarr.txt"
    assert jails["caddy"].log == "/opt/media/config/caddy/data/logs/access.log"
    assert jails["jellyfin"].log == "/opt/media/config/jellyfin/log/log_*.log"


def test_a_service_that_is_not_enabled_or_keeps_its_log_inside_has_no_jail() -> None:
    settings = given_settings(services_disabled=["caddy"])
    stack = given_stack(settings)
    assert "caddy" not in {jail.name for jail in fail2ban.jails(stack, settings)}

    def inside(service: StackService) -> StackService:
        return replace(service, mounts=tuple(mount for mount in service.mounts if mount.target != "/config"))

    hidden = replace(stack, services=tuple(map(inside, stack.services)))
    left = {jail.name for jail in fail2ban.jails(hidden, settings)}
    assert left == {"sshd", "recidive", "nginx-proxy-manager", "traefik", "vaultwarden"}


def test_a_log_of_requests_takes_more_failures_than_a_log_of_logins() -> None:
    jails = named(given_settings(fail2ban_max_retry=3))
    assert jails["sonarr"].max_retry == jails["sshd"].max_retry == 3
    assert {jails[name].max_retry for name in ("caddy", "traefik", "nginx-proxy-manager")} == {12}


# --- who is never banned


def test_loopback_home_network_containers_control_host_and_the_user_s_own_are_ignored() -> None:
    settings = given_settings(
        firewall_lan=["192.168.1.0/24", "fd00::/8"],
        docker_address_pools=[{"base": "10.99.0.0/16", "size": 24}],
        fail2ban_ignore=["198.51.100.0/24"],
    )
    assert fail2ban.ignored(settings, ["203.0.113.77", "fe80::1%eth0"]) == (
        "127.0.0.0/8",
        "::1",
        "192.168.1.0/24",
        "fd00::/8",
        "10.99.0.0/16",
        "172.16.0.0/12",
        "203.0.113.77",
        "fe80::1",
        "198.51.100.0/24",
    )


def test_an_address_that_sshd_saw_through_ipv6_is_ignored_as_the_ipv4_address_it_is() -> None:
    assert "203.0.113.77" in fail2ban.ignored(given_settings(), ["::ffff:203.0.113.77"])


@pytest.mark.parametrize("wrong", ["nas.local", "1.2.3", "1.2.3.4\nbantime = 1", ""])
def test_what_is_no_address_is_refused_and_never_written(wrong: str) -> None:
    with pytest.raises(ValueError, match="does not appear to be"):
        fail2ban.ignored(given_settings(), [wrong])


HOME = {"firewall_lan": ["192.168.1.0/24"]}


@pytest.mark.parametrize(
    ("recorded", "client", "expected"),
    [
        ("", "203.0.113.7", ["203.0.113.7"]),
        ("203.0.113.7\n198.51.100.1\n", "203.0.113.7", ["203.0.113.7", "198.51.100.1"]),
        ("203.0.113.7\n", "::ffff:198.51.100.1", ["203.0.113.7", "198.51.100.1"]),
        ("", "192.168.1.5", []),
        ("", "172.30.0.9", []),
        ("", "", []),
        ("not an address\n203.0.113.7\n", "", ["203.0.113.7"]),
        (
            "".join(f"203.0.113.{n}\n" for n in range(1, 6)),
            "2001:db8::7",
            [*(f"203.0.113.{n}" for n in (2, 3, 4, 5)), "2001:db8::7"],
        ),
    ],
)
def test_the_addresses_that_runs_came_from_are_remembered_and_a_known_one_changes_nothing(
    recorded: str, client: str, expected: list[str]
) -> None:
    settings = given_settings(**HOME)
    found = fail2ban.control_addresses(settings, recorded, client)
    assert list(found) == expected
    again = fail2ban.control_record(found).content.decode()
    assert fail2ban.control_addresses(settings, again, client) == found


# --- the files


def test_every_file_carries_our_mark_in_its_first_line_and_has_a_place_of_its_own() -> None:
    settings = given_settings()
    files = fail2ban.files(settings, named(settings).values())
    for file in files:
        assert MARK in file.content.decode().splitlines()[0], file.path
        assert file.content.endswith(b"\n"), file.path
    assert len({file.path for file in files}) == len(files)


def test_every_filter_is_there_whichever_jails_there_are_and_the_files_are_the_same_ones() -> None:
    settings = given_settings()
    paths = {file.path for file in fail2ban.files(settings, named(settings).values())}
    assert paths == {file.path for file in fail2ban.files(settings, ())}
    for name in FILTERS:
        assert name == "recidive" or f"{fail2ban.ETC}/filter.d/{name}.conf" in paths


def test_a_ban_is_remembered_until_after_the_longest_one_so_that_the_next_can_be_longer() -> None:
    settings = given_settings(fail2ban_longest_ban=5000)
    content = {file.path: file.content.decode() for file in fail2ban.files(settings, named(settings).values())}
    server = configparser.ConfigParser()
    server.read_string(content[fail2ban.SERVER_PATH])
    assert server.getint("Definition", "dbpurgeage") > settings.fail2ban_longest_ban
    jails = configparser.ConfigParser()
    jails.read_string(content[fail2ban.JAIL_PATH])
    assert jails.get("DEFAULT", "bantime.increment") == "true"
    assert jails.getint("DEFAULT", "bantime.maxtime") == settings.fail2ban_longest_ban
    assert jails.getint("recidive", "bantime") <= settings.fail2ban_longest_ban


def test_no_command_of_the_action_is_cut_off_at_a_semicolon_that_starts_a_comment() -> None:
    action = (fail2ban.TEMPLATES / "action.d/mediahost-prerouting.conf").read_text()
    commands = [line for line in action.splitlines() if line.startswith("action")]
    assert len([line for line in commands if "nft " in line]) == 6
    assert not [line for line in commands if " ;" in line]


# --- the real client and server


def stream(scratch: Scratch) -> list[list[Any]]:
    """The commands that the configuration becomes."""
    done = scratch.client("-d")
    assert done.returncode == 0, done.stderr
    literal = (
        "import ast, json, sys; print(json.dumps([ast.literal_eval(line) for line in sys.stdin if line[0] == '[']))"
    )
    parsed = subprocess.run(
        ["/usr/bin/python3", "-c", literal], input=done.stdout, capture_output=True, text=True, check=True
    )
    commands: list[list[Any]] = json.loads(parsed.stdout)
    return commands


def test_the_real_client_accepts_the_whole_configuration_and_refuses_a_broken_one(scratch: Scratch) -> None:
    jails = tuple(named(scratch.settings).values())
    scratch.write(fail2ban.files(scratch.settings, jails))
    done = scratch.client("-t")
    assert (done.returncode, "ERROR" in done.stderr) == (0, False), done.stderr
    broken = (*jails, replace(jails[0], name="broken", filter="no-such-filter"))
    scratch.write(fail2ban.files(scratch.settings, broken))
    assert scratch.client("-t").returncode != 0


def test_sshd_s_jail_reads_the_journal_of_both_its_process_names_whatever_the_distribution_says(
    scratch: Scratch,
) -> None:
    # What Debian 13 ships.
    (scratch.configuration / "jail.d/defaults-debian.conf").write_text(
        "[DEFAULT]\nbanaction = nftables\nbackend = systemd\n"
        "[sshd]\njournalmatch = _SYSTEMD_UNIT=ssh.service + _COMM=sshd\nenabled = true\n"
    )
    scratch.write(fail2ban.files(scratch.settings, named(scratch.settings).values()))
    commands = stream(scratch)
    assert ["add", "sshd", "systemd"] in commands
    assert ["add", "sonarr", "auto"] in commands
    matches = [command for command in commands if command[:3] == ["set", "sshd", "addjournalmatch"]]
    assert matches == [["set", "sshd", "addjournalmatch", *named(scratch.settings)["sshd"].journal_match.split()]]
    assert "_COMM=sshd-session" in matches[0]
    actions = {(command[1], command[3]) for command in commands if command[2:3] == ["addaction"]}
    assert actions == {(name, fail2ban.ACTION) for name in named(scratch.settings)}


@dataclass
class Server:
    """A real fail2ban-server on `scratch` whose `nft` only writes down what it is told."""

    scratch: Scratch
    nft_log: Path
    launch: Callable[[], subprocess.Popen[str]]
    process: subprocess.Popen[str] = field(init=False)

    def start(self) -> None:
        """Start it, and wait for its jails."""
        before = self.starts()
        self.process = self.launch()
        self.wait(lambda: self.process.poll() is not None or self.starts() >= before + 3, "start of the jails")
        assert self.process.poll() is None, (self.scratch.root / "output").read_text()

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def starts(self) -> int:
        """How many chains were made for its jails so far."""
        made = [command for command in self.nft() if command.startswith("add table")]
        return len([command for command in made if "delete chain" not in command])

    def nft(self) -> list[str]:
        return self.nft_log.read_text().splitlines()

    def wait(self, condition: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            if time.monotonic() > deadline:
                log = (self.scratch.root / "var/log/fail2ban.log").read_text()
                pytest.fail(f"{what}: did not happen\n{self.nft_log.read_text()}\n{log[-3000:]}")
            time.sleep(0.1)

    def wait_for_ban(self, jail: str, address: str, count: int = 1) -> None:
        command = f"add element inet {fail2ban.TABLE} {element(jail, address)}"
        self.wait(lambda: self.nft().count(command) >= count, f"ban {count} of {address} in {jail}")

    def touched(self, address: str) -> bool:
        return any(f" {address} " in command for command in self.nft())


def element(jail: str, address: str) -> str:
    return f"{jail}-{'inet6' if ':' in address else 'inet4'} {{ {address} }}"


def arr_failures(path: Path, *addresses: str, times: int = 5) -> None:
    moment = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S}"
    with path.open("a") as log:
        for address in addresses:
            log.write(f"{moment}.0|Warn|Auth|Auth-Failure ip {address} username 'x'\n" * times)


def jellyfin_failures(path: Path, address: str) -> None:
    user_manager = "Jellyfin.Server.Implementations.Users.UserManager"
    line = f'{user_manager}: Authentication request for "x" has been denied (IP: "{address}").'
    path.write_text(f"[{datetime.now(UTC):%Y-%m-%d %H:%M:%S}.000 +00:00] [INF] [12] {line}\n" * 5)


@pytest.fixture
def server(scratch: Scratch) -> Iterator[Server]:
    """With the jails sonarr, jellyfin and recidive; sshd's would read this machine's journal."""
    nft_log = scratch.root / "nft.log"
    nft_log.touch()
    nft = scratch.root / "bin/nft"
    nft.parent.mkdir()
    # Prints a chain as nft does, for the action's check; fails while the ruleset is flushed.
    nft.write_text(
        f"""#!/bin/sh
printf '%s\\n' "$*" >>{nft_log}
case $* in "add table"*) rm -f {scratch.root}/flushed ;; esac
[ ! -e {scratch.root}/flushed ] || exit 1
[ "$1" != list ] || printf 'ip6 saddr @%s-inet6 counter drop\\n' "$5"
"""
    )
    nft.chmod(0o755)
    jails = named(scratch.settings)
    for path in (jails["sonarr"].log, jails["jellyfin"].log.replace("*", "20261121")):
        Path(path).parent.mkdir(parents=True)
        Path(path).touch()
    chosen = [jails[name] for name in ("sonarr", "jellyfin", "recidive")]
    scratch.write(fail2ban.files(scratch.settings, chosen))
    (scratch.configuration / "jail.d/defaults-debian.conf").unlink()
    database = scratch.configuration / "fail2ban.d/scratch.local"
    database.write_text(f"[Definition]\ndbfile = {scratch.root}/bans.sqlite3\n")
    command = [*program("fail2ban-server"), "-c", str(scratch.configuration), *scratch.sockets, "-f", "start"]
    search = {"PATH": f"{nft.parent}:{os.environ['PATH']}"}

    def launch() -> subprocess.Popen[str]:
        with (scratch.root / "output").open("w") as output:
            return subprocess.Popen(command, env=environment() | search, stdout=output, stderr=output, text=True)

    running = Server(scratch, nft_log, launch)
    try:
        running.start()
        yield running
    finally:
        running.stop()


def test_a_ban_drops_all_traffic_at_prerouting_before_docker_s_nat_for_both_families(server: Server) -> None:
    starts = [command for command in server.nft() if command.startswith("add table")]
    assert len(starts) == 3
    for jail in ("sonarr", "jellyfin", "recidive"):
        (start,) = [command for command in starts if f"add chain inet {fail2ban.TABLE} {jail} " in command]
        assert "{ type filter hook prerouting priority -150; policy accept; }" in start
        assert f"add rule inet {fail2ban.TABLE} {jail} ip saddr @{jail}-inet4 counter drop" in start
        assert f"add rule inet {fail2ban.TABLE} {jail} ip6 saddr @{jail}-inet6 counter drop" in start
        # Neither a protocol nor a port narrows it.
        assert not [word for word in ("tcp", "udp", "dport", "l4proto") if word in start]


def test_an_attacker_is_banned_and_the_home_network_the_containers_and_loopback_are_not(server: Server) -> None:
    log = Path(named(server.scratch.settings)["sonarr"].log)
    spared = (HOME4, HOME6, "127.0.0.1", "172.30.0.4")
    # These first: once the attackers are banned, their lines have been read.
    arr_failures(log, *spared, times=50)
    arr_failures(log, "198.51.100.7", times=server.scratch.settings.fail2ban_max_retry - 1)
    arr_failures(log, ATTACKER4, ATTACKER6)
    server.wait_for_ban("sonarr", ATTACKER4)
    server.wait_for_ban("sonarr", ATTACKER6)
    for address in (*spared, "198.51.100.7"):
        assert not server.touched(address), address
    # The control: those four failures were counted, and a fifth is one too many.
    arr_failures(log, "198.51.100.7", times=1)
    server.wait_for_ban("sonarr", "198.51.100.7")


def test_an_unban_opens_and_the_third_ban_in_a_day_is_followed_by_a_long_one(server: Server) -> None:
    log = Path(named(server.scratch.settings)["sonarr"].log)
    unban = f"delete element inet {fail2ban.TABLE} {element('sonarr', ATTACKER4)}"
    arr_failures(log, ATTACKER6)
    for count in (1, 2, 3):
        arr_failures(log, ATTACKER4)
        server.wait_for_ban("sonarr", ATTACKER4, count)
        assert server.scratch.client("set", "sonarr", "unbanip", ATTACKER4).returncode == 0
        assert len([command for command in server.nft() if command.endswith(unban)]) == count
    server.wait_for_ban("recidive", ATTACKER4)
    listed = server.scratch.client("get", "recidive", "banip", "--with-time").stdout
    # Whoever was banned once is not there.
    assert [line.split()[0] for line in listed.splitlines()] == [ATTACKER4]
    assert f"+ {7 * 86400} =" in listed


def test_a_second_ban_is_twice_as_long_as_the_first(server: Server) -> None:
    log = Path(named(server.scratch.settings)["sonarr"].log)
    # Long enough for a slow machine to see the failures while they count, short enough to wait for.
    server.scratch.client("set", "sonarr", "bantime", "5")
    unban = f"delete element inet {fail2ban.TABLE} {element('sonarr', ATTACKER4)}"
    arr_failures(log, ATTACKER4)
    server.wait_for_ban("sonarr", ATTACKER4)
    server.wait(lambda: any(command.endswith(unban) for command in server.nft()), "end of the first ban")
    arr_failures(log, ATTACKER4)
    server.wait_for_ban("sonarr", ATTACKER4, 2)
    said = (server.scratch.root / "var/log/fail2ban.log").read_text()
    # 1.0 writes 10s, other versions 0:00:10.
    assert re.search(rf"\[sonarr\] Increase Ban {ATTACKER4} \(2 # (10s|0:00:10) ", said)


def test_a_reload_finds_the_log_that_began_after_midnight_and_keeps_the_bans(server: Server) -> None:
    arr_failures(Path(named(server.scratch.settings)["sonarr"].log), ATTACKER6)
    server.wait_for_ban("sonarr", ATTACKER6)
    pattern = named(server.scratch.settings)["jellyfin"].log
    jellyfin_failures(Path(pattern.replace("*", "20261122")), ATTACKER4)
    assert "20261122" not in server.scratch.client("status", "jellyfin").stdout
    assert server.scratch.client("reload").returncode == 0
    server.wait_for_ban("jellyfin", ATTACKER4)
    assert ATTACKER6 in server.scratch.client("status", "sonarr").stdout
    assert not [
        c for c in server.nft() if f"delete element inet {fail2ban.TABLE} {element('sonarr', ATTACKER6)}" in c
    ]


def test_a_restart_brings_the_bans_back_but_not_that_of_an_address_that_is_never_banned_any_more(
    server: Server,
) -> None:
    jails = named(server.scratch.settings)
    arr_failures(Path(jails["sonarr"].log), ATTACKER4, ATTACKER6)
    for address in (ATTACKER4, ATTACKER6):
        server.wait_for_ban("sonarr", address)
    server.stop()
    chosen = [jails[name] for name in ("sonarr", "jellyfin", "recidive")]
    server.scratch.write(fail2ban.files(server.scratch.settings, chosen, [ATTACKER4]))
    server.start()
    server.wait_for_ban("sonarr", ATTACKER6, 2)
    listed = server.scratch.client("get", "sonarr", "banip").stdout
    assert (ATTACKER6 in listed, ATTACKER4 in listed) == (True, False)


def test_a_log_that_is_gone_does_not_keep_fail2ban_from_loading_the_other_jails(server: Server) -> None:
    # The control: without the anchor it refuses.
    Path(named(server.scratch.settings)["jellyfin"].log.replace("*", "20261121")).unlink()
    assert server.scratch.client("reload").returncode == 0
    (server.scratch.root / fail2ban.ANCHOR_PATH.removeprefix("/")).unlink()
    assert server.scratch.client("reload").returncode != 0


def test_a_service_that_has_written_no_log_yet_has_its_jail_and_is_heard_after_a_reload(scratch: Scratch) -> None:
    jails = tuple(named(scratch.settings).values())
    scratch.write(fail2ban.files(scratch.settings, jails))
    log = Path(named(scratch.settings)["sonarr"].log)
    assert not log.exists()
    commands = stream(scratch)
    anchor = str(scratch.root) + fail2ban.ANCHOR_PATH
    assert [c[3] for c in commands if c[:3] == ["set", "sonarr", "addlogpath"]] == [anchor]
    log.parent.mkdir(parents=True)
    log.touch()
    assert [c[3] for c in stream(scratch) if c[:3] == ["set", "sonarr", "addlogpath"]] == [str(log), anchor]


def test_after_somebody_flushed_the_ruleset_the_next_ban_makes_the_chain_anew(server: Server) -> None:
    log = Path(named(server.scratch.settings)["sonarr"].log)
    arr_failures(log, ATTACKER6)
    server.wait_for_ban("sonarr", ATTACKER6)
    (server.scratch.root / "flushed").touch()
    arr_failures(log, ATTACKER4)
    # The first try fails, and the second comes after the chain.
    server.wait_for_ban("sonarr", ATTACKER4, 2)
    first, second = [n for n, command in enumerate(server.nft()) if element("sonarr", ATTACKER4) in command]
    between = server.nft()[first:second]
    assert any("hook prerouting priority -150" in c and c.startswith("add table") for c in between)
    # Whoever was banned before is banned again when he comes back.
    arr_failures(log, ATTACKER6)
    server.wait_for_ban("sonarr", ATTACKER6, 2)
