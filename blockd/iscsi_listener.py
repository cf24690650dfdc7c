"""Accepts iSCSI initiators: `blockd.client_listener` with portals, threads and the clock.

Each socket that is listened on is a portal. Its portal group is the one that the configuration has
for the address, so that two groups are two target ports, and two paths to a unit.

What waits for a disk runs on the threads of a `Workers`, where owners take turns: each session is
one, so is each login that looks for a past version, and what goes on without a session. Past
versions that are open are bounded over all initiators, as each may keep memory of its own.
"""

import asyncio
import logging
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

from blockd.access.book import VolumeAccess
from blockd.accounts import Accounts
from blockd.api.iscsi_types import SessionInfo
from blockd.attach import split
from blockd.client_listener import ClientListener
from blockd.config import PortalAddress, TcpAddress, portal_groups
from blockd.device import BlockDevice, LastingDevice
from blockd.iscsi.connection import Connection
from blockd.iscsi.limits import Limits
from blockd.iscsi.node import Node, OpenSession
from blockd.iscsi.targets import Portal, Target, Targets
from blockd.iscsi_protocol import IscsiProtocol
from blockd.limits import RateLimits
from blockd.paths import ALONE, Paths, tag_of
from blockd.request_loop import RequestLoop
from blockd.sockets import Bind, bind_tcp, bound_name
from blockd.workers import Done, Workers
from volume.errors import InvalidName, NoSuchVersion, NoSuchVolume, VolumeError

logger = logging.getLogger(__name__)

MAX_OPEN_VERSIONS = 256  # held by connections at once, or being opened
TICK_S = 1.0

_MISSING = (NoSuchVersion, NoSuchVolume, InvalidName)  # what nothing can be called, is not there


class ServedTargets(Targets, Protocol):
    """What the listener needs of `blockd.registry.targets.TargetRegistry`."""

    def serve(self, node: Node, work: Callable[[Callable[[], Any], Done], None]) -> None:
        """Sessions are about to be opened; `work` makes calls on another thread."""

    def listening(self, portals: Sequence[Portal]) -> None:
        """Where targets are reached from now on."""

    def open_past(self, name: str) -> LastingDevice:
        """The past version that target `name` stands for. Waits for disks, on any thread.
        NoSuchVolume, NoSuchVersion, InvalidName when there is none; VolumeError, OSError."""

    def hold(self, name: str, device: LastingDevice) -> Target:
        """The target of a version that was just opened, until `release`."""

    def release(self, target: Target) -> None:
        """Take back one `hold`."""

    def follow(self, paths: Paths) -> None:
        """Before anybody logs in: how volumes that several nodes have are reached."""

    def paths_changed(self) -> None:
        """Some of these ways are other ones."""

    def tick(self, now_s: float) -> None:
        """Called about once a second."""

    def stop(self) -> None:
        """No session is left: end what goes on without any."""


