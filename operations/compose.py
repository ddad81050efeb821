"""Stage stack: the compose file, its secrets and seeds, and containers that run as they say.

Drift is judged by our own label, a digest of the rendered service with its files, and by image, state, health
and networks of the container; Compose's own hash reports drift where none is. Only services that differ are
touched. A service that is switched off loses its container, never its data.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from pyinfra.api import deploy, operation

from facts.snapshot import ContainerState, Snapshot
from mediahost.resources import Container, File
from mediahost.stack import PROJECT, PROXY
from mediahost.wanted import Wanted
from operations import files, gpu, owed
from operations.convergence import Commands, Step, converge

_RELOAD = (
    f"docker exec {PROJECT}-{PROXY}-1 caddy validate --config /etc/caddy/Caddyfile --adapter caddyfile >/dev/null\n"
    f"docker exec {PROJECT}-{PROXY}-1 caddy reload --config /etc/caddy/Caddyfile --adapter caddyfile >/dev/null"
)


def fault(wanted: Container, present: Sequence[ContainerState]) -> str:
    """What is wrong with a service's container, in words; empty when nothing is."""
    if not present:
        return "not there"
    if len(present) > 1:
        return f"there are {len(present)} containers"
    (container,) = present
    if container.project != PROJECT:
        return "is a container of somebody else's making"
    if container.image != wanted.image:
        return f"runs image {container.image}, wanted {wanted.image}"
    if container.digest != wanted.digest:
        return "runs with an older definition"
    if wanted.networks and container.networks != frozenset(wanted.networks):
        return f"is in networks {_names(container.networks)}, wanted {_names(wanted.networks)}"
    if container.state != "running":
        return container.state
    if container.health == "unhealthy":
        return "unhealthy"
    return ""


def _network_fault(wanted: Container, present: Sequence[ContainerState], owners: Sequence[ContainerState]) -> str:
    """What is wrong with the network a container shares; empty when nothing is.

    It is that of one container, not of a service: when the service gets another container, the network is dead.
    """
    if wanted.network_of and [each.network_mode for each in present] != [f"container:{each.id}" for each in owners]:
        return f"does not share the network of {wanted.network_of}"
    return ""


def _names(names: frozenset[str] | Sequence[str]) -> str:
    return ", ".join(sorted(names)) or "none"


def container_steps(wanted: Sequence[Container], stack_root: str, timeout: int, seen: Snapshot) -> list[Step]:
    """Remove what is not wanted, then bring up what differs, healthy, within `timeout` seconds."""
    compose = f"docker compose --ansi never --progress quiet -f {shlex.quote(f'{stack_root}/compose.yaml')}"
    by_service: dict[str, list[ContainerState]] = {}
    for found in seen.containers:
        by_service.setdefault(found.service, []).append(found)
    steps = [
        Step(f"service {service}: not wanted any more, its data stay", _remove(containers))
        for service, containers in sorted(by_service.items())
        if service not in {container.service for container in wanted}
    ]
    engine = seen.units.get("docker.service")
    if engine is not None and engine.active == "active" and not seen.engine_version:
        # An engine that hangs looks like one without containers; starting all of them anew would make it worse.
        told = "the Docker engine runs but does not answer; see `systemctl status docker` and restart it"
        return [Step("engine: does not answer", refusal=told)]
    faults = {container.service: fault(container, by_service.get(container.service, [])) for container in wanted}
    for container in wanted:
        owner = container.network_of
        if faults.get(owner):
            faults[container.service] = faults[container.service] or f"follows {owner}"
        elif owner and not faults[container.service]:
            present = by_service.get(container.service, [])
            faults[container.service] = _network_fault(container, present, by_service.get(owner, []))
    faults = {service: what for service, what in faults.items() if what}
    if not faults:
        return steps
    # A container that shares another's network is gone before that one is made anew, because it may hold a port that
    # moves there, and comes after it.
    followers = [container.service for container in wanted if container.network_of in faults]
    start = [service for service, what in faults.items() if what in ("not there", "exited", "created", "paused")]
    recreate = [service for service in faults if service not in start]
    # Everything is pulled before anything is stopped: a registry that is down must not cost a running service.
    lines = [_or_tell(f"{compose} pull -q --policy missing {' '.join(faults)}", "an image could not be pulled")]
    # Compose does not take over a container that it did not make, and fails on its name.
    lines += [
        _remove([container])
        for service in recreate
        for container in by_service.get(service, [])
        if service not in followers and (container.project != PROJECT or not container.digest)
    ]
    paused = [c.id for service in start for c in by_service.get(service, []) if c.state == "paused"]
    if paused:
        lines.append(f"docker unpause {' '.join(paused)} >/dev/null")
    lines += [_remove(by_service[service]) for service in followers if service in by_service]
    sharing = {container.service for container in wanted if container.network_of}
    up = f"{compose} up -d --no-deps --wait --wait-timeout {timeout}"
    for group, option, shares in (
        (recreate, " --force-recreate", False),
        (start, "", False),
        (recreate, " --force-recreate", True),
        (start, "", True),
    ):
        services = [service for service in group if (service in sharing) == shares]
        if services:
            look = f"docker compose -f {stack_root}/compose.yaml logs {services[0]}"
            told = f"not all of {' '.join(services)} became healthy within {timeout} s; look with: {look}"
            lines.append(_or_tell(f"{up}{option} {' '.join(services)}", told))
    if PROXY in faults:
        # A proxy that starts reads the newest routes.
        lines.append(owed.clear(PROXY))
    changes = [f"service {service}: {what}" for service, what in faults.items()]
    steps += [Step(change) for change in changes[:-1]]
    return [*steps, Step(changes[-1], "\n".join(lines), timeout=timeout * 2 + 1800)]


