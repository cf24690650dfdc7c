"""The commands that move data on a volume of a real store, whose flushes and reads take a while."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from blockd.device import BlockDevice
from blockd.scsi.opcodes import TABLE
from blockd.scsi.task import (
    CHECK_CONDITION,
    GOOD,
    Await,
    Prepared,
    Result,
    Single,
    Submit,
    Task,
    Work,
)
from blockd.scsi.unit import Identity, LogicalUnit
from native import OP_WRITE, Request
from tests import scsi_cdbs as cdbs
from tests.daemon import JOURNAL_BYTES
from tests.scsi_rig import FakeSurroundings, joined, nexus
from volume.options import StoreOptions
from volume.store import Store

BLOCK = 4096
BLOCKS = 4096
MIB = 1 << 20
WAIT_S = 30.0  # only a hang reaches it


class Host:
    """A unit on the volume "v", and one nexus; waits for whatever takes a while."""

    def __init__(self, store: Store) -> None:
        self.store = store
        store.create_volume("v", BLOCKS * BLOCK, block_size=BLOCK)
        volume = store.get("v")
        assert volume is not None
        self.surroundings = FakeSurroundings()
        self.unit = LogicalUnit(volume, Identity(b"v" * 16, "v"), self.surroundings, TABLE)
        self.nexus = nexus()
        self.unit.attach(self.nexus)
        while self.unit.next_attention(self.nexus):
            pass

    def run(self, cdb: bytes, data: bytes = b"") -> Result:
        begun = self.unit.prepare(self.nexus, cdb)
        if isinstance(begun, Result):
            return begun
        if isinstance(begun, Single):
            if begun.request.op == OP_WRITE:
                begun.request.data = data
            submit(begun.device, [begun.request])
            return begun.finish(begun.request)
        return carry_out(begun, data)

    def good(self, cdb: bytes, data: bytes = b"") -> bytes:
        result = self.run(cdb, data)
        assert result.status == GOOD, result
        return joined(result)

    def destage(self) -> None:
        self.store.upkeep.submit(self.store.destage)


def submit(device: BlockDevice, requests: list[Request]) -> None:
    left = threading.Semaphore(0)

    def done(finished: list[Request]) -> None:
        left.release(len(finished))

    device.submit(requests, done)
    for _ in requests:
        assert left.acquire(timeout=WAIT_S)


def carry_out(prepared: Prepared, data: bytes) -> Result:
    task = Task()
    task.begin(prepared, memoryview(data))
    while task.result is None:
        step = task.step
        if isinstance(step, Submit):
            submit(step.device, step.requests)
            task.finished(len(step.requests))
        elif isinstance(step, Await):
            step.begin(lambda: None)  # nobody has anything under way
            task.waited()
        else:
            assert isinstance(step, Work)
            task.worked(step.call())
    return task.result


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    store = Store.open(tmp_path / "data", StoreOptions(journal_limit=JOURNAL_BYTES))
    try:
        yield Host(store)
    finally:
        store.close()


def numbers(length: int, seed: int = 1) -> bytes:
    return (seed.to_bytes(4, "big") + b"".join(at.to_bytes(4, "big") for at in range(length // 4)))[
        :length
    ]


@pytest.mark.parametrize("destaged", [False, True])
def test_what_was_written_is_read_compared_and_replaced(host: Host, destaged: bool) -> None:
    data = numbers(255 * BLOCK)
    host.good(cdbs.write(7, 255, flags=0x08), data)
    if destaged:
        host.destage()
    assert host.good(cdbs.read(7, 255)) == data
    assert host.good(cdbs.read(7, 255, flags=0x08)) == data
    host.good(cdbs.verify(7, 255, check=1), data)
    other = numbers(255 * BLOCK, seed=2)
    host.good(cdbs.compare_and_write(7, 255), data + other)
    result = host.run(cdbs.compare_and_write(7, 255), data + other)
    assert result.status == CHECK_CONDITION
    assert result.sense is not None
    assert result.sense.information == 3
    host.good(cdbs.orwrite(7, 255), data)
    expected = bytes(one | two for one, two in zip(data, other, strict=True))
    assert host.good(cdbs.read(7, 255)) == expected
    host.good(cdbs.write_and_verify(7, 255), other)
    host.good(cdbs.write_atomic(0, 256), numbers(256 * BLOCK, seed=3))
    assert host.good(cdbs.read(0, 256)) == numbers(256 * BLOCK, seed=3)
    host.good(cdbs.synchronize())


def test_blocks_are_unmapped_one_by_one_and_told_so(host: Host) -> None:
    host.good(cdbs.write(0, 257), b"A" * 257 * BLOCK)
    for lba in range(0, 256, 16):
        parameters = cdbs.unmap_list((lba, 1))
        host.good(cdbs.unmap(len(parameters)), parameters)
        status = host.good(cdbs.get_lba_status(lba))
        assert status[8:16] == lba.to_bytes(8, "big")
        assert status[16:21] == (1).to_bytes(4, "big") + b"\x01"
        assert host.good(cdbs.get_lba_status(lba + 1))[20] == 0x00
    assert host.good(cdbs.read(0, 16)) == bytes(BLOCK) + b"A" * 15 * BLOCK


def test_write_same_fills_and_clears(host: Host) -> None:
    block = numbers(BLOCK)
    host.good(cdbs.write_same(1, 1000), block)
    assert host.good(cdbs.read(1, 1000)) == block * 1000
    host.good(cdbs.write_same(1, 500, flags=0x08), bytes(BLOCK))
    host.good(cdbs.write_same(501, 500, flags=0x01))
    assert host.good(cdbs.read(1, 1000)) == bytes(1000 * BLOCK)


@pytest.mark.parametrize("destaged", [False, True])
def test_an_erase_leaves_nothing_mapped(host: Host, destaged: bool) -> None:
    host.good(cdbs.write(0, 256), numbers(MIB))
    host.good(cdbs.write(BLOCKS - 256, 256), numbers(MIB))
    if destaged:
        host.destage()
    host.good(cdbs.sanitize(0x02))
    assert host.good(cdbs.read(0, 256)) == bytes(MIB)
    assert host.good(cdbs.read(BLOCKS - 256, 256)) == bytes(MIB)
    status = host.good(cdbs.get_lba_status(0, 256))
    assert status[:21].hex() == "0000001400000000" + "00" * 8 + BLOCKS.to_bytes(4).hex() + "01"


def test_an_overwrite_leaves_the_pattern(host: Host) -> None:
    parameters = b"\x01\x00" + BLOCK.to_bytes(2, "big") + b"\xaa" * BLOCK
    host.good(cdbs.sanitize(0x01, len(parameters)), parameters)
    for lba in range(0, BLOCKS, 1024):
        assert host.good(cdbs.read(lba, 1024)) == b"\xaa" * 1024 * BLOCK


def test_a_copy_within_the_volume(host: Host) -> None:
    host.surroundings.units[b"n" * 16] = host.unit
    host.good(cdbs.write(0, 2048), numbers(2048 * BLOCK))
    cscd = cdbs.cscd(b"n" * 16, block_length=BLOCK)
    parameters = cdbs.copy_list([cscd], [cdbs.segment(0, 0, 2048, 0, BLOCKS - 2048)])
    host.good(cdbs.extended_copy(len(parameters)), parameters)
    assert host.good(cdbs.read(BLOCKS - 2048, 2048)) == numbers(2048 * BLOCK)
