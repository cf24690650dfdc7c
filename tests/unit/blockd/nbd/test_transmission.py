"""Framing, pipelining and the bounds of the transmission phase."""

import pytest

from blockd.nbd import wire
from blockd.nbd.limits import Limits
from tests.fakes import MemoryDevice
from tests.nbd_client import Session, request
from tests.nbd_engine import Engine, open_export

KIB = 1024
MIB = 1024 * KIB
STYLES = [(False, False), (True, False), (False, True)]


def opened(engine: Engine, structured: bool, extended: bool) -> Session:
    return open_export(engine, structured=structured, extended=extended)


def reads(client: Session, count: int, length: int = 4096) -> bytes:
    return b"".join(client.prepare(wire.CMD_READ, 0, length)[0] for _ in range(count))


@pytest.mark.parametrize(("structured", "extended"), STYLES)
def test_everything_in_one_arrival_is_one_batch(structured: bool, extended: bool) -> None:
    engine = Engine()
    client = opened(engine, structured, extended)
    parts = [
        client.prepare(wire.CMD_WRITE, 0, 4096, payload=b"a" * 4096),
        client.prepare(wire.CMD_FLUSH),
        client.prepare(wire.CMD_READ, 0, 4096),
        client.prepare(wire.CMD_READ, 1 << 40, 4096),  # refused, does not split the batch
        client.prepare(wire.CMD_TRIM, 0, 4096),
        client.prepare(wire.CMD_READ, 0, 4096),
    ]
    engine.send(b"".join(encoded for encoded, _ in parts))
    assert engine.batches == [5]
    received = [client.read_reply() for _ in parts]
    replies = {reply.cookie: reply for reply in received}
    assert [replies[cookie].error for _, cookie in parts] == [0, 0, 0, wire.EINVAL, 0, 0]
    assert replies[3].data == b"a" * 4096
    assert replies[6].data == bytes(4096)


@pytest.mark.parametrize("piece", [1, 7, 27, 4096])
@pytest.mark.parametrize(("structured", "extended"), STYLES)
def test_requests_may_come_in_any_pieces(structured: bool, extended: bool, piece: int) -> None:
    engine = Engine(piece=piece)
    client = opened(engine, structured, extended)
    client.write(100, b"hello" * 2000)
    assert client.read(100, 10000) == b"hello" * 2000


@pytest.mark.parametrize(("structured", "extended"), STYLES)
def test_replies_come_in_the_devices_order(structured: bool, extended: bool) -> None:
    engine = Engine(MemoryDevice(deferred=True))
    client = opened(engine, structured, extended)
    cookies = [client.send_request(wire.CMD_READ, 0, 512) for _ in range(5)]
    engine.finish(newest_first=True)
    assert [client.read_reply().cookie for _ in cookies] == cookies[::-1]


@pytest.mark.parametrize(("structured", "extended"), STYLES)
def test_the_largest_payload_works_both_ways(structured: bool, extended: bool) -> None:
    engine = Engine(MemoryDevice(size=64 * MIB, block_size=65536))
    client = opened(engine, structured, extended)
    data = b"0123456789abcdef" * (2 * MIB)
    client.write(MIB, data)
    assert client.read(MIB, len(data)) == data


def test_read_above_the_maximum_is_einval() -> None:
    engine = Engine(MemoryDevice(size=1 << 40))
    client = open_export(engine)
    for length in (32 * MIB + 1, (1 << 32) - 1):
        client.send_request(wire.CMD_READ, 0, length)
        assert client.read_reply().error == wire.EINVAL
    assert engine.device.seen == []


@pytest.mark.parametrize("structured", [False, True])
def test_write_above_the_maximum_is_consumed_and_einval(structured: bool) -> None:
    limits = Limits(max_payload=MIB)
    engine = Engine(MemoryDevice(size=1 << 30), limits=limits, piece=100 * KIB)
    client = opened(engine, structured, False)
    client.send_request(wire.CMD_WRITE, 0, 3 * MIB, payload=b"w" * (3 * MIB))
    assert client.read_reply().error == wire.EINVAL
    assert engine.device.seen == []
    assert client.read(0, 512) == bytes(512)


def test_payload_above_the_maximum_hangs_up_under_extended_headers() -> None:
    engine = Engine()
    open_export(engine, extended=True)
    engine.send(
        request(wire.CMD_WRITE, 0, (32 << 20) + 1, flags=wire.CMD_FLAG_PAYLOAD_LEN, extended=True)
    )
    assert engine.closed is not None
    assert not engine.closed.clean


