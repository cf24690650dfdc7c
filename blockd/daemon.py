"""Composition root: store, listeners and control API on one uvloop, from start to drain.

    start   open the store (recovers) -> create missing volumes -> access lists -> targets
            -> all sockets listen -> cluster, if it is in one -> NBD and iSCSI
            -> control API (`blockd.control`) -> ready
            (a node that cannot have its addresses takes no volume over from others)
    stop    volumes that other nodes have as well are handed over to these
            -> NBD and iSCSI stop taking clients and drain, together -> control API
            -> peers are told good-bye -> the request loop ends -> the store closes (checkpoint)

The first SIGINT or SIGTERM hands over and drains, for `drain_s` at most; a second one cuts both
short; a third ends the process on the spot, which the journal makes as safe as kill -9. Signals
during recovery take effect when it is over. SIGHUP reads TLS files and log settings again; whatever
else changed in the file is named in the log and waits for a restart.

The store's calls wait for disks and are made in threads; everything else happens on the loop.
"""

import asyncio
import contextlib
import gc
import importlib.metadata
import logging
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Protocol

import uvloop

from blockd import logs, systemd
from blockd.access.book import AccessBook, Take, VolumeAccess
from blockd.access.rules import AccessList
from blockd.accounts import Accounts
from blockd.api.iscsi_types import SessionInfo
from blockd.api.node import Cluster, Store
from blockd.api.types import ConnectionInfo, NodeStatus
from blockd.certificates import Certificate, warn_of_ends
from blockd.config import PortalAddress, ServeConfig, TcpAddress, TlsChoice, check, check_exposure
from blockd.control import HttpSide, bound
from blockd.device import Exports
from blockd.limits import RateLimits
from blockd.loop_calls import LoopCall, post
from blockd.paths import Paths
from blockd.ready import Ready, announced_in
from blockd.registry.targets import TargetRegistry
from blockd.request_loop import RequestLoop
from blockd.scheduler import LoopScheduler
from blockd.sockets import Bind, bind_tcp
from blockd.toml_decode import ConfigError
from volume import sites
from volume.errors import VolumeError
from volume.model import StoreStatus

logger = logging.getLogger(__name__)

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
CERTIFICATES_EVERY_S = 86400.0  # how often the log tells of those that end soon


class AnyListener(Protocol):
    """What the daemon needs of every listener (`blockd.client_listener`)."""

    @property
    def addresses(self) -> list[str]: ...
    @property
    def client_count(self) -> int: ...
    async def bind(self) -> None:
        """Have its sockets listen; who connects waits. ListenError."""

    async def start(self) -> None: ...
    def unbind(self) -> None:
        """Close the sockets. Idempotent."""

    async def stop(self, drain_s: float) -> None:
        """Take no more clients, finish what is in flight, close; callable again to hurry."""


class Listener(AnyListener, Protocol):
    """What the daemon needs of `blockd.listener.NbdListener`."""

    def connections(self) -> list[ConnectionInfo]: ...
    async def disconnect_id(self, client_id: str) -> bool | None: ...
    def certificates(self) -> Sequence[Certificate]: ...
    async def bar(self) -> list[str]: ...
    def follow(self, paths: Paths) -> None:
        """Before `start`: how volumes that several nodes have are reached."""

    def reload_tls(self) -> None:
        """Read the TLS files again. Raises when they cannot be used, and keeps the old ones."""


class IscsiListener(AnyListener, Protocol):
    """What the daemon needs of `blockd.iscsi_listener.IscsiListener`."""

    @property
    def portals(self) -> list[tuple[str, int]]:
        """Addresses, and which portal group of this node each has."""

    def follow(self, paths: Paths) -> None: ...
    def paths_changed(self) -> None:
        """Some of these ways are other ones."""

    def sessions(self) -> list[SessionInfo]: ...
    async def disconnect_id(self, client_id: str) -> bool | None: ...
    async def bar(self) -> list[str]: ...


class ClusterNode(Cluster, Protocol):
    """What the daemon needs of `blockd.cluster.node.ClusterNode`; calls wait."""

    @property
    def listening(self) -> tuple[str, ...]: ...
    @property
    def paths(self) -> Paths: ...
    def advertise(self, nbd: Sequence[str], portals: Sequence[tuple[str, int]]) -> None: ...
    def cut_with(self, cut: Callable[[str, str], None]) -> None: ...
    def lists_with(self, take: Take) -> None: ...
    def limits_with(self, limits: RateLimits) -> None: ...
    def share(
        self, volume: bytes, access: AccessList | None, expected: str | None
    ) -> int | None: ...
    def start(self) -> None: ...
    def hand_over(self) -> None: ...
    def stop(self) -> None: ...


