"""Everything a run needs to know of a host, read by one POSIX-sh script in one remote exec.

The script only reads. It needs no Python, no Docker client and no bash on the target; what is not installed yet
simply yields nothing. `parse` is pure, so it is tested on recorded output.

Why one script: pyinfra caches no fact, each is a remote exec of 10-60 ms plus sudo, and a stack has hundreds of
things to look at (reference: docs/decisions/one-snapshot.md).
"""

from __future__ import annotations

import html
import ipaddress
import json
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from pyinfra.api import FactBase

from mediahost import plex
from mediahost.gpu import Card
from mediahost.paths import below
from mediahost.render import mounts, wall
from mediahost.render import plex as plex_files
from mediahost.vpn import BRIDGE, LINK, TABLE

STATE_DIRECTORY = "/var/lib/mediahost"
"""What mediahost remembers on a host: the manifest of owned files, pending restarts, verified keys."""

LOCK_FILE = "/run/mediahost/lock"

ROLLBACK_DIRECTORY = f"{STATE_DIRECTORY}/rollback"
"""What an unproven change put at risk, as it was before."""


@dataclass(frozen=True)
class Request:
    """What to look at. Paths, package names and the like come from our own model: no blanks, no quotes."""

    paths: frozenset[str] = frozenset()
    contents: frozenset[str] = frozenset()
    packages: frozenset[str] = frozenset()
    units: frozenset[str] = frozenset()
    users: frozenset[str] = frozenset()
    groups: frozenset[str] = frozenset()
    key_users: frozenset[str] = frozenset()
    """Those of `users` whose keys are looked at too, in whatever home passwd says."""
    sysctls: frozenset[str] = frozenset()
    nft_tables: frozenset[str] = frozenset()
    moduli: frozenset[str] = frozenset()
    """Files of moduli(5) in which groups of less than 3072 bits are counted."""
    ssh_probes: frozenset[str] = frozenset()
    """Logins to ask sshd about where it has Match blocks, as `sshd -T -C` takes them."""
    acls: frozenset[str] = frozenset()
    """Directories of which the default ACL and the kind of file system are looked at."""
    first_lines: frozenset[str] = frozenset()
    """Files of which the first line is a secret, and what follows is somebody else's."""
    vpn: frozenset[str] = frozenset()
    """What of the VPN: its "wall", its "tunnel", and from "inside" the default routes and walls of containers."""

    plex: frozenset[str] = frozenset()
    """Preferences of the native Plex to read. None: nothing is asked of it."""

    gpu: frozenset[str] = frozenset()
    """Not empty: look for graphics cards."""

    mounts: frozenset[str] = frozenset()
    """Mount points: what is mounted there, and of a bare one whether it can be written in."""
    disks: frozenset[str] = frozenset()
    """POINT=DEVICE: whether the device is there, and what is on it while nothing is mounted at POINT."""
    shares: frozenset[str] = frozenset()
    """Those of `mounts` that are another machine's: while it does not answer, no path below is looked at."""

    def __or__(self, other: Request) -> Request:
        return Request(*(getattr(self, f.name) | getattr(other, f.name) for f in fields(self)))


@dataclass(frozen=True)
class PathState:
    """A path that exists. `mode` is octal digits without leading zeros, sha256 only for regular files."""

    kind: str
    mode: str
    uid: str
    gid: str
    owner: str
    group: str
    sha256: str = ""


@dataclass(frozen=True)
class PackageState:
    """A package dpkg knows. `held` is dpkg's selection, `installed` means configured as well."""

    version: str
    installed: bool
    held: bool


@dataclass(frozen=True)
class UnitState:
    """A systemd unit as `systemctl show` tells it."""

    load: str
    active: str
    sub: str
    enabled: str
    needs_daemon_reload: bool


@dataclass(frozen=True)
class UserState:
    """An entry of passwd plus the names of all its groups that were asked for.

    `expires` is shadow(5)'s expiry date in days since 1970, empty for none; `sessions` counts logins. Both are read
    for `key_users` and removed administrators only.
    """

    uid: int
    gid: int
    home: str
    shell: str
    groups: frozenset[str]
    expires: str = ""
    sessions: int = 0


@dataclass(frozen=True)
class ContainerState:
    """A container that carries our label. `network_mode` is `container:ID` where it shares another's network."""

    id: str
    service: str
    digest: str
    image: str
    state: str
    health: str
    networks: frozenset[str]
    project: str = ""
    network_mode: str = ""


@dataclass(frozen=True)
class Os:
    """Which distribution this is. `id` and `codename` as in os-release(5), `architecture` as dpkg names it."""

    id: str = "debian"
    codename: str = "trixie"
    version: str = "13"
    architecture: str = "amd64"


@dataclass(frozen=True)
class LockState:
    """The run lock: what its holder wrote, and whether the holder's login session still lives."""

    holder: str
    alive: bool


@dataclass(frozen=True)
class VpnState:
    """The VPN's wall and tunnel in the kernel. Dictionaries are by IP version 4 and 6; 6 is absent without IPv6.

    `rules` are those of the bridge, "PRIORITY RULE"; `routes` those of its table. `recorded` says what was loaded
    into nftables, as the loader noted it: digest of the file and of the listing then; `listed` is that of now.
    `link` holds the words of the interface's first line, `addresses` its IPv4 addresses, `peer` what
    `mediahost.render.wall.peer` gives; all empty without an interface. `inside` maps the ids of running containers
    to their default routes: gateway, interface. `inside_listed` has the digest of the table inside those that have
    a route to the bridge's own block, `inside_recorded` what the loader noted: as `recorded`, then a block.
    """

    rules: dict[int, tuple[str, ...]] = field(default_factory=dict)
    routes: dict[int, tuple[str, ...]] = field(default_factory=dict)
    recorded: tuple[str, ...] = ()
    listed: str = ""
    link: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()
    peer: tuple[str, ...] = ()
    inside: dict[str, tuple[tuple[str, str], ...]] = field(default_factory=dict)
    inside_recorded: tuple[str, ...] = ()
    inside_listed: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class PlexState:
    """The native Plex as it answers on loopback; `claimed` is read from its file where it does not answer.

    `preferences` hold those asked for, as Plex writes them: what it has in mind, because it writes Preferences.xml
    anew from that. `sessions` is how many play, None when it did not say. `libraries`
    are title, type and directories. `sources` maps files of apt that name Plex's repositories, other than ours, to
    whether they name nothing else.
    """

    answers: bool = False
    version: str = ""
    claimed: bool = False
    sessions: int | None = None
    preferences: dict[str, str] = field(default_factory=dict)
    libraries: tuple[tuple[str, str, tuple[str, ...]], ...] = ()
    sources: dict[str, bool] = field(default_factory=dict)
    refused_claim: str = ""


