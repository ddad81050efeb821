"""Graphics cards: what each machine asks for on each release, which service gets which card, what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mediahost import gpu_models
from mediahost.config import ConfigError, Settings, read
from mediahost.gpu import IN_CONTAINER, Card, Decision, Facts, Release, Use, decide
from tests.unit.machines import MACHINES, add_node, build, collected

RELEASES = {
    "22.04": Release("ubuntu", "jammy", "22.04", "amd64", "5.15.0-161-generic"),
    "24.04": Release("ubuntu", "noble", "24.04", "amd64", "6.8.0-88-generic"),
    "26.04": Release("ubuntu", "resolute", "26.04", "amd64", "7.0.0-12-generic"),
    "12": Release("debian", "bookworm", "12", "amd64", "6.1.0-41-amd64"),
    "13": Release("debian", "trixie", "13", "amd64", "6.12.57+deb13-amd64"),
}
# Cards that the kernel of a release does not drive yet: there the recorded driver would not be bound.
UNBOUND = {
    "22.04": ("intel-meteor-lake", "intel-lunar-lake", "intel-arc-a380", "intel-arc-b580", "mixed-amd-arc"),
    "24.04": ("intel-lunar-lake", "intel-arc-b580"),
    "12": ("intel-meteor-lake", "intel-lunar-lake", "intel-arc-a380", "intel-arc-b580", "mixed-amd-arc"),
}
FACTS = Facts(image_packages=("linux-image-generic",))


def cards(machine: str, root: Path, release: str = "") -> tuple[Card, ...]:
    found = collected(build(machine, root)).gpu.cards
    if machine in UNBOUND.get(release, ()):
        found = tuple(replace(card, driver="", render="") if card.maker == "intel" else card for card in found)
    return found


def settings(**data: Any) -> Settings:
    return read("nas", {"gpu": "auto", **data})


def decided(
    machine: str,
    root: Path,
    release: str = "24.04",
    asking: Mapping[str, Use] | None = None,
    facts: Facts = FACTS,
    **data: Any,
) -> Decision:
    return decide(cards(machine, root, release), RELEASES[release], settings(**data), asking or {}, facts)


def in_short(found: Decision) -> str:
    """The decision in a few words, as the table below has it."""
    if found.refusals:
        known = ("needs Linux", "needs branch", "do not know it any more", "not known here", "only one kind")
        told = [next(words for words in known if words in refusal) for refusal in found.refusals]
        return f"refused: {', '.join(told)}"
    names = {
        "intel-media-va-driver-non-free": "iHD",
        "i965-va-driver-shaders": "i965",
        "intel-opencl-icd": "opencl",
        "mesa-va-drivers": "mesa",
        "mesa-libgallium": "gallium",
    }
    words = [short for name, short in names.items() if name in found.packages]
    if found.driver:
        words.append(f"{found.driver.branch}{' open' if found.driver.open_modules else ''}")
    return " ".join(words) or "nothing"


# --- the table: machine to decision, by release

EVERYWHERE = dict.fromkeys(RELEASES, "nothing")
IHD = {"22.04": "iHD opencl", "24.04": "iHD opencl", "26.04": "iHD opencl", "12": "iHD opencl", "13": "iHD"}
# OpenCL on 26.04 begins with Gen 12.
OLDER_IHD = {**IHD, "26.04": "iHD"}
MESA = {**dict.fromkeys(RELEASES, "mesa"), "26.04": "gallium"}
CLOSED = {"22.04": "580-server", "24.04": "580-server", "26.04": "580-server", "12": "535", "13": "550"}
OPEN = {**CLOSED, "22.04": "580-server open", "24.04": "580-server open", "26.04": "580-server open"}
BLACKWELL = {**OPEN, "12": "refused: needs branch", "13": "refused: needs branch"}
TOO_NEW = "refused: needs Linux"
DECISIONS: dict[str, dict[str, str]] = {
    "amd-apu": MESA,
    "amd-radeon": MESA,
    "intel-alder-lake-n": IHD,
    "intel-arc-a380": {**IHD, "22.04": TOO_NEW, "12": TOO_NEW},
    "intel-arc-b580": {**IHD, "22.04": TOO_NEW, "24.04": TOO_NEW, "12": TOO_NEW},
    "intel-broadwell": OLDER_IHD,
    "intel-coffee-lake": OLDER_IHD,
    "intel-gemini-lake": OLDER_IHD,
    "intel-haswell": dict.fromkeys(RELEASES, "i965"),
    "intel-jasper-lake": OLDER_IHD,
    "intel-lunar-lake": {**IHD, "22.04": TOO_NEW, "24.04": TOO_NEW, "12": TOO_NEW},
    "intel-meteor-lake": {**IHD, "22.04": TOO_NEW, "12": TOO_NEW},
    "intel-raptor-lake": IHD,
    "intel-skylake": OLDER_IHD,
    "intel-tiger-lake": IHD,
    "mixed-amd-arc": {
        **{release: f"{words} {MESA[release]}" for release, words in IHD.items()},
        "22.04": TOO_NEW,
        "12": TOO_NEW,
    },
    "mixed-intel-nvidia": {release: f"{words} {OPEN[release]}" for release, words in IHD.items()},
    "none": EVERYWHERE,
    "none-server-bmc": EVERYWHERE,
    "nvidia-ada": OPEN,
    "nvidia-ampere": OPEN,
    "nvidia-apart": {
        **dict.fromkeys(RELEASES, "refused: only one kind"),
        "12": "refused: needs branch, only one kind",
        "13": "refused: needs branch, only one kind",
    },
    "nvidia-blackwell": BLACKWELL,
    "nvidia-kepler": dict.fromkeys(RELEASES, "refused: do not know it any more"),
    "nvidia-lent": EVERYWHERE,
    "nvidia-maxwell": CLOSED,
    "nvidia-pascal": CLOSED,
    "nvidia-turing": OPEN,
    "nvidia-two": CLOSED,
    "nvidia-unknown": dict.fromkeys(RELEASES, "refused: not known here"),
    "virtual-qemu": EVERYWHERE,
    "virtual-virtio": EVERYWHERE,
    "virtual-vmware": EVERYWHERE,
}


def test_the_table_knows_every_recorded_machine() -> None:
    assert set(DECISIONS) == set(MACHINES)
    assert len(MACHINES) >= 12


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("machine", DECISIONS)
def test_each_machine_gets_what_its_cards_need_on_each_release(machine: str, release: str, tmp_path: Path) -> None:
    assert in_short(decided(machine, tmp_path, release)) == DECISIONS[machine][release]


@pytest.mark.parametrize("machine", MACHINES)
def test_a_host_that_asks_for_no_cards_gets_nothing_whatever_it_has(machine: str, tmp_path: Path) -> None:
    assert decided(machine, tmp_path, gpu="none") == Decision()


@pytest.mark.parametrize("machine", ["virtual-qemu", "virtual-virtio", "virtual-vmware", "none", "none-server-bmc"])
def test_a_machine_without_a_card_yields_nothing_when_cards_are_looked_for(machine: str, tmp_path: Path) -> None:
    assert decided(machine, tmp_path, asking={"jellyfin": "transcode"}) == Decision()


@pytest.mark.parametrize("maker", ["intel", "nvidia", "amd"])
def test_a_maker_that_is_asked_for_and_not_there_is_refused_with_what_is(maker: str, tmp_path: Path) -> None:
    (refusal,) = decided("virtual-qemu", tmp_path / "vm", gpu=maker).refusals
    assert f"gpu = {maker}: no such card" in refusal
    assert "none at all" in refusal
    here = {"intel": "amd-radeon", "nvidia": "intel-skylake", "amd": "nvidia-ada"}[maker]
    (refusal,) = decided(here, tmp_path / "other", gpu=maker).refusals
    assert "0000:0" in refusal


def test_one_maker_leaves_the_cards_of_others_alone(tmp_path: Path) -> None:
    assert in_short(decided("mixed-intel-nvidia", tmp_path / "a", gpu="intel")) == "iHD opencl"
    assert in_short(decided("mixed-intel-nvidia", tmp_path / "b", gpu="nvidia")) == "580-server open"


# --- packages


def test_intel_gets_firmware_driver_and_the_program_that_checks_it(tmp_path: Path) -> None:
    firmware = {"24.04": "linux-firmware", "12": "firmware-misc-nonfree", "13": "firmware-intel-graphics"}
    for release, name in firmware.items():
        found = decided("intel-raptor-lake", tmp_path / release, release)
        assert {name, "vainfo", "intel-media-va-driver-non-free"} <= set(found.packages)
        assert ("non-free" in found.components) == (RELEASES[release].id == "debian")
        assert ("multiverse" in found.components) == (RELEASES[release].id == "ubuntu")


def test_a_newer_mesa_has_the_driver_in_another_package(tmp_path: Path) -> None:
    """Ubuntu's hardware enablement brings newer ones to older releases."""
    versions = {(25, 2, 8): "mesa-va-drivers", (25, 3, 2): "mesa-libgallium", (26, 0, 1): "mesa-libgallium"}
    for version, name in versions.items():
        found = decided("amd-apu", tmp_path / str(version[1]), facts=replace(FACTS, mesa=version)).packages
        assert [each for each in found if each.startswith("mesa")] == [name]


