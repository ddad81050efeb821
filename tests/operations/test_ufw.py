"""The firewall: rules as UFW stores them, the chain of container rules, what is foreign, and what leaves the host."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from facts.snapshot import Snapshot
from mediahost.config import Settings, read
from mediahost.render import firewall as wanted
from mediahost.resources import File, FirewallRule
from mediahost.stack import ExposedPort
from operations import docker, ufw
from tests.operations.test_steps import INSTALLED, as_present, commands, directory, refusal, sound, told

SSH4 = "user.rules ### tuple ### allow tcp 22 0.0.0.0/0 any 0.0.0.0/0 in comment=6d65646961686f737420737368"
SSH6 = "user6.rules ### tuple ### allow tcp 22 ::/0 any ::/0 in comment=6d65646961686f737420737368"
SSH_RULE = FirewallRule("22", "tcp", comment="mediahost ssh")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (SSH4, ufw.Tuple(4, "allow", "tcp", "22", "0.0.0.0/0", "0.0.0.0/0", "mediahost ssh", plain=True)),
        (SSH6, ufw.Tuple(6, "allow", "tcp", "22", "::/0", "::/0", "mediahost ssh", plain=True)),
        (
            "user.rules ### tuple ### allow tcp 80,443 0.0.0.0/0 any 192.168.1.0/24 in",
            ufw.Tuple(4, "allow", "tcp", "80,443", "192.168.1.0/24", "0.0.0.0/0", "", plain=True),
        ),
        (
            "user.rules ### tuple ### limit any any 10.0.0.1 any 0.0.0.0/0 in_eth0",
            ufw.Tuple(4, "limit", "any", "any", "0.0.0.0/0", "10.0.0.1", "", plain=False),
        ),
        (
            "user.rules ### tuple ### allow tcp 22 0.0.0.0/0 any 0.0.0.0/0 OpenSSH - in",
            ufw.Tuple(4, "allow", "tcp", "22", "0.0.0.0/0", "0.0.0.0/0", "", plain=False),
        ),
        (
            "user.rules ### tuple ### route:allow tcp 80 0.0.0.0/0 any 0.0.0.0/0 in_eth0!out_eth1",
            ufw.Tuple(4, "route:allow", "tcp", "80", "0.0.0.0/0", "0.0.0.0/0", "", plain=False),
        ),
        ("user.rules ### tuple ### allow", None),
        ("# nothing", None),
    ],
)
def test_a_line_of_ufws_rule_files_is_understood(line: str, expected: ufw.Tuple | None) -> None:
    assert ufw.parse_tuple(line) == expected


def test_rules_that_are_there_are_no_step() -> None:
    assert ufw.rule_steps([SSH_RULE], Snapshot(ufw_tuples=(SSH4, SSH6)), prune_foreign=True) == []


@pytest.mark.parametrize("present", [(), (SSH4,), (SSH6,)])
def test_a_rule_missing_in_one_ip_version_is_missing(present: tuple[str, ...]) -> None:
    steps = ufw.rule_steps([SSH_RULE], Snapshot(ufw_tuples=present), prune_foreign=False)
    assert told(steps) == ["firewall rule allow in from any to any port 22 proto tcp (mediahost ssh): missing"]
    assert commands(steps) == (
        "LC_ALL=C ufw allow in from any to any port 22 proto tcp comment 'mediahost ssh' >/dev/null"
    )


@pytest.mark.parametrize(
    ("source", "stored"),
    [
        ("192.168.1.0/24", "192.168.1.0/24"),
        ("203.0.113.5/32", "203.0.113.5"),
        ("fd00::/8", "fd00::/8"),
        ("fd00::1/128", "fd00::1"),
    ],
)
def test_a_source_is_known_in_the_form_in_which_ufw_stores_it(source: str, stored: str) -> None:
    """ufw's normalize_address drops the mask of a single host."""
    version = ("user6.rules", "::/0") if ":" in source else ("user.rules", "0.0.0.0/0")
    line = f"{version[0]} ### tuple ### allow tcp 22 {version[1]} any {stored} in comment={b'mediahost ssh'.hex()}"
    rules = [replace(SSH_RULE, source=source)]
    assert ufw.rule_steps(rules, Snapshot(ufw_tuples=(line,)), prune_foreign=True) == []
    assert ufw.foreign_rules(rules, Snapshot(ufw_tuples=(line,))) == []
    assert len(ufw.rule_steps(rules, Snapshot(), prune_foreign=True)) == 1


def test_a_rule_under_another_comment_is_told() -> None:
    steps = ufw.rule_steps([replace(SSH_RULE, comment="mediahost x")], Snapshot(ufw_tuples=(SSH4, SSH6)), False)
    assert told(steps) == [
        "firewall rule allow in from any to any port 22 proto tcp (mediahost x): is there under another comment"
    ]


