"""Where the passphrase of a vault comes from: environment, key file, system keyring, or a question.

The first source that is set wins; one that is set but unusable is an error, never skipped. Nothing here
prints, and nothing asks or waits on a machine where nobody can answer.
"""

from __future__ import annotations

import os
import secrets
import stat
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from mediahost.secrets.error import VaultError, at, shown

PASSPHRASE_VARIABLE = "MEDIAHOST_VAULT_PASSPHRASE"  # noqa: S105 - a name, not a value
KEY_FILE_VARIABLE = "MEDIAHOST_VAULT_KEY_FILE"
KEYRING_SERVICE = "mediahost"

# NIST SP 800-63B-4 §3.1.1.2 asks for 15 characters where the passphrase is the only factor.
PASSPHRASE_MINIMUM = 15

_LONGEST_KEY_FILE = 64 * 1024  # bytes
# On a desktop the keyring may ask its user to unlock it; this is time to find and type a password.
_KEYRING_LIMIT_SECONDS = 60.0


@dataclass(frozen=True)
class KeyMaterial:
    """The bytes that argon2id turns into the key, and where they came from (for messages)."""

    origin: str
    material: bytes = field(repr=False)
    file: Path | None = None


class KeySource(Protocol):
    """Anything that can find the passphrase of a vault."""

    def find(self, vault: Path) -> KeyMaterial:
        """Return the material for the vault at this path; raises VaultError when there is none."""
        ...


@dataclass(frozen=True)
class Passphrase:
    """A passphrase that the caller has already."""

    text: str = field(repr=False)
    origin: str = "the passphrase that was typed"

    def find(self, vault: Path) -> KeyMaterial:
        """Return the passphrase's bytes, UTF-8."""
        return _material(self.origin, self.text, vault)


@dataclass(frozen=True)
class KeyFile:
    """A key file: its bytes without the newline at the end; nobody but its owner may read it."""

    path: Path

    def find(self, vault: Path) -> KeyMaterial:
        """Return the file's content; raises VaultError when it is missing, empty or readable by others."""
        return KeyMaterial(f"the key file {shown(self.path)}", _read_key_file(self.path), self.path)


@dataclass(frozen=True)
class Automatic:
    """The first of: the two environment variables, the default key file, the keyring, `ask`.

    `ask` gets the vault's path and returns the passphrase; only a command with a terminal has one.
    """

    ask: Callable[[Path], str] | None = field(default=None, repr=False)

    def find(self, vault: Path) -> KeyMaterial:
        """Return the material of the first source that is set; raises VaultError when none is."""
        found = self.find_without_asking(vault)
        if found is not None:
            return found
        if self.ask is not None:
            return _material("the passphrase that was typed", self.ask(vault), vault)
        raise VaultError(
            "no key for this vault was found",
            where=at(vault),
            why=f"{PASSPHRASE_VARIABLE} and {KEY_FILE_VARIABLE} are not set,"
            f" {shown(default_key_file(vault))} does not exist, the system keyring has no entry"
            f" {KEYRING_SERVICE}/{vault.stem}, and there is no terminal to ask at",
            mend="put your copy of the key file there (mode 600), or set one of the variables",
        )

    def find_without_asking(self, vault: Path) -> KeyMaterial | None:
        """Return the material of the first source that is set, None when none is."""
        phrase = os.environ.get(PASSPHRASE_VARIABLE)
        if phrase is not None:
            return _material(f"the environment variable {PASSPHRASE_VARIABLE}", phrase, vault)
        named = os.environ.get(KEY_FILE_VARIABLE)
        if named is not None:
            if not named:
                raise _empty(f"the environment variable {KEY_FILE_VARIABLE}", vault)
            return KeyFile(Path(named).expanduser()).find(vault)
        if os.path.lexists(default_key_file(vault)):
            return KeyFile(default_key_file(vault)).find(vault)
        phrase = _from_keyring(vault.stem)
        return None if phrase is None else _material(keyring_origin(vault), phrase, vault)


def default_key_file(vault: Path) -> Path:
    """Return `~/.config/mediahost/<vault name>.key`."""
    return Path.home() / ".config" / "mediahost" / f"{vault.stem}.key"


def keyring_origin(vault: Path) -> str:
    """Return how messages call the keyring's entry for a vault."""
    return f"the system keyring's entry {KEYRING_SERVICE}/{vault.stem}"


