from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from volume.errors import InvalidDuration, InvalidPolicy
from volume.retention import (
    UNITS,
    Policy,
    Rule,
    format_duration,
    parse,
    parse_duration,
    select,
)

S = 1_000_000_000
M, H, D, W = (UNITS[unit] * S for unit in "mhdw")


def at(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * S


def stay(times: list[int], policy: str, now_ns: int) -> list[int]:
    chosen = select(times, parse(policy), now_ns)
    return [time for time, stays in zip(times, chosen, strict=True) if stays]


# -- what stays


def test_the_newest_of_each_of_the_last_hours_stays() -> None:
    times = [at(f"2026-11-22T{hour:02}:{minute}:00") for hour in range(6) for minute in (10, 40)]
    kept = stay(times, "3h", at("2026-11-22T08:00:00"))
    assert kept == [at("2026-11-22T03:40:00"), at("2026-11-22T04:40:00"), at("2026-11-22T05:40:00")]


def test_rules_add_up() -> None:
    times = [at(f"2026-11-{day}T{hour:02}:00:00") for day in (19, 20, 21) for hour in (1, 2, 3)]
    assert stay(times, "2h,2d", at("2026-11-22T00:00:00")) == [
        at("2026-11-20T03:00:00"),
        at("2026-11-21T02:00:00"),
        at("2026-11-21T03:00:00"),
    ]


def test_days_begin_at_midnight_utc_and_weeks_on_monday() -> None:
    sunday, monday = at("2026-11-22T23:59:59"), at("2026-11-23T00:00:00")
    assert [Rule(1, unit).bucket(monday) - Rule(1, unit).bucket(sunday) for unit in "smhdw"] == [
        1
    ] * 5
    assert Rule(1, "w").bucket(sunday) == Rule(1, "w").bucket(at("2026-11-16T00:00:00"))


def test_everything_younger_than_the_smallest_unit_stays() -> None:
    now = at("2026-11-22T10:30:00")
    times = [now - H, now - H + 1, now - 2 * M, now - M, now]
    assert stay(times, "1h,1d", now) == times[1:]


def test_the_newest_of_all_stays_whatever_the_policy_says() -> None:
    assert stay([1 * D, 2 * D, 3 * D], "", 900 * D) == [3 * D]
    assert stay([], "24h", 0) == []


def test_a_volume_that_nobody_writes_to_keeps_what_it_has() -> None:
    times = [D + hour * H for hour in range(30)]
    soon, late = stay(times, "24h,7d", D + 31 * H), stay(times, "24h,7d", 5000 * D)
    assert late == soon
    assert late == times[6:]


def test_a_clock_that_was_ahead_for_a_while_costs_no_version_of_before_or_after() -> None:
    before = [1000 * D + hour * H for hour in range(10)]
    ahead = [1400 * D + minute * M for minute in range(60)]
    after = [1000 * D + hour * H for hour in range(10, 20)]
    kept = stay(before + ahead + after, "24h", 1000 * D + 20 * H)
    assert kept == [*before, ahead[-1], *after]


def test_a_clock_that_was_ahead_leaves_no_version_for_ever() -> None:
    ahead = [1400 * D + hour * H for hour in range(24)]
    after = [1000 * D + hour * H for hour in range(24)]
    assert stay(ahead + after, "24h", 1001 * D) == after


@pytest.mark.parametrize("now_ns", [0, 999 * D, 1002 * D, 9000 * D])
def test_the_clock_alone_never_thins_what_the_rules_keep(now_ns: int) -> None:
    times = [1000 * D + hour * H for hour in range(24)]
    assert stay(times, "24h,7d", now_ns) == times


POLICIES = st.lists(
    st.builds(Rule, st.integers(1, 5), st.sampled_from("smhdw")),
    max_size=3,
    unique_by=lambda rule: rule.unit,
).map(lambda rules: Policy(tuple(sorted(rules, key=lambda rule: UNITS[rule.unit]))))
GAPS = st.integers(0, 5).flatmap(lambda power: st.integers(0, 3 * 10**power)).map(lambda s: s * S)
HISTORIES = st.lists(st.tuples(GAPS, st.integers(0, 2)), max_size=80)
"""(time since the one before, 0: nothing, 1: a version, 2: a version, and thin)."""


@given(HISTORIES, POLICIES)
def test_thinning_often_leaves_what_thinning_once_leaves(
    history: list[tuple[int, int]], policy: Policy
) -> None:
    now, every, left = 20_000 * D, list[int](), list[int]()
    for gap, what in history:
        now += gap
        if what:
            every.append(now)
            left.append(now)
        if what == 2:
            left = stay(left, str(policy), now)
    assert stay(left, str(policy), now) == stay(every, str(policy), now)


@given(st.lists(st.tuples(st.integers(0, 3 * 10**6), st.booleans()), max_size=60), POLICIES)
def test_with_clocks_that_jump_the_rules_still_leave_the_same(
    history: list[tuple[int, bool]], policy: Policy
) -> None:
    """Freshness aside, which is why `now` is never near. Versions are told apart by position."""
    far = 10**6 * D
    times = [seconds * S for seconds, _ in history]
    left: list[int] = []  # indexes of times
    for index, (_, thin) in enumerate(history):
        left.append(index)
        if thin:
            chosen = select([times[kept] for kept in left], policy, far)
            left = [kept for kept, stays in zip(left, chosen, strict=True) if stays]
    chosen = select([times[kept] for kept in left], policy, far)
    left = [kept for kept, stays in zip(left, chosen, strict=True) if stays]
    assert left == [index for index, stays in enumerate(select(times, policy, far)) if stays]


@given(st.lists(st.integers(0, 10**7), min_size=1), POLICIES, st.integers(0, 10**8))
def test_each_rule_keeps_as_many_units_as_it_says_or_there_are(
    seconds: list[int], policy: Policy, now_s: int
) -> None:
    times = [second * S for second in seconds]
    kept = stay(times, str(policy), now_s * S)
    assert kept[-1] == times[-1]
    for rule in policy.rules:
        there, left = ({rule.bucket(time) for time in some} for some in (times, kept))
        assert len(left) >= min(rule.count, len(there))


# -- policies as text


@pytest.mark.parametrize(
    ("text", "rules", "printed"),
    [
        ("24h,7d,4w", [(24, "h"), (7, "d"), (4, "w")], "24h,7d,4w"),
        (" 4w , 24h ", [(24, "h"), (4, "w")], "24h,4w"),
        ("090s", [(90, "s")], "90s"),
        ("60m,24h", [(60, "m"), (24, "h")], "60m,24h"),
        ("", [], ""),
        ("  ", [], ""),
    ],
)
def test_policies(text: str, rules: list[tuple[int, str]], printed: str) -> None:
    policy = parse(text)
    assert policy == Policy(tuple(Rule(*rule) for rule in rules))
    assert str(policy) == printed


@given(POLICIES)
def test_a_printed_policy_means_the_same(policy: Policy) -> None:
    assert parse(str(policy)) == policy


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("24", "'24' has no unit"),
        ("24h,7", "'7' has no unit"),
        ("24y", "'24y' has the unit 'y'"),
        ("24H", "'24H' has the unit 'H'"),
        ("h", "'h' is not a count and a unit"),
        ("24h,", "'' is not a count and a unit"),
        ("24h 7d", "'24h 7d' is not a count and a unit"),
        ("-1h", "'-1h' is not a count and a unit"),
        ("1.5h", "'1.5h' is not a count and a unit"),
        ("0h", "the count of '0h' is not 1 to 100000"),
        ("100001s", "is not 1 to 100000"),
        ("1h,2h", "has unit 'h' twice"),
        ("٣h", "is not a count"),
        ("1" * 65, "is longer than 64 characters"),
    ],
)
def test_bad_policies_say_why(text: str, why: str) -> None:
    with pytest.raises(InvalidPolicy) as caught:
        parse(text)
    assert why in str(caught.value)
    assert "24h,7d,4w" in str(caught.value)


