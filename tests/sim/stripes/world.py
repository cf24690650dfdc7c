"""A world of stripes: nodes that pack the same volume, make stripes of cold packs, and lose things.

    StripeWorld(seed, acts).live() -> Told

Each node has its packs, index and shards on a simulated disk (`tests.stripe_nodes`), and makes its
rounds when it is its turn. Meanwhile nodes are killed, lose their power at any operation of the
disk or change of a row, lose an index, are away and come back, are lost for good; bits of shards
and packs go bad, shards vanish; devices are drained, and taken back; nodes come; etcd goes back to
an older state; data is trimmed and written again. After each act what disks hold is looked at
(`tests.sim.stripes.truth`): whatever nodes did by themselves took nothing away. The nemesis takes
no more than a stripe can do without, of what is whole wherever it is. In the end everybody is back,
and within some rounds every stripe has all its shards again and everybody reads what it has.
"""

import random
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from tests.sim.crash import survivors
from tests.sim.simdisk import PowerCut
from tests.sim.stripes.rules import broken_rule
from tests.sim.stripes.truth import Held, check, look, whole, whole_stripe
from tests.sim.world.stamps import Violation
from tests.stripe_nodes import COLD_S, CONDEMN_S, StripeCluster, StripeNode
from transport.errors import TransportError
from transport.packrow import PackRow, rows_from
from transport.shardfile import ShardName
from volume.errors import VolumeError
from volume.layout import KIND_DATA
from volume.packfile import ENTRY_HEADER_LENGTH

ACTS = {
    **{"round": 40, "all": 12, "wait": 6, "kill": 3, "cut": 5, "swap": 4, "index": 1, "away": 4},
    **{"back": 4, "rot shard": 6, "lose shard": 2, "rot pack": 2, "lose node": 1, "come": 2},
    **{"drain": 2, "take back": 1, "trim": 2, "write": 2, "note rows": 3, "old rows": 2},
}
HEALED_ROUNDS = 16
CHUNKS = 28
FEWEST = 3  # nodes


@dataclass
class Told:
    seed: int
    error: str = ""
    details: str = ""
    counts: Counter[str] = field(default_factory=Counter)
    lines: list[str] = field(default_factory=list)


