"""Firewall rules from exposure: what UFW lets in to the host, and what DOCKER-USER lets through to containers.

Docker forwards published ports before UFW's input rules see them, so a port needs both: a UFW rule for what
arrives on the host itself (docker-proxy, IPv6) and one for what is forwarded. Both are derived from the same
exposure here, and nowhere else. The latter stand in a chain of our own, to which DOCKER-USER jumps first: rules of
others in DOCKER-USER stay, can forbid more and cannot allow what exposure does not.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Iterable
from typing import Protocol
from urllib.parse import urlsplit

from mediahost import plex
from mediahost.config import Settings
from mediahost.render import forwarding
from mediahost.resources import FirewallRule
from mediahost.vpn import BRIDGE, LINK, Vpn

CHAIN = "MEDIAHOST-DOCKER"
INIT_PATH = "/etc/ufw/after.init"
AFTER_PATHS = {4: "/etc/ufw/after.rules", 6: "/etc/ufw/after6.rules"}
BLOCK_BEGIN = "# BEGIN mediahost: published container ports"
BLOCK_END = "# END mediahost"
COMMENT = "mediahost"
# What a host cannot do without: names, time (with NTS), addresses, packages and certificates (HTTP/3 as well).
_OUTBOUND = (
    ("53", "any"),
    ("123", "udp"),
    ("4460", "tcp"),
    ("67", "udp"),
    ("547", "udp"),
    ("80,443", "tcp"),
    ("443", "udp"),
)
_MOST_PORTS = 15  # iptables-extensions(8), multiport


class Exposed(Protocol):
    """A published port: `exposure` is wan, lan or localhost."""

    @property
    def port(self) -> int: ...
    @property
    def protocol(self) -> str: ...
    @property
    def exposure(self) -> str: ...
    @property
    def service(self) -> str: ...


def host_rules(
    settings: Settings, exposed: Iterable[Exposed], ssh_ports: Iterable[int], vpn: Vpn | None = None
) -> tuple[FirewallRule, ...]:
    """UFW rules, SSH first: it must be open before the firewall is switched on.

    `ssh_ports` holds the wanted port and the one the present connection uses, so that neither is closed. `vpn` asks
    for nothing but what must leave where `firewall_outbound` shuts the host.
    """
    rules = [
        FirewallRule(str(port), "tcp", source, comment=f"{COMMENT} ssh")
        for port in sorted({settings.sshd_port, *ssh_ports})
        for source in (settings.firewall_ssh_from or ["any"])
    ]
    rules += _exposure_rules(settings, [*exposed, *plex.ports(settings)])
    for extra in settings.firewall_extra:
        rules.append(
            FirewallRule(
                str(extra["port"]),
                str(extra.get("protocol", "tcp")),
                str(extra.get("source", "any")),
                comment=f"{COMMENT} {extra.get('comment', 'extra')}",
            )
        )
    rules += _outbound_rules(settings, vpn)
    return tuple(dict.fromkeys(rules))


# NFS of version 4 needs nothing but this port, SMB 3 neither (RFC 8881, section 2.9.2; MS-SMB2, section 1.9).
_SHARES = {"nfs": "2049", "smb": "445"}


def _outbound_rules(settings: Settings, vpn: Vpn | None) -> list[FirewallRule]:
    """What may leave the host when nothing else may. Answers and loopback pass by UFW's own before.rules."""
    if settings.firewall_outbound == "allow":
        return []
    allowed = [(port, protocol, "any", "needed") for port, protocol in _OUTBOUND]
    allowed += [(str(port), "tcp", "any", "packages and images") for port in _download_ports(settings)]
    # docker-proxy and health checks reach containers from the host itself.
    allowed += [("any", "any", str(pool["base"]), "containers") for pool in settings.docker_address_pools]
    allowed += [(port, "tcp", "any", "shares") for port in sorted({_SHARES[s.kind] for s in settings.storage_shares})]
    if vpn is not None:
        allowed.append(("any", "any", vpn.subnet, "containers"))
    if vpn is not None and vpn.mode == "host":
        allowed.append((str(vpn.tunnel.endpoint_port), "udp", vpn.tunnel.endpoint, "vpn"))
        if vpn.forwarding == "nat-pmp":
            allowed.append(("5351", "udp", forwarding.gateway(vpn), "vpn"))  # RFC 6886
    allowed += [
        (
            str(extra["port"]),
            str(extra.get("protocol", "tcp")),
            str(extra.get("destination", "any")),
            extra.get("comment", "extra"),
        )
        for extra in settings.firewall_outbound_allow
    ]
    return [
        FirewallRule(port, protocol, to, comment=f"{COMMENT} out: {why}", direction="out")
        for port, protocol, to, why in allowed
    ]


def _download_ports(settings: Settings) -> list[int]:
    """Ports other than 80 and 443 from which packages and images come."""
    urls = [urlsplit(settings.docker_apt_url), urlsplit(f"https://{settings.registry_prefix}")]
    if settings.plex == "native":
        urls += [urlsplit(settings.plex_apt_url), urlsplit(settings.plex_apt_key_url)]
    return sorted({url.port for url in urls if url.port} - {80, 443})


def _exposure_rules(settings: Settings, exposed: list[Exposed]) -> list[FirewallRule]:
    """One rule for all ports of an exposure, protocol and source: UFW takes a second for each rule it adds."""
    rules = []
    for exposure in ("wan", "lan"):
        for protocol in ("tcp", "udp"):
            chosen = [port for port in exposed if (port.exposure, port.protocol) == (exposure, protocol)]
            numbers = sorted({port.port for port in chosen})
            for start in range(0, len(numbers), _MOST_PORTS):
                some = numbers[start : start + _MOST_PORTS]
                names = " ".join(sorted({port.service for port in chosen if port.port in some}))
                comment = f"{COMMENT} {exposure}: {names}"
                ports = ",".join(map(str, some))
                rules += [
                    FirewallRule(ports, protocol, source, comment=comment) for source in _sources(settings, exposure)
                ]
    return rules


