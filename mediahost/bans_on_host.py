"""What `mediahost bans` runs on a host: asks and tells Fail2Ban there.

Sent on stdin and run by the host's own Python, which Fail2Ban needs anyway: the standard library of Python 3.10 only,
nothing of this project. Its one argument and its one line of output are JSON objects.
"""

from __future__ import annotations

import ipaddress
import json
import os
import sqlite3
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

Ban = dict[str, Any]


class RefusedError(Exception):
    """Why nothing was done, in words for the user."""


def client(*arguments: str) -> list[str]:
    """The lines that fail2ban-client answers. Raises `RefusedError` when Fail2Ban does not do it."""
    done = subprocess.run(["fail2ban-client", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RefusedError((done.stderr or done.stdout).strip().rpartition("\n")[2])
    return done.stdout.splitlines()


def jails() -> list[str]:
    """The names of all jails. Raises `RefusedError` when Fail2Ban does not answer."""
    try:
        status = client("status")
    except RefusedError:
        raise RefusedError(
            "Fail2Ban does not run here; see: journalctl -u fail2ban. mediahost apply starts it"
        ) from None
    (names,) = (line.partition(":")[2] for line in status if "Jail list" in line)
    return [name.strip() for name in names.split(",") if name.strip()]


def bans(names: list[str]) -> list[Ban]:
    """The bans of these jails: jail, address, since, until (None: for ever), times (None: not known)."""
    counts = times_banned()
    found = []
    for jail in names:
        for line in client("get", jail, "banip", "--with-time"):
            # ADDRESS \t2026-11-21 10:00:00 + 3600 = 2026-11-21 11:00:00
            address, _, rest = line.partition("\t")
            since, _, rest = rest.partition(" + ")
            until = rest.partition(" = ")[2]
            if not until:
                continue
            found.append(
                {
                    "jail": jail,
                    "address": address.strip(),
                    "since": with_zone(since),
                    "until": None if until.startswith("9999") else with_zone(until),
                    "times": counts.get((jail, address.strip())),
                }
            )
    return found


def with_zone(text: str) -> str:
    """The host's local time as ISO 8601 with its zone."""
    return datetime.strptime(text.strip(), "%Y-%m-%d %H:%M:%S").astimezone().isoformat()


def times_banned() -> dict[tuple[str, str], int]:
    """(jail, address) to how often it was banned; from Fail2Ban's database, which no command of it shows."""
    answer = client("get", "dbfile")
    path = answer[-1].lstrip("|`- ").strip() if answer else ""
    try:
        database = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
        try:
            return {
                (jail, ip): int(count) for jail, ip, count in database.execute("SELECT jail, ip, bancount FROM bips")
            }
        finally:
            database.close()
    except sqlite3.Error:
        return {}


def add(address: str, jail: str) -> list[Ban]:
    """Ban `address` in `jail`. Raises `RefusedError` for one that is never banned."""
    given = ipaddress.ip_address(address)
    for line in client("get", jail, "ignoreip"):
        block = line.lstrip("|`- ").strip()
        try:
            if given in ipaddress.ip_network(block, strict=False):
                raise RefusedError(
                    f"{address} is never banned here: it is in {block} (home network, containers, "
                    "addresses that runs come from, fail2ban_ignore)"
                )
        except ValueError:
            continue  # the sentence above the list
    if address == own_client():
        raise RefusedError(f"{address} is where you come from; you would shut yourself out")
    client("set", jail, "banip", address)
    # Its time grows, and is written down, a moment later.
    for _ in range(30):
        made = [ban for ban in bans([jail]) if ban["address"] == address]
        if made and made[0]["times"] is not None:
            break
        time.sleep(0.1)
    if not made:
        raise RefusedError(f"Fail2Ban did not ban {address}; see: tail /var/log/fail2ban.log")
    return made


def remove(address: str, names: list[str], everywhere: bool) -> list[Ban]:
    """Lift the bans of `address` in these jails, and forget that there were any; gives those that were lifted."""
    lifted = [ban for ban in bans(names) if ban["address"] == address]
    if everywhere:
        client("unban", address)
    else:
        # Answers 0 and forgets, too, when it is not banned at present.
        client("set", names[0], "unbanip", address)
    return lifted


def own_client() -> str:
    """Where this connection comes from. sudo drops SSH_CONNECTION; an ancestor of this process still has it."""
    pid = os.getpid()
    while pid > 1:
        try:
            variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            return ""
        for variable in variables:
            if variable.startswith(b"SSH_CONNECTION="):
                return variable.partition(b"=")[2].split()[0].decode().removeprefix("::ffff:")
    return ""


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """What the request (verb, address, jail) comes to: {bans: ...} or {error: ...}."""
    try:
        names = jails()
        jail = request["jail"]
        if jail is not None and jail not in names:
            raise RefusedError(f"there is no jail {jail}; there are: {', '.join(names)}")
        chosen = names if jail is None else [jail]
        if request["verb"] == "add":
            return {"bans": add(request["address"], jail)}
        if request["verb"] == "remove":
            return {"bans": remove(request["address"], chosen, everywhere=jail is None)}
        return {"bans": bans(chosen)}
    except RefusedError as error:
        return {"error": str(error)}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(answer(json.loads(sys.argv[1]))) + "\n")
