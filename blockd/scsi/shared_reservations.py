"""Persistent reservations of a unit whose volume several nodes have.

They are the volume's: `blockd.shared_state` keeps them where all its nodes find them, durable
before a PERSISTENT RESERVE OUT is answered, whatever its APTPL says. Whoever takes the volume over
knows them before it serves the first command (`PortGroups.here` is TRANSITIONING until then).

    a service action   what is kept is read; whom it shuts out is held up here, and what PREEMPT AND
                       ABORT aborts is aborted; what is kept is changed and put back under a guard,
                       all of it again where another node came first; then it holds here; then it
                       is answered
    PERSISTENT RESERVE IN   what is kept now; where that cannot be read, what the serving node knows
    other commands     what is known here

So a crash, of this node or of all of them, leaves

    before it was put back   nothing of the command, except that what it was to abort is gone; it
                             was not answered
    after that               all of it, answered or not, whoever serves the volume

A node that does not serve the volume takes REGISTER and REGISTER AND IGNORE EXISTING KEY, since
initiators register each of their paths: the serving node hears of that with its next look at what
is kept (seconds), and before any service action. All others are for the node that has commands to
keep out. When what is kept cannot be reached, or changed, the command ends with HARDWARE ERROR;
commands that are no service actions go on.

Anybody can find through another node that it has happened as soon as it was put back, long before
this node knows, where answers are lost and the tries go on: so it is held up before. From when it
is sent until it is known what has become of it nobody goes by the more generous of the two: whoever
it may have shut out is told to come again (02/04/0A). That outlasts the command, when its answer is
lost, or its initiator aborts it or leaves. So whoever finds, through whichever node, that it has
happened can rely on it. Where it has not, those whose commands are gone are told so (06/2F/00).

Registrations name the target port that they came through, as everywhere, and each node has its own
ports: those of other paths are other registrations, unless ALL_TG_PT is set.

Kept state, big-endian: version, 1 (1), whether the last registration said APTPL (1), PRGENERATION
(4), then as in `pr_codec`. The generation goes on over nodes.
"""

import logging
import struct
from contextlib import suppress
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
TRIES: Final = 8  # of a service action, while other nodes change what is kept
NEVER: Final = -1  # less than any revision

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


class _Moved(Exception):
    """What is kept is not what a service action was worked out for."""


@dataclass(slots=True, eq=False)
class _Doubt:
    """A service action that is under way, or may have happened."""

    value: bytes
    """That it is made of."""
    state: Persistent
    """That it leads to."""
    cleared: list[Nexus] = field(default_factory=list)
    """Whose commands were aborted for it."""
    done: Held | None = None
    """It has happened."""
    ended: int | None = None
    """What becomes known of a later revision than that tells what has become of it; None: it is
    under way. Set by the thread that does it, last."""
    left: bool = False
    """The command is gone."""


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
        if self._doubts:
            self._settle()
        return now.ready

    def _see(self, held: Held) -> None:
        self._seen = held
        if held.revision > self._revision:
            self._adopt(held)

    def _settle(self) -> None:
        """Let go of doubts about what is known by now."""
        for doubt in self._doubts:
            if doubt.left and doubt.ended is not None and doubt.done is not None:
                self._shared.note(doubt.done)
                self._see(doubt.done)
        settled = [each for each in self._doubts if self._is_settled(each)]
        if not settled:
            return
        self._doubts = [each for each in self._doubts if each not in settled]
        for nexus in (nexus for doubt in settled for nexus in doubt.cleared):
            if self._persistent.find(self._single(nexus)) is not None:
                self._unit.attention(sense.COMMANDS_CLEARED, to=nexus)

    def _is_settled(self, doubt: _Doubt) -> bool:
        return doubt.ended is not None and self._revision > doubt.ended

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
        if sum(each.ended is not None for each in self._doubts) >= MAX_DOUBTS:
            return Result(CHECK_CONDITION, sense=sense.INTERNAL_FAILURE)
        try:
            for _ in range(TRIES):
                kept = yield Work(self._shared.read)
                with suppress(_Moved):
                    return (yield from self._act(term, kept.value, own, cdb, data))
        except NotServing:
            raise CheckCondition(sense.ACCESS_TRANSITION) from None
        except DamagedState:
            raise CheckCondition(sense.MANUAL_INTERVENTION) from None
        except OSError as error:
            self._log_trouble(error)
        return Result(CHECK_CONDITION, sense=sense.INTERNAL_FAILURE)

    def _act(self, term: int, value: bytes, own: Registrant, cdb: bytes, data: bytes) -> Steps:
        """Carry it out on what is kept. _Moved: something else is kept by now, and nothing was
        changed; and as SharedState.change."""
        state = self._decoded(value)
        notices = act(state, own, cdb, data)
        doubt = _Doubt(value, state)
        self._doubts.append(doubt)
        self._changed()  # nobody goes on by what was known before
        sent = False
        try:
            if cdb[1] & 0x1F == PREEMPT_AND_ABORT and (preempted := self._preempted(notices)):
                doubt.cleared = preempted
                yield self._aborting(preempted)
            sent = True
            held = yield Work(lambda: self._change(term, doubt))
            self._install(held, notices)
            return Result()
        finally:
            doubt.left = True
            if not sent:
                doubt.ended = NEVER
            self.look()

    def _change(self, term: int, doubt: _Doubt) -> Held:
        """On another thread. _Moved; as SharedState.change."""

        def apply(value: bytes) -> tuple[bytes, None]:
            if value != doubt.value:
                raise _Moved
            return encode(doubt.state), None

        ended = NEVER
        try:
            doubt.done, _ = self._shared.change(term, apply)
            ended = doubt.done.revision - 1
        except Unsettled as error:
            ended = error.revision
            raise
        finally:
            doubt.ended = ended
        return doubt.done

    def _install(self, held: Held, notices: list[Notice]) -> None:
        """What was put back holds here from now on."""
        if held.revision > self._revision:
            self._revision = held.revision
            self._persistent = self._decoded(held.value)
            self._changed()
        self._shared.note(held)
        self._tell(notices)

    def _log_trouble(self, error: OSError) -> None:
        name = self._unit.identity.name
        log.error("reservations of a volume not reached volume=%s error=%s", name, error)