OpenStore = Callable[[ServeConfig, LoopScheduler], Store]
OpenTargets = Callable[[ServeConfig, Store], TargetRegistry]
Sockets = list[socket.socket]
MakeListener = Callable[
    [ServeConfig, Exports, VolumeAccess, Sockets, RequestLoop | None, Accounts, RateLimits],
    Listener,
]
MakeIscsi = Callable[
    [ServeConfig, TargetRegistry, VolumeAccess, Sockets, RequestLoop | None, Accounts, RateLimits],
    IscsiListener,
]

MakeCluster = Callable[[ServeConfig, Store, str], ClusterNode | None]


@dataclass(frozen=True, slots=True)
class Parts:
    """What a daemon is made of and talks to (blockd.wiring has the real ones)."""

    open_store: OpenStore
    open_targets: OpenTargets
    make_listener: MakeListener
    make_iscsi: MakeIscsi
    make_cluster: MakeCluster
    reload: Callable[[], ServeConfig]
    announce: Callable[[Ready], None]
    ready_file: Path | None = None
    bind: Bind = bind_tcp
    """For the addresses of metrics; the listeners have theirs."""


class Daemon:
    """One run of the daemon, and the `Node` of its control API. `run` is called once."""

    def __init__(self, config: ServeConfig, parts: Parts) -> None:
        self._config = config
        self._parts = parts
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        self._notifier = systemd.Notifier(os.environ.get("NOTIFY_SOCKET"))
        self._version = importlib.metadata.version("blockd")
        self._started = time.monotonic()
        self._http: HttpSide | None = None
        self._store: Store | None = None
        self._targets: TargetRegistry | None = None
        self._listener: Listener | None = None
        self._iscsi: IscsiListener | None = None
        self._access: AccessBook | None = None
        self._accounts: Accounts | None = None
        self._cluster: ClusterNode | None = None
        self._cutting: set[asyncio.Future[bool | None]] = set()
        self._rate_limits: RateLimits | None = None

    # -- what the control API sees (blockd.api.node.Node) --------------------------------------

    @property
    def store(self) -> Store:
        assert self._store is not None
        return self._store

    @property
    def targets(self) -> TargetRegistry:
        assert self._targets is not None
        return self._targets

    @property
    def access(self) -> AccessBook:
        assert self._access is not None
        return self._access

    @property
    def accounts(self) -> Accounts:
        assert self._accounts is not None
        return self._accounts

    @property
    def cluster(self) -> Cluster | None:
        return self._cluster

    @property
    def rate_limits(self) -> RateLimits:
        assert self._rate_limits is not None
        return self._rate_limits

    def connections(self) -> list[ConnectionInfo]:
        assert self._listener is not None
        return self._listener.connections()

    def sessions(self) -> list[SessionInfo]:
        assert self._iscsi is not None
        return self._iscsi.sessions()

    def certificates(self) -> dict[str, Sequence[Certificate]]:
        assert self._listener is not None
        return {"nbd": self._listener.certificates()}

    async def disconnect(self, client_id: str) -> bool | None:
        assert self._listener is not None
        assert self._iscsi is not None
        done = await self._listener.disconnect_id(client_id)
        return await self._iscsi.disconnect_id(client_id) if done is None else done

    def node_status(self, store: StoreStatus) -> NodeStatus:
        assert self._listener is not None
        assert self._iscsi is not None
        assert self._http is not None
        return NodeStatus(
            version=self._version,
            pid=os.getpid(),
            uptime_s=time.monotonic() - self._started,
            nbd=tuple(self._listener.addresses),
            iscsi=tuple(self._iscsi.addresses),
            control=self._http.control,
            tls=self._config.tls.mode.value,
            connection_count=self._listener.client_count,
            session_count=len(self._iscsi.sessions()),
            auto_targets=self.targets.auto,
            metrics=self._http.metrics,
            store=store,
        )

    def _cut_off(self, volume: str, why: str) -> None:
        """Another node serves `volume` from now on: its NBD clients here have to go there. iSCSI
        sessions stay, on standby; they are told by `paths_changed`. Or it goes back to a version:
        then these stay in the way until they log out."""
        if self._listener is None or self._iscsi is None:
            return
        ids = [each.id for each in self.connections() if each.export == volume]
        facts = {"volume": volume, "clients": len(ids), "why": why}
        logger.warning("clients of a volume are cut off", extra=facts)
        for client_id in ids:
            cutting = asyncio.ensure_future(self.disconnect(client_id))
            self._cutting.add(cutting)
            cutting.add_done_callback(self._cutting.discard)

    def _follow(self, paths: Paths) -> None:
        """Front ends know how volumes are reached that several nodes have."""
        assert self._listener is not None
        assert self._iscsi is not None
        self._listener.follow(paths)
        self._iscsi.follow(paths)

        changed = LoopCall(asyncio.get_running_loop(), self._iscsi.paths_changed)
        paths.watch(changed.soon, changed.settle)

    # -- life --------------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve until a signal. Raises what keeps it from starting; errors carry a `code`."""
        self._handle_signals()
        passed = systemd.take_sockets(os.environ, os.getpid())
        config = _with_passed(self._config, passed)
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(self._watched())
            self._store = await stack.enter_async_context(self._opened_store())
            await self._create_missing_volumes()
            parts = self._parts
            self._access = access = await asyncio.to_thread(AccessBook, self.store)
            self._targets = await asyncio.to_thread(parts.open_targets, config, self.store)
            loop = await stack.enter_async_context(self._request_loop())
            self._accounts = Accounts(self.store)
            self._rate_limits = await asyncio.to_thread(RateLimits, self.store)
            shared = loop, self._accounts, self._rate_limits
            self._listener = parts.make_listener(config, self.store, access, passed.nbd, *shared)
            self._iscsi = parts.make_iscsi(config, self._targets, access, passed.iscsi, *shared)
            access.watch(self._listener.bar)
            access.watch(self._iscsi.bar)
            http = bound(config, passed.control, parts.bind)
            self._http = await stack.enter_async_context(http)
            await stack.enter_async_context(_bound([self._listener, self._iscsi]))
            self._cluster = await stack.enter_async_context(self._clustered())
            stack.push_async_callback(self._http.stop)
            await stack.enter_async_context(self._listening([self._listener, self._iscsi]))
            if self._cluster is not None:
                self._cluster.advertise(self._listener.addresses, self._iscsi.portals)
            await stack.enter_async_context(
                _repeated(CERTIFICATES_EVERY_S, self._warn_of_certificates)
            )
            await self._serve(config, self._http)

    @contextlib.asynccontextmanager
    async def _watched(self) -> AsyncIterator[None]:
        """Tell the service manager that the loop turns, if it wants to know."""
        interval_s = systemd.watchdog_s(os.environ, os.getpid())
        if interval_s is None:
            yield
            return
        async with _repeated(interval_s, self._notifier.alive):
            yield

    def _warn_of_certificates(self) -> None:
        warn_of_ends(self.certificates(), datetime.now(UTC))

    async def _serve(self, config: ServeConfig, http: HttpSide) -> None:
        """`config` has the addresses that are served."""
        if self._stop.is_set():
            return  # a signal came during recovery
        await http.start(self, self._version)
        ready = await self._ready()
        with announced_in(self._parts.ready_file, ready):
            nbd, iscsi = ",".join(ready.nbd), ",".join(ready.iscsi)
            facts = {"nbd": nbd, "iscsi": iscsi or "-", "volumes": len(ready.volumes)}
            logger.info("serving", extra=facts)
            _warn_of_exposure(config)
            where = ", ".join(each for each in (nbd, iscsi) if each)
            self._notifier.ready(f"serving {len(ready.volumes)} volumes on {where}")
            self._parts.announce(ready)
            await self._stop.wait()
        self._notifier.stopping()
        if self._cluster is not None:
            await self._hand_over(self._cluster)

    async def _hand_over(self, cluster: ClusterNode) -> None:
        """Clients are served as before meanwhile: here, then at another node. A second signal
        does without; the call that was begun ends by itself."""
        handing = asyncio.ensure_future(asyncio.to_thread(cluster.hand_over))
        hurry = asyncio.ensure_future(self._hurry.wait())
        await asyncio.wait({handing, hurry}, return_when=asyncio.FIRST_COMPLETED)
        hurry.cancel()
        if handing.done():
            await handing

    async def _ready(self) -> Ready:
        assert self._listener is not None
        assert self._iscsi is not None
        assert self._http is not None
        volumes = await asyncio.to_thread(self.store.volumes)
        return Ready(
            data=str(self._config.data.absolute()),
            nbd=tuple(self._listener.addresses),
            iscsi=tuple(self._iscsi.addresses),
            control=self._http.control,
            tls=self._config.tls.mode.value,
            volumes=tuple((volume.name, volume.size) for volume in volumes),
            auto_targets=self.targets.auto,
            iscsi_chap=bool(self.targets.discovery.chap),
            metrics=self._http.metrics,
            peers=() if self._cluster is None else self._cluster.listening,
        )

    @contextlib.asynccontextmanager
    async def _clustered(self) -> AsyncIterator[ClusterNode | None]:
        make = self._parts.make_cluster
        node = await asyncio.to_thread(make, self._config, self.store, self._version)
        if node is None:
            yield None
            return
        loop = asyncio.get_running_loop()

        def cut(volume: str, why: str) -> None:
            post(loop, self._cut_off, volume, why)

        node.cut_with(cut)
        self.store.versions.cut_with(cut)
        node.lists_with(partial(_take, loop, self.access))
        node.limits_with(self.rate_limits)
        self.access.share_by(node.share)
        self._follow(node.paths)
        try:
            await asyncio.to_thread(node.start)
            yield node
        finally:
            await asyncio.to_thread(node.stop)

    @contextlib.asynccontextmanager
    async def _opened_store(self) -> AsyncIterator[Store]:
        scheduler = LoopScheduler(asyncio.get_running_loop())
        _make_directory(self._config.data)
        store = await asyncio.to_thread(self._parts.open_store, self._config, scheduler)
        try:
            yield store
        finally:
            await asyncio.to_thread(store.close)
            logger.info("store closed", extra={"data": self._config.data})

    @contextlib.asynccontextmanager
    async def _request_loop(self) -> AsyncIterator[RequestLoop | None]:
        workers = self._config.loop_threads
        if not workers:
            yield None
            return
        loop = RequestLoop(workers, polling=self._config.loop_polling)
        loop.start()
        try:
            yield loop
        finally:
            await loop.stop()

    async def _create_missing_volumes(self) -> None:
        volumes = await asyncio.to_thread(self.store.volumes)
        present = {volume.name: volume.size for volume in volumes}
        for name, size in self._config.volumes.items():
            if name not in present:
                await asyncio.to_thread(self.store.create_volume, name, size)
            elif present[name] != size:
                logger.info(
                    "volume keeps its size; use `blockd volume resize` to change it",
                    extra={"volume": name, "size": present[name], "configured": size},
                )

    @contextlib.asynccontextmanager
    async def _listening(self, listeners: Sequence[AnyListener]) -> AsyncIterator[None]:
        started: list[AnyListener] = []
        try:
            for listener in listeners:
                await listener.start()
                started.append(listener)
            yield
        finally:
            await self._drain(started)

    async def _drain(self, listeners: Sequence[AnyListener]) -> None:
        """Stop `listeners`, all at once: gently, until a second signal says otherwise."""
        gentle = asyncio.ensure_future(_stop(listeners, self._config.drain_s))
        hurry = asyncio.ensure_future(self._hurry.wait())
        await asyncio.wait({gentle, hurry}, return_when=asyncio.FIRST_COMPLETED)
        hurry.cancel()
        if not gentle.done():
            left = sum(listener.client_count for listener in listeners)
            logger.warning("drain cut short", extra={"connections": left})
            await _stop(listeners, 0.0)
        await gentle

    # -- signals -----------------------------------------------------------------------------

    def _handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in STOP_SIGNALS:
            loop.add_signal_handler(number, self._on_stop, number)
        loop.add_signal_handler(signal.SIGHUP, self._on_reload)

    def _on_stop(self, number: int) -> None:
        name = signal.Signals(number).name
        if not self._stop.is_set():
            logger.info("stopping", extra={"signal": name, "drain_s": self._config.drain_s})
            self._stop.set()
            return
        self._hurry.set()
        loop = asyncio.get_running_loop()
        for each in STOP_SIGNALS:  # the next one ends the process
            loop.remove_signal_handler(each)
            signal.signal(each, signal.SIG_DFL)

    def _on_reload(self) -> None:
        self._notifier.reloading()
        try:
            self._reload()
        except Exception as error:  # what was read before stays in use
            logger.error("reload failed, the old settings stay", extra={"reason": str(error)})
        self._notifier.ready("reloaded")

    def _reload(self) -> None:
        config = self._parts.reload()
        check(config)
        if self._listener is not None:
            self._listener.reload_tls()
        logs.setup(config.log)
        if self._listener is not None:
            self._warn_of_certificates()
        kept = replace(self._config, log=config.log)
        if config != kept:
            names = [field.name for field in fields(ServeConfig)]
            changed = [name for name in names if getattr(config, name) != getattr(kept, name)]
            logger.warning("settings need a restart", extra={"changed": ",".join(changed)})
        self._config = kept
        logger.info("reloaded", extra={"level": config.log.level})


