"""Bytes of packs that go bad on one member's disk, and how it gets them back from the others.

What a daemon does on threads of its own is done here in events: every few seconds damage that reads
or scrub have found is asked for by its id, node after node (`blockd.cluster.chunkrepair`). Until
then a read of it is an error; wrong bytes are shown to nobody, which the history checker would see.
In the end there is a scrub, and what the volume reads as has to be whole again on that disk too.

It is always the same node, so W members have all of it.
"""

import random
from collections.abc import Callable, Sequence
from typing import Protocol

from blockd.cluster.chunkrepair import GET_BYTES, GET_S, LOOK_S, offered
from blockd.cluster.readrepair import ReadRepair
from tests.sim.cluster.around import SimTimer
from tests.sim.cluster.node import Node, as_a_thread
from tests.sim.cluster.onlooker import PIECE
from tests.sim.cluster.timeline import Process
from tests.sim.world.stamps import Violation
from transport.errors import TransportError
from transport.group.around import outcome
from transport.peer import messages as m
from transport.peer.caller import Answered, Failed
from transport.sessions import Peer, PeerState
from volume.chunkrepair import MAX_AT_ONCE
from volume.layout import ChunkId
from volume.packfile import ENTRY_HEADER_LENGTH
from volume.rescue import WAIT_S

NEWEST = 24  # chunks: of older ones the volume has hardly any in use


class Surroundings(Protocol):
    """What it needs of its world."""

    nodes: dict[str, Node]

    def note(self, what: str) -> None: ...
    def count(self, what: str) -> None: ...


class Wire:
    """The sessions of a process, as whoever fetches chunks for reads uses them."""

    def __init__(self, node: Node, others: Sequence[str]) -> None:
        self._node = node
        self._process = node.process
        self._others = others

    def post(self, call: Callable[[], None]) -> None:
        self._process.after(0.0, call)

    def states(self) -> list[PeerState]:
        return [self._state(name) for name in self._others]

    def _state(self, name: str) -> PeerState:
        peer = Peer(bytes.fromhex(name), name[:4], b"", ())
        return PeerState(peer, self._node.is_connected(name), 0.0, "", "", False, 0, True)

    def ask(
        self,
        node: bytes,
        message: m.Request,
        timeout_s: float,
        then: Callable[[Answered | Failed], None],
    ) -> None:
        self._node.ask(node.hex(), message, timeout_s, then)

    def after(self, delay_s: float, call: Callable[[], None]) -> SimTimer:
        return self._node.after(delay_s, call)

    def features(self, node: bytes) -> int:
        return int(m.FEATURES)


