"""What one request may ask, and the exact answer when it may not (nbd errors)."""

import errno

import pytest

from blockd.nbd import wire
from blockd.nbd.access import ExportPolicy
from native import (
    FLAG_FAST_ZERO,
    FLAG_FUA,
    FLAG_NO_HOLE,
    OP_CACHE,
    OP_UNMAP,
    OP_WRITE,
    OP_WRITE_ZEROES,
)
from tests.fakes import MemoryDevice, Seen
from tests.nbd_client import Reply, Session, request
from tests.nbd_engine import Engine, open_export

MIB = 1 << 20
WITH_PAYLOAD = (wire.CMD_WRITE,)
RANGED = (
    wire.CMD_READ,
    wire.CMD_WRITE,
    wire.CMD_TRIM,
    wire.CMD_CACHE,
    wire.CMD_WRITE_ZEROES,
    wire.CMD_BLOCK_STATUS,
)
STYLES = ["simple", "structured", "extended"]
CONTEXTS = ("base:allocation",)


def opened(engine: Engine, style: str, *items: int) -> Session:
    return open_export(
        engine,
        structured=style == "structured",
        extended=style == "extended",
        contexts=() if style == "simple" else CONTEXTS,
        items=items,
    )


def ask(client: Session, command: int, offset: int, length: int, flags: int = 0) -> Reply:
    payload = b"p" * length if command in WITH_PAYLOAD else b""
    client.send_request(command, offset, length, flags=flags, payload=payload)
    return client.read_reply()


def still_in_step(client: Session) -> bool:
    return client.read(0, 4096) == bytes(4096)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("command", RANGED)
def test_past_the_end_is_enospc_for_writes_and_einval_for_the_rest(
    style: str, command: int
) -> None:
    engine = Engine(MemoryDevice(size=MIB))
    client = opened(engine, style)
    writing = command in (wire.CMD_WRITE, wire.CMD_WRITE_ZEROES)
    for offset, length in [(MIB - 4096, 8192), (MIB, 4096), (1 << 63, 4096)]:
        reply = ask(client, command, offset, length)
        assert reply.error == (wire.ENOSPC if writing else wire.EINVAL)
        if style != "simple":
            assert reply.error_offset == max(offset, MIB)
            assert str(MIB) in reply.message
    assert still_in_step(client)
    assert len(engine.device.seen) == 1


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("command", RANGED)
def test_a_range_that_wraps_64_bits_is_past_the_end(style: str, command: int) -> None:
    client = opened(Engine(), style)
    reply = ask(client, command, (1 << 64) - 4096, 8192)
    assert reply.error in (wire.ENOSPC, wire.EINVAL)
    assert reply.error_offset is None
    assert still_in_step(client)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("command", RANGED)
def test_misaligned_is_einval_without_touching_data(style: str, command: int) -> None:
    engine = Engine()
    client = opened(engine, style, wire.INFO_BLOCK_SIZE)
    for offset, length in [(1, 4096), (0, 4095), (512, 512)]:
        assert ask(client, command, offset, length).error == wire.EINVAL
    assert engine.device.seen == []
    assert still_in_step(client)


@pytest.mark.parametrize("style", STYLES)
def test_without_negotiated_block_size_any_byte_can_be_addressed(style: str) -> None:
    client = opened(Engine(), style)
    client.write(4095, b"ab")
    assert client.read(4094, 4) == b"\0ab\0"
    client.write_zeroes(4095, 1)
    assert client.read(4095, 2) == b"\0b"


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("command", [wire.CMD_WRITE, wire.CMD_TRIM, wire.CMD_WRITE_ZEROES])
def test_read_only_is_eperm(style: str, command: int) -> None:
    engine = Engine(policies={"disk": ExportPolicy(read_only=True)})
    client = opened(engine, style)
    assert ask(client, command, 0, 4096).error == wire.EPERM
    assert engine.device.seen == []
    assert still_in_step(client)


def test_read_only_export_reads_flushes_and_caches() -> None:
    client = open_export(Engine(MemoryDevice(read_only=True)))
    client.read(0, 4096)
    client.flush()
    client.call(wire.CMD_CACHE, 0, 4096)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("command", [8, 9, 255, 65535])
