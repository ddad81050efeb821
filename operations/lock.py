"""One run at a time on a host.

The lock names the login session of the run that took it. When the control machine dies, sshd ends that session
and the lock is void at once: no stale lock, no time-out to wait for. It is taken before the first change, so a
run that changes nothing costs nothing.
"""

from __future__ import annotations

import getpass
import os
import shlex
import socket
from collections.abc import Iterator

from pyinfra import host
from pyinfra.api import StringCommand

from facts.snapshot import LOCK_FILE

_HELD = "mediahost_lock"

# A command goes on when the control process that started it dies. The next run must not work beside it.
_DIRECTORY = LOCK_FILE.rpartition("/")[0]
BUSY_FILE = f"{_DIRECTORY}/busy"
_ORPHAN_SECONDS = 1800
_STILL_BUSY = 75  # EX_TEMPFAIL of sysexits.h

# The session is the nearest ancestor called sshd or sshd-session that runs as the login user; all channels of one
# connection share it. Without sshd (a local run) it is the last ancestor below init.
_SESSION = r"""
pid=$$; session=
while [ "$pid" -gt 1 ]; do
  read -r stat <"/proc/$pid/stat"; name=${stat#*(}; name=${name%)*}
  session=$pid
  case $name in sshd|sshd-session) break ;; esac
  set -- ${stat##*) }; pid=$2
done
read -r stat <"/proc/$session/stat"; set -- ${stat##*) }; started=${20}
"""

# Below this a package run or an image pull fails half-way and leaves the host worse than before.
LEAST_FREE_MIB = 500

_TAKE = (
    _SESSION
    + r"""
df -Pm / /var | tail -n +2 | while read -r device size used free share mount; do
  if [ "$free" -lt "$LEAST_FREE" ]; then
    echo "only $free MiB are free on $mount ($device), at least $LEAST_FREE are needed; free some and run again" >&2
    exit 1
  fi
done
alive() {
  # An empty lock file must not lead to /proc/stat, which is there for ever.
  case $1 in ''|*[!0-9]*) return 1 ;; esac
  [ -r "/proc/$1/stat" ] || return 1
  read -r stat <"/proc/$1/stat"; wanted=$2; set -- ${stat##*) }; [ "${20}" = "$wanted" ]
}
mkdir -p "${LOCK%/*}"
temp=$LOCK.$$; printf '%s %s %s\n' "$session" "$started" "$HOLDER" >"$temp"
tries=0
until ln "$temp" "$LOCK" 2>/dev/null; do
  read -r pid when who <"$LOCK" || true
  if [ "$pid $when" = "$session $started" ]; then break; fi
  tries=$((tries + 1))
  if alive "$pid" "$when" || [ $tries -gt 3 ]; then
    rm -f "$temp"
    echo "another run is at work on this host: $who. Wait for it, or end its session (pid $pid), then run again." >&2
    exit 1
  fi
  rm -f "$LOCK"
done
rm -f "$temp"
"""
)


def is_ours() -> bool:
    """Whether this run has taken the host's lock."""
    return bool(host.connector_data.get(_HELD))


def take() -> Iterator[StringCommand]:
    """Take the lock, or fail this host with the name of the one who has it."""
    who = f"{getpass.getuser()}@{socket.gethostname()} process {os.getpid()}"
    script = f"set -eu\nLOCK={LOCK_FILE}\nLEAST_FREE={LEAST_FREE_MIB}\nHOLDER={shlex.quote(who)}\n{_TAKE}"
    # The guard lets one taker at a time judge a lock stale; two could otherwise each remove the other's new one.
    guarded = f"mkdir -p {_DIRECTORY} && flock -w 60 {LOCK_FILE}.guard sh -c {shlex.quote(script)}"
    yield StringCommand("sh", "-c", shlex.quote(guarded))
    host.connector_data[_HELD] = True


def alone(command: str) -> str:
    """Shell that runs `command` under `sh -eu` once nothing of an earlier run is at work any more."""
    # -o: daemons that the command starts must not inherit the lock, or it would be held for ever.
    run = f"flock -o -w {_ORPHAN_SECONDS} -E {_STILL_BUSY} {BUSY_FILE} sh -euc {shlex.quote(command)}"
    told = f"a command of an earlier run is still at work after {_ORPHAN_SECONDS} s; see: fuser -v {BUSY_FILE}"
    return f"{run} || {{ code=$?; [ $code -ne {_STILL_BUSY} ] || echo {shlex.quote(told)} >&2; exit $code; }}"


def give_back() -> Iterator[StringCommand]:
    """Release the lock if this run holds it."""
    if is_ours():
        yield StringCommand("rm", "-f", LOCK_FILE)
        host.connector_data[_HELD] = False
