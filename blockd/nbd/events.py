"""What a connection asks of the listener, in the order in which it is to be done."""

from dataclasses import dataclass

from blockd.device import BlockDevice
from blockd.nbd.lookups import Question
from native import Request


@dataclass(frozen=True, slots=True)
class Submit:
    """Hand to `device.submit(batch, done)`, where done ends in `Connection.completed`.

    Payloads of WRITEs in `batch` lie in the connection's receive buffer and stay valid until the
    listener asks for the next `buffer()` after this event was handled.
    """

    device: BlockDevice
    batch: list[Request]


@dataclass(frozen=True, slots=True)
class StartTls:
    """Send output() in the clear, then start TLS as server and call `tls_started`.

    When the TLS handshake fails, call `eof`: there is no way back to the clear.
    """


@dataclass(frozen=True, slots=True)
class LookUp:
    """Answer `question` on another thread (`lookups.look_up`), then call `answered`, always."""

    question: Question


@dataclass(frozen=True, slots=True)
class Opened:
    """A version was opened for this client, which still negotiates: call `device.attach(peer)`."""

    device: BlockDevice


@dataclass(frozen=True, slots=True)
class Released:
    """Negotiation no longer needs an `Opened` device: call `device.detach(peer)`.

    When the client attached to it, `Attached` came before.
    """

    device: BlockDevice


@dataclass(frozen=True, slots=True)
class Barred:
    """The client was told that there is no such export, as the access list of `volume` does not let
    it in: for the log."""

    volume: str


@dataclass(frozen=True, slots=True)
class Attached:
    """The client entered transmission: call `device.attach(peer)`."""

    device: BlockDevice


@dataclass(frozen=True, slots=True)
class Detached:
    """Nothing is in flight any more and nothing will be: call `device.detach(peer)`."""

    device: BlockDevice


@dataclass(frozen=True, slots=True)
class Close:
    """The last event: send output(), end TLS, close the socket.

    `clean` is False when the client broke the protocol or vanished; such reasons are for the log.
    """

    reason: str
    clean: bool


Event = Submit | StartTls | LookUp | Opened | Released | Barred | Attached | Detached | Close
