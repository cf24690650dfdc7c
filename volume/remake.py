"""Chunks made again of a volume's states, for another node on which they are damaged.

Members of a volume destage at different moments, so one has chunks of states that no other one has
brought into chunks: asked for by its id, such a chunk is nowhere else. But its bytes are those of
the volume at some place in some state, and a state is the same on every member that has it, be it
in chunks or in the log. So whoever has the damage tells where the chunk belongs (`spots`), and a
member makes it again (`remade`):

    data    the bytes of that place in that state, put together as its own destager would. Nothing
            is written, no round is waited for, and a member that is stuck on damage elsewhere can
            do it too: for want of such bytes others may be about to give up what was written.
    nodes   the state becomes a point, and a round brings it into chunks, its nodes among them: they
            are the same, since states are. It may be thinned out again soon after. Nobody gives
            anything up for want of a node.

Whether it is the chunk its id says, here before it is given, and once more where it is stored:
there is no other proof, and none is needed. Commits tell of their own node, and are not made again.

Any thread; waits for the disk. A request makes one state after the other, each by a replay of the
log from the round before it, and one request has its turn at a time: who comes meanwhile is told
so.
"""

import threading
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from typing import Final, NamedTuple

from native import ReadFault
from volume.catalog import Catalog
from volume.chunks import ChunkStore, StoredChunk, chunk_id_of, unpacked
from volume.codecs import CODEC_NONE
from volume.damage import Damage
from volume.errors import (
    CorruptChunk,
    CorruptData,
    CorruptPack,
    NoSuchVersion,
    NoSuchVolume,
    ReplicaError,
    VolumeError,
)
from volume.history import History
from volume.layout import KIND_DATA, KIND_NODE, ZERO_ID, ChunkId
from volume.locate import NamedRoot, locate
from volume.manifest import Manifests
from volume.model import MAX_VOLUME_SIZE
from volume.past import Version
from volume.reader import ChunkResolver, HeadState
from volume.stripedpack import StripeUnavailable
from volume.versions import Versions

MAX_STATES: Final = 8  # of one request: each may take a replay of as much log as a round has
SPOTS_OF_CHUNK: Final = 4  # told of one chunk, the newest: others have the log of these for longest

Found = tuple[ChunkId, StoredChunk]


class Spot(NamedTuple):
    """Where a chunk belongs: at `offset` of a volume, in its state at `seq`."""

    volume: bytes
    seq: int
    offset: int
    is_node: bool
    """Of the state's tree: it tells what is from that offset on."""
    chunk_id: ChunkId


class RemakeBusy(ReplicaError):
    """Chunks are being made for another node."""


