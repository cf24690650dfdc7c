"""What every command goes through before its own work begins, and unit attentions."""

import pytest

from blockd.scsi import sense
from blockd.scsi.cdb import Opcode
from blockd.scsi.nexus import Nexus
from blockd.scsi.task import CHECK_CONDITION, GOOD, RESERVATION_CONFLICT, Result
from blockd.scsi.unit import MAX_ATTENTIONS, LogicalUnit, SpaceFacts
from tests import scsi_cdbs
from tests.scsi_rig import BLOCK, Rig, codes, nexus

READY = bytes(6)
RESERVE_6 = bytes.fromhex("160000000000")
ERASE = bytes.fromhex("48820000000000000000")  # SANITIZE, BLOCK ERASE, IMMED


# -- the order of checks


def test_an_unknown_command_does_not_take_the_unit_attention() -> None:
    rig = Rig()
    rig.unit.attention(sense.MODE_CHANGED)
    assert rig.fault(b"\xff" + bytes(15)) == sense.INVALID_OPCODE
    assert rig.fault(READY) == sense.MODE_CHANGED


def test_a_unit_attention_comes_before_a_reservation_and_a_wrong_field() -> None:
    rig = Rig()
    other = rig.join(2)
    rig.good(RESERVE_6, nexus=other)
    rig.unit.attention(sense.MODE_CHANGED, to=rig.nexus)
    wrong = bytes.fromhex("280000000000000001c0")
    assert rig.fault(wrong) == sense.MODE_CHANGED
    assert rig.run(wrong).status == RESERVATION_CONFLICT


def test_a_sanitize_comes_before_a_reservation() -> None:
    rig = Rig()
    rig.good(RESERVE_6)
    rig.good(ERASE)
    other = rig.join(2)
    assert codes(rig.fault(scsi_cdbs.read(0, 1), nexus=other)) == (sense.NOT_READY, 0x04, 0x1B)


def test_a_wrong_field_comes_before_write_protection() -> None:
    rig = Rig(read_only=True)
    assert codes(rig.fault(bytes.fromhex("2a0000000000000001c0")))[1:] == (0x24, 0)
    assert rig.fault(scsi_cdbs.write(0, 1), bytes(BLOCK)) == sense.WRITE_PROTECTED


def test_a_read_only_unit_can_be_read() -> None:
    assert Rig(read_only=True).good(scsi_cdbs.read(0, 1)) == bytes(BLOCK)


def test_write_protection_comes_before_blocks_that_are_not_there() -> None:
    rig = Rig(read_only=True)
    assert rig.fault(scsi_cdbs.write(1 << 30, 1), bytes(BLOCK)) == sense.WRITE_PROTECTED


@pytest.mark.parametrize("length", [6, 10, 16, 260, 300])
def test_a_command_may_be_longer_or_shorter_than_it_has_to_be(length: int) -> None:
    """Transports fill up to 16 bytes, or cut what is zero."""
    cdb = scsi_cdbs.read(0, 0).ljust(length, b"\0")[:length]
    assert Rig().run(cdb).status == GOOD


def test_a_long_command_without_a_service_action_of_ours_is_refused() -> None:
    assert codes(Rig().fault(b"\x7f" + bytes(31)))[1:] == (0x20, 0)


def test_service_actions_of_long_commands_are_in_their_own_place() -> None:
    def prepare(_unit: LogicalUnit, _nexus: Nexus, cdb: bytes) -> Result:
        return Result(data=(cdb[8:10],))

    usage = b"\x7f" + bytes(6) + b"\x18\x12\x34" + bytes(22)
    opcode = Opcode(0x7F, 0x1234, "TEST (32)", usage, prepare)
    rig = Rig(opcodes={0x7F: {0x1234: opcode}})
    assert rig.good(usage) == b"\x12\x34"
    what = rig.fault(usage[:9] + b"\x35" + bytes(22))
    assert (codes(what), what.field) == ((sense.ILLEGAL_REQUEST, 0x24, 0), 8)


# -- unit attentions


def test_unit_attentions_are_told_one_after_the_other() -> None:
    rig = Rig()
    rig.unit.attention(sense.MODE_CHANGED)
    rig.unit.attention(sense.LUNS_CHANGED)
    assert [rig.fault(READY), rig.fault(READY)] == [sense.MODE_CHANGED, sense.LUNS_CHANGED]
    assert rig.good(READY) == b""


