"""Reservations of one unit: what they allow, the commands that set and tell them, what is kept.

Two kinds, which keep out of each other's way as SPC-2 5.5.1 and SPC-4 5.13.3 (CRH) say:

- RESERVE and RELEASE (6) and (10) hold the unit for one nexus (`unit.reserved_by`), until that
  leaves or the unit is reset. Meanwhile PERSISTENT RESERVE IN and OUT conflict, for everybody.
- persistent reservations (`persistent.Persistent`), which outlast nexuses and resets. While anybody
  is registered, RESERVE and RELEASE conflict, except that they do nothing, with GOOD, for those
  whom a persistent reservation lets in.

`check` is made for every command. It costs one attribute test while nothing is reserved, and a
look-up by nexus else.

**What outlasts a restart.** With APTPL, registrations and the reservation are kept under the key
`pr/<uuid>` of the unit's surroundings. A service action first changes what is in memory, then keeps
all of that, then answers. So after a crash

    before it was kept       nothing of the command is left; it was not answered
    after it was kept        all of it is there, answered or not
    after the answer         all of it is there

What others did meanwhile under the new state is undone by no crash that they could tell from one
that came just before the command. Commands that are under way together are kept in the order in
which they changed things, each by itself or by a later one. When keeping fails the command ends
with HARDWARE ERROR: what it asked for holds, but only until a restart, and the next command that
has something to keep tries again with all of it. The last APTPL of zero forgets what was kept.

Kept state that cannot be read means that somebody may have the unit reserved of whom we do not
know. The unit is then NOT READY (04/03) for all but INQUIRY, REPORT LUNS and REQUEST SENSE, and the
log says which key to remove: only an operator knows whether the others have been stopped.
"""

import logging
from collections.abc import Callable
from threading import Lock
from typing import TYPE_CHECKING, Final

from blockd.scsi import persistent, pr_codec, sense
from blockd.scsi.cdb import Opcode, Prepare, u16, u32
from blockd.scsi.nexus import Nexus
from blockd.scsi.persistent import Access, Notice, Persistent
from blockd.scsi.pr_codec import DamagedState, Registrant
from blockd.scsi.sense import CheckCondition, ReservationConflict, Sense
from blockd.scsi.task import CHECK_CONDITION, Await, Prepared, Result, Steps, Work

if TYPE_CHECKING:
    from blockd.scsi.unit import LogicalUnit, Surroundings

log = logging.getLogger(__name__)

PERSISTENT_RESERVE_IN: Final = 0x5E
PERSISTENT_RESERVE_OUT: Final = 0x5F

# Service actions of PERSISTENT RESERVE OUT (SPC-4 table 214).
REGISTER: Final = 0
RESERVE: Final = 1
RELEASE: Final = 2
CLEAR: Final = 3
PREEMPT: Final = 4
PREEMPT_AND_ABORT: Final = 5
REGISTER_AND_IGNORE: Final = 6
REGISTER_AND_MOVE: Final = 7

NEEDS: Final = {"allowed": Access.NONE, "read": Access.READ, "write": Access.FULL}
"""By `Opcode.reservation`."""

_ALLOWED_WHEN_RESERVED: Final = frozenset(
    (0x03, 0x12, 0x16, 0x17, 0x25, 0x4D, 0x56, 0x57, 0x9E, 0xA0)
)
"""SPC-2 table 9, SBC: REQUEST SENSE, INQUIRY, RESERVE and RELEASE (which see for themselves), READ
CAPACITY, LOG SENSE, REPORT LUNS; 9E only as READ CAPACITY (16)."""
_READ_CAPACITY_16: Final = 0x10

_MAX_REMEMBERED: Final = 1024  # nexuses whose access is remembered; all are forgotten beyond it

# REPORT CAPABILITIES (SPC-4 6.15.4): CRH, SIP_C, ATP_C, PTPL_C; TMV and ALLOW COMMANDS 001b; types.
_CAPABILITIES: Final = 0x10 | 0x08 | 0x04 | 0x01
_TYPES_VALID: Final = 0x80 | 1 << 4
_TYPE_MASK: Final = 0xEA01


