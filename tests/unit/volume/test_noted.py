"""What is done to a volume that several nodes have: names and sizes, on each of them, after
a crash, and undone with the records that said so."""

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NoReturn

import pytest

from native import OP_READ, OP_WRITE, TAP_MIN_BUFFER, Request
from tests.member_copies import Copying
from tests.sim.crash import CrashState
from tests.sim.store_rig import SMALL, StoreRig
from volume.errors import (
    BadRecords,
    CorruptJournal,
    MixedGroup,
    NotConfirmed,
    NotPrimary,
    OutOfSpace,
    ShrinkRefused,
    SnapshotExists,
    SnapshotPinned,
    StoreSealed,
    VolumeError,
    WouldWait,
)
from volume.gate import Done
from volume.meta import Meta
from volume.notes import Kind, Note, decode
from volume.replica import Replica

VOLUME = b"v" * 16
SIZE = 64 << 10
BLOCK = 512
OPTIONS = replace(SMALL, window_bytes=24 * 16384, window_s=3600, journal_limit=12 * 16384)


class Member:
    """A node's part of the volume. `deliver` sends it what a primary's tap gave."""

    def __init__(self, seed: int) -> None:
        self.rig = StoreRig(options=OPTIONS, seed=seed)
        self.rig.store.replicas.create(VOLUME, "vm1", SIZE, BLOCK, 4096, 1)
        self.rig.tend()

    @property
    def replica(self) -> Replica:
        found = self.rig.store.replicas.get(VOLUME)
        assert found is not None
        return found

    def names(self) -> dict[str, tuple[int, bool]]:
        found = self.rig.store.snapshots.all("vm1")
        assert self.rig.store.info("vm1").snapshot_count == len(found)
        return {each.name: (each.seq, each.pinned) for each in found}

    def killed(self) -> None:
        self.rig = self.rig.killed()
        self.rig.tend()

    def cut(self, rng: random.Random) -> None:
        state = CrashState(self.rig.disk.trace)
        for op in self.rig.disk.trace.ops:
            state.apply(op)
        self.rig = self.rig.rebooted(state.drawn("cut", rng))
        self.rig.tend()

    def first_byte(self, ref: str) -> bytes:
        """Of what a snapshot, or the volume, reads as."""
        device = self.rig.store.open_version(ref)
        request, done = Request(OP_READ, 0, BLOCK), list[Request]()
        device.submit([request], done.extend)
        assert [each.error for each in done] == [0]
        assert isinstance(request.data, (bytes, bytearray, memoryview))
        return bytes(request.data[:1])


class Primary(Member):
    """W is 1 unless `alone` is told to wait for others."""

    def __init__(self, epoch: int = 1) -> None:
        super().__init__(9)
        self.confirmed = True
        self.replica.tap(4 << 20)
        self.serve(epoch)

    def serve(self, epoch: int) -> None:
        self.replica.promise(epoch)
        self.replica.begin(epoch, self.replica.held[0])
        self.replica.serve(epoch, timeout_s=0.01)
        self.advance()

    def advance(self) -> None:
        seq, _ = self.replica.held
        self.replica.allow(seq, seq)

    def write(self, fill: bytes, at: int = 0) -> None:
        self.rig.tend()
        request = Request(OP_WRITE, at, BLOCK, fill * BLOCK)
        self.replica.volume.core.submit([request], self.rig.clock.now_ns())
        assert not request.error
        self.advance()

    def records(self) -> tuple[int, int, bytes]:
        buffer = bytearray(TAP_MIN_BUFFER)
        length, first, last, _ = self.replica.volume.core.take(buffer)
        return first, last, bytes(buffer[:length])

    def do(self, call: Callable[[], object]) -> None:
        """What waits for W nodes, which say yes at once."""
        gate = self.replica.gate
        confirm = gate.confirm

        def confirmed(request: Request, seq: int, *, durable: bool, done: Done) -> None:
            self.advance()
            confirm(request, seq, durable=durable, done=done)

        gate.confirm = confirmed  # type: ignore[method-assign]
        try:
            call()
        finally:
            del gate.confirm

    def snapshot(self, name: str, **options: bool) -> None:
        self.rig.tend()
        self.do(lambda: self.rig.store.snapshots.create(name, ["vm1"], **options))

    def drop(self, name: str, *, force: bool = False) -> None:
        self.do(lambda: self.rig.store.snapshots.delete("vm1", name, force=force))

    def resize(self, size: int, *, force: bool = False) -> None:
        self.do(lambda: self.rig.store.resize_volume("vm1", size, force=force))


def deliver(primary: Primary, *members: Member, epoch: int = 1) -> None:
    first, last, data = primary.records()
    for member in members:
        member.rig.tend()
        member.replica.append(epoch, epoch, first, last, data)
        assert member.replica.held[0] == last