@dataclass(frozen=True)
class MountState:
    """What is mounted: source and type as in proc_pid_mountinfo(5). `device` is the source's device number."""

    source: str
    type: str
    device: str = ""


@dataclass(frozen=True)
class DiskState:
    """A disk that is there; `found` says what is on it, a line each, while nothing is mounted where it belongs."""

    device: str
    found: tuple[str, ...] = ()


@dataclass(frozen=True)
class BareState:
    """A mount point on which nothing is mounted; `content` is the path of one file in it, empty for none."""

    immutable: bool = False
    content: str = ""


@dataclass(frozen=True)
class MountsState:
    """Mounts by mount point, disks by device as asked for, and shares whose server does not answer."""

    mounted: dict[str, MountState] = field(default_factory=dict)
    disks: dict[str, DiskState] = field(default_factory=dict)
    bare: dict[str, BareState] = field(default_factory=dict)
    away: frozenset[str] = frozenset()
    unreachable: frozenset[str] = frozenset()
    """Mount points whose disk is not there or whose server does not answer, and what stands on them."""

    def hides(self, path: str) -> bool:
        """Whether what is at `path` cannot be known now."""
        return any(below(path, at) for at in self.unreachable)


@dataclass(frozen=True)
class GpuState:
    """Graphics cards and what the kernel makes of them. Empty where nobody asked.

    `nodes` maps render nodes (renderD128) to the address of their card, or the name of what has none; `nvidia` is
    the version of NVIDIA's module that is loaded, `guc` the i915 module's parameter enable_guc.
    """

    kernel: str = ""
    cards: tuple[Card, ...] = ()
    nodes: dict[str, str] = field(default_factory=dict)
    secure_boot: bool = False
    nvidia: str = ""
    guc: str = ""


@dataclass(frozen=True)
class Snapshot:
    """What one exec saw."""

    os: Os = Os()
    paths: dict[str, PathState] = field(default_factory=dict)
    contents: dict[str, str] = field(default_factory=dict)
    default_acls: dict[str, str] = field(default_factory=dict)
    """Entries of a directory's default ACL as getfacl(1) has them, ids as numbers, joined by commas."""
    acls_unread: bool = False
    """The host has no getfacl(1): an ACL that is not told need not be missing."""
    filesystems: dict[str, str] = field(default_factory=dict)
    """Kind of file system a directory is on, in the words of stat(1): `ext2/ext3` for ext4, too."""
    first_lines: dict[str, str] = field(default_factory=dict)
    """sha256 of a file's first line with its newline; the line itself is never read."""
    packages: dict[str, PackageState] = field(default_factory=dict)
    units: dict[str, UnitState] = field(default_factory=dict)
    users: dict[str, UserState] = field(default_factory=dict)
    groups: dict[str, int] = field(default_factory=dict)
    admins: dict[str, frozenset[str]] = field(default_factory=dict)
    """Administrators of earlier runs, each with the groups it was given."""
    sysctls: dict[str, str] = field(default_factory=dict)
    sshd: dict[str, tuple[str, ...]] = field(default_factory=dict)
    sshd_probes: dict[str, dict[str, tuple[str, ...]]] = field(default_factory=dict)
    """What `sshd -T -C` says by probe; empty where no file has a Match block."""
    sshd_match_files: dict[str, str] = field(default_factory=dict)
    """Content of each file with a Match block."""
    sshd_login: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """What `sshd -T -C` says of the present login; empty where no file has a Match block."""
    login_groups: frozenset[str] = frozenset()
    """All groups of `ssh_user`; read only where sshd's files allow or deny groups."""
    login_keys: bool = True
    """Whether any file in which sshd would look for the keys of `ssh_user` has something in it."""
    ssh_algorithms: dict[str, frozenset[str]] = field(default_factory=dict)
    """Names by the kind that `ssh -Q` takes."""
    short_groups: int = 0
    timezone: str = ""
    ufw_enabled: bool = False
    ufw_defaults: dict[str, str] = field(default_factory=dict)
    ufw_tuples: tuple[str, ...] = ()
    iptables: tuple[str, ...] = ()
    ip6tables: tuple[str, ...] = ()
    nft_chains: dict[str, tuple[str, ...]] = field(default_factory=dict)
    vpn: VpnState = VpnState()
    plex: PlexState = PlexState()
    gpu: GpuState = GpuState()
    mounts: MountsState = MountsState()
    legacy_rules: int = 0
    """Rules made with iptables-legacy, which iptables-nft does not show."""
    engine_version: str = ""
    containers: tuple[ContainerState, ...] = ()
    pending: frozenset[str] = frozenset()
    manifest: dict[str, str] = field(default_factory=dict)
    lock: LockState | None = None
    rollback_armed: str = ""
    rolled_back: str = ""
    ssh_port: int = 22
    ssh_client: str = ""
    ssh_user: str = ""
    """Whom this connection logged in as, before sudo."""


class UnreadableSnapshotError(Exception):
    """The collector's output ended early or a section is missing: nothing may be concluded from it."""


