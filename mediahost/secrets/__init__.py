"""The vault: secrets that live encrypted in the user's repository and are decrypted on the control side only.

A decrypted value never appears in a repr, an exception or a traceback. docs/decisions/secrets-vault.md
says why the file looks as it does.
"""

from __future__ import annotations

from mediahost.secrets.crypto import DEFAULT_COST, Cost
from mediahost.secrets.error import VaultError
from mediahost.secrets.generate import api_key, password, token, totp
from mediahost.secrets.keys import Automatic, KeyFile, KeyMaterial, KeySource, Passphrase
from mediahost.secrets.repository import prepare_directory, vault_path
from mediahost.secrets.vault import Vault

__all__ = [
    "DEFAULT_COST",
    "Automatic",
    "Cost",
    "KeyFile",
    "KeyMaterial",
    "KeySource",
    "Passphrase",
    "Vault",
    "VaultError",
    "api_key",
    "password",
    "prepare_directory",
    "token",
    "totp",
    "vault_path",
]
