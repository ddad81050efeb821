#!/usr/bin/python3 -IS
"""A stand-in for SABnzbd as the linuxserver.io image starts it, for the lab only.

It keeps what the product relies on: `/config/sabnzbd.ini` with port, keys, login and folders, the call that needs no
key, the key of all others, and the Host header that is compared with a list when there is no login. It must never
print a key.
"""

from __future__ import annotations

import ipaddress
import os
import signal
import sys

sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))  # noqa: PTH120 - python3 -I leaves it out

import linuxserver  # noqa: E402
import stand_in  # noqa: E402
from stand_in import Answer, Request, StandIn, fail, new_key, port_number  # noqa: E402


class Sabnzbd(StandIn):
    """Settings from [misc] of sabnzbd.ini, written with keys of its own when they are missing."""

    port = 8080

    def prepare(self) -> None:
        self.config = self.path("/config/sabnzbd.ini")
        text = self.read(self.config)
        if text is None:
            text = f"[misc]\nport = {self.port}\napi_key = {new_key()}\nnzb_key = {new_key()}\n"
            self.write(self.config, text)
        misc = section(text, "misc")
        if not misc.get("api_key"):
            fail(f"{self.config} has no api_key in [misc]")
        self.key = misc["api_key"]
        self.login = bool(misc.get("username") and misc.get("password"))
        self.names = {name.strip() for name in misc.get("host_whitelist", "").split(",")} - {""}
        self.port = port_number(misc.get("port") or str(self.port))
        for key in ("download_dir", "complete_dir"):
            folder = misc.get(key)
            if folder:
                try:
                    os.makedirs(self.path(folder), exist_ok=True)  # noqa: PTH103
                except OSError as error:
                    fail(f"cannot make {key} {folder} as {os.geteuid()}:{os.getegid()}: {error.strerror}")
                if not os.access(self.path(folder), os.W_OK):
                    fail(f"cannot write {key} {folder} as {os.geteuid()}:{os.getegid()}")

    def answer(self, request: Request) -> Answer:
        if not (self.login or self._is_known(request.headers.get("host", ""))):
            return Answer(403, "Access denied - Hostname verification failed\n")
        if request.path in {"/api", "/sabnzbd/api"}:
            if request.query.get("mode") == "version":
                return Answer(200, {"version": self.version})
            if request.query.get("apikey") != self.key:
                return Answer(403, "API Key Incorrect\n")
            if request.query.get("mode") == "fullstatus":
                return Answer(200, {"status": {"paused": False, "standIn": True}})
            return Answer(404, "not implemented\n")
        return self.page() if request.path in {"/", "/login/", "/wizard/"} else Answer(404, "not found\n")

    def _is_known(self, host: str) -> bool:
        name = host.rsplit(":", 1)[0].strip("[]").lower()
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name in self.names or name == "localhost" or name.endswith(".local")
        return True


def section(text: str, name: str) -> dict[str, str]:
    """The values of one section of an ini file whose deeper sections stand in double brackets."""
    found: dict[str, str] = {}
    inside = False
    for line in text.splitlines():
        if line.startswith("["):
            inside = line.strip() == f"[{name}]"
        elif inside and "=" in line:
            key, _, value = line.partition("=")
            found[key.strip()] = value.strip().strip("\"'")
    return found


def main() -> int:
    """Run until SIGTERM."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _signal, _frame: sys.exit(0))
    program = Sabnzbd("sabnzbd", os.environ)
    linuxserver.load_file_secrets(os.environ)
    linuxserver.take_identity(os.environ, program.path("/config"))
    program.prepare()
    stand_in.serve(program)
    return 0


if __name__ == "__main__":
    sys.exit(main())
