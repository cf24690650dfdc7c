from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from volume.errors import InvalidName, InvalidSnapshotName, NoSuchVersion, VolumeError
from volume.refs import (
    CommitRef,
    HeadRef,
    Ref,
    SeqRef,
    SnapshotRef,
    TimeRef,
    check_snapshot_name,
    check_volume_name,
    format_time,
    parse,
    parse_time,
    parse_version,
    split,
)

S = 1_000_000_000
NOW = int(datetime(2026, 11, 22, 10, 31, 5, tzinfo=UTC).timestamp()) * S


@pytest.mark.parametrize(
    ("text", "ref"),
    [
        ("vol", HeadRef("vol")),
        ("disk:1", HeadRef("disk:1")),
        ("vol@monday", SnapshotRef("vol", "monday")),
        ("vol@2026-11-22", SnapshotRef("vol", "2026-11-22")),
        ("vol@20261122T103105Z", SnapshotRef("vol", "20261122T103105Z")),
        ("vol@seq", SnapshotRef("vol", "seq")),
        ("vol@10m", SnapshotRef("vol", "10m")),
        ("disk:1@a", SnapshotRef("disk:1", "a")),
        ("vol@seq:0", SeqRef("vol", 0)),
        ("vol@seq:18446744073709551615", SeqRef("vol", 2**64 - 1)),
        ("vol@commit:3f9a0c11", CommitRef("vol", "3f9a0c11")),
        ("vol@commit:3F9A0C11D", CommitRef("vol", "3f9a0c11d")),
        ("vol@commit:" + "ab" * 32, CommitRef("vol", "ab" * 32)),
        ("vol@2026-11-22T10:31:05Z", TimeRef("vol", NOW)),
        ("vol@2026-11-22T10:31:05", TimeRef("vol", NOW)),
        ("vol@2026-11-22 10:31:05", TimeRef("vol", NOW)),
        ("vol@2026-11-22t10:31:05z", TimeRef("vol", NOW)),
        ("vol@2026-11-22T10:31Z", TimeRef("vol", NOW - 5 * S)),
        ("vol@2026-11-22T11:31:05+01:00", TimeRef("vol", NOW)),
        ("vol@2026-11-22T11:31:05+01", TimeRef("vol", NOW)),
        ("vol@2026-11-22T05:01:05-0530", TimeRef("vol", NOW)),
        ("vol@2026-11-22T10:31:05.25Z", TimeRef("vol", NOW + S // 4)),
        ("vol@2026-11-22T10:31:05,000000001Z", TimeRef("vol", NOW + 1)),
        ("vol@-10m", TimeRef("vol", NOW - 600 * S)),
        ("vol@-1h30m", TimeRef("vol", NOW - 5400 * S)),
    ],
)
def test_refs(text: str, ref: Ref) -> None:
    assert parse(text, NOW) == ref


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("vol@seq:", "seq:12345"),
        ("vol@seq:-1", "seq:12345"),
        ("vol@seq:18446744073709551616", "seq:12345"),
        ("vol@seq:١", "seq:12345"),  # noqa: RUF001 - a digit, but not of ours
        ("vol@commit:3f9a0c1", "8 to 64 hex digits"),
        ("vol@commit:xxxxxxxx", "8 to 64 hex digits"),
        ("vol@commit:" + "a" * 65, "8 to 64 hex digits"),
        ("vol@-", "-10m"),
        ("vol@-10", "-10m"),
        ("vol@-10x", "-10m"),
        ("vol@--10m", "-10m"),
        ("vol@-99y", "-10m"),
        ("vol@-80w1d", "1970"),
        ("vol@10:31", "2026-11-22T10:31:05Z"),
        ("vol@2026-11-22T10:31:05X", "2026-11-22T10:31:05Z"),
        ("vol@2026-13-22T10:31:05Z", "2026-11-22T10:31:05Z"),
        ("vol@2026-11-22T10:31:60Z", "2026-11-22T10:31:05Z"),
        ("vol@2026-11-22T10:31:05+99:00", "2026-11-22T10:31:05Z"),
        ("vol@1969-12-31T23:59:59Z", "1970 to 2262"),
        ("vol@2300-01-01T00:00:00Z", "1970 to 2262"),
        ("vol@0001-01-01T00:00:00+23:59", "1970 to 2262"),
        ("vol@lun:1", "2026-11-22T10:31:05Z"),
        ("vol@vol@monday", "what follows the '@'"),
        ("vol@" + "a" * 129, "129 characters"),
    ],
)
def test_what_is_no_ref_says_what_would_be(text: str, why: str) -> None:
    now = NOW if "80w" not in text else 80 * 7 * 86400 * S
    with pytest.raises(NoSuchVersion) as caught:
        parse(text, now)
    assert why in str(caught.value)
    assert "blockd volume log vol" in str(caught.value)


