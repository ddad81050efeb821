"""Download traffic leaves through the tunnel or not at all: through every fault, judged by packets outside the guest.

See `leaklab` for the machines and the judge, `vpn_faults` and `vpn_drifts` for what is done to them.
"""

from __future__ import annotations

import json
import shlex
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

import pytest

from mediahost.render import wall
from mediahost.stack import vault_folder
from mediahost.vpn import LINK, SECRET, TABLE
from tests.lab import vpn_drifts, vpn_faults
from tests.lab.conftest import KEEP, PROVISIONED, MakeMachine, brought_to
from tests.lab.home import Home, Report, told
from tests.lab.leaklab import (
    FORWARDED,
    NEIGHBOUR4,
    RESUMES_WITHIN,
    TUNNEL_HOST,
    UDP4,
    UDP6,
    WEB4,
    Keys,
    Lab,
    equip_provider,
    kinds_of,
    new_keys,
    server_file,
    wireguard_file,
    write,
)
from tests.lab.vpn_faults import CONTROLS, FAULTS, TORRENT, Control, Fault

pytestmark = pytest.mark.lab
leak_proof = pytest.mark.proof("No packet of a confined container outside the tunnel, and traffic again after", "vpn")
control_proof = pytest.mark.proof("Without the walls it leaks: what the trials would have seen", "vpn")
drift_proof = pytest.mark.proof("Drift of the wall: named by the plan, mended by the next run without a leak", "vpn")
use_proof = pytest.mark.proof("What works beside the wall", "vpn")

_INSIDE = "nsenter -n -t $(docker inspect -f '{{.State.Pid}}' %s)"


