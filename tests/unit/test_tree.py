"""The directory tree: both layouts, shared for the media group, closed for everybody else where secrets lie."""

from pathlib import PurePosixPath
from typing import Any

import pytest

from mediahost import config
from mediahost.catalog import load_catalog
from mediahost.render.tree import render_tree
from mediahost.resources import Directory
from mediahost.stack import build_stack

CATALOG = load_catalog()


def tree(**data: Any) -> dict[str, Directory]:
    read = config.read("nas", data)
    stack = build_stack(read, CATALOG, "nas", lambda name, kind: "x")
    directories = render_tree(read, stack)
    assert len({directory.path for directory in directories}) == len(directories), "each only once"
    return {directory.path: directory for directory in directories}


def test_the_trash_layout_has_downloads_and_media_below_one_root() -> None:
    paths = {path for path in tree(data_root="/tank") if path.startswith("/tank")}
    categories = ("movies", "tv", "music", "books")
    assert paths == {
        "/tank",
        "/tank/torrents",
        "/tank/torrents/incomplete",
        *(f"/tank/torrents/{name}" for name in categories),
        "/tank/usenet",
        "/tank/usenet/incomplete",
        "/tank/usenet/complete",
        *(f"/tank/usenet/complete/{name}" for name in categories),
        "/tank/media",
        *(f"/tank/media/{name}" for name in (*categories, "audiobooks", "podcasts")),
    }


def test_the_split_layout_has_downloads_on_a_disk_of_their_own() -> None:
    paths = set(tree(layout="split", downloads_root="/ssd/dl", data_root="/hdd", media_libraries=["movies", "tv"]))
    assert {path for path in paths if path.startswith("/hdd")} == {
        "/hdd",
        "/hdd/media",
        "/hdd/media/movies",
        "/hdd/media/tv",
    }
    assert {"/ssd/dl", "/ssd/dl/complete", "/ssd/dl/incomplete", "/ssd/dl/complete/tv"} <= paths


@pytest.mark.parametrize("layout", ["trash", "split"])
def test_parents_come_before_what_is_in_them(layout: str) -> None:
    paths = [PurePosixPath(path) for path in tree(layout=layout)]
    for index, path in enumerate(paths):
        assert not [later for later in paths[index + 1 :] if path.is_relative_to(later)], path


@pytest.mark.parametrize("layout", ["trash", "split"])
def test_media_and_downloads_belong_to_the_media_group_and_hand_it_on(layout: str) -> None:
    directories = tree(layout=layout, media_uid=2001, media_gid=2002)
    shared = [each for path, each in directories.items() if not path.startswith("/opt/")]
    assert shared
    assert {(each.owner, each.group, each.mode) for each in shared} == {("2001", "2002", "2775")}


def test_only_root_enters_the_stack_and_its_secrets() -> None:
    directories = tree(stack_root="/opt/x")
    assert {path: each.mode for path, each in directories.items() if path.startswith("/opt/x")} == {
        "/opt/x": "0750",
        "/opt/x/config": "0750",
        "/opt/x/secrets": "0700",
    }
    assert all(each.owner == each.group == "0" for path, each in directories.items() if path.startswith("/opt/x"))


def test_without_services_there_is_no_stack_directory() -> None:
    paths = set(tree(selection="none"))
    assert "/data/media" in paths
    assert "/opt/media-server" not in paths


def test_a_pools_directories_are_made_on_every_branch_and_nothing_beside_the_tree_is() -> None:
    disks = [{"device": f"/dev/disk/by-id/ata-{name}", "at": f"/mnt/{name}"} for name in ("d1", "d2")]
    pool = {"at": "/data/media", "branches": ["/mnt/d1", "/mnt/d2/films"]}
    directories = tree(storage_disks=disks, storage_pools=[pool], media_libraries=["tv"])
    found = {path: each for path, each in directories.items() if path.startswith("/mnt")}
    assert set(found) == {"/mnt/d1", "/mnt/d1/tv", "/mnt/d2/films", "/mnt/d2/films/tv"}
    assert {(each.group, each.mode, each.default_acl) for each in found.values()} == {
        ("13000", "2775", "user::rwx,group::rwx,group:13000:rwx,mask::rwx,other::r-x")
    }


def test_shared_directories_have_a_default_acl_unless_it_is_switched_off_and_others_have_none() -> None:
    on, off = tree(media_gid=2002), tree(storage_acl=False)
    assert on["/data/media/tv"].default_acl == "user::rwx,group::rwx,group:2002:rwx,mask::rwx,other::r-x"
    assert off["/data/media/tv"].default_acl == ""
    assert on["/opt/media-server"].default_acl is None
