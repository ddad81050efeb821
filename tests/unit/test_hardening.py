"""The hardening controls as values: what they say, what they must leave alone, and that they can be undone."""

from __future__ import annotations

import re
import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mediahost.config import ConfigError, Settings, read
from mediahost.controls import (
    BASE_CONTROLS,
    CONTROLS,
    IRREVERSIBLE_SYSCTLS,
    NAMES,
    OPTIONAL,
    OPTIONAL_NAMES,
    WAIVERS,
    Assignment,
    Insertion,
)
from mediahost.render import hardening, marked
from mediahost.resources import MARK
from tests.unit.test_config import KEY

ROOT = Path(__file__).resolve().parents[2]

LOGIN_DEFS = """# a comment about UMASK
UMASK\t\t022
#SHA_CRYPT_MIN_ROUNDS 5000
PASS_MIN_DAYS\t0
"""
SU = """#%PAM-1.0
auth       sufficient pam_rootok.so
# auth       required   pam_wheel.so
@include common-auth
"""


def text(path: str, settings: Settings | None = None) -> str:
    (found,) = [file for file in hardening.files(settings or Settings()) if file.path == path]
    return found.content.decode()


# --- the list of controls


def test_every_control_has_a_name_of_its_own_a_sentence_a_source_and_a_switch_that_exists() -> None:
    names = [control.name for control in (*CONTROLS, *BASE_CONTROLS)]
    assert len(names) == len(set(names))
    for control in CONTROLS:
        assert control.does, control.name
        assert control.sources, control.name
        assert control.switch in Settings.model_fields, control.name
        assert bool(control.price) == (control.switch == OPTIONAL), control.name


def test_every_waiver_says_who_asks_and_why_it_is_left_out() -> None:
    for waiver in WAIVERS:
        assert waiver.sources, waiver.asks
        assert waiver.reason.endswith("."), waiver.asks


def test_the_table_in_the_docs_has_a_row_for_every_control_and_every_waiver() -> None:
    rows = [line for line in (ROOT / "docs" / "hardening.md").read_text().splitlines() if line.startswith("| ")]
    for control in (*CONTROLS, *BASE_CONTROLS):
        assert any(row.startswith(f"| `{control.name}` |") for row in rows), control.name
    for waiver in WAIVERS:
        assert any(waiver.asks in row and waiver.reason in row for row in rows), waiver.asks
    for control in CONTROLS:
        if control.price:
            assert any(row.endswith(f"| {control.price} |") for row in rows), control.name
    assert {row.count("|") for row in rows} == {4, 5}, "tables of three and of four columns"


# --- what Docker, WireGuard and the media need


def test_nothing_that_docker_wireguard_or_usb_disks_need_is_switched_off() -> None:
    sysctls = hardening.sysctls(Settings(), "debian")
    for key in sysctls:
        assert "forward" not in key
        assert key not in ("kernel.modules_disabled", "user.max_user_namespaces", "net.ipv6.conf.all.disable_ipv6")
    assert sysctls["net.ipv4.conf.all.rp_filter"] == "2"
    modules = {
        line.split()[1]
        for control in hardening.controls(Settings())
        for file in control.files
        if file.path.startswith("/etc/modprobe.d/")
        for line in file.content.decode().splitlines()
        if line.startswith("install ")
    }
    needed = {"usb-storage", "udf", "squashfs", "overlay", "veth", "bridge", "br_netfilter", "wireguard", "tun"}
    assert "cramfs" in modules, "positive control: modules are read from the files"
    assert not modules & needed


def test_no_optional_control_touches_usb_disks_docker_or_the_modules_they_load() -> None:
    every = read("nas", {"hardening_optional": ["all"]})
    modules = text("/etc/modprobe.d/mediahost-disc-images.conf", every)
    assert [line for line in modules.splitlines() if line.startswith("install")] == ["install udf /bin/true"]
    assert hardening.sysctls(every, "debian") == hardening.sysctls(Settings(), "debian")
    assert hardening.modes(every) == hardening.modes(Settings())


def test_usb_disks_and_hubs_are_admitted_and_a_disk_that_types_is_not() -> None:
    every = read("nas", {"hardening_optional": ["usb-devices"]})
    path = "/etc/usbguard/rules.d/60-mediahost.conf"
    first, second = [line for line in text(path, every).splitlines() if not line.startswith("#")]
    # The first rule that fits decides.
    assert first.startswith("block with-interface one-of")
    assert {"02:*:*", "03:*:*", "0a:*:*", "e0:*:*"} <= set(first.split())
    assert second == "allow with-interface one-of { 08:*:* 09:*:* }"
    (rules,) = [file for file in hardening.files(every) if file.path == path]
    assert rules.mode == "0600", "the daemon refuses rules that others can read"


