"""Replays the corpus of SCSI commands, and mutations of them from a fixed seed, as plain tests."""

import random
from pathlib import Path

import pytest

from tests.fuzz.scsi_corpus import CORPUS, seeds
from tests.fuzz.scsi_target import scsi_target
from tests.fuzz.test_corpus import mutate

FILES = sorted(CORPUS.iterdir())
MUTATIONS = 12  # of each file; a fuzzer does millions, this keeps the target honest


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_corpus_file(path: Path) -> None:
    scsi_target(path.read_bytes())


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_mutations_of_corpus_file(path: Path) -> None:
    data = path.read_bytes()
    for number in range(MUTATIONS):
        mutated = mutate(random.Random(f"{path.name} {number}"), data)
        try:
            scsi_target(mutated)
        except Exception as error:
            error.add_note(f"input (mutation {number} of {path.name}): {mutated.hex()}")
            raise


def test_empty_and_one_byte_inputs() -> None:
    scsi_target(b"")
    for switches in range(128):
        scsi_target(bytes((switches,)))


def test_corpus_is_what_its_generator_writes() -> None:
    assert {path.name: path.read_bytes() for path in FILES} == seeds()
