"""Replays the kept inputs of all Python targets, and mutations of them from a fixed seed.

Those of the targets in C are run by ctest; here it is only checked that they are what they should.
"""

import logging
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fuzz.mutate import mutate
from tests.fuzz.seeds import GENERATORS
from tests.fuzz.stream_target import reseal
from tests.fuzz.targets import CORPORA, FOUND, HERE, TARGETS, Run, Target, named

SOURCES = HERE.parents[1] / "native" / "fuzz"
MUTATIONS = 12  # of each file; a fuzzer does millions, this keeps the targets honest
MAX_MUTATED = 4096  # bytes; larger seeds are replayed whole only as they are
PYTHON = [target for target in TARGETS if not target.in_c]
FILES = [(target, path) for target in PYTHON for path in target.inputs()]
each_file = pytest.mark.parametrize(
    ("target", "path"), FILES, ids=[f"{target.name}-{path.name}" for target, path in FILES]
)
each_target = pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """Targets are run beside other tests: what one turns off it turns on again."""
    before = _logging()
    yield
    assert _logging() == before


def _logging() -> list[object]:
    loggers = [logging.getLogger(name) for name in ("", "blockd", "volume")]
    own = [
        (each.propagate, each.level, each.handlers[:] if each.name != "root" else None)
        for each in loggers
    ]
    return [logging.root.manager.disable, own]


@each_file
def test_input(target: Target, path: Path) -> None:
    target.load()(path.read_bytes())


@each_file
def test_mutations_of_input(target: Target, path: Path) -> None:
    run, data = target.load(), path.read_bytes()[:MAX_MUTATED]
    for number in range(MUTATIONS):
        _run(run, mutate(random.Random(f"{path.name} {number}"), data), f"mutation {number}")


@pytest.mark.parametrize("target", PYTHON, ids=lambda target: target.name)
def test_empty_and_one_byte_inputs(target: Target) -> None:
    run = target.load()
    run(b"")
    for switches in range(256):
        _run(run, bytes((switches,)), "one byte")


def _run(run: Run, data: bytes, what: str) -> None:
    try:
        run(data)
    except Exception as error:
        error.add_note(f"input ({what}): {data.hex()}")
        raise


@pytest.mark.parametrize("name", GENERATORS)
def test_seeds_are_what_their_generator_writes(name: str) -> None:
    assert {path.name: path.read_bytes() for path in (CORPORA / name).iterdir()} == GENERATORS[
        name
    ]()


@each_target
def test_a_target_says_its_invariant_and_has_inputs(target: Target) -> None:
    if target.in_c:
        assert (SOURCES / f"{target.program}.c").read_text().startswith("/* ")
    else:
        module = target.function.partition(":")[0].rpartition(".")[2]
        assert "\n- " in (HERE / f"{module}.py").read_text().partition('"""\n\n')[0]
    assert target.inputs()


def test_every_folder_of_inputs_and_every_program_belongs_to_a_target() -> None:
    names = {target.name for target in TARGETS}
    assert set(GENERATORS) == names
    assert {path.name for path in CORPORA.iterdir()} == names
    assert {path.name for path in FOUND.iterdir()} <= names
    programs = {path.stem for path in SOURCES.glob("fuzz_*.c")}
    assert programs == {target.program for target in TARGETS if target.in_c}


def test_streams_that_are_sound_need_no_new_seals() -> None:
    for name in ("whole", "difference", "empty"):
        data = (CORPORA / named("stream").name / name).read_bytes()[2:]
        assert reseal(data) == data
