"""Packs whose bytes are elsewhere: in shards, on devices of several nodes.

A node that uses a striped pack has a *stub* of it: a file `packs/<number>.stripe` with a number of
this store, the name of the stripe, and the entries that this store finds in it. With the stub, a
striped pack is a pack like any other: the index names its entries by that number, gc marks and
sweeps them, and an index that was lost is made again of it. Only the bytes come from somebody else
(`StripeSource`), and are checked here like those of a file.

    header (128)   footer rows, as a pack has them (`layout.FOOTER_ROW`)

A stub has data chunks only. Nodes and commits stay in packs of the store itself, so that trees are
walked, and what is reachable is known, without asking anybody.

The stub is durable before the index names an entry of it, and it goes after the index has forgotten
them: gc's order for packs. Whoever has the stub needs the stripe: the cluster is told that before
the stub is written, and that it is needed no more after its removal is durable.

`SharedWindow` is where C reads from: the stored bytes of entries that were read lately lie in
memory files, which the place table knows like packs.

What is damaged of a stub's header or rows is an error in the log, and its chunks cannot be read;
stubs that cannot be read are counted (`unreadable`), so that nobody takes the stripe for unused.
"""

import errno
import logging
import os
import struct
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

from native import crc32c
from volume import layout, packfile
from volume.disk import Disk, PosixFile
from volume.errors import CorruptChunk, CorruptData, CorruptPack
from volume.index import Place
from volume.layout import ChunkId
from volume.openpacks import OpenPack

log = logging.getLogger(__name__)

MAGIC: Final = b"BLKDSTUB"
VERSION: Final = 1
HEADER: Final = struct.Struct("<8s I I 16s 32s 16s I 16s B B 2x I I Q I")
"""magic, version, number, store uuid, pack id, digest of the stripe, number and store uuid that the
pack has of the store that wrote it, k, m, reserved, entry count, crc32c of the rows, bytes of the
entries, crc32c of the bytes before it."""
HEADER_LENGTH: Final = 128
MAX_STUB_ROWS: Final = 65536  # as a pack has entries
SUFFIX: Final = ".stripe"
assert HEADER.size <= HEADER_LENGTH

SEGMENT_BYTES: Final = 4 << 20
MAX_SEGMENTS: Final = 8
FIRST_SEGMENT: Final = 0xFFFF0000
"""Numbers of the window's files: above those of packs."""
SEGMENT_NUMBERS: Final = 0xFFFF


class StripeUnavailable(CorruptData):
    """A striped pack cannot be read now: too few of its shards can be reached. It may come back, so
    nothing is given up for it."""

    code = "stripe_unavailable"


class StripeGivenUp(CorruptChunk):
    """A striped pack cannot be read, nothing that is away could change that, and somebody has given
    it up: what was in it is lost, as if its bytes were damaged."""

    code = "stripe_given_up"


class StripeSource(Protocol):
    """Reads striped packs. Any thread."""

    def read(self, pack: "StripedPack", length: int, offset: int) -> bytes:
        """Bytes of the pack as it was written, fewer only at its end. StripeUnavailable,
        StripeGivenUp."""


@dataclass(frozen=True, slots=True)
class StripedPack:
    """What a stub says."""

    number: int
    """Of the pack in this store."""
    pack_id: bytes
    """BLAKE3-256 of all of its bytes."""
    digest: bytes
    """Of the stripe."""
    data: int
    parity: int
    origin: int
    """Its number in the store that wrote it..."""
    origin_uuid: bytes
    """...and that store's uuid: its entries' headers have them."""
    entry_count: int
    entry_bytes: int
    """Of the entries that this store finds there, as they lie in the pack."""
    rows_crc: int

    def encode(self, store_uuid: bytes) -> bytes:
        body = HEADER.pack(
            *(MAGIC, VERSION, self.number, store_uuid, self.pack_id, self.digest),
            *(self.origin, self.origin_uuid, self.data, self.parity),
            *(self.entry_count, self.rows_crc, self.entry_bytes, 0),
        )[:-4]
        return (body + layout.META_U32.pack(crc32c(body))).ljust(HEADER_LENGTH, b"\0")

    @classmethod
    def decode(cls, data: bytes, number: int, store_uuid: bytes, path: str) -> "StripedPack":
        """CorruptPack: it is no stub of this store under this number."""
        if len(data) < HEADER_LENGTH:
            raise CorruptPack(f"{path}: cut off after {len(data)} bytes of its header")
        body = data[: HEADER.size - 4]
        (
            magic,
            version,
            own,
            uuid,
            pack_id,
            digest,
            origin,
            origin_uuid,
            k,
            m,
            count,
            crc,
            size,
            check,
        ) = HEADER.unpack_from(data)
        if crc32c(body) != check:
            raise CorruptPack(f"{path}: the header fails its checksum")
        if magic != MAGIC or version != VERSION or (own, uuid) != (number, store_uuid):
            raise CorruptPack(f"{path}: is no stub of pack {number:08x} of this store")
        if not (k >= 1 and m >= 1 and count <= MAX_STUB_ROWS):
            raise CorruptPack(f"{path}: {k}+{m} shards, {count} entries cannot be")
        return cls(number, pack_id, digest, k, m, origin, origin_uuid, count, size, crc)


