"""A power cut leaves what POSIX allows and nothing else, and the planner finds those states."""

import errno
import itertools
import os
import re
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.sim.crash import Budget, CrashPlanner
from tests.sim.faults import Fail, Fault, Lie, Stall
from tests.sim.image import Image
from tests.sim.simdisk import SimDisk, SimFile

ALL = Budget(exhaustive=4096)
SECTOR = 512


def fails_with(code: int) -> pytest.RaisesExc[OSError]:
    return pytest.raises(OSError, match=re.escape(os.strerror(code)))


def sectors(*letters: str) -> bytes:
    return b"".join(letter.encode() * SECTOR for letter in letters)


def letters(data: bytes) -> str:
    """One letter per whole sector, "." for zeros, "?" for a sector that is no single write's."""
    pieces = [data[i : i + SECTOR] for i in range(0, len(data), SECTOR)]
    return "".join("." if not any(p) else chr(p[0]) if len(set(p)) == 1 else "?" for p in pieces)


def disk_with(*content: str) -> tuple[SimDisk, SimFile]:
    """A disk whose file "f" is durable, with an empty trace."""
    disk = SimDisk()
    file = disk.open("f", create=True)
    file.pwrite(sectors(*content), 0)
    disk.restart_trace()
    return disk, file


def now(disk: SimDisk, budget: Budget = ALL) -> list[Image]:
    return CrashPlanner(disk.trace, budget=budget).states_at(len(disk.trace.ops))


def contents(images: Iterable[Image], path: str = "f") -> set[str]:
    return {letters(image.read(path)) for image in images}


def names(images: Iterable[Image]) -> set[str]:
    return {" ".join(sorted(image.files)) for image in images}


# -- contents


def test_unsynced_sectors_survive_in_any_subset() -> None:
    disk, file = disk_with("a", "b")
    file.pwrite(sectors("c", "d"), 0)
    assert contents(now(disk)) == {"ab", "cb", "ad", "cd"}


def test_a_sector_may_hold_any_version_since_the_sync() -> None:
    disk, file = disk_with("a", "b")
    file.pwrite(sectors("c"), 0)
    file.pwrite(sectors("d", "e"), 0)
    assert contents(now(disk)) == {x + y for x in "acd" for y in "be"}


def test_synced_contents_never_vanish() -> None:
    disk, file = disk_with("a", "b")
    file.pwrite(sectors("c", "d"), 0)
    file.sync()
    assert contents(now(disk)) == {"cd"}
    file.pwrite(sectors("e"), 0)
    assert contents(now(disk)) == {"cd", "ed"}


def test_a_sync_covers_its_own_file_only() -> None:
    disk, file = disk_with("a")
    other = disk.open("g", create=True)
    disk.restart_trace()
    file.pwrite(sectors("b"), 0)
    other.sync()
    assert contents(now(disk)) == {"a", "b"}


def test_a_part_of_a_sector_is_merged_with_what_was_there() -> None:
    disk, file = disk_with("a")
    file.pwrite(b"b" * 100, 200)
    assert {image.read("f") for image in now(disk)} == {
        b"a" * 512,
        b"a" * 200 + b"b" * 100 + b"a" * 212,
    }


def test_growth_may_be_lost_or_come_without_its_data() -> None:
    disk, file = disk_with("a")
    file.pwrite(sectors("b", "c"), SECTOR)
    assert contents(now(disk)) == {"a", "abc", "a.c", "ab.", "a.."}


def test_a_long_growing_write_may_end_at_a_page() -> None:
    disk, file = disk_with("a")
    file.pwrite(b"b" * 4 * 4096, 512)
    sizes = {len(image.read("f")) for image in now(disk, Budget(random_sectors=64))}
    assert sizes == {512, 4096, 3 * 4096, 4 * 4096, 4 * 4096 + 512}


def test_a_cut_is_atomic_and_old_bytes_never_show_after_it() -> None:
    disk, file = disk_with("a", "b", "c")
    file.truncate(SECTOR)
    file.pwrite(sectors("e"), 2 * SECTOR)
    assert contents(now(disk)) == {"abc", "a", "a..", "a.e"}


