"""Collecting the data-out of commands: what comes unasked, and what R2Ts ask for. RFC 7143 11.7,
11.8.

    begin      checks what came with the command and what is to follow unasked
    R2T        for the rest, MaxOutstandingR2T at a time, in ascending order, MaxBurstLength each,
               once there is room for all that is missing
    run, over  called when the last byte is there, or when the command has failed

Data that comes unasked is taken however full the session is, since nothing but the command window
and FirstBurstLength bounds it. It is copied, as the receive buffer is needed for what follows.
"""

from collections.abc import Callable, Mapping

from blockd.iscsi import pdu
from blockd.iscsi.command import CRC_ERROR, UNEXPECTED_DATA, Burst, Command
from blockd.iscsi.room import Room
from blockd.iscsi.sending import Sender
from blockd.iscsi.stats import Stats
from blockd.scsi.sense import Sense, invalid_field
from blockd.scsi.task import CHECK_CONDITION, Prepared, Result


class DataOut:
    """See the module's text; for one session."""

    def __init__(
        self,
        sender: Sender,
        room: Room,
        stats: Stats,
        commands: Mapping[int, Command],
        run: Callable[[Command, memoryview], None],
        over: Callable[[Command, Result], None],
    ) -> None:
        """`commands`: those that have not been answered, by task tag."""
        self._sender = sender
        self._room = room
        self._stats = stats
        self._commands = commands
        self._run = run
        self._over = over
        self.next_ttt = 0

    def begin(self, command: Command, data: memoryview) -> None:
        """A command that was prepared. `data` is immediate data, in the receive buffer."""
        prepared = command.prepared
        offered = command.offered
        command.unsolicited = bool(offered) and not command.flags & pdu.FINAL
        if type(prepared) is Prepared and prepared.exact and offered != prepared.data_out_length:
            prepared = command.prepared = Result(CHECK_CONDITION, sense=invalid_field(0).sense)
        command.collect = min(command.wanted, offered)
        if wrong := self._wrong(command, len(data)):
            self.fail(command, wrong)
            return
        if type(prepared) is Result:
            self.end(command, prepared)
            return
        if len(data) >= command.collect and not command.unsolicited:
            command.got = len(data)
            self._run(command, data[: command.collect])
            return
        command.begin_collecting()
        command.place(data)
        command.asked = command.got
        self._go_on(command)

    def resume(self, command: Command) -> None:
        """A command that was begun elsewhere, and collects."""
        if type(command.prepared) is Result:
            self.end(command, command.prepared)
        else:
            self._go_on(command)

    def _wrong(self, command: Command, length: int) -> Sense | None:
        """What is wrong with immediate data, or with more to come that nobody asks for."""
        parameters = self._sender.parameters
        if length and not (
            parameters.immediate_data
            and length <= min(parameters.first_burst_length, command.offered)
        ):
            return UNEXPECTED_DATA
        return UNEXPECTED_DATA if command.unsolicited and parameters.initial_r2t else None

    def take(self, view: memoryview, at: int, data: memoryview) -> None:
        """A Data-Out PDU. What belongs to no command is of one that is over: it is let go of."""
        self._take(view, at, data, len(data))

    def damaged(self, view: memoryview, at: int, length: int) -> None:
        """A Data-Out PDU whose `length` bytes of data are not what was sent (7.8)."""
        self._sender.reject(pdu.REJECT_DATA_DIGEST, view, at)
        self._take(view, at, None, length)

    def _take(self, view: memoryview, at: int, data: memoryview | None, length: int) -> None:
        _, flags, _, _, itt, ttt, _, data_sn, offset = pdu.DATA_OUT_BHS.unpack_from(view, at)
        command = self._commands.get(itt)
        if command is None or not command.collecting:
            self._stats.ignored += 1
            return
        final = bool(flags & pdu.FINAL)
        first_burst = self._sender.parameters.first_burst_length
        wrong = command.take(
            *(ttt, offset, data_sn, data),
            end=offset + length,
            final=final,
            first_burst=first_burst,
        )
        if wrong is not None:
            self.fail(command, wrong)
        elif final or command.failure is not None:
            self._go_on(command)

    def damaged_command(self, command: Command) -> None:
        """The immediate data of a command is not what was sent."""
        command.unsolicited = bool(command.offered) and not command.flags & pdu.FINAL
        self.fail(command, CRC_ERROR)

    def fail(self, command: Command, sense: Sense) -> None:
        self.end(command, Result(CHECK_CONDITION, sense=sense))

    def end(self, command: Command, result: Result) -> None:
        """A command that does not come to run: answered when no more data for it comes."""
        if not command.collecting:
            command.begin_collecting()
        command.failure = result
        self._go_on(command)

    def _go_on(self, command: Command) -> None:
        """Something came: run or answer the command if it was the last, else ask for more."""
        if command.failure is not None:
            if not command.owed:
                command.collecting = False
                self._over(command, command.failure)
        elif command.unsolicited:
            pass
        elif command.got >= command.collect:
            command.collecting = False
            self._run(command, memoryview(command.data))  # nobody else has it
        elif command.charge:
            self._ask(command)
        elif self._room.free:
            self.let_in(command)
        else:
            self._room.wait(command)

    def let_in(self, command: Command) -> None:
        """There is room: all that is missing is accounted for at once, as commands that are half
        there and wait for each other's room would wait for ever."""
        self._room.take(command, command.collect - command.got)
        self._ask(command)

    def _ask(self, command: Command) -> None:
        sender = self._sender
        most = sender.parameters.max_outstanding_r2t
        while command.asked < command.collect and len(command.bursts) < most:
            # Answers come in the order of the R2Ts (13.19, DataSequenceInOrder).
            length = min(sender.max_burst, command.collect - command.asked)
            ttt = self.next_ttt
            self.next_ttt = (ttt + 1) % pdu.RESERVED_TAG
            command.bursts[ttt] = Burst(command.asked, command.asked + length)
            bhs = pdu.r2t(
                *(command.lun_field, command.itt, ttt, *sender.numbers),
                *(command.r2t_sn, command.asked, length),
            )
            command.r2t_sn += 1
            command.asked += length
            sender.put(bhs)
