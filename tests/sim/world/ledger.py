"""What every volume may show, told by the journal itself and by what clients were promised.

The disk tells each record as it lands in the journal, in the log's order: it gets a *position*.
Clients tell what they were promised: a write was acked, a flush was. So for each sector there is a
list of contents by position, and the invariants of DESIGN 10 become comparisons:

    I1  a read shows, of each sector, an entry that is not older than the newest one acked, or shown
        to a read that was over, before it began
    I2  after a power cut all sectors are of one position, not before the last acked flush
    I3  ... one position, whatever the volumes
    I4  after kill -9 the same, not before the last acked write
    I5  a sector is exactly what one write put there
    I7  a snapshot shows the contents of its position, for ever
    I8  a sector has what was written to that sector of that volume; trimmed ones have zeros

Contents are stamps (`tests.sim.world.stamps`); what a crash leaves is judged in
`tests.sim.world.cut`.
"""

import bisect
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from tests.sim.world.stamps import STAMP, UNREADABLE, ZERO, Violation, stamp_of
from volume.disk import SECTOR_SIZE

RECORD = struct.Struct("<4sBBHIIQQQQIIII")
MAGIC = b"bdJR"
SEGMENT_HEADER = 4096
WRITE, UNMAP, ZERO_OP, MARK, HEAD, POINT, REFER = range(1, 8)


Entry = tuple[int, bytes]
"""Position, contents."""


@dataclass(slots=True)
class VolumeLedger:
    """One volume; `tag` is its number in stamps, `number` the store's."""

    name: str
    tag: int
    size: int
    number: int = 0
    sectors: dict[int, list[Entry]] = field(default_factory=dict)
    floors: dict[int, int] = field(default_factory=dict)
    """Per sector: position of the newest contents that somebody was promised, or shown."""
    epoch: int = 0
    """Of the newest record."""
    epoch_position: int = 0
    """Position of the first record of that epoch."""
    seqs: list[tuple[int, int]] = field(default_factory=list)
    """Of the epoch's records: number in the volume, and position."""
    generation: int = 0
    """How often all of the volume was replaced."""
    becoming: dict[int, bytes] | None = None
    """What a restore that is under way makes of it."""

    def entries(self, sector: int) -> list[Entry]:
        return self.sectors.get(sector) or [(0, ZERO)]

    def at(self, position: int, sector: int) -> bytes:
        entries = self.entries(sector)
        return entries[bisect.bisect_right(entries, position, key=lambda e: e[0]) - 1][1]

    def contents(self, position: int) -> dict[int, bytes]:
        """Sectors that are not zeros at a position."""
        found = {sector: self.at(position, sector) for sector in self.sectors}
        return {sector: each for sector, each in found.items() if each != ZERO}

    def rebase(self, contents: dict[int, bytes], since: int) -> None:
        """Have the volume show this from the beginning, under what came from position `since`."""
        newer = {
            sector: [entry for entry in entries if entry[0] >= since]
            for sector, entries in self.sectors.items()
        }
        self.sectors = {sector: [(0, each)] for sector, each in contents.items()}
        for sector, entries in newer.items():
            if entries:
                self.sectors.setdefault(sector, [(0, ZERO)]).extend(entries)
        self.floors = {s: p for s, p in self.floors.items() if p >= since}
        self.seqs = [(seq, position) for seq, position in self.seqs if position >= since]
        self.generation += 1
        self.becoming = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    name: str
    volume: str
    position: int
    size: int
    contents: dict[int, bytes]
    others: tuple[dict[int, bytes], ...] = ()
    """What it may be instead, until somebody has read it."""


@dataclass(slots=True)
class _Record:
    lsn: int
    position: int
    number: int
    undo: list[tuple[int, Entry]]


