"""Puts a program of ours together so that a host's own Python can run it from standard input.

Modules of this project that the program imports travel along; nothing is left on the host. One line of text: a log
that repeats it stays readable.
"""

from __future__ import annotations

import base64
import importlib.util
import json
import re
import zlib
from pathlib import Path
from typing import Any

# Runs on the host. Modules are made in the order given, so each finds those it imports.
_START = """
import base64, json, sys, types, zlib
sources, request = json.loads(zlib.decompress(base64.b64decode("{}")))
sys.modules["mediahost"] = types.ModuleType("mediahost")
for name, source in sources:
    module = sys.modules[name] = types.ModuleType(name)
    exec(compile(source, name, "exec"), module.__dict__)
print(json.dumps(module.answer(request)))
"""


def program(module: str, request: dict[str, Any]) -> str:
    """A line of Python that prints, as JSON, what `answer(request)` of `module` gives.

    The module may use the standard library and, by `from mediahost.NAME import`, modules of which the same is true.
    """
    content = base64.b64encode(zlib.compress(json.dumps([_sources(module), request]).encode(), 9)).decode()
    inner = base64.b64encode(_START.replace("{}", content).encode()).decode()
    return f"import base64;exec(base64.b64decode('{inner}'))"


def _sources(module: str) -> list[tuple[str, str]]:
    """(name, text) of the module, what it imports first."""
    specification = importlib.util.find_spec(module)
    if specification is None or specification.origin is None:
        raise ModuleNotFoundError(module)
    text = Path(specification.origin).read_text()
    found: list[tuple[str, str]] = []
    for needed in re.findall(r"^from (mediahost\.\w+) import", text, re.MULTILINE):
        found += [each for each in _sources(needed) if each not in found]
    return [*found, (module, text)]
