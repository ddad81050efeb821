"""Which services leave through the tunnel, what is refused because it would let them out, and the tunnel they get.

A confined service is in the tunnel's network and in an internal one, and in no other: a second way out is a default
route away (Docker picks the gateway by the network's name). What the settings alone tell is told by `confined` and
`refusals`, before the vault is opened; `read_vpn` asks the vault.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from mediahost import wireguard
from mediahost.catalog import Service, unknown_service
from mediahost.config import ConfigProblem, Settings
from mediahost.vpn import CLIENT, NETWORK, SECRET, Tunnel, Vpn

if TYPE_CHECKING:
    from mediahost.stack import Choice, Network, StackService

_CLIENT_PORTS = {(53, "tcp"): "its name server", (53, "udp"): "its name server", (8000, "tcp"): "its control server"}
_CLIENT_PORTS[9999, "tcp"] = "its health check"
"""Where Gluetun listens in the network namespace that confined services share (its Dockerfile's defaults)."""

_CLIENT_VARIABLES = ("BLOCK_", "HEALTH_", "LOG_LEVEL", "PUBLICIP_", "TZ", "VERSION_INFORMATION")
"""What a user may set of Gluetun. Everything else opens its firewall, moves its tunnel or shows a key."""


def confined(
    settings: Settings, catalog: Mapping[str, Service], names: set[str], host: str, problems: list[ConfigProblem]
) -> frozenset[str]:
    """The services of `names` (those of this host) whose traffic belongs into the tunnel."""
    for key, given in (("services", settings.services), ("services_disabled", settings.services_disabled)):
        if CLIENT in given:
            mend = f"comes and goes with vpn_provider and vpn_mode = 'container'; remove {CLIENT} here"
            problems.append(ConfigProblem(host, key, CLIENT, mend))
    if settings.vpn_provider == "none":
        return frozenset()
    if settings.vpn_services is None:
        found = frozenset(name for name in names if catalog[name].vpn)
    else:
        found = frozenset(_named(settings.vpn_services, catalog, names, host, problems))
    if not found and not settings.vpn_services:
        mend = "no service would use the tunnel; name those that shall in vpn_services, or set vpn_provider = 'none'"
        problems.append(ConfigProblem(host, "vpn_services", str(settings.vpn_services), mend))
    return found


def _named(
    given: Iterable[str], catalog: Mapping[str, Service], names: set[str], host: str, problems: list[ConfigProblem]
) -> Iterator[str]:
    for name in given:
        if name not in catalog:
            mend = unknown_service(name, catalog)
        elif name == CLIENT:
            mend = "holds the tunnel and cannot be inside it; remove it here"
        elif catalog[name].category == "reverse-proxy":
            mend = "the proxy is reached from outside and serves all the others; remove it here"
        elif catalog[name].category == "ddns":
            mend = "would put the tunnel's address into your DNS records; remove it here"
        elif name not in names:
            mend = "does not run on this host; remove it here, or add it to services"
        else:
            yield name
            continue
        problems.append(ConfigProblem(host, "vpn_services", name, mend))


def refusals(choices: Iterable[Choice], settings: Settings, host: str) -> Iterator[ConfigProblem]:
    """What the user asked for that would lead a confined service past its tunnel, or cannot work inside it."""
    inside = [choice for choice in choices if choice.confined]
    for choice in inside:
        asked = choice.exposure if choice.web_port is not None else choice.override.exposure
        if asked == "wan":
            mend = (
                "its traffic leaves through the tunnel only, so the internet cannot reach it at the host; choose "
                "lan, localhost or proxy (route = 'wan' opens it to everybody through the proxy)"
            )
            yield ConfigProblem(host, f"service_overrides.{choice.service.name}.exposure", "wan", mend)
    listeners = [choice.service.name for choice in inside if choice.service.forwarded_port_env]
    if settings.vpn_port_forwarding != "off" and inside and len(listeners) != 1:
        one = "no confined service can use it" if not listeners else f"{' and '.join(listeners)} would both want it"
        yield ConfigProblem(
            host,
            "vpn_port_forwarding",
            str(settings.vpn_port_forwarding),
            f"{one}; set it to off, or change vpn_services",
        )
    if settings.vpn_mode == "container":
        yield from _shared_ports(inside, host)
    for choice in choices:
        if choice.service.name != CLIENT:
            continue
        for variable in choice.override.environment:
            if not variable.startswith(_CLIENT_VARIABLES):
                key = f"service_overrides.{CLIENT}.environment.{variable}"
                mend = f"could open the tunnel's wall; only {', '.join(_CLIENT_VARIABLES)} can be set. Remove it"
                yield ConfigProblem(host, key, "", mend)


def _shared_ports(inside: Iterable[Choice], host: str) -> Iterator[ConfigProblem]:
    """Two programs that listen on one port of the network namespace they share."""
    taken = {slot: f"{CLIENT} ({what})" for slot, what in _CLIENT_PORTS.items()}
    for choice in inside:
        service = choice.service
        slots = [(port.port, port.protocol) for port in service.ports]
        if choice.web_port is not None:
            slots.insert(0, (choice.web_port, "tcp"))
        for slot in slots:
            holder = taken.setdefault(slot, service.name)
            if holder == service.name:
                continue
            movable = service.web is not None and service.web.port_env is not None and slot[0] == choice.web_port
            mend = (
                f"set service_overrides.{service.name}.host_port to another" if movable else "use vpn_mode = 'host'"
            )
            told = f"{service.name} and {holder} would share one network and both listen there; {mend}"
            yield ConfigProblem(host, "vpn_mode", f"{slot[0]}/{slot[1]}", told)


def read_vpn(
    settings: Settings,
    names: Iterable[str],
    host: str,
    folder: str,
    secret: Callable[[str, str], str],
    problems: list[ConfigProblem],
) -> Vpn | None:
    """The VPN of `host` for the confined services `names`; None without one.

    `folder` is the host's part of the vault, `secret` its `SecretSource`. None as well when the WireGuard file is
    absent or cannot be used, which is added to `problems`.
    """
    services = tuple(sorted(names))
    if settings.vpn_provider == "none" or not services:
        return None
    entry = f"{folder}/vpn/{SECRET}"
    key = "vpn_provider"
    try:
        tunnel = wireguard.read(secret(entry, "given"), settings.vpn_provider)
    except LookupError:
        command = "mediahost vpn nordvpn" if settings.vpn_provider == "nordvpn" else "mediahost vpn import"
        mend = f"the vault has no WireGuard file for this host ({entry}); run `{command}`"
        problems.append(ConfigProblem(host, key, settings.vpn_provider, mend))
        return None
    except ValueError as error:
        problems.append(ConfigProblem(host, key, settings.vpn_provider, f"vault entry {entry}: {_one_line(error)}"))
        return None
    dns = tuple(settings.vpn_dns) or tunnel.dns
    found = list(_unusable(settings, tunnel, dns))
    problems.extend(ConfigProblem(host, where, "", f"{told} (vault entry {entry})") for where, told in found)
    if found:
        return None
    return Vpn(
        provider=settings.vpn_provider,
        mode=settings.vpn_mode,
        killswitch=settings.vpn_killswitch,
        tunnel=tunnel,
        subnet=settings.vpn_subnet,
        # The bridge has no IPv6, so a name server's IPv6 address could only be tried in vain.
        dns=tuple(server for server in dns if ipaddress.ip_address(server).version == 4),
        forwarding=settings.vpn_port_forwarding,
        services=services,
    )


def _one_line(error: Exception) -> str:
    return "; ".join(line.strip() for line in str(error).splitlines())


def _unusable(settings: Settings, tunnel: Tunnel, dns: Iterable[str]) -> Iterator[tuple[str, str]]:
    """(key, why) for each thing in a WireGuard file that the confined network cannot use."""
    if settings.vpn_mode == "container" and ipaddress.ip_address(tunnel.endpoint).version == 6:
        told = "the endpoint is an IPv6 address, and containers have IPv4; import one with IPv4, or use mode host"
        yield "vpn_mode", told
    servers = [ipaddress.ip_address(server) for server in dns]
    if not any(server.version == 4 for server in servers):
        yield "vpn_dns", "names no IPv4 name server and neither does the WireGuard file; name one, such as 10.64.0.1"
    own = [ipaddress.ip_interface(address).ip for address in tunnel.addresses]
    subnet = ipaddress.ip_network(settings.vpn_subnet)
    for address in (*own, *servers, ipaddress.ip_address(tunnel.endpoint)):
        if address in subnet:
            yield "vpn_subnet", f"holds {address}, which lies beyond the tunnel; choose another block"


def multi_homed(services: Iterable[StackService], networks: Iterable[Network], vpn: Vpn) -> Iterator[tuple[str, str]]:
    """(service, network) for each confined service in a network with a way out that is not the tunnel."""
    sound = {network.name for network in networks if network.internal} | {NETWORK}
    for service in services:
        if service.name in (*vpn.services, CLIENT):
            yield from ((service.name, name) for name in service.networks if name not in sound)


def client_environment(vpn: Vpn) -> dict[str, str]:
    """Variables of the Gluetun container, keys apart (its Dockerfile and wiki list them).

    Everything that it would otherwise look up or fetch from its own list of servers is given.
    """
    tunnel = vpn.tunnel
    addresses = [address for address in tunnel.addresses if ipaddress.ip_interface(address).version == 4]
    environment = {
        "VPN_SERVICE_PROVIDER": "custom",
        "VPN_TYPE": "wireguard",
        # Fail instead of falling back to its own, slow implementation.
        "WIREGUARD_IMPLEMENTATION": "kernelspace",
        "WIREGUARD_ADDRESSES": ",".join(addresses),
        "WIREGUARD_PUBLIC_KEY": tunnel.peer,
        "WIREGUARD_ENDPOINT_IP": tunnel.endpoint,
        "WIREGUARD_ENDPOINT_PORT": str(tunnel.endpoint_port),
        "WIREGUARD_MTU": str(tunnel.mtu),
        "WIREGUARD_PERSISTENT_KEEPALIVE_INTERVAL": f"{tunnel.keepalive}s",
        # Its default is Cloudflare over TLS: what the user or the provider named is asked instead.
        "DNS_UPSTREAM_RESOLVER_TYPE": "plain",
        "DNS_UPSTREAM_PLAIN_ADDRESSES": ",".join(f"{server}:53" for server in vpn.dns),
    }
    if isinstance(vpn.forwarding, int):
        environment["FIREWALL_VPN_INPUT_PORTS"] = str(vpn.forwarding)
    return environment
