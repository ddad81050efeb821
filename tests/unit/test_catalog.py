"""The catalogue: every entry is valid, and every mistake in one is told with file, field, value and mend."""

import textwrap
from pathlib import Path
from typing import Any

import pytest
import yaml

from mediahost.catalog import DIRECTORY, SCHEMA_FILE, CatalogError, load_catalog, schema_text
from mediahost.render.seeds import WRITERS

HOME = {"sonarr", "radarr", "prowlarr", "bazarr", "qbittorrent", "seerr", "caddy", "ddns-updater"}
OPTIONAL = {"caddy", "ddns-updater", "bazarr", "seerr"}

VALID = {
    "name": "good",
    "title": "Good",
    "category": "example",
    "description": "An example.",
    "image": "registry.example.org/good:1.0",
    "health": {"test": ["CMD", "true"]},
    "web": {"port": 8000},
}


def written(directory: Path, name: str = "good", text: str | None = None, **changes: object) -> Path:
    content = {key: value for key, value in {**VALID, **changes}.items() if value is not None}
    (directory / f"{name}.yaml").write_text(text if text is not None else yaml.safe_dump(content))
    return directory


def test_the_catalogue_covers_the_home_selection_of_the_architecture() -> None:
    catalog = load_catalog()
    assert {name for name, service in catalog.items() if "home" in service.selections} == HOME
    assert {name for name in HOME if catalog[name].optional} == OPTIONAL


@pytest.mark.parametrize(
    ("service", "port", "exposure", "route"),
    [
        ("sonarr", 8989, "lan", "lan"),
        ("radarr", 7878, "lan", "lan"),
        ("prowlarr", 9696, "lan", "lan"),
        ("bazarr", 6767, "lan", "lan"),
        ("seerr", 5055, "lan", "wan"),
        ("qbittorrent", 8080, "localhost", "lan"),
        ("sabnzbd", 8081, "localhost", "lan"),
        ("nzbget", 6789, "localhost", "lan"),
    ],
)
def test_ports_and_exposure_are_those_of_the_architecture(service: str, port: int, exposure: str, route: str) -> None:
    entry = load_catalog()[service]
    assert entry.web is not None
    assert (entry.web.port, entry.exposure, entry.route) == (port, exposure, route)


def test_every_active_service_runs_without_root_or_says_which_capabilities_it_needs_for_dropping_it() -> None:
    for service in load_catalog().values():
        if service.status == "retired":
            continue
        if service.name == "gluetun":
            # Makes routes, filter rules and an interface: root, with what that needs and no more.
            assert set(service.capabilities) == {"CHOWN", "DAC_OVERRIDE", "NET_ADMIN"}
            continue
        assert service.run_as.method in ("linuxserver", "user"), service.name
        if service.run_as.method == "linuxserver":
            assert set(service.capabilities) == {"CHOWN", "DAC_OVERRIDE", "FOWNER", "SETGID", "SETUID"}
        else:
            assert service.read_only, service.name
            assert set(service.capabilities) <= {"NET_BIND_SERVICE"}


def test_only_who_needs_it_has_a_device_or_may_change_a_network() -> None:
    active = [service for service in load_catalog().values() if service.status == "active"]
    assert [service.name for service in active if service.devices] == ["gluetun"]
    assert [service.name for service in active if "NET_ADMIN" in service.capabilities] == ["gluetun"]
    assert not [service.name for service in active if "NET_RAW" in service.capabilities]


def test_every_download_client_belongs_into_the_tunnel() -> None:
    catalog = load_catalog()
    clients = [service for service in catalog.values() if service.category.startswith("download-")]
    assert clients
    assert all(service.vpn for service in clients)
    assert not [service.name for service in catalog.values() if service.vpn and service not in clients]


def test_no_service_needs_an_optional_one() -> None:
    catalog = load_catalog()
    needed = {name for service in catalog.values() for entry in service.depends_on for name in entry.split("|")}
    assert needed, "positive control: something depends on something"
    assert not {name for name in needed if catalog[name].optional}


def test_every_secret_that_goes_into_a_config_file_has_a_writer_for_it() -> None:
    needing = {
        service.name
        for service in load_catalog().values()
        for secret in service.secrets
        if secret.delivery == "config"
    }
    assert needing
    assert needing <= set(WRITERS)


