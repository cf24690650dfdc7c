"""Chunks of states that no other member has brought into chunks are made again of what it has."""

import random
from collections.abc import Iterator
from typing import NoReturn

import pytest

from native import OP_WRITE, TAP_MIN_BUFFER, Request
from tests.sim.store_rig import StoreRig
from tests.unit.volume.test_replica import OPTIONS, VOLUME, Source, member
from tests.unit.volume.test_rescue import flip
from volume.chunks import chunk_id_of
from volume.errors import CorruptChunk, OutOfSpace
from volume.layout import ZERO_ID, ChunkId
from volume.remake import MAX_STATES, SPOTS_OF_CHUNK, Found, Remake, RemakeBusy, Spot
from volume.stripedpack import StripeUnavailable

CHUNK = 4096


class Apart:
    """A primary that brings each of `states` states into chunks, and a member that brings a later
    one: some of chunks 0 and 1 has been written again. Behind that there is one more write to a
    part of chunk 0, which is in no chunk yet."""

    def __init__(self, states: int = 1) -> None:
        self.source = Source()
        self.source.begin(1)
        self.ours = self.source.rig
        self.member, self.replica = member()
        self.ids: list[tuple[ChunkId, ChunkId]] = []
        for number in range(states):
            for index in range(2):
                self.write(random.Random(2 * number + index).randbytes(CHUNK), index * CHUNK)
            self.ours.settle()
            self.ours.store.destage()
            self.ids.append((self.chunk_id(0), self.chunk_id(1)))
        for index in range(2):
            self.write(b"m" * 512, index * CHUNK)
        self.member.settle()
        self.member.store.destage()
        self.write(b"w" * 512, 512)

    def write(self, data: bytes, at: int) -> None:
        for rig in (self.ours, self.member):
            rig.tend()
        core = self.source.core
        core.submit([Request(OP_WRITE, at, len(data), data)], self.ours.clock.now_ns())
        buffer = bytearray(TAP_MIN_BUFFER)
        length, first, last, _ = core.take(buffer)
        self.replica.append(1, 1, first, last, bytes(buffer[:length]))

    def chunk_id(self, index: int) -> ChunkId:
        head = self.source.replica.volume.head()
        found = self.ours.store.upkeep._parts.resolver.chunk_id(head, index)
        assert found != ZERO_ID
        return found

    @property
    def seq(self) -> int:
        """Of the state that the primary's head is in chunks."""
        return self.source.replica.volume.record.head.seq

    def damage(self, *indexes: int) -> list[ChunkId]:
        """Chunks of the head rot, and somebody has noticed."""
        return self._damaged([self.ids[-1][index] for index in indexes])

    def damage_states(self) -> list[ChunkId]:
        """Chunk 0 of each state."""
        return self._damaged([first for first, _ in self.ids])

    def _damaged(self, ids: list[ChunkId]) -> list[ChunkId]:
        flip(self.ours, *ids)
        for each in ids:
            self.ours.store._chunks.note_damage(each)
        return ids

    def check(self) -> None:
        """All states are the same on both."""
        newest = self.source.replica.held[0]
        for seq in (self.seq, newest):
            name = f"vm1@seq:{seq}"
            assert self.ours.read_version(name) == self.member.read_version(name)

    def spots_of(self, chunk_id: ChunkId) -> tuple[Spot, ...]:
        found = self.ours.store.chunk_repair.remake.spots([chunk_id])[chunk_id]
        assert found
        return found

    def remake(self) -> Remake:
        return self.member.store.chunk_repair.remake

    def newest(self) -> Spot:
        """Chunk 0 of the newest state, a part of which is in the log of the member only."""
        seq = self.replica.held[0]
        data = self.member.read_version(f"vm1@seq:{seq}")[:CHUNK]
        assert self.replica.volume.record.head.seq < seq
        return Spot(VOLUME, seq, 0, False, chunk_id_of(data))

    def below(self) -> ChunkId:
        """What of chunk 0 the member has in chunks."""
        resolver = self.member.store.upkeep._parts.resolver
        return resolver.chunk_id(self.replica.volume.head(), 0)


def test_a_chunk_that_a_member_never_had_is_made_again_of_its_log() -> None:
    life = Apart()
    bad = life.damage(0, 1)
    ours, theirs = life.ours.store.chunk_repair, life.member.store.chunk_repair
    assert theirs.give(bad, 1 << 20) == []
    spots = ours.remake.spots(bad)
    assert spots == {
        each: (Spot(VOLUME, life.seq, index * CHUNK, False, each),)
        for index, each in enumerate(bad)
    }
    found = theirs.remake.remade([*life.spots_of(bad[0]), *life.spots_of(bad[1])], 1 << 20)
    assert [each for each, _ in found] == bad
    assert ours.take(bad, found) == set(bad)
    assert ours.damaged() == []
    life.check()


def test_the_newest_states_of_a_chunk_are_told_and_no_more_than_are_of_use() -> None:
    life = Apart()
    seqs = []
    for number in range(SPOTS_OF_CHUNK + 2):
        life.write(bytes([number]) * 512, 0)
        life.ours.store.destage()
        seqs.append(life.seq)
    chunk = life.chunk_id(1)
    spots = life.spots_of(chunk)
    assert [each.seq for each in spots] == seqs[: -SPOTS_OF_CHUNK - 1 : -1]


