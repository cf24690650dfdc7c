"""Reads a whole device and says whose each of its sectors is."""

import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from tests.check.stamps import SECTOR, Run, runs_of

STEP: Final = 4 << 20


class CannotRead(Exception):
    """The device cannot be read as a whole."""


def runs_of_device(device: str, size: int, history: int) -> list[Run]:
    """`device`: a file or block device, or what qemu-img takes (nbd://..., iscsi://...). Raises
    CannotRead. An image of more than `size` bytes is read up to there, of less is refused."""
    if "://" not in device:
        return runs_of_file(Path(device), size, history)
    tool = shutil.which("qemu-img")
    if tool is None:
        raise CannotRead("qemu-img is needed for URLs; it is in the package qemu-utils")
    with tempfile.TemporaryDirectory(prefix="blockd-check-") as folder:
        image = Path(folder) / "image"
        command = [tool, "convert", "-f", "raw", "-O", "raw", device, str(image)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise CannotRead(f"{device}: {done.stderr.strip()}")
        return runs_of_file(image, size, history)


def runs_of_file(path: Path, size: int, history: int) -> list[Run]:
    """The same for a file or a block device. Raises CannotRead."""
    runs: list[Run] = []
    try:
        with path.open("rb") as file:
            for offset in range(0, size, STEP):
                data = file.read(min(STEP, size - offset))
                if len(data) != min(STEP, size - offset):
                    raise CannotRead(f"{path}: has {offset + len(data)} bytes, not {size}")
                append_runs(runs, runs_of(data, offset // SECTOR, history))
    except OSError as error:
        raise CannotRead(f"{path}: {error}") from None
    return runs


def append_runs(runs: list[Run], more: list[Run]) -> None:
    """Lengthen `runs` by those of the sectors after them."""
    if runs and more and runs[-1][1] == more[0][1]:
        runs[-1] = [int(runs[-1][0]) + int(more[0][0]), more[0][1]]
        more = more[1:]
    runs.extend(more)
