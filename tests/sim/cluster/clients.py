"""Clients of a world's volume: each looks for the node that serves it, asks, and looks again.

A client is attached to one node in one epoch, over a connection that keeps its order. It sends a
few requests at once and waits for their answers, but not for ever: then, or when the connection
breaks, it gives up what is under way, of which nobody knows whether it happened, and tries all
nodes in turn. It asks nothing twice: another try is another operation of the history.
"""

import errno
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from native import FLAG_FUA, OP_FLUSH, OP_READ, OP_UNMAP, OP_WRITE, OP_WRITE_ZEROES, Request
from tests.sim.cluster.history import History
from tests.sim.cluster.machine import LONGEST_WRITE
from tests.sim.cluster.timeline import NS, Process, Timeline
from tests.sim.world.clients import drawn_range
from tests.sim.world.plan import Act
from volume.disk import SECTOR_SIZE

OPS = {
    "write": OP_WRITE,
    "fua": OP_WRITE,
    "read": OP_READ,
    "trim": OP_UNMAP,
    "zero": OP_WRITE_ZEROES,
    "flush": OP_FLUSH,
}
KINDS = (("write", 46), ("fua", 4), ("read", 30), ("trim", 5), ("zero", 5), ("flush", 10))
ATTACH_S = 1.0  # a node that has not said by then whether it serves does not
RETRY_S = 0.3  # when all nodes were asked
PATIENCE_S = (1.5, 25.0)  # a request waits so long for its answer


@dataclass(slots=True)
class Asked:
    """A request, and the operation of the history that it is."""

    operation: int
    kind: str
    first: int
    count: int
    request: Request


@dataclass(eq=False, slots=True)
class Session:
    """A client that is attached to a node. `newest_ns`: when the last thing sent arrives, there and
    back."""

    client: str
    node: str
    process: Process
    epoch: int
    open: bool = True
    newest_ns: list[int] = field(default_factory=lambda: [0, 0])


class Wire(Protocol):
    """How clients and nodes reach each other."""

    timeline: Timeline

    def delay_s(self) -> float: ...
    def reaches(self, source: str, target: str) -> bool: ...


class Server(Protocol):
    """What a client needs of a node."""

    name: str
    process: Process

    def attach(self, client: str) -> int | None:
        """The epoch in which it serves the volume; None when it does not."""

    def serve(
        self, session: Session, batch: Sequence[Request], done: Callable[[list[Request]], None]
    ) -> None:
        """Execute a batch; `done` gets those that are finished, in several parts perhaps."""


class Surroundings(Protocol):
    """What a client needs of its world."""

    seed: int
    timeline: Timeline
    history: History
    wire: Wire

    def servers(self) -> list[Server]: ...
    def answered(self, kind: str, node: str) -> None:
        """A client has the answer to a request of that kind."""

    def note(self, what: str) -> None: ...
    def count(self, what: str) -> None: ...