def test_a_snapshot_is_there_on_each_member_with_what_was_in_it() -> None:
    primary, member = Primary(), Member(2)
    primary.write(b"1")
    primary.snapshot("one", pinned=True)
    primary.write(b"2")
    deliver(primary, member)
    for node in (primary, member):
        assert node.names() == {"one": (2, True)}
        assert node.first_byte("vm1@one") == b"1"
        node.rig.store.destage()
        assert node.first_byte("vm1@one") == b"1"


@pytest.mark.parametrize("cut", [False, True])
def test_names_that_are_only_in_the_journal_are_found_at_a_start(cut: bool) -> None:
    primary, member = Primary(), Member(2)
    primary.write(b"1")
    for name in ("one", "two", "three"):
        primary.snapshot(name)
    primary.drop("two")
    deliver(primary, member)
    for node in (primary, member):
        node.replica.sync()
        before = node.names()
        node.cut(random.Random(3)) if cut else node.killed()
        assert node.names() == before == {"one": (2, False), "three": (4, False)}
        assert node.first_byte("vm1@three") == b"1"


def test_what_is_undone_takes_its_names_along_and_gives_dropped_ones_back() -> None:
    primary, member = Primary(), Member(2)
    primary.write(b"1")
    primary.snapshot("kept")
    primary.snapshot("dropped")
    deliver(primary, member)
    keep = (1, member.replica.held[0])
    notes, volume = primary.rig.store.snapshots._notes, primary.replica.volume
    notes.snapshot("new", [volume], pinned=False, scheduled=False)  # nobody confirms any of this
    notes.drop(volume, "dropped")
    notes.snapshot("dropped", [volume], pinned=False, scheduled=False)  # another one
    notes.pin(volume, "kept", True)
    notes.resize(volume, 2 * SIZE, force=False)
    deliver(primary, member)
    assert member.names() == {"kept": (2, True), "new": (4, False), "dropped": (6, False)}
    member.rig.store.destage()
    member.replica.promise(2)
    member.replica.undo(2, keep)
    assert member.names() == {"kept": (2, False), "dropped": (3, False)}
    assert member.rig.store.info("vm1").size == SIZE
    member.killed()
    assert member.names() == {"kept": (2, False), "dropped": (3, False)}
    assert member.rig.store.info("vm1").size == SIZE


def test_what_was_dropped_keeps_its_chunks_until_w_nodes_have_that_on_their_disks() -> None:
    primary, member = Primary(), Member(2)
    primary.write(b"1")
    primary.snapshot("one")
    primary.rig.store.destage()
    primary.rig.store.snapshots._notes.drop(primary.replica.volume, "one")
    deliver(primary, member)
    primary.rig.tend()
    history = primary.rig.store._history
    number = primary.replica.volume.record.number
    assert history.names_seq(number, 2)  # nobody has said that it has the record
    assert primary.replica.gate.wanted == 3
    primary.advance()
    primary.rig.tend()
    deliver(primary, member)
    assert not history.names_seq(number, 2)
    assert not member.rig.store._history.names_seq(1, 2)
    primary.killed()
    assert primary.rig.store._history.dropped == {}


def test_thinning_sees_what_is_dropped_at_any_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    def noted(*what: Any) -> None:
        update(*what)
        named.append(history.names_seq(1, 2))

    primary = Primary()
    primary.write(b"1")
    primary.snapshot("one")
    history, named = primary.rig.store._history, list[bool]()
    update = history._kv.update_noted
    monkeypatch.setattr(history._kv, "update_noted", noted)
    primary.rig.store.snapshots._notes.drop(primary.replica.volume, "one")
    assert named == [True]


def test_a_next_primary_lets_go_of_what_the_one_before_has_dropped() -> None:
    primary, member = Primary(), Member(2)
    primary.snapshot("one")
    primary.drop("one")
    deliver(primary, member)
    assert member.rig.store._history.dropped
    member.replica.promise(2)
    member.replica.begin(2, member.replica.held[0])
    member.replica.serve(2)
    member.rig.tend()
    assert member.rig.store._history.dropped == {}


