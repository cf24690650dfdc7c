"""Rows of packs as a node remembers them, and how it changes them, whatever others change."""

import threading
from collections.abc import Callable, Collection, Iterable, Mapping

from transport.packrecords import PackRecords, has_record
from transport.packrow import PackRow
from volume.errors import CorruptPack
from volume.metastore import TRIES


class KnownRows:
    """Any thread. MetaStoreUnavailable, CorruptRecord from what reads or changes one."""

    def __init__(self, records: PackRecords, moved: Callable[[bytes], None]) -> None:
        """`moved`: told of a pack whose row has other shards now, or is gone."""
        self.records = records
        self._moved = moved
        self._lock = threading.Lock()
        self._rows: dict[bytes, PackRow] = {}

    def all(self) -> list[PackRow]:
        """As they were listed or changed last."""
        with self._lock:
            return list(self._rows.values())

    def of(self, pack_id: bytes, fresh: bool) -> PackRow | None:
        """The row of a pack, as it is remembered, or read."""
        with self._lock:
            known = self._rows.get(pack_id)
        if known is not None and not fresh:
            return known
        found = self.records.read(pack_id)
        self.remember(pack_id, found)
        return found

    def remember(self, pack_id: bytes, row: PackRow | None) -> None:
        with self._lock:
            before = self._rows.get(pack_id)
            if row is None:
                self._rows.pop(pack_id, None)
            else:
                self._rows[pack_id] = row
        if before is not None and (
            row is None or (row.shards, row.given_up) != (before.shards, before.given_up)
        ):
            self._moved(pack_id)

    def listed(self, rows: Mapping[bytes, PackRow], damaged: Collection[bytes]) -> None:
        """All rows that there are, but for those that are damaged."""
        for pack_id in self._missing(rows, damaged):
            self.remember(pack_id, None)
        for pack_id, row in rows.items():
            self.remember(pack_id, row)

    def _missing(
        self, rows: Mapping[bytes, PackRow], damaged: Collection[bytes]
    ) -> Iterable[bytes]:
        with self._lock:
            return [each for each in self._rows if each not in rows and each not in damaged]

    def change(self, row: PackRow, make: Callable[[PackRow], PackRow]) -> PackRow:
        """Have the row be what `make` says, whatever others change meanwhile; durable.
        CorruptPack: it is gone, or changes too fast."""
        for _ in range(TRIES):
            after = make(row)
            if after == row or self.records.swap(row, after):
                self.remember(row.pack_id, after if has_record(after) else None)
                return after
            found = self.records.read(row.pack_id)
            if found is None:
                raise CorruptPack(f"pack {row.pack_id.hex()}: its row is gone")
            row = found
        raise CorruptPack(f"pack {row.pack_id.hex()}: its row was changed {TRIES} times meanwhile")
