"""Says whether this machine has what the lab and its tests need. It installs nothing: `lab/install` does.

The list of packages stands in `lab/install` alone, which must run before there is a Python to read one.
"""

from __future__ import annotations

import subprocess

from lab import paths
from lab.errors import LabError

INSTALLER = paths.PROJECT / "lab" / "install"


def missing() -> list[str]:
    """Names of the Debian packages this machine lacks, [] when it has all."""
    result = subprocess.run([str(INSTALLER), "--missing"], capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise LabError(
            "The lab cannot run on this machine", result.stderr.strip(), "see docs/lab.md for what it needs"
        )
    return result.stdout.split()


def require() -> None:
    """Raise LabError, with the way to install them, when packages are missing."""
    lacking = missing()
    if lacking:
        raise LabError("The lab lacks packages", ", ".join(lacking), "run lab/install (make lab does)")
