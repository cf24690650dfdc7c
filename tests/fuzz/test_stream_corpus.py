"""Replays the corpus of streams, and mutations of them from a fixed seed, as plain tests."""

import random
from pathlib import Path

import pytest

from tests.fuzz.stream_corpus import CORPUS, seeds
from tests.fuzz.stream_target import RESEAL, reseal, stream_target
from tests.fuzz.test_corpus import mutate

FILES = sorted(CORPUS.iterdir())
MUTATIONS = 12  # of each file, half of them resealed


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_corpus_file(path: Path) -> None:
    stream_target(path.read_bytes())


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_mutations_of_corpus_file(path: Path) -> None:
    data = path.read_bytes()
    for number in range(MUTATIONS):
        mutated = mutate(random.Random(f"{path.name} {number}"), data[1:])
        mutated = bytes((number % 2 * RESEAL,)) + mutated
        try:
            stream_target(mutated)
        except Exception as error:
            error.add_note(f"mutation {number} of {path.name}")
            raise


def test_empty_and_short_inputs() -> None:
    for switches in (0, RESEAL):
        stream_target(bytes((switches,)))
        stream_target(bytes((switches, 1, 2)))
    stream_target(b"")


def test_what_is_sound_needs_no_new_seals() -> None:
    for name in ("whole", "difference", "empty"):
        data = (CORPUS / name).read_bytes()[2:]
        assert reseal(data) == data


def test_corpus_is_what_its_generator_writes() -> None:
    expected = {
        name: bytes((switches, piece)) + sent for name, (switches, piece, sent) in seeds().items()
    }
    assert {path.name: path.read_bytes() for path in FILES} == expected
