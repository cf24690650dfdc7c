"""A world of several nodes that keep one volume, clients of it, and a nemesis, all from one seed.

    ClusterWorld(plan).live() -> Report

Clients and nemesis act by the plan. Then everything is healed; within `HEALED_S` seconds of its own
time each client has to get something written, flushed and read, and each member has to have a copy
of all of it. The history checker hears what clients are told, and what the volume is each time that
a node begins to serve it (`tests.sim.cluster.history`); what status says is held against what disks
hold (`tests.sim.cluster.truth`).
"""

import gc
import hashlib
import logging
import random
import traceback
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from operator import attrgetter

from tests.sim.cluster import plan as plans
from tests.sim.cluster.clients import Client, Server, Session, Wire
from tests.sim.cluster.damage import Damage
from tests.sim.cluster.history import History
from tests.sim.cluster.machine import drawn_options
from tests.sim.cluster.metastore import SimMetaStore
from tests.sim.cluster.nemesis import Nemesis
from tests.sim.cluster.network import Network
from tests.sim.cluster.node import Node, VolumeSpec
from tests.sim.cluster.rules import broken_rule
from tests.sim.cluster.timeline import Timeline
from tests.sim.cluster.truth import Truth
from tests.sim.cluster.versions import Versions
from tests.sim.store_rig import KIB
from tests.sim.world.plan import NEMESIS, Act, Plan
from tests.sim.world.stamps import Violation
from tests.sim.world.world import Report, still_collector
from transport.peer import messages as m
from transport.peer.wire import Frames

SIZE, CHUNK = 32 * KIB, 4 * KIB
PAUSE_S = 1.2  # between two acts of a client, on average
NEMESIS_PAUSE_S = 4.0
TROUBLED_S = 400.0  # clients that have not done what they wanted by then do it when all is healed
PATIENCE_S = 1e6  # with chunks that are damaged
HEALED_S = 90.0
"""Within so long all is well again: the longest pause between two tries, and a takeover."""
LOG_LINES = 60
COLLECTED_EVERY = 8  # worlds
IDLE = attrgetter("idle")  # of a client
QUIET = frozenset((m.Ping.TYPE, m.Pong.TYPE))
"""Messages that are not told of."""


