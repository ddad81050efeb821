"""systemd's units for disks, pools and shares, and the guard that keeps everybody from writing below an absent one.

Each mount has a mount unit of its own, so that others can require it. The guard is three things (why:
docs/decisions/mount-guard.md): the bare mount point is immutable; a sentinel file in /run exists exactly while the
mount does, and containers that use the mount mount that file too, so that the engine itself refuses to start them
without it; a watch stops who uses a mount that goes, and starts them again when it comes back.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from mediahost.config import Settings
from mediahost.paths import below
from mediahost.render import docker
from mediahost.resources import MARK, File, text_file
from mediahost.storage import Disk, Pool, Share, mount_points, required_for, touched_by

UNIT_DIRECTORY = "/etc/systemd/system"
SCRIPT_PATH = "/usr/local/lib/mediahost/mounts"
BARE_UNIT = "mediahost-mountpoints.service"
SENTINEL_TEMPLATE = "mediahost-mounted@.service"
WATCH_UNIT = "mediahost-mounts.service"
BARE_PATH = f"{UNIT_DIRECTORY}/{BARE_UNIT}"
SENTINEL_PATH = f"{UNIT_DIRECTORY}/{SENTINEL_TEMPLATE}"
WATCH_PATH = f"{UNIT_DIRECTORY}/{WATCH_UNIT}"
DOCKER_PATH = f"{UNIT_DIRECTORY}/docker.service.d/60-mediahost-mounts.conf"
TABLE_PATH = "/etc/mediahost/mounts"
"""Mount point, unit, its device ("share" for another machine's, - for a pool), mount points it needs with commas
between: what is mounted, for the script and for a later run."""
PATHS = (SCRIPT_PATH, BARE_PATH, SENTINEL_PATH, WATCH_PATH, DOCKER_PATH, TABLE_PATH)
"""What is there whenever anything is mounted; the units of single mounts come beside it."""

SENTINELS = "/run/mediahost/mounted"
CREDENTIALS = "/etc/mediahost/credentials"
HELD = "/var/lib/mediahost/held"
"""One empty file for each container that the guard stopped, named by its id: only those are started again."""

_PACKAGES = {
    "ext4": (),
    "xfs": ("xfsprogs",),
    "btrfs": ("btrfs-progs",),
    "nfs": ("nfs-common",),
    "smb": ("cifs-utils",),
}
# Data, not programs of the system: neither devices nor programs that change the user have a place there.
_SAFE = ("nodev", "nosuid")

# Says what is on a disk, a line each, and nothing of an empty one. What cannot be read is not empty. wipefs knows the
# signatures at either end of a disk; the first 16 MiB are looked at as well for what it does not know.
FOUND_ON = r"""
found_on() {
  real=$(readlink -f "$1")
  name=${real##*/} first=16777216
  for part in "/sys/class/block/$name/$name"*; do
    [ ! -e "$part/partition" ] || printf 'partition %s\n' "${part##*/}"
  done
  for holder in "/sys/class/block/$name/holders/"*; do
    [ ! -e "$holder" ] || printf 'in use by %s\n' "${holder##*/}"
  done
  awk -v disk="$real" '{ for (i = 7; $i != "-"; i++) ; if ($(i + 2) == disk) print "mounted at", $5 }' \
    /proc/self/mountinfo
  awk -v disk="$real" '$1 == disk { print "swap in use" }' /proc/swaps
  wipefs -n -i -O TYPE,UUID,LABEL "$real" 2>/dev/null | sed 's/^/signature /'
  wipefs -n -i "$real" >/dev/null 2>&1 || printf 'unreadable by wipefs\n'
  size=$(blockdev --getsize64 "$real" 2>/dev/null) || size=0
  [ "$size" -ge "$first" ] || first=$size
  if [ "$size" -lt 1 ]; then
    printf 'unreadable size\n'
  elif ! cmp -s -n "$first" "$real" /dev/zero; then
    printf 'data in the first %s MiB\n' "$((first / 1048576))"
  fi
}
"""


@dataclass(frozen=True)
class Mount:
    """One mount as systemd sees it. `what` and `type` as mount(8) takes them.

    `device` is the disk's name, None for what is no disk; `needs` are mount points that must be there before.
    """

    at: str
    what: str
    type: str
    options: tuple[str, ...]
    title: str
    device: str | None = None
    needs: tuple[str, ...] = ()
    network: bool = False
    disk: Disk | None = None

    @property
    def unit(self) -> str:
        """Its mount unit."""
        return f"{escaped(self.at)}.mount"

    @property
    def sentinel_unit(self) -> str:
        """The unit that keeps its sentinel."""
        return f"mediahost-mounted@{escaped(self.at)}.service"

    @property
    def sentinel(self) -> str:
        """The file that exists while it is mounted."""
        return sentinel(self.at)


def escaped(path: str) -> str:
    """A path in a unit's name, as `systemd-escape --path` writes it (systemd.unit(5), string escaping)."""
    plain = path.strip("/")
    found = re.sub(r"[^A-Za-z0-9:_./]|^\.", lambda match: f"\\x{ord(match[0]):02x}", plain)
    return found.replace("/", "-")


def unescaped(unit: str) -> str:
    """The path that a mount or automount unit's name stands for."""
    plain = unit.rpartition(".")[0].replace("-", "/")
    return "/" + re.sub(r"\\x([0-9a-f]{2})", lambda match: chr(int(match[1], 16)), plain)


def sentinel(at: str) -> str:
    """The file that exists while something is mounted at `at`."""
    return f"{SENTINELS}{at}/here"


def sentinels_for(paths: Iterable[str], settings: Settings) -> tuple[str, ...]:
    """The sentinels of every mount that somebody needs who has these paths with all inside."""
    return tuple(sentinel(at) for at in touched_by(paths, settings))


def wanted(settings: Settings) -> tuple[Mount, ...]:
    """Every mount, each after those that it needs."""
    found = [_disk(disk, settings) for disk in settings.storage_disks]
    found += [_share(share, settings) for share in settings.storage_shares]
    found.sort(key=lambda mount: mount.at)
    pools = sorted((_pool(pool, settings) for pool in settings.storage_pools), key=lambda mount: mount.at)
    ordered: list[Mount] = []
    left = [*found, *pools]
    while left:
        ready = [each for each in left if not any(other.at in each.needs for other in left)]
        # A pool inside another's branch inside the first: nothing could ever be mounted first.
        chosen = ready or left[:1]
        ordered += chosen
        left = [each for each in left if each not in chosen]
    return tuple(ordered)


def packages(settings: Settings) -> tuple[str, ...]:
    """Programs that make and mount these filesystems."""
    names = [name for disk in settings.storage_disks for name in _PACKAGES[disk.filesystem]]
    names += [name for share in settings.storage_shares for name in _PACKAGES[share.kind]]
    if settings.storage_pools:
        names.append("mergerfs")
    if mount_points(settings):
        names.append("e2fsprogs")  # also for chattr(1) and lsattr(1)
    return tuple(sorted(set(names)))


def files(settings: Settings, credentials: Iterable[File] = ()) -> tuple[File, ...]:
    """Every file of this stage; none where nothing is mounted."""
    mounts = wanted(settings)
    if not mounts:
        return ()
    found = [*credentials, *(file for mount in mounts for file in _unit_files(mount, settings))]
    found += [
        _table(mounts),
        File(SCRIPT_PATH, f"#!/bin/sh\n# {MARK}\n{_HEAD}{_SCRIPT}".encode(), mode="0755"),
        _unit(BARE_PATH, _BARE),
        _unit(SENTINEL_PATH, _SENTINEL),
        _unit(WATCH_PATH, _WATCH),
        _unit(DOCKER_PATH, _docker(mounts, settings)),
    ]
    return tuple(found)


def credentials_file(account: str, user: str, password: str) -> File:
    """What mount.cifs(8) reads of an account; nobody but root may."""
    text = f"# {MARK}\nusername={user}\npassword={password}\n"
    return File(f"{CREDENTIALS}/{account}", text.encode(), mode="0600", secret=True)


def unit_path(unit: str) -> str:
    """Where the file of a unit of ours is."""
    return f"{UNIT_DIRECTORY}/{unit}"


def device_path(mount: Mount) -> str:
    """The drop-in that limits how long a boot waits for a disk."""
    return f"{UNIT_DIRECTORY}/{escaped(mount.device or '')}.device.d/60-mediahost.conf"


# --- single mounts


def _nested_in(at: str, settings: Settings) -> tuple[str, ...]:
    """Mount points that `at` lies inside."""
    return tuple(point for point in required_for((at,), settings) if point != at)


def _safe(at: str, settings: Settings) -> tuple[str, ...]:
    """Images of containers have programs that change the user: where the engine's data lie, they must work."""
    return () if below(_engine_root(settings), at) else _SAFE


def _engine_root(settings: Settings) -> str:
    return str(docker.daemon_settings(settings).get("data-root", "/var/lib/docker"))


def _disk(disk: Disk, settings: Settings) -> Mount:
    return Mount(
        at=disk.at,
        what=disk.path,
        type=disk.filesystem,
        options=("noatime", "nofail", *_safe(disk.at, settings), *disk.options),
        title=f"Disk at {disk.at}",
        device=disk.path,
        needs=_nested_in(disk.at, settings),
        disk=disk,
    )


def _pool(pool: Pool, settings: Settings) -> Mount:
    # allow_other and use_ino: 2.33 (Debian 12, Ubuntu 22.04 and 24.04) has neither by itself, so that nobody but root
    # sees anything and the names of a hardlinked file have different inodes; newer ones accept both.
    # posix_acl: the default ACLs of the media tree would be kept, but count for nobody.
    # cache.files=auto-full: without a page cache, kernels before 6.6 refuse the shared mmap of torrent clients and
    # databases. No nofail: mergerfs takes no option that it does not know.
    options = (
        "noatime",
        *_safe(pool.at, settings),
        "allow_other",
        "use_ino",
        "posix_acl=true",
        f"fsname=mergerfs:{pool.at}",
        f"category.create={pool.policy}",
        f"minfreespace={pool.minimum_free}",
        "moveonenospc=true",
        "cache.files=auto-full",
        "dropcacheonclose=true",
        "func.getattr=newest",
        *pool.options,
    )
    # Whole or not at all: in the bare directory of an absent branch nothing can be written, and a third of a library
    # that is gone makes an arr fetch it anew.
    needs = required_for((pool.at, *pool.branches), settings)
    return Mount(
        at=pool.at,
        what=":".join(pool.branches),
        type="mergerfs",
        options=options,
        title=f"Pool at {pool.at}",
        needs=tuple(point for point in needs if point != pool.at),
    )


def _share(share: Share, settings: Settings) -> Mount:
    if share.kind == "nfs":
        # retry=0: one try; the watch tries again, and nothing else has to wait for minutes (nfs(5)).
        options: tuple[str, ...] = ("vers=4.2", "hard", "noatime", "nconnect=4", "retry=0", "nofail", "_netdev")
    else:
        options = (
            "vers=3.1.1",
            "hard",
            "noatime",
            f"credentials={CREDENTIALS}/{share.account}",
            f"uid={settings.media_uid}",
            f"gid={settings.media_gid}",
            "file_mode=0664",
            "dir_mode=0775",
            "mfsymlinks",
            "serverino",
            "nofail",
            "_netdev",
        )
    return Mount(
        at=share.at,
        what=share.source,
        type="nfs" if share.kind == "nfs" else "cifs",
        options=(*options, *_SAFE, *share.options),
        title=f"Share {share.source} at {share.at}",
        needs=_nested_in(share.at, settings),
        network=True,
    )


# --- units


def _unit(path: str, body: str) -> File:
    return File(path, f"# {MARK}\n{body}".encode())


def _unit_files(mount: Mount, settings: Settings) -> Iterable[File]:
    yield _unit(unit_path(mount.unit), _mount_unit(mount, settings.storage_device_timeout))
    if mount.network:
        yield _unit(unit_path(f"{escaped(mount.at)}.automount"), _automount_unit(mount))
    if mount.device:
        wait = f"[Unit]\nJobRunningTimeoutSec={settings.storage_device_timeout}s\n"
        yield _unit(device_path(mount), wait)


def _mount_unit(mount: Mount, timeout: int) -> str:
    device = f"{escaped(mount.device)}.device" if mount.device else ""
    bound = [name for name in (device, *(f"{escaped(at)}.mount" for at in mount.needs)) if name]
    after = [*bound, *(f"mediahost-mounted@{escaped(at)}.service" for at in mount.needs), BARE_UNIT]
    lines = ["[Unit]", f"Description={mount.title}"]
    if bound:
        # Not only Requires=: what it stands on can go without being stopped, as when a cable is pulled.
        lines.append(f"BindsTo={' '.join(bound)}")
    lines.append(f"After={' '.join(after)}")
    lines.append(f"Wants={BARE_UNIT} {mount.sentinel_unit}")
    if mount.type == "ext4":
        # As systemd-fstab-generator does; xfs and btrfs check themselves.
        check = f"systemd-fsck@{escaped(mount.what)}.service"
        lines += [f"Requires={check}", f"After={check}"]
    if mount.type == "mergerfs":
        # By default local-fs.target, and with it the whole boot, would wait for this one's disks.
        lines += ["DefaultDependencies=no", "After=local-fs-pre.target", "Conflicts=umount.target"]
        lines.append("Before=umount.target")
    # A disk or server that comes back after many tries is mounted all the same.
    lines.append("StartLimitIntervalSec=0")
    lines += ["", "[Mount]", f"What={mount.what}", f"Where={mount.at}", f"Type={mount.type}"]
    lines.append(f"Options={','.join(mount.options)}")
    if mount.network:
        lines.append(f"TimeoutSec={timeout}")
    lines += ["", "[Install]", "WantedBy=multi-user.target"]
    # Plugged in later, a disk mounts itself, and then what stands on it.
    lines += [f"WantedBy={name}" for name in bound]
    return "\n".join(lines) + "\n"


def _automount_unit(mount: Mount) -> str:
    return (
        f"[Unit]\nDescription={mount.title}, on first use\nAfter={BARE_UNIT}\nWants={BARE_UNIT}\n"
        f"\n[Automount]\nWhere={mount.at}\n\n[Install]\nWantedBy=remote-fs.target\n"
    )


def _docker(mounts: Iterable[Mount], settings: Settings) -> str:
    """The engine waits until each mount is there or given up; it requires only what its own data lie on."""
    lines = ["[Unit]", f"After={' '.join(mount.unit for mount in mounts)}"]
    root = _engine_root(settings)
    if required_for((root,), settings):
        lines.append(f"RequiresMountsFor={root}")
    return "\n".join(lines) + "\n"


def _table(mounts: Iterable[Mount]) -> File:
    rows = []
    for mount in mounts:
        device = "share" if mount.network else mount.device or "-"
        rows.append(f"{mount.at} {mount.unit} {device} {','.join(mount.needs) or '-'}")
    return text_file(TABLE_PATH, *rows)


def standing(table: str) -> tuple[tuple[str, str, str], ...]:
    """Mount point, unit and device of every mount that `table`, the text of TABLE_PATH, tells of."""
    rows = (line.split(" ") for line in table.splitlines() if line.startswith("/"))
    return tuple((row[0], row[1], row[2]) for row in rows if len(row) == 4)


# Takes the immutable bit from a bare directory, also from under what is mounted on it: a bind mount does not bring
# along what is mounted inside.
FREE = r"""
free_point() {
  unshare -m sh -c '
    mount --make-rprivate /
    mkdir -p /run/mediahost/below
    mount --bind "${1%/*}/" /run/mediahost/below
    [ ! -d "/run/mediahost/below/${1##*/}" ] || {
      chattr -i "/run/mediahost/below/${1##*/}" 2>/dev/null
      chmod 0755 "/run/mediahost/below/${1##*/}"
    }' sh "$1"
}
"""

_HEAD = f"SENTINELS={SENTINELS}\nHELD={HELD}\nTABLE={TABLE_PATH}\n"

_SCRIPT = r"""set -u

source_at() { # what is mounted there, autofs aside; nothing when nothing is
  found=
  while read -r _ _ _ _ point rest; do
    [ "$point" = "$1" ] || continue
    rest=${rest#* - }
    [ "${rest%% *}" = autofs ] || { rest=${rest#* } found=${rest%% *}; }
  done </proc/self/mountinfo
  [ -z "$found" ] || printf '%s\n' "$found"
}

covered() { # is anything at all mounted there?
  while read -r _ _ _ _ point _; do
    [ "$point" != "$1" ] || return 0
  done </proc/self/mountinfo
  return 1
}

parent_here() { # is what lies above it mounted, as far as that is ours?
  while read -r point _; do
    case $1 in "$point"/*) [ -n "$(source_at "$point")" ] || return 1 ;; esac
  done <"$TABLE"
}

lock_point() { # nobody, not even root in a container, can write in the bare directory
  [ -d "$1" ] || mkdir -p "$1"
  case $(lsattr -d "$1" 2>/dev/null) in ????i*) return ;; esac
  chown root:root "$1"
  chmod 0555 "$1"
  chattr +i "$1" || echo "$1 cannot be made immutable on this file system" >&2
}

bare() {
  while read -r at _; do
    [ "$at" != '#' ] && ! covered "$at" && parent_here "$at" || continue
    lock_point "$at"
  done <"$TABLE"
}

engine() {
  command -v docker >/dev/null && systemctl -q is-active docker.service
}

holders() { # containers that need this mount, by `docker ps` with these options
  at=$1
  shift
  docker ps --no-trunc -q --filter "volume=$SENTINELS$at/here" "$@"
}

hold() {
  engine && ids=$(holders "$1") && [ -n "$ids" ] || return 0
  mkdir -p "$HELD"
  for id in $ids; do
    : >"$HELD/$id"
    echo "$1 is gone: container $(docker inspect -f '{{.Name}}' "$id") is stopped until it is back"
  done
  # At once, not one after the other: each may take its time.
  docker stop $ids >/dev/null || true
}

# Who was stopped by a person has neither our mark nor an error, and stays stopped. The engine itself refuses who
# needs another mount that is still absent.
let_go() {
  engine || return 0
  for id in $(holders "$1" -a --filter status=exited --filter status=created); do
    if [ -e "$HELD/$id" ] || [ -n "$(docker inspect -f '{{.State.Error}}' "$id")" ]; then
      ! docker start "$id" >/dev/null 2>&1 || { rm -f "$HELD/$id"
        echo "$1 is there: container $(docker inspect -f '{{.Name}}' "$id") is started"; }
    fi
  done
}

# Services of the host that require the mount and are to run: systemd stops them with it, but does not start them.
start_units() {
  for unit in $(systemctl show -p RequiredBy --value "$1"); do
    case $unit in *.service) ;; *) continue ;; esac
    [ "$(systemctl is-enabled "$unit" 2>/dev/null)" = enabled ] || continue
    systemctl -q is-active "$unit" || systemctl --no-block start "$unit"
  done
}

unit_of() {
  while read -r point unit _; do
    [ "$point" != "$1" ] || printf '%s\n' "$unit"
  done <"$TABLE"
}

present() {
  mkdir -p "$SENTINELS$1"
  : >"$SENTINELS$1/here"
  bare
  let_go "$1"
  unit=$(unit_of "$1")
  [ -z "$unit" ] || start_units "$unit"
}

absent() {
  rm -f "$SENTINELS$1/here"
  # On the way down everything stops anyway, and a container that is stopped by hand is not started at boot.
  [ "$(systemctl is-system-running)" != stopping ] || return 0
  hold "$1"
}

all_here() { # are all of these mount points, with commas between, mounted?
  [ "$1" != - ] || return 0
  left=$1,
  while [ -n "${left#,}" ]; do
    [ -n "$(source_at "${left%%,*}")" ] || return 1
    left=${left#*,}
  done
}

idle() { # has systemd nothing to do about this unit, now or next?
  [ -z "$(systemctl show -p Job --value "$1")" ]
}

entered() { # when a unit, or a device by its path, became active: microseconds since the boot, 0 for never
  systemctl show -p ActiveEnterTimestampMonotonic --value "$1"
}

# A disk that comes mounts itself, but not while systemd still waits for the containers of its old mount to stop, as
# when a cable slips for a second: a start that is in the way of a stop is dropped, and nobody asks again. That disk
# came after its mount was made; one that somebody unmounted came before.
came_back() { # unit, device
  [ -e "$2" ] && idle "$1" && [ "$(entered "$2")" -gt "$(entered "$1")" ]
}

# What it stands on went while somebody had a file open, so that systemd could not unmount it: a disk that comes back
# could not take its place, and a pool would go on without a branch.
drop() {
  echo "$1: $2 is gone, it is let go of"
  rm -f "$SENTINELS$1/here"
  hold "$1"
  umount -l "$1"
}

look() {
  while read -r at unit device needs <&3; do
    [ "$at" != '#' ] || continue
    source=$(source_at "$at")
    if [ -n "$source" ]; then
      case $source in
        /dev/*) [ -e "$source" ] || { drop "$at" "$source"; continue; } ;;
      esac
      all_here "$needs" || { drop "$at" "$needs"; continue; }
      if [ ! -e "$SENTINELS$at/here" ]; then
        # Not while it is being unmounted: this would call that off.
        guard=mediahost-mounted@${unit%.mount}.service
        idle "$unit" && idle "$guard" || continue
        # Where somebody removed the file alone, a restart would stop all who need it.
        if systemctl -q is-active "$guard"; then present "$at"; else systemctl --no-block start "$guard"; fi
      elif [ -n "$first" ] || [ -n "$(ls -A "$HELD" 2>/dev/null)" ]; then
        let_go "$at"
      fi
    else
      [ ! -e "$SENTINELS$at/here" ] || { rm -f "$SENTINELS$at/here"; hold "$at"; }
      all_here "$needs" && [ "$(systemctl is-enabled "$unit" 2>/dev/null)" = enabled ] || continue
      # A disk that comes mounts itself, and a pool follows it. One that was unmounted in order is about to be pulled.
      [ "$device" = share ] || systemctl -q is-failed "$unit" || came_back "$unit" "$device" || continue
      systemctl --no-block start "$unit"
    fi
  done 3<"$TABLE"
}

forget_gone() { # marks of containers that are no more
  [ -n "$(ls -A "$HELD" 2>/dev/null)" ] && engine || return 0
  for mark in "$HELD"/*; do
    [ ! -e "$mark" ] || docker inspect "${mark##*/}" >/dev/null 2>&1 || rm -f "$mark"
  done
}

watch() {
  # The engine has tried to start everything by now: who failed for an absent mount that came meanwhile is started.
  first=yes
  while :; do
    look
    forget_gone
    first=
    sleep 30
  done
}

case ${1:-} in
  bare) bare ;;
  present) present "$2" ;;
  absent) absent "$2" ;;
  watch) watch ;;
  *) echo "usage: $0 bare | present DIRECTORY | absent DIRECTORY | watch" >&2; exit 2 ;;
esac
"""

_BARE = f"""[Unit]
Description=Bare mount points in which nothing can be written
DefaultDependencies=no
After=systemd-remount-fs.service
Conflicts=shutdown.target
Before=shutdown.target

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart={SCRIPT_PATH} bare
"""

_SENTINEL = f"""[Unit]
Description=What needs the mount %f goes with it
BindsTo=%i.mount
After=%i.mount
Before=docker.service

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart={SCRIPT_PATH} present %f
ExecStop={SCRIPT_PATH} absent %f
TimeoutStopSec=10min
"""

_WATCH = f"""[Unit]
Description=Mounts that are absent are tried again, and who waits for them is started
After=docker.service

[Service]
Type=simple
ExecStart={SCRIPT_PATH} watch
Restart=always
RestartSec=10
MemoryMax=256M

[Install]
WantedBy=multi-user.target
"""


def owned(settings: Settings, credentials: Iterable[File] = ()) -> dict[str, str]:
    """Files of this stage for the manifest. None needs a restart when it goes: `operations.mounts` sees to that."""
    return {file.path: "" for file in files(settings, credentials)}
