"""The collector, run for real on this machine (it only reads), and its parser on what hosts have said."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from facts import snapshot
from facts.snapshot import (
    BareState,
    ContainerState,
    GpuState,
    MountsState,
    MountState,
    Os,
    PackageState,
    PathState,
    PlexState,
    Request,
    Snapshot,
    UnitState,
    UnreadableSnapshotError,
    UserState,
    VpnState,
    parse,
    script,
)
from mediahost.gpu import Card

EVERYTHING = Request(
    paths=frozenset({"/etc/passwd", "/etc/nothing-there", "/tmp", "/proc/self"}),
    contents=frozenset({"/etc/passwd"}),
    packages=frozenset({"dpkg", "package-that-is-not-there"}),
    units=frozenset({"ssh.service", "docker.service"}),
    users=frozenset({"root", "nobody-of-that-name"}),
    groups=frozenset({"root"}),
    sysctls=frozenset({"vm.swappiness", "kernel.no_such_setting"}),
    first_lines=frozenset({"/etc/passwd", "/etc/nothing-there"}),
    moduli=frozenset({"/etc/ssh/moduli"}),
    gpu=frozenset({"cards"}),
    mounts=frozenset({"/proc", "/nowhere"}),
    disks=frozenset({"/nowhere=/dev/no-disk"}),
    shares=frozenset({"/proc"}),
    ssh_probes=frozenset({"user=root,host=probe,addr=192.0.2.1"}),
    vpn=frozenset({"wall", "tunnel", "inside"}),
)

needs_dpkg = pytest.mark.skipif(shutil.which("dpkg-query") is None, reason="the collector is for Debian and Ubuntu")


def collect(request: Request, prefix: tuple[str, ...] = ("sh", "-s"), env: dict[str, str] | None = None) -> list[str]:
    done = subprocess.run(
        prefix, input=script(request), capture_output=True, text=True, check=True, env=env or dict(os.environ)
    )
    assert done.stderr == ""
    return done.stdout.splitlines()


def look(**wanted: Any) -> Snapshot:
    request = Request(**{key: frozenset(value) for key, value in wanted.items()})
    return parse(collect(request), request)


@pytest.fixture
def state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A state directory and a lock of the test's own."""
    monkeypatch.setattr(snapshot, "STATE_DIRECTORY", str(tmp_path / "state"))
    monkeypatch.setattr(snapshot, "LOCK_FILE", str(tmp_path / "lock"))
    (tmp_path / "state").mkdir()
    return tmp_path / "state"


# --- the script


