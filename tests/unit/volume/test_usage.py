from collections.abc import Iterable
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.sim.simclock import SimClock
from tests.unit.volume.rig import Rig, chunk
from volume import usage
from volume.chunks import ChunkStore
from volume.errors import CorruptChunk
from volume.gc import Root, collect
from volume.index import Place
from volume.layout import FOOTER_ROW, KIND_COMMIT, ZERO_ID, ChunkId
from volume.manifest import Manifests, decode_node
from volume.packfile import HEADER_LENGTH, TRAILER_LENGTH, entry_length
from volume.usage import PacksMoving, Usage, UsageRoot, account

CHUNK_SIZE = 4096
CHUNKS = [chunk(which) for which in range(13)]
NODE = entry_length(48 + 32)
DATA = entry_length(4096)


def tree(rig: Rig, numbers: Iterable[int], height: int = 1, *commits: ChunkId) -> Root:
    """A durable tree with a chunk of its own for each of `numbers`."""
    changes = {number: rig.store.put(chunk(number)) for number in numbers}
    root = rig.manifests.update(ZERO_ID, height, changes)
    rig.store.sync()
    return Root(root, height, commits)


def commit(rig: Rig, text: bytes) -> ChunkId:
    commit_id = rig.store.put(text, KIND_COMMIT)
    rig.store.sync()
    return commit_id


def head(volume: str, *trees: Root) -> UsageRoot:
    return UsageRoot(volume, "head", None, trees, CHUNK_SIZE)


def snapshot(volume: str, name: str, *trees: Root) -> UsageRoot:
    return UsageRoot(volume, "snapshot", name, trees, CHUNK_SIZE, ("pin",))


def counted(rig: Rig, *roots: UsageRoot) -> Usage:
    return account(rig.store, rig.manifests, roots)


# -- the oracle: a set of ids for each root, from nothing but the chunks themselves


@dataclass
class Naive:
    ids: set[ChunkId]
    present: int


def scan(store: ChunkStore, root: UsageRoot) -> Naive:
    found = Naive(set(), 0)

    def go(node: ChunkId, level: int) -> None:
        found.ids.add(node)
        ids = decode_node(store.get(node), level)
        for at in range(0, len(ids), 32):
            child = ids[at : at + 32]
            if child == ZERO_ID:
                continue
            if level > 0:
                go(child, level - 1)
            else:
                found.ids.add(child)
                found.present += 1

    for one in root.trees:
        found.ids.update(one.commits)
        if one.root != ZERO_ID:
            go(one.root, one.height - 1)
    return found


def check(rig: Rig, roots: list[UsageRoot]) -> None:
    found = counted(rig, *roots)
    naive = [scan(rig.store, root) for root in roots]

    def place(chunk_id: ChunkId) -> Place:
        there = rig.index.get(chunk_id)
        assert there is not None
        return there

    def stored(ids: set[ChunkId]) -> int:
        return sum(entry_length(place(chunk_id).stored_length) for chunk_id in ids)

    def others(keep: Iterable[int]) -> set[ChunkId]:
        left = set(keep)
        return set().union(*(one.ids for at, one in enumerate(naive) if at not in left))

    for at, (row, root, one) in enumerate(zip(found.rows, roots, naive, strict=True)):
        assert (row.volume, row.kind, row.name) == (root.volume, root.kind, root.name)
        assert row.pinned_by == root.pinned_by
        assert row.logical_bytes == one.present * root.chunk_size
        assert row.stored_bytes == stored(one.ids)
        assert row.raw_bytes == sum(place(chunk_id).raw_length for chunk_id in one.ids)
        assert row.exclusive_bytes == stored(one.ids - others([at]))
        assert row.shared_bytes == row.stored_bytes - row.exclusive_bytes
    names = list(dict.fromkeys(root.volume for root in roots))
    assert [volume for volume, _ in found.volumes] == names
    for volume, freed in found.volumes:
        mine = [at for at, root in enumerate(roots) if root.volume == volume]
        ids = set().union(*(naive[at].ids for at in mine))
        assert freed == stored(ids - others(mine))
    assert found.live_bytes == stored(others([]))
    in_packs = footers = 0
    for number in rig.packs.numbers():
        lengths = [entry_length(one.stored_length) for _, one in rig.packs.places(number)]
        in_packs += sum(lengths)
        sealed = number in rig.packs.sealed()
        footers += HEADER_LENGTH + sealed * (FOOTER_ROW.size * len(lengths) + TRAILER_LENGTH)
    assert found.live_bytes + found.garbage_bytes == in_packs == rig.packs.total_bytes - footers


