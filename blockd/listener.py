"""Accepts NBD clients on TCP and unix sockets, and stops in order.

    start   adopt sockets that systemd bound, bind the configured ones, serve each
    accept  tune the socket, count the client, give it an engine (`blockd.nbd_protocol` runs it)
    stop    close the listening sockets -> every client finishes what is in flight, and closes
            -> after `drain_s` whoever is left is cut -> questions that are being answered end

Versions are looked for by a few threads, first come first served, and a client asks one question
at a time: however many clients ask, the disk sees `LOOKUP_THREADS` of them. Open versions are
bounded over all clients, as each may keep memory of its own.

All clients are in one book, from accept until the device gave back their last request, so that a
client which connects, submits and vanishes in a loop counts against `max_connections` as well. One
beyond that is closed before a byte is said.

Everything here runs on the thread of the loop that `start` was awaited on.
"""

import asyncio
import logging
import socket
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from blockd.api.types import ConnectionInfo
from blockd.config import TcpAddress
from blockd.device import Exports, Versions
from blockd.log_limiter import LogLimiter
from blockd.nbd.access import Policies, TlsMode
from blockd.nbd.connection import Connection
from blockd.nbd.limits import Limits
from blockd.nbd.lookups import Answer, OpenVersion, Question, Unavailable, look_up
from blockd.nbd_protocol import NbdProtocol
from blockd.sockets import BACKLOG, ListenError, UnixListener, bind_tcp, bound_name, peer_name, tune
from blockd.tls import TlsChannel, TlsProvider
from native import OP_READ, OP_WRITE

__all__ = ["ListenError", "NbdListener"]

logger = logging.getLogger(__name__)

DEFAULT_UNIX_MODE = 0o600  # who may connect may read and write every volume without TLS
TRIM_INTERVAL_S = 30.0  # a client quiet for one to two of these keeps no receive buffer
LOOKUP_THREADS = 4  # versions being looked for at once, in the whole process
MAX_OPEN_VERSIONS = 256  # of all clients together; several connections to one count each
CUT_S = 1.0  # how long a cut connection may take to be reported as lost: a turn of the loop


