"""What a host should have, as one flat list that the shell script and the playbook are both written from.

It is derived from the product's own `Wanted`, so the three look at the same things. What depends on the host
(files merged with the distribution's, sshd's algorithms and host keys, who logs in) comes from one snapshot of it
and goes through the product's own functions.
"""

from __future__ import annotations

from dataclasses import dataclass

from bench.host import NAME, Subject
from facts.snapshot import Snapshot, parse, script
from mediahost import secrets, wanted
from mediahost.catalog import load_catalog
from mediahost.check import check_all
from mediahost.cli.inventory import host_data
from mediahost.render import base, docker, firewall, ssh, users
from mediahost.resources import Container, Directory, File, FirewallRule, Group, User
from mediahost.wanted import Wanted
from operations import base as base_stage
from operations import docker as docker_stage
from operations import ssh as ssh_stage
from operations import ufw as ufw_stage
from operations.users import keys_file, keys_path
from operations.verify import request


@dataclass(frozen=True)
class Resources:
    """Everything that is looked at.

    `sshd` has the values of each keyword, one for each line of `sshd -T`, in their order; `tuples` are firewall
    rules as UFW's rule files hold them (ufw/parser).
    """

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
    sshd: dict[str, tuple[str, ...]]
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
    """The resources of the benchmark's host, which must be converged, and the product's value they come from."""
    catalog = load_catalog()
    settings = check_all(host_data(subject.inventory), catalog)[NAME]
    vault = secrets.Vault.open(secrets.vault_path(subject.inventory), secrets.KeyFile(subject.key))
    plan = wanted.build(NAME, settings, catalog, lambda entry, _kind: vault.get(entry))
    look = request(plan)
    seen = parse(subject.machine.run("sudo -n sh -s", input=script(look)).stdout.splitlines(), look)
    # The key was verified when it was fetched; what can be compared from outside is that it is still the same.
    keyring = subject.machine.run(["sudo", "-n", "cat", docker.KEYRING_PATH]).stdout.encode()
    return resources(plan, seen, keyring), plan


def resources(plan: Wanted, seen: Snapshot, keyring: bytes) -> Resources:
    """What `plan` asks of the host that was `seen` converged; `keyring` is the signing key of Docker's repository.

    The stages hardening and Fail2Ban have no part here: `host.py` switches them off.
    """
    settings = plan.settings
    exposed = plan.stack.exposed_ports
    accounts = users.users(settings)
    server = ssh_stage.server(settings, seen)
    files = _files(plan, seen, keyring)
    engine = docker_stage.packages(settings, seen)
    rules = firewall.host_rules(settings, exposed, (seen.ssh_port,))
    return Resources(
        files=tuple(file for file in files if not file.once),
        seeds=tuple(file for file in files if file.once),
        directories=plan.directories,
        packages=tuple(sorted({*base.packages(settings), base_stage.time_package(seen), *engine})),
        held=tuple(sorted(engine)) if settings.docker_hold else (),
        units=tuple(
            sorted(
                (
                    *base_stage.UPGRADE_TIMERS,
                    base_stage.JOURNALD,
                    base_stage.TIMESYNCD,
                    docker_stage.UNIT,
                    ssh_stage.UNIT,
                    ufw_stage.UNIT,
                )
            )
        ),
        sysctls=base.sysctls(settings),
        timezone=settings.timezone,
        groups=users.groups(settings),
        users=accounts,
        # Some releases take a keyword and do not print it; on a converged host nothing else can be missing.
        sshd={key: values for key, values in ssh.effective(settings, server).items() if key in seen.sshd},
        rules=rules,
        tuples=tuple(sorted(_tuples(rules))),
        chain_marks={version: firewall.container_marks(settings, exposed, version) for version in (4, 6)},
        containers=plan.containers,
    )


def _files(plan: Wanted, seen: Snapshot, keyring: bytes) -> list[File]:
    settings = plan.settings
    found = [
        *base.apt_files(settings),
        base.sysctl_file(settings),
        base.journald_file(settings),
        ssh.drop_in(settings, ssh_stage.server(settings, seen)),
        docker.daemon_file(settings, seen.contents.get(docker.DAEMON_PATH)),
    ]
    optional = (
        base.timesyncd_file(settings),
        ssh.banner_file(settings),
        users.sudoers(settings),
        docker.pin_file(settings),
        plan.proxy_file,
    )
    found += [file for file in optional if file is not None]
    if settings.docker_source == "docker":
        found.append(docker.source_file(settings, seen.os.id, seen.os.codename, seen.os.architecture))
        found.append(File(docker.KEYRING_PATH, keyring))
    found += plan.stack_files
    found += ufw_stage.after_files(settings, plan.stack.exposed_ports, seen)
    found += [keys_file(user, seen.contents.get(keys_path(user))) for user in users.admins(settings)]
    return found


def _tuples(rules: tuple[FirewallRule, ...]) -> list[str]:
    """`user.rules|user6.rules ACTION PROTOCOL PORT DESTINATION SOURCE-PORT SOURCE in|out comment=HEX`."""
    lines = []
    for (version, action, protocol, port, remote, way), rule in ufw_stage.expected_tuples(rules).items():
        anywhere = "0.0.0.0/0" if version == 4 else "::/0"
        file = "user.rules" if version == 4 else "user6.rules"
        comment = f" comment={rule.comment.encode().hex()}" if rule.comment else ""
        ends = f"{anywhere} any {remote}" if way == "in" else f"{remote} any {anywhere}"
        lines.append(f"{file} {action} {protocol} {port} {ends} {way}{comment}")
    return lines
