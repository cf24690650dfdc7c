"""One client's connection: moves bytes between the event loop and a protocol's engine.

An engine (`blockd.nbd.connection`, `blockd.iscsi.connection`) knows its protocol and no sockets;
this class knows the socket and no protocol. One wake-up of the socket is one round of `_run`:

    bytes land (in the engine's own buffer)
      -> all events of the engine are handled (batches go to their device)
      -> all replies leave in one write -> decide whether to read on

Reading stops while the engine is at its limits or while the client does not take its replies, so a
client costs at most the engine's limits plus the write buffer's high-water mark, and nobody waits
for it. A client that takes none of its replies may stay (`reply_timeout_s` = 0): a stopped virtual
machine does just that, and cutting it off would turn a pause into I/O errors. A client that is
gone is found by TCP keepalive or by retransmission giving up.

Closing: last replies, then our end is closed for writing and what still comes is thrown away until
the peer closes too, at most `LINGER_S`. Closing at once with bytes unread would make the kernel
reset the connection and take the last replies along. A drain does not wait for a peer that keeps
its end open: only until its kernel has acknowledged those replies.

A client of whom only plain requests are expected may be served by the request loop meanwhile
(`blockd.request_loop`), without a byte passing through here:

    settled  nothing is in flight or unsent: the loop has the socket, and what was received
    mail     the engine takes the requests that the loop leaves to it, and answers through the loop
    stopped  what was received and not served goes to the engine, what was not sent to the socket

The loop stops by itself at what it does not know, at the end of the stream or when the socket
breaks; then the connection stays here. Before anything ends here (drain, an engine that is done)
the loop is asked to stop, and `loop_news` goes on from there.

A client stays in the listener's book until its socket is closed, its requests have come back from
the device and nothing else is under way for it. An exception in here is a bug: it is logged with
its traceback, this connection is cut, the others go on.
"""

import asyncio
import logging
import time
from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, Generic, Protocol, TypeVar, cast

from typing_extensions import Buffer

from blockd.accounts import Accounts
from blockd.device import BlockDevice
from blockd.limits import RateLimits
from blockd.log_limiter import LogLimiter
from blockd.request_loop import RequestLoop
from blockd.sockets import unacknowledged
from blockd.throttle import Throttle
from native import Account, LoopClient, Request
from volume.sites import rare

RECEIVE_BYTES = 256 << 10  # room offered to one recv: two batches of 32 writes of 4 KiB
RARE_BYTES = 7  # as much, for a test rig: less than any header
WRITE_HIGH_BYTES = 4 << 20  # unsent replies of one client beyond which its requests wait
WRITE_LOW_BYTES = 1 << 20
LINGER_S = 2.0  # how long a closed client may take to close its end, or to take more replies
LINGER_LOOK_S = 0.1  # how often that is looked at

# Bytes nobody wants land here, and ciphertext: both loops call buffer_updated() right after the
# recv() into get_buffer(), so one buffer serves all connections of a process's one event loop.
scratch: Final = memoryview(bytearray(RECEIVE_BYTES))


class Engine(Protocol):
    """What a connection needs of its protocol's engine."""

    @property
    def negotiating(self) -> bool: ...
    @property
    def wants_input(self) -> bool: ...
    @property
    def idle(self) -> bool: ...
    @property
    def export_name(self) -> str | None: ...
    def buffer(self, size: int) -> memoryview: ...
    def received(self, count: int) -> None: ...
    def output(self) -> list[Buffer]: ...
    def completed(self, requests: list[Request]) -> None: ...
    def feed(self, data: Buffer) -> None: ...
    def eof(self) -> None: ...
    def drain(self) -> None: ...
    def trim(self) -> None: ...


E = TypeVar("E", bound=Engine)
E_co = TypeVar("E_co", bound=Engine, covariant=True)
C_contra = TypeVar("C_contra", contravariant=True)


