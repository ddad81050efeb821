#!/usr/bin/python3 -I
"""A stand-in for Plex Media Server, for the lab only: it plays nothing and knows no film.

It keeps what the product relies on and enforces it: port 32400, Preferences.xml in its real place (made at the first
start, kept in mind while it runs, written anew when it ends: what somebody edits meanwhile is lost), /identity for
everybody, all else without a token only while nobody owns the server, the claim from loopback, preferences by name,
sessions, and libraries in an SQLite database of Plex's own table names. It says that it is a stand-in in its log, its
page and its Server header, and never prints a token.

    "Plex Media Server"                              run, with PLEX_MEDIA_SERVER_APPLICATION_SUPPORT_DIR
    "Plex Media Server" --sqlite DATABASE COMMAND    what the real package's "Plex SQLite" is for: .backup 'FILE'

The file stand-in-sessions beside Preferences.xml holds the number of people who play; without it nobody does.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import signal
import socketserver
import sqlite3
import sys
import threading
import urllib.parse
import uuid
import xml.etree.ElementTree as ElementTree
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

LABEL = "stand-in for Plex Media Server (mediahost lab)"
VERSION = os.environ.get("MEDIAHOST_STAND_IN_VERSION", "1.43.3.10896")

# Name → (type, default), of the several hundred those that somebody here may set.
KNOWN = {
    "ButlerDatabaseBackupPath": ("text", ""),
    "DlnaEnabled": ("bool", "0"),
    "EnableIPv6": ("bool", "0"),
    "FriendlyName": ("text", ""),
    "HardwareAcceleratedCodecs": ("bool", "0"),
    "HardwareAcceleratedEncoders": ("bool", "0"),
    "HardwareDevicePath": ("text", ""),
    "LanNetworksBandwidth": ("text", ""),
    "ManualPortMappingMode": ("bool", "0"),
    "ManualPortMappingPort": ("int", "32400"),
    "RelayEnabled": ("bool", "1"),
    "TranscoderQuality": ("int", "0"),
    "TranscoderTempDirectory": ("text", ""),
    "TranscoderToneMapping": ("bool", "1"),
    "allowedNetworks": ("text", ""),
    "autoEmptyTrash": ("bool", "1"),
    "customConnections": ("text", ""),
    "secureConnections": ("int", "1"),
}
# Type → number in the database, and what scans and describes it.
TYPES = {
    "movie": (1, "Plex Movie", "tv.plex.agents.movie"),
    "show": (2, "Plex TV Series", "tv.plex.agents.series"),
    "artist": (8, "Plex Music", "tv.plex.agents.music"),
    "photo": (13, "Plex Photo Scanner", "com.plexapp.agents.none"),
}
_TABLES = """
CREATE TABLE IF NOT EXISTS library_sections (id INTEGER PRIMARY KEY, name TEXT, section_type INTEGER, language TEXT,
    agent TEXT, scanner TEXT, uuid TEXT);
CREATE TABLE IF NOT EXISTS section_locations (id INTEGER PRIMARY KEY, library_section_id INTEGER, root_path TEXT);
"""


def quoteattr(value: str) -> str:
    """An attribute's value as Plex writes it: in double quotes, whatever is inside."""
    return '"' + escape(value, {'"': "&quot;"}) + '"'


