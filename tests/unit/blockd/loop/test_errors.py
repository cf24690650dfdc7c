"""What the request loop does when the store cannot: clients wait or get an error, and go on."""

import errno
import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest

from blockd.nbd import wire
from tests.nbd_client import NbdClient, RequestError
from tests.nbd_loop_rig import (
    CHUNK,
    KIB,
    KINDS,
    MIB,
    ROOMY,
    VOLUME,
    LoopServer,
    pattern,
    serving,
)
from tests.sim.faults import Fail, Fault

TIGHT = replace(ROOMY, journal_limit=MIB, segment_bytes=256 * KIB)
SLOT = 64 * KIB
HOUR_NS = 3600 * 10**9


@pytest.fixture
def server() -> Iterator[LoopServer]:
    with serving() as server:
        yield server


def writes(client: NbdClient, count: int) -> bytes:
    return b"".join(
        client.prepare(wire.CMD_WRITE, at * SLOT, SLOT, payload=pattern(at * SLOT, SLOT))[0]
        for at in range(count)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_writes_wait_for_a_full_journal_and_go_on(kind: str) -> None:
    count = 64  # four times what the journal takes
    with (
        serving(options=TIGHT) as server,
        server.in_loop(kind) as client,
        server.in_loop() as other,
    ):
        backlog = server.rig.store.upkeep._parts.backlog
        sender = threading.Thread(target=client.send_raw, args=(writes(client, count),))
        sender.start()
        server.until(lambda: backlog.count > 0)
        assert other.read(8 * MIB, SLOT) == bytes(SLOT)  # readers need no journal
        answers = threading.Thread(target=all_ok, args=(client, count))
        answers.start()
        while answers.is_alive():
            server.rig.settle()
            answers.join(0.001)
        sender.join()
        assert not client.outstanding
        assert client.read(0, count * SLOT) == pattern(0, count * SLOT)


def all_ok(client: NbdClient, count: int) -> None:
    for _ in range(count):
        next_ok(client)


def next_ok(client: NbdClient) -> None:
    assert client.read_reply().error == 0


def test_a_writer_is_held_when_the_journal_is_nearly_full_and_others_are_not(
    server: LoopServer,
) -> None:
    journal = server.rig.store.upkeep._parts.journal
    with server.in_loop() as writer, server.in_loop() as reader:
        served = server.served(writer)
        journal.set_delay(HOUR_NS)
        writer.write(0, b"a" * 512)  # answered, and its next requests wait
        writer.send_request(wire.CMD_WRITE, 0, 512, payload=b"b" * 512)
        for _ in range(8):
            assert reader.read(0, 512) == b"a" * 512
        assert served.counters()[2] == 1
        stopping = server.begin(server.listener.stop(20.0))  # a stop does not wait for it
        assert writer.at_eof()
        writer.close()
        reader.close()
        stopping.result(10.0)


def test_writers_that_are_held_go_on(server: LoopServer) -> None:
    server.rig.store.upkeep._parts.journal.set_delay(100_000)
    with server.in_loop() as one, server.in_loop() as two:
        for client in (one, two):
            client.send_raw(writes(client, 8))
        for _ in range(8):
            next_ok(one)
            next_ok(two)
        for client in (one, two):
            for _ in range(20):
                client.write(0, b"x" * 512)


def damage(server: LoopServer, data: bytes) -> None:
    """Change a bit of where `data` is stored."""
    for name in server.disk.list("packs"):
        file = server.disk.open(f"packs/{name}", read_only=True)
        at = file.pread(file.size(), 0).find(data)
        file.close()
        if at >= 0:
            server.disk.flip_bit(f"packs/{name}", at)
            return
    raise AssertionError("it is not stored")


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_chunk_is_an_error_that_names_it_and_the_client_goes_on(
    server: LoopServer, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    server.rig.fill(VOLUME, 0, pattern(0, 4 * CHUNK))
    server.rig.settle()
    damage(server, pattern(2 * CHUNK + 8192, 4096))
    with server.in_loop(kind) as client:
        served = server.served(client)
        with pytest.raises(RequestError) as caught:
            client.read(2 * CHUNK + 8192, 4096)
        assert caught.value.reply.error == wire.EIO
        if kind != "simple":
            assert f"volume {VOLUME}" in caught.value.reply.message
        (told,) = [each for each in caplog.messages if each.startswith("read error")]
        assert f"volume={VOLUME} offset={2 * CHUNK + 8192} " in told
        assert client.read(0, CHUNK) == pattern(0, CHUNK)
        assert client.read(3 * CHUNK, CHUNK) == pattern(3 * CHUNK, CHUNK)
        client.write(2 * CHUNK, b"n" * CHUNK)
        assert client.read(2 * CHUNK, CHUNK) == b"n" * CHUNK
        assert server.served(client) is served


def test_a_full_disk_refuses_writes_and_the_client_goes_on() -> None:
    with serving() as server, server.in_loop() as client:
        served = server.served(client)
        server.rig.store.upkeep._parts.journal.set_limits(0, 0)
        with pytest.raises(RequestError) as caught:
            client.write(0, b"x" * 4096)
        assert caught.value.reply.error == wire.ENOSPC
        assert client.read(0, 4096) == bytes(4096)
        client.trim(0, 4096)
        client.flush()
        server.rig.tend()  # there is space after all
        client.write(0, b"x" * 4096)
        assert server.served(client) is served


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("by", ["flush", "fua"])
def test_a_failed_sync_fails_who_waits_for_it_and_seals_the_store(
    server: LoopServer, kind: str, by: str
) -> None:
    with server.in_loop(kind) as client:
        served = server.served(client)
        client.write(0, b"w" * 4096)
        server.disk.faults.add(Fault("sync", Fail(errno.EIO), "journal/*"))
        if by == "flush":
            client.send_request(wire.CMD_FLUSH)
        else:
            data = b"f" * 4096
            client.send_request(wire.CMD_WRITE, 4096, 4096, flags=wire.CMD_FLAG_FUA, payload=data)
        assert client.read_reply().error == wire.EIO
        for again in range(2):  # it is never tried again
            with pytest.raises(RequestError) as caught:
                client.flush()
            assert caught.value.reply.error == wire.EIO, again
        assert client.read(0, 4096) == b"w" * 4096
        assert server.served(client) is served
