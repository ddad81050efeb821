"""Stage gpu: firmware, drivers and names of graphics cards, and NVIDIA's cards described to Docker.

What is to be done is decided in `mediahost.gpu`; here it is compared with the host. Off, or without a card, nothing
is looked for and nothing changes; what an earlier run left is taken away, packages apart.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import replace

from pyinfra import host
from pyinfra.api import deploy, operation

from facts.snapshot import STATE_DIRECTORY, Request, Snapshot
from mediahost import apt_sources
from mediahost.config import Settings
from mediahost.gpu import IN_CONTAINER, Card, Decision, Facts, Given, Release, Use, decide
from mediahost.render import gpu as wanted_files
from mediahost.render.compose import render_compose
from mediahost.wanted import Wanted
from operations import apt, files, manifest, owed, reboot, report, units, vendor_key
from operations.convergence import Commands, Step, converge
from operations.vendor_key import VendorKey

HELD = f"{STATE_DIRECTORY}/gpu/held"
"""Packages that are held because of us, one a line."""

CDI = f"{STATE_DIRECTORY}/gpu/cdi"
"""Is there while daemon.json has the engine's CDI feature switched on by us."""

PROVEN = f"{STATE_DIRECTORY}/gpu/proven"
"""What was tried out: a line each of subject, with what it was tried, and `ok` or what was wrong."""

_UNITS = {
    wanted_files.CDI_UNIT: wanted_files.CDI_UNIT_PATH,
    wanted_files.STARTED_UNIT: wanted_files.STARTED_UNIT_PATH,
}
_INITRAMFS = "initramfs"
_KEY_RECORDS = {name: vendor_key.record_path(name) for name in ("nvidia-toolkit", "nvidia-driver")}
_GROUPS = ("render", "video")
# Ubuntu's kernel metapackages: linux-image-generic, linux-image-generic-hwe-24.04, linux-image-virtual.
_IMAGES = "linux-image-*"
_NVIDIA = "*nvidia*"
_UTILS = re.compile(r"nvidia-utils-(\d+(?:-server)?)")
# One of these is there wherever a package brought the driver.
_DRIVER_PACKAGES = ("linux-modules-nvidia-", "nvidia-kernel-", "nvidia-dkms-", "nvidia-driver", "nvidia-headless-")
_VA = ("intel-media-va-driver-non-free", "i965-va-driver-shaders", "mesa-va-drivers", "mesa-libgallium")


def request(settings: Settings) -> Request:
    """What the snapshot must look at. Switched off: whether anything of ours is left."""
    left = Request(paths=frozenset((*wanted_files.PATHS, HELD, CDI, PROVEN)), contents=reboot.request().contents)
    if settings.gpu == "none":
        return left
    return left | Request(
        gpu=frozenset(("cards",)),
        paths=frozenset((*wanted_files.LEGACY_PATHS, wanted_files.CDI_SPEC)),
        contents=frozenset((*apt_sources.PATHS, *_KEY_RECORDS.values(), HELD, PROVEN)),
        packages=frozenset(
            (
                _IMAGES,
                _NVIDIA,
                *_VA,
                "ubuntu-drivers-common",
                "vainfo",
                "intel-opencl-icd",
                "linux-firmware",
                "firmware-misc-nonfree",
            )
            + ("firmware-intel-graphics", "firmware-amd-graphics", "libcuda1", "libnvcuvid1", "linux-headers-*")
        ),
        units=frozenset(_UNITS),
        groups=frozenset(_GROUPS),
        sysctls=reboot.request().sysctls,
    )


def release(seen: Snapshot) -> Release:
    """The distribution and kernel of the host."""
    return Release(seen.os.id, seen.os.codename, seen.os.version, seen.os.architecture, seen.gpu.kernel)


