import errno
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from tests.sim.crash import CrashPlanner
from tests.sim.faults import Fail, Fault
from tests.sim.simclock import SimClock
from tests.unit.volume.rig import PACK_BYTES, STORE_UUID, Rig, chunk
from volume.chunks import ChunkStore
from volume.disk import PosixDisk
from volume.errors import CorruptChunk
from volume.gc import GcReport, Root, collect
from volume.index import ChunkIndex, Place
from volume.kv import LmdbKeyValue
from volume.layout import KIND_COMMIT, ZERO_ID
from volume.manifest import Manifests
from volume.packs import Packs


def tree(rig: Rig, numbers: Iterable[int], height: int = 2) -> Root:
    """A durable tree with a chunk of its own for each of `numbers`."""
    changes = {number: rig.store.put(chunk(number)) for number in numbers}
    root = rig.manifests.update(ZERO_ID, height, changes)
    rig.store.sync()
    return Root(root, height)


def gc(rig: Rig, *roots: Root) -> GcReport:
    return collect(rig.store, rig.manifests, roots, monotonic=SimClock().monotonic)


def assert_whole(rig: Rig, root: Root, numbers: Iterable[int]) -> None:
    found = {
        at: rig.store.get(new, verify=True)
        for at, _, new in rig.manifests.diff(ZERO_ID, root.height, root.root, root.height)
    }
    assert found == {number: chunk(number) for number in numbers}


def test_everything_reachable_stays_and_the_rest_goes() -> None:
    rig = Rig()
    tree(rig, range(40))
    kept = tree(rig, range(100, 140))
    rig.packs.seal()
    report = gc(rig, kept)
    assert_whole(rig, kept, range(100, 140))
    assert rig.index.count() == report.chunks_live == 42
    assert report.chunks_removed == 42
    assert report.packs_removed >= 4
    assert rig.packs.total_bytes == report.bytes_after < report.bytes_before * 0.6
    for again in (rig.killed(), rig.without_index()):
        assert_whole(again, kept, range(100, 140))
        assert again.index.count() == 42


def test_nothing_reachable_leaves_nothing() -> None:
    rig = Rig()
    tree(rig, range(40))
    rig.packs.seal()
    report = gc(rig)
    assert rig.index.count() == 0
    assert report.bytes_after < 100
    assert rig.disk.list("packs") == ["00000005.pack"]


def test_a_pack_mostly_alive_is_left_alone() -> None:
    rig = Rig()
    kept = tree(rig, range(27))
    smaller = Root(rig.manifests.update(kept.root, 2, {}, [(0, 2)]), 2)
    rig.store.sync()
    before = rig.packs.sealed()
    report = gc(rig, smaller)
    assert (report.packs_removed, report.packs_copied) == (0, 0)
    assert rig.packs.sealed() == before


def test_a_pack_mostly_dead_is_copied_forward() -> None:
    rig = Rig()
    root = tree(rig, range(27))
    smaller = Root(rig.manifests.update(root.root, 2, {}, [(0, 7)]), 2)
    rig.store.sync()
    moved: list[int] = []
    removed: list[int] = []
    report = collect(
        rig.store,
        rig.manifests,
        [smaller],
        monotonic=SimClock().monotonic,
        moved=moved.append,
        removed=removed.append,
    )
    assert (report.packs_copied, moved, removed) == (1, [0], [])
    assert 0 not in rig.packs.sealed()
    assert_whole(rig, smaller, range(7, 27))
    assert_whole(rig.killed(), smaller, range(7, 27))
    assert gc(rig, smaller).packs_copied == 0


def test_packs_left_small_by_crashes_are_joined() -> None:
    rig = Rig()
    roots = []
    for number in range(6):
        roots.append(tree(rig, [number]))
        rig = rig.killed()
    assert rig.packs.pack_count == 6
    report = gc(rig, *roots)
    assert report.packs_copied == 6
    assert rig.packs.pack_count == 1
    for number, root in enumerate(roots):
        assert_whole(rig, root, [number])


def test_the_pack_that_is_appended_to_stays_while_little_of_it_is_dead() -> None:
    rig = Rig()
    tree(rig, range(1))
    report = gc(rig)
    assert (report.packs_removed, report.packs_copied, rig.index.count()) == (0, 0, 3)


def test_the_pack_that_is_appended_to_is_sealed_when_most_of_it_is_dead() -> None:
    rig = Rig()
    kept = tree(rig, [100])
    tree(rig, range(5))
    report = gc(rig, kept)
    assert (report.packs_copied, report.chunks_removed) == (1, 7)
    assert rig.index.count() == 3
    assert_whole(rig.killed(), kept, [100])