@pytest.mark.parametrize("shell", [name for name in ("dash", "bash", "posh") if shutil.which(name)])
@pytest.mark.parametrize("request_", [Request(), EVERYTHING])
def test_the_script_is_sound_for_every_shell_that_may_be_sh(shell: str, request_: Request) -> None:
    done = subprocess.run([shell, "-n"], input=script(request_), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("shell", [name for name in ("dash", "bash") if shutil.which(name)])
def test_the_syntax_check_notices_a_broken_script(shell: str) -> None:
    broken = script(Request()).replace("\nfi\n", "\n", 1)
    assert subprocess.run([shell, "-n"], input=broken, capture_output=True, text=True, check=False).returncode != 0


@needs_dpkg
def test_asked_for_nothing_it_reads_the_rest_without_a_complaint(state: Path) -> None:
    seen = look()
    assert seen.paths == {}
    assert seen.packages == {}
    assert seen.os.architecture == subprocess.check_output(["dpkg", "--print-architecture"], text=True).strip()


@needs_dpkg
def test_what_it_reads_of_this_machine_is_true(state: Path) -> None:
    seen = parse(collect(EVERYTHING), EVERYTHING)
    passwd = Path("/etc/passwd")
    found = passwd.stat()
    assert seen.paths["/etc/passwd"] == PathState(
        "file",
        f"{found.st_mode & 0o7777:o}",
        str(found.st_uid),
        str(found.st_gid),
        "root",
        "root",
        hashlib.sha256(passwd.read_bytes()).hexdigest(),
    )
    assert seen.contents == {"/etc/passwd": passwd.read_text()}
    first = passwd.read_bytes().partition(b"\n")[0] + b"\n"
    assert seen.first_lines == {"/etc/passwd": hashlib.sha256(first).hexdigest()}
    assert (seen.paths["/tmp"].kind, seen.paths["/tmp"].mode) == ("directory", "1777")
    assert seen.paths["/proc/self"].kind == "link"
    assert "/etc/nothing-there" not in seen.paths
    assert set(seen.packages) == {"dpkg"}
    assert seen.packages["dpkg"].installed
    assert set(seen.users) == {"root"}
    assert (seen.users["root"].uid, seen.users["root"].groups) == (0, frozenset({"root"}))
    assert seen.sysctls == {"vm.swappiness": Path("/proc/sys/vm/swappiness").read_text().strip()}


@needs_dpkg
@pytest.mark.parametrize(
    "content",
    [
        "",
        "one\n",
        "#end contents\n#begin packages\n",
        "|pipe\n",
        "a\\nb $(id) `id` %s\n",
        "  blanks  \n\n\n",
        "\ttab\n",
    ],
)
def test_a_file_that_looks_like_the_collectors_own_words_is_read_exactly(tmp_path: Path, content: str) -> None:
    path = tmp_path / "file"
    path.write_text(content)
    assert look(contents=[str(path)]).contents == {str(path): content}


@needs_dpkg
def test_a_unit_whose_name_systemd_escaped_is_read_as_any_other(tmp_path: Path) -> None:
    plain, escaped = tmp_path / "mnt-disk1.mount", tmp_path / r"mnt-my\x2ddisk.mount"
    for path in (plain, escaped):
        path.write_text("[Mount]\n")
    snapshot = look(paths=[str(plain), str(escaped)])
    assert snapshot.paths[str(escaped)].sha256 == snapshot.paths[str(plain)].sha256 != ""


@needs_dpkg
def test_a_last_line_without_its_line_feed_is_not_lost(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("one\ntwo")
    assert look(contents=[str(path)]).contents == {str(path): "one\ntwo\n"}


@needs_dpkg
def test_pending_restarts_and_the_manifest_are_read(state: Path) -> None:
    (state / "pending").mkdir()
    (state / "pending" / "ssh.service").touch()
    (state / "manifest").write_text("/etc/a\t\n/etc/b\tx.service\n")
    seen = look()
    assert seen.pending == {"ssh.service"}
    assert seen.manifest == {"/etc/a": "", "/etc/b": "x.service"}


@needs_dpkg
def test_a_damaged_manifest_does_not_hide_what_comes_after_it(state: Path) -> None:
    (state / "manifest").write_text("/etc/a\t\n/etc/b\tx.service")
    assert look().manifest == {"/etc/a": "", "/etc/b": "x.service"}


_SSHD = """mount -t tmpfs none /etc/ssh; mount -t tmpfs none /usr/local/sbin; mkdir /etc/ssh/sshd_config.d
printf '#!/bin/sh\\necho "said $*"\\n' >/usr/local/sbin/sshd; chmod 0755 /usr/local/sbin/sshd
printf 'Port 22\\n\\tmatch user backup\\nBanner "\\\\n|"' >/etc/ssh/sshd_config; : >/etc/ssh/sshd_config.d/empty.conf
echo 'Banner no#match here' >/etc/ssh/sshd_config.d/none.conf; cp /etc/ssh/sshd_config /etc/ssh/sshd_config.d/x.conf
"""


@needs_dpkg
@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs util-linux")
@pytest.mark.parametrize("more", ["", "rm /etc/ssh/sshd_config /etc/ssh/sshd_config.d/x.conf"])
def test_files_with_a_match_block_are_read_exactly_and_only_then_sshd_is_asked_about_logins(
    state: Path, more: str
) -> None:
    request = Request(ssh_probes=frozenset({"user=root,host=probe,addr=192.0.2.1"}))
    seen = parse(collect(request, ("unshare", "-Urm", "sh", "-euc", f"{_SSHD}{more}\nexec sh -s")), request)
    text = 'Port 22\n\tmatch user backup\nBanner "\\n|"\n'
    paths = () if more else ("/etc/ssh/sshd_config", "/etc/ssh/sshd_config.d/x.conf")
    assert seen.sshd_match_files == dict.fromkeys(paths, text)
    (probe,) = request.ssh_probes
    assert seen.sshd_probes == ({} if more else {probe: {"said": (f"-T -C {probe}",)}})
    assert seen.sshd == {"said": ("-T",)}


_KEYS = "mount -t tmpfs none /root; mkdir /root/.ssh; echo key >/root/.ssh/authorized_keys\n"
_ASKED = "-T -C user=root,host=192.0.2.7,addr=192.0.2.7,laddr=10.0.0.2,lport=2222"


@needs_dpkg
@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs util-linux")
@pytest.mark.parametrize(
    ("says", "keys", "groups"),
    [
        ("authorizedkeysfile .ssh/authorized_keys .ssh/authorized_keys2", True, False),
        ("authorizedkeysfile /etc/keys/%u", False, False),
        ("authorizedkeysfile none", False, False),
        ("authorizedkeysfile /none %h/.ssh/authorized_keys", True, False),
        ("authorizedkeysfile /%u/.ssh/authorized_keys", True, False),
        ("authorizedkeysfile /etc/keys/%U", True, False),  # not understood, so nothing is concluded
        ("allowgroups none\nauthorizedkeysfile .ssh/authorized_keys", True, True),
        ("denygroups none", True, True),
        ("Bad configuration option: Prot", True, False),
    ],
)
@pytest.mark.parametrize("matches", [True, False])
def test_what_sshd_would_say_to_this_very_login_is_told(
    state: Path, says: str, keys: bool, groups: bool, matches: bool
) -> None:
    sshd = state.parent / "sshd"
    sshd.write_text(f"#!/bin/sh\necho \"said $*\"\ncat <<'END'\n{says}\nEND\n")
    setting = f"{_SSHD}{_KEYS}cat {sshd} >/usr/local/sbin/sshd\n"
    if not matches:
        setting += "rm /etc/ssh/sshd_config /etc/ssh/sshd_config.d/x.conf\n"
    environment = {**os.environ, "SSH_CONNECTION": "192.0.2.7 5555 10.0.0.2 2222", "SUDO_USER": "root"}
    through_sudo = ("unshare", "-Urm", "sh", "-euc", f"{setting}env -u SSH_CONNECTION sh -s; true")
    seen = parse(collect(Request(), through_sudo, environment), Request())
    assert (seen.login_keys, "root" in seen.login_groups) == (keys, groups)
    assert seen.sshd_login.get("said", ()) == ((_ASKED,) if matches else ())


def test_no_file_of_many_lines_is_read_byte_by_byte() -> None:
    """The shell's `read` asks the kernel for every single byte: 5 ms for the manifest of a large host."""
    text = script(Request())
    assert text.count("read -r line || [") == 1, "one function that prints short files, `show`"
    assert len(re.findall(r"\bshow ", text)) == 4, "`systemctl show`, `wg show`, the lock and the rollback"


@needs_dpkg
@pytest.mark.parametrize(("shift", "alive"), [(0, True), (1, False)])
def test_a_lock_is_alive_only_while_its_very_process_is(state: Path, shift: int, alive: bool) -> None:
    """A process id that was given to another process since has another start time."""
    stat = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    Path(snapshot.LOCK_FILE).write_text(f"{os.getpid()} {int(stat[19]) + shift} me@laptop process 7\n")
    lock = look().lock
    assert lock is not None
    assert (lock.holder, lock.alive) == ("me@laptop process 7", alive)


@needs_dpkg
def test_the_port_of_the_present_connection_is_found_though_sudo_drops_it(state: Path) -> None:
    environment = {**os.environ, "SSH_CONNECTION": "10.0.0.1 5555 10.0.0.2 2222"}
    through_sudo = ("sh", "-c", "env -u SSH_CONNECTION sh -s; true")
    assert parse(collect(Request(), through_sudo, environment), Request()).ssh_port == 2222


@needs_dpkg
@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
def test_the_collector_opens_nothing_for_writing_and_removes_nothing(state: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    calls = "open,openat,creat,unlink,unlinkat,rename,renameat,renameat2,mkdir,mkdirat,chmod,fchmodat,truncate"
    traced = ("strace", "-f", "-qq", "-o", str(log), "-e", f"trace={calls}", "sh", "-s")
    done = subprocess.run(traced, input=script(EVERYTHING), capture_output=True, text=True, check=False)
    if done.returncode and "ptrace" in done.stderr:
        pytest.skip("this machine does not allow tracing")
    text = log.read_text()
    assert "/etc/os-release" in text, "nothing was traced"
    written = [
        line for line in text.splitlines() if re.search(r"O_WRONLY|O_RDWR|O_CREAT|unlink|rename|mkdir|chmod", line)
    ]
    # iptables takes a lock of its own, and curl, systemctl and the like talk to sockets and terminals
    allowed = ('"/dev/', '"/run/xtables.lock"', '"/proc/self/')
    assert [line for line in written if not any(name in line for name in allowed) and "= -1" not in line] == []


@needs_dpkg
def test_keys_are_looked_for_where_passwd_says_and_no_hash_is_printed(state: Path, tmp_path: Path) -> None:
    seen = look(users=["root"], key_users=["root"])
    home = seen.users["root"].home
    assert seen.paths[home].kind == "directory"
    assert (f"{home}/.ssh" in seen.paths) == Path(home, ".ssh").exists()
    assert home not in look(users=["root"]).paths
    output = "\n".join(collect(Request(users=frozenset({"root"}), key_users=frozenset({"root"}))))
    hashes = [line.split(":")[1] for line in Path("/etc/shadow").read_text().splitlines()] if os.getuid() == 0 else []
    assert not [each for each in hashes if len(each) > 3 and each in output]


@needs_dpkg
def test_administrators_of_earlier_runs_are_looked_at_and_a_damaged_record_runs_nothing(state: Path) -> None:
    (state / "admins").write_text("root adm,sudo\nmail\n$(id) x\nbad `id`\n\n")
    seen = look()
    assert seen.admins == {"root": frozenset({"adm", "sudo"}), "mail": frozenset()}
    assert {"root", "mail"} <= set(seen.users)
    assert "adm" in seen.groups
    (state / "admins").unlink()
    assert look().admins == {}


# --- the parser

RECORDED = """\
Last login: nothing to do with us
#begin admins
me sudo,media
gone
#end admins
#begin os
ubuntu noble 24.04 arm64
#end os
#begin timezone
/usr/share/zoneinfo/Europe/Berlin
#end timezone
#begin paths
8180 0 0 root root /etc/ssh/sshd_config.d/00-mediahost.conf
43ff 0 13000 root UNKNOWN /data
45fd 13000 13000 media media /data/media
a1ff 0 0 root root /etc/localtime
c1b0 0 990 root docker /run/docker.sock
#end paths
#begin sums
aaaa  /etc/ssh/sshd_config.d/00-mediahost.conf
#end sums
#begin acls
#filesystem /data/media ext2/ext3
# file: /data/media
# owner: 13000
# group: 13000
# flags: -s-
user::rwx
group::rwx
other::r-x

#end acls
#begin contents
#file /etc/docker/daemon.json
|{
|}
#file /etc/empty
#end contents
#begin first_lines
5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03 /etc/mediahost/totp/me
#end first_lines
#begin packages
docker-ce hi |5:29.7.0-1~ubuntu.24.04~noble
curl ii |8.5.0
ufw un |
old rc |1.0
half iU |2.0
#end packages
#begin units
LoadState=loaded
ActiveState=active
SubState=running
UnitFileState=enabled
NeedDaemonReload=no

LoadState=not-found
ActiveState=inactive
SubState=dead
UnitFileState=
NeedDaemonReload=no
#end units
#begin users
me:x:1000:1000:Me,,,:/home/me:/bin/bash
#end users
#begin expiry
me 20849
#end expiry
#begin sessions
me 3 c4
#end sessions
#begin groups
sudo:x:27:me,other
media:x:13000:
me:x:1000:
docker:x:990:other
#end groups
#begin sysctls
/proc/sys/vm/swappiness:10
/proc/sys/net/ipv4/ip_local_port_range:32768\t60999
#end sysctls
#begin sshd
port 22
port 2222
passwordauthentication no
#end sshd
#begin login
port 22
denyusers bob
#groups me sudo
#keys no
#end login
#begin match
#file /etc/ssh/sshd_config.d/99-vendor.conf
|Match User backup
|  PasswordAuthentication yes
#probe user=root,host=probe,addr=192.0.2.1
port 22
passwordauthentication yes
#end match
#begin algorithms
#kind kex
mlkem768x25519-sha256
curve25519-sha256
#kind cipher
#kind mac
umac-128-etm@openssh.com
#end algorithms
#begin moduli
147
#end moduli
#begin ufw
# /etc/ufw/ufw.conf
ENABLED=yes
LOGLEVEL=low
IPV6=yes
DEFAULT_INPUT_POLICY="DROP"
user.rules ### tuple ### allow tcp 22 0.0.0.0/0 any 0.0.0.0/0 in comment=6d65
#end ufw
#begin iptables
-P INPUT DROP
#end iptables
#begin ip6tables
-P INPUT ACCEPT
#end ip6tables
#begin legacy
2
#end legacy
#begin nft
table inet bans {
\tset sshd-inet4 {
\t\ttype ipv4_addr
\t}

\tchain sshd {
\t\ttype filter hook prerouting priority -150; policy accept;
\t\tip saddr @sshd-inet4 counter drop
\t}

\tchain empty {
\t}
}
#end nft
#begin vpn
#about ip4
0:\tfrom all lookup local
98:\tfrom all fwmark 0x6d656469 iif br-vpn [detached] lookup main
100:\tfrom all iif br-vpn [detached] lookup 51820
101:\tfrom all iif br-vpn2 lookup 51820
32766:\tfrom all lookup main
default dev wg-vpn scope link metric 10
unreachable default metric 4294967295
#about ip6
100:\tfrom all iif br-vpn lookup 51820
unreachable default dev lo metric 4294967295 pref medium
#about recorded
aa bb
#about listed
bb  -
#about link
5: wg-vpn: <POINTOPOINT,NOARP,UP,LOWER_UP> mtu 1420 qdisc noqueue
    link/none
    inet 10.2.0.2/32 scope global wg-vpn
       valid_lft forever preferred_lft forever
#about peer
OURS
THEIRS 203.0.113.5:51820 0.0.0.0/0 25
#about inside
#container 17 abc
#container 18 def
/proc/17/net/route 011D1DAC eth0
#confined 17 cc
/proc/17/net/ipv6_route fe800000000000000000000000000001 eth1
#about inside_recorded
dd cc 172.30.0.0/16
#end vpn
#begin plex
#claimed
<MediaContainer size="0" apiVersion="1.1.1" claimed="1" machineIdentifier="abc" version="1.43.3.10896">
#answer 200
<MediaContainer size="2">
#answer 200
<MediaContainer size="1" allowSync="0" title1="Plex Library">
<Directory key="1" type="movie" title="Films &amp; more" agent="tv.plex.agents.movie">
<Location id="1" path="/data/media/movies" />
<Location id="2" path="/mnt/more" />
#answer 200
<Setting id="FriendlyName" label="" type="text" default="" value="a &quot;b&quot;" hidden="0" />
#answer 200
#source plex /etc/apt/sources.list.d/plexmediaserver.list
#source mixed /etc/apt/sources.list.d/all.list
#refused 0123
#end plex
#begin mounts
#mounted /mnt/disk1 /dev/vdb ext4
#device fe:10 /dev/vdb
#bare /mnt/disk2 ----i---------e-------
#end mounts
#begin gpu
#kernel 6.8.0-88-generic
#card 0000:00:02.0 0x8086 0xa780 i915
#card 0000:01:00.0 0x10de 0x2684 -
#node renderD128 0000:00:02.0
#node renderD129 vgem
#link pci-0000_00_02_0
#version NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build  (dvs@x)
#enable_guc -1
#secure    6   0   0   0   1
#end gpu
#begin engine
{"Version":"29.7.0","ApiVersion":"1.54"}

[{"Id":"abc","Names":["/mediahost-sonarr-1"],"Image":"sonarr:4","State":"running","Status":"Up 2 hours (healthy)",\
"Labels":{"mediahost.service":"sonarr","mediahost.hash":"h","com.docker.compose.project":"mediahost"},\
"NetworkSettings":{"Networks":{"mediahost_default":{}}}},{"Id":"def","Image":"x","State":"exited",\
"Status":"Exited (1) 3 minutes ago","Labels":{"mediahost.service":"radarr"},\
"HostConfig":{"NetworkMode":"container:abc"},\
"NetworkSettings":{"Networks":null}}]

#end engine
#begin pending
ssh.service
#end pending
#begin manifest
/etc/a\t
/etc/b\tx.service
#end manifest
#begin lock
4711 99 me@laptop process 7
alive=yes
#end lock
#begin rollback
armed 2026-11-21 12:05:30 UTC
done 2026-11-20 09:00:00 UTC
#end rollback
#begin connection
192.168.1.5 40000 192.168.1.10 2222
me
#end connection
""".splitlines()
ASKED = Request(units=frozenset({"b.service", "a.service"}))


def said(section: str, *body: str) -> Snapshot:
    """The recorded host with one section saying something else."""
    start, end = RECORDED.index(f"#begin {section}"), RECORDED.index(f"#end {section}")
    return parse([*RECORDED[: start + 1], *body, *RECORDED[end:]], ASKED)


def test_a_recorded_host_is_understood_as_a_whole() -> None:
    seen = parse(RECORDED, ASKED)
    ssh = "/etc/ssh/sshd_config.d/00-mediahost.conf"
    assert seen == Snapshot(
        os=Os("ubuntu", "noble", "24.04", "arm64"),
        paths={
            ssh: PathState("file", "600", "0", "0", "root", "root", "aaaa"),
            "/data": PathState("directory", "1777", "0", "13000", "root", "UNKNOWN"),
            "/data/media": PathState("directory", "2775", "13000", "13000", "media", "media"),
            "/etc/localtime": PathState("link", "777", "0", "0", "root", "root"),
            "/run/docker.sock": PathState("other", "660", "0", "990", "root", "docker"),
        },
        contents={"/etc/docker/daemon.json": "{\n}\n", "/etc/empty": ""},
        mounts=MountsState(
            mounted={"/mnt/disk1": MountState("/dev/vdb", "ext4", "fe:10")},
            bare={"/mnt/disk2": BareState(immutable=True)},
        ),
        default_acls={"/data/media": "user::rwx,group::rwx,other::r-x"},
        filesystems={"/data/media": "ext2/ext3"},
        first_lines={"/etc/mediahost/totp/me": hashlib.sha256(b"hello\n").hexdigest()},
        packages={
            "docker-ce": PackageState("5:29.7.0-1~ubuntu.24.04~noble", installed=True, held=True),
            "curl": PackageState("8.5.0", installed=True, held=False),
            "half": PackageState("2.0", installed=False, held=False),
        },
        units={
            "a.service": UnitState("loaded", "active", "running", "enabled", needs_daemon_reload=False),
            "b.service": UnitState("not-found", "inactive", "dead", "", needs_daemon_reload=False),
        },
        users={"me": UserState(1000, 1000, "/home/me", "/bin/bash", frozenset({"me", "sudo"}), "20849", 2)},
        groups={"sudo": 27, "media": 13000, "me": 1000, "docker": 990},
        admins={"me": frozenset({"sudo", "media"}), "gone": frozenset()},
        sysctls={"vm.swappiness": "10", "net.ipv4.ip_local_port_range": "32768\t60999"},
        sshd={"port": ("22", "2222"), "passwordauthentication": ("no",)},
        sshd_probes={"user=root,host=probe,addr=192.0.2.1": {"port": ("22",), "passwordauthentication": ("yes",)}},
        sshd_login={"port": ("22",), "denyusers": ("bob",)},
        login_groups=frozenset({"me", "sudo"}),
        login_keys=False,
        sshd_match_files={
            "/etc/ssh/sshd_config.d/99-vendor.conf": "Match User backup\n  PasswordAuthentication yes\n"
        },
        ssh_algorithms={
            "kex": frozenset({"mlkem768x25519-sha256", "curve25519-sha256"}),
            "mac": frozenset({"umac-128-etm@openssh.com"}),
        },
        short_groups=147,
        timezone="Europe/Berlin",
        ufw_enabled=True,
        ufw_defaults={"ENABLED": "yes", "LOGLEVEL": "low", "IPV6": "yes", "DEFAULT_INPUT_POLICY": "DROP"},
        ufw_tuples=("user.rules ### tuple ### allow tcp 22 0.0.0.0/0 any 0.0.0.0/0 in comment=6d65",),
        iptables=("-P INPUT DROP",),
        ip6tables=("-P INPUT ACCEPT",),
        nft_chains={
            "bans sshd": (
                "type filter hook prerouting priority -150; policy accept;",
                "ip saddr @sshd-inet4 counter drop",
            ),
            "bans empty": (),
        },
        engine_version="29.7.0",
        containers=(
            ContainerState(
                "abc", "sonarr", "h", "sonarr:4", "running", "healthy", frozenset({"mediahost_default"}), "mediahost"
            ),
            ContainerState("def", "radarr", "", "x", "exited", "none", frozenset(), network_mode="container:abc"),
        ),
        pending=frozenset({"ssh.service"}),
        manifest={"/etc/a": "", "/etc/b": "x.service"},
        lock=snapshot.LockState("me@laptop process 7", alive=True),
        plex=PlexState(
            answers=True,
            version="1.43.3.10896",
            claimed=True,
            sessions=2,
            preferences={"FriendlyName": 'a "b"'},
            libraries=(("Films & more", "movie", ("/data/media/movies", "/mnt/more")),),
            sources={
                "/etc/apt/sources.list.d/plexmediaserver.list": True,
                "/etc/apt/sources.list.d/all.list": False,
            },
            refused_claim="0123",
        ),
        vpn=VpnState(
            rules={
                4: ("98 from all fwmark 0x6d656469 iif br-vpn lookup main", "100 from all iif br-vpn lookup 51820"),
                6: ("100 from all iif br-vpn lookup 51820",),
            },
            routes={
                4: ("default dev wg-vpn scope link metric 10", "unreachable default metric 4294967295"),
                6: ("unreachable default dev lo metric 4294967295 pref medium",),
            },
            recorded=("aa", "bb"),
            listed="bb",
            link=("5:", "wg-vpn:", "<POINTOPOINT,NOARP,UP,LOWER_UP>", "mtu", "1420", "qdisc", "noqueue"),
            addresses=("10.2.0.2/32",),
            peer=("OURS", "THEIRS 203.0.113.5:51820 0.0.0.0/0 25"),
            inside={"abc": (("172.29.29.1", "eth0"), ("fe80::1", "eth1")), "def": ()},
            inside_recorded=("dd", "cc", "172.30.0.0/16"),
            inside_listed={"abc": "cc"},
        ),
        rollback_armed="2026-11-21 12:05:30 UTC",
        rolled_back="2026-11-20 09:00:00 UTC",
        legacy_rules=2,
        ssh_port=2222,
        ssh_client="192.168.1.5",
        gpu=GpuState(
            kernel="6.8.0-88-generic",
            cards=(
                Card("0000:00:02.0", 0x8086, 0xA780, "i915", "renderD128", named=True),
                Card("0000:01:00.0", 0x10DE, 0x2684),
            ),
            nodes={"renderD128": "0000:00:02.0", "renderD129": "vgem"},
            secure_boot=True,
            nvidia="580.95.05",
            guc="-1",
        ),
        ssh_user="me",
    )


def test_the_recording_covers_every_part_of_a_snapshot() -> None:
    """A field that stays at its default above would be a field nobody parses."""
    empty, seen = Snapshot(), parse(RECORDED, ASKED)
    same = {f.name for f in dataclasses.fields(Snapshot) if getattr(seen, f.name) == getattr(empty, f.name)}
    assert same <= {"secrets_present", "acls_unread"}


def test_nothing_is_read_that_no_operation_looks_at() -> None:
    """Each question costs every run."""
    sources = "".join(path.read_text() for path in Path(snapshot.__file__).parents[1].glob("operations/*.py"))
    unused = {f.name for f in dataclasses.fields(Snapshot) if not re.search(rf"\.{f.name}\b", sources)}
    assert unused == set()


def test_output_cut_off_after_any_line_is_refused() -> None:
    assert parse(RECORDED, ASKED)
    for count in range(len(RECORDED)):
        with pytest.raises(UnreadableSnapshotError, match="missing:"):
            parse(RECORDED[:count], ASKED)


def test_output_cut_off_at_any_byte_is_refused() -> None:
    text = "\n".join(RECORDED)
    for count in range(0, len(text) - 1, 7):
        with pytest.raises(UnreadableSnapshotError):
            parse(text[:count].splitlines(), ASKED)


def test_the_refusal_names_what_is_missing() -> None:
    start, end = RECORDED.index("#begin ufw"), RECORDED.index("#end ufw")
    with pytest.raises(UnreadableSnapshotError, match=r"missing: ufw$"):
        parse(RECORDED[:start] + RECORDED[end + 1 :], ASKED)


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from([line.removeprefix("#begin ") for line in RECORDED if line.startswith("#begin ")]),
    st.lists(st.text(max_size=20) | st.sampled_from(RECORDED), max_size=4),
)
def test_whatever_a_section_says_the_host_is_understood_or_refused(section: str, body: list[str]) -> None:
    try:
        assert isinstance(said(section, *body), Snapshot)
    except UnreadableSnapshotError as error:
        assert str(error)  # noqa: PT017 - not raising is as good


@pytest.mark.parametrize(
    ("status", "health"),
    [
        ("Up 2 hours", "none"),
        ("Up 2 hours (healthy)", "healthy"),
        ("Up 2 hours (unhealthy)", "unhealthy"),
        ("Up 2 seconds (health: starting)", "starting"),
        ("Exited (137) 2 minutes ago", "none"),
    ],
)
def test_the_health_of_a_container_is_told_from_its_status(status: str, health: str) -> None:
    item = f'[{{"Id":"a","Image":"x","State":"running","Status":"{status}","Labels":{{}}}}]'
    (container,) = said("engine", '{"Version":"1"}', item).containers
    assert container.health == health


@pytest.mark.parametrize("answer", ["", "curl: (7) refused", "null", "<html>"])
def test_an_engine_that_gives_no_sensible_answer_has_no_version(answer: str) -> None:
    assert said("engine", answer).engine_version == ""


def test_a_list_of_containers_that_is_an_error_instead_is_refused_not_taken_for_none() -> None:
    """No containers would mean: make them all anew."""
    with pytest.raises(UnreadableSnapshotError, match="understood"):
        said("engine", '{"Version":"1"}', '{"message":"context deadline exceeded"}')


def test_without_ssh_the_port_is_the_usual_one() -> None:
    assert said("connection", "").ssh_port == 22
    assert said("connection").ssh_port == 22


@pytest.mark.parametrize(
    "body", [(), ("LoadState=loaded",), ("LoadState=loaded", "", "LoadState=loaded", "", "LoadState=x")]
)
def test_units_are_unknown_when_systemd_told_of_more_or_fewer_than_were_asked_for(body: tuple[str, ...]) -> None:
    assert said("units", *body).units == {}


def test_requests_add_up() -> None:
    one = Request(paths=frozenset({"/a"}), users=frozenset({"me"}))
    two = Request(paths=frozenset({"/b"}), sysctls=frozenset({"x.y"}))
    assert one | two == Request(paths=frozenset({"/a", "/b"}), users=frozenset({"me"}), sysctls=frozenset({"x.y"}))


def test_a_host_that_nobody_asked_for_cards_has_none() -> None:
    seen = said("gpu")
    assert (seen.gpu.cards, seen.gpu.nodes, seen.gpu.secure_boot) == ((), {}, False)
