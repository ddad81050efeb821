"""The forwarded port: the unit that asks for it, tells the wall and qBittorrent, and follows it when it changes.

Only where `vpn_port_forwarding` is nat-pmp; a static number needs nobody who runs. In mode host the unit's program
(`mediahost.vpn_port_on_host`) speaks NAT-PMP (RFC 6886) through the tunnel; in mode container Gluetun does, and the
program only carries the number to qBittorrent.
"""

from __future__ import annotations

import ipaddress
import json
from pathlib import Path

from mediahost import vpn_port_on_host
from mediahost.config import Settings
from mediahost.render.seeds import ADMIN_NAME, qbittorrent_api_key
from mediahost.resources import MARK, File
from mediahost.stack import PROJECT, Stack
from mediahost.vpn import CLIENT, LINK, NETWORK, Vpn

UNIT = "mediahost-vpn-port.service"
UNIT_PATH = f"/etc/systemd/system/{UNIT}"
PROGRAM_PATH = "/usr/local/lib/mediahost/vpn-port.py"
CONFIGURATION_PATH = "/etc/mediahost/vpn/port.json"
"""0600: holds qBittorrent's key and password."""
PATHS = (CONFIGURATION_PATH, PROGRAM_PATH, UNIT_PATH)
STATE_PATH = "/run/mediahost-vpn-port/port"
"""The port at present, as text; no file while there is none. World-readable."""

TORRENT = "qbittorrent"
TABLE = "mediahost_vpn"
MAP = "forwarded"
"""Map of the wall's nft table (family inet): `type inet_proto . inet_service : ipv4_addr . inet_service`, what comes
out of the tunnel to the container's address and port. This unit writes its elements, the wall only declares it."""

PROTON_GATEWAY = "10.2.0.1"


def runs(vpn: Vpn | None, stack: Stack) -> bool:
    """Whether the unit is wanted on this host."""
    return vpn is not None and vpn.forwarding == "nat-pmp" and stack.service(TORRENT) is not None


def packages(vpn: Vpn | None, stack: Stack) -> tuple[str, ...]:
    """What the program needs: the standard library of the host's Python."""
    return ("python3",) if runs(vpn, stack) else ()


def files(vpn: Vpn | None, settings: Settings, stack: Stack) -> tuple[File, ...]:
    """The unit, its program and its configuration; empty where nothing runs. `UNIT` restarts when one changes."""
    if vpn is None or not runs(vpn, stack):
        return ()
    program = Path(vpn_port_on_host.__file__).read_text()
    return (
        File(PROGRAM_PATH, f"# {MARK}\n{program}".encode(), mode="0755"),
        File(CONFIGURATION_PATH, configuration(vpn, stack).encode(), mode="0600", secret=True),
        File(UNIT_PATH, f"# {MARK}\n{_UNIT}".encode()),
    )


def configuration(vpn: Vpn, stack: Stack) -> str:
    """What the program reads, as JSON (which has no comments: the mark is a key)."""
    torrent = stack.service(TORRENT)
    if torrent is None:
        raise ValueError(f"no {TORRENT} in this stack")
    return (
        json.dumps(
            {
                "_comment": MARK,
                "source": "nat-pmp" if vpn.mode == "host" else "gluetun",
                "gateway": gateway(vpn),
                "link": LINK,
                "table": TABLE,
                "map": MAP,
                "state": STATE_PATH,
                "project": PROJECT,
                "network": f"{PROJECT}_{NETWORK}",
                "client": CLIENT,
                "service": TORRENT,
                "web_port": torrent.web_port,
                "user": ADMIN_NAME,
                "password": torrent.secret_values["password"],
                "api_key": qbittorrent_api_key(torrent.secret_values["api_key"]),
            },
            indent=1,
        )
        + "\n"
    )


def gateway(vpn: Vpn) -> str:
    """Who answers NAT-PMP inside the tunnel.

    Proton's is fixed (https://protonvpn.com/support/port-forwarding-manual-setup). Elsewhere the name server inside
    the tunnel, which is the gateway as a rule, else the first address beside ours.
    """
    if vpn.provider == "proton":
        return PROTON_GATEWAY
    for server in vpn.tunnel.dns:
        address = ipaddress.ip_address(server)
        if address.version == 4 and address.is_private:
            return str(address)
    for mine in vpn.tunnel.addresses:
        interface = ipaddress.ip_interface(mine)
        if interface.version == 4:
            network = ipaddress.ip_network(f"{interface.ip}/24", strict=False)
            return str(network.network_address + 1)
    return PROTON_GATEWAY


def client_environment(vpn: Vpn) -> dict[str, str]:
    """Variables of the Gluetun container (mode container) that let it ask for the port itself."""
    if vpn.mode != "container" or vpn.forwarding != "nat-pmp":
        return {}
    # With a WireGuard file of one's own (provider custom) it must be told whose way of asking to use.
    return {"VPN_PORT_FORWARDING": "on", "VPN_PORT_FORWARDING_PROVIDER": "protonvpn"}


_UNIT = f"""[Unit]
Description=The port that the VPN's provider forwards, kept and told to {TORRENT}
After=mediahost-vpn.service docker.service
Wants=mediahost-vpn.service

[Service]
Type=simple
ExecStart=/usr/bin/python3 -I {PROGRAM_PATH} {CONFIGURATION_PATH}
Restart=always
RestartSec=10
RuntimeDirectory=mediahost-vpn-port
RuntimeDirectoryMode=0755
NoNewPrivileges=yes
ProtectSystem=strict
ProtectHome=yes
PrivateTmp=yes
CapabilityBoundingSet=CAP_NET_ADMIN CAP_NET_RAW
RestrictAddressFamilies=AF_INET AF_UNIX AF_NETLINK
MemoryMax=128M

[Install]
WantedBy=multi-user.target
"""
