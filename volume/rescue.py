"""Reads of damaged chunks wait here for what somebody else has of them.

A read that meets a chunk whose stored bytes are damaged need not fail: in a cluster another node
may have the chunk, and it is known by its id. So the read is put aside (no thread waits with it),
the chunk is asked for, and the read is done again when its bytes are here: they are kept for a
while, until the chunk is stored anew (volume/chunkrepair.py). When nobody has it, or it does not
come in time, the read fails as it would have done without.

    wait      a read is put aside, unless nobody would bring the chunk, or the bounds are reached
    brought   the bytes, which have been checked: they are kept, and the reads done again
    missed    nobody has it: the reads fail, and for a while so do others, at once

The destager asks here as well (`may_come`), before it gives up what is damaged below a write in
part: it does not wait, but tries its volume again. What nobody has it gives up only when everybody
has said so since the time that it names; without an answer, or when nobody can be asked, the chunk
may still come. A store that other nodes have volumes in common with never takes their silence for
a no.

Several reads of one chunk wait together, no longer than the first of them. Everything is bounded:
reads, their bytes, chunks that are asked for, bytes that are kept, and time. Nothing here is
durable, and nothing of it is needed after a crash: the damage is found again.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from volume.layout import ChunkId
from volume.scheduler import InlineScheduler, Scheduler

WAIT_S: Final = 8.0
"""For one chunk. A node that has it gives it within milliseconds, but it may be busy, or be started
anew just now, a request that is lost is sent again after 2 s and 6 s, and a file system that gets
an error may be read-only from then on. Initiators give a request 30 s, NBD clients more."""
READ_S: Final = 16.0
"""From the first to the last chunk that one read waits for: half of what initiators give it."""
MAX_READS: Final = 256  # that wait at once: those of a few clients; beyond, they fail as ever
MAX_BYTES: Final = 64 << 20  # that these reads ask for
MAX_CHUNKS: Final = 64  # that are asked for at once
KEPT_BYTES: Final = 32 << 20  # of chunks that are not stored anew yet: 512 of 64 KiB
MISSED_S: Final = 10.0
"""For so long it is not asked again for a chunk that nobody had: a client that tries again and
again is answered at once, and costs other nodes nothing."""
MAX_MISSED: Final = 4096  # as many as damage is remembered of

Resume = Callable[[bool], None]
"""Told whether the chunk came. Must not wait; from any thread."""


@dataclass(slots=True)
class RescueCounters:
    """Of reads that waited, since the store was opened."""

    answered: int = 0
    """That went on."""
    failed: int = 0
    """That did not get what they waited for."""


@dataclass(slots=True)
class _Asked:
    """A chunk that is on its way."""

    until: float
    reads: list[tuple[int, Resume]]


class Rescue:
    """Thread-safe. `clock`: monotonic seconds."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        scheduler: Scheduler | None = None,
    ) -> None:
        self.clock = clock
        self.counters = RescueCounters()
        self._scheduler = scheduler or InlineScheduler()
        self._lock = threading.Lock()
        self._ask: Callable[[ChunkId], None] | None = None
        self._is_alone = True
        self.news = 0
        """How often somebody has brought a chunk, or said that nobody has it."""
        self._asked: dict[ChunkId, _Asked] = {}
        self._reads = 0
        self._bytes = 0
        self._kept: OrderedDict[ChunkId, bytes] = OrderedDict()
        self._kept_bytes = 0
        self._missed: OrderedDict[ChunkId, float] = OrderedDict()

    def expect(self) -> None:
        """There are other nodes, whether they can be asked now or not."""
        self._is_alone = False

    def serve(self, ask: Callable[[ChunkId], None]) -> None:
        """From now on `ask` is called for chunks that are waited for. It must not wait, and it ends
        with `brought` or `missed`, or with neither: then the reads fail when their time is up."""
        with self._lock:
            self._ask = ask
            self._is_alone = False

    def end(self) -> None:
        """Nobody brings anything any more: whoever waits fails now. Idempotent."""
        with self._lock:
            self._ask = None
            reads = [read for each in list(self._asked) for read in self._take(each)]
        self._resume(reads, False)

    # -- whoever reads

    def wait(self, chunk_id: ChunkId, length: int, resume: Resume) -> bool:
        """Have `resume` called, once, when the bytes of the chunk are here or will not come. False:
        it is not, and the read has to fail. `length`: bytes that it asks for."""
        with self._lock:
            ask = self._ask
            if ask is None:
                return False
            here = chunk_id in self._kept
            if not here:
                if self._reads >= MAX_READS or self._bytes + length > MAX_BYTES:
                    return False
                asked = self._asked.get(chunk_id)
                timed = asked is None or not asked.reads
                if asked is None:
                    if len(self._asked) >= MAX_CHUNKS or self._was_missed(chunk_id):
                        return False
                    self._asked[chunk_id] = _Asked(self.clock() + WAIT_S, [(length, resume)])
                else:
                    if timed:  # for the destager until now
                        asked.until = self.clock() + WAIT_S
                    asked.reads.append((length, resume))
                self._reads += 1
                self._bytes += length
        if here:
            resume(True)
            return True
        if timed:
            self._expire_later()
        if asked is None:
            ask(chunk_id)
        return True

    def get(self, chunk_id: ChunkId) -> bytes | None:
        """The bytes of a chunk that was brought and is not stored anew yet."""
        if not self._kept:  # nearly always
            return None
        with self._lock:
            return self._kept.get(chunk_id)

    # -- whoever would give it up

    def may_come(self, chunk_id: ChunkId, since: float) -> bool:
        """Whether somebody may still have a chunk; False: there is nobody else, or all have said no
        at `since` or later (of `clock`). While it may, it is asked for, as far as the bounds let
        it: call again when there are `news`, and now and then. Must not wait; any thread."""
        with self._lock:
            at = self._missed.get(chunk_id)
            if self._is_alone or (at is not None and at >= since):
                return False
            ask = self._ask
            if ask is None or chunk_id in self._asked or len(self._asked) >= MAX_CHUNKS:
                return True
            self._asked[chunk_id] = _Asked(self.clock() + WAIT_S, [])
        self._expire_later()
        ask(chunk_id)
        return True

    @property
    def waiting(self) -> int:
        """Reads that wait."""
        return self._reads

    # -- whoever brings

    def is_awaited(self, chunk_id: ChunkId) -> bool:
        return chunk_id in self._asked

    def brought(self, chunk_id: ChunkId, data: bytes) -> None:
        """These are the bytes of the chunk: the caller has compared them with its id."""
        with self._lock:
            self.news += 1
            if chunk_id not in self._kept:
                self._kept[chunk_id] = data
                self._kept_bytes += len(data)
            while self._kept_bytes > KEPT_BYTES:
                _, oldest = self._kept.popitem(last=False)
                self._kept_bytes -= len(oldest)
            self._missed.pop(chunk_id, None)
            reads = self._take(chunk_id)
        self._resume(reads, True)

    def missed(self, chunk_id: ChunkId) -> None:
        """Every other node was asked, and has said that it does not have the chunk. Silence is no
        answer, and a node that is not known yet has not been asked."""
        with self._lock:
            self.news += 1
            self._missed[chunk_id] = self.clock()
            self._missed.move_to_end(chunk_id)
            while len(self._missed) > MAX_MISSED:
                self._missed.popitem(last=False)
            reads = self._take(chunk_id)
        self._resume(reads, False)

    def forget(self, chunk_ids: Iterable[ChunkId]) -> None:
        """These are stored anew."""
        with self._lock:
            for each in chunk_ids:
                self._missed.pop(each, None)
                data = self._kept.pop(each, None)
                if data is not None:
                    self._kept_bytes -= len(data)

    def expire(self) -> None:
        """Reads whose time is up fail."""
        now = self.clock()
        with self._lock:
            due = [chunk_id for chunk_id, asked in self._asked.items() if now >= asked.until]
            reads = [read for each in due for read in self._take(each)]
        self._resume(reads, False)

    # -- inside

    def _expire_later(self) -> None:
        self._scheduler.post(lambda: self._scheduler.later(WAIT_S, self.expire))

    def _was_missed(self, chunk_id: ChunkId) -> bool:
        at = self._missed.get(chunk_id)
        return at is not None and self.clock() < at + MISSED_S

    def _take(self, chunk_id: ChunkId) -> list[tuple[int, Resume]]:
        """Who waits for it does no more. The lock is held."""
        asked = self._asked.pop(chunk_id, None)
        reads = [] if asked is None else asked.reads
        self._reads -= len(reads)
        self._bytes -= sum(length for length, _ in reads)
        return reads

    def _resume(self, reads: list[tuple[int, Resume]], came: bool) -> None:
        with self._lock:
            if came:
                self.counters.answered += len(reads)
            else:
                self.counters.failed += len(reads)
        for _, resume in reads:
            resume(came)
