"""What a run tells: each change in words, in pyinfra's log and, for the `mediahost` command, as events.

Events are JSON lines appended to the file that MEDIAHOST_EVENTS names. Never a secret: changes name a subject and
what is different about it, not contents.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from pyinfra import host, logger, state
from pyinfra.api import Host, State
from pyinfra.api.state import BaseStateCallback, StateStage

_EVENTS = "MEDIAHOST_EVENTS"


def event(kind: str, **values: Any) -> None:
    """Append one event; does nothing unless a listener named a file."""
    target = os.environ.get(_EVENTS)
    if target:
        line = json.dumps({"event": kind, "time": round(time.time(), 3), **values})
        with Path(target).open("a") as file:
            file.write(line + "\n")


def change(what: str) -> None:
    """One difference: planned while preparing, being mended while executing."""
    planned = state.current_stage != StateStage.Execute
    logger.info(f"{host.print_prefix}{'would mend' if planned else 'mending'}: {what}")
    event("planned" if planned else "change", host=host.name, operation=_operation(), what=what)


def refusal(message: str) -> None:
    """Why this host is not changed any further. Told once: the plan and the run come to the same."""
    told: set[str] = host.connector_data.setdefault("mediahost_refusals", set())
    if message in told:
        return
    told.add(message)
    logger.error(f"{host.print_prefix}{message}")
    event("refused", host=host.name, operation=_operation(), what=message)


def notice(message: str) -> None:
    """Something the user should know that is not ours to change."""
    seen: set[str] = host.connector_data.setdefault("mediahost_notices", set())
    if message not in seen:
        seen.add(message)
        logger.warning(f"{host.print_prefix}{message}")
        event("notice", host=host.name, what=message)


def _operation() -> str:
    meta = state.op_meta.get(host.current_op_hash) if host.current_op_hash else None
    return sorted(meta.names)[0] if meta else ""


class _Progress(BaseStateCallback):
    """Tells the listener where the run is."""

    @staticmethod
    def operation_start(state: State, op_hash: str) -> None:
        event("operation", operation=sorted(state.get_op_meta(op_hash).names)[0])

    @staticmethod
    def operation_host_success(state: State, host: Host, op_hash: str, retry_count: int = 0) -> None:
        event("done", host=host.name, operation=sorted(state.get_op_meta(op_hash).names)[0])

    @staticmethod
    def operation_host_error(
        state: State, host: Host, op_hash: str, retry_count: int = 0, max_retries: int = 0
    ) -> None:
        event("failed", host=host.name, operation=sorted(state.get_op_meta(op_hash).names)[0])


def listen() -> None:
    """Register for pyinfra's own events, once a run."""
    state.add_callback_handler(_Progress())
    reached = {each.name for each in state.activated_hosts}
    for each in state.inventory:
        event("host" if each.name in reached else "unreachable", host=each.name)
