"""The packs of a data directory: one is appended to, the others never change.

Who may do what
- *The writer* is one thread: `append`, `sync`, `abandon`, `seal`, `unlink`, `close`.
- *Readers* are any threads, beside it: `read`, `locate`, `places`, `numbers`, the properties.

What is durable
- `append` hands out a place at once and keeps the entry in a buffer; nothing is durable.
- `sync` writes the buffer and syncs the file: every entry appended before is durable on return. A
  file's name and header are durable before its first entry is written.
- `abandon` forgets what was appended since the last `sync`, and gives the space back where it can
  (entries in a pack that was sealed meanwhile stay behind as garbage for gc).

What a crash leaves: sealed packs, and at most one unsealed, the highest, since a pack is sealed
before the next is begun. `Packs()` looks for its whole entries, and for those that were whole once
(`volume.adoption`), syncs them and seals it:

    1  torn bytes cut off, synced    crash after: the same is found again
    2  index told of other numbers   kill -9 after: it says what the footer will; the pack is found
                                     unsealed, and its entries, in the same order, get the same
                                     numbers. Power cut after: the index is rebuilt from the packs
    3  footer                        done; before it is durable, as after 2

The index comes before the footer, since a sealed pack is never looked at in this way again.

It is not appended to again. New entries written over torn ones would stand among whole stale ones;
they could not be told from entries that were synced, and appending there would need a truncate to
be durable before it. A new file has nothing stale in it. (The price is a small pack for each crash;
gc joins them.) Entries behind a torn one are kept too: what verifies whole is by its id what it
should be, and if the tear is rot and no tear, they are somebody's data.
A crash before the header was durable leaves a file without entries; it is removed.

Pack numbers are not used again: the highest one stays on disk until there is a higher one.

*Striped* packs (`volume.stripedpack`) have a number here and their bytes elsewhere. They are sealed
packs for whoever reads or sweeps; what only files have (`open`, `open_uncached`, `rows_of`) is not
theirs, and `total_bytes` and `pack_count` do not count them.

What the disk refuses
- No space: OutOfSpace. The append did not happen, all before it stands, and it can be tried again.
- What the kernel refuses for another reason than the disk (`volume.diskerror`): OSError, likewise.
- Any other error while writing, and every error of a sync: OSError, and from then on StoreSealed.
  What the disk holds is no longer known; it is never tried again.
- A pack that is not what was written: CorruptPack, CorruptChunk, UnknownFormat.
"""

import contextlib
import logging
import threading
from collections.abc import Collection, Iterator
from typing import NamedTuple, NoReturn

from typing_extensions import Buffer

from native import crc32c
from volume import layout, packfile
from volume.adoption import SyncedPlaces, entries_left
from volume.disk import Disk, File
from volume.diskerror import seals
from volume.errors import CorruptChunk, CorruptPack, OutOfSpace, StoreSealed
from volume.index import Place
from volume.layout import ChunkId
from volume.lmdbroom import NO_SPACE_ERRNOS
from volume.openpacks import OpenPack, OpenPacks
from volume.packfile import HEADER_LENGTH, MEDIUM_ERRNOS, Salvage
from volume.packtail import WRITE_BUFFER_BYTES, PackTail
from volume.sites import fail_point, rare
from volume.stripedpack import Adopted, StripedPack, StripedPacks, rows_of

log = logging.getLogger(__name__)

DEFAULT_PACK_BYTES = 64 * 1024 * 1024  # a pack is sealed rather than let it grow over this
MAX_PACK_BYTES = 1024 * 1024 * 1024  # offsets are u32; a pack is also the unit of gc and repair
MAX_PACK_ENTRIES = 65536  # bounds the footer (3 MiB) when entries are tiny
DEFAULT_OPEN_PACKS = 256  # file descriptors kept for readers


class Located(NamedTuple):
    """Where the stored bytes of a chunk are, for a reader that does its own I/O."""

    pack: OpenPack
    data_offset: int
    """Of the first stored byte in the file."""
    stored_length: int
    codec: int
    table: bytes
    """One u32 (little-endian) crc32c for each 4 KiB of stored bytes; the last may be shorter."""
    raw_length: int


