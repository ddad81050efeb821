"""Packages: installed, held, removed, in as few apt runs as possible, waiting for whoever holds the lock."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence

from pyinfra.api import operation

from facts.snapshot import Snapshot
from operations.convergence import Commands, Step, converge

# `apt-get` does not wait for a lock by itself; 600 s outlives an unattended upgrade. needrestart must neither ask
# nor restart services in the middle of a run. Kept configuration files: ours are drop-ins, so the old one stays.
APT = (
    "export DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1 NEEDRESTART_MODE=l\n"
    "apt() { apt-get -q -y -o DPkg::Lock::Timeout=600 -o Acquire::Retries=3 -o APT::Update::Error-Mode=any"
    ' -o Dpkg::Options::=--force-confdef -o Dpkg::Options::=--force-confold "$@" </dev/null; }\n'
    # A killed run can leave packages unpacked but not configured; nothing else works until they are.
    'if [ -n "$(dpkg --audit)" ]; then dpkg --configure -a --force-confdef --force-confold </dev/null; fi\n'
)

# On a machine's first minutes cloud-init and the apt timers install things; exit code 2 is "done, with warnings".
_FIRST_BOOT = "if command -v cloud-init >/dev/null; then cloud-init status --wait >/dev/null || [ $? -eq 2 ]; fi\n"


def install_steps(names: Iterable[str], seen: Snapshot, without: Iterable[str] = ()) -> list[Step]:
    """Install what is missing of `names` and purge what is there of `without`, in one apt run."""
    missing = [name for name in sorted(names) if not (name in seen.packages and seen.packages[name].installed)]
    unwanted = [name for name in sorted(without) if name in seen.packages]
    if not missing and not unwanted:
        return []
    changes = [Step(f"package {name}: not installed") for name in missing]
    changes += [
        Step(f"package {name}: in the way of {', '.join(missing) or 'ours'}, is removed") for name in unwanted
    ]
    words = [*(shlex.quote(name) for name in missing), *(f"{shlex.quote(name)}-" for name in unwanted)]
    command = _FIRST_BOOT + APT
    command += "apt update >/dev/null\n"
    command += f"apt install --no-install-recommends --allow-change-held-packages {' '.join(words)} >/dev/null"
    return [*changes[:-1], Step(changes[-1].change, command, timeout=3600)]


def exchange(names: str, held: bool) -> str:
    """Shell that installs of `names` the versions that apt prefers, older ones too; `held` keeps them so."""
    # apt takes the hold away together with what it allows.
    hold = f"\napt-mark hold {names} >/dev/null" if held else ""
    options = "--allow-downgrades --allow-change-held-packages --no-install-recommends"
    return f"{APT}apt update >/dev/null\napt install {options} {names} >/dev/null{hold}"


def hold_steps(names: Iterable[str], held: bool, seen: Snapshot) -> list[Step]:
    """Hold the installed ones of `names`, or release them."""
    different = [name for name in sorted(names) if name in seen.packages and seen.packages[name].held != held]
    if not different:
        return []
    verb = "hold" if held else "unhold"
    changes = [Step(f"package {name}: {'not held' if held else 'held'}") for name in different]
    command = f"apt-mark {verb} {' '.join(map(shlex.quote, different))} >/dev/null"
    return [*changes[:-1], Step(changes[-1].change, command)]


@operation()
def packages(names: Sequence[str]) -> Commands:
    """
    Packages that must be installed.

    + names: package names
    """
    yield from converge(lambda seen: install_steps(names, seen))
