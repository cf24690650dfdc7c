"""The rules for one request: which flags it may carry, which ranges it may touch.

| violated                                       | answer                                  |
| unknown command, flag not of that command      | EINVAL                                  |
| WRITE, TRIM, WRITE_ZEROES on a read-only export| EPERM                                   |
| past the end (64 bits, no wrap)                | ENOSPC for WRITE and WRITE_ZEROES,      |
|                                                | EINVAL for the rest; with that offset   |
| not a multiple of the negotiated block size    | EINVAL, data untouched                  |
| READ or WRITE above the maximum payload        | EINVAL                                  |
| FLUSH with offset or length                    | EINVAL                                  |
| BLOCK_STATUS without contexts, or of no bytes  | EINVAL                                  |
| anything once the server stops                 | ESHUTDOWN                               |

FUA is accepted on every command ("Command flags"). The size is the device's size now: what the
client was told, or more when the export grew since, so that a client that learned of the growth
some other way can use it without a reconnect.
"""

from dataclasses import dataclass
from typing import Final

from blockd.nbd import wire
from blockd.nbd.contexts import Context, filter_payload
from blockd.nbd.export_info import Enter
from blockd.nbd.replies import Refused
from native import (
    FLAG_FAST_ZERO,
    FLAG_FUA,
    FLAG_NO_HOLE,
    OP_BLOCK_STATUS,
    OP_CACHE,
    OP_FLUSH,
    OP_READ,
    OP_UNMAP,
    OP_WRITE,
    OP_WRITE_ZEROES,
)

OPS: Final = {
    wire.CMD_READ: OP_READ,
    wire.CMD_WRITE: OP_WRITE,
    wire.CMD_FLUSH: OP_FLUSH,
    wire.CMD_TRIM: OP_UNMAP,
    wire.CMD_CACHE: OP_CACHE,
    wire.CMD_WRITE_ZEROES: OP_WRITE_ZEROES,
    wire.CMD_BLOCK_STATUS: OP_BLOCK_STATUS,
}
_NAMES: Final = {
    wire.CMD_READ: "READ",
    wire.CMD_WRITE: "WRITE",
    wire.CMD_FLUSH: "FLUSH",
    wire.CMD_TRIM: "TRIM",
    wire.CMD_CACHE: "CACHE",
    wire.CMD_WRITE_ZEROES: "WRITE_ZEROES",
    wire.CMD_BLOCK_STATUS: "BLOCK_STATUS",
}
WRITING: Final = frozenset((wire.CMD_WRITE, wire.CMD_TRIM, wire.CMD_WRITE_ZEROES))
_OP_FLAGS: Final = (
    (wire.CMD_FLAG_FUA, FLAG_FUA),
    (wire.CMD_FLAG_NO_HOLE, FLAG_NO_HOLE),
    (wire.CMD_FLAG_FAST_ZERO, FLAG_FAST_ZERO),
)


def op_flags(flags: int) -> int:
    """Command flags that the device is told, as its flags."""
    return sum(op_flag for flag, op_flag in _OP_FLAGS if flags & flag)


