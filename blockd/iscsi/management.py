"""Task management: aborting commands, and resetting units. RFC 7143 4.2.3.3, 11.5, 11.6; SAM-5 7.

The response is sent when what the function ends has nothing left in a device: a write that was
aborted does not change a block after the initiator was told so. (It may have changed it before.)
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from blockd.iscsi import pdu
from blockd.iscsi.command import Command
from blockd.iscsi.sending import after
from blockd.scsi import sense
from blockd.scsi.nexus import Nexus
from blockd.scsi.task import Countdown

if TYPE_CHECKING:
    from blockd.iscsi.node import Node, OpenSession
    from blockd.iscsi.session import Session
    from blockd.scsi.unit import LogicalUnit

_ON_A_UNIT: Final = (pdu.ABORT_TASK_SET, pdu.CLEAR_TASK_SET, pdu.LOGICAL_UNIT_RESET)
_RESETS: Final = (pdu.TARGET_WARM_RESET, pdu.TARGET_COLD_RESET)

Respond = Callable[[int], None]
"""Send the function's response, now or later."""


class Management:
    """The functions as one session asks for them."""

    def __init__(self, node: "Node", session: "Session", connection: "OpenSession") -> None:
        self._node = node
        self._session = session
        self._connection = connection

    def run(
        self,
        function: int,
        lun: int | None,
        referenced: int,
        numbers: tuple[int, int],
        respond: Respond,
    ) -> None:
        """Do `function`; `respond` is called once. `referenced`: the tag of the task that ABORT
        TASK is about, `numbers` the CmdSN that its command has, and the one of this request."""
        nexus = self._session.nexus
        unit = None if lun is None else nexus.units.get(lun)
        if function == pdu.ABORT_TASK:
            self._abort_task(lun, referenced, numbers, respond)
        elif function in _ON_A_UNIT:
            if unit is None:
                respond(pdu.NO_SUCH_LUN)
            elif function == pdu.ABORT_TASK_SET:
                self._abort_own(lambda command: command.unit is unit, respond)
            elif unit in nexus.read_only:
                respond(pdu.FUNCTION_REJECTED)  # it would end what others have under way
            elif function == pdu.CLEAR_TASK_SET:
                self._clear([unit], respond)
            else:
                self._reset([unit], sense.DEVICE_RESET, respond)
        elif function in _RESETS:
            if nexus.read_only:
                respond(pdu.FUNCTION_REJECTED)
            else:
                self._reset(list(nexus.units.values()), sense.SCSI_BUS_RESET, respond)
        elif function == pdu.TASK_REASSIGN:
            respond(pdu.REASSIGN_NOT_SUPPORTED)  # ErrorRecoveryLevel 2
        else:
            respond(pdu.FUNCTION_NOT_SUPPORTED)  # CLEAR ACA: there is no ACA here

    def _abort_task(
        self, lun: int | None, referenced: int, numbers: tuple[int, int], respond: Respond
    ) -> None:
        ref_cmd_sn, cmd_sn = numbers
        sender = self._session.sender
        command = self._session.commands.get(referenced)
        if command is not None and command.lun == lun:
            self._abort_own(lambda each: each is command, respond)
        elif (
            command is None
            and ref_cmd_sn == sender.exp_cmd_sn
            and sender.in_window(ref_cmd_sn)
            and after(cmd_sn, ref_cmd_sn)
        ):
            # 11.6.1: the command was sent before and did not come; its number is taken as used.
            sender.count(ref_cmd_sn)
            sender.retire()
            respond(pdu.FUNCTION_COMPLETE)
        else:
            respond(pdu.NO_SUCH_TASK)

    def _abort_own(self, concerns: Callable[[Command], bool], respond: Respond) -> None:
        countdown = Countdown(lambda: respond(pdu.FUNCTION_COMPLETE))
        countdown.count += self._session.abort_tasks(concerns, countdown.gone)
        countdown.gone()

    def _clear(self, units: "list[LogicalUnit]", respond: Respond) -> None:
        """Everybody's tasks; the others are told (SAM-5 5.14)."""
        hit = self._abort_all(units, respond)
        for unit, nexuses in hit:
            for nexus in nexuses:
                if nexus is not self._session.nexus:
                    unit.attention(sense.COMMANDS_CLEARED, to=nexus)

    def _reset(self, units: "list[LogicalUnit]", what: sense.Sense, respond: Respond) -> None:
        self._abort_all(units, respond)
        for unit in units:
            unit.reset(what)  # SAM-5 6.3.3: for every nexus, the one that asked as well

    def _abort_all(
        self, units: "list[LogicalUnit]", respond: Respond
    ) -> "list[tuple[LogicalUnit, list[Nexus]]]":
        countdown = Countdown(lambda: respond(pdu.FUNCTION_COMPLETE))
        hit: list[tuple[LogicalUnit, list[Nexus]]] = []
        for unit in units:
            waiting, nexuses = self._node.abort_unit(unit, None, countdown.gone)
            countdown.count += waiting
            hit.append((unit, nexuses))
        countdown.gone()
        return hit
