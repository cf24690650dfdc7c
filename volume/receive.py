"""Receiving a version stream: chunks into the store, at the end a volume; resumable at any point.

    feed -> Decoder -> unpack and hash each chunk (here, on the caller's thread)
                    -> batches of BATCH_BYTES -> the writer's thread: packs, forest, progress

A batch, on the writer's thread between destage rounds, and what a crash after each step leaves:

    1  chunks appended, each let into the forest     unused entries in packs
    2  packs synced, then the index                  the same
    3  progress in meta/ (forest, position)          to go on from here

`end`, when the end frame was the last thing that came: the forest must be the whole tree; then
commit, sync, and `Landing.finish` makes the head move. Before that nothing of a stream is visible.

gc: nothing that was received is in a head yet. The progress records are roots of their own
(`Receives.roots`), exact ones: a forest is a short list of whole subtrees (see `volume.forest`),
so gc need not pause, spare packs or tolerate gaps however long a receive takes. A chunk that was
here before is taken by `ChunkStore.claim` in the same batch as the node that names it.
A receive that nobody goes on with is forgotten after MAX_IDLE_NS, and gc takes what it brought.
What came of a stream that another one takes the place of can be *kept* until that one has ended
(copies between members: the sender's volume has moved on, and sends what is lacking still).

Threads: a Receiver is fed by one thread at a time; `submit` runs functions on the writer's.
"""

import contextlib
import logging
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol, TypeVar

from typing_extensions import Buffer

from native import crc32c, is_zero
from volume import commits
from volume.chunks import ChunkStore, StoredChunk, unpacked
from volume.commits import Commit, get_commit
from volume.disk import Clock
from volume.errors import (
    CorruptChunk,
    CorruptData,
    CorruptManifest,
    InvalidName,
    OutOfSpace,
    UnknownFormat,
    VolumeError,
)
from volume.forest import Forest
from volume.gc import Root
from volume.kv import KeyValue
from volume.layout import FAN_OUT, KIND_COMMIT, KIND_DATA, ZERO_ID, ChunkId
from volume.manifest import Manifests, decode_node
from volume.model import ReceiveInfo, VolumeInfo
from volume.refs import check_volume_name
from volume.sites import fail_point, rare
from volume.stream import Tree
from volume.stream_errors import InvalidStream, StreamInterrupted, StreamRefused
from volume.stream_wire import (
    START,
    Break,
    Decoder,
    End,
    Event,
    Frame,
    Position,
    ResumeToken,
    StreamHeader,
    commit_holds,
)

log = logging.getLogger(__name__)

BATCH_BYTES = 8 * 1024 * 1024  # of memory; each batch costs a sync of packs and one of meta/
BATCH_FRAMES = 4096  # of nodes that are named only, which take no bytes
MAX_RECEIVES = 4  # streams at once; bounds memory to as many batches
MAX_IDLE_NS = 7 * 24 * 3600 * 1_000_000_000
MAX_KEPT = 4096  # subtrees of earlier streams; those of the newest three, at the least
COMMIT_DIGITS = 16  # of a commit's id, in commands that are shown

KEY_PREFIX = b"w/"  # + name of the volume, UTF-8 -> progress record
_RECORD = struct.Struct("<B 32s 32s 32s B Q Q Q Q H H")
"""version, target, base commit, base root, base height, started, updated (ns), received bytes,
stored bytes, length of the commit, count of what is kept. Then the commit, what is kept, the
forest, and a crc32c of all before it."""
_KEPT = struct.Struct("<32s B")
"""id of a subtree, and its rank."""
_RECORD_VERSION = 1
_CRC = struct.Struct("<I")

T = TypeVar("T")


class Submit(Protocol):
    """Runs `call` on the writer's thread, between rounds, and returns or raises what it does.

    An OSError means that the disk cannot be trusted; besides passing it on, seal the store."""

    def __call__(self, call: Callable[[], T]) -> T: ...


