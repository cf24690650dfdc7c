"""The segment files of the journal: made ready in the background, recycled, grown up to a bound.

A segment is written once with zeros and synced before its first use, so that later syncs of it
move data only, never file-system metadata. Only while segments are used up faster than that is
worth it (`HURRIED_S`) they are allocated without being written: long streams of writes would
otherwise write everything twice, and syncs are rare in them. When the stream is over, those that
it has left are written (`volume.baresegments`).

A segment that the checkpoint has passed is *held* for a while: the any-write window, from which
every write can be restored. It is read seldom, so its pages are there for what is written next
(`volume.warmpages`), instead of the window filling the page cache. When it expires it is recycled
as it is: its old records cannot be taken for new ones (lsn, chain and node epoch differ).

Held segments go oldest first. Who reads them, or will have to (a point that is not in chunks yet),
pins the log from a sequence on; nothing from there on expires.

`tend` does one round of upkeep; a thread of the store calls it when it is woken, tests call it by
hand. Everything else is cheap and may be called from any thread.
"""

import contextlib
import errno
import logging
import os
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from native import Journal, decode_segment_header
from volume.baresegments import BareSegments, write_zeros
from volume.disk import Clock, Disk, File
from volume.errors import CorruptJournal
from volume.options import JournalGeometry
from volume.sites import fail_point
from volume.warmpages import WarmPages, warm, warm_limit

log = logging.getLogger(__name__)

FOLDER = "journal"
READY_TARGET = 2  # segments kept ready beyond the one that is written
HURRIED_READY = 6  # the same while segments are used up quickly
HURRIED_S = 0.5  # a segment is used up in less than this
TRIM_RESERVE = 1  # ready segments that only records without payload may begin
MAX_SLOTS = 65536  # the native journal's BD_MAX_SLOTS
_NO_PIN = 1 << 64  # above every sequence


def segment_path(slot: int) -> str:
    return f"{FOLDER}/{slot:08x}.seg"


def parse_segment_name(name: str) -> int | None:
    """The slot in a segment's file name, or None for any other file."""
    with contextlib.suppress(ValueError):
        slot = int(name.removesuffix(".seg"), 16)  # takes "0X7" and " +7" as well
        if 0 <= slot < MAX_SLOTS and segment_path(slot) == f"{FOLDER}/{name}":
            return slot
    return None


@dataclass(frozen=True, slots=True)
class LogSegment:
    """What a segment's header says of its place in the log."""

    slot: int
    file: File
    node_epoch: int
    sequence: int
    first_lsn: int
    synced_lsn: int
    chain: int


@dataclass(frozen=True, slots=True)
class _Held:
    slot: int
    sequence: int
    until_ns: int
    """Wall clock when its last record was checkpointed: no record in it is newer."""
    known: bool
    """The journal has it, as free; those found at a start it has never seen."""