class Damage:
    def __init__(self, world: Surroundings) -> None:
        self._world = world
        self._node: Node | None = None
        self._looks: Process | None = None
        self._ending = False
        self._repaired: object = None
        """Its volume in which the last look at the end has found nothing to be repaired: one that
        comes as a copy after that is another one, of which other chunks may be damaged."""

    # -- what the nemesis does

    def rot(self, rng: random.Random) -> None:
        """A bit of a chunk that was stored lately goes bad."""
        node = self._node or rng.choice(list(self._world.nodes.values()))
        if node.machine.store is None or node.replica is None:
            return
        found = sorted(
            (place.pack, place.offset, place) for _, place in node.store._index.group(b"")
        )
        if not found:
            return
        number, offset, place = rng.choice(found[-NEWEST:])
        at = offset + rng.randrange(ENTRY_HEADER_LENGTH + place.stored_length)
        node.onlooker.note_chunks()
        if node.machine.rot(f"packs/{number:08x}.pack", at, 1 << rng.randrange(8)):
            self._node = node
            self._world.count("rotten bits")
            node.onlooker.forget_what_was_read()
            self.started(node)

    def scrub(self, rng: random.Random) -> None:
        node = self._node
        if node is not None and node.machine.store is not None:
            node.process.run(lambda: _scrub(node))

    @property
    def settled(self) -> bool:
        """Nothing is left to be repaired."""
        node = self._node
        if node is None or node.replica is None:  # it has no part of the volume any more
            return True
        return self._repaired is node.volume

    def heal(self) -> None:
        """No more goes bad. All nodes destage once: so they have chunks in common."""
        self._ending = True
        self._repaired = None
        if self._node is not None:
            for node in self._world.nodes.values():
                node.tidy(collect=False)

    def crashing(self, node: Node) -> None:
        """What a start finds damaged in a pack that is not sealed, it does not find at all."""
        if node is self._node and not node.machine.disk.is_off:
            node.onlooker.note_chunks()

    # -- repair

    def started(self, node: Node) -> None:
        """It has a process: that looks for damage now and then."""
        if node is self._node and self._looks is not node.process:
            self._looks = process = node.process
            repair = node.store.chunk_repair
            names = self._others(node)
            others = {bytes.fromhex(name) for name in names}
            reads = ReadRepair(
                *(repair, Wire(node, names), lambda: others, _nothing, node.process_soon)
            )

            def want(chunk_id: ChunkId) -> None:
                reads.want(chunk_id)
                process.after(WAIT_S, repair.rescue.expire)

            repair.rescue.serve(want)
            process.after(LOOK_S, lambda: self._look(node, process))

    def _others(self, node: Node) -> list[str]:
        return [name for name in self._world.nodes if name != node.name]

    def _look(self, node: Node, process: Process) -> None:
        process.after(LOOK_S, lambda: self._look(node, process))
        if node.replica is None:
            return
        if self._ending:
            _scrub(node)
            self._repaired = None if self._repairable(node) else node.volume
        repair = node.store.chunk_repair
        as_a_thread(node.store, repair.store_brought)
        wanted = sorted(repair.damaged())[:MAX_AT_ONCE]
        self._ask(node, process, wanted, self._others(node))

    def _repairable(self, node: Node) -> list[tuple[str, str]]:
        """Chunks that this node cannot read, and who has them."""
        unreadable = [at for at, piece in enumerate(node.onlooker.pieces()) if piece is None]
        wanted = {*node.store.chunk_repair.damaged(), *node.onlooker.chunk_ids(unreadable)}
        others = [each for each in self._world.nodes.values() if each is not node and each.up]
        return [
            (chunk_id.hex()[:12], other.name[:4])
            for chunk_id in sorted(wanted)
            for other in others
            if other.store.chunk_repair.give([chunk_id], GET_BYTES)
        ]

    def is_still_settled(self) -> bool:
        """Whether that is so now: a member that has just come into step may have brought states
        into chunks on its way, and has what nobody had at the last look."""
        node = self._node
        if self.settled and node is not None and node.replica and self._repairable(node):
            self._repaired = None  # until the next look
        return self.settled

    def last_look(self) -> None:
        """All is healed. What the bad disk cannot tell, it does not tell wrong, and nobody else has
        what it lacks: members that were destaged at other moments may have other chunks. Violation.
        """
        node = self._node
        if node is None or node.replica is None:
            return
        image, pieces = node.onlooker.image(), node.onlooker.pieces()
        if lacks := self._repairable(node):
            raise Violation(f"I11 {node.name[:4]} has damaged chunks that others have: {lacks}")
        for number, piece in enumerate(pieces):
            at = number * PIECE
            if piece is None:
                self._world.count("pieces beyond repair")
            elif piece != image[at : at + PIECE]:
                raise Violation(f"I11 {node.name[:4]} reads wrong bytes at {at}")

    def _ask(self, node: Node, process: Process, wanted: list[ChunkId], nodes: list[str]) -> None:
        if not wanted or not nodes or node.process is not process:
            return
        first, *others = nodes

        def answered(end: Answered | Failed) -> None:
            whole = self._take(node, wanted, end)
            self._ask(node, process, [each for each in wanted if each not in whole], others)

        try:
            node.ask(first, m.Get(GET_BYTES, tuple(wanted)), GET_S, answered)
        except TransportError:
            self._ask(node, process, wanted, others)

    def _take(self, node: Node, wanted: list[ChunkId], end: Answered | Failed) -> set[ChunkId]:
        answer = outcome(end)
        if not isinstance(answer, m.ChunkList):
            return set()
        found = offered(answer)
        whole: set[ChunkId] = set()
        store = node.store
        as_a_thread(store, lambda: whole.update(store.chunk_repair.take(set(wanted), found)))
        if whole:
            self._world.note(f"{node.name[:4]} has {len(whole)} chunks again")
            self._world.count("repaired")
        return whole


def _nothing() -> None:
    """The next look is soon."""


def _scrub(node: Node) -> None:
    """A pass over all packs."""
    store = node.store
    node.onlooker.forget_what_was_read()
    store.start_scrub()
    as_a_thread(store, lambda: store.upkeep.scrubber.step(1.0))
