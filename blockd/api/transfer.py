"""/v1/stream and /v1/receive: versions as streams of bytes, out and in. See docs/stream-format.md.

Both are as large as volumes, so nothing is ever held but the piece that is under way: a sender's
next piece is made when the last one has gone out, a receiver's body is read when the last one is
stored. Each stream has a thread of its own, since it waits for disks, and for the other end, for
as long as it likes; MAX_STREAMS of each kind bound that.
"""

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse
from starlette.requests import ClientDisconnect

from blockd.api.node import Incoming, Node
from volume.errors import VolumeError
from volume.model import ReceiveInfo, VolumeInfo
from volume.stream_errors import StreamRefused
from volume.stream_wire import break_frame

logger = logging.getLogger(__name__)

MAX_STREAMS = 4  # out, and as many in
FEED_BYTES = 1024 * 1024  # of a body, stored by one call
MEDIA_TYPE = "application/octet-stream"
T = TypeVar("T")


class Outgoing:
    """A stream that is sent: one piece at a time, closed exactly once. Any thread."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._lock = threading.Lock()

    def next(self) -> bytes:
        """The next piece; empty at the end."""
        with self._lock:
            return next(self._pieces, b"")

    def close(self) -> None:
        """Waits for a `next` that is under way."""
        with self._lock:
            close = getattr(self._pieces, "close", None)
            if close is not None:
                close()


class Threads:
    """A thread for each of a few streams at once."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._free = MAX_STREAMS
        self._pool = ThreadPoolExecutor(MAX_STREAMS, thread_name_prefix=f"blockd-{what}")

    @contextlib.asynccontextmanager
    async def stream(self) -> AsyncIterator[None]:
        """Room for one stream. StreamRefused."""
        if self._free == 0:
            raise StreamRefused(
                f"{MAX_STREAMS} streams to {self._what} are under way already; wait until one ends"
            )
        self._free -= 1
        try:
            yield
        finally:
            self._free += 1

    async def run(self, call: Callable[[], T]) -> T:
        """`call` in a thread. It runs to its end even when the task that waits is cancelled."""
        loop = asyncio.get_running_loop()
        return await asyncio.shield(loop.run_in_executor(self._pool, call))


def router(node: Node) -> APIRouter:
    routes = APIRouter(tags=["streams"])
    store = node.store
    senders, receivers = Threads("send"), Threads("receive")

    @routes.get("/stream", response_class=StreamingResponse)
    async def send_version(
        source: str, base: str | None = None, resume: str | None = None
    ) -> StreamingResponse:
        """The version `source` (vol@ref), as a difference to `base`, from token `resume` on.

        A stream without an end frame was broken off; a break frame, and the daemon's log, say
        why."""
        start = partial(store.send, source, base=base, resume=resume)
        pieces = _sent(senders, lambda: Outgoing(start()), source)
        first = await anext(pieces)  # what can be refused is, before there is a status
        return StreamingResponse(_after(first, pieces), media_type=MEDIA_TYPE)

    @routes.get("/receive")
    async def list_receives() -> list[ReceiveInfo]:
        return await asyncio.to_thread(store.receives)

    @routes.post("/receive/{name}", status_code=201)
    async def receive_version(name: str, request: Request) -> VolumeInfo:
        """The body is a stream. If it breaks off, the error's message says how to go on."""
        async with receivers.stream():
            incoming = await receivers.run(lambda: store.receive(name))
            try:
                async for data in _pieces_of(request):
                    await receivers.run(partial(incoming.feed, data))
                return await receivers.run(incoming.end)
            except ClientDisconnect:
                logger.info("receive broken off by its client", extra={"volume": name})
                raise
            finally:
                await _closed(receivers, incoming)

    @routes.delete("/receive/{name}", status_code=204)
    async def abort_receive(name: str) -> None:
        await asyncio.to_thread(store.abort_receive, name)

    return routes


async def _sent(
    threads: Threads, start: Callable[[], Outgoing], source: str
) -> AsyncGenerator[bytes, None]:
    """The pieces of a stream. Fails before the first, or not at all: later it breaks off, and says
    why by its last frame."""
    async with threads.stream():
        outgoing = await threads.run(start)
        begun = False
        try:
            while piece := await threads.run(outgoing.next):
                begun = True
                yield piece
        except (VolumeError, OSError) as error:
            if not begun:
                raise
            logger.error("send broken off", extra={"source": source, "reason": str(error)})
            yield break_frame(str(error))
        finally:
            await threads.run(outgoing.close)


async def _after(first: bytes, pieces: AsyncGenerator[bytes, None]) -> AsyncIterator[bytes]:
    async with contextlib.aclosing(pieces):
        yield first
        async for piece in pieces:
            yield piece


async def _pieces_of(request: Request) -> AsyncIterator[bytes]:
    """The body in pieces that are worth a call; the server stops reading while one is held."""
    parts: list[bytes] = []
    length = 0
    async for part in request.stream():
        parts.append(part)
        length += len(part)
        if length >= FEED_BYTES:
            yield b"".join(parts)
            parts, length = [], 0
    yield b"".join(parts)


async def _closed(threads: Threads, incoming: Incoming) -> None:
    """Close even when this task is being cancelled: `close` waits for a call under way."""
    with contextlib.suppress(VolumeError, OSError):
        await threads.run(incoming.close)
