"""Nothing locks the user out: a change to sshd, keys, sudo or the firewall is undone unless a fresh login proves it.

Before the change the host keeps a copy of what is put at risk and starts a timer. After it, the control side opens
a new connection, logs in, becomes root, and stops the timer. A proof that fails puts the copy back at once; a
control side that dies leaves that to the timer; a host that loses power does it at boot, before sshd and the
firewall start.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import gevent
from pyinfra import host, logger, state
from pyinfra.api import FunctionCommand, Host, State, StringCommand
from pyinfra.api.arguments import CONNECTOR_ARGUMENT_KEYS
from pyinfra.api.exceptions import ConnectError, OperationError, PyinfraError
from pyinfra.api.state import BaseStateCallback
from pyinfra.connectors.ssh import SSHConnector

from facts.snapshot import ROLLBACK_DIRECTORY
from mediahost.render.ssh import CHECK as SSHD_CHECK
from operations import lock, report

# A socket that is restarted is away for a moment; a wrong setting stays wrong.
_PROOF_SECONDS = 20

_ARMED = "mediahost_guard"
_SECONDS = "mediahost_guard_seconds"
_UNIT = "mediahost-rollback"
# Not the timer's own name: systemd-run takes no name that a unit file has.
_AT_BOOT = "mediahost-rollback-at-boot.service"
_UNIT_PATH = f"/etc/systemd/system/{_AT_BOOT}"
_WANTED_PATH = f"/etc/systemd/system/multi-user.target.wants/{_AT_BOOT}"

# Before whatever lets somebody in or shuts him out; the network is not there yet either.
_BOOT_UNIT = f"""[Unit]
Description=Put back the settings from before a change that no login has proven
DefaultDependencies=no
After=local-fs.target systemd-remount-fs.service
Before=network-pre.target ufw.service ssh.service ssh.socket
ConditionPathExists={ROLLBACK_DIRECTORY}/armed