def test_a_synced_cut_is_durable() -> None:
    disk, file = disk_with("a", "b", "c")
    file.truncate(SECTOR)
    file.sync()
    file.truncate(3 * SECTOR)
    assert contents(now(disk)) == {"a", "a.."}


def test_a_write_during_a_sync_is_not_covered_by_it() -> None:
    disk, file = disk_with("a", "b")
    file.pwrite(sectors("c"), 0)

    def write_meanwhile() -> None:
        file.pwrite(sectors("d", "e"), 0)

    disk.faults.add(Fault("sync", Stall(write_meanwhile)))
    file.sync()
    assert contents(now(disk)) == {"cb", "db", "ce", "de"}


def test_growth_before_a_sync_stays_when_more_growth_comes_during_it() -> None:
    disk, file = disk_with("a")
    file.pwrite(sectors("b"), SECTOR)
    file.pwrite(sectors("c"), 2 * SECTOR)

    def grow_meanwhile() -> None:
        file.pwrite(sectors("d"), 3 * SECTOR)

    disk.faults.add(Fault("sync", Stall(grow_meanwhile)))
    file.sync()
    assert contents(now(disk)) == {"abc", "abc.", "abcd"}


def test_a_lying_sync_makes_nothing_durable() -> None:
    disk, file = disk_with("a")
    file.pwrite(sectors("b"), 0)
    disk.faults.add(Fault("sync", Lie()))
    file.sync()
    assert contents(now(disk)) == {"a", "b"}
    file.sync()
    assert contents(now(disk)) == {"b"}


def test_what_a_failed_sync_left_no_later_sync_makes_durable() -> None:
    disk, file = disk_with("a", "b")
    file.pwrite(sectors("c", "d"), 0)
    disk.faults.add(Fault("sync", Fail(errno.EIO)))
    with fails_with(errno.EIO):
        file.sync()
    file.pwrite(sectors("d"), SECTOR)  # dirty again, although it is the same
    file.sync()
    assert file.pread(2 * SECTOR, 0) == sectors("c", "d")
    assert contents(now(disk)) == {"ad", "cd"}


def test_a_flipped_bit_hits_every_version() -> None:
    disk, file = disk_with("a")
    file.pwrite(sectors("b"), 0)
    disk.flip_bit("f", 3, 7)
    assert {image.read("f")[3] for image in now(disk)} == {ord("a") ^ 128, ord("b") ^ 128}


# -- names


def test_a_new_name_may_vanish_until_its_folder_is_synced() -> None:
    disk = SimDisk()
    file = disk.open("f", create=True)
    file.pwrite(sectors("a"), 0)
    file.sync()
    assert names(now(disk)) == {"", "f"}
    assert all(letters(i.read("f")) == "a" for i in now(disk) if i.files)
    disk.sync_dir("")
    assert names(now(disk)) == {"f"}


def test_a_synced_name_does_not_make_contents_durable() -> None:
    disk = SimDisk()
    disk.open("f", create=True).pwrite(sectors("a"), 0)
    disk.sync_dir("")
    assert contents(now(disk)) == {"", ".", "a"}


def test_files_in_a_new_folder_vanish_with_it() -> None:
    disk = SimDisk()
    disk.mkdir("d")
    disk.open("d/f", create=True)
    disk.sync_dir("d")
    assert {(image.dirs, *image.files) for image in now(disk)} == {
        (frozenset(),),
        (frozenset({"d"}), "d/f"),
    }
    disk.sync_dir("")
    assert names(now(disk)) == {"d/f"}


def test_a_rename_is_atomic_and_never_loses_both_files() -> None:
    disk, _ = disk_with("a")
    new = disk.open("f.new", create=True)
    new.pwrite(sectors("b"), 0)
    new.sync()
    disk.rename("f.new", "f")
    found = {(*sorted(image.files), letters(image.read("f"))) for image in now(disk)}
    assert found == {("f", "a"), ("f", "f.new", "a"), ("f", "b")}
    disk.sync_dir("")
    assert {(*image.files, letters(image.read("f"))) for image in now(disk)} == {("f", "b")}


