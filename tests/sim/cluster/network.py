"""The network between the nodes of a world: real messages, through the engines of the product.

Each node asks each other one over a connection that it makes itself (`transport.peer.caller`), and
answers on those that are made to it (`transport.peer.answerer`). Between two engines there are
frames that are lost, late, doubled, out of order, or cut off in one direction, by chances that the
world's seed decides. Connections break with a reset that both sides see, or go half-open: what is
sent is taken, and nothing comes.

A line belongs to the process that made it. At its other end is a node, whatever process runs there
now: a new one gets what was sent to the old one, and has to say that it knows nothing of it.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Protocol

from tests.sim.cluster.timeline import NS, Process, Timeline
from transport.peer import answerer, caller
from transport.peer import messages as m
from transport.peer.answerer import Answerer
from transport.peer.caller import Caller
from transport.peer.policy import Policy
from transport.peer.wire import VERSION, Frames, Message

CLUSTER = b"c" * 16
PROGRAM = "world"

Done = Callable[[caller.Answered | caller.Failed], None]
Reply = Callable[[Message], None]


@dataclass(frozen=True, slots=True)
class Weather:
    """Chances of a message; times are seconds."""

    loss: float = 0.0
    repeat: float = 0.0
    reorder: float = 0.0
    """Chance to overtake, or to be overtaken: else a line keeps its order."""
    fastest_s: float = 0.0001
    slowest_s: float = 0.001
    half_open: float = 0.0
    """Chance of a new line."""


class Line:
    """One connection."""

    def __init__(self, number: int, source: "Sessions", target: str) -> None:
        self.number = number
        self.source = source
        self.target = target
        self.half_open = False
        self.cut = False
        """It broke: what is on its way does not arrive."""
        self.gone = False
        """Its target has closed its end."""
        self.newest_ns = {True: 0, False: 0}
        """When the newest message that keeps its order arrives, at the target and back..."""
        self.last_ns = {True: 0, False: 0}
        """...and the last one of all."""


class Network:
    """`tell` hears of each message that arrives: from, to, and what it is."""

    def __init__(
        self, timeline: Timeline, seed: str, tell: Callable[[str, str, Frames], None] | None = None
    ) -> None:
        self.timeline = timeline
        self.random = random.Random(f"network:{seed}")
        self.weather = Weather()
        self.blocked: set[tuple[str, str]] = set()
        """(from, to): nothing gets through in that direction."""
        self.hosts: dict[str, Sessions] = {}
        """The processes that listen, by node."""
        self.off: set[str] = set()
        """Nodes without power: nobody refuses a connection."""
        self.message_count = 0
        self._tell = tell
        self._lines: dict[int, Line] = {}
        self._count = 0

    def delay_s(self) -> float:
        weather = self.weather
        return weather.fastest_s + self.random.random() * (weather.slowest_s - weather.fastest_s)

    def reaches(self, source: str, target: str) -> bool:
        return (source, target) not in self.blocked

    # -- lines

    def connect(self, source: "Sessions", target: str) -> Line:
        self._count += 1
        line = Line(self._count, source, target)
        line.half_open = self.random.random() < self.weather.half_open
        self._lines[line.number] = line
        return line

    def drop(self, line: Line) -> None:
        """Who made it has closed it. The other side sees that behind all that is on its way, if it
        can be told."""
        self._lines.pop(line.number, None)
        host = self.hosts.get(line.target)
        if host is not None and self.reaches(line.source.node, line.target):
            self._behind(line, host.process, lambda: host.line_lost(line), to_target=True)

    def hang_up(self, line: Line) -> None:
        """Who answers on it has closed it, or is not there to answer."""
        line.gone = True
        source = line.source
        if self.reaches(line.target, source.node):
            self._lines.pop(line.number, None)
            lost = lambda: source.lost(line, "closed")  # noqa: E731
            self._behind(line, source.process, lost, to_target=False)

    def reset(self, line: Line) -> None:
        """It breaks; both sides are told, and nothing that is on its way arrives."""
        self._lines.pop(line.number, None)
        line.cut = True
        source, host = line.source, self.hosts.get(line.target)
        source.process.after(self.delay_s(), lambda: source.lost(line, "reset"))
        if host is not None:
            host.process.after(self.delay_s(), lambda: host.line_lost(line))

    def lines(self) -> list[Line]:
        return list(self._lines.values())

    def ended(self, sessions: "Sessions", *, told: bool) -> None:
        """A process is gone. `told`: its kernel is not, and closes its connections."""
        if self.hosts.get(sessions.node) is sessions:
            del self.hosts[sessions.node]
        for line in self.lines():
            if line.source is sessions:
                if told:
                    self.drop(line)
                else:
                    del self._lines[line.number]
            elif line.target == sessions.node and told:
                self.hang_up(line)

    def _behind(
        self, line: Line, process: Process, call: Callable[[], None], *, to_target: bool
    ) -> None:
        """Make a call when all that is on its way has arrived."""
        left_s = (line.last_ns[to_target] - self.timeline.now_ns) / NS
        process.after(max(self.delay_s(), left_s), call)

    # -- messages

    def send(self, line: Line, frames: Frames, *, to_target: bool) -> None:
        weather, rng = self.weather, self.random
        source, target = line.source.node, line.target
        if not to_target:
            source, target = target, source
        if line.half_open or (source, target) in self.blocked:
            return
        copies = 1
        if weather.loss and rng.random() < weather.loss:
            copies = 0
        if weather.repeat and rng.random() < weather.repeat:
            copies += 1
        carried = tuple([bytes(frame) for frame in frames])
        arrive = self._at_target if to_target else self._at_source
        now_ns = self.timeline.now_ns
        for _ in range(copies):
            arrives_ns = now_ns + round(self.delay_s() * NS)
            if not (weather.reorder and rng.random() < weather.reorder):
                arrives_ns = max(arrives_ns, line.newest_ns[to_target])
                line.newest_ns[to_target] = arrives_ns
            line.last_ns[to_target] = max(line.last_ns[to_target], arrives_ns)
            self.timeline.at(arrives_ns, lambda: arrive(line, carried))

    def _at_target(self, line: Line, frames: Frames) -> None:
        host = self.hosts.get(line.target)
        if line.cut:
            return
        if line.gone or host is None:
            if line.target not in self.off:
                self.hang_up(line)  # as its kernel does
            return
        self._carried(line.source.node, line.target, frames)
        host.process.run(lambda: host.came(line, frames))

    def _at_source(self, line: Line, frames: Frames) -> None:
        if not line.cut and line.source.process.alive:
            self._carried(line.target, line.source.node, frames)
            line.source.process.run(lambda: line.source.answered(line, frames))

    def _carried(self, source: str, target: str, frames: Frames) -> None:
        self.message_count += 1
        if self._tell is not None:
            self._tell(source, target, frames)


class Answers(Protocol):
    """What a node does with what it is asked."""

    def asked(self, peer: str, message: m.Request, reply: Reply) -> None:
        """Call `reply` once, at any time."""


class Sessions:
    """The sessions of one process with all other nodes. Nodes are named by their ids in hex."""

    def __init__(
        self,
        network: Network,
        process: Process,
        node: str,
        peers: Sequence[str],
        answers: Answers,
        policy: Policy,
        heard: Callable[[str, caller.Event], None] = lambda peer, event: None,
    ) -> None:
        """`heard` is told of sessions that come and go, and of peers that are slow."""
        self.network = network
        self.process = process
        self.node = node
        self._answers = answers
        self._policy = policy
        self._heard = heard
        self._now = process.clock.monotonic
        self._callers = {peer: self._new_caller(peer) for peer in peers}
        self._lines: dict[str, Line] = {}
        self._peers_of: dict[int, str] = {}  # who is at the other end, by line
        self._answerers: dict[int, tuple[Line, Answerer]] = {}
        self._done: dict[tuple[str, int], Done] = {}
        network.hosts[node] = self
        process.on_due.append(self.poll)
        process.wake_at(-inf)

    def _number(self) -> int:
        return self.network.random.getrandbits(64) or 1

    def _new_caller(self, peer: str) -> Caller:
        hello = m.Hello(
            bytes.fromhex(self.node), CLUSTER, VERSION, VERSION, int(m.FEATURES), 0, PROGRAM
        )
        rng = self.network.random
        return Caller(peer, hello, bytes.fromhex(peer), self._policy, self._number, rng.random)

    # -- what its owner does

    def ask(self, peer: str, message: m.Request, timeout_s: float, done: Done) -> int:
        """As `Caller.request`; `done` is called once. PeerBusy, BadMessage."""
        number = self._callers[peer].request(message, self._now(), timeout_s)
        self._done[peer, number] = done
        self._carry(peer)
        self.process.wake_at(self._callers[peer].deadline)
        return number

    def asking(self, peer: str) -> Caller:
        """The engine that asks a peer, to be looked at."""
        return self._callers[peer]

    def answerers(self) -> list[Answerer]:
        """The engines that answer, to be looked at."""
        return [engine for _, engine in self._answerers.values()]

    def line_to(self, peer: str) -> Line | None:
        """The connection that this process has made to a peer."""
        return self._lines.get(peer)

    @property
    def deadline(self) -> float:
        """When `poll` is to be called, on the node's clock of intervals."""
        due = inf
        for each in self._callers.values():
            if each.deadline < due:
                due = each.deadline
        for _, engine in self._answerers.values():
            if engine.deadline < due:
                due = engine.deadline
        return due

    def poll(self) -> None:
        now = self._now()
        for peer, each in self._callers.items():
            if now >= each.deadline:
                self._hear(peer, each.poll(now))
        for number, (line, engine) in list(self._answerers.items()):
            if now >= engine.deadline:
                self._answerer_says(number, line, engine, engine.poll(now))
        self.process.wake_at(self.deadline)

    def close(self) -> None:
        """Go, politely."""
        for peer, each in self._callers.items():
            self._hear(peer, each.close(self._now()))
        for number, (line, engine) in list(self._answerers.items()):
            self._answerer_says(number, line, engine, engine.close())

    # -- what the network does

    def came(self, line: Line, frames: Frames) -> None:
        """A message on a line that was made to this node."""
        found = self._answerers.get(line.number)
        if found is None:
            if line.gone:
                return
            welcome = m.Welcome(
                bytes.fromhex(self.node),
                *(CLUSTER, VERSION, 0, self._policy.requests, self._policy.request_bytes, PROGRAM),
            )
            engine = Answerer(welcome, lambda _: None, self._policy, self._number(), self._now())
            found = self._answerers[line.number] = (line, engine)
        _, engine = found
        self._answerer_says(line.number, line, engine, engine.received(frames, self._now()))
        self.process.wake_at(engine.deadline)

    def answered(self, line: Line, frames: Frames) -> None:
        """A message on a line that this process made."""
        peer = line.target
        if self._lines.get(peer) is line:
            self._hear(peer, self._callers[peer].received(frames, self._now()))
            self.process.wake_at(self._callers[peer].deadline)

    def lost(self, line: Line, why: str) -> None:
        """A line that this process made is broken."""
        if self._lines.get(line.target) is line:
            self._hear(line.target, self._callers[line.target].lost(self._now(), why))
            self.process.wake_at(self._callers[line.target].deadline)

    def line_lost(self, line: Line) -> None:
        """A line that was made to this node is closed or broken."""
        line.gone = True
        self._answerers.pop(line.number, None)
        self._peers_of.pop(line.number, None)

    # -- inner

    def _hear(self, peer: str, events: list[caller.Event]) -> None:
        for event in events:
            match event:
                case caller.Connect():
                    self._lines[peer] = self.network.connect(self, peer)
                case caller.Down():
                    self._carry(peer)  # a BYE
                    line = self._lines.pop(peer, None)
                    if line is not None:
                        self.network.drop(line)
                case caller.Answered(number) | caller.Failed(number):
                    self._done.pop((peer, number))(event)
            self._heard(peer, event)
        self._carry(peer)

    def _carry(self, peer: str) -> None:
        engine, line = self._callers[peer], self._lines.get(peer)
        while frames := engine.take():
            if line is not None:
                self.network.send(line, frames, to_target=True)

    def _answerer_says(
        self, number: int, line: Line, engine: Answerer, events: list[answerer.Event]
    ) -> None:
        ended = False
        for event in events:
            match event:
                case answerer.Asked(request, message):
                    reply = self._replier(number, line, engine, request)
                    self._answers.asked(self._peers_of[number], message, reply)
                case answerer.Opened(hello):
                    self._peers_of[number] = hello.node.hex()
                case answerer.Ended():
                    ended = True
        self._send_answers(line, engine)
        if ended:
            self.line_lost(line)
            self.network.hang_up(line)

    def _replier(self, number: int, line: Line, engine: Answerer, request: int) -> Reply:
        def reply(message: Message) -> None:
            engine.answer(request, message)
            if number in self._answerers:
                self._send_answers(line, engine)

        return reply

    def _send_answers(self, line: Line, engine: Answerer) -> None:
        while frames := engine.take():
            self.network.send(line, frames, to_target=False)