class ClusterWorld:
    def __init__(
        self,
        plan: Plan,
        tell: Callable[[str], None] | None = None,
        *,
        broken: str | None = None,
    ) -> None:
        """`tell` is called with each event. `broken`: a rule of `tests.sim.cluster.rules` that the
        product is made to break, to see whether that is noticed."""
        self.plan = plan
        self.seed = plan.seed
        self.counts: Counter[str] = Counter()
        self.timeline = Timeline()
        shape = plans.drawn_shape(plan.seed, plan.profile)
        self.network = Network(self.timeline, str(plan.seed), self._carried)
        self.wire: Wire = self.network
        self.metastore = SimMetaStore(self.timeline, str(plan.seed))
        rng = random.Random(f"nodes:{plan.seed}")
        self.names: Sequence[str] = tuple(rng.randbytes(16).hex() for _ in range(shape.nodes))
        queue_bytes = rng.choice((8, 64, 1024)) * KIB
        options = drawn_options(rng)
        if plan.profile is plans.ROT:  # or what is lost for good is lost to whoever looks as well
            options = replace(options, damage_patience_s=PATIENCE_S)
        self.spec = VolumeSpec(
            *(rng.randbytes(16), "volume", SIZE, CHUNK, shape, queue_bytes, options)
        )
        self.history = History(SIZE)
        self.nodes = {name: Node(self, name) for name in self.names}
        self.truth = Truth(self)
        self.versions = Versions(self)
        self.damage = Damage(self)
        self.nemesis = Nemesis(self, plans.CLIENTS)
        self.clients = {name: Client(self, name, plan.of(name), PAUSE_S) for name in plans.CLIENTS}
        self._tell = tell
        self._broken = broken
        self._lines: list[str] = []

    def live(self) -> Report:
        error = details = ""
        _still_collector_now_and_then()
        logging.disable(logging.CRITICAL)
        try:
            with broken_rule(self._broken):
                self._live()
        except KeyboardInterrupt:
            raise
        except BaseException as failure:
            error = f"{type(failure).__name__}: {failure}"
            details = "".join(traceback.format_exception(failure))
        finally:
            logging.disable(logging.NOTSET)
            gc.enable()
        self.counts["events"] += self.timeline.event_count
        self.counts["messages"] += self.network.message_count
        self.counts["operations"] += self.history.operations
        return Report(
            *(self.seed, self.plan.profile.name, self._digest(), len(self.plan.acts)),
            *(error, details, self.counts, self.timeline.now_s),
        )

    @property
    def notes(self) -> list[str]:
        """The last events."""
        return self._lines[-LOG_LINES:]

    def _digest(self) -> str:
        return hashlib.blake2b("".join(self._lines).encode(), digest_size=16).hexdigest()

    # -- what others use

    def note(self, what: str) -> None:
        """An event of the run: part of its digest."""
        line = f"{self.timeline.now_ns} {what}"
        self._lines.append(line)
        if self._tell is not None:
            self._tell(line)

    def count(self, what: str) -> None:
        self.counts[what] += 1

    def servers(self) -> list[Server]:
        return list(self.nodes.values())

    def primary(self) -> Node | None:
        serving = [node for node in self.nodes.values() if node.serving is not None]
        return max(serving, key=lambda node: node.serving or 0, default=None)

    def answered(self, kind: str, node: str) -> None:
        self.nemesis.happened(kind, [node])
        if kind == "flush":
            self.truth.check_status()

    def crashing(self, node: Node) -> None:
        self.truth.crashing(node)
        self.damage.crashing(node)

    def started(self, node: Node) -> None:
        self.truth.started(node)
        self.damage.started(node)

    def chosen(self, epoch: int, asked: Collection[str]) -> None:
        self.truth.chosen(epoch, asked)

    def made_anew(self, node: Node) -> None:
        self.truth.made_anew(node)

    def reset_client(self, client: str) -> None:
        session = self.clients[client].session
        if session is not None:
            self.clients[client].cut(session)

    def cut_client(self, session: Session) -> None:
        client = self.clients[session.client]
        if self.network.reaches(session.node, session.client):
            self.timeline.after(self.network.delay_s(), lambda: client.cut(session))

    def opened(self, node: Node, epoch: int, image: bytes) -> None:
        """A node begins to serve the volume, which reads as `image`."""
        self.note(f"{node.name[:4]} serves epoch {epoch}")
        self.count("opened")
        whole = self.truth.opened(node, epoch, image)
        if whole is not None:
            self.versions.opened(node, whole=whole)
        self.nemesis.happened("opened", [node.name])

    def _carried(self, source: str, target: str, frames: Frames) -> None:
        number = memoryview(frames[0])[5]
        if number not in QUIET:
            kind = m.KINDS[number].__name__
            self.note(f"{source[:4]} > {target[:4]} {kind} {sum(map(len, frames))}")  # type: ignore[arg-type]
            self.counts[f"message {kind}"] += 1
            self.nemesis.happened(kind, (source, target))

    # -- life

    def _live(self) -> None:
        for node in self.nodes.values():
            node.power_on()
        self.truth.found_cluster()
        self.timeline.run(1.0)
        for client in self.clients.values():
            client.begin()
        self._schedule(self.plan.of(NEMESIS))
        self._run(TROUBLED_S, lambda: self._acts_left == 0 and self._idle())
        self.nemesis.heal()
        self.note("healed")
        healed_s = self.timeline.now_s
        for number, client in enumerate(self.clients.values()):
            client.add(Act(len(self.plan.acts) + number, client.name, "probe"))
        self._run(HEALED_S, self._idle)
        if not self._idle():
            waiting = [client.name for client in self.clients.values() if not client.idle]
            raise Violation(
                f"I13 {HEALED_S:g} s after all was healed {', '.join(waiting)} still wait"
            )
        self.counts["healed ms"] += round(1000 * (self.timeline.now_s - healed_s))
        self._run(HEALED_S, self.truth.settled)
        self.truth.last_look()

    def _idle(self) -> bool:
        return all(map(IDLE, self.clients.values()))  # asked after every event

    def _run(self, seconds: float, over: Callable[[], bool]) -> None:
        """Let time pass until something is so."""
        self.timeline.run_until(self.timeline.now_s + seconds, over)

    def _schedule(self, acts: list[Act]) -> None:
        """Acts of the nemesis, one after the other."""
        self._acts_left = len(acts)
        at_s = 0.0
        for act in acts:
            rng = random.Random(f"{self.seed}:{act.index}")
            at_s += rng.expovariate(1 / NEMESIS_PAUSE_S)
            self.timeline.after(at_s, lambda act=act, rng=rng: self._trouble(act, rng))  # type: ignore[misc]

    def _trouble(self, act: Act, rng: random.Random) -> None:
        self._acts_left -= 1
        self.truth.check_status()
        self.nemesis.act(act, rng)


_worlds = 0


def _still_collector_now_and_then() -> None:
    """A world leaves a few megabytes, and some eventfds: looking for them takes as long as a part
    of a world."""
    global _worlds
    if _worlds % COLLECTED_EVERY == 0:
        still_collector()
    gc.disable()
    _worlds += 1


def lived(seed: int, acts: int) -> Report:
    """Run the world of a seed."""
    return ClusterWorld(plans.drawn(seed, acts)).live()
