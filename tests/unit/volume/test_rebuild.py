"""A lost meta/ made anew: of packs and journal alone, or with an old copy of it."""

from collections.abc import Callable, Mapping
from random import Random

import pytest

from tests.sim.simdisk import SimDisk
from tests.sim.store_rig import KIB, SMALL, StoreRig
from volume.errors import CorruptData, NoSuchVersion
from volume.kv import MemoryKeyValue
from volume.rebuild import RebuildReport, look
from volume.rebuildplan import RebuiltVolume

SIZE = 64 * KIB


def opened(name: str = "v") -> StoreRig:
    rig = StoreRig()
    rig.tend()
    rig.store.create_volume(name, SIZE, chunk_size=4 * KIB)
    return rig


def rebuilt(
    rig: StoreRig, base: Mapping[bytes, bytes] | None = None
) -> tuple[StoreRig, RebuildReport]:
    """The store killed, and opened again with a meta/ that was made anew."""
    disk = SimDisk(rig.disk.image())
    report = look(disk, MemoryKeyValue(), base, rig.clock)
    again = StoreRig(disk.image(), report.plan.items, options=rig.options, clock=rig.clock)
    return again, report


def volumes(report: RebuildReport) -> dict[str, RebuiltVolume]:
    return {volume.name: volume for volume in report.plan.volumes}


def rounds(rig: StoreRig, count: int) -> None:
    """So much that the first segments and packs are used again, or gone."""
    for turn in range(count):
        block(rig, "v", 4 + turn % 4, bytes([turn + 10]))
        rig.settle()


def block(rig: StoreRig, name: str, number: int, fill: bytes) -> None:
    assert rig.write(name, number * 4096, fill * 4096) == 0


# -- without a copy


def test_a_volume_is_what_it_was_with_what_was_in_chunks_and_what_was_not() -> None:
    rig = opened()
    block(rig, "v", 0, b"1")
    rig.settle()
    block(rig, "v", 1, b"2")
    expected, info = rig.read("v"), rig.store.info("v")
    again, report = rebuilt(rig)
    assert report.whole
    assert again.read("v") == expected
    found = again.store.info("v")
    assert (found.uuid, found.size, found.block_size) == (info.uuid, info.size, info.block_size)
    again.settle()
    assert again.killed().read("v") == expected


def test_a_volume_that_was_never_destaged_is_in_the_journal_alone() -> None:
    rig = opened()
    block(rig, "v", 3, b"j")
    again, report = rebuilt(rig)
    assert again.read("v") == rig.read("v")
    assert volumes(report)["v"].known_by == "journal"


def test_volumes_are_told_apart_long_after_they_were_made() -> None:
    """Their HEAD records are written again before the segment that has the last one goes."""
    rig = opened("a")
    rig.store.create_volume("b", SIZE, chunk_size=4 * KIB)
    block(rig, "a", 0, b"a")
    for turn in range(40):
        block(rig, "b", turn % 8, bytes([turn + 1]))
        rig.settle()
    block(rig, "a", 1, b"A")
    expected = rig.read("a"), rig.read("b")
    again, report = rebuilt(rig)
    assert report.whole
    assert {volume.known_by for volume in report.plan.volumes} == {"journal"}
    assert (again.read("a"), again.read("b")) == expected


def test_a_restored_volume_is_what_it_was_restored_to_and_what_followed() -> None:
    rig = opened()
    block(rig, "v", 0, b"1")
    rig.store.snapshots.create("s", ["v"])
    block(rig, "v", 0, b"2")
    block(rig, "v", 1, b"2")
    rig.store.destage()
    rig.store.versions.restore("v", "s")
    block(rig, "v", 2, b"3")
    expected = rig.read("v")
    again, report = rebuilt(rig)
    assert report.whole
    assert again.read("v") == expected


def test_a_clone_is_its_source_and_what_was_written_to_it() -> None:
    rig = opened()
    block(rig, "v", 0, b"1")
    rig.store.versions.clone("v", "w")
    block(rig, "w", 1, b"w")
    expected = rig.read("w")
    again, _ = rebuilt(rig)
    assert again.read("w") == expected
    assert again.read("v") == rig.read("v")


def test_names_and_sizes_are_the_newest() -> None:
    rig = opened()
    block(rig, "v", 0, b"1")
    rig.settle()
    rig.store.rename_volume("v", "w")
    rig.store.resize_volume("w", 2 * SIZE)
    again, _ = rebuilt(rig)
    assert again.store.names() == ["w"]
    assert again.read("w") == rig.read("w")


def test_a_deleted_volume_stays_deleted() -> None:
    rig = opened()
    rig.store.create_volume("gone", SIZE)
    block(rig, "gone", 0, b"g")
    rig.store.destage()
    rig.store.delete_volume("gone")
    again, _ = rebuilt(rig)
    assert again.store.names() == ["v"]


