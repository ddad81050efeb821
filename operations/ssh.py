"""Stage ssh: key-only logins, seen to be in effect, without a moment in which nobody could log in.

What the drop-in says depends on the host: which algorithms its OpenSSH knows, who this run logs in as, which port
this connection came in by. All of that is in the snapshot, so the comparison stays a pure function of it.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import paramiko
from pyinfra import host
from pyinfra.api import FunctionCommand, StringCommand, deploy, operation
from pyinfra.connectors.ssh import SSHConnector

from facts.snapshot import Request, Snapshot
from mediahost import public_key
from mediahost.config import Settings
from mediahost.render import ssh as wanted
from mediahost.render import totp as render_totp
from mediahost.render.ssh import Server
from mediahost.resources import File
from operations import apt, files, owed, report, totp, units
from operations.convergence import Commands, Step, converge
from operations.guard import SSHD_READS, SSHD_RELOAD, Guard

UNIT = "ssh.service"
SOCKET = "ssh.socket"
MODULI = "/etc/ssh/moduli"
SOCKET_GENERATOR = "/usr/lib/systemd/system-generators/sshd-socket-generator"
"""Ubuntu from 24.04 on: takes the ports of ssh.socket from sshd_config at each daemon-reload."""
MIGRATED_SOCKET_PATH = "/etc/systemd/system/ssh.socket.d/addresses.conf"
"""Written once by Ubuntu 22.10 to 23.10; beside the generator's it makes the socket bind twice, and fail."""
OUTSIDE = "192.0.2.1"
"""An address of nobody's home network (RFC 5737)."""

# The whole configuration is tested before the running server reads it.
_TAKE_INTO_USE = f"{wanted.CHECK}\n{SSHD_READS}"


@dataclass(frozen=True)
class ControlSide:
    """What the machine that runs mediahost brings along: its algorithms by sshd's keyword, and the port it dials.

    Empty and None where the run does not come through SSH: then nothing is concluded.
    """

    algorithms: dict[str, frozenset[str]] = field(default_factory=dict)
    port: int | None = None


def control_side() -> ControlSide:
    """Of the present connection."""
    connector = host.connector
    client = connector.client if isinstance(connector, SSHConnector) else None
    transport = client.get_transport() if client is not None else None
    if transport is None:
        return ControlSide()
    # Behind a jump host the peer has no address: its port is 0.
    return ControlSide(algorithms_of(transport), transport.getpeername()[1] or None)


def algorithms_of(transport: paramiko.Transport) -> dict[str, frozenset[str]]:
    """What a connection of paramiko could agree to, by sshd's keyword."""
    known = transport.get_security_options()
    return {
        "KexAlgorithms": frozenset(known.kex),
        "Ciphers": frozenset(known.ciphers),
        "MACs": frozenset(known.digests),
        "HostKeyAlgorithms": frozenset(known.key_types),
    }


def request(settings: Settings) -> Request:
    """What the snapshot must look at for this stage."""
    keys = (wanted.ED25519_HOST_KEY, wanted.RSA_HOST_KEY, wanted.LONG_RSA_HOST_KEY)
    logins = ("root", *sorted(settings.admins))
    addresses = (OUTSIDE, str(next(ipaddress.ip_network(settings.firewall_lan[0]).hosts())))
    return totp.request(settings) | Request(
        units=frozenset((UNIT, SOCKET)),
        paths=frozenset((*keys, *wanted.owned_paths(settings), SOCKET_GENERATOR, MIGRATED_SOCKET_PATH)),
        contents=frozenset(f"{key}.pub" for key in keys),
        moduli=frozenset((MODULI,)) if settings.sshd_crypto_policy == "strict" else frozenset(),
        ssh_probes=frozenset(f"user={user},host=probe,addr={address}" for user in logins for address in addresses),
    )


def server(settings: Settings, seen: Snapshot) -> Server:
    """What the drop-in has to know of this host."""
    return Server(
        algorithms=seen.ssh_algorithms,
        keywords=frozenset(seen.sshd),
        login_user=seen.ssh_user if seen.ssh_client else None,
        ports=ports(settings, seen),
        rsa_host_key=rsa_host_key(seen),
    )


def moves(settings: Settings, seen: Snapshot) -> bool:
    """Whether SSH has to leave the port that this connection came in by."""
    return bool(seen.ssh_client) and seen.ssh_port != settings.sshd_port


