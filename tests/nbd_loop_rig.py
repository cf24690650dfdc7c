"""NBD clients of the request loop, on a store over the simulated disk that does nothing by itself.

The store has no threads: destaging and upkeep are the test's to call, and a sync ends before the
call that asks for it. What is left of concurrency is the loop's own, and the event loop's.
"""

import asyncio
import os
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import uvloop

from blockd.access.book import Everybody
from blockd.config import TcpAddress
from blockd.listener import NbdListener
from blockd.nbd_protocol import NbdProtocol
from blockd.request_loop import RequestLoop
from blockd.scheduler import LoopScheduler
from native import LoopClient, Request
from tests.fakes import FakePolicies
from tests.nbd_client import NbdClient, in_transmission
from tests.served import TIMEOUT_S, OnLoop, loop_in_thread
from tests.sim.simdisk import SimDisk
from tests.sim.store_rig import StoreRig
from volume.options import StoreOptions
from volume.replica import Replica
from volume.volume import Done, Volume

KIB: Final = 1 << 10
MIB: Final = 1 << 20
VOLUME: Final = "vol"
UUID: Final = b"v" * 16
SIZE: Final = 16 * MIB
CHUNK: Final = 64 * KIB
KINDS: Final = ("simple", "structured", "extended")

ROOMY: Final = StoreOptions(
    journal_limit=32 * MIB,
    segment_bytes=4 * MIB,
    reserve_bytes=0,
    short_percent=0,
    window_bytes=0,
    window_s=0,
    history_keep="",
    damage_patience_s=0.0,
    compression="none",
)


class Gate:
    """What the engine submits to a volume waits here until it is opened; the loop's requests go
    past it. On the event loop's thread."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self._submit = volume.submit
        self.held: list[tuple[list[Request], Done]] = []
        volume.submit = self._hold  # type: ignore[method-assign]

    def _hold(self, batch: Sequence[Request], done: Done) -> None:
        self.held.append((list(batch), done))

    def open(self) -> None:
        self._volume.submit = self._submit  # type: ignore[method-assign]
        held, self.held = self.held, []
        for batch, done in held:
            self._submit(batch, done)


class LoopServer(OnLoop):
    """See the module's text."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        threads: int,
        options: StoreOptions,
        capacity: int,
        mirrored: bool = False,
        **more: Any,
    ) -> None:
        """`mirrored`: other nodes have the volume, and the test says what (`replica`)."""
        super().__init__(loop)
        self.disk = SimDisk(capacity=capacity, record=False)
        self.rig = StoreRig(options=options, scheduler=LoopScheduler(loop), disk=self.disk)
        if mirrored:
            self.rig.store.replicas.create(UUID, VOLUME, SIZE, 512, CHUNK, 1)
        else:
            self.rig.store.create_volume(VOLUME, SIZE)
        self.rig.tend()
        self.request_loop = RequestLoop(threads, readers=2)
        self._loop_ended = False
        self.listener = NbdListener(
            self.rig.store,
            FakePolicies({}),
            Everybody(),
            tcp=[TcpAddress("127.0.0.1", 0)],
            request_loop=self.request_loop,
            **more,
        )
        self.begin(self._start()).result(TIMEOUT_S)

    async def _start(self) -> None:
        self.request_loop.start()
        await self.listener.start()

    async def _stop(self) -> None:
        for replica in self.rig.store.replicas:
            replica.shut()
        await self.listener.stop(0.0)
        await self.end_loop()

    async def end_loop(self) -> None:
        if not self._loop_ended:
            self._loop_ended = True
            await self.request_loop.stop()

    def stop(self) -> None:
        self.begin(self._stop()).result(2 * TIMEOUT_S)
        self.rig.store.close()

    @property
    def volume(self) -> Volume:
        return self.rig.volume(VOLUME)

    @property
    def replica(self) -> Replica:
        found = self.rig.store.replicas.get(UUID)
        assert found is not None
        return found

    def client(self, kind: str = "simple") -> NbdClient:
        """In transmission; the loop has it, or will have it as soon as it is quiet."""
        return in_transmission(self.listener.addresses[0], VOLUME, kind)

    def in_loop(self, kind: str = "simple") -> NbdClient:
        """Served by the request loop."""
        client = self.client(kind)
        self.until(lambda: self.protocol(client)._served is not None)
        return client

    def protocol(self, client: NbdClient) -> NbdProtocol:
        """The server's end of a client; to be asked on the loop, while it is connected."""
        host, port = client.socket.getsockname()
        (found,) = [each for each in self.listener._clients if each.peer == f"{host}:{port}"]
        return found

    def narrow(self, client: NbdClient) -> None:
        """Little of what is sent to the client fits into its socket from now on."""
        sock = self.on_loop(lambda: self.protocol(client)._transport.get_extra_info("socket"))
        copy = socket.socket(fileno=os.dup(sock.fileno()))
        with copy:
            copy.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 256 * KIB)

    def served(self, client: NbdClient) -> LoopClient:
        """The request loop's end of a client that it serves. Usable from any thread."""

        def find() -> LoopClient:
            served = self.protocol(client)._served
            assert served is not None, "the request loop does not serve it"
            return served

        return self.on_loop(find)

    def until_empty(self) -> None:
        self.until(lambda: not self.listener.connections())

    def gate(self) -> Gate:
        return self.on_loop(lambda: Gate(self.volume))

    @contextmanager
    def standing_still(self) -> Iterator[None]:
        """Python's event loop does nothing meanwhile; the request loop goes on."""
        stopped, go_on = threading.Event(), threading.Event()

        def wait() -> None:
            stopped.set()
            assert go_on.wait(TIMEOUT_S)

        self._loop.call_soon_threadsafe(wait)
        assert stopped.wait(TIMEOUT_S)
        try:
            yield
        finally:
            go_on.set()


@contextmanager
def serving(
    *, threads: int = 1, options: StoreOptions = ROOMY, capacity: int = 1 << 30, **more: Any
) -> Iterator[LoopServer]:
    """`more`: options of NbdListener."""
    with loop_in_thread(uvloop.new_event_loop()) as loop:
        server = LoopServer(loop, threads=threads, options=options, capacity=capacity, **more)
        try:
            yield server
        finally:
            server.stop()


def pattern(offset: int, length: int) -> bytes:
    """Bytes that say where they are: each 4 KiB has the number of its block."""
    first, last = offset // 4096, -(-(offset + length) // 4096)
    text = b"".join(number.to_bytes(4, "big") * 1024 for number in range(first, last))
    return text[offset % 4096 :][:length]
