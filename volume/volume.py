"""Volume: one writable head, as front ends see it (`blockd.device.BlockDevice`, structurally).

A batch goes to the native core, which finishes nearly everything at once. What it cannot finish
is handed on: reads that need the disk to the reader, flushes and FUA writes to the group commit,
writes that found no journal segment to the store's backlog. When the journal fills up, finished
writes are reported a little later, more so the fuller it is: writers slow down, and never fail.
"""

import errno
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Protocol

from native import OP_READ, OP_WRITE, Request, VolumeCore
from volume.changes import Changes, Look, hot_ranges
from volume.diff import Side
from volume.disk import Clock
from volume.flusher import Flusher
from volume.gate import Gate
from volume.meta import VolumeRecord
from volume.model import VolumeInfo
from volume.reader import HeadState, Reader, ReadTarget
from volume.scheduler import Scheduler

Done = Callable[[list[Request]], None]


Compare = Callable[[int, str, Look], Changes]
CloneRange = Callable[["Volume", int, object, int, int], int]


class Backlog(Protocol):
    """Where writes wait for journal space, and how long finished ones are to be held back."""

    @property
    def delay_s(self) -> float: ...
    def add(self, volume: "Volume", requests: list[Request], done: Done, turn: int) -> None: ...


class Volume:
    """One volume of an open store. `submit`, `attach` and `detach` on the front ends' thread."""

    def __init__(
        self,
        record: VolumeRecord,
        core: VolumeCore,
        *,
        clock: Clock,
        scheduler: Scheduler,
        reader: Reader,
        flusher: Flusher,
        backlog: Backlog,
        compare: Compare,
        clone_range: CloneRange,
        attached: Callable[[], None],
    ) -> None:
        """`compare(number, ref, look)`: the changes of that volume since its version `ref`;
        `clone_range`: as the method of that name; `attached`: told that there is a first client."""
        self.core = core
        self.record = record
        self._clock = clock
        self._scheduler = scheduler
        self._reader = reader
        self._flusher = flusher
        self._backlog = backlog
        self._compare = compare
        self._clone_range = clone_range
        self._attached = attached
        self._clients: Counter[str] = Counter()
        self._head = HeadState(record.head.root, record.head.height, 0)
        self.deleted = False
        self.undone = False
        """Another object is the volume now, and what is hot here becomes no version of it."""
        self.turn = 0
        """What was submitted in an earlier one, and has not come into the journal, never does."""
        self.turning = threading.Lock()
        """Held while a write that has waited is appended, so that it is in its turn."""
        self.gate: Gate | None = None
        """Of a volume that other nodes have as well (`volume.replica`)."""
        self.went_back = 0
        """How often it became an earlier state here: what clients of then have cached is not its
        any more. Beside clients here there may be some that only log in, and are served there."""

    @property
    def name(self) -> str:
        return self.record.name

    @property
    def uuid(self) -> bytes:
        return self.record.uuid

    @property
    def volume_uuid(self) -> bytes:
        return self.record.uuid

    @property
    def retired(self) -> bool:
        """It was deleted, or another head took its place: nothing is done any more."""
        return self.deleted

    @property
    def mirrored(self) -> bool:
        """Other nodes have it as well; see `blockd.device.MayBeElsewhere`."""
        return self.gate is not None

    @property
    def opened(self) -> bool:
        """See `blockd.device.MayBeElsewhere`."""
        return self.gate is None or not self.gate.shut

    @property
    def leads(self) -> bool:
        """See `blockd.device.MayBeElsewhere`."""
        return self.gate is None or self.gate.leads

    @property
    def elsewhere(self) -> str | None:
        """Why no client is let in here; see `blockd.device.MayBeElsewhere`."""
        if self.gate is None or self.gate.leads:
            return None
        if not self.gate.shut:
            return (
                f"volume {self.name}: this node served it, and has not heard from the others for "
                "too long to know that it still does; try again, or another node"
            )
        return (
            f"volume {self.name}: another node serves it, or none does yet; "
            "`blockd cluster status` says which"
        )

    @property
    def size(self) -> int:
        return self.record.size

    @property
    def block_size(self) -> int:
        return self.record.block_size

    @property
    def clone_granularity(self) -> int:
        return self.record.chunk_size

    @property
    def read_only(self) -> bool:
        return False

    @property
    def seq(self) -> int:
        """Of the last record of the journal; see `blockd.device.BlockDevice.seq`."""
        return self.core.state()[0]

    @property
    def frozen(self) -> bool:
        """Whether a destage round has some of what is hot, and is not through with it."""
        return self.core.state()[6]

    @property
    def has_clients(self) -> bool:
        return bool(self._clients)

    @property
    def clients(self) -> list[str]:
        """Who is attached, sorted; one entry for each connection."""
        return sorted(self._clients.elements())

    def attach(self, client: str) -> None:
        first = not self._clients
        self._clients[client] += 1
        if first:
            self._attached()

    def detach(self, client: str) -> None:
        self._clients[client] -= 1
        if self._clients[client] <= 0:
            del self._clients[client]

    def head(self) -> HeadState:
        return self._head

    def target(self) -> ReadTarget:
        record = self.record
        return ReadTarget(record.name, self.core, record.block_size, record.chunk_size, self.head)

    def submit(self, batch: Sequence[Request], done: Done) -> None:
        """Execute a batch; the contract is that of `BlockDevice.submit`."""
        gate = self.gate
        if self.deleted or (gate is not None and gate.shut):
            for request in batch:
                request.error = errno.ESHUTDOWN
            done(list(batch))
            return
        turn = self.turn
        finished, reads, syncs, blocked = self.core.submit(batch, self._clock.now_ns())
        if gate is not None:
            gate.pass_on(finished, done)
            finished, done = [], gate.guard(done)
        if finished:
            delay_s = self._backlog.delay_s
            if delay_s > 0.0 and any(request.op != OP_READ for request in finished):
                self._scheduler.later(delay_s, lambda: done(finished))
            else:
                done(finished)
        if reads:
            self._reader.submit(self.target(), reads, done)
        if syncs:
            self._flusher.add(syncs, done)
        if blocked:
            for request in blocked:
                if request.op == OP_WRITE:  # the front end's buffer is its own again
                    request.data = bytes(request.data)  # type: ignore[call-overload]
            self._backlog.add(self, blocked, done, turn)

    def end_turn(self) -> None:
        """No write is taken now: those that wait for journal space, of clients that are gone, are
        not for what the volume is when one is taken again, a version that it has gone back to, or
        what others have written to it at another node. Any thread."""
        with self.turning:
            self.turn += 1

    def changes_since(self, ref: str) -> Changes:
        """What differs from version `ref` of this volume; see `blockd.device.TracksChanges`."""
        return self._compare(self.record.number, ref, self._side)

    def clone_range(self, offset: int, source: object, source_offset: int, length: int) -> int:
        """Make [offset, offset + length) read as the source does at `source_offset`, by reference.

        Returns how many bytes from the start were done so; 0 when nothing can be shared: `source`
        is not of this store, has chunks of another size, overlaps, or one of the offsets is not a
        multiple of the chunk size; who copies up to the next one that is may try again from there.
        The rest of the range, less than a chunk unless it is past an end, is for the caller.
        What was done is in the journal on return, as a write is. Waits for the disk, on any thread.
        The range in the source is that of one moment between call and return. VolumeError,
        OSError."""
        return self._clone_range(self, offset, source, source_offset, length)

    def _side(self, offset: int, length: int) -> tuple[Side, int]:
        # The hot maps first: what a round moves from them meanwhile is in the later head.
        hot = hot_ranges(self.core, offset, length)
        head = self._head
        return Side(head.root, head.height, self.size, hot), head.generation

    def move_head(self, record: VolumeRecord) -> None:
        """The head in `record` is durable: read from it what was frozen until now."""
        self.record = record
        generation = self._head.generation + 1
        self._head = HeadState(record.head.root, record.head.height, generation)
        self.core.commit(generation)

    def info(self) -> VolumeInfo:
        record = self.record
        seq, _, _, hot_bytes, *_ = self.core.state()
        has_commit = any(record.head.commit)
        return VolumeInfo(
            name=record.name,
            uuid=record.uuid.hex(),
            number=record.number,
            size=record.size,
            block_size=record.block_size,
            chunk_size=record.chunk_size,
            created_ns=record.created_ns,
            epoch=record.epoch,
            seq=seq,
            commit=record.head.commit.hex() if has_commit else None,
            commit_seq=record.head.seq,
            hot_bytes=hot_bytes,
            clients=tuple(self.clients),
        )
