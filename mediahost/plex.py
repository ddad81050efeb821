"""Plex Media Server as every part of the project sees it: names, places, ports, and what a backup has to hold.

Values only. The paths are those of Plex's own package for Debian and Ubuntu; its images have the same tree below
/config. The Preferences.xml in it holds a token of the owner's account: nothing here ever reads it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mediahost.config import PlexLibrary, Settings

NAME = "plex"
"""The catalogue entry, the folder in the vault and the name in rules and messages."""
PACKAGE = "plexmediaserver"
UNIT = f"{PACKAGE}.service"
USER = "plex"
PORT = 32400
URL = f"http://127.0.0.1:{PORT}"

HOME = "/var/lib/plexmediaserver"
SUPPORT = "Library/Application Support/Plex Media Server"
"""Plex's data below its home, or below /config in a container."""
DATA = f"{HOME}/{SUPPORT}"
PREFERENCES = f"{DATA}/Preferences.xml"
SQLITE = "/usr/lib/plexmediaserver/Plex SQLite"
"""Plex's own shell of SQLite. The library uses collations that others do not know: they may damage it."""
CLAIM = "claim"
"""Vault entry `<host>/plex/claim`: a token of https://plex.tv/claim, good for four minutes."""

_DISCOVERY = (
    (1900, "udp"),  # DLNA
    (5353, "udp"),  # mDNS
    (8324, "tcp"),  # Roku
    (32410, "udp"),  # GDM, four ports
    (32412, "udp"),
    (32413, "udp"),
    (32414, "udp"),
    (32469, "tcp"),  # DLNA
)
"""Who looks for Plex in the home network uses these (support.plex.tv, "What network ports do I need to allow")."""


@dataclass(frozen=True)
class Port:
    """A port on which the native server listens, on every address of the host."""

    port: int
    protocol: Literal["tcp", "udp"]
    exposure: Literal["wan", "lan"]
    service: str = NAME


def ports(settings: Settings) -> tuple[Port, ...]:
    """Ports of the native server; none where it does not run. Those of the container come from the catalogue."""
    if settings.plex != "native":
        return ()
    return (
        Port(PORT, "tcp", settings.plex_exposure),
        *(Port(port, "tcp" if protocol == "tcp" else "udp", "lan") for port, protocol in _DISCOVERY),
    )


_LIBRARIES: dict[str, tuple[str, Literal["movie", "show", "artist", "photo"]]] = {
    "movies": ("Movies", "movie"),
    "tv": ("TV Shows", "show"),
    "music": ("Music", "artist"),
    "audiobooks": ("Audiobooks", "artist"),
    "photos": ("Photos", "photo"),
    "homevideo": ("Home Videos", "movie"),
}
"""What Plex can hold of the directories below media. It has no library for books and podcasts."""

# Scanner and agent of each type, as Plex's own web interface chooses them since 2019 (plexapi.dev, "Add a library").
AGENTS = {
    "movie": ("Plex Movie", "tv.plex.agents.movie"),
    "show": ("Plex TV Series", "tv.plex.agents.series"),
    "artist": ("Plex Music", "tv.plex.agents.music"),
    "photo": ("Plex Photo Scanner", "com.plexapp.agents.none"),
}


def libraries(settings: Settings) -> dict[str, PlexLibrary]:
    """The libraries there shall be, by title."""
    if settings.plex_libraries is not None:
        return settings.plex_libraries
    known = [name for name in settings.media_libraries if name in _LIBRARIES]
    found: dict[str, PlexLibrary] = {}
    for name in known:
        title, kind = _LIBRARIES[name]
        found[title] = {"type": kind, "paths": [f"{settings.media_root}/{name}"]}
    return found


@dataclass(frozen=True)
class BackupSet:
    """What a backup of the native server holds. Paths of the host; `excluded` is what Plex makes anew by itself.

    `databases` are copied by `sqlite` while the server runs, `SQLITE DATABASE ".backup 'COPY'"`, never as files: a
    database without its -wal is damaged, and another SQLite does not know Plex's collations. `secrets` hold the
    owner's token: what is kept of them must be encrypted.
    """

    directory: str
    excluded: tuple[str, ...]
    databases: tuple[str, ...]
    sqlite: str
    secrets: tuple[str, ...]


def backup_set(settings: Settings) -> BackupSet | None:
    """The native server's; None where it does not run (a container's is its directory below stack_root)."""
    if settings.plex != "native":
        return None
    databases = f"{DATA}/Plug-in Support/Databases"
    library = f"{databases}/com.plexapp.plugins.library.db"
    return BackupSet(
        directory=DATA,
        excluded=(
            *(f"{DATA}/{name}" for name in ("Cache", "Codecs", "Crash Reports", "Diagnostics", "Logs", "Updates")),
            # Previews and chapter thumbnails: gigabytes that a scan makes again.
            f"{DATA}/Media/localhost",
            f"{DATA}/plexmediaserver.pid",
            # Copied by SQLite itself; Plex's own dated copies are beside them.
            *(f"{databases}/com.plexapp.plugins.library.{name}*" for name in ("db", "blobs.db")),
        ),
        databases=(library, f"{databases}/com.plexapp.plugins.library.blobs.db"),
        sqlite=SQLITE,
        secrets=(PREFERENCES,),
    )
