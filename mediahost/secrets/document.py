"""The text of a vault file: a header, one line an entry, an end mark. Pure, knows no key.

    mediahost-vault: 1
    # a comment
    id: 32 hex digits, random; bound to every ciphertext
    kdf: argon2id memory-kib=65536 passes=3 lanes=4 salt=BASE64
    check: BASE64          tells a wrong key from a damaged line
    sum: 16 hex digits     tells a wrong key from a damaged header; it protects nothing
    --- entries
    home1/sonarr/api_key: BASE64(nonce + ciphertext + tag)
    --- end

The reader never drops a line in silence: whatever is not an entry becomes a problem with its number.
It must never repeat the text of a line it does not understand, for that may be a secret in the clear.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path

from mediahost.secrets.crypto import SALT_BYTES, Cost, decode_base64
from mediahost.secrets.error import VaultError, at
from mediahost.secrets.storage import previous_path

VERSION = "1"
COMMENT = "# Encrypted secrets: change them with `mediahost secrets`, not by hand. Git may merge the lines."
ENTRIES = "--- entries"
END = "--- end"

_NAME = re.compile(r"[a-z0-9][a-z0-9_./-]*")
NAME_LIMIT = 200  # characters; keeps a line readable
_CONFLICT_MARKERS = ("<<<<<<<", "|||||||", "=======", ">>>>>>>")
_KDF = re.compile(r"argon2id memory-kib=(\d{1,9}) passes=(\d{1,9}) lanes=(\d{1,9}) salt=(\S+)")
_HEADER_FIELDS = ("id", "kdf", "check", "sum")
_LONGEST_FILE = 16 * 1024 * 1024  # bytes; ten thousand entries are 2 MiB


def valid_name(name: str) -> bool:
    """Tell whether `name` may name an entry: lowercase letters, digits and _ . / - after the first."""
    return len(name) <= NAME_LIMIT and _NAME.fullmatch(name) is not None


@dataclass(frozen=True)
class Header:
    """What is needed to derive and to check the key."""

    vault_id: str
    cost: Cost
    salt: str
    check: str

    def _fields(self) -> dict[str, str]:
        kdf = (
            f"argon2id memory-kib={self.cost.memory_kib} passes={self.cost.passes}"
            f" lanes={self.cost.lanes} salt={self.salt}"
        )
        return {"id": self.vault_id, "kdf": kdf, "check": self.check}

    def checksum(self) -> str:
        """Return 16 hex digits over the other fields; finds accidents, not attackers."""
        return hashlib.sha256("\n".join(self._fields().values()).encode()).hexdigest()[:16]

    def lines(self) -> list[str]:
        """Return the header as it stands in the file."""
        fields = {**self._fields(), "sum": self.checksum()}
        return [f"mediahost-vault: {VERSION}", COMMENT, *(f"{key}: {text}" for key, text in fields.items())]


@dataclass(frozen=True)
class EntryLine:
    """One line of the entries section that has the form of an entry; `number` counts from 1."""

    number: int
    name: str
    token: str


@dataclass
class Document:
    """A vault file, read: its header, its entries in file order, and the problems of single lines."""

    header: Header
    entries: list[EntryLine] = field(default_factory=list)
    problems: list[VaultError] = field(default_factory=list)


def parse(content: bytes, path: Path) -> Document:
    """Return the document in `content`; `path` is for messages.

    Raises VaultError when the header cannot be used; all that is wrong below it is in `problems`.
    Harmless, and so accepted: white space at the end of a line, empty lines, another order of entries,
    a missing last newline.
    """
    if len(content) > _LONGEST_FILE:
        raise _unusable(path, "is too large for a vault", f"it has {len(content)} bytes")
    lines = [line.rstrip(b" \t\r") for line in content.split(b"\n")]
    markers = [number for number, line in enumerate(lines, 1) if line[:7].decode("latin-1") in _CONFLICT_MARKERS]
    conflict = _conflict(path, markers) if markers else None
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line and number not in markers]
    boundary = next((i for i, (_, line) in enumerate(numbered) if line == ENTRIES.encode()), None)
    try:
        header = _parse_header(numbered[:boundary], path, complete=boundary is not None)
    except VaultError:
        if conflict:
            raise conflict from None
        raise
    assert boundary is not None  # noqa: S101 - _parse_header has refused a header without its end
    document = Document(header, problems=[conflict] if conflict else [])
    _parse_entries(numbered[boundary + 1 :], document, path)
    return document


def render(header: Header, entry_lines: list[str]) -> bytes:
    """Return the file for a header and whole entry lines, sorted by name."""
    return "\n".join([*header.lines(), ENTRIES, *sorted(entry_lines), END, ""]).encode("ascii")


def _parse_header(lines: list[tuple[int, bytes]], path: Path, complete: bool) -> Header:
    if not lines:
        raise _unusable(path, "holds nothing", "it is empty: it was truncated or never written")
    number, first = lines[0]
    mark, separator, version = first.decode("latin-1").partition(": ")
    if mark != "mediahost-vault" or not separator:
        why = "a vault begins with the line `mediahost-vault: VERSION`; this one is damaged or another file"
        raise _unusable(path, "is not a vault", why, number)
    if version != VERSION:
        raise VaultError(
            "the vault has an unknown format version",
            where=at(path, number),
            why=f"this mediahost reads version {VERSION}; the line says something else",
            mend=f"use the mediahost that wrote it, or restore the file: {_restore(path)}",
        )
    fields: dict[str, str] = {}
    for number, line in lines[1:]:
        if line.startswith(b"#"):
            continue
        key, separator, text = line.decode("latin-1").partition(": ")
        if not separator or key not in _HEADER_FIELDS:
            raise _unusable(path, "has a damaged header", "this line is no field of a vault's header", number)
        if key in fields:
            why = f"the header has a second {key!r}: two branches changed the key, and git kept both"
            raise _unusable(path, "has a damaged header", why, number)
        fields[key] = text
    missing = [key for key in _HEADER_FIELDS if key not in fields]
    if missing or not complete:
        absent = missing[0] if missing else ENTRIES
        why = f"the header ends without its line {absent!r}: the file was truncated or edited"
        raise _unusable(path, "has a damaged header", why, lines[-1][0])
    return _header(fields, path)


def _header(fields: dict[str, str], path: Path) -> Header:
    parts = _KDF.fullmatch(fields["kdf"])
    if parts is None or not fields["kdf"].isascii():
        raise _unusable(path, "has a damaged header", "its line `kdf` names no key derivation known here")
    memory, passes, lanes, salt = parts.groups()
    cost = Cost(int(memory), int(passes), int(lanes))
    header = Header(fields["id"], cost, salt, fields["check"])
    salt_bytes = decode_base64(salt)
    sound = (
        re.fullmatch("[0-9a-f]{32}", header.vault_id) is not None
        and salt_bytes is not None
        and len(salt_bytes) == SALT_BYTES
        and cost.acceptable()
        and header.lines()[3] == f"kdf: {fields['kdf']}"  # one spelling: no leading zeros
        and header.checksum() == fields["sum"]
    )
    if not sound:
        raise _unusable(path, "has a damaged header", "its lines do not fit the checksum in the line `sum`")
    return header


def _parse_entries(lines: list[tuple[int, bytes]], document: Document, path: Path) -> None:
    ended = False
    for number, line in lines:
        if ended:
            document.problems.append(
                VaultError(
                    "a line stands after the end of the vault",
                    where=at(path, number),
                    why=f"nothing belongs below `{END}`; a merge or an editor put it there",
                    mend=f"move it above `{END}` if it is an entry, else delete it, or {_restore(path)}",
                )
            )
        elif line == END.encode():
            ended = True
        else:
            name, separator, token = line.decode("latin-1").partition(": ")
            if separator and valid_name(name):
                document.entries.append(EntryLine(number, name, token))
            else:
                document.problems.append(
                    VaultError(
                        "this line is not an entry",
                        where=at(path, number),
                        why="an entry is `name: ciphertext`; the line was edited, cut or put there by hand",
                        mend=f"{_restore(path)}; if a secret stands there in the clear, change that secret",
                    )
                )
    if not ended:
        document.problems.append(
            VaultError(
                "the vault is truncated",
                where=at(path, *([lines[-1][0]] if lines else [])),
                why=f"its last line `{END}` is missing, so entries may be missing before it",
                mend=_restore(path),
            )
        )


def _restore(path: Path) -> str:
    name = at(path)
    return f"restore the file with `git checkout -- {name}` or from {at(previous_path(path))}"


def _unusable(path: Path, what: str, why: str, *lines: int) -> VaultError:
    return VaultError(f"the file {what}", where=at(path, *lines), why=why, mend=_restore(path))


def _conflict(path: Path, markers: list[int]) -> VaultError:
    return VaultError(
        "git left conflict markers in the vault",
        where=at(path, *markers),
        why="two branches changed the same secret, and git could not choose",
        mend="delete the marker lines and, for each name that is there twice, the line you do not want;"
        " then run `mediahost secrets check`",
    )
