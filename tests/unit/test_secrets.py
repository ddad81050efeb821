"""The vault by its promises: round trips, no silent damage, no loss, no leak, no readable moment."""

from __future__ import annotations

import fcntl
import functools
import multiprocessing
import os
import random
import signal
import stat
import string
import subprocess
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import keyring
import keyring.backend
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mediahost import secrets as vaults
from mediahost.secrets import (
    Automatic,
    Cost,
    KeyFile,
    KeyMaterial,
    Passphrase,
    Vault,
    VaultError,
    crypto,
    document,
    keys,
    storage,
)

CHEAP = Cost(memory_kib=8, passes=1, lanes=1)
KEY = Passphrase("correct horse battery staple")
VALUES = {
    "home1/radarr/api_key": "5ecf1a",
    "home1/sonarr/api_key": "cafe0123456789abcdef",
    "porkbun_api_key": "pk1_A-very-secret-value",
    "wireguard": "[Interface]\nPrivateKey = ä€\U0001f511\x00\r\n",
}


@pytest.fixture(autouse=True)
def _isolated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    for name in (
        keys.PASSPHRASE_VARIABLE,
        keys.KEY_FILE_VARIABLE,
        "DISPLAY",
        "WAYLAND_DISPLAY",
        "PYTHON_KEYRING_BACKEND",
    ):
        monkeypatch.delenv(name, raising=False)


def make(path: Path, values: dict[str, str] = VALUES, key: keys.KeySource = KEY) -> Vault:
    vault = Vault.create(path, key, cost=CHEAP)
    for name, value in values.items():
        vault.set(name, value)
    vault.save()
    return vault


def contents(path: Path, key: keys.KeySource = KEY) -> dict[str, str]:
    vault = Vault.open(path, key)
    return {name: vault.get(name) for name in vault.names()}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "repository" / "secrets" / "home.vault"


# --- round trips -----------------------------------------------------------------------------------

entry_names = st.from_regex(r"[a-z0-9][a-z0-9_./-]{0,60}", fullmatch=True)
entry_values = st.text(st.characters(codec="utf-8"), max_size=600)


