"""Slow, obvious Python twin of rendezvous (native/src/rendezvous.h): an oracle for tests.

Every device's cost is computed, and the fractions are sorted as fractions.
"""

from collections.abc import Sequence
from fractions import Fraction

Device = tuple[int, int, int]
"""Key, weight, domain."""

FRACTION_BITS = 56
_MASK = (1 << 64) - 1


def mix(z: int) -> int:
    """The finalizer of splitmix64."""
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    z = (z ^ z >> 27) * 0x94D049BB133111EB & _MASK
    return z ^ z >> 31


def hash_of(pack: int, device: int) -> int:
    return mix(mix(pack + 0x9E3779B97F4A7C15 & _MASK) + device & _MASK)


def log2(u: int) -> int:
    """log2(u) in Q56, from 64 significant bits that are squared again and again, cut off."""
    exponent = u.bit_length() - 1
    mantissa = u << (63 - exponent)
    log = exponent
    for _ in range(FRACTION_BITS):
        mantissa = mantissa * mantissa >> 63
        log <<= 1
        if mantissa >> 64:
            mantissa >>= 1
            log |= 1
    return log


def cost(u: int) -> int:
    """-log2(u / 2**64) in Q56."""
    return (64 << FRACTION_BITS) - log2(u or 1)


def choose(devices: Sequence[Device], pack: int, count: int) -> tuple[int, ...]:
    draws = sorted(
        (Fraction(cost(hash_of(pack, key)), weight), index)
        for index, (key, weight, _) in enumerate(devices)
    )
    chosen: dict[int, int] = {}
    for _, index in draws:
        chosen.setdefault(devices[index][2], index)
    return tuple(chosen.values())[:count]
