"""Cloned ranges: what is shared and what is not, who keeps it alive, and damage below it.

That bytes, versions and crashes are right is told by the versions model; here are the cases that it
cannot see, or comes to too seldom."""

import errno
import logging
from dataclasses import replace
from pathlib import Path

import pytest

from native import OP_WRITE, Request
from tests.sim.faults import Fail, Fault
from tests.sim.store_rig import (
    KIB,
    SEGMENT_BYTES,
    SMALL,
    StoreRig,
    read_device,
    read_error,
)
from tests.unit.volume.rig import chunk
from volume.errors import CorruptData, JournalFull, NoSuchVersion
from volume.layout import META_PREFIX_TREE
from volume.options import StoreOptions
from volume.repair import LOG_NAME, rebuild_index
from volume.store import Store

CHUNK = 4 * KIB
COUNT = 6
SIZE = 16 * CHUNK
WINDOW = replace(SMALL, window_bytes=6 * SEGMENT_BYTES, window_s=600)


def content(first: int = 0, count: int = COUNT) -> bytes:
    return b"".join(chunk(number, CHUNK) for number in range(first, first + count))


@pytest.fixture
def rig() -> StoreRig:
    """ "a" with COUNT chunks, destaged, and "b", which is empty."""
    return new_rig(SMALL)


def new_rig(options: StoreOptions) -> StoreRig:
    rig = StoreRig(options=options)
    rig.store.create_volume("a", SIZE, chunk_size=CHUNK)
    rig.store.create_volume("b", SIZE, chunk_size=CHUNK)
    rig.fill("a", 0, content())
    rig.settle()
    return rig


def clone(rig: StoreRig, to: int, at: int, count: int, source: str = "a", name: str = "b") -> int:
    """In chunks; how many were shared."""
    volume = rig.volume(name)
    done = volume.clone_range(to * CHUNK, rig.volume(source), at * CHUNK, count * CHUNK)
    assert done % CHUNK == 0
    return done // CHUNK


def trees(rig: StoreRig) -> int:
    """Rows of trees that the log refers to."""
    return len(list(rig.meta.items(META_PREFIX_TREE)))


def pass_by(rig: StoreRig) -> None:
    """Long enough for upkeep to look at the window again, with rounds before and after."""
    for _ in range(2):
        rig.clock.advance(700.0)
        rig.settle()


# -- what is shared


def test_cold_range_is_one_record_without_a_round(rig: StoreRig) -> None:
    rounds = rig.store._destager.rounds
    lsn = rig.store.status().lsn
    put = rig.store._chunks.counters.put_count
    assert clone(rig, 2, 0, COUNT) == COUNT
    assert rig.store._destager.rounds == rounds
    assert rig.store.status().lsn - lsn <= 2  # and perhaps a mark
    assert rig.store._chunks.counters.put_count == put
    assert rig.read("b", 2 * CHUNK, COUNT * CHUNK) == content()


def test_round_stores_no_chunk_anew(rig: StoreRig) -> None:
    clone(rig, 2, 0, COUNT)
    counters = rig.store._chunks.counters
    before = counters.stored_raw_bytes
    rig.store.destage()
    assert counters.stored_raw_bytes - before < CHUNK  # a leaf and a commit
    assert rig.read("b", 2 * CHUNK, COUNT * CHUNK) == content()
    assert rig.killed().read("b", 2 * CHUNK, COUNT * CHUNK) == content()


def test_hot_source_comes_into_chunks_first(rig: StoreRig) -> None:
    assert rig.write("a", CHUNK + 512, b"x" * 512) == 0
    rounds = rig.store._destager.rounds
    assert clone(rig, 0, 1, 2) == 2
    assert rig.store._destager.rounds > rounds
    expected = bytearray(content(1, 2))
    expected[512:1024] = b"x" * 512
    assert rig.read("b", 0, 2 * CHUNK) == expected


def test_what_is_hot_beside_the_range_stays_hot(rig: StoreRig) -> None:
    assert rig.write("a", 5 * CHUNK, b"x" * 512) == 0
    rounds = rig.store._destager.rounds
    assert clone(rig, 0, 0, 5) == 5
    assert rig.store._destager.rounds == rounds


def test_clone_of_a_clone_that_is_hot(rig: StoreRig) -> None:
    assert clone(rig, 0, 0, 4) == 4
    assert clone(rig, 8, 1, 2, source="b") == 2
    assert rig.read("b", 8 * CHUNK, 2 * CHUNK) == content(1, 2)


def test_holes_come_along(rig: StoreRig) -> None:
    rig.fill("b", 0, content(50, 6))
    assert clone(rig, 0, 4, 10) == 10
    assert rig.read("b", 0, 10 * CHUNK) == content(4, 2) + bytes(8 * CHUNK)
    rig.store.destage()
    assert rig.extents("b", 0, 10 * CHUNK) == [(2 * CHUNK, 0), (8 * CHUNK, 3)]


