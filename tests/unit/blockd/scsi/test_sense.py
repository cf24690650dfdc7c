"""Sense data in both formats, bit by bit."""

import pytest

from blockd.scsi import sense
from blockd.scsi.sense import Sense, invalid_field


def test_fixed_format_has_key_and_code_and_nothing_else() -> None:
    assert sense.WRITE_PROTECTED.encode() == bytes.fromhex(
        "7000 07 00000000 0a 00000000 27 00 00 000000"
    )


def test_fixed_format_has_the_information_and_says_that_it_is_valid() -> None:
    what = Sense(sense.MISCOMPARE, 0x1D, 0, information=0x12345678)
    assert what.encode()[:7] == bytes.fromhex("f0 00 0e 12345678")


def test_information_that_does_not_fit_is_left_out_of_the_fixed_format() -> None:
    what = Sense(sense.MEDIUM_ERROR, 0x11, 0, information=1 << 32)
    assert what.encode()[:7] == bytes.fromhex("70 00 03 00000000")


def test_descriptor_format_has_all_of_the_information() -> None:
    what = Sense(sense.MEDIUM_ERROR, 0x11, 0, information=1 << 32)
    assert what.encode(descriptor=True) == bytes.fromhex(
        "72 03 11 00 000000 0c  00 0a 80 00 0000000100000000"
    )


@pytest.mark.parametrize(
    ("error", "pointer"),
    [
        (invalid_field(2, 5), "cd0002"),
        (invalid_field(2), "c00002"),
        (invalid_field(300, 0, in_cdb=False), "88012c"),
    ],
)
def test_a_wrong_field_is_pointed_at(error: sense.CheckCondition, pointer: str) -> None:
    assert error.sense.encode()[15:] == bytes.fromhex(pointer)
    assert error.sense.encode(descriptor=True)[8:] == bytes.fromhex(f"02060000 {pointer} 00")


def test_a_wrong_field_of_a_parameter_list_has_a_code_of_its_own() -> None:
    assert (invalid_field(2).sense.asc, invalid_field(2, in_cdb=False).sense.asc) == (0x24, 0x26)


def test_progress_is_told_in_both_formats() -> None:
    what = Sense(sense.NOT_READY, 0x04, 0x1B, progress=0x1234)
    assert what.encode()[15:] == bytes.fromhex("801234")
    assert what.encode(descriptor=True)[8:] == bytes.fromhex("02060000 801234 00")


def test_what_a_command_adds_is_told_in_both_formats() -> None:
    what = Sense(sense.COPY_ABORTED, 0x0D, 1, information=7, command_specific=9)
    assert what.encode()[8:12] == bytes.fromhex("00000009")
    assert what.encode(descriptor=True)[8:] == bytes.fromhex(
        "000a8000 0000000000000007 010a0000 0000000000000009"
    )


def test_an_error_shows_what_it_is_about() -> None:
    assert str(invalid_field(1)) == "sense 5/2400"
