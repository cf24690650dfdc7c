"""Two engines of the peer protocol on a wire that loses, repeats, reorders, delays and goes dead.

Virtual time, one seed: the network of the simulated cluster (`tests.sim.cluster.network`) with two
nodes, one of which asks. What is on the way on an old connection still arrives. The other side may
restart (all its connections are gone, and it says so to whoever goes on), and each connection may
go half-open: taking what is sent and giving nothing.
"""

from dataclasses import dataclass

from tests.sim.cluster import network
from tests.sim.cluster.network import Network, Reply, Sessions
from tests.sim.cluster.timeline import NodeClock, Process, Timeline
from transport.peer import messages as m
from transport.peer.caller import Answered, Caller, Down, Event, Failed
from transport.peer.policy import Policy
from transport.peer.wire import Frames, Message

VOLUME = b"v" * 16
ASKER, NODE = (b"a" * 16).hex(), (b"b" * 16).hex()


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


def answer_to(message: m.Request) -> Message:
    """What the simulated node answers: by it the test sees that it belongs to the request."""
    match message:
        case m.Sync(_, epoch, seq):
            return m.Ack(epoch, seq, seq)
        case m.ReadLog(_, epoch, after, limit):
            return m.Log(epoch, after + 1, after + 1, 0, (bytes(limit),))
        case m.Append(_, epoch, _, _, last):
            return m.Ack(epoch, last, 0)
    return m.Error(m.Code.UNKNOWN, 0, type(message).__name__)


class _Answers:
    """Of the other side."""

    def __init__(self, wire: "PeerWire") -> None:
        self._wire = wire

    def asked(self, peer: str, message: m.Request, reply: Reply) -> None:
        self._wire.answer(message, reply)


class PeerWire:
    """`caller` asks; `ends` has how each request ended."""

    def __init__(self, seed: int, weather: Weather, policy: Policy) -> None:
        self.policy = policy
        self.events: list[Event] = []
        self.asked: dict[int, m.Request] = {}
        self.ends: dict[int, Answered | Failed] = {}
        self._timeline = Timeline()
        self._network = Network(self._timeline, str(seed), self._measure)
        self.weather = weather
        self._other = self._started(NODE, ASKER)
        self._asker = self._started(ASKER, NODE)
        self.run(0.0)

    @property
    def weather(self) -> Weather:
        return self._weather

    @weather.setter
    def weather(self, weather: Weather) -> None:
        self._weather = weather
        self._network.weather = network.Weather(
            weather.loss, weather.repeat, 1.0, 0.0, weather.delay_s, weather.dead
        )

    @property
    def now(self) -> float:
        return self._timeline.now_s

    @property
    def caller(self) -> Caller:
        return self._asker.asking(NODE)

    # -- what tests do

    def ask(self, message: m.Request, timeout_s: float = 30.0) -> int:
        number = self._asker.ask(NODE, message, timeout_s, self._ended)
        self.asked[number] = message
        return number

    def run(self, seconds: float) -> None:
        """Let time pass."""
        self._timeline.run(seconds)

    def restart(self) -> None:
        """The other side dies and comes back: it knows nothing of before."""
        self._other.process.end()
        self._network.ended(self._other, told=False)
        self._other = self._started(NODE, ASKER)

    def cut(self) -> None:
        """The present connection breaks, and both sides see it."""
        line = self._asker.line_to(NODE)
        if line is not None:
            self._network.reset(line)
            self.run(self._weather.delay_s)

    def freeze(self) -> None:
        """The present connection goes half-open."""
        line = self._asker.line_to(NODE)
        if line is not None:
            line.half_open = True

    def down_reasons(self) -> list[str]:
        return [str(each.reason) for each in self.events if isinstance(each, Down)]

    # -- inner

    def _started(self, node: str, peer: str) -> Sessions:
        process = Process(self._timeline, NodeClock(self._timeline, node))
        peers = [peer] if node == ASKER else []
        return Sessions(
            *(self._network, process, node, peers, _Answers(self), self.policy),
            lambda peer, event: self.events.append(event),
        )

    def _ended(self, end: Answered | Failed) -> None:
        assert end.request not in self.ends, f"request {end.request} ended twice"
        self.ends[end.request] = end

    def answer(self, message: m.Request, reply: Reply) -> None:
        """The other side answers when it has worked on it."""
        work_s = self._network.random.random() * self._weather.work_s
        self._other.process.after(work_s, lambda: reply(answer_to(message)))

    def _measure(self, source: str, target: str, frames: Frames) -> None:
        for engine in self._other.answerers():
            assert engine.held_bytes <= self.policy.request_bytes
            assert engine.held_count <= self.policy.requests
