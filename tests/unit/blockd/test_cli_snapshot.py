"""`blockd snapshot ...` against a real control API: output, errors, exit codes."""

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace

import pytest

from blockd.cli import exits
from blockd.cli.completion import join_words
from tests.command import Blockd, Result
from tests.fake_node import FakeNode
from tests.fake_versions import NOW_NS, SECOND_NS

GiB = 1 << 30
DAY_NS = 86400 * SECOND_NS


@pytest.fixture(autouse=True)
def volumes(node: FakeNode) -> None:
    node.store.create_volume("a", GiB)
    node.store.create_volume("b", 2 * GiB)


def names(node: FakeNode) -> list[str]:
    return sorted(f"{each.volume}@{each.name}" for each in node.store.snapshots.all())


def test_create_says_what_it_made(node: FakeNode, blockd: Blockd) -> None:
    assert blockd("snapshot", "create", "a@one") == Result(0, "created snapshot a@one\n", "")
    assert names(node) == ["a@one"]
    assert not node.store.snapshots.get("a", "one").pinned


def test_create_prints_json(node: FakeNode, blockd: Blockd) -> None:
    result = blockd("snapshot", "create", "a@one", "--pin", "--json")
    assert result.json == [asdict(node.store.snapshots.get("a", "one"))]
    assert result.json[0]["pinned"] is True


@pytest.mark.parametrize(
    "arguments",
    [
        ["x", "--group", "a,b"],
        ["a@x", "--group", "b"],
        ["a@x", "--group", "a,b,b"],
        ["x", "--group", "a", "--group", "b"],
    ],
)
def test_a_group_is_one_instant(node: FakeNode, blockd: Blockd, arguments: list[str]) -> None:
    out = blockd("snapshot", "create", *arguments).out
    assert out.splitlines() == ["created snapshot a@x", "created snapshot b@x"]
    assert len({each.created_ns for each in node.store.snapshots.all()}) == 1


def test_a_group_is_all_or_nothing(node: FakeNode, blockd: Blockd) -> None:
    blockd("snapshot", "create", "b@x")
    result = blockd("snapshot", "create", "x", "--group", "a,b")
    assert result.code == exits.CONFLICT
    assert "snapshot b@x: exists already" in result.err
    assert names(node) == ["b@x"]


@pytest.mark.parametrize("name", ["one", "@one", "a@", "@", ""])
def test_a_snapshot_needs_volume_and_name(blockd: Blockd, name: str) -> None:
    result = blockd("snapshot", "create", name)
    assert result.code == exits.USAGE
    assert "write VOL@NAME" in result.err


@pytest.mark.parametrize("command", ["show", "delete", "pin", "unpin"])
def test_what_is_no_snapshot_is_refused(blockd: Blockd, command: str) -> None:
    assert blockd("snapshot", command, "a").code == exits.USAGE
    assert blockd("snapshot", command, "a@x").code == exits.NOT_FOUND
    assert blockd("snapshot", command, "c@x").code == exits.NOT_FOUND
    assert blockd("snapshot", command, "a@x/y").code == exits.NOT_FOUND


def test_a_wrong_name_is_explained(blockd: Blockd) -> None:
    result = blockd("snapshot", "create", "a@seq:1")
    assert result.code == exits.USAGE
    assert "contains ':'" in result.err


