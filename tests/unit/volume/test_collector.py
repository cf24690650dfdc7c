"""gc in slices, with rounds between them."""

from collections.abc import Iterable
from dataclasses import replace
from functools import cache

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.sim.simclock import SimClock
from tests.unit.volume.rig import Rig
from tests.unit.volume.rig import chunk as make_chunk
from volume.chunks import chunk_id_of
from volume.errors import CorruptChunk
from volume.gc import BUSY_SHARE, Collector, GcReport, Hooks, Pace, Root, Weighed
from volume.layout import KIND_COMMIT, ZERO_ID, ChunkId
from volume.packfile import entry_length

HEIGHT = 2
CONDEMN_S = 60.0
AT_ONCE = Pace(interval_s=0.0, condemn_s=0.0)


class Yard:
    """A store with a collector, and the roots that are in force."""

    def __init__(self, pace: Pace = AT_ONCE, budget: int | None = None) -> None:
        self.rig = Rig()
        self.clock = SimClock()
        self.roots: list[Root] = []
        self.is_busy = self.is_full = False
        self.budget = budget
        self.dropped: list[object] = []
        self.moved: list[int] = []
        self.removed: list[int] = []
        self.refuse_drop = False
        self.weighed: list[Weighed] = []
        hooks = Hooks(
            lambda: list(self.roots),
            moved=self.moved.append,
            removed=self.removed.append,
            weighed=self.weighed.extend,
            dropped=self.drop,
            history_budget=lambda: self.budget,
            busy=lambda: self.is_busy,
            full=lambda: self.is_full,
        )
        self.collector = Collector(
            self.rig.store, self.rig.manifests, hooks, self.clock.monotonic, pace
        )

    def drop(self, root: Root) -> bool:
        if self.refuse_drop:
            return False
        self.dropped.append(root.tag)
        self.roots.remove(root)
        return True

    def tree(self, numbers: Iterable[int], base: ChunkId = ZERO_ID, gone: int = 0) -> Root:
        """One round: a durable tree with these chunks over `base` less its first `gone`."""
        store = self.rig.store
        changes = {number: store.put(chunk(number)) for number in numbers}
        root = self.rig.manifests.update(base, HEIGHT, changes, [(0, gone)])
        store.sync()
        return Root(root, HEIGHT)

    def seal(self) -> None:
        self.rig.packs.seal()

    def run(self) -> GcReport:
        """A run to its end, slice by slice."""
        self.collector.run_now()
        while self.collector.step(0.0):
            pass
        report = self.collector.status().last
        assert report is not None
        return report

    def until(self, phase: str) -> None:
        """Slices until the run is in `phase`."""
        self.collector.run_now()
        for _ in range(10_000):
            assert self.collector.step(0.0)
            if self.collector.status().phase == phase:
                return
        raise AssertionError(f"the run never came to {phase}")

    def finish(self) -> None:
        while self.collector.step(0.0):
            pass

    def has(self, number: int) -> bool:
        return self.rig.index.get(chunk_id(number)) is not None

    def assert_whole(self, root: Root, numbers: Iterable[int]) -> None:
        manifests = self.rig.manifests
        found = {
            at: self.rig.store.get(new, verify=True)
            for at, _, new in manifests.diff(ZERO_ID, HEIGHT, root.root, HEIGHT)
        }
        assert found == {number: chunk(number) for number in numbers}


@cache
def chunk(number: int) -> bytes:
    return make_chunk(number)


@cache
def chunk_id(number: int) -> ChunkId:
    return chunk_id_of(chunk(number))


# -- slices


def test_slices_do_what_one_run_does() -> None:
    yard = Yard()
    yard.tree(range(40))
    kept = yard.tree(range(100, 140))
    yard.seal()
    yard.roots = [kept]
    report = yard.run()
    assert (report.chunks_live, report.chunks_removed) == (42, 42)
    assert report.packs_removed >= 4
    yard.assert_whole(kept, range(100, 140))
    assert yard.rig.index.count() == 42


