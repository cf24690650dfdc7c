"""What the disks of all nodes hold of packs and stripes, whatever any row or node says of it.

A chunk that a node needs *is there* when its disk has a whole copy of it in a pack, or when it is
to be found in a stripe of which so many whole shards are on disks of the cluster, wherever, as it
takes to read it. What is there stays there, whatever nodes do by themselves: only damage, and
disks that are lost, take anything away. And of a stripe in which some node finds chunks no whole
shard goes before there is another one of its number.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from tests.sim.world.stamps import Violation
from tests.stripe_nodes import StripeCluster, StripeNode
from transport.shardfile import ShardFile, ShardName, Stripe
from volume.errors import VolumeError
from volume.layout import ChunkId


class Of(NamedTuple):
    """A stripe."""

    pack_id: bytes
    digest: bytes
    data: int


@dataclass(slots=True)
class Held:
    """What there is at one moment."""

    shards: dict[Of, set[int]] = field(default_factory=dict)
    """Numbers of the whole ones."""
    needed: set[bytes] = field(default_factory=set)
    """Packs of stripes in which somebody finds chunks."""
    wanted: dict[str, set[ChunkId]] = field(default_factory=dict)
    """By node: chunks of its volume..."""
    there: dict[str, set[ChunkId]] = field(default_factory=dict)
    """...and those of them that can be read, once every node is there."""


def look(cluster: StripeCluster) -> Held:
    held = Held()
    for node in cluster.nodes:
        for name in node.server.names():
            if (stripe := whole(node, name)) is not None:
                held.shards.setdefault(stripe, set()).add(name.number)
    readable = {each.pack_id for each, numbers in held.shards.items() if len(numbers) >= each.data}
    for node in cluster.nodes:
        stubs = {stub.number: stub.pack_id for stub in node.home.stubs()}
        held.needed |= set(stubs.values())
        wanted = {chunk_id for _, chunk_id in node.ids()}
        held.wanted[node.id] = wanted
        held.there[node.id] = {
            chunk_id for chunk_id in wanted if _is_there(node, chunk_id, stubs, readable)
        }
    return held


def whole(node: StripeNode, name: ShardName) -> Of | None:
    """Of which stripe a shard is that is all there; None: it is damaged."""
    stripe = whole_stripe(node, name)
    return None if stripe is None else Of(name.pack_id, stripe.digest, name.data)


def whole_stripe(node: StripeNode, name: ShardName) -> Stripe | None:
    try:
        with contextlib.closing(ShardFile(node.disk, name)) as shard:
            shard.verify()
            return shard.stripe
    except VolumeError:
        return None


def _is_there(
    node: StripeNode, chunk_id: ChunkId, stubs: dict[int, bytes], readable: set[bytes]
) -> bool:
    place = node.index.get(chunk_id)
    if place is None:
        return False
    if place.pack in stubs:
        return stubs[place.pack] in readable
    try:
        node.packs.read(place, chunk_id)
    except VolumeError:
        return False
    return True


def check(before: Held, after: Held, did: str) -> None:
    """What nodes have done by themselves has taken nothing away. Violation."""
    for node, there in before.there.items():
        gone = (there & after.wanted.get(node, set())) - after.there.get(node, set())
        if gone:
            raise Violation(
                f"I9 {did}: {len(gone)} chunks of node {node[-4:]} are nowhere any more"
            )
    for stripe, gone_shards in _gone(before, after):
        raise Violation(
            f"I10 {did}: shards {sorted(gone_shards)} of {stripe.pack_id.hex()[:8]} are nowhere "
            "any more, and its stripe is needed"
        )


def _gone(before: Held, after: Held) -> Iterator[tuple[Of, set[int]]]:
    for stripe, numbers in before.shards.items():
        gone = numbers - after.shards.get(stripe, set())
        if gone and stripe.pack_id in before.needed and stripe.pack_id in after.needed:
            yield stripe, gone
