"""One run of gc: mark, then sweep, as a generator that can be left alone between any two items.

What a run does in which order, and why that is safe beside destage rounds, is told in `volume.gc`;
this is how. A run owns its bitmaps and its report, and shares with its collector the memory of
what is condemned.
"""

import logging
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

from volume.chunks import ChunkStore
from volume.errors import CorruptChunk, CorruptData, CorruptPack, OutOfSpace
from volume.gcmodel import GcReport, Hooks, Root, Weighed
from volume.index import Place, Slot
from volume.layout import KIND_DAMAGED, ZERO_ID, ChunkId
from volume.manifest import Manifests
from volume.marks import Condemned, Marks
from volume.packfile import entry_length
from volume.sites import fail_point

log = logging.getLogger(__name__)

MIN_LIVE = 0.6  # of a pack's bytes; below it copying pays
SMALL_PACK = 0.25  # of the size at which packs are sealed; two or more of these are joined
LOOKUP_BATCH = 4096  # ids looked up in the index at once
ROOT_BATCH = 1024  # roots looked up at once; a slice is at least one of these
COPY_BATCH_BYTES = 8 * 1024 * 1024  # copied, synced and entered in the index at once
MARK_PROGRESS = 0.7  # of a run, for the progress bar; marking takes most of the time


@dataclass(slots=True)
class _Entries:
    """The entries of a pack that the index knows to be there."""

    live: list[tuple[ChunkId, Place]] = field(default_factory=list)
    condemned: list[tuple[ChunkId, Place]] = field(default_factory=list)
    """Dead, but not for long enough."""
    dead: list[ChunkId] = field(default_factory=list)
    dead_bytes: int = 0

    @property
    def kept(self) -> list[tuple[ChunkId, Place]]:
        return self.live + self.condemned

    @property
    def kept_bytes(self) -> int:
        return _entry_bytes(self.live) + _entry_bytes(self.condemned)


class _Candidate(NamedTuple):
    """A pack that may be worth copying."""

    number: int
    kept: float
    """Of its bytes."""


