"""From a frozen hot map to a tree of chunks: the part of destaging that knows no heads.

The same for a live head, whose frozen map is what was written since the last round, and for a past
version, whose map was replayed from the log: old bytes where the map has none, its bytes over them.

What of both cannot be read any more must not hold up everything else for ever. So a chunk that is
written in part is put together from what can be read, in pages of 4 KiB; pages that are damaged,
and not written as a whole, are stored as lost (KIND_DAMAGED): an I/O error until they are written
again, never zeros, never old data. A disk may fail a read and do the next: pages are given up only
when they could not be read for a while (`Doubts`), and until then the build fails. Damaged manifest
nodes are not gone round at all.

Where there are other nodes, one of them may have the whole chunk: it is asked for by its id
(volume/rescue.py), and the build fails (`ChunkAwaited`) until it has come, or every other node has
said, at the end of that while or later, that it does not have it. Nothing of this is durable: the
log has what was written, the damaged chunk stays, and after a crash it is all found again.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from struct import Struct

from native import PLACE_DATA, PLACE_REFER, ReadFault, VolumeCore
from volume.chunks import ChunkStore
from volume.disk import Clock
from volume.errors import ChunkAwaited, CorruptData, StoreClosing
from volume.layout import CHUNK_ID_LENGTH, FAN_OUT, PAGE_SIZE, ZERO_ID, ChunkId
from volume.manifest import Manifests, height_for
from volume.reader import ChunkResolver, HeadState
from volume.segments import segment_path
from volume.sites import fail_point
from volume.stripedpack import StripeUnavailable

WINDOW_BYTES = 1024 * 1024  # put together at once
SLICE_CHUNKS = 1 << 12  # of which ids are kept as objects until they are put into leaves
REFERRED_CHUNKS = 1 << 14  # whose ids are looked up and put into leaves at once
_RUN_ROW = Struct("=QQQ")
_ID_ROW = Struct(f"=Q{CHUNK_ID_LENGTH}s")


@dataclass(frozen=True, slots=True)
class BuildInput:
    """A frozen map over a tree. Sizes are bytes."""

    name: str
    """Of the volume, for messages."""
    core: VolumeCore
    base: HeadState
    size: int
    chunk_size: int
    codec: int


@dataclass(frozen=True, slots=True)
class Lost:
    """What of a volume could not be read while a chunk was put together."""

    name: str
    """Of the volume."""
    offset: int
    """Of the first page that is lost, bytes; the last ends at `offset + length`."""
    length: int
    chunk_id: ChunkId
    """The new chunk, in which they are lost."""
    why: str


class PackedIds:
    """Chunk indexes and ids in the order in which they came, as bytes: a round over a large volume
    has too many for an object each (memory of small objects hardly goes back to the system)."""

    def __init__(self) -> None:
        self._rows = bytearray()

    def __len__(self) -> int:
        return len(self._rows) // _ID_ROW.size

    def __iter__(self) -> Iterator[tuple[int, ChunkId]]:
        return _ID_ROW.iter_unpack(self._rows)

    def extend(self, ids: Mapping[int, ChunkId]) -> None:
        self._rows += b"".join(_ID_ROW.pack(*row) for row in ids.items())


@dataclass(slots=True)
class _Pending:
    """What is not in the tree yet."""

    ids: dict[int, ChunkId] = field(default_factory=dict)
    zeroed: list[tuple[int, int]] = field(default_factory=list)
    """Chunks [first, end), also of ids in `ids`: they are zeroed before."""

    def clear(self) -> None:
        self.ids.clear()
        self.zeroed.clear()


def frozen_runs(core: VolumeCore) -> Iterator[tuple[int, int, int]]:
    """The chunks that the frozen map of `core` touches, as runs (first chunk, count, PLACE_*) in
    order, without overlap. Zeros are chunks that are wholly unmapped, those that refer do so with
    one record; the others have to be put together."""
    return _RUN_ROW.iter_unpack(core.frozen_runs())


@dataclass(frozen=True, slots=True)
class Built:
    """A tree; durable after `ChunkStore.sync`."""

    root: ChunkId
    height: int
    chunks: PackedIds
    """Those where bytes were written; not where chunks are another tree's."""
    changed_chunks: int
    """Chunks that were written or cleared, whether they differ or not."""
    lost: tuple[Lost, ...] = ()


@dataclass(slots=True)
class _Gone:
    """What a build finds that cannot be read."""

    lost: list[Lost] = field(default_factory=list)
    awaited: list[Lost] = field(default_factory=list)
    """What may come from elsewhere; `chunk_id` is what is asked for. Nothing is stored then."""


