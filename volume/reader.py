"""Reads that the hot path could not finish: they need the disk, or a chunk's place.

The place of a chunk is found by walking manifest and index, then cached in the native place table,
so that the next read of the chunk costs no Python. Reads run on a small pool of threads.

A head may move, and gc may move a pack, while a read is under way: a place found for an older head
is refused by the volume's generation, and the read looks again, a bounded number of times.

A read that meets a damaged chunk is put aside while another node is asked for it, without a thread
(volume/rescue.py): when it has come, the read is done again, from its start, with what was brought.
"""

import contextlib
import errno
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

from native import (
    CHUNK_DECODED,
    CHUNK_HOLE,
    CHUNK_PACKED,
    CHUNK_RAW,
    OP_READ,
    PLACE_ZERO,
    REFERRED,
    PackFile,
    ReadFault,
    Request,
    VolumeCore,
)
from volume import codecs
from volume.changes import Changes
from volume.chunks import ChunkStore
from volume.errors import CorruptChunk, CorruptData, VolumeError
from volume.layout import (
    CHUNK_ID_LENGTH,
    FAN_OUT,
    INDEX_PLACE,
    KIND_DAMAGED,
    ZERO_ID,
    ChunkId,
)
from volume.manifest import Manifests
from volume.openpacks import OpenPack
from volume.packs import Located
from volume.rescue import READ_S, Rescue
from volume.scheduler import Scheduler
from volume.segments import segment_path

log = logging.getLogger(__name__)

Done = Callable[[list[Request]], None]

WINDOW_BYTES = 1024 * 1024  # a long read is done in pieces, so that a small cache is enough
MAX_ATTEMPTS = 256  # for one piece; each failure means that a head moved or the cache is crowded
MAX_PACK_FILES = 256
MAX_EXTENTS = 1 << 14  # in one answer to BLOCK_STATUS

WARM_CHUNKS = 1 << 17  # cached ahead for one volume; about 20 MiB of the cache, 8 GiB of data
WARM_BATCH = FAN_OUT  # at once: a leaf's worth, about a millisecond
_NO_ROW = bytes(INDEX_PLACE.size)
_PACK_BYTES = 4  # a row of the index begins with the number of the pack
STATE_HOLE_ZERO = 3  # blockd.device.STATE_HOLE | STATE_ZERO


@dataclass(frozen=True, slots=True)
class HeadState:
    """The tree under a volume's hot maps. `generation` is raised with every change of it."""

    root: ChunkId
    height: int
    generation: int


@dataclass(frozen=True, slots=True)
class ReadTarget:
    """What a read needs to know of a volume. `head` is asked anew for each attempt."""

    name: str
    core: VolumeCore
    block_size: int
    chunk_size: int
    head: Callable[[], HeadState]


