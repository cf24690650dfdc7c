"""Power cuts and kills of a whole store at any operation of a random life, and what they leave.

Each image is opened; the volumes must be the state at one journal position that is not before the
last acked flush (I2, I3), with no sector torn (I5) and nobody else's bytes (I8); after kill -9
every acked write is there (I4). Recovering again, also after a crash in the middle of the recovery,
shows the same. Then the store is used: it takes writes, flushes and destages them.

A failure names seed, point and image: `Workload(seed)` lives the same life again.
"""

import itertools
import random
from collections.abc import Iterator
from dataclasses import replace

import pytest

from native import OP_WRITE, Request
from tests.sim.crash import Budget, CrashPlanner
from tests.sim.history import FlushAcked, Submitted
from tests.sim.image import Image
from tests.sim.store_rig import (
    KIB,
    SEGMENT_BYTES,
    SMALL,
    IndexChanged,
    StoreRig,
    index_at,
    meta_at,
)
from tests.sim.store_workload import GuestMark, Workload, WriteAcked, is_whole, shared_image
from tests.sim.trace import Create, Mark, Trace, Unlink, Write
from volume.options import StoreOptions

STEPS = 130  # the journal goes round three times and more
POINTS = 75  # of each life, at which the power is cut
KILLS = 30  # of each life
STATES = 260  # distinct disks that each life must come to, at least
BUDGET = Budget(exhaustive=6, singles=2, prefixes=2, tears=1, random_ops=1, random_sectors=1)
NESTED_EVERY = 6  # images of which the recovery is cut off as well

OPTIONS = {
    1: replace(SMALL, compression="none"),
    2: replace(SMALL, compression="none", pack_bytes=20 * KIB),
    3: replace(SMALL, journal_limit=5 * SEGMENT_BYTES),
    4: replace(SMALL, cache_bytes=128 * KIB, manifest_cache_bytes=0),
    5: SMALL,
    6: replace(SMALL, journal_limit=12 * SEGMENT_BYTES, pack_bytes=24 * KIB),
    7: replace(SMALL, journal_limit=5 * SEGMENT_BYTES, compression="none"),
    8: replace(SMALL, compression="zstd"),
}
"""Seed -> the store's geometry."""


def lived(seed: int, steps: int = STEPS) -> Workload:
    workload = Workload(seed, OPTIONS[seed])
    workload.live(steps)
    return workload


def worthwhile(trace: Trace) -> list[int]:
    """Points at which a cut may leave something new: not those right before a mark that only says
    what has been promised. A commit of meta/ is a mark as well, and changes what is found."""
    said = (Submitted, FlushAcked, WriteAcked, GuestMark, IndexChanged)
    ops = trace.ops
    return [
        point
        for point in range(len(ops) + 1)
        if point == len(ops)
        or not (isinstance(op := ops[point], Mark) and isinstance(op.value, said))
    ]


def recovered(trace: Trace, image: Image, options: StoreOptions) -> StoreRig:
    marks = trace.marks(image.point)
    return StoreRig(image, meta_at(marks, {}), index_at(marks, {}), options=options, boot="boot-2")


def crashed_recoveries(rig: StoreRig, seed: int) -> Iterator[StoreRig]:
    """`rig` has just been opened: what a power cut somewhere on its way there leaves, opened."""
    trace = rig.disk.trace
    planner = CrashPlanner(trace, seed=seed, budget=BUDGET)
    points = random.Random(seed).sample(range(len(trace.ops) + 1), min(2, len(trace.ops)))
    for image in itertools.islice(planner.images(points), 4):
        marks = trace.marks(image.point)
        yield StoreRig(
            *(image, meta_at(marks, rig.base_meta), index_at(marks, rig.base_index)),
            options=rig.options,
            boot="boot-3",
        )


def check_goes_on(rig: StoreRig) -> None:
    """The store takes writes, keeps them through a destage round, and finds them after a kill."""
    name = rig.store.names()[-1]
    expected = bytearray(rig.read(name))
    expected[512:5632] = b"again" * 1024
    rig.tend()
    done: list[Request] = []
    rig.volume(name).submit([Request(OP_WRITE, 512, 5120, b"again" * 1024)], done.extend)
    if not done:  # the journal came back full
        rig.settle()
        rig.tend()
    assert [request.error for request in done] == [0]
    assert rig.flush(name) == 0
    assert rig.read(name) == expected
    rig.settle()
    assert rig.read(name) == expected
    assert rig.killed().read(name) == expected


@pytest.mark.parametrize("seed", OPTIONS)
def test_power_cut_leaves_one_state_not_before_the_last_flush(seed: int) -> None:
    workload = lived(seed)
    trace = workload.rig.disk.trace
    rng = random.Random(seed)
    points = worthwhile(trace)
    planner = CrashPlanner(trace, seed=seed, budget=BUDGET)
    for number, image in enumerate(planner.images(rng.sample(points, min(POINTS, len(points))))):
        try:
            rig = recovered(trace, image, OPTIONS[seed])
            if not is_whole(rig):
                continue
            workload.check(rig, trace.marks(image.point))
            found = shared_image(rig)
            if number % NESTED_EVERY == 0:
                for again in crashed_recoveries(rig, seed):
                    assert shared_image(again) == found, "a second recovery differs"
            check_goes_on(rig.killed())
        except Exception as error:
            raise AssertionError(
                f"seed {seed}, point {image.point} ({image.why}), image {number}: {error!r}"
            ) from error
    assert planner.distinct >= STATES


@pytest.mark.parametrize("seed", OPTIONS)
def test_kill_loses_no_acked_write(seed: int) -> None:
    workload = lived(seed)
    trace = workload.rig.disk.trace
    planner = CrashPlanner(trace, seed=seed)
    for point in random.Random(seed).sample(range(len(trace.ops) + 1), KILLS):
        image, marks = planner.image_after_kill(point), trace.marks(point)
        try:
            rig = StoreRig(
                *(image, meta_at(marks, {}), index_at(marks, {}, killed=True)),
                options=OPTIONS[seed],
            )
            if is_whole(rig):
                workload.check(rig, marks, killed=True)
                check_goes_on(rig)
        except Exception as error:
            raise AssertionError(f"seed {seed}, killed at point {point}: {error!r}") from error


def test_lives_go_round_the_journal_and_collect_garbage() -> None:
    """Guards the tests above: what they cut short must contain recycling, gc and shrinking."""
    trace = lived(1).rig.disk.trace
    paths = {op.inode: op.path for op in trace.ops if isinstance(op, Create)}
    segments = {inode for inode, path in paths.items() if path.startswith("journal/")}
    begun = [op for op in trace.ops if isinstance(op, Write) and op.offset == 0]
    assert len([op for op in begun if op.inode in segments]) > 4 * len(segments)
    assert any(isinstance(op, Unlink) and op.path.startswith("packs/") for op in trace.ops)