@given(st.dictionaries(entry_names, entry_values, max_size=8))
@settings(max_examples=80, deadline=None)
def test_every_name_and_every_text_comes_back_as_it_was(values: dict[str, str]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "home.vault"
        make(path, values)
        assert contents(path) == values
        assert Vault.open(path, KEY).names() == sorted(values)
        text = path.read_text("ascii")
        assert len(text.splitlines()) == 8 + len(values)


@given(st.text())
@example("name\n")
@example("Name")
@example("")
@example("-x")
@example("a" * 201)
def test_a_name_outside_the_rule_is_refused(name: str) -> None:
    allowed = set(string.ascii_lowercase + string.digits + "_./-")
    valid = 0 < len(name) <= 200 and set(name) <= allowed and name[0] not in "_./-"
    assert document.valid_name(name) is valid


def test_a_refused_name_and_a_value_that_is_no_text_leave_the_vault_unmodified(path: Path) -> None:
    vault = make(path)
    for name, value in (("Bad Name", "x"), ("porkbun_api_key", "lone \ud800 surrogate")):
        with pytest.raises(VaultError) as caught:
            vault.set(name, value)
        assert "surrogate" not in str(caught.value)
    assert not vault.modified
    assert vault.get("porkbun_api_key") == VALUES["porkbun_api_key"]


def test_entries_stand_one_a_line_sorted_by_name_and_no_value_in_the_clear(path: Path) -> None:
    make(path)
    lines = path.read_text().splitlines()
    entries = lines[lines.index("--- entries") + 1 : lines.index("--- end")]
    assert [line.partition(": ")[0] for line in entries] == sorted(VALUES)
    for value in VALUES.values():
        assert value not in path.read_text()


def test_short_values_of_different_length_make_lines_of_equal_length(path: Path) -> None:
    make(path, {"a": "1", "b": "x" * 32, "c": vaults.token()})
    sizes = {len(line) for line in path.read_text().splitlines() if line[1:3] == ": "}
    assert len(sizes) == 1
    make(path.with_name("control.vault"), {"a": "1", "b": "x" * 500})
    control = path.with_name("control.vault").read_text().splitlines()
    assert len({len(line) for line in control if line[1:3] == ": "}) == 2


def test_an_unchanged_entry_keeps_its_ciphertext_byte_for_byte(path: Path) -> None:
    make(path)
    before = set(path.read_text().splitlines())
    vault = Vault.open(path, KEY)
    vault.set("porkbun_api_key", "another value")
    vault.set("new", "entry")
    vault.save()
    after = set(path.read_text().splitlines())
    assert {line.partition(":")[0] for line in before - after} == {"porkbun_api_key"}
    assert {line.partition(":")[0] for line in after - before} == {"porkbun_api_key", "new"}


def test_saving_writes_nothing_when_nothing_changed(path: Path) -> None:
    make(path)
    before = path.stat()
    vault = Vault.open(path, KEY)
    vault.set("porkbun_api_key", VALUES["porkbun_api_key"])
    assert vault.ensure("porkbun_api_key", lambda: pytest.fail("generated")) == VALUES["porkbun_api_key"]
    assert not vault.modified
    vault.save()
    after = path.stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    vault.set("porkbun_api_key", "changed")  # the control: a change is written
    assert vault.modified
    vault.save()
    assert path.stat().st_ino != before.st_ino


def test_a_vault_of_a_thousand_entries_opens_quickly(path: Path) -> None:
    make(path, {f"host{n}/service/api_key": vaults.api_key() for n in range(1000)})
    started = time.monotonic()
    Vault.open(path, KEY)
    assert time.monotonic() - started < 2.0


# --- damage ----------------------------------------------------------------------------------------

HARMLESS_OR_ERROR = "a damaged file gives VaultError or exactly the right values"


@functools.cache
def sample() -> bytes:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "home.vault"
        make(path)
        return path.read_bytes()


def outcome(content: bytes) -> dict[str, str] | VaultError:
    """Return what a user gets for a file of this content; any exception but VaultError goes through."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "home.vault"
        path.write_bytes(content)
        try:
            strict: dict[str, str] | VaultError = contents(path)
        except VaultError as error:
            strict = error
        try:
            lenient = Vault.open(path, KEY, allow_damage=True)
        except VaultError:
            assert isinstance(strict, VaultError)
            return strict
        assert bool(lenient.problems) is isinstance(strict, VaultError)
        for name in lenient.names():
            assert lenient.get(name) == VALUES[name], "a wrong plaintext"
        for name in set(VALUES) - set(lenient.names()):
            with pytest.raises(VaultError):
                lenient.get(name)
            with pytest.raises(VaultError):
                lenient.ensure(name, vaults.api_key)
        return strict


def assert_never_wrong(content: bytes) -> dict[str, str] | VaultError:
    result = outcome(content)
    if isinstance(result, VaultError):
        assert result.what
        assert result.where
        assert result.why
        assert result.mend
        assert not any(value in str(result) for value in VALUES.values())
    else:
        assert result == VALUES, HARMLESS_OR_ERROR
    return result


def test_the_control_of_the_fuzzers_an_intact_vault_gives_its_values() -> None:
    assert outcome(sample()) == VALUES


@given(st.data())
@settings(max_examples=400, deadline=None)
def test_an_edited_byte_is_reported_and_no_wrong_value_comes_out(data: st.DataObject) -> None:
    content = bytearray(sample())
    position = data.draw(st.integers(0, len(content) - 1))
    content[position] = data.draw(st.integers(0, 255).filter(lambda byte: byte != content[position]))
    assert_never_wrong(bytes(content))


def test_every_single_byte_of_the_entries_matters() -> None:
    content = sample()
    start = content.index(b"--- entries")
    for position in range(start, len(content) - 1):
        for flip in (0x01, 0x40):
            changed = bytearray(content)
            changed[position] ^= flip
            assert isinstance(outcome(bytes(changed)), VaultError), (position, flip)


def test_a_file_truncated_anywhere_is_reported() -> None:
    content = sample()
    for length in range(len(content) - 1):
        assert isinstance(outcome(content[:length]), VaultError), length
    assert outcome(content[:-1]) == VALUES  # only the last newline is missing: harmless by definition


@given(st.randoms(use_true_random=False))
@settings(max_examples=100, deadline=None)
def test_shuffled_lines_never_give_a_wrong_value(chance: random.Random) -> None:
    lines = sample().splitlines(keepends=True)
    chance.shuffle(lines)
    assert_never_wrong(b"".join(lines))


def test_the_order_of_entries_does_not_matter() -> None:
    lines = sample().splitlines(keepends=True)
    first = lines.index(b"--- entries\n") + 1
    assert outcome(b"".join([*lines[:first], *reversed(lines[first:-1]), lines[-1]])) == VALUES


def test_white_space_that_editors_and_git_on_windows_add_is_harmless() -> None:
    assert outcome(sample().replace(b"\n", b"\r\n")) == VALUES
    assert outcome(sample().replace(b"\n", b" \t\n\n")) == VALUES
    for separator in (b"\x0b", b"\x0c", b"\x1c", b"\r"):  # the control: only \n ends a line
        assert isinstance(outcome(sample().replace(b"\n--- end", separator + b"--- end")), VaultError)
        assert isinstance(outcome(sample().replace(b"\n", separator)), VaultError)


def test_a_merged_file_in_another_order_is_not_rewritten_until_something_changes(path: Path) -> None:
    make(path)
    lines = path.read_bytes().splitlines(keepends=True)
    first = lines.index(b"--- entries\n") + 1
    merged = b"".join([*lines[:first], *reversed(lines[first:-1]), lines[-1]])
    path.write_bytes(merged)
    vault = Vault.open(path, KEY)
    vault.save()
    assert path.read_bytes() == merged
    vault.set("a", "1")
    vault.save()
    saved = path.read_bytes().splitlines(keepends=True)
    assert [line for line in saved if not line.startswith(b"a: ")] == lines


@given(st.binary(max_size=300), st.data())
@settings(max_examples=150, deadline=None)
def test_bytes_put_in_anywhere_never_give_a_wrong_value(noise: bytes, data: st.DataObject) -> None:
    position = data.draw(st.integers(0, len(sample())))
    assert_never_wrong(sample()[:position] + noise + sample()[position:])


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_conflict_markers_anywhere_between_lines_are_named_with_their_lines(data: st.DataObject) -> None:
    lines = sample().splitlines(keepends=True)
    start, middle, end = sorted(data.draw(st.tuples(*[st.integers(0, len(lines))] * 3)))
    marked = [*lines[:start], b"<<<<<<< HEAD\n", *lines[start:middle], b"=======\n", *lines[middle:end]]
    result = assert_never_wrong(b"".join([*marked, b">>>>>>> laptop\n", *lines[end:]]))
    assert isinstance(result, VaultError)
    assert "conflict" in result.what
    assert f"lines {start + 1}, {middle + 2}, {end + 3}" in result.where


def entry_line(content: bytes, name: str) -> bytes:
    return next(line for line in content.splitlines() if line.startswith(name.encode() + b": "))


def test_swapped_ciphertexts_are_reported_by_name_and_line(path: Path) -> None:
    make(path)
    content = path.read_bytes()
    one, two = (entry_line(content, f"home1/{app}/api_key").split(b": ")[1] for app in ("radarr", "sonarr"))
    path.write_bytes(content.replace(one, b"?").replace(two, one).replace(b"?", two))
    vault = Vault.open(path, KEY, allow_damage=True)
    assert [problem.where.rpartition(" ")[2] for problem in vault.problems] == ["8", "9"]
    assert vault.names() == ["porkbun_api_key", "wireguard"]


def test_a_line_of_another_vault_with_the_same_passphrase_is_refused(path: Path) -> None:
    make(path)
    other = path.with_name("other.vault")
    make(other)
    content = path.read_bytes()
    alien = entry_line(other.read_bytes(), "porkbun_api_key")
    path.write_bytes(content.replace(entry_line(content, "porkbun_api_key"), alien))
    with pytest.raises(VaultError, match="porkbun_api_key cannot be decrypted"):
        Vault.open(path, KEY)


def test_the_vault_id_is_bound_even_under_the_same_derived_key() -> None:
    sealed = crypto.Cipher(b"k" * 32, "a" * 32).seal("name", b"text")
    assert crypto.Cipher(b"k" * 32, "a" * 32).unseal("name", sealed) == b"text"
    assert crypto.Cipher(b"k" * 32, "b" * 32).unseal("name", sealed) is None
    assert crypto.Cipher(b"k" * 32, "a" * 32).unseal("other", sealed) is None


def test_base64_has_one_spelling() -> None:
    assert crypto.decode_base64("QQ==") == b"A"
    for other in ("QR==", "QQ=", "QQ", "QQ==\n", " QQ==", "Q Q=="):
        assert crypto.decode_base64(other) is None


def test_the_same_name_twice_is_an_error_that_names_both_lines_and_set_mends_it(path: Path) -> None:
    make(path)
    line = entry_line(path.read_bytes(), "porkbun_api_key") + b"\n"
    path.write_bytes(path.read_bytes().replace(line, line + line))
    with pytest.raises(VaultError, match=r"lines 10, 11: the entry porkbun_api_key is there 2 times"):
        Vault.open(path, KEY)
    vault = Vault.open(path, KEY, allow_damage=True)
    assert vault.get("wireguard") == VALUES["wireguard"]
    vault.set("porkbun_api_key", "the right one")
    vault.save()
    assert contents(path) == {**VALUES, "porkbun_api_key": "the right one"}


def test_bad_lines_are_all_named_stay_in_the_file_and_are_mended_one_by_one(path: Path) -> None:
    make(path)
    bad = {}
    for name in ("porkbun_api_key", "wireguard"):
        content = path.read_bytes()
        line = entry_line(content, name)
        bad[name] = line[:-6] + (b"AAAAAA" if line[-6:] != b"AAAAAA" else b"BBBBBB")
        path.write_bytes(content.replace(line, bad[name]))
    with pytest.raises(VaultError, match=r"line 10: the entry porkbun_api_key cannot(.|\n)*1 more"):
        Vault.open(path, KEY)
    vault = Vault.open(path, KEY, allow_damage=True)
    assert len(vault.problems) == 2
    vault.set("porkbun_api_key", "mended")
    vault.save()
    assert bad["wireguard"] in path.read_bytes()
    vault = Vault.open(path, KEY, allow_damage=True)
    assert [problem.what for problem in vault.problems] == ["the entry wireguard cannot be decrypted"]
    vault.delete("wireguard")
    vault.save()
    expected = {name: value for name, value in VALUES.items() if name != "wireguard"}
    assert contents(path) == {**expected, "porkbun_api_key": "mended"}


def test_a_vault_with_damage_of_no_name_is_never_rewritten(path: Path) -> None:
    make(path)
    for damage in (b"", b"--- end\nnonsense\n", b"pk1_in_the_clear\n--- end\n", b"<<<<<<< HEAD\n--- end\n"):
        content = sample().replace(b"--- end\n", damage)
        path.write_bytes(content)
        vault = Vault.open(path, KEY, allow_damage=True)
        vault.set("new", "value")
        with pytest.raises(VaultError) as caught:
            vault.save()
        assert "pk1_in_the_clear" not in str(caught.value)
        assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"mediahost-vault: 1", b"mediahost-vault: 2", "unknown format version"),
        (b"mediahost-vault: 1", b"mediahost-vault: ", "not a vault"),
        (b"mediahost-vault", b"\xef\xbb\xbfmediahost-vault", "not a vault"),
        (b"passes=1", b"passes=2", "damaged header"),
        (b"passes=1", b"passes=01", "damaged header"),
        (b"memory-kib=8", b"memory-kib=999999999", "damaged header"),
        (b"argon2id", b"md5", "damaged header"),
        (b"\nsum: ", b"\ncheck: x\nsum: ", "second 'check'"),
        (b"\nsum: ", b"\nsize: 3\nsum: ", "no field of a vault's header"),
        (b"--- entries", b"", "damaged header"),
    ],
)
def test_a_bad_header_is_told_apart_from_a_wrong_key(old: bytes, new: bytes, message: str) -> None:
    assert old in sample()
    result = outcome(sample().replace(old, new))
    assert isinstance(result, VaultError)
    assert message in str(result)
    assert "git checkout" in result.mend or "mediahost that wrote it" in result.mend


def test_a_missing_vault_says_how_to_create_it(path: Path) -> None:
    with pytest.raises(VaultError) as caught:
        Vault.open(path, KEY)
    assert caught.value.mend.startswith("mediahost secrets init ")
    assert caught.value.mend.endswith("inventories/home.py")


def test_a_directory_in_the_place_of_the_vault_is_one_clear_error(path: Path) -> None:
    path.mkdir(parents=True)
    with pytest.raises(VaultError, match="cannot be read"):
        Vault.open(path, KEY)


def test_an_unknown_name_brings_the_likely_one(path: Path) -> None:
    with pytest.raises(VaultError, match="did you mean porkbun_api_key"):
        make(path).get("porkbun_apikey")


def test_creating_over_a_vault_is_refused(path: Path) -> None:
    make(path)
    with pytest.raises(VaultError, match="there is a vault already"):
        Vault.create(path, KEY, cost=CHEAP)
    assert contents(path) == VALUES


# --- the key ---------------------------------------------------------------------------------------


def test_a_wrong_key_is_named_by_its_source_and_changes_nothing(path: Path) -> None:
    make(path)
    with pytest.raises(VaultError) as caught:
        Vault.open(path, Passphrase("not the right passphrase"), allow_damage=True)
    assert caught.value.what == "the key does not open this vault"
    assert "typed" in caught.value.why
    assert "not the right passphrase" not in str(caught.value)
    assert contents(path) == VALUES


def test_the_default_cost_is_the_one_of_rfc_9106_and_is_written_to_the_file(path: Path) -> None:
    vault = Vault.create(path, KEY)
    vault.save()
    assert "argon2id memory-kib=65536 passes=3 lanes=4 " in path.read_text()


def test_the_key_derivation_is_argon2id_as_an_independent_value_says() -> None:
    # RFC 9106 has no vector without secret and data; this one is from the reference implementation's
    # test suite (argon2id, version 0x13, t=2, m=256 KiB, p=1, "password", "somesalt").
    derived = crypto.derive(b"password", b"somesalt", Cost(memory_kib=256, passes=2, lanes=1))
    assert derived.hex() == "9dfeb910e80bad0311fee20f9c0e2b12c17987b4cac90c2ef54d5b3021c68bfe"


def key_file(path: Path, content: bytes = b"key-file-content-1234\n", mode: int = 0o600) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    path.chmod(mode)
    return path


def found(vault: Path) -> bytes:
    return Automatic(lambda _: "typed").find(vault).material


def test_the_first_source_that_is_set_wins(path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert found(path) == b"typed"
    with fake_keyring(monkeypatch, "from-keyring"):
        assert found(path) == b"from-keyring"
        key_file(keys.default_key_file(path), b"default\n")
        assert found(path) == b"default"
        monkeypatch.setenv(keys.KEY_FILE_VARIABLE, str(key_file(tmp_path / "named.key", b"named")))
        assert found(path) == b"named"
        monkeypatch.setenv(keys.PASSPHRASE_VARIABLE, "from-environment")
        assert found(path) == b"from-environment"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o610, 0o601])
def test_a_key_file_that_others_may_use_is_refused_with_chmod(path: Path, tmp_path: Path, mode: int) -> None:
    file = key_file(tmp_path / "open.key", mode=mode)
    with pytest.raises(VaultError) as caught:
        KeyFile(file).find(path)
    assert caught.value.mend.startswith("chmod 600 ")
    file.chmod(0o600)
    assert KeyFile(file).find(path).material == b"key-file-content-1234"


def test_key_files_that_cannot_be_keys_are_one_clear_error_each(path: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    key_file(tmp_path / "empty", b"\n")
    key_file(tmp_path / "huge", b"x" * 100_000)
    (tmp_path / "loop").symlink_to("loop")
    whys = set()
    for name in ("missing", "pipe", "empty", "huge", "loop", "."):
        with pytest.raises(VaultError, match="the key file cannot be used") as caught:
            KeyFile(tmp_path / name).find(path)
        whys.add(caught.value.why)
    assert len(whys) == 6


def test_a_source_that_is_set_but_bad_is_not_skipped(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(keys.KEY_FILE_VARIABLE, "/nonexistent/key")
    with pytest.raises(VaultError, match="the key file cannot be used"):
        found(path)
    monkeypatch.setenv(keys.PASSPHRASE_VARIABLE, "")
    with pytest.raises(VaultError, match="the key is empty"):
        found(path)


def test_no_source_at_all_lists_the_places(path: Path) -> None:
    with pytest.raises(VaultError) as caught:
        Automatic().find(path)
    for place in (keys.PASSPHRASE_VARIABLE, keys.KEY_FILE_VARIABLE, "home.key", "keyring", "terminal"):
        assert place in caught.value.why


class fake_keyring:  # noqa: N801 - used like a function
    """A keyring of one passphrase, chosen for the time of a `with`."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        answer: str | Callable[[], str | None],
        priority: float = 5,
        session: bool = True,
    ) -> None:
        self.asked: list[tuple[str, str]] = []
        if session:
            monkeypatch.setenv("DISPLAY", ":0")
        asked = self.asked

        class Backend(keyring.backend.KeyringBackend):
            def get_password(self, service: str, username: str) -> str | None:
                asked.append((service, username))
                return answer if isinstance(answer, str) else answer()

            def set_password(self, service: str, username: str, password: str) -> None:
                raise NotImplementedError

        Backend.priority = priority  # type: ignore[assignment,method-assign]
        self.backend: keyring.backend.KeyringBackend = Backend()  # type: ignore[no-untyped-call]

    def __enter__(self) -> fake_keyring:
        self.before = keyring.get_keyring()
        keyring.set_keyring(self.backend)
        return self

    def __exit__(self, *_: object) -> None:
        keyring.set_keyring(self.before)