class Landing(Protocol):
    """Where received versions go. Both are called on the writer's thread."""

    def check(self, name: str, commit: Commit, base: ChunkId | None) -> None:
        """Raise (VolumeExists, StreamRefused, ...) unless `finish` could be called now: without a
        base there is no volume `name`; with one, it is the head of volume `name`, unchanged since
        and unattached, or there is no such volume and a root that gc keeps has it."""

    def finish(
        self, name: str, target: ChunkId, commit: Commit, base: ChunkId | None
    ) -> VolumeInfo:
        """Make volume `name`, or its next version; `target` and all under it is durable."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far one receive has come, as meta/ knows it."""

    name: str
    target: ChunkId
    commit: bytes
    base: ChunkId | None
    base_root: ChunkId
    base_height: int
    forest: Forest
    """Never changed; the next record has a new one."""
    started_ns: int
    updated_ns: int
    received_bytes: int = 0
    stored_bytes: int = 0
    kept: tuple[tuple[ChunkId, int], ...] = ()
    """(id, rank) of subtrees that came by earlier streams: gc keeps them until this one ends."""

    @property
    def token(self) -> str:
        return ResumeToken(self.target, self.base, self.forest.position).encode()

    def roots(self) -> list[Root]:
        """What gc must keep for it: what has come, and what it is a difference to."""
        base = [] if self.base is None else [Root(self.base_root, self.base_height, (self.base,))]
        chunks = tuple(node for node, rank in self.kept if rank == 0)
        kept = [Root(ZERO_ID, 1, chunks, partial=True)] if chunks else []
        kept += [Root(node, rank, partial=True) for node, rank in self.kept if rank]
        return base + kept + self.forest.roots()

    def encode(self) -> bytes:
        fixed = _RECORD.pack(
            _RECORD_VERSION,
            self.target,
            self.base or ZERO_ID,
            self.base_root,
            self.base_height,
            self.started_ns,
            self.updated_ns,
            self.received_bytes,
            self.stored_bytes,
            len(self.commit),
            len(self.kept),
        )
        kept = b"".join(_KEPT.pack(*each) for each in self.kept)
        body = fixed + self.commit + kept + self.forest.encode()
        return body + _CRC.pack(crc32c(body))

    @staticmethod
    def decode(name: str, data: bytes) -> "Progress":
        """CorruptData when `data` is not what `encode` wrote."""
        body, crc = data[: -_CRC.size], data[-_CRC.size :]
        if len(body) < _RECORD.size or _CRC.pack(crc32c(body)) != crc:
            raise CorruptData(f"progress of receive {name}: fails its checksum")
        fields = _RECORD.unpack_from(body)
        version, target, base, base_root, base_height, *numbers, length, kept_count = fields
        if version != _RECORD_VERSION:
            raise CorruptData(f"progress of receive {name}: version {version} is not known")
        commit_end = _RECORD.size + length
        commit = body[_RECORD.size : commit_end]
        decoded = commits.decode(commit, f"progress of receive {name}: its commit")
        kept_end = commit_end + kept_count * _KEPT.size
        if kept_end > len(body):
            raise CorruptData(f"progress of receive {name}: {kept_count} subtrees are not there")
        kept = tuple(_KEPT.iter_unpack(body[commit_end:kept_end]))
        forest = Forest.decode(body[kept_end:])
        if not commit_holds(decoded) or forest.height != decoded.height:
            raise CorruptData(f"progress of receive {name}: its sizes are not possible")
        started_ns, updated_ns, received, stored = numbers
        return Progress(
            name,
            target,
            commit,
            None if base == ZERO_ID else base,
            base_root,
            base_height,
            forest,
            started_ns,
            updated_ns,
            received,
            stored,
            kept,
        )


