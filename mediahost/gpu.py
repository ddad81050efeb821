"""Graphics cards: what a host has, what they need on its release, and which service gets which.

Pure decisions. `cards` come from a snapshot of /sys/bus/pci, so no lspci is needed; the facts per release are those
of the distributions' package lists and NVIDIA's support matrix. Nothing is installed that no card needs, and what
cannot work is refused in words before anything is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from mediahost import gpu_models
from mediahost.config import Settings
from mediahost.gpu_models import Generation

Use = Literal["transcode", "compute"]
"""What a service does with a card: video through VA-API, QSV or NVENC; or OpenCL and CUDA."""

VENDORS = {0x8086: "intel", 0x10DE: "nvidia", 0x1002: "amd"}
"""PCI vendor ids. Whatever else shows a picture (a server's BMC, a virtual machine's screen) transcodes nothing."""

NODES = "/dev/dri/mediahost"
"""Directory of the names our udev rule gives render nodes. Without colons, which a compose file cannot have there."""

IN_CONTAINER = "/dev/dri/renderD128"
"""Where a container finds its card, whatever the host's number of it is: most programs look there first."""

NVIDIA_CDI = "nvidia.com/gpu"

_TITLES = {"intel": "Intel", "nvidia": "NVIDIA", "amd": "AMD"}
# Quick Sync has no limit of sessions and leaves a card with much memory to those that compute.
_ORDER: dict[Use, tuple[str, ...]] = {
    "transcode": ("intel", "nvidia", "amd"),
    "compute": ("nvidia", "intel", "amd"),
}


@dataclass(frozen=True)
class Card:
    """A display controller on the PCI bus. `address` as in sysfs, `driver` the kernel's, empty for none.

    `render` is the name of its render node now (renderD128), empty for none; `named` says whether our own name of
    it is there.
    """

    address: str
    vendor: int
    device: int
    driver: str = ""
    render: str = ""
    named: bool = False

    @property
    def maker(self) -> str:
        """intel, nvidia or amd; empty for what is of no use."""
        return VENDORS.get(self.vendor, "")

    @property
    def generation(self) -> Generation | None:
        """Which generation it is; None when unknown, and for AMD, where one driver serves all."""
        if self.maker == "intel":
            return gpu_models.intel(self.device)
        return gpu_models.nvidia(self.device) if self.maker == "nvidia" else None

    @property
    def node(self) -> str:
        """Our name of its render node."""
        return f"{NODES}/pci-{re.sub('[:.]', '_', self.address)}"

    def __str__(self) -> str:
        name = f" ({self.generation.name})" if self.generation else ""
        return f"{_TITLES.get(self.maker, 'card')} {self.vendor:04x}:{self.device:04x}{name} at {self.address}"


@dataclass(frozen=True)
class Release:
    """The distribution as os-release(5) names it, its machine architecture and the kernel that runs."""

    id: str
    codename: str
    version: str = ""
    architecture: str = "amd64"
    kernel: str = ""

    @property
    def kernel_version(self) -> tuple[int, int]:
        """Major and minor number of the kernel that runs; (0, 0) when unknown."""
        found = re.match(r"(\d+)\.(\d+)", self.kernel)
        return (int(found[1]), int(found[2])) if found else (0, 0)


@dataclass(frozen=True)
class Facts:
    """What of the host the decisions depend on beside its cards.

    `secure_boot`: the firmware loads signed modules only. `image_packages`: kernel metapackages that are installed
    (linux-image-generic). `nodes`: every render node by name, with the address of its card or "" (vgem has none).
    `by_hand`: NVIDIA's driver runs and no package brought it. `branch` is Ubuntu's branch that is installed already
    (535-server), empty for none, `closed` whether its modules are the closed ones. `mesa` is the installed version of
    mesa-libgallium as numbers, empty for none.
    """

    secure_boot: bool = False
    image_packages: tuple[str, ...] = ()
    nodes: Mapping[str, str] = field(default_factory=dict)
    by_hand: bool = False
    branch: str = ""
    closed: bool = False
    mesa: tuple[int, ...] = ()


@dataclass(frozen=True)
class Driver:
    """NVIDIA's driver as it is to be installed. `modules` and `userland` are packages; `dkms` are built here."""

    branch: str
    open_modules: bool
    modules: tuple[str, ...]
    userland: tuple[str, ...]
    dkms: bool


