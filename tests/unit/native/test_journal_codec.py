"""Segments that C wrote, read by the twin, and the other way round; what damage does to both."""

import errno
import random
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from native import (
    OP_UNMAP,
    OP_WRITE,
    OP_WRITE_ZEROES,
    Journal,
    PlaceTable,
    Request,
    VolumeCore,
    decode_segment_header,
    reference,
    scan_segment,
)
from native.reference import (
    HEAD,
    MARK,
    POINT,
    REFER,
    REFER_PAYLOAD,
    UNMAP,
    WRITE,
    ZERO,
    Record,
    SegmentHeader,
)
from tests.unit.native.rig import STORE_UUID, MemoryFile
from volume.notes import Kind, Note

SEGMENT = 64 * 1024
SIZE = 1 << 20

u32 = st.integers(0, 2**32 - 1)
u64 = st.integers(0, 2**64 - 1)
headers = st.builds(
    SegmentHeader, st.binary(min_size=16, max_size=16), u32, u32, u64, u64, u64, u32, u64
)


class Log:
    """A small journal on files of its own, and what was appended to it."""

    def __init__(self, segments: int = 6) -> None:
        self.files = [MemoryFile(SEGMENT) for _ in range(segments)]
        self.journal = Journal(STORE_UUID, SEGMENT, 3)
        for slot, file in enumerate(self.files):
            self.journal.add_ready(slot, file)
        table = PlaceTable(0)
        self.core = VolumeCore(self.journal, table, 9, 4, 4096, SIZE, 50, 0)
        self.appended: list[tuple[int, int, int, bytes]] = []
        self.now_ns = 10**18

    def append(self, op: int, offset: int, length: int, data: bytes = b"") -> None:
        kinds = {OP_WRITE: WRITE, OP_UNMAP: UNMAP, OP_WRITE_ZEROES: ZERO}
        self.now_ns += 300_000
        done, *_ = self.core.submit([Request(op, offset, length, data)], self.now_ns)
        if done:
            assert done[0].error == 0
            self.appended.append((kinds[op], offset, length, data))

    def refer(self, offset: int, length: int, root: bytes, height: int, source: int) -> None:
        self.now_ns += 300_000
        self.core.refer(offset, length, root, height, source, self.now_ns)
        payload = root + source.to_bytes(8, "little") + bytes([1, height]) + bytes(6)
        self.appended.append((REFER, offset, length, payload))

    def images(self) -> list[bytes]:
        return [bytes(file.image) for file in self.files]


