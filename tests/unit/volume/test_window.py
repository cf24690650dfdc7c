"""The any-write window: what it takes of the disk, and what goes first when that is too much."""

from dataclasses import replace

import pytest

from tests.sim.store_rig import KIB, SEGMENT_BYTES, SMALL, StoreRig, read_device
from tests.unit.volume.rig import chunk
from volume.errors import NoSuchVersion
from volume.gc import GcReport, Root, Weighed
from volume.historyrows import RoundRow, SnapshotRow

CHUNK = 4 * KIB
CHUNKS = 8
SHARE = 16 * SEGMENT_BYTES
WINDOW = replace(SMALL, window_bytes=SHARE, window_s=1)
ROUNDS = 40


class Life:
    """Volume "v", of which each round changes a little of every chunk."""

    def __init__(self, window_s: int = 1, short_percent: int = 10) -> None:
        options = replace(WINDOW, window_s=window_s, short_percent=short_percent)
        self.rig = StoreRig(options=options)
        self.rig.store.create_volume("v", 64 * CHUNK, chunk_size=CHUNK, compression="none")
        self.states: dict[int, bytes] = {}
        self._count = 0

    def rounds(self, count: int, first: int = 0) -> None:
        """Rounds, each with more log than they must be apart, an hour between any two."""
        for _ in range(count):
            for number in range(first, first + CHUNKS):
                self._count += 1
                self.rig.tend()
                assert self.rig.write("v", number * CHUNK, chunk(self._count, 512)) == 0
            self.states[self.seq] = self.rig.read("v")
            self.rig.store.destage()
            self.rig.clock.advance(3600.0)

    @property
    def seq(self) -> int:
        return self.rig.store.info("v").seq

    def gc(self) -> GcReport:
        """Runs of gc until nothing more goes; what the last one found."""
        for _ in range(3):
            report = self.rig.store.collect()
            self.rig.clock.advance(10.0)
            self.rig.tend()
        assert report.error is None
        return report

    def taken(self) -> int:
        """Bytes that the window has of the disk."""
        return self.gc().window_bytes + self.rig.store._pool.held_count * SEGMENT_BYTES

    def readable(self) -> list[int]:
        """Seqs of the rounds that can be opened still; what they show is checked."""
        found = []
        for seq, data in self.states.items():
            try:
                assert self.rig.read_version(f"v@seq:{seq}") == data
            except NoSuchVersion:
                continue
            found.append(seq)
        return found

    def kept_rounds(self) -> list[RoundRow]:
        return list(self.rig.store._history.rounds())


def test_log_and_the_versions_it_is_replayed_over_take_the_share_together() -> None:
    life = Life()
    life.rounds(ROUNDS)
    assert SHARE // 2 < life.taken() <= SHARE
    readable = life.readable()
    assert readable == list(life.states)[-len(readable) :], "there is a hole in the window"
    assert 1 < len(readable) < ROUNDS // 2


def test_what_is_younger_than_the_window_may_take_twice_the_share() -> None:
    life = Life(window_s=ROUNDS * 3600)
    life.rounds(ROUNDS)
    assert SHARE < life.taken() <= 2 * SHARE


def test_versions_that_have_nothing_to_themselves_cost_the_window_nothing() -> None:
    """What was a hole before takes no room: the window reaches as far as the log does."""
    life = Life()
    for first in range(0, 64, CHUNKS):
        life.rounds(1, first)
    report = life.gc()
    assert report.window_roots == 8  # the empty volume, and all but the newest
    assert report.window_bytes < SHARE // 4
    assert life.readable() == list(life.states)


@pytest.mark.parametrize(("short_percent", "stay"), [(0, True), (100, False)])
def test_versions_without_a_name_give_way_when_space_is_short(
    short_percent: int, stay: bool
) -> None:
    life = Life(3600 * ROUNDS, short_percent)
    life.rounds(3)
    life.rig.store.snapshots.create("named", ["v"])
    named = life.rig.read("v")
    life.rounds(3)
    life.gc()
    before_head = sorted(life.states)[:-1]
    assert [seq for seq in before_head if seq in life.readable()] == (
        before_head if stay else [before_head[2]]
    )
    assert life.rig.read_version("v@named") == named