def test_where_the_kernel_has_no_usb_bus_its_guard_does_not_start() -> None:
    every = read("nas", {"hardening_optional": ["usb-devices"]})
    for unit in ("usbguard.service", "usbguard-dbus.service"):
        drop_in = text(f"/etc/systemd/system/{unit}.d/60-mediahost.conf", every)
        assert "\nConditionPathExists=/sys/bus/usb/devices\n" in drop_in


def test_nothing_restarts_by_itself_and_nothing_waits_for_an_answer_after_an_installation() -> None:
    every = read("nas", {"hardening_optional": ["stale-services", "package-news"]})
    restarts = text("/etc/needrestart/conf.d/60-mediahost.conf", every)
    assert restarts.splitlines()[-1] == "$nrconf{restart} = 'l';"
    news = marked.edited("[apt]\nfrontend=pager\nconfirm=true\n", hardening.edits(every)["/etc/apt/listchanges.conf"])
    assert {"frontend=text", "confirm=false", "email_address=none"} <= set(news.splitlines())


def test_the_control_that_ages_passwords_does_not_let_them_expire() -> None:
    """An account without a password whose password is expired cannot log in with its key."""
    keys = {
        edit.key for edits in hardening.edits(Settings()).values() for edit in edits if isinstance(edit, Assignment)
    }
    assert "PASS_MIN_DAYS" in keys
    assert "PASS_MAX_DAYS" not in keys


def test_ubuntu_keeps_its_stricter_level_of_perf() -> None:
    assert hardening.sysctls(Settings(), "debian")["kernel.perf_event_paranoid"] == "3"
    assert hardening.sysctls(Settings(), "ubuntu")["kernel.perf_event_paranoid"] == "4"


def test_the_kernel_settings_are_read_after_the_distributions_own() -> None:
    assert hardening.SYSCTL_PATH.rpartition("/")[2] > "99-protect-links.conf"


# --- switches


def test_the_whole_is_switched_off_with_one_key() -> None:
    off = Settings(hardening=False, file_integrity=True)
    assert hardening.controls(Settings())
    assert hardening.controls(off) == ()
    assert hardening.owned(off) == {}
    assert hardening.packages(off) == ()
    assert not any(hardening.edits(off).values())
    assert hardening.edits(off).keys() == hardening.edits(Settings()).keys(), "files to put back are still looked at"


@pytest.mark.parametrize("name", NAMES)
def test_each_control_is_switched_off_by_its_name(name: str) -> None:
    on = [control.name for control in hardening.controls(Settings())]
    off = [control.name for control in hardening.controls(read("nas", {"hardening_disabled": [name]}))]
    assert [each for each in on if each != name] == off
    assert name in on


def test_a_misspelt_control_is_told_with_the_name_that_was_meant() -> None:
    with pytest.raises(ConfigError, match="did you mean umask"):
        read("nas", {"hardening_disabled": ["umaks"]})


def test_what_costs_more_is_off_until_it_is_named() -> None:
    on = {control.name for control in hardening.controls(Settings())}
    assert OPTIONAL_NAMES
    assert not on & set(OPTIONAL_NAMES)
    for name in OPTIONAL_NAMES:
        named = {control.name for control in hardening.controls(read("nas", {"hardening_optional": [name]}))}
        assert named - on == {name}


