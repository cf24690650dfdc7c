"""`meta/` made anew for a data directory that has lost it, or has an old copy of it only.

    1  journal read, index/ made anew of the packs    nothing that is needed has changed
    2  the plan is made (`volume.rebuildplan`)         the same
    3  meta.rebuilt/ written and synced               the same; the next run begins it anew
    4  renamed to meta/                               done

A `meta/` that has anything in it is never touched: who wants another one moves it away. What comes
of it can be removed again, and made again, as long as the store was not opened with it.

Where a pack or a segment cannot be read the report says so, and what depends on it is not whole.
"""

import contextlib
import logging
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from volume import layout, packfile
from volume.chunks import ChunkStore
from volume.commits import Commit, get_commit
from volume.datadir import INDEX_MAP_BYTES, META_MAP_BYTES, holds_data, read_boot_id
from volume.disk import Clock, Disk, PosixDisk, SystemClock
from volume.errors import CorruptData, UnknownFormat, VolumeError
from volume.framing import framed
from volume.index import ChunkIndex
from volume.kv import KeyValue, LmdbKeyValue
from volume.layout import KIND_COMMIT, ChunkId
from volume.locking import DirectoryLock
from volume.meta import Meta
from volume.metabackup import items_of
from volume.packs import Packs
from volume.rebuildlog import ScannedLog, scan
from volume.rebuildplan import Plan, Planner, Progress

log = logging.getLogger(__name__)

NEW_FOLDER = "meta.rebuilt"
PUT_BATCH = 10_000  # rows in one transaction


def _silent(_what: str, _done: int, _total: int) -> None:
    pass


class MetaExists(VolumeError):
    code = "meta_exists"

    def __init__(self, path: Path) -> None:
        super().__init__(
            f"{path}/meta is there; nothing was changed. Move it away if it is of no use any more "
            f"(mv {path}/meta {path}/meta.old), then give the command again"
        )


@dataclass(frozen=True, slots=True)
class RebuildReport:
    """What was found, and what it makes."""

    store_uuid: str
    plan: Plan
    packs: int
    chunks: int
    unreadable: tuple[str, ...]
    """Packs and commits that could not be read, each with the reason."""
    segments: int
    """Of the journal, that are the log."""
    written: bool

    @property
    def whole(self) -> bool:
        """Whether nothing is missing of what there was."""
        plan = self.plan
        return not (
            self.unreadable or plan.lost_snapshots or any(each.lacks for each in plan.volumes)
        )


def rebuild_meta(
    path: Path,
    copy: Path | None = None,
    *,
    write: bool = True,
    progress: Progress = _silent,
) -> RebuildReport:
    """Make `meta/` of what is in packs and journal, and in `copy` if there is one. `index/` is made
    anew as well. Without `write` everything else stays as it is.

    FileNotFoundError, MetaExists, DirectoryLocked, UnknownFormat, CorruptData, OutOfSpace, OSError:
    then there is no new `meta/`."""
    disk, clock = PosixDisk(path), SystemClock()
    if not path.is_dir() or not holds_data(disk):
        raise FileNotFoundError(2, "no data directory of blockd with packs or a journal", str(path))
    base = None if copy is None else items_of(_file_of(copy))
    with contextlib.ExitStack() as stack:
        stack.callback(DirectoryLock(path).release)
        if _has_rows(path):
            raise MetaExists(path)
        shutil.rmtree(path / "index", ignore_errors=True)
        kv = LmdbKeyValue(path / "index", synced=False, map_size=INDEX_MAP_BYTES)
        stack.callback(kv.close)
        report = look(disk, kv, base, clock, progress)
        if write:
            kv.sync()
            _write(path, report.plan.items, clock)
            report = replace(report, written=True)
    log.info(
        "meta rebuilt written=%s volumes=%d packs=%d whole=%s",
        *(write, len(report.plan.volumes), report.packs, report.whole),
    )
    return report


def look(
    disk: Disk,
    index_kv: KeyValue,
    base: Mapping[bytes, bytes] | None,
    clock: Clock,
    progress: Progress = _silent,
) -> RebuildReport:
    """What is in packs and journal; `index_kv` is empty, and gets the index. `base`: rows of a
    copy. Errors as `rebuild_meta`."""
    scanned = scan(disk, progress)
    uuid = store_uuid(disk, scanned)
    packs = Packs(disk, uuid)
    try:
        index = ChunkIndex(index_kv, uuid)
        unreadable: list[str] = []
        commit_ids = list(_filled(index, packs, unreadable, progress))
        chunks = ChunkStore(packs, index)
        commits = list(_read(chunks, commit_ids, unreadable))
        plan = Planner(uuid, scanned, chunks, commits, base, clock, progress).make()
        return RebuildReport(
            *(uuid.hex(), plan, len(packs.numbers()), index.count(), tuple(unreadable)),
            *(len(scanned.segments), False),
        )
    finally:
        packs.close()


