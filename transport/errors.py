"""What can go wrong between nodes, as facts.

    TransportError
      BadMessage       bytes of a peer that are no message; ends its session
      PeerBusy         more requests wait for a peer than its policy lets wait
      PeerFailed       a request ended without an answer: refused, too late, or the peer is gone
      WrongMap         a change of the device map that cannot be made (devicemap.py)
      TooFewDomains    fewer failure domains than shards of a pack (placement.py)
      MoveOvertaken    a pack's row is not what a move was planned for (shardmoves.py)

Damaged shards are damaged data: `CorruptShard` (shardfile.py) and `StripeLost` (stripes.py) are
`volume.errors.CorruptData`, as whoever reads a chunk has to know them.

Each message names the peer or the message, the value and the way out.
"""


class TransportError(Exception):
    """Base of all errors that transport raises on purpose. `code` is stable, for programs."""

    code = "transport_error"


class BadMessage(TransportError):
    """Frames that are no message of this protocol, or a message that may not be sent.

    Of what was received nothing has been acted upon."""

    code = "bad_message"

    def __init__(self, what: str) -> None:
        super().__init__(f"peer message: {what}")


class PeerBusy(TransportError):
    """Nothing was queued: the caller has to do without the peer, or come again."""

    code = "peer_busy"

    def __init__(self, peer: str, what: str) -> None:
        super().__init__(f"peer {peer}: {what}; it is slower than what is asked of it")


class PeerFailed(TransportError):
    """A request has no answer. Whether the peer has done what was asked is not known, unless it
    was `refused`."""

    code = "peer_failed"

    def __init__(self, peer: str, reason: str, *, refused: bool = False) -> None:
        super().__init__(f"peer {peer}: {reason}")
        self.reason = reason
        self.refused = refused
