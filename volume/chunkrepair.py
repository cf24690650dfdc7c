"""Repair of chunks by what other stores have: what reads or scrub found damaged is stored anew.

A chunk is named by its content, so a good copy is known by its id, wherever it comes from. What is
offered is checked by that before anything is written; it then goes the way of every new chunk:

    1  appended to the newest pack, synced     a crash leaves the damaged one in use
    2  the index names the new place           the same, or the new one
    3  scrub forgets the damage                it looks again, and finds none

Nothing is overwritten, cut or removed: the damaged bytes are garbage from 2 on, which gc collects
in its time. If the damage was in memory or on the way from the disk, two good copies are there.

A read that waits for such a chunk (volume/rescue.py) goes on before 1: what was brought for it is
checked and used from memory, and stored anew when the destager's thread comes to it. A crash in
between leaves the damage as it was, and the client with the right bytes.
"""

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from typing import Final

from volume.chunks import ChunkStore, StoredChunk, unpacked
from volume.errors import VolumeError
from volume.layout import KIND_DAMAGED, ChunkId
from volume.remake import Found, Remake
from volume.rescue import KEPT_BYTES, Rescue
from volume.scrub import Scrubber
from volume.stripedpack import StripeUnavailable

log = logging.getLogger(__name__)

MAX_AT_ONCE: Final = 64
"""Chunks that one call asks for or stores: gc and rounds wait for that."""

__all__ = ["MAX_AT_ONCE", "ChunkRepair", "Found"]


class ChunkRepair:
    """Any thread but the destager's. `submit` runs a call between rounds and slices of gc."""

    def __init__(
        self,
        chunks: ChunkStore,
        scrubber: Scrubber,
        submit: Callable[[Callable[[], int]], int],
        forget_pack: Callable[[int], None],
        remake: Remake,
    ) -> None:
        """`forget_pack`: readers are to look anew for what they have found in a pack. `remake`: for
        chunks that no store has by their ids."""
        self.remake = remake
        self._chunks = chunks
        self._scrubber = scrubber
        self._submit = submit
        self._forget_pack = forget_pack
        self._brought: OrderedDict[ChunkId, StoredChunk] = OrderedDict()
        """For reads that waited, and not stored anew yet; MAX_AT_ONCE and KEPT_BYTES at most."""
        self._brought_lock = threading.Lock()

    @property
    def rescue(self) -> Rescue:
        """Where reads wait for what is brought."""
        return self._chunks.rescue

    def damaged(self) -> list[ChunkId]:
        """Chunks that reads or scrub have found damaged, or that are needed and in no pack any
        more, each once, as many as are remembered; those that somebody has asked for first."""
        ids = [
            *self._chunks.damaged(),
            *(each.chunk_id for each in self._scrubber.status().damages),
        ]
        found = dict.fromkeys(chunk_id for chunk_id in ids if chunk_id is not None)
        damaged = [each for each in found if self._chunks.place(each)]
        return [*damaged, *(each for each in self._chunks.lost() if not self._chunks.place(each))]

    def give(self, ids: Sequence[ChunkId], limit: int) -> list[Found]:
        """Those of the chunks that are here, whole, and fit into `limit` bytes, in their order.
        OSError. StripeUnavailable: none now, but one is in a stripe that cannot be read at the
        moment, which is not the same as not to have it."""
        found: list[Found] = []
        later: StripeUnavailable | None = None
        for chunk_id in ids:
            if self._chunks.place(chunk_id) is None:
                continue
            try:
                chunk = self._chunks.stored(chunk_id)
                unpacked(chunk_id, chunk)
            except StripeUnavailable as error:
                later = error
                continue
            except VolumeError:  # damaged as well, or gone just now
                continue
            limit -= len(chunk.stored)
            if limit < 0:
                break
            found.append((chunk_id, chunk))
        if later is not None and not found:
            raise later
        return found

    def bring(self, chunk_id: ChunkId, chunk: StoredChunk) -> bool:
        """What somebody has given of a chunk that reads wait for: they go on, if it is what its id
        says, and it is kept to be stored anew; else False. Any thread."""
        if not self._is_good(chunk_id, chunk):
            return False
        with self._brought_lock:
            self._brought[chunk_id] = chunk
            while len(self._brought) > MAX_AT_ONCE or self._brought_bytes() > KEPT_BYTES:
                self._brought.popitem(last=False)  # it will be asked for once more
        return True

    def _brought_bytes(self) -> int:
        return sum(len(chunk.stored) for chunk in self._brought.values())

    def store_brought(self) -> set[ChunkId]:
        """Store anew what was brought for reads, as `take`. VolumeError, OSError."""
        with self._brought_lock:
            found = list(self._brought.items())
        damaged = [
            (each, chunk)
            for each, chunk in found
            if self._chunks.is_damaged(each) or self._chunks.is_lost(each)
        ]
        whole = self.take({each for each, _ in damaged}, damaged) if damaged else set()
        with self._brought_lock:
            for each, chunk in found:
                if self._brought.get(each) is chunk:
                    del self._brought[each]
        return whole

    def _is_good(self, chunk_id: ChunkId, chunk: StoredChunk) -> bool:
        """Whether it is the chunk, and this store has use for it. Its bytes are kept for reads."""
        place = self._chunks.place(chunk_id)
        if place is None:
            if not self._chunks.is_lost(chunk_id) or chunk.kind == KIND_DAMAGED:
                return False
        elif chunk.kind != place.kind:
            return False
        try:
            data = unpacked(chunk_id, chunk)
        except VolumeError as error:
            log.warning("a chunk that was offered for repair is refused: %s", error)
            return False
        self.rescue.brought(chunk_id, data)
        return True

    def take(self, wanted: Collection[ChunkId], offered: Sequence[Found]) -> set[ChunkId]:
        """Store anew what is offered of the chunks that are `wanted`; which of them are whole now,
        durably. What is not what its id says is left out. VolumeError, OSError."""
        good: dict[ChunkId, StoredChunk] = {}
        for chunk_id, chunk in offered[:MAX_AT_ONCE]:
            if chunk_id in wanted and self._is_good(chunk_id, chunk):
                good[chunk_id] = chunk
        if not good:
            return set()

        def store() -> int:
            before = {place.pack for each in good if (place := self._chunks.place(each))}
            try:
                for chunk_id, chunk in good.items():
                    self._chunks.note_damage(chunk_id)
                    self._chunks.put_stored(chunk_id, chunk, anew=True)
                self._chunks.sync()
            except BaseException:
                self._chunks.abandon()
                raise
            for number in before:
                self._forget_pack(number)
            return len(good)

        self._submit(store)
        self.rescue.forget(good)
        self._scrubber.repaired(good)
        for chunk_id in good:
            log.warning("damaged chunk stored anew chunk=%s", chunk_id.hex())
        return set(good)
