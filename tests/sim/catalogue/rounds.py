"""Workloads of destage rounds: packs, the index, heads, the journal's checkpoint and the window."""

from tests.sim.catalogue.life import (
    CHUNK,
    KEEPING,
    PLAIN,
    SHORT_JOURNAL,
    SMALL_PACKS,
    Catalogue,
    CatalogueLife,
    two_volumes,
    written,
)
from volume.destager import RETRY_MAX_S

CATALOGUE = Catalogue()
add = CATALOGUE.add


@add(500, sampled=True)
def first_round(life: CatalogueLife) -> None:
    life.blocks(0, 3)
    life.destage()


@add(150, written)
def round_over_old_chunks(life: CatalogueLife) -> None:
    """Writes that cover chunks in part, and one that covers a whole one."""
    life.write(life.v, 1024, 2048)
    life.write(life.v, 3 * CHUNK, CHUNK)
    life.destage()


@add(325, written)
def round_then_writes(life: CatalogueLife) -> None:
    """What is written right after a round goes where the round's segments were."""
    life.blocks(0, 3)
    life.destage()
    life.blocks(4, 3, length=1024)


@add(480, written)
def writes_between_rounds(life: CatalogueLife) -> None:
    for number in range(3):
        life.blocks(number, 2)
        life.settle()


@add(600, written, SHORT_JOURNAL, sampled=True)
def rounds_free_the_segments_that_are_written(life: CatalogueLife) -> None:
    """A journal of four segments that goes round twice: heads move just before segments are used
    again."""
    for number in range(6):
        life.write(life.v, number * CHUNK, CHUNK)
        life.write(life.v, (number + 1) * CHUNK, CHUNK)
        life.destage()
        life.tend()


@add(600, written, sampled=True)
def clients_fill_the_journal_beside_a_round(life: CatalogueLife) -> None:
    """They flush, a round begins, and they write on while there is room: what they flushed lies in
    segments that must not be used again before the heads have moved."""
    life.blocks(0, 6)
    life.flush(life.v)

    def meanwhile() -> None:
        life.tend()
        for number in range(8):
            if life.has_room:
                life.write(life.v, number * CHUNK, CHUNK)
            life.tend()

    life.destage_beside(meanwhile)
    life.tend()
    life.blocks(6, 2)


@add(155, written)
def round_of_known_chunks(life: CatalogueLife) -> None:
    """Bytes that are in a pack already are not written again."""
    data = life.v.head.data
    life.write_again(life.v, 5 * CHUNK, data[:CHUNK])
    life.write_again(life.v, 6 * CHUNK, data[2 * CHUNK : 3 * CHUNK])
    life.destage()


@add(15, written)
def round_of_zeros(life: CatalogueLife) -> None:
    """Chunks that become holes."""
    life.zero(life.v, 0, 2 * CHUNK, unmap=True)
    life.write_again(life.v, 3 * CHUNK, bytes(CHUNK))
    life.destage()


@add(185, two_volumes)
def round_of_two_volumes(life: CatalogueLife) -> None:
    """Both heads move together."""
    life.write(life.v, 0, CHUNK)
    life.write(life.model.named("w"), CHUNK, CHUNK)
    life.destage()


@add(240, two_volumes)
def rounds_beside_a_volume_that_is_stuck(life: CatalogueLife) -> None:
    """A node below one of them cannot be read for a while. Heads of the other one move, and the
    checkpoint does not; then it passes both."""
    other = life.model.named("w")
    with life.stuck(life.v):
        life.write(other, CHUNK, CHUNK)
        life.destage()
        life.write(life.v, 3 * CHUNK, 1024)
        life.write(other, 0, 1024)
        life.destage()
    life.wait(RETRY_MAX_S)
    life.destage()


@add(320, written)
def round_without_space(life: CatalogueLife) -> None:
    """The first try finds no room in the packs, the second does."""
    life.blocks(0, 2)
    life.destage_without_space()
    life.write(life.v, 5 * CHUNK, 1024)
    life.destage()


@add(600, written, SMALL_PACKS, sampled=True)
def round_over_several_packs(life: CatalogueLife) -> None:
    """More than a pack holds: it is sealed, and the next one begun, within the round."""
    life.blocks(0, 6)
    life.destage()


@add(600, written, KEEPING, sampled=True)
def window_holds_segments(life: CatalogueLife) -> None:
    """Segments stay after their round, and go when their time is over."""
    for number in range(4):
        life.blocks(2 * number, 2)
        life.settle()
    life.wait(700.0)
    life.write(life.v, 0, 1024)
    life.settle()


@add(405, written, PLAIN)
def closed_after_a_round(life: CatalogueLife) -> None:
    """The pack is sealed and the index is left clean."""
    life.blocks(0, 2)
    life.destage()
    life.reopen_here()
    life.blocks(3, 2)
    life.destage()
