"""From the catalogue and one host's settings to its stack: which services, ports, mounts, networks and routes.

Everything that is decided about a host's services is decided here, once; the renderers only write it down.
`choose` looks at settings alone, `build_stack` also asks the vault. Neither touches a host.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from mediahost import confinement, plex
from mediahost.catalog import (
    Exposure,
    Health,
    MemorySize,
    Name,
    PortNumber,
    Protocol,
    RouteAccess,
    Service,
    VariableName,
    check_image,
    unknown_service,
)
from mediahost.config import ConfigError, ConfigProblem, Settings
from mediahost.vpn import BRIDGE, CLIENT, INSIDE, INSIDE_BRIDGE, NETWORK, Vpn

PROJECT = "mediahost"
PROXY = "caddy"
"""The catalogue entry that serves the routes."""

UMASK = "002"
"""Group members can change what a service writes: the arrs hardlink and delete what the client downloaded."""

SECRET_REFERENCE = "secret:"  # noqa: S105 - a prefix, not a secret
GIVEN = "given"
"""Kind of a vault entry that only the user can supply: `SecretSource` raises LookupError when it is absent."""

SecretSource = Callable[[str, str], str]
"""(entry name, kind) to value. Kinds api_key, password and token are generated when absent."""


@dataclass(frozen=True)
class ExposedPort:
    """A port published on all addresses, or on loopback (`localhost`), as the firewall sees it."""

    port: int
    protocol: Protocol
    exposure: Exposure
    service: str
    container_port: int

    @property
    def address(self) -> str | None:
        """Address the host port binds to; None means every address, IPv4 and IPv6."""
        return "127.0.0.1" if self.exposure == "localhost" else None


@dataclass(frozen=True)
class Mount:
    """A directory of the host (`source`) at `target` in the container."""

    source: str
    target: str
    read_only: bool = False


@dataclass(frozen=True)
class SecretFile:
    """A secret mounted at `target`; `owner` is the decimal uid that may read the file on the host."""

    name: str
    target: str
    value: str = field(repr=False)
    owner: str = "0"


@dataclass(frozen=True)
class StackService:
    """A service as it runs on this host. `uid` and `gid` own its configuration directory.

    `secret_values` holds what configuration files need, by the secret's name; `secret_files` what is mounted.
    `web_port` is the port inside the container.
    """

    name: str
    title: str
    image: str
    user: str | None
    uid: int
    gid: int
    environment: Mapping[str, str]
    capabilities: tuple[str, ...]
    mounts: tuple[Mount, ...]
    ports: tuple[ExposedPort, ...]
    networks: tuple[str, ...]
    secret_files: tuple[SecretFile, ...]
    secret_values: Mapping[str, str] = field(repr=False)
    web_port: int | None
    health: Health | None
    memory: str
    pids: int
    tmpfs: tuple[str, ...]
    read_only: bool
    init: bool
    stop_grace_period: int
    depends_on: tuple[str, ...]
    devices: tuple[str, ...] = ()
    gpu: Literal["none", "transcode", "compute"] = "none"
    """What it does with a graphics card: none, transcode, compute. Which card it gets depends on the host."""
    dns: tuple[str, ...] = ()
    """Name servers instead of the host's."""
    address: str | None = None
    """Its address in the tunnel's network; None where Docker may choose."""
    network_of: str | None = None
    """Service whose network namespace this one shares: it then has no networks, and its ports are published there."""


@dataclass(frozen=True)
class Network:
    """A bridge. `isolated` containers reach the outside but not each other, those on an `internal` one no outside.

    `subnet` and the interface's name `bridge` are Docker's choice when they are None; `mtu` in bytes.
    """

    name: str
    isolated: bool = False
    internal: bool = False
    subnet: str | None = None
    bridge: str | None = None
    mtu: int | None = None

    @property
    def full_name(self) -> str:
        """Name on the host."""
        return f"{PROJECT}_{self.name}"


@dataclass(frozen=True)
class Route:
    """`hostname` through the proxy to `scheme`://`service`:`port`; `access` says for whom."""

    service: str
    hostname: str
    port: int
    scheme: str
    access: RouteAccess


