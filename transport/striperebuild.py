"""Rows of stripes that the MetaStore has lost, made again from what shards say of themselves.

Each node tells which shards are on its device, by their headers, and of which stripes it has stubs
(`ShardListing`); `rebuild` makes rows of that. A row that is there stays as it is, whatever it
says: rows are only made where there is none, by a transaction that fails otherwise.

    a stub somewhere, enough shards      a row, with the nodes that have a stub as its users
    a stub somewhere, too few shards     no row: it could not be read; again when more are there
    no stub anywhere                     no row: nobody needs it, and each node tidies its own away

A node that is away may have shards and stubs: its shards count as gone, to be computed anew, and it
counts as a user of everything, so that nothing that it needs is let go. So does one with stubs that
cannot be read. Its next round corrects that, once they can. So a crash, or running it twice, leaves
rows that are true.
"""

import threading
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable
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
    devices: set[str] = field(default_factory=set)
    """That were told of."""

    def add(self, node: str, told: m.ShardList) -> None:
        device = told.device.hex()
        self.devices.add(device)
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
        self.devices |= other.devices


@dataclass(slots=True)
class Rebuilt:
    made: int = 0
    kept: int = 0
    """Rows that are there."""
    unused: int = 0
    """Stripes without a row that nobody finds chunks in."""
    too_few: list[bytes] = field(default_factory=list)
    """Packs that somebody finds chunks in, and of which there are too few shards."""


@dataclass(frozen=True, slots=True)
class _Listed:
    """What was there when the first page was asked for, in the order of pack ids."""

    packs: list[bytes]
    shards: dict[bytes, list[ShardName]]
    stubs: frozenset[bytes]


class ShardListing:
    """What a node tells of its shards and stubs, in pages. Any thread.

    Its folder is listed when somebody begins (`after` is FIRST, or a pack that this has not ended a
    page with): the pages that follow are of that listing, so all of them together cost what there
    is, not its square. What comes after the beginning may be missing, as it might be if each page
    listed anew; what has gone since is left out. A listing is kept until its end is told, for the
    latest who began; another one who is at work costs a listing for each of his pages."""

    def __init__(self, server: ShardServer, stubs: Callable[[], Iterable[bytes]]) -> None:
        self._server = server
        self._stubs = stubs
        self._lock = threading.Lock()
        self._listed: _Listed | None = None
        self._told: set[bytes] = set()
        """Packs that its pages have ended with."""

    def page(self, after: bytes) -> m.ShardList:
        """Of MAX_LISTED packs behind `after`, at most. OSError."""
        with self._lock:
            listed = self._listed if after in self._told else None
        if listed is None:
            listed = self._list()
        first = bisect_right(listed.packs, after)
        told = listed.packs[first : first + m.MAX_LISTED]
        last = first + len(told) == len(listed.packs)
        with self._lock:
            if after == FIRST:
                self._listed, self._told = listed, set()
            if listed is self._listed and last:
                self._listed, self._told = None, set()
            elif listed is self._listed:
                self._told.add(told[-1])
        return self._page(listed, told, FIRST if last else told[-1])

    def _list(self) -> _Listed:
        names = sorted(self._server.names())
        by_pack = {id_: list(found) for id_, found in groupby(names, lambda each: each.pack_id)}
        stubs = frozenset(self._stubs())
        return _Listed(sorted({*by_pack, *stubs}), by_pack, stubs)

    def _page(self, listed: _Listed, told: list[bytes], after: bytes) -> m.ShardList:
        server = self._server
        names = (each for pack in told for each in listed.shards.get(pack, ())[: m.MAX_OF_PACK])
        shards = []
        damaged = 0
        for name in names:
            try:
                facts = _facts(server, name)
            except FileNotFoundError:
                continue
            if facts is None:
                damaged += 1
            else:
                shards.append((*name, facts.pack_size, facts.shard_length, facts.digest))
        stubs = tuple(pack for pack in told if pack in listed.stubs)
        return m.ShardList(server.device, tuple(shards), damaged, stubs, after)


def _facts(server: ShardServer, name: ShardName) -> ShardFacts | None:
    """FileNotFoundError."""
    try:
        shard = ShardFile(server.disk, name)
    except FileNotFoundError:
        raise
    except READ_ERRORS:
        return None
    try:
        stripe = shard.stripe
        sizes = (stripe.pack_size, stripe.data, stripe.parity, stripe.shard_length)
        return ShardFacts(name.pack_id, *sizes, stripe.digest)
    finally:
        shard.close()


def rebuild(
    found: Found, unsure: Collection[str], records: PackRecords, *, dry_run: bool = False
) -> Rebuilt:
    """`unsure`: nodes of the cluster that have not told of all stubs that they have.
    MetaStoreUnavailable, CorruptRecord, CannotRebuild: with what was made until then."""
    there = {each.pack_id if isinstance(each, PackRow) else each for each in records.listing()}
    rows = rows_from(found.shards)
    done = Rebuilt()
    for pack_id in sorted({*(facts.pack_id for _, facts, _ in found.shards), *found.stubs}):
        users = tuple(sorted({*found.stubs.get(pack_id, ()), *unsure}))
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
