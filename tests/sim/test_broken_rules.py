"""Prove that the rig can fail: each safety rule is broken on purpose, and a check must notice.

Rules of the C core are broken by switches that only tests can arm (native/src/sites.h), those of
the Python layers by taking the step out that keeps them. The checks are the suite's own: lives cut
short by power cuts and kills, version histories, and tests of single promises. Without a broken
rule all of them hold, as the suite shows at their own places; here each must raise.
"""

import errno
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import native
from native import OP_WRITE, Request
from tests.sim import test_crash_states as crashes
from tests.sim import test_version_crash_states as versions
from tests.sim.cluster.rules import RULES as CLUSTER_RULES
from tests.sim.faults import Fault, ShortWrite
from tests.sim.simdisk import SimDisk
from tests.sim.store_rig import KIB, StoreRig
from tests.unit.volume import test_collector as collector_tests
from tests.unit.volume import test_store as store_tests
from volume import sites
from volume.destager import Destager
from volume.disk import SECTOR_SIZE
from volume.errors import CorruptData
from volume.gcrun import Run
from volume.laterkv import LaterKeyValue
from volume.marks import Condemned
from volume.meta import Meta
from volume.packs import Packs

CAUGHT = (AssertionError, CorruptData)
Break = Callable[[pytest.MonkeyPatch], None]
Check = Callable[[pytest.LogCaptureFixture], None]


@dataclass(frozen=True, slots=True)
class Rule:
    promise: str
    """What the product does, and is kept from doing."""
    broken: Break
    caught_by: Check


# -- ways to break a rule


def core(name: str) -> Break:
    """A switch of the core."""
    return lambda _: sites.arm(name, chance=1.0)


def replaced(owner: type, name: str, instead: Callable[..., Any]) -> Break:
    return lambda patch: patch.setattr(owner, name, instead)


def reuse_early(patch: pytest.MonkeyPatch) -> None:
    """Segments are released, and used again, before the round that makes them needless."""
    core("journal.release-unchecked")(patch)
    build = Destager._build

    def build_late(self: Destager, current: Any) -> Any:
        self._freed(self._journal.release(current.checkpoint.lsn))
        return build(self, current)

    patch.setattr(Destager, "_build", build_late)


def move_heads_apart(patch: pytest.MonkeyPatch) -> None:
    """The checkpoint moves in a transaction of its own, before the heads."""
    move = Meta.move_heads

    def in_two(self: Meta, heads: Any, checkpoint: bytes, *rows: Any) -> None:
        move(self, {}, checkpoint)
        move(self, heads, checkpoint, *rows)

    patch.setattr(Meta, "move_heads", in_two)


def unsynced_folders(patch: pytest.MonkeyPatch) -> None:
    """New packs and segments are not durable under their names."""
    patch.setattr(SimDisk, "sync_dir", lambda *_: None)


def index_before_packs(patch: pytest.MonkeyPatch) -> None:
    """The index, and then the head, name chunks whose pack was never synced."""
    patch.setattr(Packs, "_sync_file", lambda *_, **__: None)


# -- checks


def power_cuts(*seeds: int) -> Check:
    def check(_: pytest.LogCaptureFixture) -> None:
        for seed in seeds:
            crashes.test_power_cut_leaves_one_state_not_before_the_last_flush(seed)

    return check


def kills(*seeds: int) -> Check:
    def check(_: pytest.LogCaptureFixture) -> None:
        for seed in seeds:
            crashes.test_kill_loses_no_acked_write(seed)

    return check


def stale_records(_: pytest.LogCaptureFixture) -> None:
    """Records of a write that failed do not come back behind the one that took its place."""
    rig = StoreRig()
    rig.store.create_volume("v", 64 * KIB, block_size=512, chunk_size=4 * KIB)
    rig.tend()
    rig.write("v", 0, b"0" * 2048)
    all_lands = ShortWrite(64 * KIB, errno.ENOSPC)
    rig.disk.faults.add(Fault("pwrite", all_lands, path="journal/*"))
    batch = [Request(OP_WRITE, at, 2048, b"failed!!" * 256) for at in (2048, 4096)]
    done = rig.submit("v", *batch)
    assert [request.error for request in done] == [errno.ENOSPC] * 2
    rig.write("v", 2048, b"1" * 2048)
    found = rig.killed().read("v", 0, 8 * KIB)
    assert found == b"0" * 2048 + b"1" * 2048 + bytes(4096)


def flushed_sector_is_left(_: pytest.LogCaptureFixture) -> None:
    """The simulated disk keeps or loses whole sectors, so a torn one cannot show this."""
    rig = StoreRig()
    rig.store.create_volume("v", 64 * KIB, block_size=512, chunk_size=4 * KIB)
    rig.tend()
    rig.write("v", 0, b"x" * 512)
    assert rig.flush("v") == 0
    position = rig.store._journal.cut()[2]
    assert position % SECTOR_SIZE == 0


