"""The native Plex: its repository, the drop-in of its unit, its place for transcodes, and its preferences.

Preferences are compared one by one: those that nobody here asked for are Plex's and the user's.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from mediahost.config import Settings
from mediahost.plex import HOME, PACKAGE, UNIT, USER, libraries
from mediahost.resources import MARK, Directory, File, text_file
from mediahost.storage import touched_by

KEYRING_PATH = "/etc/apt/keyrings/mediahost-plex.asc"
SOURCE_PATH = "/etc/apt/sources.list.d/mediahost-plex.sources"
PIN_PATH = "/etc/apt/preferences.d/mediahost-plex"
DROP_IN_PATH = f"/etc/systemd/system/{UNIT}.d/mediahost.conf"
NEEDRESTART_PATH = "/etc/needrestart/conf.d/mediahost-plex.conf"
PATHS = (KEYRING_PATH, SOURCE_PATH, PIN_PATH, DROP_IN_PATH, NEEDRESTART_PATH)
"""Every file of ours that a native Plex can have."""

# Keys of the old repository and those that installation guides made: none is used by the new source. The first one
# has a SHA-1 signature, which newer releases refuse.
OLD_KEYS = (
    "/etc/apt/keyrings/plex.asc",
    "/etc/apt/keyrings/plex.gpg",
    "/etc/apt/keyrings/plexmediaserver.gpg",
    "/etc/apt/keyrings/plexmediaserver.v2.gpg",
    "/etc/apt/trusted.gpg.d/plex.asc",
    "/etc/apt/trusted.gpg.d/plex.gpg",
    "/etc/apt/trusted.gpg.d/plexmediaserver.gpg",
    "/usr/share/keyrings/plex.gpg",
    "/usr/share/keyrings/plexmediaserver.gpg",
    "/usr/share/keyrings/plexmediaserver.v2.gpg",
)

# A stock image has no Python; what talks to Plex on the host is written in it.
PACKAGES = (PACKAGE, "python3")

# Who may use cards: VA-API and NVENC open render nodes, older drivers the card itself.
CARD_GROUPS = ("render", "video")


def source_file(settings: Settings, architecture: str) -> File:
    """The deb822 source of Plex's repository."""
    lines = (
        "Types: deb",
        f"URIs: {settings.plex_apt_url}",
        "Suites: public",
        "Components: main",
        f"Architectures: {architecture}",
        f"Signed-By: {KEYRING_PATH}",
    )
    return text_file(SOURCE_PATH, *lines)


def pin_file(settings: Settings) -> File | None:
    """Apt preferences that keep the package at `plex_version`; 1001 also allows going back to it."""
    if settings.plex_version is None:
        return None
    body = f"Package: {PACKAGE}\nPin: version {settings.plex_version}\nPin-Priority: 1001\n"
    return File(PIN_PATH, f"Explanation: {MARK}\n{body}".encode())


def transcode_directory(settings: Settings) -> str | None:
    """Where running transcodes are kept; None leaves that to Plex, which takes a directory among its data."""
    if settings.plex_transcode_directory is not None:
        return settings.plex_transcode_directory
    return settings.transcode_root if settings.transcode_size is not None else None


def own_directory(settings: Settings) -> Directory | None:
    """The directory of transcodes where it is Plex's alone. The one of `transcode_size` is shared, and made there."""
    path = settings.plex_transcode_directory
    return None if path is None else Directory(path, USER, USER, "0750")


def used_paths(settings: Settings) -> tuple[str, ...]:
    """Every directory that the server reads or writes outside its own package, in alphabetical order."""
    media = [path for library in libraries(settings).values() for path in library["paths"]]
    transcode = transcode_directory(settings)
    return tuple(sorted({HOME, *media, *((transcode,) if transcode else ())}))


def drop_in(settings: Settings, groups: Collection[str]) -> File:
    """What the package's unit lacks. `groups` are those that the host has: a unit that names another does not start.

    It starts only while every file system at, above and below what it uses is mounted, so that it neither fills the
    root disk below an absent one nor takes the films there for deleted.
    """
    mounts = set(touched_by(used_paths(settings), settings))
    if settings.transcode_size is not None and transcode_directory(settings) == settings.transcode_root:
        mounts.add(settings.transcode_root)
    member_of = [group for group in CARD_GROUPS if group in groups]
    lines = ["[Unit]", f"RequiresMountsFor={' '.join(sorted(mounts))}", ""] if mounts else []
    lines += ["[Service]", f"SupplementaryGroups={' '.join((*member_of, settings.media_group))}"]
    # What Plex writes beside the media (subtitles, optimised versions) the services of the stack may change.
    lines.append("UMask=0002")
    return text_file(DROP_IN_PATH, *lines)


def needrestart_file() -> File:
    """Keeps needrestart from restarting Plex under somebody's film when a library of the system was updated."""
    return text_file(NEEDRESTART_PATH, f"$nrconf{{override_rc}}{{qr(^{PACKAGE})}} = 0;")


def owned(settings: Settings) -> dict[str, str]:
    """Paths of ours to the unit that depends on each, for the manifest."""
    if settings.plex != "native":
        return {}
    found = {SOURCE_PATH: "", KEYRING_PATH: "", NEEDRESTART_PATH: "", DROP_IN_PATH: UNIT}
    if settings.plex_version is not None:
        found[PIN_PATH] = ""
    return found


def preferences(settings: Settings, card: bool) -> dict[str, str]:
    """Preferences there shall be, by Plex's names, as its API writes values.

    `card` says that the host has a card that can transcode; without one nothing is said of it, so that what the user
    chose by hand stays. Which of several cards it takes is HardwareDevicePath: what that holds changed with Plex's
    versions, so it is set in Plex, or in `plex_preferences`.
    """
    wanted: dict[str, Any] = dict(settings.plex_preferences)
    if settings.plex_name is not None:
        wanted["FriendlyName"] = settings.plex_name
    transcode = transcode_directory(settings)
    if transcode is not None:
        wanted["TranscoderTempDirectory"] = transcode
    if card:
        # Decoding and encoding; both need the owner's Plex Pass and do nothing without one.
        wanted["HardwareAcceleratedCodecs"] = wanted["HardwareAcceleratedEncoders"] = True
    return {name: _written(value) for name, value in sorted(wanted.items())}


def _written(value: str | bool | int) -> str:
    return str(int(value)) if isinstance(value, bool) else str(value)


def same(first: str, second: str) -> bool:
    """Whether two values of a preference mean the same: Plex's file says 1 where its API says true."""
    words = {"true": "1", "false": "0"}
    return words.get(first.lower(), first) == words.get(second.lower(), second)