def test_a_rule_of_ours_that_is_not_wanted_goes_a_foreign_one_stays_and_is_told() -> None:
    foreign = "user.rules ### tuple ### allow tcp 8096 0.0.0.0/0 any 0.0.0.0/0 in"
    seen = Snapshot(ufw_tuples=(SSH4, SSH6, foreign))
    assert told(ufw.rule_steps([], seen, prune_foreign=False)) == [
        "firewall rule allow in from any to any port 22 proto tcp: not wanted any more"
    ]
    assert ufw.foreign_rules([], seen) == ["firewall rule allow tcp 8096 from 0.0.0.0/0 is not ours; it stays"]
    assert len(ufw.rule_steps([], seen, prune_foreign=True)) == 2


def test_each_default_policy_that_is_another_is_told() -> None:
    right = {key: value for key, (value, _) in ufw.defaults(Settings()).items()} | {"IPV6": "yes"}
    assert ufw.default_steps(Settings(), Snapshot(ufw_defaults=right)) == []
    wrong = {**right, "DEFAULT_INPUT_POLICY": "ACCEPT", "IPV6": "no"}
    assert told(ufw.default_steps(Settings(), Snapshot(ufw_defaults=wrong))) == [
        "firewall: IPv6 is not filtered",
        "firewall default incoming: ACCEPT, wanted DROP",
    ]
    assert len(ufw.default_steps(Settings(), Snapshot())) == 4


JUMP = "-A DOCKER-USER -m comment --comment mediahost -j MEDIAHOST-DOCKER"
EXPOSED = (ExposedPort(443, "tcp", "wan", "caddy", 443),)


def _ends(version: int, remote: str, way: str) -> str:
    here = "::/0" if version == 6 else "0.0.0.0/0"
    return f"{here} any {remote}" if way == "in" else f"{remote} any {here}"


def firewalled(settings: Settings, **changes: Any) -> Snapshot:
    """A host whose firewall is as wanted, with the kernel's rules in place."""
    contents = {
        path: wanted.with_block("# UFW\n", wanted.container_block(settings, EXPOSED, version))
        for version, path in wanted.AFTER_PATHS.items()
    }
    tuples = [
        f"{'user6' if version == 6 else 'user'}.rules ### tuple ### {action} {protocol} {port} "
        f"{_ends(version, remote, way)} {way} comment={rule.comment.encode().hex()}"
        for (version, action, protocol, port, remote, way), rule in ufw.expected_tuples(
            wanted.host_rules(settings, EXPOSED, (22,))
        ).items()
    ]

    def live(version: int, prefix: str) -> tuple[str, ...]:
        marks = wanted.container_marks(settings, EXPOSED, version)
        rules = [f"-A MEDIAHOST-DOCKER -m comment --comment {mark} -j RETURN" for mark in marks]
        return (f"-A INPUT -j {prefix}-before-input", "-A FORWARD -j DOCKER-USER", JUMP, *rules)

    contents[wanted.INIT_PATH] = wanted.with_block("#!/bin/sh\n", wanted.init_block())
    modes = dict.fromkeys(contents, "0640") | {wanted.INIT_PATH: "0750"}
    found = Snapshot(
        packages={"ufw": INSTALLED},
        contents=contents,
        paths=as_present(*(File(path, text.encode(), mode=modes[path]) for path, text in contents.items())),
        ufw_enabled=True,
        ufw_defaults={key: value for key, (value, _) in ufw.defaults(settings).items()} | {"IPV6": "yes"},
        ufw_tuples=tuple(tuples),
        iptables=live(4, "ufw"),
        ip6tables=live(6, "ufw6"),
    )
    return replace(found, **changes)


def test_a_firewall_as_wanted_is_no_step() -> None:
    assert ufw.steps(Settings(), EXPOSED, firewalled(Settings())) == []


def test_rules_flushed_from_the_kernel_are_loaded_again() -> None:
    steps = ufw.steps(Settings(), EXPOSED, firewalled(Settings(), iptables=(), ip6tables=()))
    assert "IPv4 MEDIAHOST-DOCKER, IPv4 input, IPv6 MEDIAHOST-DOCKER, IPv6 input" in told(steps)[0]


def test_another_order_of_the_kernels_rules_is_not_as_wanted() -> None:
    seen = firewalled(Settings())
    turned = (*seen.iptables[:3], *reversed(seen.iptables[3:]))
    assert ufw.steps(Settings(), EXPOSED, replace(seen, iptables=turned)) != []


def test_ssh_is_let_in_before_the_firewall_is_switched_on() -> None:
    seen = firewalled(Settings(), ufw_enabled=False, ufw_tuples=(), ssh_port=2222)
    text = commands(ufw.steps(Settings(), EXPOSED, seen))
    assert text.index("port 22 ") < text.index("ufw --force enable")
    assert text.index("port 2222 ") < text.index("ufw --force enable")


