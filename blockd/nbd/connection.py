"""One NBD connection as a machine without I/O: bytes in, events and bytes out.

    negotiating --Enter--> transmission --DISC, eof, violation--> ending --in flight done--> closed
        |  ^
        v  | tls_started
    awaiting TLS

The listener drives it like this, whenever bytes came, requests completed or output() was sent:

    while True:
        while (event := connection.next_event()) is not None:
            ...                              # Submit may call completed() before it returns
        output = connection.output()
        if not output:
            break
        ...                                  # send; stop here while the socket takes no more

Two rules make memory bounded. Take `output()` only while the socket takes bytes: what is not taken
counts against the limits. After `output()` look for events again: taking it may make room for
requests that wait in the receive buffer. While `wants_input` is False do not read.

When the session ends, requests in flight still complete and are answered, and a `LookUp` that is
open is waited for; then come `Detached` and `Close`, in this order, exactly once. A listener that
loses or drops the socket calls `eof` and keeps handling events until `Close`.
"""

from collections import deque

from typing_extensions import Buffer

from blockd.access.book import VolumeAccess
from blockd.access.rules import Client
from blockd.device import Exports
from blockd.nbd.access import Gate, Policies, TlsIdentity, TlsMode
from blockd.nbd.events import Attached, Close, Detached, Event, StartTls, Submit
from blockd.nbd.export_info import Enter
from blockd.nbd.handshake import Handshake, HangUp, Upgrade
from blockd.nbd.limits import Limits
from blockd.nbd.lookups import Answer
from blockd.nbd.stats import Stats
from blockd.nbd.transmission import HandOver, Transmission
from blockd.paths import ALONE, Paths
from blockd.receive import MIN_ROOM, ReceiveBuffer
from native import Request

JOIN_BYTES = 64 * 1024
"""Output up to this is joined into one buffer: cheaper than many small ones for any transport."""


