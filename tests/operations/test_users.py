"""Accounts, keys, groups, expiry and sudo: who gets them, who loses them, and whom a run can never remove."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from facts.snapshot import PathState, Snapshot, UserState
from mediahost.config import Settings, read
from mediahost.render import users as wanted
from mediahost.resources import Group, User
from operations import users
from tests.operations.test_steps import as_present, commands, refusal, sound, told
from tests.unit.test_config import KEY

ME = User("me", groups=("sudo", "media"), home="/home/me", authorized_keys=(KEY,))
MEDIA = User("media", uid=13000, group="media", shell="/usr/sbin/nologin")


def account(**changes: Any) -> UserState:
    return replace(UserState(1000, 1000, "/home/me", "/bin/bash", frozenset({"me", "sudo", "media"})), **changes)


def test_complete_accounts_are_no_step() -> None:
    seen = Snapshot(
        users={"me": account(), "media": UserState(13000, 13000, "/", "/usr/sbin/nologin", frozenset({"media"}))},
        groups={"media": 13000},
    )
    assert users.group_steps((Group("media", 13000),), seen) == []
    assert users.user_steps((MEDIA, ME), seen) == []


def test_a_missing_group_is_made_with_its_id() -> None:
    (step,) = users.group_steps((Group("media", 13000),), Snapshot())
    assert (step.change, step.command) == ("group media: missing", "groupadd -g 13000 media")


def test_a_group_or_user_under_another_id_is_refused_for_files_would_change_hands() -> None:
    steps = users.group_steps((Group("media", 13000),), Snapshot(groups={"media": 1001}))
    assert told(steps) == ["group media: has id 1001, wanted 13000"]
    assert "set media_gid = 1001 to use it" in refusal(steps)
    steps = users.user_steps((MEDIA,), Snapshot(users={"media": account(uid=1001)}))
    assert told(steps) == ["user media: has id 1001, wanted 13000"]
    assert "set media_uid" in refusal(steps)


def test_a_missing_administrator_is_made_able_to_log_in_with_a_key_only() -> None:
    (step,) = users.user_steps((ME,), Snapshot())
    assert step.change == "user me: missing"
    assert step.command.splitlines() == [
        "useradd --shell /bin/bash --user-group --groups sudo,media --create-home --home-dir /home/me me",
        "usermod -p '*' me",
    ]


def test_a_missing_membership_and_a_login_shell_of_a_system_account_are_mended() -> None:
    steps = users.user_steps((ME,), Snapshot(users={"me": account(groups=frozenset({"me"}))}))
    assert told(steps) == ["user me: not in group sudo", "user me: not in group media"]
    steps = users.user_steps((MEDIA,), Snapshot(users={"media": account(uid=13000)}))
    assert told(steps) == ["user media: shell is /bin/bash"]


def test_a_person_keeps_the_shell_they_chose() -> None:
    assert users.user_steps((ME,), Snapshot(users={"me": account(shell="/usr/bin/fish")})) == []


def test_keys_are_complete_after_the_first_time_and_others_keys_are_kept_and_told() -> None:
    path = "/home/me/.ssh/authorized_keys"
    first = users.keys_file(ME, "ssh-ed25519 AAAA foreign\n# BEGIN mediahost\nold key\n# END mediahost\n", account())
    text = first.content.decode()
    assert text.splitlines() == ["ssh-ed25519 AAAA foreign", "# BEGIN mediahost", KEY, "# END mediahost"]
    assert (first.owner, first.mode) == ("me", "0600")
    seen = Snapshot(users={"me": account()}, contents={path: text}, paths=as_present(first))
    assert users.keys_steps((ME,), seen) == []
    assert users.notices((ME,), seen) == [f"{path}: 1 line(s) that are not ours are kept"]
    assert users.notices((ME,), replace(seen, contents={path: users.keys_file(ME, None).content.decode()})) == []


def test_a_key_that_was_taken_out_of_the_settings_leaves_the_file() -> None:
    before = users.keys_file(ME, None).content.decode()
    assert KEY in before
    assert KEY not in users.keys_file(replace(ME, authorized_keys=()), before).content.decode()


def test_missing_keys_are_written_in_the_name_of_their_owner_into_a_private_directory() -> None:
    """Root writing in a home could be led elsewhere by a link."""
    (step,) = users.keys_steps((ME,), Snapshot(users={"me": account()}))
    assert step.change == "/home/me/.ssh/authorized_keys: missing"
    assert "runuser -u me -- sh -euc" in step.command
    assert "umask 077; mkdir -p /home/me/.ssh" in step.command
    sound([step])


def test_keys_go_where_passwd_says_that_home_is() -> None:
    (step,) = users.keys_steps((ME,), Snapshot(users={"me": account(home="/srv/people/me")}))
    assert step.change == "/srv/people/me/.ssh/authorized_keys: missing"
    assert "/home/me" not in step.command


def test_a_home_that_cannot_be_looked_into_is_refused() -> None:
    steps = users.keys_steps((ME,), Snapshot(users={"me": account(home="/srv/my home")}))
    assert "without blanks" in refusal(steps)


@pytest.mark.parametrize(
    ("where", "fine"),
    [
        (".ssh/authorized_keys .ssh/authorized_keys2", True),
        ("%h/.ssh/authorized_keys", True),
        ("/etc/ssh/keys/%u", False),
        ("none", False),
    ],
)
def test_keys_that_sshd_would_not_read_are_refused(where: str, fine: bool) -> None:
    steps = users.keys_steps((ME,), Snapshot(users={"me": account()}, sshd={"authorizedkeysfile": (where,)}))
    assert bool([step for step in steps if step.refusal]) is not fine
    assert fine or "AuthorizedKeysFile" in refusal(steps)


def place(mode: str = "755", uid: str = "1000", kind: str = "directory") -> PathState:
    return PathState(kind, mode, uid, uid, "me" if uid == "1000" else "other", "me")


@pytest.mark.parametrize(
    ("home", "ssh", "change"),
    [
        (place("775"), place("700"), "/home/me: mode is 0775, sshd does not read keys where others can write"),
        (place("757"), place("700"), "/home/me: mode is 0757, sshd does not read keys where others can write"),
        (place(), place("720"), "/home/me/.ssh: mode is 0720, sshd does not read keys where others can write"),
        (place(), place("700", uid="0"), "/home/me/.ssh: owner is other, sshd would not read keys there"),
        (place(uid="7"), place("700"), "/home/me: owner is other, sshd would not read keys there"),
    ],
)
def test_owners_and_modes_with_which_sshd_ignores_keys_are_mended(
    home: PathState, ssh: PathState, change: str
) -> None:
    file = users.keys_file(ME, None, account())
    seen = Snapshot(
        users={"me": account()},
        contents={file.path: file.content.decode()},
        paths={**as_present(file), "/home/me": home, "/home/me/.ssh": ssh},
    )
    steps = users.keys_steps((ME,), seen)
    assert told(steps) == [change]
    sound(steps)
    right = {**seen.paths, "/home/me": place(uid="0"), "/home/me/.ssh": place("700")}
    assert users.keys_steps((ME,), replace(seen, paths=right)) == []


def test_a_link_in_the_place_of_the_directory_of_keys_is_refused() -> None:
    seen = Snapshot(users={"me": account()}, paths={"/home/me/.ssh": place("777", kind="link")})
    assert "is a link, not a directory" in refusal(users.keys_steps((ME,), seen))


# --- expiry


@pytest.mark.parametrize(
    ("present", "expires", "command"),
    [
        ("", 20849, "usermod -e '20849' me"),
        ("20000", 20849, "usermod -e '20849' me"),
        ("20849", None, "usermod -e '' me"),
        ("1", None, "usermod -e '' me"),
    ],
)
def test_an_account_closes_on_its_day_and_not_before(present: str, expires: int | None, command: str) -> None:
    user = replace(ME, expires=expires)
    assert commands(users.user_steps((user,), Snapshot(users={"me": account(expires=present)}))) == command
    right = "" if expires is None else str(expires)
    assert users.user_steps((user,), Snapshot(users={"me": account(expires=right)})) == []


def test_a_new_account_gets_its_day_at_once() -> None:
    assert commands(users.user_steps((replace(ME, expires=20849),), Snapshot())).endswith("usermod -e 20849 me")


# --- groups that are given, and taken back


def written(steps: list[Any]) -> list[str]:
    """The last record that the steps write."""
    (*_, stdin) = [step.stdin for step in steps if step.stdin and users.RECORD in step.command]
    return base64.b64decode(stdin.replace(".", "")).decode().splitlines()


def test_what_is_given_is_remembered_before_it_is_given_and_what_was_there_is_not_ours() -> None:
    seen = Snapshot(users={"me": account(groups=frozenset({"me", "sudo"}))})
    steps = users.entered_steps((ME,), seen)
    assert written(steps) == ["me media"]
    after = replace(seen, users={"me": account()}, admins={"me": frozenset({"media"})})
    assert users.entered_steps((ME,), after) == []
    assert users.removed_steps((ME,), after) == []


def test_a_group_that_is_not_wanted_any_more_is_taken_back_only_if_we_gave_it() -> None:
    user = replace(ME, groups=("media",))
    seen = Snapshot(users={"me": account()}, admins={"me": frozenset({"media", "sudo"})})
    steps = users.removed_steps((user,), seen)
    assert told(steps)[0] == "user me: in group sudo, which was given and is not wanted any more"
    assert steps[0].command == "gpasswd -d me sudo"
    assert written(steps) == ["me media"]
    assert users.removed_steps((user,), replace(seen, admins={"me": frozenset({"media"})})) == []


def test_a_group_that_somebody_else_took_leaves_the_record() -> None:
    seen = Snapshot(
        users={"me": account(groups=frozenset({"me", "media"}))}, admins={"me": frozenset({"media", "x"})}
    )
    steps = users.removed_steps((replace(ME, groups=("media",)),), seen)
    assert told(steps) == ["administrators: the record of earlier ones is brought up to date"]


# --- former administrators


def formerly(**changes: Any) -> Snapshot:
    """A host on which `me` was an administrator and `zoe` runs the show."""
    zoe = UserState(1001, 1001, "/home/zoe", "/bin/bash", frozenset({"zoe", "sudo", "media"}))
    path = "/home/me/.ssh/authorized_keys"
    contents: Mapping[str, str] = {path: f"foreign\n# BEGIN mediahost\n{KEY}\n# END mediahost\n"}
    found = Snapshot(
        users={"me": account(), "zoe": zoe},
        admins={"me": frozenset({"sudo", "media"}), "zoe": frozenset({"sudo"})},
        contents=dict(contents),
        paths={path: PathState("file", "600", "1000", "1000", "me", "me", "x")},
        ssh_user="zoe",
    )
    return replace(found, **changes)


ZOE = User("zoe", groups=("sudo", "media"), home="/home/zoe")


def test_a_removed_administrator_loses_login_first_then_keys_and_groups_and_no_file() -> None:
    steps = users.removed_steps((ZOE,), formerly())
    assert told(steps) == [
        "user me: is no administrator any more, the account is closed",
        "/home/me/.ssh/authorized_keys: keys of a former administrator, kept as "
        "/home/me/.ssh/authorized_keys.removed-by-mediahost",
        "user me: in group media, which was given and is not wanted any more",
        "user me: in group sudo, which was given and is not wanted any more",
        "administrators: the record of earlier ones is brought up to date",
    ]
    assert steps[0].command == "usermod -e 1 me"
    assert written(steps) == ["zoe sudo"]
    assert "userdel" not in commands(steps)
    assert "rm -r" not in commands(steps)
    sound(steps)


def test_when_all_of_it_is_gone_nothing_is_left_to_do() -> None:
    done = formerly(
        users={"zoe": formerly().users["zoe"], "me": account(expires="1", groups=frozenset({"me"}))},
        admins={"zoe": frozenset({"sudo"})},
        paths={},
    )
    assert users.removed_steps((ZOE,), done) == []
    assert users.removed_steps((ZOE,), formerly()) != []


def test_an_account_that_is_gone_altogether_only_leaves_the_record() -> None:
    steps = users.removed_steps((ZOE,), formerly(users={"zoe": formerly().users["zoe"]}))
    assert told(steps) == ["administrators: the record of earlier ones is brought up to date"]


def test_somebody_who_returns_is_let_in_again() -> None:
    seen = Snapshot(users={"me": account(expires="1", groups=frozenset({"me"}))})
    assert "usermod -e '' me" in commands(users.user_steps((ME,), seen))
    assert users.keys_steps((ME,), seen)[0].change == "/home/me/.ssh/authorized_keys: missing"
    assert written(users.entered_steps((ME,), seen)) == ["me media,sudo"]


def test_sessions_and_foreign_keys_of_a_former_administrator_are_told() -> None:
    seen = formerly(users={**formerly().users, "me": account(sessions=2)})
    assert users.notices((ZOE,), seen) == [
        "/home/me/.ssh/authorized_keys: 1 line(s) that were not ours go out of use with the others",
        "user me: 2 session(s) of this former administrator go on; end them with: loginctl terminate-user me",
    ]


def test_the_account_that_the_run_logged_in_as_is_never_removed() -> None:
    told_ = refusal(users.login_steps((ZOE,), formerly(ssh_user="me")))
    assert told_.startswith("this run logged in as me")
    assert users.login_steps((ZOE,), formerly(ssh_user="zoe")) == []
    # never an administrator of ours: such as the image's own user on the first run
    assert users.login_steps((ZOE,), formerly(ssh_user="debian")) == []


# --- the settings


def test_the_long_form_says_groups_expiry_and_sudo() -> None:
    data = {
        "admins": {"ann": {"keys": [KEY], "groups": ["docker"], "expires": "2027-01-31", "sudo": False}, "me": [KEY]}
    }
    settings = read("nas", data)
    ann, me = wanted.admins(settings)
    assert (ann.groups, ann.expires, ann.authorized_keys) == (("media", "docker"), 20849, (KEY,))
    assert (me.groups, me.expires) == (("sudo", "media"), None)
    assert wanted.groups(settings) == (Group("media", 13000), Group("docker"))
    file = wanted.sudoers(settings)
    assert file is not None
    assert b"me ALL" in file.content
    assert b"ann" not in file.content


def test_nobody_with_sudo_means_no_sudo_policy() -> None:
    assert wanted.sudoers(read("nas", {"admins": {"ann": {"keys": [KEY], "sudo": False}}})) is None
    assert wanted.sudoers(Settings()) is None


def test_groups_of_administrators_are_made_as_system_groups() -> None:
    (step,) = users.group_steps((Group("docker"),), Snapshot())
    assert step.command == "groupadd --system docker"


def test_every_step_of_a_bare_host_is_sound_shell() -> None:
    settings = read("nas", {"admins": {"me": {"keys": [KEY], "expires": "2027-01-31"}}})
    sound(users.steps(settings, Snapshot()))
    sound(users.steps(settings, Snapshot(users={"me": account()})))
