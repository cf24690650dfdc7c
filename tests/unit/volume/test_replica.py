"""One node's part of a volume: what it promises, takes, refuses, and goes back to."""

import random
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

import pytest

from native import OP_WRITE, TAP_MIN_BUFFER, Request, VolumeCore
from tests.member_copies import Copying
from tests.sim.crash import CrashState
from tests.sim.simdisk import PowerCut
from tests.sim.store_rig import SMALL, StoreRig
from volume.errors import (
    BadRecords,
    CorruptData,
    MissingRecords,
    NoSuchVersion,
    OtherRecords,
    ReplicaError,
    StaleEpoch,
    StoreSealed,
    VolumeError,
    VolumeExists,
    VolumeReplicated,
)
from volume.namedstates import NamedState, encode
from volume.replica import Replica
from volume.replicacopy import Copied, Told
from volume.replicarow import Row
from volume.replicastate import MAX_VOLUME_EPOCH

VOLUME = b"v" * 16
SIZE = 64 << 10
OPTIONS = replace(SMALL, window_bytes=24 * 16384, window_s=3600, journal_limit=12 * 16384)


class Source:
    """Records of a primary's journal."""

    def __init__(self) -> None:
        self.rig = StoreRig(options=OPTIONS, seed=9)
        self.replica = self.rig.store.replicas.create(VOLUME, "vm1", SIZE, 512, 4096, 1)
        self.rig.tend()
        self.core.tap(4 << 20)

    @property
    def core(self) -> VolumeCore:
        return self.replica.volume.core

    def begin(self, epoch: int) -> None:
        self.replica.promise(epoch)
        self.replica.begin(epoch, self.replica.held[0])
        self.replica.serve(epoch)

    def records(self, count: int, fill: bytes = b"x") -> bytes:
        for index in range(count):
            self.rig.tend()
            at = index % 16 * 512
            self.core.submit([Request(OP_WRITE, at, 512, fill * 512)], self.rig.clock.now_ns())
        buffer = bytearray(TAP_MIN_BUFFER)
        length, *_ = self.core.take(buffer)
        return bytes(buffer[:length])


def member(promised: int = 1) -> tuple[StoreRig, Replica]:
    rig = StoreRig(options=OPTIONS)
    replica = rig.store.replicas.create(VOLUME, "vm1", SIZE, 512, 4096, promised)
    rig.tend()
    return rig, replica


def give_name(rig: StoreRig, name: str) -> None:
    """To the newest state, whoever the primary is."""
    catalog = rig.store._catalog
    number = catalog.named("vm1").record.number
    catalog.replicated.discard(number)
    rig.store.snapshots.create(name, ["vm1"])
    catalog.replicated.add(number)


def reopened(rig: StoreRig) -> tuple[StoreRig, Replica]:
    rig = rig.killed()
    rig.tend()
    found = rig.store.replicas.get(VOLUME)
    assert found is not None
    return rig, found


def test_records_of_another_node_are_appended_once() -> None:
    source, (_, replica) = Source(), member()
    source.begin(1)
    records = source.records(5)
    for _ in range(2):
        replica.append(1, 1, 1, 5, records)
        assert replica.held == (5, 0)
    replica.sync()
    assert replica.held == (5, 5)
    assert replica.ends() == ((1, 5),)


def test_what_is_kept_survives() -> None:
    source, (rig, replica) = Source(), member()
    source.begin(1)
    replica.append(1, 1, 1, 5, source.records(5))
    replica.promise(7)
    replica.begin(7, 5)
    replica.promise(9)
    rig, again = reopened(rig)
    assert again.promised == 9
    assert again.ends() == ((1, 5), (7, 5))
    assert again.serving is None
    assert again.gate.shut
    with pytest.raises(StaleEpoch):
        again.append(7, 7, 6, 6, b"")


