"""A process with a disk: a member, at times a candidate, at times the primary."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from tests.takeover.leader import Leader
from tests.takeover.world import Chances, Record, Stale, World
from transport.group.acks import Held, NodeId
from transport.group.chain import Chain, common
from transport.group.lease import MAX_DRIFT, Quiet
from transport.group.takeover_run import (
    Commit,
    Effect,
    GaveUp,
    Lead,
    Look,
    Mend,
    Overtaken,
    Seal,
    Serve,
    Takeover,
)
from transport.group.watch import Begin, Read, Watch
from volume.metastore import Outcome, Stored
from volume.metastore_records import Mode, VolumeGroup


def build(rng: random.Random, members: int, mode: Mode, chances: Chances) -> World:
    """A world with a volume that nobody has opened yet."""
    world = World(rng, members, mode, chances)
    for node in world.ids:
        world.nodes[node] = Node(world, node)
    return world


@dataclass
class Image:
    """What a member has of the volume."""

    promise: int = 0
    opened: int = 0
    log: list[Record] = field(default_factory=list)
    chain: Chain = field(default_factory=Chain)

    def copy(self) -> "Image":
        return replace(self, log=self.log.copy())


class Node:
    def __init__(self, world: World, node: NodeId) -> None:
        self.world = world
        self.id = node
        self.rate = 1 + world.rng.choice((-MAX_DRIFT, 0.0, MAX_DRIFT, world.rng.uniform(-0.1, 0.1)))
        self.offset = world.rng.uniform(0.0, 1e6)
        self.life = 0
        self.up = False
        self.paused_until = 0.0
        self.image = Image()
        self.synced = Image()
        self.start()

    # -- time

    @property
    def clock(self) -> float:
        return self.offset + self.world.now * self.rate

    def later(self, seconds: float, do: Callable[[], None]) -> None:
        """By this node's clock; never, if it is killed before."""
        self.arrives(self.world.now + seconds / self.rate, do)

    def soon(self, do: Callable[[], None]) -> None:
        self.arrives(self.world.now, do)

    def arrives(self, time: float, do: Callable[[], None]) -> None:
        life = self.life

        def happen() -> None:
            if self.life != life or not self.up:
                return
            if self.paused_until > self.world.now:
                self.world.at(self.paused_until, happen)
            else:
                do()

        self.world.at(time, happen)

    # -- life

    def start(self) -> None:
        if self.up:
            return
        self.life += 1
        self.up = True
        self.quiet = Quiet(self.clock)
        self.watch = Watch(self.id, self.clock, self.world.rng.random)
        self.takeover: Takeover | None = None
        self.primary: Leader | None = None
        self._tick()

    def kill(self, power: bool) -> None:
        self.up = False
        self.paused_until = 0.0
        if power:
            self.image = self.synced.copy()

    def _tick(self) -> None:
        """Timers of watch, takeover and lease."""
        if isinstance(self.watch.poll(self.clock), Read):
            self.world.store.read(self, self._found)
        if self.takeover is not None and self.takeover.deadline <= self.clock:
            self.carry_out(self.takeover.poll(self.clock))
        if self.primary is not None:
            self.primary.tick()
        self.later(0.1, self._tick)

    def _found(self, stored: Stored[VolumeGroup] | None) -> None:
        if stored is None:
            self.watch.unread(self.clock)
            return
        begin = self.watch.found(stored, self.clock)
        if isinstance(begin, Begin) and self.primary is None:
            self.begin(begin)

    def begin(self, begin: Begin) -> None:
        change = self.world.store.records.change_volume
        self.takeover = Takeover(
            *(self.id, begin.found, change, self.world.rng.random),
            agreed=begin.agreed,
            floor=begin.floor,
        )
        self.carry_out(self.takeover.start(self.clock))

    # -- a takeover's effects

    def carry_out(self, effects: list[Effect]) -> None:
        for effect in effects:
            self.world.watcher(self, effect)
            if self.up:
                self._carry_out(effect)

    def _carry_out(self, effect: Effect) -> None:
        run = self.takeover
        assert run is not None

        def asked(target: NodeId, do: Callable[["Node"], Any], done: Callable[[Any], Any]) -> None:
            node = self.world.nodes[target]

            def failed(error: Exception) -> None:
                assert isinstance(effect, (Look, Seal, Mend))
                if self.takeover is not run:
                    return
                if isinstance(error, Stale):
                    self.carry_out(run.refused(effect, error.epoch, self.clock))
                else:
                    self.carry_out(run.failed(effect, str(error), self.clock))

            def ended(result: Any) -> None:
                if self.takeover is run:
                    self.carry_out(done(result))

            self.world.call(self, node, lambda: do(node), ended, failed)

        match effect:
            case Look(member):
                asked(
                    member,
                    Node.look,
                    lambda found: run.looked(member, found[0], found[1], self.clock),
                )
            case Commit():

                def committed(outcome: Outcome) -> None:
                    if self.takeover is run:
                        self.carry_out(run.committed(outcome, self.clock))

                self.world.store.commit(self, effect, committed)
            case Seal(member, epoch):
                asked(
                    member,
                    lambda node: node.seal(epoch, self),
                    lambda found: run.promised(member, found[0], found[1], found[2], self.clock),
                )
            case Mend(task, chain, epoch):
                asked(
                    task.source,
                    lambda node: node.read_log(epoch),
                    lambda log: self._mend(run, effect, log),
                )
            case Lead(group, chain):
                assert self.image.chain.end == chain.end
                self.primary = Leader(self, group)
            case Serve():
                assert self.primary is not None
                self.primary.serve()
            case Overtaken():
                self.drop()
            case GaveUp():
                self.takeover = None
                self.primary = None
                self.watch.gave_up(effect, self.clock)

    def _mend(self, run: Takeover, effect: Mend, log: list[Record]) -> list[Any]:
        if self.image.promise != effect.epoch:
            return run.refused(effect, self.image.promise, self.clock)
        keep = effect.task.keep
        assert keep is not None
        assert self.image.log[: keep[1]] == log[: keep[1]]
        self.image.log = log[: effect.chain.seq]
        self.image.chain = effect.chain
        self.sync()
        return run.mended(self.clock)

    def drop(self) -> None:
        """Be the primary no more."""
        self.primary = None
        self.takeover = None
        self.watch.dropped(self.clock)

    # -- a member

    def sync(self) -> None:
        self.synced = self.image.copy()

    def look(self) -> tuple[int, float]:
        return self.image.promise, self.quiet.seconds(self.clock)

    def seal(self, epoch: int, by: "Node") -> tuple[int, Chain, float]:
        if epoch < self.image.promise:
            raise Stale(self.image.promise)
        if epoch > self.image.promise:
            if self.primary is not None:
                self.drop()
            if self.takeover is not None and self.takeover.epoch < epoch and by is not self:
                self.takeover = None
                self.watch.dropped(self.clock)
            self.image.promise = epoch
        if by is not self:
            self.watch.promised(self.clock)
        self.sync()
        return epoch, self.image.chain, self.quiet.seconds(self.clock)

    def read_log(self, epoch: int) -> list[Record]:
        self._promised(epoch)
        return self.image.log.copy()

    def fit(self, epoch: int, log: list[Record], chain: Chain) -> None:
        """Undo, and records of earlier epochs: be as the new primary is."""
        self._promised(epoch)
        if self.image.opened >= epoch:
            return
        keep = common(self.image.chain, chain)
        assert keep is not None
        assert self.image.log[: keep[1]] == log[: keep[1]]
        rng = self.world.rng
        if not self.world.healthy and rng.random() < 0.1:
            self._fit_partly(log, chain, keep, rng.randint(keep[1], len(log)))
            raise OSError("broke off")
        self.image.log = log.copy()
        self.image.chain = chain
        self.sync()

    def _fit_partly(
        self, log: list[Record], chain: Chain, keep: tuple[int, int], until: int
    ) -> None:
        own = self.image.chain
        self.image.log = log[:until]
        if until > keep[1]:
            self.image.chain = chain.cut(log[until - 1][0], until)
        else:
            self.image.chain = own.cut(*keep) if keep[0] else Chain()

    def open(self, epoch: int, seq: int) -> None:
        self._promised(epoch)
        if self.image.opened < epoch:
            assert len(self.image.log) == seq
            self.image.opened = epoch
            self.image.chain = self.image.chain.extended(epoch, seq)
            self.sync()
        self._answered()

    def append(self, epoch: int, first: int, records: list[Record], synced: bool) -> Held:
        self._promised(epoch)
        if self.image.opened != epoch:
            raise OSError("not open here")
        have = len(self.image.log)
        if first <= have + 1:
            self.image.log += records[have + 1 - first :]
            self.image.chain = self.image.chain.extended(epoch, len(self.image.log))
        if synced:
            self.sync()
        self._answered()
        return Held(len(self.image.log), len(self.synced.log))

    def _promised(self, epoch: int) -> None:
        if epoch != self.image.promise:
            raise Stale(self.image.promise)

    def _answered(self) -> None:
        self.quiet.answered(self.clock)
        self.watch.heard(self.clock)