def test_what_is_not_what_its_id_says_is_not_given() -> None:
    life = Apart()
    (good,) = life.damage(0)
    (spot,) = life.spots_of(good)
    wrong = [
        spot._replace(seq=spot.seq + 1),  # another state
        spot._replace(offset=CHUNK),  # another place
        spot._replace(offset=512),  # no place of a chunk
        spot._replace(offset=1 << 60),
        spot._replace(seq=1 << 40),  # not yet
        spot._replace(volume=b"x" * 16),
        spot._replace(chunk_id=bytes(31) + b"x"),
    ]
    for each in wrong:
        assert life.remake().remade([each], 1 << 20) == [], each
    assert life.remake().remade([spot], CHUNK - 1) == []
    assert [each for each, _ in life.remake().remade([*wrong[:6], spot], CHUNK)] == [good]


def test_no_more_states_are_made_than_one_request_may_ask_for() -> None:
    life = Apart()
    (good,) = life.damage(0)
    (spot,) = life.spots_of(good)
    others = [spot._replace(seq=spot.seq + 1 + number) for number in range(MAX_STATES)]
    assert life.remake().remade([*others, spot], 1 << 20) == []


def test_damage_of_the_member_itself_is_no_chunk_and_no_error() -> None:
    """What its state is over is damaged there: it does not have it, and says so."""
    life = Apart()
    newest = life.newest()
    assert [each for each, _ in life.remake().remade([newest], 1 << 20)] == [newest.chunk_id]
    flip(life.member, life.below())
    assert life.remake().remade([newest], 1 << 20) == []
    (good,) = life.damage(0)
    spots = life.spots_of(good)
    assert [each for each, _ in life.remake().remade(spots, 1 << 20)] == [good]


def test_what_hangs_on_a_stripe_that_is_away_is_not_told_as_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    life = Apart()
    newest = life.newest()

    def away(chunk_id: ChunkId, *, verify: bool = False) -> bytes:
        raise StripeUnavailable("two nodes are down")

    monkeypatch.setattr(life.member.store._chunks, "get", away)
    with pytest.raises(StripeUnavailable):
        life.remake().remade([newest], 1 << 20)


def node_damaged(life: Apart) -> ChunkId:
    """The root of the primary's tree rots."""
    chunks, root = life.ours.store._chunks, life.source.replica.volume.record.head.root
    located = chunks.locate(root)
    life.ours.disk.flip_bit(f"packs/{located.pack.number:08x}.pack", located.data_offset + 20)
    with pytest.raises(CorruptChunk):
        chunks.get(root)
    return root


def test_a_node_of_a_tree_that_a_member_never_had_is_made_again() -> None:
    life = Apart()
    root = node_damaged(life)
    ours, theirs = life.ours.store.chunk_repair, life.member.store.chunk_repair
    assert theirs.give([root], 1 << 20) == []
    spots = life.spots_of(root)
    assert spots == (Spot(VOLUME, life.seq, 0, True, root),)
    found = theirs.remake.remade(spots, 1 << 20)
    assert ours.take([root], found) == {root}
    assert ours.damaged() == []
    life.ours = life.ours.rebooted()
    assert life.ours.read_version(f"vm1@seq:{life.seq}") == life.member.read_version(
        f"vm1@seq:{life.seq}"
    )


def test_a_node_for_which_a_member_has_no_room_now_is_not_told_as_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    life = Apart()
    (bad,) = life.damage(1)
    where = life.spots_of(bad)
    root = node_damaged(life)
    spots = life.spots_of(root)

    def full(name: str) -> NoReturn:
        raise OutOfSpace("the disk is full")

    monkeypatch.setattr(life.member.store.versions, "settled", full)
    with pytest.raises(OutOfSpace):
        life.remake().remade(spots, 1 << 20)
    found = life.remake().remade([*spots, *where], 1 << 20)
    assert [each for each, _ in found] == [bad]


def test_where_a_chunk_belongs_that_may_be_below_a_damaged_node_cannot_be_told() -> None:
    life = Apart()
    (bad,) = life.damage(1)
    root = node_damaged(life)
    life.ours = life.ours.rebooted()  # it is not in memory
    ours = life.ours.store.chunk_repair.remake
    assert ours.spots([bad]) == {bad: None}
    assert ours.spots([bad, root]) == {bad: None, root: life.spots_of(root)}


def test_one_request_at_a_time_is_answered() -> None:
    life = Apart()
    (good,) = life.damage(0)
    (spot,) = life.spots_of(good)
    remake = life.remake()
    made = remake._made

    def nested(volume: bytes, seq: int, spots: list[Spot]) -> Iterator[Found]:
        with pytest.raises(RemakeBusy):
            remake.remade(spots, 1 << 20)
        return made(volume, seq, spots)

    remake._made = nested  # type: ignore[method-assign, assignment]
    assert remake.remade([spot], 1 << 20)
    assert remake.remade([spot], 1 << 20), "it is over"


def test_chunks_of_a_volume_that_no_other_node_has_belong_nowhere() -> None:
    rig = StoreRig(options=OPTIONS)
    rig.store.create_volume("vm1", 65536, chunk_size=CHUNK)
    rig.submit("vm1", Request(OP_WRITE, 0, CHUNK, b"x" * CHUNK))
    rig.settle()
    rig.store.destage()
    head = rig.volume("vm1").head()
    chunk = rig.store.upkeep._parts.resolver.chunk_id(head, 0)
    assert chunk != ZERO_ID
    assert rig.store.chunk_repair.remake.spots([chunk]) == {}