def test_a_rotation_never_loses_the_file_that_moved_away() -> None:
    disk, _ = disk_with("a")
    disk.rename("f", "f.old")
    disk.open("f", create=True)
    disk.rename("f", "g")
    assert names(now(disk)) == {"f", "f.old", "f f.old", "f.old g"}


def test_a_file_renamed_twice_has_one_name_in_every_image() -> None:
    disk, _ = disk_with("a")
    disk.rename("f", "g")
    disk.rename("g", "h")
    assert names(now(disk)) == names(now(disk, Budget(exhaustive=0))) == {"f", "g", "h"}


def test_a_folder_vanishes_with_the_folder_it_is_in() -> None:
    disk = SimDisk()
    disk.mkdir("d")
    disk.mkdir("d/e")
    assert {image.dirs for image in now(disk)} == {
        frozenset(),
        frozenset({"d"}),
        frozenset({"d", "d/e"}),
    }


def test_a_rename_between_folders_is_settled_by_the_new_one() -> None:
    disk, _ = disk_with("a")
    disk.mkdir("d")
    disk.restart_trace()
    disk.rename("f", "d/f")
    disk.sync_dir("")
    assert names(now(disk)) == {"f", "d/f"}
    disk.sync_dir("d")
    assert names(now(disk)) == {"d/f"}


def test_a_removed_file_may_come_back_whole() -> None:
    disk, file = disk_with("a")
    disk.unlink("f")
    file.close()
    assert names(now(disk)) == {"", "f"}
    assert contents(image for image in now(disk) if image.files) == {"a"}
    disk.sync_dir("")
    assert names(now(disk)) == {""}


def test_a_failed_or_lying_sync_dir_settles_nothing() -> None:
    disk = SimDisk()
    disk.open("f", create=True)
    disk.faults.add(Fault("sync_dir", Fail()), Fault("sync_dir", Lie(), nth=2))
    with fails_with(errno.EIO):
        disk.sync_dir("")
    disk.sync_dir("")
    assert names(now(disk)) == {"", "f"}


# -- the planner


def test_exhaustive_enumeration_equals_brute_force() -> None:
    disk, file = disk_with("a", "b", "c")
    other = disk.open("g", create=True)
    other.pwrite(sectors("x"), 0)
    other.sync()
    file.pwrite(sectors("d", "e"), 0)
    file.pwrite(sectors("f", "g"), SECTOR)
    file.pwrite(sectors("h"), 3 * SECTOR)
    expected = {
        (first + second + third + tail, other_name)
        for first, second, third, tail, other_name in itertools.product(
            "ad", "bef", "cg", ["", ".", "h"], ["", "g"]
        )
    }
    images = now(disk)
    assert len(images) == len(expected) == 72
    assert {(letters(i.read("f")), "g" if "g" in i.files else "") for i in images} == expected
    assert len({image.digest() for image in images}) == 72


def busy_disk() -> SimDisk:
    disk, file = disk_with(*"abcdefgh")
    for number in range(12):
        file.pwrite(sectors(*"XYZ"), number % 6 * SECTOR)
        file.pwrite(sectors(chr(ord("A") + number)), number * SECTOR)
        if number == 6:
            file.sync()
            disk.mark("synced")
        segment = disk.open(f"s{number}", create=True)
        segment.pwrite(sectors("s", "t"), 0)
    return disk


def test_images_are_distinct_and_counted() -> None:
    planner = CrashPlanner(busy_disk().trace)
    images = list(planner.images())
    assert len({(image.digest(), image.point > 28) for image in images}) > 500
    assert planner.distinct == len({image.digest() for image in images})
    assert len(images) - planner.distinct < 20  # the same disk before and after the mark


def test_the_seed_decides_everything() -> None:
    def digests(seed: int) -> list[bytes]:
        images = CrashPlanner(busy_disk().trace, seed=seed).images([20, 40])
        return [image.digest() for image in images]

    assert digests(1) == digests(1)
    assert digests(1) != digests(2)