class Reservations:
    """See the module's text. All calls come from one thread."""

    __slots__ = ("_access", "_by_name", "_keeper", "_persistent", "_unit", "damaged", "free")

    def __init__(self, unit: "LogicalUnit") -> None:
        """Takes up what was kept."""
        self._unit = unit
        self._by_name = False
        self._keeper = _Keeper(unit.surroundings, f"pr/{unit.identity.uuid.hex()}")
        self.damaged: str | None = None
        """What is wrong with the kept state, when it cannot be read."""
        self._persistent = self._recall()
        self._access: dict[Nexus, Access] = {}
        self.free = False
        """Nothing is reserved. May be False for one `check` longer than that is so."""

    def _recall(self) -> Persistent:
        """What was kept."""
        try:
            return Persistent(self._keeper.load())
        except DamagedState as error:
            self.damaged = str(error)
            log.error(
                "reservations damaged, the unit serves nothing until %s is removed"
                " volume=%s error=%s",
                *(self._keeper.key, self._unit.identity.name, error),
            )
            return Persistent()

    def look(self) -> None:
        """Notice what was done elsewhere: nothing, where this unit is the only one."""

    def ignore_isids(self) -> None:
        """From now on registrations are those of an initiator name, whatever session it has: for
        initiators that take a new ISID at each login, as Linux does."""
        self._by_name = True
        self._persistent.widen()
        self._changed()

    def check(self, nexus: Nexus, opcode: Opcode, cdb: bytes) -> None:
        """ReservationConflict when somebody else's reservation forbids that command; CheckCondition
        when it is not known what is reserved."""
        if self.free:
            return
        self._check(nexus, opcode, cdb)

    def _check(self, nexus: Nexus, opcode: Opcode, cdb: bytes) -> None:
        if self.damaged is not None:
            if opcode.skips_attention:
                return
            raise CheckCondition(sense.MANUAL_INTERVENTION)
        reserved_by = self._unit.reserved_by
        if reserved_by is not None:
            if opcode.code in (PERSISTENT_RESERVE_IN, PERSISTENT_RESERVE_OUT):
                raise ReservationConflict
            if reserved_by is not nexus and not _allowed_when_reserved(cdb):
                raise ReservationConflict
        elif self._persistent.reservation is None:
            self._nothing_reserved()
        elif self._access_of(nexus) < NEEDS[opcode.reservation] and not harmless(cdb):
            raise ReservationConflict

    def _nothing_reserved(self) -> None:
        self.free = True

    def open_to(self, nexus: Nexus) -> bool:
        """Whether no reservation is in the way of READs and WRITEs of that nexus."""
        if self.free:
            return True
        if self.damaged is not None:
            return False
        reserved_by = self._unit.reserved_by
        if reserved_by is not None:
            return reserved_by is nexus
        return self._persistent.reservation is None or self._access_of(nexus) >= Access.FULL

    def _access_of(self, nexus: Nexus) -> Access:
        access = self._access.get(nexus)
        if access is None:
            if len(self._access) >= _MAX_REMEMBERED:
                self._access.clear()
            access = self._persistent.access(self._single(nexus))
            self._access[nexus] = access
        return access

    def _single(self, nexus: Nexus) -> Registrant:
        isid = None if self._by_name else nexus.isid
        return Registrant(nexus.initiator, isid, nexus.port_group)

    def _changed(self) -> None:
        self._access.clear()
        self.free = False
        self._unit.interrupt()

    # -- RESERVE and RELEASE

    def reserve(self, nexus: Nexus) -> Result:
        if not self._ignored(nexus):
            if self._unit.reserved_by not in (None, nexus):
                raise ReservationConflict
            self._unit.reserved_by = nexus
            self._changed()
        return Result()

    def release(self, nexus: Nexus) -> Result:
        if not self._ignored(nexus) and self._unit.reserved_by is nexus:
            self._unit.reserved_by = None
        return Result()

    def _ignored(self, nexus: Nexus) -> bool:
        """Whether RESERVE and RELEASE do nothing because a persistent reservation serves."""
        if not self._persistent.keys:
            return False
        if not self._persistent.shares(self._persistent.find(self._single(nexus))):
            raise ReservationConflict
        return True

    # -- PERSISTENT RESERVE IN

    def tell(self, cdb: bytes) -> Result | Prepared:
        """Carry out a service action."""
        return Result(data=(self._told(cdb[1] & 0x1F)[: u16(cdb, 7)],))

    def _told(self, action: int) -> bytes:
        return (
            self.read_keys,
            self.read_reservation,
            self.report_capabilities,
            self.read_full_status,
        )[action]()

    def read_keys(self) -> bytes:
        state = self._persistent
        return pr_codec.encode_keys(state.generation, list(state.keys.values()))

    def read_reservation(self) -> bytes:
        state = self._persistent
        if state.reservation is None:
            return pr_codec.encode_no_reservation(state.generation)
        holder = state.reservation.holder
        key = state.keys[holder] if holder is not None else 0
        return pr_codec.encode_reservation(state.generation, state.reservation.kind, key)

    def report_capabilities(self) -> bytes:
        active = self._persistent.persist
        head = bytes((0, 8, _CAPABILITIES, _TYPES_VALID | active))
        return head + _TYPE_MASK.to_bytes(2, "big") + bytes(2)

    def read_full_status(self) -> bytes:
        state = self._persistent
        return pr_codec.encode_full_status(state.generation, state.keys, state.reservation)

    # -- PERSISTENT RESERVE OUT

    def out(self, nexus: Nexus, cdb: bytes, data: bytes) -> Steps | Result:
        """Carry out a service action with its parameter list."""
        if self._unit.reserved_by is not None:  # since its CDB was looked at
            raise ReservationConflict
        notices = act(self._persistent, self._single(nexus), cdb, data)
        self._changed()
        preempted = self._tell(notices)
        kept = self._persistent.kept
        value = pr_codec.encode_kept(kept) if kept is not None else None
        if cdb[1] & 0x1F == PREEMPT_AND_ABORT and preempted:
            return self._keep_and_abort(value, preempted)
        return Result() if self._keeper.has(value) else self._keep(value)

    def _tell(self, notices: list[Notice]) -> list[Nexus]:
        """Establish unit attentions; the nexuses whose registrations were preempted."""
        told = self._meant(notices)
        for nexus, what in told:
            self._unit.attention(what, to=nexus)
        return _preempted(told)

    def _preempted(self, notices: list[Notice]) -> list[Nexus]:
        """The nexuses whose registrations are preempted where these notices are given."""
        return _preempted(self._meant(notices))

    def _meant(self, notices: list[Notice]) -> list[tuple[Nexus, Sense]]:
        """Which nexus each notice is for."""
        if not notices:
            return []
        return [
            (nexus, what)
            for nexus in self._unit.nexuses
            for who, what in notices
            if who.overlaps(self._single(nexus))
        ]

    def _keep_and_abort(self, value: bytes | None, preempted: list[Nexus]) -> Steps:
        """PREEMPT AND ABORT is over when nothing that the preempted sent can be written any more:
        whoever fences a node relies on it."""
        result = Result() if self._keeper.has(value) else (yield from self._keep(value))
        yield self._aborting(preempted)
        return result

    def _aborting(self, preempted: list[Nexus]) -> Await:
        unit = self._unit

        def abort(done: Callable[[], None]) -> None:
            unit.abort(preempted, done)

        return Await(abort)

    def _keep(self, value: bytes | None) -> Steps:
        number = self._keeper.want(value)
        try:
            yield Work(lambda: self._keeper.keep(number))
        except OSError as error:
            name = self._unit.identity.name
            log.error("reservations not kept volume=%s error=%s", name, error)
            return Result(CHECK_CONDITION, sense=sense.INTERNAL_FAILURE)
        return Result()


