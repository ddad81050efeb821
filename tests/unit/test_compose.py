"""The compose file and what comes with it: valid for the real compose, hardened, free of secrets, hashed right."""

import base64
import configparser
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mediahost import config
from mediahost.catalog import load_catalog
from mediahost.render.compose import HASH_LABEL, SERVICE_LABEL, ComposeArtefacts, render_compose
from mediahost.render.proxy import render_proxy
from mediahost.render.seeds import qbittorrent_api_key, qbittorrent_password_hash
from mediahost.render.tree import render_tree
from mediahost.resources import MARK
from mediahost.stack import GIVEN, build_stack

CATALOG = load_catalog()
BIN = Path(sys.executable).parent
LAYOUTS = ("trash", "split")
HOME = sorted(name for name, entry in CATALOG.items() if "home" in entry.selections)
LINUXSERVER = [name for name in HOME if CATALOG[name].run_as.method == "linuxserver"]


def secret(name: str, kind: str) -> str:
    if kind == GIVEN:
        return f"GIVEN{name}"
    return f"SECRET{name.replace('/', '')}"


def render(source: Callable[[str, str], str] = secret, host: str = "nas", **data: Any) -> ComposeArtefacts:
    read = config.read(host, data)
    return render_compose(build_stack(read, CATALOG, host, source), read)


def document(**data: Any) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(render(**data).files[0].content)
    return content


def digests(source: Callable[[str, str], str] = secret, **data: Any) -> dict[str, str]:
    return {container.service: container.digest for container in render(source, **data).containers}


def written(directory: Path, **data: Any) -> Path:
    path = directory / "compose.yaml"
    path.write_bytes(render(**data).files[0].content)
    return path