class IscsiListener(ClientListener[IscsiProtocol]):
    """Serves `targets` to iSCSI initiators, on any number of addresses."""

    protocol_name = "iscsi"

    def __init__(
        self,
        targets: ServedTargets,
        access: VolumeAccess,
        *,
        portals: Sequence[PortalAddress] = (),
        adopted: Sequence[socket.socket] = (),
        limits: Limits | None = None,
        reply_timeout_s: float = 0.0,
        max_open_versions: int = MAX_OPEN_VERSIONS,
        request_loop: RequestLoop | None = None,
        accounts: Accounts | None = None,
        rate_limits: RateLimits | None = None,
        bind: Bind = bind_tcp,
    ) -> None:
        """As `ClientListener`; each adopted socket is a portal group of its own."""
        limits = limits or Limits()
        super().__init__(
            tcp=[portal.address for portal in portals],
            adopted=adopted,
            max_connections=limits.max_connections,
            handshake_timeout_s=limits.login_timeout_s,
            reply_timeout_s=reply_timeout_s,
            request_loop=request_loop,
            accounts=accounts,
            rate_limits=rate_limits,
            bind=bind,
        )
        self.node = Node(targets, limits, self.accounts, self.rate_limits, access)
        self._targets = targets
        self._groups_left = portal_groups(portals)  # of addresses that are not bound yet
        self._groups = list(range(1, len(adopted) + 1))  # of sockets, in order
        self._portals: list[Portal] = []
        self._paths = ALONE
        self._max_open_versions = max_open_versions
        self._open_versions = 0
        self._workers = Workers("iscsi")
        self._tick_timer: asyncio.TimerHandle | None = None
        targets.serve(self.node, partial(self.work, self))

    def _client(self) -> IscsiProtocol:
        return IscsiProtocol(self)

    # Life.

    async def start(self) -> None:
        await super().start()
        self._tick()

    async def _bind(self, address: TcpAddress) -> list[socket.socket]:
        sockets = await super()._bind(address)
        self._groups += [self._groups_left.pop(0)] * len(sockets)
        return sockets

    def _bound(self) -> None:
        number = self._paths.number
        self._portals = [
            Portal(host, int(port), tag_of(number, group))
            for (host, port), group in zip(map(split, self.addresses), self._groups, strict=True)
        ]
        self._targets.listening(self._portals)

    @property
    def portals(self) -> list[tuple[str, int]]:
        """Addresses, and which portal group of this node each has."""
        return list(zip(self.addresses, self._groups, strict=False))

    def follow(self, paths: Paths) -> None:
        """Before `start`: how volumes that several nodes have are reached."""
        self._paths = paths
        self._targets.follow(paths)

    def paths_changed(self) -> None:
        """Some of these ways are other ones, or this node has its number now."""
        if self.addresses and any(
            tag_of(self._paths.number, group) != portal.group
            for portal, group in zip(self._portals, self._groups, strict=True)
        ):
            self._bound()
        self._targets.paths_changed()

    async def stop(self, drain_s: float) -> None:
        if self._tick_timer is not None:
            self._tick_timer.cancel()
        await super().stop(drain_s)

    async def _stopped(self) -> None:
        # The store is closed behind us, and must not be while somebody uses it.
        self._targets.stop()
        await self._workers.close()

    def _tick(self) -> None:
        self._tick_timer = asyncio.get_running_loop().call_later(TICK_S, self._tick)
        now_s = time.monotonic()
        for client in list(self._clients):
            client.tick(now_s)
        self._targets.tick(now_s)

    def sessions(self) -> list[SessionInfo]:
        """Who is logged in, in order of login."""
        now = time.monotonic()
        return [
            replace(client.engine.info(tsih), age_s=now - client.since)
            for tsih, client in self._logged_in()
        ]

    async def disconnect_id(self, client_id: str) -> bool | None:
        """`disconnect` the session that `sessions` calls so: it is asked to log out first. None:
        there is none (any more)."""
        found = (
            client for tsih, client in self._logged_in() if client.engine.info(tsih).id == client_id
        )
        client = next(found, None)
        return None if client is None else await self.disconnect(client)

    async def bar(self) -> list[str]:
        """Access lists have changed: end the sessions that may not keep what they have, and show
        the others what they may have now. The ids of the first."""
        infos = {tsih: session.info(tsih) for tsih, session in self.node.open_sessions()}
        barred = [infos[tsih] for tsih in self.node.bar("it is not let in any more")]
        for session in barred:
            facts = {
                "peer": session.peer,
                "initiator": session.initiator,
                "target": session.target,
            }
            logger.warning("iscsi session ended, it is not let in any more", extra=facts)
        return [session.id for session in barred]

    def _logged_in(self) -> list[tuple[int, IscsiProtocol]]:
        """TSIH and connection of each session, in order of login."""
        clients: dict[OpenSession, IscsiProtocol]
        clients = {client.engine: client for client in self._clients}
        sessions = self.node.open_sessions()
        return [(tsih, clients[each]) for tsih, each in sessions if each in clients]

    # What a connection needs (`blockd.iscsi_protocol.IscsiHost`).

    def admit(self, client: IscsiProtocol, transport: asyncio.Transport) -> Connection | None:
        if not self.enter(client, transport):
            return None
        peer = transport.get_extra_info("peername")
        host = str(peer[0]) if peer else ""
        engine = Connection(self.node, self._arrived_at(transport), host, client.peer)
        engine.wake = client.wake
        engine.held = client.throttle
        engine.may_leave = self.request_loop is not None
        return engine

    def _arrived_at(self, transport: asyncio.Transport) -> Portal:
        """The portal under the address that the initiator used."""
        host, port = split(bound_name(transport.get_extra_info("socket")))
        for portal in self._portals:
            if portal.port == int(port) and (portal.host == host or is_wildcard(portal.host, host)):
                return Portal(host, portal.port, portal.group)
        return Portal(host, int(port), 1)

    def work(self, owner: object, call: Callable[[], Any], done: Done) -> None:
        self._workers.submit(owner, call, done)

    def look_up(self, owner: object, name: str, done: Callable[[Target | None], None]) -> None:
        if self._open_versions >= self._max_open_versions:
            asyncio.get_running_loop().call_soon(self._too_many, name, done)
            return
        self._open_versions += 1

        def opened(device: Any, error: Exception | None) -> None:
            if error is None:
                done(self._targets.hold(name, device))
                return
            self._open_versions -= 1
            if not isinstance(error, _MISSING):
                self._not_opened(name, error)
            done(None)

        self._workers.submit(owner, partial(self._targets.open_past, name), opened)

    def prove(
        self, owner: object, volumes: Sequence[BlockDevice], done: Callable[[str | None], None]
    ) -> None:
        paths = self._paths

        def ask() -> str | None:
            found = (paths.refusal(each.volume_uuid) for each in volumes)
            return next((why for why in found if why is not None), None)

        def asked(why: Any, error: Exception | None) -> None:
            done(why if error is None else f"the volume's attach token: {error}")

        self._workers.submit(owner, ask, asked)

    def release(self, target: Target) -> None:
        self._open_versions -= 1
        self._targets.release(target)

    def _too_many(self, name: str, done: Callable[[Target | None], None]) -> None:
        reason = f"{self._max_open_versions} versions are open already"
        self.limiter.log(
            logging.WARNING, "version", "iscsi version refused", target=name, reason=reason
        )
        done(None)

    def _not_opened(self, name: str, error: Exception) -> None:
        bug = not isinstance(error, (VolumeError, OSError))
        level = logging.ERROR if bug else logging.WARNING
        trace = error if bug else False
        self.limiter.log(
            level, "version", "iscsi version refused", trace=trace, target=name, reason=str(error)
        )


def is_wildcard(listening: str, used: str) -> bool:
    """Whether a portal that listens on `listening` is reached at `used` because it takes all."""
    return listening == ("::" if ":" in used else "0.0.0.0")
