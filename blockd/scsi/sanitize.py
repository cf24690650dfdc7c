"""SANITIZE (SBC-3 4.11, 5.25): all data of a volume is taken away, whoever hangs up meanwhile.

    OVERWRITE       every block is written with the pattern that the initiator gives
    BLOCK ERASE     everything is unmapped and reads zeros
    CRYPTO ERASE    the same: a volume has no key of its own to throw away

**What this means on a store that keeps versions.** A sanitize empties the head: what reads of the
volume tell. Earlier versions stay what they are, as for any other write, until retention drops
them, and a snapshot until it is deleted; only then garbage collection takes the old bytes off the
disk. So a sanitize can be undone like a write, and whoever wants the bytes gone deletes the
versions too. As no write ever goes over an older one, OVERWRITE COUNT passes are as good as the
last of them (with INVERT, the pattern or its complement), and only that one is done.

While it runs, INQUIRY, REPORT LUNS and REQUEST SENSE work and everything else ends with 02/041B and
how far it is. What other nexuses had under way is aborted when it begins. NBD clients of the same
volume are not kept out.

It survives: a reset, an abort or the end of the session hands its steps over to
`Surroundings.run`; a restart of the server finds the job in `Surroundings.load` and begins again at
the first command for the unit. The job is kept before the first block is touched, and forgotten
once all blocks are durable, before anybody is told GOOD.

When it fails, everything but SANITIZE ends with 03/3103, also after a restart, until another one
succeeds, or, if AUSE allowed that, until EXIT FAILURE MODE.
"""

import json
import threading
from collections.abc import Callable, Generator
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from blockd.device import BlockDevice
from blockd.scsi import sense
from blockd.scsi.cdb import Opcode, u16
from blockd.scsi.disk import DONE, PIECE_BYTES, perform
from blockd.scsi.nexus import Nexus
from blockd.scsi.sense import (
    MEDIUM_ERROR,
    NOT_READY,
    CheckCondition,
    Sense,
    invalid_field,
)
from blockd.scsi.task import Await, Prepared, Result, Steps, Submit, Work
from native import FLAG_FUA, OP_FLUSH, OP_UNMAP, OP_WRITE, Request

if TYPE_CHECKING:
    from blockd.scsi.unit import LogicalUnit

KEY: Final = "sanitize"
"""What `Surroundings` keeps the job under."""
ERASE_BYTES: Final = 1 << 30
"""Unmapped by one request: between two of them others get their turn."""

_OVERWRITE: Final = 0x01
_BLOCK_ERASE: Final = 0x02
_CRYPTO_ERASE: Final = 0x03
_EXIT_FAILURE_MODE: Final = 0x1F
_IMMED: Final = 0x80  # byte 1
_AUSE: Final = 0x20
_INVERT: Final = 0x80  # byte 0 of the parameter list of OVERWRITE
_TEST: Final = 0x60
_COUNT: Final = 0x1F
_HEADER: Final = 4
_PROGRESS_SCALE: Final = 1 << 16

_COMMAND: Final = 0x48
_ALWAYS: Final = frozenset((0x03, 0x12, 0xA0))  # REQUEST SENSE, INQUIRY, REPORT LUNS

FAILED: Final = Sense(MEDIUM_ERROR, 0x31, 0x03)
IN_PROGRESS: Final = Sense(NOT_READY, 0x04, 0x1B)


@dataclass(frozen=True, slots=True)
class Job:
    """A sanitize as it is kept over restarts."""

    pattern: str
    """What every block is to hold, repeated to fill it, in hexadecimal; empty: unmap."""
    unrestricted: bool
    """AUSE: EXIT FAILURE MODE may end a failure."""
    failed: bool = False

    def encode(self) -> bytes:
        return json.dumps(asdict(self)).encode()


