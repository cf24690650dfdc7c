"""Past versions: that each shows its own bytes, at its own size, whatever happens around it."""

import errno
from dataclasses import replace
from typing import Any

import pytest

from native import OP_BLOCK_STATUS, Request
from tests.sim.crash import CrashState
from tests.sim.faults import Fail, Fault
from tests.sim.store_rig import (
    KIB,
    SEGMENT_BYTES,
    SMALL,
    MetaCommitted,
    StoreRig,
    meta_at,
    read_device,
)
from tests.sim.trace import Mark
from volume import changes, past
from volume.errors import NoSuchVersion, OutOfSpace, VersionsBusy
from volume.model import VolumeInfo
from volume.past import MAX_OPEN
from volume.refs import format_time

WINDOW = replace(SMALL, window_bytes=6 * SEGMENT_BYTES, window_s=600)
CHANGED = 1  # flag of an extent, as in volume.changes


@pytest.fixture
def rig() -> StoreRig:
    rig = StoreRig(options=WINDOW)
    rig.store.create_volume("v", 32 * KIB, chunk_size=4 * KIB)
    rig.tend()
    return rig


def write(rig: StoreRig, name: str, letter: bytes, length: int = 512) -> int:
    """Write `letter` at the beginning, a second after what was before; the seq."""
    rig.clock.advance(1.0)
    assert rig.write(name, 0, letter * length) == 0
    return rig.store.info(name).seq


def test_open_version_is_read_on_when_its_volume_is_restored(rig: StoreRig) -> None:
    seq = write(rig, "v", b"a")
    write(rig, "v", b"b")
    device = rig.store.open_version(f"v@seq:{seq}")
    device.attach("backup")
    rig.store.versions.restore("v", f"seq:{seq}")
    write(rig, "v", b"c")
    rig.settle()
    assert read_device(device, 0, 512) == b"a" * 512


def test_ref_means_the_volume_that_has_the_name_now(rig: StoreRig) -> None:
    write(rig, "v", b"a")
    rig.store.create_volume("w", 16 * KIB)
    write(rig, "w", b"b")
    assert rig.read_version("v@seq:1")[:1] == b"a"
    rig.store.rename_volume("v", "old")
    rig.store.rename_volume("w", "v")
    assert rig.read_version("v@seq:1")[:1] == b"b"
    assert rig.read_version("old@seq:1")[:1] == b"a"


def test_snapshot_made_again_under_its_name_is_the_new_one(rig: StoreRig) -> None:
    write(rig, "v", b"a")
    rig.store.snapshots.create("s", ["v"])
    assert rig.read_version("v@s")[:1] == b"a"
    rig.store.snapshots.delete("v", "s")
    with pytest.raises(NoSuchVersion):
        rig.store.open_version("v@s")
    write(rig, "v", b"b")
    rig.store.snapshots.create("s", ["v"])
    assert rig.read_version("v@s")[:1] == b"b"


def test_changes_of_an_open_version_are_its_volumes_whatever_it_is_called(rig: StoreRig) -> None:
    write(rig, "v", b"a")
    rig.store.snapshots.create("s", ["v"])
    write(rig, "v", b"b")
    device = rig.store.open_version("v@seq:2")
    device.attach("backup")
    rig.store.rename_volume("v", "old")
    rig.store.create_volume("v", 32 * KIB)
    rig.store.snapshots.create("s", ["v"])
    rig.store.destage()
    request = Request(OP_BLOCK_STATUS, 0, 32 * KIB)
    request.data = device.changes_since("s")
    answers: list[Request] = []
    device.submit([request], answers.extend)
    assert [answer.data for answer in answers] == [[(4 * KIB, CHANGED), (28 * KIB, 0)]]