def test_the_plan_has_the_shapes_that_find_bugs() -> None:
    disk = busy_disk()
    end = len(disk.trace.ops)
    planner = CrashPlanner(disk.trace, budget=Budget(singles=100, prefixes=100))
    why = {image.why for image in planner.images([end])}
    assert {"all lost", "all kept", "only names kept", f"lost {end - 3}"} <= why
    assert f"{end - 1} torn after 1 sectors" in why
    assert {"random operations #3", "random sectors #3"} <= why


def test_a_point_with_more_states_than_the_bound_is_sampled() -> None:
    disk, file = disk_with(*"abc")
    other = disk.open("g", create=True)
    other.pwrite(sectors(*"abc"), 0)
    disk.sync_dir("")
    other.sync()
    disk.restart_trace()
    file.pwrite(sectors(*"xyz"), 0)
    other.pwrite(sectors(*"xyz"), 0)
    end = len(disk.trace.ops)
    assert len(CrashPlanner(disk.trace, budget=Budget(exhaustive=64)).states_at(end)) == 64
    budget = Budget(exhaustive=63, random_ops=2, random_sectors=2)
    images = CrashPlanner(disk.trace, budget=budget).states_at(end)
    assert len(images) < 20
    assert not any(image.why.startswith("outcome") for image in images)


def test_a_state_is_tried_again_when_more_has_been_promised() -> None:
    disk, file = disk_with("a")
    file.pwrite(sectors("b"), 0)
    disk.mark("acked without a sync")
    images = CrashPlanner(disk.trace).images(range(3))
    assert [(i.point, letters(i.read("f"))) for i in images if i.point != 1] == [
        (0, "a"),
        (2, "a"),
        (2, "b"),
    ]
    assert disk.trace.marks(1) == []
    assert disk.trace.marks(2) == ["acked without a sync"]


def test_points_before_a_mark_are_skipped() -> None:
    disk, file = disk_with("a")
    file.pwrite(sectors("b"), 0)
    disk.mark("note")
    assert CrashPlanner(disk.trace).points() == [0, 2]
    with pytest.raises(ValueError, match="no point 3"):
        CrashPlanner(disk.trace).states_at(3)


def test_kill_leaves_everything_written() -> None:
    disk, file = disk_with("a")
    file.pwrite(sectors("b", "c"), 0)
    disk.open("g", create=True)
    disk.unlink("f")
    planner = CrashPlanner(disk.trace)
    assert letters(planner.image_after_kill(1).read("f")) == "bc"
    assert names([planner.image_after_kill(3)]) == {"g"}
    assert planner.image_after_kill(3).digest() == disk.image().digest()


def test_a_crash_during_recovery_starts_from_the_crash_image() -> None:
    disk, file = disk_with("a", "b")
    file.pwrite(sectors("c", "d"), 0)
    image = next(i for i in now(disk) if letters(i.read("f")) == "ad")
    second = SimDisk(image)
    second.open("f").pwrite(sectors("e"), 0)
    assert contents(now(second)) == {"ad", "ed"}


Step = tuple[str, int, int]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["write", "write", "write", "sync"]),
            st.integers(0, 9),
            st.integers(1, 5),
        ),
        max_size=20,
    ),
    st.integers(0, 99),
)
def test_every_image_is_legal_and_every_extreme_is_there(steps: list[Step], seed: int) -> None:
    disk, file = disk_with(*"ab" * 5)
    durable = list("ab" * 5)
    allowed = [{value} for value in durable]
    for number, (what, first, count) in enumerate(steps):
        letter = chr(ord("A") + number)
        if what == "sync":
            file.sync()
            durable = list(letters(file.pread(5120, 0)))
            allowed = [{value} for value in durable]
        else:
            count = min(count, 10 - first)
            file.pwrite(sectors(*letter * count), first * SECTOR)
            for sector in range(first, first + count):
                allowed[sector].add(letter)
    planner = CrashPlanner(disk.trace, seed=seed, budget=Budget(exhaustive=8))
    found = contents(planner.states_at(len(disk.trace.ops)))
    for image in found:
        assert all(value in allowed[sector] for sector, value in enumerate(image))
    assert {"".join(durable), letters(file.pread(5120, 0))} <= found
