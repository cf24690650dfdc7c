"""Stripes on devices that are folders of one simulated disk: one power cut hits them all."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tests.sim.image import Image
from tests.sim.simdisk import SimDisk
from transport import stripes
from transport.conversion import Action, Conversion, Drop, Encode, Swap, Verify, Written
from transport.packrow import PackRow
from transport.shardfile import ShardName, Stripe, prepare
from transport.stripes import StripeReader
from volume.chunks import ChunkStore
from volume.disk import Disk, File
from volume.index import ChunkIndex
from volume.kv import MemoryKeyValue
from volume.packs import Packs

UUID = bytes(range(16))


class SubDisk:
    """A folder of a disk as a disk of its own: a device."""

    def __init__(self, disk: Disk, folder: str) -> None:
        self._disk = disk
        self.folder = folder

    def path(self, path: str) -> str:
        return f"{self.folder}/{path}" if path else self.folder

    def open(self, path: str, *, create: bool = False, read_only: bool = False) -> File:
        return self._disk.open(self.path(path), create=create, read_only=read_only)

    def open_uncached(self, path: str) -> File:
        return self._disk.open_uncached(self.path(path))

    def mkdir(self, path: str) -> None:
        self._disk.mkdir(self.path(path))

    def list(self, path: str) -> list[str]:
        return self._disk.list(self.path(path))

    def rename(self, old: str, new: str) -> None:
        self._disk.rename(self.path(old), self.path(new))

    def unlink(self, path: str) -> None:
        self._disk.unlink(self.path(path))

    def sync_dir(self, path: str) -> None:
        self._disk.sync_dir(self.path(path))

    def free_bytes(self) -> int:
        return self._disk.free_bytes()

    def total_bytes(self) -> int:
        return self._disk.total_bytes()


@dataclass(frozen=True, slots=True)
class MadePack:
    """A pack as a store writes it."""

    content: bytes
    boundaries: list[int]
    chunks: Mapping[bytes, bytes]
    """By id."""

    @property
    def pack_id(self) -> bytes:
        return stripes.pack_id_of(Bytes(self.content), len(self.content))


class Bytes:
    """Bytes as what a pack is read from."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def pread(self, length: int, offset: int) -> bytes:
        return self._content[offset : offset + length]


def make_pack(sizes: Sequence[int], seed: int = 0) -> MadePack:
    """A sealed pack with one chunk of random bytes of each size."""
    rng = random.Random(seed)
    disk = SimDisk(record=False)
    packs = Packs(disk, UUID, pack_bytes=64 << 20)
    store = ChunkStore(packs, ChunkIndex(MemoryKeyValue(), UUID))
    chunks = {store.put(data): data for data in map(rng.randbytes, sizes)}
    store.sync()
    packs.seal()
    file = disk.open(f"packs/{disk.list('packs')[0]}")
    return MadePack(file.pread(file.size(), 0), stripes.boundaries_of(file, 0, UUID), chunks)


class StripeRig:
    """Devices by number, on one disk."""

    def __init__(self, count: int, image: Image | None = None, *, record: bool = False) -> None:
        self.disk = SimDisk(image, record=record)
        self.devices = [SubDisk(self.disk, f"d{number}") for number in range(count)]
        if image is None:
            for device in self.devices:
                self.disk.mkdir(device.folder)
                prepare(device)
            self.disk.sync_dir("")

    def encode(self, pack: MadePack, data: int, parity: int) -> Stripe:
        cuts = stripes.cuts_of(pack.boundaries, len(pack.content), data)
        return stripes.encode(
            Bytes(pack.content),
            pack.pack_id,
            len(pack.content),
            cuts,
            self.devices[: data + parity],
            parity,
        )

    def path(self, stripe: Stripe, number: int, device: int | None = None) -> str:
        return self.devices[number if device is None else device].path(stripe.name(number).path)

    def reader(self, stripe: Stripe, lost: Sequence[int] = ()) -> StripeReader:
        disks: list[Disk | None] = [
            None if number in lost else self.devices[number] for number in range(stripe.width)
        ]
        return StripeReader(stripe.pack_id, stripe.data, stripe.digest, disks)


class MarkedRows:
    """Rows of packs, whose changes are marks in the trace of a disk: durable at once."""

    def __init__(self, disk: SimDisk, *rows: PackRow) -> None:
        self._disk = disk
        self.rows = {row.pack_id: row for row in rows}
        self.before_swap: list[PackRow] = []
        """Somebody else's changes: one of them is made before each swap."""

    def read(self, pack_id: bytes) -> PackRow | None:
        return self.rows.get(pack_id)

    def swap(self, before: PackRow, after: PackRow) -> bool:
        if self.before_swap:
            other = self.before_swap.pop(0)
            self.rows[other.pack_id] = other
        if self.rows.get(before.pack_id) not in (before, after):
            return False
        self._disk.mark(after)
        self.rows[after.pack_id] = after
        return True


# -- conversions

COPY = "copy"
"""Name of a whole copy in a device's folder."""


class Converter:
    """Carries conversions of one pack out: devices are named by their number."""

    def __init__(self, rig: StripeRig, pack: MadePack, row: PackRow, data: int) -> None:
        self.rig = rig
        self.pack = pack
        self.row = row
        """As the MetaStore has it."""
        self.data = data

    def device(self, name: str) -> SubDisk:
        return self.rig.devices[int(name)]

    def carry_out(self, action: Action) -> Written | None:
        """OSError, CorruptData. A swap whose row has changed raises LookupError."""
        match action:
            case Swap():
                if self.row != action.before:
                    raise LookupError(action.why)
                self.rig.disk.mark(action.after)
                self.row = action.after
            case Encode(targets):
                disks = [self.device(name) for name in targets]
                cuts = stripes.cuts_of(self.pack.boundaries, self.row.size, self.data)
                parity = len(targets) - self.data
                source = self.device(self.row.copies[0]).open(COPY, read_only=True)
                made = stripes.encode(source, self.row.pack_id, self.row.size, cuts, disks, parity)
                source.close()
                self._made = made
                return Written(made.shard_length, made.digest)
            case Verify(targets):
                stripes.verify(self._made, [self.device(name) for name in targets])
            case Drop(devices):
                for name in devices:
                    if COPY in self.device(name).list(""):
                        self.device(name).unlink(COPY)
                        self.device(name).sync_dir("")
        return None

    def run(self, conversion: Conversion) -> None:
        while (action := conversion.action) is not None:
            conversion.done(self.carry_out(action))

    def read(self) -> bytes:
        """The pack, by what its row says."""
        if not self.row.shards:
            file = self.device(self.row.copies[0]).open(COPY, read_only=True)
            return file.pread(self.row.size, 0)
        disks = [None if name is None else self.device(name) for name in self.row.shards]
        reader = StripeReader(self.row.pack_id, self.row.data, self.row.digest, disks)
        content = reader.pread(self.row.size, 0)
        assert not reader.lost
        assert not reader.damaged
        return content

    def files(self, name: str) -> list[ShardName]:
        found = [ShardName.parse(each) for each in self.device(name).list("shards")]
        return [each for each in found if each is not None]
