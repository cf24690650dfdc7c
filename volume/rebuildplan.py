"""What `meta/` must say, told by packs and journal, and by an old copy of it if there is one.

A volume is known from the copy, from HEAD records of the log (`volume.headrecord`), from commits in
packs, or at worst from nothing but its number in records. Its *head* is the newest state, of its
latest epoch, whose tree is whole and from which the log leads on without a gap; what the log has
beyond it is replayed when the store is opened. Everything else that is whole becomes a version.

    whole, and the copy or the log names it     the volume as it was, under its name
    not whole                                   `recovered-` and 8 digits of its uuid, and the
                                                report says what it lacks
    only packs tell of it: perhaps deleted      so named as well, its newest state that is whole
    the log does not tell, nothing is whole     left out: it was deleted, gc removes what is left

So whoever attaches by a name gets that volume as it was, or nothing; and what may be wanted is
there until somebody deletes it. Versions that had names which are lost get new ones, so that no
policy thins them out. All versions count as older than the place where the log goes on: single
writes before it cannot be gone back to.

Nothing is written here.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from volume import layout
from volume.checkpoint import Checkpoint
from volume.chunks import ChunkStore
from volume.commits import Commit
from volume.disk import Clock
from volume.errors import CorruptData, InvalidName
from volume.framing import framed
from volume.history import History
from volume.historyrows import (
    RoundRow,
    Settings,
    SnapshotRow,
    VersionRow,
    points_put,
    round_put,
    settings_put,
    snapshots_put,
    versions_put,
)
from volume.kv import MemoryKeyValue
from volume.laterkv import LaterKeyValue
from volume.layout import ZERO_ID, ChunkId
from volume.locate import NamedRoot, locate
from volume.manifest import Manifests
from volume.meta import Head, Meta, VolumeRecord, volume_put
from volume.model import DEFAULT_CHUNK_SIZE
from volume.points import PointRecord, PointVolume
from volume.rebuildlog import LoggedSegment, ScannedLog, runs_of
from volume.receive import KEY_PREFIX as RECEIVE_PREFIX
from volume.recovery import SEGMENT_HEADER_BYTES
from volume.referred import Tree, tree_put
from volume.refs import check_volume_name, format_time

RECOVERED = "recovered-"
_DROPPED = (
    layout.META_PREFIX_VOLUME,
    layout.META_PREFIX_NAME,
    layout.META_PREFIX_VERSION,
    layout.META_PREFIX_POINT,
    layout.META_PREFIX_SNAPSHOT,
    layout.META_PREFIX_DROPPED,
    layout.META_PREFIX_ROUND,
    layout.META_PREFIX_SETTINGS,
    RECEIVE_PREFIX,
    layout.META_KEY_SEALED,
    layout.META_KEY_INDEX_TRUST,
    layout.META_KEY_CHECKPOINT,
)
"""Of a copy: put anew, or not true any more."""

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class RebuiltVolume:
    """A volume as it will be."""

    name: str
    uuid: str
    size: int
    seq: int
    """Of its head, beyond which the log is replayed."""
    versions: int
    snapshots: int
    lacks: tuple[str, ...]
    """Why it is not whole; empty when it is."""
    known_by: str
    """"copy", "journal", "packs" or "records"."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What `meta/` must have, and what that means."""

    items: Mapping[bytes, bytes]
    volumes: tuple[RebuiltVolume, ...]
    deleted: tuple[str, ...]
    """Volumes of the copy that the log says were deleted since."""
    lost_snapshots: tuple[str, ...]
    """vol@name: their versions are not whole, or not there any more."""
    left_out: tuple[str, ...]
    """Volumes of which the log does not tell, although it does of others, and of which no state is
    whole."""


@dataclass(frozen=True, slots=True)
class _State:
    """A state of a volume that is in chunks."""

    epoch: int
    seq: int
    lsn: int
    """Of the HEAD record that tells of it, to tell the later of two; 0 for none."""
    commit_id: ChunkId
    root: ChunkId
    height: int
    size: int
    name: str
    time_ns: int
    block_size: int
    chunk_size: int

    @classmethod
    def of(cls, commit_id: ChunkId, commit: Commit, lsn: int = 0) -> "_State":
        return cls(
            *(commit.epoch, commit.last_seq, lsn, commit_id, commit.root, commit.height),
            *(commit.size, commit.name, commit.time_ns, commit.block_size, commit.chunk_size),
        )


