"""The seeds of the pack target: packs as the store writes them, and as crashes leave them."""

from tests.fuzz.pack_target import NAME, PACK_BYTES, RESEAL, UUID
from tests.sim.simdisk import SimDisk
from volume.chunks import ChunkStore
from volume.codecs import CODEC_IGZIP, CODEC_LZ4, CODEC_NONE, CODEC_ZSTD
from volume.index import ChunkIndex
from volume.kv import MemoryKeyValue
from volume.layout import KIND_NODE
from volume.packs import Packs

_TEXT = b"the quick brown fox jumps over the lazy dog. " * 12


def _packs(*codecs: int, sealed: bool = True) -> list[bytes]:
    """Two packs: of each codec a chunk, and a node; the second one perhaps unsealed."""
    disk = SimDisk(record=False)
    packs = Packs(disk, UUID, pack_bytes=PACK_BYTES)
    store = ChunkStore(packs, ChunkIndex(MemoryKeyValue(), UUID))
    for part in range(2):
        for number, codec in enumerate(codecs):
            store.put((bytes((65 + number, 65 + part)) + _TEXT)[:512], codec=codec)
        store.put(bytes((part,)) + b"a node" * 8, KIND_NODE)
        store.sync()
        if part == 0 or sealed:
            packs.seal()
    found = []
    for name in disk.list("packs"):
        file = disk.open(f"packs/{name}")
        found.append(file.pread(file.size(), 0))
    return found


def _input(switches: int, first: bytes, second: bytes) -> bytes:
    return bytes((switches,)) + len(first).to_bytes(2, "little") + first + second


def inputs() -> dict[str, bytes]:
    """Name -> input."""
    raw = _packs(CODEC_NONE)
    every = _packs(CODEC_NONE, CODEC_LZ4, CODEC_ZSTD, CODEC_IGZIP)
    unsealed = _packs(CODEC_NONE, CODEC_ZSTD, sealed=False)
    flipped = bytearray(raw[0])
    flipped[200] ^= 1
    long = bytearray(raw[0])
    long[64 + 20 : 64 + 24] = b"\xff" * 4
    return {
        "raw": _input(0, *raw),
        "raw-resealed": _input(RESEAL | NAME, *raw),
        "every-codec": _input(RESEAL, *every),
        "unsealed": _input(0, *unsealed),
        "unsealed-torn": _input(RESEAL, unsealed[0], unsealed[1][:-300]),
        "bit-flip": _input(0, bytes(flipped), raw[1]),
        "another-content": _input(RESEAL, bytes(flipped), raw[1]),
        "claims-too-much": _input(RESEAL, bytes(long), raw[1]),
        "no-footer": _input(0, raw[0][:-80], raw[1]),
        "trailer-only": _input(RESEAL, raw[0][-64:], raw[1][-64:]),
        "header-only": _input(0, raw[0][:64], raw[1][:64]),
        "cut-in-header": _input(0, raw[0][:30], b""),
        "swapped": _input(0, raw[1], raw[0]),
        "nothing": _input(0, b"", b""),
    }
