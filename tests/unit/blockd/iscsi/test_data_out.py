"""Data that initiators send for commands: what becomes of it when it is not what was agreed on.

Nothing is written in part; a command that has failed is answered once no more data for it can come
(RFC 7143 7.8, 11.17.1), and the session goes on.
"""

import random
import struct
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blockd.iscsi import pdu
from blockd.scsi.task import CHECK_CONDITION, GOOD
from tests.iscsi_initiator import Initiator, Pdu, World

BLOCK = 512
TEST_UNIT_READY = bytes(6)
UNEXPECTED = (0xB, 0x0C, 0x0C)
INCORRECT = (0xB, 0x0C, 0x0D)
DAMAGED = (0xB, 0x47, 0x05)
UNSOLICITED = {"InitialR2T": "No", "FirstBurstLength": "2048", "ImmediateData": "No"}


def write_10(lba: int, count: int) -> bytes:
    return struct.pack(">BBIBHB", 0x2A, 0, lba, 0, count, 0)


def damaged(sent: bytes) -> bytes:
    made = bytearray(sent)
    made[-5] ^= 1  # in front of the digest
    return bytes(made)


def announced(count: int = 4, **keys: str) -> Initiator:
    """An initiator with a WRITE of `count` blocks whose data comes unasked."""
    host = World().logged_in(**{**UNSOLICITED, **keys})
    host.feed(host.command(write_10(0, count), write=count * BLOCK, final=False))
    assert host.take() == []
    return host


def failed_with(host: Initiator, sense: tuple[int, int, int]) -> None:
    """It is answered now, nothing was written, and the session goes on."""
    response = host.one()
    assert (response.opcode, response.bhs[3]) == (pdu.SCSI_RESPONSE, CHECK_CONDITION)
    assert response.sense == sense
    assert (response.flags, response.residual) == (pdu.FINAL | pdu.UNDERFLOW, 4 * BLOCK)
    assert host.world.rig.device.seen == []
    assert host.ask(TEST_UNIT_READY)[0].bhs[3] == GOOD
    assert host.closed is None


def unasked(host: Initiator, offset: int, length: int, data_sn: int, *, final: bool) -> bytes:
    tag = pdu.RESERVED_TAG
    return host.data_out(host.itt, tag, offset, bytes(length), data_sn=data_sn, final=final)


def test_numbers_of_data_in_the_wrong_order() -> None:
    host = announced()
    host.feed(unasked(host, 0, 1024, 1, final=False))
    assert host.take() == []  # more is to come
    host.feed(unasked(host, 1024, 1024, 0, final=True))
    failed_with(host, INCORRECT)


def test_the_same_number_twice() -> None:
    host = announced()
    host.feed(unasked(host, 0, 1024, 0, final=False))
    host.feed(unasked(host, 1024, 1024, 0, final=True))
    failed_with(host, INCORRECT)


def test_a_piece_that_is_missing() -> None:
    host = announced()
    host.feed(unasked(host, 0, 512, 0, final=False))
    host.feed(unasked(host, 1024, 1024, 1, final=True))
    failed_with(host, INCORRECT)


def test_more_than_the_first_burst_needs_no_end() -> None:
    host = announced()
    host.feed(unasked(host, 0, 2560, 0, final=False))
    failed_with(host, UNEXPECTED)


def test_more_unasked_data_than_was_announced() -> None:
    host = announced()
    host.feed(unasked(host, 0, 2048, 0, final=True))
    assert host.one().bhs[3] == GOOD
    host.feed(unasked(host, 2048, 512, 1, final=True))
    assert host.take() == []


def test_unasked_data_where_all_has_to_be_asked_for() -> None:
    host = announced(InitialR2T="Yes")
    host.feed(unasked(host, 0, 1024, 0, final=False))
    assert host.take() == []
    host.feed(unasked(host, 1024, 1024, 1, final=True))
    failed_with(host, UNEXPECTED)


