"""A node joins stripes in which it has chunks, and leaves those of which gc has let its stub go.
Part of the round of `transport.striping`, which says what follows from it."""

import contextlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

from transport.packrow import PackRow
from transport.striperows import KnownRows
from transport.stripes import StripeReader
from transport.stripestate import RoundNotes, StripePace, Surroundings
from transport.stripetable import PackOfStripe, bytes_of, is_whole, table_of
from volume.errors import CorruptPack
from volume.stripehome import StripeHome

log = logging.getLogger(__name__)

MIN_JOIN: Final = 0.125
"""Of a stripe's bytes that a node has itself: with less it keeps its own copies."""
MAX_LEFT: Final = 60
"""Remembered of those that have left a stripe: the latest."""
MAX_DECLINED: Final = 65536
DECLINED_S: Final = 3600.0
"""After so long a stripe of which this node had too little is looked at again."""
ADOPT_TRIES: Final = 100
ADOPT_WAIT_S: Final = 0.1


class Joining:
    """Of one node; on the thread of the rounds."""

    def __init__(
        self,
        me: str,
        device: str,
        rows: KnownRows,
        home: StripeHome,
        around: Surroundings,
        notes: RoundNotes,
        pace: StripePace,
        *,
        monotonic: Callable[[], float],
        should_stop: Callable[[], bool],
        wait: Callable[[float], object],
    ) -> None:
        """`me`: this node's id; `device`: its own one's."""
        self._me = me
        self._device = device
        self._rows = rows
        self._home = home
        self._around = around
        self._notes = notes
        self._pace = pace
        self._monotonic = monotonic
        self._should_stop = should_stop
        self._wait = wait
        self._declined: dict[bytes, float] = {}

    def look_again(self, pack_id: bytes) -> None:
        """At a stripe of which this node had too little."""
        self._declined.pop(pack_id, None)

    def join_all(self, rows: Mapping[bytes, PackRow]) -> None:
        stubs = self._home.stubs_by_pack()
        for pack_id, row in rows.items():
            if self._should_stop():
                return
            known, user = pack_id in stubs, self._me in row.users
            if user and not known and not self._is_joining(row):
                continue  # gc has let it go: `leave` is next
            settled = not self._is_joining(row) and self._device not in row.copies
            if row.shards and not row.removing and not (known and user and settled):
                with self._notes.counted(pack_id, "join"):
                    self.join(row)
        for pack_id in stubs.keys() - rows.keys():
            if self._rows.of(pack_id, True) is None:
                text = "the metastore has no row of it, and this node finds chunks in it"
                self._notes.problems[pack_id.hex()] = text
                log.error("stripe: %s pack=%s", text, pack_id.hex())

    def _is_joining(self, row: PackRow) -> bool:
        """Whether this node is a user that has no stub yet: gc was at work, or a crash came."""
        return self._me in row.joining

    def join(self, row: PackRow) -> bool:
        """Find chunks of this node in the stripe from now on; whether there are any."""
        if not row.shards or row.removing:
            return False
        stub = self._home.stub_of(row.pack_id)
        if stub is not None:
            row = self._become_user(row)  # in any case: so its shards stay
            left = self._home.not_adopted(stub)
            if left:
                with contextlib.closing(self.reader(row)) as reader:
                    _check_all_there(reader)
            whole = self._home.whole_of(left)
            return self._adopted(row, lambda: self._home.adopt_again(stub, whole))
        if self._me in row.left:
            return False
        if not self._pace.convert and self._me not in row.users:
            return False
        now = self._monotonic()
        if now - self._declined.get(row.pack_id, float("-inf")) < DECLINED_S:
            return False
        with contextlib.closing(self.reader(row)) as reader:
            pack = PackOfStripe(reader, row.size)
            like, entries = table_of(row, pack)
            wanted = self._home.known(entries)
            if bytes_of(wanted) >= MIN_JOIN * row.size:
                if self._home.any_read(wanted, self._pace.unread_s):
                    self._declined[row.pack_id] = now - DECLINED_S + self._pace.unread_s
                    return False  # they stay here, where they are read at once
                wanted = [each for each in wanted if is_whole(pack, like, each)]
            if bytes_of(wanted) < MIN_JOIN * row.size:
                if len(self._declined) >= MAX_DECLINED:
                    self._declined.clear()
                self._declined[row.pack_id] = now
                self._settle(row)
                return False
            _check_all_there(reader)
        row = self._become_user(row)
        return self._adopted(row, lambda: self._home.adopt(like, wanted))

    def reader(self, row: PackRow) -> StripeReader:
        disks = [None if each is None else self._around.disk_of(each, False) for each in row.shards]
        return StripeReader(row.pack_id, row.data, row.digest, disks)

    def _adopted(self, row: PackRow, adopt: Callable[[], int | None]) -> bool:
        """Have this node find its chunks there, when gc lets it; whether there are any."""
        for _ in range(ADOPT_TRIES):
            count = adopt()
            if count is not None:
                self._notes.counters.joined += count > 0
                self._settle(row)
                return count > 0
            if self._should_stop():
                break
            self._wait(ADOPT_WAIT_S)
        raise CorruptPack(f"pack {row.pack_id.hex()}: gc does not come to its end; later")

    def _settle(self, row: PackRow) -> None:
        """This node has its stub, or needs none; if it made the stripe, its copy is left to gc."""

        def settled(now: PackRow) -> PackRow:
            copies = () if self._device in now.copies else now.copies
            return replace(now, copies=copies, joining=_others(now.joining, self._me))

        self._rows.change(row, settled)

    def _become_user(self, row: PackRow) -> PackRow:
        def joined(now: PackRow) -> PackRow:
            if now.removing or not now.shards:
                raise CorruptPack(f"pack {row.pack_id.hex()}: its stripe is being removed")
            if self._me in now.users:
                return now
            return replace(now, users=(*now.users, self._me), joining=(*now.joining, self._me))

        return self._rows.change(row, joined)

    def leave_all(self, rows: Mapping[bytes, PackRow]) -> None:
        """Stripes that name this node as a user, and of which it has no stub."""
        if self._home.striped.unreadable:
            self._notes.problems["stubs"] = (
                f"{self._home.striped.unreadable} stubs of striped packs are damaged: this node "
                "leaves no stripe before they are restored"
            )
            return
        stubs = self._home.stubs_by_pack()
        gone = [
            self._rows.of(pack_id, False)
            for pack_id, row in rows.items()
            if self._me in row.users
            and pack_id not in stubs
            and not (row.shards and self._is_joining(row))
        ]
        if not gone or not self._home.sync_removals():
            return
        for row in gone:
            if row is None or self._me not in row.users:
                continue
            if self._home.stub_of(row.pack_id) is None:
                with self._notes.counted(row.pack_id, "leave"):
                    self._leave(row)

    def _leave(self, row: PackRow) -> None:
        def left(now: PackRow) -> PackRow:
            users = _others(now.users, self._me)
            if now.coming and not users:  # of a conversion that a crash ended
                return replace(now, coming=(), data=0, owner="", users=(), joining=())
            gone = now.left if self._me in now.left else (*now.left[-MAX_LEFT:], self._me)
            joining = _others(now.joining, self._me)
            return replace(now, users=users, joining=joining, left=gone)

        self._rows.change(row, left)
        self._notes.counters.left += 1


def _check_all_there(reader: StripeReader) -> None:
    """CorruptPack."""
    if lacking := reader.open_all():
        raise CorruptPack(
            f"pack {reader.pack_id.hex()}: copies stay until all of its shards are there: {lacking}"
        )


def _others(nodes: tuple[str, ...], me: str) -> tuple[str, ...]:
    return tuple(each for each in nodes if each != me)