class Connection:
    """See the module's text. Not thread-safe: all calls come from the listener's event loop."""

    def __init__(
        self,
        exports: Exports,
        *,
        limits: Limits,
        tls: TlsMode,
        policies: Policies,
        access: VolumeAccess,
        client: Client,
        peer: str,
        list_versions: bool = False,
        paths: Paths = ALONE,
    ) -> None:
        """`client` is what the socket tells of it, `peer` the same for people. With `list_versions`
        it is shown snapshots as exports, too. `paths`: to volumes that several nodes have."""
        self.peer = peer
        self.stats = Stats()
        self._limits = limits
        self._rx = ReceiveBuffer(limits.base_buffer_bytes, limits.kept_buffer_bytes)
        self._events: deque[Event] = deque()
        self._out: list[Buffer] = []
        gate = Gate(exports, policies, access, client, tls)
        self._handshake = Handshake(gate, limits, self._events, list_versions, paths)
        self._handshake.greet()
        self._transmission: Transmission | None = None
        self._awaiting_tls = False
        self._ending: HangUp | None = None
        self._closed = False

    # --- bytes in ----------------------------------------------------------------------------

    def buffer(self, size_hint: int = -1) -> memoryview:
        """Where the next bytes are to land; never empty. Handle all events before calling it.

        `size_hint` > 0 is how many bytes are expected; more room may be given. The view is
        borrowed until `received`.
        """
        at_least = min(size_hint, MIN_ROOM) if size_hint > 0 else MIN_ROOM
        return self._rx.room(at_least, borrowed=bool(self._events))

    def received(self, count: int) -> None:
        """`count` bytes landed at the beginning of the last buffer(): parse what is complete."""
        self._rx.landed(count)
        self._advance()

    def feed(self, data: Buffer) -> None:
        """Copy `data` in: buffer() and received() for callers that have the bytes already."""
        view = memoryview(data).cast("B")
        if len(view):
            self._rx.room(len(view), borrowed=bool(self._events))[: len(view)] = view
            self.received(len(view))

    def eof(self) -> None:
        """No more bytes will come: the peer closed, the socket broke, or the listener gave up.

        Requests that were not accepted yet are dropped, as none of them was acknowledged.
        """
        if self._transmission is not None:
            # Many clients end like this between two requests, so it is no news; a lost one is.
            clean = self.idle and self._rx.unparsed == 0
            self._end(HangUp("the client closed without NBD_CMD_DISC", clean=clean))
        elif self._awaiting_tls:
            self._end(HangUp("TLS was not established", clean=False))
        else:
            midway = self._rx.unparsed > 0 or not self._handshake.between_options
            self._end(HangUp("the client closed during negotiation", clean=not midway))

    def tls_started(self, identity: TlsIdentity | None) -> None:
        """TLS is up; `identity` is whom it proved, if anybody. Negotiation starts over."""
        assert self._awaiting_tls
        self._awaiting_tls = False
        self._handshake.tls_started(identity)

    def answered(self, answer: Answer) -> None:
        """The answer to the `LookUp` that is open; also when the session ended meanwhile."""
        self._handshake.answered(answer)
        if self._ending is None:
            self._advance()
        else:
            self._settle()

    # --- requests and replies ----------------------------------------------------------------

    def next_event(self) -> Event | None:
        """The next thing to do; None when there is nothing."""
        return self._events.popleft() if self._events else None

    def completed(self, requests: list[Request]) -> None:
        """The device finished `requests`, each for the first time: their replies go to output."""
        assert self._transmission is not None
        self._transmission.completed(requests)
        if self._ending is not None:
            self._settle()
        elif self._transmission.ended is not None:
            self._end(self._transmission.ended)

    def output(self) -> list[Buffer]:
        """Bytes to send, in order; the caller owns them. [] when there are none."""
        if self._handshake.pending:
            self._out.insert(0, bytes(self._handshake.pending))
            self._handshake.pending.clear()
        out = self._out[:]
        if not out:
            return out
        self._out.clear()  # in place: the replies append to this very list
        if self._transmission is not None:
            self._transmission.released()
        self._advance()
        if len(out) > 1 and sum(map(_length, out)) <= JOIN_BYTES:
            return [b"".join(out)]
        return out

    def drain(self) -> None:
        """The server stops: finish what is in flight, refuse everything that comes from now on. To
        an export that another node serves by now, nothing is refused: it ends."""
        self._handshake.draining = True
        if self._transmission is not None:
            self._transmission.drain()
            if self._transmission.ended is not None:
                self._end(self._transmission.ended)

    def hand_over(self) -> HandOver | None:
        """The terms on which somebody else can serve plain requests from now on, and the bytes that
        were received and not parsed, which are theirs then. None when that cannot be. What comes
        back of the requests by `feed` is handled as before."""
        transmission = self._transmission
        if transmission is None or self._ending is not None or not self.idle:
            return None
        return transmission.hand_over(self._rx)

    def served(self, counters: tuple[int, ...]) -> None:
        """What somebody else did on those terms (`native.LoopClient.counters`)."""
        self.stats.served(counters)

    def trim(self) -> None:
        """Give back memory that an idle connection does not need."""
        if not self._events:
            self._rx.trim()

    # --- what the listener looks at ----------------------------------------------------------

    @property
    def wants_input(self) -> bool:
        """False while limits are reached or a `LookUp` is open, while TLS is being set up, and once
        the session ends."""
        return not (
            self._ending is not None
            or self._awaiting_tls
            or (self._transmission or self._handshake).stalled
        )

    @property
    def negotiating(self) -> bool:
        """True until transmission begins (or the session ends)."""
        return self._transmission is None and not self._closed

    @property
    def idle(self) -> bool:
        """Nothing in flight, no event and no output waiting."""
        in_flight = self._transmission is not None and not self._transmission.device_idle
        return not (in_flight or self._events or self._out or self._handshake.pending)

    @property
    def client(self) -> Client:
        """What is known of the client by now."""
        return self._handshake.gate.client

    @property
    def read_only(self) -> bool:
        """Whether the client was told that it may only read; False while negotiating."""
        return self._transmission is not None and self._transmission.entered.read_only

    @property
    def export_name(self) -> str | None:
        """Canonical name of the export in use; None while negotiating."""
        return None if self._transmission is None else self._transmission.entered.device.name

    # --- inside ------------------------------------------------------------------------------

    def _advance(self) -> None:
        """Parse as far as bytes and limits allow."""
        while self._ending is None and not self._awaiting_tls:
            if self._transmission is not None:
                self._parse_requests(self._transmission)
                return
            outcome = self._handshake.advance(self._rx)
            if outcome is None:
                return
            self._apply(outcome)
        self._rx.clear()

    def _parse_requests(self, transmission: Transmission) -> None:
        batch = transmission.advance(self._rx)
        if batch:
            self._events.append(Submit(transmission.entered.device, batch))
        if transmission.ended is not None:
            self._end(transmission.ended)

    def _apply(self, outcome: Enter | Upgrade | HangUp) -> None:
        match outcome:
            case Enter():
                self._transmission = Transmission(outcome, self._limits, self.stats, self._out)
                if self._handshake.draining:
                    self._transmission.drain()
                self._events.append(Attached(outcome.device))
                self._handshake.release()
            case Upgrade():
                # Bytes behind the option came in the clear: somebody may have put them there.
                self._rx.clear()
                self._handshake.release()
                self._awaiting_tls = True
                self._events.append(StartTls())
            case HangUp():
                self._end(outcome)

    def _end(self, why: HangUp) -> None:
        """Take nothing more; close once the device has finished. The first reason stays."""
        if self._ending is None:
            self._ending = why
            self._rx.clear()
            self._settle()

    def _settle(self) -> None:
        assert self._ending is not None
        transmission = self._transmission
        busy = transmission is not None and not transmission.device_idle
        if self._closed or busy or self._handshake.asking:
            return
        self._closed = True
        self._handshake.abandon()
        if transmission is not None:
            self._events.append(Detached(transmission.entered.device))
        self._events.append(Close(self._ending.reason, self._ending.clean))


def _length(part: Buffer) -> int:
    return len(part)  # type: ignore[arg-type]  # bytes or a memoryview of bytes
