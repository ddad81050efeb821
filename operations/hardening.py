"""Stage hardening: the controls of mediahost/controls.py, and what each changed given back when it is switched off.

Owned drop-ins go with the manifest and lines in the distribution's files carry their former text beside them. What
has no such place (a running kernel setting, a mode, a mount option, a package) is noted in `FORMER_PATH` before it
is changed for the first time, and put back from there.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable

from pyinfra.api import deploy, operation

from facts.snapshot import STATE_DIRECTORY, Request, Snapshot
from mediahost.config import Settings
from mediahost.controls import CONTROLS, IRREVERSIBLE_SYSCTLS, USB_BUS, USB_UNIT
from mediahost.render import base as base_artefacts
from mediahost.render import hardening as wanted
from mediahost.render import marked
from mediahost.resources import File
from operations import apt, base, files, owed, report, units
from operations.convergence import Commands, Step, converge
from operations.guard import Guard

FORMER_PATH = f"{STATE_DIRECTORY}/former"
_COPIES = f"{STATE_DIRECTORY}/former-files"

_SU_PATH = "/etc/pam.d/su"
_REMOUNT_UNIT = "systemd-remount-fs.service"
_AIDE_TIMER = "dailyaidecheck.timer"

# Read as files: each costs no process.
_MOUNTS = "/proc/mounts"
_LSM = "/sys/kernel/security/lsm"
_KERNEL_COMMAND_LINE = "/proc/cmdline"
# systemd writes it where it runs in a container, whose kernel and audit are the host's.
_IN_CONTAINER = "/run/systemd/container"

# A container has neither a kernel's accounting nor a bus of its own.
_HOSTS_ONLY = frozenset({"acct", "usbguard"})
# USBGuard leaves the kernel refusing whatever is plugged in next.
_ADMIT_USB = (
    f"for port in {USB_BUS}/usb*/authorized_default; do\n"
    '  if [ -e "$port" ]; then echo 1 >"$port"; fi\n'
    "done\n"
    f"for device in {USB_BUS}/*/authorized; do\n"
    '  if [ -e "$device" ] && [ "$(cat "$device")" = 0 ]; then echo 1 >"$device"; fi\n'
    "done"
)
# The service loads the rules when it starts; one that runs takes new ones this way and refuses a restart on some
# distributions.
_LOAD_RULES = f"systemctl start {wanted.AUDIT_UNIT}\naugenrules --load >/dev/null"

Former = dict[tuple[str, str], str]
"""By kind (sysctl, mode, mount, package) and name: the value from before our first change."""


def request(settings: Settings) -> Request:
    """What the snapshot must look at, also for controls that are off: they have to be undone."""
    modes = (path for control in CONTROLS for path in control.modes)
    replaced = [file.path for control in CONTROLS for file in control.replacements]
    ours = wanted.owned(settings)
    return Request(
        paths=frozenset(
            (*ours, *modes, *replaced, *map(_copy, replaced), _IN_CONTAINER, USB_BUS, wanted.AIDE_DATABASE)
        ),
        contents=frozenset((*wanted.edits(settings), FORMER_PATH, _MOUNTS, _LSM, _KERNEL_COMMAND_LINE)),
        packages=frozenset(name for control in CONTROLS for name in control.packages),
        units=frozenset(
            (wanted.AUDIT_UNIT, wanted.APPARMOR_UNIT, _REMOUNT_UNIT, _AIDE_TIMER, *wanted.units(settings))
        ),
        sysctls=frozenset(key for control in CONTROLS for key in control.sysctls),
    )


def steps(settings: Settings, seen: Snapshot) -> list[Step]:
    """Everything this stage would still do."""
    return [*access_steps(settings, seen), *control_steps(settings, seen)]


def control_steps(settings: Settings, seen: Snapshot) -> list[Step]:
    """What cannot keep anybody out."""
    return [
        *_note_steps(settings, seen),
        *_unload_steps(settings, seen),
        # Before the packages: what they start at once must not start with the distribution's defaults.
        *files.steps(_drop_ins(settings, seen), seen),
        *apt.install_steps(_packages(settings, seen), seen),
        *audit_rule_steps(settings, seen),
        *edit_steps(settings, seen),
        *replacement_steps(settings, seen),
        *base.sysctl_steps(wanted.sysctls(settings, seen.os.id), seen),
        *mode_steps(settings, seen),
        *mount_steps(settings, seen),
        *give_back_steps(settings, seen),
        *_unit_steps(settings, seen),
    ]


def access_steps(settings: Settings, seen: Snapshot) -> list[Step]:
    """sudo's policy and who may use su: what could keep an administrator out."""
    sudo = wanted.sudo_file(settings, seen.os.id, seen.os.version)
    return [*files.steps((sudo,) if sudo else (), seen), *edit_steps(settings, seen, (_SU_PATH,))]