@dataclass(frozen=True)
class Device:
    """What one service gets: a render node, or NVIDIA's name of a card."""

    node: str = ""
    cdi: str = ""
    card: Card | None = None


@dataclass(frozen=True)
class Given:
    """A card as a compose file says it: the host's `node` and the ids of groups that may open it, or `cdi`."""

    node: str = ""
    groups: tuple[int, ...] = ()
    cdi: str = ""


@dataclass(frozen=True)
class Decision:
    """What a host's cards ask for.

    `components` are parts of the distribution's archive that packages come from; `devices` is what each service
    gets once it is there; `refusals` end the run, `notices` are told. `cards` are those in use.
    """

    cards: tuple[Card, ...] = ()
    packages: tuple[str, ...] = ()
    components: tuple[str, ...] = ()
    driver: Driver | None = None
    nvidia: bool = False
    devices: Mapping[str, Device] = field(default_factory=dict)
    refusals: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()


def decide(
    cards: Sequence[Card], release: Release, settings: Settings, asking: Mapping[str, Use], facts: Facts
) -> Decision:
    """What is to be done for `cards` on `release`. `asking` maps the services that want a card to their use of it."""
    if settings.gpu == "none":
        return Decision()
    usable = [card for card in cards if card.maker]
    wanted = [card for card in usable if settings.gpu in ("auto", card.maker)]
    refusals: list[str] = []
    notices: list[str] = []
    lent = [card for card in wanted if card.driver == "vfio-pci"]
    wanted = [card for card in wanted if card.driver != "vfio-pci"]
    notices += [f"{card}: is lent to a virtual machine (vfio-pci) and left alone" for card in lent]
    if settings.gpu != "auto" and not wanted:
        there = "; ".join(map(str, usable)) or "none at all"
        refusals.append(
            f"gpu = {settings.gpu}: no such card on the PCI bus that could be used (there is: {there}). Set gpu to "
            "auto or none, or look into the firmware whether the card is switched off"
        )
    packages: set[str] = set()
    components: set[str] = set()
    for maker, need in (("intel", _intel), ("amd", _amd)):
        mine = [card for card in wanted if card.maker == maker]
        if mine:
            needs = need(mine, release, refusals, notices)
            packages |= set(needs[0])
            components |= set(needs[1])
            refusals.extend(_without_graphics(mine, release, facts))
    if "mesa-va-drivers" in packages and (release.codename == "resolute" or facts.mesa >= _MESA_MERGED):
        packages = packages - {"mesa-va-drivers"} | {"mesa-libgallium"}
    mine = [card for card in wanted if card.maker == "nvidia"]
    driver = None
    if mine and not facts.by_hand:
        driver = _nvidia_driver(mine, release, settings, facts, refusals)
        if driver and settings.gpu_nvidia_source == "distro":
            components |= set(_components(release))
    if mine and facts.by_hand:
        notices.append("NVIDIA's driver runs and no package brought it: it is left alone, and its updates are yours")
    return Decision(
        cards=tuple(wanted),
        packages=tuple(sorted(packages)),
        components=tuple(sorted(components)),
        driver=driver,
        nvidia=bool(mine),
        devices=dict(_devices(wanted, settings, asking, facts, refusals)),
        refusals=tuple(refusals),
        notices=tuple(notices),
    )


def _components(release: Release) -> tuple[str, ...]:
    """Where the archive keeps firmware and drivers without source."""
    if release.id == "ubuntu":
        return ("multiverse", "restricted", "universe")
    return ("contrib", "non-free", "non-free-firmware")


_Needs = tuple[Iterable[str], Iterable[str]]


