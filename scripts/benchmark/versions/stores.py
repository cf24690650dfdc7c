"""Stores without a daemon: to fill directories quickly, and to time what the store does by itself.

`filling` syncs nothing and has no threads: what it leaves is whole as long as the machine stays up.
"""

import contextlib
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from native import OP_READ, OP_WRITE, Request
from tests.synthetic import threadless
from volume.options import StoreOptions
from volume.store import Store
from volume.volume import Volume

PIECE = 1 << 20
WAIT_S = 120.0


class Device(Protocol):
    """What of a volume, or a version of one, is used here."""

    def submit(self, batch: list[Request], done: Callable[[list[Request]], None]) -> None: ...


@contextlib.contextmanager
def filling(path: Path, options: StoreOptions | None = None) -> Iterator[Store]:
    """A store on `path` that works only when it is called; everything is destaged at the end."""
    with threadless(path, options) as store:
        yield store
        settle(store)


def tend(store: Store) -> None:
    while store.tend():
        pass


def settle(store: Store) -> None:
    """Everything that is hot is in chunks afterwards."""
    while store.destage():
        pass
    tend(store)


def volume_of(store: Store, name: str) -> Volume:
    volume = store.get(name)
    assert volume is not None, name
    return volume


def write(store: Store, name: str, offset: int, data: bytes) -> None:
    """Write to a volume of a `filling` store, destaging when the journal wants it."""
    for at in range(0, len(data), PIECE):
        status = store.status()
        if status.journal_bytes > status.journal_limit // 4:
            settle(store)
        tend(store)
        submit(volume_of(store, name), Request(OP_WRITE, offset + at, *_piece(data, at)))


def _piece(data: bytes, at: int) -> tuple[int, bytes]:
    piece = data[at : at + PIECE]
    return len(piece), piece


def submit(device: Device, request: Request) -> None:
    """Submit one request and wait for it. OSError."""
    done = threading.Event()
    device.submit([request], lambda _: done.set())
    if not done.wait(WAIT_S):
        raise TimeoutError(f"a request was not finished in {WAIT_S} s")
    if request.error:
        raise OSError(request.error, request.message or "request failed")


def read(device: Device, offset: int, length: int) -> bytes:
    request = Request(OP_READ, offset, length)
    submit(device, request)
    return bytes(request.data)  # type: ignore[arg-type]


def wait_until_destaged(store: Store) -> None:
    """Of a store with threads: everything that is hot now is in chunks."""
    deadline = time.monotonic() + WAIT_S
    while store.status().hot_bytes:
        if time.monotonic() > deadline:
            raise TimeoutError(f"not destaged after {WAIT_S} s: {store.status()}")
        time.sleep(0.1)


def in_child(call: Callable[..., None], *arguments: Any) -> None:
    """Run `call` in a process of its own, which keeps its memory and locks to itself."""
    process = multiprocessing.get_context("spawn").Process(target=call, args=arguments)
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"{call.__name__} failed with status {process.exitcode}")


def stored_bytes(path: Path) -> int:
    """What packs, index and names take on the disk; the journal, which is a ring, is not in it."""
    folders = (path / "packs", path / "index", path / "meta")
    files = (file for folder in folders for file in folder.iterdir())
    return sum(file.stat().st_blocks * 512 for file in files)


def drop_cache(path: Path) -> None:
    """Have the next reads of packs and index come from the disk."""
    for file in (*(path / "packs").iterdir(), *(path / "index").iterdir()):
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fdatasync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
