"""The compose file of a stack, with the directories, secrets and configuration files its services need.

Pure: a `Stack` in, resources out. The file is data dumped by a YAML library, holds no secret value, and is the
same bytes for the same input. Whether a container is current is told by our own label, never by compose.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import yaml

from mediahost.config import Settings
from mediahost.gpu import IN_CONTAINER, Given
from mediahost.render import forwarding, mounts
from mediahost.render.seeds import config_files
from mediahost.resources import MARK, Container, Directory, File
from mediahost.stack import Mount, Network, Stack, StackService
from mediahost.vpn import CLIENT, INSIDE, NETWORK

HASH_LABEL = "mediahost.hash"
SERVICE_LABEL = "mediahost.service"
"""On every container we made: one whose service is no longer in the stack is ours to remove."""

# Drivers that rotate; another one (journald, syslog) refuses the options.
_ROTATING_LOG_DRIVERS = ("json-file", "local")


@dataclass(frozen=True)
class ComposeArtefacts:
    """What a stack is on a host.

    `files`: compose.yaml, mounted secrets, service configurations. `directories`: what the containers mount of
    `{stack_root}/config`, parents first. `containers`: one for each service, with the digest its label holds.
    """

    files: tuple[File, ...]
    directories: tuple[Directory, ...]
    containers: tuple[Container, ...]


def compose_path(settings: Settings) -> str:
    """Where the compose file is on the host."""
    return f"{settings.stack_root}/compose.yaml"


def secret_path(settings: Settings, service: str, name: str) -> str:
    """Where the file of a mounted secret is on the host."""
    return f"{settings.stack_root}/secrets/{service}_{name}"


def render_compose(stack: Stack, settings: Settings, cards: Mapping[str, Given] | None = None) -> ComposeArtefacts:
    """The artefacts of `stack`. `cards` maps services to the graphics card that the host gives them."""
    files: list[File] = []
    containers: dict[str, Container] = {}
    rendered: dict[str, Any] = {}
    networks = {network.name: _network(network) for network in stack.networks}
    full_names = {network.name: network.full_name for network in stack.networks}
    # Who shares another's network comes after it: such a container is made from the other one, too.
    for service in sorted(stack.services, key=lambda service: service.network_of is not None):
        own_files = [*_secret_files(service, settings), *config_files(service, stack, settings)]
        body = _service(service, stack, settings, (cards or {}).get(service.name))
        tunnel: dict[str, Any] = {}
        if NETWORK in service.networks:
            tunnel = {"network": networks[NETWORK]}
        if service.network_of:
            tunnel = {"network_of": containers[service.network_of].digest}
        digest = _digest(stack, body, own_files, tunnel)
        body["labels"] = {HASH_LABEL: digest, SERVICE_LABEL: service.name}
        rendered[service.name] = body
        names = tuple(full_names[name] for name in service.networks)
        containers[service.name] = Container(service.name, service.image, digest, names, service.network_of or "")
        files.extend(own_files)
    rendered = {service.name: rendered[service.name] for service in stack.services}
    document: dict[str, Any] = {"name": stack.name, "services": rendered}
    document["networks"] = networks
    secrets = {
        f"{service.name}_{secret.name}": {"file": secret_path(settings, service.name, secret.name)}
        for service in stack.services
        for secret in service.secret_files
    }
    if secrets:
        document["secrets"] = secrets
    compose = File(compose_path(settings), _dump(document), mode="0640")
    return ComposeArtefacts(
        files=(compose, *files),
        directories=tuple(_directories(stack, settings, files)),
        containers=tuple(containers[service.name] for service in stack.services),
    )


def _service(service: StackService, stack: Stack, settings: Settings, card: Given | None = None) -> dict[str, Any]:
    body: dict[str, Any] = {"image": service.image, "restart": "unless-stopped"}
    if service.user:
        body["user"] = service.user
    body["environment"] = dict(service.environment)
    if service.name == CLIENT and stack.vpn is not None:
        body["environment"] |= forwarding.client_environment(stack.vpn)
    if service.depends_on:
        body["depends_on"] = {name: {"condition": "service_started"} for name in service.depends_on}
    sharing = [other for other in stack.services if other.network_of == service.name]
    if service.network_of:
        # Its network namespace dies with that container: `restart` makes this one follow when it is made anew.
        needed = {service.network_of: {"condition": "service_healthy", "restart": True}}
        body["depends_on"] = {**body.get("depends_on", {}), **needed}
        body["network_mode"] = f"service:{service.network_of}"
    else:
        body["networks"] = _memberships(service, sharing, settings)
        if service.dns:
            # Named, because Docker would otherwise ask the host's own servers, from the host and past the tunnel.
            body["dns"] = list(service.dns)
    ports = [] if service.network_of else [port for each in (service, *sharing) for port in each.ports]
    if ports:
        body["ports"] = [
            {
                "target": port.container_port,
                "published": str(port.port),
                "protocol": port.protocol,
                **({"host_ip": port.address} if port.address else {}),
            }
            for port in ports
        ]
    sentinels = [Mount(path, path, read_only=True) for path in _sentinels(service, settings)]
    if service.mounts or sentinels:
        body["volumes"] = [
            {
                "type": "bind",
                "source": mount.source,
                "target": mount.target,
                **({"read_only": True} if mount.read_only else {}),
                # A missing source is an error, not a directory that the engine makes as root.
                "bind": {"create_host_path": False},
            }
            for mount in (*service.mounts, *sentinels)
        ]
    if service.secret_files:
        body["secrets"] = [
            {"source": f"{service.name}_{secret.name}", "target": secret.target} for secret in service.secret_files
        ]
    devices = list(service.devices)
    if card and card.node:
        # Only to render with: the card's other node could change what its screen shows.
        devices.append(f"{card.node}:{IN_CONTAINER}:rw")
        body["group_add"] = [str(group) for group in card.groups]
    if devices:
        body["devices"] = devices
    if card and card.cdi:
        wanted = {"driver": "cdi", "device_ids": [card.cdi], "capabilities": ["gpu"]}
        body["deploy"] = {"resources": {"reservations": {"devices": [wanted]}}}
    if service.tmpfs:
        body["tmpfs"] = list(service.tmpfs)
    if service.read_only:
        body["read_only"] = True
    if service.init:
        body["init"] = True
    body["cap_drop"] = ["ALL"]
    if service.capabilities:
        body["cap_add"] = list(service.capabilities)
    body["security_opt"] = ["no-new-privileges:true"]
    body["mem_limit"] = service.memory
    body["pids_limit"] = service.pids
    body["stop_grace_period"] = f"{service.stop_grace_period}s"
    if service.health:
        body["healthcheck"] = {
            "test": list(service.health.test),
            "interval": f"{service.health.interval}s",
            "timeout": f"{service.health.timeout}s",
            "retries": service.health.retries,
            "start_period": f"{service.health.start_period}s",
            "start_interval": f"{service.health.start_interval}s",
        }
    # The driver is the engine's default; only those that rotate know the options.
    if settings.docker_daemon_extra.get("log-driver", "json-file") in _ROTATING_LOG_DRIVERS:
        body["logging"] = {
            "options": {
                "max-size": settings.docker_log_max_size,
                "max-file": str(settings.docker_log_max_file),
            }
        }
    escaped: dict[str, Any] = _escaped(body)
    return escaped


def _sentinels(service: StackService, settings: Settings) -> tuple[str, ...]:
    """Sentinels of the mounts in what the container has of the host.

    While the disk is absent there is none, and the engine refuses to start who mounts it
    (docs/decisions/mount-guard.md). Who looks at the whole host, such as a monitor, needs no disk of it.
    """
    sources = [mount.source for mount in service.mounts if mount.source != "/"]
    sources += [secret_path(settings, service.name, secret.name) for secret in service.secret_files]
    return mounts.sentinels_for(sources, settings)


def _memberships(service: StackService, sharing: Iterable[StackService], settings: Settings) -> Any:
    """The networks a service is in: their names, or a mapping where more than the names must be said."""
    if NETWORK not in service.networks:
        return list(service.networks)
    # Who shares this container's network is still found by its own name; there is one address for all.
    aliases = sorted(other.name for other in sharing)
    options: dict[str, dict[str, Any]] = {name: {} for name in service.networks}
    if _knows_gateway_priority(settings):
        options[NETWORK]["gw_priority"] = 1
    if service.address:
        options[NETWORK]["ipv4_address"] = service.address
    if aliases and INSIDE in options:
        options[INSIDE]["aliases"] = aliases
    return options


def _knows_gateway_priority(settings: Settings) -> bool:
    """Whether the host's Engine (28) and Compose (2.33.1) have `gw_priority`; a distribution's are older or unknown.

    Without it the default route is the tunnel's network just the same: the only other one is internal, and those
    come last (moby, daemon/libnetwork/sandbox.go).
    """
    if settings.docker_source != "docker":
        return False
    pinned = re.match(r"(?:\d+:)?(\d+)\.", settings.docker_version or "")
    return pinned is None or int(pinned[1]) >= 28


def _network(network: Network) -> dict[str, Any]:
    body: dict[str, Any] = {"name": network.full_name, "driver": "bridge"}
    options: dict[str, str] = {}
    if network.isolated:
        options["com.docker.network.bridge.enable_icc"] = "false"
    if network.bridge:
        options["com.docker.network.bridge.name"] = network.bridge
    if network.mtu:
        options["com.docker.network.driver.mtu"] = str(network.mtu)
    if options:
        body["driver_opts"] = options
    if network.internal:
        body["internal"] = True
    if network.bridge or network.internal:
        # Also where the engine's own default says otherwise.
        body["enable_ipv6"] = False
    if network.subnet:
        body["ipam"] = {"config": [{"subnet": network.subnet}]}
    return body


def _escaped(value: Any) -> Any:
    """`$` doubled in every text, or compose would interpolate it."""
    if isinstance(value, dict):
        return {key: _escaped(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_escaped(each) for each in value]
    return value.replace("$", "$$") if isinstance(value, str) else value


def _digest(stack: Stack, body: dict[str, Any], files: Iterable[File], tunnel: Mapping[str, Any]) -> str:
    """What the container must have been made from: its definition, mounted secrets and owned configuration.

    Keyed with a random value of the vault, because everybody who may run `docker inspect` sees the label and a
    plain hash of a short password could be searched for. A seed (`once`) belongs to the service after its
    first start and does not count; neither does the Caddyfile, which is reloaded without a new container.
    `tunnel` is what the way out of a confined one is made from; of all others it is empty.
    """
    content = {"service": body, "files": {file.path: file.sha256 for file in files if not file.once}, **tunnel}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hmac.new(stack.label_key.encode(), text.encode(), hashlib.sha256).hexdigest()


def _secret_files(service: StackService, settings: Settings) -> Iterable[File]:
    for secret in service.secret_files:
        # No newline at the end: readers take the file's whole content as the value.
        yield File(
            secret_path(settings, service.name, secret.name),
            secret.value.encode(),
            owner=secret.owner,
            group="0",
            mode="0400",
            secret=True,
        )


def _directories(stack: Stack, settings: Settings, files: Iterable[File]) -> Iterable[Directory]:
    """Each service's own directory, what is mounted of it, and what its configuration files lie in."""
    paths = [PurePosixPath(file.path).parent for file in files]
    for service in stack.services:
        own = PurePosixPath(f"{settings.stack_root}/config/{service.name}")
        inside = {own, *(PurePosixPath(mount.source) for mount in service.mounts), *paths}
        writable = {PurePosixPath(mount.source): not mount.read_only for mount in service.mounts}
        wanted: set[PurePosixPath] = set()
        for path in inside:
            if path.is_relative_to(own):
                wanted.update(each for each in (path, *path.parents) if each.is_relative_to(own))
        for path in sorted(wanted):
            # What a container may only read belongs to root: a service cannot rewrite its own rules.
            owner = str(service.uid) if writable.get(path, True) else "0"
            yield Directory(str(path), owner, str(service.gid), "0750")


class _Dumper(yaml.SafeDumper):
    """Indents lists below their key and never writes anchors, which hide what a line means."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)


def _dump(document: dict[str, Any]) -> bytes:
    header = f"# {MARK}. Changes here are overwritten: use service_overrides in your inventory.\n"
    body = yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000)
    return (header + str(body)).encode()
