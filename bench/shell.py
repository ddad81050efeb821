"""The yardstick below: one POSIX-sh script that checks the same resources, as a careful administrator writes it.

It asks each question once for all things it concerns (one sha256sum, one stat, one systemctl), compares whole
answers as text and explains only what differs, so it is hard to be faster in shell. It changes nothing.
"""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Iterable

from bench.resources import Resources
from lab.machine import Machine
from mediahost.render.firewall import CHAIN
from mediahost.resources import Directory, File

_HEAD = """#!/bin/sh
# Is the host as it should be? Exit code 0: yes. 1: no, each difference is named on a line.
set -u
export LC_ALL=C
work=$(mktemp -d) && trap 'rm -rf "$work"' EXIT || exit 2
failed=0
# same SUBJECT ACTUAL EXPECTED: compares texts; lines with < are wanted, lines with > are there
same() {
  [ "$2" = "$3" ] && return
  failed=1
  printf '%s\\n' "$3" >"$work/wanted"
  printf '%s\\n' "$2" >"$work/present"
  diff "$work/wanted" "$work/present" | sed -n "s|^\\([<>]\\)|$1: \\1|p"
}
"""

_TAIL = """
exit $failed
"""


def script(wanted: Resources) -> str:
    """The script for these resources."""
    return _HEAD + "\n".join(_checks(wanted)) + _TAIL


def command(machine: Machine) -> list[str]:
    """The words that run a script from stdin as root over a connection of its own."""
    # A socket kept open by another command would save the connection that the product has to make.
    fresh = ["-o", "ControlMaster=no", "-o", "ControlPath=none"]
    return [*machine.ssh_command()[:-1], *fresh, machine.name, "sudo -n sh -s"]


def run(machine: Machine, text: str) -> subprocess.CompletedProcess[str]:
    """Run the script `text` on the machine; the code says whether anything differs."""
    return subprocess.run(command(machine), input=text, capture_output=True, text=True, check=False)


def _checks(wanted: Resources) -> Iterable[str]:
    contents = "\n".join(f"{file.sha256}  {file.path}" for file in wanted.files)
    yield f"sha256sum --quiet -c 2>&1 <<'END' || failed=1\n{contents}\nEND"
    yield from _modes(wanted)
    packages = dict.fromkeys(wanted.packages, "ii") | dict.fromkeys(wanted.held, "hi")
    yield _same(
        "package",
        f"dpkg-query -W -f '${{Package}} ${{db:Status-Abbrev}}\\n' {' '.join(sorted(packages))} 2>&1 | sort",
        (f"{name} {status} " for name, status in packages.items()),
    )
    units = " ".join(wanted.units)
    yield _same("unit", f"systemctl is-active {units} | paste -sd ' '", [" ".join(["active"] * len(wanted.units))])
    # Units that other units start are "static": nothing to enable.
    yield _same(
        "unit at boot", f"systemctl is-enabled {units} | grep -cxE 'enabled|static|alias'", [str(len(wanted.units))]
    )
    yield _same(
        "sysctl",
        f"sysctl {' '.join(sorted(wanted.sysctls))}",
        (f"{key} = {value}" for key, value in wanted.sysctls.items()),
    )
    yield _same("time zone", "readlink /etc/localtime", [f"/usr/share/zoneinfo/{wanted.timezone}"])
    yield from _accounts(wanted)
    keys = "|".join(wanted.sshd)
    yield _same(
        "sshd",
        f"sshd -T | grep -E '^({keys}) ' | sort",
        (f"{key} {value}" for key, values in wanted.sshd.items() for value in values),
    )
    yield from _firewall(wanted)
    containers = [f"{each.service} {each.image} {each.digest} running" for each in wanted.containers]
    form = '{{.Label "mediahost.service"}} {{.Image}} {{.Label "mediahost.hash"}} {{.State}}={{.Status}}'
    yield _same(
        "container",
        f"docker ps -a --filter label=mediahost.service --format '{form}'"
        " | sed -e 's/=.*(unhealthy)$/ unhealthy/' -e 's/=.*//' | sort",
        containers,
    )


