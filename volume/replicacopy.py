"""All of a volume as a stream to another node: for a replica that the log does not lead to.

`Copies` gives the pieces of such streams, `Landing` takes one: into a volume of its own, which is
there only until its tree has become the replica's head. What a crash leaves of it is forgotten at
the next start.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass

from typing_extensions import Buffer

from volume.errors import NoSuchVolume, OtherRecords, VolumeError
from volume.receive import Receiver
from volume.stream_errors import StreamRefused

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


class _Outgoing:
    """A stream on its way to another node."""

    def __init__(self, pieces: Iterator[bytes], seq: int, start: int, ends: Ends) -> None:
        self._pieces = pieces
        self._chain = (seq, start, ends)
        self._left = b""
        self._given: Copied | None = None

    def piece(self, at: int, limit: int) -> Copied | None:
        """The next one, or the last one again; None when it is another that is wanted."""
        given = self._given
        if at != (given.at + len(given.data) if given else 0):
            return given if given is not None and at == given.at else None
        data = self._left
        last = False
        while len(data) <= limit and not last:  # so that no piece is empty
            piece = next(self._pieces, None)
            last = piece is None
            data += piece or b""
        data, self._left = data[:limit], data[limit:]
        self._given = Copied(at, data, last and not self._left, *self._chain)
        return self._given


class Copies:
    """Streams of one volume to other nodes. `send`: the stream of a version that is named."""

    def __init__(self, send: Callable[[str], Iterator[bytes]]) -> None:
        self._send = send
        self._lock = threading.Lock()
        self._outgoing: dict[str, _Outgoing] = {}

    def piece(
        self, name: str, to: str, at: int, limit: int, state: Callable[[], tuple[int, int, Ends]]
    ) -> Copied:
        """As `Replica.copy`; `state`: seq, start and ends of the volume's chain."""
        with self._lock:
            if at == 0:
                seq, start, ends = state()
                pieces = self._send(f"{name}@seq:{seq}")
                self._outgoing[to] = _Outgoing(pieces, seq, start, ends)
            outgoing = self._outgoing.get(to)
            found = None if outgoing is None else outgoing.piece(at, limit)
            if found is None:
                raise OtherRecords(name, f"no stream for {to} is at {at}")
            return found


class Landing:
    """The stream that comes to a replica. `into`: name of the volume that it lands in."""

    def __init__(
        self,
        receive: Callable[[str], Receiver],
        abort: Callable[[str], None],
        delete: Callable[[str], None],
    ) -> None:
        self._receive = receive
        self._abort = abort
        self._delete = delete
        self._receiver: Receiver | None = None
        self._at = 0
        self.landed = False

    def take(self, name: str, into: str, at: int, data: Buffer, *, last: bool) -> int:
        """As `Replica.take_copy`."""
        length = memoryview(data).nbytes
        if at == 0 and (self._receiver is None or self._at != length):
            self.drop(into)
            self._receiver = self._receive(into)
        if self._receiver is not None and self._at and at + length == self._at:
            return self._at  # again
        if self._receiver is None or self.landed or at != self._at:
            raise OtherRecords(name, f"no stream is at {at} here")
        try:
            self._receiver.feed(data)
            self._at += length
            if last:
                self._receiver.end()
                self.landed = True
        except VolumeError:
            self.drop(into)
            raise
        return self._at

    def drop(self, into: str) -> None:
        """Forget it, and the volume that it has landed in."""
        if self._receiver is not None:
            self._receiver.close()
        self._receiver, self._at, self.landed = None, 0, False
        with suppress(StreamRefused):
            self._abort(into)
        with suppress(NoSuchVolume):
            self._delete(into)
