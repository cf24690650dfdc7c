"""What goes wrong between and in the nodes of a world, drawn from an act's generator, and its end.

Every trouble ends by itself after a while; `heal` ends all that are left, for good: nodes run, the
network is fair, clocks are right.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from tests.sim.cluster.damage import Damage
from tests.sim.cluster.metastore import MetaStoreWeather, SimMetaStore
from tests.sim.cluster.network import Network, Weather
from tests.sim.cluster.node import Node, VolumeSpec
from tests.sim.cluster.timeline import NS, Timeline
from tests.sim.cluster.truth import Truth
from tests.sim.cluster.versions import Versions
from tests.sim.faults import Fail, Fault
from tests.sim.world.plan import Act

MOST_DRIFT = 0.12
"""Clocks are wrong by less than what the lease allows for (transport/group/lease.py)."""
MAKE_GOOD_S = 7.0
FAVOUR = 0.6  # of troubles that befall the primary

MOMENTS = {
    **{"Sealed": 3, "Append": 2, "Ack": 2, "Open": 3, "Undo": 2, "Log": 1, "Looked": 1},
    **{"write": 2, "flush": 4, "read": 1, "opened": 3},
}
"""What an ambush waits for: a message, an answer to a client, a node that begins to serve."""
DEEDS = {"kill": 4, "cut": 3, "cut all": 3, "isolate": 2, "pause": 2, "release": 3}


@dataclass(slots=True)
class Ambush:
    waits_for: str
    left: int
    """So often it still has to happen."""
    delay_s: float
    deed: str
    rng: random.Random


class Surroundings(Protocol):
    """What the nemesis needs of a world."""

    timeline: Timeline
    network: Network
    metastore: SimMetaStore
    nodes: dict[str, Node]
    truth: Truth
    spec: VolumeSpec
    versions: Versions
    damage: Damage

    def primary(self) -> Node | None:
        """A node that serves the volume, or believes so."""

    def reset_client(self, client: str) -> None:
        """A client's connection breaks."""

    def count(self, what: str) -> None: ...
    def note(self, what: str) -> None: ...


