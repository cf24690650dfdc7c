"""What a member answers, and what it refuses."""

import threading
from dataclasses import replace

import pytest

from tests.group_rig import OPTIONS, SIZE, VOLUME
from tests.sim.faults import Fail, Fault
from tests.sim.store_rig import StoreRig
from tests.unit.volume.test_replica import Source
from transport.group.member import Left, Members
from transport.peer import messages as m
from volume.replica import Replica, Syncing
from volume.replicastate import MAX_VOLUME_EPOCH

OTHER = b"o" * 16


class Asked:
    """A node that has a part of the volume, and how it answers."""

    def __init__(self) -> None:
        self.rig = StoreRig(options=OPTIONS)
        self.members = Members(self.rig.store.replicas, 100.0)
        self.now = 100.0
        self.acked(m.Create(VOLUME, 1, "vm1", SIZE, 512, 4096))
        self.rig.tend()

    @property
    def replica(self) -> Replica:
        found = self.rig.store.replicas.get(VOLUME)
        assert found is not None
        return found

    def acked(self, message: m.Request) -> m.Ack:
        answer = self.members.answer(message, self.now)
        assert isinstance(answer, m.Ack), answer
        return answer

    def refused(self, message: m.Request) -> tuple[m.Code, int]:
        answer = self.members.answer(message, self.now)
        assert isinstance(answer, m.Error), answer
        assert answer.text
        return m.Code(answer.code), answer.detail


def append(first: int, last: int, data: bytes, epoch: int = 1, written: int = 1) -> m.Append:
    return m.Append(VOLUME, epoch, written, first, last, 0, (data,))


@pytest.fixture
def asked() -> Asked:
    return Asked()


@pytest.fixture
def source() -> Source:
    made = Source()
    made.begin(1)
    return made


def test_records_are_acknowledged_by_what_the_journal_has(asked: Asked, source: Source) -> None:
    first, second = source.records(3), source.records(2)
    assert asked.acked(append(1, 3, first)) == m.Ack(1, 3, 0)
    assert asked.acked(append(1, 3, first)) == m.Ack(1, 3, 0)
    assert asked.refused(append(6, 7, second)) == (m.Code.GAP, 3)
    joined = m.Append(VOLUME, 1, 1, 1, 5, 1, (first, second))
    assert asked.acked(joined) == m.Ack(1, 5, 5)
    assert asked.acked(m.Sync(VOLUME, 1, 5)) == m.Ack(1, 5, 5)
    assert asked.refused(m.Sync(VOLUME, 1, 6)) == (m.Code.GAP, 5)


def test_plain_records_need_no_member_after_any_that_a_thread_took_that_may_wait(
    asked: Asked, source: Source
) -> None:
    member = asked.members.member(VOLUME)
    assert member is not None
    asked.acked(append(1, 3, source.records(3)))
    assert not asked.members.cores
    assert member.at_once(append(4, 4, source.records(1)), asked.now) == m.Ack(1, 4, 0)
    assert asked.members.cores == {VOLUME: asked.replica.volume.core}
    member.withdraw()
    assert not asked.members.cores


def test_a_sync_of_nothing_only_asks_whether_the_epoch_holds(asked: Asked, source: Source) -> None:
    asked.acked(append(1, 3, source.records(3)))
    assert asked.acked(m.Sync(VOLUME, 1, 0)) == m.Ack(1, 3, 0)
    asked.members.answer(m.Seal(VOLUME, 2), asked.now)
    assert asked.refused(m.Sync(VOLUME, 1, 0)) == (m.Code.STALE, 2)


def test_a_seal_is_kept_before_it_is_told(asked: Asked, source: Source) -> None:
    asked.acked(append(1, 3, source.records(3)))
    asked.now += 2.5
    sealed = asked.members.answer(m.Seal(VOLUME, 6), asked.now)
    assert sealed == m.Sealed(6, 2500, 0, ((1, 3),))
    assert asked.members.answer(m.Seal(VOLUME, 6), asked.now) == sealed
    assert asked.replica.held == (3, 3)
    again = asked.rig.killed().store.replicas.get(VOLUME)
    assert again is not None
    assert again.promised == 6
    for message in (
        append(4, 4, b"x" * 64),
        m.Open(VOLUME, 1, 3),
        m.Undo(VOLUME, 1, 1, 2),
        m.Seal(VOLUME, 5),
        m.Close(VOLUME, 5),
        m.Create(VOLUME, 5, "vm1", SIZE, 512, 4096),
    ):
        assert asked.refused(message) == (m.Code.STALE, 6)


