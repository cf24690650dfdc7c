"""What a store with versions must show: a model that keeps every version of every volume.

`Model` holds, for each volume, the bytes after each of its journal records (seq -> `State`), its
snapshots, and the order in which the records of all volumes went into the one journal. It also
says what is not decided yet: how much of the journal may be lost in a power cut, and the change
that was under way (`Pending`), which a crash may leave done or not done, but nothing in between.

`Model.recovered` takes a store that was opened after a crash, decides whether it kept every
promise, and becomes what it found: seqs beyond the cut are free again. `Model.check_*` compare a
store that runs.

    I2, I3  all volumes are at one position of the journal, not before the last acked flush
    I4      after kill -9 every acked write is there
    I5, I8  a head has exactly the bytes of its seq
    I7      a snapshot has the bytes of the moment it was made, for ever
    I9      gc removes nothing that anybody can still open
            a restore, a clone, a snapshot of a group is there as a whole or not at all
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from tests.sim.store_rig import MAX_PIECE, StoreRig
from volume.disk import SECTOR_SIZE
from volume.model import VersionInfo, VolumeInfo
from volume.past import MAX_OPEN

PAGE = 4096
NAMING = (0, 0)
NEVER = 1 << 62  # a position that no log has
STAMP = struct.Struct("<QQ")  # number of the write, sector


@dataclass(frozen=True, slots=True)
class State:
    """A volume after one of its records. Bytes."""

    data: bytes = field(repr=False)
    time_ns: int
    offset: int = 0
    """Of the record that led here, with `length`; 0 bytes at the beginning and after a restore."""
    length: int = 0
    op: str = ""
    """"write", "unmap", "zero", "clone", as in the log that people see; "" when none led here."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    seq: int
    data: bytes = field(repr=False)
    pinned: bool = False
    position: int = 0
    """In the log, of the record that names it: it is there if the log reaches that far."""


