"""Commands and their data: what the initiator gets, byte for byte. RFC 7143 4.2, 11.3 to 11.8."""

import random
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blockd.iscsi import pdu
from blockd.iscsi.limits import COMMAND_WINDOW, MAX_IMMEDIATE, Limits
from blockd.scsi.task import CHECK_CONDITION, GOOD
from native import OP_READ, OP_WRITE
from tests.iscsi_initiator import Initiator, Pdu, World

BLOCK = 512
TEST_UNIT_READY = bytes(6)
INQUIRY = b"\x12\0\0\0\xff\0"
UNSOLICITED = {"InitialR2T": "No", "FirstBurstLength": "4096", "MaxBurstLength": "8192"}
UNEXPECTED = (0xB, 0x0C, 0x0C)
INCORRECT = (0xB, 0x0C, 0x0D)


def read_10(lba: int, count: int) -> bytes:
    return struct.pack(">BBIBHB", 0x28, 0, lba, 0, count, 0)


def write_10(lba: int, count: int) -> bytes:
    return struct.pack(">BBIBHB", 0x2A, 0, lba, 0, count, 0)


def pattern(length: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(length)


def stored(host: Initiator, lba: int, length: int) -> bytes:
    return host.world.rig.device.read(lba * BLOCK, length)


def test_a_read_comes_with_its_status_in_the_last_data() -> None:
    host = World().logged_in()
    host.world.rig.device.write(BLOCK, pattern(BLOCK))
    (data,) = host.ask(read_10(1, 1), read=BLOCK)
    assert data.opcode == pdu.DATA_IN
    assert data.flags == pdu.FINAL | pdu.STATUS
    assert data.data == pattern(BLOCK)
    assert (data.bhs[3], data.residual) == (GOOD, 0)
    assert data.stat_sn == host.stat_sn
    assert (data.exp_cmd_sn, data.u32(36), data.u32(40)) == (host.cmd_sn, 0, 0)


def test_a_long_read_is_cut_by_what_the_initiator_takes() -> None:
    host = World().logged_in(MaxRecvDataSegmentLength="1024", MaxBurstLength="2048")
    host.world.rig.device.write(0, pattern(10 * BLOCK))
    parts = host.ask(read_10(0, 10), read=10 * BLOCK)
    assert b"".join(part.data for part in parts) == pattern(10 * BLOCK)
    assert [len(part.data) for part in parts] == [1024] * 5
    assert [part.u32(36) for part in parts] == [0, 1, 2, 3, 4]  # DataSN
    assert [part.u32(40) for part in parts] == [0, 1024, 2048, 3072, 4096]
    finals = [bool(part.flags & pdu.FINAL) for part in parts]
    assert finals == [False, True, False, True, True]
    assert [bool(part.flags & pdu.STATUS) for part in parts] == [False] * 4 + [True]


@pytest.mark.parametrize(
    ("expected", "flag", "residual", "sent"),
    [(2 * BLOCK, pdu.UNDERFLOW, BLOCK, BLOCK), (100, pdu.OVERFLOW, BLOCK - 100, 100)],
)
def test_residuals_of_reads(expected: int, flag: int, residual: int, sent: int) -> None:
    host = World().logged_in()
    (data,) = host.ask(read_10(0, 1), read=expected)
    assert len(data.data) == sent
    assert data.flags == pdu.FINAL | pdu.STATUS | flag
    assert data.residual == residual


def test_a_read_that_announced_no_data_is_all_overflow() -> None:
    host = World().logged_in()
    (response,) = host.ask(read_10(0, 1))
    assert response.opcode == pdu.SCSI_RESPONSE
    assert (response.flags, response.residual) == (pdu.FINAL | pdu.OVERFLOW, BLOCK)


def test_immediate_data_is_written() -> None:
    host = World().logged_in()
    (response,) = host.ask(write_10(3, 2), write=2 * BLOCK, data=pattern(2 * BLOCK))
    assert response.opcode == pdu.SCSI_RESPONSE
    assert (response.flags, response.bhs[2], response.bhs[3]) == (pdu.FINAL, 0, GOOD)
    assert stored(host, 3, 2 * BLOCK) == pattern(2 * BLOCK)


@pytest.mark.parametrize(
    ("announced", "sent", "flag", "residual", "written"),
    [
        (BLOCK, BLOCK, pdu.OVERFLOW, BLOCK, BLOCK),
        (3 * BLOCK, 3 * BLOCK, pdu.UNDERFLOW, BLOCK, 1024),
    ],
)
def test_residuals_of_writes(
    announced: int, sent: int, flag: int, residual: int, written: int
) -> None:
    host = World().logged_in()
    (response,) = host.ask(write_10(0, 2), write=announced, data=pattern(sent))
    assert (response.flags, response.residual) == (pdu.FINAL | flag, residual)
    assert response.bhs[3] == GOOD
    assert stored(host, 0, 3 * BLOCK) == pattern(sent)[:written].ljust(3 * BLOCK, b"\0")


def asked_for(answer: Pdu) -> tuple[int, int]:
    """Offset and length of an R2T."""
    assert answer.opcode == pdu.R2T
    return answer.u32(40), answer.u32(44)


def test_data_is_asked_for_in_bursts() -> None:
    host = World().logged_in(ImmediateData="No", MaxBurstLength="1024")
    data = pattern(5 * BLOCK)
    (r2t,) = host.ask(write_10(0, 5), write=5 * BLOCK)
    itt, offset, number = r2t.itt, 0, 0
    while r2t.opcode == pdu.R2T:
        at, length = asked_for(r2t)
        assert (at, r2t.u32(36)) == (offset, number)
        assert length <= 1024
        host.feed(host.data_out(itt, r2t.ttt, at, data[at : at + length]))
        offset, number = at + length, number + 1
        r2t = host.one()
    assert (r2t.opcode, r2t.bhs[3], r2t.u32(36)) == (pdu.SCSI_RESPONSE, GOOD, number)
    assert stored(host, 0, 5 * BLOCK) == data


def test_several_bursts_may_be_asked_for_at_once() -> None:
    host = World().logged_in(ImmediateData="No", MaxBurstLength="512", MaxOutstandingR2T="2")
    r2ts = host.ask(write_10(0, 3), write=3 * BLOCK)
    assert [asked_for(each) for each in r2ts] == [(0, 512), (512, 512)]


def test_unsolicited_data_then_what_is_missing() -> None:
    host = World().logged_in(**UNSOLICITED)
    data = pattern(20 * BLOCK)
    host.feed(host.command(write_10(0, 20), write=20 * BLOCK, data=data[:1024], final=False))
    itt = host.itt
    host.feed(host.data_out(itt, pdu.RESERVED_TAG, 1024, data[1024:2048], final=False))
    assert host.take() == []
    host.feed(host.data_out(itt, pdu.RESERVED_TAG, 2048, data[2048:4096], data_sn=1))
    r2t = host.one()
    assert asked_for(r2t) == (4096, 20 * BLOCK - 4096)
    host.feed(host.data_out(itt, r2t.ttt, 4096, data[4096:8192], final=False))
    host.feed(host.data_out(itt, r2t.ttt, 8192, data[8192:], data_sn=1))
    assert host.one().bhs[3] == GOOD
    assert stored(host, 0, 20 * BLOCK) == data


@pytest.mark.parametrize(
    ("keys", "data"),
    [
        ({"ImmediateData": "No"}, BLOCK),
        ({"FirstBurstLength": "512"}, 2 * BLOCK),
        ({}, 3 * BLOCK),  # more than announced
    ],
)
def test_data_that_was_not_agreed_on_ends_the_command(keys: dict[str, str], data: int) -> None:
    host = World().logged_in(**keys)
    host.feed(host.command(write_10(0, 2), write=2 * BLOCK, data=bytes(data)))
    response = host.one()
    assert (response.bhs[3], response.sense) == (CHECK_CONDITION, UNEXPECTED)
    assert host.world.rig.device.seen == []
    assert host.ask(TEST_UNIT_READY)[0].bhs[3] == GOOD  # the session goes on


@pytest.mark.parametrize(
    ("offset", "length", "data_sn", "final", "sense"),
    [
        (512, 512, 0, True, INCORRECT),  # not the next byte
        (0, 1024, 1, True, INCORRECT),  # not the next PDU
        (0, 2048, 0, True, INCORRECT),  # more than asked for
        (0, 512, 0, True, INCORRECT),  # the last one, and something is missing
        (0, 1024, 0, False, INCORRECT),  # all of it, and not the last one
    ],
)
def test_data_out_that_is_wrong_ends_the_command(
    offset: int, length: int, data_sn: int, final: bool, sense: tuple[int, int, int]
) -> None:
    host = World().logged_in(ImmediateData="No")
    (r2t,) = host.ask(write_10(0, 2), write=2 * BLOCK)
    out = host.data_out(r2t.itt, r2t.ttt, offset, bytes(length), data_sn=data_sn, final=final)
    host.feed(out)
    response = host.one()
    assert (response.bhs[3], response.sense) == (CHECK_CONDITION, sense)
    assert host.world.rig.device.seen == []
    host.feed(out)  # what follows belongs to nothing any more
    assert host.take() == []
    assert host.closed is None


def test_a_transfer_tag_that_was_not_given_ends_the_command() -> None:
    host = World().logged_in(ImmediateData="No")
    (r2t,) = host.ask(write_10(0, 2), write=2 * BLOCK)
    host.feed(host.data_out(r2t.itt, r2t.ttt + 1, 0, bytes(1024)))
    assert host.one().sense == UNEXPECTED


def test_commands_of_one_round_are_one_batch() -> None:
    host = World().logged_in()
    sent = b"".join(
        host.command(write_10(number, 1), write=BLOCK, data=pattern(BLOCK, number))
        for number in range(8)
    )
    host.feed(sent + host.command(read_10(7, 1), read=BLOCK))
    device = host.world.rig.device
    assert device.batch_sizes == [9]
    assert [seen.op for seen in device.seen] == [OP_WRITE] * 8 + [OP_READ]
    answers = host.take()
    assert answers[-1].data == pattern(BLOCK, 7)
    assert [each.stat_sn for each in answers] == [host.stat_sn + n for n in range(9)]


def test_a_command_before_or_behind_the_window_is_ignored() -> None:
    host = World().logged_in()
    for number in (host.cmd_sn - 1, host.cmd_sn + COMMAND_WINDOW, host.cmd_sn + (1 << 31) + 5):
        assert host.ask(TEST_UNIT_READY, cmd_sn=number) == []
    assert host.ask(TEST_UNIT_READY)[0].bhs[3] == GOOD


def test_a_command_beyond_a_full_window_is_ignored() -> None:
    """An initiator that does not keep to MaxCmdSN gets no memory for it."""
    host = World(deferred=True).logged_in()
    for _ in range(COMMAND_WINDOW):
        host.feed(host.command(read_10(0, 1), read=BLOCK))
    device = host.world.rig.device
    assert device.waiting == COMMAND_WINDOW
    host.feed(host.command(read_10(0, 1), read=BLOCK, cmd_sn=host.cmd_sn))
    host.feed(host.other(pdu.NOP_OUT, cmd_sn=host.cmd_sn))
    assert device.waiting == COMMAND_WINDOW
    device.finish()
    answers = host.take()
    assert [each.opcode for each in answers] == [pdu.DATA_IN] * COMMAND_WINDOW
    assert answers[-1].max_cmd_sn == host.cmd_sn + COMMAND_WINDOW - 1
    device.deferred = False
    assert host.ask(TEST_UNIT_READY)[0].bhs[3] == GOOD


def test_numbers_go_on_from_zero() -> None:
    host = World().initiator()
    host.cmd_sn = 0xFFFFFFFE
    host.log_in()
    for _ in range(4):
        (answer,) = host.ask(TEST_UNIT_READY)
        assert answer.bhs[3] == GOOD
    assert answer.exp_cmd_sn == 2
    assert answer.max_cmd_sn == 2 + COMMAND_WINDOW - 1
    assert host.ask(TEST_UNIT_READY, cmd_sn=0xFFFFFFFF) == []


def test_the_reserved_task_tag_is_none() -> None:
    host = World().logged_in()
    (rejected,) = host.ask(TEST_UNIT_READY, itt=pdu.RESERVED_TAG)
    assert (rejected.opcode, rejected.bhs[2]) == (pdu.REJECT, pdu.REJECT_INVALID_FIELD)
    assert host.ask(TEST_UNIT_READY)[0].bhs[3] == GOOD


def test_a_gap_in_the_numbers_closes_the_connection() -> None:
    host = World().logged_in()
    assert host.ask(TEST_UNIT_READY, cmd_sn=host.cmd_sn + 1) == []
    assert host.closed is not None


def test_the_window_shrinks_while_commands_run_and_opens_again() -> None:
    host = World(deferred=True).logged_in()
    host.feed(host.command(read_10(0, 1), read=BLOCK))
    host.feed(host.other(pdu.NOP_OUT, data=b"ping"))
    nop = host.one()
    assert nop.max_cmd_sn - nop.exp_cmd_sn == COMMAND_WINDOW - 2
    host.world.rig.device.finish()
    assert host.take()[0].opcode == pdu.DATA_IN
    host.feed(host.other(pdu.NOP_OUT, data=b"ping"))
    nop = host.one()
    assert nop.max_cmd_sn - nop.exp_cmd_sn == COMMAND_WINDOW - 1


def test_too_many_immediate_commands_are_rejected() -> None:
    host = World(deferred=True).logged_in()
    for _ in range(MAX_IMMEDIATE):
        host.feed(host.command(read_10(0, 1), read=BLOCK, immediate=True))
    assert host.take() == []
    (rejected,) = host.ask(read_10(0, 1), read=BLOCK, immediate=True)
    assert (rejected.opcode, rejected.bhs[2]) == (pdu.REJECT, pdu.REJECT_IMMEDIATE)


def test_a_task_tag_in_use_closes_the_connection() -> None:
    host = World(deferred=True).logged_in()
    host.feed(host.command(read_10(0, 1), read=BLOCK, itt=9))
    host.feed(host.command(read_10(1, 1), read=BLOCK, itt=9))
    assert host.closed is not None
    assert host.take() == []


@pytest.mark.parametrize("ahs", [b"\0\0\1\0", b"\0\x20\1\0" + bytes(4), b"\xff\xff\1\0"])
def test_additional_headers_that_do_not_add_up_are_rejected(ahs: bytes) -> None:
    host = World().logged_in()
    (rejected,) = host.ask(TEST_UNIT_READY, ahs=ahs)
    assert (rejected.opcode, rejected.bhs[2]) == (pdu.REJECT, pdu.REJECT_INVALID_FIELD)
    assert host.ask(TEST_UNIT_READY)[0].bhs[3] == GOOD


def test_a_segment_longer_than_declared_closes_the_connection() -> None:
    host = World().logged_in()
    host.feed(host.make(pdu.NOP_OUT, pdu.FINAL, lengths=262145))
    assert host.closed is not None


def test_absent_units_answer_as_spc_has_it() -> None:
    host = World().logged_in()
    (inquiry,) = host.ask(INQUIRY, read=255, lun=5)
    assert inquiry.data[0] == 0x7F
    (response,) = host.ask(TEST_UNIT_READY, lun=5)
    assert response.sense == (5, 0x25, 0)


@pytest.mark.parametrize("keys", [{"HeaderDigest": "CRC32C"}, {"DataDigest": "CRC32C"}])
def test_digests(keys: dict[str, str]) -> None:
    host = World().logged_in(**keys)
    (response,) = host.ask(write_10(0, 1), write=BLOCK, data=pattern(BLOCK))
    assert response.bhs[3] == GOOD
    (data,) = host.ask(read_10(0, 1), read=BLOCK)
    assert data.data == pattern(BLOCK)
    (inquiry,) = host.ask(b"\x12\0\0\0\x07\0", read=7)  # padded
    assert len(inquiry.data) == 7


def test_a_damaged_header_closes_the_connection() -> None:
    host = World().logged_in(HeaderDigest="CRC32C")
    sent = bytearray(host.command(TEST_UNIT_READY))
    sent[20] ^= 1
    host.feed(bytes(sent))
    assert host.closed is not None
    assert host.take() == []


def test_damaged_immediate_data_ends_its_command() -> None:
    host = World().logged_in(DataDigest="CRC32C")
    sent = bytearray(host.command(write_10(0, 1), write=BLOCK, data=pattern(BLOCK)))
    sent[60] ^= 1
    host.feed(bytes(sent))
    rejected, response = host.take()
    assert (rejected.opcode, rejected.bhs[2]) == (pdu.REJECT, pdu.REJECT_DATA_DIGEST)
    assert rejected.data == bytes(sent[:48])
    assert response.sense == (0xB, 0x47, 0x05)
    assert host.world.rig.device.seen == []
    assert host.ask(TEST_UNIT_READY)[0].bhs[3] == GOOD


def test_damaged_data_out_ends_its_command() -> None:
    host = World().logged_in(DataDigest="CRC32C", ImmediateData="No")
    (r2t,) = host.ask(write_10(0, 1), write=BLOCK)
    sent = bytearray(host.data_out(r2t.itt, r2t.ttt, 0, pattern(BLOCK)))
    sent[60] ^= 1
    host.feed(bytes(sent))
    rejected, response = host.take()
    assert rejected.opcode == pdu.REJECT
    assert response.sense == (0xB, 0x47, 0x05)
    assert host.world.rig.device.seen == []


def test_errors_of_the_device_become_sense() -> None:
    import errno

    host = World().logged_in()
    host.world.rig.device.fail_next(errno.EIO)
    (response,) = host.ask(read_10(0, 1), read=BLOCK)
    assert response.sense == (3, 0x11, 0)
    assert (response.flags, response.residual) == (pdu.FINAL | pdu.UNDERFLOW, BLOCK)
    host.world.rig.device.fail_next(errno.ENOSPC)
    (response,) = host.ask(write_10(0, 1), write=BLOCK, data=bytes(BLOCK))
    assert response.sense == (7, 0x27, 7)


def test_commands_beyond_the_bound_wait_for_room() -> None:
    host = World(limits=Limits(max_in_flight_bytes=2 * BLOCK), deferred=True).logged_in()
    for number in range(4):
        host.feed(host.command(read_10(number, 1), read=BLOCK))
    device = host.world.rig.device
    assert device.waiting == 2
    device.finish()
    assert [each.opcode for each in host.take()] == [pdu.DATA_IN] * 2
    assert device.waiting == 2
    device.finish()
    assert len(host.take()) == 2


def test_reads_with_fua_wait_for_room_as_well() -> None:
    host = World(limits=Limits(max_in_flight_bytes=2 * BLOCK), deferred=True).logged_in()
    cdb = struct.pack(">BBIBHB", 0x28, 8, 0, 0, 1, 0)
    for _ in range(4):
        host.feed(host.command(cdb, read=BLOCK))
    device = host.world.rig.device
    assert device.waiting == 2
    device.finish()  # the flushes behind them
    device.finish()
    assert [each.opcode for each in host.take()] == [pdu.DATA_IN] * 2
    assert device.waiting == 2


def test_a_prefetch_holds_no_room() -> None:
    host = World(limits=Limits(max_in_flight_bytes=2 * BLOCK), deferred=True).logged_in()
    host.feed(host.command(struct.pack(">BBIBHB", 0x34, 0, 0, 0, 0, 0)))  # of the whole disk
    host.feed(host.command(read_10(0, 1), read=BLOCK))
    assert host.world.rig.device.waiting == 2


def test_commands_that_wait_go_on_when_others_are_aborted() -> None:
    """Also when somebody in another session did it, and nothing is said here."""
    world = World(limits=Limits(max_in_flight_bytes=BLOCK))
    host, other = world.logged_in(ImmediateData="No"), world.initiator(isid=b"\x80\0\0\0\0\2")
    other.log_in()
    (r2t,) = host.ask(write_10(0, 1), write=BLOCK)
    assert host.ask(read_10(0, 1), read=BLOCK) == []
    writing = host.connection.abort_tasks(lambda each: each.itt == r2t.itt, lambda: None)
    assert writing == 0
    assert host.one().opcode == pdu.DATA_IN


def test_data_for_a_command_that_runs_already_is_let_go_of() -> None:
    host = World(deferred=True).logged_in(DataDigest="CRC32C")
    host.feed(host.command(read_10(0, 1), read=BLOCK))
    out = host.data_out(host.itt, pdu.RESERVED_TAG, 0, bytes(BLOCK))
    host.feed(out)
    damaged = bytearray(out)
    damaged[60] ^= 1
    host.feed(bytes(damaged))
    assert host.one().opcode == pdu.REJECT
    host.world.rig.device.finish()
    assert host.one().opcode == pdu.DATA_IN
    assert host.connection.idle


def test_unsolicited_data_is_taken_however_full_the_session_is() -> None:
    limits = Limits(max_in_flight_bytes=BLOCK)
    host = World(limits=limits, deferred=True).logged_in(**UNSOLICITED)
    host.feed(host.command(read_10(0, 1), read=BLOCK))  # takes all the room
    host.feed(host.command(write_10(4, 10), write=10 * BLOCK, final=False))
    data = pattern(10 * BLOCK)
    host.feed(host.data_out(host.itt, pdu.RESERVED_TAG, 0, data[:4096]))
    assert host.take() == []  # nothing is asked for while there is no room
    host.world.rig.device.finish()
    read, r2t = host.take()
    assert (read.opcode, r2t.opcode) == (pdu.DATA_IN, pdu.R2T)
    at, length = asked_for(r2t)
    host.feed(host.data_out(r2t.itt, r2t.ttt, at, data[at : at + length]))
    host.world.rig.device.finish()
    assert host.one().bhs[3] == GOOD
    assert stored(host, 4, 10 * BLOCK) == data


def test_a_connection_that_goes_takes_its_commands_along() -> None:
    host = World(deferred=True).logged_in()
    host.feed(host.command(read_10(0, 1), read=BLOCK))
    host.feed(host.command(write_10(0, 1), write=BLOCK))
    host.connection.eof()
    host.run()
    assert host.closed is not None
    assert host.world.node.sessions() == []
    assert host.world.rig.unit.nexuses == []
    assert not host.connection.idle
    host.world.rig.device.finish()
    assert host.connection.idle
    assert host.take()[0].opcode == pdu.R2T
    assert host.world.rig.device.clients == []


def told(answer: Pdu) -> tuple[bytes, bytes]:
    """All but how far the command window is, which depends on what has come already."""
    return answer.bhs[:28] + answer.bhs[36:], answer.data


@settings(max_examples=20)
@given(st.integers(7, 400), st.integers(0, 1000))
def test_any_split_has_the_same_answers(piece: int, seed: int) -> None:
    generator = random.Random(seed)

    def conversation(host: Initiator) -> bytes:
        sent = b""
        for _ in range(12):
            lba, count = generator.randrange(64), generator.randrange(1, 5)
            if generator.random() < 0.5:
                sent += host.command(read_10(lba, count), read=count * BLOCK)
            else:
                data = generator.randbytes(count * BLOCK)
                sent += host.command(write_10(lba, count), write=count * BLOCK, data=data)
        return sent

    whole, split = World().logged_in(), World().logged_in()
    sent = conversation(whole)
    whole.feed(sent)
    split.feed(sent, piece)
    assert [told(each) for each in whole.take()] == [told(each) for each in split.take()]
    size = whole.world.rig.device.size
    assert stored(whole, 0, size) == stored(split, 0, size)
