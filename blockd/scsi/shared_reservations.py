"""Persistent reservations of a unit whose volume several nodes have.

They are the volume's: `blockd.shared_state` keeps them where all its nodes find them, durable
before a PERSISTENT RESERVE OUT is answered, whatever its APTPL says. Whoever takes the volume over
knows them before it serves the first command (`PortGroups.here` is TRANSITIONING until then).

    a service action   what is kept is read, changed and put back under a guard, again where another
                       node came first; then it holds here; then it is answered
    PERSISTENT RESERVE IN   what is kept now; where that cannot be read, what the serving node knows
    other commands     what is known here

So a crash, of this node or of all of them, leaves

    before it was put back   nothing of the command; it was not answered
    after that               all of it, answered or not, whoever serves the volume

A node that does not serve the volume takes REGISTER and REGISTER AND IGNORE EXISTING KEY, since
initiators register each of their paths: the serving node hears of that with its next look at what
is kept (seconds), and before any service action. All others are for the node that has commands to
keep out. When what is kept cannot be reached, or changed, the command ends with HARDWARE ERROR;
commands that are no service actions go on.

Such a command may have happened all the same, when the answer to it was lost. Until that is known,
soon after what is kept can be reached again, nobody goes by the more generous of the two: whoever
it may have shut out is told to come again (02/04/0A), and what PREEMPT AND ABORT may have aborted
is aborted, before the command ends. So whoever then finds, through whichever node, that it has
happened can rely on it. Where it has not, those whose commands are gone are told so (06/2F/00).

Registrations name the target port that they came through, as everywhere, and each node has its own
ports: those of other paths are other registrations, unless ALL_TG_PT is set.

Kept state, big-endian: version, 1 (1), whether the last registration said APTPL (1), PRGENERATION
(4), then as in `pr_codec`. The generation goes on over nodes.
"""

import logging
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from blockd.scsi import alua, pr_codec, sense
from blockd.scsi.cdb import Opcode, u16
from blockd.scsi.nexus import Nexus
from blockd.scsi.persistent import Access, Notice, Persistent
from blockd.scsi.pr_codec import DamagedState, Kept, Registrant
from blockd.scsi.reservations import (
    NEEDS,
    PREEMPT_AND_ABORT,
    REGISTER,
    REGISTER_AND_IGNORE,
    Reservations,
    act,
    harmless,
)
from blockd.scsi.sense import CheckCondition
from blockd.scsi.task import CHECK_CONDITION, Prepared, Result, Steps, Work
from blockd.shared_state import Held, NotServing, SharedState, Unsettled, ready

if TYPE_CHECKING:
    from blockd.scsi.unit import LogicalUnit

log = logging.getLogger(__name__)

MAX_DOUBTS: Final = 16  # lost answers until the metastore has to be heard again

_VERSION: Final = 1
_HEAD: Final = struct.Struct(">B?I")


def encode(state: Persistent) -> bytes:
    head = _HEAD.pack(_VERSION, state.persist, state.generation & 0xFFFFFFFF)
    return head + pr_codec.encode_kept(Kept(state.keys, state.reservation))


def decode(value: bytes) -> Persistent:
    """DamagedState."""
    if not value:
        return Persistent()
    if len(value) < _HEAD.size or value[0] != _VERSION:
        raise DamagedState(f"{len(value)} bytes that begin with {value[:1].hex()}")
    _, persist, generation = _HEAD.unpack_from(value)
    state = Persistent(pr_codec.decode_kept(value[_HEAD.size :]))
    state.persist, state.generation = persist, generation
    return state


@dataclass(slots=True)
class _Doubt:
    """A service action that may have happened: what is kept is another revision then."""

    revision: int
    state: Persistent
    """That it may have led to."""
    cleared: list[Nexus] = field(default_factory=list)
    """Whose commands were aborted for it."""


