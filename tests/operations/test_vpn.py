"""Stage vpn: a host as wanted is no step, each drift is told and mended, the wall goes when nobody is behind it."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from facts.snapshot import ContainerState, PathState, Snapshot, UnitState, VpnState
from mediahost import config
from mediahost.render import forwarding, wall
from mediahost.secrets import Passphrase, Vault
from mediahost.stack import vault_folder
from mediahost.vpn import LINK
from mediahost.wanted import Wanted, build
from operations import manifest, verify, vpn
from tests.operations.test_deploy import PHRASE, Project
from tests.operations.test_steps import INSTALLED, RUNNING, as_present, commands, refusal, sound, told
from tests.unit.test_vpn_stack import CATALOG, PRIVATE, SHARED, given_data, vault, wireguard_file

ENDS = {
    4: "unreachable default metric 4294967295",
    6: "unreachable default dev lo metric 4294967295 pref medium",
}
WAY = "default dev wg-vpn scope link metric 10"
UNSPECIFIED = ".".join("0000")
LOADED = UnitState("loaded", "active", "exited", "enabled", needs_daemon_reload=False)


def plan(mode: str = "host", **data: Any) -> Wanted:
    return build(
        "nas",
        config.read("nas", given_data(mode, **{"vpn_provider": "proton", **data})),
        CATALOG,
        vault(wireguard_file()),
    )


def off() -> Wanted:
    return build("nas", config.read("nas", {}), CATALOG, vault())


def as_wanted(wanted: Wanted) -> Snapshot:
    """A host on which a run has been."""
    settings = wanted.vpn
    assert settings is not None
    files = wall.files(settings, wanted.settings)
    ports = forwarding.files(settings, wanted.settings, wanted.stack)
    (ruleset,) = [file for file in files if file.path == wall.RULESET_PATH]
    host = settings.mode == "host"
    keys = wall.peer(settings).split(" ", 1)
    state = VpnState(
        rules={family: wall.rules(settings, family) for family in (4, 6)},
        routes={4: (WAY, ENDS[4]) if host else (ENDS[4],), 6: (ENDS[6],)},
        recorded=(ruleset.sha256, "listing"),
        listed="listing",
        link=("5:", f"{LINK}:", "<POINTOPOINT,NOARP,UP,LOWER_UP>", "mtu", "1420", "qdisc", "noqueue") if host else (),
        addresses=("10.2.0.2/32",) if host else (),
        peer=tuple(keys) if host else (),
    )
    packages = (*wall.packages(settings), *forwarding.packages(settings, wanted.stack))
    units = {wall.WALL_UNIT: LOADED, wall.TUNNEL_UNIT: RUNNING}
    if ports:
        units[forwarding.UNIT] = RUNNING
    return Snapshot(
        paths=as_present(*files, *ports), packages=dict.fromkeys(packages, INSTALLED), units=units, vpn=state
    )


BOTH = pytest.mark.parametrize("mode", ["host", "container"])


@BOTH
@pytest.mark.parametrize("forwarded", ["off", "nat-pmp"])
def test_a_host_as_wanted_is_no_step(mode: str, forwarded: str) -> None:
    wanted = plan(mode, vpn_port_forwarding=forwarded)
    assert vpn.steps(wanted, as_wanted(wanted)) == []


@BOTH
def test_the_snapshot_is_asked_for_everything_that_is_compared(mode: str) -> None:
    wanted = plan(mode, vpn_port_forwarding="nat-pmp")
    request, seen = vpn.request(wanted), as_wanted(wanted)
    assert set(seen.paths) <= request.paths
    assert set(seen.packages) == request.packages
    assert set(seen.units) == request.units
    assert request.vpn == {"wall", "tunnel", "inside"}
    asked = verify.request(wanted)
    assert asked.vpn == request.vpn
    assert asked.paths >= request.paths


def test_without_a_vpn_only_its_paths_are_looked_at_and_there_is_no_step() -> None:
    request = vpn.request(off())
    assert (request.packages, request.units, request.vpn, request.sysctls) == (frozenset(),) * 4
    assert set(wall.PATHS) <= request.paths
    assert vpn.steps(off(), Snapshot()) == []


def test_on_a_bare_host_the_programs_come_first_and_no_key_is_told() -> None:
    wanted = plan()
    steps = vpn.file_steps(wanted, Snapshot())
    assert told(steps)[:3] == [f"package {name}: not installed" for name in sorted(wall.packages(wanted.vpn))]  # type: ignore[arg-type]
    assert {f"{path}: missing" for path in wall.PATHS} <= set(told(steps))
    assert told(steps)[-1] == "systemd: reads the VPN's units"
    everything = "\n".join((*told(steps), commands(steps)))
    assert PRIVATE not in everything
    assert SHARED not in everything
    sound(steps)


def test_a_unit_is_owed_a_restart_from_before_its_file_is_written() -> None:
    wanted = plan()
    seen = as_wanted(wanted)
    for path, unit in ((wall.RULESET_PATH, wall.WALL_UNIT), (wall.CONFIGURATION_PATH, wall.TUNNEL_UNIT)):
        paths = {**seen.paths, path: replace(seen.paths[path], sha256="other")}
        (step,) = vpn.file_steps(wanted, replace(seen, paths=paths))
        assert step.change == f"{path}: content differs"
        assert f"pending/{unit}" in step.command
        owed = replace(seen, pending=frozenset({unit}))
        (restart,) = vpn.steps(wanted, owed)
        assert "runs with an older configuration" in restart.change
        sound([restart])


def test_new_settings_reach_the_living_interface_which_never_goes_down() -> None:
    wanted = plan()
    owed = replace(as_wanted(wanted), pending=frozenset({wall.TUNNEL_UNIT, wall.WALL_UNIT}))
    steps = vpn.steps(wanted, owed)
    text = commands(steps)
    assert f"systemctl reload {wall.WALL_UNIT}" in text
    assert f"{wall.WATCH_PATH} settle" in text
    # To restart the wall's unit would restart Docker, which requires it.
    for harm in ("link delete", "link set", f"restart {wall.WALL_UNIT}", f"stop {wall.WALL_UNIT}"):
        assert harm not in text
    assert all("nothing passes meanwhile" in s.change or "the tunnel stays up" in s.change for s in steps)


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ({"rules": {4: ()}}, "IPv4 rule 100 from all iif br-vpn lookup 51820: missing"),
        (
            {"rules": {4: ("50 from all iif br-vpn lookup main",)}},
            "IPv4 rule 50 from all iif br-vpn lookup main: is not ours, is removed",
        ),
        ({"routes": {4: (WAY,)}}, "IPv4 routing table 51820: unreachable default at its end is missing"),
        ({"routes": {4: (ENDS[4],)}}, "IPv4 routing table 51820: default dev wg-vpn is missing"),
        ({"routes": {6: ()}}, "IPv6 routing table 51820: unreachable default at its end is missing"),
        ({"routes": {6: (ENDS[6], "default dev eth0 metric 1")}}, "IPv6 routing table 51820, route default dev eth0 "
         "metric 1: is not ours, is removed"),
        ({"listed": "other"}, "nftables table mediahost_vpn: is not as it was loaded"),
        ({"recorded": ()}, "nftables table mediahost_vpn: is not as it was loaded"),
        ({"recorded": ("other", "listing")}, "nftables table mediahost_vpn: an older one is loaded"),
        ({"link": ()}, "wg-vpn: is not there (confined services have no way out until it is)"),
        ({"link": ("5:", "wg-vpn:", "<POINTOPOINT,NOARP>", "mtu", "1420")}, "wg-vpn: is down"),
        ({"link": ("5:", "wg-vpn:", "<POINTOPOINT,UP>", "mtu", "1300")}, "wg-vpn: MTU is 1300, wanted 1420"),
        ({"addresses": ()}, "wg-vpn: addresses are none, wanted 10.2.0.2/32"),
        ({"peer": ("other", "theirs")}, "wg-vpn: has 1 peers, wanted one"),
    ],
)  # fmt: skip
def test_each_drift_in_the_kernel_is_told_and_mended(part: dict[str, Any], change: str) -> None:
    wanted = plan()
    seen = as_wanted(wanted)
    changed: dict[str, Any] = {
        name: {**getattr(seen.vpn, name), **value} if isinstance(value, dict) else value
        for name, value in part.items()
    }
    steps = vpn.steps(wanted, replace(seen, vpn=replace(seen.vpn, **changed)))
    assert change in told(steps)
    assert steps[-1].command in (
        f"systemctl start {wall.WALL_UNIT}\nsystemctl reload {wall.WALL_UNIT}",
        f"{wall.WATCH_PATH} settle",
    )
    sound(steps)


@pytest.mark.parametrize(
    ("position", "value", "what"),
    [
        (1, "A" * 44, "its peer is " + "A" * 44),
        (2, "203.0.113.1:51820", "its server is at 203.0.113.1:51820"),
        (3, "10.0.0.0/8", "allowed addresses 10.0.0.0/8 and keepalive 25"),
        (4, "off", "allowed addresses 0.0.0.0/0 and keepalive off"),
        (0, "B" * 44, "has another private key"),
    ],
)
def test_another_peer_server_or_key_is_told_without_a_private_key(position: int, value: str, what: str) -> None:
    wanted = plan()
    seen = as_wanted(wanted)
    words = " ".join(seen.vpn.peer).split()
    words[position] = value
    peer = (words[0], " ".join(words[1:]))
    (step,) = vpn.steps(wanted, replace(seen, vpn=replace(seen.vpn, peer=peer)))
    assert step.change.startswith(f"wg-vpn: {what}")
    assert PRIVATE not in step.change


def test_a_kernel_without_ipv6_is_asked_for_none_of_it() -> None:
    wanted = plan()
    seen = as_wanted(wanted)
    state = replace(seen.vpn, rules={4: seen.vpn.rules[4]}, routes={4: seen.vpn.routes[4]})
    assert vpn.steps(wanted, replace(seen, vpn=state)) == []


def test_ipv6_on_the_bridge_is_told_and_a_bridge_that_is_not_there_is_not() -> None:
    wanted = plan()
    seen = as_wanted(wanted)
    on = replace(seen, sysctls={"net.ipv6.conf.br-vpn.disable_ipv6": "0"})
    assert told(vpn.steps(wanted, on)) == ["br-vpn: has IPv6"]


@pytest.mark.parametrize("unit", [wall.WALL_UNIT, wall.TUNNEL_UNIT])
def test_a_unit_that_was_stopped_or_disabled_is_brought_back(unit: str) -> None:
    wanted = plan()
    seen = as_wanted(wanted)
    for state, change in (
        (replace(RUNNING, active="inactive"), f"{unit}: inactive"),
        (replace(RUNNING, enabled="disabled"), f"{unit}: not enabled"),
    ):
        assert told(vpn.steps(wanted, replace(seen, units={**seen.units, unit: state}))) == [change]


@pytest.mark.parametrize("mode", ["host", "container"])
def test_a_plan_raises_the_wall_before_the_stack_and_shows_no_key(tmp_path: Path, mode: str) -> None:
    project = Project(tmp_path, {"one": {"vpn_provider": "custom", "vpn_mode": mode}})
    vault = Vault.open(project.vault, Passphrase(PHRASE))
    vault.set(f"{vault_folder('@fake/one')}/vpn/wireguard", wireguard_file())
    vault.save()
    done = project.run("--dry", "-vvv", "--diff", "--debug")
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    operations = [event["operation"] for event in project.told("planned")]
    changes = [event["what"] for event in project.told("planned")]
    assert f"{wall.RULESET_PATH}: missing" in changes
    assert operations.index("vpn | files") < operations.index("vpn | wall") < operations.index("stack | services")
    assert PRIVATE not in output + "".join(changes)
    assert SHARED not in output + "".join(changes)


# --- switched off


def test_switched_off_everything_goes_after_dockers_own_word_that_the_network_is_empty() -> None:
    seen = Snapshot(paths=as_wanted(plan(vpn_port_forwarding="nat-pmp")).paths)
    steps = vpn.steps(off(), seen)
    assert [change.partition(":")[0] for change in told(steps)] == [forwarding.UNIT, "VPN"]
    text = steps[-1].command
    assert text.startswith("if command -v docker >/dev/null && docker network inspect mediahost_vpn")
    # Docker requires the wall's unit: with the drop-in still there it would be stopped with it.
    stopped = [f"disable --now {unit}" for unit in (wall.TUNNEL_UNIT, wall.WALL_UNIT)]
    order = [wall.DOCKER_PATH, "daemon-reload", *stopped, "ip link delete", "nft delete table"]
    assert [text.index(word) for word in order] == sorted(text.index(word) for word in order)
    # What tells that there is still something to do goes last.
    assert text.rindex(wall.RULESET_PATH) > text.rindex("pending/")
    assert all(path in commands(steps) for path in seen.paths)
    sound(steps)


def test_without_the_hosts_wall_the_forwarded_port_is_followed_all_the_same() -> None:
    wanted = plan("container", vpn_killswitch=False, vpn_port_forwarding="nat-pmp")
    assert vpn.request(wanted).units == {forwarding.UNIT}
    assert f"{forwarding.UNIT_PATH}: missing" in told(vpn.steps(wanted, Snapshot()))


def test_what_is_left_of_a_removal_that_died_is_removed_by_the_next_run() -> None:
    left = {wall.RULESET_PATH: PathState("file", "644", "0", "0", "root", "root")}
    assert told(vpn.steps(off(), Snapshot(paths=left))) == [
        "VPN: switched off, its tunnel and its wall are removed; the packages stay"
    ]


def test_the_manifest_leaves_the_walls_files_until_their_own_stage_has_removed_them() -> None:
    on, wanted = plan(), off()
    seen = replace(as_wanted(on), manifest=dict(on.owned))
    before = commands(manifest.prune_steps(wanted.owned, seen))
    assert wall.WALL_UNIT_PATH not in before
    gone = replace(seen, paths={}, manifest={**wanted.owned, **dict.fromkeys(wall.PATHS, "")})
    assert told(manifest.prune_steps(wanted.owned, gone)) == [
        f"{path}: not wanted any more" for path in sorted(wall.PATHS)
    ]


def test_in_mode_container_the_hosts_tunnel_and_key_go_and_the_wall_stays() -> None:
    wanted = plan("container")
    seen = as_wanted(wanted)
    before = as_wanted(plan())
    paths = {**seen.paths, wall.CONFIGURATION_PATH: before.paths[wall.CONFIGURATION_PATH]}
    (step,) = vpn.steps(wanted, replace(seen, paths=paths, vpn=replace(seen.vpn, link=before.vpn.link)))
    assert step.change == "wg-vpn: the tunnel is Gluetun's now, the host's is removed"
    assert wall.CONFIGURATION_PATH in step.command
    assert "nft" not in step.command


def test_without_the_hosts_wall_gluetun_goes_on_and_the_wall_is_removed() -> None:
    wanted = plan("container", vpn_killswitch=False)
    assert vpn.steps(wanted, Snapshot()) == []
    (step,) = vpn.steps(wanted, Snapshot(paths=as_wanted(plan("container")).paths))
    assert "docker network" not in step.command


# --- inside the containers


def inside(*routes: tuple[str, str], networks: frozenset[str] = frozenset({"mediahost_vpn"})) -> Snapshot:
    container = ContainerState("abc123", "qbittorrent", "h", "image", "running", "healthy", networks, "mediahost")
    return Snapshot(containers=(container,), vpn=VpnState(inside={"abc123": routes}))


@BOTH
@pytest.mark.parametrize(
    ("record", "listed", "change"),
    [
        ("{sha} listing 172.30.0.0/16", "listing", ""),
        ("{sha} listing 172.30.0.0/16", hashlib.sha256(b"").hexdigest(), "is missing"),
        ("{sha} listing 172.30.0.0/16", None, "is missing"),
        ("{sha} listing 172.30.0.0/16", "other", "is not as it was loaded"),
        ("", "listing", "is not as it was loaded"),
        ("other listing 172.30.0.0/16", "listing", "is an older one"),
    ],
)
def test_the_wall_inside_each_confined_container_is_compared_and_mended(
    mode: str, record: str, listed: str | None, change: str
) -> None:
    wanted = plan(mode)
    host = as_wanted(wanted)
    (ruleset,) = [file for file in wall.files(wanted.vpn, wanted.settings) if file.path == wall.INSIDE_PATH]
    state = replace(
        host.vpn,
        inside={"abc123": (), "def": ()},
        inside_recorded=tuple(record.format(sha=ruleset.sha256).split()),
        inside_listed={} if listed is None else {"abc123": listed},
    )
    (one,) = inside().containers
    others = (
        replace(one, id="def", service="sonarr", networks=frozenset({"mediahost_apps"})),
        replace(one, id="gone", state="exited"),
    )
    steps = vpn.steps(wanted, replace(host, vpn=state, containers=(one, *others)))
    assert told(steps) == ([f"service qbittorrent: the wall inside its network {change}"] if change else [])
    assert [step.command for step in steps] == [f"{wall.WATCH_PATH} settle"] * bool(change)


def test_an_older_wall_inside_is_no_change_of_its_own_where_its_file_is_still_to_be_written() -> None:
    wanted = plan()
    host = as_wanted(wanted)
    paths = {**host.paths, wall.INSIDE_PATH: replace(host.paths[wall.INSIDE_PATH], sha256="older")}
    state = replace(
        host.vpn,
        inside={"abc123": ()},
        inside_recorded=("older", "listing", "172.30.0.0/16"),
        inside_listed={"abc123": "listing"},
    )
    (step,) = vpn.steps(wanted, replace(host, paths=paths, vpn=state, containers=inside().containers))
    assert step.change == f"{wall.INSIDE_PATH}: content differs"
    assert f"pending/{wall.TUNNEL_UNIT}" in step.command


def test_a_confined_container_whose_default_route_is_the_tunnels_network_is_no_step() -> None:
    assert vpn.inside_steps(plan(), inside(("172.29.29.1", "eth0"))) == []
    assert vpn.inside_steps(plan("container"), inside(("172.29.29.1", "eth0"), (UNSPECIFIED, "tun0"))) == []
    assert vpn.inside_steps(plan(), inside()) == []


@pytest.mark.parametrize("route", [("172.18.0.1", "eth1"), (UNSPECIFIED, "eth1"), ("fe80::1", "eth1")])
def test_a_confined_container_with_another_default_route_is_refused(route: tuple[str, str]) -> None:
    steps = vpn.inside_steps(plan(), inside(route))
    assert f"inside it the default route is {route[0]} by eth1" in refusal(steps)
    assert "docker stop abc123" in refusal(steps)
    assert vpn.inside_steps(plan(), inside(route, networks=frozenset({"mediahost_apps"}))) == []
