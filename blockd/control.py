"""What the daemon serves over HTTP: its control API, and /metrics on addresses of their own.

    bound     sockets are there before any volume is served: an address that is taken ends the
              start, and who connects early waits in the queue
    start     once volumes are served: the applications are loaded and built in a thread, then they
              answer, and the daemon is ready

A restart is an outage for clients of volumes. FastAPI and what it needs take as long to load as all
else of a start together, so these clients do not wait for it.
"""

import asyncio
import contextlib
import gc
import grp
import os
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import TYPE_CHECKING

from blockd.config import ServeConfig, TcpAddress
from blockd.sockets import CONTROL, Bind, UnixListener
from blockd.toml_decode import ConfigError

if TYPE_CHECKING:
    from blockd.api.node import Node
    from blockd.api.server import HttpServer

MAX_GID = (1 << 32) - 2  # the last one means "no group"
Sockets = list[socket.socket]


class HttpSide:
    """`control` is where the API answers, `metrics` are HOST:PORT of these listeners."""

    def __init__(self, control: Sockets, metrics: Sockets) -> None:
        """The sockets listen, and are owned from here on."""
        self._sockets = {"control API": control, "metrics": metrics}
        self._servers: list[HttpServer] = []
        self.control = os.fsdecode(control[0].getsockname())
        names = [sock.getsockname()[:2] for sock in metrics]
        self.metrics = tuple(str(TcpAddress(*name)) for name in names)

    async def start(self, node: "Node", version: str) -> None:
        """Returns when requests are answered. Once only."""
        with loaded_for_good():
            self._servers = await asyncio.to_thread(_servers, node, version, self._sockets)
        for server in self._servers:
            await server.start()

    async def stop(self) -> None:
        """Idempotent."""
        servers, self._servers = self._servers, []
        for server in reversed(servers):
            await server.stop()
        for sock in (each for sockets in self._sockets.values() for each in sockets):
            sock.close()


@contextlib.contextmanager
def loaded_for_good() -> Iterator[None]:
    """What is loaded in the block stays for good: the collector neither looks at it meanwhile, a
    tenth of the time that loading takes, nor ever after, when clients would wait for that."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.freeze()


def _servers(node: "Node", version: str, sockets: dict[str, Sockets]) -> list["HttpServer"]:
    from blockd.api.app import create_app
    from blockd.api.server import HttpServer
    from blockd.metrics import app as metrics

    made = []
    for name, listening in sockets.items():
        if listening:
            app = (
                create_app(node, version)
                if name == "control API"
                else metrics.create_app(metrics.Scrapes(node))
            )
            made.append(HttpServer(app, listening, name))
    return made


@contextlib.asynccontextmanager
async def bound(
    config: ServeConfig, passed: Sequence[socket.socket], bind: Bind
) -> AsyncIterator[HttpSide]:
    """The sockets, and what is served on them from `start` on, as long as the block runs. `passed`:
    that of the control API, if the service manager has bound it. ListenError, ConfigError."""
    owned = None
    control = list(passed)
    if not control:
        owned = listen_for_control(config)
        control = [owned.sock]
    side = None
    metrics: Sockets = []
    try:
        for address in config.metrics.listen:
            metrics += await bind(address, "metrics")
        side = HttpSide(control, metrics)
        yield side
    finally:
        if side is not None:
            await side.stop()
        else:
            for sock in (*control, *metrics):
                sock.close()
        if owned is not None:
            owned.remove()


def listen_for_control(config: ServeConfig) -> UnixListener:
    """The socket of the control API: its user's alone, or a group's as well. ListenError,
    ConfigError."""
    path, name = config.control_socket, config.control.group
    if name is None:
        return UnixListener(path, 0o600, use=CONTROL)
    try:
        group = int(name) if name.isascii() and name.isdigit() else grp.getgrnam(name).gr_gid
    except KeyError:
        raise ConfigError(f"control: group {name!r}: there is none of that name here") from None
    if group > MAX_GID:
        raise ConfigError(f"control: group {name}: a number of a group is at most {MAX_GID}")
    return UnixListener(path, 0o660, use=CONTROL, group=group)
