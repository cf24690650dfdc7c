"""Workloads of volumes that come, go, and change their name or size; and some of everything."""

from tests.sim.catalogue.life import (
    CHUNK,
    KEEPING,
    SMALL_PACKS,
    Catalogue,
    CatalogueLife,
    one_volume,
    snapshotted,
    two_volumes,
    written,
)

CATALOGUE = Catalogue()
add = CATALOGUE.add


@add(230, None)
def birth_with_two_volumes(life: CatalogueLife) -> None:
    one_volume(life)
    life.create("w", 4 * CHUNK, CHUNK)
    life.tend()
    life.write(life.v, 0, 1024)
    life.write(life.model.named("w"), 0, 1024)
    life.settle()


@add(15, written)
def create_and_write(life: CatalogueLife) -> None:
    life.create("n", 4 * CHUNK, CHUNK)
    life.write(life.model.named("n"), 0, 1024)
    life.write(life.v, 0, 1024)
    life.flush(life.v)


@add(160, two_volumes)
def delete_with_writes_in_the_journal(life: CatalogueLife) -> None:
    other = life.model.named("w")
    life.write(other, 0, 1024)
    life.write(life.v, 0, 1024)
    life.delete(other)
    life.write(life.v, 512, 1024)
    life.destage()


@add(30, two_volumes)
def delete_and_create_with_the_same_name(life: CatalogueLife) -> None:
    """Nobody else's bytes: the new one begins with zeros."""
    life.write(life.model.named("w"), 0, 1024)
    life.delete(life.model.named("w"))
    life.create("w", 4 * CHUNK, CHUNK)
    life.write(life.model.named("w"), 1024, 1024)
    life.flush(life.v)


@add(60, written)
def rename_with_writes(life: CatalogueLife) -> None:
    life.write(life.v, 0, 1024)
    volume = life.v
    life.rename(volume, "x")
    life.write(volume, 512, 1024)
    life.rename(volume, "v")
    life.write(volume, 1024, 1024)


@add(15, two_volumes)
def names_change_places(life: CatalogueLife) -> None:
    volume, other = life.v, life.model.named("w")
    life.rename(volume, "x")
    life.rename(other, "v")
    life.rename(volume, "w")
    life.write(volume, 0, 1024)
    life.write(other, 0, 1024)


@add(30, written)
def shrink(life: CatalogueLife) -> None:
    life.write(life.v, 4 * CHUNK, 2048)
    life.resize(life.v, 3 * CHUNK)
    life.write(life.v, 0, 1024)


@add(5, written)
def grow(life: CatalogueLife) -> None:
    life.resize(life.v, 12 * CHUNK)
    life.write(life.v, 10 * CHUNK, 1024)
    life.flush(life.v)


@add(60, written)
def shrink_and_grow(life: CatalogueLife) -> None:
    """What comes back is zeros."""
    life.resize(life.v, 2 * CHUNK)
    life.resize(life.v, 8 * CHUNK)
    life.write(life.v, 3 * CHUNK, 1024)
    life.settle()


@add(45, written)
def shrink_within_a_chunk(life: CatalogueLife) -> None:
    life.write(life.v, CHUNK, 2048)
    life.resize(life.v, CHUNK + 1024)
    life.destage()
    life.resize(life.v, 2 * CHUNK)
    life.write(life.v, CHUNK + 512, 1024)


@add(5, snapshotted)
def restore_of_another_size(life: CatalogueLife) -> None:
    seq = life.v.snapshots["s0"].seq
    life.resize(life.v, 2 * CHUNK)
    life.restore(life.v, "s0", seq)
    life.write(life.v, 5 * CHUNK, 1024)


@add(725, two_volumes, SMALL_PACKS)
def everything_at_once(life: CatalogueLife) -> None:
    """A bit of each part of the store, with nothing flushed that need not be."""
    other = life.model.named("w")
    life.write(life.v, 0, 1024)
    life.snapshot("s1", [life.v, other])
    life.write(other, 0, 1024)
    life.destage()
    life.clone("v@s1", life.v, life.v.snapshots["s1"].seq, "c")
    life.write(life.model.named("c"), 512, 1024)
    life.delete_snapshot(other, "s1")
    life.resize(other, 2 * CHUNK)
    life.write(life.v, 2048, 1024)
    life.collect()
    life.delete(other)
    life.write(life.v, 4096, 1024)
    life.settle()


@add(365, written, KEEPING)
def a_day_in_the_window(life: CatalogueLife) -> None:
    """Versions that only the window keeps come, are opened again, and expire."""
    for number in range(3):
        life.blocks(number, 2, length=1024)
        life.settle()
        life.wait(3.0)
    life.snapshot("s1", [life.v])
    life.write(life.v, 0, 1024)
    life.wait(700.0)
    life.write(life.v, 0, 1024)
    life.settle()
