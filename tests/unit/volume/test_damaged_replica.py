"""A member whose volume is not destaged, as a node of its tree is damaged: what it can go back to,
what it says when it cannot go on, and that all of the volume from another node heals it."""

import random
from contextlib import suppress

import pytest

from native import TAP_MIN_BUFFER
from tests.member_copies import Copying
from tests.sim.crash import CrashState
from tests.sim.simdisk import PowerCut
from tests.sim.store_rig import StoreRig
from tests.unit.volume.test_replica import VOLUME, Source, give_name, member, reopened
from volume.destager import RETRY_MAX_S, RETRY_S
from volume.errors import CorruptData, NeedsAll, NoSuchVersion, ReplicaError, StoreSealed
from volume.layout import ZERO_ID
from volume.replica import Replica
from volume.replicastate import PATIENCE_S


class Damaged:
    """It has ten records in chunks, whose root is damaged, and four behind them, which nobody else
    has; `source` has ten others behind the first ten, of epoch 2."""

    def __init__(self) -> None:
        self.source, (rig, replica) = Source(), member()
        self.source.begin(1)
        replica.append(1, 1, 1, 10, self.source.records(10, b"a"))
        rig.settle()
        located = rig.store._chunks.locate(replica.volume.record.head.root)
        self._bit = (f"packs/{located.pack.number:08x}.pack", located.data_offset + 20)
        rig.disk.flip_bit(*self._bit)
        self.rig, self.replica = reopened(rig)  # nothing is in memory
        other = Source()
        other.begin(1)
        other.records(10, b"a")
        self.replica.append(1, 1, 11, 14, other.records(4, b"w"))
        self.source.begin(2)
        self.records = self.source.records(10, b"b")
        self.rig.store.destage()
        assert self.held_up
        self.replica.promise(2)

    @property
    def held_up(self) -> str | None:
        return self.rig.store.status().destage_held_up

    def repair(self) -> None:
        self.rig.disk.flip_bit(*self._bit)

    def wait(self, seconds: float) -> None:
        self.rig.clock.advance(seconds)
        self.rig.store.destage()

    def copy(self) -> None:
        """All of the volume comes from the source."""
        Copying(self.source.replica, self.replica, 2).run()
        self.replica.adopt(2, 0, 0, ((1, 10), (2, 20)))

    def check(self) -> None:
        """It is what the source is, and destaged, also when it is opened anew."""
        for _ in range(2):
            self.wait(RETRY_S)
            assert self.held_up is None
            assert self.replica.ends() == ((1, 10), (2, 20))
            seq = "vm1@seq:20"
            assert self.rig.read_version(seq) == self.source.rig.read_version(seq)
            self.rig, self.replica = reopened(self.rig)


def opened(rig: StoreRig) -> tuple[StoreRig, Replica]:
    rig.tend()
    found = rig.store.replicas.get(VOLUME)
    assert found is not None
    return rig, found


@pytest.mark.parametrize("dies", [False, True])
def test_what_was_frozen_becomes_no_version_once_it_was_undone(dies: bool) -> None:
    life = Damaged()
    life.replica.undo(2, (1, 10))  # that state is in chunks
    if dies:
        life.rig, life.replica = reopened(life.rig)
    life.repair()
    life.wait(RETRY_MAX_S)
    assert life.held_up is None
    life.replica.append(2, 2, 11, 20, life.records)
    for seq in (12, 14, 16):
        found = life.rig.read_version(f"vm1@seq:{seq}")
        assert found == life.source.rig.read_version(f"vm1@seq:{seq}"), seq
    life.check()


def test_a_state_that_damage_is_in_the_way_of_is_given_up_after_a_while() -> None:
    life = Damaged()
    for _ in range(2):
        with pytest.raises(CorruptData, match="is not destaged"):
            life.replica.undo(2, (1, 12))
        life.wait(PATIENCE_S / 2 - 1.0)
    life.wait(2.0)
    with pytest.raises(NoSuchVersion, match="it is damaged here, all of it is needed"):
        life.replica.undo(2, (1, 12))
    assert life.replica.ends() == ((1, 14),)
    assert life.replica.begin_copy(2) == ZERO_ID, "what is damaged is no base of a copy"
    life.copy()
    life.check()


