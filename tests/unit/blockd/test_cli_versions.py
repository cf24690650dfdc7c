"""`blockd volume log|history|restore|clone|diff` and `blockd space` against a real control API."""

import re
from dataclasses import asdict, replace

import pytest

from blockd.cli import exits
from blockd.cli.space import COLUMNS
from blockd.cli.times import age
from tests.command import Blockd
from tests.fake_node import FakeNode
from tests.fake_versions import NOW_NS, SECOND_NS
from volume.model import SpaceReport, SpaceRow, VersionInfo

GiB = 1 << 30
MiB = 1 << 20


@pytest.fixture(autouse=True)
def volumes(node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blockd.cli.versions.now_ns", lambda: NOW_NS)
    node.store.put(node.store.create_volume("a", GiB), seq=9)
    node.store.create_volume("b", 2 * GiB)


def version(seq: int, kind: str = "commit", **changes: object) -> VersionInfo:
    """One that is as old as `seq` is less than 9, in seconds."""
    base = VersionInfo(
        seq=seq,
        epoch=1,
        time_ns=NOW_NS - (9 - seq) * SECOND_NS,
        kind=kind,
        size=GiB,
        bytes=seq * 65536,
        offset=None,
        commit="c0" * 32,
        snapshots=(),
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def table_of(out: str) -> list[str]:
    """The lines of the log's table, without timeline and hints."""
    lines = out.splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith("TIME"))
    return lines[start : lines.index("", start)]


def test_a_log_is_one_line_a_version(node: FakeNode, blockd: Blockd) -> None:
    names = tuple(f"s{number}" for number in range(7))
    node.store.versions.logs["a"] = [
        version(9, "head"),
        version(5, snapshots=("before",)),
        version(2, snapshots=names),
    ]
    result = blockd("volume", "log", "a")
    assert table_of(result.out) == [
        "TIME                      AGE  SEQ  KIND    CHANGED  SNAPSHOTS",
        "2026-11-22T10:31:05.250Z   0s    9  head    576 KiB",
        "2026-11-22T10:31:01.250Z   4s    5  commit  320 KiB  before",
        "2026-11-22T10:30:58.250Z   7s    2  commit  128 KiB  s0, s1, s2, s3, s4 and 2 more",
    ]
    assert "blockd volume restore a --to seq:N" in result.out
    assert "single writes cannot be restored" in result.out


def test_times_in_a_log_are_refs(node: FakeNode, blockd: Blockd) -> None:
    node.store.versions.logs["a"] = [version(9, "head", time_ns=NOW_NS + 7)]
    shown = table_of(blockd("volume", "log", "a").out)[1].split()[0]
    assert shown == "2026-11-22T10:31:05.250000007Z"


def test_single_writes_are_shown_on_request(node: FakeNode, blockd: Blockd) -> None:
    node.store.versions.window_start_ns = NOW_NS - 600 * SECOND_NS
    node.store.versions.logs["a"] = [
        version(9, "head"),
        version(8, "write", bytes=4096, offset=3 * MiB),
        version(7, "unmap", bytes=MiB, offset=0),
    ]
    assert len(table_of(blockd("volume", "log", "a").out)) == 2
    result = blockd("volume", "log", "a", "--writes")
    assert table_of(result.out)[0].split()[4:6] == ["OFFSET", "CHANGED"]
    assert table_of(result.out)[2].split()[2:] == ["8", "write", "3MiB", "4", "KiB"]
    assert "= every write since 10:21:05" in result.out
    assert "single writes cannot be restored" not in result.out


def test_a_log_has_a_limit(node: FakeNode, blockd: Blockd) -> None:
    node.store.versions.logs["a"] = [version(seq) for seq in range(9, 0, -1)]
    result = blockd("volume", "log", "a", "--limit", "3")
    assert len(table_of(result.out)) == 4
    assert "older versions: blockd volume log a --limit 12" in result.out
    assert "older versions" not in blockd("volume", "log", "a").out
    assert blockd("volume", "log", "a", "-n", "0").code == exits.USAGE


def test_a_log_prints_json(node: FakeNode, blockd: Blockd) -> None:
    node.store.versions.logs["a"] = [version(9, "head"), version(5, snapshots=("before",))]
    found = blockd("volume", "log", "a", "--json").json
    assert (found["volume"], found["more"], found["window_start_ns"]) == ("a", False, None)
    assert found["versions"][1] == {**asdict(version(5)), "snapshots": ["before"]}


def test_a_log_of_nothing_is_a_table_of_nothing(blockd: Blockd) -> None:
    assert len(table_of(blockd("volume", "log", "b").out)) == 1


def test_history_is_shown_and_set(node: FakeNode, blockd: Blockd) -> None:
    assert blockd("volume", "history", "a", "--json").json == {
        "window_s": 600,
        "keep": "60m,24h,7d",
    }
    blockd("volume", "history", "a", "--window", "1h")
    blockd("volume", "history", "a", "--keep", "7d,24h")
    out = blockd("volume", "history", "a").out
    assert "window  every write of 1h, while there is room\n" in out
    assert "keep    24h,7d\n" in out
    blockd("volume", "history", "a", "--keep", "")
    assert node.store.versions.policy("a").keep == ""
    assert "nothing older" in blockd("volume", "history", "a").out


@pytest.mark.parametrize(("option", "value"), [("--window", "10"), ("--keep", "10")])
def test_wrong_history_is_refused(blockd: Blockd, option: str, value: str) -> None:
    result = blockd("volume", "history", "a", option, value)
    assert result.code == exits.USAGE
    assert "'10'" in result.err


@pytest.mark.parametrize("ref", ["before", "a@before", "seq:4", "a@seq:4"])
def test_restore_says_what_it_kept(node: FakeNode, blockd: Blockd, ref: str) -> None:
    node.store.snapshots.create("before", ["a"])
    result = blockd("volume", "restore", "a", "--to", ref)
    assert result.code == 0, result.err
    shown, seq = ref.removeprefix("a@"), 9 if "before" in ref else 4
    assert result.out.splitlines() == [
        f"volume a is as it was at {shown} (seq {seq})",
        "the state before is kept as a@before-restore-9; undo: "
        "blockd volume restore a --to before-restore-9",
    ]


def test_restore_prints_json(node: FakeNode, blockd: Blockd) -> None:
    result = blockd("volume", "restore", "a", "--to", "seq:4", "--json").json
    assert (result["restored_seq"], result["kept"]) == (4, "before-restore-9")
    assert result["volume"]["name"] == "a"


def test_an_age_may_follow_to(blockd: Blockd) -> None:
    result = blockd("volume", "restore", "a", "--to", "-10m")
    assert (result.code, result.err[:28]) == (exits.NOT_FOUND, "blockd: version a@2026-11-22")


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["a", "--to", "none"], exits.NOT_FOUND, "version a@none"),
        (["a", "--to", "seq:x"], exits.NOT_FOUND, "seq:12345"),
        (["c", "--to", "seq:1"], exits.NOT_FOUND, "volume c"),
        (["a", "--to", "b@x"], exits.USAGE, "blockd volume clone b@x"),
        (["a"], exits.USAGE, "--to"),
    ],
)
def test_wrong_restores(blockd: Blockd, arguments: list[str], code: int, says: str) -> None:
    result = blockd("volume", "restore", *arguments)
    assert result.code == code
    assert says in result.err


