"""Sizes: what people write is what they get."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockd.sizes import exact_size, format_size, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("4096", 4096),
        ("512B", 512),
        ("1k", 1024),
        ("512MiB", 512 << 20),
        ("10G", 10 << 30),
        ("10 GiB", 10 << 30),
        ("10gi", 10 << 30),
        ("1.5T", 3 << 39),
        ("0.5K", 512),
        ("1EiB", 1 << 60),
    ],
)
def test_sizes_are_binary(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "G", "-1", "10X", "1.2.3M", "ten", "1e9", "٣G", "0x10"])
def test_what_is_no_size_is_refused_by_name(text: str) -> None:
    with pytest.raises(ValueError, match="not a size") as caught:
        parse_size(text)
    assert repr(text) in str(caught.value)


def test_decimal_looking_units_are_refused_with_the_binary_one() -> None:
    with pytest.raises(ValueError, match="write 10GiB"):
        parse_size("10GB")


def test_part_of_a_byte_is_refused() -> None:
    with pytest.raises(ValueError, match="whole number of bytes"):
        parse_size("1.0001K")


def test_endless_text_is_refused() -> None:
    with pytest.raises(ValueError, match="longer than"):
        parse_size("9" * 100_000)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (10 << 30, "10 GiB"),
        ((1 << 30) - 1, "1 GiB"),
        (1610612736000, "1.46 TiB"),
        (1 << 60, "1 EiB"),
        (5000 << 60, "5000 EiB"),
    ],
)
def test_sizes_print_short(size: int, text: str) -> None:
    assert format_size(size) == text


@given(st.integers(0, 1 << 70))
def test_exact_sizes_come_back(size: int) -> None:
    assert parse_size(exact_size(size)) == size


@given(st.integers(0, 1 << 63))
def test_printed_sizes_are_close_and_parse(size: int) -> None:
    number, unit = format_size(size).split()
    shown = float(number) * parse_size("1" + unit)
    assert abs(shown - size) <= size * 0.006
