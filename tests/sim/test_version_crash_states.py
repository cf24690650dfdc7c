"""Power cuts and kills at any operation of lives that are full of versions, and what they leave.

Snapshots, groups, restores, clones, deletions, destage rounds that bring points into chunks, a
window whose segments expire: each is cut off at many of its disk operations, with what a disk may
keep of unsynced writes. The model of the moment of the cut decides (tests/sim/versions_model.py):
what was acked is there, what was under way is there as a whole or not at all, every version that
must open has its bytes. Then the store is used: it destages, collects, and shows the same.

A failure names seed, point and image: `lived(seed)` lives the same life again.
"""

import random
from dataclasses import replace

import pytest

from tests.sim.crash import Budget, CrashPlanner
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
from tests.sim.trace import Create, Mark, Trace, Unlink, Write
from tests.sim.versions_life import Known, VersionsLife, known_at
from tests.sim.versions_model import VolumeModel
from volume.options import StoreOptions

STEPS = 90
POINTS = 24  # of each life, at which the power is cut
KILLS = 10  # of each life
STATES = 40  # distinct disks that each life must come to, at least
SAMPLE = 5  # versions of each volume that are opened after each crash
MAX_VOLUMES = 4
MAX_SNAPSHOTS = 5
BUDGET = Budget(exhaustive=4, singles=1, prefixes=1, tears=1, random_ops=1, random_sectors=1)

WINDOW = replace(
    SMALL,
    pack_bytes=12 * KIB,
    window_bytes=4 * SEGMENT_BYTES,
    window_s=600,
    history_keep="60m",
)
OPTIONS = {
    1: WINDOW,
    2: replace(WINDOW, window_bytes=1 * SEGMENT_BYTES, window_s=1, history_keep=""),
    3: replace(WINDOW, window_bytes=0, window_s=0, history_keep=""),
    4: replace(WINDOW, pack_bytes=48 * KIB, compression="lz4"),
}
"""Seed -> the store's geometry, and how much of the past it keeps; other seeds go round."""


def options_of(seed: int) -> StoreOptions:
    return OPTIONS[(seed - 1) % len(OPTIONS) + 1]


class RandomLife(VersionsLife):
    """A life drawn from a seed."""

    def __init__(self, seed: int) -> None:
        super().__init__(options_of(seed), marks=True)
        self.rng = random.Random(seed)
        self.made = 0
        self.create("left", 32 * KIB, 4 * KIB)
        self.create("right", 24 * KIB, 4 * KIB)
        self.tend()

    def live(self, steps: int) -> None:
        choices = {
            self.random_write: 30,
            self.random_zero: 4,
            self.random_clone_range: 8,
            self.random_flush: 3,
            self.destage: 6,
            self.settle: 6,
            self.random_snapshot: 10,
            self.random_unsnapshot: 4,
            self.random_clone: 4,
            self.random_restore: 6,
            self.random_delete: 2,
            self.random_resize: 2,
            self.wait: 4,
            self.tend: 4,
        }
        for step in self.rng.choices(list(choices), list(choices.values()), k=steps):
            step()

    def random_volume(self) -> VolumeModel:
        return self.rng.choice(list(self.model.volumes.values()))

    def random_range(self, volume: VolumeModel) -> tuple[int, int]:
        length = min(self.rng.choice((512, 1024, 4096, 4096, 12288)), volume.size)
        return self.rng.randrange(0, volume.size - length + 1, 512), length

    def random_write(self) -> None:
        volume = self.random_volume()
        self.write(volume, *self.random_range(volume), fua=self.rng.random() < 0.1)

    def random_zero(self) -> None:
        volume = self.random_volume()
        self.zero(volume, *self.random_range(volume), unmap=self.rng.random() < 0.5)

    def random_clone_range(self) -> None:
        volume, source = self.random_volume(), self.random_volume()
        chunk_size = volume.chunk_size
        self.clone_range(
            *(volume, self.rng.randrange(0, volume.size, chunk_size)),
            *(source, self.rng.randrange(0, source.size, chunk_size)),
            self.rng.randint(1, 4) * chunk_size,
        )

    def random_flush(self) -> None:
        self.flush(self.random_volume())

    def random_snapshot(self) -> None:
        everyone = list(self.model.volumes.values())
        volumes = everyone if self.rng.random() < 0.3 else [self.random_volume()]
        volumes = [volume for volume in volumes if len(volume.snapshots) < MAX_SNAPSHOTS]
        if volumes:
            self.made += 1
            self.snapshot(f"s{self.made}", volumes, sync=self.rng.random() < 0.3)

    def random_unsnapshot(self) -> None:
        volume = self.random_volume()
        if volume.snapshots:
            self.delete_snapshot(volume, self.rng.choice(sorted(volume.snapshots)))

    def random_version(self, volume: VolumeModel) -> int:
        return self.rng.choice(sorted(self.must_open(volume)))

    def random_clone(self) -> None:
        if len(self.model.volumes) < MAX_VOLUMES:
            volume = self.random_volume()
            seq = self.random_version(volume)
            self.made += 1
            self.clone(f"{volume.name}@seq:{seq}", volume, seq, f"clone{self.made}")

    def random_restore(self) -> None:
        volume = self.random_volume()
        if len(volume.snapshots) < MAX_SNAPSHOTS:
            seq = self.random_version(volume)
            self.restore(volume, f"seq:{seq}", seq)

    def random_delete(self) -> None:
        if len(self.model.volumes) > 2:
            self.delete(self.random_volume())

    def random_resize(self) -> None:
        volume = self.random_volume()
        self.resize(volume, self.rng.randrange(8 * KIB, 40 * KIB, 512))

    def wait(self) -> None:
        """So long that upkeep looks at the window; now and then so long that it expires."""
        self.rig.clock.advance(self.rng.choice((1.5, 1.5, 700.0)))
        self.tend()