def _preempted(told: list[tuple[Nexus, Sense]]) -> list[Nexus]:
    return [nexus for nexus, what in told if what is sense.REGISTRATIONS_PREEMPTED]


def act(state: Persistent, own: Registrant, cdb: bytes, data: bytes) -> list[Notice]:
    """Carry out a service action of PERSISTENT RESERVE OUT. ReservationConflict, CheckCondition."""
    action = cdb[1] & 0x1F
    scope, kind = cdb[2] >> 4, cdb[2] & 0x0F
    if action == REGISTER_AND_MOVE:
        return state.move(own, pr_codec.decode_move(data))
    asked = pr_codec.decode_basic(data)
    if action in (REGISTER, REGISTER_AND_IGNORE):
        return state.register(own, asked, ignore_key=action == REGISTER_AND_IGNORE)
    if asked.others is not None:
        raise sense.invalid_field(20, 3, in_cdb=False)  # SPEC_I_PT is for REGISTER
    if action == RESERVE:
        persistent.check_type(scope, kind)
        return state.reserve(own, asked.key, kind)
    if action == RELEASE:
        return state.release(own, asked.key, scope, kind)
    if action == CLEAR:
        return state.clear(own, asked.key)
    return state.preempt(own, asked.key, asked.action_key, scope, kind)


class _Keeper:
    """Keeps the newest state durably. `want` is called on the unit's thread, `keep` on any."""

    __slots__ = ("_kept_number", "_lock", "_number_and_value", "_surroundings", "key")

    def __init__(self, surroundings: "Surroundings", key: str) -> None:
        self.key = key
        self._surroundings = surroundings
        self._number_and_value: tuple[int, bytes | None] = (0, None)
        self._kept_number = 0
        self._lock = Lock()  # held while the disk is waited for, by threads that wait for it anyway

    def load(self) -> "pr_codec.Kept | None":
        """DamagedState."""
        value = self._surroundings.load(self.key)
        self._number_and_value = (0, value)
        return pr_codec.decode_kept(value) if value is not None else None

    def has(self, value: bytes | None) -> bool:
        """Whether just that is durable already."""
        number, wanted = self._number_and_value
        return value == wanted and self._kept_number >= number

    def want(self, value: bytes | None) -> int:
        """Have that kept from now on; the number is for `keep`."""
        number, wanted = self._number_and_value
        if value != wanted:
            number += 1
            self._number_and_value = (number, value)
        return number

    def keep(self, number: int) -> None:
        """Return when that state, or a later one, is durable. OSError."""
        with self._lock:
            if self._kept_number >= number:
                return
            newest, value = self._number_and_value
            self._surroundings.save(self.key, value)
            self._kept_number = newest


