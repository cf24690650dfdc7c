"""Workloads of gc and scrub: packs that are removed, copied forward, and read."""

from tests.sim.catalogue.life import (
    CHUNK,
    SMALL_PACKS,
    Catalogue,
    CatalogueLife,
    snapshotted,
    two_volumes,
    written,
)

CATALOGUE = Catalogue()
add = CATALOGUE.add


def rewritten(life: CatalogueLife) -> None:
    """Small packs in which most is dead: every chunk was written again."""
    written(life)
    for number in (0, 1, 2, 4):
        life.write(life.v, number * CHUNK, CHUNK)
    life.destage()
    life.tend()


def littered(life: CatalogueLife) -> None:
    """Several packs with a bit of live data in each: gc copies it forward."""
    life.create("v", 16 * CHUNK, CHUNK)
    life.tend()
    life.blocks(0, 12)
    life.destage()
    life.tend()
    for number in (0, 2, 3, 5, 6, 8, 9, 11):
        life.write(life.v, number * CHUNK, CHUNK)
        life.tend()
    life.destage()
    life.tend()


@add(50, rewritten, SMALL_PACKS)
def gc_removes_packs(life: CatalogueLife) -> None:
    life.collect()


@add(420, rewritten, SMALL_PACKS)
def gc_then_writes_and_a_round(life: CatalogueLife) -> None:
    life.collect()
    life.blocks(2, 2)
    life.destage()


@add(95, littered, SMALL_PACKS)
def gc_copies_what_lives(life: CatalogueLife) -> None:
    life.collect()
    life.flush(life.v)


@add(600, littered, SMALL_PACKS, sampled=True)
def gc_in_slices_with_rounds_between(life: CatalogueLife) -> None:
    """A run is left in the middle; a round puts chunks that it has not seen."""
    life.collect_slices(2)
    life.blocks(12, 3)
    life.destage()
    life.collect_slices(40)
    life.tend()


@add(55, rewritten, SMALL_PACKS)
def gc_finds_dead_chunks_alive_again(life: CatalogueLife) -> None:
    """Bytes whose chunks are dead are written once more, while gc is at work."""
    old = next(s.data for s in life.v.states.values() if any(s.data[:CHUNK]))
    life.collect_slices(1)
    life.write_again(life.v, 6 * CHUNK, old[:CHUNK])
    life.destage()
    life.collect_slices(40)


@add(600, snapshotted, SMALL_PACKS, sampled=True)
def gc_keeps_what_a_snapshot_has(life: CatalogueLife) -> None:
    life.blocks(0, 5)
    life.settle()
    life.settle()


@add(600, snapshotted, SMALL_PACKS, sampled=True)
def gc_after_a_snapshot_is_gone(life: CatalogueLife) -> None:
    life.blocks(0, 3)
    life.destage()
    life.delete_snapshot(life.v, "s0")
    life.collect()


@add(30, two_volumes, SMALL_PACKS)
def gc_after_a_volume_is_gone(life: CatalogueLife) -> None:
    life.destage()
    life.delete(life.model.named("w"))
    life.collect()
    life.flush(life.v)


@add(115, rewritten, SMALL_PACKS)
def gc_twice(life: CatalogueLife) -> None:
    life.collect()
    life.write(life.v, 0, CHUNK)
    life.settle()


@add(300, littered, SMALL_PACKS)
def scrub_of_all_packs(life: CatalogueLife) -> None:
    """A pass, with what it remembers in meta/; writes and a round in the middle."""
    life.scrub()
    life.blocks(0, 2)
    life.destage()
    life.scrub()


@add(25, rewritten, SMALL_PACKS)
def scrub_beside_gc(life: CatalogueLife) -> None:
    life.collect_slices(1)
    life.scrub()
    life.collect_slices(40)
    life.write(life.v, 0, 1024)


@add(600, written, SMALL_PACKS, sampled=True)
def killed_in_the_middle_of_gc(life: CatalogueLife) -> None:
    """The index is as it was, nothing of it synced; the next gc does it again."""
    life.blocks(0, 4)
    life.destage()
    life.collect_slices(1)
    life.reopen_here(clean=False)
    life.collect()
    life.write(life.v, 0, 512)