def test_ubuntu_gets_signed_modules_for_each_kernel_line_and_no_desktop(tmp_path: Path) -> None:
    facts = Facts(image_packages=("linux-image-generic-hwe-24.04", "linux-image-virtual"))
    driver = decided("nvidia-ada", tmp_path, facts=facts).driver
    assert driver is not None
    assert driver.modules == (
        "linux-modules-nvidia-580-server-open-generic",
        "linux-modules-nvidia-580-server-open-generic-hwe-24.04",
    )
    assert "nvidia-headless-no-dkms-580-server-open" in driver.userland
    assert {"nvidia-utils-580-server", "libnvidia-encode-580-server"} <= set(driver.userland)
    assert not driver.dkms


def test_debian_builds_its_modules_with_the_headers_of_its_kernel(tmp_path: Path) -> None:
    driver = decided("nvidia-pascal", tmp_path, "13").driver
    assert driver is not None
    assert driver.modules == ("nvidia-kernel-dkms", "linux-headers-amd64")
    assert driver.dkms
    cloud = replace(RELEASES["13"], kernel="6.12.57+deb13-cloud-amd64")
    found = decide([Card("0000:07:00.0", 0x10DE, 0x1B80)], cloud, settings(), {}, FACTS).driver
    assert found is not None
    assert "linux-headers-cloud-amd64" in found.modules