@pytest.fixture(scope="session")
def vpn_lab(provisioned: Home, make_machine: MakeMachine, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """The provider's machine, its servers running, and the provisioned home without a VPN yet."""
    provider = make_machine("provider", memory_mib=640, prepare=equip_provider)
    lab = Lab(provisioned, provider, tmp_path_factory.mktemp("captures"), keys=_keys(provisioned))
    lab.build_provider()
    return lab


def _keys(home: Home) -> Keys:
    """Fresh ones; with KEEP those of an earlier session, which its snapshots know."""
    record = home.repository / "vpn-keys.json"
    if KEEP and record.exists():
        return Keys(**json.loads(record.read_text()))
    keys = new_keys()
    record.write_text(json.dumps(asdict(keys)))
    return keys


def confined(lab: Lab, mode: str) -> Lab:
    """The host of `mode`, restored; confined for the first time, and recorded meanwhile, where that has not been."""
    if mode in lab.broken:
        pytest.fail(f"the first run of mode {mode} has failed before: {lab.broken[mode]}")
    lab.mode = mode
    home = lab.home
    lab.settle_provider()
    if mode in lab.first_run_leaks:
        lab.host.restore(f"vpn-{mode}")
    else:
        # Minutes, which should not be lost once for each trial.
        lab.broken[mode] = "it did not come to its end"
        found = brought_to(home, f"vpn-{mode}", lambda: _confined_for_the_first_time(lab))
        lab.first_run_leaks[mode], lab.torrent_told[mode] = found["leaks"], found["torrent"]
        del lab.broken[mode]
    home.settle(**lab.settings)
    lab.hand_over()
    return lab


def _confined_for_the_first_time(lab: Lab) -> Report:
    """What leaked meanwhile, and what qBittorrent said of its torrent."""
    home = lab.home
    lab.host.restore(PROVISIONED)
    home.write_inventory()
    lab.equip_host()
    lab.watch()
    home.data.update(lab.settings)
    home.write_inventory()
    lab.hand_over()
    home.apply()
    lab.flows()
    return {"torrent": lab.add_torrent(), "leaks": lab.leaked()}


@pytest.fixture
def lab(request: pytest.FixtureRequest, vpn_lab: Lab) -> Iterator[Lab]:
    """The confined host, its traffic in the tunnel. The parameter is `vpn_mode`; without one, host."""
    try:
        ready = confined(vpn_lab, getattr(request, "param", "host"))
        ready.flows()
        yield ready
    finally:
        vpn_lab.home.settle()


def strike(lab: Lab, fault: Fault) -> float:
    """Do it, wait, mend it; seconds until all traffic was there again."""
    fault.strikes(lab)
    if fault.heals is None:
        since = 0.0 if fault.boots else lab.uptime()
        lab.lasts(fault.hold)
    else:
        lab.lasts(fault.hold)
        fault.heals(lab)
        since = lab.uptime()
    took = lab.resumes(since)
    lab.lasts(2)
    return took


def endures(lab: Lab, faults: list[Fault]) -> None:
    """Through all of them, one after the other, nothing leaks, and traffic comes back in time after each."""
    before = lab.seen()
    tried = lab.tried()
    lab.watch()
    took = {}
    for fault in faults:
        took[fault.name] = strike(lab, fault)
        if fault.boots:
            tried = 0
    leaked = lab.leaked()
    assert leaked == [], f"{len(leaked)} packets leaked"
    assert lab.arrived_outside(before) == {}
    assert lab.tried() > tried + 10, "hardly a canary was sent: nothing is proven"
    late = {name: seconds for name, seconds in took.items() if seconds > RESUMES_WITHIN}
    assert late == {}, f"traffic came back too late: {took}\n{lab.described()}"


def leaks_without(lab: Lab, control: Control) -> None:
    """The same canaries and the same judge on a host without these walls see what must be seen."""
    before = lab.seen()
    lab.watch()
    control.breaks(lab)
    lab.lasts(15)
    leaked = lab.leaked()
    if not control.leaks:
        assert leaked == [], "the wall that is left does not hold alone"
        return
    assert kinds_of(leaked) >= control.leaks, sorted(kinds_of(leaked))
    if "udp" in control.leaks:
        assert "udp" in lab.arrived_outside(before), "what leaked did not arrive: the way past the tunnel is no way"


# --- the sample -----------------------------------------------------------------------------------------------


@leak_proof
def test_a_sample_of_everything_holds_and_without_its_walls_the_host_leaks(lab: Lab) -> None:
    """In one go, because each restore costs the wait for a new handshake."""
    assert lab.first_run_leaks["host"] == []
    endures(lab, [fault for fault in FAULTS if fault.sample])
    pages_are_reached_as_declared(lab)
    called_safe(lab)
    for drift in vpn_drifts.DRIFTS:
        if drift.sample:
            mends(lab, drift)
    for control in CONTROLS:
        if control.sample:
            leaks_without(lab, control)
    called_leaking(lab)


def in_each_mode(cases: Sequence[Fault] | Sequence[Control]) -> list[Any]:
    """(mode, case) for each mode that a case is for."""
    return [
        pytest.param(mode, case, id=f"{case.name}, mode {mode}")
        for mode in vpn_faults.BOTH
        for case in cases
        if mode in case.modes
    ]


# --- faults -----------------------------------------------------------------------------------------------------


@leak_proof
@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("lab", "fault"),
    in_each_mode(FAULTS),
    indirect=["lab"],
)
def test_nothing_leaks_and_traffic_resumes_after(lab: Lab, fault: Fault) -> None:
    endures(lab, [fault])


@leak_proof
@pytest.mark.exhaustive
@pytest.mark.parametrize("lab", vpn_faults.BOTH, indirect=True, ids=lambda mode: f"mode {mode}")
def test_nothing_leaks_while_a_host_is_confined_for_the_first_time(lab: Lab) -> None:
    assert lab.first_run_leaks[lab.mode] == []


@leak_proof
@pytest.mark.exhaustive
@pytest.mark.parametrize("lab", vpn_faults.BOTH, indirect=True, ids=lambda mode: f"mode {mode}")
def test_a_real_torrent_comes_through_the_tunnel_only(lab: Lab) -> None:
    """qBittorrent with a tracker and a peer, through a restart of its container and of the tunnel."""
    assert lab.torrent_told[lab.mode] == ""
    before = lab.seen()
    lab.watch()
    _until(lambda: _blocks(lab) > before.get("peer", {}).get(TUNNEL_HOST, 0) + 20, lab)
    lab.root(f"docker restart -t 20 {TORRENT}")
    if lab.mode == "host":
        lab.root(f"ip link delete {LINK}")
    lab.flows()
    there = _blocks(lab)
    _until(lambda: _blocks(lab) > there + 20, lab)
    assert lab.leaked() == []
    seen = lab.seen()
    assert set(seen["tracker"]) == {TUNNEL_HOST}
    assert set(seen["peer"]) == {TUNNEL_HOST}


