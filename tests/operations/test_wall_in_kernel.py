"""The wall in a real kernel: network namespaces for host, container, internet and the far end of the tunnel.

The interface `wg-vpn` is one end of a veth pair here: it stands for WireGuard, which these namespaces need not have.
What it carries is what the tunnel would encrypt. `wg` is a stand-in that says what it is asked for.
"""

from __future__ import annotations

import base64
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from facts.snapshot import ContainerState, PathState, Request, Snapshot, parse, script
from mediahost import wireguard
from mediahost.config import read
from mediahost.render import wall
from mediahost.resources import File
from mediahost.vpn import Tunnel, Vpn
from operations import vpn as stage

KEY = base64.b64encode(bytes(range(32))).decode()
PEER = wireguard.public_key(base64.b64encode(bytes(range(1, 33))).decode())
SERVER = "198.51.100.7"
TUNNEL = Tunnel(KEY, ("10.2.0.2/32",), PEER, SERVER, 51820, dns=("10.2.0.1",), mtu=1420)
VPN = Vpn("proton", "host", True, TUNNEL, "172.29.29.0/24", ("10.2.0.1",), "nat-pmp", ("qbittorrent",))
SETTINGS = read("nas", {"firewall_lan": ["192.168.7.0/24"]})
FAR = "192.0.2.1"  # is at the end of both ways
CONTAINER, CLIENT = "172.29.29.5", "192.168.7.9"

_PROGRAMS = ("unshare", "nsenter", "nft", "ip", "flock", "bash")


def _can() -> bool:
    if not all(shutil.which(name) for name in _PROGRAMS):
        return False
    tried = subprocess.run(
        ["unshare", "-Urnm", "sh", "-c", "mount -t tmpfs none /run && ip netns add a && nft list tables"],
        capture_output=True,
        check=False,
    )
    return tried.returncode == 0


pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(not _can(), reason="needs nft, ip and namespaces of one's own"),
]

# up0 is the uplink with the home network on it, wg-vpn the tunnel; "docker" does what Docker does for its bridges.
_TOPOLOGY = f"""
mount -t tmpfs none /run
for ns in container internet far; do ip netns add $ns; ip -n $ns link set lo up; done
ip link set lo up
ip link add br-vpn type bridge
ip link set br-vpn up
ip address add 172.29.29.1/24 dev br-vpn
ip link add port type veth peer name eth0 netns container
ip link set port master br-vpn up
ip -n container address add {CONTAINER}/24 dev eth0
ip -n container link set eth0 up
ip -n container route add default via 172.29.29.1
ip link add up0 type veth peer name eth0 netns internet
ip link set up0 up
ip address add 192.168.7.2/24 dev up0
ip -n internet address add {CLIENT}/24 dev eth0
ip -n internet address add {FAR}/32 dev lo
ip -n internet address add {SERVER}/32 dev lo
ip -n internet link set eth0 up
ip route add default via {CLIENT}
echo 1 >/proc/sys/net/ipv4/ip_forward
echo 2 >/proc/sys/net/ipv4/conf/all/rp_filter
echo 1 >/proc/sys/net/ipv4/conf/all/src_valid_mark
nft -f - <<END
table ip docker {{
  chain post {{ type nat hook postrouting priority srcnat; ip saddr 172.29.29.0/24 oifname != "br-vpn" masquerade; }}
  chain pre {{ type nat hook prerouting priority dstnat;
    iifname != "br-vpn" tcp dport 8080 dnat to {CONTAINER}:8080; }}
}}
END
count() {{
  ip netns exec $1 nft "add table ip c; add chain ip c in {{ type filter hook prerouting priority raw; }}
    add rule ip c in ip daddr $2 counter"
}}
count internet {FAR}
count far {FAR}
"""

_LINK_UP = f"""
ip link add wg-vpn type veth peer name eth0 netns far
ip -n far link set eth0 up
ip -n far address replace {FAR}/32 dev lo
ip -n far address replace 10.2.0.1/32 dev lo
ip -n far route replace 10.2.0.2 dev eth0
ip -n far route replace {CONTAINER} dev eth0
"""

_SENDER = """
import socket, sys, time
to, seconds = sys.argv[1], float(sys.argv[2])
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
    end, tries = time.monotonic() + seconds, 0
    while time.monotonic() < end or tries < 40:
        tries += 1
        try:
            out.sendto(b"canary", (to, int(sys.argv[3])))
        except OSError:
            pass
        time.sleep(0.005)
"""

_SERVER = """
import socket
with socket.create_server(("0.0.0.0", int(__import__("sys").argv[1]))) as listener:
    while True:
        connection, _ = listener.accept()
        connection.sendall(b"hello")
        connection.close()
"""

# Refused is a server that has not started yet; what is dropped times out.
_ASK = """
import socket, sys, time
for _ in range(50):
    try:
        with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=1.5) as connection:
            sys.exit(connection.recv(9) != b"hello")
    except ConnectionRefusedError:
        time.sleep(0.1)
sys.exit(1)
"""