def test_state_between_two_restores_is_not_forgotten_in_the_window(rig: StoreRig) -> None:
    """No record leads to it: its row is all there is."""
    seq = write(rig, "v", b"a")
    write(rig, "v", b"b")
    first = rig.store.versions.restore("v", f"seq:{seq}")
    rig.clock.advance(1.0)
    between_ns = rig.clock.now_ns()
    rig.clock.advance(1.0)
    second = rig.store.versions.restore("v", first.kept)
    for kept in (first.kept, second.kept):
        rig.store.snapshots.delete("v", kept)
    rig.settle()
    assert rig.read_version(f"v@seq:{first.volume.seq}")[:1] == b"a"
    assert rig.read_version(f"v@{format_time(between_ns)}")[:1] == b"a"
    assert rig.read("v")[:1] == b"b"


def test_versions_before_a_resize_keep_their_size_in_the_window(rig: StoreRig) -> None:
    seq = write(rig, "v", b"a")
    rig.clock.advance(1.0)
    rig.store.resize_volume("v", 4 * KIB, force=True)
    rig.settle()
    assert len(rig.read_version(f"v@seq:{seq}")) == 32 * KIB
    assert len(rig.read_version(f"v@seq:{seq + 1}")) == 4 * KIB


@pytest.mark.parametrize("cloned", [False, True])
def test_window_holds_the_first_writes_of_a_volume(rig: StoreRig, cloned: bool) -> None:
    """They are replayed over what it began with, which no record tells."""
    write(rig, "v", b"a")
    rig.settle()
    if cloned:
        rig.store.versions.clone("v", "w")
    else:
        rig.store.create_volume("w", 32 * KIB, chunk_size=4 * KIB)
    rig.store.versions.set_policy("w", keep="")
    first = rig.read_version("w@seq:0")
    seq = write(rig, "w", b"b")
    write(rig, "w", b"c")
    rig.settle()
    assert rig.read_version("w@seq:0") == first
    assert rig.read_version(f"w@seq:{seq}") == b"b" * 512 + first[512:]


@pytest.mark.parametrize("survives", ["none", "all", "last"])
def test_crash_while_segments_expire_leaves_no_hole_in_the_window(survives: str) -> None:
    """The power is cut at each step of upkeep that lets segments go; `survives`: which of what was
    not synced. An unlink, or a header that is written anew, may survive without those before it."""
    rig = StoreRig(options=WINDOW)
    rig.store.create_volume("v", 32 * KIB, chunk_size=4 * KIB)
    for letter in b"abcdefgh":
        for _ in range(2):
            rig.fill("v", 0, bytes([letter]) * 4096 * 3)
        rig.settle()
        rig.clock.advance(1.0)
    before, held = len(rig.disk.trace.ops), rig.store._pool.held_count
    rig.clock.advance(WINDOW.window_s - 3.0)  # some of it is older
    rig.tend()
    assert held - rig.store._pool.held_count >= 2
    state = CrashState(rig.disk.trace)
    for point, op in enumerate(rig.disk.trace.ops, start=1):
        state.apply(op)
        if point > before:
            pending = state.pending()
            kept = {"none": [], "all": pending, "last": pending[-1:]}[survives]
            meta = meta_at(rig.disk.trace.marks(point), {})
            cut = StoreRig(
                state.image(survives, kept), meta, options=WINDOW, clock=rig.clock, boot="boot-2"
            )
            assert cut.store.versions.log("v", writes=True).versions
            assert cut.read("v", 0, 512) == b"h" * 512


def test_restore_overwrites_no_snapshot_that_has_the_name_it_wants(rig: StoreRig) -> None:
    seq = write(rig, "v", b"a")
    rig.store.snapshots.create(f"before-restore-{seq + 1}", ["v"])
    write(rig, "v", b"b")
    kept = rig.store.versions.restore("v", f"seq:{seq}").kept
    assert rig.read_version(f"v@before-restore-{seq + 1}")[:1] == b"a"
    assert rig.read_version(f"v@{kept}")[:1] == b"b"