# Sections end with a line "#end NAME", so that a truncated output is noticed.
_SCRIPT = r"""
export LC_ALL=C PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
section() { printf '#begin %s\n' "$1"; }
end() { printf '#end %s\n' "$1"; }
have() { command -v "$1" >/dev/null 2>&1; }
# those of the files that exist, each below its name, each line behind a bar
bodies() {
  files=
  for file; do
    [ -f "$file" ] || continue
    # awk says nothing of an empty file. The kernel's files say they are empty, too, and are read all the same.
    [ -s "$file" ] || printf '#file %s\n' "$file"
    files="$files $file"
  done
  [ -z "$files" ] || awk 'FNR == 1 { print "#file " FILENAME } { print "|" $0 }' $files
}
# cat with no fork, for a line or two: `read` asks the kernel for every single byte
show() { while IFS= read -r line || [ -n "$line" ]; do printf '%s\n' "$line"; done <"$1"; }

# Administrators of earlier runs are looked at too, and keys are where passwd says that home is.
section admins
if [ -f "$STATE/admins" ]; then
  while read -r name given; do
    case $name in ''|*[!a-z0-9_-]*) continue ;; esac
    case $given in *[!a-z0-9_,-]*) continue ;; esac
    printf '%s %s\n' "$name" "$given"
    KEY_USERS="$KEY_USERS $name" USERS="$USERS $name"
    while [ -n "$given" ]; do
      GROUPS_="$GROUPS_ ${given%%,*}"
      case $given in *,*) given=${given#*,} ;; *) given= ;; esac
    done
  done <"$STATE/admins"
fi
end admins
accounts=
[ -z "$USERS" ] || accounts=$(getent passwd $USERS)
while IFS=: read -r name _ uid _ _ home _; do
  case " $KEY_USERS " in *" $name "*) ;; *) continue ;; esac
  case $home in ''|/|*[!A-Za-z0-9/._+@-]*) continue ;; esac
  PATHS="$PATHS $home $home/.ssh $home/.ssh/authorized_keys"
  SUMS="$SUMS $home/.ssh/authorized_keys" CONTENTS="$CONTENTS $home/.ssh/authorized_keys"
done <<EOF
$accounts
EOF

section os
. /etc/os-release
printf '%s %s %s %s\n' "$ID" "${UBUNTU_CODENAME:-${VERSION_CODENAME:--}}" "${VERSION_ID:--}" \
  "$(dpkg --print-architecture)"
end os

section timezone
readlink /etc/localtime
end timezone

# A share whose server is away holds up whoever looks at it, for ever: then nobody does.
away=
for share in $SHARES; do
  # statfs(2), because attributes of files are remembered; the dot, because the mount point alone mounts nothing
  timeout -s KILL 5 stat -f "$share/." >/dev/null 2>&1
  # 137: it had to be killed, timeout(1)
  [ $? != 137 ] || away="$away $share"
done
if [ -n "$away" ]; then
  near() {
    kept=
    for path; do
      for share in $away; do
        case $path in "$share"|"$share"/*) continue 2 ;; esac
      done
      kept="$kept $path"
    done
  }
  near $PATHS; PATHS=$kept
  near $SUMS; SUMS=$kept
  near $CONTENTS; CONTENTS=$kept
  near $ACLS; ACLS=$kept
fi

section paths
if [ -n "$PATHS" ]; then
  stat -c '%f %u %g %U %G %n' $PATHS 2>/dev/null
fi
end paths

section sums
if [ -n "$SUMS" ]; then sha256sum $SUMS 2>/dev/null; fi
end sums

section acls
if [ -n "$ACLS" ]; then
  stat -f -c '#filesystem %n %T' $ACLS 2>/dev/null
  if have getfacl; then getfacl -d -p -n $ACLS 2>/dev/null; else printf '#unread\n'; fi
fi
end acls

section contents
bodies $CONTENTS
end contents

section first_lines
for file in $FIRST_LINES; do
  [ -f "$file" ] || continue
  sum=$(head -n 1 "$file" | sha256sum)
  printf '%s %s\n' "${sum%% *}" "$file"
done
end first_lines

section packages
# some names are patterns, for dpkg-query and not for the shell
set -f
[ -z "$PACKAGES" ] || dpkg-query -W -f '${Package} ${db:Status-Abbrev}|${Version}\n' $PACKAGES 2>/dev/null
set +f
end packages

section units
[ -z "$UNITS" ] || systemctl show -p LoadState -p ActiveState -p SubState -p UnitFileState \
  -p NeedDaemonReload $UNITS 2>/dev/null
end units

section users
[ -z "$accounts" ] || printf '%s\n' "$accounts"
end users
section expiry
# name and expiry only: the hash beside them is never printed
if [ -n "$KEY_USERS" ] && [ -r /etc/shadow ]; then
  while IFS=: read -r name _ _ _ _ _ _ expires _; do
    case " $KEY_USERS " in *" $name "*) printf '%s %s\n' "$name" "$expires" ;; esac
  done </etc/shadow
fi
end expiry
section sessions
while IFS=: read -r name _ uid _; do
  case " $KEY_USERS " in *" $name "*) ;; *) continue ;; esac
  [ -r "/run/systemd/users/$uid" ] || continue
  while IFS= read -r line; do
    case $line in SESSIONS=?*) printf '%s %s\n' "$name" "${line#*=}" ;; esac
  done <"/run/systemd/users/$uid"
done <<EOF
$accounts
EOF
end sessions
section groups
[ -z "$GROUPS_" ] || getent group $GROUPS_
end groups

section sysctls
[ -z "$SYSCTLS" ] || grep -s '' $SYSCTLS /dev/null
end sysctls

section connection
# sudo drops SSH_CONNECTION; an ancestor of this shell still has it
pid=$$ ancestors=
while [ "$pid" -gt 1 ]; do
  ancestors="$ancestors /proc/$pid/environ"
  read -r stat <"/proc/$pid/stat"
  set -- ${stat##*) }
  pid=$2
done
found=$(grep -shzm1 '^SSH_CONNECTION=' $ancestors /dev/null | tr '\0' '\n')
found=${found%%"
"*}
found=${found#*=}
login=${SUDO_USER:-${LOGNAME:-${USER:-}}}
printf '%s\n' "$found" "$login"
end connection

section sshd
settings=
if have sshd; then
  settings=$(sshd -T 2>&1)
  printf '%s\n' "$settings"
fi
end sshd

section match
matching=
if have sshd; then
  matching=$(grep -slEi '^[[:space:]]*match[[:space:]]' /etc/ssh/sshd_config /etc/ssh/sshd_config.d/*.conf)
  bodies $matching
  [ -z "$matching" ] || for probe in $PROBES; do
    printf '#probe %s\n' "$probe"
    sshd -T -C "$probe" 2>&1
  done
fi
end match

# What sshd would say to the login that this connection is, if it read its files now.
section login
case $login in ''|[+-]*|*[!A-Za-z0-9_.@+-]*) found= ;; esac
if [ -n "$found" ] && [ -n "$settings" ]; then
  set -- $found
  if [ -n "$matching" ]; then
    settings=$(sshd -T -C "user=$login,host=$1,addr=$1,laddr=$3,lport=$4" 2>&1)
    printf '%s\n' "$settings"
  fi
  line='
'
  case $settings in *"${line}allowgroups "*|*"${line}denygroups "*) printf '#groups %s\n' "$(id -Gn "$login")" ;; esac
  case $settings in
    *"${line}authorizedkeysfile "*)
      eval "home=~$login"
      settings=${settings#*"${line}authorizedkeysfile "}
      keys=no
      for file in ${settings%%"$line"*}; do
        while :; do
          case $file in
            *%u*) file=${file%%"%u"*}$login${file#*"%u"} ;;
            *%h*) file=${file%%"%h"*}$home${file#*"%h"} ;;
            *%*) keys=unknown; break ;;
            *) break ;;
          esac
        done
        case $file in /*) ;; *) file=$home/$file ;; esac
        [ ! -s "$file" ] || keys=yes
      done
      printf '#keys %s\n' "$keys"
      ;;
  esac
fi
end login

section algorithms
if have sshd && have ssh; then
  for kind in kex cipher mac HostKeyAlgorithms; do
    printf '#kind %s\n' "$kind"
    ssh -Q "$kind"
  done
fi
end algorithms

section moduli
[ -z "$MODULI" ] || grep -sEc '^[0-9]+ [0-9]+ [0-9]+ [0-9]+ ([0-9]{1,3}|[12][0-9]{3}|30([0-6][0-9]|70)) ' $MODULI
end moduli

section ufw
if [ -f /etc/ufw/ufw.conf ]; then
  awk 1 /etc/ufw/ufw.conf /etc/default/ufw
  cd /etc/ufw && grep -s '^### tuple ###' user.rules user6.rules | sed 's|:| |'
fi
end ufw

section iptables
if have iptables; then iptables -S 2>/dev/null | grep -e '^-P' -e ufw-before-input -e DOCKER-USER -e mediahost; fi
end iptables
section ip6tables
if have ip6tables; then
  ip6tables -S 2>/dev/null | grep -e '^-P' -e ufw6-before-input -e DOCKER-USER -e mediahost
fi
end ip6tables

section legacy
# Listing legacy rules would load their kernel modules; this file names tables only when somebody did that before.
if [ -r /proc/net/ip_tables_names ] && read -r table </proc/net/ip_tables_names && have iptables-legacy-save; then
  iptables-legacy-save 2>/dev/null | grep -c '^-A'
fi
end legacy

section nft
# -t: without the elements of sets, which are thousands on a host under attack; -s: without counters
if [ -n "$NFT_TABLES" ] && have nft; then
  for table in $NFT_TABLES; do nft -st list table inet "$table" 2>/dev/null; done
fi
end nft

section vpn
case $VPN in *wall*)
  for family in 4 6; do
    [ "$family" = 4 ] || [ -e /proc/net/if_inet6 ] || continue
    printf '#about ip%s\n' "$family"
    # one process for both; of a table that is empty it says that there is none
    ip "-$family" -force -batch - 2>/dev/null <<EOF
rule list
route list table $VPN_TABLE
EOF
  done
  printf '#about recorded\n'
  [ ! -r "$VPN_RECORD" ] || { read -r line <"$VPN_RECORD" && printf '%s\n' "$line"; }
  printf '#about listed\n'
  if have nft; then nft -st list table inet "$VPN_NFT" 2>/dev/null | sha256sum; fi
esac
case $VPN in *tunnel*)
  printf '#about link\n'
  ip address list dev "$VPN_LINK" 2>/dev/null
  printf '#about peer\n'
  # The first field of the first line is the private key, the second one of the other lines the preshared key.
  if have wg; then
    wg show "$VPN_LINK" dump 2>/dev/null | awk 'NR == 1 { print $2; next } { print $1, $3, $4, $8 }'
  fi
esac
case $VPN in *inside*)
  printf '#about inside\n'
  files=
  # systemd's cgroups, or the engine's own
  for group in /sys/fs/cgroup/system.slice/docker-*.scope /sys/fs/cgroup/docker/*/; do
    [ -r "$group/cgroup.procs" ] && read -r pid <"$group/cgroup.procs" && [ "$pid" != 0 ] || continue
    group=${group%/} group=${group##*/} group=${group#docker-}
    printf '#container %s %s\n' "$pid" "${group%.scope}"
    files="$files /proc/$pid/net/route /proc/$pid/net/ipv6_route"
  done
  # Who has a route to the block of the tunnel's network has an address in it.
  [ -z "$files" ] || awk -v bridge="$VPN_BRIDGE" '
    FILENAME == "/proc/net/route" { if ($1 == bridge) { to = $2; mask = $8 } next }
    to != "" && $2 == to && $8 == mask && $1 != bridge { split(FILENAME, part, "/"); print "#confined", part[3] }
    $2 == "00000000" && $8 == "00000000" { print FILENAME, $3, $1 }
    $1 ~ /^0+$/ && $2 == "00" && $NF != "lo" { print FILENAME, $5, $NF }' /proc/net/route $files 2>/dev/null |
    while read -r first second third; do
      if [ "$first" = '#confined' ] && have nft; then
        third=$(nsenter -t "$second" -n nft -st list table inet "$VPN_INSIDE" 2>/dev/null | sha256sum)
        third=${third%% *}
      fi
      printf '%s %s %s\n' "$first" "$second" "$third"
    done
  printf '#about inside_recorded\n'
  [ ! -r "$VPN_INSIDE_RECORD" ] || { read -r line <"$VPN_INSIDE_RECORD" && printf '%s\n' "$line"; }
esac
end vpn

section plex
if [ -n "$PLEX" ]; then
  # The owner's token is used here and never printed; curl gets it on standard input, not in argv.
  token=
  if [ -r "$PLEX_PREFERENCES" ]; then
    content=$(cat "$PLEX_PREFERENCES")
    case $content in
      *[[:space:]]PlexOnlineToken=\"*)
        token=${content#*[[:space:]]PlexOnlineToken=\"} token=${token%%\"*}
        [ -z "$token" ] || printf '#claimed\n'
    esac
  fi
  pattern=
  for name in $PLEX; do pattern="$pattern|$name"; done
  case $token in *[!A-Za-z0-9_.-]*) token= ;; esac
  if have curl; then
    # one process for all four; of their answers, in which users and films are named, only this is kept
    pattern="<(MediaContainer|Directory|Location) [^>]*>|<Setting id=\"(${pattern#|})\" [^>]*>"
    curl -s -m 10 -K - <<EOF | grep -aoE "^#answer [0-9]+|$pattern"
header = "X-Plex-Token: $token"
write-out = "\\n#answer %{http_code}\\n"
url = "$PLEX_URL/identity"
url = "$PLEX_URL/status/sessions"
url = "$PLEX_URL/library/sections"
url = "$PLEX_URL/:/prefs"
EOF
  fi
  for file in /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources; do
    [ "$file" != "$PLEX_SOURCE" ] && [ -f "$file" ] && sources="$sources $file"
  done
  [ -z "$sources" ] || awk '
    { sub(/#.*/, "") }
    /^[[:space:]]*deb|^URIs:/ { if (/plex\.tv\//) plex[FILENAME]++; else other[FILENAME]++ }
    END { for (file in plex) print "#source", (other[file] ? "mixed" : "plex"), file }' $sources
  [ ! -r "$STATE/plex/refused" ] || { read -r line <"$STATE/plex/refused" && printf '#refused %s\n' "$line"; }
fi
end plex

section gpu
if [ -n "$GPU" ]; then
  read -r line </proc/sys/kernel/osrelease && printf '#kernel %s\n' "$line"
  for device in "$SYS"/bus/pci/devices/*; do
    read -r class <"$device/class" && read -r maker <"$device/vendor" && read -r id <"$device/device" || continue
    case $class in 0x0300*|0x0302*|0x0380*) ;; *) continue ;; esac
    driver=-
    # where a link leads to, with no fork
    [ ! -e "$device/driver" ] || { cd -P "$device/driver" && driver=${PWD##*/}; }
    printf '#card %s %s %s %s\n' "${device##*/}" "$maker" "$id" "$driver"
  done 2>/dev/null
  for node in "$SYS"/class/drm/renderD*; do
    [ ! -e "$node" ] || { cd -P "$node/device" && printf '#node %s %s\n' "${node##*/}" "${PWD##*/}"; }
  done
  cd /
  for link in "$DEV"/dri/mediahost/*; do [ ! -e "$link" ] || printf '#link %s\n' "${link##*/}"; done
  for file in /proc/driver/nvidia/version "$SYS"/module/i915/parameters/enable_guc; do
    [ ! -r "$file" ] || { read -r line <"$file" && printf '#%s %s\n' "${file##*/}" "$line"; }
  done
  for file in "$SYS"/firmware/efi/efivars/SecureBoot-*; do
    # four bytes of attributes, then the value
    [ ! -r "$file" ] || printf '#secure %s\n' "$(od -An -tu1 "$file")"
  done
fi
end gpu

section mounts
if [ -n "$MOUNTS" ]; then
  for share in $away; do printf '#away %s\n' "$share"; done
  mounted=$(awk -v wanted="$MOUNTS" '
    BEGIN { split(wanted, points, " "); for (i in points) is[points[i]] }
    $5 in is { for (i = 7; $i != "-"; i++) ; if ($(i + 1) != "autofs") print $5, $(i + 2), $(i + 1) }
  ' /proc/self/mountinfo)
  line='
'
  devices=
  while read -r point source kind; do
    [ -z "$point" ] || printf '#mounted %s %s %s\n' "$point" "$source" "$kind"
    case $source in /dev/*) devices="$devices $source" ;; esac
  done <<EOF
$mounted
EOF
  for pair in $DISKS; do devices="$devices ${pair#*=}"; done
  [ -z "$devices" ] || stat -L -c '#device %t:%T %n' $devices 2>/dev/null
  for point in $MOUNTS; do
    case "$line$mounted" in *"$line$point "*) continue ;; esac
    case " $away " in *" $point "*) continue ;; esac
    [ -d "$point" ] || continue
    bits=$(lsattr -d "$point" 2>/dev/null)
    printf '#bare %s %s %s\n' "$point" "${bits%% *}" "$(find "$point" -xdev ! -type d -print -quit 2>/dev/null)"
  done
  for pair in $DISKS; do
    case "$line$mounted" in *"$line${pair%%=*} "*) continue ;; esac
    [ -b "${pair#*=}" ] || continue
    printf '#found %s\n' "${pair#*=}"
    found_on "${pair#*=}"
  done
fi
end mounts

section engine
socket=/run/docker.sock
if [ -S "$socket" ] && have curl; then
  # both answers over one connection of one process: its start costs more than the engine's work
  curl -s -m 20 -w '\n' --unix-socket "$socket" http://engine/version \
    'http://engine/containers/json?all=1&filters=%7B%22label%22%3A%5B%22mediahost.service%22%5D%7D'
fi
end engine

section pending
for file in "$STATE"/pending/*; do [ ! -e "$file" ] || printf '%s\n' "${file##*/}"; done
end pending

section manifest
# unlike cat it ends a last line that has no end
[ ! -f "$STATE/manifest" ] || awk 1 "$STATE/manifest"
end manifest

section lock
if [ -f "$LOCK" ]; then
  show "$LOCK"
  read -r pid started rest <"$LOCK"
  alive=no
  if [ -r "/proc/$pid/stat" ]; then
    read -r stat <"/proc/$pid/stat"
    # field 22, counted after the command name, which may hold blanks
    set -- ${stat##*) }
    [ "${20}" != "$started" ] || alive=yes
  fi
  printf 'alive=%s\n' "$alive"
fi
end lock

section rollback
for file in armed done; do
  [ ! -f "$STATE/rollback/$file" ] || printf '%s %s\n' "$file" "$(show "$STATE/rollback/$file")"
done
end rollback

"""