def audit_rule_steps(settings: Settings, seen: Snapshot) -> list[Step]:
    """The audit rules' file. They are loaded by `watch_steps`, when all they name is there."""
    rules = wanted.audit_file(settings)
    return files.steps((rules,), seen, wanted.AUDIT_UNIT) if rules and not audit_obstacle(seen) else []


def watch_steps(settings: Settings, seen: Snapshot) -> list[Step]:
    """auditd with the rules as they are on disk, and AIDE's first database.

    Last of all stages: a rule on a directory that is not there yet is lost, and a database from before the
    installation would report all of it.
    """
    found = []
    if wanted.audit_file(settings) and _installed("auditd", seen) and not audit_obstacle(seen):
        found += units.steps(wanted.AUDIT_UNIT, seen, _LOAD_RULES)
    if wanted.aide_file(settings) and _installed("aide-common", seen):
        if wanted.AIDE_DATABASE not in seen.paths:
            # On some releases aideinit asks before it takes the new database into use, on others it does not.
            command = (
                "aideinit -y -f >/dev/null 2>&1 </dev/null\n"
                f"[ -e {wanted.AIDE_DATABASE} ] || cp -p {wanted.AIDE_DATABASE}.new {wanted.AIDE_DATABASE}"
            )
            found.append(Step("AIDE: has no database, one is made (this takes minutes)", command, timeout=7200))
        timer = seen.units.get(_AIDE_TIMER)
        # Older releases check from cron.daily and have no timer.
        if timer is not None and timer.load == "loaded":
            found += units.steps(_AIDE_TIMER, seen)
    return found


def audit_obstacle(seen: Snapshot) -> str:
    """Why this host cannot audit, in words; empty when it can."""
    if _IN_CONTAINER in seen.paths:
        return "this host is a container, and only its own host's kernel can audit"
    if "audit=0" in seen.contents.get(_KERNEL_COMMAND_LINE, "").split():
        return "the kernel was started with audit=0; remove that from its command line"
    return ""


def notices(settings: Settings, seen: Snapshot) -> list[str]:
    """What is wanted and cannot be had on this host."""
    told = []
    obstacle = audit_obstacle(seen)
    if wanted.audit_file(settings) and obstacle:
        told.append(f"no audit: {obstacle}")
    lsm = seen.contents.get(_LSM)
    if "apparmor" in wanted.packages(settings) and lsm is not None and "apparmor" not in lsm.strip().split(","):
        told.append("AppArmor is off: start the kernel with apparmor=1 security=apparmor on its command line")
    return told


def edit_steps(settings: Settings, seen: Snapshot, only: Iterable[str] = ()) -> list[Step]:
    """Lines in the distribution's own files, and former lines given back."""
    found = []
    for path, edits in sorted(wanted.edits(settings).items()):
        # The file of a package that is not installed is not made.
        if path not in seen.contents or (path == _SU_PATH) != (_SU_PATH in only):
            continue
        what = "our lines are missing or differ" if edits else "our lines are not wanted any more"
        found += files.rewrite_steps(path, marked.edited(seen.contents[path], edits), seen, what)
    return found


def replacement_steps(settings: Settings, seen: Snapshot) -> list[Step]:
    """Whole files of the distribution: replaced with a copy kept, or the copy put back."""
    found = []
    chosen = {file.path: file for file in wanted.replacements(settings)}
    for path in sorted(file.path for control in CONTROLS for file in control.replacements):
        present, copy = seen.paths.get(path), _copy(path)
        if path not in chosen:
            if copy in seen.paths:
                found.append(Step(f"{path}: the former one is put back", f"mv -fT {copy} {path}"))
            continue
        # A link leads to a file that somebody else keeps.
        if present is None or present.kind != "file":
            continue
        keep = f"install -d -m 0700 {_COPIES}\n[ -e {copy} ] || cp -p {path} {copy}"
        for step in files.steps((chosen[path],), seen):
            found.append(Step(step.change, f"{keep}\n{step.command}", stdin=step.stdin))
    return found


