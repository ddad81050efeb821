"""The lab's plexmediaserver: a package with the real one's paths, user and unit, which says that it is a stand-in."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from lab import aptrepo
from lab.images.definitions import DEFINITIONS
from lab.vendor import plex as vendor
from mediahost import plex
from mediahost.catalog import load_catalog

pytestmark = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="packages are Debian's")


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("pool") / "plexmediaserver.deb"
    aptrepo._build_package(vendor.vendor().packages[0], [], target)
    return target


@pytest.fixture(scope="module")
def unpacked(package: Path) -> Path:
    tree = package.parent / "tree"
    subprocess.run(["dpkg-deb", "-R", str(package), str(tree)], check=True)
    return tree


def test_names_and_places_are_those_that_the_product_relies_on(unpacked: Path) -> None:
    control = (unpacked / "DEBIAN/control").read_text()
    assert f"Package: {plex.PACKAGE}\n" in control
    unit = (unpacked / "usr/lib/systemd/system" / plex.UNIT).read_text()
    assert f"User={plex.USER}\n" in unit
    assert f'APPLICATION_SUPPORT_DIR={plex.DATA.rpartition("/")[0]}"' in unit
    for program in ("/usr/lib/plexmediaserver/Plex Media Server", plex.SQLITE):
        assert (unpacked / program.lstrip("/")).stat().st_mode & 0o777 == 0o755
    assert f"--home-dir {plex.HOME}" in (unpacked / "DEBIAN/postinst").read_text()


def test_it_says_that_it_is_a_stand_in(unpacked: Path) -> None:
    assert "Description: stand-in for Plex Media Server" in (unpacked / "DEBIAN/control").read_text()
    assert "(stand-in, mediahost lab)" in (unpacked / "usr/lib/systemd/system" / plex.UNIT).read_text()


def test_its_scripts_and_programs_are_sound(unpacked: Path) -> None:
    for name in ("postinst", "prerm", "postrm"):
        subprocess.run(["sh", "-n", str(unpacked / "DEBIAN" / name)], check=True)
    program = unpacked / "usr/lib/plexmediaserver/Plex Media Server"
    done = subprocess.run([str(program)], env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "APPLICATION_SUPPORT_DIR is not set" in done.stderr


def test_its_versions_can_be_pinned_apart() -> None:
    older, newer = vendor.VERSIONS
    assert subprocess.run(["dpkg", "--compare-versions", older, "lt", newer], check=False).returncode == 0


def test_the_image_of_the_catalogue_is_the_same_program() -> None:
    entry = load_catalog()["plex"]
    (definition,) = [each for each in DEFINITIONS if each.repository == "lscr.io/linuxserver/plex"]
    assert definition.stand_in
    assert entry.image == f"{definition.repository}:{definition.tags[0]}"
    assert "opt/mediahost-lab/plex_server.py" in definition.files()