def test_the_schema_file_is_the_one_the_model_gives() -> None:
    assert SCHEMA_FILE.read_text() == schema_text(), "run: python -m mediahost.catalog > catalog/schema.json"


def test_every_file_names_the_schema_so_that_editors_check_it() -> None:
    for file in DIRECTORY.glob("*.yaml"):
        assert file.read_text().startswith("# yaml-language-server: $schema=schema.json\n"), file.name


def test_the_example_of_the_documentation_is_a_valid_service(tmp_path: Path) -> None:
    document = (DIRECTORY.parent / "docs" / "services.md").read_text()
    example = textwrap.dedent(document.split("```yaml\n")[1].split("```")[0])
    assert load_catalog(written(tmp_path, name="example", text=example))["example"].route == "lan"


def test_a_valid_service_is_accepted(tmp_path: Path) -> None:
    assert load_catalog(written(tmp_path))["good"].title == "Good"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"exposur": "lan"}, "exposur = lan: no such field; did you mean exposure?"),
        ({"exposure": "world"}, "exposure = world: Input should be 'wan', 'lan'"),
        ({"image": "good"}, "image = good: "),
        ({"image": "registry.example.org/good:latest"}, "pin a version"),
        ({"image": "linuxserver/sonarr:1"}, "write the image as registry/path:tag"),
        ({"image": None}, "an active service needs image and health"),
        ({"health": {"test": ["curl", "x"]}}, "CMD or CMD-SHELL"),
        ({"health": {"test": ["CMD", "x"], "start_period": 5}}, "health.start_period = 5: "),
        ({"status": "retired"}, "a retired service needs successor and reason"),
        ({"successor": "better"}, "only a retired service"),
        ({"run_as": {"method": "user"}}, "run_as"),
        ({"run_as": {"method": "image", "uid": 5, "gid": 5}}, "no effect with method 'image'"),
        ({"web": None, "route": "lan"}, "there is no web"),
        ({"volumes": [{"source": "config"}]}, "volumes.0: a config volume needs target"),
        ({"volumes": [{"source": "data", "target": "/x"}]}, "the layout decides"),
        ({"secrets": [{"name": "a", "kind": "token", "delivery": "file"}]}, "secrets.0: a secret with delivery"),
        ({"capabilities": ["SYS_ADMIN"]}, "capabilities.0 = SYS_ADMIN"),
        ({"depends_on": ["gone"]}, "depends_on = gone: no such service"),
        ({"talks_to": ["gone"]}, "talks_to = gone: no such service"),
        ({"conflicts": ["gone"]}, "conflicts = gone: no such service"),
        ({"memory": "lots"}, "memory = lots"),
    ],
)
def test_a_mistake_is_told_with_file_field_and_mend(tmp_path: Path, changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(CatalogError) as error:
        load_catalog(written(tmp_path, **changes))
    assert expected in str(error.value)
    assert "good.yaml" in str(error.value)


def test_all_mistakes_of_all_files_are_told_at_once(tmp_path: Path) -> None:
    written(tmp_path, memory="lots", pids=1)
    written(tmp_path, name="other", text="- a list\n")
    with pytest.raises(CatalogError) as error:
        load_catalog(tmp_path)
    for part in ("good.yaml: memory", "good.yaml: pids", "other.yaml: the file holds no mapping"):
        assert part in str(error.value)


@pytest.mark.parametrize(
    "text", ["name: [", "name: good\nname: bad\n", "\tx: 1", "", "name: !!python/object:os.x {}"]
)
def test_a_file_that_is_not_plain_yaml_is_refused_without_a_traceback(tmp_path: Path, text: str) -> None:
    with pytest.raises(CatalogError, match=r"good\.yaml"):
        load_catalog(written(tmp_path, text=text))


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "good.yaml").write_bytes(b"\xff\xfe\x00name")
    with pytest.raises(CatalogError, match=r"good\.yaml"):
        load_catalog(tmp_path)


def test_a_file_named_otherwise_than_its_service_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match=r"other\.yaml: name = good: name the file good\.yaml"):
        load_catalog(written(tmp_path, name="other"))


def test_a_folder_without_services_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="no catalogue here"):
        load_catalog(tmp_path)
