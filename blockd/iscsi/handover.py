"""Handing a session's plain commands over to the request loop, and taking them back.

    here        the engine takes every PDU; it counts the commands in a row that were plain
    offered     after enough of these, when nothing is in a device: numbers, terms, the units that
                nothing is out of the ordinary of, and the WRITEs whose data is being collected
    elsewhere   the loop serves (native/src/iscsi_serve.h); the engine takes no input and says
                nothing. It is interrupted before anything becomes visible that the loop does not
                know of: a unit attention, a reservation, other units, an abort, an end
    back        numbers, and commands that were begun and not answered, go on here; then what was
                asked for meanwhile is done, as aborting tasks

An initiator whose commands are seldom plain would go to and fro: a stay in the loop that was short
makes the engine wait for twice as many plain commands before the next one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from blockd.device import BlockDevice, ServedByCore
from blockd.iscsi import pdu
from blockd.iscsi.command import Burst, Command
from blockd.iscsi.stats import Stats
from blockd.iscsi.text import OUR_MAX_RECV
from blockd.scsi.disk import finished
from blockd.scsi.task import Countdown, Single
from native import (
    ISCSI_COLLECTING,
    ISCSI_FAILED,
    ISCSI_MAILED,
    ISCSI_UNSYNCED,
    OP_FLUSH,
    OP_READ,
    OP_WRITE,
    Account,
    Limit,
    Request,
    Reservation,
    VolumeCore,
)

if TYPE_CHECKING:
    from blockd.iscsi.session import Session
    from blockd.scsi.unit import LogicalUnit

FIRST_RUN: Final = 8
"""Plain commands in a row before the first hand-over: an initiator has looked around by then."""
LONGEST_RUN: Final = 1024
SHORT_STAY: Final = 64
"""Commands served elsewhere that make the way there worth it."""
LUNS: Final = 256  # that the loop knows; others stay here

Numbers = tuple[int, int, int, int]
"""ExpCmdSN, MaxCmdSN, next StatSN, next target transfer tag."""
Terms = tuple[int, int, int, int, int, bool, bool, bool, bool, int]
Served = tuple[int, VolumeCore, Account, Limit, int, int, bool]
Bursts = list[tuple[int, int, int, int]]
Collecting = tuple[bytes, bytearray, int, int, bool, int, Bursts]
Begun = tuple[int, bytes, bytes, int, int, bool, int, Bursts, Reservation | None]
"""As `native.iscsi_add` takes them, and `native.iscsi_state` gives them."""


@dataclass(frozen=True, slots=True)
class Offer:
    """What the loop needs to serve the session (`native.iscsi_add`)."""

    terms: Terms
    numbers: Numbers
    luns: list[Served]
    commands: list[Collecting]


@dataclass(frozen=True, slots=True)
class Read:
    """A READ of the loop's that needs the device: `data` of the request answers command `itt`."""

    itt: int
    device: BlockDevice
    request: Request


class Elsewhere(Protocol):
    """The loop's side of one session, while it serves it."""

    def interrupt(self) -> None:
        """As `native.iscsi_interrupt`; `Handover.back` or `lost` follows, later."""

    def commands(self, lun: int | None = None) -> int:
        """Commands that were begun and not answered, of one unit or of all."""

    def heard(self) -> bool:
        """Whether the initiator has sent something since the last call."""

    def counters(self) -> tuple[int, ...]:
        """As `native.LoopClient.counters`."""


