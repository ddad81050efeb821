"""Stage docker: the engine from Docker's repository or the distribution's, pinned, held, configured, running."""

from __future__ import annotations

from pyinfra.api import deploy, operation

from facts.snapshot import Request, Snapshot
from mediahost.config import Settings
from mediahost.render import docker as wanted
from operations import apt, files, gpu, units, vendor_key
from operations.convergence import Commands, Step, converge
from operations.vendor_key import VendorKey

UNIT = "docker.service"
KEY_RECORD = vendor_key.record_path("docker")
# Older pairs of files that installation guides made; apt refuses two sources with different Signed-By.
LEGACY_PATHS = ("/etc/apt/sources.list.d/docker.list", "/etc/apt/keyrings/docker.gpg")


def request(settings: Settings) -> Request:
    """What the snapshot must look at for this stage."""
    return Request(
        packages=frozenset(
            (*wanted.VENDOR_PACKAGES, *wanted.VENDOR_CONFLICTS, *wanted.distro_packages("ubuntu", ""))
        ),
        units=frozenset((UNIT, "containerd.service")),
        paths=frozenset(
            (wanted.KEYRING_PATH, wanted.SOURCE_PATH, wanted.PIN_PATH, wanted.DAEMON_PATH, *LEGACY_PATHS)
        ),
        contents=frozenset((KEY_RECORD, wanted.DAEMON_PATH)),
    )


def packages(settings: Settings, seen: Snapshot) -> tuple[str, ...]:
    """The packages the engine consists of."""
    if settings.docker_source == "docker":
        return wanted.VENDOR_PACKAGES
    return wanted.distro_packages(seen.os.id, seen.os.codename)


def key_steps(settings: Settings, seen: Snapshot) -> list[Step]:
    """Fetch the signing key when it is not the one that was verified before."""
    key = VendorKey(
        name="docker",
        vendor="Docker",
        keyring=wanted.KEYRING_PATH,
        url=wanted.key_url(settings, seen.os.id),
        fingerprint=settings.docker_apt_fingerprint,
        url_setting="docker_apt_url",
        fingerprint_setting="docker_apt_fingerprint",
    )
    return vendor_key.key_steps(key, seen)


def source_steps(settings: Settings, seen: Snapshot) -> list[Step]:
    """Repository, key and pin, as the settings ask; what the other source left behind is removed."""
    steps: list[Step] = []
    unwanted = [*LEGACY_PATHS]
    if settings.docker_source == "docker":
        steps += key_steps(settings, seen)
        source = wanted.source_file(settings, seen.os.id, seen.os.codename, seen.os.architecture)
        steps += files.steps((source,), seen)
    else:
        unwanted += [wanted.SOURCE_PATH, wanted.KEYRING_PATH]
    pin = wanted.pin_file(settings)
    if pin is not None:
        steps += files.steps((pin,), seen)
    else:
        unwanted.append(wanted.PIN_PATH)
    steps += [Step(f"{path}: not wanted", f"rm -f {path}") for path in unwanted if path in seen.paths]
    return steps


def version_steps(settings: Settings, seen: Snapshot) -> list[Step]:
    """An engine of another version than the pinned one."""
    name = "docker-ce" if settings.docker_source == "docker" else "docker.io"
    present = seen.packages.get(name)
    pinned = settings.docker_version
    if pinned is None or present is None or _matches(present.version, pinned):
        return []
    names = " ".join(
        name for name in packages(settings, seen) if name in ("docker-ce", "docker-ce-cli", "docker.io", "docker-cli")
    )
    command = apt.exchange(names, settings.docker_hold)
    return [
        Step(
            f"package {name}: version {present.version}, wanted {pinned} (the engine restarts)", command, timeout=3600
        )
    ]


def _matches(version: str, pinned: str) -> bool:
    if pinned.endswith("*"):
        return version.startswith(pinned[:-1])
    return version == pinned


