"""Referred trees: what REFER records of the log name, and what keeps it from gc.

A REFER record says that a range of a volume reads as a range of a tree of chunks (`volume.ranges`).
Its chunks may be reached by nothing else: its source may be written over or deleted, and a past
version of the any-write window may need it for as long as the record can be replayed. So each tree
that a record names has a row in `meta/`, and is a root of gc while it has.

    1  row durable        a crash from here on: a tree is kept for a while that nobody needs
    2  record appended    from here on the range reads so; after a crash if the log has the record
    3  ...                the range is written over, destaged, looked at as it was
    4  row goes           when no replay can begin before the record any more

How long a row must stay is known in memory only, as the record that named the tree last. For those
that a start finds that is the last one of the log, or, when nothing is hot, the one before the
checkpoint: a moment later than need be.

Threads: `begin` and `expire` under the store's control lock, the rest from any.
"""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from volume import layout
from volume.framing import corrupt_value, framed, unframed
from volume.kv import KeyValue
from volume.layout import CHUNK_ID_LENGTH, ZERO_ID, ChunkId


@dataclass(frozen=True, slots=True)
class Tree:
    """A tree of chunks; `chunk_size` is bytes."""

    root: ChunkId
    height: int
    chunk_size: int


@dataclass(slots=True)
class _Use:
    """Until when a tree is needed."""

    lsn: int = 0
    """Of the last record that names it."""
    sequence: int = 0
    """Of that record's segment, or a later one."""
    users: int = 0
    """About to append one that does."""
    stored: bool = False
    """It has a row."""


class ReferredTrees:
    """The trees of one data directory. Errors of what changes them: those of `KeyValue`."""

    def __init__(self, kv: KeyValue) -> None:
        self.protect: Callable[[Tree], bool] = lambda _tree: True
        """Told of a tree that has just been added; False when gc has taken parts of it already. Set
        by `volume.upkeep`."""
        self._kv = kv
        self._lock = threading.Lock()
        self._uses = {tree: _Use(stored=True) for tree in rows(kv)}

    def replayed(self, lsn: int, sequence: int) -> None:
        """At a start: `lsn` is that of the last record that may name a tree, or a later one, of a
        segment not after `sequence`."""
        with self._lock:
            for use in self._uses.values():
                use.lsn, use.sequence = lsn, sequence

    def begin(self, tree: Tree) -> bool:
        """Keep `tree`, durably, for a record that is about to be appended; call `end` after that.

        The tree was whole when the control lock was taken. False: it is not, and is not kept."""
        with self._lock:
            use = self._uses.setdefault(tree, _Use())
            use.users += 1
        kept = False
        try:
            if not use.stored and tree.root != ZERO_ID:
                self._kv.update(tree_put(tree))
                use.stored = True
            kept = self.protect(tree)
        finally:
            if not kept:  # its row, if there is one, goes with those that expire
                with self._lock:
                    use.users -= 1
        return kept

    def end(self, tree: Tree, lsn: int, sequence: int) -> None:
        """Record `lsn` names `tree`, in a segment not after `sequence`; 0: none does after all."""
        with self._lock:
            use = self._uses[tree]
            use.users -= 1
            if lsn:
                use.lsn, use.sequence = max(use.lsn, lsn), max(use.sequence, sequence)

    def expire(self, lsn: int, sequence: int | None) -> int:
        """No replay begins before record `lsn`, nor, with `sequence`, does anybody look at what one
        has brought back from segments before that: forget the trees that only earlier records
        name; how many."""
        with self._lock:
            gone = [
                tree
                for tree, use in self._uses.items()
                if not use.users and use.lsn < lsn and (sequence is None or use.sequence < sequence)
            ]
            for tree in gone:
                del self._uses[tree]
        if gone:
            self._kv.update({}, [_key(tree) for tree in gone])
        return len(gone)

    def trees(self) -> list[Tree]:
        with self._lock:
            return [tree for tree in self._uses if tree.root != ZERO_ID]


def rows(kv: KeyValue) -> Iterator[Tree]:
    """The trees that have a row."""
    prefix = layout.META_PREFIX_TREE
    for key, value in kv.items(prefix):
        body = unframed(key, value)
        if len(key) != len(prefix) + CHUNK_ID_LENGTH + 1 or len(body) != layout.META_TREE_ROW.size:
            corrupt_value("meta", key, f"is {len(body)} bytes long")
        (chunk_size,) = layout.META_TREE_ROW.unpack(body)
        yield Tree(key[len(prefix) : -1], key[-1], chunk_size)


def tree_put(tree: Tree) -> dict[bytes, bytes]:
    """The row of a tree."""
    return {_key(tree): framed(layout.META_TREE_ROW.pack(tree.chunk_size))}


def _key(tree: Tree) -> bytes:
    return layout.META_PREFIX_TREE + tree.root + bytes([tree.height])
