"""A volume of several nodes is made on all of them, or it is said of whom that is not known."""

import uuid
from concurrent.futures import Future
from dataclasses import replace
from typing import cast

import pytest

from blockd.cluster.making import CannotMake, Wanted, make
from tests.metastore_twin import DictMetaStore
from tests.sim.store_rig import StoreRig
from transport.errors import TransportError
from transport.peer import messages as m
from transport.peer.caller import Answered, Failed
from transport.sessions import Sessions, waited
from volume.errors import InvalidSize, VolumeExists
from volume.metastore import ClusterRecords
from volume.metastore_records import GroupState, Mode

ME, B, C, D = (bytes([number] * 16).hex() for number in (1, 2, 3, 4))
WANTED = Wanted("vm1", 1 << 20, 512, 4096, (ME, B, C), 2, Mode.MIRROR)
ACK = Answered(1, m.Ack(1, 0, 0))
OLD = b"o" * 16


class Asked:
    """Answers of the other members, by node; an exception is raised."""

    def __init__(self, **answers: Answered | Failed | Exception) -> None:
        self.answers = answers

    def ask_and_wait(self, node: bytes, message: m.Request, timeout_s: float) -> Answered | Failed:
        assert isinstance(message, m.Create)
        answer = self.answers["B" if node.hex() == B else "C"]
        if isinstance(answer, Exception):
            raise answer
        return answer


def records() -> ClusterRecords:
    return ClusterRecords(DictMetaStore(), lambda: uuid.uuid4().hex)


def make_with(rows: ClusterRecords, asked: Asked) -> GroupState:
    return make(WANTED, ME, cast(Sessions, asked), rows, StoreRig().store.replicas).state


def test_it_is_made_when_all_members_have_their_part() -> None:
    assert make_with(records(), Asked(B=ACK, C=ACK)) is GroupState.CLOSED


def test_a_size_that_cannot_be_leaves_no_row_behind() -> None:
    """Every member would refuse it, for ever, and status would count a volume without a primary."""
    rows = records()
    wanted = replace(WANTED, size=1000)
    with pytest.raises(InvalidSize, match="multiple of the block size 512, such as 512"):
        make(wanted, ME, cast(Sessions, Asked(B=ACK, C=ACK)), rows, StoreRig().store.replicas)
    assert rows.volume_named("vm1") is None


@pytest.mark.parametrize(
    "silent", [TransportError(""), TransportError("no way there"), Failed(1, "")]
)
def test_a_member_that_has_not_answered_does_not_count(silent: Failed | Exception) -> None:
    """Words or no words."""
    rows = records()
    with pytest.raises(CannotMake, match=f"not on all of its members yet.*{C}"):
        make_with(rows, Asked(B=ACK, C=silent))
    found = rows.volume_named("vm1")
    assert found is not None
    assert found.record.state is GroupState.SEALING
    assert make_with(rows, Asked(B=ACK, C=ACK)) is GroupState.CLOSED  # the same command again


def test_one_that_is_to_be_on_other_nodes_by_now_is_made_anew() -> None:
    """The one that could not be reached may never come back."""
    rows = records()
    with pytest.raises(CannotMake):
        make_with(rows, Asked(B=ACK, C=TransportError("no way there")))
    begun = rows.volume_named("vm1")
    assert begun is not None
    wanted = replace(WANTED, members=(ME, B, D))
    made = make(wanted, ME, cast(Sessions, Asked(B=ACK, C=ACK)), rows, StoreRig().store.replicas)
    assert made.members == (ME, B, D)
    old = rows.volume(begun.record.volume_id)
    assert old is not None
    assert old.record.state is GroupState.DELETED
    assert set(old.record.leaving) == {ME, B, C}, "who has a part of it lets it go"
    with pytest.raises(VolumeExists):  # nothing of one that was made is given up
        make(WANTED, ME, cast(Sessions, Asked(B=ACK, C=ACK)), rows, StoreRig().store.replicas)


def test_a_part_of_a_deleted_volume_of_that_name_is_waited_for() -> None:
    replicas = StoreRig().store.replicas
    replicas.create(OLD, "vm1", 1 << 20, 512, 4096, 1)
    looked = []

    def in_the_way(volume: bytes) -> None:
        looked.append(volume)
        if len(looked) == 2:  # its row is read, then it is let go
            replicas.remove(volume)

    args = (WANTED, ME, cast(Sessions, Asked(B=ACK, C=ACK)), records(), replicas)
    assert make(*args, in_the_way).state is GroupState.CLOSED
    assert looked == [OLD, OLD]


@pytest.mark.parametrize("alone", [False, True])
def test_a_volume_of_that_name_that_stays_is_waited_for_no_longer_than_it_takes(
    alone: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blockd.cluster.making.NAME_S", 0.0)
    rig = StoreRig()
    if alone:
        rig.store.create_volume("vm1", 1 << 20)
    else:
        rig.store.replicas.create(OLD, "vm1", 1 << 20, 512, 4096, 1)
    args = (WANTED, ME, cast(Sessions, Asked(B=ACK, C=ACK)), records(), rig.store.replicas)
    with pytest.raises(VolumeExists):
        make(*args)


def test_who_waits_for_sessions_that_are_stuck_is_told_so() -> None:
    with pytest.raises(TransportError, match=r"have not answered within 0\.01 s"):
        waited(Future(), 0.01)


def test_what_was_raised_is_raised_where_it_was_asked_for() -> None:
    ended: Future[None] = Future()
    ended.set_exception(TimeoutError("of etcd"))
    with pytest.raises(TimeoutError, match="of etcd"):
        waited(ended, 0.01)