class Packs:
    """All packs of one data directory. Opening it repairs what a crash has left behind."""

    def __init__(
        self,
        disk: Disk,
        store_uuid: bytes,
        *,
        pack_bytes: int = DEFAULT_PACK_BYTES,
        folder: str = "packs",
        open_packs: int = DEFAULT_OPEN_PACKS,
        index: SyncedPlaces | None = None,
    ) -> None:
        """`index`: what was written beside the packs, if it can be trusted; only used here."""
        assert packfile.entry_length(1) <= pack_bytes <= MAX_PACK_BYTES
        self.pack_bytes = pack_bytes
        self._disk = disk
        self._uuid = store_uuid
        self._folder = folder
        self._files = OpenPacks(disk, folder, store_uuid, open_packs)
        self._lock = threading.Lock()  # _sizes, and that _tail changes together with it
        self._tail: PackTail | None = None
        self._failed: str | None = None
        disk.mkdir(folder)
        self._sizes = {number: self._size_on_disk(number) for number in self._listed()}
        """Sealed packs -> bytes on disk."""
        self.striped = StripedPacks(disk, folder, store_uuid)
        self._next = max(self._sizes, default=-1) + 1
        if not self._sizes:
            disk.sync_dir("")  # the folder is perhaps new
        self.rotten: list[ChunkId] = []
        """Damaged chunks of the pack that a crash had left."""
        self._recover(index)
        self._next = max(self._next, self.striped.newest + 1)

    # -- writing

    def append(
        self,
        kind: int,
        chunk_id: ChunkId,
        stored: Buffer,
        raw_length: int,
        codec: int,
        lost: Collection[int] = (),
    ) -> Place:
        """Append one entry and return its place; readable at once, durable after `sync`.

        `stored` is copied. `lost`: pages of a damaged chunk, see KIND_DAMAGED. OutOfSpace: nothing
        was appended."""
        assert bool(lost) == (kind == layout.KIND_DAMAGED)
        length = packfile.entry_length(memoryview(stored).nbytes)
        return self._room(length).add(kind, chunk_id, stored, raw_length, codec, lost)

    def sync(self) -> None:
        """Make every appended entry durable."""
        tail = self._tail
        self._check_usable()
        if tail is not None and tail.dirty:
            self._write(tail)
            fail_point("pack.written")
            self._sync_file(tail.pack)
            tail.mark_synced()
            fail_point("pack.synced")

    def abandon(self) -> None:
        """Forget what was appended since the last `sync`: the round that wanted it has failed.

        Places handed out since then are void. OSError as in the table above."""
        tail = self._tail
        if tail is not None and self._failed is None:
            try:
                tail.rewind()
            except OSError as error:
                self._refused(error, tail.pack.path)

    def seal(self) -> None:
        """Finish the pack that is appended to, if it has entries; syncs them.

        They are durable before the footer is written: who finds it believes it. Crash before the
        trailer is durable: the pack is found unsealed and scanned."""
        tail = self._tail
        self._check_usable()
        if tail is None or not tail.rows:
            return
        self.sync()
        footer = packfile.encode_footer(tail.rows, tail.pack.number, self._uuid, tail.written)
        try:
            tail.pack.file.pwrite(footer, tail.written)
        except OSError as error:
            self._refused(error, tail.pack.path)
        fail_point("pack.footer-written")
        self._sync_file(tail.pack)
        self._files.keep(tail.pack)
        with self._lock:
            self._sizes[tail.pack.number] = tail.written + len(footer)
            self._tail = None

    def begin(self) -> None:
        """Seal the pack that is appended to and begin another, empty one."""
        self.seal()
        self._check_usable()
        if self._tail is not None:
            return  # an empty one is there
        number, path = self._next, self._files.path(self._next)
        self._next += 1
        try:
            file = self._disk.open(path, create=True)
            try:
                file.pwrite(packfile.encode_header(number, self._uuid), 0)
            except OSError:
                with contextlib.suppress(OSError):
                    file.close()
                    self._disk.unlink(path)
                raise
        except OSError as error:
            self._refused(error, path)
        pack = OpenPack(number, path, file)
        fail_point("pack.begun")
        self._sync_file(pack, new=True)
        self._tail = PackTail(pack)

    def above(self, number: int) -> None:
        """Have what is appended next be in a pack above this one: of two that hold a chunk an index
        that is made anew takes the newer one. OutOfSpace."""
        tail = self._tail
        if tail is None or tail.pack.number > number:
            return
        self.seal()
        if self._tail is tail:  # an empty one; a crash leaves it, and it is removed when opened
            self._tail = None
            try:
                tail.pack.file.close()
                self._disk.unlink(tail.pack.path)
            except OSError as error:
                self._refused(error, tail.pack.path)

    def unlink(self, number: int) -> None:
        """Remove a sealed pack. Durable after `sync_folder`; until then a crash may undo it.

        The index must not know its places any more. OutOfSpace: it is the highest, and there is
        no room for the header of a higher one."""
        if number in self.striped:
            self._unlink_stub(number)
            return
        assert number in self._sizes, number
        if self._tail is None and number == max(self._sizes):
            self.begin()
        with self._lock:
            size = self._sizes.pop(number)
        self._files.drop(number)
        try:
            self._disk.unlink(self._files.path(number))
        except OSError as error:
            with self._lock:
                self._sizes[number] = size
            self._refused(error, self._files.path(number))

    def adopt(self, like: StripedPack, entries: list[Adopted]) -> dict[ChunkId, Place]:
        """Have these entries of a stripe be entries of a pack of this store; the stub is durable on
        return, and the places are for the index. `like` says which stripe it is. OutOfSpace."""
        self._check_usable()
        number, self._next = self._next, self._next + 1
        try:
            return self.striped.add(number, like, entries)
        except OSError as error:
            self._refused(error, f"stub of pack {number:08x}")

    def _unlink_stub(self, number: int) -> None:
        self.striped.window.forget([number])
        try:
            self.striped.unlink(number)
        except OSError as error:
            self._refused(error, f"stub of pack {number:08x}")

    def sync_folder(self) -> None:
        """Make removals durable."""
        try:
            self._disk.sync_dir(self._folder)
        except OSError as error:
            self._fail(error, self._folder)

    def close(self) -> None:
        """Seal what is appended to and let go of the files. Without space it stays unsealed."""
        try:
            if self._failed is None:
                with contextlib.suppress(OutOfSpace):
                    self.seal()
        finally:
            self._tail = None
            self._files.clear()

    # -- reading

    def read(self, place: Place, chunk_id: ChunkId) -> bytes:
        """The stored bytes of `chunk_id`, every page verified.

        CorruptChunk, CorruptPack, UnknownFormat, OSError."""
        if place.pack in self.striped:
            return self.striped.read(place, chunk_id)
        start = packfile.ENTRY_HEADER_LENGTH + packfile.table_length(place.stored_length)
        pack, data = self._entry_bytes(place, chunk_id, start + place.stored_length)
        return packfile.stored_bytes(data, pack.path, place, chunk_id)

    def salvage(self, place: Place, chunk_id: ChunkId) -> tuple[bytes, list[int]]:
        """The stored bytes of `chunk_id`, and which of their pages are damaged: those are zeros.

        Errors as `read`, when nothing can be told from the entry's header and page table."""
        if place.pack in self.striped:
            return self.striped.read(place, chunk_id), []
        located = self.locate(place, chunk_id)
        stored = bytearray(place.stored_length)
        damaged = []
        for page, (crc,) in enumerate(layout.META_U32.iter_unpack(located.table)):
            start = page * layout.PAGE_SIZE
            length = min(layout.PAGE_SIZE, place.stored_length - start)
            try:
                data = self._bytes(located.pack, located.data_offset + start, length)
            except OSError as error:
                if error.errno not in MEDIUM_ERRNOS:
                    raise
                data = b""
            if len(data) == length and crc32c(data) == crc:
                stored[start : start + length] = data
            else:
                damaged.append(page)
        return bytes(stored), damaged

    def locate(self, place: Place, chunk_id: ChunkId) -> Located:
        """Where the stored bytes of a synced chunk are. Header and page table are verified.

        Those of a striped pack are fetched, and then in memory. Errors as `read`."""
        if place.pack in self.striped:
            shown = self.striped.locate(place, chunk_id)
            return Located(
                *(shown.pack, shown.data_offset, place.stored_length, place.codec),
                *(shown.table, place.raw_length),
            )
        start = packfile.ENTRY_HEADER_LENGTH + packfile.table_length(place.stored_length)
        pack, data = self._entry_bytes(place, chunk_id, start)
        table = packfile.page_table(data, pack.path, place, chunk_id)
        where = place.offset + start
        return Located(pack, where, place.stored_length, place.codec, table, place.raw_length)

    def open(self, number: int) -> OpenPack:
        """A pack, for a reader that does its own I/O. CorruptPack, UnknownFormat, OSError."""
        return self._pack(number)

    def numbers(self) -> list[int]:
        """Every pack that has entries, oldest first, the one that is appended to included."""
        striped = self.striped.numbers()
        with self._lock:
            tail = self._tail
            current = [tail.pack.number] if tail is not None and tail.rows else []
            return sorted([*self._sizes, *current, *striped])

    def sealed(self) -> list[int]:
        """Every sealed pack that is a file, oldest first."""
        with self._lock:
            return sorted(self._sizes)

    def unchanging(self) -> list[int]:
        """Every pack that never changes: the sealed ones and the striped ones, oldest first."""
        return sorted([*self.sealed(), *self.striped.numbers()])

    def places(self, number: int) -> Iterator[tuple[ChunkId, Place]]:
        """The entries of a pack in order, synced ones only. CorruptPack, OSError.

        Of a sealed pack without a sound footer: what can be salvaged, with a warning. Of a stub
        that is damaged: none, with an error."""
        if number in self.striped:
            try:
                return rows_of(self.striped, number)
            except CorruptPack as error:
                log.error("striped pack cannot be used error=%s", error)
                self.striped.distrust(number)
                return iter(())
        tail = self._tail
        if tail is not None and tail.pack.number == number:
            return packfile.decode_rows(bytes(tail.rows[: tail.synced_rows]), number)
        rows = self._footer_rows(number)
        if rows is None:
            pack = self._pack(number)
            rows = bytes(packfile.salvage(pack.file, number, verify=False).rows)
            found = len(rows) // layout.FOOTER_ROW.size
            log.warning("pack footer damaged path=%s salvaged=%d", pack.path, found)
        return packfile.decode_rows(rows, number)

    def footer(self, number: int) -> Iterator[tuple[ChunkId, Place]]:
        """The entries of a sealed pack, from its footer or not at all: CorruptPack."""
        if number in self.striped:
            return rows_of(self.striped, number)
        rows = self._footer_rows(number)
        if rows is None:
            raise CorruptPack(
                f"{self._files.path(number)}: the footer is damaged; scrub will repair it"
            )
        return packfile.decode_rows(rows, number)

    def open_uncached(self, number: int) -> File:
        """A sealed pack for reading all of it once, past the page cache; the caller closes it.

        CorruptPack when the file is gone, OSError."""
        path = self._files.path(number)
        try:
            return self._disk.open_uncached(path)
        except FileNotFoundError as error:
            raise CorruptPack(f"{path}: the file is gone; restore it from a copy") from error

    def check_header(self, number: int, header: bytes) -> None:
        """Raise unless `header` begins pack `number`: CorruptPack, UnknownFormat."""
        packfile.check_header(header, self._files.path(number), number, self._uuid)

    def rows_of(self, number: int, file: File) -> Iterator[tuple[ChunkId, Place]]:
        """As `footer`, of a file that the caller has open."""
        trailer = packfile.read_trailer(file, number, self._uuid)
        rows = None if trailer is None else packfile.read_rows(file, trailer)
        if rows is None:
            raise CorruptPack(f"{self._files.path(number)}: the footer is damaged")
        return packfile.decode_rows(rows, number)

    def entry_count(self, number: int) -> int | None:
        """Entries of a sealed pack, by its trailer; None when that is damaged."""
        stub = self.striped.get(number)
        if stub is not None:
            return stub.entry_count
        pack = self._pack(number)
        trailer = packfile.read_trailer(pack.file, number, self._uuid)
        return None if trailer is None else trailer.entry_count

    def entries(self, number: int) -> tuple[int, int]:
        """(count, bytes) of the entries of a pack, synced ones only. CorruptPack, OSError.

        Bytes are all between header and footer, so torn entries too; of a pack whose footer is
        damaged, all behind the header."""
        tail = self._tail
        if tail is not None and tail.pack.number == number:
            rows = tail.synced_rows  # before the bytes: another thread may sync right now
            return rows // layout.FOOTER_ROW.size, tail.synced - HEADER_LENGTH
        stub = self.striped.get(number)
        if stub is not None:
            return stub.entry_count, stub.entry_bytes
        count = self.entry_count(number)
        if count is not None:
            footer = count * layout.FOOTER_ROW.size + packfile.TRAILER_LENGTH
            return count, self.size(number) - HEADER_LENGTH - footer
        return sum(1 for _ in self.places(number)), self.size(number) - HEADER_LENGTH

    def pass_over(self, number: int) -> None:
        """Give no new pack this number or a lower one."""
        self._next = max(self._next, number + 1)

    def newest(self) -> int:
        """The highest number given to a pack so far; -1 before the first."""
        return self._next - 1

    def unsealed(self) -> int | None:
        """The pack that is appended to, if it has entries."""
        tail = self._tail
        return tail.pack.number if tail is not None and tail.rows else None

    def size(self, number: int) -> int:
        """Bytes of a sealed pack on disk; of a striped one, of what this store finds in it."""
        stub = self.striped.get(number)
        if stub is not None:
            return stub.entry_bytes
        with self._lock:
            return self._sizes[number]

    @property
    def pack_count(self) -> int:
        with self._lock:
            return len(self._sizes) + (self._tail is not None)

    @property
    def total_bytes(self) -> int:
        """Bytes of all packs, on disk or about to be."""
        with self._lock:
            return sum(self._sizes.values()) + (self._tail.end if self._tail is not None else 0)

    # -- inside: the writer

    def _room(self, length: int) -> PackTail:
        """The pack to append `length` bytes to, with as much room in its buffer."""
        self._check_usable()
        assert length <= WRITE_BUFFER_BYTES, length
        tail = self._tail
        if tail is None or self._full(tail, length):
            self.begin()
            tail = self._tail
            assert tail is not None
        if not tail.takes(length):
            self._write(tail)
        return tail

    def _full(self, tail: PackTail, length: int) -> bool:
        if tail.frozen or tail.entry_count >= MAX_PACK_ENTRIES:
            return True
        if tail.rows and rare("pack.full-early"):
            return True
        row = layout.FOOTER_ROW.size
        return bool(tail.rows) and tail.end + length + tail.footer_length + row > self.pack_bytes

    def _write(self, tail: PackTail) -> None:
        try:
            tail.write()
        except OSError as error:
            self._refused(error, tail.pack.path)

    def _sync_file(self, pack: OpenPack, *, new: bool = False) -> None:
        try:
            pack.file.sync()
            if new:
                self._disk.sync_dir(self._folder)
        except OSError as error:
            self._fail(error, pack.path)

    def _check_usable(self) -> None:
        if self._failed is not None:
            raise StoreSealed(self._failed)

    def _refused(self, error: OSError, path: str) -> NoReturn:
        """A change failed: lack of space passes, as does what `seals` does not tell of."""
        if error.errno in NO_SPACE_ERRNOS:
            raise OutOfSpace(
                f"{path}: {error.strerror}; free space on the file system of the data directory"
            ) from error
        if not seals(error):
            raise error
        self._fail(error, path)

    def _fail(self, error: OSError, path: str) -> NoReturn:
        self._failed = f"{path}: {error}"
        raise error

    # -- inside: opening

    def _listed(self) -> list[int]:
        numbers = []
        for name in self._disk.list(self._folder):
            stem, dot, suffix = name.partition(".")
            if dot and suffix == "pack" and len(stem) == 8:
                with contextlib.suppress(ValueError):
                    numbers.append(int(stem, 16))
        return numbers

    def _size_on_disk(self, number: int) -> int:
        file = self._disk.open(self._files.path(number), read_only=True)
        try:
            return file.size()
        finally:
            file.close()

    def _recover(self, index: SyncedPlaces | None) -> None:
        """Remove files that never became packs; bring the highest into the state `seal` leaves."""
        for number in sorted(self._sizes, reverse=True):
            pack = self._unsealed(number) if number + 1 == self._next else None
            whole = pack is not None and self._header_holds(pack)
            if pack is not None and (whole or self._sizes[number] > HEADER_LENGTH):
                self._adopt(pack, whole, index)
            elif self._sizes[number] <= HEADER_LENGTH:
                log.warning("torn pack removed path=%s", self._files.path(number))
                del self._sizes[number]
                self._disk.unlink(self._files.path(number))
                self._disk.sync_dir(self._folder)

    def _unsealed(self, number: int) -> OpenPack | None:
        """The pack, open for writing, unless all of its footer is there."""
        path = self._files.path(number)
        pack = OpenPack(number, path, self._disk.open(path))
        return pack if self._footer_of(pack) is None else None

    def _header_holds(self, pack: OpenPack) -> bool:
        header = pack.file.pread(HEADER_LENGTH, 0)
        try:
            packfile.check_header(header, pack.path, pack.number, self._uuid)
        except CorruptPack as error:
            log.warning("pack header damaged error=%s", error)
            return False
        return True

    def _adopt(self, pack: OpenPack, whole: bool, index: SyncedPlaces | None) -> None:
        """Seal a pack that a crash left; one that is `whole` but without entries is appended to."""
        found = entries_left(pack.file, pack.number, index)
        if not found.sound and not whole:
            log.error("pack is not readable, left as it is path=%s", pack.path)
            return
        log.info("unsealed pack found path=%s bytes=%d", pack.path, found.end)
        for chunk_id in found.rotten:
            log.error("unsealed pack is damaged path=%s chunk=%s", pack.path, chunk_id.hex())
        if pack.file.size() > found.end:
            pack.file.truncate(found.end)  # torn entries: the footer goes right behind the last
        self._sync_file(pack, new=True)  # a killed process had perhaps not synced them
        if found.renumbered:
            assert index is not None
            index.put(found.renumbered)
        fail_point("open.pack-adopted")
        self.rotten = found.rotten
        del self._sizes[pack.number]
        self._tail = PackTail(pack, Salvage(found.rows, found.end))
        with contextlib.suppress(OutOfSpace):  # then it is sealed before the next one is begun
            self.seal()

    # -- inside: readers

    def _pack(self, number: int) -> OpenPack:
        tail = self._tail
        if tail is not None and tail.pack.number == number:
            return tail.pack
        return self._files.get(number)

    def _entry_bytes(self, place: Place, chunk_id: ChunkId, length: int) -> tuple[OpenPack, bytes]:
        """The pack and the first `length` bytes of an entry; what fails names the chunk.

        A disk that cannot read is damage, as rotten bytes are: no reason to seal the store."""
        try:
            pack = self._pack(place.pack)
            return pack, self._bytes(pack, place.offset, length)
        except CorruptPack as error:
            raise CorruptPack(f"chunk {chunk_id.hex()}: {error}") from error
        except OSError as error:
            if error.errno not in MEDIUM_ERRNOS:
                raise
            what = packfile.describe(self._files.path(place.pack), place, chunk_id)
            raise CorruptChunk(f"{what}: cannot be read ({error.strerror})") from error

    def _bytes(self, pack: OpenPack, offset: int, length: int) -> bytes:
        tail = self._tail
        if tail is not None and tail.pack is pack:
            return tail.read(offset, length)
        return pack.file.pread(length, offset)

    def _footer_rows(self, number: int) -> bytes | None:
        return self._footer_of(self._pack(number))

    def _footer_of(self, pack: OpenPack) -> bytes | None:
        trailer = packfile.read_trailer(pack.file, pack.number, self._uuid)
        return None if trailer is None else packfile.read_rows(pack.file, trailer)