def decision(settings: Settings, seen: Snapshot, asking: Mapping[str, Use] | None = None) -> Decision:
    """What is decided for the host as it is; `asking` as in `mediahost.gpu.decide`."""
    branch = next((found[1] for found in map(_UTILS.fullmatch, sorted(seen.packages)) if found), "")
    mesa = seen.packages.get("mesa-libgallium")
    facts = Facts(
        mesa=tuple(int(number) for number in re.findall(r"\d+", mesa.version)[:3]) if mesa else (),
        branch=branch,
        closed=any(
            f"nvidia-{part}-{branch}" in seen.packages for part in ("headless-no-dkms", "dkms", "kernel-source")
        ),
        secure_boot=seen.gpu.secure_boot,
        image_packages=tuple(
            name
            for name in sorted(seen.packages)
            if re.match("linux-image-(?!unsigned)[a-z]", name) and seen.packages[name].installed
        ),
        nodes=seen.gpu.nodes,
        by_hand=bool(seen.gpu.nvidia) and not any(name.startswith(_DRIVER_PACKAGES) for name in seen.packages),
    )
    return decide(seen.gpu.cards, release(seen), settings, asking or {}, facts)


def asking(wanted: Wanted) -> dict[str, Use]:
    """The services that want a card, with their use of it."""
    return {name: use for name, use in ((each.name, each.gpu) for each in wanted.stack.services) if use != "none"}


def cdi(settings: Settings, seen: Snapshot) -> bool | None:
    """Whether the engine's CDI feature is to be on (True) or given back (False); None: it is none of ours."""
    if settings.gpu != "none" and decision(settings, seen).nvidia:
        return True
    return False if CDI in seen.paths else None


def cdi_record_steps(on: bool | None, seen: Snapshot) -> list[Step]:
    """The record of that, kept before daemon.json says so, or gone after it does not any more."""
    if on and CDI not in seen.paths:
        return [Step("CDI: is switched on in the engine", f"mkdir -p {STATE_DIRECTORY}/gpu\n: >{CDI}")]
    if on is False and CDI in seen.paths:
        return [Step("CDI: given back to the engine's own default", f"rm -f {CDI}")]
    return []


# --- what the services get


def given(wanted: Wanted, seen: Snapshot) -> dict[str, Given]:
    """The cards that are ready, by the service that gets each."""
    found: dict[str, Given] = {}
    for service, device in decision(wanted.settings, seen, asking(wanted)).devices.items():
        if device.cdi:
            if seen.gpu.nvidia and wanted_files.CDI_SPEC in seen.paths:
                found[service] = Given(cdi=device.cdi)
        elif device.card is None or (device.card.render and device.card.named):
            groups = [seen.groups[name] for name in _GROUPS if name in seen.groups][:1]
            found[service] = Given(node=device.node, groups=tuple(groups))
    return found


def fitted(wanted: Wanted, seen: Snapshot) -> Wanted:
    """`wanted` with this host's cards given to the services that ask for one."""
    if wanted.settings.gpu == "none" or not asking(wanted):
        return wanted
    cards = given(wanted, seen)
    if not cards:
        return wanted
    artefacts = render_compose(wanted.stack, wanted.settings, cards)
    return replace(wanted, stack_files=artefacts.files, containers=artefacts.containers)


def notices(wanted: Wanted, seen: Snapshot) -> Iterator[str]:
    """What the user should know of the cards and is not ours to change."""
    decided = decision(wanted.settings, seen, asking(wanted))
    yield from decided.notices
    ready = given(wanted, seen)
    for service, device in decided.devices.items():
        if service not in ready and not decided.refusals:
            yield f"service {service}: runs without {device.card or device.cdi or device.node} until that is ready"
    of_now = {*map(str, decided.cards), *(f"service {name}" for name in ready)}
    for subject, (_, outcome) in _proven(seen).items():
        if outcome == "ok" or subject not in of_now:
            continue
        if subject.startswith("service "):
            yield f"{subject}: its graphics card cannot be used inside the container: {outcome}"
        else:
            yield f"{subject}: vainfo on the host says: {outcome}. Containers bring a driver of their own"