class ChunkResolver:
    """Finds chunks by volume and index. Thread-safe."""

    def __init__(self, chunks: ChunkStore, manifests: Manifests) -> None:
        self._chunks = chunks
        self._manifests = manifests
        self._lock = threading.Lock()
        self._pack_files: OrderedDict[int, PackFile] = OrderedDict()

    def chunk_id(self, head: HeadState, index: int) -> ChunkId:
        """The id of chunk `index` of the volume."""
        if index >= FAN_OUT**head.height:
            return ZERO_ID  # the volume has grown since its tree was written
        leaf = self._manifests.lookup_leaf(head.root, head.height, index // FAN_OUT)
        if leaf is None:
            return ZERO_ID
        at = index % FAN_OUT * CHUNK_ID_LENGTH
        return leaf[at : at + CHUNK_ID_LENGTH]

    def chunk_ids(self, head: HeadState, first: int, count: int) -> Iterator[ChunkId]:
        """The ids of `count` chunks from `first` on; lazy, leaf by leaf."""
        at, end = first, first + count
        while at < end:
            stop = min(end, (at // FAN_OUT + 1) * FAN_OUT)
            leaf = None
            if at < FAN_OUT**head.height:
                leaf = self._manifests.lookup_leaf(head.root, head.height, at // FAN_OUT)
            for index in range(at % FAN_OUT, at % FAN_OUT + stop - at):
                start = index * CHUNK_ID_LENGTH
                yield ZERO_ID if leaf is None else leaf[start : start + CHUNK_ID_LENGTH]
            at = stop

    def resolve(self, target: ReadTarget, index: int) -> None:
        """Put the chunk's place into the table, unless the head moves meanwhile. CorruptData.

        `index` is one of those that `VolumeCore.missing` tells."""
        if index & REFERRED:
            self._resolve_referred(target, index & ~REFERRED)
            return
        head = target.head()
        try:
            self._put(target, head, index, self.chunk_id(head, index))
        except CorruptData:
            if target.head().generation == head.generation:
                raise
            # The head moved on, and gc has taken what only the old one had: the read looks again.

    def _resolve_referred(self, target: ReadTarget, index: int) -> None:
        """The same for what a REFER record lets chunk `index` read as."""
        found = target.core.referred(index)
        if found is None:
            return  # it has come into chunks meanwhile, or was written over
        seq, root, height, source_index = found
        tree = HeadState(root, height, seq)
        try:
            self._put(target, tree, index | REFERRED, self.chunk_id(tree, source_index))
        except CorruptData:
            if target.core.referred(index) == found:
                raise

    def visible_id(self, target: ReadTarget, index: int) -> ChunkId:
        """The id of what is below the bytes that are hot of chunk `index`."""
        found = target.core.referred(index)
        if found is None:
            return self.chunk_id(target.head(), index)
        seq, root, height, source_index = found
        return self.chunk_id(HeadState(root, height, seq), source_index)

    def below_frozen(self, core: VolumeCore | None, base: HeadState, index: int) -> ChunkId:
        """The id of what is below the bytes that a frozen map over `base` has of chunk `index`."""
        found = None if core is None else core.frozen_referred(index)
        if found is None:
            return self.chunk_id(base, index)
        seq, root, height, source_index = found
        return self.chunk_id(HeadState(root, height, seq), source_index)

    def _put(self, target: ReadTarget, head: HeadState, index: int, chunk_id: ChunkId) -> None:
        put = target.core.put_place
        if chunk_id == ZERO_ID:
            put(index, head.generation, CHUNK_HOLE, None, 0, target.chunk_size, b"")
            return
        data = self.rescue.get(chunk_id)
        if data is not None and len(data) == target.chunk_size:
            put(index, head.generation, CHUNK_DECODED, None, 0, target.chunk_size, data)
            return
        located = self._chunks.locate(chunk_id)
        _check_stored(located, chunk_id, target.chunk_size)
        self._put_stored(target, head, index, located)

    def _put_stored(
        self, target: ReadTarget, head: HeadState, index: int, located: Located
    ) -> None:
        kind = CHUNK_RAW if located.codec == codecs.CODEC_NONE else CHUNK_PACKED
        target.core.put_place(
            *(index, head.generation, kind, self._pack_file(located.pack), located.data_offset),
            *(target.chunk_size, located.table, located.codec, located.stored_length),
        )

    def warm(
        self,
        target: ReadTarget,
        head: HeadState,
        chunk_ids: Iterable[tuple[int, ChunkId]],
        go_on: Callable[[], bool] = lambda: True,
    ) -> None:
        """Cache the places of chunks of `head` (index, id) before they are asked for. Packs are not
        read for it, only the index: the first read of a chunk reads its entry, in C.

        At most WARM_CHUNKS; none after one that is not as it should be, which a read of it reports:
        what only saves time must not break a round. `go_on` is asked before each WARM_BATCH of
        them. CorruptData and OSError of `chunk_ids`."""
        ahead = islice(chunk_ids, WARM_CHUNKS)
        while go_on() and (batch := list(islice(ahead, WARM_BATCH))):
            try:
                batch = self._in_own_packs(batch)
                while batch:
                    batch = batch[self._warm_batch(target, head, batch) :]
                    if batch:  # something is unusual about the next one
                        index, chunk_id = batch.pop(0)
                        self._put(target, head, index, chunk_id)
            except (VolumeError, OSError) as error:
                log.warning("not cached ahead volume=%s error=%s", target.name, error)
                return

    def _in_own_packs(self, batch: list[tuple[int, ChunkId]]) -> list[tuple[int, ChunkId]]:
        """Those that are not in striped packs: these are fetched when they are read."""
        striped = self._chunks.packs.striped
        if not striped.numbers():
            return batch
        rows = self._chunks.index.rows([chunk_id for _, chunk_id in batch])
        return [
            each
            for each, row in zip(batch, rows, strict=True)
            if row is None or int.from_bytes(row[:_PACK_BYTES], "little") not in striped
        ]

    def _warm_batch(
        self, target: ReadTarget, head: HeadState, batch: list[tuple[int, ChunkId]]
    ) -> int:
        """How many of them, from the first on, are in the table, or are of an older head."""
        ids = [chunk_id for _, chunk_id in batch]
        rows = [
            _NO_ROW if row is None or len(row) != len(_NO_ROW) else row
            for row in self._chunks.index.rows(ids)
        ]
        numbers = {row[:_PACK_BYTES] for row in rows if row is not _NO_ROW}
        packs = (self._chunks.packs.open(int.from_bytes(each, "little")) for each in numbers)
        return target.core.warm(
            head.generation,
            b"".join(index.to_bytes(8, "little") for index, _ in batch),
            b"".join(ids),
            b"".join(rows),
            tuple(self._pack_file(pack) for pack in packs),
        )

    def stored_chunks(self, head: HeadState) -> Iterator[tuple[int, ChunkId]]:
        """All chunks of a head that are not zeros, in order. Lazy."""
        runs = self._manifests.extents(head.root, head.height, 0, FAN_OUT**head.height)
        for first, count, allocated in runs:
            if allocated:
                yield from enumerate(self.chunk_ids(head, first, count), first)

    def note_damage(self, chunk_id: ChunkId) -> None:
        """What is stored of a chunk is damaged: the same data, written again, is stored anew."""
        self._chunks.note_damage(chunk_id)

    @property
    def rescue(self) -> Rescue:
        return self._chunks.rescue

    def may_come(self, chunk_id: ChunkId) -> bool:
        """Whether somebody else can have what is damaged here: nobody has what was lost."""
        place = self._chunks.place(chunk_id)
        if place is None:
            self._chunks.note_lost(chunk_id)
        return place is None or place.kind != KIND_DAMAGED

    def resolve_brought(self, target: ReadTarget, index: int, chunk_id: ChunkId) -> bool:
        """Put what was brought of a damaged chunk in the place of what is read of `index`; False
        when nothing was. Errors as `resolve`."""
        if self.rescue.get(chunk_id) is None:
            return False
        referred = target.core.referred(index) is not None
        self.resolve(target, index | REFERRED if referred else index)
        return True

    def forget_pack(self, number: int) -> None:
        with self._lock:
            self._pack_files.pop(number, None)

    def _pack_file(self, pack: OpenPack) -> PackFile:
        with self._lock:
            found = self._pack_files.get(pack.number)
            if found is None:
                found = PackFile(pack.file.native(), pack.number)
                self._pack_files[pack.number] = found
                while len(self._pack_files) > MAX_PACK_FILES:
                    self._pack_files.popitem(last=False)
            return found

    # -- extents

    def extents(self, target: ReadTarget, offset: int, length: int) -> list[tuple[int, int]]:
        """(length, flags) from `offset` on, merged, at most MAX_EXTENTS; flags as BLOCK_STATUS."""
        for _ in range(MAX_ATTEMPTS):
            head = target.head()
            try:
                return self._extents(target, offset, length)
            except CorruptData:
                if target.head().generation == head.generation:
                    raise
        raise OSError(errno.EIO, f"volume {target.name}: its head moves faster than it is read")

    def _extents(self, target: ReadTarget, offset: int, length: int) -> list[tuple[int, int]]:
        merged: list[tuple[int, int]] = []
        # The hot maps first: what a destage round moves from them meanwhile is in the later head.
        hot = target.core.hot_extents(offset, length, MAX_EXTENTS)
        head = target.head()
        for start, run, kind in hot:
            if kind >= 0:
                # What a record refers to passes for data, though it may have holes.
                _push(merged, run, STATE_HOLE_ZERO if kind == PLACE_ZERO else 0)
            else:
                self._tree_extents(target, head, start, run, merged)
            if len(merged) >= MAX_EXTENTS:
                break
        return _aligned(offset, merged[:MAX_EXTENTS], target.block_size)

    def _tree_extents(
        self,
        target: ReadTarget,
        head: HeadState,
        offset: int,
        length: int,
        merged: list[tuple[int, int]],
    ) -> None:
        size = target.chunk_size
        end = offset + length
        capacity = FAN_OUT**head.height
        first, last = offset // size, min(-(-end // size), capacity)
        at = offset
        if first < last:
            for run_first, count, allocated in self._manifests.extents(
                head.root, head.height, first, last
            ):
                stop = min((run_first + count) * size, end)
                _push(merged, stop - at, 0 if allocated else STATE_HOLE_ZERO)
                at = stop
                if len(merged) > MAX_EXTENTS:
                    return
        if at < end:
            _push(merged, end - at, STATE_HOLE_ZERO)


def _check_stored(located: Located, chunk_id: ChunkId, chunk_size: int) -> None:
    """Whether a chunk of the volume can be stored like this. CorruptChunk, UnknownFormat."""
    codecs.name_of(located.codec, f"chunk {chunk_id.hex()}")
    if located.raw_length != chunk_size:
        raise CorruptChunk(
            f"chunk {chunk_id.hex()} is {located.raw_length} bytes long, where {chunk_size} "
            "belong; restore it from a copy"
        )
    packed = located.codec != codecs.CODEC_NONE
    if packed != (located.stored_length < chunk_size) or located.stored_length > chunk_size:
        raise CorruptChunk(
            f"chunk {chunk_id.hex()} of {chunk_size} bytes cannot take {located.stored_length} "
            "in its pack; restore it from a copy"
        )


def _aligned(offset: int, extents: list[tuple[int, int]], block_size: int) -> list[tuple[int, int]]:
    """The same with every inner boundary on a block; a block that holds data in part is data."""
    aligned: list[tuple[int, int]] = []
    end = offset + sum(length for length, _ in extents)  # may be inside of a block
    at = reached = offset
    for number, (length, flags) in enumerate(extents, start=1):
        at += length
        stop = at
        if number < len(extents):
            stop = at // block_size * block_size if flags else -(-at // block_size) * block_size
        stop = min(stop, end)
        if stop > reached:
            _push(aligned, stop - reached, flags)
            reached = stop
    return aligned


def _push(merged: list[tuple[int, int]], length: int, flags: int) -> None:
    if length <= 0:
        return
    if merged and merged[-1][1] == flags:
        merged[-1] = (merged[-1][0] + length, flags)
    else:
        merged.append((length, flags))


@dataclass(frozen=True, slots=True)
class _Task:
    """Requests of one volume that a thread is to finish."""

    target: ReadTarget
    requests: list[Request]
    done: Done
    until: float | None = None
    """Of a read that has waited for damaged chunks: it does so no longer than this."""


class Reader:
    """Finishes READ and BLOCK_STATUS requests off the front ends' thread."""

    def __init__(self, resolver: ChunkResolver, scheduler: Scheduler) -> None:
        self._resolver = resolver
        self._scheduler = scheduler
        self._pool: ThreadPoolExecutor | None = None
        self._threads = 1

    def start(self, threads: int) -> None:
        """Serve from threads. Without them, `submit` finishes before it returns."""
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="blockd-read")

    def stop(self) -> None:
        """Finish what was submitted; nothing is waited for any more."""
        self._resolver.rescue.end()
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None

    def submit(self, target: ReadTarget, requests: list[Request], done: Done) -> None:
        """Finish `requests`; `done` is called for groups of them, through the scheduler.

        They are spread over the threads: a hand-over costs more than most of the reads."""
        if self._pool is None:
            self._run(_Task(target, requests, done))
            return
        share = -(-len(requests) // self._threads)
        for at in range(0, len(requests), share):
            self._pool.submit(self._run, _Task(target, requests[at : at + share], done))

    def _run(self, task: _Task) -> None:
        finished = [request for request in task.requests if self._finish(task, request)]
        if finished:
            self._scheduler.post(lambda: task.done(finished))

    def _finish(self, task: _Task, request: Request) -> bool:
        """False: it waits for a chunk, and is finished later."""
        target = task.target
        try:
            if request.op == OP_READ:
                self._read(target, request)
            elif isinstance(request.data, Changes):
                request.data = request.data.extents(request.offset, request.length)
            else:
                request.data = self._resolver.extents(target, request.offset, request.length)
            request.error = 0
        except VolumeError as error:
            if isinstance(error, CorruptData) and self._wait(task, request, error):
                return False
            _fail(target, request, str(error))
        except OSError as error:
            if error.errno == errno.ESHUTDOWN:  # the volume was deleted meanwhile
                request.error, request.data = errno.ESHUTDOWN, None
            else:
                _fail(target, request, f"{error.strerror}")
        except Exception:  # a bug: it must not leave the client without an answer
            log.exception("read failed volume=%s offset=%d", target.name, request.offset)
            _fail(target, request, "internal error")
        return True

    def _wait(self, task: _Task, request: Request, error: CorruptData) -> bool:
        """Put a request aside until what is damaged has come from elsewhere; False: it fails."""
        chunk_id, rescue = error.chunk_id, self._resolver.rescue
        now = rescue.clock()
        until = now + READ_S if task.until is None else task.until
        if chunk_id is None or now >= until or not self._resolver.may_come(chunk_id):
            return False
        again = _Task(task.target, [request], task.done, until)
        length = request.length if request.op == OP_READ else 0
        return rescue.wait(chunk_id, length, lambda came: self._go_on(again, error, came))

    def _go_on(self, task: _Task, error: CorruptData, came: bool) -> None:
        """Do what has waited again, on a thread that reads; or give it up."""
        if came and self._pool is None:
            self._run(task)
            return
        if came:
            with contextlib.suppress(RuntimeError):  # the pool was shut down just now
                self._pool.submit(self._run, task)  # type: ignore[union-attr]
                return
        for request in task.requests:
            _fail(task.target, request, str(error))
        self._scheduler.post(lambda: task.done(task.requests))

    def _read(self, target: ReadTarget, request: Request) -> None:
        """Fill the request's bytes. CorruptData, OSError."""
        for start in range(0, request.length, WINDOW_BYTES):
            length = min(WINDOW_BYTES, request.length - start)
            self._read_piece(target, request, start, length)

    def _read_piece(self, target: ReadTarget, request: Request, start: int, length: int) -> None:
        chunks = length // target.chunk_size + 2  # each of which may have been brought
        for _ in range(MAX_ATTEMPTS + chunks):
            try:
                if target.core.fill(request, start, length):
                    return
            except ReadFault as fault:
                self._replace(target, fault)
            for index in target.core.missing(request.offset + start, length):
                self._resolver.resolve(target, index)
        raise OSError(
            errno.EIO,
            f"volume {target.name}: the read cache is too small to read {length} bytes at "
            f"offset {request.offset + start}; raise store.cache_bytes",
        )

    def _replace(self, target: ReadTarget, fault: ReadFault) -> None:
        """Have what is damaged read as what was brought of it. CorruptData: nothing was."""
        offset, number, place, in_pack = fault.args
        if not in_pack:
            raise CorruptChunk(
                f"volume {target.name}: the journal ({segment_path(number)} at {place}) does not "
                f"hold what was written at offset {offset}"
            ) from None
        index = offset // target.chunk_size
        chunk = self._resolver.visible_id(target, index)
        if self._resolver.resolve_brought(target, index, chunk):
            return
        self._resolver.note_damage(chunk)
        damage = CorruptChunk(
            f"volume {target.name}: chunk {chunk.hex()} (pack {number:08x} at {place}) is damaged "
            f"at offset {offset}; restore it from a copy"
        )
        damage.chunk_id = chunk
        raise damage from None


def _fail(target: ReadTarget, request: Request, message: str) -> None:
    log.error(
        "read error volume=%s offset=%d length=%d error=%s",
        *(target.name, request.offset, request.length, message),
    )
    request.error = errno.EIO
    request.data = None
    request.message = f"volume {target.name}: stored data is damaged"
