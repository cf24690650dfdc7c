"""TEST UNIT READY, REQUEST SENSE, START STOP UNIT."""

import errno

from blockd.scsi import sense
from blockd.scsi.sense import Sense
from blockd.scsi.task import GOOD
from native import OP_FLUSH
from tests.scsi_rig import Rig, codes

READY = bytes(6)
REQUEST_SENSE = bytes.fromhex("03000000ff00")
REQUEST_SENSE_DESC = bytes.fromhex("03010000ff00")
STOP = bytes.fromhex("1b0000000000")


def test_a_unit_is_ready() -> None:
    assert Rig().good(READY) == b""


def test_request_sense_has_nothing_to_tell() -> None:
    assert Rig().good(REQUEST_SENSE) == sense.NOTHING.encode()


def test_request_sense_takes_the_unit_attention_that_it_tells() -> None:
    rig = Rig()
    rig.unit.attention(sense.MODE_CHANGED)
    assert rig.good(REQUEST_SENSE) == sense.MODE_CHANGED.encode()
    assert rig.run(READY).status == GOOD


def test_request_sense_answers_in_the_format_that_it_is_asked_for() -> None:
    rig = Rig()
    assert rig.good(REQUEST_SENSE_DESC)[0] == 0x72
    rig.unit.modes.change({(0x0A, 0): bytes.fromhex("0a0a0610") + bytes(8)})
    assert rig.unit.modes.descriptor_sense
    assert rig.good(REQUEST_SENSE)[0] == 0x70


def test_request_sense_is_cut_to_the_allocation_length() -> None:
    assert Rig().good(bytes.fromhex("030000000500")) == sense.NOTHING.encode()[:5]


def test_request_sense_tells_of_a_sanitize() -> None:
    rig = Rig()
    rig.run(bytes.fromhex("48820000000000000000"))  # BLOCK ERASE, IMMED
    data = rig.good(REQUEST_SENSE)
    assert (data[2], data[12], data[13]) == (sense.NOT_READY, 0x04, 0x1B)


def test_stopping_makes_everything_durable_and_the_unit_stays_ready() -> None:
    rig = Rig()
    rig.good(STOP)
    assert [request.op for request in rig.device.seen] == [OP_FLUSH]
    assert rig.run(READY).status == GOOD


def test_stopping_fails_when_the_flush_does() -> None:
    rig = Rig()
    rig.device.fail_next(errno.EIO)
    assert rig.fault(STOP).key != sense.NO_SENSE


def test_stopping_without_a_flush_and_starting_do_nothing() -> None:
    rig = Rig()
    rig.good(bytes.fromhex("1b0000000400"))
    rig.good(bytes.fromhex("1b0000000100"))
    assert rig.device.seen == []


def test_there_is_nothing_to_eject_and_no_power_condition() -> None:
    rig = Rig()
    eject = rig.fault(bytes.fromhex("1b0000000200"))
    assert eject == Sense(sense.ILLEGAL_REQUEST, 0x24, 0, field=4, bit=1)
    standby = rig.fault(bytes.fromhex("1b0000003000"))
    assert standby == Sense(sense.ILLEGAL_REQUEST, 0x24, 0, field=4, bit=5)


def test_the_medium_cannot_be_locked() -> None:
    assert codes(Rig().fault(bytes.fromhex("1e0000000100"))) == codes(sense.INVALID_OPCODE)
