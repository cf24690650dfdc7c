"""Rules of a journal group that worlds break on purpose, to see whether that is noticed.

Each is broken by taking the step out of the product that keeps it, for as long as a world lives.
"""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import inf
from typing import Any
from unittest.mock import patch

from native import OP_READ
from transport.group import lease, part, takeover, takeover_run
from transport.group.acks import Acks, NodeId, Quorum
from transport.group.chain import Chain
from transport.group.mending import Mending
from transport.group.part import Part
from transport.group.primary import Primary
from transport.group.takeover import Choice
from transport.group.takeover_run import Takeover
from volume import gate, sites
from volume.chunkrepair import ChunkRepair
from volume.chunks import ChunkStore
from volume.history import History, Undo
from volume.meta import Meta
from volume.metastore import Done, Lost, Outcome, Row
from volume.noted import Notes
from volume.replica import Replica
from volume.replicastate import ReplicaState
from volume.seal import Seal

Instead = tuple[Any, str, Any]
"""Owner, name, and what is there instead."""


@dataclass(frozen=True, slots=True)
class Rule:
    promise: str
    """What the product does, and is kept from doing."""
    broken: tuple[Instead, ...] = ()
    site: str = ""
    """Of the core (`volume.sites`), where it is the core that keeps it."""


# -- acknowledgements


def _one_less(quorum: Quorum, seqs: Any) -> int:
    found: int = sorted(seqs, reverse=True)[max(0, quorum.wanted - 2)]
    return found


def _seen_by_nobody(request: Any) -> tuple[int, bool] | None:
    if request.op == OP_READ:
        return 0, False
    return (request.wait_seq, request.wait_durable) if request.waits else None


def _says_so_only(replica: Replica) -> None:
    _only_said(replica._state)


def _only_said(state: ReplicaState) -> None:
    state.durable = state.seq()


# -- promises


def _promise_in_memory(replica: Replica, epoch: int) -> None:
    state = replica._state
    with state.lock:
        state.check(epoch)
        state.not_plain()
        if state.serving is not None and state.serving < epoch:
            replica._stop_serving(epoch)
        state.sync()
        state.row = replace(state.row, promised=max(epoch, state.row.promised))


def _keep_promises_only(state: ReplicaState, row: Any) -> None:
    """What has begun is kept with the next promise."""
    if row.promised != state.row.promised:
        _kept(state, row)
    else:
        state.row = row


_kept = ReplicaState.keep


# -- takeovers

_begun = Takeover.__init__


def _with_a_promise_less(takeover: Takeover, *arguments: Any, **options: Any) -> None:
    _begun(takeover, *arguments, **options)
    takeover._needed = max(1, takeover._needed - 1)
    takeover._enough = takeover._needed


def _one_needed_less(members: int, wanted: int) -> int:
    return max(1, members - wanted)


def _longest(promises: Mapping[NodeId, Chain], members: int, wanted: int) -> Choice | None:
    if len(promises) < takeover.needed(members, wanted):
        return None
    source = max(promises, key=lambda node: (promises[node].seq, node))
    chain = promises[source]
    others = {node: own for node, own in promises.items() if own.end != chain.end}
    tasks = (takeover.task_of(node, own, chain, source) for node, own in others.items())
    return Choice(chain, source, tuple(tasks))


_claimed = Takeover._claimed


def _won_anyway(takeover: Takeover, outcome: Outcome, tries: Any, now: float) -> Any:
    if isinstance(outcome, Lost):
        (change,) = tries.transaction.changes
        revision = outcome.rows[0].revision if outcome.rows[0] is not None else 1
        outcome = Done((Row(change.key, change.value or b"", revision),))
    return _claimed(takeover, outcome, tries, now)


# -- the primary


def _noted_at_once(primary: Primary, quorum: Quorum) -> bool:
    return True


_sealed = Primary._sealed