def test_list_is_one_line_a_snapshot(
    node: FakeNode, blockd: Blockd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blockd.cli.snapshot.now_ns", lambda: NOW_NS + 3 * DAY_NS)
    store = node.store.snapshots
    store.create("late", ["b"])
    store.create("early", ["a"], pinned=True)
    store.put(replace(store.get("b", "late"), seq=12345, scheduled=True, pinned=True))
    assert blockd("snapshot", "list").out.splitlines() == [
        "SNAPSHOT  CREATED                 AGE   SIZE    SEQ  KEPT BY",
        "a@early   2026-11-22T10:31:06Z  2d23h  1 GiB      0  pin",
        "b@late    2026-11-22T10:31:05Z     3d  2 GiB  12345  pin, schedule",
    ]


def test_list_is_by_volume_and_oldest_first(node: FakeNode, blockd: Blockd) -> None:
    for volume, name in (("b", "z"), ("a", "z"), ("b", "y"), ("a", "x")):
        node.store.snapshots.create(name, [volume])
    listed = blockd("snapshot", "list", "--json").json
    assert [(each["volume"], each["name"]) for each in listed] == [
        ("a", "z"),
        ("a", "x"),
        ("b", "z"),
        ("b", "y"),
    ]
    assert [each["name"] for each in blockd("snapshot", "list", "a", "--json").json] == ["z", "x"]


def test_list_of_the_newest(node: FakeNode, blockd: Blockd) -> None:
    for name in ("one", "two", "three"):
        node.store.snapshots.create(name, ["a"])
    listed = blockd("snapshot", "list", "--limit", "2", "--json").json
    assert [each["name"] for each in listed] == ["two", "three"]


def test_list_of_no_volume_is_an_error(blockd: Blockd) -> None:
    assert blockd("snapshot", "list", "c").code == exits.NOT_FOUND
    assert blockd("snapshot", "list", "--json").json == []


def test_a_long_list_is_whole(node: FakeNode, blockd: Blockd) -> None:
    first = node.store.snapshots.create("0", ["a"])[0]
    for number in range(1, 5001):
        node.store.snapshots.put(replace(first, name=str(number), created_ns=number))
    lines = blockd("snapshot", "list").out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == [f"a@{n}" for n in [*range(1, 5001), 0]]


def test_show_says_what_can_be_done(node: FakeNode, blockd: Blockd) -> None:
    node.store.snapshots.create("one", ["a"])
    out = blockd("snapshot", "show", "a@one").out
    assert "created    2026-11-22T10:31:05.250Z (" in out
    assert "nbdcopy --progress nbd://127.0.0.1/a@one a-one.img" in out
    assert "blockd volume clone a@one NAME" in out
    assert "blockd volume restore a --to one" in out


def test_show_prints_json(node: FakeNode, blockd: Blockd) -> None:
    node.store.snapshots.create("one", ["a"])
    expected = asdict(node.store.snapshots.get("a", "one"))
    assert blockd("snapshot", "show", "a@one", "--json").json == expected


def test_delete_takes_many(node: FakeNode, blockd: Blockd) -> None:
    for name in ("one", "two", "three"):
        node.store.snapshots.create(name, ["a"])
    result = blockd("snapshot", "delete", "a@one", "a@two", "a@one")
    assert result.out.splitlines() == ["deleted snapshot a@one", "deleted snapshot a@two"]
    assert names(node) == ["a@three"]


def test_delete_stops_at_what_it_cannot_delete(node: FakeNode, blockd: Blockd) -> None:
    for name in ("one", "two"):
        node.store.snapshots.create(name, ["a"])
    result = blockd("snapshot", "delete", "a@one", "a@none", "a@two", "--json")
    assert result.code == exits.NOT_FOUND
    assert result.json == {"deleted": ["a@one"]}
    assert result.error["code"] == "no_such_version"
    assert names(node) == ["a@two"]


def test_delete_of_what_is_pinned_needs_force(node: FakeNode, blockd: Blockd) -> None:
    node.store.snapshots.create("one", ["a"], pinned=True)
    result = blockd("snapshot", "delete", "a@one")
    assert result.code == exits.CONFLICT
    assert "unpin it first" in result.err
    assert blockd("snapshot", "delete", "a@one", "--force").code == 0
    assert names(node) == []


@pytest.mark.parametrize(("answer", "code", "left"), [("y", 0, []), ("n", 130, ["a@x"])])
def test_delete_asks_people(
    node: FakeNode,
    blockd: Blockd,
    monkeypatch: pytest.MonkeyPatch,
    answer: str,
    code: int,
    left: list[str],
) -> None:
    node.store.snapshots.create("x", ["a"])
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("typer.confirm", lambda text: answer == "y")
    assert blockd("snapshot", "delete", "a@x").code == code
    assert names(node) == left


def test_pin_and_unpin(node: FakeNode, blockd: Blockd) -> None:
    node.store.snapshots.create("one", ["a"])
    assert blockd("snapshot", "pin", "a@one").out == "snapshot a@one is pinned\n"
    assert node.store.snapshots.get("a", "one").pinned
    assert blockd("snapshot", "unpin", "a@one").out == "snapshot a@one is no longer pinned\n"
    assert blockd("snapshot", "pin", "a@one", "--json").json["pinned"] is True


def test_a_schedule_lives(node: FakeNode, blockd: Blockd) -> None:
    none = blockd("snapshot", "schedule", "a")
    assert "blockd snapshot schedule a --every 15m --keep 24h,7d,4w" in none.out
    assert blockd("snapshot", "schedule", "a", "--json").json is None

    blockd("snapshot", "schedule", "a", "--every", "90m", "--keep", "7d,24h")
    shown = blockd("snapshot", "schedule", "a").out
    assert "every   1h30m\n" in shown
    assert "keep    24h,7d\n" in shown
    schedule = blockd("snapshot", "schedule", "a", "--json").json
    assert (schedule["every_s"], schedule["keep"]) == (5400, "24h,7d")

    assert "no more snapshots" in blockd("snapshot", "schedule", "a", "--off").out
    assert node.store.snapshots.schedule("a") is None


def test_half_of_a_schedule_keeps_the_other_half(node: FakeNode, blockd: Blockd) -> None:
    first = blockd("snapshot", "schedule", "a", "--every", "15m", "--json").json
    assert (first["every_s"], first["keep"]) == (900, "24h,7d,4w")
    blockd("snapshot", "schedule", "a", "--keep", "5d")
    blockd("snapshot", "schedule", "a", "--every", "1h")
    schedule = node.store.snapshots.schedule("a")
    assert schedule is not None
    assert (schedule.every_s, schedule.keep) == (3600, "5d")


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["a", "--keep", "5d"], exits.USAGE, "say --every as well"),
        (["a", "--every", "soon"], exits.USAGE, "'soon'"),
        (["a", "--every", "15m", "--keep", "5x"], exits.USAGE, "'5x'"),
        (["a", "--off", "--every", "15m"], exits.USAGE, "--off"),
        (["c", "--every", "15m"], exits.NOT_FOUND, "volume c"),
        (["c"], exits.NOT_FOUND, "volume c"),
    ],
)
def test_wrong_schedules(blockd: Blockd, arguments: list[str], code: int, says: str) -> None:
    result = blockd("snapshot", "schedule", *arguments)
    assert result.code == code
    assert says in result.err