def test_cookies_may_repeat() -> None:
    engine = Engine(MemoryDevice(deferred=True))
    client = open_export(engine)
    for offset in (0, 512, 1024):
        client.send_request(wire.CMD_READ, offset, 512, cookie=7)
    engine.finish()
    assert [client.read_reply().cookie for _ in range(3)] == [7, 7, 7]
    assert client.outstanding == 0


def test_a_device_that_finishes_a_request_twice_is_our_bug() -> None:
    engine = Engine(MemoryDevice(deferred=True))
    client = open_export(engine)
    client.send_request(wire.CMD_READ, 0, 512)
    engine.finish()
    with pytest.raises(AssertionError, match="twice"):
        engine.connection.completed([engine.submitted[0]])


def test_requests_in_flight_are_bounded() -> None:
    engine = Engine(MemoryDevice(deferred=True), limits=Limits(max_in_flight_requests=8))
    client = open_export(engine)
    engine.send(reads(client, 30, 512))
    assert engine.device.waiting == 8
    assert not engine.connection.wants_input
    while engine.device.waiting:
        engine.finish(3)
        assert engine.device.waiting <= 8
    assert [client.read_reply().error for _ in range(30)] == [0] * 30
    assert engine.connection.wants_input


def test_refused_requests_count_until_their_replies_are_taken() -> None:
    engine = Engine(limits=Limits(max_in_flight_requests=8))
    client = open_export(engine)
    engine.taking = False
    engine.send(b"".join(client.prepare(99)[0] for _ in range(30)))
    assert not engine.connection.wants_input
    engine.taking = True
    engine.pump()
    assert [client.read_reply().error for _ in range(30)] == [wire.EINVAL] * 30
    assert engine.connection.wants_input


def test_bytes_of_reads_are_bounded_until_replies_are_taken() -> None:
    limits = Limits(max_payload=MIB, max_in_flight_bytes=2 * MIB)
    engine = Engine(MemoryDevice(size=4 * MIB), limits=limits)
    client = open_export(engine)
    engine.taking = False
    engine.send(reads(client, 20, MIB))
    assert len(engine.device.seen) == 2
    assert not engine.connection.wants_input
    engine.taking = True
    engine.pump()
    assert all(client.read_reply().data == bytes(MIB) for _ in range(20))
    assert engine.connection.wants_input


def test_bytes_of_writes_are_bounded_until_the_device_is_done() -> None:
    limits = Limits(max_payload=MIB, max_in_flight_bytes=2 * MIB)
    engine = Engine(MemoryDevice(deferred=True), limits=limits)
    client = open_export(engine)
    for _ in range(5):
        client.send_request(wire.CMD_WRITE, 0, MIB, payload=b"w" * MIB)
    assert engine.device.waiting == 2
    for _ in range(5):
        engine.finish(1)
        assert engine.device.waiting <= 2
    assert [client.read_reply().error for _ in range(5)] == [0] * 5


def test_block_status_reserves_room_for_its_answer() -> None:
    limits = Limits(max_payload=MIB, max_in_flight_bytes=MIB)
    engine = Engine(MemoryDevice(deferred=True), limits=limits)
    client = open_export(engine, extended=True, contexts=("base:allocation",))
    for _ in range(10):
        client.send_request(wire.CMD_BLOCK_STATUS, 0, 4096)
    assert engine.device.waiting == 4  # 256 KiB each
    engine.finish()
    engine.finish()
    engine.finish()
    assert [client.read_reply().error for _ in range(10)] == [0] * 10


def test_a_stalled_connection_makes_no_request_of_what_it_cannot_hold() -> None:
    engine = Engine(MemoryDevice(deferred=True), limits=Limits(max_in_flight_requests=1))
    client = open_export(engine)
    first, _ = client.prepare(wire.CMD_READ, 0, 512)
    second, _ = client.prepare(wire.CMD_WRITE, 0, 3, payload=b"abc")
    engine.send(first + second)
    assert engine.batches == [1]
    engine.finish()
    assert engine.batches == [1, 1]
    engine.finish()
    assert client.outstanding == 2
    assert client.read_reply().data == bytes(512)
    assert client.read_reply().error == 0


def test_counters_tell_what_was_done() -> None:
    engine = Engine()
    client = open_export(engine)
    client.write(0, b"x" * 100)
    client.write(0, b"x" * 28, wire.CMD_FLAG_FUA)
    client.read(0, 4096)
    client.flush()
    client.send_request(77)
    stats = engine.connection.stats
    assert stats.by_name() == {
        "read": 1,
        "write": 2,
        "flush": 1,
        "unmap": 0,
        "write_zeroes": 0,
        "cache": 0,
        "block_status": 0,
    }
    assert (stats.read_bytes, stats.written_bytes, stats.errors) == (4096, 128, 1)