[Service]
Type=oneshot
ExecStart=/bin/sh {ROLLBACK_DIRECTORY}/restore boot
"""

# Ubuntu from 22.10 on listens through ssh.socket, whose ports come from sshd_config by a generator that runs at
# daemon-reload.
SSHD_READS = """systemctl daemon-reload
if systemctl -q is-active ssh.socket; then systemctl restart ssh.socket; fi
systemctl try-reload-or-restart ssh.service"""
"""Lets the running server read its configuration, which must have been tested."""

SSHD_RELOAD = f"if {SSHD_CHECK}; then\n{SSHD_READS}\nfi"
"""Takes restored SSH settings into use. A configuration that sshd refuses must not reach a running server."""

UFW_RELOAD = """if grep -q '^ENABLED=yes' /etc/ufw/ufw.conf; then ufw reload; else ufw --force disable; fi"""
"""Takes restored firewall settings into use."""


@dataclass(frozen=True)
class Guard:
    """What a change puts at risk.

    `paths` are files and directories that are put back, exactly, when no fresh login succeeds. `reload` is shell
    that takes them into use. `port` is where the login must succeed when SSH moves, else None.
    """

    paths: tuple[str, ...]
    reload: str = ":"
    port: int | None = None


def allow(seconds: int) -> None:
    """How long a change of the present host may stay unproven."""
    host.connector_data[_SECONDS] = seconds


def arm(guard: Guard) -> Iterator[StringCommand]:
    """Keep a copy of what is at risk and start the timer, in one exec."""
    seconds: int = host.connector_data[_SECONDS]
    host.connector_data[_ARMED] = time.time() + seconds
    yield StringCommand("sh", "-c", shlex.quote(lock.alone(arm_script(guard, seconds))))


def arm_script(guard: Guard, seconds: int) -> str:
    """Shell that keeps the copy and starts a timer of `seconds`."""
    return _ARM.format(
        directory=ROLLBACK_DIRECTORY,
        seconds=seconds,
        unit=_UNIT,
        unit_path=_UNIT_PATH,
        wanted_path=_WANTED_PATH,
        paths=shlex.quote("".join(path.lstrip("/") + "\n" for path in guard.paths)),
        restore=shlex.quote(
            _RESTORE.format(
                directory=ROLLBACK_DIRECTORY,
                busy=lock.BUSY_FILE,
                unit=_UNIT,
                wanted=_WANTED_PATH,
                reload=guard.reload,
            )
        ),
        boot_unit=shlex.quote(_BOOT_UNIT),
    )


def prove(guard: Guard) -> Iterator[FunctionCommand]:
    """Log in afresh and become root, as the next run will have to."""

    def log_in() -> None:
        report.event("proving", host=host.name)
        told = fresh_login(host, guard.port)
        if told:
            report.refusal(f"no fresh login after the change: {told}")
            raise OperationError(told)

    yield FunctionCommand(log_in, (), {})


def disarm() -> Iterator[StringCommand]:
    """The change is proven: it stays."""
    yield StringCommand("sh", "-c", shlex.quote(disarm_script()))
    host.connector_data.pop(_ARMED, None)


def disarm_script() -> str:
    """Shell that stops the timer and forgets the copy; it fails when the copy has been put back already."""
    return _DISARM.format(directory=ROLLBACK_DIRECTORY, unit=_UNIT, unit_path=_UNIT_PATH, wanted_path=_WANTED_PATH)


def fresh_login(target: Host, port: int | None) -> str:
    """Why a new connection, login and sudo fails; empty when it does not. Another port than now when given."""
    present = target.connector
    if not isinstance(present, SSHConnector):
        return ""  # A run on the machine itself does not come through sshd.
    command, arguments = unasked(target, StringCommand("true"), _as_this_run(target))
    deadline = time.monotonic() + _PROOF_SECONDS
    while True:
        # A connector of its own: nothing of the connection that stands is used again.
        connector = type(present)(state, target)
        if port is not None:
            connector.data = {**connector.data, "ssh_port": port}
        told = ""
        try:
            connector.connect()
            worked, output = connector.run_shell_command(command, **arguments)
            if not worked:
                told = f"logged in, but sudo failed: {output.stderr or output.stdout}"
        except (ConnectError, PyinfraError, OSError, EOFError) as error:
            # Some say nothing: an EOFError of a question that nobody was there to answer is no login.
            told = str(error) or type(error).__name__
        finally:
            if connector.client is not None:
                connector.client.close()
        if not told or time.monotonic() > deadline:
            return told
        gevent.sleep(1)


def _as_this_run(target: Host) -> dict[str, Any]:
    """How the operation at work becomes root: what a command outside of it has to be told."""
    data = state.get_op_data_for_host(target, str(target.executing_op_hash))
    arguments: Mapping[str, Any] = data.global_arguments
    return {key: arguments[key] for key in CONNECTOR_ARGUMENT_KEYS if key in arguments}


def unasked(target: Host, command: StringCommand, arguments: dict[str, Any]) -> tuple[StringCommand, dict[str, Any]]:
    """`command` so that it fails where sudo wants a password that this run was not given.

    pyinfra would ask for one at the terminal: when sudo prints a line that says so and nothing else. A sudo that has
    begun to ask is what a proof must find out, and nobody may be there to answer. What is said comes in parentheses.
    """
    given = arguments.get("_sudo_password") or target.connector_data.get("prompted_sudo_password")
    if not arguments.get("_sudo") or given:
        return command, arguments
    said = """told=$("$@" 2>&1); code=$?; [ -z "$told" ] || echo "($told)"; exit $code"""
    words = [
        "sh",
        "-c",
        shlex.quote(said),
        "sh",
        "sudo",
        "-H",
        "-n",
        *(["-u", arguments["_sudo_user"]] if arguments.get("_sudo_user") else []),
    ]
    return StringCommand(*words, command), {**arguments, "_sudo": False, "_sudo_user": None}


def roll_back(target: Host) -> None:
    """Put back what an unproven change put at risk, now, over the connection that still stands."""
    until = target.connector_data.pop(_ARMED, None)
    if until is None:
        return
    clock = time.strftime("%H:%M:%S UTC", time.gmtime(until))
    command = StringCommand("sh", "-c", shlex.quote(f"timeout 90 sh {ROLLBACK_DIRECTORY}/restore"))
    command, arguments = unasked(target, command, _as_this_run(target))
    try:
        done, _ = target.run_shell_command(command, **{**arguments, "_timeout": 120})
    except (PyinfraError, OSError, EOFError, TimeoutError):
        done = False
    if done:
        told = "what was changed for SSH, sudo or the firewall has been put back to what it was before"
    else:
        told = f"the host puts SSH, sudo and the firewall back to what they were by itself, at {clock} at the latest"
    logger.error(f"{target.print_prefix}{told}")
    report.event("notice", host=target.name, what=told)


class PutBackOnError(BaseStateCallback):
    """A step that fails half-way is as unproven as a login that fails."""

    @staticmethod
    def operation_host_error(
        state: State, host: Host, op_hash: str, retry_count: int = 0, max_retries: int = 0
    ) -> None:
        roll_back(host)


_ARM = """
umask 077
systemctl stop {unit}.timer 2>/dev/null || true
systemctl reset-failed {unit}.service {unit}.timer 2>/dev/null || true
rm -rf {directory}; mkdir -p {directory}/before
printf '%s' {paths} >{directory}/paths
printf '%s' {restore} >{directory}/restore
cd /
while IFS= read -r path; do
  if [ -e "$path" ] || [ -L "$path" ]; then printf '%s\\0' "$path"; fi
