"""What clients do while the daemon dies: scenes, each of which reaches some of the fail points.

Volume `demo` has a writer with many commands in flight (`writer`); `quiet` has bytes that are known
exactly, and so have its snapshots and clones. Every scene goes on until the daemon is gone, so it
can be done again and again; `check` compares everything that is durable with the model.
"""

import contextlib
import json
import random
import struct
import time
from collections.abc import Callable, Iterator

from blockd.api.client import ApiError, Client
from blockd.iscsi.targets import IQN_PREFIX
from blockd.scsi.reservations import REGISTER_AND_IGNORE
from blockd.scsi.task import BUSY
from tests import pr_client
from tests import scsi_cdbs as cdbs
from tests.daemon import Daemon
from tests.integration.pipelined import WRITE, PipelinedClient
from tests.iscsi_initiator import TARGET, World
from tests.served_iscsi import Wire
from tests.storm.model import Model, State
from tests.storm.writer import SECTOR, Mismatch, Writer

CLONE_TRIES = 10

KIB = 1024
DEMO_BYTES = 4096 * KIB
QUIET_BYTES = 256 * KIB
CHUNK = 16 * KIB
PIECE = 32 * KIB  # written at once: one record of the journal, so all of it or nothing
IN_FLIGHT = 16
BURST = 120  # commands
KEPT = 3  # snapshots, clones and targets of a kind, so that the storm does not grow
SCRUB_S = 60.0
POLL_S = 0.01
UNIT = TARGET.rpartition(":")[2]  # the volume that the initiator logs in to
KEYS = "keys of " + UNIT
HEALED = "heal"


