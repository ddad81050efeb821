"""Stage firewall: UFW with our rules, and a chain before DOCKER-USER's own for what Docker forwards past UFW.

UFW's state is read as the tuples it keeps in its rule files and compared as values. SSH is let in before the
firewall is switched on; a rule that is not ours is reported and stays unless `firewall_prune_foreign` says else.
"""

from __future__ import annotations

import ipaddress
import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pyinfra.api import deploy, operation

from facts.snapshot import Request, Snapshot
from mediahost.config import Settings
from mediahost.render import firewall as wanted
from mediahost.render.firewall import Exposed
from mediahost.resources import File, FirewallRule
from mediahost.vpn import Vpn
from operations import apt, files, owed, report, units
from operations.convergence import Commands, Step, converge
from operations.guard import UFW_RELOAD, Guard

UNIT = "ufw.service"
_ANYWHERE = {"0.0.0.0/0", "::/0"}
_GUARD = Guard(("/etc/ufw", "/etc/default/ufw"), reload=UFW_RELOAD)
# Docker before 28 ends DOCKER-USER with it; it changes nothing.
_NO_RULE = "-A DOCKER-USER -j RETURN"


def defaults(settings: Settings) -> dict[str, tuple[str, str]]:
    """Default policies: the key of /etc/default/ufw, its value, and the words for `ufw default`."""
    return {
        "DEFAULT_INPUT_POLICY": ("DROP", "deny incoming"),
        "DEFAULT_OUTPUT_POLICY": {"allow": ("ACCEPT", "allow outgoing"), "deny": ("DROP", "deny outgoing")}[
            settings.firewall_outbound
        ],
        "DEFAULT_FORWARD_POLICY": ("DROP", "deny routed"),
    }


@dataclass(frozen=True)
class Tuple:
    """One rule as UFW stores it, per IP version, with what we compare and what we need to delete it.

    `plain` rules are those that a `FirewallRule` can say.
    """

    version: int
    action: str
    protocol: str
    port: str
    source: str
    destination: str
    comment: str
    plain: bool
    direction: str = "in"

    @property
    def remote(self) -> str:
        """The address at the other end: where an incoming packet is from, or an outgoing one goes."""
        return self.destination if self.direction == "out" else self.source


def request() -> Request:
    """What the snapshot must look at for this stage."""
    return Request(units=frozenset((UNIT,)), contents=frozenset((*wanted.AFTER_PATHS.values(), wanted.INIT_PATH)))


def parse_tuple(line: str) -> Tuple | None:
    """A line `user.rules ### tuple ### allow tcp 22 0.0.0.0/0 any 0.0.0.0/0 in comment=6d65` as a value."""
    file, _, rest = line.partition(" ### tuple ### ")
    parts = rest.split()
    if len(parts) < 7:
        return None
    action, protocol, port, destination, source_port, source, direction = parts[:7]
    comment = ""
    for part in parts[7:]:
        if part.startswith("comment="):
            comment = bytes.fromhex(part.removeprefix("comment=")).decode(errors="replace")
    return Tuple(
        version=6 if file.startswith("user6") else 4,
        action=action,
        protocol=protocol,
        port=port,
        source=source,
        destination=destination,
        comment=comment,
        plain=direction in ("in", "out")
        and source_port == "any"
        and (destination if direction == "in" else source) in _ANYWHERE
        and "_" not in action,
        direction="out" if direction.startswith("out") else "in",
    )


_Key = tuple[int, str, str, str, str, str]


def expected_tuples(rules: Sequence[FirewallRule]) -> dict[_Key, FirewallRule]:
    """Which tuples the rules become: one for each IP version that the source has."""
    expected = {}
    for rule in rules:
        versions = (4, 6) if rule.source == "any" else (ipaddress.ip_network(rule.source).version,)
        for version in versions:
            source = ("0.0.0.0/0" if version == 4 else "::/0") if rule.source == "any" else rule.source
            # ufw stores a single host without its mask (normalize_address in ufw/util.py).
            source = source.removesuffix("/32" if version == 4 else "/128")
            expected[(version, rule.action, rule.protocol, rule.port, source, rule.direction)] = rule
    return expected


def _key(found: Tuple) -> _Key:
    return (found.version, found.action, found.protocol, found.port, found.remote, found.direction)


def _is_ours(found: Tuple) -> bool:
    return found.comment == wanted.COMMENT or found.comment.startswith(f"{wanted.COMMENT} ")


def _phrase(rule: FirewallRule) -> str:
    ends = f"in from {rule.source} to any" if rule.direction == "in" else f"out from any to {rule.source}"
    port = f" port {rule.port}" if rule.port != "any" else ""
    protocol = f" proto {rule.protocol}" if rule.protocol != "any" else ""
    return f"{rule.action} {ends}{port}{protocol}"


