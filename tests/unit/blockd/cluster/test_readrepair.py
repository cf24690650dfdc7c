"""Chunks that reads wait for are asked for of nodes that may be slow, silent, wrong or away."""

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from blockd.cluster.chunkrepair import answer_get, answer_get_at
from blockd.cluster.readrepair import ABREAST, LOOK_S, ReadRepair
from tests.sim.store_rig import StoreRig
from tests.unit.volume.test_chunkrepair import CHUNK, DATA, IDS, SIZE, filled
from tests.unit.volume.test_remake import Apart
from tests.unit.volume.test_rescue import flip, read
from transport.errors import TransportError
from transport.peer import messages as m
from transport.peer.caller import Answered, Failed
from transport.sessions import Peer, PeerState
from volume.chunks import StoredChunk
from volume.destager import RETRY_MAX_S, RETRY_S
from volume.layout import KIND_DAMAGED
from volume.rescue import MAX_CHUNKS, WAIT_S
from volume.stripedpack import StripeUnavailable

Then = Callable[[Answered | Failed], None]
NODES = [bytes([number]) * 16 for number in range(1, 6)]
NOTHING = m.ChunkList((), ())


@dataclass
class Ring:
    at: float
    call: Callable[[], None] | None

    def cancel(self) -> None:
        self.call = None


@dataclass
class Node:
    connected: bool = True
    slow: bool = False
    busy: bool = False
    features: int = int(m.FEATURES)
    asked: list[tuple[m.Get | m.GetAt, Then]] = field(default_factory=list)


class Wire:
    """Sessions whose nodes answer when the test says so, and what."""

    def __init__(self, rig: StoreRig, count: int = 2) -> None:
        self.nodes = {node: Node() for node in NODES[:count]}
        self.rings: list[Ring] = []
        self.ended = False
        self.certain = True
        self.stored = 0
        self._rig = rig
        self.repair = ReadRepair(
            rig.store.chunk_repair,
            self,
            lambda: set(self.nodes) if self.certain else None,
            self._brought,
            work=lambda call: call(),
        )
        self.repair.start()

    def _brought(self) -> None:
        self.stored += 1

    def post(self, call: Callable[[], None]) -> None:
        if not self.ended:
            call()

    def states(self) -> list[PeerState]:
        return [
            PeerState(
                Peer(key, key.hex()[:2], key, ()),
                *(each.connected, 1.0, "", "", each.slow),
                0,
                True,
            )
            for key, each in self.nodes.items()
        ]

    def ask(self, node: bytes, message: m.Request, timeout_s: float, then: Then) -> None:
        each = self.nodes[node]
        assert each.connected
        assert isinstance(message, m.Get | m.GetAt)
        if each.busy:
            raise TransportError("busy")
        each.asked.append((message, then))

    def features(self, node: bytes) -> int:
        return self.nodes[node].features

    def after(self, delay_s: float, call: Callable[[], None]) -> Ring:
        ring = Ring(self._rig.clock.monotonic() + delay_s, call)
        self.rings.append(ring)
        return ring

    # -- the test's

    def pass_s(self, seconds: float) -> None:
        self._rig.clock.advance(seconds)
        due = [ring for ring in self.rings if ring.at <= self._rig.clock.monotonic()]
        self.rings = [ring for ring in self.rings if ring not in due]
        for ring in due:
            if ring.call is not None:
                ring.call()
        self._rig.store.chunk_repair.rescue.expire()

    def answer(self, node: bytes, what: StoreRig | m.ChunkList | Failed | m.Error) -> None:
        """To the first request that the node has not answered."""
        message, then = self.nodes[node].asked.pop(0)
        if isinstance(what, StoreRig):
            repair = what.store.chunk_repair
            answer = (
                answer_get_at(repair, message)
                if isinstance(message, m.GetAt)
                else answer_get(repair, message)
            )
            assert isinstance(answer, m.ChunkList)
            what = answer
        then(what if isinstance(what, Failed) else Answered(1, what))

    def is_asked(self) -> list[bool]:
        return [bool(each.asked) for each in self.nodes.values()]


def lost() -> Failed:
    return Failed(1, "the connection went")


def test_first_good_answer_is_the_reads_and_the_chunk_is_stored_anew() -> None:
    ours, theirs = filled(), filled()
    flip(ours, IDS[3])
    wire = Wire(ours)
    request, finished = read(ours, 0, SIZE)
    assert wire.is_asked() == [True, True]
    wire.answer(NODES[1], theirs)  # the other one is slow
    assert finished == [request]
    assert request.data == DATA
    assert wire.stored == 1
    wire.answer(NODES[0], theirs)
    assert wire.stored == 1, "it is here already"
    assert ours.store.chunk_repair.store_brought() == {IDS[3]}


