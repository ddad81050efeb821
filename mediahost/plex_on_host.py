"""What is said to the native Plex on its own host, and done to its files: by `mediahost plex` and by a run.

Runs on the host from standard input, as root, with the standard library alone. The owner's token is read from
Preferences.xml, sent to loopback in a header, and never printed. That file is changed through the server where it
runs, because it writes it anew from its own mind when it ends; as a file only where nothing runs, one attribute at a
time, everything else and owner and mode as they were.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sqlite3
import subprocess
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
import xml.etree.ElementTree as ElementTree
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

_SECONDS = 30
_ELEMENT = re.compile(r"<Preferences\b[^<]*?/?>")
_SUPPORT = "Library/Application Support/Plex Media Server"
_LIBRARY = "Plug-in Support/Databases/com.plexapp.plugins.library.db"
# What a move leaves behind: Plex makes it anew, and it may be most of the bytes.
_LEFT_OUT = ("Cache", "Codecs", "Crash Reports", "Diagnostics", "Updates", "plexmediaserver.pid")
# Preferences whose values are paths or devices inside a container.
_OF_A_CONTAINER = ("TranscoderTempDirectory", "HardwareDevicePath", "ButlerDatabaseBackupPath")


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Do what `request["do"]` names; `url`, `preferences` and `unit` say where Plex is.

    Ends the program with status 1 and words on the error output when that fails, with 3 from `idle` while somebody
    plays; with `told`, gives the words as "error" instead.
    """
    actions = {
        "idle": _idle,
        "set": _set,
        "claim": _claim,
        "libraries": _libraries,
        "move": _move,
    }
    try:
        try:
            return actions[request["do"]](request)
        except OSError as error:
            # Not its own words: they may quote an address with a token in it.
            what = error.strerror or type(error).__name__
            if isinstance(error, shutil.Error):
                path, _, why = error.args[0][0]
                what = f"{path}: {why}"
            where = f" ({error.filename})" if error.filename else ""
            raise _fail(
                f"Plex, {request['do']}: {what}{where}; run again, or see journalctl -u plexmediaserver"
            ) from None
    except SystemExit as end:
        if not request.get("told"):
            raise
        return {"error": str(end)}


def _fail(words: str) -> SystemExit:
    return SystemExit(words)


# --- the server


def _ask(request: Mapping[str, Any], method: str, path: str, query: Any = ()) -> bytes:
    """What Plex answers. Ends with words when it refuses; raises `OSError` when nobody answers."""
    encoded = urllib.parse.urlencode(query, quote_via=urllib.parse.quote)
    url = f"{request['url']}{path}" + (f"?{encoded}" if encoded else "")
    headers = {"Accept": "application/xml"}
    token = _token(request)
    if token:
        headers["X-Plex-Token"] = token
    call = urllib.request.Request(url, method=method, headers=headers)  # noqa: S310 - loopback
    # No proxy of the environment: the token stays on this machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(call, timeout=_SECONDS) as given:
            content: bytes = given.read()
            return content
    except urllib.error.HTTPError as error:
        raise _RefusedError(error.code) from None


class _RefusedError(Exception):
    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def _elements(content: bytes) -> ElementTree.Element:
    return ElementTree.fromstring(content)  # noqa: S314 - Plex's own words on loopback


def _identity(request: Mapping[str, Any]) -> Mapping[str, str] | None:
    try:
        return _elements(_ask(request, "GET", "/identity")).attrib
    except (OSError, _RefusedError, ElementTree.ParseError):
        return None


def _awaited(request: Mapping[str, Any]) -> Mapping[str, str]:
    """Its identity, waited for: after a start it takes a while."""
    deadline = time.monotonic() + float(request.get("seconds", 180))
    while True:
        identity = _identity(request)
        if identity is not None:
            return identity
        if time.monotonic() > deadline:
            raise _fail(
                f"Plex does not answer at {request['url']}/identity; journalctl -u {request['unit']} says why, and "
                "ss -ltnp 'sport = :32400' whether another program has its port"
            )
        time.sleep(1)


