"""The base of a host: package settings, kernel settings, journal, time, unattended upgrades.

Every value has its reason beside it; the numbers are those of the reference on Debian and Ubuntu hosts.
"""

from __future__ import annotations

from mediahost.config import Settings
from mediahost.render import wall
from mediahost.resources import File, text_file

# acl: default ACLs of the media tree · gpg: fingerprints of vendor keys · systemd-timesyncd is a package of its
# own on Debian, and a minimal image has none.
PACKAGES = ("acl", "ca-certificates", "curl", "gpg", "sudo", "tzdata")

SYSCTL = {
    # Sonarr, Radarr and friends watch every directory; the kernel's 128 instances end at the third service.
    "fs.inotify.max_user_instances": "1024",
    "fs.inotify.max_user_watches": "524288",
    # Databases and search indexes of media services map more areas than the kernel's old default allows.
    "vm.max_map_count": "262144",
    # QUIC (Caddy's HTTP/3) and torrents want larger socket buffers; 7.5 MB is what quic-go asks for.
    "net.core.rmem_max": "7500000",
    "net.core.wmem_max": "7500000",
    "vm.swappiness": "10",
}

SYSCTL_PATH = "/etc/sysctl.d/60-mediahost.conf"
JOURNALD_PATH = "/etc/systemd/journald.conf.d/60-mediahost.conf"
TIMESYNCD_PATH = "/etc/systemd/timesyncd.conf.d/60-mediahost.conf"
APT_LOCK_PATH = "/etc/apt/apt.conf.d/90mediahost"
AUTO_UPGRADES_PATH = "/etc/apt/apt.conf.d/20auto-upgrades"
UNATTENDED_PATH = "/etc/apt/apt.conf.d/52mediahost-unattended-upgrades"


def packages(settings: Settings) -> tuple[str, ...]:
    """Names of the packages every host gets."""
    chosen = set(PACKAGES) | set(settings.packages_extra)
    if settings.unattended_upgrades:
        chosen.add("unattended-upgrades")
    if settings.firewall:
        chosen |= {"ufw", "iptables"}
    return tuple(sorted(chosen))


def sysctls(settings: Settings) -> dict[str, str]:
    """Kernel settings by name; the user's win."""
    tunnel = {} if settings.vpn_provider == "none" else wall.SYSCTLS
    return {**SYSCTL, **tunnel, **settings.sysctl_extra}


def apt_files(settings: Settings) -> tuple[File, ...]:
    """Settings of apt and of unattended upgrades."""
    return (
        # apt-get, unlike apt, does not wait for a lock held by unattended upgrades; 600 s outlives them.
        text_file(APT_LOCK_PATH, 'DPkg::Lock::Timeout "600";', comment="//"),
        text_file(AUTO_UPGRADES_PATH, _auto_upgrades(settings), comment="//"),
        text_file(UNATTENDED_PATH, _unattended(settings), comment="//"),
    )


def sysctl_file(settings: Settings) -> File:
    """The drop-in that sysctl.d(5) reads at boot."""
    return text_file(SYSCTL_PATH, "\n".join(f"{key} = {value}" for key, value in sorted(sysctls(settings).items())))


def journald_file(settings: Settings) -> File:
    """Limits of the journal: it must not eat the disk the databases are on."""
    lines = (
        "[Journal]",
        "Storage=persistent",
        f"SystemMaxUse={settings.journald_max_use.upper()}",
        f"MaxRetentionSec={settings.journald_max_retention}",
    )
    return text_file(JOURNALD_PATH, "\n".join(lines))


def timesyncd_file(settings: Settings) -> File | None:
    """Time servers, when the user names some."""
    if not settings.ntp_servers:
        return None
    return text_file(TIMESYNCD_PATH, f"[Time]\nNTP={' '.join(settings.ntp_servers)}")


def _auto_upgrades(settings: Settings) -> str:
    on = "1" if settings.unattended_upgrades else "0"
    return f'APT::Periodic::Update-Package-Lists "{on}";\nAPT::Periodic::Unattended-Upgrade "{on}";'


def _unattended(settings: Settings) -> str:
    blacklist = "\n".join(f'    "{pattern}";' for pattern in settings.unattended_blacklist)
    reboot = "true" if settings.unattended_reboot else "false"
    return "\n".join(
        (
            "Unattended-Upgrade::Package-Blacklist {",
            blacklist,
            "};",
            f'Unattended-Upgrade::Automatic-Reboot "{reboot}";',
            f'Unattended-Upgrade::Automatic-Reboot-Time "{settings.unattended_reboot_time}";',
            'Unattended-Upgrade::Remove-Unused-Kernel-Packages "true";',
        )
    )
