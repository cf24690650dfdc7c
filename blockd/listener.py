"""Accepts NBD clients: `blockd.client_listener` with TLS, access to exports, and versions.

Versions are looked for by a few threads, first come first served, and a client asks one question
at a time: however many clients ask, the disk sees `LOOKUP_THREADS` of them. Open versions are
bounded over all clients, as each may keep memory of its own.
"""

import asyncio
import logging
import socket
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from blockd.access import networks
from blockd.access.book import VolumeAccess
from blockd.access.rules import Client
from blockd.accounts import Accounts
from blockd.api.types import ConnectionInfo
from blockd.certificates import Certificate
from blockd.client_listener import DEFAULT_UNIX_MODE, ClientListener
from blockd.config import TcpAddress
from blockd.device import Exports, Versions
from blockd.limits import RateLimits
from blockd.nbd.access import Policies, TlsMode
from blockd.nbd.connection import Connection
from blockd.nbd.limits import Limits
from blockd.nbd.lookups import (
    Answer,
    OpenVersion,
    Prove,
    Proved,
    Question,
    Unavailable,
    look_up,
)
from blockd.nbd_protocol import NbdProtocol
from blockd.paths import ALONE, Paths
from blockd.request_loop import RequestLoop
from blockd.sockets import Bind, ListenError, bind_tcp, peer_of
from blockd.tls import TlsChannel, TlsProvider
from native import OP_READ, OP_WRITE

__all__ = ["ListenError", "NbdListener"]

logger = logging.getLogger(__name__)

LOOKUP_THREADS = 4  # versions being looked for at once, in the whole process
PROOF_THREADS = 4  # attach tokens being looked at: these do not wait for a disk behind the others
MAX_OPEN_VERSIONS = 256  # of all clients together; several connections to one count each


