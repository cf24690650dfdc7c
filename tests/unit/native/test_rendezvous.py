"""Rendezvous against its Python twin, and against values that must never change."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import native
from native import reference_rendezvous as reference

U64 = st.integers(0, (1 << 64) - 1)
WEIGHTS = st.integers(1, 1 << native.RENDEZVOUS_MAX_WEIGHT_BITS)


def ids_of(*packs: int) -> bytes:
    return b"".join(pack.to_bytes(8, "little") + bytes(24) for pack in packs)


@given(U64, U64)
def test_costs_are_as_the_twin_says(pack: int, device: int) -> None:
    assert native.rendezvous_cost(pack, device) == reference.cost(reference.hash_of(pack, device))


@given(
    st.lists(st.tuples(U64, WEIGHTS, st.integers(0, 9)), max_size=40),
    st.lists(U64, max_size=5),
    st.integers(1, native.RENDEZVOUS_MAX_CHOSEN),
)
@settings(max_examples=200)
def test_choices_are_as_the_twin_says(
    devices: list[tuple[int, int, int]], packs: list[int], count: int
) -> None:
    got = native.Rendezvous(devices).choose(ids_of(*packs), count)
    assert got == [reference.choose(devices, pack, count) for pack in packs]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 3), st.integers(0, 5)), max_size=12))
def test_ties_are_as_the_twin_says(devices: list[tuple[int, int, int]]) -> None:
    got = native.Rendezvous(devices).choose(ids_of(1, 2, 3), 4)
    assert got == [reference.choose(devices, pack, 4) for pack in (1, 2, 3)]


def test_large_batches_without_the_gil_are_the_same() -> None:
    devices = [(key * 0x9E3779B97F4A7C15 % 2**64, 1 + key % 7, key % 50) for key in range(300)]
    packs = list(range(100))
    got = native.Rendezvous(devices).choose(ids_of(*packs), 6)
    assert got == [reference.choose(devices, pack, 6) for pack in packs]


def test_choices_that_a_cluster_has_made_stay() -> None:
    devices = [(number * 0x0123456789ABCDEF % 2**64, 1 + number % 3, number) for number in range(9)]
    got = native.Rendezvous(devices).choose(ids_of(0, 1, 2**64 - 1, 0xDEADBEEFCAFEF00D), 3)
    assert got == [(5, 8, 6), (6, 1, 3), (8, 2, 5), (5, 6, 8)]
    assert native.rendezvous_cost(0xDEADBEEFCAFEF00D, 0x0123456789ABCDEF) == 351488355688851374


@pytest.mark.parametrize(
    "devices",
    [
        [(1, 0, 0)],
        [(1, (1 << 60) + 1, 0)],
        [(1, 1, 1 << 32)],
        [(-1, 1, 0)],
        [(1 << 64, 1, 0)],
        [(1, -1, 0)],
        [(1, 1)],
        [[1, 1, 0]],
        [(1, 1.0, 0)],
        [("1", 1, 0)],
        7,
        [(n, 1, n) for n in range(native.RENDEZVOUS_MAX_DEVICES + 1)],
    ],
)
def test_devices_that_are_none_are_refused(devices: Any) -> None:
    with pytest.raises((ValueError, TypeError, OverflowError)):
        native.Rendezvous(devices)


@pytest.mark.parametrize(("ids", "count"), [(b"x" * 31, 1), (b"", 0), (b"", 33), (b"", -1)])
def test_wrong_questions_are_refused(ids: bytes, count: int) -> None:
    with pytest.raises(ValueError, match="ids of 32 bytes"):
        native.Rendezvous([(1, 1, 0)]).choose(ids, count)


def test_no_packs_and_no_devices_choose_nothing() -> None:
    assert native.Rendezvous([]).choose(ids_of(1, 2), 3) == [(), ()]
    assert native.Rendezvous([(1, 1, 0)]).choose(b"", 3) == []