def test_unknown_command_is_einval(style: str, command: int) -> None:
    client = opened(Engine(), style)
    assert ask(client, command, 0, 4096).error == wire.EINVAL
    assert still_in_step(client)


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        (wire.CMD_READ, wire.CMD_FLAG_NO_HOLE),
        (wire.CMD_READ, wire.CMD_FLAG_DF),  # without structured replies
        (wire.CMD_WRITE, wire.CMD_FLAG_DF),
        (wire.CMD_WRITE, wire.CMD_FLAG_PAYLOAD_LEN),  # without extended headers
        (wire.CMD_TRIM, wire.CMD_FLAG_FAST_ZERO),
        (wire.CMD_CACHE, wire.CMD_FLAG_REQ_ONE),
        (wire.CMD_WRITE_ZEROES, wire.CMD_FLAG_REQ_ONE),
        (wire.CMD_FLUSH, wire.CMD_FLAG_NO_HOLE),
        (wire.CMD_READ, 0x8000),
    ],
)
def test_flag_of_another_command_is_einval(command: int, flags: int) -> None:
    engine = Engine()
    client = open_export(engine)
    length = 0 if command == wire.CMD_FLUSH else 4096
    assert ask(client, command, 0, length, flags).error == wire.EINVAL
    assert engine.device.seen == []
    assert still_in_step(client)


@pytest.mark.parametrize("style", STYLES)
def test_fua_is_taken_on_every_command(style: str) -> None:
    engine = Engine()
    client = opened(engine, style)
    commands = [wire.CMD_FLUSH, *RANGED] if style != "simple" else [wire.CMD_FLUSH, *RANGED[:-1]]
    for command in commands:
        length = 0 if command == wire.CMD_FLUSH else 4096
        assert ask(client, command, 0, length, wire.CMD_FLAG_FUA).error == 0
    assert all(seen.flags & FLAG_FUA for seen in engine.device.seen)
    assert len(engine.device.seen) == len(commands)


@pytest.mark.parametrize("style", STYLES)
def test_commands_reach_the_device_with_their_flags(style: str) -> None:
    engine = Engine()
    client = opened(engine, style)
    client.trim(4096, 8192)
    client.call(wire.CMD_CACHE, 0, 4096)
    client.write_zeroes(0, 4096, wire.CMD_FLAG_NO_HOLE | wire.CMD_FLAG_FAST_ZERO)
    client.write(0, b"x" * 10, wire.CMD_FLAG_FUA)
    assert engine.device.seen == [
        Seen(OP_UNMAP, 4096, 8192, 0),
        Seen(OP_CACHE, 0, 4096, 0),
        Seen(OP_WRITE_ZEROES, 0, 4096, FLAG_NO_HOLE | FLAG_FAST_ZERO),
        Seen(OP_WRITE, 0, 10, FLAG_FUA),
    ]


@pytest.mark.parametrize("style", STYLES)
def test_a_write_of_nothing_with_fua_is_a_flush_at_its_offset(style: str) -> None:
    engine = Engine()
    client = opened(engine, style)
    assert ask(client, wire.CMD_WRITE, 8192, 0, wire.CMD_FLAG_FUA).error == 0
    engine.device.fail_next(errno.EIO)
    # The client demands that an extended reply repeats the offset.
    assert ask(client, wire.CMD_WRITE, 8192, 0, wire.CMD_FLAG_FUA).error == wire.EIO
    assert ask(client, wire.CMD_WRITE, 8192, 0).error == 0  # without FUA there is nothing to do
    assert still_in_step(client)


