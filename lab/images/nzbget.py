"""Starts Debian's nzbget the way the linuxserver.io image starts its own build.

The program is the real one; only the start-up (secrets, PUID/PGID/UMASK, the template where there is no
configuration) is ours. It must never overwrite an nzbget.conf that exists, nor put a password into argv as upstream
does: a container that is given one in a variable is refused.
"""

from __future__ import annotations

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120 - python3 -I leaves it out

import linuxserver  # noqa: E402

TYPE_CHECKING = False  # the name type checkers know; importing typing would cost 10 ms natively
if TYPE_CHECKING:
    from collections.abc import Mapping

CONFIG = "/config/nzbget.conf"
PROGRAM = "/usr/bin/nzbget"
TEMPLATE = "/usr/share/nzbget/nzbget.conf"
# What upstream's template says where Debian's says otherwise; its well-known password is in both.
UPSTREAM = {
    "MainDir": "/downloads",
    "DestDir": "${MainDir}/completed",
    "InterDir": "${MainDir}/intermediate",
    "WebDir": "${AppDir}/webui",
    "ConfigTemplate": "${AppDir}/webui/nzbget.conf.template",
    "ControlIP": "0.0.0.0",  # noqa: S104 - it is the real default
    "AuthorizedIP": "127.0.0.1",
}


def as_upstream(template: str) -> str:
    """The program's own template with upstream's values."""
    lines = []
    for line in template.splitlines():
        key = line.partition("=")[0]
        lines.append(f"{key}={UPSTREAM[key]}" if key in UPSTREAM else line)
    return "\n".join(lines) + "\n"


def prepare(config: str, template: str) -> None:
    """Write `config` from `template` unless it is there. Ends the program when it cannot."""
    try:
        with open(template, encoding="utf-8") as source:  # noqa: PTH123 - pathlib costs 20 ms to import
            text = as_upstream(source.read())
        with open(config, "x", encoding="utf-8") as file:  # noqa: PTH123
            file.write(text)
    except FileExistsError:
        pass
    except OSError as error:
        linuxserver.fail(f"cannot make {config}: {error.strerror}")


def refuse_arguments(environment: Mapping[str, str]) -> None:
    """Upstream hands these on with -o, for every user of the host to read."""
    for name in ("NZBGET_USER", "NZBGET_PASS"):
        if environment.get(name):
            linuxserver.fail(f"{name} would be an argument of the program; seed {CONFIG}")


def main() -> None:
    """Prepare /config, then become nzbget."""
    environment = os.environ
    linuxserver.load_file_secrets(environment)
    refuse_arguments(environment)
    linuxserver.take_identity(environment, os.path.dirname(CONFIG))  # noqa: PTH120
    prepare(CONFIG, TEMPLATE)
    environment["HOME"] = os.path.dirname(CONFIG)  # noqa: PTH120
    linuxserver.log("mediahost lab: Debian's nzbget")
    os.execv(PROGRAM, [PROGRAM, "-s", "-c", CONFIG, "-o", "OutputMode=log"])  # noqa: S606 - the container's own program


if __name__ == "__main__":
    main()
