"""What holds of every fuzz target, and that those in C have the inputs that their generator writes.

Those in C are run over their inputs by ctest.
"""

from pathlib import Path

import pytest

from tests.fuzz.native_corpus import corpora
from tests.fuzz.targets import CORPORA, FOUND, HERE, TARGETS, Target

SOURCES = HERE.parents[1] / "native" / "fuzz"


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_a_target_says_its_invariant_and_has_inputs(target: Target) -> None:
    if target.in_c:
        assert (SOURCES / f"{target.program}.c").read_text().startswith("/* ")
    else:
        assert target.load().__module__
        module = target.function.partition(":")[0].rpartition(".")[2]
        assert "\n- " in (HERE / f"{module}.py").read_text().partition('"""\n\n')[0]
    assert target.inputs()


def test_every_folder_of_inputs_and_every_program_belongs_to_a_target() -> None:
    names = {target.name for target in TARGETS}
    folders = {path.name for root in (CORPORA, FOUND) if root.is_dir() for path in root.iterdir()}
    assert folders == names
    programs = {path.stem for path in SOURCES.glob("fuzz_*.c")}
    assert programs == {target.program for target in TARGETS if target.in_c}


@pytest.mark.parametrize(("name", "inputs"), corpora().items())
def test_corpora_in_c_are_what_their_generator_writes(name: str, inputs: dict[str, bytes]) -> None:
    folder: Path = CORPORA / name
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == inputs
