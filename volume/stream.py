"""Sending a version: the chunks of its tree that a base does not have, as a stream of bytes.

The two trees are walked together; a subtree that is the same at the same place is not looked at.
So the work is in proportion to the difference. The walk asks as it goes: which of these nodes are
other ones in the base (`Compare`), and which of these chunks does the receiver lack (`Lack`)?

    send      answers itself, from a base that is here too: the receiver never says anything
    send_to   has the receiver asked: the base is one that it has, and this store may have none of
              it; chunks that it has, from wherever, are not sent. So a stream that was cut costs
              little to send again: what came of it is there

What is the same at *another* place is left out as well, as far as it is known: one bit for each
entry of each pack says what was sent in this stream (2 MiB for 1 TiB), and with `send` before the
start the base's chunks are marked too, up to BASE_SHARE times as many leaves as the difference
touches; beyond that, looking would cost more than sending.

Leaving out is only ever a saving. What a stream *must* hold follows from Position alone (see
`volume.stream_wire`), so a stream can be resumed although gc has moved chunks meanwhile.

Any thread; nothing is written. The caller keeps gc from the trees of target and base until the
iterator is used up or closed.
"""

import copy
from collections.abc import Generator, Iterator, Sequence
from typing import NamedTuple, TypeAlias

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
LEAVES_AT_ONCE = 15  # asked for together, with all that is under them: 3,855 ids at the most
_EMPTY_IDS = bytes(NODE_IDS_LENGTH)


class Node(NamedTuple):
    """A node, or a chunk, and where in the tree it is."""

    position: Position
    chunk_id: ChunkId


class Compare(NamedTuple):
    """Which of these does the base not have at their places? At most FAN_OUT."""

    nodes: list[Node]


class Lack(NamedTuple):
    """Which of these does the receiver not have at all? At most LEAVES_AT_ONCE leaves, each behind
    all that is under it."""

    nodes: list[Node]


Question: TypeAlias = Compare | Lack
Answer: TypeAlias = frozenset[int] | None
"""Indexes into a question's nodes; None to begin with, and for what was no question."""
Pieces: TypeAlias = Generator[bytes | Question, Answer, None]


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
    sender = _Sender(chunks, manifests, commit, base_commit)
    return _bytes(sender.known(target, base, START if resume is None else resume.position))


def _bytes(pieces: Pieces) -> Iterator[bytes]:
    for piece in pieces:
        assert isinstance(piece, bytes)
        yield piece


def send_to(
    chunks: ChunkStore, manifests: Manifests, target: ChunkId, base: ChunkId | None
) -> Pieces:
    """The stream of commit `target` to a receiver that is asked, as a difference to commit `base`,
    which it has. Gives pieces, and questions that have to be answered before it goes on.

    An answer that lies makes a stream that the receiver refuses, or one that is too long."""
    commit = get_commit(chunks, target)
    sender = _Sender(chunks, manifests, commit, None)
    return sender.pieces(target, base, sender.walk(sender.marks))


_Walk: TypeAlias = Generator["_Item | Question", Answer, None]