def test_a_thorough_run_leaves_nothing_dead() -> None:
    rig = Rig()
    kept = tree(rig, range(20))
    smaller = Root(rig.manifests.update(kept.root, 2, {}, [(0, 3)]), 2)
    rig.store.sync()
    assert gc(rig, smaller).chunks_removed == 0
    report = collect(
        rig.store, rig.manifests, [smaller], monotonic=SimClock().monotonic, thorough=True
    )
    assert rig.index.count() == report.chunks_live == 19
    stored = [
        chunk_id for number in rig.packs.numbers() for chunk_id, _ in rig.packs.places(number)
    ]
    assert len(stored) == 19
    assert_whole(rig.without_index(), smaller, range(3, 20))


def test_commits_stay_with_their_roots() -> None:
    rig = Rig()
    kept = rig.store.put(b"commit one", KIND_COMMIT)
    gone = rig.store.put(b"commit two", KIND_COMMIT)
    rig.store.sync()
    rig.packs.seal()
    gc(rig, Root(ZERO_ID, 1, (kept, ZERO_ID)))
    assert rig.index.get(kept) is not None
    assert rig.index.get(gone) is None


def test_shared_subtrees_are_walked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig()
    root = tree(rig, range(0, 2000, 100))
    lookups = 0
    real = rig.index.get_many

    def counted(ids: list[bytes]) -> list[Place | None]:
        nonlocal lookups
        lookups += len(ids)
        return real(ids)

    monkeypatch.setattr(rig.index, "get_many", counted)
    report = gc(rig, *[root] * 50)
    assert report.chunks_live == 29  # 20 chunks, 8 leaves, 1 root
    assert lookups < 60


def test_a_missing_chunk_stops_gc_before_anything_is_removed() -> None:
    rig = Rig()
    tree(rig, range(40))
    kept = tree(rig, range(100, 110))
    rig.packs.seal()
    files = rig.disk.list("packs")
    place = rig.index.get(chunk_id := rig.store.put(chunk(105)))
    assert place is not None
    rig.index.remove([chunk_id])
    with pytest.raises(CorruptChunk, match="gc removes nothing"):
        gc(rig, kept)
    assert rig.disk.list("packs") == files


def test_a_pack_whose_live_entries_are_damaged_stays() -> None:
    rig = Rig()
    root = tree(rig, range(27))
    smaller = Root(rig.manifests.update(root.root, 2, {}, [(0, 7)]), 2)
    rig.store.sync()
    place = rig.store.place(rig.store.put(chunk(8)))
    assert place is not None
    assert place.pack == 0
    rig.disk.flip_bit("packs/00000000.pack", place.offset + 300)
    report = gc(rig, smaller)
    assert (report.packs_copied, report.packs_damaged) == (0, 1)
    assert 0 in rig.packs.sealed()
    assert rig.store.get(rig.store.put(chunk(7))) == chunk(7)


def test_a_pack_with_a_damaged_footer_stays() -> None:
    rig = Rig()
    tree(rig, range(27))
    size = len(rig.disk.image().read("packs/00000000.pack"))
    rig.disk.flip_bit("packs/00000000.pack", size - 70)
    report = gc(rig)
    assert report.packs_damaged == 1
    assert 0 in rig.packs.sealed()


def test_a_pack_on_which_index_and_footer_disagree_stays() -> None:
    rig = Rig()
    tree(rig, range(27))
    chunk_id, place = next(iter(rig.packs.places(0)))
    rig.index.put({chunk_id: place._replace(ordinal=place.ordinal + 1)})
    report = gc(rig)
    assert report.packs_damaged == 1
    assert 0 in rig.packs.sealed()


def test_gc_stops_when_told_to_and_can_go_on() -> None:
    rig = Rig()
    tree(rig, range(60))
    kept = tree(rig, range(100, 120))
    rig.packs.seal()

    def after(count: int) -> Callable[[], bool]:
        answers = iter([False] * count)
        return lambda: next(answers, True)

    previous = rig.packs.pack_count
    for count in (0, 4, 6):
        report = collect(
            rig.store,
            rig.manifests,
            [kept],
            monotonic=SimClock().monotonic,
            should_stop=after(count),
        )
        assert report.stopped
        assert_whole(rig, kept, range(100, 120))
        assert rig.packs.pack_count <= previous
        previous = rig.packs.pack_count
    assert not gc(rig, kept).stopped
    assert rig.index.count() == 22


def test_without_room_for_copies_dead_packs_go_all_the_same() -> None:
    rig = Rig()
    tree(rig, range(40))
    root = tree(rig, range(100, 127))
    rig.packs.seal()
    smaller = Root(rig.manifests.update(root.root, 2, {}, [(100, 118)]), 2)
    rig.store.sync()
    rig.packs.seal()
    files = rig.disk.list("packs")
    rig.disk.faults.add(Fault("pwrite", Fail(errno.ENOSPC), "packs/*", count=None))
    report = gc(rig, smaller)
    assert report.out_of_space
    assert report.packs_removed >= 3
    assert len(rig.disk.list("packs")) == len(files) - report.packs_removed
    rig.disk.faults.clear()
    assert not gc(rig, smaller).out_of_space
    assert_whole(rig.killed(), smaller, range(118, 127))