class Adopted(NamedTuple):
    """An entry of somebody's pack that this store is to find there."""

    chunk_id: ChunkId
    place: Place
    """Offset, lengths, codec and kind count; number and ordinal are given here."""


Look = Callable[[StripedPack], bool]
"""Whether a stripe can be read, as was seen since the look has begun. Any thread; it may wait."""


class StripedPacks:
    """The stubs of a data directory. `add`, `unlink` on the writer's thread; else any thread."""

    def __init__(self, disk: Disk, folder: str, store_uuid: bytes) -> None:
        self.source: StripeSource | None = None
        """Who reads them; None until the node is one of a cluster."""
        self.window = SharedWindow()
        self.trusted: frozenset[int] | None = None
        """Stubs whose stripes could be read when that was looked at last; None: nobody looks."""
        self.looks: Callable[[], Look] | None = None
        """Have it looked how stripes are now; it waits. None: what was seen last has to do."""
        self._confirmed: dict[int, bool] = {}
        """Of the batch, stubs that were asked for: whether they could be read."""
        self._look: Look | None = None
        """Of the batch, once one of its chunks was found in a stripe."""
        self._batch = 0
        self._suspected: set[int] = set()
        self._all_suspected = False
        self._damaged: set[int] = set()
        self._disk = disk
        self._folder = folder
        self._uuid = store_uuid
        self._lock = threading.Lock()
        self._packs: dict[int, StripedPack] = {}
        self._by_pack: dict[bytes, dict[int, StripedPack]] = {}
        self._reserved = -1
        for name in disk.list(folder):
            stem, dot, suffix = name.partition(".")
            if dot and f".{suffix}" == SUFFIX and len(stem) == 8:
                self._load(name, stem)
            elif name.endswith(f"{SUFFIX}.new"):
                disk.unlink(f"{folder}/{name}")

    def _load(self, name: str, stem: str) -> None:
        path = f"{self._folder}/{name}"
        try:
            number = int(stem, 16)
        except ValueError:
            return
        self._reserved = max(self._reserved, number)
        try:
            file = self._disk.open(path, read_only=True)
            try:
                header = file.pread(HEADER_LENGTH, 0)
            finally:
                file.close()
            self._note(StripedPack.decode(header, number, self._uuid, path))
        except (CorruptPack, OSError) as error:
            self._damaged.add(number)
            log.error("striped pack cannot be used error=%s", error)

    def _note(self, pack: StripedPack) -> None:
        with self._lock:
            self._packs[pack.number] = pack
            self._by_pack.setdefault(pack.pack_id, {})[pack.number] = pack

    # -- what there is

    def __contains__(self, number: object) -> bool:
        return number in self._packs or number in self._damaged

    @property
    def unreadable(self) -> int:
        """Stubs that are damaged."""
        return len(self._damaged)

    def begin_batch(self) -> None:
        """What is found in stripes from now on is for something that was acknowledged before: so
        each is to be looked at once more, after this."""
        with self._lock:
            self._batch += 1
            self._look = None
            self._confirmed.clear()

    def doubts(self, number: int) -> bool:
        """Whether it is a striped pack that perhaps cannot be read: nothing new is to need it. The
        first one of a batch waits for other nodes, and each for its row."""
        if number not in self:
            return False
        if self.source is None:
            return True
        if self.trusted is None:
            return False
        return not (self._trusts(number) and self._confirms(number) and self._trusts(number))

    def _trusts(self, number: int) -> bool:
        trusted = self.trusted
        return trusted is not None and number in trusted

    def _confirms(self, number: int) -> bool:
        """Whether it can be read, by a look that has begun since the batch has."""
        pack, looks = self._packs.get(number), self.looks
        if pack is None or looks is None:
            return pack is not None
        with self._lock:
            batch, look, known = self._batch, self._look, self._confirmed.get(number)
        if known is not None:
            return known
        look = look or looks()
        found = look(pack)
        with self._lock:
            if batch == self._batch:
                self._look, self._confirmed[number] = look, found
        return found

    def begin_look(self) -> None:
        """It is being looked which can be read: what is suspected from now on stays so."""
        with self._lock:
            self._suspected.clear()
            self._all_suspected = False

    def suspect(self, number: int | None) -> None:
        """A stripe, or all of them (None), cannot be read perhaps, until that is looked at."""
        with self._lock:
            if self.trusted is None:
                return  # nobody would look
            if number is None:
                self._all_suspected, self.trusted = True, frozenset()
            else:
                self._suspected.add(number)
                self.trusted -= {number}

    def trust(self, numbers: Iterable[int]) -> None:
        """These can be read, as was seen since `begin_look`."""
        with self._lock:
            found = () if self._all_suspected else numbers
            self.trusted = frozenset(found) - self._suspected
        self.begin_batch()

    def distrust(self, number: int) -> None:
        """The entries of a stub cannot be read."""
        self._damaged.add(number)

    def get(self, number: int) -> StripedPack | None:
        return self._packs.get(number)

    def of_pack(self, pack_id: bytes) -> StripedPack | None:
        """The stub of a stripe, the newest one."""
        with self._lock:
            found = self._by_pack.get(pack_id)
            return None if found is None else found[max(found)]

    def all(self) -> list[StripedPack]:
        with self._lock:
            return list(self._packs.values())

    def numbers(self) -> list[int]:
        with self._lock:
            return sorted(self._packs)

    @property
    def newest(self) -> int:
        """The highest number that a stub here ever had, since the store was opened; else -1."""
        return self._reserved

    def rows(self, number: int) -> bytes:
        """Its entries as footer rows. CorruptPack, OSError."""
        pack = self._packs[number]
        path = self._path(number)
        file = self._disk.open(path, read_only=True)
        try:
            rows = file.pread(pack.entry_count * layout.FOOTER_ROW.size, HEADER_LENGTH)
        finally:
            file.close()
        if crc32c(rows) != pack.rows_crc:
            raise CorruptPack(
                f"{path}: its entries fail their checksum; they are in the stripe "
                f"{pack.pack_id.hex()}"
            )
        return rows

    # -- the writer

    def add(
        self, number: int, like: StripedPack, entries: Iterable[Adopted]
    ) -> dict[ChunkId, Place]:
        """Write a stub for a stripe under a number that no pack has had: durable on return. The
        places of its entries are for the index. `like` says which stripe it is. OSError."""
        rows = bytearray()
        places: dict[ChunkId, Place] = {}
        size = 0
        for chunk_id, place in entries:
            own = place._replace(pack=number, ordinal=len(places))
            places[chunk_id] = own
            rows += packfile.encode_row(own, chunk_id)
            size += packfile.entry_length(own.stored_length)
        assert 0 < len(places) <= MAX_STUB_ROWS
        pack = StripedPack(
            *(number, like.pack_id, like.digest, like.data, like.parity),
            *(like.origin, like.origin_uuid, len(places), size, crc32c(rows)),
        )
        path = self._path(number)
        self._reserved = max(self._reserved, number)
        file = self._disk.open(path + ".new", create=True)
        try:
            file.pwrite(pack.encode(self._uuid) + rows, 0)
            file.sync()
        except OSError:
            self._discard(path + ".new")
            raise
        finally:
            file.close()
        self._disk.rename(path + ".new", path)
        self._disk.sync_dir(self._folder)
        self._note(pack)
        return places

    def unlink(self, number: int) -> None:
        """Remove a stub; durable once the folder is synced. OSError."""
        try:
            self._disk.unlink(self._path(number))
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise
        with self._lock:
            pack = self._packs.pop(number)
            same = self._by_pack[pack.pack_id]
            del same[number]
            if not same:
                del self._by_pack[pack.pack_id]

    def _discard(self, path: str) -> None:
        try:
            self._disk.unlink(path)
        except OSError as error:
            log.warning("left behind path=%s error=%s", path, error)

    def _path(self, number: int) -> str:
        return f"{self._folder}/{number:08x}{SUFFIX}"

    # -- reading

    def lost_of(self, number: int) -> list[tuple[ChunkId, str]]:
        """The entries of a stub that cannot be read now, and why each. Reads all of them.
        CorruptPack, OSError."""
        found = []
        for chunk_id, place in rows_of(self, number):
            try:
                self.read(place, chunk_id)
            except CorruptData as error:
                found.append((chunk_id, str(error)))
        return found

    def read(self, place: Place, chunk_id: ChunkId) -> bytes:
        """The stored bytes of an entry, every page verified. StripeUnavailable, CorruptChunk."""
        return self._read(place, chunk_id)[1]

    def locate(self, place: Place, chunk_id: ChunkId) -> "Shown":
        """The stored bytes in the window, for a reader that does its own I/O. Errors as `read`."""
        key = (place.pack, place.offset)
        found = self.window.find(key)
        if found is None:
            table, stored = self._read(place, chunk_id)
            found = self.window.put(key, table, stored)
        return found

    def _read(self, place: Place, chunk_id: ChunkId) -> tuple[bytes, bytes]:
        pack = self._packs.get(place.pack)
        if pack is None:
            raise StripeUnavailable(
                f"chunk {chunk_id.hex()}: {self._path(place.pack)} is damaged, which says which "
                "stripe has it; restore that file from a backup"
            )
        if self.source is None:
            raise StripeUnavailable(
                f"chunk {chunk_id.hex()}: is in stripe {pack.pack_id.hex()}, and this daemon is "
                "not in a cluster now; start it with [cluster] in its configuration"
            )
        length = packfile.ENTRY_HEADER_LENGTH + packfile.table_length(place.stored_length)
        try:
            data = self.source.read(pack, length + place.stored_length, place.offset)
        except (StripeUnavailable, StripeGivenUp):
            self.suspect(place.pack)
            raise
        there = place._replace(pack=pack.origin)
        path = f"stripe {pack.pack_id.hex()}"
        stored = packfile.stored_bytes(data, path, there, chunk_id)
        return data[packfile.ENTRY_HEADER_LENGTH : length], stored