def _proven(seen: Snapshot) -> dict[str, tuple[str, str]]:
    """Subject to what it was tried with, and the outcome."""
    lines = (line.split("\t") for line in seen.contents.get(PROVEN, "").splitlines())
    return {words[0]: (words[1], words[2]) for words in lines if len(words) == 3}


# --- steps


def refusal_steps(decided: Decision) -> list[Step]:
    """What cannot work, said before anything is changed."""
    return [Step(f"graphics: {refusal}", refusal=refusal) for refusal in decided.refusals[:1]]


def _sources(decided: Decision, seen: Snapshot) -> str:
    return wanted_files.additions(seen.contents, decided, release(seen))


def file_steps(settings: Settings, decided: Decision, seen: Snapshot) -> list[Step]:
    """Files, keys and package sources on disk; those not wanted any more gone."""
    wanted = wanted_files.files(decided, settings, release(seen), _sources(decided, seen))
    paths = {file.path for file in wanted}
    if decided.nvidia:
        paths.add(wanted_files.TOOLKIT_KEYRING)
    if wanted_files.DRIVER_PATH in paths:
        paths.add(wanted_files.DRIVER_KEYRING)
    steps = manifest.enter_steps(dict.fromkeys(paths, ""), seen)
    if decided.nvidia:
        left = [path for path in wanted_files.LEGACY_PATHS if path in seen.paths]
        steps += [Step(f"{path}: stands beside ours, is removed", f"rm -f {path}") for path in left]
        steps += vendor_key.key_steps(_toolkit_key(settings), seen)
    if wanted_files.DRIVER_PATH in paths:
        steps += vendor_key.key_steps(_driver_key(settings, release(seen)), seen)
    for path, pending, then in (
        (wanted_files.UDEV_PATH, None, _RENAME),
        (wanted_files.MODPROBE_PATH, _INITRAMFS, ""),
        (wanted_files.CDI_UNIT_PATH, wanted_files.CDI_UNIT, owed.RELOAD),
        (wanted_files.STARTED_UNIT_PATH, wanted_files.STARTED_UNIT, owed.RELOAD),
    ):
        found = files.steps([file for file in wanted if file.path == path], seen, pending=pending)
        steps += found
        if found and then:
            steps.append(Step(f"{path}: taken into use", then))
    nameless = [card for card in decided.cards if card.maker != "nvidia" and card.render and not card.named]
    if nameless and not any(step.change.startswith(wanted_files.UDEV_PATH) for step in steps):
        steps.append(Step(f"{nameless[0]}: udev has not named it", _RENAME))
    rest = [file for file in wanted if file.path.startswith("/etc/apt/")]
    return [*steps, *files.steps(rest, seen), *_removal_steps(paths, seen)]


_RENAME = """udevadm control --reload
udevadm trigger --subsystem-match=drm --action=change
udevadm settle --timeout=30"""


def _removal_steps(wanted: set[str], seen: Snapshot) -> list[Step]:
    left = [path for path in wanted_files.PATHS if path in seen.paths and path not in wanted]
    if not left:
        return []
    lines = []
    gone = [unit for unit, path in _UNITS.items() if path in left]
    lines += [units.stopped(unit) for unit in gone]
    if wanted_files.MODPROBE_PATH in left:
        lines.append(owed.mark(_INITRAMFS))
    lines.append(f"rm -f {' '.join(left)}")
    if wanted_files.UDEV_PATH in left:
        lines.append(_RENAME)
    if gone:
        lines.append(owed.RELOAD)
    changes = [Step(f"{path}: not wanted any more") for path in left]
    return [*changes[:-1], Step(changes[-1].change, "\n".join(lines))]


def _toolkit_key(settings: Settings) -> VendorKey:
    return VendorKey(
        name="nvidia-toolkit",
        vendor="NVIDIA",
        keyring=wanted_files.TOOLKIT_KEYRING,
        url=wanted_files.toolkit_key_url(settings),
        fingerprint=settings.gpu_toolkit_apt_fingerprint,
        url_setting="gpu_toolkit_apt_url",
        fingerprint_setting="gpu_toolkit_apt_fingerprint",
    )


