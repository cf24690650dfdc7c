"""Random edits of inputs: what a fuzzer does millions of times, a few dozen times in each check."""

import random

MAX_EDITS = 6


def mutate(rng: random.Random, data: bytes) -> bytes:
    """`data` with a few bytes flipped, cut out, repeated or replaced by edge values."""
    mutated = bytearray(data)
    for _ in range(rng.randint(1, MAX_EDITS)):
        at = rng.randrange(len(mutated) + 1)
        length = rng.choice((1, 2, 4, 8, 28))
        match rng.randrange(4):
            case 0:
                mutated[at : at + 1] = bytes((rng.randrange(256),))
            case 1:
                del mutated[at : at + length]
            case 2:
                mutated[at:at] = mutated[at : at + length]
            case _:
                mutated[at : at + length] = rng.choice((b"\0", b"\xff", b"\x7f")) * length
    return bytes(mutated)