def test_an_edited_block_is_put_back_and_loaded() -> None:
    path = wanted.AFTER_PATHS[4]
    seen = firewalled(Settings())
    edited = replace(
        seen, contents={**seen.contents, path: "# UFW\n"}, paths={**seen.paths, path: directory("640", "file")}
    )
    changes = told(ufw.steps(Settings(), EXPOSED, edited))
    assert changes[0].startswith(f"{path}: content differs")
    assert changes[-1] == "firewall: rules changed, are loaded"


def test_ufws_own_files_come_back_from_its_package() -> None:
    path = wanted.AFTER_PATHS[6]
    seen = firewalled(Settings())
    lost = replace(seen, contents={key: text for key, text in seen.contents.items() if key != path})
    steps = ufw.steps(Settings(), EXPOSED, lost)
    assert told(steps) == [f"{path}: missing, UFW's package restores it"]
    sound(steps)


# --- rules of others in Docker's chain

FOREIGN = "-A DOCKER-USER -s 203.0.113.9/32 -j DROP"


@pytest.mark.parametrize(
    ("rules", "fine"),
    [
        ([JUMP], True),
        ([JUMP, FOREIGN, "-A DOCKER-USER -j RETURN"], True),
        ([], False),
        ([FOREIGN], False),
        ([FOREIGN, JUMP], False),
        ([JUMP, JUMP], False),
        # a version before this one had its rules there themselves
        ([JUMP, "-A DOCKER-USER -m comment --comment mediahost:0123456789ab:0 -j RETURN"], False),
    ],
)
def test_docker_asks_our_chain_first_and_once(rules: list[str], fine: bool) -> None:
    seen = firewalled(Settings())
    lines = tuple(line for line in seen.iptables if not line.startswith("-A DOCKER-USER"))
    steps = ufw.steps(Settings(), EXPOSED, replace(seen, iptables=(*lines, *rules)))
    assert (steps == []) is fine
    if not fine:
        assert told(steps) == ["firewall rules in the kernel: IPv4 DOCKER-USER not as wanted"]
        assert commands(steps) == "/etc/ufw/after.init start"


def test_foreign_container_rules_are_told_and_stay_unless_they_are_to_go() -> None:
    seen = firewalled(Settings())
    seen = replace(seen, ip6tables=(*seen.ip6tables, FOREIGN, "-A DOCKER-USER -j RETURN"))
    assert [each for each in ufw.notices(Settings(), [], seen) if each.startswith("container rule")] == [
        f"container rule `ip6tables {FOREIGN}` is not ours; it stays, behind ours: it can forbid more, not allow more"
    ]
    assert ufw.steps(Settings(), EXPOSED, seen) == []
    prune = Settings(firewall_prune_foreign=True)
    steps = ufw.steps(prune, EXPOSED, seen)
    assert told(steps) == [f"container rule `ip6tables {FOREIGN}`: not ours"]
    assert commands(steps).endswith("| ip6tables-restore -w -n")
    assert not [each for each in ufw.notices(prune, [], seen) if each.startswith("container rule")]
    sound(steps)


def test_rules_of_the_other_iptables_are_told() -> None:
    assert "3 rule(s) made with iptables-legacy" in ufw.notices(Settings(), [], Snapshot(legacy_rules=3))[0]
    assert ufw.notices(Settings(), [], Snapshot()) == []


_NAMESPACE = ["unshare", "-Urn", "sh", "-euc"]


def _can_filter() -> bool:
    if not all(shutil.which(name) for name in ("unshare", "iptables", "ip6tables", "iptables-restore")):
        return False
    return subprocess.run([*_NAMESPACE, "iptables -w -S"], capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not _can_filter(), reason="needs iptables and a network namespace of one's own")