def _blocks(lab: Lab) -> int:
    return lab.seen().get("peer", {}).get(TUNNEL_HOST, 0)


def _until(wanted: Callable[[], bool], lab: Lab, seconds: int = 300) -> None:
    """Wait for it, by the guest's own clock."""
    end = lab.uptime() + seconds
    while not wanted():
        assert lab.uptime() < end, lab.described()
        lab.lasts(1)


# --- negative controls --------------------------------------------------------------------------------------------


@control_proof
@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("lab", "control"),
    in_each_mode(CONTROLS),
    indirect=["lab"],
)
def test_what_is_seen(lab: Lab, control: Control) -> None:
    leaks_without(lab, control)


@control_proof
@pytest.mark.exhaustive
def test_a_start_without_the_wall_leaks_from_the_first_moment(lab: Lab) -> None:
    """The start-up window: the sender is there before Docker, and sees it."""
    lab.root(f"systemctl -q disable {wall.WALL_UNIT} {wall.TUNNEL_UNIT}; rm {wall.DOCKER_PATH}")
    lab.watch()
    lab.reboot()
    lab.lasts(20)
    assert kinds_of(lab.leaked()) >= {"udp", "tcp", "icmp"}


@control_proof
@pytest.mark.exhaustive
def test_the_host_itself_is_seen_with_each_kind_of_canary(lab: Lab) -> None:
    """IPv6 too, which no container has: sent by the host, which nothing confines."""
    lab.watch()
    lab.root(
        "python3 -c 'import socket; s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM); "
        's.sendto(b"mediahost-canary udp6 1", ("2001:db8:66::7", 47077))\''
    )
    lab.root("getent hosts mediahost-canary-1.host.example.org", check=False)
    lab.lasts(3)
    leaked = lab.leaked()
    assert any("2001:db8:66::7" in line for line in leaked)
    assert "dns" in kinds_of(leaked)


# --- drift ----------------------------------------------------------------------------------------------------------


def mends(lab: Lab, drift: vpn_drifts.Drift) -> None:
    """The plan names it, a run mends it without a leaked packet, and the plan is empty."""
    lab.watch()
    if drift.watched:
        lab.root(f"systemctl kill -s STOP {wall.TUNNEL_UNIT}")
    lab.root(drift.breaks)
    changes = lab.home.changes()
    assert len(changes) == len(drift.says) or (len(changes) > len(drift.says) and not drift.alone), changes
    for change, says in zip(changes, drift.says, strict=False):
        assert change.startswith(says), changes
    assert all(change.startswith("vpn | ") for change in changes), changes
    report = lab.home.apply()
    assert [f"{change['operation']}: {change['what']}" for change in report["changes"]] == changes
    if drift.watched:
        lab.root(f"systemctl kill -s CONT {wall.TUNNEL_UNIT}", check=False)
    assert lab.home.changes() == []
    lab.flows()
    assert lab.leaked() == []


@drift_proof
@pytest.mark.exhaustive
@pytest.mark.parametrize("drift", [pytest.param(drift, id=drift.name) for drift in vpn_drifts.DRIFTS])
def test_drift_is_named_and_mended_without_a_leak(lab: Lab, drift: vpn_drifts.Drift) -> None:
    mends(lab, drift)


@drift_proof
@pytest.mark.exhaustive
@pytest.mark.parametrize("lab", vpn_faults.BOTH, indirect=True, ids=lambda mode: f"mode {mode}")
def test_a_second_run_changes_nothing(lab: Lab) -> None:
    assert lab.home.apply()["changes"] == []


