"""uvicorn on sockets that are bound already, inside a loop that somebody else runs."""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Iterator

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from blockd.sockets import peer_of

logger = logging.getLogger(__name__)

MAX_REQUESTS = 64  # at once; the CLI makes one
STOP_S = 2.0  # what requests in progress get to finish when the daemon stops
STOP_LOOK_S = 0.005  # how often a stop looks whether they have
TICK_S = 1.0  # the date of replies is in seconds


class _Protocol(H11Protocol):
    """Requests know who made them: `client` in their scope is `blockd.sockets.Peer`, as text."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.client = (str(peer_of(transport)), 0)


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers, as the daemon has its own, and without its naps: it
    looks ten times a second whether it is to stop, and stops in tenths of a second."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = asyncio.Event()
        self._leave = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        self.ready.set()

    def leave(self) -> None:
        self.should_exit = True
        self._leave.set()

    async def main_loop(self) -> None:
        while not await self.on_tick(0):  # sets the date of replies
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TICK_S):
                    await self._leave.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close what listens and what is idle, finish requests in progress, cut the others."""
        for server in self.servers:
            server.close()
        for sock in sockets or []:
            sock.close()
        state = self.server_state
        for connection in list(state.connections):
            connection.shutdown()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOP_S):
                while state.connections or state.tasks:  # noqa: ASYNC110 - they have no event
                    await asyncio.sleep(STOP_LOOK_S)
        if state.tasks:
            logger.warning("requests cut at stop", extra={"count": len(state.tasks)})
        for task in state.tasks:
            task.cancel()


class HttpServer:
    """Serves `app` on `sockets` (listening; owned from here on)."""

    def __init__(self, app: ASGIApp, sockets: list[socket.socket], name: str) -> None:
        """`name` is that of its task."""
        self._name = name
        self._app = app
        self._sockets = sockets
        self._server: _Server | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Returns when requests are answered."""
        self._server = _Server(
            uvicorn.Config(
                self._app,
                http=_Protocol,
                ws="none",
                lifespan="off",
                log_config=None,  # records go to the root logger
                access_log=False,
                server_header=False,
                limit_concurrency=MAX_REQUESTS,
            )
        )
        self._task = asyncio.create_task(self._server.serve(self._sockets), name=self._name)
        ready = asyncio.create_task(self._server.ready.wait())
        await asyncio.wait({self._task, ready}, return_when=asyncio.FIRST_COMPLETED)
        if self._task.done():
            ready.cancel()
            self._task.result()

    async def stop(self) -> None:
        """Finish requests in progress, for STOP_S at most, and close the sockets."""
        if self._server and self._task:
            self._server.leave()
            await self._task
        for sock in self._sockets:
            sock.close()