def _remove(containers: Sequence[ContainerState]) -> str:
    ids = " ".join(container.id for container in containers)
    return f"docker stop {ids} >/dev/null && docker rm {ids} >/dev/null"


def _or_tell(command: str, message: str) -> str:
    return f"{command} >/dev/null || {{ echo {shlex.quote(message)} >&2; exit 1; }}"


def reload_steps(proxy_file: File | None, seen: Snapshot) -> list[Step]:
    """The proxy's configuration: written, then taken into use without a restart."""
    if proxy_file is None:
        return []
    found = files.steps((proxy_file,), seen, pending=PROXY)
    running = any(c.service == PROXY and c.state == "running" for c in seen.containers)
    if not running or not (found or PROXY in seen.pending):
        return found
    return [*found, Step(f"{PROXY}: routes changed, are reloaded", f"{_RELOAD}\n{owed.clear(PROXY)}")]


def file_steps(wanted: Wanted, seen: Snapshot) -> list[Step]:
    """Compose file, secrets and seeds, with the graphics cards of this very host."""
    return files.steps(gpu.fitted(wanted, seen).stack_files, seen)


def service_steps(wanted: Wanted, seen: Snapshot) -> list[Step]:
    """Containers as that compose file says."""
    settings = wanted.settings
    containers = gpu.fitted(wanted, seen).containers
    return container_steps(containers, settings.stack_root, settings.compose_wait_timeout, seen)


def steps(wanted: Wanted, seen: Snapshot) -> list[Step]:
    """Everything this stage would still do."""
    return [
        *file_steps(wanted, seen),
        *reload_steps(wanted.proxy_file, seen),
        *service_steps(wanted, seen),
    ]


@operation()
def described(wanted: Wanted) -> Commands:
    """
    Compose file, secrets and seeds.

    + wanted: the host as it should be
    """
    yield from converge(lambda seen: file_steps(wanted, seen))


@operation()
def services(wanted: Wanted) -> Commands:
    """
    Containers as the compose file says, healthy.

    + wanted: the host as it should be
    """
    yield from converge(lambda seen: service_steps(wanted, seen))


@operation()
def proxy(proxy_file: File | None) -> Commands:
    """
    Routes of the reverse proxy, in use.

    + proxy_file: its configuration
    """
    yield from converge(lambda seen: reload_steps(proxy_file, seen))


@deploy("stack")
def provision(wanted: Wanted) -> None:
    """The whole stage, in order. The routes are there before the proxy starts for the first time."""
    described(name="compose file, secrets and seeds", wanted=wanted)
    proxy(name="proxy routes", proxy_file=wanted.proxy_file)
    services(name="services", wanted=wanted)
