"""The full feature phase of one session: commands, data, responses. RFC 7143 4.2 and 11.

A session has one connection, so commands come in the order of their CmdSN. Each goes through

    accepted    CmdSN used up, CDB and immediate data looked at
    collecting  data-out: unsolicited, then by R2T (`blockd.iscsi.data_out`)
    running     steps of `blockd.scsi.task`, carried out through Submit and Work events
    answered    Data-In with the status in the last PDU, or a SCSI Response (`blockd.iscsi.replies`)

All requests that the PDUs of one wake-up lead to become one batch for each device. A command that
is aborted gets no answer: what a device still has of it comes back and is counted only.

Memory is bounded by the command window, by a count of immediate commands, and by the bytes that
these may hold (`blockd.iscsi.room`): at that bound reads wait, and so do R2Ts.
"""

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final, cast

from typing_extensions import Buffer

from blockd.accounts import Accounts
from blockd.device import BlockDevice
from blockd.iscsi import pdu, replies
from blockd.iscsi.command import Command, extended_cdb
from blockd.iscsi.data_out import DataOut
from blockd.iscsi.events import Event, Submit, Work
from blockd.iscsi.held import Held
from blockd.iscsi.limits import MAX_IMMEDIATE, Limits
from blockd.iscsi.login import LoggedIn
from blockd.iscsi.room import Room
from blockd.iscsi.sending import ProtocolError, Sender
from blockd.iscsi.stats import Stats
from blockd.iscsi.text import Parameters
from blockd.limits import RateLimits
from blockd.scsi import task
from blockd.scsi.disk import plain
from blockd.scsi.nexus import Nexus
from blockd.scsi.target import TargetDevice, decode_lun
from blockd.scsi.task import GOOD, Prepared, Result, Single, Task
from native import OP_OTHER, OP_READ, OP_WRITE, Account, Limit, Request

if TYPE_CHECKING:
    from blockd.scsi.unit import LogicalUnit

PROTOCOL: Final = "iscsi"  # of accounts