def ports(settings: Settings, seen: Snapshot) -> tuple[int, ...]:
    """Where to listen: at the old port as well, until sshd has been seen to listen at the new one.

    The guard proves a login at the new port after each round, so a round that finds both in use follows a proof.
    """
    in_use = str(settings.sshd_port) in seen.sshd.get("port", ()) and UNIT not in seen.pending
    if moves(settings, seen) and not in_use:
        return (seen.ssh_port, settings.sshd_port)
    return (settings.sshd_port,)


def rsa_host_key(seen: Snapshot) -> str:
    """The RSA key to offer: the distribution's when it is long enough, else one of ours beside it."""
    bits = public_key.rsa_bits(seen.contents.get(f"{wanted.RSA_HOST_KEY}.pub", "")) or 0
    return wanted.RSA_HOST_KEY if bits >= wanted.MIN_RSA_HOST_KEY_BITS else wanted.LONG_RSA_HOST_KEY


def host_key_steps(seen: Snapshot) -> list[Step]:
    """Host keys that are missing. None is ever replaced or deleted: clients have pinned them."""
    steps = []
    if wanted.ED25519_HOST_KEY not in seen.paths:
        what = f"{wanted.ED25519_HOST_KEY}: missing, is made"
        steps.append(Step(what, _generate("ed25519", wanted.ED25519_HOST_KEY)))
    key = rsa_host_key(seen)
    if key not in seen.paths:
        bits = public_key.rsa_bits(seen.contents.get(f"{wanted.RSA_HOST_KEY}.pub", ""))
        reason = f"the RSA host key has {bits} bits" if bits else "there is no RSA host key"
        what = f"{key}: {reason}, one of {wanted.MIN_RSA_HOST_KEY_BITS} is made and offered (ed25519 stays the same)"
        steps.append(Step(what, _generate(f"rsa -b {wanted.MIN_RSA_HOST_KEY_BITS}", key)))
    return steps


def _generate(kind: str, path: str) -> str:
    # ssh-keygen asks before it overwrites; a run that died can have left the public half alone.
    return f"{owed.mark(UNIT)}\nrm -f {path}.pub\nssh-keygen -q -t {kind} -N '' -C '' -f {path}"


def moduli_steps(settings: Settings, seen: Snapshot) -> list[Step]:
    """Groups of less than 3072 bits go, where a group exchange is offered; sshd reads the file at each login."""
    offered = wanted.algorithms(settings, server(settings, seen)).get("KexAlgorithms", ())
    if not seen.short_groups or wanted.GROUP_EXCHANGE not in offered:
        return []
    temp = f"{MODULI}.mediahost-new"
    command = f"""awk '/^#/ || $5 >= {wanted.MIN_GROUP_BITS}' {MODULI} >{temp}
if ! grep -q '^[0-9]' {temp}; then
  rm -f {temp}
  echo '{MODULI}: no group of 3072 bits or more is in it; put the distribution'"'"'s file there' >&2
  exit 1
fi
chmod 0644 {temp}
sync {temp}
mv -fT {temp} {MODULI}"""
    return [Step(f"{MODULI}: {seen.short_groups} groups of less than 3072 bits are removed", command)]


def socket_steps(settings: Settings, seen: Snapshot) -> list[Step]:
    """Ports of ssh.socket where they do not come from sshd_config, and leftovers where they do."""
    generated = SOCKET_GENERATOR in seen.paths
    by_socket = SOCKET in seen.units and seen.units[SOCKET].active == "active"
    if by_socket and not generated:
        return files.steps((wanted.socket_file(ports(settings, seen)),), seen, pending=UNIT)
    leftovers = [path for path in (wanted.SOCKET_PATH, MIGRATED_SOCKET_PATH) if path in seen.paths]
    if not generated:
        leftovers = [path for path in leftovers if path == wanted.SOCKET_PATH]
    told = "ports come from sshd_config on this release, is removed"
    return [Step(f"{path}: {told}", f"{owed.mark(UNIT)}\nrm {path}") for path in leftovers]


