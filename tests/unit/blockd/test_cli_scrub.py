"""`blockd scrub ...` against a real control API."""

from dataclasses import replace

import pytest

from blockd.cli import exits
from tests.command import Blockd
from tests.fake_node import FakeNode
from tests.fake_versions import NOW_NS, SECOND_NS
from volume.damage import Damage
from volume.locate import Location

MiB = 1 << 20
CHUNK = bytes(range(32))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blockd.cli.scrub.POLL_S", 0.001)
    monkeypatch.setattr("blockd.cli.scrub.now_ns", lambda: NOW_NS)


def damage(node: FakeNode, count: int = 1) -> None:
    """Let scrub know of `count` damaged chunks, of which each hits two versions."""
    damages = [
        Damage(3, at, CHUNK, f"chunk {CHUNK.hex()} at offset {at} of pack 00000003: is rotten")
        for at in range(4096, 4096 + count)
    ]
    node.store.scrub = replace(
        node.store.scrub, damage_count=count + 1, damages=(*damages, Damage(9, 0, None, "is gone"))
    )
    for number in range(count):
        node.store.locations += [
            Location("vm1", CHUNK, number * 65536, 65536, "fails its checksum"),
            Location("vm1@one", CHUNK, None, 0, "fails its checksum"),
        ]


def test_status_before_the_first_pass(blockd: Blockd) -> None:
    assert blockd("scrub", "status").out.splitlines() == [
        "state      idle",
        "last pass  none yet",
        "damage     none known",
    ]


def test_status_of_a_pass_in_the_background(node: FakeNode, blockd: Blockd) -> None:
    node.store.scrub = replace(
        node.store.scrub,
        running=True,
        progress=0.25,
        scanned_bytes=16 * MiB,
        started_ns=NOW_NS,
        finished_ns=NOW_NS - 3 * 86400 * SECOND_NS,
    )
    assert blockd("scrub", "status").out.splitlines() == [
        "state      reading, without hurry: 16 MiB of 64 MiB, 25%",
        "last pass  2026-11-19T10:31:05Z (3d ago)",
        "damage     none known",
    ]


def test_status_of_a_rest(node: FakeNode, blockd: Blockd) -> None:
    node.store.scrub = replace(
        node.store.scrub, finished_ns=NOW_NS, next_ns=NOW_NS + 86400 * SECOND_NS
    )
    assert "next pass  2026-11-23T10:31:05Z (in 1d)\n" in blockd("scrub", "status").out


def test_damage_is_named(node: FakeNode, blockd: Blockd) -> None:
    damage(node)
    result = blockd("scrub", "status")
    assert result.code == exits.DAMAGED
    assert result.out.splitlines()[2:] == [
        "damage     2",
        "",
        "PACK      OFFSET  CHUNK             DAMAGE",
        "00000003    4096  0001020304050607  is rotten",
        "00000009       0  (the pack)        is gone",
        "",
        "HIT            OFFSET  LENGTH  CHUNK",
        "vm1                0B   64KiB  0001020304050607",
        "vm1@one  (its commit)      0B  0001020304050607",
    ]


def test_much_damage_is_cut_off_on_a_screen_only(node: FakeNode, blockd: Blockd) -> None:
    damage(node, 100)
    out = blockd("scrub", "status").out
    assert out.count("is rotten") == 40
    assert "... and 61 more (--json shows them)" in out
    assert "... and 160 more (--json shows them)" in out
    found = blockd("scrub", "status", "--json").json
    assert len(found["damages"]) == 101
    assert found["damages"][0]["chunk"] == CHUNK.hex()
    assert len(found["hit"]["locations"]) == 200


def test_endless_hits_have_a_bound(node: FakeNode, blockd: Blockd) -> None:
    damage(node, 600)
    assert "... and more than 960 more" in blockd("scrub", "status").out
    hit = blockd("scrub", "status", "--json").json["hit"]
    assert (len(hit["locations"]), hit["more"]) == (1000, True)


def test_scrub_waits_for_the_end(node: FakeNode, blockd: Blockd) -> None:
    result = blockd("scrub")
    assert (result.code, result.err) == (0, "")
    assert "last pass  2026-11-22T10:31:05Z (0s ago)\n" in result.out
    damage(node)
    assert blockd("scrub", "--json").code == exits.DAMAGED


def test_scrub_shows_its_progress_to_people(
    blockd: Blockd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    result = blockd("scrub")
    assert result.code == 0
    assert result.out.startswith("state      idle\n")


def test_an_interrupt_leaves_the_daemon_at_work(
    node: FakeNode, blockd: Blockd, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("blockd.cli.scrub.time.sleep", interrupted)
    result = blockd("scrub")
    assert result.code == exits.INTERRUPTED
    assert "the scrub goes on" in result.err
    assert node.store.scrub.running


def test_waiting_ends_when_somebody_takes_the_hurry_away(
    node: FakeNode, blockd: Blockd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blockd.cli.scrub.time.sleep", lambda seconds: node.store.stop_scrub())
    assert "state      reading, without hurry" in blockd("scrub").out


def test_start_and_stop(node: FakeNode, blockd: Blockd) -> None:
    assert blockd("scrub", "start").out == "scrub reads 64 MiB; see blockd scrub status\n"
    assert node.store.scrub.requested
    assert blockd("scrub", "stop").out == "scrub is in no hurry any more\n"
    assert not node.store.scrub.requested
    assert blockd("scrub", "start", "--json").json["running"] is True
    assert blockd("scrub", "stop", "--json").json["requested"] is False


def test_scrub_without_a_daemon(blockd: Blockd) -> None:
    for command in ([], ["start"], ["status"], ["stop"]):
        assert blockd("scrub", *command, "--control", "none").code == exits.NO_DAEMON
