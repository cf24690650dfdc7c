"""`blockd gc ...` against a real control API."""

from dataclasses import asdict, replace

import pytest

from blockd.cli import exits
from tests.command import Blockd
from tests.fake_node import FakeNode
from volume.errors import CorruptManifest
from volume.gc import GcReport

MiB = 1 << 20

REPORT = GcReport(
    bytes_before=10 * MiB,
    bytes_after=6 * MiB,
    chunks_live=70,
    chunks_removed=50,
    packs_removed=2,
    packs_copied=1,
    copied_bytes=MiB,
    condemned_chunks=3,
    condemned_bytes=4096,
    roots=5,
    duration_s=1.25,
)


def test_status_before_the_first_run(blockd: Blockd) -> None:
    assert blockd("gc", "status").out.splitlines() == [
        "state     idle",
        "next run  when something was deleted or overwritten",
        "last run  none since the start",
    ]


def test_status_has_the_last_run(node: FakeNode, blockd: Blockd) -> None:
    node.store.gc = replace(node.store.gc, last=REPORT, ended_s=75.5, next_run_s=4.6)
    out = blockd("gc", "status").out
    assert "next run   in 5 s\n" in out
    assert "last run   1m15s ago\n" in out
    assert "removed    50 chunks, 2 packs\n" in out
    assert "packs      10 MiB -> 6 MiB, in 1.2 s\n" in out
    shown = blockd("gc", "status", "--json").json
    assert shown == asdict(node.store.gc)


def test_status_of_a_run(node: FakeNode, blockd: Blockd) -> None:
    node.store.gc = replace(node.store.gc, running=True, phase="sweep", progress=0.421)
    assert "state     sweep, 42%\n" in blockd("gc", "status").out


def test_run_says_what_it_did(node: FakeNode, blockd: Blockd) -> None:
    node.store.gc_report = REPORT
    assert blockd("gc", "run").out.splitlines() == [
        "removed    50 chunks, 2 packs",
        "copied     1 MiB out of 1 pack",
        "condemned  3 chunks, 4 KiB, for a later run",
        "needed     70 chunks, by 5 versions",
        "packs      10 MiB -> 6 MiB, in 1.2 s",
    ]
    assert blockd("gc", "run", "--json").json == asdict(REPORT)


def test_a_dry_run_says_what_it_would_do(node: FakeNode, blockd: Blockd) -> None:
    node.store.gc_report = REPORT
    out = blockd("gc", "run", "--dry-run").out
    assert "would remove  50 chunks, 2 packs\n" in out
    assert " -> " not in out


def test_a_run_shows_its_progress_to_people(
    node: FakeNode, blockd: Blockd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setattr("blockd.cli.progress.SHOWN_AFTER_S", 0.0)
    node.store.gc = replace(node.store.gc, running=True, phase="mark", progress=0.5)
    node.store.gc_report = REPORT
    result = blockd("gc", "run")
    assert result.out.startswith("removed ")

    def damaged(*, dry_run: bool) -> GcReport:
        raise CorruptManifest("node 3f is damaged")

    monkeypatch.setattr(node.store, "collect", damaged)
    result = blockd("gc", "run")
    assert result.code == exits.DAMAGED
    assert "node 3f is damaged" in result.err


@pytest.mark.parametrize(
    ("changes", "code", "says"),
    [
        ({"error": "chunk 3f is missing"}, exits.DAMAGED, "chunk 3f is missing"),
        ({"packs_damaged": 2}, 0, "2 damaged packs left alone"),
        ({"out_of_space": True}, 0, "no room to copy"),
        ({"stopped": True}, 0, "was stopped"),
        ({"history_dropped": 7}, 0, "7 versions without a name"),
    ],
)
def test_what_needs_attention_is_said(
    node: FakeNode, blockd: Blockd, changes: dict[str, object], code: int, says: str
) -> None:
    node.store.gc_report = replace(REPORT, **changes)  # type: ignore[arg-type]
    result = blockd("gc", "run")
    assert result.code == code
    assert says in result.out


def test_damage_ends_a_run(node: FakeNode, blockd: Blockd) -> None:
    node.store.fail_with = CorruptManifest("node 3f is damaged")
    result = blockd("gc", "run", "--json")
    assert result.code == exits.DAMAGED
    assert result.error["code"] == "corrupt_manifest"