# -- what C reads from ----------------------------------------------------------------------------


class Shown(NamedTuple):
    """Stored bytes in the window."""

    pack: OpenPack
    data_offset: int
    table: bytes
    """As `packs.Located` has it."""


class _Segment:
    def __init__(self, number: int) -> None:
        path = f"window {number:08x}"
        self.file = PosixFile(os.memfd_create(f"blockd-{number:08x}", os.MFD_CLOEXEC))
        self.pack = OpenPack(number, path, self.file)
        self.used = 0
        self.keys: list[tuple[int, int]] = []


class SharedWindow:
    """The stored bytes of striped entries that were read lately, in a ring of memory files of
    SEGMENT_BYTES: MAX_SEGMENTS at most, made as they are needed. Any thread."""

    def __init__(self) -> None:
        self.dropped: Callable[[int], None] = lambda number: None
        """Told of the number of a file whose places are to be forgotten."""
        self._lock = threading.Lock()
        self._segments: OrderedDict[int, _Segment] = OrderedDict()
        self._shown: dict[tuple[int, int], Shown] = {}
        self._count = 0

    def find(self, key: tuple[int, int]) -> Shown | None:
        return self._shown.get(key)

    def put(self, key: tuple[int, int], table: bytes, stored: bytes) -> Shown:
        """OSError: there is no memory for it."""
        gone: list[_Segment] = []
        with self._lock:
            found = self._shown.get(key)
            if found is not None:
                return found
            segment = self._room(len(stored), gone)
            shown = Shown(segment.pack, segment.used, table)
            segment.file.pwrite(stored, segment.used)
            segment.used += -(-len(stored) // layout.PAGE_SIZE) * layout.PAGE_SIZE
            segment.keys.append(key)
            self._shown[key] = shown
        for each in gone:
            self.dropped(each.pack.number)
        return shown

    def forget(self, packs: Iterable[int]) -> None:
        """The numbers of these packs are not used any more."""
        numbers = set(packs)
        with self._lock:
            for key in [key for key in self._shown if key[0] in numbers]:
                del self._shown[key]

    @property
    def size(self) -> int:
        """Bytes of memory that it takes."""
        with self._lock:
            return sum(segment.used for segment in self._segments.values())

    def _room(self, length: int, gone: list[_Segment]) -> _Segment:
        assert length <= SEGMENT_BYTES
        newest = next(reversed(self._segments.values()), None)
        if newest is not None and newest.used + length <= SEGMENT_BYTES:
            return newest
        while len(self._segments) >= MAX_SEGMENTS:
            _, oldest = self._segments.popitem(last=False)
            for key in oldest.keys:
                self._shown.pop(key, None)
            gone.append(oldest)
        number = FIRST_SEGMENT + self._count % SEGMENT_NUMBERS
        self._count += 1
        segment = self._segments[number] = _Segment(number)
        return segment


def rows_of(packs: StripedPacks, number: int) -> Iterator[tuple[ChunkId, Place]]:
    """The entries of a striped pack. CorruptPack, OSError."""
    return packfile.decode_rows(packs.rows(number), number)
