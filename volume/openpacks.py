"""Pack files that are open for reading, shared by all reader threads, under a bound.

At 64 MiB a pack, 1 TiB is 16,384 files: more than a process may have open, so the least recently
used ones are let go. Letting go is not closing: an `OpenPack` closes its file when its last
holder drops it, so whoever reads from one, in Python or in C, is never cut off.
"""

import contextlib
import logging
import threading
from collections import OrderedDict

from volume import packfile
from volume.disk import Disk, File
from volume.errors import CorruptPack

log = logging.getLogger(__name__)


class OpenPack:
    """A pack file open for reading. It is closed when the last holder lets go of it.

    So a reader, or the C read cache, keeps this object as long as it uses `file`; the pack can be
    unlinked meanwhile, and its bytes stay readable."""

    __slots__ = ("file", "number", "path")

    def __init__(self, number: int, path: str, file: File) -> None:
        self.number = number
        self.path = path
        self.file = file

    def __del__(self) -> None:
        with contextlib.suppress(OSError):  # all that mattered was synced through `file.sync`
            self.file.close()


class OpenPacks:
    """The packs of one folder, opened when they are first wanted. Thread-safe."""

    def __init__(self, disk: Disk, folder: str, store_uuid: bytes, limit: int) -> None:
        self._disk = disk
        self._folder = folder
        self._uuid = store_uuid
        self._limit = limit
        self._lock = threading.Lock()
        self._open: OrderedDict[int, OpenPack] = OrderedDict()  # least recently used first

    def path(self, number: int) -> str:
        return f"{self._folder}/{number:08x}.pack"

    def get(self, number: int) -> OpenPack:
        """The pack, open. CorruptPack when the file is gone, UnknownFormat, OSError.

        A damaged pack header is only worth a warning: entries say themselves what they are."""
        with self._lock:
            pack = self._open.get(number)
            if pack is not None:
                self._open.move_to_end(number)
                return pack
        path = self.path(number)
        try:
            pack = OpenPack(number, path, self._disk.open(path, read_only=True))
        except FileNotFoundError as error:
            raise CorruptPack(f"{path}: the file is gone; restore it from a copy") from error
        header = pack.file.pread(packfile.HEADER_LENGTH, 0)
        try:
            packfile.check_header(header, path, number, self._uuid)
        except CorruptPack as error:
            log.warning("pack header damaged error=%s", error)
        self.keep(pack)
        return pack

    def keep(self, pack: OpenPack) -> None:
        """Hand over an open pack. The least recently used one is let go when there are too many."""
        with self._lock:
            self._open[pack.number] = pack
            while len(self._open) > self._limit:
                self._open.popitem(last=False)

    def drop(self, number: int) -> None:
        """Let go of a pack that is going to be unlinked.

        A reader that is just opening it may put it back; that costs a descriptor until it is the
        least recently used, and harms nobody."""
        with self._lock:
            self._open.pop(number, None)

    def clear(self) -> None:
        with self._lock:
            self._open.clear()
