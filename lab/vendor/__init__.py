"""The vendors whose apt repositories the lab stands in for: packages of their names, made of Debian's files.

A vendor's own archive is not reachable from a lab, yet the product's path through it (key, fingerprint, source,
pin, hold, removal of conflicting packages) must run for real. A package must never claim to be the vendor's
build: its description says what it is.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Package:
    """One binary package of a vendor.

    `contents` are the Debian packages whose files it holds; `units` are systemd units among them that are
    enabled and started; `group` is a system group to create, `user` a system user of that name and group with `home`;
    `files` replace or add conffiles (absolute path → text), `programs` are executable; `relations` are control fields
    such as Depends.
    """

    name: str
    version: str
    contents: tuple[str, ...]
    description: str
    relations: tuple[tuple[str, str], ...] = ()
    units: tuple[str, ...] = ()
    group: str = ""
    files: tuple[tuple[str, str], ...] = ()
    programs: tuple[tuple[str, str], ...] = ()
    user: str = ""
    home: str = ""


@dataclass(frozen=True)
class Vendor:
    """An apt repository: where it stands below the server's address, and what it says of itself.

    `key` is the name of the armored key file beside `dists`; a word in braces, {id}, becomes the last eight digits of
    its fingerprint in small letters. With suite "/" the repository is flat: packages and lists lie in one directory
    (sources.list(5)), and `key` is relative to that.
    """

    path: str
    key: str
    origin: str
    label: str
    suite: str
    component: str
    packages: tuple[Package, ...] = field(default=())
