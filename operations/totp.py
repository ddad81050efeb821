"""Stage ssh, second factor: secrets, PAM's line, and sshd asking for a code outside the home network, only there.

No secret is read back from a host: the collector tells the sha256 of a file's first line. mediahost itself cannot
type a code, so a run from outside is refused before anything is touched.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from facts.snapshot import Request, Snapshot
from mediahost.config import Settings
from mediahost.render import marked
from mediahost.render import totp as wanted
from mediahost.resources import File
from operations import files
from operations.convergence import Step


def request(settings: Settings) -> Request:
    """What the snapshot must look at, PAM's file also when off: our line has to go then."""
    paths = frozenset(wanted.paths(settings))
    return Request(
        paths=paths,
        contents=frozenset((wanted.PAM_PATH,)),
        packages=frozenset(wanted.packages(settings)),
        first_lines=paths,
    )


def refusals(settings: Settings, factors: tuple[File, ...], seen: Snapshot, through_ssh: bool = False) -> list[Step]:
    """What would shut out this run, or everybody outside. `through_ssh` tells that a client's address is expected."""
    if not settings.sshd_totp:
        return []
    change = "sshd: asks for a code outside firewall_lan"
    if not wanted.is_inside(settings, seen.ssh_client) and (seen.ssh_client or through_ssh):
        where = seen.ssh_client or "somewhere that the host does not tell"
        home = ", ".join(settings.firewall_lan)
        mend = (
            f"this machine comes from {where}, which is not in firewall_lan ({home}): with sshd_totp mediahost would "
            "be asked for a code. Run it from home or through a VPN, add that block to firewall_lan, or set "
            "sshd_totp = False"
        )
        return [Step(change, refusal=mend)]
    unusable = wanted.unusable(factors)
    if unusable:
        told = ", ".join(f"HOST/totp/{name}" for name in unusable)
        mend = (
            f"{told} in the vault: is no secret of 26 or more characters of base32 (A-Z, 2-7). Set it again, or "
            "delete it (`mediahost secrets delete`) and run again for a new one"
        )
        return [Step(change, refusal=mend)]
    text = seen.contents.get(wanted.PAM_PATH)
    present = seen.paths.get(wanted.PAM_PATH)
    if text is None or present is None or present.kind != "file" or not re.match(r"#", text):
        mend = (
            f"{wanted.PAM_PATH} is not the distribution's file, which begins with a comment: our rule must stand "
            "above all others. Make it a file whose first line is `#`, then run again"
        )
        return [Step(change, refusal=mend)]
    return []


def secret_steps(factors: tuple[File, ...], seen: Snapshot) -> list[Step]:
    """Secrets that are missing or others. What the module wrote behind one is no difference."""
    differing = wanted.differing(factors, seen.first_lines)
    alike = {
        file.path: replace(seen.paths[file.path], sha256=file.sha256)
        for file in factors
        if file.path in seen.paths and file not in differing
    }
    return files.steps(factors, replace(seen, paths={**seen.paths, **alike}))


def pam_steps(settings: Settings, seen: Snapshot) -> list[Step]:
    """Our line in PAM's file of sshd, or the file as it was."""
    text = seen.contents.get(wanted.PAM_PATH)
    if text is None:
        return []
    what = "our line is missing or differs" if settings.sshd_totp else "our line is not wanted any more"
    return files.rewrite_steps(wanted.PAM_PATH, marked.edited(text, wanted.edits(settings)), seen, what)


def overruled(settings: Settings, shown: Mapping[str, Mapping[str, tuple[str, ...]]]) -> list[str]:
    """What sshd says of logins from outside that is not what our Match block says. `shown` is by probe."""
    if not settings.sshd_totp:
        return []
    outside = {probe: values for probe, values in shown.items() if is_outside(settings, probe)}
    if not outside:
        return ["sshd does not read our Match block"]
    return [
        f"for {probe} {keyword.lower()} is {' '.join(values.get(keyword.lower(), ())) or 'nothing'}"
        for probe, values in sorted(outside.items())
        for keyword, value in wanted.effective_outside(settings).items()
        if values.get(keyword.lower()) != (value,)
    ]


def is_outside(settings: Settings, probe: str) -> bool:
    """Whether a probe (`user=me,host=probe,addr=ADDRESS`) is about a login from outside."""
    return not wanted.is_inside(settings, probe.rpartition("addr=")[2])
