"""An NbdListener on a loop in its own thread, for tests that talk to it with blocking clients."""

import asyncio
import concurrent.futures
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import uvloop

from blockd.access.book import Everybody, VolumeAccess
from blockd.config import TcpAddress
from blockd.listener import NbdListener
from blockd.nbd.access import ExportPolicy
from tests.fakes import FakeExports, FakePolicies, MemoryDevice
from tests.nbd_client import NbdClient

T = TypeVar("T")

TIMEOUT_S = 60.0  # only a hang reaches it, on a machine with other work
LONG_S = 1000.0  # longer than any test waits
POLL_S = 0.002
LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "uvloop": uvloop.new_event_loop,
    "asyncio": asyncio.new_event_loop,
}


class OnLoop:
    """Something that runs on a loop in another thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def begin(self, coroutine: Coroutine[Any, Any, T]) -> "concurrent.futures.Future[T]":
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def on_loop(self, action: Callable[[], T]) -> T:
        async def call() -> T:
            return action()

        return self.begin(call()).result(TIMEOUT_S)

    def until(self, reached: Callable[[], bool]) -> None:
        """Wait until `reached()`, asked on the loop, is true."""

        async def wait() -> None:
            async with asyncio.timeout(TIMEOUT_S):
                while not reached():  # noqa: ASYNC110 - what is waited for has no event
                    await asyncio.sleep(POLL_S)

        self.begin(wait()).result()


class Served(OnLoop):
    """`listener` runs; everything that touches it or its devices goes through `on_loop`."""

    def __init__(
        self,
        listener: NbdListener,
        device: MemoryDevice,
        exports: FakeExports,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        super().__init__(loop)
        self.listener = listener
        self.exports = exports
        self.device = device

    @property
    def address(self) -> tuple[str, int]:
        """The first TCP address."""
        text = next(text for text in self.listener.addresses if not text.startswith("/"))
        host, port = text.rsplit(":", 1)
        return host.strip("[]"), int(port)

    @property
    def path(self) -> str:
        return next(text for text in self.listener.addresses if text.startswith("/"))

    def client(self) -> NbdClient:
        """Connected and greeted."""
        client = NbdClient(self.address)
        client.greet()
        return client

    def attached(self) -> NbdClient:
        """In transmission."""
        client = self.client()
        client.go(self.device.name)
        return client

    def until_empty(self) -> None:
        """Wait until the listener knows no client any more."""
        self.until(lambda: not self.listener.connections())

    def stop(self, drain_s: float = TIMEOUT_S) -> float:
        """Stop the listener; how long that took."""
        began = time.monotonic()
        self.begin(self.listener.stop(drain_s)).result(2 * TIMEOUT_S)
        return time.monotonic() - began


@contextmanager
def serving(
    loop_name: str = "uvloop",
    *,
    device: MemoryDevice | None = None,
    policies: dict[str, ExportPolicy] | None = None,
    access: VolumeAccess | None = None,
    **options: Any,
) -> Iterator[Served]:
    """Serve `device` with the given options of NbdListener; on a free TCP port without any."""
    device = device or MemoryDevice()
    if not {"tcp", "unix", "adopted"} & options.keys():
        options["tcp"] = [TcpAddress("127.0.0.1", 0)]
    exports = FakeExports([device])
    access = access or Everybody()
    listener = NbdListener(exports, FakePolicies(policies or {}), access, **options)
    with loop_in_thread(LOOPS[loop_name]()) as loop:
        served = Served(listener, device, exports, loop)
        served.begin(listener.start()).result(TIMEOUT_S)
        try:
            yield served
        finally:
            exports.disk.set()
            served.stop(0.0)


@contextmanager
def loop_in_thread(loop: asyncio.AbstractEventLoop) -> Iterator[asyncio.AbstractEventLoop]:
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield loop
    finally:
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0), loop).result()  # closing handles
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