@drift_proof
@pytest.mark.exhaustive
def test_what_is_switched_off_is_gone_and_services_work_in_the_open(lab: Lab) -> None:
    for key in lab.settings:
        lab.home.data.pop(key)
    lab.home.write_inventory()
    lab.home.apply()
    assert lab.root(f"ls {' '.join(wall.PATHS)} 2>/dev/null; true") == ""
    state = lab.root(f"ip rule; ip -6 rule; ip link; nft list tables; ip route show table {TABLE} 2>&1; true")
    for name in ("br-vpn", LINK, wall.NFT_TABLE):
        assert name not in state, state
    assert page(lab) == "200"
    # What was confined has the host's own way out again, and is seen with its address.
    found = lab.root(f"{_INSIDE % TORRENT} curl -s -m 20 http://{WEB4}/").strip()
    assert found == lab.host.address4
    assert lab.home.changes() == []


# --- what works beside it -------------------------------------------------------------------------------------------


def at_home(lab: Lab, url: str, *words: str) -> str:
    """The HTTP status that the neighbour on the segment gets; "000" for no connection."""
    curl = f"curl -s -o /dev/null -w '%{{http_code}}' -m 20 {' '.join(words)} {url}"
    return lab.at_provider(f"ip netns exec neighbour {curl}", check=False)


def page(lab: Lab) -> str:
    """The HTTP status of qBittorrent's page on the host itself."""
    return lab.host.run("curl -s -o /dev/null -w '%{http_code}' -m 20 http://localhost:8080/", check=False).stdout


def pages_are_reached_as_declared(lab: Lab) -> None:
    """Prowlarr's page is for the home network, qBittorrent's for the host and, through the proxy, for home."""
    host = lab.host.address4
    assert at_home(lab, f"http://{host}:9696/ping") == "200"
    assert page(lab) == "200"
    assert at_home(lab, f"http://{host}:8080/") == "000"
    assert at_home(lab, f"http://{host}/", "-H", f"'Host: qbittorrent.{lab.host.name}.home.arpa'") == "200"
    # The neighbour has a page: it is there for the host, and not for a container that answers the same neighbour.
    assert lab.host.run(f"curl -s -m 20 http://{NEIGHBOUR4}/").stdout.strip() == host
    owner = TORRENT if lab.mode == "host" else vpn_faults.CLIENT
    assert lab.root(f"{_INSIDE % owner} curl -s -m 8 http://{NEIGHBOUR4}/ || echo none").strip() == "none"
    assert lab.seen("neighbour")["http"].keys() == {host}


@use_proof
@pytest.mark.exhaustive
@pytest.mark.parametrize("lab", vpn_faults.BOTH, indirect=True, ids=lambda mode: f"mode {mode}")
def test_web_pages_are_reached_as_declared_and_no_container_reaches_a_neighbour(lab: Lab) -> None:
    pages_are_reached_as_declared(lab)


# Who tells a caller's address, and what is tried: the lab's instead of the world's.
_ECHO = ("--echo", f"http://{WEB4}/")
_TRIED = ("--target", UDP4, "--target", UDP6, "--near", NEIGHBOUR4)


def called_safe(lab: Lab) -> None:
    """What the owner's own commands say of a host as it should be."""
    status = lab.home.mediahost("vpn", "status", "--json", *_ECHO)
    assert status.returncode == 0, told(status)
    (found,) = json.loads(status.stdout)["hosts"].values()
    assert found["own_address"] == lab.host.address4
    assert {container["seen"] for container in found["containers"]} == {TUNNEL_HOST}
    assert found["tunnel"]["endpoint"] == f"{lab.provider.address4}:51820"
    verdict = lab.home.mediahost("vpn", "leak-test", "--yes", *_TRIED)
    assert verdict.returncode == 0, told(verdict)
    assert "verdict: SAFE" in verdict.stdout
    # The test took the tunnel down for a moment.
    lab.flows()


