"""What upkeep works on (`volume.upkeep`), and how full the journal is by that."""

from dataclasses import dataclass

from native import Journal, PlaceTable
from volume.backlog import WriteBacklog
from volume.catalog import Catalog
from volume.changes import ChangeTracker
from volume.chunks import ChunkStore
from volume.destager import Destager
from volume.disk import Clock
from volume.history import History
from volume.manifest import Manifests
from volume.options import JournalGeometry, StoreOptions
from volume.past import OpenVersions, PastVersions
from volume.reader import ChunkResolver
from volume.receive import Receives
from volume.referred import ReferredTrees
from volume.seal import Seal
from volume.segments import SegmentPool
from volume.snapshots import Snapshots
from volume.space import SpaceGuard


@dataclass(frozen=True, slots=True)
class Upkept:
    """What upkeep works on."""

    clock: Clock
    options: StoreOptions
    geometry: JournalGeometry
    window_segments: int
    journal: Journal
    pool: SegmentPool
    chunks: ChunkStore
    manifests: Manifests
    resolver: ChunkResolver
    table: PlaceTable
    catalog: Catalog
    history: History
    past: PastVersions
    opened: OpenVersions
    tracker: ChangeTracker
    receives: Receives
    referred: ReferredTrees
    snapshots: Snapshots
    destager: Destager
    backlog: WriteBacklog
    space: SpaceGuard
    seal: Seal

    # -- figures

    def journal_bytes(self) -> int:
        """Bytes of the journal that hold what is not in chunks."""
        _, _, _, _, full, position, _ = self.journal.state()
        return full * self.geometry.segment_bytes + position

    def passed_bytes(self) -> int:
        """Bytes of the log since the last cut, before which all but stuck volumes is in chunks."""
        passed = self.destager.passed
        if passed is None:
            return self.journal_bytes()
        _, sequence, position, _ = self.journal.cut()
        return (sequence - passed.sequence) * self.geometry.segment_bytes + position

    def lent_segments(self) -> int:
        """Segments that the journal may have beyond its limit: what stuck volumes keep of it."""
        passed = self.destager.passed
        if passed is None or self.space.short:
            return 0
        kept = self.journal.state()[4] - (self.journal.cut()[1] - passed.sequence)
        return max(0, min(kept, self.window_segments, self.geometry.max_segments))

    def fill(self) -> float:
        """How much of the journal's limit is used, by what is not lent to it."""
        lent_bytes = self.pool.lent * self.geometry.segment_bytes
        return (self.journal_bytes() - lent_bytes) / self.geometry.limit

    def hot_bytes(self) -> int:
        return sum(volume.core.state()[3] for volume in self.catalog.all())
