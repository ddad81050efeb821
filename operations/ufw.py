"""Stage firewall: UFW with our rules, and DOCKER-USER for what Docker forwards past it.

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
from operations import apt, files, report, units
from operations.convergence import Step, converge

UNIT = "ufw.service"
_DEFAULTS = {
    "DEFAULT_INPUT_POLICY": ("DROP", "deny incoming"),
    "DEFAULT_OUTPUT_POLICY": ("ACCEPT", "allow outgoing"),
    "DEFAULT_FORWARD_POLICY": ("DROP", "deny routed"),
}
_ANYWHERE = {"0.0.0.0/0", "::/0"}


@dataclass(frozen=True)
class Tuple:
    """One rule as UFW stores it, per IP version, with what we compare and what we need to delete it."""

    version: int
    action: str
    protocol: str
    port: str
    source: str
    destination: str
    comment: str
    plain: bool


def request() -> Request:
    """What the snapshot must look at for this stage."""
    return Request(units=frozenset((UNIT,)), contents=frozenset(wanted.AFTER_PATHS.values()))


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
        plain=direction == "in" and source_port == "any" and destination in _ANYWHERE and "_" not in action,
    )


def expected_tuples(rules: Sequence[FirewallRule]) -> dict[tuple[int, str, str, str, str], FirewallRule]:
    """Which tuples the rules become: one for each IP version that the source has."""
    expected = {}
    for rule in rules:
        versions = (4, 6) if rule.source == "any" else (ipaddress.ip_network(rule.source).version,)
        for version in versions:
            source = ("0.0.0.0/0" if version == 4 else "::/0") if rule.source == "any" else rule.source
            # ufw stores a single host without its mask (normalize_address in ufw/util.py).
            source = source.removesuffix("/32" if version == 4 else "/128")
            expected[(version, rule.action, rule.protocol, rule.port, source)] = rule
    return expected


def _key(found: Tuple) -> tuple[int, str, str, str, str]:
    return (found.version, found.action, found.protocol, found.port, found.source)


def _is_ours(found: Tuple) -> bool:
    return found.comment == wanted.COMMENT or found.comment.startswith(f"{wanted.COMMENT} ")


def _phrase(rule: FirewallRule) -> str:
    port = f"port {rule.port} proto {rule.protocol}" if rule.protocol != "any" else f"port {rule.port}"
    return f"{rule.action} in from {rule.source} to any {port}"


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
        source = "any" if found.source in _ANYWHERE else found.source
        rule = FirewallRule(found.port, found.protocol, source, found.action)
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
        {f"firewall rule {f.action} {f.protocol} {f.port} from {f.source} is not ours; it stays" for f in foreign}
    )


def default_steps(seen: Snapshot) -> list[Step]:
    """Default policies that are others."""
    steps = [
        Step(
            f"firewall default {words.split()[1]}: {seen.ufw_defaults.get(key, 'unset')}, wanted {value}",
            f"LC_ALL=C ufw default {words} >/dev/null",
        )
        for key, (value, words) in _DEFAULTS.items()
        if seen.ufw_defaults.get(key) != value
    ]
    if seen.ufw_defaults.get("IPV6") != "yes":
        steps.insert(0, Step("firewall: IPv6 is not filtered", "sed -i 's/^IPV6=.*/IPV6=yes/' /etc/default/ufw"))
    return steps


def after_files(settings: Settings, exposed: Sequence[Exposed], seen: Snapshot) -> list[File]:
    """UFW's after.rules and after6.rules with our block in them."""
    found = []
    for version, path in wanted.AFTER_PATHS.items():
        block = wanted.container_block(settings, exposed, version)
        content = wanted.with_block(seen.contents.get(path, ""), block)
        found.append(File(path, content.encode(), mode="0640"))
    return found


def live_steps(settings: Settings, exposed: Sequence[Exposed], seen: Snapshot) -> list[Step]:
    """Rules that are in the files but not in the kernel: somebody flushed them."""
    gone = []
    for version, lines in ((4, seen.iptables), (6, seen.ip6tables)):
        marks = re.findall(r"mediahost:[0-9a-f]{12}:\d+", "\n".join(line for line in lines if "DOCKER-USER" in line))
        if tuple(marks) != wanted.container_marks(settings, exposed, version):
            gone.append(f"IPv{version} DOCKER-USER")
        if not any("ufw" in line and "before-input" in line for line in lines):
            gone.append(f"IPv{version} input")
    if not gone:
        return []
    return [Step(f"firewall rules in the kernel: {', '.join(gone)} not as wanted", "LC_ALL=C ufw reload >/dev/null")]


def steps(settings: Settings, exposed: Sequence[Exposed], seen: Snapshot) -> list[Step]:
    """Everything that is missing, in the order that cannot lock anybody out: SSH's rule stands first."""
    lost = [path for path in wanted.AFTER_PATHS.values() if path not in seen.contents]
    if lost and "ufw" in seen.packages:
        # Without the chains of its own after.rules UFW does not load at all; only its package can bring them back.
        command = apt.APT + "apt install --reinstall -o Dpkg::Options::=--force-confmiss ufw >/dev/null"
        return [Step(f"{path}: missing, UFW's package restores it") for path in lost[1:]] + [
            Step(f"{lost[0]}: missing, UFW's package restores it", command)
        ]
    rules = wanted.host_rules(settings, exposed, (seen.ssh_port,))
    found = rule_steps(rules, seen, settings.firewall_prune_foreign)
    found += default_steps(seen)
    found += files.steps(after_files(settings, exposed, seen), seen, pending=UNIT)
    if not seen.ufw_enabled:
        enable = f"LC_ALL=C ufw --force enable >/dev/null\n{files.clear_pending(UNIT)}"
        return [*found, Step("firewall: not enabled", enable)]
    if UNIT in seen.pending or any(step.stdin for step in found):
        return [
            *found,
            Step(
                "firewall: rules changed, are loaded", f"LC_ALL=C ufw reload >/dev/null\n{files.clear_pending(UNIT)}"
            ),
        ]
    return found + live_steps(settings, exposed, seen)


@operation()
def firewall(settings: Settings, exposed: Sequence[Exposed]):  # type: ignore[no-untyped-def]
    """
    UFW switched on with the rules that follow from exposure.

    + settings: the host's settings
    + exposed: published ports
    """

    def missing(seen: Snapshot) -> list[Step]:
        rules = wanted.host_rules(settings, exposed, (seen.ssh_port,))
        for told in () if settings.firewall_prune_foreign else foreign_rules(rules, seen):
            report.notice(told)
        return steps(settings, exposed, seen)

    yield from converge(missing)


@deploy("firewall")
def provision(settings: Settings, exposed: Iterable[Exposed]) -> None:
    """The whole stage."""
    if settings.firewall:
        firewall(name="ufw", settings=settings, exposed=tuple(exposed))
        units.running(name="ufw at boot", unit=UNIT)
