"""VolumeCore.submit: which list a request lands in, its errno, and who owns which buffer."""

import errno
import sys
import threading
from array import array

import pytest

from native import (
    FLAG_FUA,
    FLAG_IF_SEQ,
    OP_BLOCK_STATUS,
    OP_CACHE,
    OP_FLUSH,
    OP_READ,
    OP_UNMAP,
    OP_WRITE,
    OP_WRITE_ZEROES,
    Request,
    VolumeCore,
)
from tests.unit.native.rig import Rig

SIZE = 1 << 20


@pytest.mark.parametrize(
    ("op", "code"),
    [
        (OP_READ, errno.EINVAL),
        (OP_WRITE, errno.ENOSPC),
        (OP_UNMAP, errno.EINVAL),
        (OP_WRITE_ZEROES, errno.ENOSPC),
        (OP_CACHE, errno.EINVAL),
        (OP_BLOCK_STATUS, errno.EINVAL),
    ],
)
@pytest.mark.parametrize(
    ("offset", "length"),
    [
        (SIZE, 1),
        (SIZE - 1, 2),
        (SIZE + 1, 0),
        (0, SIZE + 1),
        ((1 << 64) - 1, 1),
        ((1 << 64) - 1, (1 << 64) - 1),
        (512, (1 << 64) - 512),
    ],
)
def test_ranges_past_the_end(op: int, code: int, offset: int, length: int) -> None:
    rig = Rig(size=SIZE)
    request = Request(op, offset, length, b"")
    assert rig.submit(request) == (1, 0, 0, 0)
    assert request.error == code
    assert rig.journal.state()[0] == 0  # nothing was appended


def test_an_unknown_op() -> None:
    rig = Rig()
    request = Request(99, 0, 512)
    assert rig.submit(request) == (1, 0, 0, 0)
    assert request.error == errno.EINVAL


@pytest.mark.parametrize("op", [OP_READ, OP_WRITE, OP_UNMAP, OP_WRITE_ZEROES, OP_CACHE])
def test_nothing_to_do_is_done(op: int) -> None:
    rig = Rig(size=SIZE)
    for offset in (0, SIZE):
        request = Request(op, offset, 0, b"")
        assert rig.submit(request) == (1, 0, 0, 0)
        assert request.error == 0
        assert op != OP_READ or request.data == b""


def test_an_empty_batch() -> None:
    rig = Rig()
    assert rig.core.submit([], 1) == ([], [], [], [])
    assert rig.core.submit((), 1) == ([], [], [], [])


def test_which_list() -> None:
    rig = Rig(size=32 << 20)
    done = Request(OP_WRITE, 0, 512, b"x" * 512)
    fua = Request(OP_WRITE, 512, 512, b"y" * 512, FLAG_FUA)
    hot = Request(OP_READ, 0, 1024)
    cold = Request(OP_READ, 8192, 512)
    status = Request(OP_BLOCK_STATUS, 0, 512)
    long = Request(OP_READ, 0, (4 << 20) + 1)
    flush = Request(OP_FLUSH)
    batch = [done, fua, hot, cold, status, long, flush]
    assert rig.core.submit(batch, 1) == ([done, hot], [cold, status, long], [fua, flush], [])
    assert hot.data == b"x" * 512 + b"y" * 512
    assert [request.error for request in batch] == [0] * 7


def test_a_flush_of_nothing_is_done() -> None:
    rig = Rig()
    assert rig.submit(Request(OP_FLUSH)) == (1, 0, 0, 0)
    rig.write(0, bytes(512))
    assert rig.submit(Request(OP_FLUSH)) == (0, 0, 1, 0)
    rig.journal.sync()
    assert rig.submit(Request(OP_FLUSH)) == (1, 0, 0, 0)


def test_writes_wait_for_space_and_trims_use_the_reserve() -> None:
    rig = Rig(segments=2)
    rig.journal.set_limits(1 << 40, 1)
    blocked = 0
    while blocked == 0:
        blocked = rig.submit(Request(OP_WRITE, 0, 65536, bytes(65536)))[3]
    assert rig.journal.state()[3] == 1
    assert rig.submit(Request(OP_UNMAP, 0, 65536)) == (1, 0, 0, 0)
    while rig.journal.state()[3] == 1:
        assert rig.submit(Request(OP_UNMAP, 0, 65536)) == (1, 0, 0, 0)


def test_no_space_left() -> None:
    rig = Rig()
    rig.journal.set_limits(1000, 0)
    first, second = (Request(OP_WRITE, at, 512, bytes(512)) for at in (0, 512))
    assert rig.submit(first, second) == (2, 0, 0, 0)
    assert (first.error, second.error) == (0, errno.ENOSPC)
    trim = Request(OP_UNMAP, 0, 4096)
    assert rig.submit(trim) == (1, 0, 0, 0)
    assert trim.error == 0


@pytest.mark.parametrize("batch", [[None], ["x"], [Request(OP_FLUSH), 1], 5, None])
def test_what_is_no_request(batch: object) -> None:
    rig = Rig()
    with pytest.raises(TypeError):
        rig.core.submit(batch, 1)  # type: ignore[arg-type]


@pytest.mark.parametrize("data", [None, "text", 5, [1, 2]])
def test_a_write_without_bytes(data: object) -> None:
    rig = Rig()
    with pytest.raises(TypeError):
        rig.submit(Request(OP_WRITE, 0, 512, data))  # type: ignore[arg-type]
    assert rig.journal.state()[0] == 0


def test_a_write_whose_data_was_deleted() -> None:
    rig = Rig()
    request = Request(OP_WRITE, 0, 512, bytes(512))
    del request.data
    with pytest.raises(TypeError):
        rig.submit(request)
    read = Request(OP_READ, 0, 0)
    del read.data
    assert rig.submit(read) == (1, 0, 0, 0)
    gone = Request(OP_READ, 8192, 512)
    rig.submit(gone)
    del gone.data
    with pytest.raises(ValueError, match="fill"):
        rig.core.fill(gone, 0, 512)