class NbdListener(ClientListener[NbdProtocol]):
    """Serves `exports` to NBD clients, on any number of addresses."""

    protocol_name = "nbd"

    def __init__(
        self,
        exports: Exports,
        policies: Policies,
        access: VolumeAccess,
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
        request_loop: RequestLoop | None = None,
        accounts: Accounts | None = None,
        rate_limits: RateLimits | None = None,
        bind: Bind = bind_tcp,
    ) -> None:
        """Nothing is bound yet. `adopted` sockets listen already and belong to the listener now.

        `reply_timeout_s` cuts a client that takes none of its replies for so long although more
        than the write buffer's bound of them wait; 0 lets it stay, see `blockd.client_protocol`.
        `list_versions` shows the snapshots in the answer to LIST. Clients can name versions when
        `exports` has any (`blockd.device.Versions`).
        """
        if tls_mode is not TlsMode.OFF and tls is None:
            raise ValueError(f"TLS mode {tls_mode.value} needs a TlsProvider")
        limits = limits or Limits()
        super().__init__(
            tcp=tcp,
            unix=unix,
            unix_mode=unix_mode,
            adopted=adopted,
            max_connections=limits.max_connections,
            handshake_timeout_s=limits.handshake_timeout_s,
            reply_timeout_s=reply_timeout_s,
            request_loop=request_loop,
            accounts=accounts,
            rate_limits=rate_limits,
            bind=bind,
        )
        self._exports = exports
        self._policies = policies
        self._access = access
        self._limits = limits
        self._list_versions = list_versions
        self._max_open_versions = max_open_versions
        self._lookups = ThreadPoolExecutor(LOOKUP_THREADS, thread_name_prefix="nbd-version")
        self._tls_mode = tls_mode
        self._tls = tls
        self._paths = ALONE
        self._proofs = ThreadPoolExecutor(PROOF_THREADS, thread_name_prefix="nbd-attach")

    def follow(self, paths: Paths) -> None:
        """Before `start`: how volumes that several nodes have are reached."""
        self._paths = paths

    def _client(self) -> NbdProtocol:
        return NbdProtocol(self)

    def connections(self) -> list[ConnectionInfo]:
        """The clients of this moment, in order of arrival."""
        now = time.monotonic()
        return [_info(client, now) for client in self._clients]

    async def disconnect_id(self, client_id: str) -> bool | None:
        """`disconnect` the client that `connections` calls so; None: there is none (any more)."""
        found = (client for client in self._clients if _id(client) == client_id)
        client = next(found, None)
        return None if client is None else await self.disconnect(client)

    async def bar(self) -> list[str]:
        """Access lists have changed: end the connections of who may not have what he has. What is
        in flight is finished first, nothing new is done. Their ids."""
        barred = [client for client in self._clients if not client.keeps(self._access)]
        for client in barred:
            facts = {"peer": client.peer, "export": client.engine.export_name}
            logger.warning("nbd client ended, it is not let in any more", extra=facts)
        ids = [_id(client) for client in barred]
        await asyncio.gather(*map(self.disconnect, barred))
        return ids

    async def _stopped(self) -> None:
        # The store is closed behind us, and must not be while somebody looks for something in it.
        await asyncio.to_thread(self._lookups.shutdown, cancel_futures=True)
        await asyncio.to_thread(self._proofs.shutdown, cancel_futures=True)

    def reload_tls(self) -> None:
        """Read the TLS files again, for clients from now on. Raises TlsConfigError, and then the
        old ones stay in use."""
        if self._tls is not None:
            self._tls.reload()

    def certificates(self) -> tuple[Certificate, ...]:
        """Those that the next client is served with; empty without TLS, or with keys only."""
        return () if self._tls is None else self._tls.certificates()

    # What a connection needs (`blockd.nbd_protocol.NbdHost`).

    def admit(self, client: NbdProtocol, transport: asyncio.Transport) -> Connection | None:
        if not self.enter(client, transport):
            return None
        peer = peer_of(transport)
        address = None if peer.address is None else networks.address(peer.address.host)
        return Connection(
            self._exports,
            limits=self._limits,
            tls=self._tls_mode,
            policies=self._policies,
            access=self._access,
            client=Client(address=address, uid=peer.uid),
            peer=client.peer,
            list_versions=self._list_versions,
            paths=self._paths,
        )

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

        threads = self._proofs if isinstance(question, Prove) else self._lookups
        threads.submit(answer)

    def _answered(self, answer: Answer, done: Callable[[Answer], None]) -> None:
        if isinstance(answer, Unavailable) and answer.unusual:
            level = logging.ERROR if answer.bug else logging.WARNING
            trace, reason = answer.bug or False, answer.message
            self.limiter.log(level, "version", "nbd version refused", trace=trace, reason=reason)
        done(answer)

    def _look_up(self, question: Question) -> Answer:
        """On a thread of `_lookups`. Always an answer: a client waits for it."""
        try:
            if isinstance(question, Prove):
                return Proved(self._paths.refusal(question.device.volume_uuid))
            assert isinstance(self._exports, Versions)  # else the engine does not ask
            return look_up(question, self._exports)
        except Exception as bug:
            return Unavailable("internal error; the server's log has more", unusual=True, bug=bug)


def _id(client: NbdProtocol) -> str:
    return f"nbd-{client.number}"


def _info(client: NbdProtocol, now: float) -> ConnectionInfo:
    engine = client.engine
    stats = client.stats()
    return ConnectionInfo(
        peer=client.peer,
        export=engine.export_name,
        tls=client.tls is not None,
        names=() if client.tls is None else client.tls.identity.names,
        age_s=now - client.since,
        in_flight=client.under_way,
        read_count=stats.requests[OP_READ],
        read_bytes=stats.read_bytes,
        write_count=stats.requests[OP_WRITE],
        write_bytes=stats.written_bytes,
        error_count=stats.errors,
        id=_id(client),
        request_count=sum(stats.requests),
    )
