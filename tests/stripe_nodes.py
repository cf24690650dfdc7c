"""Nodes of a cluster as far as stripes know them: packs, index and shards on a simulated disk each,
rows and device map in one MetaStore. No threads, no sockets; a clock that tests set."""

import itertools
import random
from collections.abc import Iterator
from dataclasses import replace

from tests.shard_nodes import over_the_wire
from tests.sim.image import Image
from tests.sim.simdisk import PowerCut, SimDisk
from transport.devicemap import Device, DeviceMap, Level
from transport.packrecords import PackRecords
from transport.packrow import PackRow
from transport.peer import messages as m
from transport.peer.wire import Message
from transport.remoteshards import NoAnswer, RemoteDevice, refusal
from transport.shardserver import ShardServer
from transport.stripestate import StripePace, Surroundings
from transport.striping import Striper
from volume.chunks import ChunkStore
from volume.disk import Disk
from volume.gc import Collector, Hooks, Pace, Root
from volume.index import ChunkIndex
from volume.kv import MemoryKeyValue
from volume.layout import ZERO_ID, ChunkId
from volume.manifest import Manifests
from volume.metastore import ClusterRecords
from volume.metastore_embedded import EmbeddedMetaStore
from volume.packs import Packs
from volume.stripedpack import StripeUnavailable
from volume.stripehome import StripeHome

PACK_BYTES = 64 << 10
COLD_S = 100.0
CONDEMN_S = 50.0


def content(number: int) -> bytes:
    return random.Random(number).randbytes(4096)


class StripeCluster:
    """`count` nodes that have a volume of `chunks` chunks, packed by each in its own order."""

    def __init__(self, count: int = 3, chunks: int = 40) -> None:
        self.now = 0.0
        self.record = False
        """Whether disks opened from now on keep what they did, for power cuts."""
        self.kv = MemoryKeyValue()
        self.chunks = set(range(chunks))
        tokens = itertools.count(1)
        self.records = ClusterRecords(EmbeddedMetaStore(self.kv), lambda: f"{next(tokens):032x}")
        self.rows = PackRecords(self.records)
        self.map = DeviceMap(0, {})
        self.away: set[str] = set()
        self.not_there: set[str] = set()
        """Devices whose nodes are there with another one."""
        self.nodes = [StripeNode(self, number) for number in range(count)]
        for node in self.nodes:
            node.fill()

    def add(self) -> "StripeNode":
        """One more node, without any of the volume."""
        node = StripeNode(self, len(self.nodes))
        self.nodes.append(node)
        return node

    def all_rows(self) -> list[PackRow]:
        return list(self.rows.all())

    def rounds(self, count: int = 1, step_s: float = 1.0) -> None:
        """Rounds of all nodes that are there, and gc after each."""
        for _ in range(count):
            self.now += step_s
            for node in self.nodes:
                if node.id not in self.away:
                    node.striper.quick()
                    node.striper.round()
                    node.collect()

    def check_reads(self) -> None:
        """Everybody who is there reads all that he has."""
        for node in self.nodes:
            if node.id not in self.away:
                node.check()

    def check(self) -> None:
        """What holds at any moment: everybody reads all that he has, and whoever has a stub is a
        user of a stripe that is not going."""
        rows = {row.pack_id: row for row in self.all_rows()}
        for node in self.nodes:
            if node.id in self.away:
                continue
            for stub in node.home.stubs():
                row = rows[stub.pack_id]
                assert row.shards, row
                assert not row.removing
                assert node.id in row.users, (node.id, row.users)
            node.check()


