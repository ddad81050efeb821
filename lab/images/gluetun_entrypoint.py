#!/usr/bin/python3 -IS
"""`/gluetun-entrypoint` of the stand-in for Gluetun: runs it, or with `healthcheck` asks the one that runs.

By itself, so that a health check every few seconds costs an emulated guest no more than it must.
"""

import os
import socket
import sys

ADDRESS = ("127.0.0.1", 9999)


def check() -> int:
    """0 when the running instance says that its tunnel works."""
    try:
        with socket.create_connection(ADDRESS, timeout=4) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            return 0 if connection.recv(64).split(b" ")[1:2] == [b"200"] else 1
    except OSError as error:
        sys.stdout.write(f"error: {error}\n")
        return 1


if __name__ == "__main__":
    if sys.argv[1:] == ["healthcheck"]:
        sys.exit(check())
    sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))  # noqa: PTH120 - python3 -I leaves it out
    import gluetun

    sys.exit(gluetun.main())
