"""PDUs byte by byte, against the pictures of RFC 7143 section 11."""

import struct
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockd.iscsi import pdu

LUN = bytes.fromhex("0001020304050607")
ISID = bytes.fromhex("40000137ab01")
NUMBERS = (0x0A0A0A0A, 0x0B0B0B0B, 0x0C0C0C0C)
NUMBERED = {24: "0a0a0a0a", 28: "0b0b0b0b", 32: "0c0c0c0c"}  # StatSN, ExpCmdSN, MaxCmdSN


def laid_out(fields: Mapping[int, str]) -> bytes:
    """A header of zeros, but for these: hexadecimal digits by byte."""
    header = bytearray(48)
    for at, digits in fields.items():
        value = bytes.fromhex(digits)
        header[at : at + len(value)] = value
    return bytes(header)


@pytest.mark.parametrize(
    ("made", "fields"),
    [
        pytest.param(
            pdu.data_in(
                pdu.FINAL | pdu.STATUS | pdu.UNDERFLOW, 0x18, 0x000102, 0x11, *NUMBERS, 5, 6, 7
            ),
            {0: "25 83 00 18", 5: "000102", 16: "00000011", 20: "ffffffff"}
            | NUMBERED
            | {36: "00000005", 40: "00000006", 44: "00000007"},
            id="data-in",
        ),
        pytest.param(
            pdu.scsi_response(pdu.OVERFLOW, 1, 2, 20, 0x11, *NUMBERS, 3, 9),
            {0: "21 84 01 02", 5: "000014", 16: "00000011"}
            | NUMBERED
            | {36: "00000003", 44: "00000009"},
            id="scsi-response",
        ),
        pytest.param(
            pdu.r2t(LUN, 0x11, 0x22, *NUMBERS, 1, 8192, 4096),
            {0: "31 80", 8: LUN.hex(), 16: "00000011", 20: "00000022"}
            | NUMBERED
            | {36: "00000001", 40: "00002000", 44: "00001000"},
            id="r2t",
        ),
        pytest.param(
            pdu.task_management_response(pdu.FUNCTION_REJECTED, 0x11, NUMBERS),
            {0: "22 80 ff", 16: "00000011"} | NUMBERED,
            id="task-management-response",
        ),
        pytest.param(
            pdu.nop_in(4, LUN, 0x11, pdu.RESERVED_TAG, NUMBERS),
            {0: "20 80", 5: "000004", 8: LUN.hex(), 16: "00000011", 20: "ffffffff"} | NUMBERED,
            id="nop-in",
        ),
        pytest.param(
            pdu.text_response(pdu.CONTINUE, 512, bytes(8), 0x11, 0x22, NUMBERS),
            {0: "24 40", 5: "000200", 16: "00000011", 20: "00000022"} | NUMBERED,
            id="text-response",
        ),
        pytest.param(
            pdu.logout_response(1, 0x11, NUMBERS, time2wait=2, time2retain=20),
            {0: "26 80 01", 16: "00000011"} | NUMBERED | {40: "0002 0014"},
            id="logout-response",
        ),
        pytest.param(
            pdu.reject(pdu.REJECT_PROTOCOL_ERROR, NUMBERS),
            {0: "3f 80 04", 5: "000030", 16: "ffffffff"} | NUMBERED,
            id="reject",
        ),
        pytest.param(
            pdu.async_message(pdu.ASYNC_LOGOUT_REQUEST, NUMBERS, parameters=(1, 2, 3)),
            {0: "32 80", 16: "ffffffff"} | NUMBERED | {36: "01 00 0001 0002 0003"},
            id="async",
        ),
        pytest.param(
            pdu.login_response(0x87, ISID, 0x1234, 0x11, NUMBERS, (2, 0x0B), 9),
            {0: "23 87 00 00", 5: "000009", 8: ISID.hex(), 14: "1234", 16: "00000011"}
            | NUMBERED
            | {36: "02 0b"},
            id="login-response",
        ),
    ],
)
def test_what_a_target_sends_is_laid_out_as_in_the_rfc(
    made: bytes, fields: Mapping[int, str]
) -> None:
    assert made.hex(" ", 4) == laid_out(fields).hex(" ", 4)


@pytest.mark.parametrize(
    ("layout", "fields", "read"),
    [
        (
            pdu.SCSI_COMMAND_BHS,
            {0: "01 a1", 4: "02 000200", 8: LUN.hex(), 16: "00000011", 20: "00001000"}
            | {24: "00000007", 28: "00000008", 32: "2a" + "00" * 14 + "0f"},
            (1, 0xA1, 0x02000200, LUN, 0x11, 4096, 7, 8, b"\x2a" + bytes(14) + b"\x0f"),
        ),
        (
            pdu.DATA_OUT_BHS,
            {0: "05 80", 4: "00 000200", 8: LUN.hex(), 16: "00000011", 20: "00000022"}
            | {24: "ffffffff", 28: "00000008", 32: "ffffffff", 36: "00000003", 40: "00002000"},
            (5, 0x80, 512, LUN, 0x11, 0x22, 8, 3, 8192),
        ),
        (
            pdu.COMMON_BHS,
            {0: "40 80", 4: "00 000004", 8: LUN.hex(), 16: "00000011", 20: "00000022"}
            | {24: "00000007", 28: "00000008"},
            (0x40, 0x80, 4, LUN, 0x11, 0x22, 7, 8),
        ),
        (
            pdu.LOGIN_BHS,
            {0: "43 87 01 00", 4: "00 000040", 8: ISID.hex(), 14: "1234", 16: "00000011"}
            | {20: "0001 ffff", 24: "00000007", 28: "00000008"},
            (0x43, 0x87, 1, 0, 64, ISID, 0x1234, 0x11, 1, 7, 8),
        ),
    ],
)
def test_what_an_initiator_sends_is_read_as_in_the_rfc(
    layout: struct.Struct, fields: Mapping[int, str], read: tuple[object, ...]
) -> None:
    assert layout.size == pdu.HEADER_BYTES
    assert layout.unpack(laid_out(fields)) == read


@given(st.integers(0, 255))
def test_stages_and_bits_of_a_login_request(flags: int) -> None:
    bhs = pdu.LOGIN_BHS.pack(0x43, flags, 0, 0, 0, ISID, 7, 0x11, 1, 5, 9)
    request = pdu.LoginRequest.parse(bhs)
    bits = f"{flags:08b}"  # T C . . CSG CSG NSG NSG
    assert (request.transit, request.more) == (bits[0] == "1", bits[1] == "1")
    assert (request.stage, request.next_stage) == (int(bits[4:6], 2), int(bits[6:], 2))
    assert (request.isid, request.tsih, request.itt, request.cid) == (ISID, 7, 0x11, 1)
    assert (request.cmd_sn, request.exp_stat_sn) == (5, 9)


@given(st.integers(0, pdu.MAX_DATA_SEGMENT))
def test_padding_goes_up_to_the_next_word(length: int) -> None:
    assert pdu.padded(length) % 4 == 0
    assert 0 <= pdu.padded(length) - length < 4
