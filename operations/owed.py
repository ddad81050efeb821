"""Restarts that are owed: which units run with an older configuration than the one on disk.

Remembered on the host, because the run that changed a unit's files may die before it restarts the unit.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable

from facts.snapshot import STATE_DIRECTORY

RELOAD = "systemctl daemon-reload"
"""Lets systemd read unit files anew."""

_DIRECTORY = f"{STATE_DIRECTORY}/pending"
# What the two functions below write, and which of them; a name that needs it is in quotes.
_WRITTEN = re.compile(rf"^(?:mkdir -p {_DIRECTORY} && (touch)|rm -f) ('?){_DIRECTORY}/(\S+?)\2(?: |$)", re.MULTILINE)


def mark(unit: str) -> str:
    """Shell that records, durably, that a unit must be restarted before the host is as wanted."""
    path = shlex.quote(f"{_DIRECTORY}/{unit}")
    return f"mkdir -p {_DIRECTORY} && touch {path} && sync {path} {_DIRECTORY}"


def clear(unit: str) -> str:
    """Shell that removes the record of `mark`."""
    return f"rm -f {shlex.quote(f'{_DIRECTORY}/{unit}')}"


def after(commands: Iterable[str], before: frozenset[str]) -> frozenset[str]:
    """The units that are marked once `commands` have run, for a plan, which runs none of them."""
    marked = set(before)
    for command in commands:
        for touched, _, unit in _WRITTEN.findall(command):
            if touched:
                marked.add(unit)
            else:
                marked.discard(unit)
    return frozenset(marked)
