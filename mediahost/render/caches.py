"""Directories for transcodes and thumbnails that cannot grow beyond their size: file systems of their own.

On a disk each is an ext4 in a file of exactly that size, in memory a tmpfs. So the kernel holds the limit, on
whatever file system the disk has (docs/decisions/cache-limits.md). A timer makes room before it is reached: it
removes the files that were used longest ago.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mediahost.config import Settings
from mediahost.render.mounts import escaped
from mediahost.render.upkeep import PROGRAMS, UNITS, script
from mediahost.resources import Directory, File, text_file
from mediahost.upkeep import Cache, caches

PROGRAM_PATH = f"{PROGRAMS}/cache"
TABLE_PATH = "/etc/mediahost/caches"
"""NAME, UNIT, DIRECTORY, IMAGE ("-" for memory), BYTES of each: what is mounted, for the programs and for a later
run."""
PRUNE_UNIT, PRUNE_TIMER = "mediahost-cache-prune.service", "mediahost-cache-prune.timer"
PATHS = (
    f"{UNITS}/{PRUNE_TIMER}",
    f"{UNITS}/{PRUNE_UNIT}",
    f"{UNITS}/mediahost-cache-transcode.service",
    f"{UNITS}/mediahost-cache-thumbnails.service",
    PROGRAM_PATH,
    TABLE_PATH,
)
"""Every path but the mount units, whose names depend on where they mount. The table goes last: it names those."""

MODE = "2775"
_FULL, _ROOM = 90, 80  # per cent: where pruning begins, and where it ends
_IN_USE = 60  # minutes since a file was written or read for which it is left alone


def unit(cache: Cache) -> str:
    """Its mount unit."""
    return f"{escaped(cache.at)}.mount"


def image_unit(name: str) -> str:
    """The unit that makes the file of the cache `name` before it is mounted."""
    return f"mediahost-cache-{name}.service"


def mount_unit_path(name: str) -> str:
    """Where the file of a mount unit is."""
    return f"{UNITS}/{name}"


@dataclass(frozen=True)
class Standing:
    """A cache that an earlier run has made, as the table tells."""

    name: str
    unit: str
    at: str
    image: str
    size: int


def standing(table: str) -> tuple[Standing, ...]:
    """The caches that `table`, the text of TABLE_PATH, names."""
    rows = (line.split("\t") for line in table.splitlines() if not line.startswith("#"))
    return tuple(Standing(row[0], row[1], row[2], row[3], int(row[4])) for row in rows if len(row) == 5)


def standing_in(contents: Mapping[str, str]) -> tuple[Standing, ...]:
    """The caches that a host's files, by path, tell of."""
    return standing(contents.get(TABLE_PATH, ""))


def table(settings: Settings) -> File:
    """What is mounted where."""
    rows = (
        f"{cache.name}\t{unit(cache)}\t{cache.at}\t{cache.image or '-'}\t{cache.size}" for cache in caches(settings)
    )
    return text_file(TABLE_PATH, *rows)


def mount_files(settings: Settings) -> tuple[File, ...]:
    """The mount units."""
    return tuple(text_file(mount_unit_path(unit(cache)), *_mount_unit(cache, settings)) for cache in caches(settings))


def files(settings: Settings) -> tuple[File, ...]:
    """Every file but the mount units; none where there is no cache."""
    if not caches(settings):
        return ()
    owner = f"{settings.media_uid}:{settings.media_gid}"
    program = _PROGRAM
    for name, value in {"TABLE": TABLE_PATH, "OWNER": owner, "FULL": _FULL, "ROOM": _ROOM, "IDLE": _IN_USE}.items():
        program = program.replace(f"@{name}@", str(value))
    return (
        script(PROGRAM_PATH, program.rstrip()),
        *(
            text_file(
                f"{UNITS}/{image_unit(cache.name)}",
                "[Unit]",
                f"Description=The file of the cache {cache.name}",
                f"RequiresMountsFor={cache.image}",
                "",
                "[Service]",
                "Type=oneshot",
                f"ExecStart={PROGRAM_PATH} image {cache.name}",
                "TimeoutStartSec=900",
            )
            for cache in caches(settings)
            if cache.image
        ),
        text_file(
            f"{UNITS}/{PRUNE_UNIT}",
            "[Unit]",
            "Description=Room in the caches: what was used longest ago is removed",
            "",
            "[Service]",
            "Type=oneshot",
            f"ExecStart={PROGRAM_PATH} prune",
            "Nice=19",
            "IOSchedulingClass=idle",
        ),
        text_file(
            f"{UNITS}/{PRUNE_TIMER}",
            "[Unit]",
            "Description=Room in the caches",
            "",
            "[Timer]",
            "OnBootSec=10min",
            "OnUnitActiveSec=10min",
            "",
            "[Install]",
            "WantedBy=timers.target",
        ),
    )


def owned(settings: Settings) -> tuple[str, ...]:
    """Every path of ours."""
    if not caches(settings):
        return ()
    return (TABLE_PATH, *(file.path for file in (*files(settings), *mount_files(settings))))


