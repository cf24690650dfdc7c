"""Opening a store: what is made of `meta/`, the packs and the journal before anything is served.

The checkpoint says where the log goes on from what is in chunks; index and packs help each other;
what the log has beyond the checkpoint is replayed into the volumes, and the names in it into
`meta/`. A crash at any point leaves a directory that is opened by the same steps.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

from native import Journal
from volume.catalog import Catalog
from volume.checkpoint import Checkpoint, first_checkpoint
from volume.datadir import index_left
from volume.disk import Clock, Disk
from volume.history import History
from volume.historyrows import RoundRow, VersionRow, round_put, versions_put
from volume.index import ChunkIndex
from volume.kv import KeyValue
from volume.laterkv import LaterKeyValue
from volume.meta import Meta
from volume.noted import Notes
from volume.options import StoreOptions, journal_geometry
from volume.packs import Packs
from volume.points import decode as decode_point
from volume.recovery import JournalRecovery
from volume.referred import ReferredTrees
from volume.seal import Seal
from volume.segments import SegmentPool
from volume.sites import fail_point

log = logging.getLogger(__name__)


def find_checkpoint(meta: Meta, options: StoreOptions, disk: Disk) -> Checkpoint:
    """That of `meta/`; a new store gets its first one."""
    if meta.checkpoint is not None:
        return Checkpoint.decode(meta.checkpoint)
    geometry = journal_geometry(options, disk.total_bytes(), None)
    checkpoint = first_checkpoint(geometry.segment_bytes)
    meta.move_heads({}, checkpoint.encode())
    return checkpoint


def note_first_versions(meta: Meta, history: History, checkpoint: Checkpoint, now_ns: int) -> None:
    """What a directory of an older release lacks: a round at its checkpoint, and a version for
    the head of each volume."""
    puts: dict[bytes, bytes] = {}
    if next(history.rounds(), None) is None:
        puts |= round_put(
            RoundRow(
                *(checkpoint.lsn, checkpoint.sequence, checkpoint.position, checkpoint.chain),
                now_ns,
            )
        )
    for record in meta.volumes():
        if history.base(record.number) is None:
            head = record.head
            row = VersionRow(
                *(record.number, head.seq, record.epoch, checkpoint.lsn - 1, now_ns),
                *(record.size, 0, head.commit, head.root, head.height),
            )
            puts |= versions_put([row])
    if puts:
        meta.put_rows(puts)


def open_packs(
    meta: Meta,
    disk: Disk,
    boot_id: str,
    pack_bytes: int,
    open_index: Callable[[bool], KeyValue],
    closers: list[Callable[[], None]],
) -> tuple[Packs, ChunkIndex]:
    """Each is opened with the other's help: an index that is trusted tells which entries of an
    unsealed pack were durable, and one that is not is made anew of the packs. What closes them
    is added to `closers`."""
    trusted = meta.index_trusted(boot_id)
    kv = open_index(not trusted)
    closers.append(kv.close)
    if trusted and not index_left(kv):
        log.warning("the index is gone, although it was closed cleanly")
        trusted = False  # what is trusted is that what was left is whole
    index = ChunkIndex(kv, meta.uuid)
    packs = Packs(
        disk,
        meta.uuid,
        pack_bytes=pack_bytes,
        index=index if trusted else None,
    )
    closers.append(packs.close)
    if not trusted and packs.numbers():
        log.info("index not trusted, as after a power cut: rebuilt from packs")
        index.rebuild(packs, lambda done, total: _log_rebuild(done, total))
        fail_point("open.index-rebuilt")
    meta.mark_index_open(boot_id)
    return packs, index


@dataclass(frozen=True, slots=True)
class Opening:
    """What a replay is put into."""

    disk: Disk
    clock: Clock
    journal: Journal
    pool: SegmentPool
    meta: Meta
    meta_kv: LaterKeyValue
    history: History
    catalog: Catalog
    notes: Notes
    referred: ReferredTrees
    seal: Seal
    accept_loss: bool

    def run(self, checkpoint: Checkpoint) -> None:
        """Replay the log from `checkpoint` on. What is in it is durable on return."""
        recovery = JournalRecovery(
            self.disk,
            self.clock,
            self.journal,
            self.pool,
            self.meta.uuid,
            checkpoint,
            list(self.history.rounds()),
            node_epoch=self.meta.node_epoch,
            known={record.number: record for record in self.meta.volumes()},
            next_volume=self.meta.next_number,
            accept_loss=self.accept_loss,
        )
        volumes = self.catalog.all()
        recovered = recovery.run({volume.record.number: volume.core for volume in volumes})
        if recovered.checkpoint is not None:
            self.meta.move_heads({}, recovered.checkpoint.encode())
        if recovered.lost:
            self._forget_lost(recovered.checkpoint or checkpoint, recovered.lsn)
        self.catalog.unrecorded |= {volume.record.number for volume in volumes} - recovered.heads
        fail_point("open.replayed")
        self.seal.sync_journal()  # what was replayed is durable before anything is served
        next_lsn, sequence, *_ = self.journal.cut()
        hot = any(volume.core.state()[4] for volume in volumes)
        self.referred.replayed(next_lsn - 1 if hot else checkpoint.lsn - 1, sequence)
        known = self.meta_kv.points_lsn
        for lsn, number, seq, payload in recovered.points:
            if lsn > known and number:
                self.notes.replay(number, seq, lsn, payload)
            elif lsn > known:
                self.catalog.replay_point(decode_point(lsn, payload))
        self.meta_kv.flush()

    def _forget_lost(self, checkpoint: Checkpoint, next_lsn: int) -> None:
        """Flushed records are gone for good, and with them what was named in them."""
        for volume in self.catalog.all():
            rows = self.history.points_of(volume.record.number)
            lost = [row for row in rows if row.lsn >= next_lsn]
            seqs = {row.seq for row in lost}
            names = [
                snapshot
                for snapshot in self.history.snapshots(volume.record.number)
                if snapshot.seq in seqs
            ]
            for snapshot in names:
                log.error(
                    "snapshot lost with the journal snapshot=%s@%s", volume.name, snapshot.name
                )
            self.history.drop_snapshots(names)
            self.history.drop_points(lost)
            self.meta.put_rows(  # in chunks before the checkpoint got there: that is kept
                versions_put(
                    replace(row, lsn=next_lsn - 1)
                    for row in self.history.versions(volume.record.number)
                    if row.lsn >= next_lsn
                )
            )
        rounds = list(self.history.rounds())
        self.history.put_round(
            RoundRow(
                *(checkpoint.lsn, checkpoint.sequence, checkpoint.position, checkpoint.chain),
                self.clock.now_ns(),
            )
        )
        self.history.drop_rounds(row for row in rounds if row.lsn > checkpoint.lsn)
        self.meta_kv.reset_points(min(self.meta_kv.points_lsn, next_lsn - 1))


def _log_rebuild(done: int, total: int) -> None:
    if done % 64 == 0 or done == total:
        log.info("index rebuild packs=%d/%d", done, total)
