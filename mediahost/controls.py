"""The hardening controls as data: what each does, who asks for it, which key switches it, what it puts on a host.

One `Control` is one line of docs/hardening.md. Nothing here depends on the settings of a host; what does (audit
rules, AIDE's exclusions) is rendered in `render/hardening.py`. What a benchmark asks for and is not done here
stands in `WAIVERS`, with the reason.

Sources: CIS is the CIS Ubuntu Linux 24.04 LTS Benchmark v1.0.0 (the Debian 12 one has the same controls), dev-sec
the DevSec Linux Baseline, Lynis its test ids, KSPP the Kernel Self Protection Project's recommended settings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from mediahost.resources import File, text_file


@dataclass(frozen=True)
class Assignment:
    """A key of a distribution's own file that has no drop-ins. Undone by `former lines`, see render/marked.py."""

    path: str
    key: str
    value: str
    separator: str = "="


@dataclass(frozen=True)
class Insertion:
    """A line that must stand after the first line that `after` (a regular expression) matches."""

    path: str
    after: str
    line: str


@dataclass(frozen=True)
class Control:
    """One control. `modes` are octal digits by path, `mounts` the wanted options by mount point.

    `replacements` are whole files of the distribution; the former one is kept and put back. `switch` is the key
    that turns it off; those of `hardening` can also be named in `hardening_disabled`. One that costs more than a
    little is off until `hardening_optional` names it, and `price` says what it costs. `units` must run where the
    packages are installed.
    """

    name: str
    does: str
    sources: tuple[str, ...]
    switch: str = "hardening"
    files: tuple[File, ...] = ()
    sysctls: Mapping[str, str] = field(default_factory=dict)
    packages: tuple[str, ...] = ()
    edits: tuple[Assignment | Insertion, ...] = ()
    modes: Mapping[str, str] = field(default_factory=dict)
    replacements: tuple[File, ...] = ()
    mounts: Mapping[str, frozenset[str]] = field(default_factory=dict)
    units: tuple[str, ...] = ()
    price: str = ""


@dataclass(frozen=True)
class Waiver:
    """Something a benchmark asks for that is left out on purpose."""

    asks: str
    sources: tuple[str, ...]
    reason: str


# agetty and sshd show these before a login. No name, no version: both help whoever should not be here.
_BANNER = """Private system. Access is restricted to authorised users.
Connections are logged and monitored; by connecting you consent to that.
Misuse may be prosecuted. If you are not authorised, disconnect now.
"""

# modprobe(8): `install NAME /bin/true` loads nothing, not even as the dependency of another module; a blacklist
# line alone stops automatic loading only.
_UNUSED_FILESYSTEMS = ("cramfs", "freevxfs", "hfs", "hfsplus", "jffs2")
_UNUSED_PROTOCOLS = ("dccp", "rds", "sctp", "tipc")
_UNUSED_BUSES = ("firewire-core", "firewire-ohci", "ohci1394")

OPTIONAL = "hardening_optional"
"""The key that names controls which are off by default."""
EVERY = "all"
"""What that key can say instead of every name."""

USB_BUS = "/sys/bus/usb/devices"
"""Missing where the kernel has no USB, as in many virtual machines."""
USB_UNIT = "usbguard.service"
# Where there is no bus its daemon would fail at each boot.
_WHERE_USB_IS = ("[Unit]", f"ConditionPathExists={USB_BUS}")


def _modprobe(name: str, modules: tuple[str, ...]) -> File:
    lines = (line for module in modules for line in (f"install {module} /bin/true", f"blacklist {module}"))
    return text_file(f"/etc/modprobe.d/mediahost-{name}.conf", *lines)


