"""The main promise: a bare machine becomes a running home server, and a second run finds nothing to do.

What the host is like is asked from outside: over SSH, and over the ports it serves.
"""

from __future__ import annotations

import subprocess

import pytest

from tests.lab.home import Home

pytestmark = [pytest.mark.lab, pytest.mark.proof("A bare machine, and the second run")]

SERVICES = ["bazarr", "caddy", "ddns-updater", "prowlarr", "qbittorrent", "radarr", "seerr", "sonarr"]


def test_a_bare_machine_becomes_a_running_home_server(provisioned: Home) -> None:
    report = provisioned.first_report
    assert report["failed"] == []
    assert report["hosts"] == [provisioned.machine.name]
    told = provisioned.machine.run("sudo docker ps --format '{{.Label \"mediahost.service\"}} {{.Status}}'").stdout
    healthy = {line.split()[0] for line in told.splitlines() if "(healthy)" in line}
    assert healthy == set(SERVICES), told


def test_a_second_run_changes_nothing_and_the_plan_is_empty(home: Home) -> None:
    assert home.apply()["changes"] == []
    assert home.plan()["changes"] == []


def test_the_vendor_packages_are_installed_held_and_verified(home: Home) -> None:
    machine = home.machine
    held = machine.run("apt-mark showhold").stdout.split()
    assert {"docker-ce", "docker-ce-cli", "containerd.io"} <= set(held)
    assert machine.run("apt-cache policy docker-ce").stdout.count("10.0.2.2")
    installed = machine.run("dpkg-query -W -f '${Package} ${db:Status-Status}\n' 'docker*'").stdout.splitlines()
    assert "docker-ce installed" in installed
    assert "docker.io installed" not in installed


def test_passwords_are_refused_and_keys_are_taken(home: Home) -> None:
    port = str(home.machine.ssh_port)
    common = ["-F", "none", "-p", port, "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]
    refused = subprocess.run(
        ["ssh", *common, "-o", "PubkeyAuthentication=no", "-o", "BatchMode=yes", "alice@127.0.0.1", "true"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Permission denied (publickey)" in refused.stderr
    key = ["-i", home.machine.ssh_config().split('IdentityFile "')[1].split('"')[0]]
    taken = subprocess.run(
        ["ssh", *common, *key, "-o", "BatchMode=yes", "alice@127.0.0.1", "sudo -n id -u"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert taken.stdout.strip() == "0", taken.stderr


def test_the_firewall_is_on_and_survives_a_docker_restart(home: Home) -> None:
    machine = home.machine
    assert "Status: active" in machine.run("sudo ufw status").stdout
    chains = "sudo iptables -S DOCKER-USER && sudo iptables -S MEDIAHOST-DOCKER"
    before = machine.run(chains).stdout
    assert before.count("mediahost:") > 10
    assert before.splitlines()[1].endswith("-j MEDIAHOST-DOCKER")
    machine.run("sudo systemctl restart docker")
    assert machine.run(chains).stdout == before


def test_services_answer_from_the_lan_as_exposed(home: Home) -> None:
    """Sonarr is for the LAN, qBittorrent's page for the host itself only."""
    machine = home.machine
    sonarr, qbittorrent = machine.forward(8989), machine.forward(8080)
    assert _get(f"http://127.0.0.1:{sonarr}/ping")[0] == 200
    assert _get(f"http://127.0.0.1:{qbittorrent}/")[0] == 0
    inside = machine.run("curl -s -o /dev/null -w '%{http_code}' http://127.0.0.1:8080/").stdout
    assert inside == "200"


def test_the_proxy_serves_each_route_by_name_and_nothing_else(home: Home) -> None:
    port = home.machine.forward(80)
    name = home.machine.name
    assert _get(f"http://127.0.0.1:{port}/ping", host=f"sonarr.{name}.home.arpa")[0] == 200
    assert _get(f"http://127.0.0.1:{port}/", host="unknown.example.org")[0] == 404


def test_an_api_wants_the_key_of_the_vault(home: Home) -> None:
    port = home.machine.forward(8989)
    key = home.secrets()[f"{home.machine.name}/sonarr/api_key"]
    url = f"http://127.0.0.1:{port}/api/v3/system/status"
    assert _get(url)[0] == 401
    assert _get(url, api_key=key)[0] == 200


def test_what_a_service_writes_belongs_to_the_media_group(home: Home) -> None:
    machine = home.machine
    machine.run("sudo docker exec -u 13000:13000 mediahost-sonarr-1 sh -c 'umask 002; mkdir /data/media/tv/show'")
    assert machine.run("stat -c '%a %u %g' /data/media/tv/show").stdout.split() == ["2775", "13000", "13000"]


def test_an_import_is_a_hardlink_within_one_container(home: Home) -> None:
    script = "touch /data/torrents/tv/a && ln /data/torrents/tv/a /data/media/tv/a && stat -c %h /data/media/tv/a"
    told = home.machine.run(f"sudo docker exec -u 13000:13000 mediahost-sonarr-1 sh -c '{script}'").stdout
    assert told.strip() == "2"


def test_a_service_switched_off_goes_and_its_data_stay(home: Home) -> None:
    machine = home.machine
    home.write_inventory(services_disabled=["bazarr", "ddns-updater"])
    changes = home.changes()
    assert "stack | services: service bazarr: not wanted any more, its data stay" in changes
    home.apply()
    assert "bazarr" not in machine.run("sudo docker ps -a --format '{{.Names}}'").stdout
    machine.run("sudo test -d /opt/media-server/config/bazarr/config")
    assert "6767" not in machine.run("sudo ufw status").stdout
    assert home.changes() == []
    home.write_inventory()
    home.apply()
    assert home.changes() == []


def test_foreign_things_are_kept_and_told(home: Home) -> None:
    machine = home.machine
    machine.run("sudo ufw allow 12345/tcp comment 'my own' >/dev/null")
    machine.run("echo 'ssh-ed25519 AAAAforeign me' | sudo tee -a /home/alice/.ssh/authorized_keys >/dev/null")
    plan = home.plan()
    notices = " ".join(notice["what"] for notice in plan["notices"])
    assert "12345" in notices
    assert "authorized_keys" in notices
    home.apply()
    assert "12345" in machine.run("sudo ufw status").stdout
    assert "AAAAforeign" in machine.run("sudo cat /home/alice/.ssh/authorized_keys").stdout


def _get(url: str, host: str | None = None, api_key: str | None = None) -> tuple[int, str]:
    """HTTP status (0: no connection) and body, asked from the lab's host."""
    command = ["curl", "-s", "-m", "60", "-w", "\n%{http_code}", url]
    command += ["-H", f"Host: {host}"] if host else []
    command += ["-H", f"X-Api-Key: {api_key}"] if api_key else []
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    body, _, code = result.stdout.rpartition("\n")
    return int(code or 0), body
