"""The lab's image registry: Debian's docker-registry on loopback, filled with what the catalogue asks for.

A guest reaches it as 10.0.2.2:PORT and pulls PREFIX/<full upstream reference>. An image carries the digest of
its inputs as a label, so that what the registry serves says itself whether it is current. It must never listen
beyond loopback: it has no authentication.
"""

from __future__ import annotations

import hashlib
import json
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from lab import daemon, oci, paths
from lab.daemon import Service
from lab.errors import LabError
from lab.images.definitions import BASE, DEFINITIONS, LABEL_INPUTS, Definition

GUEST_ADDRESS = "10.0.2.2"
"""The host's loopback as seen from a guest on QEMU's user-mode network (QEMU manual, "Using the user mode
network stack")."""

CATALOG = paths.PROJECT / "catalog"
_DEFAULT_PORT = 5000
_PORT_VARIABLE = "MEDIAHOST_LAB_REGISTRY_PORT"
_MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
# Raised when the way images are put together changes, so that all are made anew.
_FORMAT = 1

Report = Callable[[str], None]


def port() -> int:
    """The registry's TCP port: 5000, or MEDIAHOST_LAB_REGISTRY_PORT."""
    return daemon.port_setting(_PORT_VARIABLE, _DEFAULT_PORT)


def prefix() -> str:
    """The product's `registry_prefix` for guests of this lab, such as `10.0.2.2:5000`."""
    return f"{GUEST_ADDRESS}:{port()}"


def ensure_running() -> Service:
    """The registry, started in the background when it is not up. Raises LabError."""
    directory = _directory()
    config = directory / f"config-{port()}.yml"
    settings = {
        "version": "0.1",
        "log": {"level": "error", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(directory / "data")}, "delete": {"enabled": True}},
        "http": {"addr": f"127.0.0.1:{port()}", "relativeurls": True},
    }
    config.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return daemon.ensure_running(
        _record(),
        ["docker-registry", "serve", str(config)],
        f"http://127.0.0.1:{port()}",
        "/v2/",
        "docker-registry",
        "stop what listens there (Debian's own registry service: sudo systemctl disable --now docker-registry), "
        f"or set {_PORT_VARIABLE} to a free port",
    )


def running() -> Service | None:
    """The registry when it is up; never starts it."""
    return daemon.running(_record(), f"http://127.0.0.1:{port()}")


def references(catalog: Path = CATALOG) -> list[str]:
    """Every reference the lab serves, sorted: the catalogue's images and the definitions' own tags."""
    return sorted(_wanted(catalog))


def missing_definitions(catalog: Path = CATALOG) -> list[str]:
    """Images of the catalogue that the lab has no definition for, sorted."""
    known = {definition.repository for definition in DEFINITIONS}
    return sorted(reference for reference in _catalogue(catalog) if _split(reference)[0] not in known)


def ensure_images(report: Report = lambda _text: None, catalog: Path = CATALOG) -> list[str]:
    """Build and push what the registry lacks; returns the references that were pushed.

    `report` gets a line a step. The first run takes about a minute, a run with nothing to do well under a
    second. Raises LabError when a program, the mirror or disk space is missing.
    """
    service = ensure_running()
    for reference in missing_definitions(catalog):
        report(f"No lab image is defined for {reference}: a guest cannot pull it")
    pushed = []
    with daemon.locked(_directory() / "images.lock"):
        for reference, definition in sorted(_wanted(catalog).items()):
            tag = _split(reference)[1]
            files = definition.files()
            inputs = _inputs(definition, files, tag)
            if _served_inputs(service, reference) == inputs:
                continue
            layers = [*_root_layers(definition, report), _files_layer(definition, files)]
            report(f"Pushing {reference} ({definition.title})")
            config = definition.image_config(tag, inputs)
            oci.push(layers, config, f"127.0.0.1:{port()}/{reference}", _layers_directory())
            pushed.append(reference)
        _prune()
    return pushed


def manifest(service: Service, reference: str) -> dict[str, Any] | None:
    """The OCI manifest that the registry serves for `reference`, None when it has none."""
    repository, tag = _split(reference)
    return _get(f"{service.url}/v2/{repository}/manifests/{tag}")


def image_config(service: Service, reference: str) -> dict[str, Any] | None:
    """The `config` object (user, labels, …) of a served image, None when there is no such image."""
    found = manifest(service, reference)
    if found is None:
        return None
    repository, _tag = _split(reference)
    image = _get(f"{service.url}/v2/{repository}/blobs/{found['config']['digest']}")
    return image.get("config", {}) if image else None


def _directory() -> Path:
    path = paths.cache() / "registry"
    path.mkdir(mode=0o700, exist_ok=True)
    return path


def _layers_directory() -> Path:
    path = _directory() / "layers"
    path.mkdir(mode=0o700, exist_ok=True)
    return path


def _record() -> Path:
    return _directory() / f"registry-{port()}.json"


