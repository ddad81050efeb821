#!/usr/bin/python3 -IS
"""A stand-in for Plex as the linuxserver.io image starts it, for the lab only: the same as the native package's.

It drops to PUID:PGID before it listens and keeps its data below /config, where the real image has them, so that they
can be moved to a native server.
"""

from __future__ import annotations

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))  # noqa: PTH120 - python3 -I leaves it out

import linuxserver  # noqa: E402
import plex_server  # noqa: E402

ROOT = os.environ.get("MEDIAHOST_STAND_IN_ROOT", "").rstrip("/")
SUPPORT = f"{ROOT}/config/Library/Application Support"

if __name__ == "__main__":
    linuxserver.load_file_secrets(os.environ)
    linuxserver.take_identity(os.environ, f"{ROOT}/config")
    os.makedirs(SUPPORT, exist_ok=True)  # noqa: PTH103 - as its neighbours do
    os.environ["PLEX_MEDIA_SERVER_APPLICATION_SUPPORT_DIR"] = SUPPORT
    plex_server.main()