def _allowed_when_reserved(cdb: bytes) -> bool:
    """Under RESERVE of somebody else (SPC-2 5.5.1)."""
    if cdb[0] == 0x9E and cdb[1] & 0x1F != _READ_CAPACITY_16:
        return False
    return cdb[0] in _ALLOWED_WHEN_RESERVED or harmless(cdb)


def harmless(cdb: bytes) -> bool:
    """Commands that are allowed with certain fields only: START STOP UNIT that starts, PREVENT
    ALLOW MEDIUM REMOVAL that allows (SPC-4 table 65, SBC-3 table 6)."""
    if cdb[0] == 0x1B:
        return cdb[4] & 0xF1 == 0x01
    return cdb[0] == 0x1E and cdb[4] & 0x03 == 0


def _reserve(unit: "LogicalUnit", nexus: Nexus, cdb: bytes) -> Result:
    return unit.reservations.reserve(nexus)


def _release(unit: "LogicalUnit", nexus: Nexus, cdb: bytes) -> Result:
    return unit.reservations.release(nexus)


def _in(unit: "LogicalUnit", nexus: Nexus, cdb: bytes) -> Result | Prepared:
    return unit.reservations.tell(cdb)


def _out(unit: "LogicalUnit", nexus: Nexus, cdb: bytes) -> Prepared:
    length = u32(cdb, 5)
    if not pr_codec.BASIC_LIST_BYTES <= length <= pr_codec.MAX_LIST_BYTES:
        raise CheckCondition(sense.PARAMETER_LIST_LENGTH)

    def run(data: memoryview) -> Steps | Result:
        if len(data) < length:
            raise CheckCondition(sense.PARAMETER_LIST_LENGTH)
        return unit.reservations.out(nexus, cdb, bytes(data))

    return Prepared(length, run)


def _in_opcode(action: int, name: str) -> Opcode:
    usage = bytes((PERSISTENT_RESERVE_IN, action, 0, 0, 0, 0, 0, 0xFF, 0xFF, 0))
    full_name = f"PERSISTENT RESERVE IN ({name})"
    return Opcode(PERSISTENT_RESERVE_IN, action, full_name, usage, _in, reservation="allowed")


def _out_opcode(action: int, name: str) -> Opcode:
    usage = bytes((PERSISTENT_RESERVE_OUT, action, 0xFF, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0))
    full_name = f"PERSISTENT RESERVE OUT ({name})"
    return Opcode(
        *(PERSISTENT_RESERVE_OUT, action, full_name, usage, _out),
        changes_unit=True,
        reservation="allowed",
    )


def _spc2_opcode(code: int, name: str, length: int, prepare: Prepare) -> Opcode:
    usage = bytes((code,)).ljust(length, b"\0")
    return Opcode(code, None, name, usage, prepare, changes_unit=True, reservation="allowed")


# Reservations: "allowed" where the command itself looks at who may do it.
OPCODES: tuple[Opcode, ...] = (
    _spc2_opcode(0x16, "RESERVE (6)", 6, _reserve),
    _spc2_opcode(0x17, "RELEASE (6)", 6, _release),
    _spc2_opcode(0x56, "RESERVE (10)", 10, _reserve),
    _spc2_opcode(0x57, "RELEASE (10)", 10, _release),
    _in_opcode(0, "READ KEYS"),
    _in_opcode(1, "READ RESERVATION"),
    _in_opcode(2, "REPORT CAPABILITIES"),
    _in_opcode(3, "READ FULL STATUS"),
    _out_opcode(REGISTER, "REGISTER"),
    _out_opcode(RESERVE, "RESERVE"),
    _out_opcode(RELEASE, "RELEASE"),
    _out_opcode(CLEAR, "CLEAR"),
    _out_opcode(PREEMPT, "PREEMPT"),
    _out_opcode(PREEMPT_AND_ABORT, "PREEMPT AND ABORT"),
    _out_opcode(REGISTER_AND_IGNORE, "REGISTER AND IGNORE EXISTING KEY"),
    _out_opcode(REGISTER_AND_MOVE, "REGISTER AND MOVE"),
)