@dataclass(slots=True)
class Rules:
    """What one connection may ask of its export."""

    entered: Enter
    max_payload: int
    draining: bool = False

    def payload_length(self, command: int, flags: int, length: int) -> int:
        """Bytes that follow the request's header, whether or not the request is valid."""
        if self.entered.extended:
            return length if flags & wire.CMD_FLAG_PAYLOAD_LEN else 0
        return length if command == wire.CMD_WRITE else 0

    def check(self, command: int, flags: int, offset: int, length: int) -> Refused | None:
        """Refuse by the header alone. `length` of a BLOCK_STATUS with payload is not looked at."""
        name = _NAMES.get(command)
        if self.draining:
            return Refused(wire.ESHUTDOWN, "the server is stopping; disconnect")
        if name is None:
            return Refused(wire.EINVAL, f"command {command}: unknown here")
        if strange := flags & ~self._allowed_flags(command):
            return Refused(wire.EINVAL, f"{name} with flags {flags:#x}: {strange:#x} do not apply")
        if command in WRITING and self.entered.read_only:
            return Refused(wire.EPERM, f"{name}: the export is read-only")
        if command == wire.CMD_FLUSH:
            if offset or length:
                return Refused(wire.EINVAL, "FLUSH with an offset or a length: both must be 0")
            return None
        if command == wire.CMD_WRITE and self.entered.extended and length:
            if not flags & wire.CMD_FLAG_PAYLOAD_LEN:
                return Refused(wire.EINVAL, "WRITE without PAYLOAD_LEN under extended headers")
        elif flags & wire.CMD_FLAG_PAYLOAD_LEN and command == wire.CMD_BLOCK_STATUS:
            return self._check_filter(length)
        return self.check_range(command, offset, length)

    def check_range(self, command: int, offset: int, length: int) -> Refused | None:
        """Refuse by range, alignment and length."""
        name = _NAMES[command]
        size = max(self.entered.size, self.entered.device.size)
        if offset + length > size:
            error = wire.EINVAL
            if command in (wire.CMD_WRITE, wire.CMD_WRITE_ZEROES):
                error = wire.ENOSPC
            # Clients compute with 64 bits: an offset in a range that wraps confuses them.
            at = max(offset, size) if length and offset + length < 1 << 64 else None
            message = f"{name} of {length} bytes at {offset}: the export ends at {size}"
            return Refused(error, message, at)
        if (offset | length) & (self.entered.minimum_block_size - 1):
            block = self.entered.minimum_block_size
            message = f"{name} of {length} bytes at {offset}: not multiples of {block}"
            return Refused(wire.EINVAL, message)
        if command in (wire.CMD_READ, wire.CMD_WRITE) and length > self.max_payload:
            message = f"{name} of {length} bytes: at most {self.max_payload} in one request"
            return Refused(wire.EINVAL, message)
        if command == wire.CMD_BLOCK_STATUS:
            if not self.entered.contexts:
                return Refused(wire.EINVAL, "BLOCK_STATUS: no metadata context was selected")
            if not length:
                return Refused(wire.EINVAL, "BLOCK_STATUS of no bytes: has no answer")
        return None

    def _allowed_flags(self, command: int) -> int:
        allowed = wire.CMD_FLAG_FUA
        chunks = self.entered.structured or self.entered.extended
        if command == wire.CMD_READ and chunks:
            allowed |= wire.CMD_FLAG_DF
        elif command == wire.CMD_WRITE and self.entered.extended:
            allowed |= wire.CMD_FLAG_PAYLOAD_LEN
        elif command == wire.CMD_WRITE_ZEROES:
            allowed |= wire.CMD_FLAG_NO_HOLE | wire.CMD_FLAG_FAST_ZERO
        elif command == wire.CMD_BLOCK_STATUS:
            allowed |= wire.CMD_FLAG_REQ_ONE
            if self.entered.extended and self.entered.contexts:
                allowed |= wire.CMD_FLAG_PAYLOAD_LEN
        return allowed

    def _check_filter(self, length: int) -> Refused | None:
        """The payload of a BLOCK_STATUS: an effect length and 1 to all of the context ids."""
        count, odd = divmod(length - wire.STATUS_PAYLOAD.size, wire.UINT32.size)
        if odd or not 0 < count <= len(self.entered.contexts):
            message = f"BLOCK_STATUS with {length} bytes of payload: not a length and context ids"
            return Refused(wire.EINVAL, message)
        return None

    def filter(self, payload: bytes, offset: int) -> tuple[int, tuple[Context, ...]] | Refused:
        """Effect length and contexts from the payload of a BLOCK_STATUS that passed `check`."""
        found = filter_payload(payload, self.entered.contexts)
        if found is None:
            return Refused(wire.EINVAL, "BLOCK_STATUS: context ids repeated or not negotiated")
        refused = self.check_range(wire.CMD_BLOCK_STATUS, offset, found[0])
        if refused is not None:
            # No offset: the header's length is not the range, so clients may judge it outside.
            return Refused(refused.error, refused.message)
        return found
