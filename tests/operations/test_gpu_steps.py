"""Stage gpu: a host as wanted is no step, each drift is told and mended, off gives all back, dangers are refused."""

from __future__ import annotations

import itertools
import json
import shlex
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gevent
import pytest
import yaml
from paramiko import SSHException
from pyinfra.api.exceptions import ConnectError, OperationError

from facts.snapshot import STATE_DIRECTORY, ContainerState, GpuState, Os, PackageState, PathState, Snapshot, UnitState
from mediahost.catalog import Service, load_catalog
from mediahost.config import read
from mediahost.gpu import Card
from mediahost.render import docker as docker_files
from mediahost.render import gpu as gpu_files
from mediahost.render.compose import SERVICE_LABEL
from mediahost.stack import GIVEN
from mediahost.wanted import Wanted, build
from operations import compose, docker, gpu, manifest, reboot, report
from operations.convergence import Step
from tests.operations.test_deploy import BARE, DATA, Project
from tests.operations.test_steps import INSTALLED, as_present, commands, refusal, sound, told

CATALOG = load_catalog()
TRIXIE = Os("debian", "trixie", "13", "amd64")
NOBLE = Os("ubuntu", "noble", "24.04", "amd64")
BOOT = {"kernel.random.boot_id": "boot-1"}
INTEL = Card("0000:00:02.0", 0x8086, 0x4680, "i915", "renderD128", named=True)
ADA = Card("0000:01:00.0", 0x10DE, 0x2684, "nvidia")
LOADED = UnitState("loaded", "active", "exited", "enabled", needs_daemon_reload=False)
HELD = PackageState("580.95.05-0ubuntu1", installed=True, held=True)
DEBIAN_SOURCES = "Types: deb\nURIs: http://deb.debian.org/debian\nSuites: trixie\nComponents: main\n"


def secret(entry: str, kind: str) -> str:
    if kind == GIVEN:
        raise LookupError(entry)
    return f"value-of-{entry}"


def plan(uses: Mapping[str, str] = {"sonarr": "transcode"}, **data: Any) -> Wanted:  # noqa: B006 - never changed
    """A host of which the services in `uses` want a card."""
    catalog: dict[str, Service] = dict(CATALOG)
    for name, use in uses.items():
        catalog[name] = catalog[name].model_copy(update={"gpu": use})
    return build("nas", read("nas", {"gpu": "auto", **data}), catalog, secret)


def bare(*cards: Card, os: Os = NOBLE, **state: Any) -> Snapshot:
    """A host with cards on which no run has been."""
    nodes = {card.render: card.address for card in cards if card.render}
    return Snapshot(
        os=os,
        gpu=GpuState(kernel="6.8.0-88-generic", cards=cards, nodes=nodes, **state),
        groups={"render": 992, "video": 44},
        sysctls=BOOT,
        contents={"/etc/apt/sources.list.d/debian.sources": DEBIAN_SOURCES},
    )


def as_wanted(wanted: Wanted, seen: Snapshot) -> Snapshot:
    """`seen` after a run, its cards tried out."""
    # Before the first run no module is loaded; one without a package would be somebody's own.
    before = replace(seen, gpu=replace(seen.gpu, nvidia=""))
    decided = gpu.decision(wanted.settings, before, gpu.asking(wanted))
    release = gpu.release(seen)
    files = list(gpu_files.files(decided, wanted.settings, release, gpu._sources(decided, seen)))
    paths = as_present(*files)
    contents = dict(seen.contents)
    for keyring, name, fingerprint in (
        (gpu_files.TOOLKIT_KEYRING, "nvidia-toolkit", wanted.settings.gpu_toolkit_apt_fingerprint),
        (gpu_files.DRIVER_KEYRING, "nvidia-driver", wanted.settings.gpu_nvidia_apt_fingerprint),
    ):
        paths[keyring] = PathState("file", "644", "0", "0", "root", "root", "digest")
        contents[gpu._KEY_RECORDS[name]] = f"{fingerprint} digest"
    if not decided.nvidia:
        paths.pop(gpu_files.TOOLKIT_KEYRING)
    if gpu_files.DRIVER_PATH not in paths:
        paths.pop(gpu_files.DRIVER_KEYRING)
    names = gpu.packages(decided)
    packages = {name: HELD if "nvidia" in name else INSTALLED for name in names}
    if decided.nvidia:
        paths[gpu.HELD] = paths[gpu_files.CDI_SPEC] = paths[gpu.CDI] = as_present(gpu_files.udev_rule())[
            gpu_files.UDEV_PATH
        ]
        contents[gpu.HELD] = "\n".join(name for name in names if "nvidia" in name) + "\n"
    done = replace(
        seen,
        paths=paths,
        packages=packages,
        contents=contents,
        manifest=dict.fromkeys((path for path in paths if path in gpu_files.PATHS), ""),
        units={gpu_files.CDI_UNIT: LOADED, gpu_files.STARTED_UNIT: LOADED},
    )
    proven = [(str(card), gpu._software(card, done)) for card in decided.cards]
    if decided.driver and not decided.driver.dkms:
        # The metapackage brings the module for the newest kernel.
        packages["linux-image-6.8.0-88-generic"] = INSTALLED
        packages["linux-modules-nvidia-580-server-open-6.8.0-88-generic"] = HELD
        contents[gpu.HELD] += "linux-modules-nvidia-580-server-open-6.8.0-88-generic\n"
    if proven:
        contents[gpu.PROVEN] = "".join(f"{subject}\t{what}\tok\n" for subject, what in proven)
        paths[gpu.PROVEN] = paths[next(iter(paths))]
    return done