_SECTIONS = [
    "admins",
    "os",
    "timezone",
    "paths",
    "sums",
    "acls",
    "contents",
    "first_lines",
    "packages",
    "units",
    "users",
    "expiry",
    "sessions",
    "groups",
    "sysctls",
    "connection",
    "sshd",
    "match",
    "login",
    "algorithms",
    "moduli",
    "ufw",
    "iptables",
    "ip6tables",
    "legacy",
    "nft",
    "vpn",
    "plex",
    "gpu",
    "mounts",
    "engine",
    "pending",
    "manifest",
    "lock",
    "rollback",
]


def script(request: Request) -> str:
    """The collector with the names of `request` filled in."""

    def words(names: Iterable[str]) -> str:
        return shlex.quote(" ".join(sorted(names)))

    head = [
        f"PATHS={words(request.paths | request.contents)}",
        f"SUMS={words(request.paths | request.contents)}",
        f"CONTENTS={words(request.contents)}",
        f"ACLS={words(request.acls)}",
        f"FIRST_LINES={words(request.first_lines)}",
        f"PACKAGES={words(request.packages)}",
        f"UNITS={words(request.units)}",
        f"USERS={words(request.users)}",
        f"GROUPS_={words(request.groups)}",
        f"KEY_USERS={words(request.key_users)}",
        f"SYSCTLS={words('/proc/sys/' + key.replace('.', '/') for key in request.sysctls)}",
        f"NFT_TABLES={words(request.nft_tables)}",
        f"VPN={words(request.vpn)} VPN_TABLE={TABLE} VPN_LINK={LINK}",
        f"VPN_NFT={wall.NFT_TABLE} VPN_RECORD={wall.RECORD_PATH} VPN_BRIDGE={BRIDGE}",
        f"VPN_INSIDE={wall.INSIDE_TABLE} VPN_INSIDE_RECORD={wall.INSIDE_RECORD_PATH}",
        f"PLEX={words(request.plex)} PLEX_URL={plex.URL} PLEX_PREFERENCES={shlex.quote(plex.PREFERENCES)}",
        f"GPU={words(request.gpu)} SYS=/sys DEV=/dev",
        f"PLEX_SOURCE={plex_files.SOURCE_PATH} sources=",
        f"MOUNTS={words(request.mounts)} DISKS={words(request.disks)} SHARES={words(request.shares)}",
        mounts.FOUND_ON if request.disks else "",
        f"MODULI={words(request.moduli)}",
        f"PROBES={words(request.ssh_probes)}",
        f"STATE={STATE_DIRECTORY} LOCK={LOCK_FILE}",
    ]
    return "\n".join(head) + _SCRIPT


