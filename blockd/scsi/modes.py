"""Mode pages: MODE SENSE (6, 10) and MODE SELECT (6, 10) (SPC-4 6.11 to 6.14, 7.5; SBC-3 6.5).

    01      Read-Write Error Recovery          writes go to another place; thresholds are told
    08      Caching                            there is a write cache (SYNCHRONIZE CACHE, FUA)
    0A      Control                            D_SENSE and SWP can be changed, and saved
    1A      Power Condition                    none
    1C      Informational Exceptions Control   none
    1C/02   Logical Block Provisioning         the soft threshold of the store

Four sets of values: current, changeable (a mask), default, saved. A reset makes the saved values
the current ones; the defaults serve as saved values until there are any. All initiators share one
set, and those that did not change it themselves are told by a unit attention (2A/01).

MODE SELECT changes all that it names or nothing: the whole list is checked first. A bit that cannot
be changed must have the value that it has. Bits that MODE SENSE fills in and MODE SELECT reserves
(mode data length, PS, WP, DPOFUA) are passed over, as initiators send back what they read.
"""

import logging
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from blockd.scsi import sense
from blockd.scsi.cdb import Opcode, u16
from blockd.scsi.sense import CheckCondition, invalid_field
from blockd.scsi.task import Prepared, Result, Steps, Work

if TYPE_CHECKING:
    from blockd.scsi.nexus import Nexus
    from blockd.scsi.unit import LogicalUnit, Surroundings

log = logging.getLogger(__name__)

KEY: Final = "modes"
"""What `Surroundings` keeps the saved values under."""
THRESHOLD_SET_BYTES: Final = 1 << 20
"""What space is counted in: 32 bits of it are 4 EiB."""

_CONTROL: Final = (0x0A, 0x00)
_PROVISIONING: Final = (0x1C, 0x02)
_D_SENSE: Final = 0x04  # byte 2 of Control
_SWP: Final = 0x08  # byte 4

_CURRENT, _CHANGEABLE, _DEFAULT = range(3)  # PC; 3 are the saved values
_PS: Final = 0x80  # byte 0 of a page: it can be saved
_SPF: Final = 0x40  # it has a subpage code, and a length of 2 bytes
_ALL: Final = 0x3F
_ALL_SUBPAGES: Final = 0xFF
_PF: Final = 0x10  # byte 1 of MODE SELECT
_SP: Final = 0x01
_DBD: Final = 0x08  # byte 1 of MODE SENSE
_LLBAA: Final = 0x10
_WP: Final = 0x80  # device-specific parameter
_DPOFUA: Final = 0x10
_LONG_LBA: Final = 0x01  # byte 4 of the header of the 10-byte commands
_SHORT_DESCRIPTOR: Final = struct.Struct(">II")
_LONG_DESCRIPTOR: Final = struct.Struct(">QII")
_THRESHOLD: Final = struct.Struct(">BBHI")
_MAX_SHORT_COUNT: Final = (1 << 32) - 1

PageId = tuple[int, int]
"""Page code and subpage code."""


def _page(code: int, body: bytes, subpage: int = 0) -> bytes:
    """A page with its header, without PS."""
    if subpage:
        return bytes((_SPF | code, subpage)) + len(body).to_bytes(2, "big") + body
    return bytes((code, len(body))) + body


_DEFAULTS: Final[dict[PageId, bytes]] = {
    # AWRE, as every write goes elsewhere; LBPERE: thresholds give unit attentions.
    (0x01, 0x00): _page(0x01, bytes((0x80, 0, 0, 0, 0, 0x80, 0, 0, 0, 0))),
    (0x08, 0x00): _page(0x08, bytes((0x04,)).ljust(18, b"\0")),  # WCE
    # GLTSD, as log parameters are not saved; unrestricted reordering.
    _CONTROL: _page(0x0A, bytes((0x02, 0x10)).ljust(10, b"\0")),
    (0x1A, 0x00): _page(0x1A, bytes(38)),
    (0x1C, 0x00): _page(0x1C, bytes((0x08,)).ljust(10, b"\0")),  # DEXCPT
    _PROVISIONING: _page(0x1C, bytes(12), 0x02),
}
_CHANGES: Final[dict[PageId, bytes]] = {
    _CONTROL: bytes((0, 0, _D_SENSE, 0, _SWP)).ljust(12, b"\0"),
}