class SharedReservations(Reservations):
    """See the module's text. All calls come from one thread."""

    __slots__ = ("_doubts", "_revision", "_seen", "_shared", "_term")

    def __init__(self, unit: "LogicalUnit", shared: SharedState) -> None:
        self._shared = shared
        self._term = 0
        """That was seen last."""
        self._seen: Held | None = None
        self._revision = 0
        self._doubts: list[_Doubt] = []
        super().__init__(unit)
        self.look()

    def _recall(self) -> Persistent:
        return Persistent()

    def _nothing_reserved(self) -> None:
        """`free` stays False: the next term may know of somebody."""

    # -- what other nodes did

    def look(self) -> None:
        """Notice that this node serves the volume anew, and what is known by now."""
        self._look()

    def _look(self) -> bool:
        """The same; whether it serves the volume and knows what is kept."""
        now = self._shared.now
        if now.term != self._term:
            self._term = now.term
            self._changed()  # nobody goes on by what was known in another term
        if now.known is not None and now.known is not self._seen:
            self._see(now.known)
        return now.ready

    def _see(self, held: Held) -> None:
        self._seen = held
        if held.revision > self._revision:
            self._adopt(held)
        if self._doubts:
            self._settle(held.revision)

    def _settle(self, revision: int) -> None:
        """What is known by now is of that revision."""
        settled = [doubt for doubt in self._doubts if revision > doubt.revision]
        self._doubts = [doubt for doubt in self._doubts if revision <= doubt.revision]
        for nexus in (nexus for doubt in settled for nexus in doubt.cleared):
            if self._persistent.find(self._single(nexus)) is not None:
                self._unit.attention(sense.COMMANDS_CLEARED, to=nexus)

    def _adopt(self, held: Held) -> None:
        self._revision = held.revision
        before = self._persistent
        try:
            state = self._decoded(held.value)
            self.damaged = None
        except DamagedState as error:
            self.damaged = str(error)
            log.error(
                "reservations damaged, the unit serves nothing until the row reserved/%s of the"
                " metastore is removed and the volume moved volume=%s error=%s",
                *(self._unit.identity.uuid.hex(), self._unit.identity.name, error),
            )
            state = Persistent()
        self._persistent = state
        self._changed()
        self._tell(self._notices(before, state))

    def _decoded(self, value: bytes) -> Persistent:
        state = decode(value)
        if self._by_name:
            state.widen()
        return state

    def _notices(self, before: Persistent, after: Persistent) -> list[Notice]:
        """What the nexuses of this node have to be told of what was done elsewhere."""
        notices = []
        was = before.reservation
        released = was is not None and after.reservation is None and was.kind in pr_codec.SHARED
        for nexus in self._unit.nexuses:
            own = self._single(nexus)
            if before.find(own) is None:
                continue
            if after.find(own) is None:
                notices.append(Notice(own, sense.REGISTRATIONS_PREEMPTED))
            elif released:
                notices.append(Notice(own, sense.RESERVATIONS_RELEASED))
        return notices

    # -- what they allow

    def check(self, nexus: Nexus, opcode: Opcode, cdb: bytes) -> None:
        if not self._look() and not alua.without_medium(opcode):
            raise CheckCondition(sense.ACCESS_TRANSITION)
        self._check(nexus, opcode, cdb)
        if self._doubted(nexus, NEEDS[opcode.reservation]) and not harmless(cdb):
            raise CheckCondition(sense.ACCESS_TRANSITION)

    def open_to(self, nexus: Nexus) -> bool:
        served = self._look()
        return served and super().open_to(nexus) and not self._doubted(nexus, Access.FULL)

    def _doubted(self, nexus: Nexus, needs: Access) -> bool:
        """Whether a service action that may have happened has taken that from a nexus."""
        if not self._doubts:
            return False
        single = self._single(nexus)
        return any(doubt.state.access(single) < needs for doubt in self._doubts)

    # -- PERSISTENT RESERVE IN and OUT

    def tell(self, cdb: bytes) -> Prepared:
        return Prepared(0, lambda _: self._read(cdb))

    def _read(self, cdb: bytes) -> Steps:
        try:
            held = yield Work(self._shared.read)
        except OSError as error:
            if not ready(self._shared):
                self._log_trouble(error)
                return Result(CHECK_CONDITION, sense=sense.INTERNAL_FAILURE)
        else:
            self._shared.note(held)
        self.look()
        if self.damaged is not None:
            raise CheckCondition(sense.MANUAL_INTERVENTION)
        told = self._told(cdb[1] & 0x1F)
        return Result(data=(told[: u16(cdb, 7)],))

    def out(self, nexus: Nexus, cdb: bytes, data: bytes) -> Steps:
        own = self._single(nexus)
        term = self._shared.now.term
        if not term and cdb[1] & 0x1F not in (
            REGISTER,
            REGISTER_AND_IGNORE,
        ):  # since its CDB was looked at
            raise CheckCondition(sense.ACCESS_TRANSITION)
        self.look()
        if len(self._doubts) >= MAX_DOUBTS:
            return Result(CHECK_CONDITION, sense=sense.INTERNAL_FAILURE)
        try:
            held, notices = yield Work(
                lambda: self._shared.change(
                    term, lambda value: self._applied(value, own, cdb, data)
                )
            )
        except NotServing:
            raise CheckCondition(sense.ACCESS_TRANSITION) from None
        except DamagedState:
            raise CheckCondition(sense.MANUAL_INTERVENTION) from None
        except OSError as error:
            self._log_trouble(error)
            if isinstance(error, Unsettled):
                yield from self._doubt(error, abort=cdb[1] & 0x1F == PREEMPT_AND_ABORT)
            return Result(CHECK_CONDITION, sense=sense.INTERNAL_FAILURE)
        preempted = self._install(held, notices)
        if cdb[1] & 0x1F == PREEMPT_AND_ABORT and preempted:
            yield self._aborting(preempted)
        return Result()

    def _applied(
        self, value: bytes, own: Registrant, cdb: bytes, data: bytes
    ) -> tuple[bytes, list[Notice]]:
        """On another thread, and on nothing of ours."""
        state = self._decoded(value)
        notices = act(state, own, cdb, data)
        return encode(state), notices

    def _install(self, held: Held, notices: list[Notice]) -> list[Nexus]:
        """What was put back holds here from now on; the nexuses that were preempted by it."""
        if held.revision > self._revision:
            self._revision = held.revision
            self._persistent = self._decoded(held.value)
            self._changed()
        self._shared.note(held)
        preempted = self._tell(notices)
        self.look()
        return preempted

    def _doubt(self, error: Unsettled, *, abort: bool) -> Steps:
        """It may have happened."""
        doubt = _Doubt(error.revision, self._decoded(error.value))
        self._doubts.append(doubt)
        self._changed()  # nobody goes on by what was known before
        if abort:
            notices: list[Notice] = error.result  # type: ignore[assignment] # of `_applied`
            preempted = self._preempted(notices)
            doubt.cleared = preempted
            if preempted:
                yield self._aborting(preempted)
        self.look()
        if self._seen is not None:  # it is known by now, perhaps
            self._settle(self._seen.revision)
        return Result()

    def _log_trouble(self, error: OSError) -> None:
        name = self._unit.identity.name
        log.error("reservations of a volume not reached volume=%s error=%s", name, error)
