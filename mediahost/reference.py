"""Writes what is derived from the models: group_data/all.py, the reference, the hardening table, the JSON Schema.

`python -m mediahost.reference` writes them, a test proves they are current.
"""

from __future__ import annotations

import json
import pprint
import textwrap
from collections.abc import Callable
from pathlib import Path

from mediahost.config import Settings
from mediahost.controls import BASE_CONTROLS, CONTROLS, OPTIONAL, WAIVERS

ROOT = Path(__file__).resolve().parent.parent
OUTPUTS: dict[str, Callable[[], str]] = {
    "group_data/all.py": lambda: group_data(),
    "docs/reference.md": lambda: reference(),
    "docs/hardening.md": lambda: hardening(),
    "docs/settings.schema.json": lambda: json.dumps(Settings.model_json_schema(), indent=2) + "\n",
}

_HEAD = '''"""Every default, generated from mediahost/config.py by `python -m mediahost.reference`.

Do not change values here: set them in your inventory, for a host or a group. `_sudo` tells pyinfra to become root.
"""

_sudo = True
'''


def group_data() -> str:
    """`group_data/all.py`: each key with its meaning above it."""
    parts = [_HEAD]
    for key, field in Settings.model_fields.items():
        comment = textwrap.fill(field.description or "", 110, initial_indent="# ", subsequent_indent="# ")
        value = pprint.pformat(field.get_default(), width=100, sort_dicts=False)
        parts.append(f"{comment}\n{key} = {value}\n")
    return "\n".join(parts)


def reference() -> str:
    """`docs/reference.md`: one table of all keys."""
    lines = [
        "# Reference: every key of the configuration",
        "",
        "Generated from `mediahost/config.py`. Set keys in the inventory, for a host or for a group.",
        "",
        "| key | default | meaning |",
        "|---|---|---|",
    ]
    for key, field in Settings.model_fields.items():
        default = json.dumps(field.get_default()).replace("|", "\\|")
        lines.append(f"| `{key}` | `{default}` | {(field.description or '').replace('|', chr(92) + '|')} |")
    return "\n".join(lines) + "\n"


_HARDENING_HEAD = """# Hardening: every control, its source and its switch

Generated from `mediahost/controls.py`. The controls are on by default and leave Docker, WireGuard and UFW working;
those that cost more than a little are off until `hardening_optional` names them. What ssh-audit, Lynis and OpenSCAP
say of the result, and why they still suggest something, is in [yardsticks.md](yardsticks.md).

- `hardening = False` switches all of them off, `hardening_disabled = ["su", "umask"]` single ones by name; `audit`
  and `file_integrity` are keys of their own. What is switched off is given back: our files are removed, lines in the
  distribution's files get their former text, and kernel settings, modes, mount options and packages go back to what
  they were before the first run (noted in `/var/lib/mediahost/former`).
- A kernel setting that you name in `sysctl_extra` is yours; the controls leave it alone.
- What could keep an administrator out (sudo, su) is changed under the lock-out guard.

CIS is the CIS Ubuntu Linux 24.04 LTS Benchmark v1.0.0, dev-sec the DevSec Linux Baseline, KSPP the Kernel Self
Protection Project's recommended settings. A section number without its last digits stands for all below it.

## Controls
"""

_OPTIONAL_HEAD = """
## Optional controls

Off unless named: `hardening_optional = ["process-accounting"]`, or `["all"]` for every one; `hardening_disabled`
takes single ones out again. What is switched off is given back here as well.
"""

_WAIVERS_HEAD = """
## Waivers

What a benchmark asks for and this project leaves out, with the reason.
"""

_HARDENING_TAIL = """
## To know

- **umask.** Logins get 027. sudo gives root's commands 022 again, because packages' scripts expect it. Ubuntu from
  25.10 on has sudo-rs, which has no such setting: there, run `umask 022` before you install packages by hand.
- **Audit.** `ausearch -k mediahost-sudo` shows who changed sudo's files; the keys are `mediahost-` and one of ssh,
  sudo, identity, firewall, network, kernel, start, audit, docker, mediahost, modules. The log keeps five files of
  8 MiB. A run checks the rules' file and that auditd runs, not the rules in the kernel: `auditctl -l` shows those.
  In a container, and with `audit=0`, there is no audit; a run says so.
- **AIDE.** Its database is made once, at the end of the first run. After changes of your own:
  `aideinit -y -f && cp /var/lib/aide/aide.db.new /var/lib/aide/aide.db`. The same once on a host whose database was
  made with more checksums than SHA-256 and SHA-512: until then AIDE still compares, and warns of every entry.
- **USBGuard.** `usbguard list-devices -b` shows what is refused, `usbguard allow-device -p NUMBER` lets it in for
  good. Where the kernel has no USB bus, as in many virtual machines, its daemon does not start.
- **AppArmor** needs a kernel that has it on; Debian's and Ubuntu's have. A run says so where it is off.
- **Packages**, with what they bring, on a bare Debian: auditd 1 MB, apparmor 3 MB, libpam-pwquality 0.4 MB, debsums
  0.1 MB and, where it is missing, perl (50 MB); AIDE 1 MB. `hardening_disabled = ["package-sums"]` saves perl.
- `kernel.unprivileged_bpf_disabled` goes back to the distribution's value with the next boot.
"""


def hardening() -> str:
    """`docs/hardening.md`: the controls and the waivers as tables."""
    lines = [_HARDENING_HEAD, "| control | what it does | source | switch |", "|---|---|---|---|"]
    for control in (*CONTROLS, *BASE_CONTROLS):
        if control.switch == OPTIONAL:
            continue
        switch = "always" if control.switch == "-" else f"`{control.switch}`"
        lines.append(f"| `{control.name}` | {control.does} | {', '.join(control.sources)} | {switch} |")
    lines += [_OPTIONAL_HEAD, "| control | what it does | source | price |", "|---|---|---|---|"]
    for control in CONTROLS:
        if control.switch == OPTIONAL:
            lines.append(f"| `{control.name}` | {control.does} | {', '.join(control.sources)} | {control.price} |")
    lines += [_WAIVERS_HEAD, "| asked for | source | why not |", "|---|---|---|"]
    lines += [f"| {waiver.asks} | {', '.join(waiver.sources)} | {waiver.reason} |" for waiver in WAIVERS]
    return "\n".join((*lines, _HARDENING_TAIL))


def main() -> None:
    """Write all outputs."""
    for name, make in OUTPUTS.items():
        (ROOT / name).write_text(make())


if __name__ == "__main__":
    main()