@dataclass(frozen=True)
class Stack:
    """All of one host's services. `label_key` is a vault value that keys the digests in container labels.

    `vpn` is None when no traffic goes through a tunnel.
    """

    host: str
    services: tuple[StackService, ...]
    networks: tuple[Network, ...]
    routes: tuple[Route, ...]
    label_key: str = field(repr=False)
    ddns_settings: tuple[Mapping[str, Any], ...] = field(default=(), repr=False)
    name: str = PROJECT
    vpn: Vpn | None = None

    @property
    def exposed_ports(self) -> tuple[ExposedPort, ...]:
        """Every published port, ordered by number; the firewall is rendered from these."""
        ports = [port for service in self.services for port in service.ports]
        return tuple(sorted(ports, key=lambda port: (port.port, port.protocol)))

    def service(self, name: str) -> StackService | None:
        """The service of that name, or None when this host does not run it."""
        return next((service for service in self.services if service.name == name), None)


class Override(BaseModel):
    """What `service_overrides` can change of one service."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    image: Annotated[str, AfterValidator(check_image)] | None = None
    exposure: Exposure | None = Field(
        None, description="Who may reach the web port; of a service without one: all its ports."
    )
    route: RouteAccess | None = None
    memory: MemorySize | None = None
    environment: dict[VariableName, str | int | bool] = {}
    host_port: PortNumber | None = None


@dataclass(frozen=True)
class Choice:
    """A service of the catalogue that this host shall run, with what the user changed.

    The traffic of a `confined` one leaves through the tunnel or not at all.
    """

    service: Service
    override: Override = Override()
    confined: bool = False

    @property
    def exposure(self) -> Exposure:
        """Who may reach the web port."""
        return self.override.exposure or self.service.exposure

    @property
    def route(self) -> RouteAccess:
        """Who may reach the web interface through the proxy."""
        return self.override.route or self.service.route

    @property
    def web_port(self) -> int | None:
        """Port of the web interface inside the container."""
        if self.service.web is None:
            return None
        moved = self.override.host_port if self.service.web.port_env else None
        return moved or self.service.web.port

    @property
    def ports(self) -> tuple[ExposedPort, ...]:
        """What is published on the host.

        Peers of a confined service come through the tunnel: on the host's own address they would see where it is.
        """
        name = self.service.name
        ports = []
        if self.web_port is not None:
            host_port = self.override.host_port or self.service.host_port or self.web_port
            ports.append(ExposedPort(host_port, "tcp", self.exposure, name, self.web_port))
        moved = self.override.exposure if self.service.web is None else None
        for port in self.service.ports:
            if not (self.confined and port.exposure == "wan"):
                ports.append(ExposedPort(port.port, port.protocol, moved or port.exposure, name, port.port))
        return tuple(port for port in ports if port.exposure not in ("proxy", "none"))


def choose(settings: Settings, catalog: Mapping[str, Service], host: str) -> tuple[Choice, ...]:
    """The services this host shall run, in alphabetical order.

    Selection and `services`, without `services_disabled`, with the dependencies of what is left. Raises
    `ConfigError` with every problem found: unknown or retired services, dependencies that are switched off,
    conflicts, port clashes, wrong overrides.
    """
    problems: list[ConfigProblem] = []
    wanted = _wanted(settings, catalog, host, problems)
    names = _with_dependencies(settings, catalog, host, wanted, problems)
    if settings.plex == "docker":
        names.add(plex.NAME)
    confined = confinement.confined(settings, catalog, names, host, problems)
    if confined and settings.vpn_mode == "container":
        names.add(CLIENT)
    overrides = _overrides(settings, catalog, host, names, problems)
    if plex.NAME in names:
        overrides[plex.NAME] = _plex_override(settings, overrides.get(plex.NAME, Override()))
    choices = tuple(
        Choice(catalog[name], overrides.get(name, Override()), name in confined) for name in sorted(names)
    )
    problems.extend(_conflicts(choices, host))
    problems.extend(confinement.refusals(choices, settings, host))
    problems.extend(_port_clashes(choices, settings, host))
    problems.extend(_unreachable(choices, host))
    for name in settings.gpu_devices:
        if name not in catalog:
            problems.append(ConfigProblem(host, "gpu_devices", name, unknown_service(name, catalog)))
    if problems:
        raise ConfigError(problems)
    return choices


def build_stack(settings: Settings, catalog: Mapping[str, Service], host: str, secret: SecretSource) -> Stack:
    """The stack of `host`, with every secret resolved.

    Vault entries are named `<host>/<service>/<secret>`. Raises `ConfigError` as `choose` does, and for
    `secret:NAME` references whose entry is absent or cannot be delivered.
    """
    choices = choose(settings, catalog, host)
    problems: list[ConfigProblem] = []
    chosen = {choice.service.name for choice in choices}
    inside = [choice.service.name for choice in choices if choice.confined]
    vpn = confinement.read_vpn(settings, inside, host, vault_folder(host), secret, problems)
    networks = {choice.service.name: _networks(choice, choices, settings) for choice in choices}
    services = tuple(
        _service(choice, settings, host, chosen, networks[choice.service.name], secret, problems)
        for choice in choices
    )
    if vpn is not None:
        listeners = {
            choice.service.name for choice in choices if choice.confined and choice.service.forwarded_port_env
        }
        services = tuple(_through_tunnel(service, vpn, service.name in listeners) for service in services)
    ddns: list[Mapping[str, Any]] = []
    if "ddns-updater" in chosen:
        for index, entry in enumerate(settings.ddns_settings):
            ddns.append(_resolved(entry, f"ddns_settings.{index}", host, secret, problems))
    known: tuple[Network, ...] = (Network("proxy"), Network("apps"), Network("outbound", isolated=True))
    if vpn is not None:
        # Outside the packets of Gluetun, which make room for the tunnel's own headers, nothing knows of its MTU.
        mtu = vpn.tunnel.mtu if vpn.mode == "host" else None
        known += (Network(NETWORK, subnet=vpn.subnet, bridge=BRIDGE, mtu=mtu),)
        known += (Network(INSIDE, internal=True, bridge=INSIDE_BRIDGE),)
        for name, network in confinement.multi_homed(services, known, vpn):
            mend = (
                f"would be in the network {network} too, which is a way past the tunnel; this is a fault of mediahost"
            )
            problems.append(ConfigProblem(host, "vpn_services", name, mend))
    if problems:
        raise ConfigError(problems)
    used = {name for service in services for name in service.networks}
    return Stack(
        host=host,
        services=services,
        networks=tuple(network for network in known if network.name in used),
        routes=_routes(choices, settings, host),
        label_key=secret(f"{vault_folder(host)}/{PROJECT}/label_key", "token"),
        ddns_settings=tuple(ddns),
        vpn=vpn,
    )


def host_label(host: str) -> str:
    """A DNS label for an inventory name: `@vagrant/nas`, `nas.lan` and `nas` all give `nas`."""
    name = host.rsplit("/", 1)[-1].lower()
    try:
        ipaddress.ip_address(name)
    except ValueError:
        name = name.split(".", 1)[0]
    return re.sub(r"[^a-z0-9]+", "-", name).strip("-") or "host"


def vault_folder(host: str) -> str:
    """Where the vault keeps a host's secrets: its inventory name in the letters that vault entries may have."""
    return re.sub(r"[^a-z0-9_./-]", "-", host.lower().lstrip("@")).lstrip("_./-") or "host"


