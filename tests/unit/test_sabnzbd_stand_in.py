"""The lab's stand-in for SABnzbd: the contract it enforces, and that the product's own file fulfils it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from mediahost import config
from mediahost.catalog import load_catalog
from mediahost.render.compose import render_compose
from mediahost.stack import build_stack
from tests.unit.image_program import image_program


@pytest.fixture(scope="module")
def program() -> Iterator[ModuleType]:
    with image_program("sabnzbd") as module:
        yield module


def started(program: ModuleType, root: Path, text: str | None) -> Any:
    (root / "config").mkdir(parents=True, exist_ok=True)
    if text is not None:
        (root / "config/sabnzbd.ini").write_text(text)
    service = program.Sabnzbd("sabnzbd", {"MEDIAHOST_STAND_IN_ROOT": str(root)})
    service.prepare()
    return service


def asked(service: Any, program: ModuleType, path: str, host: str = "sabnzbd:8081") -> int:
    status: int = service.answer(program.Request(f"GET {path} HTTP/1.1\r\nHost: {host}\r\n".encode())).status
    return status


def ours() -> str:
    read = config.read("nas", {"services": ["sabnzbd"]})
    stack = build_stack(read, load_catalog(), "nas", lambda entry, kind: f"of-{entry}".replace("/", "-"))
    (file,) = [file for file in render_compose(stack, read).files if file.path.endswith("sabnzbd.ini")]
    return file.content.decode()


def test_the_products_own_file_is_understood(program: ModuleType, tmp_path: Path) -> None:
    service = started(program, tmp_path, ours())
    assert service.port == 8081
    assert service.login
    assert (tmp_path / "data/usenet/incomplete").is_dir()
    assert asked(service, program, "/api?mode=version") == 200
    assert asked(service, program, "/api?mode=fullstatus&apikey=of-nas-sabnzbd-api_key") == 200
    for path in ("/api?mode=fullstatus", "/api?mode=fullstatus&apikey=of-nas-sabnzbd-nzb_key"):
        assert asked(service, program, path) == 403


def test_without_a_login_only_names_it_knows_are_answered(program: ModuleType, tmp_path: Path) -> None:
    service = started(program, tmp_path, "[misc]\napi_key = k\nhost_whitelist = sabnzbd, other\n")
    assert asked(service, program, "/", "sabnzbd:8081") == 200
    assert asked(service, program, "/", "192.168.1.5:8081") == 200
    assert asked(service, program, "/", "sabnzbd.example.org") == 403


def test_a_first_start_makes_keys_and_keeps_them(program: ModuleType, tmp_path: Path) -> None:
    first = started(program, tmp_path, None)
    assert len(first.key) == 32
    assert started(program, tmp_path, None).key == first.key


def test_a_file_without_a_key_ends_it(program: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        started(program, tmp_path, "[misc]\nport = 8081\n")


def test_values_of_deeper_sections_are_no_settings(program: ModuleType) -> None:
    assert program.section("[misc]\nport = 1\n[categories]\n[[tv]]\nport = 2\n", "misc") == {"port": "1"}
