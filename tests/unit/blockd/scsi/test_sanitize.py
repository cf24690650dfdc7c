"""SANITIZE: what is left of the data, who is kept out meanwhile, what survives (SBC-3 4.11)."""

import errno
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockd.scsi import sanitize, sense
from blockd.scsi.nexus import Nexus
from blockd.scsi.sense import CheckCondition
from blockd.scsi.task import GOOD, Await, Countdown, Prepared, Task, Work
from native import FLAG_FUA, OP_FLUSH, OP_UNMAP, OP_WRITE
from tests import scsi_cdbs as cdbs
from tests.scsi_rig import BLOCK, FakeSurroundings, Rig, Running, codes

OVERWRITE, BLOCK_ERASE, CRYPTO_ERASE, EXIT_FAILURE_MODE = 0x01, 0x02, 0x03, 0x1F
IMMED, AUSE = 0x80, 0x20
INVALID_FIELD = (5, 0x24, 0)
INVALID_PARAMETER = (5, 0x26, 0)
IN_PROGRESS = (2, 0x04, 0x1B)
FAILED = (3, 0x31, 0x03)
INQUIRY = b"\x12\0\0\0\x24\0"
TEST_UNIT_READY = bytes(6)
SIZE = 4 * (1 << 20)


def filled(*, deferred: bool = False, surroundings: FakeSurroundings | None = None) -> Rig:
    rig = Rig(blocks=SIZE // BLOCK, deferred=deferred, surroundings=surroundings)
    rig.device.write(0, b"\xee" * SIZE)
    return rig


def pattern_list(pattern: bytes, *, count: int = 1, flags: int = 0) -> bytes:
    return bytes((flags | count, 0)) + len(pattern).to_bytes(2, "big") + pattern


def overwrite(rig: Rig, parameters: bytes, *, flags: int = 0) -> Running:
    return rig.start(cdbs.sanitize(OVERWRITE, len(parameters), flags=flags), parameters)


def fails(rig: Rig, *, flags: int = 0) -> None:
    rig.device.fail_next(errno.EIO)
    assert codes(rig.fault(cdbs.sanitize(BLOCK_ERASE, flags=flags))) == FAILED


# -- what it does


@pytest.mark.parametrize("action", [BLOCK_ERASE, CRYPTO_ERASE])
def test_an_erase_unmaps_the_whole_volume(action: int) -> None:
    rig = filled()
    rig.good(cdbs.sanitize(action))
    assert rig.device.read(0, SIZE) == bytes(SIZE)
    status = rig.good(cdbs.get_lba_status(0, 256))
    assert status[8:21] == bytes(8) + (SIZE // BLOCK).to_bytes(4, "big") + b"\x01"


@pytest.mark.parametrize(
    "pattern", [b"\xaa" * BLOCK, b"\x55" * (BLOCK // 2), b"abcd", b"x", b"0123456"]
)
def test_an_overwrite_fills_each_block_with_the_pattern(pattern: bytes) -> None:
    rig = filled()
    running = overwrite(rig, pattern_list(pattern))
    assert running.result is not None
    assert running.result.status == GOOD
    block = (pattern * BLOCK)[:BLOCK]
    assert rig.device.read(0, SIZE) == block * (SIZE // BLOCK)


@pytest.mark.parametrize(("count", "expected"), [(1, b"\x0f"), (2, b"\xf0"), (31, b"\x0f")])
def test_the_last_of_inverting_passes_is_what_stays(count: int, expected: bytes) -> None:
    rig = filled()
    overwrite(rig, pattern_list(b"\x0f", count=count, flags=0x80))
    assert rig.device.read(0, SIZE) == expected * SIZE


def test_every_piece_is_durable_and_a_flush_is_last() -> None:
    rig = filled()
    overwrite(rig, pattern_list(b"x"))
    assert {(seen.op, seen.flags) for seen in rig.device.seen[:-1]} == {(OP_WRITE, FLAG_FUA)}
    assert rig.device.seen[-1].op == OP_FLUSH
    rig.device.seen.clear()
    rig.good(cdbs.sanitize(BLOCK_ERASE))
    assert [(seen.op, seen.flags) for seen in rig.device.seen] == [
        (OP_UNMAP, FLAG_FUA),
        (OP_FLUSH, 0),
    ]


def test_only_what_is_written_is_paced() -> None:
    rig = filled()
    rig.good(cdbs.sanitize(BLOCK_ERASE))
    assert rig.surroundings.paced_bytes == 0
    overwrite(rig, pattern_list(b"x"))
    assert rig.surroundings.paced_bytes == SIZE


def test_a_volume_that_grows_meanwhile_is_done_to_its_new_end() -> None:
    rig = filled(deferred=True)
    running = overwrite(rig, pattern_list(b"x"))
    rig.device.size += BLOCK
    rig.device.write(SIZE, b"\xee" * BLOCK)
    while rig.device.waiting:
        rig.device.finish()
    assert running.result is not None
    assert rig.device.read(0, SIZE + BLOCK) == b"x" * (SIZE + BLOCK)


# -- what it refuses


@pytest.mark.parametrize("length", [0, 1, 2, 3, 4, BLOCK + 5])
def test_an_overwrite_list_of_a_wrong_length_is_refused(length: int) -> None:
    rig = filled()
    refused = rig.fault(cdbs.sanitize(OVERWRITE, length), bytes(length))
    assert (codes(refused), refused.field) == (INVALID_FIELD, 7)
    assert rig.device.seen == []


@pytest.mark.parametrize(
    ("parameters", "field"),
    [
        (pattern_list(b"x" * BLOCK, count=0), 0),
        (pattern_list(b"x" * BLOCK, flags=0x20), 0),
        (b"\x01\0\0\0" + bytes(BLOCK), 2),
        (b"\x01\0" + (BLOCK + 4).to_bytes(2, "big") + bytes(BLOCK), 2),
        (b"\x01\0" + (100).to_bytes(2, "big") + bytes(50), 2),
    ],
)
def test_a_wrong_overwrite_list_is_refused(parameters: bytes, field: int) -> None:
    rig = filled()
    refused = rig.fault(cdbs.sanitize(OVERWRITE, len(parameters)), parameters)
    assert (codes(refused), refused.field, refused.in_cdb) == (INVALID_PARAMETER, field, False)
    assert rig.device.seen == []
    assert rig.unit.sanitizing.condition is None


@pytest.mark.parametrize("action", [BLOCK_ERASE, CRYPTO_ERASE, EXIT_FAILURE_MODE])
def test_parameters_where_there_are_none_are_refused(action: int) -> None:
    rig = filled()
    assert codes(rig.fault(cdbs.sanitize(action, 8), bytes(8))) == INVALID_FIELD
    assert rig.device.seen == []


@pytest.mark.parametrize("action", [OVERWRITE, BLOCK_ERASE])
def test_reserved_bits_are_refused(action: int) -> None:
    rig = filled()
    length = BLOCK + 4 if action == OVERWRITE else 0
    for byte, bits in ((1, 0x40), (2, 2), (3, 3), (4, 4), (5, 5), (6, 6)):
        cdb = bytearray(cdbs.sanitize(action, length))
        cdb[byte] |= bits
        refused = rig.fault(bytes(cdb), bytes(length))
        assert (codes(refused), refused.field) == (INVALID_FIELD, byte)
    assert codes(rig.fault(cdbs.sanitize(0x04))) == INVALID_FIELD
    assert rig.device.seen == []


def test_a_read_only_unit_is_not_sanitized() -> None:
    rig = Rig(read_only=True)
    for action in (OVERWRITE, BLOCK_ERASE, CRYPTO_ERASE, EXIT_FAILURE_MODE):
        assert codes(rig.fault(cdbs.sanitize(action))) == (7, 0x27, 0)
    assert rig.device.seen == []


@given(st.binary(max_size=40))
def test_any_overwrite_list_is_a_pattern_or_refused(parameters: bytes) -> None:
    try:
        pattern = sanitize.overwrite_pattern(parameters, 16)
    except CheckCondition:
        return
    assert 0 < len(pattern) <= 16
    assert len(sanitize.repeated(pattern, 16)) == 16


# -- while it runs


def test_others_are_kept_out_and_told_how_far_it_is() -> None:
    rig = filled(deferred=True)
    other = rig.join(2)
    overwrite(rig, pattern_list(b"x"))
    rig.device.finish()
    rig.device.finish()
    rig.unit.next_attention(other)
    for nexus in (rig.nexus, other):
        for cdb in (TEST_UNIT_READY, cdbs.read(0, 1), cdbs.sanitize(BLOCK_ERASE)):
            refused = rig.fault(cdb, nexus=nexus)
            assert codes(refused) == IN_PROGRESS
            assert refused.progress == 2 * 65536 // 4
        rig.good(INQUIRY, nexus=nexus)
    assert rig.unit.sanitizing.condition == refused
    while rig.device.waiting:
        rig.device.finish()
    assert rig.unit.sanitizing.condition is None
    rig.good(TEST_UNIT_READY)


def test_progress_never_says_that_it_is_over() -> None:
    rig = filled(deferred=True)
    running = rig.start(cdbs.sanitize(BLOCK_ERASE))
    rig.device.finish()  # only the flush is left
    condition = rig.unit.sanitizing.condition
    assert condition is not None
    assert condition.progress == 65535
    rig.device.finish()
    assert running.result is not None


def test_what_others_have_under_way_is_aborted_and_they_are_told() -> None:
    rig = filled()
    other, idle = rig.join(2), rig.join(3)
    aborted: list[Nexus] = []

    def abort(nexus: Nexus, _: Countdown) -> bool:
        aborted.append(nexus)
        return nexus is other

    rig.unit.aborting.append(abort)
    rig.good(cdbs.sanitize(BLOCK_ERASE))
    assert aborted == [other, idle]
    assert codes(rig.fault(TEST_UNIT_READY, nexus=other)) == codes(sense.COMMANDS_CLEARED)
    rig.good(TEST_UNIT_READY, nexus=idle)
    rig.good(TEST_UNIT_READY)


def test_a_second_one_that_had_passed_the_checks_before_is_refused() -> None:
    rig = filled(deferred=True)
    late = rig.unit.prepare(rig.nexus, cdbs.sanitize(BLOCK_ERASE))
    overwrite(rig, pattern_list(b"x"))
    running = Running(late, b"", BLOCK)
    assert running.result is not None
    assert running.result.sense is not None
    assert codes(running.result.sense) == IN_PROGRESS


# -- what it survives


def test_it_is_kept_before_the_first_block_and_forgotten_after_the_last() -> None:
    rig = filled(deferred=True)
    running = rig.start(cdbs.sanitize(BLOCK_ERASE))
    assert sanitize.KEY in rig.surroundings.kept
    assert rig.device.waiting == 1
    rig.device.finish()
    assert sanitize.KEY in rig.surroundings.kept  # not flushed yet
    assert running.result is None
    rig.device.finish()
    assert rig.surroundings.kept == {}
    assert running.result is not None


def test_immediately_answers_at_once_and_goes_on_without_the_session() -> None:
    rig = filled()
    rig.good(cdbs.sanitize(BLOCK_ERASE, flags=IMMED))
    assert rig.device.seen == []
    assert codes(rig.fault(TEST_UNIT_READY)) == IN_PROGRESS
    assert sanitize.KEY in rig.surroundings.kept
    assert [result.status for result in rig.surroundings.run_background()] == [GOOD]
    assert rig.device.read(0, SIZE) == bytes(SIZE)
    assert rig.surroundings.kept == {}
    rig.good(TEST_UNIT_READY)


@pytest.mark.parametrize("steps", range(5))
def test_an_abort_or_the_end_of_the_session_does_not_stop_it(steps: int) -> None:
    rig = filled(deferred=True)
    running = overwrite(rig, pattern_list(b"x"))
    for _ in range(steps):
        rig.device.finish()
    running.task.abort()
    rig.unit.detach(rig.nexus)
    rig.nexus = rig.join(3)
    assert codes(rig.fault(TEST_UNIT_READY)) == IN_PROGRESS
    rig.device.finish()
    rig.device.deferred = False
    assert [result.status for result in rig.surroundings.run_background()] == [GOOD]
    assert rig.device.read(0, SIZE) == b"x" * SIZE
    rig.good(TEST_UNIT_READY)
    assert rig.surroundings.kept == {}


def test_a_reset_does_not_stop_it() -> None:
    rig = filled(deferred=True)
    overwrite(rig, pattern_list(b"x"))
    rig.unit.reset(but=rig.nexus)
    assert codes(rig.fault(TEST_UNIT_READY)) == IN_PROGRESS


@pytest.mark.parametrize("pieces", range(5))
def test_a_restart_begins_again_at_the_first_command(pieces: int) -> None:
    surroundings = FakeSurroundings()
    before = filled(deferred=True, surroundings=surroundings)
    overwrite(before, pattern_list(b"x"))
    before.device.finish(pieces)

    rig = filled(surroundings=surroundings)
    assert codes(rig.fault(TEST_UNIT_READY)) == IN_PROGRESS
    assert codes(rig.fault(TEST_UNIT_READY)) == IN_PROGRESS
    assert len(surroundings.background) == 1
    surroundings.run_background()
    assert rig.device.read(0, SIZE) == b"x" * SIZE
    assert surroundings.kept == {}
    rig.good(TEST_UNIT_READY)


def test_a_save_that_comes_late_does_not_bring_it_back() -> None:
    """Its task was aborted while the disk kept it; what it was to save is out of date."""
    rig = filled()
    prepared = rig.unit.prepare(rig.nexus, cdbs.sanitize(BLOCK_ERASE))
    assert isinstance(prepared, Prepared)
    task = Task()
    task.begin(prepared, memoryview(b""))
    assert isinstance(task.step, Await)
    task.waited()
    saving = task.step
    assert isinstance(saving, Work)
    task.abort()
    rig.surroundings.run_background()
    saving.call()
    assert rig.surroundings.kept == {}


# -- when it fails


def test_a_failure_keeps_commands_out_until_another_one_succeeds() -> None:
    rig = filled()
    fails(rig)
    for cdb in (TEST_UNIT_READY, cdbs.read(0, 1), cdbs.write(0, 1)):
        assert codes(rig.fault(cdb)) == FAILED
    rig.good(INQUIRY)
    assert rig.unit.sanitizing.condition == sanitize.FAILED
    rig.good(cdbs.sanitize(BLOCK_ERASE))
    rig.good(TEST_UNIT_READY)
    assert rig.device.read(0, SIZE) == bytes(SIZE)


def test_a_failure_survives_a_restart_and_is_not_tried_again() -> None:
    rig = filled()
    fails(rig)
    again = filled(surroundings=rig.surroundings)
    assert codes(again.fault(TEST_UNIT_READY)) == FAILED
    assert again.surroundings.background == []


def test_exit_failure_mode_lets_commands_in_when_that_was_allowed() -> None:
    rig = filled()
    fails(rig, flags=AUSE)
    rig.good(cdbs.sanitize(EXIT_FAILURE_MODE))
    rig.good(TEST_UNIT_READY)
    assert rig.surroundings.kept == {}


def test_exit_failure_mode_is_refused_when_it_was_not_allowed() -> None:
    rig = filled()
    fails(rig)
    assert codes(rig.fault(cdbs.sanitize(EXIT_FAILURE_MODE))) == FAILED
    refused = rig.fault(cdbs.sanitize(BLOCK_ERASE, flags=AUSE))
    assert (codes(refused), refused.field) == (INVALID_FIELD, 1)
    assert codes(rig.fault(TEST_UNIT_READY)) == FAILED


def test_exit_failure_mode_without_a_failure_is_good() -> None:
    rig = filled()
    rig.good(cdbs.sanitize(EXIT_FAILURE_MODE))
    assert rig.device.seen == []


def test_one_that_cannot_be_kept_does_not_begin() -> None:
    rig = filled()
    rig.surroundings.fails_to_save = True
    assert codes(rig.fault(cdbs.sanitize(BLOCK_ERASE))) == (4, 0x44, 0)
    assert rig.device.seen == []
    rig.good(TEST_UNIT_READY)


def test_nobody_gets_in_before_it_is_forgotten_for_good() -> None:
    """A restart would do it again, and take what was written since."""
    rig = filled(deferred=True)
    running = rig.start(cdbs.sanitize(BLOCK_ERASE, flags=AUSE))
    rig.surroundings.fails_to_save = True
    rig.device.finish()
    rig.device.finish()
    assert running.result is not None
    assert running.result.sense is not None
    assert codes(running.result.sense) == FAILED
    assert codes(rig.fault(cdbs.sanitize(EXIT_FAILURE_MODE))) == FAILED
    assert codes(rig.fault(TEST_UNIT_READY)) == FAILED
    rig.surroundings.fails_to_save = False
    rig.good(cdbs.sanitize(EXIT_FAILURE_MODE))
    rig.good(TEST_UNIT_READY)


def test_what_is_kept_says_what_to_do() -> None:
    rig = filled(deferred=True)
    overwrite(rig, pattern_list(b"\xab\xcd"), flags=AUSE)
    kept = json.loads(rig.surroundings.kept[sanitize.KEY])
    assert kept == {"pattern": "abcd", "unrestricted": True, "failed": False}


def test_the_smallest_volume_is_sanitized() -> None:
    rig = Rig(blocks=1)
    rig.device.write(0, b"x" * BLOCK)
    rig.good(cdbs.sanitize(CRYPTO_ERASE))
    assert rig.device.read(0, BLOCK) == bytes(BLOCK)
