"""Rows of packs in the MetaStore: `pack/<pack id>`, one for each stripe, and for each that comes to
be one. A pack that is only copies has none.

    reserved   coming, copies     shards are being written
    a stripe   shards, users      perhaps with copies, which its writer has not let go of yet
    removing   shards             each node lets its own go, and the last one the row

A row is below MAX_ROW_BYTES whatever is in it; of the rows of a cluster PAGE are read at once.
"""

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Final

from native import ERASURE_MAX_SHARDS
from transport.packrow import PackRow
from volume.metastore import ClusterRecords, Done, Lost, MetaStoreUnavailable, Stored
from volume.metastore_records import CorruptRecord, Fields, decode

log = logging.getLogger(__name__)

MAX_USERS: Final = 64
MAX_ROW_BYTES: Final = 16384
"""20 shards, as many that come, 64 users, as many that join, or have left: below 9 KiB."""
MAX_PACK_BYTES: Final = 1 << 40

_HASH = re.compile(r"[0-9a-f]{64}")
_ID = re.compile(r"[0-9a-f]{32}")
_ID_OR_NONE = re.compile(r"[0-9a-f]{32}|")


@dataclass(frozen=True, slots=True)
class PackRecord:
    row: PackRow
    token: str = ""

    prefix: ClassVar[str] = "pack/"
    max_bytes: ClassVar[int] = MAX_ROW_BYTES

    @property
    def key(self) -> str:
        return key_of(self.row.pack_id)

    def fields(self) -> dict[str, Any]:
        row = self.row
        return {
            "pack": row.pack_id.hex(),
            "size": row.size,
            "copies": list(row.copies),
            "shards": [each or "" for each in row.shards],
            "k": row.data,
            "shard_bytes": row.shard_bytes,
            "digest": row.digest.hex(),
            "coming": list(row.coming),
            "owner": row.owner,
            "users": list(row.users),
            "joining": list(row.joining),
            "left": list(row.left),
            "removing": int(row.removing),
            **({"given_up": 1} if row.given_up else {}),
        }

    @classmethod
    def parse(cls, fields: Fields) -> "PackRecord":
        shards = fields.texts("shards", _ID_OR_NONE, 0, ERASURE_MAX_SHARDS)
        row = PackRow(
            pack_id=bytes.fromhex(fields.matching("pack", _HASH)),
            size=fields.number("size", 1, MAX_PACK_BYTES),
            copies=fields.texts("copies", _ID, 0, MAX_USERS),
            shards=tuple(each or None for each in shards),
            data=fields.number("k", 1, ERASURE_MAX_SHARDS),
            shard_bytes=fields.number("shard_bytes", 0, MAX_PACK_BYTES),
            digest=bytes.fromhex(fields.matching("digest", _ID_OR_NONE)),
            coming=fields.texts("coming", _ID, 0, ERASURE_MAX_SHARDS),
            owner=fields.matching("owner", _ID_OR_NONE),
            users=fields.texts("users", _ID, 0, MAX_USERS),
            joining=fields.texts("joining", _ID, 0, MAX_USERS),
            left=fields.texts("left", _ID, 0, MAX_USERS),
            removing=bool(fields.number("removing", 0, 1)),
            given_up="given_up" in fields.values and bool(fields.number("given_up", 0, 1)),
        )
        if bool(row.shards) == bool(row.coming):
            fields.fail("is no stripe, or one that is being made as well")
        if len(row.shards or row.coming) <= row.data:
            fields.fail(f"has {len(row.shards or row.coming)} shards, {row.data} of them data")
        if bool(row.shards) != bool(row.digest and row.shard_bytes) or bool(row.coming) != bool(
            row.owner
        ):
            fields.fail("lacks what a stripe has")
        return cls(row, fields.id("token"))


def key_of(pack_id: bytes) -> str:
    return PackRecord.prefix + pack_id.hex()


def has_record(row: PackRow) -> bool:
    """Whether the MetaStore has a row for it; a pack that is only copies has none."""
    return bool(row.shards or row.coming)


class PackRecords:
    """Satisfies `transport.packrow.PackRows`. Any thread; errors are MetaStoreUnavailable and
    CorruptRecord."""

    def __init__(self, records: ClusterRecords) -> None:
        self._records = records

    def read(self, pack_id: bytes) -> PackRow | None:
        found = self._stored(pack_id)
        return None if found is None else found.record.row

    def all(self) -> Iterator[PackRow]:
        """Every row that can be read, by id."""
        return (row for row in self.listing() if isinstance(row, PackRow))

    def listing(self) -> Iterator[PackRow | bytes]:
        """Every row; of one that is damaged its pack id."""
        for row in self._records.rows(PackRecord):
            try:
                yield decode(PackRecord, row.key, row.value).row
            except CorruptRecord as error:
                log.error("row of a pack cannot be used error=%s", error)
                yield _id_of(row.key)

    def swap(self, before: PackRow, after: PackRow) -> bool:
        """See `PackRows.swap`. `after` without shards, and without any that come: the row goes."""
        found = self._stored(before.pack_id)
        old = before if has_record(before) else None
        new = after if has_record(after) else None
        now = None if found is None else found.record.row
        if now != old:
            return now == new
        if new == old:
            return True
        record = None if new is None else PackRecord(new)
        outcome = self._records.settle(self._records.put(found, record))
        if isinstance(outcome, Done):
            return True
        if isinstance(outcome, Lost):
            (row,) = outcome.rows
            stored = self._records.stored(PackRecord, row)
            return (None if stored is None else stored.record.row) == new
        raise MetaStoreUnavailable(f"metastore: {key_of(before.pack_id)}: {outcome.reason}")

    def _stored(self, pack_id: bytes) -> Stored[PackRecord] | None:
        row = self._records.store.read(key_of(pack_id))
        return self._records.stored(PackRecord, row)


def _id_of(key: str) -> bytes:
    text = key.removeprefix(PackRecord.prefix)
    return bytes.fromhex(text) if _HASH.fullmatch(text) else b""


def without(row: PackRow, number: int) -> PackRow:
    """The row when nobody has that shard any more; without any, the row goes."""
    shards = tuple([None if n == number else each for n, each in enumerate(row.shards)])
    return replace(row, shards=shards if any(shards) else ())