class Handover:
    """See the module's text; of one session. What concerns its commands goes through here, wherever
    they are."""

    def __init__(self, session: "Session") -> None:
        self._session = session
        self._run = FIRST_RUN
        self._elsewhere: Elsewhere | None = None
        self._aborts: list[tuple[Callable[[Command], bool], Callable[[], None]]] = []
        self._then: list[Callable[[], None]] = []

    # -- going

    @property
    def elsewhere(self) -> bool:
        """Somebody else serves the session."""
        return self._elsewhere is not None

    @property
    def due(self) -> bool:
        """Enough plain commands came, and all that is under way is of that kind."""
        session = self._session
        return session.plain_run >= self._run and session.only_plain

    @property
    def waits(self) -> bool:
        """It is due, and nothing must come until what is in a device has come back."""
        return self.due and self._session.in_devices

    def offer(self) -> Offer | None:
        """What the loop is to take over; None, and not soon again, when that cannot be."""
        session = self._session
        luns = self._luns()
        commands = [_collecting(each, luns) for each in session.commands.values()]
        if not luns or None in commands or session.in_devices:
            self.refused()
            return None
        sender, parameters = session.sender, session.parameters
        terms = (
            *(sender.max_recv, OUR_MAX_RECV, sender.max_burst, parameters.first_burst_length),
            *(parameters.max_outstanding_r2t, parameters.initial_r2t, parameters.immediate_data),
            *(parameters.header_digest, parameters.data_digest, session.room.limit),
        )
        numbers = (sender.exp_cmd_sn, sender.max_cmd_sn, sender.stat_sn, session.data_out.next_ttt)
        return Offer(terms, numbers, luns, [each for each in commands if each is not None])

    def _luns(self) -> list[Served]:
        session = self._session
        return [
            (
                *(lun, unit.device.core, session.account(unit), session.limit(unit)),
                *(unit.device.size, unit.block_size, unit.read_only_to(session.nexus)),
            )
            for lun, unit in session.nexus.units.items()
            if lun < LUNS and isinstance(unit.device, ServedByCore) and unit.ordinary(session.nexus)
        ]

    def refused(self) -> None:
        """The way there led nowhere: not soon again."""
        self._session.plain_run = 0
        self._run = min(self._run * 2, LONGEST_RUN)

    def gone(self, elsewhere: Elsewhere) -> None:
        """The loop has taken the offer over."""
        session = self._session
        assert self._elsewhere is None
        self._elsewhere = elsewhere
        session.nexus.interrupt = elsewhere.interrupt
        session.hand_over()

    # -- while it is elsewhere

    def reading(self, bhs: bytes) -> Read | None:
        """The READ that the loop has sent by mail; None when there is nothing to read from any
        more, and the command is to be answered here."""
        _, _, _, lun_field, itt, _, _, _, cdb = pdu.SCSI_COMMAND_BHS.unpack(bhs)
        unit = self._session.nexus.units.get(lun_field[1])
        prepared = None if unit is None else unit.resume(self._session.nexus, cdb)
        if not isinstance(prepared, Single) or prepared.request.op != OP_READ:
            return None
        return Read(itt, prepared.device, prepared.request)

    @property
    def commands(self) -> int:
        """How many were begun and not answered."""
        elsewhere = self._elsewhere
        return len(self._session.commands) if elsewhere is None else elsewhere.commands()

    def has_tasks(self, unit: "LogicalUnit") -> bool:
        """Whether any of them is under way on that unit."""
        session, elsewhere = self._session, self._elsewhere
        if elsewhere is None:
            return any(command.unit is unit for command in session.commands.values())
        luns = [lun for lun, each in session.nexus.units.items() if each is unit]
        return any(elsewhere.commands(lun) for lun in luns)

    def heard(self) -> bool:
        return self._elsewhere is not None and self._elsewhere.heard()

    def add_to(self, stats: Stats) -> None:
        """Count what is done elsewhere."""
        if self._elsewhere is not None:
            _count(stats, self._elsewhere.counters())

    def look_around(self) -> None:
        """No command goes through the units, which would notice by these what has changed."""
        for unit in list(self._session.nexus.units.values()):
            unit.look_around()

    def interrupt(self) -> None:
        """Have the session come back, if it is elsewhere."""
        if self._elsewhere is not None:
            self._elsewhere.interrupt()

    def when_here(self, call: Callable[[], None]) -> None:
        """Call `call` now, or as soon as the session has come back."""
        if self._elsewhere is None:
            call()
        else:
            self._then.append(call)
            self.interrupt()

    def abort_tasks(self, concerns: Callable[[Command], bool], gone: Callable[[], None]) -> int:
        """As `Session.abort_tasks`; elsewhere, one command stands for all of them."""
        if self._elsewhere is None:
            return self._session.abort_tasks(concerns, gone)
        self._aborts.append((concerns, gone))
        self.interrupt()
        return 1

    # -- coming back

    def back(
        self, numbers: Numbers, begun: list[Begun], counters: tuple[int, ...], *, asked: bool
    ) -> None:
        """The loop has stopped, `asked` to. What is asked for in `interrupt` is done before any
        command goes on."""
        session = self._session
        served = counters[0] + counters[2] + counters[4]
        if served >= SHORT_STAY:
            self._run = FIRST_RUN
        elif not asked:
            self._run = min(self._run * 2, LONGEST_RUN)
        self._over(counters)
        session.take_back(numbers)
        commands = [(_command(session, each), each) for each in begun]
        self._catch_up()
        for command, what in commands:
            if not command.aborted:
                _keep_place(session, command, what)
                _go_on(session, command, what)

    def lost(self, counters: tuple[int, ...]) -> None:
        """The socket broke: nothing of it goes on."""
        self._over(counters)
        self._catch_up()

    def _over(self, counters: tuple[int, ...]) -> None:
        self._elsewhere = None
        self._session.nexus.interrupt = None
        self._session.plain_run = 0
        _count(self._session.stats, counters)

    def _catch_up(self) -> None:
        aborts, self._aborts = self._aborts, []
        for concerns, gone in aborts:
            countdown = Countdown(gone)
            countdown.count += self._session.abort_tasks(concerns, countdown.gone)
            countdown.gone()
        then, self._then = self._then, []
        for call in then:
            call()


