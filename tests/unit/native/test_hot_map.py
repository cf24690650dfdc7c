"""What the destager and the reader ask of a volume's hot maps, against a dict of sectors."""

import errno
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from native import (
    CHUNK_DECODED,
    CHUNK_HOLE,
    CHUNK_RAW,
    OP_READ,
    OP_UNMAP,
    PLACE_DATA,
    PLACE_REFER,
    PLACE_ZERO,
    REFERRED,
    PackFile,
    ReadFault,
    Request,
    VolumeCore,
    crc32c_pages,
)
from native.reference import HotMap
from tests.unit.native.rig import MemoryFile, Rig
from volume.builder import frozen_runs

SIZE = 256 * 1024
LARGEST = 1 << 62  # bytes that any volume may have
SECTORS = SIZE // 512


@dataclass(frozen=True, slots=True)
class Step:
    """One change: a byte to fill the range with, or None to unmap it."""

    first: int  # sector
    count: int
    byte: int | None


steps = st.lists(
    st.builds(
        Step,
        st.integers(0, SECTORS - 1),
        st.one_of(st.integers(1, 20), st.integers(1, SECTORS)),
        st.one_of(st.none(), st.integers(1, 255)),
    ),
    max_size=12,
)
ranges = st.tuples(st.integers(0, SECTORS), st.integers(0, SECTORS)).map(
    lambda pair: (min(pair) * 512, (max(pair) - min(pair)) * 512)
)
chunk_sizes = st.sampled_from([4096, 16384, 65536])


def run(rig: Rig, model: HotMap, changes: list[Step]) -> None:
    for step in changes:
        offset = step.first * 512
        length = min(step.count, SECTORS - step.first) * 512
        if step.byte is None:
            rig.submit(Request(OP_UNMAP, offset, length))
            model.unmap(offset, length)
        else:
            data = bytes([step.byte]) * length
            rig.write(offset, data)
            model.write(offset, data)


def layered(chunk_size: int, below: list[Step], above: list[Step]) -> tuple[Rig, HotMap]:
    rig, model = Rig(size=SIZE, chunk_size=chunk_size), HotMap()
    run(rig, model, below)
    rig.journal.freeze([rig.core])
    model.freeze()
    run(rig, model, above)
    return rig, model