def test_snapshots_of_which_the_journal_tells_keep_their_names() -> None:
    rig = opened()
    block(rig, "v", 0, b"1")
    rig.store.snapshots.create("chunks", ["v"])
    rig.store.destage()
    block(rig, "v", 0, b"2")
    rig.store.snapshots.create("log", ["v"])
    block(rig, "v", 0, b"3")
    again, report = rebuilt(rig)
    assert report.whole
    for name, fill in (("chunks", b"1"), ("log", b"2")):
        assert again.read_version(f"v@{name}")[:4096] == fill * 4096
    again.settle()
    assert again.killed().read_version("v@log")[:4096] == b"2" * 4096


def test_versions_whose_names_are_lost_get_others_and_stay() -> None:
    rig = opened()
    block(rig, "v", 0, b"1")
    rig.store.snapshots.create("s", ["v"])
    rig.settle()
    rounds(rig, 20)
    again, _ = rebuilt(rig)
    names = [info.name for info in again.store.snapshots.all("v")]
    assert "s" not in names
    (name,) = [name for name in names if name.startswith("recovered-") and name.endswith("Z-1")]
    again.settle()
    assert again.read_version(f"v@{name}")[:4096] == b"1" * 4096


def test_single_writes_before_the_rebuild_cannot_be_gone_back_to() -> None:
    """And are refused, instead of being put together of what is left."""
    rig = StoreRig()
    rig = StoreRig(options=SMALL)
    rig.tend()
    rig.store.create_volume("v", SIZE, chunk_size=4 * KIB)
    for turn in range(6):
        block(rig, "v", turn, bytes([turn + 1]))
    rig.store.destage()
    block(rig, "v", 7, b"h")
    again, _ = rebuilt(rig)
    with pytest.raises(NoSuchVersion):
        again.read_version("v@seq:3")
    assert again.read_version("v@seq:7") == again.read("v")


def test_numbers_are_not_given_again() -> None:
    rig = opened()
    rig.store.create_volume("last", SIZE)
    block(rig, "last", 0, b"l")
    rig.store.delete_volume("last")
    again, _ = rebuilt(rig)
    again.store.create_volume("new", SIZE)
    assert again.volume("new").record.number == 3
    assert again.killed().read("new", 0, 4096) == bytes(4096)


def test_writes_of_a_volume_that_nothing_names_are_kept_and_said_to_be_less() -> None:
    rig = opened()
    rig.flush("v")
    rig.store._catalog.append_head = lambda *_args, **_words: None  # type: ignore[method-assign]
    rig.store.create_volume("older", SIZE)  # as a release did that wrote no HEAD record
    block(rig, "older", 1, b"o")
    again, report = rebuilt(rig)
    assert not report.whole
    volume = volumes(report)["recovered-number-2"]
    assert "only its last writes" in volume.lacks[0]
    assert again.read("recovered-number-2", 4096, 4096) == b"o" * 4096


# -- with damage


def test_what_lacks_chunks_is_not_found_under_its_name() -> None:
    rig = opened()
    block(rig, "v", 0, b"1")
    rounds(rig, 20)
    block(rig, "v", 1, b"2")
    for name in rig.disk.list("packs"):
        rig.disk.unlink(f"packs/{name}")
    again, report = rebuilt(rig)
    (volume,) = report.plan.volumes
    assert volume.name == f"recovered-{volume.uuid[:8]}"
    assert "are in no pack" in volume.lacks[0]
    assert again.read(volume.name, 4096, 4096) == b"2" * 4096
    assert again.read_error(volume.name, 0, 4096) != 0


def test_a_lost_segment_is_a_gap_that_is_said() -> None:
    rig = opened()
    for turn in range(8):
        rig.tend()
        block(rig, "v", turn, bytes([turn + 1]))
    paths = sorted(rig.disk.list("journal"))
    rig.disk.unlink(f"journal/{paths[0]}")
    _, report = rebuilt(rig)
    assert any(
        "the journal lacks" in why or "only its last" in why
        for volume in report.plan.volumes
        for why in volume.lacks
    )


def test_files_of_two_stores_are_refused() -> None:
    rig, other = opened(), StoreRig(seed=7)
    other.tend()
    other.store.create_volume("o", SIZE)
    file = other.disk.open("journal/00000000.seg", read_only=True)
    disk = SimDisk(rig.disk.image())
    disk.open("journal/00000009.seg", create=True).pwrite(file.pread(1 << 20, 0), 0)
    with pytest.raises(CorruptData, match="move"):
        look(disk, MemoryKeyValue(), None, rig.clock)


# -- with a copy


def later(rig: StoreRig) -> None:
    """What may happen after a copy was made."""
    block(rig, "v", 0, b"2")
    rig.store.snapshots.create("since", ["v"])
    rig.settle()
    rig.store.create_volume("new", SIZE)
    block(rig, "new", 0, b"n")
    rounds(rig, 12)
    rig.store.versions.clone("v@before", "cloned")
    rig.store.versions.restore("v", "before")
    block(rig, "v", 2, b"3")
    rig.store.keep("iscsi/target/iqn.x:since", b"{}")


