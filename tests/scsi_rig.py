"""Units on devices in memory, and a transport that carries out the steps of their commands.

    rig = Rig()                        one unit of BLOCK-byte blocks, at LUN 0; one nexus
    result = rig.run(cdb, data)        a command from begin to end
    data = rig.good(cdb, data)         the same, which must end with GOOD: its data-in
    sense = rig.fault(cdb, data)       the same, which must end with CHECK CONDITION: why
    running = rig.start(cdb, data)     as far as it goes while the device (deferred) holds requests;
                                       `rig.device.finish()` lets it go on

Every command can be sent through another nexus with `nexus=`. `data` is what the initiator sends;
fewer bytes than the CDB asks for stand for a smaller expected data transfer length.
"""

import errno
from dataclasses import dataclass, field
from typing import Final

from blockd.scsi import sense
from blockd.scsi.alua import PortGroups
from blockd.scsi.cdb import Opcode
from blockd.scsi.nexus import Nexus
from blockd.scsi.opcodes import TABLE
from blockd.scsi.sense import Sense
from blockd.scsi.target import TargetDevice
from blockd.scsi.task import (
    CHECK_CONDITION,
    GOOD,
    Await,
    Prepared,
    Result,
    Single,
    Steps,
    Submit,
    Task,
    Work,
)
from blockd.scsi.unit import Identity, LogicalUnit, SpaceFacts
from blockd.scsi.vpd import naa
from blockd.shared_state import SharedState
from native import OP_WRITE, Request
from tests.fakes import MemoryDevice

BLOCK: Final = 512
BLOCKS: Final = 2048
UUID: Final = bytes(range(0x10, 0x20))
TARGET: Final = "iqn.2026-11.test:vm1"
SPACE: Final = SpaceFacts(1 << 30, 3 << 30, short=False, threshold_bytes=1 << 28)
Table = dict[int, Opcode | dict[int, Opcode]]


@dataclass
class FakeSurroundings:
    """Keeps in memory. Steps of no session run when a test says so."""

    facts: SpaceFacts = SPACE
    kept: dict[str, bytes] = field(default_factory=dict)
    units: dict[bytes, LogicalUnit] = field(default_factory=dict)
    fails_to_save: bool = False
    background: list[Steps] = field(default_factory=list)
    paced_bytes: int = 0
    groups: PortGroups | None = None
    shared: SharedState | None = None

    def shared_state(self) -> SharedState | None:
        return self.shared

    def space(self) -> SpaceFacts:
        return self.facts

    def load(self, key: str) -> bytes | None:
        return self.kept.get(key)

    def save(self, key: str, value: bytes | None) -> None:
        if self.fails_to_save:
            raise OSError(errno.EIO, "the fake disk is broken")
        if value is None:
            self.kept.pop(key, None)
        else:
            self.kept[key] = value

    def unit(self, identifier: bytes) -> LogicalUnit | None:
        return self.units.get(identifier)

    def port_groups(self) -> PortGroups | None:
        return self.groups

    def pace(self, length: int) -> None:
        self.paced_bytes += length

    def run(self, steps: Steps) -> None:
        self.background.append(steps)

    def run_background(self) -> list[Result]:
        """Carry out all that was handed to `run`, to the end."""
        steps, self.background = self.background, []
        return [_carry_out(one) for one in steps]


def _carry_out(steps: Steps) -> Result:
    return finish(Prepared(0, lambda _: steps))


