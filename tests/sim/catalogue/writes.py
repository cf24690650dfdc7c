"""Workloads of the journal: writes, trims, flushes, the change of segments, a full journal."""

from tests.sim.catalogue.life import (
    CHUNK,
    PLAIN,
    SHORT_JOURNAL,
    Catalogue,
    CatalogueLife,
    one_volume,
    two_volumes,
    written,
)
from tests.sim.store_rig import KIB

CATALOGUE = Catalogue()
add = CATALOGUE.add


@add(600, sampled=True)
def eight_small_writes(life: CatalogueLife) -> None:
    life.blocks(0, 8, length=512)


@add(600, sampled=True)
def eight_blocks(life: CatalogueLife) -> None:
    life.blocks(0, 8)


@add(600, sampled=True)
def eight_unaligned_writes(life: CatalogueLife) -> None:
    life.blocks(0, 8, length=1536)


@add(680, written)
def overwrites_of_one_sector(life: CatalogueLife) -> None:
    for _ in range(8):
        life.write(life.v, CHUNK, 512)


@add(600, written, sampled=True)
def overlapping_writes(life: CatalogueLife) -> None:
    for number in range(8):
        life.write(life.v, number * 1024, 3072)


@add(110)
def writes_and_flushes_by_turns(life: CatalogueLife) -> None:
    for number in range(5):
        life.blocks(2 * number, 2, length=1024)
        life.flush(life.v)


@add(165)
def flush_in_the_middle(life: CatalogueLife) -> None:
    life.blocks(0, 4, length=1024)
    life.flush(life.v)
    life.blocks(4, 4, length=1024)


@add(95, written)
def write_through(life: CatalogueLife) -> None:
    """FUA writes between others."""
    for number in range(6):
        life.write(life.v, number * 1024, 1024, fua=number % 3 == 1)


@add(34)
def batch_of_five(life: CatalogueLife) -> None:
    life.batch(life.v, [(number * 1024, 1024) for number in range(5)])
    life.batch(life.v, [(number * 1024, 512) for number in range(5)])


@add(30)
def batch_with_flush(life: CatalogueLife) -> None:
    life.batch(life.v, [(0, 1024), (4096, 2048)], flush=True)
    life.batch(life.v, [(512, 1024), (8192, 512)], flush=True)
    life.batch(life.v, [(0, 512), (4096, 512)])


@add(57)
def write_longer_than_a_record(life: CatalogueLife) -> None:
    """Three records, of which a crash may leave the first ones."""
    life.write(life.v, 0, 14 * KIB)


@add(600, written, SHORT_JOURNAL, sampled=True)
def change_of_segments(life: CatalogueLife) -> None:
    """Twelve blocks are more than two segments."""
    for number in range(12):
        life.write(life.v, number % 8 * CHUNK, CHUNK)
        life.tend()


@add(625, written, SHORT_JOURNAL)
def change_of_segments_with_flushes(life: CatalogueLife) -> None:
    for number in range(10):
        life.write(life.v, number % 8 * CHUNK, CHUNK)
        if number % 3 == 2:
            life.flush(life.v)
        life.tend()


@add(600, written, SHORT_JOURNAL, sampled=True)
def writes_that_wait_for_space(life: CatalogueLife) -> None:
    """The journal comes back full again and again: rounds run while writes wait."""
    for number in range(14):
        life.write(life.v, number % 8 * CHUNK, CHUNK)


@add(185, written)
def trims(life: CatalogueLife) -> None:
    for number in range(4):
        life.zero(life.v, number * 2048, 2048, unmap=True)
        life.write(life.v, number * 2048, 512)


@add(40, written)
def zeroes_over_everything(life: CatalogueLife) -> None:
    life.write(life.v, 0, 2048)
    life.zero(life.v, 0, 8 * CHUNK, unmap=False)
    life.write(life.v, 1024, 1024)
    life.flush(life.v)
    life.zero(life.v, 0, 4 * CHUNK, unmap=True)
    life.write(life.v, 4096, 1024)


@add(600, two_volumes, sampled=True)
def two_volumes_by_turns(life: CatalogueLife) -> None:
    """One journal, one prefix: no volume is ahead of the other."""
    other = life.model.named("w")
    for number in range(4):
        life.write(life.v, number * 1024, 1024)
        life.write(other, number * 1024, 1024)


@add(165, two_volumes)
def a_flush_covers_all_volumes(life: CatalogueLife) -> None:
    other = life.model.named("w")
    for number in range(4):
        life.write(life.v, number * 512, 512)
        life.write(other, number * 1024, 1024)
        if number % 2:
            life.flush(other)


@add(130, written)
def closed_and_opened(life: CatalogueLife) -> None:
    life.blocks(0, 3, length=1024)
    life.reopen_here()
    life.blocks(1, 3, length=1024)


@add(420, written)
def killed_and_opened(life: CatalogueLife) -> None:
    """What was replayed after kill -9 is durable before it is served."""
    life.blocks(0, 4, length=1024)
    life.reopen_here(clean=False)
    life.blocks(2, 4, length=1024)


@add(75, None)
def birth_of_a_store(life: CatalogueLife) -> None:
    one_volume(life)
    life.tend()
    life.blocks(0, 3, length=1024)
    life.flush(life.v)


@add(600, written, PLAIN, sampled=True)
def torn_over_old_records(life: CatalogueLife) -> None:
    """The journal goes round: new records are written over whole old ones of other lengths."""
    for number in range(6):
        life.write(life.v, number * CHUNK, CHUNK)
        life.settle()
    life.blocks(0, 6, length=1536)
