"""Accepts clients of one protocol on TCP and unix sockets, and stops in order.

    bind    adopt sockets that systemd bound, bind the configured ones; who connects waits
    start   serve each
    accept  tune the socket, count the client, give it an engine (`blockd.client_protocol` runs it)
    stop    close the listening sockets -> every client finishes what is in flight, and closes
            -> after `drain_s` whoever is left is cut

All clients are in one book, from accept until the device gave back their last request, so that a
client which connects, submits and vanishes in a loop counts against `max_connections` as well. One
beyond that is closed before a byte is said.

Everything here runs on the thread of the loop that `start` was awaited on.
"""

import asyncio
import logging
import socket
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from blockd.accounts import Accounts
from blockd.client_protocol import ClientProtocol
from blockd.config import TcpAddress
from blockd.limits import RateLimits
from blockd.log_limiter import LogLimiter
from blockd.request_loop import RequestLoop
from blockd.sockets import BACKLOG, Bind, UnixListener, bind_tcp, bound_name, peer_of, tune

logger = logging.getLogger(__name__)

DEFAULT_UNIX_MODE = 0o600  # who may connect may read and write every volume without TLS
TRIM_INTERVAL_S = 30.0  # a client quiet for one to two of these keeps no receive buffer
DISCONNECT_S = 10.0  # what a client that an operator disconnects gets for what is in flight
CUT_S = 1.0  # how long a cut connection may take to be reported as lost: a turn of the loop

P = TypeVar("P", bound=ClientProtocol[Any])