class Running:
    """A command on its way: carries out its steps, as far as devices answer at once."""

    def __init__(self, begun: Result | Single | Prepared, data: bytes, block_size: int) -> None:
        self.result: Result | None = None
        self.task = Task()
        self.works = 0
        """How many `Work`s there were."""
        if isinstance(begun, Result):
            self.result = begun
        elif isinstance(begun, Single):
            self._single(begun, data, block_size)
        elif begun.exact and len(data) != begun.data_out_length:
            self.result = Result(CHECK_CONDITION, sense=Sense(sense.ILLEGAL_REQUEST, 0x24, 0))
        else:
            self.task.begin(begun, memoryview(bytearray(data[: begun.data_out_length])))
            self._go_on()

    def _single(self, single: Single, data: bytes, block_size: int) -> None:
        request = single.request
        if request.op == OP_WRITE:
            sent = data[: single.data_out_length]
            request.data = sent[: len(sent) // block_size * block_size]
            request.length = len(request.data)

        def done(requests: list[Request]) -> None:
            [finished] = requests
            self.result = single.finish(finished)

        single.device.submit([request], done)

    def _go_on(self) -> None:
        while self.task.result is None:
            step = self.task.step
            if isinstance(step, Work):
                self._work(step)
            elif isinstance(step, Await):
                step.begin(lambda: None)  # nobody else has anything in a device
                self.task.waited()
            else:
                assert isinstance(step, Submit)
                if not self._submit(step):
                    return
        self.result = self.task.result

    def _work(self, step: Work) -> None:
        self.works += 1
        try:
            value = step.call()
        except Exception as error:
            self.task.worked(None, error)
        else:
            self.task.worked(value)

    def _submit(self, step: Submit) -> bool:
        """Whether all came back at once."""
        inside = True
        moved = False

        def done(requests: list[Request]) -> None:
            nonlocal moved
            if self.task.step is not step:
                return  # aborted meanwhile
            moved = self.task.finished(len(requests))
            if moved and not inside:
                self._go_on()

        step.device.submit(step.requests, done)
        inside = False
        return moved


def finish(begun: Result | Single | Prepared, data: bytes = b"", block_size: int = BLOCK) -> Result:
    """Carry out a command that waits for nothing."""
    running = Running(begun, data, block_size)
    assert running.result is not None, "the device holds back requests"
    return running.result


def joined(result: Result) -> bytes:
    return b"".join(bytes(part) for part in result.data)


def nexus(number: int = 1, *, group: int = 1, initiator: str | None = None) -> Nexus:
    """Each call makes another one; the same arguments make the same initiator port again."""
    name = f"iqn.2026-11.test:host{number}" if initiator is None else initiator
    return Nexus(name, bytes((0x80, 0, 0, 0, 0, number)), group)


class Rig:
    """See the module's text."""

    def __init__(
        self,
        *,
        blocks: int = BLOCKS,
        block_size: int = BLOCK,
        read_only: bool = False,
        deferred: bool = False,
        opcodes: Table | None = None,
        surroundings: FakeSurroundings | None = None,
        uuid: bytes = UUID,
        name: str = "vm1",
    ) -> None:
        self.device = MemoryDevice(
            name,
            blocks * block_size,
            block_size=block_size,
            read_only=read_only,
            deferred=deferred,
        )
        self.surroundings = FakeSurroundings() if surroundings is None else surroundings
        self.unit = LogicalUnit(
            self.device,
            Identity(uuid, name),
            self.surroundings,
            TABLE if opcodes is None else opcodes,
        )
        self.surroundings.units[naa(uuid)] = self.unit
        self.target = TargetDevice({0: self.unit}, TARGET)
        self.nexus = self.join(1)

    def join(self, number: int, *, group: int = 1) -> Nexus:
        """One more nexus."""
        joined = nexus(number, group=group)
        self.target.attach(joined)
        return joined

    def start(self, cdb: bytes, data: bytes = b"", *, nexus: Nexus | None = None) -> Running:
        begun = self.unit.prepare(self.nexus if nexus is None else nexus, cdb)
        return Running(begun, data, self.device.block_size)

    def run(self, cdb: bytes, data: bytes = b"", *, nexus: Nexus | None = None) -> Result:
        result = self.start(cdb, data, nexus=nexus).result
        assert result is not None, "the device holds back requests"
        return result

    def good(self, cdb: bytes, data: bytes = b"", *, nexus: Nexus | None = None) -> bytes:
        result = self.run(cdb, data, nexus=nexus)
        assert result.status == GOOD, result
        return joined(result)

    def fault(self, cdb: bytes, data: bytes = b"", *, nexus: Nexus | None = None) -> Sense:
        result = self.run(cdb, data, nexus=nexus)
        assert result.status == CHECK_CONDITION, result
        assert result.sense is not None
        return result.sense


def codes(what: Sense) -> tuple[int, int, int]:
    """Sense key, ASC and ASCQ."""
    return what.key, what.asc, what.ascq
