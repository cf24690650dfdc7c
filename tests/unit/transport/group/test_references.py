"""Payload that a member has already: what is named instead of sent, and what the member makes of
it."""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast

import pytest

from native import OP_WRITE, TAP_MIN_BUFFER, Request
from tests.group_rig import over_the_wire
from tests.sim.store_rig import SMALL, StoreRig
from transport.errors import BadMessage
from transport.group.acks import NodeId
from transport.group.around import Around
from transport.group.chain import Chain
from transport.group.leading import Leading
from transport.group.lease import Quiet
from transport.group.link import GroupPolicy, Send
from transport.group.member import Member
from transport.group.references import DOUBT_BYTES, MAX_SPACING, References, whole
from transport.peer import messages as m
from transport.peer.caller import Answered
from transport.peer.wire import Envelope, Message, encode, size_of
from volume.chunks import chunk_id_of
from volume.errors import BadRecords, CorruptChunk
from volume.layout import ZERO_ID, ChunkId
from volume.metastore_records import GroupState, Mode, VolumeGroup
from volume.replica import Replica

VOLUME = bytes(range(16))
CHUNK = 4096
SIZE = 1 << 20
B = NodeId("bb" * 16)
OPTIONS = replace(SMALL, journal_limit=64 * 16384)
RNG = random.Random(1)
CONTENT = [RNG.randbytes(CHUNK) for _ in range(8)]


class Store:
    """A store with one replica; its records as a tap gives them."""

    def __init__(self) -> None:
        self.rig = StoreRig(options=OPTIONS)
        self.replica.promise(1)
        self.replica.begin(1, 0)
        self.rig.tend()
        self.replica.tap(4 << 20)

    @property
    def replica(self) -> Replica:
        replicas = self.rig.store.replicas
        return replicas.get(VOLUME) or replicas.create(VOLUME, "vm1", SIZE, 512, CHUNK, 1)

    def records(self, *writes: tuple[int, bytes]) -> m.Append:
        """(offset, data) each, as one APPEND."""
        first = self.replica.held[0] + 1
        self.replica.serve(1)
        for offset, data in writes:
            self.rig.tend()
            request = Request(OP_WRITE, offset, len(data), data)
            self.replica.volume.core.submit([request], self.rig.clock.now_ns())
        self.replica.shut()
        buffer = bytearray(TAP_MIN_BUFFER)
        length, *_ = self.replica.volume.core.take(buffer)
        payload = (bytes(buffer[:length]),)
        return m.Append(VOLUME, 1, 1, first, self.replica.held[0], 0, payload)


def bytes_of(message: Message) -> int:
    return size_of(encode(message, Envelope(1, 2, 3)))


def pairs(at: int) -> list[tuple[int, bytes]]:
    """All of the content from chunk `at` on, in records that are not cut."""
    return [
        ((at + each) * CHUNK, CONTENT[each] + CONTENT[each + 1])
        for each in range(0, len(CONTENT), 2)
    ]


def all_known(ids: Sequence[ChunkId]) -> list[bool]:
    return [True] * len(ids)


def chunk_of(chunk_id: ChunkId) -> bytes:
    for each in CONTENT:
        if chunk_id_of(each) == chunk_id:
            return each
    raise CorruptChunk("there is none")


def writes() -> list[tuple[int, bytes]]:
    """Aligned and not, chunks and parts of them, and zeros."""
    return [
        (0, CONTENT[0] + CONTENT[1]),
        (9 * CHUNK, CONTENT[2]),
        (20 * CHUNK - 512, RNG.randbytes(512) + CONTENT[3] + CONTENT[4] + RNG.randbytes(1024)),
        (40 * CHUNK + 512, RNG.randbytes(2 * CHUNK - 1024)),
        (50 * CHUNK, bytes(CHUNK) + CONTENT[5]),
    ]


def test_a_brief_append_is_the_same_once_the_chunks_are_in_it() -> None:
    append = Store().records(*writes())
    brief = References(CHUNK, all_known).brief(append)
    assert brief is not None
    # The chunk of the fourth record's middle is whole too, if it has one; the ends never are.
    assert [row[2] for row in brief.references] == [
        *(chunk_id_of(each) for each in CONTENT[:5]),
        *(ZERO_ID, chunk_id_of(CONTENT[5])),
    ]
    received = over_the_wire(brief)
    assert isinstance(received, m.AppendBrief)
    made = whole(received, "vm1", CHUNK, chunk_of)
    assert isinstance(made, m.Append)
    assert b"".join(bytes(memoryview(each)) for each in made.payload) == append.payload[0]
    assert replace(made, payload=()) == replace(append, payload=())