class Remake:
    """Of a store's volumes that other nodes have as well."""

    def __init__(
        self,
        chunks: ChunkStore,
        manifests: Manifests,
        resolver: ChunkResolver,
        catalog: Catalog,
        history: History,
        versions: Versions,
    ) -> None:
        self._chunks = chunks
        self._manifests = manifests
        self._resolver = resolver
        self._catalog = catalog
        self._history = history
        self._versions = versions
        self._turn = threading.Lock()

    # -- where the damage is

    def spots(self, wanted: Collection[ChunkId]) -> dict[ChunkId, tuple[Spot, ...] | None]:
        """Where each of these chunks belongs, newest state first; those that belong nowhere are
        left out. None: that cannot be told, as there is a damaged node that it may be below. Reads
        trees, newest versions first, until enough is known. OSError."""
        found: dict[ChunkId, list[Spot]] = defaultdict(list)
        left = set(wanted)
        hides = False  # a node: what is below it is not looked at
        states: dict[str, tuple[bytes, int, int]] = {}
        damages = [Damage(0, 0, each, "") for each in wanted]
        for location in locate(self._chunks, self._manifests, damages, self._roots(states)):
            volume, seq, chunk_size = states[location.name]
            place = self._chunks.place(location.chunk_id)
            is_node = location.length > chunk_size if place is None else place.kind == KIND_NODE
            hides = hides or is_node
            if location.offset is None or location.chunk_id not in left:
                continue
            spots = found[location.chunk_id]
            spots.append(Spot(volume, seq, location.offset, is_node, location.chunk_id))
            if len(spots) >= SPOTS_OF_CHUNK:
                left.remove(location.chunk_id)
                if not left:
                    break
        known: dict[ChunkId, tuple[Spot, ...] | None] = dict.fromkeys(left) if hides else {}
        return known | {chunk_id: tuple(spots) for chunk_id, spots in found.items()}

    def _roots(self, states: dict[str, tuple[bytes, int, int]]) -> Iterator[NamedRoot]:
        """Trees of volumes that other nodes have; what each is, is in `states` by its name: volume,
        seq, size of its chunks."""
        for volume in self._catalog.all():
            if not self._catalog.is_replicated(volume):
                continue
            record = volume.record
            for row in self._history.newest(record.number):
                name = f"{record.number}:{row.seq}"
                states[name] = (record.uuid, row.seq, record.chunk_size)
                yield NamedRoot(name, row.root, row.height, row.size, record.chunk_size)

    # -- where it may be had

    def remade(self, spots: Sequence[Spot], limit: int) -> list[Found]:
        """Chunks that can be made here of what these spots say, in `limit` bytes, each once.

        RemakeBusy, OSError; StripeUnavailable and other VolumeErrors: none now, but one needs a
        stripe that cannot be read, or a round that cannot be done, at the moment. Then nobody can
        say that it is not here."""
        if not self._turn.acquire(blocking=False):
            raise RemakeBusy("chunks are made again for another node just now")
        try:
            return self._remade(spots, limit)
        finally:
            self._turn.release()

    def _remade(self, spots: Sequence[Spot], limit: int) -> list[Found]:
        by_state: dict[tuple[bytes, int], list[Spot]] = defaultdict(list)
        for spot in spots:
            by_state[spot.volume, spot.seq].append(spot)
        found: dict[ChunkId, StoredChunk] = {}
        later: VolumeError | None = None
        for (volume, seq), wanted in list(by_state.items())[:MAX_STATES]:
            missing = [spot for spot in wanted if spot.chunk_id not in found]
            try:
                for chunk_id, chunk in self._made(volume, seq, missing):
                    limit -= len(chunk.stored)
                    if limit < 0:
                        return list(found.items())
                    found[chunk_id] = chunk
            except StripeUnavailable as error:
                later = error
            except (NoSuchVolume, NoSuchVersion, CorruptData):
                continue  # that state is not here
            except VolumeError as error:
                later = error
        if later is not None and not found:
            raise later
        return list(found.items())

    def _made(self, uuid: bytes, seq: int, spots: Sequence[Spot]) -> Iterator[Found]:
        """Those of the chunks that are what their ids say."""
        volume = next((each for each in self._catalog.all() if each.record.uuid == uuid), None)
        if volume is None:
            return
        name = f"{volume.name}@seq:{seq}"
        if data := [spot for spot in spots if not spot.is_node]:
            yield from self._made_data(name, volume.record.chunk_size, data)
        if nodes := [spot.chunk_id for spot in spots if spot.is_node]:
            yield from self._made_nodes(name, nodes)

    def _made_nodes(self, name: str, nodes: Sequence[ChunkId]) -> Iterator[Found]:
        with self._versions.settled(name):
            for chunk_id in nodes:
                if self._chunks.place(chunk_id) is None:
                    continue
                with suppress(CorruptChunk, CorruptPack):
                    chunk = self._chunks.stored(chunk_id)
                    unpacked(chunk_id, chunk)
                    yield chunk_id, chunk

    def _made_data(self, name: str, size: int, spots: Sequence[Spot]) -> Iterator[Found]:
        with self._versions.resolved(name) as version:
            if version.overlay is not None:
                assert version.journal is not None
                version.journal.freeze([version.overlay])
            for spot in spots:
                if spot.offset % size or spot.offset >= MAX_VOLUME_SIZE:
                    continue
                data = self._bytes_at(version, spot.offset)
                if data is not None and chunk_id_of(data) == spot.chunk_id:
                    yield spot.chunk_id, StoredChunk(KIND_DATA, CODEC_NONE, size, data)

    def _bytes_at(self, version: Version, offset: int) -> bytes | None:
        """A chunk of a version, whose overlay is frozen; None: it cannot be read. OSError."""
        size, core = version.record.chunk_size, version.overlay
        base = HeadState(version.row.root, version.row.height, 0)
        try:
            if core is not None and core.frozen_covers(offset, size):
                data = bytearray(size)
            else:
                below = self._resolver.below_frozen(core, base, offset // size)
                data = bytearray(size if below == ZERO_ID else self._chunks.get(below))
            if len(data) != size:
                return None
            if core is not None:
                core.overlay_frozen(offset, data)
        except StripeUnavailable:
            raise
        except (CorruptData, ReadFault):
            return None
        return bytes(data)