def _wanted(catalog: Path) -> dict[str, Definition]:
    by_repository = {definition.repository: definition for definition in DEFINITIONS}
    wanted = {f"{definition.repository}:{tag}": definition for definition in DEFINITIONS for tag in definition.tags}
    for reference in _catalogue(catalog):
        repository, _tag = _split(reference)
        if repository in by_repository:
            wanted[reference] = by_repository[repository]
    return wanted


def _catalogue(catalog: Path) -> list[str]:
    found = []
    for path in sorted(catalog.glob("*.yaml")):
        try:
            entry = yaml.safe_load(path.read_text(encoding="utf-8"))
        except yaml.YAMLError as error:
            raise LabError(f"{path} cannot be read", str(error), "correct the YAML") from error
        image = entry.get("image") if isinstance(entry, dict) else None
        if isinstance(image, str) and entry.get("status") != "retired":
            # The lab's images cannot have upstream's digests.
            found.append(image.partition("@")[0])
    return found


def _split(reference: str) -> tuple[str, str]:
    """(repository, tag). The tag stands after the last colon, unless that colon is a port's."""
    repository, colon, tag = reference.rpartition(":")
    return (repository, tag) if colon and "/" not in tag else (reference, "latest")


def _inputs(definition: Definition, files: Mapping[str, oci.Entry], tag: str) -> str:
    contents = []
    for name, entry in sorted(files.items()):
        if isinstance(entry.content, Path):
            digest = oci.file_digest(entry.content)
        else:
            digest = "" if entry.content is None else hashlib.sha256(entry.content).hexdigest()
        xattrs = {key: value.hex() for key, value in entry.xattrs.items()}
        contents.append([name, digest, entry.mode, entry.owner, entry.link, xattrs])
    root = definition.root.key() if definition.root else ""
    return oci.digest_of([_FORMAT, BASE.key(), root, contents, definition.hidden, definition.image_config(tag, "")])


def _served_inputs(service: Service, reference: str) -> str | None:
    config = image_config(service, reference)
    return config.get("Labels", {}).get(LABEL_INPUTS) if config else None


def _root_layers(definition: Definition, report: Report) -> list[oci.Layer]:
    def base_tar() -> Path:
        return _root_tar(BASE, "the shared base of all images", report)

    layers = [
        _cached_layer(_base_name(), lambda target: oci.root_layer(BASE, base_tar(), None, target)),
    ]
    root = definition.root
    if root is not None:

        def pack(target: Path) -> oci.Layer:
            # The base first: what is packed is the difference between the two.
            base = base_tar()
            return oci.root_layer(root, _root_tar(root, definition.title, report), base, target)

        layers.append(_cached_layer(_packages_name(root), pack))
    return layers


def _base_name() -> str:
    return f"base-{BASE.key()}"


def _packages_name(root: oci.Root) -> str:
    return f"packages-{oci.digest_of([BASE.key(), root.key()])}"


def _prune() -> None:
    """Delete what earlier definitions left, and root file systems whose difference is packed already."""
    roots = [definition.root for definition in DEFINITIONS if definition.root]
    kept = {_base_name(), f"root-{BASE.key()}", *map(_packages_name, roots)}
    for path in _layers_directory().iterdir():
        if path.name.startswith(("base-", "packages-", "root-")) and path.name.partition(".")[0] not in kept:
            path.unlink()


def _root_tar(root: oci.Root, title: str, report: Report) -> Path:
    tar = _layers_directory() / f"root-{root.key()}.tar"
    if not tar.exists():
        report(f"Installing Debian packages for {title}")
        oci.build_root(root, tar)
    return tar


def _files_layer(definition: Definition, files: Mapping[str, oci.Entry]) -> oci.Layer:
    name = f"files-{definition.repository.replace('/', '_')}"
    return oci.files_layer(files, definition.hidden, _layers_directory() / f"{name}.tar.zst")


def _cached_layer(name: str, build: Callable[[Path], oci.Layer]) -> oci.Layer:
    record = _layers_directory() / f"{name}.json"
    if record.exists():
        fields = json.loads(record.read_text(encoding="ascii"))
        layer = oci.Layer(**{**fields, "path": Path(fields["path"])})
        if layer.path.exists():
            return layer
    layer = build(_layers_directory() / f"{name}.tar.zst")
    record.write_text(json.dumps({**asdict(layer), "path": str(layer.path)}), encoding="ascii")
    return layer


def _get(url: str) -> dict[str, Any] | None:
    request = urllib.request.Request(url, headers={"Accept": _MANIFEST_TYPE})  # noqa: S310 - loopback
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310 - loopback
            found: dict[str, Any] = json.load(answer)
            return found
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return None
        raise LabError("The registry refuses a request", f"{url}: {error}", "see its log") from error
    except OSError as error:
        raise LabError(
            "The registry does not answer", f"{url}: {error}", "stop it, then run the lab again"
        ) from error
