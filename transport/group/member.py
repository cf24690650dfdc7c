"""Member: what other nodes ask of this one's part of a volume, answered.

    SEAL     promise the epoch, synced; tell the chain
    UNDO     go back to a point of it, synced
    APPEND   the next records: in the journal file before the answer, with `sync` on the disk
    APPEND_BRIEF  the same, with chunks that are here already put in (references.py)
    OPEN     the epoch begins here, noted, synced
    SYNC     what is here is durable; of seq 0 nothing is asked but whether the epoch still holds
    READ_LOG records behind a point
    COMPARE  where all of the volume, which is to come, differs; HAVE: what is lacking of it
    STREAM   a piece of it; ADOPT: that is the volume from here on, synced
    CLOSE    as SYNC
    LOOK     how it is; promises nothing

Without sockets: messages in, messages out. What it says of records it has from the journal, never
from what it was sent. Answers wait for the disk, so they are given on a thread that may; one has
its turn at a time, in whatever order they come: each request says what has to be there before it.

What comes with every write waits for nothing: an APPEND of a few records goes to the page cache.
`at_once` does that on the thread that received it, and leaves the rest to one that may wait: what
is long, has a NOTE in it or begins an epoch, and all while another request has its turn. Where only
a sync is left it says so: the request is answered at once when that has ended.

Most of these APPENDs are *plain*: the next records of the epoch that has begun here, and nobody
else is at work on the volume. Those are appended without its turn (`Replica.append_plain`), and in
the daemon answered in C before they come here (`native.answer_append`), which is the same.
`now` is CLOCK_BOOTTIME, for the lease of the primary (transport/group/lease.py).
"""

import enum
import logging
from collections.abc import Callable
from typing import Final, TypeVar

from native import PEER_AT_ONCE, VolumeCore
from transport.group.chain import Chain
from transport.group.lease import Quiet
from transport.group.references import whole
from transport.peer import messages as m
from transport.peer.wire import Message
from volume.errors import (
    BadRecords,
    InvalidName,
    InvalidSize,
    MissingRecords,
    NeedsAll,
    NoSuchVersion,
    ReplicaError,
    StaleEpoch,
    StoreSealed,
    VolumeError,
    VolumeExists,
)
from volume.replica import Replica
from volume.replicas import Replicas

log = logging.getLogger(__name__)

T = TypeVar("T")

ASKED_OF_MEMBERS: Final = (
    *(
        m.Open,
        m.Append,
        m.AppendBrief,
        m.Sync,
        m.Seal,
        m.ReadLog,
        m.Close,
        m.Look,
        m.Undo,
        m.Create,
    ),
    *(m.Compare, m.Have, m.Stream, m.Adopt),
)
_MAX_QUIET_MS: Final = (1 << 32) - 1
_MAX_TEXT: Final = 512  # characters of an error
NANOSECONDS: Final = 1_000_000_000
AT_ONCE_BYTES: Final = PEER_AT_ONCE


class Left(enum.Enum):
    """What there is to do before a request can be answered by a thread that must not wait."""

    ALL = enum.auto()
    """Give it to a thread that may wait."""
    SYNC = enum.auto()
    """Its records are in the journal: ask again once that is synced."""


