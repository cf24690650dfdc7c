from tests.sim.simdisk import SimDisk
from volume.disk import File
from volume.warmpages import COOLED_S, WarmPages, warm_limit


class Rig:
    """Files by slot, and which of them had their pages dropped, in order."""

    def __init__(self, limit: int) -> None:
        self.dropped: list[int] = []
        disk = SimDisk()
        disk.mkdir("journal")
        self.files = [disk.open(f"journal/{slot}", create=True) for slot in range(6)]
        self.pages = WarmPages(limit, self._drop)

    def _drop(self, file: File) -> None:
        self.dropped.append(next(n for n, own in enumerate(self.files) if own is file))

    def keep(self, *slots: int, first: int = 1) -> None:
        """The segments of these slots, in the order of the log from sequence `first` on."""
        for sequence, slot in enumerate(slots, first):
            self.pages.keep(slot, sequence, self.files[slot], 0.0)


def test_old_segments_stay_in_memory_up_to_the_bound_and_the_oldest_goes_first() -> None:
    rig = Rig(limit=2)
    rig.keep(3, 1)
    assert rig.dropped == []
    rig.keep(4, first=3)
    assert rig.dropped == [3]
    rig.keep(0, first=4)
    assert rig.dropped == [3, 1]


def test_what_is_found_at_a_start_in_no_order_leaves_the_newest() -> None:
    rig = Rig(limit=2)
    for slot, sequence in ((3, 7), (0, 9), (4, 6), (1, 8)):
        rig.keep(slot, first=sequence)
    assert sorted(rig.dropped) == [3, 4]
    rig.pages.make_way(0.0)
    assert rig.dropped[2:] == [1]


def test_a_segment_that_takes_pages_takes_those_of_the_oldest() -> None:
    rig = Rig(limit=4)
    rig.pages.make_way(0.0)  # nobody has any
    rig.keep(2, 5)
    rig.pages.make_way(0.0)
    assert rig.dropped == [2]
    rig.pages.make_way(0.0)
    rig.pages.make_way(0.0)
    assert rig.dropped == [2, 5]


def test_a_segment_that_is_written_again_keeps_its_pages() -> None:
    rig = Rig(limit=4)
    rig.keep(2, 5)
    assert rig.pages.forget(2)
    assert not rig.pages.forget(2)
    rig.pages.make_way(0.0)
    assert rig.dropped == [5]


def test_pages_that_were_dirty_are_dropped_once_more_later() -> None:
    rig = Rig(limit=1)
    rig.keep(0, 1, 2)
    assert rig.dropped == [0, 1]
    rig.pages.tend(COOLED_S - 0.1)
    assert rig.dropped == [0, 1]
    assert not rig.pages.forget(1)  # its file is closed, perhaps: no second time for it
    rig.pages.tend(COOLED_S)
    assert rig.dropped == [0, 1, 0]
    rig.pages.tend(2 * COOLED_S)
    assert rig.dropped == [0, 1, 0]


def test_without_room_for_a_single_one_all_go_at_once() -> None:
    rig = Rig(limit=0)
    rig.keep(1)
    assert rig.dropped == [1]


def test_the_bound_is_a_share_of_the_memory() -> None:
    assert warm_limit(1 << 62) == 0
    assert warm_limit(16 << 10) > 0
