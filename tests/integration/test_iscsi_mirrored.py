"""iSCSI sessions on a volume that other nodes have as well: answered when W of them have it."""

import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from blockd.scsi.task import CHECK_CONDITION, GOOD
from tests.iscsi_loop_rig import BLOCK, Server, Wire, pattern, read_10, serving, write_10
from tests.served import TIMEOUT_S

LONG = 64 << 10
SYNCHRONIZE_CACHE = struct.pack(">BBIBHB", 0x35, 0, 0, 0, 0, 0)
FUA = 8


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serving(tmp_path / "store", mirrored=True) as server:
        server.replica.serve(1, timeout_s=TIMEOUT_S)
        server.replica.reads_until(1 << 62)
        yield server


@pytest.fixture(params=["loop", "engine"])
def wire(server: Server, request: pytest.FixtureRequest) -> Iterator[Wire]:
    """A session that the request loop serves, and one that only Python does."""
    made = server.in_loop() if request.param == "loop" else server.log_in()
    with made:
        yield made


def waits(server: Server, count: int) -> None:
    server.until(lambda: server.replica.gate.waiting == count)


def test_a_write_is_answered_when_w_have_it(server: Server, wire: Wire) -> None:
    data = pattern(BLOCK)
    itt = wire.submit(write_10(0, BLOCK), data=data, immediate=BLOCK)
    waits(server, 1)
    server.replica.allow(1, 0)
    assert wire.answer(itt).status == GOOD
    assert server.content(0, BLOCK) == data


def test_a_write_whose_data_was_asked_for_waits_as_well(server: Server, wire: Wire) -> None:
    data = pattern(LONG)
    itt = wire.submit(write_10(0, LONG), data=data)
    for each in wire.take():
        wire._took(each)  # the R2T
    waits(server, 1)
    server.replica.allow(server.replica.held[0], 0)
    assert wire.answer(itt).status == GOOD
    assert server.content(0, LONG) == data


def test_a_read_waits_for_what_it_saw(server: Server, wire: Wire) -> None:
    data = pattern(BLOCK)
    written = wire.submit(write_10(0, BLOCK), data=data, immediate=BLOCK)
    waits(server, 1)
    other = wire.submit(read_10(8 * BLOCK, BLOCK), read=BLOCK)
    assert wire.answer(other).status == GOOD
    seen = wire.submit(read_10(0, BLOCK), read=BLOCK)
    waits(server, 2)
    server.replica.allow(1, 0)
    assert wire.answer(written).status == GOOD
    assert wire.answer(seen).data == data


@pytest.mark.parametrize("cdb", [SYNCHRONIZE_CACHE, write_10(BLOCK, BLOCK, FUA)])
def test_durability_waits_for_the_disks_of_w(server: Server, wire: Wire, cdb: bytes) -> None:
    itt = wire.submit(write_10(0, BLOCK), data=pattern(BLOCK), immediate=BLOCK)
    waits(server, 1)
    server.replica.allow(1, 0)
    assert wire.answer(itt).status == GOOD
    data = pattern(BLOCK) if cdb[0] == 0x2A else b""
    itt = wire.submit(cdb, data=data, immediate=len(data))
    waits(server, 1)
    seq = server.replica.held[0]
    server.replica.allow(seq, 0)
    waits(server, 1)
    server.replica.allow(seq, seq)
    assert wire.answer(itt).status == GOOD


def test_nothing_is_good_once_another_node_takes_over(server: Server, wire: Wire) -> None:
    itts = [
        wire.submit(write_10(0, BLOCK), data=pattern(BLOCK), immediate=BLOCK),
        wire.submit(read_10(0, BLOCK), read=BLOCK),
    ]
    waits(server, 2)
    server.replica.promise(2)
    assert [wire.answer(itt).status for itt in itts] == [CHECK_CONDITION] * 2
    later = wire.submit(write_10(0, BLOCK), data=pattern(BLOCK), immediate=BLOCK)
    assert wire.answer(later).status == CHECK_CONDITION
    assert server.replica.held == (1, 1)