def test_garbage_of_one_node_leaves_the_read_to_the_next() -> None:
    ours, theirs = filled(), filled()
    flip(ours, IDS[3])
    wire = Wire(ours)
    request, finished = read(ours, 0, SIZE)
    good = theirs.store.chunk_repair.give([IDS[3]], 1 << 20)[0][1]
    rows = ((IDS[3], good.kind, good.codec, good.raw_length),)
    wire.answer(NODES[0], m.ChunkList(rows, (bytes(CHUNK),)))
    assert finished == []
    wire.answer(NODES[1], m.ChunkList(((IDS[4], *rows[0][1:]), *rows), (bytes(9), good.stored)))
    assert finished == [request]
    assert request.data == DATA


def test_what_every_node_says_it_does_not_have_is_an_error_without_delay() -> None:
    ours = filled()
    flip(ours, IDS[3])
    wire = Wire(ours, 5)
    request, finished = read(ours, 0, SIZE)
    for number, node in enumerate(NODES):
        assert sum(wire.is_asked()) <= ABREAST
        assert finished == []
        wire.answer(node, NOTHING if number % 2 else filled_without(IDS[3]))
    assert finished == [request]
    assert request.error
    assert not any(ring.call for ring in wire.rings)


def filled_without(bad: bytes) -> StoreRig:
    rig = filled()
    flip(rig, bad)
    return rig


def test_slow_nodes_are_asked_last_and_silent_ones_leave_room_for_others() -> None:
    ours, theirs = filled(), filled()
    flip(ours, IDS[3])
    wire = Wire(ours, 5)
    wire.nodes[NODES[0]].slow = wire.nodes[NODES[1]].slow = True
    request, finished = read(ours, 0, SIZE)
    assert wire.is_asked() == [False, False, True, True, True]
    wire.answer(NODES[4], NOTHING)
    assert wire.is_asked() == [True, False, True, True, False]
    wire.answer(NODES[0], theirs)
    assert finished == [request]
    assert request.data == DATA


def test_node_that_cannot_be_asked_now_is_asked_when_it_can() -> None:
    ours, theirs = filled(), filled()
    flip(ours, IDS[3])
    wire = Wire(ours)
    wire.nodes[NODES[0]].connected = False
    wire.nodes[NODES[1]].busy = True
    request, finished = read(ours, 0, SIZE)
    assert wire.is_asked() == [False, False]
    wire.nodes[NODES[1]].busy = False
    wire.pass_s(LOOK_S)
    assert wire.is_asked() == [False, True]
    wire.answer(NODES[1], lost())
    wire.nodes[NODES[0]].connected = True
    wire.pass_s(LOOK_S)
    assert wire.is_asked() == [True, True], "its answer was lost, so it is asked again"
    wire.answer(NODES[0], m.Error(m.Code.FAILED, 0, "no"))
    wire.answer(NODES[1], theirs)
    assert finished == [request]
    assert request.data == DATA


def test_nodes_that_are_silent_keep_a_read_no_longer_than_its_time() -> None:
    ours, theirs = filled(), filled()
    flip(ours, IDS[3])
    wire = Wire(ours)
    wire.nodes[NODES[0]].connected = False
    request, finished = read(ours, 0, SIZE)
    for _ in range(int(WAIT_S / LOOK_S) - 1):
        wire.pass_s(LOOK_S)
    assert finished == []
    wire.pass_s(LOOK_S)
    assert finished == [request]
    assert request.error
    wire.pass_s(LOOK_S)
    assert not any(ring.call for ring in wire.rings), "nobody is asked any more"
    wire.answer(NODES[1], theirs)
    assert ours.read("vm1") == DATA, "it came late, and is good for the next read"
    assert wire.stored == 1


def test_chunk_of_a_read_that_gave_up_is_asked_for_anew() -> None:
    ours, theirs = filled(), filled()
    flip(ours, IDS[3])
    wire = Wire(ours)
    read(ours, 0, SIZE)
    wire.pass_s(WAIT_S)
    request, finished = read(ours, 0, SIZE)
    assert [len(each.asked) for each in wire.nodes.values()] == [2, 2]
    for node in NODES[:2]:
        wire.answer(node, NOTHING)  # of the first read
    assert finished == []
    wire.answer(NODES[0], theirs)
    assert finished == [request]
    assert request.data == DATA