def test_restore_of_what_is_attached_needs_force(node: FakeNode, blockd: Blockd) -> None:
    node.store.attach("a", "10.0.0.1:5")
    result = blockd("volume", "restore", "a", "--to", "seq:1", "--yes")
    assert result.code == exits.CONFLICT
    assert "use --force" in result.err
    assert blockd("volume", "restore", "a", "--to", "seq:1", "--force").code == 0


@pytest.mark.parametrize(("answer", "code", "epoch"), [("y", 0, 2), ("n", 130, 1)])
def test_restore_asks_people(
    node: FakeNode,
    blockd: Blockd,
    monkeypatch: pytest.MonkeyPatch,
    answer: str,
    code: int,
    epoch: int,
) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("typer.confirm", lambda text: answer == "y")
    assert blockd("volume", "restore", "a", "--to", "seq:1").code == code
    assert node.store.info("a").epoch == epoch


def test_clone_makes_a_volume(node: FakeNode, blockd: Blockd) -> None:
    node.store.snapshots.create("one", ["b"])
    assert blockd("volume", "clone", "a", "c").out == "created volume c from a, 1 GiB\n"
    assert blockd("volume", "clone", "b@one", "d", "--json").json["name"] == "d"
    assert node.store.info("d").size == 2 * GiB
    assert blockd("volume", "clone", "a", "d").code == exits.CONFLICT
    assert blockd("volume", "clone", "a@none", "e").code == exits.NOT_FOUND
    assert blockd("volume", "clone", "none", "e").code == exits.NOT_FOUND


def test_a_diff_is_a_table_with_its_sum(node: FakeNode, blockd: Blockd) -> None:
    node.store.versions.extents = ((0, 65536), (3 * MiB, 5 * MiB))
    assert blockd("volume", "diff", "a@seq:1", "b").out.splitlines() == [
        "OFFSET  LENGTH",
        "    0B   64KiB",
        "  3MiB    5MiB",
        "size 1 GiB -> 2 GiB",
        "2 extents, 5.06 MiB (5308416 bytes) of 2 GiB differ",
    ]


def test_a_long_diff_is_cut_off_on_a_screen_only(node: FakeNode, blockd: Blockd) -> None:
    node.store.versions.extents = tuple((MiB * number, 65536) for number in range(1000))
    lines = blockd("volume", "diff", "a", "a@seq:1").out.splitlines()
    assert len(lines) == 43
    assert lines[-2] == "... and 960 more (--all shows them)"
    assert lines[-1] == "1000 extents, 62.5 MiB (65536000 bytes) of 1 GiB differ"
    assert len(blockd("volume", "diff", "a", "a@seq:1", "--all").out.splitlines()) == 1002
    found = blockd("volume", "diff", "a", "a@seq:1", "--json").json
    assert [tuple(extent) for extent in found["extents"]] == list(node.store.versions.extents)
    assert (found["extent_count"], found["changed_bytes"]) == (1000, 1000 * 65536)