def filled(seed: int, steps: int = 60) -> Log:
    log, source = Log(), random.Random(seed)
    for _ in range(steps):
        offset = 512 * source.randrange(SIZE // 512 - 16)
        length = source.choice([512, 1024, 4096, 5120])
        op = source.choice([OP_WRITE, OP_WRITE, OP_WRITE, OP_UNMAP, OP_WRITE_ZEROES])
        log.append(op, offset, length, source.randbytes(length) if op == OP_WRITE else b"")
        if source.random() < 0.2:
            log.journal.sync()
    return log


@pytest.mark.parametrize("seed", range(3))
def test_the_twin_reads_what_was_appended(seed: int) -> None:
    log = filled(seed)
    log.refer(4096, SIZE - 8192, bytes(range(32)), 3, 1 << 40)
    assert len(log.appended[-1][3]) == REFER_PAYLOAD
    log.journal.append_head(9, 4, 77, b"a head", log.now_ns)
    log.journal.append_mark(log.now_ns + 5)
    found = reference.replay(log.images())
    assert [record.lsn for record, _ in found] == list(range(1, len(found) + 1))
    written = [
        (record.op, record.offset, record.length, payload)
        for record, payload in found
        if record.op in (WRITE, UNMAP, ZERO, REFER)
    ]
    assert written == log.appended
    of_volume = [record for record, _ in found if record.op in (WRITE, UNMAP, ZERO, REFER)]
    assert [record.seq for record in of_volume] == list(range(51, 51 + len(of_volume)))
    assert {(record.volume, record.volume_epoch) for record in of_volume} == {(9, 4)}
    assert {record.node_epoch for record, _ in found} == {3}
    (head, payload), (mark, _) = found[-2:]
    assert (head.op, head.volume, head.volume_epoch, head.seq) == (HEAD, 9, 4, 77)
    assert payload == b"a head"
    assert (mark.op, mark.offset) == (MARK, log.now_ns + 5)
    assert log.journal.cut()[0] == mark.lsn + 1
    assert log.journal.cut()[3] == mark.header_crc


def test_marks_carry_the_store_and_what_is_durable() -> None:
    log = filled(1)
    synced = 0
    marks = [record for record, _ in reference.replay(log.images()) if record.op == MARK]
    assert len(marks) > 5
    for mark in marks:
        assert mark.encode()[40:56] == STORE_UUID
        assert synced <= mark.seq < mark.lsn
        synced = mark.seq


def native_replay(images: list[bytes]) -> tuple[int, int, dict[int, bytes | None]]:
    """As volume.recovery does it: records found, last seq, and the volume's sectors."""
    journal = Journal(STORE_UUID, SEGMENT, 9)
    core = VolumeCore(journal, PlaceTable(0), 9, 4, 4096, SIZE, 50, 0)
    state, records = (1, 0, 0, 4096), 0
    for slot, header in in_order(images):
        if (header.first_lsn, header.chain) != state[:2]:
            continue
        file = MemoryFile(SEGMENT)
        file.image[:] = images[slot]
        journal.adopt(slot, file, header.sequence)
        new_state, found, *_ = journal.replay(slot, (*state[:3], 4096), {9: core})
        state = (new_state[0], new_state[1], new_state[2], new_state[3])
        records += found
    sectors: dict[int, bytes | None] = {}
    for start, length, kind in core.hot_extents(0, SIZE, 1 << 20):
        if kind == 1:
            sectors.update(dict.fromkeys(range(start // 512, (start + length) // 512)))
        elif kind == 0:
            request = Request(0, start, length)
            _, waiting, _, _ = core.submit([request], 1)
            assert not waiting or core.fill(request, 0, length)
            data = request.data
            assert isinstance(data, bytes)
            for at in range(0, length, 512):
                sectors[(start + at) // 512] = data[at : at + 512]
    return records, core.state()[0], sectors


def native_scan(images: list[bytes]) -> list[object]:
    """What `scan_segment` says of each segment that goes on where another ended."""
    said: list[object] = []
    state = (1, 0, 0, 4096)
    for slot, header in in_order(images):
        if (header.first_lsn, header.chain) != state[:2]:
            continue
        file = MemoryFile(SEGMENT)
        file.image[:] = images[slot]
        state, *found = scan_segment(file, SEGMENT, (*state[:3], 4096))
        said.append((state[:3], *found))
    return said


def twin_scan(images: list[bytes]) -> list[object]:
    said: list[object] = []
    last = Record(MARK, 0)
    for slot, header in in_order(images):
        if (header.first_lsn, header.chain) != (last.lsn + 1, last.header_crc):
            continue
        found = reference.scan(images[slot], last)
        if found:
            last = found[-1][0]
        state = (last.lsn + 1, last.header_crc, last.node_epoch)
        said.append((state, *told(found)))
    return said


def told(found: list[tuple[Record, bytes]]) -> tuple[object, ...]:
    """What a scan has to say of these records: runs, heads, points, trees."""
    runs: list[list[int]] = []
    for record, _ in found:
        if record.op not in (WRITE, UNMAP, ZERO, REFER):
            continue
        this = [record.volume, record.volume_epoch]
        end = record.offset + record.length
        if runs and runs[-1][:2] == this and runs[-1][3] + 1 == record.seq:
            runs[-1][3:] = [record.seq, max(runs[-1][4], end)]
        else:
            runs.append([*this, record.seq, record.seq, end])
    return (
        [tuple(run) for run in runs],
        [
            (record.lsn, record.volume, record.volume_epoch, record.seq, payload)
            for record, payload in found
            if record.op == HEAD
        ],
        [(record.lsn, payload) for record, payload in found if record.op == POINT],
        [(record.volume, data[:32], data[41]) for record, data in found if record.op == REFER],
    )


def in_order(images: list[bytes]) -> Iterator[tuple[int, SegmentHeader]]:
    found = [(slot, reference.decode_segment_header(image)) for slot, image in enumerate(images)]
    begun = [(slot, header) for slot, header in found if header is not None]
    yield from sorted(begun, key=lambda pair: pair[1].sequence)


def check_both_agree(images: list[bytes]) -> int:
    found = reference.replay(images)
    model = reference.HotMap()
    seq = 50
    for record, payload in found:
        if record.op == WRITE:
            model.write(record.offset, payload)
        elif record.op in (UNMAP, ZERO):
            model.unmap(record.offset, record.length)
        seq = record.seq if record.op in (WRITE, UNMAP, ZERO) else seq
    assert native_replay(images) == (len(found), seq, model.active)
    assert native_scan(images) == twin_scan(images)
    return len(found)


def test_both_replay_the_same() -> None:
    for seed in range(3):
        images = filled(seed).images()
        assert check_both_agree(images) > 60


def test_both_tell_the_same_of_heads_points_and_trees() -> None:
    log = filled(4, steps=20)
    other = VolumeCore(log.journal, PlaceTable(0), 3, 1, 4096, SIZE, 0, 0)
    for number in range(20):
        log.append(OP_WRITE, 512 * number, 512, bytes([number]) * 512)
        other.submit([Request(OP_WRITE, 4096 * number, 512, bytes(512))], log.now_ns)
        log.journal.append_head(9, 4, 70 + number, b"head %d" % number, log.now_ns)
        if number % 5 == 0:
            log.refer(4096 * number, 8192, bytes([number + 1]) * 32, 1 + number % 3, 4096)
            log.journal.append_point([log.core, other], b"tail", log.now_ns)
    images = log.images()
    said = native_scan(images)
    assert said == twin_scan(images)
    _, runs, heads, points, trees = zip(*said, strict=True)
    assert sum(map(len, runs)) >= 40
    assert [sum(map(len, each)) for each in (heads, points, trees)] == [20, 4, 4]


def test_a_scan_of_a_file_that_ends_early_or_fails() -> None:
    image = LOG[0]
    file = MemoryFile(SEGMENT)
    file.image[:] = image
    whole = scan_segment(file, SEGMENT, (1, 0, 0, 4096))
    assert scan_segment(file, 1 << 63, (1, 0, 0, 4096)) == whole  # no more than there is
    assert scan_segment(file, 4096, (1, 0, 0, 4096)) == ((1, 0, 0, 4096), [], [], [], [])
    assert scan_segment(file, SEGMENT, (2, 0, 0, 4096))[1:] == ([], [], [], [])
    file.error = OSError(errno.EIO, "gone")
    with pytest.raises(OSError, match="Input/output"):
        scan_segment(file, SEGMENT, (1, 0, 0, 4096))


def test_a_scan_counts_notes_and_refuses_those_that_make_no_sense() -> None:
    log = filled(4, steps=3)
    payload = Note(Kind.RESIZE, 5, SIZE, 2 * SIZE).encode()
    ((_, seq),) = log.journal.append_notes([(log.core, payload)], log.now_ns)
    (at,) = [n for n, image in enumerate(log.images()) if payload in bytes(image)]
    image = bytearray(log.images()[at])
    begin = bytes(image).index(payload)
    record = reference.decode_record(bytes(image[begin - 64 : begin]))
    assert record is not None
    file = MemoryFile(SEGMENT)
    file.image[:] = image
    header = reference.decode_segment_header(bytes(image[:128]))
    assert header is not None
    start = (header.first_lsn, header.chain, header.node_epoch, 4096)
    assert scan_segment(file, SEGMENT, start)[1][-1][3] == seq
    bad = payload[:16] + bytes(8) + payload[24:]  # of no size
    crc = reference.crc32c(bad)
    image[begin - 64 : begin + len(bad)] = replace(record, payload_crc=crc).encode() + bad
    file.image[:] = image
    with pytest.raises(OSError, match="Protocol error"):
        scan_segment(file, SEGMENT, start)


LOG = filled(7).images()


@given(st.integers(0, 5), st.integers(0, SEGMENT - 1), st.integers(1, 255), st.booleans())
@settings(max_examples=25, deadline=None)
def test_both_stop_at_the_same_damage(slot: int, at: int, change: int, cut: bool) -> None:
    images = [bytearray(image) for image in LOG]
    images[slot][at] ^= change
    if cut:  # a power cut: nothing after it
        images[slot][at:] = bytes(SEGMENT - at)
    check_both_agree([bytes(image) for image in images])


def test_both_refuse_a_later_version() -> None:
    images = [bytearray(image) for image in LOG]
    found = reference.replay(LOG)
    record = found[2][0]
    at = images[0].find(record.encode())
    images[0][at : at + 64] = reference.relabel(record, version=2)
    changed = [bytes(image) for image in images]
    with pytest.raises(reference.UnknownRecord):
        reference.replay(changed)
    with pytest.raises(OSError, match="Protocol error"):
        native_replay(changed)
    with pytest.raises(OSError, match="Protocol error"):
        native_scan(changed)


@given(headers)
def test_segment_headers_decode_alike(header: SegmentHeader) -> None:
    data = header.encode()
    assert len(data) == 128
    assert reference.decode_segment_header(data) == header
    decoded = decode_segment_header(data)
    assert decoded is not None
    assert SegmentHeader(*decoded) == header


@given(headers, st.integers(0, 128 * 8 - 1))
@settings(max_examples=50)
def test_a_flipped_bit_is_no_header(header: SegmentHeader, bit: int) -> None:
    data = bytearray(header.encode())
    data[bit // 8] ^= 1 << bit % 8
    assert decode_segment_header(data) is None


@given(st.binary(max_size=200))
def test_other_bytes_are_no_header(data: bytes) -> None:
    assert decode_segment_header(data) is None
    assert reference.decode_segment_header(data) is None


def test_a_header_of_another_version_is_refused() -> None:
    data = bytearray(SegmentHeader(bytes(16), 1, 2, 3, 4, 5, 6, 7).encode())
    data[8] = 2
    data[124:] = reference.crc32c(bytes(data[:124])).to_bytes(4, "little")
    with pytest.raises(OSError, match="Protocol error"):
        decode_segment_header(data)
    with pytest.raises(ValueError, match="version 2"):
        reference.decode_segment_header(bytes(data))


@given(st.builds(Record, st.integers(1, 5), u64, u64, st.integers(0, 2**62), st.integers(1, 2**20)))
def test_records_of_the_twin_round_trip(record: Record) -> None:
    decoded = reference.decode_record(record.encode())
    assert decoded is not None
    assert decoded.encode() == record.encode()
    assert (decoded.op, decoded.lsn, decoded.length) == (record.op, record.lsn, record.length)