def _runs(request: Mapping[str, Any]) -> bool:
    if _identity(request) is not None:
        return True
    known = ("active", "activating", "deactivating", "reloading")
    try:
        told = subprocess.run(
            ["systemctl", "is-active", str(request["unit"])], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return False
    return told.stdout.strip() in known


def _idle(request: dict[str, Any]) -> dict[str, Any]:
    """Nothing, where nobody plays."""
    if not _runs(request):
        return {"sessions": 0}
    _awaited(request)
    try:
        playing = int(_elements(_ask(request, "GET", "/status/sessions")).get("size", "0"))
    except _RefusedError as error:
        raise _fail(f"Plex does not say who plays: {_meaning(error.code, request)}") from None
    if playing:
        raise SystemExit(3)
    return {"sessions": 0}


def _meaning(code: int, request: Mapping[str, Any]) -> str:
    if code in (401, 403) and not _token(request):
        return f"{code}: it does that for its owner only; make it yours first, docs/plex.md says how"
    if code == 401:
        return "401: it does not take the token of its own Preferences.xml; is the server still in your account?"
    return f"status {code}; Logs/Plex Media Server.log among its data says why"


# --- preferences


def _set(request: dict[str, Any]) -> dict[str, Any]:
    """Give preferences the `values` asked for."""
    values: dict[str, str] = request["values"]
    if not _runs(request):
        changed = edit(Path(request["preferences"]), values)
        return {"changed": changed}
    _awaited(request)
    for name, value in values.items():
        try:
            _ask(request, "PUT", "/:/prefs", [(name, value)])
        except _RefusedError as error:
            if error.code in (400, 404):
                raise _fail(
                    f"Plex has no preference {name} or not with this value; look in its settings, advanced ones too, "
                    "and correct plex_preferences"
                ) from None
            raise _fail(f"Plex does not change {name}: {_meaning(error.code, request)}") from None
    return {"changed": True}


def edit(path: Path, values: Mapping[str, str], without: Collection[str] = ()) -> bool:
    """Change attributes of a Preferences.xml that no server has open; whether anything changed.

    The text between them, their order, the file's owner and its mode stay. Ends with words when the file is not what
    Plex writes.
    """
    try:
        text = path.read_text("utf-8")
        root = ElementTree.fromstring(text)  # noqa: S314 - the host's own file
    except FileNotFoundError:
        raise _fail(f"{path} is not there: start the server once, then run again") from None
    except (UnicodeDecodeError, ElementTree.ParseError) as error:
        raise _fail(f"{path} is damaged ({error}); restore it from a backup") from None
    found = _ELEMENT.findall(text)
    if root.tag != "Preferences" or len(found) != 1:
        raise _fail(f"{path} is not a Preferences.xml of Plex; nothing was changed")
    element = found[0]
    changed = element
    for name in without:
        changed = re.sub(rf'\s{name}="[^"]*"', "", changed)
    for name, value in values.items():
        if root.get(name) == value:
            continue
        attribute = f' {name}="{escape(value, {chr(34): "&quot;"})}"'
        changed, count = re.subn(rf'\s{name}="[^"]*"', lambda _: attribute, changed)  # noqa: B023 - used at once
        if not count:
            end = re.search(r"\s*/?>$", changed)
            at = end.start() if end else len(changed)
            changed = changed[:at] + attribute + changed[at:]
    if changed == element:
        return False
    new = text.replace(element, changed)
    wanted = {
        name: value for name, value in {**root.attrib, **values}.items() if name not in without or name in values
    }
    try:
        understood = ElementTree.fromstring(new).attrib == wanted  # noqa: S314 - the host's own file
    except ElementTree.ParseError:
        understood = False
    if not understood:
        raise _fail(f"{path} is not written as Plex writes it; nothing was changed")
    _replace(path, new)
    return True


def _replace(path: Path, text: str) -> None:
    """`text` in the place of the file, which has either content at every moment, and is never readable by others."""
    present = path.stat()
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fchown(file.fileno(), present.st_uid, present.st_gid)
            os.fchmod(file.fileno(), present.st_mode & 0o7777)
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _token(request: Mapping[str, Any]) -> str:
    try:
        return ElementTree.fromstring(Path(request["preferences"]).read_text("utf-8")).get("PlexOnlineToken", "")  # noqa: S314
    except (OSError, UnicodeDecodeError, ElementTree.ParseError):
        return ""


# --- the owner


def _claim(request: dict[str, Any]) -> dict[str, Any]:
    """Bind the server to the account that made the token, unless it is bound. A token that is refused is noted, so
    that the next run does not try it again."""
    if _awaited(request).get("claimed") == "1" or _token(request):
        return {"claimed": True}
    token: str = request["token"]
    try:
        _ask(request, "POST", "/myplex/claim", [("token", token)])
    except _RefusedError as error:
        note = Path(request["refused"])
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(hashlib.sha256(token.encode()).hexdigest() + "\n")
        raise _fail(
            f"plex.tv does not take the claim token (status {error.code}): it is good for four minutes only. Get a "
            f"new one at https://plex.tv/claim, `mediahost secrets set {request['entry']}`, and run again at once"
        ) from None
    deadline = time.monotonic() + _SECONDS
    while (_identity(request) or {}).get("claimed") != "1":
        if time.monotonic() > deadline:
            raise _fail("Plex took the claim token and is still not claimed; run again")
        time.sleep(1)
    return {"claimed": True}


# --- libraries


def _libraries(request: dict[str, Any]) -> dict[str, Any]:
    """Create `libraries`: title, type, paths, language, agent, scanner of each."""
    _awaited(request)
    try:
        known = {place.get("path") for place in _elements(_ask(request, "GET", "/library/sections")).iter("Location")}
        for library in request["libraries"]:
            paths = [path for path in library["paths"] if path not in known]
            for path in paths:
                if not Path(path).is_dir():
                    raise _fail(f"library {library['title']}: {path} is not a directory of this host")
            if not paths:
                continue
            query = [("name", library["title"])]
            query += [(key, library[key]) for key in ("type", "agent", "scanner", "language")]
            _ask(request, "POST", "/library/sections", [*query, *(("location", path) for path in paths)])
    except _RefusedError as error:
        raise _fail(f"Plex does not create the libraries: {_meaning(error.code, request)}") from None
    return {"created": True}


# --- from a container


def _move(request: dict[str, Any]) -> dict[str, Any]:
    """Copy a container's data (`source`, what it has as /config) to the native server's place (`target`).

    Nothing runs meanwhile, or nothing is done. The source stays, and what was at the target is set aside beside it,
    so there is a way back. Gives what was copied and the libraries' directories that this host has not.
    """
    source, target = _data_below(Path(request["source"])), Path(request["target"])
    _nothing_runs(request, source, target)
    if not (source / "Preferences.xml").is_file():
        raise _fail(f"{source} has no Preferences.xml: this is not the data of a Plex server")
    home = target
    while not home.exists():
        home = home.parent
    owner = Path(request["home"]).stat() if Path(request["home"]).exists() else None
    if owner is None:
        raise _fail(f"{request['home']} is not there: install the native Plex first (plex = native, mediahost apply)")
    needed = sum(path.lstat().st_size for path in _files(source))
    free = shutil.disk_usage(home).free
    # A library grows from its first scan on.
    if free < needed * 1.1:
        raise _fail(f"{home} has {free >> 20} MiB free, {source} needs {needed >> 20} MiB and a tenth more")
    new = target.with_name(f"{target.name}.moving")
    shutil.rmtree(new, ignore_errors=True)
    made = _parents(new, Path(request["home"]))
    try:
        shutil.copytree(source, new, symlinks=True, ignore=lambda at, names: _left_out(Path(at), names, source))
        edit(new / "Preferences.xml", {}, without=_OF_A_CONTAINER)
        for path in (*made, new, *new.rglob("*")):
            os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)
        (new / "Preferences.xml").chmod(0o600)
        # Copying takes minutes, in which somebody may have started one of them.
        _nothing_runs(request, source, target)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    aside = None
    if target.exists():
        aside = target.with_name(f"{target.name}.before-move-{time.strftime('%Y%m%d-%H%M%S')}")
        target.rename(aside)
    new.rename(target)
    return {
        "copied": needed,
        "from": str(source),
        "to": str(target),
        "aside": str(aside) if aside else None,
        "absent": _absent(target),
    }


