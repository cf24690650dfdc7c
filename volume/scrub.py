"""Scrub: reads every stored byte again and again, so that damage is found while it can be repaired.

A *pass* looks at all sealed packs, oldest first, then at the index:

    pack    whole, in large reads past the page cache: header, footer, and each entry's header, page
            checksums and, unpacked, BLAKE3; footer against entries; what the index says of the
            same chunks against the footer. Without a sound footer: what can be salvaged.
    index   whether every pack that it names is there, and has the entry that it names: the newest
            pack is cut behind its last whole entry when a store is opened.

Only what is in use is damage: an entry that the index does not name is garbage, and passed over.
The pack that is appended to is left alone: it will be sealed.

Pace: a pass takes about PASS_SHARE of `interval_s`; it reads at the rate at which the rest gets
done in the time left, at least at `floor_rate`. While clients are at work it takes at most
BUSY_SHARE of the time. A pass that somebody asked for goes as fast as that allows.

Damage is remembered, in memory and in `ScrubState`, until a later look at the same pack finds none
or the pack is gone; at most MAX_DAMAGE of it, the rest is counted. A damaged chunk is stored anew
when the same data is written again, which repairs it.

Where a pass is, when the last one ended and the damage survive a restart (at most SAVE_EVERY_S of
work is done twice). The state is of no use to anybody else: one that cannot be read is dropped,
with a warning, and the pass begins anew.

Threads: `step` and `save` on any one; the other methods on any. gc may run beside it: a pack that
goes while it is read is not damage.
"""

import logging
import struct
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

from volume import packfile
from volume.chunks import ChunkStore, StoredChunk, unpacked
from volume.damage import MAX_DAMAGE, Damage, Memory, described
from volume.disk import Clock, File
from volume.errors import CorruptData, CorruptPack, OutOfSpace, UnknownFormat
from volume.index import Place
from volume.layout import ChunkId
from volume.marks import Marks
from volume.sites import fail_point

log = logging.getLogger(__name__)

READ_BYTES = 4 * 1024 * 1024  # at once
LOOKUP_BATCH = 1024  # entries looked up in the index at once
MANY_CHUNKS = 1 << 20  # in the index; it is looked through in 256 parts, or 65,536 beyond that
PASS_SHARE = 0.8  # of the interval: the rest is for times when the machine is off
BURST_BYTES = 2 * READ_BYTES  # may be read at once after a rest
BUSY_SLICE_S = 0.02  # a slice while clients are at work
BUSY_SHARE = 0.1  # of the time, for scrub, while clients are at work
SAVE_EVERY_S = 60.0
_NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class ScrubStatus:
    """How far scrub is. Times are nanoseconds since 1970."""

    running: bool
    requested: bool
    """Somebody asked for this pass; it takes no rests but for clients."""
    progress: float
    """Of the pass, 0.0 to 1.0, by bytes."""
    scanned_bytes: int
    total_bytes: int
    started_ns: int | None
    finished_ns: int | None
    """When the last pass came to its end."""
    next_ns: int | None
    """When the next pass begins; None while one goes on."""
    damage_count: int
    damages: tuple[Damage, ...]
    """At most MAX_DAMAGE of them."""


class ScrubPace(NamedTuple):
    """Seconds and bytes per second."""

    interval_s: float = 14 * 24 * 3600.0
    """Everything is read once in it."""
    floor_rate: int = 1024 * 1024


DEFAULT_PACE = ScrubPace()


class ScrubState(Protocol):
    """Where a scrubber's memory is kept: one value of `meta/`."""

    def load(self) -> bytes | None: ...
    def save(self, state: bytes) -> None:
        """Durable on return. OutOfSpace, OSError."""


