"""WireGuard files as wg-quick(8) defines them and providers hand them out: read into a `Tunnel`, written back.

Nothing of a file is ever executed: what it wants to run (PostUp and the like) is told and left out. A message never
carries a key, nor any value of a line that should have held one. Formats: wg(8), wg-quick(8).
"""

from __future__ import annotations

import base64
import binascii
import difflib
import ipaddress
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NoReturn

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from mediahost.told import ToldError
from mediahost.vpn import Tunnel

NAME_SERVERS = {
    "nordvpn": ("103.86.96.100", "103.86.99.100"),
    "mullvad": ("10.64.0.1",),
    "proton": ("10.2.0.1",),
    "airvpn": ("10.128.0.1",),
}
"""What each provider's tunnel offers where its file names none; all are reached through the tunnel only."""

MTU = 1420
"""What WireGuard leaves of Ethernet's 1500: 80 bytes around each packet when the endpoint is an IPv6 address."""
KEEPALIVE = 25
"""Seconds; wg(8) calls it sensible behind a NAT. Without it nobody outside reaches a forwarded port."""

# IPv6 needs 1280 (RFC 8200, 5), IPv4 576 of every host (RFC 1122, 3.3.3).
_MTU_BOUNDS = (576, 9000)
# A provider's file has less than 2 KiB.
_LIMIT = 65536

_COMMANDS = ("preup", "postup", "predown", "postdown")
_OWN = {
    "table": "routes are mediahost's own",
    "fwmark": "routes are mediahost's own",
    "saveconfig": "the file stays as you gave it",
    "listenport": "the kernel chooses a free port",
}
_AMNEZIA = re.compile(r"(jc|jmin|jmax|s[1-4]|h[1-4]|i[1-5]|j[1-3]|itime)")
_KNOWN = {
    "interface": ("PrivateKey", "Address", "DNS", "MTU", "Table", "FwMark", "SaveConfig", "ListenPort")
    + ("PreUp", "PostUp", "PreDown", "PostDown"),
    "peer": ("PublicKey", "PresharedKey", "AllowedIPs", "Endpoint", "PersistentKeepalive"),
}
_LISTS = ("address", "dns", "allowedips")

Resolve = Callable[[str], str]
"""A host's name to its IP address; raises OSError when there is none."""


class WireGuardError(ToldError, ValueError):
    """A file that cannot be used; `str()` is one complete message for the user, without keys."""


@dataclass(frozen=True)
class Loaded:
    """A file that can be used. `notices` tell, in words, what was left out or put in."""

    tunnel: Tunnel
    notices: tuple[str, ...] = ()


def read(text: str, provider: str = "custom") -> Tunnel:
    """The tunnel of a WireGuard file; `provider` says whose name servers to take where the file has none.

    Raises `WireGuardError`, also for an endpoint that is a name: a run resolves nothing.
    """
    return load(text, provider).tunnel


def load(text: str, provider: str = "custom", resolve: Resolve | None = None) -> Loaded:
    """As `read`, telling what was not taken as it stands. `resolve` turns an endpoint's name into an address.

    Raises `WireGuardError`.
    """
    if len(text) > _LIMIT:
        _refuse("this is no WireGuard file", "file", f"it has more than {_LIMIT} characters", _DOWNLOAD)
    sections = _sections(text.removeprefix("\ufeff"))
    interface, peer = _one(sections, "interface"), _one(sections, "peer")
    notices = [*interface.notices, *peer.notices]
    private_key = _key(interface, "privatekey", "PrivateKey")
    peer_key = _key(peer, "publickey", "PublicKey")
    if peer_key == public_key(private_key):
        _refuse(
            "the peer's key is this end's own",
            peer.where("publickey"),
            "a tunnel has two ends with a key each",
            "PublicKey of [Peer] is the server's; copy it from the provider's file",
        )
    preshared = _key(peer, "presharedkey", "PresharedKey") if "presharedkey" in peer.values else None
    addresses = _addresses(interface)
    _default_route(peer)
    endpoint, port = _endpoint(peer, resolve, notices)
    return Loaded(
        Tunnel(
            private_key=private_key,
            addresses=addresses,
            peer=peer_key,
            endpoint=endpoint,
            endpoint_port=port,
            preshared_key=preshared,
            dns=_name_servers(interface, provider, notices),
            mtu=_mtu(interface, notices),
            keepalive=_keepalive(peer, notices),
        ),
        tuple(notices),
    )