def parse(lines: Sequence[str], request: Request) -> Snapshot:
    """The snapshot that the collector's output tells.

    Raises `UnreadableSnapshotError` when a section is missing, was cut off or makes no sense.
    """
    sections = _split(lines)
    try:
        return _understood(sections, request)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise UnreadableSnapshotError(f"the host's state could not be understood: {error!r}") from error


def _understood(sections: dict[str, list[str]], request: Request) -> Snapshot:
    (os_line,) = sections["os"] or ["debian - - amd64"]
    paths = _paths(sections["paths"], sections["sums"])
    ufw = _ufw(sections["ufw"])
    rollback = _rollback(sections["rollback"])
    engine = [line for line in sections["engine"] if line.strip()]
    groups = [line.split(":") for line in sections["groups"]]
    return Snapshot(
        os=Os(*os_line.split()),
        paths=paths,
        contents=_contents(sections["contents"]),
        default_acls=_default_acls(sections["acls"]),
        acls_unread="#unread" in sections["acls"],
        filesystems={
            words[1]: words[2] for words in map(str.split, sections["acls"]) if words[:1] == ["#filesystem"]
        },
        first_lines={path: digest for digest, path in (line.split(" ", 1) for line in sections["first_lines"])},
        packages=_packages(sections["packages"]),
        units=_units(sections["units"], sorted(request.units)),
        users=_users(sections["users"], groups, sections["expiry"], sections["sessions"]),
        groups={parts[0]: int(parts[2]) for parts in groups if len(parts) >= 3},
        admins={
            name: frozenset(given.split(",")) - {""}
            for name, _, given in (line.partition(" ") for line in sections["admins"])
        },
        sysctls={
            path.removeprefix("/proc/sys/").replace("/", "."): value
            for path, _, value in (line.partition(":") for line in sections["sysctls"])
        },
        sshd=_sshd(sections["sshd"]),
        sshd_probes={probe: _sshd(body) for probe, body in _blocks(sections["match"], "#probe ").items()},
        sshd_match_files=_contents([line for line in sections["match"] if line.startswith(("#file ", "|"))]),
        sshd_login=_sshd([line for line in sections["login"] if not line.startswith("#")]),
        login_groups=frozenset(
            name for line in sections["login"] if line.startswith("#groups ") for name in line.split()[1:]
        ),
        login_keys="#keys no" not in sections["login"],
        ssh_algorithms={
            kind: frozenset(names) for kind, names in _blocks(sections["algorithms"], "#kind ").items() if names
        },
        short_groups=int((sections["moduli"] or ["0"])[0]),
        timezone=(sections["timezone"] or [""])[0].partition("zoneinfo/")[2],
        ufw_enabled=ufw.get("ENABLED") == "yes",
        ufw_defaults=ufw,
        ufw_tuples=tuple(line for line in sections["ufw"] if "### tuple ###" in line),
        iptables=tuple(sections["iptables"]),
        ip6tables=tuple(sections["ip6tables"]),
        legacy_rules=int((sections["legacy"] or ["0"])[0]),
        engine_version=_engine_version(engine),
        containers=_containers(engine),
        pending=frozenset(sections["pending"]),
        manifest=dict(_manifest_line(line) for line in sections["manifest"] if line),
        lock=_lock(sections["lock"]),
        rollback_armed=rollback.get("armed", ""),
        rolled_back=rollback.get("done", ""),
        nft_chains=_nft_chains(sections["nft"]),
        vpn=_vpn(_blocks(sections["vpn"], "#about ")),
        mounts=_mounts(sections["mounts"], request.disks),
        plex=_plex(sections["plex"]),
        gpu=_gpu(sections["gpu"]),
        ssh_port=_ssh_port(sections["connection"]),
        ssh_client=_ssh_client(sections["connection"]),
        ssh_user=(sections["connection"][1:] or [""])[0],
    )


