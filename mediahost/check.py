"""The check of a whole inventory: every problem of every host, told at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mediahost.catalog import Service
from mediahost.config import ConfigError, ConfigProblem, Settings, read
from mediahost.stack import choose


def check_all(hosts: Mapping[str, Mapping[str, Any]], catalog: Mapping[str, Service]) -> dict[str, Settings]:
    """The settings of every host, given its merged data.

    Raises one `ConfigError` that lists what is wrong with keys, values, services and access, host by host.
    """
    settings: dict[str, Settings] = {}
    problems: list[ConfigProblem] = []
    for host, data in hosts.items():
        try:
            each = read(host, data)
            problems += lockout_problems(host, data, each)
            choose(each, catalog, host)
            settings[host] = each
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return settings


def lockout_problems(host: str, data: Mapping[str, Any], settings: Settings) -> list[ConfigProblem]:
    """A login by password while passwords are about to be switched off, and nobody with a key."""
    if data.get("ssh_password") and not data.get("ssh_key") and not any(settings.admins.values()):
        mend = "passwords are switched off and no admin has a key: nobody could log in again. Fill `admins` first"
        return [ConfigProblem(host, "admins", "", mend)]
    return []
