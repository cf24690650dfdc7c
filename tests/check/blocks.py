"""I5 for aligned 4 KiB blocks: a write of a whole block shows in all of it or in nothing of it."""

from collections.abc import Iterator, Sequence
from typing import Final

from tests.check.log import Log
from tests.check.stamps import Run

SECTORS: Final = 8  # 4 KiB


def torn_blocks(runs: Sequence[Run], first: int, log: Log, end: int) -> Iterator[tuple[int, int]]:
    """(first sector of the block, the operation that shows in a part of it) in what was read from
    sector `first` on by a read that ended at `end`. Blocks that were read in part are passed over.
    """
    if len(runs) < 2:
        return
    sources: list[int | str] | None = None
    at = first
    last_mixed = -1
    total = sum(int(count) for count, _ in runs)
    for count, _ in runs[:-1]:
        at += int(count)
        block = at // SECTORS * SECTORS
        if at == block or block == last_mixed or block < first or block + SECTORS > first + total:
            continue
        last_mixed = block
        if sources is None:
            sources = [source for length, source in runs for _ in range(int(length))]
        torn = _torn(sources[block - first : block - first + SECTORS], block, log, end)
        if torn is not None:
            yield block, torn


def _torn(sources: Sequence[int | str], block: int, log: Log, end: int) -> int | None:
    for operation in set(sources):
        whole = log.changes.get(operation) if isinstance(operation, int) else None
        if whole is None or not whole.covers(block, SECTORS):
            continue
        for sector, source in enumerate(sources, block):
            if source == operation or isinstance(source, str):
                continue
            if source == 0:
                if not any(
                    other.zero
                    and other.settled >= whole.begin
                    and other.begin < end
                    and not other.covers(block, SECTORS)
                    for other in log.of(sector)
                ):
                    return int(operation)
                continue
            other = log.changes.get(source)
            if other is not None and (other.settled < whole.begin or other.covers(block, SECTORS)):
                return int(operation)
    return None
