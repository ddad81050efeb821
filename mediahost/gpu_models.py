"""Which generation a graphics card is, by its PCI device id, and nothing guessed.

Ids below come from the vendors' own lists: pci.ids, the kernel's include/drm/intel/pciids.h, and NVIDIA's list of
supported products in the driver's README. NVIDIA numbers a chip's boards within a block of 64 or 128 ids.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Generation:
    """Cards that need the same software.

    `media` is Intel's number of the graphics generation (8 to 30, 0 for others). `kernel` is the first Linux that
    drives it without being told to.
    """

    name: str
    media: int = 0
    kernel: tuple[int, int] = (0, 0)


# --- NVIDIA: first and last id of a block, oldest first

KEPLER_OR_OLDER = Generation("Kepler or older")
MAXWELL = Generation("Maxwell")
PASCAL = Generation("Pascal")
VOLTA = Generation("Volta")
TURING = Generation("Turing")
AMPERE = Generation("Ampere")
HOPPER = Generation("Hopper")
ADA = Generation("Ada")
BLACKWELL = Generation("Blackwell")

_NVIDIA: tuple[tuple[int, int, Generation], ...] = (
    (0x0020, 0x12FF, KEPLER_OR_OLDER),
    (0x1340, 0x143F, MAXWELL),  # GM107, GM108, GM204, GM206
    (0x15F0, 0x15FF, PASCAL),  # GP100
    (0x1600, 0x167F, MAXWELL),  # GM204 in notebooks
    (0x1720, 0x172F, PASCAL),  # GP100
    (0x1740, 0x17FF, MAXWELL),  # GM108, GM200
    (0x1B00, 0x1D7F, PASCAL),  # GP102, GP104, GP106, GP107, GP108
    (0x1D80, 0x1DFF, VOLTA),  # GV100
    (0x1E00, 0x1FFF, TURING),  # TU102, TU104, TU106, TU117
    (0x2080, 0x20FF, AMPERE),  # GA100
    (0x2180, 0x21FF, TURING),  # TU116
    (0x2200, 0x227F, AMPERE),  # GA102
    (0x2300, 0x237F, HOPPER),  # GH100
    (0x2400, 0x25FF, AMPERE),  # GA103, GA104, GA106, GA107
    (0x2680, 0x28FF, ADA),  # AD102, AD103, AD104, AD106, AD107
    (0x2900, 0x297F, BLACKWELL),  # GB100
    (0x2B80, 0x2DFF, BLACKWELL),  # GB202, GB203, GB206, GB207
    (0x2F00, 0x2F7F, BLACKWELL),  # GB205
)

# --- Intel: the high byte tells the family, a few ids within it another

_HASWELL_OR_OLDER = Generation("Haswell or older", 7, (3, 10))
_BROADWELL = Generation("Gen 8 (Broadwell, Braswell)", 8, (4, 2))
_GEN9 = Generation("Gen 9 (Skylake to Comet Lake, Apollo and Gemini Lake)", 9, (4, 16))
_GEN11 = Generation("Gen 11 (Ice, Elkhart and Jasper Lake)", 11, (5, 10))
_XE = Generation("Xe (Tiger, Rocket, Alder and Raptor Lake)", 12, (5, 16))
_DG1 = Generation("Iris Xe Max (DG1)", 12, (6, 2))
_ARC_A = Generation("Arc A series (Alchemist)", 12, (6, 2))
_METEOR = Generation("Arc in Core Ultra (Meteor and Arrow Lake)", 12, (6, 7))
_LUNAR = Generation("Arc 140V (Lunar Lake)", 20, (6, 12))
_BATTLEMAGE = Generation("Arc B series (Battlemage)", 20, (6, 12))
_PANTHER = Generation("Arc in Panther Lake", 30, (6, 17))

_INTEL: dict[int, Generation] = {
    **dict.fromkeys((0x00, 0x01, 0x04, 0x0A, 0x0C, 0x0D, 0x0F, 0x2A, 0x2E), _HASWELL_OR_OLDER),
    **dict.fromkeys((0x16, 0x22), _BROADWELL),
    **dict.fromkeys((0x19, 0x31, 0x3E, 0x59, 0x5A, 0x87, 0x9B), _GEN9),
    **dict.fromkeys((0x45, 0x4E, 0x8A), _GEN11),
    **dict.fromkeys((0x46, 0x4C, 0x98, 0x9A, 0xA7), _XE),
    0x49: _DG1,
    **dict.fromkeys((0x4F, 0x56), _ARC_A),
    **dict.fromkeys((0x7D, 0xB6), _METEOR),
    **dict.fromkeys((0x64,), _LUNAR),
    0xE2: _BATTLEMAGE,
    0xB0: _PANTHER,
}
# Lakefield has Ice Lake's graphics; Cannon Lake's (5a4x and 5a5x) were never driven.
_INTEL_EXCEPTIONS = {0x9840: _GEN11, 0x9841: _GEN11}


def intel(device: int) -> Generation | None:
    """The generation of Intel graphics with this device id; None when it is not known here."""
    return _INTEL_EXCEPTIONS.get(device) or _INTEL.get(device >> 8)


def nvidia(device: int) -> Generation | None:
    """The generation of an NVIDIA card with this device id; None when it is not known here."""
    return next((found for first, last, found in _NVIDIA if first <= device <= last), None)
