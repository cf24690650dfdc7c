"""Reads of damaged chunks wait for what others have of them: how long, how many, who goes on."""

import errno
import queue

import pytest

from native import OP_BLOCK_STATUS, OP_READ, Request
from tests.sim.store_rig import StoreRig
from tests.unit.volume.test_chunkrepair import CHUNK, DATA, IDS, SIZE, filled
from volume import chunkrepair, rescue
from volume.chunks import StoredChunk, chunk_id_of
from volume.layout import KIND_NODE, ChunkId
from volume.rescue import MISSED_S, WAIT_S, Rescue

SLOW_S = 60.0


class Asked:
    """Who is asked for chunks; what it brings is up to the test."""

    def __init__(self, rig: StoreRig, theirs: StoreRig | None = None) -> None:
        self.rig = rig
        self.theirs = theirs or filled()
        self.ids: list[ChunkId] = []
        rig.store.chunk_repair.rescue.serve(self.ids.append)

    def bring(self, chunk_id: ChunkId) -> bool:
        ((_, chunk),) = self.theirs.store.chunk_repair.give([chunk_id], 1 << 20)
        return self.rig.store.chunk_repair.bring(chunk_id, chunk)

    def miss(self, chunk_id: ChunkId) -> None:
        self.rig.store.chunk_repair.rescue.missed(chunk_id)


def flip(rig: StoreRig, *chunk_ids: ChunkId) -> None:
    for chunk_id in chunk_ids:
        place = rig.store._chunks.place(chunk_id)
        assert place is not None
        rig.disk.flip_bit(f"packs/{place.pack:08x}.pack", place.offset + 200)


def read(rig: StoreRig, offset: int, length: int) -> tuple[Request, list[Request]]:
    """A read, and where it is found once it is finished."""
    request, finished = Request(OP_READ, offset, length), list[Request]()
    rig.volume("vm1").submit([request], finished.extend)
    return request, finished


def counted(rig: StoreRig) -> tuple[int, int]:
    counters = rig.store.counters()
    return counters.repaired_reads, counters.unrepaired_reads


def test_read_of_a_damaged_chunk_is_answered_by_what_is_brought_and_it_is_stored_anew() -> None:
    rig = filled()
    asked = Asked(rig)
    flip(rig, IDS[3])
    request, finished = read(rig, 0, SIZE)
    assert (finished, asked.ids) == ([], [IDS[3]])
    assert asked.bring(IDS[3])
    assert finished == [request]
    assert (request.error, request.data) == (0, DATA)
    repair = rig.store.chunk_repair
    assert repair.damaged() == [IDS[3]], "not stored anew yet"
    assert rig.read("vm1") == DATA, "nor asked for again"
    assert repair.store_brought() == {IDS[3]}
    assert repair.damaged() == []
    assert repair.rescue.get(IDS[3]) is None
    assert rig.rebooted().read("vm1") == DATA
    assert counted(rig) == (1, 0)


def test_alone_a_damaged_chunk_is_an_error_at_once() -> None:
    rig = filled()
    flip(rig, IDS[3])
    assert rig.read_error("vm1", 3 * CHUNK, CHUNK) == errno.EIO
    assert counted(rig) == (0, 0)


def test_each_damaged_chunk_of_a_read_is_waited_for() -> None:
    rig = filled()
    asked = Asked(rig)
    flip(rig, *IDS)
    request, finished = read(rig, 0, SIZE)
    for each in IDS:
        assert asked.ids[-1] == each
        assert asked.bring(each)
    assert finished == [request]
    assert request.data == DATA
    assert rig.store.chunk_repair.store_brought() == set(IDS)


def test_a_second_read_shares_the_wait_of_the_first() -> None:
    rig = filled()
    asked = Asked(rig)
    flip(rig, IDS[3])
    first, second = read(rig, 3 * CHUNK, CHUNK), read(rig, 3 * CHUNK + 512, 512)
    assert asked.ids == [IDS[3]]
    asked.bring(IDS[3])
    assert [each.error for each, _ in (first, second)] == [0, 0]
    assert second[0].data == DATA[3 * CHUNK + 512 : 3 * CHUNK + 1024]
    assert len(first[1]) == len(second[1]) == 1
    assert counted(rig) == (2, 0)


