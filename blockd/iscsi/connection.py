"""One connection: login, then the full feature phase. Sans-I/O.

    bytes -> buffer()/received() -> whole PDUs -> login | session -> output(), next_event()

Where PDUs begin and end is `blockd.iscsi.framing`'s. What it cannot make out ends the connection;
damaged data ends a command only.

Nothing but Login is answered before the login is over. What ends the connection is told by one
event `Close`, after which nothing is parsed; commands that a device still has come back to
`completed` all the same. `wake` is called when a connection has something to say that did not come
from a call of its own: another session ended its tasks, or itself.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from typing_extensions import Buffer

from blockd.access.book import Everybody
from blockd.api.iscsi_types import SessionInfo
from blockd.device import BlockDevice
from blockd.iscsi import pdu
from blockd.iscsi.command import Command
from blockd.iscsi.events import Close, Event, LookUp, Prove
from blockd.iscsi.framing import Framing
from blockd.iscsi.handover import Begun, Elsewhere, Handover, Numbers, Offer
from blockd.iscsi.held import Held, NothingHeld
from blockd.iscsi.login import LoggedIn, Login, Refused
from blockd.iscsi.management import Management
from blockd.iscsi.node import Node
from blockd.iscsi.requests import Requests
from blockd.iscsi.sending import ProtocolError
from blockd.iscsi.session import Session
from blockd.iscsi.stats import Stats
from blockd.iscsi.targets import Portal, Target
from blockd.receive import ReceiveBuffer
from blockd.scsi.nexus import Nexus
from blockd.scsi.target import TargetDevice
from blockd.scsi.unit import LogicalUnit
from native import Request

BASE_BUFFER: Final = 1088 << 10  # four of the longest Data-Outs: a move for each of them costs more
KEPT_BUFFER: Final = 2 << 20
DRAIN_NOTICE_S: Final = 3  # what an initiator is told that it has to log out, when we stop


class Connection:
    """See the module's text. Every method belongs to the event loop's thread."""

    def __init__(self, node: Node, portal: Portal, peer_address: str, peer: str = "") -> None:
        """`portal`: where the initiator arrived; `peer_address`: its host; `peer`: for people."""
        self.stats = Stats()
        self.wake: Callable[[], None] = _nothing
        self.held: Held = NothingHeld()
        """Somebody may be there who has requests wait for limits; set before the login is over."""
        self.may_leave = False
        """Somebody is there to whom a session can be handed over."""
        self.peer = peer or peer_address
        self._node = node
        self._portal = portal
        self._rx = ReceiveBuffer(BASE_BUFFER, KEPT_BUFFER)
        self._framing = Framing(self._rx)
        self._out: list[Buffer] = []
        self._events: deque[Event] = deque()
        self._login: Login | None = Login(
            node.targets,
            portal,
            peer_address,
            lambda found: node.open(found, portal.group, self),
            access=node.access,
        )
        self._logged_in: LoggedIn | None = None
        self._session: Session | None = None
        self._requests: Requests | None = None
        self.handover: Handover | None = None
        """Of the session."""
        self._attached: dict[BlockDevice, None] = {}
        self._looking_up = False
        self._held = False  # another session with this name has commands in a device
        self._leaving = False  # the initiator logs out
        self._ended = False
        self._in_round = False
        self._draining = False
        self._commands = -1  # the opcode of what goes to the session at once
        self._heard = True  # something came since the last tick
        self._silent_since: float | None = None

    # -- what the socket side sees

    @property
    def negotiating(self) -> bool:
        """The login is not over."""
        return self._login is not None

    @property
    def wants_input(self) -> bool:
        if self.elsewhere or not self._listening:
            return False
        return self.handover is None or not (
            self.handover.waits and self._may_go and not self.held.is_slow
        )

    @property
    def _listening(self) -> bool:
        return not (self._ended or self._looking_up or self._held or self._leaving)

    @property
    def idle(self) -> bool:
        """Nothing of it is in a device or on a thread, and no command waits."""
        return self._session is None or (self._session.idle and not self.elsewhere)

    @property
    def export_name(self) -> str | None:
        """The target's name, for people."""
        if self._logged_in is not None and self._logged_in.target is not None:
            return self._logged_in.target.name
        return None if self._login is None else self._login.target_name

    @property
    def initiator(self) -> str | None:
        if self._logged_in is not None:
            return self._logged_in.initiator
        return None if self._login is None else self._login.initiator or None

    def buffer(self, size: int) -> memoryview:
        """Where the next bytes land; at least one."""
        return self._rx.room(max(1, min(size, BASE_BUFFER)), borrowed=bool(self._events))

    def received(self, count: int) -> None:
        self._heard = True
        self._rx.landed(count)
        self._round()

    def feed(self, data: Buffer) -> None:
        """Copy `data` in: buffer() and received() for callers that have the bytes already."""
        view = memoryview(data).cast("B")
        if len(view):
            self._rx.room(len(view), borrowed=bool(self._events))[: len(view)] = view
            self.received(len(view))

    def next_event(self) -> Event | None:
        return self._events.popleft() if self._events else None

    def output(self) -> list[Buffer]:
        """What is to be sent, in order; the caller has it from now on."""
        out = self._out
        if not out:
            return []
        taken = list(out)
        out.clear()
        if self._session is not None:
            self._session.released()
            self._flush()
        return taken

    def completed(self, requests: list[Request]) -> None:
        assert self._session is not None
        self._session.completed(requests)
        self._flush()

    def worked(self, token: int, value: object, error: Exception | None = None) -> None:
        assert self._session is not None
        self._session.worked(token, value, error)
        self._flush()

    def answered(self, target: Target | None) -> None:
        """What a `LookUp` found."""
        self._looking_up = False
        if self._ended or self._login is None:
            return
        self._out += self._login.resume(target)
        self._after_login()
        self._round()

    def proved(self, refusal: str | None) -> None:
        """What a `Prove` found."""
        self._looking_up = False
        if self._ended or self._login is None:
            return
        self._out += self._login.proved(refusal)
        self._after_login()
        self._round()

    def eof(self) -> None:
        """No more bytes come."""
        # open-iscsi ends its discovery like that, without a logout.
        clean = self._logged_in is None or self._logged_in.discovery
        self._close("the initiator closed the connection", clean=clean)

    def drain(self) -> None:
        """The server stops: ask the initiator to log out (11.9), and close when it is idle."""
        if self._ended or self._draining:
            return
        self._draining = True
        if self._session is None:
            self._close("the server stops", clean=True)
            return
        times = (DRAIN_NOTICE_S, 0, 0)
        sender = self._session.sender
        numbers = sender.next_numbers()
        sender.put(pdu.async_message(pdu.ASYNC_LOGOUT_REQUEST, numbers, parameters=times[::-1]))
        if self._session.idle:
            self._close("the server stops", clean=True)

    def trim(self) -> None:
        """Nothing came for long: give memory back."""
        if not self._events:
            self._rx.trim()

    def tick(self, now_s: float) -> None:
        """Called about once a second: is the initiator still there? (11.19)"""
        limit = self._node.limits.keepalive_s
        handover = self.handover
        if handover is not None and handover.elsewhere:
            self._heard |= handover.heard()
            handover.look_around()
        if self._heard or self._silent_since is None:
            self._heard, self._silent_since = False, now_s
            return
        if self._session is None or self._requests is None or not limit or self._ended:
            return
        silent = now_s - self._silent_since
        if silent >= 2 * limit:
            self._close(f"the initiator did not answer a ping for {limit:g} s", clean=False)
        elif silent >= limit:
            assert handover is not None
            handover.when_here(self._requests.ping)

    # -- what other sessions do to this one (blockd.iscsi.node.OpenSession)

    @property
    def target(self) -> Target | None:
        return None if self._logged_in is None else self._logged_in.target

    @property
    def nexus(self) -> Nexus | None:
        return None if self._session is None else self._session.nexus

    def info(self, tsih: int) -> SessionInfo:
        logged_in, stats = self._logged_in, self.total_stats
        assert logged_in is not None
        return SessionInfo(
            initiator=logged_in.initiator,
            isid=logged_in.isid.hex(),
            tsih=tsih,
            target=None if logged_in.target is None else logged_in.target.name,
            peer=self.peer,
            user=logged_in.user,
            commands=0 if self.handover is None else self.handover.commands,
            id=f"iscsi-{tsih}",
            volumes=tuple(sorted(device.name for device in self._attached)),
            read_count=stats.reads,
            read_bytes=stats.read_bytes,
            write_count=stats.writes,
            write_bytes=stats.written_bytes,
            error_count=stats.errors,
        )

    def has_tasks(self, unit: LogicalUnit) -> bool:
        return self.handover is not None and self.handover.has_tasks(unit)

    def abort_tasks(self, concerns: Callable[[Command], bool], gone: Callable[[], None]) -> int:
        if self.handover is None:
            return 0
        waiting = self.handover.abort_tasks(concerns, gone)
        self._flush()  # there may be room now for commands that wait
        if self._events or self._out:
            self.wake()
        return waiting

    def end(self, reason: str) -> None:
        self._close(reason, clean=False)
        self.wake()

    def hold(self) -> None:
        self._held = True

    def go_on(self) -> None:
        self._held = False
        self._round()
        self.wake()

    def units_changed(self) -> None:
        if self._session is not None and not self._ended:
            if self.handover is not None:
                self.handover.interrupt()
            self._meet_units(self._session.nexus)

    def access_changed(self) -> bool:
        session = self._session
        if session is None or self._ended or self.target is None:
            return True
        kept = session.device.access_changed(session.nexus)
        if kept:
            self._meet_units(session.nexus)
        return kept

    def _meet_units(self, nexus: Nexus) -> None:
        """Be a client of the devices behind the units that it has, and of no other."""
        self._node.watch(nexus.units.values())
        wanted = dict.fromkeys(unit.device for unit in nexus.units.values())
        for each in wanted.keys() - self._attached.keys():
            each.attach(self.peer)
        for each in self._attached.keys() - wanted.keys():
            each.detach(self.peer)
        self._attached = wanted

    # -- handing over (`blockd.iscsi.handover`)

    @property
    def elsewhere(self) -> bool:
        """The request loop serves the session: it takes no input and says nothing."""
        return self.handover is not None and self.handover.elsewhere

    @property
    def _may_go(self) -> bool:
        return (
            self.may_leave
            and not (self._ended or self._draining or self._leaving or self._held)
            and self._requests is not None
            and self._requests.quiet
        )

    @property
    def hand_over_due(self) -> bool:
        """`offer` is likely to be of use; quick."""
        handover = self.handover
        return handover is not None and handover.due and self._may_go

    def offer(self) -> tuple[Offer, bytes] | None:
        """The terms on which the loop can serve the session, and what was received and not parsed;
        `handed_over` is to follow at once. None: not now."""
        handover = self.handover
        if handover is None or not self._may_go or self._events or self._out:
            return None
        offer = handover.offer()
        rx = self._rx
        return None if offer is None else (offer, bytes(rx.view[rx.start : rx.end]))

    def handed_over(self, elsewhere: Elsewhere) -> None:
        """The loop has what was offered."""
        assert self.handover is not None
        self._rx.clear()
        self.handover.gone(elsewhere)

    def handed_back(
        self, numbers: Numbers, begun: list[Begun], counters: tuple[int, ...], *, asked: bool
    ) -> None:
        """The loop has stopped; what it received and did not parse is fed next."""
        assert self.handover is not None
        self._heard |= self.handover.heard()
        self.handover.back(numbers, begun, counters, asked=asked)
        self._flush()

    @property
    def total_stats(self) -> Stats:
        """What was done here and elsewhere up to now."""
        stats = replace(self.stats)
        if self.handover is not None:
            self.handover.add_to(stats)
        return stats

    # -- a round

    def _round(self) -> None:
        """Everything that has come whole."""
        assert not self.elsewhere
        self._in_round = True
        try:
            self._parse()
        except ProtocolError as error:
            self._close(f"protocol error: {error}", clean=False)
        finally:
            self._in_round = False
        self._flush()

    def _flush(self) -> None:
        if self._session is None or self._in_round:
            return
        if not self._ended:
            self._session.let_in()
            self._session.submit()
        if self._draining and self._session.idle:
            self._close("the server stops", clean=True)

    def _parse(self) -> None:
        rx, session = self._rx, self._session
        listening = self._listening
        while listening and not self._ended:
            found = self._framing.next()
            if found is None:
                return
            at, ahs, data, sound = found
            view = rx.view
            if session is None:
                self._login_pdu(bytes(view[at : at + pdu.HEADER_BYTES]), bytes(data))
                session = self._session
                listening = self._listening
            elif not sound:
                self._damaged(session, view, at, ahs, len(data))
            elif view[at] & pdu.OPCODE_MASK == self._commands:
                session.scsi_command(view, at, ahs, data)
            else:
                self._pdu(session, view, at, data)
                listening = self._listening

    def _pdu(self, session: Session, view: memoryview, at: int, data: memoryview) -> None:
        opcode = view[at] & pdu.OPCODE_MASK
        if opcode == pdu.DATA_OUT:
            session.data_out.take(view, at, data)
        else:
            if opcode != pdu.NOP_OUT:
                session.plain_run = 0
            assert self._requests is not None
            self._requests.take(opcode, view, at, data)

    def _damaged(self, session: Session, view: memoryview, at: int, ahs: int, length: int) -> None:
        opcode = view[at] & pdu.OPCODE_MASK
        if opcode == pdu.DATA_OUT:
            session.data_out.damaged(view, at, length)
        elif opcode == self._commands:
            session.damaged_command(view, at, ahs)
        else:
            assert self._requests is not None
            self._requests.damaged(view, at)

    # -- login

    def _login_pdu(self, bhs: bytes, data: bytes) -> None:
        assert self._login is not None
        self._out += self._login.receive(bhs, data)
        self._after_login()

    def _after_login(self) -> None:
        login = self._login
        assert login is not None
        if login.look_up is not None:
            self._looking_up = True
            self._events.append(LookUp(login.look_up))
        elif login.prove is not None:
            self._looking_up = True
            self._events.append(Prove(tuple(login.prove)))
        elif isinstance(login.outcome, Refused):
            refused = login.outcome
            status = f"{refused.status[0]:02x}{refused.status[1]:02x}"
            self._close(f"login refused, {status}: {refused.reason}", clean=False)
        elif login.outcome is not None:
            self._enter(login.outcome)

    def _enter(self, logged_in: LoggedIn) -> None:
        """The full feature phase begins."""
        self._login, self._logged_in = None, logged_in
        device = TargetDevice() if logged_in.target is None else logged_in.target.device
        access, client = self._node.access, logged_in.client
        nexus = Nexus(logged_in.initiator, logged_in.isid, self._portal.group)
        if not isinstance(access, Everybody):
            nexus.grant = lambda unit: access.grant(unit.device, client)
        self._session = Session(
            *(logged_in, device, nexus, self._node.limits, self.stats, self._out, self._events),
            lambda: self.wake(),
            self.held,
            self._node.accounts,
            self._node.rate_limits,
        )
        self.handover = Handover(self._session)
        if logged_in.target is not None:
            device.attach(nexus)
            self._meet_units(nexus)
        self._requests = Requests(
            self._session,
            Management(self._node, self._session, self),
            logged_in,
            self._node.targets,
            self._portal,
            self._node,
            wake=lambda: self.wake(),
            leaving=self._begin_logout,
            left=lambda: self._close("logout", clean=True),
        )
        self._commands = -1 if logged_in.discovery else pdu.SCSI_COMMAND
        self._framing.enter(logged_in)

    # -- the end

    def _begin_logout(self) -> None:
        self._leaving = True

    def _close(self, reason: str, *, clean: bool) -> None:
        """Once: abort what runs, tell the socket side."""
        if self._ended:
            return
        self._ended = True
        session, logged_in = self._session, self._logged_in
        if session is not None and logged_in is not None:
            remains = self._node.left(logged_in, self._portal.group, self)

            def leave() -> None:
                remains.count += session.leave(remains.gone)
                remains.gone()

            assert self.handover is not None
            self.handover.when_here(leave)
            session.device.detach(session.nexus)
            for device in self._attached:
                device.detach(self.peer)
        self._events.append(Close(reason, clean))


def _nothing() -> None:
    pass
