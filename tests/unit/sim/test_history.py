"""The history checker accepts every state a volume may recover to, and catches each violation."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.sim.history import FlushAcked, History, Submitted, bounds, stamped

SECTOR = 512
SIZE = 8 * SECTOR


def three_writes() -> tuple[History, list[bytes]]:
    """1 writes sectors 0-3, 2 sectors 2-5, 3 zeroes sectors 1-2; the images of positions 0 to 3."""
    history = History(SIZE)
    history.write(0, 4 * SECTOR)
    history.write(2 * SECTOR, 4 * SECTOR)
    history.zero(SECTOR, 2 * SECTOR)
    return history, [history.content_at(position) for position in range(4)]


def with_sector(image: bytes, sector: int, content: bytes) -> bytes:
    return image[: sector * SECTOR] + content + image[(sector + 1) * SECTOR :]


def sector_of(image: bytes, sector: int) -> bytes:
    return image[sector * SECTOR : (sector + 1) * SECTOR]


def test_the_written_data_is_what_the_oracle_expects() -> None:
    history = History(SIZE)
    data = history.write(SECTOR, 2 * SECTOR)
    assert data == stamped(1, 1) + stamped(1, 2)
    assert history.content_at(1) == bytes(SECTOR) + data + bytes(5 * SECTOR)


@pytest.mark.parametrize("position", range(4))
def test_every_position_since_the_flush_is_a_legal_state(position: int) -> None:
    history, images = three_writes()
    verdict = history.check(images[position], at_least=position)
    assert verdict.ok
    assert verdict.cut == position
    assert str(position) in str(verdict)


def test_a_lost_acked_flush_is_caught() -> None:
    history, images = three_writes()
    verdict = history.check(images[1], at_least=2)
    assert not verdict.ok
    assert verdict.lost == (2, 3, 4, 5)
    assert "I2 older than the flush acked at 2: 4 sectors, 2, 3, 4, 5" in str(verdict)


def test_one_sector_older_than_the_flush_is_caught() -> None:
    history, images = three_writes()
    image = with_sector(images[3], 2, stamped(1, 2))
    verdict = history.check(image, at_least=3)
    assert (verdict.lost, verdict.offenders) == ((2,), (2,))


def test_a_later_write_without_an_earlier_one_is_caught() -> None:
    history, images = three_writes()
    image = with_sector(images[1], 4, stamped(2, 4))  # 2 is there in sector 4 only
    verdict = history.check(image)
    assert (verdict.cut, verdict.lost, verdict.torn) == (None, (), ())
    assert verdict.offenders == (4,)
    assert "I3 not of position 1 like the rest: 1 sectors, 4" in str(verdict)


def test_a_write_that_shows_in_part_is_no_prefix() -> None:
    history = History(SIZE)
    data = history.write(0, 2 * SECTOR)
    verdict = history.check(data[:SECTOR] + bytes(SIZE - SECTOR))
    assert not verdict.ok
    assert len(verdict.offenders) == 1


def test_zeros_that_come_before_their_turn_are_caught() -> None:
    history, images = three_writes()
    image = with_sector(images[1], 1, bytes(SECTOR))  # zeroed by 3, but 2 is missing
    assert not history.check(image).ok


def test_zeros_may_be_from_before_the_first_write_or_after_a_trim() -> None:
    history = History(SIZE)
    history.write(0, SECTOR)
    history.write(SECTOR, SECTOR)
    history.zero(0, SECTOR)
    assert history.check(bytes(SIZE)).cut == 0
    assert history.check(history.content_at(3), at_least=3).cut == 3
    image = bytes(SECTOR) + stamped(2, 1) + bytes(6 * SECTOR)
    assert history.check(image).cut == 3
    assert not history.check(image, at_most=2).ok


def test_a_torn_sector_is_caught() -> None:
    history, images = three_writes()
    torn = stamped(1, 3)[:100] + stamped(2, 3)[100:]
    for content in (torn, stamped(1, 3)[:256] + bytes(256)):
        verdict = history.check(with_sector(images[2], 3, content))
        assert (verdict.cut, verdict.torn) == (None, (3,))
        assert "I5 torn: 1 sectors, 3" in str(verdict)


def test_somebody_elses_bytes_are_caught() -> None:
    history, images = three_writes()
    moved = with_sector(images[3], 7, stamped(1, 0))  # right bytes, wrong place
    never = with_sector(images[3], 7, stamped(2, 7))  # 2 did not write sector 7
    future = with_sector(images[3], 3, stamped(9, 3))
    early = history.check(images[2], at_most=1)  # 2 had not been submitted
    assert [history.check(image).foreign for image in (moved, never, future)] == [
        (7,),
        (7,),
        (3,),
    ]
    assert history.check(b"\xff" * SIZE).foreign == tuple(range(8))
    assert early.foreign == (2, 3, 4, 5)
    assert "I8 foreign" in str(early)


def test_kill_needs_exactly_the_last_acked_write() -> None:
    history, images = three_writes()
    assert history.check(images[3], at_least=3, at_most=3).ok
    assert not history.check(images[2], at_least=3, at_most=3).ok


def test_bounds_come_from_the_marks_before_the_crash() -> None:
    marks = [Submitted(1), Submitted(2), FlushAcked(1), "other", Submitted(3)]
    assert bounds(marks) == (1, 3)
    assert bounds([]) == (0, 0)


def test_wrong_questions_are_refused() -> None:
    history = History(SIZE)
    with pytest.raises(ValueError, match="whole sectors"):
        history.write(1, SECTOR)
    with pytest.raises(ValueError, match="inside"):
        history.zero(SIZE, SECTOR)
    with pytest.raises(ValueError, match="image of 3 bytes"):
        history.check(b"abc")
    with pytest.raises(ValueError, match="no position"):
        history.check(bytes(SIZE), at_least=1)


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 12))
def test_the_checker_agrees_with_comparing_every_position(seed: int, count: int) -> None:
    rng = random.Random(seed)
    history = History(SIZE)
    for _ in range(count):
        first = rng.randrange(8)
        length = rng.randint(1, 8 - first) * SECTOR
        if rng.random() < 0.3:
            history.zero(first * SECTOR, length)
        else:
            history.write(first * SECTOR, length)
    states = [history.content_at(position) for position in range(count + 1)]
    image = b"".join(sector_of(rng.choice(states[-3:]), sector) for sector in range(8))
    at_least = rng.randint(0, count)
    legal = [p for p in range(at_least, count + 1) if states[p] == image]
    verdict = history.check(image, at_least=at_least)
    assert verdict.cut == (legal[-1] if legal else None)
    assert verdict.ok == bool(legal)
