"""Limits where the request loop and the engine serve one client: each request waits once."""

import socket
import time
from collections.abc import Iterator

import pytest

from blockd.nbd import wire
from native import OP_READ, Limit, Reservation
from tests.nbd_client import RequestError, good_replies, in_transmission
from tests.nbd_loop_rig import KINDS, MIB, VOLUME, LoopServer, pattern, serving

SECOND_NS = 10**9
BLOCK = 4096


@pytest.fixture
def server() -> Iterator[LoopServer]:
    with serving() as server:
        server.rig.fill(VOLUME, 0, pattern(0, MIB))
        yield server


def limit_of(server: LoopServer) -> Limit:
    return server.listener.rate_limits.of(server.volume)


def set_bandwidth(server: LoopServer, rate: int) -> None:
    """Bytes a second, without a burst; 0: as many as there are."""
    limit_of(server).set((0, 0, 0, rate, 0, 0), 0, time.monotonic_ns())


def is_full_for(server: LoopServer, seconds: float) -> bool:
    """Whether what was asked for up to now leaks for longer than that, from now on."""
    probe = Reservation(limit_of(server))
    return probe.ask(OP_READ, 1, time.monotonic_ns() + round(seconds * SECOND_NS)) != 0


def until_held(server: LoopServer) -> None:
    server.until(lambda: limit_of(server).held()[0] > 0)


@pytest.mark.parametrize("kind", KINDS)
def test_what_fails_in_the_loop_does_not_wait_again_in_the_engine(
    server: LoopServer, kind: str
) -> None:
    with server.in_loop(kind) as client:
        served = server.served(client)
        server.rig.store.upkeep._parts.journal.set_limits(0, 0)
        set_bandwidth(server, 1)
        with pytest.raises(RequestError) as caught:
            client.write(0, b"x" * BLOCK)  # it would be asked for an hour later
        assert caught.value.reply.error == wire.ENOSPC
        assert is_full_for(server, BLOCK - 60)
        assert not is_full_for(server, BLOCK + 60)
        assert server.served(client) is served


def test_what_only_the_engine_serves_waits_as_well(server: LoopServer) -> None:
    with server.in_loop("structured") as client:
        set_bandwidth(server, 1)
        flags = wire.CMD_FLAG_DF  # in one piece: the loop leaves that to the engine
        assert client.read(0, BLOCK, flags) == pattern(0, BLOCK)
        client.send_request(wire.CMD_READ, 0, BLOCK, flags=flags)
        until_held(server)
        assert is_full_for(server, 2 * BLOCK - 60)
        set_bandwidth(server, 0)
        assert client.read_reply().data == pattern(0, BLOCK)


def test_who_closed_its_end_is_answered_when_its_time_comes(server: LoopServer) -> None:
    with server.in_loop() as client:
        set_bandwidth(server, 1)
        payload = b"w" * BLOCK
        client.write(0, payload)
        client.send_request(wire.CMD_WRITE, BLOCK, BLOCK, payload=payload)
        client.send_request(wire.CMD_DISC)
        client.socket.shutdown(socket.SHUT_WR)
        until_held(server)
        set_bandwidth(server, 0)
        assert client.read_reply().error == 0
        assert client.at_eof()
    server.until_empty()


def test_a_drain_lets_everything_go_that_has_come(server: LoopServer) -> None:
    with server.in_loop() as client:
        set_bandwidth(server, 1)
        for at in range(8):
            client.send_request(wire.CMD_WRITE, at * BLOCK, BLOCK, payload=b"w" * BLOCK)
        until_held(server)
        server.begin(server.listener.stop(20.0)).result(60)
        assert good_replies(client) >= 2  # one went on, one waited; others may not have come
    assert limit_of(server).held()[0] == 0


def test_a_client_that_is_cut_leaves_the_line(server: LoopServer) -> None:
    with server.in_loop() as client:
        set_bandwidth(server, 1)
        client.write(0, b"w" * BLOCK)
        client.send_request(wire.CMD_WRITE, BLOCK, BLOCK, payload=b"w" * BLOCK)
        until_held(server)
        server.on_loop(lambda: server.protocol(client).abort())
        server.until_empty()
    server.until(lambda: limit_of(server).held()[0] == 0)  # the loop's thread sees to it
    assert not is_full_for(server, BLOCK + 60)


def test_others_are_served_while_one_waits(server: LoopServer) -> None:
    server.rig.store.create_volume("other", MIB)
    with (
        server.in_loop() as client,
        in_transmission(server.listener.addresses[0], "other") as other,
    ):
        set_bandwidth(server, 1)
        client.write(0, b"w" * BLOCK)
        client.send_request(wire.CMD_READ, 0, BLOCK)
        until_held(server)
        for at in range(64):
            other.write(at * BLOCK, b"o" * BLOCK)
        assert limit_of(server).held()[0] == 1