def _plex_override(settings: Settings, override: Override) -> Override:
    """`plex_exposure` counts for the container too, unless its override says another."""
    return override if override.exposure else override.model_copy(update={"exposure": settings.plex_exposure})


# --- choosing ---------------------------------------------------------------------------------------------


def _wanted(
    settings: Settings, catalog: Mapping[str, Service], host: str, problems: list[ConfigProblem]
) -> dict[str, str]:
    """Names of the wanted services, each with the key that asked for it."""
    for key, names in (("services", settings.services), ("services_disabled", settings.services_disabled)):
        for name in names:
            if name not in catalog:
                problems.append(ConfigProblem(host, key, name, unknown_service(name, catalog)))
            elif name == plex.NAME:
                mend = "comes and goes with the key plex: set plex to docker, native or none, and remove it here"
                problems.append(ConfigProblem(host, key, name, mend))
    for name in sorted(set(settings.services) & set(settings.services_disabled)):
        problems.append(
            ConfigProblem(host, "services_disabled", name, "it is in services too; remove it from one of them")
        )
    wanted = {name: "selection" for name, service in catalog.items() if settings.selection in service.selections}
    wanted.update((name, "services") for name in settings.services if name in catalog)
    for name in settings.services_disabled:
        wanted.pop(name, None)
    for name, key in list(wanted.items()):
        service = catalog[name]
        if service.status != "retired":
            continue
        why = f"{service.title} is retired: {service.reason}. Use {service.successor} instead"
        if service.image is None:
            problems.append(ConfigProblem(host, key, name, f"{why}; there is nothing left to run"))
            del wanted[name]
        elif not settings.allow_retired:
            problems.append(ConfigProblem(host, key, name, f"{why}, or set allow_retired = True to run it anyway"))
    return wanted


