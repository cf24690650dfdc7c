"""Sending a version: the chunks of its tree that a base does not have, as a stream of bytes.

The two trees are walked together; a subtree that is the same at the same place is not looked at.
So the work is in proportion to the difference. What is the same at *another* place is left out as
well, as far as it is known: one bit for each entry of each pack says what was sent in this stream
(2 MiB for 1 TiB), and before the start the base's chunks are marked too, up to BASE_SHARE times
as many leaves as the difference touches; beyond that, looking would cost more than sending.

Leaving out is only ever a saving. What a stream *must* hold follows from Position alone (see
`volume.stream_wire`), so a stream can be resumed although gc has moved chunks meanwhile.

Any thread; nothing is written. The caller keeps gc from the trees of target and base until the
iterator is used up or closed.
"""

import copy
from collections.abc import Iterator
from typing import NamedTuple

from volume.chunks import ChunkStore
from volume.commits import Commit, encode, get_commit
from volume.gc import Marks
from volume.index import Place
from volume.layout import CHUNK_ID_LENGTH, FAN_OUT, NODE_IDS_LENGTH, ZERO_ID, ChunkId
from volume.manifest import Manifests
from volume.stream_errors import StreamRefused
from volume.stream_wire import FRAME, HEADER, START, Encoder, Position, ResumeToken, frame_length

PIECE_BYTES = 512 * 1024  # what the iterator gives out at once, at least, but for the last
COUNT_LEAVES = 4096  # of the difference; larger ones (64 GiB at 64 KiB a chunk) are not counted
BASE_SHARE = 8  # leaves of the base that are marked for each leaf of the difference
_EMPTY_IDS = bytes(NODE_IDS_LENGTH)


