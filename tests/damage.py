"""Damage to the files of a data directory, by hand."""

from pathlib import Path


def flip(path: Path, offset: int) -> None:
    """A bit of that byte. Whoever has the file open reads it so, and everything else as before."""
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


def flip_a_bit(packs: Path, sector: bytes) -> Path:
    """Damage the pack that holds `sector`, in its midst."""
    for path in sorted(packs.iterdir()):
        offset = path.read_bytes().find(sector)
        if offset >= 0:
            flip(path, offset + 100)
            return path
    raise AssertionError("no pack holds the sector")
