"""Small ordered stores of key -> value: LMDB for real, a dict for simulation.

Both LMDB environments of a data directory sit behind `KeyValue`:

- `meta/` is *synced*: `update` is durable when it returns.
- `index/` is *unsynced*: `update` is atomic and survives the death of the process, but a power cut
  may leave anything at all, so its owner must be able to throw it away (see `volume.index`).

Threads: any number may read at any time, beside one or more that call `update` (LMDB lets them in
one by one). A reader sees whole updates only. No read transaction outlives a method call: an open
one would pin old pages for ever, and would keep the map from growing.

The map of LMDB is address space, not memory; when it is full it is doubled and the update is done
again. LMDB demands that no transaction is open at that moment, so readers pass a gate.

A full disk is OutOfSpace, also where LMDB says EIO: see `volume.lmdbroom`.
"""

import errno
import os
import threading
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import lmdb

from volume.diskerror import SyncFailed
from volume.errors import CorruptData, OutOfSpace, VolumeError
from volume.lmdbroom import NO_SPACE_ERRNOS, FileRoom, Tree, pages_of_update
from volume.sites import rare

MAX_MAP_GROWTHS = 24  # doublings for one update; more means that the map is not what is short
MAX_READERS = 512  # LMDB reader slots; one is in use for the length of one call in one thread
SPARE_TXNS = 16  # read transactions kept for reuse: about as many as there are reader threads
ITEMS_PAGE = 512  # items read in one transaction while iterating
RARE_MAP_BYTES = 1 << 36  # a test rig lets maps grow up to here: address space has an end