MODULE: dict[str, Any] = {"nvidia": "580.95.05"}
HOSTS: dict[str, Callable[[], Snapshot]] = {
    "intel": lambda: bare(INTEL),
    "intel on debian": lambda: bare(INTEL, os=TRIXIE),
    "nvidia": lambda: bare(ADA, **MODULE),
    "nvidia on debian": lambda: bare(ADA, os=TRIXIE, **MODULE),
    "both": lambda: bare(INTEL, ADA, **MODULE),
    "none": bare,
}
every_host = pytest.mark.parametrize("host", HOSTS)


@every_host
def test_a_host_as_wanted_is_no_step(host: str) -> None:
    wanted = plan()
    assert gpu.steps(wanted, as_wanted(wanted, HOSTS[host]())) == []


@every_host
def test_a_host_that_asks_for_nothing_is_no_step_and_no_question(host: str) -> None:
    wanted = plan(gpu="none")
    assert gpu.steps(wanted, HOSTS[host]()) == []
    asked = gpu.request(wanted.settings)
    assert asked.gpu | asked.packages | asked.units | asked.groups | asked.sysctls == frozenset()
    # Positive control: with cards these are asked for.
    assert gpu.request(plan().settings).gpu


def test_a_machine_without_a_card_is_no_step_though_cards_are_looked_for() -> None:
    assert gpu.steps(plan(), bare()) == []
    assert gpu.cdi(plan().settings, bare()) is None


def test_a_fresh_intel_host_is_told_every_difference() -> None:
    steps = gpu.steps(plan(), bare(replace(INTEL, named=False), os=TRIXIE))
    sound(steps)
    assert told(steps) == [
        "manifest: 2 new owned file(s)",
        "/etc/udev/rules.d/61-mediahost-gpu.rules: missing",
        "/etc/udev/rules.d/61-mediahost-gpu.rules: taken into use",
        "/etc/apt/sources.list.d/mediahost-gpu.sources: missing",
        "package firmware-intel-graphics: not installed",
        "package intel-media-va-driver-non-free: not installed",
        "package vainfo: not installed",
    ]


def test_a_fresh_nvidia_host_gets_key_source_driver_and_toolkit_before_anything_is_tried() -> None:
    steps = gpu.steps(plan(), bare(replace(ADA, driver="nouveau", render="renderD128")))
    sound(steps)
    text = commands(steps)
    assert "C95B321B61E88C1809C4F759DDCAE044F796ECB0" in text
    assert text.index("gpgkey") < text.index("apt install") < text.index("update-initramfs")
    assert "linux-modules-nvidia-580-server-open-generic" in text
    assert "nvidia-container-toolkit" in text
    assert "nvidia-smi" not in text
    assert "modprobe nvidia" not in text
    assert "--no-install-recommends" in text, "no desktop"


@pytest.mark.parametrize(
    ("drift", "word"),
    [
        (lambda seen: without_package(seen, "vainfo"), "package vainfo: not installed"),
        (lambda seen: without_path(seen, gpu_files.UDEV_PATH), f"{gpu_files.UDEV_PATH}: missing"),
        (lambda seen: without_path(seen, gpu_files.MODPROBE_PATH), f"{gpu_files.MODPROBE_PATH}: missing"),
        (lambda seen: without_path(seen, gpu_files.TOOLKIT_KEYRING), f"{gpu_files.TOOLKIT_KEYRING}: missing"),
        (lambda seen: without_path(seen, gpu_files.CDI_SPEC), f"{gpu_files.CDI_SPEC}: missing"),
        (lambda seen: unheld(seen, "nvidia-utils-580-server"), "package nvidia-utils-580-server: not held"),
        (lambda seen: replace(seen, pending=frozenset({"initramfs"})), "initramfs: modules have other options"),
    ],
)
def test_each_drift_is_told_and_nothing_else(drift: Callable[[Snapshot], Snapshot], word: str) -> None:
    wanted = plan()
    steps = gpu.steps(wanted, drift(as_wanted(wanted, HOSTS["both"]())))
    sound(steps)
    assert [change for change in told(steps) if change.startswith(word)], told(steps)
    # A file that is there anew is taken into use, and what was noted of packages goes with them.
    assert len(steps) <= 3, told(steps)


