"""A takeover, step by step, and what may come instead of each."""

from itertools import count
from typing import Any

import pytest

from tests.metastore_twin import DictMetaStore
from tests.takeover.world import VOLUME
from transport.group.acks import NodeId
from transport.group.chain import Chain
from transport.group.lease import LEASE_S
from transport.group.takeover import Task
from transport.group.takeover_run import (
    MAX_RECORD_EPOCH,
    Commit,
    Effect,
    GaveUp,
    Lead,
    Look,
    Mend,
    Overtaken,
    Pace,
    Seal,
    Serve,
    Takeover,
    Why,
)
from volume.metastore import ClusterRecords, Done, Outcome, Stored, Unavailable, Unknown
from volume.metastore_records import GroupState, Mode, VolumeGroup

A, B, C = (NodeId(letter * 32) for letter in "abc")
OLD = Chain(((1, 100),))
LONGER = Chain(((1, 120),))


class Bench:
    """One takeover by B of a volume whose primary is A, and the rows it is about."""

    def __init__(
        self,
        *,
        epoch: int = 1,
        primary: str | None = A,
        state: GroupState = GroupState.OPEN,
        **arguments: Any,
    ) -> None:
        tokens = count(1)
        self.records = ClusterRecords(DictMetaStore(), lambda: f"{next(tokens):032x}")
        group = VolumeGroup(
            *(VOLUME, "vm1", epoch, primary, (A, B, C), 3, 2, Mode.MIRROR, None, "main"), state
        )
        assert isinstance(self.records.commit(self.records.create_volume(group)), Done)
        self.run = Takeover(
            B, self.found, self.records.change_volume, lambda: 0.0, **{"pace": Pace(), **arguments}
        )

    @property
    def found(self) -> Stored[VolumeGroup]:
        found = self.records.volume(VOLUME)
        assert found is not None
        return found

    def commit(self, effects: list[Effect]) -> Outcome:
        """Commit what has to be."""
        (commit,) = (each for each in effects if isinstance(each, Commit))
        return self.records.commit(commit.transaction)

    def looks(self, quiet_s: float = 60.0) -> list[Effect]:
        """Up to `claim`: all but A say that they miss it."""
        assert self.run.start(0.0) == [Look(A), Look(B), Look(C)]
        assert self.run.looked(B, 0, quiet_s, 0.0) == []
        assert self.run.looked(C, 0, quiet_s, 0.0) == []
        assert self.run.deadline == 0.3
        return self.run.poll(0.3)

    def seals(self) -> list[Effect]:
        """Up to SEAL."""
        return self.run.committed(self.commit(self.looks()), 1.0)

    def chosen(self, mine: Chain, theirs: Chain, quiet_s: float = 60.0) -> list[Effect]:
        """Up to what follows from the choice, at 2.3."""
        assert self.seals() == [Seal(A, 2), Seal(B, 2), Seal(C, 2)]
        assert self.run.promised(B, 2, mine, quiet_s, 2.0) == []
        assert self.run.promised(C, 2, theirs, quiet_s, 2.0) == []
        return self.run.poll(2.3)


def gave_up(effects: list[Effect]) -> GaveUp:
    (end,) = effects
    assert isinstance(end, GaveUp)
    return end


def test_a_takeover_from_its_first_look_to_a_record_that_says_open() -> None:
    bench = Bench()
    (lead,) = bench.chosen(OLD, OLD)
    group = bench.found.record
    assert (group.epoch, group.primary, group.state) == (2, B, GroupState.SEALING)
    assert lead == Lead(group, OLD)
    effects = bench.run.led(2.5)  # all of the lease was over before
    assert effects[0] == Serve(2)
    assert bench.run.committed(bench.commit(effects), 3.0) == []
    assert bench.run.ended
    assert bench.found.record.state is GroupState.OPEN


def test_who_lacks_something_takes_it_before_it_leads() -> None:
    bench = Bench()
    (mend,) = bench.chosen(OLD, LONGER)
    assert mend == Mend(Task(B, (1, 100), False, C), LONGER, 2)
    (again,) = bench.run.failed(mend, "broke off", 3.0) + bench.run.poll(bench.run.deadline)
    assert again == mend
    assert bench.run.mended(4.0) == [Lead(bench.found.record, LONGER)]