def _driver_key(settings: Settings, on: Release) -> VendorKey:
    return VendorKey(
        name="nvidia-driver",
        vendor="NVIDIA",
        keyring=wanted_files.DRIVER_KEYRING,
        url=wanted_files.driver_key_url(settings, on),
        fingerprint=settings.gpu_nvidia_apt_fingerprint,
        url_setting="gpu_nvidia_apt_url",
        fingerprint_setting="gpu_nvidia_apt_fingerprint",
    )


def packages(decided: Decision) -> tuple[str, ...]:
    """Every package the cards ask for."""
    names = [*decided.packages]
    if decided.driver:
        names += [*decided.driver.modules, *decided.driver.userland]
    if decided.nvidia:
        names += wanted_files.TOOLKIT_PACKAGES
    return tuple(sorted(set(names)))


def package_steps(decided: Decision, seen: Snapshot) -> list[Step]:
    """Packages in; kernel modules are built meanwhile."""
    found = apt.install_steps(packages(decided), seen)
    if not found:
        return _kernel_steps(decided, seen)
    return [*_branch_steps(decided, seen), *found]


def _branch_steps(decided: Decision, seen: Snapshot) -> list[Step]:
    """Ubuntu's own word on whether the branch drives the cards, before its driver is installed for the first time."""
    driver = decided.driver
    if driver is None or driver.dkms or f"nvidia-utils-{driver.branch}" in seen.packages:
        return []
    name = f"nvidia-driver-{driver.branch}{'-open' if driver.open_modules else ''}"
    told = f"ubuntu-drivers does not offer {name} for this host's cards, but:"
    mend = "Set gpu_nvidia_branch to the number of one that it offers"
    # Without lists it offers nothing at all, and then apt will tell why.
    command = f"""offered=$(ubuntu-drivers list --gpgpu 2>/dev/null | sed 's/[, ].*//' | sort -u)
case "
$offered
" in
  *"
{name}
"*) ;;
  *[a-z]*) printf '%s\\n' {shlex.quote(told)} "$offered" {shlex.quote(mend)} >&2; exit 1 ;;
esac"""
    tool = apt.install_steps(("ubuntu-drivers-common",), seen)
    return [*tool, Step(f"{name}: ubuntu-drivers is asked whether it fits", command)]


def _kernel_steps(decided: Decision, seen: Snapshot) -> list[Step]:
    """The signed module for the newest kernel. It is held while kernels are not: without it a boot loses the card."""
    driver = decided.driver
    if driver is None or driver.dkms:
        return []
    kernels = [name.removeprefix("linux-image-") for name in seen.packages if re.match(r"linux-image-\d", name)]
    kernels = [kernel for kernel in kernels if seen.packages[f"linux-image-{kernel}"].installed]
    if not kernels:
        return []
    newest = max(kernels, key=lambda kernel: [int(number) for number in re.findall(r"\d+", kernel)])
    kind = f"{driver.branch}{'-open' if driver.open_modules else ''}"
    module = f"linux-modules-nvidia-{kind}-{newest}"
    if module in seen.packages and seen.packages[module].installed:
        return []
    # Libraries and module are of one version, so all of them go along.
    names = " ".join((*driver.modules, *driver.userland, module))
    command = apt.APT + "apt update >/dev/null\n"
    command += f"apt install --no-install-recommends --allow-change-held-packages {names} >/dev/null"
    return [
        Step(f"Linux {newest}: has no NVIDIA module yet (transcodes on NVIDIA cards stop)", command, timeout=3600)
    ]


def _initramfs_steps(seen: Snapshot, changed: bool = False) -> list[Step]:
    """The initial file system made anew where options of modules changed; `changed` says that a step before does."""
    if _INITRAMFS not in seen.pending and not changed:
        return []
    # Ubuntu 26.04 has dracut.
    command = f"""if command -v update-initramfs >/dev/null; then update-initramfs -u -k all >/dev/null
elif command -v dracut >/dev/null; then dracut --force --regenerate-all
fi
{owed.clear(_INITRAMFS)}"""
    return [Step("initramfs: modules have other options, is made anew", command, timeout=1800)]


