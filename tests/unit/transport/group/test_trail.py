"""By how much, and since when, somebody is behind a primary; what cannot be known is not said."""

import random

import pytest

from transport.group.acks import NodeId
from transport.group.link import Link, State, shown
from transport.group.trail import MOST, Trail

NODE = NodeId("b" * 32)


def test_what_follows_a_seq_is_counted_in_bytes_and_seconds() -> None:
    trail = Trail(10)
    trail.add(20, 1000, now=100.0)
    trail.add(30, 400, now=105.0)
    assert trail.behind(30, 106.0) == (0, 0.0)
    assert trail.behind(20, 106.0) == (400, 1.0)
    assert trail.behind(10, 106.0) == (1400, 6.0)
    assert trail.behind(15, 106.0) == (900, 6.0)  # in the middle of a stretch


def test_what_was_written_before_it_began_is_not_known() -> None:
    trail = Trail(10)
    assert trail.behind(9, 5.0) is None
    trail.add(11, 50, 1.0)
    assert trail.behind(9, 5.0) is None
    assert trail.behind(10, 5.0) == (50, 4.0)


def test_what_a_lost_tap_did_not_tell_is_not_known() -> None:
    trail = Trail(0)
    trail.add(5, 500, 1.0)
    trail.lost(50)
    assert trail.behind(5, 2.0) is None
    assert trail.behind(50, 2.0) == (0, 0.0)
    trail.add(51, 100, 3.0)
    assert trail.behind(50, 4.0) == (100, 1.0)
    assert trail.behind(49, 4.0) is None


def test_memory_is_bounded_and_nothing_is_forgotten() -> None:
    rng = random.Random(7)
    trail, seq, total, now = Trail(0), 0, 0, 0.0
    for _ in range(20 * MOST):
        seq, length, now = seq + rng.randint(1, 9), rng.randint(1, 99), now + rng.uniform(0.1, 9)
        total += length
        trail.add(seq, length, now)
    assert len(trail._stretches) <= MOST
    found = trail.behind(0, now)
    assert found is not None
    assert found[0] == total
    assert found[1] == pytest.approx(now, abs=9)
    halves = trail.behind(seq // 2, now)
    assert halves is not None
    assert 0.4 * total < halves[0] < 0.6 * total


def test_time_left_is_by_the_rate_at_which_it_catches_up_while_others_are_written() -> None:
    trail = Trail(0)
    trail.add(1000, 100_000, now=0.0)  # long before
    link = Link(NODE, state=State.CATCHING, received=0, caught=(90.0, 0))
    first = shown(link, trail, True, now=90.0)
    assert (first.behind_bytes, first.behind_s, first.left_s) == (100_000, 90.0, None)
    link.received = 500  # 50,000 bytes in 10 s
    half = shown(link, trail, True, now=100.0)
    assert (half.behind_bytes, half.left_s) == (50_000, 10.0)
    trail.add(1001, 20_000, now=100.0)  # 2,000 a second are written meanwhile
    more = shown(link, trail, True, now=100.0)
    assert more.behind_bytes == 70_000
    assert more.left_s == pytest.approx(70_000 / 3000)
    trail.add(1002, 40_000, now=100.5)  # faster than it catches up: nobody can tell
    assert shown(link, trail, True, now=100.5).left_s is None


def test_a_member_that_is_away_has_no_time_left_but_is_known_to_lack_bytes() -> None:
    trail = Trail(0)
    trail.add(10, 4096, now=1.0)
    away = shown(Link(NODE, received=5), trail, True, now=3.0)
    assert (away.behind_bytes, away.behind_s, away.left_s) == (2048, 2.0, None)
    nothing = shown(Link(NODE, received=5), None, True, now=3.0)
    assert (nothing.behind_bytes, nothing.behind_s, nothing.left_s) == (None, None, None)