def _intel(cards: Sequence[Card], release: Release, refusals: list[str], notices: list[str]) -> _Needs:
    """Firmware, VA-API driver, OpenCL where the release has one for the card, and vainfo."""
    packages = {"vainfo"}
    if release.id == "ubuntu":
        packages.add("linux-firmware")
    else:
        # Debian 13 split the firmware by vendor.
        packages.add("firmware-misc-nonfree" if release.codename == "bookworm" else "firmware-intel-graphics")
    for card in cards:
        generation = card.generation
        if generation is None:
            notices.append(f"{card}: this id is not known here; it is treated like the newest that are")
            generation = Generation("unknown", 99)
        if not card.driver and release.kernel_version < generation.kernel:
            needed = ".".join(map(str, generation.kernel))
            refusals.append(
                f"{card}: needs Linux {needed} or newer, {release.kernel} runs. {_newer_kernel(release)}, or set "
                "gpu = none"
            )
        # The iHD driver begins with Broadwell (intel/media-driver, README); i965 serves what is older.
        packages.add("intel-media-va-driver-non-free" if generation.media >= 8 else "i965-va-driver-shaders")
        if _has_opencl(release, generation.media):
            packages.add("intel-opencl-icd")
    return packages, _components(release)


def _has_opencl(release: Release, media: int) -> bool:
    """Whether the release has an OpenCL driver for that generation.

    Trixie has none at all. Upstream dropped Gen 8 to 11 after 24.35 (intel/compute-runtime, LEGACY_PLATFORMS.md).
    """
    if release.codename == "trixie":
        return False
    return media >= (12 if release.codename == "resolute" else 8)


def _without_graphics(cards: Sequence[Card], release: Release, facts: Facts) -> Iterator[str]:
    """Why a kernel made for virtual machines drives no card, and which one does."""
    if all(card.driver for card in cards):
        return
    (card, *_) = [card for card in cards if not card.driver]
    if release.id == "debian" and "cloud" in release.kernel:
        yield (
            f"{card}: the kernel that runs ({release.kernel}) has no graphics drivers. Install "
            f"linux-image-{release.architecture}, remove linux-image-cloud-{release.architecture} and reboot, or set "
            "gpu = none"
        )
    lines = [image for image in facts.image_packages if image.startswith("linux-image-")]
    if release.id == "ubuntu" and lines and all("virtual" in image or "kvm" in image for image in lines):
        yield (
            f"{card}: the kernel that runs ({', '.join(lines)}) has no graphics drivers. Install linux-generic "
            "and reboot, or set gpu = none"
        )


def _newer_kernel(release: Release) -> str:
    if release.id == "ubuntu":
        return f"Install linux-generic-hwe-{release.version} and reboot, or use a newer Ubuntu"
    return f"Install linux-image-{release.architecture} from {release.codename}-backports and reboot"


# From here on it has the VA-API drivers (changelog of Debian's mesa 25.3.2-1).
_MESA_MERGED = (25, 3, 2)


def _amd(cards: Sequence[Card], release: Release, refusals: list[str], notices: list[str]) -> _Needs:
    """Firmware and Mesa's VA-API driver; one kernel driver and one Mesa serve every generation."""
    firmware = "linux-firmware" if release.id == "ubuntu" else "firmware-amd-graphics"
    return {firmware, "mesa-va-drivers", "vainfo"}, _components(release)


# The branch each Debian release has in non-free, and NVIDIA's long-term branch that the Ubuntu releases share. 580 is
# the last one that drives Maxwell, Pascal and Volta, and 570 the first that drives Blackwell (docs.nvidia.com).
_DEBIAN_BRANCHES = {"bookworm": 535, "trixie": 550}
_LONG_TERM = 580
_FIRST_BLACKWELL = 570
_CLOSED_ONLY = (gpu_models.MAXWELL, gpu_models.PASCAL, gpu_models.VOLTA)


