"""`mediahost secrets`: the user's hands on the vault.

It prints a value only when `get` asks for it, and takes one only from a prompt without echo or from
standard input, never from argv, where every process of the machine could read it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import quote

import click

from mediahost.secrets import keys, storage
from mediahost.secrets.error import VaultError, shown
from mediahost.secrets.generate import GENERATED_KINDS
from mediahost.secrets.keys import Automatic, KeyFile, KeyMaterial, KeySource, Passphrase
from mediahost.secrets.repository import prepare_directory, vault_path
from mediahost.secrets.vault import Vault

_DEFAULT_INVENTORY = Path("inventories/home.py")


class _Failure(click.ClickException):
    exit_code = 2

    def show(self, file: Any = None) -> None:
        click.echo(f"error: {self.message}", err=True)


class _Commands(click.Group):
    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except VaultError as error:
            raise _Failure(str(error)) from None


_inventory = click.argument("inventory", type=click.Path(path_type=Path), default=_DEFAULT_INVENTORY, required=False)
_name = click.argument("name")


@click.group("secrets", cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
def command() -> None:
    """Keep passwords and keys encrypted in your repository: secrets/<inventory>.vault.

    Each command takes the inventory last; without one it uses inventories/home.py.

    The key is the first of these that is set:

    \b
      1. the variable MEDIAHOST_VAULT_PASSPHRASE
      2. the file that MEDIAHOST_VAULT_KEY_FILE names,
         else ~/.config/mediahost/<inventory>.key (mode 600)
      3. the system keyring: service mediahost, user <inventory>
      4. a question, at a terminal

    \b
    Example:
      mediahost secrets init
      mediahost secrets set porkbun_api_key
      mediahost secrets list

    Exit codes: 0 done, 1 check found damage, 2 bad input, wrong key or unusable vault.
    """


@command.command()
@click.option("--passphrase", is_flag=True, help="Ask for a passphrase (or read it from standard input).")
@_inventory
def init(passphrase: bool, inventory: Path) -> None:
    """Create the vault of INVENTORY, and its key when there is none yet.

    Without a passphrase in the environment, a key file or a keyring entry, a random key file is made:
    back it up, for nobody can open the vault without it.

    \b
    Example:
      mediahost secrets init inventories/home.py
    """
    path = _vault_of(inventory)
    if os.path.lexists(path):
        Vault.create(path, Automatic())  # refuses, with the reason
    key, made = (Passphrase(_new_passphrase(path)), None) if passphrase else _key_for_a_new_vault(path)
    if made is None:
        keys.refuse_weak(key.find(path), path)
    vault = Vault.create(path, key)
    written = prepare_directory(path)
    vault.save()
    click.echo(f"{shown(path)} created, opened by {key.find(path).origin}")
    for git_file in written:
        click.echo(f"{shown(git_file)} tells git how to treat vaults; commit it with the vault")
    if made is not None:
        click.echo(f"\nBack up {made} now, outside of this repository: without it the vault is lost.")


@command.command("set")
@_name
@_inventory
def set_(name: str, inventory: Path) -> None:
    """Set the secret NAME to a value that you type unseen, or that comes on standard input.

    One newline at the end of standard input is taken off. The same command mends a damaged entry.

    \b
    Example:
      mediahost secrets set porkbun_api_key
      mediahost secrets set wireguard_config inventories/home.py < wg0.conf
    """
    vault = _open(name, inventory)
    if sys.stdin.isatty():
        value = click.prompt(f"Value of {name}", hide_input=True, confirmation_prompt=True, err=True)
    else:
        value = _standard_input()
    if not value:
        _refuse(f"the value of {name} is empty", "type it, or check the command that writes to standard input")
    vault.set(name, value)
    _save(vault, f"{name} set")


@command.command()
@_name
@_inventory
def get(name: str, inventory: Path) -> None:
    """Print the value of the secret NAME and a newline, nothing else.

    \b
    Example:
      mediahost secrets get home1/sonarr/api_key | wl-copy --trim-newline
    """
    value = _open(name, inventory).get(name)
    _warn_on_screen()
    click.echo(value)


@command.command()
@_name
@_inventory
def totp(name: str, inventory: Path) -> None:
    """Print the secret NAME of SSH's second factor as the address that an authenticator app reads.

    \b
    Example:
      mediahost secrets totp nas/totp/me | qrencode -t ansiutf8
    """
    host, found, administrator = name.rpartition("/totp/")
    if not found:
        _refuse(f"{name} is no secret of a second factor", "its name is HOST/totp/ADMINISTRATOR; see `secrets list`")
    value = _open(name, inventory).get(name)
    _warn_on_screen()
    # https://github.com/google/google-authenticator/wiki/Key-Uri-Format
    issuer = quote(host, safe="")
    click.echo(f"otpauth://totp/{issuer}:{quote(administrator, safe='')}?secret={value}&issuer={issuer}")


@command.command("list")
@click.option("--long", "-l", "long", is_flag=True, help="Show how and when each value was set.")
@_inventory
def list_(long: bool, inventory: Path) -> None:
    """List the names of all secrets, one a line.

    \b
    Example:
      mediahost secrets list --long inventories/home.py
    """
    vault = _open(None, inventory)
    names = vault.names()
    width = max(map(len, names), default=0)
    for name in names:
        kind = vault.kind(name)
        origin = f"generated ({kind})" if kind else "given"
        click.echo(f"{name:{width}}  {vault.changed(name)}  {origin}" if long else name)
    if vault.problems:
        click.echo(f"warning: {len(vault.problems)} bad lines: mediahost secrets check", err=True)


@command.command()
@click.option("--all-generated", is_flag=True, help="Every secret that mediahost generated.")
@click.argument("arguments", nargs=-1, metavar="[NAME] [INVENTORY]")
def rotate(all_generated: bool, arguments: tuple[str, ...]) -> None:
    """Give generated secrets new values of the same kind; the next `mediahost apply` brings them out.

    \b
    Example:
      mediahost secrets rotate home1/sonarr/api_key
      mediahost secrets rotate --all-generated inventories/home.py
    """
    names, rest = ([], arguments) if all_generated else (list(arguments[:1]), arguments[1:])
    if len(rest) > 1 or not (names or all_generated):
        raise click.UsageError("give NAME [INVENTORY], or --all-generated [INVENTORY]")
    vault = _open(names[0] if names else None, Path(rest[0]) if rest else _DEFAULT_INVENTORY)
    if all_generated:
        names = [name for name in vault.names() if vault.kind(name) in GENERATED_KINDS]
    for name in names:
        vault.rotate(name)
    _save(vault, *(f"{name} rotated" for name in names))
    if not names:
        click.echo("no secret was generated by mediahost; nothing to rotate")


@command.command()
@_name
@_inventory
def delete(name: str, inventory: Path) -> None:
    """Remove the secret NAME; the vault before stays as <vault>.previous until the next change.

    \b
    Example:
      mediahost secrets delete porkbun_api_key
    """
    vault = _open(name, inventory)
    vault.delete(name)
    _save(vault, f"{name} deleted")


@command.command()
@_inventory
def check(inventory: Path) -> None:
    """Decrypt every line of the vault and tell all bad ones; exit code 1 when there are any.

    \b
    Example:
      mediahost secrets check && git commit secrets/
    """
    vault = _open(None, inventory)
    if not vault.problems:
        click.echo(f"{shown(vault.path)}: {_counted(vault)}, all readable")
        return
    for problem in vault.problems:
        click.echo(str(problem), err=True)
    click.echo(f"{shown(vault.path)}: {len(vault.problems)} problems, {_counted(vault)} readable", err=True)
    raise SystemExit(1)


@command.command()
@click.option("--passphrase", is_flag=True, help="Ask for the new passphrase (or read standard input).")
@click.option("--key-file", type=click.Path(path_type=Path), help="The new key file; made when it does not exist.")
@_inventory
def rekey(passphrase: bool, key_file: Path | None, inventory: Path) -> None:
    """Encrypt everything again under a new key.

    Without an option a key file is replaced by a new random one, and a passphrase by one that you type.
    The vault and the key file before stay beside the new ones as .previous. What has been in git's
    history can still be opened with the old key: after a leak, rotate the secrets too.

    \b
    Example:
      mediahost secrets rekey
      mediahost secrets rekey --passphrase inventories/home.py
    """
    if passphrase and key_file:
        raise click.UsageError("give --passphrase or --key-file, not both")
    path = _vault_of(inventory)
    old = Automatic(_ask if sys.stdin.isatty() else None).find(path)
    vault = Vault.open(path, _Found(old))
    if key_file is not None:
        made = not os.path.lexists(key_file)
        if made:
            storage.create_private(key_file, keys.new_key())
        new: KeySource = KeyFile(key_file)
        keys.refuse_weak(new.find(path), path)
        _save_under(vault, new)
        if made:
            click.echo(f"Back up {shown(key_file)} now, outside of this repository.")
    elif old.file is not None and not passphrase:
        _replace_key_file(vault, old.file)
    else:
        new = Passphrase(_new_passphrase(path))
        keys.refuse_weak(new.find(path), path)
        _save_under(vault, new)
        if old.file == keys.default_key_file(path):
            # It would be found before anybody is asked, and does not fit any more.
            former = storage.previous_path(old.file)
            storage.rename(old.file, former)
            click.echo(f"the former key is {shown(former)}")
    _tell_stale_sources(path, vault)


class _Found:
    """A key source for material that has been found already, so that the user is asked once."""

    def __init__(self, material: KeyMaterial) -> None:
        self._material = material

    def find(self, vault: Path) -> KeyMaterial:
        return self._material


def _save_under(vault: Vault, key: KeySource) -> None:
    vault.rekey(key)
    _save(vault, f"{_counted(vault)} encrypted again, opened by {key.find(vault.path).origin}")


def _replace_key_file(vault: Vault, key_file: Path) -> None:
    """Rekey to a new random key in the same place.

    Whatever step is the last, both keys are on disk, and the error of a wrong key names the other one.
    """
    new = key_file.with_name(key_file.name + ".new")
    storage.create_private(new, keys.new_key())
    _save_under(vault, KeyFile(new))
    storage.supplant(new, key_file)
    click.echo(f"{shown(key_file)} holds the new key: back it up; the former is {key_file.name}.previous")


def _tell_stale_sources(path: Path, vault: Vault) -> None:
    """Say what the user must change so that the new key is the one that is found."""
    try:
        Vault.open(path, Automatic(), allow_damage=True)
    except VaultError as error:
        click.echo(f"Now make the new key known, for the key found at present does not fit:\n{error}", err=True)


def _key_for_a_new_vault(path: Path) -> tuple[KeySource, Path | None]:
    """Return the key to use and, when it had to be made, the new key file."""
    named = os.environ.get(keys.KEY_FILE_VARIABLE)
    wanted = Path(named).expanduser() if named else keys.default_key_file(path)
    if keys.PASSPHRASE_VARIABLE in os.environ or os.path.lexists(wanted):
        return Automatic(), None
    if not named and Automatic().find_without_asking(path) is not None:
        return Automatic(), None
    storage.create_private(wanted, keys.new_key())
    return KeyFile(wanted), wanted


def _vault_of(inventory: Path) -> Path:
    if not inventory.is_file():
        directory = inventory.absolute().parent
        others = sorted(other.name for other in directory.glob("*.py") if not other.name.startswith("_"))
        known = f"{shown(directory)} has {', '.join(others)}" if others else "name your inventory file last"
        _refuse(f"there is no inventory {inventory}", f"{known}; INVENTORY is the last argument")
    return vault_path(inventory)


def _open(name: str | None, inventory: Path) -> Vault:
    if name is not None and name.endswith(".py") and Path(name).is_file():
        _refuse(f"{name} is an inventory, not the name of a secret", "give the name first, then the inventory")
    path = _vault_of(inventory)
    return Vault.open(path, Automatic(_ask if sys.stdin.isatty() else None), allow_damage=True)


def _save(vault: Vault, *messages: str) -> None:
    changed = vault.modified
    vault.save()
    for message in messages:
        click.echo(message if changed else "unchanged: the vault has this value already")


def _counted(vault: Vault) -> str:
    count = len(vault.names())
    return f"{count} secret{'' if count == 1 else 's'}"


def _ask(path: Path) -> str:
    answer: str = click.prompt(f"Passphrase of {shown(path)}", hide_input=True, err=True)
    return answer


def _new_passphrase(path: Path) -> str:
    if not sys.stdin.isatty():
        return _standard_input()
    answer: str = click.prompt(
        f"New passphrase of {shown(path)}", hide_input=True, confirmation_prompt=True, err=True
    )
    return answer


def _standard_input() -> str:
    raw = sys.stdin.buffer.read()
    try:
        text = raw.decode()
    except UnicodeDecodeError:  # holds the value
        text = None
    if text is None:
        _refuse("standard input is not UTF-8 text", "encode binary values first, for instance with base64")
    return text.removesuffix("\n").removesuffix("\r")


def _warn_on_screen() -> None:
    if sys.stdout.isatty():
        click.echo("warning: the secret is on your screen now; clear it, with its scroll-back", err=True)


def _refuse(what: str, mend: str) -> NoReturn:
    raise _Failure(f"{what}\n  mend: {mend}")
