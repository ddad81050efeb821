"""What a stranger sees of the host: exactly the declared ports, and nothing at all once he is banned.

The stranger is a second machine on the host's segment. Of its addresses one is declared as LAN, so that it can also
be the neighbour for whom a `lan` port is open: the positive control of every port that is closed to the stranger.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from xml.etree import ElementTree

import pytest

from lab.machine import Machine
from tests.lab.home import Home, told
from tests.lab.segment import LAN4, LAN6, card
from tests.lab.waiting import becomes, reboot

pytestmark = [
    pytest.mark.lab,
    pytest.mark.proof("What a stranger sees, and sees no more once he is banned", "edge"),
]

DECLARED = {"tcp": {22, 80, 443, 6881}, "udp": {443, 6881}}
DECLARED_LAN = {"tcp": {5055, 6767, 7878, 8989, 9696}, "udp": set[int]()}
# Beside the declared ones: what runs on the host and is for itself, what a container holds inside, and neighbours.
SAMPLE = {
    "tcp": "21-25,53,80-81,111,443,631,2019,2375-2377,5000,5055,5355,6767,6881,7878,8000,8080,8989,9696,9697,50000",
    "udp": "53,67-68,111,123,443,546,1900,5353,5355,6881,7359,51820",
}
_SCAN_SECONDS = 1800


@dataclass(frozen=True)
class Scan:
    """Ports by what nmap found: `answered` let a packet through (open, or closed behind an open firewall)."""

    answered: frozenset[int]
    silent: frozenset[int]


def scan(stranger: Machine, source: str, target: str, protocol: str, ports: str) -> Scan:
    """Scan `ports` of `target` from the stranger's own or the LAN's address `source`."""
    # Without a ping: nmap's neighbour discovery does not find an IPv6 target from an address that it is given.
    words = ["sudo", "nmap", "-n", "-Pn", "--disable-arp-ping", "-S", source, "-e", card(stranger)]
    words += ["-T4", "--max-retries", "2", "-oX", "-", "-p", ports]
    words += ["-sS" if protocol == "tcp" else "-sU"]
    words += ["-6"] if ":" in target else []
    answer = stranger.run([*words, target], limit=_SCAN_SECONDS).stdout
    states = {}
    told_by_nmap = ElementTree.fromstring(answer)  # noqa: S314 - the lab's own nmap wrote it
    for port in told_by_nmap.iter("port"):
        state = port.find("state")
        assert state is not None
        states[int(port.attrib["portid"])] = state.attrib["state"]
    for group in told_by_nmap.iter("extraports"):
        # nmap folds ports of a common state into one entry and tells the numbers beside the reason.
        for reason in group.iter("extrareasons"):
            states |= dict.fromkeys(_numbers(reason.attrib["ports"]), group.attrib["state"])
    assert len(states) == len(_numbers(ports)), "nmap did not tell of every port"
    return Scan(
        frozenset(port for port, state in states.items() if state in ("open", "closed", "unfiltered")),
        frozenset(port for port, state in states.items() if "filtered" in state and state != "unfiltered"),
    )


def _numbers(ports: str) -> list[int]:
    found: list[int] = []
    for part in ports.split(","):
        first, _, last = part.partition("-")
        found.extend(range(int(first), int(last or first) + 1))
    return found


def as_declared(stranger: Machine, host: Machine, protocol: str = "tcp", ports: str = "") -> None:
    """From outside exactly the declared ports answer, for IPv4 and IPv6; from the LAN the `lan` ones as well."""
    ports = ports or SAMPLE[protocol]
    for target, own, home in (
        (host.address4, stranger.address4, LAN4),
        (host.address6, stranger.address6, LAN6),
    ):
        outside = scan(stranger, own, target, protocol, ports)
        # Of UDP only silence can be told for certain: a program that listens need not answer what it does not know.
        assert outside.answered <= DECLARED[protocol], f"{target} lets a stranger through"
        if protocol == "tcp":
            assert outside.answered == DECLARED["tcp"] & set(_numbers(ports))
            inside = scan(stranger, home, target, protocol, ports)
            assert inside.answered == (DECLARED["tcp"] | DECLARED_LAN["tcp"]) & set(_numbers(ports))


def _reload(edge: Home) -> None:
    edge.machine.run("sudo ufw reload")


def _off_and_on(edge: Home) -> None:
    edge.machine.run("sudo ufw disable && sudo ufw --force enable")


def _docker_restart(edge: Home) -> None:
    edge.machine.run("sudo systemctl restart docker")
    _healthy(edge)


def _recreate(edge: Home) -> None:
    command = "docker compose --project-directory /opt/media-server up -d --force-recreate --wait caddy sonarr"
    edge.machine.run(f"sudo {command}")


def _reboot(edge: Home) -> None:
    reboot(edge.machine)
    _healthy(edge)


def _healthy(edge: Home) -> None:
    """Wait until every container answers again."""
    states: list[str] = []

    def healthy() -> bool:
        nonlocal states
        states = edge.machine.run("sudo docker ps -a --format '{{.Status}}'", check=False).stdout.splitlines()
        return bool(states) and all("(healthy)" in state or "(" not in state for state in states)

    assert becomes(healthy, limit=900), f"not healthy: {states}"


EVENTS: dict[str, Callable[[Home], None]] = {
    "ufw reload": _reload,
    "ufw off and on": _off_and_on,
    "docker restart": _docker_restart,
    "containers recreated": _recreate,
    "reboot": _reboot,
}


def test_a_stranger_sees_exactly_the_declared_ports(edge: Home, stranger: Machine) -> None:
    as_declared(stranger, edge.machine)
    as_declared(stranger, edge.machine, "udp")
    # The scan can see more than the declared ports: without the firewall it does.
    edge.machine.run("sudo ufw disable && sudo iptables -F DOCKER-USER")
    for protocol in ("tcp", "udp"):
        found = scan(stranger, stranger.address4, edge.machine.address4, protocol, SAMPLE[protocol])
        assert found.answered - DECLARED[protocol], protocol


@pytest.mark.exhaustive
@pytest.mark.parametrize("event", EVENTS)
def test_a_stranger_sees_exactly_the_declared_ports_after(edge: Home, stranger: Machine, event: str) -> None:
    EVENTS[event](edge)
    as_declared(stranger, edge.machine)
    assert edge.changes() == []


@pytest.mark.exhaustive
def test_a_stranger_sees_exactly_the_declared_of_all_ports(edge: Home, stranger: Machine) -> None:
    as_declared(stranger, edge.machine, ports="1-65535")


@pytest.mark.exhaustive
def test_no_port_opens_to_a_stranger_while_the_host_reboots(edge: Home, stranger: Machine) -> None:
    nothing_opens(edge, stranger, _reboot)


@pytest.mark.exhaustive
@pytest.mark.parametrize("event", sorted(EVENTS.keys() - {"reboot"}))
def test_no_port_opens_to_a_stranger_for_a_moment(edge: Home, stranger: Machine, event: str) -> None:
    nothing_opens(edge, stranger, EVENTS[event])


def nothing_opens(edge: Home, stranger: Machine, event: Callable[[Home], None]) -> None:
    """From before the event until all is as before, the stranger connects to declared ports only."""
    host = edge.machine
    # A loop for each: one that waits for an answer must not keep the others from looking.
    watch = (
        "for port in 80 8080 8989; do for way in {own} {lan}; do ("
        " from=${{way%,*}}; to=${{way#*,}}; while :; do"
        " curl -s -o /dev/null -m 3 --connect-timeout 1 --interface $from http://$to:$port/; code=$?;"
        " case $code in 0|1|52|56) echo $port $from;; 45) sleep 1;; esac;"
        " done) & done; done >/tmp/opened; wait"
    ).format(
        own=f"{stranger.address4},{host.address4} {stranger.address6},[{host.address6}]",
        lan=f"{LAN4},{host.address4} {LAN6},[{host.address6}]",
    )
    stranger.run(f"nohup setsid bash -c {shlex.quote(watch)} >/dev/null 2>&1 & echo $! >/tmp/watch.pid")

    def opened() -> list[str]:
        return stranger.run("cat /tmp/opened").stdout.splitlines()

    own = {stranger.address4, stranger.address6}
    seen = {
        f"{port} {address}"
        for port, addresses in ((80, {*own, LAN4, LAN6}), (8989, {LAN4, LAN6}))
        for address in addresses
    }
    try:
        # That much is seen before and after: between them the watch would have seen more.
        assert becomes(lambda: set(opened()) == seen), sorted(set(opened()))
        event(edge)
        before = len(opened())
        becomes(lambda: set(opened()[before:]) >= seen, limit=300)
        after = set(opened()[before:])
    finally:
        stranger.run("kill -- -$(cat /tmp/watch.pid)", check=False)
    assert set(opened()) == seen
    assert after == seen


def connects(stranger: Machine, target: str, port: int, source: str = "") -> bool:
    """Whether a TCP connection comes about, from the LAN's address when `source` is given."""
    words = ["curl", "-s", "-o", "/dev/null", "--connect-timeout", "8", "-m", "20"]
    words += ["--interface", source] if source else []
    # Exit codes of curl(1) once the connection stood: 0 answered, 1 not HTTP (SSH's banner), 52 and 56 hung up.
    host = f"[{target}]" if ":" in target else target
    return stranger.run([*words, f"http://{host}:{port}/"], check=False).returncode in (0, 1, 52, 56)


