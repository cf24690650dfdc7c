"""Changing: who the members of a volume are, while its primary serves it.

    called   the volume's row names who comes, and in whose place (`ClusterRecords.call_member`)
    filling  that node has made its part, and is brought into step as any member is, by a copy and
             then records; it counts for nothing
    both     what is acknowledged, and each renewal of the lease, has W of the members as they are
             *and* W of those that are to be
    row      one transaction, guarded by the row as it was read: these are the members. Who was
             replaced leaves, and lets its part go when it reads that
    done     W of the new members are enough

**Why nothing is lost.** Whoever takes over has claimed the row in a transaction that is guarded by
the row as it was, and asks R-W+1 members of the row that it claimed. So one of the two
transactions, its claim and the one above, comes first, and the other one fails:

- The claim first: members are the old ones. All that was ever acknowledged has W of them, in
  *filling* by the old rule, in *both* by both; so R-W+1 of them have one that has it.
- The change first: members are the new ones, and it was sent only when W of *these* have noted
  that the epoch is open and have all that was acknowledged, and all that is acknowledged from then
  on has W of them as well. So R-W+1 of the new ones have one whose chain has it all, and it is the
  greatest (epoch, seq), since any W that have noted the epoch and any R-W+1 have one in common.
- Reads: before the change is sent W of the new ones have renewed the lease not earlier than the
  newest renewal that reads were ever let in by. So who takes over by the new members waits for
  every read that may be answered, as `lease.py` says.

While what came of the transaction is not known (its answer was lost) both rules hold, which is safe
whichever way it went, and the same transaction is sent until it is known. That is joint consensus
with the row as the one log entry; the epoch stays, no request waits and no client is cut off.

A crash at any point leaves the row as it was or as it is to be, and whoever takes over goes on from
there: it finds who comes in the row. A part that nobody counts any more is let go only by the node
that has it, when the row, proved to be current, is without it (`ending.py`).

Plain: told of rows and answers, asks by callbacks, a clock passed in.
"""

import enum
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import Final

from transport.group.acks import NodeId, Quorum
from transport.group.around import Around, text_of
from transport.group.link import Effect
from transport.group.primary import Primary
from transport.peer import messages as m
from transport.peer.wire import Message
from volume.metastore import ClusterRecords, Done, Lost, Outcome, Stored, Transaction, Unavailable
from volume.metastore_records import GroupState, VolumeGroup
from volume.replica import Replica

log = logging.getLogger(__name__)

CREATE_S: Final = 30.0
AGAIN_S: Final = 5.0
"""Until a node that could not make its part is asked again, or a transaction that was refused."""
KNOWN_FIRST_S: Final = 0.2
KNOWN_MOST_S: Final = 5.0
"""Until a transaction is sent again whose answer was lost: the first, then twice as long, ..."""


class Phase(enum.StrEnum):
    STEADY = "steady"
    CALLED = "called"
    FILLING = "filling"
    BOTH = "both"
    ROW = "row"


@dataclass(frozen=True, slots=True)
class ChangeStatus:
    """Of a change of members that is under way."""

    coming: NodeId
    replaces: NodeId
    phase: str
    for_s: float
    """Since this primary knows of it."""
    problem: str
    """Why it does not get on; "" while it does."""
    refused_s: float | None = None
    """So long ago who comes did not make its part, and has not since; None: it has, or is asked."""


@dataclass(frozen=True, slots=True)
class Told:
    """What follows for the owner."""

    carry_out: Callable[[list[Effect]], None]
    """Effects of the Primary."""
    ask: Callable[[NodeId, m.Request, float, Callable[[Message | str], None]], None]
    move: Callable[[NodeId, Callable[[str | None], None]], None]
    """Have another member be the primary; told what is wrong."""
    overtaken: Callable[[int], None]
    """The MetaStore has a later epoch."""
    alive: Callable[[], bool]
    """Whether the Primary is still it."""


