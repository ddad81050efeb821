"""Stage plex: the native Plex from its own repository, as it shall be, and undisturbed while somebody plays.

An update or a restart waits until nobody plays, and is told meanwhile. What is switched off is stopped; its package,
its library and its preferences stay. A Plex that mediahost did not set up is never looked at.
"""

from __future__ import annotations

import fnmatch
import hashlib
import shlex
from collections.abc import Sequence
from typing import Any

from pyinfra.api import deploy, operation

from facts.snapshot import STATE_DIRECTORY, Request, Snapshot
from mediahost import on_host, plex
from mediahost.config import PlexLibrary, Settings
from mediahost.plex import NAME, PACKAGE, UNIT
from mediahost.render import plex as artefacts
from mediahost.stack import vault_folder
from mediahost.wanted import Wanted
from operations import apt, files, gpu, owed, report, storage, units, vendor_key
from operations.convergence import Commands, Step, converge
from operations.vendor_key import VendorKey

_RECORDS = f"{STATE_DIRECTORY}/plex"
_REFUSED = f"{_RECORDS}/refused"
_HOLD = f"apt-mark hold {PACKAGE} >/dev/null"

# A big library takes minutes to open.
_AWAITED = f"""tries=0
until curl -fsS -o /dev/null -m 10 {plex.URL}/identity 2>/dev/null; do
  tries=$((tries + 1))
  if [ "$tries" -ge 150 ]; then
    echo "Plex does not answer at {plex.URL}/identity; journalctl -u {UNIT} says why, and" >&2
    echo "ss -ltnp 'sport = :{plex.PORT}' whether another program has its port" >&2
    exit 1
  fi
  sleep 2
done"""


def request(settings: Settings) -> Request:
    """What the snapshot must look at for this stage. Without a native Plex that is where its files would be."""
    watched = Request(paths=frozenset(artefacts.PATHS))
    if settings.plex != "native":
        return watched
    own = artefacts.own_directory(settings)
    asked = artefacts.preferences(settings, card=True)
    return watched | Request(
        paths=frozenset((*artefacts.OLD_KEYS, *((own.path,) if own else ()))),
        contents=frozenset((vendor_key.record_path(NAME),)),
        packages=frozenset(artefacts.PACKAGES),
        units=frozenset((UNIT,)),
        groups=frozenset(artefacts.CARD_GROUPS),
        # The first one is always asked for: with none at all nothing would be asked of Plex.
        plex=frozenset(("FriendlyName", *asked)),
    )


def has_card(settings: Settings, seen: Snapshot) -> bool:
    """Whether the host has a card that Plex can transcode on: its driver has made a device for it."""
    if settings.gpu == "none" or settings.gpu_devices.get(NAME) == "none":
        return False
    device = gpu.decision(settings, seen, {NAME: "transcode"}).devices.get(NAME)
    if device is None:
        return False
    return bool(seen.gpu.nvidia) if device.cdi else device.card is None or bool(device.card.render)


def _native(settings: Settings) -> bool:
    return settings.plex == "native"


def _program(asked: dict[str, Any]) -> str:
    """What Python on the host reads from standard input, all that is secret in it."""
    told = {"url": plex.URL, "preferences": plex.PREFERENCES, "unit": UNIT, "refused": _REFUSED, **asked}
    return on_host.program("mediahost.plex_on_host", told)


def _asking(changes: Sequence[str], asked: dict[str, Any]) -> list[Step]:
    """Steps for all `changes`, the last of which does what is `asked`."""
    last = Step(changes[-1], "python3 -I - >/dev/null", stdin=_program(asked), timeout=600)
    return [*map(Step, changes[:-1]), last]


# --- installed


def key_steps(settings: Settings, seen: Snapshot) -> list[Step]:
    """Fetch the signing key when it is not the one that was verified before."""
    key = VendorKey(
        name=NAME,
        vendor="Plex",
        keyring=artefacts.KEYRING_PATH,
        url=settings.plex_apt_key_url,
        fingerprint=settings.plex_apt_fingerprint,
        url_setting="plex_apt_key_url",
        fingerprint_setting="plex_apt_fingerprint",
    )
    return vendor_key.key_steps(key, seen)


