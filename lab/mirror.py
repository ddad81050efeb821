"""Finds the Debian mirror this machine already uses, so that the lab downloads from nowhere else.

It reads apt's own configuration (one-line and deb822 files, sources.list(5)) and takes the entries that are
Debian's; it must never name a mirror itself. `python3 -m lab.mirror SUITE` prints a deb822 stanza for `SUITE`
from that mirror, for `lab/install`, and so this module imports nothing but the standard library.
"""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lab.errors import LabError

OVERRIDE = "MEDIAHOST_LAB_MIRROR"
APT_DIRECTORY = Path("/etc/apt")
DEFAULT_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_RELEASES = (
    "bullseye",
    "bookworm",
    "trixie",
    "forky",
    "duke",
    "sid",
    "oldstable",
    "stable",
    "testing",
    "unstable",
)
_ARCHIVE_SUITES = frozenset(f"{name}{part}" for name in _RELEASES for part in ("", "-updates", "-backports"))
_SECURITY_SUITES = frozenset(f"{name}-security" for name in _RELEASES)
_USABLE_SCHEMES = ("http://", "https://")


@dataclass(frozen=True)
class Mirror:
    """A Debian mirror: base URIs without a trailing slash, and the keyring that signs what it serves.

    `security_uri` is None when the machine has no source for security updates. `dates_checked` is False when
    this machine's apt is told not to check the age of release files, as behind a frozen mirror.
    """

    uri: str
    security_uri: str | None
    keyring: Path
    dates_checked: bool = True

    def sources(self, release: str) -> list[tuple[str, str]]:
        """(URI, suite) pairs for `release`, its updates and its security updates: those the mirror has.

        The release itself is always in the list, so that its absence is reported by apt, by name.
        """
        pairs = [(self.uri, release)]
        if _has_suite(self.uri, f"{release}-updates"):
            pairs.append((self.uri, f"{release}-updates"))
        if self.security_uri and _has_suite(self.security_uri, f"{release}-security"):
            pairs.append((self.security_uri, f"{release}-security"))
        return pairs

    def stanza(self, uri: str, suite: str, keyring: Path | None = None) -> str:
        """One deb822 stanza (sources.list(5)) for `suite` at `uri`, checked with `keyring`, else the mirror's."""
        lines = ["Types: deb", f"URIs: {uri}", f"Suites: {suite}", "Components: main"]
        lines.append(f"Signed-By: {keyring or self.keyring}")
        if not self.dates_checked:
            lines += ["Check-Valid-Until: no", "Check-Date: no"]
        return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class _Entry:
    uris: tuple[str, ...]
    suites: tuple[str, ...]
    components: tuple[str, ...]
    signed_by: str


def debian_mirror(apt_directory: Path = APT_DIRECTORY) -> Mirror:
    """The Debian mirror of this machine, or the one named by the environment variable MEDIAHOST_LAB_MIRROR.

    Raises LabError when neither exists: on Ubuntu, for example, apt has no Debian source.
    """
    override = os.environ.get(OVERRIDE, "").rstrip("/")
    if override:
        if not override.startswith(_USABLE_SCHEMES):
            raise LabError(
                f"The mirror in {OVERRIDE} cannot be used",
                f"{override!r} is not an http:// or https:// address",
                f"set {OVERRIDE} to the address of a Debian mirror, up to and without /dists",
            )
        security = f"{override}-security" if override.endswith("/debian") else None
        return Mirror(override, security, DEFAULT_KEYRING, _dates_checked())
    entries = [entry for entry in _entries(apt_directory) if _is_debian(entry)]
    archive = _first_uri(entries, _ARCHIVE_SUITES)
    if archive is None:
        raise LabError(
            "No Debian mirror is known",
            f"no source in {apt_directory}/sources.list or sources.list.d is one of Debian's "
            "(this is normal on Ubuntu)",
            f"set the environment variable {OVERRIDE} to the address of a Debian mirror near you, "
            "up to and without /dists",
        )
    uri, signed_by = archive
    security_source = _first_uri(entries, _SECURITY_SUITES)
    keyring = Path(signed_by.split()[0]) if signed_by.startswith("/") else DEFAULT_KEYRING
    return Mirror(uri, security_source[0] if security_source else None, keyring, _dates_checked())


def _first_uri(entries: Iterable[_Entry], suites: frozenset[str]) -> tuple[str, str] | None:
    for entry in entries:
        if suites.intersection(entry.suites):
            for uri in entry.uris:
                if uri.startswith(_USABLE_SCHEMES):
                    return uri.rstrip("/"), entry.signed_by
    return None


def _is_debian(entry: _Entry) -> bool:
    # Vendors too name their suites after Debian's releases; their keyrings and components give them away.
    own_key = not entry.signed_by or "debian-archive" in entry.signed_by
    return own_key and "main" in entry.components


def _entries(apt_directory: Path) -> Iterator[_Entry]:
    parts = apt_directory / "sources.list.d"
    files = [apt_directory / "sources.list", *sorted(parts.glob("*.list")), *sorted(parts.glob("*.sources"))]
    for path in files:
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        yield from _deb822(text) if path.suffix == ".sources" else _one_line(text)


def _one_line(text: str) -> Iterator[_Entry]:
    for raw in text.splitlines():
        line = raw.split("#", 1)[0].strip()
        kind, _, rest = line.partition(" ")
        if kind != "deb":
            continue
        options: dict[str, str] = {}
        rest = rest.strip()
        if rest.startswith("["):
            inside, _, rest = rest[1:].partition("]")
            options = dict(word.partition("=")[::2] for word in inside.split())
        words = rest.split()
        if len(words) >= 3:
            yield _Entry((words[0],), (words[1],), tuple(words[2:]), options.get("signed-by", ""))


def _deb822(text: str) -> Iterator[_Entry]:
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    for stanza in "\n".join(lines).split("\n\n"):
        fields: dict[str, str] = {}
        name = ""
        for line in stanza.splitlines():
            if line[:1].isspace():
                fields[name] = f"{fields.get(name, '')} {line.strip()}"
            else:
                name, _, value = line.partition(":")
                name = name.strip().lower()
                fields[name] = value.strip()
        if (
            fields.get("enabled", "yes").lower() in {"no", "false", "0"}
            or "deb" not in fields.get("types", "").split()
        ):
            continue
        yield _Entry(
            tuple(fields.get("uris", "").split()),
            tuple(fields.get("suites", "").split()),
            tuple(fields.get("components", "").split()),
            fields.get("signed-by", ""),
        )


def _dates_checked() -> bool:
    try:
        answer = subprocess.run(
            ["apt-config", "shell", "CHECKED", "Acquire::Check-Valid-Until/b"],
            capture_output=True,
            text=True,
            check=False,
        ).stdout
    except FileNotFoundError:
        return True
    return "false" not in answer


def _has_suite(uri: str, suite: str) -> bool:
    request = urllib.request.Request(f"{uri}/dists/{suite}/InRelease", method="HEAD")  # noqa: S310 - scheme checked
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310 - scheme checked
            return bool(answer.status == 200)
    except urllib.error.HTTPError:
        return False
    except OSError as error:
        raise LabError(
            f"The Debian mirror {uri} does not answer",
            str(error),
            f"check this machine's network, or name another mirror in {OVERRIDE}",
        ) from error


if __name__ == "__main__":
    try:
        _mirror = debian_mirror()
    except LabError as _error:
        sys.exit(str(_error))
    sys.stdout.write(_mirror.stanza(_mirror.uri, sys.argv[1]))
