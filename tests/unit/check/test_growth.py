"""The soak's rule: what the daemon takes may not rise over a life, once it has warmed up."""

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest

MiB = 1 << 20


@pytest.fixture(scope="module")
def growth() -> ModuleType:
    path = Path(__file__).parents[3] / "scripts/soaking/growth.py"
    spec = importlib.util.spec_from_file_location("soak_growth", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


def complaints(
    growth: ModuleType, memory: list[float], files: list[int] | None = None, threads: int = 20
) -> list[str]:
    """Of a life with a sample each 10 s; memory in MiB."""
    files = files or [40] * len(memory)
    samples = [
        growth.Sample(10.0 * at, int(size * MiB), count, threads)
        for at, (size, count) in enumerate(zip(memory, files, strict=True))
    ]
    found: list[str] = growth.Life(tuple(samples)).complaints()
    return found


def test_a_steady_life_with_noise_is_fine(growth: ModuleType) -> None:
    assert complaints(growth, [60 + at % 7 for at in range(100)]) == []


def test_warming_up_is_no_growth(growth: ModuleType) -> None:
    assert complaints(growth, [20 + 2 * min(at, 30) for at in range(100)]) == []


def test_a_leak_is_growth(growth: ModuleType) -> None:
    found = complaints(growth, [60 + 0.3 * at for at in range(100)])
    assert found == ["memory rises by 20.7 MiB in 990 s"]


def test_files_that_are_left_open_are_growth(growth: ModuleType) -> None:
    found = complaints(growth, [60] * 100, [40 + at // 5 for at in range(100)])
    assert len(found) == 1
    assert "open files rise" in found[0]


def test_caps_hold_for_short_lives_too(growth: ModuleType) -> None:
    assert complaints(growth, [100, 600, 100]) == ["memory reached 600 MiB"]
    assert complaints(growth, [100] * 3, [40, 300, 40]) == ["open files reached 300"]


def test_a_short_life_tells_nothing_of_growth(growth: ModuleType) -> None:
    assert complaints(growth, [60, 200, 400]) == []


def test_a_process_is_sampled(growth: ModuleType) -> None:
    taken = growth.sample(os.getpid(), 1.0)
    assert taken.anonymous_bytes > MiB
    assert taken.files >= 3
    assert taken.threads >= 1
