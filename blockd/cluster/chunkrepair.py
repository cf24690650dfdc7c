"""Chunks that are known to be damaged here are fetched from other nodes.

A volume's members destage by themselves and end with the same chunk ids, so each of them has what
another one lacks: it is asked for by its id. What nobody has so, since the others destaged at other
moments, is asked for by where it belongs: they have the same bytes in the same state of the volume
(volume/remake.py). Every LOOK_S damage that is known is asked for, node after node, until it is
whole; what nobody could give is asked for again after AGAIN_S. Nothing is believed: a chunk is what
its id says, or it is refused (volume/chunkrepair.py). What was fetched for a read already
(blockd/cluster/readrepair.py) is stored first.

GET and GET_AT are answered to nodes of the cluster only, on a thread that may wait, by chunks that
were checked just before.
"""

import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import islice
from typing import Final

from blockd.api.types import ClusterInfo
from blockd.cluster.rounds import Rounds
from transport.errors import TransportError
from transport.group.around import outcome
from transport.peer import messages as m
from transport.peer.wire import Message
from transport.sessions import Sessions
from volume.chunkrepair import MAX_AT_ONCE, ChunkRepair, Found
from volume.chunks import StoredChunk
from volume.layout import ChunkId
from volume.remake import MAX_STATES, SPOTS_OF_CHUNK, Spot

logger = logging.getLogger(__name__)

LOOK_S: Final = 5.0
AGAIN_S: Final = 60.0
GET_S: Final = 10.0
GET_BYTES: Final = 8 << 20
GET_AT_S: Final = 30.0  # replays of MAX_STATES pieces of log
MAX_BATCHES: Final = 4
"""Of MAX_STATES states each, that one round asks for: the rest is for the next one."""


def answer_get(repair: ChunkRepair, message: m.Get) -> Message:
    """Those of the chunks that are here. VolumeError, OSError: whether they are cannot be told."""
    return _listed(repair.give(message.ids, message.limit))


def answer_get_at(repair: ChunkRepair, message: m.GetAt) -> Message:
    """Those of the chunks that can be made again here. VolumeError, OSError: whether that is so
    cannot be told."""
    spots = [
        Spot(volume, seq, offset, bool(is_node), ChunkId(chunk_id))
        for volume, seq, offset, is_node, chunk_id in message.spots
    ]
    return _listed(repair.remake.remade(spots, message.limit)[: m.MAX_CHUNKS])


def _listed(found: Sequence[Found]) -> m.ChunkList:
    rows = tuple((each, chunk.kind, chunk.codec, chunk.raw_length) for each, chunk in found)
    return m.ChunkList(rows, tuple(chunk.stored for _, chunk in found))


def offered(answer: m.ChunkList) -> list[Found]:
    """Chunks as a node says that it has them: nothing of that is certain."""
    return [
        (ChunkId(chunk_id), StoredChunk(kind, codec, length, bytes(memoryview(data))))
        for (chunk_id, kind, codec, length), data in zip(answer.chunks, answer.payload, strict=True)
    ]


class PeerRepair:
    """`info` tells of the nodes; it waits."""

    def __init__(
        self,
        repair: ChunkRepair,
        sessions: Sessions,
        info: Callable[[], ClusterInfo],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._repair = repair
        self._sessions = sessions
        self._info = info
        self._clock = clock
        self._asked: dict[ChunkId, float] = {}
        """When chunks that nobody could give were asked for."""
        self._rounds = Rounds("blockd-repair", self.step, "damage is not repaired", LOOK_S)

    def start(self) -> None:
        self._rounds.start()

    def stop(self) -> None:
        """Waits for a request that is under way. Idempotent."""
        self._rounds.stop()

    def look(self) -> None:
        """Something was brought. Any thread."""
        self._rounds.look()

    def step(self) -> int:
        """Store what was brought, and ask for what is damaged; how much of it is whole now.
        VolumeError, TransportError, OSError."""
        count = len(self._repair.store_brought())
        now = self._clock()
        damaged = self._repair.damaged()
        self._asked = {each: at for each, at in self._asked.items() if each in damaged}
        due = (each for each in damaged if now >= self._asked.get(each, -AGAIN_S) + AGAIN_S)
        wanted = list(islice(due, MAX_AT_ONCE))
        if not wanted:
            return count
        self._asked |= dict.fromkeys(wanted, now)
        nodes = [
            bytes.fromhex(each.node)
            for each in self._info().nodes
            if each.connected and not each.me
        ]
        left = self._fetch(
            nodes, set(wanted), lambda left: m.Get(GET_BYTES, tuple(sorted(left))), GET_S
        )
        if left and nodes:
            left = self._fetch_states(nodes, left)
        if left:
            facts = {"count": len(left), "first": min(left).hex()}
            logger.error("damaged chunks that no node could give", extra=facts)
        return count + len(wanted) - len(left)

    def _fetch(
        self,
        nodes: Sequence[bytes],
        wanted: set[ChunkId],
        asking: Callable[[set[ChunkId]], m.Request],
        timeout_s: float,
    ) -> set[ChunkId]:
        """Ask node after node, and store what they give; what is still wanted then."""
        left = set(wanted)
        for node in nodes:
            if not left or self._rounds.stopping:
                break
            left -= self._repair.take(left, self._ask(node, asking(left), timeout_s))
        return left

    def _fetch_states(self, nodes: Sequence[bytes], wanted: set[ChunkId]) -> set[ChunkId]:
        """The same of chunks that nobody has by their ids, of what volumes were at their places."""
        able = self._sessions.result_of(
            lambda: [each for each in nodes if self._sessions.features(each) & m.Feature.REMAKE]
        )
        left = set(wanted)
        if not able:
            return left
        for spots in islice(_batches(self._repair.remake.spots(wanted)), MAX_BATCHES):

            def asking(left: set[ChunkId], spots: Sequence[Spot] = spots) -> m.Request:
                return m.GetAt(GET_BYTES, tuple(each for each in spots if each.chunk_id in left))

            here = left & {each.chunk_id for each in spots}
            left -= here - self._fetch(able, here, asking, GET_AT_S)
        return left

    def _ask(self, node: bytes, message: m.Request, timeout_s: float) -> list[Found]:
        """What a node offers; nothing where it does not answer."""
        try:
            answer = outcome(self._sessions.ask_and_wait(node, message, timeout_s))
        except TransportError:
            return []
        return offered(answer) if isinstance(answer, m.ChunkList) else []


def _batches(found: Mapping[ChunkId, Collection[Spot] | None]) -> Iterator[list[Spot]]:
    """All of the spots, the newest of each chunk first, as much at a time as one request has."""
    spots = [
        spot
        for rank in range(SPOTS_OF_CHUNK)
        for each in found.values()
        for spot in islice(each or (), rank, rank + 1)
    ]
    batch: list[Spot] = []
    states: set[tuple[bytes, int]] = set()
    for spot in spots:
        state = (spot.volume, spot.seq)
        if len(batch) >= m.MAX_SPOTS or (state not in states and len(states) >= MAX_STATES):
            yield batch
            batch, states = [], set()
        batch.append(spot)
        states.add(state)
    if batch:
        yield batch
