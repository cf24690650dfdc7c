"""What a session sends: PDUs with their padding and digests, and the numbers that these carry.

StatSN counts responses; ExpCmdSN and MaxCmdSN tell the initiator which commands may come (RFC 7143
4.2.2). A command uses its CmdSN up when it comes and gives room for another one when it is answered
or aborted, so MaxCmdSN never goes back. All are serial numbers of 32 bits (RFC 1982).
"""

from typing import Final

from typing_extensions import Buffer

from blockd.iscsi import pdu
from blockd.iscsi.limits import COMMAND_WINDOW
from blockd.iscsi.login import LoggedIn
from blockd.iscsi.stats import Stats
from blockd.iscsi.text import Parameters
from native import crc32c

MASK: Final = 0xFFFFFFFF
_HALF: Final = 1 << 31


class ProtocolError(Exception):
    """The initiator broke the protocol so that the connection is to be closed."""


def after(first: int, second: int) -> bool:
    """Whether serial number `first` comes after `second`."""
    return 0 < (first - second & MASK) < _HALF


class Sender:
    """See the module's text. PDUs are appended to `out`."""

    def __init__(self, logged_in: LoggedIn, stats: Stats, out: list[Buffer]) -> None:
        self.exp_cmd_sn = logged_in.cmd_sn
        self.max_cmd_sn = logged_in.cmd_sn + COMMAND_WINDOW - 1 & MASK
        self.stat_sn = logged_in.stat_sn
        self._stats = stats
        self._out = out
        self.agreed(logged_in.parameters)

    def agreed(self, parameters: Parameters) -> None:
        """What holds from now on."""
        self.parameters = parameters
        self.max_recv = parameters.max_recv_data_segment_length
        self.max_burst = parameters.max_burst_length
        self.one_pdu = min(self.max_recv, self.max_burst)
        """Bytes of data-in that go into one PDU."""
        self._header_digest = parameters.header_digest
        self._data_digest = parameters.data_digest
        self._plain = not (parameters.header_digest or parameters.data_digest)

    # -- numbers

    @property
    def numbers(self) -> pdu.Numbers:
        """StatSN, ExpCmdSN, MaxCmdSN of a PDU that uses no StatSN up."""
        return self.stat_sn, self.exp_cmd_sn, self.max_cmd_sn

    def next_numbers(self) -> pdu.Numbers:
        """The same for a response, which uses one up."""
        stat_sn = self.stat_sn
        self.stat_sn = stat_sn + 1 & MASK
        return stat_sn, self.exp_cmd_sn, self.max_cmd_sn

    def in_window(self, cmd_sn: int) -> bool:
        """Whether a command of that number may come (4.2.2.1)."""
        return not after(self.exp_cmd_sn, cmd_sn) and not after(cmd_sn, self.max_cmd_sn)

    def count(self, cmd_sn: int) -> bool:
        """A command that is not immediate came: use its number up; False when it is outside of the
        window, and to be ignored in silence. ProtocolError for a gap: one connection has none."""
        if cmd_sn != self.exp_cmd_sn or self.exp_cmd_sn == self.max_cmd_sn + 1 & MASK:
            if self.in_window(cmd_sn):
                raise ProtocolError(f"CmdSN {cmd_sn} came before {self.exp_cmd_sn}")
            self._stats.ignored += 1
            return False
        self.exp_cmd_sn = cmd_sn + 1 & MASK
        return True

    def retire(self) -> None:
        """A command that was counted is done with: another may come."""
        self.max_cmd_sn = self.max_cmd_sn + 1 & MASK

    # -- PDUs

    def good(self, itt: int) -> None:
        """The response of a command that ended GOOD, with just the data-out that was announced."""
        stat_sn = self.stat_sn
        self.stat_sn = stat_sn + 1 & MASK
        self.put(pdu.good_response(itt, stat_sn, self.exp_cmd_sn, self.max_cmd_sn))

    def whole(self, itt: int, data: bytes) -> None:
        """Data-in of a command that ended GOOD: just what was announced, and of `one_pdu` bytes at
        most."""
        stat_sn = self.stat_sn
        self.stat_sn = stat_sn + 1 & MASK
        length = len(data)
        bhs = pdu.last_data_in(length, itt, stat_sn, self.exp_cmd_sn, self.max_cmd_sn)
        if self._plain and not length & 3:
            out = self._out
            out.append(bhs)
            out.append(data)
        else:
            self.put(bhs, data)

    def reject(self, reason: int, view: memoryview, at: int) -> None:
        """11.17: the PDU at `at` is not what it should be."""
        self._stats.rejects += 1
        header = bytes(view[at : at + pdu.HEADER_BYTES])
        self.put(pdu.reject(reason, self.next_numbers()), header)

    def put(self, bhs: bytes, data: Buffer = b"") -> None:
        """Send a PDU: its header, its data (bytes), padding and what digests were agreed on."""
        out = self._out
        length = len(data)  # type: ignore[arg-type]  # bytes or a memoryview of bytes
        if self._plain:
            out.append(bhs)
            if length:
                out.append(data)
                if length & 3:
                    out.append(bytes(-length & 3))
            return
        if self._header_digest:
            bhs += crc32c(bhs).to_bytes(4, "little")
        out.append(bhs)
        if length:
            out.append(data)
            padding = bytes(-length & 3)
            if self._data_digest:
                padding += crc32c(padding, crc32c(data)).to_bytes(4, "little")
            if padding:
                out.append(padding)
