"""What an open store tells of itself: its status, and what it has counted."""

from dataclasses import dataclass

from native import Journal, PlaceTable
from volume.catalog import Catalog
from volume.checkpoint import Checkpoint
from volume.chunks import ChunkStore
from volume.destager import Destager
from volume.disk import Clock, Disk
from volume.manifest import Manifests
from volume.meta import Meta
from volume.model import StoreCounters, StoreStatus
from volume.options import JournalGeometry
from volume.seal import Seal
from volume.segments import SegmentPool
from volume.space import SpaceGuard
from volume.upkeep import Upkeep


@dataclass(frozen=True, slots=True)
class StoreFacts:
    """Looked at when they are asked for."""

    path: str
    disk: Disk
    clock: Clock
    meta: Meta
    journal: Journal
    geometry: JournalGeometry
    pool: SegmentPool
    table: PlaceTable
    chunks: ChunkStore
    manifests: Manifests
    catalog: Catalog
    destager: Destager
    space: SpaceGuard
    seal: Seal
    upkeep: Upkeep

    def status(self) -> StoreStatus:
        lsn, synced_lsn, *_ = self.journal.state()
        _, cache_bytes, cache_limit, _, _ = self.table.stats()
        packs = self.chunks.packs
        state, reason = "ok", None
        if self.seal.reason is not None:
            state, reason = "sealed", self.seal.reason
        elif self.space.full:
            state, reason = "full", "the disk has no room for more than what is written already"
        hot_since, held_up = self.upkeep.hot_since, self.destager.held_up
        checkpoint = Checkpoint.decode(self.meta.checkpoint or b"")
        return StoreStatus(
            path=self.path,
            uuid=self.meta.uuid.hex(),
            state=state,
            reason=reason,
            node_epoch=self.meta.node_epoch,
            volume_count=len(self.catalog),
            lsn=lsn,
            synced_lsn=synced_lsn,
            checkpoint_lsn=checkpoint.lsn - 1,
            journal_bytes=self.upkeep.journal_bytes(),
            journal_limit=self.geometry.limit + self.pool.lent * self.geometry.segment_bytes,
            hot_bytes=self.upkeep.hot_bytes(),
            oldest_hot_age_s=(
                0.0 if hot_since is None else round(self.clock.monotonic() - hot_since, 3)
            ),
            pack_count=packs.pack_count,
            pack_bytes=packs.total_bytes,
            cache_bytes=cache_bytes,
            cache_limit=cache_limit,
            disk_free_bytes=self.space.free_bytes,
            disk_total_bytes=self.disk.total_bytes(),
            space_left_bytes=self.space.left_bytes,
            space_short_bytes=self.space.short_bytes,
            destage_held_up="; ".join(map(str, held_up)) or None,
        )

    def counters(self) -> StoreCounters:
        _, _, _, place_hits, place_misses = self.table.stats()
        chunks, nodes = self.chunks.counters, self.manifests.cache
        return StoreCounters(
            destage_rounds=self.destager.rounds,
            chunk_bytes=chunks.put_bytes,
            zero_bytes=chunks.zero_bytes,
            duplicate_bytes=chunks.duplicate_bytes,
            new_bytes=chunks.stored_raw_bytes,
            stored_bytes=chunks.stored_bytes,
            place_hits=place_hits,
            place_misses=place_misses,
            node_hits=nodes.hits,
            node_misses=nodes.misses,
            repaired_reads=self.chunks.rescue.counters.answered,
            unrepaired_reads=self.chunks.rescue.counters.failed,
        )
