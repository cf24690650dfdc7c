"""Slow, obvious Python twin of the erasure code (native/src/erasure.h): an oracle for tests.

Reed-Solomon over GF(2^8) with the polynomial x^8 + x^4 + x^3 + x^2 + 1 (0x11d): data shards first,
then the rows of a Cauchy matrix times them.
"""

from collections.abc import Sequence

_POLYNOMIAL = 0x11D


def multiply(a: int, b: int) -> int:
    """Carry-less product, reduced: shift and add, as on paper."""
    product = 0
    while b:
        if b & 1:
            product ^= a
        a <<= 1
        if a & 0x100:
            a ^= _POLYNOMIAL
        b >>= 1
    return product


MULTIPLES = [bytes(multiply(a, b) for b in range(256)) for a in range(256)]
"""Row a translates each byte into a times it."""

INVERSE = [0] + [row.index(1) for row in MULTIPLES[1:]]

Matrix = list[list[int]]


def generator(data: int, parity: int) -> Matrix:
    """Row i gives shard i from the data shards."""
    identity = [[int(row == column) for column in range(data)] for row in range(data)]
    cauchy = [
        [INVERSE[row ^ column] for column in range(data)] for row in range(data, data + parity)
    ]
    return identity + cauchy


def combine(row: Sequence[int], shards: Sequence[bytes]) -> bytes:
    """The sum of shards, each times its coefficient."""
    total = 0
    for coefficient, shard in zip(row, shards, strict=True):
        total ^= int.from_bytes(shard.translate(MULTIPLES[coefficient]), "big")
    return total.to_bytes(len(shards[0]), "big")


def encode(data: Sequence[bytes], parity: int) -> list[bytes]:
    return [combine(row, data) for row in generator(len(data), parity)[len(data) :]]


def invert(matrix: Matrix) -> Matrix:
    """Gauss and Jordan; ValueError for a singular matrix."""
    size = len(matrix)
    rows = [[*row, *(int(i == at) for i in range(size))] for at, row in enumerate(matrix)]
    for column in range(size):
        pivot = next((row for row in range(column, size) if rows[row][column]), None)
        if pivot is None:
            raise ValueError("singular")
        rows[column], rows[pivot] = rows[pivot], rows[column]
        scale = MULTIPLES[INVERSE[rows[column][column]]]
        rows[column] = [scale[value] for value in rows[column]]
        for row in range(size):
            if row != column and rows[row][column]:
                factor = MULTIPLES[rows[row][column]]
                rows[row] = [a ^ factor[b] for a, b in zip(rows[row], rows[column], strict=True)]
    return [row[size:] for row in rows]


def reconstruct(data: int, shards: Sequence[bytes | None]) -> list[bytes]:
    """All shards, from any `data` of them. ValueError when fewer are there."""
    there = [number for number, shard in enumerate(shards) if shard is not None][:data]
    if len(there) < data:
        raise ValueError(f"{len(there)} shards of {data}")
    rows = generator(data, len(shards) - data)
    inverse = invert([rows[number] for number in there])
    read = [shard for number in there if (shard := shards[number]) is not None]
    original = [combine(row, read) for row in inverse]
    return [combine(row, original) for row in rows]
