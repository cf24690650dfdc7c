"""The full feature phase of one session: commands, data, responses. RFC 7143 4.2 and 11.

A session has one connection, so commands come in the order of their CmdSN. Each goes through

    accepted   CmdSN used up, CDB and immediate data looked at
    collecting data-out: unsolicited, then by R2T (`blockd.iscsi.command`)
    running    steps of `blockd.scsi.task`, carried out through Submit and Work events
    answered   Data-In with the status in the last PDU, or a SCSI Response

All requests that the PDUs of one wake-up lead to become one batch for each device. A command that
is aborted gets no answer: what a device still has of it comes back and is counted only.

Memory is bounded by the command window, by a count of immediate commands, and by the bytes of
data-out that was asked for and data-in that is promised: what was answered counts until the socket
side took it. At that bound reads wait, and so do R2Ts; data that comes unasked is bounded by the
window and FirstBurstLength.
"""

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Final, cast

from typing_extensions import Buffer

from blockd.device import BlockDevice
from blockd.iscsi import pdu
from blockd.iscsi.command import (
    CRC_ERROR,
    UNEXPECTED_DATA,
    Burst,
    Command,
    DataFault,
)
from blockd.iscsi.events import Event, Submit, Work
from blockd.iscsi.limits import COMMAND_WINDOW, MAX_IMMEDIATE, Limits
from blockd.iscsi.login import LoggedIn
from blockd.iscsi.stats import Stats
from blockd.iscsi.text import Parameters
from blockd.scsi import task
from blockd.scsi.disk import plain
from blockd.scsi.nexus import Nexus
from blockd.scsi.sense import Sense, invalid_field
from blockd.scsi.target import TargetDevice, decode_lun
from blockd.scsi.task import CHECK_CONDITION, GOOD, Prepared, Result, Single, Task
from native import OP_READ, OP_WRITE, Request, crc32c

MASK: Final = 0xFFFFFFFF
_HALF: Final = 1 << 31  # serial number arithmetic (RFC 1982, RFC 7143 4.2.2.1)
_WHOLE_WRITE: Final = pdu.FINAL | pdu.READ | pdu.WRITE
_SINGLE_LEVEL: Final = bytes(6)  # what follows the number in a LUN field of one level


class ProtocolError(Exception):
    """The initiator broke the protocol so that the connection is to be closed."""


def after(first: int, second: int) -> bool:
    """Whether serial number `first` comes after `second`."""
    return 0 < (first - second & MASK) < _HALF


