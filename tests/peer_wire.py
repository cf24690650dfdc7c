"""Two engines of the peer protocol on a wire that loses, repeats, reorders, delays and goes dead.

Virtual time, one seed. The caller's connections are numbered: each `Connect` makes a new one, and
what is on the way on an old one still arrives there. The other side may restart (all connections
are gone, and it says so to whoever goes on), and each connection may go half-open: taking what is
sent and giving nothing.
"""

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass

from tests.peer_messages import hello, welcome
from transport.peer import answerer, caller
from transport.peer import messages as m
from transport.peer.answerer import Answerer
from transport.peer.caller import Caller
from transport.peer.policy import Policy
from transport.peer.wire import Frames, Message

VOLUME = b"v" * 16
NODE = b"b" * 16
MAX_TURNS = 20_000


@dataclass(frozen=True)
class Weather:
    """Chances of a message to be lost, or to come twice; the longest delay, in seconds."""

    loss: float = 0.0
    repeat: float = 0.0
    delay_s: float = 0.01
    dead: float = 0.0
    """Chance of a new connection to be half-open."""
    work_s: float = 0.01
    """The longest time that the other side works on a request."""


@dataclass
class _Line:
    engine: Answerer
    number: int
    dead: bool = False


def answer_to(message: m.Request) -> Message:
    """What the simulated node answers: by it the test sees that it belongs to the request."""
    match message:
        case m.Sync(_, epoch, seq):
            return m.Ack(epoch, seq, seq)
        case m.ReadLog(_, epoch, after, limit):
            return m.Log(epoch, after + 1, after + 1, 0, (bytes(limit),))
        case m.Append(_, epoch, _, last):
            return m.Ack(epoch, last, 0)
    return m.Error(m.Code.UNKNOWN, 0, type(message).__name__)


class PeerWire:
    """`caller` asks; `ends` has how each request ended."""

    def __init__(self, seed: int, weather: Weather, policy: Policy) -> None:
        self.rng = random.Random(seed)
        self.weather = weather
        self.policy = policy
        self.now = 0.0
        self.caller = Caller(
            *("b", hello(), NODE, policy),
            lambda: self.rng.getrandbits(64) or 1,
            self.rng.random,
        )
        self.events: list[caller.Event] = []
        self.asked: dict[int, m.Request] = {}
        self.ends: dict[int, caller.Answered | caller.Failed] = {}
        self.most_held = 0
        self.most_queued = 0
        self._line: _Line | None = None
        self._lines: list[_Line] = []
        self._count = 0
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._order = 0
        self._turn()

    # -- what tests do

    def ask(self, message: m.Request, timeout_s: float = 30.0) -> int:
        number = self.caller.request(message, self.now, timeout_s)
        self.asked[number] = message
        self._turn()
        return number

    def run(self, seconds: float) -> None:
        """Let time pass."""
        end = self.now + seconds
        for _ in range(MAX_TURNS):
            due = [self.caller.deadline, *(line.engine.deadline for line in self._lines)]
            if self._heap:
                due.append(self._heap[0][0])
            at = min(due)
            if at > end:
                break
            self.now = max(self.now, at)
            self._turn()
        else:
            raise AssertionError(f"time stands still at {self.now}")
        self.now = end
        self._turn()

    def restart(self) -> None:
        """The other side dies and comes back: it knows nothing of before."""
        for line in self._lines:
            self._renew(line)

    def cut(self) -> None:
        """The present connection breaks, and both sides see it."""
        if self._line is not None:
            self._lines = [line for line in self._lines if line is not self._line]
            self._line = None
            self._hear(self.caller.lost(self.now, "reset"))
            self._turn()

    def freeze(self) -> None:
        """The present connection goes half-open."""
        if self._line is not None:
            self._line.dead = True

    def down_reasons(self) -> list[str]:
        return [str(each.reason) for each in self.events if isinstance(each, caller.Down)]

    # -- inner

    def _engine(self) -> Answerer:
        incarnation = self.rng.getrandbits(64) or 1
        return Answerer(welcome(NODE), lambda _: None, self.policy, incarnation, self.now)

    def _renew(self, line: _Line) -> None:
        line.engine = self._engine()

    def _later(self, delay: float, what: Callable[[], None]) -> None:
        self._order += 1
        heapq.heappush(self._heap, (self.now + delay, self._order, what))

    def _turn(self) -> None:
        while self._heap and self._heap[0][0] <= self.now:
            heapq.heappop(self._heap)[2]()
        self._hear(self.caller.poll(self.now))
        for line in self._lines:
            self._answer_events(line, line.engine.poll(self.now))
        self._carry()

    def _carry(self) -> None:
        while frames := self.caller.take():
            if self._line is not None:
                self._send(self._line, frames, to_server=True)
        for line in list(self._lines):
            while frames := line.engine.take():
                self._send(line, frames, to_server=False)
        self._lines = [line for line in self._lines if line.engine.deadline != float("inf")]

    def _send(self, line: _Line, frames: Frames, *, to_server: bool) -> None:
        weather = self.weather
        copies = 0 if self.rng.random() < weather.loss else 1
        copies += self.rng.random() < weather.repeat
        for _ in range(copies):
            delay = self.rng.random() * weather.delay_s
            self._later(delay, lambda: self._arrive(line, frames, to_server=to_server))

    def _arrive(self, line: _Line, frames: Frames, *, to_server: bool) -> None:
        if line.dead:
            return
        if to_server:
            self._answer_events(line, line.engine.received(frames, self.now))
        elif line is self._line:
            self._hear(self.caller.received(frames, self.now))
        self._measure()
        self._carry()

    def _hear(self, events: list[caller.Event]) -> None:
        for event in events:
            self.events.append(event)
            match event:
                case caller.Connect():
                    self._count += 1
                    dead = self.rng.random() < self.weather.dead
                    self._line = _Line(self._engine(), self._count, dead)
                    self._lines.append(self._line)
                case caller.Down():
                    self._line = None
                case caller.Answered(request) | caller.Failed(request):
                    assert request not in self.ends, f"request {request} ended twice"
                    self.ends[request] = event

    def _answer_events(self, line: _Line, events: list[answerer.Event]) -> None:
        for event in events:
            if isinstance(event, answerer.Asked):
                work = self.rng.random() * self.weather.work_s
                self._later(work, self._answering(line, line.engine, event))

    def _answering(
        self, line: _Line, engine: Answerer, asked: answerer.Asked
    ) -> Callable[[], None]:
        def answer() -> None:
            engine.answer(asked.request, answer_to(asked.message))
            self._carry()

        return answer

    def _measure(self) -> None:
        for line in self._lines:
            assert line.engine.held_bytes <= self.policy.request_bytes
            assert line.engine.held_count <= self.policy.requests
            self.most_held = max(self.most_held, line.engine.held_bytes)
        self.most_queued = max(self.most_queued, self.caller.held_bytes)
