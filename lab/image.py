"""Builds the disk images that lab machines start from: a bare Debian, like a cloud image, and its kernel.

An image is keyed by a hash of all its inputs and cached; it is built under a temporary name and renamed when
whole, so that a killed build leaves nothing half. It must hold nothing that a fresh cloud machine has not,
except the lab's SSH key and a first-boot unit that gives the machine its identity and then removes itself.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lab import paths
from lab.daemon import locked, locked_if_free
from lab.errors import LabError
from lab.mirror import DEFAULT_KEYRING, Mirror, debian_mirror
from lab.program import run

USER = "debian"
NEEDED_BYTES = 4 * 1024**3
"""Free space a build needs: the unpacked tree, its tar and the file system, about 1 GiB each, with room."""

_KEPT_SECONDS = 24 * 3600
"""How long an image stays after its last use though a newer one has been built."""

_MMDEBSTRAP = ("mmdebstrap", "--variant=minbase", "--architectures=amd64")
_BASE_PACKAGES = (
    "ca-certificates",
    "curl",
    "dbus",
    "e2fsprogs",
    "iproute2",
    "netbase",
    "openssh-server",
    "sudo",
    "systemd",
    "systemd-resolved",
    "systemd-sysv",
    "udev",
)

# Runs once, before the network and sshd: what cloud-init does from its metadata, done from the kernel command
# line (lab.name=, lab.address4=, …), since the image is shared and must not carry a machine's identity.
_IDENTITY_SCRIPT = r"""#!/bin/sh
set -eu
for word in $(cat /proc/cmdline); do
    case $word in
        lab.name=*) name=${word#*=} ;;
        lab.uplink=*) uplink=${word#*=} ;;
        lab.segment=*) segment=${word#*=} ;;
        lab.address4=*) address4=${word#*=} ;;
        lab.address6=*) address6=${word#*=} ;;
    esac
done
printf '%s\n' "$name" >/etc/hostname
hostname "$name"
printf '127.0.0.1\tlocalhost\n127.0.1.1\t%s\n::1\tlocalhost ip6-localhost ip6-loopback\n' "$name" >/etc/hosts
cat >/etc/systemd/network/10-uplink.network <<END
[Match]
MACAddress=$uplink
[Network]
DHCP=ipv4
[DHCPv4]
UseHostname=no
END
cat >/etc/systemd/network/20-segment.network <<END
[Match]
MACAddress=$segment
[Link]
RequiredForOnline=no
[Network]
Address=$address4
Address=$address6
IPv6AcceptRA=no
END
ssh-keygen -A
# Written last: a power cut before this line means that all is done again at the next boot.
sync
systemctl disable lab-identity.service
rm -f /etc/systemd/system/lab-identity.service /usr/local/sbin/lab-identity
sync
"""

_IDENTITY_UNIT = """[Unit]
Description=Give this lab machine its name, addresses and SSH host keys
DefaultDependencies=no
After=local-fs.target systemd-remount-fs.service
Before=network-pre.target systemd-networkd.service systemd-hostnamed.service ssh.service
Wants=network-pre.target
[Service]
Type=oneshot
ExecStart=/usr/local/sbin/lab-identity
RemainAfterExit=yes
[Install]
WantedBy=multi-user.target
"""

# $1 is the new root. Units are linked by systemctl --root, which needs no running systemd.
_CUSTOMIZE_HOOK = r"""set -eu
root=$1
chroot "$root" useradd --create-home --shell /bin/bash --user-group --groups sudo,adm debian
chroot "$root" passwd --lock root >/dev/null
printf 'debian ALL=(ALL) NOPASSWD:ALL\n' >"$root/etc/sudoers.d/90-cloud-init-users"
chmod 440 "$root/etc/sudoers.d/90-cloud-init-users"
install -d -m 700 "$root/home/debian/.ssh"
install -m 600 "$LAB_FILES/authorized_keys" "$root/home/debian/.ssh/authorized_keys"
chroot "$root" chown -R debian:debian /home/debian/.ssh
printf 'PasswordAuthentication yes\n' >"$root/etc/ssh/sshd_config.d/50-cloud-init.conf"
chmod 600 "$root/etc/ssh/sshd_config.d/50-cloud-init.conf"
rm -f "$root"/etc/ssh/ssh_host_*
install -m 644 "$LAB_FILES/debian.sources" "$root/etc/apt/sources.list.d/debian.sources"
rm -f "$root/etc/apt/sources.list" "$root"/etc/apt/sources.list.d/0000*
install -m 755 "$LAB_FILES/lab-identity" "$root/usr/local/sbin/lab-identity"
install -m 644 "$LAB_FILES/lab-identity.service" "$root/etc/systemd/system/lab-identity.service"
chroot "$root" systemctl enable lab-identity.service systemd-networkd.service systemd-resolved.service
ln -sf ../run/systemd/resolve/stub-resolv.conf "$root/etc/resolv.conf"
printf 'LABEL=root / ext4 defaults,errors=remount-ro 0 1\n' >"$root/etc/fstab"
: >"$root/etc/machine-id"
rm -f "$root/etc/hostname" "$root/var/lib/dbus/machine-id"
"""

Report = Callable[[str], None]


@dataclass(frozen=True)
class ImageSpec:
    """What an image is: a name, a Debian release, packages beyond the bare ones, disk size (GiB), kernel package.

    A cloud's kernel has no graphics drivers at all; linux-image-amd64 has.
    """

    name: str
    release: str = "trixie"
    packages: tuple[str, ...] = ()
    disk_gib: int = 12
    kernel: str = "linux-image-cloud-amd64"

    @property
    def every_package(self) -> list[str]:
        """What is installed, in alphabetical order."""
        return sorted({*_BASE_PACKAGES, *self.packages, self.kernel})


@dataclass(frozen=True)
class Image:
    """A built image: the qcow2 that overlays stand on, and the kernel and initrd to boot it with."""

    key: str
    disk: Path
    kernel: Path
    initrd: Path


BARE = ImageSpec("bare")


def ssh_key() -> Path:
    """The private SSH key of the lab (ed25519, no passphrase, 0600), made when absent; beside it `.pub`."""
    private = paths.keys() / "lab_ed25519"
    with locked(paths.keys() / "lock"):
        if not private.exists():
            run(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "mediahost-lab", "-f", str(private)],
                "openssh-client",
            )
    return private


def ensure_image(spec: ImageSpec = BARE, report: Report = lambda _text: None) -> Image:
    """The image of `spec`: from the cache, or built now (about two minutes). `report` gets a line a step.

    Raises LabError when a program, the mirror or disk space is missing.
    """
    mirror = debian_mirror()
    public_key = ssh_key().with_suffix(".pub").read_text(encoding="ascii")
    key = _key(spec, mirror, public_key)
    with locked(paths.images() / f"{key}.lock"):
        image = _image(key)
        if not image.disk.exists():
            _build(spec, mirror, public_key, image, report)
            _remove_older(spec, image, report)
    return image


def cached_image(key: str) -> Image | None:
    """The image with this key when it is in the cache; never builds."""
    image = _image(key)
    return image if image.disk.exists() else None


def _image(key: str) -> Image:
    directory = paths.images() / key
    return Image(key, directory / "root.qcow2", directory / "vmlinuz", directory / "initrd.img")


def _key(spec: ImageSpec, mirror: Mirror, public_key: str) -> str:
    inputs = [
        spec.release,
        spec.every_package,
        spec.disk_gib,
        mirror.uri,
        mirror.security_uri,
        mirror.dates_checked,
        public_key,
        _IDENTITY_SCRIPT,
        _IDENTITY_UNIT,
        _CUSTOMIZE_HOOK,
        _MMDEBSTRAP,
    ]
    digest = hashlib.sha256(json.dumps(inputs).encode()).hexdigest()
    return f"{spec.name}-{spec.release}-{digest[:12]}"


def _build(spec: ImageSpec, mirror: Mirror, public_key: str, image: Image, report: Report) -> None:
    free = shutil.disk_usage(paths.images()).free
    if free < NEEDED_BYTES:
        raise LabError(
            f"The image {spec.name} cannot be built",
            f"{paths.images()} has {free // 1024**2} MiB free, a build needs {NEEDED_BYTES // 1024**2}",
            "free some space there, or set XDG_CACHE_HOME to a directory on a larger disk",
        )
    for leftover in paths.images().glob(f"{image.key}.build-*"):
        _remove_tree(leftover)
    work = Path(tempfile.mkdtemp(prefix=f"{image.key}.build-", dir=paths.images()))
    try:
        # Without root, mmdebstrap's hook runs under a mapped user id that cannot enter the cache directory (0700).
        # What it reads is public: package sources, the identity unit, the public key.
        with tempfile.TemporaryDirectory(prefix="mediahost-image-") as files:
            Path(files).chmod(0o755)
            _assemble(spec, mirror, public_key, work, Path(files), report)
        (work / "whole").rename(image.disk.parent)
    finally:
        _remove_tree(work)


def _remove_older(spec: ImageSpec, built: Image, report: Report) -> None:
    """Remove images of the same name and other inputs on which no machine stands and at which nobody was lately."""
    standing = "".join(record.read_text(encoding="utf-8") for record in paths.machines().glob("*/machine.json"))
    for directory in sorted(paths.images().glob(f"{spec.name}-{spec.release}-{'[0-9a-f]' * 12}")):
        lock = directory.with_name(f"{directory.name}.lock")
        # A machine is recorded a moment after it was made, and another working copy may have other inputs.
        used = lock.stat().st_mtime if lock.exists() else 0
        if directory.name == built.key or directory.name in standing or time.time() - used < _KEPT_SECONDS:
            continue
        with locked_if_free(lock) as free:
            if free:
                report(f"Removing the image {directory.name}, on which no machine stands")
                # Under the name of a build that was killed: half an image must not look like one.
                gone = directory.rename(directory.with_name(f"{directory.name}.build-removed"))
                _remove_tree(gone)


def _assemble(spec: ImageSpec, mirror: Mirror, public_key: str, work: Path, files: Path, report: Report) -> None:
    whole = work / "whole"
    tree = work / "tree"
    for directory in (whole, tree):
        directory.mkdir()
    suites = mirror.sources(spec.release)
    # Built with the keyring this machine trusts; the guest has its own, at Debian's place.
    build_sources = files / "build.sources"
    build_sources.write_text("\n".join(mirror.stanza(*suite) for suite in suites), encoding="utf-8")
    guest_sources = "\n".join(mirror.stanza(*suite, keyring=DEFAULT_KEYRING) for suite in suites)
    (files / "debian.sources").write_text(guest_sources, encoding="utf-8")
    (files / "authorized_keys").write_text(public_key, encoding="ascii")
    (files / "lab-identity").write_text(_IDENTITY_SCRIPT, encoding="utf-8")
    (files / "lab-identity.service").write_text(_IDENTITY_UNIT, encoding="utf-8")
    hook = files / "customize"
    hook.write_text(f"#!/bin/sh\nLAB_FILES='{files}'\n{_CUSTOMIZE_HOOK}", encoding="utf-8")
    for file in files.iterdir():
        file.chmod(0o755 if file == hook else 0o644)

    report(f"Installing Debian {spec.release} into a root file system with mmdebstrap")
    tar = work / "root.tar"
    packages = ",".join(spec.every_package)
    run(
        [
            *_MMDEBSTRAP,
            f"--include={packages}",
            f"--keyring={mirror.keyring}",
            f"--customize-hook={hook}",
            *_apt_options(mirror),
            spec.release,
            str(tar),
            str(build_sources),
        ],
        "mmdebstrap",
    )
    report("Writing the root file system to a disk image")
    # fakeroot keeps the owners of the files when the build does not run as root.
    privileged = [] if os.geteuid() == 0 else ["fakeroot"]
    raw = work / "root.raw"
    with raw.open("wb") as disk:
        disk.truncate(spec.disk_gib * 1024**3)
    script = 'tar -C "$1" -xpf "$2" && mke2fs -q -t ext4 -L root -d "$1" "$3" && chmod -R u+rwX "$1"'
    run([*privileged, "sh", "-c", script, "sh", str(tree), str(tar), str(raw)], "e2fsprogs")
    for pattern, target in (("vmlinuz-*", "vmlinuz"), ("initrd.img-*", "initrd.img")):
        newest = max((tree / "boot").glob(pattern), key=lambda path: path.stat().st_mtime)
        shutil.copyfile(newest, whole / target)
    report("Converting the disk image to qcow2")
    run(["qemu-img", "convert", "-O", "qcow2", str(raw), str(whole / "root.qcow2")], "qemu-utils")


def _apt_options(mirror: Mirror) -> list[str]:
    if mirror.dates_checked:
        return []
    return ['--aptopt=Acquire::Check-Valid-Until "false"', '--aptopt=Acquire::Check-Date "false"']


def _remove_tree(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