def source_steps(settings: Settings, seen: Snapshot) -> list[Step]:
    """Repository, key and pin; every older source of Plex and its keys removed. Apt takes no two keys for one place,
    and Plex's own package brings a source file of its own."""
    mixed = [path for path, alone in seen.plex.sources.items() if not alone]
    if mixed:
        told = f"{mixed[0]}: names Plex's repository beside others"
        mend = "take Plex's lines out of that file: mediahost has a source of its own for it. Then run again"
        return [Step(told, refusal=f"{told}; {mend}")]
    steps = [
        Step(f"{path}: an older source of Plex, is removed", f"rm -f {shlex.quote(path)}")
        for path in sorted(seen.plex.sources)
    ]
    steps += [
        Step(f"{path}: an older key of Plex, is removed", f"rm -f {path}")
        for path in artefacts.OLD_KEYS
        if path in seen.paths
    ]
    steps += key_steps(settings, seen)
    pin = artefacts.pin_file(settings)
    wanted = (artefacts.source_file(settings, seen.os.architecture), *((pin,) if pin else ()))
    steps += files.steps(wanted, seen)
    if pin is None and artefacts.PIN_PATH in seen.paths:
        steps.append(Step(f"{artefacts.PIN_PATH}: not wanted", f"rm -f {artefacts.PIN_PATH}"))
    return steps


def file_steps(settings: Settings, seen: Snapshot) -> list[Step]:
    """The unit's drop-in, there before the package starts the unit for the first time."""
    present = PACKAGE in seen.packages
    wanted = artefacts.drop_in(settings, seen.groups)
    steps = files.steps((wanted,), seen, pending=UNIT if present else None)
    if steps and present:
        steps.append(Step(f"{UNIT}: systemd reads its drop-in", owed.RELOAD))
    return steps + files.steps((artefacts.needrestart_file(),), seen)


def _other_version(settings: Settings, seen: Snapshot) -> bool:
    present, pinned = seen.packages.get(PACKAGE), settings.plex_version
    return present is not None and pinned is not None and not fnmatch.fnmatchcase(present.version, pinned)


def version_steps(settings: Settings, seen: Snapshot) -> list[Step]:
    """Another version than the pinned one, installed while nobody plays; else it waits and is told."""
    if not _other_version(settings, seen) or _waits(seen):
        return []
    present = seen.packages[PACKAGE].version
    # Somebody may have begun to play since the host was read.
    command = (
        "status=0\npython3 -I - >/dev/null || status=$?\n"
        f'if [ "$status" = 3 ]; then echo "Plex: somebody plays now, the update waits" >&2; exit 0; fi\n'
        '[ "$status" = 0 ] || exit "$status"\n'
        f"{apt.exchange(PACKAGE, settings.plex_hold)}"
    )
    change = f"package {PACKAGE}: version {present}, wanted {settings.plex_version} (Plex restarts; nobody plays)"
    return [Step(change, command, stdin=_program({"do": "idle"}), timeout=3600)]


def _waits(seen: Snapshot) -> bool:
    """Whether what would interrupt somebody has to wait: somebody plays, or a server that answers does not say."""
    return seen.plex.answers and seen.plex.sessions != 0


def _silent(seen: Snapshot) -> bool:
    """Whether there is a server that does not say what it has: the steps before make it answer."""
    return PACKAGE in seen.packages and not seen.plex.answers


def container_steps(seen: Snapshot) -> list[Step]:
    """The container of `plex = docker` stops before the native server takes its ports; the stack then removes it."""
    running = [each.id for each in seen.containers if each.service == NAME and each.state == "running"]
    if not running:
        return []
    told = "service plex: stops, the native Plex takes its ports (whoever plays is interrupted; its data stay)"
    return [Step(told, f"docker stop {' '.join(running)} >/dev/null", timeout=300)]