def lived(seed: int) -> RandomLife:
    life = RandomLife(seed)
    life.live(STEPS)
    return life


def worthwhile(trace: Trace) -> list[int]:
    """Points at which a cut may leave something new; see tests/sim/test_crash_states.py."""
    ops = trace.ops
    return [
        point
        for point in range(len(ops) + 1)
        if point == len(ops)
        or not (isinstance(op := ops[point], Mark) and isinstance(op.value, Known | IndexChanged))
    ]


def check_crash(trace: Trace, image: Image, options: StoreOptions, *, killed: bool) -> None:
    """What the crash left keeps every promise, and goes on doing so."""
    marks = trace.marks(image.point)
    known = known_at(marks)
    if known is None:
        return
    rig = StoreRig(
        *(image, meta_at(marks, {}), index_at(marks, {}, killed=killed)),
        options=options,
        clock=known.clock(),
        boot="boot-1" if killed else "boot-2",
    )
    life = VersionsLife(options, rig=rig, model=known.model.copy())
    life.model.recovered(rig, killed=killed)
    life.check_now(SAMPLE)
    rig.tend()
    for volume in list(life.model.volumes.values()):
        life.write(volume, 0, 1024)
    life.settle()
    life.check_now(SAMPLE)
    life.kill()
    life.check_now(SAMPLE)


@pytest.mark.parametrize("seed", OPTIONS)
def test_power_cut_leaves_versions_whole_or_not_at_all(seed: int) -> None:
    trace = lived(seed).rig.disk.trace
    points = worthwhile(trace)
    planner = CrashPlanner(trace, seed=seed, budget=BUDGET)
    chosen = random.Random(seed).sample(points, min(POINTS, len(points)))
    for number, image in enumerate(planner.images(chosen)):
        try:
            check_crash(trace, image, options_of(seed), killed=False)
        except Exception as error:
            raise AssertionError(
                f"seed {seed}, point {image.point} ({image.why}), image {number}: {error!r}"
            ) from error
    assert planner.distinct >= STATES


@pytest.mark.parametrize("seed", OPTIONS)
def test_kill_loses_no_version(seed: int) -> None:
    trace = lived(seed).rig.disk.trace
    planner = CrashPlanner(trace, seed=seed)
    for point in random.Random(seed).sample(range(len(trace.ops) + 1), KILLS):
        try:
            check_crash(trace, planner.image_after_kill(point), options_of(seed), killed=True)
        except Exception as error:
            raise AssertionError(f"seed {seed}, killed at point {point}: {error!r}") from error


def test_lives_hold_segments_and_use_them_again() -> None:
    """Guards the tests above: what they cut short must contain the window and its end, points that
    come into chunks, restores, and gc."""
    kinds: set[str] = set()
    begun = segments = packs_removed = 0
    for seed in OPTIONS:
        ops = lived(seed).rig.disk.trace.ops
        known = [op.value for op in ops if isinstance(op, Mark) and isinstance(op.value, Known)]
        kinds |= {each.model.pending.kind for each in known if each.model.pending}
        paths = {op.inode: op.path for op in ops if isinstance(op, Create)}
        of_log = {inode for inode, path in paths.items() if path.startswith("journal/")}
        headers = [op for op in ops if isinstance(op, Write) and op.offset == 0]
        begun += len([op for op in headers if op.inode in of_log])
        segments += len(of_log)
        packs_removed += len(
            [op for op in ops if isinstance(op, Unlink) and op.path.startswith("packs/")]
        )
    assert kinds >= {"snapshot", "delete-snapshot", "restore", "clone", "delete", "resize"}
    assert begun > 2 * segments  # the first time is when it is filled with zeros
    assert packs_removed > 2
