"""BLOCK_STATUS with structured replies and with extended headers."""

import struct

import pytest

from blockd.nbd import wire
from tests.fakes import MemoryDevice
from tests.nbd_client import Reply, RequestError, Session
from tests.nbd_engine import Engine, open_export

HOLE = 3
BOTH = ("base:allocation", "qemu:allocation-depth")
TIB = 1 << 40


def opened(extended: bool, size: int = 1 << 20, contexts: tuple[str, ...] = BOTH) -> Session:
    engine = Engine(MemoryDevice(size=size))
    return open_export(engine, structured=not extended, extended=extended, contexts=contexts)


def filtered(client: Session, effect_length: int, *numbers: int, flags: int = 0) -> Reply:
    """BLOCK_STATUS with payload, from offset 0."""
    payload = struct.pack(f">Q{len(numbers)}I", effect_length, *numbers)
    client.send_request(
        wire.CMD_BLOCK_STATUS,
        0,
        len(payload),
        flags=flags | wire.CMD_FLAG_PAYLOAD_LEN,
        payload=payload,
    )
    return client.read_reply()


@pytest.mark.parametrize("extended", [False, True])
def test_one_chunk_for_each_selected_context(extended: bool) -> None:
    client = opened(extended)
    client.write(4096, b"x" * 4096)
    assert client.block_status(0, 16384) == {
        "base:allocation": [(4096, HOLE), (4096, 0), (8192, HOLE)],
        "qemu:allocation-depth": [(4096, 0), (4096, 1), (8192, 0)],
    }


@pytest.mark.parametrize("extended", [False, True])
def test_one_selected_context_gets_one_chunk(extended: bool) -> None:
    client = opened(extended, contexts=BOTH[1:])
    assert client.block_status(0, 4096) == {"qemu:allocation-depth": [(4096, 0)]}


@pytest.mark.parametrize("extended", [False, True])
def test_req_one_gives_one_descriptor_within_the_request(extended: bool) -> None:
    client = opened(extended)
    client.write(4096, b"x" * 4096)
    assert client.block_status(1024, 16384, wire.CMD_FLAG_REQ_ONE) == {
        "base:allocation": [(3072, HOLE)],
        "qemu:allocation-depth": [(3072, 0)],
    }


@pytest.mark.parametrize("extended", [False, True])
def test_walking_the_disk_always_makes_progress(extended: bool) -> None:
    client = opened(extended)
    for block in range(0, 256, 3):
        client.write(block * 4096, b"x")
    at, allocated = 0, 0
    while at < 1 << 20:
        for length, status in client.block_status(at, (1 << 20) - at)["base:allocation"]:
            at += length
            allocated += 0 if status & 1 else length
    assert at == 1 << 20
    assert allocated == 86 * 4096


def test_64_bit_lengths_with_extended_headers() -> None:
    client = opened(True, TIB)
    assert client.block_status(0, TIB)["base:allocation"] == [(TIB, HOLE)]


def test_the_longest_compact_request_fits_32_bits() -> None:
    client = opened(False, TIB)
    longest = (1 << 32) - 1
    assert client.block_status(0, longest)["base:allocation"] == [(longest, HOLE)]


@pytest.mark.parametrize("extended", [False, True])
def test_without_contexts_it_is_einval(extended: bool) -> None:
    client = opened(extended, contexts=())
    with pytest.raises(RequestError) as raised:
        client.call(wire.CMD_BLOCK_STATUS, 0, 4096)
    assert raised.value.reply.error == wire.EINVAL


def test_without_chunks_it_is_einval() -> None:
    client = open_export(Engine())
    with pytest.raises(RequestError):
        client.call(wire.CMD_BLOCK_STATUS, 0, 4096)


def test_status_of_no_bytes_is_einval() -> None:
    with pytest.raises(RequestError):
        opened(True).block_status(0, 0)


@pytest.mark.parametrize("extended", [False, True])
def test_error_of_the_device_is_one_error_chunk(extended: bool) -> None:
    engine = Engine()
    client = open_export(engine, structured=not extended, extended=extended, contexts=BOTH)
    engine.device.fail_next(5, "manifest is gone")
    with pytest.raises(RequestError) as raised:
        client.block_status(0, 4096)
    assert raised.value.reply.chunks == [wire.REPLY_TYPE_ERROR]


def test_payload_selects_contexts() -> None:
    client = opened(True)
    depth = client.contexts["qemu:allocation-depth"]
    reply = filtered(client, 8192, depth)
    assert reply.error == 0
    assert reply.extents == {depth: [(8192, 0)]}


def test_payload_with_all_contexts_and_req_one() -> None:
    client = opened(True)
    reply = filtered(client, 8192, *client.contexts.values(), flags=wire.CMD_FLAG_REQ_ONE)
    assert {len(extents) for extents in reply.extents.values()} == {1}
    assert reply.extents.keys() == set(client.contexts.values())


@pytest.mark.parametrize("numbers", [(), (1, 1), (9,), (1, 2, 1), (1, 2, 9)])
def test_payload_with_wrong_contexts_is_einval_and_consumed(numbers: tuple[int, ...]) -> None:
    client = opened(True)
    assert filtered(client, 8192, *numbers).error == wire.EINVAL
    assert client.block_status(0, 4096)


def test_payload_with_a_context_that_was_not_negotiated_is_einval() -> None:
    client = opened(True, contexts=BOTH[:1])
    assert filtered(client, 8192, 2).error == wire.EINVAL


def test_payload_with_an_effect_length_past_the_end_is_einval() -> None:
    client = opened(True)
    assert filtered(client, (1 << 20) + 1, 1).error == wire.EINVAL
    assert filtered(client, (1 << 64) - 1, 1).error == wire.EINVAL
    assert filtered(client, 0, 1).error == wire.EINVAL


@pytest.mark.parametrize("length", [1, 7, 9, 70000, 1 << 20])
def test_payload_of_odd_length_is_einval_and_consumed(length: int) -> None:
    client = opened(True)
    client.send_request(
        wire.CMD_BLOCK_STATUS,
        0,
        length,
        flags=wire.CMD_FLAG_PAYLOAD_LEN,
        payload=b"\0" * length,
    )
    assert client.read_reply().error == wire.EINVAL
    assert client.block_status(0, 4096)
