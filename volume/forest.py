"""What a receive has stored so far: whole subtrees, in post-order, and how they may grow.

A version stream brings subtrees bottom-up (`volume.stream_wire`), so what is stored at any moment
is a *forest*: the children of the one path that is still open, at most 256 of each rank.

    rank 2 (a level-1 node)              [A      ]   whole: A and all that is under it
    rank 1 (leaves)                      [   b  c]   of the node after A
    rank 0 (chunks)                      [      d]   of the leaf after c

A node is let in only when everything under it is here: each of its children is the whole subtree
that came for that place, or is what the base has at that place, or, for a chunk, is in the store.
So a stream, however hostile, cannot make anything refer to what is not there; the forest's members
are all that gc must keep, and a list of a few hundred ids is all that must be remembered to go on
after a crash. A member that its parent does not name is refused, as is any other order; so the
forest stays that small whatever comes.

Pure bookkeeping: no I/O. `encode` and `decode` are for `volume.receive`, which keeps it in meta/.
"""

import struct
from collections.abc import Callable

from volume.errors import CorruptData
from volume.gc import Root
from volume.layout import CHUNK_ID_LENGTH, FAN_OUT, ZERO_ID, ChunkId
from volume.manifest import MAX_HEIGHT
from volume.stream_errors import InvalidStream
from volume.stream_wire import START, Position

_FOREST = struct.Struct("<Q B B")
"""position (end, rank), height of the tree. Then for each rank: count, and as many members."""
_COUNT = struct.Struct("<H")
_MEMBER = struct.Struct("<Q 32s")
"""end, id of the subtree."""

BaseIds = Callable[[Position], bytes]
"""The 256 ids that the base has for the children of the node at a place; ZERO_ID where none."""
Claim = Callable[[list[ChunkId]], list[bool]]
"""Which of some data chunks are in the store, of the right size, and will be kept."""


class Forest:
    """The received part of a tree of `height`."""

    def __init__(self, height: int) -> None:
        self.height = height
        self.position = START
        """Of the last subtree that is in it."""
        self._ranks: list[list[tuple[int, ChunkId]]] = [[] for _ in range(height + 1)]
        """(end, id) of the members of each rank."""

    def copy(self) -> "Forest":
        other = Forest(self.height)
        other.position = self.position
        other._ranks = [list(members) for members in self._ranks]
        return other

    def add_chunk(self, position: Position, chunk_id: ChunkId) -> None:
        """A data chunk that is in the store now. InvalidStream."""
        assert position.rank == 0
        self._check_order(position)
        self._join(position, chunk_id)

    def add_node(
        self, position: Position, node: ChunkId, ids: bytes, base_ids: BaseIds, claim: Claim
    ) -> None:
        """A node with the children `ids`, which is in the store now. InvalidStream."""
        self._check_order(position)
        rank = position.rank
        span = FAN_OUT ** (rank - 1)
        first = position.end - span * FAN_OUT
        came = {(end - first) // span - 1: member for end, member in self._ranks[rank - 1]}
        base = base_ids(position)
        unknown = []
        for slot in range(FAN_OUT):
            at = slot * CHUNK_ID_LENGTH
            child = ids[at : at + CHUNK_ID_LENGTH]
            received = came.pop(slot, None)
            if received is not None:
                if received != child:
                    raise _invalid(position, "does not name what came for one of its children")
            elif child not in (ZERO_ID, base[at : at + CHUNK_ID_LENGTH]):
                unknown.append(child)
        if came:
            raise _invalid(position, "comes after something that is not under it")
        if unknown and (rank > 1 or not all(claim(unknown))):
            raise _invalid(position, "names something that neither came nor is in the base")
        self._ranks[rank - 1] = []
        self._join(position, node)

    def _check_order(self, position: Position) -> None:
        if position <= self.position:
            raise _invalid(position, "comes out of order")
        if any(self._ranks[: max(0, position.rank - 1)]):
            raise _invalid(position, "comes before a node that is still open below it")

    def _join(self, position: Position, member: ChunkId) -> None:
        end, rank = position
        span = FAN_OUT ** (rank + 1)
        siblings = self._ranks[rank]
        if siblings and (siblings[-1][0] - 1) // span != (end - 1) // span:
            raise _invalid(position, "comes before the node that its predecessors belong to")
        siblings.append((end, member))
        self.position = position

    def is_whole(self, root: ChunkId, base_root: ChunkId | None) -> bool:
        """Whether it is the tree under `root`; `base_root` is the base's, if of equal height."""
        if self.position == START:
            return root in (ZERO_ID, base_root)
        top = [(FAN_OUT**self.height, root)]
        return self._ranks[-1] == top and not any(self._ranks[:-1])

    def members(self) -> list[tuple[ChunkId, int]]:
        """(id, rank) of all whole subtrees."""
        return [(node, rank) for rank, members in enumerate(self._ranks) for _, node in members]

    def roots(self) -> list[Root]:
        """What gc must keep for it."""
        chunks = tuple(member for _, member in self._ranks[0])
        nodes = [
            Root(member, rank)
            for rank, members in enumerate(self._ranks[1:], start=1)
            for _, member in members
        ]
        return [Root(ZERO_ID, 1, chunks), *nodes] if chunks else nodes

    def encode(self) -> bytes:
        parts = [_FOREST.pack(*self.position, self.height)]
        for members in self._ranks:
            parts.append(_COUNT.pack(len(members)))
            parts += [_MEMBER.pack(*member) for member in members]
        return b"".join(parts)

    @staticmethod
    def decode(data: bytes) -> "Forest":
        """CorruptData when `data` is not what `encode` wrote."""
        try:
            end, rank, height = _FOREST.unpack_from(data)
            if height > MAX_HEIGHT:
                raise CorruptData(f"progress of a receive: height {height}")
            forest = Forest(height)
            forest.position = Position(end, rank)
            at = _FOREST.size
            for members in forest._ranks:
                (count,) = _COUNT.unpack_from(data, at)
                at += _COUNT.size
                for _ in range(count):
                    members.append(_MEMBER.unpack_from(data, at))
                    at += _MEMBER.size
        except struct.error as error:
            raise CorruptData(f"progress of a receive: {error}") from error
        if at != len(data):
            raise CorruptData(f"progress of a receive: {len(data)} bytes instead of {at}")
        return forest


def _invalid(position: Position, what: str) -> InvalidStream:
    kind = f"node of level {position.rank - 1}" if position.rank else "chunk"
    return InvalidStream(
        f"the stream makes no sense: the {kind} that ends at chunk {position.end} {what}"
    )
