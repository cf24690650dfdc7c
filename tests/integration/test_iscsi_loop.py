"""Sessions that the request loop serves: what takes them out of it, and that this is in time."""

import random
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import pytest

from blockd.iscsi import handover, pdu
from blockd.iscsi_protocol import IscsiProtocol
from blockd.scsi.task import CHECK_CONDITION, GOOD, RESERVATION_CONFLICT
from native import LoopClient
from tests.iscsi_loop_rig import (
    BLOCK,
    SIZE,
    VOLUME,
    Answer,
    Server,
    Wire,
    pattern,
    read_10,
    read_plainly,
    serving,
    write_10,
)
from volume import reader

KIB = 1024
LONG = 64 * KIB
SOLICITED = {"InitialR2T": "Yes", "ImmediateData": "No", "MaxBurstLength": "32768"}
LONG_BURSTS = {
    "InitialR2T": "Yes",
    "ImmediateData": "No",
    "MaxBurstLength": "262144",
    "MaxRecvDataSegmentLength": "262144",
}
TEST_UNIT_READY = bytes(6)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serving(tmp_path / "store") as made:
        yield made


def sense(answer: Answer) -> tuple[int, int, int]:
    assert answer.status == CHECK_CONDITION
    data = answer.sense[2:]
    return data[2] & 0xF, data[12], data[13]


def read(wire: Wire, offset: int = 0, length: int = BLOCK) -> Answer:
    return wire.answer(wire.submit(read_10(offset, length), read=length))


def write(wire: Wire, offset: int, data: bytes, immediate: int = 0) -> Answer:
    return wire.answer(wire.submit(write_10(offset, len(data)), data=data, immediate=immediate))


def manage(wire: Wire, function: int, tag: int = pdu.RESERVED_TAG, ref_cmd_sn: int = 0) -> int:
    """A task management function on LUN 0; its response."""
    more = struct.pack(">I", ref_cmd_sn)
    flags = pdu.FINAL | function
    wire.feed(wire.other(pdu.TASK_MANAGEMENT, flags, tag=tag, more=more, immediate=True))
    answer = wire.next_other()
    assert answer.opcode == pdu.TASK_MANAGEMENT_RESPONSE
    return answer.bhs[2]


