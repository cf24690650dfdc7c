"""Two ends of a version stream: stores on simulated disks, and a landing that keeps heads."""

from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from tests.sim.simclock import SimClock
from tests.unit.volume.rig import Rig, chunk
from volume import gc
from volume.chunks import StoredChunk
from volume.codecs import CODEC_NONE
from volume.commits import Commit, get_commit, put_commit
from volume.errors import VolumeExists
from volume.kv import MemoryKeyValue
from volume.layout import KIND_DATA, ZERO_ID, ChunkId
from volume.manifest import height_for
from volume.model import VolumeInfo
from volume.receive import Receiver, Receives
from volume.stream import send
from volume.stream_errors import StreamRefused
from volume.stream_wire import Decoder, Event, Frame, ResumeToken

T = TypeVar("T")
CHUNK = 4096
NAME = "copy"


class Site:
    """One store with heads. `state` is what a crash keeps."""

    def __init__(
        self,
        rig: Rig | None = None,
        meta: MemoryKeyValue | None = None,
        heads: Mapping[str, ChunkId] | None = None,
    ) -> None:
        self.rig = rig or Rig()
        self.clock = SimClock()
        self.meta = meta or MemoryKeyValue()
        self.heads = dict(heads or {})
        self.receives = Receives(self.meta, self.clock)
        self.room = 1 << 40

    def killed(self) -> "Site":
        """The same after kill -9."""
        return Site(self.rig.killed(), MemoryKeyValue(self.meta.snapshot()), self.heads)

    # -- versions

    def commit(
        self,
        contents: Mapping[int, int],
        *,
        chunks: int = 1000,
        onto: ChunkId | None = None,
        height: int = 1,
        chunk_size: int = CHUNK,
    ) -> ChunkId:
        """A durable commit whose chunk i holds `chunk(contents[i])` (0: zeros), the others as
        in `onto`."""
        manifests, store = self.rig.manifests, self.rig.store
        root = ZERO_ID
        if onto is not None:
            before = get_commit(store, onto)
            root = before.root
            height = max(height, before.height)
            wanted = max(height, height_for(chunks * chunk_size, chunk_size))
            root = manifests.grow(root, before.height, wanted)
            height = wanted
        height = max(height, height_for(chunks * chunk_size, chunk_size))
        zeros = [(at, at + 1) for at, number in contents.items() if not number]
        ids = {
            at: store.put(chunk(number, chunk_size)) for at, number in contents.items() if number
        }
        root = manifests.update(root, height, ids, zeros)
        commit = Commit(
            volume_uuid=bytes(range(16)),
            name="origin",
            size=chunks * chunk_size,
            block_size=512,
            chunk_size=chunk_size,
            height=height,
            root=root,
            parents=() if onto is None else (onto,),
            first_seq=1,
            last_seq=9,
            time_ns=1_790_000_000_000_000_000,
            epoch=1,
            site="local",
            writer="test",
        )
        commit_id = put_commit(store, commit)
        store.sync()
        return commit_id

    def contents(self, commit_id: ChunkId) -> dict[int, bytes]:
        """Every chunk of a version that is not zeros, verified."""
        store = self.rig.store
        commit = get_commit(store, commit_id)
        differences = self.rig.manifests.diff(ZERO_ID, commit.height, commit.root, commit.height)
        return {at: store.get(new, verify=True) for at, _, new in differences}

    # -- sending

    def stream(
        self, target: ChunkId, base: ChunkId | None = None, token: str | None = None
    ) -> bytes:
        resume = None if token is None else ResumeToken.decode(token)
        return b"".join(send(self.rig.store, self.rig.manifests, target, base, resume))

    # -- receiving

    def receiver(self, name: str = NAME) -> Receiver:
        return Receiver(
            name,
            self.rig.store,
            self.rig.manifests,
            self.receives,
            self,
            self.submit,
            self.clock,
            lambda: self.room,
        )

    def receive(self, data: bytes, name: str = NAME, piece: int = 1 << 20) -> VolumeInfo:
        with self.receiver(name) as receiver:
            for at in range(0, len(data), piece):
                receiver.feed(data[at : at + piece])
            return receiver.end()

    def submit(self, call: Callable[[], T]) -> T:
        return call()

    def check(self, name: str, commit: Commit, base: ChunkId | None) -> None:
        head = self.heads.get(name)
        if base is None and head is not None:
            raise VolumeExists(name)
        if base is not None and base not in self.heads.values():
            raise StreamRefused(f"commit {base.hex()} is not here")

    def finish(
        self, name: str, target: ChunkId, commit: Commit, base: ChunkId | None
    ) -> VolumeInfo:
        self.check(name, commit, base)
        self.heads[name] = target
        return VolumeInfo(
            name=name,
            uuid=commit.volume_uuid.hex(),
            number=1,
            size=commit.size,
            block_size=commit.block_size,
            chunk_size=commit.chunk_size,
            created_ns=commit.time_ns,
            epoch=1,
            seq=commit.last_seq,
            commit=target.hex(),
            commit_seq=commit.last_seq,
            hot_bytes=0,
            clients=(),
        )

    # -- gc

    def collect(self) -> gc.GcReport:
        """With heads and receives as roots, and every pack a candidate."""
        store = self.rig.store
        self.rig.packs.seal()
        roots = [
            gc.Root(commit.root, commit.height, (commit_id,))
            for commit_id in self.heads.values()
            for commit in (get_commit(store, commit_id),)
        ]
        return gc.collect(
            store,
            self.rig.manifests,
            [*roots, *self.receives.roots()],
            monotonic=self.clock.monotonic,
        )


def events(data: bytes, pieces: Iterable[int] = ()) -> list[Event]:
    """What a decoder makes of `data`, fed in pieces of these lengths, then the rest."""
    decoder = Decoder()
    found: list[Event] = []
    at = 0
    for length in pieces:
        found += decoder.feed(data[at : at + length])
        at += length
    return [*found, *decoder.feed(data[at:])]


def frames(data: bytes) -> list[Frame]:
    return [event for event in events(data) if isinstance(event, Frame)]


def boundaries(data: bytes) -> list[int]:
    """Where the header and each frame end."""
    decoder = Decoder()
    return [decoder.offset for _ in decoder.feed(data)]


def stored(number: int) -> StoredChunk:
    return StoredChunk(KIND_DATA, CODEC_NONE, CHUNK, chunk(number))