@dataclass
class Host:
    """Namespaces that live as long as `holder`."""

    holder: subprocess.Popen[bytes]
    root: Path
    vpn: Vpn = VPN

    def run(self, command: str, check: bool = True, **more: Any) -> subprocess.CompletedProcess[str]:
        entered = ["nsenter", "-t", str(self.holder.pid), "-U", "-n", "-m", "--preserve-credentials"]
        search = {"PATH": f"{self.root}/bin:{os.environ['PATH']}:/usr/sbin:/sbin"}
        done = subprocess.run(
            [*entered, "sh", "-euc", command],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, **search},
            timeout=60,
            **more,
        )
        if check and done.returncode:
            pytest.fail(f"{command}\n{done.stdout}{done.stderr}")
        return done

    def python(self, namespace: str, program: str, *arguments: object) -> str:
        words = " ".join(map(str, arguments))
        return f"ip netns exec {namespace} python3 -c '{program}' {words}"

    def put(self, vpn: Vpn) -> None:
        """The files of the wall below `root`."""
        self.vpn = vpn
        for file in wall.files(vpn, SETTINGS):
            text = file.content.decode()
            for path in (*wall.PATHS, wall.RECORD_PATH, wall.INSIDE_RECORD_PATH, "/run/mediahost-vpn/tunnel.lock"):
                text = text.replace(f"={path}\n", f"={self.root}{path}\n")
            text = text.replace("PATH=/usr/sbin:", f"PATH={self.root}/bin:{os.environ['PATH']}:/usr/sbin:")
            here = Path(f"{self.root}{file.path}")
            here.parent.mkdir(parents=True, exist_ok=True)
            here.write_text(text)
            here.chmod(int(file.mode, 8))

    def load(self) -> None:
        self.run(f"{self.root}{wall.WALL_PATH} load")

    def settle(self) -> None:
        self.run(f"{self.root}{wall.WATCH_PATH} settle")

    def start_watch(self) -> subprocess.Popen[bytes]:
        entered = ["nsenter", "-t", str(self.holder.pid), "-U", "-n", "-m", "--preserve-credentials"]
        return subprocess.Popen([*entered, f"{self.root}{wall.WATCH_PATH}"], stdout=subprocess.DEVNULL)

    def check(self) -> str:
        return self.run(f"{self.root}{wall.WALL_PATH} check", check=False).stdout

    def seen(self, namespace: str) -> int:
        told = self.run(f"ip netns exec {namespace} nft list chain ip c in").stdout
        return int(told.partition("packets ")[2].split()[0])

    def sends(self, to: str = FAR, seconds: float = 0.3, port: int = 9) -> tuple[int, int]:
        """How many packets of the container came out of the tunnel and of the uplink."""
        before = self.seen("far"), self.seen("internet")
        self.run(self.python("container", _SENDER, to, seconds, port))
        return self.seen("far") - before[0], self.seen("internet") - before[1]

    def dropped(self, name: str) -> int:
        told = self.run(f"nft list counter inet {wall.NFT_TABLE} dropped_{name}").stdout
        return int(told.partition("packets ")[2].split()[0])

    def snapshot(self, monkeypatch: pytest.MonkeyPatch) -> Snapshot:
        for name in ("RECORD_PATH", "INSIDE_RECORD_PATH"):
            monkeypatch.setattr(wall, name, f"{self.root}{getattr(wall, name)}")
        request = Request(vpn=frozenset({"wall", "tunnel", "inside"}))
        text = script(request).replace("export LC_ALL=C PATH=", f"export LC_ALL=C PATH={self.root}/bin:$PATH:")
        text = text.replace(" /sys/fs/cgroup/docker/*/", f" {self.root}/cgroup/*/")
        done = self.run("exec sh -s", input=text)
        monkeypatch.undo()
        return parse(done.stdout.splitlines(), request)


@pytest.fixture
def bare(tmp_path: Path) -> Iterator[Host]:
    """A host with a container, an uplink and no wall."""
    (tmp_path / "bin").mkdir()
    dump = f"x\\t{wireguard.public_key(KEY)}\\t1\\toff\\n{PEER}\\tx\\t{SERVER}:51820\\t0.0.0.0/0\\t0\\t0\\t0\\t25\\n"
    (tmp_path / "bin/wg").write_text(
        f"""#!/bin/sh
case "$*" in
  *endpoints) printf '%s\\t%s\\n' {PEER} "$(cat {tmp_path}/endpoint)" ;;
  *latest-handshakes) printf '%s\\t%s\\n' {PEER} "$(cat {tmp_path}/handshake)" ;;
  syncconf*) echo {SERVER}:51820 >{tmp_path}/endpoint ;;
  *dump) printf '{dump}' ;;
esac
"""
    )
    (tmp_path / "endpoint").write_text(f"{SERVER}:51820\n")
    (tmp_path / "handshake").write_text("0\n")
    (tmp_path / "bin/wg").chmod(0o755)
    ready = tmp_path / "ready"
    holder = subprocess.Popen(["unshare", "-Urnm", "sh", "-c", f"touch {ready}; exec sleep 600"])
    try:
        while not ready.exists():
            time.sleep(0.01)
        host = Host(holder, tmp_path)
        host.run(_TOPOLOGY)
        yield host
    finally:
        holder.kill()
        holder.wait()


