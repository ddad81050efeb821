"""Makes OCI images out of a Debian root file system and a few files, without a container engine.

Layers are tar files packed with zstd at a low level, since the guests that unpack them are emulated. The layout
is written here rather than by umoci, whose version in Debian 12 packs with gzip only and cannot set a health
check. An image must not depend on who builds it or when, beyond the state of the mirror.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from lab.errors import LabError
from lab.mirror import debian_mirror
from lab.program import run

RELEASE = "trixie"
ARCHITECTURE = "amd64"
EPOCH = 1735689600
"""Seconds since 1970 of 2025-01-01: the time stamp of every file that no package made."""

_XATTR = "SCHILY.xattr."
_LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar+zstd"
_MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
_CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"


@dataclass(frozen=True)
class Entry:
    """A file, directory (`content` None) or symbolic link (`link`) of a layer.

    `xattrs` maps names to values, e.g. security.capability; those must be ASCII, as a pax header holds them.
    """

    content: bytes | Path | None = None
    mode: int = 0o755
    owner: int = 0
    link: str = ""
    xattrs: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Layer:
    """A packed layer: the file, its digest and size (bytes), and the digest of the tar inside (diff ID)."""

    path: Path
    digest: str
    size: int
    diff_id: str
    unpacked_size: int


@dataclass(frozen=True)
class Root:
    """A root file system of Debian packages, and what to leave out of it.

    `dropped` are path prefixes without a leading slash; `appended` adds lines to files the packages made;
    `added` are entries beside them.
    """

    packages: tuple[str, ...]
    dropped: tuple[str, ...] = ()
    appended: tuple[tuple[str, str], ...] = ()
    added: tuple[tuple[str, Entry], ...] = ()

    def key(self) -> str:
        """A digest of the recipe. The state of the mirror is left out: not every update is a new image."""
        added = [(name, entry.link, entry.mode) for name, entry in self.added]
        return digest_of([RELEASE, ARCHITECTURE, sorted(self.packages), self.dropped, self.appended, added])


def digest_of(value: object) -> str:
    """The sha256 (hex) of a JSON value in its canonical form."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """The sha256 (hex) of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def build_root(root: Root, tar: Path) -> None:
    """Write the root file system of `root` to `tar` with mmdebstrap (20 s), whole, from the machine's mirror.

    Raises LabError with mmdebstrap's last lines.
    """
    mirror = debian_mirror()
    ages = [] if mirror.dates_checked else ["Acquire::Check-Valid-Until=false", "Acquire::Check-Date=false"]
    with tempfile.TemporaryDirectory(dir=tar.parent) as work:
        Path(work).chmod(0o755)
        sources = Path(work) / "debian.sources"
        sources.write_text("\n".join(mirror.stanza(*source) for source in mirror.sources(RELEASE)), "utf-8")
        unfinished = Path(work) / "root.tar"
        command = ["mmdebstrap", "--variant=essential", f"--architectures={ARCHITECTURE}"]
        command += [f"--include={','.join(sorted(root.packages))}", f"--keyring={mirror.keyring}"]
        command += ["--aptopt=APT::Install-Recommends=false", *(f"--aptopt={age}" for age in ages)]
        command += ["--dpkgopt=path-exclude=/usr/share/man/*", "--dpkgopt=path-exclude=/usr/share/locale/*"]
        command += ["--dpkgopt=path-exclude=/usr/share/doc/*", "--skip=output/dev"]
        command += [RELEASE, str(unfinished), str(sources)]
        run(command, "mmdebstrap")
        unfinished.replace(tar)


def root_layer(root: Root, tar: Path, below: Path | None, target: Path) -> Layer:
    """Pack `tar` (by `build_root`) as a layer; with `below`, only what differs from that lower tar."""

    def write(layer: tarfile.TarFile) -> None:
        lower = dict(_fingerprints(below)) if below else {}
        appended = dict(root.appended)
        with tarfile.open(tar) as source:
            for member in source:
                name = member.name.removeprefix("./")
                if _dropped(name, root.dropped) or member.isdev():
                    continue
                if name in lower and lower[name] == _fingerprint(source, member):
                    continue
                content = source.extractfile(member) if member.isreg() else None
                if content is not None and name in appended:
                    data = content.read() + appended[name].encode()
                    member.size = len(data)
                    content = io.BytesIO(data)
                member.name = name
                if member.islnk():
                    member.linkname = member.linkname.removeprefix("./")
                # Sub-second times and user names would make the layer depend on more than its files.
                member.pax_headers = {
                    key: value for key, value in member.pax_headers.items() if key.startswith(_XATTR)
                }
                # Not clamped: Python's compiled modules are valid only for the time stamp of their source.
                member.mtime = int(member.mtime)
                member.uname = member.gname = ""
                layer.addfile(member, content)
        _add_entries(layer, root.added)

    return _pack(write, target)


def files_layer(entries: Mapping[str, Entry], hidden: Sequence[str], target: Path) -> Layer:
    """Pack `entries` (path without leading slash → entry) as a layer that also hides the `hidden` paths."""

    def write(layer: tarfile.TarFile) -> None:
        # A file named .wh.NAME removes NAME of the layers below (OCI image layer specification, "whiteouts").
        whiteouts = [(f"{Path(path).parent}/.wh.{Path(path).name}", Entry(b"", 0o644)) for path in hidden]
        _add_entries(layer, sorted([*entries.items(), *whiteouts]))

    return _pack(write, target)