def move_steps(settings: Settings, seen: Snapshot, control: ControlSide) -> list[Step]:
    """What a change of the port means, in words, and the new port opened in the firewall before SSH is there."""
    if not moves(settings, seen):
        return []
    new = settings.sshd_port
    if len(ports(settings, seen)) == 1:
        if str(seen.ssh_port) not in seen.sshd.get("port", ()) or wanted.DROP_IN_PATH not in seen.paths:
            return []
        return [Step(f"sshd: port {seen.ssh_port} is given up, port {new} is in use")]
    change = f"sshd: moves to port {new}, listens at {seen.ssh_port} as well until a login at {new} has worked"
    if settings.sshd_port_outside is None and control.port not in (None, seen.ssh_port):
        mend = (
            f"this machine reaches the host's port {seen.ssh_port} at port {control.port}; say at which one it will "
            f"reach port {new}: map it in the router and set sshd_port_outside"
        )
        return [Step(change, refusal=mend)]
    commands = []
    if seen.ufw_enabled:
        # The firewall's own stage comes later.
        rule = f"to any port {new} proto tcp comment 'mediahost ssh' >/dev/null"
        sources = settings.firewall_ssh_from or ["any"]
        commands = [f"LC_ALL=C ufw allow in from {source} {rule}" for source in sources]
    return [Step(change, "\n".join(commands))]


def lockout_steps(settings: Settings, seen: Snapshot, control: ControlSide) -> list[Step]:
    """Refusals of what would shut out this very run."""
    here = server(settings, seen)
    if here.login_user == "root" and wanted.permit_root_login(settings, here) == "no":
        mend = "this run logs in as root, whom sshd_permit_root_login = 'no' shuts out; log in as an administrator"
        return [Step("sshd: root may not log in", refusal=f"{mend} (ssh_user), or leave the key at 'auto'")]
    for keyword, names in wanted.algorithms(settings, here).items():
        known = control.algorithms.get(keyword)
        if known and not known.intersection(names):
            told = (
                f"sshd_crypto_policy = {settings.sshd_crypto_policy!r} would offer {keyword} {', '.join(names)}, and "
                f"the SSH library of this machine (paramiko {paramiko.__version__}) knows none of them: mediahost "
                "could never log in again. Set sshd_crypto_policy = 'default'; it offers the same ones first"
            )
            return [Step(f"sshd: {keyword} without one this machine knows", refusal=told)]
    return []


def effect_steps(settings: Settings, seen: Snapshot) -> list[Step]:
    """Refusals where the server in use is not what the drop-in says: another file decides."""
    if "port" not in seen.sshd:
        told = "; ".join(" ".join((key, *values)) for key, values in seen.sshd.items()) or "nothing"
        return [Step("sshd: does not tell its settings", refusal=f"`sshd -T` says: {told}. Mend that and run again")]
    wrong = wanted.overruled(settings, server(settings, seen), seen.sshd)
    if wrong:
        told = "; ".join(f"{key} is {present}, wanted {value}" for key, present, value in wrong)
        mend = (
            f"sshd does not take our settings: {told}. Another file sets them; see `grep -rni {wrong[0][0]} "
            "/etc/ssh`, remove that line and run again"
        )
        return [Step(f"sshd: {told}", refusal=mend)]
    if not any(line.startswith("sftp ") for line in seen.sshd.get("subsystem", ())):
        mend = "file transfer would end; add `Subsystem sftp internal-sftp` to /etc/ssh/sshd_config and run again"
        return [Step("sshd: has no sftp subsystem", refusal=mend)]
    return match_steps(settings, seen)


def match_steps(settings: Settings, seen: Snapshot) -> list[Step]:
    """Refusals of Match blocks, which win over every drop-in: as written, and as sshd understands them."""
    # Our own block is compared with its file, and as sshd understands it.
    others = {path: text for path, text in seen.sshd_match_files.items() if path != wanted.DROP_IN_PATH}
    weak = wanted.weakening_matches(others)
    told = [f"{path}: `Match {condition}` sets `{line}`" for path, condition, line in weak]
    if not told:
        asked = {keyword.lower() for keyword in render_totp.effective_outside(settings)}
        for probe, shown in sorted(seen.sshd_probes.items()):
            told += [
                f"for {probe} {key} is {value}"
                for key, refused in wanted.WEAKENING.items()
                for value in shown.get(key, ())
                if value in refused and not (key in asked and totp.is_outside(settings, probe))
            ]
        told += totp.overruled(settings, seen.sshd_probes)
    if not told:
        return []
    change = f"sshd: {'; '.join(told)}"
    mend = "A Match block wins over our settings; remove that line and run again"
    return [Step(change, refusal=f"{'; '.join(told)}. {mend}")]


