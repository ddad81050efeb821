"""The container engine: where its packages come from, which they are, and its daemon.json."""

from __future__ import annotations

import json
from typing import Any

from mediahost.config import Settings
from mediahost.resources import MARK, File

KEYRING_PATH = "/etc/apt/keyrings/docker.asc"
SOURCE_PATH = "/etc/apt/sources.list.d/docker.sources"
PIN_PATH = "/etc/apt/preferences.d/mediahost-docker"
DAEMON_PATH = "/etc/docker/daemon.json"

VENDOR_PACKAGES = (
    "containerd.io",
    "docker-buildx-plugin",
    "docker-ce",
    "docker-ce-cli",
    "docker-compose-plugin",
)
# What Docker's installation page asks to remove first: the same files under other names.
VENDOR_CONFLICTS = (
    "containerd",
    "docker-cli",
    "docker-compose",
    "docker-compose-v2",
    "docker-doc",
    "docker.io",
    "podman-docker",
    "runc",
)


def distro_packages(os_id: str, codename: str) -> tuple[str, ...]:
    """Names of the distribution's own engine. Debian split docker-cli off in trixie; its bookworm has no
    Compose v2 at all, so that release needs `docker_source = "docker"`."""
    if os_id == "ubuntu":
        return ("docker-compose-v2", "docker.io")
    return ("docker-cli", "docker-compose", "docker.io")


def distro_has_compose(codename: str) -> bool:
    """Whether the distribution ships Compose v2 or newer."""
    return codename != "bookworm"


def source_file(settings: Settings, os_id: str, codename: str, architecture: str) -> File:
    """The deb822 source of Docker's repository."""
    lines = (
        "Types: deb",
        f"URIs: {settings.docker_apt_url}/{os_id}",
        f"Suites: {codename}",
        "Components: stable",
        f"Architectures: {architecture}",
        f"Signed-By: {KEYRING_PATH}",
    )
    return File(SOURCE_PATH, f"# {MARK}\n{chr(10).join(lines)}\n".encode())


def key_url(settings: Settings, os_id: str) -> str:
    """Where the repository's signing key is published."""
    return f"{settings.docker_apt_url}/{os_id}/gpg"


def pin_file(settings: Settings) -> File | None:
    """Apt preferences that keep the engine at `docker_version`; 1001 also allows going back to it."""
    if settings.docker_version is None:
        return None
    if settings.docker_source == "docker":
        names = "docker-ce docker-ce-cli"
    else:
        names = "docker.io docker-cli"
    body = f"Package: {names}\nPin: version {settings.docker_version}\nPin-Priority: 1001\n"
    return File(PIN_PATH, f"Explanation: {MARK}\n{body}".encode())


def daemon_settings(settings: Settings) -> dict[str, Any]:
    """The keys of daemon.json that are ours."""
    ours: dict[str, Any] = {
        "log-driver": "json-file",
        # json-file has no rotation of its own; a chatty service fills the disk.
        "log-opts": {"max-size": settings.docker_log_max_size, "max-file": str(settings.docker_log_max_file)},
        "live-restore": settings.docker_live_restore,
        "default-address-pools": settings.docker_address_pools,
        # containerd 2.1.5 lowered the soft limit to systemd's 1024, too few for a torrent client.
        "default-ulimits": {
            "nofile": {
                "Name": "nofile",
                "Soft": settings.docker_nofile_soft,
                "Hard": settings.docker_nofile_hard,
            }
        },
    }
    if settings.docker_insecure_registries:
        ours["insecure-registries"] = settings.docker_insecure_registries
    return {**ours, **settings.docker_daemon_extra}


def merged(settings: Settings, present: str | None, cdi: bool | None = None) -> dict[str, Any]:
    """The keys of daemon.json, ours set and everybody else's kept.

    `present` is the file's content now, or None. `cdi` switches the engine's feature of that name on (True) or takes
    our word on it back (False). Raises `ValueError` when it is not a JSON object.
    """
    found: Any = json.loads(present) if present and present.strip() else {}
    if not isinstance(found, dict):
        raise ValueError("not a JSON object")
    keys = {**found, **daemon_settings(settings)}
    if cdi is not None and isinstance(keys.get("features", {}), dict):
        # The user's own word on a feature stays; so do features of others.
        theirs = found.get("features")
        features = {**(theirs if isinstance(theirs, dict) else {}), **keys.get("features", {})}
        if "cdi" not in settings.docker_daemon_extra.get("features", {}):
            features = {name: on for name, on in features.items() if name != "cdi"} | ({"cdi": True} if cdi else {})
        keys = {key: value for key, value in keys.items() if key != "features"}
        keys |= {"features": features} if features else {}
    return keys


def daemon_file(settings: Settings, present: str | None, cdi: bool | None = None) -> File:
    """daemon.json as `merged`, which see."""
    content = json.dumps(merged(settings, present, cdi), indent=2, sort_keys=True) + "\n"
    return File(DAEMON_PATH, content.encode(), check="dockerd --validate --config-file {}")