CONTROLS = (
    Control(
        "kernel-pointers",
        "hides kernel addresses and messages from users, closes BPF and perf to them, hardens the BPF compiler",
        ("KSPP", "Lynis KRNL-6000"),
        sysctls={
            "kernel.kptr_restrict": "2",
            "kernel.dmesg_restrict": "1",
            # Debian's default 2 can be turned off again by root; 1 holds until the next boot.
            "kernel.unprivileged_bpf_disabled": "1",
            "net.core.bpf_jit_harden": "2",
            "kernel.perf_event_paranoid": "3",
        },
    ),
    Control(
        "processes",
        "no magic SysRq, no tracing of foreign processes, address space randomised, no surprise terminal modules",
        ("CIS 1.5.1", "CIS 1.5.2", "dev-sec sysctl-25", "dev-sec sysctl-30", "Lynis KRNL-6000"),
        sysctls={
            "kernel.sysrq": "0",
            "kernel.ctrl-alt-del": "0",
            "kernel.yama.ptrace_scope": "1",
            "kernel.randomize_va_space": "2",
            "dev.tty.ldisc_autoload": "0",
        },
    ),
    Control(
        "links",
        "links, pipes and files in world-writable directories cannot be used to trick another user",
        ("KSPP", "Lynis KRNL-6000"),
        sysctls={
            "fs.protected_fifos": "2",
            "fs.protected_hardlinks": "1",
            "fs.protected_regular": "2",
            "fs.protected_symlinks": "1",
        },
    ),
    Control(
        "network",
        "no redirects, no source routing, bogus packets ignored and logged, SYN cookies, replies by any interface "
        "that has a route (loose reverse path); UFW no longer sets kernel parameters of its own",
        (
            "CIS 3.3.2",
            "CIS 3.3.3",
            "CIS 3.3.4",
            "CIS 3.3.5",
            "CIS 3.3.6",
            "CIS 3.3.7",
            "CIS 3.3.8",
            "CIS 3.3.9",
            "CIS 3.3.10",
            "Lynis KRNL-6000",
        ),
        sysctls={
            "net.ipv4.conf.all.accept_redirects": "0",
            "net.ipv4.conf.default.accept_redirects": "0",
            "net.ipv4.conf.all.secure_redirects": "0",
            "net.ipv4.conf.default.secure_redirects": "0",
            "net.ipv4.conf.all.send_redirects": "0",
            "net.ipv4.conf.default.send_redirects": "0",
            "net.ipv4.conf.all.accept_source_route": "0",
            "net.ipv4.conf.default.accept_source_route": "0",
            "net.ipv4.conf.all.log_martians": "1",
            "net.ipv4.conf.default.log_martians": "1",
            "net.ipv4.conf.all.rp_filter": "2",
            "net.ipv4.conf.default.rp_filter": "2",
            "net.ipv4.icmp_echo_ignore_broadcasts": "1",
            "net.ipv4.icmp_ignore_bogus_error_responses": "1",
            "net.ipv4.tcp_rfc1337": "1",
            "net.ipv4.tcp_syncookies": "1",
            "net.ipv6.conf.all.accept_redirects": "0",
            "net.ipv6.conf.default.accept_redirects": "0",
            "net.ipv6.conf.all.accept_source_route": "0",
            "net.ipv6.conf.default.accept_source_route": "0",
        },
        # ufw-init loads /etc/ufw/sysctl.conf at each start and reload; it switches log_martians off again.
        edits=(Assignment("/etc/default/ufw", "IPT_SYSCTL", ""),),
    ),
    Control(
        "core-dumps",
        "no core dumps: they hold keys and passwords",
        ("CIS 1.5.3", "dev-sec sysctl-31a", "Lynis KRNL-5820"),
        sysctls={"fs.suid_dumpable": "0", "kernel.core_uses_pid": "1"},
        files=(
            text_file("/etc/security/limits.d/60-mediahost-core.conf", "* hard core 0", "* soft core 0"),
            text_file(
                "/etc/systemd/coredump.conf.d/60-mediahost.conf",
                "[Coredump]",
                "Storage=none",
                "ProcessSizeMax=0",
            ),
            text_file("/etc/profile.d/mediahost-core.sh", "ulimit -c 0"),
        ),
    ),
    Control(
        "filesystem-modules",
        f"file systems nobody plugs into a media server cannot be loaded: {', '.join(_UNUSED_FILESYSTEMS)}",
        ("CIS 1.1.1", "dev-sec os-10", "Lynis FILE-6430"),
        files=(_modprobe("filesystems", _UNUSED_FILESYSTEMS),),
    ),
    Control(
        "protocol-modules",
        f"network protocols with a history of holes cannot be loaded: {', '.join(_UNUSED_PROTOCOLS)}",
        ("CIS 3.2", "Lynis NETW-3200"),
        files=(_modprobe("protocols", _UNUSED_PROTOCOLS),),
    ),
    Control(
        "bus-modules",
        "FireWire, which reads memory past the kernel, cannot be loaded",
        ("Lynis STRG-1846",),
        files=(_modprobe("buses", _UNUSED_BUSES),),
    ),
    Control(
        "shared-memory",
        "shared memory (/dev/shm) without devices, setuid programs and execution",
        ("CIS 1.1.2.2", "Lynis FILE-6374"),
        mounts={"/dev/shm": frozenset(("nosuid", "nodev", "noexec"))},  # noqa: S108 - the mount point itself
        files=(
            # Runs at each boot after fstab's options were applied, and needs no line in fstab.
            text_file(
                "/etc/systemd/system/systemd-remount-fs.service.d/60-mediahost.conf",
                "[Service]",
                "ExecStartPost=/usr/bin/mount -o remount,nosuid,nodev,noexec /dev/shm",
            ),
        ),
    ),
    Control(
        "umask",
        "new files of a login are closed to others (027); root's commands by sudo keep 022; containers, the media "
        "account and its default ACLs have their own",
        ("CIS 5.4.3.3", "dev-sec os-05", "Lynis AUTH-9328"),
        files=(text_file("/etc/profile.d/mediahost-umask.sh", "umask 027"),),
        edits=(Assignment("/etc/login.defs", "UMASK", "027", "\t\t"),),
    ),
    Control(
        "session-timeout",
        "a shell left alone for 15 minutes ends; `unset TMOUT` keeps one",
        ("CIS 5.4.3.2", "Lynis SHLL-6220"),
        files=(text_file("/etc/profile.d/mediahost-timeout.sh", "TMOUT=900", "export TMOUT"),),
    ),
    Control(
        "passwords",
        "where somebody sets a password: 14 characters at least, many hash rounds, not two changes a day",
        ("CIS 5.3.3.2", "CIS 5.4.1.2", "dev-sec os-05", "Lynis AUTH-9230", "Lynis AUTH-9262", "Lynis AUTH-9286"),
        packages=("libpam-pwquality",),
        files=(
            # The dictionary is a package that is only recommended; without it the check would refuse every password.
            text_file(
                "/etc/security/pwquality.conf.d/60-mediahost.conf", "minlen = 14", "maxrepeat = 3", "dictcheck = 0"
            ),
        ),
        edits=(
            Assignment("/etc/login.defs", "PASS_MIN_DAYS", "1", "\t"),
            Assignment("/etc/login.defs", "SHA_CRYPT_MIN_ROUNDS", "65536", " "),
            Assignment("/etc/login.defs", "SHA_CRYPT_MAX_ROUNDS", "65536", " "),
        ),
    ),
    Control(
        "sudo",
        "sudo in a terminal of its own, three tries, forgotten after five minutes",
        ("CIS 5.2.2", "CIS 5.2.6"),
    ),
    Control(
        "su",
        "su to another user only for members of the group sudo",
        ("CIS 5.2.7", "Lynis AUTH-9328"),
        edits=(
            Insertion(
                "/etc/pam.d/su",
                r"auth\s+sufficient\s+pam_rootok\.so",
                "auth       required   pam_wheel.so use_uid group=sudo",
            ),
        ),
    ),
    Control(
        "banners",
        "a warning before the login instead of the system's name and version",
        ("CIS 1.6.2", "CIS 1.6.3", "Lynis BANN-7126", "Lynis BANN-7130"),
        replacements=(
            File("/etc/issue", _BANNER.encode()),
            File("/etc/issue.net", _BANNER.encode()),
        ),
    ),
    Control(
        "permissions",
        "cron's directories, sudo's and the SSH server's configuration are root's alone",
        ("CIS 2.4.1", "CIS 5.1.1", "dev-sec os-13", "Lynis FILE-7524", "Lynis AUTH-9252"),
        modes={
            "/etc/crontab": "0600",
            "/etc/cron.d": "0700",
            "/etc/cron.hourly": "0700",
            "/etc/cron.daily": "0700",
            "/etc/cron.weekly": "0700",
            "/etc/cron.monthly": "0700",
            "/etc/ssh/sshd_config": "0600",
            "/etc/sudoers.d": "0750",
        },
    ),
    Control(
        "apparmor",
        "AppArmor with the distribution's profiles; Docker confines each container with its own",
        ("CIS 1.3.1", "Lynis MACF-6208"),
        packages=("apparmor",),
    ),
    Control(
        "package-sums",
        "a weekly comparison of installed programs with their packages' checksums",
        ("Lynis PKGS-7370",),
        # Its weekly check is a cron job, and a bare Debian has no cron.
        packages=("cron", "debsums"),
        # As a whole: Lynis (PKGS-7370) also reads the former value in a comment and takes the check for off.
        replacements=(text_file("/etc/default/debsums", "CRON_CHECK=weekly"),),
    ),
    Control(
        "audit",
        "a record of who changed SSH, sudo, users, cron, units, the firewall, Docker's programs and configuration, "
        "the stack's, and of every kernel module loaded",
        ("CIS 6.2", "dev-sec package-08", "Lynis ACCT-9628", "Lynis ACCT-9630"),
        switch="audit",
        packages=("auditd",),
    ),
    Control(
        "file-integrity",
        "AIDE compares the system's files daily with a database made at the first run; media and containers left out",
        ("CIS 6.3.1", "CIS 6.3.2", "Lynis FINT-4350", "Lynis FINT-4402"),
        switch="file_integrity",
        packages=("aide", "aide-common"),
        # The distribution's H is every sum AIDE knows, weak ones among them; these two take a sixth of its time.
        edits=(Assignment("/etc/aide/aide.conf", "Checksums", "sha256+sha512", " = "),),
    ),
    Control(
        "process-accounting",
        "the kernel notes each process that ends: who ran what, when and for how long (`lastcomm`, `sa`)",
        ("Lynis ACCT-9622",),
        switch=OPTIONAL,
        packages=("acct",),
        units=("acct.service",),
        price="64 bytes a process, also of containers; 30 days are kept. On a busy host that is some 100 MB.",
    ),
    Control(
        "stale-services",
        "lists, after each installation by hand, what still runs with replaced libraries; restarts nothing",
        ("Lynis DEB-0831",),
        switch=OPTIONAL,
        packages=("needrestart",),
        # Ubuntu's default restarts services by itself: Docker's restart would stop every container.
        files=(text_file("/etc/needrestart/conf.d/60-mediahost.conf", "$nrconf{restart} = 'l';"),),
        price="Some seconds at the end of each `apt`, and perl with a few modules (5 MB). On Ubuntu services are no "
        "longer restarted by themselves: what the list names is yours to restart.",
    ),
    Control(
        "package-news",
        "shows what a package's maintainers have to say about an upgrade, without asking",
        ("Lynis DEB-0811",),
        switch=OPTIONAL,
        packages=("apt-listchanges",),
        # No pager that waits, no question, no mail, no download.
        edits=(
            Assignment("/etc/apt/listchanges.conf", "frontend", "text"),
            Assignment("/etc/apt/listchanges.conf", "which", "news"),
            Assignment("/etc/apt/listchanges.conf", "confirm", "false"),
            Assignment("/etc/apt/listchanges.conf", "email_address", "none"),
            Assignment("/etc/apt/listchanges.conf", "no_network", "true"),
        ),
        price="Python where it is missing (30 MB), and some seconds in each installation.",
    ),
    Control(
        "usb-devices",
        "USBGuard: what is plugged in when it is installed stays allowed, and so is every disk and hub; another new "
        "device, above all one that types or is a network card, is refused until you admit it",
        ("Lynis USB-1000", "Lynis USB-3000"),
        switch=OPTIONAL,
        packages=("usbguard",),
        units=(USB_UNIT,),
        files=(
            text_file(f"/etc/systemd/system/{USB_UNIT}.d/60-mediahost.conf", *_WHERE_USB_IS),
            text_file("/etc/systemd/system/usbguard-dbus.service.d/60-mediahost.conf", *_WHERE_USB_IS),
            # Read after rules.conf, in which the package's installation notes what is plugged in. The first rule
            # that fits decides: a stick that also types is no disk. Classes: https://www.usb.org/defined-class-codes.
            text_file(
                "/etc/usbguard/rules.d/60-mediahost.conf",
                "block with-interface one-of { 02:*:* 03:*:* 0a:*:* e0:*:* ef:04:* }",
                "allow with-interface one-of { 08:*:* 09:*:* }",
                # Readable by others it ends the daemon.
                mode="0600",
            ),
        ),
        # A hub on a new controller has a rule now; the others keep theirs.
        edits=(Assignment("/etc/usbguard/usbguard-daemon.conf", "PresentControllerPolicy", "apply-policy"),),
        price="A replaced keyboard, a tuner, a UPS, a Zigbee stick or a remote console (KVM) must be let in once, by "
        "SSH; plug yours in before you switch this on. Rescue mode takes any keyboard.",
    ),
    Control(
        "disc-images",
        "the file system of DVD and Blu-ray images (udf) cannot be loaded",
        ("CIS 1.1.1.8", "Lynis FILE-6430"),
        switch=OPTIONAL,
        files=(_modprobe("disc-images", ("udf",)),),
        price="Such an image or disc cannot be mounted on the host; players that read it as a file still can.",
    ),
    Control(
        "device-files",
        "nothing below /dev can be executed",
        ("Lynis FILE-6374",),
        switch=OPTIONAL,
        mounts={"/dev": frozenset(("nosuid", "noexec"))},
        files=(
            text_file(
                "/etc/systemd/system/systemd-remount-fs.service.d/60-mediahost-dev.conf",
                "[Service]",
                "ExecStartPost=/usr/bin/mount -o remount,nosuid,noexec /dev",
            ),
        ),
        price="Programs in SGX enclaves do not start.",
    ),
)