NUMBERS = st.integers(0, 8) | st.integers(250, 262) | st.integers(65_530, 65_540)
WRITES = st.lists(st.tuples(NUMBERS, st.integers(0, 12)), max_size=12)
"""(chunk index, which data; 0 = zeros)."""
VERSIONS = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "c"]),  # volume
        st.integers(0, 30),  # which version so far it goes on from
        WRITES,
        st.sampled_from(["snapshot", "history", "drop"]),
        st.booleans(),  # with a commit
    ),
    max_size=12,
)


@settings(deadline=None, max_examples=40)
@given(VERSIONS, st.randoms(use_true_random=False), st.booleans())
def test_an_account_is_what_a_full_scan_finds(
    versions: list[tuple[str, int, list[tuple[int, int]], str, bool]],
    random: object,
    seal: bool,
) -> None:
    rig = Rig()
    trees = [Root(ZERO_ID, 3)]
    roots: list[UsageRoot] = []
    history: dict[str, tuple[Root, ...]] = {}
    for at, (volume, start, writes, kind, with_commit) in enumerate(versions):
        changes = {
            index: rig.store.put(CHUNKS[which]) if which else ZERO_ID for index, which in writes
        }
        root = rig.manifests.update(trees[start % len(trees)].root, 3, changes)
        rig.store.sync()
        commits = (commit(rig, b"commit %d" % at),) if with_commit else ()
        trees.append(Root(root, 3, commits))
        if kind == "snapshot":
            roots.append(snapshot(volume, f"s{at}", trees[-1]))
        elif kind == "history":
            history[volume] = (*history.get(volume, ()), trees[-1])
    roots += [
        UsageRoot(volume, "history", None, some, 2 * CHUNK_SIZE) for volume, some in history.items()
    ]
    random.shuffle(roots)  # type: ignore[attr-defined]
    if seal:
        rig.packs.seal()
    check(rig, roots)


# -- what the figures mean


def test_an_empty_store() -> None:
    assert counted(Rig()) == Usage((), (), 0, 0)


def test_a_volume_alone_is_all_its_own() -> None:
    rig = Rig()
    (row,) = counted(rig, head("a", tree(rig, [1, 5]))).rows
    assert row.logical_bytes == 2 * CHUNK_SIZE
    assert row.stored_bytes == row.exclusive_bytes == 2 * DATA + entry_length(48 + 64)
    assert row.raw_bytes == 2 * 4096 + 48 + 64
    assert row.shared_bytes == 0


def test_the_same_chunk_twice_in_a_volume_is_stored_once() -> None:
    rig = Rig()
    chunk_id = rig.store.put(chunk(1))
    root = rig.manifests.update(ZERO_ID, 2, dict.fromkeys(range(512), chunk_id))
    rig.store.sync()
    (row,) = counted(rig, head("a", Root(root, 2))).rows
    assert row.logical_bytes == 512 * CHUNK_SIZE
    assert row.stored_bytes == DATA + entry_length(48 + 256 * 32) + entry_length(48 + 2 * 32)


def test_a_snapshot_that_the_head_has_left_behind_holds_what_changed() -> None:
    rig = Rig()
    old = tree(rig, [1, 2])
    new = Root(rig.manifests.update(old.root, 1, {2: rig.store.put(chunk(3))}), 1)
    rig.store.sync()
    now, before = counted(rig, head("a", new), snapshot("a", "s", old)).rows
    for row in (now, before):
        assert row.exclusive_bytes == DATA + entry_length(48 + 64)
        assert row.shared_bytes == DATA
    assert before.pinned_by == ("pin",)


def test_deleting_a_volume_frees_what_its_versions_share_but_not_what_a_clone_has() -> None:
    rig = Rig()
    both, mine = tree(rig, [1]), tree(rig, [2])
    found = counted(
        rig, head("a", both), snapshot("a", "s1", mine), snapshot("a", "s2", mine), head("b", both)
    )
    assert [row.exclusive_bytes for row in found.rows] == [0, 0, 0, 0]
    assert found.volumes == (("a", DATA + NODE), ("b", 0))
    assert found.live_bytes == 2 * (DATA + NODE)


def test_what_no_root_reaches_is_garbage() -> None:
    rig = Rig()
    tree(rig, [1])
    kept = tree(rig, [2])
    found = counted(rig, head("a", kept))
    assert (found.live_bytes, found.garbage_bytes) == (DATA + NODE, DATA + NODE)


# -- what it costs


