"""The destager: moves what is hot (in the journal only) into chunks, in rounds.

A round, and what a crash after each step leaves:

    1  freeze    one position of the log is chosen (the cut), all hot maps    nothing has changed
                 freeze there; new writes go to fresh maps
    2  build     frozen extents, over the old chunks, become new chunks;      unused entries in
                 manifest nodes and a commit for each volume follow           packs; gc takes them
    3  chunks    packs synced, then the index                                 the same
    4  journal   HEAD records appended; journal synced: the segment that      the same
                 the checkpoint will name is durable
    5  meta      heads and checkpoint move in one synced transaction          the new heads; replay
                                                                              begins at the cut
    6  memory    frozen maps dropped, places of new chunks cached, segments   the same
                 before the cut are free

A round that fails keeps its frozen maps, reads go on through them, and the round is tried again
from step 2. Out of space: `abandon`, then gc, then again. Nothing is lost meanwhile: it is all in
the journal. One thread runs rounds and gc; see `volume.chunks` for who else may read.
"""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass

from native import Journal, ReadFault
from volume.checkpoint import Checkpoint
from volume.chunks import ChunkStore
from volume.commits import Commit, encode, put_commit
from volume.disk import Clock
from volume.errors import CorruptJournal
from volume.layout import FAN_OUT, ZERO_ID, ChunkId
from volume.manifest import Manifests, height_for
from volume.meta import Head, Meta
from volume.reader import ChunkResolver, HeadState
from volume.segments import segment_path
from volume.volume import Volume

log = logging.getLogger(__name__)

WINDOW_BYTES = 1024 * 1024  # put together at once
SITE = "local"
WRITER = "blockd"


@dataclass(frozen=True, slots=True)
class _Built:
    """What a round made of one volume."""

    volume: Volume
    head: Head
    commit: Commit
    chunks: dict[int, ChunkId]
    """Chunk index -> id, where bytes were written."""


@dataclass(slots=True)
class _Round:
    """What was frozen together: the cut, and each volume with its seq there."""

    checkpoint: Checkpoint
    volumes: list[tuple[Volume, int]]


