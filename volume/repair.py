"""Repair of a data directory that nobody serves: `index/` made anew from the packs.

What is in `index/` is in the packs as well, so it can be thrown away at any time; a store does so
by itself after a power cut. This is for the other cases: an index that has rotted, or that somebody
has damaged. Afterwards every version is walked, to tell what is missing from the packs themselves.

    1  meta/ distrusts the index      a crash from here on: the next opening rebuilds it
    2  index/ deleted, made anew      the same
    3  index synced, marked clean     done

The journal needs no repair: it is replayed at the next opening, and what it holds is not in packs.
"""

import contextlib
import logging
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from volume.chunks import ChunkStore
from volume.datadir import INDEX_MAP_BYTES, META_MAP_BYTES, read_boot_id
from volume.disk import PosixDisk, SystemClock
from volume.errors import CorruptData, UnknownFormat
from volume.history import History
from volume.historyrows import Settings
from volume.index import ChunkIndex
from volume.kv import LmdbKeyValue
from volume.laterkv import LaterKeyValue
from volume.layout import FAN_OUT, ZERO_ID
from volume.locate import Location, NamedRoot, locate
from volume.locking import DirectoryLock
from volume.manifest import Manifests
from volume.meta import Meta, VolumeRecord
from volume.packs import Packs
from volume.referred import Tree, rows
from volume.sites import fail_point

log = logging.getLogger(__name__)

MAX_MISSING = 1000  # told one by one; the rest is counted
LOG_NAME = "(cloned ranges in the journal)"  # where something is missing that no version has

Progress = Callable[[str, int, int], None]
"""Told ("packs" or "versions", how many are done, of how many)."""


@dataclass(frozen=True, slots=True)
class RepairReport:
    """What was done, and what it has shown."""

    packs: int
    chunks: int
    unreadable: tuple[str, ...]
    """Packs that are not in the index now, each with the reason."""
    versions: int
    """Walked: heads and versions of all volumes, and what the journal refers to."""
    missing_count: int
    missing: tuple[Location, ...]
    """What versions need and no pack has; at most MAX_MISSING of it."""


def rebuild_index(
    path: Path, progress: Progress = lambda _what, _done, _total: None
) -> RepairReport:
    """Make the index of a data directory anew and walk all versions. Takes a look at every pack's
    footer and at every manifest node, not at the data itself: that is scrub's work.

    FileNotFoundError, DirectoryLocked, UnknownFormat, CorruptData (of meta/), OutOfSpace, OSError:
    then the index is rebuilt when the store is opened the next time."""
    if not (path / "meta" / "data.mdb").is_file():
        raise FileNotFoundError(2, "no data directory of blockd", str(path))
    with contextlib.ExitStack() as stack:
        stack.callback(DirectoryLock(path).release)
        meta_kv = LmdbKeyValue(path / "meta", synced=True, map_size=META_MAP_BYTES)
        stack.callback(meta_kv.close)
        meta = Meta(meta_kv, SystemClock())
        packs = Packs(PosixDisk(path), meta.uuid)
        stack.callback(packs.close)
        meta.distrust_index()
        fail_point("repair.distrusted")
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(path / "index")
        fail_point("repair.deleted")
        index_kv = LmdbKeyValue(path / "index", synced=False, map_size=INDEX_MAP_BYTES)
        stack.callback(index_kv.close)
        index = ChunkIndex(index_kv, meta.uuid)
        unreadable = tuple(_filled(index, packs, progress))
        fail_point("repair.filled")
        index.sync()
        fail_point("repair.synced")
        meta.mark_index_clean(read_boot_id())
        versions, missing_count, missing = _walked(
            ChunkStore(packs, index),
            meta,
            History(LaterKeyValue(meta_kv), Settings(0, "", 0)),
            list(rows(meta_kv)),
            progress,
        )
        report = RepairReport(
            packs=len(packs.numbers()),
            chunks=index.count(),
            unreadable=unreadable,
            versions=versions,
            missing_count=missing_count,
            missing=tuple(missing),
        )
    log.info(
        "index rebuilt packs=%d chunks=%d unreadable=%d missing=%d",
        *(report.packs, report.chunks, len(unreadable), missing_count),
    )
    return report


def _filled(index: ChunkIndex, packs: Packs, progress: Progress) -> Iterator[str]:
    """Learn every entry of every pack; yields why one cannot be read."""
    numbers = packs.numbers()
    for done, number in enumerate(numbers, start=1):
        try:
            places = dict(packs.places(number))
        except (CorruptData, UnknownFormat) as error:
            yield str(error)
        except OSError as error:
            yield f"pack {number:08x}: {error.strerror}"
        else:
            index.put(places)
        progress("packs", done, len(numbers))


def _walked(
    chunks: ChunkStore,
    meta: Meta,
    history: History,
    referred: list[Tree],
    progress: Progress,
) -> tuple[int, int, list[Location]]:
    """Versions walked, how much of them is missing, and the first MAX_MISSING of it."""
    manifests = Manifests(chunks)
    roots = [*named_roots(meta.volumes(), history), *map(_log_root, referred)]
    count = 0
    missing: list[Location] = []

    def told() -> Iterator[NamedRoot]:
        for done, root in enumerate(roots, start=1):
            yield root
            progress("versions", done, len(roots))

    for location in locate(chunks, manifests, [], told(), absent=True):
        count += 1
        if len(missing) < MAX_MISSING:
            missing.append(location)
    return len(roots), count, missing


def named_roots(volumes: Iterable[VolumeRecord], history: History) -> Iterator[NamedRoot]:
    """Every tree that volumes keep, under a name that a person can use: heads, then versions by
    the names of their snapshots or their seqs."""
    for record in volumes:
        head = record.head
        yield NamedRoot(
            record.name,
            head.root,
            head.height,
            record.size,
            record.chunk_size,
            _commits(head.commit),
        )
        names = {row.seq: row.name for row in history.snapshots(record.number)}
        for row in history.versions(record.number):
            if row.root == head.root and row.commit == head.commit and row.seq not in names:
                continue
            yield NamedRoot(
                f"{record.name}@{names.get(row.seq, f'seq:{row.seq}')}",
                row.root,
                row.height,
                row.size,
                record.chunk_size,
                _commits(row.commit),
            )


def _log_root(tree: Tree) -> NamedRoot:
    size = FAN_OUT**tree.height * tree.chunk_size
    return NamedRoot(LOG_NAME, tree.root, tree.height, size, tree.chunk_size)


def _commits(commit: bytes) -> tuple[bytes, ...]:
    return () if commit == ZERO_ID else (commit,)
