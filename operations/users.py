"""Stage users: the media group and account, administrators with their keys, groups, expiry and sudo.

Accounts that exist are completed, never rebuilt; keys that are not ours are kept and reported. Who was an
administrator and is not any more loses login, keys and what groups we gave; the account and its files stay. Whom
we gave what is remembered on the host, since the settings do not tell the past.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence

from pyinfra.api import deploy, operation

from facts.snapshot import STATE_DIRECTORY, Request, Snapshot, UserState
from mediahost.config import Settings
from mediahost.render import users as wanted
from mediahost.resources import File, Group, User
from operations import files, report
from operations.convergence import Commands, Step, converge
from operations.guard import Guard

RECORD = f"{STATE_DIRECTORY}/admins"
REMOVED_SUFFIX = ".removed-by-mediahost"

_KEYS_BEGIN = "# BEGIN mediahost"
_KEYS_END = "# END mediahost"
# The collector looks into no other home.
_HOME = re.compile(r"/[A-Za-z0-9/._+@-]*[A-Za-z0-9._+@-]")
# usermod(8): the first day of all, so that the account is closed; an empty date would mean never.
_CLOSED = "1"
# What useradd, usermod, groupadd and gpasswd write.
_ACCOUNT_FILES = ("/etc/passwd", "/etc/shadow", "/etc/group", "/etc/gshadow")


def keys_path(user: User, account: UserState | None = None) -> str:
    """Where a user's keys are: in the home that passwd names, or that a new account gets."""
    return _keys_below(account.home if account else str(user.home))


def _keys_below(home: str) -> str:
    return f"{home}/.ssh/authorized_keys"


def request(settings: Settings) -> Request:
    """What the snapshot must look at for this stage."""
    accounts = wanted.users(settings)
    sudoers = wanted.sudoers(settings)
    return Request(
        users=frozenset(user.name for user in accounts),
        groups=frozenset(name for user in accounts for name in (*user.groups, settings.media_group, user.name)),
        key_users=frozenset(user.name for user in accounts if user.home),
    ) | files.request((sudoers,) if sudoers else ())


def login_steps(users: Sequence[User], seen: Snapshot) -> list[Step]:
    """A refusal when the account that this run logged in as is to be taken away from it."""
    name = seen.ssh_user
    if name not in seen.admins or name in {user.name for user in users if user.home}:
        return []
    return [
        Step(
            f"user {name}: is to be removed, and this run logged in as {name}",
            refusal=f"this run logged in as {name}, who is not in `admins` any more: it would lock itself out. "
            f"Log in as another administrator (ssh_user), or put {name} back",
        )
    ]


def group_steps(groups: Sequence[Group], seen: Snapshot) -> list[Step]:
    """Groups that are missing; one that exists under another id is refused, files would change hands."""
    steps = []
    for group in groups:
        present = seen.groups.get(group.name)
        if present is None:
            number = f"-g {group.gid} " if group.gid is not None else "--system "
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


def user_steps(users: Sequence[User], seen: Snapshot) -> list[Step]:
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
            if user.expires is not None:
                command += f"\nusermod -e {user.expires} {name}"
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
        if user.home is None:
            if present.shell != user.shell:
                steps.append(
                    Step(
                        f"user {user.name}: shell is {present.shell}", f"usermod -s {shlex.quote(user.shell)} {name}"
                    )
                )
        else:
            expires = "" if user.expires is None else str(user.expires)
            if present.expires != expires:
                change = f"user {user.name}: {_closes(present.expires)}, wanted: {_closes(expires)}"
                steps.append(Step(change, f"usermod -e '{expires}' {name}"))
    return steps


def _closes(expires: str) -> str:
    return f"account closes on day {expires} after 1970-01-01" if expires else "account does not expire"


def given(users: Sequence[User], seen: Snapshot) -> dict[str, frozenset[str]]:
    """Each administrator with the groups that we gave or are about to give, not those they had before us."""
    found = {}
    for user in users:
        present = seen.users.get(user.name)
        kept = seen.admins.get(user.name, frozenset()) & set(user.groups)
        found[user.name] = kept | {group for group in user.groups if present is None or group not in present.groups}
    return found


def _record(admins: Mapping[str, frozenset[str]]) -> tuple[str, str]:
    lines = (f"{name} {','.join(sorted(groups))}".rstrip() + "\n" for name, groups in sorted(admins.items()))
    return files.write((File(RECORD, "".join(lines).encode()),))


def entered_steps(users: Sequence[User], seen: Snapshot) -> list[Step]:
    """Remember whom we give what, before it is given: a run that dies leaves no rights that nobody takes back."""
    ours = given(users, seen)
    merged = {name: seen.admins.get(name, frozenset()) | groups for name, groups in ours.items()}
    new = [name for name, groups in merged.items() if seen.admins.get(name) != groups]
    if not new:
        return []
    command, stdin = _record({**seen.admins, **merged})
    return [Step(f"administrators: {', '.join(new)} remembered", command, stdin=stdin)]


