"""`mediahost secrets` as the user meets it: real processes at a real terminal, and click's runner."""

from __future__ import annotations

import os
import pty
import re
import select
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from mediahost import secrets as vaults
from mediahost.cli.secrets import command
from mediahost.secrets import Cost, KeyFile, Passphrase, Vault, keys, storage

CHEAP = Cost(memory_kib=8, passes=1, lanes=1)
PHRASE = "correct horse battery staple"
SECRET = "s3cr3t-value-that-must-not-show"
MAIN = [sys.executable, "-c", "from mediahost.cli import main; main(prog_name='mediahost')", "secrets"]


@pytest.fixture(autouse=True)
def repository(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A repository with inventories/home.py as the working directory, and an empty home."""
    root = tmp_path / "repository"
    (root / "inventories").mkdir(parents=True)
    (root / "inventories" / "home.py").touch()
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in (keys.PASSPHRASE_VARIABLE, keys.KEY_FILE_VARIABLE, "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("PYTHON_KEYRING_BACKEND", raising=False)
    monkeypatch.chdir(root)
    return root


@pytest.fixture
def vault(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A vault with two entries that PHRASE opens, which is in the environment."""
    path = repository / "secrets" / "home.vault"
    made = Vault.create(path, Passphrase(PHRASE), cost=CHEAP)
    made.set("porkbun_api_key", SECRET)
    made.ensure("home1/sonarr/api_key", vaults.api_key)
    made.save()
    monkeypatch.setenv(keys.PASSPHRASE_VARIABLE, PHRASE)
    return path


def run(*arguments: str, stdin: str | bytes | None = None) -> Result:
    result = CliRunner().invoke(command, arguments, input=stdin)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.output
    return result


def values(path: Path, key: keys.KeySource) -> dict[str, str]:
    opened = Vault.open(path, key)
    return {name: opened.get(name) for name in opened.names()}


def damage(path: Path, name: str) -> None:
    content = path.read_text()
    changed = re.sub(rf"(?m)^({re.escape(name)}: ).{{8}}", r"\1AAAAAAAA", content)
    assert changed != content
    path.write_text(changed)


# --- init ------------------------------------------------------------------------------------------


def test_init_makes_a_private_key_file_and_tells_to_back_it_up(repository: Path) -> None:
    result = run("init")
    assert result.exit_code == 0
    key = Path.home() / ".config" / "mediahost" / "home.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert stat.S_IMODE((repository / "secrets" / "home.vault").stat().st_mode) == 0o600
    assert "Back up" in result.output
    assert str(key) in result.output
    assert key.read_text().strip() not in result.output
    assert len(key.read_text().strip()) == 43
    assert values(repository / "secrets" / "home.vault", KeyFile(key)) == {}
    assert (repository / "secrets" / ".gitattributes").read_text() == "*.vault merge=union\n"


def test_init_refuses_when_a_vault_exists_and_touches_nothing(vault: Path) -> None:
    before = vault.read_bytes()
    result = run("init")
    assert result.exit_code == 2
    assert "there is a vault already" in result.stderr
    assert vault.read_bytes() == before
    assert not (Path.home() / ".config").exists()


def test_init_uses_the_key_that_is_set_and_makes_no_other(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(keys.PASSPHRASE_VARIABLE, PHRASE)
    result = run("init")
    assert result.exit_code == 0
    assert PHRASE not in result.output
    assert not (Path.home() / ".config").exists()
    assert values(repository / "secrets" / "home.vault", Passphrase(PHRASE)) == {}


def test_init_makes_the_key_file_that_the_variable_names(
    repository: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(keys.KEY_FILE_VARIABLE, str(tmp_path / "keys" / "mine"))
    assert run("init").exit_code == 0
    assert values(repository / "secrets" / "home.vault", KeyFile(tmp_path / "keys" / "mine")) == {}


def test_init_refuses_a_short_passphrase_and_leaves_nothing(repository: Path) -> None:
    result = run("init", "--passphrase", stdin="short\n")
    assert result.exit_code == 2
    assert "too short" in result.stderr
    assert not (repository / "secrets").exists()
    assert run("init", "--passphrase", stdin=PHRASE + "\n").exit_code == 0
    assert values(repository / "secrets" / "home.vault", Passphrase(PHRASE)) == {}


# --- set, get, list, delete ------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["plain", "two\nlines", "ends with newline\n", "ä€ 'quoted' \"$x\""])
def test_what_goes_in_by_standard_input_comes_out_by_standard_output(vault: Path, value: str) -> None:
    result = run("set", "new/one", stdin=value + "\n")
    assert result.exit_code == 0
    assert result.output == "new/one set\n"
    result = run("get", "new/one")
    assert result.stdout == value + "\n"
    assert result.stderr == ""


def test_the_secret_of_a_code_is_printed_as_an_authenticator_app_reads_it(vault: Path) -> None:
    assert run("set", "nas.lan/totp/me", stdin="JBSWY3DPEHPK3PXPJBSWY3DPEH\n").exit_code == 0
    result = run("totp", "nas.lan/totp/me")
    assert result.stdout == "otpauth://totp/nas.lan:me?secret=JBSWY3DPEHPK3PXPJBSWY3DPEH&issuer=nas.lan\n"
    refused = run("totp", "a")
    assert refused.exit_code == 2
    assert "HOST/totp/ADMINISTRATOR" in refused.stderr


def test_an_empty_value_and_one_that_is_not_text_are_refused(vault: Path) -> None:
    before = vault.read_bytes()
    for stdin, message in ((b"\n", "is empty"), (b"\xff\xfe", "not UTF-8")):
        result = run("set", "new", stdin=stdin)
        assert result.exit_code == 2
        assert message in result.stderr
    assert vault.read_bytes() == before


def test_set_takes_no_value_from_argv(vault: Path) -> None:
    result = run("set", "name", "value", "inventories/home.py")
    assert result.exit_code == 2
    assert all(parameter.name in ("name", "inventory") for parameter in command.commands["set"].params)


def test_list_shows_names_and_never_a_value(vault: Path) -> None:
    result = run("list")
    assert result.output.splitlines() == ["home1/sonarr/api_key", "porkbun_api_key"]
    result = run("list", "--long", "inventories/home.py")
    assert re.search(r"home1/sonarr/api_key  20\d\d-\S+  generated \(api_key\)", result.output)
    assert re.search(r"porkbun_api_key       20\d\d-\S+  given", result.output)
    assert SECRET not in result.output


def test_delete_removes_the_entry_and_keeps_the_vault_before(vault: Path) -> None:
    assert run("delete", "porkbun_api_key").exit_code == 0
    assert list(values(vault, Passphrase(PHRASE))) == ["home1/sonarr/api_key"]
    assert values(storage.previous_path(vault), Passphrase(PHRASE))["porkbun_api_key"] == SECRET
    result = run("delete", "porkbun_api_key")
    assert result.exit_code == 2
    assert "there is no secret 'porkbun_api_key'" in result.stderr


# --- rotate, rekey ---------------------------------------------------------------------------------


def test_rotate_changes_generated_entries_only(vault: Path) -> None:
    before = values(vault, Passphrase(PHRASE))
    result = run("rotate", "--all-generated", "inventories/home.py")
    assert result.exit_code == 0
    after = values(vault, Passphrase(PHRASE))
    assert after["porkbun_api_key"] == SECRET
    assert after["home1/sonarr/api_key"] != before["home1/sonarr/api_key"]
    assert re.fullmatch("[0-9a-f]{32}", after["home1/sonarr/api_key"])
    assert run("rotate", "home1/sonarr/api_key").output == "home1/sonarr/api_key rotated\n"
    assert values(vault, Passphrase(PHRASE))["home1/sonarr/api_key"] != after["home1/sonarr/api_key"]
    result = run("rotate", "porkbun_api_key")
    assert result.exit_code == 2
    assert "mediahost secrets set porkbun_api_key" in result.stderr
    assert run("rotate").exit_code == 2


def test_rekey_replaces_a_key_file_and_keeps_the_former_one(repository: Path) -> None:
    run("init")
    run("set", "a", stdin="1")
    key, path = Path.home() / ".config" / "mediahost" / "home.key", repository / "secrets" / "home.vault"
    old = key.read_bytes()
    result = run("rekey")
    assert result.exit_code == 0, result.output
    assert key.read_bytes() != old
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert run("get", "a").output == "1\n"
    former = key.with_name("home.key.previous")
    assert former.read_bytes() == old
    assert stat.S_IMODE(former.stat().st_mode) == 0o600
    assert values(storage.previous_path(path), KeyFile(former)) == {"a": "1"}
    assert not key.with_name("home.key.new").exists()


def test_a_rekey_that_dies_before_the_key_file_is_in_place_says_which_key_fits(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("init")
    run("set", "a", stdin="1")

    def die(*_: object) -> None:
        raise SystemExit(137)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "supplant", die)
        assert run("rekey").exit_code == 137
    result = run("get", "a")
    assert result.exit_code == 2
    move = re.search(r"mv (\S+home\.key\.new) (\S+home\.key);", result.stderr)
    assert move, result.stderr
    Path(move[1]).replace(move[2])
    assert run("get", "a").output == "1\n"


def test_rekey_to_a_passphrase_moves_the_default_key_file_out_of_the_way(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("init")
    run("set", "a", stdin="1")
    result = run("rekey", "--passphrase", stdin=PHRASE)
    assert result.exit_code == 0
    assert "make the new key known" in result.stderr
    assert PHRASE not in result.output
    assert not (Path.home() / ".config" / "mediahost" / "home.key").exists()
    monkeypatch.setenv(keys.PASSPHRASE_VARIABLE, PHRASE)
    assert run("get", "a").output == "1\n"


def test_rekey_from_a_passphrase_to_a_new_key_file_tells_that_the_variable_is_stale(
    vault: Path, tmp_path: Path
) -> None:
    result = run("rekey", "--key-file", str(tmp_path / "new.key"))
    assert result.exit_code == 0
    assert keys.PASSPHRASE_VARIABLE in result.stderr
    assert values(vault, KeyFile(tmp_path / "new.key"))["porkbun_api_key"] == SECRET
    assert run("rekey", "--key-file", "x", "--passphrase").exit_code == 2


def test_rekey_refuses_a_damaged_vault(vault: Path) -> None:
    damage(vault, "porkbun_api_key")
    before = vault.read_bytes()
    result = run("rekey", stdin="another long passphrase")
    assert result.exit_code == 2
    assert "porkbun_api_key" in result.stderr
    assert vault.read_bytes() == before


# --- check and errors ------------------------------------------------------------------------------


def test_check_names_every_bad_line_and_the_others_stay_readable(vault: Path) -> None:
    result = run("check")
    assert (result.exit_code, result.output) == (0, "secrets/home.vault: 2 secrets, all readable\n")
    damage(vault, "porkbun_api_key")
    vault.write_text(vault.read_text().replace("--- end", "plain_key = oh-dear\n--- end"))
    result = run("check")
    assert result.exit_code == 1
    assert "line 9: the entry porkbun_api_key cannot be decrypted" in result.stderr
    assert "line 10: this line is not an entry" in result.stderr
    assert "2 problems, 1 secret readable" in result.stderr
    assert "oh-dear" not in result.output
    assert run("get", "home1/sonarr/api_key").exit_code == 0
    assert run("get", "porkbun_api_key").exit_code == 2
    assert "2 bad lines" in run("list").stderr


def break_key(path: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setenv(keys.PASSPHRASE_VARIABLE, "a wrong passphrase")


def break_version(path: Path, patch: pytest.MonkeyPatch) -> None:
    path.write_text(path.read_text().replace("vault: 1", "vault: 9"))


def break_header(path: Path, patch: pytest.MonkeyPatch) -> None:
    path.write_text(path.read_text().replace("passes=1", "passes=4"))


def break_all(path: Path, patch: pytest.MonkeyPatch) -> None:
    path.write_bytes(b"")


def remove(path: Path, patch: pytest.MonkeyPatch) -> None:
    path.unlink()


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (break_key, "the key does not open this vault"),
        (break_version, "unknown format version"),
        (break_header, "damaged header"),
        (break_all, "holds nothing"),
        (remove, "mend: mediahost secrets init inventories/home.py"),
    ],
)
@pytest.mark.parametrize(
    "arguments", [["get", "porkbun_api_key"], ["list"], ["check"], ["set", "a"], ["rekey"], ["delete", "a"]]
)
def test_an_unusable_vault_is_one_message_and_exit_code_2(
    vault: Path,
    monkeypatch: pytest.MonkeyPatch,
    harm: Callable[[Path, pytest.MonkeyPatch], None],
    message: str,
    arguments: list[str],
) -> None:
    harm(vault, monkeypatch)
    before = vault.read_bytes() if vault.exists() else None
    result = run(*arguments, stdin="another long passphrase")
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stdout == ""
    assert SECRET not in result.output
    assert (vault.read_bytes() if vault.exists() else None) == before


def test_a_mistyped_inventory_brings_those_that_exist(vault: Path) -> None:
    result = run("list", "inventories/hoem.py")
    assert result.exit_code == 2
    assert "inventories has home.py" in result.stderr
    result = run("get", "inventories/home.py", "porkbun_api_key")
    assert result.exit_code == 2
    assert "give the name first" in result.stderr


def test_every_command_teaches_with_an_example() -> None:
    assert set(command.commands) == {"init", "set", "get", "totp", "list", "rotate", "rekey", "check", "delete"}
    for name in command.commands:
        text = run(name, "--help").output
        assert f"Example:\n    mediahost secrets {name}" in text
    assert "MEDIAHOST_VAULT_PASSPHRASE" in run("--help").output


# --- a real terminal -------------------------------------------------------------------------------


class Terminal:
    """A process at a pseudo-terminal: all that a user would see is in `screen`."""

    def __init__(self, *arguments: str, stdout: int | None = None) -> None:
        self.master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [*MAIN, *arguments], stdin=slave, stdout=stdout or slave, stderr=slave, start_new_session=True
        )
        os.close(slave)
        self.screen = ""

    def read_until(self, text: str, limit: float = 60.0) -> None:
        deadline = time.monotonic() + limit
        while text not in self.screen:
            assert time.monotonic() < deadline, f"{text!r} not on the screen: {self.screen!r}"
            if select.select([self.master], [], [], 0.2)[0]:
                try:
                    self.screen += os.read(self.master, 4096).decode()
                except OSError:  # the other end is closed
                    break
        assert text in self.screen

    def answer(self, prompt: str, text: str) -> None:
        self.read_until(prompt)
        os.write(self.master, text.encode() + b"\n")

    def end(self) -> int:
        code = self.process.wait(60)
        while select.select([self.master], [], [], 0)[0]:
            try:
                self.screen += os.read(self.master, 4096).decode()
            except OSError:
                break
        os.close(self.master)
        return code


def test_set_at_a_terminal_asks_twice_and_does_not_echo(vault: Path) -> None:
    terminal = Terminal("set", "new")
    terminal.answer("Value of new: ", "typed-secret")
    terminal.answer("Repeat", "typed-secret")
    terminal.read_until("new set")
    assert terminal.end() == 0
    assert "typed-secret" not in terminal.screen
    assert values(vault, Passphrase(PHRASE))["new"] == "typed-secret"


def test_get_at_a_terminal_warns_and_asks_for_the_passphrase_when_no_source_is_set(
    vault: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(keys.PASSPHRASE_VARIABLE)
    terminal = Terminal("get", "porkbun_api_key")
    terminal.answer("Passphrase of secrets/home.vault: ", PHRASE)
    terminal.read_until(SECRET)  # the control: what is printed is seen
    assert terminal.end() == 0
    assert "warning: the secret is on your screen" in terminal.screen
    assert PHRASE not in terminal.screen


def test_without_a_terminal_and_without_a_key_nothing_waits(vault: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(keys.PASSPHRASE_VARIABLE)
    done = subprocess.run(
        [*MAIN, "get", "porkbun_api_key"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "no key for this vault was found" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_group_is_the_verb_secrets_of_mediahost() -> None:
    assert isinstance(command, click.Group)
    assert command.name == "secrets"
