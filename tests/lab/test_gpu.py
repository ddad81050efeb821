"""A render node reaches the container that asks and no other; NVIDIA's packages run end to end with no card at all.

The node is vgem's, which the kernel makes without hardware. The card is a directory over /sys/bus/pci/devices, its
driver a line in /proc, its programs the lab's stand-ins: what is proven is the way there, not a picture.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator

import pytest

from lab import aptrepo
from lab.image import ImageSpec
from lab.machine import Machine
from lab.vendor.nvidia import UUID, VERSION
from mediahost.gpu import IN_CONTAINER
from mediahost.render import gpu
from operations.gpu import CDI, HELD, PROVEN
from tests.lab.conftest import PROVISIONED, MakeMachine, first_home
from tests.lab.home import Home, told
from tests.lab.waiting import becomes, reboot

pytestmark = pytest.mark.lab
node_proof = pytest.mark.proof("A render node reaches the service that asks, and no other", "media-host")
vendor_proof = pytest.mark.proof(
    "NVIDIA's repositories, driver and CDI, with packages of the same names", "media-host"
)

# A cloud's kernel has no graphics at all.
GRAPHICS = ImageSpec("graphics", kernel="linux-image-amd64")
ASKS, OTHER = "prowlarr", "qbittorrent"
NODE = "/dev/dri/renderD128"

# In force from boot on: an Ada card, which nouveau drives until NVIDIA's packages are there and the host has booted.
_CARD = f"""#!/bin/sh
set -eu
lab=/run/lab
mkdir -p $lab/devices $lab/driver $lab/drivers/nouveau $lab/drivers/nvidia
cp -a /sys/bus/pci/devices/. $lab/devices/
card=$lab/devices/0000:07:00.0
mkdir -p $card
echo 0x030000 >$card/class
echo 0x10de >$card/vendor
echo 0x2684 >$card/device
if [ -e {gpu.MODPROBE_PATH} ] && [ -x /usr/bin/nvidia-smi ]; then
  ln -sfn $lab/drivers/nvidia $card/driver
  mkdir -p $lab/driver/nvidia
  echo 'NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {VERSION}  Release Build  (lab)' \\
    >$lab/driver/nvidia/version
  mount --bind $lab/driver /proc/driver
else
  ln -sfn $lab/drivers/nouveau $card/driver