def _with_dependencies(
    settings: Settings,
    catalog: Mapping[str, Service],
    host: str,
    wanted: Mapping[str, str],
    problems: list[ConfigProblem],
) -> set[str]:
    names = set(wanted)
    queue = sorted(names)
    while queue:
        name = queue.pop(0)
        for entry in catalog[name].depends_on:
            alternatives = entry.split("|")
            if names.intersection(alternatives):
                continue
            possible = [each for each in alternatives if each not in settings.services_disabled]
            if possible:
                names.add(possible[0])
                queue.append(possible[0])
                continue
            problems.append(
                ConfigProblem(
                    host,
                    "services_disabled",
                    " and ".join(alternatives),
                    f"{name} needs {' or '.join(alternatives)}; "
                    f"remove it from services_disabled, or disable {name} too",
                )
            )
    return names


def _overrides(
    settings: Settings,
    catalog: Mapping[str, Service],
    host: str,
    names: set[str],
    problems: list[ConfigProblem],
) -> dict[str, Override]:
    overrides: dict[str, Override] = {}
    for name, given in settings.service_overrides.items():
        key = f"service_overrides.{name}"
        if name not in catalog:
            problems.append(ConfigProblem(host, key, "", unknown_service(name, catalog)))
            continue
        try:
            override = Override.model_validate(given)
        except ValidationError as error:
            problems.extend(dict.fromkeys(_told(host, key, item) for item in error.errors()))
            continue
        problems.extend(_without_effect(catalog[name], override, host, key))
        problems.extend(_refused(catalog[name], override, host, key))
        if name in names:
            overrides[name] = override
    return overrides


def _told(host: str, key: str, item: Any) -> ConfigProblem:
    path = [str(part) for part in item["loc"]]
    if path[0] == "environment":
        path = path[:2]  # a union reports one error a member, with the member's type at the end
    full = ".".join([key, *path])
    if item["type"] == "extra_forbidden":
        known = list(Override.model_fields)
        near = difflib.get_close_matches(path[-1], known, n=1, cutoff=0.6)
        mend = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
        return ConfigProblem(host, full, "", f"no such key; {mend}")
    if path[0] == "environment":
        # The value is not shown: it may be a password in the wrong place.
        mend = "write NAME: text or number; NAME is letters, digits and _, and starts with no digit"
        return ConfigProblem(host, full, "", mend)
    value = repr(item["input"])[:60]
    if item["type"] == "string_pattern_mismatch":
        return ConfigProblem(host, full, value, "write a size such as 512m or 2g")
    return ConfigProblem(host, full, value, str(item["msg"]).removeprefix("Value error, "))


def _without_effect(service: Service, override: Override, host: str, key: str) -> Iterator[ConfigProblem]:
    if service.web is not None:
        return
    mend = f"{service.title} has no web interface; remove this key"
    if override.host_port is not None:
        yield ConfigProblem(host, f"{key}.host_port", str(override.host_port), mend)
    if override.route is not None:
        yield ConfigProblem(host, f"{key}.route", override.route, mend)
    if override.exposure is not None and not service.ports:
        yield ConfigProblem(host, f"{key}.exposure", override.exposure, mend)


def _refused(service: Service, override: Override, host: str, key: str) -> Iterator[ConfigProblem]:
    for variable in override.environment:
        # linuxserver images take NAME from the file that FILE__NAME names.
        reason = service.refused_environment.get(variable.removeprefix("FILE__"))
        if reason is not None:
            # The value is not shown: it may be a password.
            yield ConfigProblem(host, f"{key}.environment.{variable}", "", reason)


