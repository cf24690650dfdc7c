"""Four nodes of a world, of which three are members of a volume, and one that is to be.

The parts, stores, disks, sessions and etcd are those of tests/sim/cluster; there is no nemesis but
what a test does, and one writer, which knows what was acknowledged.
"""

import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from native import OP_FLUSH, OP_WRITE, Request
from tests.sim.cluster.clients import Session
from tests.sim.cluster.machine import OPTIONS, SEGMENT_BYTES
from tests.sim.cluster.metastore import SimMetaStore
from tests.sim.cluster.network import Network
from tests.sim.cluster.node import Node, VolumeSpec
from tests.sim.cluster.plan import Shape
from tests.sim.cluster.timeline import Timeline
from tests.sim.store_rig import KIB
from transport.group.acks import NodeId
from transport.group.changing import AGAIN_S
from transport.peer import messages as m
from transport.peer.wire import Frames
from volume.metastore import Change, ClusterRecords, Done, Outcome, Stored
from volume.metastore_records import ClusterRecord, GroupState, Mode, VolumeGroup

SIZE, CHUNK, BLOCK = 32 * KIB, 4 * KIB, 512
LOOK_S = 5.0
"""As often the daemon gives each part the volume's row."""


class MemberWorld:
    """`watcher` is told of each thing that happens between nodes or at etcd, by what it is."""

    def __init__(
        self, seed: int, *, mode: Mode = Mode.MIRROR, window_segments: int = 40, nodes: int = 4
    ) -> None:
        self.seed = seed
        self.timeline = Timeline()
        self.network = Network(self.timeline, str(seed), self._carried)
        self.metastore = SimMetaStore(self.timeline, str(seed))
        self.random = random.Random(f"members:{seed}")
        self.names: Sequence[str] = tuple(
            sorted(self.random.randbytes(16).hex() for _ in "abcde"[:nodes])
        )
        options = replace(OPTIONS, window_bytes=window_segments * SEGMENT_BYTES)
        shape = Shape(nodes, 3, 2, mode)
        uuid = self.random.randbytes(16)
        self.spec = VolumeSpec(uuid, "volume", SIZE, CHUNK, shape, 64 * KIB, options)
        self.nodes = {name: Node(self, name) for name in self.names}
        self.records = ClusterRecords(
            self.metastore.view("operator"), lambda: self.random.randbytes(16).hex()
        )
        self.watcher: Callable[[str], None] = lambda what: None
        commit = self.metastore.commit

        def committed(changes: Sequence[Change]) -> Outcome:
            outcome = commit(changes)
            self.watcher("commit")
            return outcome

        self.metastore.commit = committed  # type: ignore[method-assign]
        self.acked: dict[int, int] = {}
        """What each block was last acknowledged to have."""
        self.tried: dict[int, set[int]] = {}
        """What else it may have."""
        self.number = 0
        self._asked: set[int] = set()
        self.cuts = 0
        """How often a part that served gave that up."""
        self.found()

    # -- Surroundings of a node

    def note(self, what: str) -> None:
        self.cuts += what.endswith("serves no more")

    def count(self, what: str) -> None: ...
    def crashing(self, node: Node) -> None: ...
    def started(self, node: Node) -> None: ...
    def chosen(self, epoch: int, asked: Collection[str]) -> None: ...
    def made_anew(self, node: Node) -> None: ...
    def opened(self, node: Node, epoch: int, image: bytes) -> None:
        """What was acknowledged is there, whoever serves the volume."""
        self.check(image)

    def cut_client(self, session: Session) -> None: ...

    def _carried(self, source: str, target: str, frames: Frames) -> None:
        kind = m.KINDS[memoryview(frames[0])[5]].__name__
        if kind not in ("Ping", "Pong", "Hello", "Welcome"):
            self.watcher(kind)

    # -- life

    def found(self) -> None:
        for node in self.nodes.values():
            node.power_on()
        spec = self.spec
        group = VolumeGroup(
            *(spec.uuid.hex(), spec.name, 1, None, tuple(self.names[:3])),
            *(3, 2, spec.shape.mode),
            *(None, "main", GroupState.CLOSED),
        )
        for transaction in (
            self.records.found(ClusterRecord("c" * 32, 0)),
            self.records.create_volume(group),
        ):
            assert isinstance(self.records.commit(transaction), Done)
        for name in group.members:
            self.nodes[name].create(1)
        self.give_rows()
        self.until(lambda: self.row.state is GroupState.OPEN, "somebody serves it")

    def give_rows(self) -> None:
        """As the daemon does every few seconds (blockd/cluster/replacing.py)."""
        row = self.records.volume(self.spec.uuid.hex())
        for node in self.nodes.values():
            if node.part is not None and row is not None:
                part = node.part
                node.process.run(lambda part=part: part.noted(row))  # type: ignore[misc]
        self.timeline.after(LOOK_S, self.give_rows)

    def run(self, seconds: float) -> None:
        self.timeline.run(seconds)

    def until(self, reached: Callable[[], bool], what: str, seconds: float = 120.0) -> None:
        ends = self.timeline.now_s + seconds
        while not reached():
            assert self.timeline.now_s < ends, f"{what}: not within {seconds:g} s: {self.row}"
            assert self.timeline.step()

    # -- what there is

    @property
    def stored(self) -> Stored[VolumeGroup]:
        found = self.records.volume(self.spec.uuid.hex())
        assert found is not None
        return found

    @property
    def row(self) -> VolumeGroup:
        return self.stored.record

    def primary(self) -> Node | None:
        serving = [node for node in self.nodes.values() if node.serving is not None]
        return max(serving, key=lambda node: node.serving or 0, default=None)

    def whole(self) -> bool:
        """Whether each member of the row has all, and nobody else has a part."""
        primary = self.primary()
        if primary is None or primary.end() is None:
            return False
        row = self.row
        have = {name for name, node in self.nodes.items() if node.replica is not None}
        return have == set(row.members) and all(
            self.nodes[name].end() == primary.end() for name in row.members
        )

    # -- what is done

    def call(self, coming: str, replaces: str) -> None:
        """An operator has one node come in the place of another."""
        transaction = self.records.call_member(self.stored, coming, replaces)
        assert isinstance(self.records.commit(transaction), Done)

    def write(self, count: int = 1) -> None:
        """Blocks with numbers, and a flush, to whoever serves; until they are acknowledged, or it
        serves no more."""
        primary = self.primary()
        if primary is None:
            return
        for _ in range(count):
            self.number += 1
            block = self.random.randrange(SIZE // BLOCK)
            self.tried.setdefault(block, set()).add(self.number)
            data = self.number.to_bytes(8, "little") * (BLOCK // 8)
            self._ask(primary, Request(OP_WRITE, block * BLOCK, BLOCK, data), (block, self.number))
        self._ask(primary, Request(OP_FLUSH, 0, 0, b""), None)
        process = primary.process
        self.until(
            lambda: not self._asked or not process.alive or primary.serving is None,
            "writes are acknowledged",
            40.0,
        )
        self._asked.clear()

    def _ask(self, node: Node, request: Request, wrote: tuple[int, int] | None) -> None:
        self._asked.add(id(request))

        def done(requests: list[Request]) -> None:
            self._asked.discard(id(request))
            if wrote is not None and not requests[0].error:
                block, number = wrote
                self.acked[block] = max(number, self.acked.get(block, 0))

        node.process.run(lambda: node.volume.submit([request], done))

    def check(self, image: bytes) -> None:
        for block, number in self.acked.items():
            data = image[block * BLOCK : (block + 1) * BLOCK]
            found = int.from_bytes(data[:8], "little")
            assert data == found.to_bytes(8, "little") * (BLOCK // 8), "torn"
            assert found >= number, f"block {block} has {found}, {number} was acknowledged"
            assert found == number or found in self.tried[block]

    def settled(self, seconds: float = 200.0) -> None:
        """All is well in the end: each member has all, the same, and what was acknowledged."""
        self.until(self.whole, "all members have all, and nobody else a part", seconds)
        primary = self.primary()
        assert primary is not None
        self.write()
        self.run(AGAIN_S)
        image = primary.onlooker.image()
        self.check(image)
        for name in self.row.members:
            assert self.nodes[name].onlooker.image() == image
        assert primary.part is not None
        counted = {str(each.member) for each in primary.part.status().members if each.counts}
        assert counted == set(self.row.members)

    def node_of(self, member: NodeId | str) -> Node:
        return self.nodes[str(member)]
