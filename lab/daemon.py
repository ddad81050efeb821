"""Programs the lab leaves running on its host (the registry, the package server): started once, found again.

A record in the cache directory names the process by id and start time, so that a later run, or a reused id,
is told apart. It must never signal a process that the record does not prove to be the lab's own.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lab.errors import LabError

START_LIMIT = 60.0
"""Seconds a program may take to answer. Generous: the host may be busy emulating machines."""

STOP_LIMIT = 20.0
"""Seconds between SIGTERM and SIGKILL."""

# A Popen object that is collected while its process runs warns; these live as long as the lab's own process.
_started: list[subprocess.Popen[bytes]] = []


@dataclass(frozen=True)
class Service:
    """A running program: where it answers (no trailing slash), its process id and its record on disk."""

    url: str
    pid: int
    record: Path

    def stop(self) -> None:
        """End the process; nothing happens when it is gone already."""
        with locked(self.record.with_suffix(".lock")):
            stop(self.record)


def ensure_running(
    record: Path, command: Sequence[str], url: str, ready_path: str, package: str, mend_port: str
) -> Service:
    """The service of `record`: the one that runs, or `command` started in the background.

    `url` is http://ADDRESS:PORT; the service is ready when `url` + `ready_path` answers 200. Its output goes
    to `record` with the suffix .log. Raises LabError when the program is missing (`package` has it), the port is
    taken (`mend_port` says what to do) or it does not come up.
    """
    with locked(record.with_suffix(".lock")):
        pid = _recorded_pid(record)
        if pid is not None and _answers(url + ready_path):
            return Service(url, pid, record)
        stop(record)
        host, _, port = url.partition("://")[2].partition(":")
        if _port_taken(host, int(port)):
            raise LabError(f"Cannot start {command[0]}", f"port {port} of {host} is taken", mend_port)
        return Service(url, _start(record, command, url + ready_path, package), record)


def port_setting(variable: str, default: int) -> int:
    """A TCP port from the environment `variable`, or `default`. Raises LabError when it is no port."""
    text = os.environ.get(variable, "") or str(default)
    if not text.isdigit() or not 0 < int(text) < 65536:
        raise LabError(f"{variable} cannot be used", f"{text!r} is not a port", "set it to a number from 1 to 65535")
    return int(text)


def running(record: Path, url: str) -> Service | None:
    """The service of `record` when its process is alive; never starts anything."""
    pid = _recorded_pid(record)
    return None if pid is None else Service(url, pid, record)


def stop(record: Path) -> None:
    """End the process that `record` names, if it is still that process, and remove the record."""
    pid = _recorded_pid(record)
    if pid is not None:
        os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + STOP_LIMIT
        while _recorded_pid(record) is not None:
            if time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
                deadline += STOP_LIMIT
            time.sleep(0.05)
    record.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on the file `path`, which is made when absent; waits for other lab commands."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def locked_if_free(path: Path) -> Iterator[bool]:
    """Hold the lock of `locked`; False when somebody else does. The time of the file's last use stays."""
    with path.open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def _start(record: Path, command: Sequence[str], ready_url: str, package: str) -> int:
    log = record.with_suffix(".log")
    with log.open("wb") as output:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd="/",
            )
        except FileNotFoundError as error:
            raise LabError(
                f"{command[0]} is not installed", f"it comes with the package {package}", "run lab/install"
            ) from error
    _started.append(process)
    started = _start_time(process.pid)
    record.write_text(json.dumps({"pid": process.pid, "started": started}), encoding="ascii")
    deadline = time.monotonic() + START_LIMIT
    while not _answers(ready_url):
        ended = process.poll() is not None
        if ended or time.monotonic() > deadline:
            stop(record)
            tail = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-8:]
            how = f"it ended with exit code {process.returncode}" if ended else "it does not answer"
            raise LabError(f"Cannot start {command[0]}", "\n".join([how, *tail]), f"see the lines above and {log}")
        time.sleep(0.05)
    return process.pid


def _recorded_pid(record: Path) -> int | None:
    try:
        entry = json.loads(record.read_text(encoding="ascii"))
        pid, started = int(entry["pid"]), entry["started"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    # Collects the process when it is this one's child, else it would stay in the table after its end.
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
    return pid if started is not None and _start_time(pid) == started else None


def _start_time(pid: int) -> str | None:
    """Field 22 of proc_pid_stat(5): when the process started, in clock ticks since boot."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return text.rpartition(")")[2].split()[19]


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310 - always http on loopback
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError, ValueError):
        return False


def _port_taken(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=5):
            return True
    except OSError:
        return False
