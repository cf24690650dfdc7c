"""What a primary knows of one other member, what it asks to be done, and the bounds of both."""

import enum
from dataclasses import dataclass
from typing import Final

from transport.group.acks import NodeId
from transport.group.trail import Trail
from transport.peer import messages as m
from volume.replicacopy import Copied, Heard

RATE_S: Final = 10.0
"""Of what is written, by which a member that catches up falls back meanwhile."""


@dataclass(frozen=True, slots=True)
class GroupPolicy:
    """Bounds of a primary's sender. Times are seconds."""

    queue_bytes: int = 64 << 20
    """Records that are kept in memory for members that do not have them yet."""
    behind_after_s: float = 3.0
    """A member that does not acknowledge an APPEND for so long is behind."""
    request_s: float = 10.0
    """After that an answer does not come any more."""
    seal_s: float = 60.0
    """The same for SEAL and UNDO, which wait for disks, and for a destage round."""
    retry_first_s: float = 0.25
    """After a member failed it is tried again so much later, then twice as much, ..."""
    retry_most_s: float = 5.0
    again_s: float = 0.02
    """A member whose journal had no room for all of an APPEND gets the rest so much later."""


class State(enum.Enum):
    """Of a member, as the primary has it."""

    AWAY = "away"
    """Not asked before `retry_at`."""
    SEALING = "sealing"
    UNDOING = "undoing"
    COPYING = "being copied to"
    """It gets all of the volume."""
    CATCHING = "catching up"
    """It gets records from the log, at its own pace."""
    OPENING = "opening"
    STEP = "in step"
    """It gets what the tap gives."""


# -- effects: what the owner of a Primary has to do


@dataclass(frozen=True, slots=True)
class Send:
    """Ask a member; `answered` or `failed` once with `tag`, `timeout_s` from now at the latest."""

    member: NodeId
    tag: int
    message: m.Request
    timeout_s: float


@dataclass(frozen=True, slots=True)
class Take:
    """Take what the tap has: `taken`, or `lost` where it has been lost, once."""


@dataclass(frozen=True, slots=True)
class ReadLog:
    """Read records behind `after`, of `epoch`, from the own log: `read` once with `tag`."""

    tag: int
    epoch: int
    after: int
    limit: int


@dataclass(frozen=True, slots=True)
class Copy:
    """Take the next step of a stream of all of the volume for a member, which is at byte `at` and
    has said that (`Replica.copy`): `copied` once with `tag`."""

    tag: int
    member: NodeId
    at: int
    limit: int
    heard: Heard
    after: int
    """Seq behind which states that have a name are to be copied before the newest one."""


@dataclass(frozen=True, slots=True)
class SyncOwn:
    """Make the own journal durable: `synced` once."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Writes up to `acked` may be acknowledged, and flushes of what is up to `durable`."""

    acked: int
    durable: int


@dataclass(frozen=True, slots=True)
class Opened:
    """W members have noted that the epoch is open: clients may be let in."""


@dataclass(frozen=True, slots=True)
class Renewed:
    """The lease was renewed: `Lease.reads_until` is another one."""


@dataclass(frozen=True, slots=True)
class Fenced:
    """A member has promised a later epoch: nothing may be acknowledged or read here any more."""

    epoch: int


@dataclass(frozen=True, slots=True)
class Lag:
    """A member is not in step any more, or is again."""

    member: NodeId
    behind: bool
    why: str


Effect = Send | Take | ReadLog | Copy | SyncOwn | Progress | Opened | Renewed | Fenced | Lag


@dataclass(frozen=True, slots=True)
class MemberStatus:
    """A member as `blockd cluster status` shows it."""

    member: NodeId
    state: str
    received: int
    durable: int
    why: str
    """Why it is not in step; "" when it is."""
    counts: bool = True
    """False for a node that is to be a member and is none yet."""
    behind_bytes: int | None = None
    """Of records that it has not acknowledged; None: not known."""
    behind_s: float | None = None
    """So long ago the first of these was written; None: not known."""
    left_s: float | None = None
    """Until it has caught up, at the rate at which it has done so far; None: not known."""


@dataclass(slots=True)
class Link:
    """One other member. `point`: (epoch, seq) up to which it is known to have the volume."""

    node: NodeId
    state: State = State.AWAY
    point: tuple[int, int] = (0, 0)
    received: int = 0
    durable: int = 0
    joined: bool = False
    """It has noted that the epoch is open: what it acknowledges counts."""
    sent: int = 0
    """Seq of the newest record under way or there."""
    tag: int = 0
    """Of the request under way, but for syncs; 0: there is none."""
    since: float = 0.0
    """When that was sent."""
    sync_tag: int = 0
    keep: int = 0
    """Seq up to which it shares our chain, where that is known."""
    lacks: bool = False
    """It has records as far as the log leads it, and needs all of the volume to go on."""
    anew: bool = False
    """And nothing of what it has counts: the copy brings every state that has a name."""
    copy: Copied | None = None
    """The piece of a stream that it gets."""
    copied: int = 0
    """Bytes of that stream that it has."""
    after: int = 0
    """Seq up to which it has the states that have names."""
    caught: tuple[float, int] = (0.0, 0)
    """When it began to be sent records of the log, and what it had then."""
    hold: int | None = None
    """While it is read from the log for this member: records from this seq on are kept for it."""
    retry_at: float | None = 0.0
    """When to go on with it, where that is not at once; None otherwise."""
    failures: int = 0
    lags: bool = True
    why: str = "not asked yet"


def shown(link: Link, trail: Trail | None, counts: bool, now: float) -> MemberStatus:
    """`trail` None: it does not have all that was written."""
    found = None if trail is None else trail.behind(link.received, now)
    lacks = since_s = left_s = None
    if trail is not None and found is not None:
        lacks, since_s = found
        left_s = _left_s(link, trail, lacks, now)
    why = link.why if link.lags else ""
    return MemberStatus(
        *(link.node, link.state.value, link.received, link.durable, why, counts),
        *(lacks, since_s, left_s),
    )


def _left_s(link: Link, trail: Trail, lacks: int, now: float) -> float | None:
    """Until it has the `lacks` bytes that it is behind, while others are written."""
    if not lacks:
        return 0.0
    since, had = link.caught
    before = trail.behind(had, now)
    if link.state is not State.CATCHING or before is None or now <= since:
        return None
    rate = (before[0] - lacks) / (now - since) - trail.rate(RATE_S, now)
    return lacks / rate if rate > 0 else None


@dataclass(frozen=True, slots=True)
class Asked:
    """A request under way."""

    link: Link
    message: m.Request | None
    """None: it is of the own log."""
    sent_at: float
    had: int = 0
    """Seq up to which the member had records then, where that is asked for."""
