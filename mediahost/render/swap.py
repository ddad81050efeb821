"""Swap of ours: a file, or compressed memory, made and taken into use by one unit.

A unit of ours and not fstab(5): that is the user's file. Not a .swap unit either, which could not make the file, nor
make it anew when its size changes. The unit starts before Docker, so it is stopped after it: at shutdown what is in
swap goes back into memory that the containers have left by then.
"""

from __future__ import annotations

from mediahost.config import Settings
from mediahost.render.upkeep import PROGRAMS, UNITS, Concern, script
from mediahost.resources import text_file
from mediahost.upkeep import size_in_bytes

UNIT = "mediahost-swap.service"
UNIT_PATH = f"{UNITS}/{UNIT}"
PROGRAM_PATH = f"{PROGRAMS}/swap"
PATHS = (UNIT_PATH, PROGRAM_PATH)
FILE_PATH = "/var/lib/mediahost/swapfile"
DEVICE_RECORD = "/run/mediahost/zram"
"""Names the zram device that is ours; others may belong to somebody else."""

_PROGRAM = r"""set -eu
FILE=@FILE@
RECORD=@RECORD@
die() { echo "$*" >&2; exit 1; }

# what fallocate(1) leaves is a hole on some file systems, and swapon(2) refuses a file with holes
fill() {
  fallocate -l "$1" "$FILE" 2>/dev/null || dd if=/dev/zero of="$FILE" bs=1M count=$(($1 / 1048576)) status=none
}

start_file() {
  directory=${FILE%/*}
  mkdir -p "$directory"
  kind=$(stat -f -c %T "$directory")
  case $kind in
    zfs|nfs|fuseblk|smb2|cifs|tmpfs|overlayfs)
      die "$directory is on $kind, which cannot hold a swap file: choose swap = zram" ;;
  esac
  # The header that mkswap(8) writes takes a page; the rest is what swapon tells.
  if [ ! -f "$FILE" ] || [ "$(stat -c %s "$FILE")" != "$1" ]; then
    rm -f "$FILE"
    free=$(($(stat -f -c '%a * %S' "$directory")))
    [ "$((free - 1073741824))" -gt "$1" ] ||
      die "$directory has $((free / 1048576)) MB free: a swap file of $(($1 / 1048576)) MB would leave less than 1 GB"
    (umask 077; : >"$FILE")
    # Copy on write moves blocks, and the kernel writes to swap where they once were.
    [ "$kind" != btrfs ] || chattr +C "$FILE"
    fill "$1" || { rm -f "$FILE"; die "$FILE: could not be made"; }
  fi
  chmod 0600 "$FILE"
  mkswap "$FILE" >/dev/null
  swapon "$FILE" || { rm -f "$FILE"; die "$FILE: the kernel does not take it; choose swap = zram"; }
}

start_zram() {
  modprobe zram num_devices=0 2>/dev/null || [ -d /sys/class/zram-control ] ||
    die "this kernel has no zram: install linux-modules-extra-$(uname -r) (Ubuntu), or choose swap = file"
  device=/dev/zram$(cat /sys/class/zram-control/hot_add)
  mkdir -p "${RECORD%/*}"
  printf '%s\n' "$device" >"$RECORD"
  # zstd compresses better; where the kernel has none its own choice stays.
  echo zstd 2>/dev/null >"/sys/block/${device#/dev/}/comp_algorithm" || true
  printf '%s\n' "$1" >"/sys/block/${device#/dev/}/disksize"
  mkswap "$device" >/dev/null
  # before any swap on a disk
  swapon -p 100 "$device"
}

stop() {
  used=no
  while read -r name _; do [ "$name" != "$FILE" ] || used=yes; done </proc/swaps
  [ "$used" = no ] || swapoff "$FILE"
  if [ -r "$RECORD" ]; then
    read -r device <"$RECORD"
    while read -r name _; do [ "$name" != "$device" ] || swapoff "$device"; done </proc/swaps
    [ ! -b "$device" ] || echo "${device#/dev/zram}" >/sys/class/zram-control/hot_remove
    rm -f "$RECORD"
  fi
}

case ${1-} in
  start) stop; case $2 in file) start_file "$3" ;; zram) rm -f "$FILE"; start_zram "$3" ;; esac ;;
  stop) stop ;;
  remove) stop; rm -f "$FILE" ;;
  *) die "usage: swap start file|zram BYTES, stop, or remove" ;;
esac"""


def concern(settings: Settings) -> Concern:
    """The unit that makes the swap, or nothing."""
    if settings.swap == "none":
        return Concern("swap", PATHS, own_units=(UNIT,), afterwards=f"rm -f {FILE_PATH}")
    program = _PROGRAM.replace("@FILE@", FILE_PATH).replace("@RECORD@", DEVICE_RECORD)
    unit = (
        "[Unit]",
        "Description=Swap made by mediahost",
        "Documentation=man:swapon(8)",
        "RequiresMountsFor=/var/lib/mediahost",
        "Before=docker.service plexmediaserver.service",
        "",
        "[Service]",
        "Type=oneshot",
        "RemainAfterExit=yes",
        f"ExecStart={PROGRAM_PATH} start {settings.swap} {size_in_bytes(settings.swap_size)}",
        f"ExecStop={PROGRAM_PATH} stop",
        "# What is swapped out is read back when it stops.",
        "TimeoutStopSec=300",
        "",
        "[Install]",
        "WantedBy=multi-user.target",
    )
    return Concern(
        "swap",
        PATHS,
        own_units=(UNIT,),
        files={
            UNIT: (
                script(PROGRAM_PATH, program),
                text_file(UNIT_PATH, *unit),
            )
        },
        units=(UNIT,),
        interrupts="what is swapped out is read back into memory meanwhile",
    )


def missing(settings: Settings, swaps: str, device: str) -> str:
    """What is wrong with the swap in use, in words: `swaps` is /proc/swaps, `device` what `DEVICE_RECORD` says."""
    if settings.swap == "none":
        return ""
    name = FILE_PATH if settings.swap == "file" else device.strip()
    wanted = size_in_bytes(settings.swap_size) // 1024
    for line in swaps.splitlines()[1:]:
        # NAME TYPE SIZE USED PRIORITY; KiB, less the page of mkswap's header (of up to 64 KiB)
        words = line.split()
        if len(words) == 5 and words[0] == name:
            return "" if 0 <= wanted - int(words[2]) <= 64 else f"swap is {int(words[2])} KiB, wanted {wanted} KiB"
    return "not in use"
