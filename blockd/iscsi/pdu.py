"""PDUs: the 48 bytes of each basic header segment (BHS), to and from numbers. RFC 7143 section 11.

What a target sends is a function that returns the BHS; the caller appends data, padding and
digests. What it receives is read with the structs here straight from the receive buffer, since most
of what comes are commands and data, and an object for each would be the largest part of their cost.

    byte 0       immediate bit and opcode        byte 1     flags, by opcode
    byte 4       AHS length in words             bytes 5-7  data segment length in bytes
    bytes 8-15   LUN (login: ISID and TSIH)      bytes 16-19  initiator task tag (ITT)
    bytes 20-47  by opcode

`lengths` is bytes 4-7 as one number: data segment length without padding, the AHS length above it.
"""

import struct
from dataclasses import dataclass
from typing import Final

HEADER_BYTES: Final = 48
DIGEST_BYTES: Final = 4
MAX_DATA_SEGMENT: Final = (1 << 24) - 1
RESERVED_TAG: Final = 0xFFFFFFFF
IMMEDIATE: Final = 0x40
OPCODE_MASK: Final = 0x3F

# Opcodes of initiators (11.2.1.2).
NOP_OUT: Final = 0x00
SCSI_COMMAND: Final = 0x01
TASK_MANAGEMENT: Final = 0x02
LOGIN: Final = 0x03
TEXT: Final = 0x04
DATA_OUT: Final = 0x05
LOGOUT: Final = 0x06
SNACK: Final = 0x10

# Opcodes of targets.
NOP_IN: Final = 0x20
SCSI_RESPONSE: Final = 0x21
TASK_MANAGEMENT_RESPONSE: Final = 0x22
LOGIN_RESPONSE: Final = 0x23
TEXT_RESPONSE: Final = 0x24
DATA_IN: Final = 0x25
LOGOUT_RESPONSE: Final = 0x26
R2T: Final = 0x31
ASYNC: Final = 0x32
REJECT: Final = 0x3F

# Flags (byte 1).
FINAL: Final = 0x80
CONTINUE: Final = 0x40  # Text, Login
TRANSIT: Final = 0x80  # Login
READ: Final = 0x40  # SCSI Command (11.3.1)
WRITE: Final = 0x20
ATTRIBUTE_MASK: Final = 0x07
OVERFLOW: Final = 0x04  # SCSI Response, Data-In (11.4.1, 11.7.1)
UNDERFLOW: Final = 0x02
STATUS: Final = 0x01  # Data-In

ATTRIBUTE_ACA: Final = 4  # of a SCSI Command; 0 to 3 are simple ones as far as we go

GOOD: Final = 0  # status of a command (SAM-5)

# Reject reasons (11.17.1).
REJECT_DATA_DIGEST: Final = 0x02
REJECT_SNACK: Final = 0x03
REJECT_PROTOCOL_ERROR: Final = 0x04
REJECT_NOT_SUPPORTED: Final = 0x05
REJECT_IMMEDIATE: Final = 0x06  # too many immediate commands
REJECT_INVALID_FIELD: Final = 0x09
REJECT_RESOURCES: Final = 0x0A

# Task management functions and responses (11.5.1, 11.6.1).
ABORT_TASK: Final = 1
ABORT_TASK_SET: Final = 2
CLEAR_ACA: Final = 3
CLEAR_TASK_SET: Final = 4
LOGICAL_UNIT_RESET: Final = 5
TARGET_WARM_RESET: Final = 6
TARGET_COLD_RESET: Final = 7
TASK_REASSIGN: Final = 8
FUNCTION_COMPLETE: Final = 0
NO_SUCH_TASK: Final = 1
NO_SUCH_LUN: Final = 2
REASSIGN_NOT_SUPPORTED: Final = 4
FUNCTION_NOT_SUPPORTED: Final = 5
FUNCTION_REJECTED: Final = 255

# Logout reasons and responses (11.14.1, 11.15.1).
CLOSE_SESSION: Final = 0
CLOSE_CONNECTION: Final = 1
REMOVE_FOR_RECOVERY: Final = 2
LOGOUT_OK: Final = 0
LOGOUT_NO_SUCH_CID: Final = 1
LOGOUT_NO_RECOVERY: Final = 2

