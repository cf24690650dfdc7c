import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockd.nbd.options import (
    ContextQuery,
    ExportQuery,
    InvalidOption,
    decode_context_query,
    decode_export_query,
    decode_name,
)
from tests.nbd_client import context_query, export_query

names = st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=40)


@given(names, st.lists(st.integers(0, 65535), max_size=8))
def test_export_query_round_trip(name: str, items: list[int]) -> None:
    assert decode_export_query(export_query(name, *items)) == ExportQuery(name, frozenset(items))


@given(names, st.lists(names, max_size=5))
def test_context_query_round_trip(name: str, queries: list[str]) -> None:
    decoded = decode_context_query(context_query(name, *queries))
    assert decoded == ContextQuery(name, tuple(queries))


@given(st.binary(max_size=64))
def test_garbage_decodes_or_is_invalid(payload: bytes) -> None:
    for decode in (decode_export_query, decode_context_query):
        with contextlib.suppress(InvalidOption):
            decode(payload)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\0\0\0",
        struct.pack(">I", 1),  # name longer than the option
        struct.pack(">IH", 0xFFFFFFFF, 0),  # a sum that wraps in 32 bits
        export_query("disk")[:-1],
        export_query("disk", 1)[:-2],  # announces an item that is not there
        export_query("disk", 1) + b"\0",  # left over
        struct.pack(">I", 4097) + b"n" * 4097 + struct.pack(">H", 0),
        export_query("di\0sk"),
        struct.pack(">I2sH", 2, b"\xff\xfe", 0),
    ],
)
def test_broken_export_query_is_invalid(payload: bytes) -> None:
    with pytest.raises(InvalidOption):
        decode_export_query(payload)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        context_query("disk")[:-4],  # no count
        context_query("disk", "base:allocation")[:-1],
        context_query("disk", "base:allocation") + b"x",
        struct.pack(">II", 0, 0xFFFFFFFF),  # as many queries as 32 bits can say
        struct.pack(">III", 0, 1, 0xFFFFFFFF),
    ],
)
def test_broken_context_query_is_invalid(payload: bytes) -> None:
    with pytest.raises(InvalidOption):
        decode_context_query(payload)


def test_a_string_of_4096_bytes_is_the_longest() -> None:
    assert decode_name(b"n" * 4096, "name") == "n" * 4096
    with pytest.raises(InvalidOption, match="4097"):
        decode_name(b"n" * 4097, "name")