def rule_steps(rules: Sequence[FirewallRule], seen: Snapshot, prune_foreign: bool) -> list[Step]:
    """Rules that are missing or carry another comment, and rules that are not wanted any more."""
    present = {
        _key(found): found for line in seen.ufw_tuples if (found := parse_tuple(line)) is not None and found.plain
    }
    expected = expected_tuples(rules)
    steps: dict[str, Step] = {}
    for key, rule in expected.items():
        found = present.get(key)
        if found is not None and found.comment == rule.comment:
            continue
        command = f"LC_ALL=C ufw {_phrase(rule)} comment {shlex.quote(rule.comment)} >/dev/null"
        what = "missing" if found is None else "is there under another comment"
        steps.setdefault(command, Step(f"firewall rule {_phrase(rule)} ({rule.comment}): {what}", command))
    for key, found in present.items():
        if key in expected or not (_is_ours(found) or prune_foreign):
            continue
        remote = "any" if found.remote in _ANYWHERE else found.remote
        rule = FirewallRule(found.port, found.protocol, remote, found.action, direction=found.direction)
        # A twin of the other IP version goes with the same command when it is unwanted too, else ufw adds it back.
        command = f"LC_ALL=C ufw --force delete {_phrase(rule)} >/dev/null"
        steps.setdefault(command, Step(f"firewall rule {_phrase(rule)}: not wanted any more", command))
    return list(steps.values())


def foreign_rules(rules: Sequence[FirewallRule], seen: Snapshot) -> list[str]:
    """What to tell of rules that somebody else made."""
    expected = expected_tuples(rules)
    foreign = [
        found
        for line in seen.ufw_tuples
        if (found := parse_tuple(line)) is not None and _key(found) not in expected and not _is_ours(found)
    ]
    return sorted(
        {
            f"firewall rule {f.action} {f.protocol} {f.port} {'to' if f.direction == 'out' else 'from'} {f.remote} "
            "is not ours; it stays"
            for f in foreign
        }
    )


def foreign_container_rules(seen: Snapshot) -> list[str]:
    """Rules of somebody else in DOCKER-USER, as `iptables -S` prints them, with the command that has them."""
    found = []
    for command, lines in (("iptables", seen.iptables), ("ip6tables", seen.ip6tables)):
        rules = (line for line in lines if line.startswith("-A DOCKER-USER ") and line != _NO_RULE)
        found += [f"{command} {rule}" for rule in rules if not _JUMP.search(rule) and not _MARK.search(rule)]
    return found


_MARK = re.compile(r"mediahost:[0-9a-f]{12}:\d+")
_JUMP = re.compile(rf" -j {wanted.CHAIN}$")


def notices(settings: Settings, rules: Sequence[FirewallRule], seen: Snapshot) -> list[str]:
    """What to tell of what is not ours."""
    told = []
    if not settings.firewall_prune_foreign:
        told += foreign_rules(rules, seen)
        told += [
            f"container rule `{rule}` is not ours; it stays, behind ours: it can forbid more, not allow more"
            for rule in foreign_container_rules(seen)
        ]
    if seen.legacy_rules:
        told.append(
            f"{seen.legacy_rules} rule(s) made with iptables-legacy work beside the firewall that is managed here "
            "and can close what is open in it; see iptables-legacy-save"
        )
    return told


def default_steps(settings: Settings, seen: Snapshot) -> list[Step]:
    """Default policies that are others."""
    steps = [
        Step(
            f"firewall default {words.split()[1]}: {seen.ufw_defaults.get(key, 'unset')}, wanted {value}",
            f"LC_ALL=C ufw default {words} >/dev/null",
        )
        for key, (value, words) in defaults(settings).items()
        if seen.ufw_defaults.get(key) != value
    ]
    if seen.ufw_defaults.get("IPV6") != "yes":
        steps.insert(0, Step("firewall: IPv6 is not filtered", "sed -i 's/^IPV6=.*/IPV6=yes/' /etc/default/ufw"))
    return steps


def after_files(settings: Settings, exposed: Sequence[Exposed], seen: Snapshot) -> list[File]:
    """UFW's after.rules, after6.rules and after.init with our blocks in them."""
    found = []
    for version, path in wanted.AFTER_PATHS.items():
        block = wanted.container_block(settings, exposed, version)
        content = wanted.with_block(seen.contents.get(path, ""), block)
        found.append(File(path, content.encode(), mode="0640"))
    content = wanted.with_block(seen.contents.get(wanted.INIT_PATH, "#!/bin/sh\nset -e\n"), wanted.init_block())
    # UFW runs it only when it is executable, and fails as a whole when it fails.
    return [*found, File(wanted.INIT_PATH, content.encode(), mode="0750", check="sh -n {}")]


