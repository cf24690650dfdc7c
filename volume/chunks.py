"""The chunk store: bytes in, their hash out, and back. Every distinct chunk is stored once.

`put` hashes (BLAKE3-256 of the plaintext), looks the hash up, and appends to a pack what is not
known yet. All-zero data is ZERO_ID and never stored. `sync` ends a round:

    1  packs synced          crash after: entries that nothing refers to; the next put of the same
                             data stores it again (or a rebuild finds it), gc removes the unused one
    2  index updated         crash after: chunks that nothing refers to; gc removes them

so whatever the index names is durable, and a head may be moved to a root once `sync` has returned.
Putting syncs by itself after MAX_PENDING chunks: what is kept in memory of them has a bound.
A round that fails (OutOfSpace) ends with `abandon` instead, and may be done again from the start.

Threads: `put`, `sync`, `abandon` and gc on one thread; `get`, `locate` and the counters on any.
gc may move a chunk, or remove its pack, between a reader's look at the index and its read. The
reader sees that as damage, looks again, and finds the new place; see MAX_LOOKS.
"""

import threading
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from blake3 import blake3
from typing_extensions import Buffer

from native import is_zero
from volume import codecs
from volume.disk import SECTOR_SIZE
from volume.errors import CorruptChunk, CorruptData
from volume.index import ChunkIndex, Place
from volume.layout import (
    DAMAGED_MAGIC,
    KIND_DAMAGED,
    KIND_DATA,
    META_U32,
    PAGE_SIZE,
    ZERO_ID,
    ChunkId,
)
from volume.model import MAX_CHUNK_SIZE
from volume.packfile import describe
from volume.packs import Located, Packs
from volume.rescue import Rescue
from volume.sites import fail_point
from volume.stripedpack import Adopted, StripedPack, StripeUnavailable

MAX_LOOKS = 4  # at the index for one read: gc moves a chunk at most once in each of its runs
MAX_PENDING = 1 << 13  # chunks between two syncs: what is kept of them, and LMDB's transaction
MAX_DAMAGED = 4096  # damaged chunks remembered, so that they are stored anew when they come again

T = TypeVar("T")


@dataclass(slots=True)
class ChunkCounters:
    """What the store did since it was opened. Bytes are plaintext unless said otherwise."""

    put_count: int = 0
    put_bytes: int = 0
    zero_count: int = 0
    zero_bytes: int = 0
    duplicate_count: int = 0
    duplicate_bytes: int = 0
    stored_count: int = 0
    stored_raw_bytes: int = 0
    stored_bytes: int = 0
    """After compression."""


class StoredChunk(NamedTuple):
    """A chunk as packs store it, for moving it to another store without packing it anew."""

    kind: int
    codec: int
    raw_length: int
    """Bytes of the chunk itself."""
    stored: bytes


def chunk_id_of(data: Buffer) -> ChunkId:
    """BLAKE3-256 of `data`. Releases the GIL for all but tiny buffers."""
    return blake3(data).digest()


def unpacked(chunk_id: ChunkId, chunk: StoredChunk) -> bytes:
    """The bytes of `chunk`, which may come from anywhere. CorruptChunk unless `chunk_id` names
    them and they are packed as packs have them, else volumes could not read what is stored so:
    into fewer bytes, or not at all. UnknownFormat when the codec is not one of ours."""
    what = f"chunk {chunk_id.hex()}"
    data = codecs.decompress(chunk.codec, chunk.stored, chunk.raw_length, what)
    found = chunk_id_of(data)
    if found != chunk_id:
        raise CorruptChunk(f"{what}: its bytes hash to {found.hex()}")
    if chunk.codec != codecs.CODEC_NONE and len(chunk.stored) >= chunk.raw_length:
        raise CorruptChunk(f"{what}: is packed into no fewer bytes than its {chunk.raw_length}")
    if chunk.kind == KIND_DATA and chunk.raw_length % SECTOR_SIZE:
        raise CorruptChunk(f"{what}: data, but {chunk.raw_length} bytes are no whole sectors")
    return data


