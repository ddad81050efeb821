"""The check of a whole inventory: every problem of every host, told at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import date
from typing import Any

from mediahost.catalog import Service
from mediahost.config import ConfigError, ConfigProblem, Settings, read
from mediahost.stack import choose, vault_folder


def check_all(hosts: Mapping[str, Mapping[str, Any]], catalog: Mapping[str, Service]) -> dict[str, Settings]:
    """The settings of every host, given its merged data.

    Raises one `ConfigError` that lists what is wrong with keys, values, services and access, host by host.
    """
    settings: dict[str, Settings] = {}
    problems: list[ConfigProblem] = []
    for host, data in hosts.items():
        try:
            settings[host] = read(host, data)
            usable = settings[host]
        except ConfigError as error:
            problems += error.problems
            # What is wrong with the services is told as well, as far as the other keys let it be seen.
            wrong = {problem.key.partition(".")[0] for problem in error.problems}
            try:
                usable = read(host, {key: value for key, value in data.items() if key not in wrong})
            except ConfigError:
                continue
        problems += lockout_problems(host, data, usable)
        try:
            choose(usable, catalog, host)
        except ConfigError as error:
            problems += error.problems
    problems += _shared_folders(hosts)
    if problems:
        raise ConfigError(problems)
    return settings


def _shared_folders(hosts: Iterable[str]) -> list[ConfigProblem]:
    """Hosts whose names are the same in the vault: they would get each other's secrets."""
    owners: dict[str, str] = {}
    problems = []
    for host in hosts:
        owner = owners.setdefault(vault_folder(host), host)
        if owner != host:
            mend = f"the vault cannot tell this name from {owner}; give one of them another name"
            problems.append(ConfigProblem(host, "host name", host, mend))
    return problems


def lockout_problems(host: str, data: Mapping[str, Any], settings: Settings) -> list[ConfigProblem]:
    """Settings with which nobody could log in again.

    A login by password while passwords are about to be switched off and nobody has a key; and a run that would take
    login or sudo from the account it comes in as.
    """
    if (
        data.get("ssh_password")
        and not data.get("ssh_key")
        and not any(a.keys for a in settings.administrators.values())
    ):
        mend = "passwords are switched off and no admin has a key: nobody could log in again. Fill `admins` first"
        return [ConfigProblem(host, "admins", "", mend)]
    name = str(data.get("ssh_user", ""))
    account = settings.administrators.get(name)
    if account is None:
        return []
    problems = []
    if not account.sudo:
        mend = "the run logs in as this user and needs sudo; let another administrator run it, or leave sudo on"
        problems.append(ConfigProblem(host, f"admins.{name}.sudo", "False", mend))
    if account.expires is not None and account.expires <= date.today():
        mend = "the run logs in as this user, whose account would be closed; choose a later day"
        problems.append(ConfigProblem(host, f"admins.{name}.expires", str(account.expires), mend))
    return problems