def write(tunnel: Tunnel) -> str:
    """The file of a tunnel, as `read` takes it. Holds the private key."""
    endpoint = f"[{tunnel.endpoint}]" if ":" in tunnel.endpoint else tunnel.endpoint
    lines = ["[Interface]", f"PrivateKey = {tunnel.private_key}", f"Address = {', '.join(tunnel.addresses)}"]
    if tunnel.dns:
        lines.append(f"DNS = {', '.join(tunnel.dns)}")
    lines += [f"MTU = {tunnel.mtu}", "", "[Peer]", f"PublicKey = {tunnel.peer}"]
    if tunnel.preshared_key is not None:
        lines.append(f"PresharedKey = {tunnel.preshared_key}")
    lines += [
        "AllowedIPs = 0.0.0.0/0, ::/0",
        f"Endpoint = {endpoint}:{tunnel.endpoint_port}",
        f"PersistentKeepalive = {tunnel.keepalive}",
    ]
    return "\n".join(lines) + "\n"


def public_key(private_key: str) -> str:
    """The public half (X25519) of a private key, both base64. Raises `ValueError` for what is no key."""
    try:
        raw = base64.b64decode(private_key, validate=True)
        public = X25519PrivateKey.from_private_bytes(raw).public_key().public_bytes_raw()
    except (binascii.Error, ValueError):
        raise ValueError("not a WireGuard key: base64 of 32 bytes") from None
    return base64.b64encode(public).decode()


_DOWNLOAD = "download the WireGuard configuration (.conf) from the provider again"


@dataclass
class _Section:
    """A section's values with the lines they stand in, by the key in lower case."""

    name: str
    line: int
    values: dict[str, list[tuple[int, str]]] = field(default_factory=dict, repr=False)
    notices: list[str] = field(default_factory=list)

    def where(self, key: str) -> str:
        entries = self.values.get(key)
        return f"line {entries[-1][0]}" if entries else f"line {self.line} [{self.name}]"

    def items(self, key: str) -> list[tuple[int, str]]:
        """The parts of a list, which can stand in several lines, with their lines."""
        found = [(line, part.strip()) for line, value in self.values.get(key, ()) for part in value.split(",")]
        return [(line, part) for line, part in found if part]

    def value(self, key: str) -> str | None:
        entries = self.values.get(key)
        return entries[-1][1] if entries else None


def _refuse(what: str, where: str, why: str, mend: str) -> NoReturn:
    raise WireGuardError(what, where=where, why=why, mend=mend)


def _shown(value: str) -> str:
    """A value for a message, cut, and without anything that may be a key in the wrong place."""
    return repr(re.sub(r"[A-Za-z0-9+/=_-]{20,}", "…", value)[:60])


def _sections(text: str) -> list[_Section]:
    sections: list[_Section] = []
    # Not splitlines(): it takes a form feed, and half a dozen others, for the end of a line.
    for number, whole in enumerate(re.split(r"\r\n|\r|\n", text), start=1):
        line = whole.partition("#")[0].strip()
        if not line:
            continue
        heading = re.fullmatch(r"\[\s*(\w+)\s*\]", line)
        if heading:
            name = heading[1].lower()
            if name not in _KNOWN:
                _refuse(
                    f"unknown section {_shown(line)}", f"line {number}", "there are [Interface] and [Peer]", _DOWNLOAD
                )
            sections.append(_Section(name.capitalize(), number))
            continue
        key, equals, value = (part.strip() for part in line.partition("="))
        if not equals:
            _refuse(
                "neither a section nor KEY = VALUE", f"line {number}", "a WireGuard file has nothing else", _DOWNLOAD
            )
        if not sections:
            _refuse(
                "a value before the first section",
                f"line {number}",
                "each belongs to [Interface] or [Peer]",
                _DOWNLOAD,
            )
        _take(sections[-1], number, key, value)
    return sections


