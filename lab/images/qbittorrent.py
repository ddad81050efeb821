"""Starts Debian's qbittorrent-nox the way the linuxserver.io image starts its own build.

The program is the real one; only the start-up (secrets, PUID/PGID/UMASK, seeded configuration, WEBUI_PORT) is
ours. It must never overwrite a qBittorrent.conf that exists.
"""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120 - python3 -I leaves it out

import linuxserver  # noqa: E402

CONFIG_DIRECTORY = "/config"
PROGRAM = "/usr/bin/qbittorrent-nox"
# Accepted=true is what lets the program start without a terminal; the rest is where linuxserver.io points it.
SEED = """[BitTorrent]
Session\\DefaultSavePath=/downloads/
Session\\Port=6881

[LegalNotice]
Accepted=true

[Preferences]
WebUI\\Address=*
WebUI\\ServerDomains=*
"""


def main() -> None:
    """Prepare /config, then become qbittorrent-nox."""
    environment = os.environ
    linuxserver.load_file_secrets(environment)
    linuxserver.take_identity(environment, CONFIG_DIRECTORY)
    folder = f"{CONFIG_DIRECTORY}/qBittorrent"
    try:
        os.makedirs(folder, exist_ok=True)  # noqa: PTH103
        with open(f"{folder}/qBittorrent.conf", "x", encoding="utf-8") as file:  # noqa: PTH123
            file.write(SEED)
    except FileExistsError:
        pass
    except OSError as error:
        linuxserver.fail(f"cannot write {folder}: {error.strerror}")
    port = environment.get("WEBUI_PORT") or "8080"
    arguments = [PROGRAM, f"--webui-port={port}"]
    if environment.get("TORRENTING_PORT"):
        arguments.append(f"--torrenting-port={environment['TORRENTING_PORT']}")
    for variable in ("HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"):
        environment[variable] = CONFIG_DIRECTORY
    linuxserver.log(f"mediahost lab: Debian's qbittorrent-nox, web interface on port {port}")
    os.execv(PROGRAM, arguments)  # noqa: S606 - the container's own program replaces this one


if __name__ == "__main__":
    main()
