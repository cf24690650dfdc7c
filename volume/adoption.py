"""What is in a pack that a crash has left without a footer.

The entries up to some point were synced, and the index may name any of them; those behind it were
not, and the index names none of them. After a power cut those can be torn; and what was synced can
have rotted. Both fail their checksums, and differ in what has to become of them:

    torn    left out. If the table had it, the next rebuild of the index would learn it, and the
            same data, put again, would be found to be there already: lost.
    rotten  kept in the table, as in any sealed pack: reads of it fail and nobody else's do, scrub
            reports it, gc sees as many entries as are in use, and pages of it can be salvaged.

The index tells them apart, if it is the one that was written beside the pack: what it names was
synced. It also knows what a header that has rotted said. Without it (after a power cut it is to be
rebuilt from the packs) all that fails is left out; nothing refers to an entry by its number then.
A sector that cannot be read is rot when there is the index. Without it, it is an error: it may be
read the next time, and nothing must be left out for that.

Entries are numbered as they lie. If one is left out before others (a chunk that was stored anew
rots where it was at first, which the index does not say), those get other numbers than the index
has: `renumbered`, which it must be told.

Nothing here writes; `volume.packs` does, and has the order.
"""

from typing import NamedTuple, Protocol

from volume import packfile
from volume.disk import File
from volume.index import Place
from volume.layout import PAGE_SIZE, ChunkId
from volume.packfile import HEADER_LENGTH, MEDIUM_ERRNOS, Entry, entry_length


class SyncedPlaces(Protocol):
    """The index that was written beside the packs."""

    def get_many(self, chunk_ids: list[ChunkId]) -> list[Place | None]: ...

    def in_pack(self, number: int) -> list[tuple[ChunkId, Place]]:
        """All that it names in one pack. Reads all of the index."""

    def put(self, places: dict[ChunkId, Place]) -> None: ...


class Found(NamedTuple):
    """The table of the pack, and what does not agree with it."""

    rows: bytearray
    """Footer rows."""
    end: int
    """Where the last of these entries ends; what is behind it in the file is torn."""
    sound: bool
    """There is an entry that verifies."""
    rotten: list[ChunkId]
    """In the table, and damaged."""
    renumbered: dict[ChunkId, Place]
    """What the index has to say instead of what it says."""


def entries_left(file: File, number: int, index: SyncedPlaces | None) -> Found:
    """What pack `number` has to have in its table. `index`: None unless it can be trusted."""
    source = file if index is None else _Legible(file)
    entries, gaps = packfile.scan(source, number, verify=True)
    known = {} if index is None else _known(file, number, index, entries, gaps)
    rows, end, rotten, renumbered = bytearray(), HEADER_LENGTH, [], {}
    whole = {entry.place.offset: entry for entry in entries if entry.whole}
    for offset in sorted(known.keys() | whole.keys()):
        if offset < end:
            continue  # what looks like an entry within another is somebody's data
        chunk_id, place = known.get(offset) or whole[offset][:2]
        numbered = place._replace(ordinal=len(rows) // packfile.ROW_LENGTH)
        rows += packfile.encode_row(numbered, chunk_id)
        end = offset + entry_length(place.stored_length)
        if offset in known and numbered != place:
            renumbered[chunk_id] = numbered
        if offset not in whole or whole[offset].chunk_id != chunk_id:
            rotten.append(chunk_id)
    return Found(rows, end, bool(whole), rotten, renumbered)


class _Legible:
    """A file of which zeros take the place of what cannot be read: no checksum holds over them."""

    def __init__(self, file: File) -> None:
        self._file = file
        self._size = file.size()

    def pread(self, length: int, offset: int) -> bytes:
        try:
            return self._file.pread(length, offset)
        except OSError as error:
            if error.errno not in MEDIUM_ERRNOS:
                raise
        length = max(0, min(length, self._size - offset))
        if length <= PAGE_SIZE:
            return bytes(length)
        half = -(-length // (2 * PAGE_SIZE)) * PAGE_SIZE
        return self.pread(half, offset) + self.pread(length - half, offset + half)


def _known(
    file: File, number: int, index: SyncedPlaces, entries: list[Entry], gaps: bool
) -> dict[int, tuple[ChunkId, Place]]:
    """Offset -> what the index names in the pack.

    Entries that can be seen are looked up. What cannot, because its header has rotted, is looked
    for in all of the index: some seconds for ten million chunks, and hardly ever."""
    if gaps:
        named = index.in_pack(number)
    else:
        ids = [entry.chunk_id for entry in entries]
        named = [
            (chunk_id, place)
            for chunk_id, place in zip(ids, index.get_many(ids), strict=True)
            if place is not None and place.pack == number
        ]
    size = file.size()
    return {place.offset: (chunk_id, place) for chunk_id, place in named if place.offset < size}