def test_each_node_is_read_once_however_many_versions_share_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rig = Rig(pack_bytes=8 << 20)
    ids = rig.put_synced(*range(300))
    root = rig.manifests.update(ZERO_ID, 2, {at * 256: ids[at] for at in range(200)})
    roots = [snapshot("a", "s", Root(root, 2))]
    for at in range(100):
        root = rig.manifests.update(root, 2, {at: ids[200 + at]})
        roots.append(snapshot("a", f"s{at}", Root(root, 2)))
    rig.store.sync()
    reads: list[tuple[ChunkId, int]] = []
    real = Manifests.children

    def noted(self: Manifests, node: ChunkId, level: int) -> list[ChunkId]:
        reads.append((node, level))
        return real(self, node, level)

    monkeypatch.setattr(Manifests, "children", noted)
    account(rig.store, rig.manifests, roots)
    leaves = [node for node, level in reads if level == 0]
    assert len(leaves) == len(set(leaves)) == 200 + 100
    assert len(reads) - len(leaves) == 2 * 101  # the tops a second time, to count what is there
    assert rig.manifests.cache.peek(ids[0], 0) is None


def test_sets_that_nothing_holds_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two chunks that take turns in one place: their sets of roots have a run for each turn."""
    rig = Rig(pack_bytes=8 << 20)
    ids = rig.put_synced(*range(60))
    root, roots = ZERO_ID, []
    for at in range(50):
        root = rig.manifests.update(root, 2, {0: ids[at % 2], 1: ids[2 + at], 300: ids[at % 2]})
        roots.append(snapshot("a", f"s{at}", Root(root, 2)))
    rig.store.sync()
    monkeypatch.setattr(usage, "MAX_RUNS", 20)
    monkeypatch.setattr(usage, "MAX_JOINS", 4)
    monkeypatch.setattr(usage, "BATCH", 1)
    kept: list[int] = []
    real = usage._RootSets.keep

    def noted(self: usage._RootSets, held: set[int]) -> None:
        real(self, held)
        kept.append(self.run_count)

    monkeypatch.setattr(usage._RootSets, "keep", noted)
    check(rig, roots)
    assert kept
    assert max(kept) < 50 * 50 / 2


def test_a_count_can_be_ended() -> None:
    rig = Rig()
    root = head("a", tree(rig, [1]))

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        account(rig.store, rig.manifests, [root], stop)


# -- gc meanwhile, and damage


def test_a_count_begins_anew_when_gc_moves_chunks_meanwhile() -> None:
    rig = Rig()
    tree(rig, range(100, 106))
    kept = tree(rig, range(2))
    rig.packs.seal()
    before = counted(rig, head("a", kept))
    ran: list[int] = []

    def once() -> None:
        if not ran:
            ran.append(1)
            report = collect(rig.store, rig.manifests, [kept], monotonic=SimClock().monotonic)
            assert report.packs_copied == 1

    found = account(rig.store, rig.manifests, [head("a", kept)], once)
    assert found.rows == before.rows
    assert (found.garbage_bytes, before.garbage_bytes > 0) == (0, True)


def test_a_count_gives_up_when_chunks_never_rest() -> None:
    rig = Rig()
    root = head("a", tree(rig, [1]))

    def move() -> None:
        chunk_id = rig.store.packs.append(1, b"i" * 32, b"x" * 512, 512, 0)
        rig.packs.sync()
        rig.index.put({key: chunk_id for key, _ in list(rig.packs.places(0))})

    with pytest.raises(PacksMoving, match="4 counts"):
        account(rig.store, rig.manifests, [root], move)


def test_rounds_meanwhile_change_nothing() -> None:
    rig = Rig()
    root = head("a", tree(rig, [1, 2]))
    expected = counted(rig, root)

    def round_meanwhile() -> None:
        tree(rig, [7])

    assert account(rig.store, rig.manifests, [root], round_meanwhile) == expected


def test_a_chunk_that_is_missing_is_an_error() -> None:
    rig = Rig()
    kept = tree(rig, [1])
    chunk_id = rig.store.put(chunk(1))
    rig.index.remove([chunk_id])
    with pytest.raises(CorruptChunk, match=chunk_id.hex()):
        counted(rig, head("a", kept))


def test_a_pack_whose_footer_is_damaged_counts_by_what_is_found_in_it() -> None:
    rig = Rig()
    kept = tree(rig, [1, 2])
    rig.packs.seal()
    tree(rig, [3])
    rig.packs.seal()
    before = counted(rig, head("a", kept))
    file = rig.disk.open("packs/00000000.pack")
    file.pwrite(b"damaged!", rig.packs.size(0) - TRAILER_LENGTH)
    after = counted(rig, head("a", kept))
    assert after.rows == before.rows
    footer = 3 * FOOTER_ROW.size + TRAILER_LENGTH
    assert after.garbage_bytes == before.garbage_bytes + footer
