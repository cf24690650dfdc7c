import io
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockd.cli.timeline import MIN_WIDTH, draw, shows_unicode
from volume.model import VersionInfo, VersionLog

S = 1_000_000_000
NOW = int(datetime(2026, 11, 22, 10, 31, 5, tzinfo=UTC).timestamp()) * S
KIB, MIB = 1 << 10, 1 << 20


def version(age_s: float, changed: int, *snapshots: str) -> VersionInfo:
    time_ns = NOW - int(age_s * S)
    return VersionInfo(1, 1, time_ns, "commit", 1 << 30, changed, None, None, snapshots)


def log(*versions: VersionInfo, window_s: int | None = None, more: bool = False) -> VersionLog:
    return VersionLog("vol", versions, more, None if window_s is None else NOW - window_s * S)


DAY = log(
    version(0, 4 * KIB),
    version(30, 64 * KIB),
    version(90, MIB),
    version(200, MIB),
    version(4000, 16 * MIB),
    version(4100, 64 * MIB, "before-upgrade"),
    version(4200, 0, "x"),
    version(9000, MIB, "monday"),
    version(12000, 4 * MIB, "a-very-long-name-of-a-snapshot"),
    window_s=600,
)


def test_wide() -> None:
    assert draw(DAY, 100, NOW) == [
        "         -3h            -2h30m         -2h            -1h30m         -1h            -30m"
        "         now",
        "▃                       ▂                                        █▅"
        "                              ▂▂▁",
        "◆────────┴──────────────◆──────────────┴──────────────┴─────────◆◆───┴──────────────┴"
        "─────────═════┴",
        "                        monday                                   before-upgrade",
        "a-very-long-name-of-a-s…                                        x",
        "═ every write since 10:21:05Z",
    ]


def test_narrow() -> None:
    assert draw(DAY, 40, NOW) == [
        "               -2h                   now",
        "▃        ▂               █▅           ▂▁",
        "◆────────◆─────┴─────────◆───────────══┴",
        "         before-upgrade +1",
        "         monday",
        "═ every write since 10:21:05Z",
        "◆ 1 more without room for the name",
    ]


def test_plain() -> None:
    assert draw(DAY, 60, NOW, unicode=False) == [
        "     -3h               -2h               -1h             now",
        "-             :                       #+                  :.",
        "o----+--------o--------+--------------o--+--------------===+",
        "              monday                  before-upgrade +1",
        "a-very-long-name-of-a-s~",
        "= every write since 10:21:05Z",
    ]


def test_without_versions_there_is_nothing_to_draw() -> None:
    assert draw(log(window_s=600), 80, NOW) == []


def test_one_version_of_right_now() -> None:
    assert draw(log(version(0, 1)), 40, NOW) == [
        "-1m                -30s              now",
        "                                       █",
        "┴──────────────────┴───────────────────┴",
    ]


def test_versions_that_changed_nothing() -> None:
    assert draw(log(version(60, 0)), 40, NOW)[1] == ""


def test_a_left_out_past_and_a_window_of_another_day() -> None:
    lines = draw(log(version(5 * 86400, 1), window_s=86400, more=True), 40, NOW)
    assert lines[2:] == [
        "╌──────┴───────────────┴───────════════┴",
        "═ every write since 2026-11-21T10:31:05Z",
    ]


def test_names_end_below_their_mark_at_the_right_edge() -> None:
    lines = draw(log(version(0, 1, "just-now"), version(600, 1, "b")), 40, NOW)
    assert lines[2][-1] == "◆"
    assert lines[3] == "b" + " " * 31 + "just-now"


def test_times_ahead_of_the_clock_are_drawn_at_its_end() -> None:
    assert draw(log(version(-500, 1)), 40, NOW)[1] == " " * 39 + "█"


def test_every_window_start_has_a_place() -> None:
    for window_s in (-5, 0, 10**9):
        assert len(draw(log(version(60, 1), window_s=window_s), 40, NOW)[2]) == 40


AGES = st.integers(0, 5).flatmap(lambda power: st.integers(0, 9 * 60**power // 5**power))
NAMES = st.from_regex(r"\A[a-z0-9][a-z0-9.-]{0,60}\Z")


@given(
    st.lists(st.builds(lambda age, n, s: version(age, n, *s), AGES, st.integers(0, 1 << 50),
             st.lists(NAMES, max_size=2)), min_size=1, max_size=30),
    st.none() | AGES,
    st.integers(0, 200),
    st.booleans(),
)  # fmt: skip
def test_it_fits_any_width(
    versions: list[VersionInfo], window_s: int | None, width: int, unicode: bool
) -> None:
    versions.sort(key=lambda one: -one.time_ns)
    lines = draw(log(*versions, window_s=window_s), width, NOW, unicode=unicode)
    assert max(map(len, lines)) == max(width, MIN_WIDTH)
    assert all(line.isprintable() and line == line.rstrip() for line in lines)
    assert unicode or all(line.isascii() for line in lines)
    marks = {"◆", "o"} & set(lines[2])
    assert bool(marks) == any(one.snapshots for one in versions)


class Terminal(io.TextIOWrapper):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        (Terminal(io.BytesIO(), encoding="UTF-8"), True),
        (Terminal(io.BytesIO(), encoding="utf8"), True),
        (Terminal(io.BytesIO(), encoding="ascii"), False),
        (io.TextIOWrapper(io.BytesIO(), encoding="UTF-8"), False),
        (io.StringIO(), False),
    ],
)
def test_block_characters_are_for_terminals_that_have_them(
    stream: io.TextIOWrapper, expected: bool
) -> None:
    assert shows_unicode(stream) is expected
