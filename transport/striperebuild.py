"""Rows of stripes that the MetaStore has lost, made again from what shards say of themselves.

Each node tells which shards are on its device, by their headers, and of which stripes it has stubs
(`listing`); `rebuild` makes rows of that. A row that is there stays as it is, whatever it says:
rows are only made where there is none, by a transaction that fails otherwise.

    a stub somewhere, enough shards      a row, with the nodes that have a stub as its users
    a stub somewhere, too few shards     no row: it could not be read; again when more are there
    no stub anywhere                     no row: nobody needs it, and each node tidies its own away

A node that is away may have shards and stubs: its shards count as gone, to be computed anew, and it
counts as a user of everything, so that nothing that it needs is let go. Its next round corrects
that. So a crash, or running it twice, leaves rows that are true.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Final

from transport.errors import TransportError
from transport.packrecords import MAX_USERS, PackRecords
from transport.packrow import PackRow, rows_from
from transport.peer import messages as m
from transport.shardfile import ShardFile, ShardName
from transport.shardserver import ShardServer
from transport.stripes import READ_ERRORS

FIRST: Final = bytes(32)


class CannotRebuild(TransportError):
    """Rows of stripes are not made again."""

    code = "cannot_rebuild_rows"


@dataclass(frozen=True, slots=True)
class ShardFacts:
    """What a shard says of its stripe; as `transport.shardfile.Stripe` has it."""

    pack_id: bytes
    pack_size: int
    data: int
    parity: int
    shard_length: int
    digest: bytes

    @property
    def width(self) -> int:
        return self.data + self.parity


@dataclass(slots=True)
class Found:
    """What nodes have told."""

    shards: list[tuple[str, ShardFacts, int]] = field(default_factory=list)
    """Device, stripe, number."""
    stubs: dict[bytes, set[str]] = field(default_factory=dict)
    """By pack, which nodes have one."""
    damaged: int = 0
    """Files of shards that cannot be used."""

    def add(self, node: str, told: m.ShardList) -> None:
        device = told.device.hex()
        for pack_id, data, parity, number, size, length, digest in told.shards:
            facts = ShardFacts(pack_id, size, data, parity, length, digest)
            if number < facts.width and size and length:
                self.shards.append((device, facts, number))
        for pack_id in told.stubs:
            self.stubs.setdefault(pack_id, set()).add(node)
        self.damaged += told.damaged

    def merge(self, other: "Found") -> None:
        self.shards += other.shards
        for pack_id, nodes in other.stubs.items():
            self.stubs.setdefault(pack_id, set()).update(nodes)
        self.damaged += other.damaged


@dataclass(slots=True)
class Rebuilt:
    made: int = 0
    kept: int = 0
    """Rows that are there."""
    unused: int = 0
    """Stripes without a row that nobody finds chunks in."""
    too_few: list[bytes] = field(default_factory=list)
    """Packs that somebody finds chunks in, and of which there are too few shards."""


def listing(server: ShardServer, stubs: Iterable[bytes], after: bytes) -> m.ShardList:
    """The shards of a device, and which of these stripes there are stubs of, behind a pack id: of
    MAX_LISTED packs at most. OSError."""
    names = sorted(name for name in server.names() if name.pack_id > after)
    by_pack = {pack_id: list(found) for pack_id, found in groupby(names, lambda each: each.pack_id)}
    own = {pack_id for pack_id in stubs if pack_id > after}
    packs = sorted({*by_pack, *own})
    told = packs[: m.MAX_LISTED]
    shards = []
    damaged = 0
    for name in (each for pack_id in told for each in by_pack.get(pack_id, ())[: m.MAX_OF_PACK]):
        facts = _facts(server, name)
        if facts is None:
            damaged += 1
        else:
            shards.append((*name, facts.pack_size, facts.shard_length, facts.digest))
    return m.ShardList(
        server.device,
        tuple(shards),
        damaged,
        tuple(pack_id for pack_id in told if pack_id in own),
        told[-1] if len(told) < len(packs) else FIRST,
    )


def _facts(server: ShardServer, name: ShardName) -> ShardFacts | None:
    try:
        shard = ShardFile(server.disk, name)
    except READ_ERRORS:
        return None
    try:
        stripe = shard.stripe
        sizes = (stripe.pack_size, stripe.data, stripe.parity, stripe.shard_length)
        return ShardFacts(name.pack_id, *sizes, stripe.digest)
    finally:
        shard.close()


def rebuild(
    found: Found, away: Collection[str], records: PackRecords, *, dry_run: bool = False
) -> Rebuilt:
    """`away`: nodes of the cluster that have told nothing. MetaStoreUnavailable, CorruptRecord,
    CannotRebuild: with what was made until then."""
    there = {each.pack_id if isinstance(each, PackRow) else each for each in records.listing()}
    rows = rows_from(found.shards)
    done = Rebuilt()
    for pack_id in sorted({*(facts.pack_id for _, facts, _ in found.shards), *found.stubs}):
        users = tuple(sorted({*found.stubs.get(pack_id, ()), *away}))
        row = rows.get(pack_id)
        if pack_id in there:
            done.kept += 1
        elif not users:
            done.unused += 1
        elif row is None:
            if pack_id in found.stubs:
                done.too_few.append(pack_id)
        elif len(users) > MAX_USERS:
            raise CannotRebuild(f"{len(users)} nodes would be users of a stripe, {MAX_USERS} can")
        elif dry_run or _put(records, replace(row, users=users)):
            done.made += 1
        else:  # somebody has made one meanwhile
            done.kept += 1
    return done


def _put(records: PackRecords, row: PackRow) -> bool:
    return records.swap(PackRow(row.pack_id, row.size), row)