def _conflicts(choices: tuple[Choice, ...], host: str) -> Iterator[ConfigProblem]:
    names = {choice.service.name for choice in choices}
    told: set[frozenset[str]] = set()
    for choice in choices:
        for other in choice.service.conflicts:
            pair = frozenset((choice.service.name, other))
            if other in names and pair not in told:
                told.add(pair)
                mend = f"cannot run beside {choice.service.name}; add one of the two to services_disabled"
                yield ConfigProblem(host, "services", other, mend)


def _port_clashes(choices: tuple[Choice, ...], settings: Settings, host: str) -> Iterator[ConfigProblem]:
    taken: dict[tuple[int, str], ExposedPort | None] = {
        (port.port, port.protocol): ExposedPort(port.port, port.protocol, port.exposure, "native Plex", port.port)
        for port in plex.ports(settings)
    }
    taken[settings.sshd_port, "tcp"] = None
    for port in (port for choice in choices for port in choice.ports):
        slot = (port.port, port.protocol)
        if slot not in taken:
            taken[slot] = port
            continue
        # A port on all addresses takes it on loopback too, and only one service can be on loopback.
        other = taken[slot]
        holder = "the SSH server (sshd_port)" if other is None else other.service
        movable = next(
            (name for name in (port.service, other and other.service) if name and _movable(name, choices)), None
        )
        if movable:
            key, mend = f"service_overrides.{movable}.host_port", "choose another host_port"
        else:
            key = "sshd_port" if other is None else "services_disabled"
            mend = "choose another sshd_port" if other is None else f"disable {port.service} or {holder}"
        yield ConfigProblem(
            host, key, f"{port.port}/{port.protocol}", f"{port.service} and {holder} both want this port; {mend}"
        )


def _movable(name: str, choices: tuple[Choice, ...]) -> bool:
    return any(choice.service.name == name and choice.service.web is not None for choice in choices)


def _unreachable(choices: tuple[Choice, ...], host: str) -> Iterator[ConfigProblem]:
    names = {choice.service.name for choice in choices}
    for choice in choices:
        if choice.exposure != "proxy":
            continue
        key = f"service_overrides.{choice.service.name}"
        if PROXY not in names:
            mend = f"{PROXY} is not among the services, so nobody could reach it; enable {PROXY} or choose lan"
            yield ConfigProblem(host, f"{key}.exposure", "proxy", mend)
        elif choice.route == "none":
            mend = "with exposure proxy nobody could reach it; choose lan or wan"
            yield ConfigProblem(host, f"{key}.route", "none", mend)


# --- building ---------------------------------------------------------------------------------------------


def _service(
    choice: Choice,
    settings: Settings,
    host: str,
    chosen: set[str],
    networks: tuple[str, ...],
    secret: SecretSource,
    problems: list[ConfigProblem],
) -> StackService:
    service = choice.service
    uid, gid = _owner(service, settings)
    environment = _environment(choice, settings)
    files: list[SecretFile] = []
    values: dict[str, str] = {}
    reader = "0" if service.run_as.method != "user" else str(uid)
    for need in service.secrets:
        value = secret(f"{vault_folder(host)}/{service.name}/{need.name}", need.kind)
        if need.env is None:
            values[need.name] = value
        else:
            target = f"/run/secrets/{need.name}"
            environment[need.env] = target
            files.append(SecretFile(need.name, target, value, reader))
    for variable, given in choice.override.environment.items():
        text = str(given).lower() if isinstance(given, bool) else str(given)
        if not text.startswith(SECRET_REFERENCE):
            environment[variable] = text
            continue
        key = f"service_overrides.{service.name}.environment.{variable}"
        if service.run_as.method != "linuxserver":
            mend = "this image cannot read a variable from a file, and `docker inspect` shows variables; use a value"
            problems.append(ConfigProblem(host, key, text, mend))
            continue
        value = _given(text, key, host, secret, problems)
        target = f"/run/secrets/env_{variable.lower()}"
        environment.pop(variable, None)
        environment[f"FILE__{variable}"] = target
        files.append(SecretFile(f"env_{variable.lower()}", target, value, reader))
    return StackService(
        name=service.name,
        title=service.title,
        image=_image(choice, settings),
        user=f"{uid}:{gid}" if service.run_as.method == "user" else None,
        uid=uid,
        gid=gid,
        environment=dict(sorted(environment.items())),
        capabilities=tuple(sorted(service.capabilities)),
        mounts=_mounts(service, settings),
        ports=choice.ports,
        networks=networks,
        secret_files=tuple(files),
        secret_values=values,
        web_port=choice.web_port,
        health=_health(choice),
        memory=choice.override.memory or service.memory,
        pids=service.pids,
        tmpfs=tuple(service.tmpfs),
        read_only=service.read_only,
        init=service.init,
        stop_grace_period=service.stop_grace_period,
        depends_on=tuple(
            sorted({name for entry in service.depends_on for name in entry.split("|") if name in chosen})
        ),
        devices=tuple(service.devices),
        gpu=_gpu_use(service, settings),
    )


