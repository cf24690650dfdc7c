"""What a node does for stripes by itself, again and again: its round.

    join       find chunks that are here, too, in a stripe that somebody else has made
    convert    make stripes of cold packs of this node's own (both only where that is wanted)
    leave      say that a stripe is not needed here any more
    remove     stripes that nobody needs, each node its own shards
    move       shards that belong on this node's device: computed, or copied from another one
    repair     shards of this device that are gone or damaged
    tidy       files on this device that belong to no row

**Who may still need a stripe.** Each member of a volume packs for itself, so the chunks of a pack
are in packs of other nodes as well. A stripe's row names its *users*: nodes that find chunks in it.
A node becomes a user by compare-and-swap before it writes its stub (`volume.stripedpack`), and
stops being one after the stub's removal is durable. So

    a user without a stub              it is joining, or gc has let the stub go: it leaves
    a stub whose row lacks its user    only when etcd went back to an older state: it joins again

and while there is a user that is a node of the cluster, no shard is let go. Who has left a stripe,
since gc has found too little of it to be live there, does not join it again. Whoever is not a node
any more is no user. A stripe without users is *removed* after `condemn_s`: the row says so first,
by compare-and-swap, and from then on nobody can become its user. A node does not find chunks in a
stripe of which it is no user, so dedup cannot bring one back that is going.

**Never dropped before it was read back**: who converts reads all shards back (`stripes.verify`),
and who joins, the one that converted too, reads every chunk that it is to find in the stripe,
through the stripe, and compares it with its id; only then the stub is written. A chunk that is
damaged there, since it was in the pack that became the stripe, is not looked for there: the copy
that the index names may be a newer and whole one. Copies become garbage of gc by that, no sooner.

**A finished shard goes only when nobody can need it**, whatever etcd says: it may have gone back to
an older state, which names other devices or knows nothing of the stripe. So one that its row does
not name stays until all that the row does name are there, and the one of its number was read and is
whole; one without a row until every node of the cluster is connected and says that it has no stub
of it.

**Who converts.** Other nodes have the same chunks in packs of their own, and two stripes of them
would cost as much as three copies. So nodes take turns: by the order of their ids, the n-th of
those that are connected waits n times TURN longer than `cold_s`, and as long again since another
node has told it of a new stripe. By then it has joined what the others made, and converts what only
it has. Two that do not see each other may convert the same: that costs space, and nothing else.

**Each move has one doer**: the node whose device gets the shard. So no two nodes write the same
file, and nobody has to be chosen. A node that is away has its share of the moves when it is back.

A round is a plain call that waits; errors of one stripe are counted and do not end it. What cannot
be listed (etcd) ends it, and nothing is left, removed or tidied in such a round.
"""

import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Final

from transport.devicemap import DeviceMap, DeviceState
from transport.errors import TransportError
from transport.measured import Measured
from transport.moves import Move, Placed, placed_on, plan
from transport.packrecords import PackRecords, without
from transport.packrow import PackRow
from transport.placement import Placement
from transport.shardmoves import carry_out
from transport.shardserver import ShardServer
from transport.stripeconverting import Converting
from transport.stripejoining import Joining
from transport.stripereads import StripeReads
from transport.striperows import KnownRows
from transport.stripestate import (
    RoundNotes,
    StripeCounters,
    StripePace,
    StripeState,
    Surroundings,
    state_of,
)
from transport.stripetrust import StripeTrust
from transport.stripeupkeep import Upkeep
from volume.disk import Disk
from volume.errors import CorruptPack
from volume.stripehome import StripeHome

log = logging.getLogger(__name__)

MOVES: Final = 64
"""Shards that come to this device in one round at most."""
MAX_HINTED: Final = 65536


