"""The start-up conventions of linuxserver.io images, kept where a product could break them.

`FILE__VAR` secrets, `PUID`/`PGID`/`UMASK`, ownership of /config, and privileges dropped before anything
listens. Runs inside lab images and by hand in tests; it must import little (guests run under software
emulation) and must never print a value it read from a secret.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False  # the name type checkers know; importing typing would cost 10 ms natively
if TYPE_CHECKING:
    from collections.abc import MutableMapping
    from typing import NoReturn

# The user `abc` of every linuxserver.io image, and what read-only containers always run as.
DEFAULT_ID = 911
DEFAULT_UMASK = "022"
_FILE_PREFIX = "FILE__"


def log(text: str) -> None:
    """One line to the container's log."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def fail(text: str) -> NoReturn:
    """Say why the container cannot start, then end it with status 1."""
    log(f"error: {text}")
    raise SystemExit(1)


def load_file_secrets(environment: MutableMapping[str, str]) -> None:
    """Set VAR from the file named by `FILE__VAR`, byte for byte: a trailing newline stays, as upstream."""
    for name in sorted(environment):
        if not name.startswith(_FILE_PREFIX) or name == _FILE_PREFIX:
            continue
        path, variable = environment[name], name[len(_FILE_PREFIX) :]
        try:
            with open(path, encoding="utf-8", newline="") as file:  # noqa: PTH123 - pathlib costs 20 ms to import
                value = file.read()
        except (OSError, UnicodeDecodeError) as error:
            log(f"[env-init] cannot read the secret in {name}: {type(error).__name__}")
            continue
        if value.endswith("\n"):
            log(f"[env-init] the secret in {name} ends with a newline and will not work")
        environment[variable] = value
        log(f"[env-init] {variable} set from {name}")


def take_identity(environment: MutableMapping[str, str], config_directory: str) -> None:
    """Give /config to PUID:PGID, drop to it and set the umask: all of it only for root on a writable root.

    A read-only container runs as 911 and a container with a `user:` as that user; both ignore PUID, PGID and
    UMASK. Needs the capabilities CHOWN, DAC_OVERRIDE, FOWNER, SETGID and SETUID, no other.
    """
    if os.geteuid() != 0:
        return
    writable = os.access("/", os.W_OK)
    user = _number(environment, "PUID", DEFAULT_ID) if writable else DEFAULT_ID
    group = _number(environment, "PGID", DEFAULT_ID) if writable else DEFAULT_ID
    try:
        if writable:
            os.makedirs(config_directory, exist_ok=True)  # noqa: PTH103
            _give(config_directory, user, group)
        os.setgroups([group])
        os.setgid(group)
        os.setuid(user)
    except OSError as error:
        fail(f"cannot give {config_directory} to {user}:{group}: {error.strerror}; is a capability missing?")
    if writable:
        os.umask(_umask(environment))


def _give(top: str, user: int, group: int) -> None:
    os.chown(top, user, group)
    for directory, folders, files in os.walk(top):
        for name in folders + files:
            os.chown(os.path.join(directory, name), user, group, follow_symlinks=False)  # noqa: PTH118


def _number(environment: MutableMapping[str, str], name: str, default: int) -> int:
    text = environment.get(name, "") or str(default)
    if not text.isdigit():
        fail(f"{name} is {text!r}, not a number")
    return int(text)


def _umask(environment: MutableMapping[str, str]) -> int:
    text = environment.get("UMASK", "") or DEFAULT_UMASK
    if not text.isdigit() or any(digit > "7" for digit in text) or int(text, 8) > 0o777:
        fail(f"UMASK is {text!r}, not three octal digits")
    return int(text, 8)
