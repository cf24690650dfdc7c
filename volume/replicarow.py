"""The row of `meta/` that makes a volume a replica; docs/disk-format.md has the same table."""

import struct
from dataclasses import dataclass
from typing import Final

from volume.errors import CorruptData

MAX_BEGINS: Final = 64  # as many epochs as a chain tells
ROW_PREFIX: Final = "group/"  # + uuid, hex
ROW_VERSION: Final = 1
ROW_HEADER: Final = struct.Struct("<B Q B")
"""version, promised epoch, count of beginnings; then of each:"""
ROW_BEGIN: Final = struct.Struct("<Q Q")
"""epoch and seq."""


@dataclass(frozen=True, slots=True)
class Row:
    """What is kept of a replica."""

    promised: int
    begins: tuple[tuple[int, int], ...]

    def encode(self) -> bytes:
        header = ROW_HEADER.pack(ROW_VERSION, self.promised, len(self.begins))
        return header + b"".join(ROW_BEGIN.pack(*begin) for begin in self.begins)

    @classmethod
    def decode(cls, name: str, data: bytes) -> "Row":
        """CorruptData."""
        try:
            version, promised, count = ROW_HEADER.unpack_from(data)
            if version != ROW_VERSION or len(data) != ROW_HEADER.size + count * ROW_BEGIN.size:
                raise ValueError(f"version {version}, {len(data)} bytes")
            begins = tuple(ROW_BEGIN.iter_unpack(data[ROW_HEADER.size :]))
            before = (0, 0)
            for epoch, seq in begins:
                if epoch <= before[0] or seq < before[1]:
                    raise ValueError(f"epoch {epoch} begins at {seq}, after {before}")
                before = (epoch, seq)
            if not begins or before[0] > promised:
                raise ValueError(f"promised {promised}, but {before} has begun")
        except (ValueError, struct.error) as error:
            raise CorruptData(
                f"meta: what is kept of replica {name} makes no sense ({error}); restore meta from "
                "a copy, or remove this node from the volume's members and add it again"
            ) from error
        return cls(promised, begins)

    def begun(self, epoch: int, seq: int) -> "Row":
        """With another epoch, which begins behind `seq`."""
        return Row(self.promised, (*self.begins, (epoch, seq))[-MAX_BEGINS:])


def row_name(uuid: bytes) -> str:
    return ROW_PREFIX + uuid.hex()