def installed_steps(settings: Settings, seen: Snapshot) -> list[Step]:
    """Source, drop-in and package."""
    if not _native(settings):
        return []
    steps = [*container_steps(seen), *source_steps(settings, seen), *file_steps(settings, seen)]
    missing = apt.install_steps(artefacts.PACKAGES, seen)
    held = apt.hold_steps((PACKAGE,), settings.plex_hold, seen)
    if PACKAGE not in seen.packages and settings.plex_hold:
        held = [Step(f"package {PACKAGE}: not held", _HOLD)]
    return [*steps, *missing, *(() if missing else version_steps(settings, seen)), *held]


# --- running


def running_steps(settings: Settings, seen: Snapshot) -> list[Step]:
    """The unit enabled, running with what is on disk, and answering: its health check."""
    if not _native(settings):
        return []
    own = artefacts.own_directory(settings)
    steps = storage.steps((own,), seen) if own else []
    restart = f"systemctl restart {UNIT}\n{_AWAITED}"
    found = units.steps(UNIT, seen, restart, "nobody plays")
    if _waits(seen):
        found = [step for step in found if restart not in step.command]
    unit = seen.units.get(UNIT)
    if not found and unit is not None and unit.active == "active" and not seen.plex.answers:
        found = [Step(f"Plex: runs but does not answer at {plex.URL}/identity", _AWAITED, timeout=900)]
    return steps + found


# --- as it shall be


def preference_steps(settings: Settings, seen: Snapshot) -> list[Step]:
    """Preferences with other values, changed through the server: nobody who plays is interrupted."""
    if not _native(settings) or _silent(seen):
        return []
    wanted = artefacts.preferences(settings, has_card(settings, seen))
    present = seen.plex.preferences
    different = {name: value for name, value in wanted.items() if not artefacts.same(present.get(name, ""), value)}
    if not different:
        return []
    changes = [
        f"Plex preference {name}: {present.get(name) or 'unset'}, wanted {value}" for name, value in different.items()
    ]
    return _asking(changes, {"do": "set", "values": different})


def claim_steps(wanted: Wanted, seen: Snapshot) -> list[Step]:
    """A server that nobody owns, while the vault has a token for it that was not refused yet."""
    token = wanted.plex_claim
    if not _native(wanted.settings) or seen.plex.claimed or token is None or _refused(token, seen):
        return []
    asked = {"do": "claim", "token": token, "entry": _entry(wanted)}
    return _asking(["Plex: nobody owns it, is bound to the account of the claim token"], asked)


def _entry(wanted: Wanted) -> str:
    return f"{vault_folder(wanted.host)}/{NAME}/{plex.CLAIM}"


def _refused(token: str, seen: Snapshot) -> bool:
    return hashlib.sha256(token.encode()).hexdigest() == seen.plex.refused_claim


def missing_libraries(settings: Settings, seen: Snapshot) -> dict[str, PlexLibrary]:
    """Libraries of which Plex has no directory yet. One is known by its directories: titles are the user's."""
    known = {path.rstrip("/") for _, _, paths in seen.plex.libraries for path in paths}
    titles = {title for title, _, _ in seen.plex.libraries}
    return {
        title: library
        for title, library in plex.libraries(settings).items()
        if title not in titles and not known.intersection(library["paths"])
    }


def library_steps(settings: Settings, seen: Snapshot) -> list[Step]:
    """Libraries that are not there. None is ever changed or deleted."""
    if not _native(settings) or _silent(seen):
        return []
    missing = missing_libraries(settings, seen)
    if not missing:
        return []
    described = []
    for title, library in missing.items():
        scanner, agent = plex.AGENTS[library["type"]]
        language = library.get("language", "en-US")
        described.append({**library, "title": title, "scanner": scanner, "agent": agent, "language": language})
    changes = [f"Plex library {title} ({', '.join(library['paths'])}): missing" for title, library in missing.items()]
    return _asking(changes, {"do": "libraries", "libraries": described})


# --- off


