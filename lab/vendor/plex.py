"""Plex's repository with a stand-in inside: the real one is not to be had here, and plays to subscribers only.

Names, paths, user, unit and relations are those of Plex's own package for Debian; the program is `plex_server.py`,
which says what it is. Two versions with the same content: the newer one exists to test a pin, and an update that
waits while somebody plays.
"""

from __future__ import annotations

from pathlib import Path

from lab.vendor import Package, Vendor

VERSIONS = ("1.43.3.10896-cb3ebc72d", "1.43.4.10999-00000000d")
KEY = "PlexSign.v2.key"
"""Name of the key's file, as at downloads.plex.tv/plex-keys."""

_HOME = "/var/lib/plexmediaserver"
_LIBRARY = "/usr/lib/plexmediaserver"

# Plex's own starts it through a shell that makes the directory first; name and environment are the contract.
_UNIT = f"""[Unit]
Description=Plex Media Server (stand-in, mediahost lab)
After=network.target network-online.target

[Service]
Environment="PLEX_MEDIA_SERVER_APPLICATION_SUPPORT_DIR={_HOME}/Library/Application Support"
Environment=PLEX_MEDIA_SERVER_HOME={_LIBRARY}
Environment=PLEX_MEDIA_SERVER_MAX_PLUGIN_PROCS=6
Environment=MEDIAHOST_STAND_IN_VERSION=@VERSION@
ExecStartPre=/bin/sh -c 'test -d "$PLEX_MEDIA_SERVER_APPLICATION_SUPPORT_DIR" || \
  mkdir -p "$PLEX_MEDIA_SERVER_APPLICATION_SUPPORT_DIR"'
ExecStart=/bin/sh -c 'exec "$PLEX_MEDIA_SERVER_HOME/Plex Media Server"'
Type=simple
User=plex
Group=plex
Restart=on-failure
RestartSec=5
TimeoutStopSec=20

[Install]
WantedBy=multi-user.target
"""

_SQLITE = f"""#!/bin/sh
# stand-in for Plex SQLite (mediahost lab)
exec "{_LIBRARY}/Plex Media Server" --sqlite "$@"
"""


def vendor() -> Vendor:
    """Plex's repository: suite `public`, component `main`, whatever the release."""
    packages = tuple(_package(version) for version in VERSIONS)
    return Vendor("plex/deb", KEY, "Plex", "Plex", "public", "main", packages)


def _package(version: str) -> Package:
    program = Path(__file__).with_name("plex_server.py").read_text(encoding="utf-8")
    return Package(
        name="plexmediaserver",
        version=version,
        contents=(),
        description="stand-in for Plex Media Server",
        relations=(("Pre-Depends", "init-system-helpers (>= 1.54~)"), ("Depends", "python3")),
        units=("plexmediaserver.service",),
        group="plex",
        user="plex",
        home=_HOME,
        files=(("/usr/lib/systemd/system/plexmediaserver.service", _UNIT.replace("@VERSION@", version)),),
        programs=((f"{_LIBRARY}/Plex Media Server", program), (f"{_LIBRARY}/Plex SQLite", _SQLITE)),
    )
