"""From copies to a stripe: every outcome of every step, and a crash at every point."""

import errno
from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.sim.crash import Budget, CrashPlanner
from tests.sim.faults import Fail, Fault, Lie
from tests.sim.image import Image
from tests.sim.trace import Trace
from tests.stripe_rig import COPY, Converter, StripeRig, make_pack
from transport.conversion import (
    MAX_TRIES,
    Conversion,
    Drop,
    Encode,
    Swap,
    Verify,
    Written,
)
from transport.packrow import PackRow, leftovers

PACK_ID = bytes(range(32))
COPIES = PackRow(PACK_ID, 1000, copies=("a", "b", "c"))
TARGETS = ("d", "e", "f")
WRITTEN = Written(4096, b"digest")


def conversion(row: PackRow = COPIES, owner: str = "me") -> Conversion:
    return Conversion(row, TARGETS, 2, owner)


def step(of: Conversion) -> str:
    return of.action.why if isinstance(of.action, Swap) else type(of.action).__name__


# -- the machine


def test_the_steps_come_in_this_order() -> None:
    made = conversion()
    steps = []
    while made.action is not None:
        steps.append(step(made))
        made.done(WRITTEN if isinstance(made.action, Encode) else None)
    assert steps == ["reserve", "Encode", "Verify", "switch", "Drop", "settle"]
    assert made.converted
    assert made.error is None
    assert made.row == PackRow(
        PACK_ID, 1000, shards=TARGETS, data=2, shard_bytes=4096, digest=b"digest"
    )


def test_at_every_step_the_row_names_something_whole() -> None:
    made = conversion()
    verified = False
    while made.action is not None:
        verified = verified or step(made) == "switch"
        assert made.row.copies == COPIES.copies or verified
        assert not made.row.shards or verified
        if isinstance(made.action, Drop):
            assert made.row.shards == TARGETS
        made.done(WRITTEN if isinstance(made.action, Encode) else None)


@pytest.mark.parametrize("steps", [1, 2])
def test_what_fails_before_the_switch_gives_the_reservation_back(steps: int) -> None:
    made = conversion()
    for _ in range(steps):
        made.done(WRITTEN if isinstance(made.action, Encode) else None)
    made.failed("disk full")
    assert step(made) == "give back"
    made.done()
    assert made.action is None
    assert made.error == "disk full"
    assert made.row == COPIES


@pytest.mark.parametrize("steps", [0, 3, 5])
def test_a_row_that_somebody_else_changed_is_left_alone(steps: int) -> None:
    made = conversion()
    for _ in range(steps):
        made.done(WRITTEN if isinstance(made.action, Encode) else None)
    made.lost()
    assert made.action is None
    assert made.error is not None
    assert "changed by somebody else" in made.error


@pytest.mark.parametrize("steps", [0, 3, 4, 5])
def test_swaps_and_removals_are_tried_again_as_they_are(steps: int) -> None:
    made = conversion()
    for _ in range(steps):
        made.done(WRITTEN if isinstance(made.action, Encode) else None)
    before = made.action
    for _ in range(MAX_TRIES - 1):
        made.failed("no answer")
        assert made.action is before
    made.failed("no answer")
    assert made.action is None
    assert made.error == "no answer"


def test_a_row_that_has_its_stripe_already_only_drops_its_copies() -> None:
    row = replace(COPIES, shards=TARGETS, data=2)
    made = conversion(row)
    assert made.action == Drop(COPIES.copies)
    made.done()
    made.done()
    assert made.row == replace(row, copies=())
    assert conversion(made.row).action is None


def test_another_owner_takes_over_and_the_first_one_cannot_switch() -> None:
    first = conversion(owner="first")
    first.done()
    second = Conversion(first.row, ("g", "h", "i"), 2, "second")
    assert isinstance(second.action, Swap)
    assert second.action.before == first.row
    second.done()
    first.done(WRITTEN)
    first.done()
    assert isinstance(first.action, Swap)
    assert first.action.before != second.row


def test_shards_that_are_coming_are_no_leftovers_and_those_given_back_are() -> None:
    pack = make_pack([4096] * 4)
    rig = StripeRig(3)
    stripe = rig.encode(pack, 2, 1)
    row = PackRow(stripe.pack_id, 9, copies=("9",), coming=("0", "1", "2"), data=2, owner="x")
    names = [stripe.name(1)]
    assert leftovers("1", names, {row.pack_id: row}, ()) == []
    free = replace(row, coming=(), data=0, owner="")
    assert leftovers("1", names, {row.pack_id: free}, ()) == names
    assert leftovers("1", names, {}, ()) == names


# -- on disks

PACK = make_pack([4096, 8192, 512, 16384, 4096, 2048])
COPIES_ON = ("0", "1")
SHARDS_ON = ("1", "2", "3", "4", "5", "0")
"""Also on devices that have a copy."""
BUDGET = Budget(exhaustive=8, singles=3, prefixes=3, tears=1, random_ops=1, random_sectors=1)


def converter(image: Image | None = None, row: PackRow | None = None) -> Converter:
    rig = StripeRig(6, image, record=True)
    if image is None:
        for name in COPIES_ON:
            device = rig.devices[int(name)]
            file = device.open(COPY, create=True)
            file.pwrite(PACK.content, 0)
            file.sync()
            file.close()
            device.sync_dir("")
        rig.disk.restart_trace()
    return Converter(rig, PACK, row or row_of_copies(), 4)


