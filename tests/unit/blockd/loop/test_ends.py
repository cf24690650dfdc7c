"""How connections end that the request loop serves: whoever is owed replies gets them, whole."""

import logging
import select
import socket
from collections.abc import Iterator

import pytest

from blockd.nbd import wire
from tests.nbd_client import NbdClient
from tests.nbd_loop_rig import KINDS, MIB, SIZE, VOLUME, Gate, LoopServer, pattern, serving

SLOT = 64 << 10
MANY = 32  # reads of a MiB: more than a client's output and all buffers of its socket take
DUE = 4 * MIB  # beyond that its requests wait


@pytest.fixture
def server() -> Iterator[LoopServer]:
    with serving() as server:
        server.rig.fill(VOLUME, 0, pattern(0, MIB))
        yield server


def ask_reads(client: NbdClient, count: int, length: int) -> bytes:
    return b"".join(client.prepare(wire.CMD_READ, 0, length)[0] for _ in range(count))


def take_reads(client: NbdClient, count: int, length: int) -> None:
    expected = pattern(0, length)
    for _ in range(count):
        reply = client.read_reply()
        assert (reply.error, reply.data) == (0, expected)


def stall(server: LoopServer, client: NbdClient, *, then: bytes = b"") -> None:
    """Ask for more than is taken, and take nothing, until the event loop knows it."""
    client.send_raw(ask_reads(client, MANY, MIB) + then)
    server.until(lambda: server.protocol(client)._write_paused)


def mail_held(server: LoopServer, client: NbdClient) -> tuple[Gate, int]:
    """A request that is the engine's and gets no answer until the gate opens; its cookie."""
    server.narrow(client)
    gate = server.gate()
    mailed = client.send_request(wire.CMD_READ, MIB, 512, flags=wire.CMD_FLAG_FUA)
    server.until(lambda: len(gate.held) == 1)
    return gate, mailed


@pytest.mark.parametrize("kind", KINDS)
def test_a_client_that_closed_its_end_gets_all_replies(server: LoopServer, kind: str) -> None:
    with server.in_loop(kind) as client:
        write = client.prepare(wire.CMD_WRITE, MIB, SLOT, wire.CMD_FLAG_FUA, b"w" * SLOT)[0]
        client.send_raw(ask_reads(client, MANY, MIB))
        client.send_raw(write)
        client.socket.shutdown(socket.SHUT_WR)
        take_reads(client, MANY, MIB)
        assert client.read_reply().error == 0
        assert client.at_eof()
    server.until_empty()
    assert server.rig.read(VOLUME, MIB, SLOT) == b"w" * SLOT


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("in_one", [True, False])
def test_bad_magic_in_a_stream_ends_it_behind_the_replies_before(
    server: LoopServer, kind: str, in_one: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING), server.in_loop(kind) as client:
        good, bad, after = ask_reads(client, 40, SLOT), b"\xee" * 40, ask_reads(client, 1, SLOT)
        if in_one:
            client.send_raw(good + bad + after)
        else:
            client.send_raw(good)
            client.send_raw(bad[:3])
            client.send_raw(bad[3:] + after)
        take_reads(client, 40, SLOT)
        assert client.at_eof()
    server.until_empty()
    reasons = [vars(each)["reason"] for each in caplog.records if hasattr(each, "reason")]
    assert len(reasons) == 1
    assert "magic" in reasons[0]


def test_a_client_that_stalls_goes_on_where_it_stopped(server: LoopServer) -> None:
    with server.in_loop() as client, server.in_loop() as other:
        stall(server, client)
        served = server.served(client)
        assert served.unsent > DUE
        assert served.unsent < DUE + 2 * MIB  # one round more
        assert other.read(0, SLOT) == pattern(0, SLOT)
        take_reads(client, MANY, MIB)
        server.until(lambda: not server.protocol(client)._write_paused)
        assert client.read(0, SLOT) == pattern(0, SLOT)
        assert server.served(client) is served  # never left the loop


def test_reply_timeout_cuts_a_client_that_takes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING), serving(reply_timeout_s=0.1) as server:
        with server.in_loop() as stuck, server.in_loop() as other:
            stuck.send_raw(ask_reads(stuck, MANY, MIB))
            server.until(lambda: len(server.listener.connections()) == 1)
            assert other.read(0, SLOT) == bytes(SLOT)
        server.until_empty()
        assert server.volume.clients == []
    reasons = [vars(each)["reason"] for each in caplog.records if hasattr(each, "reason")]
    assert reasons == ["took none of its replies for 0.1 s"]