class Tree:
    """A tree by position, whatever the height of the tree that it is compared with."""

    def __init__(self, manifests: Manifests, root: ChunkId = ZERO_ID, height: int = 1) -> None:
        self._manifests = manifests
        self._root = root
        self._height = height

    def subtree(self, position: Position) -> ChunkId:
        """The id at a place; ZERO_ID where there is nothing, above the root too."""
        end, rank = position
        if rank >= self._height:
            return self._root if (end, rank) == (FAN_OUT**self._height, self._height) else ZERO_ID
        span = FAN_OUT ** (rank + 1)
        parent_end = -(-end // span) * span
        slot = (end - 1) % span // FAN_OUT**rank
        return _at(self.children(Position(parent_end, rank + 1)), slot)

    def children(self, position: Position) -> bytes:
        """The 256 ids under the node at a place."""
        end, rank = position
        if rank == self._height + 1 and end == FAN_OUT**rank:
            return self._root + _EMPTY_IDS[CHUNK_ID_LENGTH:]
        node = self.subtree(position)
        return _EMPTY_IDS if node == ZERO_ID else self._manifests.node_ids(node, rank - 1)


def _at(ids: bytes, slot: int) -> ChunkId:
    return ids[slot * CHUNK_ID_LENGTH : (slot + 1) * CHUNK_ID_LENGTH]


class _Item(NamedTuple):
    """Something that the receiver lacks; `repeated` when it has the bytes, at another place."""

    position: Position
    chunk_id: ChunkId
    place: Place | None
    repeated: bool


def send(
    chunks: ChunkStore,
    manifests: Manifests,
    target: ChunkId,
    base: ChunkId | None = None,
    resume: ResumeToken | None = None,
) -> Iterator[bytes]:
    """The stream of commit `target` as a difference to commit `base`, from `resume` on.

    Errors before the first piece: StreamRefused (they do not fit together) and those of
    `ChunkStore.get`; the latter also later, when a chunk turns out to be damaged."""
    if resume is not None and (resume.target, resume.base) != (target, base):
        raise StreamRefused(
            f"the resume token is for commit {resume.target.hex()}"
            + (f" from {resume.base.hex()}" if resume.base else "")
            + ", not for what is to be sent; name that, or send without --resume"
        )
    commit = get_commit(chunks, target)
    base_commit = None if base is None else get_commit(chunks, base)
    if base_commit is not None and base_commit.chunk_size != commit.chunk_size:
        raise StreamRefused(
            f"commit {target.hex()} has chunks of {commit.chunk_size} bytes, its base "
            f"{base_commit.chunk_size}: they share nothing; send it whole, without --from"
        )
    return _Sender(chunks, manifests, commit, base_commit).pieces(
        target, base, START if resume is None else resume.position
    )


class _Sender:
    def __init__(
        self, chunks: ChunkStore, manifests: Manifests, commit: Commit, base: Commit | None
    ) -> None:
        self._chunks = chunks
        self._manifests = manifests
        self._commit = commit
        self._base_commit = base
        self._base = Tree(manifests) if base is None else Tree(manifests, base.root, base.height)
        self._marks = Marks()

    def pieces(self, target: ChunkId, base: ChunkId | None, resume: Position) -> Iterator[bytes]:
        commit_bytes = encode(self._commit)
        leaves = sum(1 for _ in self._leaves())
        if self._base_commit is not None:
            self._mark_base(leaves * BASE_SHARE)
        frame_count = length = None
        if leaves <= COUNT_LEAVES:
            frame_count, length = self._counted(resume)
            length += HEADER.size + len(commit_bytes) + FRAME.size
        encoder = Encoder()
        parts = [
            encoder.header(
                target,
                commit_bytes,
                base=base,
                resume=resume,
                frame_count=frame_count,
                length=length,
            )
        ]
        size = 0
        for item in self._items(self._marks):
            if item.position <= resume:
                continue
            if item.repeated:
                part = encoder.repeated(item.position, item.chunk_id)
            else:
                stored = self._chunks.stored(item.chunk_id)
                part = encoder.frame(item.position, item.chunk_id, stored)
            parts.append(part)
            size += len(part)
            if size >= PIECE_BYTES:
                yield b"".join(parts)
                parts, size = [], 0
        parts.append(encoder.end())
        yield b"".join(parts)

    def _counted(self, resume: Position) -> tuple[int, int]:
        """Frames after `resume`, and their bytes."""
        count = length = 0
        for item in self._items(copy.deepcopy(self._marks)):
            if item.position > resume:
                count += 1
                stored = 0 if item.repeated or item.place is None else item.place.stored_length
                length += frame_length(stored)
        return count, length

    def _mark_base(self, leaf_limit: int) -> None:
        assert self._base_commit is not None
        left = leaf_limit

        def enter(node: ChunkId) -> bool:
            if left <= 0:
                return False
            place = self._chunks.place(node)
            return place is not None and self._marks.mark(place)

        def leaf(children: list[ChunkId]) -> None:
            nonlocal left
            left -= 1
            for place in self._chunks.index.get_many(children):
                if place is not None:
                    self._marks.mark(place)

        self._manifests.walk(self._base_commit.root, self._base_commit.height, enter, leaf)

    @property
    def _top(self) -> Position:
        return Position(FAN_OUT**self._commit.height, self._commit.height)

    def _leaves(self) -> Iterator[ChunkId]:
        """The leaves that differ, up to one more than are counted."""
        pending = [(self._top, self._commit.root)]
        found = 0
        while pending and found <= COUNT_LEAVES:
            position, node = pending.pop()
            if node in (ZERO_ID, self._base.subtree(position)):
                continue
            if position.rank == 1:
                found += 1
                yield node
            else:
                pending.extend(reversed(list(self._differing(position, node))))

    def _items(self, marks: Marks) -> Iterator[_Item]:
        """What the base lacks, in post-order; marks what it comes by."""
        if self._commit.root not in (ZERO_ID, self._base.subtree(self._top)):
            yield from self._subtree(self._top, self._commit.root, marks)

    def _subtree(self, position: Position, node: ChunkId, marks: Marks) -> Iterator[_Item]:
        children = list(self._differing(position, node))
        if position.rank == 1:
            places = self._chunks.index.get_many([child for _, child in children])
            for (place_in_tree, child), place in zip(children, places, strict=True):
                if place is None or marks.mark(place):
                    yield _Item(place_in_tree, child, place, repeated=False)
        else:
            for place_in_tree, child in children:
                yield from self._subtree(place_in_tree, child, marks)
        place = self._chunks.place(node)
        yield _Item(position, node, place, repeated=place is not None and not marks.mark(place))

    def _differing(self, position: Position, node: ChunkId) -> Iterator[tuple[Position, ChunkId]]:
        """The children of a node that are not the base's, in order."""
        end, rank = position
        ids = self._manifests.node_ids(node, rank - 1)
        base = self._base.children(position)
        span = FAN_OUT ** (rank - 1)
        first = end - span * FAN_OUT
        for slot in range(FAN_OUT):
            child = _at(ids, slot)
            if child not in (ZERO_ID, _at(base, slot)):
                yield Position(first + (slot + 1) * span, rank - 1), child