def store_uuid(disk: Disk, scanned: ScannedLog) -> bytes:
    """Of the store that packs and journal are of. CorruptData when they are of several."""
    found: Counter[bytes] = Counter()
    where: dict[bytes, str] = dict(scanned.store_uuids)
    with contextlib.suppress(FileNotFoundError):
        for name in disk.list("packs"):
            uuid = _uuid_of(disk, f"packs/{name}") if name.endswith(".pack") else None
            if uuid is not None:
                found[uuid] += 1
                where.setdefault(uuid, f"packs/{name}")
    if not where:
        raise CorruptData("no pack and no segment says which store it is of; nothing can be told")
    if len(where) > 1:
        files = ", ".join(f"{uuid.hex()} ({file})" for uuid, file in sorted(where.items()))
        raise CorruptData(
            f"packs and journal are of several stores: {files}; move away what is not of this one"
        )
    return next(iter(where))


def _uuid_of(disk: Disk, path: str) -> bytes | None:
    file = disk.open(path, read_only=True)
    try:
        header = file.pread(packfile.HEADER_LENGTH, 0)
    finally:
        file.close()
    with contextlib.suppress(ValueError):
        number = int(Path(path).stem, 16)
        _, _, _, uuid, _ = layout.PACK_HEADER.unpack(header.ljust(packfile.HEADER_LENGTH, b"\0"))
        with contextlib.suppress(CorruptData, UnknownFormat):
            packfile.check_header(header, path, number, uuid)
            return bytes(uuid)
    return None


def _file_of(copy: Path) -> Path:
    """A file of backup-meta, or the folder `meta/` that somebody has copied."""
    return copy / "data.mdb" if copy.is_dir() else copy


def _has_rows(path: Path) -> bool:
    if not (path / "meta" / "data.mdb").exists():
        return False
    kv = LmdbKeyValue(path / "meta", synced=True, map_size=META_MAP_BYTES)
    try:
        return kv.count() > 0
    finally:
        kv.close()


def _filled(
    index: ChunkIndex, packs: Packs, unreadable: list[str], progress: Progress
) -> Iterator[ChunkId]:
    """Learn every entry of every pack; the ids of commits."""
    numbers = packs.numbers()
    for done, number in enumerate(numbers, start=1):
        try:
            places = dict(packs.places(number))
        except (CorruptData, UnknownFormat) as error:
            unreadable.append(str(error))
        except OSError as error:
            unreadable.append(f"pack {number:08x}: {error.strerror}")
        else:
            index.put(places)
            yield from (each for each, place in places.items() if place.kind == KIND_COMMIT)
        progress("packs", done, len(numbers))


def _read(
    chunks: ChunkStore, commit_ids: list[ChunkId], unreadable: list[str]
) -> Iterator[tuple[ChunkId, Commit]]:
    for commit_id in dict.fromkeys(commit_ids):
        try:
            yield commit_id, get_commit(chunks, commit_id)
        except (CorruptData, UnknownFormat) as error:
            unreadable.append(str(error))
        except OSError as error:
            unreadable.append(f"commit {commit_id.hex()}: {error.strerror}")


def _write(path: Path, items: Mapping[bytes, bytes], clock: Clock) -> None:
    new = path / NEW_FOLDER
    shutil.rmtree(new, ignore_errors=True)
    kv = LmdbKeyValue(new, synced=True, map_size=META_MAP_BYTES)
    try:
        trust = layout.META_INDEX_TRUST.pack(1) + read_boot_id().encode()
        rows = sorted({**items, layout.META_KEY_INDEX_TRUST: framed(trust)}.items())
        for start in range(0, len(rows), PUT_BATCH):
            kv.update(dict(rows[start : start + PUT_BATCH]))
        Meta(kv, clock)  # what was written reads
    finally:
        kv.close()
    shutil.rmtree(path / "meta", ignore_errors=True)  # there are no rows in it
    os.rename(new, path / "meta")
    PosixDisk(path).sync_dir(".")
