"""The service catalogue: one YAML file a service, checked against one model.

`Service` is the only description of what a service is; compose files, routes, firewall rules and directories are
derived from it. Nothing here knows a host or a user's configuration.
"""

from __future__ import annotations

import difflib
import json
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

DIRECTORY = Path(__file__).resolve().parent.parent / "catalog"
SCHEMA_FILE = DIRECTORY / "schema.json"

# Grammar of github.com/distribution/reference: registry host with a dot or a port, path, tag, optional digest.
_IMAGE = re.compile(
    r"^(?P<registry>[a-z0-9-]+(\.[a-z0-9-]+)+(:\d+)?|localhost(:\d+)?)"
    r"/(?P<path>[a-z0-9]+([._/-]+[a-z0-9]+)*)"
    r":(?P<tag>[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})(@sha256:[0-9a-f]{64})?$"
)

Exposure = Literal["wan", "lan", "localhost", "proxy", "none"]
RouteAccess = Literal["none", "lan", "wan"]
Protocol = Literal["tcp", "udp"]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")]
SecretName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
VariableName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
PortNumber = Annotated[int, Field(ge=1, le=65535)]
MemorySize = Annotated[str, Field(pattern=r"^[1-9]\d*[mg]$")]
ContainerPath = Annotated[str, Field(pattern=r"^/[A-Za-z0-9_./-]+$")]
Capability = Literal[
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "KILL",
    "NET_ADMIN",
    "NET_BIND_SERVICE",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SYS_NICE",
]


def check_image(value: str) -> str:
    """A pinned, fully qualified image reference; raises `ValueError` with the mend otherwise."""
    match = _IMAGE.match(value)
    if not match:
        raise ValueError("write the image as registry/path:tag, such as docker.io/library/caddy:2.11.4")
    if match["tag"] == "latest":
        raise ValueError("the tag 'latest' changes under your feet; pin a version")
    return value


Image = Annotated[
    str,
    Field(pattern=r"^[^\s]+/[^\s]+:[^\s]+$", description="registry/path:tag, optionally with @sha256 digest."),
]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RunAs(_Strict):
    """Which user the processes run as, and how the image is told."""

    method: Literal["linuxserver", "user", "image"] = Field(
        description="linuxserver: starts as root and drops to PUID:PGID (the media user). "
        "user: the container starts as uid:gid. image: the image's own choice."
    )
    uid: Annotated[int, Field(ge=1)] | None = None
    gid: Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _complete(self) -> RunAs:
        given = self.uid is not None and self.gid is not None
        if self.method == "user" and not given:
            raise ValueError("method 'user' needs uid and gid")
        if self.method != "user" and (self.uid is not None or self.gid is not None):
            raise ValueError(f"uid and gid have no effect with method '{self.method}'; remove them")
        return self


class Secret(_Strict):
    """A value of the vault that the service needs."""

    name: SecretName
    kind: Literal["api_key", "password", "token"] = Field(description="How the value is generated.")
    delivery: Literal["file", "config"] = Field(
        description="file: mounted at /run/secrets/NAME and named by `env`. "
        "config: written into a configuration file by mediahost.render.seeds."
    )
    env: VariableName | None = Field(None, description="Variable that gets the path of the file.")

    @model_validator(mode="after")
    def _deliverable(self) -> Secret:
        if (self.delivery == "file") != (self.env is not None):
            raise ValueError("a secret with delivery 'file' needs env; one with delivery 'config' has none")
        return self


class Volume(_Strict):
    """A directory of the host inside the container."""

    source: Literal["config", "data", "torrents", "usenet", "media"] = Field(
        description="config: the service's own directory. data, torrents, usenet, media: views of the media tree, "
        "whose container paths the layout decides."
    )
    target: ContainerPath | None = Field(None, description="Container path; for config only.")
    subdirectory: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_/-]*$")] | None = Field(
        None, description="Part of the service's own directory; None mounts all of it."
    )
    read_only: bool = False

    @model_validator(mode="after")
    def _has_target(self) -> Volume:
        if self.source == "config" and self.target is None:
            raise ValueError("a config volume needs target, the path inside the container")
        if self.source != "config" and (self.target is not None or self.subdirectory is not None):
            raise ValueError(f"the layout decides where '{self.source}' goes; remove target and subdirectory")
        return self


