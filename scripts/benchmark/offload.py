"""EXTENDED COPY within a store: chunks are shared where both ends are aligned, or bytes move.

Fills a volume, then copies it into another one as a hypervisor does that has copies offloaded: one
command of several segments. The second copy begins one block off, so that nothing can be shared.

    .venv/bin/python scripts/benchmark/offload.py [MiB]
"""

import os
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from blockd.device import BlockDevice  # noqa: E402 - the tests' helpers are found by the line above
from blockd.scsi.opcodes import TABLE  # noqa: E402
from blockd.scsi.task import GOOD, Await, Prepared, Submit, Task, Work  # noqa: E402
from blockd.scsi.unit import Identity, LogicalUnit  # noqa: E402
from blockd.scsi.vpd import naa  # noqa: E402
from native import OP_WRITE, Request  # noqa: E402
from tests import scsi_cdbs as cdbs  # noqa: E402
from tests.scsi_rig import FakeSurroundings, nexus  # noqa: E402
from volume.store import Store  # noqa: E402

BLOCK = 4096
MIB = 1 << 20
SEGMENT = 128 * MIB
WAIT_S = 600.0


def submit(device: BlockDevice, requests: list[Request]) -> None:
    left = threading.Semaphore(0)
    device.submit(requests, lambda finished: left.release(len(finished)))
    for _ in requests:
        if not left.acquire(timeout=WAIT_S):
            raise TimeoutError("the device did not answer")


def carry_out(prepared: Prepared, data: bytes) -> None:
    task = Task()
    task.begin(prepared, memoryview(data))
    while task.result is None:
        step = task.step
        if isinstance(step, Submit):
            submit(step.device, step.requests)
            task.finished(len(step.requests))
        elif isinstance(step, Await):
            step.begin(lambda: None)
            task.waited()
        else:
            assert isinstance(step, Work)
            task.worked(step.call())
    assert task.result.status == GOOD, task.result


def copied(units: list[LogicalUnit], length: int, shift_blocks: int) -> float:
    """Seconds to copy `length` bytes from the first unit to the second."""
    source, target = units
    cscds = [cdbs.cscd(naa(unit.identity.uuid), block_length=BLOCK) for unit in (source, target)]
    count = SEGMENT // BLOCK
    segments = [
        cdbs.segment(0, 1, count, at // BLOCK, at // BLOCK + shift_blocks)
        for at in range(0, length, SEGMENT)
    ]
    parameters = cdbs.copy_list(cscds, segments)
    host = nexus()
    target.attach(host)
    while target.next_attention(host):
        pass
    began = time.perf_counter()
    prepared = target.prepare(host, cdbs.extended_copy(len(parameters)))
    assert isinstance(prepared, Prepared), prepared
    carry_out(prepared, parameters)
    return time.perf_counter() - began


def main() -> None:
    length = int(sys.argv[1] if len(sys.argv) > 1 else 1024) * MIB
    build = ROOT / "build"
    build.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=build) as folder:
        store = Store.open(Path(folder) / "data")
        surroundings = FakeSurroundings()
        units = []
        for name in ("source", "target"):
            store.create_volume(name, length + SEGMENT, block_size=BLOCK)
            volume = store.get(name)
            assert volume is not None
            uuid = bytes.fromhex(volume.info().uuid)
            units.append(LogicalUnit(volume, Identity(uuid, name), surroundings, TABLE))
            surroundings.units[naa(uuid)] = units[-1]
        for at in range(0, length, MIB):
            submit(units[0].device, [Request(OP_WRITE, at, MIB, os.urandom(MIB))])
        store.upkeep.submit(store.destage)
        for title, shift in (("aligned, chunks shared", 0), ("one block off, bytes copied", 1)):
            took = copied(units, length, shift)
            print(f"{length // MIB} MiB {title}: {took:.2f} s, {length / MIB / took:,.0f} MiB/s")
        store.close()


if __name__ == "__main__":
    main()
