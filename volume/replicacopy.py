"""All of a volume as a stream to another node: for a replica that the log does not lead to.

Nearly everything is there already, since both nodes made the same chunks of the same records. So
the two compare their trees first and only what is lacking is sent (`volume.stream.send_to`):

    base      the receiver says which version it has: its own, in chunks, or what has come before
    compare   the sender's nodes, from the root down, where they differ from those of the base
    lack      of chunks under leaves that differ: those that the receiver does not have at all
    pieces    of a stream with these, between the questions

`Copies` gives the steps of such streams, `Landing` takes one: into a volume of its own, which is
there only until its tree has become the replica's head.

What is cut short is begun anew, of the sender's volume as it is then, and costs little: what came
is here. Until the copy has ended gc keeps it, over restarts as well: a stream that has not landed
as what its successors are to keep (`volume.receive`), one that has as the volume that it landed in,
which is the base of the next one then. After FAILURES streams that could not be used, one is taken
without any of that: it lacks everything.
"""

import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass
from typing import Final, Protocol

from typing_extensions import Buffer

from volume.errors import CorruptData, InvalidName, NoSuchVolume, OtherRecords, VolumeError
from volume.layout import FAN_OUT, ZERO_ID, ChunkId
from volume.manifest import MAX_HEIGHT
from volume.receive import Receiver
from volume.stream import Answer, Pieces, Question, Tree
from volume.stream_errors import InvalidStream, StreamRefused
from volume.stream_wire import Position

FAILURES: Final = 2  # streams in a row: what is here is of no use, perhaps

Ends = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Copied:
    """A piece of a stream of all of the volume as it was at `seq`, with the chain that leads there;
    `at`: where it begins, in bytes of the stream."""

    at: int
    data: bytes
    last: bool
    seq: int
    start: int
    ends: Ends
    names: bytes | None = b""
    """All names of the volume then (`volume.namedstates`); None: this is the stream of an earlier
    state, which has one, and others follow."""


@dataclass(frozen=True, slots=True)
class Target:
    """What is to be copied next; as in `Copied`."""

    seq: int
    start: int
    ends: Ends
    names: bytes | None


@dataclass(frozen=True, slots=True)
class Based:
    """A stream is to begin, as a difference to that commit, which the receiver has; ZERO_ID: to
    nothing."""

    base: ChunkId


@dataclass(frozen=True, slots=True)
class Told:
    """The receiver has answered a question: indexes into its nodes."""

    indexes: frozenset[int]


Heard = Based | Told | None
"""What the receiver has said; None: it has taken a piece."""
Step = Copied | Question


class _Outgoing:
    """A stream on its way to another node."""

    def __init__(self, pieces: Pieces, target: Target) -> None:
        self._pieces = pieces
        self._target = (target.seq, target.start, target.ends, target.names)
        self._left = b""
        self._given: Copied | None = None
        self._asked = False

    def step(self, at: int, limit: int, heard: Heard) -> Step | None:
        """The next one, or the last piece again; None when it is another that is wanted."""
        given = self._given
        if self._asked != isinstance(heard, Told):
            return None
        if at != (given.at + len(given.data) if given else 0):
            return given if given is not None and at == given.at else None
        answer: Answer = heard.indexes if isinstance(heard, Told) else None
        self._asked = False
        data, last = self._left, False
        while len(data) <= limit and not last:  # so that no piece is empty
            try:
                found = self._pieces.send(answer)
            except StopIteration:
                last = True
                break
            answer = None
            if not isinstance(found, bytes):
                self._left = data
                self._asked = True
                return found
            data += found
        data, self._left = data[:limit], data[limit:]
        self._given = Copied(at, data, last and not self._left, *self._target)
        return self._given

    def close(self) -> None:
        self._pieces.close()


class Copies:
    """Streams of one volume to other nodes. `offer`: the stream of a version that is named, as a
    difference to a commit of the receiver."""

    def __init__(self, offer: Callable[[str, ChunkId | None], Pieces]) -> None:
        self._offer = offer
        self._lock = threading.Lock()
        self._outgoing: dict[str, _Outgoing] = {}
        self._over: set[str] = set()

    def step(
        self,
        name: str,
        to: str,
        at: int,
        limit: int,
        heard: Heard,
        target: Callable[[], Target],
    ) -> Step:
        """As `Replica.copy`; `target`: what is to be copied."""
        with self._lock:
            self._end_over()
            if isinstance(heard, Based):
                self._end(to)
                chosen = target()
                base = None if heard.base == ZERO_ID else heard.base
                pieces = self._offer(f"{name}@seq:{chosen.seq}", base)
                self._outgoing[to] = _Outgoing(pieces, chosen)
            outgoing = self._outgoing.get(to)
            found = None if outgoing is None else outgoing.step(at, limit, heard)
            if found is None:
                raise OtherRecords(name, f"no stream for {to} is at {at}")
            if isinstance(found, Copied) and found.last:
                assert outgoing is not None
                outgoing.close()
            self._end_over()
            return found

    def end_of(self, to: str) -> None:
        """Nobody goes on with the stream to that node: what it is of need not stay. Does not wait:
        one that is under way ends with its step."""
        self._over.add(to)
        if self._lock.acquire(blocking=False):
            try:
                self._end_over()
            finally:
                self._lock.release()

    def _end_over(self) -> None:
        while self._over:
            self._end(self._over.pop())

    def end(self) -> None:
        """Nobody goes on with them. Does not wait: one that is under way ends with the next."""
        if self._lock.acquire(blocking=False):
            try:
                for to in list(self._outgoing):
                    self._end(to)
            finally:
                self._lock.release()

    def _end(self, to: str) -> None:
        outgoing = self._outgoing.pop(to, None)
        if outgoing is not None:
            outgoing.close()