class Destager:
    """Runs rounds. All methods on one thread."""

    def __init__(
        self,
        journal: Journal,
        chunks: ChunkStore,
        manifests: Manifests,
        resolver: ChunkResolver,
        meta: Meta,
        clock: Clock,
        segment_bytes: int,
        *,
        freed: Callable[[list[int]], None],
        control: threading.Lock,
    ) -> None:
        """`control` is held while volumes come, go or change, and while a round freezes them or
        moves their heads."""
        self._journal = journal
        self._chunks = chunks
        self._manifests = manifests
        self._resolver = resolver
        self._meta = meta
        self._clock = clock
        self._segment_bytes = segment_bytes
        self._freed = freed
        self._control = control
        self._round: _Round | None = None
        self.rounds = 0

    def run(self, volumes: Callable[[], list[Volume]]) -> bool:
        """One round over whatever is hot in `volumes()`; whether there was anything.

        OutOfSpace: the round stands and is tried again by the next call. CorruptData: a write, or
        a chunk that one covers in part, is damaged. OSError: the disk failed; seal."""
        current = self._round or self._freeze(volumes)
        if current is None:
            return False
        try:
            heads = self._build(current)
            self._chunks.sync()
        except Exception:  # whatever it was (a shrink under its hands, too): it starts again here
            self._chunks.abandon()
            raise
        self._commit(current, heads)
        return True

    def _freeze(self, volumes: Callable[[], list[Volume]]) -> _Round | None:
        """All volumes, also those that seem cold: a write may come in before the cut is made."""
        with self._control:
            everyone = volumes()
            full = self._journal.state()[4]  # without anything hot: their volumes are gone
            if not full and not any(volume.core.state()[4] for volume in everyone):
                return None
            cut, seqs = self._journal.freeze([volume.core for volume in everyone])
            hot = []
            for volume, seq in zip(everyone, seqs, strict=True):
                if seq != volume.record.head.seq:
                    hot.append((volume, seq))
                else:
                    volume.core.commit(volume.head().generation)  # nothing was frozen
            self._round = _Round(Checkpoint(*cut, self._segment_bytes), hot)
        return self._round

    def _build(self, current: _Round) -> dict[int, _Built]:
        """Step 2 for each volume that still exists."""
        built = {}
        for volume, seq in current.volumes:
            if not volume.deleted:
                built[volume.record.number] = self._build_volume(volume, seq)
        return built

    def _build_volume(self, volume: Volume, seq: int) -> _Built:
        record = volume.record
        old = record.head
        height = max(old.height, height_for(record.size, record.chunk_size))
        changes: dict[int, ChunkId] = {}
        zeroed: list[tuple[int, int]] = []
        # What a shrink has cut off is not stored, and what the old head has of it goes.
        end = -(-record.size // record.chunk_size)
        for first, count, zero in volume.core.frozen_runs():
            stop = first + count
            kept = first if zero else max(first, min(stop, end))
            if first < kept:
                self._build_run(volume, first, kept, changes)
            zeroed.append((kept, min(stop, FAN_OUT**height)))
        zeroed.extend(
            (index, index + 1) for index, chunk_id in changes.items() if chunk_id == ZERO_ID
        )
        set_to = {index: chunk_id for index, chunk_id in changes.items() if chunk_id != ZERO_ID}
        root = self._manifests.grow(old.root, old.height, height)
        root = self._manifests.update(root, height, set_to, zeroed)
        commit = Commit(
            volume_uuid=record.uuid,
            name=record.name,
            size=record.size,
            block_size=record.block_size,
            chunk_size=record.chunk_size,
            height=height,
            root=root,
            parents=() if old.commit == ZERO_ID else (old.commit,),
            first_seq=old.seq + 1,
            last_seq=seq,
            time_ns=self._clock.now_ns(),
            epoch=record.epoch,
            site=SITE,
            writer=WRITER,
        )
        head = Head(put_commit(self._chunks, commit), root, height, seq)
        return _Built(volume, head, commit, changes)

    def _build_run(
        self, volume: Volume, first: int, stop: int, changes: dict[int, ChunkId]
    ) -> None:
        """Chunks [first, stop): old bytes where the frozen map has none, its bytes over them."""
        size = volume.record.chunk_size
        window = max(1, WINDOW_BYTES // size)
        head = volume.head()
        buffer = bytearray(min(window, stop - first) * size)
        for start in range(first, stop, window):
            count = min(window, stop - start)
            view = memoryview(buffer)[: count * size]
            if not volume.core.frozen_covers(start * size, count * size):
                for index in range(start, start + count):
                    if not volume.core.frozen_covers(index * size, size):
                        at = (index - start) * size
                        view[at : at + size] = self._old_bytes(head, index, size)
            self._overlay(volume, start * size, view)
            for index in range(start, start + count):
                at = (index - start) * size
                changes[index] = self._chunks.put(view[at : at + size])

    @staticmethod
    def _overlay(volume: Volume, offset: int, view: memoryview) -> None:
        try:
            volume.core.overlay_frozen(offset, view)
        except ReadFault as fault:
            at, slot, place, _ = fault.args
            raise CorruptJournal(
                f"volume {volume.name}: the journal ({segment_path(slot)} at {place}) does not "
                f"hold what was written at offset {at}; restore the data directory from a copy"
            ) from None

    def _old_bytes(self, head: HeadState, index: int, size: int) -> bytes:
        chunk_id = self._resolver.chunk_id(head, index)
        return bytes(size) if chunk_id == ZERO_ID else self._chunks.get(chunk_id)

    def _commit(self, current: _Round, built: dict[int, _Built]) -> None:
        now_ns = self._clock.now_ns()
        for each in built.values():
            self._append_head(each, now_ns)
        self._journal.sync()
        heads = {number: each.head for number, each in built.items()}
        with self._control:  # a record that somebody just read would come back with the old head
            self._meta.move_heads(heads, current.checkpoint.encode())
            self._round = None
            for volume, _ in current.volumes:
                volume.move_head(self._meta.numbered(volume.record.number) or volume.record)
        for each in built.values():
            volume = each.volume
            self._resolver.warm(volume.target(), volume.head(), each.chunks.items())
        self._freed(self._journal.release(current.checkpoint.lsn))
        self.rounds += 1

    def _append_head(self, built: _Built, now_ns: int) -> None:
        """A HEAD record: commit id and commit, so that losing meta/ loses names, never data.

        It is only a second copy: a journal that is full to the last segment goes without it."""
        try:
            self._journal.append_head(
                built.volume.record.number,
                built.commit.epoch,
                built.head.seq,
                built.head.commit + encode(built.commit),
                now_ns,
            )
        except BlockingIOError:
            log.debug("no journal segment for a head record volume=%s", built.volume.name)
