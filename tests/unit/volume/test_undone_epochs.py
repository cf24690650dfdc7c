"""A member that has undone records of an epoch, and then needs records of that epoch, or of one
before it: no replay would take them, so all of the volume is copied, from what is shared on."""

import random
from contextlib import suppress

import pytest

from native import TAP_MIN_BUFFER
from tests.member_copies import Copying
from tests.sim.crash import CrashState
from tests.sim.simdisk import PowerCut
from tests.sim.store_rig import StoreRig
from tests.unit.volume.test_replica import VOLUME, Source, give_name, member, reopened
from volume.errors import BadRecords, NoSuchVersion, StoreSealed
from volume.replica import Replica

CHAIN = ((1, 16), (4, 20))


class Undone:
    """It had sixteen records of epoch 1, of which a takeover in epoch 2 that nobody has heard of
    since had it undo four; `source` has all sixteen, and four more of epoch 4."""

    def __init__(self) -> None:
        self.source, (self.rig, self.replica) = Source(), member()
        self.source.begin(1)
        self.replica.append(1, 1, 1, 10, self.source.records(10, b"a"))
        give_name(self.rig, "named")
        give_name(self.source.rig, "named")
        self.rest = self.source.records(6, b"b")
        self.replica.append(1, 1, 11, 16, self.rest)
        self.replica.promise(2)
        self.replica.undo(2, (1, 12))
        self.source.begin(4)
        self.records = self.source.records(4, b"c")
        self.replica.promise(4)

    def copy(self) -> int:
        """How many chunks were sent."""
        keep = self.replica.held[0]
        copying = Copying(self.source.replica, self.replica, 4, after=keep).run()
        assert copying.names
        self.replica.adopt(4, keep, 0, CHAIN, copying.names)
        return copying.wanted

    def check(self) -> None:
        for _ in range(2):
            assert self.replica.ends() == self.source.replica.ends() == CHAIN
            for ref in ("vm1@named", "vm1@seq:12", "vm1@seq:20"):
                found = self.rig.read_version(ref)
                assert found == self.source.rig.read_version(ref), ref
            with pytest.raises(NoSuchVersion):  # single writes in between are not here
                self.rig.read_version("vm1@seq:14")
            self.rig, self.replica = reopened(self.rig)
            self.rig.settle()


def refuse(replica: Replica, epoch: int, written: int, first: int, last: int, data: bytes) -> None:
    for may_wait in (False, True):
        with pytest.raises(NoSuchVersion, match="were undone here: all of it is needed"):
            replica.append(epoch, written, first, last, data, may_wait=may_wait)


@pytest.mark.parametrize("dies", [False, True])
def test_records_of_an_epoch_of_which_some_were_undone_come_as_a_copy(dies: bool) -> None:
    life = Undone()
    if dies:
        life.rig, life.replica = reopened(life.rig)
    refuse(life.replica, 4, 1, 11, 16, life.rest)
    assert life.replica.held == (12, 12)
    assert life.replica.append(4, 1, 11, 12, life.rest), "what is here is here"
    life.copy()
    life.replica.append(4, 4, 21, 22, life.source.records(2, b"d"))
    assert life.replica.ends() == ((1, 16), (4, 22))
    assert life.rig.read_version("vm1@seq:21")[:512] == b"d" * 512


def test_what_is_shared_stays() -> None:
    life = Undone()
    life.copy()
    life.check()


def test_an_epoch_before_the_undone_one_that_had_not_begun_here_comes_as_a_copy() -> None:
    source, (rig, replica) = Source(), member()
    source.begin(1)
    replica.append(1, 1, 1, 10, source.records(10, b"a"))
    other = Source()
    other.begin(1)
    other.records(10, b"a")
    other.begin(3)
    replica.promise(3)
    replica.append(3, 3, 11, 14, other.records(4, b"w"))
    replica.promise(4)
    replica.undo(4, (1, 10))
    source.begin(2)
    two = source.records(3, b"b")
    source.begin(5)
    source.records(4, b"c")
    replica.promise(5)
    refuse(replica, 5, 2, 11, 13, two)
    assert replica.ends() == ((1, 10),), "nothing was noted"
    Copying(source.replica, replica, 5, after=10).run()
    replica.adopt(5, 10, 0, source.replica.ends())
    assert replica.ends() == ((1, 10), (2, 13), (5, 17))
    assert rig.read_version("vm1@seq:17") == source.rig.read_version("vm1@seq:17")


def test_records_of_another_epoch_than_they_are_said_to_be_of_are_no_gap() -> None:
    source, (_, replica) = Source(), member()
    source.begin(1)
    records = source.records(2)
    replica.promise(2)
    with pytest.raises(BadRecords, match="not of epoch 2"):
        replica.append(2, 2, 1, 2, records)


def test_a_power_cut_at_any_step_of_such_a_copy_leaves_all_of_it_or_nothing() -> None:
    rng = random.Random(3)
    life = Undone()
    first = life.rig.disk.op_count
    life.copy()
    last = life.rig.disk.op_count
    ends = set()
    for count in range(1, last - first + 2):  # of what the disk is asked from here on
        life = Undone()
        life.rig.disk.crash_at(count)
        with suppress(PowerCut, OSError, StoreSealed):
            life.copy()
        life.rig, life.replica = after_cut(life.rig, rng)
        ends.add(life.replica.ends())
        if life.replica.held[0] == 12:
            refuse(life.replica, 4, 1, 11, 16, life.rest)
            life.copy()
        life.check()
    assert ends == {((1, 12),), CHAIN}


def after_cut(rig: StoreRig, rng: random.Random) -> tuple[StoreRig, Replica]:
    state = CrashState(rig.disk.trace)
    for op in rig.disk.trace.ops:
        state.apply(op)
    rig = rig.rebooted(state.drawn("cut", rng))
    rig.tend()
    found = rig.store.replicas.get(VOLUME)
    assert found is not None
    return rig, found


def test_a_log_that_was_copied_over_tells_the_epochs_that_it_does_not_have() -> None:
    life = Undone()
    life.copy()
    found = life.replica.read(1, 12, TAP_MIN_BUFFER)
    assert (found.first_seq, found.more) == (0, True)
