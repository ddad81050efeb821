"""All that one host should be: the settings, the stack and every artefact derived from them, as values.

The single place where the renderers are put together. `deploy.py`, `mediahost render` and the benchmarks all
start from here, so they cannot disagree.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from mediahost import plex
from mediahost.catalog import Service
from mediahost.config import ConfigError, ConfigProblem, Settings
from mediahost.render import (
    base,
    caches,
    docker,
    fail2ban,
    follow,
    forwarding,
    hardening,
    mounts,
    proxy,
    smart,
    snapraid,
    ssh,
    swap,
    totp,
    users,
    wall,
)
from mediahost.render import plex as plex_files
from mediahost.render.compose import render_compose
from mediahost.render.tree import render_tree
from mediahost.resources import Container, Directory, File
from mediahost.stack import GIVEN, Stack, build_stack, vault_folder
from mediahost.vpn import Vpn


@dataclass(frozen=True)
class Wanted:
    """One host as it should be.

    `stack_files` are the compose file, secrets and seeds; `factors` the administrators' secrets of SSH's second
    factor; `vpn` is None when no traffic goes through a tunnel; `owned` maps every path we own to the unit that
    depends on it ("" for none). `plex_claim` is the vault's token for a Plex that nobody owns yet.
    """

    host: str
    settings: Settings
    stack: Stack
    directories: tuple[Directory, ...]
    stack_files: tuple[File, ...]
    proxy_file: File | None
    containers: tuple[Container, ...]
    jails: tuple[fail2ban.Jail, ...]
    factors: tuple[File, ...]
    owned: Mapping[str, str]
    vpn: Vpn | None = None
    mounts: tuple[mounts.Mount, ...] = ()
    mount_files: tuple[File, ...] = ()
    plex_claim: str | None = field(default=None, repr=False)


def build(host: str, settings: Settings, catalog: Mapping[str, Service], secret: Callable[[str, str], str]) -> Wanted:
    """What `host` should be.

    `secret(entry, kind)` gives the value of a vault entry and makes one of that kind when there is none.
    Raises `ConfigError` with every problem of the stack.
    """
    stack = build_stack(settings, catalog, host, secret)
    artefacts = render_compose(stack, settings)
    proxy_file = proxy.render_proxy(stack, settings)
    directories = {directory.path: directory for directory in render_tree(settings, stack)}
    directories |= {directory.path: directory for directory in artefacts.directories}
    host_files = [
        *base.apt_files(settings),
        base.sysctl_file(settings),
        base.journald_file(settings),
        ssh.drop_in(settings),
    ]
    jails = fail2ban.jails(stack, settings) if settings.fail2ban else ()
    if settings.fail2ban:
        host_files += [*fail2ban.files(settings, jails), *fail2ban.reload_units()]
    optional = [users.sudoers(settings), docker.pin_file(settings), proxy_file]
    seeds = {file.path for file in artefacts.files if file.once}
    owned = {file.path: "" for file in (*host_files, *artefacts.files, *filter(None, optional))}
    owned |= dict.fromkeys(ssh.owned_paths(settings), "")
    factors = totp.files(settings, host, secret)
    owned |= dict.fromkeys((file.path for file in factors), "")
    timesyncd = base.timesyncd_file(settings)
    if timesyncd is not None:
        owned[timesyncd.path] = "systemd-timesyncd.service"
    owned |= hardening.owned(settings)
    tunnel_files = (
        *wall.files(stack.vpn, settings),
        *forwarding.files(stack.vpn, settings, stack),
        *follow.files(stack.vpn, settings),
    )
    owned |= dict.fromkeys((file.path for file in tunnel_files), "")
    owned |= plex_files.owned(settings)
    owned |= dict.fromkeys(caches.owned(settings), "")
    for concern in (swap.concern(settings), smart.concern(settings), snapraid.concern(settings)):
        owned |= dict.fromkeys((file.path for file in concern.every_file), "")
    mount_files = mounts.files(settings, _credentials(host, settings, secret))
    owned |= dict.fromkeys((file.path for file in mount_files), "")
    if settings.docker_source == "docker":
        owned |= {docker.SOURCE_PATH: "", docker.KEYRING_PATH: ""}
    return Wanted(
        host=host,
        settings=settings,
        stack=stack,
        directories=tuple(sorted(directories.values(), key=lambda directory: directory.path)),
        stack_files=artefacts.files,
        proxy_file=proxy_file,
        containers=artefacts.containers,
        jails=jails,
        factors=factors,
        owned={path: unit for path, unit in owned.items() if path not in seeds},
        vpn=stack.vpn,
        mounts=mounts.wanted(settings),
        mount_files=mount_files,
        plex_claim=_plex_claim(host, settings, secret),
    )


def _credentials(host: str, settings: Settings, secret: Callable[[str, str], str]) -> tuple[File, ...]:
    """A file of user and password for each account of an SMB share, from the vault."""
    found = []
    problems = []
    for account in sorted({share.account for share in settings.storage_shares if share.kind == "smb"}):
        values = []
        for name in ("user", "password"):
            entry = f"{vault_folder(host)}/{account}/{name}"
            try:
                value = secret(entry, GIVEN)
            except LookupError:
                mend = f"the vault has no such entry; run `mediahost secrets set {entry}`"
                problems.append(ConfigProblem(host, f"vault entry {entry}", "", mend))
                continue
            if not value.isprintable():
                mend = "must be one line, or the file for mount.cifs would say something else; set it again"
                problems.append(ConfigProblem(host, f"vault entry {entry}", "", mend))
            values.append(value)
        if len(values) == 2:
            found.append(mounts.credentials_file(account, *values))
    if problems:
        raise ConfigError(problems)
    return tuple(found)


def _plex_claim(host: str, settings: Settings, secret: Callable[[str, str], str]) -> str | None:
    """A token of https://plex.tv/claim, None where the vault has none or nobody asks for it."""
    if settings.plex != "native":
        return None
    entry = f"{vault_folder(host)}/{plex.NAME}/{plex.CLAIM}"
    try:
        token = secret(entry, GIVEN).strip()
    except LookupError:
        return None
    if not re.fullmatch(r"claim-[A-Za-z0-9_-]{4,128}", token):
        mend = f"is not a claim token; get one at https://plex.tv/claim, then `mediahost secrets set {entry}`"
        raise ConfigError([ConfigProblem(host, f"vault entry {entry}", "", mend)])
    return token
