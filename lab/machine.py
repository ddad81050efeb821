"""One virtual machine of the lab: its disks, its QEMU process, its snapshots, and commands run in it over SSH.

All state stands in the machine's directory, so any process can open a machine by name and go on with it. Only
processes this module started are ever signalled: a pid counts when that process still holds this machine's
control socket on its command line. The guest is reached by SSH on loopback only.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lab import accelerator, image, network, paths, program, qmp
from lab.daemon import locked
from lab.errors import LabError
from lab.image import BARE, Image, ImageSpec, Report

NAME_PATTERN = re.compile(r"[a-z]([a-z0-9-]{0,30}[a-z0-9])?")
"""A host name (RFC 1123 label, lower case, short enough for socket paths)."""
SNAPSHOT_PATTERN = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,60}")
"""One word of QEMU's monitor, and not a number, which the monitor could take for a snapshot's id."""
SSH_PORT_BASE = 22000
LAST_INDEX = 200
BOOT_SECONDS = 900
"""Limit for a boot to running or degraded: 27 s measured for one machine under TCG, minutes for three at once."""
_SPARE_MIB = 512
"""QEMU's own memory beside the guest's: translated code under TCG (tb-size) and device state."""
_POLL_SECONDS = 0.3
_FIRST_DISK_SLOT = 0x10
"""PCI slot of the first extra disk. A disk that is plugged in again must be where a snapshot has it."""
_MOST_DISKS = 14
_UNPLUG_SECONDS = 60
_LONGEST_SOCKET_PATH = 107
"""sun_path of unix(7), less its final zero byte."""


class CommandFailedError(Exception):
    """A command in a guest ended with a code other than 0; the message holds all it said."""

    def __init__(self, machine: str, command: str, result: subprocess.CompletedProcess[str]) -> None:
        self.result = result
        super().__init__(
            f"{machine}: {command!r} ended with {result.returncode}\n{result.stdout}{result.stderr}".rstrip()
        )


@dataclass
class _Record:
    """What must outlive the process that made a machine. Device topology is here: a snapshot depends on it."""

    name: str
    index: int
    memory_mib: int
    cpus: int
    disks: list[int]
    image_key: str
    durable: bool
    forwards: dict[str, int] = field(default_factory=dict)
    """Guest TCP port (as text, for JSON) to the port on the host's loopback."""
    removed: list[int] = field(default_factory=list)
    """Numbers of the extra disks that are not plugged in."""


