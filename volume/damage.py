"""Damage that was found in what is stored, and how scrub's memory of it is kept."""

import struct
from dataclasses import dataclass, field

from volume.layout import ZERO_ID, ChunkId

MAX_DAMAGE = 1024  # remembered; 200 KiB of state
MAX_WHAT_BYTES = 200  # of a damage's description

_STATE = struct.Struct("<B B Q Q Q I I I")
"""version, whether somebody asked for the pass, its start and the end of the last one (ns, 0:
none), bytes of it that are done, next pack, damage that was not remembered, count of damages."""
_STATE_VERSION = 1
_DAMAGE = struct.Struct("<I I B 32s H")
"""pack, offset, flags, chunk id, length of the description (UTF-8 follows)."""
_OF_CHUNK = 1
_GONE = 2


@dataclass(frozen=True, slots=True)
class Damage:
    """Something that is stored and is not what it should be."""

    pack: int
    offset: int
    """Of the entry in the pack; 0 when the pack as a whole is meant."""
    chunk_id: ChunkId | None
    what: str
    gone: bool = False
    """Not only a header or footer is damaged: none of the pack's chunks can be read."""


@dataclass(slots=True)
class Memory:
    """What of scrub survives a restart."""

    requested: bool = False
    started_ns: int = 0
    finished_ns: int = 0
    scanned_bytes: int = 0
    next_pack: int = 0
    forgotten: int = 0
    damages: list[Damage] = field(default_factory=list)

    def encode(self) -> bytes:
        parts = [
            _STATE.pack(
                _STATE_VERSION,
                self.requested,
                self.started_ns,
                self.finished_ns,
                self.scanned_bytes,
                self.next_pack,
                self.forgotten,
                len(self.damages),
            )
        ]
        for damage in self.damages:
            what = damage.what.encode()[:MAX_WHAT_BYTES].decode(errors="ignore").encode()
            flags = _OF_CHUNK * (damage.chunk_id is not None) | _GONE * damage.gone
            chunk_id = damage.chunk_id or ZERO_ID
            parts += [_DAMAGE.pack(damage.pack, damage.offset, flags, chunk_id, len(what)), what]
        return b"".join(parts)

    @classmethod
    def decode(cls, data: bytes) -> "Memory":
        """ValueError when it is not what `encode` makes."""
        if len(data) < _STATE.size or data[0] != _STATE_VERSION:
            raise ValueError(f"{len(data)} bytes of version {data[:1].hex()}")
        _, requested, *numbers, count = _STATE.unpack_from(data)
        memory = cls(bool(requested), *numbers)
        at = _STATE.size
        for _ in range(min(count, MAX_DAMAGE)):
            if at + _DAMAGE.size > len(data):
                raise ValueError(f"ends within damage at byte {at}")
            pack, offset, flags, chunk_id, length = _DAMAGE.unpack_from(data, at)
            at += _DAMAGE.size
            what = data[at : at + length].decode()
            at += length
            memory.damages.append(
                Damage(
                    pack,
                    offset,
                    chunk_id if flags & _OF_CHUNK else None,
                    what,
                    bool(flags & _GONE),
                )
            )
        if at != len(data):
            raise ValueError(f"is {len(data)} bytes long instead of {at}")
        return memory


def described(damage: Damage) -> str:
    """One line for logs and people."""
    where = f"pack {damage.pack:08x}"
    if damage.chunk_id is None:
        return f"{where}: {damage.what}"
    return f"chunk {damage.chunk_id.hex()} at offset {damage.offset} of {where}: {damage.what}"
