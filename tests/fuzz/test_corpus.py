"""Replays the fuzz corpora, and mutations of them from a fixed seed, as plain tests."""

import random
from pathlib import Path

import pytest

from tests.fuzz.nbd_corpus import CORPUS, seeds
from tests.fuzz.nbd_target import nbd_target

FILES = sorted(CORPUS.iterdir())
MUTATIONS = 12  # of each file; a fuzzer does millions, this keeps the target honest
MAX_EDITS = 6
MAX_INPUT = 4096  # larger seeds are replayed only as they are


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_corpus_file(path: Path) -> None:
    nbd_target(path.read_bytes())


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_mutations_of_corpus_file(path: Path) -> None:
    data = path.read_bytes()[:MAX_INPUT]
    for number in range(MUTATIONS):
        mutated = mutate(random.Random(f"{path.name} {number}"), data)
        try:
            nbd_target(mutated)
        except Exception as error:
            error.add_note(f"input (mutation {number} of {path.name}): {mutated.hex()}")
            raise


def test_empty_and_one_byte_inputs() -> None:
    nbd_target(b"")
    for switches in range(256):
        nbd_target(bytes((switches,)))


def test_corpus_is_what_its_generator_writes() -> None:
    expected = {
        name: bytes((switches, piece)) + sent for name, (switches, piece, sent) in seeds().items()
    }
    assert {path.name: path.read_bytes() for path in FILES} == expected


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
