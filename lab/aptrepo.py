"""A signed apt repository on loopback that stands in for a vendor's, with packages of the vendor's names.

Debian's own packages are fetched from the machine's mirror and repacked as `lab.vendor` says; the result is
built beside the old one and switched to in one step. It must never listen beyond loopback, and its signing
keys are worth nothing elsewhere: they have no passphrase and never leave the cache directory.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from lab import daemon, paths
from lab.daemon import Service
from lab.mirror import debian_mirror
from lab.oci import ARCHITECTURE, RELEASE, digest_of
from lab.program import run
from lab.registry import GUEST_ADDRESS
from lab.vendor import Package, Vendor, docker, nvidia, plex

WRONG_KEY = "gpg-wrong"
"""A valid key beside the right one that has signed nothing, for the test that it is refused."""

_DEFAULT_PORT = 8099
_PORT_VARIABLE = "MEDIAHOST_LAB_APT_PORT"
# Raised when the way packages are put together changes, so that all are made anew.
_FORMAT = 2
# A guest's clock may lag behind the host's; neither keys nor signatures may come from its future.
_BACKDATED = timedelta(hours=1)
_KEY_BIRTH = "20250101T000000!"
# Pages and checks that no test reads, and that cost time to unpack under emulation.
_LEFT_OUT = ("usr/share/man", "usr/share/lintian", "usr/share/doc", "usr/share/docker.io")

Report = Callable[[str], None]


@dataclass(frozen=True)
class _Key:
    """A signing key: the GnuPG home that holds it and its fingerprint (40 hexadecimal digits)."""

    home: Path
    fingerprint: str


def port() -> int:
    """The server's TCP port: 8099, or MEDIAHOST_LAB_APT_PORT."""
    return daemon.port_setting(_PORT_VARIABLE, _DEFAULT_PORT)


def guest_url() -> str:
    """The address that stands for https://download.docker.com in a guest; /linux/debian/gpg is below it."""
    return f"http://{GUEST_ADDRESS}:{port()}"


def fingerprint() -> str:
    """The fingerprint of the key that signs the repositories; the key is made when absent."""
    return _signing_key("right").fingerprint


def wrong_fingerprint() -> str:
    """The fingerprint of the key served as `gpg-wrong`."""
    return _signing_key("wrong").fingerprint


