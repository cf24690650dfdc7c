"""Time, network, MetaStore, accidents, and the judge of what clients are shown."""

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any

from tests.metastore_twin import DictMetaStore
from transport.group.acks import NodeId
from transport.group.takeover_run import Commit
from volume.metastore import ClusterRecords, Outcome, Row, Stored, Unavailable, Unknown
from volume.metastore_records import GroupState, Mode, VolumeGroup

if TYPE_CHECKING:
    from tests.takeover.node import Node

VOLUME = "7" * 32
TIMEOUT_S = 1.0  # of a request to another node
Record = tuple[int, int]  # its epoch, and a number of its own


class Stale(Exception):
    """A member refuses: it has promised a later epoch."""

    def __init__(self, epoch: int) -> None:
        super().__init__(epoch)
        self.epoch = epoch


@dataclass(frozen=True)
class Chances:
    """Of accidents. Times in seconds."""

    lost: float = 0.02
    """Each message, one way."""
    repeated: float = 0.02
    slow: float = 0.05
    """Each message: up to 3 s under way."""
    accident_every_s: float = 8.0
    power: bool = False
    """Kills may be power cuts."""


class Judge:
    """What was shown to clients, and what must follow from that."""

    def __init__(self) -> None:
        self.shown: list[Record] = []
        self.served: dict[int, NodeId] = {}
        self.reads = self.writes = 0

    def show(self, log: list[Record]) -> None:
        """Acknowledged, read, or served: nobody may see it otherwise again."""
        shared = min(len(log), len(self.shown))
        assert log[:shared] == self.shown[:shared], "what was shown has changed"
        if len(log) > len(self.shown):
            self.shown = log.copy()

    def serve(self, node: NodeId, epoch: int, log: list[Record]) -> None:
        assert epoch not in self.served, f"epoch {epoch} is served twice"
        assert epoch > max(self.served, default=0), f"epoch {epoch} after a later one"
        assert log[: len(self.shown)] == self.shown, "an acknowledged record is gone"
        last = max(self.served, default=0)
        late = [record for record in log[len(self.shown) :] if record[0] < last]
        assert not late, "records of an old epoch appear that readers have not seen"
        self.served[epoch] = node
        self.show(log)

    def read(self, epoch: int, log: list[Record], before: int) -> None:
        """`before`: how much had been shown when it was asked for."""
        assert max(self.served) == epoch, "a read of an old primary"
        assert len(log) >= before, "a read goes back"
        self.reads += 1
        self.show(log)


