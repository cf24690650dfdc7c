"""A network in memory: connections whose bytes take their time, come in pieces, and may be cut.

A `Link` has two directions, each a queue of bounded size like a pair of socket buffers. On the
server's side a `SimTransport` feeds the product's protocol; on the client's side a thread calls
`send` and `take`, which wait. Delays and piece sizes are drawn from the seed of the network.
"""

import asyncio
import random
import socket
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, cast

from typing_extensions import Buffer

from tests.sim.world.primitives import Event
from tests.sim.world.threads import NS, Threads

WINDOW_BYTES = 64 << 10  # in flight in one direction before the sender has to wait
PATIENCE_S = 60.0
"""A client that has waited for so long, since it last said what for, has been forgotten."""
FASTEST_S, SLOWEST_S = 20e-6, 400e-6


class Reset(ConnectionResetError):
    """The connection was cut by the other side."""


class Forgotten(AssertionError):
    """A client waits and waits."""


class SimSocket:
    """A socket's name, for what the product asks of sockets."""

    family = socket.AF_INET

    def __init__(self, network: "Network", name: tuple[str, int]) -> None:
        self.network = network
        self._name = name

    def getsockname(self) -> tuple[str, int]:
        return self._name

    def fileno(self) -> int:
        return -1

    def setsockopt(self, *_: object) -> None:
        pass

    def close(self) -> None:
        pass


class Listening:
    """What create_server returns."""

    def __init__(self, network: "Network", name: tuple[str, int]) -> None:
        self._network, self._name = network, name

    def close(self) -> None:
        self._network.servers.pop(self._name, None)


class Network:
    def __init__(self, run: Threads, seed: str) -> None:
        self.run = run
        self.random = random.Random(f"network:{seed}")
        self.servers: dict[
            tuple[str, int], tuple[asyncio.AbstractEventLoop, Callable[[], Any], SimSocket]
        ] = {}
        self.links: list[Link] = []
        self.short_reads = False
        self._next_port = 40000

    def socket(self, port: int) -> socket.socket:
        """One that listens, or will."""
        return cast(socket.socket, SimSocket(self, ("127.0.0.1", port)))

    def listen(
        self, sock: SimSocket, loop: asyncio.AbstractEventLoop, factory: Callable[[], Any]
    ) -> Listening:
        self.servers[sock.getsockname()] = (loop, factory, sock)
        return Listening(self, sock.getsockname())

    def connect(self, port: int) -> "Link":
        """A client connects; ConnectionRefusedError."""
        found = self.servers.get(("127.0.0.1", port))
        self.run.sleep(self.delay_s())
        if found is None or self.servers.get(("127.0.0.1", port)) is not found:
            raise ConnectionRefusedError
        loop, factory, sock = found
        self._next_port += 1
        link = Link(self, loop, sock, ("127.0.0.1", self._next_port))
        self.links.append(link)
        loop.call_soon_threadsafe(link.transport.accepted, factory)
        return link

    def process_ended(self) -> None:
        """The server's machine or process is gone: clients find their connections cut."""
        self.servers.clear()
        links, self.links = self.links, []
        for link in links:
            link.cut()

    def delay_s(self) -> float:
        return FASTEST_S + self.random.random() * (SLOWEST_S - FASTEST_S)


class Link:
    """One connection, as the client has it."""

    def __init__(
        self,
        network: Network,
        loop: asyncio.AbstractEventLoop,
        sock: SimSocket,
        peer: tuple[str, int],
    ) -> None:
        self.network = network
        self.name = peer
        self.to_server = bytearray()
        self.server_eof = False  # the client has closed its end for writing
        self.room = Event()  # in to_server, for the client
        self.to_client: deque[tuple[int, bytes]] = deque()  # when it arrives, and what
        self.client_bytes = 0
        self.client_eof = False
        self.was_cut = False
        self.arrived = Event()
        self._rest = memoryview(b"")
        self._ends_s = 0.0  # of the client's patience
        self.hope()
        self.transport = SimTransport(self, loop, sock)

    # The client's side; called on its thread.

    def hope(self) -> None:
        """The client begins something that should not take long."""
        self._ends_s = self.network.run.now_s + PATIENCE_S

    def _wait(self, event: Event, timeout_s: float, what: str) -> None:
        event.clear()
        left_s = self._ends_s - self.network.run.now_s
        if left_s <= 0:
            raise Forgotten(f"I13 {self.name}: {what}")
        event.wait(min(timeout_s, left_s))

    def send(self, data: bytes) -> None:
        view = memoryview(data)
        while len(view):
            if self.was_cut or self.server_eof:
                raise Reset
            some = min(len(view), WINDOW_BYTES - len(self.to_server))
            if some <= 0:
                self._wait(self.room, PATIENCE_S, "nobody reads what it sends")
                continue
            self.to_server += view[:some]
            view = view[some:]
            self.transport.wake(self.network.delay_s())

    def take(self, count: int) -> bytes:
        got = bytearray()
        while len(got) < count:
            if self.was_cut:
                raise Reset
            if not len(self._rest):
                self._rest = memoryview(self._next_piece(len(got), count))
            part = self._rest[: count - len(got)]
            got += part
            self._rest = self._rest[len(part) :]
        return bytes(got)

    def _next_piece(self, got: int, count: int) -> bytes:
        run = self.network.run
        while not self.was_cut:
            if self.to_client:
                when, piece = self.to_client[0]
                if when > run.now_ns:
                    self._wait(self.arrived, (when - run.now_ns) / NS, "bytes do not arrive")
                    continue
                self.to_client.popleft()
                self.client_bytes -= len(piece)
                self.transport.taken()
                return piece
            if self.client_eof:
                raise EOFError(f"the server closed after {got} of {count} bytes")
            self._wait(self.arrived, PATIENCE_S, f"waits for {count} bytes, {got} came")
        raise Reset

    def shut(self) -> None:
        """Close the client's end for writing."""
        self.server_eof = True
        self.transport.wake(self.network.delay_s())

    def abort(self) -> None:
        """The client vanishes: what it sent and was not read is lost."""
        self.cut()
        self.transport.reset()

    def cut(self) -> None:
        self.was_cut = True
        self.arrived.set()
        self.room.set()
        if self in self.network.links:
            self.network.links.remove(self)


