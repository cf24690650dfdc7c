"""The history of a world's volume that goes back: what may be read while nobody knows whether it
did, and what once that is known."""

from errno import EIO

import pytest

from tests.check.stamps import SECTOR
from tests.sim.cluster.history import History
from tests.sim.world.stamps import Violation

SECTORS = 16


def written(history: History, first: int = 0, count: int = SECTORS) -> bytes:
    """What a write that was acknowledged has left."""
    operation = history.begin("write", first, count)
    history.end(operation)
    return history.payload(operation, first, count)


def read(history: History, data: bytes, first: int = 0) -> None:
    history.saw(history.begin("read", first, len(data) // SECTOR), first, data)


def two_states() -> tuple[History, bytes, bytes]:
    """Of all sectors: the first one, and that of now."""
    history = History(SECTORS * SECTOR)
    return history, written(history), written(history)


def test_either_state_may_be_read_and_the_other_one_not_after_that() -> None:
    for back in (False, True):
        history, before, now = two_states()
        history.goes_back(before)
        seen, other = (before, now) if back else (now, before)
        read(history, seen)
        read(history, seen)
        with pytest.raises(Violation):
            read(history, other)


def test_what_went_back_for_certain_is_not_read_as_it_was() -> None:
    history, before, now = two_states()
    history.went_back(history.goes_back(before))
    read(history, before)
    with pytest.raises(Violation, match="I8"):
        read(history, now)


def test_what_did_not_go_back_is_not_read_as_if_it_had() -> None:
    history, before, now = two_states()
    history.did_not(history.goes_back(before))
    read(history, now)
    with pytest.raises(Violation, match="I1"):
        read(history, before)


def test_a_restore_that_was_seen_is_not_undone_unless_more_was_lost_than_may_be() -> None:
    for whole in (False, True):
        history, before, now = two_states()
        history.end(history.begin("flush"))
        history.goes_back(before)
        read(history, before)
        if whole:
            with pytest.raises(Violation, match="I1"):
                history.settle(None, whole=True)
        else:
            history.settle(None, whole=False)
            history.taken_over_after_loss(now)
            read(history, now)


def test_a_restore_is_kept_as_a_whole_or_not_at_all() -> None:
    history, before, now = two_states()
    branch = history.goes_back(before)
    history.settle(branch, whole=True)
    with pytest.raises(Violation, match="I"):
        history.taken_over(before[: 8 * SECTOR] + now[8 * SECTOR :])


def test_a_write_under_way_may_come_behind_the_restore_and_stays_then() -> None:
    history, before, _ = two_states()
    late = history.begin("write", 3, 1)
    history.went_back(history.goes_back(before))
    mixed = bytearray(before)
    read(history, bytes(mixed))
    mixed[3 * SECTOR : 4 * SECTOR] = history.payload(late, 3, 1)
    read(history, bytes(mixed))
    history.end(late, EIO)
    with pytest.raises(Violation, match="I1"):
        read(history, before)


def test_what_it_went_back_from_can_be_gone_back_to() -> None:
    history, before, now = two_states()
    history.went_back(history.goes_back(before))
    newer = written(history, 2, 3)
    mixed = before[: 2 * SECTOR] + newer + before[5 * SECTOR :]
    read(history, mixed)
    history.went_back(history.goes_back(now))
    read(history, now)
    history.went_back(history.goes_back(mixed))
    read(history, mixed)
    history.taken_over(mixed)
    history.final(mixed)
