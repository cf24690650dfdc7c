"""One peer that we ask: a state machine without sockets or clock. `now` is any monotonic clock.

    idle ---Connect---> greeting ---WELCOME---> open
      ^                    |                      |
      +------- Down -------+----------------------+        close() -> closed, for good

Who owns it opens a connection at `Connect`, drops it at `Down`, sends what `take` gives, feeds
`received` whole messages, and calls `poll` when `deadline` has come. Nothing here waits.

**Every request ends exactly once**, `Answered` or `Failed`, not after its deadline (as long as
`poll` is called). Until then it is sent again when its answer does not come, and in the next
session when one ends; `attempts` bounds how often. That is sound because every request of the
protocol may be repeated.

**Room.** A peer says in WELCOME how many requests, and bytes of them and of their answers, it
holds at once. What is beyond waits here, up to the policy's bounds; then `request` raises PeerBusy
and the caller has to do without this peer. A request that ended at its deadline goes on counting
until the peer has said that it let go of it (CANCEL): its memory is still taken there.

Each session has a new incarnation; what comes for an old one is counted and ignored.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import Final

from native import read_ack
from transport.errors import BadMessage, PeerBusy
from transport.peer import messages as m
from transport.peer.policy import Policy, Reason
from transport.peer.wire import Envelope, Frames, Message, Packed, decode, encode, pack, size_of


@dataclass(frozen=True, slots=True)
class Connect:
    """Open a new connection; the old one is gone."""


@dataclass(frozen=True, slots=True)
class Up:
    """There is a session."""

    welcome: m.Welcome


@dataclass(frozen=True, slots=True)
class Down:
    """There is none any more, or the try to get one failed: drop the connection."""

    reason: Reason
    text: str


@dataclass(frozen=True, slots=True)
class Slow:
    """Its oldest request has become older than the policy says, or none is any more."""

    slow: bool


@dataclass(frozen=True, slots=True)
class Answered:
    request: int
    message: Message


@dataclass(frozen=True, slots=True)
class Failed:
    """There will be no answer. Only with `error` is it known that the peer did not do it."""

    request: int
    text: str
    error: m.Error | None = None


Event = Connect | Up | Down | Slow | Answered | Failed

_IDLE: Final = "idle"
_GREETING: Final = "greeting"
_OPEN: Final = "open"
_CLOSED: Final = "closed"


@dataclass(slots=True)
class _Asked:
    """A request that has not ended, or one that did and whose room is not free yet."""

    message: m.Request | None  # None: cancelled
    packed: Packed | None
    cost: int
    deadline: float
    first: float = inf  # sent first in this session
    again: float = inf  # to be sent again
    sent: int = 0


@dataclass(slots=True)
class Counters:
    """Of all sessions."""

    sessions: int = 0
    nonsense: int = 0
    stale: int = 0
    """Messages of old sessions, or for requests that had ended."""
    repeated: int = 0
    timed_out: int = 0


@dataclass(frozen=True, slots=True)
class _Session:
    mine: int
    since: float
    theirs: int = 0
    welcome: m.Welcome | None = None


class Caller:
    """`peer` names it in errors; `expected` is the node that has to be there, None: any.

    `incarnation` gives another number each time, `random` one of [0, 1)."""

    def __init__(
        self,
        peer: str,
        hello: m.Hello,
        expected: bytes | None,
        policy: Policy,
        incarnation: Callable[[], int],
        random: Callable[[], float],
    ) -> None:
        self.peer = peer
        self.counters = Counters()
        self.last: Down | None = None
        self._hello = hello
        self._expected = expected
        self._policy = policy
        self._incarnation = incarnation
        self._random = random
        self._state = _IDLE
        self._session = _Session(0, 0.0)
        self._retry_at = -inf
        self._failures = 0
        self._heard = self._pinged = 0.0
        self._slow = False
        self._next_id = 1
        self._asked: dict[int, _Asked] = {}
        self._waiting: deque[int] = deque()
        self._waiting_bytes = 0
        self._flying: dict[int, None] = {}  # in the order in which they were sent first
        self._flying_bytes = 0
        self._out: deque[Frames] = deque()
        self._due = -inf

    # -- what the owner sees

    @property
    def open(self) -> bool:
        return self._state == _OPEN

    @property
    def slow(self) -> bool:
        return self._slow

    @property
    def features(self) -> int:
        """That both know, in the session that is open; none without."""
        return self._session.welcome.features if self.open and self._session.welcome else 0

    @property
    def unanswered(self) -> int:
        """Requests that have not ended."""
        return sum(each.message is not None for each in self._asked.values())

    @property
    def held_bytes(self) -> int:
        """Of requests that wait or are under way, with room for their answers."""
        return self._waiting_bytes + self._flying_bytes

    @property
    def wants_to_send(self) -> bool:
        return bool(self._out)

    @property
    def deadline(self) -> float:
        """When `poll` has to be called at the latest; inf when there is nothing to wait for."""
        return self._due

    # -- what the owner does

    def request(self, message: m.Request, now: float, timeout_s: float) -> int:
        """Ask; its number comes back in one event, `timeout_s` from now at the latest.

        Its payload must not change until then. PeerBusy, BadMessage: nothing was queued."""
        packed = pack(message)
        cost = packed.size + message.room
        policy = self._policy
        if self._state == _CLOSED:
            raise PeerBusy(self.peer, "is not asked any more")
        if len(self._waiting) >= policy.waiting:
            raise PeerBusy(self.peer, f"{len(self._waiting)} requests wait for it")
        if self._waiting and self._waiting_bytes + cost > policy.waiting_bytes:
            raise PeerBusy(self.peer, f"{self._waiting_bytes} bytes of requests wait for it")
        number = self._next_id
        self._next_id += 1
        self._asked[number] = _Asked(message, packed, cost, now + timeout_s)
        self._waiting.append(number)
        self._waiting_bytes += cost
        self._due = min(self._due, now + timeout_s)
        self._send_waiting(now)
        return number

    def take(self) -> Frames | None:
        """The next message to send; None when there is none."""
        return self._out.popleft() if self._out else None

    def put_back(self, frames: Frames) -> None:
        """What `take` gave could not be sent now."""
        self._out.appendleft(frames)

    def poll(self, now: float) -> list[Event]:
        """What has come to be due."""
        if now < self._due:
            return []
        events: list[Event] = []
        policy = self._policy
        self._end_late(now, events)
        if self._state == _IDLE and now >= self._retry_at:
            self._greet(now, events)
        elif self._state == _GREETING and now >= self._session.since + policy.handshake_s:
            self._down(now, Reason.HANDSHAKE, f"none in {policy.handshake_s:g} s", events)
        elif self._state == _OPEN:
            if now >= self._heard + policy.silent_after_s:
                self._down(now, Reason.SILENT, f"for {policy.silent_after_s:g} s", events)
            else:
                self._keep_alive(now)
                self._send_again(now)
        self._judge(now, events)
        self._due = self._next_due(now)
        return events

    def received(self, frames: Frames, now: float) -> list[Event]:
        """A message came from the present connection."""
        events: list[Event] = []
        before = self._session
        if self._state not in (_GREETING, _OPEN):
            self.counters.stale += 1
            return events
        try:
            envelope, message = decode(frames, m.KINDS)
            self._take_in(envelope, message, now, events)
        except BadMessage as error:
            self.counters.nonsense += 1
            self._down(now, Reason.NONSENSE, str(error), events)
        if self._waiting:
            self._send_waiting(now)
        if self._slow or self._state != _OPEN or self._session is not before:
            self._judge(now, events)
            self._due = self._next_due(now)
        # Else nothing is due earlier than it was: `poll` looks again then.
        return events

    def plain(self, frames: Frames, now: float) -> Answered | None:
        """`received`, of a message that may be an ACK, which comes with every write: the event, if
        it is one to a request that waits for it. None: nothing has happened."""
        session = self._session
        if len(frames) != 1 or self._state != _OPEN or self._slow:
            return None
        found = read_ack(session.theirs, session.mine, frames[0])
        if found is None:
            return None
        number, *held = found
        asked = self._asked.get(number)
        if asked is None or number not in self._flying or asked.message is None:
            return None
        if asked.message.ANSWER is not m.Ack:
            return None
        self._heard = now
        self._free(number)
        if self._waiting:
            self._send_waiting(now)
        return Answered(number, m.Ack(*held))

    def lost(self, now: float, text: str) -> list[Event]:
        """The connection broke, or could not be made."""
        events: list[Event] = []
        if self._state in (_GREETING, _OPEN):
            reason = Reason.LOST if self._state == _OPEN else Reason.HANDSHAKE
            self._down(now, reason, text, events)
            self._due = self._next_due(now)
        return events

    def hurry(self, now: float) -> None:
        """It is known to be there: if there is no session, try now and not later, unless what it
        said last was nonsense."""
        nonsense = self.last is not None and self.last.reason is Reason.NONSENSE
        if self._state == _IDLE and not nonsense:
            self._retry_at = now
            self._due = min(self._due, now)

    def close(self, now: float) -> list[Event]:
        """End everything. `take` may have a BYE to send."""
        events: list[Event] = []
        if self._state in (_GREETING, _OPEN):
            was_open = self._state == _OPEN
            session = self._session
            self._down(now, Reason.CLOSED, "by us", events)
            if was_open:
                bye = Envelope(session.mine, session.theirs, 0)
                self._out.append(encode(m.Bye(), bye))
        self._state = _CLOSED
        for number in list(self._asked):
            self._fail(number, "we do not ask it any more", events)
        self._due = inf
        return events

    # -- a session

    def _greet(self, now: float, events: list[Event]) -> None:
        self._session = _Session(self._incarnation(), now)
        self._state = _GREETING
        self._out.clear()
        self._post(self._hello, 0)
        events.append(Connect())

    def _down(self, now: float, reason: Reason, text: str, events: list[Event]) -> None:
        policy = self._policy
        lasted = now - self._session.since
        if self._state == _OPEN and lasted >= policy.reconnect_most_s:
            self._failures = 0
        self._failures = min(self._failures + 1, 32)
        pause = min(policy.reconnect_first_s * 2 ** (self._failures - 1), policy.reconnect_most_s)
        if reason is Reason.NONSENSE:
            pause = max(pause, policy.nonsense_s)
        self._retry_at = now + pause * (1 + self._random()) / 2
        self._state = _IDLE
        self._out.clear()
        self.last = Down(reason, text)
        events.append(self.last)
        for number in reversed(list(self._flying)):
            self._land(number, text, events)
        assert self._flying_bytes == 0
        self._judge(now, events)

    def _land(self, number: int, text: str, events: list[Event]) -> None:
        """The session of a request under way has ended: it waits for the next one."""
        asked = self._asked[number]
        del self._flying[number]
        self._flying_bytes -= asked.cost
        asked.first = asked.again = inf
        if asked.message is None:
            del self._asked[number]
        elif asked.sent >= self._policy.attempts:
            del self._asked[number]
            events.append(Failed(number, f"no answer to {asked.sent} tries; the last: {text}"))
        else:
            self._waiting.appendleft(number)
            self._waiting_bytes += asked.cost

    def _take_in(
        self, envelope: Envelope, message: Message, now: float, events: list[Event]
    ) -> None:
        session = self._session
        if envelope.to != session.mine:
            self.counters.stale += 1
            return
        if isinstance(message, m.Error) and envelope.request == 0:
            self._down(now, Reason.REFUSED, f"{_name(message.code)}: {message.text}", events)
        elif self._state == _GREETING:
            if not isinstance(message, m.Welcome):
                raise BadMessage(f"{type(message).__name__} before a WELCOME")
            self._welcomed(envelope, message, now, events)
        elif envelope.sender != session.theirs:
            self.counters.stale += 1
        else:
            self._heard = now
            self._in_session(envelope, message, now, events)

    def _welcomed(
        self, envelope: Envelope, welcome: m.Welcome, now: float, events: list[Event]
    ) -> None:
        hello = self._hello
        if self._expected is not None and welcome.node != self._expected:
            why = f"node {welcome.node.hex()} answers, not {self._expected.hex()}"
            self._down(now, Reason.REFUSED, why, events)
            return
        if welcome.cluster != hello.cluster and any(hello.cluster):
            why = f"it is of cluster {welcome.cluster.hex()}, we of {hello.cluster.hex()}"
            self._down(now, Reason.REFUSED, why, events)
            return
        if not hello.oldest <= welcome.version <= hello.newest or welcome.features & ~hello.offers:
            raise BadMessage("Welcome: a version or a feature that was not offered")
        self._session = _Session(self._session.mine, now, envelope.sender, welcome)
        self._state = _OPEN
        self._heard = self._pinged = now
        self.counters.sessions += 1
        events.append(Up(welcome))

    def _in_session(
        self, envelope: Envelope, message: Message, now: float, events: list[Event]
    ) -> None:
        match message:
            case m.Pong() | m.Welcome():
                pass
            case m.Bye():
                self._down(now, Reason.BYE, "it goes down", events)
            case m.Hello() | m.Ping() | m.Cancel() | m.Request():
                raise BadMessage(f"{type(message).__name__} from one who is asked")
            case _:
                self._answered(envelope.request, message, now, events)

    def _answered(self, number: int, message: Message, now: float, events: list[Event]) -> None:
        asked = self._asked.get(number)
        if asked is None or number not in self._flying:
            self.counters.stale += 1
            return
        if asked.message is None:  # cancelled, and now its room is free
            self._free(number)
            return
        if isinstance(message, m.Error):
            if message.code == m.Code.BUSY:
                asked.again = now + self._pause(asked)
                return
            self._free(number)
            text = f"{_name(message.code)}: {message.text}"
            events.append(Failed(number, text, message))
            return
        if not isinstance(message, asked.message.ANSWER):
            raise BadMessage(f"{type(message).__name__} for {type(asked.message).__name__}")
        if message.frames and size_of(message.frames) > asked.message.room:
            raise BadMessage(f"{type(message).__name__} has more payload than was asked for")
        self._free(number)
        events.append(Answered(number, message))

    # -- requests

    def _send_waiting(self, now: float) -> None:
        welcome = self._session.welcome
        if self._state != _OPEN or welcome is None:
            return
        while self._waiting and len(self._flying) < welcome.requests:
            number = self._waiting[0]
            asked = self._asked[number]
            if self._flying_bytes + asked.cost > welcome.request_bytes:
                return
            self._waiting.popleft()
            self._waiting_bytes -= asked.cost
            self._flying[number] = None
            self._flying_bytes += asked.cost
            asked.first = now
            self._send(number, asked, now)

    def _send(self, number: int, asked: _Asked, now: float) -> None:
        asked.sent += 1
        asked.again = now + self._pause(asked)
        self._due = min(self._due, asked.again, now + self._policy.slow_after_s)
        self._post_packed(asked.packed or pack(m.Cancel()), number)

    def _pause(self, asked: _Asked) -> float:
        policy = self._policy
        return min(policy.retry_after_s * 2.0 ** min(asked.sent - 1, 16), policy.retry_most_s)

    def _send_again(self, now: float) -> None:
        """Not while the connection takes nothing: that would only make the queue longer."""
        for number in self._flying:
            asked = self._asked[number]
            if now < asked.again:
                continue
            if self._out or (asked.message and asked.sent >= self._policy.attempts):
                asked.again = now + self._policy.retry_most_s
                continue
            self.counters.repeated += 1
            self._send(number, asked, now)

    def _end_late(self, now: float, events: list[Event]) -> None:
        for number, asked in list(self._asked.items()):
            if asked.message is not None and now >= asked.deadline:
                self.counters.timed_out += 1
                down = self.last
                why = "" if self.open or down is None else f"; {down.reason}: {down.text}"
                self._fail(number, f"no answer in time{why}", events)

    def _fail(self, number: int, text: str, events: list[Event]) -> None:
        """End a request without an answer. One under way is cancelled, and keeps its room."""
        asked = self._asked[number]
        if asked.message is not None:
            events.append(Failed(number, text))
        asked.message = asked.packed = None
        if number in self._flying:
            asked.sent = 0
            asked.again = -inf
            asked.first = inf
            self._due = -inf
        else:
            self._waiting.remove(number)
            self._waiting_bytes -= asked.cost
            del self._asked[number]

    def _free(self, number: int) -> None:
        asked = self._asked.pop(number)
        del self._flying[number]
        self._flying_bytes -= asked.cost

    # -- time

    def _keep_alive(self, now: float) -> None:
        if now >= max(self._heard, self._pinged) + self._policy.ping_every_s and not self._out:
            self._pinged = now
            self._post(m.Ping(self._session.mine & 0xFFFF_FFFF), 0)

    def _judge(self, now: float, events: list[Event]) -> None:
        oldest = min((self._asked[each].first for each in self._flying), default=inf)
        slow = now >= oldest + self._policy.slow_after_s  # as _next_due adds it up
        if slow != self._slow:
            self._slow = slow
            events.append(Slow(slow))

    def _next_due(self, now: float) -> float:
        policy = self._policy
        due = [each.deadline for each in self._asked.values() if each.message is not None]
        if self._state == _IDLE:
            due.append(self._retry_at)
        elif self._state == _GREETING:
            due.append(self._session.since + policy.handshake_s)
        elif self._state == _OPEN:
            due.append(self._heard + policy.silent_after_s)
            # While the connection takes nothing there is no ping to be sent: look again later.
            ping = max(self._heard, self._pinged) + policy.ping_every_s
            due.append(max(ping, now + policy.ping_every_s) if self._out else ping)
            asked = [self._asked[each] for each in self._flying]
            due += [each.again for each in asked]
            if not self._slow:
                due += [each.first + policy.slow_after_s for each in asked]
        return min(due, default=inf)

    def _post(self, message: Message, request: int) -> None:
        self._post_packed(pack(message), request)

    def _post_packed(self, packed: Packed, request: int) -> None:
        session = self._session
        self._out.append(packed.frames(Envelope(session.mine, session.theirs, request)))


def _name(code: int) -> str:
    try:
        return m.Code(code).name
    except ValueError:
        return f"code {code}"