def test_empty_volume_as_source(rig: StoreRig) -> None:
    rig.store.create_volume("empty", SIZE, chunk_size=CHUNK)
    rig.fill("b", 0, content())
    assert clone(rig, 0, 0, 3, source="empty") == 3
    assert trees(rig) == 0
    assert rig.read("b", 0, COUNT * CHUNK) == bytes(3 * CHUNK) + content(3, 3)
    rig.store.destage()
    assert rig.read("b", 0, COUNT * CHUNK) == bytes(3 * CHUNK) + content(3, 3)


def test_log_tells_of_it(rig: StoreRig) -> None:
    rig = new_rig(WINDOW)
    clone(rig, 2, 0, 4)
    (version,) = rig.store.versions.log("b", writes=True, limit=1).versions
    clone(rig, 9, 0, 2)
    found = rig.store.versions.log("b", writes=True).versions
    told = [each for each in found if each.kind == "clone"]
    assert version.kind == "head"
    assert [(each.seq, each.offset, each.bytes) for each in told] == [
        (1, 2 * CHUNK, 4 * CHUNK),
    ]


def test_past_version_as_source() -> None:
    rig = new_rig(WINDOW)
    assert rig.write("a", 0, b"x" * CHUNK) == 0
    seq = rig.store.info("a").seq
    assert rig.write("a", 0, b"y" * CHUNK) == 0
    device = rig.store.open_version(f"a@seq:{seq}")  # its first chunk is in the log only
    device.attach("copier")
    assert rig.volume("b").clone_range(0, device, CHUNK, 2 * CHUNK) == 2 * CHUNK
    assert rig.volume("b").clone_range(4 * CHUNK, device, 0, 2 * CHUNK) == 2 * CHUNK
    device.detach("copier")
    expected = content(1, 2) + bytes(2 * CHUNK) + b"x" * CHUNK + content(1, 1)
    assert rig.read("b", 0, 6 * CHUNK) == expected


def test_past_version_that_is_closed_is_no_source() -> None:
    rig = new_rig(WINDOW)
    device = rig.store.open_version(f"a@seq:{rig.store.info('a').seq}")
    rig.close_idle()
    assert rig.volume("b").clone_range(0, device, 0, CHUNK) == 0


# -- what is not


@pytest.mark.parametrize(
    ("to", "at", "length"), [(512, 0, CHUNK), (0, 512, CHUNK), (512, 512, CHUNK), (0, 0, 512)]
)
def test_unaligned_range_is_not_shared(rig: StoreRig, to: int, at: int, length: int) -> None:
    assert rig.volume("b").clone_range(to, rig.volume("a"), at, length) == 0
    assert rig.store.info("b").seq == 0


def test_rest_of_a_range_is_for_the_caller(rig: StoreRig) -> None:
    assert rig.volume("b").clone_range(0, rig.volume("a"), 0, 2 * CHUNK + 512) == 2 * CHUNK
    assert rig.read("b", 0, 3 * CHUNK) == content(0, 2) + bytes(CHUNK)


def test_range_ends_with_the_shorter_volume(rig: StoreRig) -> None:
    assert clone(rig, 14, 0, 5) == 2
    assert clone(rig, 0, 14, 5) == 2
    assert clone(rig, 16, 0, 1) == 0
    assert clone(rig, 0, 16, 1) == 0
    assert clone(rig, 0, 99, 1) == 0


def test_last_chunk_that_is_not_whole_is_not_shared(rig: StoreRig) -> None:
    rig.store.create_volume("odd", 2 * CHUNK + 512, block_size=512, chunk_size=CHUNK)
    assert clone(rig, 0, 0, 3, name="odd") == 2
    assert clone(rig, 0, 0, 3, source="odd") == 2


def test_overlapping_ranges_are_not_shared(rig: StoreRig) -> None:
    assert clone(rig, 1, 0, 2, name="a") == 0
    assert clone(rig, 0, 1, 2, name="a") == 0
    assert clone(rig, 2, 0, 2, name="a") == 2
    assert rig.read("a", 0, 4 * CHUNK) == content(0, 2) + content(0, 2)


def test_chunks_of_another_size_are_not_shared(rig: StoreRig) -> None:
    rig.store.create_volume("large", SIZE, chunk_size=4 * CHUNK)
    assert rig.volume("large").clone_range(0, rig.volume("a"), 0, 8 * CHUNK) == 0
    assert rig.volume("a").clone_range(0, rig.volume("large"), 0, 8 * CHUNK) == 0


def test_another_store_is_not_shared_with(rig: StoreRig) -> None:
    other = new_rig(SMALL)
    assert rig.volume("b").clone_range(0, other.volume("a"), 0, CHUNK) == 0
    assert rig.volume("b").clone_range(0, object(), 0, CHUNK) == 0


