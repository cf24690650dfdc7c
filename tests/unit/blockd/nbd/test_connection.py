"""The life of a connection: attach, end, drain, and what the listener can rely on."""

import pytest

from blockd.access.book import Everybody
from blockd.access.rules import Client
from blockd.nbd import wire
from blockd.nbd.access import TlsMode
from blockd.nbd.connection import Connection
from blockd.nbd.events import Attached, Submit
from blockd.nbd.limits import Limits
from tests.fakes import FakeExports, FakePolicies, MemoryDevice
from tests.nbd_client import export_query, option, request
from tests.nbd_engine import Engine, open_export

HELLO = wire.CLIENT_FLAGS.pack(wire.FLAG_C_FIXED_NEWSTYLE | wire.FLAG_C_NO_ZEROES)
GO = option(wire.OPT_GO, export_query("disk"))


def connection(device: MemoryDevice | None = None) -> Connection:
    return Connection(
        FakeExports([device or MemoryDevice()]),
        limits=Limits(),
        tls=TlsMode.OFF,
        policies=FakePolicies(),
        access=Everybody(),
        client=Client(),
        peer="10.0.0.7:4711",
    )


def test_a_new_connection_greets_and_waits() -> None:
    engine = connection()
    assert engine.negotiating
    assert engine.wants_input
    assert engine.export_name is None
    assert len(b"".join(bytes(part) for part in engine.output())) == 18
    assert engine.output() == []
    assert engine.idle


def test_attached_comes_before_the_first_submit() -> None:
    engine = connection()
    engine.feed(HELLO + GO + request(wire.CMD_READ, 0, 512))
    events = [engine.next_event() for _ in range(3)]
    assert isinstance(events[0], Attached)
    assert isinstance(events[1], Submit)
    assert events[2] is None


def test_write_payload_lies_in_the_buffer_that_the_engine_gave() -> None:
    engine = connection()
    engine.feed(HELLO + GO)
    while engine.next_event():
        pass
    data = request(wire.CMD_WRITE, 0, 4096, payload=b"w" * 4096)
    room = engine.buffer(len(data))
    room[: len(data)] = data
    engine.received(len(data))
    submit = engine.next_event()
    assert isinstance(submit, Submit)
    payload = submit.batch[0].data
    assert isinstance(payload, memoryview)
    room[28] = ord("W")  # the same memory
    assert bytes(payload[:2]) == b"Ww"


def test_buffer_is_never_empty_while_input_is_wanted() -> None:
    engine = connection()
    engine.feed(HELLO + GO)
    while engine.next_event():
        pass
    big = request(wire.CMD_WRITE, 0, 1 << 20, payload=b"w" * (1 << 20))
    at = 0
    while at < len(big):
        assert engine.wants_input
        room = engine.buffer()
        assert len(room) > 0
        count = min(len(room), len(big) - at)
        room[:count] = big[at : at + count]
        engine.received(count)
        at += count
    assert isinstance(engine.next_event(), Submit)


def test_disc_completes_and_answers_what_is_in_flight_and_executes_nothing_after_it() -> None:
    engine = Engine(MemoryDevice(deferred=True))
    client = open_export(engine)
    first = client.prepare(wire.CMD_WRITE, 0, 4, payload=b"kept")[0]
    late = request(wire.CMD_WRITE, 0, 4, payload=b"late")
    engine.send(first + request(wire.CMD_DISC) + late)
    assert engine.closed is None
    assert not engine.connection.wants_input
    engine.send(late)
    engine.finish()
    assert client.read_reply().error == 0
    assert not engine.sent
    assert engine.closed is not None
    assert engine.closed.clean
    assert engine.device.read(0, 4) == b"kept"
    assert len(engine.device.seen) == 1
    assert engine.device.clients == []


