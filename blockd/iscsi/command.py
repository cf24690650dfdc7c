"""One SCSI command of a session, from its PDU to its response; and its data-out.

Data-out comes in up to three ways (RFC 7143 4.2.5, 11.7, 13.10, 13.14): behind the command itself
(immediate), in Data-Out PDUs that nobody asked for (unsolicited, up to FirstBurstLength), and as
answers to R2Ts, each of which asks for at most MaxBurstLength. All of it goes into one buffer in
ascending order; a piece that is not the next one ends the command. The command begins to run when
the last byte that it needs is there: it is never applied in part.

A command that has failed is not answered as long as data for it is still to come (7.8, 11.17.1):
what comes is thrown away up to the last PDU of each sequence.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from blockd.iscsi import pdu
from blockd.scsi.sense import ABORTED_COMMAND, Sense
from blockd.scsi.task import Prepared, Result, Single, Task

if TYPE_CHECKING:
    from blockd.scsi.unit import LogicalUnit

# Sense of what iSCSI itself finds wrong (RFC 7143 11.4.7.2).
UNEXPECTED_DATA: Final = Sense(ABORTED_COMMAND, 0x0C, 0x0C)
INCORRECT_DATA: Final = Sense(ABORTED_COMMAND, 0x0C, 0x0D)
CRC_ERROR: Final = Sense(ABORTED_COMMAND, 0x47, 0x05)


@dataclass(slots=True)
class Burst:
    """What one R2T asked for, and how far its answer is."""

    at: int
    end: int
    data_sn: int = 0


class Command:
    """See the module's text. Everything is set by the session."""

    # What most commands never have: a READ or WRITE sets seven of all these.
    unit: "LogicalUnit | None" = None
    prepared: Result | Single | Prepared | None = None
    task: Task | None = None
    data: bytearray
    """As far as it has come; there is one while it is collected."""
    collecting = False
    """Data-out is to come yet."""
    collect = 0
    """Bytes of data-out that the command needs."""
    got = 0
    """Bytes that came, in order."""
    asked = 0
    """Bytes that came or that an R2T asked for."""
    bursts: dict[int, Burst]
    """By target transfer tag, in the order of the R2Ts; while data is collected."""
    unsolicited = False
    """Data-Out PDUs come that nobody asked for."""
    unsolicited_sn = 0
    failure: Result | None = None
    """How it will be answered when no more data comes."""
    r2t_sn = 0
    charge = 0
    """Bytes that count against the session's bound; see `blockd.iscsi.room`."""
    in_flight = 0
    """Requests that a device has, and calls that a thread has."""
    reached_device = False
    """Requests of it were submitted: it counts as these do."""
    aborted = False
    gone: list[Callable[[], None]]
    """Called when an aborted command has nothing left; only it has any."""

    def __init__(
        self,
        itt: int,
        lun_field: bytes,
        lun: int | None,
        flags: int,
        edtl: int,
        cdb: bytes,
        *,
        counted: bool,
    ) -> None:
        """`counted`: it used up a CmdSN. `edtl`: expected data transfer length, bytes."""
        self.itt = itt
        self.lun_field = lun_field
        self.lun = lun
        self.flags = flags
        self.edtl = edtl
        self.cdb = cdb
        self.counted = counted

    def begin_collecting(self) -> None:
        """Data is to come, beside what came with the command."""
        self.collecting = True
        self.data = bytearray()
        self.bursts = {}

    @property
    def wanted(self) -> int:
        """Bytes of data-out that the CDB asks for."""
        prepared = self.prepared
        return prepared.data_out_length if isinstance(prepared, Single | Prepared) else 0

    @property
    def offered(self) -> int:
        """Bytes of data-out that the initiator announced."""
        return self.edtl if self.flags & pdu.WRITE else 0

    @property
    def owed(self) -> bool:
        """Whether data is still to come, wanted or not; while it is collected."""
        return self.unsolicited or bool(self.bursts)

    def place(self, data: memoryview) -> None:
        """The next piece. What is beyond the command's need is let go of."""
        room = self.collect - self.got
        if room > 0:
            self.data += data[:room]
        self.got += len(data)

    def take(
        self,
        ttt: int,
        offset: int,
        data_sn: int,
        data: memoryview | None,
        *,
        end: int,
        final: bool,
        first_burst: int,
    ) -> Sense | None:
        """A Data-Out PDU whose data ends at `end`; None instead of its data when that is damaged.
        What is wrong with it, if it is the first thing that is."""
        if self.failure is not None:
            wrong = None
        elif ttt == pdu.RESERVED_TAG:
            wrong = self._wrong_unsolicited(offset, data_sn, end, first_burst)
        else:
            wrong = self._wrong_solicited(self.bursts.get(ttt), offset, data_sn, end, final=final)
        if data is None and self.failure is None:
            wrong = CRC_ERROR
        if wrong is not None or self.failure is not None:
            self._throw_away(ttt, end, final=final, first_burst=first_burst)
            return wrong
        assert data is not None
        self.place(data)
        if ttt == pdu.RESERVED_TAG:
            self.asked = self.got
            self.unsolicited_sn += 1
            self.unsolicited = not final
            return None
        burst = self.bursts[ttt]
        burst.at = end
        burst.data_sn += 1
        if final:
            del self.bursts[ttt]
        return None

    def _wrong_unsolicited(
        self, offset: int, data_sn: int, end: int, first_burst: int
    ) -> Sense | None:
        if not self.unsolicited:
            return UNEXPECTED_DATA
        if offset != self.got or data_sn != self.unsolicited_sn:
            return INCORRECT_DATA
        return UNEXPECTED_DATA if end > min(first_burst, self.offered) else None

    def _wrong_solicited(
        self, burst: Burst | None, offset: int, data_sn: int, end: int, *, final: bool
    ) -> Sense | None:
        if burst is None:
            return UNEXPECTED_DATA
        in_order = offset == burst.at == self.got and data_sn == burst.data_sn
        if not in_order or end > burst.end or final != (end == burst.end):
            return INCORRECT_DATA
        return None

    def _throw_away(self, ttt: int, end: int, *, final: bool, first_burst: int) -> None:
        """A PDU of a command that has failed: see whether its sequence ends with it. One that has
        come to where it should end is over as well, F bit or not: nothing can follow."""
        if ttt == pdu.RESERVED_TAG:
            if final or end >= min(first_burst, self.offered):
                self.unsolicited = False
            return
        if ttt not in self.bursts and self.bursts:
            ttt = next(iter(self.bursts))  # a tag that nobody gave: meant was the oldest
        burst = self.bursts.get(ttt)
        if burst is not None and (final or end >= burst.end):
            del self.bursts[ttt]


def extended_cdb(cdb: bytes, ahs: memoryview) -> bytes | None:
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