def container_rules(settings: Settings, exposed: Iterable[Exposed], version: int) -> tuple[str, ...]:
    """Arguments of `-A` in our chain for IP `version` 4 or 6, in order, without the marking comment."""
    rules = [
        "-m conntrack --ctstate RELATED,ESTABLISHED -j RETURN",
        # What was not sent to a published port is Docker's own business.
        "-m conntrack ! --ctstate DNAT -j RETURN",
    ]
    if version == 4 and _forwards_ports(settings):
        # What the wall (mediahost.render.wall) led from the tunnel to a container. Not RETURN: Docker drops what
        # goes to a port it did not publish, and this one is published to nobody else.
        rules.append(f"-i {LINK} -o {BRIDGE} -j ACCEPT")
    pools = [str(pool["base"]) for pool in settings.docker_address_pools]
    for port in sorted(exposed, key=lambda item: (item.port, item.protocol)):
        if port.exposure == "localhost":
            continue
        sources = ["any"] if port.exposure == "wan" else [*settings.firewall_lan, *pools]
        for source in sources:
            if source != "any" and ipaddress.ip_network(source).version != version:
                continue
            origin = "" if source == "any" else f"-s {source} "
            rules.append(f"{origin}-p {port.protocol} -m conntrack --ctorigdstport {port.port} -j RETURN")
    rules.append("-j DROP")
    return tuple(dict.fromkeys(rules))


def _forwards_ports(settings: Settings) -> bool:
    """Whether peers reach a container through the host's own tunnel."""
    tunnel_here = settings.vpn_provider != "none" and settings.vpn_mode == "host"
    return tunnel_here and settings.vpn_port_forwarding != "off"


def container_block(settings: Settings, exposed: Iterable[Exposed], version: int) -> str:
    """The block of after.rules that holds `container_rules`; each rule carries a comment that names it."""
    marked = [f"-A {CHAIN} {_with_comment(rule, mark)}" for rule, mark in _marks(settings, exposed, version)]
    return "\n".join((BLOCK_BEGIN, "*filter", f":{CHAIN} - [0:0]", *marked, "COMMIT", BLOCK_END)) + "\n"


def container_marks(settings: Settings, exposed: Iterable[Exposed], version: int) -> tuple[str, ...]:
    """The comments that must stand in our chain, in this order: a digest of the set and a number."""
    return tuple(mark for _, mark in _marks(settings, exposed, version))


def init_block() -> str:
    """The block of after.init that makes DOCKER-USER jump to our chain, first and once.

    UFW runs after.init each time it has loaded its rules: at boot before Docker starts, and at each reload
    (ufw-framework(8)). A jump in after.rules would be doubled by each reload, and to declare DOCKER-USER there
    flushes what others put into it.
    """
    return _INIT.format(begin=BLOCK_BEGIN, end=BLOCK_END, chain=CHAIN, comment=COMMENT)


# Line numbers of `-S` count the chain's own line, so the line of a rule is its number once ours stands before it.
# Rules of ours that stand in DOCKER-USER itself are of a former version.
_INIT = """{begin}
mediahost_jump() {{ # iptables or ip6tables
  "$1" -w -nL {chain} >/dev/null 2>&1 || return 0
  "$1" -w -N DOCKER-USER 2>/dev/null || true
  mediahost_ours=$("$1" -w -S DOCKER-USER | sed -n '/ -j {chain}$/=; /mediahost:[0-9a-f]*:[0-9]/=' | sort -rn)
  if [ "$mediahost_ours" = 2 ] && "$1" -w -C DOCKER-USER -m comment --comment {comment} -j {chain} 2>/dev/null; then
    return 0
  fi
  "$1" -w -I DOCKER-USER -m comment --comment {comment} -j {chain}
  for mediahost_line in $mediahost_ours; do "$1" -w -D DOCKER-USER "$mediahost_line"; done
}}
if [ "$1" = start ]; then
  mediahost_jump iptables
  mediahost_jump ip6tables
fi
{end}
"""


def with_block(present: str, block: str) -> str:
    """`present` with our block put in the place of the old one, or at the end."""
    before, found, rest = present.partition(BLOCK_BEGIN)
    if not found:
        return present.rstrip("\n") + "\n" + block
    _, ended, after = rest.partition(BLOCK_END + "\n")
    return before + block + (after if ended else "")


def without_block(present: str) -> str:
    """`present` without our block."""
    before, found, rest = present.partition(BLOCK_BEGIN)
    return before + rest.partition(BLOCK_END + "\n")[2] if found else present


def _marks(settings: Settings, exposed: Iterable[Exposed], version: int) -> list[tuple[str, str]]:
    rules = container_rules(settings, exposed, version)
    digest = hashlib.sha256("\n".join(rules).encode()).hexdigest()[:12]
    return [(rule, f"mediahost:{digest}:{number}") for number, rule in enumerate(rules)]


def _with_comment(rule: str, mark: str) -> str:
    matches, _, target = rule.rpartition("-j ")
    return f"{matches}-m comment --comment {mark} -j {target}"


def _sources(settings: Settings, exposure: str) -> list[str]:
    return {"wan": ["any"], "lan": list(settings.firewall_lan)}.get(exposure, [])