class _Sender:
    """`base`: one that is here."""

    def __init__(
        self, chunks: ChunkStore, manifests: Manifests, commit: Commit, base: Commit | None
    ) -> None:
        self._chunks = chunks
        self._manifests = manifests
        self._commit = commit
        self._base_commit = base
        self._base = Tree(manifests) if base is None else Tree(manifests, base.root, base.height)
        self.marks = Marks()

    def known(self, target: ChunkId, base: ChunkId | None, resume: Position) -> Pieces:
        """The pieces of a stream for which nobody is asked."""
        leaves = sum(1 for _ in self._leaves())
        if self._base_commit is not None:
            self._mark_base(leaves * BASE_SHARE)
        counts = self._counted(resume) if leaves <= COUNT_LEAVES else None
        walk = self._answered(self.walk(self.marks))
        yield from self.pieces(target, base, walk, resume, counts)

    def pieces(
        self,
        target: ChunkId,
        base: ChunkId | None,
        walk: _Walk,
        resume: Position = START,
        counts: tuple[int, int] | None = None,
    ) -> Pieces:
        """`counts`: frames after `resume`, and their bytes."""
        commit_bytes = encode(self._commit)
        encoder = Encoder()
        frame_count = length = None
        if counts is not None:
            frame_count, length = counts
            length += HEADER.size + len(commit_bytes) + FRAME.size
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
        answer: Answer = None
        while (item := _next(walk, answer)) is not None:
            answer = None
            if not isinstance(item, _Item):
                answer = yield item
                continue
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
        for item in self._answered(self.walk(copy.deepcopy(self.marks))):
            assert isinstance(item, _Item)
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
            return place is not None and self.marks.mark(place)

        def leaf(children: list[ChunkId]) -> None:
            nonlocal left
            left -= 1
            for place in self._chunks.index.get_many(children):
                if place is not None:
                    self.marks.mark(place)

        self._manifests.walk(self._base_commit.root, self._base_commit.height, enter, leaf)

    # -- questions

    def _answered(self, walk: _Walk) -> _Walk:
        """The walk with its questions answered from the base."""
        answer: Answer = None
        while (item := _next(walk, answer)) is not None:
            answer = None
            if isinstance(item, _Item):
                yield item
            else:
                answer = self._unlike(item.nodes)

    def _unlike(self, nodes: Sequence[Node]) -> frozenset[int]:
        """Which of these the base does not have at their places."""
        found: set[int] = set()
        ids, first, end = _EMPTY_IDS, 0, 0  # of one node's children, which mostly come together
        rank = -1
        for index, (position, chunk_id) in enumerate(nodes):
            span = FAN_OUT**position.rank
            if position.rank != rank or not first < position.end <= end:
                rank = position.rank
                end = -(-position.end // (span * FAN_OUT)) * span * FAN_OUT
                first = end - span * FAN_OUT
                ids = self._base.children(Position(end, rank + 1))
            if chunk_id != _at(ids, (position.end - first) // span - 1):
                found.add(index)
        return frozenset(found)

    # -- the tree

    @property
    def _top(self) -> Position:
        return Position(FAN_OUT**self._commit.height, self._commit.height)

    def _leaves(self) -> Iterator[ChunkId]:
        """The leaves that differ, up to one more than are counted."""
        pending = [Node(self._top, self._commit.root)]
        found = 0
        while pending and found <= COUNT_LEAVES:
            position, node = pending.pop()
            if node in (ZERO_ID, self._base.subtree(position)):
                continue
            if position.rank == 1:
                found += 1
                yield node
            else:
                children = self._children(position, node)
                unlike = sorted(self._unlike(children), reverse=True)
                pending.extend(children[index] for index in unlike)

    def walk(self, marks: Marks) -> _Walk:
        """What the receiver lacks, in post-order; marks what it comes by."""
        if self._commit.root == ZERO_ID:
            return
        root = Node(self._top, self._commit.root)
        if (yield Compare([root])):
            if root.position.rank == 1:
                yield from self._under([root], marks)
            else:
                yield from self._subtree(root, marks)

    def _subtree(self, node: Node, marks: Marks) -> _Walk:
        children = self._children(*node)
        unlike = (yield Compare(children)) or frozenset()
        differing = [children[index] for index in sorted(unlike)]
        if node.position.rank == 2:
            for at in range(0, len(differing), LEAVES_AT_ONCE):
                yield from self._under(differing[at : at + LEAVES_AT_ONCE], marks)
        else:
            for child in differing:
                yield from self._subtree(child, marks)
        yield self._node(node, marks, lacks=True)

    def _under(self, leaves: list[Node], marks: Marks) -> _Walk:
        """Leaves, and what is under them."""
        under = [self._children(*leaf) for leaf in leaves]
        nodes = [
            node for leaf, children in zip(leaves, under, strict=True) for node in (*children, leaf)
        ]
        lacks = (yield Lack(nodes)) or frozenset()
        at = 0
        for leaf, children in zip(leaves, under, strict=True):
            lacking = [child for index, child in enumerate(children, at) if index in lacks]
            at += len(children) + 1
            places = self._chunks.index.get_many([child.chunk_id for child in lacking])
            for child, place in zip(lacking, places, strict=True):
                if place is None or marks.mark(place):
                    yield _Item(*child, place, repeated=False)
            yield self._node(leaf, marks, lacks=at - 1 in lacks)

    def _node(self, node: Node, marks: Marks, *, lacks: bool) -> _Item:
        place = self._chunks.place(node.chunk_id)
        first = place is None or marks.mark(place)
        return _Item(*node, place, repeated=not (lacks and first))

    def _children(self, position: Position, node: ChunkId) -> list[Node]:
        """Those of a node that are not zeros, in order."""
        end, rank = position
        ids = self._manifests.node_ids(node, rank - 1)
        span = FAN_OUT ** (rank - 1)
        first = end - span * FAN_OUT
        return [
            Node(Position(first + (slot + 1) * span, rank - 1), child)
            for slot in range(FAN_OUT)
            if (child := _at(ids, slot)) != ZERO_ID
        ]


def _next(walk: _Walk, answer: Answer) -> _Item | Question | None:
    try:
        return walk.send(answer)
    except StopIteration:
        return None
