"""Replica: a volume of this store as one node's part of a volume that several nodes have.

The node that clients write to is its primary; the others append what that one has appended, record
by record, with the same epoch and seq. What a replica is beside a volume is one row of `meta/`:

    promised   the epoch that it answers to: it takes nothing in the name of an earlier one, ever
    begins     (epoch, seq) for each epoch that it has seen begin, newest last: records behind seq,
               up to where the next one begins, were written in that epoch

So the row and the volume's newest seq say which records are here, and two replicas can find out
where they part (transport/group/chain.py). Order on disk: the journal is synced before a promise or
the beginning of an epoch is noted, and both are noted, synced, before they are answered; the first
record of an epoch is appended after that. After any crash the newest seq is not before the last
beginning, therefore.

Records that turn out to be of no epoch's history are *undone*: the volume goes back to a seq and
its next record has the next one. Their bytes stay in the log, in an epoch that no replay of the
volume takes any more: the volume's record in `meta/` has the lowest epoch that counts
(`VolumeRecord.epoch`), those in the journal the one that they were written in.

One that has too little for the log to make up for gets a stream of all of the volume, of what it
lacks of it (`volume.replicacopy`), into a volume of its own, whose tree then becomes the replica's
head (`adopt`). So does one that cannot go on because of damage: its volume is not destaged
(`volume.destager`), so it can go back to no state that is not in chunks, and in the end has no
journal space for more. What it says then is what it says of a state that is not kept any more
(NoSuchVersion), once the damage has had time to go by itself; the new tree is not over what is
damaged, and the old one's frozen map goes with it.

A replica is shut to clients unless this node is its primary (`serve`), and after each start. The
row is lost with `meta/`, and then this node is no member any more: it cannot know what it promised.

Every method may wait for disks; any thread may call it, one at a time has its turn.
"""

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from errno import EAGAIN, EBADMSG, EFBIG, EINVAL, ENOMSG, ENOSPC, EPROTO, ESTALE
from os import strerror
from typing import Final

from typing_extensions import Buffer

from native import TAP_MIN_BUFFER, Journal
from volume import namedstates
from volume.catalog import Catalog, check_sizes
from volume.destager import HeldUp
from volume.disk import Clock
from volume.errors import (
    BadRecords,
    CorruptData,
    CorruptJournal,
    InvalidSize,
    MissingRecords,
    NoSuchVersion,
    OtherRecords,
    ReplicaError,
    StaleEpoch,
    StoreSealed,
)
from volume.gate import Gate
from volume.history import (
    History,
    SnapshotRow,
    VersionRow,
    state_key,
    state_put,
    versions_put,
)
from volume.layout import ChunkId
from volume.namedstates import NamedState
from volume.noted import Notes
from volume.notes import Note, Source
from volume.notes import decode as decode_note
from volume.past import PastVersions
from volume.receive import Submit
from volume.refs import copy_name
from volume.replicacopy import Copies, Heard, Landing, Step, Target
from volume.replicarow import Row, row_name
from volume.scheduler import Scheduler
from volume.seal import Seal
from volume.transfers import Transfers
from volume.versions import Versions
from volume.volume import Volume

log = logging.getLogger(__name__)

MAX_VOLUME_EPOCH: Final = (1 << 32) - 1  # of a record; those of the MetaStore may be larger
TAKE_BYTES: Final = 4 << 20  # as much as a frame of a message may have
MAX_NOTES: Final = 256  # of one request: what follows is taken with the next
PATIENCE_S: Final = 30.0
"""With damage: the disk may read it yet, or another node give it."""
_NOT_NOW: Final = frozenset((EAGAIN, ENOSPC))  # the rest is taken later
_BAD: Final = frozenset((EINVAL, EFBIG, EPROTO, EBADMSG))


@dataclass(frozen=True, slots=True)
class Records:
    """Records of one epoch that lie behind each other, as they cross the wire."""

    epoch: int
    first_seq: int
    """0: there are none."""
    last_seq: int
    more: bool
    """Whether there are others behind the last, of whatever epoch."""
    data: bytes


@dataclass(frozen=True, slots=True)
class Taken:
    """What the tap had: records `first` to `last` (0: none) of the epoch in which this node serves,
    as they cross the wire. `lost`: it was too far behind; it has begun again behind `last`."""

    first: int
    last: int
    data: bytes
    lost: bool


