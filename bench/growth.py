"""How many remote execs a no-change run needs as the stack grows: none, the home selection, and 60 services more.

The 60 are copies of a catalogue entry under other names. Their files and directories are put on the machine and
compared like all others; only their containers are left out, since 60 of them do not fit into a small machine. All
containers are read in one question in any case.
"""

from __future__ import annotations

from pathlib import Path

import yaml

from bench.execs import counted
from bench.host import CONVERGED, PROJECT, BenchError, Report, Subject, changes, write_inventory

EXTRA_SERVICES = 60
_MODEL = "ddns-updater"


def measure(subject: Subject, report: Report) -> list[tuple[str, str, int, int]]:
    """(stack, command, remote execs, connections) of runs that change nothing. The machine is restored after."""
    rows = []
    try:
        for command, options in (("pyinfra -y", ("-y",)), ("pyinfra --dry", ("--dry",))):
            rows.append(_count(subject, "home", command, options))
        for verb in ("apply", "plan"):
            report(f"Counting the execs of mediahost {verb}")
            with counted(subject.machine) as tally:
                result = subject.mediahost(verb)
            if result.returncode != 0 or changes(result):
                raise BenchError(f"mediahost {verb} was to change nothing:\n{result.stdout}{result.stderr}")
            rows.append(("home", f"mediahost {verb}", tally.execs, tally.connections))
        wide = _wide_deploy(subject)
        report(f"Bringing the files of {EXTRA_SERVICES} more services to the machine")
        _settle(subject, wide)
        rows.append(_count(subject, f"home and {EXTRA_SERVICES} more", "pyinfra -y", ("-y",), wide))
        subject.machine.restore(CONVERGED)
        report("Bringing the machine to no services at all")
        bare = write_inventory(subject, "none", selection="none")
        _settle(bare, PROJECT / "deploy.py")
        rows.append(_count(bare, "none", "pyinfra -y", ("-y",)))
    finally:
        subject.machine.restore(CONVERGED)
    return rows


def _count(
    subject: Subject, stack: str, name: str, options: tuple[str, ...], deploy: Path = PROJECT / "deploy.py"
) -> tuple[str, str, int, int]:
    with counted(subject.machine) as tally:
        result = subject.pyinfra(*options, deploy=deploy)
    told = changes(result)
    if result.returncode != 0 or told:
        raise BenchError(f"the run was to change nothing: {told[:5]}\n{(result.stdout + result.stderr)[-2000:]}")
    return stack, name, tally.execs, tally.connections


def _settle(subject: Subject, deploy: Path) -> None:
    result = subject.pyinfra("-y", deploy=deploy)
    if result.returncode != 0:
        raise BenchError(f"the run failed:\n{(result.stdout + result.stderr)[-3000:]}")


def _wide_deploy(subject: Subject) -> Path:
    """The deploy with a larger catalogue and without the stages that need the containers."""
    directory = subject.scratch / "wide"
    catalog = directory / "catalog"
    catalog.mkdir(parents=True, exist_ok=True)
    for file in (PROJECT / "catalog").glob("*.yaml"):
        (catalog / file.name).write_text(file.read_text(encoding="utf-8"), encoding="utf-8")
    model = yaml.safe_load((catalog / f"{_MODEL}.yaml").read_text(encoding="utf-8"))
    for number in range(1, EXTRA_SERVICES + 1):
        name = f"extra{number}"
        # A secret file, so that each service has a file of its own and not only a directory.
        secret = {"name": "token", "kind": "token", "delivery": "file", "env": "TOKEN_FILE"}
        entry = {**model, "name": name, "title": name, "secrets": [secret]}
        (catalog / f"{name}.yaml").write_text(yaml.safe_dump(entry), encoding="utf-8")
    text = (PROJECT / "deploy.py").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.startswith(("verify.provision", "compose.provision"))]
    stack = 'files.managed(name="stack | files", files=wanted.stack_files)'
    lines.insert(lines.index("run.end()"), stack)
    prelude = (
        "import functools, pathlib\n"
        "from mediahost.catalog import load_catalog\n"
        "from operations import files\n"
        "from operations import run as _run\n"
        f"_run.load_catalog = functools.partial(load_catalog, pathlib.Path({str(catalog)!r}))\n"
    )
    path = directory / "deploy.py"
    path.write_text(prelude + "\n".join(lines) + "\n", encoding="utf-8")
    return path
