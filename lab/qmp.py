"""Speaks QMP, QEMU's machine protocol, to one running QEMU over its UNIX socket.

A connection lives for one command, so that no process keeps the socket (QEMU serves one client at a time) and
a killed caller leaves nothing behind. It knows the protocol only; what a machine is stands in lab/machine.py.
"""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path
from typing import Any

from lab.errors import LabError

_LIMIT_SECONDS = 300
"""A savevm of two GiB takes seconds on an idle host; under load it has taken a minute."""


def execute(path: Path, command: str, arguments: dict[str, Any] | None = None) -> Any:
    """Run one QMP command and return its `return` value (a dict, list or string, as QEMU documents it).

    Raises LabError when QEMU refuses the command, ConnectionError or FileNotFoundError when nobody listens.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(_LIMIT_SECONDS)
        _connect(connection, path)
        with connection.makefile("rwb") as stream:
            _answer(stream)  # the greeting
            _ask(stream, "qmp_capabilities", {})
            return _ask(stream, command, arguments or {})


def monitor(path: Path, line: str) -> str:
    """Run one line of the human monitor, for what QMP lacks; returns its text, "" when all went well."""
    return str(execute(path, "human-monitor-command", {"command-line": line})).strip()


def _connect(connection: socket.socket, path: Path) -> None:
    deadline = time.monotonic() + _LIMIT_SECONDS
    while True:
        try:
            connection.connect(str(path))
            return
        except BlockingIOError:  # the backlog is full: another process talks to this QEMU now
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def _ask(stream: Any, command: str, arguments: dict[str, Any]) -> Any:
    stream.write(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
    stream.flush()
    while True:
        answer = _answer(stream)
        if "return" in answer:
            return answer["return"]
        if "error" in answer:
            raise LabError(
                f"QEMU refused {command}",
                str(answer["error"].get("desc", answer["error"])),
                "see its arguments",
            )


def _answer(stream: Any) -> dict[str, Any]:
    line = stream.readline()
    if not line:
        raise ConnectionError("QEMU closed its control socket")
    answer: dict[str, Any] = json.loads(line)
    return answer
