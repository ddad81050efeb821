"""Stage ssh: key-only logins, seen to be in effect, without a moment in which nobody could log in."""

from __future__ import annotations

from pyinfra.api import deploy, operation

from facts.snapshot import Request, Snapshot
from mediahost.config import Settings
from mediahost.render import ssh as wanted
from operations import files, units
from operations.convergence import Step, converge

UNIT = "ssh.service"
SOCKET = "ssh.socket"

# The whole configuration is tested before the running server reads it. Ubuntu from 22.10 on listens through
# ssh.socket, whose ports come from sshd_config by a generator that runs at daemon-reload.
_TAKE_INTO_USE = f"""/usr/sbin/sshd -t
systemctl daemon-reload
if systemctl -q is-active {SOCKET}; then systemctl restart {SOCKET}; fi
systemctl try-reload-or-restart {UNIT}"""


def request(settings: Settings) -> Request:
    """What the snapshot must look at for this stage."""
    return Request(units=frozenset((UNIT, SOCKET))) | files.request((wanted.drop_in(settings),))


def steps(settings: Settings, seen: Snapshot) -> list[Step]:
    """The drop-in, then the running server, then the proof that nothing else overrules it."""
    found = files.steps((wanted.drop_in(settings),), seen, pending=UNIT)
    if found or UNIT in seen.pending:
        change = f"{UNIT}: runs with an older configuration, is reloaded (sessions go on)"
        return [*_open_port(settings, seen), *found, Step(change, f"{_TAKE_INTO_USE}\n{files.clear_pending(UNIT)}")]
    wrong = [
        (key, " ".join(seen.sshd.get(key, ("nothing",))), value)
        for key, value in wanted.effective(settings).items()
        if value not in seen.sshd.get(key, ())
    ]
    if wrong:
        told = "; ".join(f"{key} is {is_}, wanted {value}" for key, is_, value in wrong)
        return [
            Step(
                f"sshd: {told}",
                refusal=f"sshd does not take our settings: {told}. Another file sets them before "
                f"{wanted.DROP_IN_PATH}; see `grep -rn {wrong[0][0]} /etc/ssh`, remove that line and run again",
            )
        ]
    socket = seen.units.get(SOCKET)
    if socket is not None and socket.active == "active":
        return []
    return units.steps(UNIT, seen)


def _open_port(settings: Settings, seen: Snapshot) -> list[Step]:
    """A new port is open in the firewall before the server moves to it: the firewall's own stage comes later."""
    if not seen.ufw_enabled or settings.sshd_port == seen.ssh_port:
        return []
    rule = f"allow in from any to any port {settings.sshd_port} proto tcp comment 'mediahost ssh'"
    command = f"LC_ALL=C ufw {rule} >/dev/null"
    return [Step(f"firewall: port {settings.sshd_port} is opened before SSH moves there", command)]


@operation()
def hardened(settings: Settings):  # type: ignore[no-untyped-def]
    """
    An SSH server that takes keys only.

    + settings: the host's settings
    """
    yield from converge(lambda seen: steps(settings, seen))


@deploy("ssh")
def provision(settings: Settings) -> None:
    """The whole stage."""
    hardened(name="server", settings=settings)