def test_a_write_just_before_a_restore_takes_no_name_from_the_state_that_has_it(
    rig: StoreRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    seq = write(rig, "v", b"a")
    write(rig, "v", b"b")
    rig.store.snapshots.create("mine", ["v"])
    seal, written = rig.store._seal, list[int]()
    sync = seal.sync_journal
    replace_head = rig.store._catalog.heads.replace

    def late() -> None:
        if not written:
            written.append(write(rig, "v", b"c"))
        sync()

    def replacing(*args: Any) -> VolumeInfo:
        monkeypatch.setattr(seal, "sync_journal", late)
        return replace_head(*args)

    monkeypatch.setattr(rig.store._catalog.heads, "replace", replacing)
    done = rig.store.versions.restore("v", f"seq:{seq}")
    assert (done.kept, done.had_name) == (f"before-restore-{written[0]}", False)
    assert rig.read_version("v@mine")[:1] == b"b"
    assert rig.read_version(f"v@{done.kept}")[:1] == b"c"


def test_point_does_not_outlive_the_records_it_needs(rig: StoreRig) -> None:
    """The power is cut wherever a clone of a version that is in the journal only writes to meta/,
    and all that was not synced is lost."""
    seq = write(rig, "v", b"a")
    write(rig, "v", b"b")
    before = len(rig.disk.trace.ops)
    rig.store.versions.clone(f"v@seq:{seq}", "twin")
    state, noted = CrashState(rig.disk.trace), 0
    for point, op in enumerate(rig.disk.trace.ops, start=1):
        state.apply(op)
        if point > before and isinstance(op, Mark) and isinstance(op.value, MetaCommitted):
            marks = rig.disk.trace.marks(point)
            cut = StoreRig(state.image("all lost", ()), meta_at(marks, {}), boot="boot-2")
            newest = cut.store.info("v").seq
            assert all(row_seq <= newest for _, row_seq in cut.store._history.points)
            cut.fill("v", 0, b"c" * 4096 * 3)
            cut.settle()
            assert not cut.store._history.points, "the log is held for ever"
            noted += 1
    assert noted


@pytest.mark.parametrize("again", [4 * KIB, 32 * KIB, 64 * KIB])
def test_round_that_is_tried_again_after_a_resize_has_the_size_of_its_cut(
    rig: StoreRig, again: int
) -> None:
    rig.fill("v", 0, b"a" * 32 * KIB)
    seq = rig.store.info("v").seq
    rig.disk.faults.add(Fault("pwrite", Fail(errno.ENOSPC), "packs/*", count=None))
    with pytest.raises(OutOfSpace):
        rig.store.destage()
    rig.disk.faults.clear()
    rig.tend()
    rig.store.resize_volume("v", 4 * KIB, force=True)
    rig.store.resize_volume("v", again)
    rig.store.destage()
    assert rig.read_version(f"v@seq:{seq}") == b"a" * 32 * KIB
    assert rig.read_version(f"v@seq:{seq + 1}") == b"a" * 4 * KIB
    for _ in range(2):
        assert rig.read("v") == b"a" * 4 * KIB + bytes(again - 4 * KIB)
        rig.settle()


def test_version_after_the_cut_of_a_round_that_stands_can_be_cloned(rig: StoreRig) -> None:
    write(rig, "v", b"a")
    rig.disk.faults.add(Fault("pwrite", Fail(errno.ENOSPC), "packs/*", count=None))
    with pytest.raises(OutOfSpace):
        rig.store.destage()
    rig.disk.faults.clear()
    rig.tend()
    write(rig, "v", b"b")
    rig.store.versions.clone("v", "twin")
    assert rig.read("twin")[:1] == b"b"


def test_many_versions_can_be_opened_one_after_the_other(rig: StoreRig) -> None:
    opened = many(rig)
    for seq in opened:
        device = rig.store.open_version(f"v@seq:{seq}")
        device.attach("client")
        assert read_device(device, 0, 512)[:1] == bytes([seq])
        device.detach("client")
        rig.clock.advance(2.0)


def many(rig: StoreRig) -> list[int]:
    """More versions than may be open with an overlay; their seqs."""
    for number in range(MAX_OPEN + 12):
        write(rig, "v", bytes([number + 1]))
        if number % 8 == 7:
            rig.settle()
    rig.store.destage()
    return list(range(1, rig.store.info("v").seq + 1))


def test_versions_that_a_replay_brought_back_may_not_all_be_open(rig: StoreRig) -> None:
    replayed = [seq for seq in many(rig) if rig.store._history.version(1, seq) is None]
    assert len(replayed) > MAX_OPEN
    for seq in replayed[:MAX_OPEN]:
        rig.store.open_version(f"v@seq:{seq}").attach("client")
    with pytest.raises(VersionsBusy):
        rig.store.open_version(f"v@seq:{replayed[-1]}")


def test_versions_in_chunks_may_be_open_in_any_number_that_front_ends_have(rig: StoreRig) -> None:
    """They leave the others' room alone, and have their own bound."""
    for number in range(MAX_OPEN + 3):
        rig.store.snapshots.create(f"s{number}", ["v"])
    for number in range(MAX_OPEN + 3):
        rig.store.open_version(f"v@s{number}").attach("client")
    write(rig, "v", b"a")
    seq = rig.store.info("v").seq
    write(rig, "v", b"b")
    assert rig.read_version(f"v@seq:{seq}")[:1] == b"a"


def test_versions_in_chunks_have_a_bound_of_their_own(
    rig: StoreRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(past, "MAX_OPEN_TREES", 2)
    for number in range(3):
        rig.store.snapshots.create(f"s{number}", ["v"])
    devices = [rig.store.open_version(f"v@s{number}") for number in range(2)]
    devices[1].attach("client")
    with pytest.raises(VersionsBusy):
        rig.store.open_version("v@s2")
    rig.clock.advance(2.0)  # who opened s0 has not come
    rig.store.open_version("v@s2").attach("client")
    with pytest.raises(VersionsBusy):
        rig.store.open_version("v@s0")


def test_diff_tells_what_a_shrink_has_cut_off_before_it_is_in_chunks(rig: StoreRig) -> None:
    rig.fill("v", 0, b"a" * 32 * KIB)
    rig.store.snapshots.create("large", ["v"])
    rig.store.destage()
    rig.store.resize_volume("v", 4 * KIB + 512, force=True)
    for _ in range(2):
        found = rig.store.versions.diff("v@large", "v")
        assert found.extents == ((4 * KIB, 28 * KIB),)
        assert rig.store.versions.diff("v", "v@large").extents == found.extents
        rig.settle()


def test_diff_tells_so_many_extents_and_counts_the_others(rig: StoreRig) -> None:
    rig.store.snapshots.create("empty", ["v"])
    for chunk in (0, 2, 3, 5):
        assert rig.write("v", chunk * 4 * KIB, b"a" * 512) == 0
    every = ((0, 4 * KIB), (8 * KIB, 8 * KIB), (20 * KIB, 4 * KIB))
    for limit in (None, 0, 2, 3, 100):
        found = rig.store.versions.diff("v@empty", "v", limit=limit)
        assert found.extents == every[:limit]
        assert (found.extent_count, found.changed_bytes) == (3, 16 * KIB)


def test_hot_ranges_are_all_told_however_many_there_are(
    rig: StoreRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(changes, "MAX_HOT_EXTENTS", 2)
    for index in (0, 2, 4, 6):
        assert rig.write("v", index * 4 * KIB, b"a" * 512) == 0
    found = changes.hot_ranges(rig.volume("v").core, 0, 32 * KIB)
    assert found == [(index * 4 * KIB, 512) for index in (0, 2, 4, 6)]