class ClientListener(Generic[P]):
    """Serves one protocol on any number of addresses."""

    protocol_name = ""
    """For logs and errors."""

    def __init__(
        self,
        *,
        tcp: Sequence[TcpAddress] = (),
        unix: Path | None = None,
        unix_mode: int = DEFAULT_UNIX_MODE,
        adopted: Sequence[socket.socket] = (),
        max_connections: int,
        handshake_timeout_s: float,
        reply_timeout_s: float,
        request_loop: RequestLoop | None = None,
        accounts: Accounts | None = None,
        rate_limits: RateLimits | None = None,
        bind: Bind = bind_tcp,
    ) -> None:
        """Nothing is bound yet. `adopted` sockets listen already and belong to the listener now.

        `reply_timeout_s` cuts a client that takes none of its replies for so long although more
        than the write buffer's bound of them wait; 0 lets it stay, see `blockd.client_protocol`.
        `request_loop` runs for longer than this listener. `accounts` and `rate_limits` are
        shared by listeners.
        `bind` gives the sockets for an address of `tcp`.
        """
        self.limiter = LogLimiter(logging.getLogger(type(self).__module__))
        self.handshake_timeout_s = handshake_timeout_s
        self.reply_timeout_s = reply_timeout_s
        self.request_loop = request_loop
        self.accounts = accounts or Accounts()
        self.rate_limits = rate_limits or RateLimits()
        self._tcp = list(tcp)
        self._unix = unix
        self._unix_mode = unix_mode
        self._adopted = list(adopted)
        self._bind_tcp = bind
        self._max_connections = max_connections
        self._sockets: list[socket.socket] = []  # that nobody serves yet
        self._servers: list[asyncio.Server] = []
        self._unix_listener: UnixListener | None = None
        self._addresses: list[str] = []
        self._clients: dict[P, None] = {}  # the book, in order of arrival
        self._empty = asyncio.Event()  # nobody is in the book
        self._leaving: dict[P, asyncio.Event] = {}  # who is to be gone, and waited for
        self._entered = 0  # clients so far
        self._stopping = False
        self._trim_timer: asyncio.TimerHandle | None = None

    @abstractmethod
    def _client(self) -> P:
        """One more connection."""

    @property
    def addresses(self) -> list[str]:
        """Where clients can connect: HOST:PORT with the real port, or the path of a unix socket;
        `blockd.attach.uri` makes URIs of them."""
        return list(self._addresses)

    @property
    def client_count(self) -> int:
        """Clients in the book."""
        return len(self._clients)

    @property
    def unsent_bytes(self) -> int:
        """Replies of all clients that wait to be taken."""
        return sum(client.unsent_bytes for client in self._clients)

    # Life.

    async def bind(self) -> None:
        """Have all sockets listen, or none and raise ListenError: who connects waits in the queue
        until `start`. Before that `unbind` closes them."""
        assert not self._sockets, "it is bound"
        self._sockets, self._adopted = self._adopted, []
        try:
            for address in self._tcp:
                self._sockets += await self._bind(address)
            if self._unix is not None:
                self._unix_listener = UnixListener(self._unix, self._unix_mode)
                self._sockets.append(self._unix_listener.sock)
        except BaseException:
            self.unbind()
            raise

    async def start(self) -> None:
        """Serve everybody who connects; `bind` before that, if it was not done."""
        if not self._sockets:
            await self.bind()
        loop = asyncio.get_running_loop()
        self._empty.set()
        self.limiter.report_with(loop.call_later)
        try:
            self._addresses = [bound_name(sock) for sock in self._sockets]
            self._bound()
            while self._sockets:
                self._servers.append(await self._serve(loop, self._sockets[0]))
                self._sockets.pop(0)  # it belongs to its server now
        except BaseException:
            self.unbind()
            raise
        self._trim()

    def unbind(self) -> None:
        """Let go of all sockets; who is served stays. Idempotent."""
        for server in self._servers:
            server.close()
        self._servers.clear()
        for sock in self._sockets:
            sock.close()
        self._sockets.clear()
        self._addresses = []
        if self._unix_listener is not None:
            self._unix_listener.remove()
            self._unix_listener = None

    async def _bind(self, address: TcpAddress) -> list[socket.socket]:
        return await self._bind_tcp(address, self.protocol_name)

    def _bound(self) -> None:
        """`addresses` are known, and nobody has come yet."""

    def _trim(self) -> None:
        for client in self._clients:
            client.trim()
        loop = asyncio.get_running_loop()
        self._trim_timer = loop.call_later(TRIM_INTERVAL_S, self._trim)

    async def _serve(self, loop: asyncio.AbstractEventLoop, sock: socket.socket) -> asyncio.Server:
        create = loop.create_unix_server if sock.family == socket.AF_UNIX else loop.create_server
        return await create(self._client, sock=sock, backlog=BACKLOG)

    async def stop(self, drain_s: float) -> None:
        """Take no more clients, let each finish what is in flight, close. Whoever is not done
        after `drain_s` is cut. May be called again meanwhile, with a shorter time."""
        self._stopping = True
        if self._trim_timer is not None:
            self._trim_timer.cancel()
        self.unbind()
        for client in list(self._clients):
            client.drain()
        if not await self._emptied(drain_s):
            left = list(self._clients)
            logger.warning(f"{self.protocol_name} clients cut at stop", extra={"count": len(left)})
            for client in left:
                client.abort()
            await self._emptied(CUT_S)
        await self._stopped()
        self.limiter.report()
        self.limiter.report_with(None)

    async def disconnect(self, client: P, drain_s: float = DISCONNECT_S) -> bool:
        """Let a client in the book finish what is in flight, and close; cut it after `drain_s`.
        False: it had to be cut. Nothing keeps it from connecting again."""
        gone = self._leaving.setdefault(client, asyncio.Event())
        client.drain()
        if await _comes(gone, drain_s):
            return True
        client.abort()
        await _comes(gone, CUT_S)
        return False

    async def _stopped(self) -> None:
        """Nobody is left: end what clients needed beside their connections."""

    async def _emptied(self, timeout_s: float) -> bool:
        return await _comes(self._empty, timeout_s)

    # What a connection needs (`blockd.client_protocol.Host`).

    def enter(self, client: P, transport: asyncio.Transport) -> bool:
        """Enter a new client into the book, or turn it away."""
        if self._stopping:
            return False  # accepted before the listening socket was closed
        if len(self._clients) >= self._max_connections:
            self.limiter.log(
                logging.WARNING,
                "too many connections",
                f"{self.protocol_name} client turned away, too many connections",
                peer=peer_of(transport),
                limit=self._max_connections,
            )
            return False
        tune(transport)
        client.peer = str(peer_of(transport))
        self._entered += 1
        client.number = self._entered
        self._clients[client] = None
        self._empty.clear()
        return True

    def left(self, client: P) -> None:
        del self._clients[client]
        if (gone := self._leaving.pop(client, None)) is not None:
            gone.set()
        if not self._clients:
            self._empty.set()


async def _comes(event: asyncio.Event, timeout_s: float) -> bool:
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        return False
    return True