def _masked(page: PageId, values: bytes) -> bytes:
    """The default page with `values` where it can be changed."""
    return bytes(
        (old & ~mask) | (new & mask)
        for old, new, mask in zip(_DEFAULTS[page], values, _CHANGES[page], strict=True)
    )


class ModePages:
    """The values of one unit. `current` and `saved` hold the pages that can be changed."""

    def __init__(self, kept: bytes | None = None) -> None:
        """`kept`: what `encode` gave."""
        self.saved = {page: _DEFAULTS[page] for page in _CHANGES}
        if kept is not None:
            self._decode(kept)
        self._lock = threading.Lock()
        self.reset()

    def reset(self) -> None:
        """Back to the saved values (SPC-4 5.10.4)."""
        self._change(dict(self.saved))

    def _change(self, pages: dict[PageId, bytes]) -> None:
        self.current = pages
        control = pages[_CONTROL]
        self.descriptor_sense = bool(control[2] & _D_SENSE)
        self.software_write_protect = bool(control[4] & _SWP)

    def change(self, pages: dict[PageId, bytes]) -> bool:
        """Take new values of some pages; whether any of them is another one."""
        new = self.current | pages
        changed = new != self.current
        self._change(new)
        return changed

    def save(self, surroundings: "Surroundings") -> None:
        """Keep the current values. Waits for the disk: for a `task.Work`."""
        with self._lock:  # the last one to be kept is not an older one
            saved = dict(self.current)
            surroundings.save(KEY, self._encode(saved))
            self.saved = saved

    @staticmethod
    def _encode(pages: dict[PageId, bytes]) -> bytes:
        return b"".join(pages[page] for page in sorted(pages))

    def _decode(self, kept: bytes) -> None:
        """Only bits that can be changed are looked at, whatever else an older release kept."""
        try:
            for at, page, length in _walk(kept, 0):
                if page in _CHANGES and length == len(_CHANGES[page]):
                    self.saved[page] = _masked(page, kept[at : at + length])
        except CheckCondition:
            log.warning("saved mode pages are not readable, the defaults stay: %s", kept.hex())


# -- MODE SENSE


def _device_specific(unit: "LogicalUnit", nexus: "Nexus") -> int:
    return _DPOFUA | (_WP if unit.read_only_to(nexus) else 0)


