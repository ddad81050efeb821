"""The one error of the vault: what is wrong, where, why, and how to mend it.

It must never carry a decrypted value, a passphrase, or the text of a line that may hold one.
"""

from __future__ import annotations

from pathlib import Path

from mediahost.told import ToldError


class VaultError(ToldError):
    """A vault, a key or a name that cannot be used; `str()` is one complete message for the user."""


def shown(path: Path) -> str:
    """Return `path` as the user would type it: relative when it lies below the working directory."""
    try:
        return str(path.absolute().relative_to(Path.cwd()))
    except (ValueError, OSError):
        return str(path)


def at(path: Path, *lines: int) -> str:
    """Return the `where` of an error: the file and its line numbers, counted from 1."""
    if not lines:
        return shown(path)
    return f"{shown(path)} line{'s' if len(lines) > 1 else ''} {', '.join(map(str, lines))}"
