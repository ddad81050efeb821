"""Files for graphics cards: stable names, modules, package sources, and the unit that tells Docker of NVIDIA's."""

from __future__ import annotations

from mediahost import apt_sources
from mediahost.config import Settings
from mediahost.gpu import NODES, Decision, Driver, Release
from mediahost.render.compose import SERVICE_LABEL
from mediahost.resources import MARK, File, text_file

UDEV_PATH = "/etc/udev/rules.d/61-mediahost-gpu.rules"
MODPROBE_PATH = "/etc/modprobe.d/mediahost-gpu.conf"
COMPONENTS_PATH = "/etc/apt/sources.list.d/mediahost-gpu.sources"
TOOLKIT_PATH = "/etc/apt/sources.list.d/mediahost-nvidia-toolkit.sources"
TOOLKIT_KEYRING = "/etc/apt/keyrings/mediahost-nvidia-toolkit.asc"
DRIVER_PATH = "/etc/apt/sources.list.d/mediahost-nvidia-driver.sources"
DRIVER_KEYRING = "/etc/apt/keyrings/mediahost-nvidia-driver.asc"
PIN_PATH = "/etc/apt/preferences.d/mediahost-nvidia"
CDI_UNIT = "mediahost-cdi.service"
CDI_UNIT_PATH = f"/etc/systemd/system/{CDI_UNIT}"
STARTED_UNIT = "mediahost-cdi-containers.service"
STARTED_UNIT_PATH = f"/etc/systemd/system/{STARTED_UNIT}"

PATHS = (
    UDEV_PATH,
    MODPROBE_PATH,
    COMPONENTS_PATH,
    TOOLKIT_PATH,
    TOOLKIT_KEYRING,
    DRIVER_PATH,
    DRIVER_KEYRING,
    PIN_PATH,
    CDI_UNIT_PATH,
    STARTED_UNIT_PATH,
)
"""Every file this concern may write."""

LEGACY_PATHS = (
    "/etc/apt/sources.list.d/nvidia-container-toolkit.list",
    "/usr/share/keyrings/nvidia-container-toolkit-keyring.gpg",
)
"""What NVIDIA's installation page makes: apt refuses the same repository under two keys."""

CDI_SPEC = "/run/cdi/nvidia.yaml"
"""What the toolkit knows of the cards, in the file that its own refresh unit writes, too."""

TOOLKIT_PACKAGES = ("nvidia-container-toolkit",)


def files(decision: Decision, settings: Settings, release: Release, sources: str) -> tuple[File, ...]:
    """The files that `decision` asks for. `sources` is what `apt_sources.additions` gave. Keyrings are apart."""
    wanted = []
    if any(card.maker != "nvidia" for card in decision.cards):
        wanted.append(udev_rule())
    modprobe = modprobe_file(decision, settings)
    if modprobe:
        wanted.append(modprobe)
    if sources:
        wanted.append(File(COMPONENTS_PATH, f"# {MARK}\n{sources}".encode()))
    if decision.nvidia:
        wanted += [toolkit_source(settings, release), cdi_unit(), started_unit()]
    if decision.driver and settings.gpu_nvidia_source == "nvidia":
        wanted += [driver_source(settings, release), pin_file(decision.driver)]
    return tuple(wanted)


def udev_rule() -> File:
    """A name for each render node that tells where its card is: renderD numbers follow the order of loading.

    60-drm.rules makes such names, too, but with colons, which a compose file takes for the end of a path.
    """
    node = 'SUBSYSTEM=="drm", KERNEL=="renderD*"'
    directory = NODES.removeprefix("/dev/")
    return text_file(
        UDEV_PATH,
        f'{node}, ENV{{ID_PATH_TAG}}=="", IMPORT{{builtin}}="path_id"',
        f'{node}, ENV{{ID_PATH_TAG}}=="?*", SYMLINK+="{directory}/$env{{ID_PATH_TAG}}"',
    )


def modprobe_file(decision: Decision, settings: Settings) -> File | None:
    """Options of modules: nouveau kept off NVIDIA's cards, low-power encoding on Intel's where it is asked for."""
    lines: list[str] = []
    if decision.driver:
        lines += ["blacklist nouveau", "options nouveau modeset=0"]
    if low_power(decision, settings):
        lines += ["options i915 enable_guc=2"]
    return text_file(MODPROBE_PATH, *lines) if lines else None


