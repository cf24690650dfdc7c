"""The erasure code against its Python twin."""

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import native
from native import reference_erasure as reference

LENGTH = 67


def some_data(count: int, length: int = LENGTH) -> list[bytes]:
    return [bytes((at * at + 31 * i + at) & 255 for at in range(length)) for i in range(count)]


def encode(code: native.ErasureCode, data: Sequence[bytes], parity: int) -> list[bytes]:
    into = [bytearray(len(data[0])) for _ in range(parity)]
    code.encode(data, into)
    return [bytes(shard) for shard in into]


def check_loss(code: native.ErasureCode, shards: list[bytes], lost: Sequence[int]) -> None:
    there = [None if i in lost else shard for i, shard in enumerate(shards)]
    into = [bytearray(len(shards[0])) if i in lost else None for i in range(len(shards))]
    code.reconstruct(there, into)
    assert {i: bytes(shard) for i, shard in enumerate(into) if shard is not None} == {
        i: shards[i] for i in lost
    }


@pytest.mark.parametrize(("data", "parity"), [(4, 2), (8, 3)])
def test_every_pattern_of_loss_is_as_the_twin_says(data: int, parity: int) -> None:
    code = native.ErasureCode(data, parity)
    original = some_data(data)
    shards = original + reference.encode(original, parity)
    assert encode(code, original, parity) == shards[data:]
    for count in range(1, parity + 1):
        for lost in combinations(range(data + parity), count):
            there = [None if i in lost else shard for i, shard in enumerate(shards)]
            assert reference.reconstruct(data, there) == shards
            check_loss(code, shards, lost)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_other_codes_are_as_the_twin_says(draw: st.DataObject) -> None:
    data = draw.draw(st.integers(1, native.ERASURE_MAX_SHARDS - 1))
    parity = draw.draw(st.integers(1, native.ERASURE_MAX_SHARDS - data))
    length = draw.draw(st.integers(1, 150))
    original = [draw.draw(st.binary(min_size=length, max_size=length)) for _ in range(data)]
    lost = draw.draw(st.sets(st.integers(0, data + parity - 1), max_size=parity))
    code = native.ErasureCode(data, parity)
    shards = original + reference.encode(original, parity)
    assert encode(code, original, parity) == shards[data:]
    check_loss(code, shards, sorted(lost))


def test_large_shards_without_the_gil_are_the_same() -> None:
    code = native.ErasureCode(4, 2)
    original = some_data(4, 40_000)
    shards = original + reference.encode(original, 2)
    assert encode(code, original, 2) == shards[4:]
    check_loss(code, shards, [1, 4])


def test_tables_of_few_patterns_are_kept() -> None:
    code = native.ErasureCode(8, 3)
    original = some_data(8)
    shards = original + reference.encode(original, 3)
    for _ in range(3):
        check_loss(code, shards, [2])
    assert code.stats() == (1, 1)
    for lost in combinations(range(11), 2):
        check_loss(code, shards, lost)
    assert code.stats() == (native.ERASURE_PATTERNS, 56)


@pytest.mark.parametrize(("data", "parity"), [(0, 1), (1, 0), (-1, 3), (17, 4), (2**31 - 1, 1)])
def test_codes_that_are_none_are_refused(data: int, parity: int) -> None:
    with pytest.raises(ValueError, match="at least one of each"):
        native.ErasureCode(data, parity)


def test_wrong_buffers_are_refused() -> None:
    code = native.ErasureCode(2, 1)
    a, b, out = bytes(8), bytes(8), bytearray(8)
    both = bytearray(16)
    wrong: list[tuple[list[Any], list[Any]]] = [
        ([a], [out]),
        ([a, b, a], [out]),
        ([a, b], []),
        ([a, bytes(7)], [out]),
        ([a, b], [bytearray(9)]),
        ([b"", b""], [bytearray()]),
        ([memoryview(both)[:8], b], [memoryview(both)[7:15]]),
    ]
    for data, parity in wrong:
        with pytest.raises(ValueError, match=r"items|bytes|overlaps"):
            code.encode(data, parity)
    assert both == bytes(16)
    wrong = [([a, None], [out]), ([a, b], [a]), ([a, memoryview(both)[::2]], [out])]
    for data, parity in wrong:
        with pytest.raises((TypeError, BufferError)):
            code.encode(data, parity)
    out.append(0)  # no longer exported
    with pytest.raises(TypeError):
        code.encode(5, [out])  # type: ignore[arg-type]


def test_what_cannot_be_reconstructed_is_refused() -> None:
    code = native.ErasureCode(2, 1)
    with pytest.raises(ValueError, match="fewer than 2"):
        code.reconstruct([b"a", None, None], [None, bytearray(1), None])
    with pytest.raises(ValueError, match="wanted as well"):
        code.reconstruct([b"a", b"b", None], [bytearray(1), None, None])
    with pytest.raises(ValueError, match="fewer than 2"):
        code.reconstruct([None] * 3, [None] * 3)
    code.reconstruct([b"a", b"b", None], [None] * 3)