class Web(_Strict):
    """The web interface or API."""

    port: PortNumber
    scheme: Literal["http", "https"] = "http"
    port_env: VariableName | None = Field(
        None,
        description="Variable that moves the port inside the container. Set when the service compares the "
        "port a browser asked for with its own: the container port then follows host_port.",
    )


class Port(_Strict):
    """A port beside the web interface."""

    port: PortNumber
    protocol: Protocol
    exposure: Exposure


class Health(_Strict):
    """How the engine finds out that the service works. All times in seconds.

    `{port}` in `test` stands for the port of the web interface. The defaults suit slow machines: a first start
    on emulated hardware takes minutes, and a probe costs a process each time. `start_interval` holds until the
    service is healthy for the first time, so that a run need not wait a whole `interval`; it needs Engine 25,
    which every source that mediahost installs from has (Debian 12's own 20.10 is refused for its Compose).
    """

    test: Annotated[list[str], Field(min_length=2)]
    interval: Annotated[int, Field(ge=5)] = 60
    start_interval: Annotated[int, Field(ge=1)] = 5
    timeout: Annotated[int, Field(ge=1)] = 20
    retries: Annotated[int, Field(ge=1)] = 5
    start_period: Annotated[int, Field(ge=60)] = 180

    @field_validator("test")
    @classmethod
    def _known_form(cls, value: list[str]) -> list[str]:
        if value[0] not in ("CMD", "CMD-SHELL"):
            raise ValueError("the first word of a health test is CMD or CMD-SHELL")
        return value


class Service(_Strict):
    """A service of the catalogue."""

    name: Name
    title: str
    category: Name
    description: Annotated[str, Field(pattern=r"^[^\n]+$")]
    status: Literal["active", "retired"] = "active"
    successor: str | None = Field(None, description="What to use instead of a retired service.")
    reason: str | None = Field(None, description="Why it is retired.")
    optional: bool = Field(False, description="Nothing else needs it: it can be switched off by itself.")
    selections: list[Literal["home"]] = Field([], description="Named sets the service belongs to.")
    image: Image | None = Field(None, description="None: nothing to run (retired services only).")
    run_as: RunAs = RunAs(method="image")
    capabilities: list[Capability] = Field([], description="Added after ALL have been dropped.")
    environment: dict[VariableName, str] = {}
    refused_environment: dict[VariableName, str] = Field(
        {}, description="Variables that no override may set, each with the reason and what to do instead."
    )
    secrets: list[Secret] = []
    volumes: list[Volume] = []
    web: Web | None = None
    exposure: Exposure = Field("none", description="Who may reach the web interface's own port.")
    host_port: PortNumber | None = Field(None, description="Its port on the host; None: the same number.")
    route: RouteAccess = Field("none", description="Who may reach the web interface through the proxy.")
    ports: list[Port] = []
    health: Health | None = None
    memory: MemorySize = "512m"
    pids: Annotated[int, Field(ge=16)] = 256
    tmpfs: list[ContainerPath] = []
    read_only: bool = False
    init: bool = False
    devices: list[Literal["/dev/net/tun"]] = Field([], description="Device files of the host it opens.")
    gpu: Literal["none", "transcode", "compute"] = Field(
        "none",
        description="What it does with a graphics card where `gpu` gives it one: transcode video, or compute "
        "(OpenCL, CUDA). It must do without one, too.",
    )
    vpn: bool = Field(
        False,
        description="Its traffic belongs into the tunnel when a VPN is configured; `vpn_services` can say otherwise.",
    )
    forwarded_port_env: VariableName | None = Field(
        None,
        description="Variable with the port it listens on for peers: the one a VPN provider forwards is put there.",
    )
    stop_grace_period: Annotated[int, Field(ge=1)] = Field(30, description="Seconds.")
    depends_on: list[Annotated[str, Field(pattern=r"^[a-z0-9-]+(\|[a-z0-9-]+)*$")]] = Field(
        [], description="Services it is no use without; 'a|b' means one of them."
    )
    talks_to: list[Name] = Field([], description="Services it uses when they are there.")
    conflicts: list[Name] = Field([], description="Services that cannot run beside it.")

    @field_validator("image")
    @classmethod
    def _pinned(cls, value: str | None) -> str | None:
        return None if value is None else check_image(value)

    @model_validator(mode="after")
    def _fits_together(self) -> Service:
        if self.status == "active":
            if self.image is None or self.health is None:
                raise ValueError("an active service needs image and health")
            if self.successor or self.reason:
                raise ValueError("only a retired service has successor and reason")
        elif not (self.successor and self.reason):
            raise ValueError("a retired service needs successor and reason")
        if self.web is None and (self.exposure != "none" or self.route != "none" or self.host_port):
            raise ValueError("exposure, route and host_port speak of the web interface, but there is no web")
        names = [secret.name for secret in self.secrets]
        if len(set(names)) != len(names):
            raise ValueError("two secrets have the same name")
        return self


