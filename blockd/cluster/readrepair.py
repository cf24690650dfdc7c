"""Chunks that reads, or the destager, wait for are fetched from other nodes (volume/rescue.py).

A chunk that was found damaged is asked for by its id, of ABREAST nodes at a time, those that
are slow last: so one that is slow or silent takes nothing from the others. A node that does not
have it is not asked again; one that could not be asked, or whose answer got lost, is, LOOK_S later,
and so is one that has connected meanwhile. It ends with the first answer that is what the id says,
or when every node of the cluster has said that it has no such chunk, or when the reads have waited
long enough, which `Rescue` decides. While it is not certain which nodes there are, nobody is said
to have said no.

    by id      who has the chunk
    by places  when nobody has: who has the states of volumes in which it belongs somewhere, and can
               make it again (volume/remake.py). Which these are is found by a walk over trees.
    missed     when that was no use either, or it belongs nowhere

What came is used for the reads at once, and stored anew by the round of damaged chunks
(blockd/cluster/chunkrepair.py), which is told to begin.

All of it runs on the thread of the sessions, but for the check of what came, which hashes a chunk,
and the walk, of which there is one at a time: these have threads of their own. Bounded by what
`Rescue` lets be asked for.
"""

import logging
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Final, Protocol

from blockd.cluster.chunkrepair import offered
from transport.errors import TransportError
from transport.group.around import Timer, outcome, text_of
from transport.peer import messages as m
from transport.peer.caller import Answered, Failed
from transport.sessions import PeerState
from volume.chunkrepair import ChunkRepair
from volume.errors import VolumeError
from volume.layout import ChunkId
from volume.model import MAX_CHUNK_SIZE
from volume.remake import Spot
from volume.rescue import WAIT_S

logger = logging.getLogger(__name__)

ABREAST: Final = 3  # nodes that are asked for a chunk at a time: as many as have it, mostly
LOOK_S: Final = 0.25  # a read waits WAIT_S, so that is soon
GET_BYTES: Final = 2 * MAX_CHUNK_SIZE  # in an answer: one chunk, as it is stored
KNOWN_S: Final = 60.0
"""For so long it holds where a chunk belongs: in a large store the walk may take longer than a read
waits, and whoever asks next finds what came of it."""
UNKNOWN_S: Final = 5.0  # before a walk that failed is done again
MAX_KNOWN: Final = 4096  # as many as damage is remembered of


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
    def features(self, node: bytes) -> int: ...