def test_an_earlier_epoch_is_refused_and_names_the_promise() -> None:
    source, (_, replica) = Source(), member()
    source.begin(1)
    records = source.records(1)
    replica.promise(3)
    calls: tuple[Callable[[], object], ...] = (
        lambda: replica.promise(2),
        lambda: replica.begin(2, 0),
        lambda: replica.append(2, 1, 1, 1, records),
        lambda: replica.undo(2, (1, 0)),
        lambda: replica.check(2),
    )
    for call in calls:
        with pytest.raises(StaleEpoch, match="epoch 3 was promised") as caught:
            call()
        assert caught.value.promised == 3
    assert replica.held == (0, 0)
    calls = (lambda: replica.begin(4, 0), lambda: replica.append(4, 1, 1, 1, records))
    for call in calls:
        with pytest.raises(OtherRecords, match="4 was not promised"):
            call()
    replica.append(3, 1, 1, 1, records)


def test_an_epoch_that_no_record_can_have_is_refused() -> None:
    _, replica = member()
    replica.promise(MAX_VOLUME_EPOCH)
    with pytest.raises(OtherRecords, match="does not fit"):
        replica.promise(MAX_VOLUME_EPOCH + 1)
    with pytest.raises(ReplicaError, match="does not fit"):
        StoreRig().store.replicas.create(VOLUME, "vm1", SIZE, 512, 4096, MAX_VOLUME_EPOCH + 1)


def test_a_gap_is_refused_with_what_is_there() -> None:
    source, (_, replica) = Source(), member()
    source.begin(1)
    first, second = source.records(2), source.records(2)
    with pytest.raises(MissingRecords) as caught:
        replica.append(1, 1, 3, 4, second)
    assert caught.value.have == 0
    replica.append(1, 1, 1, 2, first)
    replica.append(1, 1, 3, 4, second)
    replica.promise(2)
    with pytest.raises(MissingRecords, match="up to 4"):
        replica.begin(2, 9)


def test_bytes_that_are_no_records_are_refused() -> None:
    source, (_, replica) = Source(), member()
    source.begin(1)
    records = source.records(2)
    damaged = bytearray(records)
    damaged[70] ^= 1
    for first, last, data in (
        (1, 2, bytes(damaged)),
        (1, 2, records[:-1]),
        (1, 2, b"hello"),
        (1, 3, records),
        (2, 1, records),
    ):
        with pytest.raises(BadRecords):
            replica.append(1, 1, first, last, data)
    replica.promise(2)
    with pytest.raises((BadRecords, OtherRecords)):  # says that they are of another epoch
        replica.append(2, 2, 1, 2, records)


def test_records_go_on_from_the_epochs_that_are_there() -> None:
    source, (rig, replica) = Source(), member()
    source.begin(1)
    one = source.records(4)
    source.begin(2)
    two = source.records(3)
    source.begin(5)
    five = source.records(2)
    replica.promise(6)
    replica.append(6, 1, 1, 4, one)
    replica.append(6, 2, 5, 7, two)
    replica.append(6, 5, 8, 9, five)
    assert replica.ends() == ((1, 4), (2, 7), (5, 9)) == source.replica.ends()
    replica.append(6, 2, 5, 7, two)  # again
    with pytest.raises(OtherRecords):
        replica.append(6, 4, 10, 10, two)
    with pytest.raises(OtherRecords):
        replica.append(6, 2, 3, 7, one + two)
    rig, again = reopened(rig)
    assert again.ends() == ((1, 4), (2, 7), (5, 9))


def test_records_are_read_back_epoch_by_epoch() -> None:
    source, (_, replica) = Source(), member()
    source.begin(1)
    source.records(40)
    source.rig.settle()
    source.begin(3)
    source.records(30)
    replica.promise(3)
    point = (1, 0)
    while True:
        found = source.replica.read(*point, TAP_MIN_BUFFER)
        if not found.first_seq:
            break
        assert found.first_seq == point[1] + 1
        replica.append(3, found.epoch, found.first_seq, found.last_seq, found.data)
        assert found.more == (found.last_seq < 70)
        point = (found.epoch, found.last_seq)
        assert replica.held[0] == found.last_seq
    assert point == (3, 70)
    assert replica.ends() == source.replica.ends()
    for epoch, seq in ((1, 41), (3, 39), (2, 40), (3, 71)):
        with pytest.raises(OtherRecords):
            source.replica.read(epoch, seq, TAP_MIN_BUFFER)
    with pytest.raises(BadRecords, match="not enough"):
        source.replica.read(1, 0, 4096)


