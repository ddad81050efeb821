"""Administrators, the media account, and what they may do."""

from __future__ import annotations

from datetime import date

from mediahost.config import Settings
from mediahost.resources import MARK, File, Group, User

SUDOERS_PATH = "/etc/sudoers.d/60-mediahost"
_SUDO = "sudo"


def groups(settings: Settings) -> tuple[Group, ...]:
    """The group that shares the media, then those that administrators are to be in."""
    named = {group for admin in settings.administrators.values() for group in admin.groups}
    named -= {_SUDO, settings.media_group}
    return (Group(settings.media_group, settings.media_gid), *(Group(name) for name in sorted(named)))


def users(settings: Settings) -> tuple[User, ...]:
    """The media account, then every administrator."""
    media = User(
        settings.media_user,
        uid=settings.media_uid,
        group=settings.media_group,
        shell="/usr/sbin/nologin",
    )
    return (media, *admins(settings))


def admins(settings: Settings) -> tuple[User, ...]:
    """Every administrator. The home is where a new account gets it; an account that exists keeps its own."""
    return tuple(
        User(
            name,
            groups=tuple(
                dict.fromkeys(((_SUDO,) if admin.sudo else ()) + (settings.media_group, *admin.groups)),
            ),
            home=f"/home/{name}",
            authorized_keys=tuple(admin.keys),
            expires=(admin.expires - date(1970, 1, 1)).days if admin.expires else None,
        )
        for name, admin in settings.administrators.items()
    )


def sudoers(settings: Settings) -> File | None:
    """Sudo for administrators; checked by visudo before it takes effect, since a bad file locks everybody out."""
    names = [name for name, admin in settings.administrators.items() if admin.sudo]
    if not names:
        return None
    tag = "NOPASSWD: " if settings.admin_sudo_nopasswd else ""
    rules = "\n".join(f"{name} ALL=(ALL:ALL) {tag}ALL" for name in names)
    return File(SUDOERS_PATH, f"# {MARK}\n{rules}\n".encode(), mode="0440", check="/usr/sbin/visudo -cqf {}")