class Doubts:
    """Pages that could not be read, and since when."""

    def __init__(self, clock: Clock, patience_s: float) -> None:
        self._clock = clock
        self._patience_s = patience_s
        self._since: dict[str, dict[int, float]] = {}

    def over_at(self, name: str, offset: int) -> float:
        """When a page of volume `name` that cannot be read now will not have been for long enough.
        Monotonic."""
        now = self._clock.monotonic()
        return self._since.get(name, {}).get(offset, now) + self._patience_s

    def settle(self, name: str, lost: list[Lost], awaited: list[Lost]) -> None:
        """These could not be read of volume `name` this time. ChunkAwaited when somebody else may
        have of it, CorruptData unless it has been so for long enough."""
        now = self._clock.monotonic()
        before = self._since.get(name, {})
        since = {each.offset: before.get(each.offset, now) for each in (*lost, *awaited)}
        self._since[name] = {**before, **since} if awaited else since  # not all was looked at
        if awaited:
            first = awaited[0]
            raise ChunkAwaited(
                f"volume {name}: {first.length} bytes at {first.offset} cannot be read here; other "
                f"nodes are asked for the {len(awaited)} chunk(s) that are needed, the first is "
                f"{first.chunk_id.hex()}: {first.why}"
            )
        for each in lost:
            if now - since[each.offset] < self._patience_s:
                raise CorruptData(
                    f"volume {name}: {each.length} bytes at {each.offset} cannot be read, and are "
                    f"given up when that stays so for {self._patience_s:g} s: {each.why}"
                )


