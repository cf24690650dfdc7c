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

Here are promises, the primary's part, syncs and reads; records of others are appended in
`volume.appending`, and all of it is copied in `volume.wholecopy`. What all of them look at, and the
one lock, is `volume.replicastate`.

Every method may wait for disks; any thread may call it, one at a time has its turn.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Final

from typing_extensions import Buffer

from native import TAP_MIN_BUFFER
from volume.appending import Appending
from volume.errors import (
    BadRecords,
    CorruptData,
    NoSuchVersion,
    OtherRecords,
    StoreSealed,
)
from volume.gate import Gate
from volume.historyrows import VersionRow, state_key, state_put
from volume.layout import ChunkId
from volume.replicacopy import Heard, Step
from volume.replicarow import Row, row_name
from volume.replicastate import ReplicaParts, ReplicaState
from volume.volume import Volume
from volume.wholecopy import WholeCopy

log = logging.getLogger(__name__)

TAKE_BYTES: Final = 4 << 20  # as much as a frame of a message may have


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


class Replica:
    """See the module. ReplicaError: nothing was done; StoreSealed, OSError: the disk failed."""

    def __init__(self, parts: ReplicaParts, volume: Volume, row: Row) -> None:
        self._parts = parts
        self._state = ReplicaState(parts, volume, row)
        self._room: bytearray | None = None  # for what is taken
        self._little_room: bytearray | None = None
        self._appending = Appending(self._state)
        self._whole = WholeCopy(self._state)
        self.fenced: Callable[[int], None] = lambda _epoch: None
        """Told, before it is promised, of an epoch that ends the one in which this node serves."""

    def rename(self, name: str) -> None:
        """The volume has another name on all nodes; durable on return. A copy that comes begins
        anew. VolumeExists: a volume of this node alone has that name."""
        with self._state.lock:
            self._state.rename(name)

    # -- what there is

    @property
    def uuid(self) -> bytes:
        return self._state.uuid

    @property
    def name(self) -> str:
        return self._state.name

    @property
    def volume(self) -> Volume:
        """It is another object after `undo`."""
        return self._state.volume

    @property
    def snapshot_count(self) -> int:
        """Of the names that are here; the primary has them all."""
        return self._parts.history.snapshot_counts.get(self._state.volume.record.number, 0)

    @property
    def promised(self) -> int:
        return self._state.row.promised

    @property
    def held(self) -> tuple[int, int]:
        """Seq of the newest record in the journal file, and of the newest synced one."""
        with self._state.lock:
            return self._state.seq(), self._state.durable

    @property
    def newest(self) -> int:
        """Seq of the newest record in the journal file. Waits for nobody."""
        return self._state.seq()

    @property
    def start(self) -> int:
        """Records up to this seq are of epochs that are not told any more."""
        return self._state.start

    def ends(self) -> tuple[tuple[int, int], ...]:
        """(epoch, seq of its last record), oldest first, of the epochs that are told."""
        with self._state.lock:
            return self._state.ends()

    @property
    def serving(self) -> int | None:
        """The epoch in which this node is the primary."""
        return self._state.serving

    # -- epochs

    def promise(self, epoch: int) -> None:
        """Take nothing in the name of an epoch before this one. The journal is synced and the
        promise durable on return. Who served in an earlier one does not any more. StaleEpoch."""
        with self._state.lock:
            self._state.check(epoch)
            self._state.not_plain()
            if self._state.serving is not None and self._state.serving < epoch:
                self._stop_serving(epoch)
            self._state.sync()
            if epoch > self._state.row.promised:
                self._state.keep(Row(epoch, self._state.row.begins))

    def check(self, epoch: int) -> None:
        """Whether that is the epoch that was promised. StaleEpoch, OtherRecords."""
        with self._state.lock:
            self._state.check_promised(epoch)

    def begin(self, epoch: int, seq: int) -> None:
        """Note that `epoch`, which was promised, begins behind record `seq`, the newest one;
        durable on return. Again is no harm. StaleEpoch, MissingRecords, OtherRecords."""
        with self._state.lock:
            self._state.check_promised(epoch)
            self._state.begin(epoch, seq)

    @property
    def gate(self) -> Gate:
        """Of `volume`: another one after `undo`."""
        return self._state.gate

    def serve(self, epoch: int, *, strict: bool = False, timeout_s: float = 30.0) -> None:
        """Let clients in: this node is the primary of `epoch`, which has begun here and on W
        nodes. `timeout_s`: so long a request waits for them at most."""
        with self._state.lock:
            self._state.check_promised(epoch)
            if self._state.row.begins[-1][0] != epoch:
                raise OtherRecords(self.name, f"epoch {epoch} has not begun here")
            self._state.not_plain()
            if self._state.landing.left:
                self._state.landing.drop()
            self._state.serving = epoch
            self._state.gate.open(self._state.seq(), strict=strict, timeout_s=timeout_s)

    def shut(self) -> None:
        """Let no client in any more."""
        with self._state.lock:
            self._state.serving = None
            self._state.gate.close()
            self._state.volume.end_turn()
        self._whole.end()

    # -- while this node is the primary

    def tap(self, limit_bytes: int) -> tuple[int, int]:
        """Have what clients append noted, to be taken: a descriptor that is readable when there is
        something, and the seq behind which it begins. Before `serve`, so that nothing is missed."""
        with self._state.lock:
            self._state.volume.core.untap()
            return self._state.volume.core.tap(limit_bytes)

    def untap(self) -> None:
        """Note nothing any more. Not while `take` is under way."""
        self._state.volume.core.untap()

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
        core = self._state.volume.core
        length, first, last, lost = core.take(room, nowait)
        if lost:
            return Taken(0, core.tap_again(), b"", True)
        return Taken(first, last, bytes(memoryview(room)[:length]), False)

    def allow(self, acked: int, durable: int) -> None:
        """W nodes have this much in their journals, and on their disks: answers may go out."""
        self._state.gate.advance(acked, durable)

    def reads_until(self, until_ns: int) -> None:
        """Reads may be answered until then, CLOCK_BOOTTIME."""
        self._state.gate.lease(until_ns)

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
        return self._appending.append(epoch, written, first, last, data, may_wait=may_wait)

    def append_plain(
        self, epoch: int, written: int, first: int, last: int, data: Buffer, boot_ns: int
    ) -> int | None:
        """As `append`, where nothing is to be decided; the seq up to which records are durable.
        None: nothing was refused, ask `append`. Any thread, without its turn: what needs one ends
        this first. What is asked of it in C, natively, is the same (`native.answer_append`)."""
        now_ns = self._parts.clock.now_ns()
        core = self._state.volume.core
        return core.append_plain(epoch, written, first, last, data, now_ns, boot_ns)

    @property
    def answered_ns(self) -> int:
        """When `append_plain` was last answered, CLOCK_BOOTTIME; 0: never."""
        return max(self._state.answered_ns, self._state.volume.core.answered_ns())

    @contextmanager
    def at_once(self) -> Iterator[bool]:
        """For a thread that must not wait: whether it has its turn. With it `check`, `held` and
        an `append` that may not wait wait for nothing but the page cache."""
        mine = self._state.lock.acquire(blocking=False)
        try:
            yield mine
        finally:
            if mine:
                self._state.lock.release()

    def sync(self) -> None:
        """Make every record that is here durable. Records are appended meanwhile: whoever sends
        them does not wait for the disk."""
        with self._state.lock:
            syncing = self._syncing()
            if syncing.seq <= self._state.durable:
                return
        self._parts.seal.sync_journal()
        with self._state.lock:
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
        return Syncing(self._state.volume, self._state.seq())

    def _synced(self, syncing: Syncing) -> None:
        # What was undone meanwhile has gone with its volume: the seq is of other records now.
        if syncing.volume is self._state.volume:
            self._state.hold(max(self._state.durable, syncing.seq))

    def read(self, epoch: int, after: int, limit: int) -> Records:
        """Records behind `after`, which was written in `epoch`, in at most `limit` bytes
        (TAP_MIN_BUFFER or more); all of one epoch.

        Without any where the log does not reach back to it any more, and there are more.
        OtherRecords: there is no such record here."""
        if limit < TAP_MIN_BUFFER:
            raise BadRecords(self.name, f"{limit} bytes are not enough for one of any length")
        with self._state.lock:
            ends = self._state.ends()
            self._state.check_point(epoch, after)
            newest = self._state.seq()
            written, last = next(
                ((each, end) for each, end in ends if end > after and each >= epoch), ends[-1]
            )
            number = self._state.volume.record.number
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

        StaleEpoch; OtherRecords: it has no such record, or has gone on in that epoch;
        NoSuchVersion: it cannot be gone back to any more, and all of the volume has to be sent;
        CorruptData: likewise, perhaps."""
        state = self._state
        with state.lock:
            state.check_idle(epoch)
            kept_epoch, seq = keep
            state.check_point(kept_epoch, seq)
            state.check_late(epoch, seq)
            begins = tuple(each for each in state.row.begins if each[0] <= kept_epoch)
            row = Row(state.row.promised, begins)
            if seq == state.seq():  # epochs that have begun behind it have no record
                state.keep(row)
                state.set_epoch()
                return
            floor = 1 + max(  # above all that is undone, not above what comes
                begin[0]
                for begin, (_, end) in zip(state.row.begins, state.ends(), strict=True)
                if end > max(begin[1], seq)
            )
            with self._settled(seq) as version:
                state.parts.between_rounds(lambda: self._rewind(version, floor, row))

    def _rewind(self, version: VersionRow, floor: int, row: Row) -> None:
        state = self._state
        state.check_rounds()
        put = state_put(row_name(state.uuid), row.encode())
        state.follow(state.parts.catalog.heads.rewind(state.volume, version, floor, put), row)

    @contextmanager
    def _settled(self, seq: int) -> Iterator[VersionRow]:
        """The state at `seq`, in chunks. NoSuchVersion also where damage is in its way, and
        stays."""
        state = self._state
        ref = f"seq:{seq}"
        with ExitStack() as held:
            try:
                _, version = held.enter_context(state.parts.versions.settled(f"{state.name}@{ref}"))
            except CorruptData as error:
                if state.is_damaged:
                    raise state.beyond(ref, error) from error
                raise
            yield version

    # -- chunks of this store

    def known(self, chunk_ids: Sequence[ChunkId]) -> list[bool]:
        """Which of these data chunks the store has."""
        size = self._state.volume.record.chunk_size
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
        name, or of the volume as it is now. Waits for a destage round then, and not for `append`
        and its like. The last piece may be asked for again. OtherRecords: it has to begin anew."""
        return self._whole.copy(to, at, limit, heard, after)

    def end_copy(self, to: str) -> None:
        """Nobody goes on with the stream for node `to`. Waits for nobody."""
        self._whole.end_copy(to)

    def begin_copy(self, epoch: int) -> ChunkId:
        """Such a stream is to come, in the name of `epoch`, which was promised: the commit that it
        may be a difference to, ZERO_ID for none. Waits for a destage round."""
        return self._whole.begin_copy(epoch)

    def unlike(
        self, epoch: int, nodes: Sequence[tuple[int, int, ChunkId]]
    ) -> tuple[ChunkId, tuple[int, ...]]:
        """That commit, and which of these nodes, (end, rank, id), it does not have at their
        places."""
        return self._whole.unlike(epoch, nodes)

    def lacking(self, epoch: int, chunk_ids: Sequence[ChunkId]) -> list[ChunkId]:
        """Those of the chunks that are not in this store."""
        return self._whole.lacking(epoch, chunk_ids)

    def take_copy(self, epoch: int, at: int, data: Buffer, *, last: bool) -> int:
        """Take a piece of such a stream, in the name of `epoch`, which was promised; how much of it
        is here. `at` 0 begins one. With `last` it is stored, durably, on return."""
        return self._whole.take_copy(epoch, at, data, last=last)

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
        that seq, and versions of it may stay; 0: nothing is known to be. `names`: of all snapshots
        that there are, whose states are here or have come as well. Durable on return, all or
        nothing. StaleEpoch, OtherRecords."""
        self._whole.adopt(epoch, keep, start, ends, names)

    def remove(self) -> None:
        """As `Replicas.remove`."""
        with self._state.lock:
            self._state.not_plain()
            self._state.serving = None
            self._state.gate.close()
            self._state.landing.drop()
            key = state_key(row_name(self.uuid))
            self._parts.catalog.delete_replica(self._state.volume, [key])
        self._parts.dropped()

    def _stop_serving(self, epoch: int) -> None:
        self._state.serving = None
        self._state.gate.close()
        self._state.volume.end_turn()
        self.fenced(epoch)
        log.warning("another node takes the volume over volume=%s epoch=%d", self.name, epoch)
