"""Disk images to copy around."""

import random
from pathlib import Path

MiB = 1 << 20


def sparse_image(path: Path, size: int, seed: int) -> None:
    """Data in every fourth MiB, at odd sectors and of odd lengths, holes elsewhere."""
    rng = random.Random(seed)
    with path.open("wb") as file:
        file.truncate(size)
        for offset in range(0, size, 4 * MiB):
            file.seek(offset + rng.randrange(0, MiB, 512))
            file.write(rng.randbytes(rng.randrange(512, MiB, 512)))
