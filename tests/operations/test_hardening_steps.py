"""Stage hardening: a host as wanted is no step, each drift is told, and what is switched off is given back."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from facts.snapshot import Os, PackageState, PathState, Snapshot, UnitState
from mediahost.config import Settings, read
from mediahost.controls import CONTROLS, IRREVERSIBLE_SYSCTLS
from mediahost.render import hardening as wanted
from mediahost.render import marked
from mediahost.resources import File
from operations import base, hardening
from operations.convergence import Step
from tests.unit.test_hardening import LOGIN_DEFS, SU

INSTALLED = PackageState("1.0", installed=True, held=False)
RUNNING = UnitState("loaded", "active", "running", "enabled", needs_daemon_reload=False)
OFF = Settings(hardening=False)

# What Debian 13 has, as far as the controls look at it.
STOCK_FILES = {
    "/etc/login.defs": LOGIN_DEFS,
    "/etc/pam.d/su": SU,
    "/etc/default/ufw": "IPV6=yes\nIPT_SYSCTL=/etc/ufw/sysctl.conf\n",
    "/etc/default/debsums": "CRON_CHECK=never\n",
    "/etc/aide/aide.conf": "Checksums = H\ndatabase_attrs = Checksums\n",
    "/etc/apt/listchanges.conf": "[apt]\nfrontend=pager\nwhich=both\nconfirm=false\n",
    "/etc/usbguard/usbguard-daemon.conf": "PresentDevicePolicy=apply-policy\nPresentControllerPolicy=keep\n",
    "/proc/mounts": "udev /dev devtmpfs rw,nosuid 0 0\ntmpfs /dev/shm tmpfs rw,nosuid,nodev 0 0\n",
    "/proc/cmdline": "root=/dev/sda1 ro\n",
    "/sys/kernel/security/lsm": "lockdown,capability,yama,apparmor\n",
}


def present(path: str, mode: str = "644", kind: str = "file", sha256: str = "") -> PathState:
    return PathState(kind, mode, "0", "0", "root", "root", sha256)


def stock() -> Snapshot:
    paths = {path: present(path) for path in STOCK_FILES}
    for control in CONTROLS:
        paths |= {path: present(path, "755", "directory") for path in control.modes}
        paths |= {file.path: present(file.path) for file in control.replacements}
    return Snapshot(
        paths=paths,
        contents=dict(STOCK_FILES),
        sysctls={key: "7" for control in CONTROLS for key in control.sysctls},
        units={"systemd-remount-fs.service": RUNNING},
    )


def hardened(settings: Settings | None = None, seen: Snapshot | None = None) -> Snapshot:
    """What `seen` is after a run, with the note of former values that such a run leaves."""
    settings, seen = settings or Settings(), seen or stock()
    made = [
        *hardening._drop_ins(settings, seen),
        *wanted.replacements(settings),
        *(file for file in (wanted.audit_file(settings), wanted.sudo_file(settings, "debian", "13")) if file),
    ]
    paths = {**seen.paths, **{file.path: as_present(file) for file in made}}
    paths |= {path: replace(paths[path], mode=mode.lstrip("0")) for path, mode in wanted.modes(settings).items()}
    paths |= {
        f"/var/lib/mediahost/former-files/{file.path.rpartition('/')[2]}": present("")
        for file in wanted.replacements(settings)
    }
    contents = {**seen.contents}
    contents |= {path: marked.edited(contents[path], edits) for path, edits in wanted.edits(settings).items()}
    mounts = {"/dev": {"nosuid"}, "/dev/shm": {"nosuid", "nodev"}, **wanted.mounts(settings)}
    contents["/proc/mounts"] = "".join(
        f"tmpfs {point} tmpfs rw,{','.join(sorted(options))} 0 0\n" for point, options in mounts.items()
    )
    contents[hardening.FORMER_PATH] = note(settings, seen)
    return replace(
        seen,
        paths=paths,
        contents=contents,
        sysctls={**seen.sysctls, **wanted.sysctls(settings, "debian")},
        packages=dict.fromkeys(wanted.packages(settings), INSTALLED),
        units=dict.fromkeys(
            ("systemd-remount-fs.service", "auditd.service", "apparmor.service", "dailyaidecheck.timer"), RUNNING
        ),
    )


def note(settings: Settings, seen: Snapshot) -> str:
    values = hardening._present(seen)
    keys = hardening._wanted_values(settings, seen)
    return "".join(f"{kind}\t{name}\t{values[kind, name]}\n" for kind, name in sorted(keys))


def as_present(file: File) -> PathState:
    return PathState("file", file.mode.lstrip("0"), "0", "0", file.owner, file.group, file.sha256)


def told(steps: Sequence[Step]) -> list[str]:
    return [step.change for step in steps]


def of(steps: Sequence[Step], words: str) -> Step:
    (found,) = [step for step in steps if words in step.change]
    return found


# --- a whole host


def test_a_hardened_host_is_no_step() -> None:
    assert told(hardening.steps(Settings(), hardened())) == []
    assert hardening.watch_steps(Settings(), hardened()) == []


def test_a_stock_host_misses_something_of_every_control() -> None:
    changes = "\n".join(told(hardening.steps(Settings(), stock())))
    for words in (
        "package auditd: not installed",
        "/etc/sysctl.d/zz-mediahost-hardening.conf: missing",
        "/etc/sudoers.d/60-mediahost-policy: missing",
        "/etc/modprobe.d/mediahost-protocols.conf: missing",
        "/etc/audit/rules.d/60-mediahost.rules: missing",
        "/etc/login.defs: our lines are missing or differ",
        "/etc/pam.d/su: our lines are missing or differ",
        "/etc/default/ufw: our lines are missing or differ",
        "/etc/issue: content differs",
        "sysctl kernel.kptr_restrict: 7, wanted 2",
        "/etc/crontab: mode is 0755, wanted 0600",
        "/dev/shm: mounted without noexec",
    ):
        assert words in changes


def test_every_command_is_valid_shell() -> None:
    seen = hardened()
    for step in (*hardening.steps(Settings(), stock()), *hardening.steps(OFF, replace(seen, pending=frozenset()))):
        done = subprocess.run(["sh", "-n"], input=step.command, text=True, capture_output=True, check=False)
        assert done.stderr == "", step.command


def test_a_host_of_which_nothing_is_known_yet_gives_no_step_for_what_is_not_there() -> None:
    changes = told(hardening.steps(Settings(), Snapshot()))
    assert not [change for change in changes if change.startswith(("/etc/login.defs", "/etc/cron", "/dev/shm"))]
    assert [change for change in changes if change.startswith("/etc/modprobe.d/")]


def test_with_the_hardening_off_a_stock_host_is_no_step() -> None:
    assert hardening.steps(OFF, stock()) == []


# --- drift


def test_a_kernel_setting_that_drifted_is_set_again_and_its_note_is_not_written_anew() -> None:
    seen = hardened()
    drifted = replace(seen, sysctls={**seen.sysctls, "kernel.dmesg_restrict": "0"})
    assert told(hardening.steps(Settings(), drifted)) == ["sysctl kernel.dmesg_restrict: 0, wanted 1"]


def test_a_mode_that_drifted_is_told() -> None:
    seen = hardened()
    drifted = replace(seen, paths={**seen.paths, "/etc/crontab": present("", "644")})
    (step,) = hardening.steps(Settings(), drifted)
    assert step.change == "/etc/crontab: mode is 0644, wanted 0600"
    assert step.command == "chmod 0600 /etc/crontab"


def test_a_line_of_ours_that_somebody_changed_is_put_right() -> None:
    seen = hardened()
    text = seen.contents["/etc/login.defs"].replace("UMASK\t\t027", "UMASK\t\t000")
    drifted = replace(seen, contents={**seen.contents, "/etc/login.defs": text})
    assert told(hardening.steps(Settings(), drifted)) == ["/etc/login.defs: our lines are missing or differ"]


def test_a_changed_drop_in_of_the_remount_makes_systemd_read_it() -> None:
    seen = hardened()
    unit = replace(RUNNING, needs_daemon_reload=True)
    drifted = replace(seen, units={**seen.units, "systemd-remount-fs.service": unit})
    (step,) = hardening.steps(Settings(), drifted)
    assert step.command == "systemctl daemon-reload"


def test_a_banner_that_is_a_link_is_left_alone() -> None:
    seen = hardened()
    linked = replace(seen, paths={**seen.paths, "/etc/issue": present("", "777", "link")})
    assert hardening.steps(Settings(), linked) == []


# --- giving back


def test_former_values_are_noted_before_anything_is_changed() -> None:
    steps = hardening.control_steps(Settings(), stock())
    assert steps[0].change.startswith("former state: ")
    assert not steps[0].change.startswith("former state: 0")


def test_the_note_tells_each_kind_of_value_as_it_was() -> None:
    kept = hardening.former(hardened())
    assert kept["sysctl", "kernel.kptr_restrict"] == "7"
    assert kept["mode", "/etc/crontab"] == "0755"
    assert kept["mount", "/dev/shm"] == "nodev,exec,nosuid"
    assert kept["package", "auditd"] == "absent"


def test_the_note_holds_nothing_that_cannot_be_given_back() -> None:
    assert not [key for key in hardening.former(hardened()) if key[1] in IRREVERSIBLE_SYSCTLS]


def test_what_was_changed_is_given_back_when_the_hardening_is_switched_off() -> None:
    steps = hardening.steps(OFF, hardened())
    assert of(steps, "sysctl kernel.kptr_restrict").command == "printf '%s\\n' 7 >/proc/sys/kernel/kptr_restrict"
    assert of(steps, "mode /etc/crontab").command == "chmod 0755 /etc/crontab"
    assert of(steps, "mount /dev/shm").command == "mount -o remount,nodev,exec,nosuid /dev/shm"
    assert "apt purge auditd " in of(steps, "package auditd").command
    assert of(steps, "/etc/issue:").command == "mv -fT /var/lib/mediahost/former-files/issue /etc/issue"
    assert "/etc/login.defs: our lines are not wanted any more" in told(steps)
    assert not [step for step in steps if "unprivileged_bpf" in step.change]


def test_after_it_was_given_back_the_note_is_forgotten_and_then_nothing_is_left() -> None:
    given_back = replace(stock(), contents={**STOCK_FILES, hardening.FORMER_PATH: note(Settings(), stock())})
    (step,) = hardening.steps(OFF, given_back)
    assert step.change.startswith("former state: ")
    assert "given back" in step.change
    assert hardening.steps(OFF, stock()) == []


def test_one_control_is_given_back_and_the_others_stay() -> None:
    settings = read("nas", {"hardening_disabled": ["permissions"]})
    steps = hardening.steps(settings, hardened())
    assert steps
    assert all(step.change.startswith("mode /etc/") for step in steps), told(steps)


def test_a_package_that_was_there_before_is_not_removed() -> None:
    before = replace(stock(), packages={"debsums": INSTALLED})
    seen = hardened(seen=before)
    changes = told(hardening.steps(OFF, seen))
    assert "package auditd: absent as before, its control is off" in changes, "positive control"
    assert not [change for change in changes if change.startswith("package debsums")]


def test_a_package_and_a_setting_that_another_stage_wants_are_not_given_back() -> None:
    settings = Settings(
        hardening=False,
        packages_extra=["auditd"],
        sysctl_extra={"kernel.kptr_restrict": "2"},
        unattended_upgrades=False,
    )
    changes = told(hardening.steps(settings, hardened()))
    assert "package debsums: absent as before, its control is off" in changes, "positive control"
    assert not [change for change in changes if "auditd:" in change or "kptr_restrict" in change]
    assert base.sysctl_steps({"kernel.kptr_restrict": "2"}, hardened()) == []


def test_a_damaged_note_is_read_as_far_as_it_goes() -> None:
    seen = Snapshot(contents={hardening.FORMER_PATH: "sysctl\tvm.x\t1\nhalf a li"})
    assert hardening.former(seen) == {("sysctl", "vm.x"): "1"}


# --- optional controls

EVERY = Settings(hardening_optional=["all"], file_integrity=True)
BUS = "/sys/bus/usb/devices"


def equipped(seen: Snapshot) -> Snapshot:
    """What a machine with a USB bus has when the optional controls are on."""
    running = dict.fromkeys(("acct.service", "usbguard.service"), RUNNING)
    return replace(seen, paths={**seen.paths, BUS: present("", "755", "directory")}, units={**seen.units, **running})


def test_a_host_with_every_optional_control_is_no_step() -> None:
    assert told(hardening.steps(EVERY, equipped(hardened(EVERY)))) == []
    changes = told(hardening.steps(EVERY, stock()))
    for words in (
        "package acct: not installed",
        "/etc/apt/listchanges.conf: our lines are missing or differ",
        "/etc/aide/aide.conf: our lines are missing or differ",
    ):
        assert words in changes, "positive control"


def test_with_the_optional_controls_off_their_packages_and_files_are_not_asked_for() -> None:
    changes = "\n".join(told(hardening.steps(Settings(), stock())))
    assert "package debsums" in changes, "positive control"
    for words in ("acct", "needrestart", "listchanges", "usbguard", "udf", "/dev:"):
        assert words not in changes


def test_optional_controls_are_given_back() -> None:
    changes = told(hardening.steps(Settings(), equipped(hardened(EVERY))))
    for name in ("acct", "apt-listchanges", "needrestart", "usbguard", "aide-common"):
        assert f"package {name}: absent as before, its control is off" in changes
    assert "/etc/apt/listchanges.conf: our lines are not wanted any more" in changes
    assert not [change for change in changes if "debsums" in change], "what is on by default stays"


def test_when_usbguard_goes_the_kernel_admits_usb_devices_again() -> None:
    steps = hardening.steps(Settings(), equipped(hardened(EVERY)))
    command = of(steps, "package usbguard").command
    assert command.index("apt purge usbguard") < command.index(f"{BUS}/usb*/authorized_default")
    assert BUS not in of(steps, "package acct").command
    assert subprocess.run(["sh", "-n"], input=command, text=True, capture_output=True, check=False).stderr == ""


def test_what_a_package_starts_at_once_finds_our_files() -> None:
    changes = told(hardening.steps(EVERY, stock()))
    package = next(index for index, change in enumerate(changes) if "package usbguard: not installed" in change)
    for path in ("usbguard.service.d/60-mediahost.conf", "rules.d/60-mediahost.conf", "conf.d/60-mediahost.conf"):
        assert package > next(index for index, change in enumerate(changes) if path in change)


def test_usbguard_must_run_where_there_is_a_bus_and_is_not_waited_for_elsewhere() -> None:
    seen = equipped(hardened(EVERY))
    dead = replace(RUNNING, active="inactive", sub="dead")
    stopped = replace(seen, units={**seen.units, "usbguard.service": dead})
    without = replace(stopped, paths={path: state for path, state in seen.paths.items() if path != BUS})
    assert told(hardening.steps(EVERY, stopped)) == ["usbguard.service: inactive"]
    assert hardening.steps(EVERY, without) == []


def test_a_container_gets_neither_accounting_nor_a_guard_of_a_bus_that_is_its_hosts() -> None:
    seen = stock()
    container = replace(seen, paths={**seen.paths, "/run/systemd/container": present("")})
    changes = told(hardening.steps(EVERY, container))
    assert "package needrestart: not installed" in changes, "positive control"
    assert not [change for change in changes if change.startswith(("package acct", "package usbguard"))]


def test_lines_an_earlier_version_put_into_debsums_file_are_not_kept_as_the_former_ones() -> None:
    path = "/etc/default/debsums"
    theirs = "# mediahost set the next line, which was: CRON_CHECK=never\nCRON_CHECK=weekly\n"
    seen = stock()
    earlier = replace(seen, contents={**seen.contents, path: theirs})
    changes = told(hardening.steps(Settings(), earlier))
    assert changes.index(f"{path}: our lines are not wanted any more") < changes.index(f"{path}: content differs")


# --- audit, AppArmor, AIDE


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"paths": {"/run/systemd/container": present("")}}, "container"),
        ({"contents": {"/proc/cmdline": "ro audit=0 quiet\n"}}, "audit=0"),
    ],
)
def test_a_host_that_cannot_audit_is_told_and_gets_no_auditd(change: dict[str, Any], words: str) -> None:
    seen = stock()
    changed: dict[str, Any] = {key: {**getattr(seen, key), **value} for key, value in change.items()}
    seen = replace(seen, **changed)
    assert any(words in notice for notice in hardening.notices(Settings(), seen))
    assert not [step for step in hardening.steps(Settings(), seen) if "audit" in step.change]
    assert hardening.watch_steps(Settings(), replace(seen, packages={"auditd": INSTALLED})) == []
    assert hardening.notices(Settings(), stock()) == [], "positive control"


def test_new_audit_rules_are_loaded_and_the_mark_goes_afterwards() -> None:
    seen = replace(hardened(), pending=frozenset(("auditd.service",)))
    (step,) = hardening.watch_steps(Settings(), seen)
    assert step.command.splitlines()[-2:] == [
        "augenrules --load >/dev/null",
        "rm -f /var/lib/mediahost/pending/auditd.service",
    ]


def test_the_rules_file_marks_the_rules_as_not_loaded_before_it_is_written() -> None:
    (step,) = hardening.audit_rule_steps(Settings(), stock())
    assert "pending/auditd.service" in step.command


def test_audit_rules_are_unloaded_before_auditd_goes() -> None:
    seen = replace(hardened(), pending=frozenset(("auditd.service",)))
    changes = told(hardening.steps(Settings(audit=False), seen))
    removed = "package auditd: absent as before, its control is off"
    assert changes.index("audit rules: are unloaded") < changes.index(removed)
    assert hardening.watch_steps(Settings(audit=False), seen) == []


def test_a_kernel_without_apparmor_is_told_and_its_unit_is_not_waited_for() -> None:
    seen = hardened()
    stopped = {**seen.units, "apparmor.service": replace(RUNNING, active="inactive", sub="dead")}
    without = {**seen.contents, "/sys/kernel/security/lsm": "capability,yama\n"}
    assert any("AppArmor is off" in told for told in hardening.notices(Settings(), replace(seen, contents=without)))
    assert hardening.steps(Settings(), replace(seen, contents=without, units=stopped)) == []
    assert hardening.steps(Settings(), replace(seen, units=stopped)), "positive control: where it is on, it must run"


def test_aide_gets_one_database_when_all_else_is_done() -> None:
    settings = Settings(file_integrity=True)
    seen = hardened(settings)
    (step,) = hardening.watch_steps(settings, seen)
    assert "takes minutes" in step.change
    assert step.timeout == 7200
    done = replace(seen, paths={**seen.paths, "/var/lib/aide/aide.db": present("")})
    assert hardening.watch_steps(settings, done) == []
    assert hardening.watch_steps(Settings(), seen) == []


def test_a_release_without_aides_timer_is_not_asked_for_it() -> None:
    settings = Settings(file_integrity=True)
    seen = hardened(settings)
    paths = {**seen.paths, "/var/lib/aide/aide.db": present("")}
    units = {**seen.units, "dailyaidecheck.timer": UnitState("not-found", "inactive", "dead", "", False)}
    assert hardening.watch_steps(settings, replace(seen, paths=paths, units=units)) == []


# --- what is looked at


def test_the_snapshot_looks_at_everything_that_any_step_compares() -> None:
    for settings in (Settings(), OFF, EVERY):
        request = hardening.request(settings)
        for control in CONTROLS:
            assert request.paths >= set(control.modes)
            assert request.sysctls >= set(control.sysctls)
            assert request.packages >= set(control.packages)
            assert request.contents >= {edit.path for edit in control.edits}
        assert request.paths >= set(wanted.owned(settings))
        assert request.contents >= {hardening.FORMER_PATH, "/proc/mounts"}


def test_the_policy_of_sudo_follows_the_distribution() -> None:
    seen = replace(hardened(), os=Os("ubuntu", "resolute", "26.04"))
    assert [step for step in hardening.access_steps(Settings(), seen) if "60-mediahost-policy" in step.change]
