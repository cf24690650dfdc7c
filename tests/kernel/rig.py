"""The guest beside a daemon: how its kernel attaches volumes, and what tests do with them."""

import itertools
import shlex
import textwrap
from collections.abc import Mapping
from pathlib import Path

from blockd.iscsi.targets import IQN_PREFIX
from tests.daemon import Daemon
from tests.kernel.machine import SCRIPT_S, Job, Machine

MiB = 1 << 20
FIO = (
    "fio --ioengine=libaio --direct=1 --verify=crc32c --verify_fatal=1 --randseed=1"
    " --output-format=terse --terse-version=3"
)
FIO_S = 600.0
PROTOCOLS = ("nbd", "nbd-4", "iscsi", "iscsi-digests")

Settings = Mapping[str, str]
"""Of an iscsiadm record."""

NO_SETTINGS: Settings = {}
DIGESTS = {
    "node.conn[0].iscsi.HeaderDigest": "CRC32C,None",
    "node.conn[0].iscsi.DataDigest": "CRC32C,None",
}
_numbers = itertools.count(1)


class Rig:
    """`server` listens at addresses that are the same in the guest, and after a restart."""

    def __init__(self, machine: Machine, server: Daemon) -> None:
        self.machine = machine
        self.server = server

    def run(self, script: str, timeout_s: float = SCRIPT_S) -> str:
        """The output of a shell script in the guest. GuestError if it fails."""
        return self.machine.run(_tidy(script), timeout_s)

    def begin(self, script: str, timeout_s: float = SCRIPT_S) -> Job:
        """The same without waiting for it."""
        return self.machine.begin(_tidy(script), timeout_s)

    def fails(self, script: str, timeout_s: float = SCRIPT_S) -> str:
        """The output of a script that must fail."""
        status, output = self.machine.begin(_tidy(script), timeout_s).finish()
        assert status not in (0, 124, 137, -1), f"{script}: exited with {status}\n{output}"
        return output

    def put(self, path: str, text: str) -> None:
        """Make a small file."""
        self.run(f"mkdir -p {Path(path).parent}\ncat >{path} <<'END'\n{text}\nEND\n")

    def volume(self, size: int = 128 * MiB) -> str:
        """The name of a new volume."""
        name = f"kernel{next(_numbers)}"
        self.server.create(name, size)
        return name

    # --- NBD

    def nbd(
        self, volume: str, options: str = "", *, index: int = 0, server: Daemon | None = None
    ) -> str:
        """Attach a volume by nbd-client; its device."""
        device = f"/dev/nbd{index}"
        self.run(f"""
            {self.nbd_command(volume, device, server=server)} {options}
            until [ -s /sys/block/nbd{index}/pid ]; do sleep 0.05; done
            udevadm settle
        """)
        return device

    def nbd_command(self, volume: str, device: str, *, server: Daemon | None = None) -> str:
        host, port = (server or self.server).host_port
        return f"nbd-client {host} {port} {device} -N {volume}"

    def detach(self, device: str) -> None:
        self.run(f"nbd-client -d {device}\n{_gone(device)}")

    def reconnecting(self, volume: str, *others: Daemon, index: int = 0, dead_s: int = 120) -> Job:
        """Begin to give the device a new connection whenever its connection dies: to `server`, or
        to that of the others which serves the volume then."""
        addresses = " ".join(
            f"{host} {port}" for host, port in (each.host_port for each in (self.server, *others))
        )
        watch = f"nbd-reconnect {volume} {index} {dead_s} {addresses}"
        job = self.begin(f"{watch} >/tmp/reconnect{index}", timeout_s=1800.0)
        self.run(f"until grep -q watching /tmp/reconnect{index}; do sleep 0.05; done")
        return job

    # --- iSCSI

    @property
    def portals(self) -> list[str]:
        """HOST:PORT of each."""
        return portals_of(self.server)

    def discover(self, portal: str) -> str:
        """Ask a portal for its targets, which makes records of them: PORTAL,GROUP NAME lines."""
        return self.run(f"iscsiadm --mode discovery --type sendtargets --portal {portal}")

    def record(self, volume: str, portal: str | None = None) -> str:
        """The beginning of an iscsiadm command about a volume's record at a portal."""
        where = portal or self.portals[0]
        return f"iscsiadm --mode node --targetname {IQN_PREFIX}{volume} --portal {where}"

    def login(
        self, volume: str, portal: str | None = None, settings: Settings = NO_SETTINGS
    ) -> str:
        """Discover a volume's target at a portal, set its record's settings, log in; its device."""
        where = portal or self.portals[0]
        record = self.record(volume, where)
        self.discover(where)
        changes = [
            f"{record} --op update --name {name} --value {shlex.quote(value)}"
            for name, value in settings.items()
        ]
        self.run("\n".join([*changes, f"{record} --login"]))
        return self.disk(volume, where)

    def disk(self, volume: str, portal: str) -> str:
        """The device of a session, when udev has named it."""
        link = f"/dev/disk/by-path/ip-{portal}-iscsi-{IQN_PREFIX}{volume}-lun-0"
        return self.run(f"until [ -b {link} ]; do sleep 0.05; done; realpath {link}").strip()

    def logout(self, volume: str, portal: str | None = None) -> None:
        self.run(f"{self.record(volume, portal)} --logout")

    # --- what is done with a device

    def attach(self, protocol: str, volume: str) -> str:
        """Attach by one of PROTOCOLS."""
        match protocol:
            case "nbd":
                return self.nbd(volume)
            case "nbd-4":
                return self.nbd(volume, "-connections 4")
            case "iscsi":
                return self.login(volume)
            case "iscsi-digests":
                return self.login(volume, settings=DIGESTS)
        raise ValueError(protocol)

    def release(self, protocol: str, volume: str, device: str) -> None:
        if protocol.startswith("nbd"):
            self.detach(device)
        else:
            self.logout(volume)

    def size(self, device: str) -> int:
        """In bytes."""
        return int(self.run(f"blockdev --getsize64 {device}"))

    def fio(self, device: str, options: str) -> str:
        """A verified run; its output."""
        return self.run(f"{FIO} --name=job --filename={device} {options}", FIO_S)

    def written(self, device: str) -> int:
        """How many writes of a device have ended since it was attached."""
        return int(self.run(_ended_writes(device)))

    def until_written(self, device: str, count: int) -> None:
        """Wait until so many have."""
        self.run(f"until [ $({_ended_writes(device)}) -ge {count} ]; do sleep 0.05; done", FIO_S)


def portals_of(server: Daemon) -> list[str]:
    """HOST:PORT of each of its iSCSI portals."""
    return [str(address).partition(",")[0] for address in server.ready["iscsi"]]


def _tidy(script: str) -> str:
    return textwrap.dedent(script).strip()


def _ended_writes(device: str) -> str:
    return f"awk '{{ print $5 }}' /sys/block/{Path(device).name}/stat"


def _gone(device: str) -> str:
    name = Path(device).name
    return f"until [ ! -e /sys/block/{name}/pid ]; do sleep 0.05; done"
