"""Cloning a range of a volume: one record of the journal, whatever its length.

The record (REFER) says that whole chunks of the volume read as chunks of a tree: that of the source
at one moment between call and return. It has a seq like every write. Until a destage round puts the
ids of those chunks into the volume's own tree, the hot map refers to the other tree, and reads find
its chunks there. Nothing is copied, and no chunk is read.

What is still hot of the source's range is brought into chunks first, by a point and a destage round
as for a clone; a range that nobody has written to lately needs neither.

    1  source's bytes in chunks, durable      a crash from here on: nothing has happened
    2  the tree has a row (`volume.referred`) a tree is kept for a while that nobody needs
    3  REFER record appended                  the range reads so, as far as the log has survived
    4  round: leaves and head                 as after any round

Whole chunks only, at offsets that are multiples of the chunk size on both sides; the volumes of a
store that have chunks of one size.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from native import Journal, VolumeCore
from volume.catalog import Catalog
from volume.disk import Clock
from volume.errors import JournalFull, NoSuchVersion
from volume.historyrows import VersionRow
from volume.layout import FAN_OUT
from volume.manifest import Manifests
from volume.meta import VolumeRecord
from volume.past import OpenVersions, PastVolume
from volume.referred import ReferredTrees, Tree
from volume.seal import Seal
from volume.sites import fail_point
from volume.volume import Volume

JOURNAL_RETRIES = 3  # when the journal has no room for a record


class Settled(Protocol):
    """As `volume.versions.Versions.settled`."""

    def __call__(self, ref: str, /) -> AbstractContextManager[tuple[VolumeRecord, VersionRow]]: ...


@dataclass(frozen=True, slots=True)
class _Source:
    """A device that can be cloned from, as it is now."""

    core: VolumeCore
    tree: Tree
    size: int
    ref: str
    """Names it for `Settled`."""
    number: int
    """Of its volume."""


class RangeCloner:
    """Any thread; waits for disks. Errors: VolumeError, OSError."""

    def __init__(
        self,
        catalog: Catalog,
        opened: OpenVersions,
        referred: ReferredTrees,
        journal: Journal,
        clock: Clock,
        seal: Seal,
        manifests: Manifests,
        settled: Settled,
        make_room: Callable[[], None],
    ) -> None:
        """`make_room`: run a round that frees journal space."""
        self._catalog = catalog
        self._opened = opened
        self._referred = referred
        self._journal = journal
        self._clock = clock
        self._seal = seal
        self._manifests = manifests
        self._settled = settled
        self._make_room = make_room

    def clone(
        self, volume: Volume, offset: int, source: object, source_offset: int, length: int
    ) -> int:
        """As `Volume.clone_range`."""
        self._seal.check()
        chunk_size = volume.record.chunk_size
        if offset % chunk_size or source_offset % chunk_size:
            return 0
        if volume.record.number in self._catalog.replicated:
            return 0  # members take no record that refers to what only this node has
        if source is volume and abs(offset - source_offset) < length:
            return 0
        length = min(length, volume.size - offset)
        length -= length % chunk_size
        if length <= 0:
            return 0
        with self._catalog.lock:
            found = self._found(source)
            if found is None or found.tree.chunk_size != chunk_size:
                return 0
            length = min(length, (found.size - source_offset) // chunk_size * chunk_size)
            if length <= 0:
                return 0
            cold = _is_cold(found.core, source_offset, length)
            if cold and not self._referred.begin(found.tree):
                return 0
        tree = found.tree if cold else self._begin_settled(found, source_offset + length)
        if tree is None:
            return 0
        lsn = 0
        fail_point("range.kept")
        try:
            self._check_nodes(tree, source_offset // chunk_size, length // chunk_size)
            lsn = self._append(volume, offset, length, tree, source_offset)
            fail_point("range.recorded")
        finally:
            self._referred.end(tree, lsn, self._journal.cut()[1])
        return length

    def _found(self, source: object) -> _Source | None:
        """`source`, if it is a device of this store. The control lock is held."""
        if isinstance(source, Volume) and source in self._catalog.unlocked():
            record = source.record
            tree = Tree(record.head.root, record.head.height, record.chunk_size)
            return _Source(source.core, tree, record.size, record.name, record.number)
        if isinstance(source, PastVolume) and source in self._opened.all():
            row, record = source.version.row, source.version.record
            tree = Tree(row.root, row.height, record.chunk_size)
            name = self._catalog.numbered(record.number).name
            ref = f"{name}@seq:{row.seq}"
            return _Source(source.target().core, tree, row.size, ref, record.number)
        return None

    def _begin_settled(self, source: _Source, end: int) -> Tree | None:
        """The tree of a version that has in chunks what `source` has up to `end`."""
        try:
            with self._settled(source.ref) as (record, row), self._catalog.lock:
                if record.number != source.number or row.size < end:
                    return None  # another one has its name, or it has shrunk
                tree = Tree(row.root, row.height, source.tree.chunk_size)
                return tree if self._referred.begin(tree) else None
        except NoSuchVersion:
            return None  # its bytes can be read, but not be brought into chunks any more

    def _check_nodes(self, tree: Tree, first: int, count: int) -> None:
        """CorruptData when chunks of the tree cannot be found: a round that has to put their ids
        elsewhere would fail, and with it those of all volumes."""
        end = min(first + count, FAN_OUT**tree.height)
        for leaf in range(first // FAN_OUT, -(-end // FAN_OUT)):
            self._manifests.lookup_leaf(tree.root, tree.height, leaf)

    def _append(
        self, volume: Volume, offset: int, length: int, tree: Tree, source_offset: int
    ) -> int:
        """Append the record; its lsn."""
        for _ in range(JOURNAL_RETRIES):
            now_ns = self._clock.now_ns()
            try:
                return volume.core.refer(
                    *(offset, length, tree.root, tree.height, source_offset, now_ns)
                )
            except BlockingIOError:
                self._make_room()
        raise JournalFull(f"volume {volume.name}: the journal is full; try again later")


def _is_cold(core: VolumeCore, offset: int, length: int) -> bool:
    """Whether the hot maps have nothing of a range: its tree says all of it."""
    return core.hot_extents(offset, length, 1) == [(offset, length, -1)]