class SimTransport(asyncio.Transport):
    """The server's end of a link; everything but `wake`, `taken` and `reset` on its loop."""

    def __init__(self, link: Link, loop: asyncio.AbstractEventLoop, sock: SimSocket) -> None:
        super().__init__({"socket": sock, "peername": link.name, "sockname": sock.getsockname()})
        self._link = link
        self._loop = loop
        self._random = link.network.random
        self._protocol: Any = None
        self._paused = False
        self._eof_told = False
        self._closing = False
        self._lost = False
        self._eof_written = False
        self._unsent: deque[memoryview] = deque()
        self._unsent_bytes = 0
        self._high, self._low = 64 << 10, 16 << 10
        self._writing_paused = False
        self._last_arrival_ns = 0
        self._read_scheduled = False
        self._write_scheduled = False

    def accepted(self, factory: Callable[[], Any]) -> None:
        if self._link.was_cut:
            return
        self._protocol = factory()
        self._protocol.connection_made(self)
        self._schedule_read(0.0)

    # From any thread.

    def wake(self, delay_s: float) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._schedule_read, delay_s)

    def taken(self) -> None:
        if self._unsent and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._push)

    def reset(self) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._lose, Reset())

    # Reading.

    def _schedule_read(self, delay_s: float) -> None:
        if not self._read_scheduled and self._protocol is not None:
            self._read_scheduled = True
            if delay_s > 0:
                self._loop.call_later(delay_s, self._read)
            else:
                self._loop.call_soon(self._read)

    def _read(self) -> None:
        self._read_scheduled = False
        link = self._link
        if self._paused or self._lost or link.was_cut:
            return
        if link.to_server:
            buffer = self._protocol.get_buffer(-1)
            count = min(len(buffer), len(link.to_server))
            if count > 1 and link.network.short_reads and self._random.random() < 0.5:
                count = 1 + int(self._random.random() * min(count - 1, 200))
            buffer[:count] = link.to_server[:count]
            del link.to_server[:count]
            link.room.set()
            self._protocol.buffer_updated(count)
            if link.to_server or link.server_eof:
                self._schedule_read(link.network.delay_s() if self._random.random() < 0.3 else 0.0)
        elif link.server_eof and not self._eof_told:
            self._eof_told = True
            if not self._protocol.eof_received():
                self.close()

    def pause_reading(self) -> None:
        self._paused = True

    def resume_reading(self) -> None:
        if self._paused:
            self._paused = False
            self._schedule_read(0.0)

    def is_reading(self) -> bool:
        return not self._paused

    # Writing.

    def write(self, data: Buffer) -> None:
        self.writelines([data])

    def writelines(self, list_of_data: Iterable[Buffer]) -> None:
        if self._lost or self._link.was_cut or self._eof_written:
            return
        for data in list_of_data:
            view = memoryview(bytes(data))
            if len(view):
                self._unsent.append(view)
                self._unsent_bytes += len(view)
        self._push()
        if not self._writing_paused and self._unsent_bytes > self._high:
            self._writing_paused = True
            self._protocol.pause_writing()

    def _push(self) -> None:
        """Give the link what it has room for."""
        link = self._link
        if self._lost or link.was_cut:
            return
        while self._unsent and link.client_bytes < WINDOW_BYTES:
            view = self._unsent[0]
            some = min(len(view), WINDOW_BYTES - link.client_bytes)
            if some > 1 and link.network.short_reads and self._random.random() < 0.3:
                some = 1 + int(self._random.random() * (some - 1))
            arrives = self._loop.time() + link.network.delay_s()
            self._last_arrival_ns = max(self._last_arrival_ns, round(arrives * 1e9))
            link.to_client.append((self._last_arrival_ns, bytes(view[:some])))
            link.client_bytes += some
            self._unsent_bytes -= some
            if some == len(view):
                self._unsent.popleft()
            else:
                self._unsent[0] = view[some:]
            link.arrived.set()
        if self._writing_paused and self._unsent_bytes <= self._low:
            self._writing_paused = False
            self._loop.call_soon(self._protocol.resume_writing)
        if not self._unsent and (self._eof_written or self._closing):
            link.client_eof = True
            link.arrived.set()
            if self._closing:
                self._loop.call_soon(self._lose, None)

    def get_write_buffer_size(self) -> int:
        return self._unsent_bytes

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._high = 64 << 10 if high is None else high
        self._low = self._high // 4 if low is None else low

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self._eof_written = True
        self._push()

    # The end.

    def is_closing(self) -> bool:
        return self._closing or self._lost

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            self._paused = True
            self._push()

    def abort(self) -> None:
        if not self._lost:
            self._closing = True
            self._loop.call_soon(self._lose, None)

    def _lose(self, error: Exception | None) -> None:
        if self._lost:
            return
        self._lost = True
        if error is not None or not self._link.client_eof:
            self._link.cut()
        if self._protocol is not None:
            self._protocol.connection_lost(error)

    def get_protocol(self) -> asyncio.BaseProtocol:
        return cast(asyncio.BaseProtocol, self._protocol)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol
