"""What happens to a tunnel, and to the containers behind it: each a way to break it, and how it is mended, if at all.

Where a fault has no `heals` the host must come back by itself. The unit that watches the tunnel is not told of any.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lab import faults, network
from tests.lab.leaklab import FOREIGN_DNS4, WIREGUARD_PORT, Lab
from tests.lab.waiting import reboot

Act = Callable[[Lab], object]

BOTH = ("host", "container")
HOST, CONTAINER = ("host",), ("container",)

TORRENT = "mediahost-qbittorrent-1"
CLIENT = "mediahost-gluetun-1"
COMPOSE = "docker compose --project-directory /opt/media-server"
_MOVED_PORT = WIREGUARD_PORT + 1
_HOLD_SECONDS = 8


@dataclass(frozen=True)
class Fault:
    """`strikes`, then `hold` seconds in which something might leak, then `heals`; in the `modes` it makes sense in.

    `boots`: the guest's clock starts anew, so what counts is the time from the container's new network on.
    `sample` ones run in every `make test`.
    """

    name: str
    strikes: Act
    heals: Act | None = None
    modes: tuple[str, ...] = BOTH
    hold: int = _HOLD_SECONDS
    boots: bool = False
    sample: bool = False


def runs(script: str) -> Act:
    """As root on the host under test."""
    return lambda lab: lab.root(script)


def provider_runs(script: str) -> Act:
    """As root on the provider's machine."""
    return lambda lab: lab.at_provider(script)


_DEAF = "nft add table inet fault; nft add chain inet fault deaf '{ type filter hook input priority -300; }'; "
_DEAF += f"nft add rule inet fault deaf udp dport {WIREGUARD_PORT} drop"
_HEARS = "nft delete table inet fault"


def _service_of_mode(lab: Lab) -> str:
    return TORRENT if lab.mode == "host" else CLIENT


def _restart_container(lab: Lab) -> None:
    lab.root(f"docker restart -t 5 {TORRENT}")


def _recreate(lab: Lab) -> None:
    lab.root(f"{COMPOSE} up -d --no-deps --force-recreate qbittorrent")


def _attach(lab: Lab) -> None:
    lab.root(f"docker network connect bridge {_service_of_mode(lab)}")


def _detach(lab: Lab) -> None:
    lab.root(f"docker network disconnect bridge {_service_of_mode(lab)}")


def _out_and_in(lab: Lab) -> None:
    name = _service_of_mode(lab)
    lab.root(f"docker network disconnect mediahost_vpn {name}; sleep 3; docker network connect mediahost_vpn {name}")


def _resolver(lines: str) -> Act:
    """The host asks another name server from now on. Docker reads it when a container gets its network.

    The host's clock would ask it as well, and go where its answers lead: into the lab's internet, in the open. It
    stays off: systemd-resolved knows that server for a while after it is taken back.
    """

    def act(lab: Lab) -> None:
        lab.root("systemctl stop systemd-timesyncd")
        lab.root(f"rm -f /etc/resolv.conf; printf '{lines}' >/etc/resolv.conf; systemctl restart docker")
        lab.root(f"docker restart -t 5 {_service_of_mode(lab)}")

    return act


def _resolver_back(lab: Lab) -> None:
    lab.root("ln -sfn ../run/systemd/resolve/stub-resolv.conf /etc/resolv.conf; systemctl restart docker")


# A router that nobody asked for: it offers a prefix, and itself as the way to everywhere (RFC 4861).
_ADVERTISE = r"""
import socket, struct, time
s = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
card = socket.if_nametoindex("CARD")
s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, card)
prefix = struct.pack(">BBBBIII16s", 3, 4, 64, 0xC0, 3600, 1800, 0, socket.inet_pton(socket.AF_INET6, "2001:db8:77::"))
packet = struct.pack(">BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0) + prefix
for _ in range(5):
    s.sendto(packet, ("ff02::1", 0, 0, card))
    time.sleep(1)
"""


def _router_advertised(lab: Lab) -> None:
    lab.root(
        "printf '[Network]\\nIPv6AcceptRA=yes\\n' >/etc/systemd/network/20-segment.network.d/router.conf; "
        "networkctl reload"
    )
    card = lab.provider.run(f"ip -4 -o address show to {lab.provider.address4} | cut -d' ' -f2").stdout.strip()
    lab.provider.run(["sudo", "python3", "-c", _ADVERTISE.replace("CARD", card)])
    # The control: the host has taken the prefix.
    assert "2001:db8:77:" in lab.host.run("for i in $(seq 20); do ip -6 address; sleep 0.5; done").stdout


def _moved(lab: Lab) -> None:
    lab.at_provider(f"wg set wg0 listen-port {_MOVED_PORT}")


def _follow(lab: Lab) -> None:
    lab.hand_over(port=_MOVED_PORT)
    lab.home.apply()


def _suspended(lab: Lab) -> None:
    with faults.paused(lab.host):
        lab.provider.run("sleep 20")


def _unplugged(lab: Lab) -> None:
    lab.host.set_link(network.SEGMENT, up=False)


