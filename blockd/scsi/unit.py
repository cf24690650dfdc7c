"""LogicalUnit: one volume as a SCSI direct-access device.

`prepare` makes the checks that every command goes through, in the order of SAM-5 5.3.3:

    operation code and service action known      20/00, or 24/00 at the service action
    no unit attention pending for this nexus     06/xx, which is cleared by being told
    another node does not serve the volume       02/040A to 02/040C; see `blockd.scsi.alua`
    no sanitize going on, or failed              02/041B, 03/3103; see `blockd.scsi.sanitize`
    no reservation in the way                    RESERVATION CONFLICT
    no bit set that means nothing                24/00 with a pointer at it
    not a write to a unit that is read-only,     07/2700
    or is so for this nexus

and then the command's own `prepare`. One unit serves all nexuses of all targets that have the
volume, so that reservations and mode pages are those of the volume, through whatever portal.
"""

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, Protocol

from blockd.device import BlockDevice
from blockd.scsi import alua, modes, sense
from blockd.scsi.alua import PortGroup, PortGroups
from blockd.scsi.cdb import MAX_CDB, Opcode, check_reserved
from blockd.scsi.copy import CopyResults
from blockd.scsi.modes import ModePages
from blockd.scsi.nexus import Nexus
from blockd.scsi.reservations import Reservations
from blockd.scsi.sanitize import Sanitizing
from blockd.scsi.sense import CheckCondition, ReservationConflict, Sense
from blockd.scsi.shared_reservations import SharedReservations
from blockd.scsi.task import (
    CHECK_CONDITION,
    RESERVATION_CONFLICT,
    Countdown,
    Prepared,
    Result,
    Single,
    Steps,
)
from blockd.shared_state import SharedState

MAX_ATTENTIONS: Final = 8  # pending for one nexus; more of them say nothing new


@dataclass(frozen=True, slots=True)
class Identity:
    """What a unit is called, for ever: VPD pages 80h and 83h come from it."""

    uuid: bytes
    """16 bytes: the volume's; a past version of one has an own, made from it and the version."""
    name: str
    """Of the volume; may change."""


@dataclass(frozen=True, slots=True)
class SpaceFacts:
    """Of the store behind the unit, bytes."""

    used_bytes: int
    available_bytes: int
    short: bool
    """The soft threshold is reached: initiators are told (06/3807)."""
    threshold_bytes: int = 0
    """What `available_bytes` falls below then; 0: there is no such threshold."""


class Surroundings(Protocol):
    """What a unit needs beside its device."""

    def space(self) -> SpaceFacts:
        """Quick; of a moment ago."""

    def load(self, key: str) -> bytes | None:
        """What was kept under that key (quick: read when the server started)."""

    def save(self, key: str, value: bytes | None) -> None:
        """Keep it durably, None forgets it. Waits for the disk: call it in a `task.Work`."""

    def unit(self, identifier: bytes) -> "LogicalUnit | None":
        """The unit whose NAA designator (16 bytes) that is, for EXTENDED COPY."""

    def pace(self, length: int) -> None:
        """Wait until a unit that writes by itself may write `length` bytes more, beside clients:
        call it in a `task.Work`."""

    def port_groups(self) -> PortGroups | None:
        """The ways to the unit, of a volume that several nodes have; None for others. Quick."""

    def shared_state(self) -> SharedState | None:
        """Where all nodes of a volume keep its reservations; None for one of this node alone. The
        same for ever."""

    def run(self, steps: Steps) -> None:
        """Carry out steps that belong to no session, such as a sanitize, until they end; the result
        is of no interest. When the server stops before that, the generator is closed. Called on
        the event loop; returns before the first step, and others get their turn between steps."""