def test_a_volume_grows_and_shrinks_on_each_member_in_its_place() -> None:
    primary, member = Primary(), Member(2)
    primary.write(b"1", at=SIZE - BLOCK)
    primary.snapshot("small")
    primary.resize(2 * SIZE)
    primary.write(b"2", at=2 * SIZE - BLOCK)
    with pytest.raises(ShrinkRefused):
        primary.resize(SIZE)
    primary.resize(SIZE // 2, force=True)
    primary.snapshot("smaller")
    primary.resize(SIZE)
    primary.write(b"3")
    deliver(primary, member)
    for node in (primary, member):
        for _ in range(2):
            assert node.rig.store.info("vm1").size == SIZE
            sizes = {each.name: each.size for each in node.rig.store.snapshots.all("vm1")}
            assert sizes == {"small": SIZE, "smaller": SIZE // 2}
            request = Request(OP_READ, SIZE - BLOCK, BLOCK)
            node.replica.volume.core.submit([request], node.rig.clock.now_ns())
            if isinstance(request.data, (bytes, bytearray)):  # else it is not in memory
                assert bytes(request.data) == bytes(BLOCK)  # what was cut off does not come back
            node.killed()


def test_a_resize_that_a_crash_has_cut_short_is_done_at_the_start() -> None:
    primary, member = Primary(), Member(2)
    primary.resize(2 * SIZE)
    first, last, data = primary.records()
    meta = member.rig.store._meta

    def crash(name: str, size: int) -> None:
        raise SystemExit

    meta.resize = crash  # type: ignore[method-assign,assignment]
    with pytest.raises(SystemExit):
        member.replica.append(1, 1, first, last, data)
    member.killed()
    assert member.replica.held[0] == 1
    assert member.rig.store.info("vm1").size == 2 * SIZE


def test_a_note_that_a_crash_has_left_in_the_journal_alone_is_done_at_the_start() -> None:
    primary, member = Primary(), Member(2)
    primary.write(b"1")
    primary.snapshot("gone")
    deliver(primary, member)
    primary.drop("gone")
    primary.snapshot("new")
    first, last, data = primary.records()

    def crash(*_: object) -> None:
        raise SystemExit

    for _ in range(3):  # drop, settled, snapshot: each dies before its row
        member.rig.tend()
        member.rig.store._notes._apply = crash  # type: ignore[method-assign,assignment]
        with pytest.raises(SystemExit):
            member.replica.append(1, 1, first, last, data)
        member.killed()
    assert member.replica.held[0] == last
    assert member.names() == primary.names() == {"new": (5, False)}
    assert member.rig.store._history.dropped == {}


def test_only_the_primary_takes_orders() -> None:
    primary, member = Primary(), Member(2)
    primary.snapshot("one")
    deliver(primary, member)
    store = member.rig.store
    for call in (
        lambda: store.snapshots.create("two", ["vm1"]),
        lambda: store.snapshots.delete("vm1", "one"),
        lambda: store.snapshots.pin("vm1", "one", True),
        lambda: store.resize_volume("vm1", 2 * SIZE),
    ):
        with pytest.raises(NotPrimary, match="blockd cluster status"):
            call()
    assert member.names() == {"one": (1, False)}
    assert store.info("vm1").size == SIZE


def test_what_is_not_confirmed_is_said_to_be_unknown() -> None:
    primary = Primary()
    gate = primary.replica.gate

    def refuse(request: Request, seq: int, *, durable: bool, done: Done) -> None:
        request.error = 5
        done([request])

    gate.confirm = refuse  # type: ignore[method-assign]
    with pytest.raises(NotConfirmed, match="snapshot one is in this node's journal"):
        primary.rig.store.snapshots.create("one", ["vm1"])


def test_names_are_refused_as_on_one_node() -> None:
    primary = Primary()
    primary.snapshot("one", pinned=True)
    primary.rig.store.create_volume("local", SIZE)
    snapshots = primary.rig.store.snapshots
    with pytest.raises(SnapshotExists):
        primary.snapshot("one")
    with pytest.raises(SnapshotPinned):
        primary.drop("one")
    with pytest.raises(MixedGroup, match="Make two groups"):
        snapshots.create("two", ["vm1", "local"])
    with pytest.raises(WouldWait):
        snapshots.create("two", ["vm1"], wait=False)
    primary.drop("one", force=True)
    assert primary.names() == {}


def test_a_group_is_of_one_moment_and_all_or_nothing() -> None:
    primary = Primary()
    other = primary.rig.store.replicas.create(b"o" * 16, "vm2", SIZE, BLOCK, 4096, 1)
    other.begin(1, 0)
    other.serve(1)
    store = primary.rig.store
    store.snapshots._notes.snapshot(
        "both", [primary.replica.volume, other.volume], pinned=False, scheduled=False
    )
    assert [each.name for each in store.snapshots.all()] == ["both", "both"]
    other.shut()
    with pytest.raises(NotPrimary):
        store.snapshots._notes.snapshot(
            "again", [primary.replica.volume, other.volume], pinned=False, scheduled=False
        )
    assert primary.names() == {"both": (1, False)}


def test_scheduled_snapshots_are_made_and_removed_by_the_primary_alone() -> None:
    primary, member = Primary(), Member(2)
    for node in (primary, member):
        node.rig.store.snapshots.set_schedule("vm1", 10, "2s")
    for _ in range(6):
        for node in (primary, member):
            node.rig.clock.advance(10)
            node.rig.tend()
        primary.advance()
    deliver(primary, member)
    made = primary.names()
    assert made
    assert all(name.startswith("auto-") for name in made)
    assert len(made) < 6
    assert member.names() == made


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\1" * 24,
        Note(Kind.SNAPSHOT, 1, SIZE, SIZE, "one").encode()[:-1],
        Note(Kind.SNAPSHOT, 1, SIZE, SIZE, "-x").encode(),
        Note(Kind.SNAPSHOT, 1, SIZE, SIZE).encode(),
        Note(Kind.SNAPSHOT, 1, SIZE, 2 * SIZE, "one").encode(),
        Note(Kind.RESIZE, 1, SIZE, 2 * SIZE, "one").encode(),
        Note(Kind.SNAPSHOT, 1, SIZE, SIZE, "one").encode() + b"x",
    ],
)
def test_a_note_that_makes_no_sense_is_refused(payload: bytes) -> None:
    with pytest.raises(CorruptJournal, match="makes no sense"):
        decode("record 1", payload)


