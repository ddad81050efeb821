"""Runs the lab's stand-in for Plex for real, on loopback, with a directory of the test's own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.vendor import plex_server

PROGRAM = Path(plex_server.__file__)


@dataclass
class Plex:
    """A server: where it answers, where its data are, and the process while it runs."""

    home: Path
    port: int = 0
    process: subprocess.Popen[str] | None = None
    log: str = ""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def data(self) -> Path:
        return self.home / "Library/Application Support/Plex Media Server"

    @property
    def preferences(self) -> Path:
        return self.data / "Preferences.xml"

    def request(self, do: str, **more: Any) -> dict[str, Any]:
        """What `mediahost.plex_on_host.answer` takes."""
        return {
            "do": do,
            "url": self.url,
            "preferences": str(self.preferences),
            "unit": "no-such-plex.service",
            "seconds": 20,
            "refused": str(self.home / "refused"),
            "entry": "nas/plex/claim",
            **more,
        }

    def start(self) -> None:
        support = self.data.parent
        support.mkdir(parents=True, exist_ok=True)
        environment = {
            "PATH": os.environ["PATH"],
            "PLEX_MEDIA_SERVER_APPLICATION_SUPPORT_DIR": str(support),
            "MEDIAHOST_STAND_IN_ADDRESS": "127.0.0.1",
            "MEDIAHOST_STAND_IN_PORT": str(self.port),
        }
        self.process = subprocess.Popen(
            [sys.executable, "-I", str(PROGRAM)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert self.process.stdout is not None
        self.log = self.process.stdout.readline()
        assert "stand-in" in self.log, self.log
        self.port = int(self.log.rsplit(" ", 1)[1])

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.log += self.process.communicate(timeout=30)[0]
            self.process = None


@contextmanager
def plex(home: Path) -> Iterator[Plex]:
    """A running server, stopped at the end."""
    server = Plex(home)
    server.start()
    try:
        yield server
    finally:
        server.stop()
