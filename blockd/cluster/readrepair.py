"""Chunks that reads, or the destager, wait for are fetched from other nodes (volume/rescue.py).

A chunk that was found damaged is asked for by its id, of ABREAST nodes at a time, those that
are slow last: so one that is slow or silent takes nothing from the others. A node that does not
have it is not asked again; one that could not be asked, or whose answer got lost, is, LOOK_S later,
and so is one that has connected meanwhile. It ends with the first answer that is what the id says,
or when every node of the cluster has said that it has no such chunk, or when the reads have waited
long enough, which `Rescue` decides. While it is not certain which nodes there are, nobody is said
to have said no.

What came is used for the reads at once, and stored anew by the round of damaged chunks
(blockd/cluster/chunkrepair.py), which is told to begin.

All of it runs on the thread of the sessions, but for the check of what came, which has a thread of
its own: it hashes a chunk. Bounded by what `Rescue` lets be asked for.
"""

import logging
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Final, Protocol

from transport.errors import TransportError
from transport.group.around import Timer, outcome, text_of
from transport.peer import messages as m
from transport.peer.caller import Answered, Failed
from transport.sessions import PeerState
from volume.chunkrepair import ChunkRepair
from volume.chunks import StoredChunk
from volume.layout import ChunkId
from volume.model import MAX_CHUNK_SIZE
from volume.rescue import WAIT_S

logger = logging.getLogger(__name__)

ABREAST: Final = 3  # nodes that are asked for a chunk at a time: as many as have it, mostly
LOOK_S: Final = 0.25  # a read waits WAIT_S, so that is soon
GET_BYTES: Final = 2 * MAX_CHUNK_SIZE  # in an answer: one chunk, as it is stored


class Wire(Protocol):
    """What is used of `transport.sessions.Sessions`."""

    def post(self, call: Callable[[], None]) -> None: ...
    def states(self) -> list[PeerState]: ...
    def ask(
        self,
        node: bytes,
        message: m.Request,
        timeout_s: float,
        then: Callable[[Answered | Failed], None],
    ) -> None: ...
    def after(self, delay_s: float, call: Callable[[], None]) -> Timer: ...


@dataclass(slots=True, eq=False)
class _Wanted:
    """A chunk that is waited for."""

    chunk_id: ChunkId
    asked: set[bytes] = field(default_factory=set)
    """Nodes that have not answered yet, or whose answer is looked at."""
    without: set[bytes] = field(default_factory=set)
    """Nodes that do not have it, or offer something else."""
    timer: Timer | None = None
    came: bool = False


class ReadRepair:
    """`others`: the other nodes of the cluster, None while that is not certain. Must not wait.
    `brought` is told that something is to be stored anew; from any thread, must not wait."""

    def __init__(
        self,
        repair: ChunkRepair,
        wire: Wire,
        others: Callable[[], Collection[bytes] | None],
        brought: Callable[[], None],
        work: Callable[[Callable[[], None]], object] | None = None,
    ) -> None:
        """`work` calls later what hashes; by itself it is a thread."""
        self._repair = repair
        self._wire = wire
        self._others = others
        self._brought = brought
        self._checker = None if work else ThreadPoolExecutor(1, "blockd-read-repair")
        self._work = work or self._submit
        self._wanted: dict[ChunkId, _Wanted] = {}
        repair.rescue.expect()

    def start(self) -> None:
        """Before the sessions are served from, or later."""
        self._repair.rescue.serve(self.want)

    def stop(self) -> None:
        """Reads that wait fail. Before the sessions end. Idempotent."""
        self._repair.rescue.end()
        if self._checker is not None:
            self._checker.shutdown()

    def want(self, chunk_id: ChunkId) -> None:
        """Fetch it. Any thread."""
        self._wire.post(lambda: self._begin(chunk_id))

    # -- the sessions' thread

    def _begin(self, chunk_id: ChunkId) -> None:
        old = self._wanted.get(chunk_id)  # of a read that has given up just now
        if old is not None and old.timer is not None:
            old.timer.cancel()
        wanted = self._wanted[chunk_id] = _Wanted(chunk_id)
        self._look(wanted)

    def _is_over(self, wanted: _Wanted) -> bool:
        if self._wanted.get(wanted.chunk_id) is not wanted:
            return True
        if self._repair.rescue.is_awaited(wanted.chunk_id):
            return False
        del self._wanted[wanted.chunk_id]
        return True

    def _look(self, wanted: _Wanted) -> None:
        """Ask who was not asked yet."""
        if wanted.timer is not None:
            wanted.timer.cancel()
        if self._is_over(wanted):
            return
        others = self._others()
        if others is not None and wanted.without.issuperset(others):
            del self._wanted[wanted.chunk_id]
            self._repair.rescue.missed(wanted.chunk_id)
            facts = {"chunk": wanted.chunk_id.hex(), "nodes": len(others)}
            logger.error("damaged chunk that is needed, and that no other node has", extra=facts)
            return
        for each in sorted(self._wire.states(), key=lambda state: state.slow):
            node = each.peer.node
            if len(wanted.asked) >= ABREAST:
                break
            if each.connected and node not in wanted.asked | wanted.without:
                self._ask(wanted, node)
        wanted.timer = self._wire.after(LOOK_S, lambda: self._look(wanted))

    def _ask(self, wanted: _Wanted, node: bytes) -> None:
        message = m.Get(GET_BYTES, (wanted.chunk_id,))
        try:
            self._wire.ask(node, message, WAIT_S, partial(self._answered, wanted, node))
        except TransportError:
            return  # at the next look
        wanted.asked.add(node)

    def _answered(self, wanted: _Wanted, node: bytes, end: Answered | Failed) -> None:
        match outcome(end):
            case m.ChunkList() as answer:  # good for the next read, if it is late for this one
                if not wanted.came:
                    self._work(lambda: self._check(wanted, node, answer))
            case other:  # asked again at the next look
                wanted.asked.discard(node)
                facts = {"node": node.hex(), "reason": text_of(other)}
                logger.debug("damaged chunk not fetched", extra=facts)

    def _checked(self, wanted: _Wanted, node: bytes, good: bool) -> None:
        wanted.asked.discard(node)
        if not good and not wanted.came:
            wanted.without.add(node)
        self._look(wanted)

    # -- the thread that hashes

    def _submit(self, call: Callable[[], None]) -> None:
        assert self._checker is not None
        try:
            self._checker.submit(call)
        except RuntimeError:  # it was stopped; who waits has been told
            return

    def _check(self, wanted: _Wanted, node: bytes, answer: m.ChunkList) -> None:
        good = False
        for (chunk_id, kind, codec, length), data in zip(
            answer.chunks, answer.payload, strict=False
        ):
            if chunk_id == wanted.chunk_id and not wanted.came:
                stored = StoredChunk(kind, codec, length, bytes(memoryview(data)))
                good = wanted.came = self._repair.bring(wanted.chunk_id, stored)
        if good:
            facts = {"chunk": wanted.chunk_id.hex(), "node": node.hex()}
            logger.warning("damaged chunk fetched", extra=facts)
            self._brought()
        self._wire.post(lambda: self._checked(wanted, node, good))