def called_leaking(lab: Lab) -> None:
    """The same commands on a host whose walls were taken away."""
    verdict = lab.home.mediahost("vpn", "leak-test", "--without-taking-down", *_TRIED)
    assert verdict.returncode == 1, told(verdict)
    assert "verdict: LEAK" in verdict.stdout
    status = lab.home.mediahost("vpn", "status", *_ECHO)
    assert status.returncode == 1, told(status)
    assert "not well" in status.stdout


@use_proof
@pytest.mark.exhaustive
@pytest.mark.parametrize("lab", vpn_faults.BOTH, indirect=True, ids=lambda mode: f"mode {mode}")
def test_status_and_leak_test_call_a_safe_host_safe(lab: Lab) -> None:
    called_safe(lab)


@use_proof
@pytest.mark.exhaustive
def test_status_and_leak_test_catch_a_host_without_walls(lab: Lab) -> None:
    next(control for control in CONTROLS if control.sample).breaks(lab)
    called_leaking(lab)


@use_proof
@pytest.mark.exhaustive
def test_the_tunnel_file_is_imported_by_the_owners_command(lab: Lab) -> None:
    inventory = str(lab.home.inventory)
    lab.home.command("vpn", "import", inventory, "-", check=True, typed=wireguard_file(lab.keys, "192.0.2.77"))
    assert lab.home.changes() != []
    lab.home.command(
        "vpn", "import", inventory, "-", check=True, typed=wireguard_file(lab.keys, lab.provider.address4)
    )
    assert lab.home.changes() == []


def reached_from_the_internet(lab: Lab, port: int) -> bool:
    """Whether a peer out there can connect to the port that the provider forwards into the tunnel."""
    script = f"import socket; socket.create_connection(('{TUNNEL_HOST}', {port}), 5, ('{WEB4}', 0))"
    inside = f"ip netns exec internet python3 -c {shlex.quote(script)} 2>/dev/null && echo connected"
    return "connected" in lab.at_provider(inside, check=False)


@use_proof
@pytest.mark.exhaustive
@pytest.mark.parametrize("lab", vpn_faults.BOTH, indirect=True, ids=lambda mode: f"mode {mode}")
def test_the_forwarded_port_is_followed_and_no_other_is_open(lab: Lab) -> None:
    lab.home.data["vpn_port_forwarding"] = "nat-pmp"
    lab.home.write_inventory()
    lab.home.apply()

    def follows(port: int) -> bool:
        told = lab.torrent_client("app/preferences")
        return f'"listen_port":{port}' in told and reached_from_the_internet(lab, port)

    lab.watch()
    _until(lambda: follows(40000), lab)
    lab.at_provider(f"echo 40123 >{FORWARDED}")
    _until(lambda: follows(40123), lab)
    assert not reached_from_the_internet(lab, 40000)
    assert not reached_from_the_internet(lab, 8080)
    lab.flows()
    assert lab.leaked() == []
    assert lab.home.changes() == []


@use_proof
@pytest.mark.exhaustive
def test_the_endpoint_changes_while_the_tunnel_stays_up(lab: Lab) -> None:
    """Same interface, same long connection: nobody inside notices."""
    index = f"cat /sys/class/net/{LINK}/ifindex"
    connects = "grep -h reconnect /run/leaklab/*.log | wc -l"
    before = lab.root(index), lab.root(connects)
    handshake = int(lab.root(f"wg show {LINK} latest-handshakes").split()[1])
    second = "10.77.0.239"
    card = lab.provider.run(f"ip -4 -o address show to {lab.provider.address4} | cut -d' ' -f2").stdout.strip()
    lab.at_provider(f"ip address add {second}/24 dev {card} 2>/dev/null; true")
    try:
        lab.watch()
        lab.hand_over(endpoint=second)
        changes = lab.home.apply()["changes"]
        assert changes
        assert all(change["operation"].startswith("vpn | ") for change in changes), changes
        lab.flows()
        assert second in lab.root(f"wg show {LINK} endpoints")
        assert (lab.root(index), lab.root(connects)) == before
        # New keys within two minutes, from the new place.
        _until(lambda: int(lab.root(f"wg show {LINK} latest-handshakes").split()[1]) > handshake, lab, 200)
        lab.flows()
        assert lab.leaked() == []
    finally:
        lab.at_provider(f"ip address del {second}/24 dev {card}")


