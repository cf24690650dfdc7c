"""Clients of a volume that other nodes have as well are told when W of them have what was done."""

import errno

import pytest

from native import (
    FLAG_FUA,
    OP_BLOCK_STATUS,
    OP_FLUSH,
    OP_READ,
    OP_UNMAP,
    OP_WRITE,
    OP_WRITE_ZEROES,
    Request,
)
from tests.sim.store_rig import StoreRig
from volume.gate import Gate
from volume.replica import Replica

VOLUME = b"v" * 16
SIZE = 64 << 10
BLOCK = 512


class Served:
    """A volume whose primary is here, and what its clients have heard."""

    def __init__(self, *, strict: bool = False, lease: bool = True) -> None:
        self.rig = StoreRig()
        self.replica: Replica = self.rig.store.replicas.create(VOLUME, "vm1", SIZE, 512, 4096, 1)
        self.rig.tend()
        self.finished: list[Request] = []
        self.replica.serve(1, strict=strict, timeout_s=30.0)
        if lease:
            self.gate.lease(1 << 62)

    @property
    def gate(self) -> Gate:
        return self.replica.gate

    def submit(self, op: int, block: int = 0, count: int = 1, flags: int = 0) -> Request:
        data = b"x" * (count * BLOCK) if op == OP_WRITE else None
        length = 0 if op == OP_FLUSH else count * BLOCK
        request = Request(op, block * BLOCK, length, data, flags)
        self.replica.volume.submit([request], self.finished.extend)
        return request

    def is_told(self, request: Request) -> bool:
        return request in self.finished


@pytest.mark.parametrize("op", [OP_WRITE, OP_UNMAP, OP_WRITE_ZEROES])
def test_a_write_is_told_when_w_have_it(op: int) -> None:
    served = Served()
    first, second = served.submit(op), served.submit(op, 5)
    assert served.finished == []
    assert served.gate.waiting == 2
    served.gate.advance(1, 0)
    assert served.finished == [first]
    served.gate.advance(2, 0)
    assert served.finished == [first, second]
    assert not first.error


def test_a_read_waits_for_what_it_saw_and_no_longer() -> None:
    served = Served()
    served.submit(OP_WRITE, 0)
    served.submit(OP_WRITE, 10)
    beside, of_first, of_both = (
        served.submit(OP_READ, 3),
        served.submit(OP_READ, 0),
        served.submit(OP_READ, 0, 16),
    )
    assert served.finished == [beside]
    served.gate.advance(1, 0)
    assert served.is_told(of_first)
    assert not served.is_told(of_both)
    served.gate.advance(2, 0)
    assert served.is_told(of_both)
    assert of_both.data == b"x" * BLOCK + bytes(9 * BLOCK) + b"x" * BLOCK + bytes(5 * BLOCK)


def test_what_is_allocated_waits_as_a_read_does() -> None:
    served = Served()
    served.submit(OP_WRITE, 0)
    asked = served.submit(OP_BLOCK_STATUS, 0, 4)
    assert not served.is_told(asked)
    served.gate.advance(1, 0)
    assert served.is_told(asked)


def test_a_flush_waits_for_the_disks_of_w() -> None:
    served = Served()
    served.submit(OP_WRITE)
    flush = served.submit(OP_FLUSH)
    assert served.gate.wanted == 1
    served.gate.advance(1, 0)
    assert not served.is_told(flush)
    served.gate.advance(1, 1)
    assert served.is_told(flush)
    assert served.submit(OP_FLUSH) in served.finished


def test_a_fua_write_waits_for_the_disks_of_w() -> None:
    served = Served()
    write = served.submit(OP_WRITE, flags=FLAG_FUA)
    served.gate.advance(1, 0)
    assert not served.is_told(write)
    served.gate.advance(1, 1)
    assert served.is_told(write)


def test_in_strict_every_write_waits_for_the_disks_of_w() -> None:
    served = Served(strict=True)
    write = served.submit(OP_WRITE)
    served.gate.advance(1, 0)
    assert not served.is_told(write)
    served.gate.advance(1, 1)
    assert served.is_told(write)


def test_no_read_is_told_while_the_lease_has_run_out() -> None:
    served = Served(lease=False)
    read = served.submit(OP_READ)
    assert not served.is_told(read)
    served.gate.lease(1 << 62)
    assert served.is_told(read)
    served.gate.lease(0)
    read = served.submit(OP_READ)
    write = served.submit(OP_WRITE)
    served.gate.advance(1, 0)
    assert served.is_told(write)  # W members have said so
    assert not served.is_told(read)


def test_who_waits_too_long_gets_eio() -> None:
    served = Served()
    write = served.submit(OP_WRITE)
    served.rig.clock.advance(29)
    served.gate.expire()
    late = served.submit(OP_WRITE)
    served.rig.clock.advance(2)
    served.gate.expire()
    assert served.finished == [write]
    assert write.error == errno.EIO
    served.gate.advance(2, 0)
    assert served.is_told(late)
    assert not late.error


def test_who_waits_when_it_shuts_and_who_comes_gets_eshutdown() -> None:
    served = Served()
    waiting = [served.submit(OP_WRITE), served.submit(OP_READ), served.submit(OP_FLUSH)]
    served.replica.shut()
    later = [served.submit(OP_WRITE), served.submit(OP_READ), served.submit(OP_FLUSH)]
    assert served.finished == [*waiting, *later]
    assert {each.error for each in served.finished} == {errno.ESHUTDOWN}
    assert served.replica.held[0] == 1
    served.gate.advance(9, 9)
    assert len(served.finished) == 6


def test_volumes_of_one_node_have_none() -> None:
    rig = StoreRig()
    rig.store.create_volume("vol", SIZE)
    rig.tend()
    volume = rig.volume("vol")
    assert volume.gate is None
    for call in (volume.core.gate_state, volume.core.gate_shut, volume.core.gate_expire):
        with pytest.raises(FileNotFoundError):
            call()
    assert rig.write("vol", 0, b"x" * 512) == 0