def test_a_log_that_does_not_reach_back_says_so() -> None:
    rig = StoreRig(options=replace(OPTIONS, window_bytes=0, window_s=0))
    replica = rig.store.replicas.create(VOLUME, "vm1", SIZE, 512, 4096, 1)
    rig.tend()
    replica.serve(1)
    for index in range(40):
        request = Request(OP_WRITE, index * 512, 512, b"x" * 512)
        replica.volume.core.submit([request], rig.clock.now_ns())
    rig.settle()
    found = replica.read(1, 0, TAP_MIN_BUFFER)
    assert (found.first_seq, found.more, found.data) == (0, True, b"")


@pytest.mark.parametrize("destaged", [False, True])
def test_what_was_undone_never_was(destaged: bool) -> None:
    source, (rig, replica) = Source(), member()
    source.begin(1)
    one = source.records(10, b"a")
    replica.append(1, 1, 1, 10, one)
    other = Source()
    other.begin(1)
    other.records(10, b"a")
    wrong = other.records(6, b"w")
    replica.append(1, 1, 11, 16, wrong)
    if destaged:
        rig.settle()
        give_name(rig, "named")
        rig.settle()
    source.begin(2)
    two = source.records(4, b"b")
    replica.promise(2)
    replica.undo(2, (1, 10))
    assert replica.held == (10, 10)
    assert replica.ends() == ((1, 10),)
    replica.undo(2, (1, 10))  # again
    replica.append(2, 2, 11, 14, two)
    for _ in range(2):
        assert replica.ends() == ((1, 10), (2, 14))
        for seq, expected in ((10, b"a"), (14, b"b")):
            assert rig.read_version(f"vm1@seq:{seq}")[:512] == expected * 512
        assert rig.read_version("vm1@seq:12")[:1024] == b"b" * 1024
        with pytest.raises(NoSuchVersion):
            rig.read_version("vm1@seq:16")
        with pytest.raises(NoSuchVersion):
            rig.read_version("vm1@named")
        rig, replica = reopened(rig)
        rig.settle()
    source.rig.settle()
    assert rig.store.info("vm1").seq == 14


def test_an_undo_keeps_versions_before_it() -> None:
    source, (rig, replica) = Source(), member()
    source.begin(1)
    replica.append(1, 1, 1, 5, source.records(5, b"a"))
    give_name(rig, "kept")
    replica.append(1, 1, 6, 9, source.records(4, b"b"))
    replica.promise(2)
    replica.undo(2, (1, 7))
    assert rig.read_version("vm1@kept")[:2048] == b"a" * 2048
    assert rig.read_version("vm1@seq:7")[:1024] == b"b" * 1024


def test_only_a_point_of_its_history_can_be_gone_back_to() -> None:
    source, (_, replica) = Source(), member()
    source.begin(1)
    replica.append(1, 1, 1, 5, source.records(5))
    replica.promise(2)
    replica.begin(2, 5)
    for keep in ((1, 6), (2, 4), (3, 5)):
        with pytest.raises(OtherRecords):
            replica.undo(2, keep)
    replica.undo(2, (1, 5))
    assert replica.ends() == ((1, 5),)
    replica.append(2, 1, 6, 7, source.records(2))  # it was longer than the member knew
    assert replica.ends() == ((1, 7),)


def test_a_later_promise_shuts_clients_out_before_it_is_told() -> None:
    _, replica = member()
    replica.begin(1, 0)
    replica.serve(1)
    replica.gate.lease(1 << 62)
    told: list[tuple[int, bool, int]] = []
    replica.fenced = lambda epoch: told.append((epoch, replica.gate.shut, replica.promised))
    request = Request(OP_WRITE, 0, 512, b"x" * 512)
    finished: list[Request] = []
    replica.volume.submit([request], finished.extend)
    assert finished == []  # nobody else has it
    replica.promise(2)
    assert told == [(2, True, 1)]
    assert finished == [request]
    assert request.error == 108  # ESHUTDOWN
    replica.volume.submit([request], finished.extend)
    assert finished == [request, request]
    with pytest.raises(OtherRecords, match="has not begun"):
        replica.serve(2)


