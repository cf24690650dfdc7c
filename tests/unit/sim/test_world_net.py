"""The simulated network, under asyncio's own protocols on a simulated loop."""

import asyncio
from collections.abc import Iterator
from typing import Any, cast

import pytest

from tests.sim.world.loop import SimLoop
from tests.sim.world.net import WINDOW_BYTES, Forgotten, Link, Network, Reset
from tests.sim.world.primitives import installed
from tests.sim.world.threads import Group, Threads

PORT = 10809


class Echo(asyncio.BufferedProtocol):
    """Sends back what comes, in capitals; keeps what became of it."""

    def __init__(self) -> None:
        self.buffer = bytearray(1000)
        self.pieces: list[int] = []
        self.lost: list[Exception | None] = []
        self.writing_paused = 0
        self.ended = False
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def get_buffer(self, sizehint: int) -> memoryview:
        return memoryview(self.buffer)

    def buffer_updated(self, nbytes: int) -> None:
        self.pieces.append(nbytes)
        self.transport.write(bytes(self.buffer[:nbytes]).upper())

    def eof_received(self) -> bool:
        self.ended = True
        return True

    def pause_writing(self) -> None:
        self.writing_paused += 1

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.append(exc)


class Served:
    """An Echo for each connection, on a loop in a thread of its own."""

    def __init__(self, run: Threads) -> None:
        self.run = run
        self.network = Network(run, "test")
        self.echoes: list[Echo] = []
        self.group = Group("server")
        run.spawn("loop", self._serve, self.group)
        while not self.network.servers:
            run.sleep(0.001)

    def _serve(self) -> None:
        self.loop = SimLoop(self.run)
        self.loop.run_until_complete(self._main())

    async def _main(self) -> None:
        await self.loop.create_server(self._made, sock=self.network.socket(PORT))
        await asyncio.Event().wait()

    def _made(self) -> Echo:
        self.echoes.append(Echo())
        return self.echoes[-1]

    def connected(self) -> Link:
        return self.network.connect(PORT)

    def on_loop(self, action: Any) -> None:
        self.loop.call_soon_threadsafe(action)
        self.run.sleep(0.01)


@pytest.fixture
def served() -> Iterator[Served]:
    run = Threads("net")
    with installed(run):
        made = Served(run)
        yield made
        run.ending = True
        run.kill(made.group)
        made.loop.close()


def test_bytes_come_back_in_order_whatever_their_pieces(served: Served) -> None:
    served.network.short_reads = True
    link = served.connected()
    sent = bytes(range(97, 123)) * 200
    link.send(sent)
    assert link.take(len(sent)) == sent.upper()
    assert len(served.echoes[0].pieces) > len(sent) // 1000
    assert served.run.now_s > 0


def test_half_closed_connection_still_gets_its_answers(served: Served) -> None:
    link = served.connected()
    link.send(b"last words")
    link.shut()
    assert link.take(10) == b"LAST WORDS"
    served.run.sleep(0.1)
    assert served.echoes[0].ended
    served.on_loop(served.echoes[0].transport.close)
    with pytest.raises(EOFError):
        link.take(1)


def test_client_that_takes_nothing_pauses_the_server(served: Served) -> None:
    link = served.connected()
    served.run.sleep(0.01)
    echo = served.echoes[0]
    served.on_loop(lambda: echo.transport.set_write_buffer_limits(high=1000, low=100))
    served.on_loop(lambda: echo.transport.write(bytes(WINDOW_BYTES + 2000)))
    assert echo.writing_paused == 1
    assert echo.transport.get_write_buffer_size() == 2000
    assert link.take(WINDOW_BYTES + 2000) == bytes(WINDOW_BYTES + 2000)


def test_vanished_client_is_a_reset_for_the_server(served: Served) -> None:
    link = served.connected()
    served.run.sleep(0.01)
    link.abort()
    served.run.sleep(0.01)
    assert [type(error) for error in served.echoes[0].lost] == [Reset]


def test_aborting_server_is_a_reset_for_the_client(served: Served) -> None:
    link = served.connected()
    served.run.sleep(0.01)
    served.on_loop(served.echoes[0].transport.abort)
    with pytest.raises(Reset):
        link.take(1)


def test_process_that_ends_cuts_its_connections_and_refuses_new_ones(served: Served) -> None:
    link = served.connected()
    served.network.process_ended()
    with pytest.raises(Reset):
        link.take(1)
    with pytest.raises(ConnectionRefusedError):
        served.connected()


def test_client_that_waits_too_long_says_so(served: Served) -> None:
    link = served.connected()
    with pytest.raises(Forgotten):
        link.take(1)
