"""One connection of a peer that asks us: a state machine without sockets or clock.

    new ---HELLO---> open ---> ended, for good: who wants more connects again

Who owns it drops the connection at `Ended`, sends what `take` gives, feeds `received` whole
messages, and calls `poll` when `deadline` has come. A request comes as `Asked` and is answered by
`answer`, at any time and in any order; its payload is the received frames, which live until then.

Room is what WELCOME has granted: so many requests, and bytes of them and of their answers, are
held at once, unsent answers included. More is answered by ERROR BUSY. A peer that takes no answers
gets no more room, and one that goes on asking all the same is cut.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import Final

from typing_extensions import Buffer

from transport.errors import BadMessage
from transport.peer import messages as m
from transport.peer.policy import Policy, Reason
from transport.peer.wire import VERSION, Envelope, Frames, Message, decode, encode, size_of


@dataclass(frozen=True, slots=True)
class Opened:
    hello: m.Hello


@dataclass(frozen=True, slots=True)
class Asked:
    """To be answered once. It may come again when the answer was lost: do it again."""

    request: int
    message: m.Request


@dataclass(frozen=True, slots=True)
class Cancelled:
    """Nobody waits for the answer any more. It is to be answered all the same, by anything, once
    its memory is free: until then it takes room."""

    request: int


@dataclass(frozen=True, slots=True)
class Ended:
    """Nobody waits for answers any more. Send what `take` gives, then disconnect."""

    reason: Reason
    text: str


Event = Opened | Asked | Cancelled | Ended

_NEW: Final = "new"
_OPEN: Final = "open"
_ENDED: Final = "ended"


@dataclass(slots=True)
class _Held:
    message: m.Request
    cost: int
    cancelled: bool = False


class Answerer:
    """`welcome` is what this node can do; `judge` says what is wrong with a HELLO, or None.

    `incarnation` is of this connection only."""

    def __init__(
        self,
        welcome: m.Welcome,
        judge: Callable[[m.Hello], m.Error | None],
        policy: Policy,
        incarnation: int,
        now: float,
    ) -> None:
        self._welcome = welcome
        self._judge = judge
        self._policy = policy
        self._mine = incarnation
        self._theirs = 0
        self._state = _NEW
        self._since = self._heard = now
        self._held: dict[int, _Held] = {}
        self._held_bytes = 0
        self._out: deque[tuple[Frames, int]] = deque()  # with what is free once it is sent
        self._unsent = 0  # of them, answers
        self.stale = 0

    @property
    def open(self) -> bool:
        return self._state == _OPEN

    @property
    def held_count(self) -> int:
        """Requests that are not answered, or whose answer is not sent."""
        return len(self._held) + self._unsent

    @property
    def held_bytes(self) -> int:
        return self._held_bytes

    @property
    def wants_to_send(self) -> bool:
        return bool(self._out)

    @property
    def deadline(self) -> float:
        if self._state == _NEW:
            return self._since + self._policy.handshake_s
        return self._heard + self._policy.silent_after_s if self._state == _OPEN else inf

    def take(self) -> Frames | None:
        """The next message to send; None when there is none."""
        if not self._out:
            return None
        frames, free = self._out.popleft()
        if free:
            self._unsent -= 1
            self._held_bytes -= free
        return frames

    def first(self) -> Frames | None:
        """What `take` would give."""
        return self._out[0][0] if self._out else None

    def answer(self, request: int, message: Message) -> bool:
        """Answer what was asked; whether anybody still waits for it."""
        held = self._held.pop(request, None)
        if held is None or self._state != _OPEN:
            return False
        assert isinstance(message, (held.message.ANSWER, m.Error))
        assert size_of(message.frames) <= held.message.room
        if held.cancelled:
            message = m.Error(m.Code.CANCELLED, 0, "")
        self._unsent += 1
        self._post(message, request, held.cost)
        return not held.cancelled

    def plain(
        self, frames: Frames, now: float, serve: Callable[[int, int, Buffer, Buffer], bytes | None]
    ) -> bool:
        """`received`, of a message that may be one that comes with every write and needs nobody's
        decision: whether it was, and is answered. `serve` gives the answer to one of a session
        (theirs, mine) in two frames; None: it is another. Nothing is held for a peer meanwhile, and
        nothing waits to be sent to it, so none of its bounds is near."""
        if self._state != _OPEN or len(frames) != 2 or self._held or self._out:
            return False
        answer = serve(self._theirs, self._mine, *frames)
        if answer is None:
            return False
        self._heard = now
        self._out.append(((answer,), 0))
        return True

    def poll(self, now: float) -> list[Event]:
        if now < self.deadline:
            return []
        if self._state == _NEW:
            return [self._end(Reason.HANDSHAKE, f"none in {self._policy.handshake_s:g} s")]
        return [self._end(Reason.SILENT, f"for {self._policy.silent_after_s:g} s")]

    def received(self, frames: Frames, now: float) -> list[Event]:
        """A message came on this connection."""
        if self._state == _ENDED:
            return []
        try:
            envelope, message = decode(frames, m.KINDS)
            return self._take_in(envelope, message, size_of(frames), now)
        except BadMessage as error:
            return [self._end(Reason.NONSENSE, str(error))]

    def close(self) -> list[Event]:
        """We go down. `take` has a BYE to send where there is a session."""
        if self._state == _ENDED:
            return []
        ended = self._end(Reason.CLOSED, "by us")
        if self._theirs:
            self._post(m.Bye(), 0)
        return [ended]

    # -- inner

    def _take_in(
        self, envelope: Envelope, message: Message, length: int, now: float
    ) -> list[Event]:
        if self._state == _NEW:
            return self._greeted(envelope, message, now)
        if isinstance(message, m.Hello):
            if envelope.sender != self._theirs:
                raise BadMessage("Hello in the middle of a session")
            return []  # repeated on the way
        if (envelope.to, envelope.sender) != (self._mine, self._theirs):
            self.stale += 1
            return []
        self._heard = now
        self._check_queue()
        match message:
            case m.Ping():
                self._post(m.Pong(message.token), 0)
            case m.Bye():
                return [self._end(Reason.BYE, "it goes down")]
            case m.Cancel():
                return self._cancel(envelope.request)
            case m.Request():
                return self._ask(envelope.request, message, length + message.room)
            case _:
                raise BadMessage(f"{type(message).__name__} from one who asks")
        return []

    def _greeted(self, envelope: Envelope, message: Message, now: float) -> list[Event]:
        self._theirs = envelope.sender
        if not isinstance(message, m.Hello) or envelope.to or not envelope.sender:
            # Perhaps of a session with the process before this one: say that it is over.
            text = f"{type(message).__name__} without a session"
            return [self._refuse(m.Error(m.Code.REFUSED, 0, text))]
        if error := self._objection(message) or self._judge(message):
            return [self._refuse(error)]
        welcome = self._welcome
        agreed = m.Welcome(
            welcome.node,
            welcome.cluster,
            min(message.newest, welcome.version),
            welcome.features & message.offers,
            self._policy.requests,
            self._policy.request_bytes,
            welcome.program,
        )
        self._state = _OPEN
        self._heard = now
        self._post(agreed, 0)
        return [Opened(message)]

    def _objection(self, hello: m.Hello) -> m.Error | None:
        welcome = self._welcome
        if not hello.oldest <= welcome.version or hello.newest < VERSION:
            text = f"versions {hello.oldest} to {hello.newest}; this node speaks {welcome.version}"
            return m.Error(m.Code.VERSION, welcome.version, text)
        if missing := hello.requires & ~welcome.features:
            return m.Error(m.Code.VERSION, missing, f"features {missing:#x} are not known here")
        return None

    def _refuse(self, error: m.Error) -> Ended:
        self._post(error, 0)
        return self._end(Reason.REFUSED, error.text)

    def _check_queue(self) -> None:
        most = 2 * self._policy.requests
        if len(self._out) > most:
            raise BadMessage(f"takes none of {most} answers and asks for more")

    def _ask(self, request: int, message: m.Request, cost: int) -> list[Event]:
        if request == 0:
            raise BadMessage(f"{type(message).__name__} without a number")
        if request in self._held:
            return []  # sent again while it is worked on
        policy = self._policy
        full = self._held_bytes + cost > policy.request_bytes
        if full or self.held_count >= policy.requests:
            text = f"{self.held_count} requests, {self._held_bytes} bytes are held for you"
            self._post(m.Error(m.Code.BUSY, 0, text), request)
            return []
        self._held[request] = _Held(message, cost)
        self._held_bytes += cost
        return [Asked(request, message)]

    def _cancel(self, request: int) -> list[Event]:
        held = self._held.get(request)
        if held is None:
            self._post(m.Error(m.Code.CANCELLED, 0, ""), request)
        elif not held.cancelled:
            held.cancelled = True
            return [Cancelled(request)]
        return []

    def _end(self, reason: Reason, text: str) -> Ended:
        self._state = _ENDED
        self._held.clear()
        refusals = [each for each in self._out if reason is Reason.REFUSED]
        self._out = deque(refusals)
        self._held_bytes = self._unsent = 0
        return Ended(reason, text)

    def _post(self, message: Message, request: int, free: int = 0) -> None:
        envelope = Envelope(self._mine, self._theirs, request)
        self._out.append((encode(message, envelope), free))
