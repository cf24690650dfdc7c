"""Copies of `meta/`: taken while the store is in use, checked, and marked as what they are.

A copy is one file, an LMDB environment without its folder, of one moment: what is in it was durable
then. The row `backup` is in copies only. Nothing opens a store with one: what was written since
would be forgotten, as the log would be replayed over heads of then. `volume.rebuild` brings a copy
up to date from packs and journal.

    1  copied into a file without a name    a crash from here on leaves nothing
    2  marked and checked, synced           the same
    3  handed out                           what becomes of it is the caller's
"""

import contextlib
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import lmdb

from volume import layout
from volume.checkpoint import Checkpoint
from volume.datadir import META_MAP_BYTES
from volume.disk import SystemClock
from volume.errors import CorruptData, OutOfSpace, UnknownFormat
from volume.framing import framed, unframed, unpacked
from volume.kv import LmdbKeyValue
from volume.lmdbroom import NO_SPACE_ERRNOS
from volume.locking import DirectoryLock
from volume.receive import KEY_PREFIX as RECEIVE_PREFIX

MAP_BYTES = 1 << 36  # address space while a copy is looked at; a file that is larger is none
MIN_BYTES = 3 * 4096  # two pages that say where the tree is, and one of it


@dataclass(frozen=True, slots=True)
class BackupInfo:
    """What a copy says of itself."""

    store_uuid: str
    time_ns: int
    lsn: int
    """Of the last record of the journal at that time."""
    volumes: int
    snapshots: int
    length: int
    """Of the file, bytes."""


def copied(copy_to: Callable[[int], None], folder: Path, *, time_ns: int, lsn: int) -> IO[bytes]:
    """A copy of `meta/`, marked and checked, as a file without a name in `folder`, at its start.

    The caller closes it, and then it is gone. OutOfSpace, CorruptData (of `meta/` itself), OSError.
    """
    try:
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(tempfile.TemporaryFile(dir=folder))
            copy_to(file.fileno())
            path = f"/proc/self/fd/{file.fileno()}"
            mark = framed(layout.META_BACKUP.pack(time_ns, lsn))
            with _opened(path) as env, env.begin(write=True) as txn:
                txn.put(layout.META_KEY_BACKUP, mark)
            _checked(path, "the copy of meta/")
            file.seek(0)
            stack.pop_all()
            return file
    except OSError as error:
        if error.errno in NO_SPACE_ERRNOS:
            raise OutOfSpace(f"{folder}: no room for a copy of meta/; free some space") from error
        raise


def copied_offline(path: Path) -> IO[bytes]:
    """As `copied`, of a data directory that nobody serves. FileNotFoundError, DirectoryLocked."""
    if not (path / "meta" / "data.mdb").is_file():
        raise FileNotFoundError(2, "no data directory of blockd", str(path))
    with contextlib.ExitStack() as stack:
        stack.callback(DirectoryLock(path).release)
        kv = LmdbKeyValue(path / "meta", synced=True, map_size=META_MAP_BYTES)
        stack.callback(kv.close)
        value = kv.get(layout.META_KEY_CHECKPOINT)
        lsn = 0
        if value is not None:
            lsn = Checkpoint.decode(unframed(layout.META_KEY_CHECKPOINT, value)).lsn - 1
        return copied(kv.copy_to, path, time_ns=SystemClock().now_ns(), lsn=lsn)


def look_at(path: Path) -> BackupInfo:
    """What is in the copy `path`, every value of it checked. FileNotFoundError, CorruptData,
    UnknownFormat (it is no copy), OSError."""
    length = path.stat().st_size
    items = _checked(str(path), str(path))
    return _info(items, str(path), length)


def items_of(path: Path) -> dict[bytes, bytes]:
    """All rows of a copy, or of another `data.mdb`, without the mark; every value is checked.

    Errors as `look_at`."""
    path.stat()
    items = _checked(str(path), str(path))
    items.pop(layout.META_KEY_BACKUP, None)
    return items


def _opened(path: str, *, read_only: bool = False) -> lmdb.Environment:
    return lmdb.open(
        path, subdir=False, lock=False, readonly=read_only, map_size=MAP_BYTES, readahead=False
    )


def _checked(path: str, what: str) -> dict[bytes, bytes]:
    """All items of the environment in that file, whose values hold."""
    items: dict[bytes, bytes] = {}
    try:
        _check_length(path, what)
        with _opened(path, read_only=True) as env, env.begin() as txn:
            for key, value in txn.cursor():
                items[bytes(key)] = bytes(value)
    except lmdb.Error as error:
        code = getattr(error, "code", 0)
        if code > 0:
            raise OSError(code, os.strerror(code), what) from error
        raise CorruptData(f"{what}: {error}; use another copy") from error
    for key, value in items.items():
        if not key.startswith(RECEIVE_PREFIX):  # framed in a way of its own, and of no use later
            unframed(key, value, what)
    if layout.META_KEY_STORE not in items:
        raise UnknownFormat(what, "has no store record")
    return items


def _check_length(path: str, what: str) -> None:
    """LMDB maps the file, and a page beyond its end would be the end of the process."""
    found = os.stat(path).st_size
    needed = MIN_BYTES
    if found >= needed:
        with _opened(path, read_only=True) as env:
            needed = (env.info()["last_pgno"] + 1) * env.stat()["psize"]
    if found < needed:
        raise CorruptData(f"{what}: {found} bytes of {needed} are there; use another copy")


def _info(items: dict[bytes, bytes], path: str, length: int) -> BackupInfo:
    mark = items.get(layout.META_KEY_BACKUP)
    if mark is None:
        raise UnknownFormat(path, "is not marked as a copy of meta/")
    time_ns, lsn = unpacked(
        layout.META_BACKUP, layout.META_KEY_BACKUP, unframed(layout.META_KEY_BACKUP, mark), path
    )
    store = unframed(layout.META_KEY_STORE, items[layout.META_KEY_STORE], path)
    _, _, uuid, _ = unpacked(layout.META_STORE, layout.META_KEY_STORE, store, path)
    return BackupInfo(
        store_uuid=uuid.hex(),
        time_ns=time_ns,
        lsn=lsn,
        volumes=sum(key.startswith(layout.META_PREFIX_VOLUME) for key in items),
        snapshots=sum(key.startswith(layout.META_PREFIX_SNAPSHOT) for key in items),
        length=length,
    )