def test_who_cannot_take_what_it_lacks_gives_up() -> None:
    bench = Bench()
    effects, now = bench.chosen(OLD, LONGER), 2.3
    for _ in range(Pace().attempts - 1):
        (mend,) = effects
        assert isinstance(mend, Mend)
        assert bench.run.failed(mend, "broke off", now) == []
        now = bench.run.deadline
        effects = bench.run.poll(now)
    (mend,) = effects
    assert isinstance(mend, Mend)
    end = gave_up(bench.run.failed(mend, "broke off", 60.0))
    assert (end.why, end.floor) == (Why.FAILED, 2)
    assert "broke off" in end.text


def test_what_is_left_of_the_old_lease_is_waited_for() -> None:
    bench = Bench()
    bench.chosen(OLD, OLD, quiet_s=4.0)
    assert bench.run.led(2.5) == []
    assert bench.run.phase == "wait"
    assert bench.run.deadline == 2.0 + LEASE_S - 4.0
    assert bench.run.poll(7.9) == []
    assert bench.run.poll(8.0)[0] == Serve(2)


def test_an_old_primary_that_promised_has_stopped_so_nobody_waits() -> None:
    bench = Bench(agreed=True)
    bench.run.start(0.0)
    for node in (A, B):
        assert bench.run.looked(node, 1, 0.0, 0.0) == []
    bench.run.committed(bench.commit(bench.run.looked(C, 1, 0.0, 0.0)), 0.0)
    for node in (A, B):
        assert bench.run.promised(node, 2, OLD, 0.0, 0.1) == []
    assert bench.run.promised(C, 2, OLD, 0.0, 0.1) == [Lead(bench.found.record, OLD)]
    assert bench.run.led(0.2)[0] == Serve(2)


def test_the_last_that_tried_has_stopped_but_one_before_it_may_read() -> None:
    bench = Bench(primary=A, state=GroupState.SEALING)
    for node in (A, B, C):
        effects = bench.run.start(0.0) if node == A else []
        effects = bench.run.looked(node, 1, 7.0, 0.0)
    bench.run.committed(bench.commit(effects), 0.0)
    for node in (A, B, C):
        bench.run.promised(node, 2, OLD, 7.0, 0.0)
    assert bench.run.led(0.1) == []
    assert bench.run.deadline == 3.0


def test_a_primary_that_enough_members_hear_is_left_alone() -> None:
    bench = Bench()
    end = gave_up(bench.looks(quiet_s=1.0))
    assert end.why is Why.ALIVE
    assert "is left alone: 0 of 2 members that answered heard nothing from it" in end.text
    assert end.text.endswith(" s, a takeover needs 2")
    assert bench.found.record.epoch == 1


def test_who_reaches_nobody_changes_nothing() -> None:
    bench = Bench()
    bench.run.start(0.0)
    assert bench.run.looked(B, 0, 60.0, 0.0) == []
    end = gave_up(bench.run.poll(2.0))
    assert end.why is Why.ALONE
    assert bench.found.record.epoch == 1


@pytest.mark.parametrize(
    ("state", "primary"),
    [(GroupState.CLOSED, None), (GroupState.CLOSED, A), (GroupState.OPEN, B)],
)
def test_a_volume_that_nobody_serves_is_opened_at_once(
    state: GroupState, primary: str | None
) -> None:
    bench = Bench(state=state, primary=primary)
    bench.run.start(0.0)
    bench.run.looked(B, 0, 0.0, 0.0)
    bench.run.looked(C, 0, 0.0, 0.0)
    bench.run.committed(bench.commit(bench.run.poll(0.3)), 0.3)
    bench.run.promised(B, 2, OLD, 0.0, 0.4)
    bench.run.promised(C, 2, OLD, 0.0, 0.4)
    assert bench.run.poll(0.7) == [Lead(bench.found.record, OLD)]
    assert bench.run.led(0.8)[0] == Serve(2)


def test_the_epoch_is_above_all_that_were_promised() -> None:
    bench = Bench()
    bench.run.start(0.0)
    bench.run.looked(B, 7, 60.0, 0.0)
    bench.run.looked(C, 9, 60.0, 0.0)
    bench.run.committed(bench.commit(bench.run.poll(0.3)), 0.3)
    assert bench.run.epoch == bench.found.record.epoch == 10


def test_an_epoch_that_does_not_fit_into_a_record_is_not_begun() -> None:
    bench = Bench(floor=MAX_RECORD_EPOCH)
    end = gave_up(bench.looks())
    assert end.why is Why.FAILED
    assert str(MAX_RECORD_EPOCH + 1) in end.text
    assert bench.found.record.epoch == 1