# Async events (11.9.1).
ASYNC_LOGOUT_REQUEST: Final = 1
ASYNC_DROPS_CONNECTION: Final = 2
ASYNC_DROPS_ALL: Final = 3

SCSI_COMMAND_BHS: Final = struct.Struct(">BB2xI8sIIII16s")
"""opcode, flags, lengths, LUN, ITT, expected data transfer length, CmdSN, ExpStatSN, CDB."""
DATA_OUT_BHS: Final = struct.Struct(">BB2xI8sII4xI4xII4x")
"""opcode, flags, lengths, LUN, ITT, TTT, ExpStatSN, DataSN, buffer offset."""
COMMON_BHS: Final = struct.Struct(">BB2xI8sIIII16x")
"""opcode, flags, lengths, LUN, ITT, TTT (or referenced tag, or CID), CmdSN, ExpStatSN: NOP-Out,
Text, Logout, Task Management, and the SCSI Command, whose TTT is its transfer length."""
LOGIN_BHS: Final = struct.Struct(">BBBBI6sHIH2xII16x")
"""opcode, flags, VersionMax, VersionMin, lengths, ISID, TSIH, ITT, CID, CmdSN, ExpStatSN."""
REF_CMD_SN_AT: Final = 32  # in a Task Management request

_TAGGED = struct.Struct(">BBBBI8sIIIII")  # up to MaxCmdSN; what follows differs
_LOGIN_RESPONSE = struct.Struct(">BBBBI6sHI4xIIIBB10x")
_DATA_IN = struct.Struct(">BBBBI8sIIIIIIII")


@dataclass(frozen=True, slots=True)
class LoginRequest:
    """The header of a login request (11.12): it comes a few times in a session's life, not for each
    command, and is looked at from several sides."""

    flags: int
    version_min: int
    isid: bytes
    tsih: int
    itt: int
    cid: int
    cmd_sn: int
    exp_stat_sn: int

    @classmethod
    def parse(cls, bhs: bytes) -> "LoginRequest":
        """`bhs` are HEADER_BYTES of opcode LOGIN."""
        _, flags, _, low, _, isid, tsih, itt, cid, cmd_sn, exp_stat_sn = LOGIN_BHS.unpack(bhs)
        return cls(flags, low, isid, tsih, itt, cid, cmd_sn, exp_stat_sn)

    @property
    def transit(self) -> bool:
        return bool(self.flags & TRANSIT)

    @property
    def more(self) -> bool:
        return bool(self.flags & CONTINUE)

    @property
    def stage(self) -> int:
        """CSG."""
        return self.flags >> 2 & 3

    @property
    def next_stage(self) -> int:
        """NSG; means something with the T bit only."""
        return self.flags & 3


_NO_LUN: Final = bytes(8)


def padded(length: int) -> int:
    """A data segment's length with its padding (11.7: to whole words)."""
    return (length + 3) & ~3


def data_in(
    flags: int,
    status: int,
    length: int,
    itt: int,
    stat_sn: int,
    exp_cmd_sn: int,
    max_cmd_sn: int,
    data_sn: int,
    offset: int,
    residual: int,
) -> bytes:
    """11.7. `stat_sn` and `status` mean something with the STATUS flag only."""
    return _DATA_IN.pack(
        *(DATA_IN, flags, 0, status, length, bytes(8), itt, RESERVED_TAG),
        *(stat_sn, exp_cmd_sn, max_cmd_sn, data_sn, offset, residual),
    )


def last_data_in(length: int, itt: int, stat_sn: int, exp_cmd_sn: int, max_cmd_sn: int) -> bytes:
    """The only Data-In of a command that ended GOOD with just the data that was announced."""
    return _DATA_IN.pack(
        DATA_IN,
        FINAL | STATUS,
        0,
        0,
        length,
        _NO_LUN,
        itt,
        RESERVED_TAG,
        stat_sn,
        exp_cmd_sn,
        max_cmd_sn,
        0,
        0,
        0,
    )


def good_response(itt: int, stat_sn: int, exp_cmd_sn: int, max_cmd_sn: int) -> bytes:
    """The SCSI Response of a command that ended GOOD with just the data that was announced, and
    for which nothing was sent before."""
    return _DATA_IN.pack(
        SCSI_RESPONSE,
        FINAL,
        0,
        GOOD,
        0,
        _NO_LUN,
        itt,
        0,
        stat_sn,
        exp_cmd_sn,
        max_cmd_sn,
        0,
        0,
        0,
    )