def new_key() -> bytes:
    """Return the content of a new key file: 256 random bits as URL-safe text and a newline."""
    return secrets.token_urlsafe(32).encode() + b"\n"


def refuse_weak(material: KeyMaterial, vault: Path) -> None:
    """Raise VaultError when `material` is too short to protect a new vault."""
    if len(material.material) < PASSPHRASE_MINIMUM:
        raise VaultError(
            "the passphrase is too short for a new vault",
            where=material.origin,
            why=f"the vault may be read by all who can read the repository;"
            f" its key needs {PASSPHRASE_MINIMUM} characters or more",
            mend="use six random words, or let mediahost make a key file",
        )


def _material(origin: str, text: str, vault: Path) -> KeyMaterial:
    if not text:
        raise _empty(origin, vault)
    try:
        # The environment may hold bytes that are not UTF-8, and they are the passphrase.
        return KeyMaterial(origin, text.encode("utf-8", "surrogateescape"))
    except UnicodeEncodeError:  # holds the passphrase: it must not become anybody's __context__
        pass
    raise VaultError(
        "the key cannot be used",
        where=at(vault),
        why=f"{origin} is not valid Unicode text",
        mend="use letters, digits and punctuation",
    )


def _empty(origin: str, vault: Path) -> VaultError:
    return VaultError(
        "the key is empty",
        where=at(vault),
        why=f"{origin} is there but holds nothing",
        mend="give it the key, or remove it so that the next source is used",
    )


def _read_key_file(path: Path) -> bytes:
    try:
        # NONBLOCK: opening a named pipe must not wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as stream:
            status = os.fstat(stream.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise _bad_key_file(path, "it is not a regular file", "name a regular file")
            if status.st_mode & 0o077:
                why = f"others than its owner may use it (mode {stat.S_IMODE(status.st_mode):03o})"
                raise _bad_key_file(path, why, f"chmod 600 {shown(path)}")
            if status.st_uid not in (os.geteuid(), 0) and os.geteuid() != 0:
                raise _bad_key_file(path, "it belongs to another user", "make a copy that is yours, mode 600")
            content = stream.read(_LONGEST_KEY_FILE + 1)
    except OSError as error:
        why = error.strerror or "the operating system refused"
        mend = f"put your copy of the key there, mode 600, or correct {KEY_FILE_VARIABLE}"
        raise _bad_key_file(path, why, mend) from None
    if len(content) > _LONGEST_KEY_FILE:
        raise _bad_key_file(path, f"it is longer than {_LONGEST_KEY_FILE} bytes", "name the right file")
    content = content.rstrip(b"\r\n")
    if not content:
        raise _bad_key_file(path, "it is empty", "restore it from your backup")
    return content


def _bad_key_file(path: Path, why: str, mend: str) -> VaultError:
    return VaultError("the key file cannot be used", where=at(path), why=why, mend=mend)


def _from_keyring(name: str) -> str | None:
    """Return the keyring's passphrase; None when there is no usable keyring or it does not know it."""
    if not _somebody_can_unlock():
        return None
    answer: list[str | None] = []

    def look() -> None:
        try:
            import keyring
            from keyring.backends import chainer

            backend = keyring.get_keyring()
            candidates = backend.backends if isinstance(backend, chainer.ChainerBackend) else [backend]
            for candidate in candidates:
                # keyring's own mark (keyring.core.recommended): below 1 are plain-text files, terminal
                # prompts, and the backends that always fail.
                if candidate.priority >= 1:
                    phrase = candidate.get_password(KEYRING_SERVICE, name)
                    if phrase is not None:
                        answer.append(phrase)
                        return
        except Exception:  # noqa: BLE001, S110 - third-party backends raise anything; the keyring is optional
            pass

    # A thread, since a broken session bus blocks for ever; daemon, so that it cannot keep us from exiting.
    thread = threading.Thread(target=look, name="keyring", daemon=True)
    thread.start()
    thread.join(_KEYRING_LIMIT_SECONDS)
    return answer[0] if answer else None


def _somebody_can_unlock() -> bool:
    """Tell whether a keyring that asks its user could be answered: a desktop session, or a chosen backend."""
    if "PYTHON_KEYRING_BACKEND" in os.environ or sys.platform in ("darwin", "win32"):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
