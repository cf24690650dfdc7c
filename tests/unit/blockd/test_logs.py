"""Log lines: one event, one line, whatever clients call themselves."""

import io
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from blockd import logs
from blockd.config import LogConfig, LogFormat, LogLevel

logger = logging.getLogger("blockd.test")


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """Where lines go; the root logger is as before afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield io.StringIO()
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)


def test_text_has_event_and_fields(stream: io.StringIO) -> None:
    logs.setup(LogConfig(), stream)
    logger.info("attached", extra={"volume": "vm1", "note": "two words", "empty": ""})
    stamp, rest = stream.getvalue().split(" ", 1)
    assert rest == 'info blockd.test attached volume=vm1 note="two words" empty=""\n'
    assert len(stamp) == len("2026-11-22T10:31:05.123Z")
    assert stamp.endswith("Z")


def test_json_has_the_same_facts(stream: io.StringIO) -> None:
    logs.setup(LogConfig(format=LogFormat.JSON), stream)
    logger.warning("slow disk ms=%d", 12, extra={"volume": "vm1", "count": 3})
    line = json.loads(stream.getvalue())
    assert line.pop("time").endswith("Z")
    assert line == {
        "level": "warning",
        "logger": "blockd.test",
        "event": "slow disk ms=12",
        "volume": "vm1",
        "count": 3,
    }


def test_fields_cannot_replace_the_facts(stream: io.StringIO) -> None:
    logs.setup(LogConfig(format=LogFormat.JSON), stream)
    logger.info("real", extra={"event": "forged", "level": "forged"})
    line = json.loads(stream.getvalue())
    assert (line["event"], line["level"]) == ("real", "info")


@pytest.mark.parametrize("nasty", ["a\nb", "a\x1b[31mb", "a\u2028b", "a\rb"])
def test_no_client_can_forge_a_line(stream: io.StringIO, nasty: str) -> None:
    logs.setup(LogConfig(), stream)
    logger.info("refused %s", nasty, extra={"peer": nasty})
    line = stream.getvalue()
    assert line.endswith("\n")
    assert line[:-1].isprintable()


def test_a_traceback_follows_its_event(stream: io.StringIO) -> None:
    logs.setup(LogConfig(), stream)
    try:
        raise ValueError("broken")
    except ValueError:
        logger.exception("failed")
    first, *rest = stream.getvalue().splitlines()
    assert first.endswith("error blockd.test failed")
    assert all(line.startswith("    ") for line in rest)
    assert rest[-1].endswith("ValueError: broken")


def test_a_traceback_is_a_field_in_json(stream: io.StringIO) -> None:
    logs.setup(LogConfig(format=LogFormat.JSON), stream)
    try:
        raise ValueError("broken")
    except ValueError:
        logger.exception("failed")
    assert json.loads(stream.getvalue())["exception"].endswith("ValueError: broken")


def test_levels_hold_back(stream: io.StringIO) -> None:
    logs.setup(LogConfig(level=LogLevel.WARNING), stream)
    logger.info("chatter")
    assert stream.getvalue() == ""


def test_setup_again_does_not_double_lines(stream: io.StringIO) -> None:
    logs.setup(LogConfig(), stream)
    logs.setup(LogConfig(level=LogLevel.DEBUG), stream)
    logging.getLogger("uvicorn.error").warning("odd request")
    assert len(stream.getvalue().splitlines()) == 1


def test_libraries_report_problems_only(stream: io.StringIO) -> None:
    logs.setup(LogConfig(level=LogLevel.DEBUG), stream)
    logging.getLogger("uvicorn.error").info("Started server process")
    assert stream.getvalue() == ""


@pytest.fixture
def own_handlers() -> Iterator[None]:
    """The root logger's handlers are back when the test ends."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    yield
    for handler in root.handlers:
        if handler not in before:
            handler.close()
    root.handlers[:] = before
    root.setLevel(level)


@pytest.mark.usefixtures("own_handlers")
def test_a_file_that_was_renamed_is_made_anew(tmp_path: Path) -> None:
    path, rotated = tmp_path / "blockd.log", tmp_path / "blockd.log.1"
    logs.setup(LogConfig(file=path))
    logging.getLogger("blockd.x").info("first")
    path.rename(rotated)
    logging.getLogger("blockd.x").info("second")
    assert "first" in rotated.read_text()
    assert "second" not in rotated.read_text()
    assert "second" in path.read_text()


@pytest.mark.usefixtures("own_handlers")
def test_a_file_that_cannot_be_written_leaves_the_log_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "blockd.log"
    logs.setup(LogConfig(file=path))
    with pytest.raises(FileNotFoundError):
        logs.setup(LogConfig(file=tmp_path / "none" / "blockd.log"))
    logging.getLogger("blockd.x").info("still here")
    assert "still here" in path.read_text()


@pytest.mark.usefixtures("own_handlers")
def test_a_rotated_file_that_cannot_be_made_anew_costs_its_lines_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder := tmp_path / "log").mkdir()
    logs.setup(LogConfig(file=folder / "blockd.log"))
    logger.info("first")
    folder.rename(tmp_path / "away")
    logger.info("second")
    logger.info("third")
    told = capsys.readouterr().err
    assert "second" in told
    assert "third" in told
    assert "No such file or directory" in told
    folder.mkdir()
    logger.info("fourth")
    assert (folder / "blockd.log").read_text().endswith("fourth\n")
    assert (tmp_path / "away" / "blockd.log").read_text().count("\n") == 1


@pytest.mark.usefixtures("own_handlers")
def test_a_folder_that_is_closed_to_us_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    logs.setup(LogConfig(file=tmp_path / "blockd.log"))
    told = (tmp_path / "blockd.log").read_text()
    assert "log file could not be made anew once rotated away" in told
    assert str(tmp_path) in told
