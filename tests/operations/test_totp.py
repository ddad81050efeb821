"""The second factor: asked for outside the home network only, for whom it is there, and never of this run itself."""

from __future__ import annotations

import hashlib
from base64 import b64decode
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from facts.snapshot import PathState, Snapshot
from mediahost import secrets, wanted
from mediahost.catalog import load_catalog
from mediahost.config import ConfigError, Settings, read
from mediahost.render import marked
from mediahost.render import ssh as render_ssh
from mediahost.render import totp as rendered
from mediahost.resources import File
from operations import manifest, ssh, totp, verify
from operations.convergence import Step
from operations.ssh import ControlSide
from tests.operations.test_ssh import PARAMIKO, Probes, bare, hardened
from tests.operations.test_steps import as_present, commands, refusal, sound, told
from tests.unit.test_config import KEY

SECRET = "JBSWY3DPEHPK3PXPJBSWY3DPEHPK3PXP"
HOME = "192.168.1.5"
ABROAD = "203.0.113.9"
# Debian 12 to 13 and Ubuntu begin like this.
PAM = """# PAM configuration for the Secure Shell service

# Standard Un*x authentication.
@include common-auth

account    required     pam_nologin.so
"""
PAM_STATE = {rendered.PAM_PATH: PathState("file", "644", "0", "0", "root", "root")}


def settings(**data: Any) -> Settings:
    return read("nas", {"admins": {"me": [KEY]}, "sshd_totp": True, **data})


def factors(given: Settings, secret: str = SECRET) -> tuple[File, ...]:
    return rendered.files(given, "nas", lambda entry, kind: secret)


def before(**differs: Any) -> Snapshot:
    seen = bare(ssh_client=HOME, ssh_user="me", contents={**bare().contents, rendered.PAM_PATH: PAM})
    return replace(seen, paths=seen.paths | PAM_STATE, **differs)


def after(given: Settings, **differs: Any) -> Snapshot:
    """A host with the second factor, after somebody used it: the module has written its state behind the secret."""
    seen = hardened(given, before())
    made = factors(given)
    outside = {keyword.lower(): (value,) for keyword, value in rendered.effective_outside(given).items()}
    inside = {"kbdinteractiveauthentication": ("no",)}
    probes: Probes = {
        probe: {**(outside if totp.is_outside(given, probe) else inside)} for probe in ssh.request(given).ssh_probes
    }
    drop_in = render_ssh.drop_in(given, ssh.server(given, seen))
    found = replace(
        seen,
        paths=seen.paths | {path: replace(state, sha256="other") for path, state in as_present(*made).items()},
        contents=seen.contents | {rendered.PAM_PATH: marked.edited(PAM, rendered.edits(given))},
        first_lines={file.path: hashlib.sha256(f"{SECRET}\n".encode()).hexdigest() for file in made},
        sshd_probes=probes,
        sshd_match_files={drop_in.path: drop_in.content.decode()},
    )
    return replace(found, **differs)


def steps(given: Settings, seen: Snapshot, control: ControlSide = PARAMIKO) -> Any:
    return ssh.steps(given, seen, control, factors(given))


# --- what is written


def test_a_used_second_factor_is_no_step() -> None:
    assert steps(settings(), after(settings())) == []


def test_the_code_can_be_checked_before_sshd_asks_for_it() -> None:
    found = steps(settings(), before())
    assert told(found) == [
        f"{rendered.DIRECTORY}/me: missing",
        f"{rendered.PAM_PATH}: our line is missing or differs",
        f"{render_ssh.DROP_IN_PATH}: missing",
        "ssh.service: runs with an older configuration, is reloaded (sessions go on)",
    ]
    sound(found)


def test_switched_off_sshd_stops_to_ask_before_pam_asks_for_a_password_again() -> None:
    off = settings(sshd_totp=False)
    seen = after(settings())
    found = ssh.steps(off, seen, PARAMIKO, factors(off))
    assert told(found) == [
        f"{render_ssh.DROP_IN_PATH}: content differs",
        "ssh.service: runs with an older configuration, is reloaded (sessions go on)",
        f"{rendered.PAM_PATH}: our line is not wanted any more",
    ]
    assert marked.edited(seen.contents[rendered.PAM_PATH], rendered.edits(off)) == PAM