def test_the_keyring_is_asked_for_service_mediahost_and_the_vaults_name(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with fake_keyring(monkeypatch, "kept") as ring:
        assert found(path) == b"kept"
    assert ring.asked == [("mediahost", "home")]


def test_a_keyring_below_its_own_recommendation_or_without_a_session_is_not_asked(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with fake_keyring(monkeypatch, "kept", session=False) as ring:
        assert found(path) == b"typed"
    assert ring.asked == []
    with fake_keyring(monkeypatch, "kept", priority=0.5) as ring:
        assert found(path) == b"typed"
    assert ring.asked == []


def test_a_keyring_that_hangs_or_fails_is_passed_over(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()
    monkeypatch.setattr(keys, "_KEYRING_LIMIT_SECONDS", 0.2)
    with fake_keyring(monkeypatch, lambda: str(released.wait(30))) as ring:
        assert found(path) == b"typed"
        released.set()
    assert ring.asked == [("mediahost", "home")]

    def fail() -> str:
        raise RuntimeError("no bus")

    with fake_keyring(monkeypatch, fail) as ring:
        assert found(path) == b"typed"
    assert len(ring.asked) == 1


def test_a_rekeyed_vault_opens_with_the_new_key_only_and_its_previous_with_the_old(path: Path) -> None:
    make(path)
    before = set(path.read_text().splitlines())
    vault = Vault.open(path, KEY)
    new = Passphrase("an entirely other phrase")
    vault.rekey(new, cost=CHEAP)
    vault.save()
    assert contents(path, new) == VALUES
    with pytest.raises(VaultError, match="does not open"):
        Vault.open(path, KEY)
    assert contents(storage.previous_path(path)) == VALUES
    kept = {line for line in before & set(path.read_text().splitlines()) if ": " in line}
    assert {line.partition(":")[0] for line in kept} <= {"mediahost-vault", "id", document.COMMENT.partition(":")[0]}


def test_a_damaged_vault_is_not_rekeyed(path: Path) -> None:
    make(path)
    content = path.read_bytes()
    line = entry_line(content, "wireguard")
    path.write_bytes(content.replace(line, line[:-4]))
    vault = Vault.open(path, KEY, allow_damage=True)
    with pytest.raises(VaultError, match="wireguard cannot be decrypted"):
        vault.rekey(Passphrase("another passphrase"), cost=CHEAP)


# --- generated values ------------------------------------------------------------------------------


def test_generators_make_what_they_promise() -> None:
    for _ in range(200):
        assert len(vaults.api_key()) == 32
        assert set(vaults.api_key()) <= set("0123456789abcdef")
        assert len(vaults.password()) == 32
        assert not set(vaults.password(64)) & set("0OolI1|`'\" ")
        assert vaults.token()[0].isalnum()
        assert set(vaults.token()) <= set(string.ascii_letters + string.digits + "-_")
    assert len({vaults.password(16) for _ in range(200)}) == 200
    with pytest.raises(ValueError, match="at least 16"):
        vaults.password(8)


def test_ensure_generates_once_and_remembers_the_kind(path: Path) -> None:
    vault = make(path, {})
    key = vault.ensure("a", vaults.api_key)
    long = vault.ensure("b", functools.partial(vaults.password, length=48))
    assert vault.ensure("c", lambda: "special") == "special"
    vault.set("d", "given")
    vault.save()
    vault = Vault.open(path, KEY)
    assert vault.ensure("a", vaults.token) == key
    assert [vault.kind(name) for name in "abcd"] == ["api_key", "password", "custom", ""]
    assert not vault.modified
    vault.rotate("a")
    vault.rotate("b")
    assert vault.get("a") != key
    assert len(vault.get("a")) == 32
    assert vault.get("b") != long
    assert len(vault.get("b")) == 48
    for name, mend in (("c", "secrets delete c"), ("d", "secrets set d")):
        with pytest.raises(VaultError, match=mend):
            vault.rotate(name)


# --- files -----------------------------------------------------------------------------------------


def test_one_previous_version_is_kept(path: Path) -> None:
    vault = make(path, {"a": "1"})
    for value in ("2", "3"):
        vault.set("a", value)
        vault.save()
    assert contents(path) == {"a": "3"}
    assert contents(storage.previous_path(path)) == {"a": "2"}


def test_a_file_that_changed_since_it_was_read_is_not_overwritten(path: Path) -> None:
    make(path)
    mine, theirs = Vault.open(path, KEY), Vault.open(path, KEY)
    theirs.set("theirs", "1")
    theirs.save()
    mine.set("mine", "1")
    with pytest.raises(VaultError, match="not the one that was read"):
        mine.save()
    assert contents(path) == {**VALUES, "theirs": "1"}
    path.unlink()
    with pytest.raises(VaultError, match="deleted"):
        mine.save()
    assert not path.exists()


def test_two_new_vaults_of_one_name_do_not_overwrite_each_other(path: Path) -> None:
    one, two = (Vault.create(path, KEY, cost=CHEAP) for _ in range(2))
    one.save()
    with pytest.raises(VaultError, match="not the one that was read"):
        two.save()


def _add_until_saved(path: Path, name: str, go: object) -> None:
    go.wait()  # type: ignore[attr-defined]
    while True:
        vault = Vault.open(path, KEY)
        vault.set(name, name)
        try:
            vault.save()
        except VaultError as error:
            if "not the one that was read" not in str(error):
                raise
        else:
            return


def test_concurrent_writers_lose_nothing(path: Path) -> None:
    make(path, {})
    context = multiprocessing.get_context("fork")
    go = context.Event()
    names = [f"writer{number}" for number in range(8)]
    writers = [context.Process(target=_add_until_saved, args=(path, name, go)) for name in names]
    for writer in writers:
        writer.start()
    go.set()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0] * 8
    assert contents(path) == {name: name for name in names}


def test_a_writer_that_holds_the_lock_too_long_is_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vault = make(path)
    vault.set("a", "1")
    monkeypatch.setattr(storage, "LOCK_LIMIT_SECONDS", 0.1)
    with (path.parent / ".home.vault.lock").open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(VaultError, match="another process is writing"):
            vault.save()
    vault.save()
    assert contents(path)["a"] == "1"


STEPS = ("open", "fsync", "replace", "unlink", "write")


def _patched(step: Callable[[], None]) -> None:
    """Call `step` before and after each system call that a save makes, in this process."""
    for name in STEPS:
        original = getattr(os, name)

        def wrapper(*arguments: object, _original: Callable[..., object] = original, **options: object) -> object:
            step()
            result = _original(*arguments, **options)
            step()
            return result

        setattr(os, name, wrapper)


def _in_child(run: Callable[[], None]) -> int:
    """Run in a forked process; return its wait status."""
    pid = os.fork()
    if pid == 0:
        try:
            run()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(70)
    return os.waitpid(pid, 0)[1]


def test_a_save_killed_at_any_step_leaves_a_whole_vault_and_the_next_save_works(tmp_path: Path) -> None:
    moments = 0
    seen: set[str] = set()
    while True:
        path = tmp_path / str(moments) / "home.vault"
        vault = make(path, {"a": "oldest"})
        vault.set("a", "old")
        vault.save()

        def save_and_die(vault: Vault = vault, moment: int = moments) -> None:
            calls = iter(range(10_000))

            def step() -> None:
                if next(calls) == moment:
                    os.kill(os.getpid(), signal.SIGKILL)

            _patched(step)
            vault.set("a", "new")
            vault.save()

        status = _in_child(save_and_die)
        seen.add(contents(path)["a"])
        assert contents(path)["a"] in ("old", "new")
        assert contents(storage.previous_path(path))["a"] in ("oldest", "old")
        if status == 0:
            break
        assert os.WTERMSIG(status) == signal.SIGKILL
        again = Vault.open(path, KEY)
        again.set("a", "newest")
        again.save()
        assert contents(path) == {"a": "newest"}
        assert not list(path.parent.glob(".*.tmp"))
        moments += 1
    assert moments >= 20
    assert seen == {"old", "new"}


def test_a_disk_that_refuses_any_step_is_a_vault_error_and_nothing_is_lost(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = 0
    for name in ("open", "fsync", "replace"):
        original = getattr(os, name)
        for nth in range(10):
            path.parent.mkdir(parents=True, exist_ok=True)
            for file in path.parent.iterdir():
                file.unlink()
            vault = make(path, {"a": "old"})
            vault.set("a", "new")
            calls = iter(range(1000))

            def refuse(
                *arguments: object,
                _calls: Iterator[int] = calls,
                _nth: int = nth,
                _original: Callable[..., object] = original,
                **options: object,
            ) -> object:
                if next(_calls) == _nth:
                    raise OSError(28, "No space left on device")
                return _original(*arguments, **options)

            with monkeypatch.context() as patch:
                patch.setattr(os, name, refuse)
                why = None
                try:
                    vault.save()
                except VaultError as error:
                    why = error.why
            if why is None:
                break
            failures += 1
            assert "No space left" in why
            assert contents(path)["a"] in ("old", "new")
            assert not list(path.parent.glob(".*.tmp"))
            vault.save()  # the same object, once there is room
            assert contents(path) == {"a": "new"}
    assert failures >= 7


def _modes_below(directory: Path) -> dict[str, int]:
    return {
        str(file.relative_to(directory)): stat.S_IMODE(file.lstat().st_mode)
        for file in directory.rglob("*")
        if file.name not in (".gitattributes", ".gitignore")
    }


def _watched(directory: Path, run: Callable[[], None]) -> int:
    """Run under umask 000 in a child that checks all modes around each system call; 0, or 9: readable."""

    def watch() -> None:
        os.umask(0)

        def step() -> None:
            if any(mode & 0o077 for mode in _modes_below(directory).values()):
                os._exit(9)

        _patched(step)
        run()
        step()

    return os.waitstatus_to_exitcode(_in_child(watch))


def test_no_file_is_readable_for_others_at_any_moment_even_with_umask_000(tmp_path: Path) -> None:
    directory = tmp_path / "watched"
    directory.mkdir(mode=0o700)
    path = directory / "secrets" / "home.vault"

    def work() -> None:
        storage.create_private(directory / "key" / "home.key", keys.new_key())
        vaults.prepare_directory(path)
        key = KeyFile(directory / "key" / "home.key")
        vault = make(path, key=key)
        vault.set("a", "1")
        vault.save()
        storage.create_private(directory / "key" / "home.key.new", keys.new_key())
        vault.rekey(KeyFile(directory / "key" / "home.key.new"), cost=CHEAP)
        vault.save()
        storage.supplant(directory / "key" / "home.key.new", directory / "key" / "home.key")

    assert _watched(directory, work) == 0
    assert set(_modes_below(directory)) >= {
        "secrets/home.vault",
        "secrets/home.vault.previous",
        "key/home.key",
        "key/home.key.previous",
    }
    assert contents(path, KeyFile(directory / "key" / "home.key")) == {**VALUES, "a": "1"}

    def careless() -> None:  # the control: created with the umask's mode, narrowed afterwards
        descriptor = os.open(directory / "careless", os.O_CREAT | os.O_WRONLY, 0o666)
        os.fchmod(descriptor, 0o600)

    assert _watched(directory, careless) == 9


def test_a_key_file_that_exists_is_never_overwritten(tmp_path: Path) -> None:
    file = key_file(tmp_path / "home.key", b"the only key of a vault\n")
    with pytest.raises(VaultError, match="exists already"):
        storage.create_private(file, keys.new_key())
    assert file.read_bytes() == b"the only key of a vault\n"


def test_a_vault_behind_a_symlink_stays_behind_it(path: Path, tmp_path: Path) -> None:
    make(tmp_path / "elsewhere" / "home.vault")
    path.parent.mkdir(parents=True)
    path.symlink_to(tmp_path / "elsewhere" / "home.vault")
    vault = Vault.open(path, KEY)
    vault.set("a", "1")
    vault.save()
    assert path.is_symlink()
    assert contents(tmp_path / "elsewhere" / "home.vault")["a"] == "1"


# --- the repository --------------------------------------------------------------------------------


def test_the_vault_lies_beside_the_inventories_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert vaults.vault_path(tmp_path / "inventories" / "lab.py") == tmp_path / "secrets" / "lab.vault"
    assert vaults.vault_path(tmp_path / "hosts.py") == tmp_path / "secrets" / "hosts.vault"
    (tmp_path / "inventories").mkdir()
    monkeypatch.chdir(tmp_path / "inventories")
    assert vaults.vault_path(Path("home.py")) == tmp_path / "secrets" / "home.vault"
    monkeypatch.chdir(tmp_path)
    assert vaults.vault_path(Path("inventories/home.py")) == tmp_path / "secrets" / "home.vault"


def test_git_files_that_the_user_has_are_kept(path: Path) -> None:
    path.parent.mkdir(parents=True)
    (path.parent / ".gitattributes").write_text("*.png binary")
    assert len(vaults.prepare_directory(path)) == 2
    assert (path.parent / ".gitattributes").read_text() == "*.png binary\n*.vault merge=union\n"
    assert vaults.prepare_directory(path) == []


class Repository:
    """A real git repository with a committed vault."""

    def __init__(self, directory: Path, values: dict[str, str]) -> None:
        self.directory = directory
        self.path = directory / "secrets" / "home.vault"
        make(self.path, values)
        vaults.prepare_directory(self.path)
        self.git("init", "--quiet", "--initial-branch=main")
        self.commit()

    def git(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.invalid", "-c", "core.hooksPath=/dev/null"]
        return subprocess.run(
            ["git", *identity, *arguments], cwd=self.directory, check=check, capture_output=True, text=True
        )

    def commit(self) -> None:
        self.git("add", "-A")
        self.git("commit", "--quiet", "--message=change")

    def change(self, branch: str, change: Callable[[Vault], None]) -> None:
        self.git("checkout", "--quiet", "-b", branch, "main")
        vault = Vault.open(self.path, KEY)
        change(vault)
        vault.save()
        self.commit()

    def merge(self) -> None:
        self.git("checkout", "--quiet", "main")
        for branch in ("one", "two"):
            self.git("merge", "--quiet", "--no-edit", branch)


@pytest.mark.parametrize("values", [{}, VALUES])
@pytest.mark.parametrize(("first", "second"), [("b", "c"), ("a", "zz")])
def test_two_branches_that_each_add_an_entry_merge_and_read(
    tmp_path: Path, values: dict[str, str], first: str, second: str
) -> None:
    repository = Repository(tmp_path / "git", values)
    repository.change("one", lambda vault: vault.set(first, "1"))
    repository.change("two", lambda vault: vault.set(second, "2"))
    repository.merge()
    assert contents(repository.path) == {**values, first: "1", second: "2"}
    assert repository.git("status", "--porcelain").stdout == ""


def test_git_keeps_neither_the_previous_version_nor_the_lock(tmp_path: Path) -> None:
    repository = Repository(tmp_path / "git", VALUES)
    repository.change("one", lambda vault: vault.set("a", "1"))
    assert storage.previous_path(repository.path).exists()
    tracked = repository.git("ls-files").stdout.split()
    assert tracked == ["secrets/.gitattributes", "secrets/.gitignore", "secrets/home.vault"]


def test_two_branches_that_change_one_entry_are_told_by_name_after_the_merge(tmp_path: Path) -> None:
    repository = Repository(tmp_path / "git", VALUES)
    repository.change("one", lambda vault: vault.set("porkbun_api_key", "1"))
    repository.change("two", lambda vault: vault.set("porkbun_api_key", "2"))
    repository.merge()
    with pytest.raises(VaultError, match="porkbun_api_key is there 2 times"):
        Vault.open(repository.path, KEY)
    assert Vault.open(repository.path, KEY, allow_damage=True).get("wireguard") == VALUES["wireguard"]


def test_without_the_attribute_git_conflicts_and_the_markers_are_told(tmp_path: Path) -> None:
    repository = Repository(tmp_path / "git", VALUES)
    repository.git("rm", "--quiet", "secrets/.gitattributes")
    repository.commit()
    repository.change("one", lambda vault: vault.set("b", "1"))
    repository.change("two", lambda vault: vault.set("c", "2"))
    repository.git("checkout", "--quiet", "main")
    repository.git("merge", "--quiet", "one")
    assert repository.git("merge", "--quiet", "two", check=False).returncode == 1
    with pytest.raises(VaultError, match="conflict markers"):
        Vault.open(repository.path, KEY)
    assert Vault.open(repository.path, KEY, allow_damage=True).get("b") == "1"


def test_an_entry_added_on_a_branch_from_before_a_rekey_is_told_with_the_line_to_delete(tmp_path: Path) -> None:
    repository = Repository(tmp_path / "git", VALUES)
    repository.change("one", lambda vault: vault.rekey(KEY, cost=CHEAP))
    repository.change("two", lambda vault: vault.set("zz", "2"))
    repository.merge()
    with pytest.raises(VaultError, match=r"opens with this key|cannot be decrypted"):
        Vault.open(repository.path, KEY)


# --- leaks -----------------------------------------------------------------------------------------


def test_no_value_and_no_passphrase_is_in_any_repr(path: Path) -> None:
    vault = make(path)
    source = Passphrase("my-long-passphrase")
    shown = [
        repr(vault),
        str(vault),
        repr(vars(vault)),
        repr(vault.__dict__),
        repr(source),
        repr(source.find(path)),
        repr(KeyMaterial("somewhere", b"my-long-passphrase")),
        f"{crypto.Secret('my-long-passphrase')}",
    ]
    for text in shown:
        assert "my-long-passphrase" not in text
        assert not any(value in text for value in VALUES.values())
    assert "porkbun_api_key" in repr(vars(vault))  # the control: the entries are there, hidden


def test_no_value_is_in_a_traceback_even_one_that_shows_locals(path: Path) -> None:
    make(path)
    content = path.read_bytes()
    path.write_bytes(content.replace(entry_line(content, "wireguard"), b"wireguard: AAAA"))

    def fail(run: Callable[[], object]) -> str:
        with pytest.raises(VaultError) as caught:
            run()
        assert caught.value.__context__ is None or caught.value.__suppress_context__
        return "".join(traceback.TracebackException.from_exception(caught.value, capture_locals=True).format())

    vault = Vault.open(path, KEY, allow_damage=True)
    wrong = Passphrase("-".join(["not", "the", "right", "one"]))  # else the source line would show it
    traces = [
        fail(lambda: Vault.open(path, KEY)),
        fail(lambda: Vault.open(path, wrong)),
        fail(lambda: vault.get("wireguard")),
        fail(lambda: vault.get("porkbun")),
        fail(lambda: vault.rotate("porkbun_api_key")),
        fail(lambda: vault.ensure("new", vaults.api_key)),
    ]
    for trace in traces:
        assert "VaultError" in trace
        assert "not-the-right-one" not in trace
        assert not any(value in trace for value in VALUES.values())