def _data_below(source: Path) -> Path:
    """The server's data in what a container has as /config, or the data themselves."""
    for below in (".", _SUPPORT, f"library/{_SUPPORT}"):
        if (source / below / "Preferences.xml").is_file():
            return (source / below).resolve()
    return source.resolve()


def _nothing_runs(request: Mapping[str, Any], source: Path, target: Path) -> None:
    told = "the move needs both servers stopped, because each writes its database until its last moment"
    if _runs(request):
        raise _fail(
            f"Plex runs here ({request['url']} or {request['unit']}): {told}. systemctl stop {request['unit']}, or "
            "docker stop its container, then move again"
        )
    for place in (source, target):
        process = _user_of(place)
        if process:
            raise _fail(f"process {process} has files below {place} open: {told}. Stop it, then move again")


def _user_of(place: Path) -> str:
    """The process that has a file there open, if any. Inode by inode: a container sees other paths."""
    inodes = set()
    for path in place.rglob("*") if place.is_dir() else ():
        status = path.lstat()
        inodes.add((status.st_dev, status.st_ino))
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            status = link.stat()
        except OSError:
            continue
        process = link.parts[2]
        if (status.st_dev, status.st_ino) in inodes and process != str(os.getpid()):
            return f"{process} ({_name(process)})"
    return ""


def _name(process: str) -> str:
    try:
        return Path(f"/proc/{process}/comm").read_text().strip()
    except OSError:
        return "?"


def _files(source: Path) -> Iterator[Path]:
    for at, directories, names in os.walk(source):
        left = _left_out(Path(at), [*directories, *names], source)
        directories[:] = [name for name in directories if name not in left]
        yield from (Path(at) / name for name in names if name not in left)


def _left_out(at: Path, names: Iterable[str], source: Path) -> set[str]:
    return {name for name in names if name in _LEFT_OUT} if at == source else set()


def _parents(path: Path, home: Path) -> list[Path]:
    made = []
    for parent in [each for each in path.parents if each.is_relative_to(home)][::-1]:
        if not parent.exists():
            parent.mkdir()
            made.append(parent)
    return made


def _absent(target: Path) -> list[str]:
    """Directories of the libraries that this host does not have: the container had them under other names."""
    database = target / _LIBRARY
    if not database.is_file():
        return []
    # Read only, and no text is compared: Plex's collations are not needed.
    with sqlite3.connect(f"file:{urllib.parse.quote(str(database))}?mode=ro&immutable=1", uri=True) as connection:
        rows = connection.execute("SELECT root_path FROM section_locations").fetchall()
    return sorted({path for (path,) in rows if not Path(path).is_dir()})
