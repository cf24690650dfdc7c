"""The ledger tells a store that keeps its promises from one that does not."""

import pytest

from tests.sim.world.cut import find_cut
from tests.sim.world.ledger import (
    MAGIC,
    RECORD,
    SEGMENT_HEADER,
    UNMAP,
    WRITE,
    Ledger,
    VolumeLedger,
)
from tests.sim.world.stamps import REPEATS, UNREADABLE, ZEROS, Violation, stamped
from volume.disk import SECTOR_SIZE

SIZE = 8 * SECTOR_SIZE
PATH = "journal/00000000.seg"


class Log:
    """A journal with one volume, `v`, as its disk tells it."""

    def __init__(self) -> None:
        self.ledger = Ledger()
        self.volume: VolumeLedger = self.ledger.add("v", SIZE, 1)
        self.lsn = 0
        self.image = bytearray(SIZE)

    def record(
        self, op: int, sector: int, count: int, body: bytes = b"", epoch: int = 1, seq: int = 0
    ) -> None:
        self.lsn += 1
        offset, length = sector * SECTOR_SIZE, count * SECTOR_SIZE
        fields = (MAGIC, 1, op, 0, 1, epoch, self.lsn, seq, offset, length, 1, 0, 0, 0)
        self.ledger.landed(PATH, SEGMENT_HEADER, RECORD.pack(*fields) + body)

    def write(self, sector: int, count: int = 1, *, kept: bool = True, ack: bool = True) -> int:
        number = self.ledger.new_write()
        data = stamped(number, self.volume.tag, sector, count)
        self.record(WRITE, sector, count, data)
        if kept:
            self.image[sector * SECTOR_SIZE : (sector + count) * SECTOR_SIZE] = data
        if ack:
            offset, length = sector * SECTOR_SIZE, count * SECTOR_SIZE
            self.ledger.write_acked(self.volume, number, offset, length, False)
        return number

    def recover(self, at_least: int) -> int:
        images = {"v": bytes(self.image)}
        return find_cut(self.ledger.by_name, images, at_least, self.ledger.position)

    def read(self, data: bytes, floors: list[int]) -> None:
        self.ledger.check_read(self.volume, 0, data, floors)


def test_write_that_is_in_no_journal_must_not_be_acked() -> None:
    log = Log()
    with pytest.raises(Violation, match="I4"):
        log.ledger.write_acked(log.volume, log.ledger.new_write(), 0, SECTOR_SIZE, False)


def test_prefix_is_a_state_and_its_position_is_found() -> None:
    log = Log()
    log.write(0)
    log.write(1)
    log.write(2, kept=False)
    assert log.recover(at_least=1) == 2


def test_state_older_than_what_was_promised_is_refused() -> None:
    log = Log()
    log.write(0)
    log.write(1, kept=False)
    with pytest.raises(Violation, match="I2"):
        log.recover(at_least=2)


def test_hole_in_the_order_is_no_prefix() -> None:
    log = Log()
    log.write(0, kept=False)
    log.write(1)
    with pytest.raises(Violation, match="I3"):
        log.recover(at_least=0)


def test_torn_sector_is_refused() -> None:
    log = Log()
    log.write(0)
    log.image[100:110] = b"x" * 10
    with pytest.raises(Violation, match="I5"):
        log.recover(at_least=0)


def test_contents_of_another_sector_are_refused() -> None:
    log = Log()
    log.write(0)
    log.image[SECTOR_SIZE : 2 * SECTOR_SIZE] = log.image[:SECTOR_SIZE]
    with pytest.raises(Violation, match="I8"):
        log.recover(at_least=0)


def test_trimmed_sector_reads_as_zeros() -> None:
    log = Log()
    log.write(0)
    log.record(UNMAP, 0, 1)
    with pytest.raises(Violation, match="no position"):
        log.recover(at_least=2)
    log.image[:SECTOR_SIZE] = ZEROS
    assert log.recover(at_least=2) == 2


def test_unreadable_sector_says_nothing() -> None:
    log = Log()
    log.write(0)
    log.image[:SECTOR_SIZE] = UNREADABLE * REPEATS
    assert log.recover(at_least=1) == 1


def test_read_must_not_be_older_than_what_was_acked_before_it_began() -> None:
    log = Log()
    log.write(0)
    old = bytes(log.image[:SECTOR_SIZE])
    log.write(0)
    with pytest.raises(Violation, match="I1"):
        log.read(old, log.ledger.floors(log.volume, 0, SECTOR_SIZE))


def test_read_may_show_a_write_that_is_under_way_and_none_goes_back_behind_it() -> None:
    log = Log()
    log.write(0)
    old = bytes(log.image[:SECTOR_SIZE])
    floors = log.ledger.floors(log.volume, 0, SECTOR_SIZE)
    log.write(0, ack=False)
    log.read(old, floors)  # began before, may be of before
    log.read(bytes(log.image[:SECTOR_SIZE]), floors)
    with pytest.raises(Violation, match="I1"):
        log.read(old, log.ledger.floors(log.volume, 0, SECTOR_SIZE))


def test_failed_record_gives_way_to_the_one_that_takes_its_place() -> None:
    log = Log()
    log.write(0, kept=False, ack=False)
    log.lsn -= 1
    log.write(1)
    assert log.recover(at_least=2) == 2


def test_write_of_an_epoch_that_is_over_is_refused() -> None:
    log = Log()
    data = stamped(1, log.volume.tag, 0, 1)
    log.record(WRITE, 0, 1, data, epoch=2)
    with pytest.raises(Violation, match="I6"):
        log.record(WRITE, 0, 1, data, epoch=1)


def test_lost_writes_do_not_come_back_after_a_crash() -> None:
    log = Log()
    log.write(0)
    before = bytes(log.image)
    log.write(0)
    after, log.image[:] = bytes(log.image), before
    log.ledger.crashed()
    log.ledger.settle(log.recover(at_least=1))
    log.image[:] = after
    with pytest.raises(Violation):
        log.recover(at_least=0)


def test_number_that_a_record_has_again_is_that_of_the_newer_one() -> None:
    """Two writes that undo each other were lost, and no sector tells so."""
    log = Log()
    log.record(UNMAP, 0, 1, seq=1)
    log.record(UNMAP, 0, 1, seq=2)
    log.ledger.crashed()
    log.lsn = 0
    log.record(UNMAP, 3, 1, seq=1)
    assert log.volume.seqs == [(1, 3)]