def test_one_node_alone_cannot_change_what_others_have() -> None:
    rig, _ = member()
    store = rig.store
    for call in (
        lambda: store.rename_volume("vm1", "vm2"),
        lambda: store.delete_volume("vm1", force=True),
    ):
        with pytest.raises(VolumeReplicated, match="vm1: is mirrored"):
            call()


def test_it_is_made_once() -> None:
    rig, replica = member(4)
    create = rig.store.replicas.create
    assert create(VOLUME, "vm1", SIZE, 512, 4096, 5) is replica
    assert replica.promised == 5
    with pytest.raises(StaleEpoch):
        create(VOLUME, "vm1", SIZE, 512, 4096, 4)
    assert create(VOLUME, "vm1", 2 * SIZE, 512, 4096, 5) is replica  # a size may have changed since
    with pytest.raises(VolumeExists):
        create(VOLUME, "vm1", SIZE, 512, 8192, 5)
    with pytest.raises(VolumeExists):
        create(b"w" * 16, "vm1", SIZE, 512, 4096, 5)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x02" + bytes(9),
        Row(1, ((1, 0),)).encode()[:-1],
        Row(1, ()).encode(),
        Row(1, ((2, 0),)).encode(),
        Row(5, ((2, 3), (2, 4))).encode(),
        Row(5, ((2, 3), (4, 2))).encode(),
    ],
)
def test_a_row_that_makes_no_sense_is_refused(data: bytes) -> None:
    with pytest.raises(CorruptData, match="makes no sense"):
        Row.decode("group/x", data)


def undoing() -> tuple[StoreRig, Replica]:
    """About to undo six of sixteen records, which are in no chunk yet."""
    source, (rig, replica) = Source(), member()
    source.begin(1)
    replica.append(1, 1, 1, 10, source.records(10, b"a"))
    replica.append(1, 1, 11, 16, source.records(6, b"w"))
    replica.promise(2)
    return rig, replica


def test_a_power_cut_at_any_step_of_an_undo_leaves_all_of_it_or_nothing() -> None:
    rng = random.Random(1)
    rig, replica = undoing()
    first = rig.disk.op_count
    replica.undo(2, (1, 10))
    ends = set()
    for count in range(1, rig.disk.op_count - first + 2):
        rig, replica = undoing()
        rig.disk.crash_at(count)
        with suppress(PowerCut, OSError, StoreSealed):  # the core makes an EIO of it
            replica.undo(2, (1, 10))
        state = CrashState(rig.disk.trace)
        for op in rig.disk.trace.ops:
            state.apply(op)
        rig = rig.rebooted(state.drawn("cut", rng))
        rig.tend()
        found = rig.store.replicas.get(VOLUME)
        assert found is not None
        assert found.promised == 2
        ends.add(found.ends())
        seq = found.held[0]
        assert rig.read_version(f"vm1@seq:{seq}")[:512] == (b"w" if seq == 16 else b"a") * 512
        found.undo(2, (1, 10))  # whoever asked asks again
        assert found.ends() == ((1, 10),)
        assert rig.read_version("vm1@seq:10")[:512] == b"a" * 512
    assert ends == {((1, 10),), ((1, 16),)}


def test_what_a_tap_holds_on_to_can_be_read_from_the_log() -> None:
    """Nobody takes: the checkpoint passes segments that are not released, and so in no window."""
    source = Source()
    source.begin(1)
    for _ in range(60):
        source.rig.tend()
        source.core.submit([Request(OP_WRITE, 0, 512, b"x" * 512)], source.rig.clock.now_ns())
    source.rig.settle()
    source.rig.settle()
    found = source.replica.read(1, 0, TAP_MIN_BUFFER)
    assert (found.first_seq, found.last_seq) == (1, 60)