def with_copy(change: Callable[[StoreRig], None]) -> tuple[StoreRig, StoreRig, RebuildReport]:
    rig = opened()
    block(rig, "v", 0, b"1")
    rig.store.snapshots.create("before", ["v"])
    rig.store.keep("iscsi/target/iqn.x:y", b"{}")
    rig.settle()
    rig.store._meta_kv.flush()
    copy = rig.meta.snapshot()
    change(rig)
    again, report = rebuilt(rig, copy)
    return rig, again, report


def test_a_copy_is_brought_up_to_date() -> None:
    rig, again, report = with_copy(later)
    assert again.store.names() == rig.store.names() == ["cloned", "new", "v"]
    for name in again.store.names():
        assert again.read(name) == rig.read(name), name
    assert again.read_version("v@before") == rig.read_version("v@before")
    assert report.whole
    assert again.store.kept("iscsi/") == {"iscsi/target/iqn.x:y": b"{}"}
    again.settle()
    assert again.killed().read("v") == rig.read("v")


def test_a_copy_of_a_moment_ago_is_what_it_was() -> None:
    rig, again, report = with_copy(lambda _rig: None)
    assert report.whole
    assert again.store.names() == ["v"]
    assert again.read("v") == rig.read("v")
    assert [each.name for each in again.store.snapshots.all("v")] == ["before"]


def test_what_the_journal_says_was_deleted_since_is_gone() -> None:
    def change(rig: StoreRig) -> None:
        rig.store.create_volume("w", SIZE)
        rig.store.delete_volume("v", force=True)
        rig.flush("w")

    _, again, report = with_copy(change)
    assert report.plan.deleted == ("v",)
    assert again.store.names() == ["w"]


def test_snapshots_that_were_deleted_since_are_told() -> None:
    def change(rig: StoreRig) -> None:
        block(rig, "v", 0, b"2")
        rig.store.destage()
        rig.store.snapshots.delete("v", "before")
        rounds(rig, 20)

    _, again, report = with_copy(change)
    assert report.plan.lost_snapshots == ("v@before",)
    assert again.read("v", 0, 4096) == b"2" * 4096


# -- whatever happened


def step(rig: StoreRig, random: Random) -> None:
    names = rig.store.names()
    name = random.choice(names)
    rig.tend()
    if rig.store._journal.state()[3] < 2:
        rig.settle()
    match random.randrange(12):
        case 0 if len(names) < 5:
            rig.store.create_volume(f"n{random.getrandbits(32):08x}", SIZE, chunk_size=4 * KIB)
        case 1 if len(names) < 5:
            rig.store.versions.clone(name, f"c{random.getrandbits(32):08x}")
        case 2:
            rig.store.snapshots.create(f"s{random.getrandbits(32):08x}", [name])
        case 3:
            snapshots = rig.store.snapshots.all(name)
            if snapshots:
                rig.store.versions.restore(name, random.choice(snapshots).name)
        case 4 if len(names) > 1 and random.random() < 0.3:
            rig.store.delete_volume(name, force=True)
        case 5:
            rig.store.rename_volume(name, f"r{random.getrandbits(32):08x}")
        case 6:
            size = random.choice((SIZE, 2 * SIZE, 3 * SIZE))
            rig.store.resize_volume(name, size, force=True)
        case 7:
            rig.store.destage()
        case 8:
            rig.settle()
        case 9:
            rig.zero(name, random.randrange(14) * 4096, 8192, unmap=True)
        case _:
            data = random.randbytes(4096)
            assert rig.write(name, random.randrange(14) * 4096 + 512, data) == 0


@pytest.mark.parametrize("seed", range(40))
def test_after_any_history_volumes_are_what_they_were(seed: int) -> None:
    """With a copy of any time, and without one. What was deleted may be there again."""
    random = Random(seed)
    rig = opened()
    copy: Mapping[bytes, bytes] | None = None
    for _ in range(random.randrange(20, 160)):
        step(rig, random)
        if random.random() < 0.02:
            rig.store._meta_kv.flush()
            copy = rig.meta.snapshot()
        if random.random() < 0.02:
            rig = rig.closed()
    rig.store.close()
    rig = rig.killed()
    expected = {name: rig.read(name) for name in rig.store.names()}
    for base in (None, copy):
        again, report = rebuilt(rig, base)
        known = volumes(report)
        for name, data in expected.items():
            assert not known[name].lacks
            assert again.read(name) == data, (name, base is not None)
        for name, data in expected.items():
            again.settle()
            assert again.write(name, 0, b"n" * 512) == 0
            again.settle()
            assert again.read(name) == b"n" * 512 + data[512:]


def test_a_copy_of_another_store_is_refused() -> None:
    rig, other = opened(), StoreRig(seed=7)
    with pytest.raises(CorruptData, match="is of store"):
        rebuilt(rig, other.meta.snapshot())
