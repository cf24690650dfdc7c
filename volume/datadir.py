"""A data directory without a store: what can be told of it and done to it while none is open."""

import contextlib
import logging
import os
import shutil
from pathlib import Path

from volume import layout
from volume.disk import Disk, SystemClock
from volume.errors import CorruptData
from volume.kv import KeyValue, LmdbKeyValue
from volume.locking import DirectoryLock
from volume.meta import Meta

log = logging.getLogger(__name__)

META_MAP_BYTES = 16 * 1024 * 1024
INDEX_MAP_BYTES = 256 * 1024 * 1024


def open_index(path: Path, *, fresh: bool) -> KeyValue:
    """The index of the directory `path`, emptied when `fresh`, or when it cannot be opened."""
    if fresh:
        shutil.rmtree(path / "index", ignore_errors=True)
    try:
        return LmdbKeyValue(path / "index", synced=False, map_size=INDEX_MAP_BYTES)
    except CorruptData as error:
        log.warning("the index cannot be opened, it is made anew error=%s", error)
        shutil.rmtree(path / "index")
        return LmdbKeyValue(path / "index", synced=False, map_size=INDEX_MAP_BYTES)


def index_left(kv: KeyValue) -> bool:
    """Whether an index was written there, ever."""
    return kv.get(layout.INDEX_KEY_FORMAT) is not None


def holds_data(disk: Disk) -> bool:
    """Whether there is a pack or a segment of the journal, of whatever store."""
    for folder, suffix in (("packs", ".pack"), ("journal", ".seg")):
        with contextlib.suppress(FileNotFoundError):
            if any(name.endswith(suffix) for name in disk.list(folder)):
                return True
    return False


def read_boot_id() -> str:
    """Names this boot of the machine: what the page cache holds is gone when it changes."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"unknown-{os.getpid()}"  # never the same again: the index is rebuilt


def unseal(path: Path) -> None:
    """Take the mark away that a failed sync left. DirectoryLocked when a daemon runs."""
    if not (path / "meta").is_dir():
        raise FileNotFoundError(2, "no data directory of blockd", str(path))
    lock = DirectoryLock(path)
    try:
        kv = LmdbKeyValue(path / "meta", synced=True, map_size=META_MAP_BYTES)
        try:
            Meta(kv, SystemClock()).unseal()
        finally:
            kv.close()
    finally:
        lock.release()