class NbdListener:
    """Serves `exports` to NBD clients, on any number of addresses."""

    def __init__(
        self,
        exports: Exports,
        policies: Policies,
        *,
        tcp: Sequence[TcpAddress] = (),
        unix: Path | None = None,
        unix_mode: int = DEFAULT_UNIX_MODE,
        adopted: Sequence[socket.socket] = (),
        limits: Limits | None = None,
        tls_mode: TlsMode = TlsMode.OFF,
        tls: TlsProvider | None = None,
        reply_timeout_s: float = 0.0,
        list_versions: bool = False,
        max_open_versions: int = MAX_OPEN_VERSIONS,
    ) -> None:
        """Nothing is bound yet. `adopted` sockets listen already and belong to the listener now.

        `reply_timeout_s` cuts a client that takes none of its replies for so long although more
        than the write buffer's bound of them wait; 0 lets it stay, see `blockd.nbd_protocol`.
        `list_versions` shows the snapshots in the answer to LIST. Clients can name versions when
        `exports` has any (`blockd.device.Versions`).
        """
        if tls_mode is not TlsMode.OFF and tls is None:
            raise ValueError(f"TLS mode {tls_mode.value} needs a TlsProvider")
        self.limiter = LogLimiter(logger)
        self.reply_timeout_s = reply_timeout_s
        self._exports = exports
        self._policies = policies
        self._tcp = list(tcp)
        self._unix = unix
        self._unix_mode = unix_mode
        self._adopted = list(adopted)
        self._limits = limits or Limits()
        self._list_versions = list_versions
        self._max_open_versions = max_open_versions
        self._lookups = ThreadPoolExecutor(LOOKUP_THREADS, thread_name_prefix="nbd-version")
        self._tls_mode = tls_mode
        self._tls = tls
        self._servers: list[asyncio.Server] = []
        self._unix_listener: UnixListener | None = None
        self._addresses: list[str] = []
        self._clients: dict[NbdProtocol, None] = {}  # the book, in order of arrival
        self._empty = asyncio.Event()  # nobody is in the book
        self._stopping = False
        self._trim_timer: asyncio.TimerHandle | None = None

    @property
    def addresses(self) -> list[str]:
        """Where clients can connect: HOST:PORT with the real port, or the path of a unix socket;
        `blockd.attach.uri` makes URIs of them."""
        return list(self._addresses)

    def connections(self) -> list[ConnectionInfo]:
        """The clients of this moment, in order of arrival."""
        now = time.monotonic()
        return [_info(client, now) for client in self._clients]

    @property
    def unsent_bytes(self) -> int:
        """Replies of all clients that wait to be taken."""
        return sum(client.unsent_bytes for client in self._clients)

    # Life.

    async def start(self) -> None:
        """Listen on everything, or on nothing and raise ListenError."""
        loop = asyncio.get_running_loop()
        self._empty.set()
        self.limiter.report_with(loop.call_later)
        sockets, self._adopted = self._adopted, []
        try:
            for address in self._tcp:
                sockets += await bind_tcp(address)
            if self._unix is not None:
                self._unix_listener = UnixListener(self._unix, self._unix_mode)
                sockets.append(self._unix_listener.sock)
            self._addresses = [bound_name(sock) for sock in sockets]
            while sockets:
                self._servers.append(await self._serve(loop, sockets[0]))
                sockets.pop(0)  # it belongs to its server now
        except BaseException:
            for sock in sockets:
                sock.close()
            self._close_servers()
            raise

        self._trim()

    def _trim(self) -> None:
        for client in self._clients:
            client.trim()
        loop = asyncio.get_running_loop()
        self._trim_timer = loop.call_later(TRIM_INTERVAL_S, self._trim)

    async def _serve(self, loop: asyncio.AbstractEventLoop, sock: socket.socket) -> asyncio.Server:
        create = loop.create_unix_server if sock.family == socket.AF_UNIX else loop.create_server
        return await create(lambda: NbdProtocol(self), sock=sock, backlog=BACKLOG)

    async def stop(self, drain_s: float) -> None:
        """Take no more clients, let each finish what is in flight, close. Whoever is not done
        after `drain_s` is cut. May be called again meanwhile, with a shorter time."""
        self._stopping = True
        if self._trim_timer is not None:
            self._trim_timer.cancel()
        self._close_servers()
        for client in list(self._clients):
            client.drain()
        if not await self._emptied(drain_s):
            left = list(self._clients)
            logger.warning("nbd clients cut at stop", extra={"count": len(left)})
            for client in left:
                client.abort()
            await self._emptied(CUT_S)
        # The store is closed behind us, and must not be while somebody looks for something in it.
        await asyncio.to_thread(self._lookups.shutdown, cancel_futures=True)
        self.limiter.report()
        self.limiter.report_with(None)

    async def _emptied(self, timeout_s: float) -> bool:
        try:
            async with asyncio.timeout(timeout_s):
                await self._empty.wait()
        except TimeoutError:
            return False
        return True

    def _close_servers(self) -> None:
        for server in self._servers:
            server.close()
        self._servers.clear()
        self._addresses = []
        if self._unix_listener is not None:
            self._unix_listener.remove()
            self._unix_listener = None

    def reload_tls(self) -> None:
        """Read the TLS files again, for clients from now on. Raises TlsConfigError, and then the
        old ones stay in use."""
        if self._tls is not None:
            self._tls.reload()

    # What a connection needs (`blockd.nbd_protocol.Host`).

    @property
    def handshake_timeout_s(self) -> float:
        return self._limits.handshake_timeout_s

    def admit(self, client: NbdProtocol, transport: asyncio.Transport) -> Connection | None:
        if self._stopping:
            return None  # accepted before the listening socket was closed
        if len(self._clients) >= self._limits.max_connections:
            limit = self._limits.max_connections
            self.limiter.log(
                logging.WARNING,
                "too many connections",
                "nbd client turned away, too many connections",
                peer=peer_name(transport),
                limit=limit,
            )
            return None
        tune(transport)
        client.peer = peer_name(transport)
        self._clients[client] = None
        self._empty.clear()
        return Connection(
            self._exports,
            limits=self._limits,
            tls=self._tls_mode,
            policies=self._policies,
            peer=client.peer,
            list_versions=self._list_versions,
        )

    def left(self, client: NbdProtocol) -> None:
        del self._clients[client]
        if not self._clients:
            self._empty.set()

    def tls_channel(self) -> TlsChannel:
        assert self._tls is not None  # the engine starts TLS in no other mode
        return self._tls.channel()

    def look_up(self, question: Question, done: Callable[[Answer], None]) -> None:
        loop = asyncio.get_running_loop()
        # The asking client counts itself already.
        count = sum(client.open_versions for client in self._clients)
        if isinstance(question, OpenVersion) and count > self._max_open_versions:
            limit = self._max_open_versions
            message = f"version {question.name}: {limit} versions are open already; try again later"
            loop.call_soon(self._answered, Unavailable(message, unusual=True), done)
            return

        def answer() -> None:
            answer = self._look_up(question)
            loop.call_soon_threadsafe(self._answered, answer, done)

        self._lookups.submit(answer)

    def _answered(self, answer: Answer, done: Callable[[Answer], None]) -> None:
        if isinstance(answer, Unavailable) and answer.unusual:
            level = logging.ERROR if answer.bug else logging.WARNING
            trace, reason = answer.bug or False, answer.message
            self.limiter.log(level, "version", "nbd version refused", trace=trace, reason=reason)
        done(answer)

    def _look_up(self, question: Question) -> Answer:
        """On a thread of `_lookups`. Always an answer: a client waits for it."""
        assert isinstance(self._exports, Versions)  # else the engine does not ask
        try:
            return look_up(question, self._exports)
        except Exception as bug:
            return Unavailable("internal error; the server's log has more", unusual=True, bug=bug)


def _info(client: NbdProtocol, now: float) -> ConnectionInfo:
    engine = client.engine
    stats = engine.stats
    return ConnectionInfo(
        peer=client.peer,
        export=engine.export_name,
        tls=client.tls is not None,
        names=() if client.tls is None else client.tls.identity.names,
        age_s=now - client.since,
        in_flight=client.in_flight,
        read_count=stats.requests[OP_READ],
        read_bytes=stats.read_bytes,
        write_count=stats.requests[OP_WRITE],
        write_bytes=stats.written_bytes,
        error_count=stats.errors,
    )
