"""What a store has to do with stripes: which of its packs are cold, and which stripes it finds
chunks in. Knows nothing of who keeps the shards (`transport.striping`).

A pack is cold when it was sealed `cold_s` ago, as far as this process knows, and no client has read
a chunk of it for `unread_s`: both times begin anew with each start. What clients read is marked by
the place table as it finds a chunk for them (`native/src/place_table.h`): 8 KiB, a bit for each
pack number modulo 65536, so that of stores above 4 TiB two packs may share a bit, and both stay for
the one that is read. Scrub, gc and destaging read past it. A cold pack is taken when at least
MIN_LIVE of it was live at the last run of gc, so that garbage is not made a stripe; gc copies packs
forward that are mostly dead, and what comes of that is taken later.
"""

import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Final

from volume.chunks import ChunkStore
from volume.errors import StoreClosing, StoreSealed
from volume.gc import Collector
from volume.gcrun import SMALL_PACK
from volume.index import Place
from volume.layout import KIND_DAMAGED, KIND_DATA, ChunkId
from volume.openpacks import OpenPack
from volume.stripedpack import Adopted, StripedPack, StripedPacks

MIN_LIVE: Final = 0.75
"""Of a pack's bytes. Nodes and commits count as live: they stay here, and are few."""


@dataclass(frozen=True, slots=True)
class ColdPack:
    """A sealed pack of this store that may become a stripe."""

    number: int
    size: int
    file: OpenPack