def steps(
    settings: Settings,
    seen: Snapshot,
    control: ControlSide = ControlSide(),  # noqa: B008 - frozen
    factors: tuple[File, ...] = (),
) -> list[Step]:
    """The files, then the running server, then the proof that nothing else overrules them.

    `factors` are the files of the second factor's secrets, none when it is off.
    """
    refused = [
        *lockout_steps(settings, seen, control),
        *denied_steps(settings, seen),
        *totp.refusals(settings, factors, seen, through_ssh=bool(control.algorithms)),
    ]
    if refused:
        return refused
    banner = wanted.banner_file(settings)
    found = [
        *host_key_steps(seen),
        *files.steps((banner,) if banner else (), seen),
        *socket_steps(settings, seen),
        *files.steps((wanted.drop_in(settings, server(settings, seen)),), seen, pending=UNIT),
    ]
    # sshd asks for a code only when PAM can check one, and PAM's own question comes back when sshd asks for none.
    before = totp.secret_steps(factors, seen) + (totp.pam_steps(settings, seen) if settings.sshd_totp else [])
    after = [] if settings.sshd_totp else totp.pam_steps(settings, seen)
    moduli = moduli_steps(settings, seen)
    if found or UNIT in seen.pending:
        change = f"{UNIT}: runs with an older configuration, is reloaded (sessions go on)"
        reload = Step(change, f"{_TAKE_INTO_USE}\n{owed.clear(UNIT)}")
        return [*move_steps(settings, seen, control), *moduli, *before, *found, reload, *after]
    if moduli or before or after:
        return [*moduli, *before, *after]
    refused = effect_steps(settings, seen)
    if refused:
        return refused
    socket = seen.units.get(SOCKET)
    if socket is not None and socket.active == "active":
        return []
    return units.steps(UNIT, seen)


def denied_steps(settings: Settings, seen: Snapshot) -> list[Step]:
    """Other files that shut out the account of this run, whether in effect yet or not: no reload must do that.

    The guard could not mend it: what it puts back would be those files, too. `sshd -T` tells what they come to. Only
    what our drop-in does not overrule counts: where it has a value of its own, that of a Match block. Of USER@HOST
    the host is not judged.
    """
    if not seen.ssh_client or not seen.ssh_user:
        return []
    mine = seen.sshd_login or seen.sshd
    told = [
        *_shut_out_by_name(settings, seen, mine),
        *_shut_out_by_group(seen, mine),
        *_shut_out_by_method(seen, mine),
    ]
    if not told:
        return []
    keyword, value = told[0]
    mend = (
        f"{keyword} {value} would shut out {seen.ssh_user}, the account of this run, at sshd's next reload; "
        f"find it with `grep -rniE '^\\s*{keyword}' /etc/ssh`, remove that line and run again"
    )
    if keyword == "AuthorizedKeysFile":
        mend = (
            f"sshd looks for keys in {value}, and {seen.ssh_user}, the account of this run, has none there: the next "
            "reload would shut it out. Put its public key there, or into ~/.ssh/authorized_keys after removing an "
            "AuthorizedKeysFile line from /etc/ssh, and run again"
        )
    return [Step(f"sshd: {keyword} {value} shuts out {seen.ssh_user}", refusal=mend)]


_Told = tuple[str, str]


def _shut_out_by_name(settings: Settings, seen: Snapshot, mine: Mapping[str, tuple[str, ...]]) -> Iterator[_Told]:
    for pattern in _words(mine, "denyusers"):
        if _matches(seen.ssh_user, pattern.partition("@")[0]):
            yield "DenyUsers", pattern
    allowed = _words(mine, "allowusers")
    # Ours adds the account to the list for everybody, and there is no adding to that of a Match block.
    adds = wanted.allowed_users(settings, server(settings, seen)) and allowed == _words(seen.sshd, "allowusers")
    if allowed and not adds and not any(_matches(seen.ssh_user, each.partition("@")[0]) for each in allowed):
        yield "AllowUsers", " ".join(allowed)
    # A Match block's: what the drop-in says for everybody is lockout_steps' business.
    if seen.ssh_user == "root" and _no_by_match(seen, mine, "permitrootlogin"):
        yield "PermitRootLogin", "no"


def _shut_out_by_group(seen: Snapshot, mine: Mapping[str, tuple[str, ...]]) -> Iterator[_Told]:
    for pattern in _words(mine, "denygroups"):
        if any(_matches(group, pattern) for group in seen.login_groups):
            yield "DenyGroups", pattern
    allowed = _words(mine, "allowgroups")
    if allowed and not any(_matches(group, pattern) for group in seen.login_groups for pattern in allowed):
        yield "AllowGroups", " ".join(allowed)


