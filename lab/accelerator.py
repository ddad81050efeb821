"""Decides whether machines run under KVM or under TCG, QEMU's software emulation.

The existence of /dev/kvm proves nothing: on some hosts it is there and guests die in it. So a guest is really
started, once a boot of the host, and KVM is used only when that guest's user space has spoken.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from pathlib import Path

from lab import paths
from lab.image import Image

KVM = ("-accel", "kvm", "-cpu", "max")
TCG = ("-accel", "tcg,thread=multi,tb-size=512", "-cpu", "max")
_DEVICE = Path("/dev/kvm")
_PROBE_SECONDS = 25
"""A KVM guest reaches its initrd in two seconds; the rest is for a busy host."""
_SPOKEN = b"Loading, please wait"
"""What the initrd's /init (initramfs-tools) prints first: kernel and user space both ran."""
_FAILED = b"KVM internal error"


def flags(image: Image) -> tuple[str, ...]:
    """QEMU's accelerator and CPU arguments for this host; the first call of a boot probes KVM with `image`."""
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    record = paths.cache() / "accelerator.json"
    try:
        known = json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    if known.get("boot_id") != boot_id:
        known = {"boot_id": boot_id, "kvm": _kvm_runs(image)}
        record.write_text(json.dumps(known), encoding="utf-8")
    return KVM if known["kvm"] else TCG


def _kvm_runs(image: Image) -> bool:
    if not os.access(_DEVICE, os.R_OK | os.W_OK):
        return False
    with tempfile.TemporaryFile() as output:
        probe = subprocess.Popen(
            [
                *("qemu-system-x86_64", *KVM, "-m", "512", "-nodefaults", "-display", "none", "-no-reboot"),
                *("-serial", "stdio", "-kernel", str(image.kernel), "-initrd", str(image.initrd)),
                *("-append", "console=ttyS0 root=LABEL=none panic=-1"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            deadline = time.monotonic() + _PROBE_SECONDS
            while time.monotonic() < deadline:
                output.seek(0)
                text = output.read()
                if _SPOKEN in text:
                    return True
                if _FAILED in text or probe.poll() is not None:
                    return False
                time.sleep(0.2)
            return False
        finally:
            probe.kill()
            probe.wait()
