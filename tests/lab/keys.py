"""SSH key pairs of a trial's own, beside the lab's."""

from __future__ import annotations

import subprocess
from pathlib import Path


def key_pair(private: Path) -> Path:
    """Make a pair without a passphrase, its private half at `private`; gives the path of the public half."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(private)], check=True)
    return private.with_name(f"{private.name}.pub")
