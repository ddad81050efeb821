"""`mediahost fix-permissions` on real trees: what differs is mended, nothing else is touched, links lead nowhere."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from mediahost import on_host, permissions_on_host
from mediahost.cli import fix_permissions, main
from mediahost.config import read

ME, MINE = os.getuid(), os.getgid()
ROOT_ONLY = pytest.mark.skipif(ME != 0, reason="only root can give files to others")


def asked(*roots: Path, **changes: Any) -> dict[str, Any]:
    request = fix_permissions.request(read("nas", {}), dry_run=False)
    return {**request, "roots": [str(root) for root in roots], "uid": ME, "gid": MINE, "acl": False, **changes}


def walk(request: dict[str, Any]) -> fix_permissions.Total:
    """All slices, as the command asks for them."""
    total = fix_permissions.Total()
    slices = 0
    while True:
        told = json.loads(json.dumps(permissions_on_host.answer(json.loads(json.dumps(request)))))
        if "error" in told:
            total.error = told["error"]
            return total
        total.add(told)
        request["cursor"] = told["cursor"]
        slices += 1
        assert slices < 1000, "it does not come to its end"
        if told["cursor"] is None:
            return total


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    for name in ("media/tv", "media/movies/Film (2020)", "torrents"):
        (root / name).mkdir(parents=True)
    for name in ("media/tv/a.mkv", "media/movies/Film (2020)/f.mkv", "torrents/f.mkv", "torrents/run.sh"):
        (root / name).write_text("x")
        (root / name).chmod(0o600)
    (root / "torrents/run.sh").chmod(0o700)
    return root


def test_directories_get_2775_and_files_664_and_what_can_be_run_stays_so(tree: Path) -> None:
    total = walk(asked(tree))
    assert (total.seen, total.differ, total.failures, total.error) == (10, 10, [], "")
    for path in [tree, *tree.rglob("*")]:
        assert mode(path) == (0o2775 if path.is_dir() else 0o764 if path.name == "run.sh" else 0o664), path


def test_a_second_walk_finds_nothing_and_touches_nothing(tree: Path) -> None:
    walk(asked(tree))
    before = {path: path.lstat().st_ctime_ns for path in tree.rglob("*")}
    total = walk(asked(tree))
    assert (total.differ, total.changes) == (0, [])
    assert {path: path.lstat().st_ctime_ns for path in tree.rglob("*")} == before


def test_a_dry_run_tells_what_differs_and_changes_nothing(tree: Path) -> None:
    before = {path: mode(path) for path in [tree, *tree.rglob("*")]}
    total = walk(asked(tree, dry_run=True))
    assert total.differ == 10
    assert [f"{tree}/torrents/f.mkv", "mode 0600, wanted 0664"] in total.changes
    assert {path: mode(path) for path in [tree, *tree.rglob("*")]} == before


@ROOT_ONLY
def test_what_belongs_to_somebody_else_is_given_to_the_media_user_and_loses_no_bit_by_it(tree: Path) -> None:
    os.chown(tree / "torrents/f.mkv", 12345, 12345)
    os.chown(tree / "torrents", 0, 0)
    total = walk(asked(tree, uid=23456, gid=23457))
    assert {(path.stat().st_uid, path.stat().st_gid) for path in [tree, *tree.rglob("*")]} == {(23456, 23457)}
    assert mode(tree / "torrents") == 0o2775
    assert any("owner 12345:12345" in what for _, what in total.changes)


def test_a_link_is_neither_followed_nor_changed_whatever_it_leads_to(tree: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (outside / "inner").mkdir(parents=True)
    secret = outside / "inner/secret"
    secret.write_text("x")
    for path in (outside, outside / "inner"):
        path.chmod(0o700)
    secret.chmod(0o600)
    (tree / "media/tv/away").symlink_to(outside)
    (tree / "media/tv/secret.mkv").symlink_to(secret)
    (tree / "media/tv/loop").symlink_to(tree)
    (tree / "media/tv/nowhere").symlink_to("/not/there")
    total = walk(asked(tree))
    assert (total.links, total.seen, total.failures) == (4, 10, [])
    assert (mode(outside), mode(outside / "inner"), mode(secret)) == (0o700, 0o700, 0o600)
    # The positive control: the very files, by a name inside of the tree.
    os.link(secret, tree / "media/tv/linked.mkv")
    walk(asked(tree))
    assert mode(secret) == 0o664


def test_a_file_that_becomes_a_link_after_it_was_looked_at_leads_nowhere(tree: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("x")
    secret.chmod(0o600)
    victim = tree / "torrents/f.mkv"
    part = permissions_on_host.Slice(asked(tree))
    found = victim.lstat()
    victim.unlink()
    victim.symlink_to(secret)
    directory = os.open(tree / "torrents", os.O_RDONLY)
    with pytest.raises(OSError, match="symbolic"):
        part.file(directory, "f.mkv", str(victim), found)
    os.close(directory)
    assert mode(secret) == 0o600


def test_a_root_that_is_a_link_is_refused_in_words(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tree)
    total = walk(asked(tmp_path / "link"))
    assert total.failures == [[str(tmp_path / "link"), "is a link: give its target as data_root"]]
    assert total.seen == 0


def test_pipes_and_sockets_are_left_alone_and_do_not_hold_it_up(tree: Path) -> None:
    os.mkfifo(tree / "torrents/pipe", 0o600)
    total = walk(asked(tree))
    assert (total.strange, total.failures) == (1, [])
    assert mode(tree / "torrents/pipe") == 0o600


def test_a_special_bit_of_a_file_is_taken_away(tree: Path) -> None:
    (tree / "torrents/run.sh").chmod(0o4755)
    walk(asked(tree))
    assert mode(tree / "torrents/run.sh") == 0o775


def test_what_other_stages_keep_there_is_left_out(tree: Path) -> None:
    for name in ("lost+found", "cache"):
        (tree / name).mkdir(mode=0o700)
        (tree / name / "x").touch(mode=0o600)
    (tree / "snapraid.content").touch(mode=0o600)
    total = walk(asked(tree, skip=[f"{tree}/snapraid.content", f"{tree}/cache"]))
    assert total.seen == 10
    assert [mode(tree / name) for name in ("lost+found", "cache", "cache/x", "snapraid.content")] == [
        0o700,
        0o700,
        0o600,
        0o600,
    ]


def test_below_a_mount_point_without_its_disk_nothing_is_done(tree: Path) -> None:
    total = walk(asked(tree, mounts=[str(tree)]))
    assert "nothing is mounted there" in total.error
    assert mode(tree / "torrents/f.mkv") == 0o600
    inside = walk(asked(tree, mounts=[f"{tree}/torrents"]))
    assert [f"{tree}/torrents", "nothing is mounted there; left out"] in inside.failures
    assert mode(tree / "torrents/f.mkv") == 0o600
    assert mode(tree / "media/tv/a.mkv") == 0o664, "the rest of the tree is mended"


def test_names_of_any_bytes_travel_there_and_back(tree: Path) -> None:
    strange = os.fsencode(tree) + b"/torrents/\xff\xfe\n\x1b[2J"
    for name in (strange, strange + b"2"):
        os.close(os.open(name, os.O_CREAT, 0o600))
    total = walk(asked(tree, seconds=0))
    assert (total.seen, total.failures) == (12, [])
    assert stat.S_IMODE(os.lstat(strange).st_mode) == 0o664
    shown = fix_permissions.printable(next(path for path, _ in total.changes if "[2J" in path))
    assert "\n" not in shown
    assert "\x1b" not in shown


def test_a_file_system_that_says_yes_and_does_nothing_is_told(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fchmod", lambda *_: None)
    total = walk(asked(tree))
    assert total.differ == len(total.failures) == 10
    assert {what for _, what in total.failures} == {
        "cannot be changed: this file system keeps neither owner nor mode"
    }


def test_a_tree_that_is_too_deep_is_told_and_the_rest_is_done(tree: Path) -> None:
    deep = tree / "torrents"
    for _ in range(210):
        deep = deep / "d"
    deep.mkdir(parents=True)
    total = walk(asked(tree))
    assert len(total.failures) == 1
    assert "deeper than 200" in total.failures[0][1]
    assert mode(tree / "torrents/f.mkv") == 0o664


NAMES = st.sampled_from(["a", "b", "B", "a b", "ä", "zz", ".x", "a-b"])
PATHS = st.lists(st.lists(NAMES, min_size=1, max_size=4), max_size=12)


@given(paths=PATHS, each=st.sampled_from([0, 3600]))
def test_in_slices_of_any_length_every_entry_is_seen_exactly_once(
    tmp_path_factory: pytest.TempPathFactory, paths: list[list[str]], each: float
) -> None:
    root = tmp_path_factory.mktemp("tree")
    for path in paths:
        parent = root.joinpath(*path[:-1])
        if not any(part.is_file() for part in (parent, *parent.parents)):
            parent.mkdir(parents=True, exist_ok=True)
            if not (parent / path[-1]).exists():
                (parent / path[-1]).touch()
    entries = {str(root), *(str(path) for path in root.rglob("*"))}
    total = walk(asked(root, dry_run=True, seconds=each, uid=ME + 1))
    assert total.seen == total.differ == len(entries)
    assert sorted(path for path, _ in total.changes) == sorted(entries)


def _has_acls(path: Path) -> bool:
    try:
        os.setxattr(path, "system.posix_acl_default", permissions_on_host.default_acl(MINE))
    except OSError:
        return False
    return True


def test_the_default_acl_makes_what_others_write_the_groups_whatever_their_umask(tree: Path, tmp_path: Path) -> None:
    probe = tmp_path / "probe"
    probe.mkdir()
    if not _has_acls(probe):
        pytest.skip("this file system has no ACLs")
    total = walk(asked(tree, acl=True))
    assert any("default ACL" in what for _, what in total.changes)
    subprocess.run(["sh", "-c", "umask 077; mkdir d; : >d/f"], cwd=tree / "media/tv", check=True)
    assert mode(tree / "media/tv/d") == 0o2775
    assert mode(tree / "media/tv/d/f") == 0o664
    assert walk(asked(tree, acl=True)).differ == 0
    # The positive control: without it the umask counts.
    subprocess.run(["sh", "-c", "umask 077; mkdir d; : >d/f"], cwd=tmp_path, check=True)
    assert mode(tmp_path / "d/f") == 0o600


def test_the_program_runs_by_itself_as_it_is_sent(tree: Path) -> None:
    program = on_host.program("mediahost.permissions_on_host", asked(tree))
    done = subprocess.run([sys.executable, "-I", "-"], input=program, capture_output=True, text=True, check=True)
    told = json.loads(done.stdout)
    assert (told["seen"], told["differ"], told["cursor"]) == (10, 10, None)


def test_the_tree_is_that_of_the_layout_and_the_files_of_others_are_named() -> None:
    trash = fix_permissions.request(read("nas", {"data_root": "/tank"}), dry_run=True)
    assert (trash["roots"], trash["dry_run"], trash["skip"]) == (["/tank"], True, [])
    split = {"layout": "split", "data_root": "/hdd", "downloads_root": "/ssd/dl"}
    assert fix_permissions.request(read("nas", split), dry_run=False)["roots"] == ["/hdd/media", "/ssd/dl"]
    disks = [{"device": f"/dev/disk/by-id/ata-{name}", "at": f"/mnt/{name}"} for name in ("d1", "p")]
    more = {"storage_disks": disks, "snapraid_parity": ["/mnt/p"], "transcode_size": "1g"}
    request = fix_permissions.request(read("nas", more), dry_run=False)
    assert {"/mnt/d1/snapraid.content", "/mnt/p", "/srv/cache/transcode", "/srv/cache/transcode.img"} <= set(
        request["skip"]
    )
    assert request["mounts"] == ["/mnt/d1", "/mnt/p"]


@pytest.fixture
def inventory(tmp_path: Path) -> Path:
    path = tmp_path / "hosts.py"
    path.write_text("hosts = [('@local', {})]\n")
    return path


def test_the_command_tells_each_slice_then_the_sum(inventory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = {"seen": 2, "differ": 1, "links": 1, "strange": 0, "failures": [], "changes": [["/data/x", "mode"]]}
    answers = iter([{**one, "cursor": [0, ["media", "tv"]]}, {**one, "cursor": None}])
    cursors = []

    def ask(_inventory: Path, _host: str, request: dict[str, Any]) -> dict[str, Any]:
        cursors.append(request["cursor"])
        return next(answers)

    monkeypatch.setattr(fix_permissions, "_slice", ask)
    result = CliRunner().invoke(main, ["fix-permissions", str(inventory)])
    assert result.exit_code == 0, result.output
    assert cursors == [None, [0, ["media", "tv"]]]
    assert "@local: 2 looked at, 1 differ, now at /data/media/tv" in result.stderr
    assert "@local: 4 files and directories, 2 differed and were mended; 2 links left alone" in result.stdout


def test_what_could_not_be_done_ends_with_code_1_and_the_reason(
    inventory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fix_permissions, "_slice", lambda *_: {"error": "/data: nothing is mounted there"})
    result = CliRunner().invoke(main, ["fix-permissions", str(inventory)])
    assert result.exit_code == 1
    assert "@local: /data: nothing is mounted there" in result.stderr


def test_it_works_by_way_of_pyinfra(tree: Path, tmp_path: Path) -> None:
    inventory = tmp_path / "own.py"
    data = {"data_root": str(tree), "media_uid": max(ME, 1000), "media_gid": max(MINE, 1000), "_sudo": False}
    inventory.write_text(f"hosts = [('@local', {data!r})]\n")
    result = CliRunner().invoke(main, ["fix-permissions", "--dry-run", "--json", str(inventory)])
    told = json.loads(result.stdout)["hosts"]["@local"]
    assert (told["seen"], told["error"], told["failures"]) == (10, "", [])
