"""Points: names that are in the journal first, and become versions in one reading of the log."""

from dataclasses import replace

import pytest

from tests.sim.crash import CrashState
from tests.sim.store_rig import KIB, SEGMENT_BYTES, SMALL, StoreRig, meta_at
from volume import points
from volume.errors import CorruptJournal, NoSuchVersion, SnapshotExists, WouldWait
from volume.history import NameFilter
from volume.logreader import LogCursor

OPTIONS = replace(SMALL, window_bytes=20 * SEGMENT_BYTES, window_s=600)


@pytest.fixture
def rig() -> StoreRig:
    made = StoreRig(options=OPTIONS)
    for name in ("a", "b"):
        made.store.create_volume(name, 64 * KIB, block_size=512, chunk_size=4096)
    return made


def write(rig: StoreRig, name: str, data: bytes, offset: int = 0) -> None:
    assert rig.write(name, offset, data * 512) == 0


def test_snapshot_waits_for_no_sync_and_survives_kill(rig: StoreRig) -> None:
    write(rig, "a", b"1")
    before = rig.store.status().synced_lsn
    rig.store.snapshots.create("s", ["a", "b"])
    assert rig.store.status().synced_lsn == before
    write(rig, "a", b"2")
    again = rig.killed()
    assert [info.name for info in again.store.snapshots.all()] == ["s", "s"]
    assert again.read_version("a@s")[:512] == b"1" * 512
    assert again.read("a", 0, 512) == b"2" * 512


def test_snapshot_survives_a_power_cut_once_the_log_is_synced_and_never_in_part(
    rig: StoreRig,
) -> None:
    write(rig, "a", b"1")
    rig.flush("a")
    begin = len(rig.disk.trace.ops)
    rig.store.snapshots.create("s", ["a", "b"])
    created = len(rig.disk.trace.ops)
    rig.store.tend()  # makes it durable
    durable = len(rig.disk.trace.ops)
    state = CrashState(rig.disk.trace)
    for point, op in enumerate(rig.disk.trace.ops, start=1):
        state.apply(op)
        if point < begin:
            continue
        meta = meta_at(rig.disk.trace.marks(point), {})
        cut = StoreRig(state.image("all lost", ()), meta, options=OPTIONS, boot="boot-2")
        names = [f"{info.volume}@{info.name}" for info in cut.store.snapshots.all()]
        assert names in ([], ["a@s", "b@s"])
        assert names or point < durable
        assert not names or point > created
        if names:
            assert cut.read_version("a@s")[:512] == b"1" * 512


def test_snapshot_that_was_deleted_does_not_come_back(rig: StoreRig) -> None:
    write(rig, "a", b"1")
    rig.store.snapshots.create("s", ["a"])
    rig.store.snapshots.delete("a", "s")
    again = rig.killed()
    assert again.store.snapshots.all() == []
    with pytest.raises(NoSuchVersion):
        again.read_version("a@s")


def test_a_name_is_given_once_also_before_it_is_durable(rig: StoreRig) -> None:
    rig.store.snapshots.create("s", ["a"])
    with pytest.raises(SnapshotExists):
        rig.store.snapshots.create("s", ["b", "a"])
    assert [info.volume for info in rig.store.snapshots.all()] == ["a"]


def test_many_points_are_settled_in_one_reading_of_the_log(
    rig: StoreRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    cursors = []
    original = LogCursor.__init__

    def counted(self: LogCursor, *arguments: object) -> None:
        cursors.append(self)
        original(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(LogCursor, "__init__", counted)
    for number in range(8):
        write(rig, "a", b"%d" % number, number * 512)
        write(rig, "b", b"%d" % (number + 1), 0)
        rig.store.snapshots.create(f"s{number}", ["a", "b"])
    write(rig, "a", b"z")
    rig.store.destage()
    assert len(cursors) == 1
    assert all(info.commit for info in rig.store.snapshots.all())
    for number in range(8):
        found = rig.read_version(f"a@s{number}")
        assert found[number * 512 : number * 512 + 1] == b"%d" % number
        assert not any(found[(number + 1) * 512 :])
        assert rig.read_version(f"b@s{number}")[:1] == b"%d" % (number + 1)


def test_points_on_both_sides_of_a_restore_are_each_what_they_were(rig: StoreRig) -> None:
    write(rig, "a", b"1")
    rig.store.snapshots.create("first", ["a"])
    rig.store.destage()
    write(rig, "a", b"2", 512)
    rig.store.snapshots.create("second", ["a"])
    rig.store.versions.restore("a", "first")
    write(rig, "a", b"3", 1024)
    rig.store.snapshots.create("third", ["a"])
    write(rig, "a", b"4", 1536)
    rig.store.destage()
    firsts = {
        name: [rig.read_version(f"a@{name}")[at * 512 : at * 512 + 1] for at in range(4)]
        for name in ("first", "second", "third")
    }
    assert firsts == {
        "first": [b"1", b"\0", b"\0", b"\0"],
        "second": [b"1", b"2", b"\0", b"\0"],
        "third": [b"1", b"\0", b"3", b"\0"],
    }


@pytest.mark.parametrize("cut", range(4))
def test_a_record_that_makes_no_sense_is_refused(cut: int) -> None:
    tail = points.encode_tail(7, "name", pinned=True, scheduled=False, states=[(1, 512)])
    payload = b"\1\0\0\0" + b"\2\0\0\0" + b"\3" + bytes(7) + tail
    decoded = points.decode(9, payload)
    assert (decoded.name, decoded.pinned, decoded.volumes[0].seq) == ("name", True, 3)
    broken = [payload[:-1], payload + b"x", b"\xff\xff\xff\xff" + payload[4:], payload[:16]][cut]
    with pytest.raises(CorruptJournal, match="record 9"):
        points.decode(9, broken)


def test_snapshot_that_may_not_wait_is_made_at_once_or_not_at_all(rig: StoreRig) -> None:
    write(rig, "a", b"1")
    rig.store.snapshots.create("s", ["a"], wait=False)
    with rig.store._catalog.naming, pytest.raises(WouldWait):
        rig.store.snapshots.create("t", ["a"], wait=False)
    assert [info.name for info in rig.store.snapshots.all()] == ["s"]


def test_names_that_were_given_are_known_and_others_hardly_ever() -> None:
    names = NameFilter()
    for number in range(20_000):
        names.add(number % 3, f"s{number}")
    assert all(names.may_have(number % 3, f"s{number}") for number in range(20_000))
    assert sum(names.may_have(7, f"t{number}") for number in range(10_000)) < 100


def test_a_name_is_taken_once_also_after_a_restart(rig: StoreRig) -> None:
    rig.store.snapshots.create("s", ["a"])
    with pytest.raises(SnapshotExists):
        rig.store.snapshots.create("s", ["a"])
    again = rig.killed()
    with pytest.raises(SnapshotExists):
        again.store.snapshots.create("s", ["a"])
    again.store.snapshots.delete("a", "s")
    again.store.snapshots.create("s", ["a"])


def test_two_names_at_one_moment_share_its_version(rig: StoreRig) -> None:
    write(rig, "a", b"1")
    first = rig.store.snapshots.create("s", ["a"])[0]
    second = rig.store.snapshots.create("t", ["a"])[0]
    assert first.seq == second.seq
    rig.store.destage()
    third = rig.store.snapshots.create("u", ["a"])[0]
    assert third.seq == first.seq
    assert third.commit is not None
