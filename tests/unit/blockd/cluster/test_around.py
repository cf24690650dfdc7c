"""Syncs for the sessions' thread: `blockd.cluster.around`."""

import select
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import cast

import pytest

from blockd.cluster.around import DaemonAround
from tests.group_rig import OPTIONS, SIZE, VOLUME
from tests.sim.faults import Fail, Fault
from tests.sim.store_rig import StoreRig
from tests.unit.volume.test_replica import Source
from transport.sessions import Sessions
from volume.errors import StoreSealed
from volume.replica import Replica

PATIENCE_S = 30


class Thread:
    """What is used of sessions; the test is their thread."""

    def __init__(self) -> None:
        self.posted: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self.post = self.posted.put
        self._watched: list[tuple[int, Callable[[], None]]] = []

    def watched(self, descriptor: int, call: Callable[[], None]) -> None:
        self._watched.append((descriptor, call))

    def turn(self) -> None:
        """Wait for a descriptor, and call who watches it."""
        ((descriptor, call),) = self._watched
        assert select.select([descriptor], [], [], PATIENCE_S)[0]
        call()


class Member:
    def __init__(self) -> None:
        self.source = Source()
        self.source.begin(1)
        self.rig = StoreRig(options=OPTIONS)
        self.replica: Replica = self.rig.store.replicas.create(VOLUME, "vm1", SIZE, 512, 4096, 1)
        self.rig.tend()
        self.thread = Thread()
        replicas = self.rig.store.replicas
        self.around = DaemonAround(cast(Sessions, self.thread), replicas.syncer())
        self.around.start()
        self.told: list[int | Exception] = []
        self.count = 0

    def append(self, count: int) -> None:
        first, self.count = self.count + 1, self.count + count
        self.replica.append(1, 1, first, self.count, self.source.records(count))

    def sync(self) -> None:
        self.around.sync(self.replica, self.told.append)


@pytest.fixture
def member() -> Iterator[Member]:
    made = Member()
    yield made
    made.around.close()


def test_records_are_durable_when_who_asked_is_told(member: Member) -> None:
    member.append(3)
    member.sync()
    assert member.told == []  # never before it has asked
    member.append(2)
    member.sync()
    while len(member.told) < 2:
        member.thread.turn()
    assert member.told == [3, 5]
    assert member.replica.held == (5, 5)
    assert member.thread.posted.empty()  # no other thread of Python's had to be woken


def test_who_was_synced_for_at_once_with_a_call_that_fails_is_told_all_the_same(
    member: Member, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(_: int | Exception) -> None:
        raise ValueError("what became of it")

    member.append(1)
    member.around.sync(member.replica, fails)
    member.sync()
    while not member.told:
        member.thread.turn()
    assert member.told == [1]
    assert "what became of it" in caplog.text


def test_a_disk_that_fails_is_told_and_seals_the_store(member: Member) -> None:
    member.append(1)
    member.rig.disk.faults.add(Fault("sync", Fail(5)))
    member.sync()
    member.thread.turn()
    member.thread.posted.get(timeout=PATIENCE_S)()
    assert [type(each) for each in member.told] == [StoreSealed]
    assert member.replica.held == (1, 0)
    member.sync()  # sealed by now: given to a thread that may wait at once
    member.thread.posted.get(timeout=PATIENCE_S)()
    assert [type(each) for each in member.told] == [StoreSealed, StoreSealed]


def test_what_was_undone_while_it_was_synced_is_not_counted(member: Member) -> None:
    member.append(2)
    member.rig.store.destage()
    member.append(2)
    member.sync()
    member.replica.promise(2)
    member.replica.undo(2, (1, 2))
    while not member.told:
        member.thread.turn()
    assert member.replica.held == (2, 2)