class Scrubber:
    """Runs passes in slices."""

    def __init__(
        self,
        chunks: ChunkStore,
        state: ScrubState,
        clock: Clock,
        *,
        busy: Callable[[], bool] = lambda: False,
        should_stop: Callable[[], bool] = lambda: False,
        pace: ScrubPace = DEFAULT_PACE,
    ) -> None:
        """`busy`: were clients at work a moment ago; `should_stop`: the store is closing."""
        self._chunks = chunks
        self._packs = chunks.packs
        self._index = chunks.index
        self._state = state
        self._clock = clock
        self._busy = busy
        self._should_stop = should_stop
        self._pace = pace
        self._lock = threading.Lock()  # `_memory`, `_work` and `_passes`
        self._passes = 0  # begun so far; one that is not the latest must not touch `_memory`
        self._memory = self._loaded()
        self._work: Iterator[int] | None = None
        self._saved_at = self._filled_at = clock.monotonic()
        self._allowance = 0.0
        self._resume_at = 0.0
        self._noted = False  # there is damage that is not in `_state` yet

    # -- one thread

    def step(self, budget_s: float) -> bool:
        """Scrub for about `budget_s`, if it is time to; whether to call again at once.

        Damage is noted, not raised. OSError: the state could not be saved; seal the store."""
        if self._noted:
            self.save()
        now = self._clock.monotonic()
        if now < self._resume_at:
            return False
        with self._lock:
            work = self._work or self._begun()
            requested = self._memory.requested
        if work is None:
            return False
        if not requested:
            self._fill(now)
            if self._allowance <= 0:
                return False
        busy = self._busy()
        deadline = now + (min(budget_s, BUSY_SLICE_S) if busy else budget_s)
        done = self._run(work, deadline, limited=not requested)
        after = self._clock.monotonic()
        if busy:
            self._resume_at = after + (after - now) * (1 / BUSY_SHARE - 1)
        if after - self._saved_at >= SAVE_EVERY_S:
            self.save()
        return not (done or busy or self._should_stop())

    def _run(self, work: Iterator[int], deadline: float, *, limited: bool) -> bool:
        """Go on with a pass; whether it is at its end."""
        for scanned in work:
            self._allowance -= scanned
            with self._lock:
                if self._work is not work:
                    return False  # another pass was asked for
                self._memory.scanned_bytes += scanned
            if limited and self._allowance <= 0:
                return False
            if self._clock.monotonic() >= deadline or self._should_stop():
                return False
        with self._lock:
            if self._work is not work:
                return False
            self._work = None
            memory = self._memory
            memory.finished_ns = max(self._clock.now_ns(), memory.started_ns)
            memory.requested = False
            log.info(
                "scrub done bytes=%d damage=%d seconds=%.0f",
                memory.scanned_bytes,
                len(memory.damages) + memory.forgotten,
                (memory.finished_ns - memory.started_ns) / _NS,
            )
        self.save()
        return True

    def save(self) -> None:
        """Note where the pass is; the store does so when it closes. OSError."""
        self._saved_at = self._clock.monotonic()
        with self._lock:
            state = self._memory.encode()
            self._noted = False
        try:
            self._state.save(state)
            fail_point("scrub.noted")
        except OutOfSpace as error:
            log.warning("scrub has no room to note where it is error=%s", error)

    # -- any thread

    def run_now(self) -> None:
        """Begin a pass over everything at the next `step`."""
        with self._lock:
            self._begin(requested=True)
        self._resume_at = 0.0

    def stop(self) -> None:
        """No more hurry: the pass that was asked for goes on at the usual rate."""
        with self._lock:
            self._memory.requested = False

    def note(self, found: Iterable[Damage]) -> None:
        """Remember damage that somebody else has come across. It goes as any other does."""
        with self._lock:
            memory = self._memory
            known = set(memory.damages)
            for damage in found:
                if damage in known:
                    continue
                if len(memory.damages) < MAX_DAMAGE:
                    memory.damages.append(damage)
                else:
                    memory.forgotten += 1
            self._noted = True

    def repaired(self, chunk_ids: Collection[ChunkId]) -> None:
        """These were stored anew: what is damaged of them is not in use any more."""
        with self._lock:
            memory = self._memory
            memory.damages = [each for each in memory.damages if each.chunk_id not in chunk_ids]
            self._noted = True

    def status(self) -> ScrubStatus:
        total = sum(self._sizes(self._packs.sealed()))
        with self._lock:
            memory = replace(self._memory, damages=list(self._memory.damages))
        running = memory.started_ns > memory.finished_ns
        scanned = min(memory.scanned_bytes, total)
        return ScrubStatus(
            running=running,
            requested=running and memory.requested,
            progress=scanned / total if running and total else float(not running),
            scanned_bytes=scanned,
            total_bytes=total,
            started_ns=memory.started_ns or None,
            finished_ns=memory.finished_ns or None,
            next_ns=None if running else memory.started_ns + int(self._pace.interval_s * _NS),
            damage_count=len(memory.damages) + memory.forgotten,
            damages=tuple(memory.damages),
        )

    # -- passes

    def _loaded(self) -> Memory:
        state = self._state.load()
        if state is None:
            return Memory()
        try:
            return Memory.decode(state)
        except (ValueError, struct.error) as error:
            log.warning("scrub begins anew, its state cannot be read error=%s", error)
            return Memory()

    def _begun(self) -> Iterator[int] | None:
        """The pass that goes on, or that is due; `_lock` is held."""
        memory, now_ns = self._memory, self._clock.now_ns()
        if memory.started_ns > memory.finished_ns:  # begun before a restart
            self._work = self._new_pass()
        elif now_ns >= memory.started_ns + self._pace.interval_s * _NS or (
            now_ns < memory.started_ns  # somebody set the date back
        ):
            self._begin(requested=False)
        return self._work

    def _begin(self, *, requested: bool) -> None:
        """A new pass; `_lock` is held."""
        memory = self._memory
        memory.requested = requested
        memory.started_ns = max(self._clock.now_ns(), memory.finished_ns + 1)
        memory.scanned_bytes = memory.next_pack = memory.forgotten = 0
        self._work = self._new_pass()

    def _new_pass(self) -> Iterator[int]:
        self._passes += 1
        return self._pass(self._passes)

    def _fill(self, now: float) -> None:
        """Let time pass: what may be read grows at the rate that the pass needs."""
        memory = self._memory
        left = sum(self._sizes(n for n in self._packs.sealed() if n >= memory.next_pack))
        spent_s = max(0.0, (self._clock.now_ns() - memory.started_ns) / _NS)
        left_s = max(self._pace.interval_s * PASS_SHARE - spent_s, 1.0)
        rate = max(self._pace.floor_rate, left / left_s)
        self._allowance = min(BURST_BYTES, self._allowance + rate * (now - self._filled_at))
        self._filled_at = now

    def _sizes(self, numbers: Iterable[int]) -> Iterator[int]:
        for number in numbers:
            try:
                yield self._packs.size(number)
            except KeyError:  # gc has just removed it
                continue

    def _pass(self, mine: int) -> Iterator[int]:
        """All packs, then the index; yields the bytes that were read."""
        seen = Marks()  # entries that index and pack agree about
        newest = self._packs.newest()
        while (number := self._next_pack(mine)) is not None:
            found: list[Damage] = []
            yield from self._pack(number, found, seen)
            with self._lock:
                if self._passes != mine:
                    return
                self._note(number, found)
                self._memory.next_pack = number + 1
            if found:
                self.save()
        missing: dict[int, int] = {}
        strays: list[Damage] = []
        width = 1 if self._index.count() < MANY_CHUNKS else 2
        for group in range(256**width):
            for chunk_id, place in self._index.group(group.to_bytes(width, "big")):
                if place.pack <= newest and not seen.marked(place):
                    self._look_for(chunk_id, place, missing, strays)
            yield 0
        there = set(self._packs.numbers())
        with self._lock:
            if self._passes == mine:
                self._conclude(there, missing, strays)

    def _next_pack(self, mine: int) -> int | None:
        """The first that has not been read in this pass."""
        with self._lock:
            if self._passes != mine:
                return None
            wanted = self._memory.next_pack
        return min((number for number in self._packs.sealed() if number >= wanted), default=None)

    def _conclude(self, there: set[int], missing: dict[int, int], strays: list[Damage]) -> None:
        """What is known of packs and entries that are not there; `_lock` is held."""
        memory = self._memory
        for pack in {damage.pack for damage in strays}:
            known = [damage for damage in memory.damages if damage.pack == pack]
            new = [damage for damage in strays if damage.pack == pack and damage not in known]
            self._note(pack, known + new)
        for pack in {damage.pack for damage in memory.damages} - there - missing.keys():
            self._note(pack, [])
        for pack, count in sorted(missing.items()):
            what = f"the file is gone, with {count} chunks that the index knows"
            self._note(pack, [Damage(pack, 0, None, what, gone=True)])

    def _note(self, number: int, found: list[Damage]) -> None:
        """What a look at a pack has found takes the place of what was known; `_lock` is held."""
        memory = self._memory
        known = {damage for damage in memory.damages if damage.pack == number}
        memory.damages = [damage for damage in memory.damages if damage.pack != number]
        room = max(0, MAX_DAMAGE - len(memory.damages))
        memory.damages += found[:room]
        memory.forgotten += len(found[room:])
        for damage in found:
            if damage not in known:
                log.error("scrub found damage %s", described(damage))

    # -- one pack

    def _pack(self, number: int, found: list[Damage], seen: Marks) -> Iterator[int]:
        """Read a whole pack; what is wrong with it goes to `found`."""
        try:
            file = self._packs.open_uncached(number)
        except (CorruptData, OSError) as error:
            if number in self._packs.sealed():
                found.append(Damage(number, 0, None, str(error), gone=True))
            return
        try:
            yield from self._opened_pack(number, file, found, seen)
        finally:
            file.close()
        if number not in self._packs.sealed():
            found.clear()  # gc has removed it meanwhile

    def _opened_pack(
        self, number: int, file: File, found: list[Damage], seen: Marks
    ) -> Iterator[int]:
        pages = _Pages(file)
        try:
            self._packs.check_header(number, pages.read(packfile.HEADER_LENGTH, 0))
        except (CorruptData, UnknownFormat, OSError) as error:
            found.append(Damage(number, 0, None, f"header: {error}"))
        rows = self._rows(number, file, found)
        for at in range(0, len(rows), LOOKUP_BATCH):
            batch = rows[at : at + LOOKUP_BATCH]
            there = self._index.get_many([chunk_id for chunk_id, _ in batch])
            for (chunk_id, place), known in zip(batch, there, strict=True):
                if known is not None and known.pack == number:
                    seen.mark(known)
                damage = self._entry(pages, chunk_id, place, known)
                if damage is not None:
                    found.append(damage)
                    if damage.chunk_id is not None:
                        self._chunks.note_damage(damage.chunk_id)
                yield packfile.entry_length(place.stored_length)

    def _rows(self, number: int, file: File, found: list[Damage]) -> list[tuple[ChunkId, Place]]:
        """The entries of a pack, by its footer if that holds."""
        try:
            return list(self._packs.rows_of(number, file))
        except (CorruptPack, UnknownFormat, OSError) as error:
            found.append(Damage(number, 0, None, f"footer: {error}"))
        try:
            salvaged = packfile.salvage(file, number, verify=False)
        except OSError as error:
            found.append(Damage(number, 0, None, f"cannot be read: {error.strerror}"))
            return []
        return list(packfile.decode_rows(salvaged.rows, number))

    def _entry(
        self, pages: "_Pages", chunk_id: ChunkId, place: Place, known: Place | None
    ) -> Damage | None:
        if known is None or known.pack != place.pack:
            return None  # garbage, or a newer copy is used
        what = None
        if known != place:
            what = f"the index has it at {known}, the pack at {place}"
        else:
            length = packfile.entry_length(place.stored_length)
            name = f"pack {place.pack:08x}"
            try:
                data = pages.read(length, place.offset)
                stored = packfile.stored_bytes(data, name, place, chunk_id)
                unpacked(chunk_id, StoredChunk(place.kind, place.codec, place.raw_length, stored))
            except (CorruptData, UnknownFormat) as error:
                what = str(error).removeprefix(f"{packfile.describe(name, place, chunk_id)}: ")
                what = what.removeprefix(f"chunk {chunk_id.hex()}: ")
            except OSError as error:
                what = f"cannot be read: {error.strerror}"
        if what is None or self._index.get(chunk_id) != known:
            return None
        return Damage(place.pack, place.offset, chunk_id, what)

    # -- the index

    def _look_for(
        self, chunk_id: ChunkId, place: Place, missing: dict[int, int], strays: list[Damage]
    ) -> None:
        """An entry that no look at a pack has shown in this pass: see whether it is there."""
        if place.pack == self._packs.unsealed() or place.pack in self._packs.striped:
            return  # who has a shard of a stripe verifies it
        try:
            self._packs.locate(place, chunk_id)
            return
        except (CorruptData, UnknownFormat) as error:
            what = str(error).removeprefix(f"chunk {chunk_id.hex()}: ")
        except OSError as error:
            what = f"cannot be read: {error.strerror}"
        if self._index.get(chunk_id) != place:
            return  # gc has moved it meanwhile
        if place.pack not in self._packs.numbers():
            missing[place.pack] = missing.get(place.pack, 0) + 1
        elif len(strays) < MAX_DAMAGE:
            strays.append(Damage(place.pack, place.offset, chunk_id, what))


class _Pages:
    """Reads a file in large pieces, forwards."""

    def __init__(self, file: File) -> None:
        self._file = file
        self._start = 0
        self._data = b""

    def read(self, length: int, offset: int) -> bytes:
        """As File.pread. OSError: this very range cannot be read."""
        if not self._start <= offset <= offset + length <= self._start + len(self._data):
            try:
                self._data = self._file.pread(max(READ_BYTES, length), offset)
            except OSError:
                self._data = self._file.pread(length, offset)  # the bad sector may be another's
            self._start = offset
        at = offset - self._start
        return self._data[at : at + length]