class Striper:
    """One node. `round` on one thread; the rest on any."""

    def __init__(
        self,
        me: str,
        server: ShardServer,
        rows: PackRecords,
        home: StripeHome,
        around: Surroundings,
        pace: StripePace,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        should_stop: Callable[[], bool] = lambda: False,
        wait: Callable[[float], object] = time.sleep,
    ) -> None:
        """`me`: this node's id; `server` has its device."""
        self.notes = RoundNotes(log)
        self.state = StripeState()
        self.listed_s = 0.0
        """What it took last to list all files and rows."""
        self.listed_at: float | None = None
        """When all rows were read last."""
        self.doing = ""
        """What the round is at, in a word: "join", "convert", "move", "repair"."""
        self.coming = Measured(monotonic)
        """Of shards that belong on this device and are elsewhere, or to be computed."""
        self._me = me
        self.device = server.device.hex()
        """The one of this node."""
        self.server = server
        self._records = rows
        self._home = home
        self._around = around
        self._pace = pace
        self._monotonic = monotonic
        self._should_stop = should_stop
        self._lock = threading.Lock()
        """Of `_hinted`."""
        self._hinted: dict[bytes, None] = {}
        self._unused_since: dict[bytes, float] = {}
        self._told_at = float("-inf")
        self.rows = KnownRows(rows, lambda pack_id: self.reads.forget(pack_id))
        self.reads = StripeReads(
            self.rows.of,
            lambda device: around.disk_of(device, False),
            around.gone,
            monotonic=monotonic,
        )
        self.trust = StripeTrust(
            me,
            lambda: home.striped,
            around.told,
            lambda device: around.disk_of(device, False) is not None,
            around.devices,
            lambda pack_id: self.rows.of(pack_id, True),
            lambda: self.upkeep.lacking,
            monotonic=monotonic,
        )
        self.upkeep = Upkeep(
            *(server, self.rows, self.reads, around, self.notes, pace.condemn_s),
            monotonic=monotonic,
            should_stop=should_stop,
        )
        self._joining = Joining(
            *(me, self.device, self.rows, home, around, self.notes, pace),
            monotonic=monotonic,
            should_stop=should_stop,
            wait=wait,
        )
        self._converting = Converting(
            *(me, server, self.rows, home, self._joining, around, self.notes, pace),
            monotonic=monotonic,
            should_stop=should_stop,
        )

    @property
    def listed_age_s(self) -> float | None:
        """So long ago all rows were read; None: not yet."""
        at = self.listed_at
        return None if at is None else max(0.0, self._monotonic() - at)

    @property
    def converting(self) -> Measured:
        """Of cold packs of this node."""
        return self._converting.work

    @property
    def counters(self) -> StripeCounters:
        return self.notes.counters

    # -- any thread

    def uses(self, pack_id: bytes) -> bool:
        """Whether this node may find chunks in that stripe."""
        return self._home.striped.unreadable > 0 or self._home.stub_of(pack_id) is not None

    def hint(self, pack_id: bytes) -> None:
        """There is a new stripe."""
        self._told_at = self._monotonic()
        with self._lock:
            if len(self._hinted) < MAX_HINTED:
                self._hinted[pack_id] = None

    # -- the round

    def quick(self) -> bool:
        """Join the stripes that others have told of; whether there was any."""
        if self.trust.stale and self.listed_at is not None:
            self._look(self._around.devices())
        with self._lock:
            hinted, self._hinted = list(self._hinted), {}
        for pack_id in hinted:
            with self.notes.counted(pack_id, "join"):
                row = self.rows.of(pack_id, True)
                if row is not None:
                    self._joining.look_again(pack_id)
                    self._joining.join(row)
        return bool(hinted)

    def round(self) -> None:
        """See the module's text. MetaStoreUnavailable, CorruptRecord: it could not be begun."""
        self.notes.problems = {}
        began = self._monotonic()
        strays = self.upkeep.files()  # before the rows: what is noted meanwhile is in these
        listed = list(self._records.listing())
        self.listed_s = self._monotonic() - began
        rows = {row.pack_id: row for row in listed if isinstance(row, PackRow)}
        damaged = {row for row in listed if isinstance(row, bytes)}
        self.rows.listed(rows, damaged)
        devices = self._around.devices()
        nodes = frozenset(self._around.nodes())
        own = self.upkeep.look(rows)
        self.listed_at = self._monotonic()
        try:
            self.trust.ask()
            self._look(devices)
            self.doing = "join"
            self._joining.join_all(rows)
            self._look(devices)
            self._joining.leave_all(rows)
            if self._pace.convert:
                self.doing = "convert"
                self._converting.convert_all(devices, self._told_at)
            self._remove_all(rows, devices, nodes)
            self.doing = "move"
            self._move_all(rows, devices)
            self.doing = "repair"
            if own is not None:
                self.upkeep.repair(own)
            if not damaged:
                self.upkeep.tidy(strays, rows, self._home.stubs_by_pack().keys())
        finally:
            self.doing = ""
        self.state = replace(self.state, problems=dict(self.notes.problems))

    def _look(self, devices: DeviceMap) -> None:
        """Which stripes writes may find their chunks in from now on."""
        self.trust.look(self.rows.all(), devices)

    # -- remove

    def _remove_all(
        self, rows: Mapping[bytes, PackRow], devices: DeviceMap, nodes: Collection[str]
    ) -> None:
        now = self._monotonic()
        if self._me not in nodes:
            return  # nothing is decided by that
        unused = {
            id_ for id_, row in rows.items() if not (row.removing or set(nodes) & set(row.users))
        }
        self._unused_since = {id_: self._unused_since.get(id_, now) for id_ in unused}
        for pack_id, row in rows.items():
            if self._should_stop():
                return
            if row.removing:
                with self.notes.counted(pack_id, "remove"):
                    self._let_go(row, devices)
            elif pack_id in unused and now - self._unused_since[pack_id] >= self._pace.condemn_s:
                with self.notes.counted(pack_id, "remove"):
                    self._condemn(row, nodes)

    def _condemn(self, row: PackRow, nodes: Collection[str]) -> None:
        def removing(now: PackRow) -> PackRow:
            if set(nodes) & set(now.users) or now.users != row.users:
                return now  # who has come meanwhile is perhaps younger than what `nodes` says
            if now.coming:
                return replace(now, coming=(), data=0, owner="", users=(), joining=())
            return replace(now, removing=True, copies=(), users=(), joining=())

        self.rows.change(row, removing)

    def _let_go(self, row: PackRow, devices: DeviceMap) -> None:
        """This node's own shard; and those of devices that are no more."""
        if self._home.stub_of(row.pack_id) is not None:
            raise CorruptPack(
                f"pack {row.pack_id.hex()}: its row says that nobody needs the stripe, and this "
                "node finds chunks in it: shards stay; restore the row from a backup of etcd"
            )
        for number, device in enumerate(row.shards):
            known = None if device is None else devices.devices.get(device)
            if device == self.device:
                self.server.remove(row.name(number).path)
                self.counters.removed += 1
            elif device is None or (known is not None and known.state is not DeviceState.FAILED):
                continue
            row = self.rows.change(row, lambda now, number=number: without(now, number))  # type: ignore[misc]
            if not row.shards:
                return

    # -- move

    def _move_all(self, rows: Mapping[bytes, PackRow], devices: DeviceMap) -> None:
        placed = [row.placed for row in rows.values() if row.shards and not row.removing]
        placement = Placement(devices, self._pace.level)
        moves: list[Move] = []
        unreadable = 0
        by_width: dict[int, list[Placed]] = {}
        for pack in placed:
            by_width.setdefault(len(pack.held), []).append(pack)
        for width, group in by_width.items():
            try:
                made = plan(placement, group)
            except TransportError as error:
                self.notes.problems[f"{len(group)} stripes of {width} shards"] = str(error)
                continue
            moves += made.moves
            unreadable += len(made.unreadable)
        self.state = state_of(rows, placed, moves, unreadable, devices)
        mine = [move for move in moves if move.target == self.device]
        self.coming.found(sum(move.length for move in mine))
        for move in mine[:MOVES]:
            if self._should_stop():
                return
            with self.notes.counted(move.pack_id, f"move shard {move.number}"):
                self._carry_out(move)
        self._tell_emptied(rows, placed, devices)

    def _carry_out(self, move: Move) -> None:
        self.server.check_room(move.length)
        self.upkeep.busy.add(move.key)
        try:
            disks: dict[str, Disk] = {self.device: self.server.disk}
            for device in (move.source, *move.others):
                disk = None if device is None else self._around.disk_of(device, False)
                if device is not None and disk is not None:
                    disks[device] = disk
            if move.source is not None and move.source not in disks:
                move = replace(move, source=None)
            row = carry_out(move, self._records, disks)
            self.rows.remember(row.pack_id, row)
            self.counters.moved += 1
            self.counters.moved_bytes += move.length
            self.coming.did(move.length)
        finally:
            self.upkeep.busy.discard(move.key)

    def _tell_emptied(
        self, rows: Mapping[bytes, PackRow], placed: list[Placed], devices: DeviceMap
    ) -> None:
        coming = {device for row in rows.values() for device in row.coming}
        for device in devices.devices.values():
            drained = device.state is DeviceState.DRAINING and device.device_id not in coming
            if drained and placed_on(placed, device.device_id) == (0, 0):
                with self.notes.counted(b"", f"device {device.device_id} is empty"):
                    self._around.emptied(device.device_id)