def test_an_epoch_opens_where_all_is(asked: Asked, source: Source) -> None:
    asked.acked(append(1, 3, source.records(3)))
    asked.members.answer(m.Seal(VOLUME, 4), asked.now)
    assert asked.refused(m.Open(VOLUME, 4, 5)) == (m.Code.GAP, 3)
    assert asked.refused(m.Open(VOLUME, 4, 2))[0] == m.Code.FAILED
    assert asked.acked(m.Open(VOLUME, 4, 3)) == m.Ack(4, 3, 3)
    assert asked.acked(m.Open(VOLUME, 4, 3)) == m.Ack(4, 3, 3)
    assert asked.replica.ends() == ((1, 3), (4, 3))
    assert asked.refused(m.Undo(VOLUME, 4, 1, 2))[0] == m.Code.FAILED  # an older request
    asked.members.answer(m.Seal(VOLUME, 5), asked.now)
    assert asked.acked(m.Undo(VOLUME, 5, 1, 2)) == m.Ack(5, 2, 2)
    assert asked.replica.ends() == ((1, 2),)


def test_hostile_records_change_nothing(asked: Asked, source: Source) -> None:
    records = source.records(2)
    for at in range(0, len(records), 37):
        damaged = bytearray(records)
        damaged[at] ^= 0x41
        code, _ = asked.refused(append(1, 2, bytes(damaged)))
        assert code == m.Code.FAILED
    for data in (b"x", bytes(64), records[:64], records + b"x" * 64):
        assert asked.refused(append(1, 2, data))[0] == m.Code.FAILED
    assert asked.refused(append(1, 9, records))[0] == m.Code.FAILED or asked.replica.held[0] == 2
    assert asked.replica.ends()[0][0] == 1


def test_what_does_not_fit_into_a_record_is_refused(asked: Asked) -> None:
    assert asked.refused(m.Seal(VOLUME, MAX_VOLUME_EPOCH + 1))[0] == m.Code.FAILED
    assert asked.refused(m.Create(OTHER, 1 << 40, "vm2", SIZE, 512, 4096))[0] == m.Code.REFUSED
    assert asked.replica.promised == 1


def test_a_volume_that_is_not_here_is_not_known(asked: Asked) -> None:
    for message in (m.Seal(OTHER, 2), m.Look(OTHER), m.ReadLog(OTHER, 1, 0, 4 << 20)):
        assert asked.refused(message) == (m.Code.UNKNOWN, 0)


def test_a_part_is_made_once_and_not_in_place_of_another(asked: Asked) -> None:
    assert asked.acked(m.Create(VOLUME, 2, "vm1", SIZE, 512, 4096)) == m.Ack(2, 0, 0)
    for create in (
        m.Create(OTHER, 1, "vm1", SIZE, 512, 4096),
        m.Create(VOLUME, 2, "vm1", SIZE, 512, 8192),
        m.Create(OTHER, 1, "no/name", SIZE, 512, 4096),
        m.Create(OTHER, 1, "vm2", SIZE + 1, 512, 4096),
        m.Create(OTHER, 1, "vm2", SIZE, 512, 5000),
    ):
        assert asked.refused(create)[0] == m.Code.REFUSED
    # Called again after the volume was resized: the part that is here is kept as it is.
    assert asked.acked(m.Create(VOLUME, 2, "vm1", 2 * SIZE, 512, 4096)) == m.Ack(2, 0, 0)
    assert asked.rig.store.names() == ["vm1"]


def test_a_look_promises_nothing(asked: Asked, source: Source) -> None:
    asked.acked(append(1, 3, source.records(3)))
    asked.now += 1.0
    assert asked.members.answer(m.Look(VOLUME), asked.now) == m.Looked(1, 1, 3, 0, 1000, 0)


def test_records_behind_a_point_are_read(asked: Asked, source: Source) -> None:
    asked.acked(append(1, 3, source.records(3)))
    log = asked.members.answer(m.ReadLog(VOLUME, 1, 1, 4 << 20), asked.now)
    assert isinstance(log, m.Log)
    assert (log.epoch, log.first_seq, log.last_seq, log.more) == (1, 2, 3, 0)
    end = asked.members.answer(m.ReadLog(VOLUME, 1, 3, 4 << 20), asked.now)
    assert isinstance(end, m.Log)
    assert (end.payload, end.more) == ((), 0)
    assert asked.refused(m.ReadLog(VOLUME, 2, 1, 4 << 20))[0] == m.Code.FAILED
    assert asked.refused(m.ReadLog(VOLUME, 1, 1, 4096))[0] == m.Code.FAILED


def test_a_disk_that_fails_is_told(asked: Asked, source: Source) -> None:
    asked.acked(append(1, 3, source.records(3)))
    asked.rig.disk.faults.add(Fault("sync", Fail(5)))
    assert asked.refused(m.Seal(VOLUME, 2))[0] == m.Code.SEALED
    assert asked.replica.promised == 1
    assert asked.refused(m.Sync(VOLUME, 1, 3))[0] == m.Code.SEALED