def test_switched_off_the_secrets_stay_until_sshd_has_stopped_to_ask() -> None:
    """Else nobody would get in from outside until the run is over, or ever when it dies."""
    secret, other = f"{rendered.DIRECTORY}/me", "/etc/other"
    seen = Snapshot(manifest={secret: "", other: "", "/etc/kept": ""})
    (first,) = manifest.prune_steps({"/etc/kept": ""}, seen, before_ssh=True)
    assert first.change == f"{other}: not wanted any more"
    assert f"rm -f {other}\n" in first.command
    assert written(first) == {"/etc/kept", secret}
    left = Snapshot(manifest={secret: "", "/etc/kept": ""})
    assert manifest.prune_steps({"/etc/kept": ""}, left, before_ssh=True) == []
    (last,) = manifest.prune_steps({"/etc/kept": ""}, left)
    assert f"rm -f {secret}\n" in last.command
    assert written(last) == {"/etc/kept"}
    # In the run the secrets go when sshd's stage is over, which ends with its proof.
    stages = Path(manifest.__file__).parents[1].joinpath("deploy.py").read_text()
    before, _, after_ssh = stages.partition("ssh.provision(")
    assert before.count("manifest.pruned(") == before.count("before_ssh=True") == 1
    assert "manifest.pruned(" in after_ssh
    assert "before_ssh" not in after_ssh


def written(step: Step) -> set[str]:
    """The paths in the manifest that a step writes."""
    lines = b64decode((step.stdin or "").partition(".")[0]).decode().splitlines()
    return {line.partition("\t")[0] for line in lines}


def test_off_it_is_nowhere() -> None:
    off = settings(sshd_totp=False)
    assert ssh.steps(off, hardened(off, before()), PARAMIKO) == []
    assert "Match" not in render_ssh.drop_in(off).content.decode()
    assert factors(off) == ()


def test_our_rule_stands_above_all_others_and_is_not_written_twice() -> None:
    new = marked.edited(PAM, rendered.edits(settings()))
    rules = [line for line in new.splitlines() if line and not line.startswith("#")]
    assert rules[0] == rendered.PAM_LINE
    assert rules[1] == "@include common-auth"
    assert marked.edited(new, rendered.edits(settings())) == new


def test_no_answer_but_a_right_code_ends_pams_questions_with_success() -> None:
    assert "[success=done default=die]" in rendered.PAM_LINE
    for weakening in ("nullok", "forward_pass", "no_strict_owner", "allowed_perm", "grace_period"):
        assert weakening not in rendered.PAM_LINE


def test_the_match_block_is_the_end_of_the_file() -> None:
    """It lasts to the end of its file, so nothing that is meant for everybody may follow."""
    lines = render_ssh.drop_in(settings(firewall_lan=["192.168.7.0/24"])).content.decode().splitlines()
    assert lines[-3:] == [
        "Match Address *,!192.168.7.0/24",
        "    AuthenticationMethods publickey,keyboard-interactive:pam",
        "    KbdInteractiveAuthentication yes",
    ]


def test_a_link_local_address_with_its_interface_is_inside_where_the_block_is() -> None:
    """sshd compares the interface, too, so fe80::1%eth0 is in no block; seen with OpenSSH 9.2 and 10.0."""
    assert rendered.condition(settings()).endswith(",!fe80::/10,!fe80:*")
    assert rendered.is_inside(settings(), "fe80::1%eth0")
    assert "fe80" not in rendered.condition(settings(firewall_lan=["fd00::/64"]))


# --- secrets


def test_a_new_secret_has_160_bits_in_base32() -> None:
    made = {secrets.totp() for _ in range(20)}
    assert len(made) == 20
    assert {len(each) for each in made} == {32}
    assert rendered.unusable(factors(settings(), made.pop())) == []


def test_every_administrator_has_a_secret_of_his_own_that_root_alone_reads() -> None:
    asked: list[tuple[str, str]] = []

    def secret(entry: str, kind: str) -> str:
        asked.append((entry, kind))
        return SECRET

    given = settings(admins={"me": [KEY], "you": [KEY]}, services=[])
    plan = wanted.build("nas", given, load_catalog(), secret)
    assert {("nas/totp/me", "totp"), ("nas/totp/you", "totp")} <= set(asked)
    assert [file.path for file in plan.factors] == [f"{rendered.DIRECTORY}/me", f"{rendered.DIRECTORY}/you"]
    for file in plan.factors:
        assert (file.owner, file.mode, file.secret) == ("root", "0400", True)
        assert file.path in plan.owned


def test_a_secret_travels_on_standard_input_only() -> None:
    given = settings(services=[])
    plan = wanted.build("nas", given, load_catalog(), lambda entry, kind: SECRET)
    found = verify.differences(plan, before())
    assert any("SkJTV1kzRFBFSFBLM1BYU" in (step.stdin or "") for step in found), "base64 of the secret, the control"
    for step in found:
        for text in (step.change, step.command, step.refusal or ""):
            assert SECRET not in text
            assert "SkJTV1kz" not in text


