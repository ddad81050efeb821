"""SnapRAID: parity of the media disks on disks of their own, brought up to date each day, compared each week.

SnapRAID protects what stood on the disks at the last sync. A sync after an accident makes the accident good for
ever, so the program of ours counts first what is gone, and refuses when it is too much, when a disk is not mounted,
or when the parity would lie on a disk that it protects (snapraid(1); the rule of the helper scripts in the field).
"""

from __future__ import annotations

import shlex

from mediahost.config import Settings
from mediahost.render.upkeep import PROGRAMS, UNITS, Concern, script
from mediahost.resources import text_file
from mediahost.upkeep import snapraid_disks

CONFIGURATION_PATH = "/etc/snapraid.conf"
"""Where snapraid(1) looks by itself: what a person types works as the timers do."""
PROGRAM_PATH = f"{PROGRAMS}/snapraid"
CONTENT_PATH = "/var/lib/mediahost/snapraid.content"
"""The list of all files and their checksums; copies of it are on every disk that is protected."""
LOCK_PATH = "/run/mediahost-snapraid.lock"

SYNC_UNIT, SYNC_TIMER = "mediahost-snapraid-sync.service", "mediahost-snapraid-sync.timer"
SCRUB_UNIT, SCRUB_TIMER = "mediahost-snapraid-scrub.service", "mediahost-snapraid-scrub.timer"
PATHS = (
    *(f"{UNITS}/{unit}" for unit in (SYNC_TIMER, SCRUB_TIMER, SYNC_UNIT, SCRUB_UNIT)),
    PROGRAM_PATH,
    CONFIGURATION_PATH,
)

# Days for which a block that was compared is left out of the weekly scrubs.
_SCRUBBED_FOR = 10

_PROGRAM = r"""# sync [--accept-deletions] brings the parity up to date, scrub compares a part of it
set -eu
export LC_ALL=C
die() { echo "$*" >&2; exit 1; }
[ "$(id -u)" = 0 ] || die "only root can do that: use sudo"

# fd 9 is held until this program ends: a scrub waits for a sync that is still at work
exec 9>"$LOCK"
flock -w 21600 9 || die "another SnapRAID has been at work for six hours"

# Without its disk a mount point is an empty directory, and every file on it would count as deleted.
for place in $DATA $PARITY; do
  mountpoint -q "$place" || die "$place: no disk is mounted there; plug it in, then: systemctl start $NAME-sync"
done
for place in $PARITY; do
  for protected in $DATA; do
    [ "$(stat -c %d "$place")" != "$(stat -c %d "$protected")" ] ||
      die "$place is on the disk that it shall protect ($protected): parity needs a disk of its own"
  done
done

sync_() {
  difference=0
  told=$(snapraid diff 2>&1) || difference=$?
  # 0: nothing differs, 2: something does (snapraid(1), diff)
  case $difference in
    0) echo "nothing has changed since the last sync"; return 0 ;;
    2) ;;
    *) printf '%s\n' "$told" | tail -n 5 >&2; die "snapraid diff failed; the parity stays as it is" ;;
  esac
  removed=$(printf '%s\n' "$told" | awk '/^ *[0-9]+ removed$/ { count = $1 } END { print count + 0 }')
  if [ "$removed" -gt "$LIMIT" ] && [ "${1-}" != --accept-deletions ]; then
    printf '%s\n' "$told" | grep '^remove ' | head -n 20 >&2
    die "refused: $removed files were deleted since the last sync, more than snapraid_delete_limit ($LIMIT)." \
      "To get them back: snapraid fix -m. To do without them: $0 sync --accept-deletions"
  fi
  printf '%s\n' "$told" | grep -E '^ *[0-9]+ [a-z]+$' || true
  snapraid --quiet sync
}

case ${1-} in
  sync) shift; sync_ "$@" ;;
  scrub)
    [ -f "$CONTENT" ] || { echo "nothing to compare before the first sync"; exit 0; }
    snapraid --quiet -p "$PERCENT" -o "$AGE" scrub ||
      die "damage was found, or a disk could not be read; see above. To repair what can be: snapraid -e fix"
    ;;
  *) die "usage: $0 sync [--accept-deletions] or scrub" ;;
esac"""