def live_steps(settings: Settings, exposed: Sequence[Exposed], seen: Snapshot) -> list[Step]:
    """Rules that are in the files but not in the kernel: somebody flushed them, or put his own before ours."""
    gone, jumps = [], []
    for version, lines in ((4, seen.iptables), (6, seen.ip6tables)):
        ours = "\n".join(line for line in lines if line.startswith(f"-A {wanted.CHAIN} "))
        if tuple(_MARK.findall(ours)) != wanted.container_marks(settings, exposed, version):
            gone.append(f"IPv{version} {wanted.CHAIN}")
        if not any("ufw" in line and "before-input" in line for line in lines):
            gone.append(f"IPv{version} input")
        rules = [line for line in lines if line.startswith("-A DOCKER-USER ")]
        if [bool(_JUMP.search(rule) or _MARK.search(rule)) for rule in rules] != [True] + [False] * (len(rules) - 1):
            jumps.append(f"IPv{version} DOCKER-USER")
    if not gone and not jumps:
        return _prune_steps(settings, seen)
    command = "LC_ALL=C ufw reload >/dev/null" if gone else f"{wanted.INIT_PATH} start"
    return [Step(f"firewall rules in the kernel: {', '.join(gone + jumps)} not as wanted", command)]


def _prune_steps(settings: Settings, seen: Snapshot) -> list[Step]:
    if not settings.firewall_prune_foreign:
        return []
    jump = f"-A DOCKER-USER -m comment --comment {wanted.COMMENT} -j {wanted.CHAIN}"
    # In one transaction: at no moment is a published port unfiltered.
    chain = f"printf '%s\\n' '*filter' ':DOCKER-USER - [0:0]' '{jump}' COMMIT"
    return [
        Step(f"container rule `{rule}`: not ours", f"{chain} | {rule.split()[0]}-restore -w -n")
        for rule in foreign_container_rules(seen)
    ]


def steps(settings: Settings, exposed: Sequence[Exposed], seen: Snapshot, vpn: Vpn | None = None) -> list[Step]:
    """Everything that is missing, in the order that cannot lock anybody out: SSH's rule stands first."""
    lost = [path for path in wanted.AFTER_PATHS.values() if path not in seen.contents]
    if lost and "ufw" in seen.packages:
        # Without the chains of its own after.rules UFW does not load at all; only its package can bring them back.
        command = apt.APT + "apt install --reinstall -o Dpkg::Options::=--force-confmiss ufw >/dev/null"
        return [Step(f"{path}: missing, UFW's package restores it") for path in lost[1:]] + [
            Step(f"{lost[0]}: missing, UFW's package restores it", command)
        ]
    rules = wanted.host_rules(settings, exposed, (seen.ssh_port,), vpn)
    found = rule_steps(rules, seen, settings.firewall_prune_foreign)
    found += default_steps(settings, seen)
    found += files.steps(after_files(settings, exposed, seen), seen, pending=UNIT)
    if not seen.ufw_enabled:
        enable = f"LC_ALL=C ufw --force enable >/dev/null\n{owed.clear(UNIT)}"
        return [*found, Step("firewall: not enabled", enable)]
    if UNIT in seen.pending or any(step.stdin for step in found):
        return [
            *found,
            Step("firewall: rules changed, are loaded", f"LC_ALL=C ufw reload >/dev/null\n{owed.clear(UNIT)}"),
        ]
    return found + live_steps(settings, exposed, seen)


@operation()
def firewall(settings: Settings, exposed: Sequence[Exposed], vpn: Vpn | None = None) -> Commands:
    """
    UFW switched on with the rules that follow from exposure.

    + settings: the host's settings
    + exposed: published ports
    + vpn: the host's tunnel, which has to leave
    """

    def missing(seen: Snapshot) -> list[Step]:
        rules = wanted.host_rules(settings, exposed, (seen.ssh_port,), vpn)
        for each in notices(settings, rules, seen):
            report.notice(each)
        return steps(settings, exposed, seen, vpn)

    yield from converge(missing, _GUARD)


@deploy("firewall")
def provision(settings: Settings, exposed: Iterable[Exposed], vpn: Vpn | None = None) -> None:
    """The whole stage."""
    if settings.firewall:
        firewall(name="ufw", settings=settings, exposed=tuple(exposed), vpn=vpn)
        units.running(name="ufw at boot", unit=UNIT)