def low_power(decision: Decision, settings: Settings) -> bool:
    """Whether a card is there whose HuC firmware the driver does not load by itself (Gen 9 to Tiger Lake)."""
    generations = [card.generation for card in decision.cards if card.maker == "intel"]
    return settings.gpu_intel_low_power and any(g is not None and 9 <= g.media <= 12 for g in generations)


def toolkit_source(settings: Settings, release: Release) -> File:
    """NVIDIA's repository of the container toolkit."""
    url = f"{settings.gpu_toolkit_apt_url}/stable/deb/{release.architecture}"
    return _flat_source(TOOLKIT_PATH, url, TOOLKIT_KEYRING)


def toolkit_key_url(settings: Settings) -> str:
    """Where that repository's key is published."""
    return f"{settings.gpu_toolkit_apt_url}/gpgkey"


def driver_repository(settings: Settings, release: Release, version: str) -> str:
    """NVIDIA's driver repository for a release, `version` as os-release(5) says (24.04, 13)."""
    machine = {"amd64": "x86_64", "arm64": "sbsa"}.get(release.architecture, release.architecture)
    return f"{settings.gpu_nvidia_apt_url}/{release.id}{version.replace('.', '')}/{machine}"


def driver_source(settings: Settings, release: Release) -> File:
    """That repository."""
    return _flat_source(DRIVER_PATH, driver_repository(settings, release, release.version), DRIVER_KEYRING)


def _flat_source(path: str, url: str, keyring: str) -> File:
    """A source of apt for a flat repository: its suite is a directory."""
    return text_file(path, "Types: deb", f"URIs: {url}/", "Suites: /", f"Signed-By: {keyring}")


def pin_file(driver: Driver) -> File:
    """Apt preferences that keep NVIDIA's repository, which has every branch, to one of them.

    Its own pinning packages do the same, but only for what is installed after them.
    """
    body = f"Package: *nvidia* libcuda* libnvcuvid*\nPin: version {driver.branch}.*\nPin-Priority: 1001\n"
    return File(PIN_PATH, f"Explanation: {MARK}\n{body}".encode())


def driver_key_url(settings: Settings, release: Release) -> str:
    """Where its key is published: under the last eight digits of its fingerprint."""
    name = settings.gpu_nvidia_apt_fingerprint[-8:].lower()
    return f"{driver_repository(settings, release, release.version)}/{name}.pub"


def cdi_unit() -> File:
    """The unit that describes NVIDIA's cards to Docker (CDI) before it starts containers at boot.

    The toolkit's own unit of versions 1.18 to 1.20 comes after multi-user.target, which is after Docker: a container
    that wants a card would not start again. nvidia-smi makes the device nodes.
    """
    return text_file(
        CDI_UNIT_PATH,
        "[Unit]",
        "Description=Describe NVIDIA cards to the container engine",
        "Before=docker.service",
        "ConditionPathExists=/usr/bin/nvidia-ctk",
        "[Service]",
        "Type=oneshot",
        "RemainAfterExit=yes",
        "TimeoutStartSec=90",
        "ExecStart=/usr/bin/nvidia-smi -L",
        f"ExecStart=/usr/bin/nvidia-ctk cdi generate --output={CDI_SPEC}",
        "[Install]",
        "WantedBy=multi-user.target",
    )


def started_unit() -> File:
    """The unit that starts the containers which the engine could not give their cards while it started itself.

    An engine before 28.2, such as Debian 13's, starts containers before it knows of CDI and does not try again
    (moby/moby#49989). Only those are touched whose start failed for that: what somebody stopped stays stopped.
    """
    ours = f"docker ps -aq --filter label={SERVICE_LABEL} --filter status=exited"
    refused = '*"select device driver"*'
    each = f'case $$(docker inspect -f "{{{{.State.Error}}}}" $$id) in {refused}) docker start $$id || :;; esac'
    return text_file(
        STARTED_UNIT_PATH,
        "[Unit]",
        "Description=Start containers that the engine could not give their cards",
        "After=docker.service",
        "PartOf=docker.service",
        "[Service]",
        "Type=oneshot",
        "RemainAfterExit=yes",
        f"ExecStart=/bin/sh -c '{ours} | while read -r id; do {each}; done'",
        "[Install]",
        "WantedBy=docker.service",
    )


def additions(contents: dict[str, str], decision: Decision, release: Release) -> str:
    """What the distribution's own sources lack for `decision`."""
    return apt_sources.additions(apt_sources.read(contents, release.codename), decision.components)
