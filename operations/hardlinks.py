"""The hardlink proof of stage verify: a link from downloads to media, through the containers' own mounts.

The container's mounts are reached as /proc/PID/root, so nothing is needed inside of it, and the trial is made as the
media user, as an import is. It leaves no file behind: not when it fails, nor when it is cut off, because the next
trial begins by removing what it makes. A layout that cannot have hardlinks is told in words, at every run; it fails
none, because it may be what the user wants.
"""

from __future__ import annotations

import shlex

from pyinfra.api import operation

from facts.snapshot import Request, Snapshot
from mediahost import hardlinks
from mediahost.stack import PROJECT
from mediahost.wanted import Wanted
from operations import report
from operations.convergence import Commands, Step, converge

MOUNTS = "/proc/mounts"
_ROOT = "/data/"
"""Where every container has downloads and media (`mediahost.stack.media_views`)."""

_TRY = r"""export LC_ALL=C
new=$RECORD.new
mkdir -p "${RECORD%/*}"
printf '%s\n' "$DIGEST" >"$new"
clean() { for each in $SOURCES $TARGETS; do rm -f -- "$each/$PROBE"; done; }
for service in $SERVICES; do
  pid=$(docker inspect -f '{{.State.Pid}}' "$PROJECT-$service-1" 2>/dev/null) || pid=0
  [ "${pid:-0}" != 0 ] || { echo "service $service does not run: hardlinks cannot be proven" >&2; exit 1; }
  (
    # The container's own view: link(2) compares the mounts by which it got to both names.
    cd "/proc/$pid/root$ROOT"
    clean
    trap clean EXIT
    trap 'exit 1' HUP INT TERM
    for source in $SOURCES; do
      said=$(setpriv --reuid="$USER_" --regid="$GROUP_" --clear-groups \
        sh -c 'umask 002; : >"$1"' sh "$source/$PROBE" 2>&1) || {
        printf '%s\t%s\t%s\t%s\n' "$service" "$ROOT$source" "$ROOT$source" "${said##*: }" >>"$new"
        continue
      }
      for target in $TARGETS; do
        if said=$(setpriv --reuid="$USER_" --regid="$GROUP_" --clear-groups \
          ln "$source/$PROBE" "$target/$PROBE" 2>&1); then
          [ "$(stat -c %d:%i "$source/$PROBE")" = "$(stat -c %d:%i "$target/$PROBE")" ] ||
            said="it became another file: cross-device copy"
        fi
        rm -f -- "$target/$PROBE"
        [ -z "$said" ] || printf '%s\t%s\t%s\t%s\n' "$service" "$ROOT$source" "$ROOT$target" "${said##*: }" >>"$new"
      done
      rm -f -- "$source/$PROBE"
    done
  )
done
mv -f "$new" "$RECORD"
"""


def request(wanted: Wanted) -> Request:
    """What the snapshot must look at: the outcome of the last trial, and what is mounted."""
    if not hardlinks.trial(wanted.settings, wanted.stack).services:
        return Request()
    return Request(contents=frozenset((hardlinks.RECORD_PATH, MOUNTS)))


def steps(wanted: Wanted, seen: Snapshot, again: bool = False) -> list[Step]:
    """The trial, when it was not made yet for this host as it is.

    With `again` also when the last one failed for what may be better by now.
    """
    settings = wanted.settings
    trial = hardlinks.trial(settings, wanted.stack)
    if not trial.services:
        return []
    digest = hardlinks.digest(trial, settings, wanted.stack, seen.contents.get(MOUNTS, ""))
    tried, failures = hardlinks.read(seen.contents.get(hardlinks.RECORD_PATH, ""))
    if tried == digest and not (again and any(failure.passing for failure in failures)):
        return []
    what = "hardlinks from downloads to media: " + (
        "could not be proven, are tried again" if tried == digest else "not tried yet with these mounts"
    )
    words = {
        "RECORD": hardlinks.RECORD_PATH,
        "DIGEST": digest,
        "PROBE": hardlinks.PROBE,
        "PROJECT": PROJECT,
        "ROOT": _ROOT,
        "SERVICES": " ".join(trial.services),
        "SOURCES": " ".join(path.removeprefix(_ROOT) for path in trial.sources),
        "TARGETS": " ".join(path.removeprefix(_ROOT) for path in trial.targets),
        "USER_": str(trial.uid),
        "GROUP_": str(trial.gid),
    }
    head = "\n".join(f"{name}={shlex.quote(value)}" for name, value in words.items())
    return [Step(what, f"{head}\n{_TRY}")]


def notices(wanted: Wanted, seen: Snapshot) -> list[str]:
    """What the last trial found that the user should know."""
    if not hardlinks.trial(wanted.settings, wanted.stack).services:
        return []
    _, failures = hardlinks.read(seen.contents.get(hardlinks.RECORD_PATH, ""))
    return hardlinks.explained(wanted.settings, failures)


@operation()
def proven(wanted: Wanted) -> Commands:
    """
    Hardlinks tried, and what came of it told.

    + wanted: the host as it should be
    """
    tried = False

    def missing(seen: Snapshot) -> list[Step]:
        nonlocal tried
        found = steps(wanted, seen, again=not tried)
        tried = True
        if not found:
            for told in notices(wanted, seen):
                report.notice(told)
        return found

    yield from converge(missing)