def _take(section: _Section, number: int, key: str, value: str) -> None:
    known = _KNOWN[section.name.lower()]
    name = key.lower()
    where = f"line {number}"
    if name not in (each.lower() for each in known):
        if _AMNEZIA.fullmatch(name):
            _refuse(
                f"{key} belongs to AmneziaWG",
                where,
                "it changes what is sent; the kernel's WireGuard does not speak it",
                "ask the provider for a plain WireGuard configuration",
            )
        other = [kind for kind, names in _KNOWN.items() if name in (each.lower() for each in names)]
        spelt = {each.lower(): each for each in known}
        near = [spelt[each] for each in difflib.get_close_matches(name, spelt, n=1, cutoff=0.6)]
        why = f"it belongs to [{other[0].capitalize()}]" if other else f"[{section.name}] has no such key"
        mend = "move the line there" if other else f"did you mean {near[0]}?" if near else "delete the line"
        _refuse(f"unknown key {_shown(key)} in [{section.name}]", where, why, mend)
    if name in _COMMANDS:
        # Ignoring is safe, running is not: routes and the kill switch are ours, and the file may be anybody's.
        section.notices.append(f"{where}: {key} is not run; mediahost makes the routes and the kill switch itself")
        return
    if name in _OWN:
        section.notices.append(f"{where}: {key} is not used; {_OWN[name]}")
        return
    if not value:
        if name in _LISTS:
            return
        _refuse(f"{key} is empty", where, "it needs a value", _DOWNLOAD)
    if name in section.values and name not in _LISTS:
        _refuse(f"{key} is there twice", where, f"the first is in line {section.values[name][0][0]}", "delete one")
    section.values.setdefault(name, []).append((number, value))


def _one(sections: Iterable[_Section], name: str) -> _Section:
    found = [section for section in sections if section.name.lower() == name]
    heading = f"[{name.capitalize()}]"
    if not found:
        _refuse(f"no {heading}", "file", "a tunnel has one [Interface] and one [Peer]", _DOWNLOAD)
    if len(found) > 1:
        _refuse(
            f"a second {heading}",
            f"line {found[1].line}",
            "mediahost uses a tunnel with one peer, so that there is one endpoint to let through",
            "keep the one you want; several servers are several files",
        )
    return found[0]


def _key(section: _Section, key: str, name: str) -> str:
    value = section.value(key)
    if value is None:
        _refuse(f"no {name} in [{section.name}]", f"line {section.line}", "the tunnel needs it", _DOWNLOAD)
    try:
        raw = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    # Only one spelling of each key: the last character has two bits that say nothing.
    if len(raw) != 32 or base64.b64encode(raw).decode() != value:
        _refuse(f"{name} is not a key", section.where(key), "a key is base64 of 32 bytes: 44 characters", _DOWNLOAD)
    if not any(raw):
        _refuse(f"{name} is only zeros", section.where(key), "that is no key, it stands for one", _DOWNLOAD)
    return value


def _addresses(interface: _Section) -> tuple[str, ...]:
    addresses = []
    for line, value in interface.items("address"):
        try:
            address = ipaddress.ip_interface(value)
        except ValueError:
            _refuse(
                f"Address {_shown(value)} is not an address", f"line {line}", "it must be like 10.2.0.2/32", _DOWNLOAD
            )
        if "%" in value or address.ip.is_loopback or address.ip.is_multicast or address.ip.is_unspecified:
            _refuse(f"Address {_shown(value)} is no host's", f"line {line}", "no tunnel ends there", _DOWNLOAD)
        addresses.append(str(address))
    if not any(ipaddress.ip_interface(address).version == 4 for address in addresses):
        _refuse(
            "no IPv4 Address in [Interface]",
            interface.where("address"),
            "the confined containers speak IPv4 only",
            "choose a configuration with an IPv4 address",
        )
    return tuple(dict.fromkeys(addresses))


def _default_route(peer: _Section) -> None:
    """Refuses a tunnel that does not take everything: the rest would have nowhere to go, or leave elsewhere."""
    blocks = []
    for line, value in peer.items("allowedips"):
        try:
            block = ipaddress.ip_network(value, strict=False)
        except ValueError:
            _refuse(f"AllowedIPs {_shown(value)} is no block", f"line {line}", "it must be like 0.0.0.0/0", _DOWNLOAD)
        if isinstance(block, ipaddress.IPv4Network):
            blocks.append(block)
    if [str(block) for block in ipaddress.collapse_addresses(blocks)] != ["0.0.0.0/0"]:
        _refuse(
            "AllowedIPs does not contain 0.0.0.0/0",
            peer.where("allowedips"),
            "everything that a confined service sends goes through the tunnel, or nowhere",
            "write AllowedIPs = 0.0.0.0/0, ::/0 (switch split tunnelling off at the provider)",
        )