def test_nvidias_own_packages_drive_what_debians_cannot(tmp_path: Path) -> None:
    found = decided("nvidia-blackwell", tmp_path / "debian", "13", gpu_nvidia_source="nvidia")
    assert found.refusals == ()
    assert found.driver is not None
    assert found.driver.open_modules
    assert "nvidia-kernel-open-dkms" in found.driver.modules
    assert set(found.driver.userland) == {"nvidia-driver-cuda", "libnvidia-encode1"}
    assert found.components == ()
    ubuntu = decided("nvidia-pascal", tmp_path / "ubuntu", gpu_nvidia_source="nvidia").driver
    assert ubuntu is not None
    assert ubuntu.modules == ("nvidia-dkms-580", "linux-headers-generic")
    assert "nvidia-utils-580" in ubuntu.userland
    newer = decided("nvidia-ada", tmp_path / "newer", gpu_nvidia_source="nvidia", gpu_nvidia_branch=590).driver
    assert newer is not None
    assert newer.modules[0] == "nvidia-dkms-open"


def test_a_branch_of_the_users_own_is_taken_where_the_release_has_it(tmp_path: Path) -> None:
    newer = decided("nvidia-ada", tmp_path / "a", gpu_nvidia_branch=590).driver
    assert newer is not None
    assert newer.branch == "590-server"
    (refusal,) = decided("nvidia-ada", tmp_path / "b", "13", gpu_nvidia_branch=590).refusals
    assert "has 550 only" in refusal
    (refusal,) = decided("nvidia-pascal", tmp_path / "c", gpu_nvidia_branch=590).refusals
    assert "580 is the last that drives it" in refusal
    unknown = decided("nvidia-unknown", tmp_path / "d", gpu_nvidia_branch=610)
    assert unknown.refusals == ()


def test_a_branch_that_is_installed_and_drives_the_cards_is_kept(tmp_path: Path) -> None:
    there = replace(FACTS, branch="550", closed=True)
    kept = decided("nvidia-ada", tmp_path / "a", facts=there).driver
    assert kept is not None
    assert (kept.branch, kept.open_modules) == ("550", False)
    assert kept.modules == ("linux-modules-nvidia-550-generic",)
    too_old = decided("nvidia-blackwell", tmp_path / "b", facts=there).driver
    assert too_old is not None
    assert (too_old.branch, too_old.open_modules) == ("580-server", True)
    asked = decided("nvidia-ada", tmp_path / "c", facts=there, gpu_nvidia_branch=580).driver
    assert asked is not None
    assert asked.branch == "580-server"
    # What a run of ours has installed is kept as it is.
    again = decided("nvidia-ada", tmp_path / "d", facts=replace(FACTS, branch="580-server")).driver
    assert again == decided("nvidia-ada", tmp_path / "e").driver


