"""Counts what sshd starts on a guest while something runs: the remote execs of a run, seen from outside it.

OpenSSH's server starts every command, shell and subsystem (so SFTP too) in one function, `do_exec` of session.c,
which logs "Starting session: ..." at LogLevel VERBOSE before it forks. Whatever the client's library calls it, an
exec that does not pass there does not run, so none can be missed; and no code of the product takes part. The level
is what the product itself sets, so nothing is changed on a converged machine to count.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from lab.machine import Machine

_STARTED = re.compile(r"Starting session: (?P<what>.+) for \S+ from \S+ port (?P<port>\d+) id \d+")
_LOGGED_IN = re.compile(r"Accepted \S+ for \S+ from \S+ port (?P<port>\d+) ")

# Connections that were open before the level was set keep theirs; the only such one is our own, which is left out.
_VERBOSE = "sshd -T | grep -qx 'loglevel VERBOSE' || { echo 'sshd does not log its sessions' >&2; exit 1; }"


class LogGapError(Exception):
    """journald dropped lines: what is left of sshd's log proves nothing."""


@dataclass
class Tally:
    """What sshd told of the time between: `sessions` as it names them ("command", "shell", "subsystem 'sftp'")."""

    sessions: list[str] = field(default_factory=list)
    connections: int = 0

    @property
    def execs(self) -> int:
        """Number of commands, shells and subsystems that were started."""
        return len(self.sessions)


@contextmanager
def counted(machine: Machine) -> Iterator[Tally]:
    """A `Tally` that is filled in when the block ends; it counts all clients of the machine, not only the product.

    Only the connection that reads the log is left out (by its port), so the block must not use `machine.run`.
    Raises LogGapError when journald dropped lines meanwhile, CommandFailedError where sshd's level is another.
    """
    tally = Tally()
    _as_root(machine, _VERBOSE)
    cursor = _as_root(machine, "journalctl -q -n 0 --show-cursor").partition("cursor: ")[2].strip()
    yield tally
    log = _as_root(
        machine,
        f"journalctl --sync; journalctl -q -o cat --after-cursor='{cursor}'"
        " -t sshd -t sshd-session -t systemd-journald",
    )
    own, lines = log.splitlines()[0], log.splitlines()[1:]
    if any("Suppressed" in line for line in lines):
        raise LogGapError(f"{machine.name}: journald dropped lines of the log, nothing can be counted from it")
    for line in lines:
        started, entered = _STARTED.search(line), _LOGGED_IN.search(line)
        if started and started["port"] != own:
            tally.sessions.append(started["what"])
        if entered and entered["port"] != own:
            tally.connections += 1


def _as_root(machine: Machine, line: str) -> str:
    """What `line` printed, run by root in a shell; before it a line with this connection's port."""
    quoted = line.replace("'", "'\\''")
    return machine.run(f"set -- $SSH_CONNECTION; echo $2; sudo -n sh -c '{quoted}'").stdout
