"""A reboot as a state: asked for, done once where that is allowed, and seen to have helped.

Whoever needs one says why (`asked_steps`). The host is then told in the way of its distribution, so that unattended
upgrades do it at `unattended_reboot_time` where `unattended_reboot` allows that; a run does it only with `--reboot`
(MEDIAHOST_REBOOT=1 for plain pyinfra) and goes on after it. What a reboot did not mend is not tried again.
"""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Iterator, Sequence

import gevent
from paramiko import SSHException
from pyinfra import host, logger
from pyinfra.api import FunctionCommand, StringCommand, operation
from pyinfra.api.exceptions import ConnectError, OperationError, PyinfraError
from pyinfra.connectors.util import clear_askpass_cache

from facts.snapshot import STATE_DIRECTORY, Request, Snapshot, UnreadableSnapshotError
from operations import convergence, lock, report
from operations.convergence import Commands, Step

RECORD = f"{STATE_DIRECTORY}/reboot"
"""The boot in which a reboot was asked for, then a reason a line."""

VARIABLE = "MEDIAHOST_REBOOT"
_BOOT_ID = "kernel.random.boot_id"
_HAPPENED = "mediahost_rebooted"
_STARTED = ("systemctl", "is-system-running", "--wait")
_BOOT_ID_PATH = "/proc/sys/kernel/random/boot_id"
# Read by unattended-upgrades and by whoever logs in (update-notifier's README).
_REQUIRED = "/run/reboot-required"
# A server with much memory and many disks takes minutes before it even starts its kernel.
_LIMIT = 900


def request() -> Request:
    """What the snapshot must look at."""
    return Request(contents=frozenset((RECORD,)), sysctls=frozenset((_BOOT_ID,)))


def asked(seen: Snapshot) -> tuple[str, ...]:
    """Why a reboot was asked for that has not happened since."""
    boot, reasons = _recorded(seen)
    return reasons if boot == seen.sysctls.get(_BOOT_ID, "") else ()


def _recorded(seen: Snapshot) -> tuple[str, tuple[str, ...]]:
    lines = seen.contents.get(RECORD, "").splitlines()
    return (lines[0], tuple(lines[1:])) if lines else ("", ())


def asked_steps(reasons: Sequence[str], seen: Snapshot) -> list[Step]:
    """The steps that ask for a reboot, or take that back. `reasons` are what needs one now, a line of text each."""
    boot, before = _recorded(seen)
    if not reasons:
        if not before:
            return []
        # The flag may be there for somebody else's sake, too.
        forget = (
            f'if [ "$(cat {_REQUIRED}.pkgs 2>/dev/null)" = mediahost ]; then rm -f {_REQUIRED} {_REQUIRED}.pkgs; fi'
        )
        return [Step("reboot: not needed any more", f"{forget}\nrm -f {RECORD}")]
    now = seen.sysctls.get(_BOOT_ID, "")
    if before and boot != now:
        still = [reason for reason in reasons if reason in before]
        if still:
            told = f"a reboot was to mend this, and did not: {'; '.join(still)}"
            mend = f"Look at `journalctl -k -b`; to try once more delete {RECORD}"
            return [Step(f"reboot: {told}", refusal=f"{told}. {mend}")]
    if before == tuple(reasons) and boot == now:
        return []
    lines = "\n".join((now, *reasons))
    command = f"""mkdir -p {STATE_DIRECTORY}
printf '%s\\n' {shlex.quote(lines)} >{RECORD}.new
mv -f {RECORD}.new {RECORD}
touch {_REQUIRED}
grep -qsx mediahost {_REQUIRED}.pkgs || echo mediahost >>{_REQUIRED}.pkgs"""
    return [Step(f"reboot: asked for, {'; '.join(reasons)}", command)]


def happened() -> bool:
    """Whether this run has rebooted the present host."""
    return bool(host.connector_data.get(_HAPPENED))


def notice(seen: Snapshot, at: str | None) -> str:
    """What to tell where a reboot is asked for and not done now; empty without. `at` is the reboot window, if any."""
    reasons = asked(seen)
    if not reasons:
        return ""
    when = f"it happens at {at}, after the next unattended upgrade" if at else "nobody does it by itself"
    return f"a reboot is asked for: {'; '.join(reasons)}; {when}, or now with `mediahost apply --reboot`"


@operation()
def done(at: str | None) -> Commands:
    """
    The reboot that was asked for, where this run may do it.

    + at: when unattended upgrades would do it, or None
    """
    try:
        seen = convergence.snapshot()
    except UnreadableSnapshotError as error:
        # An exception here would end the run for every host.
        yield convergence.refusal(str(error))
        return
    reasons = asked(seen)
    if not reasons:
        host.noop("no reboot is asked for")
        return
    if os.environ.get(VARIABLE) != "1":
        report.notice(notice(seen, at))
        host.noop("a reboot is asked for and not done")
        return
    report.change(f"reboot: {'; '.join(reasons)} (every service is away for some minutes)")
    if not lock.is_ours():
        yield from lock.take()
    yield from _rebooted(seen.sysctls.get(_BOOT_ID, ""))
    host.connector_data[_HAPPENED] = True
    convergence.forget()


def _rebooted(boot: str) -> Iterator[StringCommand | FunctionCommand]:
    # Detached: the answer must come before sshd goes.
    yield StringCommand("sh", "-c", shlex.quote("(sleep 2; systemctl reboot) </dev/null >/dev/null 2>&1 &"))
    yield FunctionCommand(_come_back, (boot,), {})
    yield from lock.take()


def _come_back(boot: str) -> None:
    """Wait until the host has booted anew, and connect again."""
    # Its file went with the boot; nothing can remove it over a dead connection.
    clear_askpass_cache(host)
    deadline = time.monotonic() + _LIMIT
    told = "it did not go down"
    gevent.sleep(5)
    while time.monotonic() < deadline:
        try:
            host.disconnect()
            host.connect(show_errors=False, raise_exceptions=True)
            worked, output = host.run_shell_command(StringCommand("cat", _BOOT_ID_PATH), _timeout=20)
            if worked and output.stdout.strip() != boot:
                # What starts still is not missing; a machine that is "degraded" has started as well.
                host.run_shell_command(StringCommand("timeout", "300", *_STARTED), _timeout=320)
                logger.info(f"{host.print_prefix}has booted")
                return
        # A host that goes down may accept the login and then close the connection under the command.
        except (ConnectError, PyinfraError, SSHException, OSError, EOFError, TimeoutError) as error:
            told = str(error) or type(error).__name__
        gevent.sleep(3)
    message = f"the host did not come back within {_LIMIT} s after its reboot: {told}"
    report.refusal(message)
    raise OperationError(message)