def off_steps(settings: Settings, seen: Snapshot) -> list[Step]:
    """Everything of ours removed where no native Plex is wanted; none where nothing of ours is."""
    left = [path for path in artefacts.PATHS if path in seen.paths]
    if _native(settings) or not left:
        return []
    # The drop-in goes last: while it is there, a run that died here goes on.
    last = artefacts.DROP_IN_PATH
    others = " ".join(path for path in left if path != last)
    command = f"""{units.stopped(UNIT)}
apt-mark unhold {PACKAGE} >/dev/null 2>&1 || true
rm -f {others}
rm -rf {_RECORDS} {vendor_key.record_path(NAME)}
{owed.clear(UNIT)}
rm -f {last}
rmdir {last.rpartition("/")[0]} 2>/dev/null || true
{owed.RELOAD}"""
    told = "Plex: switched off, is stopped (whoever plays is interrupted); package, library and preferences stay"
    return [Step(told, command, timeout=300)]


# --- told


def notices(wanted: Wanted, seen: Snapshot) -> list[str]:
    """What waits, and what only the user can do."""
    settings = wanted.settings
    if not _native(settings) or PACKAGE not in seen.packages:
        return []
    told = []
    waits = _waits(seen)
    who = f"{seen.plex.sessions} play" if seen.plex.sessions else "Plex does not say whether somebody plays"
    if waits and _other_version(settings, seen):
        version = seen.packages[PACKAGE].version
        told.append(f"Plex: the update from {version} to {settings.plex_version} waits: {who}")
    if waits and UNIT in seen.pending:
        told.append(f"Plex: the restart that takes new settings of its unit into use waits: {who}")
    if seen.plex.answers and not seen.plex.claimed:
        how = (
            f"get a token at https://plex.tv/claim, `mediahost secrets set {_entry(wanted)}`, and run within minutes"
        )
        refused = wanted.plex_claim is not None and _refused(wanted.plex_claim, seen)
        told.append(f"Plex: {'the token in the vault was refused' if refused else 'nobody owns it yet'}; {how}")
    known = {title: set(paths) for title, _, paths in seen.plex.libraries}
    for title, library in plex.libraries(settings).items():
        if title in known and not known[title].intersection(library["paths"]):
            told.append(f"Plex library {title}: has other directories than {', '.join(library['paths'])}; it stays")
    return told


def steps(wanted: Wanted, seen: Snapshot) -> list[Step]:
    """Everything this stage would still do."""
    settings = wanted.settings
    return [
        *off_steps(settings, seen),
        *installed_steps(settings, seen),
        *running_steps(settings, seen),
        *preference_steps(settings, seen),
        *claim_steps(wanted, seen),
        *library_steps(settings, seen),
    ]


@operation()
def removed(settings: Settings) -> Commands:
    """
    Nothing left of a native Plex that is switched off, but its data and its package.

    + settings: the host's settings
    """
    yield from converge(lambda seen: off_steps(settings, seen))


@operation()
def installed(settings: Settings) -> Commands:
    """
    Plex's package from Plex's repository.

    + settings: the host's settings
    """
    yield from converge(lambda seen: installed_steps(settings, seen))


@operation()
def running(settings: Settings) -> Commands:
    """
    The server running and answering.

    + settings: the host's settings
    """
    yield from converge(lambda seen: running_steps(settings, seen))


@operation()
def settled(wanted: Wanted) -> Commands:
    """
    Preferences, owner and libraries.

    + wanted: the host as it should be
    """

    def missing(seen: Snapshot) -> Sequence[Step]:
        for each in notices(wanted, seen):
            report.notice(each)
        settings = wanted.settings
        return [
            *preference_steps(settings, seen),
            *claim_steps(wanted, seen),
            *library_steps(settings, seen),
        ]

    yield from converge(missing)


@deploy("plex")
def provision(wanted: Wanted) -> None:
    """The whole stage, in order. After the media tree, whose directories become libraries."""
    settings = wanted.settings
    removed(name="what is switched off", settings=settings)
    if _native(settings):
        installed(name="package", settings=settings)
        running(name="server", settings=settings)
        settled(name="preferences, owner, libraries", wanted=wanted)
