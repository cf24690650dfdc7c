"""The chunk index: chunk id -> the place in a pack where the chunk is stored.

It is the only way from an id to bytes, and the whole of deduplication. It lives in an *unsynced*
`KeyValue` (the LMDB environment `index/`): an update costs no disk sync, survives the death of the
process, and may be lost or torn by a power cut. That is safe because the packs hold everything that
it says: after a power cut (`Meta.index_trusted` is False) the caller deletes the environment and
`rebuild`s it from them.

Invariant: a place is in the index only once its pack entry is durable. So writers sync packs first
and update the index after; gc takes places out first and removes packs after.

Threads: as `KeyValue`, any number of readers beside one writer.
"""

import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import NamedTuple, Protocol

from volume import layout
from volume.errors import CorruptData, UnknownFormat
from volume.kv import KeyValue
from volume.layout import ChunkId

_PLACE_LENGTH = layout.INDEX_PLACE.size
_SLOT = struct.Struct("<I 4x I 4x I 4x")  # INDEX_PLACE, but for the fields of a Slot
MAX_BATCH = 2048
"""Places set in one transaction. LMDB keeps the memory of the pages that one has changed, a page
for each place at worst, until the environment is closed."""


class Place(NamedTuple):
    """Where a chunk is stored, and how."""

    pack: int
    offset: int
    """Of the entry's header in the pack file."""
    stored_length: int
    """Bytes of the chunk in the pack, without header and page table."""
    raw_length: int
    """Bytes of the chunk itself."""
    ordinal: int
    """The entry is the ordinal-th of its pack, from 0."""
    codec: int
    kind: int


class Slot(NamedTuple):
    """What gc needs to know of a place."""

    pack: int
    stored_length: int
    ordinal: int

    @classmethod
    def of(cls, place: Place) -> "Slot":
        return cls(place.pack, place.stored_length, place.ordinal)


class PackTables(Protocol):
    """What a rebuild needs of the packs."""

    def numbers(self) -> list[int]:
        """All packs, oldest first."""

    def places(self, number: int) -> Iterator[tuple[ChunkId, Place]]:
        """The entries of one pack, in order."""