def half_written(server: Server, wire: Wire, data: bytes) -> tuple[int, int]:
    """Begin a WRITE at 0 and send the first half of what its first R2T asks for; its tag, and that
    of the transfer. The loop has taken it."""
    itt = wire.submit(write_10(0, len(data)), write=len(data))
    (r2t,) = wire.take()
    assert r2t.opcode == pdu.R2T
    assert (r2t.u32(40), r2t.u32(44)) == (0, len(data) // 2)
    wire.feed(wire.data_out(itt, r2t.ttt, 0, data[: len(data) // 4], final=False))
    ping(wire)  # it is answered behind the data
    assert server.elsewhere(wire)
    return itt, r2t.ttt


def ping(wire: Wire) -> None:
    wire.feed(wire.other(pdu.NOP_OUT, immediate=True))
    assert wire.next_other().opcode == pdu.NOP_IN


def test_plain_commands_bring_a_session_into_the_loop_and_others_out_of_it(server: Server) -> None:
    with server.log_in() as wire:
        assert not server.elsewhere(wire)
        read_plainly(wire)
        server.until_elsewhere(wire)
        assert write(wire, 0, pattern(LONG), immediate=8 * KIB).status == GOOD
        assert read(wire, 0, LONG).data == pattern(LONG)
        assert server.elsewhere(wire)
        assert wire.answer(wire.submit(TEST_UNIT_READY)).status == GOOD
        assert not server.elsewhere(wire)
        assert read(wire, 0, LONG).data == pattern(LONG)
        read_plainly(wire, 100)
        server.until_elsewhere(wire)


def test_what_the_loop_did_is_counted(server: Server) -> None:
    with server.in_loop() as wire:
        write(wire, 0, pattern(LONG))
        stats = server.on_loop(lambda: server.engine(wire).total_stats)
        assert (stats.reads, stats.read_bytes) == (16, 16 * BLOCK)
        assert (stats.writes, stats.written_bytes) == (1, LONG)
        wire.answer(wire.submit(TEST_UNIT_READY))
        assert server.on_loop(lambda: server.engine(wire).total_stats) == stats


def test_commands_in_the_loop_are_listed(server: Server) -> None:
    with server.in_loop(keys=SOLICITED) as wire:
        half_written(server, wire, pattern(LONG))
        (info,) = server.on_loop(server.listener.sessions)
        assert info.commands == 1


def test_a_unit_attention_of_another_session_is_told_by_the_next_command(server: Server) -> None:
    with server.in_loop() as wire, server.log_in(2) as other:
        assert manage(other, pdu.LOGICAL_UNIT_RESET) == pdu.FUNCTION_COMPLETE
        assert sense(read(wire)) == (6, 0x29, 0x03)
        assert read(wire).status == GOOD


def test_a_reservation_holds_for_the_next_command(server: Server) -> None:
    """PERSISTENT RESERVE OUT: REGISTER, then RESERVE for write exclusive."""
    with server.in_loop() as wire, server.log_in(2) as other:
        register = struct.pack(">QQ8x", 0, 77)
        reserve = struct.pack(">QQ8x", 77, 0)
        for action, kind, data in ((0, 0, register), (1, 1, reserve)):
            cdb = bytes((0x5F, action, kind)) + bytes(4) + bytes((0, 24, 0))
            assert other.answer(other.submit(cdb, data=data, immediate=24)).status == GOOD
        assert write(wire, 0, pattern(BLOCK)).status == RESERVATION_CONFLICT
        assert read(wire, 0).data == bytes(BLOCK)


def test_a_write_that_collects_goes_on_behind_a_rare_command(server: Server) -> None:
    data = pattern(LONG)
    with server.in_loop(keys=SOLICITED) as wire:
        itt, ttt = half_written(server, wire, data)
        assert wire.answer(wire.submit(TEST_UNIT_READY)).status == GOOD
        assert not server.elsewhere(wire)
        wire.asked[itt].data = data
        part = slice(len(data) // 4, len(data) // 2)
        wire.feed(wire.data_out(itt, ttt, part.start, data[part], data_sn=1))
        assert wire.answer(itt).status == GOOD
    assert server.content(0, LONG) == data


def test_a_write_that_the_loop_does_not_know_keeps_the_session_here(server: Server) -> None:
    data = pattern(LONG)
    with server.log_in(keys=SOLICITED) as wire:
        cdb = bytearray(write_10(0, LONG))
        cdb[6] = 1  # group number
        itt = wire.submit(bytes(cdb), write=LONG)
        (r2t,) = wire.take()
        read_plainly(wire)
        assert not server.elsewhere(wire)
        wire.asked[itt].data = data
        wire._took(r2t)
        assert wire.answer(itt).status == GOOD
    assert server.content(0, LONG) == data


def test_who_holds_a_reservation_is_served_by_the_loop(server: Server) -> None:
    with server.log_in() as wire, server.log_in(2) as other:
        register = struct.pack(">QQ8x", 0, 77)
        reserve = struct.pack(">QQ8x", 77, 0)
        for action, kind, data in ((0, 0, register), (1, 1, reserve)):
            cdb = bytes((0x5F, action, kind)) + bytes(4) + bytes((0, 24, 0))
            assert wire.answer(wire.submit(cdb, data=data, immediate=24)).status == GOOD
        read_plainly(wire)
        server.until_elsewhere(wire)
        preempt = struct.pack(">QQ8x", 88, 77)
        for action, kind, data in ((0, 0, struct.pack(">QQ8x", 0, 88)), (4, 1, preempt)):
            cdb = bytes((0x5F, action, kind)) + bytes(4) + bytes((0, 24, 0))
            assert other.answer(other.submit(cdb, data=data, immediate=24)).status == GOOD
        assert sense(write(wire, 0, pattern(BLOCK))) == (6, 0x2A, 0x05)
        assert write(wire, 0, pattern(BLOCK)).status == RESERVATION_CONFLICT


@pytest.mark.parametrize("digest", ["None", "CRC32C"])
def test_long_data_outs_are_written_as_they_were_sent(server: Server, digest: str) -> None:
    keys = {**LONG_BURSTS, "HeaderDigest": digest}
    with server.in_loop(keys=keys) as wire:
        for seed in range(3):
            data = pattern(SIZE, seed)
            itts = [
                wire.submit(
                    write_10(at, SIZE // 4), data=data[at : at + SIZE // 4], piece=SIZE // 4
                )
                for at in range(0, SIZE, SIZE // 4)
            ]
            assert {wire.answer(itt).status for itt in itts} == {GOOD}
            assert read(wire, 0, SIZE).data == data
        assert server.elsewhere(wire)


def test_a_session_may_be_interrupted_in_the_middle_of_a_data_out(server: Server) -> None:
    data = pattern(SIZE // 4)
    with server.in_loop(keys=LONG_BURSTS) as wire, server.log_in(2) as other:
        itt = wire.submit(write_10(0, len(data)), write=len(data))
        (r2t,) = wire.take()
        made = wire.data_out(itt, r2t.ttt, 0, data)
        wire.feed(made[: len(made) // 3])
        register = struct.pack(">QQ8x", 0, 77)
        cdb = bytes((0x5F, 0)) + bytes(5) + bytes((0, 24, 0))
        assert other.answer(other.submit(cdb, data=register, immediate=24)).status == GOOD
        server.until_here(wire)
        wire.feed(made[len(made) // 3 :])
        assert wire.answer(itt).status == GOOD
        assert read(wire, 0, len(data)).data == data


def write_and_check(server: Server, number: int, rounds: int) -> None:
    """Writes of all sorts into a region of its own, each read again."""
    chance = random.Random(number)
    keys = SOLICITED if number % 2 else {"DataDigest": "CRC32C"}
    region = number * LONG
    with server.log_in(number, keys) as wire:
        for _ in range(rounds):
            pieces = sorted(chance.sample(range(0, LONG, BLOCK), 4))
            tags = {}
            for start, end in pairwise(pieces):
                data = chance.randbytes(end - start)
                itt = wire.submit(write_10(region + start, len(data)), data=data)
                tags[itt] = start, data
            for itt in tags:
                assert wire.answer(itt).status == GOOD
            for start, data in tags.values():
                assert read(wire, region + start, len(data)).data == data


def test_sessions_go_on_however_often_they_are_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """REGISTER and unregister, over and over: each takes all sessions out of the loop."""
    monkeypatch.setattr(handover, "FIRST_RUN", 2)
    monkeypatch.setattr(handover, "LONGEST_RUN", 2)
    with (
        serving(tmp_path / "store", threads=2) as server,
        server.log_in(9) as other,
        ThreadPoolExecutor() as pool,
    ):
        writers = [pool.submit(write_and_check, server, number, 60) for number in range(4)]
        key = 0
        while not all(writer.done() for writer in writers):
            data = struct.pack(">QQ8x", key, key ^ 77)
            cdb = bytes((0x5F, 0)) + bytes(5) + bytes((0, 24, 0))
            assert other.answer(other.submit(cdb, data=data, immediate=24)).status == GOOD
            key ^= 77
        for writer in writers:
            writer.result()


def test_an_aborted_write_is_not_done(server: Server) -> None:
    data = pattern(LONG)
    with server.in_loop(keys=SOLICITED) as wire:
        cmd_sn = wire.cmd_sn
        itt, ttt = half_written(server, wire, data)
        assert manage(wire, pdu.ABORT_TASK, itt, cmd_sn) == pdu.FUNCTION_COMPLETE
        del wire.asked[itt]
        wire.feed(wire.data_out(itt, ttt, LONG // 4, data[LONG // 4 : LONG // 2], data_sn=1))
        assert read(wire, 0, LONG).data == bytes(LONG)


def test_a_reset_of_another_session_ends_what_the_loop_has(server: Server) -> None:
    data = pattern(LONG)
    with server.in_loop(keys=SOLICITED) as wire, server.log_in(2) as other:
        itt, ttt = half_written(server, wire, data)
        assert manage(other, pdu.LOGICAL_UNIT_RESET) == pdu.FUNCTION_COMPLETE
        del wire.asked[itt]
        wire.feed(wire.data_out(itt, ttt, LONG // 4, data[LONG // 4 : LONG // 2], data_sn=1))
        assert sense(read(wire)) == (6, 0x29, 0x03)
        assert read(wire, 0, LONG).data == bytes(LONG)


def test_clearing_tells_only_the_sessions_that_had_tasks_there(server: Server) -> None:
    with (
        server.in_loop(1, SOLICITED) as busy,
        server.in_loop(2) as idle,
        server.log_in(3) as other,
    ):
        itt, _ = half_written(server, busy, pattern(LONG))
        assert manage(other, pdu.CLEAR_TASK_SET) == pdu.FUNCTION_COMPLETE
        del busy.asked[itt]
        assert sense(read(busy)) == (6, 0x2F, 0x00)
        assert read(idle).status == GOOD


def test_a_login_with_the_same_name_takes_the_place_of_a_session_in_the_loop(
    server: Server,
) -> None:
    data = pattern(LONG)
    with server.in_loop(keys=SOLICITED) as old:
        half_written(server, old, data)
        with server.log_in() as new:
            assert read(new, 0, LONG).data == bytes(LONG)
            with pytest.raises(ConnectionError):
                old.take()


@pytest.mark.parametrize("way", ["half", "idle"])
def test_a_connection_that_breaks_leaves_nothing_behind(server: Server, way: str) -> None:
    with server.in_loop(keys=SOLICITED) as wire:
        if way == "half":
            half_written(server, wire, pattern(LONG))
    server.until(lambda: not server.listener.client_count)
    assert server.on_loop(server.listener.sessions) == []
    assert server.content(0, LONG) == bytes(LONG)


def test_a_logout_is_answered(server: Server) -> None:
    with server.in_loop() as wire:
        wire.feed(wire.other(pdu.LOGOUT, pdu.FINAL, tag=0, immediate=True))
        answer = wire.next_other()
        assert (answer.opcode, answer.bhs[2]) == (pdu.LOGOUT_RESPONSE, pdu.LOGOUT_OK)


def test_a_stop_ends_sessions_in_the_loop(tmp_path: Path) -> None:
    with serving(tmp_path / "store") as server, server.in_loop() as wire:
        stopped = server.begin(server.listener.stop(10.0))
        event = wire.next_other()
        assert (event.opcode, event.bhs[36]) == (pdu.ASYNC, pdu.ASYNC_LOGOUT_REQUEST)
        with pytest.raises(ConnectionError):
            wire.take()
        wire.socket.close()
        stopped.result(20.0)


def test_a_volume_that_grows_is_told(server: Server) -> None:
    with server.in_loop() as wire:
        server.store.resize_volume(VOLUME, 2 * SIZE)
        assert sense(read(wire)) == (6, 0x2A, 0x09)
        assert read(wire, SIZE).data == bytes(BLOCK)


def test_a_volume_that_is_deleted_says_so(server: Server) -> None:
    with server.in_loop() as wire:
        server.store.delete_volume(VOLUME, force=True)
        assert read(wire).status == CHECK_CONDITION


def test_reads_of_what_is_not_in_memory_do_not_end_the_loops_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mailed: list[bytes] = []
    read_for = IscsiProtocol._read_for

    def counted(self: IscsiProtocol, client: LoopClient, bhs: bytes) -> None:
        mailed.append(bhs)
        read_for(self, client, bhs)

    monkeypatch.setattr(IscsiProtocol, "_read_for", counted)
    monkeypatch.setattr(reader, "WARM_CHUNKS", 0)  # as in a volume of many gigabytes
    folder = tmp_path / "store"
    data = pattern(SIZE)
    with serving(folder) as server, server.log_in() as wire:
        for at in range(0, SIZE, LONG):
            assert write(wire, at, data[at : at + LONG]).status == GOOD
        while server.store.destage():
            pass
    with serving(folder) as server, server.log_in() as wire:
        for _ in range(16):  # nothing is read before
            assert write(wire, 0, data[:BLOCK]).status == GOOD
        server.until_elsewhere(wire)
        tags = {at: wire.submit(read_10(at, LONG), read=LONG) for at in range(0, SIZE, LONG)}
        for at, itt in reversed(tags.items()):
            assert wire.answer(itt).data == data[at : at + LONG]
        assert server.elsewhere(wire)
        assert mailed


def test_a_silent_session_in_the_loop_is_pinged(tmp_path: Path) -> None:
    with serving(tmp_path / "store", keepalive_s=1.0) as server, server.in_loop() as wire:
        asked = wire.next_other()
        assert (asked.opcode, asked.itt) == (pdu.NOP_IN, pdu.RESERVED_TAG)
        assert not server.elsewhere(wire)
        wire.feed(wire.other(pdu.NOP_OUT, itt=pdu.RESERVED_TAG, tag=asked.ttt, immediate=True))
        read_plainly(wire, 100)
        server.until_elsewhere(wire)
