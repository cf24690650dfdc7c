"""Versions against a model that keeps every one of them, by a Hypothesis state machine.

Anything that can be done to volumes and their versions, in any order, with crashes in between and
in the middle: kill -9, and power cuts that leave any legal disk. After each step something is
looked at; now and then, after each crash and at the end, everything (see tests/sim/versions_model).
"""

import itertools
import random
from collections.abc import Callable
from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.sim.store_rig import KIB, SEGMENT_BYTES, SMALL
from tests.sim.versions_life import Opened, VersionsLife
from tests.sim.versions_model import VolumeModel

BLOCK = 512
MAX_SIZE = 40 * KIB
MAX_VOLUMES = 4
MAX_SNAPSHOTS = 6  # of a volume
MAX_OPENED = 4
SAMPLE = 8  # versions of each volume that are opened when everything is looked at
ROOMY = replace(SMALL, journal_limit=8 * SEGMENT_BYTES)
WINDOWS = {
    "none": ROOMY,
    "short": replace(ROOMY, window_bytes=SEGMENT_BYTES, window_s=1),
    "long": replace(ROOMY, window_bytes=6 * SEGMENT_BYTES, window_s=600, history_keep="60m"),
}

number = st.integers(0, 1 << 16)  # picks one of what there is
at = st.integers(0, MAX_SIZE // BLOCK)
length = st.one_of(st.integers(1, 10), st.sampled_from([1, 8, 8, 16, 40, 80]))
how = st.sampled_from(["none", "all", "drawn", "drawn"])


class VersionsMachine(RuleBasedStateMachine):
    @initialize(
        chunk_size=st.sampled_from([4 * KIB, 16 * KIB]),
        blocks=st.integers(8, MAX_SIZE // BLOCK),
        compression=st.sampled_from(["none", "lz4"]),
        window=st.sampled_from(sorted(WINDOWS)),
        clock=st.sampled_from(["runs", "runs", "runs", "is set"]),
    )
    def begin(
        self, chunk_size: int, blocks: int, compression: str, window: str, clock: str
    ) -> None:
        self.clock_is_set = clock == "is set"
        self.life = VersionsLife(replace(WINDOWS[window], compression=compression))
        self.chunk_size = chunk_size
        self.life.create(self.new_name(), blocks * BLOCK, chunk_size)
        self.life.create(self.new_name(), 24 * KIB, chunk_size)
        self.life.tend()
        self.last = self.volumes()[0].number

    # -- picking

    def new_name(self) -> str:
        """A name that is free; perhaps one that another volume had before."""
        names = {volume.name for volume in self.life.model.volumes.values()}
        return next(name for n in itertools.count() if (name := f"v{n}") not in names)

    def volumes(self) -> list[VolumeModel]:
        return [volume for _, volume in sorted(self.life.model.volumes.items())]

    def pick(self, number: int) -> VolumeModel:
        volumes = self.volumes()
        volume = volumes[number % len(volumes)]
        self.last = volume.number
        return volume

    def pick_seq(self, volume: VolumeModel, number: int, *, there: bool = True) -> int:
        """A seq of the volume; with `there` one that must be there."""
        seqs = sorted(self.life.must_open(volume) if there else volume.states)
        return seqs[-1 - number % len(seqs)]

    def pick_ref(self, volume: VolumeModel, number: int, kind: int) -> tuple[str, int]:
        """(what follows the '@', seq): a version that must be there, by one of its names."""
        if kind % 3 == 0 and volume.snapshots:
            names = sorted(volume.snapshots)
            name = names[number % len(names)]
            return name, volume.snapshots[name].seq
        seq = self.pick_seq(volume, number)
        return f"seq:{seq}", seq

    @staticmethod
    def cut(volume: VolumeModel, at: int, length: int) -> tuple[int, int]:
        """A range in bytes, moved into the volume."""
        blocks = volume.size // BLOCK
        at %= blocks
        return at * BLOCK, min(length, blocks - at) * BLOCK

    # -- bytes

    @rule(n=number, at=at, length=length, fua=st.booleans())
    def write(self, n: int, at: int, length: int, fua: bool) -> None:
        volume = self.pick(n)
        self.life.write(volume, *self.cut(volume, at, length), fua=fua)

    @rule(n=number, at=at, length=length, seq=number)
    def write_again(self, n: int, at: int, length: int, seq: int) -> None:
        """Bytes of a version of another volume, or of this one, come back."""
        volume = self.pick(n)
        offset, count = self.cut(volume, at, length)
        source = self.pick(n + seq)
        data = source.states[self.pick_seq(source, seq, there=False)].data
        self.life.write_again(volume, offset, data[offset : offset + count].ljust(count, b"\0"))

    @rule(n=number, m=number, at=at, source_at=at, chunks=st.integers(1, 10), opened=st.booleans())
    def clone_range(
        self, n: int, m: int, at: int, source_at: int, chunks: int, opened: bool
    ) -> None:
        """Whole chunks of another volume, of this one or of an open version; now and then a range
        that cannot be shared."""
        head = self.pick(m)
        source: VolumeModel | Opened = head
        size = head.size
        if opened and self.life.opened:
            source = self.life.opened[m % len(self.life.opened)]
            size = len(source.data)
        volume = self.pick(n)
        offset = self.chunk_at(at, volume.size)
        source_offset = self.chunk_at(source_at, size)
        offset += BLOCK * (at % 16 == 15)
        self.life.clone_range(volume, offset, source, source_offset, chunks * self.chunk_size)

    @precondition(lambda self: len(self.life.model.volumes) < MAX_VOLUMES)
    @rule(n=number, at=at, rewritten=st.booleans(), after=st.sampled_from(["", "kill", "wait"]))
    def inherit(self, n: int, at: int, rewritten: bool, after: str) -> None:
        """A range of a volume that is gone then: nothing but the record keeps its chunks."""
        volume = self.pick(n)
        name = self.new_name()
        self.life.create(name, 3 * self.chunk_size, self.chunk_size)
        source = self.life.model.named(name)
        self.life.write(source, 0, source.size)
        self.life.clone_range(
            volume, self.chunk_at(at, volume.size), source, 0, 3 * self.chunk_size
        )
        self.life.delete(source)
        if rewritten:
            self.life.write(volume, 0, volume.size)
        if after == "kill":
            self.life.kill()
        elif after == "wait":
            self.life.rig.clock.advance(5.0)
            self.life.tend()
        self.life.collect()
        self.last = volume.number

    def chunk_at(self, at: int, size: int) -> int:
        """Where one of the chunks of `size` bytes begins."""
        return at % -(-size // self.chunk_size) * self.chunk_size

    @rule(n=number, at=at, length=length, unmap=st.booleans())
    def zero(self, n: int, at: int, length: int, unmap: bool) -> None:
        volume = self.pick(n)
        self.life.zero(volume, *self.cut(volume, at, length), unmap=unmap)

    @rule(n=number)
    def flush(self, n: int) -> None:
        self.life.flush(self.pick(n))

    # -- upkeep, and what is done to volumes: few rules, so that the others come often

    @rule(
        kind=st.sampled_from(
            ["destage", "destage", "collect", "slices", "settle", "tend", "scrub", "no space"]
        ),
        count=st.integers(1, 40),
    )
    def upkeep(self, kind: str, count: int) -> None:
        life = self.life
        steps: dict[str, Callable[[], None]] = {
            "destage": life.destage,
            "collect": life.collect,
            "slices": lambda: life.collect_slices(count),
            "settle": life.settle,
            "tend": life.tend,
            "scrub": life.scrub,
            "no space": life.destage_without_space,
        }
        steps[kind]()

    @rule(
        seconds=st.sampled_from([0.001, 1, 60, 700, 90_000]),
        step=st.sampled_from([-90_000, -3600, -1, 3600, 90_000]),
    )
    def wait(self, seconds: float, step: float) -> None:
        """Time goes by; or somebody sets the clock, in the lives in which that happens."""
        if self.clock_is_set:
            self.life.step_clock(step)
        self.life.rig.clock.advance(seconds)
        self.life.tend()

    @rule(
        kind=st.sampled_from(["create", "rename", "pin", "policy"]),
        n=number,
        which=number,
        window_s=st.sampled_from([0, 1, 600, 100_000]),
        keep=st.sampled_from(["", "10s", "60m,24h"]),
    )
    def manage(self, kind: str, n: int, which: int, window_s: int, keep: str) -> None:
        volume = self.pick(n)
        if kind == "create" and len(self.volumes()) < MAX_VOLUMES:
            size = (1 + which % (MAX_SIZE // BLOCK)) * BLOCK
            self.life.create(self.new_name(), size, self.chunk_size)
        elif kind == "rename":
            self.life.rename(volume, self.new_name())
        elif kind == "pin" and volume.snapshots:
            names = sorted(volume.snapshots)
            self.life.pin(volume, names[which % len(names)], bool(n % 2))
        elif kind == "policy":
            self.life.set_policy(volume, window_s, keep)

    @precondition(lambda self: len(self.life.model.volumes) > 1)
    @rule(n=number)
    def delete(self, n: int) -> None:
        volume = self.pick(n)
        self.life.delete(volume)
        self.last = self.volumes()[0].number

    @rule(n=number, blocks=st.integers(1, MAX_SIZE // BLOCK))
    def resize(self, n: int, blocks: int) -> None:
        self.life.resize(self.pick(n), blocks * BLOCK)

    # -- versions

    @rule(n=number, group=st.booleans(), pinned=st.booleans(), sync=st.booleans())
    def snapshot(self, n: int, group: bool, pinned: bool, sync: bool) -> None:
        volumes = self.volumes() if group else [self.pick(n)]
        volumes = [volume for volume in volumes if len(volume.snapshots) < MAX_SNAPSHOTS]
        taken = {name for volume in volumes for name in volume.snapshots}
        name = next(name for n in itertools.count() if (name := f"s{n}") not in taken)
        if volumes:
            self.life.snapshot(name, volumes, pinned=pinned, sync=sync)

    @rule(n=number, which=number)
    def delete_snapshot(self, n: int, which: int) -> None:
        volume = self.pick(n)
        if volume.snapshots:
            names = sorted(volume.snapshots)
            self.life.delete_snapshot(volume, names[which % len(names)])

    @precondition(lambda self: len(self.life.model.volumes) < MAX_VOLUMES)
    @rule(n=number, which=number, kind=number)
    def clone(self, n: int, which: int, kind: int) -> None:
        volume = self.pick(n)
        if kind % 4 == 3:
            self.clone_head(n)
        else:
            ref, seq = self.pick_ref(volume, which, kind)
            self.life.clone(f"{volume.name}@{ref}", volume, seq, self.new_name())

    def clone_head(self, n: int) -> None:
        volume = self.pick(n)
        self.life.clone(volume.name, volume, volume.seq, self.new_name())

    @rule(n=number, which=number, kind=number)
    def restore(self, n: int, which: int, kind: int) -> None:
        volume = self.pick(n)
        if len(volume.snapshots) < MAX_SNAPSHOTS:
            ref, seq = self.pick_ref(volume, which, kind)
            self.life.restore(volume, ref, seq)

    @precondition(lambda self: len(self.life.opened) < MAX_OPENED)
    @rule(n=number, which=number, kind=number)
    def open(self, n: int, which: int, kind: int) -> None:
        volume = self.pick(n)
        ref, seq = self.pick_ref(volume, which, kind)
        self.life.open(f"{volume.name}@{ref}", volume, seq)

    @precondition(lambda self: len(self.life.opened) < MAX_OPENED)
    @rule(n=number, which=number, kind=number)
    def outlive(self, n: int, which: int, kind: int) -> None:
        """An open version whose name goes, and whose chunks and segments nothing else needs."""
        volume = self.pick(n)
        ref, seq = self.pick_ref(volume, which, kind)
        self.life.open(f"{volume.name}@{ref}", volume, seq)
        if ref in volume.snapshots:
            self.life.delete_snapshot(volume, ref)
        for each in self.volumes():
            self.life.set_policy(each, 0, "")
        for _ in range(3):
            self.life.write(volume, 0, volume.size)
            self.life.rig.clock.advance(60.0)
            self.life.settle()
        self.life.check_opened()

    @precondition(lambda self: self.life.opened)
    @rule(which=number)
    def close(self, which: int) -> None:
        self.life.close(which % len(self.life.opened))

    # -- crashes

    @rule()
    def reopen(self) -> None:
        self.life.reopen()

    @rule()
    def kill(self) -> None:
        self.life.kill()

    @rule(seed=st.integers(0, 255), how=how, recoveries=st.lists(st.integers(1, 12), max_size=2))
    def power_cut(self, seed: int, how: str, recoveries: list[int]) -> None:
        self.life.power_cut(random.Random(seed), how, recoveries)

    @rule(
        step=st.integers(0, 10),
        n=number,
        which=number,
        count=st.integers(1, 60),
        seed=st.integers(0, 255),
        how=how,
    )
    def cut_during(self, step: int, n: int, which: int, count: int, seed: int, how: str) -> None:
        steps = [
            lambda: self.write(n, which, 40, False),
            self.life.destage,
            self.life.settle,
            lambda: self.snapshot(n, bool(which % 2), False, bool(which % 3)),
            lambda: self.restore(n, which, which),
            lambda: self.resize(n, 1 + which % (MAX_SIZE // BLOCK)),
            self.life.collect,
            lambda: self.clone_head(n),
            lambda: self.delete_snapshot(n, which),
            lambda: self.delete(n),
            lambda: self.clone_range(n, which, which, seed, count, bool(n % 2)),
        ]
        crowded = len(self.life.model.volumes) >= MAX_VOLUMES
        lonely = len(self.life.model.volumes) == 1
        if not (step == 7 and crowded) and not (step == 9 and lonely):
            self.life.cut_during(count, steps[step], random.Random(seed), how)
            self.last = self.volumes()[0].number

    # -- what must hold

    @invariant()
    def head_is_what_was_written(self) -> None:
        volume = self.life.model.volumes[self.last]
        assert self.life.rig.read(volume.name) == volume.head.data

    @invariant()
    def open_versions_do_not_change(self) -> None:
        self.life.check_opened()
        self.life.check_tracked()

    @rule(n=number, which=number, after_ms=st.integers(0, 9))
    def look_at_version(self, n: int, which: int, after_ms: int) -> None:
        """By its seq, and by a time."""
        volume = self.pick(n)
        seq = self.pick_seq(volume, which, there=False)
        self.life.check_seq(self.life.rig, volume, seq, seq in self.life.must_open(volume))
        self.life.check_time(volume, seq, after_ms)

    @rule(n=number, m=number, old=number, new=number, settled=st.booleans())
    def diff(self, n: int, m: int, old: int, new: int, settled: bool) -> None:
        if settled:
            self.life.destage()
        a, b = self.pick(n), self.pick(m)
        self.life.track(a, self.pick_seq(a, old))
        self.life.check_diff(a, self.pick_seq(a, old), b, self.pick_seq(b, new))

    @rule()
    def look_at_all(self) -> None:
        self.life.check_all(SAMPLE)

    def teardown(self) -> None:
        if hasattr(self, "life"):
            self.life.check_all()
            self.life.check_garbage()


VersionsMachine.TestCase.settings = settings(
    max_examples=80,
    stateful_step_count=30,
    deadline=None,
    derandomize=True,
)
test_versions_are_the_models = VersionsMachine.TestCase
