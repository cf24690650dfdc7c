"""Replays the iSCSI corpora, and mutations of them from a fixed seed, as plain tests."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fuzz.iscsi_corpus import PDUS, TEXTS, pdus, texts
from tests.fuzz.iscsi_pdu_target import iscsi_pdu_target
from tests.fuzz.iscsi_text_target import iscsi_text_target
from tests.fuzz.test_corpus import mutate

MUTATIONS = 12  # of each file; a fuzzer does millions, this keeps the targets honest
FILES = [
    *((iscsi_text_target, path) for path in sorted(TEXTS.iterdir())),
    *((iscsi_pdu_target, path) for path in sorted(PDUS.iterdir())),
]
IDS = [f"{path.parent.name}-{path.name}" for _, path in FILES]
Target = Callable[[bytes], None]


@pytest.mark.parametrize(("target", "path"), FILES, ids=IDS)
def test_corpus_file(target: Target, path: Path) -> None:
    target(path.read_bytes())


@pytest.mark.parametrize(("target", "path"), FILES, ids=IDS)
def test_mutations_of_corpus_file(target: Target, path: Path) -> None:
    data = path.read_bytes()
    for number in range(MUTATIONS):
        mutated = mutate(random.Random(f"{path.name} {number}"), data)
        try:
            target(mutated)
        except Exception as error:
            error.add_note(f"input (mutation {number} of {path.name}): {mutated.hex()}")
            raise


def test_empty_and_one_byte_inputs() -> None:
    for target in (iscsi_text_target, iscsi_pdu_target):
        target(b"")
        for switches in range(256):
            target(bytes((switches,)))


@pytest.mark.parametrize(("folder", "inputs"), [(TEXTS, texts), (PDUS, pdus)])
def test_corpus_is_what_its_generator_writes(
    folder: Path, inputs: Callable[[], dict[str, bytes]]
) -> None:
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == inputs()
