import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.volume.rig import Rig, hash_of
from volume.chunks import ChunkStore
from volume.diff import Side, changed_chunks, changed_extents
from volume.layout import FAN_OUT, KIND_NODE, ZERO_ID
from volume.manifest import Manifests, encode_node, height_for

A, B, C = (hash_of(letter) for letter in (b"A", b"B", b"C"))
KIB, MIB, TIB = 1 << 10, 1 << 20, 1 << 40
CHUNK = 4096
Ids = dict[int, bytes]


@pytest.fixture
def rig() -> Rig:
    return Rig(pack_bytes=8 << 20)


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


def side(manifests: Manifests, ids: Ids, size: int, hot: tuple[tuple[int, int], ...] = ()) -> Side:
    height = height_for(size, CHUNK)
    return Side(manifests.update(ZERO_ID, height, ids), height, size, hot)


# -- what differs


def test_equal_versions_do_not_differ(rig: Rig) -> None:
    one = side(rig.manifests, {0: A, 300: B}, 2 * MIB)
    assert list(changed_extents(rig.manifests, one, one, CHUNK)) == []


def test_neighbours_are_one_extent(rig: Rig) -> None:
    old = side(rig.manifests, dict.fromkeys(range(250, 260), A), 2 * MIB)
    new = side(rig.manifests, {255: B, 256: B, 258: A, 259: A}, 2 * MIB)
    assert list(changed_extents(rig.manifests, old, new, CHUNK)) == [(250 * CHUNK, 8 * CHUNK)]


def test_growing_changes_only_what_is_written_there(rig: Rig) -> None:
    old = side(rig.manifests, {1: A}, 1 * MIB)
    grown = side(rig.manifests, {1: A}, 8 * MIB)
    written = side(rig.manifests, {1: A, 1000: B}, 8 * MIB)
    assert old.height < grown.height
    assert list(changed_extents(rig.manifests, old, grown, CHUNK)) == []
    for pair in ((old, written), (written, old)):
        assert list(changed_extents(rig.manifests, *pair, CHUNK)) == [(1000 * CHUNK, CHUNK)]