def test_a_journal_without_room_takes_the_rest_later(source: Source) -> None:
    asked = Asked()
    asked.rig = StoreRig(options=replace(OPTIONS, journal_limit=3 * 16384))
    asked.members = Members(asked.rig.store.replicas, 100.0)
    asked.acked(m.Create(VOLUME, 1, "vm1", SIZE, 512, 4096))
    asked.rig.tend()
    records = source.records(100)
    received, tries = 0, 0
    while received < 100:
        ack = asked.acked(append(1, 100, records))
        assert ack.received >= received
        received = ack.received
        asked.rig.settle()
        tries += 1
        assert tries < 20
    assert tries > 1


def test_what_comes_with_every_write_is_answered_without_a_thread_that_may_wait(
    asked: Asked, source: Source
) -> None:
    member = asked.members.member(VOLUME)
    assert member is not None
    records, more = source.records(3), source.records(2)
    asked.now = 107.0
    assert member.at_once(append(1, 3, records), asked.now) == m.Ack(1, 3, 0)
    assert member.quiet_s(asked.now) == 0.0
    assert member.at_once(m.Sync(VOLUME, 1, 0), asked.now) == m.Ack(1, 3, 0)
    gap = member.at_once(append(6, 7, more), asked.now)
    assert isinstance(gap, m.Error)
    assert (gap.code, gap.detail) == (m.Code.GAP, 3)
    assert member.at_once(m.Sync(VOLUME, 1, 3), asked.now) is Left.SYNC
    gap = member.at_once(m.Sync(VOLUME, 1, 4), asked.now)
    assert isinstance(gap, m.Error)
    assert (gap.code, gap.detail) == (m.Code.GAP, 3)
    assert asked.replica.held == (3, 0)
    synced = m.Append(VOLUME, 1, 1, 4, 5, 1, (more,))
    assert member.at_once(synced, asked.now) is Left.SYNC
    assert asked.replica.held == (5, 0)
    syncing = asked.replica.sync_begins()
    assert syncing is not None
    asked.acked(append(6, 6, source.records(1)))
    assert asked.replica.sync_ended(syncing)
    assert asked.replica.held == (6, 5)  # what came after the sync began is not in it
    assert member.at_once(synced, asked.now) == m.Ack(1, 6, 5)
    assert member.at_once(m.Sync(VOLUME, 1, 5), asked.now) == m.Ack(1, 6, 5)


def test_what_would_wait_is_left_to_a_thread_that_may(
    asked: Asked, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    member, records = asked.members.member(VOLUME), source.records(3)
    assert member is not None
    assert member.at_once(m.Seal(VOLUME, 2), asked.now) is Left.ALL
    assert asked.replica.promised == 1
    with monkeypatch.context() as patch:
        patch.setattr("transport.group.member.AT_ONCE_BYTES", len(records) - 1)
        assert member.at_once(append(1, 3, records), asked.now) is Left.ALL
    begin, end = threading.Event(), threading.Event()

    def hold() -> None:
        with asked.replica.at_once() as mine:
            assert mine
            begin.set()
            assert end.wait(30)

    holder = threading.Thread(target=hold)
    holder.start()
    assert begin.wait(30)
    assert member.at_once(append(1, 3, records), asked.now) is Left.ALL
    syncing = Syncing(asked.replica.volume, 0)
    assert asked.replica.sync_begins() is None
    assert not asked.replica.sync_ended(syncing)
    end.set()
    holder.join()
    asked.members.answer(m.Seal(VOLUME, 2), asked.now)
    source.begin(2)
    later = source.records(1)
    asked.acked(append(1, 3, records, 2))
    assert member.at_once(append(4, 4, later, 2, 2), asked.now) is Left.ALL  # epoch 2 begins by it
    assert asked.replica.held[0] == 3
    assert asked.acked(append(4, 4, later, 2, 2)) == m.Ack(2, 4, 3)


def test_an_undo_that_is_carried_out_late_takes_nothing_back(asked: Asked, source: Source) -> None:
    """The session ended, the primary asked again, was answered, and went on; then the thread that
    had been asked first comes to it. What came meanwhile was counted as this member's."""
    asked.acked(append(1, 5, source.records(5)))
    asked.rig.settle()
    asked.members.answer(m.Seal(VOLUME, 2), asked.now)
    undo = m.Undo(VOLUME, 2, 1, 3)
    assert asked.acked(undo).received == 3
    assert asked.acked(undo).received == 3  # asked again
    other = Source()
    other.begin(1)
    other.records(3)
    other.begin(2)
    asked.acked(append(4, 6, other.records(3), 2, 2))
    assert asked.refused(undo) == (m.Code.FAILED, 0)
    assert asked.replica.held[0] == 6
    assert asked.replica.ends() == ((1, 3), (2, 6))
    asked.members.answer(m.Seal(VOLUME, 3), asked.now)
    asked.rig.settle()
    assert asked.acked(m.Undo(VOLUME, 3, 2, 4)).received == 4  # who takes over may