class Client:
    def __init__(self, world: Surroundings, name: str, acts: Sequence[Act], pause_s: float) -> None:
        self.name = name
        self.session: Session | None = None
        self._world = world
        self._pause_s = pause_s
        self._acts = list(acts)
        self._act: Act | None = None
        self._rng = random.Random()
        self._waiting: dict[int, Asked] = {}
        self._failed = False  # one of those that were asked together
        self._turn = 0  # of tries to attach, and of what is waited for
        self._tries = 0

    @property
    def idle(self) -> bool:
        """It has done what it had to do."""
        return self._act is None and not self._acts

    def begin(self) -> None:
        """Do the next act, after a moment."""
        if not self._acts:
            return
        self._act = act = self._acts.pop(0)
        self._rng = random.Random(f"{self._world.seed}:{act.index}")
        self._later(self._rng.expovariate(1 / self._pause_s), self._perform)

    def add(self, act: Act) -> None:
        """One more thing to do."""
        self._acts.append(act)
        if self._act is None:
            self.begin()

    def cut(self, session: Session) -> None:
        """The node has closed the connection, or died with a kernel that does so."""
        if self.session is not session:
            return
        if self._waiting:
            self._give_up("lost connections")
        else:
            self._leave()

    # -- looking for the node

    def _perform(self) -> None:
        if self._act is None:
            return
        if self.session is None:
            self._attach()
            return
        if self._act.kind == "leave":
            self._leave()
            self._finish()
            return
        self._send(self.session)

    def _attach(self) -> None:
        servers = self._world.servers()
        server = servers[self._tries % len(servers)]
        self._tries += 1
        turn = self._new_turn(ATTACH_S, self._not_there)
        wire = self._world.wire

        def asked() -> None:
            epoch = server.attach(self.name)
            process = server.process
            if not wire.reaches(server.name, self.name):
                return
            self._later(wire.delay_s(), lambda: self._told(turn, server.name, process, epoch))

        if wire.reaches(self.name, server.name):
            server.process.after(wire.delay_s(), asked)

    def _told(self, turn: int, node: str, process: Process, epoch: int | None) -> None:
        if turn != self._turn:
            return
        if epoch is None or not process.alive:
            self._not_there()
            return
        self._turn += 1
        self.session = Session(self.name, node, process, epoch)
        self._world.note(f"{self.name} attached to {node[:4]} in epoch {epoch}")
        self._world.count("attached")
        self._perform()

    def _not_there(self) -> None:
        """Ask the next one; after a round of all, a moment later."""
        self._turn += 1
        again = self._tries % len(self._world.servers()) == 0
        self._later(RETRY_S * (0.5 + self._rng.random()) if again else 0.0, self._perform)

    # -- asking

    def _send(self, session: Session) -> None:
        world, rng = self._world, self._rng
        act = self._act
        assert act is not None
        if act.kind == "probe":
            asked = [self._probe(kind) for kind in ("write", "flush", "read")]
        else:
            only = "read" if act.kind == "reads" else None
            asked = [self._drawn(rng, only) for _ in range(rng.choice((1, 1, 2, 3, 5)))]
        self._waiting = {each.operation: each for each in asked}
        self._failed = False
        self._new_turn(rng.uniform(*PATIENCE_S), lambda: self._give_up("gave up"))
        server = next(each for each in world.servers() if each.name == session.node)

        def arrived() -> None:
            by_request = {id(each.request): each for each in asked}

            def done(finished: list[Request]) -> None:
                answered = [by_request[id(request)] for request in finished]
                self._carry(session, 1, lambda: self._answered(session, answered))

            server.serve(session, [each.request for each in asked], done)

        self._carry(session, 0, arrived)

    def _carry(self, session: Session, way: int, call: Callable[[], None]) -> None:
        """Have a call made at the other end of the connection, behind what was sent before."""
        wire, timeline = self._world.wire, self._world.timeline
        ends = (self.name, session.node)
        if not session.open or not wire.reaches(ends[way], ends[1 - way]):
            return
        delay_s = max(wire.delay_s(), (session.newest_ns[way] - timeline.now_ns) / NS)
        session.newest_ns[way] = timeline.now_ns + round(delay_s * NS)
        if way:
            self._later(delay_s, call)
        else:
            session.process.after(delay_s, call)

    def _drawn(self, rng: random.Random, only: str | None) -> Asked:
        """A request, of a kind that is drawn if none is given."""
        (kind,) = rng.choices([kind for kind, _ in KINDS], [weight for _, weight in KINDS])
        kind = only or kind
        if kind == "flush":
            return self._asked(kind, 0, 0)
        offset, length = drawn_range(rng, self._world.history.size)
        if kind in ("write", "fua"):
            length = min(length, LONGEST_WRITE)
        return self._asked(kind, offset, length)

    def _probe(self, kind: str) -> Asked:
        return self._asked(kind, 0, 0 if kind == "flush" else SECTOR_SIZE)

    def _asked(self, kind: str, offset: int, length: int) -> Asked:
        first, count = offset // SECTOR_SIZE, length // SECTOR_SIZE
        operation = self._world.history.begin(kind, first, count)
        data = b""
        if kind in ("write", "fua"):
            data = self._world.history.payload(operation, first, count)
        flags = FLAG_FUA if kind == "fua" else 0
        return Asked(operation, kind, first, count, Request(OPS[kind], offset, length, data, flags))

    def _answered(self, session: Session, answered: Sequence[Asked]) -> None:
        if self.session is not session:
            return  # too late: it has given up
        history, world = self._world.history, self._world
        for each in answered:
            del self._waiting[each.operation]
            error = each.request.error
            world.note(f"{self.name} {each.kind} {each.operation} {error}")
            if not error:
                world.answered(each.kind, session.node)
            if error:
                self._failed = True
                world.count(f"error {errno.errorcode.get(error, str(error))}")
                history.end(each.operation, error)
            elif each.kind == "read":
                data = each.request.data
                assert isinstance(data, (bytes, bytearray))
                history.saw(each.operation, each.first, bytes(data))
            else:
                history.end(each.operation)
        world.count("answers")
        if not self._waiting:
            self._turn += 1
            if self._failed:
                self._leave()  # another node may know better
            self._finish()

    def _finish(self) -> None:
        """The act is over; a probe only when all of it has succeeded."""
        act = self._act
        if act is not None and act.kind == "probe" and self._failed:
            self._later(RETRY_S, self._perform)
            return
        self._act = None
        if act is not None:
            self._world.count(act.kind)
        self.begin()

    def _give_up(self, why: str) -> None:
        """Nobody knows what became of what is under way."""
        self._world.note(f"{self.name} {why}")
        self._world.count(why)
        waiting, self._waiting = self._waiting, {}
        for operation in waiting:
            self._world.history.end(operation, errno.EIO)
        self._turn += 1
        self._failed = True
        self._leave()
        self._finish()

    def _leave(self) -> None:
        session, self.session = self.session, None
        if session is not None:
            session.open = False

    # -- time

    def _later(self, delay_s: float, call: Callable[[], None]) -> None:
        self._world.timeline.after(delay_s, call)

    def _new_turn(self, patience_s: float, over: Callable[[], None]) -> int:
        """Wait for something, and for `patience_s` at most."""
        self._turn += 1
        turn = self._turn

        def late() -> None:
            if turn == self._turn:
                over()

        self._later(patience_s, late)
        return turn
