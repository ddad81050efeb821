"""NZBGet: how it starts configured, that its password is nowhere else, and what the real program makes of it."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from facts.snapshot import PathState, Snapshot
from lab import network
from mediahost import config
from mediahost.catalog import load_catalog
from mediahost.render.compose import ComposeArtefacts, render_compose
from mediahost.resources import File
from mediahost.stack import Stack, build_stack
from operations import files
from tests.unit.image_program import image_program

CATALOG = load_catalog()
PASSWORD = "of-nas-nzbget-password"
WELL_KNOWN = "tegbzn6789"


def stack(**data: Any) -> Stack:
    read = config.read("nas", {"services": ["nzbget"], **data})
    return build_stack(read, CATALOG, "nas", lambda entry, kind: f"of-{entry}".replace("/", "-"))


def artefacts(**data: Any) -> ComposeArtefacts:
    return render_compose(stack(**data), config.read("nas", {"services": ["nzbget"], **data}))


def seed(**data: Any) -> File:
    (found,) = [file for file in artefacts(**data).files if file.path.endswith("/nzbget.conf")]
    return found


def keys(text: str) -> dict[str, str]:
    pairs = (line.partition("=") for line in text.splitlines() if line and not line.startswith("#"))
    return {key: value for key, _, value in pairs}


# --- the file before the first start


@pytest.mark.parametrize(
    ("layout", "complete", "incomplete"),
    [
        ("trash", "/data/usenet/complete", "/data/usenet/incomplete"),
        ("split", "/data/downloads/complete", "/data/downloads/incomplete"),
    ],
)
def test_it_starts_configured_for_the_layout_and_behind_a_login(layout: str, complete: str, incomplete: str) -> None:
    file = seed(layout=layout)
    assert (file.once, file.secret, file.mode, file.owner, file.group) == (True, True, "0600", "13000", "13000")
    found = keys(file.content.decode())
    assert (found["DestDir"], found["InterDir"]) == (complete, incomplete)
    assert (found["ControlUsername"], found["ControlPassword"]) == ("admin", PASSWORD)
    assert (found["ControlPort"], found["UMask"]) == ("6789", "002")
    (service,) = [service for service in stack(layout=layout).services if service.name == "nzbget"]
    targets = [mount.target for mount in service.mounts]
    for key, value in found.items():
        if key.endswith(("Dir", "LogFile")) and key != "WebDir":
            assert any(value.startswith(target) for target in targets), key


def test_nobody_is_let_in_without_a_password_nor_with_the_well_known_one() -> None:
    text = seed().content.decode()
    assert WELL_KNOWN not in text
    assert keys(text)["AuthorizedIP"] == ""


@pytest.mark.parametrize("data", [{}, {"service_overrides": {"nzbget": {"host_port": 16789}}}])
def test_the_port_that_the_images_start_up_waits_for_never_moves(data: dict[str, Any]) -> None:
    assert keys(seed(**data).content.decode())["ControlPort"] == "6789"


def test_the_password_is_in_the_seed_and_nowhere_else() -> None:
    found = artefacts()
    assert [file.path for file in found.files if PASSWORD.encode() in file.content] == [seed().path]
    assert PASSWORD not in repr(found.containers)
    body = yaml.safe_load(found.files[0].content)["services"]["nzbget"]
    assert not [name for name in body["environment"] if name.startswith("NZBGET")]
    assert "command" not in body
    assert not any("-u" in word or "@" in word for word in body["healthcheck"]["test"])


@pytest.mark.parametrize("variable", ["NZBGET_PASS", "FILE__NZBGET_PASS", "NZBGET_USER"])
@pytest.mark.parametrize("value", ["hidden", "secret:hidden"])
def test_a_variable_that_the_image_makes_an_argument_is_refused_unshown(variable: str, value: str) -> None:
    with pytest.raises(config.ConfigError) as error:
        stack(service_overrides={"nzbget": {"environment": {variable: value}}})
    (told,) = map(str, error.value.problems)
    assert f"service_overrides.nzbget.environment.{variable}: would be an argument" in told
    assert "hidden" not in told
    assert stack(service_overrides={"nzbget": {"environment": {"TZ": "Etc/UTC"}}}), "positive control"


def test_what_the_program_has_written_is_no_difference() -> None:
    file = seed()
    rewritten = PathState("file", "600", file.owner, file.group, "media", "media", "0" * 64)
    assert files.difference(file, Snapshot(paths={file.path: rewritten})) == ""
    assert files.difference(file, Snapshot(paths={})) == "missing", "positive control"


# --- the lab's image


@pytest.fixture(scope="module")
def image() -> Iterator[ModuleType]:
    with image_program("nzbget") as module:
        yield module


def test_the_image_overwrites_no_configuration_and_without_one_is_as_open_as_upstreams(
    image: ModuleType, tmp_path: Path
) -> None:
    template, conf = tmp_path / "template", tmp_path / "nzbget.conf"
    template.write_text(f"# IP\nControlIP=127.0.0.1\nControlPassword={WELL_KNOWN}\nAuthorizedIP=\n")
    image.prepare(str(conf), str(template))
    assert conf.read_text() == f"# IP\nControlIP=0.0.0.0\nControlPassword={WELL_KNOWN}\nAuthorizedIP=127.0.0.1\n"
    conf.write_text("ours\n")
    image.prepare(str(conf), str(template))
    assert conf.read_text() == "ours\n"


def test_the_image_refuses_a_password_that_would_be_an_argument(
    image: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    image.refuse_arguments({"PUID": "13000"})
    with pytest.raises(SystemExit):
        image.refuse_arguments({"NZBGET_PASS": "hidden"})
    assert "hidden" not in capsys.readouterr().out


# --- the real program

PROGRAM = shutil.which("nzbget")


class Running:
    """The real program with the product's file, in a directory of the test, laid out as in upstream's image."""

    def __init__(self, top: Path, image: ModuleType) -> None:
        assert PROGRAM is not None
        shared = Path(PROGRAM).resolve().parent.parent / "share/nzbget"
        (top / "app").mkdir()
        # A copy: the program takes the directory of the file itself for ${AppDir}.
        program = shutil.copy(PROGRAM, top / "app/nzbget")
        shutil.copytree(shared / "webui", top / "app/webui", ignore_dangling_symlinks=True)
        templates = [path for path in (shared / "nzbget.conf", shared / "webui/nzbget.conf") if path.exists()]
        self.template = image.as_upstream(templates[0].read_text())
        (top / "app/webui/nzbget.conf.template").write_text(self.template)
        self.port = network.free_port()
        self.conf, self.log = top / "config/nzbget.conf", top / "log"
        for directory in ("config", "data/usenet/complete", "data/usenet/incomplete"):
            (top / directory).mkdir(parents=True)
        text = seed().content.decode().replace("ControlPort=6789", f"ControlPort={self.port}")
        self.seeded = text.replace("=/data/", f"={top}/data/").replace("=/config/", f"={top}/config/")
        self.conf.write_text(self.seeded)
        self.conf.chmod(0o600)
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [program, "-s", "-c", str(self.conf), "-o", "OutputMode=log"],
                stdout=log,
                stderr=log,
                env={"HOME": str(top / "home"), "PATH": "/usr/bin:/bin"},
            )

    def asked(self, path: str, login: str = "", method: str = "GET", body: bytes | None = None) -> tuple[int, bytes]:
        headers = {"Authorization": f"Basic {base64.b64encode(login.encode()).decode()}"} if login else {}
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", body, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310 - always http on loopback
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, b""
        except OSError:
            return 0, b""

    def call(self, method: str, *parameters: Any) -> Any:
        body = json.dumps({"method": method, "params": parameters}).encode()
        status, content = self.asked("/jsonrpc", f"admin:{PASSWORD}", "POST", body)
        return json.loads(content)["result"] if status == 200 else status

    def until_healthy(self) -> None:
        """Wait for what the health check asks."""
        deadline = time.monotonic() + 30
        while self.asked("/", method="OPTIONS")[0] != 200:
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.1)

    def until_started(self, times: int) -> None:
        """Wait until the log tells so many starts."""
        deadline = time.monotonic() + 30
        while self.log.read_text().count("server-mode") < times:
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.1)

    def saved(self, **changed: str) -> None:
        """Save as the web interface does: all keys of the file, and the template's values of all it has not."""
        values = {option["Name"]: option["Value"] for option in self.call("loadconfig")}
        offered = {k: v for k, v in keys(self.template).items() if not k.startswith(("Server", "Category"))}
        options = [{"Name": key, "Value": value} for key, value in {**offered, **values, **changed}.items()]
        assert self.call("saveconfig", options) is True