class SegmentPool:
    """Keeps the journal supplied with ready segments, and the window with old ones."""

    def __init__(
        self,
        disk: Disk,
        journal: Journal,
        geometry: JournalGeometry,
        store_uuid: bytes,
        clock: Clock,
    ) -> None:
        self._disk = disk
        self._journal = journal
        self._geometry = geometry
        self._uuid = store_uuid
        self._clock = clock
        self._lock = threading.Lock()
        self._files: dict[int, File] = {}
        self._held: list[_Held] = []  # by sequence
        self._pins: Counter[int] = Counter()
        self._warm = WarmPages(warm_limit(geometry.segment_bytes))
        self._bare = BareSegments(journal, geometry.segment_bytes, self._make_way)
        self._sequence = 0  # of the segment that was written when one was begun last
        self._looked_at = clock.monotonic()
        self.hurried = False
        """Segments are being used up quickly."""
        self.lent = 0
        """Segments that the journal may have beyond its limit (`volume.upkeep`)."""

    @property
    def count(self) -> int:
        return len(self._files)

    @property
    def held_count(self) -> int:
        """Segments that are there for the window only."""
        return len(self._held)

    @property
    def oldest_held(self) -> int | None:
        """Sequence of the oldest segment in the window."""
        with self._lock:
            return self._held[0].sequence if self._held else None

    def add(self, slot: int, file: File) -> None:
        """Take over an open file that the journal has been given."""
        with self._lock:
            self._files[slot] = file

    def hold_found(self, segment: LogSegment, until_ns: int) -> None:
        """At a start: keep a segment of the window that the journal need not know."""
        self._hold(_Held(segment.slot, segment.sequence, until_ns, known=False))
        with self._lock:  # a daemon that has just ended may have left it in memory
            now_s = self._clock.monotonic()
            self._warm.keep(segment.slot, segment.sequence, segment.file, now_s)

    def hold(self, slots: list[int], now_ns: int) -> None:
        """The checkpoint has passed these slots, and the journal has released them."""
        for slot in slots:
            segment = self.read_header(slot)
            # One that cannot be read is of no use to the window: it goes first.
            sequence = 0 if segment is None else segment.sequence
            self._hold(_Held(slot, sequence, now_ns, known=True))
            with self._lock:
                now_s = self._clock.monotonic()
                self._warm.keep(slot, sequence, self._files[slot], now_s)

    def _hold(self, held: _Held) -> None:
        with self._lock:
            self._held = sorted([*self._held, held], key=lambda each: each.sequence)

    def read_header(self, slot: int) -> LogSegment | None:
        """What is in a slot's header; None for none of this store. OSError."""
        file = self._files[slot]
        try:
            header = decode_segment_header(file.pread(512, 0))
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            log.warning("segment cannot be read path=%s error=%s", segment_path(slot), error)
            return None
        if header is None:
            return None
        uuid, own_slot, node_epoch, sequence, first_lsn, synced_lsn, chain, size = header
        if uuid != self._uuid or own_slot != slot or size != self._geometry.segment_bytes:
            return None
        return LogSegment(slot, file, node_epoch, sequence, first_lsn, synced_lsn, chain)

    def _header_of(self, slot: int) -> LogSegment | None:
        """As `read_header`, of a slot that may be removed meanwhile: not while it is read."""
        with self._lock:
            return self.read_header(slot) if slot in self._files else None

    def log_from(self, sequence: int) -> list[LogSegment]:
        """Segments whose headers say `sequence` or later, in order: those of the log, and perhaps
        some that a crash has cut off from it. OSError."""
        with self._lock:
            slots = list(self._files)
        found = [self._header_of(slot) for slot in slots]
        log = [segment for segment in found if segment and segment.sequence >= sequence]
        return sorted(log, key=lambda segment: segment.sequence)

    @property
    def oldest_pin(self) -> int | None:
        """Sequence from which on somebody reads the log, or has maps that were read from it."""
        with self._lock:
            return min(self._pins, default=None)

    def pin(self, sequence: int) -> None:
        """Let no segment from `sequence` on expire, until `unpin`."""
        with self._lock:
            self._pins[sequence] += 1

    def unpin(self, sequence: int) -> None:
        with self._lock:
            self._pins[sequence] -= 1
            if self._pins[sequence] <= 0:
                del self._pins[sequence]

    def expire(
        self,
        keep: int,
        older_ns: int,
        hard: int,
        floor: int | None,
        forget: Callable[[int | None], None],
        *,
        useless: int = 0,
        shrink: bool = False,
    ) -> int:
        """Let go of the oldest held segments; how many.

        Those beyond `keep` go when they were checkpointed before `older_ns`, those beyond `hard` in
        any case, as do those before sequence `useless`; none from sequence `floor`, or from a
        pinned one, on. `shrink`: give their space back rather than use them again.

        `forget(oldest)` comes before: from there on the log stays, or None when none of it does. It
        makes durable that no replay begins earlier, as a crash may leave any of the segments that
        go, in any order, and the log would have a hole."""
        with self._lock:
            going = self._going(keep, older_ns, hard, floor, useless)
            if not going:
                return 0
            staying = self._held[len(going) :]
        forget(staying[0].sequence if staying else None)
        fail_point("segment.forgotten")
        for count, held in enumerate(going):
            with self._lock:
                if self._held[:1] != [held] or held.sequence >= min(self._pins, default=_NO_PIN):
                    return count  # a reader was quicker: next time
                del self._held[0]
            self._let_go(held, shrink)
        return len(going)

    def _going(
        self, keep: int, older_ns: int, hard: int, floor: int | None, useless: int
    ) -> list[_Held]:
        """What `expire` may let go. The lock is held."""
        floors = [*self._pins, *([] if floor is None else [floor])]
        going: list[_Held] = []
        for held in self._held:
            left = len(self._held) - len(going)
            young = left <= hard and held.until_ns >= older_ns
            wanted = held.sequence >= useless and (left <= min(keep, hard) or young)
            if wanted or held.sequence >= min(floors, default=_NO_PIN):
                break
            going.append(held)
        return going

    def _let_go(self, held: _Held, shrink: bool) -> None:
        """Use a segment again, or remove it when the journal has enough without it."""
        file = self._files[held.slot]
        enough = self._journal.state()[3] >= self._ready_target
        if self.live_count > self._max_segments or (shrink and enough):
            self._remove(held)
            return
        with self._lock:
            absent = not self._warm.forget(held.slot)
            if absent:
                self._warm.make_way(self._clock.monotonic())
        # A stream that writes whole pages does not need them; who comes after it does.
        unread = absent and self.hurried and self._journal.whole_pages()
        if absent and not unread:
            warm(file)
        if held.known:
            self._journal.recycle(held.slot)
        else:
            self._journal.add_ready(held.slot, file.native())
        if unread:
            self._bare.add(held.slot)

    def _remove(self, held: _Held) -> None:
        if held.known:
            self._journal.remove(held.slot)
        self._disk.unlink(segment_path(held.slot))
        fail_point("segment.removed")
        with self._lock:  # only now: another thread that makes a segment may take the name
            file = self._files.pop(held.slot)
            self._warm.forget(held.slot)
        file.close()

    @property
    def live_count(self) -> int:
        """Segments that the journal writes, or has ready."""
        return len(self._files) - len(self._held)

    @property
    def _max_segments(self) -> int:
        return self._geometry.max_segments + self.lent

    def can_grow(self) -> bool:
        """Whether another segment is allowed, and the disk has comfortable room for it."""
        if self.live_count >= self._max_segments:
            return False
        if self.live_count < 2:
            return True  # without one there is no service at all
        return self._disk.free_bytes() > 4 * self._geometry.segment_bytes

    @property
    def _ready_target(self) -> int:
        """Segments that are to be ready, the one for trims included."""
        return (HURRIED_READY if self.hurried else READY_TARGET) + TRIM_RESERVE

    def tend(self) -> bool:
        """Make one segment if one is wanted; whether one was made, or written."""
        ready = self._journal.state()[3]
        self._watch_pace()
        with self._lock:
            self._warm.tend(self._clock.monotonic())
        if ready >= self._ready_target or not self.can_grow():
            return self._bare.tend(self._files, self._clock.monotonic())
        self._make()
        return True

    def _watch_pace(self) -> None:
        """Whether segments are being used up quickly: one within HURRIED_S, lately."""
        now, sequence = self._clock.monotonic(), self._journal.cut()[1]
        passed_s = now - self._looked_at
        if sequence == self._sequence:
            self.hurried = self.hurried and passed_s < HURRIED_S
        elif passed_s > 0.0:
            self.hurried = passed_s < HURRIED_S * (sequence - self._sequence)
            self._sequence, self._looked_at = sequence, now
            # Those that were allocated only take their pages now: free memory that waits, for as
            # long as other segments are ready, is given back to the host.
            for _ in range(self._bare.begun()):
                self._make_way()

    def _make_way(self) -> None:
        with self._lock:
            self._warm.make_way(self._clock.monotonic())

    def close(self) -> None:
        with self._lock:
            for file in self._files.values():
                file.close()
            self._files.clear()

    def _make(self) -> None:
        with self._lock:
            slot = next(n for n in range(len(self._files) + 1) if n not in self._files)
        path = segment_path(slot)
        file = self._disk.open(path, create=True)
        try:
            size = self._geometry.segment_bytes
            bare = self.hurried and _allocate(file, size)
            if not bare:
                self._make_way()
                write_zeros(file, 0, size)
            fail_point("segment.prepare.zeroed")
            file.sync()
            self._disk.sync_dir(FOLDER)
            fail_point("segment.prepare.synced")
        except OSError:
            file.close()
            with contextlib.suppress(OSError):
                self._disk.unlink(path)
            raise
        self.add(slot, file)
        self._journal.add_ready(slot, file.native())
        if bare:
            self._bare.add(slot)


def _allocate(file: File, size: int) -> bool:
    """Have the file system reserve `size` bytes that read as zeros; False where it cannot. OSError
    when there is no space."""
    fd = file.native()
    if not isinstance(fd, int):
        return False
    try:
        os.posix_fallocate(fd, 0, size)
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
            return False
        raise
    return True


def open_segments(disk: Disk, segment_bytes: int) -> dict[int, File]:
    """Open every whole segment file. One that was not finished is removed: it was never used."""
    disk.mkdir(FOLDER)
    disk.sync_dir("")  # the folder is perhaps new, and what is in it only as durable as its name
    files: dict[int, File] = {}
    for name in disk.list(FOLDER):
        slot = parse_segment_name(name)
        if slot is None:
            log.warning("journal: unknown file left alone file=%s/%s", FOLDER, name)
            continue
        file = disk.open(segment_path(slot))
        size = file.size()
        if size < segment_bytes:
            file.close()
            disk.unlink(segment_path(slot))
            continue
        if size > segment_bytes:
            file.close()
            raise CorruptJournal(
                f"{segment_path(slot)}: {size} bytes long, segments of this store have "
                f"{segment_bytes}; move the file away if it is not blockd's"
            )
        files[slot] = file
    return files