class Life:
    """One data directory's clients. `server` is the daemon of this life; it comes and goes."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.writer = Writer(seed, DEMO_BYTES // SECTOR)
        self.model = Model()
        self.damaged: set[str] = set()
        """Volumes whose chunks somebody has damaged: reading them fails until they are healed."""
        self._number = 0

    # -- checking

    def check(self, server: Daemon) -> None:
        """Everything durable against the model; from here on what was found is what counts."""
        with server.control() as control:
            volumes = {volume.name for volume in control.volumes()} - {"demo"}
            snapshots = {f"{each.volume}@{each.name}" for each in control.snapshots()}
            targets = {f"target {each.name}" for each in control.targets(automatic=False)}
            there = (volumes | snapshots | targets) - self.damaged
            if "demo" in {volume.name for volume in control.volumes()}:
                self.writer.settle(read(server, "demo"))
            if UNIT in volumes and registered(server):
                there.add(KEYS)
            self.model.found(
                there, lambda name: self._read(server, control, name), unknown=self.damaged
            )

    def _read(self, server: Daemon, control: Client, name: str) -> bytes | None:
        if name.startswith("target "):
            target = control.target(name.removeprefix("target "))
            return target_state([lun.source for lun in target.luns])
        if name == KEYS:
            return registered(server)
        return read(server, name)

    # -- scenes

    def found(self, server: Daemon) -> None:
        """Make what the scenes need."""
        with server.control() as control:
            if "demo" not in {volume.name for volume in control.volumes()}:
                control.create_volume("demo", DEMO_BYTES, block_size=512, chunk_size=CHUNK)
            for name in ("quiet", "scratch", UNIT, HEALED):
                if name not in self.model.names():
                    self._create(control, name)
                    self._write(server, name, 0, self.rng.randbytes(QUIET_BYTES))

    def writes(self, server: Daemon) -> None:
        """A burst of commands on `demo`."""
        with self._writing(server) as client:
            for _ in range(BURST):
                self.writer.take_reply(client)
                self.writer.send_one(client)

    def names(self, server: Daemon) -> None:
        """Snapshots of both volumes at one instant, under writes; the oldest ones go."""
        with self._writing(server) as client, server.control() as control:
            name = self._name("s")
            frozen: dict[str, State] = {
                f"demo@{name}": self.writer.frozen(),
                f"quiet@{name}": self.model.state("quiet"),
            }
            with self.model.changing(frozen):
                control.create_snapshot(name, ["demo", "quiet"])
            self._some_replies(client)
            for volume in ("demo", "quiet"):
                for old in self.model.names(f"{volume}@")[:-KEPT]:
                    with self.model.changing({old: None}):
                        control.delete_snapshot(*old.split("@"))

    def versions(self, server: Daemon) -> None:
        """Clone a snapshot, write to the clone, resize it, put `quiet` back, delete old clones."""
        self.names(server)
        with self._writing(server) as client, server.control() as control:
            source = self.rng.choice(self.model.names("quiet@"))
            state = self.model.state(source)
            clone = self._name("c")
            with self.model.changing({clone: state}):
                _clone(control, source, clone)
            self._write(server, clone, self.rng.randrange(4) * PIECE, self.rng.randbytes(PIECE))
            self._some_replies(client)
            self._resize(control, clone, 2 * QUIET_BYTES)
            self._resize(control, clone, QUIET_BYTES // 2)
            self._write(server, "quiet", 0, self.rng.randbytes(PIECE))
            before = self.model.state("quiet")
            self.model.may_appear("quiet@before-restore-", before)
            with self.model.changing({"quiet": state}):
                kept = control.restore_volume("quiet", source.split("@")[1], force=True).kept
            with self.model.changing({f"quiet@{kept}": before}):
                pass
            for old in self.model.names("c")[:-KEPT]:
                with self.model.changing({old: None}):
                    control.delete_volume(old, force=True)

    def streams(self, server: Daemon) -> None:
        """Send a snapshot and receive it again, the first time only half of it."""
        self.names(server)
        with self._writing(server), server.control() as control:
            source = self.rng.choice(self.model.names("quiet@"))
            with control.send(source) as pieces:
                stream = b"".join(pieces)
            name = self._name("r")
            with contextlib.suppress(Interrupted), interrupted():
                control.receive(name, iter([stream[: len(stream) // 2]]))
            with self.model.changing({name: self.model.state(source)}):
                control.receive(name, iter([stream]))
            for old in self.model.names("r")[:-1]:
                with self.model.changing({old: None}):
                    control.delete_volume(old, force=True)

    def garbage(self, server: Daemon) -> None:
        """Write `scratch` anew and collect what it was."""
        with self._writing(server), server.control() as control:
            for offset in range(0, QUIET_BYTES, PIECE):
                self._write(server, "scratch", offset, self.rng.randbytes(PIECE))
            clone = self._name("c")  # which waits for a round
            with self.model.changing({clone: self.model.state("scratch")}):
                _clone(control, "scratch", clone)
            with self.model.changing({clone: None}):
                control.delete_volume(clone, force=True)
            control.collect()

    def scrubs(self, server: Daemon) -> None:
        """Read and verify everything."""
        with self._writing(server), server.control() as control:
            control.start_scrub()
            deadline = time.monotonic() + SCRUB_S
            while (status := control.scrub_status()).running:
                if time.monotonic() > deadline:
                    raise Mismatch(f"scrub does not end: {status}")
                time.sleep(POLL_S)
            if status.damage_count and not self.damaged:
                raise Mismatch(f"scrub found damage: {status}")

    def heals(self, server: Daemon) -> None:
        """Have scrub find what was damaged, and write it again."""
        self.scrubs(server)
        content = self.model.state(HEALED)
        self._write(server, HEALED, 0, content)
        self.garbage(server)

    def targets(self, server: Daemon) -> None:
        """Make and remove targets; register with a unit, so that power loss does not end it."""
        with server.control() as control:
            iqn = IQN_PREFIX + self._name("t")
            target = f"target {iqn}"
            # Made in two steps, of which the second gives it its unit.
            with self.model.changing({target: target_state([UNIT])}, {target: target_state([])}):
                control.create_target(iqn, luns=[UNIT])
            for old in self.model.names("target ")[:-KEPT]:
                with self.model.changing({old: None}):
                    control.delete_target(old.removeprefix("target "))
        key = self.rng.randrange(1, 1 << 63)
        for new in (key, 0):
            with self.model.changing({KEYS: struct.pack(">Q", new) if new else None}):
                register(server, new)

    def copies(self, server: Daemon) -> None:
        """Copy within a unit by EXTENDED COPY: whole chunks, which are shared. Then replace a
        block of it, if nobody else has."""
        state = self.model.state(UNIT)
        to = self.rng.randrange(1, QUIET_BYTES // PIECE) * PIECE
        self._write(server, UNIT, 0, self.rng.randbytes(PIECE))
        state = self.model.state(UNIT)
        after = state[:to] + state[:PIECE] + state[to + PIECE :]
        with self._writing(server), self.model.changing({UNIT: after}):
            copy(server, 0, to, PIECE)
        block = self.rng.randbytes(SECTOR)
        with self.model.changing({UNIT: block + after[SECTOR:]}):
            compare_and_write(server, after[:SECTOR], block)

    def waits(self, server: Daemon) -> None:
        """Let the daemon's own threads work."""
        server.store()
        time.sleep(POLL_S)

    # -- inside

    def _name(self, prefix: str) -> str:
        self._number += 1
        return f"{prefix}{self._number:06}"

    @contextlib.contextmanager
    def _writing(self, server: Daemon) -> Iterator[PipelinedClient]:
        """Commands are in flight on `demo` while the block runs; it waits for their replies."""
        with PipelinedClient(server.host_port, "demo") as client:
            try:
                self.writer.fill(client, IN_FLIGHT)
                yield client
            finally:
                self.writer.drain(client)

    def _some_replies(self, client: PipelinedClient) -> None:
        for _ in range(IN_FLIGHT // 2):
            self.writer.take_reply(client)
        self.writer.fill(client, IN_FLIGHT)

    def _create(self, control: Client, name: str) -> None:
        with self.model.changing({name: bytes(QUIET_BYTES)}):
            control.create_volume(name, QUIET_BYTES, block_size=512, chunk_size=CHUNK)

    def _resize(self, control: Client, name: str, size: int) -> None:
        state = self.model.state(name)
        kept = state[:size]
        # A shrink unmaps what it cuts off first; killed in between, the volume has its old size.
        unmapped = kept.ljust(len(state), b"\0")
        with self.model.changing({name: kept.ljust(size, b"\0")}, {name: unmapped}):
            control.resize_volume(name, size, force=True)

    def _write(self, server: Daemon, name: str, offset: int, data: bytes) -> None:
        """Write `data`, piece by piece, acknowledged."""
        with PipelinedClient(server.host_port, name) as client:
            for at in range(0, len(data), PIECE):
                piece = data[at : at + PIECE]
                state = self.model.state(name)
                start = offset + at
                after = state[:start] + piece + state[start + len(piece) :]
                with self.model.changing({name: after}):
                    client.send(WRITE, 1, start, len(piece), piece)
                    _, error = client.reply()
                    if error:
                        raise Mismatch(f"write to {name} failed with error {error}")


class Interrupted(Exception):
    """A stream that was broken off, as it should be."""


@contextlib.contextmanager
def interrupted() -> Iterator[None]:
    try:
        yield
    except ApiError as error:
        if error.code != "stream_interrupted":
            raise
        raise Interrupted from error


def read(server: Daemon, name: str) -> bytes:
    """All bytes of a volume or version."""
    with PipelinedClient(server.host_port, name) as client:
        return client.read(0, client.size)


def target_state(sources: list[str]) -> bytes:
    return json.dumps(sources).encode()


@contextlib.contextmanager
def session(server: Daemon) -> Iterator[Wire]:
    """A session on the target of UNIT."""
    host, port = server.iscsi_address.rsplit(":", 1)
    with Wire(World(), (host, int(port))) as wire:
        wire.log_in()
        yield wire


def asked(wire: Wire, cdb: bytes, **options: object) -> bytes:
    """Data-in of a command that succeeds, unit attentions passed over."""
    while True:
        [answer] = wire.ask(cdb, **options)
        if answer.bhs[3] == 0:
            return answer.data
        if answer.bhs[3] == BUSY:  # others wrote each time that it was tried
            continue
        key = answer.data[4] & 0xF
        if key != 6:
            raise Mismatch(f"command {cdb.hex()} failed: {answer}")


def register(server: Daemon, key: int) -> None:
    """Register `key` for good (APTPL), or unregister with 0; acknowledged."""
    with session(server) as wire:
        data = pr_client.out_list(0, key, pr_client.PERSIST)
        asked(wire, pr_client.out_cdb(REGISTER_AND_IGNORE, len(data)), write=len(data), data=data)


def registered(server: Daemon) -> bytes | None:
    """The keys that are registered with UNIT."""
    with session(server) as wire:
        return asked(wire, pr_client.in_cdb(0, 1024), read=1024)[8:] or None


def compare_and_write(server: Daemon, expected: bytes, block: bytes) -> None:
    """Replace the first block of UNIT, which has what is expected."""
    with session(server) as wire:
        data = expected + block
        asked(wire, cdbs.compare_and_write(0, 1), write=len(data), data=data)


def copy(server: Daemon, source: int, to: int, length: int) -> None:
    """EXTENDED COPY within UNIT; byte offsets."""
    with server.control() as control:
        naa = bytes.fromhex(control.target(TARGET).luns[0].naa)
    designators = [cdbs.cscd(naa)]
    segments = [cdbs.segment(0, 0, length // SECTOR, source // SECTOR, to // SECTOR)]
    data = cdbs.copy_list(designators, segments)
    with session(server) as wire:
        asked(wire, cdbs.extended_copy(len(data)), write=len(data), data=data)


Scene = Callable[[Life, Daemon], None]


def _clone(control: Client, source: str, name: str) -> None:
    """A clone waits for a round, which rare events (`destage.fails`) let fail a few times."""
    for tries_left in range(CLONE_TRIES - 1, -1, -1):
        try:
            control.clone_volume(source, name)
        except ApiError as error:
            if "the test rig lets this round fail" not in str(error) or not tries_left:
                raise
        else:
            return
