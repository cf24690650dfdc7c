"""The pack that is appended to: its entries so far, and the bytes not yet in its file.

Entries gather in a buffer, so that the disk sees one large write for many chunks. Offsets count
from the start of the file:

    0 ... synced ........ written ............ end
    | durable | in the file  | in the buffer |

The writer thread calls everything; `read` may be called by any thread beside it. Errors are the
file's own, untranslated: `volume.packs` knows what they mean.
"""

import threading
from collections.abc import Collection

from typing_extensions import Buffer

from native import crc32c_pages
from volume import layout, memory, packfile
from volume.index import Place
from volume.layout import ChunkId
from volume.openpacks import OpenPack

WRITE_BUFFER_BYTES = 2 * 1024 * 1024  # one pwrite for about 32 chunks of 64 KiB
_ZEROS = bytes(layout.ENTRY_ALIGNMENT)


class PackTail:
    """An unsealed pack. `found` is what a crash left in it; without, it is new and has a header."""

    def __init__(self, pack: OpenPack, found: packfile.Salvage | None = None) -> None:
        self.pack = pack
        self.rows = found.rows if found else bytearray()
        """The footer rows of its entries."""
        self.frozen = len(self.rows) > 0
        """Left by a crash and not sealed yet, for lack of space: takes no entries."""
        self.written = found.end if found else packfile.HEADER_LENGTH
        self.synced = self.written
        self.synced_rows = len(self.rows)
        self._buffer = memoryview(b"" if self.frozen else memory.zeros(WRITE_BUFFER_BYTES))
        self._used = 0
        self._lock = threading.Lock()  # what of the buffer is valid, and where it belongs

    @property
    def end(self) -> int:
        """Where the next entry goes."""
        return self.written + self._used

    @property
    def entry_count(self) -> int:
        return len(self.rows) // layout.FOOTER_ROW.size

    @property
    def footer_length(self) -> int:
        """Bytes that sealing would add."""
        return len(self.rows) + packfile.TRAILER_LENGTH

    @property
    def dirty(self) -> bool:
        """Whether there is anything to sync."""
        return self.end > self.synced

    def takes(self, length: int) -> bool:
        """Whether the buffer has room for `length` more bytes; else `write` first."""
        return self._used + length <= len(self._buffer)

    def add(
        self,
        kind: int,
        chunk_id: ChunkId,
        stored: Buffer,
        raw_length: int,
        codec: int,
        lost: Collection[int] = (),
    ) -> Place:
        """Put an entry at the end, into the buffer. `stored` is copied, its pages `lost` never
        verify."""
        view = memoryview(stored).cast("B")
        place = Place(
            self.pack.number, self.end, len(view), raw_length, self.entry_count, codec, kind
        )
        table = crc32c_pages(view)
        if lost:
            table = packfile.with_lost(table, lost)
        header = packfile.encode_entry_header(place, chunk_id, table)
        padding = packfile.entry_length(len(view)) - len(header) - len(table) - len(view)
        with self._lock:
            at = self._used
            for part in (header, table, view, _ZEROS[:padding]):
                self._buffer[at : at + len(part)] = part
                at += len(part)
            self._used = at
        self.rows += packfile.encode_row(place, chunk_id)
        return place

    def write(self) -> None:
        """Write the buffer to the file. After an error it is as before, and can be tried again."""
        if self._used:
            self.pack.file.pwrite(self._buffer[: self._used], self.written)
            with self._lock:
                self.written += self._used
                self._used = 0

    def mark_synced(self) -> None:
        """Note that the file was synced after `write`."""
        assert self._used == 0
        self.synced, self.synced_rows = self.written, len(self.rows)

    def rewind(self) -> None:
        """Forget all that is not synced, and cut it off the file."""
        with self._lock:
            self._used = 0
            self.written = self.synced
            del self.rows[self.synced_rows :]
        self.pack.file.truncate(self.synced)

    def read(self, offset: int, length: int) -> bytes:
        """Bytes of the entry at `offset`, from the buffer while they are not in the file."""
        with self._lock:
            at = offset - self.written
            if at >= 0:
                return bytes(self._buffer[at : min(at + length, self._used)])
        return self.pack.file.pread(length, offset)