def test_deleted_volumes(rig: StoreRig) -> None:
    a, b = rig.volume("a"), rig.volume("b")
    rig.store.delete_volume("a")
    assert b.clone_range(0, a, 0, CHUNK) == 0
    rig.store.create_volume("c", SIZE, chunk_size=CHUNK)
    rig.store.delete_volume("b")
    with pytest.raises(OSError, match="shutdown"):
        b.clone_range(0, rig.volume("c"), 0, CHUNK)


def test_journal_without_room_gets_some(rig: StoreRig) -> None:
    rounds = rig.store._destager.rounds
    clones = 0
    while rig.store._destager.rounds == rounds and clones < 2000:
        clones += clone(rig, clones % 8, clones % COUNT, 1)
    assert clones < 2000
    last = clones - 1
    assert rig.read("b", last % 8 * CHUNK, CHUNK) == content(last % COUNT, 1)


def test_journal_that_stays_full_is_said_so(rig: StoreRig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rig.store._ranges, "_make_room", lambda: None)

    def fill_up() -> None:
        for _ in range(2000):
            clone(rig, 0, 0, 1)

    with pytest.raises(JournalFull):
        fill_up()


# -- who keeps it


def test_source_can_go_while_only_the_log_refers_to_it(rig: StoreRig) -> None:
    clone(rig, 2, 0, COUNT)
    rig.store.delete_volume("a")
    for _ in range(3):
        rig.store.collect()  # without a round
    assert trees(rig) == 1
    again = rig.killed()
    again.store.collect()
    for each in (rig, again):
        assert each.read("b", 2 * CHUNK, COUNT * CHUNK) == content()
        each.settle()
        assert each.read("b", 2 * CHUNK, COUNT * CHUNK) == content()


def test_versions_before_and_after_stay_without_source_and_volume() -> None:
    rig = new_rig(WINDOW)
    rig.fill("b", 0, content(50, 2))
    before = rig.store.info("b").seq
    clone(rig, 0, 0, COUNT)
    after = rig.store.info("b").seq
    assert after == before + 1
    rig.fill("b", 0, content(60, COUNT))  # before any round
    rig.store.delete_volume("a")
    rig.settle()
    rig.store.collect()
    for each in (rig, rig.killed()):
        assert each.read_version(f"b@seq:{before}")[: 2 * CHUNK] == content(50, 2)
        assert each.read_version(f"b@seq:{after}")[: COUNT * CHUNK] == content()
        assert each.read("b", 0, COUNT * CHUNK) == content(60)


def test_open_version_outlives_the_window() -> None:
    rig = new_rig(WINDOW)
    clone(rig, 0, 0, COUNT)
    seq = rig.store.info("b").seq
    rig.fill("b", 0, content(60, COUNT))
    device = rig.store.open_version(f"b@seq:{seq}")
    device.attach("reader")
    rig.store.delete_volume("a")
    rig.store.versions.set_policy("b", window_s=0, keep="")
    pass_by(rig)
    with pytest.raises(NoSuchVersion):
        rig.store.versions.restore("b", f"seq:{seq - 1}")
    assert read_device(device, 0, COUNT * CHUNK) == content()
    assert trees(rig) == 1
    device.detach("reader")
    pass_by(rig)
    pass_by(rig)
    assert trees(rig) == 0


@pytest.mark.parametrize("reopened", [False, True])
def test_what_nobody_needs_any_more_goes(rig: StoreRig, reopened: bool) -> None:
    clone(rig, 0, 0, COUNT)
    rig.store.delete_volume("a")
    rig.settle()
    assert rig.zero("b", 0, SIZE) == 0
    rig.settle()
    if reopened:
        rig = rig.killed()
    pass_by(rig)
    pass_by(rig)
    assert trees(rig) == 0
    space = rig.store.space()
    assert [row.logical_bytes for row in space.rows if row.kind == "head"] == [0]
    assert space.live_bytes < CHUNK


def test_append_that_fails_keeps_nothing(rig: StoreRig) -> None:
    rig.disk.faults.add(Fault("pwrite", Fail(errno.ENOSPC), "journal/*"))
    with pytest.raises(OSError, match="No space"):
        clone(rig, 0, 0, 1)
    assert trees(rig) == 1
    rig.clock.advance(2.0)
    rig.tend()
    assert trees(rig) == 0
    assert rig.read("b", 0, CHUNK) == bytes(CHUNK)


def test_space_counts_what_only_the_log_refers_to(rig: StoreRig) -> None:
    clone(rig, 0, 0, COUNT)
    live = rig.store.space().live_bytes
    rig.store.delete_volume("a")
    report = rig.store.space()
    assert live > report.live_bytes > COUNT * CHUNK
    assert {row.volume for row in report.rows} == {"b"}
    assert {name for name, _ in report.volumes} == {"b"}


