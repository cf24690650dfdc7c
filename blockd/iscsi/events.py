"""What a connection asks of the socket side, in the order in which it is to be done."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from blockd.device import BlockDevice
from native import Request


@dataclass(frozen=True, slots=True)
class Submit:
    """Hand to `device.submit(batch, done)`, where done ends in `Connection.completed`.

    Payloads of WRITEs may lie in the connection's receive buffer: they stay valid until the socket
    side asks for the next `buffer()` after this event was handled.
    """

    device: BlockDevice
    batch: list[Request]


@dataclass(frozen=True, slots=True)
class Work:
    """Call `call` on another thread, then `Connection.worked(token, value, error)`, always."""

    call: Callable[[], Any]
    token: int


@dataclass(frozen=True, slots=True)
class LookUp:
    """Open the target of that name, which stands for a past version, on another thread, then call
    `Connection.answered` with it, or with None when there is none."""

    name: str


@dataclass(frozen=True, slots=True)
class Prove:
    """See on another thread whether the attach tokens of this node for these volumes hold
    (`blockd.paths.Paths.refusal`), then call `Connection.proved` with None, or why not."""

    volumes: tuple[BlockDevice, ...]


@dataclass(frozen=True, slots=True)
class Close:
    """The last event: send output(), close the socket.

    `clean` is False when the initiator broke the protocol, was refused or vanished; such reasons
    are for the log.
    """

    reason: str
    clean: bool


Event = Submit | Work | LookUp | Prove | Close
