"""Docker's repository with Debian's own engine inside.

Names, relations, conffiles and unit behaviour are those of Docker's packages (their packaging is public:
docker/docker-ce-packaging, deb/common), so that what conflicts there conflicts here. The second version of the
engine has the same content: it exists to test a version pin and a hold.
"""

from __future__ import annotations

from collections.abc import Mapping

from lab.vendor import Package, Vendor

# The Debian packages that the versions below follow.
SOURCES = ("docker.io", "docker-cli", "containerd", "runc", "docker-buildx", "docker-compose")
_SUFFIX = "-1~debian.13~trixie"
# Both files differ from Debian's, as Docker's do: a change between the two meets dpkg's conffile question.
_DEFAULTS = '# Settings of the Docker service for init scripts; systemd reads DOCKER_OPTS\n#DOCKER_OPTS=""\n'
_CONTAINERD = 'disabled_plugins = ["cri"]\n'


def vendor(upstream: Mapping[str, str]) -> Vendor:
    """Docker's repository for trixie; `upstream` maps each of SOURCES to its upstream version, e.g. 26.1.5."""
    engine = upstream["docker.io"]
    versions = (f"5:{engine}{_SUFFIX}", f"5:{_next_patch(engine)}{_SUFFIX}")
    packages: list[Package] = []
    for version in versions:
        packages += [_engine(version), _client(version)]
    packages += [
        Package(
            name="containerd.io",
            version=f"{upstream['containerd']}{_SUFFIX}",
            contents=("containerd", "runc"),
            description="container runtime, with runc",
            relations=(
                ("Depends", "libc6 (>= 2.38), libseccomp2 (>= 2.5.0)"),
                ("Provides", "containerd, runc"),
                ("Conflicts", "containerd, runc"),
                ("Replaces", "containerd, runc"),
            ),
            units=("containerd.service",),
            files=(("/etc/containerd/config.toml", _CONTAINERD),),
        ),
        Package(
            name="docker-buildx-plugin",
            version=f"{upstream['docker-buildx']}{_SUFFIX}",
            contents=("docker-buildx",),
            description="Buildx plugin of the Docker client",
            relations=(("Depends", "libc6 (>= 2.34)"), ("Enhances", "docker-ce-cli")),
        ),
        Package(
            name="docker-compose-plugin",
            version=f"{upstream['docker-compose']}{_SUFFIX}",
            contents=("docker-compose",),
            description="Compose plugin of the Docker client",
            relations=(
                ("Depends", "libc6 (>= 2.34)"),
                ("Enhances", "docker-ce-cli"),
                ("Conflicts", "docker-compose"),
                ("Replaces", "docker-compose"),
                ("Breaks", "docker-compose"),
            ),
        ),
    ]
    return Vendor("linux/debian", "gpg", "Docker", "Docker CE", "trixie", "stable", tuple(packages))


def _engine(version: str) -> Package:
    return Package(
        name="docker-ce",
        version=version,
        contents=("docker.io",),
        description="Docker engine",
        relations=(
            ("Pre-Depends", "init-system-helpers (>= 1.54~)"),
            # tini: Debian's docker-init is a link into it, Docker's package has its own.
            ("Depends", "containerd.io (>= 1.6.24), docker-ce-cli, iptables, libc6 (>= 2.34), libsystemd0, tini"),
            ("Recommends", "apparmor, ca-certificates, git, pigz, procps, xz-utils"),
            ("Conflicts", "docker (<< 1.5~), docker-engine, docker.io"),
            ("Replaces", "docker-engine"),
        ),
        units=("docker.service", "docker.socket"),
        group="docker",
        files=(("/etc/default/docker", _DEFAULTS),),
    )


def _client(version: str) -> Package:
    return Package(
        name="docker-ce-cli",
        version=version,
        contents=("docker-cli",),
        description="Docker client",
        relations=(
            ("Depends", "libc6 (>= 2.34)"),
            ("Recommends", "docker-buildx-plugin, docker-compose-plugin"),
            ("Conflicts", "docker (<< 1.5~), docker-engine, docker.io"),
            ("Replaces", "docker-ce (<< 5:0)"),
            ("Breaks", "docker-ce (<< 5:0)"),
        ),
    )


def _next_patch(version: str) -> str:
    head, _, patch = version.rpartition(".")
    return f"{head}.{int(patch) + 1}"