def _take(
    loop: asyncio.AbstractEventLoop,
    book: AccessBook,
    volume: bytes,
    access: AccessList | None,
    number: int,
) -> None:
    """Have the book take a list of another node, on the loop. What fails is tried again soon."""

    async def take() -> None:
        try:
            await book.take(volume, access, number)
        except (VolumeError, OSError) as error:
            facts = {"volume": volume.hex(), "reason": str(error)}
            logger.error("access list of another node not kept", extra=facts)

    with contextlib.suppress(RuntimeError):  # the loop has ended
        asyncio.run_coroutine_threadsafe(take(), loop)


@contextlib.asynccontextmanager
async def _bound(listeners: Sequence[AnyListener]) -> AsyncIterator[None]:
    """The sockets of `listeners`, as long as the block runs."""
    try:
        for listener in listeners:
            await listener.bind()
        yield
    finally:
        for listener in listeners:
            listener.unbind()


async def _stop(listeners: Sequence[AnyListener], drain_s: float) -> None:
    await asyncio.gather(*(listener.stop(drain_s) for listener in listeners))


@contextlib.asynccontextmanager
async def _repeated(interval_s: float, call: Callable[[], None]) -> AsyncIterator[None]:
    """`call` is made at once and then every so often, as long as the block runs."""

    async def repeat() -> None:
        while True:
            call()
            await asyncio.sleep(interval_s)

    repeating = asyncio.ensure_future(repeat())
    try:
        yield
    finally:
        repeating.cancel()