@pytest.mark.parametrize("name", ["a", "2026-11-22", "before.upgrade_2", "9" * 128, "A-"])
def test_good_snapshot_names(name: str) -> None:
    check_snapshot_name(name)
    assert parse(f"vol@{name}", NOW) == SnapshotRef("vol", name)


@pytest.mark.parametrize(
    "name", ["", "-a", ".a", "a b", "a/b", "ä", "a:b", "a@b", "a\n", "a" * 129]
)
def test_bad_snapshot_names_are_refused(name: str) -> None:
    with pytest.raises(InvalidSnapshotName, match="snapshot name"):
        check_snapshot_name(name)


@pytest.mark.parametrize("name", ["", "-a", ".a", "a b", "a/b", "ä", "a@b", "a" * 129])
def test_bad_volume_names_are_refused(name: str) -> None:
    with pytest.raises(InvalidName, match="volume name"):
        check_volume_name(name)


@pytest.mark.parametrize("text", ["", "@", "@a", "a b@c", "a" * 129 + "@b"])
def test_a_ref_of_no_possible_volume_names_the_volume(text: str) -> None:
    with pytest.raises(InvalidName, match="volume name"):
        parse(text, NOW)


def test_split_looks_at_the_first_at_only() -> None:
    assert split("vol") == ("vol", None)
    assert split("vol@") == ("vol", "")
    assert split("vol@a@b") == ("vol", "a@b")


def test_a_version_alone() -> None:
    assert parse_version("vol", "seq:7", NOW) == SeqRef("vol", 7)


def test_two_relative_refs_of_one_moment_mean_one_instant() -> None:
    assert parse("vol@-60m", NOW) == parse("vol@-1h", NOW)


@given(st.text(max_size=300) | st.from_regex(r"\Avol@[-0-9TZ:.+a-w ]{0,40}\Z"))
def test_whatever_a_client_sends_is_a_ref_or_a_printable_short_refusal(text: str) -> None:
    try:
        ref = parse(text, NOW)
    except VolumeError as error:
        message = str(error)
        assert message.isprintable()
        assert len(message) < 2500
    else:
        assert parse(str(ref), NOW + 77) == ref


REFS = st.one_of(
    st.builds(HeadRef, st.just("vol")),
    st.builds(
        SnapshotRef,
        st.just("vol"),
        st.from_regex(r"\A[a-zA-Z0-9][\w.-]{0,20}\Z").filter(str.isascii),
    ),
    st.builds(SeqRef, st.just("vol"), st.integers(0, 2**64 - 1)),
    st.builds(CommitRef, st.just("vol"), st.from_regex(r"\A[0-9a-f]{8,64}\Z")),
    st.builds(TimeRef, st.just("vol"), st.integers(0, 2**63 - 1)),
)


@given(REFS)
def test_a_printed_ref_means_the_same(ref: Ref) -> None:
    assert parse(str(ref), NOW) == ref


@given(
    st.datetimes(datetime(1971, 1, 1), datetime(2261, 1, 1)),
    st.integers(-23 * 60, 23 * 60),
)
def test_times_are_as_the_calendar_has_them(naive: datetime, offset_minutes: int) -> None:
    when = naive.replace(tzinfo=timezone(timedelta(minutes=offset_minutes)))
    since = when - datetime(1970, 1, 1, tzinfo=UTC)
    expected = (since.days * 86400 + since.seconds) * S + since.microseconds * 1000
    assert parse_time(when.isoformat()) == expected


@pytest.mark.parametrize(
    ("time_ns", "text"),
    [
        (NOW, "2026-11-22T10:31:05Z"),
        (NOW + 250_000_000, "2026-11-22T10:31:05.250Z"),
        (NOW + 1_000, "2026-11-22T10:31:05.000001Z"),
        (NOW + 1, "2026-11-22T10:31:05.000000001Z"),
        (0, "1970-01-01T00:00:00Z"),
    ],
)
def test_times_print_all_of_their_digits(time_ns: int, text: str) -> None:
    assert format_time(time_ns) == text
