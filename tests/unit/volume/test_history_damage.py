"""Rows of the history tables with a key or a value that no server wrote: each reader says which."""

from collections.abc import Callable

import pytest

from volume import historyrows, layout
from volume.errors import CorruptData
from volume.framing import framed
from volume.history import History
from volume.historyrows import RoundRow, Settings, SnapshotRow, VersionRow
from volume.kv import MemoryKeyValue
from volume.laterkv import LaterKeyValue

DEFAULTS = Settings(0, "", 0)
NUMBER = layout.META_NUMBER_KEY.pack(1)
SEQ_KEY = layout.META_VERSION_KEY.pack(1, 5)
VERSION = framed(bytes(layout.META_VERSION_ROW.size))
SNAPSHOT = framed(bytes(layout.META_SNAPSHOT_ROW.size))
ROUND = framed(bytes(layout.META_ROUND_ROW.size))
SHORT = framed(b"short")

Read = Callable[[History], object]


def opened(rows: dict[bytes, bytes]) -> History:
    return History(LaterKeyValue(MemoryKeyValue(rows)), DEFAULTS)


def settings(keep: bytes, schedule_keep: bytes, schedule_s: int = 0) -> bytes:
    fixed = layout.META_SETTINGS_ROW.pack(0, schedule_s, 0, 0, len(keep), len(schedule_keep))
    return framed(fixed + keep + schedule_keep)


def refuses(rows: dict[bytes, bytes], read: Read) -> None:
    (key,) = rows
    with pytest.raises(CorruptData) as told:
        read(opened(rows))
    assert str(told.value).startswith(f"meta: value of {key!r} ")
    assert str(told.value).endswith("; restore meta from a copy")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (b"s/", SNAPSHOT),
        (b"s/\0\0\0", SNAPSHOT),
        (b"s/" + NUMBER + b"\xff", SNAPSHOT),
        (b"s/" + NUMBER + b"name", SHORT),
        (b"q/", VERSION),
        (b"q/" + SEQ_KEY[:-1], VERSION),
        (b"q/" + SEQ_KEY + b"x", VERSION),
    ],
)
def test_a_wrong_row_stops_the_start(key: bytes, value: bytes) -> None:
    refuses({key: value}, lambda found: found)


@pytest.mark.parametrize(
    ("key", "value", "read"),
    [
        (b"c/" + NUMBER, VERSION, lambda found: list(found.versions(1))),
        (b"c/" + SEQ_KEY[:-1], VERSION, lambda found: list(found.newest(1))),
        (b"c/" + SEQ_KEY + b"x", VERSION, lambda found: found.base(1)),
        (b"c/" + SEQ_KEY, SHORT, lambda found: found.version(1, 5)),
        (b"q/" + SEQ_KEY, SHORT, lambda found: found.points_of(1)),
        (b"r/", ROUND, lambda found: list(found.rounds())),
        (b"r/" + bytes(7), ROUND, lambda found: found.round_before(9)),
        (b"r/" + bytes(9), ROUND, lambda found: found.round_at(9)),
        (b"r/" + bytes(8), SHORT, lambda found: list(found.rounds())),
        (b"h/" + NUMBER, SHORT, lambda found: found.settings(1)),
        (b"h/" + NUMBER, settings(b"\xff", b""), lambda found: found.settings(1)),
        (b"h/" + NUMBER, settings(b"", b"\xff"), lambda found: found.settings(1)),
        (b"h/" + NUMBER[1:], settings(b"", b"", 9), lambda found: list(found.with_schedule())),
        (b"h/" + NUMBER + b"x", settings(b"", b"", 9), lambda found: list(found.with_schedule())),
        (b"x/\xff", framed(b""), lambda found: list(found.states(""))),
    ],
)
def test_a_wrong_row_is_refused_by_who_reads_it(key: bytes, value: bytes, read: Read) -> None:
    refuses({key: value}, read)


@pytest.mark.parametrize("body", [b"", bytes(7), bytes(9)])
def test_a_points_lsn_of_a_wrong_length_is_damage(body: bytes) -> None:
    later = LaterKeyValue(MemoryKeyValue({layout.META_KEY_POINTS_LSN: framed(body)}))
    with pytest.raises(CorruptData, match=r"b'points-lsn' is \d bytes long; restore meta"):
        assert later.points_lsn


def test_a_snapshot_that_changed_after_the_start_is_refused_among_the_newest() -> None:
    kv = MemoryKeyValue()
    found = History(LaterKeyValue(kv), DEFAULTS)
    kv.update({b"s/" + NUMBER + b"name": SHORT})
    with pytest.raises(CorruptData, match="5 bytes long"):
        found.newest_snapshots(1, 3)


def test_no_round_is_looked_for_before_record_0() -> None:
    assert opened(dict(historyrows.round_put(RoundRow(0, 1, 0, 0, 9)))).round_at(8) is None


def test_sound_rows_are_read() -> None:
    version, name = VersionRow(1, 5, 1, 5, 7, 4096), SnapshotRow(1, "näme", 5, 7)
    kept = Settings(60, "60m", 1, 3600, "24h", 7)
    rows = {
        **historyrows.versions_put([version]),
        **historyrows.points_put([version]),
        **historyrows.snapshots_put([name]),
        **historyrows.round_put(RoundRow(1, 2, 3, 4, 5)),
        **historyrows.settings_put(1, kept),
    }
    found = opened(rows)
    assert (list(found.versions(1)), found.points) == ([version], {(1, 5)})
    assert found.newest_snapshots(1, 3) == list(found.snapshots()) == [name]
    assert list(found.rounds()) == [RoundRow(1, 2, 3, 4, 5)]
    assert list(found.with_schedule()) == [(1, kept)]
