"""Moves of shards on devices: what they leave when they end, fail, are overtaken or lose power."""

import errno
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from tests.sim.crash import Budget, CrashPlanner
from tests.sim.faults import Fail, Fault, Lie
from tests.sim.image import Image
from tests.sim.trace import Trace
from tests.stripe_rig import MarkedRows, StripeRig, make_pack
from transport.moves import Move, Reason
from transport.packrow import PackRow, leftovers, rows_from
from transport.shardfile import CorruptShard, ShardFile, ShardName, Stripe
from transport.shardmoves import MAX_SWAPS, MoveOvertaken, carry_out
from transport.stripes import StripeLost, StripeReader
from volume.disk import Disk

PACK = make_pack([4096, 8192, 512, 16384, 4096, 2048])
COPIED, COMPUTED = "1", None
BUDGET = Budget(tears=12, random_ops=12, random_sectors=12)


class Cluster:
    """A 4+2 stripe on devices 0 to 5 of 8, as its row says."""

    def __init__(self, image: Image | None = None, row: PackRow | None = None) -> None:
        self.rig = StripeRig(8, image, record=True)
        if image is None:
            self.stripe: Stripe = self.rig.encode(PACK, 4, 2)
            self.rig.disk.restart_trace()
        self.rows = MarkedRows(self.rig.disk, row or row_of(self.stripe))

    @property
    def row(self) -> PackRow:
        return self.rows.rows[PACK.pack_id]

    @property
    def disks(self) -> dict[str, Disk]:
        return {str(number): device for number, device in enumerate(self.rig.devices)}

    def carry_out(self, move: Move, *, away: str | None = None) -> PackRow:
        disks = {name: disk for name, disk in self.disks.items() if name != away}
        return carry_out(move, self.rows, disks)

    def names(self, device: str) -> list[ShardName]:
        found = map(ShardName.parse, self.rig.devices[int(device)].list("shards"))
        return [name for name in found if name is not None]

    def leftovers(self) -> list[tuple[str, int]]:
        rows = {self.row.pack_id: self.row}
        return [
            (device, name.number)
            for device in self.disks
            for name in leftovers(device, self.names(device), rows, ())
        ]

    def good(self) -> int:
        """Shards that are whole where the row says; the pack has to read as it was."""
        held = [None if one is None else self.disks.get(one) for one in self.row.shards]
        reader = StripeReader(self.row.pack_id, self.row.data, self.row.digest, held)
        assert reader.pread(len(PACK.content), 0) == PACK.content
        return len(held) - len(reader.check_all())


def row_of(stripe: Stripe) -> PackRow:
    return PackRow(
        stripe.pack_id,
        stripe.pack_size,
        shards=tuple(map(str, range(6))),
        data=4,
        shard_bytes=stripe.shard_length,
        digest=stripe.digest,
    )


def move_of(source: str | None = COPIED, target: str = "6", number: int = 1) -> Move:
    reason = Reason.LOST if source is None else Reason.DRAIN
    return Move(PACK.pack_id, number, source, target, 1, reason, 2, 4, ("0", "2", "3", "4", "5"))


def test_a_moved_shard_is_whole_at_its_target_and_gone_from_its_source() -> None:
    cluster = Cluster()
    assert cluster.carry_out(move_of()) == cluster.row
    assert cluster.row.shards == ("0", "6", "2", "3", "4", "5")
    assert cluster.good() == 6
    assert cluster.names("1") == []
    assert cluster.leftovers() == []


def test_a_lost_shard_is_computed_onto_its_target() -> None:
    cluster = Cluster()
    cluster.carry_out(move_of(COMPUTED), away="1")
    assert cluster.row.shards[1] == "6"
    assert cluster.good() == 6
    assert cluster.leftovers() == [("1", 1)]  # when the device should come back


def test_a_damaged_source_is_not_copied_and_can_be_computed() -> None:
    cluster = Cluster()
    path = cluster.rig.path(cluster.stripe, 1)
    cluster.rig.disk.flip_bit(path, 8192 + 500)
    with pytest.raises(CorruptShard, match="page 0 fails"):
        cluster.carry_out(move_of())
    assert cluster.row == row_of(cluster.stripe)
    assert cluster.names("6") == []
    cluster.carry_out(move_of(COMPUTED))
    assert cluster.good() == 6


def test_too_few_shards_are_an_error_and_nothing_is_noted() -> None:
    cluster = Cluster()
    for number in (1, 2, 3):
        cluster.rig.disk.unlink(cluster.rig.path(cluster.stripe, number))
    with pytest.raises(StripeLost, match="3 good shards, and it takes 4"):
        cluster.carry_out(move_of(COMPUTED))
    assert cluster.row == row_of(cluster.stripe)
    assert cluster.names("6") == []


@pytest.mark.parametrize("op", ["open", "pwrite", "sync", "rename", "sync_dir", "pread"])
@pytest.mark.parametrize("source", [COPIED, COMPUTED])
def test_a_target_that_fails_costs_the_move_only(op: str, source: str | None) -> None:
    cluster = Cluster()
    cluster.rig.disk.faults.add(Fault(op, Fail(errno.EIO), "d6/*"))
    with pytest.raises(OSError, match="Input/output"):
        cluster.carry_out(move_of(source))
    assert cluster.row == row_of(cluster.stripe)
    assert cluster.good() == 6
    cluster.carry_out(move_of(source, target="7"))
    assert cluster.good() == 6


