"""Going back to a version of a volume that several nodes have: on each of them, after a crash at
each step, and undone with the records that said so."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from errno import ESHUTDOWN
from typing import Any, NoReturn

import pytest

from native import OP_READ, OP_WRITE, TAP_MIN_BUFFER, Request
from tests.sim.simdisk import PowerCut
from tests.unit.volume.test_noted import BLOCK, SIZE, VOLUME, Member, Primary, deliver
from volume.errors import (
    BadRecords,
    CannotRestore,
    InvalidName,
    NoSuchVersion,
    NotConfirmed,
    NotPrimary,
    OutOfSpace,
    SnapshotExists,
    VolumeBusy,
)
from volume.historyrows import VersionRow
from volume.meta import Meta, VolumeRecord
from volume.notes import Kind, Note, Source, decode
from volume.refs import copy_name
from volume.replica import Replica


def go_back(primary: Primary, to: str, *, force: bool = False) -> str:
    done = []
    primary.rig.tend()
    versions = primary.rig.store.versions
    primary.do(lambda: done.append(versions.restore("vm1", to, force=force)))
    return str(done[0].kept)


def now(node: Member) -> bytes:
    """First byte of what the volume itself reads as here; the state of its newest record."""
    seq = node.replica.held[0]
    node.rig.store.destage()
    return node.first_byte(f"vm1@seq:{seq}")


def written() -> Primary:
    """1 in `one`, then 2."""
    primary = Primary()
    primary.write(b"1")
    primary.snapshot("one")
    primary.write(b"2")
    return primary


def test_members_go_back_with_the_primary_and_the_state_before_has_a_name() -> None:
    primary, member = written(), Member(2)
    kept = go_back(primary, "one")
    primary.write(b"3", at=BLOCK)
    deliver(primary, member)
    assert kept == "before-restore-3"
    for node in (primary, member):
        assert node.replica.volume.went_back == 1, "front ends see that clients have to hear of it"
        assert node.names() == {"one": (2, False), kept: (4, False)}
        for _ in range(2):
            assert node.first_byte("vm1@one") == b"1"
            assert node.first_byte(f"vm1@{kept}") == b"2"
            assert node.first_byte("vm1@seq:3") == b"2"
            assert node.first_byte("vm1@seq:5") == b"1"
            assert now(node) == b"1"
            node.killed()
            assert node.replica.held[0] == 6


def test_what_was_written_after_a_restore_is_over_it() -> None:
    primary, member = written(), Member(2)
    go_back(primary, "one")
    primary.write(b"3")
    primary.snapshot("three")
    deliver(primary, member)
    for node in (primary, member):
        node.killed()  # all of it is in the journal
        assert node.first_byte("vm1@three") == b"3"
        assert now(node) == b"3"
        assert node.first_byte("vm1@seq:5") == b"1"


def test_an_undo_of_a_restore_is_a_restore_and_gives_no_further_name() -> None:
    primary, member = written(), Member(2)
    kept = go_back(primary, "one")
    assert go_back(primary, kept) == "one"  # that is what it was, and has a name
    deliver(primary, member)
    for node in (primary, member):
        assert node.names() == {"one": (2, False), kept: (4, False)}
        assert now(node) == b"2"


def test_a_record_without_a_name_can_be_gone_back_to() -> None:
    primary, member = written(), Member(2)
    primary.write(b"3")
    go_back(primary, "seq:3")
    deliver(primary, member)
    assert now(primary) == now(member) == b"2"


def test_sizes_go_back_with_what_was_in_them() -> None:
    primary, member = Primary(), Member(2)
    primary.write(b"1", at=SIZE - BLOCK)
    primary.snapshot("small")
    primary.resize(2 * SIZE)
    primary.write(b"2", at=2 * SIZE - BLOCK)
    kept = go_back(primary, "small")
    primary.write(b"3")
    deliver(primary, member)
    for node in (primary, member):
        assert node.rig.store.info("vm1").size == SIZE
    member.killed()
    assert member.rig.store.info("vm1").size == SIZE
    go_back(primary, kept)
    deliver(primary, member)
    for node in (primary, member):
        assert node.rig.store.info("vm1").size == 2 * SIZE
        node.killed()
        assert node.rig.store.info("vm1").size == 2 * SIZE


SITES = ("restore.retired", "restore.synced", "restore.replaced")


@contextmanager
def crash_at(site: int) -> Iterator[None]:
    """What the block does is cut off by a power cut at that step of a restore."""

    def crash(name: str) -> None:
        if name == SITES[site]:
            raise PowerCut

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("volume.noted.fail_point", crash)
        patch.setattr("volume.heads.fail_point", crash)
        with pytest.raises(PowerCut):
            yield


@pytest.mark.parametrize("power", [False, True])
@pytest.mark.parametrize("site", [1, 2])
def test_a_crash_of_a_member_at_any_step_leaves_the_one_state_or_the_other(
    site: int, power: bool
) -> None:
    primary, member = written(), Member(2)
    kept = go_back(primary, "one")
    first, last, data = primary.records()
    with crash_at(site):
        member.replica.append(1, 1, first, last, data)
    member.cut(random.Random(4)) if power else member.killed()
    member.replica.append(1, 1, first, last, data)
    assert member.replica.held[0] == last
    assert member.names() == primary.names()
    assert now(member) == b"1"
    assert member.first_byte(f"vm1@{kept}") == b"2"


@pytest.mark.parametrize("power", [False, True])
@pytest.mark.parametrize("site", [0, 1, 2])
def test_a_crash_of_the_primary_at_any_step_leaves_the_one_state_or_the_other(
    site: int, power: bool
) -> None:
    primary = written()
    primary.replica.sync()
    with crash_at(site):
        go_back(primary, "one")
    primary.cut(random.Random(4)) if power else primary.killed()
    if site == 0:
        assert primary.names() == {"one": (2, False)}
        assert (primary.replica.held[0], now(primary)) == (3, b"2")
        return
    assert primary.names() == {"one": (2, False), "before-restore-3": (4, False)}
    assert (primary.replica.held[0], now(primary)) == (5, b"1")
    assert primary.first_byte("vm1@before-restore-3") == b"2"


@pytest.mark.parametrize("keep", [3, 4])
@pytest.mark.parametrize("destaged", [False, True])
def test_a_restore_that_w_nodes_do_not_have_is_undone(keep: int, destaged: bool) -> None:
    primary, member = written(), Member(2)
    kept = go_back(primary, "one")
    primary.write(b"3")
    deliver(primary, member)
    if destaged:
        member.rig.store.destage()
    member.replica.promise(2)
    member.replica.undo(2, (1, keep))
    names = {"one": (2, False), **({kept: (4, False)} if keep == 4 else {})}
    for _ in range(2):
        assert member.names() == names
        assert (member.replica.held[0], now(member)) == (keep, b"2")
        member.killed()


def test_a_member_without_the_state_takes_nothing_and_says_so() -> None:
    primary, member = written(), Member(2)
    go_back(primary, "one")
    first, last, data = primary.records()
    member.rig.store._notes.state_of = lambda *_: None  # type: ignore[method-assign]
    with pytest.raises(NoSuchVersion, match="another state is"):
        member.replica.append(1, 1, first, last, data)
    assert member.replica.held[0] == last - 1
    assert now(member) == b"2"


def test_a_volume_that_is_attached_is_refused_or_its_clients_are_gone_first() -> None:
    primary = written()
    volume, store = primary.replica.volume, primary.rig.store
    volume.attach("client")
    with pytest.raises(VolumeBusy):
        go_back(primary, "one")
    primary.write(b"4")  # nothing has changed for it
    told = []

    def cut(name: str, why: str) -> None:
        told.append(name)
        volume.detach("client")

    store.versions.cut_with(cut)
    go_back(primary, "one", force=True)
    assert told == ["vm1"]
    assert now(primary) == b"1"
    primary.write(b"5")


def test_who_does_not_go_when_it_is_cut_off_keeps_the_volume_as_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("volume.versions.CUT_LOOKS", 2)
    primary = written()
    primary.replica.volume.attach("client")
    with pytest.raises(VolumeBusy):
        go_back(primary, "one", force=True)
    primary.write(b"4")
    assert now(primary) == b"4"


def test_only_the_primary_goes_back() -> None:
    primary, member = written(), Member(2)
    deliver(primary, member)
    with pytest.raises(NotPrimary):
        member.rig.store.versions.restore("vm1", "one")


def test_a_restore_that_is_not_confirmed_may_hold() -> None:
    primary = written()
    with pytest.raises(NotConfirmed, match="restore"):
        primary.rig.store.versions.restore("vm1", "one")
    assert now(primary) == b"1"


def test_what_is_written_while_it_is_decided_is_not_lost() -> None:
    primary = written()
    volume, store = primary.replica.volume, primary.rig.store
    with (
        store.versions.settled("vm1@one") as (record, row),
        pytest.raises(CannotRestore, match="written to meanwhile"),
    ):
        store._notes.restore(volume, row, record.uuid, "one", at=2)
    primary.write(b"4")
    assert now(primary) == b"4"


def waiting(primary: Primary, fill: bytes) -> Request:
    """A write of a client that is gone, which waits for journal space."""
    volume, store = primary.replica.volume, primary.rig.store
    request = Request(OP_WRITE, 0, BLOCK, fill * BLOCK)
    store._backlog.add(volume, [request], lambda _: None, volume.turn)
    return request


def test_a_write_that_waited_for_space_does_not_land_on_what_the_volume_went_back_to() -> None:
    primary = written()
    volume, store = primary.replica.volume, primary.rig.store
    with store.versions.settled("vm1@one") as (record, row):
        request = waiting(primary, b"x")
        seq = store._notes.restore(volume, row, record.uuid, "kept")
    primary.rig.store._backlog.wake()
    assert (request.error, primary.rig.store._backlog.count) == (ESHUTDOWN, 0)
    assert (primary.replica.held[0], now(primary)) == (seq, b"1")


def test_a_restore_that_is_refused_leaves_writes_waiting() -> None:
    primary = written()
    request = waiting(primary, b"4")
    primary.replica.volume.attach("client")
    with pytest.raises(VolumeBusy):
        go_back(primary, "one")
    with primary.rig.store.versions.settled("vm1@one") as (record, row), pytest.raises(VolumeBusy):
        primary.rig.store._notes.restore(primary.replica.volume, row, record.uuid, "kept")
    primary.rig.store._backlog.wake()
    assert (request.error, now(primary)) == (0, b"4")


@pytest.mark.parametrize("by", ["shut", "promise"])
def test_a_write_that_waited_for_space_does_not_land_when_the_node_serves_again(by: str) -> None:
    primary = written()
    request = waiting(primary, b"x")
    if by == "shut":
        primary.replica.shut()
    else:
        primary.replica.promise(2)
    primary.serve(3)
    primary.rig.store._backlog.wake()
    assert request.error == ESHUTDOWN
    assert (primary.replica.held[0], now(primary)) == (3, b"2")


def test_a_name_that_somebody_has_given_meanwhile_is_not_taken_for_the_state_before() -> None:
    primary = written()
    primary.snapshot("mine")
    volume, store = primary.replica.volume, primary.rig.store
    with (
        store.versions.settled("vm1@one") as (record, row),
        pytest.raises(SnapshotExists),
    ):
        store._notes.restore(volume, row, record.uuid, "mine")
    assert primary.names() == {"one": (2, False), "mine": (4, False)}
    primary.write(b"4")
    assert now(primary) == b"4"


def test_a_head_that_cannot_be_kept_seals_the_store_and_is_kept_at_the_next_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: object, **__: object) -> NoReturn:
        raise OutOfSpace("meta: no space left")

    primary = written()
    with monkeypatch.context() as patch:
        patch.setattr(Meta, "replace_head", full)
        patch.setattr(Meta, "seal", full)
        with pytest.raises(OutOfSpace):
            go_back(primary, "one")
    assert "the version it goes back to is not kept" in (primary.rig.store._seal.reason or "")
    request = Request(OP_READ, 0, BLOCK)
    primary.replica.volume.core.submit([request], primary.rig.clock.now_ns())
    assert request.error == ESHUTDOWN  # neither the one state nor the other
    primary.killed()
    assert now(primary) == b"1"


def test_a_restore_is_decoded_as_it_was_made_and_nothing_else_is() -> None:
    note = Note(Kind.RESTORE, 5, 4096, 8192, up_to=7, source=Source(b"v" * 16, b"r" * 32, 2))
    data = note.encode()
    assert decode("it", data) == note
    assert note.source is not None
    other = replace(note, source=replace(note.source, height=0))
    for bad in (data[:-1], data + b"x", other.encode()):
        with pytest.raises(Exception, match="makes no sense"):
            decode("it", bad)
    member = Member(2)
    with pytest.raises(BadRecords):
        member.replica.append(1, 1, 1, 1, bytes(64))


def test_nobody_can_give_a_volume_the_name_of_a_landing_copy() -> None:
    rig = Member(2).rig
    store, name = rig.store, copy_name("vm1", b"v" * 16)
    for call in (
        lambda: store.create_volume(name, SIZE),
        lambda: store.versions.clone("vm1", name),
        lambda: store.receive(name),
        lambda: store.replicas.create(b"w" * 16, name, SIZE, BLOCK, 4096, 1),
    ):
        with pytest.raises(InvalidName, match="copy-"):
            call()
    store.create_volume("user", SIZE)
    with pytest.raises(InvalidName, match="copy-"):
        store.rename_volume("user", name)
    assert store.names() == ["user", "vm1"]


CLONE = b"w" * 16


def cloned(*nodes: Member) -> list[Replica]:
    """An empty volume of the same nodes, served by the first one."""
    replicas = []
    for node in nodes:
        node.rig.store.replicas.create(CLONE, "vm2", SIZE, BLOCK, 4096, 1)
        found = node.rig.store.replicas.get(CLONE)
        assert found is not None
        replicas.append(found)
        node.rig.tend()
    replicas[0].tap(4 << 20)
    replicas[0].promise(1)
    replicas[0].begin(1, 0)
    replicas[0].serve(1, timeout_s=0.01)
    return replicas


def begin_as(node: Member, replica: Replica, source: str) -> tuple[int, int, bytes]:
    """Of the clone, as `Primary.records`; nobody confirms it."""
    with pytest.raises(NotConfirmed, match="begins as"):
        node.rig.store.versions.begin_as("vm2", source)
    buffer = bytearray(TAP_MIN_BUFFER)
    length, first, last, _ = replica.volume.core.take(buffer)
    return first, last, bytes(buffer[:length])


def test_a_clone_begins_as_its_source_on_each_node_that_has_that() -> None:
    primary, member, other = written(), Member(2), Member(3)
    deliver(primary, member)
    own, theirs, lacking = cloned(primary, member, other)
    first, last, data = begin_as(primary, own, "vm1@one")
    member.rig.store.destage()
    before = member.rig.store.status().pack_bytes
    theirs.append(1, 1, first, last, data)
    member.rig.store.destage()
    assert member.rig.store.status().pack_bytes == before  # shared, not copied
    with pytest.raises(NoSuchVersion, match="newest is seq:0"):  # it is copied to
        lacking.append(1, 1, first, last, data)
    assert lacking.held[0] == 0
    primary.drop("one")
    for node, replica in ((primary, own), (member, theirs)):
        for _ in range(2):
            assert node.first_byte("vm2@seq:1") == b"1"
            assert node.first_byte("vm1@seq:3") == b"2"
            node.killed()
        assert replica.held[0] == 1


def test_only_an_empty_volume_begins_as_another_one() -> None:
    primary = written()
    (own,) = cloned(primary)
    begin_as(primary, own, "vm1@one")
    with pytest.raises(CannotRestore, match="written to"):
        primary.rig.store.versions.begin_as("vm2", "vm1")
    primary.rig.store.create_volume("alone", SIZE, block_size=BLOCK, chunk_size=4096)
    with pytest.raises(NotPrimary):
        primary.rig.store.versions.begin_as("alone", "vm1@one")


def test_what_is_written_before_a_clone_begins_is_not_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    primary = written()
    (own,) = cloned(primary)
    notes = primary.rig.store._notes
    restore = notes.restore

    def late(*args: Any) -> int:
        request = Request(OP_WRITE, 0, BLOCK, b"w" * BLOCK)
        own.volume.core.submit([request], primary.rig.clock.now_ns())
        own.allow(1, 1)
        assert not request.error
        return restore(*args)

    monkeypatch.setattr(notes, "restore", late)
    with pytest.raises(CannotRestore, match="written to"):
        primary.rig.store.versions.begin_as("vm2", "vm1@one")
    primary.rig.store.destage()
    assert primary.first_byte("vm2@seq:1") == b"w"


def test_a_clone_whose_source_is_deleted_meanwhile_stays_empty() -> None:
    primary, member = written(), Member(2)
    deliver(primary, member)
    own, theirs = cloned(primary, member)
    first, last, data = begin_as(primary, own, "vm1@one")
    settled = member.rig.store.versions.settled

    @contextmanager
    def gone(ref: str) -> Iterator[tuple[VolumeRecord, VersionRow]]:
        with settled(ref) as found:
            member.rig.store.replicas.remove(VOLUME)
            yield found

    member.rig.store.versions.settled = gone  # type: ignore[method-assign]
    with pytest.raises(NoSuchVersion):
        theirs.append(1, 1, first, last, data)
    assert theirs.held[0] == 0
    assert member.rig.store._seal.reason is None
    member.killed()
    assert member.rig.store.names() == ["vm2"]