class Session:
    """See the module's text. `out` takes what is to be sent, `events` what is to be done."""

    def __init__(
        self,
        logged_in: LoggedIn,
        device: TargetDevice,
        nexus: Nexus,
        limits: Limits,
        stats: Stats,
        out: list[Buffer],
        events: deque[Event],
        wake: Callable[[], None],
    ) -> None:
        """`wake` is called when something is to be done that did not come of a call."""
        self._wake = wake
        self.parameters = logged_in.parameters
        self.device = device
        self.nexus = nexus
        self.stats = stats
        self.exp_cmd_sn = logged_in.cmd_sn
        self.stat_sn = logged_in.stat_sn
        self.commands: dict[int, Command] = {}  # by initiator task tag, not yet answered
        self._limits = limits
        self._out = out
        self._events = events
        self._max_cmd_sn = logged_in.cmd_sn + COMMAND_WINDOW - 1 & MASK
        self._immediate = 0  # commands without a CmdSN of their own
        self._waiting: deque[Command] = deque()  # for room: reads, and writes that would ask
        self._owners: dict[int, Command] = {}  # by the cookie of requests, the token of calls
        self._next_cookie = 0
        self._next_ttt = 0
        self._batches: dict[BlockDevice, list[Request]] = {}
        self._held_bytes = 0
        self._answered_bytes = 0
        self._negotiated(logged_in.parameters)

    def _negotiated(self, parameters: Parameters) -> None:
        self.parameters = parameters
        self._header_digest = parameters.header_digest
        self._data_digest = parameters.data_digest
        self._plain = not (parameters.header_digest or parameters.data_digest)
        self._max_recv = parameters.max_recv_data_segment_length
        self._max_burst = parameters.max_burst_length
        self._one_pdu = min(self._max_recv, self._max_burst)
        self._immediate_limit = parameters.first_burst_length * parameters.immediate_data

    def renegotiated(self, parameters: Parameters) -> None:
        """The initiator declared another MaxRecvDataSegmentLength (13.12: at any time)."""
        self._negotiated(parameters)

    # -- numbers

    @property
    def idle(self) -> bool:
        """Nothing is in a device or on a thread, and nothing waits to be answered."""
        return not self._owners and not self.commands

    @property
    def numbers(self) -> pdu.Numbers:
        """StatSN, ExpCmdSN, MaxCmdSN of a PDU that uses no StatSN up."""
        return self.stat_sn, self.exp_cmd_sn, self._max_cmd_sn

    def next_numbers(self) -> pdu.Numbers:
        """The same for a response, which uses one up."""
        stat_sn = self.stat_sn
        self.stat_sn = stat_sn + 1 & MASK
        return stat_sn, self.exp_cmd_sn, self._max_cmd_sn

    def in_window(self, cmd_sn: int) -> bool:
        """Whether a command of that number may come (4.2.2.1)."""
        return not after(self.exp_cmd_sn, cmd_sn) and not after(cmd_sn, self._max_cmd_sn)

    def count(self, cmd_sn: int) -> bool:
        """A command that is not immediate came: use its number up; False when it is outside of the
        window, and to be ignored in silence. ProtocolError for a gap: one connection has none."""
        if cmd_sn != self.exp_cmd_sn:
            if self.in_window(cmd_sn):
                raise ProtocolError(f"CmdSN {cmd_sn} came before {self.exp_cmd_sn}")
            self.stats.ignored += 1
            return False
        self.exp_cmd_sn = cmd_sn + 1 & MASK
        return True

    def retire(self) -> None:
        """A command that was counted is done with: another may come."""
        self._max_cmd_sn = self._max_cmd_sn + 1 & MASK

    # -- commands

    def scsi_command(self, view: memoryview, at: int, ahs: int, data: memoryview) -> None:
        """A SCSI Command PDU at `at` of the receive buffer. ProtocolError."""
        first, flags, _, lun_field, itt, edtl, cmd_sn, _, cdb = pdu.SCSI_COMMAND_BHS.unpack_from(
            view, at
        )
        counted = not first & pdu.IMMEDIATE
        if counted:
            if not self.count(cmd_sn):
                return
        elif self._immediate >= MAX_IMMEDIATE:
            self.reject(pdu.REJECT_IMMEDIATE, view, at)
            return
        if itt in self.commands:
            raise ProtocolError(f"task tag {itt:#x} is in use")
        if ahs:
            extended = _extended_cdb(cdb, view[at + pdu.HEADER_BYTES : at + pdu.HEADER_BYTES + ahs])
            if extended is None:
                self.reject(pdu.REJECT_INVALID_FIELD, view, at)
                if counted:
                    self.retire()
                return
            cdb = extended
        lun = lun_field[1] if not lun_field[0] and lun_field[2:] == _SINGLE_LEVEL else None
        if lun is None:
            lun = decode_lun(lun_field)
        command = Command(itt, lun_field, lun, flags, edtl, cdb, counted=counted)
        self.commands[itt] = command
        if not counted:
            self._immediate += 1
        unit = command.unit = None if lun is None else self.device.units.get(lun)
        prepared: Result | Single | Prepared | None = None
        if unit is not None and not ahs:
            prepared = plain(unit, self.nexus, cdb)
        if prepared is None:
            prepared = self.device.prepare(self.nexus, lun, cdb)
        command.prepared = prepared
        self._start(command, prepared, data)

    def _start(
        self, command: Command, prepared: Result | Single | Prepared, data: memoryview
    ) -> None:
        """Run a command, or collect its data first. `data` is immediate data."""
        length = len(data)
        if (
            length
            and type(prepared) is Single
            and length == command.edtl == prepared.data_out_length
            and length <= self._immediate_limit
            and command.flags & _WHOLE_WRITE == pdu.FINAL | pdu.WRITE
        ):  # WRITE with all of its data, mostly
            prepared.request.data = data
            command.got = command.collect = length
            self._single(command, prepared)
            return
        if (
            type(prepared) is Single
            and not command.flags & pdu.WRITE
            and not len(data)
            and not prepared.data_out_length
        ):  # READ, mostly
            if self._has_room:
                self._charge(command, prepared.request.length)
                self._single(command, prepared)
            else:
                self._waiting.append(command)
            return
        offered = command.offered
        if type(prepared) is Prepared and prepared.exact and offered != prepared.data_out_length:
            prepared = command.prepared = Result(CHECK_CONDITION, sense=invalid_field(0).sense)
        command.collect = min(command.wanted, offered)
        command.unsolicited = bool(offered) and not command.flags & pdu.FINAL
        if wrong := self._wrong_unsolicited(command, len(data)):
            self._fail(command, wrong)
            return
        if type(prepared) is Result:
            self._answer(command, prepared)
            return
        if not command.collect or len(data) >= command.collect:
            command.got = command.asked = len(data)
            if not command.unsolicited:
                self._run(command, data[: command.collect])
                return
        command.begin_collecting()
        command.place(data)
        command.asked = command.got
        self._go_on(command)

    @property
    def _has_room(self) -> bool:
        return not self._waiting and self._held_bytes < self._limits.max_in_flight_bytes

    def _charge(self, command: Command, length: int) -> None:
        command.charge += length
        self._held_bytes += length

    def _wrong_unsolicited(self, command: Command, length: int) -> Sense | None:
        """What is wrong with immediate data, or with more to come that nobody asks for."""
        parameters = self.parameters
        if length and not (
            parameters.immediate_data
            and length <= min(parameters.first_burst_length, command.offered)
        ):
            return UNEXPECTED_DATA
        return UNEXPECTED_DATA if command.unsolicited and parameters.initial_r2t else None

    def _go_on(self, command: Command) -> None:
        """Data came: run the command when all of it is there, else ask for more."""
        if command.complete:
            command.collecting = False
            self._run(command, memoryview(command.data))  # nobody else has it
            return
        if command.unsolicited:
            return
        if not command.charge:
            # All that is missing is accounted for at once: commands that are half there and wait
            # for each other's room would wait for ever.
            if not self._has_room:
                self._waiting.append(command)
                return
            self._charge(command, command.collect - command.got)
        while command.asked < command.collect and (
            len(command.bursts) < self.parameters.max_outstanding_r2t
        ):
            # Answers come in the order of the R2Ts (13.13 with DataSequenceInOrder).
            length = min(self._max_burst, command.collect - command.asked)
            ttt = self._next_ttt
            self._next_ttt = (ttt + 1) % pdu.RESERVED_TAG
            command.bursts[ttt] = Burst(command.asked, command.asked + length)
            bhs = pdu.r2t(
                *(command.lun_field, command.itt, ttt, *self.numbers),
                *(command.r2t_sn, command.asked, length),
            )
            command.r2t_sn += 1
            command.asked += length
            self.put(bhs)

    def data_out(self, view: memoryview, at: int, data: memoryview) -> None:
        """A Data-Out PDU. What belongs to no command is of one that is over: it is let go of."""
        _, flags, _, _, itt, ttt, _, data_sn, offset = pdu.DATA_OUT_BHS.unpack_from(view, at)
        command = self.commands.get(itt)
        if command is None or not command.collecting:
            self.stats.ignored += 1
            return
        final = bool(flags & pdu.FINAL)
        try:
            if ttt == pdu.RESERVED_TAG:
                first = self.parameters.first_burst_length
                command.take_unsolicited(offset, data_sn, data, first, final=final)
            else:
                command.take_solicited(ttt, offset, data_sn, data, final=final)
        except DataFault as fault:
            self._fail(command, fault.sense)
            return
        if final:
            self._go_on(command)

    def data_digest_failed(self, view: memoryview, at: int) -> None:
        """The data of the PDU at `at` is not what was sent (7.8): it is rejected, and the command
        that it belongs to ends."""
        opcode = view[at] & pdu.OPCODE_MASK
        self.reject(pdu.REJECT_DATA_DIGEST, view, at)
        itt, _, cmd_sn = (pdu.COMMON_BHS.unpack_from(view, at)[index] for index in (4, 5, 6))
        if opcode == pdu.DATA_OUT:
            command = self.commands.get(itt)
            if command is not None and command.collecting:
                self._fail(command, CRC_ERROR)
        elif not view[at] & pdu.IMMEDIATE and self.count(cmd_sn):
            self.retire()  # it used its number up, and is to be sent again

    def _run(self, command: Command, data: memoryview) -> None:
        prepared = command.prepared
        if type(prepared) is Single:
            self._write(command, prepared, data)
            return
        assert type(prepared) is Prepared
        if not command.got or data.obj is not getattr(command, "data", None):
            data = memoryview(bytes(data))  # it is the receive buffer's
        command.task = Task()
        command.task.begin(prepared, data)
        self._steps(command)

    def _write(self, command: Command, single: Single, data: memoryview) -> None:
        """One request, with as much of its data as the initiator has (residuals tell the rest)."""
        request = single.request
        if len(data) < single.data_out_length:
            block = single.device.block_size
            request.length = len(data) // block * block
            if not request.length:
                self._answer(command, Result())
                return
            data = data[: request.length]
        if request.op == OP_WRITE:
            request.data = data
        self._single(command, single)

    def _single(self, command: Command, single: Single) -> None:
        request = single.request
        cookie = self._next_cookie = self._next_cookie + 1
        request.cookie = cookie
        self._owners[cookie] = command
        command.in_flight = 1
        batch = self._batches.get(single.device)
        if batch is None:
            self._batches[single.device] = [request]
        else:
            batch.append(request)
        if request.op == OP_READ:
            self.stats.reads += 1
            self.stats.read_bytes += request.length
        elif request.op == OP_WRITE:
            self.stats.writes += 1
            self.stats.written_bytes += request.length

    def _steps(self, command: Command) -> None:
        """Carry out what the command's task wants now, or answer."""
        running = command.task
        assert running is not None
        if running.result is not None:
            self._answer(command, running.result)
            return
        step = running.step
        cookie = self._next_cookie = self._next_cookie + 1
        self._owners[cookie] = command
        if isinstance(step, task.Work):
            command.in_flight = 1
            self.submit()
            self._events.append(Work(step.call, cookie))
            return
        if isinstance(step, task.Await):
            command.in_flight = 1
            step.begin(partial(self._awaited, cookie))
            return
        assert isinstance(step, task.Submit)
        command.in_flight = len(step.requests)
        for request in step.requests:
            request.cookie = cookie
        self._batches.setdefault(step.device, []).extend(step.requests)

    def submit(self) -> None:
        """At the end of a round: what has gathered goes to the devices."""
        if self._batches:
            for device, batch in self._batches.items():
                self._events.append(Submit(device, batch))
            self._batches = {}

    def completed(self, requests: list[Request]) -> None:
        """Devices finished these."""
        owners = self._owners
        for request in requests:
            command = owners[request.cookie]
            command.in_flight -= 1
            if not command.in_flight:
                del owners[request.cookie]
            if command.aborted:
                self._came_back(command)
                continue
            prepared = command.prepared
            if type(prepared) is Single:
                if request.error:
                    self._answer(command, prepared.finish(request))
                elif request.op == OP_READ:
                    self._read_done(command, cast(bytes, request.data))
                elif command.edtl == prepared.data_out_length and not command.r2t_sn:
                    self._over(command)
                    numbers = self.next_numbers()
                    self.put(pdu.good_response(command.itt, *numbers))
                else:
                    self._answer(command, prepared.finish(request))
            elif command.task is not None and command.task.finished(1):
                self._steps(command)

    def worked(self, token: int, value: object, error: Exception | None) -> None:
        """A Work event is done."""
        command = self._owners.pop(token)
        command.in_flight = 0
        if command.aborted:
            self._came_back(command)
            return
        assert command.task is not None
        command.task.worked(value, error)
        self._steps(command)

    def _awaited(self, cookie: int) -> None:
        """What a command waited for has ended."""
        command = self._owners.pop(cookie)
        command.in_flight = 0
        if command.aborted:
            self._came_back(command)
        else:
            assert command.task is not None
            command.task.waited()
            self._steps(command)
        self._wake()

    # -- the end of a command

    def _fail(self, command: Command, sense: Sense) -> None:
        self._answer(command, Result(CHECK_CONDITION, sense=sense))

    def _over(self, command: Command) -> None:
        """It is about to be answered."""
        del self.commands[command.itt]
        if command.counted:
            self._max_cmd_sn = self._max_cmd_sn + 1 & MASK
        else:
            self._immediate -= 1
        self._answered_bytes += command.charge

    def _read_done(self, command: Command, data: bytes) -> None:
        """The data of a READ that went well: mostly just what was announced, in one PDU."""
        length = len(data)
        if (
            length != command.edtl
            or length > self._one_pdu
            or command.flags & (pdu.READ | pdu.WRITE) != pdu.READ
        ):
            self._answer(command, Result(GOOD, (data,)))
            return
        self._over(command)
        stat_sn = self.stat_sn
        self.stat_sn = stat_sn + 1 & MASK
        itt, exp_cmd_sn, max_cmd_sn = command.itt, self.exp_cmd_sn, self._max_cmd_sn
        bhs = pdu.last_data_in(length, itt, stat_sn, exp_cmd_sn, max_cmd_sn)
        if self._plain and not length & 3:
            self._out.append(bhs)
            self._out.append(data)
        else:
            self.put(bhs, data)

    def _answer(self, command: Command, result: Result) -> None:
        """Say how it ended."""
        self._over(command)
        if result.status == GOOD and result.data:
            self._data_in(command, result)
            return
        flags, residual = self._residual(command, 0, result.status)
        data = b""
        if result.sense is not None:
            descriptor = command.unit is not None and command.unit.modes.descriptor_sense
            sense = result.sense.encode(descriptor=descriptor)
            data = len(sense).to_bytes(2, "big") + sense
            self.stats.errors += 1
        bhs = pdu.scsi_response(
            *(flags, 0, result.status, len(data), command.itt, *self.next_numbers()),
            *(command.data_sn + command.r2t_sn, residual),
        )
        self.put(bhs, data)

    def _residual(self, command: Command, sent: int, status: int) -> tuple[int, int]:
        """Flag and count of what was more or less than announced (11.4.5)."""
        expected = command.edtl
        moved = sent
        if command.flags & pdu.WRITE:
            moved = command.wanted if status == GOOD or command.got >= command.collect else 0
        if moved > expected:
            return pdu.OVERFLOW, moved - expected
        if moved < expected:
            return pdu.UNDERFLOW, expected - moved
        return 0, 0

    def _data_in(self, command: Command, result: Result) -> None:
        """Data, with the status in its last PDU (11.7); nothing of it that nobody has room for."""
        data = result.data[0] if len(result.data) == 1 else b"".join(result.data)
        whole = memoryview(data).nbytes
        room = command.edtl if command.flags & pdu.READ else 0
        flags, residual = self._residual(command, whole, GOOD)
        if command.flags & pdu.WRITE and not command.flags & pdu.READ:
            flags, residual = self._residual(command, 0, GOOD)
        length = min(whole, room)
        if not length:
            bhs = pdu.scsi_response(
                *(flags, 0, GOOD, 0, command.itt, *self.next_numbers()),
                *(command.data_sn + command.r2t_sn, residual),
            )
            self.put(bhs)
            return
        itt, exp_cmd_sn, max_cmd_sn = command.itt, self.exp_cmd_sn, self._max_cmd_sn
        last = pdu.FINAL | pdu.STATUS | flags
        if length <= self._one_pdu:
            stat_sn = self.stat_sn
            self.stat_sn = stat_sn + 1 & MASK
            bhs = pdu.data_in(
                last, GOOD, length, itt, stat_sn, exp_cmd_sn, max_cmd_sn, 0, 0, residual
            )
            self.put(bhs, data if length == whole else memoryview(data)[:length])
            return
        pieces = memoryview(data)
        offset = data_sn = 0
        while offset < length:
            burst_end = min(length, (offset // self._max_burst + 1) * self._max_burst)
            end = min(offset + self._max_recv, burst_end)
            if end == length:
                stat_sn, *_ = self.next_numbers()
                bhs = pdu.data_in(
                    *(last, GOOD, end - offset, itt, stat_sn, exp_cmd_sn, max_cmd_sn),
                    *(data_sn, offset, residual),
                )
            else:
                final = pdu.FINAL if end == burst_end else 0
                bhs = pdu.data_in(
                    *(final, 0, end - offset, itt, 0, exp_cmd_sn, max_cmd_sn, data_sn, offset, 0),
                )
            self.put(bhs, pieces[offset:end])
            data_sn += 1
            offset = end

    def released(self) -> None:
        """All that was put so far has been taken: there is room for commands that wait."""
        self._held_bytes -= self._answered_bytes
        self._answered_bytes = 0
        if not self._waiting:
            return
        waiting, self._waiting = self._waiting, deque()
        while waiting and self._has_room:
            command = waiting.popleft()
            if self.commands.get(command.itt) is not command:
                continue  # it was aborted, or has failed
            if command.collecting:
                self._go_on(command)
            else:
                assert type(command.prepared) is Single
                self._charge(command, command.prepared.request.length)
                self._single(command, command.prepared)
        self._waiting.extend(waiting)

    # -- aborting

    def abort_tasks(self, concerns: Callable[[Command], bool], gone: Callable[[], None]) -> int:
        """See `blockd.iscsi.node.OpenSession`."""
        waiting = 0
        for command in [each for each in self.commands.values() if concerns(each)]:
            del self.commands[command.itt]
            if command.counted:
                self.retire()
            else:
                self._immediate -= 1
            command.aborted = True
            if command.task is not None:
                command.task.abort()
            if command.in_flight and self._taken_back(command):
                waiting += 1
                command.gone = [gone]
            else:
                self._answered_bytes += command.charge
        return waiting

    def _taken_back(self, command: Command) -> bool:
        """Requests that have not left yet do not; whether anything else of it is out."""
        for batch in self._batches.values():
            kept = [each for each in batch if self._owners[each.cookie] is not command]
            for request in batch:
                if self._owners[request.cookie] is command:
                    command.in_flight -= 1
            batch[:] = kept
        self._batches = {device: batch for device, batch in self._batches.items() if batch}
        if not command.in_flight:
            for cookie in [key for key, owner in self._owners.items() if owner is command]:
                del self._owners[cookie]
        return command.in_flight > 0

    def _came_back(self, command: Command) -> None:
        """A piece of an aborted command."""
        if command.in_flight:
            return
        self._answered_bytes += command.charge
        command.charge = 0
        gone, command.gone = command.gone, []
        for call in gone:
            call()

    # -- sending

    def reject(self, reason: int, view: memoryview, at: int) -> None:
        """11.17: the PDU at `at` is not what it should be."""
        self.stats.rejects += 1
        header = bytes(view[at : at + pdu.HEADER_BYTES])
        self.put(pdu.reject(reason, self.next_numbers()), header)

    def put(self, bhs: bytes, data: Buffer = b"") -> None:
        """Send a PDU: its header, its data, padding and what digests were agreed on."""
        out = self._out
        if self._plain:
            out.append(bhs)
            length = len(data)  # type: ignore[arg-type]
            if length:
                out.append(data)
                if length & 3:
                    out.append(bytes(-length & 3))
            return
        if self._header_digest:
            bhs += crc32c(bhs).to_bytes(4, "little")
        out.append(bhs)
        length = memoryview(data).nbytes
        if length:
            out.append(data)
            padding = bytes(-length & 3)
            if self._data_digest:
                padding += crc32c(padding, crc32c(data)).to_bytes(4, "little")
            if padding:
                out.append(padding)


def _extended_cdb(cdb: bytes, ahs: memoryview) -> bytes | None:
    """The CDB with what an extended CDB segment adds (11.2.2.3); None when the segments do not add
    up. A bidirectional command's segment is passed over: there is none that we know."""
    at = 0
    while at < len(ahs):
        if len(ahs) - at < 4:
            return None
        length = int.from_bytes(ahs[at : at + 2], "big")
        kind = ahs[at + 2]
        if length < 1 or at + 3 + length > len(ahs):
            return None
        if kind == 1:
            cdb += bytes(ahs[at + 4 : at + 3 + length])
        at += pdu.padded(3 + length)
    return cdb
