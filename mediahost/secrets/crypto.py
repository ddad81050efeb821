"""The cryptography of the vault: argon2id for the key, AES-256-GCM for each entry.

Nothing here knows files or names of commands. A failure to decrypt is a None, never an exception
that could carry plaintext.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
from dataclasses import dataclass
from datetime import UTC, datetime

from cryptography.exceptions import InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

NONCE_BYTES = 12  # NIST SP 800-38D §8.2.2: 96 random bits, good for 2^32 encryptions under one key
SALT_BYTES = 16  # RFC 9106 §3.1
KEY_BYTES = 32
# Payloads are padded to a multiple of this, so that the length of a line does not tell the length of a
# value: API keys, passwords and tokens all make lines of one length.
PADDING_BLOCK = 128


@dataclass(frozen=True)
class Cost:
    """Cost of deriving the key from the passphrase: memory in KiB, passes, lanes (threads)."""

    memory_kib: int = 65536
    passes: int = 3
    lanes: int = 4

    def acceptable(self) -> bool:
        """Tell whether the numbers are possible and cannot exhaust the machine (at most 1 GiB)."""
        return 1 <= self.lanes <= 16 and 1 <= self.passes <= 64 and 8 * self.lanes <= self.memory_kib <= 1024 * 1024


# RFC 9106 §4, second recommended option: 64 MiB, 3 passes, 4 lanes.
DEFAULT_COST = Cost()


class Argon2Missing(Exception):  # noqa: N818 - says what it is; becomes a VaultError in vault.py
    """The installed `cryptography` is linked with an OpenSSL older than 3.2."""


class Secret:
    """A decrypted value that shows itself only to `reveal()`."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """Return the plaintext."""
        return self._text

    def __repr__(self) -> str:
        return "<secret>"


@dataclass(frozen=True)
class Payload:
    """What an entry's ciphertext holds: the value, how it came about, and when (UTC, ISO 8601).

    `kind` is empty for a value that the user gave, else a kind of generate.py.
    """

    secret: Secret
    kind: str
    changed: str


def now() -> str:
    """Return the present second, UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def derive(material: bytes, salt: bytes, cost: Cost) -> bytes:
    """Return the 32-byte key for a passphrase; raises Argon2Missing where OpenSSL cannot do it."""
    try:
        kdf = Argon2id(
            salt=salt,
            length=KEY_BYTES,
            iterations=cost.passes,
            lanes=cost.lanes,
            memory_cost=cost.memory_kib,
        )
    except UnsupportedAlgorithm:
        raise Argon2Missing from None
    return kdf.derive(material)


class Cipher:
    """Encrypts under one key for one vault: the vault's id and a label are bound to every ciphertext."""

    def __init__(self, key: bytes, vault_id: str) -> None:
        self._aead = AESGCM(key)
        self._vault_id = vault_id

    def _associated(self, label: str) -> bytes:
        return "\0".join(("mediahost-vault", "1", self._vault_id, label)).encode()

    def seal(self, label: str, plaintext: bytes) -> str:
        """Return base64(nonce + ciphertext + tag)."""
        nonce = os.urandom(NONCE_BYTES)
        return base64.b64encode(nonce + self._aead.encrypt(nonce, plaintext, self._associated(label))).decode()

    def unseal(self, label: str, token: str) -> bytes | None:
        """Return the plaintext, or None when the key, the label, the vault or a single bit differs."""
        raw = decode_base64(token)
        if raw is None or len(raw) < NONCE_BYTES + 16:
            return None
        try:
            return self._aead.decrypt(raw[:NONCE_BYTES], raw[NONCE_BYTES:], self._associated(label))
        except InvalidTag:
            return None


def decode_base64(token: str) -> bytes | None:
    """Return the bytes of canonical base64, else None: one plaintext has exactly one spelling."""
    try:
        raw = base64.b64decode(token, validate=True)
    except (binascii.Error, ValueError):
        return None
    return raw if base64.b64encode(raw).decode() == token else None


def pack(payload: Payload) -> bytes | None:
    """Return the padded plaintext of an entry, or None when the value is not valid Unicode text."""
    fields = {"value": payload.secret.reveal(), "kind": payload.kind, "changed": payload.changed}
    try:
        packed = json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:  # holds the value: it must not become anybody's __context__
        return None
    return packed + b" " * (-len(packed) % PADDING_BLOCK)


def unpack(plaintext: bytes) -> Payload | None:
    """Return what `pack` packed, or None when it was packed by something else."""
    try:
        fields = json.loads(plaintext)
        value, kind, changed = fields["value"], fields["kind"], fields["changed"]
    except (ValueError, KeyError, TypeError):  # JSONDecodeError holds the plaintext: see pack()
        return None
    if not (isinstance(value, str) and isinstance(kind, str) and isinstance(changed, str)):
        return None
    return Payload(Secret(value), kind, changed)