# -- durations


@pytest.mark.parametrize(
    ("text", "seconds", "printed"),
    [
        ("90s", 90, "1m30s"),
        ("15m", 900, "15m"),
        ("24h", 86400, "1d"),
        ("1h30m", 5400, "1h30m"),
        (" 2w1d ", 15 * 86400, "2w1d"),
        ("1w1d1h1m1s", 694861, "1w1d1h1m1s"),
    ],
)
def test_durations(text: str, seconds: int, printed: str) -> None:
    assert parse_duration(text) == seconds
    assert format_duration(seconds) == printed


@given(st.integers(1, 100 * 366 * 86400))
def test_a_printed_duration_means_the_same(seconds: int) -> None:
    assert parse_duration(format_duration(seconds)) == seconds


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "is not a count and a unit"),
        ("m", "is not a count and a unit"),
        ("15", "'15' has no unit"),
        ("15min", "'15min' has the unit 'min'"),
        ("-15m", "is not a count and a unit"),
        ("15m!", "is not a count and a unit"),
        ("30m1h", "falling order"),
        ("1m1m", "falling order"),
        ("0s", "not 1 to"),
        ("9999999w", "not 1 to"),
        ("1" * 65, "is longer than 64 characters"),
    ],
)
def test_bad_durations_say_why(text: str, why: str) -> None:
    with pytest.raises(InvalidDuration) as caught:
        parse_duration(text)
    assert why in str(caught.value)
    assert "15m or 1h30m" in str(caught.value)
