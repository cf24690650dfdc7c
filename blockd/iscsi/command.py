"""One SCSI command of a session, from its PDU to its response; and its data-out.

Data-out comes in up to three ways (RFC 7143 4.2.5, 11.7, 13.10, 13.14): behind the command itself
(immediate), in Data-Out PDUs that nobody asked for (unsolicited, up to FirstBurstLength), and as
answers to R2Ts, each of which asks for at most MaxBurstLength. All of it goes into one buffer in
ascending order; a piece that is not the next one ends the command. The command begins to run when
the last byte that it needs is there: it is never applied in part.
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


class DataFault(Exception):
    """Data-out that is not what was agreed on: the command ends with this sense."""

    def __init__(self, sense: Sense) -> None:
        super().__init__()
        self.sense = sense


@dataclass(slots=True)
class Burst:
    """What one R2T asked for, and how far its answer is."""

    at: int
    end: int
    data_sn: int = 0


class Command:
    """See the module's text. Everything is set by the session."""

    __slots__ = (
        "aborted",
        "asked",
        "bursts",
        "cdb",
        "charge",
        "collect",
        "collecting",
        "counted",
        "data",
        "data_sn",
        "edtl",
        "flags",
        "gone",
        "got",
        "in_flight",
        "itt",
        "lun",
        "lun_field",
        "prepared",
        "r2t_sn",
        "task",
        "unit",
        "unsolicited",
        "unsolicited_sn",
    )

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
        self.unit: LogicalUnit | None = None
        self.prepared: Result | Single | Prepared | None = None
        self.task: Task | None = None
        self.data = bytearray()  # as far as it has come
        self.collecting = False  # data-out is to come yet
        self.collect = 0  # bytes of data-out that the command needs
        self.got = 0  # bytes that came, in order
        self.asked = 0  # bytes that came or that an R2T asked for
        self.bursts: dict[int, Burst] = {}  # by target transfer tag
        self.unsolicited = False  # Data-Out PDUs come that nobody asked for
        self.unsolicited_sn = 0
        self.r2t_sn = 0
        self.data_sn = 0  # Data-In PDUs sent
        self.charge = 0  # bytes that count against the session's bound
        self.in_flight = 0  # requests that a device has, and calls that a thread has
        self.aborted = False
        self.gone: list[Callable[[], None]] = []  # called when an aborted command has nothing left

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
    def complete(self) -> bool:
        """Whether all the data has come that will come."""
        return self.got >= self.collect and not self.unsolicited

    def place(self, data: memoryview) -> None:
        """The next piece. What is beyond the command's need is let go of."""
        room = self.collect - self.got
        if room > 0:
            self.data += data[:room]
        self.got += len(data)

    def take_unsolicited(
        self, offset: int, data_sn: int, data: memoryview, first_burst: int, *, final: bool
    ) -> None:
        """A Data-Out without a target transfer tag. DataFault."""
        if not self.unsolicited:
            raise DataFault(UNEXPECTED_DATA)
        if offset != self.got or data_sn != self.unsolicited_sn:
            raise DataFault(INCORRECT_DATA)
        if self.got + len(data) > min(first_burst, self.offered):
            raise DataFault(UNEXPECTED_DATA)
        self.place(data)
        self.asked = self.got
        self.unsolicited_sn += 1
        self.unsolicited = not final

    def take_solicited(
        self, ttt: int, offset: int, data_sn: int, data: memoryview, *, final: bool
    ) -> None:
        """A Data-Out that an R2T asked for. DataFault."""
        burst = self.bursts.get(ttt)
        if burst is None:
            raise DataFault(UNEXPECTED_DATA)
        end = offset + len(data)
        in_order = offset == burst.at == self.got and data_sn == burst.data_sn
        if not in_order or end > burst.end or final != (end == burst.end):
            raise DataFault(INCORRECT_DATA)
        self.place(data)
        burst.at = end
        burst.data_sn += 1
        if final:
            del self.bursts[ttt]
