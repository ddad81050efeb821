"""Stage users: the media group and account, administrators with their keys and sudo.

Accounts that exist are completed, never rebuilt; keys that are not ours are kept and reported.
"""

from __future__ import annotations

import shlex

from pyinfra.api import deploy, operation

from facts.snapshot import Request, Snapshot
from mediahost.config import Settings
from mediahost.render import users as wanted
from mediahost.resources import File, Group, User
from operations import files, report
from operations.convergence import Step, converge

_KEYS_BEGIN = "# BEGIN mediahost"
_KEYS_END = "# END mediahost"


def keys_path(user: User) -> str:
    """Where a user's keys are, for accounts that we make."""
    return f"{user.home}/.ssh/authorized_keys"


def request(settings: Settings) -> Request:
    """What the snapshot must look at for this stage."""
    accounts = wanted.users(settings)
    sudoers = wanted.sudoers(settings)
    keys = frozenset(keys_path(user) for user in accounts if user.home)
    return Request(
        users=frozenset(user.name for user in accounts),
        groups=frozenset(name for user in accounts for name in (*user.groups, settings.media_group, user.name)),
        contents=keys,
        paths=keys,
    ) | files.request((sudoers,) if sudoers else ())


def group_steps(groups: tuple[Group, ...], seen: Snapshot) -> list[Step]:
    """Groups that are missing; one that exists under another id is refused, files would change hands."""
    steps = []
    for group in groups:
        present = seen.groups.get(group.name)
        if present is None:
            number = f"-g {group.gid} " if group.gid is not None else ""
            steps.append(Step(f"group {group.name}: missing", f"groupadd {number}{shlex.quote(group.name)}"))
        elif group.gid is not None and present != group.gid:
            steps.append(
                Step(
                    f"group {group.name}: has id {present}, wanted {group.gid}",
                    refusal=f"group {group.name} exists with id {present}; set media_gid = {present} to use it, or "
                    "choose another media_group",
                )
            )
    return steps


def user_steps(users: tuple[User, ...], seen: Snapshot) -> list[Step]:
    """Accounts that are missing or incomplete."""
    steps = []
    for user in users:
        name = shlex.quote(user.name)
        present = seen.users.get(user.name)
        if present is None:
            words = ["useradd", "--shell", user.shell]
            words += ["--uid", str(user.uid)] if user.uid is not None else []
            words += ["--gid", user.group] if user.group else ["--user-group"]
            words += ["--groups", ",".join(user.groups)] if user.groups else []
            words += (
                ["--create-home", "--home-dir", user.home] if user.home else ["--no-create-home", "--home-dir", "/"]
            )
            # An account without a password must still be able to log in with a key: "*", not the locked "!".
            command = f"{shlex.join([*words, user.name])}\nusermod -p '*' {name}"
            steps.append(Step(f"user {user.name}: missing", command))
            continue
        if user.uid is not None and present.uid != user.uid:
            steps.append(
                Step(
                    f"user {user.name}: has id {present.uid}, wanted {user.uid}",
                    refusal=f"user {user.name} exists with id {present.uid}; set media_uid to it to use it, "
                    "or choose another media_user",
                )
            )
            continue
        for group in user.groups:
            if group not in present.groups:
                steps.append(
                    Step(f"user {user.name}: not in group {group}", f"usermod -aG {shlex.quote(group)} {name}")
                )
        if present.shell != user.shell and user.home is None:
            steps.append(
                Step(f"user {user.name}: shell is {present.shell}", f"usermod -s {shlex.quote(user.shell)} {name}")
            )
    return steps


def keys_file(user: User, present: str | None) -> File:
    """authorized_keys with our block in it and every other line kept."""
    kept = _foreign_lines(present or "", user.authorized_keys)
    lines = [*kept, _KEYS_BEGIN, *user.authorized_keys, _KEYS_END]
    content = "\n".join(lines) + "\n"
    return File(keys_path(user), content.encode(), owner=user.name, group=user.name, mode="0600")


def _foreign_lines(present: str, ours: tuple[str, ...]) -> list[str]:
    lines, inside = [], False
    for line in present.splitlines():
        if line == _KEYS_BEGIN:
            inside = True
        elif line == _KEYS_END:
            inside = False
        elif not inside and line not in ours:
            lines.append(line)
    return lines


def keys_steps(users: tuple[User, ...], seen: Snapshot) -> list[Step]:
    """Keys of administrators that are missing from their files, or were taken back."""
    steps = []
    for user in users:
        if not user.home or user.name not in seen.users:
            continue
        path = keys_path(user)
        present = seen.contents.get(path)
        directory = f"install -d -m 0700 -o {user.name} -g {user.name} {shlex.quote(path.rpartition('/')[0])}"
        for step in files.steps((keys_file(user, present),), seen):
            steps.append(Step(step.change, f"{directory}\n{step.command}", stdin=step.stdin, refusal=step.refusal))
    return steps


def steps(settings: Settings, seen: Snapshot) -> list[Step]:
    """Everything this stage would still do."""
    accounts = wanted.users(settings)
    sudoers = wanted.sudoers(settings)
    return [
        *files.steps((sudoers,) if sudoers else (), seen),
        *group_steps(wanted.groups(settings), seen),
        *user_steps(accounts, seen),
        *keys_steps(accounts, seen),
    ]


def foreign_keys(users: tuple[User, ...], seen: Snapshot) -> list[str]:
    """What to tell of key lines that somebody else put there."""
    told = []
    for user in users:
        present = seen.contents.get(keys_path(user), "") if user.home else ""
        lines = [line for line in _foreign_lines(present, user.authorized_keys) if line.strip(" #")]
        if lines:
            told.append(f"{keys_path(user)}: {len(lines)} line(s) that are not ours are kept")
    return told


@operation()
def accounts(groups: tuple[Group, ...], users: tuple[User, ...]):  # type: ignore[no-untyped-def]
    """
    Groups and users that exist, with their memberships.

    + groups: made first
    + users: made or completed
    """
    yield from converge(lambda seen: group_steps(groups, seen) + user_steps(users, seen))


@operation()
def authorized_keys(users: tuple[User, ...]):  # type: ignore[no-untyped-def]
    """
    Keys with which users log in.

    + users: those with a home
    """

    def missing(seen: Snapshot) -> list[Step]:
        for told in foreign_keys(users, seen):
            report.notice(told)
        return keys_steps(users, seen)

    yield from converge(missing)


@deploy("users")
def provision(settings: Settings) -> None:
    """The whole stage, in order: sudo first, so that no administrator stands there without it."""
    sudoers = wanted.sudoers(settings)
    if sudoers:
        files.managed(name="sudo policy", files=[sudoers])
    accounts(name="accounts", groups=wanted.groups(settings), users=wanted.users(settings))
    authorized_keys(name="keys", users=wanted.users(settings))