def test_a_target_that_lies_is_found_out_before_the_source_goes() -> None:
    cluster = Cluster()
    cluster.rig.disk.faults.add(Fault("pwrite", Lie(), "d6/*"))
    with pytest.raises(CorruptShard):
        cluster.carry_out(move_of())
    assert cluster.row == row_of(cluster.stripe)
    assert cluster.good() == 6


# -- somebody else


def test_a_shard_of_the_pack_that_moved_meanwhile_does_not_hinder() -> None:
    cluster = Cluster()
    cluster.rows.before_swap = [cluster.row.moved(4, "7")]
    cluster.carry_out(move_of())
    assert cluster.row.shards == ("0", "6", "2", "3", "7", "5")


OVERTAKEN: dict[str, Callable[[PackRow], PackRow]] = {
    "is on 7, not on 1": lambda row: row.moved(1, "7"),
    "6 has a shard of the pack already": lambda row: row.moved(4, "6"),
    "there is no such stripe": lambda row: replace(row, shards=(), copies=("7",)),
    "is another stripe": lambda row: replace(row, digest=bytes(16)),
}


@pytest.mark.parametrize("why", OVERTAKEN)
def test_a_move_whose_row_became_another_ends_and_removes_nothing(why: str) -> None:
    cluster = Cluster()
    other = OVERTAKEN[why](cluster.row)
    cluster.rows.before_swap = [other]
    with pytest.raises(MoveOvertaken, match=why):
        cluster.carry_out(move_of())
    assert cluster.row == other
    assert cluster.names("1") == [cluster.stripe.name(1)]


def test_a_row_that_never_stands_still_ends_the_move() -> None:
    cluster = Cluster()
    cluster.rows.before_swap = [cluster.row.moved(4, str(n)) for n in range(100, 100 + MAX_SWAPS)]
    with pytest.raises(MoveOvertaken, match=f"changed {MAX_SWAPS} times"):
        cluster.carry_out(move_of())


def test_a_move_of_a_shard_that_there_is_not_is_refused() -> None:
    cluster = Cluster()
    with pytest.raises(MoveOvertaken, match="the stripe has 6 shards"):
        cluster.carry_out(move_of(COMPUTED, number=6))


# -- power cuts


def cuts(trace: Trace) -> Iterator[Image]:
    yield from CrashPlanner(trace, budget=BUDGET).images(range(len(trace.ops) + 1))


@pytest.mark.parametrize("source", [COPIED, COMPUTED])
def test_a_power_cut_anywhere_leaves_as_many_good_shards_and_is_gone_on_from(
    source: str | None,
) -> None:
    lived = Cluster()
    start = lived.row
    if source is COMPUTED:
        lived.rig.disk.unlink(lived.rig.path(lived.stripe, 1))
        lived.rig.disk.sync_dir("d1/shards")
        lived.rig.disk.restart_trace()
    good = lived.good()
    lived.carry_out(move_of(source))
    trace, moved = lived.rig.disk.trace, lived.row
    seen, count = set(), 0
    for image in cuts(trace):
        count += 1
        marks = [mark for mark in trace.marks(image.point) if isinstance(mark, PackRow)]
        after = Cluster(image, marks[-1] if marks else start)
        seen.add(after.row == moved)
        assert after.good() >= good, image.why
        if after.row != moved:
            after.carry_out(move_of(source))
        assert after.row == moved
        assert after.good() == 6
        assert set(after.leftovers()) <= {("1", 1)}
    assert seen == {False, True}
    assert count > 20


# -- rows from shards


def stripes_of(cluster: Cluster) -> list[tuple[str, Stripe, int]]:
    return [
        (device, ShardFile(cluster.rig.devices[int(device)], name).stripe, name.number)
        for device in cluster.disks
        for name in cluster.names(device)
    ]


def test_rows_are_made_again_from_what_shards_say() -> None:
    cluster = Cluster()
    cluster.carry_out(move_of())
    found = stripes_of(cluster)
    assert rows_from(found) == {PACK.pack_id: cluster.row}
    assert rows_from(found[::-1]) == {PACK.pack_id: cluster.row}
    lost = [each for each in found if each[2] not in (0, 5)]
    assert rows_from(lost)[PACK.pack_id].shards == (None, "6", "2", "3", "4", None)
    assert rows_from(lost[1:]) == {}


def test_of_two_stripes_of_a_pack_the_one_with_more_to_spare_counts() -> None:
    cluster = Cluster()
    cluster.rig.encode(PACK, 2, 1)
    found = stripes_of(cluster)
    assert rows_from(found)[PACK.pack_id] == cluster.row
    fewer = [each for each in found if each[1].width == 3 or each[2] < 4]
    assert rows_from(fewer)[PACK.pack_id].shards == ("0", "1", "2")
