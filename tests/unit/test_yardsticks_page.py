"""docs/yardsticks.md explains everything that the trials let the yardsticks say."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lab import test_debian12 as openscap
from tests.lab import test_yardsticks as lynis

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "yardsticks.md").read_text()
ROWS = [line for line in PAGE.splitlines() if line.startswith("| ")]


@pytest.mark.parametrize("name", sorted(lynis.EXPLAINED))
def test_each_suggestion_of_lynis_that_stays_has_a_row_with_a_reason(name: str) -> None:
    (row,) = [row for row in ROWS if row.startswith(f"| {name} |")]
    assert row.endswith(". |")


@pytest.mark.parametrize("rule", sorted(openscap.EXPLAINED))
def test_each_rule_of_openscap_that_stays_failed_has_a_row_with_a_reason(rule: str) -> None:
    (row,) = [row for row in ROWS if f"`{rule}`" in row]
    assert row.endswith(". |")


def test_the_page_explains_nothing_that_no_trial_lets_pass() -> None:
    explained = {row.split("|")[1].strip() for row in ROWS if row.split("|")[1].strip().split()[0][-5:-4] == "-"}
    assert explained
    assert explained <= lynis.EXPLAINED


def test_a_suggestion_is_known_by_its_test_and_one_of_ssh_by_its_option() -> None:
    line = "suggestion[]=SSH-7408|Consider hardening SSH configuration|MaxSessions (set 10 to 2)|-|"
    assert lynis.suggested(line) == "SSH-7408 MaxSessions"
    assert lynis.suggested("suggestion[]=NAME-4028|Check DNS configuration|-|-|") == "NAME-4028"
    assert lynis.suggested("suggestion[]=LYNIS|This release is old.|-|-|") == "LYNIS"