@pytest.mark.parametrize("size", [0, 511, 513])
def test_a_write_whose_data_has_another_length(size: int) -> None:
    rig = Rig()
    with pytest.raises(ValueError, match=f"512 bytes carries {size}"):
        rig.submit(Request(OP_WRITE, 0, 512, bytes(size)))


def test_a_refused_batch_changes_nothing_and_shows_nothing() -> None:
    rig = Rig()
    data = bytearray(b"z" * 512)
    read = Request(OP_READ, 0, 4096)
    with pytest.raises(TypeError):
        rig.core.submit([read, Request(OP_WRITE, 0, 512, data), None], 1)  # type: ignore[list-item]
    assert read.data is None  # no uninitialised bytes
    assert rig.journal.state()[0] == 0
    data.append(1)  # and the buffer is free


def test_buffers_are_released() -> None:
    rig = Rig()
    data = bytearray(b"q" * 512)
    before = sys.getrefcount(data)
    request = Request(OP_WRITE, 0, 512, data)
    rig.submit(request)
    data.append(1)
    del request
    assert sys.getrefcount(data) == before
    assert rig.read(0, 512) == b"q" * 512
    blocks = memoryview(array("I", range(128)))
    rig.submit(Request(OP_WRITE, 0, 512, blocks))
    assert rig.read(0, 512) == blocks.tobytes()
    blocks.release()


def test_the_same_read_twice_in_a_batch() -> None:
    rig = Rig()
    rig.write(0, b"w" * 65536)
    request = Request(OP_READ, 0, 65536)
    assert rig.submit(request, request) == (2, 0, 0, 0)
    assert request.data == b"w" * 65536


def test_requests_are_not_leaked() -> None:
    rig = Rig()
    requests = [Request(OP_WRITE, 0, 512, bytes(512)), Request(OP_READ, 0, 512)]
    before = [sys.getrefcount(request) for request in requests]
    for _ in range(50):
        rig.core.submit(requests, 1)
    assert [sys.getrefcount(request) for request in requests] == before
    data = requests[1].data
    assert sys.getrefcount(data) == 3  # request, this name, the argument


def test_more_requests_than_fit_on_the_stack() -> None:
    rig = Rig()
    writes = [Request(OP_WRITE, at * 512, 512, bytes([at % 251]) * 512) for at in range(700)]
    assert rig.submit(*writes) == (700, 0, 0, 0)
    reads = [Request(OP_READ, at * 512, 512) for at in range(700)]
    assert rig.submit(*reads) == (700, 0, 0, 0)
    assert [read.data for read in reads] == [write.data for write in writes]


def test_a_list_that_changes_meanwhile() -> None:
    rig = Rig()
    batch = [Request(OP_WRITE, at * 512, 512, bytes(512)) for at in range(200)]
    finish = threading.Event()

    class Meddling(type(rig.files[0])):  # type: ignore[misc]
        def pwrite(self, data: bytes, offset: int) -> int:
            batch.clear()
            finish.set()
            return len(data)

    rig.files[0].__class__ = Meddling
    done, *rest = rig.core.submit(batch, 1)
    assert finish.is_set()
    assert (len(done), rest) == (200, [[], [], []])


def test_resize() -> None:
    rig = Rig(size=SIZE)
    rig.core.resize(SIZE * 2)
    rig.write(SIZE, b"n" * 512)
    rig.core.resize(SIZE)
    request = Request(OP_READ, SIZE, 512)
    rig.submit(request)
    assert request.error == errno.EINVAL
    for size in ((1 << 62) + 1, (1 << 64) - 1):
        with pytest.raises(ValueError, match="size"):
            rig.core.resize(size)
    assert rig.core.state()[2] == SIZE


@pytest.mark.parametrize("chunk_size", [0, 2048, 4097, 12288])
def test_chunk_sizes(chunk_size: int) -> None:
    rig = Rig()
    with pytest.raises(ValueError, match="power of two"):
        VolumeCore(rig.journal, rig.table, 2, 1, chunk_size, SIZE, 0, 0)


def test_fill_takes_reads_only() -> None:
    rig = Rig()
    rig.write(0, b"k" * 512)
    secret = bytes(512)
    with pytest.raises(ValueError, match="fill"):
        rig.core.fill(Request(OP_WRITE, 0, 512, secret), 0, 512)
    assert secret == bytes(512)
    read = Request(OP_READ, 8192, 4096)
    assert rig.submit(read) == (0, 1, 0, 0)
    for start, length in ((4097, 0), (0, 4097), (4096, 1), ((1 << 64) - 1, 2)):
        with pytest.raises(ValueError, match="fill"):
            rig.core.fill(read, start, length)
    assert rig.core.fill(read, 0, 4096) is False


def test_a_conditional_write_is_done_only_while_nothing_was_written_since() -> None:
    rig = Rig(size=SIZE)
    first = Request(OP_WRITE, 0, 512, b"a" * 512)
    assert rig.submit(first) == (1, 0, 0, 0)
    read = Request(OP_READ, 0, 512)
    seq = rig.core.state()[0]
    rig.submit(read)
    late = Request(OP_WRITE, 512, 512, b"b" * 512, FLAG_IF_SEQ)
    late.seq = seq
    other = Request(OP_WRITE_ZEROES, 4096, 512)
    rig.submit(other)
    rig.submit(late)
    assert late.error == errno.ECANCELED
    late.seq = rig.core.state()[0]
    rig.submit(late)
    assert late.error == 0
    assert rig.core.state()[0] == seq + 2