@dataclass(slots=True)
class _Volume:
    uuid: bytes
    number: int
    known_by: str
    created_ns: int
    states: list[_State] = field(default_factory=list)
    based: VolumeRecord | None = None
    """As the copy has it."""
    rows: dict[int, VersionRow] = field(default_factory=dict)
    """Versions of the copy, by seq."""
    lacks: list[str] = field(default_factory=list)


class Planner:
    """One plan. `make` is called once."""

    def __init__(
        self,
        store_uuid: bytes,
        log: ScannedLog,
        chunks: ChunkStore,
        commits: Iterable[tuple[ChunkId, Commit]],
        base: Mapping[bytes, bytes] | None,
        clock: Clock,
        progress: Progress,
    ) -> None:
        """`commits`: all that are in packs; `base`: the rows of a copy. Errors of `make`:
        CorruptData (the copy, or that it is of another store), OSError."""
        self._clock = clock
        self._log = log
        self._chunks = chunks
        self._manifests = Manifests(chunks)
        self._progress = progress
        self._commits: dict[bytes, list[_State]] = defaultdict(list)
        for commit_id, commit in commits:
            self._commits[commit.volume_uuid].append(_State.of(commit_id, commit))
        self._kv = MemoryKeyValue(base or _empty(store_uuid, clock))
        self._meta = Meta(self._kv, clock)
        if self._meta.uuid != store_uuid:
            raise CorruptData(
                f"the copy of meta/ is of store {self._meta.uuid.hex()}, packs and journal are of "
                f"store {store_uuid.hex()}; give a copy of this one, or none"
            )
        later = LaterKeyValue(self._kv)
        self._points_lsn = later.points_lsn
        self._history = History(later, Settings(0, "", 0))
        self._next = max(self._meta.next_number, self._highest_number() + 1)
        self._names: set[str] = set()
        self._lost: list[str] = []

    def make(self) -> Plan:
        volumes, deleted = self._found()
        broken = self._broken(volumes)
        left_out = []
        for volume in volumes:
            name = f"{volume.states[-1].name} ({volume.uuid.hex()})"
            if not self._stays(volume, broken):
                left_out.append(name)
        volumes = [volume for volume in volumes if volume.states]
        records = {}
        for volume in volumes:
            records[volume.number] = self._record(volume, broken)
        self._name(volumes, records)
        start = self._start(records)
        lsn = 0 if start is None else start.first_lsn - 1
        puts: dict[bytes, bytes] = {}
        rebuilt = []
        for volume in volumes:
            record = records[volume.number]
            rows = self._versions(volume, record, broken, lsn)
            points, names = self._names_of(volume, record, rows)
            puts |= {
                **volume_put(record),
                **versions_put(rows.values()),
                **points_put(points),
                **snapshots_put(names.values()),
            }
            if volume.based is not None:
                puts |= settings_put(volume.number, self._history.settings(volume.number))
            rebuilt.append(
                RebuiltVolume(
                    *(record.name, volume.uuid.hex(), record.size, record.head.seq),
                    *(len(rows) + len(points), len(names)),
                    lacks=tuple(volume.lacks),
                    known_by=volume.known_by,
                )
            )
        puts |= self._node_rows(start) | self._tree_rows(start, records)
        self._kv.update({}, [key for key, _ in self._kv.items() if key.startswith(_DROPPED)])
        self._kv.update(puts)
        rebuilt.sort(key=lambda each: each.name)
        return Plan(
            *(self._kv.snapshot(), tuple(rebuilt), deleted, tuple(sorted(self._lost))),
            tuple(sorted(left_out)),
        )

    # -- which volumes there are

    def _highest_number(self) -> int:
        highest = 0
        for segment in self._log.segments:
            numbers = [*segment.runs, *(head.number for head in segment.heads)]
            numbers += [each.number for point in segment.points for each in point.volumes]
            highest = max([highest, *numbers])
        return highest

    def _found(self) -> tuple[list[_Volume], tuple[str, ...]]:
        """All volumes, those with names first; and the names of those that are gone."""
        by_number: dict[int, _Volume] = {}
        for record in self._meta.volumes():
            volume = _Volume(record.uuid, record.number, "copy", record.created_ns, based=record)
            head = record.head
            volume.states.append(
                _State(
                    *(record.epoch, head.seq, 0, head.commit, head.root, head.height),
                    *(record.size, record.name, self._clock.now_ns()),
                    *(record.block_size, record.chunk_size),
                )
            )
            volume.rows = {row.seq: row for row in self._history.versions(record.number)}
            by_number[record.number] = volume
        gone: set[int] = set()
        known: set[bytes] = set()
        for told in (told for segment in self._log.segments for told in segment.heads):
            if told.commit.size == 0:
                gone.add(told.number)
                known.add(told.commit.volume_uuid)
                continue
            volume = by_number.setdefault(
                told.number,
                _Volume(told.commit.volume_uuid, told.number, "journal", told.commit.time_ns),
            )
            if volume.uuid != told.commit.volume_uuid:
                raise CorruptData(
                    f"journal: record {told.lsn} has another volume of number {told.number} than "
                    "the copy of meta/ or a record before; give a copy of this store, or none"
                )
            volume.states.append(_State.of(told.commit_id, told.commit, told.lsn))
        deleted = sorted(by_number.pop(number).states[-1].name for number in gone & set(by_number))
        known |= {volume.uuid for volume in by_number.values()}
        volumes = [*by_number.values(), *self._of_records(set(by_number) | gone)]
        for uuid, states in sorted(self._commits.items()):
            if uuid not in known:
                volumes.append(_Volume(uuid, self._next, "packs", states[0].time_ns))
                self._next += 1
        for volume in volumes:
            volume.states += self._commits.get(volume.uuid, ())
        return volumes, tuple(deleted)

    def _of_records(self, known: set[int]) -> list[_Volume]:
        """Volumes that only their records tell of: those of releases that wrote no HEAD records."""
        numbers = {number for segment in self._log.segments for number in segment.runs}
        found = []
        for number in sorted(numbers - known):
            runs = list(runs_of(self._log.segments, number))
            size = -(-max(run.end for run in runs) // DEFAULT_CHUNK_SIZE) * DEFAULT_CHUNK_SIZE
            now_ns = self._clock.now_ns()
            volume = _Volume(self._clock.new_uuid(), number, "records", now_ns)
            volume.states.append(
                _State(
                    *(runs[-1].epoch, runs[-1].first - 1, 0, ZERO_ID, ZERO_ID, 1, size),
                    *(f"{RECOVERED}number-{number}", now_ns, 512, DEFAULT_CHUNK_SIZE),
                )
            )
            volume.lacks.append(
                "only its last writes are known, not what they were written over; the rest reads "
                "as zeros"
            )
            found.append(volume)
        return found

    # -- what each of them is

    def _broken(self, volumes: list[_Volume]) -> dict[tuple[ChunkId, int, int], int]:
        """(root, height, chunk size) of the trees that are not whole -> bytes that are missing."""
        roots: dict[str, tuple[ChunkId, int, int]] = {}
        sizes: dict[str, int] = {}
        for volume in volumes:
            chunk_size = volume.states[-1].chunk_size
            trees = [(state.root, state.height, state.size) for state in volume.states]
            trees += [(row.root, row.height, row.size) for row in volume.rows.values()]
            for root, height, size in trees:
                name = f"{root.hex()}/{height}/{chunk_size}"
                roots[name] = (root, height, chunk_size)
                sizes[name] = max(sizes.get(name, 0), size)

        def told() -> Iterator[NamedRoot]:
            for done, (name, tree) in enumerate(roots.items(), start=1):
                yield NamedRoot(name, tree[0], tree[1], sizes[name], tree[2])
                self._progress("versions", done, len(roots))

        broken: dict[tuple[ChunkId, int, int], int] = defaultdict(int)
        for location in locate(self._chunks, self._manifests, [], told(), absent=True):
            broken[roots[location.name]] += location.length
        return broken

    def _stays(self, volume: _Volume, broken: Mapping[tuple[ChunkId, int, int], int]) -> bool:
        """Whether there is anything to be had of a volume that the log does not name, although it
        names others. It drops the states of one that has only remains."""
        logged = {head.number for segment in self._log.segments for head in segment.heads}
        if volume.known_by == "records" or volume.number in logged:
            return True
        if volume.known_by == "copy" and not logged:
            return True  # of a release that wrote no such records
        chunk_size = volume.states[-1].chunk_size
        whole = [
            state for state in volume.states if (state.root, state.height, chunk_size) not in broken
        ]
        volume.states = whole if volume.known_by == "packs" or not whole else volume.states
        return bool(whole)

    def _record(
        self, volume: _Volume, broken: Mapping[tuple[ChunkId, int, int], int]
    ) -> VolumeRecord:
        """Its record, without a name; notes what it lacks."""
        epoch = max(state.epoch for state in volume.states)
        states = [state for state in volume.states if state.epoch == epoch]
        states.sort(key=lambda state: (state.seq, state.lsn), reverse=True)
        newest = states[0]
        lacks: list[list[str]] = []
        chosen = newest
        for state in states:
            missing = broken.get((state.root, state.height, newest.chunk_size), 0)
            why = [f"{missing} bytes of its chunks are in no pack"] if missing else []
            lacks.append(why + self._gaps(volume.number, state))
            if not lacks[-1]:
                chosen = state
                break
        else:
            volume.lacks += lacks[0]
        # Without its commit a tree is as good, only what was before it is not told.
        commit_id = chosen.commit_id if self._is_there(chosen.commit_id) else ZERO_ID
        head = Head(commit_id, chosen.root, chosen.height, chosen.seq)
        return VolumeRecord(
            volume.number,
            volume.uuid,
            newest.name,
            newest.size,
            newest.block_size,
            newest.chunk_size,
            volume.created_ns,
            epoch,
            head,
        )

    def _is_there(self, commit_id: ChunkId) -> bool:
        return commit_id == ZERO_ID or self._chunks.place(commit_id) is not None

    def _gaps(self, number: int, state: _State) -> list[str]:
        """Writes after `state` that the log should have and has not."""
        expected = state.seq + 1
        for run in runs_of(self._log.segments, number):
            if run.epoch < state.epoch or (run.epoch == state.epoch and run.last < expected):
                continue
            if run.epoch > state.epoch:
                return [f"seq {run.first} and later are over a version that nothing tells of"]
            if run.first > expected:
                return [f"the journal lacks its writes seq {expected} to {run.first - 1}"]
            expected = run.last + 1
        return []

    def _name(self, volumes: list[_Volume], records: dict[int, VolumeRecord]) -> None:
        """Give the names of `records` to those that may have them."""
        for volume in volumes:
            record = records[volume.number]
            name = record.name
            sure = not volume.lacks and volume.known_by != "packs"
            if not sure and volume.known_by != "records":
                name = f"{RECOVERED}{volume.uuid.hex()[:8]}"
            try:
                check_volume_name(name)
            except InvalidName:
                name = f"{RECOVERED}{volume.uuid.hex()[:8]}"
            if name in self._names:
                name = f"{RECOVERED}{volume.uuid.hex()}"
            self._names.add(name)
            records[volume.number] = replace(record, name=name)

    # -- its versions and their names

    def _versions(
        self,
        volume: _Volume,
        record: VolumeRecord,
        broken: Mapping[tuple[ChunkId, int, int], int],
        lsn: int,
    ) -> dict[int, VersionRow]:
        """Its head, and what else is whole."""
        head = record.head
        rows = {
            row.seq: replace(row, lsn=min(row.lsn, lsn))
            for row in volume.rows.values()
            if (row.root, row.height, record.chunk_size) not in broken
            and self._is_there(row.commit)
            and row.seq < head.seq
        }
        known_seq = -1 if volume.based is None else volume.based.head.seq
        for state in (state for state in volume.states if state.lsn == 0):
            whole = (state.root, state.height, record.chunk_size) not in broken
            if whole and self._is_there(state.commit_id) and known_seq < state.seq < head.seq:
                rows[state.seq] = _row(record.number, state, lsn)
        kept = volume.rows.get(head.seq)
        if kept is not None and kept.root == head.root:
            rows[head.seq] = replace(kept, lsn=min(kept.lsn, lsn), commit=head.commit)
        else:
            told = (state for state in volume.states if _is_head(state, record))
            newest = max(told, key=lambda state: state.lsn)
            rows[head.seq] = replace(_row(record.number, newest, lsn), commit=head.commit)
        return rows

    def _names_of(
        self, volume: _Volume, record: VolumeRecord, rows: Mapping[int, VersionRow]
    ) -> tuple[list[VersionRow], dict[str, SnapshotRow]]:
        """Points that the log leads to, and the names of versions and points."""
        number, head = volume.number, record.head
        points = {row.seq: row for row in self._history.points_of(number) if row.seq > head.seq}
        names = {row.name: row for row in self._history.snapshots(number)}
        for point, each in self._points(number):
            if each.seq > head.seq and each.epoch == record.epoch:
                points.setdefault(
                    each.seq,
                    VersionRow(number, each.seq, each.epoch, point.lsn, point.time_ns, each.size),
                )
            if point.name:
                names.setdefault(
                    point.name,
                    SnapshotRow(
                        *(number, point.name, each.seq, point.time_ns),
                        *(point.pinned, point.scheduled),
                    ),
                )
        kept = {}
        for name, row in names.items():
            if row.seq in rows or row.seq in points:
                kept[name] = row
            else:
                self._lost.append(f"{record.name}@{name}")
        named = {row.seq for row in kept.values()}
        for seq in sorted(set(rows) - named - set(volume.rows) - {head.seq}):
            time_ns = rows[seq].time_ns
            stamp = format_time(time_ns - time_ns % 1_000_000_000).replace(":", "").replace("-", "")
            name = f"{RECOVERED}{stamp}-{seq}"
            kept[name] = SnapshotRow(number, name, seq, time_ns)
        return list(points.values()), kept

    def _points(self, number: int) -> Iterable[tuple[PointRecord, PointVolume]]:
        """What POINT records that the copy has not seen say of a volume."""
        for segment in self._log.segments:
            for point in segment.points:
                if point.lsn > self._points_lsn:
                    for each in point.volumes:
                        if each.number == number:
                            yield point, each

    # -- the node

    def _start(self, records: Mapping[int, VolumeRecord]) -> LoggedSegment | None:
        """The segment from which on the log has what is in no head."""
        for segment in self._log.segments:
            for number, runs in segment.runs.items():
                record = records.get(number)
                if record is not None and any(
                    run.epoch >= record.epoch and run.last > record.head.seq for run in runs
                ):
                    return segment
        return self._log.segments[-1] if self._log.segments else None

    def _node_rows(self, start: LoggedSegment | None) -> dict[bytes, bytes]:
        epoch = max(self._meta.node_epoch, self._log.node_epoch)
        last_lsn = 0 if start is None else self._log.segments[-1].end_lsn - 1
        rows = {
            layout.META_KEY_NODE_EPOCH: framed(layout.META_U64.pack(epoch)),
            layout.META_KEY_NEXT_VOLUME: framed(layout.META_U32.pack(self._next)),
            layout.META_KEY_POINTS_LSN: framed(layout.META_U64.pack(last_lsn)),
        }
        if start is not None:
            at = (start.first_lsn, start.sequence, SEGMENT_HEADER_BYTES, start.chain)
            checkpoint = Checkpoint(*at, start.segment_bytes)
            rows[layout.META_KEY_CHECKPOINT] = framed(checkpoint.encode())
            rows |= round_put(RoundRow(*at, self._clock.now_ns()))
        return rows

    def _tree_rows(
        self, start: LoggedSegment | None, records: Mapping[int, VolumeRecord]
    ) -> dict[bytes, bytes]:
        """Trees that records name which are replayed."""
        rows: dict[bytes, bytes] = {}
        for segment in self._log.segments:
            if start is None or segment.sequence < start.sequence:
                continue
            for number, root, height in segment.trees:
                record = records.get(number)
                if record is not None and root != ZERO_ID:
                    rows |= tree_put(Tree(root, height, record.chunk_size))
        return rows


def _is_head(state: _State, record: VolumeRecord) -> bool:
    head = record.head
    return (state.epoch, state.seq, state.root) == (record.epoch, head.seq, head.root)


def _row(number: int, state: _State, lsn: int) -> VersionRow:
    return VersionRow(
        *(number, state.seq, state.epoch, lsn, state.time_ns, state.size, 0),
        *(state.commit_id, state.root, state.height),
    )


def _empty(store_uuid: bytes, clock: Clock) -> dict[bytes, bytes]:
    store = layout.META_STORE.pack(
        layout.META_MAGIC, layout.META_VERSION, store_uuid, clock.now_ns()
    )
    return {layout.META_KEY_STORE: framed(store)}