def removed_steps(users: Sequence[User], seen: Snapshot) -> list[Step]:
    """Rights that an earlier run gave and the settings do not any more; then the record of them."""
    ours = given(users, seen)
    steps = []
    for name, groups in sorted(seen.admins.items()):
        present = seen.users.get(name)
        if present is None:
            continue
        # Login goes first: nobody should use what is left while the rest is taken.
        if name not in ours:
            steps += _closed(name, seen)
        steps += [
            Step(
                f"user {name}: in group {group}, which was given and is not wanted any more",
                f"gpasswd -d {name} {group}",
            )
            for group in sorted((groups - ours.get(name, frozenset())) & present.groups)
        ]
    if any(name not in ours or groups - ours[name] for name, groups in seen.admins.items()):
        command, stdin = _record(ours)
        steps.append(Step("administrators: the record of earlier ones is brought up to date", command, stdin=stdin))
    return steps


def _closed(name: str, seen: Snapshot) -> list[Step]:
    present = seen.users[name]
    steps = []
    if present.expires != _CLOSED:
        steps.append(
            Step(f"user {name}: is no administrator any more, the account is closed", f"usermod -e {_CLOSED} {name}")
        )
    path = _keys_below(present.home)
    if path in seen.paths:
        # By rename, so that keys which were not ours do not let them in either and can still be looked up.
        command = _as_user(name, f"mv -fT {shlex.quote(path)} {shlex.quote(path + REMOVED_SUFFIX)}")
        steps.append(Step(f"{path}: keys of a former administrator, kept as {path + REMOVED_SUFFIX}", command))
    return steps


def _as_user(name: str, command: str) -> str:
    """Root must not write in a directory that somebody else can turn into a link to another place."""
    return f"cd /\nrunuser -u {name} -- sh -euc {shlex.quote(command)}"


def keys_file(user: User, present: str | None, account: UserState | None = None) -> File:
    """authorized_keys with our block in it and every other line kept. `present` is its content now, if any."""
    kept = _foreign_lines(present or "", user.authorized_keys)
    lines = [*kept, _KEYS_BEGIN, *user.authorized_keys, _KEYS_END]
    content = "\n".join(lines) + "\n"
    group = str(account.gid) if account else user.name
    return File(keys_path(user, account), content.encode(), owner=user.name, group=group, mode="0600")


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


def keys_steps(users: Sequence[User], seen: Snapshot) -> list[Step]:
    """Keys of administrators that are missing from their files, were taken back, or that sshd would not read."""
    people = [user for user in users if user.home and user.name in seen.users]
    where = " ".join(seen.sshd.get("authorizedkeysfile", (".ssh/authorized_keys",))).split()
    if people and not {".ssh/authorized_keys", "%h/.ssh/authorized_keys"} & set(where):
        return [
            Step(
                f"sshd: reads keys from {' '.join(where)}",
                refusal=f"sshd reads keys from {' '.join(where)}, not from ~/.ssh/authorized_keys, so the keys of "
                "`admins` would do nothing. Remove that line (`grep -rn AuthorizedKeysFile /etc/ssh` finds it), then "
                "run again",
            )
        ]
    steps = []
    for user in people:
        account = seen.users[user.name]
        home = account.home
        if not _HOME.fullmatch(home):
            told = f"user {user.name}: home is {home}"
            mend = "keys cannot be kept there; give the account a home of its own without blanks (usermod -m -d)"
            steps.append(Step(told, refusal=f"{told}: {mend}"))
            continue
        steps += _home_steps(user.name, seen)
        file = keys_file(user, seen.contents.get(keys_path(user, account)), account)
        for step in files.steps((file,), seen):
            if step.command:
                command = f"(umask 077; mkdir -p {_quoted(user.name, seen, '/.ssh')})\n{step.command}"
                command = f"{_home_there(user.name, seen)}\n{_as_user(user.name, command)}"
                step = Step(step.change, command, stdin=step.stdin)
            steps.append(step)
    return steps


def _quoted(name: str, seen: Snapshot, below: str = "") -> str:
    return shlex.quote(seen.users[name].home + below)


def _home_there(name: str, seen: Snapshot) -> str:
    home = _quoted(name, seen)
    return f"[ -e {home} ] || install -d -m 0750 -o {name} -g {seen.users[name].gid} {home}"