def test_a_failed_sync_leaves_every_live_chunk_where_it_was() -> None:
    rig = Rig()
    root = tree(rig, range(27))
    smaller = Root(rig.manifests.update(root.root, 2, {}, [(0, 7)]), 2)
    rig.store.sync()
    rig.disk.faults.add(Fault("sync", Fail(errno.EIO), "packs/*"))
    with pytest.raises(OSError, match="scripted"):
        gc(rig, smaller)
    rig.disk.faults.clear()
    assert_whole(rig.killed(), smaller, range(7, 27))


def test_no_crash_during_gc_loses_a_live_chunk() -> None:
    """Power cuts lose the index, so it is rebuilt; after every one the live tree is whole, and
    another gc leaves exactly what is live."""
    rig = Rig()
    tree(rig, range(20))
    root = tree(rig, range(100, 127))
    smaller = Root(rig.manifests.update(root.root, 2, {}, [(100, 106)]), 2)
    rig.store.sync()
    rig.packs.seal()
    rig.disk.restart_trace()
    report = gc(rig, smaller)
    assert report.packs_removed
    assert report.packs_copied
    planner = CrashPlanner(rig.disk.trace)
    for image in planner.images():
        again = Rig(image)
        assert_whole(again, smaller, range(106, 127))
        gc(again, smaller)
        assert_whole(again, smaller, range(106, 127))
    assert planner.distinct > 15


def test_no_kill_during_gc_loses_a_live_chunk() -> None:
    """kill -9 keeps the index as it is at that moment."""
    for steps in range(1, 100):
        rig = Rig()
        tree(rig, range(20))
        root = tree(rig, range(100, 127))
        smaller = Root(rig.manifests.update(root.root, 2, {}, [(100, 106)]), 2)
        rig.store.sync()
        rig.packs.seal()
        done = killed_after(rig, steps, smaller)
        again = rig.killed()
        assert_whole(again, smaller, range(106, 127))
        gc(again, smaller)
        assert_whole(again, smaller, range(106, 127))
        assert again.index.count() <= 25
        if done:
            assert steps > 8
            return
    raise AssertionError("gc never came to its end")


class Killed(BaseException):
    """Stands for kill -9: nothing may handle it."""


def killed_after(rig: Rig, steps: int, root: Root) -> bool:
    """Run gc until `steps` changes of disk or index have happened; whether it came to its end."""
    left = steps

    def counting(call: object) -> object:
        def counted(*args: object, **kwargs: object) -> object:
            nonlocal left
            if left == 0:
                raise Killed
            left -= 1
            assert callable(call)
            return call(*args, **kwargs)

        return counted

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rig.kv, "update", counting(rig.kv.update))
        for name in ("pwrite", "sync", "truncate", "unlink", "sync_dir", "open"):
            patch.setattr(rig.disk, name, counting(getattr(rig.disk, name)))
        try:
            gc(rig, root)
        except Killed:
            return False
    return True


def test_a_chunk_whose_only_reference_came_after_its_death_is_stored_again() -> None:
    rig = Rig()
    tree(rig, range(10))
    rig.packs.seal()
    gc(rig)
    root = tree(rig, range(10))
    assert_whole(rig.killed(), root, range(10))


def test_readers_see_every_live_chunk_while_gc_moves_them(tmp_path: Path) -> None:
    kv = LmdbKeyValue(tmp_path / "index", synced=False, map_size=1 << 20)
    packs = Packs(PosixDisk(tmp_path), STORE_UUID, pack_bytes=PACK_BYTES, open_packs=2)
    store = ChunkStore(packs, ChunkIndex(kv, STORE_UUID))
    manifests = Manifests(store, cache_bytes=0)
    ids = [store.put(chunk(number)) for number in range(60)]
    kept = dict(enumerate(ids[::3]))
    root = Root(manifests.update(ZERO_ID, 1, kept), 1)
    store.sync()
    wrong: list[object] = []

    def read(first: int) -> None:
        try:
            for step in range(150):
                number = (first + step) % 20 * 3
                if store.get(ids[number], verify=True) != chunk(number):
                    wrong.append(number)
        except Exception as error:
            wrong.append(error)

    readers = [threading.Thread(target=read, args=(first,)) for first in (0, 7, 13)]
    for reader in readers:
        reader.start()
    for number in range(8):
        for filler in range(60):
            store.put(chunk(1000 + number * 100 + filler))
        store.sync()
        collect(store, manifests, [root], monotonic=SimClock().monotonic)
    for reader in readers:
        reader.join()
    assert wrong == []
    packs.close()
    kv.close()