def controls(wanted: Resources) -> Iterable[tuple[str, str, str]]:
    """(what the script must name, shell that makes the difference, shell that undoes it), one of each kind."""
    file, directory = wanted.files[0], wanted.directories[-1]
    key, value = sorted(wanted.sysctls.items())[0]
    user, group = next((user.name, user.groups[0]) for user in wanted.users if user.groups)
    container = wanted.containers[0].service
    mark = wanted.tuples[0].split("comment=")[1]
    rules = f"/etc/ufw/{wanted.tuples[0].split()[0]}"
    yield (
        file.path,
        f"cp -p {file.path} /root/kept; echo >>{file.path}",
        f"cp -p /root/kept {file.path}; rm /root/kept",
    )
    yield directory.path, f"chmod 0711 {directory.path}", f"chmod {directory.mode} {directory.path}"
    yield wanted.held[0], f"apt-mark unhold {wanted.held[0]}", f"apt-mark hold {wanted.held[0]}"
    yield "unit", "systemctl stop systemd-timesyncd", "systemctl start systemd-timesyncd"
    yield "unit at boot", "systemctl disable systemd-timesyncd", "systemctl enable systemd-timesyncd"
    yield key, f"sysctl -q {key}={int(value) + 1}", f"sysctl -q {key}={value}"
    # Read before the product's own file; the running server never hears of it.
    other = "/etc/ssh/sshd_config.d/00-bench.conf"
    yield "x11forwarding", f"echo 'X11Forwarding yes' >{other}", f"rm {other}"
    yield user, f"gpasswd -d {user} {group}", f"gpasswd -a {user} {group}"
    yield mark, f"sed -i.kept 's/{mark}/00/' {rules}", f"mv {rules}.kept {rules}"
    rule = wanted.chain_marks[4][-1]
    yield rule, f"iptables -D {CHAIN} {len(wanted.chain_marks[4])}", "ufw reload"
    yield container, f"docker kill mediahost-{container}-1", f"docker start mediahost-{container}-1"


def _modes(wanted: Resources) -> Iterable[str]:
    paths: list[File | Directory] = [*wanted.files, *wanted.directories]
    expected = [f"{each.mode.lstrip('0')} {each.owner}:{each.group} {each.path}" for each in paths]
    # Some owners are named by number because the host has no such account.
    numeric = [line for line in expected if line.split()[1].replace(":", "").isdigit()]
    for subject, form, lines in (
        ("mode or owner", "%a %U:%G %n", [line for line in expected if line not in numeric]),
        ("mode or owner", "%a %u:%g %n", numeric),
    ):
        names = " ".join(shlex.quote(line.split(" ", 2)[2]) for line in sorted(lines))
        if names:
            yield _same(subject, f"stat -c '{form}' {names} 2>&1 | sort", lines)
    seeds = " ".join(shlex.quote(file.path) for file in wanted.seeds)
    if seeds:
        yield f'for file in {seeds}; do [ -f "$file" ] || {{ echo "missing: $file"; failed=1; }}; done'


def _accounts(wanted: Resources) -> Iterable[str]:
    for group in wanted.groups:
        if group.gid is not None:
            yield _same("group", f"getent group {group.name} | cut -d: -f1,3", [f"{group.name}:{group.gid}"])
    for user in wanted.users:
        if user.uid is not None:
            yield _same(
                "user",
                f"getent passwd {user.name} | cut -d: -f1,3,7",
                [f"{user.name}:{user.uid}:{user.shell}"],
            )
        for name in user.groups:
            yield (
                f"case \" $(id -nG {user.name}) \" in *' {name} '*) ;;"
                f' *) echo "user {user.name}: not in {name}"; failed=1 ;; esac'
            )


def _firewall(wanted: Resources) -> Iterable[str]:
    # `ufw status` is a Python program that takes seconds here; its state is these files and the kernel's rules.
    yield _same("firewall", "grep -x ENABLED=yes /etc/ufw/ufw.conf", ["ENABLED=yes"])
    yield _same(
        "firewall default",
        "grep -E '^(IPV6|DEFAULT_(INPUT|OUTPUT|FORWARD)_POLICY)=' /etc/default/ufw | tr -d '\"' | sort",
        [
            "IPV6=yes",
            "DEFAULT_INPUT_POLICY=DROP",
            "DEFAULT_OUTPUT_POLICY=ACCEPT",
            "DEFAULT_FORWARD_POLICY=DROP",
        ],
    )
    yield _same(
        "firewall rule",
        "cd /etc/ufw && grep '^### tuple ###' user.rules user6.rules | sed 's/:### tuple ###//' | sort",
        wanted.tuples,
    )
    for program, version in (("iptables", 4), ("ip6tables", 6)):
        yield _same(
            f"{program} {CHAIN}",
            f"{program} -S {CHAIN} | sed -n 's/.*--comment \"\\{{0,1\\}}\\(mediahost:[^ \"]*\\).*/\\1/p'",
            wanted.chain_marks[version],
            ordered=True,
        )


def _same(subject: str, question: str, expected: Iterable[str], ordered: bool = False) -> str:
    lines = list(expected) if ordered else sorted(expected)
    return f'same {shlex.quote(subject)} "$({question})" {shlex.quote(chr(10).join(lines))}'