class ChunkStore:
    """Chunks by their id. `codec` is how new data chunks are stored where `put` is not told; nodes
    are stored as they are.

    Errors of reads: CorruptChunk and CorruptPack (naming chunk, pack and offset), UnknownFormat,
    OSError. Errors of writes: OutOfSpace, StoreSealed, OSError (seal the store), as `Packs`.
    """

    def __init__(
        self,
        packs: Packs,
        index: ChunkIndex,
        *,
        codec: int = codecs.CODEC_NONE,
        rescue: Rescue | None = None,
    ) -> None:
        """`rescue`: reads of what is damaged may wait there, and find what others had of it."""
        packs.pass_over(index.newest_pack)
        self.packs = packs
        self.index = index
        self.rescue = rescue or Rescue()
        self.codec = codec
        self.counters = ChunkCounters()
        self.watch: Callable[[Iterable[Place]], None] | None = None
        """Told of all that is put or found to be there, once it is durable: gc's barrier."""
        self._pending: dict[ChunkId, Place] = {}
        self._damaged = set(packs.rotten[:MAX_DAMAGED])
        self._lost: dict[ChunkId, None] = {}  # noted last is last
        self._lost_lock = threading.Lock()

    def begin_batch(self) -> None:
        """What is put, or claimed, until the next call was acknowledged before this one: it does
        not come to hang on a stripe that cannot be read any more (`volume.stripedpack`)."""
        self.packs.striped.begin_batch()

    def put(self, data: Buffer, kind: int = KIND_DATA, *, codec: int | None = None) -> ChunkId:
        """Store `data` (up to MAX_CHUNK_SIZE; copied) unless it is known; return its id.

        `codec` is that of the volume, for data chunks; None: the store's. A chunk that is known
        stays as it is stored, whatever the codec. Data chunks are whole sectors, which no manifest
        node is: so their ids never meet. Readable at once, durable after `sync`. OutOfSpace: it was
        not stored."""
        length = memoryview(data).nbytes
        assert 0 < length <= MAX_CHUNK_SIZE, length
        assert kind != KIND_DATA or length % SECTOR_SIZE == 0, length
        counters = self.counters
        counters.put_count += 1
        counters.put_bytes += length
        if is_zero(data):
            counters.zero_count += 1
            counters.zero_bytes += length
            return ZERO_ID
        chunk_id = chunk_id_of(data)
        if self._known(chunk_id):
            counters.duplicate_count += 1
            counters.duplicate_bytes += length
            return chunk_id
        if kind != KIND_DATA:
            codec = codecs.CODEC_NONE
        used, stored = codecs.compress(self.codec if codec is None else codec, data, length)
        self._append(kind, chunk_id, stored, length, used)
        return chunk_id

    def put_stored(self, chunk_id: ChunkId, chunk: StoredChunk, *, anew: bool = False) -> bool:
        """As `put`, of a chunk that another store has packed; whether it was stored. `anew`: also
        when it is known, as one that is damaged.

        The caller has made sure, by `unpacked`, that `chunk` is what `chunk_id` names: that takes
        long, and can be done on any thread before."""
        counters = self.counters
        counters.put_count += 1
        counters.put_bytes += chunk.raw_length
        if self._known(chunk_id, is_damaged=anew):
            counters.duplicate_count += 1
            counters.duplicate_bytes += chunk.raw_length
            return False
        self._append(chunk.kind, chunk_id, chunk.stored, chunk.raw_length, chunk.codec)
        return True

    def put_damaged(self, data: Buffer, lost: Sequence[int]) -> ChunkId:
        """As `put`, of a data chunk whose 4 KiB pages `lost`, in order, are not known any more.

        They read as damage for ever, the others as `data` has them. Its id is of what is known and
        what is not: no sound chunk has it."""
        view = memoryview(data).cast("B")
        assert lost
        assert len(view) % SECTOR_SIZE == 0
        pages = META_U32.pack(len(lost)) + b"".join(map(META_U32.pack, lost))
        chunk_id = chunk_id_of(b"".join((DAMAGED_MAGIC, pages, view)))
        self.counters.put_count += 1
        self.counters.put_bytes += len(view)
        if not self._known(chunk_id):
            self._append(KIND_DAMAGED, chunk_id, view, len(view), codecs.CODEC_NONE, lost)
        return chunk_id

    def _append(
        self,
        kind: int,
        chunk_id: ChunkId,
        stored: Buffer,
        raw_length: int,
        codec: int,
        lost: Sequence[int] = (),
    ) -> None:
        """As `Packs.append`, of a chunk that is not known."""
        if len(self._pending) >= MAX_PENDING:
            self.sync()
        place = self.packs.append(kind, chunk_id, stored, raw_length, codec, lost)
        self._pending[chunk_id] = place
        self.counters.stored_count += 1
        self.counters.stored_raw_bytes += raw_length
        self.counters.stored_bytes += place.stored_length

    def claim(self, chunk_ids: Sequence[ChunkId]) -> list[Place | None]:
        """Where chunks are that something new is about to refer to, as `put` finds duplicates.

        Called by the writer's thread, between the same two `sync`s as what refers to them."""
        places = self.index.get_many(chunk_ids)
        if self.watch is not None:
            self.watch(place for place in places if place is not None)
        return [
            place or self._pending.get(chunk_id)
            for chunk_id, place in zip(chunk_ids, places, strict=True)
        ]

    def sync(self) -> None:
        """Make everything put before durable, then known to the index.

        OutOfSpace: may be called again, or `abandon`."""
        self.packs.sync()
        if self._pending:
            self.index.put(self._pending)
            fail_point("chunks.indexed")
            if not self._damaged.isdisjoint(self._pending):
                fail_point("chunks.stored-anew")
            if self.watch is not None:
                self.watch(self._pending.values())
            self._damaged.difference_update(self._pending)
            self.forget_lost(self._pending)
            self._pending = {}

    def abandon(self) -> None:
        """Forget what was put since the last `sync`; ids given out since then may name nothing, or
        what nothing refers to."""
        self._pending = {}
        self.packs.abandon()

    def adopt(self, like: StripedPack, entries: Sequence[Adopted]) -> int:
        """Find these data chunks in a stripe from now on, those that this store still has in packs
        of its own; how many that are. Between rounds, while no run of gc is under way; the caller
        has read them there, and has told the cluster that this node needs the stripe. OSError.

            1  stub written, synced        crash after: entries nobody looks for; gc removes it
            2  index updated               power cut after: the index is made anew of packs and
                                           stubs, where the stub's number is the higher one

        What the packs have of these chunks is garbage after that."""
        assert not self._pending
        known = self.index.get_many([each.chunk_id for each in entries])
        wanted = [
            each
            for each, place in zip(entries, known, strict=True)
            if place is not None
            and place.pack not in self.packs.striped
            and (place.kind, place.raw_length) == (KIND_DATA, each.place.raw_length)
        ]
        if wanted:
            places = self.packs.adopt(like, wanted)
            self.index.put(places)
        return len(wanted)

    def not_adopted(self, number: int) -> dict[ChunkId, Place]:
        """Entries of a stub that this store finds in packs of its own. CorruptPack."""
        places = dict(self.packs.footer(number))
        known = self.index.get_many(list(places))
        return {
            chunk_id: place
            for (chunk_id, place), now in zip(places.items(), known, strict=True)
            if now is not None and now.pack not in self.packs.striped
        }

    def is_whole(self, chunk_id: ChunkId, place: Place) -> bool:
        """Whether what is there is what the id says. StripeUnavailable: nobody can tell now."""
        try:
            self._read(chunk_id, place, True)
        except StripeUnavailable:
            raise
        except CorruptData:
            return False
        return True

    def adopt_again(self, number: int, whole: Collection[ChunkId]) -> int:
        """The second step of `adopt`, for a stub that is there without it: after a crash, or since
        etcd went back. `whole`: what was read there just now. What was stored here since, as it
        could not be read there, stays here otherwise. CorruptPack."""
        assert not self._pending
        left = self.not_adopted(number)
        wanted = {chunk_id: place for chunk_id, place in left.items() if chunk_id in whole}
        self.index.put(wanted)
        return len(wanted)

    @property
    def pending_count(self) -> int:
        """Chunks put since the last `sync`."""
        return len(self._pending)

    def get(self, chunk_id: ChunkId, *, verify: bool = False) -> bytes:
        """The bytes of a chunk. Their page checksums always hold.

        The hash is checked as well for nodes, commits and compressed data, and with `verify`. What
        is damaged, but was brought from elsewhere, is whole."""
        try:
            return self._found(chunk_id, lambda place: self._read(chunk_id, place, verify))
        except CorruptData:
            data = self.rescue.get(chunk_id)
            if data is None:
                raise
            return data

    def stored(self, chunk_id: ChunkId) -> StoredChunk:
        """A chunk as it is stored. Its page checksums hold; `unpacked` checks the rest."""
        return self._found(
            chunk_id,
            lambda place: StoredChunk(
                place.kind, place.codec, place.raw_length, self.packs.read(place, chunk_id)
            ),
        )

    def salvage(self, chunk_id: ChunkId, length: int) -> tuple[bytes, list[int]]:
        """What can be read of a data chunk of `length` bytes, and which of its 4 KiB pages cannot:
        those are zeros. Of a packed chunk that is damaged: nothing. UnknownFormat, OSError."""
        try:
            return self.get(chunk_id), []
        except StripeUnavailable:
            raise
        except CorruptData:
            pass
        try:
            found = self._found(
                chunk_id,
                lambda place: (
                    self.packs.salvage(place, chunk_id)
                    if (place.codec, place.stored_length) == (codecs.CODEC_NONE, length)
                    else None
                ),
            )
        except StripeUnavailable:
            raise
        except CorruptData:
            found = None
        return found or (bytes(length), list(range(-(-length // PAGE_SIZE))))

    def locate(self, chunk_id: ChunkId) -> Located:
        """Where the stored bytes of a chunk are, for a reader that does its own I/O."""
        return self._found(chunk_id, lambda place: self.packs.locate(place, chunk_id))

    def place(self, chunk_id: ChunkId) -> Place | None:
        """Where a chunk is; None when the store has none of that id."""
        return self.index.get(chunk_id) or self._pending.get(chunk_id)

    def note_damage(self, chunk_id: ChunkId) -> None:
        """What is stored of a chunk is damaged: store it anew when it is put again."""
        if len(self._damaged) < MAX_DAMAGED:
            self._damaged.add(chunk_id)

    def damaged(self) -> list[ChunkId]:
        """Chunks that reads, or scrub, found damaged, and that were not stored anew since."""
        return list(self._damaged)

    def is_damaged(self, chunk_id: ChunkId) -> bool:
        """Whether what is stored of a chunk is known to be damaged."""
        return chunk_id in self._damaged

    def note_lost(self, chunk_id: ChunkId) -> None:
        """Something refers to a chunk that no pack has: its entry was damaged when a power cut had
        the index made anew. Of more than MAX_DAMAGED those that were noted last are kept."""
        with self._lost_lock:
            self._lost.pop(chunk_id, None)
            self._lost[chunk_id] = None
            if len(self._lost) > MAX_DAMAGED:
                del self._lost[next(iter(self._lost))]

    def lost(self) -> list[ChunkId]:
        """Chunks that were noted so, and were not stored anew since: what repair may store, though
        nothing of them is here."""
        with self._lost_lock:
            return list(self._lost)

    def is_lost(self, chunk_id: ChunkId) -> bool:
        return chunk_id in self._lost

    def forget_lost(self, chunk_ids: Iterable[ChunkId]) -> None:
        """Nothing needs these any more, or they are stored anew."""
        with self._lost_lock:
            for each in chunk_ids:
                self._lost.pop(each, None)

    def _known(self, chunk_id: ChunkId, *, is_damaged: bool = False) -> bool:
        if chunk_id in self._pending:
            return True
        place = self.index.get(chunk_id)
        if place is None:
            return False
        if is_damaged or chunk_id in self._damaged or self.doubts(chunk_id, place):
            if place.pack in self.packs.striped:
                self.packs.above(place.pack)
            return False  # what is acknowledged anew does not hang on what may be lost
        if self.watch is not None:
            self.watch((place,))
        return True

    def doubts(self, chunk_id: ChunkId, place: Place) -> bool:
        """Whether it is in a stripe that perhaps cannot be read, and nowhere else."""
        return chunk_id not in self._pending and self.packs.striped.doubts(place.pack)

    def _read(self, chunk_id: ChunkId, place: Place, verify: bool) -> bytes:
        stored = self.packs.read(place, chunk_id)
        what = describe(f"pack {place.pack:08x}", place, chunk_id)
        data = codecs.decompress(place.codec, stored, place.raw_length, what)
        if verify or place.kind != KIND_DATA or place.codec != codecs.CODEC_NONE:
            found = chunk_id_of(data)
            if found != chunk_id:
                raise CorruptChunk(f"{what}: its bytes hash to {found.hex()}")
        return data

    def _found(self, chunk_id: ChunkId, use: Callable[[Place], T]) -> T:
        """What `use` makes of the chunk's place, which gc may change meanwhile."""
        assert chunk_id != ZERO_ID
        place = self.place(chunk_id)
        for _ in range(MAX_LOOKS):
            if place is None:
                break
            try:
                return use(place)
            except CorruptData as error:
                again = self.place(chunk_id)
                if again == place:
                    if not isinstance(error, StripeUnavailable):
                        self.note_damage(chunk_id)
                        error.chunk_id = chunk_id
                    raise
                place = again
        gone = CorruptChunk(
            f"chunk {chunk_id.hex()}: no pack has it; restore it from a copy or a peer"
        )
        gone.chunk_id = chunk_id
        raise gone