def copied(replica: Replica, source: Source) -> None:
    """All of the source's volume comes as a stream, in small pieces."""
    Copying(source.replica, replica, 2).run(again=True)


def to_adopt() -> tuple[StoreRig, Replica, Source]:
    """A member that has undone six records behind ten that it shares, and a stream that came."""
    source, (rig, replica) = Source(), member()
    source.begin(1)
    shared = source.records(10, b"a")
    replica.append(1, 1, 1, 10, shared)
    other = Source()
    other.begin(1)
    other.records(10, b"a")
    replica.append(1, 1, 11, 16, other.records(6, b"w"))
    replica.promise(2)
    replica.undo(2, (1, 10))
    source.begin(2)
    source.records(20, b"b")
    source.rig.tend()
    copied(replica, source)
    return rig, replica, source


def test_all_of_a_volume_comes_as_a_stream_and_goes_on() -> None:
    rig, replica, source = to_adopt()
    for _ in range(2):
        replica.adopt(2, 10, 0, ((1, 10), (2, 30)))
    assert replica.ends() == source.replica.ends() == ((1, 10), (2, 30))
    assert replica.held == (30, 30)
    assert rig.store.names() == ["vm1"]
    assert rig.store.receives() == []
    replica.append(2, 2, 31, 33, source.records(3, b"c"))
    for _ in range(2):
        assert rig.read_version("vm1@seq:33")[:512] == b"c" * 512
        assert rig.read_version("vm1@seq:30")[:512] == b"b" * 512
        assert rig.read_version("vm1@seq:10")[:512] == b"a" * 512
        with pytest.raises(NoSuchVersion):
            rig.read_version("vm1@seq:16")
        rig, replica = reopened(rig)
        rig.settle()
    assert replica.ends() == ((1, 10), (2, 33))


def test_a_name_of_what_is_behind_the_copy_is_refused() -> None:
    rig, replica, source = to_adopt()
    head = source.rig.store._catalog.named("vm1").record.head
    late = NamedState("late", 31, 7, False, False, 9, SIZE, head.root, head.height)
    with pytest.raises(OtherRecords, match="late"):
        replica.adopt(2, 10, 0, ((1, 10), (2, 30)), encode([late]))
    assert replica.held == (10, 10)
    replica.adopt(2, 10, 0, ((1, 10), (2, 30)), encode([replace(late, seq=30)]))
    assert rig.read_version("vm1@late")[:512] == b"b" * 512


def test_versions_of_another_history_go_when_nothing_is_known_to_be_shared() -> None:
    source, (rig, replica) = Source(), member()
    other = Source()
    other.begin(1)
    replica.append(1, 1, 1, 6, other.records(6, b"w"))
    give_name(rig, "named")
    rig.settle()
    source.begin(1)
    source.records(20, b"b")
    replica.promise(2)
    source.begin(2)
    copied(replica, source)
    replica.adopt(2, 0, 0, ((1, 20), (2, 20)))
    assert rig.read_version("vm1@seq:20")[:512] == b"b" * 512
    for gone in ("vm1@seq:6", "vm1@seq:3", "vm1@named"):
        with pytest.raises(NoSuchVersion):
            rig.read_version(gone)


def test_a_stream_is_taken_in_its_order_and_under_the_promise() -> None:
    source, (rig, replica) = Source(), member()
    source.begin(1)
    source.records(10, b"a")
    replica.promise(2)
    copying = Copying(source.replica, replica, 2, limit=100)
    while not isinstance(piece := source.replica.copy("a member", 0, 100, copying.heard), Copied):
        copying.heard = Told(frozenset(range(len(piece.nodes))))
    with pytest.raises(OtherRecords, match="no stream"):
        replica.take_copy(2, 100, piece.data, last=False)
    with pytest.raises(OtherRecords, match="no stream"):
        replica.adopt(2, 0, 0, ((2, 10),))
    with pytest.raises(StaleEpoch):
        replica.take_copy(1, 0, piece.data, last=False)
    assert replica.take_copy(2, 0, piece.data, last=False) == 100
    with pytest.raises(OtherRecords, match="no stream"):
        replica.take_copy(2, 500, piece.data, last=False)
    with pytest.raises(VolumeError):
        replica.take_copy(2, 100, b"not what follows" * 99, last=True)
    assert rig.store.names() == ["vm1"]
    with pytest.raises(OtherRecords):
        source.replica.copy("a member", 7, 100)
    with pytest.raises(OtherRecords):
        source.replica.copy("another", 100, 100)