def log(text: str) -> None:
    """One line to the journal."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


class Server:
    """The state of one server: preferences in mind, libraries on disk."""

    def __init__(self, support: Path) -> None:
        self.data = support / "Plex Media Server"
        self.file = self.data / "Preferences.xml"
        self.lock = threading.Lock()
        databases = self.data / "Plug-in Support" / "Databases"
        databases.mkdir(parents=True, exist_ok=True)
        self.database = sqlite3.connect(databases / "com.plexapp.plugins.library.db", check_same_thread=False)
        self.database.execute("PRAGMA journal_mode=WAL")
        self.database.executescript(_TABLES)
        self.preferences: dict[str, str] = {}
        if self.file.exists():
            try:
                self.preferences = dict(ElementTree.fromstring(self.file.read_text("utf-8")).attrib)  # noqa: S314
            except (ElementTree.ParseError, UnicodeDecodeError) as error:
                sys.exit(f"{LABEL}: {self.file} is corrupt: {error}")
        machine = self.preferences.setdefault("MachineIdentifier", str(uuid.uuid4()))
        processed = hashlib.sha1(f"{machine}- Plex Media Server".encode()).hexdigest()  # noqa: S324 - as Plex does it
        self.preferences.setdefault("ProcessedMachineIdentifier", processed)
        self.write()

    @property
    def token(self) -> str:
        """The owner's; empty while nobody owns the server."""
        return self.preferences.get("PlexOnlineToken", "")

    def write(self) -> None:
        """Preferences.xml anew, from what is in mind."""
        attributes = " ".join(f"{name}={quoteattr(value)}" for name, value in self.preferences.items())
        new = self.file.with_name("Preferences.xml.new")
        new.unlink(missing_ok=True)
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT, 0o600), "w", encoding="utf-8") as file:
            file.write(f'<?xml version="1.0" encoding="utf-8"?>\n<Preferences {attributes}/>\n')
        new.replace(self.file)

    def sessions(self) -> int:
        """How many play."""
        try:
            return int((self.data / "stand-in-sessions").read_text())
        except (FileNotFoundError, ValueError):
            return 0

    def libraries(self) -> list[str]:
        """Elements of /library/sections."""
        lines = []
        rows = self.database.execute("SELECT id, name, section_type, agent, scanner, language FROM library_sections")
        for number, name, kind, agent, scanner, language in rows.fetchall():
            word = next(word for word, (value, _, _) in TYPES.items() if value == kind)
            lines.append(
                f'<Directory allowSync="1" key="{number}" type="{word}" title={quoteattr(name)} agent="{agent}" '
                f'scanner={quoteattr(scanner)} language="{language}">'
            )
            places = self.database.execute(
                "SELECT id, root_path FROM section_locations WHERE library_section_id = ?", (number,)
            )
            lines += [f'<Location id="{place}" path={quoteattr(path)} />' for place, path in places.fetchall()]
            lines.append("</Directory>")
        return lines

    def create(self, query: dict[str, list[str]]) -> int:
        """A library; the status of the answer."""
        kind = TYPES.get(query.get("type", [""])[0])
        name, places = query.get("name", [""])[0], query.get("location", [])
        if kind is None or not name or not places or not query.get("language"):
            return 400
        if [query.get("scanner"), query.get("agent")] != [[kind[1]], [kind[2]]]:
            return 400
        if not all(os.access(place, os.R_OK | os.X_OK) and Path(place).is_dir() for place in places):
            return 400
        with self.database:
            made = self.database.execute(
                "INSERT INTO library_sections (name, section_type, language, agent, scanner, uuid) "
                "VALUES (?, ?, ?, ?, ?, ?)",
                (name, kind[0], query["language"][0], kind[2], kind[1], str(uuid.uuid4())),
            )
            for place in places:
                self.database.execute(
                    "INSERT INTO section_locations (library_section_id, root_path) VALUES (?, ?)",
                    (made.lastrowid, place),
                )
        return 201

    def setting(self, name: str) -> str:
        """The element of /:/prefs."""
        kind, default = KNOWN[name]
        value = self.preferences.get(name, default)
        if kind == "bool":
            value, default = ("true" if each == "1" else "false" for each in (value, default))
        return (
            f'<Setting id="{name}" label="" summary="a &gt; b" type="{kind}" default={quoteattr(default)} '
            f'value={quoteattr(value)} hidden="0" advanced="0" group="general" />'
        )

    def change(self, query: dict[str, list[str]]) -> int:
        """Preferences by name; the status of the answer."""
        values = {name: given[-1] for name, given in query.items() if not name.startswith("X-Plex-")}
        for name, value in values.items():
            if name not in KNOWN:
                return 400
            if KNOWN[name][0] == "bool" and value not in ("0", "1", "true", "false"):
                return 400
            if KNOWN[name][0] == "int" and not value.isdecimal():
                return 400
            self.preferences[name] = {"true": "1", "false": "0"}.get(value, value)
        self.write()
        return 200

    def claim(self, query: dict[str, list[str]]) -> int:
        """The owner's token for a claim token; the status of the answer. "claim-expired..." is too old."""
        token = query.get("token", [""])[0]
        if self.token or not re.fullmatch(r"claim-[A-Za-z0-9_-]{4,}", token) or token.startswith("claim-expired"):
            return 401
        self.preferences["PlexOnlineToken"] = f"lab{secrets.token_hex(8)}"
        self.preferences["PlexOnlineUsername"] = "lab"
        self.write()
        return 200


