"""NVIDIA's two repositories with stand-ins inside: the container toolkit's, and the driver's for Debian 13.

There is no card in a lab machine, so the programs only say what the real ones would: nvidia-smi lists one card where
the machine pretends to have one, nvidia-ctk describes it for containers (CDI). Names and relations are those of
NVIDIA's packages; nothing is built, and the headers' metapackage keeps a compiler from being fetched.
"""

from __future__ import annotations

from lab.vendor import Package, Vendor

TOOLKIT = "libnvidia-container"
"""Stands for https://nvidia.github.io/libnvidia-container."""

DRIVER = "cuda/repos"
"""Stands for https://developer.download.nvidia.com/compute/cuda/repos."""

VERSION = "580.95.05"
UUID = "GPU-00000000-0000-0000-0000-0000000001ab"

# Only in a container that CDI gave the card; its environment would not reach `docker exec`.
_GIVEN = "/run/mediahost-lab-card"

_SMI = f"""#!/bin/sh
# stand-in for nvidia-smi (mediahost lab)
if [ ! -e {_GIVEN} ] && [ ! -r /proc/driver/nvidia/version ]; then
  echo "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver." >&2
  exit 9
fi
case $1 in
  -L) echo "GPU 0: stand-in (UUID: {UUID})" ;;
  *) echo "stand-in for nvidia-smi {VERSION}" ;;
esac
"""

_CTK = f"""#!/bin/sh
# stand-in for nvidia-ctk (mediahost lab)
[ "$1 $2" = 'cdi generate' ] || {{ echo "this stand-in knows only: nvidia-ctk cdi generate" >&2; exit 1; }}
output=
for word; do case $word in --output=*) output=${{word#*=}} ;; esac; done
[ -r /proc/driver/nvidia/version ] || {{ echo 'failed to initialize NVML: Driver Not Loaded' >&2; exit 1; }}
mkdir -p "${{output%/*}}"
cat >"$output.new" <<END
cdiVersion: 0.5.0
kind: nvidia.com/gpu
devices:
  - name: "0"
    containerEdits: &card
      mounts:
        - hostPath: /usr/bin/nvidia-ctk
          containerPath: {_GIVEN}
          options: [ro, nosuid, nodev, bind]
  - name: {UUID}
    containerEdits: *card
  - name: all
    containerEdits: *card
containerEdits:
  mounts:
    - hostPath: /usr/bin/nvidia-smi
      containerPath: /usr/bin/nvidia-smi
      options: [ro, nosuid, nodev, bind]
END
mv -f "$output.new" "$output"
"""


def vendors() -> tuple[Vendor, ...]:
    """Both repositories, flat as NVIDIA's are."""
    toolkit = Vendor(
        f"{TOOLKIT}/stable/deb/amd64", "../../../gpgkey", "NVIDIA", "NVIDIA toolkit", "/", "", _toolkit("1.20.0-1")
    )
    driver = Vendor(f"{DRIVER}/debian13/x86_64", "{id}.pub", "NVIDIA", "NVIDIA CUDA", "/", "", _driver())
    return toolkit, driver


def _toolkit(version: str) -> tuple[Package, ...]:
    return (
        _package("libnvidia-container1", version),
        _package("libnvidia-container-tools", version, f"libnvidia-container1 (>= {version})"),
        _package("nvidia-container-toolkit-base", version, programs=(("/usr/bin/nvidia-ctk", _CTK),)),
        _package(
            "nvidia-container-toolkit",
            version,
            f"nvidia-container-toolkit-base (= {version}), libnvidia-container-tools (>= {version})",
        ),
    )


def _driver() -> tuple[Package, ...]:
    version = f"{VERSION}-1"
    # A newer branch, which the pin must keep out.
    newer = tuple(_package(name, "590.48.01-1") for name in ("libnvidia-encode1", "nvidia-driver-cuda"))
    return (
        *newer,
        _package("libnvidia-encode1", version),
        _package("nvidia-kernel-open-dkms", version, "linux-headers-amd64"),
        _package("nvidia-driver-cuda", version, "libnvidia-encode1", programs=(("/usr/bin/nvidia-smi", _SMI),)),
        _package("linux-headers-amd64", "99.0-1"),
    )


def _package(name: str, version: str, depends: str = "", programs: tuple[tuple[str, str], ...] = ()) -> Package:
    return Package(
        name=name,
        version=version,
        contents=(),
        description=f"stand-in for NVIDIA's {name}",
        relations=(("Depends", depends),) if depends else (),
        programs=programs,
    )