def test_a_command_that_is_refused_waits_for_the_data_that_is_under_way() -> None:
    host = World().logged_in(**UNSOLICITED)
    host.feed(host.command(write_10(1 << 30, 4), write=4 * BLOCK, final=False))
    host.feed(unasked(host, 0, 1024, 0, final=False))
    assert host.take() == []
    host.feed(unasked(host, 1024, 1024, 1, final=True))
    failed_with(host, (5, 0x21, 0))


def test_damaged_data_ends_the_command_behind_the_last_of_it() -> None:
    host = announced(DataDigest="CRC32C")
    host.feed(damaged(unasked(host, 0, 1024, 0, final=False)))
    rejected = host.one()
    assert (rejected.opcode, rejected.bhs[2]) == (pdu.REJECT, pdu.REJECT_DATA_DIGEST)
    host.feed(unasked(host, 1024, 1024, 1, final=True))
    failed_with(host, DAMAGED)


def test_damaged_immediate_data_waits_for_what_follows_it() -> None:
    host = World().logged_in(
        InitialR2T="No", FirstBurstLength="2048", ImmediateData="Yes", DataDigest="CRC32C"
    )
    sent = host.command(write_10(0, 4), write=4 * BLOCK, data=bytes(1024), final=False)
    host.feed(damaged(sent))
    assert host.one().opcode == pdu.REJECT
    host.feed(unasked(host, 1024, 1024, 0, final=True))
    failed_with(host, DAMAGED)


def asked(host: Initiator, **keys: str) -> list[Pdu]:
    return host.ask(write_10(0, 4), write=4 * BLOCK)


def test_a_failed_command_waits_for_all_that_was_asked_for() -> None:
    host = World().logged_in(ImmediateData="No", MaxBurstLength="512", MaxOutstandingR2T="2")
    first, second = asked(host)
    host.feed(host.data_out(first.itt, first.ttt, 0, bytes(256)))  # not all of the burst
    assert host.take() == []
    host.feed(host.data_out(first.itt, second.ttt, 512, bytes(512)))
    failed_with(host, INCORRECT)


def test_an_unknown_tag_stands_for_the_oldest() -> None:
    host = World().logged_in(ImmediateData="No", MaxBurstLength="1024")
    (r2t,) = asked(host)
    host.feed(host.data_out(r2t.itt, r2t.ttt + 7, 0, bytes(512), final=False))
    assert host.take() == []
    host.feed(host.data_out(r2t.itt, r2t.ttt + 7, 512, bytes(512), data_sn=1))
    failed_with(host, UNEXPECTED)


def test_a_failed_command_can_be_aborted() -> None:
    host = announced()
    host.feed(unasked(host, 0, 512, 5, final=False))
    itt = host.itt
    host.feed(host.other(pdu.TASK_MANAGEMENT, pdu.FINAL | pdu.ABORT_TASK, tag=itt))
    response = host.one()
    assert (response.opcode, response.bhs[2]) == (pdu.TASK_MANAGEMENT_RESPONSE, 0)
    host.feed(host.data_out(itt, pdu.RESERVED_TAG, 512, bytes(1536), data_sn=1))
    assert host.take() == []


def test_a_connection_that_goes_in_the_middle_writes_nothing() -> None:
    host = announced()
    host.feed(unasked(host, 0, 1024, 0, final=False))
    host.feed(unasked(host, 1024, 1024, 1, final=True)[:700])
    host.connection.eof()
    host.run()
    assert host.world.rig.device.seen == []
    assert host.connection.idle


@dataclass(frozen=True)
class Piece:
    """One Data-Out PDU as it should be, and how it is wrong."""

    offset: int
    length: int
    data_sn: int
    final: bool


KINDS = st.sampled_from(["", "", "", "", "offset", "data_sn", "final", "short", "damage", "drop"])