def _through_tunnel(service: StackService, vpn: Vpn, listens: bool) -> StackService:
    """`service` with what the VPN changes: the tunnel's own container, and what is confined to the tunnel.

    `listens`: peers reach it at the forwarded port.
    """
    if service.name == CLIENT:
        keys = {"WIREGUARD_PRIVATE_KEY": vpn.tunnel.private_key, "WIREGUARD_PRESHARED_KEY": vpn.tunnel.preshared_key}
        files = tuple(
            SecretFile(name.lower(), f"/run/secrets/{name.lower()}", value) for name, value in keys.items() if value
        )
        environment = {
            **service.environment,
            **confinement.client_environment(vpn),
            **{f"{file.name.upper()}_SECRETFILE": file.target for file in files},
        }
        return replace(
            service,
            environment=dict(sorted(environment.items())),
            secret_files=(*service.secret_files, *files),
            dns=vpn.dns,
        )
    if service.name not in vpn.services:
        return service
    if vpn.mode == "container":
        return replace(service, network_of=CLIENT)
    # The wall leads the forwarded port there. Nothing is published: that would open it on every address of the host.
    address = vpn.listener if listens and isinstance(vpn.forwarding, int) else None
    return replace(service, dns=vpn.dns, address=address)


def _owner(service: Service, settings: Settings) -> tuple[int, int]:
    if service.run_as.method == "linuxserver":
        return settings.media_uid, settings.media_gid
    return service.run_as.uid or 0, service.run_as.gid or 0


def _environment(choice: Choice, settings: Settings) -> dict[str, str]:
    service = choice.service
    environment = {"TZ": settings.timezone, **service.environment}
    if service.run_as.method == "linuxserver":
        environment |= {"PUID": str(settings.media_uid), "PGID": str(settings.media_gid), "UMASK": UMASK}
    if service.web and service.web.port_env:
        environment[service.web.port_env] = str(choice.web_port)
    if choice.confined and service.forwarded_port_env:
        if settings.vpn_port_forwarding == "nat-pmp":
            # It is told at run time and keeps what it was told; a variable would win at each start.
            environment.pop(service.forwarded_port_env, None)
        elif settings.vpn_port_forwarding != "off":
            environment[service.forwarded_port_env] = str(settings.vpn_port_forwarding)
    return environment


def _gpu_use(service: Service, settings: Settings) -> Literal["none", "transcode", "compute"]:
    """What it does with a card. Whom the user gives one by name has one, whatever the catalogue knows of it."""
    given = settings.gpu_devices.get(service.name)
    if settings.gpu == "none" or given == "none":
        return "none"
    return "transcode" if given and service.gpu == "none" else service.gpu


def _image(choice: Choice, settings: Settings) -> str:
    image = choice.override.image or choice.service.image
    if image is None:  # choose() refuses such a service
        raise ValueError(f"{choice.service.name} has no image")
    return f"{settings.registry_prefix.rstrip('/')}/{image}" if settings.registry_prefix else image


def _health(choice: Choice) -> Health | None:
    health = choice.service.health
    if health is None or choice.web_port is None:
        return health
    port = str(choice.web_port)
    return health.model_copy(update={"test": [word.replace("{port}", port) for word in health.test]})


def _mounts(service: Service, settings: Settings) -> tuple[Mount, ...]:
    mounts: list[Mount] = []
    own = f"{settings.stack_root}/config/{service.name}"
    for volume in service.volumes:
        if volume.source == "config":
            source = f"{own}/{volume.subdirectory}" if volume.subdirectory else own
            mounts.append(Mount(source, str(volume.target), volume.read_only))
            continue
        mounts.extend(
            Mount(source, target, volume.read_only) for source, target in media_views(settings)[volume.source]
        )
    return tuple(mounts)


