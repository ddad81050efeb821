"""What the lab supplies to guests: images in a registry and a signed apt repository, checked from outside."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab import aptrepo, daemon, network, registry
from lab.errors import LabError
from lab.images.definitions import DEFINITIONS, LABEL_STAND_IN
from lab.vendor import nvidia
from mediahost.config import read
from mediahost.gpu import Driver, Release
from mediahost.render import gpu

pytestmark = pytest.mark.lab

STAND_IN = Path(registry.__file__).parent / "images" / "stand_in.py"
KEY = "0123456789abcdef0123456789abcdef"
NEWEST_SONARR = "lscr.io/linuxserver/sonarr:4.0.19.2979-ls316"
OLDER_SONARR = "lscr.io/linuxserver/sonarr:4.0.18.2971-ls310"


# -- the registry -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def images() -> daemon.Service:
    registry.ensure_images()
    return registry.ensure_running()


def test_the_registry_serves_a_manifest_of_every_image_of_the_catalogue(images: daemon.Service) -> None:
    assert registry.missing_definitions() == []
    references = registry.references()
    assert len(references) >= len(DEFINITIONS)
    assert [reference for reference in references if registry.manifest(images, reference) is None] == []
    # Positive control: a tag nobody made is told apart.
    assert registry.manifest(images, "lscr.io/linuxserver/sonarr:no-such-tag") is None


def test_skopeo_reads_the_two_tags_of_sonarr_as_different_images(images: daemon.Service) -> None:
    digests = set()
    for reference in (NEWEST_SONARR, OLDER_SONARR):
        command = ["skopeo", "inspect", "--tls-verify=false", f"docker://{images.url[7:]}/{reference}"]
        found = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
        assert found["Labels"]["org.opencontainers.image.title"] == "stand-in for sonarr"
        digests.add(found["Digest"])
    assert len(digests) == 2


def test_only_stand_ins_are_labelled_as_stand_ins(images: daemon.Service) -> None:
    for definition in DEFINITIONS:
        config = registry.image_config(images, f"{definition.repository}:{definition.tags[0]}")
        assert config is not None
        assert config["Labels"][LABEL_STAND_IN] == str(definition.stand_in).lower()
        assert config["Labels"]["org.opencontainers.image.title"].startswith("stand-in for ") == definition.stand_in


def test_all_images_share_one_base_layer(images: daemon.Service) -> None:
    manifests = [registry.manifest(images, reference) for reference in registry.references()]
    assert len({manifest["layers"][0]["digest"] for manifest in manifests if manifest}) == 1
    base = manifests[0]["layers"][0] if manifests[0] else {"size": 0}
    assert 0 < base["size"] < 60_000_000


def test_nothing_is_pushed_twice(images: daemon.Service) -> None:
    assert registry.ensure_images() == []


def test_a_bumped_tag_of_the_catalogue_is_served(images: daemon.Service, tmp_path: Path) -> None:
    reference = "lscr.io/linuxserver/radarr:0.0.0-test"
    (tmp_path / "radarr.yaml").write_text(f"name: radarr\nimage: {reference}@sha256:{'0' * 64}\n")
    registry.ensure_images(catalog=tmp_path)
    assert registry.manifest(images, reference) is not None


def test_the_registry_listens_on_loopback_only(images: daemon.Service) -> None:
    assert listening_addresses(registry.port()) == {"127.0.0.1"}


def test_a_taken_port_is_told_with_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        monkeypatch.setenv("MEDIAHOST_LAB_REGISTRY_PORT", str(port))
        with pytest.raises(LabError, match=f"port {port} of 127.0.0.1 is taken"):
            registry.ensure_running()
    # Positive control: the same call works once the port is free.
    service = registry.ensure_running()
    try:
        assert fetch(f"{service.url}/v2/")[0] == 200
        assert registry.ensure_running().pid == service.pid
    finally:
        service.stop()
    assert registry.running() is None


# -- the stand-ins ------------------------------------------------------------------------------------------


def test_a_stand_in_says_that_it_is_one(tmp_path: Path) -> None:
    with stand_in("sonarr", tmp_path, SONARR__SERVER__PORT="{port}") as (url, process):
        status, body, headers = fetch(f"{url}/")
        assert status == 200
        assert "Sonarr" in body
        assert "stand-in for sonarr" in body
        assert headers["Server"].startswith("stand-in for sonarr")
    assert process.stdout is not None
    assert "stand-in for sonarr" in process.stdout.read()


@pytest.mark.parametrize(("name", "api"), [("sonarr", "v3"), ("radarr", "v3"), ("prowlarr", "v1")])
def test_a_servarr_api_demands_the_key_of_its_variable(name: str, api: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text(KEY)
    variables: dict[str, Any] = {
        f"{name.upper()}__SERVER__PORT": "{port}",
        f"FILE__{name.upper()}__AUTH__APIKEY": str(secret),
    }
    with stand_in(name, tmp_path, **variables) as (url, process):
        assert json.loads(fetch(f"{url}/ping")[1]) == {"status": "OK"}
        status_url = f"{url}/api/{api}/system/status"
        assert fetch(status_url)[0] == 401
        assert fetch(status_url, {"X-Api-Key": KEY[::-1]})[0] == 401
        config = (tmp_path / "config" / "config.xml").read_text()
        stored = config.partition("<ApiKey>")[2].partition("<")[0]
        assert len(stored) == 32
        assert fetch(status_url, {"X-Api-Key": stored})[0] == 401, "the variable must win over config.xml"
        status, body, _headers = fetch(status_url, {"X-Api-Key": KEY})
        assert (status, json.loads(body)["appName"]) == (200, name.capitalize())
    assert process.stdout is not None
    output = process.stdout.read()
    assert KEY not in output
    assert stored not in output


def test_a_key_file_that_ends_with_a_newline_does_not_work(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text(KEY + "\n")
    variables: dict[str, Any] = {"SONARR__SERVER__PORT": "{port}", "FILE__SONARR__AUTH__APIKEY": str(secret)}
    with stand_in("sonarr", tmp_path, **variables) as (url, _process):
        assert fetch(f"{url}/api/v3/system/status", {"X-Api-Key": KEY})[0] == 401


def test_a_servarr_whose_config_is_gone_is_unhealthy(tmp_path: Path) -> None:
    with stand_in("radarr", tmp_path, RADARR__SERVER__PORT="{port}") as (url, _process):
        assert fetch(f"{url}/ping")[0] == 200
        (tmp_path / "config" / "config.xml").unlink()
        assert fetch(f"{url}/ping")[0] == 500


def test_bazarr_takes_its_key_from_its_file_only(tmp_path: Path) -> None:
    port = network.free_port()
    folder = tmp_path / "config" / "config"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(f"auth:\n  apikey: '{KEY}'\ngeneral:\n  ip: '*'\n  port: {port}\n")
    with stand_in("bazarr", tmp_path, fixed_port=port) as (url, _process):
        assert fetch(f"{url}/api/system/ping")[0] == 200
        assert fetch(f"{url}/api/system/status")[0] == 401
        assert fetch(f"{url}/api/system/status", {"X-API-KEY": KEY})[0] == 200


def test_seerr_makes_its_key_at_the_first_start_and_demands_it(tmp_path: Path) -> None:
    with stand_in("seerr", tmp_path, PORT="{port}") as (url, _process):
        assert fetch(f"{url}/api/v1/status")[0] == 200
        key = json.loads((tmp_path / "app/config/settings.json").read_text())["main"]["apiKey"]
        # Upstream answers 403, not 401 (server/middleware/auth.ts).
        assert fetch(f"{url}/api/v1/settings/main")[0] == 403
        assert fetch(f"{url}/api/v1/settings/main", {"X-Api-Key": key})[0] == 200


def test_ddns_updater_refuses_a_broken_configuration_and_starts_with_an_empty_one(tmp_path: Path) -> None:
    data = tmp_path / "updater" / "data"
    data.mkdir(parents=True)
    for broken in ("{not json", '{"settings": [{"provider": "porkbun", "token": "t0ps3cret"}]}'):
        (data / "config.json").write_text(broken)
        result = subprocess.run(
            [sys.executable, "-IS", str(STAND_IN), "ddns-updater"],
            env={"MEDIAHOST_STAND_IN_ROOT": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert result.returncode == 1
        assert "is not valid" in result.stdout
        assert "t0ps3cret" not in result.stdout + result.stderr
    (data / "config.json").write_text('{"settings": []}')
    health = f"127.0.0.1:{network.free_port()}"
    with stand_in("ddns-updater", tmp_path, LISTENING_ADDRESS=":{port}", HEALTH_SERVER_ADDRESS=health) as (url, _):
        assert fetch(f"{url}/")[0] == 200
        assert healthcheck(health) == 0
    assert healthcheck(health) == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can drop privileges")
def test_a_linuxserver_stand_in_gives_its_files_to_puid_pgid_with_the_umask(tmp_path: Path) -> None:
    # Its new user must reach the directory.
    for directory in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        directory.chmod(0o755)
    variables: dict[str, Any] = {"SONARR__SERVER__PORT": "{port}", "PUID": "4321", "PGID": "4322", "UMASK": "002"}
    with stand_in("sonarr", tmp_path, **variables) as (url, process):
        assert fetch(f"{url}/ping")[0] == 200
        facts = Path(f"/proc/{process.pid}/status").read_text()
        assert "Uid:\t4321\t4321\t4321\t4321" in facts
        assert "Gid:\t4322\t4322\t4322\t4322" in facts
        state = (tmp_path / "config" / "config.xml").stat()
        assert (state.st_uid, state.st_gid, state.st_mode & 0o777) == (4321, 4322, 0o664)


# -- the apt repository -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def packages() -> daemon.Service:
    return aptrepo.ensure_running()


def test_the_served_key_has_the_fingerprint_that_the_lab_names(packages: daemon.Service, tmp_path: Path) -> None:
    for name, expected in (("gpg", aptrepo.fingerprint()), ("gpg-wrong", aptrepo.wrong_fingerprint())):
        key = tmp_path / name
        key.write_text(fetch(f"{packages.url}/linux/debian/{name}")[1])
        command = ["gpg", "--homedir", str(tmp_path), "--batch", "--with-colons", "--show-keys", str(key)]
        listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert f":{expected}:" in listing
    assert aptrepo.fingerprint() != aptrepo.wrong_fingerprint()


def test_apt_accepts_the_repository_with_its_key_and_refuses_it_with_another(
    packages: daemon.Service, tmp_path: Path
) -> None:
    right, output = apt_update(packages, "gpg", tmp_path / "right")
    assert right == 0, output
    wrong, output = apt_update(packages, "gpg-wrong", tmp_path / "wrong")
    assert wrong != 0
    assert "NO_PUBKEY" in output or "not signed" in output or "Missing key" in output


def test_a_changed_byte_in_the_index_is_refused(packages: daemon.Service, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(aptrepo.ensure_built(), copy)
    index = copy / "linux/debian/dists/trixie/InRelease"
    port = network.free_port()
    command = [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", "--directory", str(copy), str(port)]
    service = daemon.ensure_running(
        tmp_path / "server.json", command, f"http://127.0.0.1:{port}", "/linux/debian/gpg", "python3", ""
    )
    try:
        assert apt_update(service, "gpg", tmp_path / "whole")[0] == 0
        index.write_text(index.read_text().replace("Docker CE", "Docker EC"))
        assert apt_update(service, "gpg", tmp_path / "edited")[0] != 0
    finally:
        service.stop()


def test_the_repository_offers_two_engine_versions_and_all_of_dockers_names(
    packages: daemon.Service, tmp_path: Path
) -> None:
    assert apt_update(packages, "gpg", tmp_path)[0] == 0
    names = ("docker-ce", "docker-ce-cli", "containerd.io", "docker-buildx-plugin", "docker-compose-plugin")
    listing = apt(tmp_path, "apt-cache", "madison", *names).stdout
    found = {name: [line for line in listing.splitlines() if line.split()[0] == name] for name in names}
    assert {name: len(lines) for name, lines in found.items()} == dict(zip(names, (2, 2, 1, 1, 1), strict=True))
    versions = [line.split("|")[1].strip() for line in found["docker-ce"]]
    assert all(version.startswith("5:") and version.endswith("~debian.13~trixie") for version in versions)
    assert versions[0] > versions[1]


def test_the_engine_conflicts_with_debians(packages: daemon.Service, tmp_path: Path) -> None:
    assert apt_update(packages, "gpg", tmp_path)[0] == 0
    shown = apt(tmp_path, "apt-cache", "show", "docker-ce", "containerd.io").stdout
    conflicts = [line for line in shown.splitlines() if line.startswith("Conflicts:")]
    assert any("docker.io" in line for line in conflicts)
    assert any("runc" in line for line in conflicts)


def test_nvidias_flat_repositories_are_read_through_the_products_own_sources_and_kept_to_a_branch(
    packages: daemon.Service, tmp_path: Path
) -> None:
    settings = read(
        "nas",
        {
            "gpu_toolkit_apt_url": f"{packages.url}/{nvidia.TOOLKIT}",
            "gpu_nvidia_apt_url": f"{packages.url}/{nvidia.DRIVER}",
            "gpu_nvidia_apt_fingerprint": aptrepo.fingerprint(),
        },
    )
    release = Release("debian", "trixie", "13")
    stanzas: list[str] = []
    for source, url in (
        (gpu.toolkit_source(settings, release), gpu.toolkit_key_url(settings)),
        (gpu.driver_source(settings, release), gpu.driver_key_url(settings, release)),
    ):
        key = tmp_path / f"{len(stanzas)}.asc"
        key.write_text(fetch(url)[1])
        stanzas.append(re.sub(r"(?<=Signed-By: ).*", str(key), source.content.decode()))
    for part in ("state/lists/partial", "cache/archives/partial", "preferences"):
        (tmp_path / part).mkdir(parents=True)
    (tmp_path / "status").touch()
    (tmp_path / "docker.sources").write_text("\n".join(stanzas))
    updated = apt(tmp_path, "apt-get", "update", "-oAPT::Update::Error-Mode=any")
    assert updated.returncode == 0, updated.stderr
    assert "W:" not in updated.stderr

    def candidates() -> str:
        options = (f"-oDir::Etc::PreferencesParts={tmp_path}/preferences", "-oDir::Etc::Preferences=/dev/null")
        return apt(tmp_path, "apt-cache", "policy", *options, "nvidia-driver-cuda", "nvidia-container-toolkit").stdout

    assert "Candidate: 590" in candidates(), "the newest comes without the pin"
    pin = gpu.pin_file(Driver("580", True, (), (), dkms=True))
    (tmp_path / "preferences/mediahost-nvidia").write_bytes(pin.content)
    assert f"Candidate: {nvidia.VERSION}" in candidates()
    assert "Candidate: 1.20" in candidates(), "the toolkit has versions of its own"


def test_the_package_server_listens_on_loopback_only(packages: daemon.Service) -> None:
    assert listening_addresses(aptrepo.port()) == {"127.0.0.1"}


# -- means ----------------------------------------------------------------------------------------------------


def fetch(url: str, headers: dict[str, str] | None = None) -> tuple[int, str, dict[str, str]]:
    """(status, body, headers) of a GET, whatever the status."""
    request = urllib.request.Request(url, headers=headers or {})  # noqa: S310 - http on loopback
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310 - http on loopback
            return answer.status, answer.read().decode(), dict(answer.headers)
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(), dict(error.headers)


@contextlib.contextmanager
def stand_in(
    name: str, root: Path, /, *, fixed_port: int = 0, **variables: str
) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Run a stand-in below `root` on a free port ("{port}" in a variable); it must end with 0 on SIGTERM."""
    port = fixed_port or network.free_port()
    environment = {key: value.replace("{port}", str(port)) for key, value in variables.items()}
    process = subprocess.Popen(
        [sys.executable, "-IS", str(STAND_IN), name],
        env={"MEDIAHOST_STAND_IN_ROOT": str(root), "PUID": "0", "PGID": "0", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5):
                break
            assert process.poll() is None, process.stdout.read() if process.stdout else ""
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield f"http://127.0.0.1:{port}", process
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0
    finally:
        process.kill()
        process.wait()


def healthcheck(address: str) -> int:
    command = [sys.executable, "-IS", str(STAND_IN), "ddns-updater", "healthcheck"]
    environment = {"HEALTH_SERVER_ADDRESS": address}
    return subprocess.run(command, env=environment, capture_output=True, timeout=60, check=False).returncode


def listening_addresses(port: int) -> set[str]:
    """Local addresses that listen on a TCP port, IPv6 ones as the kernel writes them (proc_pid_net_tcp(5))."""
    found = set()
    for table in ("tcp", "tcp6"):
        path = Path(f"/proc/net/{table}")
        for line in path.read_text().splitlines()[1:] if path.exists() else []:
            _slot, local, _remote, state = line.split()[:4]
            address, _, number = local.partition(":")
            if state == "0A" and int(number, 16) == port:
                octets = bytes.fromhex(address)[::-1]
                found.add(".".join(map(str, octets)) if len(octets) == 4 else address)
    return found


def apt_update(service: daemon.Service, key: str, root: Path) -> tuple[int, str]:
    """`apt-get update` in a root of its own that knows only the lab's repository: exit code and output."""
    for part in ("state/lists/partial", "cache/archives/partial"):
        (root / part).mkdir(parents=True)
    (root / "status").touch()
    (root / "key.asc").write_text(fetch(f"{service.url}/linux/debian/{key}")[1])
    (root / "docker.sources").write_text(
        f"Types: deb\nURIs: {service.url}/linux/debian\nSuites: trixie\nComponents: stable\n"
        f"Architectures: amd64\nSigned-By: {root}/key.asc\n"
    )
    result = apt(root, "apt-get", "update", "-oAPT::Update::Error-Mode=any")
    return result.returncode, result.stdout + result.stderr


def apt(root: Path, *command: str) -> subprocess.CompletedProcess[str]:
    options = [f"Dir::State={root}/state", f"Dir::Cache={root}/cache", f"Dir::State::status={root}/status"]
    options += [f"Dir::Etc::SourceList={root}/docker.sources", "Dir::Etc::SourceParts=/dev/null"]
    options += ["APT::Architecture=amd64", "APT::Architectures=amd64"]
    if os.geteuid() == 0:
        # pytest's directories are closed to apt's own user.
        options.append("APT::Sandbox::User=root")
    words = [command[0], *(f"-o{option}" for option in options), *command[1:]]
    return subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