def hold_steps(settings: Settings, decided: Decision, seen: Snapshot) -> list[Step]:
    """NVIDIA's packages held, so that no update breaks what is being transcoded; released when that ends."""
    held = set(seen.contents.get(HELD, "").split())
    if not (settings.gpu_hold and decided.nvidia):
        if HELD not in seen.paths:
            return []
        command = f"xargs -r apt-mark unhold <{HELD} >/dev/null\nrm -f {HELD}"
        return [Step("NVIDIA's packages: are not held any more", command)]
    ours = sorted(name for name in seen.packages if "nvidia" in name and seen.packages[name].installed)
    ours = [name for name in ours if name in held or not seen.packages[name].held]
    missing = [name for name in ours if not seen.packages[name].held or name not in held]
    if not missing:
        return []
    lines = "\n".join(sorted({*ours, *held}))
    command = f"""mkdir -p {STATE_DIRECTORY}/gpu
printf '%s\\n' {shlex.quote(lines)} >{HELD}
apt-mark hold {" ".join(map(shlex.quote, missing))} >/dev/null"""
    changes = [Step(f"package {name}: not held") for name in missing]
    return [*changes[:-1], Step(changes[-1].change, command)]


def reasons(settings: Settings, decided: Decision, seen: Snapshot) -> list[str]:
    """Why the host has to boot anew before its cards are of use."""
    found = []
    installed = all(name in seen.packages and seen.packages[name].installed for name in packages(decided))
    if decided.driver and installed:
        bound = [card for card in decided.cards if card.driver == "nouveau"]
        if bound:
            found.append(f"nouveau drives {bound[0]} until the next boot")
        program = next((seen.packages[name] for name in _programs(decided) if name in seen.packages), None)
        loaded = seen.gpu.nvidia
        if loaded and program and loaded not in program.version:
            found.append(f"NVIDIA's module {loaded} is loaded and its programs are {program.version}")
    for card in decided.cards:
        if card.maker != "nvidia" and not card.driver and installed:
            found.append(f"{card} has no driver; the kernel looks for its firmware while it boots")
    if wanted_files.low_power(decided, settings) and seen.gpu.guc not in ("", "2", "3"):
        found.append("i915 reads enable_guc while it boots")
    return found


def _programs(decided: Decision) -> tuple[str, ...]:
    """The packages one of which has nvidia-smi."""
    branch = decided.driver.branch if decided.driver else ""
    return (f"nvidia-utils-{branch}", "nvidia-utils", "nvidia-smi", "nvidia-driver-cuda")


def module_steps(decided: Decision, seen: Snapshot) -> list[Step]:
    """NVIDIA's module loaded. Where it cannot be, a reboot into the kernel it was built for is asked for."""
    if not decided.driver or seen.gpu.nvidia or any(card.driver == "nouveau" for card in decided.cards):
        return []
    if _unfinished(decided, seen) or _NO_MODULE in reboot.asked(seen):
        return []
    asked = reboot.asked_steps((_NO_MODULE,), seen)
    if any(step.refusal for step in asked):
        return asked
    command = f"modprobe nvidia 2>/dev/null || {{\n{asked[-1].command if asked else ':'}\n}}"
    return [Step("NVIDIA's module: not loaded", command)]


def _unfinished(decided: Decision, seen: Snapshot) -> bool:
    """Whether packages or the initial file system are still to come: nothing can be said of modules before."""
    return bool(package_steps(decided, seen)) or _INITRAMFS in seen.pending


_NO_MODULE = "NVIDIA's module fits no kernel but one that is not running"