class Member:
    """Answers for one volume. `quiet`: for how long none of its primaries was answered."""

    def __init__(
        self, replica: Replica, quiet: Quiet, cores: dict[bytes, VolumeCore] | None = None
    ) -> None:
        """`cores`: of volumes whose plain APPENDs need not come here; this one is among them from
        the first that does until `withdraw`."""
        self.replica = replica
        self._quiet = quiet
        self._cores: dict[bytes, VolumeCore] = {} if cores is None else cores

    def quiet_s(self, now: float) -> float:
        """For how long no primary was answered here."""
        self._quiet.answered(self.replica.answered_ns / NANOSECONDS)
        return self._quiet.seconds(now)

    def withdraw(self) -> None:
        """Nothing is answered any more without this being asked."""
        self._cores.pop(self.replica.uuid, None)

    def at_once(self, message: m.Request, now: float) -> Message | Left:
        """As `answer`, by a thread that must not wait; or what is left to be done before."""
        match message:
            case m.Append():
                if sum(memoryview(each).nbytes for each in message.payload) > AT_ONCE_BYTES:
                    return Left.ALL
                if (ack := self._plain(message, now)) is not None:
                    return ack
            case m.Sync():
                pass
            case _:
                return Left.ALL
        with self.replica.at_once() as mine:
            if not mine:
                return Left.ALL
            return self._told(lambda: self._answer_at_once(message, now))

    def _plain(self, message: m.Append, now: float) -> m.Ack | None:
        """The answer, where there is nothing to be decided."""
        if message.sync or len(message.payload) > 1:
            return None
        first, last, boot_ns = message.first_seq, message.last_seq, round(now * NANOSECONDS)
        durable = self.replica.append_plain(
            message.epoch, message.written, first, last, message.payload[0], boot_ns
        )
        if durable is None:
            return None
        self._cores[self.replica.uuid] = self.replica.volume.core  # it was a thread that may wait
        return m.Ack(message.epoch, last, durable)

    def answer(self, message: m.Request, now: float) -> Message:
        """What was asked, done and answered, or an Error. Waits for the disk."""
        return self._told(lambda: self._answer(message, now))

    def _told(self, answer: Callable[[], T]) -> T | m.Error:
        """What it gives, or an ERROR that says why not."""
        try:
            return answer()
        except StaleEpoch as error:
            return _error(m.Code.STALE, error.promised, error)
        except MissingRecords as error:
            return _error(m.Code.GAP, error.have, error)
        except BadRecords as error:
            log.warning("refused error=%s", error)
            return _error(m.Code.FAILED, 0, error)
        except NeedsAll as error:
            return _error(m.Code.ANEW, 0, error)
        except NoSuchVersion as error:  # nothing leads to where it is to go back to
            return _error(m.Code.GAP, 0, error)
        except ReplicaError as error:
            return _error(m.Code.FAILED, 0, error)
        except StoreSealed as error:
            return _error(m.Code.SEALED, 0, error)
        except (VolumeError, OSError) as error:
            log.error("request of a peer failed volume=%s error=%s", self.replica.name, error)
            return _error(m.Code.FAILED, 0, error)

    def _answer_at_once(self, message: m.Append | m.Sync, now: float) -> m.Ack | Left:
        replica = self.replica
        if isinstance(message, m.Append):
            if not self._write(message, may_wait=False):
                return Left.ALL
            self._cores[replica.uuid] = replica.volume.core
            received, durable = replica.held
            if message.sync and durable < min(message.last_seq, received):
                return Left.SYNC
        else:
            replica.check(message.epoch)
            received, durable = replica.held
            if message.seq > received:
                raise MissingRecords(replica.name, received, message.seq)
            if message.seq > durable:
                return Left.SYNC
        self._quiet.answered(now)
        return self._ack()

    def _answer(self, message: m.Request, now: float) -> Message:
        replica = self.replica
        match message:
            case m.Seal():
                return self._seal(message.epoch, now)
            case m.Look():
                return self._look(now)
            case m.ReadLog():
                return self._read_log(message)
            case m.Compare():
                return self._compare(message)
            case m.Have():
                return m.Want(tuple(replica.lacking(message.epoch, message.ids)))
            case m.Stream():
                last = bool(message.last)
                piece = message.payload[0]
                return m.Streamed(replica.take_copy(message.epoch, message.at, piece, last=last))
            case m.Adopt():
                names = message.payload[0] if message.payload else b""
                replica.adopt(message.epoch, message.keep, message.start, message.ends, names)
            case m.Append():
                self._append(message)
            case m.AppendBrief():
                chunk_size = replica.volume.record.chunk_size
                append = whole(message, replica.name, chunk_size, replica.chunk)
                if isinstance(append, int):
                    return m.Error(m.Code.LACKS, append, f"volume {replica.name}: {append} chunks")
                self._append(append)
            case m.Open():
                replica.begin(message.epoch, message.seq)
            case m.Undo():
                replica.undo(message.epoch, (message.keep_epoch, message.keep_seq))
            case m.Sync():
                self._sync(message)
            case m.Close():
                replica.check(message.epoch)
                replica.sync()
            case _:
                raise ReplicaError(f"volume {replica.name}: {type(message).__name__} is not for it")
        if not isinstance(message, (m.Undo, m.Adopt)):
            self._quiet.answered(now)
        return self._ack()

    def _ack(self) -> m.Ack:
        received, durable = self.replica.held
        return m.Ack(self.replica.promised, received, durable)

    def _quiet_ms(self, now: float) -> int:
        return min(int(self.quiet_s(now) * 1000), _MAX_QUIET_MS)

    def _seal(self, epoch: int, now: float) -> m.Sealed:
        replica = self.replica
        replica.promise(epoch)
        chain = Chain(replica.ends(), replica.start)
        return m.Sealed(replica.promised, self._quiet_ms(now), chain.start, chain.ends)

    def _look(self, now: float) -> m.Looked:
        replica = self.replica
        received, durable = replica.held
        serving = replica.serving is not None
        begun = replica.ends()[-1][0]
        return m.Looked(
            *(begun, replica.promised, received, durable, self._quiet_ms(now), int(serving))
        )

    def _compare(self, message: m.Compare) -> m.Compared:
        replica = self.replica
        if not message.nodes:
            return m.Compared(replica.begin_copy(message.epoch), ())
        return m.Compared(*replica.unlike(message.epoch, message.nodes))

    def _append(self, message: m.Append) -> None:
        self._write(message, may_wait=True)
        if message.sync:
            self.replica.sync()

    def _write(self, message: m.Append, *, may_wait: bool) -> bool:
        data = b"".join(message.payload) if len(message.payload) > 1 else message.payload[0]
        first, last = message.first_seq, message.last_seq
        return self.replica.append(
            message.epoch, message.written, first, last, data, may_wait=may_wait
        )

    def _sync(self, message: m.Sync) -> None:
        replica = self.replica
        replica.check(message.epoch)
        received, durable = replica.held
        if message.seq > received:
            raise MissingRecords(replica.name, received, message.seq)
        if message.seq > durable:
            replica.sync()

    def _read_log(self, message: m.ReadLog) -> m.Log:
        replica = self.replica
        found = replica.read(message.epoch, message.after, message.limit)
        if not found.data:
            oldest = message.after + 1 if found.more else 0
            return m.Log(found.epoch, oldest, message.after, int(found.more))
        return m.Log(
            *(found.epoch, found.first_seq, found.last_seq, int(found.more)), (found.data,)
        )