def test_a_unit_attention_that_is_pending_is_not_told_twice() -> None:
    rig = Rig()
    rig.unit.attention(sense.MODE_CHANGED)
    rig.unit.attention(sense.MODE_CHANGED)
    assert rig.fault(READY) == sense.MODE_CHANGED
    assert rig.good(READY) == b""


def test_unit_attentions_are_for_all_for_one_or_for_all_but_one() -> None:
    rig = Rig()
    other = rig.join(2)
    rig.unit.attention(sense.MODE_CHANGED, to=other)
    rig.unit.attention(sense.LUNS_CHANGED, but=other)
    assert rig.fault(READY, nexus=other) == sense.MODE_CHANGED
    assert rig.fault(READY) == sense.LUNS_CHANGED
    assert (rig.good(READY), rig.good(READY, nexus=other)) == (b"", b"")


def test_a_new_nexus_has_none() -> None:
    rig = Rig()
    rig.unit.attention(sense.MODE_CHANGED)
    assert rig.good(READY, nexus=rig.join(2)) == b""


def test_pending_unit_attentions_are_bounded() -> None:
    rig = Rig()
    for ascq in range(100):
        rig.unit.attention(sense.Sense(sense.UNIT_ATTENTION, 0x2A, ascq))
    told = 0
    while rig.run(READY).status == CHECK_CONDITION:
        told += 1
    assert told == MAX_ATTENTIONS


def test_a_nexus_that_is_not_attached_gets_none() -> None:
    rig = Rig()
    rig.unit.attention(sense.MODE_CHANGED)
    assert rig.unit.next_attention(nexus(2)) is None


def test_attaching_twice_keeps_what_is_pending() -> None:
    rig = Rig()
    rig.unit.attention(sense.MODE_CHANGED)
    rig.unit.attach(rig.nexus)
    assert rig.fault(READY) == sense.MODE_CHANGED


def test_everybody_is_told_once_that_the_unit_has_grown() -> None:
    rig = Rig()
    other = rig.join(2)
    rig.device.size *= 2
    assert rig.fault(READY) == sense.CAPACITY_CHANGED
    assert rig.fault(READY, nexus=other) == sense.CAPACITY_CHANGED
    assert rig.good(READY) == b""
    assert rig.unit.block_count == rig.device.size // BLOCK


def test_everybody_is_told_each_time_that_space_runs_short() -> None:
    rig = Rig()
    plenty = rig.surroundings.facts
    short = SpaceFacts(1, 1, short=True)
    for _ in range(2):
        rig.surroundings.facts = short
        assert rig.fault(READY) == sense.THIN_THRESHOLD
        assert rig.good(READY) == b""
        rig.surroundings.facts = plenty
        assert rig.good(READY) == b""


# -- nexuses that go, resets


def test_a_nexus_that_goes_lets_go_of_its_reservation() -> None:
    rig = Rig()
    other = rig.join(2)
    rig.good(RESERVE_6, nexus=other)
    assert rig.run(scsi_cdbs.read(0, 1)).status == RESERVATION_CONFLICT
    rig.target.detach(other)
    assert rig.run(scsi_cdbs.read(0, 1)).status == GOOD


def test_a_nexus_that_goes_leaves_the_reservation_of_another() -> None:
    rig = Rig()
    other = rig.join(2)
    rig.good(RESERVE_6)
    rig.target.detach(other)
    assert rig.unit.reserved_by is rig.nexus


def test_a_reset_releases_and_everybody_is_told() -> None:
    rig = Rig()
    other = rig.join(2)
    rig.good(RESERVE_6, nexus=other)
    rig.unit.reset()
    assert rig.fault(READY) == sense.DEVICE_RESET
    assert rig.fault(READY, nexus=other) == sense.DEVICE_RESET
    assert rig.run(scsi_cdbs.read(0, 1)).status == GOOD


def test_a_reset_takes_back_what_was_to_be_told_before() -> None:
    rig = Rig()
    other = rig.join(2)
    rig.unit.attention(sense.MODE_CHANGED)
    rig.unit.reset(but=other)
    assert rig.fault(READY) == sense.DEVICE_RESET
    assert rig.good(READY) == b""
    assert rig.fault(READY, nexus=other) == sense.MODE_CHANGED