@dataclass(slots=True, eq=False)
class _Wanted:
    """A chunk that is waited for."""

    chunk_id: ChunkId
    asked: set[bytes] = field(default_factory=set)
    """Nodes that have not answered yet, or whose answer is looked at."""
    without: set[bytes] = field(default_factory=set)
    """Nodes that do not have it, or offer something else; by its places, once these are asked."""
    spots: tuple[Spot, ...] = ()
    """Where it belongs, once nobody has it by its id."""
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
        self._checker = None if work else ThreadPoolExecutor(2, "blockd-read-repair")
        self._work = work or self._submit
        self._wanted: dict[ChunkId, _Wanted] = {}
        self._known: dict[ChunkId, tuple[float, tuple[Spot, ...] | None]] = {}
        """Until when it holds where chunks belong, None where that could not be found out."""
        self._sought: set[ChunkId] = set()
        """Of which that is to be found out."""
        self._seeking = False
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
        if others is not None and wanted.without.issuperset(others) and self._is_missed(wanted):
            del self._wanted[wanted.chunk_id]
            self._repair.rescue.missed(wanted.chunk_id)
            facts = {"chunk": wanted.chunk_id.hex(), "nodes": len(others)}
            logger.error("damaged chunk that is needed, and that no other node has", extra=facts)
            return
        wanted.timer = self._wire.after(LOOK_S, lambda: self._look(wanted))
        if wanted.chunk_id in self._sought:
            self._seek()
            return
        for each in sorted(self._wire.states(), key=lambda state: state.slow):
            node = each.peer.node
            if len(wanted.asked) >= ABREAST:
                break
            if each.connected and node not in wanted.asked | wanted.without:
                self._ask(wanted, node)

    def _is_missed(self, wanted: _Wanted) -> bool:
        """Nobody has it by its id, or by its places: whether that was the last that can be asked.
        If not, it is asked by its places from now on, or once they are known."""
        if wanted.spots:
            return True
        known = self._known.get(wanted.chunk_id)
        if known is None or self._repair.rescue.clock() >= known[0]:
            self._sought.add(wanted.chunk_id)
            return False
        _, spots = known
        if spots:
            wanted.spots = spots
            wanted.without.clear()
        return spots == ()

    def _ask(self, wanted: _Wanted, node: bytes) -> None:
        message: m.Get | m.GetAt = m.Get(GET_BYTES, (wanted.chunk_id,))
        if wanted.spots:
            if not self._wire.features(node) & m.Feature.REMAKE:
                wanted.without.add(node)  # it cannot make any
                return
            message = m.GetAt(GET_BYTES, wanted.spots)
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

    def _checked(self, wanted: _Wanted, node: bytes, good: bool | None) -> None:
        """`good`: None where that could not be found out."""
        wanted.asked.discard(node)
        if good is None:
            return  # asked again at the next look
        if not good and not wanted.came:
            wanted.without.add(node)
        self._look(wanted)

    def _seek(self) -> None:
        """Find out where chunks belong, all that are waited for at once."""
        if self._seeking:
            return
        self._seeking = True
        sought = frozenset(self._sought)
        self._work(lambda: self._find(sought))

    def _found(
        self, sought: frozenset[ChunkId], spots: dict[ChunkId, tuple[Spot, ...] | None] | None
    ) -> None:
        """`spots`: None where that could not be found out."""
        self._seeking = False
        self._sought -= sought
        now = self._repair.rescue.clock()
        self._known = {each: known for each, known in self._known.items() if now < known[0]}
        for each in sought:
            there = None if spots is None else spots.get(each, ())
            self._known[each] = (now + (UNKNOWN_S if there is None else KNOWN_S), there)
        for each in list(self._known)[:-MAX_KNOWN]:
            del self._known[each]
        for wanted in [self._wanted[each] for each in sought if each in self._wanted]:
            self._look(wanted)

    # -- the threads that hash and walk

    def _submit(self, call: Callable[[], None]) -> None:
        assert self._checker is not None
        try:
            self._checker.submit(call)
        except RuntimeError:  # it was stopped; who waits has been told
            return

    def _check(self, wanted: _Wanted, node: bytes, answer: m.ChunkList) -> None:
        good: bool | None = None
        try:
            good = self._is_good(wanted, answer)
            if good:
                facts = {"chunk": wanted.chunk_id.hex(), "node": node.hex()}
                logger.warning("damaged chunk fetched", extra=facts)
                self._brought()
        except (VolumeError, OSError) as problem:
            logger.warning("damaged chunk not looked at", extra={"reason": str(problem)})
        finally:  # else the node would pass for one that has not answered, for ever
            self._wire.post(lambda: self._checked(wanted, node, good))

    def _is_good(self, wanted: _Wanted, answer: m.ChunkList) -> bool:
        good = False
        for chunk_id, chunk in offered(answer):
            if chunk_id == wanted.chunk_id and not wanted.came:
                good = wanted.came = self._repair.bring(chunk_id, chunk)
        return good

    def _find(self, sought: frozenset[ChunkId]) -> None:
        spots = None
        try:
            spots = self._repair.remake.spots(sought)
        except (VolumeError, OSError) as problem:
            facts = {"reason": str(problem)}
            logger.warning("where damaged chunks belong is not known", extra=facts)
        finally:
            self._wire.post(lambda: self._found(sought, spots))