def _with_passed(config: ServeConfig, passed: systemd.Passed) -> ServeConfig:
    """`config` as it is with the addresses that the service manager has bound. ConfigError: they
    may not be served like that."""
    if passed.nbd:
        config = replace(config, nbd=replace(config.nbd, listen=_tcp(passed.nbd)))
    if passed.iscsi:
        portals = tuple(PortalAddress(address) for address in _tcp(passed.iscsi))
        config = replace(config, iscsi=replace(config.iscsi, listen=portals))
    check_exposure(config)
    return config


def _tcp(sockets: Sequence[socket.socket]) -> tuple[TcpAddress, ...]:
    names = (sock.getsockname()[:2] for sock in sockets if sock.family != socket.AF_UNIX)
    return tuple(TcpAddress(*name) for name in names)


def _make_directory(path: Path) -> None:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"data directory {path}: {error.strerror}; name one that can be written with --data"
        ) from error


def _warn_of_exposure(config: ServeConfig) -> None:
    """Say what `check` let through and an operator should still know."""
    iscsi = config.iscsi
    if iscsi.exposed and iscsi.chap is None:
        exposed = ",".join(iscsi.exposed)
        logger.warning("iscsi without authentication on the network", extra={"iscsi": exposed})
    exposed = ",".join(str(each) for each in config.nbd.listen if not each.loopback)
    if not exposed:
        return
    if config.tls.mode is not TlsChoice.REQUIRE:
        logger.warning("nbd in plain text on the network", extra={"nbd": exposed})
    elif not (config.tls.client_ca or config.tls.psk):
        logger.warning("any nbd client on the network may attach", extra={"nbd": exposed})


SWITCH_INTERVAL_S = 0.0005
"""How long a worker thread may keep the loop waiting for the interpreter lock; Python's 5 ms would
show in the latency of every request."""


def _allow_many_files() -> None:
    """Packs and sockets: 1 TiB is 16,384 packs, each of which readers may have open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def run(config: ServeConfig, parts: Parts) -> None:
    """Serve until a signal, on a loop of its own, and be ready for the end of the process. Raises
    what kept it from starting."""
    _allow_many_files()
    sites.arm_from(os.environ)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(Daemon(config, parts).run())
    gc.freeze()  # the interpreter's last look for cycles takes longer than all that went before