def _plugged(lab: Lab) -> None:
    lab.host.set_link(network.SEGMENT, up=True)


def _reboot_without_endpoint(lab: Lab) -> None:
    lab.at_provider(_DEAF)
    lab.reboot()


def _killed_apply(lab: Lab) -> None:
    """A run that is killed while it puts containers back."""

    def among_services(event: dict[str, Any]) -> bool:
        return (event["event"], event.get("operation")) == ("change", "stack | services")

    lab.root(f"docker rm -f {TORRENT}")
    assert lab.home.apply_until(among_services)


def _apply(lab: Lab) -> None:
    lab.home.apply()


_PACKAGES = "docker-ce docker-ce-cli"
_INSTALL = (
    "DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300 install -y --allow-downgrades "
    "--allow-change-held-packages >/dev/null"
)


def _older_docker(lab: Lab) -> None:
    """The lab's repository has two versions of the engine (lab/vendor/docker.py)."""
    versions = sorted(set(lab.root("apt-get -qq update; apt-cache madison docker-ce | cut -d'|' -f2").split()))
    assert len(versions) > 1, versions
    lab.root(f"{_INSTALL} {' '.join(f'{name}={versions[0]}' for name in _PACKAGES.split())}")


_RULES_GONE = (
    "ip rule flush; ip rule add priority 32766 lookup main; ip rule add priority 32767 lookup default; "
    "ip -6 rule flush; ip -6 rule add priority 32766 lookup main"
)
_RECONFIGURE = "networkctl reload; for card in $(ls /sys/class/net); do networkctl reconfigure $card; done"
# As `nft flush ruleset` does it: chains that were only emptied would keep UFW's policy, and shut the lab out.
_OTHERS = (
    "nft list tables | grep -v mediahost_vpn | while read -r _ family name; do nft delete table $family $name; done"
)
# What Docker and UFW had there comes back with them only.
_OTHERS_BACK = "systemctl restart docker; ufw reload"

FAULTS = (
    Fault("tunnel down", runs("ip link set wg-vpn down"), modes=HOST),
    Fault("tunnel deleted", runs("ip link delete wg-vpn"), modes=HOST, sample=True),
    Fault(
        "tunnel deleted ten times",
        runs("for i in 1 2 3 4 5 6 7 8 9 10; do ip link delete wg-vpn 2>/dev/null; sleep 2; done; true"),
        modes=HOST,
    ),
    Fault(
        "tunnel down inside the client",
        runs(f"docker exec {CLIENT} ip link set tun0 down"),
        runs(f"docker restart -t 5 {CLIENT}"),
        modes=CONTAINER,
    ),
    Fault("tunnel address removed", runs("ip address flush dev wg-vpn"), modes=HOST),
    Fault("peer removed", runs('wg set wg-vpn peer "$(wg show wg-vpn peers)" remove'), modes=HOST),
    Fault("routes of the tunnel flushed", runs("ip route flush table 51820"), modes=HOST),
    Fault("endpoint dead", provider_runs(_DEAF), provider_runs(_HEARS), hold=30),
    Fault("endpoint moved", _moved, _follow, hold=20),
    Fault("server rebooted", lambda lab: reboot(lab.provider), hold=0),
    Fault("docker restarted", runs("systemctl restart docker")),
    # Live restore: containers go on without it.
    Fault(
        "docker stopped for a while",
        runs("systemctl stop docker.socket docker"),
        runs("systemctl start docker.socket docker"),
        hold=15,
    ),
    Fault("docker killed", runs("systemctl kill -s KILL docker")),
    Fault(
        "docker and containerd killed",
        runs("systemctl kill -s KILL docker; systemctl kill -s KILL --kill-whom=main containerd"),
    ),
    Fault("container restarted", _restart_container),
    Fault("container recreated", _recreate, sample=True),
    Fault("client restarted", runs(f"docker restart -t 5 {CLIENT}"), modes=CONTAINER),
    Fault("client killed", runs(f"docker kill {CLIENT}"), _apply, modes=CONTAINER),
    Fault(
        "client recreated",
        runs(f"{COMPOSE} up -d --force-recreate gluetun prowlarr qbittorrent"),
        modes=CONTAINER,
    ),
    Fault("everything taken down and up again", runs(f"{COMPOSE} down -t 5"), runs(f"{COMPOSE} up -d"), hold=2),
    Fault("network taken away and given back", _out_and_in, modes=HOST),
    Fault("second network attached by hand", _attach, _detach),
    Fault("firewall reloaded", runs("ufw reload"), sample=True),
    Fault("firewall disabled", runs("ufw disable"), runs("ufw --force enable")),
    Fault("others' tables deleted", runs(_OTHERS), runs(_OTHERS_BACK)),
    Fault("all tables flushed", runs("nft flush ruleset"), runs(_OTHERS_BACK), hold=20),
    Fault("the wall's table deleted", runs("nft delete table inet mediahost_vpn"), hold=20),
    Fault("rules flushed", runs(_RULES_GONE), hold=20),
    Fault("rules of the bridge flushed", runs("while ip rule del iif br-vpn 2>/dev/null; do :; done"), modes=HOST),
    Fault("networkd restarted", runs("systemctl restart systemd-networkd")),
    # By a unit of its own: the login by which it is asked may break.
    Fault("networkd takes its cards anew", runs(f"systemd-run -q --collect sh -c {shlex.quote(_RECONFIGURE)}")),
    Fault("watcher killed", runs("systemctl kill -s KILL mediahost-vpn"), modes=HOST),
    Fault("watcher restarted", runs("systemctl restart mediahost-vpn"), modes=HOST),
    Fault(
        "units of the wall stopped",
        runs("systemctl stop mediahost-vpn mediahost-vpn-wall; true"),
        runs("systemctl start mediahost-vpn-wall docker mediahost-vpn"),
        modes=HOST,
    ),
    Fault("DNS server changed", _resolver(f"nameserver {FOREIGN_DNS4}\\n"), _resolver_back),
    Fault("resolv.conf names the loopback", _resolver("nameserver 127.0.0.54\\n"), _resolver_back),
    Fault("IPv6 router advertised", _router_advertised),
    Fault("machine suspended", _suspended, hold=0),
    Fault("cable pulled", _unplugged, _plugged, hold=25),
    Fault("power cut", Lab.power_cut, hold=0, boots=True),
    Fault("rebooted", Lab.reboot, hold=0, boots=True),
    Fault(
        "rebooted with the endpoint unreachable", _reboot_without_endpoint, provider_runs(_HEARS), hold=20, boots=True
    ),
    Fault("Docker exchanged for an older version, and upgraded", _older_docker, runs(f"{_INSTALL} {_PACKAGES}")),
    Fault("run of mediahost killed in the middle", _killed_apply, _apply),
)

