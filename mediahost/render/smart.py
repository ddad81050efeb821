"""smartd(8) that watches the disks' own health reports, and keeps what it says until somebody has read it.

The package's configuration stays as it is: a drop-in gives the daemon one of ours. What smartd reports goes to the
journal as critical, and into a file that every run shows.
"""

from __future__ import annotations

from mediahost.config import Settings
from mediahost.render.upkeep import PROGRAMS, UNITS, Concern, script
from mediahost.resources import text_file

UNIT = "smartmontools.service"
"""smartd.service is another name of it, on Debian and Ubuntu alike."""
DROP_IN_PATH = f"{UNITS}/{UNIT}.d/mediahost.conf"
CONFIGURATION_PATH = "/etc/mediahost/smartd.conf"
PROGRAM_PATH = f"{PROGRAMS}/smart-report"
PATHS = (DROP_IN_PATH, CONFIGURATION_PATH, PROGRAM_PATH)
REPORTS_PATH = "/var/lib/mediahost/smart-reports"

# Attributes that change all the time and mean nothing: 190 and 194 are temperatures, which -W watches.
_CHECKS = "-a -I 190 -I 194 -o on -S on"
# A disk that sleeps is left asleep, for a week at most; q: without a line in the journal each time.
_SLEEPING = "-n standby,336,q"
# T/MM/DD/d/HH as a regular expression: short ones daily at 02, long ones on Saturdays (6) at 03.
_SELF_TESTS = "-s (S/../.././02|L/../../6/03)"

_PROGRAM = r"""set -eu
# smartd(8), -M exec: what is wrong comes in these variables
REPORTS=@REPORTS@
device=${SMARTD_DEVICESTRING:-a disk}
what=$(printf '%s' "${SMARTD_MESSAGE:-unknown}" | tr '\n\t' '  ')
logger -p daemon.crit -t mediahost-smart "$device: $what"
# the newest hundred
mkdir -p "${REPORTS%/*}"
{ [ ! -f "$REPORTS" ] || tail -n 99 "$REPORTS"; printf '%s %s: %s\n' "$(date +%Y-%m-%dT%H:%M)" "$device" "$what"; } \
  >"$REPORTS.new"
mv -f "$REPORTS.new" "$REPORTS"
"""


def concern(settings: Settings) -> Concern:
    """smartd with our configuration, or the package's own again."""
    if not settings.smart:
        # The daemon is the package's: it goes on with the package's configuration.
        return Concern("smart", PATHS, afterwards=f"systemctl try-restart {UNIT} || true")
    heat = settings.smart_temperature
    # 0: a change by some degrees is no news; reported ten degrees early in the journal, at the limit to everybody.
    words = [_CHECKS, _SLEEPING, f"-W 0,{heat - 10},{heat}"]
    if settings.smart_self_tests:
        words.append(_SELF_TESTS)
    # once: a fault is told when it comes, not each day. <nomailer>: no mail; the program tells.
    words.append(f"-m <nomailer> -M once -M exec {PROGRAM_PATH}")
    directives = " ".join(words)
    devices = settings.smart_devices or ["DEVICESCAN"]
    drop_in = (
        "[Unit]",
        "# Disks that are passed through to a virtual machine are watched there.",
        "ConditionVirtualization=",
        "",
        "[Service]",
        "ExecStart=",
        "# never: it goes on where no disk has SMART, or one comes later.",
        f"ExecStart=/usr/sbin/smartd -n --quit=never --configfile={CONFIGURATION_PATH} $smartd_opts",
    )
    return Concern(
        "smart",
        PATHS,
        packages=("smartmontools",),
        files={
            UNIT: (
                script(PROGRAM_PATH, _PROGRAM.replace("@REPORTS@", REPORTS_PATH).rstrip()),
                text_file(CONFIGURATION_PATH, *(f"{device} {directives}" for device in devices)),
                text_file(DROP_IN_PATH, *drop_in),
            )
        },
        units=(UNIT,),
        interrupts="the disks are not watched for a moment",
    )


def reports(text: str) -> tuple[str, ...]:
    """What smartd reported and nobody has taken note of, one line each, in printable letters."""
    lines = (line for line in text.splitlines() if line.strip())
    return tuple("".join(letter if letter.isprintable() else "?" for letter in line) for line in lines)