def test_every_optional_control_is_meant_by_all_less_those_taken_out() -> None:
    def added(**keys: object) -> set[str]:
        on = hardening.controls(read("nas", {"hardening_optional": ["all"], **keys}))
        return {control.name for control in on} & set(OPTIONAL_NAMES)

    assert added() == set(OPTIONAL_NAMES)
    assert added(hardening_disabled=["usb-devices"]) == set(OPTIONAL_NAMES) - {"usb-devices"}
    assert added(hardening=False) == set()


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("usb-device", "did you mean usb-devices"),
        ("zzz", "choose from all, process-accounting"),
        ("umask", "on by default"),
    ],
)
def test_a_control_that_is_not_optional_is_refused_with_a_mend(value: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        read("nas", {"hardening_optional": [value]})


def test_debsums_reads_its_period_in_a_file_that_says_nothing_else_of_it() -> None:
    """Lynis takes every line with the key for its value, comments too."""
    (file,) = [file for file in hardening.replacements(Settings()) if file.path == "/etc/default/debsums"]
    assert [line for line in file.content.decode().splitlines() if "CRON_CHECK" in line] == ["CRON_CHECK=weekly"]
    assert hardening.edits(Settings())["/etc/default/debsums"] == [], "lines of an earlier version are taken out"


def test_aide_compares_strong_checksums_only() -> None:
    edits = hardening.edits(Settings(file_integrity=True))["/etc/aide/aide.conf"]
    stock = "Checksums = H\ndatabase_attrs = Checksums\nStaticFile = m+c+Checksums\n"
    lines = marked.edited(stock, edits).splitlines()
    assert "Checksums = sha256+sha512" in lines
    assert lines[2:] == stock.splitlines()[1:]
    assert hardening.edits(Settings())["/etc/aide/aide.conf"] == []


def test_audit_and_aide_have_keys_of_their_own() -> None:
    assert hardening.audit_file(Settings()) is not None
    assert hardening.audit_file(Settings(audit=False)) is None
    assert hardening.aide_file(Settings()) is None
    assert hardening.aide_file(Settings(file_integrity=True)) is not None
    assert "auditd" not in hardening.packages(Settings(audit=False))


def test_a_kernel_setting_of_the_users_own_is_left_to_the_user() -> None:
    key = "net.ipv4.conf.all.log_martians"
    assert key in hardening.sysctls(Settings(), "debian")
    for written in (key, key.replace(".", "/")):
        assert key not in hardening.sysctls(Settings(sysctl_extra={written: "0"}), "debian")


# --- files


def test_every_owned_file_carries_our_mark_or_is_named_after_us() -> None:
    settings = Settings(file_integrity=True, hardening_optional=["all"])
    for path in hardening.owned(settings):
        assert "mediahost" in path.rpartition("/")[2], path
    replaced = {file.path for file in hardening.replacements(settings)}
    made = [file for file in hardening.every_file(settings) if file.path not in replaced]
    assert {file.path for file in made} == set(hardening.owned(settings))
    for file in made:
        assert file.content.decode().startswith(f"# {MARK}\n"), file.path
        assert file.content.endswith(b"\n"), file.path


def test_the_banners_tell_nothing_of_the_system_and_warn_enough_for_lynis() -> None:
    banner = hardening.replacements(Settings())[0].content.decode()
    # BANN-7126 wants five of these.
    words = ("access", "authori", "connect", "consent", "log", "monitor", "private", "restricted", "system")
    assert sum(word in banner.lower() for word in words) >= 5
    # agetty expands \S, \r, \m and the like to names and versions.
    assert "\\" not in banner


def test_sudo_gives_root_the_usual_umask_where_sudo_knows_how() -> None:
    classic = hardening.sudo_file(Settings(), "debian", "13")
    rust = hardening.sudo_file(Settings(), "ubuntu", "26.04")
    assert classic is not None
    assert rust is not None
    assert b"umask_override" in classic.content
    assert b"umask" not in rust.content
    assert b"use_pty" in rust.content
    assert classic.check
    assert "visudo" in classic.check
    assert classic.mode == "0440"


@pytest.mark.parametrize(
    ("distribution", "version", "rust"),
    [("ubuntu", "24.04", False), ("ubuntu", "25.10", True), ("ubuntu", "26.04", True), ("debian", "13", False)],
)
def test_the_sudo_of_a_release_is_known(distribution: str, version: str, rust: bool) -> None:
    assert hardening.has_sudo_rs(distribution, version) is rust


# --- audit


def test_the_audit_rules_cover_ssh_sudo_identities_docker_and_our_own_state() -> None:
    rules = hardening.audit_file(read("nas", {"admins": {"me": [KEY]}}))
    assert rules is not None
    lines = rules.content.decode().splitlines()
    for watched in (
        "dir=/etc/ssh",
        "dir=/home/me/.ssh",
        "path=/etc/sudoers",
        "dir=/etc/sudoers.d",
        "path=/etc/shadow",
        "path=/usr/bin/dockerd",
        "dir=/etc/docker",
        "path=/run/docker.sock",
        "dir=/var/lib/mediahost",
        "path=/opt/media-server/compose.yaml",
    ):
        assert any(f"-F {watched} " in line for line in lines), watched


def test_each_audit_rule_has_a_form_that_auditctl_knows_and_a_key() -> None:
    rules = hardening.audit_file(Settings())
    assert rules is not None
    _, first, *lines = rules.content.decode().splitlines()
    assert first == "-i", "a path that is missing on a host must not end the loading"
    form = re.compile(
        r"-a always,exit (-F (dir|path)=/[^ ]*[^/ ] -F perm=wa|-F arch=b64 -S [a-z_,]+) -F key=mediahost-[a-z]+"
    )
    for line in lines:
        assert form.fullmatch(line), line
    assert not [line for line in lines if line.startswith("-e")], "locked rules would need a reboot for each change"


def test_what_containers_write_all_day_is_neither_audited_nor_compared() -> None:
    rules, aide = hardening.audit_file(Settings()), hardening.aide_file(Settings(file_integrity=True))
    assert rules is not None
    assert aide is not None
    for directory in ("/var/lib/docker", "/data"):
        assert f"={directory} " not in rules.content.decode()
        assert f"!{directory}" in aide.content.decode().splitlines()


# --- lines in the distribution's files


def edits_of(path: str) -> list[Assignment | Insertion]:
    return hardening.edits(Settings())[path]


def test_a_key_is_changed_where_it_stands_and_its_former_line_is_kept_above() -> None:
    new = marked.edited(LOGIN_DEFS, [Assignment("", "UMASK", "027", "\t\t")])
    assert new.splitlines()[1:3] == ["# mediahost set the next line, which was: UMASK\t\t022", "UMASK\t\t027"]
    assert new.splitlines()[0] == "# a comment about UMASK"


def test_a_key_that_is_only_commented_is_added_at_the_end() -> None:
    new = marked.edited(LOGIN_DEFS, [Assignment("", "SHA_CRYPT_MIN_ROUNDS", "65536", " ")])
    assert new == LOGIN_DEFS + "# mediahost added the next line\nSHA_CRYPT_MIN_ROUNDS 65536\n"


def test_a_key_that_is_already_right_gets_no_mark() -> None:
    assert marked.edited("UMASK\t\t027\n", [Assignment("", "UMASK", "027", "\t\t")]) == "UMASK\t\t027\n"


def test_a_key_that_only_begins_alike_is_another() -> None:
    edit = Assignment("", "IPT_SYSCTL", "")
    assert "IPT_SYSCTL_EXTRA=x\n" in marked.edited("IPT_SYSCTL_EXTRA=x\nIPT_SYSCTL=/etc/ufw/sysctl.conf\n", [edit])
    assert marked.edited("IPT_SYSCTL=/etc/ufw/sysctl.conf\n", [edit]).endswith("\nIPT_SYSCTL=\n")


def test_su_asks_for_the_group_after_root_was_let_through() -> None:
    new = marked.edited(SU, edits_of("/etc/pam.d/su")).splitlines()
    assert new.index("auth       sufficient pam_rootok.so") < new.index(
        "auth       required   pam_wheel.so use_uid group=sudo"
    )
    assert new.index("@include common-auth") == len(new) - 1


def test_a_pam_file_of_another_form_is_left_alone() -> None:
    assert marked.edited("auth include system-auth\n", edits_of("/etc/pam.d/su")) == "auth include system-auth\n"


LINE = st.text(string.ascii_letters + string.digits + " \t#=._", max_size=20)


@given(st.lists(LINE | st.sampled_from(["UMASK 022", "UMASK\t077", " UMASK 002", "auth sufficient pam_rootok.so"])))
def test_whatever_a_file_says_edits_are_stable_and_come_off_without_a_trace(lines: list[str]) -> None:
    before = "".join(f"{line}\n" for line in lines)
    edits: list[Assignment | Insertion] = [
        Assignment("", "UMASK", "027", "\t\t"),
        Assignment("", "ROUNDS", "1", " "),
        Insertion("", r"auth\s+sufficient\s+pam_rootok\.so", "auth required pam_wheel.so"),
    ]
    after = marked.edited(before, edits)
    assert "UMASK\t\t027" in after.splitlines()
    assert marked.edited(after, edits) == after
    assert marked.edited(after, []) == before
    assert marked.restored(after) == before


def test_an_edit_of_somebody_elsewhere_in_the_file_survives_the_undoing() -> None:
    after = marked.edited(LOGIN_DEFS, [Assignment("", "UMASK", "027", "\t\t")])
    changed = after.replace("PASS_MIN_DAYS\t0", "PASS_MIN_DAYS\t3")
    assert marked.edited(changed, []) == LOGIN_DEFS.replace("PASS_MIN_DAYS\t0", "PASS_MIN_DAYS\t3")


def test_what_the_kernel_does_not_take_back_is_one_of_our_settings() -> None:
    assert set(hardening.sysctls(Settings(), "debian")) >= IRREVERSIBLE_SYSCTLS
