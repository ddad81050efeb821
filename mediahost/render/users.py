"""Administrators, the media account, and what they may do."""

from __future__ import annotations

from mediahost.config import Settings
from mediahost.resources import MARK, File, Group, User

SUDOERS_PATH = "/etc/sudoers.d/60-mediahost"


def groups(settings: Settings) -> tuple[Group, ...]:
    """The group that shares the media."""
    return (Group(settings.media_group, settings.media_gid),)


def users(settings: Settings) -> tuple[User, ...]:
    """The media account, then every administrator."""
    media = User(
        settings.media_user,
        uid=settings.media_uid,
        group=settings.media_group,
        shell="/usr/sbin/nologin",
    )
    admins = (
        User(name, groups=("sudo", settings.media_group), home=f"/home/{name}", authorized_keys=tuple(keys))
        for name, keys in sorted(settings.admins.items())
    )
    return (media, *admins)


def sudoers(settings: Settings) -> File | None:
    """Sudo for administrators; checked by visudo before it takes effect, since a bad file locks everybody out."""
    if not settings.admins:
        return None
    tag = "NOPASSWD: " if settings.admin_sudo_nopasswd else ""
    rules = "\n".join(f"{name} ALL=(ALL:ALL) {tag}ALL" for name in sorted(settings.admins))
    return File(SUDOERS_PATH, f"# {MARK}\n{rules}\n".encode(), mode="0440", check="/usr/sbin/visudo -cqf {}")