def test_vanished_client_is_detached_when_the_device_is_done() -> None:
    engine = Engine(MemoryDevice(deferred=True))
    client = open_export(engine)
    client.send_request(wire.CMD_WRITE, 0, 512, payload=bytes(512))
    engine.send(request(wire.CMD_WRITE, 0, 512) + b"half of the pay")
    engine.eof()
    assert engine.closed is None
    assert engine.device.clients == ["test"]
    engine.finish()
    assert engine.closed is not None
    assert not engine.closed.clean
    assert engine.device.clients == []
    assert len(engine.device.seen) == 1


def test_vanished_client_whose_replies_nobody_takes_still_closes() -> None:
    engine = Engine(limits=Limits(max_in_flight_requests=2))
    client = open_export(engine)
    engine.taking = False
    engine.send(b"".join(client.prepare(wire.CMD_READ, 0, 512)[0] for _ in range(9)))
    engine.eof()
    assert engine.closed is not None


@pytest.mark.parametrize("sent", [b"", HELLO, HELLO + option(wire.OPT_LIST)])
def test_leaving_between_options_is_clean(sent: bytes) -> None:
    engine = Engine()
    engine.send(sent)
    engine.eof()
    assert engine.closed is not None
    assert engine.closed.clean


@pytest.mark.parametrize("sent", [HELLO[:2], HELLO + GO[:5], HELLO + option(99, b"abc")[:-1]])
def test_leaving_in_the_middle_is_not_clean(sent: bytes) -> None:
    engine = Engine()
    engine.send(sent)
    engine.eof()
    assert engine.closed is not None
    assert not engine.closed.clean


def test_eof_twice_and_bytes_after_it_change_nothing() -> None:
    engine = Engine()
    open_export(engine)
    engine.eof()
    closed = engine.closed
    engine.eof()
    engine.send(b"more")
    assert engine.closed is closed
    assert engine.device.clients == []


def test_drain_finishes_what_is_in_flight() -> None:
    engine = Engine(MemoryDevice(deferred=True))
    client = open_export(engine)
    client.send_request(wire.CMD_WRITE, 0, 4, payload=b"kept")
    engine.drain()
    client.send_request(wire.CMD_WRITE, 0, 4, payload=b"late")
    assert client.read_reply().error == wire.ESHUTDOWN
    assert not engine.connection.idle
    engine.finish()
    assert client.read_reply().error == 0
    assert engine.connection.idle
    assert engine.device.read(0, 4) == b"kept"
    assert engine.closed is None  # the client, or the listener, closes


def test_idle_means_nothing_in_flight_and_nothing_to_send() -> None:
    engine = Engine(MemoryDevice(deferred=True))
    client = open_export(engine)
    assert engine.connection.idle
    client.send_request(wire.CMD_FLUSH)
    assert not engine.connection.idle
    engine.taking = False
    engine.finish()
    assert not engine.connection.idle
    engine.taking = True
    engine.pump()
    assert engine.connection.idle


@pytest.mark.parametrize(("length", "pieces"), [(512, 1), (1 << 20, 3)])
def test_small_output_leaves_in_one_piece_and_large_data_uncopied(length: int, pieces: int) -> None:
    engine = connection(MemoryDevice(size=1 << 20))
    engine.feed(HELLO + GO)
    while engine.next_event():
        pass
    engine.output()
    engine.feed(request(wire.CMD_READ, 0, length) + request(wire.CMD_FLUSH))
    submit = engine.next_event()
    assert isinstance(submit, Submit)
    submit.device.submit(submit.batch, engine.completed)
    output = engine.output()
    assert len(output) == pieces
    assert sum(len(bytes(part)) for part in output) == 16 + length + 16
    assert any(part is submit.batch[0].data for part in output) == (pieces > 1)


def test_trim_gives_memory_back_and_loses_nothing() -> None:
    engine = Engine()
    client = open_export(engine)
    client.write(0, b"x" * (1 << 20))
    engine.connection.trim()
    assert client.read(0, 4) == b"xxxx"