@pytest.fixture
def running(tmp_path: Path, image: ModuleType) -> Iterator[Running]:
    started = Running(tmp_path, image)
    try:
        started.until_healthy()
        yield started
    finally:
        started.process.terminate()
        started.process.wait(timeout=30)


needs_program = pytest.mark.skipif(PROGRAM is None, reason="nzbget is not installed here")


@needs_program
def test_the_program_itself_starts_with_the_file_and_lets_in_only_who_has_the_password(running: Running) -> None:
    assert running.asked("/jsonrpc/version", f"admin:{PASSWORD}")[0] == 200, "positive control"
    for login in ("", "admin:", f"admin:{WELL_KNOWN}", f"nzbget:{WELL_KNOWN}", f"nzbget:{PASSWORD}"):
        assert [running.asked(path, login)[0] for path in ("/", "/jsonrpc/version")] == [401, 401], login
    assert running.asked("/", f"admin:{PASSWORD}")[0] == 200, "the web interface is there"
    assert running.call("status")["DownloadPaused"] is False
    log = running.log.read_text()
    # With an error in its configuration it pauses everything, and says so.
    assert "server-mode" in log
    assert "[ERROR]" not in log
    assert PASSWORD not in log
    assert PASSWORD not in Path(f"/proc/{running.process.pid}/cmdline").read_text()


@needs_program
def test_what_is_saved_in_the_program_keeps_every_key_that_was_seeded(running: Running) -> None:
    running.saved(DownloadRate="500")
    found, seeded = keys(running.conf.read_text()), keys(running.seeded)
    assert {key: found[key] for key in seeded} == seeded
    assert found["DownloadRate"] == "500", "what the user set is there"
    assert "LockFile" in found, "and what the template has"
    assert running.conf.stat().st_mode & 0o777 == 0o600
    assert running.call("reload") is True
    running.until_started(2)
    running.until_healthy()
    # The template would let in whoever comes from 127.0.0.1, as this test does.
    assert "AuthorizedIP=127.0.0.1" in running.template
    for login in ("", f"nzbget:{WELL_KNOWN}"):
        assert running.asked("/jsonrpc/version", login)[0] == 401
    assert running.asked("/jsonrpc/version", f"admin:{PASSWORD}")[0] == 200, "positive control"