def test_equal_versions_are_called_equal(blockd: Blockd) -> None:
    assert blockd("volume", "diff", "a", "a@seq:1").out == "a and a@seq:1 have the same contents\n"
    assert blockd("volume", "diff", "a", "a@none").code == exits.NOT_FOUND


def row(volume: str, kind: str, name: str | None = None, **changes: object) -> SpaceRow:
    base = SpaceRow(
        volume=volume,
        kind=kind,
        name=name,
        logical_bytes=GiB,
        raw_bytes=3 * MiB,
        stored_bytes=2 * MiB,
        exclusive_bytes=MiB // 2,
        shared_bytes=3 * MiB // 2,
        pinned_by=(),
    )
    return replace(base, **changes)  # type: ignore[arg-type]


REPORT = SpaceReport(
    rows=(
        row("b", "head", pinned_by=("head",)),
        row("a", "history", raw_bytes=0, stored_bytes=0, exclusive_bytes=0, shared_bytes=0),
        row("a", "snapshot", "one", pinned_by=("pin", "10.0.0.1:5")),
        row("a", "head", pinned_by=("head",)),
    ),
    volumes=(("a", 3 * MiB), ("b", MiB)),
    live_bytes=5 * MiB,
    garbage_bytes=4096,
    pack_bytes=6 * MiB,
    journal_bytes=128 * MiB,
    window_bytes=64 * MiB,
)


def test_space_is_one_line_a_version(node: FakeNode, blockd: Blockd) -> None:
    node.store.space_report = REPORT
    table, _, sums = blockd("space").out.partition("\n\n")
    assert [re.split("  +", line) for line in table.splitlines()] == [
        list(COLUMNS),
        ["a", "head", "1 GiB", "2 MiB", "1.50x", "1.5 MiB", "512 KiB", "head"],
        ["a", "@one", "1 GiB", "2 MiB", "1.50x", "1.5 MiB", "512 KiB", "pin, 10.0.0.1:5"],
        ["a", "history", "1 GiB", "0 B", "0 B", "0 B"],
        ["a", "all", "3 MiB"],
        ["b", "head", "1 GiB", "2 MiB", "1.50x", "1.5 MiB", "512 KiB", "head"],
        ["b", "all", "1 MiB"],
    ]
    assert "garbage  4 KiB, which gc removes\n" in sums
    assert "journal  128 MiB, 64 MiB of it only for restoring single writes\n" in sums


def test_space_of_one_volume_keeps_the_sums(node: FakeNode, blockd: Blockd) -> None:
    node.store.space_report = REPORT
    found = blockd("space", "b", "--json").json
    assert [each["volume"] for each in found["rows"]] == ["b"]
    assert found["volumes"] == [["b", MiB]]
    assert found["live_bytes"] == 5 * MiB
    assert blockd("space", "c").code == exits.NOT_FOUND


def test_a_volume_may_choose_its_codec(node: FakeNode, blockd: Blockd) -> None:
    blockd("volume", "create", "c", "1G", "--compression", "zstd")
    blockd("volume", "create", "d", "1G")
    assert node.store.info("c").compression == "zstd"
    assert node.store.info("d").compression == "lz4"
    assert blockd("volume", "create", "e", "1G", "--compression", "rar").code == exits.USAGE


def test_show_has_versions_and_plans(node: FakeNode, blockd: Blockd) -> None:
    node.store.snapshots.create("one", ["a"])
    node.store.snapshots.set_schedule("a", 900, "24h")
    out = blockd("volume", "show", "a").out
    assert "compression   lz4\n" in out
    assert "snapshots     1\n" in out
    assert "window        every write of 10m, while there is room\n" in out
    assert "schedule      a snapshot every 15m, kept 24h\n" in out
    assert "schedule      none\n" in blockd("volume", "show", "b").out
    shown = blockd("volume", "show", "a", "--json").json
    assert (shown["snapshot_count"], shown["history"]["window_s"]) == (1, 600)
    assert shown["schedule"]["every_s"] == 900


def test_delete_of_a_volume_with_snapshots_needs_force(node: FakeNode, blockd: Blockd) -> None:
    node.store.snapshots.create("one", ["a"])
    result = blockd("volume", "delete", "a", "--yes")
    assert result.code == exits.CONFLICT
    assert "has 1 snapshot(s)" in result.err
    assert blockd("volume", "delete", "a", "--force").code == 0


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (-5, "0s"),
        (0, "0s"),
        (59, "59s"),
        (60, "1m"),
        (3599, "59m59s"),
        (3 * 3600 + 59, "3h"),
        (3 * 3600 + 60, "3h1m"),
        (86400 * 13, "1w6d"),
        (86400 * 7 * 100, "100w"),
    ],
)
def test_ages_have_two_units(seconds: int, shown: str) -> None:
    assert age(NOW_NS - seconds * SECOND_NS, NOW_NS) == shown
