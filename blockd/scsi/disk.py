"""READ, WRITE, SYNCHRONIZE CACHE, PRE-FETCH; and what every command that moves blocks shares.

LBAs and block counts become offsets and lengths here and in `block_range`, nowhere else.

    WRITE           GOOD once it is in the journal, with FUA once it is durable
    READ with FUA   the medium must have what the read tells (SBC-3 5.8): a FLUSH follows it
    SYNCHRONIZE     one FLUSH of everything, whatever range is named; IMMED answers after it as well
    PRE-FETCH       told to the device, which promises nothing: so GOOD, not CONDITION MET, which
                    says that all blocks are in the cache (SBC-3 5.9)

DPO and group numbers change nothing. Protection information is not supported: the usage data of
the CDBs leave RDPROTECT and WRPROTECT out, which refuses them before any function here is called.

A range is checked before anything else, also when it is empty: LBA + count beyond the last block
plus one is 05/2100 (SBC-3 4.20); then an empty one is GOOD without any data.
"""

import errno
import struct
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any, Final, cast

from blockd.device import BlockDevice
from blockd.scsi import sense
from blockd.scsi.cdb import Opcode, u16, u32, u64
from blockd.scsi.nexus import Nexus
from blockd.scsi.sense import CheckCondition, Sense, invalid_field
from blockd.scsi.task import CHECK_CONDITION, GOOD, Prepared, Result, Single, Steps, Submit, Work
from native import (
    FLAG_FUA,
    OP_BLOCK_STATUS,
    OP_CACHE,
    OP_FLUSH,
    OP_READ,
    OP_WRITE,
    Request,
)

if TYPE_CHECKING:
    from blockd.scsi.unit import LogicalUnit

MAX_TRANSFER_BYTES: Final = 16 << 20
"""Of one command whose data is in memory at once; VPD B0 tells it. Initiators ask for 4 MiB or less
unless they are told more, and 128 of these per session have to be paid for."""
OPTIMAL_TRANSFER_BYTES: Final = 1 << 20
"""VPD B0: one journal record holds as much."""
PIECE_BYTES: Final = 1 << 20
"""At a time, of commands that go through more data than they hold in memory."""
CONDITIONAL_BYTES: Final = 255 * 4096
"""Longest write with FLAG_IF_SEQ: one journal record, at any alignment."""

DPO_FUA: Final = 0x18  # byte 1 of READ and WRITE (10), (12), (16)
FUA: Final = 0x08
DONE: Final = Result()

# The bytes from the LBA on: LBA and transfer length, group number between them in (10).
_FIELDS_10: Final = struct.Struct(">IxH").unpack_from
_FIELDS_12: Final = struct.Struct(">II").unpack_from
_FIELDS_16: Final = struct.Struct(">QI").unpack_from
_BLOCKS_OF_0: Final = 256  # READ (6) and WRITE (6): a transfer length of 0 (SBC-3 5.7)

_READING: Final = frozenset((OP_READ, OP_CACHE, OP_BLOCK_STATUS))


# -- shared


def failure(request: Request) -> Sense:
    """Sense data for a request that came back with an error."""
    error = request.error
    assert error
    if error in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return sense.SPACE_ALLOCATION_FAILED
    if error in (errno.EPERM, errno.EACCES, errno.EROFS):
        return sense.WRITE_PROTECTED
    if error == errno.ESHUTDOWN:  # deleted, or put back to an older state, under the session
        return sense.MANUAL_INTERVENTION
    if error == errno.EINVAL:  # ranges were checked: the volume has become smaller since
        return sense.LBA_OUT_OF_RANGE
    if error == errno.EIO:
        return sense.READ_ERROR if request.op in _READING else sense.WRITE_ERROR
    return sense.INTERNAL_FAILURE


def block_range(unit: "LogicalUnit", lba: int, count: int) -> tuple[int, int]:
    """`count` blocks from `lba` on as (offset, length). CheckCondition when there are fewer."""
    device = unit.device
    offset = lba * device.block_size
    length = count * device.block_size
    if offset + length > device.size:
        raise CheckCondition(sense.LBA_OUT_OF_RANGE)
    return offset, length


def whole_blocks(data: memoryview, block_size: int) -> memoryview:
    """`data` without the part of a block at its end that an initiator with less to send left."""
    return data[: len(data) - len(data) % block_size]


def pieces(length: int, piece: int = PIECE_BYTES) -> Iterator[tuple[int, int]]:
    """(start, length) of the parts of a range, in order."""
    for start in range(0, length, piece):
        yield start, min(piece, length - start)


def perform(device: BlockDevice, *requests: Request) -> Generator[Submit | Work, Any, None]:
    """Steps that carry out requests, in this order. CheckCondition for the first that failed."""
    yield Submit(device, list(requests))
    for request in requests:
        if request.error:
            raise CheckCondition(failure(request))


