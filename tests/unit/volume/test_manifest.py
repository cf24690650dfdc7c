import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.volume.rig import Rig, hash_of
from volume.chunks import ChunkStore
from volume.errors import CorruptManifest
from volume.layout import FAN_OUT, KIND_NODE, NODE_HEADER, ZERO_ID
from volume.manifest import MAX_HEIGHT, Manifests, decode_node, encode_node, height_for
from volume.nodecache import NODE_COST

EIB = 1 << 60
A, B, C = (hash_of(letter) for letter in (b"A", b"B", b"C"))
Model = dict[int, bytes]


def content(manifests: Manifests, root: bytes, height: int) -> Model:
    """Every chunk id of a tree that is not zero, by way of `diff` with the empty tree."""
    return {at: new for at, _, new in manifests.diff(ZERO_ID, height, root, height)}


def looked_up(manifests: Manifests, root: bytes, height: int, index: int) -> bytes:
    leaf = manifests.lookup_leaf(root, height, index // FAN_OUT)
    at = index % FAN_OUT * 32
    return ZERO_ID if leaf is None else leaf[at : at + 32]


@pytest.fixture
def rig() -> Rig:
    return Rig(pack_bytes=8 << 20)


@pytest.fixture
def manifests(rig: Rig) -> Manifests:
    return rig.manifests


@pytest.fixture
def reads(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Ids of the nodes that are read from the store."""
    seen: list[bytes] = []
    real = ChunkStore.get

    def counted(store: ChunkStore, chunk_id: bytes, *, verify: bool = False) -> bytes:
        seen.append(chunk_id)
        return real(store, chunk_id, verify=verify)

    monkeypatch.setattr(ChunkStore, "get", counted)
    return seen


# -- shape


@pytest.mark.parametrize(
    ("size", "chunk_size", "height"),
    [
        (0, 65536, 1),
        (1, 65536, 1),
        (256 * 65536, 65536, 1),
        (256 * 65536 + 1, 65536, 2),
        (10 << 40, 65536, 4),
        (EIB, 4096, 6),
    ],
)
def test_height_follows_size(size: int, chunk_size: int, height: int) -> None:
    assert height_for(size, chunk_size) == height


def test_an_empty_tree_has_no_nodes(manifests: Manifests) -> None:
    assert manifests.lookup_leaf(ZERO_ID, MAX_HEIGHT, 256**5 - 1) is None
    assert manifests.update(ZERO_ID, MAX_HEIGHT, {}, [(0, 256**6)]) == ZERO_ID


def test_equal_contents_have_equal_roots(manifests: Manifests) -> None:
    one = manifests.update(ZERO_ID, 3, {1: A, 70_000: B})
    two = manifests.update(ZERO_ID, 3, {70_000: B, 5: C})
    two = manifests.update(two, 3, {1: A}, [(5, 6)])
    assert one == two
    assert manifests.update(one, 3, {1: ZERO_ID}, [(60_000, 80_000)]) == ZERO_ID


def test_an_update_that_changes_nothing_writes_nothing(rig: Rig, manifests: Manifests) -> None:
    root = manifests.update(ZERO_ID, 2, {300: A})
    stored = rig.store.counters.put_count
    assert manifests.update(root, 2, {300: A}, [(0, 200), (301, 65536)]) == root
    assert rig.store.counters.put_count == stored


def test_an_update_writes_the_path_to_what_changes(rig: Rig, manifests: Manifests) -> None:
    root = manifests.update(ZERO_ID, 3, dict.fromkeys(range(0, 256**3, 100003), A))
    stored = rig.store.counters.stored_count
    manifests.update(root, 3, {5: B, 6: B})
    assert rig.store.counters.stored_count == stored + 3


def test_changes_win_over_zero_ranges(manifests: Manifests) -> None:
    root = manifests.update(ZERO_ID, 2, {1: A, 2: A, 3: A})
    root = manifests.update(root, 2, {2: B}, [(0, 65536)])
    assert content(manifests, root, 2) == {2: B}


def test_zeroing_a_whole_exbibyte_touches_one_path(
    rig: Rig, manifests: Manifests, reads: list[bytes]
) -> None:
    rng = random.Random(1)
    root = manifests.update(ZERO_ID, 6, {rng.randrange(2**48): A for _ in range(200)})
    fresh = Manifests(rig.store)
    reads.clear()
    assert fresh.update(root, 6, {}, [(0, 2**48)]) == ZERO_ID
    assert reads == []
    keep = fresh.update(root, 6, {}, [(1, 2**48 - 1)])
    assert len(reads) <= 11
    assert len(content(fresh, keep, 6)) <= 2


def test_grow_keeps_what_is_there(manifests: Manifests) -> None:
    root = manifests.update(ZERO_ID, 1, {7: A})
    grown = manifests.grow(root, 1, 4)
    assert content(manifests, grown, 4) == {7: A}
    assert grown == manifests.update(ZERO_ID, 4, {7: A})
    assert manifests.grow(ZERO_ID, 1, 6) == ZERO_ID


# -- against a dict

indexes = st.one_of(st.integers(0, 600), st.integers(65_400, 65_700), st.integers(0, 2**24 - 1))
ranges = st.tuples(indexes, st.one_of(st.integers(0, 700), st.integers(0, 2**24)))
steps = st.lists(
    st.tuples(
        st.dictionaries(indexes, st.sampled_from([A, B, C, ZERO_ID]), max_size=6),
        st.lists(ranges.map(lambda r: (r[0], min(r[0] + r[1], 2**24))), max_size=4),
    ),
    max_size=5,
)


@settings(max_examples=60, deadline=None)
@given(steps)
def test_trees_hold_what_a_dict_holds(rounds: list[tuple[Model, list[tuple[int, int]]]]) -> None:
    manifests = Rig(pack_bytes=8 << 20).manifests
    model: Model = {}
    root, before, old_model = ZERO_ID, ZERO_ID, model
    for changes, zero_ranges in rounds:
        before, old_model = root, dict(model)
        root = manifests.update(root, 3, changes, zero_ranges)
        model = {
            at: chunk_id
            for at, chunk_id in model.items()
            if not any(start <= at < end for start, end in zero_ranges)
        }
        model.update(changes)
        model = {at: chunk_id for at, chunk_id in model.items() if chunk_id != ZERO_ID}
    assert content(manifests, root, 3) == model
    for at in {*model, 0, 255, 256, 2**24 - 1}:
        assert looked_up(manifests, root, 3, at) == model.get(at, ZERO_ID)
    found = {at: (old, new) for at, old, new in manifests.diff(before, 3, root, 3)}
    assert found == {
        at: (old_model.get(at, ZERO_ID), model.get(at, ZERO_ID))
        for at in sorted({*old_model, *model})
        if old_model.get(at) != model.get(at)
    }
    assert list(found) == sorted(found)
    check_extents(manifests, root, model)


def check_extents(manifests: Manifests, root: bytes, model: Model) -> None:
    for first, end in ((0, 2**24), (3, 300), (65_500, 65_600), (9, 9)):
        runs = list(manifests.extents(root, 3, first, end))
        assert sum(count for _, count, _ in runs) == end - first
        at = first
        for start, count, allocated in runs:
            assert start == at
            inside = sum(1 for index in model if start <= index < start + count)
            assert inside == (count if allocated else 0)
            at += count
        assert all(a[2] != b[2] for a, b in pairwise(runs))


# -- lazy reads


def test_extents_of_a_sparse_exbibyte_read_only_what_is_there(
    rig: Rig, manifests: Manifests, reads: list[bytes]
) -> None:
    root = manifests.update(ZERO_ID, 6, {2**47: A})
    fresh = Manifests(rig.store)
    assert list(fresh.extents(root, 6, 0, 2**48)) == [
        (0, 2**47, False),
        (2**47, 1, True),
        (2**47 + 1, 2**47 - 1, False),
    ]
    assert len(reads) == 6


def test_extents_stop_when_nobody_asks(rig: Rig, manifests: Manifests, reads: list[bytes]) -> None:
    root = manifests.update(ZERO_ID, 3, dict.fromkeys(range(0, 2**24, 4096), A))
    fresh = Manifests(rig.store)
    assert next(fresh.extents(root, 3, 0, 2**24)) == (0, 1, True)
    assert len(reads) <= 3


def test_diff_reads_only_unequal_nodes(rig: Rig, manifests: Manifests, reads: list[bytes]) -> None:
    old = manifests.update(ZERO_ID, 3, dict.fromkeys(range(0, 2**24, 4096), A))
    new = manifests.update(old, 3, {4096: B})
    fresh = Manifests(rig.store)
    assert list(fresh.diff(old, 3, new, 3)) == [(4096, A, B)]
    assert len(reads) == 6


def test_diff_of_trees_of_unequal_height(manifests: Manifests) -> None:
    low = manifests.update(ZERO_ID, 1, {1: A, 2: A})
    high = manifests.update(ZERO_ID, 3, {1: A, 2: B, 70_000: C})
    assert list(manifests.diff(low, 1, high, 3)) == [(2, A, B), (70_000, ZERO_ID, C)]
    assert list(manifests.diff(high, 3, low, 1)) == [(2, B, A), (70_000, C, ZERO_ID)]
    assert list(manifests.diff(manifests.grow(low, 1, 3), 3, low, 1)) == []


def test_walk_visits_shared_nodes_when_told_to(manifests: Manifests) -> None:
    old = manifests.update(ZERO_ID, 3, {0: A, 70_000: B})
    new = manifests.update(old, 3, {0: C})
    seen: set[bytes] = set()
    chunks: list[bytes] = []

    def enter(node: bytes) -> bool:
        fresh = node not in seen
        seen.add(node)
        return fresh

    manifests.walk(old, 3, enter, chunks.extend)
    assert (len(seen), chunks) == (5, [A, B])
    manifests.walk(new, 3, enter, chunks.extend)
    assert (len(seen), chunks) == (8, [A, B, C])


def test_walk_leaves_the_cache_alone(rig: Rig, manifests: Manifests) -> None:
    root = manifests.update(ZERO_ID, 3, dict.fromkeys(range(0, 2**24, 65536), A))
    fresh = Manifests(rig.store)
    fresh.walk(root, 3, lambda node: True, lambda ids: None)
    assert fresh.cache.size == 0


def test_the_cache_stays_within_its_budget(rig: Rig, reads: list[bytes]) -> None:
    manifests = Manifests(rig.store, cache_bytes=3 * NODE_COST)
    root = manifests.update(ZERO_ID, 2, {at: hash_of(b"%d" % at) for at in range(0, 65536, 256)})
    assert manifests.cache.size == 3 * NODE_COST
    manifests.lookup_leaf(root, 2, 0)
    reads.clear()
    manifests.lookup_leaf(root, 2, 0)
    assert reads == []


# -- hostile bytes

NODE = encode_node(1, A + bytes(32 * 250) + B + C + bytes(32 * 3))


def test_decode_undoes_encode() -> None:
    full = b"".join(hash_of(b"%d" % n) for n in range(256))
    for ids in (full, A + bytes(32 * 255), bytes(32 * 255) + B):
        assert decode_node(encode_node(2, ids), 2) == ids


def test_no_data_chunk_can_have_the_length_of_a_node() -> None:
    lengths = {len(encode_node(0, A * n + bytes(32 * (256 - n)))) for n in range(1, 257)}
    assert all(length % 512 for length in lengths)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        NODE[:47],
        NODE[:-1],
        NODE + b"\0",
        b"XMAN" + NODE[4:],
        NODE[:4] + b"\x02" + NODE[5:],
        NODE[:7] + b"\x01" + NODE[8:],
        NODE[:8] + b"\x02" + NODE[9:],
        NODE[:12] + b"\x01" + NODE[13:],
        NODE[:16] + b"\x03" + NODE[17:],
        NODE[:-32] + ZERO_ID,
        NODE_HEADER.pack(b"BMAN", 1, 1, 0) + bytes(32),
    ],
)
def test_a_node_that_is_not_right_is_corrupt(data: bytes) -> None:
    with pytest.raises(CorruptManifest, match="node"):
        decode_node(data, 1)


@given(st.integers(0, len(NODE) - 1), st.integers(0, 255))
def test_a_changed_byte_decodes_to_the_same_bytes_or_is_corrupt(at: int, value: int) -> None:
    data = bytearray(NODE)
    data[at] = value
    try:
        assert encode_node(1, decode_node(bytes(data), 1)) == data
    except CorruptManifest:
        assert data != NODE


def test_a_node_at_the_wrong_level_is_corrupt(rig: Rig, manifests: Manifests) -> None:
    leaf = manifests.update(ZERO_ID, 1, {0: A})
    for opened in (manifests, Manifests(rig.store)):
        with pytest.raises(CorruptManifest, match=f"{leaf.hex()}.*level 0, where level 1"):
            opened.lookup_leaf(leaf, 2, 0)


def test_a_chunk_that_is_no_node_is_corrupt(rig: Rig, manifests: Manifests) -> None:
    chunk_id = rig.store.put(b"x" * 100, KIND_NODE)
    with pytest.raises(CorruptManifest, match=chunk_id.hex()):
        manifests.lookup_leaf(chunk_id, 1, 0)