def mode_steps(settings: Settings, seen: Snapshot) -> list[Step]:
    """Modes of what is there."""
    return [
        Step(
            f"{path}: mode is {seen.paths[path].mode.zfill(4)}, wanted {mode}",
            f"chmod {mode} {shlex.quote(path)}",
        )
        for path, mode in sorted(wanted.modes(settings).items())
        if path in seen.paths and int(seen.paths[path].mode, 8) != int(mode, 8)
    ]


def mount_steps(settings: Settings, seen: Snapshot) -> list[Step]:
    """Options of file systems that are mounted."""
    present = _mounted(seen)
    return [
        Step(
            f"{point}: mounted without {', '.join(sorted(options - present[point]))}",
            f"mount -o remount,{','.join(sorted(options))} {point}",
        )
        for point, options in sorted(wanted.mounts(settings).items())
        if point in present and options - present[point]
    ]


def former(seen: Snapshot) -> Former:
    """What is noted of the values from before our changes."""
    lines = (line.split("\t") for line in seen.contents.get(FORMER_PATH, "").split("\n"))
    return {(parts[0], parts[1]): parts[2] for parts in lines if len(parts) == 3}


def give_back_steps(settings: Settings, seen: Snapshot) -> list[Step]:
    """Former values of what is not ours to set any more."""
    found = []
    present = _present(seen)
    for (kind, name), value in sorted(_obsolete(settings, seen).items()):
        if _same(kind, present.get((kind, name)), value):
            continue
        command = {
            "sysctl": f"printf '%s\\n' {shlex.quote(value)} >/proc/sys/{name.replace('.', '/')}",
            "mode": f"chmod {value} {shlex.quote(name)}",
            "mount": f"mount -o remount,{value} {name}",
            "package": f"{apt.APT}apt purge {name} >/dev/null",
        }[kind]
        if name == "usbguard":
            command = f"{command}\n{_ADMIT_USB}"
        timeout = 3600 if kind == "package" else None
        found.append(Step(f"{kind} {name}: {value} as before, its control is off", command, timeout=timeout))
    return found


def _note_steps(settings: Settings, seen: Snapshot) -> list[Step]:
    """Values that are about to change are noted first; those that were given back are forgotten."""
    noted, present = former(seen), _present(seen)
    done = {
        key
        for key, value in _obsolete(settings, seen, elsewhere=True).items()
        if _same(key[0], present.get(key), value) or key in _elsewhere(settings)
    }
    new = {
        key: present[key]
        for key, value in _wanted_values(settings, seen).items()
        if key in present and key not in noted and not _same(key[0], present[key], value)
    }
    if not new and not done:
        return []
    kept = {**{key: value for key, value in noted.items() if key not in done}, **new}
    text = "".join(f"{kind}\t{name}\t{value}\n" for (kind, name), value in sorted(kept.items()))
    command, stdin = files.write((File(FORMER_PATH, text.encode(), mode="0600"),))
    told = [f"{len(new)} value(s) are kept, to be given back one day"] if new else []
    told += [f"{len(done)} value(s) were given back"] if done else []
    return [Step(f"former state: {', '.join(told)}", command, stdin=stdin)]


def _wanted_values(settings: Settings, seen: Snapshot) -> Former:
    values = {("sysctl", key): value for key, value in wanted.sysctls(settings, seen.os.id).items()}
    values |= {("mode", path): mode for path, mode in wanted.modes(settings).items()}
    values |= {("package", name): "installed" for name in _packages(settings, seen)}
    values |= {("mount", point): ",".join(sorted(options)) for point, options in wanted.mounts(settings).items()}
    return {key: value for key, value in values.items() if key[1] not in IRREVERSIBLE_SYSCTLS}


def _elsewhere(settings: Settings) -> set[tuple[str, str]]:
    """What another stage sets: not ours to give back."""
    return {("sysctl", key) for key in base_artefacts.sysctls(settings)} | {
        ("package", name) for name in base_artefacts.packages(settings)
    }


def _obsolete(settings: Settings, seen: Snapshot, elsewhere: bool = False) -> Former:
    ours = set(_wanted_values(settings, seen)) | (set() if elsewhere else _elsewhere(settings))
    return {key: value for key, value in former(seen).items() if key not in ours}


