"""A primary: joins the other members, then serves clients. May be a ghost, and not know yet."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tests.takeover.world import Record, Stale
from transport.group.acks import Acks, Held, NodeId
from transport.group.chain import Chain
from transport.group.lease import Lease
from transport.group.takeover import task_of
from volume.metastore_records import Mode, VolumeGroup

if TYPE_CHECKING:
    from tests.takeover.node import Node


class Leader:
    def __init__(self, node: "Node", group: VolumeGroup) -> None:
        self.node = node
        self.world = node.world
        self.epoch = group.epoch
        self.start = start = len(node.image.log)
        self.serving = False
        self.wanted = wanted = group.write_quorum
        self.chain = node.image.chain
        self.base = node.image.log.copy()
        self.lease = Lease(node.id, self.world.ids, wanted)
        self.acks = Acks(self.world.ids, wanted, group.mode, start)
        self.noted: set[NodeId] = set()
        self.busy: set[NodeId] = set()
        self.reads: list[tuple[list[Record], int]] = []
        node.image.opened = self.epoch
        node.image.chain = node.image.chain.extended(self.epoch, start)
        node.sync()
        self.noted.add(node.id)
        for other in self.world.ids:
            if other != node.id:
                self._join(other)
        self._maybe_led()

    @property
    def alive(self) -> bool:
        return self.node.primary is self

    def _ask(
        self, other: NodeId, do: Callable[["Node"], Any], done: Callable[[Any], None], again: Any
    ) -> None:
        """A request to a member; after a failure, `again`."""

        def failed(error: Exception) -> None:
            if not self.alive:
                return
            if isinstance(error, Stale):
                self._fenced(error.epoch)
            elif again is not None:
                self.node.later(0.5, lambda: again(other) if self.alive else None)
            else:
                self.busy.discard(other)

        def ended(result: Any) -> None:
            if self.alive:
                done(result)

        target = self.world.nodes[other]
        self.world.call(self.node, target, lambda: do(target), ended, failed)

    def _join(self, other: NodeId) -> None:
        self._ask(
            other,
            lambda target: target.seal(self.epoch, self.node),
            lambda found: self._sealed(other, found[1]),
            self._join,
        )

    def _sealed(self, other: NodeId, chain: Chain) -> None:
        task = task_of(other, chain, self.chain, self.node.id)
        assert task.keep is not None
        self._ask(
            other,
            lambda target: target.fit(self.epoch, self.base, self.chain),
            lambda _: self._fitted(other),
            self._join,
        )

    def _fitted(self, other: NodeId) -> None:
        sent = self.node.clock
        self.lease.asked(other, sent)
        self._ask(
            other,
            lambda target: target.open(self.epoch, self.start),
            lambda _: self._noted(other, sent),
            self._join,
        )

    def _noted(self, other: NodeId, sent: float) -> None:
        self.lease.answered(other, sent)
        self.noted.add(other)
        self._maybe_led()
        if self.alive:
            self._send(other)

    def _maybe_led(self) -> None:
        run = self.node.takeover
        if len(self.noted) >= self.wanted and run is not None and not self.serving:
            self.node.soon(lambda: self.node.carry_out(run.led(self.node.clock)))

    def serve(self) -> None:
        self.serving = True
        self.world.judge.serve(self.node.id, self.epoch, self.node.image.log)
        self.heard(self.node.id, Held(len(self.node.image.log), len(self.node.synced.log)))
        self._client()

    # -- clients

    def _client(self) -> None:
        """A write or a read now and then, for as long as it is there."""
        if not self.alive:
            return
        rng = self.world.rng
        if rng.random() < 0.5:
            self.write()
        else:
            self.read()
        self.node.later(rng.uniform(0.05, 0.6), self._client)

    def write(self) -> None:
        image = self.node.image
        for _ in range(self.world.rng.randint(1, 3)):
            image.log.append((self.epoch, next(self.world.number)))
        image.chain = image.chain.extended(self.epoch, len(image.log))
        synced = self.world.mode is Mode.STRICT
        if synced:
            self.node.sync()
        self.heard(self.node.id, Held(len(image.log), len(self.node.synced.log)))
        for other in self.world.ids:
            if other in self.noted and other != self.node.id:
                self._send(other)

    def _send(self, other: NodeId) -> None:
        if other in self.busy:
            return
        self.busy.add(other)
        sent = self.node.clock
        self.lease.asked(other, sent)
        records = self.node.image.log[self.start :]
        strict = self.world.mode is Mode.STRICT

        def done(held: Held) -> None:
            self.busy.discard(other)
            self.lease.answered(other, sent)
            self.heard(other, held)
            if held.received < len(self.node.image.log):
                self._send(other)

        first = self.start + 1
        self._ask(
            other, lambda target: target.append(self.epoch, first, records, strict), done, None
        )

    def heard(self, other: NodeId, held: Held) -> None:
        if not self.serving:
            return
        judge = self.world.judge
        before = self.acks.acked
        self.acks.heard(other, held)
        log = self.node.image.log
        if self.acks.acked > before:
            judge.writes += self.acks.acked - before
            judge.show(log[: self.acks.acked])
        ready = [each for each in self.reads if len(each[0]) <= self.acks.acked]
        self.reads = [each for each in self.reads if len(each[0]) > self.acks.acked]
        for state, shown in ready:
            self._ready(state, shown)

    def read(self) -> None:
        log, shown = self.node.image.log, len(self.world.judge.shown)
        # Of what was written last, or of other blocks.
        state = log.copy() if self.world.rng.random() < 0.5 else log[: self.acks.acked]
        if len(state) <= self.acks.acked:
            self._ready(state, shown)
        else:
            self.reads.append((state, shown))

    def _ready(self, state: list[Record], shown: int) -> None:
        """The data is there; a pause may come before the clock is looked at."""

        def look() -> None:
            if self.lease.may_read(self.node.clock) and self.alive:
                self.world.judge.read(self.epoch, state, shown)

        self.node.later(self.world.rng.uniform(0.0, 0.002), look)

    def tick(self) -> None:
        for other in self.lease.to_ask(self.node.clock):
            if other in self.noted:
                self._send(other)

    def _fenced(self, epoch: int) -> None:
        run = self.node.takeover
        if not self.serving and run is not None:
            self.node.carry_out(run.fenced(epoch, self.node.clock))
        else:
            self.node.drop()
