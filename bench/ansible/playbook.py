"""The playbook: the same resources in ansible-core's own modules, in the ways that cost the least time.

Nobody's playbook is written against us: packages go in one task, facts are not gathered, and where the right
module is in a collection outside ansible-core (sysctl, ufw, Docker) one cheap `command` asks for everything
at once, which is less work than the module would do.
"""

from __future__ import annotations

import base64
import shlex
from collections.abc import Iterable
from typing import Any

import yaml

from bench.resources import Resources
from mediahost.render.firewall import CHAIN

Task = dict[str, Any]


def playbook(wanted: Resources) -> str:
    """The playbook as YAML. It holds the contents of secret files: keep it where only its owner reads."""
    tasks = [*_tasks(wanted)]
    play = {"hosts": "all", "gather_facts": False, "become": True, "tasks": tasks}
    return yaml.safe_dump([play], sort_keys=False, width=1000)


def _tasks(wanted: Resources) -> Iterable[Task]:
    yield {"name": "packages", "apt": {"name": list(wanted.packages), "state": "present"}}
    yield _loop("package holds", "dpkg_selections", {"name": "{{ item }}", "selection": "hold"}, list(wanted.held))
    yield {
        "name": "time zone",
        "file": {"src": f"/usr/share/zoneinfo/{wanted.timezone}", "dest": "/etc/localtime", "state": "link"},
    }
    for group in wanted.groups:
        yield {"name": f"group {group.name}", "group": {"name": group.name, "gid": group.gid}}
    for user in wanted.users:
        given = {"name": user.name, "uid": user.uid, "group": user.group, "shell": user.shell}
        arguments: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
        arguments |= {"groups": list(user.groups), "append": True, "create_home": user.home is not None}
        yield {"name": f"user {user.name}", "user": arguments}
    yield _loop(
        "directories",
        "file",
        {
            "path": "{{ item.path }}",
            "owner": "{{ item.owner }}",
            "group": "{{ item.group }}",
            "mode": "{{ item.mode }}",
            "state": "directory",
        },
        [
            {"path": each.path, "owner": each.owner, "group": each.group, "mode": each.mode}
            for each in wanted.directories
        ],
        label="{{ item.path }}",
    )
    for forced, files in ((True, wanted.files), (False, wanted.seeds)):
        items = [
            {
                "path": file.path,
                "owner": file.owner,
                "group": file.group,
                "mode": file.mode,
                # In base64, so that no brace in a file is taken for a template.
                "content": base64.b64encode(file.content).decode(),
            }
            for file in files
        ]
        arguments = {"dest": "{{ item.path }}", "content": "{{ item.content | b64decode }}", "force": forced}
        if forced:
            arguments |= {"owner": "{{ item.owner }}", "group": "{{ item.group }}", "mode": "{{ item.mode }}"}
        yield _loop("files" if forced else "seeds", "copy", arguments, items, label="{{ item.path }}")
    yield _asked("sysctls", f"sysctl {' '.join(wanted.sysctls)}", [f"{k} = {v}" for k, v in wanted.sysctls.items()])
    sshd = [f"{key} {value}" for key, values in wanted.sshd.items() for value in values]
    yield _asked("sshd in effect", "sshd -T", sshd)
    yield _loop(
        "units", "systemd_service", {"name": "{{ item }}", "enabled": True, "state": "started"}, list(wanted.units)
    )
    tuples = [line.partition(" ")[2] for line in wanted.tuples]
    yield _asked("firewall rules", "cat /etc/ufw/user.rules /etc/ufw/user6.rules", tuples)
    for program, version in (("iptables", 4), ("ip6tables", 6)):
        yield _asked(f"rules in the kernel ({program})", f"{program} -S {CHAIN}", wanted.chain_marks[version])
    form = '{{.Image}} {{.Label "mediahost.hash"}} {{.State}}'
    yield _asked(
        "containers",
        f"docker ps -a --format {shlex.quote(form)}",
        [f"{each.image} {each.digest} running" for each in wanted.containers],
    )


def _loop(name: str, module: str, arguments: Task, items: list[Any], label: str = "{{ item }}") -> Task:
    return {"name": name, module: arguments, "loop": items, "loop_control": {"label": label}}


def _asked(name: str, command: str, expected: Iterable[str]) -> Task:
    """A question whose answer must hold every expected text; otherwise the task counts as changed."""
    # Docker writes its own templates in the braces of Jinja.
    verbatim = "{% raw %}" + command + "{% endraw %}"
    return {
        "name": name,
        "command": {"cmd": verbatim},
        "register": "answer",
        "vars": {"expected": list(expected)},
        "changed_when": "expected | reject('in', answer.stdout) | list | length > 0",
    }