class LandingStore(Protocol):
    """What a `Landing` needs of the store."""

    def receive(self, name: str, *, keep: bool) -> Receiver: ...

    def abort_receive(self, name: str) -> None: ...

    def has_receive(self, name: str) -> bool: ...

    def base(self, ref: str) -> AbstractContextManager[tuple[ChunkId, Tree] | None]: ...

    def lacking(self, chunk_ids: Sequence[ChunkId], chunk_size: int) -> list[ChunkId]: ...


class Volumes(Protocol):
    """The volumes of the store; what has landed is one of them."""

    def delete(self, name: str, *, force: bool) -> None: ...

    def names(self) -> list[str]: ...


class Landing:
    """The stream that comes to replica `name`, of chunks of `chunk_size` bytes. `into`: name of the
    volume that it lands in. `own`: names the replica's newest record."""

    def __init__(
        self,
        name: str,
        into: str,
        chunk_size: int,
        store: LandingStore,
        volumes: Volumes,
        own: Callable[[], str],
    ) -> None:
        self._name = name
        self._into = into
        self._chunk_size = chunk_size
        self._store = store
        self._volumes = volumes
        self._own = own
        self._receiver: Receiver | None = None
        self._at = 0
        self._base: tuple[ChunkId, Tree] | None = None
        self._held = ExitStack()
        """Keeps the base until the receiver does."""
        self._failures = 0
        self.landed = False
        self.left = store.has_receive(into) or into in volumes.names()
        """Something of a stream is here."""

    def begin(self) -> ChunkId:
        """A stream is to come: the commit that it is to be a difference to; ZERO_ID: to none. Waits
        for a destage round."""
        if self._failures >= FAILURES:
            self.drop()
            self._failures = FAILURES
            return ZERO_ID
        self._let_go()
        self.left = True
        if self._into in self._volumes.names() and self._take_base(self._into):
            return self.base
        self._delete()
        self._take_base(self._own())
        return self.base

    @property
    def base(self) -> ChunkId:
        """What `begin` has given."""
        return ZERO_ID if self._base is None else self._base[0]

    def _take_base(self, ref: str) -> bool:
        """Whether that version can be one."""
        with suppress(VolumeError):  # it is only a saving
            self._base = self._held.enter_context(self._store.base(ref))
        return self._base is not None

    def unlike(self, nodes: Sequence[tuple[int, int, ChunkId]]) -> list[int]:
        """Which of these, (end, rank, id), the base does not have at their places."""
        found = []
        for index, (end, rank, node) in enumerate(nodes):
            span = FAN_OUT**rank
            if not 0 < rank <= MAX_HEIGHT or not 0 < end <= FAN_OUT**MAX_HEIGHT or end % span:
                raise OtherRecords(self._name, f"no tree has a node of rank {rank} at {end}")
            try:
                if self._base is None or self._base[1].subtree(Position(end, rank)) != node:
                    found.append(index)
            except CorruptData:
                self._failures = FAILURES  # a stream without it has to come
                raise
        return found

    def lacking(self, chunk_ids: Sequence[ChunkId]) -> list[ChunkId]:
        """Those of the chunks that are not here."""
        if self._failures >= FAILURES:
            return list(chunk_ids)
        return self._store.lacking(chunk_ids, self._chunk_size)

    def take(self, at: int, data: Buffer, *, last: bool) -> int:
        """As `Replica.take_copy`."""
        length = memoryview(data).nbytes
        if at == 0 and (self._receiver is None or self._at != length):
            self._close()
            self._receiver = self._store.receive(self._into, keep=True)
            self.left = True
        if self._receiver is not None and self._at and at + length == self._at:
            return self._at  # again
        if self._receiver is None or self.landed or at != self._at:
            raise OtherRecords(self._name, f"no stream is at {at} here")
        try:
            self._receiver.feed(data)
            self._at += length
            if last:
                self._receiver.end()
                self.landed = True
                self._held.close()
        except VolumeError as error:
            if isinstance(error, (InvalidStream, StreamRefused, CorruptData)):
                self._failures += 1
            self._let_go()
            raise
        return self._at

    def drop(self) -> None:
        """Forget all of it, and the volume that it has landed in."""
        self._let_go()
        self._failures = 0
        with suppress(StreamRefused):
            self._store.abort_receive(self._into)
        self._delete()
        self.left = False

    def _delete(self) -> None:
        with suppress(NoSuchVolume, InvalidName):
            self._volumes.delete(self._into, force=True)

    def _let_go(self) -> None:
        """Of what is under way; what came stays."""
        self._close()
        self._held.close()
        self._base = None

    def _close(self) -> None:
        if self._receiver is not None:
            self._receiver.close()
        self._receiver, self._at, self.landed = None, 0, False