def _split(lines: Sequence[str]) -> dict[str, list[str]]:
    sections: dict[str, list[str]] = {}
    name: str | None = None
    body: list[str] = []
    for line in lines:
        if line.startswith("#begin "):
            name, body = line.removeprefix("#begin ").strip(), []
        elif name is not None and line.strip() == f"#end {name}":
            sections[name], name = body, None
        elif name is not None:
            body.append(line)
    missing = [section for section in _SECTIONS if section not in sections]
    if missing:
        raise UnreadableSnapshotError(f"the host's state could not be read completely; missing: {', '.join(missing)}")
    return sections


_KINDS = {0o100000: "file", 0o040000: "directory", 0o120000: "link"}


def _paths(stats: Sequence[str], sums: Sequence[str]) -> dict[str, PathState]:
    digests = dict(_digest(line) for line in sums if "  " in line)
    states: dict[str, PathState] = {}
    for line in stats:
        raw, uid, gid, owner, group, path = line.split(" ", 5)
        bits = int(raw, 16)
        kind = _KINDS.get(bits & 0o170000, "other")
        states[path] = PathState(kind, f"{bits & 0o7777:o}", uid, gid, owner, group, digests.get(path, ""))
    return states


def _digest(line: str) -> tuple[str, str]:
    """Path and digest of a line of sha256sum, which marks and doubles the backslashes of a name (coreutils)."""
    digest, path = line.removeprefix("\\").split("  ", 1)
    return path.replace("\\\\", "\\") if line.startswith("\\") else path, digest


def _contents(lines: Sequence[str]) -> dict[str, str]:
    contents: dict[str, str] = {}
    path = ""
    for line in lines:
        if line.startswith("#file "):
            path = line.removeprefix("#file ")
            contents[path] = ""
        elif line.startswith("|"):
            contents[path] += line[1:] + "\n"
    return contents


def _default_acls(lines: Sequence[str]) -> dict[str, str]:
    entries: dict[str, list[str]] = {}
    path = ""
    for line in lines:
        if line.startswith("# file: "):
            path = line.removeprefix("# file: ")
        elif line and not line.startswith("#"):
            entries.setdefault(path, []).append(line.split()[0])
    return {path: ",".join(found) for path, found in entries.items()}