def test_a_driver_that_somebody_installed_by_hand_is_left_alone(tmp_path: Path) -> None:
    found = decided("nvidia-ada", tmp_path, facts=replace(FACTS, by_hand=True))
    assert (found.driver, found.nvidia, found.refusals) == (None, True, ())
    assert "left alone" in found.notices[0]


def test_a_card_that_is_lent_to_a_virtual_machine_is_not_touched_and_that_is_told(tmp_path: Path) -> None:
    found = decided("nvidia-lent", tmp_path)
    assert (found.cards, found.driver, found.nvidia) == ((), None, False)
    assert "vfio-pci" in found.notices[0]


def test_a_kernel_made_for_virtual_machines_is_refused_where_a_card_is_passed_through() -> None:
    card = Card("0000:00:02.0", 0x8086, 0x4680)
    cloud = replace(RELEASES["13"], kernel="6.12.57+deb13-cloud-amd64")
    (refusal,) = decide([card], cloud, settings(), {}, FACTS).refusals
    assert "Install linux-image-amd64" in refusal
    virtual = Facts(image_packages=("linux-image-virtual",))
    (refusal,) = decide([card], RELEASES["24.04"], settings(), {}, virtual).refusals
    assert "Install linux-generic" in refusal
    # Positive control: a kernel that drives it, and one that has the drivers.
    assert decide([replace(card, driver="i915")], cloud, settings(), {}, FACTS).refusals == ()
    assert decide([card], RELEASES["24.04"], settings(), {}, FACTS).refusals == ()


# --- Secure Boot

SECURE = replace(FACTS, secure_boot=True)


def test_secure_boot_refuses_a_module_built_here_before_anything_is_installed(tmp_path: Path) -> None:
    for release in ("12", "13"):
        found = decided("nvidia-pascal", tmp_path / release, release, facts=SECURE)
        assert found.driver is None
        (refusal,) = found.refusals
        assert "Secure Boot is on" in refusal
        assert "Nothing was installed" in refusal
    (refusal,) = decided("nvidia-ada", tmp_path / "u", facts=SECURE, gpu_nvidia_source="nvidia").refusals
    assert "Secure Boot is on" in refusal


def test_secure_boot_is_no_matter_to_signed_modules_or_an_enrolled_key_or_other_makers(tmp_path: Path) -> None:
    assert decided("nvidia-ada", tmp_path / "a", facts=SECURE).driver is not None
    enrolled = decided("nvidia-pascal", tmp_path / "b", "13", facts=SECURE, gpu_nvidia_secure_boot="enrolled")
    assert enrolled.driver is not None
    assert decided("intel-skylake", tmp_path / "c", "13", facts=SECURE).refusals == ()


# --- who gets which

ASKING: dict[str, Use] = {"immich": "compute", "jellyfin": "transcode"}


def test_video_goes_to_quick_sync_and_computing_to_nvidia(tmp_path: Path) -> None:
    found = decided("mixed-intel-nvidia", tmp_path, asking=ASKING).devices
    assert found["jellyfin"].node == "/dev/dri/mediahost/pci-0000_00_02_0"
    assert found["immich"].cdi == "nvidia.com/gpu=0"
    assert ":" not in found["jellyfin"].node, "a compose file would take it for the end of the path"
    assert IN_CONTAINER == "/dev/dri/renderD128"


def test_seed_003_gives_device_0_to_jellyfin_and_device_1_to_immich(tmp_path: Path) -> None:
    found = decided("nvidia-two", tmp_path, asking=ASKING, gpu_devices={"jellyfin": "0", "immich": "1"}).devices
    assert (found["jellyfin"].cdi, found["immich"].cdi) == ("nvidia.com/gpu=0", "nvidia.com/gpu=1")


