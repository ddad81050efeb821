"""What the hardening controls put on one host: the chosen ones of `controls.CONTROLS`, and what hangs on settings.

The audit rules name the stack's own files and the administrators' keys; AIDE leaves out what changes all day.
"""

from __future__ import annotations

from collections.abc import Iterable

from mediahost.config import Settings
from mediahost.controls import (
    CONTROLS,
    DISTRIBUTION_SYSCTLS,
    EVERY,
    FORMERLY_EDITED,
    OPTIONAL,
    Assignment,
    Control,
    Insertion,
)
from mediahost.render import totp
from mediahost.resources import File, text_file

# Named so that it is read last: procps ships 99-protect-links.conf with weaker values, and the later file wins.
SYSCTL_PATH = "/etc/sysctl.d/zz-mediahost-hardening.conf"
SUDO_PATH = "/etc/sudoers.d/60-mediahost-policy"
AUDIT_PATH = "/etc/audit/rules.d/60-mediahost.rules"
# No dot: /etc/aide/aide.conf includes only names of letters, digits, - and _.
AIDE_PATH = "/etc/aide/aide.conf.d/99_mediahost_exclude"
AIDE_DATABASE = "/var/lib/aide/aide.db"

AUDIT_UNIT = "auditd.service"
APPARMOR_UNIT = "apparmor.service"

# First Ubuntu whose sudo is sudo-rs.
_SUDO_RS_SINCE = (25, 10)

# Kept small: what is written by containers and by logs all day would drown what matters.
_WATCHED: dict[str, tuple[str, ...]] = {
    "ssh": ("/etc/ssh/", "/root/.ssh/"),
    "sudo": ("/etc/sudoers", "/etc/sudoers.d/"),
    "identity": (
        "/etc/passwd",
        "/etc/group",
        "/etc/shadow",
        "/etc/gshadow",
        "/etc/security/opasswd",
        "/etc/nsswitch.conf",
        "/etc/pam.d/",
        "/etc/login.defs",
    ),
    "firewall": ("/etc/ufw/", "/etc/default/ufw", "/etc/fail2ban/"),
    "network": ("/etc/hosts", "/etc/netplan/", "/etc/network/"),
    "kernel": ("/etc/sysctl.d/", "/etc/modprobe.d/", "/etc/modules-load.d/"),
    "start": ("/etc/systemd/system/", "/etc/crontab", "/etc/cron.d/", "/etc/ld.so.preload"),
    "audit": ("/etc/audit/", "/etc/apparmor.d/"),
    # CIS Docker Benchmark 1.1; /var/lib/docker is left out, every container writes there.
    "docker": (
        "/usr/bin/docker",
        "/usr/bin/dockerd",
        "/usr/bin/containerd",
        "/usr/bin/containerd-shim-runc-v2",
        "/usr/bin/runc",
        "/usr/sbin/runc",
        "/etc/docker/",
        "/etc/containerd/",
        "/etc/default/docker",
        "/usr/lib/systemd/system/docker.service",
        "/usr/lib/systemd/system/docker.socket",
        "/usr/lib/systemd/system/containerd.service",
        "/run/docker.sock",
        "/run/containerd/containerd.sock",
    ),
    "mediahost": ("/var/lib/mediahost/",),
}


def controls(settings: Settings) -> tuple[Control, ...]:
    """The controls that are on."""
    return tuple(
        control
        for control in CONTROLS
        if settings.hardening and _asked(settings, control) and control.name not in settings.hardening_disabled
    )


def _asked(settings: Settings, control: Control) -> bool:
    if control.switch == OPTIONAL:
        return not {control.name, EVERY}.isdisjoint(settings.hardening_optional)
    return bool(getattr(settings, control.switch))


def sysctls(settings: Settings, distribution: str) -> dict[str, str]:
    """Kernel settings by name. A key of `sysctl_extra` is the user's, so it is left out here."""
    chosen = {key: value for control in controls(settings) for key, value in control.sysctls.items()}
    chosen |= {key: value for key, value in DISTRIBUTION_SYSCTLS.get(distribution, {}).items() if key in chosen}
    theirs = {key.replace("/", ".") for key in settings.sysctl_extra}
    return {key: value for key, value in sorted(chosen.items()) if key not in theirs}


def sysctl_file(settings: Settings, distribution: str) -> File | None:
    """The drop-in that sysctl.d(5) reads at boot."""
    chosen = sysctls(settings, distribution)
    if not chosen:
        return None
    return text_file(SYSCTL_PATH, *(f"{key} = {value}" for key, value in chosen.items()))


def has_sudo_rs(distribution: str, version: str) -> bool:
    """Whether the distribution's sudo is sudo-rs, which knows few of sudo's settings and refuses the others."""
    parts = tuple(int(part) for part in version.split(".") if part.isdigit())
    return distribution == "ubuntu" and parts >= _SUDO_RS_SINCE