def _endpoint(peer: _Section, resolve: Resolve | None, notices: list[str]) -> tuple[str, int]:
    value = peer.value("endpoint")
    where = peer.where("endpoint")
    if value is None:
        _refuse("no Endpoint in [Peer]", where, "the tunnel's other end must be known", _DOWNLOAD)
    match = re.fullmatch(r"(?:\[([^\[\]]+)\]|([^\[\]:]+)):([0-9]{1,5})", value)
    if not match or not 1 <= int(match[3]) <= 65535:
        _refuse(
            f"Endpoint {_shown(value)} is no address with a port",
            where,
            "it must be like 203.0.113.9:51820 or [2001:db8::9]:51820",
            _DOWNLOAD,
        )
    host, port = (match[1] or match[2]).strip(), int(match[3])
    try:
        return _usable(ipaddress.ip_address(host), where), port
    except WireGuardError:
        raise
    except ValueError:
        pass
    if match[1] or not re.fullmatch(
        r"(?=.{1,253}$)([A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?\.)*[A-Za-z][A-Za-z0-9-]*\.?", host
    ):
        _refuse(
            f"Endpoint {_shown(host)} is neither address nor name", where, "nobody can be reached there", _DOWNLOAD
        )
    if resolve is None:
        _refuse(
            f"Endpoint {_shown(host)} is a name",
            where,
            "to look it up a host needs a way around the tunnel, which there must not be",
            "mediahost vpn import looks it up here and keeps the address",
        )
    try:
        found = _usable(ipaddress.ip_address(resolve(host)), where)
    except OSError:
        _refuse(
            f"Endpoint {_shown(host)} has no address",
            where,
            "its name could not be resolved on this machine",
            "check this machine's network; or write the server's address instead of its name",
        )
    notices.append(f"{where}: the endpoint {host} is {found} at present, and that address is kept")
    return found, port


def _usable(address: ipaddress.IPv4Address | ipaddress.IPv6Address, where: str) -> str:
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        elif address.scope_id is not None:
            _refuse("Endpoint is an address with an interface", where, "%... is this machine's own", _DOWNLOAD)
    if address.is_loopback or address.is_multicast or address.is_unspecified:
        _refuse(f"Endpoint {address} is no server's", where, "nobody else can be reached there", _DOWNLOAD)
    return str(address)


def _name_servers(interface: _Section, provider: str, notices: list[str]) -> tuple[str, ...]:
    servers = []
    for line, value in interface.items("dns"):
        try:
            address = ipaddress.ip_address(value)
        except ValueError:
            # wg-quick(8): what is no address is a search domain. Containers do without.
            if not re.fullmatch(r"[A-Za-z0-9._~-]+", value):
                _refuse(f"DNS {_shown(value)} is no address", f"line {line}", "it must be like 10.64.0.1", _DOWNLOAD)
            notices.append(f"line {line}: the search domain {_shown(value)} is not used")
            continue
        if "%" in value or address.is_loopback or address.is_multicast or address.is_unspecified:
            _refuse(
                f"DNS {_shown(value)} is no server's",
                f"line {line}",
                "a name server of this machine would be asked outside the tunnel",
                "write the provider's name server, or leave the line out",
            )
        servers.append(str(address))
    if not servers and provider in NAME_SERVERS:
        servers = list(NAME_SERVERS[provider])
        notices.append(f"the file names no DNS: {' and '.join(servers)} of {provider} is used")
    return tuple(dict.fromkeys(servers))


def _mtu(interface: _Section, notices: list[str]) -> int:
    value = interface.value("mtu")
    if value is None:
        return MTU
    low, high = _MTU_BOUNDS
    if not re.fullmatch(r"[0-9]{1,5}", value) or not (int(value) == 0 or low <= int(value) <= high):
        _refuse(
            f"MTU {_shown(value)} is out of bounds",
            interface.where("mtu"),
            f"it is a number from {low} to {high}",
            f"leave the line out ({MTU} is used), or take 1280, which fits everywhere",
        )
    if int(value) == 0:
        notices.append(f"{interface.where('mtu')}: MTU 0 means the usual one, {MTU}")
    return int(value) or MTU


def _keepalive(peer: _Section, notices: list[str]) -> int:
    value = peer.value("persistentkeepalive")
    if value is None:
        return KEEPALIVE
    if value.lower() in ("off", "0"):
        where = peer.where("persistentkeepalive")
        notices.append(f"{where}: PersistentKeepalive is {KEEPALIVE}, not off: a router would forget the tunnel")
        return KEEPALIVE
    if not re.fullmatch(r"[0-9]{1,5}", value) or int(value) > 65535:
        _refuse(
            f"PersistentKeepalive {_shown(value)} is no number of seconds",
            peer.where("persistentkeepalive"),
            "it is a number from 1 to 65535, or off",
            f"write {KEEPALIVE}",
        )
    return int(value) or KEEPALIVE