def _packages(lines: Sequence[str]) -> dict[str, PackageState]:
    states: dict[str, PackageState] = {}
    for line in lines:
        left, _, version = line.partition("|")
        name, _, status = left.partition(" ")
        # n: not there; c: removed, only its configuration files are left
        if status[1:2] in ("", "n", "c"):
            continue
        states[name] = PackageState(version, installed=status[1:2] == "i", held=status[:1] == "h")
    return states


def _units(lines: Sequence[str], names: Sequence[str]) -> dict[str, UnitState]:
    """`systemctl show A B` prints the properties of each in the order asked, blank lines between."""
    blocks: list[dict[str, str]] = [{}]
    for line in lines:
        if not line.strip():
            blocks.append({})
        else:
            key, _, value = line.partition("=")
            blocks[-1][key] = value
    blocks = [block for block in blocks if block]
    if len(blocks) != len(names):
        return {}
    return {
        name: UnitState(
            load=block.get("LoadState", ""),
            active=block.get("ActiveState", ""),
            sub=block.get("SubState", ""),
            enabled=block.get("UnitFileState", ""),
            needs_daemon_reload=block.get("NeedDaemonReload") == "yes",
        )
        for name, block in zip(names, blocks, strict=True)
    }


def _users(
    lines: Sequence[str], groups: Sequence[Sequence[str]], expiry: Sequence[str], sessions: Sequence[str]
) -> dict[str, UserState]:
    expires = {name: date for name, _, date in (line.partition(" ") for line in expiry)}
    logins = {name: len(ids.split()) for name, _, ids in (line.partition(" ") for line in sessions)}
    states: dict[str, UserState] = {}
    for line in lines:
        name, _, uid, gid, _, home, shell = line.split(":")[:7]
        member_of = frozenset(
            parts[0] for parts in groups if len(parts) >= 4 and (name in parts[3].split(",") or parts[2] == gid)
        )
        states[name] = UserState(
            int(uid), int(gid), home, shell, member_of, expires.get(name, ""), logins.get(name, 0)
        )
    return states


def _sshd(lines: Sequence[str]) -> dict[str, tuple[str, ...]]:
    effective: dict[str, tuple[str, ...]] = {}
    for line in lines:
        key, _, value = line.partition(" ")
        effective[key.lower()] = (*effective.get(key.lower(), ()), value)
    return effective


def _blocks(lines: Sequence[str], head: str) -> dict[str, list[str]]:
    """Lines by the heading above them."""
    blocks: dict[str, list[str]] = {}
    body: list[str] = []
    for line in lines:
        if line.startswith(head):
            body = blocks[line.removeprefix(head)] = []
        else:
            body.append(line)
    return blocks


def _ufw(lines: Sequence[str]) -> dict[str, str]:
    values: dict[str, str] = {}
    for line in lines:
        key, separator, value = line.partition("=")
        if separator and key.isupper() or key.replace("_", "").isupper():
            values[key] = value.strip().strip('"')
    return values


def _engine_version(lines: Sequence[str]) -> str:
    try:
        return str(json.loads(lines[0])["Version"]) if lines else ""
    except (ValueError, KeyError, TypeError):
        return ""


def _containers(lines: Sequence[str]) -> tuple[ContainerState, ...]:
    try:
        listed: list[dict[str, Any]] = json.loads(lines[1]) if len(lines) > 1 else []
    except ValueError:
        return ()
    return tuple(
        ContainerState(
            id=item["Id"],
            service=item["Labels"].get("mediahost.service", ""),
            digest=item["Labels"].get("mediahost.hash", ""),
            image=item["Image"],
            state=item["State"],
            health=_health(item["Status"]),
            networks=frozenset((item.get("NetworkSettings") or {}).get("Networks") or {}),
            project=item["Labels"].get("com.docker.compose.project", ""),
            network_mode=(item.get("HostConfig") or {}).get("NetworkMode", ""),
        )
        for item in listed
    )


def _health(status: str) -> str:
    for word in ("unhealthy", "healthy", "starting"):
        if word in status.partition("(")[2]:
            return word
    return "none"


def _manifest_line(line: str) -> tuple[str, str]:
    path, _, unit = line.partition("\t")
    return path, unit


def _lock(lines: Sequence[str]) -> LockState | None:
    if len(lines) < 2:
        return None
    return LockState(holder=" ".join(lines[0].split()[2:]), alive="alive=yes" in lines)


def _rollback(lines: Sequence[str]) -> dict[str, str]:
    """Until when a change has to be proven, and when one was put back, as the host tells the time."""
    return dict(line.split(" ", 1) for line in lines if " " in line)