def test_duplicates_of_what_both_have_cost_little_and_are_appended_whole() -> None:
    source, target = Store(), Store()
    content = [(at * CHUNK, CONTENT[at % 8]) for at in range(8)]
    first = source.records(*content)
    member = Member(target.replica, Quiet(0.0))
    assert isinstance(member.answer(over_the_wire(first), 1.0), m.Ack)  # type: ignore[arg-type]
    for each in (source, target):
        each.rig.settle()
    again = source.records(*pairs(32), *pairs(64))
    brief = References(CHUNK, source.replica.known).brief(again)
    assert brief is not None
    assert bytes_of(brief) < 0.03 * bytes_of(again)  # chunks of 4 KiB: of 64 KiB it is a tenth
    for _ in range(3):  # its journal has no room for all of it at once
        answer = member.answer(over_the_wire(brief), 2.0)  # type: ignore[arg-type]
        target.rig.settle()
    assert answer == m.Ack(1, source.replica.held[0], target.replica.held[1])
    target.rig = target.rig.killed()
    image = target.rig.read_version(f"vm1@seq:{source.replica.held[0]}")
    assert image[64 * CHUNK : 72 * CHUNK] == b"".join(CONTENT)


def test_a_chunk_that_is_missing_or_damaged_is_asked_for_and_never_made_up() -> None:
    source, target = Store(), Store()
    member = Member(target.replica, Quiet(0.0))
    source.records(*pairs(0))
    source.rig.settle()
    again = source.records(*pairs(32))
    brief = References(CHUNK, source.replica.known).brief(again)
    assert brief is not None
    lacks = member.answer(brief, 1.0)
    assert isinstance(lacks, m.Error)
    assert (lacks.code, lacks.detail) == (m.Code.LACKS, 8)
    assert target.replica.held[0] == 0

    def short(_: ChunkId) -> bytes:
        return b"another length"

    def broken(_: ChunkId) -> bytes:
        raise OSError(5, "cannot be read")

    for get in (short, broken):
        assert whole(brief, "vm1", CHUNK, get) == 8


def test_references_that_make_no_sense_are_refused() -> None:
    append = Store().records((0, CONTENT[0] + CONTENT[1]))
    brief = References(CHUNK, all_known).brief(append)
    assert brief is not None
    (_, at, one), (_, then, two) = brief.references
    for rows in (
        ((0, at, one), (0, at + 1, two)),  # within the first
        ((0, at, one), (0, 1 << 30, two)),
    ):
        with pytest.raises(BadRecords, match="a chunk belongs"):
            whole(replace(brief, references=rows), "vm1", CHUNK, chunk_of)
    with pytest.raises(BadRecords, match="chunks of 8192 bytes"):
        whole(replace(brief, chunk_size=8192), "vm1", CHUNK, chunk_of)
    bad = [
        replace(brief, references=((0, then, two), (0, at, one))),
        replace(brief, references=((0, at, one), (0, at, one))),
        replace(brief, references=((1, at, one),)),  # there is no such frame
        replace(brief, references=tuple((0, index, one) for index in range(9)), chunk_size=1 << 20),
    ]
    for each in bad:
        with pytest.raises(BadMessage):
            encode(each, Envelope(1, 2, 3))


def test_bytes_that_are_not_those_of_the_records_are_refused_by_the_journal() -> None:
    source, target = Store(), Store()
    append = source.records((0, CONTENT[0] + CONTENT[1]))
    brief = References(CHUNK, all_known).brief(append)
    assert brief is not None
    swapped = [chunk_id_of(CONTENT[1]), chunk_id_of(CONTENT[0])]
    rows = tuple(
        (frame, at, other) for (frame, at, _), other in zip(brief.references, swapped, strict=True)
    )
    made = whole(replace(brief, references=rows), "vm1", CHUNK, chunk_of)
    assert isinstance(made, m.Append)
    with pytest.raises(BadRecords):
        target.replica.append(1, 1, 1, 1, made.payload[0])
    assert target.replica.held[0] == 0


# -- when it is tried


class Lookups:
    def __init__(self, known: bool) -> None:
        self.known = known
        self.count = 0

    def __call__(self, ids: Sequence[ChunkId]) -> list[bool]:
        self.count += len(ids)
        return [self.known] * len(ids)


def large(first: int, length: int = 16 * CHUNK) -> m.Append:
    """One record; what is in it does not matter."""
    return m.Append(VOLUME, 1, 1, first, first, 0, (bytes(length),))