class Host(Protocol[C_contra, E_co]):
    """What a connection needs of its listener."""

    @property
    def limiter(self) -> LogLimiter: ...
    @property
    def protocol_name(self) -> str:
        """For the log: "nbd", "iscsi"."""

    @property
    def handshake_timeout_s(self) -> float: ...
    @property
    def reply_timeout_s(self) -> float: ...
    @property
    def accounts(self) -> Accounts: ...
    @property
    def rate_limits(self) -> RateLimits: ...

    @property
    def request_loop(self) -> RequestLoop | None:
        """Where clients can be handed over to."""

    def admit(self, client: C_contra, transport: asyncio.Transport) -> E_co | None:
        """Enter a new client into the book; its engine, or None to turn it away."""

    def left(self, client: C_contra) -> None:
        """Take the client out of the book."""


class ClientProtocol(asyncio.BufferedProtocol, Generic[E]):
    """See the module's text. The listener reads `peer`, `number`, `since` and `in_flight`."""

    unopened = "nothing opened"
    """What a client that negotiates for too long has not done; for the log."""

    def __init__(self, host: "Host[ClientProtocol[E], E]") -> None:
        self.peer = ""  # set by Host.admit, with `number`
        self.number = 0  # no other client of the listener has, or had it
        self.since = time.monotonic()
        self.in_flight = 0  # requests that the device has not given back
        self._book = host
        self._loop = asyncio.get_running_loop()
        self._engine: E | None = None
        self._transport = cast(asyncio.Transport, None)  # connection_made() comes first
        self._running = False  # inside _run: a device's synchronous done() must not nest
        self._draining = False
        self._input_ended = False  # the engine knows that no more bytes come
        self._socket_eof = False  # the peer closed its end of the socket
        self._ending = False  # the engine is done: close after the next write
        self._closing = False  # nothing is read or written any more; waiting for the peer's end
        self._explained = False  # the log knows why this connection ends, or need not
        self._lost = False  # the transport is gone
        self._broken = False  # the engine failed and is not called any more
        self._write_paused = False
        self._served: LoopClient | None = None  # the request loop has the socket
        self._loop_done = False  # it gave the socket back, for good
        self._mail_waits = False  # it has requests that the engine had no room for
        self._quiet_intervals = 0  # calls of trim() since the last byte came
        self.throttle = Throttle(self._loop, time.monotonic_ns, host.rate_limits.of)
        self._timer: asyncio.TimerHandle | None = None  # handshake, then linger
        self._stall_timer: asyncio.TimerHandle | None = None

    # What each protocol adds.

    @abstractmethod
    def _handle_events(self) -> bool:
        """Act on all events that the engine has; False when there was none."""

    @abstractmethod
    def _release_all(self) -> None:
        """The client leaves the book: let go of whatever it held."""

    @property
    def _waited_for(self) -> bool:
        """Something beside requests is under way for the client."""
        return False

    def _advance(self) -> bool:
        """Go on with what is between the socket and the engine: True when the engine was told
        something."""
        return False

    def _encoded(self, output: list[Buffer]) -> list[Buffer]:
        """What is written to the socket when the engine says `output`."""
        return output

    def _farewell(self) -> bytes:
        """The last bytes, behind all replies."""
        return b""

    def _landed(self, count: int) -> None:
        self.engine.received(count)

    def _direct(self) -> bool:
        """Whether bytes land in the engine's own buffer."""
        return True

    def _may_hand_over(self) -> bool:
        """Whether the request loop could serve this client, as far as can be told quickly."""
        return False

    def _hand_over(self, to: RequestLoop) -> LoopClient | None:
        """Give the socket to the request loop; None when the engine has to go on."""
        return None

    def _handed_back(self, client: LoopClient) -> None:
        """The loop has stopped; what is left over goes to the engine next."""

    def _paid(self, client: LoopClient) -> None:
        """Of what the loop has left to the engine, some need not wait for limits again."""

    # What operators see.

    @property
    def engine(self) -> E:
        """Only for clients that were admitted."""
        assert self._engine is not None
        return self._engine

    @property
    def unsent_bytes(self) -> int:
        """Replies in the write buffer that the client has not taken."""
        if self._served is not None:
            return self._served.unsent
        return 0 if self._lost else self._transport.get_write_buffer_size()

    @property
    def under_way(self) -> int:
        """Requests that wait for a device, or for its disk."""
        return self.in_flight + (0 if self._served is None else self._served.jobs)

    # Called by the event loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._engine = self._book.admit(self, self._transport)
        if self._engine is None:
            self._closing = True
            self._transport.abort()
            return
        self._transport.set_write_buffer_limits(high=WRITE_HIGH_BYTES, low=WRITE_LOW_BYTES)
        self._timer = self._loop.call_later(self._book.handshake_timeout_s, self._handshake_expired)
        self._guarded(self._run)

    def get_buffer(self, sizehint: int) -> memoryview:
        if not self._closing and self._direct():
            try:
                buffer = self.engine.buffer(RECEIVE_BYTES)
                return buffer[:RARE_BYTES] if rare("socket.short-read") else buffer
            except Exception:
                self._fail()
        return scratch

    def buffer_updated(self, nbytes: int) -> None:
        if not self._closing:
            self._guarded(self._received, nbytes)

    def eof_received(self) -> bool:
        """The client closed its end: answer what it still waits for, then close ours."""
        self._socket_eof = True
        if not self._closing:
            self._guarded(self._end_input)
        return not self._closing

    def pause_writing(self) -> None:
        self._write_paused = True
        if self._book.reply_timeout_s > 0 and not self._closing:
            self._watch_replies()

    def resume_writing(self) -> None:
        self._write_paused = False
        if self._stall_timer is not None:
            self._stall_timer.cancel()
        if not self._closing and not self._running:
            self._guarded(self._run)

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = self._closing = True
        self.throttle.drop()
        for timer in (self._timer, self._stall_timer):
            if timer is not None:
                timer.cancel()
        if self._served is not None:
            self._served.cut()
            if self._broken:  # what it still has in the loop is not waited for
                self._leave_if_done()
        elif self._engine is not None:
            self._guarded(self._end_input)
            self._leave_if_done()

    # Called by the listener.

    def drain(self) -> None:
        """Finish what is in flight, then close; what comes meanwhile is refused. With nothing in
        flight the connection closes at once: to a client that can reconnect an error is an answer,
        and it would hand it on to its file system, while a close makes it try again."""
        if self._draining:
            return
        self._draining = True
        if not self._closing:
            self._guarded(self._begin_drain)

    def abort(self) -> None:
        """Cut the connection and wait for nothing: neither for requests inside the device nor for
        an answer."""
        self._closing = self._broken = True
        if self._served is not None:
            self._served.cut()
        if self._lost:
            self._leave_if_done()
        else:
            self._transport.abort()  # connection_lost() follows

    def trim(self) -> None:
        """Called at long intervals: after a whole one without a byte, give memory back."""
        self._quiet_intervals += 1
        if self._quiet_intervals == 2 and not self._closing:
            self.engine.trim()

    # The round.

    def _guarded(self, action: Callable[..., None], *args: object) -> None:
        if self._broken:
            return
        try:
            action(*args)
        except Exception as error:
            self._failed(error)

    def _failed(self, error: Exception) -> None:
        """An exception of a round, which is being handled."""
        self._fail()

    def _received(self, count: int) -> None:
        self._quiet_intervals = 0
        self._landed(count)
        self._run()

    def _end_input(self) -> None:
        if not self._input_ended:
            self._input_ended = True
            self.engine.eof()
        self._run()

    def _begin_drain(self) -> None:
        if self._served is not None:
            self._served.stop()  # and then again
            return
        self.throttle.open()
        self.engine.drain()
        self._run()

    def _run(self) -> None:
        """Events, replies, and again while that made room for more requests."""
        self._running = True
        try:
            progress = True
            while progress:
                progress = False
                while self._handle_events() or self._advance():
                    progress = True
                if self._send():
                    progress = True
        finally:
            self._running = False
        if not self._closing:
            self._settle()

    def _run_again(self) -> None:
        """A round that the engine has asked for, or something on another thread has ended."""
        if not self._running:
            self._run()

    def _send(self) -> bool:
        """Everything that the engine has to say, in one write; False when that was nothing.

        Replies that a slow client does not take stay in the engine, where they count against its
        limits.
        """
        if self._write_paused and not (self._ending or self._closing):
            return False
        output = self.engine.output()
        if not self._closing:
            output = self._encoded(output)
        self._write(output)
        return bool(output)

    def _write(self, buffers: Sequence[Buffer]) -> None:
        if not buffers or self._closing:
            return
        if self._served is not None:
            self._served.send(buffers)
        else:
            self._transport.writelines(cast(Sequence[bytes], buffers))

    def _settle(self) -> None:
        """After a round: whose turn is it now?"""
        engine = self.engine
        if self._timer is not None and not engine.negotiating:
            self._timer.cancel()
            self._timer = None
        if self._served is not None:
            self._settle_served(self._served)
        elif self._ending or (self._draining and not self.in_flight and engine.idle):
            self._hang_up()
        elif self._socket_eof:
            pass  # there is nothing to read, and resuming would report the end again
        elif self._wants_bytes() and not self._write_paused:
            if not self._handed_over():
                self._transport.resume_reading()
        else:
            self._transport.pause_reading()

    def _wants_bytes(self) -> bool:
        return self.engine.wants_input

    # The request loop.

    def _handed_over(self, *, again: bool = False) -> bool:
        """Whether the request loop has the socket now, or will be asked to take it when what has
        been written just now has left: the transport sends in the next turn of the event loop."""
        loop = self._book.request_loop
        if loop is None or self._loop_done or self._draining or not self._may_hand_over():
            return False
        if self._transport.get_write_buffer_size():
            if again:
                return False  # a client that is slow to take its replies
            self._transport.pause_reading()
            self._loop.call_soon(self._hand_over_again)
            return True
        self._transport.pause_reading()
        self._served = self._hand_over(loop)
        return self._served is not None

    def _hand_over_again(self) -> None:
        if not self._closing and self._served is None:
            self._guarded(self._try_hand_over)

    def _try_hand_over(self) -> None:
        if self._ending or self._socket_eof or not self._wants_bytes() or self._write_paused:
            return  # a round that came between has settled it
        if not self._handed_over(again=True):
            self._transport.resume_reading()

    def loop_news(self, client: LoopClient) -> None:
        """See `blockd.request_loop.Owner`."""
        if client is not self._served or self._broken:
            return
        self._guarded(self._take_back if client.stopped else self._take_news)
        if self._lost:
            self._leave_if_done()

    def _take_news(self) -> None:
        assert self._served is not None
        if self._served.stalled != self._write_paused:
            if self._write_paused:
                self.resume_writing()
            else:
                self.pause_writing()
        self._take_mail()

    def _take_mail(self) -> None:
        served = self._served
        if served is None or self._closing:
            return
        self._mail_waits = self._write_paused or not self.engine.wants_input
        if not self._mail_waits and (mail := served.take_mail()):
            self._paid(served)
            self.engine.feed(mail)
            self._run_again()

    def _settle_served(self, served: LoopClient) -> None:
        if self._ending or self._draining:
            served.stop()
        elif self._mail_waits and self.engine.wants_input:
            self._mail_waits = False
            self._loop.call_soon(self._guarded, self._take_mail)

    def _take_back(self) -> None:
        """The loop is done with the socket."""
        served, self._served = self._served, None
        assert served is not None
        self._loop_done = not served.was_asked
        self._handed_back(served)
        self._write_paused = False  # of the loop's output; the transport says so itself again
        if self._stall_timer is not None:
            self._stall_timer.cancel()
        if self._lost or served.was_cut:
            if not self._lost:
                self._transport.abort()  # connection_lost() follows
            else:
                self._end_input()
            return
        received, unsent = served.leftover()
        if unsent:  # before anything that the engine says: it may begin in the middle of a reply
            self._transport.write(unsent)
        if received := served.take_mail() + received:
            self._paid(served)
            self.engine.feed(received)
        if self._draining:
            self._begin_drain()
        else:
            self._run_again()

    # What events lead to.

    def _account(self, device: BlockDevice) -> Account:
        """Where what the client asks of `device` counts."""
        return self._book.accounts.of(device, self._book.protocol_name)

    def _submit(self, device: BlockDevice, batch: list[Request]) -> None:
        """A batch of the engine's goes to its device, all of whose requests have just come."""
        account = self._account(device)
        self.in_flight += len(batch)
        account.begin(batch, time.monotonic_ns())
        self.throttle.submit(device, batch, partial(self._done, account))

    def _done(self, account: Account, requests: list[Request]) -> None:
        """A device gives back finished requests: during submit() or later, on the loop."""
        account.end(requests, time.monotonic_ns())
        self.in_flight -= len(requests)
        self._guarded(self._completed, requests)
        if self._lost:
            self._leave_if_done()

    def _completed(self, requests: list[Request]) -> None:
        self.engine.completed(requests)
        self._run_again()

    def _end(self, reason: str, *, clean: bool) -> None:
        """The engine is done."""
        self._ending = True
        if not clean and not self._explained:
            self._dropped(reason)

    def _dropped(self, reason: str) -> None:
        """Text before the first colon is what lines are counted by; behind it stand details."""
        self._explained = True
        event = f"{self._book.protocol_name} client dropped"
        self._log(logging.WARNING, reason.partition(":")[0], event, reason=reason)

    def _log(
        self, level: int, kind: str, event: str, *, trace: bool = False, **fields: str
    ) -> None:
        export = None if self._engine is None else self._engine.export_name
        self._book.limiter.log(
            level, kind, event, trace=trace, peer=self.peer, export=export, **fields
        )

    # How it ends.

    def _hang_up(self) -> None:
        """Close our end behind what is written, and wait a little for the peer to close too."""
        if goodbye := self._farewell():
            self._write([goodbye])
        self._closing = self._explained = True
        if self._timer is not None:
            self._timer.cancel()
        if self._socket_eof:
            self._transport.close()
        else:
            self._transport.write_eof()
            self._transport.resume_reading()
        self._linger(self._untaken(), 0.0)

    def _untaken(self) -> int:
        """Bytes of replies that have not arrived at the peer's machine."""
        return self.unsent_bytes + unacknowledged(self._transport)

    def _linger(self, untaken: int, idle_s: float) -> None:
        """The peer has had `idle_s` in which it took nothing of what was `untaken`."""
        self._timer = self._loop.call_later(
            LINGER_LOOK_S, self._lingered, untaken, idle_s + LINGER_LOOK_S
        )

    def _lingered(self, untaken_before: int, idle_s: float) -> None:
        """Replies that a slow client still takes may take their time."""
        untaken = self._untaken()
        if untaken < untaken_before:
            idle_s = 0.0
        if idle_s >= LINGER_S or (self._draining and not untaken):
            self._transport.abort()
        else:
            self._linger(untaken, idle_s)

    def _handshake_expired(self) -> None:
        self._dropped(f"{self.unopened} within {self._book.handshake_timeout_s:g} s")
        self._closing = True
        self._transport.abort()

    def _watch_replies(self) -> None:
        """While writing is paused nothing is added, so the buffer shrinks or the client stalls."""
        self._stall_timer = self._loop.call_later(
            self._book.reply_timeout_s, self._check_replies, self.unsent_bytes
        )

    def _check_replies(self, unsent_before: int) -> None:
        if self.unsent_bytes < unsent_before:
            self._watch_replies()  # slow, but it takes them
            return
        self._dropped(f"took none of its replies for {self._book.reply_timeout_s:g} s")
        self._closing = True
        self._transport.abort()

    def _fail(self) -> None:
        """Log the exception being handled: a bug of ours. Only this connection suffers."""
        event = f"{self._book.protocol_name} connection failed, others go on"
        self._log(logging.ERROR, "bug", event, trace=True)
        self._running = False
        self.abort()

    def _leave_if_done(self) -> None:
        """Out of the book, once, when the socket is closed, the device gave everything back and
        nothing else is awaited."""
        waited_for = self.in_flight or self._waited_for or self._served is not None
        if self._engine is None or (waited_for and not self._broken):
            return
        self._release_all()
        self._book.left(self)
        self._engine = None
        self._broken = True  # requests that come back after abort() have nowhere to go