@pytest.mark.parametrize("kind", KINDS)
def test_an_engines_reply_never_lands_inside_one_of_the_loops_at_a_stop(
    server: LoopServer, kind: str
) -> None:
    with server.in_loop(kind) as client:
        gate, mailed = mail_held(server, client)
        stall(server, client)
        server.on_loop(gate.open)  # the engine keeps its reply: the client takes none
        stopping = server.begin(server.listener.stop(20.0))
        answered = refused = 0
        for _ in range(MANY + 1):
            reply = client.read_reply()
            if reply.cookie == mailed:
                assert reply.data == bytes(512)
            elif reply.error:
                assert reply.error == wire.ESHUTDOWN
                refused += 1
            else:
                assert reply.data == pattern(0, MIB)
                answered += 1
        assert answered >= 4
        assert answered + refused == MANY
        assert client.at_eof()
        client.close()
        stopping.result(5.0)


@pytest.mark.parametrize("kind", KINDS)
def test_an_engines_reply_never_lands_inside_one_of_the_loops_at_disc(
    server: LoopServer, kind: str
) -> None:
    with server.in_loop(kind) as client:
        gate, mailed = mail_held(server, client)
        stall(server, client, then=client.prepare(wire.CMD_DISC)[0])
        server.on_loop(gate.open)
        served = server.served(client)
        early = bytearray()
        with server.standing_still():  # it will hear that the client goes on and stops, at once
            while not served.stopped:
                if select.select([client.socket], [], [], 0.01)[0]:
                    early += client.socket.recv(SLOT)
            assert served.unsent, "nothing that could be broken in two"
        put_back(client, early)
        for _ in range(MANY + 1):
            reply = client.read_reply()
            assert reply.error == 0
            assert reply.data == (bytes(512) if reply.cookie == mailed else pattern(0, MIB))
        assert client.at_eof()


def put_back(client: NbdClient, early: bytearray) -> None:
    """Have the client find `early`, which was taken from its socket, before what comes next."""
    receive = client._take

    def take(count: int) -> bytes:
        part = bytes(early[:count])
        del early[:count]
        return part + receive(count - len(part))

    client._take = take


def test_a_stop_answers_what_is_under_way(server: LoopServer) -> None:
    with server.in_loop() as client, server.in_loop() as idle:
        gate = server.gate()
        client.send_request(wire.CMD_READ, 0, SLOT, flags=wire.CMD_FLAG_FUA)
        server.until(lambda: len(gate.held) == 1)
        stopping = server.begin(server.listener.stop(20.0))
        assert idle.at_eof()
        idle.close()
        server.until(lambda: server.protocol(client)._served is None)
        client.send_request(wire.CMD_READ, 0, 512)
        assert client.read_reply().error == wire.ESHUTDOWN
        server.on_loop(gate.open)
        take_reads(client, 1, SLOT)
        assert client.at_eof()
        client.close()
        stopping.result(5.0)


def test_a_stop_cuts_who_does_not_end(server: LoopServer) -> None:
    with server.in_loop() as stuck, server.in_loop() as stalled:
        gate = server.gate()
        stuck.send_request(wire.CMD_READ, 0, SLOT, flags=wire.CMD_FLAG_FUA)
        server.until(lambda: len(gate.held) == 1)
        stall(server, stalled)
        server.begin(server.listener.stop(0.0)).result(10.0)
        assert server.listener.connections() == []
        assert server.volume.clients == []
        server.on_loop(gate.open)  # too late for anybody, and no harm
        assert stuck.at_eof()


def test_the_loop_ends_with_clients_in_it(server: LoopServer) -> None:
    with server.in_loop() as quiet, server.in_loop() as stalled:
        stall(server, stalled)
        server.begin(server.end_loop()).result(10.0)
        server.until_empty()
        assert quiet.at_eof()
        assert server.volume.clients == []


def test_requests_behind_the_size_of_a_volume_are_the_engines(server: LoopServer) -> None:
    with server.in_loop() as client:
        parts = [client.prepare(wire.CMD_READ, SIZE, 512)[0], ask_reads(client, 1, SLOT)]
        client.send_raw(b"".join(parts))
        errors = sorted(client.read_reply().error for _ in parts)
        assert errors == [0, wire.EINVAL]