class KeyValue(Protocol):
    """An ordered map of bytes to bytes. Errors: OutOfSpace, CorruptData, OSError."""

    def get(self, key: bytes) -> bytes | None: ...

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The values of `keys`, in their order, all from one moment."""

    def items(self, prefix: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """Items whose key starts with `prefix`, in key order; each from some moment meanwhile."""

    def floor(self, prefix: bytes, key: bytes) -> tuple[bytes, bytes] | None:
        """The last item whose key starts with `prefix` and is not after `key`."""

    def update(self, puts: Mapping[bytes, bytes], deletes: Iterable[bytes] = ()) -> None:
        """Set `puts` and remove `deletes` (absent ones are fine): all or nothing.

        Durable on return iff the store is synced."""

    def count(self) -> int:
        """Number of keys."""

    def release_memory(self) -> None:
        """Let go of memory that can be had again: reads may be a little slower after it."""

    def sync(self) -> None:
        """Make every finished update durable."""

    def close(self) -> None: ...


class LmdbKeyValue:
    """One LMDB environment in a folder of its own, which is made when it is not there.

    `map_size` is the size to begin with, in bytes; the map grows by itself.
    """

    def __init__(self, path: Path, *, synced: bool, map_size: int) -> None:
        self.path = path
        self._gate = threading.Lock()  # _readers and _growing
        self._passed = threading.Condition(self._gate)
        self._readers = 0
        self._growing = False
        self._writing = threading.Lock()
        path.mkdir(mode=0o700, exist_ok=True)
        try:
            self._env = lmdb.Environment(
                str(path),
                map_size=map_size,
                mode=0o600,
                sync=synced,
                metasync=synced,
                readahead=False,  # keys are hashes: the neighbours of a page are not wanted next
                max_readers=MAX_READERS,
                max_spare_txns=SPARE_TXNS,
            )
        except lmdb.Error as error:
            raise self._translated(error, opening=True) from error
        self._room = FileRoom(path / "data.mdb")
        if synced:
            _sync_folder(path)  # LMDB syncs its files, not the names they were created under
            _sync_folder(path.parent)

    def get(self, key: bytes) -> bytes | None:
        self._enter()
        try:
            with self._env.begin() as txn:
                return txn.get(key)
        except lmdb.Error as error:
            raise self._translated(error) from error
        finally:
            self._leave()

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        self._enter()
        try:
            with self._env.begin() as txn:
                return [txn.get(key) for key in keys]
        except lmdb.Error as error:
            raise self._translated(error) from error
        finally:
            self._leave()

    def items(self, prefix: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        start = prefix
        while page := self._page(prefix, start):
            yield from page
            start = page[-1][0] + b"\0"  # the smallest key after the last one

    def _page(self, prefix: bytes, start: bytes) -> list[tuple[bytes, bytes]]:
        page: list[tuple[bytes, bytes]] = []
        self._enter()
        try:
            with self._env.begin() as txn, txn.cursor() as cursor:
                found = cursor.set_range(start) if start else cursor.first()
                while found and len(page) < ITEMS_PAGE:
                    key, value = cursor.item()
                    if not key.startswith(prefix):
                        break
                    page.append((key, value))
                    found = cursor.next()
        except lmdb.Error as error:
            raise self._translated(error) from error
        finally:
            self._leave()
        return page

    def floor(self, prefix: bytes, key: bytes) -> tuple[bytes, bytes] | None:
        self._enter()
        try:
            with self._env.begin() as txn, txn.cursor() as cursor:
                found = cursor.set_range(key)
                if not found:
                    found = cursor.last()
                elif cursor.key() != key:
                    found = cursor.prev()
                if not found or not cursor.key().startswith(prefix):
                    return None
                return cursor.item()
        except lmdb.Error as error:
            raise self._translated(error) from error
        finally:
            self._leave()

    def update(self, puts: Mapping[bytes, bytes], deletes: Iterable[bytes] = ()) -> None:
        ordered = sorted(puts.items())  # LMDB inserts neighbours faster
        gone = list(deletes)
        with self._writing:
            for _ in range(MAX_MAP_GROWTHS):
                if self._updated(ordered, gone):
                    break
            else:
                raise OutOfSpace(
                    f"{self.path}: {len(ordered)} items do not fit after {MAX_MAP_GROWTHS} "
                    "doublings of the map; `blockd doctor` shows how large it is"
                )
        if rare("kv.release"):
            self.release_memory()

    def _updated(self, puts: list[tuple[bytes, bytes]], deletes: list[bytes]) -> bool:
        """Do one update; False when the map was full, and has been doubled."""
        room = True
        try:
            room = self._has_room(puts, deletes)
            with self._env.begin(write=True) as txn:
                try:
                    for key in deletes:
                        txn.delete(key)
                    for key, value in puts:
                        txn.put(key, value)
                    if self.map_size < RARE_MAP_BYTES and rare("kv.map-full"):
                        raise lmdb.MapFullError("the test rig says so")
                except lmdb.MapFullError:
                    # Before the abort: the binding's abort waits until no reader is inside, and
                    # busy readers would let it wait for minutes (seen with lmdb 3.0).
                    self._stop_readers()
                    raise
            return True
        except lmdb.MapFullError:
            self._stop_readers()
            self._double()
            return False
        except lmdb.Error as error:
            raise self._translated(error, room=room) from error
        finally:
            self._admit_readers()

    def _has_room(self, puts: list[tuple[bytes, bytes]], deletes: list[bytes]) -> bool:
        """Whether the file system has room for all that an update may add to the file.

        Without it the update may well go through: LMDB uses pages again that it let go."""
        stat = self._env.stat()
        tree = Tree(stat["psize"], stat["depth"], stat["leaf_pages"], stat["branch_pages"])
        pages = self._env.info()["last_pgno"] + 1 + pages_of_update(tree, puts, deletes)
        return self._room.reach(pages * tree.page_bytes)

    def count(self) -> int:
        self._enter()
        try:
            return self._env.stat()["entries"]
        except lmdb.Error as error:
            raise self._translated(error) from error
        finally:
            self._leave()

    def release_memory(self) -> None:
        # Pages that were read stay mapped, and count as the process's own, for as long as the map
        # does. Setting its size, to what it is, maps the file anew.
        with self._writing:
            self._stop_readers()
            try:
                self._env.set_mapsize(self._env.info()["map_size"])
            except lmdb.Error as error:
                raise self._translated(error) from error
            finally:
                self._admit_readers()

    def sync(self) -> None:
        try:
            self._env.sync(True)
        except lmdb.Error as error:
            raise self._translated(error) from error

    def copy_to(self, fd: int) -> None:
        """Write all of it, as it is at one moment, into an empty file: what LMDB opens without a
        folder. Others go on meanwhile, but for an update that has to make the map larger."""
        self._enter()
        try:
            self._env.copyfd(fd, compact=True)
            os.fsync(fd)
        except lmdb.Error as error:
            raise self._translated(error, room=False) from error
        finally:
            self._leave()

    def close(self) -> None:
        self._env.close()

    @property
    def map_size(self) -> int:
        """Bytes of address space that the map spans now."""
        return self._env.info()["map_size"]

    def _enter(self) -> None:
        with self._gate:
            while self._growing:
                self._passed.wait()
            self._readers += 1

    def _leave(self) -> None:
        with self._gate:
            self._readers -= 1
            if self._growing:
                self._passed.notify_all()

    def _stop_readers(self) -> None:
        with self._gate:
            self._growing = True
            while self._readers:
                self._passed.wait()

    def _admit_readers(self) -> None:
        with self._gate:
            self._growing = False
            self._passed.notify_all()

    def _double(self) -> None:
        try:
            self._env.set_mapsize(self._env.info()["map_size"] * 2)
        except lmdb.Error as error:
            raise self._translated(error) from error

    def _translated(
        self, error: lmdb.Error, *, room: bool = True, opening: bool = False
    ) -> Exception:
        """LMDB's error as ours. It uses positive codes for errnos, negative ones for its own.

        `room`: an update had it, so its EIO is the disk's. `opening`: nothing was changed, and the
        error is what it says (PermissionError of somebody else's file)."""
        code: int = getattr(error, "code", 0)  # absent when the binding itself refuses
        if code in NO_SPACE_ERRNOS or (code == errno.EIO and not room):
            return OutOfSpace(f"{self.path}: {error}; free some space on that file system")
        if code > 0 and opening:
            return OSError(code, os.strerror(code), str(self.path))
        if code > 0:
            return SyncFailed(code, os.strerror(code), str(self.path))  # of its update, or so
        if code < 0:
            return CorruptData(f"{self.path}: {error}; `blockd doctor` tells what can be rebuilt")
        return VolumeError(f"{self.path}: {error}")


class MemoryKeyValue:
    """A KeyValue in a dict, for simulation and tests. `snapshot` and `restore` play the crashes."""

    def __init__(self, items: Mapping[bytes, bytes] | None = None) -> None:
        self._items = dict(items or {})
        self._keys: list[bytes] | None = None
        """In order, once that was asked for."""
        self._lock = threading.Lock()

    def get(self, key: bytes) -> bytes | None:
        return self._items.get(key)

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        with self._lock:
            return [self._items.get(key) for key in keys]

    def items(self, prefix: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        found = []
        with self._lock:
            keys = self._in_order()
            for index in range(bisect_left(keys, prefix), len(keys)):
                key = keys[index]
                if not key.startswith(prefix):
                    break
                found.append((key, self._items[key]))
        yield from found

    def floor(self, prefix: bytes, key: bytes) -> tuple[bytes, bytes] | None:
        with self._lock:
            keys = self._in_order()
            for index in range(bisect_right(keys, key) - 1, -1, -1):
                found = keys[index]
                if found.startswith(prefix):
                    return found, self._items[found]
                if found < prefix:
                    break
        return None

    def _in_order(self) -> list[bytes]:
        if self._keys is None:
            self._keys = sorted(self._items)
        return self._keys

    def update(self, puts: Mapping[bytes, bytes], deletes: Iterable[bytes] = ()) -> None:
        with self._lock:
            for key in deletes:
                self._items.pop(key, None)
            self._items.update(puts)
            self._keys = None

    def count(self) -> int:
        return len(self._items)

    def release_memory(self) -> None:
        pass

    def sync(self) -> None:
        pass

    def close(self) -> None:
        pass

    def snapshot(self) -> dict[bytes, bytes]:
        """A copy of everything, to be given to `restore` or to a new MemoryKeyValue."""
        with self._lock:
            return dict(self._items)

    def restore(self, snapshot: Mapping[bytes, bytes]) -> None:
        """Become what `snapshot` was."""
        with self._lock:
            self._items = dict(snapshot)
            self._keys = None


def _sync_folder(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