class StripeHome:
    """Any thread."""

    def __init__(
        self,
        chunks: ChunkStore,
        collector: Collector,
        store_uuid: bytes,
        submit: Callable[[Callable[[], int | None]], int | None],
        monotonic: Callable[[], float],
        read_packs: Callable[[], bytes],
    ) -> None:
        """`submit`: run a call between rounds and slices of gc. `read_packs`: as
        `native.PlaceTable.take_read_packs`."""
        self.uuid = store_uuid
        self._chunks = chunks
        self._packs = chunks.packs
        self._collector = collector
        self._submit = submit
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._seen: dict[int, float] = {}
        """Sealed packs, and since when they were seen to be that."""
        self._take_read_packs = read_packs
        self._read_at: dict[int, float] = {}
        """When packs were last seen to have been read."""
        self._asked_at = float("-inf")

    @property
    def striped(self) -> StripedPacks:
        return self._packs.striped

    def stubs(self) -> list[StripedPack]:
        return self.striped.all()

    def stubs_by_pack(self) -> dict[bytes, StripedPack]:
        return {stub.pack_id: stub for stub in self.striped.all()}

    def stub_of(self, pack_id: bytes) -> StripedPack | None:
        return self.striped.of_pack(pack_id)

    def cold(self, cold_s: float, unread_s: float) -> list[int]:
        """Numbers of cold packs, the oldest first."""
        old, now = self._old(cold_s, unread_s), self._monotonic()
        with self._lock:
            unknown = any(self._collector.live_share(number) is None for number in old)
            ask = unknown and now - self._asked_at >= cold_s
            if ask:
                self._asked_at = now
        if ask:  # nothing has changed since the start, so gc has not looked at them
            self._collector.run_now()
        return sorted(number for number in old if self._worth_it(number))

    def _old(self, cold_s: float, unread_s: float) -> list[int]:
        """Sealed packs that have been seen for so long, and that nobody reads."""
        sealed = self._packs.sealed()
        self._note_reads(sealed)
        now = self._monotonic()
        with self._lock:
            self._seen = {number: self._seen.get(number, now) for number in sealed}
            old = [number for number, since in self._seen.items() if now - since >= cold_s]
        return [number for number in old if not self.is_read(number, unread_s)]

    def _note_reads(self, sealed: Collection[int]) -> None:
        """What clients have read since the last time."""
        now = self._monotonic()
        with self._lock:
            bits = self._take_read_packs()
            count = 8 * len(bits)
            self._read_at = {
                number: at
                for number in sealed
                if (at := now if _has(bits, number % count) else self._read_at.get(number))
                is not None
            }

    def is_read(self, number: int, unread_s: float) -> bool:
        """Whether clients have read a chunk of a pack of this store within `unread_s`, as was seen
        when cold packs were asked for last; 0: that does not count."""
        at = self._read_at.get(number)
        return at is not None and self._monotonic() - at < unread_s

    def any_read(self, entries: Collection[Adopted], unread_s: float) -> bool:
        """The same of packs of this store that have one of these chunks."""
        places = self._chunks.index.get_many([each.chunk_id for each in entries])
        packs = {place.pack for place in places if place is not None}
        return any(self.is_read(number, unread_s) for number in packs)

    def cold_bytes(self, cold_s: float, unread_s: float) -> int:
        """Of cold packs, and of those of which gc has not said yet whether they are worth it."""
        old = self._old(cold_s, unread_s)
        unknown = [number for number in old if self._collector.live_share(number) is None]
        return sum(map(self.size, {*unknown, *filter(self._worth_it, old)}))

    def size(self, number: int) -> int:
        """Bytes of a pack; 0 when gc has just removed it."""
        try:
            return self._packs.size(number)
        except KeyError:
            return 0

    def _worth_it(self, number: int) -> bool:
        share = self._collector.live_share(number)
        if share is None or share < MIN_LIVE:
            return False
        return self.size(number) >= SMALL_PACK * self._packs.pack_bytes

    def open(self, number: int) -> tuple[ColdPack, list[Adopted]] | None:
        """A pack, and its data chunks that this store finds there; None when it is not to become a
        stripe: it is gone, or has damaged chunks. CorruptData, OSError."""
        try:
            pack = ColdPack(number, self._packs.size(number), self._packs.open(number))
        except KeyError:
            return None
        entries = list(self._packs.footer(number))
        if any(place.kind == KIND_DAMAGED for _, place in entries):
            return None
        data = [Adopted(*each) for each in entries if each[1].kind == KIND_DATA]
        return (pack, data) if data else None

    def known(self, entries: list[Adopted]) -> list[Adopted]:
        """Those of the entries of a stripe that this store has, in packs of its own."""
        places = self._chunks.index.get_many([each.chunk_id for each in entries])
        return [
            each for each, place in zip(entries, places, strict=True) if self._same(each, place)
        ]

    def _same(self, entry: Adopted, place: Place | None) -> bool:
        return (
            place is not None
            and place.pack not in self.striped
            and (place.kind, place.raw_length) == (KIND_DATA, entry.place.raw_length)
        )

    def adopt(self, like: StripedPack, entries: list[Adopted]) -> int | None:
        """See `ChunkStore.adopt`; None: gc is at work, later. OSError, OutOfSpace, StoreSealed."""

        def call() -> int | None:
            if not self._collector.idle or self._chunks.pending_count:
                return None
            count = self._chunks.adopt(like, entries)
            self._collector.note_change()  # what the packs have of it is garbage
            return count

        return self._submit(call)

    def not_adopted(self, stub: StripedPack) -> dict[ChunkId, Place]:
        """Its entries that this store finds in packs of its own. CorruptPack, OSError."""
        return self._chunks.not_adopted(stub.number)

    def whole_of(self, entries: Mapping[ChunkId, Place]) -> set[ChunkId]:
        """Those that are what their ids say, read there now. StripeUnavailable."""
        return {each for each, place in entries.items() if self._chunks.is_whole(each, place)}

    def adopt_again(self, stub: StripedPack, whole: Collection[ChunkId]) -> int | None:
        """See `ChunkStore.adopt_again`; None: gc is at work, later. CorruptPack, OSError."""

        def call() -> int | None:
            if not self._collector.idle or self._chunks.pending_count:
                return None
            if stub.number not in self.striped:
                return 0  # gc has let it go
            count = self._chunks.adopt_again(stub.number, whole)
            self._collector.note_change()
            return count

        return self._submit(call)

    def lost_of(self, stub: StripedPack) -> list[ChunkId]:
        """Chunks that are looked for in that stripe and cannot be read. Reads all of it.
        CorruptPack, OSError."""
        lost = [chunk_id for chunk_id, _ in self.striped.lost_of(stub.number)]
        places = self._chunks.index.get_many(lost)
        return [
            chunk_id
            for chunk_id, place in zip(lost, places, strict=True)
            if place is not None and place.pack == stub.number
        ]

    def sync_removals(self) -> bool:
        """Make durable that stubs have gone; False: not now."""

        def call() -> int | None:
            self._packs.sync_folder()
            return 1

        try:
            return self._submit(call) is not None
        except (StoreClosing, StoreSealed):
            return False


def _has(bits: bytes, number: int) -> bool:
    return bool(bits[number // 8] >> number % 8 & 1)
