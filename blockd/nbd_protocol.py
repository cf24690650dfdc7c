"""One NBD client's connection, on top of `blockd.client_protocol`: TLS, versions, attachments.

Under TLS bytes land in a buffer that all connections share and are decrypted into the engine's own;
replies are encrypted before they are written, and close_notify comes before the end.

A client that names a version makes the listener look for it on another thread. Meanwhile nothing is
read of this client; its handshake timer runs on. The version that was opened is attached at once,
so that one way leads to its being closed again: whatever becomes of the client, it is detached.
"""

import logging
from collections.abc import Callable
from typing import Protocol

from typing_extensions import Buffer

from blockd.access.book import VolumeAccess
from blockd.access.rules import Grant
from blockd.client_protocol import RECEIVE_BYTES, ClientProtocol, Host, scratch
from blockd.device import BlockDevice, ServedByCore
from blockd.nbd.connection import Connection
from blockd.nbd.events import (
    Attached,
    Barred,
    Detached,
    LookUp,
    Opened,
    Released,
    StartTls,
    Submit,
)
from blockd.nbd.lookups import Answer, Question, VersionOpened
from blockd.nbd.stats import Stats
from blockd.request_loop import RequestLoop
from blockd.tls import TlsChannel, TlsError
from native import LoopClient


class NbdHost(Host["NbdProtocol", Connection], Protocol):
    """What an NBD connection needs of its listener."""

    def tls_channel(self) -> TlsChannel:
        """TLS for one connection."""

    def look_up(self, question: Question, done: Callable[[Answer], None]) -> None:
        """Answer `question` on another thread; `done` is called later, on the loop, once."""


