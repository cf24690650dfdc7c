"""The request loop as the daemon has it: native threads that serve clients' plain requests.

A client that is in its full phase and asks for nothing but reads and writes costs no Python: its
protocol hands the socket over (`add_nbd`), a thread of the loop serves it, and what the loop leaves
to Python comes back through `Owner.loop_news`, on the event loop's thread. native/src/loop.h says
who does what, and `blockd.client_protocol` how a connection goes over and comes back.
"""

import asyncio
import os
from typing import Protocol, cast

from native import Loop, LoopClient

READERS = 8  # threads that wait for a disk; as many reads as a disk takes at once, or nearly


class Owner(Protocol):
    """Whoever handed a client over."""

    def loop_news(self, client: LoopClient) -> None:
        """The client has mail, has stopped, or its `stalled` has changed. Must not raise."""


class RequestLoop:
    """See the module's text. Made, started and stopped on the event loop's thread."""

    def __init__(self, workers: int, readers: int = READERS, *, polling: bool = True) -> None:
        """`polling`: they may look at their sockets for a moment before they sleep, on half of the
        cores at most. OSError when the threads cannot be started."""
        self.native = Loop(workers, readers, len(os.sched_getaffinity(0)) // 2 if polling else 0)
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        """Hear of clients on the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self.native.fileno(), self._news)

    async def stop(self) -> None:
        """Cut who is left, wait for what is under way, end the threads."""
        if self._loop is not None:
            self._loop.remove_reader(self.native.fileno())
        for client in await asyncio.to_thread(self.native.close):
            cast(Owner, client.owner).loop_news(client)

    def _news(self) -> None:
        for client in self.native.news():
            cast(Owner, client.owner).loop_news(client)
