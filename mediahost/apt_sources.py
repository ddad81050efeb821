"""The distribution's own package sources, as its files under /etc/apt say, and what is to be added to them.

Parts of the archive that are off (non-free) are switched on beside the user's files, in a file of our own: the same
address, suites and key, or apt would refuse two sources that disagree about the key.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

PATHS = (
    "/etc/apt/sources.list",
    "/etc/apt/sources.list.d/debian.sources",
    "/etc/apt/sources.list.d/ubuntu.sources",
)
"""Where installers and cloud images write the distribution's sources."""

# deb [signed-by=/a.gpg arch=amd64] http://deb.debian.org/debian bookworm main
_LINE = re.compile(r"deb\s+(?:\[(?P<options>[^]]*)\]\s+)?(?P<uri>\S+)\s+(?P<suite>\S+)\s+(?P<components>[^#]+)")


@dataclass(frozen=True)
class Source:
    """Some suites at some addresses. `signed_by` is the option's text as it stands, empty for apt's own keys."""

    uris: tuple[str, ...]
    suites: tuple[str, ...]
    components: frozenset[str]
    signed_by: str = ""


def read(contents: Mapping[str, str], codename: str) -> tuple[Source, ...]:
    """The sources of the release `codename` in files of apt, path to content; backports and the like left out."""
    found = [
        source
        for path in PATHS
        for source in (_stanzas if path.endswith(".sources") else _lines)(contents.get(path, ""))
    ]
    wanted = {codename, f"{codename}-updates", f"{codename}-security"}
    kept = []
    for source in found:
        suites = tuple(suite for suite in source.suites if suite in wanted)
        if suites:
            kept.append(Source(source.uris, suites, source.components, source.signed_by))
    return tuple(kept)


def _stanzas(text: str) -> Iterator[Source]:
    """Those of a deb822 file (sources.list(5))."""
    for paragraph in re.split(r"\n\s*\n", text):
        values: dict[str, str] = {}
        name = ""
        for line in paragraph.splitlines():
            if line.startswith("#"):
                continue
            if line[:1].isspace() and name:
                values[name] += f"\n{line}"
            elif ":" in line:
                name, _, value = line.partition(":")
                name = name.strip().lower()
                values[name] = value.strip()
        if (
            values.get("enabled", "yes").lower() in ("no", "false", "0")
            or "deb" not in values.get("types", "").split()
        ):
            continue
        yield Source(
            tuple(values.get("uris", "").split()),
            tuple(values.get("suites", "").split()),
            frozenset(values.get("components", "").split()),
            values.get("signed-by", ""),
        )


def _lines(text: str) -> Iterator[Source]:
    """Those of the one-line format."""
    for line in text.splitlines():
        match = _LINE.match(line.strip())
        if match:
            options = dict(option.partition("=")[::2] for option in (match["options"] or "").split())
            components = frozenset(match["components"].split())
            yield Source((match["uri"],), (match["suite"],), components, options.get("signed-by", ""))


def additions(sources: Iterable[Source], components: Iterable[str]) -> str:
    """A deb822 file with the `components` that `sources` lack; empty when they lack none."""
    sources = tuple(sources)
    stanzas: dict[str, None] = {}
    for source in sources:
        # Whoever has no main is an addition himself.
        for suite in source.suites if "main" in source.components else ():
            there = {
                name
                for other in sources
                if suite in other.suites and set(other.uris) & set(source.uris)
                for name in other.components
            }
            missing = sorted(set(components) - there)
            if missing:
                lines = ["Types: deb", f"URIs: {' '.join(source.uris)}", f"Suites: {suite}"]
                lines += [f"Components: {' '.join(missing)}"]
                lines += [f"Signed-By: {source.signed_by}"] if source.signed_by else []
                stanzas["\n".join(lines) + "\n"] = None
    return "\n".join(stanzas)