# --- what other programs say


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_real_compose_accepts_the_file_without_a_warning(tmp_path: Path, layout: str) -> None:
    override = {"sonarr": {"environment": {"X": "a$b ${HOME} $(id)"}}}
    path = written(tmp_path, layout=layout, domain="example.org", service_overrides=override)
    done = subprocess.run([BIN / "docker-compose", "-f", path, "config", "-q"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_real_compose_refuses_a_broken_file(tmp_path: Path) -> None:
    path = written(tmp_path)
    path.write_text(path.read_text().replace("cap_drop:", "cap_dorp:"))
    done = subprocess.run([BIN / "docker-compose", "-f", path, "config", "-q"], capture_output=True, text=True)
    assert done.returncode != 0


def test_the_real_compose_reads_a_dollar_as_a_dollar(tmp_path: Path) -> None:
    path = written(tmp_path, service_overrides={"sonarr": {"environment": {"X": "a$b ${HOME}"}}})
    done = subprocess.run(
        [BIN / "docker-compose", "-f", path, "config", "--format", "json"], capture_output=True, text=True, check=True
    )
    # `config` writes a dollar doubled again, so that its output can be read as a compose file.
    assert json.loads(done.stdout)["services"]["sonarr"]["environment"]["X"] == "a$$b $${HOME}"


def lint(path: Path) -> list[dict[str, Any]]:
    done = subprocess.run(
        [BIN / "compose-lint", "check", "--format", "json", path], capture_output=True, text=True, check=False
    )
    findings: list[dict[str, Any]] = json.loads(done.stdout)["findings"]
    return findings


def waived(finding: dict[str, Any], services: dict[str, Any]) -> str | None:
    """The reason to accept a finding; None when there is none."""
    environment = services[finding["service"]]["environment"]
    if finding["rule_id"] == "CL-0020":
        named = [key for key in environment if f"'{key}'" in finding["message"]]
        if named and all(key.startswith("FILE__") and environment[key].startswith("/run/secrets/") for key in named):
            return "the value is the path of a secret file: linuxserver images mark such a variable by FILE__"
    return None


@pytest.mark.parametrize("layout", LAYOUTS)
def test_compose_lint_has_no_high_or_critical_finding_without_a_reason(tmp_path: Path, layout: str) -> None:
    path = written(tmp_path, layout=layout, domain="example.org")
    services = document(layout=layout, domain="example.org")["services"]
    grave = [each for each in lint(path) if each["severity"] in ("high", "critical")]
    assert [each for each in grave if not waived(each, services)] == []
    assert len(grave) == 3, "one waived finding an arr; fewer means the waiver can go"


def test_compose_lint_would_find_a_real_password_and_a_privileged_container(tmp_path: Path) -> None:
    path = written(tmp_path, service_overrides={"sonarr": {"environment": {"DB_PASSWORD": "hunter2"}}})
    content = yaml.safe_load(path.read_bytes())
    content["services"]["seerr"]["privileged"] = True
    path.write_text(yaml.safe_dump(content))
    grave = [each for each in lint(path) if each["severity"] in ("high", "critical")]
    left = {(each["service"], each["rule_id"]) for each in grave if not waived(each, content["services"])}
    assert ("sonarr", "CL-0020") in left
    assert any(service == "seerr" for service, _ in left)


# --- hardening


@pytest.mark.parametrize("name", HOME)
def test_every_service_is_confined_and_watched(name: str) -> None:
    body = document()["services"][name]
    assert body["cap_drop"] == ["ALL"]
    assert body["security_opt"] == ["no-new-privileges:true"]
    assert body["restart"] == "unless-stopped"
    assert body["mem_limit"]
    assert body["pids_limit"]
    assert body["healthcheck"]["test"]
    assert body["healthcheck"]["start_interval"] == "5s", "a run need not wait a whole interval"
    assert body["logging"]["options"] == {"max-size": "10m", "max-file": "3"}
    assert body["networks"]
    assert body["labels"][SERVICE_LABEL] == name
    assert all(volume["bind"] == {"create_host_path": False} for volume in body["volumes"])
    assert not {"privileged", "network_mode", "pid", "devices", "container_name"} & set(body)


def test_log_options_are_left_out_for_a_driver_that_does_not_know_them() -> None:
    assert "logging" not in document(docker_daemon_extra={"log-driver": "journald"})["services"]["sonarr"]
    assert "logging" in document(docker_daemon_extra={"log-driver": "local"})["services"]["sonarr"]


def test_only_localhost_ports_have_an_address() -> None:
    ports = {
        (port["published"], port["protocol"]): port.get("host_ip")
        for body in document()["services"].values()
        for port in body.get("ports", [])
    }
    assert ports[("8080", "tcp")] == "127.0.0.1"
    assert ports[("8989", "tcp")] is None
    assert [port for port, address in ports.items() if address] == [("8080", "tcp")]


def test_networks_have_names_of_their_own_and_isolation_where_nobody_is_needed() -> None:
    networks = document()["networks"]
    assert {body["name"] for body in networks.values()} == {f"mediahost_{name}" for name in networks}
    assert networks["outbound"]["driver_opts"] == {"com.docker.network.bridge.enable_icc": "false"}


def test_a_container_carries_the_full_names_of_its_networks() -> None:
    networks = {container.service: container.networks for container in render().containers}
    assert networks["sonarr"] == ("mediahost_proxy", "mediahost_apps")
    assert networks["ddns-updater"] == ("mediahost_outbound",)


# --- files and directories


@pytest.mark.parametrize("layout", LAYOUTS)
def test_everything_a_container_mounts_and_every_folder_of_a_file_is_made_by_us(layout: str) -> None:
    read = config.read("nas", {"layout": layout})
    stack = build_stack(read, CATALOG, "nas", secret)
    artefacts = render_compose(stack, read)
    made = {directory.path for directory in (*render_tree(read, stack), *artefacts.directories)}
    for service in stack.services:
        assert {mount.source for mount in service.mounts} <= made, service.name
    proxy = render_proxy(stack, read)
    assert proxy is not None
    for file in (*artefacts.files, proxy):
        assert str(Path(file.path).parent) in made, file.path


def test_directories_come_after_their_parents_and_only_once() -> None:
    paths = [directory.path for directory in render().directories]
    assert len(set(paths)) == len(paths)
    for index, path in enumerate(paths):
        assert not [later for later in paths[index:] if path.startswith(f"{later}/")], path


def test_a_configuration_directory_belongs_to_who_uses_it() -> None:
    owners = {
        directory.path.removeprefix("/opt/media-server/config/"): (directory.owner, directory.group, directory.mode)
        for directory in render().directories
    }
    assert owners["sonarr"] == ("13000", "13000", "0750")
    assert owners["qbittorrent/qBittorrent"] == ("13000", "13000", "0750")
    assert owners["seerr"] == ("1000", "1000", "0750")
    assert owners["caddy/data"] == ("13080", "13080", "0750")


def test_the_proxy_may_read_its_rules_but_not_write_them() -> None:
    read = config.read("nas", {})
    proxy = render_proxy(build_stack(read, CATALOG, "nas", secret), read)
    assert proxy is not None
    assert (proxy.owner, proxy.group, proxy.mode) == ("0", "13080", "0640")
    (folder,) = [each for each in render().directories if each.path == str(Path(proxy.path).parent)]
    assert (folder.owner, folder.group, folder.mode) == ("0", "13080", "0750")


def test_secrets_are_in_files_that_only_their_reader_can_open_and_in_nothing_else() -> None:
    artefacts = render(service_overrides={"sonarr": {"environment": {"TOKEN": "secret:mine"}}})
    compose, *others = artefacts.files
    assert b"SECRET" not in compose.content
    assert b"GIVEN" not in compose.content
    assert not compose.secret
    assert (compose.owner, compose.group, compose.mode) == ("root", "root", "0640")
    holding = [file for file in others if b"SECRET" in file.content or b"GIVEN" in file.content]
    assert {Path(file.path).name for file in holding} >= {"sonarr_api_key", "sonarr_env_token", "settings.json"}
    for file in others:
        assert file.secret, file.path
        assert file.mode in ("0400", "0600"), file.path
        assert "SECRET" not in repr(file)


def test_a_mounted_secret_has_no_newline_and_its_variable_names_it() -> None:
    artefacts = render()
    content = {file.path: file.content for file in artefacts.files}
    body = document()["services"]["sonarr"]
    assert body["environment"]["FILE__SONARR__AUTH__APIKEY"] == body["secrets"][0]["target"] == "/run/secrets/api_key"
    path = document()["secrets"][body["secrets"][0]["source"]]["file"]
    assert content[path] == b"SECRETnassonarrapi_key"


def test_the_file_says_whose_it_is_and_is_the_same_bytes_each_time() -> None:
    first, second = render(), render()
    assert first.files[0].content.startswith(f"# {MARK}".encode())
    assert first == second


def test_no_services_is_still_a_valid_file(tmp_path: Path) -> None:
    content = document(selection="none")
    assert content == {"name": "mediahost", "services": {}, "networks": {}}


# --- seeds


def seed(name: str, **data: Any) -> Any:
    (found,) = [file for file in render(**data).files if file.path.endswith(name)]
    return found


def test_the_password_hash_is_the_one_qbittorrent_itself_made_for_adminadmin() -> None:
    # The default password hash of qBittorrent 4.1 to 4.5, src/base/preferences.cpp.
    known = (
        "@ByteArray(ARQ77eY1NUZaQsuDHbIMCA==:0WMRkYTUWVT9wVvdDtHAjU9b3b7uB8NR1Gur2hmQCvCDpm39Q+PsJRJPaCU51dEi"
        "z+dTzh8qbPsL8WkFljQYFQ==)"
    )
    assert qbittorrent_password_hash("adminadmin", base64.b64decode("ARQ77eY1NUZaQsuDHbIMCA==")) == known
    assert qbittorrent_password_hash("adminadmim", base64.b64decode("ARQ77eY1NUZaQsuDHbIMCA==")) != known


@pytest.mark.parametrize(
    ("layout", "complete", "incomplete"),
    [
        ("trash", "/data/torrents", "/data/torrents/incomplete"),
        ("split", "/data/downloads/complete", "/data/downloads/incomplete"),
    ],
)
def test_qbittorrent_starts_configured_for_the_layout(layout: str, complete: str, incomplete: str) -> None:
    file = seed("qBittorrent.conf", layout=layout)
    assert (file.once, file.mode, file.owner) == (True, "0600", "13000")
    parser = configparser.RawConfigParser()
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(file.content.decode())
    assert parser["LegalNotice"]["Accepted"] == "true"
    assert parser["BitTorrent"]["Session\\DefaultSavePath"] == complete
    assert parser["BitTorrent"]["Session\\TempPath"] == incomplete
    assert parser["Preferences"]["WebUI\\Port"] == "8080"
    assert parser["Preferences"]["WebUI\\APIKey"] == qbittorrent_api_key("SECRETnasqbittorrentapi_key")
    assert "SECRETnasqbittorrentpassword" not in file.content.decode()
    categories = json.loads(seed("categories.json", layout=layout).content)
    assert {name: each["save_path"] for name, each in categories.items()}["tv"] == f"{complete}/tv"


def test_the_qbittorrent_key_has_the_form_that_qbittorrent_accepts() -> None:
    key = qbittorrent_api_key("anything")
    assert key.startswith("qbt_")
    assert len(key) == 32
    assert key[4:].isalnum()


def test_the_ddns_settings_are_ours_and_every_seed_is_not() -> None:
    file = seed("config.json", ddns_settings=[{"provider": "porkbun", "token": "secret:dns"}])
    assert json.loads(file.content)["settings"] == [{"provider": "porkbun", "token": "GIVENdns"}]
    assert MARK.encode() in file.content
    assert (file.once, file.owner, file.mode) == (False, "1000", "0600")
    assert seed("config/config.yaml").once
    assert seed("settings.json").once


def test_bazarr_starts_with_its_key_and_a_login() -> None:
    auth = yaml.safe_load(seed("config/config.yaml").content)["auth"]
    assert auth["apikey"] == "SECRETnasbazarrapi_key"
    assert auth["type"] == "form"


# --- the digest


def test_the_label_in_the_file_is_the_digest_of_the_container() -> None:
    services = document()["services"]
    assert {name: body["labels"][HASH_LABEL] for name, body in services.items()} == digests()


# Each changes what one container is made from: what is overridden, whose container.
OWN_CHANGES = st.one_of(
    st.tuples(
        st.sampled_from(HOME),
        st.builds(
            lambda key, value: {"environment": {key: value}},
            st.from_regex(r"[A-Z]{3,8}", fullmatch=True),
            st.text(min_size=1, max_size=20).filter(lambda text: not text.startswith("secret:")),
        ),
    ),
    st.tuples(st.sampled_from(HOME), st.integers(3000, 9000).map(lambda size: {"memory": f"{size}m"})),
    st.tuples(
        st.sampled_from(HOME),
        st.from_regex(r"[0-9]{2}\.[0-9]{1,3}", fullmatch=True).map(lambda tag: {"image": f"a.example.org/b:{tag}"}),
    ),
    st.tuples(
        st.sampled_from(["sonarr", "radarr", "prowlarr", "bazarr", "qbittorrent", "seerr"]),
        st.integers(20000, 30000).map(lambda port: {"host_port": port}),
    ),
)


@given(change=OWN_CHANGES)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_change_of_one_service_changes_its_digest_and_no_other(change: tuple[str, dict[str, Any]]) -> None:
    name, override = change
    before, after = digests(), digests(service_overrides={name: override})
    assert {each for each in before if before[each] != after[each]} == {name}


# Each leaves every container as it is, whatever else of the host it changes.
IRRELEVANT = st.fixed_dictionaries(
    {},
    optional={
        "sshd_port": st.integers(2000, 3000),
        "compose_wait_timeout": st.integers(10, 3600),
        "acme_email": st.just("me@example.org"),
        "domain": st.sampled_from(["example.org", "example.net"]),
        "proxy_tls": st.sampled_from(["acme", "internal", "off"]),
        "firewall_lan": st.just(["192.168.7.0/24"]),
        "media_libraries": st.just(["movies", "tv"]),
        "packages_extra": st.just(["htop"]),
        "docker_version": st.just("5:29.7.*"),
        "service_overrides": st.just({"sonarr": {"route": "wan"}}),
    },
)


@given(data=IRRELEVANT)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_change_that_no_container_is_made_from_changes_no_digest(data: dict[str, Any]) -> None:
    assert digests(**data) == digests()


@given(entry=st.sampled_from(["sonarr/api_key", "radarr/api_key", "prowlarr/api_key"]), value=st.text(min_size=1))
@settings(max_examples=30, deadline=None)
def test_a_rotated_secret_changes_the_digest_of_the_service_that_mounts_it(entry: str, value: str) -> None:
    def rotated(name: str, kind: str) -> str:
        return value if name == f"nas/{entry}" else secret(name, kind)

    before, after = digests(), digests(rotated)
    assert {each for each in before if before[each] != after[each]} == {entry.split("/")[0]}


def test_changed_ddns_settings_recreate_the_updater_alone() -> None:
    before, after = digests(), digests(ddns_settings=[{"provider": "porkbun"}])
    assert {each for each in before if before[each] != after[each]} == {"ddns-updater"}


def test_a_secret_that_is_only_in_a_seed_recreates_nothing() -> None:
    def rotated(name: str, kind: str) -> str:
        return "other" if name == "nas/qbittorrent/password" else secret(name, kind)

    assert render(rotated).files != render().files, "positive control: the seed itself differs"
    assert digests(rotated) == digests()


def test_the_digest_cannot_be_searched_for_without_the_key_of_the_vault() -> None:
    def other_key(name: str, kind: str) -> str:
        return "another" if name == "nas/mediahost/label_key" else secret(name, kind)

    before, after = digests(), digests(other_key)
    assert not set(before.values()) & set(after.values())


@pytest.mark.parametrize("name", LINUXSERVER)
def test_the_media_user_is_part_of_what_a_linuxserver_container_is(name: str) -> None:
    assert digests()[name] != digests(media_uid=2000)[name]