def read_bytes(
    device: BlockDevice, offset: int, length: int
) -> Generator[Submit | Work, Any, bytes]:
    """Steps that read. CheckCondition."""
    request = Request(OP_READ, offset, length)
    yield from perform(device, request)
    return cast(bytes, request.data)


def finished(request: Request) -> Result:
    """The result of a request without data-in."""
    if request.error:
        return Result(CHECK_CONDITION, sense=failure(request))
    return DONE


def finished_read(request: Request) -> Result:
    """The result of a READ."""
    if request.error:
        return Result(CHECK_CONDITION, sense=failure(request))
    return Result(GOOD, (cast(bytes, request.data),))


# -- the hot case

_PLAIN_10: Final = struct.Struct(">BBIBHB6x")  # operation code, flags, LBA, group, count, control
_PLAIN_16: Final = struct.Struct(">BBQIBB")  # operation code, flags, LBA, count, group, control


def plain(unit: "LogicalUnit", nexus: Nexus, cdb: bytes) -> Single | None:
    """A READ or WRITE (10 or 16) without flags, of a unit where nothing is out of the ordinary, as
    `LogicalUnit.prepare` would answer, at a third of the cost. None: ask `prepare`, which looks at
    everything. `cdb`: 16 bytes."""
    code = cdb[0]
    if code == 0x28 or code == 0x2A:
        _, flags, lba, group, count, control = _PLAIN_10.unpack(cdb)
    elif code == 0x88 or code == 0x8A:
        _, flags, lba, count, group, control = _PLAIN_16.unpack(cdb)
    else:
        return None
    device = unit.device
    block_size = device.block_size
    offset, length = lba * block_size, count * block_size
    if (
        flags
        or group
        or control
        or not 0 < length <= MAX_TRANSFER_BYTES
        or offset + length > device.size
        or not unit.ordinary(nexus)
    ):
        return None
    if code == 0x28 or code == 0x88:
        return Single(device, Request(OP_READ, offset, length), 0, finished_read)
    if unit.read_only_to(nexus):
        return None
    return Single(device, Request(OP_WRITE, offset, length), length, finished)


# -- READ


def _read(
    unit: "LogicalUnit", lba: int, count: int, flags: int, field: int
) -> Result | Single | Prepared:
    """`field`: where the CDB has its transfer length, to point at."""
    device = unit.device
    block_size = device.block_size
    offset = lba * block_size
    length = count * block_size
    if offset + length > device.size:
        raise CheckCondition(sense.LBA_OUT_OF_RANGE)
    if not 0 < length <= MAX_TRANSFER_BYTES:
        return _no_blocks(length, field)
    request = Request(OP_READ, offset, length)
    if flags & FUA:
        return Prepared(0, lambda _: _read_from_medium(device, request), data_in_length=length)
    return Single(device, request, 0, finished_read)


def _no_blocks(length: int, field: int) -> Result:
    """What becomes of a transfer that is empty or too long."""
    if length:
        raise invalid_field(field)
    return DONE


def _read_from_medium(device: BlockDevice, request: Request) -> Steps:
    yield from perform(device, request)
    yield from perform(device, Request(OP_FLUSH))  # later: what was read is what it covers
    return finished_read(request)


def read_6(unit: "LogicalUnit", _: Nexus, cdb: bytes) -> Result | Single | Prepared:
    lba = u32(cdb, 0) & 0x1FFFFF
    return _read(unit, lba, cdb[4] or _BLOCKS_OF_0, 0, 4)


def read_10(unit: "LogicalUnit", _: Nexus, cdb: bytes) -> Result | Single | Prepared:
    lba, count = _FIELDS_10(cdb, 2)
    return _read(unit, lba, count, cdb[1], 7)


def read_12(unit: "LogicalUnit", _: Nexus, cdb: bytes) -> Result | Single | Prepared:
    lba, count = _FIELDS_12(cdb, 2)
    return _read(unit, lba, count, cdb[1], 6)


def read_16(unit: "LogicalUnit", _: Nexus, cdb: bytes) -> Result | Single | Prepared:
    lba, count = _FIELDS_16(cdb, 2)
    return _read(unit, lba, count, cdb[1], 10)


# -- WRITE


def write(unit: "LogicalUnit", lba: int, count: int, flags: int, field: int) -> Result | Single:
    """A WRITE of `count` blocks; the transport sets the data. `field` as for `_read`."""
    device = unit.device
    block_size = device.block_size
    offset = lba * block_size
    length = count * block_size
    if offset + length > device.size:
        raise CheckCondition(sense.LBA_OUT_OF_RANGE)
    if not 0 < length <= MAX_TRANSFER_BYTES:
        return _no_blocks(length, field)
    request = Request(OP_WRITE, offset, length, None, FLAG_FUA if flags & FUA else 0)
    return Single(device, request, length, finished)