def scsi_response(
    flags: int,
    response: int,
    status: int,
    length: int,
    itt: int,
    stat_sn: int,
    exp_cmd_sn: int,
    max_cmd_sn: int,
    exp_data_sn: int,
    residual: int,
) -> bytes:
    """11.4. `flags` are OVERFLOW and UNDERFLOW; `response` 0: completed at the target."""
    return _DATA_IN.pack(
        *(SCSI_RESPONSE, FINAL | flags, response, status, length, bytes(8), itt, 0),
        *(stat_sn, exp_cmd_sn, max_cmd_sn, exp_data_sn, 0, residual),
    )


def r2t(
    lun: bytes,
    itt: int,
    ttt: int,
    stat_sn: int,
    exp_cmd_sn: int,
    max_cmd_sn: int,
    r2t_sn: int,
    offset: int,
    length: int,
) -> bytes:
    """11.8: asks for `length` bytes from `offset` of the command's data on. `stat_sn` is the next
    one, and is not used up."""
    return _DATA_IN.pack(
        *(R2T, FINAL, 0, 0, 0, lun, itt, ttt),
        *(stat_sn, exp_cmd_sn, max_cmd_sn, r2t_sn, offset, length),
    )


def _tagged(
    opcode: int,
    flags: int,
    byte2: int,
    length: int,
    lun: bytes,
    itt: int,
    ttt: int,
    numbers: tuple[int, int, int],
    rest: bytes = bytes(12),
) -> bytes:
    return _TAGGED.pack(opcode, flags, byte2, 0, length, lun, itt, ttt, *numbers) + rest


Numbers = tuple[int, int, int]
"""StatSN, ExpCmdSN, MaxCmdSN."""


def task_management_response(response: int, itt: int, numbers: Numbers) -> bytes:
    """11.6."""
    return _tagged(TASK_MANAGEMENT_RESPONSE, FINAL, response, 0, bytes(8), itt, 0, numbers)


def nop_in(length: int, lun: bytes, itt: int, ttt: int, numbers: Numbers) -> bytes:
    """11.19. An answer has the initiator's tag and no TTT, a ping of ours the other way round."""
    return _tagged(NOP_IN, FINAL, 0, length, lun, itt, ttt, numbers)


def text_response(
    flags: int, length: int, lun: bytes, itt: int, ttt: int, numbers: Numbers
) -> bytes:
    """11.11. `flags` are FINAL or CONTINUE; `ttt` is reserved in the last one."""
    return _tagged(TEXT_RESPONSE, flags, 0, length, lun, itt, ttt, numbers)


def logout_response(
    response: int, itt: int, numbers: Numbers, *, time2wait: int, time2retain: int
) -> bytes:
    """11.15. Times are seconds."""
    rest = struct.pack(">4xHH4x", time2wait, time2retain)
    return _tagged(LOGOUT_RESPONSE, FINAL, response, 0, bytes(8), itt, 0, numbers, rest)


def reject(reason: int, numbers: Numbers) -> bytes:
    """11.17. The header that is rejected follows as its data."""
    return _tagged(REJECT, FINAL, reason, HEADER_BYTES, bytes(8), RESERVED_TAG, 0, numbers)


def async_message(
    event: int, numbers: Numbers, *, parameters: tuple[int, int, int] = (0, 0, 0)
) -> bytes:
    """11.9: an event of iSCSI, without sense data."""
    rest = struct.pack(">BBHHH4x", event, 0, *parameters)
    return _tagged(ASYNC, FINAL, 0, 0, bytes(8), RESERVED_TAG, 0, numbers, rest)


def login_response(
    flags: int,
    isid: bytes,
    tsih: int,
    itt: int,
    numbers: Numbers,
    status: tuple[int, int],
    length: int,
) -> bytes:
    """11.13. Version 0 is what is spoken; `status` is class and detail."""
    return _LOGIN_RESPONSE.pack(
        *(LOGIN_RESPONSE, flags, 0, 0, length, isid, tsih, itt, *numbers, *status)
    )
