"""Fuzz target of the journal's folder: any files as its segments, any bytes as POINT records, and

- opening ends with a log, or raises CorruptJournal or UnknownFormat, and changes no segment then;
- opening the same again, whether or not losses are accepted, finds the same log; what was lost and
  accepted is never held against it again;
- the log goes on: what is appended is found by the next opening, with all that was there before;
  only behind a segment that says it is the last one that there can be, appending is refused;
- reading it again for past versions (LogReader) ends where it ends, with the same volumes; from any
  other place it reads, or raises CorruptJournal or UnknownFormat;
- what is kept of it in memory is bounded by the bytes of the segments;
- a POINT record that is taken is written as the bytes it came from.

Input: one byte of switches, then files: a kind (1), with NAMED the length of the name (1) and the
name, a length (2, little-endian), the bytes. A file without a name is the segment of its place in
the input. What is not of another SIZE is as long as a segment, with zeros at the end. With RESEAL
all numbers, chains and checksums of headers and records are made right where their magic is, unless
flags of the record, or a byte that headers do not use, say to leave them.
"""

import contextlib
import errno
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from native import Journal, PlaceTable, VolumeCore, crc32c, decode_segment_header
from tests.fuzz.unlogged import unlogged
from tests.sim.image import Image
from tests.sim.simclock import SimClock
from tests.sim.simdisk import SimDisk
from volume import layout, notes, points
from volume.checkpoint import Checkpoint
from volume.errors import CorruptJournal, OldMeta, UnknownFormat
from volume.historyrows import RoundRow
from volume.logreader import LogEnd, LogReader
from volume.options import JournalGeometry
from volume.recovery import LAST_SEQUENCE, SEGMENT_HEADER_BYTES, JournalRecovery, Recovered
from volume.segments import FOLDER, SegmentPool, parse_segment_name, segment_path

RESEAL, FROM_FIRST, ROUNDS = 1, 2, 4
SIZE, SHORT, LONG, NAMED = 3, 1, 2, 4
"""Of a file: as long as its bytes, or one byte longer than a segment."""

UUID = bytes(range(16))
SEGMENT = 16 * 1024
NODE_EPOCH = 1 << 31
MAX_FILES = 6
APPENDED = 10  # more than a segment holds
MAX_MEMORY = 32 * MAX_FILES * SEGMENT
KEEP_HEADER_AT = 72
KEEP_ORDER, KEEP_PAYLOAD = 0x8000, 0x4000
_MARK, _REFER, _WITH_PAYLOAD, _REFER_BYTES = 4, 7, (1, 5, 6), 48
_ALLOWED = (CorruptJournal, OldMeta, UnknownFormat)


def journal_target(data: bytes) -> None:
    """Run one input; raises when an invariant is broken."""
    with unlogged():
        _check_point(data[1:])
        _run(data)


@dataclass(slots=True)
class _Opened:
    """A journal that was opened, and what it stands on."""

    disk: SimDisk
    checkpoint: Checkpoint
    pool: SegmentPool
    journal: Journal
    cores: dict[int, VolumeCore]
    found: Recovered

    @property
    def state(self) -> tuple[object, ...]:
        cores = [core.state() for core in self.cores.values()]
        return self.found.lsn, list(self.found.points), cores

    def image(self) -> Image:
        """What is on the disk once the files are closed."""
        self.pool.close()
        return self.disk.image()


def _run(data: bytes) -> None:
    switches = data[0] if data else 0
    files = dict(_files(data[1:]))
    if switches & RESEAL:
        _reseal(files)
    image = _image(files)
    first = Checkpoint(1, 1, SEGMENT_HEADER_BYTES, 0, SEGMENT)
    checkpoint = first if switches & FROM_FIRST else Checkpoint(1, 0, 0, 0, SEGMENT)
    rounds = [RoundRow(1, 1, SEGMENT_HEADER_BYTES, 0, 5)] if switches & ROUNDS else []
    plain = _open(image, checkpoint, rounds, accept=False)
    opened = _open(image, checkpoint, rounds, accept=True)
    if plain is not None:
        assert opened is not None
        assert plain.state == opened.state
        assert not opened.found.lost
        plain.pool.close()
    if opened is None:
        return
    _check_reader(opened, data)
    checkpoint, state = opened.found.checkpoint or checkpoint, opened.state
    again = _open(opened.image(), checkpoint, rounds, accept=False)
    assert again is not None
    if opened.found.checkpoint is None:
        assert again.state == state
    _check_goes_on(again, rounds)


# -- opening