def push(layers: Sequence[Layer], config: Mapping[str, Any], destination: str, work: Path) -> str:
    """Push an image to `destination` (HOST:PORT/NAME:TAG, plain HTTP) with skopeo; returns its digest.

    `config` is the `config` object of the OCI image configuration; Healthcheck is Docker's extension to it.
    `work` is an existing directory on the same file system as the layers.
    """
    with tempfile.TemporaryDirectory(dir=work) as directory:
        layout = Path(directory)
        blobs = layout / "blobs" / "sha256"
        blobs.mkdir(parents=True)
        for layer in layers:
            target = blobs / layer.digest.removeprefix("sha256:")
            if not target.exists():
                os.link(layer.path, target)
        image = {
            "architecture": ARCHITECTURE,
            "os": "linux",
            "created": "2025-01-01T00:00:00Z",
            "config": config,
            "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]},
            "history": [{"created": "2025-01-01T00:00:00Z", "created_by": "mediahost lab"} for _ in layers],
        }
        descriptors = [{"mediaType": _LAYER_TYPE, "digest": layer.digest, "size": layer.size} for layer in layers]
        manifest = {
            "schemaVersion": 2,
            "mediaType": _MANIFEST_TYPE,
            "config": _blob(blobs, _CONFIG_TYPE, image),
            "layers": descriptors,
        }
        descriptor = _blob(blobs, _MANIFEST_TYPE, manifest)
        index = {"schemaVersion": 2, "manifests": [descriptor]}
        (layout / "index.json").write_text(json.dumps(index), "ascii")
        (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}', "ascii")
        command = ["skopeo", "copy", "--quiet", "--insecure-policy", "--dest-tls-verify=false"]
        run([*command, f"oci:{layout}", f"docker://{destination}"], "skopeo")
        return str(descriptor["digest"])


class _Hashing:
    """A sink that counts and hashes what passes through it on its way to another."""

    def __init__(self, sink: IO[bytes]) -> None:
        self.sink = sink
        self.hash = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes) -> int:
        self.hash.update(data)
        self.size += len(data)
        return self.sink.write(data)


def _pack(write: Callable[[tarfile.TarFile], None], target: Path) -> Layer:
    unfinished = target.with_name(f"{target.name}.unfinished")
    command = ["zstd", "-q", "-f", "-3", "-T0", "-o", str(unfinished)]
    if shutil.which(command[0]) is None:
        raise LabError("zstd is not installed", "it packs the layers of the lab's images", "run lab/install")
    with subprocess.Popen(command, stdin=subprocess.PIPE) as packer:
        assert packer.stdin is not None  # noqa: S101 - for the type checker: PIPE makes it a stream
        sink = _Hashing(packer.stdin)
        with tarfile.open(fileobj=sink, mode="w|", format=tarfile.PAX_FORMAT) as layer:  # type: ignore[call-overload]
            write(layer)
        packer.stdin.close()
    if packer.returncode != 0:
        raise LabError(
            "A layer cannot be packed", f"zstd ended with {packer.returncode}", "check the free disk space"
        )
    unfinished.replace(target)
    digest, diff_id = f"sha256:{file_digest(target)}", f"sha256:{sink.hash.hexdigest()}"
    return Layer(target, digest, target.stat().st_size, diff_id, sink.size)


def _add_entries(layer: tarfile.TarFile, entries: Iterable[tuple[str, Entry]]) -> None:
    for name, entry in entries:
        member = tarfile.TarInfo(name)
        member.mode, member.mtime = entry.mode, EPOCH
        member.uid = member.gid = entry.owner
        member.pax_headers = {f"{_XATTR}{key}": value.decode("ascii") for key, value in entry.xattrs.items()}
        if entry.link:
            member.type, member.linkname, member.mode = tarfile.SYMTYPE, entry.link, 0o777
            layer.addfile(member)
        elif entry.content is None:
            member.type = tarfile.DIRTYPE
            layer.addfile(member)
        elif isinstance(entry.content, Path):
            member.size = entry.content.stat().st_size
            with entry.content.open("rb") as file:
                layer.addfile(member, file)
        else:
            member.size = len(entry.content)
            layer.addfile(member, io.BytesIO(entry.content))


def _dropped(name: str, prefixes: Sequence[str]) -> bool:
    return any(name == prefix.rstrip("/") or name.startswith(prefix) for prefix in prefixes)


def _fingerprints(tar: Path) -> Iterator[tuple[str, tuple[object, ...]]]:
    with tarfile.open(tar) as source:
        for member in source:
            yield member.name.removeprefix("./"), _fingerprint(source, member)


def _fingerprint(source: tarfile.TarFile, member: tarfile.TarInfo) -> tuple[object, ...]:
    content = source.extractfile(member) if member.isreg() else None
    digest = hashlib.file_digest(content, "sha256").hexdigest() if content else ""  # type: ignore[arg-type]
    return (member.type, member.mode, member.uid, member.gid, member.linkname, digest)


def _blob(blobs: Path, kind: str, value: object) -> dict[str, object]:
    data = json.dumps(value, sort_keys=True).encode()
    digest = hashlib.sha256(data).hexdigest()
    (blobs / digest).write_bytes(data)
    return {"mediaType": kind, "digest": f"sha256:{digest}", "size": len(data)}