done <{directory}/paths | tar --null -T - --numeric-owner -cf - | tar -C {directory}/before --numeric-owner -xpf -
(umask 022; mkdir -p /etc/systemd/system/multi-user.target.wants; printf '%s' {boot_unit} >{unit_path})
ln -sf {unit_path} {wanted_path}
date -d "+{seconds} seconds" '+%F %T %Z' >{directory}/armed
sync -f {directory} /etc
systemd-run --quiet --unit={unit} --on-active={seconds} --timer-property=AccuracySec=1s \\
  /bin/sh {directory}/restore
"""

# Reached from the timer, at boot, from the run whose proof failed, or from the next run: one at a time, and once.
_RESTORE = """set -u
export LC_ALL=C PATH=/usr/sbin:/usr/bin:/sbin:/bin
umask 077
directory={directory}
exec 9>"$directory.lock"; flock -w 60 9
[ -e "$directory/armed" ] || exit 0
# A command of the dead run may still be at work; not for ever.
if [ "${{1:-}}" != boot ] && [ -z "${{MEDIAHOST_ALONE:-}}" ] && [ -e {busy} ]; then
  exec 8>>{busy}; flock -w 20 8 || true
fi
cd /
while IFS= read -r path; do
  # What was not there before goes first: a drop-in that should not be read is worse than one that is missing.
  [ -e "$path" ] && find "$path" \\( -type f -o -type l \\) -print
done <"$directory/paths" | while IFS= read -r file; do
  [ -e "$directory/before/$file" ] || [ -L "$directory/before/$file" ] || rm -f "$file"
done
cd "$directory/before"
find . -mindepth 1 -type d | while IFS= read -r each; do
  [ -d "/$each" ] || {{ mkdir "/$each"; chown --reference="$each" "/$each"; chmod --reference="$each" "/$each"; }}
done
while IFS= read -r path; do
  [ -e "$path" ] && find "$path" -type d -print
done <"$directory/paths" | while IFS= read -r each; do
  chown --reference="$each" "/$each"; chmod --reference="$each" "/$each"
done
find . \\( -type f -o -type l \\) | while IFS= read -r file; do
  temp="/${{file%/*}}/.mediahost-before-${{file##*/}}~"
  cp -a "$file" "$temp" && mv -fT "$temp" "/$file"
done
sync -f /etc
if [ "${{1:-}}" != boot ]; then
  (
{reload}
  ) >&2
fi
cd /
rm -f "$directory/armed" {wanted}
date '+%F %T %Z' >"$directory/done"
rm -rf "$directory/before"
sync -f "$directory"
# Who cannot log in stands before the screen.
told='mediahost: a change of SSH, sudo or firewall that no login had proven was put back'
logger -t mediahost "$told" 2>/dev/null || true
printf '%s\\n' "$told" >/dev/console 2>/dev/null || true
if [ "${{1:-}}" != boot ]; then systemctl stop {unit}.timer 2>/dev/null || true; fi
exit 0
"""

_DISARM = """set -eu
exec 9>{directory}.lock; flock -w 60 9
[ -e {directory}/armed ] || {{ echo 'the host has put its settings back already' >&2; exit 1; }}
rm -f {directory}/armed
systemctl stop {unit}.timer 2>/dev/null || true
rm -rf {directory} {wanted_path} {unit_path}
"""