def without_package(seen: Snapshot, name: str) -> Snapshot:
    return replace(seen, packages={key: value for key, value in seen.packages.items() if key != name})


def without_path(seen: Snapshot, path: str) -> Snapshot:
    assert path in seen.paths
    return replace(seen, paths={key: value for key, value in seen.paths.items() if key != path})


def unheld(seen: Snapshot, name: str) -> Snapshot:
    package = replace(seen.packages[name], held=False)
    return replace(seen, packages={**seen.packages, name: package})


def test_secure_boot_is_refused_before_anything_else_is_a_step() -> None:
    steps = gpu.steps(plan(), bare(ADA, os=TRIXIE, secure_boot=True))
    assert len(steps) == 1
    assert "Secure Boot is on" in refusal(steps)
    # Positive control: without it there is much to do.
    assert len(gpu.steps(plan(), bare(ADA, os=TRIXIE))) > 5


def test_packages_that_the_user_held_himself_are_not_released_when_it_is_switched_off() -> None:
    seen = bare(ADA, **MODULE)
    decided = gpu.decision(plan().settings, seen)
    packages = {"nvidia-utils-580-server": HELD, "nvidia-container-toolkit": INSTALLED}
    steps = gpu.hold_steps(plan().settings, decided, replace(seen, packages=packages))
    assert told(steps) == ["package nvidia-container-toolkit: not held"]
    assert "nvidia-utils" not in commands(steps)


# --- switched off


@every_host
def test_switched_off_takes_away_files_and_holds_and_keeps_the_packages(host: str) -> None:
    on, off = plan(), plan(gpu="none")
    seen = as_wanted(on, HOSTS[host]())
    steps = gpu.steps(off, seen)
    sound(steps)
    for path in gpu_files.PATHS:
        assert (f"{path}: not wanted any more" in told(steps)) == (path in seen.paths)
    assert ("apt-mark unhold" in commands(steps)) == (gpu.HELD in seen.paths)
    assert "apt-get" not in commands(steps)
    # The manifest knows the files until they are gone.
    assert manifest.prune_steps(off.owned, seen) == []
    gone = replace(seen, paths={})
    assert bool(manifest.prune_steps(off.owned, gone)) == bool(seen.manifest)
    assert gpu.steps(off, gone) == []


def test_the_options_of_modules_are_taken_out_of_the_initial_file_system_too() -> None:
    seen = as_wanted(plan(), HOSTS["nvidia"]())
    text = commands(gpu.steps(plan(gpu="none"), seen))
    assert text.index("pending/initramfs") < text.index(f"rm -f {gpu_files.MODPROBE_PATH}")


# --- the engine


def daemon(present: str | None, cdi: bool | None, **data: Any) -> dict[str, Any]:
    file = docker_files.daemon_file(read("nas", data), present, cdi)
    found: dict[str, Any] = json.loads(file.content)
    return found


def test_cdi_is_merged_into_daemon_json_and_what_others_wrote_stays() -> None:
    theirs = {"runtimes": {"nvidia": {"path": "nvidia-container-runtime"}}, "features": {"buildkit": True}}
    found = daemon(json.dumps(theirs), True)
    assert found["features"] == {"buildkit": True, "cdi": True}
    assert found["runtimes"] == theirs["runtimes"]
    again = daemon(json.dumps(found), True)
    assert again == found


def test_the_users_own_word_on_cdi_counts() -> None:
    assert daemon(None, True, docker_daemon_extra={"features": {"cdi": False}})["features"] == {"cdi": False}


def test_cdi_is_given_back_and_nothing_else_with_it() -> None:
    assert "features" not in daemon(json.dumps({"features": {"cdi": True}}), False)
    assert daemon(json.dumps({"features": {"cdi": True, "x": False}}), False)["features"] == {"x": False}
    # Positive control: where it is none of ours it stays.
    assert daemon(json.dumps({"features": {"cdi": True}}), None)["features"] == {"cdi": True}


def test_the_record_of_cdi_is_there_before_daemon_json_and_goes_after_it() -> None:
    settings, off = plan().settings, plan(gpu="none").settings
    on = docker.running_steps(settings, bare(ADA, **MODULE))
    assert told(on)[:2] == ["CDI: is switched on in the engine", "/etc/docker/daemon.json: missing"]
    assert '"cdi": true' in docker_files.daemon_file(settings, None, gpu.cdi(settings, bare(ADA))).content.decode()
    left = replace(bare(), paths={gpu.CDI: PathState("file", "644", "0", "0", "root", "root")})
    assert told(docker.running_steps(off, left))[-1] == "CDI: given back to the engine's own default"


# --- services


def service(wanted: Wanted, seen: Snapshot, name: str) -> dict[str, Any]:
    (file,) = [file for file in gpu.fitted(wanted, seen).stack_files if file.path.endswith("/compose.yaml")]
    found: dict[str, Any] = yaml.safe_load(file.content)["services"][name]
    return found