def _as_if_ours(primary: Primary, link: Any, message: Any, now: float) -> None:
    """What a member has is taken to be the beginning of what we have."""
    seq = min(message.chain.seq, primary._own.received)
    link.point = (primary._chain.extended(primary.epoch, primary._own.received).end[0], seq)
    link.received = link.durable = seq
    primary._go_on(link, now)


_read = Replica.read


def _one_further(replica: Replica, epoch: int, after: int, limit: int) -> Any:
    found = _read(replica, epoch, after, limit)
    if found.first_seq and found.last_seq > found.first_seq:
        return _read(replica, found.epoch, found.first_seq, limit)
    return found


# -- snapshots and sizes


def _undone_but_for_names(history: Any, number: int, last: int) -> Undo:
    return Undo((), (), (), tuple(at for at, _ in history.dropped_rows(number)), 0)


_undo_of = History.undo_of


def _dropped_for_good(history: Any, number: int, last: int) -> Undo:
    return replace(_undo_of(history, number, last), back=(), missing=0)


def _appended_only(notes: Any, volume: Any, epoch: int, records: memoryview) -> tuple[int, int]:
    error, seq, _ = volume.core.append_records(epoch, records, notes._clock.now_ns(), True)
    return error, seq


_replace_head = Meta.replace_head


def _with_its_size(meta: Meta, name: str, head: Any, size: int, *rest: Any, **more: Any) -> Any:
    size = next(each.size for each in meta.volumes() if each.name == name)
    return _replace_head(meta, name, head, size, *rest, **more)


_go_back = Notes._restore


def _only_the_primary(notes: Notes, volume: Any, *rest: Any) -> None:
    if not volume.gate.shut:
        _go_back(notes, volume, *rest)


def _told_at_once(at: gate.Gate, request: Any, seq: int, *, durable: bool, done: Any) -> None:
    done([request])


def _none_of_them(*_: Any) -> set[Any]:
    return set()


def _nothing(*_: Any) -> None:
    pass


def _always(*_: Any) -> bool:
    return True


def _never(*_: Any) -> bool:
    return False


