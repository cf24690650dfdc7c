"""Shards of a node's own device: each is read now and then and made again where it is damaged or
gone, and files that belong to no row go. Part of the round of `transport.striping`."""

import contextlib
import logging
import math
import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Final

from transport import stripes
from transport.measured import Measured
from transport.packrow import PackRow, leftovers
from transport.shardfile import ShardFile, ShardName
from transport.shardserver import ShardServer
from transport.stripereads import StripeReads
from transport.striperows import KnownRows
from transport.stripes import StripeReader
from transport.stripestate import RoundNotes, Surroundings
from volume.disk import Disk

log = logging.getLogger(__name__)

REPAIRS: Final = 4
"""Shards of this device that are read by one round, to see whether they are as they should be..."""
MAX_REPAIRS: Final = 64
"""...more where that takes longer than READ_ALL_S for all, but not more than so many: a round has
other things to do."""
READ_ALL_S: Final = 14 * 86400.0


@dataclass(slots=True)
class OwnShards:
    """Of a node's device, as one round has found them."""

    rows: dict[ShardName, PackRow]
    """Shards that rows have there."""
    there: set[ShardName]
    """Files of shards..."""
    marked: set[ShardName]
    """...and those of them that were found damaged."""


class _Lacking:
    """Shards that are damaged or not there. Any thread; each change costs the same, however many
    there are."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known = False
        self._bytes_of: dict[ShardName, int] = {}
        self._names: frozenset[ShardName] | None = None
        """As they were asked for last; None: they have changed since."""
        self.bytes = 0

    def names(self) -> frozenset[ShardName] | None:
        """None: there may be others."""
        return self.seen() if self._known else None

    def seen(self) -> frozenset[ShardName]:
        with self._lock:
            if self._names is None:
                self._names = frozenset(self._bytes_of)
            return self._names

    def doubt(self) -> None:
        """There may be others."""
        self._known = False

    def found(self, bytes_of: dict[ShardName, int]) -> None:
        """These, and no others."""
        with self._lock:
            self._bytes_of, self._names, self._known = bytes_of, None, True
            self.bytes = sum(bytes_of.values())

    def add(self, name: ShardName, length: int) -> None:
        with self._lock:
            if name not in self._bytes_of:
                self._bytes_of[name] = length
                self.bytes += length
                self._names = None

    def discard(self, name: ShardName) -> None:
        with self._lock:
            if name in self._bytes_of:
                self.bytes -= self._bytes_of.pop(name)
                self._names = None


class Upkeep:
    """Of the device of `server`; on the thread of the rounds, but where it says otherwise."""

    def __init__(
        self,
        server: ShardServer,
        rows: KnownRows,
        reads: StripeReads,
        around: Surroundings,
        notes: RoundNotes,
        condemn_s: float,
        *,
        monotonic: Callable[[], float],
        should_stop: Callable[[], bool],
    ) -> None:
        """`condemn_s`: a file that no row names stays for so long."""
        self._device = server.device.hex()
        self._server = server
        self._rows = rows
        self._reads = reads
        self._around = around
        self._notes = notes
        self._condemn_s = condemn_s
        self._monotonic = monotonic
        self._should_stop = should_stop
        self.busy: set[tuple[bytes, int]] = set()
        """Shards that come to this device just now."""
        self.work = Measured(monotonic)
        """Of shards that are to be made again."""
        self._lacking = _Lacking()
        self._repaired_at = monotonic()
        self._stray_since: dict[str, float] = {}
        self._verified: dict[ShardName, None] = {}

    @property
    def lacking(self) -> frozenset[ShardName] | None:
        """Shards that rows have here, and that are damaged or not there, as far as was seen; None:
        nobody has looked yet, or the device cannot be listed. Any thread."""
        return self._lacking.names()

    def look(self, rows: Mapping[bytes, PackRow]) -> OwnShards | None:
        """Which shards should be here, and whether they are there: before anything of a round, as
        others find chunks in stripes by what this node lacks. None: the device cannot be listed."""
        try:
            there = set(self._server.names())  # after the rows: a shard is there before its row
            marked = self._server.marked()
            for name in marked - there:
                self._server.unmark(name)
        except OSError as error:
            self._notes.problems["device"] = str(error)
            self._lacking.doubt()
            return None
        own = OwnShards({}, there, marked & there)
        for row in rows.values():
            for number, device in enumerate(row.shards):
                if device == self._device and not row.removing:
                    own.rows[row.name(number)] = row
        bad = {name: row.shard_bytes for name, row in own.rows.items() if name not in there}
        for name in own.marked | self._lacking.seen():
            if name in own.rows:
                bad[name] = own.rows[name].shard_bytes
        self._lacking.found(bad)
        self.work.found(self._lacking.bytes)
        return own

    def repair(self, own: OwnShards) -> None:
        """Make those again that are lacking. A few others are read each time, past the page cache,
        each once before any again."""
        bad = self.lacking or frozenset()
        rows = own.rows
        self._verified = {name: None for name in self._verified if name in rows and name not in bad}
        unread = [name for name in rows if name not in bad and name not in self._verified]
        if not unread:
            self._verified = {}
        now = self._monotonic()
        due = math.ceil(len(rows) * (now - self._repaired_at) / READ_ALL_S)
        self._repaired_at = now
        some = unread[: max(REPAIRS, min(due, MAX_REPAIRS))]
        for name in [*(name for name in rows if name in bad), *some]:
            if self._should_stop():
                return
            with self._notes.counted(name.pack_id, f"repair shard {name.number}"):
                row = self._rows.of(name.pack_id, False)
                if row is None or row.shards[name.number : name.number + 1] != (self._device,):
                    continue
                if name in own.there and self._is_sound(name, row):
                    self._verified[name] = None
                else:
                    self._lacking.add(name, row.shard_bytes)
                    self.work.found(self._lacking.bytes)
                    if name in own.there and name not in own.marked:
                        self._server.mark(name)
                        own.marked.add(name)
                    self._build_again(name, row, there=name in own.there)
                if name in own.marked:
                    self._server.unmark(name)
                self._lacking.discard(name)
                self.work.found(self._lacking.bytes)

    def _is_sound(self, name: ShardName, row: PackRow) -> bool:
        try:
            with contextlib.closing(ShardFile(self._server.disk, name, uncached=True)) as shard:
                if shard.stripe.digest != row.digest:
                    return False
                shard.verify()
        except stripes.READ_ERRORS as error:
            log.error("shard is damaged error=%s", error)
            return False
        return True

    def _build_again(self, name: ShardName, row: PackRow, *, there: bool) -> None:
        """Of others, and of what can be read of it where it is `there`: others may have damage in
        other places, and then neither could be made again without it."""
        disks = [
            None if each is None or each == self._device else self._around.disk_of(each, False)
            for each in row.shards
        ]
        if there:
            disks[name.number] = self._server.disk
        self._server.check_room(row.shard_bytes)
        reader = StripeReader(row.pack_id, row.data, row.digest, disks)
        with contextlib.closing(reader):
            stripes.rebuild(reader, {name.number: self._server.disk})
        self._reads.forget(row.pack_id)
        self._notes.counters.repaired += 1
        self._notes.counters.repaired_bytes += row.shard_bytes
        self.work.did(row.shard_bytes)
        log.warning("shard is made again path=%s", name.path)

    def files(self) -> tuple[list[ShardName], list[str]]:
        try:
            return self._server.names(), self._server.unfinished()
        except OSError as error:
            self._notes.problems["device"] = str(error)
            return [], []

    def tidy(
        self,
        files: tuple[list[ShardName], list[str]],
        rows: Mapping[bytes, PackRow],
        stubs: Collection[bytes],
    ) -> None:
        """Files that belong to no row, and have not for `condemn_s`. What is a stub's stripe stays
        without a row; see the text of `transport.striping`."""
        now = self._monotonic()
        names = [name for name in files[0] if name.pack_id in rows or name.pack_id not in stubs]
        strays = {name.path for name in leftovers(self._device, names, rows, self.busy)}
        for path in files[1]:
            name = ShardName.parse(path.rpartition("/")[2].removesuffix(".new"))
            row = None if name is None else rows.get(name.pack_id)
            if name is None or row is None or not row.has(self._device, name):
                strays.add(path)
        self._stray_since = {path: self._stray_since.get(path, now) for path in strays}
        for path, since in list(self._stray_since.items()):
            if self._should_stop():
                return
            if now - since >= self._condemn_s:
                with self._notes.counted(b"", f"tidy {path}"):
                    if self._is_needed(path):
                        self._stray_since[path] = now
                        continue
                    self._server.remove(path)
                    self._notes.counters.tidied += 1
                    del self._stray_since[path]

    def _is_needed(self, path: str) -> bool:
        """Whether somebody may need it, although the round has found it in no row."""
        name = ShardName.parse(path.rpartition("/")[2].removesuffix(".new"))
        if name is None:
            return False
        row = self._rows.records.read(name.pack_id)
        if row is not None and row.has(self._device, name):
            return True
        if path.endswith(".new"):
            return False
        if row is None or not row.shards:
            if self._around.used(name.pack_id):
                return True
            row = self._rows.records.read(name.pack_id)  # that took its time
            return row is not None and row.has(self._device, name)
        if row.removing:
            return False
        disks = [None if each is None else self._around.disk_of(each, False) for each in row.shards]
        reader = StripeReader(row.pack_id, row.data, row.digest, disks)
        with contextlib.closing(reader):
            if reader.open_all():
                return True
        # They are there, and may have rotted since: this one may be the last of its number.
        same = (name.data, name.data + name.parity) == (row.data, len(row.shards))
        numbers = (name.number,) if same else range(len(row.shards))
        return not all(_is_whole(disks[number], row.name(number)) for number in numbers)


def _is_whole(disk: Disk | None, name: ShardName) -> bool:
    """Reads all of it."""
    if disk is None:
        return False
    try:
        with contextlib.closing(ShardFile(disk, name, uncached=True)) as shard:
            shard.verify()
    except stripes.READ_ERRORS as error:
        log.error("shard is damaged error=%s", error)
        return False
    return True