class Nemesis:
    def __init__(self, world: Surroundings, clients: tuple[str, ...]) -> None:
        self._world = world
        self._clients = clients
        self._over = False
        self._ambushes: list[Ambush] = []
        self._lost_disk: str | None = None
        """Who has lost its disk."""
        self._acts: dict[str, Callable[[random.Random], None]] = {
            "kill": self._kill,
            "power-cut": self._cut,
            "strike": self._strike,
            "restart": self._restart,
            "pause": self._pause,
            "cut-off": self._cut_off,
            "isolate": self._isolate,
            "swap": self._swap,
            "relapse": self._relapse,
            "ambush": self._ambush,
            "one-way": self._one_way,
            "weather": self._weather,
            "reset": self._reset,
            "half-open": self._half_open,
            "etcd": self._etcd,
            "drift": self._drift,
            "clock": self._clock,
            "move": self._move,
            "upkeep": self._upkeep,
            "sick": self._sick,
            "unreadable": self._unreadable,
            "replace": self._replace,
            "lose-disk": self._lose_disk,
            "rot": world.damage.rot,
            "scrub": world.damage.scrub,
            "snapshot": world.versions.snapshot,
            "drop-snapshot": world.versions.drop,
            "resize": world.versions.resize,
            "restore": world.versions.restore,
        }

    def act(self, act: Act, rng: random.Random) -> None:
        self._world.note(f"nemesis {act.kind}")
        self._world.count(act.kind)
        self._acts[act.kind](rng)

    def happened(self, what: str, nodes: Sequence[str]) -> None:
        """A message arrived, a client was answered, or a node begins to serve."""
        for ambush in [each for each in self._ambushes if each.waits_for == what]:
            ambush.left -= 1
            if not ambush.left:
                self._ambushes.remove(ambush)
                node = self._world.nodes[ambush.rng.choice(nodes)]
                self._world.timeline.after(
                    ambush.delay_s,
                    lambda ambush=ambush, node=node: self._strike_from(ambush, node),  # type: ignore[misc]
                )

    def heal(self) -> None:
        """No more trouble; what there is ends now."""
        world = self._world
        self._over = True
        self._ambushes.clear()
        world.network.blocked.clear()
        world.network.weather = Weather()
        for line in world.network.lines():
            if line.half_open:
                world.network.reset(line)
        world.metastore.unreachable.clear()
        world.metastore.weather = MetaStoreWeather()
        for node in world.nodes.values():
            node.heal()
        world.damage.heal()
        self._make_good()

    # -- whom, and for how long

    def _node(self, rng: random.Random) -> Node:
        favoured = rng.random() < FAVOUR
        node = rng.choice(list(self._world.nodes.values()))
        primary = self._world.primary()
        return primary if favoured and primary is not None else node

    def _until(self, seconds: float, end: Callable[[], None]) -> None:
        """Have a trouble end, unless all of it has by then."""
        self._world.timeline.after(seconds, lambda: None if self._over else end())

    @staticmethod
    def _while(rng: random.Random) -> float:
        """A moment, a few seconds, or longer than a lease."""
        return rng.choice((rng.uniform(0.02, 0.5), rng.uniform(0.5, 5.0), rng.uniform(5.0, 25.0)))

    # -- nodes

    def _kill(self, rng: random.Random) -> None:
        self._down(self._node(rng), rng, power=False)

    def _cut(self, rng: random.Random) -> None:
        nodes = [self._node(rng)]
        if rng.random() < 0.15:  # of the whole rack
            nodes = list(self._world.nodes.values())
        for node in nodes:
            self._down(node, rng, power=True)

    def _down(self, node: Node, rng: random.Random, *, power: bool) -> None:
        node.crash(power=power)
        self._until(self._while(rng), node.power_on)

    def _strike(self, rng: random.Random) -> None:
        """The power goes in the middle of what a node does to its disk."""
        node = self._node(rng)
        node.strike_at(rng.choice((1, 1, 2, 3, 5, 8)), self._while(rng))

    def _restart(self, rng: random.Random) -> None:
        node = self._node(rng)
        node.shut_down(rng.uniform(0.02, 2.0))

    def _pause(self, rng: random.Random) -> None:
        node = self._node(rng)
        node.stop()
        self._until(self._while(rng), node.go_on)

    def _drift(self, rng: random.Random) -> None:
        node = self._node(rng)
        node.clock.drift(1.0 + rng.uniform(-MOST_DRIFT, MOST_DRIFT))

    def _clock(self, rng: random.Random) -> None:
        node = self._node(rng)
        node.clock.skew_ns += rng.choice((-3600, -1, 1, 3600)) * NS

    def _move(self, rng: random.Random) -> None:
        """An operator wants another primary."""
        primary = self._world.primary()
        target = rng.choice(list(self._world.nodes))
        if primary is not None:
            count = self._world.count
            primary.move_to(target, lambda why: count("moved" if why is None else "not moved"))

    def _upkeep(self, rng: random.Random) -> None:
        node = self._node(rng)
        node.tidy(collect=rng.random() < 0.5)

    # -- members

    def _spare(self) -> list[str]:
        """Nodes that may become members."""
        record = self._world.truth.stored.record
        taken = {*record.members, record.coming, *record.leaving}
        return [name for name in self._world.nodes if name not in taken]

    def _replace(self, rng: random.Random) -> None:
        """An operator has a node take the place of a member, or thinks better of it."""
        truth = self._world.truth
        stored, spare = truth.stored, self._spare()
        if stored.record.coming is not None and rng.random() < 0.3:
            if truth.settle(truth.records.uncall_member(stored)):
                self._world.count("called off")
        elif spare and stored.record.coming is None:
            self._call(rng.choice(spare), rng.choice(stored.record.members))

    def _call(self, coming: str, replaces: str) -> None:
        truth = self._world.truth
        if truth.settle(truth.records.call_member(truth.stored, coming, replaces)):
            self._world.count("called")
            self._world.note(f"{coming[:4]} is to take the place of {replaces[:4]}")

    def _lose_disk(self, rng: random.Random) -> None:
        """A member comes back with nothing; some time later an operator has another node take its
        place. Once in a world, and where W members are left: no more can be lost."""
        shape = self._world.spec.shape
        if self._lost_disk is not None or not self._spare() or shape.members == shape.wanted:
            return
        node = self._world.nodes[rng.choice(self._world.truth.stored.record.members)]
        if not node.up:
            return
        self._lost_disk = node.name
        self._world.note(f"{node.name[:4]} loses its disk")
        node.lose_disk()
        self._until(self._while(rng), node.power_on)
        self._until(self._while(rng), self._make_good)

    def _make_good(self) -> None:
        """Until it is not a member any more, operators see to it that somebody takes its place."""
        lost, record = self._lost_disk, self._world.truth.stored.record
        if lost is None or lost not in record.members:
            return
        truth, spare = self._world.truth, self._spare()
        if record.coming is not None and record.replaces != lost:
            truth.settle(truth.records.uncall_member(truth.stored))  # that one can wait
        elif record.coming is None and spare:
            self._call(spare[0], lost)
        self._world.timeline.after(MAKE_GOOD_S, self._make_good)

    # -- disks

    def _sick(self, rng: random.Random) -> None:
        """A sync fails, and whatever the disk says after that is not to be trusted. Somebody comes
        to look at it."""
        node = self._node(rng)
        where = rng.choice(("journal/*", "journal/*", "packs/*"))
        node.sicken(Fault("sync", Fail(), where, nth=rng.choice((1, 1, 2, 5))))
        self._until(self._while(rng), node.mend)

    def _unreadable(self, rng: random.Random) -> None:
        """Reads fail for a while."""
        node = self._node(rng)
        where, count = rng.choice(("journal/*", "packs/*", "*")), rng.choice((1, 3, 20))
        node.sicken(Fault("pread", Fail(), where, nth=rng.choice((1, 1, 3)), count=count))
        self._until(self._while(rng), node.machine.disk.faults.clear)

    # -- the network

    def _ends(self) -> list[str]:
        return [*self._world.nodes, *self._clients]

    def _block(self, pairs: set[tuple[str, str]], rng: random.Random) -> None:
        blocked = self._world.network.blocked
        blocked |= pairs
        self._until(self._while(rng), lambda: blocked.difference_update(pairs))

    def _cut_off(self, rng: random.Random) -> None:
        """A node, or some of all, are on an island."""
        ends = self._ends()
        island = {self._node(rng).name}
        island |= {end for end in ends if rng.random() < 0.25}
        pairs = {(a, b) for a in island for b in ends if b not in island}
        self._block(pairs | {(b, a) for a, b in pairs}, rng)

    def _one_way(self, rng: random.Random) -> None:
        """Nothing from a node to some others, or to it from them."""
        node = self._node(rng).name
        others = [end for end in self._ends() if end != node and rng.random() < 0.6]
        pairs = {(node, other) for other in others}
        if rng.random() < 0.5:
            pairs = {(other, node) for other in others}
        self._block(pairs, rng)

    def _weather(self, rng: random.Random) -> None:
        network = self._world.network
        network.weather = Weather(
            loss=rng.choice((0.0, 0.02, 0.2)),
            repeat=rng.choice((0.0, 0.1)),
            reorder=rng.choice((0.0, 0.2)),
            slowest_s=rng.choice((0.001, 0.05, 0.8)),
            half_open=rng.choice((0.0, 0.2)),
        )
        fair = network.weather

        def clear() -> None:
            if network.weather is fair:
                network.weather = Weather()

        self._until(self._while(rng), clear)

    def _reset(self, rng: random.Random) -> None:
        for line in self._world.network.lines():
            if rng.random() < 0.4:
                self._world.network.reset(line)

    def _half_open(self, rng: random.Random) -> None:
        for line in self._world.network.lines():
            if rng.random() < 0.3:
                line.half_open = True

    def _apart(self, node: Node, rng: random.Random) -> set[tuple[str, str]]:
        """No other node reaches it; some clients do, and the others look elsewhere."""
        away = [name for name in self._world.nodes if name != node.name]
        for client in self._clients:
            if rng.random() < 0.5:
                away.append(client)
                self._world.reset_client(client)
        return {(node.name, name) for name in away} | {(name, node.name) for name in away}

    def _isolate(self, rng: random.Random) -> None:
        node = self._node(rng)
        self._block(self._apart(node, rng), rng)

    def _island(self, rng: random.Random) -> bool:
        """The primary is apart, until an ambush ends that or it has been so for long."""
        primary = self._world.primary()
        if primary is None:
            return False
        pairs = self._apart(primary, rng)
        self._world.network.blocked |= pairs
        self._until(40.0, lambda: self._world.network.blocked.difference_update(pairs))
        return True

    def _swap(self, rng: random.Random) -> None:
        """The primary comes back from an island just when its successor goes."""
        if self._island(rng):
            delay_s = rng.choice((0.0, rng.uniform(0.0, 3.0)))
            self._ambushes.append(Ambush("opened", 1, delay_s, "swap", rng))

    def _relapse(self, rng: random.Random) -> None:
        """The primary comes back just when members have promised to its successor, one of which may
        have to start anew."""
        if self._island(rng):
            deed = rng.choice(("release", "relapse"))
            self._ambushes.append(Ambush("Sealed", rng.choice((1, 2)), 0.0, deed, rng))

    # -- ambushes

    def _ambush(self, rng: random.Random) -> None:
        """Something befalls a node right when it has done something."""
        what = rng.choices(list(MOMENTS), list(MOMENTS.values()))[0]
        deed = rng.choices(list(DEEDS), list(DEEDS.values()))[0]
        delay_s = rng.choice((0.0, 0.0, 0.0005, 0.03))
        self._ambushes.append(Ambush(what, rng.choice((1, 1, 2, 3)), delay_s, deed, rng))

    def _strike_from(self, ambush: "Ambush", node: Node) -> None:
        if self._over:
            return
        world, rng, deed = self._world, ambush.rng, ambush.deed
        world.note(f"ambush: {deed} {node.name[:4]}")
        world.count(f"ambush: {deed}")
        if deed in ("release", "relapse", "swap"):
            world.network.blocked.clear()
            for each in world.nodes.values():
                each.go_on()
        if deed in ("kill", "swap"):
            self._down(node, rng, power=False)
        elif deed == "relapse":
            node.crash(power=rng.random() < 0.5)
            self._until(rng.uniform(0.0, 0.3), node.power_on)
        elif deed == "cut":
            self._down(node, rng, power=True)
        elif deed == "cut all":
            for each in world.nodes.values():
                self._down(each, rng, power=True)
        elif deed == "isolate":
            self._block(self._apart(node, rng), rng)
        elif deed == "pause":
            node.stop()
            self._until(self._while(rng), node.go_on)

    # -- etcd

    def _etcd(self, rng: random.Random) -> None:
        store = self._world.metastore
        nodes = list(self._world.nodes)
        away = set(nodes) if rng.random() < 0.3 else {n for n in nodes if rng.random() < 0.4}
        store.unreachable |= away
        store.weather = weather = MetaStoreWeather(
            refused=rng.choice((0.0, 0.3)),
            lost=rng.choice((0.0, 0.3, 0.8)),
            old=rng.choice((0.0, 0.4)),
            slowest_s=rng.choice((0.01, 0.3, 3.0)),
        )

        def clear() -> None:
            store.unreachable -= away
            if store.weather is weather:
                store.weather = MetaStoreWeather()

        self._until(self._while(rng), clear)
