"""gc: what no root reaches is removed from the packs. Mark and sweep, never counters.

Mark walks every tree and sets one bit for each chunk reached, by pack and ordinal of the entry:
2 MiB of memory for 1 TiB of 64 KiB chunks. A node whose bit is set already is not walked again, so
what versions share costs nothing (data can never have the id of a node, see `volume.manifest`). A
chunk that should be there and is not in the index stops gc before anything was removed.

Sweep looks at sealed packs only; the one that is appended to is left alone. A pack
- with nothing live is removed;
- with less than MIN_LIVE of its bytes live, or one of several small ones, is copied forward: its
  live entries are verified, appended to the newest pack, and the old pack is removed;
- whose footer is damaged, or whose live entries do not all verify, stays as it is and is counted.

Order, and what a crash after each step leaves:

    removing  1  index forgets the dead      entries nobody can find; the next gc removes the pack
              2  unlink                      as before, or done
    copying   1  live entries appended       copies that nothing refers to; swept as dead later
              2  packs synced                the same
              3  index points at the copies  the old pack holds only dead entries; removed later
              4  index forgets the dead      the same
              5  unlink                      as before, or done

The index is not synced, so a power cut may undo 3 and 4 but keep 5; it is then rebuilt from the
packs (`Meta.index_trusted`), where the copies are. A pack that comes back because its unlink was
not durable brings entries back that are true to their ids, and is removed again by a later gc.

gc runs on the writer's thread, between rounds: everything put is synced and in a head, and nothing
is put meanwhile. Readers go on. `roots` must name every tree that anyone can still read: heads,
snapshots, and what a reader has begun with. A chunk that is wanted again later is stored again.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

from volume.chunks import ChunkStore
from volume.errors import CorruptChunk, CorruptData, CorruptPack, OutOfSpace
from volume.index import Place
from volume.layout import ZERO_ID, ChunkId
from volume.manifest import Manifests
from volume.packfile import entry_length

log = logging.getLogger(__name__)

MIN_LIVE = 0.6  # of a pack's bytes; below it copying pays
SMALL_PACK = 0.25  # of the size at which packs are sealed; two or more of these are joined
LOOKUP_BATCH = 4096  # footer rows looked up in the index at once


class Root(NamedTuple):
    """A tree that stays, with the commits that lead to it."""

    root: ChunkId
    height: int
    commits: tuple[ChunkId, ...] = ()


@dataclass(slots=True)
class GcReport:
    """What one run did. Bytes are of pack files, except `copied_bytes` (entries)."""

    bytes_before: int = 0
    bytes_after: int = 0
    chunks_live: int = 0
    chunks_removed: int = 0
    packs_removed: int = 0
    packs_copied: int = 0
    packs_damaged: int = 0
    copied_bytes: int = 0
    stopped: bool = False
    """`should_stop` said so; the rest is for the next run."""
    out_of_space: bool = False
    """There was no room for copies; dead packs were removed all the same."""
    duration_s: float = 0.0


def collect(
    store: ChunkStore,
    manifests: Manifests,
    roots: Iterable[Root],
    *,
    monotonic: Callable[[], float],
    moved: Callable[[int], None] | None = None,
    removed: Callable[[int], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> GcReport:
    """Remove what `roots` do not reach. The removals are durable on return.

    `moved(number)` is called when the live chunks of a pack have new places, `removed(number)` when
    a pack without any is gone; both files are unlinked, but stay readable for who holds them open.
    `should_stop` is asked between nodes, and between packs.
    CorruptChunk, CorruptManifest: a tree cannot be walked; nothing was removed. OSError: seal.
    """
    assert store.pending_count == 0, "gc runs between rounds"
    run = _Run(store, moved or _ignore, removed or _ignore, should_stop or _never)
    started = monotonic()
    report = run.report
    report.bytes_before = store.packs.total_bytes
    try:
        run.mark(manifests, roots)
        run.sweep()
    except _Stopped:
        report.stopped = True
    report.bytes_after = store.packs.total_bytes
    report.duration_s = monotonic() - started
    log.info("gc done report=%s", report)
    return report


class Marks:
    """One bit for each entry of each pack."""

    def __init__(self) -> None:
        self._bits: dict[int, bytearray] = {}

    def mark(self, place: Place) -> bool:
        """Set the bit of an entry; whether it was not set before."""
        bits = self._bits.setdefault(place.pack, bytearray())
        at, bit = place.ordinal >> 3, 1 << (place.ordinal & 7)
        if at >= len(bits):
            bits.extend(bytes(at + 1 - len(bits)))
        if bits[at] & bit:
            return False
        bits[at] |= bit
        return True

    def marked(self, place: Place) -> bool:
        bits = self._bits.get(place.pack, b"")
        at = place.ordinal >> 3
        return at < len(bits) and bool(bits[at] >> (place.ordinal & 7) & 1)

    def count(self, number: int) -> int:
        """Marked entries of a pack."""
        return int.from_bytes(self._bits.get(number, b""), "little").bit_count()


class _Entries(NamedTuple):
    """The entries of a pack that the index knows to be there."""

    live: list[tuple[ChunkId, Place]]
    dead: list[ChunkId]

    @property
    def live_bytes(self) -> int:
        return sum(entry_length(place.stored_length) for _, place in self.live)


class _Stopped(Exception):
    pass


class _Run:
    """One mark and sweep."""

    def __init__(
        self,
        store: ChunkStore,
        moved: Callable[[int], None],
        removed: Callable[[int], None],
        should_stop: Callable[[], bool],
    ) -> None:
        self.report = GcReport()
        self._index = store.index
        self._packs = store.packs
        self._moved = moved
        self._removed = removed
        self._should_stop = should_stop
        self._marks = Marks()

    def mark(self, manifests: Manifests, roots: Iterable[Root]) -> None:
        for root in roots:
            self._mark_all([commit for commit in root.commits if commit != ZERO_ID])
            manifests.walk(root.root, root.height, self._enter, self._mark_all)

    def sweep(self) -> None:
        """Dead packs go first: that may be the space that the copies need."""
        numbers = self._packs.sealed()
        try:
            crowded = [number for number in numbers if not self._removed_dead(number)]
            sparse, small = [], []
            for number in crowded:
                self._check_stop()
                fraction = self._live_fraction(number)
                if fraction is None:
                    self.report.packs_damaged += 1
                elif fraction < MIN_LIVE:
                    sparse.append(number)
                elif self._packs.size(number) < SMALL_PACK * self._packs.pack_bytes:
                    small.append(number)
            for number in sparse + (small if len(small) > 1 else []):
                self._check_stop()
                self._copy(number)
        except OutOfSpace as error:
            self._packs.abandon()
            self.report.out_of_space = True
            log.warning("gc has no room to copy error=%s", error)
        finally:
            self._packs.sync_folder()

    # -- mark

    def _enter(self, node: ChunkId) -> bool:
        self._check_stop()
        return self._mark(node, self._index.get(node))

    def _mark_all(self, chunk_ids: list[ChunkId]) -> None:
        for chunk_id, place in zip(chunk_ids, self._index.get_many(chunk_ids), strict=True):
            self._mark(chunk_id, place)

    def _mark(self, chunk_id: ChunkId, place: Place | None) -> bool:
        if place is None:
            raise CorruptChunk(
                f"chunk {chunk_id.hex()}: is needed, but no pack has it; gc removes nothing until "
                "it is restored"
            )
        new = self._marks.mark(place)
        self.report.chunks_live += new
        return new

    def _check_stop(self) -> None:
        if self._should_stop():
            raise _Stopped

    # -- sweep

    def _removed_dead(self, number: int) -> bool:
        """Remove a pack that has nothing live; whether it had."""
        self._check_stop()
        if self._marks.count(number) or self._packs.entry_count(number) is None:
            return False
        try:
            entries = self._entries(number)
        except CorruptPack as error:
            log.warning("gc passes over a damaged pack error=%s", error)
            return False
        self._forget(number, entries)
        self._removed(number)
        self.report.packs_removed += 1
        return True

    def _live_fraction(self, number: int) -> float | None:
        """Of the pack's bytes; None when the pack is damaged."""
        count = self._packs.entry_count(number)
        if count is not None and count == self._marks.count(number):
            return 1.0  # its footer need not be read
        try:
            return self._entries(number).live_bytes / self._packs.size(number)
        except CorruptPack as error:
            log.warning("gc passes over a damaged pack error=%s", error)
            return None

    def _copy(self, number: int) -> None:
        try:
            entries = self._entries(number)
            copies = {chunk_id: self._copied(chunk_id, place) for chunk_id, place in entries.live}
        except CorruptData as error:
            self._packs.abandon()
            self.report.packs_damaged += 1
            log.warning("gc leaves a damaged pack error=%s", error)
            return
        self._packs.sync()
        self._index.put(copies)
        self._moved(number)
        self._forget(number, entries)
        self.report.packs_copied += 1
        self.report.copied_bytes += entries.live_bytes

    def _copied(self, chunk_id: ChunkId, place: Place) -> Place:
        stored = self._packs.read(place, chunk_id)
        return self._packs.append(place.kind, chunk_id, stored, place.raw_length, place.codec)

    def _forget(self, number: int, entries: _Entries) -> None:
        self._index.remove(entries.dead)
        self._packs.unlink(number)
        self.report.chunks_removed += len(entries.dead)

    def _entries(self, number: int) -> _Entries:
        """The entries of a sealed pack, live and dead. CorruptPack when anything does not agree.

        The marks came by way of the index; that its places and the footer's are the same, and that
        every mark is found again, is checked here, before anything is removed."""
        entries = _Entries([], [])
        for batch in _batches(self._packs.footer(number)):
            known = self._index.get_many([chunk_id for chunk_id, _ in batch])
            for (chunk_id, place), there in zip(batch, known, strict=True):
                if there is None or (there.pack, there.offset) != (number, place.offset):
                    continue  # the index knows a copy elsewhere, or never knew this one
                if there != place:
                    raise CorruptPack(
                        f"pack {number:08x}: its footer has {place}, the index has {there} for "
                        f"chunk {chunk_id.hex()}"
                    )
                if self._marks.marked(place):
                    entries.live.append((chunk_id, place))
                else:
                    entries.dead.append(chunk_id)
        if len(entries.live) != self._marks.count(number):
            raise CorruptPack(
                f"pack {number:08x}: {self._marks.count(number)} of its entries are in use, "
                f"its footer has {len(entries.live)} of them"
            )
        return entries


def _batches(
    rows: Iterator[tuple[ChunkId, Place]],
) -> Iterator[list[tuple[ChunkId, Place]]]:
    while batch := list(islice(rows, LOOKUP_BATCH)):
        yield batch


def _ignore(_number: int) -> None:
    pass


def _never() -> bool:
    return False
