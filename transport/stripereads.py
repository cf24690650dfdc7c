"""Reads of striped packs, for the chunk store: a `volume.stripedpack.StripeSource`.

A chunk is in one shard: with that one at hand a read is one pread, or one request to the node that
has it. With it lost, or its node away, the same part of k others is read and decoded.

Which device has which shard says the pack's row. Rows are remembered, and read again when a read
fails by what they say. Shards stay open from one read to the next; a stripe of which something was
lost or away is looked at anew after RETRY_S, so that a node that comes back is used, and one that
is away costs its wait once, not at each read.

Too few shards: StripeUnavailable, naming the pack and what is wrong with each shard; never zeros.
Or StripeGivenUp: somebody has given the pack up, and no shard that is missing could come back: each
is on a device that has failed, or its device has answered that it is damaged or not there.
"""

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from transport.packrow import PackRow
from transport.shardfile import CorruptShard
from transport.stripes import StripeLost, StripeReader
from volume.disk import Disk
from volume.errors import CorruptData, VolumeError
from volume.stripedpack import StripedPack, StripeGivenUp, StripeUnavailable

log = logging.getLogger(__name__)

MAX_OPEN: Final = 64
"""Stripes whose shards are open: k + m descriptors and page tables each."""
RETRY_S: Final = 2.0


@dataclass(slots=True)
class ReadCounters:
    reads: int = 0
    degraded: int = 0
    """That had to be decoded."""
    failed: int = 0


@dataclass(slots=True)
class _Open:
    reader: StripeReader
    lock: threading.Lock = field(default_factory=threading.Lock)
    retry_at: float = float("inf")
    """When it is looked at anew."""
    closed: bool = False


class StripeReads:
    """`row_of(pack_id, fresh)`: the pack's row, or None, `fresh` not from memory; MetaStore errors.
    `disk_of(device_id)`: None when it cannot be read now. `gone(device_id)`: it has failed."""

    def __init__(
        self,
        row_of: Callable[[bytes, bool], PackRow | None],
        disk_of: Callable[[str], Disk | None],
        gone: Callable[[str], bool] = lambda device: False,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.counters = ReadCounters()
        self._row_of = row_of
        self._disk_of = disk_of
        self._gone = gone
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._open: OrderedDict[bytes, _Open] = OrderedDict()

    def read(self, pack: StripedPack, length: int, offset: int) -> bytes:
        """See `StripeSource`."""
        try:
            data = self._read(pack.pack_id, length, offset)
        except (StripeUnavailable, StripeGivenUp):
            self.counters.failed += 1
            raise
        self.counters.reads += 1
        return data

    def forget(self, pack_id: bytes) -> None:
        """Its row has changed: shards are elsewhere."""
        with self._lock:
            gone = self._open.pop(pack_id, None)
        if gone is not None:
            _close(gone)

    def close(self) -> None:
        with self._lock:
            opened, self._open = list(self._open.values()), OrderedDict()
        for each in opened:
            _close(each)

    # -- inner

    def _read(self, pack_id: bytes, length: int, offset: int) -> bytes:
        for fresh in (False, True):
            opened = self._opened(pack_id, fresh)
            try:
                with opened.lock:
                    if opened.closed:
                        continue  # by a change of its row, just now
                    return self._part(opened, length, offset)
            except (StripeLost, CorruptShard) as error:  # nothing is given up for either
                self.forget(pack_id)
                if fresh:
                    if self._is_given_up(pack_id, opened.reader):
                        raise StripeGivenUp(f"{error}; it was given up") from error
                    raise StripeUnavailable(str(error)) from error
        raise StripeUnavailable(
            f"pack {pack_id.hex()}: its row changes faster than it is read; try again"
        )

    def _is_given_up(self, pack_id: bytes, reader: StripeReader) -> bool:
        row = self._row_of(pack_id, False)
        if row is None or not row.given_up or reader.away:
            return False
        return all(
            row.shards[number] is None or self._gone(str(row.shards[number]))
            for number in reader.nowhere
        )

    def _part(self, opened: _Open, length: int, offset: int) -> bytes:
        reader = opened.reader
        before = reader.decoded
        data = reader.pread(length, offset)
        self.counters.degraded += reader.decoded != before
        if (reader.lost or reader.damaged) and opened.retry_at == float("inf"):
            opened.retry_at = self._monotonic() + RETRY_S
        return data

    def _opened(self, pack_id: bytes, fresh: bool) -> _Open:
        """Shards as they were opened before, or anew."""
        with self._lock:
            found = self._open.get(pack_id)
            if found is not None and not fresh and self._monotonic() < found.retry_at:
                self._open.move_to_end(pack_id)
                return found
        made = _Open(self._reader(pack_id, fresh))
        dropped: list[_Open] = [found] if found is not None else []
        with self._lock:
            self._open[pack_id] = made
            while len(self._open) > MAX_OPEN:
                dropped.append(self._open.popitem(last=False)[1])
        for each in dropped:
            _close(each)
        return made

    def _reader(self, pack_id: bytes, fresh: bool) -> StripeReader:
        try:
            row = self._row_of(pack_id, fresh)
        except VolumeError as error:
            raise StripeUnavailable(
                f"pack {pack_id.hex()}: where its shards are cannot be read: {error}"
            ) from error
        if row is None or not row.shards:
            raise StripeUnavailable(
                f"pack {pack_id.hex()}: the metastore has no stripe of it; restore the row "
                f"pack/{pack_id.hex()} from a backup of etcd"
            )
        disks = [None if each is None else self._disk_of(each) for each in row.shards]
        return StripeReader(pack_id, row.data, row.digest, disks)


def _close(opened: _Open) -> None:
    with opened.lock:
        opened.closed = True
        try:
            opened.reader.close()
        except (CorruptData, OSError) as error:
            log.warning("shards not closed error=%s", error)
