"""Ways to volumes that several nodes have, as front ends see them.

One node serves such a volume, the others would after a takeover. A *way* is one of these nodes:
where its clients connect, and what they find there now. NBD sends a client that is at the wrong
node to the right one; iSCSI lets initiators log in everywhere and tells them by ALUA.

**Attach tokens.** A node that has become the primary of a volume holds a token {volume, epoch,
node} from then on, until it is not the primary any more. Before a client that attaches there is
served anything, the token is looked at (`Paths.refusal`):

    its lease has run out                      refused: somebody else may be serving by now
    the MetaStore has a later epoch, another   refused, and the node looks at once whether it is
    primary, or no such volume                 to stop
    the MetaStore has just this epoch          let in
    the MetaStore does not answer in time      let in: the lease is enough

The lease alone keeps two nodes from serving at once (`transport/group/lease.py`), as long as clocks
go on; asking the MetaStore as well holds for a machine whose clock stood still while it was paused.
Without the MetaStore nobody takes over, so that a node whose lease goes on is the primary.
"""

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from blockd.device import BlockDevice, MayBeElsewhere
from blockd.shared_state import SharedState

MAX_NODES: Final = 254
"""That export volumes of a cluster: a node's number is the first byte of its portals' tags."""
MAX_LOCAL_TAG: Final = 255


class WayState(enum.StrEnum):
    SERVING = "serving"
    STANDBY = "standby"
    CHANGING = "changing"
    """It is taking the volume over, or served it and is not sure any more."""
    UNREACHABLE = "unreachable"
    """From the node that tells it."""


@dataclass(frozen=True, slots=True)
class Way:
    """To one volume, by one node."""

    node: str
    """Its name."""
    number: int
    """1 to MAX_NODES: the same for ever, and no other node's."""
    here: bool
    state: WayState
    nbd: tuple[str, ...]
    """HOST:PORT."""
    iscsi: tuple[str, ...]
    """HOST:PORT,TAG, where TAG is the portal group tag, and the relative target port identifier."""

    @property
    def tags(self) -> tuple[int, ...]:
        """Of its portals, ascending."""
        return tuple(sorted({int(each.rpartition(",")[2]) for each in self.iscsi}))


def tag_of(number: int, local: int) -> int:
    """The portal group tag of a portal of node `number` (0: one by itself) whose own tag there is
    `local`."""
    return number << 8 | local


class Paths(Protocol):
    """Quick but for `refusal`; the event loop's thread."""

    @property
    def number(self) -> int:
        """This node's; 0: not known yet, or a node by itself."""

    def ways(self, volume: bytes) -> tuple[Way, ...]:
        """All of them, by number; none for a volume of this node alone, and none while this node
        has no number."""

    def refusal(self, volume: bytes) -> str | None:
        """Why the attach token of this node for a volume does not hold, with the way out; None: it
        does. Waits a few seconds at most; any thread."""

    def shared(self, volume: bytes) -> SharedState | None:
        """What all nodes of a volume keep together; None for a node by itself."""

    def watch(self, changed: Callable[[], None], settle: Callable[[], None] | None = None) -> None:
        """Have `changed` called, on any thread, when `number` or any of `ways` may be another; and
        `settle`, on a thread that may wait, before this node serves a volume: it returns when what
        was changed until then has been seen to. OSError: it was not, and nothing is served."""


class Alone:
    """Of a node by itself."""

    number = 0

    def ways(self, volume: bytes) -> tuple[Way, ...]:
        return ()

    def refusal(self, volume: bytes) -> str | None:
        return None

    def shared(self, volume: bytes) -> SharedState | None:
        return None

    def watch(self, changed: Callable[[], None], settle: Callable[[], None] | None = None) -> None:
        pass


ALONE: Final[Paths] = Alone()


def mirrored(device: BlockDevice) -> bool:
    """Whether other nodes have the volume as well."""
    # Often asked: isinstance of a Protocol would look at each of its properties.
    return bool(getattr(device, "mirrored", False))


def went_back(device: BlockDevice) -> int:
    """How often a volume that other nodes have as well became an earlier state, as the same
    device."""
    return int(getattr(device, "went_back", 0))


def elsewhere(device: BlockDevice, paths: Paths) -> str | None:
    """Why a client that only one node can serve is not let in at this one, with the way out."""
    if not isinstance(device, MayBeElsewhere) or (why := device.elsewhere) is None:
        return None
    return told_where(device.name, paths.ways(device.volume_uuid)) or why


def told_where(volume: str, ways: tuple[Way, ...]) -> str | None:
    """Who else serves a volume, and where; None when nobody is known to."""
    for way in ways:
        if way.state is WayState.SERVING and not way.here:
            where = f" at {', '.join(way.nbd)}" if way.nbd else ", which has no NBD listener"
            return f"volume {volume} is served by {way.node}{where}"
    changing = next((way for way in ways if way.state is WayState.CHANGING and not way.here), None)
    if changing is None:
        return None
    return f"volume {volume} is being taken over by {changing.node}; try again"
