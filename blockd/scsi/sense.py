"""Sense data: why a command failed, as facts; encoded once, in the format that is asked for.

SPC-4 4.5: fixed format (70h, 18 bytes) or descriptor format (72h), by the D_SENSE bit of the
Control mode page or the DESC bit of REQUEST SENSE. An LBA that does not fit into 32 bits leaves the
VALID bit of the fixed format clear: the descriptor format has all of it.
"""

import struct
from dataclasses import dataclass
from typing import Final

# Sense keys (SPC-4 table 48).
NO_SENSE: Final = 0x0
RECOVERED_ERROR: Final = 0x1
NOT_READY: Final = 0x2
MEDIUM_ERROR: Final = 0x3
HARDWARE_ERROR: Final = 0x4
ILLEGAL_REQUEST: Final = 0x5
UNIT_ATTENTION: Final = 0x6
DATA_PROTECT: Final = 0x7
COPY_ABORTED: Final = 0xA
ABORTED_COMMAND: Final = 0xB
MISCOMPARE: Final = 0xE

_FIXED = struct.Struct(">BBBIBIBBB3s")
_INFORMATION_DESCRIPTOR = struct.Struct(">BBBBQ")
_COMMAND_DESCRIPTOR = struct.Struct(">BBHQ")
_KEY_SPECIFIC_DESCRIPTOR = struct.Struct(">BBBB3sB")


@dataclass(frozen=True, slots=True)
class Sense:
    """One condition. `asc` and `ascq` are those of SPC-4 annex F."""

    key: int
    asc: int
    ascq: int
    information: int | None = None
    """LBA, or the offset of the first byte that differs: as the command's description says."""
    field: int | None = None
    """Byte of the CDB (or of the parameter list) that is wrong; only with ILLEGAL REQUEST."""
    bit: int | None = None
    """Its most significant wrong bit, 7 to 0."""
    in_cdb: bool = True
    """Whether `field` is of the CDB; else it is of the parameter list."""
    progress: int | None = None
    """How far a long operation is, of 65536; only with NO SENSE or NOT READY."""
    command_specific: int | None = None
    """COMMAND-SPECIFIC INFORMATION: the number of the segment that a copy ended in."""

    def encode(self, *, descriptor: bool = False) -> bytes:
        """Sense data as REQUEST SENSE and a CHECK CONDITION carry it."""
        specific = self._key_specific()
        if not descriptor:
            information = self.information if self.information is not None else 0
            valid = self.information is not None and information < 1 << 32
            command = (self.command_specific or 0) & 0xFFFFFFFF
            return _FIXED.pack(
                *(0x70 | 0x80 * valid, 0, self.key, information if valid else 0),
                *(_FIXED.size - 8, command, self.asc, self.ascq, 0, specific.ljust(3, b"\0")),
            )
        descriptors = b""
        if self.information is not None:
            descriptors += _INFORMATION_DESCRIPTOR.pack(0, 0x0A, 0x80, 0, self.information)
        if self.command_specific is not None:
            descriptors += _COMMAND_DESCRIPTOR.pack(1, 0x0A, 0, self.command_specific)
        if specific:
            descriptors += _KEY_SPECIFIC_DESCRIPTOR.pack(2, 6, 0, 0, specific, 0)
        return bytes((0x72, self.key, self.asc, self.ascq, 0, 0, 0, len(descriptors))) + descriptors

    def _key_specific(self) -> bytes:
        """SPC-4 4.5.2.4: three bytes, or none."""
        if self.field is not None:
            first = 0x80 | 0x40 * self.in_cdb
            if self.bit is not None:
                first |= 0x08 | self.bit
            return bytes((first,)) + self.field.to_bytes(2, "big")
        if self.progress is not None:
            return b"\x80" + self.progress.to_bytes(2, "big")
        return b""


class CheckCondition(Exception):
    """A command ends with CHECK CONDITION. Raised where the fault is found; the unit that runs the
    command makes a `task.Result` of it."""

    def __init__(self, sense: Sense) -> None:
        super().__init__(f"sense {sense.key:x}/{sense.asc:02x}{sense.ascq:02x}")
        self.sense = sense


class ReservationConflict(Exception):
    """A command ends with RESERVATION CONFLICT: somebody else has the unit."""


def invalid_field(byte: int, bit: int | None = None, *, in_cdb: bool = True) -> CheckCondition:
    """INVALID FIELD IN CDB, or in the parameter list."""
    return CheckCondition(
        Sense(ILLEGAL_REQUEST, 0x24 if in_cdb else 0x26, 0, field=byte, bit=bit, in_cdb=in_cdb)
    )


NOTHING: Final = Sense(NO_SENSE, 0x00, 0x00)
INVALID_OPCODE: Final = Sense(ILLEGAL_REQUEST, 0x20, 0x00, field=0)
LBA_OUT_OF_RANGE: Final = Sense(ILLEGAL_REQUEST, 0x21, 0x00)
UNIT_NOT_SUPPORTED: Final = Sense(ILLEGAL_REQUEST, 0x25, 0x00)
PARAMETER_LIST_LENGTH: Final = Sense(ILLEGAL_REQUEST, 0x1A, 0x00)
WRITE_PROTECTED: Final = Sense(DATA_PROTECT, 0x27, 0x00)
SPACE_ALLOCATION_FAILED: Final = Sense(DATA_PROTECT, 0x27, 0x07)
READ_ERROR: Final = Sense(MEDIUM_ERROR, 0x11, 0x00)
WRITE_ERROR: Final = Sense(MEDIUM_ERROR, 0x0C, 0x00)
INTERNAL_FAILURE: Final = Sense(HARDWARE_ERROR, 0x44, 0x00)
MISCOMPARED: Final = Sense(MISCOMPARE, 0x1D, 0x00)
MANUAL_INTERVENTION: Final = Sense(NOT_READY, 0x04, 0x03)
ACCESS_TRANSITION: Final = Sense(NOT_READY, 0x04, 0x0A)
PORT_STANDBY: Final = Sense(NOT_READY, 0x04, 0x0B)
PORT_UNAVAILABLE: Final = Sense(NOT_READY, 0x04, 0x0C)

# Unit attentions (SAM-5 5.14).
POWER_ON: Final = Sense(UNIT_ATTENTION, 0x29, 0x01)
SCSI_BUS_RESET: Final = Sense(UNIT_ATTENTION, 0x29, 0x02)
DEVICE_RESET: Final = Sense(UNIT_ATTENTION, 0x29, 0x03)
NEXUS_LOSS: Final = Sense(UNIT_ATTENTION, 0x29, 0x07)
MODE_CHANGED: Final = Sense(UNIT_ATTENTION, 0x2A, 0x01)
RESERVATIONS_PREEMPTED: Final = Sense(UNIT_ATTENTION, 0x2A, 0x03)
RESERVATIONS_RELEASED: Final = Sense(UNIT_ATTENTION, 0x2A, 0x04)
REGISTRATIONS_PREEMPTED: Final = Sense(UNIT_ATTENTION, 0x2A, 0x05)
ACCESS_STATE_CHANGED: Final = Sense(UNIT_ATTENTION, 0x2A, 0x06)
CAPACITY_CHANGED: Final = Sense(UNIT_ATTENTION, 0x2A, 0x09)
COMMANDS_CLEARED: Final = Sense(UNIT_ATTENTION, 0x2F, 0x00)
THIN_THRESHOLD: Final = Sense(UNIT_ATTENTION, 0x38, 0x07)
LUNS_CHANGED: Final = Sense(UNIT_ATTENTION, 0x3F, 0x0E)
