"""Runs a program of the lab's host to its end and turns its absence or failure into one clear error."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from lab.errors import LabError


def run(
    command: Sequence[str],
    package: str,
    environment: Mapping[str, str] | None = None,
    directory: Path | None = None,
) -> str:
    """Run a program of the Debian `package` in `directory` and return what it printed on both outputs.

    Raises LabError when it is not installed or fails, with its last lines.
    """
    try:
        return subprocess.run(
            command,
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=directory,
            text=True,
            errors="replace",
        ).stdout
    except FileNotFoundError as error:
        raise LabError(
            f"{command[0]} is not installed", f"it comes with the package {package}", "run lab/install"
        ) from error
    except subprocess.CalledProcessError as error:
        tail = str(error.output).strip().splitlines()[-12:]
        raise LabError(
            f"{command[0]} failed with exit code {error.returncode}",
            "\n".join(tail) or "it printed nothing",
            "see the lines above; when they name the mirror, check the network, else the free disk space",
        ) from error
