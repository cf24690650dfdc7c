"""Damaged chunks are stored anew from another store that has them, and nothing is lost by it."""

import random
from typing import Any

import pytest

import native
from tests.sim.crash import CrashState
from tests.sim.store_rig import StoreRig
from volume.chunks import StoredChunk, chunk_id_of
from volume.codecs import CODEC_LZ4, CODEC_NONE
from volume.errors import CorruptChunk, OutOfSpace
from volume.index import Place
from volume.layout import KIND_DATA, ChunkId

SIZE, CHUNK = 32 << 10, 4096
DATA = random.Random("data").randbytes(SIZE)
IDS = [chunk_id_of(DATA[offset : offset + CHUNK]) for offset in range(0, SIZE, CHUNK)]


def filled() -> StoreRig:
    rig = StoreRig()
    rig.store.create_volume("vm1", SIZE, chunk_size=CHUNK)
    rig.fill("vm1", 0, DATA)
    rig.flush("vm1")
    rig.settle()
    rig.store.destage()
    assert rig.read("vm1") == DATA
    return rig


def damaged(rig: StoreRig, count: int) -> list[ChunkId]:
    """So many chunks of sealed packs have a bit flipped, and scrub has found that."""
    chunks = rig.store._chunks
    rng = random.Random("damage")
    ids = []
    for number in rng.sample(range(SIZE // CHUNK), count):
        chunk_id = IDS[number]
        place = chunks.place(chunk_id)
        assert place is not None
        rig.disk.flip_bit(f"packs/{place.pack:08x}.pack", place.offset + 200)
        ids.append(chunk_id)
    scrub(rig)
    assert {each.chunk_id for each in rig.store.scrub_status().damages} == set(ids)
    return ids


def scrub(rig: StoreRig) -> None:
    chunks = rig.store._chunks
    chunks.packs.seal()
    rig.store.start_scrub()
    while rig.store.upkeep.scrubber.step(1.0):
        pass


def test_what_scrub_found_is_stored_anew_from_a_member_and_read_again() -> None:
    ours, theirs = filled(), filled()
    ids = damaged(ours, 3)
    repair = ours.store.chunk_repair
    assert set(repair.damaged()) == set(ids)
    offered = theirs.store.chunk_repair.give(repair.damaged(), 1 << 20)
    assert repair.take(ids, offered) == set(ids)
    assert repair.damaged() == []
    assert ours.read("vm1") == DATA
    scrub(ours)
    assert ours.store.scrub_status().damages == ()


def test_what_a_read_found_damaged_is_repaired_without_scrub() -> None:
    ours, theirs = filled(), filled()
    place = ours.store._chunks.place(IDS[3])
    assert place is not None
    ours.disk.flip_bit(f"packs/{place.pack:08x}.pack", place.offset + 200)
    repair = ours.store.chunk_repair
    assert repair.damaged() == []
    assert ours.read_error("vm1", 3 * CHUNK, CHUNK)
    assert repair.damaged() == [IDS[3]]
    assert repair.take(repair.damaged(), theirs.store.chunk_repair.give(IDS, 1 << 20))
    assert ours.read("vm1") == DATA
    assert repair.damaged() == []


def lost(rig: StoreRig, count: int) -> tuple[StoreRig, list[ChunkId]]:
    """So many chunks are in no pack any more, as a power cut finds them whose entries are damaged:
    the index is made anew of the others."""
    chunks = rig.store._chunks
    ids = IDS[2 : 2 + count]
    for chunk_id in ids:
        place = chunks.place(chunk_id)
        assert place is not None
        rig.disk.flip_bit(f"packs/{place.pack:08x}.pack", place.offset + 20)  # its header
    (path,) = {f"packs/{place.pack:08x}.pack" for each in ids if (place := chunks.place(each))}
    file = rig.disk.open(path)
    size = file.size()
    file.truncate(size - 1)  # not sealed: what is in it is looked for
    file.close()
    rig.disk.sync_dir("packs")
    back = rig.rebooted()
    assert [each for each in ids if back.store._chunks.place(each) is None] == ids
    return back, ids


def test_a_chunk_that_is_in_no_pack_any_more_is_repaired_when_it_is_read() -> None:
    (ours, ids), theirs = lost(filled(), 1), filled()
    repair = ours.store.chunk_repair
    assert repair.damaged() == []
    assert ours.read_error("vm1", 2 * CHUNK, CHUNK)
    assert repair.damaged() == ids
    offered = theirs.store.chunk_repair.give(ids, 1 << 20)
    assert repair.take(ids, offered) == set(ids)
    assert repair.damaged() == []
    assert ours.read("vm1") == DATA
    assert ours.rebooted().read("vm1") == DATA


def test_a_chunk_that_gc_misses_is_repaired_and_gc_goes_on() -> None:
    (ours, ids), theirs = lost(filled(), 2), filled()
    repair = ours.store.chunk_repair
    whole: set[ChunkId] = set()
    for _ in range(2):  # the commit, which was the last one in its pack; then what is below it
        with pytest.raises(CorruptChunk):
            ours.store.collect()
        missing = repair.damaged()
        whole |= repair.take(missing, theirs.store.chunk_repair.give(missing, 1 << 20))
    assert whole > set(ids)
    assert ours.store.collect().chunks_live
    assert ours.read("vm1") == DATA


def test_what_a_read_misses_is_taken_though_gc_begins_and_ends_meanwhile() -> None:
    (ours, ids), theirs = lost(filled(), 1), filled()
    repair = ours.store.chunk_repair
    assert ours.read_error("vm1", 2 * CHUNK, CHUNK)
    offered = theirs.store.chunk_repair.give(ids, 1 << 20)
    with pytest.raises(CorruptChunk):  # it misses the commit, and looks no further
        ours.store.collect()
    ours.store.upkeep.collector.run_now()
    assert repair.take(ids, offered) == set(ids)
    assert ours.read("vm1") == DATA


def test_what_gc_finds_that_nothing_needs_any_more_is_not_asked_for_again() -> None:
    rig = filled()
    chunks = rig.store._chunks
    chunks.note_lost(bytes(31) + b"x")
    rig.store.collect(dry_run=True)
    assert chunks.is_lost(bytes(31) + b"x"), "it has changed nothing"
    rig.store.collect()
    assert chunks.lost() == []


def test_the_chunks_that_were_missed_last_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("volume.chunks.MAX_DAMAGED", 2)
    chunks = filled().store._chunks
    names = [bytes(31) + bytes([number]) for number in range(3)]
    for name in (names[0], names[1], names[0], names[2]):
        chunks.note_lost(name)
    assert chunks.lost() == [names[0], names[2]]


def test_a_chunk_that_nothing_needs_is_not_taken_nor_asked_for() -> None:
    (ours, ids), theirs = lost(filled(), 1), filled()
    repair = ours.store.chunk_repair
    assert repair.take(ids, theirs.store.chunk_repair.give(ids, 1 << 20)) == set()
    assert theirs.store.chunk_repair.give([bytes(31) + b"x"], 1 << 20) == []
    assert theirs.store.chunk_repair.damaged() == []


def test_only_what_fits_and_is_whole_is_given() -> None:
    rig = filled()
    (bad,) = damaged(rig, 1)
    repair = rig.store.chunk_repair
    given = [each for each, _ in repair.give([*IDS, bytes(31) + b"x"], 4 * CHUNK)]
    assert given == [each for each in IDS if each != bad][:4]


def test_all_that_is_taken_is_stored_though_more_is_damaged_than_is_remembered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("volume.chunks.MAX_DAMAGED", 1)
    ours, theirs = filled(), filled()
    ids = damaged(ours, 3)
    offered = theirs.store.chunk_repair.give(ids, 1 << 20)
    assert ours.store.chunk_repair.take(ids, offered) == set(ids)
    assert ours.read("vm1") == DATA
    scrub(ours)
    assert ours.store.scrub_status().damages == ()


def test_what_there_is_no_room_for_is_not_in_the_way_of_gc(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours, theirs = filled(), filled()
    ids = damaged(ours, 2)
    packs, repair = ours.store._chunks.packs, ours.store.chunk_repair
    offered = theirs.store.chunk_repair.give(ids, 1 << 20)
    append, rooms = packs.append, iter([True, False])

    def append_one(*entry: Any) -> Place:
        if not next(rooms):
            raise OutOfSpace("packs: no space")
        return append(*entry)

    with monkeypatch.context() as patch:
        patch.setattr(packs, "append", append_one)
        with pytest.raises(OutOfSpace):
            repair.take(ids, offered)
    assert ours.store._chunks.pending_count == 0
    ours.store.collect()
    assert repair.take(ids, offered) == set(ids)
    assert ours.read("vm1") == DATA


def packed_into_its_own_length() -> tuple[bytes, bytes]:
    """A chunk, and the same packed by LZ4, which gains nothing by it."""
    noise = random.Random("noise").randbytes(CHUNK)
    for zeros in range(CHUNK):
        data = noise[: CHUNK - zeros] + bytes(zeros)
        if (packed := native.encode(CODEC_LZ4, data, CHUNK)) and len(packed) == CHUNK:
            return data, packed
    raise AssertionError("there is no such chunk")


def test_what_is_packed_as_no_pack_has_it_is_refused() -> None:
    """Volumes could not read it, though its bytes are right."""
    ours = filled()
    data, packed = packed_into_its_own_length()
    ours.fill("vm1", 0, data)
    ours.flush("vm1")
    ours.store.destage()
    chunk_id = chunk_id_of(data)
    place = ours.store._chunks.place(chunk_id)
    assert place is not None
    ours.disk.flip_bit(f"packs/{place.pack:08x}.pack", place.offset + 200)
    assert ours.read_error("vm1", 0, CHUNK)
    repair = ours.store.chunk_repair
    offered = [(chunk_id, StoredChunk(KIND_DATA, CODEC_LZ4, CHUNK, packed))]
    assert repair.take([chunk_id], offered) == set()
    assert repair.damaged() == [chunk_id]
    good = [(chunk_id, StoredChunk(KIND_DATA, CODEC_NONE, CHUNK, data))]
    assert repair.take([chunk_id], good) == {chunk_id}
    assert ours.read("vm1") == data + DATA[CHUNK:]


def test_repair_never_destroys_data() -> None:
    """Whatever is offered, and wherever the power goes: what could be read is read as it was, and
    what is damaged is an error or what it has to be."""
    ours, theirs = filled(), filled()
    ids = damaged(ours, 2)
    repair = ours.store.chunk_repair
    (good,) = theirs.store.chunk_repair.give(ids[:1], 1 << 20)
    _, other = theirs.store.chunk_repair.give(ids, 1 << 20)
    raw = good[1].stored
    hostile = [
        (ids[1], StoredChunk(KIND_DATA, CODEC_NONE, CHUNK, bytes(CHUNK))),  # zeros
        (ids[1], good[1]),  # another chunk
        (ids[1], StoredChunk(KIND_DATA, CODEC_NONE, CHUNK, raw[:-1])),  # short
        (ids[1], StoredChunk(KIND_DATA, 99, CHUNK, raw)),  # of a codec that nobody knows
        (bytes(31) + b"x", good[1]),  # not asked for
    ]
    assert repair.take(ids, hostile) == set()
    state = CrashState(ours.disk.trace)
    before = len(ours.disk.trace.ops)
    for op in ours.disk.trace.ops:
        state.apply(op)
    assert repair.take(ids, [*hostile, good]) == {ids[0]}
    bad = next(offset for offset in range(0, SIZE, CHUNK) if ours.read_error("vm1", offset, CHUNK))
    assert DATA[bad : bad + CHUNK] == other[1].stored
    for at, op in enumerate(ours.disk.trace.ops[before:]):
        state.apply(op)
        back = ours.rebooted(state.drawn("cut", random.Random(at)))
        wrong = 0
        for offset in range(0, SIZE, CHUNK):
            if back.read_error("vm1", offset, CHUNK):
                wrong += 1
            else:
                assert back.read("vm1", offset, CHUNK) == DATA[offset : offset + CHUNK]
        assert 1 <= wrong <= 2
    assert repair.take(ids, [other]) == {ids[1]}
    assert ours.read("vm1") == DATA
