"""The C kernels against their Python twins."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import native
from native import reference

some_bytes = st.binary(max_size=3000)


def test_crc32c_of_the_usual_string() -> None:
    assert native.crc32c(b"123456789") == 0xE3069283
    assert native.crc32c(b"") == 0
    assert native.crc32c(b"", 77) == 77


@given(some_bytes, st.integers(0, 2**32 - 1))
@settings(max_examples=50)
def test_crc32c(data: bytes, crc: int) -> None:
    assert native.crc32c(data, crc) == reference.crc32c(data, crc)


@given(some_bytes, st.data())
def test_crc32c_goes_on(data: bytes, draw: st.DataObject) -> None:
    cut = draw.draw(st.integers(0, len(data)))
    assert native.crc32c(data[cut:], native.crc32c(data[:cut])) == native.crc32c(data)


def test_crc32c_without_the_gil_is_the_same() -> None:
    data = bytes(range(256)) * 1024
    parts = 0
    for at in range(0, len(data), 4096):
        parts = native.crc32c(data[at : at + 4096], parts)
    assert native.crc32c(data) == parts


@pytest.mark.parametrize("length", [0, 1, 4095, 4096, 4097, 12288, 12289])
def test_crc32c_pages(length: int) -> None:
    data = bytes(at * 7 & 255 for at in range(length))
    assert native.crc32c_pages(data) == reference.crc32c_pages(data)


@given(st.integers(0, 300), st.integers(0, 299), st.integers(0, 255))
def test_is_zero(length: int, at: int, byte: int) -> None:
    data = bytearray(length)
    if at < length:
        data[at] = byte
    assert native.is_zero(data) == reference.is_zero(data)


@given(st.integers(1, 64), st.binary(min_size=1, max_size=40))
def test_is_zero_of_patterns(count: int, pattern: bytes) -> None:
    assert native.is_zero(pattern * count) == reference.is_zero(pattern)


@pytest.mark.parametrize("kernel", [native.crc32c, native.crc32c_pages, native.is_zero])
def test_kernels_take_contiguous_bytes(kernel: object) -> None:
    assert callable(kernel)
    for wrong in ("text", None, 5, memoryview(b"abcdef")[::2]):
        with pytest.raises((TypeError, BufferError)):
            kernel(wrong)
    view = memoryview(bytearray(b"abc"))
    kernel(view)
    view.release()  # no longer exported
