"""A store and the model of its versions, side by side: every step is done to both.

`VersionsLife` is driven by a Hypothesis machine (tests/unit/volume/test_versions_model.py) and by
seeded lives that crashes are enumerated over (tests/sim/test_version_crash_states.py). Each change
puts what the model knows into the disk's trace twice: when it begins, as pending, and when it is
acked (`Known`). So a crash at any point finds the model that belongs to it.

Time goes on by STEP_S before each change: no two of them have the same time.
"""

import contextlib
import errno
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from blockd.device import BlockDevice
from native import FLAG_FUA, OP_BLOCK_STATUS, OP_UNMAP, OP_WRITE, OP_WRITE_ZEROES, Request
from tests.sim.crash import CrashState
from tests.sim.faults import Fail, Fault
from tests.sim.image import Image
from tests.sim.simclock import SimClock
from tests.sim.simdisk import PowerCut, SimDisk
from tests.sim.store_rig import (
    SMALL,
    StoreRig,
    index_at,
    meta_at,
    read_device,
    read_error,
)
from tests.sim.trace import Trace
from tests.sim.versions_model import (
    Model,
    Pending,
    Snapshot,
    VolumeModel,
    base_seq,
    describe,
    differing_chunks,
    stamped,
    touched_chunks,
)
from volume.changes import Changes
from volume.disk import SECTOR_SIZE
from volume.errors import NoSuchVersion, OutOfSpace
from volume.gcrun import MIN_LIVE, SMALL_PACK
from volume.layout import ZERO_ID
from volume.options import StoreOptions
from volume.packfile import entry_length
from volume.refs import format_time
from volume.volume import Volume

STEP_S = 0.01
SCRUB_SLICE_S = 60.0
MAX_WAITS = 4  # rounds after which there must be room in the journal for a write
EVERYTHING_IDLE_S = 700.0  # the longest time that anything is kept for its age
ALL = 10_000  # more versions than any life has


@dataclass(frozen=True, slots=True)
class Known:
    """Mark for a trace: what the model is from here on, and the time."""

    model: Model
    now_ns: int

    def clock(self) -> SimClock:
        """One that goes on from there."""
        return SimClock(seed=1, start_ns=self.now_ns)


@dataclass(frozen=True, slots=True)
class Opened:
    """A version that somebody reads, and what it must show for as long."""

    ref: str
    number: int
    """Of the volume."""
    device: BlockDevice
    client: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Tracked:
    """A question for what has changed since a version."""

    number: int
    device: Volume
    changes: Changes
    data: bytes