@pytest.fixture
def host(bare: Host) -> Host:
    """With wall and tunnel."""
    bare.put(VPN)
    bare.load()
    bare.run(_LINK_UP)
    bare.settle()
    return bare


def test_without_the_wall_packets_leave_by_the_uplink(bare: Host) -> None:
    """The negative control of everything below."""
    bare.run(_LINK_UP)
    through, past = bare.sends()
    assert through == 0
    assert past > 10


def test_with_the_wall_packets_leave_through_the_tunnel_only(host: Host) -> None:
    through, past = host.sends()
    assert through > 10
    assert past == 0


def test_before_there_is_a_tunnel_nothing_leaves(bare: Host) -> None:
    bare.put(VPN)
    bare.load()
    assert bare.sends() == (0, 0)


def test_the_wall_loads_before_any_of_its_interfaces_is_there(bare: Host) -> None:
    bare.run("ip link delete br-vpn; ip link set lo down")
    bare.put(VPN)
    bare.load()
    assert bare.check() == ""


_NFT_GONE = "nft flush ruleset"
_RULES_GONE = "ip rule flush; ip rule add priority 32766 lookup main; ip -6 rule flush"


@pytest.mark.parametrize(
    "fault",
    [
        "ip link set wg-vpn down",
        "ip link delete wg-vpn",
        "ip route flush table 51820",
        _RULES_GONE,
        "nft delete table ip docker",
        f"nft delete table inet {wall.NFT_TABLE}; ip link set wg-vpn down",
        f"{_NFT_GONE}; ip link delete wg-vpn",
        f"{_RULES_GONE}; ip link delete wg-vpn",
        "ip rule add priority 5 lookup main; ip link delete wg-vpn",
    ],
)
def test_nothing_leaves_by_the_uplink_whatever_is_gone(host: Host, fault: str) -> None:
    host.run(fault)
    _, past = host.sends()
    assert past == 0


@pytest.mark.parametrize("both", [f"{_RULES_GONE}; nft delete table inet {wall.NFT_TABLE}"])
def test_with_both_layers_gone_packets_leave_by_the_uplink(host: Host, both: str) -> None:
    """Negative control: each layer alone is what held above."""
    host.run(both)
    assert host.sends()[1] > 10


def test_after_others_tables_are_flushed_traffic_goes_on(host: Host) -> None:
    """Docker's masquerade is gone then; the wall's own does it."""
    host.run("nft delete table ip docker")
    through, past = host.sends()
    assert through > 10
    assert past == 0


@pytest.mark.parametrize("vpn", [VPN, replace(VPN, forwarding="off"), replace(VPN, forwarding=5000)])
def test_a_reload_under_traffic_loses_nothing_and_lets_nothing_out(host: Host, vpn: Vpn) -> None:
    host.put(vpn)
    host.load()
    host.run(
        "ip netns exec container nft 'add table ip s; add chain ip s out { type filter hook output priority 0; }; "
        f"add rule ip s out ip daddr {FAR} counter'"
    )
    before = host.seen("internet"), host.seen("far")
    wall_script = f"{host.root}{wall.WALL_PATH}"
    sender = host.python("container", _SENDER, FAR, 3, 9)
    host.run(f"{sender} & for i in 1 2 3 4 5 6 7 8 9 10; do {wall_script} load; done; wait")
    sent = int(host.run("ip netns exec container nft list chain ip s out").stdout.partition("packets ")[2].split()[0])
    assert host.seen("internet") == before[0]
    assert host.seen("far") - before[1] == sent > 100


def test_names_are_asked_of_the_vpns_servers_only(host: Host) -> None:
    assert host.sends(FAR, port=53) == (0, 0)
    assert host.dropped("dns") > 10
    before = host.dropped("dns")
    host.sends("10.2.0.1", port=53)
    assert host.dropped("dns") == before


def test_the_home_network_is_answered_and_never_asked(host: Host) -> None:
    listens = host.python("container", _SERVER, 8080)
    asks = host.python("internet", _ASK, "192.168.7.2", 8080)
    lan_listens = host.python("internet", _SERVER, 8081)
    lan_asked = host.python("container", _ASK, CLIENT, 8081)
    told = host.run(
        f"{listens} & a=$!; {lan_listens} & b=$!; sleep 0.5; {asks} && echo answered; "
        f"{lan_asked} 2>/dev/null && echo asked; kill $a $b; true"
    ).stdout
    assert told.split() == ["answered"]
    # And with the table gone the route layer alone does not send the question there either.
    host.run(f"nft delete table inet {wall.NFT_TABLE}")
    told = host.run(f"{lan_listens} & b=$!; sleep 0.5; {lan_asked} 2>/dev/null && echo asked; kill $b; true").stdout
    assert told == ""