class Ledger:
    def __init__(self) -> None:
        self.position = 0
        self.by_name: dict[str, VolumeLedger] = {}
        self.snapshots: dict[tuple[str, str], Snapshot] = {}
        self.flushed = 0
        """Position that the last acked flush covers."""
        self.acked = 0
        self.points: list[tuple[int, bytes]] = []
        self.record_count = 0
        self._by_number: dict[int, VolumeLedger] = {}
        self._by_tag: dict[int, VolumeLedger] = {}
        self._next_write = 0
        self._records: list[_Record] = []  # of the log, newest last
        self._positions: dict[int, int] = {}  # write -> position of its newest record
        self._ranges: dict[tuple[int, int, int], list[int]] = {}  # of zeroings: positions

    # -- volumes

    def add(self, name: str, size: int, number: int) -> VolumeLedger:
        volume = VolumeLedger(name, len(self._by_tag) + 1, size, number)
        self.by_name[name] = volume
        self._by_number[number] = volume
        self._by_tag[volume.tag] = volume
        return volume

    def drop(self, name: str) -> None:
        """It was deleted."""
        volume = self.by_name.pop(name)
        del self._by_number[volume.number]

    def replace(self, volume: VolumeLedger) -> None:
        """Have `volume` stand for the one of its name."""
        self.by_name[volume.name] = self._by_number[volume.number] = volume

    def new_write(self) -> int:
        self._next_write += 1
        return self._next_write

    # -- what the disk tells

    def landed(self, path: str, offset: int, data: bytes) -> None:
        """Bytes landed in a file."""
        if not path.startswith("journal/") or offset < SEGMENT_HEADER or data[:4] != MAGIC:
            return
        at = 0
        while at + RECORD.size <= len(data):
            fields = RECORD.unpack_from(data, at)
            magic, _, op, _, _, epoch, lsn, seq, start, length, number, *_ = fields
            if magic != MAGIC:
                return
            payload = length if op in (WRITE, HEAD, POINT) else 48 if op == REFER else 0
            body = data[at + RECORD.size : at + RECORD.size + payload]
            if len(body) < payload:
                return  # torn: it will not be replayed
            self._append(op, lsn, number, epoch, seq, start, length, body)
            at += -(-(RECORD.size + payload) // 64) * 64

    def _append(
        self,
        op: int,
        lsn: int,
        number: int,
        epoch: int,
        seq: int,
        offset: int,
        length: int,
        body: bytes,
    ) -> None:
        self._take_back(lsn)
        self.position += 1
        self.record_count += 1
        record = _Record(lsn, self.position, number, [])
        self._records.append(record)
        if op == POINT:
            self.points.append((self.position, body))
            return
        if op not in (WRITE, UNMAP, ZERO_OP):
            return
        volume = self._by_number.get(number)
        if volume is None:
            return  # being made, or gone
        if epoch != volume.epoch:
            if epoch < volume.epoch:
                raise Violation(
                    f"I6 {volume.name} is written in epoch {epoch} after {volume.epoch}"
                )
            volume.epoch, volume.epoch_position = epoch, self.position
            volume.seqs.clear()
        while volume.seqs and volume.seqs[-1][0] >= seq:
            volume.seqs.pop()  # a crash has lost it, though nothing that was read told so
        volume.seqs.append((seq, self.position))
        if op != WRITE:
            self._ranges.setdefault((number, offset, length), []).append(self.position)
        for sector in range(offset // SECTOR_SIZE, (offset + length) // SECTOR_SIZE):
            contents = ZERO
            if op == WRITE:
                start = sector * SECTOR_SIZE - offset
                contents = self._checked(volume, sector, body[start : start + SECTOR_SIZE])
            entries = volume.sectors.setdefault(sector, [(0, ZERO)])
            entries.append((self.position, contents))
            record.undo.append((sector, entries[-1]))

    def _checked(self, volume: VolumeLedger, sector: int, data: bytes) -> bytes:
        contents = stamp_of(data)
        if contents is None:
            raise Violation(f"I5 the journal has a torn sector {sector} of {volume.name}")
        write, tag, number = STAMP.unpack(contents)
        if contents != ZERO:
            if tag != volume.tag or number != sector:
                raise Violation(
                    f"I8 the journal has {number} of volume {tag} for {sector} of {volume.tag}"
                )
            self._positions[write] = self.position
        return contents

    def _take_back(self, lsn: int) -> None:
        """A record with this lsn takes the place of those that failed to be written."""
        while self._records and self._records[-1].lsn >= lsn:
            record = self._records.pop()
            volume = self._by_number.get(record.number)
            if volume is not None and volume.seqs[-1:] and volume.seqs[-1][1] == record.position:
                volume.seqs.pop()
            for sector, entry in record.undo:
                if volume is not None and entry in volume.sectors.get(sector, ()):
                    volume.sectors[sector].remove(entry)

    # -- what clients are told

    def write_acked(
        self, volume: VolumeLedger, write: int, offset: int, length: int, durable: bool
    ) -> None:
        """A client has the answer to its write: it must be in the journal."""
        position = self._positions.get(write)
        if position is None:
            raise Violation(f"I4 write {write} of {volume.name} was acked and is in no journal")
        self._promise(volume, offset, length, lambda stamp: STAMP.unpack(stamp)[0] == write)
        self.acked = max(self.acked, position)
        if durable:
            self.flushed = max(self.flushed, position)

    def zero_acked(
        self, volume: VolumeLedger, offset: int, length: int, since: int, durable: bool
    ) -> None:
        """A trim, or a zeroing, that was sent at position `since` was acked."""
        found = self._ranges.get((volume.number, offset, length), ())
        position = next((each for each in found if each > since), None)
        if position is None:
            raise Violation(
                f"I4 zeros in {volume.name} [{offset}, +{length}) were acked, in no journal"
            )
        for sector in range(offset // SECTOR_SIZE, (offset + length) // SECTOR_SIZE):
            volume.floors[sector] = max(volume.floors.get(sector, 0), position)
        self.acked = max(self.acked, position)
        if durable:
            self.flushed = max(self.flushed, position)

    def _promise(self, volume: VolumeLedger, offset: int, length: int, mine: object) -> None:
        for sector in range(offset // SECTOR_SIZE, (offset + length) // SECTOR_SIZE):
            for position, contents in reversed(volume.entries(sector)):
                if contents != ZERO and mine(contents):  # type: ignore[operator]
                    volume.floors[sector] = max(volume.floors.get(sector, 0), position)
                    break

    def flush_acked(self, covered: int) -> None:
        """`covered`: `acked` when the flush was sent."""
        self.flushed = max(self.flushed, covered)

    # -- reads

    def floors(self, volume: VolumeLedger, offset: int, length: int) -> list[int]:
        first = offset // SECTOR_SIZE
        return [volume.floors.get(first + i, 0) for i in range(length // SECTOR_SIZE)]

    def check_read(
        self, volume: VolumeLedger, offset: int, data: bytes, floors: Sequence[int]
    ) -> None:
        """I1, I5, I8 of a read that began when `floors` were taken."""
        first = offset // SECTOR_SIZE
        for number, floor in enumerate(floors):
            sector = first + number
            contents = stamp_of(data[number * SECTOR_SIZE : (number + 1) * SECTOR_SIZE])
            if contents == UNREADABLE:
                continue
            if contents is None:
                raise Violation(f"I5 a read shows a torn sector {sector} of {volume.name}")
            if volume.becoming is not None and volume.becoming.get(sector, ZERO) == contents:
                continue
            shown = [p for p, each in volume.entries(sector) if each == contents]
            if not shown:
                raise Violation(
                    f"I8 sector {sector} of {volume.name} reads as {STAMP.unpack(contents)}, "
                    "which was never written there"
                )
            if shown[-1] < floor and not self._still(volume, sector, contents, floor):
                raise Violation(
                    f"I1 sector {sector} of {volume.name} reads as of position {shown[-1]}, "
                    f"{STAMP.unpack(contents)}; {floor} was promised or shown before"
                )
            seen = next((p for p in shown if p >= floor), floor)
            volume.floors[sector] = max(volume.floors.get(sector, 0), seen)

    @staticmethod
    def _still(volume: VolumeLedger, sector: int, contents: bytes, floor: int) -> bool:
        return volume.at(floor, sector) == contents

    # -- after a crash

    def crashed(self) -> int:
        """The process is gone. Records that come next say nothing about those before. The position
        that the newest record has."""
        self._records.clear()
        return self.position

    def settle(self, cut: int) -> None:
        """What was written after position `cut` is gone for good."""
        for volume in self.by_name.values():
            volume.seqs = [each for each in volume.seqs if each[1] <= cut]
            for sector, entries in volume.sectors.items():
                while len(entries) > 1 and entries[-1][0] > cut:
                    entries.pop()
                volume.floors[sector] = entries[-1][0]
        self._ranges.clear()
        self._positions = {w: p for w, p in self._positions.items() if p <= cut}
        self.acked = self.flushed = min(cut, self.position)

    def restored(self, volume: VolumeLedger, snapshot: Snapshot, since: int) -> None:
        """A restore that was asked for at position `since` has been done."""
        begins = volume.epoch_position if volume.epoch_position > since else self.position + 1
        volume.rebase(snapshot.contents, begins)
        volume.size = snapshot.size

    # -- snapshots

    def snapshots_of(self, name: str, volumes: Iterable[str], since: int) -> list[Snapshot]:
        """What a snapshot is that was asked for at `since`; none if it is in no journal."""
        encoded = name.encode()
        found = [p for p, body in self.points if p > since and encoded in body]
        if not found:
            return []
        taken = ((each, self.by_name[each]) for each in volumes)
        return [
            Snapshot(name, each, found[-1], volume.size, volume.contents(found[-1]))
            for each, volume in taken
        ]

    def snapshot_made(self, name: str, volumes: Iterable[str], since: int) -> Snapshot:
        """A snapshot that was asked for at position `since` is there; one of its volumes'."""
        made = self.snapshots_of(name, volumes, since) or [
            self._unrecorded(name, self.by_name[each], since) for each in volumes
        ]
        for each in made:
            self.snapshots[each.volume, name] = each
        self.acked = max(self.acked, made[0].position)
        return made[0]

    def _unrecorded(self, name: str, volume: VolumeLedger, since: int) -> Snapshot:
        """A journal that is full takes no record: the name is durable by itself then, and is what
        the volume was at some moment of the call."""
        self.flushed = max(self.flushed, since)
        states = [volume.contents(position) for position in range(since, self.position + 1)]
        return Snapshot(name, volume.name, since, volume.size, states[0], tuple(states[1:]))

    def check_snapshot(self, snapshot: Snapshot, image: bytes) -> None:
        """I7, I8."""
        if len(image) != snapshot.size:
            raise Violation(f"I7 {snapshot.volume}@{snapshot.name} is {len(image)} bytes long")
        wrong = [_first_difference(image, each) for each in (snapshot.contents, *snapshot.others)]
        if None not in wrong:
            self.check_version(f"{snapshot.volume}@{snapshot.name}", image, snapshot.contents)
        key = (snapshot.volume, snapshot.name)
        if snapshot.others and key in self.snapshots:
            contents = (snapshot.contents, *snapshot.others)[wrong.index(None)]
            self.snapshots[key] = replace(snapshot, contents=contents, others=())

    @staticmethod
    def check_version(name: str, image: bytes, contents: dict[int, bytes]) -> None:
        """I7, I8: a version shows what it was."""
        sector = _first_difference(image, contents)
        if sector is not None:
            shown = image[sector * SECTOR_SIZE :][: STAMP.size]
            expected = contents.get(sector, ZERO)
            raise Violation(
                f"I7 sector {sector} of {name} reads as {STAMP.unpack(shown)}, "
                f"it was {STAMP.unpack(expected)}"
            )


def _first_difference(image: bytes, contents: dict[int, bytes]) -> int | None:
    """The first sector of an image that is not what it should be."""
    for sector in range(len(image) // SECTOR_SIZE):
        data = image[sector * SECTOR_SIZE : (sector + 1) * SECTOR_SIZE]
        if stamp_of(data) not in (contents.get(sector, ZERO), UNREADABLE):
            return sector
    return None