class Members:
    """Answers for all volumes of a store. `now`: when this node started, by CLOCK_BOOTTIME."""

    def __init__(self, replicas: Replicas, now: float) -> None:
        self._replicas = replicas
        self._started = now
        self._members: dict[bytes, Member] = {}
        self.cores: dict[bytes, VolumeCore] = {}
        """See `Member`; changed on the thread that calls `at_once`."""

    def member(self, volume: bytes) -> Member | None:
        """The member of that volume; None when this node has no part of it."""
        found = self._members.get(volume)
        if found is None and (replica := self._replicas.get(volume)) is not None:
            found = self._members.setdefault(
                volume, Member(replica, Quiet(self._started), self.cores)
            )
        return found

    def forget(self, volume: bytes) -> None:
        """This node has no part of it any more."""
        self._members.pop(volume, None)
        self.cores.pop(volume, None)

    def answer(self, message: m.Request, now: float) -> Message:
        """As `Member.answer`. UNKNOWN: this node has no part of the volume."""
        volume: bytes = getattr(message, "volume", b"")
        if isinstance(message, m.Create):
            return self._create(message)
        member = self.member(volume)
        if member is None:
            return m.Error(m.Code.UNKNOWN, 0, f"volume {volume.hex()}: no part of it is here")
        return member.answer(message, now)

    def _create(self, message: m.Create) -> Message:
        try:
            replica = self._replicas.create(
                *(message.volume, message.name, message.size),
                *(message.block_size, message.chunk_size, message.epoch),
            )
        except StaleEpoch as error:
            return _error(m.Code.STALE, error.promised, error)
        except (InvalidName, InvalidSize, VolumeExists, ReplicaError) as error:
            return _error(m.Code.REFUSED, 0, error)
        except StoreSealed as error:
            return _error(m.Code.SEALED, 0, error)
        except (VolumeError, OSError) as error:
            return _error(m.Code.FAILED, 0, error)
        received, durable = replica.held
        return m.Ack(replica.promised, received, durable)


def _error(code: m.Code, detail: int, error: Exception) -> m.Error:
    return m.Error(code, detail, str(error)[:_MAX_TEXT])
