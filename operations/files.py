"""Our own file operation: atomic, secret from the first byte, many files in one exec.

pyinfra's `files.put` uploads to a world-readable temporary file and copies it over the target, so a secret is
readable for a moment and a power cut leaves half a file. Here the new content arrives on stdin, is written 0600
beside its target, gets owner and mode, is checked, and takes the target's place by rename(2).
"""

from __future__ import annotations

import base64
import shlex
from collections.abc import Iterable, Sequence

from pyinfra.api import operation

from facts.snapshot import Request, Snapshot
from mediahost.resources import Directory, File
from operations import owed
from operations.convergence import Commands, Step, converge
from operations.guard import Guard


def request(files: Iterable[File] = (), directories: Iterable[Directory] = ()) -> Request:
    """What a snapshot must look at for these."""
    return Request(
        paths=frozenset(file.path for file in files) | frozenset(directory.path for directory in directories)
    )


def difference(file: File, seen: Snapshot) -> str:
    """What is wrong with this file on the host, in words; empty when nothing is."""
    present = seen.paths.get(file.path)
    if present is None:
        return "missing"
    if present.kind != "file":
        return f"is a {present.kind}, not a file"
    if file.once:
        return ""
    wrong = []
    if present.sha256 != file.sha256:
        wrong.append("content differs")
    if file.owner not in (present.owner, present.uid) or file.group not in (present.group, present.gid):
        wrong.append(f"owner is {present.owner}:{present.group}, wanted {file.owner}:{file.group}")
    if int(present.mode, 8) != int(file.mode, 8):
        wrong.append(f"mode is {present.mode.zfill(4)}, wanted {file.mode}")
    return ", ".join(wrong)


def steps(files: Sequence[File], seen: Snapshot, pending: str | None = None) -> list[Step]:
    """The steps that bring `files` about: one for all that differ.

    `pending` names the unit that has to be restarted when any of them changes; the mark is set before the first
    byte is written, so a run that dies in between leaves a restart to the next one.
    """
    different = [(file, difference(file, seen)) for file in files]
    different = [(file, what) for file, what in different if what]
    if not different:
        return []
    changes = [Step(f"{file.path}: {what}") for file, what in different]
    blocked = [(file, what) for file, what in different if what.startswith("is a ")]
    if blocked:
        file, what = blocked[0]
        return [Step(changes[0].change, refusal=f"{file.path} {what}: move it away, then run again")]
    command, stdin = write([file for file, _ in different], pending)
    return [*changes[:-1], Step(changes[-1].change, command, stdin=stdin)]


def rewrite_steps(path: str, text: str, seen: Snapshot, what: str) -> list[Step]:
    """A file of the distribution with another `text`; owner and mode stay. `what` tells why it differs."""
    present = seen.paths.get(path)
    if present is None or text == seen.contents.get(path, text):
        return []
    command, stdin = write((File(path, text.encode(), present.owner, present.group, present.mode.zfill(4)),))
    return [Step(f"{path}: {what}", command, stdin=stdin)]


_RECEIVE = """umask 077
receive() { # target owner mode check: content in base64 on stdin up to a line with a dot
  target=$1; owner=$2; mode=$3; check=$4
  (umask 022; mkdir -p "${target%/*}")
  temp="${target%/*}/.mediahost-new-${target##*/}"
  rm -f "$temp"
  # A stream that ends before the dot was cut off: `!` is no base64, so half a file is never taken for a whole one.
  while IFS= read -r line || [ "$line" = . ] || { echo '!'; false; } && [ "$line" != . ]; do
    printf '%s\\n' "$line"
  done | base64 -d >"$temp"
  chown "$owner" "$temp"; chmod "$mode" "$temp"
  if [ -n "$check" ] && ! eval "$(printf '%s' "$check" | sed "s|{}|$temp|g")" >&2; then
    rm -f "$temp"; echo "$target: the new content was refused, the old one stays" >&2; exit 1
  fi
  sync "$temp"
  mv -fT "$temp" "$target"
}
"""


def write(files: Sequence[File], pending: str | None = None) -> tuple[str, str]:
    """A shell command that writes all `files`, and the text it reads on stdin."""
    lines = [_RECEIVE]
    if pending is not None:
        lines.append(owed.mark(pending))
    stdin: list[str] = []
    for file in files:
        arguments = (file.path, f"{file.owner}:{file.group}", file.mode, file.check or "")
        lines.append("receive " + " ".join(shlex.quote(argument) for argument in arguments))
        encoded = base64.b64encode(file.content).decode()
        stdin.extend(encoded[start : start + 4096] for start in range(0, len(encoded), 4096))
        stdin.append(".")
    return "\n".join(lines), "\n".join(stdin)


@operation()
def managed(files: Sequence[File], pending: str | None = None, guard: Guard | None = None) -> Commands:
    """
    Files with exactly this content, owner and mode.

    + files: the files, parents first
    + pending: unit to restart when one of them changes
    + guard: what to put back when nobody can log in afterwards
    """
    yield from converge(lambda seen: steps(files, seen, pending), guard)