_DIRECTIONS: Final = pdu.READ | pdu.WRITE
_WHOLE_WRITE: Final = pdu.FINAL | _DIRECTIONS
_SINGLE_LEVEL: Final = bytes(6)  # what follows the number in a LUN field of one level
_NO_DATA: Final = memoryview(b"")


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
        held: Held,
        accounts: Accounts,
        rate_limits: RateLimits,
    ) -> None:
        """`wake` is called when something is to be done that did not come of a call. `held`: where
        requests wait for limits that were submitted."""
        self._wake = wake
        self.held = held
        self._accounts = accounts
        self._rate_limits = rate_limits
        self.device = device
        self.nexus = nexus
        self.stats = stats
        self.commands: dict[int, Command] = {}  # by initiator task tag, not yet answered
        self.sender = Sender(logged_in, stats, out)
        self.parameters = logged_in.parameters
        self.room = Room(limits.max_in_flight_bytes)
        self.data_out = DataOut(
            self.sender, self.room, stats, self.commands, self._run, self._answer
        )
        self.plain_run = 0
        """Commands in a row, up to now, that the request loop could have served."""
        self._events = events
        self._immediate = 0  # commands without a CmdSN of their own
        self._owners: dict[int, Command] = {}  # by the cookie of requests, the token of calls
        self._next_cookie = 0
        self._batches: dict[BlockDevice, list[Request]] = {}
        self._agreed()

    def _agreed(self) -> None:
        parameters = self.parameters
        self._immediate_limit = parameters.first_burst_length * parameters.immediate_data

    def renegotiated(self, parameters: Parameters) -> None:
        """The initiator declared another MaxRecvDataSegmentLength (13.12: at any time)."""
        self.parameters = parameters
        self.sender.agreed(parameters)
        self._agreed()

    @property
    def idle(self) -> bool:
        """Nothing is in a device or on a thread, and nothing waits to be answered."""
        return not self._owners and not self.commands

    # -- handing over (`blockd.iscsi.handover`)

    @property
    def in_devices(self) -> bool:
        """Something is in a device or on a thread."""
        return bool(self._owners)

    @property
    def only_plain(self) -> bool:
        """All commands that are under way are single requests."""
        return all(type(each.prepared) is Single for each in self.commands.values())

    def hand_over(self) -> None:
        """Somebody else has the commands, and the numbers."""
        assert not self._owners
        assert not self._immediate
        self.commands.clear()
        self.room.clear()

    def take_back(self, numbers: tuple[int, int, int, int]) -> None:
        sender = self.sender
        sender.exp_cmd_sn, sender.max_cmd_sn, sender.stat_sn, self.data_out.next_ttt = numbers

    def carry_out(self, command: Command, data: memoryview) -> None:
        """A plain command that was begun elsewhere, and has all of its data."""
        prepared = command.prepared
        if type(prepared) is Result:
            self._answer(command, prepared)
        elif type(prepared) is not Single or prepared.request.op == OP_WRITE:
            self._run(command, data)
        elif prepared.request.op == OP_READ:
            self._enter(command, prepared, prepared.request.length)
        else:
            self._single(command, prepared)

    # -- commands

    def scsi_command(self, view: memoryview, at: int, ahs: int, data: memoryview) -> None:
        """A SCSI Command PDU at `at` of the receive buffer. ProtocolError."""
        command = self._accept(view, at, ahs)
        if command is None:
            return
        cdb = command.cdb
        lun = command.lun
        unit = command.unit
        prepared: Result | Single | Prepared | None = None
        if unit is not None and not ahs:
            prepared = plain(unit, self.nexus, cdb)
        if prepared is None:
            prepared = self.device.prepare(self.nexus, lun, cdb)
        command.prepared = prepared
        if type(prepared) is not Single:
            self.plain_run = 0
            self.data_out.begin(command, data)
            return
        self.plain_run += 1
        length = len(data)
        if not length:
            if not (command.flags & pdu.WRITE or prepared.data_out_length):  # READ, mostly
                request = prepared.request
                self._enter(command, prepared, request.length if request.op == OP_READ else 0)
                return
        elif (
            length == command.edtl == prepared.data_out_length
            and length <= self._immediate_limit
            and command.flags & _WHOLE_WRITE == pdu.FINAL | pdu.WRITE
        ):  # WRITE with all of its data, mostly
            prepared.request.data = data
            command.got = command.collect = length
            self._single(command, prepared)
            return
        self.data_out.begin(command, data)

    def damaged_command(self, view: memoryview, at: int, ahs: int) -> None:
        """The same, with immediate data that is not what was sent (7.8): nothing of it is done."""
        command = self._accept(view, at, ahs)
        if command is not None:
            self.sender.reject(pdu.REJECT_DATA_DIGEST, view, at)
            self.data_out.damaged_command(command)

    def _accept(self, view: memoryview, at: int, ahs: int) -> Command | None:
        """Enter a command into the book; None for one that was ignored or rejected."""
        first, flags, _, lun_field, itt, edtl, cmd_sn, _, cdb = pdu.SCSI_COMMAND_BHS.unpack_from(
            view, at
        )
        counted = not first & pdu.IMMEDIATE
        if counted:
            if not self.sender.count(cmd_sn):
                return None
        elif self._immediate >= MAX_IMMEDIATE:
            self.sender.reject(pdu.REJECT_IMMEDIATE, view, at)
            return None
        if itt in self.commands:
            raise ProtocolError(f"task tag {itt:#x} is in use")
        if ahs:
            start = at + pdu.HEADER_BYTES
            cdb = extended_cdb(cdb, view[start : start + ahs])
        if cdb is None or itt == pdu.RESERVED_TAG:
            self.sender.reject(pdu.REJECT_INVALID_FIELD, view, at)
            if counted:
                self.sender.retire()
            return None
        if not lun_field[0] and lun_field[2:] == _SINGLE_LEVEL:
            lun = lun_field[1]
        else:
            lun = decode_lun(lun_field)
        command = Command(itt, lun_field, lun, flags, edtl, cdb, counted=counted)
        if lun is not None:
            command.unit = self.nexus.units.get(lun)
        self.commands[itt] = command
        if not counted:
            self._immediate += 1
        return command

    def _enter(self, command: Command, prepared: Single | Prepared, length: int) -> None:
        """Run a command without data-out, when there is room for `length` bytes of data-in."""
        if length:
            room = self.room
            if not room.free:
                room.wait(command)
                return
            room.take(command, length)
        if type(prepared) is Single:
            self._single(command, prepared)
        else:
            assert isinstance(prepared, Prepared)
            self._prepared(command, prepared, _NO_DATA)

    def _run(self, command: Command, data: memoryview) -> None:
        """Its data is there: all that comes."""
        prepared = command.prepared
        if type(prepared) is Single:
            self._write(command, prepared, data)
            return
        assert type(prepared) is Prepared
        if prepared.data_in_length:
            assert not prepared.data_out_length, "there is no bidirectional command"
            self._enter(command, prepared, prepared.data_in_length)
            return
        if data.obj is not getattr(command, "data", None):
            data = memoryview(bytes(data))  # it is the receive buffer's
        self._prepared(command, prepared, data)

    def _prepared(self, command: Command, prepared: Prepared, data: memoryview) -> None:
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
        command.reached_device = True
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
        command.reached_device = True
        command.in_flight = len(step.requests)
        for request in step.requests:
            request.cookie = cookie
        self._batches.setdefault(step.device, []).extend(step.requests)

    def account(self, unit: "LogicalUnit") -> Account:
        """Where what is asked of that unit counts."""
        return self._accounts.of(unit.device, PROTOCOL)

    def limit(self, unit: "LogicalUnit") -> Limit:
        """What holds back what is asked of that unit."""
        return self._rate_limits.of(unit.device)

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
                    self.sender.good(command.itt)
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

    def _over(self, command: Command) -> None:
        """It is about to be answered."""
        del self.commands[command.itt]
        if command.counted:
            self.sender.retire()
        else:
            self._immediate -= 1
        if command.charge:
            self.room.answered(command)

    def _read_done(self, command: Command, data: bytes) -> None:
        """The data of a READ that went well: mostly just what was announced, in one PDU."""
        length = len(data)
        if (
            length != command.edtl
            or length > self.sender.one_pdu
            or command.flags & _DIRECTIONS != pdu.READ
        ):
            self._answer(command, Result(GOOD, (data,)))
            return
        self._over(command)
        self.sender.whole(command.itt, data)

    def _answer(self, command: Command, result: Result) -> None:
        """Say how it ended."""
        self._over(command)
        if result.sense is not None and command.unit is not None:
            result = command.unit.ended(result)
        self.stats.errors += result.sense is not None
        if command.unit is not None and not command.reached_device:
            account = self.account(command.unit)
            account.record(OP_OTHER, 0, result.sense is not None, 0)
        replies.answer(self.sender, command, result)

    def released(self) -> None:
        """All that was put so far has been taken."""
        self.room.output_taken()

    def let_in(self) -> None:
        """Let commands go on that waited, as far as there is room."""
        while (command := self.room.next()) is not None:
            if self.commands.get(command.itt) is not command or command.failure is not None:
                continue  # it was aborted, or has failed
            if command.collecting:
                self.data_out.let_in(command)
            else:
                prepared = command.prepared
                if isinstance(prepared, Single):
                    self.room.take(command, prepared.request.length)
                    self._single(command, prepared)
                else:
                    assert isinstance(prepared, Prepared)
                    self.room.take(command, prepared.data_in_length)
                    self._prepared(command, prepared, _NO_DATA)

    # -- aborting

    def abort_tasks(self, concerns: Callable[[Command], bool], gone: Callable[[], None]) -> int:
        """See `blockd.iscsi.node.OpenSession`."""
        waiting = 0
        for command in [each for each in self.commands.values() if concerns(each)]:
            del self.commands[command.itt]
            if command.counted:
                self.sender.retire()
            else:
                self._immediate -= 1
            command.aborted = True
            if command.task is not None:
                command.task.abort()
            if command.in_flight and self._is_out(command):
                waiting += 1
                command.gone = [gone]
            else:
                self.room.give_back(command)
        return waiting

    def leave(self, gone: Callable[[], None]) -> int:
        """The session is over: abort everything. How many commands still have something in a
        device, those included that were aborted before; `gone` is called for each."""
        self.abort_tasks(lambda _: True, gone)
        remaining = set(self._owners.values())
        for command in remaining:
            if gone not in command.gone:
                command.gone.append(gone)
        return len(remaining)

    def _is_out(self, command: Command) -> bool:
        """Take back the requests that have not left yet; whether anything else of it is out. What
        waits for limits comes back soon."""
        leaving = [each for each in self._events if isinstance(each, Submit)]
        for batch in [*self._batches.values(), *(each.batch for each in leaving)]:
            kept = [each for each in batch if self._owners[each.cookie] is not command]
            command.in_flight -= len(batch) - len(kept)
            batch[:] = kept
        for event in leaving:
            if not event.batch:  # no device is asked for nothing
                self._events.remove(event)
        self._batches = {device: batch for device, batch in self._batches.items() if batch}
        owners = self._owners
        self.held.recall(lambda request: owners.get(request.cookie) is command)
        if not command.in_flight:
            for cookie in [key for key, owner in owners.items() if owner is command]:
                del owners[cookie]
        return command.in_flight > 0

    def _came_back(self, command: Command) -> None:
        """A piece of an aborted command."""
        if command.in_flight:
            return
        self.room.give_back(command)
        gone, command.gone = command.gone, []
        for call in gone:
            call()
