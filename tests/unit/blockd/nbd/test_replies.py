"""Replies on their own, sparse reads above all."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typing_extensions import Buffer

from blockd.nbd import wire
from blockd.nbd.replies import HOLE_BLOCK, MAX_FRAGMENTS, ChunkReplies, find_holes
from native import OP_READ, Request
from tests.nbd_engine import Engine, open_export

X = b"x" * HOLE_BLOCK
O = bytes(HOLE_BLOCK)  # noqa: E741


@pytest.mark.parametrize(
    ("data", "offset", "expected"),
    [
        (X, 0, [(0, 4096, False)]),
        (O, 0, [(0, 4096, True)]),
        (O, 4096, [(0, 4096, True)]),
        (O[1:], 0, [(0, 4095, False)]),  # less than a block
        (O, 1, [(0, 4096, False)]),  # not one aligned block in it
        (O + O, 1, [(0, 4095, False), (4095, 8191, True), (8191, 8192, False)]),
        (X + O + O + X, 0, [(0, 4096, False), (4096, 12288, True), (12288, 16384, False)]),
        (O + X + O, 0, [(0, 4096, True), (4096, 8192, False), (8192, 12288, True)]),
        (O + b"\0" * 100, 0, [(0, 4096, True), (4096, 4196, False)]),
    ],
)
def test_holes_are_whole_aligned_blocks(
    data: bytes, offset: int, expected: list[tuple[int, int, bool]]
) -> None:
    assert find_holes(data, offset) == expected


@settings(max_examples=100)
@given(
    st.lists(st.sampled_from([X, O, O[:-1] + b"\1", b"\1" + O[1:], O[:2000]]), max_size=12),
    st.integers(0, 9000),
)
def test_fragments_cover_the_data_and_holes_are_zero(parts: list[bytes], offset: int) -> None:
    data = b"".join(parts) or b"x"
    fragments = find_holes(data, offset)
    assert [start for start, _, _ in fragments] == [0, *(end for _, end, _ in fragments[:-1])]
    assert fragments[-1][1] == len(data)
    for start, end, hole in fragments:
        assert end > start
        if hole:
            assert not any(data[start:end])
            assert not (offset + start) % HOLE_BLOCK
            assert not (offset + end) % HOLE_BLOCK


def test_fragments_are_bounded() -> None:
    data = (X + O) * MAX_FRAGMENTS
    fragments = find_holes(data, 0)
    assert len(fragments) <= MAX_FRAGMENTS
    assert fragments[-1][1] == len(data)


@pytest.mark.parametrize("extended", [False, True])
def test_sparse_read_is_sent_as_holes_and_data(extended: bool) -> None:
    engine = Engine()
    client = open_export(engine, structured=True, extended=extended)
    client.write(8192, X)
    client.send_request(wire.CMD_READ, 4096, 3 * 4096)
    assert len(engine.sent) < 2 * 4096
    reply = client.read_reply()
    hole, data = wire.REPLY_TYPE_OFFSET_HOLE, wire.REPLY_TYPE_OFFSET_DATA
    assert reply.chunks == [hole, data, hole]
    assert reply.data == O + X + O


def test_df_sends_one_chunk_of_data() -> None:
    client = open_export(Engine(), structured=True)
    client.write(0, X)
    reply = client.call(wire.CMD_READ, 0, 65536, wire.CMD_FLAG_DF)
    assert reply.chunks == [wire.REPLY_TYPE_OFFSET_DATA]
    assert reply.data == X + bytes(61440)


def test_plain_read_of_data_sends_the_devices_own_bytes() -> None:
    out: list[Buffer] = []
    request = Request(OP_READ, 0, 4096, None, 0, 7)
    request.data = X
    ChunkReplies(out, extended=False).finish([request], {})
    assert out[1] is X


def test_success_without_data_is_simple_under_structured_replies_only() -> None:
    for structured, extended, chunks in [(True, False, []), (False, True, [0])]:
        client = open_export(Engine(), structured=structured, extended=extended)
        assert client.call(wire.CMD_FLUSH).chunks == chunks


def test_read_of_no_bytes_succeeds_in_the_right_form() -> None:
    for structured, extended, chunks in [
        (False, False, []),
        (True, False, [0]),
        (False, True, [0]),
    ]:
        client = open_export(Engine(), structured=structured, extended=extended)
        client.send_request(wire.CMD_READ, 4096, 0)
        reply = client.read_reply()
        assert (reply.error, reply.data, reply.chunks) == (0, b"", chunks)


@pytest.mark.parametrize("extended", [False, True])
def test_error_of_the_device_carries_its_text(extended: bool) -> None:
    engine = Engine()
    client = open_export(engine, structured=True, extended=extended)
    engine.device.fail_next(5, "chunk 3f9a: hash mismatch at offset 0")
    client.send_request(wire.CMD_READ, 0, 4096)
    reply = client.read_reply()
    assert reply.error == wire.EIO
    assert reply.chunks == [wire.REPLY_TYPE_ERROR]
    assert reply.message == "chunk 3f9a: hash mismatch at offset 0"


def test_error_of_the_device_under_simple_replies_sends_no_data() -> None:
    engine = Engine()
    client = open_export(engine)
    engine.device.fail_next(5)
    client.send_request(wire.CMD_READ, 0, 4096)
    assert client.read_reply().error == wire.EIO
    assert not engine.sent