def test_real_chains_keep_foreign_rules_through_reloads_and_our_jump_stands_first_and_once(tmp_path: Path) -> None:
    """What UFW does at each start and reload: `iptables-restore -n` of its after.rules, then after.init."""
    init = tmp_path / "after.init"
    init.write_text("#!/bin/sh\nset -e\n" + wanted.init_block())
    loads = []
    for version, command in ((4, "iptables"), (6, "ip6tables")):
        block = tmp_path / command
        block.write_text(wanted.container_block(Settings(), EXPOSED, version))
        loads.append(f"{command}-restore -n <{block}")
    load = "; ".join([*loads, f"sh {init} start"])
    rules = "iptables -S DOCKER-USER | tail -n +2; echo; ip6tables -S DOCKER-USER | tail -n +2; echo --"
    script = f"""
        {load}; {rules}
        {load}; {rules}
        iptables -A DOCKER-USER -s 203.0.113.9 -j DROP; iptables -I DOCKER-USER -s 203.0.113.8 -j DROP
        iptables -A DOCKER-USER -m comment --comment mediahost:0123456789ab:3 -j DROP
        {load}; {rules}
        iptables -F DOCKER-USER
        {load}; {rules}
        {_prune()}
        {rules}
        iptables -S MEDIAHOST-DOCKER | tail -n +2 | wc -l
    """
    done = subprocess.run([*_NAMESPACE, script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    *states, count = done.stdout.split("--\n")
    only = f"{JUMP}\n\n{JUMP}\n"
    kept = (
        f"{JUMP}\n-A DOCKER-USER -s 203.0.113.8/32 -j DROP\n-A DOCKER-USER -s 203.0.113.9/32 -j DROP\n\n{JUMP}\n",
    )
    assert tuple(states) == (only, only, *kept, only, only)
    assert int(count) == len(wanted.container_marks(Settings(), EXPOSED, 4))


def _prune() -> str:
    seen = firewalled(Settings())
    seen = replace(seen, iptables=(*seen.iptables, FOREIGN))
    return "iptables -A DOCKER-USER -s 203.0.113.9 -j DROP; " + commands(
        ufw.steps(Settings(firewall_prune_foreign=True), EXPOSED, seen)
    )


# --- outbound


def test_what_leaves_the_host_is_free_unless_it_is_denied() -> None:
    assert not [rule for rule in wanted.host_rules(Settings(), EXPOSED, ()) if rule.direction == "out"]
    assert ufw.defaults(Settings())["DEFAULT_OUTPUT_POLICY"][0] == "ACCEPT"
    assert ufw.defaults(Settings(firewall_outbound="deny"))["DEFAULT_OUTPUT_POLICY"] == ("DROP", "deny outgoing")


def test_a_closed_host_still_reaches_what_it_cannot_do_without_and_what_is_allowed() -> None:
    settings = read(
        "nas",
        {
            "firewall_outbound": "deny",
            "firewall_outbound_allow": [{"port": 587, "destination": "198.51.100.0/24", "comment": "mail"}],
            "registry_prefix": "registry.example.org:5000",
            "docker_address_pools": [{"base": "172.30.0.0/16", "size": 24}],
        },
    )
    rules = [rule for rule in wanted.host_rules(settings, EXPOSED, ()) if rule.direction == "out"]
    found = {(rule.port, rule.protocol, rule.source) for rule in rules}
    needed = {("53", "any"), ("123", "udp"), ("67", "udp"), ("80,443", "tcp"), ("5000", "tcp")}
    assert {(port, protocol, "any") for port, protocol in needed} <= found
    assert {("587", "tcp", "198.51.100.0/24"), ("any", "any", "172.30.0.0/16")} <= found
    text = commands(ufw.rule_steps(rules, Snapshot(), prune_foreign=False))
    assert "ufw allow out from any to 198.51.100.0/24 port 587 proto tcp comment 'mediahost out: mail'" in text
    assert "ufw allow out from any to 172.30.0.0/16 comment" in text


def test_outgoing_rules_are_known_again_and_stand_before_the_door_is_shut() -> None:
    settings = Settings(firewall_outbound="deny")
    assert ufw.steps(settings, EXPOSED, firewalled(settings)) == []
    changes = told(ufw.steps(settings, EXPOSED, firewalled(Settings())))
    shut = next(number for number, change in enumerate(changes) if "default outgoing" in change)
    assert max(number for number, change in enumerate(changes) if "allow out" in change) < shut


def test_when_it_is_free_again_the_outgoing_rules_go_and_incoming_twins_stay() -> None:
    changes = told(ufw.steps(Settings(), EXPOSED, firewalled(Settings(firewall_outbound="deny"))))
    assert "firewall rule allow out from any to any port 53: not wanted any more" in changes
    assert not [change for change in changes if " in " in change]


# --- Docker's other backend


@pytest.mark.parametrize(
    ("content", "refused"),
    [
        ('{"firewall-backend": "nftables"}', True),
        ('{"firewall-backend": "iptables"}', False),
        ('{"firewall-backend": ""}', False),
        ("{}", False),
        ("", False),
    ],
)
def test_dockers_nftables_backend_is_refused_before_packages_change(content: str, refused: bool) -> None:
    seen = Snapshot(contents={"/etc/docker/daemon.json": content})
    steps = docker.engine_steps(Settings(), seen)
    assert bool([step for step in steps if step.refusal]) is refused
    if refused:
        assert "firewall-backend is nftables" in refusal(steps)
        mended = read("nas", {"docker_daemon_extra": {"firewall-backend": "iptables"}})
        assert not [step for step in docker.engine_steps(mended, seen) if step.refusal]
