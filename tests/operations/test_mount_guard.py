"""The guard's script in a real kernel: mounts of a namespace of its own, and stand-ins for the engine and systemd.

The engine's stand-in refuses to start a container whose bind source is missing, as the real one does for a mount that
must not be created (`create_host_path: false`; moby, daemon/volumes.go: SkipMountpointCreation).
"""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from mediahost.config import read
from mediahost.render import mounts

_DOCKER = r"""#!/bin/sh
# containers/ID holds: state, error and the sentinels it mounts, a line each
cd "$STATE/containers" || exit 1
case $1 in
  ps)
    for id in *; do
      { read -r state; read -r error; } <"$id"
      case " $* " in *" -a "*) [ "$state" != running ] || continue ;; *) [ "$state" = running ] || continue ;; esac
      for word; do case $word in volume=*) grep -qxF "${word#volume=}" "$id" && echo "$id" ;; esac; done
    done ;;
  inspect)
    for last; do :; done
    [ -e "$last" ] || exit 1
    case "$*" in *Error*) sed -n 2p "$last" ;; *) echo "/$last" ;; esac ;;
  stop) echo "$*" >>"$STATE/log"; shift; for id; do sed -i '1s/.*/exited/;2s/.*//' "$id"; done ;;
  start)
    for need in $(sed 1,2d "$2"); do
      [ -e "$need" ] || { sed -i '1s/.*/exited/;2s/.*/bind source path does not exist/' "$2"; exit 1; }
    done
    echo "start $2" >>"$STATE/log"; sed -i '1s/.*/running/;2s/.*//' "$2" ;;
esac
"""
_SYSTEMCTL = r"""#!/bin/sh
echo "systemctl $*" >>"$STATE/log"
case "$*" in
  is-system-running) cat "$STATE/system" ;;
  "is-enabled "*) echo enabled ;;
  "show -p RequiredBy "*) cat "$STATE/required_by" 2>/dev/null ;;
  "show -p Job "*) cat "$STATE/job" 2>/dev/null ;;
  "show -p ActiveEnterTimestampMonotonic --value "*) cat "$STATE/entered${5##*/}" 2>/dev/null || echo 0 ;;
  "-q is-failed "*) grep -qxF "$3" "$STATE/failed" 2>/dev/null ;;
  "-q is-active docker.service") [ ! -e "$STATE/engine-stopped" ] ;;
  "-q is-active "*) grep -qxF "$3" "$STATE/active" 2>/dev/null ;;
esac
"""
# A user namespace has no say over attributes of files: the stand-ins keep a list.
_CHATTR = '#!/bin/sh\necho "chattr $*" >>"$STATE/log"; echo "$2" >>"$STATE/immutable"\n'
_LSATTR = '#!/bin/sh\ngrep -qxF "$2" "$STATE/immutable" 2>/dev/null && echo "----i--- $2" || echo "-------- $2"\n'
# The watch looks once, then its pause ends it.
_SLEEP = "#!/bin/sh\nkill $PPID\n"


def _can() -> bool:
    tried = subprocess.run(
        ["unshare", "-Urm", "sh", "-c", "mount -t tmpfs none /mnt"], capture_output=True, check=False
    )
    return tried.returncode == 0


pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(not (shutil.which("unshare") and _can()), reason="needs namespaces of one's own"),
]