class LogicalUnit:
    """See the module's text. All calls come from one thread."""

    def __init__(
        self,
        device: BlockDevice,
        identity: Identity,
        surroundings: Surroundings,
        opcodes: "dict[int, Opcode | dict[int, Opcode]]",
    ) -> None:
        """`opcodes`: `blockd.scsi.opcodes.TABLE`; by operation code, and by service action where
        there are several."""
        self.device = device
        self.identity = identity
        self.surroundings = surroundings
        self._opcodes = opcodes
        self._shared_opcodes = alua.without_reserve(opcodes)
        self.modes = ModePages(surroundings.load(modes.KEY))
        self.reserved_by: Nexus | None = None  # RESERVE (6) and (10)
        self.aborting: list[Callable[[Nexus, Countdown], bool]] = []
        """Called with a nexus whose tasks on this unit are to be aborted: counts those that still
        have something in a device, and tells whether there were any at all."""
        self._attentions: dict[Nexus, deque[Sense]] = {}
        shared = surroundings.shared_state()
        self.reservations = (
            Reservations(self) if shared is None else SharedReservations(self, shared)
        )
        self.sanitizing = Sanitizing(self)
        self.copies = CopyResults()
        self._known_size = device.size
        self._was_short = False
        self._known_groups: tuple[PortGroup, ...] = ()

    @property
    def port_groups(self) -> PortGroups | None:
        """As `Surroundings.port_groups`."""
        return self.surroundings.port_groups()

    @property
    def opcodes(self) -> "dict[int, Opcode | dict[int, Opcode]]":
        """The commands that it has."""
        return self._opcodes if self.port_groups is None else self._shared_opcodes

    @property
    def block_size(self) -> int:
        return self.device.block_size

    @property
    def block_count(self) -> int:
        return self.device.size // self.device.block_size

    @property
    def read_only(self) -> bool:
        return self.device.read_only or self.modes.software_write_protect

    def read_only_to(self, nexus: Nexus) -> bool:
        """Whether the unit is read-only, or this nexus may only read."""
        return self in nexus.read_only or self.read_only

    # -- nexuses and their unit attentions

    def attach(self, nexus: Nexus) -> None:
        """Know a nexus from now on: it gets the unit attentions that come. `TargetDevice.attach`
        does this for all units of a target."""
        self._attentions.setdefault(nexus, deque(maxlen=MAX_ATTENTIONS))

    def detach(self, nexus: Nexus) -> None:
        """The nexus is gone: what it alone held is let go of (SAM-5 6.3.4)."""
        self._attentions.pop(nexus, None)
        _interrupt(nexus)
        self.copies.forget(nexus)
        if self.reserved_by is nexus:
            self.reserved_by = None

    @property
    def nexuses(self) -> list[Nexus]:
        return list(self._attentions)

    def abort(self, nexuses: Iterable[Nexus], done: Callable[[], None]) -> list[Nexus]:
        """Abort what these have under way here, silently; those of them that had something. `done`
        is called when nothing of it is in a device any more: until then it may still be written."""
        countdown = Countdown(done)
        hit: list[Nexus] = []
        for nexus in nexuses:
            had = [abort(nexus, countdown) for abort in self.aborting]
            if any(had):
                hit.append(nexus)
        countdown.gone()
        return hit

    def attention(self, what: Sense, *, to: Nexus | None = None, but: Nexus | None = None) -> None:
        """Establish a unit attention for one nexus, or for all but one."""
        for nexus, pending in self._attentions.items():
            if nexus is not but and (to is None or nexus is to) and what not in pending:
                pending.append(what)
                _interrupt(nexus)

    def next_attention(self, nexus: Nexus) -> Sense | None:
        """Take the oldest pending unit attention of a nexus."""
        self.look_around()
        pending = self._attentions.get(nexus)
        return pending.popleft() if pending else None

    def forget_attention(self, what: Sense, nexus: Nexus) -> None:
        """Take one back that is still pending, if it is."""
        pending = self._attentions.get(nexus)
        if pending and what in pending:
            pending.remove(what)

    def reset(self, what: Sense = sense.DEVICE_RESET, *, but: Nexus | None = None) -> None:
        """LOGICAL UNIT RESET (SAM-5 6.3.3), after the transport has aborted the tasks."""
        self.reserved_by = None
        self.modes.reset()
        for nexus, pending in self._attentions.items():
            if nexus is not but:
                pending.clear()  # the reset says it all (SAM-5 5.14.4)
        self.attention(what, but=but)

    def interrupt(self) -> None:
        """What is ordinary has changed for every nexus."""
        for nexus in self._attentions:
            _interrupt(nexus)

    def look_around(self) -> None:
        """Notice what happened behind the unit's back: at commands that are not plain, and called
        now and then for nexuses that have no other."""
        size = self.device.size
        if size != self._known_size:
            self._known_size = size
            self.attention(sense.CAPACITY_CHANGED)
        short = self.surroundings.space().short
        if short != self._was_short:
            self._was_short = short
            if short:
                self.attention(sense.THIN_THRESHOLD)
        self.reservations.look()
        groups = self.port_groups
        if groups is not None and (found := groups.all()) != self._known_groups:
            told, self._known_groups = bool(self._known_groups), found
            if told:
                self.attention(sense.ACCESS_STATE_CHANGED)

    # -- commands

    def ordinary(self, nexus: Nexus) -> bool:
        """Whether nothing is pending, in the way, changed or being sanitized: what `prepare` would
        check in vain before a plain READ or WRITE (see `blockd.scsi.disk.plain`)."""
        return (
            not self._attentions.get(nexus)
            and (self.reservations.free or self.reservations.open_to(nexus))
            and not self.sanitizing.active
            and self.device.size == self._known_size
            and alua.condition(self.port_groups) is None
        )

    def prepare(self, nexus: Nexus, cdb: bytes) -> Result | Single | Prepared:
        """Begin a command; `cdb` has as many bytes as came, at least 6."""
        cdb = cdb[:MAX_CDB].ljust(MAX_CDB, b"\0")
        try:
            opcode = self.lookup(cdb)
            if not opcode.skips_attention and (pending := self.next_attention(nexus)):
                raise CheckCondition(pending)
            if (groups := self.port_groups) is not None:
                alua.check(groups, opcode)
            self.sanitizing.check(opcode)
            self.reservations.check(nexus, opcode, cdb)
            check_reserved(opcode, cdb)
            if opcode.changes_medium and self.read_only_to(nexus):
                raise CheckCondition(sense.WRITE_PROTECTED)
            if opcode.changes_unit and self in nexus.read_only:
                raise CheckCondition(sense.WRITE_PROTECTED)
            return opcode.prepare(self, nexus, cdb)
        except CheckCondition as error:
            return Result(CHECK_CONDITION, sense=error.sense)
        except ReservationConflict:
            return Result(RESERVATION_CONFLICT)

    def resume(self, nexus: Nexus, cdb: bytes) -> Result | Single | Prepared:
        """`prepare` a plain command that was begun elsewhere, where nothing was in its way then."""
        cdb = cdb.ljust(MAX_CDB, b"\0")
        try:
            return self.lookup(cdb).prepare(self, nexus, cdb)
        except CheckCondition as error:  # the unit has become smaller
            return Result(CHECK_CONDITION, sense=error.sense)

    def ended(self, result: Result) -> Result:
        """How a command ended, with the reason told that initiators know what to do about: it was
        under way while another node took the volume over."""
        if result.sense is not sense.MANUAL_INTERVENTION or self.port_groups is None:
            return result
        why = alua.condition(self.port_groups) or sense.ACCESS_TRANSITION  # served again since
        return Result(CHECK_CONDITION, sense=why)

    def lookup(self, cdb: bytes) -> Opcode:
        """The entry of the command table. CheckCondition."""
        found = self.opcodes.get(cdb[0])
        if found is None:
            raise CheckCondition(sense.INVALID_OPCODE)
        if isinstance(found, Opcode):
            return found
        at, mask = (8, 0xFFFF) if cdb[0] == 0x7F else (1, 0x1F)
        action = int.from_bytes(cdb[8:10], "big") if at == 8 else cdb[1] & mask
        if action not in found:
            raise sense.invalid_field(at, 4)
        return found[action]


def _interrupt(nexus: Nexus) -> None:
    if nexus.interrupt is not None:
        nexus.interrupt()
