"""Nothing leaks: Python objects, native memory, descriptors."""

import contextlib
import gc
import os
import sys
import tracemalloc
import weakref
from pathlib import Path

import pytest

from native import (
    CHUNK_DECODED,
    OP_FLUSH,
    OP_READ,
    OP_UNMAP,
    OP_WRITE,
    Journal,
    PackFile,
    PlaceTable,
    Request,
    decode_segment_header,
)
from native.reference import SegmentHeader
from tests.unit.native.rig import SEGMENT_BYTES, STORE_UUID, MemoryFile, Rig
from volume.builder import frozen_runs


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def everything_once(rig: Rig, generation: int) -> None:
    """Writes, reads of each kind, errors, a whole destage round."""
    data = bytes(65536)
    for at in range(8):
        rig.submit(
            Request(OP_WRITE, at * 65536, 65536, data),
            Request(OP_READ, at * 65536, 65536),
            Request(OP_UNMAP, at * 65536, 4096),
            Request(OP_FLUSH),
            Request(OP_READ, 1 << 60, 1),
        )
        with contextlib.suppress(ValueError):
            rig.submit(Request(OP_WRITE, 0, 1, b""), Request(OP_READ, 0, 65536))
    rig.core.hot_extents(0, rig.size, 1000)
    cut, _ = rig.journal.freeze([rig.core])
    for first, _, _ in frozen_runs(rig.core):
        buffer = bytearray(rig.chunk_size)
        rig.core.overlay_frozen(first * rig.chunk_size, buffer)
    rig.journal.sync()
    rig.core.commit(generation)
    rig.core.put_place(0, generation, CHUNK_DECODED, None, 0, 65536, data)
    for slot in rig.journal.release(cut[0]):
        rig.journal.recycle(slot)
    decode_segment_header(SegmentHeader(STORE_UUID, 1, 2, 3, 4, 5, 6, 7).encode())
    rig.journal.state()
    rig.core.state()
    rig.core.missing(0, rig.size)


def test_python_objects() -> None:
    rig = Rig(chunk_size=65536)
    for generation in range(1, 5):
        everything_once(rig, generation)
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for generation in range(5, 105):
            everything_once(rig, generation)
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert grown < 50_000  # one Request lost in each submit would be 72,000


def test_native_memory() -> None:
    """Each turn goes through 512 KiB of data in requests; a leak of any of it shows."""
    rig = Rig(chunk_size=65536)
    for generation in range(1, 20):
        everything_once(rig, generation)
    before = resident_bytes()
    for generation in range(20, 120):
        everything_once(rig, generation)
    assert resident_bytes() - before < 8 << 20


def test_whole_stores() -> None:
    for generation in range(5):
        everything_once(Rig(chunk_size=65536), 1 + generation)
    gc.collect()
    before = resident_bytes()
    for _ in range(25):
        everything_once(Rig(chunk_size=65536), 1)
    assert resident_bytes() - before < 16 << 20  # a rig's files alone are 4 MiB


def test_simulated_files_are_let_go() -> None:
    rig = Rig()
    rig.write(0, b"x" * 512)
    gone = [weakref.ref(file) for file in rig.files]
    pack_file = MemoryFile()
    gone.append(weakref.ref(pack_file))
    pack = PackFile(pack_file, 1)
    before = sys.getrefcount(pack_file)
    del pack
    assert sys.getrefcount(pack_file) == before - 1
    del rig, pack_file
    assert [ref() for ref in gone] == [None] * 5


def test_a_refused_file_is_let_go() -> None:
    journal, file = Journal(STORE_UUID, SEGMENT_BYTES, 1), MemoryFile()
    before = sys.getrefcount(file)
    for slot in (70000, 1 << 31) * 3:
        with pytest.raises(OSError, match="Invalid argument"):
            journal.add_ready(slot, file)
        with pytest.raises(OSError, match="Invalid argument"):
            journal.adopt(slot, file, 1)
    assert sys.getrefcount(file) == before


def test_descriptors_are_duplicated_and_closed(tmp_path: Path) -> None:
    path = tmp_path / "segment"
    path.write_bytes(bytes(SEGMENT_BYTES))
    fd = os.open(path, os.O_RDWR)
    count = len(os.listdir("/proc/self/fd"))
    journal = Journal(STORE_UUID, SEGMENT_BYTES, 1)
    journal.add_ready(0, fd)
    pack = PackFile(fd, 1)
    assert len(os.listdir("/proc/self/fd")) == count + 2
    for slot in (0, 70000):
        with pytest.raises(OSError, match=r"exists|Invalid"):
            journal.add_ready(slot, fd)
    assert len(os.listdir("/proc/self/fd")) == count + 2
    del journal, pack
    assert len(os.listdir("/proc/self/fd")) == count
    os.close(fd)


def test_real_files(tmp_path: Path) -> None:
    """The descriptor path: pwritev, RWF_NOWAIT reads, fdatasync."""
    path = tmp_path / "segment"
    path.write_bytes(bytes(SEGMENT_BYTES))
    fd = os.open(path, os.O_RDWR)
    rig = Rig(segments=0)
    rig.journal.add_ready(0, fd)
    os.close(fd)
    batch = [Request(OP_WRITE, at * 1536, 1536, bytes([at]) * 1536) for at in range(200)]
    assert rig.submit(*batch) == (200, 0, 0, 0)
    rig.journal.sync()
    for at in range(200):
        assert rig.read(at * 1536, 1536) == bytes([at]) * 1536
    assert b"\x07" * 1536 in path.read_bytes()


def test_the_table_keeps_its_budget() -> None:
    rig = Rig(size=64 << 20, chunk_size=65536, table_limit=1 << 20)
    for index in range(1000):
        rig.core.put_place(index, 0, CHUNK_DECODED, None, 0, 65536, bytes(65536))
    entries, used, limit, hits, misses = rig.table.stats()
    assert limit == 1 << 20
    assert 0 < used <= limit
    assert entries == 15
    assert (hits, misses) == (0, 0)
    rig.table.drop_volume(1)
    assert rig.table.stats()[:2] == (0, 0)
    assert PlaceTable(0).stats() == (0, 0, 0, 0, 0)