def test_a_slice_without_time_left_does_one_thing_only() -> None:
    yard = Yard()
    yard.roots = [yard.tree(range(0, 4000, 100))]
    steps = 0
    while yard.collector.step(0.0):
        steps += 1
    assert steps > 20


def test_a_head_that_moves_between_slices_loses_nothing() -> None:
    """Chunks that died before the run come back by dedup, in every phase of it."""
    for phase in ("mark", "sweep", "copy"):
        yard = Yard()
        yard.tree(range(40))  # dead
        big = yard.tree(range(100, 140))
        head = yard.tree([], big.root, 109)
        yard.seal()
        yard.roots = [head]
        yard.until(phase)
        revived = [number for number in range(40) if yard.has(number)][:20]
        head = yard.tree([*revived, 500], head.root)
        yard.roots = [head]
        yard.finish()
        yard.assert_whole(head, [*revived, *range(109, 140), 500])
        again = Yard()
        again.rig, again.roots = yard.rig.killed(), [head]
        again.assert_whole(head, [*revived, *range(109, 140), 500])


def test_what_a_failed_round_put_counts_for_nothing() -> None:
    yard = Yard()
    yard.tree(range(40))
    kept = yard.tree(range(100, 140))
    yard.seal()
    yard.roots = [kept]
    yard.until("mark")
    for number in range(200, 220):
        yard.rig.store.put(chunk(number))
    yard.rig.store.abandon()
    yard.finish()
    report = yard.collector.status().last
    assert report is not None
    assert report.packs_damaged == 0
    yard.assert_whole(kept, range(100, 140))
    assert not yard.has(5)


def test_what_is_put_during_a_run_survives_it_without_a_root() -> None:
    yard = Yard()
    yard.roots = [yard.tree(range(100, 110))]
    yard.until("mark")
    fresh = yard.tree(range(30))
    yard.seal()
    yard.finish()
    yard.assert_whole(fresh, range(30))
    yard.run()
    assert not any(yard.has(number) for number in range(30))


def test_nobody_watches_between_runs() -> None:
    yard = Yard()
    yard.run()
    assert yard.rig.store.watch is None


def test_a_pack_that_is_copied_in_batches_may_change_between_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("volume.gcrun.COPY_BATCH_BYTES", 4096)
    yard = Yard()
    big = yard.tree(range(9))
    dead = [number for number in range(9) if yard.rig.store.place(chunk_id(number)).pack == 0][:6]  # type: ignore[union-attr]
    head = yard.tree([], big.root, len(dead))
    yard.seal()
    yard.roots = [head]
    yard.until("copy")
    revived = dead[2]
    while yard.collector.step(0.0):
        if yard.has(revived) and yard.collector.status().last is None:
            head = yard.tree([revived], head.root)
            yard.roots = [head]
    yard.assert_whole(head, [revived, *range(len(dead), 9)])
    assert yard.collector.status().last.packs_damaged == 0  # type: ignore[union-attr]


# -- new names for old trees


def test_an_old_tree_with_a_new_name_stays_when_protected_while_marking() -> None:
    yard = Yard()
    old = yard.tree(range(30))
    yard.roots = [yard.tree(range(100, 120))]
    yard.seal()
    yard.until("mark")
    yard.roots.append(old)
    assert yard.collector.protect(old)
    yard.finish()
    yard.assert_whole(old, range(30))


def test_protect_says_when_it_is_too_late() -> None:
    yard = Yard()
    old = yard.tree(range(30))
    live = yard.tree(range(100, 120))
    yard.roots = [live]
    yard.seal()
    yard.until("sweep")
    assert not yard.collector.protect(old)
    assert yard.collector.protect(live)
    assert yard.collector.protect(Root(ZERO_ID, 1))
    put_meanwhile = yard.tree(range(200, 203))
    assert yard.collector.protect(put_meanwhile)
    yard.finish()


