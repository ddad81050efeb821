"""Configuration files that services need before their first start.

A seed is written once and then belongs to the service, which rewrites it; a file marked `once=False` stays ours.
Formats are those of the services' own sources; nothing here is shown in a plan.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
from collections.abc import Callable
from typing import Any

from mediahost.config import Settings
from mediahost.resources import MARK, File
from mediahost.stack import Stack, StackService

ADMIN_NAME = "admin"
"""Web login of services that get a password from the vault."""

CATEGORIES = ("movies", "tv", "music", "books")
"""Download categories, each a directory below the completed downloads."""


def config_files(service: StackService, stack: Stack, settings: Settings) -> tuple[File, ...]:
    """The files of one service below `{stack_root}/config/<service>`; empty for most."""
    writer = WRITERS.get(service.name)
    return writer(service, stack, settings) if writer else ()


def qbittorrent_api_key(value: str) -> str:
    """The key qBittorrent accepts for a vault value: it wants `qbt_` and 28 letters or digits."""
    return f"qbt_{hashlib.sha256(value.encode()).hexdigest()[:28]}"


@functools.lru_cache(maxsize=64)
def qbittorrent_password_hash(password: str, salt: bytes) -> str:
    """`password` as qBittorrent stores it: PBKDF2-HMAC-SHA512, 100 000 rounds, 16 bytes of salt, 64 of key.

    Remembered: it takes a tenth of a second, and a run renders the same host more than once.
    """
    key = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, 100_000, 64)
    return f"@ByteArray({base64.b64encode(salt).decode()}:{base64.b64encode(key).decode()})"


def download_paths(settings: Settings, kind: str = "torrents") -> tuple[str, str]:
    """(completed, incomplete) of `kind` torrents or usenet, as the containers see them."""
    if settings.layout == "trash" and kind == "usenet":
        return "/data/usenet/complete", "/data/usenet/incomplete"
    if settings.layout == "trash":
        return "/data/torrents", "/data/torrents/incomplete"
    return "/data/downloads/complete", "/data/downloads/incomplete"


def _file(service: StackService, settings: Settings, name: str, content: str, once: bool = True) -> File:
    return File(
        f"{settings.stack_root}/config/{service.name}/{name}",
        content.encode(),
        owner=str(service.uid),
        group=str(service.gid),
        mode="0600",
        secret=True,
        once=once,
    )


def _qbittorrent(service: StackService, stack: Stack, settings: Settings) -> tuple[File, ...]:
    complete, incomplete = download_paths(settings)
    values = service.secret_values
    # From a secret of its own: a salt made of the password would let a guess be tested with one hash.
    salt = hashlib.sha256(values["salt"].encode()).digest()[:16]
    # Requests through the proxy come from a container address: name those, so that a wrong password bans the
    # client and not the proxy.
    proxies = ";".join(str(pool["base"]) for pool in settings.docker_address_pools if "base" in pool)
    sections: dict[str, dict[str, Any]] = {
        "BitTorrent": {
            "Session\\DefaultSavePath": complete,
            "Session\\TempPath": incomplete,
            "Session\\TempPathEnabled": "true",
            "Session\\DisableAutoTMMByDefault": "false",
            "Session\\Port": service.environment.get("TORRENTING_PORT", "6881"),
        },
        "LegalNotice": {"Accepted": "true"},
        # The settings format these keys belong to; without it the first start runs migrations from version 0.
        "Meta": {"MigrationVersion": "8"},
        "Preferences": {
            "Connection\\UPnP": "false",
            "WebUI\\APIKey": qbittorrent_api_key(values["api_key"]),
            "WebUI\\Address": "*",
            "WebUI\\LocalHostAuth": "true",
            "WebUI\\Password_PBKDF2": f'"{qbittorrent_password_hash(values["password"], salt)}"',
            "WebUI\\Port": service.web_port,
            "WebUI\\ReverseProxySupportEnabled": "true" if proxies else "false",
            "WebUI\\TrustedReverseProxiesList": f'"{proxies}"',
            "WebUI\\Username": ADMIN_NAME,
        },
    }
    lines = [
        line
        for section, keys in sections.items()
        for line in (f"[{section}]", *(f"{key}={value}" for key, value in keys.items()), "")
    ]
    categories = {name: {"save_path": f"{complete}/{name}"} for name in CATEGORIES}
    return (
        _file(service, settings, "qBittorrent/qBittorrent.conf", "\n".join(lines)),
        _file(service, settings, "qBittorrent/categories.json", json.dumps(categories, indent=4) + "\n"),
    )


def _bazarr(service: StackService, stack: Stack, settings: Settings) -> tuple[File, ...]:
    # Bazarr compares the MD5 of what is typed (bazarr/utilities/helper.py), so the vault's long random
    # password is what protects it. Without `type` its pages are open to the whole home network.
    password = service.secret_values["password"].encode()
    digest = hashlib.md5(password, usedforsecurity=False).hexdigest()
    content = {
        "auth": {
            "apikey": service.secret_values["api_key"],
            "type": "form",
            "username": ADMIN_NAME,
            "password": digest,
        }
    }
    # JSON is YAML whose texts are all quoted: a key of digits and one `e` must not be read as a number.
    return (_file(service, settings, "config/config.yaml", json.dumps(content, indent=2) + "\n"),)


def _seerr(service: StackService, stack: Stack, settings: Settings) -> tuple[File, ...]:
    # Seerr merges this over its defaults. The regions and migrations are given because its migrations would
    # otherwise take the file for one of an old version.
    content = {
        "main": {
            "apiKey": service.secret_values["api_key"],
            "discoverRegion": "",
            "streamingRegion": "",
        },
        "migrations": ["0007_migrate_arr_tags", "0008_migrate_blacklist_to_blocklist"],
    }
    return (_file(service, settings, "settings.json", json.dumps(content, indent=1) + "\n"),)


def _ddns_updater(service: StackService, stack: Stack, settings: Settings) -> tuple[File, ...]:
    # JSON has no comments; ddns-updater ignores keys it does not know.
    content = {"_comment": MARK, "settings": [dict(entry) for entry in stack.ddns_settings]}
    text = json.dumps(content, indent=2, sort_keys=True) + "\n"
    return (_file(service, settings, "config.json", text, once=False),)


def _gluetun(service: StackService, stack: Stack, settings: Settings) -> tuple[File, ...]:
    # What may be asked of the control server, all of it by reading: whoever may PUT could stop the tunnel.
    routes = ["GET /v1/vpn/status", "GET /v1/publicip/ip", "GET /v1/portforward", "GET /v1/dns/status"]
    key = service.secret_values["api_key"]
    # A text of JSON is one of TOML.
    lines = [f"# {MARK}.", "[[roles]]", 'name = "mediahost"', f"routes = {json.dumps(routes)}"]
    lines += ['auth = "apikey"', f"apikey = {json.dumps(key)}"]
    return (_file(service, settings, "auth/config.toml", "\n".join(lines) + "\n", once=False),)


def _nzbget(service: StackService, stack: Stack, settings: Settings) -> tuple[File, ...]:
    # The image copies its template only where there is no file, so each key stands here whose default in the program
    # (daemon/main/Options.cpp, InitDefaults) would not do, also where the template has a better one.
    complete, incomplete = download_paths(settings, "usenet")
    main = complete.removesuffix("/complete")
    keys = {
        # Defaults of directories hang on the default MainDir, not on this one.
        "MainDir": main,
        "DestDir": complete,
        "InterDir": incomplete,
        "TempDir": f"{main}/tmp",  # noqa: S108 - not the system's
        "NzbDir": "/config/nzb",
        "QueueDir": "/config/queue",
        # Whoever can write there has programs run: not in the media tree, which many services share.
        "ScriptDir": "/config/scripts",
        "LogFile": "/config/nzbget.log",
        "WebDir": "${AppDir}/webui",
        "ConfigTemplate": "${AppDir}/webui/nzbget.conf.template",
        "CertStore": "/etc/ssl/certs/ca-certificates.crt",
        "CertCheck": "yes",
        "ControlIP": "0.0.0.0",  # noqa: S104 - the container's own addresses
        "ControlPort": service.web_port,
        "ControlUsername": ADMIN_NAME,
        "ControlPassword": service.secret_values["password"],
        # The template lets 127.0.0.1 in without a password, and the web interface saves the template's value of each
        # key that is missing here. In vpn_mode container that address is every confined service.
        "AuthorizedIP": "",
        "UMask": "002",
        "WriteLog": "rotate",
        "DetailTarget": "log",
        "HealthCheck": "park",
        "Unpack": "yes",
        "UnpackCleanupDisk": "yes",
        "NzbCleanupDisk": "yes",
        "ExtCleanupDisk": ".par2, .sfv",
        "ParIgnoreExt": ".sfv, .nzb, .nfo",
    }
    keys |= {f"Category{number}.Name": name for number, name in enumerate(CATEGORIES, 1)}
    text = "".join(f"{key}={value}\n" for key, value in keys.items())
    return (_file(service, settings, "nzbget.conf", text),)


def _sabnzbd(service: StackService, stack: Stack, settings: Settings) -> tuple[File, ...]:
    # With a login it does not compare the Host header with a list of names (sabnzbd/interface.py, check_hostname).
    complete, incomplete = download_paths(settings, "usenet")
    values = service.secret_values
    misc = {
        "port": service.web_port,
        "username": ADMIN_NAME,
        "password": f'"{values["password"]}"',
        "api_key": values["api_key"],
        "nzb_key": values["nzb_key"],
        "download_dir": incomplete,
        "complete_dir": complete,
        "permissions": "775",
    }
    lines = [
        "__version__ = 19",
        "__encoding__ = utf-8",
        "[misc]",
        *(f"{key} = {value}" for key, value in misc.items()),
    ]
    lines.append("[categories]")
    for number, name in enumerate(("*", *CATEGORIES)):
        # pp 3: repair, unpack, delete; a number of -100 means "as the category * has it".
        own = {"name": name, "order": number, "pp": "3" if name == "*" else '""', "script": "Default"}
        own |= {"dir": '""' if name == "*" else name, "priority": "0" if name == "*" else "-100"}
        lines += [f"[[{name}]]", *(f"{key} = {value}" for key, value in own.items())]
    return (_file(service, settings, "sabnzbd.ini", "\n".join(lines) + "\n"),)


WRITERS: dict[str, Callable[[StackService, Stack, Settings], tuple[File, ...]]] = {
    "bazarr": _bazarr,
    "ddns-updater": _ddns_updater,
    "gluetun": _gluetun,
    "nzbget": _nzbget,
    "qbittorrent": _qbittorrent,
    "sabnzbd": _sabnzbd,
    "seerr": _seerr,
}