def _nvidia_driver(
    cards: Sequence[Card], release: Release, settings: Settings, facts: Facts, refusals: list[str]
) -> Driver | None:
    """One driver for all cards, or None with the reason in `refusals`."""
    before = len(refusals)
    distro = settings.gpu_nvidia_source == "distro"
    known = _DEBIAN_BRANCHES.get(release.codename) if distro and release.id == "debian" else _LONG_TERM
    if known is None:
        refusals.append(
            f"{release.id} {release.codename}: which NVIDIA driver it has is not known here; set gpu_nvidia_source "
            "= 'nvidia', or gpu to intel or none"
        )
        return None
    kept = _kept_branch(cards, release, settings, facts) if distro and release.id == "ubuntu" else ""
    number = settings.gpu_nvidia_branch or (int(kept.partition("-")[0]) if kept else known)
    if distro and release.id == "debian" and number != known:
        refusals.append(
            f"gpu_nvidia_branch = {number}: Debian {release.codename} has {known} only; delete that line, or set "
            "gpu_nvidia_source = 'nvidia'"
        )
        return None
    for card in cards:
        refusals.extend(_cannot_drive(card, number, release, settings))
    built_here = not (distro and release.id == "ubuntu")
    if built_here and facts.secure_boot and settings.gpu_nvidia_secure_boot == "refuse":
        refusals.append(_unsigned(cards[0]))
    generations = {card.generation for card in cards}
    closed = bool(generations & set(_CLOSED_ONLY))
    if closed and gpu_models.BLACKWELL in generations:
        refusals.append(
            "NVIDIA: one card needs the open modules (Blackwell), another the closed ones "
            f"({' and '.join(str(card) for card in cards if card.generation in _CLOSED_ONLY)}), and only one kind "
            "can be loaded. Take one of the cards out"
        )
    if len(refusals) > before:
        return None
    if distro and release.id == "debian":
        return _debian_driver(number, release)
    # Open modules do not know what is older than Turing; from there on NVIDIA recommends them.
    if not distro:
        return _vendor_driver(number, not closed, release)
    closed = closed or (bool(kept) and facts.closed and gpu_models.BLACKWELL not in generations)
    return _ubuntu_driver(kept or f"{number}-server", not closed, facts)


def _kept_branch(cards: Sequence[Card], release: Release, settings: Settings, facts: Facts) -> str:
    """The branch that is there already and drives every card: nobody's transcodes are broken for another number."""
    if not facts.branch or settings.gpu_nvidia_branch is not None:
        return ""
    number = int(facts.branch.partition("-")[0])
    return "" if any(list(_cannot_drive(card, number, release, settings)) for card in cards) else facts.branch


def _cannot_drive(card: Card, branch: int, release: Release, settings: Settings) -> Iterator[str]:
    """Why that branch does not drive the card, and the way out."""
    generation = card.generation
    vendor = "set gpu_nvidia_source = 'nvidia' for NVIDIA's own packages"
    if generation is None:
        if settings.gpu_nvidia_branch is None:
            yield (
                f"{card}: this id is not known here, so no driver is guessed. Set gpu_nvidia_branch to the branch "
                "that NVIDIA's site names for the card, or gpu to none"
            )
    elif generation == gpu_models.KEPLER_OR_OLDER:
        yield f"{card}: NVIDIA's drivers of today do not know it any more. Set gpu to none, intel or amd"
    elif generation == gpu_models.BLACKWELL and branch < _FIRST_BLACKWELL:
        yield (
            f"{card}: needs branch {_FIRST_BLACKWELL} or newer, {release.id} {release.codename} has {branch}. Do "
            f"this: {vendor}, or set gpu to none"
        )
    elif generation in _CLOSED_ONLY and branch > _LONG_TERM:
        yield (
            f"{card}: branch {_LONG_TERM} is the last that drives it, gpu_nvidia_branch is {branch}; set it to "
            f"{_LONG_TERM}"
        )


def _unsigned(card: Card) -> str:
    """Why a module that is built on the host would not be loaded. Said before anything is installed."""
    return (
        f"{card}: Secure Boot is on, and this driver is built on the host, so the kernel would refuse it. Either "
        "switch Secure Boot off in the firmware, or use Ubuntu, whose modules are signed, or enrol a key of yours "
        "once at the console (docs/gpu.md tells how) and set gpu_nvidia_secure_boot = 'enrolled'. Nothing was "
        "installed"
    )


def _ubuntu_driver(name: str, open_modules: bool, facts: Facts) -> Driver:
    """The branch `name` with modules that Canonical built and signed, for each kernel line that is installed."""
    kind = f"{name}-open" if open_modules else name
    flavours = sorted({_flavour(image) for image in facts.image_packages}) or ["generic"]
    return Driver(
        branch=name,
        open_modules=open_modules,
        modules=tuple(f"linux-modules-nvidia-{kind}-{flavour}" for flavour in flavours),
        userland=(
            f"libnvidia-decode-{name}",
            f"libnvidia-encode-{name}",
            f"nvidia-headless-no-dkms-{kind}",
            f"nvidia-utils-{name}",
        ),
        dkms=False,
    )