def fails_to_log_in(stranger: Machine, source: str, target: str, times: int) -> None:
    """Ask SSH for accounts that do not exist, each time in a connection of its own."""
    for number in range(times):
        stranger.run(
            # A ban drops the packets of open connections, too: nobody would tell this one that it is over.
            f"timeout 30 ssh -b {source} -o BatchMode=yes -o ConnectTimeout=5 -o StrictHostKeyChecking=no"
            f" -o UserKnownHostsFile=/dev/null nobody{number}@{target} true",
            check=False,
        )


@pytest.mark.parametrize(
    "version", [4, pytest.param(6, marks=pytest.mark.exhaustive)], ids=lambda version: f"IPv{version}"
)
def test_failed_logins_close_host_and_container_ports_to_that_address_only(
    edge: Home, stranger: Machine, version: int
) -> None:
    host = edge.machine
    target, own, lan = (
        (host.address4, stranger.address4, LAN4) if version == 4 else (host.address6, stranger.address6, LAN6)
    )
    assert connects(stranger, target, 22, own)
    assert connects(stranger, target, 80, own)
    fails_to_log_in(stranger, own, target, 8)
    assert becomes(lambda: not connects(stranger, target, 80, own)), "a container's port stays open"
    assert not connects(stranger, target, 22, own), "the host's port stays open"
    assert connects(stranger, target, 22, lan)
    assert connects(stranger, target, 80, lan)
    listed = edge.mediahost("bans", "list")
    assert own in listed.stdout, told(listed)
    assert lan not in listed.stdout
    removed = edge.mediahost("bans", "remove", own)
    assert removed.returncode == 0, told(removed)
    assert becomes(lambda: connects(stranger, target, 22, own))
    assert connects(stranger, target, 80, own)
    assert edge.changes() == []