fi
mount --bind $lab/devices /sys/bus/pci/devices
"""
_CARD_UNIT = f"""[Unit]
Description=Pretend that this machine has a graphics card
After=local-fs.target
Before=docker.service {gpu.CDI_UNIT}
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh /usr/local/sbin/lab-card
[Install]
WantedBy=multi-user.target
"""


@pytest.fixture(scope="session")
def graphics_provisioned(make_machine: MakeMachine, supplied: None, tmp_path_factory: pytest.TempPathFactory) -> Home:
    """A small home server whose kernel has graphics drivers."""
    machine = make_machine("graphics", memory_mib=2048, durable=True, image=GRAPHICS)
    return first_home(machine, tmp_path_factory, selection="none", services=[ASKS, OTHER])


@pytest.fixture
def host(graphics_provisioned: Home) -> Iterator[Home]:
    """That server, freshly restored."""
    graphics_provisioned.machine.restore(PROVISIONED)
    graphics_provisioned.write_inventory()
    yield graphics_provisioned
    graphics_provisioned.write_inventory()


def root(machine: Machine, command: str, check: bool = True) -> str:
    return machine.run(["sudo", "sh", "-c", command], check=check).stdout.strip()


def works(machine: Machine, command: str) -> bool:
    return machine.run(["sudo", "sh", "-c", command], check=False).returncode == 0


def inside(service: str, command: str, user: str = "13000:13000", options: str = "") -> str:
    return f"docker exec {options} -u {user} mediahost-{service}-1 sh -c {shlex.quote(command)}"


def inspect(machine: Machine, service: str, what: str) -> str:
    return root(machine, f"docker inspect -f {shlex.quote('{{' + what + '}}')} mediahost-{service}-1")


def operations(report: dict[str, list[dict[str, str]]]) -> list[str]:
    return [f"{change['operation']}: {change['what']}" for change in report["changes"]]


# --- no card


@node_proof
@pytest.mark.exhaustive
def test_a_virtual_machine_without_a_card_is_no_change_though_cards_are_looked_for(home: Home) -> None:
    home.write_inventory(gpu="auto")
    assert home.changes() == []
    assert home.apply()["changes"] == []
    # Positive control: the same question finds that the maker who is asked for is not there.
    home.write_inventory(gpu="nvidia")
    result = home.mediahost("plan")
    assert result.returncode == 1
    assert "gpu = nvidia: no such card" in told(result)


# --- a render node


def with_node(host: Home) -> None:
    machine = host.machine
    root(machine, "echo vgem >/etc/modules-load.d/lab.conf; modprobe vgem")
    assert becomes(lambda: works(machine, f"test -c {NODE}")), "vgem makes no render node"
    # The kernel makes it root's own; group and mode are udev's, a moment later.
    root(machine, "udevadm settle")
    host.write_inventory(gpu="auto", gpu_devices={ASKS: NODE})


OPENS = f": <>{IN_CONTAINER}"
# Whoever has the device's numbers and may make nodes gets past a missing file; the device cgroup decides then.
MAKES_AND_OPENS = "rm -f /node; mknod /node c $(cat /numbers) && : <>/node"


@node_proof
@pytest.mark.exhaustive
def test_a_render_node_reaches_the_service_that_asks_with_the_hosts_group_and_no_other(host: Home) -> None:
    with_node(host)
    machine = host.machine
    assert root(machine, f"stat -c %a {NODE}") == "660", "everybody may open it, so that no group matters"
    report = host.apply()
    assert [line for line in operations(report) if f"service {OTHER}" in line] == []
    number = root(machine, "getent group render | cut -d: -f3")
    assert root(machine, f"stat -c %g {NODE}") == number
    assert inspect(machine, ASKS, ".HostConfig.GroupAdd") == f"[{number}]"
    assert works(machine, inside(ASKS, OPENS)), "the service's own user cannot open its card"
    assert not works(machine, inside(OTHER, OPENS, user="0:0"))

    # Past the missing file: root of the other container, with every capability, is stopped by the device cgroup.
    numbers = root(machine, f"stat -c '%Hr %Lr' {NODE}")
    for service, may in ((ASKS, True), (OTHER, False)):
        root(machine, inside(service, f"echo {numbers} >/numbers", user="0:0"))
        opened = works(machine, inside(service, MAKES_AND_OPENS, user="0:0", options="--privileged"))
        assert opened == may, service

    # The group is what lets it in: the same user without it is refused.
    image = inspect(machine, ASKS, ".Config.Image")
    bare = f"docker run --rm --user 13000:13000 --device {NODE}:{IN_CONTAINER} --entrypoint sh"
    assert not works(machine, f"{bare} {image} -c {shlex.quote(OPENS)}")
    assert works(machine, f"{bare} --group-add {number} {image} -c {shlex.quote(OPENS)}")

    assert f"service {ASKS}\t" in root(machine, f"cat {PROVEN}")
    assert root(machine, f"cut -f 3 {PROVEN}") == "ok"
    assert host.changes() == []


@node_proof
@pytest.mark.exhaustive
def test_a_service_keeps_its_card_over_a_reboot_and_gives_it_back_when_that_is_switched_off(host: Home) -> None:
    with_node(host)
    machine = host.machine
    host.apply()
    reboot(machine)
    assert becomes(lambda: works(machine, inside(ASKS, OPENS)), limit=600)
    assert host.changes() == []
    host.write_inventory()
    report = host.apply()
    assert [line for line in operations(report) if f"service {ASKS}" in line]
    assert inspect(machine, ASKS, ".HostConfig.Devices") == "[]"
    assert not works(machine, inside(ASKS, OPENS, user="0:0"))
    assert host.changes() == []


@node_proof
@pytest.mark.exhaustive
def test_a_node_that_is_not_there_is_refused_with_those_that_are(host: Home) -> None:
    with_node(host)
    host.write_inventory(gpu="auto", gpu_devices={ASKS: "/dev/dri/renderD140"})
    result = host.mediahost("apply")
    assert result.returncode == 1
    assert "there is no such card on this host" in told(result)
    assert "renderD128" in told(result)


# --- NVIDIA


@pytest.fixture
def carded(host: Home) -> Home:
    """The server with a card that is not there."""
    for path, text in (("/usr/local/sbin/lab-card", _CARD), ("/etc/systemd/system/lab-card.service", _CARD_UNIT)):
        root(host.machine, f"printf '%s' {shlex.quote(text)} >{path}")
    root(host.machine, "systemctl daemon-reload; systemctl enable --now lab-card.service")
    host.write_inventory(gpu="auto", gpu_nvidia_source="nvidia", gpu_devices={ASKS: "nvidia"})
    return host


@vendor_proof
@pytest.mark.exhaustive
def test_a_key_with_another_fingerprint_is_refused_and_nothing_is_installed(carded: Home) -> None:
    carded.write_inventory(gpu="auto", gpu_toolkit_apt_fingerprint=aptrepo.wrong_fingerprint())
    result = carded.mediahost("apply")
    assert result.returncode == 1
    assert "the key has fingerprint" in told(result)
    assert not works(carded.machine, "dpkg-query -W -f '${db:Status-Abbrev}\\n' '*nvidia*' 2>/dev/null | grep -q ^ii")


@vendor_proof
@pytest.mark.exhaustive
def test_driver_toolkit_reboot_and_cdi_end_to_end(carded: Home) -> None:
    machine = carded.machine
    planned = carded.changes()
    for part in (
        "gpu | drivers: package nvidia-container-toolkit: not installed",
        "CDI: is switched on in the engine",
    ):
        assert [line for line in planned if part in line], planned

    # Without leave nothing is rebooted, the service runs without its card, and a second run has nothing to do.
    booted = root(machine, "cat /proc/sys/kernel/random/boot_id")
    report = carded.apply()
    notices = " ".join(notice["what"] for notice in report["notices"])
    assert "a reboot is asked for: nouveau drives NVIDIA" in notices
    assert f"service {ASKS}: runs without NVIDIA" in notices
    assert root(machine, "cat /run/reboot-required.pkgs") == "mediahost"
    assert root(machine, "cat /proc/sys/kernel/random/boot_id") == booted
    assert carded.apply()["changes"] == []

    # The pinned branch, not the newest; held; no desktop.
    version = root(machine, "dpkg-query -W -f '${Version}' nvidia-driver-cuda")
    assert version.startswith(VERSION)
    held = root(machine, "apt-mark showhold").split()
    assert {"nvidia-driver-cuda", "nvidia-kernel-open-dkms", "nvidia-container-toolkit"} <= set(held)
    daemon = json.loads(root(machine, "cat /etc/docker/daemon.json"))
    assert daemon["features"] == {"cdi": True}
    assert daemon["live-restore"] is True
    assert works(machine, "lsinitramfs /boot/initrd.img-$(uname -r) | grep -q mediahost-gpu.conf")

    # With leave: once, and the run goes on after it until the container has the card.
    result = carded.mediahost("apply", "--json", "--reboot")
    assert result.returncode == 0, told(result)
    lines = operations(json.loads(result.stdout))
    assert [line for line in lines if line.startswith("gpu | reboot: reboot: nouveau drives")], lines
    assert [line for line in lines if f"service {ASKS}: runs with an older definition" in line], lines
    again = root(machine, "cat /proc/sys/kernel/random/boot_id")
    assert again != booted
    assert UUID in root(machine, inside(ASKS, "nvidia-smi -L"))
    assert not works(machine, inside(OTHER, "nvidia-smi -L"))
    assert carded.changes() == []
    assert carded.mediahost("apply", "--reboot").returncode == 0
    assert root(machine, "cat /proc/sys/kernel/random/boot_id") == again

    # The card is described before containers start, at each boot.
    reboot(machine)
    assert becomes(lambda: works(machine, inside(ASKS, "nvidia-smi -L")), limit=600)
    assert carded.changes() == []

    # Switched off: ours goes, their packages stay.
    carded.write_inventory()
    carded.apply()
    assert carded.changes() == []
    for path in (*gpu.PATHS, HELD, CDI):
        assert not works(machine, f"test -e {path}"), path
    assert "nvidia" not in root(machine, "apt-mark showhold")
    assert "features" not in json.loads(root(machine, "cat /etc/docker/daemon.json"))
    assert works(machine, "dpkg-query -W nvidia-driver-cuda")