def engine_steps(settings: Settings, seen: Snapshot) -> list[Step]:
    """Packages: the wanted ones in, those that hold the same files out, pinned and held."""
    if settings.docker_source == "distro" and not wanted.distro_has_compose(seen.os.codename):
        return [
            Step(
                f"{seen.os.codename}: ships no Docker Compose v2",
                refusal=f'{seen.os.id} {seen.os.codename} ships no Docker Compose v2; set docker_source = "docker"',
            )
        ]
    refused = daemon_refusals(settings, seen)
    if refused:
        return refused
    sources = source_steps(settings, seen)
    names = packages(settings, seen)
    other = wanted.VENDOR_CONFLICTS if settings.docker_source == "docker" else wanted.VENDOR_PACKAGES
    # The distribution's containerd and runc are its engine's own dependencies, not conflicts.
    steps = apt.install_steps(names, seen, without=[name for name in other if name not in names])
    return sources + (steps or version_steps(settings, seen) or apt.hold_steps(names, settings.docker_hold, seen))


def daemon_refusals(settings: Settings, seen: Snapshot) -> list[Step]:
    """Refusals of what a foreign hand put into daemon.json: no JSON, or Docker's nftables backend.

    That backend has no DOCKER-USER chain (docs.docker.com, firewall-nftables), so nothing there obeys exposure, and
    UFW's forward policy drops what it publishes.
    """
    try:
        keys = wanted.merged(settings, seen.contents.get(wanted.DAEMON_PATH))
    except ValueError as error:
        return [
            Step(
                f"{wanted.DAEMON_PATH}: cannot be read",
                refusal=f"{wanted.DAEMON_PATH} is not valid JSON ({error}); mend it or move it away, then run again",
            )
        ]
    backend = keys.get("firewall-backend")
    if backend in (None, "", "iptables"):
        return []
    told = f"{wanted.DAEMON_PATH}: firewall-backend is {backend}"
    return [
        Step(
            told,
            refusal=f"{told}: published ports could not be filtered there. Delete that key, "
            "`systemctl restart docker`, then run again; or set that key to iptables in docker_daemon_extra",
        )
    ]


def daemon_steps(settings: Settings, seen: Snapshot) -> list[Step]:
    """daemon.json with our keys in it, checked by dockerd before it replaces the old one."""
    refused = daemon_refusals(settings, seen)
    if refused:
        return refused
    present = seen.contents.get(wanted.DAEMON_PATH)
    return files.steps((wanted.daemon_file(settings, present, gpu.cdi(settings, seen)),), seen, pending=UNIT)


def running_steps(settings: Settings, seen: Snapshot) -> list[Step]:
    """The engine running, with the configuration that is on disk."""
    found = daemon_steps(settings, seen)
    cdi = gpu.cdi(settings, seen)
    record = gpu.cdi_record_steps(cdi, seen)
    interrupts = "containers go on" if settings.docker_live_restore else "containers restart"
    running = units.steps(UNIT, seen, interrupts=interrupts, changed=bool(found))
    return [*record, *found, *running] if cdi else [*found, *running, *record]


def steps(settings: Settings, seen: Snapshot) -> list[Step]:
    """Everything this stage would still do."""
    return daemon_refusals(settings, seen) or engine_steps(settings, seen) + running_steps(settings, seen)


@operation()
def engine(settings: Settings) -> Commands:
    """
    The engine's packages.

    + settings: the host's settings
    """
    yield from converge(lambda seen: engine_steps(settings, seen))


@operation()
def daemon(settings: Settings) -> Commands:
    """
    The engine configured and running.

    + settings: the host's settings
    """
    yield from converge(lambda seen: running_steps(settings, seen))


@deploy("docker")
def provision(settings: Settings) -> None:
    """The whole stage, in order."""
    engine(name="engine packages", settings=settings)
    daemon(name="engine", settings=settings)
