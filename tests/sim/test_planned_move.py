"""How long a volume is not served when it is moved on purpose, counted in what happens one after
the other: messages, waits for a disk, transactions.

In these worlds nothing else takes time, and each of the three takes another power of a thousand:
so the length of the pause, which is the world's own time, is that count written in digits. A wait
of any other kind (for a lease, for a member that says nothing, before something is tried again) is
longer by far than all of them, and would be seen as well.
"""

import itertools
from collections.abc import Callable

import pytest

from native import OP_READ, OP_WRITE, Request
from tests.sim.cluster import around, plan
from tests.sim.cluster.metastore import MetaStoreWeather
from tests.sim.cluster.network import Weather
from tests.sim.cluster.node import Node
from tests.sim.cluster.plan import Shape
from tests.sim.cluster.timeline import NS
from tests.sim.cluster.world import ClusterWorld
from tests.sim.world.plan import Plan
from transport.group.link import State
from transport.peer import messages as m
from transport.peer.wire import Frames
from volume.metastore_records import Mode

DISK_NS, MESSAGE_NS, TRANSACTION_NS = 1_000, 1_000_000, 1_000_000_000
SETTLED_S = 60.0
BLOCK = 512


class CalmWorld(ClusterWorld):
    """Three nodes, no clients and no accidents."""

    def __init__(self) -> None:
        super().__init__(Plan(_seed(), plan.CALM, ()))
        message_s, half_s = MESSAGE_NS / NS, TRANSACTION_NS / NS / 2
        self.network.weather = Weather(fastest_s=message_s, slowest_s=message_s)
        # There and back.
        self.metastore.weather = MetaStoreWeather(fastest_s=half_s, slowest_s=half_s)
        self.sealing: Callable[[str, str], None] = lambda source, target: None
        """Called before a SEAL arrives."""
        self.closed_ns = self.opened_ns = 0

    def begin(self) -> Node:
        """The node that serves the volume, with everybody in step."""
        for each in self.nodes.values():
            each.power_on()
        self.truth.found_cluster()
        self._run(SETTLED_S, self._in_step)
        primary = self.primary()
        assert primary is not None
        assert self._in_step()
        return primary

    def _in_step(self) -> bool:
        primary = self.primary()
        if primary is None or primary.part is None:
            return False
        others = [each for each in primary.part.status().members if each.member != primary.name]
        return len(others) == 2 and all(each.state == State.STEP.value for each in others)

    def moved(self, source: Node, target: Node) -> tuple[int, int, int]:
        """Move the volume: messages, waits for disks and transactions, one after the other, from
        the moment at which it is not served any more to the one at which it is."""
        told: list[str | None] = []
        source.move_to(target.name, told.append)
        self._run(SETTLED_S, lambda: bool(told))
        assert told == [None]
        assert self.primary() is target
        messages, left = divmod(self.opened_ns - self.closed_ns, MESSAGE_NS)
        transactions, messages = divmod(messages, TRANSACTION_NS // MESSAGE_NS)
        disks, left = divmod(left, DISK_NS)
        assert left == 0, "something else was waited for"
        return messages, disks, transactions

    def note(self, what: str) -> None:
        if what.endswith("serves no more"):
            self.closed_ns = self.timeline.now_ns
        super().note(what)

    def opened(self, node: Node, epoch: int, image: bytes) -> None:
        self.opened_ns = self.timeline.now_ns  # nobody judges what it reads as: that is its test's

    def _carried(self, source: str, target: str, frames: Frames) -> None:
        if memoryview(frames[0])[5] == m.Seal.TYPE:
            self.sealing(source, target)
        super()._carried(source, target, frames)


def _seed() -> int:
    """Of a world of three, two of which have to have what is acknowledged."""
    wanted = Shape(3, 3, 2, Mode.MIRROR)
    return next(s for s in itertools.count(1) if plan.drawn_shape(s, plan.CALM) == wanted)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> CalmWorld:
    monkeypatch.setattr(around.SimAround, "_work_s", lambda _: DISK_NS / NS)
    return CalmWorld()


def test_a_planned_move_waits_for_five_messages_and_no_transaction(world: CalmWorld) -> None:
    primary = world.begin()
    for target in [node for node in world.nodes.values() if node is not primary]:
        # The promise of who stops. Asked by the primary that is to be, it promises again, and W
        # note that the epoch is open.
        assert world.moved(primary, target) == (1 + 2 + 2, 4, 0)
        primary = target


def test_a_write_under_way_costs_a_planned_move_one_round_trip_more(world: CalmWorld) -> None:
    """Who is to serve refuses it, as it has promised, and fetches it from who served."""
    primary = world.begin()
    (target, _) = [node for node in world.nodes.values() if node is not primary]
    write = Request(OP_WRITE, 0, BLOCK, b"w" * BLOCK)

    def at_the_last_moment(source: str, to: str) -> None:
        if to == primary.name and world.primary() is primary:
            primary.volume.submit([write], lambda _: None)

    world.sealing = at_the_last_moment
    messages, _, transactions = world.moved(primary, target)
    assert (messages, transactions) == (1 + 2 + 2 + 2, 0)
    assert target.onlooker.image()[:BLOCK] == b"w" * BLOCK


def test_who_takes_a_volume_over_as_planned_reads_at_once(world: CalmWorld) -> None:
    """Its lease is there when clients are let in: OPEN was answered by W."""
    primary = world.begin()
    (target, _) = [node for node in world.nodes.values() if node is not primary]
    world.moved(primary, target)
    done: list[Request] = []
    target.volume.submit([Request(OP_READ, 0, BLOCK)], done.extend)
    assert [request.error for request in done] == [0]