def test_what_nobody_has_is_an_error_and_for_a_while_so_at_once() -> None:
    rig = filled()
    asked = Asked(rig)
    flip(rig, IDS[3])
    request, finished = read(rig, 3 * CHUNK, CHUNK)
    asked.miss(IDS[3])
    assert finished == [request]
    assert request.error == errno.EIO
    assert rig.read_error("vm1", 3 * CHUNK, CHUNK) == errno.EIO
    assert len(asked.ids) == 1
    rig.clock.advance(MISSED_S)
    read(rig, 3 * CHUNK, CHUNK)
    assert len(asked.ids) == 2
    assert counted(rig) == (0, 1)


def test_what_does_not_come_in_time_is_an_error_and_late_it_is_used_all_the_same() -> None:
    rig = filled()
    asked = Asked(rig)
    flip(rig, IDS[3])
    request, finished = read(rig, 3 * CHUNK, CHUNK)
    rig.clock.advance(WAIT_S - 0.1)
    rig.store.chunk_repair.rescue.expire()
    assert finished == []
    second, second_finished = read(rig, 3 * CHUNK, CHUNK)
    rig.clock.advance(0.1)
    rig.store.chunk_repair.rescue.expire()
    assert (finished, second_finished) == ([request], [second]), "no longer than the first"
    assert request.error == second.error == errno.EIO
    assert asked.bring(IDS[3])
    assert rig.read("vm1") == DATA


def test_garbage_wakes_nobody() -> None:
    rig = filled()
    asked = Asked(rig)
    flip(rig, IDS[3])
    request, finished = read(rig, 3 * CHUNK, CHUNK)
    repair = rig.store.chunk_repair
    good = asked.theirs.store.chunk_repair.give([IDS[3]], 1 << 20)[0][1]
    for chunk in (
        good._replace(stored=bytes(CHUNK)),
        good._replace(stored=good.stored[:-1]),
        good._replace(codec=99),
        good._replace(kind=KIND_NODE),
        StoredChunk(good.kind, good.codec, 1 << 40, good.stored),
    ):
        assert not repair.bring(IDS[3], chunk)
    assert finished == []
    assert repair.bring(IDS[3], good)
    assert request.data == DATA[3 * CHUNK : 4 * CHUNK]


def test_whoever_waits_fails_when_it_ends_and_nobody_waits_from_then_on() -> None:
    rig = filled()
    asked = Asked(rig)
    flip(rig, IDS[3])
    request, finished = read(rig, 3 * CHUNK, CHUNK)
    rig.store.close()
    assert finished == [request]
    assert request.error == errno.EIO
    assert rig.store.chunk_repair.rescue.waiting == 0
    assert not rig.store.chunk_repair.rescue.wait(IDS[3], CHUNK, lambda came: None)
    assert asked.ids == [IDS[3]]


def test_damaged_node_of_a_manifest_is_waited_for_by_reads_and_by_block_status() -> None:
    rig = filled()
    root = rig.volume("vm1").head().root
    rig = rig.closed()
    asked = Asked(rig)
    flip(rig, root)
    status, told = Request(OP_BLOCK_STATUS, 0, SIZE), list[Request]()
    rig.volume("vm1").submit([status], told.extend)
    request, finished = read(rig, 0, SIZE)
    assert asked.ids == [root]
    assert asked.bring(root)
    assert (told, finished) == ([status], [request])
    assert (status.error, status.data) == (0, [(SIZE, 0)])
    assert request.data == DATA
    assert rig.store.chunk_repair.store_brought() == {root}


def test_write_over_a_part_of_what_was_brought_loses_nothing() -> None:
    rig = filled()
    asked = Asked(rig)
    flip(rig, IDS[3])
    read(rig, 3 * CHUNK, CHUNK)
    asked.bring(IDS[3])
    rig.write("vm1", 3 * CHUNK, b"x" * 512)
    rig.settle()
    expected = DATA[: 3 * CHUNK] + b"x" * 512 + DATA[3 * CHUNK + 512 :]
    assert rig.read("vm1") == expected


def test_chunk_of_which_a_part_was_lost_is_not_asked_for() -> None:
    rig = filled()
    flip(rig, IDS[3])
    rig.write("vm1", 3 * CHUNK, b"x" * 512)
    rig.settle()
    asked = Asked(rig)
    assert rig.read_error("vm1", 3 * CHUNK, CHUNK) == errno.EIO
    assert asked.ids == []