class StripeNode:
    def __init__(self, cluster: StripeCluster, number: int) -> None:
        self.cluster = cluster
        self.number = number
        self.id = f"{number + 1:032x}"
        """Of the node, and of its device."""
        self.order = random.Random(number)
        self.pace = StripePace(True, COLD_S, CONDEMN_S, Level.HOST)
        self.swaps = 0
        self.cut_at_swap: int | None = None
        self.reads: set[int] = set()
        """Numbers of packs that clients read."""
        self.root: Root | None = None
        device = Device(self.id, self.id, "s", "r", f"h{number}", 1 << 40)
        cluster.map = cluster.map.add(device)
        self.index_kv = MemoryKeyValue()
        self.open(None)

    def open(self, image: Image | None, *, index: bool = True) -> None:
        """Begin, or go on with what a crash has left; the index is lost, unless `index`."""
        self.disk = SimDisk(image, record=self.cluster.record, capacity=1 << 30)
        uuid = bytes.fromhex(self.id)
        self.index_kv = MemoryKeyValue(self.index_kv.snapshot() if index else None)
        self.index = ChunkIndex(self.index_kv, uuid)
        self.packs = Packs(
            self.disk, uuid, pack_bytes=PACK_BYTES, index=self.index if index else None
        )
        if not index:
            self.index.rebuild(self.packs)
        self.store = ChunkStore(self.packs, self.index)
        self.manifests = Manifests(self.store)
        self.collector = Collector(
            self.store,
            self.manifests,
            Hooks(lambda: [] if self.root is None else [self.root]),
            lambda: self.cluster.now,
            Pace(condemn_s=0.0),
        )
        self.home = StripeHome(
            *(self.store, self.collector, uuid, lambda call: call(), lambda: self.cluster.now),
            self.take_reads,
        )
        self.server = ShardServer(self.disk, uuid, 0)
        self.swaps = 0
        self.striper = self.make_striper()
        self.packs.striped.source = self.striper.reads
        self.packs.striped.trusted = frozenset()  # as in the daemon: before its first round
        self.packs.striped.looks = self.striper.trust.begin

    def make_striper(self) -> Striper:
        return Striper(
            *(self.id, self.server, _Rows(self), self.home),
            Surroundings(
                devices=lambda: self.cluster.map,
                nodes=lambda: [node.id for node in self.cluster.nodes],
                disk_of=self.disk_of,
                gone=lambda device: not self.cluster.map.devices[device].readable,
                used=lambda pack_id: any(
                    node.id in self.cluster.away or node.striper.uses(pack_id)
                    for node in self.cluster.nodes
                ),
                rank=lambda: sum(
                    node.id < self.id
                    for node in self.cluster.nodes
                    if node.id not in self.cluster.away
                ),
                tell=self.tell,
                emptied=self.emptied,
                told=lambda: {
                    node.id: lacking
                    for node in self.cluster.nodes
                    if node is not self
                    and node.id not in self.cluster.away
                    and (lacking := node.striper.upkeep.lacking) is not None
                },
            ),
            self.pace,
            monotonic=lambda: self.cluster.now,
            wait=lambda seconds: None,
        )

    def fill(self) -> None:
        """Pack the volume, in an order of this node's own."""
        numbers = sorted(self.cluster.chunks)
        self.order.shuffle(numbers)
        changes = {number: self.store.put(content(number)) for number in numbers}
        root = self.manifests.update(ZERO_ID, 2, changes)
        self.store.sync()
        self.packs.seal()
        self.root = Root(root, 2)
        self.collector.collect()

    def write(self, numbers: list[int]) -> None:
        """Put these chunks in place, whatever was there."""
        assert self.root is not None
        changes = {number: self.store.put(content(number)) for number in numbers}
        root = self.manifests.update(self.root.root, 2, changes)
        self.store.sync()
        self.root = Root(root, 2)

    def trim(self, first: int, stop: int) -> None:
        assert self.root is not None
        self.root = Root(self.manifests.update(self.root.root, 2, {}, [(first, stop)]), 2)
        self.store.sync()

    def collect(self) -> None:
        self.collector.collect()

    def take_reads(self) -> bytes:
        bits = sum(1 << number for number in self.reads)
        return bits.to_bytes(8, "little")

    def ids(self) -> Iterator[tuple[int, ChunkId]]:
        if self.root is not None:
            for at, _, new in self.manifests.diff(ZERO_ID, 2, self.root.root, 2):
                yield at, new

    def check(self) -> None:
        for number, chunk_id in self.ids():
            assert self.store.get(chunk_id, verify=True) == content(number), number

    def read(self, chunk_id: ChunkId) -> bytes:
        return self.store.get(chunk_id, verify=True)

    @staticmethod
    def written(number: int) -> bytes:
        return content(number)

    def own_bytes(self) -> int:
        return self.packs.total_bytes

    def shards(self) -> int:
        return len(self.server.names())

    # -- crashes

    def crash(self, *, index: bool = True) -> None:
        """Killed, and there again."""
        self.cut_at_swap = None
        self.open(self.disk.image(), index=index)

    def disk_of(self, device: str, writing: bool) -> Disk | None:
        found = self.cluster.map.devices.get(device)
        if found is None or not found.readable or device in self.cluster.away:
            return None
        if device in self.cluster.not_there:
            return None
        if device == self.id:
            return self.disk
        identity = bytes.fromhex(device)
        return RemoteDevice(self.ask, identity, identity, 1.0)

    def ask(self, node: bytes, message: m.Request, timeout_s: float) -> Message:
        if node.hex() in self.cluster.away:
            raise NoAnswer(f"node {node.hex()} is not connected")
        server = next(each.server for each in self.cluster.nodes if each.id == node.hex())
        request = over_the_wire(message)
        assert isinstance(request, m.PutShard | m.FinishShard | m.DropShard | m.GetShard)
        try:
            answer = over_the_wire(server.answer(request))
        except PowerCut as error:
            raise NoAnswer(f"node {node.hex()} died: {error}") from error
        if isinstance(answer, m.Error):
            raise refusal(answer)
        return answer

    def tell(self, pack_id: bytes) -> None:
        for node in self.cluster.nodes:
            if node is not self and node.id not in self.cluster.away:
                node.striper.hint(pack_id)

    def emptied(self, device: str) -> None:
        self.cluster.map = self.cluster.map.emptied(device)


class _Rows(PackRecords):
    """Rows whose n-th change is the last thing that the node does."""

    def __init__(self, node: StripeNode) -> None:
        super().__init__(node.cluster.records)
        self._node = node

    def swap(self, before: PackRow, after: PackRow) -> bool:
        if self._node.disk.is_off:
            raise PowerCut("it is dead")
        done = super().swap(before, after)
        self._node.swaps += 1
        if self._node.swaps == self._node.cut_at_swap:
            self._node.disk.power_off()
            raise PowerCut(f"after swap {self._node.swaps}")
        return done


def striped(count: int = 3) -> StripeCluster:
    """All cold packs have become stripes, and no copy is left."""
    cluster = StripeCluster(count)
    cluster.rounds(1)
    cluster.rounds(4, COLD_S)
    return cluster


__all__ = ["StripeCluster", "StripeNode", "StripeUnavailable", "replace", "striped"]
