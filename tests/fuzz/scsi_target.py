"""Fuzz target of SCSI: any commands of several nexuses, and still

- no exception escapes, and every command ends with one result;
- data-in is no longer than the allocation length, or than the blocks that a READ names;
- sense data is there with CHECK CONDITION and only then, and is well-formed in both formats;
- devices get requests of whole blocks within their size, each no larger than a transfer may be;
- what is held (data-out, unit attentions, registrations) has its bounds;
- persistent reservations that have to outlast a restart do.

Input: one byte of switches (see _Setup), then commands:

    control (1)   bits 0-1 which nexus; see the constants below
    place (1)     bits 0-4 length of the CDB, bits 5-7 LUN: 0 to 4 the unit, 5 another one, 6 one
                  that is not there, 7 the well-known unit
    the CDB
    length (2)    of the data-out that follows, big-endian
    the data-out

`scsi_target` takes bytes and returns nothing, as atheris, AFL++ and the corpus replay want it.
"""

import errno
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from blockd.device import Done
from blockd.scsi import pr_codec, task
from blockd.scsi.disk import MAX_TRANSFER_BYTES
from blockd.scsi.nexus import Nexus
from blockd.scsi.provisioning import MAX_UNMAP_BYTES
from blockd.scsi.sense import Sense
from blockd.scsi.target import REPORT_LUNS_UNIT
from blockd.scsi.task import CHECK_CONDITION, Prepared, Result, Single
from blockd.scsi.unit import MAX_ATTENTIONS, SpaceFacts
from native import OP_READ, OP_WRITE, Request
from tests.fakes import MemoryDevice
from tests.scsi_copies import HERE, THERE
from tests.scsi_rig import FakeSurroundings, Rig, Running, joined, nexus

FINISH: Final = 0x04  # let waiting requests finish after it
FILL: Final = 0x08  # repeat the data-out until the CDB has what it asks for
FAIL: Final = 0x10  # the next request of the unit's device fails
BACKGROUND: Final = 0x20  # then carry out what belongs to no session
RENEW: Final = 0x40  # the nexus logs out and in again first
RESET: Final = 0x80  # the unit is reset first

MAX_COMMANDS: Final = 48
MAX_CDB_FIELD: Final = 0x1F
BIG_BLOCKS: Final = 8192  # of 4096 bytes: more than one transfer
LUNS: Final = (0, 0, 0, 0, 0, 1, 2, REPORT_LUNS_UNIT)
STATUSES: Final = frozenset(
    (
        *(task.GOOD, task.CHECK_CONDITION, task.CONDITION_MET, task.BUSY),
        *(task.RESERVATION_CONFLICT, task.TASK_SET_FULL, task.TASK_ABORTED),
    )
)
_ERRORS: Final = (errno.EIO, errno.ENOSPC, errno.ESHUTDOWN, errno.EPERM, errno.ECANCELED)

# Where CDBs have their allocation length: byte, size.
_ALLOCATION: Final = {
    **{0x03: (4, 1), 0x12: (3, 2), 0x1A: (4, 1), 0x37: (7, 2), 0x4D: (7, 2), 0x5A: (7, 2)},
    **{0x5E: (7, 2), 0x84: (10, 4), 0x9E: (10, 4), 0xA0: (6, 4), 0xA3: (6, 4), 0xB7: (6, 4)},
}
# Where READs have their transfer length.
_TRANSFER: Final = {0x08: (4, 1), 0x28: (7, 2), 0xA8: (6, 4), 0x88: (10, 4)}
_READ_CAPACITY_10_BYTES: Final = 8


@dataclass(frozen=True)
class _Setup:
    """The switches in the first byte."""

    deferred: bool  # requests finish where FINISH says so, or at the end
    read_only: bool
    big: bool  # 4096-byte blocks, more than one transfer
    broken: bool  # nothing can be kept
    damaged: bool  # what was kept of reservations is
    short: bool  # of space
    by_name: bool  # registrations


@dataclass(frozen=True)
class _Command:
    control: int
    lun: int
    cdb: bytes
    data: bytes


class WatchedDevice(MemoryDevice):
    """Trusts nobody."""

    def submit(self, batch: Sequence[Request], done: Done) -> None:
        assert batch
        for request in batch:
            assert 0 <= request.offset <= request.offset + request.length <= self.size, request
            assert request.offset % self.block_size == request.length % self.block_size == 0
            if request.op in (OP_READ, OP_WRITE):
                assert request.length <= MAX_TRANSFER_BYTES
            if request.op == OP_WRITE:
                assert isinstance(request.data, (bytes, memoryview))
                assert len(request.data) == request.length
        assert sum(request.length for request in batch) <= MAX_UNMAP_BYTES
        super().submit(batch, done)


def _setup(switches: int) -> _Setup:
    return _Setup(*(bool(switches & 1 << bit) for bit in range(7)))


def _commands(data: bytes) -> Iterator[_Command]:
    at = 0
    for _ in range(MAX_COMMANDS):
        if at + 2 > len(data):
            return
        control, place = data[at : at + 2]
        at += 2
        cdb = data[at : at + (place & MAX_CDB_FIELD)]
        at += len(cdb)
        length = int.from_bytes(data[at : at + 2], "big")
        at += 2
        yield _Command(control, LUNS[place >> 5], cdb.ljust(6, b"\0"), data[at : at + length])
        at += length


def scsi_target(data: bytes) -> None:
    """Run one input; raises when an invariant is broken."""
    site = _Site(_setup(data[0] if data else 0))
    for command in _commands(data[1:]):
        site.run(command)
    site.end()


