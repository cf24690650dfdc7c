"""The space report: every head, snapshot and history of a store, with what each takes."""

from collections.abc import Iterator

from volume.catalog import Catalog
from volume.chunks import ChunkStore
from volume.gc import Root
from volume.history import History
from volume.historyrows import VersionRow
from volume.layout import ZERO_ID
from volume.manifest import Manifests
from volume.model import SpaceReport
from volume.referred import ReferredTrees
from volume.segments import SegmentPool
from volume.upkeep import Upkeep
from volume.usage import UsageRoot, account
from volume.volume import Volume


class SpaceReporter:
    """Counts; takes long, and no lock."""

    def __init__(
        self,
        catalog: Catalog,
        history: History,
        chunks: ChunkStore,
        manifests: Manifests,
        pool: SegmentPool,
        referred: ReferredTrees,
        segment_bytes: int,
        upkeep: Upkeep,
    ) -> None:
        self._catalog = catalog
        self._history = history
        self._chunks = chunks
        self._manifests = manifests
        self._pool = pool
        self._referred = referred
        self._segment_bytes = segment_bytes
        self._upkeep = upkeep

    def report(self) -> SpaceReport:
        """What everything takes. What is in the journal only is not in any row: snapshots of it
        are brought into chunks first. CorruptData, OSError."""
        for number, seq in list(self._history.points):
            self._upkeep.settle(number, seq)
        with self._upkeep.without_gc():
            roots = [root for volume in self._volumes() for root in self._roots(volume)]
            log = self._log_root()
            usage = account(self._chunks, self._manifests, [*roots, log])
        return SpaceReport(
            rows=usage.rows[: len(roots)],
            volumes=tuple(row for row in usage.volumes if row[0] != log.volume),
            live_bytes=usage.live_bytes,
            garbage_bytes=usage.garbage_bytes,
            pack_bytes=self._chunks.packs.total_bytes,
            journal_bytes=self._pool.count * self._segment_bytes,
            window_bytes=self._pool.held_count * self._segment_bytes,
        )

    def _log_root(self) -> UsageRoot:
        """What records of the log refer to: in use, but of no volume."""
        trees = tuple(Root(tree.root, tree.height) for tree in self._referred.trees())
        return UsageRoot("", "history", None, trees, 1)

    def _volumes(self) -> list[Volume]:
        return sorted(self._catalog.all(), key=lambda volume: volume.name)

    def _roots(self, volume: Volume) -> Iterator[UsageRoot]:
        record = volume.record
        head = record.head
        trees = {row.seq: row for row in self._history.versions(record.number)}
        tree = Root(head.root, head.height, _commits(head.commit))
        pins = ("head", *volume.clients)
        yield UsageRoot(volume.name, "head", None, (tree,), record.chunk_size, pins)
        named = set()
        for snapshot in sorted(self._history.snapshots(record.number), key=lambda row: row.seq):
            row = trees.get(snapshot.seq)
            if row is None:
                continue  # damaged in the journal: it has no tree
            named.add(snapshot.seq)
            pin = (
                ("pin",) if snapshot.pinned else ("schedule",) if snapshot.scheduled else ("name",)
            )
            yield UsageRoot(
                volume.name, "snapshot", snapshot.name, (_tree(row),), record.chunk_size, pin
            )
        start = next(self._history.rounds(), None)
        rest = [row for seq, row in trees.items() if seq not in named and seq != head.seq]
        if rest:
            log_from = start.lsn if start else 0
            pins = tuple(
                text
                for text, holds in (
                    ("window", any(row.lsn >= log_from - 1 for row in rest)),
                    ("keep", any(row.lsn < log_from - 1 for row in rest)),
                )
                if holds
            )
            history = tuple(_tree(row) for row in rest)
            yield UsageRoot(volume.name, "history", None, history, record.chunk_size, pins)


def _tree(row: VersionRow) -> Root:
    return Root(row.root, row.height, _commits(row.commit))


def _commits(commit: bytes) -> tuple[bytes, ...]:
    return () if commit == ZERO_ID else (commit,)