def row_of_copies() -> PackRow:
    return PackRow(PACK.pack_id, len(PACK.content), copies=COPIES_ON)


def cuts(trace: Trace) -> Iterator[Image]:
    """What a power cut may leave, at each point; also right before a row changes."""
    yield from CrashPlanner(trace, budget=BUDGET).images(range(len(trace.ops) + 1))


def row_at(trace: Trace, image: Image, before: PackRow) -> PackRow:
    """The row when the power is cut there; `before` is the one when the trace began."""
    marks = [mark for mark in trace.marks(image.point) if isinstance(mark, PackRow)]
    return marks[-1] if marks else before


def gone_on_from(image: Image, row: PackRow) -> Converter:
    """A node that finds this on its disks, and goes on to the end."""
    after = converter(image, row)
    assert after.read() == PACK.content, image.why
    machine = Conversion(row, SHARDS_ON, 4, "second")
    after.run(machine)
    assert machine.converted
    assert after.read() == PACK.content
    check_settled(after)
    return after


def test_a_pack_becomes_a_stripe_and_reads_the_same() -> None:
    made = converter()
    machine = Conversion(made.row, SHARDS_ON, 4, "me")
    made.run(machine)
    assert machine.converted
    assert made.read() == PACK.content
    assert [COPY in device.list("") for device in made.rig.devices] == [False] * 6
    assert [len(made.files(name)) for name in SHARDS_ON] == [1] * 6


def test_a_power_cut_anywhere_leaves_the_pack_readable_and_is_gone_on_from() -> None:
    lived, start = converter(), row_of_copies()
    lived.run(Conversion(start, SHARDS_ON, 4, "first"))
    phases, count = set(), 0
    for image in cuts(lived.rig.disk.trace):
        row = row_at(lived.rig.disk.trace, image, start)
        phases.add((bool(row.coming), bool(row.shards), bool(row.copies)))
        after = gone_on_from(image, row)
        if count % 40 == 0:  # the power is cut again on the way
            trace = after.rig.disk.trace
            for second in list(cuts(trace))[:: 1 + count % 7]:
                gone_on_from(second, row_at(trace, second, row))
        count += 1
    assert count > 150
    copies, coming = (False, False, True), (True, False, True)
    dropping, stripe = (False, True, True), (False, True, False)
    assert phases == {copies, coming, dropping, stripe}


def check_settled(after: Converter) -> None:
    """One shard on each device and nothing else that anybody names."""
    assert after.row.copies == ()
    rows = {after.row.pack_id: after.row}
    for name in SHARDS_ON:
        assert COPY not in after.device(name).list("")
        files = after.files(name)
        assert len(files) == 1
        assert leftovers(name, files, rows, ()) == []


@pytest.mark.parametrize("op", ["open", "pwrite", "sync", "rename", "sync_dir", "pread"])
@pytest.mark.parametrize("nth", [1, 2])
def test_a_device_that_fails_while_shards_are_written_or_read_back_costs_the_try_only(
    op: str, nth: int
) -> None:
    made = converter()
    made.rig.disk.faults.add(Fault(op, Fail(errno.EIO), "d3/*", nth=nth))
    machine = Conversion(made.row, SHARDS_ON, 4, "me")
    _run_with_failures(made, machine)
    assert made.read() == PACK.content
    assert machine.action is None
    assert machine.converted == (machine.error is None)
    if not machine.converted:
        assert made.row == row_of_copies()
        rows = {made.row.pack_id: made.row}
        for name in SHARDS_ON:
            assert leftovers(name, made.files(name), rows, ()) == made.files(name)
    again = Conversion(made.row, SHARDS_ON, 4, "again")
    made.run(again)
    assert made.read() == PACK.content


def _run_with_failures(made: Converter, machine: Conversion) -> None:
    while (action := machine.action) is not None:
        try:
            machine.done(made.carry_out(action))
        except OSError as error:
            machine.failed(str(error))


def test_a_disk_that_lies_about_a_shard_is_found_out_before_the_copies_go() -> None:
    made = converter()
    machine = Conversion(made.row, SHARDS_ON, 4, "me")
    made.rig.disk.faults.add(Fault("pwrite", Lie(), "d3/*", nth=1))
    machine.done(made.carry_out(machine.action or Verify(())))
    machine.done(made.carry_out(machine.action or Verify(())))
    assert isinstance(machine.action, Verify)
    with pytest.raises(Exception, match="bytes long") as found:
        made.carry_out(machine.action)
    machine.failed(str(found.value))
    made.run(machine)
    assert not machine.converted
    assert made.read() == PACK.content


def test_a_rotten_copy_is_not_made_into_a_stripe() -> None:
    made = converter()
    made.rig.disk.flip_bit(f"d0/{COPY}", 5000)
    machine = Conversion(made.row, SHARDS_ON, 4, "me")
    for _ in range(2):
        assert machine.action is not None
        machine.done(made.carry_out(machine.action))
    assert machine.action is not None
    with pytest.raises(Exception, match="its data shards are another pack") as found:
        made.carry_out(machine.action)
    machine.failed(str(found.value))
    made.run(machine)
    assert made.row.copies == COPIES_ON
    assert not made.row.coming
