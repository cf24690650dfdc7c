"""Clients of the request loop on a volume that other nodes have as well: told when W of them do."""

import errno
import select
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from blockd.nbd import wire
from tests.nbd_client import NbdClient, OptionError
from tests.nbd_loop_rig import KINDS, VOLUME, LoopServer, pattern, serving
from tests.served import TIMEOUT_S

BLOCK = 4096


@pytest.fixture
def server() -> Iterator[LoopServer]:
    with serving(mirrored=True) as server:
        server.replica.serve(1, timeout_s=TIMEOUT_S)
        server.replica.reads_until(1 << 62)
        yield server


def waits(server: LoopServer, count: int) -> None:
    server.until(lambda: server.replica.gate.waiting == count)


def write(client: NbdClient, at: int, flags: int = 0) -> int:
    data = pattern(at * BLOCK, BLOCK)
    return client.send_request(wire.CMD_WRITE, at * BLOCK, BLOCK, flags=flags, payload=data)


@pytest.mark.parametrize("kind", KINDS)
def test_replies_go_out_in_the_order_in_which_w_have_it(server: LoopServer, kind: str) -> None:
    with server.in_loop(kind) as client:
        first, second = write(client, 0), write(client, 1)
        waits(server, 2)
        flush = client.send_request(wire.CMD_FLUSH)
        waits(server, 3)
        server.replica.allow(1, 0)
        assert client.read_reply().cookie == first
        server.replica.allow(2, 0)
        assert client.read_reply().cookie == second
        assert server.replica.gate.wanted == 2
        server.replica.allow(2, 2)
        reply = client.read_reply()
        assert (reply.cookie, reply.error) == (flush, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_read_of_what_others_do_not_have_waits_and_others_go_on(
    server: LoopServer, kind: str
) -> None:
    with server.in_loop(kind) as writer, server.in_loop(kind) as reader:
        write(writer, 0)
        waits(server, 1)
        assert reader.read(8 * BLOCK, BLOCK) == bytes(BLOCK)
        waiting = reader.send_request(wire.CMD_READ, 0, BLOCK)
        waits(server, 2)
        server.replica.allow(1, 0)
        reply = reader.read_reply()
        assert (reply.cookie, reply.data) == (waiting, pattern(0, BLOCK))


def test_what_the_loop_leaves_to_the_engine_waits_for_the_same(server: LoopServer) -> None:
    with server.in_loop("structured") as client:
        written = write(client, 0)
        waits(server, 1)
        flags = wire.CMD_FLAG_DF  # not plain
        waiting = client.send_request(wire.CMD_READ, 0, BLOCK, flags=flags)
        waits(server, 2)
        server.replica.allow(1, 0)
        replies = {reply.cookie: reply for reply in (client.read_reply(), client.read_reply())}
        assert replies.keys() == {written, waiting}
        assert replies[waiting].data == pattern(0, BLOCK)


@pytest.mark.parametrize("kind", KINDS)
def test_who_waits_when_another_node_takes_over_gets_no_answer(
    server: LoopServer, kind: str
) -> None:
    """A client repeats elsewhere what was not answered; an error it would take for the disk's."""
    with server.in_loop(kind) as client:
        write(client, 0)
        client.send_request(wire.CMD_READ, 0, BLOCK)
        client.send_request(wire.CMD_FLUSH)
        client.send_request(wire.CMD_WRITE_ZEROES, BLOCK, BLOCK)  # the engine's
        waits(server, 4)
        server.replica.promise(2)
        assert client.at_eof()
        assert server.replica.held == (2, 2)


def test_what_comes_after_another_node_has_taken_over_gets_no_answer(server: LoopServer) -> None:
    with server.in_loop() as client:
        server.replica.promise(2)
        write(client, 0)
        assert client.at_eof()
    assert server.replica.held == (0, 0)


def test_a_node_that_does_not_serve_it_lets_nobody_in(server: LoopServer) -> None:
    server.replica.shut()
    host, port = server.listener.addresses[0].rsplit(":", 1)
    with NbdClient((host, int(port))) as client:
        client.greet()
        with pytest.raises(OptionError, match="vol: another node serves it") as caught:
            client.go(VOLUME)
    assert caught.value.reply == wire.REP_ERR_SHUTDOWN
    server.replica.serve(1)
    with NbdClient((host, int(port))) as client:
        client.greet()
        with pytest.raises(OptionError, match="not heard from the others for too long"):
            client.go(VOLUME)  # without a lease somebody else may be serving it
    server.replica.reads_until(1 << 62)
    with server.client():
        pass


def test_who_waits_too_long_gets_eio(server: LoopServer) -> None:
    server.replica.shut()
    server.replica.serve(1, timeout_s=0.0)
    server.replica.reads_until(1 << 62)
    with server.in_loop() as client:
        write(client, 0)
        waits(server, 1)

        def is_answered() -> bool:
            server.replica.gate.expire()  # of the loop, which asks the engine, as for a flush
            return bool(select.select([client.socket], [], [], 0)[0])

        server.until(is_answered)
        assert client.read_reply().error == errno.EIO


def test_many_clients_are_told_while_w_advance(server: LoopServer) -> None:
    """Nothing is told before its turn, and all of it is."""
    rounds = 40

    def work(number: int) -> None:
        with server.in_loop() as client:
            for step in range(rounds):
                at = number * rounds + step
                client.write(at * BLOCK, pattern(at * BLOCK, BLOCK))
                assert server.replica.gate.core.gate_state()[1] > step
                assert client.read(at * BLOCK, BLOCK) == pattern(at * BLOCK, BLOCK)
            client.flush()

    with ThreadPoolExecutor(4) as pool:
        clients = [pool.submit(work, number) for number in range(4)]
        while not all(each.done() for each in clients):
            seq = server.replica.volume.core.state()[0]
            server.replica.allow(seq, server.replica.gate.wanted)
        for each in clients:
            each.result()
    assert server.replica.gate.waiting == 0


def test_a_client_that_goes_while_it_waits_leaves_nothing(server: LoopServer) -> None:
    client = server.in_loop()
    write(client, 0)
    waits(server, 1)
    client.close()
    server.replica.allow(1, 0)
    server.until_empty()
    assert server.replica.gate.waiting == 0
