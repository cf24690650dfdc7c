import resource
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blockd.receive import MIN_ROOM, ReceiveBuffer

MIB = 1 << 20


def put(buffer: ReceiveBuffer, data: bytes, *, borrowed: bool = False) -> None:
    buffer.room(len(data), borrowed=borrowed)[: len(data)] = data
    buffer.landed(len(data))


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def unparsed(buffer: ReceiveBuffer) -> bytes:
    return bytes(buffer.view[buffer.start : buffer.end])


def test_bytes_land_in_order() -> None:
    buffer = ReceiveBuffer(4096, 8192)
    put(buffer, b"abc")
    put(buffer, b"def")
    assert unparsed(buffer) == b"abcdef"


def test_room_makes_an_announced_message_fit_in_one_piece() -> None:
    buffer = ReceiveBuffer(4096, 8192)
    put(buffer, b"head")
    buffer.need = MIB
    room = buffer.room(1, borrowed=False)
    assert len(room) >= MIB - 4
    assert unparsed(buffer) == b"head"


def test_views_stay_valid_while_events_wait() -> None:
    buffer = ReceiveBuffer(4096, 8192)
    put(buffer, b"x" * 4000)
    view = buffer.view[:4000]
    buffer.start = 4000
    put(buffer, b"y" * 4000, borrowed=True)
    assert bytes(view) == b"x" * 4000
    assert unparsed(buffer) == b"y" * 4000


def test_a_large_buffer_is_given_back_when_empty() -> None:
    buffer = ReceiveBuffer(4096, 8192)
    buffer.need = MIB
    buffer.room(1, borrowed=False)
    assert buffer.capacity >= MIB
    buffer.need = 0
    buffer.room(1, borrowed=False)
    assert buffer.capacity == 4096


def test_moderate_growth_is_kept_until_trimmed() -> None:
    buffer = ReceiveBuffer(4096, 8 * MIB)
    buffer.need = MIB
    buffer.room(1, borrowed=False)
    buffer.need = 0
    buffer.room(1, borrowed=False)
    assert buffer.capacity >= MIB
    buffer.trim()
    assert buffer.capacity == 4096


def test_trim_keeps_what_is_not_parsed() -> None:
    buffer = ReceiveBuffer(4096, 8 * MIB)
    put(buffer, b"half a header")
    buffer.trim()
    assert unparsed(buffer) == b"half a header"


def test_announced_bytes_cost_no_memory_until_they_come() -> None:
    before = resident_bytes()
    buffers = [ReceiveBuffer(4096, 8192) for _ in range(16)]
    for buffer in buffers:
        buffer.need = 32 * MIB
        buffer.room(1, borrowed=False)
    assert resident_bytes() - before < 64 * MIB  # touched, it would be 512 MiB


def test_landing_more_than_the_room_is_our_bug() -> None:
    buffer = ReceiveBuffer(4096, 8192)
    with pytest.raises(AssertionError):
        buffer.landed(4097)


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(st.binary(min_size=1, max_size=300), st.integers(0, 400), st.booleans()),
        max_size=30,
    )
)
def test_equals_a_plain_queue(steps: list[tuple[bytes, int, bool]]) -> None:
    buffer = ReceiveBuffer(256, 1024)
    model = b""
    for data, consumed, borrowed in steps:
        put(buffer, data, borrowed=borrowed)
        model += data
        consumed = min(consumed, len(model))
        buffer.start += consumed
        model = model[consumed:]
        assert unparsed(buffer) == model
        assert buffer.capacity <= 2 * (1024 + MIN_ROOM + 65536)