def media_views(settings: Settings) -> dict[str, tuple[tuple[str, str], ...]]:
    """What `data`, `torrents`, `usenet` and `media` volumes are: (host directory, container path) pairs.

    In the `trash` layout `data` is one mount, because a hardlink cannot cross two mounts even of one file
    system (EXDEV, link(2)). A file has the same path in every container, so no path mapping is needed.
    """
    media = (settings.media_root, "/data/media")
    if settings.layout == "trash":
        torrents = (f"{settings.data_root}/torrents", "/data/torrents")
        usenet = (f"{settings.data_root}/usenet", "/data/usenet")
        views = {"torrents": (torrents,), "usenet": (usenet,), "media": (media,)}
        return {"data": ((settings.data_root, "/data"),), **views}
    downloads = (settings.downloads_root, "/data/downloads")
    return {"data": (media, downloads), "torrents": (downloads,), "usenet": (downloads,), "media": (media,)}


def _networks(choice: Choice, choices: tuple[Choice, ...], settings: Settings) -> tuple[str, ...]:
    """`proxy` for what the proxy serves, `apps` for who talks to whom, else `outbound`.

    A confined service, or the container that holds its tunnel, is in the tunnel's network and in `confined`, where
    those that have to do with it join it.
    """
    name = choice.service.name
    if choice.confined and settings.vpn_mode == "container":
        return ()
    if choice.confined or name == CLIENT:
        return (NETWORK, INSIDE)
    open_ones = {other.service.name for other in choices if not other.confined}
    networks = []
    if name == PROXY or (PROXY in open_ones and choice.route != "none"):
        networks.append("proxy")
    if any(other.service.name in open_ones for other in _partners(choice, choices)):
        networks.append("apps")
    networks = networks or ["outbound"]
    served = name == PROXY and any(other.confined and other.route != "none" for other in choices)
    if served or any(other.confined for other in _partners(choice, choices)):
        networks.append(INSIDE)
    return tuple(networks)


def _partners(choice: Choice, choices: tuple[Choice, ...]) -> list[Choice]:
    """Whom a service uses, and who uses it."""
    name, used = choice.service.name, _peers(choice.service)
    return [other for other in choices if other.service.name in used or name in _peers(other.service)]


def _peers(service: Service) -> set[Name]:
    return {*service.talks_to, *(name for entry in service.depends_on for name in entry.split("|"))}


def _routes(choices: tuple[Choice, ...], settings: Settings, host: str) -> tuple[Route, ...]:
    if not any(choice.service.name == PROXY for choice in choices):
        return ()
    zone = settings.domain or f"{host_label(host)}.home.arpa"  # home.arpa: RFC 8375
    return tuple(
        Route(choice.service.name, f"{choice.service.name}.{zone}", choice.web_port, web.scheme, choice.route)
        for choice in choices
        if (web := choice.service.web) and choice.web_port and choice.route != "none"
    )


def _resolved(value: Any, key: str, host: str, secret: SecretSource, problems: list[ConfigProblem]) -> Any:
    """`value` with every `secret:NAME` in it replaced."""
    if isinstance(value, Mapping):
        return {name: _resolved(each, f"{key}.{name}", host, secret, problems) for name, each in value.items()}
    if isinstance(value, list):
        return [_resolved(each, f"{key}.{n}", host, secret, problems) for n, each in enumerate(value)]
    if isinstance(value, str) and value.startswith(SECRET_REFERENCE):
        return _given(value, key, host, secret, problems)
    return value


def _given(reference: str, key: str, host: str, secret: SecretSource, problems: list[ConfigProblem]) -> str:
    name = reference.removeprefix(SECRET_REFERENCE)
    if not name:
        problems.append(ConfigProblem(host, key, reference, "write the name of a vault entry after the colon"))
        return ""
    try:
        return secret(name, GIVEN)
    except LookupError:
        mend = f"the vault has no such entry; run `mediahost secrets set {name}`"
        problems.append(ConfigProblem(host, key, reference, mend))
        return ""
