"""The MetaStore of a world: etcd as nodes see it, over a network that fails them.

`SimMetaStore` is the store; each node has a `MetaStoreView` of it (`volume.metastore.MetaStore`),
which may not reach it, or not be told what came of a transaction, which may then happen later, or
read rows that are not the newest ones. The contract holds all the same: tests/unit/volume/
test_metastore.py.

What waits for etcd in a daemon waits on a thread. Here `MetaStoreClient.call` does: the call is
made at one moment, some time after it was asked for, and what came of it is told some time after
that, if the process that asked is there still.
"""

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from tests.metastore_twin import DictMetaStore
from tests.sim.cluster.timeline import Process, Timeline
from volume.metastore import (
    PAGE,
    Change,
    MetaStore,
    MetaStoreUnavailable,
    Outcome,
    Row,
    Unavailable,
    Unknown,
    check_changes,
)

T = TypeVar("T")

VERSIONS_KEPT = 4  # of a row, for reads of old ones
LATE_S = 30.0  # a transaction whose answer was lost happens by then or not at all


@dataclass(frozen=True, slots=True)
class MetaStoreWeather:
    """Chances of a call; times are seconds."""

    refused: float = 0.0
    """Not sent at all."""
    lost: float = 0.0
    """Nobody is told what came of a transaction..."""
    late: float = 0.3
    """...of these, such that still may happen."""
    old: float = 0.0
    """Reads that show what was before."""
    fastest_s: float = 0.0005
    slowest_s: float = 0.01


class SimMetaStore:
    """The rows, and how they were before."""

    def __init__(self, timeline: Timeline, seed: str) -> None:
        self.timeline = timeline
        self.random = random.Random(f"metastore:{seed}")
        self.weather = MetaStoreWeather()
        self.unreachable: set[str] = set()
        """Nodes that have no way to it."""
        self.commit_count = 0
        self._rows = DictMetaStore()
        self._before: dict[str, list[Row | None]] = {}

    def read(self, key: str) -> Row | None:
        """The newest row."""
        return self._rows.read(key)

    def list(self, prefix: str, after: str, limit: int) -> Sequence[Row]:
        return self._rows.list(prefix, after, limit)

    def old(self, key: str) -> Row | None:
        """The row as it is, or as it was at some time."""
        rows: list[Row | None] = [*self._before.get(key, []), self._rows.read(key)]
        return self.random.choice(rows)

    def commit(self, changes: Sequence[Change]) -> Outcome:
        """A transaction happens, or does not."""
        self.commit_count += 1
        self._note(change.key for change in changes)
        return self._rows.commit(changes)

    def hint(self, key: str, value: bytes, ttl_s: int) -> bool:
        self._note([key])
        return self._rows.hint(key, value, ttl_s)

    def view(self, node: str) -> "MetaStoreView":
        return MetaStoreView(self, node)

    def truth(self) -> "MetaStoreView":
        return TrueView(self, "truth")

    def _note(self, keys: Iterable[str]) -> None:
        for key in keys:
            before = self._before.setdefault(key, [])
            before.append(self._rows.read(key))
            del before[:-VERSIONS_KEPT]


class MetaStoreView:
    """The store as one node sees it. Nothing waits: a call is what it is at this moment."""

    def __init__(self, store: SimMetaStore, node: str) -> None:
        self._store = store
        self._node = node

    def read(self, key: str) -> Row | None:
        self._reach()
        return self._store.old(key) if self._drawn("old") else self._store.read(key)

    def list(self, prefix: str, after: str = "", limit: int = PAGE) -> Sequence[Row]:
        self._reach()
        return self._store.list(prefix, after, limit)

    def commit(self, changes: Sequence[Change]) -> Outcome:
        check_changes(changes)
        store, weather = self._store, self._store.weather
        if self._refused():
            return Unavailable(f"etcd: {self._node} has no connection to it")
        if not self._drawn("lost"):
            return store.commit(changes)
        draw = store.random.random()
        if draw < weather.late:
            kept = tuple(changes)
            store.timeline.after(store.random.random() * LATE_S, lambda: _late(store, kept))
        elif draw < (1 + weather.late) / 2:
            store.commit(changes)
        return Unknown("etcd: the answer was lost")

    def hint(self, key: str, value: bytes, ttl_s: int) -> bool:
        if self._refused():
            return False
        return self._store.hint(key, value, ttl_s)

    def close(self) -> None:
        pass

    def _drawn(self, what: str) -> bool:
        chance: float = getattr(self._store.weather, what)
        return chance > 0 and self._store.random.random() < chance

    def _refused(self) -> bool:
        return self._node in self._store.unreachable or self._drawn("refused")

    def _reach(self) -> None:
        if self._refused():
            raise MetaStoreUnavailable(f"etcd: {self._node} has no connection to it")


class TrueView(MetaStoreView):
    """The store as it is, for whoever looks at a world."""

    def _drawn(self, what: str) -> bool:
        return False

    def _refused(self) -> bool:
        return False


def _late(store: SimMetaStore, changes: Sequence[Change]) -> None:
    store.commit(changes)


class MetaStoreClient:
    """How one process uses the store, as if on a thread that waits for it."""

    def __init__(self, store: SimMetaStore, process: Process, node: str) -> None:
        self._store = store
        self._process = process
        self.view: MetaStore = store.view(node)

    def call(self, work: Callable[[], T], then: Callable[[T], None]) -> None:
        """Have `work` done, which uses `view`, and `then` told what it gave."""

        def sent() -> None:
            result = work()
            self._process.after(self._delay_s(), lambda: then(result))

        # What is on its way gets there, also when the process that sent it is gone.
        self._store.timeline.after(self._delay_s(), sent)

    def _delay_s(self) -> float:
        weather = self._store.weather
        span_s = weather.slowest_s - weather.fastest_s
        return weather.fastest_s + self._store.random.random() * span_s