class StripeWorld:
    def __init__(self, seed: int, acts: int, *, broken: str | None = None) -> None:
        self.seed = seed
        self._broken = broken
        rng = random.Random(f"stripes:{seed}")
        self._acts = rng.choices(list(ACTS), list(ACTS.values()), k=acts)
        self._cluster = StripeCluster(rng.choice((3, 4, 4, 5, 6)), rng.randrange(8, CHUNKS))
        self._cluster.record = True
        for node in self._cluster.nodes:
            node.crash()
        self._next = len(self._cluster.nodes)
        self._noted: list[PackRow] = []
        self._told = Told(seed)
        self._held = Held()

    def live(self) -> Told:
        told = self._told
        try:
            with broken_rule(self._broken):
                self._live()
        except KeyboardInterrupt:
            raise
        except BaseException as failure:
            told.error = f"{type(failure).__name__}: {failure}"
            told.details = "".join(traceback.format_exception(failure))
        return told

    def _live(self) -> None:
        self._cluster.rounds(1)
        self._held = look(self._cluster)
        for index, what in enumerate(self._acts):
            rng = random.Random(f"{self.seed}:{index}")
            self._told.counts[what] += 1
            self._told.lines.append(f"{index} {self._cluster.now:.0f} {what}")
            _ACTS[what](self, rng)
        self._heal()

    # -- what nodes do

    def _do(self, node: StripeNode, did: str, call: Callable[[], None]) -> None:
        """Something that a node does by itself, perhaps its last thing."""
        try:
            call()
        except PowerCut:
            pass
        except Exception:
            if not node.disk.is_off:  # it looks like a disk error to it
                raise
        for each in self._cluster.nodes:
            if each.disk.is_off:
                self._told.counts["struck"] += 1
                self._cut(each)
        self._look(did, by_itself=True)

    def _look(self, did: str, *, by_itself: bool) -> None:
        now = look(self._cluster)
        if by_itself:
            check(self._held, now, f"act {len(self._told.lines) - 1}, {did}")
        self._held = now
        self._told.counts["stripes"] = max(self._told.counts["stripes"], len(now.shards))

    def _turn(self, node: StripeNode) -> None:
        def turn() -> None:
            node.striper.quick()
            node.striper.round()
            node.collect()

        self._do(node, f"round of {node.id[-4:]}", turn)

    def _round(self, rng: random.Random) -> None:
        self._cluster.now += rng.choice((1.0, 10.0, COLD_S / 3))
        if up := self._up():
            self._turn(rng.choice(up))

    def _all(self, rng: random.Random) -> None:
        self._cluster.now += rng.choice((1.0, CONDEMN_S, COLD_S))
        nodes = self._up()
        rng.shuffle(nodes)
        for node in nodes:
            self._turn(node)

    def _wait(self, rng: random.Random) -> None:
        self._cluster.now += rng.uniform(0.0, 2 * COLD_S)

    def _up(self) -> list[StripeNode]:
        return [node for node in self._cluster.nodes if node.id not in self._cluster.away]

    # -- crashes

    def _kill(self, rng: random.Random) -> None:
        node = rng.choice(self._cluster.nodes)
        self._do(node, "start", node.crash)

    def _index(self, rng: random.Random) -> None:
        node = rng.choice(self._cluster.nodes)
        self._do(node, "start without index", lambda: node.crash(index=False))

    def _cut(self, node: StripeNode) -> None:
        """The power is gone, and what was not synced, perhaps; then it is back."""
        rng = random.Random(f"{self.seed}:cut:{len(self._told.lines)}:{node.id}")
        node.cut_at_swap = None
        node.open(survivors(node.disk.trace, rng), index=False)

    def _strike(self, rng: random.Random) -> None:
        """At some operation of the disk in a round of its own, or of another node."""
        node = rng.choice(self._cluster.nodes)
        node.disk.crash_at(rng.choice((1, 2, 3, 5, 8, 13, 21, 34)))
        self._round(rng)
        if up := self._up():
            self._turn(node if node in up else rng.choice(up))
        node.disk.crash_never()

    def _swap(self, rng: random.Random) -> None:
        """Right after a row has changed."""
        if up := self._up():
            node = rng.choice(up)
            node.cut_at_swap = node.swaps + rng.choice((1, 2, 3))
            self._cluster.now += rng.choice((1.0, CONDEMN_S, COLD_S))
            self._turn(node)
            node.cut_at_swap = None

    # -- what is taken away

    def _spare(
        self,
        without: StripeNode | None = None,
        name: ShardName | None = None,
        old: dict[bytes, PackRow] | None = None,
    ) -> bool:
        """Whether every stripe that somebody needs can do without a shard, or those of a node: with
        what its row names, or would name by `old`, as nobody looks for others."""
        rows = {row.pack_id: row for row in self._cluster.all_rows()} | (old or {})
        for stripe in self._held.shards:
            if stripe.pack_id not in self._held.needed:
                continue
            left = {
                each.number
                for node in self._cluster.nodes
                for each in node.server.names()
                if each.pack_id == stripe.pack_id
                and _is_named(rows.get(each.pack_id), each, node)
                and not (node is without and name in (None, each))
                and whole(node, each) == stripe
            }
            if len(left) < stripe.data:
                return False
        return True

    def _shard(self, rng: random.Random) -> tuple[StripeNode, ShardName] | None:
        found = [(node, name) for node in self._cluster.nodes for name in node.server.names()]
        if not found:
            return None
        node, name = rng.choice(found)
        return (node, name) if self._spare(node, name) else None

    def _rot_shard(self, rng: random.Random) -> None:
        if (found := self._shard(rng)) is not None:
            node, name = found
            size = node.disk.image().files[name.path].size
            node.disk.flip_bit(name.path, rng.randrange(size))
            self._told.counts["rotten shards"] += 1
            self._look("rot", by_itself=False)

    def _lose_shard(self, rng: random.Random) -> None:
        if (found := self._shard(rng)) is not None:
            node, name = found
            node.server.remove(name.path)
            self._told.counts["lost shards"] += 1
            self._look("a file gone", by_itself=False)

    def _rot_pack(self, rng: random.Random) -> None:
        """What one node has of some chunk. It cannot be repaired here: it is lost to that node,
        and to nobody else."""
        node = rng.choice(self._cluster.nodes)
        sealed = [each for each in node.packs.sealed() if each not in node.packs.striped]
        if not sealed:
            return
        number = rng.choice(sealed)
        data = [place for _, place in node.packs.footer(number) if place.kind == KIND_DATA]
        if data:
            place = rng.choice(data)
            at = place.offset + ENTRY_HEADER_LENGTH + rng.randrange(place.stored_length)
            node.disk.flip_bit(f"packs/{number:08x}.pack", at)
            self._told.counts["rotten packs"] += 1
            self._look("rot", by_itself=False)

    def _lose_node(self, rng: random.Random) -> None:
        """Its disk is lost, and an operator says so."""
        cluster = self._cluster
        node = rng.choice(cluster.nodes)
        if len(cluster.nodes) > FEWEST and self._spare(node):
            cluster.nodes.remove(node)
            cluster.away.discard(node.id)
            self._change_map("fail", node.id)
            self._told.counts["lost nodes"] += 1
            self._look("a disk lost", by_itself=False)

    def _go_away(self, rng: random.Random) -> None:
        node = rng.choice(self._cluster.nodes)
        self._cluster.away.add(node.id)
        for each in self._up():
            each.striper.trust.node_gone()

    def _back(self, rng: random.Random) -> None:
        if away := sorted(self._cluster.away):
            self._cluster.away.discard(rng.choice(away))

    # -- operators

    def _change_map(self, how: str, device: str) -> None:
        try:
            self._cluster.map = getattr(self._cluster.map, how)(device)
        except TransportError:
            self._told.counts["refused"] += 1

    def _come(self, rng: random.Random) -> None:
        cluster = self._cluster
        if len(cluster.nodes) < 7:
            node = StripeNode(cluster, self._next)
            self._next += 1
            cluster.nodes.append(node)
            if rng.random() < 0.5:
                node.fill()
            self._look("a node comes", by_itself=False)

    def _drain(self, rng: random.Random) -> None:
        self._change_map("drain", rng.choice(self._cluster.nodes).id)

    def _take_back(self, rng: random.Random) -> None:
        self._change_map("back", rng.choice(self._cluster.nodes).id)

    # -- the volume

    def _trim(self, rng: random.Random) -> None:
        """On the nodes that are there: the others have it a while longer."""
        first = rng.randrange(CHUNKS)
        for node in self._up():
            if node.root is not None:
                stop = first + rng.randrange(1, CHUNKS)
                self._do(node, "trim", lambda node=node, stop=stop: node.trim(first, stop))  # type: ignore[misc]

    def _write(self, rng: random.Random) -> None:
        """What was there before, perhaps: so chunks are found again, or stored anew."""
        numbers = rng.sample(range(CHUNKS), rng.randrange(1, CHUNKS // 2))
        for node in self._up():
            if node.root is not None:
                self._do(node, "write", lambda node=node: node.write(numbers))  # type: ignore[misc]

    # -- etcd

    def _note_rows(self, rng: random.Random) -> None:
        self._noted = self._cluster.all_rows()

    def _old_rows(self, rng: random.Random) -> None:
        """It goes back to what it was when that was noted."""
        rows = self._cluster.rows
        noted = {row.pack_id: row for row in self._noted}
        if not self._spare(old=noted):
            return
        for row in self._cluster.all_rows():
            after = noted.get(row.pack_id) or _no_record(row)
            assert row == after or rows.swap(row, after)
        there = {row.pack_id for row in self._cluster.all_rows()}
        for row in self._noted:
            if row.pack_id not in there:
                assert rows.swap(_no_record(row), row)
        self._told.counts["rows that went back"] += len(noted)

    # -- the end

    def _heal(self) -> None:
        cluster = self._cluster
        cluster.away.clear()
        self._told.lines.append("healed")
        for node in cluster.nodes:
            node.disk.crash_never()
            node.cut_at_swap = None
            self._change_map("back", node.id)
        self._rows_again()
        for number in range(HEALED_ROUNDS):
            cluster.now += (COLD_S, CONDEMN_S, 1.0)[number % 3]
            for node in cluster.nodes:
                self._turn(node)
        rows = {row.pack_id: row for row in cluster.all_rows()}
        for node in cluster.nodes:
            self._check_reads(node)
            for stub in node.home.stubs():
                row = rows.get(stub.pack_id)
                if row is None or row.removing or node.id not in row.users:
                    raise Violation(f"I10 node {node.id[-4:]} uses a stripe of which nobody knows")
        domains = len(cluster.map.usable())
        for row in rows.values():
            held = max(
                (len(n) for each, n in self._held.shards.items() if each.digest == row.digest),
                default=0,
            )
            # With fewer domains than shards none is made again, which status says.
            if row.users and not row.removing and held < len(row.shards) <= domains:
                raise Violation(f"I10 a stripe has {held} of {len(row.shards)} shards in the end")

    def _rows_again(self) -> None:
        """What etcd has forgotten is made again of what shards say, as an operator has it done."""
        cluster = self._cluster
        known = {row.pack_id for row in cluster.all_rows()}
        found = [
            (node.id, stripe, name.number)
            for node in cluster.nodes
            for name in node.server.names()
            if name.pack_id not in known and (stripe := whole_stripe(node, name)) is not None
        ]
        for row in rows_from(found).values():
            assert cluster.rows.swap(_no_record(row), row)
            self._told.counts["rows made again"] += 1

    def _check_reads(self, node: StripeNode) -> None:
        there = self._held.there[node.id]
        for at, chunk_id in node.ids():
            if chunk_id not in there:
                continue
            try:
                found = node.read(chunk_id)
            except VolumeError as error:
                raise Violation(f"I11 node {node.id[-4:]} cannot read {at}: {error}") from error
            if found != node.written(at):
                raise Violation(f"I1 node {node.id[-4:]} reads something else at {at}")
            self._told.counts["chunks read"] += 1


def _is_named(row: PackRow | None, name: ShardName, node: StripeNode) -> bool:
    return row is None or not row.shards or row.has(node.id, name)


def _no_record(row: PackRow) -> PackRow:
    return replace(row, shards=(), copies=(), coming=(), owner="", users=(), joining=())


_ACTS: dict[str, Callable[[StripeWorld, random.Random], None]] = {
    "round": StripeWorld._round,
    "all": StripeWorld._all,
    "wait": StripeWorld._wait,
    "kill": StripeWorld._kill,
    "cut": StripeWorld._strike,
    "swap": StripeWorld._swap,
    "index": StripeWorld._index,
    "away": StripeWorld._go_away,
    "back": StripeWorld._back,
    "rot shard": StripeWorld._rot_shard,
    "lose shard": StripeWorld._lose_shard,
    "rot pack": StripeWorld._rot_pack,
    "lose node": StripeWorld._lose_node,
    "come": StripeWorld._come,
    "drain": StripeWorld._drain,
    "take back": StripeWorld._take_back,
    "trim": StripeWorld._trim,
    "write": StripeWorld._write,
    "note rows": StripeWorld._note_rows,
    "old rows": StripeWorld._old_rows,
}