def test_a_service_that_asks_gets_the_node_and_the_number_of_its_group_and_no_other_does() -> None:
    wanted = plan()
    asking = service(wanted, bare(INTEL), "sonarr")
    assert asking["devices"] == ["/dev/dri/mediahost/pci-0000_00_02_0:/dev/dri/renderD128:rw"]
    assert asking["group_add"] == ["992"]
    other = service(wanted, bare(INTEL), "radarr")
    assert "devices" not in other
    assert "group_add" not in other


def test_a_service_gets_an_nvidia_card_by_its_cdi_name() -> None:
    seen = as_wanted(plan(), HOSTS["nvidia"]())
    found = service(plan(), seen, "sonarr")
    (device,) = found["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "cdi", "device_ids": ["nvidia.com/gpu=0"], "capabilities": ["gpu"]}


def test_only_the_service_whose_card_changes_is_made_anew() -> None:
    wanted = plan()
    before = {each.service: each.digest for each in wanted.containers}
    after = {each.service: each.digest for each in gpu.fitted(wanted, bare(INTEL)).containers}
    assert {name for name in before if before[name] != after[name]} == {"sonarr"}


def test_a_stack_is_the_same_bytes_where_no_card_is_given() -> None:
    wanted = plan()
    for seen in (bare(), bare(ADA), bare(replace(INTEL, named=False)), bare(replace(INTEL, render=""))):
        assert gpu.fitted(wanted, seen) is wanted
    off = plan(gpu="none")
    assert gpu.fitted(off, bare(INTEL)) is off
    assert {each.digest for each in off.containers} == {each.digest for each in wanted.containers}


def test_a_service_whose_card_is_not_ready_yet_runs_without_and_that_is_told() -> None:
    wanted = plan()
    (notice,) = gpu.notices(wanted, bare(replace(ADA, driver="nouveau")))
    assert notice.startswith("service sonarr: runs without NVIDIA 10de:2684 (Ada)")
    assert list(gpu.notices(wanted, bare(INTEL))) == []


def test_a_service_that_the_user_gives_a_card_needs_no_word_of_the_catalogue() -> None:
    wanted = plan(uses={}, gpu_devices={"radarr": "intel"})
    assert "devices" in service(wanted, bare(INTEL), "radarr")
    assert "devices" not in service(wanted, bare(INTEL), "sonarr")
    without = plan(gpu_devices={"sonarr": "none"})
    assert gpu.fitted(without, bare(INTEL)) is without


def test_the_compose_stage_writes_the_file_with_the_cards() -> None:
    wanted = plan()
    seen = bare(INTEL)
    assert compose.file_steps(wanted, replace(seen, paths=as_present(*wanted.stack_files)))
    fitted = gpu.fitted(wanted, seen)
    assert compose.file_steps(wanted, replace(seen, paths=as_present(*fitted.stack_files))) == []


# --- reboot


def ask(reasons: list[str], record: str = "", boot: str = "boot-1") -> list[Step]:
    contents = {reboot.RECORD: record} if record else {}
    seen = Snapshot(sysctls={"kernel.random.boot_id": boot}, contents=contents)
    return reboot.asked_steps(reasons, seen)


def test_a_reboot_is_asked_for_once_in_a_boot_and_the_distribution_is_told() -> None:
    (step,) = ask(["nouveau is loaded"])
    sound([step])
    assert "touch /run/reboot-required" in step.command
    assert ask(["nouveau is loaded"], "boot-1\nnouveau is loaded\n") == []
    assert ask([], "") == []


def test_a_reboot_that_did_not_help_is_not_tried_again() -> None:
    assert "did not: nouveau is loaded" in refusal(ask(["nouveau is loaded"], "boot-0\nnouveau is loaded\n"))
    # Positive control: another reason than then is asked for.
    assert ask(["the module is older"], "boot-0\nnouveau is loaded\n")[0].refusal is None


def test_a_reboot_that_helped_is_forgotten_with_the_flag_that_is_only_ours() -> None:
    (step,) = ask([], "boot-0\nnouveau is loaded\n")
    assert step.change == "reboot: not needed any more"
    sound([step])


def test_a_reboot_is_told_with_who_would_do_it() -> None:
    seen = Snapshot(sysctls=BOOT, contents={reboot.RECORD: "boot-1\nnouveau is loaded\n"})
    assert "nobody does it by itself" in reboot.notice(seen, None)
    assert "it happens at 04:30" in reboot.notice(seen, "04:30")
    assert "--reboot" in reboot.notice(seen, "04:30")
    assert reboot.notice(Snapshot(sysctls={"kernel.random.boot_id": "boot-2"}, contents=seen.contents), None) == ""


def test_nouveau_a_newer_program_and_a_card_without_a_driver_need_a_reboot() -> None:
    wanted = plan()

    def asked(seen: Snapshot) -> list[str]:
        return gpu.reasons(wanted.settings, gpu.decision(wanted.settings, seen), seen)

    nvidia = as_wanted(wanted, HOSTS["nvidia"]())
    assert asked(nvidia) == []
    (reason,) = asked(replace(nvidia, gpu=replace(nvidia.gpu, nvidia="580.82.07")))
    assert "580.82.07 is loaded and its programs are 580.95.05" in reason
    bound = replace(nvidia.gpu, nvidia="", cards=(replace(ADA, driver="nouveau"),))
    assert "nouveau drives NVIDIA" in asked(replace(nvidia, gpu=bound))[0]
    intel = as_wanted(wanted, HOSTS["intel"]())
    blind = replace(intel.gpu, cards=(replace(INTEL, driver="", render=""),))
    assert "has no driver" in asked(replace(intel, gpu=blind))[0]


def test_a_module_that_does_not_load_asks_for_a_reboot_and_is_not_tried_twice() -> None:
    wanted = plan()
    seen = as_wanted(wanted, HOSTS["nvidia"]())
    seen = replace(seen, gpu=replace(seen.gpu, nvidia="", cards=(replace(ADA, driver=""),)))
    steps = gpu.prepared_steps(wanted, seen)
    sound(steps)
    assert told(steps) == ["NVIDIA's module: not loaded"]
    assert "modprobe nvidia" in commands(steps)
    assert reboot.RECORD in commands(steps)
    asked = replace(seen, contents={**seen.contents, reboot.RECORD: f"boot-1\n{gpu._NO_MODULE}\n"})
    assert gpu.prepared_steps(wanted, asked) == []
    booted = replace(asked, sysctls={"kernel.random.boot_id": "boot-2"})
    assert "did not" in refusal(gpu.prepared_steps(wanted, booted))


def test_low_power_encoding_is_an_option_of_the_module_and_needs_a_reboot_until_it_reads_it() -> None:
    wanted = plan(gpu_intel_low_power=True)
    seen = bare(INTEL, guc="-1")
    assert b"options i915 enable_guc=2" in next(
        file.content
        for file in gpu_files.files(gpu.decision(wanted.settings, seen), wanted.settings, gpu.release(seen), "")
        if file.path == gpu_files.MODPROBE_PATH
    )
    ready = as_wanted(wanted, seen)
    assert [step.change for step in gpu.steps(wanted, ready)] == [
        "reboot: asked for, i915 reads enable_guc while it boots"
    ]
    assert gpu.steps(wanted, replace(ready, gpu=replace(ready.gpu, guc="2"))) == []


# --- trial


def test_a_card_is_tried_again_when_its_software_changes() -> None:
    wanted = plan()
    seen = as_wanted(wanted, HOSTS["both"]())
    newer = replace(seen, gpu=replace(seen.gpu, kernel="6.8.0-90-generic"))
    steps = gpu.steps(wanted, newer)
    sound(steps)
    assert told(steps) == [f"{INTEL}: not tried with vainfo yet"]
    assert "vainfo --display drm --device /dev/dri/mediahost/pci-0000_00_02_0" in commands(steps)


def test_a_trial_that_failed_is_told_and_fails_nothing() -> None:
    wanted = plan()
    seen = as_wanted(wanted, HOSTS["intel"]())
    failed = {**seen.contents, gpu.PROVEN: seen.contents[gpu.PROVEN].replace("\tok", "\tfails: no VA display")}
    (notice,) = gpu.notices(wanted, replace(seen, contents=failed))
    assert "vainfo on the host says: fails: no VA display" in notice
    assert gpu.steps(wanted, replace(seen, contents=failed)) == []


def running(service: str, identity: str) -> ContainerState:
    return ContainerState(identity, service, "", "", "running", "healthy", frozenset(), "mediahost")


def test_a_card_is_tried_from_inside_once_for_each_container_by_the_services_own_user() -> None:
    wanted = plan()
    seen = replace(bare(INTEL), containers=(running("sonarr", "a" * 64), running("radarr", "b" * 64)))
    steps = gpu.inside_steps(wanted, seen)
    sound(steps)
    assert told(steps) == ["service sonarr: its card is not tried from inside yet"]
    assert f"docker exec -u 13000:13000 {'a' * 12} sh -c ': <>/dev/dri/renderD128'" in commands(steps)
    noted = replace(seen, contents={gpu.PROVEN: f"service sonarr\t{'a' * 12}\tok\n"})
    assert gpu.inside_steps(wanted, noted) == []
    anew = replace(noted, containers=(running("sonarr", "c" * 64),))
    assert len(gpu.inside_steps(wanted, anew)) == 1
    assert gpu.inside_steps(plan(gpu="none"), seen) == []


def test_what_a_container_cannot_open_is_told_while_it_has_the_card() -> None:
    failed = {gpu.PROVEN: f"service sonarr\t{'a' * 12}\tfails: Permission denied\n"}
    seen = replace(bare(INTEL), contents=failed)
    (notice,) = gpu.notices(plan(), seen)
    assert notice.startswith("service sonarr: its graphics card cannot be used inside the container")
    assert list(gpu.notices(plan(gpu_devices={"sonarr": "none"}), seen)) == []


def test_what_was_tried_of_a_node_without_a_card_is_not_forgotten_again() -> None:
    wanted = plan(uses={}, gpu_devices={"radarr": "/dev/dri/renderD128"})
    seen = bare()
    record = PathState("file", "644", "0", "0", "root", "root")
    seen = replace(seen, gpu=replace(seen.gpu, nodes={"renderD128": "vgem"}), paths={gpu.PROVEN: record})
    assert gpu.given(wanted, seen)["radarr"].node == "/dev/dri/renderD128"
    assert gpu.steps(wanted, seen) == []
    # Positive control: where nothing has a card any more it goes.
    assert told(gpu.steps(plan(gpu="none"), seen)) == ["graphics: what was tried out is forgotten"]


def test_a_kernel_that_came_since_gets_its_module_before_somebody_boots_it() -> None:
    wanted = plan()
    seen = as_wanted(wanted, HOSTS["nvidia"]())
    newer = replace(seen, packages={**seen.packages, "linux-image-6.8.0-100-generic": INSTALLED})
    steps = gpu.steps(wanted, newer)
    sound(steps)
    assert told(steps) == ["Linux 6.8.0-100-generic: has no NVIDIA module yet (transcodes on NVIDIA cards stop)"]
    assert "linux-modules-nvidia-580-server-open-6.8.0-100-generic" in commands(steps)
    # A kernel that was removed, or is older, asks for nothing.
    half = PackageState("1", installed=False, held=False)
    assert gpu.steps(wanted, replace(seen, packages={**seen.packages, "linux-image-6.8.0-100-generic": half})) == []
    older = {**seen.packages, "linux-image-6.8.0-9-generic": INSTALLED}
    assert gpu.steps(wanted, replace(seen, packages=older)) == []


@pytest.mark.parametrize(
    ("offered", "code"),
    [
        ("nvidia-driver-580-server-open, (kernel modules provided by x)\nnvidia-driver-535-server, (x)", 0),
        ("nvidia-driver-580-server, (kernel modules provided by x)", 1),
        ("", 0),
    ],
)
def test_ubuntu_is_asked_whether_the_branch_drives_the_card(offered: str, code: int, tmp_path: Path) -> None:
    steps = gpu.package_steps(gpu.decision(plan().settings, bare(ADA)), bare(ADA))
    (asking,) = [step for step in steps if "ubuntu-drivers is asked" in step.change]
    assert steps.index(asking) < len(steps) - 1, "before anything of the driver"
    program = tmp_path / "ubuntu-drivers"
    program.write_text(f"#!/bin/sh\nprintf '%s\\n' '{offered}'\n")
    program.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    done = subprocess.run(
        ["sh", "-eu"], input=asking.command, env=environment, text=True, capture_output=True, check=False
    )
    assert done.returncode == code, done.stderr
    assert ("gpu_nvidia_branch" in done.stderr) == bool(code)


def test_debian_is_not_asked_for_ubuntus_program() -> None:
    seen = bare(ADA, os=TRIXIE)
    assert "ubuntu-drivers" not in commands(gpu.package_steps(gpu.decision(plan().settings, seen), seen))


def test_a_run_that_died_before_udev_named_a_card_is_finished_by_the_next() -> None:
    wanted = plan()
    seen = as_wanted(wanted, HOSTS["intel"]())
    nameless = replace(seen, gpu=replace(seen.gpu, cards=(replace(INTEL, named=False),)))
    steps = gpu.steps(wanted, nameless)
    sound(steps)
    assert told(steps) == [f"{INTEL}: udev has not named it"]


def test_a_unit_that_systemd_has_not_read_is_read_first() -> None:
    wanted = plan()
    seen = as_wanted(wanted, HOSTS["nvidia"]())
    unread = replace(seen, units=dict.fromkeys(seen.units, replace(LOADED, load="not-found", active="inactive")))
    assert told(gpu.steps(wanted, unread)) == [
        "mediahost-cdi.service: systemd has not read it",
        "mediahost-cdi-containers.service: systemd has not read it",
    ]


def test_only_containers_that_an_older_engine_refused_their_card_at_its_start_are_started(tmp_path: Path) -> None:
    text = gpu_files.started_unit().content.decode()
    (line,) = [line for line in text.splitlines() if line.startswith("ExecStart=")]
    shell = shlex.split(line.removeprefix("ExecStart="))
    docker_stub = tmp_path / "docker"
    # What Docker 26.1.5 says of each; one cannot be started now either.
    docker_stub.write_text(f"""#!/bin/sh
case $1 in
  ps) printf 'broken\nrefused\nstopped\n' ;;
  inspect)
    case $4 in
      broken|refused) echo 'could not select device driver "cdi" with capabilities: [[gpu]]' ;;
      *) echo ;;
    esac ;;
  start) echo "$2" >>{tmp_path}/started; [ "$2" != broken ] ;;
esac
""")
    docker_stub.chmod(0o755)
    # systemd makes one dollar of two.
    command = [*shell[:2], shell[2].replace("$$", "$")]
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    done = subprocess.run(command, env=environment, text=True, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "started").read_text().split() == ["broken", "refused"]
    assert f"label={SERVICE_LABEL} " in text
    for ordering in ("After=docker.service", "PartOf=docker.service", "WantedBy=docker.service"):
        assert f"{ordering}\n" in text


# --- coming back


class Booting:
    """A host that goes down, refuses for a while, and comes back with another boot."""

    name = "nas"
    print_prefix = "[nas] "

    def __init__(self, answers: list[str | None]) -> None:
        self.answers = answers
        self.connector_data: dict[str, Any] = {}
        self.waited = False

    def disconnect(self) -> None:
        pass

    def connect(self, **_options: Any) -> None:
        if self.answers[0] is None:
            self.answers.pop(0)
            raise ConnectError("refused")

    def run_shell_command(self, command: Any, **_options: Any) -> tuple[bool, Any]:
        if "is-system-running" in str(command):
            self.waited = True
            return False, SimpleNamespace(stdout="degraded")
        return True, SimpleNamespace(stdout=self.answers.pop(0))


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = itertools.count(0, 60)
    monkeypatch.setattr(gevent, "sleep", lambda _seconds: None)
    monkeypatch.setattr(reboot, "time", SimpleNamespace(monotonic=lambda: next(moments)))
    monkeypatch.setattr(reboot, "clear_askpass_cache", lambda _host: None)


def test_a_run_goes_on_when_the_host_has_booted_anew_and_not_before(
    no_waiting: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Still the old boot, then down twice, then the new one.
    host = Booting(["boot-1", None, None, "boot-2"])
    monkeypatch.setattr(reboot, "host", host)
    reboot._come_back("boot-1")
    assert host.answers == []
    assert host.waited


def test_a_connection_that_is_cut_while_the_host_goes_down_is_not_the_end_of_the_run(
    no_waiting: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = Booting(["boot-1", "boot-2"])
    monkeypatch.setattr(reboot, "host", host)
    asked = host.run_shell_command
    # sshd has let the login in, and is stopped before it makes the channel of the command.
    cut = iter((True,))

    def run_shell_command(command: Any, **options: Any) -> tuple[bool, Any]:
        if next(cut, False):
            raise SSHException("SSH session not active")
        return asked(command, **options)

    monkeypatch.setattr(host, "run_shell_command", run_shell_command)
    reboot._come_back("boot-1")
    assert host.waited


def test_a_host_that_does_not_come_back_fails_with_why(no_waiting: None, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(reboot, "host", Booting([None] * 99))
    monkeypatch.setattr(report, "refusal", said.append)
    with pytest.raises(OperationError, match="refused"):
        reboot._come_back("boot-1")
    assert "did not come back within 900 s" in said[0]


# --- the shell of trials, run for real


def tried(command: str, state: Path, **programs: str) -> tuple[subprocess.CompletedProcess[str], Snapshot]:
    """Run a step with these programs; what it noted, as the next snapshot has it."""
    for name, text in programs.items():
        (state / name).write_text(f"#!/bin/sh\n{text}\n")
        (state / name).chmod(0o755)
    done = subprocess.run(
        ["sh", "-eu"],
        input=command.replace(STATE_DIRECTORY, str(state)),
        env={"PATH": f"{state}:/usr/bin:/bin"},
        text=True,
        capture_output=True,
        check=False,
    )
    record = state / "gpu/proven"
    return done, replace(bare(INTEL), contents={gpu.PROVEN: record.read_text()} if record.exists() else {})


@pytest.mark.parametrize(
    ("program", "outcome"),
    [
        ("printf 'iHD driver\\nVAProfileH264Main : VAEntrypointEncSlice\\n'", "ok"),
        ("printf 'VAProfileH264Main : VAEntrypointVLD\\n'", "no VAEntrypointEncSlice"),
        ("printf 'libva error:\\tno\\nline two\\n' >&2; exit 3", "fails: libva error: no line two"),
    ],
)
def test_vainfos_word_is_noted_on_one_line(program: str, outcome: str, tmp_path: Path) -> None:
    done, seen = tried(gpu._trial(INTEL, "Linux 6.8, 24.1"), tmp_path, vainfo=program)
    assert done.returncode == 0, done.stderr
    assert gpu._proven(seen) == {str(INTEL): ("Linux 6.8, 24.1", outcome)}
    # A second trial replaces the first and leaves those of others alone.
    other = replace(INTEL, address="0000:03:00.0", device=0x56A5)
    tried(gpu._trial(other, "Linux 6.8, 24.1"), tmp_path, vainfo=program)
    _, seen = tried(gpu._trial(INTEL, "Linux 6.9, 24.1"), tmp_path, vainfo=program)
    assert gpu._proven(seen) == {
        str(other): ("Linux 6.8, 24.1", outcome),
        str(INTEL): ("Linux 6.9, 24.1", outcome),
    }


def test_nvidias_program_must_answer(tmp_path: Path) -> None:
    fails = 'echo "NVIDIA-SMI has failed" >&2; exit 9'
    done, seen = tried(gpu._trial(ADA, "580.95.05"), tmp_path, **{"nvidia-smi": fails})
    assert done.returncode == 1
    assert "nvidia-smi -L fails" in done.stderr
    assert gpu._proven(seen) == {}
    done, seen = tried(gpu._trial(ADA, "580.95.05"), tmp_path, **{"nvidia-smi": "echo GPU 0"})
    assert done.returncode == 0, done.stderr
    assert gpu._proven(seen) == {str(ADA): ("580.95.05", "ok")}


@pytest.mark.parametrize(("program", "outcome"), [(":", "ok"), ("echo denied >&2; exit 2", "fails: denied")])
def test_what_a_container_says_is_noted(program: str, outcome: str, tmp_path: Path) -> None:
    seen = replace(bare(INTEL), containers=(running("sonarr", "a" * 64),))
    (step,) = gpu.inside_steps(plan(), seen)
    done, noted = tried(step.command, tmp_path, docker=program)
    assert done.returncode == 0, done.stderr
    assert gpu._proven(noted) == {"service sonarr": ("a" * 12, outcome)}


def test_a_reboot_is_recorded_and_forgotten_with_the_distributions_flag(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()

    def shell(steps: list[Step]) -> None:
        command = commands(steps).replace(STATE_DIRECTORY, str(tmp_path)).replace("/run/", f"{run}/")
        subprocess.run(["sh", "-eu"], input=command, text=True, check=True)

    shell(ask(["nouveau drives the card; until 'then'"]))
    record = (tmp_path / "reboot").read_text()
    assert record == "boot-1\nnouveau drives the card; until 'then'\n"
    assert ask(["nouveau drives the card; until 'then'"], record) == []
    assert (run / "reboot-required").exists()
    assert (run / "reboot-required.pkgs").read_text() == "mediahost\n"
    shell(ask([], record))
    assert list(run.iterdir()) == []
    assert not (tmp_path / "reboot").exists()
    # Somebody else's wish stays.
    (run / "reboot-required").touch()
    (run / "reboot-required.pkgs").write_text("linux-image\n")
    shell(ask(["x"]))
    assert (run / "reboot-required.pkgs").read_text() == "linux-image\nmediahost\n"
    shell(ask([], "boot-1\nx\n"))
    assert (run / "reboot-required").exists()


# --- as a user runs it


def bare_with(*lines: str) -> list[str]:
    """What a host with cards answers on which nothing of ours is."""
    at = BARE.index("#begin gpu") + 1
    return [*BARE[:at], "#kernel 6.12.57+deb13-amd64", *lines, *BARE[at:]]


PASCAL = "#card 0000:07:00.0 0x10de 0x1b80 nouveau"


def test_a_plan_names_what_a_card_asks_for_in_every_stage_that_has_to_do_with_it(tmp_path: Path) -> None:
    data = {**DATA, "gpu": "auto", "gpu_devices": {"sonarr": "nvidia"}}
    project = Project(tmp_path, {"one": data}, bare_with(PASCAL))
    done = project.run("--dry")
    assert done.returncode == 0, done.stdout + done.stderr
    planned = [f"{event['operation']}: {event['what']}" for event in project.told("planned")]
    assert "gpu | drivers: package nvidia-kernel-dkms: not installed" in planned
    assert "gpu | drivers: package nvidia-container-toolkit: not installed" in planned
    assert "docker | engine: CDI: is switched on in the engine" in planned
    assert [
        event["what"] for event in project.told("notice") if "service sonarr: runs without NVIDIA" in event["what"]
    ]


def test_secure_boot_stops_a_run_in_words_before_anything_of_the_card_is_planned(tmp_path: Path) -> None:
    project = Project(tmp_path, {"one": {**DATA, "gpu": "auto"}}, bare_with(PASCAL, "#secure 6 0 0 0 1"))
    project.run("--dry")
    planned = [event["what"] for event in project.told("planned") if event["operation"].startswith("gpu")]
    assert len(planned) == 1
    assert [event["what"] for event in project.told("refused") if "Secure Boot is on" in event["what"]]


@pytest.mark.parametrize("asked", ["none", "auto"])
def test_a_host_without_a_card_is_planned_the_same_whether_cards_are_looked_for_or_not(
    asked: str, tmp_path: Path
) -> None:
    project = Project(tmp_path, {"one": {**DATA, "gpu": asked}}, bare_with())
    assert project.run("--dry").returncode == 0
    assert [event for event in project.told("planned") if event["operation"].startswith("gpu")] == []
    assert project.told("notice") == []
