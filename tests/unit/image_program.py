"""Programs of the lab's images, as an image has them."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from lab import registry

IMAGES = Path(registry.__file__).parent / "images"


@contextmanager
def image_program(name: str) -> Iterator[ModuleType]:
    """The module, its helpers beside it and imported by their bare names."""
    sys.path.insert(0, str(IMAGES))
    try:
        yield importlib.import_module(name)
    finally:
        sys.path.remove(str(IMAGES))
