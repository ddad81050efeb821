"""Waiting for what a trial expects: a machine may be slow, so moments are never counted on."""

from __future__ import annotations

import time
from collections.abc import Callable


def becomes(wanted: Callable[[], bool], limit: float = 120) -> bool:
    """Whether `wanted` holds before `limit` seconds have passed; asked again each second."""
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline:
        if wanted():
            return True
        time.sleep(1)
    return False