class TreeBuilder:
    """Builds trees. On the destager's thread. Errors: those of `ChunkStore`, CorruptData of nodes
    and of what may be read yet; what is lost of the data is in `Built.lost`."""

    def __init__(
        self,
        chunks: ChunkStore,
        manifests: Manifests,
        resolver: ChunkResolver,
        should_stop: Callable[[], bool] = lambda: False,
        rest: Callable[[], None] = lambda: None,
        *,
        doubts: Doubts,
    ) -> None:
        """`should_stop()`: the store is closing; what was built is built again at the next start.
        Raises StoreClosing then. `rest()` is called between pieces of about a megabyte."""
        self._should_stop = should_stop
        self._rest = rest
        self._doubts = doubts
        self._chunks = chunks
        self._manifests = manifests
        self._resolver = resolver

    def build(self, given: BuildInput) -> Built:
        """The tree that has the frozen extents of `given.core` over `given.base`."""
        base = given.base
        height = max(base.height, height_for(given.size, given.chunk_size))
        root = self._manifests.grow(base.root, base.height, height)
        gone = _Gone()
        edits = _Pending()
        ids = PackedIds()
        touched = 0
        # What a shrink has cut off is not stored, and what the old head has of it goes.
        end = -(-given.size // given.chunk_size)
        referred: list[tuple[int, int]] = []
        for first, count, kind in frozen_runs(given.core):
            stop = first + count
            kept = max(first, min(stop, end)) if kind in (PLACE_DATA, PLACE_REFER) else first
            if first < kept and kind == PLACE_REFER:
                referred.append((first, kept))
            elif first < kept:
                for start in range(first, kept, SLICE_CHUNKS):
                    self._build_run(given, start, min(start + SLICE_CHUNKS, kept), edits, gone)
                    root = self._fold(root, height, edits, ids, gone)
            if kept < stop:
                edits.zeroed.append((kept, min(stop, FAN_OUT**height)))
                root = self._fold(root, height, edits, ids, gone)
            touched += max(0, min(stop, end) - first)
        self._doubts.settle(given.name, gone.lost, gone.awaited)
        fail_point("destage.chunks-appended")
        root = self._fold(root, height, edits, ids, gone, last=True)
        for first, stop in referred:
            root = self._refer(given, root, height, first, stop)
        fail_point("destage.manifest-written")
        return Built(root, height, ids, touched, tuple(gone.lost))

    def _fold(
        self,
        root: ChunkId,
        height: int,
        edits: _Pending,
        ids: PackedIds,
        gone: _Gone,
        *,
        last: bool = False,
    ) -> ChunkId:
        """The root with `edits`, which are empty then, once there are enough of them. Runs are in
        order, so hardly a leaf is written twice."""
        if len(edits.ids) + len(edits.zeroed) < SLICE_CHUNKS and not last:
            return root
        ids.extend(edits.ids)
        if not gone.awaited:  # else nothing of this comes to be
            zeroed = edits.zeroed + [
                (index, index + 1) for index, chunk_id in edits.ids.items() if chunk_id == ZERO_ID
            ]
            set_to = {
                index: chunk_id for index, chunk_id in edits.ids.items() if chunk_id != ZERO_ID
            }
            root = self._manifests.update(root, height, set_to, zeroed)
        edits.clear()
        return root

    def _build_run(
        self,
        given: BuildInput,
        first: int,
        stop: int,
        edits: _Pending,
        gone: _Gone,
    ) -> None:
        """Chunks [first, stop): old bytes where the frozen map has none, its bytes over them. Once
        something is awaited, only what else is to be asked for is looked for."""
        size, core = given.chunk_size, given.core
        window = max(1, WINDOW_BYTES // size)
        buffer = bytearray(min(window, stop - first) * size)
        for start in range(first, stop, window):
            if self._should_stop():
                raise StoreClosing
            self._rest()
            count = min(window, stop - start)
            view = memoryview(buffer)[: count * size]
            damaged: dict[int, str] = {}  # offset of a page -> why
            if not core.frozen_covers(start * size, count * size):
                for index in range(start, start + count):
                    if not core.frozen_covers(index * size, size):
                        at = (index - start) * size
                        view[at : at + size] = self._old_bytes(given, index, damaged, gone.awaited)
            if gone.awaited:
                continue
            _overlay(given, start * size, view, damaged)
            for index in range(start, start + count):
                at = (index - start) * size
                edits.ids[index] = self._put(given, index, view[at : at + size], damaged, gone.lost)

    def _put(
        self,
        given: BuildInput,
        index: int,
        data: memoryview,
        damaged: dict[int, str],
        lost: list[Lost],
    ) -> ChunkId:
        """Store what is known of chunk `index`."""
        size = given.chunk_size
        pages = range(index * size, (index + 1) * size, PAGE_SIZE) if damaged else ()
        gone = [offset for offset in pages if offset in damaged]
        if not gone:
            return self._chunks.put(data, codec=given.codec)
        numbers = [(offset - index * size) // PAGE_SIZE for offset in gone]
        chunk_id = self._chunks.put_damaged(data, numbers)
        length = gone[-1] + PAGE_SIZE - gone[0]
        lost.append(Lost(given.name, gone[0], length, chunk_id, damaged[gone[0]]))
        return chunk_id

    def _refer(
        self, given: BuildInput, root: ChunkId, height: int, first: int, stop: int
    ) -> ChunkId:
        """The root with chunks [first, stop) from the tree that one record names for them.

        They are not read: what is damaged there is as damaged here."""
        found = given.core.frozen_referred(first)
        assert found is not None, "the run is one that refers"
        _, source_root, source_height, source = found
        tree = HeadState(source_root, source_height, 0)
        for start in range(first, stop, REFERRED_CHUNKS):
            if self._should_stop():
                raise StoreClosing
            count = min(REFERRED_CHUNKS, stop - start)
            ids = {
                index: chunk_id
                for index, chunk_id in enumerate(
                    self._resolver.chunk_ids(tree, source + start - first, count), start
                )
                if chunk_id != ZERO_ID
            }
            self._chunks.claim(list(ids.values()))  # for gc, as what is found to be there
            root = self._manifests.update(root, height, ids, [(start, start + count)])
        return root

    def _old_bytes(
        self, given: BuildInput, index: int, damaged: dict[int, str], awaited: list[Lost]
    ) -> bytes:
        """What is below the bytes that the frozen map has of a chunk; pages that are damaged, and
        not covered by the map as a whole, go to `damaged`, or the chunk to `awaited`."""
        size = given.chunk_size
        chunk_id = self._resolver.below_frozen(given.core, given.base, index)
        if chunk_id == ZERO_ID:
            return bytes(size)
        try:
            return self._chunks.get(chunk_id)
        except StripeUnavailable:
            raise  # for the volume to wait until it can be reached: it is not lost
        except CorruptData as error:
            data, pages = self._chunks.salvage(chunk_id, size)
            offsets = [
                offset
                for offset in (index * size + page * PAGE_SIZE for page in pages)
                if not given.core.frozen_covers(offset, PAGE_SIZE)
            ]
            if offsets and self._may_come(given.name, offsets[0], chunk_id):
                length = offsets[-1] + PAGE_SIZE - offsets[0]
                awaited.append(Lost(given.name, offsets[0], length, chunk_id, str(error)))
            damaged.update(dict.fromkeys(offsets, str(error)))
            return data

    def _may_come(self, name: str, offset: int, chunk_id: ChunkId) -> bool:
        """Whether another node may have a chunk that is damaged, or missing, here."""
        over_at = self._doubts.over_at(name, offset)
        return self._resolver.may_come(chunk_id) and self._resolver.rescue.may_come(
            chunk_id, over_at
        )


def _overlay(given: BuildInput, offset: int, view: memoryview, damaged: dict[int, str]) -> None:
    """The bytes of the frozen map over those in `view`, which begins at `offset` of the volume.
    Pages of records that the journal does not hold any more go to `damaged`."""
    try:
        given.core.overlay_frozen(offset, view)
        return
    except ReadFault:
        pass
    for at in range(0, len(view), PAGE_SIZE):
        try:
            given.core.overlay_frozen(offset + at, view[at : at + PAGE_SIZE])
        except ReadFault as fault:
            _, slot, place, _ = fault.args
            damaged[offset + at] = (
                f"the journal ({segment_path(slot)} at {place}) does not hold what was written"
            )