@pytest.mark.parametrize(
    ("selector", "node", "cdi"),
    [
        ("intel", "/dev/dri/mediahost/pci-0000_00_02_0", ""),
        ("0", "/dev/dri/mediahost/pci-0000_00_02_0", ""),
        ("0000:00:02.0", "/dev/dri/mediahost/pci-0000_00_02_0", ""),
        ("/dev/dri/renderD128", "/dev/dri/mediahost/pci-0000_00_02_0", ""),
        ("nvidia", "", "nvidia.com/gpu=0"),
        ("1", "", "nvidia.com/gpu=0"),
        ("0000:01:00.0", "", "nvidia.com/gpu=0"),
        ("GPU-0f1e2d3c-4b5a", "", "nvidia.com/gpu=GPU-0f1e2d3c-4b5a"),
    ],
)
def test_a_card_is_named_in_any_of_these_ways(selector: str, node: str, cdi: str, tmp_path: Path) -> None:
    facts = replace(FACTS, nodes={"renderD128": "0000:00:02.0", "renderD129": "0000:01:00.0"})
    found = decided(
        "mixed-intel-nvidia",
        tmp_path,
        asking={"plex": "transcode"},
        facts=facts,
        gpu_devices={"plex": selector},
    )
    assert found.refusals == ()
    assert (found.devices["plex"].node, found.devices["plex"].cdi) == (node, cdi)


def test_a_render_node_without_a_card_on_the_bus_can_be_given_by_its_path(tmp_path: Path) -> None:
    sys = build("virtual-qemu", tmp_path)
    vgem = sys / "devices/platform/vgem"
    add_node(sys, "renderD128", vgem)
    seen = collected(sys).gpu
    assert seen.nodes == {"renderD128": "vgem"}
    facts = replace(FACTS, nodes=seen.nodes)
    given = settings(gpu_devices={"sonarr": "/dev/dri/renderD128"})
    found = decide(seen.cards, RELEASES["13"], given, {"sonarr": "transcode"}, facts)
    assert found.devices["sonarr"].node == "/dev/dri/renderD128"
    assert (found.packages, found.refusals) == ((), ())


@pytest.mark.parametrize("selector", ["2", "amd", "0000:09:00.0", "/dev/dri/renderD140"])
def test_a_card_that_is_not_there_is_refused_with_those_that_are(selector: str, tmp_path: Path) -> None:
    found = decided("mixed-intel-nvidia", tmp_path, asking={"plex": "transcode"}, gpu_devices={"plex": selector})
    (refusal,) = found.refusals
    assert f"gpu_devices.plex = {selector}" in refusal
    assert "0: Intel" in refusal
    assert "1: NVIDIA" in refusal


def test_a_mapping_of_a_service_that_does_not_run_here_is_no_matter(tmp_path: Path) -> None:
    assert decided("intel-skylake", tmp_path, gpu_devices={"plex": "nvidia"}).refusals == ()


@pytest.mark.parametrize("selector", ["first", "/dev/nvidia0", "0000:00:02", "renderD128", "GPU-", "../dri/x", ""])
def test_a_selector_that_means_nothing_is_bad_input(selector: str) -> None:
    with pytest.raises(ConfigError, match=r"gpu_devices\.plex.*write intel"):
        settings(gpu_devices={"plex": selector})


def test_cards_cannot_be_given_out_where_none_are_asked_for() -> None:
    with pytest.raises(ConfigError, match="set gpu = 'auto'"):
        read("nas", {"gpu_devices": {"plex": "0"}})


# --- ids


def test_no_two_generations_of_nvidia_claim_one_id_and_blocks_are_in_order() -> None:
    blocks = gpu_models._NVIDIA
    for (_, last, _one), (first, _, _other) in zip(blocks, blocks[1:], strict=False):
        assert last < first


@pytest.mark.parametrize(
    ("device", "name"),
    [
        (0x1380, "Maxwell"),  # GTX 750 Ti
        (0x17C8, "Maxwell"),  # GTX 980 Ti
        (0x1C82, "Pascal"),  # GTX 1050 Ti
        (0x1CB3, "Pascal"),  # Quadro P400
        (0x1DB4, "Volta"),  # Tesla V100
        (0x1EB8, "Turing"),  # Tesla T4
        (0x2184, "Turing"),  # GTX 1660
        (0x20B5, "Ampere"),  # A100
        (0x2331, "Hopper"),  # H100
        (0x28B8, "Ada"),  # RTX 2000 Ada notebook
        (0x2B85, "Blackwell"),  # RTX 5090
        (0x2C05, "Blackwell"),  # RTX 5070 Ti
        (0x2D05, "Blackwell"),  # RTX 5060
    ],
)
def test_nvidias_cards_are_told_apart_by_their_ids(device: int, name: str) -> None:
    found = gpu_models.nvidia(device)
    assert found is not None
    assert found.name == name


def test_an_id_nobody_knows_is_not_guessed() -> None:
    assert gpu_models.nvidia(0x3A04) is None
    assert gpu_models.intel(0xF000) is None
