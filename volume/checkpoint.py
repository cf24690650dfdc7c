"""The checkpoint: the position of the journal before which everything is in chunks.

Kept in `meta/`, moved in the same transaction as the heads. Layout (little-endian): u64 next lsn,
u64 segment sequence (0: no segment yet), u64 position in that segment, u32 chain, u32 segment
bytes.
"""

import struct
from dataclasses import dataclass

from volume.errors import CorruptData

_LAYOUT = struct.Struct("<QQQII")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    lsn: int
    sequence: int
    position: int
    chain: int
    segment_bytes: int

    def encode(self) -> bytes:
        return _LAYOUT.pack(self.lsn, self.sequence, self.position, self.chain, self.segment_bytes)

    @classmethod
    def decode(cls, data: bytes) -> "Checkpoint":
        if len(data) != _LAYOUT.size:
            raise CorruptData(
                f"meta: the journal checkpoint has {len(data)} bytes instead of {_LAYOUT.size}; "
                "restore meta/ from a backup"
            )
        return cls(*_LAYOUT.unpack(data))


def first_checkpoint(segment_bytes: int) -> Checkpoint:
    return Checkpoint(1, 0, 0, 0, segment_bytes)