@pytest.mark.parametrize("vpn", [VPN, replace(VPN, mode="container")], ids=["host", "container"])
def test_a_page_is_reached_from_home_while_the_tunnel_is_down_too(bare: Host, vpn: Vpn) -> None:
    """The kernel asks the rules whether an answer would find its way back, before it takes the question."""
    bare.put(vpn)
    bare.load()
    listens, asks = bare.python("container", _SERVER, 8080), bare.python("internet", _ASK, "192.168.7.2", 8080)
    asked = f"{listens} & a=$!; sleep 0.5; {asks} 2>/dev/null && echo answered; kill $a"
    for strictness in (1, 2):
        bare.run(f"echo {strictness} >/proc/sys/net/ipv4/conf/all/rp_filter")
        assert bare.run(f"{asked}; true").stdout == "answered\n", strictness
    # The control: without the mark the question is dropped.
    bare.run("echo 0 >/proc/sys/net/ipv4/conf/all/src_valid_mark")
    assert bare.run(f"{asked}; true").stdout == ""


def test_the_host_itself_is_not_reached_from_the_bridge_nor_out_of_the_tunnel_and_reaches_both(host: Host) -> None:
    host.run("ip address replace 10.2.0.2/32 dev wg-vpn; ip route replace 10.2.0.1 dev wg-vpn")
    serve = f"python3 -c '{_SERVER}' 8082"
    inside = host.python("container", _SERVER, 8083)
    far = host.python("far", _SERVER, 8084)
    told = host.run(
        f"{serve} & a=$!; {inside} & b=$!; {far} & c=$!; sleep 0.5; "
        f"{host.python('container', _ASK, '172.29.29.1', 8082)} 2>/dev/null && echo container; "
        f"{host.python('far', _ASK, '10.2.0.2', 8082)} 2>/dev/null && echo tunnel; "
        f"{host.python('internet', _ASK, '192.168.7.2', 8082)} 2>/dev/null && echo home; "
        f"python3 -c '{_ASK}' {CONTAINER} 8083 && echo to-container; "
        f"python3 -c '{_ASK}' 10.2.0.1 8084 && echo to-far; kill $a $b $c; true"
    ).stdout
    assert told.split() == ["home", "to-container", "to-far"]
    assert host.dropped("host") > 0
    assert host.dropped("inbound") > 0


def test_out_of_the_tunnel_only_the_forwarded_port_is_reached_and_a_reload_keeps_it(host: Host) -> None:
    host.run("ip address replace 10.2.0.2/32 dev wg-vpn")
    forwarded = f"nft add element inet {wall.NFT_TABLE} forwarded '{{ tcp . 6000 : {CONTAINER} . 8080 }}'"
    listens = host.python("container", _SERVER, 8080)
    asks = [
        f"{host.python('far', _ASK, address, port)} 2>/dev/null && echo {address}:{port}; true"
        for address, port in (("10.2.0.2", 6000), ("10.2.0.2", 8080), (CONTAINER, 8080), ("10.2.0.2", 6001))
    ]
    every = "\n".join(asks)
    told = host.run(
        f"{listens} & a=$!; sleep 0.5\n{every}\n{forwarded}\necho now\n{every}\n"
        f"{host.root}{wall.WALL_PATH} load\necho reloaded\n{every}\nkill $a"
    ).stdout
    assert told.split() == ["now", "10.2.0.2:6000", "reloaded", "10.2.0.2:6000"]
    assert host.check() == ""


def test_a_number_that_never_changes_is_led_to_the_listener_and_to_nobody_else(host: Host) -> None:
    vpn = replace(VPN, forwarding=5000)
    host.put(vpn)
    host.load()
    host.run("ip address replace 10.2.0.2/32 dev wg-vpn")
    listens = "\n".join(f'{host.python("container", _SERVER, port)} & pids="$pids $!"' for port in (5000, 5001))
    asks = [f"{host.python('far', _ASK, '10.2.0.2', port)} 2>/dev/null && echo {port}; true" for port in (5000, 5001)]
    every = "\n".join(asks)
    told = host.run(
        f"pids=; {listens}; sleep 0.5\n{every}\necho now\n"
        f"ip -n container address add {vpn.listener}/24 dev eth0\n{every}\nkill $pids"
    ).stdout
    assert told.split() == ["now", "5000"]


def test_with_their_addresses_nothing_leaves_by_another_bridge_either(host: Host) -> None:
    """Docker made the network anew under another name, say: the rules of the bridge see nothing of it."""
    host.run("ip link set br-vpn down; ip link set br-vpn name br-other; ip link set br-other up")
    # A bridge that comes up forwards after a moment.
    assert host.sends(seconds=3) == (0, 0)
    assert host.dropped("astray") > 10


