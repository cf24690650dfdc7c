"""Stamps, the file of a history, and the command that judges it."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.check.events import FUA, READ, TRIM, WRITE, BadHistory, Recorder, read_history
from tests.check.judge import judge_file
from tests.check.stamps import FOREIGN, TORN, payload, runs_of

SIZE = 64 << 10
SECTOR = 512


def test_what_was_written_is_read_as_runs_of_its_operations() -> None:
    image = payload(5, 1, 7, 10, 2) + bytes(3 * SECTOR) + payload(5, 2, 8, 15, 1)
    assert runs_of(image, 10, 5) == [[2, 7], [3, 0], [1, 8]]


def test_bytes_of_two_writes_are_torn() -> None:
    old, new = payload(5, 1, 7, 3, 1), payload(5, 1, 8, 3, 1)
    for at in (32, 256, 100, 470):
        assert runs_of(old[:at] + new[at:], 3, 5) == [[1, TORN]]
        assert runs_of(new[:at] + bytes(SECTOR - at), 3, 5) == [[1, TORN]]
        assert runs_of(bytes(at) + new[at:], 3, 5) == [[1, TORN]]


def test_bytes_of_another_place_history_or_maker_are_foreign() -> None:
    good = payload(5, 1, 7, 3, 1)
    damaged = bytes([*good[:20], good[20] ^ 1, *good[21:32]]) * 16
    for content, sector, history in (
        (good, 4, 5),
        (good, 3, 6),
        (damaged, 3, 5),
        (b"\xff" * SECTOR, 3, 5),
    ):
        assert runs_of(content, sector, history) == [[1, FOREIGN]]


def record(path: Path) -> bytes:
    """A history of a few operations; the image of the volume after it."""
    image = bytearray(SIZE)
    with Recorder(path, "demo", SIZE, 9) as recorder:
        for kind, first, count in ((WRITE, 0, 8), (FUA, 4, 8), (TRIM, 6, 1)):
            operation = recorder.begin(1, kind, first, count)
            image[first * SECTOR : (first + count) * SECTOR] = (
                bytes(SECTOR) if kind == TRIM else recorder.payload(1, operation, first, count)
            )
            recorder.end(operation)
        recorder.saw(recorder.begin(2, READ, 2, 8), 2, bytes(image[1024 : 10 * SECTOR]))
    return bytes(image)


def check(*arguments: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "tests.check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout + done.stderr


def test_a_recorded_history_is_judged(tmp_path: Path) -> None:
    record(tmp_path / "history")
    report = judge_file(tmp_path / "history")
    assert report.ok
    assert (report.total, report.sectors_read) == (4, 8)
    code, text = check("history", str(tmp_path / "history"))
    assert code == 0
    assert "ok; 4 operations (1 fua, 1 read, 1 trim, 1 write)" in text


def test_an_image_is_scanned_against_its_history(tmp_path: Path) -> None:
    image = record(tmp_path / "history")
    disk = tmp_path / "disk"
    history = ("--history", str(tmp_path / "history"))
    disk.write_bytes(image)
    assert check("scan", str(disk), *history)[0] == 0
    disk.write_bytes(image[:SECTOR] + bytes(SECTOR) + image[2 * SECTOR :])
    code, text = check("scan", str(disk), *history)
    assert code == 1
    assert "I2: line 10: sectors [1, +1)" in text
    disk.write_bytes(image[:-1])
    code, text = check("scan", str(disk), *history)
    assert (code, "has 65535 bytes" in text) == (2, True)


def test_a_last_line_that_was_cut_off_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "history"
    record(path)
    path.write_text(path.read_text()[:-3])
    assert judge_file(path).total == 4


def test_a_file_that_is_no_history_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "history"
    for text in ("", "[]\n", '{"blockd_history": 2}\n', '{"blockd_history": 1, "id": 1}\n'):
        path.write_text(text)
        with pytest.raises(BadHistory):
            read_history(path)
    path.write_text('{"blockd_history":1,"id":1,"volume":"v","size":512}\nnonsense\n')
    with pytest.raises(BadHistory, match="line 2 is not JSON"):
        judge_file(path)
    assert check("history", str(path))[0] == 2


def test_a_history_is_never_continued_by_another(tmp_path: Path) -> None:
    record(tmp_path / "history")
    with pytest.raises(FileExistsError):
        Recorder(tmp_path / "history", "demo", SIZE)
