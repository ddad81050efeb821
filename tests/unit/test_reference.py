"""What is derived from the model is current: the defaults, the reference and the schema."""

from __future__ import annotations

import json
import runpy
from typing import Any

import pytest

from mediahost.config import Settings, own_keys, read
from mediahost.reference import OUTPUTS, ROOT


@pytest.mark.parametrize("name", sorted(OUTPUTS))
def test_the_derived_file_is_current(name: str) -> None:
    assert (ROOT / name).read_text() == OUTPUTS[name](), "run: python -m mediahost.reference"


def group_data() -> dict[str, Any]:
    found = runpy.run_path(str(ROOT / "group_data" / "all.py"))
    return {key: value for key, value in found.items() if not key.startswith("__")}


def test_every_key_stands_in_the_defaults_with_the_models_value() -> None:
    assert own_keys(group_data()) == {key: field.get_default() for key, field in Settings.model_fields.items()}


def test_the_defaults_are_a_sound_configuration_and_the_models_own() -> None:
    assert read("nas", group_data()) == Settings()


def test_the_defaults_tell_pyinfra_to_become_root() -> None:
    assert group_data()["_sudo"] is True


def test_every_key_says_what_it_means_in_the_reference() -> None:
    text = (ROOT / "docs" / "reference.md").read_text()
    for key, field in Settings.model_fields.items():
        assert field.description
        assert f"| `{key}` |" in text


def test_every_row_of_the_reference_has_its_three_cells() -> None:
    rows = [line for line in (ROOT / "docs" / "reference.md").read_text().splitlines() if line.startswith("| `")]
    assert len(rows) == len(Settings.model_fields)
    for row in rows:
        assert row.replace("\\|", "").count("|") == 4, row


def test_the_schema_knows_every_key_and_no_other() -> None:
    schema = json.loads((ROOT / "docs" / "settings.schema.json").read_text())
    assert set(schema["properties"]) == set(Settings.model_fields)
    assert schema["additionalProperties"] is False