def test_many_readers_of_many_chunks_share_what_is_asked() -> None:
    ours, theirs = filled(), filled()
    flip(ours, *IDS)
    wire = Wire(ours)
    reads = [read(ours, at, CHUNK) for _ in range(5) for at in range(0, SIZE, CHUNK)]
    assert len(wire.nodes[NODES[0]].asked) == len(IDS) <= MAX_CHUNKS
    for _ in IDS:
        wire.answer(NODES[1], theirs)
    for request, finished in reads:
        assert finished == [request]
        assert request.data == DATA[request.offset : request.offset + CHUNK]


def test_alone_in_the_cluster_a_damaged_chunk_is_an_error_at_once() -> None:
    ours = filled()
    flip(ours, IDS[3])
    Wire(ours, 0)
    assert ours.read_error("vm1", 0, SIZE)


def test_reads_that_wait_fail_when_the_node_stops() -> None:
    ours, theirs = filled(), filled()
    flip(ours, IDS[3])
    wire = Wire(ours)
    request, finished = read(ours, 0, SIZE)
    wire.repair.stop()
    assert finished == [request]
    assert request.error
    wire.answer(NODES[0], theirs)  # comes all the same
    wire.ended = True
    wire.answer(NODES[1], theirs)
    assert ours.read_error("vm1", 0, SIZE) == 0, "it was checked, and is kept"


def written(rig: StoreRig) -> bytes:
    """The first block of chunk 3 is written, and destaged as far as that goes."""
    rig.fill("vm1", 3 * CHUNK, b"n" * 512)
    rig.store.destage()
    return DATA[: 3 * CHUNK] + b"n" * 512 + DATA[3 * CHUNK + 512 :]


def test_the_destager_waits_for_a_node_that_is_away_and_asks_it_when_it_is_back() -> None:
    ours, theirs = filled(), filled()
    flip(ours, IDS[3])
    wire = Wire(ours)
    wire.nodes[NODES[0]].connected = False
    expected = written(ours)
    assert wire.is_asked() == [False, True]
    wire.answer(NODES[1], NOTHING)
    for _ in range(int(600 / RETRY_MAX_S)):
        wire.pass_s(RETRY_MAX_S)
        ours.store.destage()
        if wire.nodes[NODES[1]].asked:
            wire.answer(NODES[1], NOTHING)
    assert "volume vm1 is not destaged" in (ours.store.status().destage_held_up or "")
    assert not wire.nodes[NODES[0]].asked
    wire.nodes[NODES[0]].connected = True
    wire.pass_s(RETRY_MAX_S)
    ours.store.destage()
    wire.answer(NODES[0], theirs)
    wire.pass_s(RETRY_S)
    ours.store.destage()
    assert ours.store.status().destage_held_up is None
    assert ours.read("vm1") == ours.rebooted().read("vm1") == expected


def test_what_is_damaged_below_a_write_is_given_up_when_every_node_has_said_no() -> None:
    ours = filled()
    flip(ours, IDS[3])
    wire = Wire(ours)
    written(ours)
    for node in NODES[:2]:
        assert ours.volume("vm1").core.state()[3]
        wire.answer(node, NOTHING)
    wire.pass_s(RETRY_S)
    ours.store.destage()
    assert ours.store.status().destage_held_up is None
    assert ours.read_error("vm1", 3 * CHUNK, CHUNK)


def test_nobody_has_said_no_while_it_is_not_certain_who_there_is() -> None:
    """As after a start when etcd does not answer: no node is known then."""
    ours, theirs = filled(), filled()
    flip(ours, IDS[3])
    wire = Wire(ours, 0)
    wire.certain = False
    expected = written(ours)
    for _ in range(10):
        wire.pass_s(RETRY_MAX_S)
        ours.store.destage()
    assert ours.store.status().destage_held_up
    wire.nodes[NODES[4]] = Node()
    wire.certain = True
    wire.pass_s(RETRY_MAX_S)
    ours.store.destage()
    wire.answer(NODES[4], theirs)
    wire.pass_s(RETRY_S)
    ours.store.destage()
    assert ours.read("vm1") == expected


def test_a_node_that_the_sessions_do_not_know_yet_has_not_said_no() -> None:
    ours = filled()
    flip(ours, IDS[3])
    wire = Wire(ours)
    later = wire.states
    wire.states = lambda: later()[:1]  # type: ignore[method-assign]
    request, finished = read(ours, 0, SIZE)
    wire.answer(NODES[0], NOTHING)
    assert finished == []
    wire.states = later  # type: ignore[method-assign]
    wire.pass_s(LOOK_S)
    wire.answer(NODES[1], NOTHING)
    assert finished == [request]


