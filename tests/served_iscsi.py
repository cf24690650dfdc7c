"""An IscsiListener on a loop in its own thread, and initiators that talk to it over sockets."""

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from blockd.access.book import Everybody, VolumeAccess
from blockd.config import parse_portal
from blockd.device import LastingDevice
from blockd.iscsi import pdu
from blockd.iscsi.node import Node
from blockd.iscsi.targets import Portal, Target
from blockd.iscsi_listener import IscsiListener
from blockd.paths import Paths
from blockd.workers import Done
from tests.fakes import MemoryDevice
from tests.iscsi_initiator import ISID, FakeTargets, Initiator, Pdu, World, parse
from tests.served import LOOPS, TIMEOUT_S, OnLoop, loop_in_thread
from volume.errors import NoSuchVersion

RECEIVE_BYTES = 65536


class FakeRegistry(FakeTargets):
    """The targets of a world; opens its past versions on a thread, when `disk` lets it."""

    def __init__(self, world: World) -> None:
        super().__init__(world.target)
        self.past = world.targets.past
        self.reached_at: list[Portal] = []
        self.disk = threading.Event()
        self.disk.set()
        self.fail_with: Exception | None = None
        self.opened: list[str] = []
        """Names of the threads that versions were opened on."""
        self.held: list[Target] = []
        self.ticks = 0
        self.paths_changes = 0
        self.stopped = False

    def serve(self, node: Node, work: Callable[[Callable[[], Any], Done], None]) -> None:
        self.node = node

    def listening(self, portals: Sequence[Portal]) -> None:
        self.reached_at = list(portals)

    def open_past(self, name: str) -> LastingDevice:
        assert self.disk.wait(TIMEOUT_S)
        if self.fail_with is not None:
            raise self.fail_with
        if name not in self.past:
            raise NoSuchVersion(*name.split("@"))
        self.opened.append(threading.current_thread().name)
        device = self.past[name].device.units[0].device
        assert isinstance(device, MemoryDevice)
        return device

    def hold(self, name: str, device: LastingDevice) -> Target:
        self.held.append(self.past[name])
        return self.past[name]

    def release(self, target: Target) -> None:
        self.held.remove(target)

    def follow(self, paths: Paths) -> None:
        self.paths = paths

    def paths_changed(self) -> None:
        self.paths_changes += 1

    def tick(self, now_s: float) -> None:
        self.ticks += 1

    def stop(self) -> None:
        self.stopped = True


class Wire(Initiator):
    """An initiator on a socket: `take` waits for the next PDU."""

    def __init__(self, world: World, address: tuple[str, int], *, isid: bytes = ISID) -> None:
        super().__init__(world, isid=isid)
        self.socket = socket.create_connection(address, timeout=TIMEOUT_S)

    def feed(self, data: bytes, piece: int = 0) -> None:
        self.socket.sendall(data)

    def take(self) -> list[Pdu]:
        bhs = self._exactly(pdu.HEADER_BYTES)
        length = int.from_bytes(bhs[5:8], "big")
        return parse(bhs + self._exactly(pdu.padded(length)))

    def _exactly(self, length: int) -> bytes:
        got = b""
        while len(got) < length:
            piece = self.socket.recv(length - len(got))
            assert piece, f"closed after {len(got)} of {length} bytes"
            got += piece
        return got

    def rest(self) -> bytes:
        """All that comes until the target closes."""
        got = b""
        while piece := self.socket.recv(RECEIVE_BYTES):
            got += piece
        return got

    def log_out(self) -> Pdu:
        self.feed(self.other(pdu.LOGOUT, pdu.FINAL, tag=0, immediate=True))
        [answer] = self.take()
        return answer

    def __enter__(self) -> "Wire":
        return self

    def __exit__(self, *exc: object) -> None:
        self.socket.close()


class ServedIscsi(OnLoop):
    """`listener` runs; everything that touches it or its devices goes through `on_loop`."""

    def __init__(
        self,
        listener: IscsiListener,
        world: World,
        registry: FakeRegistry,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        super().__init__(loop)
        self.listener = listener
        self.world = world
        self.registry = registry

    def address(self, index: int = 0) -> tuple[str, int]:
        host, port = self.listener.addresses[index].rsplit(":", 1)
        return host.strip("[]"), int(port)

    def connected(self, index: int = 0, **options: Any) -> Wire:
        return Wire(self.world, self.address(index), **options)

    def logged_in(self, index: int = 0, **options: Any) -> Wire:
        wire = self.connected(index, **options)
        wire.log_in()
        return wire

    def until_empty(self) -> None:
        self.until(lambda: not self.listener.client_count)

    def stop(self, drain_s: float = TIMEOUT_S) -> None:
        self.begin(self.listener.stop(drain_s)).result(2 * TIMEOUT_S)


@contextmanager
def serving_iscsi(
    loop_name: str = "uvloop",
    *,
    world: World | None = None,
    portals: Sequence[str] = ("127.0.0.1:0",),
    access: VolumeAccess | None = None,
    **options: Any,
) -> Iterator[ServedIscsi]:
    """Serve the target of `world`, with options of IscsiListener."""
    world = world or World()
    registry = FakeRegistry(world)
    addresses = [] if "adopted" in options else [parse_portal(text) for text in portals]
    with loop_in_thread(LOOPS[loop_name]()) as loop:
        listener = IscsiListener(
            *(registry, access or Everybody()), portals=addresses, limits=world.limits, **options
        )
        served = ServedIscsi(listener, world, registry, loop)
        served.begin(listener.start()).result(TIMEOUT_S)
        try:
            yield served
        finally:
            registry.disk.set()
            served.stop(0.0)
