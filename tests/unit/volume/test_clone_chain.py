"""A clone of a clone of a clone, 1,000 deep: each reads what all before it wrote, as fast."""

import random

from tests.sim.store_rig import KIB, StoreRig
from volume.options import StoreOptions

DEPTH = 1000
BLOCK = 4096
CHUNK = 16 * KIB
SIZE = 4 << 20
DESTAGE_EACH = 90  # clones in between are made of what is in the journal only
OPTIONS = StoreOptions(
    journal_limit=64 * 64 * KIB,
    segment_bytes=64 * KIB,
    pack_bytes=1024 * KIB,
    reserve_bytes=0,
    cache_bytes=1024 * KIB,
)


class Chain:
    """Volumes v0, v1, ...: each a clone of the one before, with one write more."""

    def __init__(self, rig: StoreRig) -> None:
        self.rig = rig
        self.content = bytearray(SIZE)
        self.earlier: dict[int, bytes] = {}
        """What some of them must go on holding."""
        self._rng = random.Random(5)
        rig.store.create_volume("v0", SIZE, chunk_size=CHUNK)
        for offset in range(0, SIZE, 8 * CHUNK):
            self.write(0, offset, self._rng.randbytes(CHUNK))

    def write(self, number: int, offset: int, data: bytes) -> None:
        self.rig.fill(f"v{number}", offset, data)
        self.content[offset : offset + len(data)] = data

    def grow(self, number: int) -> None:
        self.rig.store.versions.clone(f"v{number - 1}", f"v{number}")
        offset = self._rng.randrange(SIZE // BLOCK) * BLOCK
        self.write(number, offset, self._rng.randbytes(BLOCK))
        if number % DESTAGE_EACH == 0:
            self.rig.store.destage()
            self.rig.tend()
            self.earlier[number] = bytes(self.content)


def test_the_last_of_a_thousand_clones_reads_what_all_of_them_wrote() -> None:
    chain = Chain(StoreRig(options=OPTIONS))
    for number in range(1, DEPTH + 1):
        chain.grow(number)
    assert chain.rig.read(f"v{DEPTH}") == chain.content
    for number, content in chain.earlier.items():
        assert chain.rig.read(f"v{number}") == content

    for number in range(DEPTH):  # parents go, the last one stays
        chain.rig.store.delete_volume(f"v{number}", force=True)
    chain.rig.settle()
    chain.rig.settle()
    assert chain.rig.read(f"v{DEPTH}") == chain.content
    opened = chain.rig.closed()
    assert opened.read(f"v{DEPTH}") == chain.content