def test_cutting_off_changes_what_was_not_zero(rig: Rig) -> None:
    old = side(rig.manifests, {1: A, 200: B}, MIB)
    cut = side(rig.manifests, {1: A}, MIB // 2)
    assert list(changed_extents(rig.manifests, old, cut, CHUNK)) == [(200 * CHUNK, CHUNK)]


def test_the_last_chunk_is_cut_where_the_larger_version_ends(rig: Rig) -> None:
    old = side(rig.manifests, {}, 5 * KIB)
    new = side(rig.manifests, {1: A}, 6 * KIB)
    assert list(changed_extents(rig.manifests, old, new, CHUNK)) == [(4 * KIB, 2 * KIB)]


def test_hot_ranges_of_both_sides_are_changed_whole_chunks(rig: Rig) -> None:
    old = side(rig.manifests, {}, MIB, ((100 * CHUNK + 512, 512), (0, 0)))
    new = side(rig.manifests, {3: A}, MIB, ((4 * CHUNK - 512, 1024), (100 * CHUNK, 4096)))
    assert list(changed_extents(rig.manifests, old, new, CHUNK)) == [
        (3 * CHUNK, 2 * CHUNK),
        (100 * CHUNK, CHUNK),
    ]


def test_a_range_cuts_chunks(rig: Rig) -> None:
    old, new = side(rig.manifests, {}, MIB), side(rig.manifests, {3: A, 4: A, 9: A}, MIB)
    found = changed_extents(rig.manifests, old, new, CHUNK, 3 * CHUNK + 512, CHUNK)
    assert list(found) == [(3 * CHUNK + 512, CHUNK)]
    assert list(changed_extents(rig.manifests, old, new, CHUNK, 3 * CHUNK, 0)) == []
    assert list(changed_extents(rig.manifests, old, new, CHUNK, 2 * MIB, CHUNK)) == []


IDS = st.dictionaries(
    st.integers(0, 20) | st.integers(240, 270) | st.integers(65_500, 66_000),
    st.sampled_from([A, B, C]),
    max_size=30,
)
HOT = st.lists(st.tuples(st.integers(0, 300 * CHUNK), st.integers(0, 3 * CHUNK)), max_size=4)
SIZES = st.integers(0, 2100).map(lambda sectors: sectors * 512) | st.integers(
    65_500 * 8, 66_000 * 8
).map(lambda sectors: sectors * 512)


@settings(deadline=None)
@given(IDS, IDS, HOT, HOT, SIZES, SIZES, st.data())
def test_a_diff_is_what_comparing_all_chunks_finds(
    old_ids: Ids,
    changes: Ids,
    old_hot: list[tuple[int, int]],
    new_hot: list[tuple[int, int]],
    old_size: int,
    new_size: int,
    data: st.DataObject,
) -> None:
    manifests = Rig(pack_bytes=8 << 20).manifests
    sides, contents = [], []
    for ids, hot, size in (
        (old_ids, old_hot, old_size),
        ({**old_ids, **changes}, new_hot, new_size),
    ):
        inside = {at: chunk_id for at, chunk_id in ids.items() if at * CHUNK < size}
        contents.append(inside)
        sides.append(side(manifests, inside, size, tuple(hot)))
    old, new = sides
    size = max(old_size, new_size)
    offset = data.draw(st.integers(0, size + CHUNK))
    length = data.draw(st.none() | st.integers(0, size))
    stop = size if length is None else min(size, offset + length)

    chunks = {at for at in {*old_ids, *changes} if contents[0].get(at) != contents[1].get(at)}
    for start, count in old_hot + new_hot:
        touched = {byte // CHUNK for byte in range(start, start + count, 512)}
        chunks |= touched | ({(start + count - 1) // CHUNK} if count else set())
    expected: list[tuple[int, int]] = []
    for at in sorted(chunks):
        begin, end = max(offset, at * CHUNK), min(stop, (at + 1) * CHUNK)
        if begin >= end:
            continue
        if expected and sum(expected[-1]) == begin:
            begin = expected.pop()[0]
        expected.append((begin, end - begin))
    assert list(changed_extents(manifests, old, new, CHUNK, offset, length)) == expected
    assert list(changed_extents(manifests, new, old, CHUNK, offset, length)) == expected


@settings(deadline=None)
@given(IDS, IDS, st.integers(0, 66_100), st.integers(0, 66_100))
def test_a_diff_of_a_range_is_that_part_of_the_diff(
    old: Ids, new: Ids, first: int, end: int
) -> None:
    manifests = Rig(pack_bytes=8 << 20).manifests
    one, two = manifests.update(ZERO_ID, 3, old), manifests.update(ZERO_ID, 3, new)
    first, end = min(first, end), max(first, end)
    whole = list(manifests.diff(one, 3, two, 3))
    part = list(manifests.diff(one, 3, two, 3, first, end))
    assert part == [row for row in whole if first <= row[0] < end]


# -- what it costs


def full_tebibyte(rig: Rig) -> Side:
    """1 TiB without a hole, in chunks of 64 KiB: 16,777,216 of them, by way of shared nodes."""
    node = A
    for level in range(3):
        node = rig.store.put(encode_node(level, node * FAN_OUT), KIND_NODE)
    return Side(node, 3, TIB)


@pytest.mark.parametrize(
    ("chunks", "nodes"),
    [
        (range(8_000_000, 8_000_016), 3),
        (range(0, 16_777_216, 1_048_576), 1 + 16 + 16),
    ],
    ids=["one MiB in a row", "one MiB in 16 places"],
)
def test_a_mebibyte_in_a_tebibyte_is_found_by_reading_the_paths_to_it(
    rig: Rig, reads: list[bytes], chunks: range, nodes: int
) -> None:
    old = full_tebibyte(rig)
    new = Side(rig.manifests.update(old.root, 3, dict.fromkeys(chunks, B)), 3, TIB)
    fresh = Manifests(rig.store)
    reads.clear()
    assert list(changed_chunks(fresh, old, new)) == list(chunks)
    assert len(reads) <= 2 * nodes
    reads.clear()
    assert list(changed_chunks(fresh, old, new)) == list(chunks)
    assert reads == []


def test_a_range_reads_only_its_own_nodes(rig: Rig, reads: list[bytes]) -> None:
    old = full_tebibyte(rig)
    changes = dict.fromkeys(range(0, 16_777_216, 65_536), B)
    new = Side(rig.manifests.update(old.root, 3, changes), 3, TIB)
    fresh = Manifests(rig.store)
    reads.clear()
    assert list(changed_chunks(fresh, old, new, 65_530, 65_540)) == [65_536]
    assert len(reads) <= 2 * 3
    reads.clear()
    found = changed_extents(Manifests(rig.store), old, new, 64 * KIB)
    assert next(found) == (0, 64 * KIB)
    assert len(reads) <= 2 * 4