FORMERLY_EDITED = ("/etc/default/debsums",)
"""Files in which hosts of an earlier version have lines of ours; they get their former ones back."""

DISTRIBUTION_SYSCTLS: Mapping[str, Mapping[str, str]] = {
    # Ubuntu's kernel has a level more, which is its default.
    "ubuntu": {"kernel.perf_event_paranoid": "4"},
}

IRREVERSIBLE_SYSCTLS = frozenset(("kernel.unprivileged_bpf_disabled",))
"""Settings the kernel does not take back before the next boot."""

NAMES = tuple(control.name for control in CONTROLS if control.switch == "hardening")
"""What is on by default; with the optional ones, what `hardening_disabled` can name."""

OPTIONAL_NAMES = tuple(control.name for control in CONTROLS if control.switch == OPTIONAL)
"""What `hardening_optional` can name."""

BASE_CONTROLS = (
    Control(
        "security-updates",
        "security updates install themselves; a reboot they ask for happens at `unattended_reboot_time` when "
        "`unattended_reboot` allows it",
        ("CIS 1.2.2", "Lynis PKGS-7420"),
        switch="unattended_upgrades",
    ),
    Control("clock", "a clock that is right, for logs and one-time passwords", ("CIS 2.3", "Lynis TIME-3104"), "-"),
    Control(
        "firewall", "default deny, rules from each service's exposure", ("CIS 4.2", "Lynis FIRE-4590"), "firewall"
    ),
)
"""What other stages do, so that the table is whole."""