class Machine:
    """A lab machine, by name. Nothing happens before `start()`; a machine that exists keeps its recorded shape.

    + name: host name; also names the state directory
    + index: 1 … 200, gives the addresses 10.77.0.(10+index) and fd77::(10+index) and the SSH port 22000+index
    + memory_mib, cpus: size of the guest
    + disks: sizes in GiB of extra disks; in the guest /dev/disk/by-id/virtio-disk1, …
    + image: what it boots from
    + durable: the guest's flushes reach the host's disk. Needed for `power_cut()`, slower.
    + capture: record each network card to `capture_file()` from power-on
    """

    def __init__(
        self,
        name: str,
        index: int,
        memory_mib: int = 1536,
        cpus: int = 2,
        disks: Sequence[int] = (),
        image: ImageSpec = BARE,
        durable: bool = False,
        capture: bool = False,
    ) -> None:
        if not NAME_PATTERN.fullmatch(name):
            raise ValueError(f"{name!r} is no machine name: lower-case letters, digits and - inside, at most 32")
        if len(disks) > _MOST_DISKS:
            raise ValueError(f"a machine has at most {_MOST_DISKS} extra disks, not {len(disks)}")
        if not 1 <= index <= LAST_INDEX:
            raise ValueError(f"the index of a machine is 1 to {LAST_INDEX}, not {index}")
        self.name = name
        self.index = index
        self.memory_mib = memory_mib
        self.cpus = cpus
        self.disks = tuple(disks)
        self.image = image
        self.durable = durable
        self.capture = capture

    @classmethod
    def load(cls, name: str) -> Machine:
        """The existing machine of that name, in its recorded shape. Raises LabError when there is none."""
        record = _read_record(paths.machines() / name)
        if record is None:
            known = ", ".join(machine.name for machine in all_machines()) or "none"
            raise LabError(f"There is no machine {name}", f"the lab has: {known}", f"mediahost lab up {name}")
        return cls(name, record.index, record.memory_mib, record.cpus, record.disks, durable=record.durable)

    # -- places ---------------------------------------------------------------------------------------------

    @property
    def directory(self) -> Path:
        """The machine's state directory."""
        return paths.machines() / self.name

    @property
    def serial_log(self) -> Path:
        """Everything the guest wrote to its console since it was last started."""
        return self.directory / "serial.log"

    def capture_file(self, card: str = network.SEGMENT) -> Path:
        """The pcap of the card on the UPLINK or the SEGMENT; present once a capture has been started."""
        return self.directory / f"{card}.pcap"

    @property
    def address4(self) -> str:
        """IPv4 address on the segment."""
        return network.address4(self.index)

    @property
    def address6(self) -> str:
        """IPv6 address on the segment."""
        return network.address6(self.index)

    @property
    def ssh_port(self) -> int:
        """Port of the guest's sshd on the host's loopback. Raises LabError before the first start."""
        return self.forwards[22]

    @property
    def forwards(self) -> dict[int, int]:
        """Guest TCP port to port on the host's loopback."""
        return {int(guest): host for guest, host in self._record().forwards.items()}

    @property
    def _control(self) -> Path:
        return self.directory / "qmp.sock"

    @property
    def _root_disk(self) -> Path:
        return self.directory / "root.qcow2"

    # -- power ----------------------------------------------------------------------------------------------

    def exists(self) -> bool:
        """True once the machine has been started and not destroyed."""
        return _read_record(self.directory) is not None

    def is_running(self) -> bool:
        """True while its QEMU process lives (running or paused)."""
        return self._pid() is not None

    def resident_mib(self) -> int:
        """Memory of the host that the machine occupies now, in MiB; 0 when it does not run."""
        pid = self._pid()
        if pid is None:
            return 0
        with contextlib.suppress(OSError):
            pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
            return pages * os.sysconf("SC_PAGE_SIZE") // 1024**2
        return 0

    def start(self, report: Report = lambda _text: None) -> None:
        """Power on, making disks from the image when there are none; nothing when it runs already.

        Returns before the guest is up: see `wait_until_ready()`. Raises LabError when QEMU, memory or disk lack.
        """
        self._power_on(report, snapshot=None)

    def wait_until_ready(self, limit: float = BOOT_SECONDS) -> None:
        """Wait for systemd in the guest to be done (running or degraded). `limit` in seconds.

        Raises LabError with the end of the console log when QEMU dies or the limit passes.
        """
        deadline = time.monotonic() + limit
        state = "no SSH yet"
        while time.monotonic() < deadline:
            if not self.is_running():
                raise LabError(f"{self.name} stopped while booting", self._console_tail(), f"read {self.serial_log}")
            result = self.run("systemctl is-system-running", check=False, connect_seconds=10)
            state = result.stdout.strip() or result.stderr.strip()
            if state in {"running", "degraded"}:
                return
            time.sleep(_POLL_SECONDS)
        raise LabError(
            f"{self.name} was not ready within {limit:.0f} s",
            f"last state: {state}\n{self._console_tail()}",
            f"read {self.serial_log}; stop other machines when the host is overloaded",
        )

    def shutdown(self, limit: float = 300) -> None:
        """Ask the guest to power off in order (ACPI power button) and wait; a deaf guest is cut after `limit` s."""
        if not self.is_running():
            return
        with contextlib.suppress(OSError):
            qmp.execute(self._control, "cont")
            qmp.execute(self._control, "system_powerdown")
        deadline = time.monotonic() + limit
        while self.is_running() and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
        self._kill()

    def power_cut(self) -> None:
        """End the machine at once, as when the plug is pulled: only what the guest had flushed is on its disk.

        Raises LabError on a machine that is not durable: there the loss would be QEMU's, not the guest's.
        """
        if not self._record().durable:
            raise LabError(
                f"The power of {self.name} cannot be cut",
                "its disk ignores the guest's flushes, so what is lost would prove nothing",
                "create it as Machine(…, durable=True)",
            )
        self._kill()

    def pause(self) -> None:
        """Freeze the guest's processors: it neither answers nor forgets."""
        qmp.execute(self._control, "stop")

    def resume(self) -> None:
        """Let a paused guest go on, and set its clock, which stood still."""
        qmp.execute(self._control, "cont")
        self.set_clock()

    def destroy(self) -> None:
        """End the machine and delete its disks, snapshots, keys and records. Nothing when it does not exist."""
        self._kill()
        if self.directory.exists():
            shutil.rmtree(self.directory)

    # -- snapshots ------------------------------------------------------------------------------------------

    def snapshot(self, name: str) -> None:
        """Keep memory and disks of the running machine under `name`, replacing an older one of that name."""
        if not SNAPSHOT_PATTERN.fullmatch(name):
            raise ValueError(f"{name!r} is no snapshot name: a letter, then letters, digits, . _ -, at most 61")
        self._require_running("take a snapshot")
        self._drop_ssh()
        self._monitor(f"savevm {name}", f"The snapshot {name} of {self.name} could not be taken")

    def restore(self, name: str) -> None:
        """Put memory and disks back to a snapshot, whether the machine runs or not, and set the guest's clock.

        Every connection into the guest is lost. Raises LabError when there is no such snapshot.
        """
        known = self.snapshots()
        if name not in known:
            raise LabError(
                f"{self.name} has no snapshot {name}",
                f"it has: {', '.join(known) or 'none'}",
                f"mediahost lab snapshot {self.name} {name}",
            )
        self._drop_ssh()
        for number in self._record().removed:
            # A snapshot is of all disks, and of a machine that has them.
            self.insert_disk(number)
        if self.is_running():
            self._monitor(f"loadvm {name}", f"The snapshot {name} of {self.name} could not be restored")
            qmp.execute(self._control, "cont")
        else:
            self._power_on(lambda _text: None, snapshot=name)
        for card in (network.UPLINK, network.SEGMENT):
            self.set_link(card, up=True)
        self.set_clock()

    def snapshots(self) -> list[str]:
        """Names of the machine's snapshots, oldest first; works whether it runs or not."""
        if not self._root_disk.exists():
            return []
        answer = program.run(
            ["qemu-img", "info", "--force-share", "--output=json", str(self._root_disk)], "qemu-utils"
        )
        return [str(entry["name"]) for entry in json.loads(answer).get("snapshots", [])]

    def set_clock(self, limit: float = 120) -> None:
        """Set the guest's clock to the host's; TLS, apt and health checks fail in the past."""
        deadline = time.monotonic() + limit
        while True:
            result = self.run(f"sudo -n date -u -s @{time.time():.3f}", check=False, connect_seconds=10)
            if result.returncode == 0:
                return
            if time.monotonic() > deadline or not self.is_running():
                raise LabError(
                    f"The clock of {self.name} could not be set",
                    result.stderr.strip(),
                    f"read {self.serial_log}",
                )
            time.sleep(_POLL_SECONDS)

    # -- the guest ------------------------------------------------------------------------------------------

    def run(
        self,
        command: str | Sequence[str],
        check: bool = True,
        input: str | None = None,  # noqa: A002 - subprocess.run's word for it
        limit: float = 1800,
        connect_seconds: int = 60,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the guest as `debian`: a shell line, or a list of words that is quoted for the shell.

        `limit` in seconds. Raises CommandFailedError when `check` and the code is not 0 (255: SSH itself failed).
        """
        line = command if isinstance(command, str) else shlex.join(command)
        config = self._written_ssh_config()
        result = subprocess.run(
            ["ssh", "-F", str(config), "-o", f"ConnectTimeout={connect_seconds}", self.name, "--", line],
            input=input if input is not None else "",
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=limit,
        )
        if check and result.returncode != 0:
            raise CommandFailedError(self.name, line, result)
        return result

    def copy_in(self, source: Path, target: str) -> None:
        """Copy a file or directory of the host to `target` in the guest, as `debian`."""
        program.run(
            ["scp", "-q", "-r", "-F", str(self._written_ssh_config()), str(source), f"{self.name}:{target}"],
            "openssh-client",
        )

    def ssh_config(self) -> str:
        """The OpenSSH client configuration (ssh_config(5)) that reaches this machine under its name."""
        return "\n".join(
            [
                f"Host {self.name}",
                f"  HostName {network.LOOPBACK}",
                f"  Port {self.ssh_port}",
                f"  User {image.USER}",
                f'  IdentityFile "{image.ssh_key()}"',
                "  IdentitiesOnly yes",
                f'  UserKnownHostsFile "{self.known_hosts}"',
                "  GlobalKnownHostsFile /dev/null",
                "  StrictHostKeyChecking accept-new",
                "  BatchMode yes",
                "  LogLevel ERROR",
                "  ServerAliveInterval 15",
                "  ServerAliveCountMax 8",
                "  ControlMaster auto",
                f'  ControlPath "{self.directory}/ssh.sock"',
                "  ControlPersist 600",
                "",
            ]
        )

    @property
    def known_hosts(self) -> Path:
        """This machine's own known_hosts: it goes with the machine, so a rebuilt one is no stranger."""
        return self.directory / "known_hosts"

    def ssh_command(self) -> list[str]:
        """The words of an interactive `ssh` to the machine."""
        return ["ssh", "-F", str(self._written_ssh_config()), self.name]

    def forward(self, guest_port: int) -> int:
        """Open a TCP port of the guest (its uplink card) on the host's loopback; returns the host's port.

        Lasts over restarts and restores. Asked again it answers the same port.
        """
        record = self._record()
        known = record.forwards.get(str(guest_port))
        if known is not None:
            return known
        host_port = network.free_port(SSH_PORT_BASE + 1000 + self.index * 50 + guest_port % 50)
        record.forwards[str(guest_port)] = host_port
        if self.is_running():
            self._monitor(
                f"hostfwd_add {network.UPLINK} tcp:{network.LOOPBACK}:{host_port}-:{guest_port}",
                f"Port {guest_port} of {self.name} could not be opened on the host",
            )
        self._write_record(record)
        return host_port

    def set_link(self, card: str, up: bool) -> None:
        """Plug or pull the cable of the card on the UPLINK or the SEGMENT."""
        qmp.execute(self._control, "set_link", {"name": card, "up": up})

    def remove_disk(self, number: int) -> None:
        """Pull the extra disk of that number (from 1 on), whatever the guest does with it; what is on it stays.

        On a machine that does not run it is missing from the next start on. Nothing when it is out already. Raises
        LabError when the guest does not let go of the device.
        """
        record = self._known_disk(number)
        if number in record.removed:
            return
        if self.is_running():
            name = _disk_device(number)
            qmp.execute(self._control, "device_del", {"id": name})
            deadline = time.monotonic() + _UNPLUG_SECONDS
            while name in self._devices():
                if time.monotonic() > deadline:
                    raise LabError(
                        f"Disk {number} of {self.name} could not be pulled",
                        f"the guest did not let go of it within {_UNPLUG_SECONDS} s",
                        f"read {self.serial_log}; only a guest that is up lets go of PCI devices",
                    )
                time.sleep(_POLL_SECONDS)
        record.removed = sorted({*record.removed, number})
        self._write_record(record)

    def insert_disk(self, number: int) -> None:
        """Plug a removed disk in again, as it was. Nothing when it is in."""
        record = self._known_disk(number)
        if number not in record.removed:
            return
        if self.is_running():
            # QEMU forgets a drive together with its device. The monitor says OK, QMP has no such command.
            answer = qmp.monitor(self._control, f"drive_add 0 {self._drive(number)}")
            if answer not in ("", "OK"):
                raise LabError(f"Disk {number} of {self.name} could not be plugged in", answer, "see QEMU's answer")
            words = _disk_words(number)
            driver, _, rest = words.partition(",")
            arguments = {"driver": driver, **dict(word.split("=", 1) for word in rest.split(","))}
            qmp.execute(self._control, "device_add", arguments)
        record.removed = [each for each in record.removed if each != number]
        self._write_record(record)

    def start_capture(self, card: str = network.SEGMENT) -> Path:
        """Record the card's frames, both ways, from now on into a new `capture_file()`; returns that file."""
        self._require_running("capture packets")
        self.stop_capture(card)
        path = self.capture_file(card)
        path.unlink(missing_ok=True)
        dump = {"qom-type": "filter-dump", "id": f"dump-{card}", "netdev": card, "file": str(path)}
        qmp.execute(self._control, "object-add", dump)
        return path

    def stop_capture(self, card: str = network.SEGMENT) -> None:
        """End a capture; its file is then whole. Nothing when none runs."""
        objects = qmp.execute(self._control, "qom-list", {"path": "/objects"})
        if any(entry["name"] == f"dump-{card}" for entry in objects):
            qmp.execute(self._control, "object-del", {"id": f"dump-{card}"})

    # -- inside ---------------------------------------------------------------------------------------------

    def _power_on(self, report: Report, snapshot: str | None) -> None:
        if len(str(self.directory / "ssh.sock.0123456789abcdef")) > _LONGEST_SOCKET_PATH:
            raise LabError(
                f"{self.name} cannot be started",
                f"the path {self.directory} is too long for a socket",
                "set XDG_CACHE_HOME to a shorter path",
            )
        self.directory.mkdir(mode=0o700, exist_ok=True)
        with locked(self.directory / "lock"):
            if self.is_running():
                return
            self._check_memory()
            record, built = self._prepared(report)
            report(f"Starting {self.name} ({self.cpus} CPUs, {self.memory_mib} MiB)")
            self._choose_ports(record)
            command = self._command(record, built)
            if snapshot:
                command += ["-loadvm", snapshot]
            self._launch(command)

    def _prepared(self, report: Report) -> tuple[_Record, Image]:
        record = _read_record(self.directory)
        if record is not None:
            asked = (self.index, self.memory_mib, self.cpus, list(self.disks), self.durable)
            has = (record.index, record.memory_mib, record.cpus, record.disks, record.durable)
            if asked != has:
                raise LabError(
                    f"{self.name} exists in another shape",
                    f"index, memory, CPUs, disks, durable are {has}, asked for {asked}",
                    f"mediahost lab down --destroy {self.name}, or another name",
                )
            built = image.cached_image(record.image_key)
            if built is None:
                raise LabError(
                    f"{self.name} cannot be started",
                    f"its base image {record.image_key} was deleted",
                    f"mediahost lab down --destroy {self.name}, then start it anew",
                )
            return record, built
        built = image.ensure_image(self.image, report)
        self._check_disk()
        command = [
            "qemu-img",
            "create",
            "-q",
            "-f",
            "qcow2",
            "-F",
            "qcow2",
            "-b",
            str(built.disk),
            str(self._root_disk),
        ]
        program.run(command, "qemu-utils")
        for number, gibibytes in enumerate(self.disks, start=1):
            program.run(
                ["qemu-img", "create", "-q", "-f", "qcow2", str(self._extra_disk(number)), f"{gibibytes}G"],
                "qemu-utils",
            )
        self.known_hosts.unlink(missing_ok=True)
        record = _Record(self.name, self.index, self.memory_mib, self.cpus, list(self.disks), built.key, self.durable)
        return record, built

    def _choose_ports(self, record: _Record) -> None:
        for guest, host in {"22": SSH_PORT_BASE + self.index, **record.forwards}.items():
            record.forwards[guest] = network.free_port(host)
        self._write_record(record)
        self._written_ssh_config()

    def _command(self, record: _Record, built: Image) -> list[str]:
        command = [
            "qemu-system-x86_64",
            *("-name", self.name, *accelerator.flags(built)),
            *("-smp", str(self.cpus), "-m", str(self.memory_mib), "-nodefaults", "-display", "none"),
            *(
                "-kernel",
                str(built.kernel),
                "-initrd",
                str(built.initrd),
                "-append",
                self._kernel_arguments(),
            ),
            *("-device", "virtio-rng-pci"),
            *("-qmp", f"unix:{self._control},server=on,wait=off"),
            *(
                "-chardev",
                f"socket,id=serial,path={self.directory}/serial.sock,server=on,wait=off,logfile={self.serial_log}",
            ),
            *("-serial", "chardev:serial"),
            *("-pidfile", str(self.directory / "qemu.pid"), "-daemonize"),
        ]
        root = f"if=none,id=root,file={self._root_disk},format=qcow2,cache={self._cache},discard=unmap"
        command += ["-drive", root, "-device", "virtio-blk-pci,drive=root,serial=root"]
        for number in range(1, len(self.disks) + 1):
            if number not in record.removed:
                command += ["-drive", self._drive(number), "-device", _disk_words(number)]
        forwards = "".join(
            f",hostfwd=tcp:{network.LOOPBACK}:{host}-:{guest}" for guest, host in record.forwards.items()
        )
        group = network.multicast_group()
        backends = {
            # Without IPv6: the host may have none, and a guest that is told otherwise waits for time-outs.
            network.UPLINK: f"user,id={network.UPLINK},ipv6=off{forwards}",
            network.SEGMENT: f"socket,id={network.SEGMENT},mcast={group},localaddr={network.LOOPBACK}",
        }
        for card, backend in backends.items():
            # romfile: nothing boots from the network, and QEMU need not come with the boot ROMs.
            command += ["-netdev", backend]
            command += [
                "-device",
                f"virtio-net-pci,netdev={card},mac={network.mac(self.index, card)},romfile=",
            ]
            if self.capture:
                self.capture_file(card).unlink(missing_ok=True)
                command += [
                    "-object",
                    f"filter-dump,id=dump-{card},netdev={card},file={self.capture_file(card)}",
                ]
        return command

    def _kernel_arguments(self) -> str:
        return " ".join(
            [
                "root=LABEL=root rw console=ttyS0 mitigations=off",
                f"lab.name={self.name}",
                f"lab.uplink={network.mac(self.index, network.UPLINK)}",
                f"lab.segment={network.mac(self.index, network.SEGMENT)}",
                f"lab.address4={self.address4}/24",
                f"lab.address6={self.address6}/64",
            ]
        )

    def _launch(self, command: list[str]) -> None:
        self._drop_ssh()
        try:
            result = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=300
            )
        except FileNotFoundError as error:
            raise LabError(
                f"{self.name} cannot be started", "qemu-system-x86_64 is not installed", "run lab/install"
            ) from error
        if result.returncode != 0:
            raise LabError(
                f"{self.name} cannot be started",
                result.stderr.strip(),
                "see QEMU's message above; run lab/install",
            )

    def _check_memory(self) -> None:
        available = _available_memory_mib()
        if available < self.memory_mib + _SPARE_MIB:
            raise LabError(
                f"{self.name} cannot be started",
                f"it needs {self.memory_mib + _SPARE_MIB} MiB of memory, {available} MiB are available",
                "stop other machines (mediahost lab down) or other programs",
            )

    def _check_disk(self) -> None:
        free = shutil.disk_usage(self.directory).free
        if free < image.NEEDED_BYTES:
            raise LabError(
                f"{self.name} cannot be created",
                f"{self.directory} has {free // 1024**2} MiB free, a machine wants {image.NEEDED_BYTES // 1024**2}",
                "free some space there, or set XDG_CACHE_HOME to a directory on a larger disk",
            )

    @property
    def _cache(self) -> str:
        return "writeback" if self.durable else "unsafe"

    def _drive(self, number: int) -> str:
        """The extra disk's file, in QEMU's words."""
        path = self._extra_disk(number)
        return f"if=none,id=disk{number},file={path},format=qcow2,cache={self._cache},discard=unmap"

    def _known_disk(self, number: int) -> _Record:
        record = self._record()
        if not 1 <= number <= len(record.disks):
            raise ValueError(f"{self.name} has {len(record.disks)} extra disks, there is no number {number}")
        return record

    def _devices(self) -> set[str]:
        """Ids of the devices that are plugged in."""
        return {
            str(entry["name"]) for entry in qmp.execute(self._control, "qom-list", {"path": "/machine/peripheral"})
        }

    def _extra_disk(self, number: int) -> Path:
        return self.directory / f"disk{number}.qcow2"

    def _pid(self) -> int | None:
        try:
            pid = int((self.directory / "qemu.pid").read_text(encoding="ascii"))
            arguments = Path(f"/proc/{pid}/cmdline").read_bytes()
        except (OSError, ValueError):
            return None
        return pid if str(self._control).encode() in arguments else None

    def _kill(self) -> None:
        self._drop_ssh()
        pid = self._pid()
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            while self.is_running():
                time.sleep(0.05)

    def _drop_ssh(self) -> None:
        """A multiplexed connection to a guest that was put back would hang: end it, and its socket."""
        socket_path = self.directory / "ssh.sock"
        if socket_path.exists():
            subprocess.run(
                ["ssh", "-o", f"ControlPath={socket_path}", "-O", "exit", self.name],
                capture_output=True,
                check=False,
            )
            socket_path.unlink(missing_ok=True)

    def _require_running(self, purpose: str) -> None:
        if not self.is_running():
            raise LabError(f"{self.name} cannot {purpose}", "it does not run", f"mediahost lab up {self.name}")

    def _monitor(self, line: str, failure: str) -> None:
        answer = qmp.monitor(self._control, line)
        if answer:
            raise LabError(failure, answer, f"look at the free disk space of {self.directory}")

    def _console_tail(self) -> str:
        try:
            text = self.serial_log.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return "there is no console log"
        return "\n".join(text.splitlines()[-12:])

    def _record(self) -> _Record:
        record = _read_record(self.directory)
        if record is None:
            raise LabError(f"{self.name} does not exist", "it was never started", f"mediahost lab up {self.name}")
        return record

    def _write_record(self, record: _Record) -> None:
        _write_atomically(self.directory / "machine.json", json.dumps(asdict(record), indent=1))

    def _written_ssh_config(self) -> Path:
        path = self.directory / "ssh_config"
        text = self.ssh_config()
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            _write_atomically(path, text)
        return path


def all_machines() -> list[Machine]:
    """Every machine of the lab that exists, running or not, by index."""
    found = [entry.name for entry in paths.machines().iterdir() if _read_record(entry) is not None]
    return sorted((Machine.load(name) for name in found), key=lambda machine: machine.index)


def _disk_device(number: int) -> str:
    """QEMU's id of an extra disk's device; the drive behind it has its own."""
    return f"plugged-disk{number}"


def _disk_words(number: int) -> str:
    """The extra disk's device, as `-device` takes it."""
    slot = _FIRST_DISK_SLOT + number - 1
    return f"virtio-blk-pci,id={_disk_device(number)},drive=disk{number},serial=disk{number},addr={slot:#x}"


def free_index(taken: Collection[int]) -> int:
    """The lowest index that is not taken."""
    return next(index for index in range(1, LAST_INDEX + 1) if index not in taken)


def _read_record(directory: Path) -> _Record | None:
    try:
        content: dict[str, Any] = json.loads((directory / "machine.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return _Record(**content)


def _write_atomically(path: Path, text: str) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def _available_memory_mib() -> int:
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) // 1024
    raise LabError("The free memory is unknown", "/proc/meminfo has no MemAvailable", "the lab needs Linux")