@dataclass
class Host:
    """A host with mounts at `a` and `b`; every `run` is a namespace of its own in which nothing is mounted before."""

    root: Path

    @property
    def a(self) -> Path:
        return self.root / "a"

    @property
    def b(self) -> Path:
        return self.root / "b"

    def sentinel(self, at: Path) -> Path:
        return Path(f"{self.root}/mounted{at}/here")

    def container(self, name: str, *needs: Path, state: str = "running", error: str = "") -> None:
        lines = [state, error, *(str(self.sentinel(at)) for at in needs), ""]
        (self.root / "containers" / name).write_text("\n".join(lines))

    def state(self, name: str) -> str:
        return (self.root / "containers" / name).read_text().splitlines()[0]

    def run(self, *verbs: str) -> str:
        """Shell lines; `guard VERB` is the script. Returns what was logged."""
        (self.root / "log").write_text("")
        body = f'guard() {{ sh {self.root}/guard "$@"; }}\n' + "\n".join(verbs)
        done = subprocess.run(
            ["unshare", "-Urm", "sh", "-c", body],
            env={"PATH": f"{self.root}/bin:/usr/sbin:/usr/bin:/sbin:/bin", "STATE": str(self.root)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert "not found" not in done.stderr, done.stderr
        return (self.root / "log").read_text() + done.stdout


@pytest.fixture
def host(tmp_path: Path) -> Host:
    made = Host(tmp_path)
    settings = read(
        "nas",
        {
            "storage_disks": [{"device": "UUID=8A1B-2C3D", "at": "/mnt/a"}],
            "storage_shares": [{"kind": "nfs", "source": "n:/b", "at": "/mnt/b"}],
        },
    )
    text = next(file.content.decode() for file in mounts.files(settings) if file.path == mounts.SCRIPT_PATH)
    for path, name in ((mounts.SENTINELS, "mounted"), (mounts.HELD, "held"), (mounts.TABLE_PATH, "table")):
        assert path in text
        text = text.replace(path, f"{tmp_path}/{name}")
    # Nothing is chowned in a user namespace.
    (tmp_path / "guard").write_text(text.replace("chown root:root", "true"))
    (tmp_path / "table").write_text(
        f"# ours\n{made.a} a.mount {tmp_path}/device -\n{made.b} b.mount share {made.a}\n"
    )
    (tmp_path / "system").write_text("running\n")
    for name in ("bin", "containers", "a", "b"):
        (tmp_path / name).mkdir()
    programs = {"docker": _DOCKER, "systemctl": _SYSTEMCTL, "chattr": _CHATTR, "lsattr": _LSATTR, "sleep": _SLEEP}
    for name, program in programs.items():
        (tmp_path / "bin" / name).write_text(program)
        (tmp_path / "bin" / name).chmod(0o755)
    return made


def test_a_bare_mount_point_is_made_immutable_and_a_mounted_one_is_left_alone(host: Host) -> None:
    log = host.run(f"mount -t tmpfs none {host.b}", "guard bare")
    assert f"chattr +i {host.a}" in log
    assert f"chattr +i {host.b}" not in log
    assert host.a.stat().st_mode & 0o777 == 0o555
    host.a.chmod(0o755)


def test_while_a_mount_is_absent_the_engine_itself_refuses_who_needs_it(host: Host) -> None:
    host.container("sonarr", host.a, state="exited")
    host.container("caddy", state="exited")
    host.run("docker start sonarr; docker start caddy")
    assert (host.state("sonarr"), host.state("caddy")) == ("exited", "running")


def test_when_a_mount_comes_who_failed_for_it_starts_and_who_was_stopped_by_a_person_does_not(host: Host) -> None:
    host.container("sonarr", host.a, state="exited", error="bind source path does not exist")
    host.container("radarr", host.a, state="exited")
    host.run(f"mount -t tmpfs none {host.a}", f"guard present {host.a}")
    assert (host.state("sonarr"), host.state("radarr")) == ("running", "exited")


def test_who_needs_two_mounts_waits_for_the_second(host: Host) -> None:
    host.container("sonarr", host.a, host.b, state="exited", error="bind source path does not exist")
    host.run(f"guard present {host.a}")
    assert host.state("sonarr") == "exited"
    host.run(f"guard present {host.b}")
    assert host.state("sonarr") == "running"


def test_when_a_mount_goes_who_needs_it_is_stopped_and_comes_back_with_it(host: Host) -> None:
    host.container("sonarr", host.a)
    host.container("caddy")
    host.run(f"guard present {host.a}", f"guard absent {host.a}")
    assert (host.state("sonarr"), host.state("caddy")) == ("exited", "running")
    assert not host.sentinel(host.a).exists()
    host.run(f"guard present {host.a}")
    assert host.state("sonarr") == "running"
    assert list((host.root / "held").iterdir()) == []


def test_all_who_need_a_mount_are_stopped_at_once(host: Host) -> None:
    host.container("radarr", host.a)
    host.container("sonarr", host.a)
    log = host.run(f"guard absent {host.a}")
    assert "stop radarr sonarr" in log
    assert (host.state("radarr"), host.state("sonarr")) == ("exited", "exited")


def test_on_the_way_down_no_container_is_stopped_by_hand_or_it_would_not_start_at_boot(host: Host) -> None:
    host.container("sonarr", host.a)
    (host.root / "system").write_text("stopping\n")
    log = host.run(f"guard absent {host.a}")
    assert host.state("sonarr") == "running"
    assert "stop sonarr" not in log


def test_without_a_running_engine_the_sentinel_is_there_all_the_same(host: Host) -> None:
    (host.root / "engine-stopped").touch()
    host.container("sonarr", host.a, state="exited", error="bind source path does not exist")
    host.run(f"guard present {host.a}")
    assert host.sentinel(host.a).exists()
    assert host.state("sonarr") == "exited"


def test_the_watch_tries_a_share_again_as_soon_as_what_it_stands_on_is_there(host: Host) -> None:
    log = host.run("guard watch")
    assert "--no-block start" not in log
    log = host.run(f"mount -t tmpfs none {host.a}", "guard watch")
    assert "systemctl --no-block start b.mount" in log


def test_the_watch_tries_a_disk_again_that_failed_but_not_one_that_somebody_unmounted_to_pull_it(host: Host) -> None:
    assert "start a.mount" not in host.run("guard watch")
    (host.root / "failed").write_text("a.mount\n")
    assert "systemctl --no-block start a.mount" in host.run("guard watch")


def test_the_watch_mounts_a_disk_that_came_back_before_its_unmount_was_done(host: Host) -> None:
    device = host.root / "device"
    device.touch()
    (host.root / "entereda.mount").write_text("7000000\n")
    entered = host.root / f"entered{device.name}"
    entered.write_text("5000000\n")
    assert "start a.mount" not in host.run("guard watch"), "unmounted in order, and about to be pulled"
    entered.write_text("41000000\n")
    assert "systemctl --no-block start a.mount" in host.run("guard watch")
    (host.root / "job").write_text("17\n")
    assert "start a.mount" not in host.run("guard watch"), "still being unmounted"
    (host.root / "job").unlink()
    device.unlink()
    assert "start a.mount" not in host.run("guard watch"), "gone again"


def test_the_watch_does_not_call_off_an_unmount_that_waits_for_containers_to_stop(host: Host) -> None:
    mounted = f"mount -t tmpfs none {host.a}"
    assert "--no-block start mediahost-mounted@a.service" in host.run(mounted, "guard watch")
    (host.root / "job").write_text("17\n")
    assert "--no-block start mediahost-mounted@a.service" not in host.run(mounted, "guard watch")


def test_a_sentinel_that_somebody_removed_comes_back_and_nobody_is_stopped_for_it(host: Host) -> None:
    host.container("sonarr", host.a)
    (host.root / "active").write_text("mediahost-mounted@a.service\n")
    log = host.run(f"mount -t tmpfs none {host.a}", "guard watch")
    assert host.sentinel(host.a).exists()
    assert "stop sonarr" not in log
    assert "restart" not in log


def test_the_watch_starts_who_is_held_back_although_the_mount_is_there(host: Host) -> None:
    host.container("sonarr", host.a, state="exited", error="bind source path does not exist")
    host.run(
        f"mount -t tmpfs none {host.a}",
        f"mkdir -p {host.sentinel(host.a).parent}",
        f": >{host.sentinel(host.a)}",
        "guard watch",
    )
    assert host.state("sonarr") == "running"


def test_the_watch_stops_who_goes_on_though_the_mount_was_taken_away_by_hand(host: Host) -> None:
    host.container("sonarr", host.a)
    host.run(f"guard present {host.a}", "guard watch")
    assert host.state("sonarr") == "exited"
    assert not host.sentinel(host.a).exists()


def test_a_disk_that_is_gone_under_its_mount_is_let_go_of(host: Host) -> None:
    host.container("sonarr", host.a)
    log = host.run(f"mount -t tmpfs /dev/gone {host.a}", "guard watch", f"grep -c ' {host.a} ' /proc/self/mountinfo")
    assert "/dev/gone is gone, it is let go of" in log
    assert log.endswith("0\n")
    assert host.state("sonarr") == "exited"


def test_a_pool_that_was_busy_when_its_branch_went_does_not_go_on_without_it(host: Host) -> None:
    host.container("sonarr", host.b)
    mounted = f"mount -t tmpfs none {host.b}"
    count = f"grep -c ' {host.b} ' /proc/self/mountinfo"
    log = host.run(f"mount -t tmpfs none {host.a}", mounted, f"guard present {host.b}", "guard watch", count)
    assert (log.splitlines()[-1], host.state("sonarr")) == ("1", "running")
    log = host.run(mounted, f"guard present {host.b}", "guard watch", count)
    assert f"{host.a} is gone, it is let go of" in log
    assert (log.splitlines()[-1], host.state("sonarr")) == ("0", "exited")
    assert not host.sentinel(host.b).exists()


def test_a_watch_over_sound_mounts_asks_neither_systemd_nor_the_engine_after_its_first_look(host: Host) -> None:
    host.container("sonarr", host.a)
    (host.root / "bin" / "sleep").write_text(
        '#!/bin/sh\n[ -e "$STATE/slept" ] && kill $PPID; : >"$STATE/slept"; : >"$STATE/log"\n'
    )
    (host.root / "table").write_text(f"# ours\n{host.a} a.mount {host.root}/device -\n")
    log = host.run(f"mount -t tmpfs none {host.a}", f"guard present {host.a}", "guard watch")
    assert log == ""


def test_a_service_of_the_host_that_requires_the_mount_is_started_with_it(host: Host) -> None:
    (host.root / "required_by").write_text("plexmediaserver.service data.mount\n")
    log = host.run(f"guard present {host.a}")
    assert "systemctl --no-block start plexmediaserver.service" in log
    assert "start data.mount" not in log


def test_marks_of_containers_that_are_no_more_are_forgotten(host: Host) -> None:
    (host.root / "held").mkdir()
    (host.root / "held" / "gone").touch()
    host.run("guard watch")
    assert list((host.root / "held").iterdir()) == []