def test_a_record_that_changed_meanwhile_is_looked_at_again() -> None:
    bench = Bench()
    effects = bench.looks()
    bench.records.commit(bench.records.rename_volume(bench.found, "vm2"))
    assert gave_up(bench.run.committed(bench.commit(effects), 1.0)).why is Why.OVERTAKEN


def test_the_same_transaction_is_tried_until_it_is_known_what_happened() -> None:
    bench = Bench()
    (first,) = bench.looks()
    assert isinstance(first, Commit)
    bench.records.commit(first.transaction)
    assert bench.run.committed(Unknown("no answer"), 1.0) == []
    (again,) = bench.run.poll(bench.run.deadline)
    assert again == first
    assert bench.run.committed(bench.commit([again]), 2.0) == [Seal(A, 2), Seal(B, 2), Seal(C, 2)]


def test_without_a_metastore_nothing_begins() -> None:
    bench = Bench()
    bench.looks()
    assert gave_up(bench.run.committed(Unavailable("no quorum"), 1.0)).why is Why.METASTORE
    bench = Bench()
    effects = bench.looks()
    for _ in range(Pace().attempts - 1):
        assert len(effects) == 1
        assert bench.run.committed(Unknown("no answer"), 1.0) == []
        effects = bench.run.poll(bench.run.deadline)
    assert gave_up(bench.run.committed(Unknown("no answer"), 9.0)).why is Why.METASTORE


def test_a_volume_that_is_open_stays_so_while_the_metastore_is_away() -> None:
    bench = Bench()
    bench.chosen(OLD, OLD)
    effects = bench.run.led(2.5)
    for _ in range(20):
        assert isinstance(effects[-1], Commit)
        assert bench.run.committed(Unavailable("no quorum"), 3.0) == []
        effects = bench.run.poll(bench.run.deadline)
    assert bench.run.deadline > 1e9
    assert bench.run.committed(bench.commit(effects), 99.0) == []
    assert bench.found.record.state is GroupState.OPEN


def test_a_volume_that_was_renamed_while_it_was_opened_is_published() -> None:
    bench = Bench()
    bench.chosen(OLD, OLD)
    effects = bench.run.led(2.5)
    bench.records.commit(bench.records.rename_volume(bench.found, "vm2"))
    effects = bench.run.committed(bench.commit(effects), 3.0)
    assert bench.run.committed(bench.commit(effects), 3.0) == []
    assert (bench.found.record.name, bench.found.record.state) == ("vm2", GroupState.OPEN)


def test_who_finds_a_later_epoch_when_it_publishes_stops() -> None:
    bench = Bench()
    bench.chosen(OLD, OLD)
    effects = bench.run.led(2.5)
    later = bench.found.record
    later = VolumeGroup(**{**_values(later), "epoch": 5, "primary": C})
    bench.records.commit(bench.records.change_volume(bench.found, later))
    assert bench.run.committed(bench.commit(effects), 3.0) == [Overtaken(5)]


def _values(group: VolumeGroup) -> dict[str, Any]:
    return {name: getattr(group, name) for name in VolumeGroup.__slots__}


def test_a_member_that_promised_somebody_else_ends_it() -> None:
    bench = Bench()
    seal = bench.seals()[0]
    assert isinstance(seal, Seal)
    end = gave_up(bench.run.refused(seal, 6, 2.0))
    assert (end.why, end.floor) == (Why.OVERTAKEN, 6)
    bench = Bench()
    bench.chosen(OLD, OLD)
    assert gave_up(bench.run.fenced(7, 3.0)).floor == 7
    bench = Bench()
    bench.seals()
    assert gave_up(bench.run.promised(C, 8, OLD, 0.0, 2.0)).floor == 8


def test_members_that_do_not_promise_are_asked_again_and_then_given_up() -> None:
    bench = Bench()
    seals = {each.member: each for each in bench.seals() if isinstance(each, Seal)}
    bench.run.promised(B, 2, OLD, 60.0, 1.0)
    now = 1.0
    for _ in range(Pace().attempts - 1):
        assert bench.run.failed(seals[A], "gone", now) == []
        assert bench.run.failed(seals[C], "gone", now) == []
        now = bench.run.deadline
        assert bench.run.poll(now) == [seals[A], seals[C]]
    bench.run.failed(seals[A], "gone", now)
    assert gave_up(bench.run.failed(seals[C], "gone", now)).why is Why.ALONE