@use_proof
@pytest.mark.exhaustive
def test_the_wall_costs_hardly_any_throughput(lab: Lab) -> None:
    """Downloads through the tunnel, with the wall's table and without it in turns: the medians' ratio."""
    size = 8 * 1024 * 1024
    fetch = f"{_INSIDE % TORRENT} curl -s -f -o /dev/null -m 300 -w '%{{speed_download}}' http://{WEB4}/bulk/{size}"
    kept = "/run/leaklab/wall.nft"
    lab.root(f"systemctl kill -s STOP {wall.TUNNEL_UNIT}; systemctl stop leaklab-sender")
    lab.root(f"nft list table inet {wall.NFT_TABLE} >{kept}")
    lab.root(fetch)
    speeds: dict[str, list[float]] = {"with": [], "without": []}
    for _ in range(7):
        speeds["with"].append(float(lab.root(fetch)))
        lab.root(f"nft delete table inet {wall.NFT_TABLE}")
        speeds["without"].append(float(lab.root(fetch)))
        lab.root(f"nft -f {kept}")
    ratio = statistics.median(speeds["with"]) / statistics.median(speeds["without"])
    assert ratio >= 0.95, speeds


# --- secrets ------------------------------------------------------------------------------------------

_WATCH_ARGV = (
    "while [ ! -e /run/leaklab/stop ]; do "
    "{ cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ 2>/dev/null | tr '\\0' ' '; echo; } >>/run/leaklab/argv; done"
)


def _take_new_keys(lab: Lab) -> Keys:
    """New ones at both ends, so that a run has to write them."""
    keys = new_keys()
    write(lab.provider, "/opt/leaklab/wg.conf", server_file(keys), "0600")
    lab.at_provider("wg setconf wg0 /opt/leaklab/wg.conf")
    name = f"{vault_folder(lab.host.name)}/vpn/{SECRET}"
    text = wireguard_file(keys, lab.provider.address4)
    lab.home.mediahost("secrets", "set", name, check=True, typed=text)
    return keys


@use_proof
@pytest.mark.exhaustive
@pytest.mark.parametrize("lab", vpn_faults.BOTH, indirect=True, ids=lambda mode: f"mode {mode}")
def test_no_key_is_in_argv_output_inspect_journal_or_a_file_of_the_world(lab: Lab) -> None:
    keys = _take_new_keys(lab)
    lab.root(f"rm -f /run/leaklab/stop; systemd-run -q --unit leaklab-argv sh -c {shlex.quote(_WATCH_ARGV)}")
    lab.root("until grep -q leaklab-argv-bait /run/leaklab/argv 2>/dev/null; do sleep 1; done")
    result = lab.home.mediahost("apply", "--verbose")
    lab.root("touch /run/leaklab/stop")
    assert result.returncode == 0, told(result)
    lab.flows()
    places = {
        "output": told(result),
        "argv and environment": lab.root("cat /run/leaklab/argv"),
        "docker inspect": lab.root("docker inspect $(docker ps -aq)"),
        "the journal": lab.root("journalctl --no-pager -q -o cat"),
    }
    assert "leaklab-argv-bait" in places["argv and environment"]
    for key in (keys.host, keys.shared):
        for place, text in places.items():
            assert key not in text, place
        assert _found(lab, key, "") != [], "the search finds no file at all: nothing is proven"
        assert _found(lab, key, "setpriv --reuid=65534 --regid=65534 --clear-groups") == []


def _found(lab: Lab, key: str, by: str) -> list[str]:
    """Files of the host that hold the key and that `by` can read. The key comes on standard input."""
    places = "/etc /opt /run /tmp /usr/local /var/lib/mediahost /var/log"
    pattern = "/run/leaklab-key"
    script = f"cat >{pattern}; chmod 0644 {pattern}; {by} grep -rlsF -D skip -f {pattern} {places}; rm -f {pattern}"
    found = lab.host.run(["sudo", "sh", "-c", script], input=key, check=False)
    return [path for path in found.stdout.split() if path != pattern]