def _provisioning_page(unit: "LogicalUnit") -> bytes:
    """SBC-3 6.5.8: one threshold, for all initiators: space that is still available, going down."""
    threshold = unit.surroundings.space().threshold_bytes
    descriptors = b""
    if threshold:
        enabled_soft_decreasing = 0x80 | 0x01
        available = 0x01
        count = min(threshold // THRESHOLD_SET_BYTES, _MAX_SHORT_COUNT)
        descriptors = _THRESHOLD.pack(enabled_soft_decreasing, available, 0, count)
    return _page(_PROVISIONING[0], bytes(12) + descriptors, _PROVISIONING[1])


def _value(unit: "LogicalUnit", page: PageId, control: int) -> bytes:
    """One page as PC asks for it."""
    if page == _PROVISIONING:
        value = _provisioning_page(unit)
    elif page not in _CHANGES or control == _DEFAULT:
        value = _DEFAULTS[page]
    elif control == _CURRENT:
        value = unit.modes.current[page]
    else:
        value = unit.modes.saved[page]
    if control == _CHANGEABLE:
        header = 4 if page[1] else 2
        value = value[:header] + _CHANGES.get(page, bytes(len(value)))[header:]
    if page in _CHANGES:
        value = bytes((value[0] | _PS,)) + value[1:]
    return value


def _asked(code: int, subpage: int) -> list[PageId]:
    """The pages that a MODE SENSE asks for (SPC-4 table 168), in ascending order."""
    if subpage not in (0, _ALL_SUBPAGES) and code == _ALL:
        raise invalid_field(3, 7)
    found = [
        page
        for page in sorted(_DEFAULTS)
        if code in (_ALL, page[0]) and subpage in (_ALL_SUBPAGES, page[1])
    ]
    if not found:
        known = any(page[0] == code for page in _DEFAULTS)
        raise invalid_field(3, 7) if known else invalid_field(2, 5)
    return found


def _descriptor(unit: "LogicalUnit", *, long: bool) -> bytes:
    """The block descriptor (SBC-3 6.5.2)."""
    if long:
        return _LONG_DESCRIPTOR.pack(unit.block_count, 0, unit.block_size)
    return _SHORT_DESCRIPTOR.pack(min(unit.block_count, _MAX_SHORT_COUNT), unit.block_size)


def _sensed(unit: "LogicalUnit", cdb: bytes) -> tuple[bytes, bytes, bool]:
    """Block descriptor, pages, and whether the descriptor is a long one."""
    long = cdb[0] == 0x5A and bool(cdb[1] & _LLBAA)
    pages = _asked(cdb[2] & 0x3F, cdb[3])
    data = b"".join(_value(unit, page, cdb[2] >> 6) for page in pages)
    return b"" if cdb[1] & _DBD else _descriptor(unit, long=long), data, long


def mode_sense_6(unit: "LogicalUnit", nexus: "Nexus", cdb: bytes) -> Result:
    descriptor, pages, _long = _sensed(unit, cdb)
    length = 3 + len(descriptor) + len(pages)
    assert length < 256
    header = bytes((length, 0, _device_specific(unit, nexus), len(descriptor)))
    return Result(data=((header + descriptor + pages)[: cdb[4]],))


def mode_sense_10(unit: "LogicalUnit", nexus: "Nexus", cdb: bytes) -> Result:
    descriptor, pages, long = _sensed(unit, cdb)
    length = 6 + len(descriptor) + len(pages)
    header = struct.pack(
        *(">HBBBBH", length, 0, _device_specific(unit, nexus), _LONG_LBA * long, 0, len(descriptor))
    )
    return Result(data=((header + descriptor + pages)[: u16(cdb, 7)],))


# -- MODE SELECT


@dataclass(frozen=True, slots=True)
class _Header:
    """Where things are in a mode parameter list."""

    length: int
    descriptor_length: int
    long: bool
    length_at: int
    """Of the block descriptor length: what an error points at."""


def _header(data: bytes, *, six: bool) -> _Header:
    if len(data) < (4 if six else 8):
        raise CheckCondition(sense.PARAMETER_LIST_LENGTH)
    medium_type = 1 if six else 2
    if data[medium_type]:
        raise invalid_field(medium_type, in_cdb=False)
    if six:
        return _Header(4, data[3], False, 3)
    return _Header(8, u16(data, 6), bool(data[4] & _LONG_LBA), 6)


class _Given(NamedTuple):
    """A page in a list."""

    at: int
    page: PageId
    length: int


def _walk(data: bytes, at: int) -> Iterator[_Given]:
    """The pages from `at` on. CheckCondition when one of them is cut off."""
    while at < len(data):
        long = bool(data[at] & _SPF)
        header = 4 if long else 2
        if at + header > len(data):
            raise CheckCondition(sense.PARAMETER_LIST_LENGTH)
        length = header + (u16(data, at + 2) if long else data[at + 1])
        if at + length > len(data):
            raise CheckCondition(sense.PARAMETER_LIST_LENGTH)
        yield _Given(at, (data[at] & 0x3F, data[at + 1] if long else 0), length)
        at += length


def _check_descriptor(unit: "LogicalUnit", data: bytes, header: _Header) -> None:
    """A block descriptor may only say what is so: nothing of it can be changed."""
    length = header.descriptor_length
    if length == 0:
        return
    layout = _LONG_DESCRIPTOR if header.long else _SHORT_DESCRIPTOR
    if length != layout.size:
        raise invalid_field(header.length_at, in_cdb=False)
    if header.length + length > len(data):
        raise CheckCondition(sense.PARAMETER_LIST_LENGTH)
    fields = layout.unpack_from(data, header.length)
    count, block_size = fields[0], fields[-1] if header.long else fields[-1] & 0xFFFFFF
    every = _MAX_SHORT_COUNT if not header.long else (1 << 64) - 1
    if count not in (0, every, unit.block_count):
        raise invalid_field(header.length, in_cdb=False)
    if block_size != unit.block_size:
        raise invalid_field(header.length + layout.size - (4 if header.long else 3), in_cdb=False)


def _checked(unit: "LogicalUnit", data: bytes, given: _Given) -> bytes:
    """The new values of one page: CheckCondition names what cannot be had."""
    if given.page not in _DEFAULTS:
        raise invalid_field(given.at, 5, in_cdb=False)
    old = _value(unit, given.page, _CURRENT)
    if given.length != len(old):
        raise invalid_field(given.at + (2 if given.page[1] else 1), in_cdb=False)
    new = bytes((data[given.at] & ~_PS,)) + data[given.at + 1 : given.at + given.length]
    old = bytes((old[0] & ~_PS,)) + old[1:]
    masks = _CHANGES.get(given.page, bytes(len(old)))
    for index, mask in enumerate(masks):
        wrong = (new[index] ^ old[index]) & ~mask
        if wrong:
            raise invalid_field(given.at + index, wrong.bit_length() - 1, in_cdb=False)
    return new


def _select(unit: "LogicalUnit", nexus: "Nexus", data: bytes, *, six: bool) -> None:
    """Check the whole list, then change everything that it changes."""
    header = _header(data, six=six)
    _check_descriptor(unit, data, header)
    changes: dict[PageId, bytes] = {}
    for given in _walk(data, header.length + header.descriptor_length):
        value = _checked(unit, data, given)
        if given.page in _CHANGES:
            changes[given.page] = value
    if unit.modes.change(changes):
        unit.attention(sense.MODE_CHANGED, but=nexus)


def _save(unit: "LogicalUnit") -> Steps:
    try:
        yield Work(lambda: unit.modes.save(unit.surroundings))
    except OSError:
        raise CheckCondition(sense.INTERNAL_FAILURE) from None
    return Result()


def _mode_select(unit: "LogicalUnit", nexus: "Nexus", cdb: bytes, length: int) -> Result | Prepared:
    if length == 0:
        return Result()
    if not cdb[1] & _PF:
        raise invalid_field(1, 4)  # pages of a vendor's own format: there are none

    def run(data: memoryview) -> Steps | Result:
        if len(data) < length:
            raise CheckCondition(sense.PARAMETER_LIST_LENGTH)
        _select(unit, nexus, bytes(data), six=cdb[0] == 0x15)
        return _save(unit) if cdb[1] & _SP else Result()

    return Prepared(length, run)


def mode_select_6(unit: "LogicalUnit", nexus: "Nexus", cdb: bytes) -> Result | Prepared:
    return _mode_select(unit, nexus, cdb, cdb[4])


def mode_select_10(unit: "LogicalUnit", nexus: "Nexus", cdb: bytes) -> Result | Prepared:
    return _mode_select(unit, nexus, cdb, u16(cdb, 7))


OPCODES: Final = (
    Opcode(
        0x1A,
        None,
        "MODE SENSE (6)",
        bytes.fromhex("1a08ffffff00"),
        mode_sense_6,
        reservation="read",
    ),
    Opcode(
        0x5A,
        None,
        "MODE SENSE (10)",
        bytes.fromhex("5a18ffff000000ffff00"),
        mode_sense_10,
        reservation="read",
    ),
    Opcode(
        *(0x15, None, "MODE SELECT (6)", bytes.fromhex("15110000ff00"), mode_select_6),
        changes_unit=True,
    ),
    Opcode(
        *(0x55, None, "MODE SELECT (10)", bytes.fromhex("55110000000000ffff00"), mode_select_10),
        changes_unit=True,
    ),
)
