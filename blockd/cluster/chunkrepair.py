"""Chunks that are known to be damaged here are fetched from other nodes, by their ids.

A volume's members destage by themselves and end with the same chunk ids, so each of them has what
another one lacks. Every LOOK_S damage that is known is asked for, node after node, until it is
whole; what nobody could give is asked for again after AGAIN_S. Nothing is believed: a chunk is what
its id says, or it is refused (volume/chunkrepair.py). What was fetched for a read already
(blockd/cluster/readrepair.py) is stored first.

GET is answered to nodes of the cluster only, on a thread that may wait, by chunks that were checked
just before.
"""

import logging
import time
from collections.abc import Callable
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

logger = logging.getLogger(__name__)

LOOK_S: Final = 5.0
AGAIN_S: Final = 60.0
GET_S: Final = 10.0
GET_BYTES: Final = 8 << 20


def answer_get(repair: ChunkRepair, message: m.Get) -> Message:
    """Those of the chunks that are here. VolumeError, OSError: whether they are cannot be told."""
    found = repair.give(message.ids, message.limit)
    rows = tuple((each, chunk.kind, chunk.codec, chunk.raw_length) for each, chunk in found)
    return m.ChunkList(rows, tuple(chunk.stored for _, chunk in found))


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
        for node in self._info().nodes:
            if node.me or not node.connected or self._rounds.stopping or not wanted:
                continue
            whole = self._repair.take(set(wanted), self._ask(node.node, wanted))
            wanted = [each for each in wanted if each not in whole]
            count += len(whole)
        if wanted:
            first = wanted[0].hex()
            facts = {"count": len(wanted), "first": first}
            logger.error("damaged chunks that no node could give", extra=facts)
        return count

    def _ask(self, node: str, wanted: list[ChunkId]) -> list[Found]:
        """What a node offers; nothing where it does not answer."""
        message = m.Get(GET_BYTES, tuple(wanted))
        try:
            answer = outcome(self._sessions.ask_and_wait(bytes.fromhex(node), message, GET_S))
        except TransportError:
            return []
        if not isinstance(answer, m.ChunkList):
            return []
        return [
            (ChunkId(chunk_id), StoredChunk(kind, codec, length, bytes(memoryview(data))))
            for (chunk_id, kind, codec, length), data in zip(
                answer.chunks, answer.payload, strict=True
            )
        ]