def completed(node: FakeNode, words: list[str], shell: str = "bash") -> list[str]:
    """What the shell is told for the last of `words`."""
    environ = {**os.environ, "BLOCKD_CONTROL": str(node.control)}
    environ["_BLOCKD_COMPLETE"] = f"complete_{shell}"
    if shell == "bash":
        environ |= {"COMP_WORDS": "\n".join(words), "COMP_CWORD": str(len(words) - 1)}
    else:
        environ["_TYPER_COMPLETE_ARGS"] = " ".join(words)
        environ["_TYPER_COMPLETE_FISH_ACTION"] = "get-args"
    # The program's name decides the variable's, as in a shell.
    code = "import sys; sys.argv[0] = 'blockd'; from blockd.cli import main; main()"
    run = subprocess.run(
        [sys.executable, "-c", code], env=environ, capture_output=True, text=True, timeout=60
    )
    assert run.stderr == ""
    return run.stdout.split()


def test_snapshots_are_completed(node: FakeNode) -> None:
    for name in ("daily-1", "daily-2", "before"):
        node.store.snapshots.create(name, ["a"])
    command = ["blockd", "snapshot", "show"]
    assert completed(node, [*command, "a@d"], "fish") == ["a@daily-1", "a@daily-2"]
    assert completed(node, [*command, "a"]) == ["a@"]
    assert completed(node, [*command, "a", "@", "d"]) == ["daily-1", "daily-2"]
    assert completed(node, [*command, "a", "@"]) == ["daily-1", "daily-2", "before"]
    many = ["blockd", "snapshot", "delete", "a", "@", "daily-1", "a", "@", "b"]
    assert completed(node, many) == ["before"]
    assert completed(node, ["blockd", "volume", "clone", ""]) == ["a", "b"]
    restore = ["blockd", "volume", "restore", "a", "--to", "b"]
    assert completed(node, restore) == ["before"]


@pytest.mark.parametrize(
    ("words", "current", "joined", "moved"),
    [
        (["x", "a", "@", "d"], 3, ["x", "a@d"], 1),
        (["x", "a", "@", "d", "b", "@", "e"], 6, ["x", "a@d", "b@e"], 2),
        (["x", "a", ":", "b", "@", "c"], 5, ["x", "a:b@c"], 1),
        (["x", "a", "@"], 2, ["x", "a@"], 1),
        (["x", "a", "@", "d", "next"], 4, ["x", "a@d", "next"], 2),
        (["x", "", "a"], 1, ["x", "", "a"], 1),
        (["x"], 1, ["x"], 1),
    ],
)
def test_words_that_bash_split_are_joined(
    words: list[str], current: int, joined: list[str], moved: int
) -> None:
    assert join_words(words, current) == (joined, moved)


def test_every_command_has_json_errors(blockd: Blockd) -> None:
    commands = [
        ["create", "c@x"],
        ["list", "c"],
        ["show", "c@x"],
        ["delete", "c@x"],
        ["pin", "c@x"],
        ["unpin", "c@x"],
        ["schedule", "c"],
    ]
    for command in commands:
        result = blockd("snapshot", *command, "--json")
        assert result.code == exits.NOT_FOUND, command
        assert json.loads(result.err)["error"]["code"] == "no_such_volume", command