def configuration(settings: Settings) -> tuple[str, ...]:
    """The lines of snapraid.conf(5)."""
    data = snapraid_disks(settings)
    lines = [
        f"{'' if level == 1 else f'{level}-'}parity {at}/snapraid.parity"
        for level, at in enumerate(settings.snapraid_parity, start=1)
    ]
    # One more than there are parities is what it asks for; here every disk has one, and the system's.
    lines += [f"content {CONTENT_PATH}", *(f"content {at}/snapraid.content" for at in data)]
    # A disk's name must never change, or its files count as gone: it is made from where the disk is mounted.
    lines += [f"data {at.strip('/').replace('/', '-')} {at}/" for at in data]
    lines += [f"exclude {pattern}" for pattern in settings.snapraid_exclude]
    # After so many GB a sync that is cut off need not begin anew.
    lines.append("autosave 250")
    return tuple(lines)


def _program(settings: Settings) -> str:
    words = {
        "DATA": " ".join(snapraid_disks(settings)),
        "PARITY": " ".join(settings.snapraid_parity),
        "LIMIT": str(settings.snapraid_delete_limit),
        "PERCENT": str(settings.snapraid_scrub_percent),
        "AGE": str(_SCRUBBED_FOR),
        "CONTENT": CONTENT_PATH,
        "LOCK": LOCK_PATH,
        "NAME": "mediahost-snapraid",
    }
    head = "\n".join(f"{name}={shlex.quote(value)}" for name, value in words.items())
    return f"{head}\n{_PROGRAM}"


def _service(what: str, verb: str) -> tuple[str, ...]:
    return (
        "[Unit]",
        f"Description={what}",
        "Documentation=man:snapraid(1)",
        "",
        "[Service]",
        "Type=oneshot",
        f"ExecStart={PROGRAM_PATH} {verb}",
        "# It reads whole disks: whoever watches a film goes first.",
        "Nice=19",
        "IOSchedulingClass=idle",
    )


def _timer(what: str, calendar: str) -> tuple[str, ...]:
    return (
        "[Unit]",
        f"Description={what}",
        "",
        "[Timer]",
        f"OnCalendar={calendar}",
        "# A machine that was off at that time does it when it is on again.",
        "Persistent=true",
        "",
        "[Install]",
        "WantedBy=timers.target",
    )


def concern(settings: Settings) -> Concern:
    """SnapRAID with its timers, or nothing of it. Parity and content files are data and stay."""
    own = (SYNC_TIMER, SCRUB_TIMER, SYNC_UNIT, SCRUB_UNIT)
    if not settings.snapraid_parity:
        return Concern("SnapRAID", PATHS, own_units=own)
    sync, scrub = "SnapRAID brings the parity up to date", "SnapRAID compares a part of the disks with the parity"
    day, at = settings.snapraid_scrub_on.split(" ")
    return Concern(
        "SnapRAID",
        PATHS,
        own_units=own,
        packages=("snapraid",),
        files={
            "": (
                text_file(CONFIGURATION_PATH, *configuration(settings)),
                script(PROGRAM_PATH, _program(settings)),
                text_file(f"{UNITS}/{SYNC_UNIT}", *_service(sync, "sync")),
                text_file(f"{UNITS}/{SCRUB_UNIT}", *_service(scrub, "scrub")),
            ),
            SYNC_TIMER: (text_file(f"{UNITS}/{SYNC_TIMER}", *_timer(sync, f"*-*-* {settings.snapraid_sync_at}:00")),),
            SCRUB_TIMER: (text_file(f"{UNITS}/{SCRUB_TIMER}", *_timer(scrub, f"{day} *-*-* {at}:00")),),
        },
        units=(SYNC_TIMER, SCRUB_TIMER),
        watched=(SYNC_UNIT, SCRUB_UNIT),
        interrupts="a sync or scrub at work goes on",
    )