def test_a_live_tree_that_was_copied_is_still_protected() -> None:
    yard = Yard()
    big = yard.tree(range(27))
    head = yard.tree([], big.root, 7)
    yard.roots = [head]
    yard.seal()
    yard.until("copy")
    answers = []
    while yard.collector.step(0.0):
        answers.append(yard.collector.protect(head))
    assert answers
    assert all(answers)


def test_without_a_run_every_tree_can_have_a_name() -> None:
    yard = Yard()
    assert yard.collector.protect(yard.tree(range(3)))


def test_a_partial_tree_keeps_what_is_there_of_it() -> None:
    yard = Yard()
    tree = yard.tree(range(20))
    yard.seal()
    missing = chunk_id(7)
    yard.rig.index.remove([missing])
    yard.roots = [tree]
    assert yard.run().error is not None
    yard.roots = [replace(tree, partial=True)]
    report = yard.run()
    assert (report.error, report.chunks_live) == (None, 21)  # with the leaf and the root
    assert all(yard.has(number) for number in range(20) if number != 7)


# -- condemned


def condemning() -> Yard:
    yard = Yard(Pace(interval_s=0.0, condemn_s=CONDEMN_S))
    yard.tree(range(40))
    yard.seal()
    return yard


def test_the_dead_stay_for_the_condemn_period() -> None:
    yard = condemning()
    report = yard.run()
    assert (report.packs_removed, report.condemned_chunks) == (0, 42)
    assert report.condemned_bytes == yard.collector.status().condemned_bytes > 40 * 4096
    assert yard.collector.status().next_run_s == CONDEMN_S
    yard.clock.advance(CONDEMN_S - 1)
    assert yard.run().packs_removed == 0
    yard.clock.advance(1)
    report = yard.run()
    assert (report.chunks_removed, report.condemned_chunks) == (42, 0)
    assert yard.rig.index.count() == 0


def test_the_run_that_removes_the_condemned_comes_by_itself() -> None:
    yard = condemning()
    yard.run()
    assert yard.collector.step(1.0) is False
    yard.clock.advance(CONDEMN_S)
    while yard.collector.step(1.0):
        pass
    assert yard.rig.index.count() == 0
    assert yard.collector.status().next_run_s is None


def test_who_comes_back_to_life_is_condemned_anew() -> None:
    yard = condemning()
    yard.run()
    head = yard.tree(range(3))
    yard.roots = [head]
    yard.clock.advance(CONDEMN_S)
    yard.run()
    assert yard.has(0)
    yard.roots = []
    yard.run()
    assert yard.has(0)
    yard.clock.advance(CONDEMN_S)
    yard.seal()
    yard.run()
    assert not yard.has(0)


def test_a_full_disk_does_not_wait() -> None:
    yard = condemning()
    yard.is_full = True
    assert yard.run().chunks_removed == 42


def test_a_sparse_pack_takes_the_condemned_along_when_it_is_copied() -> None:
    yard = Yard(Pace(interval_s=0.0, condemn_s=CONDEMN_S))
    big = yard.tree(range(9))
    yard.seal()
    head = yard.tree([], big.root, 6)
    yard.roots = [head]
    yard.run()
    yard.clock.advance(CONDEMN_S)
    head = yard.tree([], head.root, 7)
    yard.roots = [head]
    report = yard.run()
    assert report.packs_copied == 1
    assert not yard.has(5)
    assert yard.has(6)
    yard.assert_whole(head, range(7, 9))


# -- history


def test_optional_roots_stay_while_they_fit_newest_first() -> None:
    yard = Yard()
    head = yard.tree(range(10))
    olds = [yard.tree(range(100 + 10 * n, 110 + 10 * n), head.root) for n in range(4)]
    yard.seal()
    yard.roots = [*(replace(root, optional=True, tag=n) for n, root in enumerate(olds)), head]
    entry = entry_length(4096)
    yard.budget = 2 * (10 * entry + 2000)  # a leaf and a root of 20 ids come with each
    report = yard.run()
    assert yard.dropped == [2, 3]
    assert (report.history_roots, report.history_dropped) == (2, 2)
    assert 20 * entry < report.history_bytes <= yard.budget
    assert yard.has(119)
    assert not yard.has(120)
    yard.assert_whole(olds[1], [*range(10), *range(110, 120)])
    assert report.chunks_live == yard.rig.index.count()