def test_flush_with_a_range_is_einval() -> None:
    client = open_export(Engine())
    assert ask(client, wire.CMD_FLUSH, 0, 512).error == wire.EINVAL
    assert ask(client, wire.CMD_FLUSH, 512, 0, wire.CMD_FLAG_FUA).error == wire.EINVAL
    assert ask(client, wire.CMD_FLUSH, 512, 0).error == wire.EINVAL


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize(
    "command",
    [wire.CMD_READ, wire.CMD_WRITE, wire.CMD_TRIM, wire.CMD_CACHE, wire.CMD_WRITE_ZEROES],
)
def test_no_bytes_are_nothing_to_do(style: str, command: int) -> None:
    engine = Engine()
    client = opened(engine, style)
    assert ask(client, command, MIB, 0).error == 0
    assert ask(client, command, MIB + 1, 0).error != 0
    assert engine.device.seen == []


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("command", [wire.CMD_TRIM, wire.CMD_WRITE_ZEROES])
def test_nearly_4_gib_in_one_request(style: str, command: int) -> None:
    engine = Engine(MemoryDevice(size=1 << 40))
    client = opened(engine, style, wire.INFO_BLOCK_SIZE)
    client.write(1 << 31, b"x" * 4096)
    length = (1 << 32) - 4096
    assert ask(client, command, 4096, length).error == 0
    assert client.read(1 << 31, 4096) == bytes(4096)
    assert engine.device.seen[1].length == length


@pytest.mark.parametrize("command", [wire.CMD_TRIM, wire.CMD_WRITE_ZEROES, wire.CMD_CACHE])
def test_64_bit_lengths_with_extended_headers(command: int) -> None:
    size = 1 << 60
    engine = Engine(MemoryDevice(size=size))
    client = open_export(engine, extended=True)
    assert ask(client, command, 0, size).error == 0
    assert ask(client, command, 1, size).error != 0
    assert [seen.length for seen in engine.device.seen] == [size]


def test_write_without_payload_flag_under_extended_headers_is_einval() -> None:
    engine = Engine()
    client = open_export(engine, extended=True)
    client.prepare(wire.CMD_WRITE, 0, 4096, cookie=5)  # expect a reply to 5 ...
    engine.send(request(wire.CMD_WRITE, 0, 4096, cookie=5, extended=True))  # ... sent unflagged
    assert client.read_reply().error == wire.EINVAL
    assert still_in_step(client)


@pytest.mark.parametrize("command", [wire.CMD_READ, wire.CMD_TRIM, wire.CMD_FLUSH, 77])
def test_payload_where_none_belongs_is_consumed_and_einval(command: int) -> None:
    client = open_export(Engine(), extended=True, contexts=CONTEXTS)
    payload = b"x" * 70000
    client.send_request(command, 0, len(payload), flags=wire.CMD_FLAG_PAYLOAD_LEN, payload=payload)
    assert client.read_reply().error == wire.EINVAL
    assert still_in_step(client)


def test_df_may_read_64_kib_and_more() -> None:
    client = open_export(Engine(), structured=True)
    assert len(client.read(0, 65536, wire.CMD_FLAG_DF)) == 65536
    assert len(client.read(0, MIB, wire.CMD_FLAG_DF)) == MIB


@pytest.mark.parametrize("style", STYLES)
def test_device_errors_are_translated(style: str) -> None:
    engine = Engine()
    client = opened(engine, style)
    for error, value in [(122, wire.ENOSPC), (30, wire.EPERM), (95, wire.EINVAL), (9, wire.EIO)]:
        engine.device.fail_next(error)
        assert ask(client, wire.CMD_WRITE, 0, 512).error == value
    engine.device.fail_next(95)
    assert ask(client, wire.CMD_WRITE_ZEROES, 0, 512, wire.CMD_FLAG_FAST_ZERO).error == wire.ENOTSUP


def test_grown_export_can_be_used_by_an_old_connection() -> None:
    engine = Engine(MemoryDevice(size=MIB))
    client = open_export(engine)
    assert ask(client, wire.CMD_WRITE, MIB, 4096).error == wire.ENOSPC
    engine.device.size = 2 * MIB
    client.write(MIB, b"x" * 4096)
    assert client.read(MIB, 4096) == b"x" * 4096
    assert ask(client, wire.CMD_READ, 2 * MIB - 1, 2).error == wire.EINVAL


def test_stopping_server_answers_eshutdown_and_consumes_payloads() -> None:
    engine = Engine()
    client = open_export(engine)
    engine.drain()
    for command in (wire.CMD_READ, wire.CMD_WRITE, wire.CMD_TRIM, 99):
        assert ask(client, command, 0, 4096).error == wire.ESHUTDOWN
    assert engine.device.seen == []
    client.send_disconnect()
    assert engine.closed is not None
    assert engine.closed.clean