def _flavour(image: str) -> str:
    # linux-image-virtual is the generic kernel without its extra modules.
    flavour = image.removeprefix("linux-image-")
    return flavour.replace("virtual", "generic")


def _headers(release: Release) -> str:
    """The metapackage of the headers that go with the kernel that runs: without them nothing can be built."""
    cloud = "cloud-" if "cloud" in release.kernel else ""
    if release.id == "ubuntu":
        return f"linux-headers-{release.kernel.rpartition('-')[2] or 'generic'}"
    return f"linux-headers-{cloud}{release.architecture}"


def _debian_driver(branch: int, release: Release) -> Driver:
    """Debian's non-free driver, closed modules: its open ones of 535 and 550 are no match for GeForce cards yet."""
    return Driver(
        branch=str(branch),
        open_modules=False,
        modules=("nvidia-kernel-dkms", _headers(release)),
        userland=(
            "firmware-nvidia-gsp",
            "libcuda1",
            "libnvcuvid1",
            "libnvidia-encode1",
            "nvidia-modprobe",
            "nvidia-smi",
        ),
        dkms=True,
    )


def _vendor_driver(branch: int, open_modules: bool, release: Release) -> Driver:
    """NVIDIA's own packages without a desktop: "compute-only" of its driver installation guide, with NVENC.

    Its packages for Ubuntu carry the branch in their names up to 580.
    """
    kind = "-open" if open_modules else ""
    if release.id == "ubuntu":
        number = f"-{branch}" if branch < 590 else ""
        module = f"nvidia-dkms{number}{kind}"
        userland = tuple(
            f"{name}{number}"
            for name in ("libnvidia-compute", "libnvidia-decode", "libnvidia-encode", "nvidia-utils")
        )
    else:
        module = f"nvidia-kernel{kind}-dkms"
        userland = ("libnvidia-encode1", "nvidia-driver-cuda")
    return Driver(
        branch=str(branch),
        open_modules=open_modules,
        modules=(module, _headers(release)),
        userland=userland,
        dkms=True,
    )


def _devices(
    cards: Sequence[Card], settings: Settings, asking: Mapping[str, Use], facts: Facts, refusals: list[str]
) -> Iterator[tuple[str, Device]]:
    """What each service gets. A mapping by the user comes first, else the best card for what it does."""
    for service in sorted(asking):
        selector = settings.gpu_devices.get(service)
        if selector is None:
            ranked = sorted(cards, key=lambda card: _ORDER[asking[service]].index(card.maker))
            if ranked:
                yield service, _device(ranked[0], cards)
            continue
        found = _selected(selector, cards, facts)
        if found is None:
            there = "; ".join(f"{number}: {card}" for number, card in enumerate(cards)) or "no card"
            nodes = f", render nodes {', '.join(sorted(facts.nodes))}" if facts.nodes else ""
            refusals.append(
                f"gpu_devices.{service} = {selector}: there is no such card on this host. It has {there}{nodes}"
            )
        else:
            yield service, found


def _device(card: Card, cards: Sequence[Card]) -> Device:
    if card.maker != "nvidia":
        return Device(node=card.node, card=card)
    # NVIDIA numbers its cards in the order of the bus, as long as all of them are its own driver's.
    number = [each.address for each in cards if each.maker == "nvidia"].index(card.address)
    return Device(cdi=f"{NVIDIA_CDI}={number}", card=card)


def _selected(selector: str, cards: Sequence[Card], facts: Facts) -> Device | None:
    """The device a selector names: a vendor, a number in the order of the bus, an address, a node or an UUID."""
    if selector in VENDORS.values():
        found = [card for card in cards if card.maker == selector]
    elif selector.isdecimal():
        found = list(cards[int(selector) : int(selector) + 1])
    elif selector.startswith("/dev/dri/"):
        name = selector.rpartition("/")[2]
        if name not in facts.nodes:
            return None
        found = [card for card in cards if card.render == name]
        if not found:
            # A node without a card on the bus, such as vgem's, or one whose card gpu leaves out.
            return Device(node=selector)
    elif selector.startswith("GPU-"):
        if not any(card.maker == "nvidia" for card in cards):
            return None
        return Device(cdi=f"{NVIDIA_CDI}={selector}")
    else:
        found = [card for card in cards if card.address == selector]
    return _device(found[0], cards) if found else None