class NbdProtocol(ClientProtocol[Connection]):
    """See the module's text. The listener reads `tls` as well."""

    unopened = "no export opened"

    def __init__(self, host: NbdHost) -> None:
        super().__init__(host)  # type: ignore[arg-type] # the book has clients of this class only
        self.tls: TlsChannel | None = None
        self._host = host
        self._device: BlockDevice | None = None  # attached to
        self._held: BlockDevice | None = None  # a version opened for the negotiation, attached too
        self._on_core = False  # what it is attached to can be served by the request loop
        self._on_version = False  # `_device` was opened for this client alone
        self._looking_up = False

    @property
    def open_versions(self) -> int:
        """Versions that are open for this client, or being opened."""
        return self._looking_up + (self._held is not None) + self._on_version

    def keeps(self, access: VolumeAccess) -> bool:
        """Whether access lists let it have what it is attached to, as it is."""
        if self._device is None or self._broken:
            return True
        grant = access.grant(self._device, self.engine.client)
        return grant is Grant.WRITE or (grant is Grant.READ and self.engine.read_only)

    def stats(self) -> Stats:
        """Counters up to now, those of the request loop included."""
        if self._served is None:
            return self.engine.stats
        total = self.engine.stats.copied()
        total.served(self._served.counters())
        return total

    # Between the socket and the engine.

    def _may_hand_over(self) -> bool:
        return self._on_core and self.tls is None

    def _hand_over(self, to: RequestLoop) -> LoopClient | None:
        terms = self.engine.hand_over()
        if terms is None or self._device is None:
            return None
        return to.native.add_nbd(
            terms.core,
            self._account(self._device),
            self._book.rate_limits.of(self._device),
            self._transport.get_extra_info("socket").fileno(),
            terms.replies,
            terms.size,
            terms.minimum_block_size,
            terms.max_payload,
            terms.read_only,
            terms.received,
            self,
        )

    def _handed_back(self, client: LoopClient) -> None:
        self.engine.served(client.counters())

    def _paid(self, client: LoopClient) -> None:
        if self._device is not None:
            self.throttle.paid(self._device, client.take_paid())

    def _direct(self) -> bool:
        return self.tls is None

    def _landed(self, count: int) -> None:
        if self.tls is None:
            self.engine.received(count)
        else:
            self.tls.received(scratch[:count])

    def _advance(self) -> bool:
        """Go on with TLS: True when the engine was told something."""
        tls, engine = self.tls, self.engine
        if tls is None or self._ending or self._closing:
            return False
        if not tls.established:
            done = tls.handshake()  # what it has to send, _send() sends
            if done:
                engine.tls_started(tls.identity)
            return done
        if self._write_paused or self._input_ended or not engine.wants_input:
            return False
        count = tls.read_into(engine.buffer(RECEIVE_BYTES))
        if count:
            engine.received(count)
        elif tls.peer_closed:
            self._input_ended = True
            engine.eof()
        return count > 0 or self._input_ended

    def _encoded(self, output: list[Buffer]) -> list[Buffer]:
        """During a TLS handshake there is no output, and nothing may leave in the clear."""
        if self.tls is None:
            return output
        ciphertext = self.tls.encrypt(output) if self.tls.established else self.tls.output()
        return [ciphertext] if ciphertext else []

    def _wants_bytes(self) -> bool:
        shaking_hands = self.tls is not None and not self.tls.established
        return shaking_hands or self.engine.wants_input

    def _farewell(self) -> bytes:
        return b"" if self.tls is None else self.tls.close()

    def _failed(self, error: Exception) -> None:
        if isinstance(error, TlsError):
            self._tls_failed(error)
        else:
            self._fail()

    def _tls_failed(self, error: TlsError) -> None:
        """The session is over. An alert for the client may wait; nothing else is sent."""
        assert self.tls is not None
        self._dropped(f"tls {error}".replace(":", ",", 1))
        self._hang_up()  # sends the alert, too

    # What events lead to.

    def _handle_events(self) -> bool:
        engine, any_event = self.engine, False
        while (event := engine.next_event()) is not None:
            any_event = True
            if isinstance(event, Submit):
                self._submit(event.device, event.batch)
            elif isinstance(event, StartTls):
                self._write(engine.output())  # the last bytes in the clear
                self.tls = self._host.tls_channel()
            elif isinstance(event, LookUp):
                self._looking_up = True
                self._host.look_up(event.question, self._answered)
            elif isinstance(event, Opened):
                self._hold(event.device)
            elif isinstance(event, Released):
                self._release()
            elif isinstance(event, Barred):
                kind = f"not let in to {event.volume}"
                self._log(logging.WARNING, kind, "nbd client not let in", volume=event.volume)
            elif isinstance(event, Attached):
                self._attach(event.device)
            elif isinstance(event, Detached):
                self._detach()
            else:
                self._end(event.reason, clean=event.clean)
        return any_event

    @property
    def _waited_for(self) -> bool:
        return self._looking_up

    def _answered(self, answer: Answer) -> None:
        """The listener answers, on the loop; nobody may be left to be told."""
        self._looking_up = False
        if self._broken and isinstance(answer, VersionOpened):
            self._hold(answer.device)
            self._release()
        self._guarded(self._take_answer, answer)
        if self._lost:
            self._leave_if_done()

    def _take_answer(self, answer: Answer) -> None:
        if self._closing and not self._input_ended:  # too late to attach to anything
            self._input_ended = True
            self.engine.eof()
        self.engine.answered(answer)
        self._run_again()

    def _hold(self, device: BlockDevice) -> None:
        device.attach(self.peer)
        self._held = device

    def _release(self) -> None:
        if self._held is not None:
            device, self._held = self._held, None
            device.detach(self.peer)

    def _attach(self, device: BlockDevice) -> None:
        device.attach(self.peer)
        self._device = device
        self.engine.stats.account = self._account(device)
        self._on_core = isinstance(device, ServedByCore)
        self._on_version = device is self._held
        names = "-" if self.tls is None else ",".join(self.tls.identity.names) or "anonymous"
        self._log(logging.INFO, f"attached {device.name}", "nbd client attached", tls=names)

    def _detach(self) -> None:
        if self._device is not None:
            device, self._device = self._device, None
            self._on_version = False
            device.detach(self.peer)
            self._log(logging.INFO, f"detached {device.name}", "nbd client detached")

    def _release_all(self) -> None:
        self._detach()
        self._release()
