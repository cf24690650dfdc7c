"""Workloads of versions: snapshots, restores, clones, cloned ranges, streams."""

from tests.sim.catalogue.life import (
    CHUNK,
    KEEPING,
    SMALL_PACKS,
    Catalogue,
    CatalogueLife,
    one_volume,
    sent,
    snapshotted,
    two_volumes,
    written,
)

CATALOGUE = Catalogue()
add = CATALOGUE.add


def kept(life: CatalogueLife) -> None:
    """As `written`, with versions in the window."""
    written(life)
    life.blocks(2, 2)


@add(25, written)
def snapshot_of_one_volume(life: CatalogueLife) -> None:
    life.write(life.v, 0, 1024)
    life.snapshot("s1", [life.v])
    life.write(life.v, 0, 1024)
    life.flush(life.v)


@add(45, written)
def snapshot_that_is_synced(life: CatalogueLife) -> None:
    life.write(life.v, 0, 1024)
    life.snapshot("s1", [life.v], sync=True)
    life.blocks(0, 3, length=1024)


@add(130, two_volumes)
def snapshot_of_a_group(life: CatalogueLife) -> None:
    other = life.model.named("w")
    life.write(life.v, 0, 1024)
    life.write(other, 0, 1024)
    life.snapshot("s1", [life.v, other])
    life.write(life.v, 512, 1024)
    life.write(other, 512, 1024)
    life.tend()


@add(600, written, sampled=True)
def snapshots_in_a_row(life: CatalogueLife) -> None:
    for number in range(4):
        life.write(life.v, number * 1024, 1024)
        life.snapshot(f"s{number}", [life.v])
    life.flush(life.v)


@add(105, written)
def snapshot_comes_into_chunks(life: CatalogueLife) -> None:
    """A point that is not at the round's cut is built from the log."""
    life.write(life.v, 0, 1024)
    life.snapshot("s1", [life.v])
    life.write(life.v, 0, 1024)
    life.destage()
    life.write(life.v, 0, 512)


@add(60, snapshotted)
def snapshot_deleted_and_made_again(life: CatalogueLife) -> None:
    """The name is another version's afterwards."""
    life.delete_snapshot(life.v, "s0")
    life.write(life.v, 0, 1024)
    life.snapshot("s0", [life.v])
    life.destage()


@add(45, written)
def snapshot_deleted_before_it_is_in_chunks(life: CatalogueLife) -> None:
    life.write(life.v, 0, 1024)
    life.snapshot("s1", [life.v])
    life.write(life.v, 0, 1024)
    life.delete_snapshot(life.v, "s1")
    life.destage()


@add(10, snapshotted)
def snapshot_pinned(life: CatalogueLife) -> None:
    life.pin(life.v, "s0", True)
    life.write(life.v, 0, 1024)
    life.pin(life.v, "s0", False)


@add(10, snapshotted)
def restore_of_a_snapshot(life: CatalogueLife) -> None:
    seq = life.v.snapshots["s0"].seq
    life.write(life.v, 0, 1024)
    life.restore(life.v, "s0", seq)
    life.write(life.v, 512, 1024)


@add(70, snapshotted)
def restore_and_a_round(life: CatalogueLife) -> None:
    seq = life.v.snapshots["s0"].seq
    life.restore(life.v, "s0", seq)
    life.blocks(0, 2, length=1024)
    life.destage()
    life.write(life.v, 0, 512)


@add(25, kept, KEEPING)
def restore_of_any_write(life: CatalogueLife) -> None:
    """A version that is in the journal only comes into chunks first."""
    seq = life.v.seq - 1
    life.write(life.v, 0, 1024)
    life.restore(life.v, f"seq:{seq}", seq)
    life.write(life.v, 0, 512)


@add(25, snapshotted)
def restore_there_and_back(life: CatalogueLife) -> None:
    first = life.v.snapshots["s0"].seq
    life.restore(life.v, "s0", first)
    life.write(life.v, 0, 512)
    before = next(name for name in life.v.snapshots if name != "s0")
    life.restore(life.v, before, life.v.snapshots[before].seq)
    life.write(life.v, 0, 512)


@add(15, snapshotted)
def clone_of_a_snapshot(life: CatalogueLife) -> None:
    life.clone("v@s0", life.v, life.v.snapshots["s0"].seq, "c")
    life.write(life.model.named("c"), 0, 1024)
    life.write(life.v, 0, 1024)
    life.flush(life.v)


@add(30, kept, KEEPING)
def clone_of_the_head(life: CatalogueLife) -> None:
    """A round comes first: a clone begins with chunks."""
    life.write(life.v, 0, 1024)
    life.clone(f"v@seq:{life.v.seq}", life.v, life.v.seq, "c")
    life.write(life.model.named("c"), 0, 1024)


@add(50, snapshotted, SMALL_PACKS)
def clone_outlives_its_origin(life: CatalogueLife) -> None:
    life.clone("v@s0", life.v, life.v.snapshots["s0"].seq, "c")
    life.delete(life.v)
    life.collect()
    life.write(life.model.named("c"), 0, 1024)
    life.settle()


@add(25, two_volumes)
def cloned_range(life: CatalogueLife) -> None:
    """A REFER record, whose tree must be there as long as it can be replayed."""
    other = life.model.named("w")
    life.clone_range(other, 2 * CHUNK, life.v, 0, 2 * CHUNK)
    life.write(other, 2 * CHUNK, 1024)
    life.flush(other)


@add(615, two_volumes)
def cloned_range_and_a_round(life: CatalogueLife) -> None:
    other = life.model.named("w")
    life.clone_range(other, 2 * CHUNK, life.v, 0, 2 * CHUNK)
    life.write(life.v, 0, 2 * CHUNK)
    life.settle()
    life.write(other, 0, 512)


@add(85, written)
def cloned_range_within_a_volume(life: CatalogueLife) -> None:
    life.write(life.v, 0, 1024)
    life.clone_range(life.v, 4 * CHUNK, life.v, 0, 2 * CHUNK)
    life.zero(life.v, 0, 2 * CHUNK, unmap=True)
    life.settle()


@add(80, two_volumes)
def cloned_range_whose_source_goes(life: CatalogueLife) -> None:
    other = life.model.named("w")
    life.clone_range(other, 0, life.v, 0, 3 * CHUNK)
    life.delete(life.v)
    life.collect()
    life.write(other, 0, 512)
    life.settle()


@add(25, one_volume)
def receive_of_a_stream(life: CatalogueLife) -> None:
    stream, data = sent(4)
    life.receive("r", stream, data)
    life.write(life.model.named("r"), 0, 1024)


@add(360, one_volume, SMALL_PACKS)
def receive_over_several_packs(life: CatalogueLife) -> None:
    stream, data = sent(8)
    life.write(life.v, 0, 1024)
    life.receive("r", stream, data)
    life.settle()


@add(90, written, SMALL_PACKS)
def receive_cut_off_and_resumed_with_gc_between(life: CatalogueLife) -> None:
    stream, data = sent(6)
    life.receive_part("r", stream, len(stream) // 2)
    life.settle()
    life.receive("r", stream, data)
    life.settle()


@add(95, written, SMALL_PACKS)
def receive_given_up(life: CatalogueLife) -> None:
    stream, _ = sent(6)
    life.receive_part("r", stream, len(stream) // 2)
    life.abort_receive("r")
    life.settle()
    life.settle()