def test_the_window_is_weighed_newest_first_and_stays() -> None:
    """Each tree weighs what neither a head nor the window's trees before it reach."""
    yard = Yard(budget=0)
    head = yard.tree(range(10))
    olds = [yard.tree(range(100, 110 - 4 * n), head.root) for n in range(2)]
    whole = yard.tree(range(200, 220))
    yard.seal()
    needed = replace(whole, tag="also needed")
    yard.roots = [*(replace(root, window=True, tag=n) for n, root in enumerate(olds)), head, needed]
    yard.roots.insert(2, replace(whole, window=True, tag=2))
    yard.roots.append(replace(olds[1], optional=True, tag="policy"))
    report = yard.run()
    entry = entry_length(4096)
    assert [weighed.root.tag for weighed in yard.weighed] == [0, 1, 2]
    first, second, third = (weighed.size_bytes for weighed in yard.weighed)
    assert 10 * entry < first < 10 * entry + 2000  # and the nodes above them
    assert 0 < second < 2000, "its chunks are the first one's"
    assert third == 0
    assert (report.window_roots, report.window_bytes) == (3, first + second)
    assert (report.roots, report.history_dropped) == (5, 0)
    for root, numbers in zip(olds, (range(100, 110), range(100, 106)), strict=True):
        yard.assert_whole(root, [*range(10), *numbers])
    assert report.chunks_live == yard.rig.index.count()


def test_a_dry_run_tells_nobody_what_the_window_weighs() -> None:
    yard = Yard()
    yard.roots = [replace(yard.tree(range(10)), window=True)]
    yard.seal()
    assert yard.collector.dry_run().window_bytes > 10 * entry_length(4096)
    assert yard.weighed == []


def test_history_that_costs_nothing_always_fits() -> None:
    yard = Yard(budget=0)
    head = yard.tree(range(10))
    yard.roots = [head, replace(head, optional=True, tag="same")]
    assert yard.run().history_roots == 1
    assert yard.dropped == []


def test_an_optional_root_that_was_named_meanwhile_stays() -> None:
    yard = Yard(budget=0)
    yard.refuse_drop = True
    yard.roots = [replace(yard.tree(range(10)), optional=True)]
    yard.seal()
    report = yard.run()
    assert (report.history_dropped, report.chunks_removed) == (0, 0)
    yard.assert_whole(yard.roots[0], range(10))


def test_a_root_that_did_not_fit_does_not_pass_for_whole() -> None:
    """Its subtree that is shared with a protected tree must be walked, though it was measured."""
    yard = Yard(budget=entry_length(4096) * 5)
    old = yard.tree(range(30))
    yard.seal()
    yard.roots = [replace(old, optional=True)]
    yard.until("history")
    yard.collector.step(0.0)
    assert yard.collector.protect(old)
    yard.finish()
    yard.assert_whole(old, range(30))


# -- pace


class Watched:
    """A clock that moves by itself while gc works: a tick for each look at it."""

    def __init__(self, tick_s: float) -> None:
        self.now = 0.0
        self.tick_s = tick_s

    def __call__(self) -> float:
        self.now += self.tick_s
        return self.now


def test_gc_leaves_nine_tenths_of_the_time_to_clients() -> None:
    yard = Yard()
    yard.roots = [yard.tree(range(0, 20_000, 100))]
    clock = Watched(0.001)
    hooks = Hooks(lambda: yard.roots, busy=lambda: True)
    collector = Collector(yard.rig.store, yard.rig.manifests, hooks, clock, AT_ONCE)
    collector.run_now()
    clock.tick_s, began = 0.001, clock.now
    while collector.status().last is None:
        assert collector.step(0.5) is False
        clock.now += 0.005  # the worker's sleep
    report = collector.status().last
    assert report is not None
    assert report.work_s <= 1.2 * BUSY_SHARE * (clock.now - began)