@dataclass(frozen=True, slots=True)
class Syncing:
    """Records up to `seq` of a volume, which a sync that begins now makes durable."""

    volume: Volume
    seq: int


@dataclass(frozen=True, slots=True)
class ReplicaParts:
    """What replicas work with; of the store."""

    catalog: Catalog
    history: History
    journal: Journal
    seal: Seal
    notes: Notes
    past: PastVersions
    versions: Versions
    clock: Clock
    scheduler: Scheduler
    transfers: Transfers
    between_rounds: Submit
    """Run a call while no destage round is under way."""
    round_stands: Callable[[], bool]
    """Whether a round has failed and is to be tried again."""
    held_up: Callable[[], Sequence[HeldUp]]
    """Volumes that rounds leave out, as they are damaged."""
    starving: Callable[[], None]
    """Somebody waits for journal space."""
    dropped: Callable[[], None]
    """Versions are gone."""


class Replica:
    """See the module. ReplicaError: nothing was done; StoreSealed, OSError: the disk failed."""

    def __init__(self, parts: ReplicaParts, volume: Volume, row: Row) -> None:
        self._parts = parts
        self._volume = volume
        self._row = row
        self._lock = threading.RLock()
        self._answered_ns = 0
        self._hold(self._seq())  # the store has synced what it replayed
        self._serving: int | None = None
        self._room: bytearray | None = None  # for what is taken
        self._little_room: bytearray | None = None
        self._copies = Copies(parts.transfers.offer)
        self._landing = self._new_landing()
        self.fenced: Callable[[int], None] = lambda _epoch: None
        """Told, before it is promised, of an epoch that ends the one in which this node serves."""
        self._gate = self._shut_out()
        self._set_epoch()

    def _new_landing(self) -> Landing:
        parts = self._parts
        return Landing(
            *(self.name, self._copy_name, self._volume.record.chunk_size),
            *(parts.transfers, parts.catalog),
            own=lambda: f"{self.name}@seq:{self._seq()}",
        )

    def rename(self, name: str) -> None:
        """The volume has another name on all nodes; durable on return. A copy that comes begins
        anew. VolumeExists: a volume of this node alone has that name."""
        with self._lock:
            self._landing.drop()
            self._parts.catalog.rename_replica(self._volume, name)
            self._landing = self._new_landing()

    # -- what there is

    @property
    def uuid(self) -> bytes:
        return self._volume.record.uuid

    @property
    def name(self) -> str:
        return self._volume.record.name

    @property
    def volume(self) -> Volume:
        """It is another object after `undo`."""
        return self._volume

    @property
    def snapshot_count(self) -> int:
        """Of the names that are here; the primary has them all."""
        return self._parts.history.snapshot_counts.get(self._volume.record.number, 0)

    @property
    def promised(self) -> int:
        return self._row.promised

    @property
    def held(self) -> tuple[int, int]:
        """Seq of the newest record in the journal file, and of the newest synced one."""
        with self._lock:
            return self._seq(), self._durable

    @property
    def newest(self) -> int:
        """Seq of the newest record in the journal file. Waits for nobody."""
        return self._seq()

    @property
    def start(self) -> int:
        """Records up to this seq are of epochs that are not told any more."""
        return self._row.begins[0][1]

    def ends(self) -> tuple[tuple[int, int], ...]:
        """(epoch, seq of its last record), oldest first, of the epochs that are told."""
        with self._lock:
            begins = self._row.begins
            seqs = [*(seq for _, seq in begins[1:]), self._seq()]
            return tuple((epoch, seq) for (epoch, _), seq in zip(begins, seqs, strict=True))

    @property
    def serving(self) -> int | None:
        """The epoch in which this node is the primary."""
        return self._serving

    # -- epochs

    def promise(self, epoch: int) -> None:
        """Take nothing in the name of an epoch before this one. The journal is synced and the
        promise durable on return. Who served in an earlier one does not any more. StaleEpoch."""
        with self._lock:
            self._check(epoch)
            self._not_plain()
            if self._serving is not None and self._serving < epoch:
                self._stop_serving(epoch)
            self._sync()
            if epoch > self._row.promised:
                self._keep(Row(epoch, self._row.begins))

    def check(self, epoch: int) -> None:
        """Whether that is the epoch that was promised. StaleEpoch, OtherRecords."""
        with self._lock:
            self._check_promised(epoch)

    def begin(self, epoch: int, seq: int) -> None:
        """Note that `epoch`, which was promised, begins behind record `seq`, the newest one;
        durable on return. Again is no harm. StaleEpoch, MissingRecords, OtherRecords."""
        with self._lock:
            self._check_promised(epoch)
            self._begin(epoch, seq)

    @property
    def gate(self) -> Gate:
        """Of `volume`: another one after `undo`."""
        return self._gate

    def serve(self, epoch: int, *, strict: bool = False, timeout_s: float = 30.0) -> None:
        """Let clients in: this node is the primary of `epoch`, which has begun here and on W
        nodes. `timeout_s`: so long a request waits for them at most."""
        with self._lock:
            self._check_promised(epoch)
            if self._row.begins[-1][0] != epoch:
                raise OtherRecords(self.name, f"epoch {epoch} has not begun here")
            self._not_plain()
            if self._landing.left:
                self._landing.drop()
            self._serving = epoch
            self._gate.open(self._seq(), strict=strict, timeout_s=timeout_s)

    def shut(self) -> None:
        """Let no client in any more."""
        with self._lock:
            self._serving = None
            self._gate.close()
            self._volume.end_turn()
        self._copies.end()

    # -- while this node is the primary

    def tap(self, limit_bytes: int) -> tuple[int, int]:
        """Have what clients append noted, to be taken: a descriptor that is readable when there is
        something, and the seq behind which it begins. Before `serve`, so that nothing is missed."""
        with self._lock:
            self._volume.core.untap()
            return self._volume.core.tap(limit_bytes)

    def untap(self) -> None:
        """Note nothing any more. Not while `take` is under way."""
        self._volume.core.untap()

    def take(self) -> Taken:
        """What was noted, as much as one message has. For one thread at a time; may wait for the
        disk. OSError: the journal does not hold what was written."""
        if self._room is None:
            self._room = bytearray(TAKE_BYTES)
        return self._take(self._room, nowait=False)

    def take_at_once(self) -> Taken | None:
        """As `take`, of what is in memory, and not for long; None: it would wait."""
        if self._little_room is None:
            self._little_room = bytearray(TAP_MIN_BUFFER)
        try:
            return self._take(self._little_room, nowait=True)
        except BlockingIOError:
            return None

    def _take(self, room: bytearray, *, nowait: bool) -> Taken:
        core = self._volume.core
        length, first, last, lost = core.take(room, nowait)
        if lost:
            return Taken(0, core.tap_again(), b"", True)
        return Taken(first, last, bytes(memoryview(room)[:length]), False)

    def allow(self, acked: int, durable: int) -> None:
        """W nodes have this much in their journals, and on their disks: answers may go out."""
        self._gate.advance(acked, durable)

    def reads_until(self, until_ns: int) -> None:
        """Reads may be answered until then, CLOCK_BOOTTIME."""
        self._gate.lease(until_ns)

    # -- records

    def append(
        self,
        epoch: int,
        written: int,
        first: int,
        last: int,
        data: Buffer,
        *,
        may_wait: bool = True,
    ) -> bool:
        """Append records of another node, `first` to `last`, written in epoch `written`, in the
        name of `epoch`, which was promised. Those that are here are left out.

        On return they are in the journal file, but for those that it has no room for now: `held`
        tells. `data` is checked byte for byte. False, only where it may not wait: to append them,
        or what is left of them, something has to be noted, synced. StaleEpoch, MissingRecords,
        OtherRecords, BadRecords; NoSuchVersion: there will be no room, or no state that one of them
        goes back to, unless all of the volume is sent."""
        with self._lock:
            self._check_promised(epoch)
            if not first <= last or written > epoch:
                raise BadRecords(self.name, f"{first} to {last} of epoch {written} in {epoch}")
            have = self._seq()
            if first > have + 1:
                raise MissingRecords(self.name, have, first)
            if self._serving is not None:
                raise OtherRecords(self.name, "this node is the one that appends")
            if written > self._row.begins[-1][0]:
                if not may_wait:
                    return False
                self._begin(written, first - 1)
            self._check_range(written, first, last)
            if last <= have:
                return True
            if self._landing.left:  # the log leads to it after all
                if not may_wait:
                    return False
                self._landing.drop()
            now_ns = self._parts.clock.now_ns()
            bytes_of_them = memoryview(data).cast("B")
            error, seq = self._append(written, bytes_of_them, now_ns, notes=may_wait)
            if error == ENOMSG and not may_wait:
                return False
            if error in _BAD:
                raise BadRecords(self.name, strerror(error))
            if error == ESTALE:  # what was undone here was of that epoch
                raise OtherRecords(self.name, f"epoch {written} does not go on here")
            if error in _NOT_NOW:
                self._parts.starving()
                if seq <= have and self._is_damaged and self._has_all_names:
                    raise self._beyond(f"seq:{first}", "there is no journal space")
            elif error:
                raise OSError(error, strerror(error))
            elif seq < last:
                raise BadRecords(self.name, f"end at {seq}, before {last}")
            else:
                self._plain(written)
            return True

    def append_plain(
        self, epoch: int, written: int, first: int, last: int, data: Buffer, boot_ns: int
    ) -> int | None:
        """As `append`, where nothing is to be decided; the seq up to which records are durable.
        None: nothing was refused, ask `append`. Any thread, without its turn: what needs one ends
        this first. What is asked of it in C, natively, is the same (`native.answer_append`)."""
        now_ns = self._parts.clock.now_ns()
        core = self._volume.core
        return core.append_plain(epoch, written, first, last, data, now_ns, boot_ns)

    @property
    def answered_ns(self) -> int:
        """When `append_plain` was last answered, CLOCK_BOOTTIME; 0: never."""
        return max(self._answered_ns, self._volume.core.answered_ns())

    def _append(
        self, written: int, data: memoryview, now_ns: int, *, notes: bool
    ) -> tuple[int, int]:
        """Append records, and do what NOTEs among them say; (errno or 0, newest seq). ENOMSG: one
        of them is next, where nothing is to be done for `notes`."""
        for _ in range(MAX_NOTES):
            error, seq, note = self._volume.core.append_records(written, data, now_ns)
            if error != ENOMSG or note is None or not notes:
                return error, seq
            self._not_plain()  # nothing comes behind the NOTE before what it says is done
            _, noted, at, payload = note
            try:
                told = decode_note(f"record {noted} of another node", payload)
                record = self._volume.record
                check_sizes(told.size, record.block_size, record.chunk_size)
            except (CorruptJournal, InvalidSize) as unknown:
                raise BadRecords(self.name, str(unknown)) from unknown
            data = data[at:]
            if told.source is None:
                error, seq = self._parts.notes.take(self._volume, written, data)
            else:
                error, seq = self._go_back(written, told, told.source, data)
            if error:
                return error, seq
        return EAGAIN, self._seq()

    @property
    def _is_damaged(self) -> bool:
        """Whether damage has kept the volume from being destaged for so long that it will stay."""
        if not self._volume.core.state()[6]:
            return False  # nothing is frozen: it is another object now, perhaps
        parts, number = self._parts, self._volume.record.number
        longest = parts.clock.monotonic() - PATIENCE_S
        return any(each.number == number and each.since <= longest for each in parts.held_up())

    @property
    def _has_all_names(self) -> bool:
        """Whether every state that has a name is in chunks: a copy that goes on from what is here
        brings none of those again."""
        history, number = self._parts.history, self._volume.record.number
        rows = history.snapshots(number)
        return all(history.version(number, row.seq) is not None for row in rows)

    def _beyond(self, ref: str, why: object) -> NoSuchVersion:
        return NoSuchVersion(self.name, ref, f"it is damaged here, all of it is needed: {why}")

    @contextmanager
    def _settled(self, seq: int) -> Iterator[VersionRow]:
        """The state at `seq`, in chunks. NoSuchVersion also where damage is in its way, and
        stays."""
        ref = f"seq:{seq}"
        with ExitStack() as held:
            try:
                _, version = held.enter_context(self._parts.versions.settled(f"{self.name}@{ref}"))
            except CorruptData as error:
                if self._is_damaged:
                    raise self._beyond(ref, error) from error
                raise
            yield version

    def _go_back(
        self, written: int, told: Note, source: Source, data: memoryview
    ) -> tuple[int, int]:
        """Append a RESTORE and do what it says, once the state that it names is in chunks here.
        NoSuchVersion: it is not here, so all of the volume has to be sent."""
        parts, ref = self._parts, f"seq:{told.up_to}"
        names = [each.name for each in parts.catalog.all() if each.uuid == source.volume]
        if not names:
            raise NoSuchVersion(self.name, ref, f"volume {source.volume.hex()} is not here")

        def take() -> tuple[int, int]:
            self._check_rounds()
            if self._volume.core.state()[6]:  # it is stuck, on damage
                raise ReplicaError(
                    f"volume {self.name}: it cannot go back while it is not destaged"
                )
            return parts.notes.take(self._volume, written, data, told)

        with parts.versions.settled(f"{names[0]}@{ref}"):
            return parts.between_rounds(take)

    @contextmanager
    def at_once(self) -> Iterator[bool]:
        """For a thread that must not wait: whether it has its turn. With it `check`, `held` and
        an `append` that may not wait wait for nothing but the page cache."""
        mine = self._lock.acquire(blocking=False)
        try:
            yield mine
        finally:
            if mine:
                self._lock.release()

    def sync(self) -> None:
        """Make every record that is here durable. Records are appended meanwhile: whoever sends
        them does not wait for the disk."""
        with self._lock:
            syncing = self._syncing()
            if syncing.seq <= self._durable:
                return
        self._parts.seal.sync_journal()
        with self._lock:
            self._synced(syncing)

    def sync_begins(self) -> Syncing | None:
        """For a thread that must not wait: what a sync of the journal that begins after this makes
        durable. None: give `sync` to a thread that may wait."""
        with self.at_once() as mine, suppress(StoreSealed):
            return self._syncing() if mine else None
        return None

    def sync_ended(self, syncing: Syncing) -> bool:
        """That sync has ended well. False: nothing is noted; as above."""
        with self.at_once() as mine:
            if mine:
                self._synced(syncing)
            return mine

    def _syncing(self) -> Syncing:
        self._parts.seal.check()
        return Syncing(self._volume, self._seq())

    def _synced(self, syncing: Syncing) -> None:
        # What was undone meanwhile has gone with its volume: the seq is of other records now.
        if syncing.volume is self._volume:
            self._hold(max(self._durable, syncing.seq))

    def read(self, epoch: int, after: int, limit: int) -> Records:
        """Records behind `after`, which was written in `epoch`, in at most `limit` bytes
        (TAP_MIN_BUFFER or more); all of one epoch.

        Without any where the log does not reach back to it any more, and there are more.
        OtherRecords: there is no such record here."""
        if limit < TAP_MIN_BUFFER:
            raise BadRecords(self.name, f"{limit} bytes are not enough for one of any length")
        with self._lock:
            ends = self.ends()
            self._check_point(epoch, after)
            newest = self._seq()
            written, last = next(
                ((each, end) for each, end in ends if end > after and each >= epoch), ends[-1]
            )
            number = self._volume.record.number
        if after >= newest:
            return Records(ends[-1][0], 0, 0, False, b"")
        try:
            data, seq = self._parts.past.records(number, written, after, last, limit)
        except NoSuchVersion:
            data, seq = b"", after
        if not data:
            return Records(written, 0, 0, True, b"")
        return Records(written, after + 1, seq, seq < newest, data)

    # -- going back

    def undo(self, epoch: int, keep: tuple[int, int]) -> None:
        """Go back to record `keep`, (epoch, seq), in the name of `epoch`, which was promised: what
        is behind it never was. Durable on return, all or nothing.

        StaleEpoch; OtherRecords: it has no such record; NoSuchVersion: it cannot be gone back to
        any more, and all of the volume has to be sent; CorruptData: likewise, perhaps."""
        with self._lock:
            self._check_idle(epoch)
            kept_epoch, seq = keep
            self._check_point(kept_epoch, seq)
            begins = tuple(each for each in self._row.begins if each[0] <= kept_epoch)
            row = Row(self._row.promised, begins)
            if seq == self._seq():  # epochs that have begun behind it have no record
                self._keep(row)
                self._set_epoch()
                return
            floor = 1 + max(  # above all that is undone, not above what comes
                begin[0]
                for begin, (_, end) in zip(self._row.begins, self.ends(), strict=True)
                if end > max(begin[1], seq)
            )
            with self._settled(seq) as version:
                self._parts.between_rounds(lambda: self._rewind(version, floor, row))

    def _rewind(self, version: VersionRow, floor: int, row: Row) -> None:
        self._check_rounds()
        put = state_put(row_name(self.uuid), row.encode())
        self._volume = self._parts.catalog.rewind(self._volume, version, floor, put)
        self._row = row
        self._gate = self._shut_out()
        self._hold(self._seq())

    # -- chunks of this store

    def known(self, chunk_ids: Sequence[ChunkId]) -> list[bool]:
        """Which of these data chunks the store has."""
        size = self._volume.record.chunk_size
        lacking = set(self._parts.transfers.lacking(chunk_ids, size))
        return [chunk_id not in lacking for chunk_id in chunk_ids]

    def chunk(self, chunk_id: ChunkId) -> bytes | None:
        """The bytes of a chunk, which hash to its id; None: they are not in this store.
        CorruptData, UnknownFormat, OSError."""
        return self._parts.transfers.chunk(chunk_id)

    # -- all of it

    def copy(self, to: str, at: int, limit: int, heard: Heard = None, after: int = 0) -> Step:
        """The next step of a stream of the volume for node `to`: a piece, from byte `at` on, of at
        most `limit` bytes, or a question. `heard` what that node has said: where it says what the
        stream is to be based on, one is begun: of the oldest state behind seq `after` that has a
        name, or of the volume as it is now. Waits for a destage
        round then, and not for `append` and its like. The last piece may be asked for again.
        OtherRecords: it has to begin anew."""
        return self._copies.step(self.name, to, at, limit, heard, lambda: self._target(after))

    def end_copy(self, to: str) -> None:
        """Nobody goes on with the stream for node `to`. Waits for nobody."""
        self._copies.end_of(to)

    def _target(self, after: int) -> Target:
        parts = self._parts
        with self._lock, parts.catalog.lock, parts.catalog.naming:
            seq, start, ends = self._seq(), self.start, self.ends()
            number = self._volume.record.number
            names = namedstates.names_at(parts.history, number, seq)
        earlier = next((row.seq for row in names if row.seq > after), None)
        if earlier is not None:
            return Target(earlier, start, ends, None)
        states = []
        for row in names:
            version = parts.history.version(number, row.seq)
            if version is None:
                with parts.versions.settled(f"{self.name}@seq:{row.seq}") as (_, found):
                    version = found
            states.append(
                NamedState(
                    *(row.name, row.seq, row.created_ns, row.pinned, row.scheduled),
                    *(version.time_ns, version.size, version.root, version.height),
                )
            )
        data = namedstates.encode(states)
        if len(data) > namedstates.MAX_BYTES:
            raise ReplicaError(
                f"volume {self.name}: its {len(states)} snapshots are too many to be copied to "
                "another node; delete some of them"
            )
        return Target(seq, start, ends, data)

    def begin_copy(self, epoch: int) -> ChunkId:
        """Such a stream is to come, in the name of `epoch`, which was promised: the commit that it
        may be a difference to, ZERO_ID for none. Waits for a destage round."""
        with self._lock:
            self._check_idle(epoch)
            return self._landing.begin()

    def unlike(
        self, epoch: int, nodes: Sequence[tuple[int, int, ChunkId]]
    ) -> tuple[ChunkId, tuple[int, ...]]:
        """That commit, and which of these nodes, (end, rank, id), it does not have at their
        places."""
        with self._lock:
            self._check_idle(epoch)
            return self._landing.base, tuple(self._landing.unlike(nodes))

    def lacking(self, epoch: int, chunk_ids: Sequence[ChunkId]) -> list[ChunkId]:
        """Those of the chunks that are not in this store."""
        with self._lock:
            self._check_idle(epoch)
            return self._landing.lacking(chunk_ids)

    def take_copy(self, epoch: int, at: int, data: Buffer, *, last: bool) -> int:
        """Take a piece of such a stream, in the name of `epoch`, which was promised; how much of it
        is here. `at` 0 begins one. With `last` it is stored, durably, on return."""
        with self._lock:
            self._check_idle(epoch)
            taken = self._landing.take(at, data, last=last)
            if last and self._landing.landed:
                self._keep_landed()
            return taken

    def _keep_landed(self) -> None:
        """Nothing thins out what has landed before it is adopted: it has its tree's id as name."""
        catalog = self._parts.catalog
        record = catalog.named(self._copy_name).record
        name = record.head.root.hex()
        if self._parts.history.snapshot(record.number, name) is None:
            with catalog.lock:
                catalog.add_points([self._copy_name], name)

    def adopt(
        self,
        epoch: int,
        keep: int,
        start: int,
        ends: tuple[tuple[int, int], ...],
        names: Buffer = b"",
    ) -> None:
        """Make what came as a stream the volume, at the end of that chain, in the name of `epoch`,
        in which it ends and which was promised. `keep`: all that is here is of the chain, up to
        that seq, and versions of it may stay; 0:
        nothing is known to be. `names`: of all snapshots that there are, whose states are here or
        have come as well. Durable on return, all or nothing. StaleEpoch, OtherRecords."""
        with self._lock:
            self._check_idle(epoch)
            if not ends or ends[-1][0] != epoch or keep > ends[-1][1]:
                raise OtherRecords(self.name, f"{ends} is not a chain of epoch {epoch}")
            seqs = (start, *(seq for _, seq in ends))
            begins = tuple((each, seq) for (each, _), seq in zip(ends, seqs, strict=False))
            row = Row(self._row.promised, begins)
            if row.begins == self._row.begins and self._seq() == ends[-1][1]:
                if self._landing.left:
                    self._landing.drop()
                return  # again
            if not self._landing.landed:
                raise OtherRecords(self.name, "no stream has come that it could be")
            if keep and keep != self._seq():
                raise OtherRecords(self.name, f"records up to {self._seq()} are here, not {keep}")
            try:
                states = namedstates.decode(names)
            except ValueError as error:
                raise OtherRecords(self.name, f"a list of names {error}") from error
            self._parts.between_rounds(lambda: self._adopt(ends[-1], keep or -1, row, states))
            self._landing.drop()

    def _adopt(self, end: tuple[int, int], keep: int, row: Row, states: list[NamedState]) -> None:
        parts = self._parts
        self._check_rounds()
        source = parts.catalog.named(self._copy_name).record
        epoch, seq = end
        version = VersionRow(
            *(self._volume.record.number, seq, epoch, parts.journal.state()[0]),
            *(parts.clock.now_ns(), source.size, 0),
            *(source.head.commit, source.head.root, source.head.height),
        )
        versions, names = self._named(states, version, keep)
        put = {**versions_put(versions), **state_put(row_name(self.uuid), row.encode())}
        self._volume = parts.catalog.rewind(self._volume, version, epoch, put, keep, names)
        self._row = row
        self._gate = self._shut_out()
        self._set_epoch()
        self._hold(self._seq())
        log.info("all of the volume came from another node volume=%s seq=%d", self.name, seq)

    def _named(
        self, states: list[NamedState], head: VersionRow, keep: int
    ) -> tuple[list[VersionRow], list[SnapshotRow]]:
        """Versions that came as streams for these names, and the names that there are then."""
        history, number = self._parts.history, head.number
        copy = self._parts.catalog.named(self._copy_name).record.number
        versions: dict[int, VersionRow] = {}
        names = []
        for each in states:
            if each.seq > head.seq:
                what = f"{each.name} names record {each.seq}, behind the last one"
                raise OtherRecords(self.name, what)
            here = each.seq <= keep and (
                history.version(number, each.seq) or history.point(number, each.seq)
            )
            landed = history.snapshot(copy, each.root.hex())
            found = None if landed is None else history.version(copy, landed.seq)
            if not here and each.seq != head.seq:
                if found is None or found.height != each.height:
                    if each.seq > keep:
                        what = f"what {each.name} names has not come"
                        raise OtherRecords(self.name, what)
                    log.error("snapshot is lost snapshot=%s@%s", self.name, each.name)
                    continue
                versions[each.seq] = replace(
                    head,
                    seq=each.seq,
                    time_ns=each.time_ns,
                    size=each.size,
                    commit=found.commit,
                    root=found.root,
                    height=found.height,
                )
            names.append(each.row(number))
        return list(versions.values()), names

    @property
    def _copy_name(self) -> str:
        """Of the volume that a stream lands in."""
        return copy_name(self.name, self.uuid)

    def remove(self) -> None:
        """As `Replicas.remove`."""
        with self._lock:
            self._not_plain()
            self._serving = None
            self._gate.close()
            self._landing.drop()
            key = state_key(row_name(self.uuid))
            self._parts.catalog.delete_replica(self._volume, [key])
        self._parts.dropped()

    # -- inside; the lock is held

    def _check_rounds(self) -> None:
        if self._parts.round_stands():
            raise ReplicaError(
                f"volume {self.name}: nothing can be undone before a destage round gets through; "
                "try again"
            )

    def _shut_out(self) -> Gate:
        gate = Gate(self._volume.core, self._parts.scheduler, self._parts.clock)
        self._volume.gate = gate
        return gate

    def _hold(self, durable: int) -> None:
        self._durable = durable
        self._volume.core.tell_durable(durable)

    def _plain(self, written: int) -> None:
        """Records that follow those of that epoch are appended without a question, until
        `_not_plain`: nothing is to be noted for them, and nobody else is at work on the volume."""
        newest = self._row.begins[-1][0]
        if written == newest >= self._volume.record.epoch and not self._landing.left:
            self._volume.core.take_plain(self._row.promised)

    def _not_plain(self) -> None:
        """Before whatever else changes the volume, or its row: no record is appended now but by
        `append`."""
        core = self._volume.core
        core.take_plain(0)
        self._answered_ns = max(self._answered_ns, core.answered_ns())

    def _seq(self) -> int:
        return self._volume.core.state()[0]

    def _set_epoch(self) -> None:
        """Records that are appended from here on are of the newest epoch that has begun."""
        epoch = self._row.begins[-1][0]
        if epoch >= self._volume.record.epoch:
            self._volume.core.begin_epoch(epoch)

    def _check(self, epoch: int) -> None:
        if epoch < self._row.promised:
            raise StaleEpoch(self.name, epoch, self._row.promised)
        if epoch > MAX_VOLUME_EPOCH:
            raise OtherRecords(self.name, f"epoch {epoch} does not fit into a record")

    def _check_promised(self, epoch: int) -> None:
        self._check(epoch)
        if epoch != self._row.promised:
            raise OtherRecords(self.name, f"epoch {epoch} was not promised")

    def _span(self, epoch: int) -> tuple[int, int]:
        """Records behind the first seq, up to the second, were written in that epoch."""
        begins = self._row.begins
        for at, (each, begin) in enumerate(begins):
            if each == epoch:
                return begin, begins[at + 1][1] if at + 1 < len(begins) else self._seq()
        told = ", ".join(str(each) for each, _ in begins)
        raise OtherRecords(self.name, f"epoch {epoch} is not one of those here ({told})")

    def _check_point(self, epoch: int, seq: int) -> None:
        begin, end = self._span(epoch)
        if not begin <= seq <= end:
            raise OtherRecords(self.name, f"epoch {epoch} went from {begin} to {end}, not {seq}")

    def _check_range(self, epoch: int, first: int, last: int) -> None:
        """Records from `first` on are those of that epoch here, and the others up to `last` can go
        on from them."""
        begin, end = self._span(epoch)
        newest = epoch == self._row.begins[-1][0]
        if first <= begin or (last > end and not newest):
            what = f"epoch {epoch} went from {begin} to {end}, not {first} to {last}"
            raise OtherRecords(self.name, what)

    def _check_idle(self, epoch: int) -> None:
        """That was promised, and this node is not the one that writes; what is done to the volume
        now is more than to append."""
        self._check_promised(epoch)
        self._not_plain()
        if self._serving is not None:
            raise OtherRecords(self.name, "this node serves it")

    def _begin(self, epoch: int, seq: int) -> None:
        last, begun = self._row.begins[-1]
        if epoch == last:
            if seq != begun:
                raise OtherRecords(self.name, f"epoch {epoch} began at {begun}, not at {seq}")
            return
        self._not_plain()
        have = self._seq()
        if epoch < last or epoch < self._volume.record.epoch:
            raise OtherRecords(self.name, f"epoch {last} has begun, and {epoch} is before it")
        if seq > have:
            raise MissingRecords(self.name, have, seq + 1)
        if seq < have:
            raise OtherRecords(self.name, f"epoch {epoch} begins at {seq}, but {have} is here")
        self._sync()
        self._keep(self._row.begun(epoch, seq))
        self._set_epoch()

    def _keep(self, row: Row) -> None:
        if row == self._row:
            return
        self._parts.seal.check()
        self._parts.history.save_state(row_name(self.uuid), row.encode())
        self._row = row

    def _sync(self) -> None:
        seq = self._seq()
        self._parts.seal.check()
        if seq > self._durable:
            self._parts.seal.sync_journal()
            self._hold(seq)

    def _stop_serving(self, epoch: int) -> None:
        self._serving = None
        self._gate.close()
        self._volume.end_turn()
        self.fenced(epoch)
        log.warning("another node takes the volume over volume=%s epoch=%d", self.name, epoch)