def test_a_power_cut_at_any_step_of_an_adoption_leaves_all_of_it_or_nothing() -> None:
    rng = random.Random(2)
    chain = ((1, 10), (2, 30))
    rig, replica, source = to_adopt()
    first = rig.disk.op_count
    replica.adopt(2, 10, 0, chain)
    ends = set()
    for count in range(1, rig.disk.op_count - first + 2):
        rig, replica, source = to_adopt()
        rig.disk.crash_at(count)
        with suppress(PowerCut, OSError, StoreSealed):
            replica.adopt(2, 10, 0, chain)
        state = CrashState(rig.disk.trace)
        for op in rig.disk.trace.ops:
            state.apply(op)
        rig = rig.rebooted(state.drawn("cut", rng))
        rig.tend()
        found = rig.store.replicas.get(VOLUME)
        assert found is not None
        ends.add(found.ends())
        seq = found.held[0]
        expected = b"b" if seq == 30 else b"a"
        assert rig.read_version(f"vm1@seq:{seq}")[:512] == expected * 512
        if seq != 30:  # what has landed is there still: nothing is lacking
            assert Copying(source.replica, found, 2).run().wanted == 0
        found.adopt(2, 10, 0, chain)
        assert rig.store.names() == ["vm1"]
        assert rig.read_version("vm1@seq:30")[:512] == b"b" * 512
    assert ends == {chain, ((1, 10),)}


def test_a_part_of_a_volume_that_was_deleted_goes_with_its_row() -> None:
    source, (rig, replica) = Source(), member()
    source.begin(1)
    replica.append(1, 1, 1, 5, source.records(5))
    give_name(rig, "named")
    rig.settle()
    for _ in range(2):
        rig.store.replicas.remove(VOLUME)
    assert rig.store.names() == []
    assert rig.store.kept("group/") == {}
    rig = rig.killed()
    assert rig.store.replicas.get(VOLUME) is None
    again = rig.store.replicas.create(VOLUME, "vm1", SIZE, 512, 4096, 1)
    assert again.held == (0, 0)
    rig.store.delete_volume(rig.store.create_volume("other", SIZE).name)


def test_records_are_appended_while_others_are_synced(monkeypatch: pytest.MonkeyPatch) -> None:
    _, replica = member()
    source = Source()
    source.begin(1)
    first, second = source.records(3), source.records(2)
    replica.append(1, 1, 1, 3, first)
    sync = replica._parts.seal.sync_journal
    syncing, go_on = threading.Event(), threading.Event()

    def slow() -> None:
        sync()
        syncing.set()
        assert go_on.wait(30)

    monkeypatch.setattr(replica._parts.seal, "sync_journal", slow)
    thread = threading.Thread(target=replica.sync)
    thread.start()
    assert syncing.wait(30)
    replica.append(1, 1, 4, 5, second)
    assert replica.held == (5, 0)
    go_on.set()
    thread.join()
    assert replica.held == (5, 3)  # what came meanwhile is not known to be durable


def test_a_sync_of_what_is_undone_meanwhile_says_nothing_of_what_follows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rig, replica = member()
    source = Source()
    source.begin(1)
    replica.append(1, 1, 1, 3, source.records(3))
    replica.promise(2)
    replica.append(2, 1, 4, 5, source.records(2))
    sync = replica._parts.seal.sync_journal

    def undone_after_it() -> None:
        sync()
        monkeypatch.undo()
        rig.settle()
        replica.undo(2, (1, 3))

    monkeypatch.setattr(replica._parts.seal, "sync_journal", undone_after_it)
    replica.sync()
    assert replica.held == (3, 3)
