"""The frame of a run: every host's configuration is checked before any host is changed, then one host's wishes
are worked out, and at the end the host is compared once more as a whole.
"""

from __future__ import annotations

import getpass
import sys
from functools import partial
from pathlib import Path

from pyinfra import host, inventory, state
from pyinfra.api import FunctionCommand, operation
from pyinfra.api.exceptions import PyinfraError
from pyinfra_cli.exceptions import CliError

from mediahost import secrets, wanted
from mediahost.catalog import CatalogError, load_catalog
from mediahost.check import check_all
from mediahost.config import ConfigError, ConfigProblem
from mediahost.secrets.generate import GENERATED_KINDS
from mediahost.stack import GIVEN
from mediahost.wanted import Wanted
from operations import convergence, guard, lock, report, verify

_PLAN = "mediahost_wanted"


class BadInputError(CliError, PyinfraError):
    """The user's input cannot be used. pyinfra prints the message and leaves with this exit code.

    Both bases are needed: pyinfra lets a PyinfraError out of deploy code without a traceback, and prints a CliError
    as it is.
    """

    exit_code = 2

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))


def begin() -> Wanted:
    """Check all hosts, then give the present one's wishes.

    Raises `BadInputError`, before anything was changed anywhere.
    """
    plans: dict[str, Wanted] = getattr(state, _PLAN, {})
    if not plans:
        try:
            plans = _plans()
        except (ConfigError, CatalogError, secrets.VaultError) as error:
            report.event("bad input", message=str(error))
            raise BadInputError(error) from None
        setattr(state, _PLAN, plans)
        report.listen()
        state.add_callback_handler(guard.PutBackOnError())
    plan = plans[host.name]
    convergence.watch(verify.request(plan))
    guard.allow(plan.settings.rollback_after)
    return plan


def _plans() -> dict[str, Wanted]:
    hosts = {each.name: each.data.dict() for each in inventory}
    catalog = load_catalog()
    settings = check_all(hosts, catalog)
    vault = _Vault()
    plans: dict[str, Wanted] = {}
    found: list[ConfigProblem] = []
    for name in sorted(settings):
        try:
            plans[name] = wanted.build(name, settings[name], catalog, partial(vault.secret, name))
        except ConfigError as error:
            found.extend(error.problems)
    if found:
        raise ConfigError(found)
    setattr(state, "mediahost_vault", vault)  # noqa: B010 - pyinfra's State has no slot for it
    return plans


class _Vault:
    """The inventory's vault, opened when the first secret is asked for."""

    def __init__(self) -> None:
        self._vault: secrets.Vault | None = None
        self.made_for: set[str] = set()
        """Hosts with a secret that did not exist before this run."""

    def secret(self, needed_by: str, entry: str, kind: str) -> str:
        if self._vault is None:
            # Only a person at a terminal can be asked; everybody else gets the list of key sources as an error.
            key = secrets.Automatic(_ask if sys.stdin is not None and sys.stdin.isatty() else None)
            self._vault = secrets.Vault.open(secrets.vault_path(_inventory_file()), key)
        if kind == GIVEN:
            if entry not in self._vault:
                raise LookupError(entry)
            return self._vault.get(entry)
        if entry not in self._vault:
            self.made_for.add(needed_by)
        return self._vault.ensure(entry, GENERATED_KINDS[kind])

    def save(self) -> None:
        if self._vault is not None:
            self._vault.save()


def _ask(path: Path) -> str:
    return getpass.getpass(f"Passphrase of {path}: ")


def _inventory_file() -> Path:
    # pyinfra does not tell a deploy which inventory it was given; it is the first argument that is no option.
    for argument in sys.argv[1:]:
        if argument.endswith(".py"):
            return Path(argument)
    return Path("inventories/home.py")


@operation()
def secrets_kept() -> convergence.Commands:
    """New secrets go into the vault before any host gets them: a run that dies must not lose them."""
    vault: _Vault = state.mediahost_vault  # type: ignore[attr-defined]
    if host.name in vault.made_for:
        report.change("vault: new secrets are kept")
        yield FunctionCommand(vault.save, (), {})


@operation()
def unlocked() -> convergence.Commands:
    """The run lock is given back, if this run took it."""
    yield from lock.give_back()


def end() -> None:
    """Last stage: compare the whole host once more, and give the lock back."""
    unlocked(name="lock given back")