WAIVERS = (
    Waiver("net.ipv4.ip_forward = 0", ("CIS 3.3.1", "Lynis KRNL-6000"), "Docker and WireGuard forward packets."),
    Waiver(
        "net.ipv4.conf.all.rp_filter = 1",
        ("CIS 3.3.7", "Lynis KRNL-6000"),
        "Strict filtering drops the replies of policy-routed tunnels and of Docker's bridges; 2 still refuses "
        "sources without any route.",
    ),
    Waiver(
        "kernel.modules_disabled = 1", ("Lynis KRNL-6000",), "Docker, WireGuard and USB disks load modules later."
    ),
    Waiver(
        "net.ipv6.conf.*.accept_ra = 0",
        ("CIS 3.3.11",),
        "Home networks hand out IPv6 addresses by router advertisements.",
    ),
    Waiver(
        "user namespaces off",
        ("KSPP",),
        "Rootless containers and the sandboxes of browsers inside containers need them.",
    ),
    Waiver("usb-storage blacklisted", ("CIS 1.1.1.9", "Lynis USB-1000"), "Media live on USB disks."),
    Waiver(
        "every new USB device refused",
        ("Lynis USB-2000",),
        "A disk that is plugged in must work; `usb-devices` refuses the others where you want it.",
    ),
    Waiver("squashfs blacklisted", ("CIS 1.1.1.7", "Lynis FILE-6430"), "Snaps are squashfs images."),
    Waiver(
        "udf blacklisted by default",
        ("CIS 1.1.1.8", "Lynis FILE-6430"),
        "Blu-ray and DVD images are UDF; `disc-images` does it where nobody mounts them.",
    ),
    Waiver("overlayfs blacklisted", ("CIS 1.1.1.6",), "Docker stores its layers with it."),
    Waiver(
        "separate partitions for /home, /var, /var/log, /tmp",
        ("CIS 1.1.2", "Lynis FILE-6310"),
        "A running host is not repartitioned; the journal and container logs have limits instead.",
    ),
    Waiver(
        "noexec on /tmp",
        ("CIS 1.1.2.1.4", "Lynis FILE-6374"),
        "Packages' configuration scripts and driver installers run there; nosuid and nodev are the distribution's "
        "where /tmp is a tmpfs.",
    ),
    Waiver(
        "hidepid on /proc",
        ("Lynis FILE-6344",),
        "systemd-logind, polkit and monitoring agents need to see processes; systemd does not support it.",
    ),
    Waiver(
        "a GRUB password, grub.cfg closed",
        ("CIS 1.4.1", "CIS 1.4.2", "Lynis BOOT-5122"),
        "A headless server must come back after a power cut; whoever is at the machine can take its disk. Each "
        "kernel update writes grub.cfg anew.",
    ),
    Waiver(
        "passwords that expire (PASS_MAX_DAYS)",
        ("CIS 5.4.1.1", "Lynis AUTH-9286"),
        "Administrators have keys and no password; an expired password locks key logins out as well.",
    ),
    Waiver(
        "a log file of sudo's own",
        ("CIS 5.2.3",),
        "sudo logs to the journal, auditd records its files; sudo-rs does not know the setting.",
    ),
    Waiver(
        "sudo with a password",
        ("CIS 5.2.4", "CIS 5.2.5"),
        "Accounts have no password to type; set `admin_sudo_nopasswd` to False where they have.",
    ),
    Waiver(
        "audit rules locked (-e 2)",
        ("CIS 6.2.3.20",),
        "Every later change of them would need a reboot.",
    ),
    Waiver(
        "audit of all setuid programs, file deletions, time changes",
        ("CIS 6.2.3.4", "CIS 6.2.3.6", "CIS 6.2.3.13"),
        "Containers and time synchronisation would fill the log with what is no event.",
    ),
    Waiver(
        "a malware scanner",
        ("Lynis HRDN-7230", "Lynis MALW-3280"),
        "rkhunter and its like give false alarms on hosts with containers and bring an assembler (binutils); "
        "debsums, auditd and AIDE look at the same files with known sums.",
    ),
    Waiver(
        "process accounting by default",
        ("Lynis ACCT-9622",),
        "auditd records what matters; `process-accounting` records every process where you want it.",
    ),
    Waiver(
        "three tries a login, two sessions a connection, no forwarding, another port",
        ("Lynis SSH-7408",),
        "An agent offers several keys and each is a try; editors open several sessions and forward ports to the web "
        "interfaces. The keys `sshd_max_auth_tries`, `sshd_max_sessions`, `sshd_allow_tcp_forwarding` and "
        "`sshd_port` are yours.",
    ),
    Waiver(
        "a copy of jail.conf as jail.local",
        ("Lynis DEB-0880",),
        "Ours is a drop-in, which no update touches and which leaves jail.local to you.",
    ),
    Waiver("logs on another host", ("Lynis LOGG-2154",), "A home has one server; give journald a remote yourself."),
    Waiver(
        "accounts locked after wrong passwords (pam_faillock)",
        ("CIS 5.3.2.2", "Lynis AUTH-9408"),
        "SSH takes keys only; whoever types at sudo wrongly on purpose would lock the administrator out.",
    ),
    Waiver(
        "expiry dates, no locked accounts",
        ("Lynis AUTH-9282", "Lynis AUTH-9284"),
        "Accounts without a password are how this is meant to be; `expires` of an administrator ends an account.",
    ),
    Waiver(
        "every systemd unit sandboxed",
        ("Lynis BOOT-5264",),
        "The units are the distribution's; services run in containers, which drop capabilities.",
    ),
    Waiver("sysstat", ("Lynis ACCT-9626",), "Monitoring collects the same figures."),
    Waiver(
        "apt-show-versions, a package audit tool",
        ("Lynis PKGS-7394", "Lynis PKGS-7398"),
        "Security updates install themselves.",
    ),
    Waiver(
        "no firewall rule without hits",
        ("Lynis FIRE-4513",),
        "UFW makes its chains in advance; that a rule was never hit is no fault.",
    ),
    Waiver("a configuration management agent", ("Lynis TOOL-5002",), "pyinfra leaves nothing on the host to find."),
    Waiver("a DNS domain of the host's own", ("Lynis NAME-4028",), "Home networks have none."),
    Waiver(
        "libpam-tmpdir, apt-listbugs",
        ("Lynis DEB-0280", "Lynis DEB-0810"),
        "A TMPDIR that only root can read breaks packages' scripts that go on as another user; unattended upgrades "
        "cannot answer questions.",
    ),
)