def test_another_secret_is_written_and_the_modules_own_state_is_not_touched() -> None:
    rotated = after(settings(), first_lines={f"{rendered.DIRECTORY}/me": hashlib.sha256(b"old\n").hexdigest()})
    found = steps(settings(), rotated)
    assert told(found) == [f"{rendered.DIRECTORY}/me: content differs"]
    assert "systemctl" not in commands(found), "neither the module nor PAM needs a reload"


def test_a_secret_that_others_can_read_is_a_step() -> None:
    seen = after(settings())
    path = f"{rendered.DIRECTORY}/me"
    loose = replace(seen, paths=seen.paths | {path: replace(seen.paths[path], mode="644")})
    assert told(steps(settings(), loose)) == [f"{path}: mode is 0644, wanted 0400"]


@pytest.mark.parametrize("secret", ["SHORT", "0189JBSWY3DPEHPK3PXPJBSWY3DP", ""])
def test_a_secret_that_is_none_is_refused_and_not_shown(secret: str) -> None:
    given = settings()
    found = ssh.steps(given, before(), PARAMIKO, factors(given, secret))
    assert "HOST/totp/me" in refusal(found)
    assert not secret or secret not in refusal(found)


# --- who would be shut out


def test_a_run_from_outside_is_refused_with_the_mend() -> None:
    found = steps(settings(), before(ssh_client=ABROAD))
    for part in (ABROAD, "firewall_lan", "sshd_totp = False"):
        assert part in refusal(found)
    assert refusal(found) == refusal(totp.refusals(settings(), factors(settings()), before(ssh_client=ABROAD)))


@pytest.mark.parametrize("client", [HOME, "fd00::5", "fe80::1%eth0"])
def test_a_run_from_inside_is_not(client: str) -> None:
    assert totp.refusals(settings(), factors(settings()), before(ssh_client=client), through_ssh=True) == []


def test_a_run_of_which_nobody_knows_where_it_comes_from_is_refused_unless_it_is_on_the_machine_itself() -> None:
    unknown = before(ssh_client="")
    assert "does not tell" in refusal(steps(settings(), unknown))
    assert totp.refusals(settings(), factors(settings()), unknown, through_ssh=False) == []


def test_a_pam_file_in_which_our_rule_would_not_be_the_first_is_refused() -> None:
    other = before(contents={**before().contents, rendered.PAM_PATH: "@include common-auth\n# mine\n"})
    assert rendered.PAM_PATH in refusal(steps(settings(), other))


def test_without_administrators_nobody_would_have_a_code() -> None:
    with pytest.raises(ConfigError, match="sshd_totp"):
        read("nas", {"sshd_totp": True})


def test_a_rollback_takes_pams_file_back_as_well() -> None:
    assert rendered.PAM_PATH in ssh.guard(settings(), before()).paths


# --- what sshd says


def test_a_login_from_outside_that_needs_no_code_is_refused() -> None:
    seen = after(settings())
    weak: Probes = {**seen.sshd_probes, f"user=me,host=probe,addr={ssh.OUTSIDE}": {"authenticationmethods": ("any",)}}
    assert "authenticationmethods is any" in refusal(steps(settings(), replace(seen, sshd_probes=weak)))


def test_questions_at_home_are_refused_though_they_are_wanted_outside() -> None:
    seen = after(settings())
    (inside,) = [p for p in seen.sshd_probes if p.startswith("user=me") and not totp.is_outside(settings(), p)]
    weak: Probes = {**seen.sshd_probes, inside: {"kbdinteractiveauthentication": ("yes",)}}
    assert f"{inside} kbdinteractiveauthentication is yes" in refusal(
        steps(settings(), replace(seen, sshd_probes=weak))
    )


def test_a_block_of_others_that_asks_for_passwords_outside_is_still_refused() -> None:
    seen = after(settings())
    other = {"/etc/ssh/sshd_config.d/99-vendor.conf": "Match User backup\nKbdInteractiveAuthentication yes\n"}
    found = steps(settings(), replace(seen, sshd_match_files={**seen.sshd_match_files, **other}))
    assert "99-vendor.conf" in refusal(found)


def test_a_block_that_sshd_does_not_read_is_refused() -> None:
    assert "Match block" in refusal(steps(settings(), after(settings(), sshd_probes={})))
