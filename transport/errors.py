"""What can go wrong between nodes, as facts.

    TransportError
      BadMessage       bytes of a peer that are no message; ends its session
      PeerBusy         more requests wait for a peer than its policy lets wait
      PeerFailed       a request ended without an answer: refused, too late, or the peer is gone
      UnknownPeer      there is no such node in the cluster, as far as this one knows
      CannotListen     an address cannot be bound
      BadIdentity      the file that says which node this is cannot be used (keys.py)
      BadToken         a text that is no token to join with (join.py)
      CannotJoin       the cluster has not taken the node, and why (join.py)
      NoSuchNode       there is no node of that name in the cluster (join.py)
      NodeNeeded       a node that volumes still have as a member is not removed (join.py)
      WrongMap         a change of the device map that cannot be made (devicemap.py)
      TooFewDomains    fewer failure domains than shards of a pack (placement.py)
      MoveOvertaken    a pack's row is not what a move was planned for (shardmoves.py)

Damaged shards are damaged data: `CorruptShard` (shardfile.py) and `StripeLost` (stripes.py) are
`volume.errors.CorruptData`, as whoever reads a chunk has to know them.

Each message names the peer or the message, the value and the way out.
"""

from collections.abc import Sequence


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


class UnknownPeer(TransportError):
    """Nothing was queued."""

    code = "unknown_peer"

    def __init__(self, node: bytes) -> None:
        super().__init__(f"node {node.hex()} is not in the cluster, as far as this node knows")


class CannotListen(TransportError):
    """Nobody can connect."""

    code = "cannot_listen"

    def __init__(self, address: str, reason: str) -> None:
        super().__init__(
            f"peer address {address}: {reason}; end what listens there, or change cluster.listen"
        )


class BadToken(TransportError):
    """A text that is not a token, or not a whole one. It is not shown: it may be half of one."""

    code = "bad_token"

    def __init__(self, what: str) -> None:
        super().__init__(f"join token: {what}; make one with `blockd cluster token`")


class CannotJoin(TransportError):
    """The cluster has not answered that the node is in it. To be tried again with the same data
    directory: should it be in it after all, that is found out."""

    code = "cannot_join"


class NoSuchNode(TransportError):
    code = "no_such_node"

    def __init__(self, name: str) -> None:
        super().__init__(f"node {name}: there is none; `blockd cluster show` has their names")


class NodeNeeded(TransportError):
    """Without it, these volumes would have fewer copies than they say; or stripes would lack
    shards, or be taken for unused while it finds chunks in them."""

    code = "node_needed"

    def __init__(self, name: str, volumes: Sequence[str], *, using: int = 0, shards: int = 0):
        """`using`: stripes that it finds chunks in; `shards`: on its devices. Told of when there is
        no volume."""
        shown = ", ".join(volumes[:5]) + (", ..." if len(volumes) > 5 else "")
        if not volumes:
            super().__init__(
                f"node {name} has {shards} shards of stripes, and finds chunks of what is stored "
                f"there in {using} stripes, which nobody else may need: say `blockd cluster device "
                f"drain {name} --wait`, and delete there what volumes and snapshots it has of its "
                "own; or --lost if nothing in its data directory is needed any more"
            )
            return
        super().__init__(
            f"node {name} is a member of volumes: {shown}; say `blockd cluster drain {name}` "
            "first, or --lost if it never comes back"
        )


class BadIdentity(TransportError):
    """It is not guessed which node a data directory is."""

    code = "bad_identity"

    def __init__(self, path: str, what: str) -> None:
        super().__init__(f"{path}: {what}")