def sudo_file(settings: Settings, distribution: str, version: str) -> File | None:
    """Defaults of sudo for everybody; checked by visudo, since a bad file locks everybody out."""
    names = {control.name for control in controls(settings)}
    lines = []
    if "sudo" in names:
        lines += ["Defaults use_pty", "Defaults passwd_tries=3", "Defaults timestamp_timeout=5"]
    if "umask" in names and not has_sudo_rs(distribution, version):
        # Packages' scripts expect root's usual umask; a login's 027 would leave files only root can read.
        lines += ["Defaults umask=0022", "Defaults umask_override"]
    if not lines:
        return None
    return text_file(SUDO_PATH, *lines, mode="0440", check="/usr/sbin/visudo -cqf {}")


def files(settings: Settings) -> tuple[File, ...]:
    """Drop-ins that are the same on every distribution."""
    return tuple(file for control in controls(settings) for file in control.files)


def every_file(settings: Settings, distribution: str = "debian", version: str = "13") -> tuple[File, ...]:
    """All files of ours, to be read by a person; those of one distribution where they differ."""
    optional = (
        sysctl_file(settings, distribution),
        sudo_file(settings, distribution, version),
        audit_file(settings),
        aide_file(settings),
    )
    return (*files(settings), *replacements(settings), *(file for file in optional if file is not None))


def replacements(settings: Settings) -> tuple[File, ...]:
    """Files of the distribution that are replaced as a whole."""
    return tuple(file for control in controls(settings) for file in control.replacements)


def edits(settings: Settings) -> dict[str, list[Assignment | Insertion]]:
    """Changes inside the distribution's files, by path; a path without any gets its former lines back."""
    found: dict[str, list[Assignment | Insertion]] = {edit.path: [] for control in CONTROLS for edit in control.edits}
    found |= {path: [] for path in FORMERLY_EDITED}
    for control in controls(settings):
        for edit in control.edits:
            found[edit.path].append(edit)
    return found


def modes(settings: Settings) -> dict[str, str]:
    """Modes by path, of what exists."""
    return {path: mode for control in controls(settings) for path, mode in control.modes.items()}


def mounts(settings: Settings) -> dict[str, frozenset[str]]:
    """Options by mount point."""
    return {point: options for control in controls(settings) for point, options in control.mounts.items()}


def units(settings: Settings) -> tuple[str, ...]:
    """Units that must run, where what they belong to is installed."""
    return tuple(unit for control in controls(settings) for unit in control.units)


def packages(settings: Settings) -> tuple[str, ...]:
    """Names of packages."""
    return tuple(sorted({name for control in controls(settings) for name in control.packages}))


def audit_file(settings: Settings) -> File | None:
    """Rules that auditd loads at boot; None when it is off."""
    if not _on(settings, "audit"):
        return None
    watched = {**_WATCHED}
    watched["ssh"] += tuple(f"/home/{name}/.ssh/" for name in sorted(settings.admins))
    watched["mediahost"] += (f"{settings.stack_root}/compose.yaml",)
    # -i: a path that this host does not have must not end the loading of the rules after it.
    lines = ["-i"]
    for key, paths in watched.items():
        for path in paths:
            kind = "dir" if path.endswith("/") else "path"
            lines.append(f"-a always,exit -F {kind}={path.rstrip('/')} -F perm=wa -F key=mediahost-{key}")
    lines.append("-a always,exit -F arch=b64 -S init_module,finit_module,delete_module -F key=mediahost-modules")
    return text_file(AUDIT_PATH, *lines, mode="0640")


def aide_file(settings: Settings) -> File | None:
    """What AIDE does not look at; None when it is off."""
    if not _on(settings, "file-integrity"):
        return None
    # pam_google_authenticator notes each login beside the secret.
    codes = (totp.DIRECTORY,) if settings.sshd_totp else ()
    roots = (*codes, settings.data_root, settings.downloads_root, settings.stack_root)
    left_out = ("/var/lib/docker", "/var/lib/containerd", "/var/lib/mediahost", "/var/log/audit", *roots)
    return text_file(AIDE_PATH, *(f"!{path}" for path in dict.fromkeys(left_out)))


def owned(settings: Settings) -> dict[str, str]:
    """Paths of every file above that is wanted, each with the unit that depends on it or ""."""
    paths = {file.path: "" for file in files(settings)}
    # Whether these exist does not hang on the distribution, only what they say.
    optional: Iterable[File | None] = (
        sysctl_file(settings, ""),
        sudo_file(settings, "", ""),
        aide_file(settings),
    )
    paths |= {file.path: "" for file in optional if file is not None}
    if audit_file(settings) is not None:
        paths[AUDIT_PATH] = AUDIT_UNIT
    return paths


def _on(settings: Settings, name: str) -> bool:
    return any(control.name == name for control in controls(settings))