class Sanitizing:
    """The sanitize of one unit: none, one that runs, or one that failed."""

    def __init__(self, unit: "LogicalUnit") -> None:
        self._unit = unit
        kept = unit.surroundings.load(KEY)
        self._job: Job | None = None if kept is None else Job(**json.loads(kept))
        self._begun = False
        """Whether somebody carries out the steps of the job: not so after a restart."""
        self._done_bytes = 0
        """All blocks before it are durable."""
        self._saving = threading.Lock()
        self._to_keep: Job | None = self._job

    @property
    def active(self) -> bool:
        """It runs, or has failed."""
        return self._job is not None

    @property
    def condition(self) -> Sense | None:
        """What commands end with, and what REQUEST SENSE tells; None when there is nothing."""
        if self._job is None:
            return None
        if self._job.failed:
            return FAILED
        size = max(self._unit.device.size, 1)
        progress = min(self._done_bytes * _PROGRESS_SCALE // size, _PROGRESS_SCALE - 1)
        return Sense(IN_PROGRESS.key, IN_PROGRESS.asc, IN_PROGRESS.ascq, progress=progress)

    def check(self, opcode: Opcode) -> None:
        """Whether a command may go on now: CheckCondition."""
        job = self._job
        if job is None:
            return
        if not self._begun and not job.failed:
            self._begun = True
            self._unit.surroundings.run(self._carry_out(job))
        if opcode.code in _ALWAYS or (job.failed and opcode.code == _COMMAND):
            return
        condition = self.condition
        assert condition is not None
        raise CheckCondition(condition)

    def begin(self, job: Job, *, immediately: bool) -> Steps:
        """Steps that sanitize, and GOOD at the end, or with `immediately` as soon as a restart
        would go on with it."""
        if self._job is not None and not self._job.failed:
            raise CheckCondition(IN_PROGRESS)  # another one came in while this had its data sent
        before, self._job = self._job, job
        self._unit.interrupt()
        self._begun = True
        self._done_bytes = 0
        return self._begin(job, before, immediately)

    def _begin(self, job: Job, before: Job | None, immediately: bool) -> Steps:
        try:
            yield from self._keep(job)
        except OSError as error:
            self._job = before
            raise CheckCondition(sense.INTERNAL_FAILURE) from error
        except GeneratorExit:  # the session ended while the job was being kept: it may be
            self._unit.surroundings.run(self._carry_out(job))
            raise
        if immediately:
            self._unit.surroundings.run(self._carry_out(job))
            return DONE
        try:
            return (yield from self._carry_out(job))
        except GeneratorExit:
            self._unit.surroundings.run(self._carry_out(job))
            raise

    def _carry_out(self, job: Job) -> Steps:
        """All that is left to do, from `_done_bytes` on."""
        try:
            yield from self._cover(job)
            yield from self._keep(None)
        except (CheckCondition, OSError) as error:
            failed = Job(job.pattern, job.unrestricted, failed=True)
            self._job = failed
            yield from self._keep_if_possible(failed)
            raise CheckCondition(FAILED) from error
        self._job = None
        return DONE

    def _cover(self, job: Job) -> Generator[Submit | Work, Any, None]:
        device = self._unit.device
        block = repeated(bytes.fromhex(job.pattern), device.block_size)
        pattern = memoryview(block * max(PIECE_BYTES // device.block_size, 1))
        step = len(pattern) or ERASE_BYTES
        while self._done_bytes < device.size:  # which may grow meanwhile
            length = min(step, device.size - self._done_bytes)
            yield from self._wipe(device, length, pattern)
            self._done_bytes += length
        yield from perform(device, Request(OP_FLUSH))

    def _wipe(
        self, device: BlockDevice, length: int, pattern: memoryview
    ) -> Generator[Submit | Work, Any, None]:
        """Each piece is durable before the next one: a volume full of them, waiting in the journal,
        would keep everybody else's FLUSH waiting too."""
        offset = self._done_bytes
        if pattern:
            yield Work(partial(self._unit.surroundings.pace, length))
            yield from perform(
                device, Request(OP_WRITE, offset, length, pattern[:length], FLAG_FUA)
            )
        else:
            yield from perform(device, Request(OP_UNMAP, offset, length, None, FLAG_FUA))

    def _keep(self, job: Job | None) -> Generator[Submit | Work, Any, None]:
        self._to_keep = job
        yield Work(self._save)

    def _save(self) -> None:
        """On another thread. A call whose task was aborted may be late: it saves what is to be kept
        by then, as a job that came back after it was done would wipe what was written since."""
        with self._saving:
            job = self._to_keep
            self._unit.surroundings.save(KEY, None if job is None else job.encode())

    def _keep_if_possible(self, job: Job) -> Generator[Submit | Work, Any, None]:
        """That it failed. If not even that can be kept, a restart finds it running, and does it
        again: nobody could have written in between."""
        try:
            yield from self._keep(job)
        except OSError:
            return

    def exit_failure_mode(self) -> Steps | Result:
        """Let commands in again after a failure."""
        job = self._job
        if job is None or not job.failed:
            return DONE
        if not job.unrestricted:
            raise CheckCondition(FAILED)
        return self._exit_failure_mode()

    def _exit_failure_mode(self) -> Steps:
        try:
            yield from self._keep(None)
        except OSError as error:
            raise CheckCondition(FAILED) from error
        self._job = None
        return DONE

    @property
    def restricted(self) -> bool:
        """A SANITIZE without AUSE failed: only another one without it may follow."""
        return self._job is not None and self._job.failed and not self._job.unrestricted


def repeated(pattern: bytes, block_size: int) -> bytes:
    """One block of `pattern`, again and again (SBC-3 5.25.2.2); empty for none."""
    return (pattern * -(-block_size // len(pattern)))[:block_size] if pattern else b""


def overwrite_pattern(parameters: bytes, block_size: int) -> bytes:
    """The pattern of the last pass, from the parameter list of an OVERWRITE. CheckCondition."""
    if len(parameters) <= _HEADER:
        raise CheckCondition(sense.PARAMETER_LIST_LENGTH)
    flags = parameters[0]
    count = flags & _COUNT
    if flags & _TEST:
        raise invalid_field(0, 6, in_cdb=False)
    if not count:
        raise invalid_field(0, 4, in_cdb=False)
    length = u16(parameters, 2)
    if not 0 < length <= min(block_size, len(parameters) - _HEADER):
        raise invalid_field(2, in_cdb=False)
    pattern = parameters[_HEADER : _HEADER + length]
    if flags & _INVERT and count % 2 == 0:  # each pass after the first inverts the one before
        pattern = bytes(byte ^ 0xFF for byte in pattern)
    return pattern


# -- commands


def overwrite(unit: "LogicalUnit", nexus: Nexus, cdb: bytes) -> Prepared:
    length = u16(cdb, 7)
    if not _HEADER < length <= unit.block_size + _HEADER:
        raise invalid_field(7)
    _check_ause(unit, cdb)
    return Prepared(length, lambda data: _overwrite(unit, nexus, cdb, bytes(data)), exact=True)


def _overwrite(unit: "LogicalUnit", nexus: Nexus, cdb: bytes, parameters: bytes) -> Steps:
    return _begin(unit, nexus, cdb, overwrite_pattern(parameters, unit.block_size))


def erase(unit: "LogicalUnit", nexus: Nexus, cdb: bytes) -> Prepared:
    """BLOCK ERASE and CRYPTO ERASE."""
    _check_no_parameters(cdb)
    _check_ause(unit, cdb)
    return Prepared(0, lambda _: _begin(unit, nexus, cdb, b""))


def exit_failure_mode(unit: "LogicalUnit", _: Nexus, cdb: bytes) -> Prepared:
    _check_no_parameters(cdb)
    return Prepared(0, lambda _: unit.sanitizing.exit_failure_mode())


def _check_no_parameters(cdb: bytes) -> None:
    if u16(cdb, 7):
        raise invalid_field(7)


def _check_ause(unit: "LogicalUnit", cdb: bytes) -> None:
    if cdb[1] & _AUSE and unit.sanitizing.restricted:
        raise invalid_field(1, 5)


def _begin(unit: "LogicalUnit", nexus: Nexus, cdb: bytes, pattern: bytes) -> Steps:
    job = Job(pattern.hex(), unrestricted=bool(cdb[1] & _AUSE))
    steps = unit.sanitizing.begin(job, immediately=bool(cdb[1] & _IMMED))
    others = [other for other in unit.nexuses if other is not nexus]

    def abort(done: Callable[[], None]) -> None:
        for other in unit.abort(others, done):
            unit.attention(sense.COMMANDS_CLEARED, to=other)

    try:
        yield Await(abort)  # SBC-3 4.11.2: before it begins, commands are terminated
    except GeneratorExit:  # the session ended meanwhile; a sanitize does not
        unit.surroundings.run(steps)
        raise
    return (yield from steps)


def _usage(action: int) -> bytes:
    return bytes((_COMMAND, _IMMED | _AUSE | action, 0, 0, 0, 0, 0, 0xFF, 0xFF, 0))


OPCODES: Final = (
    Opcode(
        *(_COMMAND, _OVERWRITE, "SANITIZE, OVERWRITE", _usage(_OVERWRITE), overwrite),
        changes_medium=True,
    ),
    Opcode(
        *(_COMMAND, _BLOCK_ERASE, "SANITIZE, BLOCK ERASE", _usage(_BLOCK_ERASE), erase),
        changes_medium=True,
    ),
    Opcode(
        *(_COMMAND, _CRYPTO_ERASE, "SANITIZE, CRYPTO ERASE", _usage(_CRYPTO_ERASE), erase),
        changes_medium=True,
    ),
    Opcode(
        _COMMAND,
        _EXIT_FAILURE_MODE,
        "SANITIZE, EXIT FAILURE MODE",
        _usage(_EXIT_FAILURE_MODE),
        exit_failure_mode,
        changes_medium=True,
    ),
)