def _count(stats: Stats, counters: tuple[int, ...]) -> None:
    reads, read_bytes, writes, written_bytes = counters[:4]
    stats.reads += reads
    stats.read_bytes += read_bytes
    stats.writes += writes
    stats.written_bytes += written_bytes


def _collecting(command: Command, luns: list[Served]) -> Collecting | None:
    """A WRITE that collects its data, as the loop takes it; None for what it does not."""
    prepared = command.prepared
    plain = (
        type(prepared) is Single
        and prepared.request.op == OP_WRITE
        and prepared.data_out_length == command.edtl == command.collect
        and command.counted
        and command.collecting
        and command.failure is None
        and command.flags & (pdu.READ | pdu.WRITE) == pdu.WRITE
        and len(command.cdb) == 16
        and command.lun in [served[0] for served in luns]
    )
    if not plain:
        return None
    bhs = pdu.SCSI_COMMAND_BHS.pack(
        *(pdu.SCSI_COMMAND, command.flags, 0, command.lun_field, command.itt, command.edtl),
        *(0, 0, command.cdb),
    )
    bursts = [(ttt, each.at, each.end, each.data_sn) for ttt, each in command.bursts.items()]
    return (
        *(bhs, command.data, command.asked, command.r2t_sn),
        *(command.unsolicited, command.unsolicited_sn, bursts),
    )


def _command(session: "Session", begun: Begun) -> Command:
    """Enter a command of the loop's into the book."""
    state, bhs, data, asked, r2t_sn, unsolicited, unsolicited_sn, bursts, _ = begun
    _, flags, _, lun_field, itt, edtl, _, _, cdb = pdu.SCSI_COMMAND_BHS.unpack(bhs)
    command = Command(itt, lun_field, lun_field[1], flags, edtl, cdb, counted=True)
    unit = command.unit = session.nexus.units.get(lun_field[1])
    if unit is None:
        command.prepared = session.device.prepare(session.nexus, command.lun, cdb)
    elif state == ISCSI_UNSYNCED:
        command.prepared = Single(unit.device, Request(OP_FLUSH), edtl, finished)
    else:
        command.prepared = unit.resume(session.nexus, cdb)
    session.commands[itt] = command
    command.collect = command.offered
    command.got = len(data)
    command.r2t_sn = r2t_sn
    if state != ISCSI_COLLECTING:
        return command
    command.begin_collecting()
    command.data += data
    command.asked = asked
    command.unsolicited = unsolicited
    command.unsolicited_sn = unsolicited_sn
    command.bursts = {ttt: Burst(at, end, data_sn) for ttt, at, end, data_sn in bursts}
    if bursts:
        session.room.take(command, command.collect - command.got)
    return command


def _keep_place(session: "Session", command: Command, begun: Begun) -> None:
    """What limits have let go on does not wait again, and what waits keeps its place."""
    state, reservation = begun[0], begun[-1]
    prepared = command.prepared
    if type(prepared) is not Single:
        return
    if reservation is not None:
        session.held.adopt(prepared.device, reservation)
    elif state in (ISCSI_FAILED, ISCSI_MAILED):
        request, reads = prepared.request, prepared.request.op == OP_READ
        counts = (1, request.length, 0, 0) if reads else (0, 0, 1, request.length)
        session.held.paid(prepared.device, counts)


def _go_on(session: "Session", command: Command, begun: Begun) -> None:
    state, _, data, *_ = begun
    if state == ISCSI_COLLECTING:
        session.data_out.resume(command)
    elif state == ISCSI_UNSYNCED:
        command.got = command.collect
        session.carry_out(command, memoryview(b""))
    else:
        session.carry_out(command, memoryview(data))