class VersionsLife:
    """`rig` and `model`; both are replaced by a crash."""

    def __init__(
        self,
        options: StoreOptions = SMALL,
        *,
        marks: bool = False,
        rig: StoreRig | None = None,
        model: Model | None = None,
    ) -> None:
        """`marks`: put `Known` into the trace, for crashes at any point of it. `rig` and `model`:
        a store, and what is known about it, instead of a new one."""
        self.rig = rig or StoreRig(options=options)
        self.model = model or Model()
        self.opened: list[Opened] = []
        self.tracked: list[Tracked] = []
        self.written = 0
        self.stepped = False
        """Somebody has set the clock: times do not tell any more what came first."""
        self._clients = 0
        self._marks = marks

    def _begin(self, pending: Pending | None = None) -> None:
        self.model.pending = pending
        self._mark()

    def _done(self) -> None:
        self._check_power()
        self.model.done()
        self._mark()

    def _flushed(self) -> None:
        self._check_power()
        self.model.done()
        self.model.flushed()
        self._mark()

    def _check_power(self) -> None:
        """What an operation returned while the power was cut under it is no promise."""
        if self.rig.disk.is_off:
            raise PowerCut("in the middle of a step")

    def _mark(self) -> None:
        if self._marks:
            self.rig.disk.mark(Known(self.model.copy(), self.rig.clock.now_ns()))

    def _later(self) -> int:
        """Let time go on; the time now."""
        self.rig.clock.advance(STEP_S)
        return self.rig.clock.now_ns()

    def step_clock(self, seconds: float) -> None:
        """Somebody sets the date."""
        self.rig.clock.step_wall_clock(seconds)
        self.stepped = True

    # -- volumes

    def create(self, name: str, size: int, chunk_size: int) -> None:
        self._later()
        self._begin(Pending("create", name, data=bytes(size)))
        info = self.rig.store.create_volume(name, size, block_size=512, chunk_size=chunk_size)
        self.model.add_volume(info, bytes(size))
        self._done()

    def delete(self, volume: VolumeModel) -> None:
        self._later()
        self._begin(Pending("delete", number=volume.number))
        self.rig.store.delete_volume(volume.name, force=True)
        self.model.drop_volume(volume.number)
        self._done()
        for opened in [each for each in self.opened if each.number == volume.number]:
            self.opened.remove(opened)
            assert read_error(opened.device, 0, 512) == errno.ESHUTDOWN
            opened.device.detach(opened.client)

    def rename(self, volume: VolumeModel, name: str) -> None:
        self._begin(Pending("rename", name, volume.number))
        self.rig.store.rename_volume(volume.name, name)
        volume.name = name
        self._done()

    def resize(self, volume: VolumeModel, size: int) -> None:
        """A record that unmaps what comes or goes, and then the size moves."""
        now_ns = self._later()
        old = volume.size
        if size != old:
            self.model.resize(volume, size, now_ns)
        self._begin(Pending("resize", number=volume.number, size=old))
        try:
            self.rig.store.resize_volume(volume.name, size, force=True)
        except OutOfSpace:  # there is no room for the record in the journal
            self._settle_unseen()
            self.rig.store.resize_volume(volume.name, size, force=True)
        if size != old:
            self._flushed()
        self._check_seq(volume)

    # -- bytes

    def write(self, volume: VolumeModel, offset: int, length: int, *, fua: bool = False) -> None:
        self.written += 1
        self._write(volume, offset, stamped(self.written, offset, length), fua)

    def write_again(self, volume: VolumeModel, offset: int, data: bytes) -> None:
        """Write bytes that were written before: their chunks are perhaps known, or condemned."""
        self._write(volume, offset, data, False)

    def _write(self, volume: VolumeModel, offset: int, data: bytes, fua: bool) -> None:
        now_ns = self._later()
        flags = FLAG_FUA if fua else 0
        self._submit(
            volume,
            Request(OP_WRITE, offset, len(data), data, flags),
            lambda: self.model.write(volume, offset, data, now_ns),
        )

    def zero(self, volume: VolumeModel, offset: int, length: int, *, unmap: bool) -> None:
        now_ns = self._later()
        name, op = ("unmap", OP_UNMAP) if unmap else ("zero", OP_WRITE_ZEROES)
        self._submit(
            volume,
            Request(op, offset, length),
            lambda: self.model.zero(volume, offset, length, now_ns, name),
        )

    def _submit(self, volume: VolumeModel, request: Request, note: Callable[[], None]) -> None:
        """Submit, and do what the store's threads do until it is done. `note` puts the change into
        the model: once more when it had to wait, since it then begins from the front again."""
        note()
        self._begin()
        done = self.rig.submit(volume.name, request)
        if not done:
            self.model.cut_off(volume, self.rig.store.info(volume.name).seq)
            note()
            self._begin()
        for _ in range(MAX_WAITS):
            if not done:
                self._settle_unseen()
        self._check_power()
        assert done == [request], "a request waits for ever"
        assert request.error == 0, request.error
        if request.flags & FLAG_FUA:
            self._flushed()
        else:
            self._done()
        self._check_seq(volume)

    def _settle_unseen(self) -> None:
        """As `settle`, in the middle of something else; nothing is taken as promised."""
        self.rig.settle()
        self.rig.tend()

    def _check_seq(self, volume: VolumeModel) -> None:
        found = self.rig.store.info(volume.name).seq
        assert found == volume.seq, f"{volume.name} is at seq {found}, not {volume.seq}"

    def clone_range(
        self,
        volume: VolumeModel,
        offset: int,
        source: VolumeModel | Opened,
        source_offset: int,
        length: int,
    ) -> int:
        """The bytes of the source's head, or of a version that is open, at other offsets; how many
        were shared. All that can be are, but of an open version that cannot be kept any more."""
        now_ns = self._later()
        chunk_size = volume.chunk_size
        opened = isinstance(source, Opened)
        device = source.device if isinstance(source, Opened) else self.rig.volume(source.name)
        data = source.data if isinstance(source, Opened) else source.head.data
        expected = 0
        overlapping = source is volume and abs(offset - source_offset) < length
        if not (offset % chunk_size or source_offset % chunk_size or overlapping):
            expected = max(0, min(length, volume.size - offset, len(data) - source_offset))
            expected -= expected % chunk_size
        before = volume.seq
        if expected:
            piece = data[source_offset : source_offset + expected]
            self.model.clone_range(volume, offset, piece, now_ns)
        self._begin()
        done = self._clone_range(volume, offset, device, source_offset, length)
        self._check_power()
        if opened and not done and expected:
            self.model.cut_off(volume, before)
            expected = 0
        assert done == expected, f"{done} bytes are shared, not {expected}"
        self._done()
        self._check_seq(volume)
        return done

    def _clone_range(
        self, volume: VolumeModel, offset: int, device: object, source_offset: int, length: int
    ) -> int:
        target = self.rig.volume(volume.name)
        for _ in range(MAX_WAITS):
            with contextlib.suppress(OutOfSpace):
                return target.clone_range(offset, device, source_offset, length)
            self._settle_unseen()
        return target.clone_range(offset, device, source_offset, length)

    def flush(self, volume: VolumeModel) -> None:
        assert self.rig.flush(volume.name) == 0
        self._flushed()

    # -- upkeep

    def destage(self) -> None:
        if self.rig.store.destage():
            self._flushed()

    def destage_without_space(self) -> None:
        """A round that finds no room in the packs."""
        faults = self.rig.disk.faults
        faults.add(Fault("pwrite", Fail(errno.ENOSPC), "packs/*", count=None))
        try:
            with contextlib.suppress(OutOfSpace):
                self.destage()
        finally:
            faults.clear()
            self.tend()  # which sees that there is room again

    def collect(self) -> None:
        self.rig.store.collect()

    def collect_slices(self, count: int) -> None:
        """Go on with a run of gc, or begin one; it may be left in the middle."""
        upkeep = self.rig.store.upkeep
        if not upkeep.collector.status().running:
            upkeep.thinning.thin()
            upkeep.collector.run_now()
        for _ in range(count):
            upkeep.collector.step(0.0)
        last = upkeep.collector.status().last
        assert last is None or last.error is None, last

    def scrub(self) -> None:
        """A whole pass, which finds nothing."""
        scrubber = self.rig.store.upkeep.scrubber
        scrubber.run_now()
        while scrubber.step(SCRUB_SLICE_S):
            pass
        assert scrubber.status().damage_count == 0, scrubber.status()

    def tend(self) -> None:
        self.rig.tend()
        self._names_flushed()

    def settle(self) -> None:
        self.destage()
        self.collect()
        self.tend()

    # -- versions

    def snapshot(
        self,
        name: str,
        volumes: Sequence[VolumeModel],
        *,
        pinned: bool = False,
        sync: bool = False,
    ) -> None:
        self._later()
        self.model.name(volumes, name, pinned)
        self._begin(Pending("snapshot", name))
        infos = self.rig.store.snapshots.create(
            name, [volume.name for volume in volumes], pinned=pinned, sync=sync
        )
        assert sorted(info.volume for info in infos) == sorted(v.name for v in volumes)
        for info in infos:
            volume = self.model.named(info.volume)
            assert (info.name, info.seq, info.size) == (name, volume.seq, volume.size)
        self._done()
        if sync:
            self._names_flushed()

    def _names_flushed(self) -> None:
        self._check_power()
        self.model.names_flushed()
        self._mark()

    def delete_snapshot(self, volume: VolumeModel, name: str) -> None:
        self._later()
        self._begin(Pending("delete-snapshot", name, volume.number))
        self.rig.store.snapshots.delete(volume.name, name, force=True)
        del volume.snapshots[name]
        self._done()

    def pin(self, volume: VolumeModel, name: str, pinned: bool) -> None:
        self._begin(Pending("pin", name, volume.number))
        self.rig.store.snapshots.pin(volume.name, name, pinned)
        volume.snapshots[name] = replace(volume.snapshots[name], pinned=pinned)
        self._done()
        self._names_flushed()  # no change of what has a name is there before the name

    def clone(self, ref: str, volume: VolumeModel, seq: int, name: str) -> None:
        """`ref` names version `seq` of `volume`, which must be there."""
        self._later()
        data = volume.states[seq].data
        self._begin(Pending("clone", name, data=data))
        info = self.rig.store.versions.clone(ref, name)
        self.model.add_volume(info, data)
        self._done()
        self.model.check_head(self.rig, self.model.volumes[info.number])

    def restore(self, volume: VolumeModel, ref: str, seq: int) -> None:
        """`ref`, what follows the '@', names version `seq`, which must be there."""
        now_ns = self._later()
        old = Snapshot(volume.seq, volume.head.data)
        data = volume.states[seq].data
        self._begin(
            Pending(*("restore", "", volume.number, data), kept_seq=volume.seq, time_ns=now_ns)
        )
        done = self.rig.store.versions.restore(volume.name, ref)
        assert done.restored_seq == seq, (ref, done)
        kept = self.rig.store.snapshots.get(volume.name, done.kept)
        names = {name for name in volume.snapshots if self._names(volume, name, old)}
        assert done.had_name == bool(names), f"{names} had the state before; {done}"
        if done.had_name:
            assert done.kept in names
        else:
            assert kept.seq == old.seq
            volume.snapshots[done.kept] = replace(old, pinned=kept.pinned)
        self.model.add_restored(volume, done.volume, data, now_ns)
        self._flushed()
        self._check_seq(volume)
        self.model.check_head(self.rig, volume)

    def _names(self, volume: VolumeModel, name: str, state: Snapshot) -> bool:
        """Whether a snapshot is that state: it is after the same write, or both are in chunks, and
        the same ones."""
        snapshot = volume.snapshots[name]
        if snapshot.seq == state.seq:
            return True
        version = self.rig.store._history.version
        there = all(version(volume.number, each) for each in (snapshot.seq, state.seq))
        return there and snapshot.data == state.data

    def set_policy(self, volume: VolumeModel, window_s: int, keep: str) -> None:
        policy = self.rig.store.versions.set_policy(volume.name, window_s=window_s, keep=keep)
        assert policy.window_s == window_s

    # -- what is there

    def window_start_ns(self, volume: VolumeModel) -> int | None:
        return self.rig.store.versions.log(volume.name, limit=1).window_start_ns

    def committed(self, volume: VolumeModel) -> set[int]:
        """Seqs that the log lists as being in chunks."""
        log = self.rig.store.versions.log(volume.name, limit=ALL)
        assert not log.more
        return {each.seq for each in log.versions if each.commit is not None}

    def must_open(self, volume: VolumeModel) -> set[int]:
        """Seqs that have to be there: named, newest, listed, or inside the window."""
        start = None if self.stepped else self.window_start_ns(volume)
        inside = {
            seq
            for seq, state in volume.states.items()
            if start is not None and state.time_ns > start
        }
        named = {snapshot.seq for snapshot in volume.snapshots.values()}
        return inside | named | {volume.seq} | (self.committed(volume) & set(volume.states))

    def check_seq(self, rig: StoreRig, volume: VolumeModel, seq: int, must: bool) -> bool:
        """Open a version by its seq: its bytes are the model's, or, unless it must be there, it
        is said not to be. Whether it was there."""
        try:
            self.model.check_bytes(rig, f"{volume.name}@seq:{seq}", volume.states[seq].data)
        except NoSuchVersion:
            assert not must, f"{volume.name}@seq:{seq} is inside the window, and is not there"
            return False
        return True

    def check_time(self, volume: VolumeModel, seq: int, after_ms: int) -> None:
        """The version of a time at or right after that of `seq`, before anything else happened."""
        if self.stepped:
            return
        time_ns = volume.states[seq].time_ns + after_ms * 1_000_000
        time_ns = min(time_ns, self.rig.clock.now_ns())  # a time to come is refused
        until = max(each for each, state in volume.states.items() if state.time_ns <= time_ns)
        start = self.window_start_ns(volume)
        inside = start is not None and time_ns > start
        kept = self.committed(volume)
        legal = {
            each for each in volume.states if each == until or (each <= until and each in kept)
        }
        ref = f"{volume.name}@{format_time(time_ns)}"
        try:
            found = self.rig.read_version(ref)
        except NoSuchVersion:
            assert not inside, f"{ref} (seq:{until}) is inside the window, and is not there"
            return
        for each in [until] if inside else legal:
            if found == volume.states[each].data:
                return
        raise AssertionError(f"{ref} (seq:{until}): {describe(found, volume.states[until].data)}")

    def check_versions(self, rig: StoreRig | None = None, sample: int = ALL) -> int:
        """Versions of all volumes, about `sample` of each; how many were there."""
        rig, found = rig or self.rig, 0
        for volume in self.model.volumes.values():
            must = self.must_open(volume)
            step = max(1, len(volume.states) // sample)
            for seq in sorted(volume.states)[::step]:
                found += self.check_seq(rig, volume, seq, seq in must)
        return found

    def check_now(self, sample: int = ALL) -> None:
        """Everything that can be seen in the running store."""
        self.model.check_heads(self.rig)
        self.model.check_snapshots(self.rig)
        self.check_versions(sample=sample)
        self.check_opened()

    def check_all(self, sample: int = ALL) -> None:
        """Everything that can be seen, also by who opens the store again."""
        self.check_now(sample)
        again = self.rig.killed()  # nothing cached
        self.model.check_heads(again)
        self.model.check_snapshots(again)
        self.check_versions(again, sample)

    def check_garbage(self) -> None:
        """I9, the other half: when all history is let go, nothing is left but what heads reach."""
        self.tracked = []
        while self.opened:
            self.close(0)
        for volume in self.model.volumes.values():
            for name in sorted(volume.snapshots):
                self.delete_snapshot(volume, name)
            self.rig.store.versions.set_policy(volume.name, window_s=0, keep="")
        for _ in range(3):  # expire, thin, condemn; remove; join what is small
            self.rig.clock.advance(EVERYTHING_IDLE_S)
            self.settle()
        self.model.check_heads(self.rig)
        live = self._live_chunks()
        chunks = self.rig.store._chunks
        packs = chunks.packs
        small = 0
        for number in packs.sealed():
            rows = list(packs.footer(number))
            used = sum(entry_length(p.stored_length) for chunk, p in rows if chunk in live)
            assert used, f"pack {number} holds nothing that is reached"
            mostly = used >= MIN_LIVE * packs.size(number) or live.issuperset(c for c, _ in rows)
            assert mostly, f"pack {number} is mostly garbage"
            small += packs.size(number) < SMALL_PACK * packs.pack_bytes
        assert small <= 1, f"{small} small packs were not joined"
        for chunk in live:
            chunks.get(chunk, verify=True)

    def _live_chunks(self) -> set[bytes]:
        """Every chunk that a head, or a version that is still listed, reaches."""
        store, live = self.rig.store, set[bytes]()

        def enter(node: bytes) -> bool:
            new = node not in live
            live.add(node)
            return new

        for volume in self.model.volumes.values():
            head = self.rig.volume(volume.name).record.head
            assert head.seq == volume.seq
            rows = list(store._history.versions(volume.number))
            assert rows[-1].root == head.root
            for row in rows:
                live |= {row.commit} - {ZERO_ID}
                store._manifests.walk(row.root, row.height, enter, live.update)
        return live

    # -- open versions

    def open(self, ref: str, volume: VolumeModel, seq: int) -> None:
        device = self.rig.store.open_version(ref)
        self._clients += 1
        client = f"client {self._clients}"
        device.attach(client)
        assert device.read_only
        data = volume.states[seq].data
        assert device.size == len(data)
        self.opened.append(Opened(ref, volume.number, device, client, data))

    def close(self, index: int) -> None:
        opened = self.opened.pop(index)
        opened.device.detach(opened.client)

    def check_opened(self) -> None:
        for each in self.opened:
            assert each.device.size == len(each.data)
            found = read_device(each.device, 0, len(each.data))
            assert found == each.data, f"{each.ref}, which is open, has changed"

    def check_diff(self, a: VolumeModel, seq_a: int, b: VolumeModel, seq_b: int) -> None:
        """Every byte that differs is in the extents, and no chunk that nobody changed."""
        size = a.chunk_size
        old, new = a.states[seq_a].data, b.states[seq_b].data
        found = self.rig.store.versions.diff(f"{a.name}@seq:{seq_a}", f"{b.name}@seq:{seq_b}")
        differing = differing_chunks(old, new, size)
        hot: set[int] = set()
        for volume, seq in ((a, seq_a), (b, seq_b)):
            log = self.rig.store.versions.log(volume.name, limit=ALL)
            hot |= volume.touched(base_seq(log.versions, seq), seq)
        chunks = touched_chunks(found.extents, size)
        assert differing <= chunks, f"chunks {differing - chunks} differ and are not listed"
        assert chunks <= differing | hot, f"chunks {chunks - differing - hot} do not differ"
        assert found.changed_bytes == sum(length for _, length in found.extents)

    def track(self, volume: VolumeModel, seq: int) -> None:
        """Ask for what changes since a version, as a client does that holds on to it."""
        device = self.rig.volume(volume.name)
        changes = device.changes_since(f"seq:{seq}")
        self.tracked = [
            *self.tracked[-2:],
            Tracked(volume.number, device, changes, volume.states[seq].data),
        ]
        self.check_tracked()

    def check_tracked(self) -> None:
        """Every sector that differs from then is said to have changed."""
        for each in self.tracked:
            volume = self.model.volumes.get(each.number)
            if volume is None or self.rig.volume(volume.name) is not each.device:
                continue  # deleted, or restored: its clients are sent away
            changed = self._changed_bytes(each, volume.size)
            new, old = volume.head.data, each.data.ljust(volume.size, b"\0")
            for start in range(0, volume.size, SECTOR_SIZE):
                sector = slice(start, start + SECTOR_SIZE)
                said = changed[start]
                assert said or new[sector] == old[sector], f"sector at {start} has changed"

    @staticmethod
    def _changed_bytes(tracked: "Tracked", size: int) -> bytearray:
        """1 for each byte that is said to have changed."""
        found = bytearray()
        while len(found) < size:
            request = Request(OP_BLOCK_STATUS, len(found), size - len(found))
            request.data = tracked.changes
            done: list[Request] = []
            tracked.device.submit([request], done.extend)
            assert done == [request]
            assert request.error == 0, request.message
            assert isinstance(request.data, list)
            for length, flags in request.data:
                found += bytes([flags & 1]) * length
        assert len(found) == size
        return found

    # -- crashes

    def reopen(self) -> None:
        """Close and open again."""
        self.rig = self.rig.closed()
        self._reopened(killed=True)

    def kill(self) -> None:
        self.rig = self.rig.killed()
        self._reopened(killed=True)

    def power_cut(self, rng: random.Random, how: str, recoveries: Sequence[int] = ()) -> None:
        """Cut the power now; `how`: "none", "all", or "drawn" of what was not synced survives.

        `recoveries`: then in each recovery after that many operations of the disk, and at last
        leave it in peace."""
        rig = self.rig
        disk, boot = rig.disk, rig.boot
        meta: Mapping[bytes, bytes] = rig.base_meta
        index: Mapping[bytes, bytes] = rig.base_index
        for count in [*recoveries, None]:
            image = _left_by_cut(disk.trace, rng, how)
            marks = disk.trace.marks(image.point)
            meta, index, boot = meta_at(marks, meta), index_at(marks, index), boot + "'"
            disk = SimDisk(image)
            if count is not None:
                disk.crash_at(count)
            try:
                self.rig = StoreRig(
                    *(None, meta, index),
                    options=rig.options,
                    disk=disk,
                    clock=rig.clock,
                    boot=boot,
                )
            except (Exception, PowerCut):
                if not disk.is_off:
                    raise
        self._reopened(killed=False)

    def cut_during(
        self, count: int, step: Callable[[], None], rng: random.Random, how: str
    ) -> None:
        """Do `step`, and cut the power after `count` operations of the disk, or after it."""
        self.rig.disk.crash_at(count)
        try:
            step()
        except (Exception, PowerCut):
            if not self.rig.disk.is_off:
                raise
        self.power_cut(rng, how)

    def _reopened(self, *, killed: bool) -> None:
        self.opened, self.tracked = [], []
        self.model.recovered(self.rig, killed=killed)
        self.rig.tend()


def _left_by_cut(trace: Trace, rng: random.Random, how: str) -> Image:
    state = CrashState(trace)
    for op in trace.ops:
        state.apply(op)
    if how == "drawn":
        return state.drawn(how, rng)
    return state.image(how, state.pending() if how == "all" else ())


def known_at(marks: Sequence[object]) -> Known | None:
    """The newest `Known` among these marks."""
    return next((mark for mark in reversed(marks) if isinstance(mark, Known)), None)
