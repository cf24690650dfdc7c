"""One initiator's connection, on top of `blockd.client_protocol`: threads, past versions, wake-ups.

The engine counts what units have attached and detaches when it ends. Beside that a connection holds
the past version that its target stands for, from the moment it was opened: however the login ends,
it is let go of when the connection leaves the book.

`Engine.wake` may be called in the middle of another connection's round. The round that it asks for
comes in a turn of the loop of its own, so that no two are ever nested.

While the request loop serves a session (`blockd.iscsi.handover`), it asks for single reads by mail;
these go to the device from here, past the engine, and their data goes back to the loop.
"""

import contextlib
import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, Protocol, cast

from blockd.client_protocol import ClientProtocol, Host
from blockd.device import BlockDevice
from blockd.iscsi.connection import Connection
from blockd.iscsi.events import LookUp, Prove, Submit, Work
from blockd.iscsi.handover import Handover
from blockd.iscsi.pdu import HEADER_BYTES
from blockd.iscsi.stats import Stats
from blockd.iscsi.targets import Target
from blockd.request_loop import RequestLoop
from blockd.workers import Done
from native import (
    LoopClient,
    Request,
    iscsi_add,
    iscsi_give,
    iscsi_heard,
    iscsi_interrupt,
    iscsi_open,
    iscsi_state,
)


class IscsiHost(Host["IscsiProtocol", Connection], Protocol):
    """What an iSCSI connection needs of its listener."""

    def work(self, owner: object, call: Callable[[], Any], done: Done) -> None:
        """As `blockd.workers.Workers.submit`."""

    def look_up(self, owner: object, name: str, done: Callable[[Target | None], None]) -> None:
        """Open the past version that target `name` is; as `work`. Whoever is given a target calls
        `release` once."""

    def release(self, target: Target) -> None:
        """Take back what `look_up` gave."""

    def prove(
        self, owner: object, volumes: Sequence[BlockDevice], done: Callable[[str | None], None]
    ) -> None:
        """Tell why this node may not serve one of these to a client that comes, or None; as
        `work`."""


class InLoop:
    """A session in the request loop (`blockd.iscsi.handover.Elsewhere`)."""

    def __init__(self, client: LoopClient) -> None:
        self.client: Final = client
        self.interrupted = False

    def interrupt(self) -> None:
        if not self.interrupted:
            self.interrupted = True
            iscsi_interrupt(self.client)

    def commands(self, lun: int | None = None) -> int:
        return iscsi_open(self.client) if lun is None else iscsi_open(self.client, lun)

    def heard(self) -> bool:
        return iscsi_heard(self.client)

    def counters(self) -> tuple[int, ...]:
        return self.client.counters()


