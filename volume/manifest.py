"""Manifests: which chunk holds which part of a volume, as an immutable tree of chunk ids.

    level 2          root                        height 3
    level 1          node  node ...
    level 0 (leaf)   leaf  leaf ...              256 chunk ids each: 16 MiB at 64 KiB a chunk

Every node has FAN_OUT (256) children; a child that is all zeros is ZERO_ID, at any level, so an
empty volume of any size has the root ZERO_ID and no node at all. Nodes are chunks, named by their
hash. The encoding is canonical (one content, one byte string), so equal subtrees have equal ids:
that makes clones free and lets `diff` skip what is shared.

A node's length is 16 more than a multiple of 32, a data chunk's is a multiple of 512: so no client
can write data that is, by its hash, one of the nodes.

In memory a node is its 256 ids in one `bytes` of 8 KiB; on disk ids that are ZERO_ID are left out.
A tree is (root, height). `update` writes each changed node once, from the leaves up.

Bytes of a node may come from a peer: every field is checked, and CorruptManifest is all that bad
ones can cause.

Threads: everything that reads may be called from any thread; `grow` and `update` from the writer's.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping

from volume import layout
from volume.chunks import ChunkStore
from volume.errors import CorruptManifest
from volume.layout import (
    CHUNK_ID_LENGTH,
    FAN_OUT,
    KIND_NODE,
    NODE_BITMAP_LENGTH,
    NODE_IDS_LENGTH,
    ZERO_ID,
    ChunkId,
)
from volume.model import MAX_VOLUME_SIZE, MIN_CHUNK_SIZE
from volume.nodecache import NodeCache

DEFAULT_CACHE_BYTES = 32 * 1024 * 1024  # 4,096 nodes: the leaves of 64 GiB at 64 KiB a chunk
RUN = 16  # children of a node compared at once
_EMPTY_IDS = bytes(NODE_IDS_LENGTH)


def height_for(size: int, chunk_size: int) -> int:
    """Levels that a tree over `size` bytes needs; at least 1."""
    count = -(-size // chunk_size)
    height = 1
    while FAN_OUT**height < count:
        height += 1
    return height


MAX_HEIGHT = height_for(MAX_VOLUME_SIZE, MIN_CHUNK_SIZE)


def encode_node(level: int, ids: bytes) -> bytes:
    """A node as it is stored. It must have at least one id that is not ZERO_ID."""
    children = _split(ids)
    bits, present = 0, children
    if ZERO_ID in children:
        present = [child for child in children if child != ZERO_ID]
        for index, child in enumerate(children):
            bits |= (child != ZERO_ID) << index
    else:
        bits = (1 << FAN_OUT) - 1
    assert present
    header = layout.NODE_HEADER.pack(layout.NODE_MAGIC, layout.NODE_VERSION, level, len(present))
    return b"".join((header, bits.to_bytes(NODE_BITMAP_LENGTH, "little"), *present))


def decode_node(data: bytes, level: int, what: str = "node") -> bytes:
    """The 256 ids of a node that must be of `level`. CorruptManifest, beginning with `what`."""
    ids_offset = layout.NODE_HEADER.size + NODE_BITMAP_LENGTH
    if len(data) < ids_offset:
        raise CorruptManifest(f"{what}: {len(data)} bytes are too few")
    magic, version, found_level, count = layout.NODE_HEADER.unpack_from(data)
    header = layout.NODE_HEADER.pack(magic, version, found_level, count)
    if magic != layout.NODE_MAGIC or version != layout.NODE_VERSION or not data.startswith(header):
        raise CorruptManifest(f"{what}: magic {magic!r}, version {version} are not known")
    if found_level != level:
        raise CorruptManifest(f"{what}: is of level {found_level}, where level {level} belongs")
    bits = int.from_bytes(data[layout.NODE_HEADER.size : ids_offset], "little")
    if not 0 < count == bits.bit_count() or len(data) != ids_offset + count * CHUNK_ID_LENGTH:
        raise CorruptManifest(
            f"{what}: count {count}, {bits.bit_count()} bits and {len(data)} bytes do not agree"
        )
    body = data[ids_offset:]
    # Zeros that straddle two ids are as unlikely as a hash of many zeros, and no reason to split.
    if ZERO_ID in body and ZERO_ID in _split(body):
        raise CorruptManifest(f"{what}: lists a zero id as present")
    if count == FAN_OUT:
        return body
    following = iter(_split(body))
    return b"".join(next(following) if bits >> index & 1 else ZERO_ID for index in range(FAN_OUT))


def _split(ids: bytes) -> list[ChunkId]:
    return [ids[at : at + CHUNK_ID_LENGTH] for at in range(0, len(ids), CHUNK_ID_LENGTH)]


def _at(ids: bytes | bytearray, index: int) -> ChunkId:
    return bytes(ids[index * CHUNK_ID_LENGTH : (index + 1) * CHUNK_ID_LENGTH])


def _unequal(a: bytes, b: bytes, low: int, high: int) -> Iterator[int]:
    """Which of the children [low, high) of two nodes differ, in order.

    Runs of RUN first: 20 times as fast as one by one where few differ, twice where all do."""
    for start in range(low - low % RUN, high, RUN):
        begin, stop = start * CHUNK_ID_LENGTH, (start + RUN) * CHUNK_ID_LENGTH
        if a[begin:stop] != b[begin:stop]:
            for child in range(max(start, low), min(start + RUN, high)):
                begin = child * CHUNK_ID_LENGTH
                stop = begin + CHUNK_ID_LENGTH
                if a[begin:stop] != b[begin:stop]:
                    yield child


class _Edits:
    """What one `update` changes: new ids, and ranges that become zero before them."""

    def __init__(
        self, changes: Mapping[int, ChunkId], zero_ranges: Iterable[tuple[int, int]]
    ) -> None:
        self.ids = changes
        self._indexes = sorted(changes)
        self._starts: list[int] = []  # of disjoint ranges with gaps between them, in order
        self._ends: list[int] = []
        for start, end in sorted(pair for pair in zero_ranges if pair[0] < pair[1]):
            if self._ends and start <= self._ends[-1]:
                self._ends[-1] = max(self._ends[-1], end)
            else:
                self._starts.append(start)
                self._ends.append(end)

    @property
    def last(self) -> int:
        """The highest chunk index that is touched; -1 when nothing is."""
        return max(self._indexes[-1] if self._indexes else -1, (self._ends or [0])[-1] - 1)

    @property
    def first(self) -> int:
        return min(self._indexes[:1] + self._starts[:1], default=0)

    def changed(self, first: int, end: int) -> list[int]:
        """Indexes with new ids in [first, end), in order."""
        return self._indexes[bisect_left(self._indexes, first) : bisect_left(self._indexes, end)]

    def has_changes(self, first: int, end: int) -> bool:
        at = bisect_left(self._indexes, first)
        return at < len(self._indexes) and self._indexes[at] < end

    def zeroed(self, first: int, end: int) -> Iterator[tuple[int, int]]:
        """The parts of zero ranges within [first, end), in order."""
        at = bisect_left(self._ends, first + 1)
        while at < len(self._starts) and self._starts[at] < end:
            yield max(self._starts[at], first), min(self._ends[at], end)
            at += 1

    def clears(self, first: int, end: int) -> bool:
        """Whether [first, end) becomes zero as a whole, but for changes."""
        return next(self.zeroed(first, end), None) == (first, end)

    def touched(self, first: int, end: int, span: int) -> list[int]:
        """Which children, each of `span` chunks, of the node over [first, end) are touched."""
        children: set[int] = set()
        at = first
        while self.has_changes(at, end):
            child = (self._indexes[bisect_left(self._indexes, at)] - first) // span
            children.add(child)
            at = first + (child + 1) * span
        for start, stop in self.zeroed(first, end):
            children.update(range((start - first) // span, (stop - 1 - first) // span + 1))
            if len(children) == FAN_OUT:
                break
        return sorted(children)


class Manifests:
    """Trees of chunk ids in a chunk store, with their nodes cached under a byte budget.

    Errors of reads: CorruptManifest and those of `ChunkStore.get`; of writes: `ChunkStore.put`.
    """

    def __init__(self, store: ChunkStore, cache_bytes: int = DEFAULT_CACHE_BYTES) -> None:
        self._store = store
        self.cache = NodeCache(cache_bytes)

    def grow(self, root: ChunkId, height: int, new_height: int) -> ChunkId:
        """The root of the same tree with more levels; durable after `ChunkStore.sync`."""
        assert height <= new_height <= MAX_HEIGHT
        if root != ZERO_ID:
            for level in range(height, new_height):
                root = self._put(level, root + _EMPTY_IDS[CHUNK_ID_LENGTH:])
        return root

    def lookup_leaf(self, root: ChunkId, height: int, leaf_index: int) -> bytes | None:
        """The 256 ids of a leaf (8 KiB), None when all of them are ZERO_ID."""
        assert 0 <= leaf_index < FAN_OUT ** (height - 1)
        node = root
        for level in range(height - 1, 0, -1):
            if node == ZERO_ID:
                return None
            node = _at(self._node(node, level), leaf_index // FAN_OUT ** (level - 1) % FAN_OUT)
        return None if node == ZERO_ID else self._node(node, 0)

    def update(
        self,
        root: ChunkId,
        height: int,
        changes: Mapping[int, ChunkId],
        zero_ranges: Iterable[tuple[int, int]] = (),
    ) -> ChunkId:
        """The root after zeroing `zero_ranges`, then setting `changes` (chunk index -> new id).

        Ranges are half-open, of chunk indexes. Reads and writes only nodes that change; durable
        after `ChunkStore.sync`. After OutOfSpace the old tree is as it was."""
        edits = _Edits(changes, zero_ranges)
        assert 0 <= edits.first <= edits.last + 1 <= FAN_OUT**height, "outside of the tree"
        return self._rewrite(root, height - 1, 0, edits)

    def extents(
        self, root: ChunkId, height: int, first: int, end: int
    ) -> Iterator[tuple[int, int, bool]]:
        """Runs (first chunk, count, allocated) that cover [first, end), longest possible.

        Lazy; a zero subtree costs nothing."""
        assert 0 <= first <= end <= FAN_OUT**height
        start, state = first, False
        at = first
        for run_end, allocated in self._runs(root, height - 1, 0, first, end):
            if allocated != state:
                if at > start:
                    yield start, at - start, state
                start, state = at, allocated
            at = run_end
        if at > start:
            yield start, at - start, state

    def children(self, node: ChunkId, level: int) -> list[ChunkId]:
        """The ids of a node that are not ZERO_ID, in order. Leaves the cache as it is."""
        ids = self.cache.peek(node, level) or self._load(node, level)
        return [child for child in _split(ids) if child != ZERO_ID]

    def walk(
        self,
        root: ChunkId,
        height: int,
        enter: Callable[[ChunkId], bool],
        leaf: Callable[[list[ChunkId]], None],
    ) -> None:
        """Visit a tree. `enter(node id)` says whether to go into a node; `leaf` gets the ids that
        are not ZERO_ID of each leaf gone into. Leaves the cache as it is."""
        if root == ZERO_ID or not enter(root):
            return
        children = self.children(root, height - 1)
        if height == 1:
            leaf(children)
            return
        for child in children:
            self.walk(child, height - 1, enter, leaf)

    def diff(
        self,
        old: ChunkId,
        old_height: int,
        new: ChunkId,
        new_height: int,
        first: int = 0,
        end: int | None = None,
    ) -> Iterator[tuple[int, ChunkId, ChunkId]]:
        """(chunk index, old id, new id) wherever two trees differ in [first, end), in order.

        Lazy; neither equal subtrees nor those out of the range are read. Trees of unequal height
        are compared from index 0: what the lower one lacks is zeros."""
        if end is None:
            end = FAN_OUT ** max(old_height, new_height)
        assert 0 <= first <= end
        if old_height < new_height:
            flipped = self.diff(new, new_height, old, old_height, first, end)
            yield from ((at, a, b) for at, b, a in flipped)
            return
        if first < end:
            yield from self._differences(old, old_height - 1, new, new_height - 1, 0, first, end)

    # -- inside

    def _rewrite(self, node: ChunkId, level: int, first: int, edits: _Edits) -> ChunkId:
        span = FAN_OUT**level
        end = first + span * FAN_OUT
        if edits.clears(first, end):
            node = ZERO_ID
        if node == ZERO_ID and not edits.has_changes(first, end):
            return ZERO_ID
        before = _EMPTY_IDS if node == ZERO_ID else self._node(node, level)
        ids = bytearray(before)
        if level == 0:
            for start, stop in edits.zeroed(first, end):
                low, high = (start - first) * CHUNK_ID_LENGTH, (stop - first) * CHUNK_ID_LENGTH
                ids[low:high] = bytes(high - low)
            for index in edits.changed(first, end):
                at = (index - first) * CHUNK_ID_LENGTH
                ids[at : at + CHUNK_ID_LENGTH] = edits.ids[index]
        else:
            for child in edits.touched(first, end, span):
                at = child * CHUNK_ID_LENGTH
                ids[at : at + CHUNK_ID_LENGTH] = self._rewrite(
                    _at(ids, child), level - 1, first + child * span, edits
                )
        assert len(ids) == NODE_IDS_LENGTH
        return node if ids == before else self._put(level, bytes(ids))

    def _runs(
        self, node: ChunkId, level: int, base: int, first: int, end: int
    ) -> Iterator[tuple[int, bool]]:
        """(end, allocated) of runs from max(first, base) on, up to `end` or the node's own end."""
        span = FAN_OUT**level
        if node == ZERO_ID:
            yield min(end, base + span * FAN_OUT), False
            return
        ids = self._node(node, level)
        for child in range(max(0, first - base) // span, FAN_OUT):
            start = base + child * span
            if start >= end:
                return
            child_id = _at(ids, child)
            if level == 0 or child_id == ZERO_ID:
                yield min(end, start + span), child_id != ZERO_ID
            else:
                yield from self._runs(child_id, level - 1, start, first, end)

    def _differences(
        self,
        old: ChunkId,
        old_level: int,
        new: ChunkId,
        new_level: int,
        base: int,
        first: int,
        end: int,
    ) -> Iterator[tuple[int, ChunkId, ChunkId]]:
        """As `diff`; `new` is a subtree at the same place, of the same level or a lower one."""
        if old_level == new_level and old == new:
            return
        old_children = _EMPTY_IDS if old == ZERO_ID else self._node(old, old_level)
        if old_level > new_level:
            new_children = new + _EMPTY_IDS[CHUNK_ID_LENGTH:]
        else:
            new_children = _EMPTY_IDS if new == ZERO_ID else self._node(new, new_level)
        span = FAN_OUT**old_level
        low, high = max(0, first - base) // span, -(-(end - base) // span)
        for child in _unequal(old_children, new_children, low, min(high, FAN_OUT)):
            at = base + child * span
            a, b = _at(old_children, child), _at(new_children, child)
            if old_level == 0:
                yield at, a, b
            else:
                # Of a lower tree the root stands at child 0, not at its level yet.
                lower = new_level if old_level > new_level and child == 0 else old_level - 1
                yield from self._differences(a, old_level - 1, b, lower, at, first, end)

    def node_ids(self, node: ChunkId, level: int) -> bytes:
        """The 256 ids of the children of a node that must be of `level`."""
        return self._node(node, level)

    def _node(self, node: ChunkId, level: int) -> bytes:
        ids = self.cache.get(node, level)
        if ids is None:
            ids = self._load(node, level)
            self.cache.put(node, level, ids)
        return ids

    def _load(self, node: ChunkId, level: int) -> bytes:
        return decode_node(self._store.get(node), level, f"manifest node {node.hex()}")

    def _put(self, level: int, ids: bytes) -> ChunkId:
        if ids == _EMPTY_IDS:
            return ZERO_ID
        node = self._store.put(encode_node(level, ids), KIND_NODE)
        self.cache.put(node, level, ids)
        return node
