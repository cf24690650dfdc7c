"""Transfers: versions out of this store as streams, and streams into it as volumes.

`volume.stream` and `volume.receive` know trees and chunks; here they meet volumes: what is sent is
settled first and stays until its stream has ended; what has been received becomes a volume, or the
next version of one whose head is exactly the stream's base.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from volume.catalog import Catalog
from volume.chunks import ChunkStore
from volume.commits import Commit
from volume.disk import Clock
from volume.errors import NoSuchVersion, VolumeBusy, VolumeExists
from volume.history import History
from volume.historyrows import VersionRow
from volume.layout import KIND_DATA, KIND_NODE, ZERO_ID, ChunkId
from volume.manifest import Manifests
from volume.model import ReceiveInfo, VolumeInfo
from volume.receive import Receiver, Receives, Submit
from volume.stream import Pieces, Tree, send, send_to
from volume.stream_errors import StreamRefused
from volume.stream_wire import ResumeToken
from volume.versions import Versions


class Landing:
    """Where received versions go; see `volume.receive.Landing`."""

    def __init__(self, catalog: Catalog, history: History) -> None:
        self._catalog = catalog
        self._history = history

    def check(self, name: str, commit: Commit, base: ChunkId | None) -> None:
        """VolumeExists, VolumeBusy, StreamRefused."""
        volume = self._catalog.get(name) if name in self._catalog.names() else None
        if volume is None:
            if base is not None and not self._has(base):
                raise StreamRefused(
                    f"volume {name}: the stream is a difference to commit {base.hex()}, which no "
                    "volume here has; receive that one first, or send the whole version"
                )
            return
        if base is None:
            raise VolumeExists(name)
        record = volume.record
        if record.head.commit != base or volume.core.state()[0] != record.head.seq:
            raise StreamRefused(
                f"volume {name}: is not as it was in commit {base.hex()}, which the stream is a "
                f"difference to; restore it to that version, or receive into another name"
            )
        if (record.block_size, record.chunk_size) != (commit.block_size, commit.chunk_size):
            raise StreamRefused(
                f"volume {name}: has blocks of {record.block_size} and chunks of "
                f"{record.chunk_size} bytes, the stream {commit.block_size} and {commit.chunk_size}"
            )
        if volume.clients:
            raise VolumeBusy(name, volume.clients)

    def _has(self, commit: ChunkId) -> bool:
        return any(
            row.commit == commit
            for volume in self._catalog.all()
            for row in self._history.versions(volume.record.number)
        )

    def finish(
        self, name: str, target: ChunkId, commit: Commit, base: ChunkId | None
    ) -> VolumeInfo:
        """Make volume `name`, or its next version; durable on return."""
        self.check(name, commit, base)
        row = VersionRow(
            *(0, 0, 1, 0, commit.time_ns, commit.size, 0, target, commit.root, commit.height)
        )
        if name not in self._catalog.names():
            return self._catalog.receive(name, commit.block_size, commit.chunk_size, row)
        with self._catalog.lock:
            return self._catalog.heads.replace(self._catalog.named(name), row)


class Transfers:
    """Streams of an open store. Every method waits for disks; any thread may call it."""

    def __init__(
        self,
        chunks: ChunkStore,
        manifests: Manifests,
        receives: Receives,
        catalog: Catalog,
        history: History,
        versions: Versions,
        submit: Submit,
        clock: Clock,
        space_left: Callable[[], int],
    ) -> None:
        self._chunks = chunks
        self._manifests = manifests
        self._receives = receives
        self._landing = Landing(catalog, history)
        self._versions = versions
        self._submit = submit
        self._clock = clock
        self._space_left = space_left

    def send(
        self, source: str, *, base: str | None = None, resume: str | None = None
    ) -> Iterator[bytes]:
        """The stream of version `source`, as a difference to version `base`, from token `resume`
        on; a token names its base, so that only one of another volume must be given. Errors come
        with the first piece. Use it up or close it: until then both stay."""
        token = None if resume is None else ResumeToken.decode(resume)
        if base is None and token is not None and token.base is not None:
            base = f"{source.partition('@')[0]}@commit:{token.base.hex()}"
        with ExitStack() as held:
            _, row = held.enter_context(self._versions.settled(source))
            base_row = None
            if base is not None:
                _, base_row = held.enter_context(self._versions.settled(base))
            yield from send(
                self._chunks,
                self._manifests,
                self._commit(source, row),
                None if base is None or base_row is None else self._commit(base, base_row),
                token,
            )

    def offer(self, source: str, base: ChunkId | None) -> Pieces:
        """The stream of version `source` to a receiver that is asked, as a difference to commit
        `base`, which it has (see `volume.stream.send_to`). Use it up or close it."""
        with ExitStack() as held:
            _, row = held.enter_context(self._versions.settled(source))
            yield from send_to(self._chunks, self._manifests, self._commit(source, row), base)

    @staticmethod
    def _commit(ref: str, row: VersionRow) -> ChunkId:
        if row.commit == ZERO_ID:
            volume, _, version = ref.partition("@")
            raise NoSuchVersion(volume, version or "head", "nothing has been written in it yet")
        return row.commit

    @contextmanager
    def base(self, ref: str) -> Iterator[tuple[ChunkId, Tree] | None]:
        """What a stream into this store may be a difference to: the commit and tree of a version,
        which stay until the block ends; None when nothing was written in it yet."""
        with self._versions.settled(ref) as (_, row):
            found = None
            if row.commit != ZERO_ID:
                found = (row.commit, Tree(self._manifests, row.root, row.height))
            yield found

    def lacking(self, chunk_ids: Sequence[ChunkId], chunk_size: int) -> list[ChunkId]:
        """Those that a stream has to bring: they are not here, are known to be damaged, or are in a
        stripe that perhaps cannot be read."""
        self._chunks.begin_batch()
        return [
            chunk_id
            for chunk_id, place in zip(
                chunk_ids, self._chunks.index.get_many(chunk_ids), strict=True
            )
            if place is None
            or not (
                place.kind == KIND_NODE or (place.kind, place.raw_length) == (KIND_DATA, chunk_size)
            )
            or self._chunks.is_damaged(chunk_id)
            or self._chunks.doubts(chunk_id, place)
        ]

    def chunk(self, chunk_id: ChunkId) -> bytes | None:
        """The bytes of a chunk, checked by its id, unless other nodes have them: to fetch them may
        cost more than to be sent them. As `ChunkStore.get`."""
        place = self._chunks.place(chunk_id)
        if place is None or place.pack in self._chunks.packs.striped:
            return None
        return self._chunks.get(chunk_id, verify=True)

    def receive(self, name: str, *, keep: bool = False) -> Receiver:
        """A receiver for a stream into volume `name`; `keep` as for `Receiver`. StreamRefused,
        InvalidName."""
        return Receiver(
            name,
            self._chunks,
            self._manifests,
            self._receives,
            self._landing,
            self._submit,
            self._clock,
            self._space_left,
            keep=keep,
        )

    def receives(self) -> list[ReceiveInfo]:
        """Streams that have begun and not ended."""
        return self._receives.infos()

    def has_receive(self, name: str) -> bool:
        """Whether a stream into `name` has begun and not ended."""
        return self._receives.get(name) is not None

    def abort_receive(self, name: str) -> None:
        """Forget what came of a stream that did not end. StreamRefused."""
        self._receives.abort(name)
