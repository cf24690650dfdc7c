"""A MetaStore in a dict: the reference that the real ones are compared with."""

import threading
from collections.abc import Sequence

from volume.metastore import PAGE, Change, Done, Lost, Outcome, Row


class DictMetaStore:
    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}
        self._revision = 0
        self._lock = threading.Lock()

    def read(self, key: str) -> Row | None:
        return self.rows.get(key)

    def list(self, prefix: str, after: str = "", limit: int = PAGE) -> Sequence[Row]:
        with self._lock:
            keys = sorted(key for key in self.rows if key.startswith(prefix) and key > after)
            return [self.rows[key] for key in keys[:limit]]

    def commit(self, changes: Sequence[Change]) -> Outcome:
        with self._lock:
            now = tuple(self.rows.get(change.key) for change in changes)
            if any(row != change.before for row, change in zip(now, changes, strict=True)):
                same = all(
                    (row.value if row else None) == change.value
                    for row, change in zip(now, changes, strict=True)
                )
                return Done(now) if same else Lost(now)
            self._revision += 1
            for change in changes:
                if change.value is None:
                    del self.rows[change.key]
                else:
                    self.rows[change.key] = Row(change.key, change.value, self._revision)
            return Done(tuple(self.rows.get(change.key) for change in changes))

    def hint(self, key: str, value: bytes, ttl_s: int) -> bool:
        with self._lock:
            self._revision += 1
            self.rows[key] = Row(key, value, self._revision)
            return True

    def close(self) -> None:
        pass