class IscsiProtocol(ClientProtocol[Connection]):
    """See the module's text."""

    unopened = "no session"

    def __init__(self, host: IscsiHost) -> None:
        super().__init__(host)  # type: ignore[arg-type] # the book has clients of this class only
        self._host = host
        self._works = 0  # calls on other threads whose end the engine waits for
        self._looking_up = False
        self._held: Target | None = None
        self._woken = False
        self._told = False  # that there is a session
        self._in_loop: InLoop | None = None
        self._away: Handover | None = None  # of `_in_loop`, also when the engine is gone

    def wake(self) -> None:
        """The engine has something to say. From the loop's thread, whatever it is doing."""
        if not self._woken and not self._broken:
            self._woken = True
            self._loop.call_soon(self._wake)

    def tick(self, now_s: float) -> None:
        """Called about once a second."""
        if not self._closing and not self._broken:
            self._guarded(self._tick, now_s)

    def _wake(self) -> None:
        self._woken = False
        if not self._lost:
            self._guarded(self._run_again)

    def _tick(self, now_s: float) -> None:
        self.engine.tick(now_s)
        self._run_again()

    def _settle(self) -> None:
        if not self._told and not self.engine.negotiating:
            self._told = True
            self._log_session("iscsi session opened")
        super()._settle()

    def _log_session(self, event: str) -> None:
        self._log(logging.INFO, event, event, initiator=self.engine.initiator or "-")

    # The request loop.

    def stats(self) -> Stats:
        """Counters up to now, those of the request loop included."""
        return self.engine.total_stats

    def _may_hand_over(self) -> bool:
        return self.engine.hand_over_due

    def _hand_over(self, to: RequestLoop) -> LoopClient | None:
        engine, handover = self.engine, self.engine.handover
        offered = engine.offer()
        if offered is None or handover is None:
            return None
        offer, received = offered
        socket = self._transport.get_extra_info("socket").fileno()
        try:
            client = iscsi_add(
                *(to.native, socket, offer.terms, offer.numbers, offer.luns, offer.commands),
                *(received, self),
            )
        except (ValueError, OSError):  # a WRITE with flags that it does not know; no descriptor
            handover.refused()
            return None
        self._in_loop, self._away = InLoop(client), handover
        engine.handed_over(self._in_loop)
        return client

    def loop_news(self, client: LoopClient) -> None:
        if self._broken and client.stopped and client is self._served:
            self._served = None
            self._back(client)  # others may wait for what it had under way
        super().loop_news(client)

    def _handed_back(self, client: LoopClient) -> None:
        self._loop_done = False  # it may go there again
        client.take_mail()  # reads that nobody has begun: they are among what comes back
        self._back(client)

    def _back(self, client: LoopClient) -> None:
        away, in_loop = self._away, self._in_loop
        assert away is not None
        assert in_loop is not None
        self._away = self._in_loop = None
        if self._broken or self._lost or client.was_cut:
            iscsi_state(client)  # places that it has are given up
            away.lost(client.counters())
        else:
            asked = in_loop.interrupted or client.was_asked
            self.engine.handed_back(*iscsi_state(client), client.counters(), asked=asked)

    def _take_mail(self) -> None:
        """Reads, each as the BHS of its command: whole ones, as they are put in whole."""
        client = self._served
        if client is None:
            return
        mail = client.take_mail()
        for at in range(0, len(mail), HEADER_BYTES):
            self._read_for(client, mail[at : at + HEADER_BYTES])

    def _read_for(self, client: LoopClient, bhs: bytes) -> None:
        read = None if self._away is None else self._away.reading(bhs)
        if read is None:
            iscsi_give(client, int.from_bytes(bhs[16:20], "big"), None)
            return
        self.in_flight += 1
        read.device.submit([read.request], partial(self._read_done, client, read.itt))

    def _read_done(self, client: LoopClient, itt: int, requests: list[Request]) -> None:
        (request,) = requests
        self.in_flight -= 1
        iscsi_give(client, itt, None if request.error else cast(bytes, request.data))
        if self._lost:
            self._leave_if_done()

    # What events lead to.

    def _handle_events(self) -> bool:
        engine, any_event = self.engine, False
        while (event := engine.next_event()) is not None:
            any_event = True
            if isinstance(event, Submit):
                self._submit(event.device, event.batch)
            elif isinstance(event, Work):
                self._begin_work(event)
            elif isinstance(event, LookUp):
                self._looking_up = True
                self._host.look_up(self, event.name, self._answered)
            elif isinstance(event, Prove):
                self._looking_up = True
                self._host.prove(self, event.volumes, self._proved)
            else:
                self._end(event.reason, clean=event.clean)
        return any_event

    @property
    def _waited_for(self) -> bool:
        return self._looking_up or self._works > 0

    def _begin_work(self, event: Work) -> None:
        self._works += 1

        def done(value: Any, error: Exception | None) -> None:
            self._works -= 1
            self._guarded(self._worked, event.token, value, error)
            if self._lost:
                self._leave_if_done()

        self._host.work(self, event.call, done)

    def _worked(self, token: int, value: Any, error: Exception | None) -> None:
        self.engine.worked(token, value, error)
        self._run_again()

    def _answered(self, target: Target | None) -> None:
        """The listener answers, on the loop; nobody may be left to be told."""
        self._looking_up = False
        if self._broken:
            if target is not None:
                self._host.release(target)
            return
        self._held = target
        self._guarded(self._take_answer, target)
        if self._lost:
            self._leave_if_done()

    def _proved(self, refusal: str | None) -> None:
        self._looking_up = False
        if not self._broken:
            self._guarded(self._take_proof, refusal)
        if self._lost:
            self._leave_if_done()

    def _take_proof(self, refusal: str | None) -> None:
        self.engine.proved(refusal)
        self._run_again()

    def _take_answer(self, target: Target | None) -> None:
        self.engine.answered(target)
        self._run_again()

    def _release_all(self) -> None:
        if self._told:
            self._log_session("iscsi session closed")
        with contextlib.suppress(Exception):  # an engine that failed may fail again
            self.engine.eof()  # a connection that was cut: its session is over all the same
        if self._held is not None:
            target, self._held = self._held, None
            self._host.release(target)
