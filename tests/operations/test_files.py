"""The command that writes files, run for real by `sh` in a directory of the test: what it promises, it keeps."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import operations.files as files_module
from facts.snapshot import PathState, Snapshot
from mediahost.resources import File
from operations import files, owed

OLD = b"the old content\n"
NEW = b"the new content\n"
UID, GID = str(os.getuid()), str(os.getgid())
# Every program of the command, in the order in which it gets to them: between two of them nothing changes.
PROGRAMS = ("base64", "chown", "chmod", "sync", "mv")


def file(path: Path, content: bytes = NEW, mode: str = "0600", check: str | None = None) -> File:
    return File(str(path), content, owner=UID, group=GID, mode=mode, check=check)


def run(
    wanted: list[File],
    umask: int = 0o022,
    pending: str | None = None,
    stdin: str | None = None,
    path: Path | None = None,
    shell: str = "sh",
) -> subprocess.CompletedProcess[str]:
    """Run the command as `converge` would, with the programs of `path` in front of the system's."""
    command, text = files.write(wanted, pending)
    environment = {"PATH": f"{path}:{os.environ['PATH']}" if path else os.environ["PATH"]}
    return subprocess.run(
        [shell, "-c", "set -eu\n" + command],
        input=text if stdin is None else stdin,
        capture_output=True,
        text=True,
        check=False,
        umask=umask,
        env=environment,
        start_new_session=True,
    )


def shims(directory: Path, before: str, names: tuple[str, ...] = PROGRAMS) -> Path:
    """Programs that run the shell text `before` (with NAME set), then the real program."""
    directory.mkdir(exist_ok=True)
    for name in names:
        real = shutil.which(name)
        shim = directory / name
        shim.write_text(f'#!/bin/sh\nNAME={name}\n{before}\nexec {real} "$@"\n')
        shim.chmod(0o755)
    return directory


def mode(path: Path) -> str:
    return f"{stat.S_IMODE(path.stat().st_mode):04o}"


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """A file that is there already, readable by everybody."""
    path = tmp_path / "place" / "target"
    path.parent.mkdir()
    path.write_bytes(OLD)
    path.chmod(0o644)
    return path


def leftovers(target: Path) -> list[str]:
    return [path.name for path in target.parent.iterdir() if path != target]


# --- content


@settings(max_examples=40, deadline=None)
@given(st.lists(st.binary(max_size=300), min_size=1, max_size=4))
def test_any_bytes_arrive_exactly_however_many_files_share_the_stream(contents: list[bytes]) -> None:
    with tempfile.TemporaryDirectory() as name:
        paths = [Path(name) / str(index) for index in range(len(contents))]
        done = run([file(path, content) for path, content in zip(paths, contents, strict=True)])
        assert (done.returncode, done.stderr) == (0, "")
        assert [path.read_bytes() for path in paths] == contents


@pytest.mark.parametrize(
    "content",
    [b"", b"\n", b".", b".\n", b"\n.\n", b"\0" * 5, bytes(range(256)) * 100, b"a" * 3071, b"a" * 3072, b"a" * 3073],
    ids=lambda content: f"{len(content)}-{content[:4]!r}",
)
def test_contents_at_the_edges_of_the_encoding_arrive_exactly(tmp_path: Path, content: bytes) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert run([file(first, content), file(second)]).returncode == 0
    assert first.read_bytes() == content
    assert second.read_bytes() == NEW


@pytest.mark.parametrize("shell", [name for name in ("dash", "bash", "posh") if shutil.which(name)])
def test_the_command_runs_in_every_shell_that_may_be_sh(tmp_path: Path, shell: str) -> None:
    path = tmp_path / "x"
    assert run([file(path), file(tmp_path / "y")], shell=shell).returncode == 0
    assert path.read_bytes() == NEW