class World:
    def __init__(self, rng: random.Random, members: int, mode: Mode, chances: Chances) -> None:
        self.rng = rng
        self.chances = chances
        self.mode = mode
        self.now = 0.0
        self.judge = Judge()
        self.healthy = False
        """No accident any more, on the network and in the MetaStore."""
        self.number = count(1)
        self.watcher: Callable[[Node, Any], None] = lambda node, effect: None
        """Called before each effect of a takeover."""
        self._order = count()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self.nodes: dict[NodeId, Node] = {}
        ids = [NodeId(f"{n:032x}") for n in range(1, members + 1)]
        self.cut: set[tuple[NodeId, NodeId]] = set()
        self.store = Store(self)
        group = VolumeGroup(
            *(VOLUME, "vm1", 1, None, tuple(ids), members, members // 2 + 1, mode, None, "main"),
            GroupState.CLOSED,
        )
        self.store.records.commit(self.store.records.create_volume(group))
        self.ids = ids

    def at(self, time: float, do: Callable[[], None]) -> None:
        heapq.heappush(self._events, (time, next(self._order), do))

    def run(self, until: float) -> None:
        while self._events and self._events[0][0] <= until:
            self.now, _, do = heapq.heappop(self._events)
            do()
        self.now = until

    # -- accidents

    def accidents(self) -> None:
        """One now, and then others, until all is well."""
        if self.healthy:
            return
        rng = self.rng
        self.at(self.now + rng.expovariate(1 / self.chances.accident_every_s), self.accidents)
        node = rng.choice(list(self.nodes.values()))
        match rng.randrange(5):
            case 0 | 1 if node.up:
                node.kill(self.chances.power and rng.random() < 0.5)
                self.at(self.now + rng.choice((0.1, 3.0, rng.uniform(0, 25))), node.start)
            case 2:
                node.paused_until = self.now + rng.choice((0.5, 5.0, rng.uniform(0, 20)))
            case 3:
                self._cut_off(node)
            case 4:
                self.store.away = True
                self.at(self.now + rng.uniform(0, 20), self._store_back)

    def _cut_off(self, node: "Node") -> None:
        others = self.rng.sample(self.ids, self.rng.randint(1, len(self.ids)))
        pairs = {(node.id, other) for other in others}
        if self.rng.random() < 0.7:
            pairs |= {(other, node.id) for other in others}
        self.cut |= pairs
        self.at(self.now + self.rng.uniform(0, 20), lambda: self.cut.difference_update(pairs))

    def _store_back(self) -> None:
        self.store.away = False

    def heal(self) -> None:
        self.healthy = True
        self.cut.clear()
        self.store.away = False
        for node in self.nodes.values():
            node.paused_until = self.now
            if not node.up:
                node.start()

    # -- messages

    def call(
        self,
        source: "Node",
        target: "Node",
        do: Callable[[], Any],
        done: Callable[[Any], None],
        failed: Callable[[Exception], None],
    ) -> None:
        """A request to a node: exactly one of `done` and `failed`, unless who asks is gone."""
        state = {"open": True}

        def end(how: Callable[[Any], None], what: Any) -> None:
            if state["open"]:
                state["open"] = False
                how(what)

        def arrive() -> None:
            try:
                result, how = do(), done
            except (Stale, OSError) as error:
                result, how = error, failed
            self._travel(target, source, lambda: end(how, result))

        if source is target:
            source.soon(arrive)
        else:
            self._travel(source, target, arrive)
            source.later(TIMEOUT_S, lambda: end(failed, OSError("no answer")))

    def _travel(self, source: "Node", target: "Node", do: Callable[[], None]) -> None:
        if source is target:
            target.soon(do)
            return
        rng, chances = self.rng, self.chances
        if (source.id, target.id) in self.cut:
            return
        copies = 1 if self.healthy or rng.random() >= chances.repeated else 2
        for _ in range(copies):
            if not self.healthy and rng.random() < chances.lost:
                continue
            slow = not self.healthy and rng.random() < chances.slow
            delay = rng.uniform(0.0, 3.0) if slow else rng.uniform(0.0, 0.005)
            target.arrives(self.now + delay, do)


class Store:
    """The MetaStore: may be away, lose answers, do later what it was asked, and read old rows."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._twin = DictMetaStore()
        self._old: Row | None = None
        self.away = False
        tokens = count(1)
        self.records = ClusterRecords(self._twin, lambda: f"{next(tokens):032x}")

    def read(self, node: "Node", done: Callable[[Stored[VolumeGroup] | None], None]) -> None:
        def answer() -> None:
            if self.away:
                done(None)
                return
            row = self._twin.read(VolumeGroup.prefix + VOLUME)
            old = self._old
            if old is not None and not self._world.healthy and self._world.rng.random() < 0.1:
                row = old
            done(self.records.stored(VolumeGroup, row))

        node.later(self._world.rng.uniform(0.001, 0.01), answer)

    def commit(self, node: "Node", effect: Commit, done: Callable[[Outcome], None]) -> None:
        rng = self._world.rng
        if self.away:
            node.later(0.5, lambda: done(Unavailable("no etcd")))
            return

        def happen() -> Outcome:
            self._old = self._twin.read(VolumeGroup.prefix + VOLUME)
            return self.records.commit(effect.transaction)

        chance = 1.0 if self._world.healthy else rng.random()
        if chance < 0.05:
            self._world.at(self._world.now + rng.uniform(0.0, 8.0), lambda: (happen(), None)[1])
            node.later(0.5, lambda: done(Unknown("no answer")))
        elif chance < 0.1:
            happen()
            node.later(0.5, lambda: done(Unknown("no answer")))
        elif chance < 0.12:
            node.later(0.5, lambda: done(Unknown("no answer")))
        else:
            outcome = happen()
            node.later(rng.uniform(0.001, 0.01), lambda: done(outcome))