def version_power_cuts(_: pytest.LogCaptureFixture) -> None:
    for seed in (5, 6):
        versions.test_power_cut_leaves_versions_whole_or_not_at_all(seed)


def condemned_stay(_: pytest.LogCaptureFixture) -> None:
    collector_tests.test_the_dead_stay_for_the_condemn_period()


def put_while_marking_stays(_: pytest.LogCaptureFixture) -> None:
    collector_tests.test_what_is_put_during_a_run_survives_it_without_a_root()


def named_while_marking_stays(_: pytest.LogCaptureFixture) -> None:
    collector_tests.test_an_old_tree_with_a_new_name_stays_when_protected_while_marking()


def damaged_chunk(log: pytest.LogCaptureFixture) -> None:
    store_tests.test_damaged_chunk_is_an_error_and_names_it("none", log)


RULES: Mapping[str, Rule] = {
    "ack before the journal": Rule(
        "a write is a record in the page cache before it is acknowledged (I4)",
        core("journal.ack-unwritten"),
        kills(1),
    ),
    "flush without sync": Rule(
        "a flush is answered when fdatasync has returned (I2, I14)",
        core("journal.sync-nothing"),
        power_cuts(1),
    ),
    "flushed sector written again": Rule(
        "after a flush the log goes on in another sector (I2)",
        core("journal.share-flushed-sector"),
        flushed_sector_is_left,
    ),
    "no payload checksum at replay": Rule(
        "a record whose payload is torn ends the log (I5)",
        core("replay.any-payload"),
        power_cuts(1),
    ),
    "no chain checksum at replay": Rule(
        "a record follows the one whose checksum it has (I3)",
        core("replay.any-chain"),
        stale_records,
    ),
    "no epoch fence at replay": Rule(
        "records that the head has, or of an epoch before it, are passed over (I6)",
        core("replay.any-epoch"),
        version_power_cuts,
    ),
    "segment used again early": Rule(
        "segments are released after the checkpoint has moved (I2)",
        reuse_early,
        version_power_cuts,
    ),
    "checkpoint before heads": Rule(
        "heads and checkpoint move in one transaction (I2)",
        move_heads_apart,
        power_cuts(2),
    ),
    "head before its pack": Rule(
        "packs are synced before a head names their chunks (I2, I11)",
        index_before_packs,
        power_cuts(1),
    ),
    "new files without their folder": Rule(
        "a file's name is durable before it is relied on (I2)",
        unsynced_folders,
        power_cuts(1),
    ),
    "trust in the index after a power cut": Rule(
        "an index that was not synced is made anew (I11)",
        replaced(Meta, "index_trusted", lambda *_: True),
        power_cuts(1),
    ),
    "snapshot rows before the journal": Rule(
        "a name is in meta/ after the records that it needs are durable (I7)",
        replaced(LaterKeyValue, "sync_with", lambda *_: None),
        version_power_cuts,
    ),
    "no checksum at reads": Rule(
        "bytes are checked on their way out (I11)",
        core("read.unchecked"),
        store_tests.test_damaged_journal_record_is_an_error_and_never_zeros,
    ),
    "zeros for damage": Rule(
        "damage is an error, never zeros (I11)",
        core("read.zeros-for-damage"),
        damaged_chunk,
    ),
    "gc without the barrier": Rule(
        "what is put or found while gc marks is marked (I9)",
        replaced(Run, "used", lambda *_: None),
        put_while_marking_stays,
    ),
    "gc without protection": Rule(
        "a tree that gets a holder while gc marks stays (I9)",
        replaced(Run, "protect", lambda *_: True),
        named_while_marking_stays,
    ),
    "gc without the condemn period": Rule(
        "the dead stay for a while, in which they may come back to life (I9)",
        replaced(Condemned, "due", lambda *_: -1),
        condemned_stay,
    ),
}


@pytest.fixture(autouse=True)
def mended() -> Iterator[None]:
    yield
    sites.disarm()


@pytest.mark.parametrize("name", RULES)
def test_a_broken_rule_is_noticed(
    name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rule = RULES[name]
    rule.broken(monkeypatch)
    with pytest.raises(CAUGHT):
        rule.caught_by(caplog)


@pytest.mark.parametrize("check", [stale_records, flushed_sector_is_left])
def test_checks_of_this_file_hold_while_the_rule_does(
    check: Check, caplog: pytest.LogCaptureFixture
) -> None:
    check(caplog)


def test_each_switch_of_the_core_breaks_a_rule_here_or_in_worlds_of_a_cluster() -> None:
    """A switch that nothing arms would be dead code in the product."""
    text = Path(__file__).read_text()
    armed = {rule.site for rule in CLUSTER_RULES.values()}
    rules = {name for kind, name, _, _ in native.native_sites() if kind == "rule"}
    assert {name for name in rules if f'core("{name}")' not in text} <= armed