def _home_steps(name: str, seen: Snapshot) -> list[Step]:
    """Owner and mode with which sshd reads keys at all (StrictModes in sshd_config(5))."""
    account = seen.users[name]
    steps = []
    # sshd takes a home of root's as well; .ssh must be the account's own, keys are written there in its name.
    for path, owners in ((account.home, {str(account.uid), "0"}), (f"{account.home}/.ssh", {str(account.uid)})):
        present = seen.paths.get(path)
        if present is None:
            continue
        if present.kind != "directory":
            told = f"{path}: is a {present.kind}, not a directory"
            steps.append(Step(told, refusal=f"{told}: keys are not written through it. Make it one, then run again"))
            continue
        if present.uid not in owners:
            command = f"chown -h {name}:{account.gid} {shlex.quote(path)}"
            steps.append(Step(f"{path}: owner is {present.owner}, sshd would not read keys there", command))
        if int(present.mode, 8) & 0o022:
            change = f"{path}: mode is {present.mode.zfill(4)}, sshd does not read keys where others can write"
            command = f"chmod go-w {shlex.quote(path)}"
            steps.append(Step(change, command if path == account.home else _as_user(name, command)))
    return steps


def steps(settings: Settings, seen: Snapshot) -> list[Step]:
    """Everything this stage would still do."""
    accounts = wanted.users(settings)
    admins = wanted.admins(settings)
    sudoers = wanted.sudoers(settings)
    return [
        *login_steps(accounts, seen),
        *files.steps((sudoers,) if sudoers else (), seen),
        *group_steps(wanted.groups(settings), seen),
        *entered_steps(admins, seen),
        *user_steps(accounts, seen),
        *keys_steps(accounts, seen),
        *removed_steps(admins, seen),
    ]


def notices(users: Sequence[User], seen: Snapshot) -> list[str]:
    """What to tell of key lines that somebody else put there, and of former administrators who are still here."""
    told = []
    for user in users:
        if not user.home or user.name not in seen.users:
            continue
        path = keys_path(user, seen.users[user.name])
        lines = _foreign_keys(seen.contents.get(path, ""), user.authorized_keys)
        if lines:
            told.append(f"{path}: {len(lines)} line(s) that are not ours are kept")
    for name in sorted(set(seen.admins) - {user.name for user in users}):
        if name not in seen.users:
            continue
        path = _keys_below(seen.users[name].home)
        lines = _foreign_keys(seen.contents.get(path, ""), ())
        if lines:
            told.append(f"{path}: {len(lines)} line(s) that were not ours go out of use with the others")
        count = seen.users[name].sessions
        if count:
            told.append(
                f"user {name}: {count} session(s) of this former administrator go on; "
                f"end them with: loginctl terminate-user {name}"
            )
    return told


def _foreign_keys(present: str, ours: tuple[str, ...]) -> list[str]:
    return [line for line in _foreign_lines(present, ours) if line.strip(" #")]


@operation()
def login_kept(settings: Settings) -> Commands:
    """
    The account that this run logged in as is not one that the run removes.

    + settings: the host's settings
    """
    yield from converge(lambda seen: login_steps(wanted.users(settings), seen))


@operation()
def accounts(groups: tuple[Group, ...], users: tuple[User, ...]) -> Commands:
    """
    Groups and users that exist, with their memberships and expiry.

    + groups: made first
    + users: made or completed
    """
    admins = tuple(user for user in users if user.home)
    yield from converge(
        lambda seen: [*group_steps(groups, seen), *entered_steps(admins, seen), *user_steps(users, seen)],
        Guard(_ACCOUNT_FILES),
    )


@operation()
def authorized_keys(users: tuple[User, ...]) -> Commands:
    """
    Keys with which users log in.

    + users: those with a home
    """

    def missing(seen: Snapshot) -> list[Step]:
        for each in notices(users, seen):
            report.notice(each)
        return keys_steps(users, seen)

    yield from converge(missing, lambda seen: Guard(_key_paths(users, seen)))


@operation()
def former(users: tuple[User, ...]) -> Commands:
    """
    Former administrators, without login, keys and the groups they were given. Their files stay.

    + users: the administrators that are wanted
    """
    yield from converge(
        lambda seen: removed_steps(users, seen),
        lambda seen: Guard((*_ACCOUNT_FILES, RECORD, *_key_paths(users, seen))),
    )


def _key_paths(users: Sequence[User], seen: Snapshot) -> tuple[str, ...]:
    """The files of keys that may change, in homes that only the host knows."""
    names = {user.name for user in users if user.home} | set(seen.admins)
    # An account that does not exist yet gets its home where it is wanted.
    paths = {keys_path(user) for user in users if user.home and user.name not in seen.users}
    paths |= {_keys_below(seen.users[name].home) for name in names if name in seen.users}
    return tuple(sorted(paths | {path + REMOVED_SUFFIX for path in paths}))


@deploy("users")
def provision(settings: Settings) -> None:
    """The whole stage, in order: sudo first, so that no administrator stands there without it."""
    sudoers = wanted.sudoers(settings)
    if sudoers:
        files.managed(name="sudo policy", files=[sudoers], guard=Guard((wanted.SUDOERS_PATH,)))
    accounts(name="accounts", groups=wanted.groups(settings), users=wanted.users(settings))
    authorized_keys(name="keys", users=wanted.users(settings))
    former(name="former administrators", users=wanted.admins(settings))
