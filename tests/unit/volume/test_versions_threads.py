"""Versions of a real store, on real files, with all of its threads: everything at the same time.

One thread writes, the others name, open, clone, restore and compare versions, while rounds, gc and
the window's end come many times a second. Each looks at the bytes of what it got. At the end the
store is opened again, and shows the same.
"""

import contextlib
import logging
import random
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from blockd.device import BlockDevice
from native import OP_READ, OP_WRITE, Request
from volume.errors import NoSuchVersion, VersionsBusy
from volume.options import StoreOptions
from volume.store import Store
from volume.usage import PacksMoving
from volume.volume import Volume

KIB = 1024
SEGMENT = 64 * KIB
SIZE = 64 * KIB
CHUNK = 4 * KIB
SECONDS = 4.0
ANSWER_S = 30.0  # within which a request has to be answered, however busy the machine is
KEPT = 6  # snapshots that are there at a time

OPTIONS = StoreOptions(
    journal_limit=8 * SEGMENT,
    segment_bytes=SEGMENT,
    pack_bytes=256 * KIB,
    reserve_bytes=0,
    destage_age_s=0.05,
    destage_idle_s=0.02,
    gc_interval_s=0.05,
    gc_condemn_s=0.0,
    window_bytes=16 * SEGMENT,
    window_s=600,
    history_keep="60s",
)


def answered(device: BlockDevice, request: Request) -> Request:
    """Submit, and wait as a connection does."""
    done = threading.Event()
    device.submit([request], lambda _: done.set())
    assert done.wait(ANSWER_S), "a request hangs"
    assert request.error == 0, (request.error, request.message)
    return request


def read(device: BlockDevice) -> bytes:
    data = answered(device, Request(OP_READ, 0, device.size)).data
    assert isinstance(data, (bytes, bytearray))
    return bytes(data)