def _nft_chains(lines: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """TABLE CHAIN to the chain's rules, as nft prints them."""
    chains: dict[str, tuple[str, ...]] = {}
    table = chain = ""
    for line in lines:
        words = line.split()
        if words[:1] == ["table"]:
            table = words[2]
        elif words[:1] == ["chain"]:
            chain = f"{table} {words[1]}"
            chains[chain] = ()
        elif words == ["}"]:
            chain = ""
        elif chain and words:
            chains[chain] = (*chains[chain], " ".join(words))
    return chains


def _vpn(about: dict[str, list[str]]) -> VpnState:
    rules: dict[int, tuple[str, ...]] = {}
    routes: dict[int, tuple[str, ...]] = {}
    for family in (4, 6):
        lines = about.get(f"ip{family}")
        if lines is None:
            continue
        # "100:  from all iif br-vpn [detached] lookup 51820"; routes have no number in front.
        split = [[word for word in line.split() if word != "[detached]"] for line in lines if line.strip()]
        found = [" ".join((words[0][:-1], *words[1:])) for words in split if words[0].endswith(":")]
        rules[family] = tuple(rule for rule in found if f" iif {BRIDGE} " in rule)
        routes[family] = tuple(" ".join(words) for words in split if not words[0].endswith(":"))
    link = [line.split() for line in about.get("link", ())]
    inside, inside_listed = _inside(about.get("inside", ()))
    return VpnState(
        rules=rules,
        routes=routes,
        recorded=tuple((about.get("recorded") or [""])[0].split()),
        listed=(about.get("listed") or [""])[0].split(" ")[0],
        link=tuple(link[0]) if link else (),
        addresses=tuple(words[1] for words in link if words[:1] == ["inet"]),
        peer=tuple(about.get("peer", ())),
        inside=inside,
        inside_recorded=tuple((about.get("inside_recorded") or [""])[0].split()),
        inside_listed=inside_listed,
    )


def _mounts(lines: Sequence[str], asked: Iterable[str]) -> MountsState:
    numbers: dict[str, str] = {}
    seen: dict[str, tuple[str, str]] = {}
    bare: dict[str, BareState] = {}
    found: dict[str, list[str]] = {}
    away: set[str] = set()
    disk = ""
    for line in lines:
        word, _, rest = line.partition(" ")
        if word == "#away":
            away.add(rest)
        elif word == "#mounted":
            point, source, kind = rest.split(" ")
            seen[point] = (source, kind)
        elif word == "#device":
            number, _, name = rest.partition(" ")
            numbers[name] = number
        elif word == "#bare":
            point, _, told = rest.partition(" ")
            bits, _, content = told.partition(" ")
            # lsattr(1): the fifth letter; a file system without attributes has none.
            bare[point] = BareState(immutable=bits[4:5] == "i", content=content)
        elif word == "#found":
            disk = rest
            found[disk] = []
        else:
            found[disk].append(line)
    disks = {point: device for point, _, device in (pair.partition("=") for pair in asked)}
    devices = set(disks.values())
    missing = {point for point, device in disks.items() if point not in seen and device not in numbers}
    # A pool whose disk is missing is not mounted either.
    standing_on_it = bare.keys() - disks.keys() if missing else set()
    return MountsState(
        mounted={point: MountState(source, kind, numbers.get(source, "")) for point, (source, kind) in seen.items()},
        disks={
            device: DiskState(numbers[device], tuple(found.get(device, ())))
            for device in sorted(devices & numbers.keys())
        },
        bare=bare,
        away=frozenset(away),
        unreachable=frozenset(away | missing | standing_on_it),
    )


def _inside(lines: Sequence[str]) -> tuple[dict[str, tuple[tuple[str, str], ...]], dict[str, str]]:
    containers: dict[str, str] = {}
    routes: dict[str, tuple[tuple[str, str], ...]] = {}
    listed: dict[str, str] = {}
    for line in lines:
        first, second, third = line.split()
        if first == "#container":
            containers[second] = third
            routes[third] = ()
        elif first == "#confined":
            listed[containers[second]] = third
        else:
            # /proc/PID/net/route
            name = containers[first.split("/")[2]]
            routes[name] = (*routes[name], (_gateway(second), third))
    return routes, listed


_ATTRIBUTE = re.compile(r'([A-Za-z]+)="([^"]*)"')


def _plex(lines: Sequence[str]) -> PlexState:
    """What the server said to four questions, in their order, and what its files say."""
    answers: list[tuple[str, list[tuple[str, dict[str, str]]]]] = []
    elements: list[tuple[str, dict[str, str]]] = []
    sources: dict[str, bool] = {}
    claimed, refused = False, ""
    for line in lines:
        kind, _, rest = line.partition(" ")
        if kind == "#answer":
            answers.append((rest, elements))
            elements = []
        elif kind == "#claimed":
            claimed = True
        elif kind == "#source":
            what, path = rest.split(" ", 1)
            sources[path] = what == "plex"
        elif kind == "#refused":
            refused = rest
        elif kind.startswith("<"):
            elements.append((kind[1:], {key: html.unescape(value) for key, value in _ATTRIBUTE.findall(rest)}))
    questions = ("identity", "sessions", "libraries", "preferences")
    said = {which: found for which, (code, found) in zip(questions, answers, strict=False) if code == "200"}
    identity = next((of for name, of in said.get("identity", ()) if name == "MediaContainer"), None)
    sessions = next((of.get("size", "") for name, of in said.get("sessions", ()) if name == "MediaContainer"), "")
    told = {of["id"]: of.get("value", "") for name, of in said.get("preferences", ()) if name == "Setting"}
    return PlexState(
        answers=identity is not None,
        version=(identity or {}).get("version", ""),
        claimed=claimed or (identity or {}).get("claimed") == "1",
        sessions=int(sessions) if sessions.isdecimal() else None,
        preferences=told,
        libraries=tuple(_libraries(said.get("libraries", ()))),
        sources=sources,
        refused_claim=refused,
    )


def _libraries(elements: Iterable[tuple[str, dict[str, str]]]) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Each Directory is followed by its Locations."""
    found: list[tuple[str, str, list[str]]] = []
    for name, of in elements:
        if name == "Directory":
            found.append((of.get("title", ""), of.get("type", ""), []))
        elif name == "Location" and found:
            found[-1][2].append(of.get("path", ""))
    for title, kind, paths in found:
        yield title, kind, tuple(paths)


_NVIDIA_VERSION = re.compile(r"\d{3,}\.\d+(\.\d+)?")


def _gpu(lines: Sequence[str]) -> GpuState:
    about: dict[str, list[list[str]]] = {}
    for line in lines:
        kind, *values = line.split()
        about.setdefault(kind, []).append(values)
    nodes = {values[0]: values[1] for values in about.get("#node", ())}
    links = {name for (name,) in about.get("#link", ())}
    cards = []
    for address, maker, device, driver in about.get("#card", ()):
        rendering = [name for name, parent in sorted(nodes.items()) if parent == address]
        card = Card(
            address=address,
            vendor=int(maker, 16),
            device=int(device, 16),
            driver=driver.strip("-"),
            render=rendering[0] if rendering else "",
        )
        cards.append(replace(card, named=card.node.rpartition("/")[2] in links))

    def word(kind: str) -> str:
        return next((values[0] for values in about.get(kind, ()) if values), "")

    return GpuState(
        kernel=word("#kernel"),
        cards=tuple(cards),
        nodes=nodes,
        secure_boot=any(values[4:5] == ["1"] for values in about.get("#secure", ())),
        # NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build  (...)
        nvidia=next((each for each in sum(about.get("#version", []), []) if _NVIDIA_VERSION.fullmatch(each)), ""),
        guc=word("#enable_guc"),
    )


def _gateway(hexadecimal: str) -> str:
    """An address as the kernel's tables print it: IPv4 in the machine's byte order, which is little endian here."""
    raw = bytes.fromhex(hexadecimal)
    return str(ipaddress.ip_address(raw[::-1] if len(raw) == 4 else raw))


def _ssh_client(lines: Sequence[str]) -> str:
    parts = (lines or [""])[0].split()
    return parts[0] if len(parts) == 4 else ""


def _ssh_port(lines: Sequence[str]) -> int:
    parts = (lines or [""])[0].split()
    return int(parts[3]) if len(parts) == 4 else 22


class HostSnapshot(FactBase[list[str]]):
    """The collector's raw output. The script travels on stdin, so its length has no limit."""

    default = list

    def command(self) -> str:
        return "sh -s"

    def process(self, output: Iterable[str]) -> list[str]:
        return list(output)