def test_a_missing_parent_is_made_for_everybody_to_enter_even_under_a_tight_umask(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "c"
    assert run([file(path)], umask=0o077).returncode == 0
    assert (mode(tmp_path / "a"), mode(tmp_path / "a" / "b"), mode(path)) == ("0755", "0755", "0600")


def test_blanks_and_quotes_in_a_path_are_part_of_the_path(tmp_path: Path) -> None:
    path = tmp_path / "a b" / "it's $(id)"
    assert run([file(path)]).returncode == 0
    assert path.read_bytes() == NEW


# --- owner and mode


@pytest.mark.parametrize("wanted", ["0600", "0640", "0644", "0440", "0755", "2755"])
@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_the_mode_is_the_wanted_one_whatever_the_umask_and_the_old_mode(
    target: Path, wanted: str, umask: int
) -> None:
    assert run([file(target, mode=wanted)], umask=umask).returncode == 0
    assert mode(target) == wanted


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file away")
def test_the_owner_is_the_wanted_one_by_number() -> None:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "x"
        assert run([File(str(path), NEW, owner="12345", group="23456", mode="0640")]).returncode == 0
        found = path.stat()
        assert (found.st_uid, found.st_gid, mode(path)) == (12345, 23456, "0640")


def test_an_owner_that_does_not_exist_leaves_the_old_file(target: Path) -> None:
    done = run([File(str(target), NEW, owner="nobody-of-that-name", group=GID)])
    assert done.returncode != 0
    assert target.read_bytes() == OLD


@pytest.mark.parametrize("old_mode", [None, 0o644, 0o666])
def test_a_secret_is_at_no_moment_readable_by_others(tmp_path: Path, old_mode: int | None) -> None:
    target = tmp_path / "place" / "secret"
    target.parent.mkdir()
    if old_mode is not None:
        target.write_bytes(OLD)
        target.chmod(old_mode)
    log = tmp_path / "log"
    look = f"""for f in {target.parent}/.[!.]* {target}; do
  [ ! -e "$f" ] || printf '%s %s %s\\n' "$NAME" "$(stat -c %a "$f")" "$(sha256sum <"$f")" >>{log}
done"""
    done = run(
        [file(target, mode="0600", check=f"stat -c 'check %a' {{}} >>{log}")], 0, path=shims(tmp_path / "bin", look)
    )
    assert done.returncode == 0, done.stderr
    seen = [line.split() for line in log.read_text().splitlines()]
    assert {line[0] for line in seen} >= {*PROGRAMS, "check"}, "a moment was not looked at"
    old = file(target, OLD).sha256
    wrong = [line for line in seen if line[1] != "600" and not (len(line) > 2 and line[2] == old)]
    assert wrong == []
    assert mode(target) == "0600"


def test_the_watch_for_readable_moments_would_notice_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The positive control of the test above: without the umask in the command it must fail."""
    monkeypatch.setattr(files_module, "_RECEIVE", files_module._RECEIVE.replace("umask 077", "umask 000"))
    with pytest.raises(AssertionError, match="644|666"):
        test_a_secret_is_at_no_moment_readable_by_others(tmp_path, None)


def test_a_secret_is_in_no_argument_of_any_program(tmp_path: Path) -> None:
    secret = b"s3cr3t-value-that-must-not-show"
    log = tmp_path / "log"
    command, _ = files.write([file(tmp_path / "x", secret)])
    done = run([file(tmp_path / "x", secret)], path=shims(tmp_path / "bin", f'echo "$NAME $*" >>{log}'))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert "chmod" in log.read_text()
    for shape in (secret.decode(), "czNjcjN0"):
        assert shape not in log.read_text()
        assert shape not in command


# --- the check


def test_a_refused_check_leaves_the_old_file_and_tells(target: Path) -> None:
    done = run([file(target, check="echo line 3 is wrong; false {}")])
    assert done.returncode != 0
    assert "line 3 is wrong" in done.stderr
    assert f"{target}: the new content was refused, the old one stays" in done.stderr
    assert target.read_bytes() == OLD
    assert leftovers(target) == []


def test_a_check_sees_the_new_content_before_it_counts(target: Path) -> None:
    check = f"grep -q 'the new' {{}} && grep -q 'the old' {target}"
    assert run([file(target, check=check)]).returncode == 0
    assert target.read_bytes() == NEW


def test_after_a_refused_file_the_ones_behind_it_are_not_written(target: Path) -> None:
    other = target.parent / "other"
    assert run([file(target, check="false {}"), file(other)]).returncode != 0
    assert not other.exists()


# --- atomic


def test_a_reader_sees_the_old_or_the_new_content_and_nothing_else(target: Path) -> None:
    contents = [bytes([65 + index]) * 50_000 for index in range(8)]
    target.write_bytes(contents[0])
    seen: set[bytes] = set()
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            seen.add(target.read_bytes())

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for content in contents[1:]:
            assert run([file(target, content)]).returncode == 0
    finally:
        stop.set()
        reader.join()
    assert len(seen) > 1, "the reader saw no change"
    assert seen <= set(contents)


@pytest.mark.parametrize("moment", PROGRAMS)
def test_a_run_killed_at_any_moment_leaves_the_old_file_and_the_next_converges(target: Path, moment: str) -> None:
    bin_ = shims(target.parent.parent / "bin", "kill -9 0", (moment,))
    done = run([file(target)], path=bin_)
    assert done.returncode == -9
    assert target.read_bytes() == OLD
    assert mode(target) == "0644"
    assert run([file(target)]).returncode == 0
    assert (target.read_bytes(), mode(target)) == (NEW, "0600")
    assert leftovers(target) == []


def cuts() -> Iterator[int]:
    _, stdin = files.write([File("/x", NEW * 400)])
    yield from (0, 1, 3, 4, 4095, 4096, 4097, len(stdin) // 2, len(stdin) - 2, len(stdin) - 1)


@pytest.mark.parametrize("cut", list(cuts()))
def test_a_stream_cut_off_anywhere_leaves_the_old_file(target: Path, cut: int) -> None:
    wanted = [file(target, NEW * 400)]
    _, stdin = files.write(wanted)
    assert run(wanted, stdin=stdin[:cut]).returncode != 0
    assert target.read_bytes() == OLD
    assert run(wanted).returncode == 0, "the same stream, whole"
    assert target.read_bytes() == NEW * 400
    assert leftovers(target) == []


def test_a_disk_that_is_full_leaves_the_old_file(target: Path) -> None:
    wanted = [file(target, NEW * 4000)]
    command, stdin = files.write(wanted)
    limited = f"trap '' XFSZ\nulimit -f 8\nset -eu\n{command}"  # ulimit counts 512-byte blocks
    done = subprocess.run(["sh", "-c", limited], input=stdin, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert target.read_bytes() == OLD


def test_a_link_in_the_targets_place_is_replaced_and_what_it_led_to_is_not_touched(tmp_path: Path) -> None:
    real, link = tmp_path / "real", tmp_path / "link"
    real.write_bytes(OLD)
    link.symlink_to(real)
    assert run([file(link)]).returncode == 0
    assert real.read_bytes() == OLD
    assert not link.is_symlink()


def test_a_directory_in_the_targets_place_is_not_filled(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    assert run([file(target)]).returncode != 0
    assert list(target.iterdir()) == []


# --- pending


def test_the_mark_is_made_before_the_file_and_taken_back_by_its_command(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = target.parent.parent / "state"
    monkeypatch.setattr(owed, "_DIRECTORY", f"{state}/pending")
    log = target.parent.parent / "log"
    look = f"[ -e {state}/pending/x.service ] && echo marked >>{log}"
    done = run([file(target)], pending="x.service", path=shims(target.parent.parent / "bin", look, ("base64",)))
    assert done.returncode == 0, done.stderr
    assert log.read_text() == "marked\n"
    subprocess.run(["sh", "-c", owed.clear("x.service")], check=True)
    assert list((state / "pending").iterdir()) == []


# --- what differs, in words


def present(kind: str = "file", mode: str = "600", owner: str = UID, sha256: str | None = None) -> Snapshot:
    digest = File("/x", NEW).sha256 if sha256 is None else sha256
    return Snapshot(paths={"/x": PathState(kind, mode, owner, GID, f"name{owner}", f"name{GID}", digest)})


WANTED = file(Path("/x"))


@pytest.mark.parametrize(
    ("seen", "told"),
    [
        (Snapshot(), "missing"),
        (present(), ""),
        (present(sha256="0" * 64), "content differs"),
        (present(mode="644"), "mode is 0644, wanted 0600"),
        (present(mode="4600"), "mode is 4600, wanted 0600"),
        (present(owner="77"), f"owner is name77:name{GID}, wanted {UID}:{GID}"),
        (present(mode="0", sha256=""), "content differs, mode is 0000, wanted 0600"),
        (present(kind="directory"), "is a directory, not a file"),
        (present(kind="link"), "is a link, not a file"),
    ],
)
def test_a_difference_is_told_in_words(seen: Snapshot, told: str) -> None:
    assert files.difference(WANTED, seen) == told


def test_an_owner_is_known_by_name_or_by_number() -> None:
    by_name = File("/x", NEW, owner=f"name{UID}", group=GID, mode="0600")
    assert files.difference(by_name, present()) == ""


def test_a_seed_is_written_once_and_then_left_to_the_application() -> None:
    seed = File("/x", b"other", owner="root", mode="0644", once=True)
    assert files.difference(seed, present()) == ""
    assert files.difference(seed, Snapshot()) == "missing"
    assert files.difference(seed, present(kind="directory")) == "is a directory, not a file"


def test_nothing_different_is_no_step() -> None:
    assert files.steps([WANTED], present()) == []


def test_all_that_differ_share_one_command_and_only_they_are_in_it() -> None:
    other, right = file(Path("/y")), WANTED
    steps = files.steps([right, other, file(Path("/z"))], present())
    assert [step.change for step in steps] == ["/y: missing", "/z: missing"]
    assert [bool(step.command) for step in steps] == [False, True]
    assert "receive /y " in steps[-1].command
    assert "receive /x " not in steps[-1].command


def test_what_is_no_file_is_refused_with_the_mend() -> None:
    (step,) = files.steps([WANTED], present(kind="directory"))
    assert step.refusal == "/x is a directory, not a file: move it away, then run again"
    assert step.command == ""