class Crowd:
    """The threads' common knowledge of volume "v"; each method but the first is one thread's."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.lock = threading.Lock()  # what is below
        self.states = {0: bytes(SIZE)}
        self.snapshots: dict[str, bytes] = {}
        self.made = 0

    def volume(self, name: str = "v") -> BlockDevice:
        volume = self.store.get(name)
        assert volume is not None
        return volume

    def newest(self) -> bytes:
        return self.states[max(self.states)]

    def some_seq(self, rng: random.Random) -> tuple[int, bytes]:
        with self.lock:
            seq = rng.choice(list(self.states)[-200:])
            return seq, self.states[seq]

    def show(self, ref: str, expected: bytes) -> None:
        """Open a version and look at it twice, unless it is not there any more."""
        try:
            device = self.store.open_version(f"v@{ref}")
        except (NoSuchVersion, VersionsBusy):
            return
        device.attach("reader")
        try:
            for _ in range(2):
                assert read(device) == expected, f"{ref} has other bytes"
        finally:
            device.detach("reader")

    def write(self, rng: random.Random) -> None:
        with self.lock:
            at = rng.randrange(SIZE // 512 - 8) * 512
            data = rng.randbytes(512) * rng.choice((1, 1, 2, 8))
            answered(self.volume(), Request(OP_WRITE, at, len(data), data))
            old = self.newest()
            seq = self.store.info("v").seq
            self.states[seq] = old[:at] + data + old[at + len(data) :]
        time.sleep(0.001)

    def name(self, rng: random.Random) -> None:
        with self.lock:
            self.made += 1
            name = f"s{self.made}"
            (info,) = self.store.snapshots.create(name, ["v"], sync=rng.random() < 0.3)
            assert info.seq == max(self.states)
            self.snapshots[name] = self.newest()
            old = list(self.snapshots)[:-KEPT]
            for each in old:
                del self.snapshots[each]
        for each in old:
            self.store.snapshots.delete("v", each)
        time.sleep(0.01)

    def open(self, rng: random.Random) -> None:
        seq, expected = self.some_seq(rng)
        self.show(f"seq:{seq}", expected)

    def open_snapshot(self, rng: random.Random) -> None:
        with self.lock:
            names = list(self.snapshots.items())
        if names:
            self.show(*rng.choice(names))
        time.sleep(0.001)

    def restore(self, rng: random.Random) -> None:
        time.sleep(0.1)
        seq, expected = self.some_seq(rng)
        with self.lock, contextlib.suppress(NoSuchVersion):
            done = self.store.versions.restore("v", f"seq:{seq}")
            self.states[done.volume.seq] = expected
            if not done.had_name:  # else it is one of those that others look at
                self.store.snapshots.delete("v", done.kept)
            assert read(self.volume()) == expected, f"what seq:{seq} was restored to"

    def clone(self, rng: random.Random) -> None:
        seq, expected = self.some_seq(rng)
        with contextlib.suppress(NoSuchVersion):
            self.store.versions.clone(f"v@seq:{seq}", "twin")
            twin = self.volume("twin")
            assert read(twin) == expected, f"clone of seq:{seq}"
            answered(twin, Request(OP_WRITE, 0, 512, b"t" * 512))
            time.sleep(0.03)
            assert read(twin) == b"t" * 512 + expected[512:], f"clone of seq:{seq}, a round later"
            self.store.delete_volume("twin", force=True)

    def share(self, rng: random.Random) -> None:
        """A range of the volume, or of one of its versions, at another place of it."""
        seq, old = self.some_seq(rng)
        volume, source = self.volume(), self.volume()
        if rng.random() < 0.5:
            try:
                source = self.store.open_version(f"v@seq:{seq}")
            except (NoSuchVersion, VersionsBusy):
                return
            source.attach("sharer")
        count = rng.randint(1, 3)
        to, at = (rng.randrange(SIZE // CHUNK - count) * CHUNK for _ in range(2))
        with self.lock, contextlib.suppress(OSError):  # it may have been restored meanwhile
            if source is volume:
                old = self.newest()
            assert isinstance(volume, Volume)
            done = volume.clone_range(to, source, at, count * CHUNK)
            assert done in (0, count * CHUNK)
            if done:
                head = self.newest()
                seq = self.store.info("v").seq
                self.states[seq] = head[:to] + old[at : at + done] + head[to + done :]
        if source is not volume:
            source.detach("sharer")
        time.sleep(0.01)

    def compare(self, rng: random.Random) -> None:
        (old, before), (new, after) = self.some_seq(rng), self.some_seq(rng)
        with contextlib.suppress(NoSuchVersion):
            found = self.store.versions.diff(f"v@seq:{old}", f"v@seq:{new}")
            said = {
                chunk
                for offset, length in found.extents
                for chunk in range(offset // CHUNK, -(-(offset + length) // CHUNK))
            }
            for chunk in range(SIZE // CHUNK):
                part = slice(chunk * CHUNK, (chunk + 1) * CHUNK)
                assert chunk in said or before[part] == after[part], f"diff misses chunk {chunk}"

    def look(self, rng: random.Random) -> None:
        self.store.versions.log("v", limit=50, writes=rng.random() < 0.5)
        self.store.snapshots.all()
        self.store.gc_status()
        with contextlib.suppress(PacksMoving):
            self.store.space()
        time.sleep(0.05)


def all_at_once(steps: list[Callable[[random.Random], None]]) -> list[str]:
    """Each step again and again, on its own thread; what went wrong."""
    failures: list[str] = []
    until = time.monotonic() + SECONDS

    def again(step: Callable[[random.Random], None]) -> None:
        rng = random.Random(zlib.crc32(step.__name__.encode()))
        try:
            while time.monotonic() < until and not failures:
                step(rng)
        except Exception as error:
            failures.append(f"{step.__name__}: {error!r}")

    threads = [threading.Thread(target=again, args=(step,)) for step in steps]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return failures


def test_everything_at_the_same_time(data_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = Store.open(data_dir, OPTIONS)
    try:
        store.create_volume("v", SIZE, chunk_size=CHUNK)
        crowd = Crowd(store)
        with caplog.at_level(logging.ERROR):
            failures = all_at_once(
                [
                    crowd.write,
                    crowd.name,
                    crowd.open,
                    crowd.open_snapshot,
                    crowd.restore,
                    crowd.clone,
                    crowd.share,
                    crowd.compare,
                    crowd.look,
                ]
            )
        assert failures == []
        assert caplog.text == ""  # none of the store's own threads had anything to complain about
        assert len(crowd.states) > 50
        assert store.status().state == "ok"
    finally:
        store.close()
    crowd.store = Store.open(data_dir, OPTIONS)
    try:
        assert read(crowd.volume()) == crowd.newest()
        assert {info.name for info in crowd.store.snapshots.all("v")} == set(crowd.snapshots)
        for name, expected in crowd.snapshots.items():
            crowd.show(name, expected)
        for seq in list(crowd.states)[-40:]:
            crowd.show(f"seq:{seq}", crowd.states[seq])
    finally:
        crowd.store.close()
