"""The distribution's package sources: both formats are read; what is missing is added, under the same key."""

from __future__ import annotations

from mediahost.apt_sources import PATHS, additions, read

LIST, DEBIAN, UBUNTU = PATHS
NON_FREE = ("contrib", "non-free", "non-free-firmware")
DEB822 = """Types: deb deb-src
URIs: mirror+file:///etc/apt/mirrors/debian.list
Suites: bookworm bookworm-updates bookworm-backports
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

# a comment
Types: deb
URIs: http://deb.debian.org/debian-security
Suites: bookworm-security
Components: main non-free-firmware
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Enabled: no
Types: deb
URIs: http://example.org/debian
Suites: bookworm
Components: main
"""


def test_what_a_cloud_image_lacks_is_added_suite_by_suite_with_its_key() -> None:
    text = additions(read({DEBIAN: DEB822}, "bookworm"), NON_FREE)
    assert (
        text
        == """Types: deb
URIs: mirror+file:///etc/apt/mirrors/debian.list
Suites: bookworm
Components: contrib non-free non-free-firmware
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: mirror+file:///etc/apt/mirrors/debian.list
Suites: bookworm-updates
Components: contrib non-free non-free-firmware
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://deb.debian.org/debian-security
Suites: bookworm-security
Components: contrib non-free
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
"""
    )


def test_a_key_that_no_source_names_is_not_named_by_ours_either() -> None:
    """apt refuses one repository with two different keys, and none is different from one."""
    text = additions(read({LIST: "deb http://deb.debian.org/debian/ trixie main # rest\n"}, "trixie"), NON_FREE)
    assert "Signed-By" not in text
    assert "URIs: http://deb.debian.org/debian/\nSuites: trixie\n" in text
    signed = "deb [arch=amd64 signed-by=/k.gpg] http://deb.debian.org/debian trixie main\n"
    assert "Signed-By: /k.gpg\n" in additions(read({LIST: signed}, "trixie"), NON_FREE)


def test_a_host_that_has_every_component_gets_no_file() -> None:
    text = "deb http://archive.ubuntu.com/ubuntu noble main restricted\n"
    text += "deb http://archive.ubuntu.com/ubuntu noble universe multiverse\n"
    assert additions(read({LIST: text}, "noble"), ("multiverse", "restricted", "universe")) == ""


def test_sources_of_other_releases_and_of_vendors_are_left_alone() -> None:
    text = "deb http://example.org/apt stable main\ndeb http://deb.debian.org/debian sid main\n"
    text += "# deb http://deb.debian.org/debian trixie main\ndeb-src http://deb.debian.org/debian trixie main\n"
    assert read({LIST: text}, "trixie") == ()
    assert additions((), NON_FREE) == ""


def test_a_key_that_stands_in_the_file_itself_is_carried_over_whole() -> None:
    text = "Types: deb\nURIs: http://a.example/u\nSuites: noble\nComponents: main\n"
    text += "Signed-By:\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n mQ==\n -----END PGP PUBLIC KEY BLOCK-----\n"
    found = additions(read({UBUNTU: text}, "noble"), ("universe",))
    assert "Signed-By: \n -----BEGIN" in found
    assert found.endswith("-----END PGP PUBLIC KEY BLOCK-----\n")
