"""Writes what is derived from the configuration model: group_data/all.py, docs/reference.md and the JSON Schema.

`python -m mediahost.reference` writes them, a test proves they are current.
"""

from __future__ import annotations

import json
import pprint
import textwrap
from collections.abc import Callable
from pathlib import Path

from mediahost.config import Settings

ROOT = Path(__file__).resolve().parent.parent
OUTPUTS: dict[str, Callable[[], str]] = {
    "group_data/all.py": lambda: group_data(),
    "docs/reference.md": lambda: reference(),
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


def main() -> None:
    """Write all outputs."""
    for name, make in OUTPUTS.items():
        (ROOT / name).write_text(make())


if __name__ == "__main__":
    main()