@settings(max_examples=60)
@given(st.data(), st.integers(1, 12), st.sampled_from([512, 1024, 4096]), st.integers(1, 3))
def test_a_write_is_whole_or_not_at_all(
    data: st.DataObject, count: int, burst: int, r2ts: int
) -> None:
    """Whatever goes wrong with its data: GOOD means that all of it is there, anything else that
    nothing is."""
    host = World().logged_in(
        ImmediateData="No",
        MaxBurstLength=str(burst),
        MaxOutstandingR2T=str(r2ts),
        DataDigest="CRC32C",
    )
    content = random.Random(count).randbytes(count * BLOCK)
    answers = host.ask(write_10(0, count), write=count * BLOCK)
    device = host.world.rig.device
    itt, right, over = host.itt, True, False
    while answers and not over:
        answer = answers.pop(0)
        if answer.opcode == pdu.SCSI_RESPONSE:
            over = True
            assert (answer.bhs[3] == GOOD) == right
            assert answer.bhs[3] == GOOD or answer.sense[0] == 0xB
        if answer.opcode != pdu.R2T:
            continue
        start, length = answer.u32(40), answer.u32(44)
        at, data_sn = 0, 0
        while at < length:
            size = min(length - at, data.draw(st.sampled_from([256, 512, 1024])))
            sent, wrong = _piece(host, answer, content, start + at, size, data_sn, data)
            right = right and not wrong
            host.feed(sent)
            at, data_sn = at + size, data_sn + 1
        answers += host.take()
    assert over or not right
    expected = content if over and right else bytes(len(content))
    assert device.read(0, len(content)) == expected
    assert host.ask(TEST_UNIT_READY)[0].bhs[3] == GOOD
    assert itt != host.itt


def _piece(
    host: Initiator,
    r2t: Pdu,
    content: bytes,
    offset: int,
    size: int,
    data_sn: int,
    data: st.DataObject,
) -> tuple[bytes, bool]:
    """A Data-Out PDU as an R2T wants it, or not; whether it is wrong."""
    final = offset + size == r2t.u32(40) + r2t.u32(44)
    kind = data.draw(KINDS)
    piece = content[offset : offset + size]
    if kind == "drop":
        return b"", True
    if kind == "short":
        piece = piece[:-4]
    sent = host.data_out(
        r2t.itt,
        r2t.ttt,
        offset + 4 * (kind == "offset"),
        piece,
        data_sn=data_sn + (kind == "data_sn"),
        final=final != (kind == "final"),
    )
    return (damaged(sent) if kind == "damage" else sent), kind != ""


@pytest.mark.parametrize("digests", ["None", "CRC32C"])
@settings(max_examples=20)
@given(piece=st.integers(1, 900), seed=st.integers(0, 1000))
def test_any_split_of_a_write_by_pieces_has_the_same_answers(
    digests: str, piece: int, seed: int
) -> None:
    generator = random.Random(seed)
    keys = {"HeaderDigest": digests, "DataDigest": digests, "InitialR2T": "No"}
    content = generator.randbytes(6 * BLOCK)

    def conversation(host: Initiator, split: int) -> list[tuple[bytes, bytes]]:
        sent = host.command(write_10(3, 6), write=6 * BLOCK, data=content[:100], final=False)
        itt = host.itt
        sent += host.data_out(itt, pdu.RESERVED_TAG, 100, content[100:701], final=False)
        sent += host.data_out(itt, pdu.RESERVED_TAG, 701, content[701:1024], data_sn=1)
        sent += host.other(pdu.NOP_OUT, data=b"between", immediate=True)
        host.feed(sent, split)
        answers = host.take()
        for answer in [each for each in answers if each.opcode == pdu.R2T]:
            at, length = answer.u32(40), answer.u32(44)
            host.feed(host.data_out(itt, answer.ttt, at, content[at : at + length]), split)
        return [(each.bhs, each.data) for each in answers + host.take()]

    whole, split = World().logged_in(**keys), World().logged_in(**keys)
    assert conversation(whole, 0) == conversation(split, piece)
    for host in (whole, split):
        assert host.world.rig.device.read(3 * BLOCK, 6 * BLOCK) == content