def _open(
    image: Image, checkpoint: Checkpoint, rounds: list[RoundRow], *, accept: bool
) -> _Opened | None:
    """As a store opens it; None when it is refused, as documented."""
    disk, clock = SimDisk(image, record=False), SimClock()
    journal = Journal(UUID, SEGMENT, NODE_EPOCH)
    geometry = JournalGeometry(SEGMENT, 16 * SEGMENT)
    pool = SegmentPool(disk, journal, geometry, UUID, clock)
    cores = _cores(journal)
    recovery = JournalRecovery(
        *(disk, clock, journal, pool, UUID, checkpoint, rounds),
        node_epoch=NODE_EPOCH + 1,  # so that what a first opening appends is of an earlier run
        known={},
        next_volume=1 << 32,
        accept_loss=accept,
    )
    try:
        found = recovery.run(cores)
    except _ALLOWED:
        pool.close()
        assert accept or _segments(disk) == _segments(SimDisk(image, record=False))
        return None
    held = sum(len(payload) for *_, payload in found.points)
    assert held <= MAX_FILES * SEGMENT
    assert sum(core.state()[5] for core in cores.values()) <= MAX_MEMORY
    for lsn, number, _, payload in found.points:
        assert lsn < found.lsn
        if not number:
            _check_point(payload)
            continue
        with contextlib.suppress(CorruptJournal):
            assert notes.decode("it", payload).encode() == payload
    return _Opened(disk, checkpoint, pool, journal, cores, found)


def _cores(journal: Journal) -> dict[int, VolumeCore]:
    table = PlaceTable(1 << 20)
    return {
        1: VolumeCore(journal, table, 1, 1, 65536, 1 << 20, 0, 0),
        2: VolumeCore(journal, table, 2, 2, 4096, 1 << 62, 3, 0),
    }


def _segments(disk: SimDisk) -> dict[str, bytes]:
    """The files that have the size of a segment."""
    found = {}
    for name in disk.list(FOLDER):
        file = disk.open(f"{FOLDER}/{name}")
        if file.size() == SEGMENT:
            found[name] = file.pread(SEGMENT, 0)
        file.close()
    return found


def _sequences(disk: SimDisk) -> set[int]:
    headers = (decode_segment_header(data[:512]) for data in _segments(disk).values())
    return {header[3] for header in headers if header is not None}