def test_copies_are_paced_while_clients_are_busy() -> None:
    yard = Yard(Pace(interval_s=0.0, condemn_s=0.0, busy_copy_rate=4096))
    big = yard.tree(range(27))
    head = yard.tree([], big.root, 7)
    yard.roots = [head]
    yard.seal()
    yard.until("copy")
    yard.is_busy = True
    report = yard.collector._run.report  # type: ignore[union-attr]
    while not report.copied_bytes:
        yard.collector.step(0.0)
        yard.clock.advance(0.001)
    yard.clock.advance(0.5)
    yard.collector.step(0.0)
    assert yard.collector.status().running
    yard.is_full = True
    yard.finish()
    assert not yard.collector.status().running


def test_runs_are_an_interval_apart_and_only_when_something_changed() -> None:
    yard = Yard(Pace(interval_s=10.0, condemn_s=0.0))
    assert yard.collector.status().next_run_s == 10.0
    assert not yard.collector.step(1.0)
    yard.clock.advance(10.0)
    assert not yard.collector.step(1.0)  # nothing there: done in one slice
    assert yard.collector.status().last is not None
    assert yard.collector.status().next_run_s is None
    yard.collector.note_change()
    assert yard.collector.status().next_run_s == 10.0
    yard.is_full = True
    assert yard.collector.status().next_run_s == 1.0


def test_damage_ends_a_run_and_is_told() -> None:
    yard = Yard()
    yard.tree(range(40))
    yard.roots = [yard.tree(range(100, 110))]
    yard.seal()
    yard.rig.index.remove([chunk_id(105)])
    report = yard.run()
    assert "gc removes nothing" in (report.error or "")
    assert report.chunks_removed == 0
    assert yard.collector.status().next_run_s == 0.0
    with pytest.raises(CorruptChunk):
        yard.collector.collect()


def test_status_follows_a_run() -> None:
    yard = Yard()
    yard.tree(range(40))
    yard.roots = [yard.tree(range(100, 140))]
    yard.seal()
    assert yard.collector.status().phase == "idle"
    yard.collector.run_now()
    seen: list[str] = []
    progress = [0.0]
    while yard.collector.step(0.0):
        status = yard.collector.status()
        if not seen or seen[-1] != status.phase:
            seen.append(status.phase)
        progress.append(status.progress)
    assert seen == ["mark", "sweep", "copy"]
    assert progress == sorted(progress)
    assert 0.5 < progress[-1] <= 1.0


def test_a_dry_run_tells_what_a_run_does_and_does_nothing() -> None:
    yard = Yard()
    yard.tree(range(40))
    yard.seal()
    big = yard.tree(range(100, 127))
    yard.seal()
    head = yard.tree([], big.root, 107)
    yard.seal()
    yard.roots = [head]
    files, index = yard.rig.disk.list("packs"), yard.rig.index.count()
    planned = yard.collector.dry_run()
    assert (yard.rig.disk.list("packs"), yard.rig.index.count()) == (files, index)
    assert planned.dry
    done = yard.run()
    for name in ("chunks_live", "chunks_removed", "packs_removed", "packs_copied", "copied_bytes"):
        assert getattr(planned, name) == getattr(done, name), name
    assert planned.packs_removed
    assert planned.packs_copied
    assert abs(planned.bytes_after - done.bytes_after) < 4096


# -- cost


def test_a_hundred_thousand_equal_roots_cost_a_lookup_each(monkeypatch: pytest.MonkeyPatch) -> None:
    yard = Yard()
    tree = yard.tree(range(0, 2000, 100))
    commit = yard.rig.store.put(b"commit", KIND_COMMIT)
    yard.rig.store.sync()
    yard.roots = [replace(tree, commits=(commit,))] * 100_000
    lookups = 0
    real = yard.rig.index.slots

    def counted(ids: list[ChunkId]) -> object:
        nonlocal lookups
        lookups += len(ids)
        return real(ids)

    monkeypatch.setattr(yard.rig.index, "slots", counted)
    assert yard.run().chunks_live == 30
    assert lookups <= 200_000 + 40