def test_no_forged_sender_is_told_that_there_is_no_way(host: Host) -> None:
    """The host's answer would go to that sender, outside, and quote the packet."""
    host.run("ip netns exec internet nft 'insert rule ip c in icmp type destination-unreachable counter'")
    host.run("ip link delete wg-vpn; ip -n container address add 203.0.113.99/32 dev lo")
    host.run("ip -n container route replace default via 172.29.29.1 src 203.0.113.99")
    host.sends()
    assert host.seen("internet") == 0
    assert host.dropped("astray") > 10
    host.run(f"nft flush chain inet {wall.NFT_TABLE} arriving")
    host.sends()
    assert host.seen("internet") > 0, "without that rule it is told"


def test_ipv6_of_the_bridge_goes_nowhere(host: Host) -> None:
    host.run(
        "echo 0 >/proc/sys/net/ipv6/conf/br-vpn/disable_ipv6; ip address add fd29::1/64 dev br-vpn nodad; "
        "ip -n container address add fd29::5/64 dev eth0 nodad; echo 1 >/proc/sys/net/ipv6/conf/all/forwarding; "
        "ip -n container -6 route add default via fd29::1; ip -6 address add fd77::2/64 dev up0 nodad; "
        "ip -n internet -6 address add fd77::9/64 dev eth0 nodad; "
        "ip netns exec internet nft 'add table ip6 c; "
        "add chain ip6 c in { type filter hook prerouting priority raw; }; "
        "add rule ip6 c in ip6 saddr fd29::5 counter'"
    )
    program = _SENDER.replace("AF_INET,", "AF_INET6,")

    def counted() -> int:
        told = host.run("ip netns exec internet nft list chain ip6 c in").stdout
        return int(told.partition("packets ")[2].split()[0])

    def arrive() -> bool:
        before = counted()
        host.run(host.python("container", program, "fd77::9", 0.5, 9))
        return counted() > before

    # The control goes first: until addresses and neighbours are settled nothing arrives, wall or not.
    assert "100:\tfrom all iif br-vpn lookup 51820" in host.run("ip -6 rule").stdout
    host.run(f"nft delete table inet {wall.NFT_TABLE}; ip -6 rule del priority 100")
    end = time.monotonic() + 60
    while not arrive():
        assert time.monotonic() < end, "with neither"
    host.run("ip -6 rule add priority 100 iif br-vpn table 51820")
    assert not arrive(), "the routes alone"
    host.load()
    assert not arrive(), "both"
    host.run("ip -6 rule del priority 100")
    assert not arrive(), "the table alone"


def test_in_mode_container_only_the_vpns_server_is_reached(bare: Host) -> None:
    bare.put(replace(VPN, mode="container"))
    bare.settle()
    assert bare.check() == ""
    bare.run(
        "ip netns exec internet nft 'add rule ip c in udp dport 51820 counter; add chain ip c own; "
        f"add table ip v; add chain ip v in {{ type filter hook prerouting priority raw; }}; "
        f"add rule ip v in ip daddr {SERVER} counter'"
    )
    count = "ip netns exec internet nft list chain ip v in"

    def served() -> int:
        return int(bare.run(count).stdout.partition("packets ")[2].split()[0])

    assert bare.sends() == (0, 0)
    bare.sends(SERVER, port=51821)
    assert served() == 0
    bare.sends(SERVER, port=51820)
    assert served() > 10
    # without the table the routes alone keep everything but the server away
    bare.run("nft flush ruleset")
    assert bare.sends() == (0, 0)


_DRIFTS = {
    "ip rule del priority 100": "IPv4 rule 100 from all iif br-vpn lookup 51820: missing",
    "ip -6 rule del priority 100": "IPv6 rule 100 from all iif br-vpn lookup 51820: missing",
    "ip rule del priority 98": "IPv4 rule 98 from all fwmark 0x6d656469 iif br-vpn lookup main: missing",
    "ip rule add priority 50 iif br-vpn lookup main": "IPv4 rule 50 from all iif br-vpn lookup main: is not ours, "
    "is removed",
    "ip route del unreachable default metric 4294967295 table 51820": "IPv4 routing table 51820: "
    "unreachable default at its end is missing",
    "ip -6 route del unreachable default metric 4294967295 table 51820": "IPv6 routing table 51820: "
    "unreachable default at its end is missing",
    "ip route add 203.0.113.0/24 dev up0 table 51820": "IPv4 routing table 51820, route 203.0.113.0/24 dev up0 scope "
    "link: is not ours, is removed",
    f"nft delete table inet {wall.NFT_TABLE}": "nftables table mediahost_vpn: is not as it was loaded",
    f"nft insert rule inet {wall.NFT_TABLE} forward accept": "nftables table mediahost_vpn: is not as it was loaded",
    f"nft flush chain inet {wall.NFT_TABLE} forward": "nftables table mediahost_vpn: is not as it was loaded",
    f"nft flush chain inet {wall.NFT_TABLE} leaving": "nftables table mediahost_vpn: is not as it was loaded",
}


