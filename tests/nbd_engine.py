"""The NBD engine with a listener in memory: what tests drive instead of sockets.

`Engine` feeds a Connection, hands batches to their devices and collects what it sends. `client()`
gives a tests.nbd_client.Session that talks to it, so that a test reads like one over a socket.
"""

from typing import Any

from blockd.access.book import Everybody, VolumeAccess
from blockd.access.rules import Client
from blockd.device import BlockDevice
from blockd.nbd.access import ExportPolicy, TlsIdentity, TlsMode
from blockd.nbd.connection import Connection
from blockd.nbd.events import (
    Attached,
    Barred,
    Close,
    Detached,
    LookUp,
    Opened,
    Released,
    StartTls,
    Submit,
)
from blockd.nbd.limits import Limits
from blockd.nbd.lookups import Answer, Prove, Proved, Question, look_up
from blockd.paths import ALONE, Paths
from native import Request
from tests.fakes import FakeExports, FakePolicies, MemoryDevice
from tests.nbd_client import Session


class Engine:
    """A connection to `devices` (one MemoryDevice by default). `closed` is the last event, `barred`
    the volumes that access lists kept from the client."""

    def __init__(
        self,
        *devices: MemoryDevice,
        limits: Limits | None = None,
        tls: TlsMode = TlsMode.OFF,
        policies: dict[str, ExportPolicy] | None = None,
        access: VolumeAccess | None = None,
        known: Client | None = None,
        piece: int | None = None,
        list_versions: bool = False,
        paths: Paths = ALONE,
    ) -> None:
        self.devices = list(devices) or [MemoryDevice()]
        self.exports = FakeExports(self.devices)
        self.connection = Connection(
            self.exports,
            limits=limits or Limits(),
            tls=tls,
            policies=FakePolicies(policies or {}),
            access=access or Everybody(),
            client=known or Client(),
            peer="test",
            list_versions=list_versions,
            paths=paths,
        )
        self.piece = piece
        """Bytes are fed in pieces of this length; None feeds them at once."""
        self.sent = bytearray()
        self.taking = True
        """False: the client takes no replies, so output() is not asked for."""
        self.submitted: list[Request] = []
        self.batches: list[int] = []
        self.starttls = 0
        self.slow_disk = False
        """True: questions about versions wait for `answer()`."""
        self.question: Question | None = None
        """The one that waits."""
        self.proofs: list[BlockDevice] = []
        """Whose attach tokens were asked about..."""
        self.refusal: str | None = None
        """...and what is answered."""
        self.closed: Close | None = None
        self.barred: list[str] = []
        self.pump()

    @property
    def device(self) -> MemoryDevice:
        return self.devices[0]

    def client(self) -> Session:
        return Session(self.send, self.take)

    def send(self, data: bytes) -> None:
        """Bytes from the client; as long as the engine wants them."""
        step = self.piece or max(len(data), 1)
        for at in range(0, len(data), step):
            self.connection.feed(data[at : at + step])
            self.pump()

    def take(self, count: int) -> bytes:
        """Bytes that the engine sent; EOFError when there are not that many."""
        if len(self.sent) < count:
            raise EOFError(f"{len(self.sent)} of {count} bytes were sent ({self.closed})")
        data = bytes(self.sent[:count])
        del self.sent[:count]
        return data

    def eof(self) -> None:
        self.connection.eof()
        self.pump()

    def drain(self) -> None:
        self.connection.drain()
        self.pump()

    def start_tls(self, *names: str, **more: Any) -> None:
        """The TLS handshake succeeded, for a client with these names (none: not authenticated)."""
        self.connection.tls_started(TlsIdentity(names, **more) if names else None)
        self.pump()

    def answer(self) -> None:
        """The disk answers the question that waits."""
        assert self.question is not None
        question, self.question = self.question, None
        self.connection.answered(self._answer(question))
        self.pump()

    def _answer(self, question: Question) -> Answer:
        if isinstance(question, Prove):
            self.proofs.append(question.device)
            return Proved(self.refusal)
        return look_up(question, self.exports)

    def finish(self, count: int | None = None, *, newest_first: bool = False) -> None:
        """Let deferred devices finish `count` requests each, all by default."""
        for device in [*self.devices, *self.exports.opened]:
            device.finish(count, newest_first=newest_first)
        self.pump()

    def pump(self) -> None:
        """What the listener does, see blockd.nbd.connection."""
        while True:
            while (event := self.connection.next_event()) is not None:
                self._handle(event)
            output = self.connection.output() if self.taking else []
            if not output:
                break
            for part in output:
                self.sent += part

    def _handle(self, event: object) -> None:
        assert self.closed is None, f"{event} after {self.closed}"
        match event:
            case Submit():
                assert event.batch
                self.submitted += event.batch
                self.batches.append(len(event.batch))
                event.device.submit(event.batch, self.connection.completed)
            case LookUp():
                assert self.question is None, "two questions at once"
                if self.slow_disk:
                    self.question = event.question
                else:
                    self.connection.answered(self._answer(event.question))
            case Opened():
                event.device.attach("test")
            case Released():
                event.device.detach("test")
            case Attached():
                event.device.attach("test")
            case Detached():
                event.device.detach("test")
            case StartTls():
                self.starttls += 1
            case Barred():
                self.barred.append(event.volume)
            case Close():
                self.closed = event


def open_export(
    engine: Engine,
    *,
    name: str = "disk",
    structured: bool = False,
    extended: bool = False,
    contexts: tuple[str, ...] = (),
    items: tuple[int, ...] = (),
) -> Session:
    """A client of `engine` in transmission."""
    client = engine.client()
    client.greet()
    if structured:
        client.structured_reply()
    if extended:
        client.extended_headers()
    if contexts:
        client.set_meta_context(name, *contexts)
    client.go(name, *items)
    return client
