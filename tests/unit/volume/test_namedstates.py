"""The list of names that goes with a copy of a volume."""

from dataclasses import replace

import pytest

from volume.namedstates import NamedState, decode, encode

ONE = NamedState("one", 5, 7, True, False, 9, 1 << 20, b"r" * 32, 2)
TWO = NamedState("two", 6, 8, False, True, 10, 1 << 30, b"s" * 32, 1)


def test_it_is_read_as_it_was_written() -> None:
    assert decode(encode([ONE, TWO])) == [ONE, TWO]
    assert decode(b"") == []


@pytest.mark.parametrize(
    "data",
    [
        encode([ONE])[:-1],
        encode([ONE])[:20],
        encode([ONE, ONE]),
        encode([ONE, replace(TWO, seq=5)]),
        encode([ONE]).replace(b"one", b"-ne"),
        encode([ONE]).replace(b"one", b"\xffne"),
        encode([NamedState("one", 5, 7, True, False, 9, 0, b"r" * 32, 2)]),
        encode([NamedState("one", 5, 7, True, False, 9, 1 << 20, b"r" * 32, 99)]),
    ],
)
def test_what_makes_no_sense_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"cut off|makes no sense|twice|codec"):
        decode(data)
