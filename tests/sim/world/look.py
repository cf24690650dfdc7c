"""Reading everything that a machine shows; the last look at a world when all actors are done."""

import contextlib
import functools
import random
from collections import Counter
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Protocol, TypeVar

from blockd.nbd import wire
from tests.nbd_client import OptionError, RequestError, Session
from tests.sim.simdisk import DEFAULT_CAPACITY
from tests.sim.store_rig import KIB
from tests.sim.world.ledger import Ledger
from tests.sim.world.machine import NBD_PORT, Machine
from tests.sim.world.nemesis import Nemesis
from tests.sim.world.net import Link
from tests.sim.world.plan import Profile
from tests.sim.world.stamps import REPEATS, UNREADABLE, Violation
from tests.sim.world.threads import Threads
from volume.disk import SECTOR_SIZE
from volume.errors import CorruptData, NoSuchVersion
from volume.options import StoreOptions
from volume.past import LINGER_S
from volume.store import Store

T = TypeVar("T")

READ_BYTES = 32 * KIB
TRIES = 3  # of a sector that cannot be read on a disk that has lost nothing
MOST_NODES = 3
"""Of a volume's head in chunks: a leaf or two, and its commit."""


class Viewed(Protocol):
    """What a viewer needs of its world."""

    counts: Counter[str]

    @property
    def profile(self) -> Profile: ...
    def connect(self, port: int) -> Link: ...


class Viewer:
    """An NBD client that reads whole exports; one export for each."""

    def __init__(self, world: Viewed) -> None:
        self._world = world
        self._link: Link | None = None

    def __enter__(self) -> "Viewer":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._link is not None and error is None:
            self._session.send_disconnect()
            self._link.shut()

    def open(self, export: str) -> Session:
        self._link = link = self._world.connect(NBD_PORT)
        self._session = session = Session(link.send, link.take)
        session.greet()
        session.structured_reply()
        session.go(export)
        return session

    def image(self, export: str) -> bytes:
        """All of its bytes; sectors that a damaged disk may have lost are full of UNREADABLE."""
        size = self.open(export).info.size
        starts = range(0, size, READ_BYTES)
        return b"".join([self.read(at, min(READ_BYTES, size - at)) for at in starts])

    def read(self, offset: int, length: int, tries: int = TRIES) -> bytes:
        """As much as can be read of a range."""
        profile = self._world.profile
        try:
            return self._session.read(offset, length)
        except RequestError as error:
            if error.reply.error != wire.EIO or not profile.errors or not tries:
                raise Violation(f"I11 a read of [{offset}, +{length}) failed: {error}") from error
        if length > SECTOR_SIZE:
            half = max(SECTOR_SIZE, length // 2 // SECTOR_SIZE * SECTOR_SIZE)
            rest = self.read(offset + half, length - half)
            return self.read(offset, half) + rest
        if profile.damage:
            self._world.counts["unreadable sectors"] += 1
            return UNREADABLE * REPEATS
        return self.read(offset, length, tries - 1)  # it was one call's error


class Surroundings(Viewed, Protocol):
    """What the last look needs of its world."""

    seed: int
    run: Threads
    ledger: Ledger
    machine: Machine
    nemesis: Nemesis
    options: StoreOptions

    def call(self, work: Callable[[Store], T]) -> T: ...
    def image(self, export: str) -> bytes: ...


class LastLook:
    """One more crash; then everything is read, before and after garbage has been collected."""

    def __init__(self, world: Surroundings) -> None:
        self._world = world

    def look(self) -> None:
        """Violation."""
        world = self._world
        world.machine.capacity = DEFAULT_CAPACITY
        world.machine.fail_point = None
        how = random.Random(f"last:{world.seed}").choice(("power-cut", "kill", "restart"))
        world.nemesis.crash(how)
        world.machine.disk.faults.clear()
        for (volume, name), snapshot in sorted(world.ledger.snapshots.items()):
            with self._unless_damaged():
                world.ledger.check_snapshot(snapshot, world.image(f"{volume}@{name}"))
        before = self._images()
        with self._unless_damaged():
            self._forget_the_past()
            self._check_garbage(before)
        after = self._images()
        for name, image in before.items():
            _check_same(name, image, after[name])

    def _images(self) -> dict[str, bytes]:
        return {name: self._world.image(name) for name in sorted(self._world.ledger.by_name)}

    @contextlib.contextmanager
    def _unless_damaged(self) -> Iterator[None]:
        """Where a disk has lost what it had, what needs it fails."""
        try:
            yield
        except (CorruptData, OptionError, NoSuchVersion):
            if not self._world.profile.damage:
                raise
            self._world.counts["damage in the way"] += 1

    def _forget_the_past(self) -> None:
        """Nothing but the heads of the volumes is left."""
        world = self._world
        for receive in world.call(lambda store: store.receives()):
            world.call(functools.partial(_receive_dropped, name=receive.name))
        for info in world.call(lambda store: store.snapshots.all()):
            world.call(functools.partial(_snapshot_deleted, volume=info.volume, name=info.name))
        self._begin_round()  # the last one needs what restored volumes were before
        world.run.sleep(LINGER_S + 1.0)  # until versions that were read are let go of
        for _ in range(3):  # what is dead is condemned first
            world.run.sleep(0.5)
            world.call(lambda store: store.collect())

    def _begin_round(self) -> None:
        """Write what is there already, so that there is something to destage."""
        with Viewer(self._world) as viewer:
            session = viewer.open("left")
            data = viewer.read(0, SECTOR_SIZE)
            if UNREADABLE not in data:
                session.write(0, data)

    def _check_garbage(self, images: dict[str, bytes]) -> None:
        """I9: what is stored is what the volumes' heads have, a node and a commit for each."""
        world = self._world
        report = world.call(lambda store: store.collect(dry_run=True))
        infos = world.call(lambda store: store.volumes())
        if world.profile.damage:
            return  # gc leaves alone what it cannot tell
        chunks: set[bytes] = set()
        for info in infos:
            image = images[info.name]
            for at in range(0, len(image), info.chunk_size):
                chunk = image[at : at + info.chunk_size].ljust(info.chunk_size, b"\0")
                if any(chunk):
                    chunks.add(chunk)
        most = len(chunks) + MOST_NODES * len(infos)
        if world.options.window_bytes or world.counts["clock"]:
            # And what the window needs; first versions stay until a date that was set back has
            # caught up with them.
            most = report.chunks_live
        if report.chunks_removed or report.condemned_chunks or report.chunks_live > most:
            raise Violation(f"I9 {len(chunks)} chunks in {len(infos)} volumes, gc says {report}")
        if report.chunks_live < len(chunks):
            raise Violation(f"I9 {len(chunks)} chunks are read, {report.chunks_live} are stored")


def _check_same(name: str, before: bytes, after: bytes) -> None:
    for at in range(0, len(before), SECTOR_SIZE):
        old, new = before[at : at + SECTOR_SIZE], after[at : at + SECTOR_SIZE]
        if old != new and UNREADABLE * REPEATS not in (old, new):
            raise Violation(f"I1 {name} changes at {at} while nobody writes")


def _receive_dropped(store: Store, name: str) -> None:
    store.abort_receive(name)


def _snapshot_deleted(store: Store, volume: str, name: str) -> None:
    store.snapshots.delete(volume, name, force=True)