def _check_goes_on(opened: _Opened, rounds: list[RoundRow]) -> None:
    """Append to the log, beyond its segment's end too, and open it once more."""
    before, was = opened.state, list(opened.found.points)
    name = "n" * (SEGMENT // 10)
    tail = points.encode_tail(7, name, pinned=False, scheduled=True, states=[(1, 1 << 20)])
    appended = []
    for now_ns in range(9, 9 + APPENDED):
        while opened.pool.tend():
            pass
        try:
            appended.append(opened.journal.append_point([opened.cores[1]], tail, now_ns)[0])
        except OSError as error:
            if error.errno != errno.EIO or LAST_SEQUENCE not in _sequences(opened.disk):
                raise
            return
    assert appended == sorted(set(appended))
    assert appended[0] >= opened.found.lsn
    opened.journal.sync()
    _check_reads(opened, appended[-1])
    again = _open(opened.image(), opened.checkpoint, rounds, accept=False)
    assert again is not None
    assert again.found.lsn == appended[-1] + 1
    assert again.found.points[: len(was)] == was
    assert [lsn for lsn, *_ in again.found.points[len(was) :]] == appended
    assert all(
        points.decode(lsn, payload).name == name
        for lsn, _, _, payload in again.found.points[len(was) :]
    )
    assert again.state[2] == before[2]
    again.pool.close()


# -- reading it again


def _check_reader(opened: _Opened, data: bytes) -> None:
    """Read from the checkpoint, then from a place, and up to an end, that the input says."""
    if opened.found.checkpoint is None:
        _check_reads(opened, opened.found.lsn - 1)
    lsn, sequence, position, chain, end_lsn, end_ns = struct.unpack(
        "<BBHIBB", data[-10:].rjust(10, b"\0")
    )
    reader = LogReader(opened.pool, UUID, SEGMENT)
    for start in (
        RoundRow(lsn, sequence, position, chain, 0),
        RoundRow(1, sequence & 3, SEGMENT_HEADER_BYTES, 0, 0),
    ):
        for end in (LogEnd(end_lsn), LogEnd(1 << 40, end_ns), LogEnd(99, 0, 1, end_lsn)):
            journal = reader.new_journal()
            with contextlib.suppress(*_ALLOWED):
                read = reader.read(start, end, journal, _cores(journal), rows_volume=1, row_limit=3)
                assert len(read.rows) <= 3


def _check_reads(opened: _Opened, end_lsn: int) -> None:
    """The whole log, for past versions: they have what the volumes have."""
    at = opened.checkpoint
    start = RoundRow(at.lsn, at.sequence, at.position, at.chain, 0)
    reader = LogReader(opened.pool, UUID, SEGMENT)
    journal = reader.new_journal()
    cores = _cores(journal)
    read = reader.read(start, LogEnd(end_lsn), journal, cores, rows_volume=1, row_limit=1000)
    assert read.lsn == end_lsn
    for number, core in cores.items():
        assert core.state()[0] == opened.cores[number].state()[0]
        assert core.state()[3:5] == opened.cores[number].state()[3:5]
    for row in read.rows:
        assert at.lsn <= row.lsn <= end_lsn


def _check_point(payload: bytes) -> None:
    try:
        record = points.decode(1, payload)
    except CorruptJournal:
        return
    states = [(volume.epoch, volume.size) for volume in record.volumes]
    places = [layout.POINT_VOLUME.pack(volume.number, volume.seq) for volume in record.volumes]
    head = b"".join((layout.POINT_COUNT.pack(len(places)), *places))
    tail = points.encode_tail(
        record.time_ns,
        record.name,
        pinned=record.pinned,
        scheduled=record.scheduled,
        states=states,
    )
    known = layout.SNAPSHOT_PINNED | layout.SNAPSHOT_SCHEDULED
    flags = len(head) + 1
    assert head + tail == payload[:flags] + bytes((payload[flags] & known,)) + payload[flags + 1 :]


# -- the input


def _files(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Name -> bytes."""
    at = 0
    for number in range(MAX_FILES):
        if at >= len(data):
            return
        kind, name = data[at], segment_path(number).rpartition("/")[2]
        at += 1
        if kind & NAMED:
            length = data[at] if at < len(data) else 0
            given = data[at + 1 : at + 1 + length].decode("utf-8", "replace")
            at += 1 + length
            name = given.replace("/", "_").strip(".") or name
        length = int.from_bytes(data[at : at + 2], "little")
        content = data[at + 2 : at + 2 + min(length, SEGMENT)]
        at += 2 + length
        if kind & SIZE != SHORT:
            content = content.ljust(SEGMENT + (kind & SIZE == LONG), b"\0")
        yield name, content


def _image(files: dict[str, bytes]) -> Image:
    disk = SimDisk(record=False)
    disk.mkdir(FOLDER)
    for name, content in files.items():
        file = disk.open(f"{FOLDER}/{name}", create=True)
        if content:
            file.pwrite(content, 0)
        file.close()
    return disk.image()


def _reseal(files: dict[str, bytes]) -> None:
    """One log through all the segments, in the order of the input."""
    lsn, chain = 1, 0
    for name, content in files.items():
        slot = parse_segment_name(name)
        if slot is None or not content.startswith(b"blockdJS") or len(content) != SEGMENT:
            continue
        out = bytearray(content)
        if not out[KEEP_HEADER_AT]:
            struct.pack_into("<I16s", out, 12, slot, UUID)
            struct.pack_into("<Q", out, 40, lsn)
            struct.pack_into("<IQ", out, 52, chain, SEGMENT)
        struct.pack_into("<I", out, 124, crc32c(bytes(out[:124])))
        lsn, chain = _reseal_records(out, lsn, chain)
        files[name] = bytes(out)


def _reseal_records(out: bytearray, lsn: int, chain: int) -> tuple[int, int]:
    """Seal what is found by walking; the next lsn, and the chain there."""
    at = SEGMENT_HEADER_BYTES
    while at + 64 <= len(out):
        if out[at : at + 4] != b"bdJR":
            if at % 512 == 0:
                break
            at = -(-at // 512) * 512
            continue
        op, flags = struct.unpack_from("<BH", out, at + 5)
        (length,) = struct.unpack_from("<Q", out, at + 40)
        length = _REFER_BYTES if op == _REFER else length if op in _WITH_PAYLOAD else 0
        if length > len(out) - at - 64:
            length = 0
        if not flags & KEEP_ORDER:
            struct.pack_into("<Q", out, at + 16, lsn)
            struct.pack_into("<I", out, at + 56, chain)
        if not flags & KEEP_PAYLOAD and op == _MARK:
            struct.pack_into("<8s", out, at + 40, UUID[:8])
            struct.pack_into("<8s", out, at + 48, UUID[8:])
        elif not flags & KEEP_PAYLOAD and length:
            struct.pack_into("<I", out, at + 52, crc32c(bytes(out[at + 64 : at + 64 + length])))
        chain = crc32c(bytes(out[at : at + 60]))
        struct.pack_into("<I", out, at + 60, chain)
        lsn += 1
        at += -(-(64 + length) // 64) * 64
    return lsn, chain
