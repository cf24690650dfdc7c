"""What a volume is when its primary is gone: decided from what its members promised.

Each promise (SEAL) says: *I take no record of an epoch below the new one*, and what chain the
member has, synced. With R-W+1 of R promises at least one is of a member that has every acknowledged
record, since W members had each of them. The greatest (epoch, seq) is that one, or one that has
more:

- A primary of epoch E begins with a state that W members have, so a chain that ends in epoch E has
  all that was acknowledged before E.
- Within an epoch records come in order, so the longer one has all of the shorter.

What it has beyond what was acknowledged may stay or not, as nobody knows; it stays, and W members
have it before anybody reads, so it is never seen and then gone. For the same reason W members note,
synced, that the new epoch is open before its first read: or a member that was away, with records of
an older epoch that the new one is without, could bring them back at the next takeover.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf

from transport.group.acks import NodeId
from transport.group.chain import Chain, common


@dataclass(frozen=True, slots=True)
class Task:
    """What a member has to do to be in the state that was chosen: undo its records behind
    `keep`, (epoch, seq), then take those behind it from `source`. `keep` None: it is too long ago;
    all of the volume, as a stream that leaves out the chunks that it has."""

    member: NodeId
    keep: tuple[int, int] | None
    undo: bool
    source: NodeId


@dataclass(frozen=True, slots=True)
class Choice:
    """The state of the volume, who has it, and what the others have to do."""

    chain: Chain
    source: NodeId
    tasks: tuple[Task, ...]
    """For members that promised and differ, those with the least to do first."""


def needed(members: int, wanted: int) -> int:
    """Promises without which nobody may go on: any so many and any W of R have one in common."""
    return members - wanted + 1


def choose(promises: Mapping[NodeId, Chain], members: int, wanted: int) -> Choice | None:
    """None: there are not enough promises yet."""
    if len(promises) < needed(members, wanted):
        return None
    # By name where several have it, so that two who look choose the same.
    source = max(promises, key=lambda node: (promises[node].end, node))
    chain = promises[source]
    tasks = [
        task_of(member, own, chain, source)
        for member, own in promises.items()
        if own.end != chain.end
    ]
    tasks.sort(key=lambda task: (chain.seq - task.keep[1] if task.keep else inf, task.member))
    return Choice(chain, source, tuple(tasks))


def task_of(member: NodeId, own: Chain, chain: Chain, source: NodeId) -> Task:
    """What it takes to get from one chain to another that `source` has."""
    keep = common(own, chain)
    return Task(member, keep, keep is not None and own.seq > keep[1], source)
