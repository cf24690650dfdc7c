"""Retention: which versions stay when old ones are thinned out.

A policy is a list of rules, written `24h,7d,4w`: the newest version in each of the last 24 hours,
7 days and 4 weeks stays. Hours, days and so on are those of the calendar in UTC (weeks begin on
Monday). Beside what the rules name there stays

- every version that is younger than one of the policy's smallest unit (an hour, above), so that
  nothing is thinned while it is fresh;
- the newest version of all, whatever the policy says.

Only hours that *have* a version are counted, so "the last 24 hours" are 24 hours in which something
was kept. A volume that nobody writes to loses nothing by waiting, nor does anything by a machine
that was off. "Newest" and "last" go by the order of the versions, not by their times: clocks jump,
and versions that were made while the clock was a year ahead count as one hour each, wherever they
stand, and go when 24 others have come after them.

Thinning is stable: thinning often leaves what thinning once, at the end, would leave. For that, the
newest version of an hour stays as long as its hour counts, and an hour only ever moves back in the
list of those that do. (Freshness alone needs a clock that does not jump.)

Pure functions; the clock is passed in.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from volume.errors import InvalidDuration, InvalidPolicy

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
"""Seconds of each unit, smallest first."""

MAX_COUNT = 100_000  # of one rule: more versions than that are a mistake, not a policy
MAX_DURATION_S = 100 * 366 * UNITS["d"]
MAX_TEXT = 64  # characters of a policy or duration; the longest sensible one has 40

_NS = 1_000_000_000
_MONDAY = 4 * UNITS["d"] * _NS  # 1970-01-05: the first Monday at or after the epoch
_PART = re.compile(r"([0-9]+)([a-zA-Z]*)")


@dataclass(frozen=True, slots=True)
class Rule:
    """Keep the newest version in each of the last `count` units ("s", "m", "h", "d" or "w")."""

    count: int
    unit: str

    def bucket(self, time_ns: int) -> int:
        """Which unit since 1970 a time is in."""
        return (time_ns - _MONDAY) // (UNITS[self.unit] * _NS)


@dataclass(frozen=True, slots=True)
class Policy:
    """Rules, smallest unit first, each unit at most once. Without rules only the newest stays."""

    rules: tuple[Rule, ...] = ()

    @property
    def fresh_ns(self) -> int:
        """Versions younger than this stay in any case."""
        return UNITS[self.rules[0].unit] * _NS if self.rules else 0

    def __str__(self) -> str:
        """As `parse` reads it."""
        return ",".join(f"{rule.count}{rule.unit}" for rule in self.rules)


def parse(text: str) -> Policy:
    """The policy that `24h,7d,4w` means; "" is the one without rules. InvalidPolicy."""
    if len(text) > MAX_TEXT:
        raise InvalidPolicy(f"{text[:MAX_TEXT]}...", f"is longer than {MAX_TEXT} characters")
    if not text.strip():
        return Policy()
    found: dict[str, Rule] = {}
    for part in text.split(","):
        match = _PART.fullmatch(part.strip())
        if match is None:
            raise InvalidPolicy(text, f"{part.strip()!r} is not a count and a unit")
        rule = Rule(int(match[1]), match[2])
        if rule.unit not in UNITS:
            raise InvalidPolicy(text, _bad_unit(part.strip(), rule.unit))
        if not 1 <= rule.count <= MAX_COUNT:
            raise InvalidPolicy(text, f"the count of {part.strip()!r} is not 1 to {MAX_COUNT}")
        if rule.unit in found:
            raise InvalidPolicy(text, f"has unit {rule.unit!r} twice")
        found[rule.unit] = rule
    return Policy(tuple(found[unit] for unit in UNITS if unit in found))


def select(times_ns: Sequence[int], policy: Policy, now_ns: int) -> list[bool]:
    """Which versions stay: True for each of `times_ns` that does.

    `times_ns` are the times of the versions in their order, oldest first, in ns since 1970; they
    need not ascend."""
    stays = [abs(now_ns - time_ns) < policy.fresh_ns for time_ns in times_ns]
    if stays:
        stays[-1] = True
    for rule in policy.rules:
        seen: set[int] = set()
        for index in range(len(times_ns) - 1, -1, -1):
            bucket = rule.bucket(times_ns[index])
            if bucket not in seen:
                if len(seen) == rule.count:
                    break
                seen.add(bucket)
                stays[index] = True
    return stays


def parse_duration(text: str) -> int:
    """Seconds that `15m` or `1h30m` means; at least 1. InvalidDuration."""
    if len(text) > MAX_TEXT:
        raise InvalidDuration(f"{text[:MAX_TEXT]}...", f"is longer than {MAX_TEXT} characters")
    seconds, end = 0, 0
    left = list(UNITS)  # units that may still come: each is smaller than the one before
    stripped = text.strip()
    while match := _PART.match(stripped, end):
        count, unit = match.groups()
        if unit not in UNITS:
            raise InvalidDuration(text, _bad_unit(match[0], unit))
        if unit not in left:
            raise InvalidDuration(text, "units must come in falling order, each once")
        left = left[: left.index(unit)]
        seconds += int(count) * UNITS[unit]
        end = match.end()
    if end != len(stripped) or not stripped:
        raise InvalidDuration(text, "is not a count and a unit")
    if not 1 <= seconds <= MAX_DURATION_S:
        raise InvalidDuration(text, f"is {seconds} seconds long, not 1 to {MAX_DURATION_S}")
    return seconds


def format_duration(seconds: int) -> str:
    """`seconds` (at least 1) so that `parse_duration` gives them back: "15m", "1h30m"."""
    assert seconds >= 1
    parts = []
    for unit in reversed(UNITS):
        count, seconds = divmod(seconds, UNITS[unit])
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts)


def _bad_unit(part: str, unit: str) -> str:
    return f"{part!r} has the unit {unit!r}" if unit else f"{part!r} has no unit"