# -- damage


def chunk_id(rig: StoreRig, name: str, index: int) -> bytes:
    head = rig.volume(name).record.head
    leaf = rig.store._manifests.lookup_leaf(head.root, head.height, 0)
    assert leaf is not None
    return leaf[index * 32 : index * 32 + 32]


def damage(rig: StoreRig, chunk_id: bytes) -> None:
    located = rig.store._chunks.locate(chunk_id)
    rig.disk.flip_bit(f"packs/{located.pack.number:08x}.pack", located.data_offset + 100)


def test_damage_below_a_cloned_range_is_an_error_that_names_it(
    rig: StoreRig, caplog: pytest.LogCaptureFixture
) -> None:
    clone(rig, 8, 0, COUNT)
    damaged = chunk_id(rig, "a", 2)
    damage(rig, damaged)
    for _ in range(2):  # in the log, then in chunks
        caplog.clear()
        with caplog.at_level(logging.ERROR):
            assert read_error(rig.volume("b"), 10 * CHUNK, CHUNK) == errno.EIO
        for each in ("volume b", f"offset {10 * CHUNK}", damaged.hex()):
            assert each in caplog.text
        assert rig.read("b", 8 * CHUNK, 2 * CHUNK) == content(0, 2)
        rig.store.destage()  # which does not read it


def test_damaged_chunk_below_a_cloned_range_heals_when_written_again(rig: StoreRig) -> None:
    clone(rig, 8, 0, COUNT)
    damage(rig, chunk_id(rig, "a", 2))
    assert read_error(rig.volume("b"), 10 * CHUNK, CHUNK) == errno.EIO
    assert rig.write("b", 0, content(2, 1)) == 0
    rig.store.destage()
    assert rig.read("b", 8 * CHUNK, COUNT * CHUNK) == content()


def test_source_whose_leaf_is_damaged_is_not_cloned(rig: StoreRig) -> None:
    """A round could not look up what it has to put elsewhere."""
    damage(rig, rig.volume("a").record.head.root)
    rig = rig.killed()
    with pytest.raises(CorruptData):
        clone(rig, 0, 0, 2)
    assert rig.store.info("b").seq == 0
    assert rig.write("b", 0, b"x" * 512) == 0
    assert rig.store.destage()


def test_write_into_a_part_of_a_damaged_chunk_leaves_the_rest_an_error(rig: StoreRig) -> None:
    clone(rig, 8, 0, COUNT)
    damage(rig, chunk_id(rig, "a", 2))
    assert rig.write("b", 10 * CHUNK, b"x" * 512) == 0
    assert rig.store.destage()
    assert read_error(rig.volume("b"), 10 * CHUNK, CHUNK) == errno.EIO
    assert rig.read("b", 8 * CHUNK, 2 * CHUNK) == content(0, 2)
    assert rig.write("b", 10 * CHUNK, b"y" * CHUNK) == 0
    assert rig.store.destage()
    assert rig.read("b", 10 * CHUNK, CHUNK) == b"y" * CHUNK


def test_gc_does_without_what_is_missing_below_the_log_only(rig: StoreRig) -> None:
    """As an older release may have removed it."""
    clone(rig, 0, 0, COUNT)
    missing = chunk_id(rig, "a", 2)
    rig.store.delete_volume("a")
    rig.store._index.remove([missing])
    rig.store.collect()
    report = rig.store.last_gc
    assert report is not None
    assert report.error is None
    assert rig.read("b", 0, 2 * CHUNK) == content(0, 2)
    assert read_error(rig.volume("b"), 2 * CHUNK, CHUNK) == errno.EIO


def test_repair_tells_what_the_log_misses(tmp_path: Path) -> None:
    options = replace(SMALL, segment_bytes=64 * KIB, journal_limit=1024 * KIB)
    options = replace(options, destage_age_s=3600.0, destage_idle_s=3600.0)
    path = tmp_path / "data"
    store = Store.open(path, options)
    for name in ("a", "b"):
        store.create_volume(name, SIZE, chunk_size=CHUNK)
    a, b = store.get("a"), store.get("b")
    assert a is not None
    assert b is not None
    a.submit([Request(OP_WRITE, 0, COUNT * CHUNK, content())], lambda _: None)
    assert b.clone_range(0, a, 0, COUNT * CHUNK) == COUNT * CHUNK
    store.delete_volume("a")
    store.close()
    report = rebuild_index(path)
    assert (report.missing_count, report.unreadable) == (0, ())
    (pack,) = (path / "packs").iterdir()
    pack.unlink()
    report = rebuild_index(path)
    assert report.missing_count > 0
    assert {location.name for location in report.missing} == {LOG_NAME}
