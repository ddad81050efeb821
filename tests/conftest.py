"""Markers, and the proof: `--proof` runs what is exhaustive too, goes on where it stopped, and writes tables."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# The machines are shared: how long an example takes says nothing about the code.
settings.register_profile("mediahost", deadline=None)
settings.load_profile("mediahost")

ROOT = Path(__file__).resolve().parent.parent
TABLES = ROOT / "docs" / "proof"
RESULTS = TABLES / "results.json"
TITLES = {"foundation": "the foundation", "edge": "the edge", "vpn": "the VPN", "media-host": "the media host"}
# What the proof is of: a change in any of these makes earlier results void.
SOURCES = ("deploy.py", "catalog", "facts", "mediahost", "operations", "tests/lab")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--proof", action="store_true", help="run the exhaustive trials and write docs/proof/")
    parser.addoption("--afresh", action="store_true", help="with --proof: repeat what has passed already, too")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "proof(area, page): a claim that belongs on a page of docs/proof/")
    config.addinivalue_line("markers", "exhaustive: only with --proof; a sample of it runs in every make test")
    if config.getoption("--proof"):
        config.pluginmanager.register(_Proof(afresh=config.getoption("--afresh")))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    proving = config.getoption("--proof")
    kept = [
        item
        for item in items
        if (item.get_closest_marker("proof") if proving else not item.get_closest_marker("exhaustive"))
    ]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept


def pytest_collection_finish(session: pytest.Session) -> None:
    if "pyinfra_cli" in sys.modules:
        # It lets gevent replace threads and sockets for the whole session: a test with a busy thread never ends.
        raise pytest.UsageError("a test imports pyinfra_cli, perhaps by way of operations.run; run it as a process")


class _Proof:
    """Remembers what became of each claim, at which commit, and writes the tables after every one.

    A proof can be cut short and goes on where it stopped: what has held for these very sources is not tried again.
    Results of earlier sources stay in the tables, with their commit, until they are replaced.
    """

    def __init__(self, afresh: bool) -> None:
        self.afresh = afresh
        self.sources = _fingerprint()
        self.commit = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
        ).stdout.strip()
        self.results: dict[str, dict[str, Any]] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        held = [item for item in items if not self.afresh and self._held(item.nodeid)]
        config.hook.pytest_deselected(items=held)
        items[:] = [item for item in items if item not in held]

    def _held(self, claim: str) -> bool:
        result = self.results.get(claim, {})
        return (result.get("outcome"), result.get("sources")) == ("passed", self.sources)

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
        outcome = yield
        report = outcome.get_result()
        if report.when == "call" or report.outcome != "passed":
            marker = item.get_closest_marker("proof")
            if marker is None:
                return
            callspec = getattr(item, "callspec", None)
            if RESULTS.exists():
                # Another process may prove other areas at the same time.
                self.results |= json.loads(RESULTS.read_text())
            self.results[item.nodeid] = {
                "area": marker.args[0],
                "page": marker.args[1] if len(marker.args) > 1 else "foundation",
                "claim": item.name.partition("[")[0].removeprefix("test_").replace("_", " "),
                "case": callspec.id if callspec else "",
                "outcome": report.outcome,
                "seconds": round(report.duration),
                "when": datetime.now(UTC).strftime("%Y-%m-%d %H:%M"),
                "commit": self.commit,
                "sources": self.sources,
            }
            TABLES.mkdir(exist_ok=True)
            new = RESULTS.with_suffix(f".{os.getpid()}")
            new.write_text(json.dumps(dict(sorted(self.results.items())), indent=1) + "\n")
            new.replace(RESULTS)
            page = self.results[item.nodeid]["page"]
            mine = {key: result for key, result in self.results.items() if result["page"] == page}
            (TABLES / f"{page}.md").write_text(_tables(TITLES[page], mine))


def _fingerprint() -> str:
    digest = hashlib.sha256()
    for source in SOURCES:
        root = ROOT / source
        for path in sorted([root] if root.is_file() else root.rglob("*.*")):
            if path.suffix in (".py", ".yaml") and path.is_file():
                digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _tables(title: str, results: dict[str, dict[str, Any]]) -> str:
    passed = sum(1 for result in results.values() if result["outcome"] == "passed")
    lines = [
        f"# Proof: {title}",
        "",
        f"Written by `make prove`: {passed} of {len(results)} trials held, each at the commit beside it. Each ran on "
        "the lab's machines (Debian 13, own kernel, systemd, sshd, UFW, Docker) and was judged from outside.",
    ]
    for area in dict.fromkeys(result["area"] for result in results.values()):
        lines += [
            "",
            f"## {area}",
            "",
            "| claim | case | held | seconds | when (UTC) | commit |",
            "|---|---|---|---|---|---|",
        ]
        lines += [
            f"| {result['claim']} | {result['case']} | {'yes' if result['outcome'] == 'passed' else '**no**'} "
            f"| {result['seconds']} | {result['when']} | {result['commit']} |"
            for _, result in sorted(results.items())
            if result["area"] == area
        ]
    return "\n".join(lines) + "\n"