def reboot_steps(settings: Settings, decided: Decision, seen: Snapshot) -> list[Step]:
    """A reboot asked for, or not any more."""
    found = reasons(settings, decided, seen)
    if decided.driver and not seen.gpu.nvidia and not found and _NO_MODULE in reboot.asked(seen):
        return []
    if _unfinished(decided, seen):
        return []
    return reboot.asked_steps(found, seen)


def proof_steps(decided: Decision, seen: Snapshot) -> list[Step]:
    """Each card tried out once with the software it has now: vainfo, or nvidia-smi."""
    if package_steps(decided, seen):
        return []
    known = _proven(seen)
    steps = []
    for card in decided.cards:
        with_what = _software(card, seen)
        if with_what and known.get(str(card), ("", ""))[0] != with_what:
            what = "nvidia-smi" if card.maker == "nvidia" else "vainfo"
            steps.append(Step(f"{card}: not tried with {what} yet", _trial(card, with_what)))
    return steps


def _software(card: Card, seen: Snapshot) -> str:
    """What a trial of the card depends on; empty while there is nothing to try."""
    if card.maker == "nvidia":
        return seen.gpu.nvidia
    if not (card.render and card.named):
        return ""
    drivers = " ".join(seen.packages[name].version for name in _VA if name in seen.packages)
    return f"Linux {seen.gpu.kernel}, {drivers}"


def _trial(card: Card, with_what: str) -> str:
    """Shell that tries the card and notes the outcome. NVIDIA's must answer; a VA-API driver may be too old."""
    if card.maker == "nvidia":
        trial = f"""nvidia-smi -L >/dev/null || {{
  echo {shlex.quote(f"{card}: nvidia-smi -L fails; see journalctl -k and nvidia-smi")} >&2
  exit 1; }}
outcome=ok"""
    else:
        entry = "VAEntrypointEncSlice" if card.maker == "intel" else "VAEntrypointVLD"
        trial = f"""outcome=$(vainfo --display drm --device {card.node} 2>&1) || outcome="fails: $outcome"
case $outcome in
  fails*) ;;
  *{entry}*) outcome=ok ;;
  *) outcome='no {entry}' ;;
esac"""
    return f"{trial}\n{_noted(str(card), with_what)}"


def _noted(subject: str, with_what: str) -> str:
    """Shell that notes `$outcome` of a trial, on one line."""
    subject = shlex.quote(subject)
    return f"""outcome=$(printf '%s' "$outcome" | tr '\\n\\t' '  ' | cut -c 1-200)
mkdir -p {STATE_DIRECTORY}/gpu
{{ [ ! -f {PROVEN} ] || grep -vF {subject} {PROVEN} || true
  printf '%s\\t%s\\t%s\\n' {subject} {shlex.quote(with_what)} "$outcome"; }} >{PROVEN}.new
mv -f {PROVEN}.new {PROVEN}"""


def inside_steps(wanted: Wanted, seen: Snapshot) -> list[Step]:
    """Each container's card tried from inside, once for each container."""
    if wanted.settings.gpu == "none":
        return []
    known = _proven(seen)
    steps = []
    for service, card in given(wanted, seen).items():
        running = [each for each in seen.containers if each.service == service and each.state == "running"]
        for container in running[:1]:
            subject, name = f"service {service}", container.id[:12]
            if known.get(subject, ("", ""))[0] == name:
                continue
            owner = wanted.stack.service(service)
            user = f"{owner.uid}:{owner.gid}" if owner else "0:0"
            test = "nvidia-smi -L" if card.cdi else f"sh -c ': <>{IN_CONTAINER}'"
            # An image without that program is no fault of the card's: told, and nothing fails.
            trial = f"""if outcome=$(docker exec -u {user} {name} {test} 2>&1); then outcome=ok
else outcome="fails: $outcome"
fi"""
            steps.append(
                Step(f"{subject}: its card is not tried from inside yet", f"{trial}\n{_noted(subject, name)}")
            )
    return steps


