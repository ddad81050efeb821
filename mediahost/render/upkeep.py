"""What a concern that lives in units of systemd needs on a host: packages, files, units; or nothing of it.

Swap, SMART and SnapRAID are each one `Concern`. When one is switched off it has no files and no units any more, and
`paths` and `own_units` still tell what an earlier run may have left. `operations.upkeep` compares it with a host.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from mediahost.resources import MARK, File

UNITS = "/etc/systemd/system"
PROGRAMS = "/usr/local/lib/mediahost"


@dataclass(frozen=True)
class Concern:
    """One concern as this host should have it.

    `files` maps a unit to the files it must be restarted for ("" for none). `units` run and are enabled; `watched`
    are run by a timer, and are looked at only to tell when one has failed. `paths` are those that the concern can
    have, wanted or not, and `own_units` the units among them: where a path is found and nothing is wanted, they are
    stopped, the paths removed, and `afterwards` (shell) is done. `interrupts` says in words what a restart stops.
    """

    name: str
    paths: tuple[str, ...]
    own_units: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    files: Mapping[str, tuple[File, ...]] = field(default_factory=dict)
    units: tuple[str, ...] = ()
    watched: tuple[str, ...] = ()
    afterwards: str = ""
    interrupts: str = ""

    @property
    def every_file(self) -> tuple[File, ...]:
        """All files, in the order in which they are written."""
        return tuple(file for files in self.files.values() for file in files)

    @property
    def wanted(self) -> bool:
        """Whether this host shall have any of it."""
        return bool(self.files)


def script(path: str, body: str) -> File:
    """A program of ours, in POSIX sh."""
    return File(path, f"#!/bin/sh\n# {MARK}\n{body}\n".encode(), mode="0755")