def _present(seen: Snapshot) -> Former:
    """The values as they are, in the words of the note."""
    values = {("sysctl", key): " ".join(value.split()) for key, value in seen.sysctls.items()}
    known = {path for control in CONTROLS for path in control.modes}
    values |= {("mode", path): state.mode.zfill(4) for path, state in seen.paths.items() if path in known}
    names = {name for control in CONTROLS for name in control.packages}
    values |= {("package", name): "installed" if _installed(name, seen) else "absent" for name in names}
    mounted = _mounted(seen)
    for control in CONTROLS:
        for point, options in control.mounts.items():
            if point in mounted:
                flags = (name if name in mounted[point] else name.removeprefix("no") for name in sorted(options))
                values[("mount", point)] = ",".join(flags)
    return values


def _same(kind: str, present: str | None, value: str) -> bool:
    # What is gone (a kernel module's setting, a removed directory) needs nothing.
    if present is None:
        return True
    return int(present, 8) == int(value, 8) if kind == "mode" else present.split() == value.split()


def _unload_steps(settings: Settings, seen: Snapshot) -> list[Step]:
    """Audit rules whose file went are taken out of the kernel, while there is still a program to do it."""
    if wanted.audit_file(settings) or wanted.AUDIT_UNIT not in seen.pending:
        return []
    command = "if command -v augenrules >/dev/null; then augenrules --load >/dev/null; fi\n"
    return [Step("audit rules: are unloaded", command + owed.clear(wanted.AUDIT_UNIT))]


def _unit_steps(settings: Settings, seen: Snapshot) -> list[Step]:
    found = []
    remount = seen.units.get(_REMOUNT_UNIT)
    if remount is not None and remount.needs_daemon_reload:
        found.append(
            Step(f"{_REMOUNT_UNIT}: its drop-ins changed since systemd read them", "systemctl daemon-reload")
        )
    lsm = seen.contents.get(_LSM, "").strip().split(",")
    if "apparmor" in lsm and _installed("apparmor", seen):
        found += units.steps(wanted.APPARMOR_UNIT, seen)
    for unit in wanted.units(settings):
        state = seen.units.get(unit)
        # Older releases start some of them without a unit.
        if state is not None and state.load == "loaded" and (unit != USB_UNIT or USB_BUS in seen.paths):
            found += units.steps(unit, seen)
    return found


def _drop_ins(settings: Settings, seen: Snapshot) -> list[File]:
    optional = (wanted.sysctl_file(settings, seen.os.id), wanted.aide_file(settings))
    return [*wanted.files(settings), *(file for file in optional if file is not None)]


def _packages(settings: Settings, seen: Snapshot) -> tuple[str, ...]:
    left_out = _HOSTS_ONLY if _IN_CONTAINER in seen.paths else frozenset()
    return tuple(
        name
        for name in wanted.packages(settings)
        if name not in left_out and (name != "auditd" or not audit_obstacle(seen))
    )


def _installed(name: str, seen: Snapshot) -> bool:
    return name in seen.packages and seen.packages[name].installed


def _mounted(seen: Snapshot) -> dict[str, set[str]]:
    lines = (line.split() for line in seen.contents.get(_MOUNTS, "").split("\n"))
    return {parts[1]: set(parts[3].split(",")) for parts in lines if len(parts) >= 4}


def _copy(path: str) -> str:
    return f"{_COPIES}/{path.rpartition('/')[2]}"


@operation()
def access(settings: Settings) -> Commands:
    """
    Who may become another user, and how.

    + settings: the host's settings
    """
    guard = Guard(paths=(wanted.SUDO_PATH, _SU_PATH))
    yield from converge(lambda seen: access_steps(settings, seen), guard)


@operation()
def controls(settings: Settings) -> Commands:
    """
    Every other control, on or given back.

    + settings: the host's settings
    """

    def missing(seen: Snapshot) -> list[Step]:
        for told in notices(settings, seen):
            report.notice(told)
        return control_steps(settings, seen)

    yield from converge(missing)


@operation()
def watched(settings: Settings) -> Commands:
    """
    Audit rules that are loaded, and AIDE's database.

    + settings: the host's settings
    """
    yield from converge(lambda seen: watch_steps(settings, seen))


@deploy("hardening")
def provision(settings: Settings) -> None:
    """The stage proper, before users and services come."""
    access(name="sudo and su", settings=settings)
    controls(name="controls", settings=settings)


@deploy("watch")
def watch(settings: Settings) -> None:
    """What has to see the finished host."""
    watched(name="audit and file integrity", settings=settings)
