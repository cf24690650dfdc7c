"""Fuzz target of manifests and commits: any bytes as nodes of trees, and

- a node is decoded or refused as CorruptManifest; what is decoded is encoded as the same bytes, so
  there is one encoding of one content;
- the same of commits;
- looking up, walking, listing extents, comparing and changing trees of such nodes ends with an
  answer or CorruptData, whatever they link to, and answers agree with each other;
- gc's walk of a tree sees every node that a lookup can reach.

Input: heights of two trees (1), then nodes of a length (2, little-endian) and bytes, deepest first;
the last is a commit. In a node an id that begins with LINK and a number stands for that earlier
node; with SEAL in place of its magic it gets magic, version, and the count that its bitmap says.
"""

import contextlib
from collections.abc import Iterator

from tests.unit.volume.rig import Rig
from volume import commits, layout, manifest
from volume.errors import CorruptData, CorruptManifest
from volume.layout import CHUNK_ID_LENGTH, FAN_OUT, KIND_NODE, ZERO_ID, ChunkId
from volume.manifest import Manifests

LINK, SEAL = b"LINK", b"SEAL"
MAX_NODES = 12
MAX_STEPS = 4000  # of lazy answers: a few nodes can stand for 2^32 chunks
_BITMAP = layout.NODE_HEADER.size
_IDS = _BITMAP + layout.NODE_BITMAP_LENGTH


def manifest_target(data: bytes) -> None:
    """Run one input; raises when an invariant is broken."""
    heights = data[0] if data else 0
    rig = Rig()
    nodes: list[ChunkId] = []
    pieces = list(_pieces(data[1:]))
    for piece in pieces:
        body = _linked(_sealed(piece), nodes)
        _check_node(body)
        _check_commit(body)
        if body and not any(body):
            nodes.append(ZERO_ID)
        elif body:
            nodes.append(rig.store.put(body, KIND_NODE))
    rig.store.sync()
    if nodes:
        old = (nodes[-1], 1 + heights % 4)
        new = (nodes[len(nodes) // 2], 1 + heights // 4 % 4)
        _check_trees(rig.manifests, old, new)


def _pieces(data: bytes) -> Iterator[bytes]:
    at = 0
    for _ in range(MAX_NODES):
        if at >= len(data):
            return
        length = int.from_bytes(data[at : at + 2], "little")
        yield data[at + 2 : at + 2 + length]
        at += 2 + length


def _sealed(body: bytes) -> bytes:
    """With a header that fits the bitmap, and as many bytes as it says, if the magic is SEAL."""
    if not body.startswith(SEAL) or len(body) < _IDS:
        return body
    _, _, level, _ = layout.NODE_HEADER.unpack_from(body)
    bits = int.from_bytes(body[_BITMAP:_IDS], "little")
    count = bits.bit_count()
    header = layout.NODE_HEADER.pack(layout.NODE_MAGIC, layout.NODE_VERSION, level, count)
    length = count * CHUNK_ID_LENGTH
    return header + body[_BITMAP:_IDS] + body[_IDS : _IDS + length].ljust(length, b"\x01")


def _linked(body: bytes, nodes: list[ChunkId]) -> bytes:
    out = bytearray(body)
    for at in range(_IDS, len(out) - CHUNK_ID_LENGTH + 1, CHUNK_ID_LENGTH):
        if nodes and out[at : at + len(LINK)] == LINK:
            out[at : at + CHUNK_ID_LENGTH] = nodes[out[at + len(LINK)] % len(nodes)]
    return bytes(out)


def _check_node(body: bytes) -> None:
    for level in range(3):
        try:
            ids = manifest.decode_node(body, level)
        except CorruptManifest:
            continue
        assert len(ids) == layout.NODE_IDS_LENGTH
        assert manifest.encode_node(level, ids) == body


def _check_commit(body: bytes) -> None:
    with contextlib.suppress(CorruptManifest):
        assert commits.encode(commits.decode(body)) == body


def _check_trees(trees: Manifests, old: tuple[ChunkId, int], new: tuple[ChunkId, int]) -> None:
    root, height = old
    end = FAN_OUT**height
    with contextlib.suppress(CorruptData):
        _check_extents(trees, root, height)
    with contextlib.suppress(CorruptData):
        _check_walk(trees, root, height)
    with contextlib.suppress(CorruptData):
        _check_diff(trees, old, new)
    with contextlib.suppress(CorruptData):
        changed = trees.update(root, height, {0: b"\x07" * 32, end - 1: b"\x08" * 32}, [(3, 200)])
        leaf = trees.lookup_leaf(changed, height, 0)
        assert leaf is not None
        assert leaf[:CHUNK_ID_LENGTH] == b"\x07" * 32
        grown = trees.grow(root, height, height + 1)
        assert trees.lookup_leaf(grown, height + 1, 0) == trees.lookup_leaf(root, height, 0)


def _steps(answers: Iterator[tuple[int, int, bool]]) -> Iterator[tuple[int, int, bool]]:
    for number, answer in enumerate(answers):
        if number == MAX_STEPS:
            return
        yield answer


def _check_extents(trees: Manifests, root: ChunkId, height: int) -> None:
    at = 0
    before = None
    for first, count, allocated in _steps(trees.extents(root, height, 0, FAN_OUT**height)):
        assert first == at
        assert count > 0
        assert allocated != before  # the longest runs possible
        leaf = trees.lookup_leaf(root, height, first // FAN_OUT)
        slot = first % FAN_OUT * CHUNK_ID_LENGTH
        found = ZERO_ID if leaf is None else leaf[slot : slot + CHUNK_ID_LENGTH]
        assert (found != ZERO_ID) == allocated
        at, before = first + count, allocated


def _check_walk(trees: Manifests, root: ChunkId, height: int) -> None:
    entered: set[ChunkId] = set()
    data: set[ChunkId] = set()

    def enter(node: ChunkId) -> bool:
        new = node not in entered
        entered.add(node)
        return new

    trees.walk(root, height, enter, lambda ids: data.update(ids))
    assert ZERO_ID not in entered
    assert ZERO_ID not in data
    leaf = trees.lookup_leaf(root, height, 0)
    if leaf is not None:
        ids = {leaf[at : at + CHUNK_ID_LENGTH] for at in range(0, len(leaf), CHUNK_ID_LENGTH)}
        assert ids - {ZERO_ID} <= data


def _check_diff(trees: Manifests, old: tuple[ChunkId, int], new: tuple[ChunkId, int]) -> None:
    last = -1
    for number, (at, before, after) in enumerate(trees.diff(*old, *new)):
        assert at > last
        assert before != after
        last = at
        if number == MAX_STEPS:
            return
    assert next(trees.diff(*old, *old), None) is None