@dataclass(slots=True)
class VolumeModel:
    """One volume; `states` holds every version since it was made, the newest is its head."""

    number: int
    name: str
    chunk_size: int
    epoch: int
    seq: int
    first_seq: int
    states: dict[int, State] = field(repr=False)
    snapshots: dict[str, Snapshot] = field(default_factory=dict)

    @property
    def head(self) -> State:
        return self.states[self.seq]

    @property
    def size(self) -> int:
        return len(self.head.data)

    def copy(self) -> "VolumeModel":
        return replace(self, states=dict(self.states), snapshots=dict(self.snapshots))

    def forget_after(self, seq: int) -> None:
        for each in [each for each in self.states if each > seq]:
            del self.states[each]
        self.seq = seq

    def touched(self, after: int, upto: int) -> set[int]:
        """Chunks that records in (after, upto] wrote to or cleared, and that resizes cut."""
        found: set[int] = set()
        for seq, state in self.states.items():
            if after < seq <= upto and state.length:
                end = state.offset + state.length
                found.update(range(state.offset // self.chunk_size, -(-end // self.chunk_size)))
        return found


@dataclass(frozen=True, slots=True)
class Pending:
    """A change that is not acked yet: it may be found done, or not done."""

    kind: str
    name: str = ""
    number: int = 0
    data: bytes = field(default=b"", repr=False)
    size: int = 0
    kept_seq: int = 0
    time_ns: int = 0


def pieces(offset: int, length: int) -> list[tuple[int, int]]:
    """How the journal cuts a write into records (see native/src/batch.c)."""
    found = []
    while length > MAX_PIECE:
        step = MAX_PIECE - offset % PAGE
        found.append((offset, step))
        offset, length = offset + step, length - step
    return [*found, (offset, length)]


def stamped(number: int, offset: int, length: int) -> bytes:
    """What write `number` puts there: every sector tells who wrote it, and where."""
    first = offset // SECTOR_SIZE
    return b"".join(
        STAMP.pack(number, sector) * (SECTOR_SIZE // STAMP.size)
        for sector in range(first, first + length // SECTOR_SIZE)
    )


def describe(found: bytes, expected: bytes) -> str:
    """Where two images differ first, for a message."""
    if len(found) != len(expected):
        return f"{len(found)} bytes instead of {len(expected)}"
    for start in range(0, len(found), SECTOR_SIZE):
        a, b = found[start : start + SECTOR_SIZE], expected[start : start + SECTOR_SIZE]
        if a != b:
            return (
                f"sector {start // SECTOR_SIZE} is of write {STAMP.unpack_from(a)} "
                f"instead of {STAMP.unpack_from(b)}"
            )
    return "nothing"


class Model:
    """See the module's text. `copy` is cheap: versions are shared."""

    def __init__(self) -> None:
        self.volumes: dict[int, VolumeModel] = {}
        self.log: list[tuple[int, int]] = []
        """(volume number, seq) of every record, in the journal's order; NAMING for one that names
        what is before it."""
        self.acked = 0
        """Entries of the log that survive kill -9."""
        self.durable = 0
        """Entries of the log that survive a power cut."""
        self.pending: Pending | None = None

    def copy(self) -> "Model":
        twin = Model()
        twin.volumes = {number: volume.copy() for number, volume in self.volumes.items()}
        twin.log = list(self.log)
        twin.acked, twin.durable, twin.pending = self.acked, self.durable, self.pending
        return twin

    def named(self, name: str) -> VolumeModel:
        return next(volume for volume in self.volumes.values() if volume.name == name)

    def names(self) -> list[str]:
        return sorted(volume.name for volume in self.volumes.values())

    # -- changes

    def add_volume(self, info: VolumeInfo, data: bytes) -> None:
        assert info.size == len(data), info
        self.volumes[info.number] = VolumeModel(
            number=info.number,
            name=info.name,
            chunk_size=info.chunk_size,
            epoch=info.epoch,
            seq=info.seq,
            first_seq=info.seq,
            states={info.seq: State(data, info.created_ns)},
        )

    def add_restored(
        self, volume: VolumeModel, info: VolumeInfo, data: bytes, time_ns: int
    ) -> None:
        volume.epoch += 1
        assert (info.epoch, info.size) == (volume.epoch, len(data)), info
        self.append(volume, State(data, time_ns))

    def append(self, volume: VolumeModel, state: State) -> None:
        """One more record, or a restore: the next version of a volume."""
        volume.seq += 1
        volume.states[volume.seq] = state
        self.log.append((volume.number, volume.seq))

    def write(self, volume: VolumeModel, offset: int, data: bytes, time_ns: int) -> None:
        for at, length in pieces(offset, len(data)):
            piece = data[at - offset : at - offset + length]
            self._change(volume, at, piece, time_ns, "write")

    def resize(self, volume: VolumeModel, size: int, time_ns: int) -> None:
        first, end = sorted((size, volume.size))
        data = volume.head.data[:first].ljust(size, b"\0")
        self.append(volume, State(data, time_ns, first, end - first, "unmap"))

    def zero(self, volume: VolumeModel, offset: int, length: int, time_ns: int, op: str) -> None:
        self._change(volume, offset, bytes(length), time_ns, op)

    def clone_range(self, volume: VolumeModel, offset: int, data: bytes, time_ns: int) -> None:
        """One record, whatever its length."""
        self._change(volume, offset, data, time_ns, "clone")

    def _change(self, volume: VolumeModel, offset: int, data: bytes, time_ns: int, op: str) -> None:
        old = volume.head.data
        new = old[:offset] + data + old[offset + len(data) :]
        self.append(volume, State(new, time_ns, offset, len(data), op))

    def name(self, volumes: Sequence[VolumeModel], name: str, pinned: bool) -> None:
        """One record that makes a snapshot of each."""
        self.log.append(NAMING)
        for volume in volumes:
            volume.snapshots[name] = Snapshot(volume.seq, volume.head.data, pinned, len(self.log))

    def cut_off(self, volume: VolumeModel, seq: int) -> None:
        """The newest records, all of `volume` and after `seq`, were not written after all."""
        del self.log[len(self.log) - (volume.seq - seq) :]
        volume.forget_after(seq)

    def flushed(self) -> None:
        """Everything that is acked is durable."""
        self.durable = max(self.durable, self.acked)

    def names_flushed(self) -> None:
        """The names that are acked are durable, and so is what is before them in the log."""
        positions = [
            snapshot.position
            for volume in self.volumes.values()
            for snapshot in volume.snapshots.values()
        ]
        self.durable = max([self.durable, *positions])

    def done(self) -> None:
        """Everything submitted is acked."""
        self.acked = len(self.log)
        self.pending = None

    def drop_volume(self, number: int) -> None:
        del self.volumes[number]

    # -- after a crash

    def recovered(self, rig: StoreRig, *, killed: bool = False) -> None:
        """Check a store that was opened on what a crash left, and become what it shows."""
        infos = {info.number: info for info in rig.store.volumes()}
        self._settle_volumes(rig)
        named = [self._settle_snapshots(rig, volume) for volume in self.volumes.values()]
        self._settle_restore(rig)
        for volume in self.volumes.values():
            info = infos[volume.number]
            assert info.epoch == volume.epoch, (volume.name, info.epoch, volume.epoch)
            assert info.seq in volume.states, (
                f"{volume.name} is at seq {info.seq}, never been there"
            )
            assert info.size in self._sizes_of(volume, info.seq), (
                f"{volume.name}: {info.size} bytes"
            )
        least = max(self.durable, self.acked if killed else 0)
        seqs = {number: infos[number].seq for number in self.volumes}
        cuts = self._cuts(seqs)
        assert cuts, f"{seqs} is no state at one position of the log: {self.log[-20:]}"
        assert max(cuts) >= least, f"the log ends at {max(cuts)}, {least} was promised"
        # The names as well are those of one position.
        reached = max((there for there, _ in named), default=0)
        ended = min((missing for _, missing in named), default=NEVER)
        cuts = [cut for cut in cuts if max(reached, least) <= cut < ended]
        assert cuts, f"names up to {reached} are there, one of {ended} is not, {least} was promised"
        cut = cuts[-1]
        for number, seq in seqs.items():
            volume = self.volumes[number]
            for name in [name for name, s in volume.snapshots.items() if s.position > cut]:
                del volume.snapshots[name]
            assert all(snapshot.seq <= seq for snapshot in volume.snapshots.values())
            volume.forget_after(seq)
            if infos[number].size != volume.size:  # cut off in the middle of a resize
                head = volume.head
                data = head.data[: infos[number].size].ljust(infos[number].size, b"\0")
                volume.states[seq] = replace(head, data=data)
        del self.log[cut:]
        self.pending = None
        self.acked = self.durable = len(self.log)  # what was replayed is synced before it is served
        self.check_heads(rig)

    def _sizes_of(self, volume: VolumeModel, seq: int) -> set[int]:
        """Sizes that a crash may leave at that seq. After the record of a pending resize it may
        still be the old one, with zeros behind what is to be cut off."""
        pending = self.pending
        size = len(volume.states[seq].data)
        resized = pending and (pending.kind, pending.number) == ("resize", volume.number)
        return {size, pending.size} if pending and resized and seq == volume.seq else {size}

    def _cuts(self, seqs: dict[int, int]) -> list[int]:
        """The positions of the log at which all volumes have just these seqs, ascending."""
        at = {number: self.volumes[number].first_seq for number in seqs}
        found = [0] if at == seqs else []
        for position, (number, seq) in enumerate(self.log, start=1):
            if number in at:
                at[number] = seq
            if at == seqs:
                found.append(position)
        return found

    def _settle_volumes(self, rig: StoreRig) -> None:
        """Which volumes are there, under which names."""
        pending = self.pending
        infos = {info.number: info for info in rig.store.volumes()}
        kind = pending.kind if pending else ""
        if pending and kind == "delete" and pending.number not in infos:
            self.drop_volume(pending.number)
        if pending and kind == "rename" and pending.number in self.volumes:
            volume = self.volumes[pending.number]
            if infos[pending.number].name == pending.name:
                volume.name = pending.name
        new = set(infos) - set(self.volumes)
        if pending and kind in ("create", "clone") and new:
            (number,) = new
            info = infos[number]
            assert info.name == pending.name
            self.add_volume(info, pending.data)
            new = set()
        assert not new, f"volumes {[infos[number].name for number in new]} were never made"
        gone = {self.volumes[number].name for number in set(self.volumes) - set(infos)}
        assert not gone, f"volumes {gone} are lost"
        names = {number: info.name for number, info in infos.items()}
        assert names == {number: volume.name for number, volume in self.volumes.items()}

    def _settle_snapshots(self, rig: StoreRig, volume: VolumeModel) -> tuple[int, int]:
        """Which snapshots are there: (newest position of one that is, oldest of one that is not).

        That of a pending restore comes later."""
        found = {info.name: info for info in rig.store.snapshots.all(volume.name)}
        pending = self.pending
        own = pending is not None and pending.number == volume.number
        if pending and own and pending.kind == "delete-snapshot" and pending.name not in found:
            volume.snapshots.pop(pending.name, None)
        if pending and own and pending.kind == "pin" and pending.name in found:
            snapshot = volume.snapshots[pending.name]
            volume.snapshots[pending.name] = replace(snapshot, pinned=found[pending.name].pinned)
        there, missing = 0, NEVER
        for name, snapshot in volume.snapshots.items():
            if name in found:
                there = max(there, snapshot.position)
                assert (found[name].seq, found[name].pinned) == (snapshot.seq, snapshot.pinned)
            else:
                missing = min(missing, snapshot.position)
        extra = set(found) - set(volume.snapshots)
        if pending and own and pending.kind == "restore":
            extra = {name for name in extra if found[name].seq != pending.kept_seq}
        assert not extra, f"snapshots {extra} of {volume.name} were never made"
        return there, missing

    def _settle_restore(self, rig: StoreRig) -> None:
        """A restore is done, and then what was before it has a name, or it is not done."""
        pending = self.pending
        if not pending or pending.kind != "restore" or pending.number not in self.volumes:
            return
        volume = self.volumes[pending.number]
        info = rig.store.info(volume.name)
        before = Snapshot(volume.seq, volume.head.data)
        extra = {i.name: i for i in rig.store.snapshots.all(volume.name)}
        for name in set(extra) - set(volume.snapshots):
            volume.snapshots[name] = replace(before, pinned=extra[name].pinned)
        if info.epoch == volume.epoch:
            return
        in_chunks = rig.store._history.version
        assert any(
            each.seq == before.seq
            or (each.data == before.data and in_chunks(volume.number, each.seq))
            for each in volume.snapshots.values()
        ), f"{volume.name} was restored, but what was before it has no name"
        self.add_restored(volume, info, pending.data, pending.time_ns)
        self.durable = len(self.log)

    # -- what a store shows

    def check_heads(self, rig: StoreRig) -> None:
        """All heads, whole."""
        assert rig.store.names() == self.names()
        for volume in self.volumes.values():
            self.check_head(rig, volume)

    def check_head(self, rig: StoreRig, volume: VolumeModel) -> None:
        assert rig.store.info(volume.name).seq == volume.seq
        found = rig.read(volume.name)
        if found != volume.head.data:
            raise AssertionError(
                f"{volume.name} at seq {volume.seq}: {describe(found, volume.head.data)}"
            )

    def check_snapshots(self, rig: StoreRig) -> None:
        """All snapshots: which there are, and their bytes (I7)."""
        for volume in self.volumes.values():
            infos = {info.name: info for info in rig.store.snapshots.all(volume.name)}
            assert set(infos) == set(volume.snapshots)
            for name, snapshot in volume.snapshots.items():
                info = infos[name]
                assert (info.seq, info.pinned) == (snapshot.seq, snapshot.pinned), (name, info)
                self.check_bytes(rig, f"{volume.name}@{name}", snapshot.data)

    def check_bytes(self, rig: StoreRig, ref: str, expected: bytes) -> None:
        close_idle(rig)
        found = rig.read_version(ref)
        if found != expected:
            raise AssertionError(f"{ref}: {describe(found, expected)}")


def close_idle(rig: StoreRig) -> None:
    """Close versions that nobody reads, now and then. A store does so after a while; time does not
    go on while all versions are looked at."""
    opened = rig.store.upkeep._parts.opened
    if len(opened.all()) > MAX_OPEN // 2:
        for device in opened.all():
            if not device._clients:
                opened._close(device)


def touched_chunks(extents: Sequence[tuple[int, int]], chunk_size: int) -> set[int]:
    """Chunks that extents (offset, length) reach into."""
    return {
        index
        for offset, length in extents
        for index in range(offset // chunk_size, -(-(offset + length) // chunk_size))
    }


def differing_chunks(old: bytes, new: bytes, chunk_size: int) -> set[int]:
    """Chunks whose bytes differ; beyond the end there are zeros."""
    size = -(-max(len(old), len(new)) // chunk_size) * chunk_size
    old, new = old.ljust(size, b"\0"), new.ljust(size, b"\0")
    return {
        start // chunk_size
        for start in range(0, size, chunk_size)
        if old[start : start + chunk_size] != new[start : start + chunk_size]
    }


def base_seq(versions: Sequence[VersionInfo], seq: int) -> int:
    """The newest version in chunks that is not after `seq`; 0 when there is none."""
    return max((v.seq for v in versions if v.commit is not None and v.seq <= seq), default=0)
