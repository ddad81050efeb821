"""The vault: named secrets in one encrypted file of the user's repository.

Opening it reports all damage before anything is used. Saving never loses a line, never overwrites
another process's change, and writes nothing when nothing changed.
"""

from __future__ import annotations

import base64
import difflib
import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from mediahost.secrets import crypto, document, storage
from mediahost.secrets.crypto import DEFAULT_COST, Cipher, Cost, Payload, Secret
from mediahost.secrets.document import EntryLine, Header
from mediahost.secrets.error import VaultError, at, shown
from mediahost.secrets.generate import CUSTOM_KIND, GENERATED_KINDS, another, kind_of
from mediahost.secrets.keys import Automatic, KeyMaterial, KeySource
from mediahost.secrets.repository import inventory_of

# No entry can have this name, so the key check cannot be passed off as an entry.
_CHECK_LABEL = "KEY CHECK"
_CHECK_TEXT = b"mediahost vault"


@dataclass(frozen=True)
class _Entry:
    token: str
    payload: Payload


@dataclass(frozen=True)
class _Damaged:
    """Lines of one name that give no value; they stay in the file until the name is set or deleted."""

    lines: list[str] = field(repr=False)
    error: VaultError


class Vault:
    """An open vault. Values leave it through `get` and `ensure` only."""

    def __init__(self, path: Path, header: Header, cipher: Cipher, baseline: bytes | None) -> None:
        """Use `open` or `create`."""
        self.path = path
        self._header = header
        self._cipher = cipher
        self._baseline = baseline
        self._entries: dict[str, _Entry] = {}
        self._damaged: dict[str, _Damaged] = {}
        self._unnamed: list[VaultError] = []
        self._modified = baseline is None

    @classmethod
    def open(cls, path: Path, key: KeySource | None = None, *, allow_damage: bool = False) -> Vault:
        """Read and decrypt the vault at `path`; `key` defaults to Automatic().

        Raises VaultError for a missing file, a wrong key, or any damage. With `allow_damage`, bad lines
        are kept in `problems` instead and the other entries can be used.
        """
        content = storage.read(path)
        if content is None:
            raise VaultError(
                "there is no vault",
                where=at(path),
                why="the file does not exist",
                mend=f"mediahost secrets init {shown(inventory_of(path))}",
            )
        parsed = document.parse(content, path)
        material = (key or Automatic()).find(path)
        cipher = _cipher(parsed.header, material, path)
        if cipher.unseal(_CHECK_LABEL, parsed.header.check) != _CHECK_TEXT:
            raise _wrong_key(path, material)
        vault = cls(path, parsed.header, cipher, content)
        vault._unnamed = parsed.problems
        vault._load(parsed.entries)
        if vault.problems and not allow_damage:
            raise vault._first_problem()
        return vault

    @classmethod
    def create(cls, path: Path, key: KeySource, *, cost: Cost = DEFAULT_COST) -> Vault:
        """Return a new, empty vault that `save` will write; raises VaultError when the file exists."""
        if os.path.lexists(path):
            raise VaultError(
                "there is a vault already",
                where=at(path),
                why="creating another would lose its secrets",
                mend=f"use it (mediahost secrets list {shown(inventory_of(path))}) or move it away",
            )
        header, cipher = _new_header(secrets.token_hex(16), key.find(path), cost, path)
        return cls(path, header, cipher, None)

    def __repr__(self) -> str:
        return f"<Vault {shown(self.path)}: {len(self._entries)} entries>"

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    @property
    def modified(self) -> bool:
        """True when `save` would write."""
        return self._modified

    @property
    def problems(self) -> list[VaultError]:
        """All bad lines; empty unless the vault was opened with `allow_damage`."""
        return [*self._unnamed, *(damaged.error for damaged in self._damaged.values())]

    def names(self) -> list[str]:
        """Return the names of all readable entries, sorted."""
        return sorted(self._entries)

    def get(self, name: str) -> str:
        """Return the value; raises VaultError with the likely names when there is no such entry."""
        return self._known(name).payload.secret.reveal()

    def kind(self, name: str) -> str:
        """Return how the value came about: a kind of generate.py, or empty when it was given."""
        return self._known(name).payload.kind

    def changed(self, name: str) -> str:
        """Return when the value was set, UTC, ISO 8601."""
        return self._known(name).payload.changed

    def set(self, name: str, value: str) -> None:
        """Set a value that the user gives; replaces damaged lines of that name."""
        self._put(name, Secret(value), "")

    def delete(self, name: str) -> None:
        """Remove the entry, readable or damaged; raises VaultError when there is none."""
        if name not in self._damaged:
            self._known(name)
        self._damaged.pop(name, None)
        self._entries.pop(name, None)
        self._modified = True

    def ensure(self, name: str, generator: Callable[[], str]) -> str:
        """Return the value of `name`; when there is none, generate one and remember it and its kind.

        Raises VaultError when the vault is damaged: the missing entry may be one of the bad lines.
        """
        if name not in self._entries:
            if self.problems:
                raise self._first_problem()
            self._put(name, Secret(generator()), kind_of(generator))
        return self.get(name)

    def rotate(self, name: str) -> None:
        """Give a generated entry another value of its kind; raises VaultError for any other entry."""
        payload = self._known(name).payload
        inventory = shown(inventory_of(self.path))
        if payload.kind in GENERATED_KINDS:
            self._put(name, Secret(another(payload.kind, len(payload.secret.reveal()))), payload.kind)
            return
        if payload.kind == CUSTOM_KIND:
            why = "it was generated by a rule that only the run that needs it knows"
            mend = f"mediahost secrets delete {name} {inventory}; the next run generates it again"
        else:
            why = "its value was given by you, so only you can say another"
            mend = f"mediahost secrets set {name} {inventory}"
        raise VaultError("the secret cannot be rotated", where=self._at(name), why=why, mend=mend)

    def rekey(self, key: KeySource, *, cost: Cost = DEFAULT_COST) -> None:
        """Encrypt everything again under another key; raises VaultError when any line is damaged."""
        if self.problems:
            raise self._first_problem()
        self._header, self._cipher = _new_header(self._header.vault_id, key.find(self.path), cost, self.path)
        for name, entry in list(self._entries.items()):
            self._seal(name, entry.payload)
        self._modified = True

    def save(self) -> None:
        """Write the vault if it was modified; the version before stays beside it as `.previous`.

        Raises VaultError, and leaves the file as it is, when the file changed since it was read, when it
        has damage that belongs to no entry, or when the disk refuses.
        """
        if not self._modified:
            return
        if self._unnamed:
            raise self._unnamed[0]
        lines = [f"{name}: {entry.token}" for name, entry in self._entries.items()]
        lines += [line for damaged in self._damaged.values() for line in damaged.lines]
        content = document.render(self._header, lines)
        storage.replace(self.path, content, expected=self._baseline)
        self._baseline = content
        self._modified = False

    def _load(self, entry_lines: list[EntryLine]) -> None:
        by_name: dict[str, list[EntryLine]] = {}
        for line in entry_lines:
            by_name.setdefault(line.name, []).append(line)
        for name, lines in by_name.items():
            payloads = [self._unseal(line) for line in lines]
            if len(lines) == 1 and payloads[0] is not None:
                self._entries[name] = _Entry(lines[0].token, payloads[0])
                continue
            error = self._bad_line(lines[0]) if len(lines) == 1 else self._duplicate(lines, payloads)
            # latin-1 is how the reader decoded them; only ASCII can be written back as a line.
            kept = [f"{line.name}: {line.token}" for line in lines]
            if all(line.isascii() and line.isprintable() for line in kept):
                self._damaged[name] = _Damaged(kept, error)
            else:
                self._unnamed.append(error)

    def _unseal(self, line: EntryLine) -> Payload | None:
        plaintext = self._cipher.unseal(line.name, line.token)
        return None if plaintext is None else crypto.unpack(plaintext)

    def _put(self, name: str, secret: Secret, kind: str) -> None:
        if not document.valid_name(name):
            raise VaultError(
                "this cannot be the name of a secret",
                where=at(self.path),
                why="a name has lowercase letters, digits and _ . / - only, begins with a letter or digit,"
                f" and has at most {document.NAME_LIMIT} characters",
                mend="choose a name like home1/sonarr/api_key",
            )
        present = self._entries.get(name)
        if (
            present is not None
            and present.payload.kind == kind
            and present.payload.secret.reveal() == secret.reveal()
        ):
            return
        self._seal(name, Payload(secret, kind, crypto.now()))
        self._damaged.pop(name, None)
        self._modified = True

    def _seal(self, name: str, payload: Payload) -> None:
        packed = crypto.pack(payload)
        if packed is None:
            raise VaultError(
                "the value cannot be stored",
                where=self._at(name),
                why="it is not valid Unicode text",
                mend="encode binary values first, for instance with base64",
            )
        self._entries[name] = _Entry(self._cipher.seal(name, packed), payload)

    def _known(self, name: str) -> _Entry:
        if name in self._entries:
            return self._entries[name]
        if name in self._damaged:
            raise self._damaged[name].error
        if self.problems:
            why = "no readable entry has this name, but the vault has bad lines, and it may be one of them"
            mend = f"mediahost secrets check {shown(inventory_of(self.path))}"
        else:
            likely = difflib.get_close_matches(name, self._entries, n=3)
            why = "no entry has this name"
            shown_name = name if document.valid_name(name) else "NAME"
            mend = f"mediahost secrets set {shown_name} {shown(inventory_of(self.path))}"
            if likely:
                mend = f"did you mean {' or '.join(likely)}? Else: {mend}"
        raise VaultError(f"there is no secret {name!r}", where=at(self.path), why=why, mend=mend)

    def _at(self, name: str) -> str:
        return f"{at(self.path)} entry {name}"

    def _first_problem(self) -> VaultError:
        first, *others = self.problems
        if not others:
            return first
        mend = f"{first.mend}. {len(others)} more: mediahost secrets check {shown(inventory_of(self.path))}"
        return VaultError(first.what, where=first.where, why=first.why, mend=mend)

    def _mend(self, name: str) -> str:
        inventory = shown(inventory_of(self.path))
        return (
            f"take the line from git or from {at(storage.previous_path(self.path))},"
            f" or set it anew: mediahost secrets set {name} {inventory}"
        )

    def _bad_line(self, line: EntryLine) -> VaultError:
        return VaultError(
            f"the entry {line.name} cannot be decrypted",
            where=at(self.path, line.number),
            why="the line was edited or cut, comes from another vault or name, or from before a rekey",
            mend=self._mend(line.name),
        )

    def _duplicate(self, lines: list[EntryLine], payloads: list[Payload | None]) -> VaultError:
        good = [str(line.number) for line, payload in zip(lines, payloads, strict=True) if payload]
        bad = [str(line.number) for line, payload in zip(lines, payloads, strict=True) if not payload]
        why = "two branches changed the same secret and git kept both"
        if good and bad:
            why += f"; line {', '.join(good)} opens with this key, line {', '.join(bad)} does not"
        return VaultError(
            f"the entry {lines[0].name} is there {len(lines)} times",
            where=at(self.path, *(line.number for line in lines)),
            why=why,
            mend=f"delete all its lines but the right one, or {self._mend(lines[0].name)}",
        )