def _shut_out_by_method(seen: Snapshot, mine: Mapping[str, tuple[str, ...]]) -> Iterator[_Told]:
    methods = _words(mine, "authenticationmethods")
    # Our own block for logins from outside has refusals of its own.
    ours = [render_totp.METHODS] if wanted.DROP_IN_PATH in seen.sshd_match_files else []
    if methods and methods != ours and not {"any", "publickey"} & set(methods):
        yield "AuthenticationMethods", " ".join(methods)
    if _no_by_match(seen, mine, "pubkeyauthentication"):
        yield "PubkeyAuthentication", "no"
    command = " ".join(mine.get("forcecommand", ()))
    if command not in ("", "none"):
        yield "ForceCommand", command
    elsewhere = _words(mine, "authorizedkeyscommand") + _words(mine, "trustedusercakeys")
    if not seen.login_keys and set(elsewhere) <= {"none"}:
        yield "AuthorizedKeysFile", " ".join(_words(mine, "authorizedkeysfile"))


def _no_by_match(seen: Snapshot, mine: Mapping[str, tuple[str, ...]], keyword: str) -> bool:
    return _words(mine, keyword) == ["no"] and _words(seen.sshd, keyword) != ["no"]


def _words(values: Mapping[str, tuple[str, ...]], keyword: str) -> list[str]:
    return " ".join(values.get(keyword, ())).split()


def _matches(name: str, pattern: str) -> bool:
    """sshd's patterns (ssh_config(5), PATTERNS) know `*` and `?` only."""
    return fnmatchcase(name, pattern.replace("[", "[[]"))


def foreign_ports(settings: Settings, seen: Snapshot) -> list[str]:
    """What to tell of ports at which sshd listens because another file says so: Port lines add up."""
    extra = set(seen.sshd.get("port", ())) - {str(port) for port in (settings.sshd_port, *ports(settings, seen))}
    if not extra or UNIT in seen.pending or wanted.DROP_IN_PATH not in seen.paths:
        return []
    listed = ", ".join(sorted(extra, key=int))
    return [f"sshd listens at port {listed} as well: another file says so, see `grep -rni ^port /etc/ssh`"]


def guard(settings: Settings, seen: Snapshot) -> Guard:
    """What is put back when nobody can log in afterwards, and where the login must work."""
    outside = (settings.sshd_port_outside or settings.sshd_port) if moves(settings, seen) else None
    paths = ("/etc/ssh", wanted.SOCKET_PATH.rpartition("/")[0], render_totp.PAM_PATH)
    return Guard(paths, reload=SSHD_RELOAD, port=outside)


@operation()
def inside_kept(settings: Settings, factors: tuple[File, ...]) -> Commands:
    """
    The machine that runs this is not one that will be asked for a code.

    + settings: the host's settings
    + factors: files of the second factor's secrets
    """
    control = control_side()
    yield from converge(
        lambda seen: totp.refusals(settings, factors, seen, through_ssh=bool(control.algorithms)),
    )


@operation()
def hardened(settings: Settings, factors: tuple[File, ...] = ()) -> Commands:
    """
    An SSH server that takes keys only, and from outside a code as well when there are secrets for it.

    + settings: the host's settings
    + factors: files of the second factor's secrets
    """
    proof: Guard | None = None
    control = control_side()
    found = False

    def missing(seen: Snapshot) -> list[Step]:
        nonlocal found
        left = steps(settings, seen, control, factors)
        if not left:
            for told in foreign_ports(settings, seen):
                report.notice(told)
        found = found or bool(left)
        return left

    def at_stake(seen: Snapshot) -> Guard:
        nonlocal proof
        proof = guard(settings, seen)
        return proof

    yield from converge(missing, at_stake)
    if found and proof is not None and proof.port is not None:
        yield from _followed(proof.port)


def _followed(port: int) -> Iterator[FunctionCommand | StringCommand]:
    """The rest of this run logs in at the new port, and its owner is told that the next one must."""

    def follow() -> None:
        host.data.ssh_port = port
        if host.connector is not None:
            host.connector.data["ssh_port"] = port
        report.notice(f"SSH has moved: set ssh_port = {port} for this host in your inventory before the next run")

    yield FunctionCommand(follow, (), {})


@deploy("ssh")
def provision(settings: Settings, factors: tuple[File, ...]) -> None:
    """The whole stage."""
    if settings.sshd_totp:
        # By itself: a slow mirror must not use up the time in which the change of sshd has to be proven.
        apt.packages(name="second factor", names=render_totp.packages(settings))
    hardened(name="server", settings=settings, factors=factors)
