"""What a host can be asked to have: files, directories, packages, units, users, rules, containers.

Values only. `mediahost` builds them from the configuration, `facts` reads their counterparts from a host and
`operations` compares the two. A resource never knows how it is made.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

MARK = "Managed by mediahost"
"""Stands in every file we own. A file without it at one of our paths was put there by somebody else."""


@dataclass(frozen=True)
class File:
    """A regular file.

    `owner` and `group` are names or decimal ids. `mode` is octal digits as text ("0644").
    `secret` content is never shown in a plan. `once` files are seeds: written when absent, then left to the
    application that owns them. `check` is a shell command that validates the new content before it replaces
    the old one; `{}` stands for the path of the new file.
    """

    path: str
    content: bytes = field(repr=False)
    owner: str = "root"
    group: str = "root"
    mode: str = "0644"
    secret: bool = False
    once: bool = False
    check: str | None = None

    @property
    def sha256(self) -> str:
        """Hex digest of the content."""
        return hashlib.sha256(self.content).hexdigest()


def text_file(path: str, *lines: str, mode: str = "0644", check: str | None = None, comment: str = "#") -> File:
    """A file of ours: the mark after `comment`, then the lines."""
    return File(path, "\n".join((f"{comment} {MARK}", *lines, "")).encode(), mode=mode, check=check)


@dataclass(frozen=True)
class Directory:
    """A directory; the same notation of owner, group and mode as `File` ("2775" is setgid).

    `default_acl` holds the entries of its default ACL, joined by commas: empty for none (ours is removed, somebody
    else's stays), None for whatever is there.
    """

    path: str
    owner: str = "root"
    group: str = "root"
    mode: str = "0755"
    default_acl: str | None = None


@dataclass(frozen=True)
class Group:
    """A local group. `gid` None lets the host choose."""

    name: str
    gid: int | None = None


@dataclass(frozen=True)
class User:
    """A local user and its supplementary `groups`. `home` None means a system account without a home.

    `expires` is the day the account closes, in days since 1970 as shadow(5) counts them; None for never.
    """

    name: str
    uid: int | None = None
    group: str | None = None
    groups: tuple[str, ...] = ()
    shell: str = "/bin/bash"
    home: str | None = None
    authorized_keys: tuple[str, ...] = ()
    expires: int | None = None


@dataclass(frozen=True)
class FirewallRule:
    """One UFW rule for traffic to this host, or from it when `direction` is "out".

    `source` is a CIDR or "any", and of an outgoing rule the destination; `protocol` "tcp", "udp" or "any"; `port`
    "22", a list "80,443", a range "6881:6889" or "any".
    """

    port: str
    protocol: str
    source: str = "any"
    action: str = "allow"
    comment: str = ""
    direction: str = "in"


@dataclass(frozen=True)
class Container:
    """A compose service as it should run. `digest` is the value of the `mediahost.hash` label.

    `networks` are the engine's names of the networks it is in; empty where it shares the network namespace of the
    service `network_of`.
    """

    service: str
    image: str
    digest: str
    networks: tuple[str, ...] = ()
    network_of: str = ""
