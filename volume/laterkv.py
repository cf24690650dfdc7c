"""A synced KeyValue that can take some items now and write them later.

Naming a version must not wait for a disk. So its rows are first in the journal (a POINT record),
and here in memory only. `flush` makes them durable: the journal is synced, then the rows go into
the store, in one transaction with the lsn up to which POINT records are in it (points-lsn in
`volume.layout`). At a start the records after that lsn are taken from the journal again.

Every `update` flushes first. So what the store holds is always a prefix of what was done: nothing
in it can depend on something that is not.

Threads: as `KeyValue`.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from heapq import merge

from volume import layout
from volume.framing import framed, unframed, unpacked
from volume.kv import KeyValue
from volume.sites import fail_point


class LaterKeyValue:
    """A KeyValue over another one, which it owns."""

    def __init__(self, base: KeyValue) -> None:
        self._base = base
        self._lock = threading.Lock()  # _later and _lsn
        self._flushing = threading.RLock()  # a sync that fails seals the store, by an update
        self._later: dict[bytes, bytes] = {}
        self._lsn = 0
        self._sync: Callable[[], bool] = _no_sync

    def sync_with(self, sync: Callable[[], bool]) -> None:
        """`sync()`: make the journal durable; False when the store is sealed, and nothing is."""
        self._sync = sync

    @property
    def points_lsn(self) -> int:
        """Up to there POINT records of the journal are in the store."""
        key = layout.META_KEY_POINTS_LSN
        value = self._base.get(key)
        return 0 if value is None else int(unpacked(layout.META_U64, key, unframed(key, value))[0])

    def put_later(self, items: Mapping[bytes, bytes], lsn: int) -> None:
        """Set `items`, which the POINT record `lsn` of the journal tells of. Never waits."""
        with self._lock:
            self._later.update(items)
            self._lsn = max(self._lsn, lsn)

    @property
    def pending(self) -> bool:
        """Whether there is something to be flushed."""
        return bool(self._later)

    def flush(self) -> None:
        """Make durable what was put before the call, unless the store is sealed."""
        if not self._later:
            return
        with self._flushing:
            with self._lock:
                items, lsn = dict(self._later), self._lsn
            if not items or not self._sync():
                return
            fail_point("names.synced")
            self._base.update({**items, layout.META_KEY_POINTS_LSN: _lsn_value(lsn)})
            fail_point("names.stored")
            with self._lock:
                for key, value in items.items():
                    if self._later.get(key) is value:
                        del self._later[key]

    def update_noted(self, puts: Mapping[bytes, bytes], deletes: Iterable[bytes], lsn: int) -> None:
        """As `update`, of what the record `lsn` of the journal tells, which is durable: the next
        start does not do it again."""
        self.flush()
        lsn = max(lsn, self.points_lsn)
        self._base.update({**puts, layout.META_KEY_POINTS_LSN: _lsn_value(lsn)}, deletes)

    def reset_points(self, lsn: int) -> None:
        """Records after `lsn` are lost, and their numbers will be used again."""
        self._base.update({layout.META_KEY_POINTS_LSN: _lsn_value(lsn)})

    # -- as KeyValue

    def get(self, key: bytes) -> bytes | None:
        with self._lock:
            value = self._later.get(key)
        return self._base.get(key) if value is None else value

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        with self._lock:
            later = [self._later.get(key) for key in keys]
        found = self._base.get_many(keys)
        return [value or other for value, other in zip(later, found, strict=True)]

    def items(self, prefix: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        with self._lock:
            later = sorted(item for item in self._later.items() if item[0].startswith(prefix))
        if not later:
            yield from self._base.items(prefix)
            return
        last = None
        for key, value in merge(later, self._base.items(prefix), key=lambda item: item[0]):
            if key != last:  # the later one comes first
                yield key, value
            last = key

    def floor(self, prefix: bytes, key: bytes) -> tuple[bytes, bytes] | None:
        with self._lock:
            keys = (other for other in self._later if other.startswith(prefix) and other <= key)
            newest = max(keys, default=None)
            later = None if newest is None else (newest, self._later[newest])
        found = self._base.floor(prefix, key)
        if later is None or (found is not None and found[0] > later[0]):
            return found
        return later

    def update(self, puts: Mapping[bytes, bytes], deletes: Iterable[bytes] = ()) -> None:
        self.flush()
        self._base.update(puts, deletes)

    def count(self) -> int:
        return self._base.count() + len(self._later)

    def release_memory(self) -> None:
        self._base.release_memory()

    def sync(self) -> None:
        self.flush()
        self._base.sync()

    def close(self) -> None:
        self._base.close()


def _lsn_value(lsn: int) -> bytes:
    return framed(layout.META_U64.pack(lsn))


def _no_sync() -> bool:
    return True