def refused_by_the_proxy(edge: Home, stranger: Machine, source: str, times: int) -> None:
    """Ask the proxy from outside for a page that is for the LAN only."""
    host = edge.machine
    for _ in range(times):
        answer = stranger.run(
            f"curl -s -o /dev/null -w '%{{http_code}}' -m 20 --interface {source}"
            f" -H 'Host: sonarr.{host.name}.home.arpa' http://{host.address4}/",
            check=False,
        ).stdout
        if answer != "403":
            return


def fails_at_an_arr(edge: Home, address: str, name: str) -> None:
    """What these applications write of a failed login. They cannot be had here: the lab's stand-ins have none."""
    directory = f"/opt/media-server/config/{name}/logs"
    line = f"$(date -u '+%Y-%m-%d %H:%M:%S').0|Warn|Auth|Auth-Failure ip {address} username 'x'"
    edge.machine.run(
        f'sudo sh -c "install -d {directory} && touch {directory}/{name}.txt && fail2ban-client reload" && '
        f'for n in 1 2 3 4 5 6; do echo "{line}"; done | sudo tee -a {directory}/{name}.txt'
    )


@pytest.mark.exhaustive
@pytest.mark.parametrize("jail", ["caddy", "sonarr", "radarr", "prowlarr"])
def test_failures_in_a_log_close_host_and_container_ports_to_that_address_only(
    edge: Home, stranger: Machine, jail: str
) -> None:
    target, own = edge.machine.address4, stranger.address4
    assert connects(stranger, target, 22, own)
    assert connects(stranger, target, 80, own)
    if jail == "caddy":
        refused_by_the_proxy(edge, stranger, own, 30)
    else:
        fails_at_an_arr(edge, own, jail)
    assert becomes(lambda: not connects(stranger, target, 80, own)), "a container's port stays open"
    assert not connects(stranger, target, 22, own), "the host's port stays open"
    assert connects(stranger, target, 22, LAN4)
    assert connects(stranger, target, 80, LAN4)
    assert jail in edge.mediahost("bans", "list").stdout
    assert edge.mediahost("bans", "remove", own).returncode == 0
    assert becomes(lambda: connects(stranger, target, 22, own))
    assert connects(stranger, target, 80, own)


@pytest.mark.exhaustive
def test_who_is_banned_again_and_again_is_banned_for_long(edge: Home, stranger: Machine) -> None:
    target, own = edge.machine.address4, stranger.address4
    for _ in range(3):
        assert edge.mediahost("bans", "remove", own).returncode in (0, 1)
        assert becomes(lambda: connects(stranger, target, 80, own))
        fails_to_log_in(stranger, own, target, 8)
        assert becomes(lambda: not connects(stranger, target, 80, own))
    assert becomes(lambda: "recidive" in edge.mediahost("bans", "list").stdout)


@pytest.mark.exhaustive
def test_the_lan_is_never_banned(edge: Home, stranger: Machine) -> None:
    target, own = edge.machine.address4, stranger.address4
    fails_to_log_in(stranger, LAN4, target, 8)
    # The stranger's own address is banned for the same: the jail was at work meanwhile.
    fails_to_log_in(stranger, own, target, 8)
    assert becomes(lambda: not connects(stranger, target, 80, own))
    assert connects(stranger, target, 22, LAN4)
    assert LAN4 not in edge.mediahost("bans", "list").stdout


def test_a_ban_by_hand_closes_all_ports_and_its_removal_opens_them(edge: Home, stranger: Machine) -> None:
    target, own = edge.machine.address4, stranger.address4
    assert connects(stranger, target, 80, own)
    assert edge.mediahost("bans", "add", own).returncode == 0
    assert becomes(lambda: not connects(stranger, target, 80, own))
    assert not connects(stranger, target, 22, own)
    refused = edge.mediahost("bans", "add", LAN4)
    assert refused.returncode != 0
    assert connects(stranger, target, 80, LAN4)
    assert edge.mediahost("bans", "remove", own).returncode == 0
    assert becomes(lambda: connects(stranger, target, 80, own))
