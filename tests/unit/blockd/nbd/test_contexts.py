import itertools
import struct

from hypothesis import given
from hypothesis import strategies as st

from blockd.device import STATE_HOLE, STATE_ZERO
from blockd.nbd.contexts import (
    ALL,
    ALLOCATION,
    ALLOCATION_DEPTH,
    MAX_DESCRIPTORS,
    Context,
    descriptors,
    filter_payload,
    listed,
    selected,
    status_chunk,
    status_chunk_ext,
)

HOLE = STATE_HOLE | STATE_ZERO


def test_no_query_lists_everything_and_selects_nothing() -> None:
    assert listed([]) == list(ALL)
    assert selected([]) == ()


def test_namespace_alone_lists_its_contexts_but_selects_none() -> None:
    assert listed(["base:"]) == [ALLOCATION]
    assert listed(["qemu:"]) == [ALLOCATION_DEPTH]
    assert selected(["base:", "qemu:"]) == ()


def test_unknown_queries_are_ignored() -> None:
    queries = ["base:other", "x-none:a", "nonsense", "", "qemu:dirty-bitmap:b0"]
    assert listed(queries) == []
    assert selected([*queries, "base:allocation"]) == (ALLOCATION,)


def test_a_context_asked_for_twice_is_selected_once() -> None:
    assert selected(["base:allocation", "base:allocation"]) == (ALLOCATION,)


def test_depth_is_one_where_something_is_allocated() -> None:
    extents = [(4096, HOLE), (4096, 0), (4096, STATE_ZERO)]
    found = descriptors(ALLOCATION_DEPTH, extents, 12288, only_first=False)
    assert found == [(4096, 0), (8192, 1)]


def test_flags_that_the_protocol_does_not_know_stay_inside() -> None:
    assert descriptors(ALLOCATION, [(10, 0xF0 | HOLE)], 10, only_first=False) == [(10, HOLE)]


def test_only_first_takes_the_whole_first_run() -> None:
    extents = [(4096, 0), (4096, 0), (4096, HOLE)]
    assert descriptors(ALLOCATION, extents, 12288, only_first=True) == [(8192, 0)]


def test_a_device_that_says_nothing_gives_one_safe_descriptor() -> None:
    assert descriptors(ALLOCATION, [], 512, only_first=False) == [(512, 0)]
    assert descriptors(ALLOCATION_DEPTH, [], 512, only_first=False) == [(512, 1)]


def test_descriptors_are_bounded() -> None:
    extents = [(1, index % 2) for index in range(MAX_DESCRIPTORS + 10)]
    found = descriptors(ALLOCATION, extents, len(extents), only_first=False)
    assert len(found) == MAX_DESCRIPTORS


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3)), max_size=12),
    st.integers(1, 60),
    st.booleans(),
    st.sampled_from(ALL),
)
def test_descriptors_obey_the_rules(
    extents: list[tuple[int, int]], length: int, only_first: bool, context: Context
) -> None:
    found = descriptors(context, extents, length, only_first=only_first)
    assert found
    assert all(part > 0 for part, _ in found)
    assert sum(part for part, _ in found) <= length
    assert all(left[1] != right[1] for left, right in itertools.pairwise(found))
    assert len(found) == 1 or not only_first


def test_chunks_have_the_protocols_layout() -> None:
    extents = [(4096, 0), (8192, 3)]
    assert status_chunk(ALLOCATION, extents) == struct.pack(">IIIII", 1, 4096, 0, 8192, 3)
    expected = struct.pack(">IIQQQQ", 1, 2, 4096, 0, 8192, 3)
    assert status_chunk_ext(ALLOCATION, extents) == expected


def test_filter_names_negotiated_contexts_once_each() -> None:
    def payload(*numbers: int) -> bytes:
        return struct.pack(f">Q{len(numbers)}I", 1 << 40, *numbers)

    assert filter_payload(payload(2), ALL) == (1 << 40, (ALLOCATION_DEPTH,))
    assert filter_payload(payload(2, 1), ALL) == (1 << 40, (ALLOCATION_DEPTH, ALLOCATION))
    assert filter_payload(payload(), ALL) is None
    assert filter_payload(payload(1, 1), ALL) is None
    assert filter_payload(payload(3), ALL) is None
    assert filter_payload(payload(2), (ALLOCATION,)) is None
