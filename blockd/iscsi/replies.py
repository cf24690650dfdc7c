"""How a SCSI command is answered: Data-In, SCSI Response, residuals. RFC 7143 11.4, 11.7.

The status of a command that ended GOOD and has data travels in its last Data-In; everything else
gets a SCSI Response. A sequence of Data-Ins is no longer than MaxBurstLength and its last PDU has
the F bit. No byte is sent beyond what the initiator has room for: the residual tells of these.
"""

from blockd.iscsi import pdu
from blockd.iscsi.command import Command
from blockd.iscsi.sending import Sender
from blockd.scsi.task import GOOD, Result


def answer(sender: Sender, command: Command, result: Result) -> None:
    """Say how a command ended."""
    if result.status == GOOD and result.data:
        _data_in(sender, command, result)
        return
    data = b""
    if result.sense is not None:
        descriptor = command.unit is not None and command.unit.modes.descriptor_sense
        sense = result.sense.encode(descriptor=descriptor)
        data = len(sense).to_bytes(2, "big") + sense
    _response(sender, command, result.status, data)


def _response(
    sender: Sender, command: Command, status: int, data: bytes = b"", in_length: int = 0
) -> None:
    flags, residual = _residual(command, in_length, status)
    bhs = pdu.scsi_response(
        *(flags, 0, status, len(data), command.itt, *sender.next_numbers()),
        *(command.r2t_sn, residual),
    )
    sender.put(bhs, data)


def _residual(command: Command, in_length: int, status: int) -> tuple[int, int]:
    """Flag and count of what was more or less than announced (11.4.5). `in_length`: of the data-in
    that there is; data-out is what the command wants."""
    expected = command.edtl
    moved = in_length
    if command.flags & pdu.WRITE:
        moved = command.wanted if status == GOOD or command.got >= command.collect else 0
    if moved > expected:
        return pdu.OVERFLOW, moved - expected
    if moved < expected:
        return pdu.UNDERFLOW, expected - moved
    return 0, 0


def _data_in(sender: Sender, command: Command, result: Result) -> None:
    data = result.data[0] if len(result.data) == 1 else b"".join(result.data)
    pieces = memoryview(data).cast("B")
    whole = len(pieces)
    length = min(whole, command.edtl) if command.flags & pdu.READ else 0
    if not length:
        _response(sender, command, GOOD, in_length=whole)
        return
    flags, residual = _residual(command, whole, GOOD)
    itt, offset, data_sn = command.itt, 0, 0
    while offset < length:
        burst_end = min(length, (offset // sender.max_burst + 1) * sender.max_burst)
        end = min(offset + sender.max_recv, burst_end)
        if end == length:
            stat_sn, exp_cmd_sn, max_cmd_sn = sender.next_numbers()
            bhs = pdu.data_in(
                *(pdu.FINAL | pdu.STATUS | flags, GOOD, end - offset, itt),
                *(stat_sn, exp_cmd_sn, max_cmd_sn, data_sn, offset, residual),
            )
        else:
            _, exp_cmd_sn, max_cmd_sn = sender.numbers
            bhs = pdu.data_in(
                *(pdu.FINAL if end == burst_end else 0, 0, end - offset, itt),
                *(0, exp_cmd_sn, max_cmd_sn, data_sn, offset, 0),
            )
        sender.put(bhs, pieces[offset:end])
        data_sn += 1
        offset = end