RULES: Mapping[str, Rule] = {
    "ack before W": Rule(
        "a write is acknowledged when W members have it in their journals",
        ((Acks, "_least_of_most", staticmethod(_one_less)), (Primary, "lend", _never)),
    ),
    "ack before W, natively": Rule(
        "so it is where that is counted without Python",
        site="sender.ack-early",
    ),
    "flush before W disks": Rule(
        "a flush is acknowledged when W members have synced what is before it",
        ((Acks, "durable", property(lambda acks: acks._acked)),),
    ),
    "a member that only says it has synced": Rule(
        "what a member calls durable is on its disk",
        ((ReplicaState, "sync", _only_said), (Replica, "sync", _says_so_only)),
    ),
    "reads do not wait for W": Rule(
        "a read that saw a record is answered when W members have it",
        ((gate, "_judged", _seen_by_nobody),),
    ),
    "a promise in memory": Rule(
        "a promise is durable before it is given",
        ((Replica, "promise", _promise_in_memory),),
    ),
    "an epoch that is noted in memory": Rule(
        "W members have noted, durably, where an epoch begins, before it is read from",
        ((ReplicaState, "keep", _keep_promises_only),),
    ),
    "a promise too few": Rule(
        "a takeover needs R-W+1 promises",
        (
            (Takeover, "__init__", _with_a_promise_less),
            (takeover, "needed", _one_needed_less),
        ),
    ),
    "the longest wins": Rule(
        "of what members have, the newest epoch counts before the length",
        ((takeover_run, "choose", _longest),),
    ),
    "a lost transaction is taken for a won one": Rule(
        "who does not win the transaction does not take the volume over",
        ((Takeover, "_claimed", _won_anyway),),
    ),
    "open before W know": Rule(
        "nobody reads from an epoch before W members have noted that it began, and answer",
        (
            (Primary, "_noted", _noted_at_once),
            (lease.Lease, "renewed_at", property(lambda lease: 1e9)),
        ),
    ),
    "no wait for the lease": Rule(
        "a takeover waits until no earlier primary can be answering reads",
        ((Takeover, "free_at", property(lambda takeover: -inf)),),
    ),
    "a lease longer than the wait": Rule(
        "a primary answers no read after its lease, which is shorter than the wait",
        ((lease, "READS_S", 40.0),),
    ),
    "a primary that ignores refusals": Rule(
        "who is refused, or has promised a later epoch itself, serves no more",
        (
            (Primary, "_fence", _nothing),
            (Replica, "_stop_serving", _nothing),
            (Part, "_own_promise", _nothing),
        ),
    ),
    "what a member had counts on": Rule(
        "what a member says when it is sealed takes the place of all that it had before",
        ((Primary, "_has", _nothing),),
    ),
    "nothing is undone": Rule(
        "what a member has beside the state that was chosen is undone",
        ((Primary, "_sealed", _as_if_ours), (Mending, "start", _nothing)),
    ),
    "who was replaced keeps its part": Rule(
        "a member that was replaced lets its part go",
        ((part, "has_place", _always),),
    ),
    "a disk that failed a sync is used again": Rule(
        "a disk that has failed a sync takes nothing more, and is said to be sealed",
        ((Seal, "close", _nothing),),
    ),
    "a seal in memory": Rule(
        "a disk that has failed a sync is not used by the next process either",
        ((Meta, "seal", _nothing),),
    ),
    "what is undone leaves its names": Rule(
        "a snapshot of a state that is undone is gone with it",
        ((History, "undo_of", _undone_but_for_names),),
    ),
    "what was dropped is gone at once": Rule(
        "a snapshot comes back when it is undone that it was dropped",
        ((History, "undo_of", _dropped_for_good),),
    ),
    "members do nothing by a NOTE": Rule(
        "what the primary does to names and sizes, every member does",
        ((Notes, "take", _appended_only),),
    ),
    "a start does nothing by a NOTE": Rule(
        "what the journal says of names and sizes, and meta/ does not, is done at a start",
        ((Notes, "replay", _nothing),),
    ),
    "what is undone leaves its size": Rule(
        "the size is that of the state gone back to",
        ((Meta, "replace_head", _with_its_size),),
    ),
    "only the primary goes back": Rule(
        "what the primary goes back to, every member does",
        ((Notes, "_restore", _only_the_primary),),
    ),
    "a restore is told of at once": Rule(
        "what is done to a volume is told of when W members have it",
        ((gate.Gate, "confirm", _told_at_once),),
    ),
    "damage is not repaired": Rule(
        "what other nodes have of a damaged chunk is stored anew",
        ((ChunkRepair, "take", _none_of_them),),
    ),
    "what no pack has is not asked for": Rule(
        "a chunk is fetched as well whose entry was damaged when the index was made anew",
        ((ChunkStore, "note_lost", _nothing),),
    ),
    "zeros for damage": Rule(
        "what is damaged is an error, or what another node has, never zeros",
        site="read.zeros-for-damage",
    ),
    "bytes go out unchecked": Rule(
        "what is read is checked before a client has it", site="read.unchecked"
    ),
    "catching up skips a record": Rule(
        "a member that catches up gets every record",
        ((Replica, "read", _one_further),),
    ),
}


@contextlib.contextmanager
def broken_rule(name: str | None) -> Iterator[None]:
    """Break a rule while the context lasts. KeyError."""
    with contextlib.ExitStack() as stack:
        if name is not None:
            rule = RULES[name]
            for owner, attribute, instead in rule.broken:
                stack.enter_context(patch.object(owner, attribute, instead))
            if rule.site:
                stack.callback(sites.disarm)
                sites.arm(rule.site, chance=1.0)
        yield
