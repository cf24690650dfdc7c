"""Prove that the catalogue can fail: with a safety rule broken on purpose, the crash states of a
workload that relies on it must hold a bad one, within what the commit gate tries of them.

Without a broken rule all of them are good, as the gate itself shows. The rules are those of
`tests.sim.test_broken_rules`, and how they are broken is told there; which workload meets each of
them is what this file adds. A workload that stops being able to notice its rule fails here.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import pytest

from tests.sim.catalogue import CATALOGUE
from tests.sim.crash_check import StateFailed, check_named, check_workload
from tests.sim.crash_window import StateName
from tests.sim.store_rig import UnsyncedKeyValue
from tests.sim.test_broken_rules import (
    Break,
    core,
    index_before_packs,
    move_heads_apart,
    replaced,
    reuse_early,
    unsynced_folders,
)
from volume import opening, sites
from volume.errors import VolumeError
from volume.laterkv import LaterKeyValue
from volume.meta import Meta
from volume.seal import Seal

LOST = r"the log ends at \d+, \d+ was promised"
DAMAGED = "is damaged"


@dataclass(frozen=True, slots=True)
class Broken:
    rule: Callable[[pytest.MonkeyPatch], None]
    workload: str
    shows: str
    """A regular expression: what the bad state is reported as."""


def taking_any_index(rule: Break) -> Break:
    """`rule` as well as the check behind it, which makes an index anew that is gone as a whole: the
    power cuts here leave all of one or nothing."""

    def broken(patch: pytest.MonkeyPatch) -> None:
        rule(patch)
        patch.setattr(opening, "index_left", lambda _: True)

    return broken


BROKEN: Mapping[str, Broken] = {
    "ack before the journal": Broken(core("journal.ack-unwritten"), "write-through", LOST),
    "flush without sync": Broken(core("journal.sync-nothing"), "writes-and-flushes-by-turns", LOST),
    "replayed records served unsynced": Broken(
        replaced(Seal, "sync_journal", lambda *_: None), "killed-and-opened", LOST
    ),
    "no payload checksum at replay": Broken(
        core("replay.any-payload"), "overlapping-writes", r"sector \d+ is of write"
    ),
    "no epoch fence at replay": Broken(core("replay.any-epoch"), "restore-there-and-back", LOST),
    "segment used again early": Broken(
        reuse_early, "clients-fill-the-journal-beside-a-round", "CorruptJournal"
    ),
    "checkpoint before heads": Broken(move_heads_apart, "round-of-two-volumes", LOST),
    "head before its pack": Broken(index_before_packs, "round-over-old-chunks", DAMAGED),
    "copies of gc unsynced": Broken(index_before_packs, "gc-copies-what-lives", DAMAGED),
    "received chunks unsynced": Broken(index_before_packs, "receive-of-a-stream", "CorruptChunk"),
    "new segments without their folder": Broken(unsynced_folders, "birth-of-a-store", LOST),
    "new packs without their folder": Broken(unsynced_folders, "gc-copies-what-lives", DAMAGED),
    "trust in the index after a power cut": Broken(
        taking_any_index(replaced(Meta, "index_trusted", lambda *_: True)),
        "writes-between-rounds",
        DAMAGED,
    ),
    "index called clean before its sync": Broken(
        taking_any_index(replaced(UnsyncedKeyValue, "sync", lambda *_: None)),
        "closed-and-opened",
        DAMAGED,
    ),
    "snapshot rows before the journal": Broken(
        replaced(LaterKeyValue, "sync_with", lambda *_: None), "snapshot-of-a-group", LOST
    ),
    "restore before the journal": Broken(
        replaced(Seal, "sync_journal", lambda *_: None), "restore-of-a-snapshot", "NoSuchVersion"
    ),
}


@pytest.fixture(autouse=True)
def mended() -> Iterator[None]:
    yield
    sites.disarm()


@pytest.mark.parametrize("name", BROKEN)
def test_the_crash_states_of_a_workload_notice_a_broken_rule(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = BROKEN[name]
    workload = CATALOGUE[broken.workload]
    with monkeypatch.context() as patch:
        broken.rule(patch)
        lived = workload.lived()
        with pytest.raises(StateFailed, match=broken.shows) as noticed:
            check_workload(lived, limit=workload.gate)
        # The command that the message ends with, which makes more checks, shows one, too.
        *_, state = str(noticed.value).split()
        with pytest.raises((AssertionError, VolumeError)):
            check_named(lived, StateName.parse(state))