class Receives:
    """The receives of one data directory, finished or not, kept in `kv` (meta/). Any thread.

    A record that does not hold is dropped with a warning: it costs sending again, nothing else."""

    def __init__(self, kv: KeyValue, clock: Clock) -> None:
        self._kv = kv
        self._clock = clock
        self._lock = threading.Lock()
        self._active: set[str] = set()
        self._progress: dict[str, Progress] = {}
        for key, value in list(kv.items(KEY_PREFIX)):
            name = key.removeprefix(KEY_PREFIX).decode(errors="replace")
            try:
                self._progress[name] = Progress.decode(name, value)
            except CorruptData as error:
                log.warning("receive forgotten error=%s", error)
                kv.update({}, [key])

    def claim(self, name: str) -> None:
        """Begin to receive into `name`; `release` ends that. StreamRefused, InvalidName."""
        check_volume_name(name)
        with self._lock:
            if name in self._active:
                raise StreamRefused(f"volume {name}: another stream is being received into it")
            if len(self._active) >= MAX_RECEIVES:
                raise StreamRefused(
                    f"volume {name}: {MAX_RECEIVES} streams are being received already; wait "
                    "until one has ended"
                )
            self._active.add(name)

    def release(self, name: str) -> None:
        with self._lock:
            self._active.discard(name)

    def get(self, name: str) -> Progress | None:
        with self._lock:
            return self._progress.get(name)

    def save(self, progress: Progress) -> None:
        """Durable on return."""
        with self._lock:
            self._kv.update({_key(progress.name): progress.encode()})
            self._progress[progress.name] = progress

    def drop(self, name: str) -> None:
        """Forget what was received into `name`; gc takes it unless something else has it."""
        with self._lock:
            self._kv.update({}, [_key(name)])
            self._progress.pop(name, None)

    def abort(self, name: str) -> None:
        """`drop`, as somebody asks for it. StreamRefused."""
        with self._lock:
            if name in self._active:
                raise StreamRefused(f"volume {name}: a stream is coming in; end its sender first")
            if name not in self._progress:
                raise StreamRefused(f"volume {name}: no stream was being received into it")
        self.drop(name)

    def roots(self) -> list[Root]:
        """What gc must keep for all of them. Forgets those that nobody goes on with."""
        now_ns = self._clock.now_ns()
        with self._lock:
            known = list(self._progress.values())
            idle = [
                progress.name
                for progress in known
                if progress.name not in self._active and now_ns - progress.updated_ns > MAX_IDLE_NS
            ]
        for name in idle:
            log.warning("receive forgotten, nobody has gone on with it volume=%s", name)
            self.drop(name)
        return [root for each in known if each.name not in idle for root in each.roots()]

    def infos(self) -> list[ReceiveInfo]:
        """All of them, by name."""
        with self._lock:
            known, active = sorted(self._progress.items()), set(self._active)
        return [_info(progress, name in active) for name, progress in known]


def _key(name: str) -> bytes:
    return KEY_PREFIX + name.encode()


