"""A control API without a daemon: the real application and server around a store in memory.

Requests are served on an event loop in a thread of its own, so that tests can use the blocking
client and the CLI as users do.
"""

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx

from blockd.access.book import AccessBook
from blockd.accounts import Accounts
from blockd.api.app import create_app
from blockd.api.iscsi_types import SessionInfo
from blockd.api.node import Cluster
from blockd.api.server import HttpServer
from blockd.api.types import ConnectionInfo, NodeStatus
from blockd.certificates import Certificate
from blockd.limits import RateLimits
from blockd.registry.targets import TargetRegistry
from blockd.sockets import CONTROL, UnixListener
from tests.fake_store import FakeStore
from volume.model import StoreStatus

VERSION = "9.9"
START_S = 60.0
ANSWER_S = 60.0  # only a hang reaches it, on a machine with other work


class FakeNode:
    """Satisfies blockd.api.node.Node."""

    def __init__(self, control: Path) -> None:
        self.store = FakeStore()
        self.targets = TargetRegistry(self.store)
        self.access = AccessBook(self.store)
        self.accounts = Accounts(self.store)
        self.rate_limits = RateLimits(self.store)
        self.control = control
        self.clients: list[ConnectionInfo] = []
        self.initiators: list[SessionInfo] = []
        self.cluster: Cluster | None = None
        self.tls: list[Certificate] = []
        self.slow: set[str] = set()
        """Ids of clients that do not finish in time."""

    def reset(self) -> None:
        """Forget volumes, clients and planned failures."""
        self.store.reset()
        self.targets = TargetRegistry(self.store)
        self.access = AccessBook(self.store)
        self.accounts = Accounts(self.store)
        self.rate_limits = RateLimits(self.store)
        self.clients = []
        self.initiators = []
        self.cluster = None
        self.tls = []
        self.slow = set()

    def connections(self) -> list[ConnectionInfo]:
        return self.clients

    def sessions(self) -> list[SessionInfo]:
        return self.initiators

    def certificates(self) -> dict[str, list[Certificate]]:
        return {"nbd": self.tls}

    async def disconnect(self, client_id: str) -> bool | None:
        ids = [each.id for each in self.clients] + [each.id for each in self.initiators]
        if client_id not in ids:
            return None
        self.clients = [each for each in self.clients if each.id != client_id]
        self.initiators = [each for each in self.initiators if each.id != client_id]
        return client_id not in self.slow

    def node_status(self, store: StoreStatus) -> NodeStatus:
        return NodeStatus(
            version=VERSION,
            pid=4711,
            uptime_s=61.0,
            nbd=("127.0.0.1:10809", "/run/nbd.sock"),
            control=str(self.control),
            tls="off",
            connection_count=len(self.clients),
            store=store,
            iscsi=("127.0.0.1:3260",),
            session_count=len(self.initiators),
            auto_targets=True,
        )


@contextlib.contextmanager
def serving(node: FakeNode) -> Iterator[None]:
    """The control API of `node` answers on `node.control` while the block runs."""
    started = threading.Event()
    failed: list[BaseException] = []
    stop = asyncio.Event()
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        listener = UnixListener(node.control, use=CONTROL)
        server = HttpServer(create_app(node, VERSION), [listener.sock], "control API")
        await server.start()
        started.set()
        await stop.wait()
        await server.stop()
        listener.remove()
        await loop.shutdown_default_executor()

    def run() -> None:
        try:
            loop.run_until_complete(serve())
        except BaseException as error:
            failed.append(error)
        finally:
            loop.close()
            started.set()

    thread = threading.Thread(target=run, name="control API")
    thread.start()
    assert started.wait(START_S), "the control API did not start"
    try:
        yield
    finally:
        if not loop.is_closed():
            loop.call_soon_threadsafe(stop.set)
        thread.join(START_S)
        assert not failed, failed


def raw_client(node: FakeNode, base_url: str = "http://blockd") -> httpx.Client:
    """Requests to its control API as they are, for those that `Client` does not make."""
    transport = httpx.HTTPTransport(uds=str(node.control))
    return httpx.Client(transport=transport, base_url=base_url, timeout=ANSWER_S)