class Changing:
    """Of one primary, in its epoch. The owner calls `noted` with each row that it has read, and
    `poll` after each thing that the Primary was told, and when `deadline` has come."""

    def __init__(
        self,
        around: Around,
        replica: Replica,
        primary: Primary,
        group: VolumeGroup,
        me: NodeId,
        store: ClusterRecords,
        told: Told,
    ) -> None:
        self._around = around
        self._replica = replica
        self._primary = primary
        self._members = tuple(NodeId(node) for node in group.members)
        self._wanted = group.write_quorum
        self._me = me
        self._store = store
        self._told = told
        self._row: Stored[VolumeGroup] | None = None
        self._coming: NodeId | None = None
        self._replaces = me
        self._since = 0.0
        self._phase = Phase.STEADY
        self._asking = False
        self._problem = ""
        self._refused_at: float | None = None
        self._transaction: Transaction | None = None
        self._waits = False  # for what came of it
        self._tries = 0
        self._doubt = False  # whether a try may have happened
        self._again_at = inf
        self._polling = False

    # -- what the owner sees

    @property
    def deadline(self) -> float:
        return self._again_at if self._again_at > -inf else inf

    @property
    def status(self) -> ChangeStatus | None:
        if self._coming is None:
            return None
        now, phase = self._around.clock(), self._phase.value
        refused_s = None if self._refused_at is None else now - self._refused_at
        for_s = now - self._since
        return ChangeStatus(self._coming, self._replaces, phase, for_s, self._problem, refused_s)

    # -- inputs

    def noted(self, found: Stored[VolumeGroup]) -> None:
        """The row, perhaps an old one."""
        record = found.record
        if record.epoch > self._primary.epoch:
            self._told.overtaken(record.epoch)
            return
        ours = (record.epoch, record.primary) == (self._primary.epoch, self._me)
        if not ours or record.state is not GroupState.OPEN or self._transaction is not None:
            return
        known = found.row.revision if self._row is None else self._row.row.revision
        if found.row.revision < known:
            return
        self._row = found
        coming = None if record.coming is None else NodeId(record.coming)
        replaces = self._me if record.replaces is None else NodeId(record.replaces)
        if (coming, replaces) != (self._coming, self._replaces):
            self._call(coming, replaces)
        elif coming is not None and found.row.revision > known:
            self._call_again()
        elif self._phase is Phase.FILLING and coming is not None and self._primary.away(coming):
            self._phase = Phase.CALLED  # it may have no part any more: again is no harm
        self.poll()

    def poll(self) -> None:
        """Take every step that can be taken."""
        if self._polling:
            return
        self._polling = True
        try:
            self._poll()
        finally:
            self._polling = False

    def _poll(self) -> None:
        now = self._around.clock()
        if self._phase is Phase.CALLED and not self._asking and now >= self._again_at:
            self._create()
        if self._phase is Phase.FILLING and now >= self._again_at:
            self._again_at = -inf  # whenever the Primary hears something
            if self._coming is not None and self._primary.in_step(self._coming):
                if self._replaces == self._me:
                    self._hand_over()
                else:
                    self._both()
        if self._phase is Phase.BOTH:
            assert self._coming is not None
            if not self._primary.in_step(self._coming):  # nothing was sent: by the old rule again
                self._back("it is not in step any more")
            elif self._primary.has_all(self._new):
                self._change()
        if self._phase is Phase.ROW and not self._waits and now >= self._again_at:
            self._send()

    # -- who comes

    def _call(self, coming: NodeId | None, replaces: NodeId) -> None:
        before = self._coming
        if self._phase is Phase.BOTH:
            self._need(self._old)
        if before is not None and before != coming:
            self._primary.drop(before)
        self._coming, self._replaces = coming, replaces
        self._problem = ""
        self._refused_at = None
        self._since = self._around.clock()
        self._again_at = -inf if coming is not None else inf
        self._phase = Phase.STEADY if coming is None else Phase.CALLED

    def _call_again(self) -> None:
        """The row has changed, perhaps twice: who comes may have been called off meanwhile, have
        let its part go, and be called anew. What it had then does not count."""
        if self._phase is Phase.BOTH:
            self._need(self._old)
        self._phase = Phase.CALLED
        self._again_at = -inf

    def _create(self) -> None:
        """Have it make its part; again is no harm."""
        coming, record = self._coming, self._replica.volume.record
        assert coming is not None
        sizes = (record.size, record.block_size, record.chunk_size)
        create = m.Create(record.uuid, self._primary.epoch, record.name, *sizes)
        self._asking = True
        self._again_at = inf
        self._told.ask(coming, create, CREATE_S, partial(self._created, coming))

    def _created(self, node: NodeId, result: Message | str) -> None:
        self._asking = False
        if not self._told.alive():
            return
        if node != self._coming:
            self._again_at = -inf if self._phase is Phase.CALLED else self._again_at
        elif isinstance(result, m.Ack):
            self._phase = Phase.FILLING
            self._problem = ""
            self._refused_at = None
            self._again_at = -inf
            self._told.carry_out(self._primary.learn(node, self._around.clock()))
        else:
            now = self._around.clock()
            self._problem = text_of(result)
            self._refused_at = now if self._refused_at is None else self._refused_at
            self._again_at = now + AGAIN_S
        self.poll()

    # -- both, and the row

    @property
    def _old(self) -> Quorum:
        return Quorum(frozenset(self._members), self._wanted)

    @property
    def _new(self) -> Quorum:
        assert self._coming is not None
        members = frozenset(self._members) - {self._replaces} | {self._coming}
        return Quorum(members, self._wanted)

    def _hand_over(self) -> None:
        """This node is the one that goes: another member has to be the primary first, and does the
        rest."""
        others = [each for each in self._members if self._primary.in_step(each)]
        self._again_at = self._around.clock() + AGAIN_S
        if not others:
            self._problem = "this node goes, and no other member is in step to be the primary"
            return

        def ended(problem: str | None) -> None:
            if problem is not None and self._told.alive():
                self._problem = (
                    f"node {others[0]} is to be the primary first, and is not: {problem}"
                )

        self._told.move(others[0], ended)

    def _need(self, *quorums: Quorum) -> None:
        self._told.carry_out(self._primary.need(*quorums, now=self._around.clock()))

    def _both(self) -> None:
        self._phase = Phase.BOTH
        self._again_at = inf
        log.info("members change volume=%s %s", self._replica.name, self._names())
        self._need(self._old, self._new)

    def _back(self, why: str) -> None:
        """It is known that the members are still the old ones."""
        self._transaction = None
        self._phase = Phase.FILLING
        self._problem = why
        self._again_at = self._around.clock() + AGAIN_S
        self._need(self._old)

    def _change(self) -> None:
        assert self._row is not None
        self._phase = Phase.ROW
        self._transaction = self._store.change_members(self._row)
        self._tries = 0
        self._doubt = False
        self._send()

    def _send(self) -> None:
        transaction = self._transaction
        assert transaction is not None
        self._waits = True
        self._tries += 1
        self._again_at = inf
        self._around.ask_store(lambda: self._store.commit(transaction), self._committed)

    def _committed(self, outcome: Outcome | Exception) -> None:
        if not self._told.alive():
            return
        self._waits = False
        match outcome:
            case Done((row,)):
                changed = self._store.stored(VolumeGroup, row)
                assert changed is not None
                self._is_changed(changed)
            case Lost((row,)):
                self._lost(self._store.stored(VolumeGroup, row))
            case Unavailable(reason) if not self._doubt:
                self._back(f"the metastore: {reason}")
            case _:  # this try, or one before it, may have happened, or may still
                self._doubt = True
                pause_s = KNOWN_FIRST_S * 2.0 ** min(self._tries - 1, 16)
                self._again_at = self._around.clock() + min(pause_s, KNOWN_MOST_S)
        self.poll()

    def _lost(self, now_is: Stored[VolumeGroup] | None) -> None:
        """Somebody else has changed the row, before our change or after it: within this epoch only
        this node changes who the members are, so they tell."""
        if now_is is None or now_is.record.epoch > self._primary.epoch:
            epoch = self._primary.epoch + 1 if now_is is None else now_is.record.epoch
            self._told.overtaken(epoch)
        elif self._coming in now_is.record.members:
            self._is_changed(now_is)
            self.noted(now_is)
        else:
            self._back("the volume's record has changed meanwhile")
            self._again_at = -inf
            self.noted(now_is)

    def _is_changed(self, changed: Stored[VolumeGroup]) -> None:
        names, gone = self._names(), self._replaces
        self._transaction = None
        self._row = changed
        self._members = tuple(NodeId(node) for node in changed.record.members)
        self._coming, self._replaces = None, self._me
        self._refused_at = None
        self._phase = Phase.STEADY
        self._again_at = inf
        log.info("members changed volume=%s %s", self._replica.name, names)
        self._need(self._old)
        self._primary.drop(gone)
        # It hears nothing more: let it read the row at once. Who is away reads it when it is back.
        close = m.Close(self._replica.uuid, self._primary.epoch)
        self._told.ask(gone, close, AGAIN_S, lambda _: None)

    def _names(self) -> str:
        return f"comes={self._coming} goes={self._replaces} phase={self._phase.value}"