class ChunkIndex:
    """Chunk id -> Place, over a KeyValue of its own. Errors: those of KeyValue."""

    def __init__(self, kv: KeyValue, store_uuid: bytes, path: str = "index") -> None:
        self._kv = kv
        self._path = path
        mark = layout.INDEX_FORMAT.pack(layout.INDEX_MAGIC, layout.INDEX_VERSION, store_uuid)
        found = kv.get(layout.INDEX_KEY_FORMAT)
        if found is None and next(kv.items(), None) is None:
            kv.update({layout.INDEX_KEY_FORMAT: mark})
        elif found != mark:
            raise UnknownFormat(path, f"format mark is {found!r}, not {mark!r}")
        newest = kv.get(layout.INDEX_KEY_NEWEST)
        self.newest_pack = -1 if newest is None else self._number(newest)
        """The highest pack that a place was ever in; -1 before the first. Its number must not be
        used again, even if somebody removes its file: two chunks would have the same place."""

    def get(self, chunk_id: ChunkId) -> Place | None:
        value = self._kv.get(layout.INDEX_PREFIX_CHUNK + chunk_id)
        return None if value is None else self._place(chunk_id, value)

    def get_many(self, chunk_ids: Sequence[ChunkId]) -> list[Place | None]:
        """The places of `chunk_ids`, in their order, all from one moment."""
        keys = [layout.INDEX_PREFIX_CHUNK + chunk_id for chunk_id in chunk_ids]
        return [
            None if value is None else self._place(chunk_id, value)
            for chunk_id, value in zip(chunk_ids, self._kv.get_many(keys), strict=True)
        ]

    def rows(self, chunk_ids: Sequence[ChunkId]) -> list[bytes | None]:
        """As `get_many`, each as it is stored (`layout.INDEX_PLACE`), unchecked."""
        return self._kv.get_many([layout.INDEX_PREFIX_CHUNK + chunk_id for chunk_id in chunk_ids])

    def slots(self, chunk_ids: Sequence[ChunkId]) -> list[Slot | None]:
        """As `get_many`, with less of each place: a third of the time."""
        keys = [layout.INDEX_PREFIX_CHUNK + chunk_id for chunk_id in chunk_ids]
        values = self._kv.get_many(keys)
        found = [value for value in values if value is not None and len(value) == _PLACE_LENGTH]
        if len(found) == len(values):
            return list(map(Slot._make, _SLOT.iter_unpack(b"".join(found))))
        return [
            None if value is None else Slot.of(self._place(chunk_id, value))
            for chunk_id, value in zip(chunk_ids, values, strict=True)
        ]

    def group(self, prefix: bytes) -> Iterator[tuple[ChunkId, Place]]:
        """All chunks whose ids begin with `prefix`, in order; each from some moment meanwhile."""
        key_prefix = layout.INDEX_PREFIX_CHUNK
        for key, value in self._kv.items(key_prefix + prefix):
            chunk_id = key[len(key_prefix) :]
            yield chunk_id, self._place(chunk_id, value)

    def in_pack(self, number: int) -> list[tuple[ChunkId, Place]]:
        """All that is named in one pack, in no order. Reads the whole index."""
        return [found for found in self.group(b"") if found[1].pack == number]

    def put(self, places: Mapping[ChunkId, Place]) -> None:
        """Set places; their entries must be durable. Whole batches of MAX_BATCH at a time."""
        items = iter(places.items())
        while batch := dict(islice(items, MAX_BATCH)):
            values = {
                layout.INDEX_PREFIX_CHUNK + chunk_id: layout.INDEX_PLACE.pack(*place)
                for chunk_id, place in batch.items()
            }
            newest = max(place.pack for place in batch.values())
            if newest > self.newest_pack:
                values[layout.INDEX_KEY_NEWEST] = layout.META_U32.pack(newest)
            self._kv.update(values)
            self.newest_pack = max(newest, self.newest_pack)

    def remove(self, chunk_ids: Iterable[ChunkId]) -> None:
        """Forget chunks; ids that are not there are fine."""
        ids = iter(chunk_ids)
        while batch := list(islice(ids, MAX_BATCH)):
            self._kv.update({}, [layout.INDEX_PREFIX_CHUNK + chunk_id for chunk_id in batch])

    def count(self) -> int:
        """Number of chunks known."""
        return self._kv.count() - 1 - (self.newest_pack >= 0)  # the format mark, the newest pack

    def rebuild(
        self, packs: PackTables, progress: Callable[[int, int], None] | None = None
    ) -> None:
        """Learn every entry of every pack. To be called on an empty index.

        Where two packs hold a chunk, the newer one wins. `progress` is told (packs done, packs)
        after each. A crash in the middle leaves an index that is still not trusted."""
        numbers = packs.numbers()
        for done, number in enumerate(numbers, start=1):
            self.put(dict(packs.places(number)))
            if progress is not None:
                progress(done, len(numbers))

    def release_memory(self) -> None:
        """Let go of the pages that lookups have mapped; the next ones map them again."""
        self._kv.release_memory()

    def sync(self) -> None:
        """Make all of it durable: only needed before `Meta.mark_index_clean`."""
        self._kv.sync()

    def close(self) -> None:
        self._kv.close()

    def _number(self, value: bytes) -> int:
        if len(value) != layout.META_U32.size:
            raise CorruptData(
                f"{self._path}: the number of the newest pack is {len(value)} bytes long; stop the "
                "daemon, then: blockd doctor --repair-index"
            )
        return int(layout.META_U32.unpack(value)[0])

    def _place(self, chunk_id: ChunkId, value: bytes) -> Place:
        if len(value) != layout.INDEX_PLACE.size:
            raise CorruptData(
                f"{self._path}: place of chunk {chunk_id.hex()} is {len(value)} bytes long; "
                "stop the daemon, then: blockd doctor --repair-index; it is rebuilt from the packs"
            )
        return Place(*layout.INDEX_PLACE.unpack(value))