class CatalogError(Exception):
    """The catalogue itself is wrong: names the file, the field, the value and the mend."""


class _UniqueKeyLoader(yaml.SafeLoader):
    """Refuses a mapping that has a key twice; YAML would silently keep the last one."""


def _unique_mapping(loader: _UniqueKeyLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[str] = set()
    for key, _ in node.value:
        if key.value in seen:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {key.value!r} is there twice; keep one", key.start_mark
            )
        seen.add(key.value)
    return loader.construct_mapping(node, deep=True)


_UniqueKeyLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique_mapping)


def load_catalog(directory: Path = DIRECTORY) -> dict[str, Service]:
    """Every service of `directory`, by name, in alphabetical order.

    Raises `CatalogError` that lists all problems of all files.
    """
    files = sorted(directory.glob("*.yaml"))
    if not files:
        raise CatalogError(f"{directory}: no catalogue here; expected one YAML file a service")
    problems: list[str] = []
    catalog: dict[str, Service] = {}
    for file in files:
        try:
            content = yaml.load(file.read_text(encoding="utf-8"), Loader=_UniqueKeyLoader)  # noqa: S506
            if not isinstance(content, dict):
                raise CatalogError("the file holds no mapping; see docs/services.md")
            service = Service.model_validate(content)
        except (OSError, UnicodeDecodeError, yaml.YAMLError, CatalogError) as error:
            problems.append(f"{file.name}: {' '.join(str(error).split())}")
            continue
        except ValidationError as error:
            problems.extend(f"{file.name}: {told}" for told in _told(error))
            continue
        if service.name != file.stem:
            problems.append(f"{file.name}: name = {service.name}: name the file {service.name}.yaml")
        catalog[service.name] = service
    problems.extend(_unresolved(catalog.values(), {file.stem for file in files}))
    if problems:
        raise CatalogError("\n".join([f"the catalogue {directory} is wrong:", *(f"  - {p}" for p in problems)]))
    return catalog


def _told(error: ValidationError) -> Iterable[str]:
    for item in error.errors():
        path = ".".join(str(part) for part in item["loc"]) or "the service"
        message = str(item["msg"]).removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            near = difflib.get_close_matches(str(item["loc"][-1]), Service.model_fields, n=1)
            message = f"no such field; {f'did you mean {near[0]}?' if near else 'see docs/services.md'}"
        shown = "" if isinstance(item["input"], dict | BaseModel) else f" = {str(item['input'])[:60]}"
        yield f"{path}{shown}: {message}"


def _unresolved(services: Iterable[Service], known: set[str]) -> Iterable[str]:
    for service in services:
        wanted = {
            "depends_on": [name for entry in service.depends_on for name in entry.split("|")],
            "talks_to": service.talks_to,
            "conflicts": service.conflicts,
        }
        for key, names in wanted.items():
            for name in names:
                if name not in known:
                    yield f"{service.name}.yaml: {key} = {name}: no such service in the catalogue"


def unknown_service(name: str, catalog: Mapping[str, Service]) -> str:
    """What to tell who asked for a service that `catalog` does not have."""
    near = difflib.get_close_matches(name, catalog, n=1, cutoff=0.6)
    active = ", ".join(name for name, service in catalog.items() if service.status == "active")
    return f"no such service; {f'did you mean {near[0]}?' if near else f'there are {active}'}"


def schema_text() -> str:
    """The JSON Schema of a catalogue file, as `catalog/schema.json` holds it."""
    schema = Service.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    return json.dumps(schema, indent=2, sort_keys=True) + "\n"


if __name__ == "__main__":
    sys.stdout.write(schema_text())