class Run:
    """One mark and sweep: iterate over `work`; between its items anybody may use the store."""

    def __init__(
        self,
        store: ChunkStore,
        manifests: Manifests,
        hooks: Hooks,
        condemned: Condemned,
        lock: threading.Lock,
        monotonic: Callable[[], float],
        *,
        thorough: bool,
        patient: bool,
    ) -> None:
        """`patient`: what is dead stays for its condemn period. `thorough`: as `Collector.collect`.

        `lock` is held by those who call `protect`."""
        self.report = GcReport(bytes_before=store.packs.total_bytes)
        self.failure: CorruptData | None = None
        self.started = monotonic()
        self.phase = "mark"
        self.work = self._work()
        """Items are bytes copied: 0, but after a batch of copies."""
        self._store = store
        self._lost = store.lost()
        self._index = store.index
        self._packs = store.packs
        self._manifests = manifests
        self._hooks = hooks
        self._condemned = condemned
        self._lock = lock
        self._monotonic = monotonic
        self._thorough = thorough
        self._patient = patient
        self._marks = Marks()
        self._protected: list[Root] = []  # with `_lock`
        self._newest = self._packs.newest()
        self._known = self._index.count()
        self._swept = self._to_sweep = 0
        self.shares: dict[int, float] = {}
        """Of the bytes of each pack that stays, what is kept; known when the sweep has begun."""
        self._measured = 0  # chunks that only the root being measured needs

    def used(self, places: Iterable[Place]) -> None:
        """The barrier: chunks that were put, or were found to be there."""
        for place in places:
            self._mark(place)

    def protect(self, root: Root) -> bool:
        """As `Collector.protect`; `_lock` is held. What is below a marked node is marked as well,
        or will be before anything is removed."""
        ids = [chunk_id for chunk_id in (root.root, *root.commits) if chunk_id != ZERO_ID]
        slots = self._index.slots(ids)
        if all(slot is not None and self._marks.marked(slot) for slot in slots):
            return True
        if self.phase in ("mark", "history"):
            self._protected.append(root)
            return True
        return False

    def progress(self, live_before: int) -> float:
        if self.phase in ("mark", "history"):
            expected = live_before or self._known
            return MARK_PROGRESS * min(1.0, self.report.chunks_live / max(1, expected))
        done = self._swept / max(1, self._to_sweep)
        return MARK_PROGRESS + (1 - MARK_PROGRESS) * min(1.0, done)

    def _work(self) -> Iterator[int]:
        yield from self._mark_everything()
        yield from self._to_the_sweep()
        self._store.forget_lost(self._lost)  # all that is needed is there
        fail_point("gc.marked")
        numbers = self._candidates()
        fail_point("gc.condemned")
        try:
            yield from self._sweep(numbers)
        except OutOfSpace as error:
            self._packs.abandon()
            self.report.out_of_space = True
            log.warning("gc has no room to copy error=%s", error)
        self._packs.sync_folder()

    def rehearsal(self) -> Iterator[int]:
        """The same without any effect, for a dry run."""
        yield from self._mark_everything(dry=True)
        report = self.report
        report.bytes_after = report.bytes_before
        candidates = []
        for number in self._packs.unchanging():
            yield 0
            entries = self._entries_or_none(number)
            if entries is None:
                continue
            self._count_condemned(entries)
            if entries.kept:
                share = self._share(number, entries, self._entry_count(number))
                candidates.append(_Candidate(number, share))
                continue
            report.packs_removed += 1
            report.chunks_removed += len(entries.dead)
            report.bytes_after -= self._packs.size(number)
        for number in self._worth_copying(candidates):
            yield 0
            entries = self._entries_or_none(number)
            if entries is not None:
                report.packs_copied += 1
                report.copied_bytes += entries.kept_bytes
                report.chunks_removed += len(entries.dead)
                report.bytes_after -= self._packs.size(number) - entries.kept_bytes

    # -- mark

    def _mark_everything(self, dry: bool = False) -> Iterator[int]:
        optional: list[Root] = []
        window: list[Root] = []
        needed: list[Root] = []
        for root in self._hooks.roots():
            (optional if root.optional else window if root.window else needed).append(root)
        self.report.roots = len(needed) + len(window)
        yield from self._mark_roots(needed)
        yield from self._mark_window(window, dry)
        self.phase = "history"
        budget = self._hooks.history_budget()
        if budget is None:
            yield from self._mark_roots(optional)
            self.report.history_roots = len(optional)
        else:
            yield from self._mark_history(optional, budget, dry)

    def _mark_roots(self, roots: Iterable[Root]) -> Iterator[int]:
        """Mark whole trees. A root that is marked already costs one lookup."""
        waiting = iter(roots)
        while batch := list(islice(waiting, ROOT_BATCH)):
            nodes = []
            for whole in (True, False):
                group = [root for root in batch if root.partial is not whole]
                self._mark_ids([c for r in group for c in r.commits if c != ZERO_ID], whole)
                trees = [root for root in group if root.root != ZERO_ID]
                slots = self._slots([root.root for root in trees], whole)
                for root, slot in zip(trees, slots, strict=True):
                    if slot is not None and self._mark(slot):
                        nodes.append((root.root, root.height - 1, whole))
            yield 0
            for node, level, whole in nodes:
                yield from self._walk(node, level, whole)

    def _walk(self, node: ChunkId, level: int, whole: bool) -> Iterator[int]:
        """Mark all that is below a node whose own bit has been set."""
        waiting = [(node, level)]
        while waiting:
            node, level = waiting.pop()
            children = self._manifests.children(node, level)
            slots = self._slots(children, whole)
            if level == 0:
                for slot in slots:
                    if slot is not None:
                        self._mark(slot)
            else:
                for child, slot in zip(children, slots, strict=True):
                    if slot is not None and self._mark(slot):
                        waiting.append((child, level - 1))
            yield 0

    def _mark_ids(self, chunk_ids: list[ChunkId], whole: bool) -> None:
        for slot in self._slots(chunk_ids, whole):
            if slot is not None:
                self._mark(slot)

    def _mark(self, slot: Slot | Place) -> bool:
        new = self._marks.mark(slot)
        self.report.chunks_live += new
        return new

    def _slots(self, chunk_ids: list[ChunkId], whole: bool) -> list[Slot | None]:
        """Where chunks are; those of a `whole` tree must be there."""
        slots = self._index.slots(chunk_ids)
        if whole and None in slots:
            missing = chunk_ids[slots.index(None)]
            for chunk_id, slot in zip(chunk_ids, slots, strict=True):
                if slot is None:
                    self._store.note_lost(chunk_id)
            raise CorruptChunk(
                f"chunk {missing.hex()}: is needed, but no pack has it; gc removes nothing until "
                "it is restored"
            )
        return slots

    # -- window and history

    def _mark_window(self, roots: list[Root], dry: bool) -> Iterator[int]:
        """Mark the roots of the window, and tell what each of them takes."""
        weights = []
        for root in roots:
            added = Marks()
            cost = 0
            for so_far in self._measure(root, added):
                cost = so_far
                yield 0
            self._marks.merge(added)
            self.report.chunks_live += self._measured
            self.report.window_bytes += cost
            weights.append(Weighed(root, cost))
        self.report.window_roots = len(roots)
        if not dry:
            self._hooks.weighed(weights)

    def _mark_history(self, roots: list[Root], budget: int, dry: bool) -> Iterator[int]:
        """Keep optional roots while what they alone need fits; the others are told to go.

        Each is measured on a bitmap of its own first: one that is half marked would pass for one
        that is whole."""
        left = budget
        for at, root in enumerate(roots):
            added = Marks()
            cost = 0
            for so_far in self._measure(root, added, left):
                cost = so_far
                yield 0
            if cost > left:
                yield from self._drop(roots[at:], dry)
                return
            left -= cost
            self._marks.merge(added)
            self.report.chunks_live += self._measured
            self.report.history_roots += 1
            self.report.history_bytes += cost

    def _measure(self, root: Root, added: Marks, limit: int = sys.maxsize) -> Iterator[int]:
        """Mark a tree in `added`, but for what is marked already; yields the bytes so far.

        Ends early when they are more than `limit`."""
        cost = self._measured = 0

        def mark(slot: Slot | None) -> bool:
            nonlocal cost
            if slot is None or self._marks.marked(slot) or not added.mark(slot):
                return False
            cost += entry_length(slot.stored_length)
            self._measured += 1
            return True

        whole = not root.partial
        for slot in self._slots([c for c in root.commits if c != ZERO_ID], whole):
            mark(slot)
        waiting = []
        if root.root != ZERO_ID and mark(self._slots([root.root], whole)[0]):
            waiting.append((root.root, root.height - 1))
        yield cost
        while waiting and cost <= limit:
            node, level = waiting.pop()
            children = self._manifests.children(node, level)
            for child, slot in zip(children, self._slots(children, whole), strict=True):
                if mark(slot) and level:
                    waiting.append((child, level - 1))
            yield cost

    def _drop(self, roots: list[Root], dry: bool) -> Iterator[int]:
        """There is no room for these; those that somebody has named meanwhile stay all the same."""
        for root in roots:
            yield 0
            if dry or self._hooks.dropped(root):
                self.report.history_dropped += 1
            else:
                yield from self._mark_roots([root])

    def _to_the_sweep(self) -> Iterator[int]:
        """Mark what was protected meanwhile; from here on nothing more can be."""
        while True:
            with self._lock:
                if not self._protected:
                    self.phase = "sweep"
                    return
                roots, self._protected = self._protected, []
            yield from self._mark_roots(roots)

    # -- sweep

    def _candidates(self) -> list[int]:
        """Packs that were begun before the run; what is dead in them is condemned.

        The one that is appended to is one of them when much of it is dead: then it is sealed."""
        now = self._monotonic()
        tail = self._packs.unsealed()
        if tail is not None and tail <= self._newest:
            try:
                rows = list(self._packs.places(tail))
                self._condemn(tail, len(rows), now)
                self._seal_if_dead(tail, rows)
            except CorruptData as error:
                log.warning("gc leaves the newest pack alone error=%s", error)
        numbers = [number for number in self._packs.unchanging() if number <= self._newest]
        for number in numbers:
            count = self._entry_count(number)
            if count is not None:
                self._condemn(number, count, now)
        return numbers

    def _condemn(self, number: int, count: int, now: float) -> None:
        everything = (1 << count) - 1
        self._condemned.found(number, everything & ~self._marks.bits(number), now)

    def _seal_if_dead(self, tail: int, rows: list[tuple[ChunkId, Place]]) -> None:
        entries = _Entries()
        self._sort(tail, iter(rows), entries)
        self._count_condemned(entries)
        known_bytes = entries.kept_bytes + entries.dead_bytes
        mostly = entries.kept_bytes < MIN_LIVE * known_bytes
        worth_it = entries.dead_bytes >= SMALL_PACK * self._packs.pack_bytes
        if (mostly and worth_it) or (self._thorough and len(entries.kept) < len(rows)):
            try:
                self._packs.seal()
            except OutOfSpace as error:
                log.warning("gc has no room to seal a pack error=%s", error)

    def _count_condemned(self, entries: _Entries) -> None:
        self.report.condemned_chunks += len(entries.condemned)
        self.report.condemned_bytes += _entry_bytes(entries.condemned)

    def _sweep(self, numbers: list[int]) -> Iterator[int]:
        """Dead packs go first: that may be the space that the copies need."""
        report = self.report
        self._to_sweep = 2 * len(numbers)
        partly = []
        for number in numbers:
            self._swept += 1
            yield 0
            count = self._entry_count(number)
            if count is not None and count == self._marks.count(number):
                partly.append(_Candidate(number, 1.0))  # its footer need not be read
                continue
            entries = self._entries_or_none(number)
            if entries is None:
                report.packs_damaged += 1
                continue
            self._count_condemned(entries)
            if entries.kept:
                partly.append(_Candidate(number, self._share(number, entries, count)))
            else:
                self._remove(number, entries)
                self._hooks.removed(number)
                report.packs_removed += 1
        self.shares = dict(partly)
        worth = self._worth_copying(partly)
        self._to_sweep = self._swept + len(worth)
        self.phase = "copy"
        for number in worth:
            yield 0
            yield from self._copy(number)
            self._swept += 1

    def _share(self, number: int, entries: _Entries, count: int | None) -> float:
        """Of a pack's bytes that are kept."""
        if len(entries.kept) == count:
            return 1.0
        return entries.kept_bytes / self._packs.size(number)

    def _worth_copying(self, candidates: list[_Candidate]) -> list[int]:
        """The emptiest first: they give most space for the least copying."""
        least = 1.0 if self._thorough else MIN_LIVE
        small_bytes = SMALL_PACK * self._packs.pack_bytes
        sparse = sorted((c.kept, c.number) for c in candidates if c.kept < least)
        small = [
            candidate.number
            for candidate in candidates
            if candidate.kept >= least
            and candidate.number not in self._packs.striped
            and self._packs.size(candidate.number) < small_bytes
        ]
        return [number for _, number in sparse] + (small if len(small) > 1 else [])

    def _copy(self, number: int) -> Iterator[int]:
        """Move what is kept of a pack, batch by batch; then remove it.

        After each batch a round may have brought something dead back to life, or moved a damaged
        chunk elsewhere; so the pack is looked through again."""
        moved_live = 0
        while True:
            entries = self._entries_or_none(number, moved_live)
            if entries is None:
                self.report.packs_damaged += 1
                return
            if not entries.kept:
                break
            try:
                copies = self._copied(entries)
            except CorruptData as error:
                self._packs.abandon()
                self.report.packs_damaged += 1
                log.warning("gc leaves a damaged pack error=%s", error)
                return
            self._packs.sync()
            fail_point("gc.copied")
            self._index.put(copies)
            fail_point("gc.indexed")
            for chunk_id, _ in entries.live:
                if chunk_id in copies:
                    self._marks.mark(copies[chunk_id])
                    moved_live += 1
            for chunk_id, old in entries.condemned:
                if chunk_id in copies:
                    self._condemned.carry(Slot.of(old), Slot.of(copies[chunk_id]))
            copied = sum(entry_length(place.stored_length) for place in copies.values())
            self.report.copied_bytes += copied
            yield copied
        self._hooks.moved(number)
        self._remove(number, entries)
        self.report.packs_copied += 1

    def _copied(self, entries: _Entries) -> dict[ChunkId, Place]:
        """Append the first of the kept entries again. CorruptData: one does not verify."""
        copies: dict[ChunkId, Place] = {}
        size = 0
        for chunk_id, place in entries.kept:
            lost: list[int] = []
            if place.kind == KIND_DAMAGED:  # as lost as it is, elsewhere
                stored, lost = self._packs.salvage(place, chunk_id)
            else:
                stored = self._packs.read(place, chunk_id)
            copies[chunk_id] = self._packs.append(
                place.kind, chunk_id, stored, place.raw_length, place.codec, lost
            )
            size += len(stored)
            if size >= COPY_BATCH_BYTES:
                break
        return copies

    def _remove(self, number: int, entries: _Entries) -> None:
        assert not entries.kept
        self._index.remove(entries.dead)
        fail_point("gc.unindexed")
        self._packs.unlink(number)
        fail_point("gc.removed")
        self._condemned.forget(number)
        self.report.chunks_removed += len(entries.dead)

    # -- what is in a pack

    def _entries_or_none(self, number: int, moved_live: int = 0) -> _Entries | None:
        """The entries of a sealed pack; None, with a warning, when it is damaged."""
        try:
            return self._entries(number, moved_live)
        except (CorruptData, OSError) as error:
            log.warning("gc passes over a damaged pack error=%s", error)
            return None

    def _entries(self, number: int, moved_live: int) -> _Entries:
        """CorruptPack when anything does not agree, and then nothing of the pack is removed.

        The marks came by way of the index; that its places and the footer's are the same, and that
        every mark is found again, is checked here. `moved_live`: marked ones that were copied, so
        that the index has them elsewhere."""
        entries = _Entries()
        self._sort(number, self._packs.footer(number), entries)
        if len(entries.live) + moved_live != self._marks.count(number):
            raise CorruptPack(
                f"pack {number:08x}: {self._marks.count(number)} of its entries are in use, "
                f"its footer has {len(entries.live) + moved_live} of them"
            )
        return entries

    def _sort(self, number: int, rows: Iterator[tuple[ChunkId, Place]], entries: _Entries) -> None:
        now = self._monotonic()
        due = self._condemned.due(number, now) if self._must_wait() else -1
        for batch in _batches(rows):
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
                elif due >> place.ordinal & 1:
                    entries.dead.append(chunk_id)
                    entries.dead_bytes += entry_length(place.stored_length)
                else:
                    entries.condemned.append((chunk_id, place))

    def _must_wait(self) -> bool:
        return self._patient and self._condemned.period_s > 0.0

    def _entry_count(self, number: int) -> int | None:
        try:
            return self._packs.entry_count(number)
        except (CorruptData, OSError) as error:
            log.warning("gc passes over a damaged pack error=%s", error)
            return None


def _entry_bytes(entries: list[tuple[ChunkId, Place]]) -> int:
    return sum(entry_length(place.stored_length) for _, place in entries)


def _batches(
    rows: Iterator[tuple[ChunkId, Place]],
) -> Iterator[list[tuple[ChunkId, Place]]]:
    while batch := list(islice(rows, LOOKUP_BATCH)):
        yield batch