def _new_header(vault_id: str, material: KeyMaterial, cost: Cost, path: Path) -> tuple[Header, Cipher]:
    salt = base64.b64encode(os.urandom(crypto.SALT_BYTES)).decode()
    draft = Header(vault_id, cost, salt, check="")
    cipher = _cipher(draft, material, path)
    return Header(vault_id, cost, salt, cipher.seal(_CHECK_LABEL, _CHECK_TEXT)), cipher


def _cipher(header: Header, material: KeyMaterial, path: Path) -> Cipher:
    try:
        key = crypto.derive(material.material, base64.b64decode(header.salt), header.cost)
    except crypto.Argon2Missing:
        raise VaultError(
            "the key of the vault cannot be derived",
            where=at(path),
            why="the installed `cryptography` has no argon2id (it is linked with OpenSSL older than 3.2)",
            mend="install the locked wheel: pip install --require-hashes -r requirements/run.txt",
        ) from None
    except MemoryError:
        raise VaultError(
            "the key of the vault cannot be derived",
            where=at(path),
            why=f"argon2id needs {header.cost.memory_kib // 1024} MiB of memory, which are not free",
            mend="free memory and run the command again",
        ) from None
    return Cipher(key, header.vault_id)


def _wrong_key(path: Path, material: KeyMaterial) -> VaultError:
    mend = "use the key this vault was made with; `mediahost secrets --help` lists where it is looked for"
    if material.file is not None:
        mend = f"{mend}; if the vault has a passphrase by now, move the key file away"
        for suffix, story in (
            (".new", "a rekey was interrupted: try the new key"),
            (".previous", "the key file was replaced: try the former key"),
        ):
            other = material.file.with_name(material.file.name + suffix)
            if other.exists():
                mend = f"{story}, mv {shown(other)} {shown(material.file)}; else {mend}"
                break
    return VaultError(
        "the key does not open this vault", where=at(path), why=f"{material.origin} is not its key", mend=mend
    )
