"""The MetaStore of a single node, in the synced environment `meta/` beside the rows of `Meta`.

Rows are `m/` + key -> framed (revision, u64, then the value); `m-revision` has the newest revision
that was given. Every commit is one LMDB transaction, durable when it returns, so there is no
`Unknown` here: an error of the disk is raised, as `KeyValue` does.

The data directory is locked by one process (`volume.locking`), so a mutex makes guard and update
one step. `Meta` has to have formatted the environment before.
"""

import threading
from collections.abc import Sequence
from itertools import islice

from volume import layout
from volume.errors import OutOfSpace
from volume.framing import corrupt_value, framed, unframed, unpacked
from volume.kv import KeyValue
from volume.metastore import (
    PAGE,
    Change,
    Done,
    Outcome,
    Row,
    Unavailable,
    check_changes,
    settle,
)

PREFIX = b"m/"
REVISION_KEY = b"m-revision"


class EmbeddedMetaStore:
    """Rows in `kv`, which stays the caller's: `close` does not close it."""

    def __init__(self, kv: KeyValue) -> None:
        self._kv = kv
        self._lock = threading.Lock()
        last = kv.get(REVISION_KEY)
        self._revision: int = (
            0
            if last is None
            else unpacked(layout.META_U64, REVISION_KEY, unframed(REVISION_KEY, last))[0]
        )

    def read(self, key: str) -> Row | None:
        value = self._kv.get(PREFIX + key.encode())
        return None if value is None else self._row(key, value)

    def list(self, prefix: str, after: str = "", limit: int = PAGE) -> Sequence[Row]:
        past = PREFIX + after.encode()
        found = (item for item in self._kv.items(PREFIX + prefix.encode()) if item[0] > past)
        return [self._row(_key(key), value) for key, value in islice(found, limit)]

    def commit(self, changes: Sequence[Change]) -> Outcome:
        check_changes(changes)
        with self._lock:
            rows = [self.read(change.key) for change in changes]
            if rows != [change.before for change in changes]:
                return settle(changes, rows)
            try:
                return Done(self._write([(change.key, change.value) for change in changes]))
            except OutOfSpace as error:
                return Unavailable(str(error))

    def hint(self, key: str, value: bytes, ttl_s: int) -> bool:
        with self._lock:
            try:
                self._write([(key, value)])
            except OutOfSpace:
                return False
            return True

    def close(self) -> None:
        pass

    def _write(self, values: Sequence[tuple[str, bytes | None]]) -> tuple[Row | None, ...]:
        revision = self._revision + 1
        stamp = layout.META_U64.pack(revision)
        puts = {REVISION_KEY: framed(stamp)}
        puts |= {PREFIX + key.encode(): framed(stamp + v) for key, v in values if v is not None}
        deletes = [PREFIX + key.encode() for key, v in values if v is None]
        self._kv.update(puts, deletes)
        self._revision = revision
        return tuple(None if v is None else Row(key, v, revision) for key, v in values)

    def _row(self, key: str, value: bytes) -> Row:
        at = PREFIX + key.encode()
        body = unframed(at, value)
        if len(body) < layout.META_U64.size:
            corrupt_value("meta", at, f"is {len(body)} bytes long")
        (revision,) = layout.META_U64.unpack_from(body)
        return Row(key, body[layout.META_U64.size :], revision)


def _key(key: bytes) -> str:
    try:
        return key[len(PREFIX) :].decode()
    except UnicodeDecodeError:
        corrupt_value("meta", key, "is under a key that is not UTF-8")