def ensure_running(report: Report = lambda _text: None) -> Service:
    """The server, with the repositories built, started in the background when it is not up."""
    root = ensure_built(report)
    command = [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", "--directory", str(root), str(port())]
    return daemon.ensure_running(
        _record(),
        command,
        f"http://127.0.0.1:{port()}",
        "/linux/debian/gpg",
        "python3",
        f"stop what listens there, or set {_PORT_VARIABLE} to a free port",
    )


def running() -> Service | None:
    """The server when it is up; never starts it."""
    return daemon.running(_record(), f"http://127.0.0.1:{port()}")


def ensure_built(report: Report = lambda _text: None) -> Path:
    """The directory that is served, with all repositories in it; built now (half a minute) when inputs changed.

    Raises LabError when a program, the mirror or disk space is missing.
    """
    with daemon.locked(_directory() / "build.lock"):
        debs = _debian_packages(docker.SOURCES, report)
        versions = {name: _upstream_version(deb) for name, deb in debs.items()}
        vendors = [docker.vendor(versions), plex.vendor(), *nvidia.vendors()]
        right, wrong = _signing_key("right"), _signing_key("wrong")
        inputs = [_FORMAT, [asdict(vendor) for vendor in vendors], right.fingerprint, wrong.fingerprint]
        key = digest_of([*inputs, sorted(deb.name for deb in debs.values())])[:16]
        built, current = _directory() / f"tree-{key}", _directory() / "current"
        if not built.exists():
            with tempfile.TemporaryDirectory(dir=_directory(), prefix="build-") as work:
                tree = Path(work) / "tree"
                for vendor in vendors:
                    _build_vendor(vendor, debs, tree / vendor.path, right, wrong, report)
                tree.rename(built)
        if not current.is_symlink() or current.readlink() != Path(built.name):
            link = _directory() / "current.new"
            link.unlink(missing_ok=True)
            link.symlink_to(built.name)
            link.replace(current)
        for old in _directory().glob("tree-*"):
            if old != built:
                shutil.rmtree(old)
        return current


def _directory() -> Path:
    path = paths.cache() / "apt"
    path.mkdir(mode=0o700, exist_ok=True)
    return path


def _record() -> Path:
    return _directory() / f"server-{port()}.json"


def _debian_packages(names: Sequence[str], report: Report) -> dict[str, Path]:
    """Debian's own packages, downloaded once: apt checks them with the mirror's key, in a root of its own."""
    store = _directory() / "debian"
    store.mkdir(mode=0o700, exist_ok=True)
    found = {name: sorted(store.glob(f"{name}_*.deb")) for name in names}
    if not all(found.values()):
        report(f"Downloading {', '.join(names)} from the Debian mirror")
        mirror = debian_mirror()
        with tempfile.TemporaryDirectory(dir=_directory(), prefix="apt-") as work:
            root = Path(work)
            for part in ("state/lists/partial", "cache/archives/partial"):
                (root / part).mkdir(parents=True)
            (root / "status").touch()
            sources = "\n".join(mirror.stanza(*source) for source in mirror.sources(RELEASE))
            (root / "debian.sources").write_text(sources, "utf-8")
            options = [f"Dir::State={root}/state", f"Dir::Cache={root}/cache", f"Dir::State::status={root}/status"]
            options += [f"Dir::Etc::SourceList={root}/debian.sources", "Dir::Etc::SourceParts=/dev/null"]
            options += [f"APT::Architecture={ARCHITECTURE}", f"APT::Architectures={ARCHITECTURE}"]
            if os.geteuid() == 0:
                # The store is private, so apt's own user could not write there.
                options.append("APT::Sandbox::User=root")
            apt = ["apt-get", "-q", *(f"-o{option}" for option in options)]
            run([*apt, "update"], "apt")
            run([*apt, "download", *names], "apt", directory=store)
        found = {name: sorted(store.glob(f"{name}_*.deb")) for name in names}
    return {name: debs[-1] for name, debs in found.items()}


def _upstream_version(deb: Path) -> str:
    version = run(["dpkg-deb", "-f", str(deb), "Version"], "dpkg").strip()
    numbers = re.match(r"(?:\d+:)?(\d+(?:\.\d+)+)", version)
    if numbers is None:
        raise ValueError(f"{deb.name} has the version {version!r}, which starts with no number")
    return numbers[1]


def _build_vendor(
    vendor: Vendor, debs: dict[str, Path], root: Path, right: _Key, wrong: _Key, report: Report
) -> None:
    flat = vendor.suite == "/"
    pool = "." if flat else f"dists/{vendor.suite}/pool/{vendor.component}/{ARCHITECTURE}"
    (root / pool).mkdir(parents=True)
    for package in vendor.packages:
        report(f"Packing {package.name} {package.version}")
        contents = [debs[name] for name in package.contents]
        # An epoch is no part of a package's file name.
        version = package.version.partition(":")[2] or package.version
        _build_package(package, contents, root / pool / f"{package.name}_{version}_{ARCHITECTURE}.deb")
    index = run(["dpkg-scanpackages", "--multiversion", pool], "dpkg-dev", directory=root)
    # Its last line counts the packages, on the error output.
    index = index[: index.rindex("\n\n") + 2] if "\n\n" in index else index
    suite = root if flat else root / "dists" / vendor.suite
    lists = root if flat else suite / vendor.component / f"binary-{ARCHITECTURE}"
    lists.mkdir(parents=True, exist_ok=True)
    (lists / "Packages").write_text(index, encoding="utf-8")
    (lists / "Packages.gz").write_bytes(gzip.compress(index.encode(), mtime=0))
    _sign(vendor, suite, [lists / "Packages", lists / "Packages.gz"], right)
    _export(right, root / vendor.key.format(id=right.fingerprint[-8:].lower()))
    _export(wrong, root / WRONG_KEY)


def _build_package(package: Package, contents: Iterable[Path], target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent) as work:
        tree = Path(work)
        notices = []
        for deb in contents:
            run(["dpkg-deb", "-x", str(deb), str(tree)], "dpkg")
            notices += [path.read_text("utf-8") for path in sorted(tree.glob("usr/share/doc/*/copyright"))]
            for part in _LEFT_OUT:
                shutil.rmtree(tree / part, ignore_errors=True)
        _write(tree / f"usr/share/doc/{package.name}/copyright", "\n".join(notices))
        for path, text in package.files:
            _write(tree / path.lstrip("/"), text)
        for path, text in package.programs:
            _write(tree / path.lstrip("/"), text, 0o755)
        files = sorted(path for path in tree.rglob("*") if path.is_file() and not path.is_symlink())
        conffiles = [f"/{path.relative_to(tree)}" for path in files if path.is_relative_to(tree / "etc")]
        kibibytes = sum(path.stat().st_size for path in files) // 1024
        for name, text, mode in _control_files(package, conffiles, kibibytes):
            _write(tree / "DEBIAN" / name, text, mode)
        tree.chmod(0o755)
        # zstd at a low level: the guest that unpacks it is emulated.
        run(["dpkg-deb", "--root-owner-group", "-Zzstd", "-z3", "-b", str(tree), str(target)], "dpkg")


def _write(path: Path, text: str, mode: int = 0o644) -> None:
    # dpkg-deb checks the modes of its own files, which must not depend on the caller's umask.
    for parent in [directory for directory in path.parents if not directory.exists()][::-1]:
        parent.mkdir()
        parent.chmod(0o755)
    path.write_text(text, encoding="utf-8")
    path.chmod(mode)


def _control_files(package: Package, conffiles: Sequence[str], kibibytes: int) -> Iterator[tuple[str, str, int]]:
    """(name, text, mode) of each file of the control archive, deb-control(5)."""
    fields = [("Package", package.name), ("Version", package.version), ("Architecture", ARCHITECTURE)]
    fields += [("Maintainer", "mediahost lab <lab@localhost>"), ("Installed-Size", str(kibibytes))]
    fields += [("Section", "admin"), ("Priority", "optional"), *package.relations]
    fields += [("Description", f"{package.description} (mediahost lab)")]
    inside = f"Debian's {' and '.join(package.contents)}" if package.contents else "A stand-in"
    note = f" {inside} under the vendor's package name, for tests."
    yield "control", "".join(f"{name}: {value}\n" for name, value in fields) + note + "\n", 0o644
    if conffiles:
        yield "conffiles", "".join(f"{path}\n" for path in conffiles), 0o644
    if package.units:
        units = " ".join(package.units)
        made = [f"getent group {package.group} >/dev/null || groupadd --system {package.group}"]
        if package.user:
            account = f"--system --gid {package.group} --home-dir {package.home} --shell /usr/sbin/nologin"
            made.append(f"getent passwd {package.user} >/dev/null || useradd {account} {package.user}")
            made.append(f"install -d -o {package.user} -g {package.group} -m 0755 {package.home}")
        make_group = f'if [ "$1" = configure ]; then\n    {_LINES.join(made)}\nfi' if package.group else ""
        yield "postinst", _POSTINST.format(units=units, make_group=make_group), 0o755
        yield "prerm", _PRERM.format(units=units), 0o755
        yield "postrm", _POSTRM.format(units=units), 0o755


_LINES = "\n    "

# What debhelper makes of `dh_installsystemd`: enabled and started at first, restarted on an upgrade, an
# administrator's `systemctl disable` kept (deb-systemd-helper(1p), deb-systemd-invoke(1p)).
_POSTINST = """#!/bin/sh
set -e
{make_group}
case "$1" in
configure|abort-upgrade|abort-deconfigure|abort-remove)
    for unit in {units}; do
        if deb-systemd-helper --quiet was-enabled "$unit"; then
            deb-systemd-helper enable "$unit" >/dev/null || true
        else
            deb-systemd-helper update-state "$unit" >/dev/null || true
        fi
    done
    if [ -d /run/systemd/system ]; then
        systemctl --system daemon-reload >/dev/null || true
        if [ -n "$2" ]; then action=restart; else action=start; fi
        deb-systemd-invoke "$action" {units} >/dev/null || true
    fi
    ;;
esac
"""
_PRERM = """#!/bin/sh
set -e
if [ "$1" = remove ] && [ -d /run/systemd/system ]; then
    deb-systemd-invoke stop {units} >/dev/null || true
fi
"""
_POSTRM = """#!/bin/sh
set -e
if [ "$1" = remove ] && [ -d /run/systemd/system ]; then
    systemctl --system daemon-reload >/dev/null || true
fi
if [ "$1" = purge ] && [ -x /usr/bin/deb-systemd-helper ]; then
    deb-systemd-helper purge {units} >/dev/null || true
fi
"""


def _sign(vendor: Vendor, suite: Path, indices: Sequence[Path], key: _Key) -> None:
    """Write Release, InRelease and Release.gpg of a suite (Debian wiki, "Repository format")."""
    moment = datetime.now(UTC) - _BACKDATED
    lines = [f"Origin: {vendor.origin}", f"Label: {vendor.label}"]
    if vendor.suite != "/":
        lines += [f"Suite: {vendor.suite}", f"Codename: {vendor.suite}", f"Components: {vendor.component}"]
    lines += [f"Date: {moment:%a, %d %b %Y %H:%M:%S} UTC", f"Architectures: {ARCHITECTURE}", "SHA256:"]
    for path in indices:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        lines.append(f" {digest} {path.stat().st_size} {path.relative_to(suite)}")
    release = suite / "Release"
    release.write_text("\n".join(lines) + "\n", encoding="ascii")
    with _gpg(key.home) as gpg:
        signing = [*gpg, f"--faked-system-time={moment:%Y%m%dT%H%M%S}", f"--local-user={key.fingerprint}"]
        run([*signing, "--clearsign", "-o", str(suite / "InRelease"), str(release)], "gnupg")
        detached = [*signing, "--armor", "--detach-sign", "-o", str(suite / "Release.gpg"), str(release)]
        run(detached, "gnupg")


def _export(key: _Key, target: Path) -> None:
    with _gpg(key.home) as gpg:
        run([*gpg, "--armor", "-o", str(target), "--export", key.fingerprint], "gnupg")


def _signing_key(name: str) -> _Key:
    home = _directory() / f"gnupg-{name}"
    with daemon.locked(_directory() / f"gnupg-{name}.lock"), _gpg(home) as gpg:
        if not (home / "complete").exists():
            shutil.rmtree(home, ignore_errors=True)
            home.mkdir(mode=0o700)
            make = [*gpg, "--pinentry-mode=loopback", "--passphrase=", f"--faked-system-time={_KEY_BIRTH}"]
            run([*make, "--quick-generate-key", f"mediahost lab ({name} key)", "rsa3072", "sign", "never"], "gnupg")
            (home / "complete").touch()
        listing = run([*gpg, "--with-colons", "--list-keys"], "gnupg")
    # The first "fpr" record of GnuPG's doc/DETAILS; its tenth field is the fingerprint.
    fields = next(line.split(":") for line in listing.splitlines() if line.startswith("fpr:"))
    return _Key(home, fields[9])


@contextlib.contextmanager
def _gpg(home: Path) -> Iterator[list[str]]:
    """The words of a gpg command for `home`; its agent is ended afterwards."""
    try:
        yield ["gpg", f"--homedir={home}", "--batch", "--yes", "--quiet"]
    finally:
        if home.exists():
            run(["gpgconf", "--homedir", str(home), "--kill", "all"], "gnupg")