def test_what_is_in_a_stripe_that_cannot_be_read_now_is_no_no(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rig = filled()
    chunks = rig.store._chunks
    stored = chunks.stored

    def unavailable(chunk_id: bytes) -> StoredChunk:
        if chunk_id == IDS[3]:
            raise StripeUnavailable("two nodes are down")
        return stored(chunk_id)

    monkeypatch.setattr(chunks, "stored", unavailable)
    repair = rig.store.chunk_repair
    assert [each for each, _ in repair.give(IDS[2:5], 1 << 20)] == [IDS[2], IDS[4]]
    with pytest.raises(StripeUnavailable):
        answer_get(repair, m.Get(1 << 20, (IDS[3],)))


def below_a_write(life: Apart, wire: Wire) -> bytes:
    """Chunk 0 is damaged where a part of it has been written, no node has it by its id, and they
    have been asked for it. What the volume is."""
    expected = life.member.read_version(f"vm1@seq:{life.replica.held[0]}")
    life.damage(0)
    life.ours.store.destage()
    for node in wire.nodes:
        message, _ = wire.nodes[node].asked[0]
        assert isinstance(message, m.Get)
        wire.answer(node, life.member)
    return expected


def test_what_nobody_has_by_its_id_is_made_again_where_the_state_is_and_nothing_is_lost() -> None:
    life = Apart()
    wire = Wire(life.ours)
    expected = below_a_write(life, wire)
    wire.answer(NODES[0], NOTHING)  # it has no such state
    wire.answer(NODES[1], life.member)
    wire.pass_s(RETRY_S)
    life.ours.store.destage()
    assert life.ours.store.status().destage_held_up is None
    assert life.ours.read_version(f"vm1@seq:{life.replica.held[0]}") == expected
    assert life.source.replica.volume.record.head.seq == life.replica.held[0]


def test_what_no_node_can_make_again_is_given_up() -> None:
    life = Apart()
    wire = Wire(life.ours)
    wire.nodes[NODES[0]].features = 0  # of an older release
    below_a_write(life, wire)
    assert not wire.nodes[NODES[0]].asked
    assert life.ours.store.status().destage_held_up
    wire.answer(NODES[1], NOTHING)
    wire.pass_s(LOOK_S)
    wire.pass_s(RETRY_MAX_S)
    life.ours.store.destage()
    assert life.ours.store.status().destage_held_up is None
    lost = life.chunk_id(0)
    place = life.ours.store._chunks.place(lost)
    assert place is not None
    assert place.kind == KIND_DAMAGED


def test_nothing_is_given_up_while_a_node_cannot_tell_whether_it_can_make_it() -> None:
    life = Apart()
    wire = Wire(life.ours)
    expected = below_a_write(life, wire)
    busy = m.Error(m.Code.FAILED, 0, "chunks are made again for another node just now")
    for _ in range(20):
        for node in NODES[:2]:
            while wire.nodes[node].asked:
                message, _ = wire.nodes[node].asked[0]
                wire.answer(node, busy if isinstance(message, m.GetAt) else NOTHING)
        wire.pass_s(RETRY_MAX_S)
        life.ours.store.destage()
    assert life.ours.store.status().destage_held_up
    wire.pass_s(RETRY_MAX_S)
    life.ours.store.destage()
    for _ in range(4):
        for node in NODES[:2]:
            while wire.nodes[node].asked:
                wire.answer(node, life.member)
    wire.pass_s(RETRY_MAX_S)
    life.ours.store.destage()
    assert life.ours.read_version(f"vm1@seq:{life.replica.held[0]}") == expected


def test_an_answer_that_cannot_be_looked_at_is_asked_for_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours, theirs = filled(), filled()
    flip(ours, IDS[3])
    wire = Wire(ours)
    request, finished = read(ours, 0, SIZE)
    repair = ours.store.chunk_repair
    bring = repair.bring

    def failing(chunk_id: bytes, chunk: StoredChunk) -> bool:
        raise OSError(5, "the index cannot be read")

    monkeypatch.setattr(repair, "bring", failing)
    for node in NODES[:2]:
        wire.answer(node, theirs)
    monkeypatch.setattr(repair, "bring", bring)
    assert finished == []
    wire.pass_s(LOOK_S)
    wire.answer(NODES[0], theirs)
    assert finished == [request]
    assert request.data == DATA