def cdi_steps(decided: Decision, seen: Snapshot) -> list[Step]:
    """NVIDIA's cards described to Docker, once their driver runs."""
    if not decided.nvidia or not seen.gpu.nvidia:
        return []
    if not all(name in seen.packages for name in wanted_files.TOOLKIT_PACKAGES):
        return []
    unread = [step for unit, path in _UNITS.items() for step in units.unread_steps(unit, path, seen)]
    found = unread or [step for unit in _UNITS for step in units.steps(unit, seen, interrupts="no container")]
    if found or wanted_files.CDI_SPEC in seen.paths:
        return found
    return [Step(f"{wanted_files.CDI_SPEC}: missing", f"systemctl restart {wanted_files.CDI_UNIT}")]


def prepared_steps(wanted: Wanted, seen: Snapshot) -> list[Step]:
    """Everything that needs no reboot: files, packages, holds."""
    decided = decision(wanted.settings, seen, asking(wanted))
    if decided.refusals:
        return refusal_steps(decided)
    on_disk = file_steps(wanted.settings, decided, seen)
    options = any(step.change.startswith(wanted_files.MODPROBE_PATH) for step in on_disk)
    return [
        *on_disk,
        *package_steps(decided, seen),
        *_initramfs_steps(seen, options),
        *hold_steps(wanted.settings, decided, seen),
        *module_steps(decided, seen),
        *reboot_steps(wanted.settings, decided, seen),
        *_forgotten_steps(decided, seen),
    ]


def _forgotten_steps(decided: Decision, seen: Snapshot) -> list[Step]:
    if decided.cards or decided.devices or PROVEN not in seen.paths:
        return []
    return [Step("graphics: what was tried out is forgotten", f"rm -f {PROVEN}")]


def ready_steps(wanted: Wanted, seen: Snapshot) -> list[Step]:
    """What comes once the driver runs: the description for Docker, and the trial."""
    decided = decision(wanted.settings, seen, asking(wanted))
    if decided.refusals:
        return []
    return [*proof_steps(decided, seen), *cdi_steps(decided, seen)]


def steps(wanted: Wanted, seen: Snapshot) -> list[Step]:
    """Everything this stage would still do before the stack."""
    return [*prepared_steps(wanted, seen), *ready_steps(wanted, seen)]


@operation()
def prepared(wanted: Wanted) -> Commands:
    """
    Drivers, firmware and names of graphics cards.

    + wanted: the host as it should be
    """
    yield from converge(lambda seen: prepared_steps(wanted, seen))


@operation()
def settled(wanted: Wanted) -> Commands:
    """
    The same after a reboot: that it is not asked for any more, or that it did not help.

    + wanted: the host as it should be
    """
    # A plan would name every difference twice.
    if reboot.happened():
        yield from converge(lambda seen: prepared_steps(wanted, seen))
    else:
        host.noop("this run has not rebooted the host")


@operation()
def ready(wanted: Wanted) -> Commands:
    """
    Cards that were tried out, and described to Docker.

    + wanted: the host as it should be
    """
    yield from converge(lambda seen: ready_steps(wanted, seen))


@operation()
def inside(wanted: Wanted) -> Commands:
    """
    Cards that were tried from inside the containers that have them; what cannot be used is told.

    + wanted: the host as it should be
    """

    def untried(seen: Snapshot) -> list[Step]:
        steps = inside_steps(wanted, seen)
        for told in () if steps else notices(wanted, seen):
            report.notice(told)
        return steps

    yield from converge(untried)


@deploy("gpu")
def provision(wanted: Wanted) -> None:
    """The whole stage, in order."""
    settings = wanted.settings
    prepared(name="drivers", wanted=wanted)
    manifest.pruned(name="manifest", owned=wanted.owned)
    reboot.done(name="reboot", at=settings.unattended_reboot_time if settings.unattended_reboot else None)
    settled(name="drivers after a reboot", wanted=wanted)
    ready(name="cards", wanted=wanted)


@deploy("gpu")
def finish(wanted: Wanted) -> None:
    """After the stack."""
    inside(name="cards inside containers", wanted=wanted)