def test_segments_before_the_first_round_go() -> None:
    life = Life()
    life.rounds(ROUNDS)
    life.gc()
    oldest = life.rig.store._pool.oldest_held
    assert oldest is None or oldest >= life.kept_rounds()[0].sequence


def test_named_and_open_versions_stay_when_their_rounds_go() -> None:
    life = Life()
    life.rounds(2)
    named = life.seq
    life.rig.store.snapshots.create("kept", ["v"])
    life.rounds(2)
    read = life.seq
    device = life.rig.store.open_version(f"v@seq:{read}")
    device.attach("backup")
    life.rounds(ROUNDS)
    life.gc()
    life.rig.store._manifests.cache._nodes.clear()
    assert life.kept_rounds()[0].time_ns > life.rig.clock.now_ns() - ROUNDS * 3600 * 10**9
    assert life.rig.read_version("v@kept") == life.states[named]
    assert read_device(device, 0, device.size) == life.states[read]


def weights(life: Life, size_bytes: int) -> list[Weighed]:
    """As gc would tell them, of every round; `size_bytes`: of each."""
    return [
        Weighed(Root(b"", 1, window=True, tag=row.lsn), size_bytes)
        for row in reversed(life.kept_rounds()[:-1])
    ]


def test_the_newest_round_stays_however_much_its_versions_take() -> None:
    life = Life()
    life.rounds(3)
    life.rig.store.upkeep.window.weighed(weights(life, 100 * SHARE))
    assert len(life.kept_rounds()) == 1
    life.rounds(1)
    assert life.rig.read("v") == life.states[life.seq]


def test_the_oldest_rounds_go_first() -> None:
    life = Life()
    life.rounds(6)
    before = life.kept_rounds()
    assert len(before) == 7
    life.rig.store.upkeep.window.weighed(weights(life, SHARE // 4))
    # Three times a quarter, and a segment or two, fit into the share; four times do not.
    assert life.kept_rounds() == before[-4:]


def test_weights_of_rounds_that_went_meanwhile_count_for_those_before() -> None:
    life = Life()
    life.rounds(6)
    before, told = life.kept_rounds(), weights(life, SHARE // 4)
    life.rig.store._history.drop_rounds(before[3:6])
    life.rig.store.upkeep.window.weighed(told)
    assert life.kept_rounds() == before[6:]


def test_round_that_a_point_is_replayed_from_stays() -> None:
    life = Life()
    life.rounds(2)
    seq, start = life.seq - CHUNKS // 2, life.kept_rounds()[1]
    life.rounds(2)
    with life.rig.store.versions.resolved(f"v@seq:{seq}") as version:
        data = life.rig.read_version(f"v@seq:{seq}")
        row = replace(version.row, commit=bytes(32), root=bytes(32), height=1)
        late = SnapshotRow(row.number, "late", seq, row.time_ns)
        life.rig.store._history.add_points([row], [late])
    life.rig.store.upkeep.window.weighed(weights(life, 100 * SHARE))
    assert life.kept_rounds()[0] == start
    assert len(life.kept_rounds()) == 2
    life.gc()
    life.rounds(1)
    life.gc()
    assert life.rig.store._history.version(row.number, seq) is not None
    assert life.rig.read_version("v@late") == data


@pytest.mark.parametrize("window_s", [1, ROUNDS * 3600])
def test_two_volumes_have_one_window(window_s: int) -> None:
    """A round that one of them cannot afford is no use to the other."""
    life = Life(window_s)
    life.rig.store.create_volume("idle", 64 * CHUNK, chunk_size=CHUNK, compression="none")
    assert life.rig.write("idle", 0, chunk(0, 512)) == 0
    life.rounds(ROUNDS)
    assert life.rig.write("idle", 0, chunk(1, 512)) == 0
    life.rounds(1)
    assert life.taken() <= SHARE * (1 if window_s == 1 else 2)
    assert life.readable() == list(life.states)[-len(life.readable()) :]
    assert life.rig.read_version("idle@-1s")[:512] == chunk(1, 512)
    start_ns = life.rig.store.versions.log("idle").window_start_ns
    assert start_ns == life.kept_rounds()[0].time_ns
