"""scripts/bench erasure: encode and decode of blockd's code beside ISA-L's, on the same buffers.

Both run in one thread, in turns of some milliseconds, each of which counts its own CPU time: what
else the machine does hits both alike. What they compute is compared. Rates are bytes of data shards
per second of CPU time.
"""

import argparse
import ctypes
import mmap
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import report

from native import ErasureCode

BEGIN = "<!-- scripts/bench erasure: from here -->"
END = "<!-- scripts/bench erasure: to here -->"
CODES = ((2, 1), (4, 2), (8, 3), (16, 4))
SIZES = (64 << 10, 256 << 10, 4 << 20)
"""Bytes of a shard: about a chunk; what conversions and rebuilds take at a time; out of cache."""
WARM = 128 << 10  # bytes of all shards together in ISA-L's own warm benchmark
TURN_S = 0.005  # CPU time of one turn
WANTED = 0.8

Turn = Callable[[int], float]
"""CPU seconds of so many calls."""


@dataclass(frozen=True, slots=True)
class Cell:
    what: str
    length: int
    data: int
    parity: int
    ours: Turn
    limit: Turn


@dataclass(frozen=True, slots=True)
class Rates:
    cell: Cell
    ours: float
    limit: float
    ratio: float
    """Median of the turns' ratios."""


class Buffers:
    """The shards of one cell, each at the beginning of a page."""

    def __init__(self, library: ctypes.CDLL, data: int, parity: int, length: int) -> None:
        self._library, self._data, self._parity, self._length = library, data, parity, length
        self._code = ErasureCode(data, parity)
        self.shards = [_pages(os.urandom(length), length) for _ in range(data)]
        self.shards += [_pages(b"", length) for _ in range(parity)]
        self.spare = [_pages(b"", length) for _ in range(parity)]
        self._code.encode(self.shards[:data], self.shards[data:])

    def cells(self) -> list[Cell]:
        shape = (self._length, self._data, self._parity)
        all_lost = f"decode {self._parity} lost"
        cells = [
            Cell("encode", *shape, self._encode, self._limit_encode),
            Cell("decode 1 lost", *shape, self._decode(1), self._limit_decode(1)),
        ]
        if self._parity > 1:
            lost = self._parity
            cells.append(Cell(all_lost, *shape, self._decode(lost), self._limit_decode(lost)))
        return cells

    def _encode(self, rounds: int) -> float:
        data, parity = self.shards[: self._data], self.shards[self._data :]
        return _timed(self._code.encode, data, parity, rounds)

    def _limit_encode(self, rounds: int) -> float:
        before = [shard[:] for shard in self.shards[self._data :]]
        shape = (self._data, self._parity, self._length)
        found: float = self._library.limit_encode(*shape, _addresses(self.shards), rounds)
        assert before == [shard[:] for shard in self.shards[self._data :]], "not the same"
        return found

    def _decode(self, lost: int) -> Turn:
        there = [None if n < lost else shard for n, shard in enumerate(self.shards)]
        into = [self.spare[n] if n < lost else None for n in range(len(self.shards))]
        return lambda rounds: _timed(self._code.reconstruct, there, into, rounds)

    def _limit_decode(self, lost: int) -> Turn:
        shape = (self._data, self._parity, self._length, lost)

        def run(rounds: int) -> float:
            addresses = (_addresses(self.shards), _addresses(self.spare))
            found: float = self._library.limit_decode(*shape, *addresses, rounds)
            assert all(self.spare[n][:] == self.shards[n][:] for n in range(lost)), "not the same"
            return found

        return run


def _pages(content: bytes, length: int) -> mmap.mmap:
    """Zeros, or `content`, at a page boundary."""
    memory = mmap.mmap(-1, length)
    memory[: len(content)] = content
    return memory


def _addresses(buffers: Sequence[mmap.mmap]) -> ctypes.Array[ctypes.c_void_p]:
    found = [ctypes.addressof(ctypes.c_char.from_buffer(buffer)) for buffer in buffers]
    return (ctypes.c_void_p * len(found))(*found)


def _timed(call: Callable[[Any, Any], None], first: Any, second: Any, rounds: int) -> float:
    began = time.thread_time()
    for _ in range(rounds):
        call(first, second)
    return time.thread_time() - began


def measure(cell: Cell, turns: int) -> Rates:
    """Both in turns, the first one of each thrown away."""
    rounds = 1
    while (cost := cell.limit(rounds)) < TURN_S:
        rounds = max(2 * rounds, int(rounds * TURN_S / max(cost, 1e-9)))
    cell.ours(rounds)
    pairs = [(cell.ours(rounds), cell.limit(rounds)) for _ in range(turns)]
    amount = cell.data * cell.length * rounds
    return Rates(
        cell,
        ours=amount / median(ours for ours, _ in pairs),
        limit=amount / median(limit for _, limit in pairs),
        ratio=median(limit / ours for ours, limit in pairs),
    )


def build(folder: Path) -> ctypes.CDLL:
    target = folder / "limit.so"
    source = Path(__file__).with_name("limit.c")
    command = ["gcc", "-O2", "-shared", "-fPIC", "-o", str(target), str(source), "-lisal"]
    subprocess.run(command, check=True)
    library = ctypes.CDLL(str(target))
    library.limit_encode.restype = ctypes.c_double
    library.limit_decode.restype = ctypes.c_double
    return library


def table(rates: Sequence[Rates]) -> list[str]:
    met = sum(each.ratio >= WANTED for each in rates)
    lines = [
        f"Wanted: {WANTED} of ISA-L. Reached in {met} of {len(rates)} cells, the least is "
        f"{min(each.ratio for each in rates):.2f}.",
        "",
        "| code | shard | what | blockd GB/s | ISA-L GB/s | to ISA-L |",
        "| --- | ---: | --- | ---: | ---: | ---: |",
    ]
    for each in rates:
        cell = each.cell
        lines.append(
            f"| {cell.data}+{cell.parity} | {cell.length / 1024:,.0f} KiB | {cell.what} "
            f"| {each.ours / 1e9:.1f} | {each.limit / 1e9:.1f} | {each.ratio:.2f} |"
        )
    return [*lines, ""]


def main(arguments: Sequence[str], page: Path) -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench erasure", description=__doc__)
    parser.add_argument("--turns", type=int, default=21, help="of each cell (default: 21)")
    parser.add_argument("--folder", type=Path, default=report.FOLDER, help="for what is compiled")
    parser.add_argument("--dry", action="store_true", help="print, leave docs/benchmarks.md alone")
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="e-", dir=options.folder))
    rates = []
    try:
        library = build(work)
        for data, parity in CODES:
            for length in (WARM // (data + parity) & ~63, *SIZES):
                for cell in Buffers(library, data, parity, length).cells():
                    rates.append(measure(cell, options.turns))
    finally:
        shutil.rmtree(work)
    lines = [f"{report.machine()}; {options.turns} turns a cell.", "", *table(rates)]
    if options.dry:
        print("\n".join(lines))
    else:
        report.write(page, lines, begin=BEGIN, end=END)
        print(f"written to {page.name}")
