"""Request: what it takes, what it refuses, and that it leaks nothing."""

import gc
import sys
import weakref

import pytest

from native import FLAG_FUA, OP_READ, OP_WRITE, Request


def test_fields() -> None:
    data = b"abcd"
    request = Request(OP_WRITE, 4096, 4, data, FLAG_FUA, 7)
    assert (request.op, request.offset, request.length) == (OP_WRITE, 4096, 4)
    assert (request.flags, request.cookie) == (FLAG_FUA, 7)
    assert request.data is data
    assert (request.error, request.message) == (0, None)
    assert "WRITE cookie=7 offset=4096 length=4 flags=1" in repr(request)
    assert repr(Request(99)).startswith("<Request ? ")


def test_defaults() -> None:
    request = Request(OP_READ)
    assert (request.offset, request.length, request.flags, request.cookie) == (0, 0, 0, 0)
    assert request.data is None


def test_the_largest_values_fit() -> None:
    most = (1 << 64) - 1
    request = Request((1 << 32) - 1, most, most, None, (1 << 32) - 1, most)
    assert (request.offset, request.length, request.cookie) == (most, most, most)
    assert (request.op, request.flags) == ((1 << 32) - 1, (1 << 32) - 1)


@pytest.mark.parametrize("field", ["offset", "length", "cookie"])
@pytest.mark.parametrize("value", [-1, 1 << 64, -(1 << 64)])
def test_numbers_do_not_wrap_around(field: str, value: int) -> None:
    with pytest.raises(OverflowError):
        Request(OP_READ, **{field: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [-1, 1 << 32, 1 << 64])
def test_op_and_flags_do_not_wrap_around(value: int) -> None:
    with pytest.raises(OverflowError):
        Request(value)
    with pytest.raises(OverflowError):
        Request(OP_READ, flags=value)


@pytest.mark.parametrize("value", ["1", 1.0, None])
def test_numbers_are_ints(value: object) -> None:
    with pytest.raises(TypeError):
        Request(OP_READ, value)  # type: ignore[arg-type]


def test_init_again_replaces() -> None:
    request = Request(OP_WRITE, 1, 2, b"ab", 1, 5)
    request.__init__(OP_READ)  # type: ignore[misc]
    assert (request.op, request.offset, request.cookie, request.data) == (OP_READ, 0, 0, None)


def test_data_and_message_are_released() -> None:
    data, message = bytearray(10), "m" * 50
    before = sys.getrefcount(data), sys.getrefcount(message)
    request = Request(OP_WRITE, 0, 10, data)
    request.message = message
    request.message = message
    request.__init__(OP_WRITE, 0, 10, data)  # type: ignore[misc]
    assert sys.getrefcount(data) == before[0] + 1
    del request
    assert (sys.getrefcount(data), sys.getrefcount(message)) == before


def test_a_failed_init_leaks_nothing() -> None:
    data = bytearray(10)
    before = sys.getrefcount(data)
    for _ in range(10):
        with pytest.raises(OverflowError):
            Request(OP_WRITE, 0, 10, data, 0, -1)
    assert sys.getrefcount(data) == before


def test_cycles_are_collected() -> None:
    class Owner:
        def __init__(self) -> None:
            self.request = Request(OP_READ)
            self.request.data = self

    gone = weakref.ref(Owner())
    gc.collect()
    assert gone() is None
