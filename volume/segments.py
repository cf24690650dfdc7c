"""The segment files of the journal: made ready in the background, recycled, grown up to a bound.

A segment is written once with zeros and synced before its first use, so that later syncs of it
move data only, never file-system metadata. A segment that the checkpoint has passed is recycled as
it is: its old records cannot be taken for new ones (lsn, chain and node epoch differ).

`tend` does one round of upkeep; a thread of the store calls it when it is woken, tests call it by
hand. Everything else is cheap and may be called from any thread.
"""

import contextlib
import logging
import os
import threading

from native import Journal
from volume.disk import Disk, File
from volume.errors import CorruptJournal
from volume.options import JournalGeometry

log = logging.getLogger(__name__)

FOLDER = "journal"
READY_TARGET = 2  # segments kept ready beyond the one that is written
TRIM_RESERVE = 1  # ready segments that only records without payload may begin
_ZEROS = bytes(1024 * 1024)


def segment_path(slot: int) -> str:
    return f"{FOLDER}/{slot:08x}.seg"


def parse_segment_name(name: str) -> int | None:
    """The slot in a segment's file name, or None for any other file."""
    stem, dot, suffix = name.partition(".")
    if (dot + suffix) != ".seg" or len(stem) != 8:
        return None
    with contextlib.suppress(ValueError):
        return int(stem, 16)
    return None


class SegmentPool:
    """Keeps the journal supplied with ready segments."""

    def __init__(self, disk: Disk, journal: Journal, geometry: JournalGeometry) -> None:
        self._disk = disk
        self._journal = journal
        self._geometry = geometry
        self._lock = threading.Lock()
        self._files: dict[int, File] = {}

    @property
    def count(self) -> int:
        return len(self._files)

    def add(self, slot: int, file: File) -> None:
        """Take over an open file that the journal has been given."""
        with self._lock:
            self._files[slot] = file

    def recycle(self, slots: list[int]) -> None:
        """Slots that the journal has released are ready again."""
        for slot in slots:
            warm(self._files[slot])
            self._journal.recycle(slot)

    def can_grow(self) -> bool:
        """Whether another segment is allowed, and the disk has comfortable room for it."""
        if len(self._files) >= self._geometry.max_segments:
            return False
        if len(self._files) < 2:
            return True  # without one there is no service at all
        return self._disk.free_bytes() > 4 * self._geometry.segment_bytes

    def tend(self) -> bool:
        """Make one segment if one is wanted; whether one was made."""
        ready = self._journal.state()[3]
        if ready >= READY_TARGET + TRIM_RESERVE or not self.can_grow():
            return False
        self._make()
        return True

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
            for offset in range(0, size, len(_ZEROS)):
                file.pwrite(_ZEROS[: min(len(_ZEROS), size - offset)], offset)
            file.sync()
            self._disk.sync_dir(FOLDER)
        except OSError:
            file.close()
            with contextlib.suppress(OSError):
                self._disk.unlink(path)
            raise
        self.add(slot, file)
        self._journal.add_ready(slot, file.native())


def warm(file: File) -> None:
    """Have a segment's pages brought in: it is read soon, or recycled, and a part of an absent page
    cannot be overwritten without reading it first."""
    fd = file.native()
    if isinstance(fd, int):
        with contextlib.suppress(OSError):
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_WILLNEED)


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