def test_a_state_can_be_gone_back_to_when_the_damage_has_gone_by_itself() -> None:
    life = Damaged()
    life.wait(PATIENCE_S)
    life.repair()
    life.wait(RETRY_MAX_S)
    life.replica.undo(2, (1, 12))
    assert life.replica.held == (12, 12)


def fill(life: Damaged) -> int:
    """Append records until the journal has no room; their epoch is 1. How many there are then."""
    other = Source()
    other.begin(1)
    other.records(10, b"a")
    other.records(4, b"w")
    seq = 14
    for _ in range(1000):
        first = other.replica.held[0] + 1
        records = other.records(16, b"f")
        life.rig.tend()
        life.replica.append(2, 1, first, first + 15, records)
        seq = life.replica.held[0]
        if seq < first + 15:
            return seq
        life.rig.store.destage()
        other.rig.settle()
    raise AssertionError("nothing bounds what the journal keeps")


@pytest.mark.parametrize("named", [False, True])
def test_records_for_which_there_will_be_no_room_are_refused_after_a_while(named: bool) -> None:
    life = Damaged()
    if named:
        give_name(life.rig, "named")
    seq = fill(life)
    more = Source()
    more.begin(1)
    while more.replica.held[0] < seq:
        more.records(min(16, seq - more.replica.held[0]))
        more.rig.settle()
    records = more.records(1)
    assert life.replica.append(2, 1, seq + 1, seq + 1, records)
    assert life.replica.held[0] == seq, "as long as it may be read again they wait"
    life.wait(PATIENCE_S)
    with pytest.raises(NoSuchVersion, match="no journal space") as refused:
        life.replica.append(2, 1, seq + 1, seq + 1, records)
    # A copy that goes on from here would not bring it.
    assert isinstance(refused.value, NeedsAll) == named
    life.copy()
    life.check()


@pytest.mark.parametrize("named", [False, True])
def test_a_restore_that_damage_is_in_the_way_of_is_given_up_after_a_while(named: bool) -> None:
    life = Damaged()
    if named:
        give_name(life.rig, "named")
    source = Source()
    source.begin(1)
    source.records(10, b"a")
    source.records(4, b"w")
    source.rig.settle()
    volume = source.replica.volume
    with source.rig.store.versions.settled("vm1@seq:10") as (record, row):
        source.rig.store._notes.restore(volume, row, record.uuid, None)
    buffer = bytearray(TAP_MIN_BUFFER)
    length, first, last, _ = source.core.take(buffer)
    assert (first, last) == (15, source.replica.held[0])
    records = bytes(buffer[:length])
    for _ in range(2):
        with pytest.raises((CorruptData, ReplicaError)):
            life.replica.append(2, 1, first, last, records)
        life.wait(PATIENCE_S / 2 - 1.0)
    life.wait(2.0)
    with pytest.raises(NoSuchVersion, match="it is damaged here, all of it is needed") as refused:
        life.replica.append(2, 1, first, last, records)
    assert isinstance(refused.value, NeedsAll) == named
    life.copy()
    life.check()


def test_a_power_cut_at_any_step_of_a_copy_over_damage_leaves_all_of_it_or_nothing() -> None:
    def about_to() -> Damaged:
        life = Damaged()
        Copying(life.source.replica, life.replica, 2).run()
        return life

    def land(life: Damaged) -> None:
        life.replica.adopt(2, 0, 0, ((1, 10), (2, 20)))
        life.wait(RETRY_S)  # what was frozen goes

    rng = random.Random(1)
    life = about_to()
    first = life.rig.disk.op_count
    land(life)
    ends = set()
    for count in range(1, life.rig.disk.op_count - first + 2):
        life = about_to()
        life.rig.disk.crash_at(count)
        with suppress(PowerCut, OSError, StoreSealed):
            land(life)
        state = CrashState(life.rig.disk.trace)
        for op in life.rig.disk.trace.ops:
            state.apply(op)
        life.rig, life.replica = opened(life.rig.rebooted(state.drawn("cut", rng)))
        ends.add(life.replica.ends())
        if life.replica.held[0] == 14:
            life.copy()
        life.check()
    assert ends == {((1, 14),), ((1, 10), (2, 20))}