@given(chunk_sizes, steps, steps, ranges)
@settings(max_examples=60, deadline=None)
def test_hot_extents(
    chunk_size: int, below: list[Step], above: list[Step], where: tuple[int, int]
) -> None:
    rig, model = layered(chunk_size, below, above)
    offset, length = where
    kinds: list[int] = []
    at = offset
    for start, run_length, kind in rig.core.hot_extents(offset, length, 1 << 20):
        assert start == at
        assert run_length > 0
        at += run_length
        kinds += [kind] * (run_length // 512)
    assert at == offset + length
    assert kinds == model.kinds(offset, length)


@given(steps, steps, ranges)
@settings(max_examples=60, deadline=None)
def test_reads_see_the_layers(below: list[Step], above: list[Step], where: tuple[int, int]) -> None:
    rig, model = layered(4096, below, above)
    decoded = b"\xee" * 4096
    for index in range(SIZE // 4096):
        rig.core.put_place(index, 0, CHUNK_DECODED, None, 0, 4096, decoded)
    offset, length = where
    assert rig.read(offset, length) == model.read(offset, b"\xee" * length)


@given(chunk_sizes, steps, steps)
@settings(max_examples=60, deadline=None)
def test_frozen_runs(chunk_size: int, below: list[Step], above: list[Step]) -> None:
    rig, model = layered(chunk_size, below, above)
    chunks: dict[int, int] = {}
    end = 0
    for first, count, kind in frozen_runs(rig.core):
        assert first >= end
        assert count > 0
        end = first + count
        chunks.update(dict.fromkeys(range(first, end), kind))
    expected = model.frozen_chunks(chunk_size)
    assert list(chunks) == list(expected)
    for chunk, kind in chunks.items():
        assert (
            expected[chunk] or kind == PLACE_DATA
        )  # what is called zero is; two halves need not be found


def test_one_unmap_is_one_zero_run() -> None:
    rig = Rig(size=SIZE)
    rig.submit(Request(OP_UNMAP, 512, 40 * 4096))
    rig.journal.freeze([rig.core])
    assert list(frozen_runs(rig.core)) == [
        (0, 1, PLACE_DATA),
        (1, 39, PLACE_ZERO),
        (40, 1, PLACE_DATA),
    ]


@given(chunk_sizes, steps, steps, ranges)
@settings(max_examples=60, deadline=None)
def test_overlay_and_covers(
    chunk_size: int, below: list[Step], above: list[Step], where: tuple[int, int]
) -> None:
    rig, model = layered(chunk_size, below, above)
    offset, length = where
    data = bytearray(b"\xdd" * length)
    rig.core.overlay_frozen(offset, data)
    assert data == model.overlay_frozen(offset, b"\xdd" * length)
    assert rig.core.frozen_covers(offset, length) == model.frozen_covers(offset, length)
    rig.core.commit(1)
    model.commit()
    assert list(frozen_runs(rig.core)) == []
    assert rig.core.frozen_covers(offset, length) is False
    hot = sum(run for _, run, kind in rig.core.hot_extents(0, SIZE, 1 << 20) if kind == 0)
    assert rig.core.state()[3] == hot


def test_hot_extents_stop_at_the_limit() -> None:
    rig = Rig(size=SIZE)
    for at in range(0, 64 * 1024, 1024):
        rig.write(at, b"x" * 512)
    assert rig.core.hot_extents(0, SIZE, 0) == []
    for limit in (1, 2, 5, 64):
        found = rig.core.hot_extents(512, SIZE - 512, limit)
        assert limit <= len(found) <= limit + 1
        assert found[0] == (512, 512, -1)
    assert rig.core.hot_extents(4096, 0, 5) == []


def test_ranges_are_checked() -> None:
    rig = Rig(size=SIZE - 512, chunk_size=4096)
    rig.journal.freeze([rig.core])
    rig.core.overlay_frozen(SIZE - 4096, bytearray(4096))  # the last chunk is filled up
    for offset, length in ((SIZE, 1), (SIZE - 1, 2), (0, (1 << 64) - 1), ((1 << 64) - 1, 1)):
        with pytest.raises(ValueError, match="past the end"):
            rig.core.missing(offset, length)
    for offset, length in ((LARGEST, 1), (LARGEST - 1, 2), (0, (1 << 64) - 1), ((1 << 64) - 1, 1)):
        with pytest.raises(ValueError, match="past the end"):
            rig.core.frozen_covers(offset, length)
        with pytest.raises(ValueError, match="past the end"):
            rig.core.hot_extents(offset, length, 5)
    with pytest.raises(ValueError, match="past the end"):
        rig.core.overlay_frozen(LARGEST - 100, bytearray(101))
    with pytest.raises((TypeError, BufferError)):
        rig.core.overlay_frozen(0, bytes(10))


def test_the_overlay_releases_its_buffer() -> None:
    rig = Rig()
    data = bytearray(4096)
    rig.core.overlay_frozen(0, data)
    data.append(1)
    with pytest.raises(ValueError, match="past the end"):
        rig.core.overlay_frozen(LARGEST, data)
    data.append(1)


def test_hot_maps_are_read_beyond_the_end_of_a_volume_that_was_shrunk() -> None:
    """The round that froze it still makes the larger version of it."""
    rig = Rig()
    rig.write(SIZE - 4096, b"x" * 4096)
    rig.journal.freeze([rig.core])
    rig.core.resize(4096)
    assert rig.core.hot_extents(4096, LARGEST - 4096, 5) == [
        (4096, SIZE - 8192, -1),
        (SIZE - 4096, 4096, 0),
        (SIZE, LARGEST - SIZE, -1),
    ]
    assert rig.core.frozen_covers(SIZE - 4096, 4096)
    data = bytearray(4096)
    rig.core.overlay_frozen(SIZE - 4096, data)
    assert data == b"x" * 4096


def test_missing_is_bounded() -> None:
    rig = Rig(size=8 << 20)
    assert rig.core.missing(0, 8 << 20) == list(range(1024))
    assert rig.core.missing(4096 * 7, 1) == [7]
    rig.core.put_place(7, 0, CHUNK_HOLE, None, 0, 4096, b"")
    assert rig.core.missing(4096 * 7, 4097) == [8]


def test_put_place_wants_the_generation() -> None:
    rig = Rig()
    assert rig.core.put_place(0, 1, CHUNK_HOLE, None, 0, 4096, b"") is False
    assert rig.core.put_place(0, 0, CHUNK_HOLE, None, 0, 4096, b"") is True
    assert rig.read(0, 4096) == bytes(4096)
    rig.write(0, b"a" * 512)
    rig.journal.freeze([rig.core])
    rig.core.commit(1)
    assert rig.core.missing(0, 512) == [0]
    assert rig.core.put_place(0, 0, CHUNK_HOLE, None, 0, 4096, b"") is False
    assert rig.core.put_place(0, 1, CHUNK_HOLE, None, 0, 4096, b"") is True


@pytest.mark.parametrize(
    ("kind", "with_pack", "length", "payload"),
    [
        (CHUNK_HOLE, True, 4096, b""),
        (CHUNK_HOLE, False, 4096, b"x"),
        (CHUNK_RAW, False, 4096, b"1234"),
        (CHUNK_RAW, True, 4096, b"123"),
        (CHUNK_RAW, True, 4097, b"1234"),
        (CHUNK_DECODED, True, 4, b"1234"),
        (CHUNK_DECODED, False, 5, b"1234"),
        (3, False, 4096, b""),
        (255, False, 4096, b""),
    ],
)
def test_put_place_checks_its_arguments(
    kind: int, with_pack: bool, length: int, payload: bytes
) -> None:
    rig = Rig()
    pack = PackFile(MemoryFile(), 5) if with_pack else None
    with pytest.raises(OSError, match="Invalid argument") as caught:
        rig.core.put_place(0, 0, kind, pack, 0, length, payload)
    assert caught.value.errno == errno.EINVAL
    assert rig.table.stats()[0] == 0


def test_put_place_of_something_else_than_a_pack() -> None:
    rig = Rig()
    with pytest.raises(OSError, match="Invalid argument"):
        rig.core.put_place(0, 0, CHUNK_RAW, object(), 0, 4096, b"1234")  # type: ignore[arg-type]


def raw(rig: Rig, file: MemoryFile, data: bytes, at: int = 100) -> None:
    file.image[at : at + len(data)] = data
    pack = PackFile(file, 5)
    assert rig.core.put_place(0, 0, CHUNK_RAW, pack, at, len(data), crc32c_pages(data))


def cold_read(core: VolumeCore, offset: int, length: int) -> Request:
    request = Request(OP_READ, offset, length)
    _, waiting, _, _ = core.submit([request], 1)
    assert waiting == [request]
    return request


def test_raw_chunks_and_their_faults() -> None:
    rig, file = Rig(chunk_size=16384), MemoryFile()
    data = bytes(at // 64 % 256 for at in range(16384))
    raw(rig, file, data)
    assert rig.read(1, 16000) == data[1:16001]
    file.image[100 + 8192] ^= 1
    request = cold_read(rig.core, 512, 12000)
    with pytest.raises(ReadFault) as caught:
        rig.core.fill(request, 0, 12000)
    assert caught.value.args == (8192, 5, 100 + 8192, True)
    rig.table.drop_pack(5)
    assert rig.core.fill(request, 0, 12000) is False
    assert rig.core.missing(0, 16384) == [0]


def test_a_fault_in_the_journal() -> None:
    rig = Rig()
    rig.write(4096, b"j" * 8192)
    place = rig.files[0].image.find(b"j" * 100)
    rig.files[0].image[place + 4096] ^= 1
    with pytest.raises(ReadFault) as caught:
        rig.core.fill(cold_read(rig.core, 4096, 8192), 0, 8192)
    assert caught.value.args == (8192, 0, place + 4096, False)
    rig.journal.freeze([rig.core])
    with pytest.raises(ReadFault):
        rig.core.overlay_frozen(4096, bytearray(8192))


@pytest.mark.parametrize("error", [OSError(errno.EIO, "x"), ValueError("y"), KeyboardInterrupt()])
def test_a_file_that_raises(error: BaseException) -> None:
    rig, file = Rig(), MemoryFile()
    raw(rig, file, bytes(4096))
    file.error = error
    request = cold_read(rig.core, 0, 4096)
    file.error = error
    with pytest.raises(ReadFault):
        rig.core.fill(request, 0, 4096)
    assert rig.core.fill(request, 0, 4096) is True


@pytest.mark.parametrize("answer", [None, "text", bytearray(4096), bytes(4097), bytes(4095)])
def test_a_file_that_answers_strangely(answer: object) -> None:
    class Strange(MemoryFile):
        def pread(self, length: int, offset: int) -> bytes:
            return answer  # type: ignore[return-value]

    rig = Rig()
    raw(rig, Strange(), bytes(4096))
    with pytest.raises(ReadFault):
        rig.core.fill(cold_read(rig.core, 0, 4096), 0, 4096)


def test_a_retired_volume() -> None:
    rig = Rig()
    rig.write(0, b"r" * 512)
    waiting = cold_read(rig.core, 8192, 512)
    rig.core.retire()
    request = Request(OP_READ, 0, 512)
    assert rig.submit(request) == (1, 0, 0, 0)
    assert (request.error, request.data) == (errno.ESHUTDOWN, None)
    with pytest.raises(OSError, match="shutdown") as caught:
        rig.core.fill(waiting, 0, 512)
    assert caught.value.errno == errno.ESHUTDOWN


@pytest.mark.parametrize("number", [-1, 1 << 31, 1 << 40, 1 << 80])
def test_what_is_no_file_descriptor(number: int) -> None:
    with pytest.raises((ValueError, OverflowError)):
        PackFile(number, 1)
    with pytest.raises(OSError, match="Bad file descriptor"):
        PackFile(1 << 30, 1)


# -- ranges that refer to a tree

ROOT = bytes(range(32))


def refer(rig: Rig, first: int, count: int, source: int, root: bytes = ROOT) -> int:
    """In chunks; the lsn."""
    size = rig.chunk_size
    return rig.core.refer(first * size, count * size, root, 2, source * size, rig.now_ns)


def test_refer_is_one_record_with_a_seq() -> None:
    rig = Rig(size=SIZE)
    rig.write(0, b"a" * 512)
    lsn = refer(rig, 1, 40, 7)
    assert (lsn, rig.core.state()[0]) == (rig.journal.state()[0], 2)
    assert rig.core.hot_extents(0, 64 * 4096, 9) == [
        (0, 512, PLACE_DATA),
        (512, 4096 - 512, -1),
        (4096, 40 * 4096, PLACE_REFER),
        (41 * 4096, 23 * 4096, -1),
    ]
    assert rig.core.referred(0) is None
    assert rig.core.referred(1) == (2, ROOT, 2, 7)
    assert rig.core.referred(40) == (2, ROOT, 2, 46)
    assert rig.core.referred(41) is None
    assert rig.core.missing(0, 3 * 4096) == [0, 1 | REFERRED, 2 | REFERRED]


def test_frozen_runs_that_refer_are_whole_chunks_of_one_record() -> None:
    rig = Rig(size=SIZE)
    refer(rig, 0, 8, 100)
    refer(rig, 8, 2, 0, b"r" * 32)
    rig.write(2 * 4096 + 512, b"a" * 512)
    rig.submit(Request(OP_UNMAP, 5 * 4096, 4096))
    rig.journal.freeze([rig.core])
    assert list(frozen_runs(rig.core)) == [
        (0, 2, PLACE_REFER),
        (2, 1, PLACE_DATA),
        (3, 2, PLACE_REFER),
        (5, 1, PLACE_ZERO),
        (6, 2, PLACE_REFER),
        (8, 2, PLACE_REFER),
    ]
    assert rig.core.frozen_referred(2) == (1, ROOT, 2, 102)
    assert rig.core.frozen_referred(5) is None
    assert rig.core.frozen_referred(9) == (2, b"r" * 32, 2, 1)
    assert not rig.core.frozen_covers(0, 4096)
    assert not rig.core.frozen_covers(2 * 4096, 4096)
    assert rig.core.frozen_covers(2 * 4096 + 512, 512)
    refer(rig, 3, 1, 9)
    assert rig.core.referred(3) == (5, ROOT, 2, 9)
    assert rig.core.frozen_referred(3) == (1, ROOT, 2, 103)


def test_place_of_what_is_referred_to_no_more_is_not_taken() -> None:
    rig = Rig(size=SIZE)
    place = (CHUNK_DECODED, None, 0, 4096)
    assert not rig.core.put_place(3 | REFERRED, 1, *place, b"x" * 4096)
    refer(rig, 3, 1, 0)
    assert rig.core.put_place(3 | REFERRED, 1, *place, b"x" * 4096)
    assert rig.read(3 * 4096, 4096) == b"x" * 4096
    refer(rig, 3, 1, 1)
    assert rig.core.missing(3 * 4096, 4096) == [3 | REFERRED]
    assert not rig.core.put_place(3 | REFERRED, 1, *place, b"x" * 4096)
    assert rig.core.put_place(3 | REFERRED, 2, *place, b"y" * 4096)
    assert rig.read(3 * 4096 + 5, 100) == b"y" * 100
    rig.write(3 * 4096, b"z" * 4096)
    assert not rig.core.put_place(3 | REFERRED, 2, *place, b"x" * 4096)


@pytest.mark.parametrize(
    ("offset", "length", "root", "height", "source"),
    [
        (512, 4096, ROOT, 1, 0),
        (0, 512, ROOT, 1, 0),
        (0, 4096, ROOT, 1, 512),
        (0, 0, ROOT, 1, 0),
        (0, 4096, ROOT[1:], 1, 0),
        (0, 4096, ROOT, 0, 0),
        (0, 4096, ROOT, 9, 0),
        (0, 4096, ROOT, 1, (1 << 64) - 4096),
    ],
)
def test_refer_takes_whole_chunks(
    offset: int, length: int, root: bytes, height: int, source: int
) -> None:
    rig = Rig(size=SIZE)
    with pytest.raises(ValueError, match="whole chunks"):
        rig.core.refer(offset, length, root, height, source, 0)
    assert rig.journal.state()[0] == 0


def test_refer_past_the_end_or_retired() -> None:
    rig = Rig(size=SIZE)
    with pytest.raises(OSError, match="Invalid argument"):
        refer(rig, SIZE // 4096 - 1, 2, 0)
    with pytest.raises(ValueError, match="past the end"):
        rig.core.referred(1 << 60)
    rig.core.retire()
    with pytest.raises(OSError, match="shutdown"):
        refer(rig, 0, 1, 0)