# --- without the walls ------------------------------------------------------------------------------------------

_WATCHER_GONE = "systemctl stop mediahost-vpn"
_TABLE_GONE = "nft delete table inet mediahost_vpn"
_INSIDE_GONE = "for name in /run/docker/netns/*; do nsenter --net=$name nft delete table inet mediahost_inside; done"
_POLICY_GONE = (
    "while ip rule del iif br-vpn 2>/dev/null; do :; done; while ip -6 rule del iif br-vpn 2>/dev/null; do :; done"
)


@dataclass(frozen=True)
class Control:
    """A host with walls taken away: the protocols (see `leaklab.kinds_of`) that must then be seen to leak.

    With `leaks` empty the wall that is left holds alone.
    """

    name: str
    breaks: Act
    leaks: frozenset[str]
    modes: tuple[str, ...] = BOTH
    sample: bool = False


def _as_one_without_dns(lab: Lab) -> None:
    """A container in the confined network for which nobody named a DNS server, on a host whose own is on loopback."""
    image = lab.root("docker inspect -f '{{.Config.Image}}' mediahost-sonarr-1").strip()
    _resolver("nameserver 127.0.0.54\\n")(lab)
    lab.root(f"docker run -d --name careless --network mediahost_vpn --entrypoint busybox {image} sleep 600")


def _in_another_network(lab: Lab) -> None:
    name = _service_of_mode(lab)
    lab.root(f"docker network create open; docker network connect open {name}")
    lab.root(f"docker network disconnect mediahost_vpn {name}")


def _in_another_network_without_wall(lab: Lab) -> None:
    lab.root(f"{_WATCHER_GONE}; {_INSIDE_GONE}; true")
    _in_another_network(lab)


def _no_client_firewall(lab: Lab) -> None:
    inside = f"nsenter -n -t $(docker inspect -f '{{{{.State.Pid}}}}' {CLIENT})"
    lab.root(f"{_WATCHER_GONE}; {_TABLE_GONE}; {_POLICY_GONE}; true")
    lab.root(f"{inside} nft flush ruleset; {inside} ip rule flush; {inside} ip rule add priority 32766 lookup main")


EVERYTHING = frozenset({"udp", "tcp", "icmp", "dns", "neighbour"})

CONTROLS = (
    Control(
        "without its table and its rules",
        runs(f"{_WATCHER_GONE}; {_TABLE_GONE}; {_POLICY_GONE}"),
        EVERYTHING,
        modes=HOST,
        sample=True,
    ),
    Control("without its rules", runs(f"{_WATCHER_GONE}; {_POLICY_GONE}"), frozenset(), modes=HOST),
    Control(
        "without its table, the tunnel deleted",
        # Routes alone keep the internet out of reach; neighbours are the table's to keep out.
        runs(f"{_WATCHER_GONE}; {_TABLE_GONE}; ip link delete wg-vpn 2>/dev/null; true"),
        frozenset(),
        modes=HOST,
    ),
    Control("in a network that is not the host's wall's", _in_another_network, frozenset(), modes=HOST),
    Control(
        "in such a network, without the wall inside",
        _in_another_network_without_wall,
        frozenset({"udp", "icmp"}),
        modes=HOST,
    ),
    Control("with no name server of its own", _as_one_without_dns, frozenset({"dns"}), modes=HOST),
    Control(
        "without the host's wall nor the client's", _no_client_firewall, frozenset({"udp", "icmp"}), modes=CONTAINER
    ),
)
