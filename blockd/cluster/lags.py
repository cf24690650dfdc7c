"""How far members are behind, as the primary knows it: for its own status, and told to other nodes.

It counts what a member has not acknowledged, so also one that does not answer is known to lack it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from blockd.api.cluster_types import CopyInfo, Lag, LocalVolume
from transport.group.link import State
from transport.group.partstatus import PartStatus
from transport.peer import messages as m


@dataclass(frozen=True, slots=True)
class Behind:
    """None: not known."""

    bytes: int | None
    since_s: float | None
    left_s: float | None


def lags_of(part: PartStatus) -> dict[str, Behind]:
    """By node; of a part that is no primary's nothing."""
    return {
        each.member: Behind(each.behind_bytes, each.behind_s, each.left_s) for each in part.members
    }


def told(part: PartStatus) -> m.Lags:
    """As another node is told."""
    rows = tuple(
        (bytes.fromhex(node), _plus(each.bytes), _plus(_ms(each.since_s)), _plus(_ms(each.left_s)))
        for node, each in lags_of(part).items()
    )
    return m.Lags(rows[: m.MAX_BEHIND])


def heard_of(answer: m.Lags) -> dict[str, Behind]:
    """By node."""
    return {
        node.hex(): Behind(length - 1 if length else None, _seconds(since), _seconds(left))
        for node, length, since, left in answer.members
    }


def behind(copy: CopyInfo, lag: Behind | None) -> CopyInfo:
    """With how far it is behind."""
    if copy.in_sync:
        return replace(copy, behind_bytes=0, behind_s=0.0, left_s=0.0)
    if lag is None:
        return copy
    return replace(copy, behind_bytes=lag.bytes, behind_s=lag.since_s, left_s=lag.left_s)


def local(part: PartStatus, names: Mapping[str, str]) -> LocalVolume:
    """A volume as this node alone knows it. `names` of nodes, by id."""
    first, *others = [each for each in part.members if each.counts] or (None,)
    shown = [(names.get(e.member, e.member), e) for e in others if e is not None]
    in_step = sum(each.state == State.STEP.value for _, each in shown)
    return LocalVolume(
        name=part.name,
        serving=part.doing == "serving",
        copies=0 if first is None else 1 + in_step,
        wanted=sum(each.counts for each in part.members),
        behind=tuple((name, max(0, part.received - each.received)) for name, each in shown),
        lags=tuple(Lag(name, e.behind_bytes, e.behind_s, e.left_s) for name, e in shown),
    )


def _ms(seconds: float | None) -> int | None:
    return None if seconds is None else min(round(seconds * 1000), 1 << 60)


def _plus(value: int | None) -> int:
    return 0 if value is None else value + 1


def _seconds(value: int) -> float | None:
    return (value - 1) / 1000 if value else None