class _Site:
    """A target with two units, and the nexuses that talk to it."""

    def __init__(self, setup: _Setup) -> None:
        self.setup = setup
        facts = SpaceFacts(used_bytes=9 << 30, available_bytes=1 << 30, short=setup.short)
        self.surroundings = FakeSurroundings(facts, fails_to_save=setup.broken)
        if setup.damaged:
            self.surroundings.kept[f"pr/{Rig().unit.identity.uuid.hex()}"] = b"damaged"
        self.rig = self._rig()
        other = Rig(surroundings=self.surroundings, uuid=b"t" * 16, name="vm2")
        self.surroundings.units |= {HERE: self.rig.unit, THERE: other.unit}
        self.rig.target.units[1] = other.unit
        self.rig.target.luns_changed()
        self.units = (self.rig.unit, other.unit)
        for rig in (self.rig, other):
            rig.target.detach(rig.nexus)
        self.nexuses = [self._log_in(number) for number in range(4)]
        self.running: list[tuple[Running, bytes, int]] = []
        self.failures = 0

    def _rig(self) -> Rig:
        setup = self.setup
        blocks, block_size = (BIG_BLOCKS, 4096) if setup.big else (2048, 512)
        rig = Rig(
            blocks=blocks,
            block_size=block_size,
            read_only=setup.read_only,
            surroundings=self.surroundings,
        )
        rig.device = rig.unit.device = WatchedDevice(
            "vm1",
            blocks * block_size,
            block_size=block_size,
            read_only=setup.read_only,
            deferred=setup.deferred,
        )
        if setup.by_name:
            rig.unit.reservations.ignore_isids()
        return rig

    def _log_in(self, number: int) -> Nexus:
        """0 and 1 are paths of one initiator."""
        logged_in = nexus(number // 2 + 1, group=1 + number % 2)
        self.rig.target.attach(logged_in)
        return logged_in

    def run(self, command: _Command) -> None:
        number = command.control & 3
        if command.control & RENEW:
            self.rig.target.detach(self.nexuses[number])
            self.nexuses[number] = self._log_in(number)
        if command.control & RESET:
            self.rig.unit.reset()
        if command.control & FAIL:
            self.rig.device.fail_next(_ERRORS[self.failures % len(_ERRORS)])
            self.failures += 1
        begun = self.rig.target.prepare(self.nexuses[number], command.lun, command.cdb)
        block_size = self.units[command.lun == 1].block_size
        data = _data_out(begun, command)
        self.running.append((Running(begun, data, block_size), command.cdb, block_size))
        if command.control & FINISH:
            self.rig.device.finish()
        if command.control & BACKGROUND and not self.setup.deferred:
            self.surroundings.run_background()
        self._check()

    def _check(self) -> None:
        """Results, and forget the commands that have theirs; bounds of what units hold."""
        still = []
        for running, cdb, block_size in self.running:
            if running.result is None:
                assert self.setup.deferred
                still.append((running, cdb, block_size))
            else:
                check_result(running.result, cdb, block_size)
        self.running = still
        for unit in self.units:
            assert all(len(pending) <= MAX_ATTENTIONS for pending in unit._attentions.values())
            assert len(unit.reservations._persistent.keys) <= pr_codec.MAX_REGISTRATIONS

    def end(self) -> None:
        """Let everything end, then look at what a restart finds."""
        while self.rig.device.waiting:
            self.rig.device.finish()
        self._check()
        assert not self.running
        for steps in self.surroundings.background:
            steps.close()
        for number in self.nexuses:
            self.rig.target.detach(number)
        assert not any(unit.nexuses for unit in self.units)
        before = self.rig.unit.reservations
        after = self._rig().unit.reservations
        if self.setup.broken:
            return
        assert after.damaged == before.damaged
        if before._persistent.kept is not None:
            assert after.read_full_status()[4:] == before.read_full_status()[4:]
        else:
            assert not after._persistent.keys


def _data_out(begun: Result | Single | Prepared, command: _Command) -> bytes:
    wanted = 0 if isinstance(begun, Result) else begun.data_out_length
    assert wanted <= MAX_TRANSFER_BYTES
    data = command.data
    if command.control & FILL and len(data) < wanted:
        data = ((data or b"w") * (wanted // len(data or b"w") + 1))[:wanted]
    return data


def check_result(result: Result, cdb: bytes, block_size: int) -> None:
    """What is true of the result of any command."""
    assert result.status in STATUSES
    assert (result.sense is not None) == (result.status == CHECK_CONDITION)
    data = joined(result)
    assert len(data) <= _most_data_in(cdb, block_size), (len(data), cdb.hex())
    if result.sense is not None:
        _check_sense(result.sense)


def _most_data_in(cdb: bytes, block_size: int) -> int:
    cdb = cdb.ljust(16, b"\0")
    if cdb[0] == 0x25:
        return _READ_CAPACITY_10_BYTES
    at, size = _ALLOCATION.get(cdb[0], (0, 0))
    if size:
        return int.from_bytes(cdb[at : at + size], "big")
    at, size = _TRANSFER.get(cdb[0], (0, 0))
    blocks = int.from_bytes(cdb[at : at + size], "big")
    if cdb[0] == 0x08 and not blocks:
        blocks = 256
    return blocks * block_size


def _check_sense(sense: Sense) -> None:
    fixed = sense.encode()
    assert len(fixed) == 18
    assert fixed[0] & 0x7F == 0x70
    assert fixed[7] == len(fixed) - 8
    assert (fixed[2], fixed[12], fixed[13]) == (sense.key, sense.asc, sense.ascq)
    descriptors = sense.encode(descriptor=True)
    assert tuple(descriptors[:4]) == (0x72, sense.key, sense.asc, sense.ascq)
    assert descriptors[7] == len(descriptors) - 8
    at = 8
    while at < len(descriptors):
        at += 2 + descriptors[at + 1]
    assert at == len(descriptors)
