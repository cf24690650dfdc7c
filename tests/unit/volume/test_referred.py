"""Trees that the log refers to: their rows, and until when they stay."""

from collections.abc import Iterable, Mapping

import pytest

from volume.errors import CorruptData
from volume.kv import MemoryKeyValue
from volume.layout import META_PREFIX_TREE, ZERO_ID
from volume.referred import ReferredTrees, Tree, rows

TREE = Tree(b"r" * 32, 3, 65536)
OTHER = Tree(b"r" * 32, 4, 65536)


class FailingKeyValue(MemoryKeyValue):
    failing = False

    def update(self, puts: Mapping[bytes, bytes], deletes: Iterable[bytes] = ()) -> None:
        if self.failing:
            raise OSError(28, "No space left on device")
        super().update(puts, deletes)


def test_row_is_there_from_begin_on_and_in_the_next_life() -> None:
    kv = MemoryKeyValue()
    assert ReferredTrees(kv).begin(TREE)
    assert list(rows(kv)) == [TREE]
    again = ReferredTrees(kv)
    assert again.trees() == [TREE]
    again.replayed(10, 2)
    assert again.expire(10, None) == 0
    assert again.expire(11, None) == 1
    assert again.trees() == list(rows(kv)) == []


def test_tree_stays_for_the_last_record_that_names_it() -> None:
    trees = ReferredTrees(MemoryKeyValue())
    for lsn, sequence in ((5, 1), (9, 2), (7, 2)):
        trees.begin(TREE)
        trees.end(TREE, lsn, sequence)
    trees.begin(OTHER)
    trees.end(OTHER, 3, 1)
    assert trees.expire(9, None) == 1
    assert trees.trees() == [TREE]
    assert trees.expire(10, 2) == 0  # somebody looks at what was in segment 2
    assert trees.expire(10, 3) == 1


def test_tree_that_is_about_to_be_named_stays() -> None:
    trees = ReferredTrees(MemoryKeyValue())
    trees.begin(TREE)
    assert trees.expire(1 << 60, None) == 0
    trees.end(TREE, 0, 7)  # the record could not be appended
    assert trees.expire(1, None) == 1


def test_tree_that_gc_has_begun_to_take_is_not_kept() -> None:
    trees = ReferredTrees(MemoryKeyValue())
    trees.protect = lambda _tree: False
    assert not trees.begin(TREE)
    assert trees.expire(1, None) == 1


def test_row_that_could_not_be_written_is_written_the_next_time() -> None:
    kv = FailingKeyValue()
    trees = ReferredTrees(kv)
    kv.failing = True
    with pytest.raises(OSError, match="No space"):
        trees.begin(TREE)
    kv.failing = False
    assert trees.begin(TREE)
    assert list(rows(kv)) == [TREE]


def test_tree_without_chunks_needs_no_row() -> None:
    kv = MemoryKeyValue()
    trees = ReferredTrees(kv)
    assert trees.begin(Tree(ZERO_ID, 1, 4096))
    assert trees.trees() == list(rows(kv)) == []


def test_damaged_row_is_told() -> None:
    kv = MemoryKeyValue({META_PREFIX_TREE + b"short": b"\1\0\0\0\0\0\0\0\0"})
    with pytest.raises(CorruptData):
        ReferredTrees(kv)