def write_6(unit: "LogicalUnit", _: Nexus, cdb: bytes) -> Result | Single:
    lba = u32(cdb, 0) & 0x1FFFFF
    return write(unit, lba, cdb[4] or _BLOCKS_OF_0, 0, 4)


def write_10(unit: "LogicalUnit", _: Nexus, cdb: bytes) -> Result | Single:
    lba, count = _FIELDS_10(cdb, 2)
    return write(unit, lba, count, cdb[1], 7)


def write_12(unit: "LogicalUnit", _: Nexus, cdb: bytes) -> Result | Single:
    lba, count = _FIELDS_12(cdb, 2)
    return write(unit, lba, count, cdb[1], 6)


def write_16(unit: "LogicalUnit", _: Nexus, cdb: bytes) -> Result | Single:
    lba, count = _FIELDS_16(cdb, 2)
    return write(unit, lba, count, cdb[1], 10)


# -- SYNCHRONIZE CACHE, PRE-FETCH


def _synchronize(unit: "LogicalUnit", lba: int, count: int) -> Single:
    block_range(unit, lba, count)  # a count of 0 means up to the last block
    return Single(unit.device, Request(OP_FLUSH), 0, finished)


def synchronize_cache_10(unit: "LogicalUnit", _: Nexus, cdb: bytes) -> Single:
    return _synchronize(unit, u32(cdb, 2), u16(cdb, 7))


def synchronize_cache_16(unit: "LogicalUnit", _: Nexus, cdb: bytes) -> Single:
    return _synchronize(unit, u64(cdb, 2), u32(cdb, 10))


def _pre_fetch(unit: "LogicalUnit", lba: int, count: int) -> Single:
    offset, length = block_range(unit, lba, count)
    if not count:
        length = unit.device.size - offset
    return Single(unit.device, Request(OP_CACHE, offset, length), 0, finished)


def pre_fetch_10(unit: "LogicalUnit", _: Nexus, cdb: bytes) -> Single:
    return _pre_fetch(unit, u32(cdb, 2), u16(cdb, 7))


def pre_fetch_16(unit: "LogicalUnit", _: Nexus, cdb: bytes) -> Single:
    return _pre_fetch(unit, u64(cdb, 2), u32(cdb, 10))


# -- usage data of the CDBs


def usage_6(code: int) -> bytes:
    """21 bits of LBA, 8 of transfer length."""
    return bytes((code, 0x1F, 0xFF, 0xFF, 0xFF, 0x00))


def usage_10(code: int, flags: int) -> bytes:
    """`flags`: the bits of byte 1 that mean something."""
    return bytes((code, flags)) + b"\xff\xff\xff\xff\x1f\xff\xff\x00"


def usage_12(code: int, flags: int) -> bytes:
    return bytes((code, flags)) + b"\xff" * 8 + b"\x1f\x00"


def usage_16(code: int, flags: int) -> bytes:
    return bytes((code, flags)) + b"\xff" * 12 + b"\x1f\x00"


READ_16: Final = Opcode(
    0x88, None, "READ (16)", usage_16(0x88, DPO_FUA), read_16, reservation="read"
)
WRITE_16: Final = Opcode(
    0x8A, None, "WRITE (16)", usage_16(0x8A, DPO_FUA), write_16, changes_medium=True
)

OPCODES: Final = (
    Opcode(0x08, None, "READ (6)", usage_6(0x08), read_6, reservation="read"),
    Opcode(0x28, None, "READ (10)", usage_10(0x28, DPO_FUA), read_10, reservation="read"),
    Opcode(0xA8, None, "READ (12)", usage_12(0xA8, DPO_FUA), read_12, reservation="read"),
    READ_16,
    Opcode(0x0A, None, "WRITE (6)", usage_6(0x0A), write_6, changes_medium=True),
    Opcode(0x2A, None, "WRITE (10)", usage_10(0x2A, DPO_FUA), write_10, changes_medium=True),
    Opcode(0xAA, None, "WRITE (12)", usage_12(0xAA, DPO_FUA), write_12, changes_medium=True),
    WRITE_16,
    # IMMED, and SYNC_NV, which older initiators set.
    Opcode(0x35, None, "SYNCHRONIZE CACHE (10)", usage_10(0x35, 0x06), synchronize_cache_10),
    Opcode(0x91, None, "SYNCHRONIZE CACHE (16)", usage_16(0x91, 0x06), synchronize_cache_16),
    Opcode(0x34, None, "PRE-FETCH (10)", usage_10(0x34, 0x02), pre_fetch_10, reservation="read"),
    Opcode(0x90, None, "PRE-FETCH (16)", usage_16(0x90, 0x02), pre_fetch_16, reservation="read"),
)