# -- I9


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_nothing_reachable_goes_and_everything_else_does(data: st.DataObject) -> None:
    """Rounds, clones and deletions in any order between slices: what has a name is whole all the
    time; once nothing changes any more, what has none is gone within two runs."""
    yard = Yard(Pace(interval_s=0.0, condemn_s=data.draw(st.sampled_from([0.0, 30.0]))))
    volumes: dict[int, tuple[Root, dict[int, int]]] = {}
    kept: list[tuple[Root, dict[int, int]]] = []  # names that were taken away: to be named again
    number = st.integers(0, 40)

    def publish() -> None:
        yard.roots = [root for root, _ in volumes.values()]

    for _ in range(data.draw(st.integers(1, 40))):
        action = data.draw(
            st.sampled_from(
                ["write", "write", "slice", "slice", "delete", "clone", "again", "time"]
            )
        )
        if action == "write":
            volume = data.draw(st.integers(0, 3))
            root, state = volumes.get(volume, (Root(ZERO_ID, HEIGHT), {}))
            places = data.draw(st.lists(st.integers(0, 300), max_size=8, unique=True))
            new = {place: data.draw(number) for place in places}
            changes = {place: yard.rig.store.put(chunk(n)) for place, n in new.items()}
            first = data.draw(st.integers(0, 300))
            state = {at: n for at, n in state.items() if not first <= at < first + 20}
            made = yard.rig.manifests.update(root.root, HEIGHT, changes, [(first, first + 20)])
            if data.draw(st.integers(0, 9)) == 0:
                yard.rig.store.abandon()
                continue
            yard.rig.store.sync()
            if volume in volumes:
                kept.append(volumes[volume])
            volumes[volume] = (Root(made, HEIGHT), state | new)
        elif action == "slice":
            if data.draw(st.booleans()):
                yard.collector.run_now()
            for _ in range(data.draw(st.integers(1, 12))):
                yard.collector.step(0.0)
        elif action == "delete" and volumes:
            kept.append(volumes.pop(data.draw(st.sampled_from(sorted(volumes)))))
        elif action == "clone" and volumes:
            clone = data.draw(st.integers(4, 8))
            volumes[clone] = volumes[data.draw(st.sampled_from(sorted(volumes)))]
            publish()
            assert yard.collector.protect(volumes[clone][0])
        elif action == "again" and kept and yard.collector.status().running:
            again = kept[data.draw(st.integers(0, len(kept) - 1))]
            volumes[9] = again
            publish()
            if not yard.collector.protect(again[0]) or not is_whole(yard, *again):
                del volumes[9]
        elif action == "time":
            yard.clock.advance(data.draw(st.sampled_from([1.0, 30.0])))
        publish()
        for root, state in volumes.values():
            assert is_whole(yard, root, state)
    yard.finish()
    for _ in range(2):
        yard.clock.advance(60.0)
        yard.seal()
        report = yard.collector.collect(thorough=True)
        assert (report.error, report.packs_damaged) == (None, 0)
    wanted = {chunk_id(n) for _, state in volumes.values() for n in state.values()}

    def enter(node: ChunkId) -> bool:
        wanted.add(node)
        return True

    for root, state in volumes.values():
        assert is_whole(yard, root, state)
        yard.rig.manifests.walk(root.root, HEIGHT, enter, lambda _: None)
    assert {key[1:] for key, _ in yard.rig.kv.items(b"c")} == wanted


def is_whole(yard: Yard, root: Root, state: dict[int, int]) -> bool:
    """Without the node cache: what the packs hold."""
    yard.rig.manifests.cache._nodes.clear()
    try:
        found = {
            at: yard.rig.store.get(new)
            for at, _, new in yard.rig.manifests.diff(ZERO_ID, HEIGHT, root.root, HEIGHT)
        }
    except CorruptChunk:
        return False
    return found == {at: chunk(n) for at, n in state.items()}