def _info(progress: Progress, active: bool) -> ReceiveInfo:
    commit = commits.decode(progress.commit)
    chunk_count = -(-commit.size // commit.chunk_size)
    return ReceiveInfo(
        name=progress.name,
        commit=progress.target.hex(),
        base=None if progress.base is None else progress.base.hex(),
        source=_shown_name(commit.name),
        size=commit.size,
        fraction=min(1.0, progress.forest.position.end / chunk_count),
        received_bytes=progress.received_bytes,
        stored_bytes=progress.stored_bytes,
        started_ns=progress.started_ns,
        updated_ns=progress.updated_ns,
        active=active,
        token=progress.token,
    )


def _shown_name(name: str) -> str:
    """A name from a commit of elsewhere, if a volume could have it; it is shown in commands."""
    with contextlib.suppress(InvalidName):
        check_volume_name(name)
        return name
    return "VOLUME"


def resume_command(info: ReceiveInfo) -> str:
    """What goes on with a receive; the first half belongs to the sender's machine."""
    source = f"{info.source}@commit:{info.commit[:COMMIT_DIGITS]}"
    return f"blockd send {source} --resume {info.token} | blockd receive {info.name}"


class _Piece(NamedTuple):
    """A frame whose chunk has been verified; `ids` are those of a node that came with its bytes."""

    position: Position
    chunk_id: ChunkId
    chunk: StoredChunk | None
    ids: bytes | None


class Receiver:
    """One stream into volume `name`. Feed it, then `end` (or `close`, when it will not end).

    Errors of `feed` and `end`: InvalidStream, StreamInterrupted, StreamRefused,
    OutOfSpace, those of `Landing`, StoreSealed, OSError. After an error only `close`: what came
    before it is kept, and the same stream, or the rest of it, goes on from there.
    """

    def __init__(
        self,
        name: str,
        chunks: ChunkStore,
        manifests: Manifests,
        receives: Receives,
        landing: Landing,
        submit: Submit,
        clock: Clock,
        space_left: Callable[[], int],
        *,
        keep: bool = False,
    ) -> None:
        """`space_left()`: bytes that may still be stored; the journal's share is not in it.
        `keep`: gc keeps what came of another stream into `name` until this one has ended."""
        self.name = name
        self._keep = keep
        self._chunks = chunks
        self._manifests = manifests
        self._receives = receives
        self._landing = landing
        self._submit = submit
        self._clock = clock
        self._space_left = space_left
        self._decoder = Decoder()
        self._header: StreamHeader | None = None
        self._base = Tree(manifests)
        self._last = START
        self._batch: list[_Piece] = []
        self._batch_bytes = 0
        self._result: VolumeInfo | None = None
        self._broken: str | None = None
        self._open = True
        self._closed = False
        self._lock = threading.Lock()
        receives.claim(name)

    def __enter__(self) -> "Receiver":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def feed(self, data: Buffer) -> None:
        """Take the next bytes of the stream; waits while they are stored."""
        with self._lock:
            assert self._open
            try:
                events = self._decoder.feed(data)
                while (event := self._next(events)) is not None:
                    self._take(event)
            except BaseException:
                self._open = False
                raise

    def end(self) -> VolumeInfo:
        """The stream has ended: make the volume, or its next version, of it.

        StreamInterrupted, with a token and what the sender says, when its end frame is missing."""
        with self._lock:
            if self._result is not None:
                return self._result
            assert self._open
            self._open = False
            if self._header is None:
                raise InvalidStream(
                    f"volume {self.name}: the stream ended before it said what it is; did its "
                    "sender fail?"
                )
            if self._decoder.ended:
                self._result = self._submit(self._finish)
                return self._result
            self._flush()
            what = "the stream ended before its end"
            if self._broken is not None:
                what = f"the sender broke the stream off ({self._broken})"
            raise StreamInterrupted(
                f"volume {self.name}: {what}; {self._hint()}",
                self._progress().token,
            )

    def close(self) -> None:
        """Let go of it; what is sound and not stored yet is stored first, if that is possible.

        From any thread, any number of times; waits for a `feed` that is under way."""
        with self._lock:
            if self._open and self._result is None and self._header is not None:
                with contextlib.suppress(VolumeError, OSError):  # it is only a saving
                    self._flush()
            self._open = False
            if not self._closed:
                self._closed = True  # the name may be somebody else's from now on
                self._receives.release(self.name)

    # -- events

    def _next(self, events: Iterator[Event]) -> Event | None:
        try:
            return next(events, None)
        except InvalidStream as error:
            if self._header is None:
                raise
            self._flush()
            raise InvalidStream(f"volume {self.name}: {error}; {self._hint()}") from error

    def _take(self, event: Event) -> None:
        if isinstance(event, StreamHeader):
            self._header = event
            self._submit(self._begin)
        elif isinstance(event, Frame):
            self._take_frame(event)
        elif isinstance(event, Break):
            self._broken = event.reason
        else:
            assert isinstance(event, End)
            self._flush()  # what follows it, if anything does, spoils it all: so `end` finishes

    def _take_frame(self, frame: Frame) -> None:
        if frame.position <= self._last:
            raise InvalidStream(
                "the stream makes no sense: what ends at chunk "
                f"{frame.position.end} comes out of order"
            )
        self._last = frame.position
        if frame.position <= self._progress().forest.position:
            return  # it is here: a whole stream goes on with a receive as well as the rest of one
        self._batch.append(_verified(frame))
        self._batch_bytes += len(frame.chunk.stored) if frame.chunk is not None else 0
        full = self._batch_bytes >= BATCH_BYTES or len(self._batch) >= BATCH_FRAMES
        if full or rare("receive.batch"):
            self._flush()

    def _flush(self) -> None:
        if self._batch:
            self._submit(self._store)
            self._batch = []
            self._batch_bytes = 0

    # -- on the writer's thread

    def _begin(self) -> None:
        """Find or make the progress record of what the header tells of."""
        header = self._header
        assert header is not None
        self._landing.check(self.name, header.commit, header.base)
        progress = self._receives.get(self.name)
        if progress is None or (progress.target, progress.base) != (header.target, header.base):
            if header.resume != START:
                raise StreamRefused(
                    f"volume {self.name}: nothing of this stream is here to go on from; send it "
                    "from the beginning, without --resume"
                )
            if progress is not None:
                log.info("receive replaced by another stream volume=%s", self.name)
            kept = self._kept(progress) if self._keep and progress is not None else ()
            progress = replace(self._new_progress(header), kept=kept)
            self._receives.save(progress)
            fail_point("receive.begun")
        elif header.resume > progress.forest.position:
            raise StreamRefused(
                f"volume {self.name}: the stream goes on behind what is here; {self._hint()}"
            )
        self._base = Tree(self._manifests, progress.base_root, progress.base_height)

    @staticmethod
    def _kept(progress: Progress) -> tuple[tuple[ChunkId, int], ...]:
        """What came of that stream, and of those before it: the newest, if that is too much."""
        return (*progress.kept, *progress.forest.members())[-MAX_KEPT:]

    def _new_progress(self, header: StreamHeader) -> Progress:
        root, height = ZERO_ID, 1
        if header.base is not None:
            base = get_commit(self._chunks, header.base)
            if base.chunk_size != header.commit.chunk_size:
                raise InvalidStream("the stream is a difference to chunks of another size")
            root, height = base.root, base.height
        now_ns = self._clock.now_ns()
        return Progress(
            self.name,
            header.target,
            header.commit_bytes,
            header.base,
            root,
            height,
            Forest(header.commit.height),
            now_ns,
            now_ns,
        )

    def _store(self) -> None:
        """The batch, all of it or nothing."""
        needed = self._batch_bytes
        if self._space_left() < needed:
            raise OutOfSpace(
                f"volume {self.name}: no room for {needed} bytes of the stream; free space, then "
                + self._hint()
            )
        before = self._progress()
        forest = before.forest.copy()
        received = stored = 0
        self._chunks.begin_batch()
        try:
            for piece in self._batch:
                if piece.chunk is not None:
                    length = len(piece.chunk.stored)
                    received += length
                    stored += length * self._chunks.put_stored(piece.chunk_id, piece.chunk)
                self._plant(forest, piece)
            self._chunks.sync()
        except BaseException:
            self._chunks.abandon()
            raise
        fail_point("receive.stored")
        self._receives.save(
            replace(
                before,
                forest=forest,
                updated_ns=self._clock.now_ns(),
                received_bytes=before.received_bytes + received,
                stored_bytes=before.stored_bytes + stored,
            )
        )
        fail_point("receive.saved")

    def _plant(self, forest: Forest, piece: _Piece) -> None:
        if piece.position.rank == 0:
            forest.add_chunk(piece.position, piece.chunk_id)
            return
        ids = piece.ids
        if ids is None:
            ids = self._known_ids(piece)
        forest.add_node(piece.position, piece.chunk_id, ids, self._base.children, self._claimed)

    def _known_ids(self, piece: _Piece) -> bytes:
        """The children of a node that is named only."""
        if self._chunks.claim([piece.chunk_id]) == [None]:
            raise InvalidStream(
                f"the stream makes no sense: node {piece.chunk_id.hex()} has not come before"
            )
        return self._manifests.node_ids(piece.chunk_id, piece.position.rank - 1)

    def _claimed(self, chunk_ids: list[ChunkId]) -> list[bool]:
        assert self._header is not None
        size = self._header.commit.chunk_size
        return [
            place is not None
            and (place.kind, place.raw_length) == (KIND_DATA, size)
            and not self._chunks.doubts(chunk_id, place)
            for chunk_id, place in zip(chunk_ids, self._chunks.claim(chunk_ids), strict=True)
        ]

    def _finish(self) -> VolumeInfo:
        header = self._header
        assert header is not None
        commit = header.commit
        top = Position(FAN_OUT**commit.height, commit.height)
        if not self._progress().forest.is_whole(commit.root, self._base.subtree(top)):
            raise InvalidStream("the stream makes no sense: it ends before its tree is whole")
        try:
            commit_id = self._chunks.put(header.commit_bytes, KIND_COMMIT)
            self._chunks.sync()
        except BaseException:
            self._chunks.abandon()
            raise
        assert commit_id == header.target
        info = self._landing.finish(self.name, header.target, commit, header.base)
        fail_point("receive.landed")
        self._receives.drop(self.name)
        log.info("version received volume=%s commit=%s", self.name, commit_id.hex())
        return info

    # -- inside

    def _progress(self) -> Progress:
        progress = self._receives.get(self.name)
        assert progress is not None
        return progress

    def _hint(self) -> str:
        command = resume_command(_info(self._progress(), active=True))
        return f"what came is kept; go on with: {command}"


def _verified(frame: Frame) -> _Piece:
    """The frame as it may be stored: its bytes are what its id says, and a node is one of its
    level. InvalidStream."""
    if frame.chunk is None:
        return _Piece(frame.position, frame.chunk_id, None, None)
    try:
        data = unpacked(frame.chunk_id, frame.chunk)
        if frame.position.rank == 0:
            ids = None
        else:
            ids = decode_node(data, frame.position.rank - 1, f"node {frame.chunk_id.hex()}")
    except (CorruptChunk, CorruptManifest, UnknownFormat) as error:
        raise InvalidStream(f"the stream cannot be used here: {error}") from error
    if ids is None and is_zero(data):
        raise InvalidStream(
            f"the stream makes no sense: chunk {frame.chunk_id.hex()} is zeros, which have no chunk"
        )
    return _Piece(frame.position, frame.chunk_id, frame.chunk, ids)