@pytest.mark.parametrize("drift", _DRIFTS)
def test_each_drift_is_told_and_mended_by_a_reload(host: Host, drift: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def told() -> list[str]:
        expected = replace(VPN)
        files = [
            File(file.path, Path(f"{host.root}{file.path}").read_bytes()) for file in wall.wall_files(VPN, SETTINGS)
        ]
        seen = host.snapshot(monkeypatch)
        monkeypatch.setattr(wall, "wall_files", lambda vpn, settings: files)
        found = stage.wall_differences(_Wanted(), expected, seen)  # type: ignore[arg-type]
        monkeypatch.undo()
        return found

    assert told() == []
    assert host.check() == ""
    host.run(drift)
    assert told() == [_DRIFTS[drift]]
    assert host.check() != ""
    host.load()
    assert told() == []
    assert host.check() == ""
    through, past = host.sends()
    assert past == 0
    assert through > 10


class _Wanted:
    settings = SETTINGS
    vpn: Vpn | None = VPN


def test_the_living_tunnel_is_compared_with_its_configuration(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    def told() -> list[str]:
        return stage.tunnel_differences(VPN, host.snapshot(monkeypatch))

    assert told() == []
    host.run("ip link set wg-vpn mtu 1300")
    host.run("ip address add 10.9.9.9/32 dev wg-vpn")
    assert told() == [
        "wg-vpn: MTU is 1300, wanted 1420",
        "wg-vpn: addresses are 10.2.0.2/32, 10.9.9.9/32, wanted 10.2.0.2/32",
    ]
    host.settle()
    assert told() == []
    host.run("ip link set wg-vpn down")
    assert told() == ["wg-vpn: is down", "IPv4 routing table 51820: default dev wg-vpn is missing"]
    host.settle()
    assert told() == []
    host.run("ip link delete wg-vpn")
    assert told() == ["wg-vpn: is not there (confined services have no way out until it is)"]


@pytest.mark.parametrize(("ago", "followed"), [(5, True), (600, False)])
def test_a_server_that_moved_is_followed_while_it_talks_and_is_set_back_when_it_is_silent(
    host: Host, ago: int, followed: bool
) -> None:
    (host.root / "endpoint").write_text("203.0.113.9:51820\n")
    (host.root / "handshake").write_text(f"{int(time.time()) - ago}\n")
    watch = host.start_watch()
    try:
        time.sleep(2)
        assert (host.root / "endpoint").read_text() == (f"{'203.0.113.9' if followed else SERVER}:51820\n")
        host.settle()
        assert (host.root / "endpoint").read_text() == f"{SERVER}:51820\n", "a reload sets it as configured"
    finally:
        watch.terminate()
        watch.wait()


@pytest.mark.parametrize("empty", [True, False])
def test_switched_off_nothing_is_left_unless_docker_says_that_somebody_is_behind_the_wall(
    host: Host, empty: bool
) -> None:
    (host.root / "bin/systemctl").write_text("#!/bin/sh\n")
    (host.root / "bin/docker").write_text(f"#!/bin/sh\n[ $2 = inspect ] || exit {int(not empty)}\n")
    for name in ("systemctl", "docker"):
        (host.root / "bin" / name).chmod(0o755)
    off = _Wanted()
    off.vpn = None
    paths = dict.fromkeys(wall.PATHS, PathState("file", "644", "0", "0", "root", "root"))
    (step,) = stage.off_steps(off, Snapshot(paths=paths))  # type: ignore[arg-type]
    here = re.sub(r"(?<![\w./])/(?=(etc|usr|run|var)/)", f"{host.root}/", step.command)
    done = host.run(here, check=False)
    left = [path for path in wall.PATHS if Path(f"{host.root}{path}").exists()]
    state = host.run(
        "ip rule; ip -6 rule; ip route show table 51820 2>&1; ip link show; nft list tables", check=False
    )
    present = [name for name in ("iif br-vpn", "unreachable", "wg-vpn", wall.NFT_TABLE) if name in state.stdout]
    if empty:
        assert (done.returncode, left, present) == (0, [], [])
        assert not Path(f"{host.root}{wall.RULESET_PATH}").parent.exists()
        assert host.sends()[1] > 10
    else:
        assert done.returncode != 0
        assert "mediahost_vpn has containers" in done.stderr
        assert (len(left), len(present)) == (len(wall.PATHS), 4)
        assert host.sends()[1] == 0


def test_the_watch_mends_by_itself_what_is_gone(host: Host) -> None:
    watch = host.start_watch()
    try:
        time.sleep(1)
        for fault, seconds in (
            (_RULES_GONE, 4),
            ("ip link set wg-vpn down", 4),
            ("ip route flush table 51820", 4),
            (_NFT_GONE, 14),
        ):
            host.run(fault)
            end = time.monotonic() + seconds
            while (host.check() or not host.sends(seconds=0.1)[0]) and time.monotonic() < end:
                time.sleep(0.1)
            assert host.check() == "", fault
            through, past = host.sends()
            assert through > 10, fault
            assert past == 0, fault
        host.run("ip link delete wg-vpn")
        assert host.sends() == (0, 0)
        host.run(_LINK_UP)
        time.sleep(2.5)
        assert host.sends()[0] > 10
    finally:
        watch.terminate()
        watch.wait()


# --- inside the container's own namespace

# Docker's file of each namespace; that of containers with the host's own network is called so. Then its bridge, as
# `docker network connect bridge` leads into it: where no priority is known the default route moves there.
_DOCKER = """
mount -t sysfs none /sys
mkdir -p /run/docker
ln -s /run/netns /run/docker/netns
touch /run/netns/default
mount --bind /proc/self/ns/net /run/netns/default
ip link add docker0 type bridge
ip link set docker0 up
ip address add 172.17.0.1/16 dev docker0
nft add rule ip docker post ip saddr 172.17.0.0/16 oifname != docker0 masquerade
"""
_ATTACH = """
ip link add second type veth peer name eth1 netns container
ip link set second master docker0 up
ip -n container address add 172.17.0.2/16 dev eth1
ip -n container link set eth1 up
ip -n container route replace default via 172.17.0.1
"""
_INSIDE_TABLE = f"inet {wall.INSIDE_TABLE}"


def has_inside(host: Host, namespace: str = "container") -> bool:
    enter = f"ip netns exec {namespace} " if namespace else ""
    return wall.INSIDE_TABLE in host.run(f"{enter}nft list tables").stdout


def refused_inside(host: Host) -> int:
    told = host.run(f"ip netns exec container nft list counter {_INSIDE_TABLE} {wall.INSIDE_COUNTER}").stdout
    return int(told.partition("packets ")[2].split()[0])


def until(claim: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not (found := claim()) and time.monotonic() < end:
        time.sleep(0.1)
    return found


@pytest.fixture
def docker(host: Host) -> Host:
    """With Docker's files and its own bridge, and each namespace looked at once."""
    host.run(_DOCKER)
    host.settle()
    return host


def test_a_second_network_attached_by_hand_leads_nowhere(docker: Host) -> None:
    through, past = docker.sends()
    assert (through > 10, past) == (True, 0), "the wall inside stops nothing that goes into the tunnel"
    docker.run(_ATTACH)
    assert docker.sends() == (0, 0)
    assert refused_inside(docker) > 10
    docker.run(f"ip netns exec container nft delete table {_INSIDE_TABLE}")
    # The control. A port that comes up forwards after a moment.
    assert docker.sends(seconds=3)[1] > 10, "without the wall inside it leaves"


def test_with_the_tunnels_address_nothing_leaves_by_a_second_network_either(docker: Host) -> None:
    docker.run(_ATTACH)
    docker.run(f"ip -n container route replace default via 172.17.0.1 src {CONTAINER}")
    assert docker.sends(seconds=3) == (0, 0)
    assert docker.dropped("astray") > 10
    docker.run(f"nft delete table inet {wall.NFT_TABLE}")
    assert docker.sends()[1] > 10, "without the host's wall it leaves"


def test_ipv6_of_a_second_network_goes_nowhere(docker: Host) -> None:
    docker.run(_ATTACH)
    docker.run(
        "ip address add fd17::1/64 dev docker0 nodad; ip -n container address add fd17::2/64 dev eth1 nodad; "
        "echo 1 >/proc/sys/net/ipv6/conf/all/forwarding; ip -n container -6 route add default via fd17::1; "
        "ip -6 address add fd77::2/64 dev up0 nodad; ip -n internet -6 address add fd77::9/64 dev eth0 nodad; "
        "ip netns exec internet nft 'add table ip6 c; "
        "add chain ip6 c in { type filter hook prerouting priority raw; }; "
        "add rule ip6 c in ip6 saddr fd17::2 counter'"
    )
    program = _SENDER.replace("AF_INET,", "AF_INET6,")

    def arrived() -> int:
        docker.run(docker.python("container", program, "fd77::9", 3, 9))
        told = docker.run("ip netns exec internet nft list chain ip6 c in").stdout
        return int(told.partition("packets ")[2].split()[0])

    assert arrived() == 0
    docker.run(f"ip netns exec container nft delete table {_INSIDE_TABLE}")
    assert arrived() > 10


def test_the_host_itself_and_who_is_not_in_the_tunnels_network_get_no_wall_inside(docker: Host) -> None:
    assert "172.29.29.1/24" in docker.run("nsenter --net=/run/docker/netns/default ip address").stdout
    assert has_inside(docker)
    assert not has_inside(docker, "")
    assert not has_inside(docker, "internet")


def test_on_the_internal_network_it_is_reached_and_from_there_nothing_leaves(docker: Host) -> None:
    docker.run(
        "ip netns add proxy; ip link add br-confined type bridge; ip link set br-confined up; "
        "ip address add 172.30.0.1/24 dev br-confined; "
        "ip link add inner type veth peer name eth2 netns container; ip link set inner master br-confined up; "
        "ip -n container address add 172.30.0.5/24 dev eth2; ip -n container link set eth2 up; "
        "ip link add outer type veth peer name eth0 netns proxy; ip link set outer master br-confined up; "
        "ip -n proxy address add 172.30.0.6/24 dev eth0; ip -n proxy link set eth0 up"
    )
    listens = docker.python("container", _SERVER, 8090)
    asks = docker.python("proxy", _ASK, "172.30.0.5", 8090)
    assert docker.run(f"{listens} & a=$!; sleep 4; {asks} && echo answered; kill $a").stdout == "", "not known yet"
    docker.settle()
    assert docker.run(f"{listens} & a=$!; {asks} && echo answered; kill $a").stdout.split() == ["answered"]
    docker.run(_ATTACH)
    docker.run("ip -n container route replace default via 172.17.0.1 src 172.30.0.5")
    assert docker.sends(seconds=3) == (0, 0)
    assert refused_inside(docker) > 10


def test_what_a_container_puts_into_its_own_tunnel_passes_and_its_loopback_too(bare: Host) -> None:
    bare.put(replace(VPN, mode="container"))
    bare.run(_DOCKER)
    bare.settle()
    bare.run(
        "ip link add tun0 netns container type veth peer name eth0 netns far; ip -n far link set eth0 up; "
        f"ip -n far address add {FAR}/32 dev lo; ip -n container address add 10.2.0.2/32 dev tun0; "
        "ip -n container link set tun0 up; ip -n container route replace default dev tun0; "
        "ip -n far route add 10.2.0.2 dev eth0"
    )
    through, past = bare.sends()
    assert (through > 10, past) == (True, 0)
    listens, asks = bare.python("container", _SERVER, 9999), bare.python("container", _ASK, "127.0.0.1", 9999)
    assert bare.run(f"{listens} & a=$!; {asks} && echo answered; kill $a").stdout.split() == ["answered"]
    bare.run(_ATTACH)
    assert bare.sends(seconds=3) == (0, 0)
    assert refused_inside(bare) > 10


def test_the_watch_walls_a_new_namespace_at_once_and_mends_the_wall_inside(docker: Host) -> None:
    watch = docker.start_watch()
    try:
        time.sleep(2)
        docker.run(
            "ip netns add other; ip link add port2 type veth peer name eth0; ip link set port2 master br-vpn up; "
            "ip link set eth0 netns other; ip -n other address add 172.29.29.6/24 dev eth0; "
            "ip -n other link set eth0 up"
        )
        assert until(lambda: has_inside(docker, "other"), 5)
        docker.run(f"ip netns exec other nft delete table {_INSIDE_TABLE}")
        docker.run(f"ip netns exec container nft flush chain {_INSIDE_TABLE} leaving")
        assert until(lambda: has_inside(docker, "other"), 14)
        docker.run(_ATTACH)
        assert docker.sends(seconds=3) == (0, 0)
        # Taken out of the tunnel's network it keeps its wall.
        docker.run(f"ip -n container address del {CONTAINER}/24 dev eth0; ip link delete port")
        docker.run(f"ip netns exec container nft delete table {_INSIDE_TABLE}")
        assert until(lambda: has_inside(docker), 14)
    finally:
        watch.terminate()
        watch.wait()


def test_drift_of_the_wall_inside_is_told_and_mended(docker: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    ready = docker.root / "pid"
    inner = subprocess.Popen(
        ["nsenter", "-t", str(docker.holder.pid), "-U", "-n", "-m", "--preserve-credentials", "sh", "-c"]
        + [f"exec ip netns exec container sh -c 'echo $$ >{ready}; exec sleep 100'"]
    )
    try:
        assert until(lambda: ready.exists() and bool(ready.read_text()), 5)
        group = docker.root / "cgroup/abc"
        group.mkdir(parents=True)
        (group / "cgroup.procs").write_text(ready.read_text())
        container = ContainerState(
            "abc", "qbittorrent", "h", "image", "running", "healthy", frozenset({"mediahost_vpn"}), "mediahost"
        )

        def told() -> list[str]:
            wanted = next(file for file in wall.files(VPN, SETTINGS) if file.path == wall.INSIDE_PATH)
            paths = {wanted.path: PathState("file", "644", "0", "0", "root", "root", wanted.sha256)}
            seen = replace(docker.snapshot(monkeypatch), containers=(container,), paths=paths)
            assert seen.vpn.inside == {"abc": (("172.29.29.1", "eth0"),)}
            return [step.change for step in stage.inside_wall_steps(_Wanted(), seen)]  # type: ignore[arg-type]

        what = "service qbittorrent: the wall inside its network"
        assert told() == []
        for drift, difference in (
            (f"delete table {_INSIDE_TABLE}", "is missing"),
            (f"insert rule {_INSIDE_TABLE} leaving accept", "is not as it was loaded"),
        ):
            docker.run(f"ip netns exec container nft {drift}")
            assert told() == [f"{what} {difference}"]
            docker.settle()
            assert told() == []
        docker.put(replace(VPN, subnet="172.29.29.0/25"))
        docker.settle()
        assert told() == [f"{what} is an older one"], "this plan wants the other block"
    finally:
        inner.kill()
        inner.wait()
