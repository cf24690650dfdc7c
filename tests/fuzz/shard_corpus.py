"""The seeds of the shard target: a shard as it is written, and what may become of it."""

from tests.fuzz.shard_target import FUZZED, RESEAL, packed, sound
from transport.shardfile import HEADER_LENGTH


def _shard(number: int) -> bytes:
    _, rig, stripe = sound()
    file = rig.disk.open(rig.path(stripe, number))
    return file.pread(file.size(), 0)


def _with(content: bytes, at: int, *values: int) -> bytes:
    return content[:at] + bytes(values) + content[at + len(values) :]


def inputs() -> dict[str, bytes]:
    """Name -> input."""
    whole = _shard(FUZZED)
    return {
        "whole": packed(whole),
        "whole-resealed": packed(whole, RESEAL),
        "another-shard": packed(_shard(2)),
        "another-number": packed(_with(whole, 12, 2), RESEAL),
        "another-code": packed(_with(whole, 13, 3, 2), RESEAL),
        "no-shards": packed(_with(whole, 13, 0, 0), RESEAL),
        "too-many-shards": packed(_with(whole, 13, 255, 255), RESEAL),
        "unknown-version": packed(_with(whole, 8, 9), RESEAL),
        "cuts-go-back": packed(_with(whole, 136, 255, 255, 255, 255, 255, 255, 255, 255), RESEAL),
        "another-payload": packed(_with(whole, 2 * HEADER_LENGTH + 5, 1, 2, 3), RESEAL),
        "bit-flip": packed(_with(whole, 2 * HEADER_LENGTH + 5, whole[2 * HEADER_LENGTH + 5] ^ 1)),
        "cut-in-payload": packed(whole[:-1000]),
        "cut-in-table": packed(whole)[:400],
        "too-long": packed(whole + bytes(4096), RESEAL),
        "nothing": b"\0",
    }
