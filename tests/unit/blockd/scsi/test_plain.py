"""The short way of plain READs and WRITEs: the same answers as the long way, or none."""

import struct

from hypothesis import given
from hypothesis import strategies as st

from blockd.scsi import sense
from blockd.scsi.disk import plain
from blockd.scsi.task import Single
from tests.scsi_rig import BLOCK, BLOCKS, Rig

READ = struct.pack(">BBIBHB6x", 0x28, 0, 8, 0, 4, 0)
WRITE = struct.pack(">BBQIBB", 0x8A, 0, 8, 4, 0, 0)


TEST_UNIT_READY = bytes(6)


def settle(rig: Rig) -> None:
    """One command goes the long way; it finds out that nothing is out of the ordinary."""
    rig.good(TEST_UNIT_READY)


@given(
    code=st.sampled_from([0x28, 0x2A, 0x88, 0x8A, 0x08, 0x2E, 0x00]),
    flags=st.sampled_from([0, 0, 0, 8, 0x10, 0x20, 1]),
    lba=st.one_of(st.integers(0, BLOCKS + 1), st.integers(0, 2**32 - 1)),
    count=st.one_of(st.integers(0, 9), st.integers(0, 2**16 - 1)),
    group=st.sampled_from([0, 0, 0, 1, 0x40]),
    control=st.sampled_from([0, 0, 0, 4]),
    read_only=st.booleans(),
)
def test_plain_is_what_prepare_says_or_nothing(
    code: int, flags: int, lba: int, count: int, group: int, control: int, read_only: bool
) -> None:
    rig = Rig(read_only=read_only)
    settle(rig)
    if code & 0x80:
        cdb = struct.pack(">BBQIBB", code, flags, lba, count, group, control)
    else:
        cdb = struct.pack(">BBIBHB6x", code, flags, lba, group, count, control)
    found = plain(rig.unit, rig.nexus, cdb)
    if found is None:
        return
    whole = rig.unit.prepare(rig.nexus, cdb)
    assert isinstance(whole, Single)
    assert (found.device, found.data_out_length, found.finish) == (
        whole.device,
        whole.data_out_length,
        whole.finish,
    )
    for name in ("op", "offset", "length", "flags", "data"):
        assert getattr(found.request, name) == getattr(whole.request, name)


def test_plain_commands_are_plain() -> None:
    rig = Rig()
    settle(rig)
    for cdb in (READ, WRITE):
        found = plain(rig.unit, rig.nexus, cdb)
        assert found is not None
        assert (found.request.offset, found.request.length) == (8 * BLOCK, 4 * BLOCK)


def test_nothing_is_plain_while_something_is_out_of_the_ordinary() -> None:
    rig = Rig()
    other = rig.join(2)
    settle(rig)

    def is_plain() -> bool:
        return plain(rig.unit, rig.nexus, READ) is not None

    assert is_plain()
    rig.unit.attention(sense.LUNS_CHANGED, to=rig.nexus)
    assert not is_plain()
    assert rig.unit.next_attention(rig.nexus) is not None
    assert is_plain()
    rig.device.size *= 2
    assert not is_plain()
    assert rig.unit.next_attention(rig.nexus) is not None
    assert is_plain()
    assert rig.unit.next_attention(other) is not None
    rig.good(b"\x16" + bytes(5), nexus=other)  # RESERVE (6)
    assert not is_plain()
    rig.good(b"\x17" + bytes(5), nexus=other)
    settle(rig)
    assert is_plain()
