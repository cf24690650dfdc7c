"""Back-pressure: what happens to writes when the journal fills faster than it is destaged.

From FILL_START of the journal on, finished writes are held back for a while that grows with the
square of the fill, up to MAX_DELAY_S: writers slow down smoothly, long before the end. When no
segment is ready at all, writes wait here, in order, and go on whenever a segment becomes ready.
They are never failed for that; when the disk is full, they get its ENOSPC from the journal's space
limit, and EIO when the store is sealed. A long write goes on piece by piece, so that it may be
larger than the whole journal.
"""

import errno
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from native import FLAG_FUA, OP_WRITE, Request
from volume.disk import Clock
from volume.flusher import Flusher
from volume.scheduler import Scheduler
from volume.volume import Volume

Done = Callable[[list[Request]], None]

FILL_START = 0.6
MAX_DELAY_S = 0.02
MAX_PIECE_BYTES = 1024 * 1024
BLOCK_BYTES = 4096  # aligned blocks of it are atomic


def delay_for(fill: float) -> float:
    """How long finished writes are held back when `fill` (0.0 to 1.0) of the journal is used."""
    if fill <= FILL_START:
        return 0.0
    over = min(1.0, (fill - FILL_START) / (1.0 - FILL_START))
    return MAX_DELAY_S * over * over


@dataclass(slots=True)
class _Waiting:
    volume: Volume
    request: Request
    done: Done
    turn: int
    """Of the volume, when it was submitted."""
    written: int = 0
    """Bytes of a WRITE that are in the journal already."""


class WriteBacklog:
    """Waiting writes. Everything on the front ends' thread, but `wake`."""

    def __init__(
        self,
        scheduler: Scheduler,
        clock: Clock,
        flusher: Flusher,
        segment_bytes: int,
        starving: Callable[[], None],
    ) -> None:
        self.delay_s = 0.0
        self._scheduler = scheduler
        self._clock = clock
        self._flusher = flusher
        self._piece_bytes = min(MAX_PIECE_BYTES, segment_bytes // 4 // BLOCK_BYTES * BLOCK_BYTES)
        self._starving = starving
        self._waiting: deque[_Waiting] = deque()
        self._given_up = False

    @property
    def count(self) -> int:
        return len(self._waiting)

    def add(self, volume: Volume, requests: list[Request], done: Done, turn: int) -> None:
        """Keep `requests`, submitted in that turn of the volume, until there is journal space. What
        they carry is their own."""
        self._waiting.extend(_Waiting(volume, request, done, turn) for request in requests)
        if self._given_up:
            self.fail(errno.EIO)
        else:
            self._starving()

    def wake(self) -> None:
        """From any thread: there may be space again."""
        self._scheduler.post(self._go_on)

    def give_up(self) -> None:
        """From any thread: the store is sealed, and there will be no space. Who waits, and who
        comes, gets EIO."""
        self._given_up = True
        self._scheduler.post(lambda: self.fail(errno.EIO))

    def _go_on(self) -> None:
        """Write what can be written, in order, up to the first that has to wait on."""
        while self._waiting:
            waiting = self._waiting[0]
            if not self._advance(waiting):
                self._starving()
                return
            self._waiting.popleft()
            request = waiting.request
            if request.error == 0 and request.flags & FLAG_FUA:
                self._flusher.add([request], waiting.done)
            else:
                waiting.done([request])

    def _advance(self, waiting: _Waiting) -> bool:
        """Go on with one request; whether it is over. Its `error` is set then."""
        request, volume = waiting.request, waiting.volume
        while True:
            piece = self._next_piece(waiting)
            with volume.turning:
                if volume.deleted or volume.turn != waiting.turn:
                    request.error = errno.ESHUTDOWN
                    return True
                _, _, _, blocked = volume.core.submit([piece], self._clock.now_ns())
            if blocked:
                return False
            waiting.written += piece.length
            request.error = piece.error
            if piece.error or waiting.written >= request.length:
                return True

    def _next_piece(self, waiting: _Waiting) -> Request:
        request = waiting.request
        if request.op != OP_WRITE:
            return Request(request.op, request.offset, request.length)
        start = waiting.written
        length = request.length - start
        if length > self._piece_bytes:  # cut between blocks: each is in one record, never in two
            length = self._piece_bytes - (request.offset + start) % BLOCK_BYTES
        data = memoryview(request.data)[start : start + length]  # type: ignore[arg-type]
        return Request(OP_WRITE, request.offset + start, length, data)

    def fail(self, error: int = errno.ESHUTDOWN) -> None:
        """Finish who still waits with `error`: the store closes, or is sealed."""
        while self._waiting:
            waiting = self._waiting.popleft()
            waiting.request.error = error
            waiting.done([waiting.request])
