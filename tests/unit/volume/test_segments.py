from threading import Thread

import pytest

from native import Journal
from tests.sim.faults import Fault, Stall
from tests.sim.simclock import SimClock
from tests.sim.simdisk import SimDisk
from volume import segments
from volume.options import JournalGeometry
from volume.segments import FOLDER, LogSegment, SegmentPool, segment_path
from volume.warmpages import WarmPages

STORE_UUID = bytes(range(16))
SEGMENT_BYTES = 16 * 1024


class Rig:
    """A pool with ready segments, and an old one of the window."""

    def __init__(self) -> None:
        self.disk = SimDisk()
        self.disk.mkdir(FOLDER)
        self.journal = Journal(STORE_UUID, SEGMENT_BYTES, 1)
        geometry = JournalGeometry(SEGMENT_BYTES, 16 * SEGMENT_BYTES)
        self.clock = SimClock()
        self.pool = SegmentPool(self.disk, self.journal, geometry, STORE_UUID, self.clock)
        while self.pool.tend():
            pass
        self.old = self.pool.count
        file = self.disk.open(segment_path(self.old), create=True)
        self.pool.add(self.old, file)
        self.pool.hold_found(LogSegment(self.old, file, 1, 1, 1, 0, 0), until_ns=0)

    def let_go(self) -> int:
        """Give the old segment's space back."""
        return self.pool.expire(0, 1, 0, None, lambda _: None, shrink=True)


def test_a_segment_is_made_while_another_is_removed() -> None:
    """One thread gives a segment of the window back while another makes one, which must not take
    the name that is about to go: the disk would say "exists", and that sealed the store."""
    rig = Rig()

    def make() -> None:
        rig.journal.append_mark(0)  # takes a ready segment
        assert rig.pool.tend()

    rig.disk.faults.add(Fault("unlink", Stall(make), segment_path(rig.old)))
    assert rig.let_go() == 1
    slots = [*range(rig.old), rig.old + 1]
    assert [f"{FOLDER}/{name}" for name in rig.disk.list(FOLDER)] == [
        segment_path(slot) for slot in slots
    ]
    assert rig.pool.count == len(slots)
    assert not rig.pool.tend()
    rig.pool.close()


def test_a_segment_that_is_removed_while_the_log_is_listed_is_none_of_it() -> None:
    rig = Rig()
    remover = Thread(target=rig.let_go)

    def remove() -> None:
        remover.start()
        remover.join(0.05)  # not for ever: it has to wait for whoever reads a header

    rig.disk.faults.add(Fault("pread", Stall(remove), segment_path(0)))
    assert rig.pool.log_from(1) == []
    remover.join()
    assert rig.pool.held_count == 0
    assert rig.pool.count == rig.old
    rig.pool.close()


def test_segments_that_are_used_up_quickly_are_kept_ready_in_greater_number() -> None:
    rig = Rig()

    def pace(each_s: float) -> int:
        """Begin segments that far apart; how many are ready afterwards."""
        for _ in range(2):
            rig.clock.advance(each_s)
            sequence = rig.journal.cut()[1]
            while rig.journal.cut()[1] == sequence:
                rig.journal.append_mark(0)
            while rig.pool.tend():
                pass
        return rig.journal.state()[3]

    slowly = pace(5.0)
    assert pace(0.01) > slowly
    rig.pool.close()


def test_old_pages_go_when_a_bare_segment_is_begun_and_not_when_it_is_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Segments that were only allocated take their pages when they are written."""
    rig = Rig()
    ways: list[float] = []
    monkeypatch.setattr(WarmPages, "make_way", lambda _, now_s: ways.append(now_s))
    monkeypatch.setattr(segments, "_allocate", lambda *_: True)

    def begin() -> int:
        """Begin a segment within 10 ms and make others ready; for how many room was made."""
        ways.clear()
        rig.clock.advance(0.01)
        sequence = rig.journal.cut()[1]
        while rig.journal.cut()[1] == sequence:
            rig.journal.append_mark(0)
        while rig.pool.tend():
            pass
        return len(ways)

    for _ in range(4):  # those that were made before were written
        begin()
    made = rig.pool.count
    begun = [begin() for _ in range(4)]
    assert rig.pool.count > made
    assert begun == [1, 1, 1, 1]
    rig.pool.close()
