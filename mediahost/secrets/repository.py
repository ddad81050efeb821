"""Where a vault lies in the user's repository, and what git must know about it.

Nothing here reads or writes a secret.
"""

from __future__ import annotations

from pathlib import Path

from mediahost.secrets import storage
from mediahost.secrets.error import VaultError, at

# Union: lines that two branches add at the same place are both kept. Two lines for one name are then
# found by the vault itself, which can say more about them than conflict markers do.
GIT_ATTRIBUTES = "*.vault merge=union\n"
GIT_IGNORE = "*.previous\n.*.lock\n.*.tmp\n"


def vault_path(inventory: Path) -> Path:
    """Return `secrets/<inventory's stem>.vault` of the repository that holds the inventory file.

    The repository's root is the parent of the directory `inventories`, else the inventory's directory.
    """
    directory = inventory.absolute().parent
    root = directory.parent if directory.name == "inventories" else directory
    return root / "secrets" / f"{inventory.stem}.vault"


def inventory_of(vault: Path) -> Path:
    """Return the inventory that `vault_path` leads from to `vault`, as the user would type it."""
    root = vault.absolute().parent.parent
    beside = root / f"{vault.stem}.py"
    below = root / "inventories" / beside.name
    return beside if beside.exists() and not below.exists() else below


def prepare_directory(vault: Path) -> list[Path]:
    """Create the vault's directory and tell git how to merge vaults and what to leave out.

    Files of that name are kept, missing lines are appended. Returns the files it wrote.
    """
    written = []
    try:
        storage.make_private_directory(vault.parent)
        for name, wanted in ((".gitattributes", GIT_ATTRIBUTES), (".gitignore", GIT_IGNORE)):
            path = vault.parent / name
            present = path.read_text() if path.exists() else ""
            missing = [line for line in wanted.splitlines() if line not in present.splitlines()]
            if missing:
                glue = "" if not present or present.endswith("\n") else "\n"
                path.write_text(present + glue + "\n".join(missing) + "\n")
                written.append(path)
    except (OSError, UnicodeDecodeError) as error:
        raise VaultError(
            "the directory of the vault could not be prepared",
            where=at(vault.parent),
            why=str(getattr(error, "strerror", None) or "a git file in it is not text"),
            mend="make it a directory that you may write to",
        ) from None
    return written
