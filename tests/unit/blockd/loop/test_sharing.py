"""Many clients of the request loop, and what they leave behind."""

import gc
import os
import select
import socket
from contextlib import ExitStack, suppress
from pathlib import Path

from native import Loop, LoopClient
from tests.nbd_encode import request
from tests.nbd_loop_rig import MIB, SIZE, LoopServer, serving
from tests.served import TIMEOUT_S

VISITS = 200
AT_ONCE = 20
DISC = request(2, 0, 0)


def held() -> tuple[int, int, int]:
    """Sockets, threads and clients of request loops that there are in the process. Of threads the
    kernel's count: those of the loop are not Python's."""
    gc.collect()
    sockets = 0
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            sockets += os.readlink(entry).startswith("socket:")
    threads = len(list(Path("/proc/self/task").iterdir()))
    return sockets, threads, sum(isinstance(each, LoopClient) for each in gc.get_objects())


def visit(server: LoopServer, how: int) -> None:
    """A client comes, is served, and goes in one of three ways."""
    with server.in_loop() as client:
        assert client.read(0, 512) == bytes(512)
        if how == 0:
            client.disconnect()
        elif how == 1:
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


def test_clients_that_come_and_go_leave_nothing_behind() -> None:
    with serving(threads=2) as server:
        visit(server, 0)
        server.until_empty()
        before = server.on_loop(held)
        for number in range(VISITS):
            visit(server, number % 3)
        server.until_empty()
        # What the first one left open may have been counted; nothing may have come to it.
        server.until(lambda: all(now <= then for now, then in zip(held(), before, strict=True)))
        assert server.volume.clients == []


def test_clients_that_come_all_at_once_are_all_served() -> None:
    with serving(threads=3) as server:
        for _ in range(VISITS // AT_ONCE):
            with ExitStack() as stack:
                clients = [stack.enter_context(server.client()) for _ in range(AT_ONCE)]
                reads = [client.send_request(0, 0, MIB) for client in clients]
                for client, cookie in zip(clients, reads, strict=True):
                    reply = client.read_reply()
                    assert (reply.cookie, reply.error, reply.data) == (cookie, 0, bytes(MIB))
            server.until_empty()


def test_news_of_a_client_that_was_let_go_is_nobodys() -> None:
    with serving() as server:
        loop = Loop(1, 1, 0)
        ours, theirs = socket.socketpair()
        with ours, theirs:
            core = server.volume.core
            client = loop.add_nbd(
                core, None, None, ours.fileno(), 0, SIZE, 1, MIB, False, DISC, None
            )
            assert select.select([loop], [], [], TIMEOUT_S)[0]
            assert loop.news() == [client]
            assert client.stopped
            client.send([bytes(16 * MIB)])  # more than is taken: that would be news
            assert client.unsent
            del client
            gc.collect()
            assert loop.news() == []
        loop.close()
