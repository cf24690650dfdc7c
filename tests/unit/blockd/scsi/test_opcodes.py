"""The command table, and that what is told of it is what works."""

from collections.abc import Iterator

import pytest

from blockd.scsi import sense
from blockd.scsi.cdb import Opcode
from blockd.scsi.opcodes import TABLE, build
from blockd.scsi.task import Prepared, Result, Single
from tests.scsi_rig import Rig, codes

TIMEOUTS = bytes.fromhex("000a 0000 00000000 00000000")


def every() -> Iterator[Opcode]:
    for entry in TABLE.values():
        yield from (entry,) if isinstance(entry, Opcode) else entry.values()


EVERY = sorted(every(), key=lambda opcode: (opcode.code, opcode.action or 0))
IDS = [f"{opcode.code:02x}-{opcode.action}" for opcode in EVERY]


def supported(
    options: int = 0, code: int = 0, action: int = 0, *, rctd: bool = False, allocation: int = 65535
) -> bytes:
    fields = bytes((0xA3, 0x0C, 0x80 * rctd | options, code)) + action.to_bytes(2, "big")
    return fields + allocation.to_bytes(4, "big") + bytes(2)


def functions(*, extended: bool = False) -> bytes:
    return bytes((0xA3, 0x0D, 0x80 * extended, 0, 0, 0, 0, 0, 0, 255, 0, 0))


@pytest.mark.parametrize("opcode", EVERY, ids=IDS)
def test_usage_has_the_command_itself_in_it(opcode: Opcode) -> None:
    assert opcode.usage[0] == opcode.code
    assert len(opcode.usage) == {0: 6, 1: 10, 2: 10, 4: 16, 5: 12}[opcode.code >> 5]
    if opcode.action is not None:
        assert opcode.usage[1] & 0x1F == opcode.action


@pytest.mark.parametrize("opcode", EVERY, ids=IDS)
def test_a_bit_without_a_meaning_is_refused_and_pointed_at(opcode: Opcode) -> None:
    rig = Rig()
    for index in range(1, len(opcode.usage)):
        for bit in range(8):
            in_action = index == 1 and opcode.action is not None and bit < 5
            if opcode.usage[index] >> bit & 1 or in_action:
                continue
            cdb = bytearray(len(opcode.usage))
            cdb[0] = opcode.code
            cdb[1] |= opcode.action or 0
            cdb[index] |= 1 << bit
            what = rig.fault(bytes(cdb))
            assert codes(what) == (sense.ILLEGAL_REQUEST, 0x24, 0)
            assert (what.field, what.bit) == (index, bit)


def test_of_several_wrong_bits_the_first_is_pointed_at() -> None:
    what = Rig().fault(bytes.fromhex("000000014004"))
    assert (what.field, what.bit) == (3, 0)


def test_a_code_that_is_not_in_the_table_is_not_known() -> None:
    rig = Rig()
    for code in set(range(256)) - TABLE.keys():
        assert rig.fault(bytes((code, *bytes(15)))) == sense.INVALID_OPCODE


def test_a_service_action_that_is_not_in_the_table_is_pointed_at() -> None:
    rig = Rig()
    for code, entry in TABLE.items():
        if isinstance(entry, Opcode):
            continue
        for action in set(range(32)) - entry.keys():
            what = rig.fault(bytes((code, action, *bytes(14))))
            assert codes(what) == (sense.ILLEGAL_REQUEST, 0x24, 0)
            assert (what.field, what.bit) == (1, 4)


def test_two_commands_cannot_be_the_same() -> None:
    with pytest.raises(AssertionError):
        build([EVERY[0], EVERY[0]])


# -- REPORT SUPPORTED OPERATION CODES


def test_all_commands_are_told() -> None:
    data = Rig().good(supported())
    assert int.from_bytes(data[:4], "big") == len(data) - 4 == 8 * len(EVERY)
    for opcode, at in zip(EVERY, range(4, len(data), 8), strict=True):
        action = (opcode.action or 0).to_bytes(2, "big")
        flags = 0 if opcode.action is None else 1
        length = bytes((0, len(opcode.usage)))
        expected = bytes((opcode.code, 0)) + action + bytes((0, flags)) + length
        assert data[at : at + 8] == expected


def test_all_commands_are_told_with_timeouts() -> None:
    data = Rig().good(supported(rctd=True))
    assert int.from_bytes(data[:4], "big") == len(data) - 4 == 20 * len(EVERY)
    for at in range(4, len(data), 20):
        assert data[at + 5] & 0x02
        assert data[at + 8 : at + 20] == TIMEOUTS


@pytest.mark.parametrize("opcode", EVERY, ids=IDS)
def test_one_command_is_told_with_its_usage(opcode: Opcode) -> None:
    rig = Rig()
    with_actions = opcode.action is not None
    action = opcode.action or 0
    told = bytes((0, 3, 0, len(opcode.usage))) + opcode.usage
    assert rig.good(supported(2 if with_actions else 1, opcode.code, action)) == told
    assert rig.good(supported(3, opcode.code, action)) == told
    timed = rig.good(supported(3, opcode.code, action, rctd=True))
    assert timed == bytes((0, 0x83)) + told[2:] + TIMEOUTS


@pytest.mark.parametrize("opcode", EVERY, ids=IDS)
def test_a_command_is_to_be_asked_for_with_its_action_if_it_has_one(opcode: Opcode) -> None:
    options = 2 if opcode.action is None else 1
    what = Rig().fault(supported(options, opcode.code, opcode.action or 0))
    assert (codes(what), what.field) == ((sense.ILLEGAL_REQUEST, 0x24, 0), 2)


def test_a_command_that_is_not_there_is_said_not_to_be_there() -> None:
    rig = Rig()
    for cdb in (
        supported(1, 0x1E),
        supported(2, 0xA4, 0x0A),
        supported(2, 0x9E, 0x1F),
        supported(3, 0x9E, 0x1F),
        supported(3, 0x12, 0x01),
    ):
        assert rig.good(cdb) == bytes((0, 1, 0, 0))


@pytest.mark.parametrize("options", [4, 7])
def test_other_questions_are_refused(options: int) -> None:
    what = Rig().fault(supported(options))
    assert (what.field, what.bit) == (2, 2)


def test_the_answer_is_cut_to_the_allocation_length() -> None:
    rig = Rig()
    assert rig.good(supported(allocation=5)) == rig.good(supported())[:5]


# -- REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS


def test_task_management_functions_are_told() -> None:
    rig = Rig()
    assert rig.good(functions()) == bytes.fromhex("d8000000")
    assert rig.good(functions(extended=True)) == bytes.fromhex("d800000c") + bytes(12)


@pytest.mark.parametrize("opcode", EVERY, ids=IDS)
def test_a_command_with_every_meaningful_bit_set_is_answered(opcode: Opcode) -> None:
    rig = Rig()
    assert isinstance(rig.unit.prepare(rig.nexus, opcode.usage), Result | Single | Prepared)