class Handler(BaseHTTPRequestHandler):
    """Answers in XML, as Plex does unless asked for something else."""

    plex: Server
    protocol_version = "HTTP/1.1"

    def version_string(self) -> str:
        return LABEL

    def log_message(self, *_: Any) -> None:
        """A request may hold a token."""

    def do_GET(self) -> None:
        self._answer("GET")

    def do_PUT(self) -> None:
        self._answer("PUT")

    def do_POST(self) -> None:
        self._answer("POST")

    def _answer(self, method: str) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", "0")))
        path, _, text = self.path.partition("?")
        query = urllib.parse.parse_qs(text, keep_blank_values=True)
        with self.plex.lock:
            self._routed(method, path, query)

    def _routed(self, method: str, path: str, query: dict[str, list[str]]) -> None:
        plex = self.plex
        if path == "/identity":
            claimed, machine = int(bool(plex.token)), plex.preferences["ProcessedMachineIdentifier"]
            told = (
                f'size="0" apiVersion="1.1.1" claimed="{claimed}" machineIdentifier="{machine}" version="{VERSION}"'
            )
            self._send(200, told)
        elif path == "/":
            self._send(200, f'size="0" friendlyName={quoteattr(plex.preferences.get("FriendlyName", LABEL))}')
        elif not self._may(query):
            self._send(401)
        elif (method, path) == ("GET", "/:/prefs"):
            self._send(200, f'size="{len(KNOWN)}"', [plex.setting(name) for name in KNOWN])
        elif (method, path) == ("PUT", "/:/prefs"):
            self._send(plex.change(query))
        elif (method, path) == ("POST", "/myplex/claim"):
            self._send(plex.claim(query) if self._near() else 403)
        elif (method, path) == ("GET", "/status/sessions"):
            playing = plex.sessions()
            self._send(200, f'size="{playing}"', ['<Video title="A film" type="movie"></Video>'] * playing)
        elif (method, path) == ("GET", "/library/sections"):
            lines = plex.libraries()
            count = sum(line.startswith("<Directory") for line in lines)
            self._send(200, f'size="{count}" allowSync="0" title1="Plex Library"', lines)
        elif (method, path) == ("POST", "/library/sections"):
            self._send(plex.create(query))
        else:
            self._send(404)

    def _near(self) -> bool:
        return str(self.client_address[0]).removeprefix("::ffff:") in ("127.0.0.1", "::1")

    def _may(self, query: dict[str, list[str]]) -> bool:
        if not self.plex.token:
            return self._near()
        given = self.headers.get("X-Plex-Token") or query.get("X-Plex-Token", [""])[0]
        return given == self.plex.token

    def _send(self, status: int, attributes: str = 'size="0"', lines: list[str] | None = None) -> None:
        inner = "".join(f"{line}\n" for line in lines or ())
        body = f'<?xml version="1.0" encoding="UTF-8"?>\n<MediaContainer {attributes}>\n{inner}</MediaContainer>\n'
        self.send_response(status)
        self.send_header("Content-Type", "text/xml;charset=utf-8")
        self.send_header("Content-Length", str(len(body.encode())))
        self.end_headers()
        self.wfile.write(body.encode())


class Listener(ThreadingHTTPServer):
    """Without the question of its own name, which a guest without a name server would wait for."""

    daemon_threads = True

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])


def sqlite(database: str, command: str) -> None:
    """What the real package's shell does with `.backup 'FILE'`, or with SQL."""
    backup = re.fullmatch(r"\.backup '?([^']+)'?", command)
    with sqlite3.connect(database) as connection:
        if backup:
            with sqlite3.connect(backup[1]) as copy:
                connection.backup(copy)
            return
        for row in connection.execute(command):
            log("|".join(map(str, row)))


def main() -> None:
    """Run until SIGTERM."""
    if sys.argv[1:2] == ["--sqlite"]:
        sqlite(*sys.argv[2:4])
        return
    support = os.environ.get("PLEX_MEDIA_SERVER_APPLICATION_SUPPORT_DIR")
    if not support:
        sys.exit(f"{LABEL}: PLEX_MEDIA_SERVER_APPLICATION_SUPPORT_DIR is not set")
    plex = Server(Path(support))
    Handler.plex = plex
    address = (
        os.environ.get("MEDIAHOST_STAND_IN_ADDRESS", ""),
        int(os.environ.get("MEDIAHOST_STAND_IN_PORT", "32400")),
    )
    server = Listener(address, Handler)

    def end(*_: Any) -> None:
        with plex.lock:
            plex.write()
            plex.database.close()
        log(f"{LABEL} ended")
        os._exit(0)

    signal.signal(signal.SIGTERM, end)
    # Only now: who has read this may end it at once, and what it had in mind is written all the same.
    log(f"{LABEL} {VERSION} listens on port {server.server_address[1]}")
    # It need not look whether it shall end: a signal tells. Waking up costs an emulated guest.
    server.serve_forever(poll_interval=3600)


if __name__ == "__main__":
    main()