def test_short_records_are_never_looked_at() -> None:
    references = References(CHUNK, all_known)
    assert not references.worth(B, m.Append(VOLUME, 1, 1, 1, 100, 0, (bytes(99 * CHUNK),)))
    assert references.worth(B, large(1))


def test_looks_that_find_nothing_become_rare_and_come_back_with_the_first_that_does() -> None:
    lookups = Lookups(known=False)
    references = References(CHUNK, lookups)
    template = Store().records((0, b"".join(CONTENT)))
    looked = sent = 0
    for seq in range(1, 2001):
        append = replace(template, first_seq=seq, last_seq=seq)
        sent += len(append.payload[0])  # type: ignore[arg-type]
        if references.worth(B, append):
            looked += 1
            assert references.brief(append) is None
    assert lookups.count == looked < 20 + sent // MAX_SPACING
    lookups.known = True
    hits = 0
    for seq in range(3001, 3201):
        append = replace(template, first_seq=seq, last_seq=seq)
        hits += references.worth(B, append) and references.brief(append) is not None
    assert hits > 200 - MAX_SPACING // (8 * CHUNK) - 1


def test_the_other_members_get_what_was_made_for_the_first() -> None:
    lookups = Lookups(known=True)
    references = References(CHUNK, lookups)
    append = Store().records((0, b"".join(CONTENT)))
    references._spacing = MAX_SPACING  # the next look is far away
    references._passed = MAX_SPACING
    assert references.worth(B, append)
    assert references.worth(NodeId("cc" * 16), append)  # before that of the first is made
    made = references.brief(append)
    before = lookups.count
    assert references.worth(NodeId("dd" * 16), append)
    assert references.brief(append) is made
    assert lookups.count == before


def test_a_member_that_lacked_something_gets_whole_records_for_a_while() -> None:
    references = References(CHUNK, all_known)
    references.lacked(B)
    whole_bytes = 0
    while not references.worth(B, large(1)):
        whole_bytes += 16 * CHUNK
    assert DOUBT_BYTES - 16 * CHUNK <= whole_bytes <= DOUBT_BYTES + 16 * CHUNK
    references.lacked(B)
    longer = 0
    while not references.worth(B, large(1)):
        longer += 16 * CHUNK
    assert longer >= 2 * DOUBT_BYTES - 16 * CHUNK
    references.took(B)
    references.lacked(B)
    assert references.worth(NodeId("cc" * 16), large(2))


# -- where it is sent


class Wire:
    """What is around a primary: asks are noted, work is done at once."""

    def __init__(self, features: int) -> None:
        self.asked: list[tuple[m.Request, Callable[[Answered], None]]] = []
        self._features = features

    def features(self, node: bytes) -> int:
        assert node == bytes.fromhex(B)
        return self._features

    def clock(self) -> float:
        return 1.0

    def work(self, call: Callable[[], Any], then: Callable[[Any], None]) -> None:
        then(call())

    def ask(
        self,
        node: bytes,
        message: m.Request,
        timeout_s: float,
        then: Callable[[Answered], None],
    ) -> None:
        self.asked.append((message, then))


def leading(store: Store, wire: Wire) -> Leading:
    me = NodeId("aa" * 16)
    group = VolumeGroup(
        *(VOLUME.hex(), "vm1", 1, me, (me, B), 2, 2, Mode.MIRROR, None, "", GroupState.OPEN),
    )
    return Leading(
        *(cast(Around, wire), store.replica, group, me, Chain(((1, 1),)), GroupPolicy()),
        *(lambda: None, lambda _: None, lambda _: None, lambda: None),
    )


def known_again() -> tuple[Store, m.Append]:
    store = Store()
    store.records(*pairs(0))
    store.rig.settle()
    return store, store.records(*pairs(32))


def test_an_append_that_a_member_lacks_something_of_is_sent_whole() -> None:
    store, append = known_again()
    wire = Wire(int(m.FEATURES))
    leads = leading(store, wire)
    leads._send(Send(B, 7, append, 10.0))
    ((brief, then),) = wire.asked
    assert isinstance(brief, m.AppendBrief)
    then(Answered(1, m.Error(m.Code.LACKS, 1, "")))
    assert wire.asked[1][0] is append
    leads._send(Send(B, 8, append, 10.0))  # and so is the next
    assert wire.asked[2][0] is append


def test_a_member_that_does_not_know_references_gets_none() -> None:
    store, append = known_again()
    wire = Wire(0)
    leading(store, wire)._send(Send(B, 7, append, 10.0))
    assert wire.asked[0][0] is append