def test_notes_that_no_member_would_make_are_not_appended() -> None:
    primary, member = Primary(), Member(2)
    journal, core = primary.rig.store._journal, primary.replica.volume.core
    journal.append_notes([(core, Note(Kind.SNAPSHOT, 1, SIZE, SIZE, "-x").encode())], 1)
    first, last, data = primary.records()
    with pytest.raises(BadRecords):
        member.replica.append(1, 1, first, last, data)
    assert member.replica.held[0] == 0
    member.killed()
    with pytest.raises(VolumeError):
        member.rig.store.snapshots.get("vm1", "-x")


def test_notes_are_decoded_as_they_were_made() -> None:
    note = Note(Kind.PIN, 7, SIZE, SIZE, "one", 3, pinned=True, scheduled=True)
    assert decode("it", note.encode()) == note


@pytest.mark.parametrize("size", [SIZE + 1, (1 << 60) + BLOCK])
def test_a_size_that_no_volume_can_have_is_not_appended(size: int) -> None:
    primary, member = Primary(), Member(2)
    journal, core = primary.rig.store._journal, primary.replica.volume.core
    journal.append_notes([(core, Note(Kind.RESIZE, 1, SIZE, size).encode())], 1)
    first, last, data = primary.records()
    with pytest.raises(BadRecords):
        member.replica.append(1, 1, first, last, data)
    member.killed()
    assert (member.replica.held[0], member.rig.store.info("vm1").size) == (0, SIZE)


def test_a_name_that_was_dropped_while_a_member_was_away_comes_back_with_an_undo() -> None:
    primary, member = Primary(), Member(2)
    primary.write(b"1")
    primary.snapshot("one")
    primary.snapshot("two")
    primary.write(b"2")
    deliver(primary, member)
    keep = (1, member.replica.held[0])
    notes, volume = primary.rig.store.snapshots._notes, primary.replica.volume
    notes.drop(volume, "one")  # nobody confirms this
    notes.pin(volume, "two", True)
    before = member.names()
    seq = primary.replica.held[0]
    copying = Copying(primary.replica, member.replica, 1).run()
    copying = Copying(primary.replica, member.replica, 1, after=3).run()
    assert copying.names
    member.replica.adopt(1, keep[1], 0, ((1, seq),), copying.names)
    assert member.names() == {"two": (3, True)}
    member.rig.settle()
    member.killed()
    assert member.names() == {"two": (3, True)}
    member.replica.promise(2)
    member.replica.undo(2, keep)
    assert member.names() == before
    for name in before:
        assert member.first_byte(f"vm1@{name}") == b"1"


def test_a_size_that_cannot_be_kept_seals_the_store_and_is_kept_at_the_next_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: object) -> NoReturn:
        raise OutOfSpace("meta: no space left")

    primary, member = Primary(), Member(2)
    primary.resize(2 * SIZE)
    with monkeypatch.context() as patch:
        patch.setattr(Meta, "resize", full)
        patch.setattr(Meta, "seal", full)
        with pytest.raises(OutOfSpace):
            deliver(primary, member)
    assert "its size is not kept" in (member.rig.store._seal.reason or "")
    with pytest.raises(StoreSealed):  # nothing is said in its name, and no round is of the old size
        member.replica.promise(2)
    member.killed()
    assert (member.replica.held[0], member.rig.store.info("vm1").size) == (1, 2 * SIZE)
