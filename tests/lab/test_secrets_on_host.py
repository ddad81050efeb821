"""No secret in anything that is printed, logged, in argv or in `docker inspect`, and no world-readable moment.

While a run writes them, a watcher on the host reads every process's arguments and every file it can find as an
unprivileged user would; afterwards everything it saw is searched for the vault's values.
"""

from __future__ import annotations

import shlex

import pytest

from tests.lab.home import Home, told

pytestmark = [pytest.mark.lab, pytest.mark.proof("Secrets: output, argv, logs, inspect, file modes")]

# As root for the arguments of all processes; as nobody for what the world can read.
_WATCH = r"""
rm -rf /run/watch; mkdir -p /run/watch; : >/run/watch/argv; : >/run/watch/readable
while [ ! -e /run/watch/stop ]; do
  # One process for all: what passes by between two rounds is not seen.
  { cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\0' ' '; echo; } >>/run/watch/argv
  setpriv --reuid=65534 --regid=65534 --clear-groups find /opt /tmp /run/mediahost /var/lib/mediahost \
    -type f -readable \( -name '*api_key*' -o -name '*config.json' -o -name 'pyinfra-*' \) \
    2>/dev/null >>/run/watch/readable
done
"""
_BAIT = "/tmp/bait_api_key"


@pytest.fixture
def watched(home: Home) -> Home:
    home.machine.run(["sudo", "sh", "-c", f"nohup sh -c {shlex.quote(_WATCH)} >/dev/null 2>&1 &"])
    return home


def test_secrets_stay_secret_while_they_are_written(watched: Home) -> None:
    machine = watched.machine
    machine.run("sudo sh -c 'rm /opt/media-server/secrets/* /opt/media-server/config/*/config.json'")
    # Positive controls: the watcher sees an argument that passes by, and a file that is open to the world.
    machine.run(f"sudo install -m 0644 /dev/null {_BAIT}")
    machine.run("sudo sh -c 'until grep -q canary-in-argv /run/watch/argv; do sleep 1; done'", limit=300)
    machine.run(f"sudo sh -c 'until grep -q {_BAIT} /run/watch/readable; do sleep 1; done'", limit=300)
    result = watched.mediahost("apply", "--verbose")
    assert result.returncode == 0, told(result)
    machine.run("sudo touch /run/watch/stop")
    seen = machine.run("sudo cat /run/watch/argv").stdout
    assert "canary-in-argv" in seen
    readable = set(machine.run("sudo cat /run/watch/readable").stdout.split())
    assert readable == {_BAIT}
    inspected = machine.run("sudo sh -c 'docker inspect $(docker ps -aq)'").stdout
    assert "FILE__SONARR__AUTH__APIKEY" in inspected
    journal = machine.run("sudo journalctl --no-pager -q -o cat").stdout
    assert journal
    for name, value in watched.secrets().items():
        for place, text in (
            ("output", told(result)),
            ("argv", seen),
            ("docker inspect", inspected),
            ("the journal", journal),
        ):
            assert value not in text, f"{name} is in {place}"


def test_secret_files_are_closed_to_the_world(home: Home) -> None:
    machine = home.machine
    assert machine.run("sudo stat -c '%a %U' /opt/media-server/secrets/sonarr_api_key").stdout.split() == [
        "400",
        "root",
    ]
    refused = machine.run("sudo -u nobody cat /opt/media-server/secrets/sonarr_api_key", check=False)
    assert refused.returncode != 0
    key = home.secrets()[f"{machine.name}/sonarr/api_key"]
    assert machine.run("sudo cat /opt/media-server/secrets/sonarr_api_key").stdout == key
