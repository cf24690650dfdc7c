"""What a session is asked beside SCSI commands: NOP-Out, Text, Task Management, Logout. RFC 7143.

None of these waits for a device but task management and logout, whose responses come when nothing
of the commands that they end is in a device any more. Pings are answered from what was received and
are bounded by it: nothing is read while replies are not taken.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from blockd.iscsi import pdu, text
from blockd.iscsi.login import LoggedIn
from blockd.iscsi.management import Management
from blockd.iscsi.session import Session
from blockd.iscsi.targets import Portal, Target, Targets
from blockd.iscsi.text import Negotiation, TextError
from blockd.scsi.target import decode_lun
from blockd.scsi.task import Countdown

if TYPE_CHECKING:
    from blockd.iscsi.node import Node

DISCOVERY_TAKES: Final = (pdu.TEXT, pdu.LOGOUT, pdu.NOP_OUT)  # 4.3.3: and nothing else


@dataclass(frozen=True, slots=True)
class _Asked:
    """A PDU of one of these kinds. `view` is the receive buffer, `at` where it begins in it."""

    view: memoryview
    at: int
    flags: int
    lun_field: bytes
    itt: int
    tag: int
    """Bytes 20 to 23: TTT, referenced task tag, or CID."""
    cmd_sn: int
    data: memoryview


class Requests:
    """See the module's text."""

    def __init__(
        self,
        session: Session,
        management: Management,
        logged_in: LoggedIn,
        targets: Targets,
        portal: Portal,
        node: "Node",
        wake: Callable[[], None],
        leaving: Callable[[], None],
        left: Callable[[], None],
    ) -> None:
        """`wake` is called when something is to be sent that did not come of `take`. `leaving`: the
        initiator logs out, nothing of what it sends from now on counts; `left`: and was answered,
        then or later."""
        self._wake = wake
        self._leaving = leaving
        self._left = left
        self._session = session
        self._sender = session.sender
        self._management = management
        self._logged_in = logged_in
        self._targets = targets
        self._portal = portal
        self._node = node
        self._pinged: int | None = None  # TTT of a ping that was not answered
        self._next_ttt = 0
        self._text = bytearray()  # of requests with the C bit
        self._answer: tuple[int, memoryview] | None = None  # TTT, and what is left to be sent

    def take(self, opcode: int, view: memoryview, at: int, data: memoryview) -> None:
        """A PDU that is neither a SCSI command nor data, or of a discovery session."""
        first, flags, _, lun_field, itt, ttt, cmd_sn, _ = pdu.COMMON_BHS.unpack_from(view, at)
        handler = _HANDLERS.get(opcode)
        if handler is None or (self._logged_in.discovery and opcode not in DISCOVERY_TAKES):
            if opcode != pdu.SNACK and not first & pdu.IMMEDIATE and self._sender.count(cmd_sn):
                self._sender.retire()
            # SNACK: ErrorRecoveryLevel 0 has none (11.16).
            reason = pdu.REJECT_SNACK if opcode == pdu.SNACK else pdu.REJECT_NOT_SUPPORTED
            self._sender.reject(reason, view, at)
            return
        if not first & pdu.IMMEDIATE:
            if not self._sender.count(cmd_sn):
                return
            self._sender.retire()
        handler(self, _Asked(view, at, flags, lun_field, itt, ttt, cmd_sn, data))

    def damaged(self, view: memoryview, at: int) -> None:
        """A PDU of this kind whose data is not what was sent (7.8)."""
        first, _, _, _, _, _, cmd_sn, _ = pdu.COMMON_BHS.unpack_from(view, at)
        if not first & pdu.IMMEDIATE:
            if not self._sender.count(cmd_sn):
                return
            self._sender.retire()
        self._sender.reject(pdu.REJECT_DATA_DIGEST, view, at)

    @property
    def quiet(self) -> bool:
        """The initiator owes nothing: neither the answer to a ping nor the rest of a text."""
        return self._pinged is None and not self._text and self._answer is None

    # -- NOP

    def ping(self) -> None:
        """Ask the initiator for a sign of life, unless it owes one already."""
        if self._pinged is None:
            self._pinged = self._ttt()
            numbers = self._sender.numbers
            self._sender.put(pdu.nop_in(0, bytes(8), pdu.RESERVED_TAG, self._pinged, numbers))

    def _nop_out(self, asked: _Asked) -> None:
        if asked.itt == pdu.RESERVED_TAG:  # the answer to a ping of ours, or nothing that wants one
            if asked.tag == self._pinged:
                self._pinged = None
            return
        if asked.tag != pdu.RESERVED_TAG:
            self._sender.reject(pdu.REJECT_INVALID_FIELD, asked.view, asked.at)
            return
        echo = bytes(asked.data[: self._session.parameters.max_recv_data_segment_length])
        numbers = self._sender.next_numbers()
        self._sender.put(
            pdu.nop_in(len(echo), asked.lun_field, asked.itt, pdu.RESERVED_TAG, numbers), echo
        )

    # -- Text

    def _text_request(self, asked: _Asked) -> None:
        """11.10: one exchange at a time; the C bit continues a request, a TTT a response."""
        final, more = asked.flags & pdu.FINAL, asked.flags & pdu.CONTINUE
        if (final and more) or len(self._text) + len(asked.data) > text.MAX_TEXT:
            self._forget_text()
            self._sender.reject(pdu.REJECT_PROTOCOL_ERROR, asked.view, asked.at)
            return
        if (
            asked.tag != pdu.RESERVED_TAG
            and self._answer is not None
            and asked.tag == self._answer[0]
        ):
            if not len(asked.data):
                self._send_text(asked.itt, asked.lun_field, self._answer[1])
                return
        elif asked.tag == pdu.RESERVED_TAG:
            self._forget_text()  # a new exchange ends one that was left (11.10.4)
        elif not self._text:
            self._sender.reject(pdu.REJECT_INVALID_FIELD, asked.view, asked.at)
            return
        self._text += asked.data
        if more:
            numbers = self._sender.next_numbers()
            self._sender.put(
                pdu.text_response(0, 0, asked.lun_field, asked.itt, self._ttt(), numbers)
            )
            return
        try:
            pairs = text.parse(bytes(self._text))
            answers = self._answers(pairs)
        except TextError:
            self._forget_text()
            self._sender.reject(pdu.REJECT_PROTOCOL_ERROR, asked.view, asked.at)
            return
        self._text.clear()
        self._send_text(asked.itt, asked.lun_field, memoryview(text.encode(answers)))

    def _forget_text(self) -> None:
        self._text.clear()
        self._answer = None

    def _send_text(self, itt: int, lun_field: bytes, left: memoryview) -> None:
        """As much as fits into one PDU; the rest when the initiator asks for it."""
        piece = left[: self._session.parameters.max_recv_data_segment_length]
        rest = left[len(piece) :]
        if len(rest):
            ttt, flags = self._ttt(), pdu.CONTINUE
            self._answer = (ttt, rest)
        else:
            ttt, flags = pdu.RESERVED_TAG, pdu.FINAL
            self._answer = None
        numbers = self._sender.next_numbers()
        self._sender.put(
            pdu.text_response(flags, len(piece), lun_field, itt, ttt, numbers), bytes(piece)
        )

    def _answers(self, pairs: dict[str, str]) -> list[tuple[str, str]]:
        answers: list[tuple[str, str]] = []
        negotiation = Negotiation(self._logged_in.discovery, self._session.parameters)
        for key, value in pairs.items():
            if key == "SendTargets":
                answers += self._send_targets(value)
                continue
            answer = negotiation.renewed(key, value)
            if answer is not None:
                answers.append(answer)
        if negotiation.parameters != self._session.parameters:
            self._session.renegotiated(negotiation.parameters)
        return answers

    def _send_targets(self, wanted: str) -> list[tuple[str, str]]:
        """Appendix C. All is for discovery; a normal session may ask for its own target."""
        own = self._logged_in.target
        found: list[Target]
        if self._logged_in.discovery:
            if wanted == "All":
                found = list(self._targets.all())
            else:
                target = self._targets.get(wanted)
                found = [] if target is None else [target]
            found = [each for each in found if self._may_see(each)]
        elif wanted == "" or (own is not None and wanted == own.name):
            found = [] if own is None else [own]
        else:
            return [("SendTargets", text.REJECT)]
        shown = ((each.name, self._targets.portals(self._portal, each)) for each in found)
        return text.send_targets(shown)

    def _may_see(self, target: Target) -> bool:
        """Discovery shows what could be logged in to, as who the initiator proved to be."""
        logged_in, volume = self._logged_in, target.volume
        if volume is not None and not self._node.access.grant(volume, logged_in.client):
            return False
        return target.access.admits(logged_in.initiator, logged_in.address)

    # -- task management, logout

    def _task_management(self, asked: _Asked) -> None:
        function = asked.flags & 0x7F
        ref_at = asked.at + pdu.REF_CMD_SN_AT
        ref_cmd_sn = int.from_bytes(asked.view[ref_at : ref_at + 4], "big")

        def respond(response: int) -> None:
            numbers = self._sender.next_numbers()
            self._sender.put(pdu.task_management_response(response, asked.itt, numbers))
            own = self._logged_in.target
            self._wake()
            if function == pdu.TARGET_COLD_RESET and response == 0 and own is not None:
                self._node.end_sessions(own, "the target was reset")

        lun = decode_lun(asked.lun_field)
        self._management.run(function, lun, asked.tag, (ref_cmd_sn, asked.cmd_sn), respond)

    def _logout(self, asked: _Asked) -> None:
        """11.14. The CID is in the upper half of the tag."""
        reason, cid = asked.flags & 0x7F, asked.tag >> 16
        response = pdu.LOGOUT_OK
        if reason == pdu.REMOVE_FOR_RECOVERY:
            response = pdu.LOGOUT_NO_RECOVERY
        elif reason == pdu.CLOSE_CONNECTION and cid != self._logged_in.cid:
            response = pdu.LOGOUT_NO_SUCH_CID
        elif reason > pdu.REMOVE_FOR_RECOVERY:
            self._sender.reject(pdu.REJECT_INVALID_FIELD, asked.view, asked.at)
            return
        if response != pdu.LOGOUT_OK:
            self._logout_response(response, asked.itt)
            return

        def over() -> None:
            self._logout_response(response, asked.itt)
            self._left()

        self._leaving()
        countdown = Countdown(over)
        countdown.count += self._session.abort_tasks(lambda _: True, countdown.gone)
        countdown.gone()

    def _logout_response(self, response: int, itt: int) -> None:
        parameters = self._session.parameters
        bhs = pdu.logout_response(
            *(response, itt, self._sender.next_numbers()),
            time2wait=parameters.default_time2wait,
            time2retain=parameters.default_time2retain,
        )
        self._sender.put(bhs)

    def _ttt(self) -> int:
        self._next_ttt = (self._next_ttt + 1) % pdu.RESERVED_TAG
        return self._next_ttt


_HANDLERS = {
    pdu.NOP_OUT: Requests._nop_out,
    pdu.TEXT: Requests._text_request,
    pdu.TASK_MANAGEMENT: Requests._task_management,
    pdu.LOGOUT: Requests._logout,
}
