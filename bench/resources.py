"""What a host should have, as one flat list that the shell script and the playbook are both written from.

It is derived from the product's own `Wanted`, so the three look at the same things. Files that are merged with
what the distribution put there (daemon.json, UFW's rules, authorized_keys) take that part from the host.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from bench.host import NAME, Subject
from lab.machine import Machine
from mediahost import secrets, wanted
from mediahost.catalog import load_catalog
from mediahost.check import check_all
from mediahost.cli.inventory import host_data
from mediahost.config import Settings
from mediahost.render import base, docker, firewall, ssh, users
from mediahost.resources import Container, Directory, File, FirewallRule, Group, User
from mediahost.wanted import Wanted
from operations import docker as docker_stage
from operations.ssh import UNIT as SSH_UNIT
from operations.ufw import expected_tuples
from operations.users import keys_file, keys_path


@dataclass(frozen=True)
class Resources:
    """Everything that is looked at. `tuples` are firewall rules as UFW's rule files hold them (ufw/parser)."""

    files: tuple[File, ...]
    seeds: tuple[File, ...]
    directories: tuple[Directory, ...]
    packages: tuple[str, ...]
    held: tuple[str, ...]
    units: tuple[str, ...]
    sysctls: dict[str, str]
    timezone: str
    groups: tuple[Group, ...]
    users: tuple[User, ...]
    sshd: dict[str, str]
    rules: tuple[FirewallRule, ...]
    tuples: tuple[str, ...]
    chain_marks: dict[int, tuple[str, ...]]
    containers: tuple[Container, ...]

    def counts(self) -> dict[str, int]:
        """How many of each kind, for the report."""
        return {
            "files": len(self.files) + len(self.seeds),
            "directories": len(self.directories),
            "packages": len(self.packages),
            "package holds": len(self.held),
            "units": len(self.units),
            "sysctls": len(self.sysctls),
            "accounts and groups": len(self.users) + len(self.groups),
            "sshd settings in effect": len(self.sshd),
            "firewall rules": len(self.rules),
            "containers": len(self.containers),
            "time zone": 1,
        }


def of(subject: Subject) -> tuple[Resources, Wanted]:
    """The resources of the benchmark's host, and the product's value they come from."""
    catalog = load_catalog()
    settings = check_all(host_data(subject.inventory), catalog)[NAME]
    vault = secrets.Vault.open(secrets.vault_path(subject.inventory), secrets.KeyFile(subject.key))
    plan = wanted.build(NAME, settings, catalog, lambda entry, _kind: vault.get(entry))
    return _flat(plan, subject.machine), plan


def _flat(plan: Wanted, machine: Machine) -> Resources:
    settings = plan.settings
    exposed = plan.stack.exposed_ports
    accounts = users.users(settings)
    ours = [*_host_files(settings, machine), *plan.stack_files, *([plan.proxy_file] if plan.proxy_file else [])]
    for version, path in firewall.AFTER_PATHS.items():
        block = firewall.container_block(settings, exposed, version)
        ours.append(File(path, firewall.with_block(_read(machine, path), block).encode(), mode="0640"))
    init = firewall.with_block(_read(machine, firewall.INIT_PATH), firewall.init_block())
    ours.append(File(firewall.INIT_PATH, init.encode(), mode="0750"))
    ours += [keys_file(user, _read(machine, keys_path(user))) for user in accounts if user.home]
    engine = docker.VENDOR_PACKAGES if settings.docker_source == "docker" else docker.distro_packages("debian", "")
    rules = firewall.host_rules(settings, exposed, ())
    return Resources(
        files=tuple(file for file in ours if not file.once),
        seeds=tuple(file for file in ours if file.once),
        directories=plan.directories,
        packages=tuple(sorted({*base.packages(settings), "systemd-timesyncd", *engine})),
        held=tuple(sorted(engine)) if settings.docker_hold else (),
        units=(
            "apt-daily-upgrade.timer",
            "apt-daily.timer",
            docker_stage.UNIT,
            SSH_UNIT,
            "systemd-journald.service",
            "systemd-timesyncd.service",
            "ufw.service",
        ),
        sysctls=base.sysctls(settings),
        timezone=settings.timezone,
        groups=users.groups(settings),
        users=accounts,
        sshd=ssh.effective(settings),
        rules=rules,
        tuples=tuple(sorted(_tuples(rules))),
        chain_marks={version: firewall.container_marks(settings, exposed, version) for version in (4, 6)},
        containers=plan.containers,
    )


def _host_files(settings: Settings, machine: Machine) -> list[File]:
    optional = [base.timesyncd_file(settings), users.sudoers(settings), docker.pin_file(settings)]
    found = [
        *base.apt_files(settings),
        base.sysctl_file(settings),
        base.journald_file(settings),
        ssh.drop_in(settings),
        docker.daemon_file(settings, _read(machine, docker.DAEMON_PATH)),
        *(file for file in optional if file is not None),
    ]
    if settings.docker_source == "docker":
        release = dict(re.findall(r'^(\w+)="?([^"\n]*)', _read(machine, "/etc/os-release"), re.MULTILINE))
        architecture = machine.run("dpkg --print-architecture").stdout.strip()
        found.append(docker.source_file(settings, release["ID"], release["VERSION_CODENAME"], architecture))
        # The key was verified when it was fetched; what can be compared from outside is that it is still the same.
        found.append(File(docker.KEYRING_PATH, _read(machine, docker.KEYRING_PATH).encode()))
    return found


def _tuples(rules: tuple[FirewallRule, ...]) -> list[str]:
    """`user.rules|user6.rules ACTION PROTOCOL PORT DESTINATION SOURCE-PORT SOURCE in|out comment=HEX`."""
    lines = []
    for (version, action, protocol, port, remote, way), rule in expected_tuples(rules).items():
        anywhere = "0.0.0.0/0" if version == 4 else "::/0"
        file = "user.rules" if version == 4 else "user6.rules"
        comment = f" comment={rule.comment.encode().hex()}" if rule.comment else ""
        ends = f"{anywhere} any {remote}" if way == "in" else f"{remote} any {anywhere}"
        lines.append(f"{file} {action} {protocol} {port} {ends} {way}{comment}")
    return lines


def _read(machine: Machine, path: str) -> str:
    return machine.run(["sudo", "-n", "cat", path]).stdout
