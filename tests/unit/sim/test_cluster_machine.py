"""A simulated machine: what its crashes leave of a store."""

import pytest

from native import OP_FLUSH, OP_WRITE, Request
from tests.sim.cluster.machine import Machine
from tests.sim.cluster.timeline import NodeClock, Timeline
from tests.sim.simdisk import PowerCut
from tests.sim.store_rig import KIB, read_device
from volume.disk import SECTOR_SIZE
from volume.store import Store

SIZE = 32 * KIB


def booted(seed: str) -> tuple[Machine, Store]:
    machine = Machine(NodeClock(Timeline(), seed), seed)
    store = machine.boot()
    store.create_volume("v", SIZE, block_size=512, chunk_size=4 * KIB)
    return machine, store


def write(store: Store, sector: int, byte: bytes, *, flush: bool = False) -> None:
    volume = store.get("v")
    assert volume is not None
    data = byte * SECTOR_SIZE
    batch = [Request(OP_WRITE, sector * SECTOR_SIZE, SECTOR_SIZE, data)]
    if flush:
        batch.append(Request(OP_FLUSH, 0, 0))
    finished: list[Request] = []
    volume.submit(batch, finished.extend)
    assert [request.error for request in finished] == [0] * len(batch)


def shown(store: Store) -> str:
    """The first byte of each of the first sectors."""
    volume = store.get("v")
    assert volume is not None
    image = read_device(volume, 0, SIZE)
    return "".join(chr(image[at] or 46) for at in range(0, 6 * SECTOR_SIZE, SECTOR_SIZE))


def test_a_kill_leaves_all_that_was_written() -> None:
    machine, store = booted("kill")
    for sector in range(4):
        write(store, sector, b"x")
    machine.kill()
    assert shown(machine.boot()) == "xxxx.."


def test_a_power_cut_leaves_what_was_flushed_and_some_first_part_of_the_rest() -> None:
    left = set()
    for seed in range(30):
        machine, store = booted(str(seed))
        write(store, 0, b"x", flush=True)
        for sector in range(1, 4):
            write(store, sector, b"x")
        machine.cut()
        left.add(shown(machine.boot()))
    assert left <= {"x.....", "xx....", "xxx...", "xxxx.."}
    assert len(left) > 2


def test_the_power_may_go_in_the_middle_of_a_start() -> None:
    machine, store = booted("start")
    write(store, 0, b"x", flush=True)
    machine.cut()
    cuts = 0
    for operation in range(1, 40):
        try:
            store = machine.boot(crash_at=operation)
        except PowerCut:
            cuts += 1
            machine.cut()
            continue
        break
    assert cuts > 2
    assert shown(store) == "x....."


def test_a_new_disk_is_empty() -> None:
    machine, _ = booted("wipe")
    machine.wipe()
    assert machine.boot().names() == []


def test_a_machine_without_power_does_nothing() -> None:
    machine, store = booted("off")
    machine.cut()
    with pytest.raises(PowerCut):
        store.create_volume("w", SIZE)