def test_what_can_be_waited_for_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    woken: list[bool] = []
    monkeypatch.setattr(rescue, "MAX_READS", 3)
    monkeypatch.setattr(rescue, "MAX_CHUNKS", 2)
    monkeypatch.setattr(rescue, "MAX_BYTES", 100)
    waits = Rescue(lambda: 0.0)
    waits.serve(lambda chunk_id: None)
    assert waits.wait(IDS[0], 60, woken.append)
    assert not waits.wait(IDS[0], 60, woken.append), "bytes"
    assert waits.wait(IDS[1], 1, woken.append)
    assert not waits.wait(IDS[2], 1, woken.append), "chunks"
    assert waits.wait(IDS[0], 1, woken.append)
    assert not waits.wait(IDS[0], 1, woken.append), "reads"
    waits.brought(IDS[0], b"a" * CHUNK)
    assert woken == [True, True]
    assert waits.wait(IDS[2], 60, woken.append), "all of it is free again"
    waits.end()
    assert woken == [True, True, False, False]


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rescue, "KEPT_BYTES", 2 * CHUNK)
    waits = Rescue(lambda: 0.0)
    for each in IDS[:3]:
        waits.brought(each, bytes(CHUNK))
    assert [waits.get(each) is not None for each in IDS[:3]] == [False, True, True]
    waits.forget(IDS)
    for each in IDS[:2]:
        waits.brought(each, bytes(CHUNK))
    assert [waits.get(each) is not None for each in IDS[:3]] == [True, True, False]


def test_what_is_to_be_stored_anew_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunkrepair, "KEPT_BYTES", 2 * CHUNK)
    rig = filled()
    asked = Asked(rig)
    flip(rig, *IDS[:3])
    request, _ = read(rig, 0, SIZE)
    for each in IDS[:3]:
        asked.bring(each)
    assert request.data == DATA
    assert rig.store.chunk_repair.store_brought() == set(IDS[1:3])
    assert rig.store.chunk_repair.damaged() == [IDS[0]], "the next round asks for it"


def test_packed_chunk_that_a_range_was_cloned_from_is_brought_too() -> None:
    data = b"".join(bytes([number]) * CHUNK for number in range(1, 9))
    ours, theirs = StoreRig(), StoreRig()
    for rig in (ours, theirs):
        rig.store.create_volume("vm1", 2 * SIZE, chunk_size=CHUNK, compression="lz4")
        rig.fill("vm1", 0, data)
        rig.settle()
    assert ours.volume("vm1").clone_range(SIZE, ours.volume("vm1"), 0, SIZE) == SIZE
    bad = chunk_id_of(data[:CHUNK])
    place = ours.store._chunks.place(bad)
    assert place is not None
    assert place.stored_length < CHUNK
    ours.disk.flip_bit(f"packs/{place.pack:08x}.pack", place.offset + 64 + place.stored_length)
    asked = Asked(ours, theirs)
    request, finished = read(ours, SIZE, SIZE)
    assert (finished, asked.ids) == ([], [bad])
    assert asked.bring(bad)
    assert request.data == data


@pytest.mark.parametrize("threads", [1, 4])
def test_no_thread_that_reads_waits_with_a_read(threads: int) -> None:
    """More reads wait than there are threads, and another one is served meanwhile."""
    rig, theirs = filled(), filled()
    flip(rig, *IDS[:6])
    asked, done = queue.SimpleQueue[ChunkId](), queue.SimpleQueue[list[Request]]()
    repair = rig.store.chunk_repair
    repair.rescue.serve(asked.put)
    rig.store._reader.start(threads)
    requests = [Request(OP_READ, number * CHUNK, CHUNK) for number in range(8)]
    _, slow, _, _ = rig.volume("vm1").core.submit(requests, rig.clock.now_ns())
    assert slow[:6] == requests[:6]
    rig.store._reader.submit(rig.volume("vm1").target(), slow[:6], done.put)
    assert {asked.get(timeout=SLOW_S) for _ in range(6)} == set(IDS[:6])
    rig.store._reader.submit(rig.volume("vm1").target(), [requests[7]], done.put)
    assert done.get(timeout=SLOW_S) == [requests[7]]
    for chunk_id, chunk in theirs.store.chunk_repair.give(IDS[:6], 1 << 20):
        assert repair.bring(chunk_id, chunk)
    finished = [done.get(timeout=SLOW_S)[0] for _ in range(6)]
    assert {id(each) for each in finished} == {id(each) for each in requests[:6]}
    for number, each in enumerate(requests[:6]):
        assert (each.error, each.data) == (0, DATA[number * CHUNK : (number + 1) * CHUNK])
    rig.store.close()
