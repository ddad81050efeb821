"""All that one host should be: the same values for the same input, every file of ours known as owned."""

from __future__ import annotations

from typing import Any

import pytest

from mediahost.catalog import load_catalog
from mediahost.config import ConfigError, read
from mediahost.render import base, docker, hardening, ssh, users
from mediahost.stack import GIVEN
from mediahost.wanted import Wanted, build
from tests.unit.test_config import KEY

CATALOG = load_catalog()


def secret(entry: str, kind: str) -> str:
    if kind == GIVEN:
        raise LookupError(entry)
    return f"value-of-{entry}"


def wanted(**data: Any) -> Wanted:
    return build("nas", read("nas", data), CATALOG, secret)


def test_the_same_input_is_the_same_host() -> None:
    assert wanted(admins={"me": [KEY]}) == wanted(admins={"me": [KEY]})


def test_no_secret_of_a_host_is_in_its_representation() -> None:
    found = wanted()
    values = {file.content for file in found.stack_files if file.secret}
    assert values, "the default stack has secrets, or this test proves nothing"
    assert "value-of-" not in repr(found.stack_files)


def test_directories_come_once_each_and_parents_first() -> None:
    paths = [directory.path for directory in wanted().directories]
    assert len(paths) == len(set(paths))
    for index, path in enumerate(paths):
        assert not any(other.startswith(f"{path}/") for other in paths[:index]), path


def test_every_file_of_the_stack_lies_in_a_directory_we_make() -> None:
    found = wanted()
    made = {directory.path for directory in found.directories}
    for file in found.stack_files:
        if found.settings.stack_root in file.path:
            assert any(file.path.startswith(f"{path}/") for path in made), file.path


def test_every_file_we_write_is_owned_and_a_seed_is_not() -> None:
    found = wanted(admins={"me": [KEY]}, docker_version="5:29.*", ntp_servers=["ntp.example.org"])
    settings = found.settings
    host = [*base.apt_files(settings), base.sysctl_file(settings), base.journald_file(settings)]
    host += [ssh.drop_in(settings)]
    for path in [file.path for file in host] + [users.SUDOERS_PATH, docker.PIN_PATH, docker.SOURCE_PATH]:
        assert path in found.owned, path
    seeds = {file.path for file in found.stack_files if file.once}
    lasting = {file.path for file in found.stack_files if not file.once}
    assert seeds
    assert lasting <= set(found.owned)
    assert not seeds & set(found.owned)


def test_shared_files_of_the_host_are_never_owned() -> None:
    """What is owned is deleted when it is not wanted any more."""
    assert not {docker.DAEMON_PATH, "/etc/ufw/after.rules", "/home/me/.ssh/authorized_keys"} & set(
        wanted(admins={"me": [KEY]}).owned
    )


@pytest.mark.parametrize(
    ("data", "path"),
    [
        ({"docker_source": "distro"}, docker.SOURCE_PATH),
        ({"docker_source": "distro"}, docker.KEYRING_PATH),
        ({"ntp_servers": []}, base.TIMESYNCD_PATH),
        ({"admins": {}}, users.SUDOERS_PATH),
        ({"docker_version": None}, docker.PIN_PATH),
        ({"audit": False}, hardening.AUDIT_PATH),
        ({"hardening": False}, hardening.SYSCTL_PATH),
        ({"hardening_disabled": ["sudo", "umask"]}, hardening.SUDO_PATH),
    ],
)
def test_what_is_switched_off_is_not_owned_any_more(data: dict[str, Any], path: str) -> None:
    on = {"admins": {"me": [KEY]}, "ntp_servers": ["ntp.example.org"], "docker_version": "5:29.*"}
    assert path in wanted(**on).owned
    assert path not in wanted(**{**on, **data}).owned


def test_the_time_client_and_auditd_depend_on_their_files_and_nothing_else_restarts() -> None:
    found = wanted(ntp_servers=["ntp.example.org"]).owned
    assert {path: unit for path, unit in found.items() if unit} == {
        base.TIMESYNCD_PATH: "systemd-timesyncd.service",
        hardening.AUDIT_PATH: "auditd.service",
    }


def test_without_services_there_are_no_containers_no_routes_and_no_secrets() -> None:
    found = wanted(selection="none")
    assert found.containers == ()
    assert found.proxy_file is None
    assert not [file for file in found.stack_files if file.secret]
    assert wanted().containers


def test_a_secret_that_only_the_user_can_give_is_asked_for_with_its_name() -> None:
    ddns = [{"provider": "x", "token": "secret:ddns_token"}]
    with pytest.raises(ConfigError, match="ddns_token"):
        wanted(ddns_settings=ddns)
    found = build("nas", read("nas", {"ddns_settings": ddns}), CATALOG, lambda entry, kind: f"value-of-{entry}")
    assert found.containers


def test_the_value_of_a_secret_decides_what_the_services_that_use_it_look_like() -> None:
    other = build("nas", read("nas", {}), CATALOG, lambda entry, kind: f"other-{secret(entry, kind)}")
    before = {container.service: container.digest for container in wanted().containers}
    after = {container.service: container.digest for container in other.containers}
    assert before.keys() == after.keys()
    assert before["sonarr"] != after["sonarr"]