def directories(settings: Settings) -> tuple[Directory, ...]:
    """The roots of the caches, once they are mounted."""
    owner, group = str(settings.media_uid), str(settings.media_gid)
    return tuple(Directory(cache.at, owner, group, MODE) for cache in caches(settings))


def _mount_unit(cache: Cache, settings: Settings) -> tuple[str, ...]:
    head = ["[Unit]", f"Description=The cache {cache.name}, which cannot grow beyond its size"]
    if cache.image is None:
        options = f"size={cache.size},mode={MODE},uid={settings.media_uid},gid={settings.media_gid},nosuid,nodev"
        mount = ["What=tmpfs", f"Where={cache.at}", "Type=tmpfs", f"Options={options}"]
    else:
        # A mount unit comes before local-fs.target unless it is told otherwise; what makes the file comes after it.
        head += ["DefaultDependencies=no", "Conflicts=umount.target", "Before=umount.target"]
        head += [f"Requires={image_unit(cache.name)}", f"After={image_unit(cache.name)}"]
        # Not noatime: pruning asks when a file was read last.
        options = "loop,nosuid,nodev"
        mount = [f"What={cache.image}", f"Where={cache.at}", "Type=ext4", f"Options={options}"]
    return (*head, "", "[Mount]", *mount, "TimeoutSec=900", "", "[Install]", "WantedBy=multi-user.target")


_PROGRAM = r"""# image NAME makes the file of a cache, or gives it its new size; prune makes room in all of them
set -eu
export LC_ALL=C
TABLE=@TABLE@
die() { echo "$*" >&2; exit 1; }

image() { # file bytes
  directory=${1%/*}
  mkdir -p "$directory"
  have=0
  # Containers keep their mounts when the host's is gone; a file system that is mounted twice is a broken one.
  [ -z "$(losetup -j "$1")" ] || die "$1 is still in use: stop the services that use it, then run again"
  [ ! -e "$1" ] || have=$(stat -c %s "$1")
  if [ "$have" -lt "$2" ]; then
    free=$(($(stat -f -c '%a * %S' "$directory")))
    # All of it is taken now, so that the cache neither fills the disk one day nor is starved by others on it.
    [ "$((free - 1073741824))" -gt "$(($2 - have))" ] ||
      die "$directory has $((free / 1048576)) MB free: a cache of $(($2 / 1048576)) MB would leave less than 1 GB"
    (umask 077; fallocate -l "$2" "$1" 2>/dev/null || truncate -s "$2" "$1")
    if [ "$have" = 0 ]; then
      # nodiscard: it would give back the space that has just been taken.
      mkfs.ext4 -q -F -m 0 -E "nodiscard,root_owner=@OWNER@" "$1" ||
        { rm -f "$1"; die "$1: no file system could be made"; }
    fi
  fi
  repaired=0
  # 1 and 2: errors that were corrected (e2fsck(8))
  e2fsck -p "$1" >/dev/null || repaired=$?
  [ "$repaired" -lt 4 ] ||
    die "$1: its file system is damaged. It holds nothing that cannot be made anew: delete it, then run again"
  if [ "$have" != 0 ] && [ "$have" != "$2" ]; then
    e2fsck -f -p "$1" >/dev/null || [ $? -lt 4 ] || die "$1: its file system is damaged; delete it, then run again"
    resize2fs "$1" "$(($2 / 1024))K" >/dev/null 2>&1 ||
      die "$1: holds more than its new size of $(($2 / 1048576)) MB; delete files in it first, or delete it"
    truncate -s "$2" "$1"
  fi
}

prune() { # directory
  mountpoint -q "$1" || return 0
  set -- "$1" $(stat -f -c '%b %a %S' "$1")
  total=$(($2 * $4)) used=$((($2 - $3) * $4))
  [ "$((used * 100))" -ge "$((total * @FULL@))" ] || return 0
  # What is read is used, too: of its three times the latest one counts. Names with a line feed are left alone.
  find "$1" -xdev -type f ! -name '*
*' -mmin +@IDLE@ -amin +@IDLE@ -printf '%A@ %T@ %b %p\n' |
    awk '{ time = $1 > $2 ? $1 : $2; sub(/^[^ ]+ [^ ]+ /, ""); print time, $0 }' | sort -n |
    awk -v over="$((used - total * @ROOM@ / 100))" '
      freed < over { freed += $2 * 512; sub(/^[^ ]+ [^ ]+ /, ""); print }' |
    xargs -r -d '\n' rm -f --
  find "$1" -xdev -mindepth 2 -type d -empty -mmin +@IDLE@ -delete
  left=$(stat -f -c '%b %a' "$1")
  echo "$1: was $((used * 100 / total)) % full, is $(((${left% *} - ${left#* }) * 100 / ${left% *})) % full"
}

case ${1-} in
  image)
    while IFS='	' read -r name unit directory file bytes; do
      case $name in '#'*) continue ;; esac
      [ "$file" = - ] || [ "$name" != "$2" ] || image "$file" "$bytes"
    done <"$TABLE"
    ;;
  prune)
    while IFS='	' read -r name unit directory file bytes; do
      case $name in '#'*) continue ;; esac
      prune "$directory"
    done <"$TABLE"
    ;;
  *) die "usage: cache image NAME, or cache prune" ;;
esac"""
