"""The immutable half of a store on a simulated disk, small enough that packs fill up at once."""

from collections.abc import Mapping
from hashlib import blake2b

from tests.sim.image import Image
from tests.sim.simdisk import SimDisk
from volume import codecs
from volume.chunks import ChunkStore
from volume.index import ChunkIndex
from volume.kv import MemoryKeyValue
from volume.manifest import Manifests
from volume.packs import Packs

STORE_UUID = bytes(range(16))
PACK_BYTES = 40 * 1024


def chunk(number: int, length: int = 4096) -> bytes:
    """Bytes that no other `number` has, and that do not compress."""
    seed = number.to_bytes(8, "little")
    return b"".join(hash_of(seed + block.to_bytes(4, "little")) for block in range(length // 32))


def hash_of(data: bytes) -> bytes:
    return blake2b(data, digest_size=32).digest()


class Rig:
    """A store that can be opened again on what a crash left of its disk."""

    def __init__(
        self,
        image: Image | None = None,
        *,
        index: Mapping[bytes, bytes] | None = None,
        codec: int = codecs.CODEC_NONE,
        pack_bytes: int = PACK_BYTES,
        capacity: int = 1 << 30,
    ) -> None:
        """Without `index` it is rebuilt from the packs, as after a power cut."""
        self.disk = SimDisk(image, capacity=capacity)
        self.kv = MemoryKeyValue(index)
        self.index = ChunkIndex(self.kv, STORE_UUID)
        trusted = None if index is None else self.index
        self.packs = Packs(self.disk, STORE_UUID, pack_bytes=pack_bytes, index=trusted)
        if index is None:
            self.index.rebuild(self.packs)
        self.store = ChunkStore(self.packs, self.index, codec=codec)
        self.manifests = Manifests(self.store)

    def put_synced(self, *numbers: int, length: int = 4096) -> list[bytes]:
        """Store the chunks of these numbers, durably, and return their ids."""
        ids = [self.store.put(chunk(number, length)) for number in numbers]
        self.store.sync()
        return ids

    def killed(self) -> "Rig":
        """The same store after kill -9: all that was written is there, the index too."""
        return Rig(self.disk.image(), index=self.kv.snapshot())

    def without_index(self) -> "Rig":
        """The same store after kill -9 and the loss of its index."""
        return Rig(self.disk.image())
