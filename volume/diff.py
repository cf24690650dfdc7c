"""Diff: where two versions of a volume differ.

A version is a tree, and on top of it, while its newest bytes are in the journal only, *hot* ranges
that the tree does not know. What differs is told in whole chunks: chunks whose ids differ, and
chunks that a hot range of either side touches (they may turn out to be equal; nothing that differs
is ever left out). Equal subtrees have equal ids and are not read, so the cost is that of the
difference, not of the volume.

Sizes may differ. What is beyond the end of a version reads as zeros here: growing a volume changes
nothing until something is written there, and cutting it off changes what was not zero. (Trees hold
zeros beyond the end of their volume; shrinking unmaps first.) So a diff covers the larger of both,
and is the same in both directions. Who brings a copy from one version to the other sets its size
first, filling with zeros, then copies the extents up to that size.

Both sides must have one chunk size: ids of chunks of unequal sizes cannot be compared.

Pure but for reading nodes; safe on any thread. Errors: those of `Manifests`.
"""

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from volume.layout import ChunkId
from volume.manifest import Manifests


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two versions."""

    root: ChunkId
    height: int
    size: int
    """Bytes of the volume, at that version."""
    hot: Sequence[tuple[int, int]] = ()
    """(offset, length) in bytes of what the tree does not know; in any order, may overlap."""


def changed_chunks(
    manifests: Manifests, old: Side, new: Side, first: int = 0, end: int | None = None
) -> Iterator[int]:
    """Indexes in [first, end) of the chunks in which the two trees differ, in order. Lazy.

    Of the trees only: hot ranges are not looked at."""
    differences = manifests.diff(old.root, old.height, new.root, new.height, first, end)
    return (index for index, _, _ in differences)


def changed_extents(
    manifests: Manifests,
    old: Side,
    new: Side,
    chunk_size: int,
    offset: int = 0,
    length: int | None = None,
) -> Iterator[tuple[int, int]]:
    """(offset, length) of what differs in a range of bytes, ascending, no two adjacent. Lazy.

    Whole chunks, but for the ends of the range and of the larger version, where they are cut."""
    size = max(old.size, new.size)
    stop = size if length is None else min(size, offset + length)
    if offset >= stop:
        return
    first, end = offset // chunk_size, -(-stop // chunk_size)
    chunks = changed_chunks(manifests, old, new, first, end)
    hot = sorted(
        (start // chunk_size, -(-(start + count) // chunk_size))
        for start, count in (*old.hot, *new.hot)
        if count
    )
    hot = [(low, high) for low, high in hot if low < end and high > first]
    for low, high in _joined(heapq.merge(((index, index + 1) for index in chunks), hot)):
        begin = max(offset, low * chunk_size)
        yield begin, min(stop, high * chunk_size) - begin


def _joined(runs: Iterator[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Half-open runs, ascending by their starts, with those that touch made one."""
    low, high = -1, -1
    for start, end in runs:
        if start > high:
            if low >= 0:
                yield low, high
            low, high = start, end
        elif end > high:
            high = end
    if low >= 0:
        yield low, high
