"""A run that is stopped goes on where it was, and what it came to is summed over all of it."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import typer

from tests.sim.world import workers
from tests.sim.world.__main__ import main
from tests.sim.world.record import Record
from tests.sim.world.workers import Result, Settings

FAILURE: dict[str, object] = {"seed": 14, "error": "Violation: I2", "command": "scripts/sim"}


def kept(path: Path, commit: str = "c1") -> Record:
    return Record(path, commit, "worlds")


def spans(record: Record, first: int, count: int, length: int) -> list[tuple[int, int]]:
    return [(each.start, each.stop) for each in record.left(first, count, length)]


def test_ranges_that_are_done_are_left_out(tmp_path: Path) -> None:
    record = kept(tmp_path / "run")
    assert spans(record, 1, 25, 10) == [(1, 11), (11, 21), (21, 26)]
    record.add(range(11, 21), 1.0, [FAILURE], {"kill": 3})
    assert spans(record, 1, 25, 10) == [(1, 11), (21, 26)]
    assert spans(kept(tmp_path / "run"), 5, 30, 10) == [(5, 11), (21, 31), (31, 35)]
    assert spans(kept(tmp_path / "run", "c2"), 11, 10, 10) == [(11, 21)]


def test_what_it_came_to_is_told_of_one_commit(tmp_path: Path) -> None:
    record = kept(tmp_path / "run")
    record.add(range(1, 11), 0.4, [], {"kill": 3})
    kept(tmp_path / "run", "c2").add(range(11, 21), 9.0, [FAILURE], {})
    assert "10 worlds, 0 failed (none), 40 ms" in record.summary()
    record.add(range(11, 21), 0.6, [FAILURE], {"kill": 4})
    assert "20 worlds, 1 failed (14), 50 ms" in record.summary()
    assert "kill 7" in record.summary()


def test_a_line_that_was_begun_only_is_lived_again(tmp_path: Path) -> None:
    path = tmp_path / "run"
    record = kept(path)
    record.add(range(1, 11), 0.4, [], {})
    record.add(range(11, 21), 0.4, [], {})
    path.write_bytes(path.read_bytes()[:-30])
    assert spans(record, 1, 20, 10) == [(11, 21)]
    record.add(range(11, 21), 0.4, [], {})
    assert spans(record, 1, 20, 10) == []


def test_a_run_goes_on_in_its_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run"
    here: Callable[..., Iterator[Result]] = lambda seeds, settings, jobs: (  # noqa: E731
        workers.lived(seed, settings) for seed in seeds
    )
    monkeypatch.setattr(workers, "run", here)
    for seeds in (2, 3):
        with pytest.raises(typer.Exit) as ended:
            main(seeds=seeds, acts=4, profile="calm", record=path, range_=2)
        assert ended.value.exit_code == 0
    lines = path.read_text().splitlines()
    assert len(lines) == 2
    assert '"first": 3, "count": 1' in lines[1]
    assert Settings(4, "calm").told == "worlds of 4 acts, profile calm"
    assert "3 worlds, 0 failed" in capsys.readouterr().out
