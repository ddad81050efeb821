"""Each kind of drift is named by the plan as exactly that, and mended, and nothing else is touched."""

from __future__ import annotations

import pytest

from tests.lab.drifts import DRIFTS, Drift
from tests.lab.home import Home

pytestmark = [pytest.mark.lab, pytest.mark.proof("Drift: what the plan names, and the next run mends")]


@pytest.mark.parametrize(
    "drift",
    [pytest.param(drift, id=drift.name, marks=[] if drift.sample else [pytest.mark.exhaustive]) for drift in DRIFTS],
)
def test_drift_is_named_exactly_and_mended(home: Home, drift: Drift) -> None:
    home.machine.run(["sudo", "sh", "-c", drift.breaks])
    changes = home.changes()
    assert len(changes) == len(drift.expected), changes
    for change, expected in zip(changes, drift.expected, strict=True):
        assert change.startswith(expected)
    report = home.apply()
    assert [f"{change['operation']}: {change['what']}" for change in report["changes"]] == changes
    assert home.changes() == []
