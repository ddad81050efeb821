"""Changes in a distribution's own file, line by line, that can be undone from the file itself.

Files without a drop-in directory (login.defs, pam.d/su, default/ufw) are changed in place. A mark above each of
our lines keeps the one that was there, so that a control that is switched off gives it back, whatever else
somebody changed in the file meanwhile. Comments start with # in all of them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from mediahost.controls import Assignment, Insertion

_WAS = "# mediahost set the next line, which was: "
_ADDED = "# mediahost added the next line"


def restored(text: str) -> str:
    """The file as it was before any of our changes."""
    lines: list[str] = []
    following = iter(_lines(text))
    for line in following:
        if line.startswith(_WAS):
            lines.append(line.removeprefix(_WAS))
            next(following, None)
        elif line == _ADDED:
            next(following, None)
        else:
            lines.append(line)
    return "".join(f"{line}\n" for line in lines)


def edited(text: str, edits: Sequence[Assignment | Insertion]) -> str:
    """The file with exactly `edits` in it: earlier ones that are not wanted any more are undone."""
    lines = _lines(restored(text))
    for edit in edits:
        lines = _assigned(lines, edit) if isinstance(edit, Assignment) else _inserted(lines, edit)
    return "".join(f"{line}\n" for line in lines)


def _lines(text: str) -> list[str]:
    # Not splitlines(): it takes a form feed for the end of a line.
    return text.removesuffix("\n").split("\n") if text else []


def _assigned(lines: list[str], edit: Assignment) -> list[str]:
    ours = f"{edit.key}{edit.separator}{edit.value}"
    pattern = re.compile(
        rf"\s*{re.escape(edit.key)}\s*=" if edit.separator == "=" else rf"\s*{re.escape(edit.key)}\s"
    )
    found: list[str] = []
    seen = False
    for line in lines:
        if not pattern.match(f"{line} "):
            found.append(line)
            continue
        seen = True
        found += [line] if line == ours else [f"{_WAS}{line}", ours]
    return found if seen else [*found, _ADDED, ours]


def _inserted(lines: list[str], edit: Insertion) -> list[str]:
    # A file without the anchor is another distribution's: what would stand where is not known, so nothing is put in.
    for index, line in enumerate(lines):
        if re.match(edit.after, line):
            return lines if edit.line in lines else [*lines[: index + 1], _ADDED, edit.line, *lines[index + 1 :]]
    return lines
