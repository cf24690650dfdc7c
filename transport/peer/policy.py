"""Bounds of a session between two nodes, and why one ends."""

import enum
from dataclasses import dataclass

from transport.peer.messages import MIN_ROOM_BYTES


class Reason(enum.StrEnum):
    """Why there is no session any more."""

    HANDSHAKE = "no greeting"
    """It could not be reached, or did not greet in time."""
    SILENT = "silent"
    """Nothing was heard of it for `silent_after_s`: stopped, half-open, or cut off."""
    LOST = "lost"
    """The connection broke."""
    NONSENSE = "nonsense"
    """It sent what the protocol does not have, or took none of its answers."""
    REFUSED = "refused"
    """One of the two does not want the other; the text says why."""
    BYE = "bye"
    """It is going down."""
    CLOSED = "closed"
    """We ended it."""


@dataclass(frozen=True, slots=True)
class Policy:
    """What a peer may cost. Times are seconds."""

    handshake_s: float = 5.0
    """From connecting to a greeting: keys are exchanged in it."""
    ping_every_s: float = 1.0
    """A peer of which nothing is heard for so long is asked."""
    silent_after_s: float = 5.0
    """Its session ends when nothing is heard for so long: well below the 10 s of a lease."""
    slow_after_s: float = 2.0
    """It is reported as slow when a request is unanswered for so long."""
    retry_after_s: float = 2.0
    """An unanswered request is sent again after so long, then after twice as long, ..."""
    retry_most_s: float = 10.0
    attempts: int = 5
    """So often is a request sent at all."""
    reconnect_first_s: float = 0.1
    reconnect_most_s: float = 10.0
    """The time to the next try doubles from one to the other, with a random half of it."""
    nonsense_s: float = 30.0
    """The least time to the next try after nonsense: it will hardly be better at once."""
    requests: int = 64
    """Unanswered ones that a peer may have here at once..."""
    request_bytes: int = 64 << 20
    """...and bytes of them, with their answers' payload."""
    waiting: int = 256
    """Requests that wait for room or for a session, at most..."""
    waiting_bytes: int = 64 << 20
    """...and their bytes; more are PeerBusy."""

    def __post_init__(self) -> None:
        assert self.ping_every_s < self.silent_after_s
        assert min(self.request_bytes, self.waiting_bytes) >= MIN_ROOM_BYTES
